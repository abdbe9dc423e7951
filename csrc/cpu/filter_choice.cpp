#include "filter_choice.h"

#include <algorithm>
#include <limits>

#include "divide.h"
#include "padding.h"
#include "processor.h"

namespace lmser {
namespace {

// In products for each pair of channels: packing a weight 36 points wide instead of 9; reading one that other layers,
// or the pass back, have driven out of the second-level cache since its last call; both, for each lane of a register,
// where the packed weight leaves the caches by itself; and forming a filtered gradient of it where its sums leave them.
constexpr double kPack = 40, kFarPack = 300, kFarPackBytes = 512 << 10, kLargePack = 48, kLargePackBytes = 4 << 20,
                 kLargeGradSum = 160;

// How much dearer a filtered product is than a direct one, and, for each channel, its share of the transforms.
struct Dearer {
  double product, transform;
  double of(double channels) const { return product * (1 + transform * channels); }
};
// Minimal filtering at stride 2: outputs and gradients of kernels of 3 and of 5 taps.
struct StrideTwoCosts {
  Dearer three, five, three_grad, five_grad;
  double grad_sum;    // zeroing, adding to and bringing back the sums of a gradient: products for each pair of channels
  Dearer along_rows;  // outputs and gradients
  // Sums in registers, for 2 and 3 outputs a tile: there the transform of the input alone counts, of whole registers,
  // and of `far` channels points lie so far beyond the first-level cache that all takes twice as long.
  double registers[4], registers_transform[4], registers_far[4];
};
// Transforms and the traffic of caches weigh the more the faster the products are: measured where a cycle starts one
// multiply-add of 64 bytes (Zen 4) or two of 32 (Zen 3), and where it starts two of 64 (Emerald Rapids).
constexpr StrideTwoCosts kUsual{{1.08, 7.4}, {1.03, 6.3},        {1.08, 7.4},      {1.03, 6.3},      800,
                                {1.03, 3.5}, {0, 0, 1.05, 1.14}, {0, 0, 4.6, 3.5}, {0, 0, 2000, 800}};
// There sums in registers, faster by themselves at some sizes, are slower inside a network.
constexpr StrideTwoCosts kFastProducts{{1.19, 8},   {1.23, 7},          {1.0, 27},        {1.17, 8},       300,
                                       {1.03, 3.5}, {0, 0, 1.35, 1.35}, {0, 0, 6.5, 6.5}, {0, 0, 370, 185}};
const StrideTwoCosts& stride_two_costs(int lanes) {
  return lanes >= 16 && fast_wide_products() ? kFastProducts : kUsual;
}

// In direct products, one of a grid.
double dearer(const StrideTwoCosts& costs, const Geometry& g, const WinogradGrid& w, int lanes, bool gradient) {
  const double in = double(g.in_c), out = double(g.out_c), both = 1 / in + 1 / out;
  if (w.taps == 5) return (gradient ? costs.five_grad : costs.five).of(both);
  if (!w.in_registers) return (gradient ? costs.three_grad : costs.three).of(both);
  const double filled = in / double(round_up(g.in_c, lanes));
  return costs.registers[w.m] * (1 + in / costs.registers_far[w.m]) *
         (1 + costs.registers_transform[w.m] / (out * filled));
}

// Of the direct sum's products those that it makes: those of the padding are left out, of few images by rows alone.
double share_made(const Geometry& g) {
  constexpr std::int64_t kFewImages = 4;
  const std::int64_t big_h = g.transposed ? g.out_h : g.in_h, small_h = g.transposed ? g.in_h : g.out_h,
                     big_w = g.transposed ? g.out_w : g.in_w, small_w = g.transposed ? g.in_w : g.out_w;
  const double rows = share_inside(g.kernel_h, g.stride_h, g.pad_h, big_h, small_h);
  return g.batch < kFewImages ? rows : rows * share_inside(g.kernel_w, g.stride_w, g.pad_w, big_w, small_w);
}

// Along rows: channels on either side below which the transforms eat the gain; what
// reading and writing the wider sum of a gradient costs in products for each pair of channels; the largest such sum,
// which is to stay in the second-level cache; and the depth of a convolution from which what lies under a tile leaves
// the first, and by how much that is dearer.
constexpr std::int64_t kLeastAlongRows = 16, kFarAlongRowsDepth = 192;
constexpr double kAlongRowsSum = 60, kMostAlongRowsSumBytes = 768 << 10, kFarAlongRows = 1.12;
// Whether rows of a convolution at stride 2 can be filtered (filtered_rows.h): the middle taps meet no padding, and
// most of a register is filled.
bool filters_along_rows(const Geometry& g, const TileShape& tile) {
  if (g.kernel_w != 3 || g.pad_w > 1 || g.out_h < 1 || g.out_w < 2) return false;
  const std::int64_t middle = g.transposed ? (g.out_w - 1 + g.pad_w - 1) / 2 : 2 * (g.out_w - 1) + 1 - g.pad_w;
  return middle < g.in_w && 4 * g.out_c > 3 * tile.lanes;
}

// The cheapest grid, or none where the direct sum is better. Measured on float32, 3x3 and 5x5 at stride 2, where
// below some channels on either side the transforms eat the gain. `overhead(costs, large)`: products for each pair of
// channels that the filtered form costs beside those of its tiles, where its weights or their sums leave the caches and
// where not. Where `how` is not where_faster every grid is taken that there is; a gradient has none with sums in
// registers.
template <class F>
WinogradGrid winograd_grid(const Geometry& g, const TileShape& tile, std::int64_t value_bytes, bool gradient,
                           Filtering how, F&& overhead) {
  const int taps = g.kernel_h, lanes = tile.lanes;
  if (value_bytes != 4 || (taps != 3 && taps != 5) || g.kernel_w != taps || g.stride_h != 2 || g.stride_w != 2)
    return {};
  if (g.pad_h >= taps || g.pad_w >= taps) return {};
  const double in = double(g.in_c), out = double(g.out_c), pairs = in * out;
  WinogradGrid along_rows;
  along_rows.along_rows = true;
  const std::int64_t channels = std::min(g.in_c, g.out_c);
  const bool asks = how == Filtering::where_faster;
  const StrideTwoCosts& costs = stride_two_costs(lanes);
  WinogradGrid best;
  double least =
      !asks ? std::numeric_limits<double>::infinity()
            : taps * taps * share_made(g) * (g.transposed ? double(g.in_h * g.in_w) : double(g.out_h * g.out_w));
  const auto consider = [&](int m, bool in_registers) {
    WinogradGrid w;
    w.m = m, w.taps = taps, w.in_registers = in_registers;
    w.out_step = g.transposed ? 2 * m : m, w.in_step = g.transposed ? m : 2 * m,
    w.window = g.transposed ? m + taps / 2 : 2 * m + taps - 2;
    // Transposed: output o is tap sum at o' = o + pad; tiles begin at or before pad, with 3 taps at odd o' (the single
    // tap), with 5 at even o' (the three): where half a kernel is padding, at pad.
    const int parity = taps == 5 ? 0 : 1;
    const auto first = [&](int pad) {
      return g.transposed ? std::int64_t(pad % 2 == parity ? pad : pad - 1) : std::int64_t(0);
    };
    w.out0_h = g.transposed ? first(g.pad_h) - g.pad_h : 0, w.out0_w = g.transposed ? first(g.pad_w) - g.pad_w : 0;
    const auto input = [&](int pad) { return g.transposed ? (first(pad) - parity) / 2 - (taps == 5 ? 2 : 0) : -pad; };
    w.in0_h = input(g.pad_h), w.in0_w = input(g.pad_w);
    w.rows = ceil_div(g.out_h - w.out0_h, w.out_step), w.cols = ceil_div(g.out_w - w.out0_w, w.out_step);
    const bool large = taps == 5 && double(w.weights() * value_bytes) * pairs > kLargePackBytes;
    const double packing = overhead(costs, large) / double(std::max<std::int64_t>(1, g.batch)),
                 products = dearer(costs, g, w, lanes, gradient) * (double(w.rows * w.cols * w.points()) + packing);
    if (products < least) least = products, best = w;
  };
  // Fewest channels: below, the transforms eat the gain, or products are too short for any of this.
  const auto enough = [&](std::int64_t wide, std::int64_t narrow) {
    return channels >= (!asks ? 8 : lanes >= 16 ? wide : narrow);
  };
  [[maybe_unused]] constexpr std::int64_t kNone = std::int64_t(1) << 40;
  if (taps == 5) {
    if (enough(16, 64)) consider(2, false);
    return best;
  }
  const bool along = (asks || how == Filtering::along_rows) && filters_along_rows(g, tile);
  if (along && how == Filtering::along_rows) return along_rows;
  const bool registers = !gradient && tile.filters_in_registers && how != Filtering::in_buffers;
  for (const int m : {3, 2}) {
    if (registers && enough(16, kNone)) consider(m, true);
    if ((!registers || how != Filtering::in_registers) && enough(32, 128)) consider(m, false);
  }
  // To one register of channels a tile reads as often as it multiplies; there are better ones (four_phases.h).
  if (!along || channels < kLeastAlongRows || (!gradient && g.out_c <= lanes)) return best;
  const bool sums_fit = pairs * double(g.kernel_h * kAlongRowsWeights * value_bytes) <= kMostAlongRowsSumBytes;
  if (gradient && !sums_fit) return best;
  const double wider = gradient ? kAlongRowsSum : overhead(costs, false) * (3 * kAlongRowsWeights) / 36,
               far = !g.transposed && g.in_c > kFarAlongRowsDepth ? kFarAlongRows : 1,
               products = products_along_rows(g) + wider / double(std::max<std::int64_t>(1, g.batch));
  if (far * costs.along_rows.of(1 / in + 1 / out) * products < least) return along_rows;
  return best;
}

// The tiles of F(4x4, 3x3) or F(2x2, 5x5), where there are any.
WinogradGrid stride1_tiles(const Geometry& g, std::int64_t value_bytes) {
  WinogradGrid w;
  const int taps = g.kernel_h;
  if (value_bytes != 4 || (taps != 3 && taps != 5) || g.kernel_w != taps || g.stride_h != 1 || g.stride_w != 1)
    return {};
  if (g.pad_h >= taps || g.pad_w >= taps || g.out_h <= 0 || g.out_w <= 0 || std::min(g.in_c, g.out_c) < 8) return {};
  w.taps = taps;
  w.m = w.out_step = w.in_step = taps == 3 ? 4 : 2, w.window = 6;
  // Transposed, output o takes inputs o + pad - (taps - 1) to o + pad.
  w.in0_h = g.transposed ? g.pad_h - taps + 1 : -g.pad_h, w.in0_w = g.transposed ? g.pad_w - taps + 1 : -g.pad_w;
  w.rows = ceil_div(g.out_h, w.m), w.cols = ceil_div(g.out_w, w.m);
  return w;
}

// The same, with the last tiles cut to what is needed of them.
WinogradGrid trimmed(WinogradGrid w, const Geometry& g) {
  if (w.m != 4) return w;
  const auto last = [](std::int64_t out, std::int64_t tiles) {
    const std::int64_t needed = out - 4 * (tiles - 1);
    return needed == 4 ? 0 : int(std::max<std::int64_t>(needed, 2));
  };
  w.last_h = last(g.out_h, w.rows), w.last_w = last(g.out_w, w.cols);
  return w;
}

// Minimal filtering at stride 1, or none where the direct sum is faster. Both are counted in multiply-adds of the
// register tiles. In these the transforms of a tile cost kTransform for each of its padded channels and each lane of a
// register (products become cheaper with wider ones, memory does not), packing a weight 36 points wide instead of 9
// costs kPack, kFarPack or kLargePack (above), and starting costs kStart. Fitted to
// the measured times of both on 3 to 512 channels, sizes 2 to 56 and batches 1 to 16 (AVX-512, AVX2 and SSE2, one and
// two threads), where below 8 channels the products are too short for any of this. A grid whose last tiles are smaller
// has fewer products, and dearer transforms: one tile at a time, of several kinds.
constexpr double kTransform = 0.875, kTrimmedTransform = 1.3, kStart = 3000;
WinogradGrid winograd_grid_stride1(const ConvPlan& p, std::int64_t value_bytes, int calls) {
  const Geometry& g = p.geometry;
  const WinogradGrid w = trimmed(stride1_tiles(g, value_bytes), g);
  if (!w.m) return w;
  const double in = double(g.in_c), padded_in = double(round_up(g.in_c, p.tile.lanes)), out = double(p.padded_out_c);
  const double products = double(g.batch) * w.products(), lanes = p.tile.lanes;
  const double transforms =
      double(g.batch * w.rows * w.cols * w.points()) * (w.last_h || w.last_w ? kTrimmedTransform : kTransform);
  const double bytes = double(w.weights() * value_bytes) * in * out,
               pack = in * out / calls *
                      (bytes > kLargePackBytes ? kLargePack * lanes
                       : bytes > kFarPackBytes ? kFarPack
                                               : kPack);
  const double direct =
      double(w.taps * w.taps) * double(g.batch * g.out_h * g.out_w) * in * (p.dot ? double(g.out_c) : out);
  const double filtered = products * in * out + lanes * (transforms * (padded_in + out) + kStart) + pack;
  return filtered < direct ? w : WinogradGrid{};
}

// The same for the weight gradient: its sum is 36 points wide for each pair of channels, zeroed, added to and brought
// back to 9 taps, once for every thread that has a sum of its own. Where these would not stay in the caches threads
// share one sum and the transformed sides.
constexpr double kGradTransform = 1, kGradSum = 800, kLargeGradSumBytes = 4 << 20, kGradSumsBytes = 8 << 20;
bool fit_apart(const WinogradGrid& w, double in, double out, std::int64_t value_bytes, int threads) {
  return double(w.weights() * value_bytes * threads) * in * out <= kGradSumsBytes;
}
WinogradGrid winograd_grid_stride1(const WeightGradPlan& p, std::int64_t value_bytes, int threads) {
  const Geometry& g = p.geometry;
  const WinogradGrid w = trimmed(stride1_tiles(g, value_bytes), g);
  const double in = double(g.in_c), padded_in = double(round_up(g.in_c, p.tile.lanes)), out = double(p.padded_out_c);
  const double tiles = double(g.batch * w.rows * w.cols * w.points()), lanes = p.tile.lanes;
  const double products = double(g.batch) * w.products();
  const double sum_bytes = double(w.weights() * value_bytes) * in * out;
  const bool own = fit_apart(w, in, out, value_bytes, threads), large = sum_bytes > kLargeGradSumBytes;
  const double direct = double(w.taps * w.taps) * double(g.batch * g.out_h * g.out_w) * in * out;
  const double transforms =
      lanes * (w.last_h || w.last_w ? kTrimmedTransform / kTransform : 1) * kGradTransform * tiles * (padded_in + out);
  const double sums = (large ? kLargeGradSum * lanes : kGradSum) * in * out * (own ? threads : 1);
  return w.m && products * in * out + transforms + sums < direct ? w : WinogradGrid{};
}

std::atomic<Filtering> chosen_filtering{Filtering::where_faster};

// `overhead` and `faster` belong to the choice of the faster form.
template <class O, class F>
WinogradGrid grid(const Geometry& g, const TileShape& tile, std::int64_t value_bytes, bool gradient, O&& overhead,
                  Filtering filtering, F&& faster) {
  if (filtering == Filtering::where_faster) filtering = chosen_filtering.load();
  if (filtering == Filtering::never) return {};
  const bool asks = filtering == Filtering::where_faster;
  const WinogradGrid w =
      winograd_grid(g, tile, value_bytes, gradient, filtering,
                    [&](const StrideTwoCosts& costs, bool large) { return asks ? overhead(costs, large) : 0; });
  if (w.filters()) return w;
  return asks ? faster() : trimmed(stride1_tiles(g, value_bytes), g);
}

}  // namespace

double products_along_rows(const Geometry& g) {
  const std::int64_t big_h = g.transposed ? g.out_h : g.in_h, small_h = g.transposed ? g.in_h : g.out_h;
  const double rows =
      share_inside(g.kernel_h, g.stride_h, g.pad_h, big_h, small_h) * double(g.kernel_h) * double(small_h);
  // Outputs of two taps and of one, of a transposed convolution: those of one parity each.
  const std::int64_t two = g.transposed ? (g.out_w + (g.pad_w ? 0 : 1)) / 2 : g.out_w,
                     one = g.transposed ? g.out_w - two : g.out_w;
  constexpr int kOfRest[] = {0, 2, 3};
  return rows * double(two / 3 * 4 + kOfRest[two % 3] + one);
}

Filtering filtering_mode() { return chosen_filtering.load(); }
Filtering choose_filtering(Filtering filtering) { return chosen_filtering.exchange(filtering); }

WinogradGrid chosen_grid(const ConvPlan& p, std::int64_t value_bytes, int calls, Filtering filtering) {
  const auto overhead = [&](const StrideTwoCosts&, bool large) {
    return (large ? kLargePack * p.tile.lanes : kPack) / calls;
  };
  return grid(p.geometry, p.tile, value_bytes, false, overhead, filtering,
              [&] { return winograd_grid_stride1(p, value_bytes, calls); });
}
WinogradGrid chosen_grid(const WeightGradPlan& p, std::int64_t value_bytes, int threads, Filtering filtering) {
  const auto overhead = [&](const StrideTwoCosts& costs, bool large) {
    return large ? kLargeGradSum * p.tile.lanes : costs.grad_sum;
  };
  return grid(p.geometry, p.tile, value_bytes, true, overhead, filtering,
              [&] { return winograd_grid_stride1(p, value_bytes, threads); });
}

bool own_sums(const WeightGradPlan& p, std::int64_t value_bytes, int threads) {
  return fit_apart(p.winograd, double(p.geometry.in_c), double(p.padded_out_c), value_bytes, threads);
}

}  // namespace lmser
