#include "plan.h"

#include <algorithm>

namespace lmser {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

// Half of the smallest second-level cache of the machines aimed at (512 KiB): the other half is for weights.
constexpr std::int64_t kSlabBytes = 192 * 1024;

// Images a unit so that no thread has a unit more than another where that can be had: `most` of them at most.
std::int64_t even_images(std::int64_t batch, std::int64_t most, int threads) {
  most = std::max<std::int64_t>(1, most);
  const std::int64_t units = ceil_div(std::max<std::int64_t>(1, batch), most);
  return units == 1 ? most : ceil_div(batch, round_up(units, threads));
}
// How many of `total` a unit, at most `most` and at least half of that, so that the busiest thread has least to do;
// `copies` times `total` there are in all.
std::int64_t balanced(std::int64_t total, std::int64_t copies, std::int64_t most, int threads) {
  most = std::clamp<std::int64_t>(most, 1, std::max<std::int64_t>(1, total));
  const auto longest = [&](std::int64_t i) { return ceil_div(copies * ceil_div(total, i), threads) * i; };
  std::int64_t best = most;
  for (std::int64_t i = most - 1; 2 * i >= most && i > 0; --i)
    if (longest(i) < longest(best)) best = i;
  return best;
}

// One axis of one phase.
struct Axis {
  std::int64_t out0, count, offset;
  int taps, first_tap;
};

Axis axis_of_phase(const Geometry& g, bool vertical, int phase) {
  const std::int64_t out = vertical ? g.out_h : g.out_w;
  const int kernel = vertical ? g.kernel_h : g.kernel_w, stride = vertical ? g.stride_h : g.stride_w;
  const int pad = vertical ? g.pad_h : g.pad_w;
  if (!g.transposed) return {0, out, -std::int64_t(pad), kernel, 0};
  // Output o = phase + stride * q receives input (o + pad - i) / stride for every kernel index
  // i = i0 + stride * t; descending i meets ascending input.
  const int i0 = (phase + pad) % stride;
  const int taps = i0 < kernel ? (kernel - 1 - i0) / stride + 1 : 0;
  const std::int64_t count = phase < out ? ceil_div(out - phase, stride) : 0;
  return {phase, count, (phase + pad - i0) / stride - (taps - 1), taps, i0 + stride * (taps - 1)};
}

void split_blocks(ConvPlan& p) {
  const int vectors = int(ceil_div(p.geometry.out_c, p.tile.lanes));
  const int count = int(ceil_div(vectors, p.tile.max_vectors));
  int done = 0;
  for (int b = 0; b < count; ++b) {
    const int width = int(ceil_div(vectors - done, count - b));
    p.blocks.push_back({done * p.tile.lanes, width, std::int64_t(done) * p.tile.lanes});
    done += width;
  }
  p.padded_out_c = std::int64_t(vectors) * p.tile.lanes;
}

// In products for each pair of channels: packing a weight 36 points wide instead of 9, or, for each lane of a register,
// where the packed weight leaves the caches; and forming a filtered gradient of it, zeroed, added to and brought back.
constexpr double kPack = 40, kLargePack = 48, kLargePackBytes = 4 << 20, kGradSum = 800;

// The grid that needs fewest products, or none where the direct sum is better. Measured on float32, 3x3 at stride 2:
// below 32 channels on either side the transforms eat the gain, and with registers of 8 values below 128.
// `overhead`: products for each pair of channels that the filtered form costs beside those of its tiles.
WinogradGrid winograd_grid(const Geometry& g, std::int64_t value_bytes, int lanes, double overhead) {
  const std::int64_t channels = lanes >= 16 ? 32 : 128;
  WinogradGrid best;
  if (value_bytes != 4 || g.kernel_h != 3 || g.kernel_w != 3 || g.stride_h != 2 || g.stride_w != 2) return best;
  if (g.pad_h > 2 || g.pad_w > 2 || std::min(g.in_c, g.out_c) < channels) return best;
  double least = 9.0 / 1.15 * (g.transposed ? double(g.in_h * g.in_w) : double(g.out_h * g.out_w));
  for (int m : {3, 2}) {
    WinogradGrid w;
    w.m = m;
    w.out_step = g.transposed ? 2 * m : m, w.in_step = g.transposed ? m : 2 * m,
    w.window = g.transposed ? m + 1 : 2 * m + 1;
    // Transposed: output o is tap sum at o' = o + pad; tiles begin at odd o' (the single tap) at or before pad.
    const auto first = [&](int pad) {
      return g.transposed ? std::int64_t(pad % 2 == 1 ? pad : pad - 1) : std::int64_t(0);
    };
    w.out0_h = g.transposed ? first(g.pad_h) - g.pad_h : 0, w.out0_w = g.transposed ? first(g.pad_w) - g.pad_w : 0;
    w.in0_h = g.transposed ? (first(g.pad_h) - 1) / 2 : -g.pad_h,
    w.in0_w = g.transposed ? (first(g.pad_w) - 1) / 2 : -g.pad_w;
    w.rows = ceil_div(g.out_h - w.out0_h, w.out_step), w.cols = ceil_div(g.out_w - w.out0_w, w.out_step);
    const double products =
        double(w.rows * w.cols * w.points()) + overhead / double(std::max<std::int64_t>(1, g.batch));
    if (products < least) least = products, best = w;
  }
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
// costs kPack for each, or kLargePack and each lane where it leaves the caches, and starting costs kStart. Fitted to
// the measured times of both on 3 to 512 channels, sizes 2 to 56 and batches 1 to 16 (AVX-512, AVX2 and SSE2, one and
// two threads), where below 8 channels the products are too short for any of this.

// A grid whose last tiles are smaller has fewer products, and dearer transforms: one tile at a time, of several kinds.
constexpr double kTransform = 0.875, kTrimmedTransform = 1.3, kStart = 3000;
WinogradGrid winograd_grid_stride1(const ConvPlan& p, std::int64_t value_bytes, int calls) {
  const Geometry& g = p.geometry;
  const WinogradGrid w = trimmed(stride1_tiles(g, value_bytes), g);
  if (!w.m) return w;
  const double in = double(g.in_c), padded_in = double(round_up(g.in_c, p.tile.lanes)), out = double(p.padded_out_c);
  const double products = double(g.batch) * w.products(), lanes = p.tile.lanes;
  const double transforms =
      double(g.batch * w.rows * w.cols * w.points()) * (w.last_h || w.last_w ? kTrimmedTransform : kTransform);
  const bool large = double(w.weights() * value_bytes) * in * out > kLargePackBytes;
  const double pack = in * out * (large ? kLargePack * lanes : kPack) / calls;
  const double direct =
      double(w.taps * w.taps) * double(g.batch * g.out_h * g.out_w) * in * (p.dot ? double(g.out_c) : out);
  const double filtered = products * in * out + lanes * (transforms * (padded_in + out) + kStart) + pack;
  return filtered < direct ? w : WinogradGrid{};
}

// The same for the weight gradient: its sum is 36 points wide for each pair of channels, zeroed, added to and brought
// back to 9 taps, once for every thread that has a sum of its own. Where these would not stay in the caches threads
// take bands of one sum instead, and every one of them transforms everything.
constexpr double kGradTransform = 1, kLargeGradSum = 275, kLargeGradSumBytes = 4 << 20, kHugeGradSumBytes = 16 << 20,
                 kGradSumsBytes = 8 << 20;
bool own_sums(const WinogradGrid& w, double in, double out, std::int64_t value_bytes, int threads) {
  return double(w.weights() * value_bytes * threads) * in * out <= kGradSumsBytes;
}
WinogradGrid winograd_grid_stride1(const WeightGradPlan& p, std::int64_t value_bytes, int threads) {
  const Geometry& g = p.geometry;
  const WinogradGrid w = trimmed(stride1_tiles(g, value_bytes), g);
  const double in = double(g.in_c), padded_in = double(round_up(g.in_c, p.tile.lanes)), out = double(p.padded_out_c);
  const double tiles = double(g.batch * w.rows * w.cols * w.points()), lanes = p.tile.lanes;
  const double products = double(g.batch) * w.products();
  const double sum_bytes = double(w.weights() * value_bytes) * in * out;
  const bool own = own_sums(w, in, out, value_bytes, threads), large = sum_bytes > kLargeGradSumBytes;
  const double direct = double(w.taps * w.taps) * double(g.batch * g.out_h * g.out_w) * in * out;
  const double transforms = lanes * (w.last_h || w.last_w ? kTrimmedTransform / kTransform : 1) * kGradTransform *
                            tiles * (padded_in + out) * (own ? 1 : threads);
  // Beyond the caches threads wait for the same memory.
  const double sums =
      (large ? kLargeGradSum * lanes : kGradSum) * in * out * (own || sum_bytes > kHugeGradSumBytes ? threads : 1);
  return w.m && products * in * out + transforms + sums < direct ? w : WinogradGrid{};
}

std::atomic<Filtering> chosen_filtering{Filtering::where_faster};
Filtering resolved(Filtering asked) { return asked == Filtering::where_faster ? chosen_filtering.load() : asked; }

}  // namespace

Filtering choose_filtering(Filtering filtering) { return chosen_filtering.exchange(filtering); }

double ConvPlan::flops() const {
  const Geometry& g = geometry;
  const double pixels = g.transposed ? double(g.in_h) * double(g.in_w) : double(g.out_h) * double(g.out_w);
  return 2.0 * double(g.batch) * pixels * double(g.in_c) * double(g.out_c) * g.kernel_h * g.kernel_w;
}

RowSpan input_rows(const ConvPlan& p, std::int64_t r0, std::int64_t r1) {
  if (p.winograd.m) {
    const WinogradGrid& w = p.winograd;
    const std::int64_t t0 = (r0 - w.out0_h) / w.out_step, t1 = ceil_div(r1 - w.out0_h, w.out_step);
    return {w.in0_h + t0 * w.in_step, w.in0_h + (t1 - 1) * w.in_step + w.window - 1};
  }
  RowSpan span{INT64_MAX, INT64_MIN};
  for (const Phase& ph : p.phases) {
    if (ph.taps_h == 0 || ph.taps_w == 0) continue;
    const std::int64_t q0 =
        std::max<std::int64_t>(0, ceil_div(std::max<std::int64_t>(r0 - ph.out_h0, 0), p.out_step_h));
    const std::int64_t q1 = std::min(ph.rows, ceil_div(std::max<std::int64_t>(r1 - ph.out_h0, 0), p.out_step_h));
    if (q0 >= q1) continue;
    span.first = std::min(span.first, ph.off_h + q0 * p.in_step_h);
    span.last = std::max(span.last, ph.off_h + (q1 - 1) * p.in_step_h + ph.taps_h - 1);
  }
  if (span.first > span.last) return {0, -1};
  return span;
}

// Units of whole tile rows: transformed input and sums of one block of channels stay in the second-level cache.
constexpr std::int64_t kStride1Bytes = 512 << 10, kWinogradBytes = 640 * 1024, kWinogradGradBytes = 1 << 20;
// A weight that every unit would fetch from beyond the second-level cache; what a round may fill of the third; tiles of
// a unit of a round, and fewest of all.
constexpr std::int64_t kSharedWeightBytes = 1 << 20, kRoundBytes = 6 << 20, kRoundUnitTiles = 16, kLeastRoundTiles = 12;

// Tiles in units of at most `wanted` of them, where one row of tiles is not more.
void split_tiles(ConvPlan& p, std::int64_t wanted, int threads) {
  const Geometry& g = p.geometry;
  const WinogradGrid& w = p.winograd;
  const std::int64_t image = w.rows * w.cols;
  if (image > wanted) {
    const std::int64_t rows = w.stride1() ? balanced(w.rows, g.batch, ceil_div(wanted, w.cols), threads)
                                          : std::max<std::int64_t>(1, wanted / w.cols);
    p.row_units = ceil_div(w.rows, rows);
    p.unit_rows = ceil_div(w.rows, p.row_units) * w.out_step;
    p.row_units = ceil_div(g.out_h - w.out0_h, p.unit_rows);
    p.unit_images = 1;
  } else {
    p.row_units = 1;
    p.unit_rows = w.rows * w.out_step;
    p.unit_images =
        w.stride1() ? balanced(g.batch, 1, wanted / image, threads) : even_images(g.batch, wanted / image, threads);
  }
  p.image_units = ceil_div(g.batch, p.unit_images);
  p.units = p.image_units * p.row_units;
}

void plan_winograd(ConvPlan& p, std::int64_t value_bytes, int threads) {
  const Geometry& g = p.geometry;
  WinogradGrid& w = p.winograd;
  const std::int64_t lanes = p.tile.lanes, block = std::min(p.tile.max_vectors * lanes, p.padded_out_c);
  const bool large = w.stride1() && w.weights() * g.in_c * p.padded_out_c * value_bytes >= kSharedWeightBytes;
  w.by_point = w.stride1() && p.blocks.size() > 1 && (large || g.in_c >= p.padded_out_c);
  if (w.by_point)
    p.packed_size = w.weights() * w.pitch(g.in_c * p.padded_out_c);
  else
    for (const Block& b : p.blocks) p.packed_size += w.weights() * w.pitch(g.in_c * b.vectors * lanes);
  p.slab_w0 = w.in0_w;
  p.slab_cols = (w.cols - 1) * w.in_step + w.window;
  const std::int64_t image = w.rows * w.cols, all = g.batch * image;
  if (w.by_point && large && all >= kLeastRoundTiles) {
    split_tiles(p, std::min(kRoundUnitTiles, ceil_div(all, threads)), threads);
    const std::int64_t tile_bytes = value_bytes * w.points() * (g.in_c + p.padded_out_c),
                       most = std::max(2 * kRoundUnitTiles, kRoundBytes / tile_bytes);
    const std::int64_t rounds = std::min(p.units, ceil_div(all, most));
    p.round_units = ceil_div(p.units, rounds);
  } else {
    const std::int64_t tile_bytes = value_bytes * w.points() * (g.in_c + block);
    std::int64_t wanted;
    if (w.stride1()) {
      // At stride 1 weights are streamed once a unit, and the transformed input once a block of channels, or once with
      // all blocks of a point: as many tiles as keep both far below what the third-level cache delivers. Threads share
      // blocks rather than ever fewer tiles.
      const std::int64_t most = w.by_point ? 32 : std::clamp<std::int64_t>(kStride1Bytes / tile_bytes, 12, 48);
      wanted = std::min(most, std::max<std::int64_t>(16, ceil_div(all, threads)));
    } else {
      wanted = std::min(std::max<std::int64_t>(8, kWinogradBytes / tile_bytes), ceil_div(all, 2 * threads));
      wanted = std::max<std::int64_t>(1, wanted);
    }
    split_tiles(p, wanted, threads);
    if (p.units > 0 && p.units < threads)
      p.block_splits = int(std::min<std::int64_t>(std::int64_t(p.blocks.size()), ceil_div(threads, p.units)));
    p.units *= p.block_splits;
  }
  p.slab_rows = (p.unit_rows / w.out_step - 1) * w.in_step + w.window;
  p.slab_values = p.unit_images * p.slab_rows * p.slab_cols * g.in_c;
}

ConvPlan plan_conv(const Geometry& g, const TileShape& tile, std::int64_t value_bytes, int threads, Filtering filtering,
                   int calls) {
  ConvPlan p;
  p.geometry = g;
  p.tile = tile;
  const int phases_h = g.transposed ? g.stride_h : 1, phases_w = g.transposed ? g.stride_w : 1;
  p.out_step_h = phases_h;
  p.out_step_w = phases_w;
  p.in_step_h = g.transposed ? 1 : g.stride_h;
  p.in_step_w = g.transposed ? 1 : g.stride_w;
  split_blocks(p);
  // Half a register of channels or less, and depth enough to fill registers the other way.
  p.dot = 2 * g.out_c <= tile.lanes && g.in_c * g.kernel_w >= 2 * g.out_c && g.in_c * g.kernel_w >= tile.lanes / 2;
  filtering = resolved(filtering);
  const double packing = filtering == Filtering::where_faster ? kPack / calls : 0;
  if (filtering != Filtering::never) p.winograd = winograd_grid(g, value_bytes, tile.lanes, packing);
  if (filtering == Filtering::where_faster && !p.winograd.m) p.winograd = winograd_grid_stride1(p, value_bytes, calls);
  if (filtering == Filtering::where_possible && !p.winograd.m) p.winograd = trimmed(stride1_tiles(g, value_bytes), g);
  if (p.winograd.m) {
    p.dot = false;
    plan_winograd(p, value_bytes, threads);
    return p;
  }
  // Neighbouring pixels of a row have to read neighbouring columns, and fill most of a register.
  p.planar = p.dot && p.in_step_w == 1 && g.out_w >= phases_w * tile.lanes * 3 / 4;
  std::int64_t first_col = INT64_MAX, last_col = INT64_MIN;
  // Of a stride beyond the output most phases have no pixel.
  for (int a = 0; a < std::min<std::int64_t>(phases_h, g.out_h); ++a)
    for (int b = 0; b < std::min<std::int64_t>(phases_w, g.out_w); ++b) {
      const Axis v = axis_of_phase(g, true, a), u = axis_of_phase(g, false, b);
      if (v.count == 0 || u.count == 0) continue;
      const bool empty = v.taps == 0 || u.taps == 0;
      Phase ph{
          v.out0,      u.out0,      v.count,      u.count, v.offset, u.offset, empty ? 0 : v.taps, empty ? 0 : u.taps,
          v.first_tap, u.first_tap, p.packed_size};
      if (!empty) {
        first_col = std::min(first_col, u.offset);
        last_col = std::max(last_col, u.offset + (u.count - 1) * p.in_step_w + u.taps - 1);
      }
      const std::int64_t length = std::int64_t(ph.taps_w) * g.in_c;
      p.packed_size += ph.taps_h * (p.planar ? length * g.out_c
                                    : p.dot  ? round_up(length, tile.lanes) * g.out_c
                                             : length * p.padded_out_c);
      p.phases.push_back(ph);
    }
  if (first_col > last_col) first_col = 0, last_col = -1;
  p.slab_w0 = first_col;
  p.slab_cols = last_col - first_col + 1;

  const std::int64_t row_bytes = std::max<std::int64_t>(1, p.slab_cols * g.in_c * value_bytes);
  const std::int64_t want_units = 4 * std::int64_t(threads);
  const RowSpan all = input_rows(p, 0, g.out_h);
  const std::int64_t image_rows = all.last - all.first + 1;
  // Rows of output whose staged input fills the slab; the halo of the kernel comes on top.
  const double rows_in_per_out =
      double(std::max<std::int64_t>(1, image_rows)) / double(std::max<std::int64_t>(1, g.out_h));
  std::int64_t rows = std::int64_t(double(kSlabBytes) / double(row_bytes) / rows_in_per_out);
  rows = std::clamp<std::int64_t>(rows, 1, std::max<std::int64_t>(1, g.out_h));
  if (rows < g.out_h || g.batch == 1) {
    // At least four pixel tiles a unit, so that short rows do not leave half-filled tiles everywhere.
    const std::int64_t least = ceil_div(4 * tile.pixels, std::max<std::int64_t>(1, g.out_w));
    rows = std::clamp<std::int64_t>(std::min(rows, ceil_div(g.out_h * g.batch, want_units)), std::min(least, g.out_h),
                                    g.out_h);
    rows = round_up(rows, p.out_step_h);
    p.row_units = ceil_div(g.out_h, rows);
    p.unit_rows = round_up(ceil_div(g.out_h, p.row_units), p.out_step_h);
    p.row_units = ceil_div(g.out_h, p.unit_rows);
    p.unit_images = 1;
  } else {
    p.unit_rows = g.out_h;
    p.row_units = 1;
    const std::int64_t images =
        std::max<std::int64_t>(1, kSlabBytes / std::max<std::int64_t>(1, row_bytes * image_rows));
    p.unit_images = std::clamp<std::int64_t>(images, 1, std::max<std::int64_t>(1, g.batch / want_units));
  }
  p.image_units = ceil_div(g.batch, p.unit_images);
  // The largest slab any row range needs.
  for (std::int64_t u = 0; u < p.row_units; ++u) {
    const RowSpan s = input_rows(p, u * p.unit_rows, std::min(g.out_h, (u + 1) * p.unit_rows));
    p.slab_rows = std::max(p.slab_rows, s.last - s.first + 1);
  }
  if (p.planar) p.planar_pitch = round_up(p.slab_cols + tile.lanes, tile.lanes);
  p.slab_values = p.unit_images * p.slab_rows * (p.planar ? p.planar_pitch : p.slab_cols) * g.in_c;
  const std::int64_t pixel_units = p.image_units * p.row_units;
  if (pixel_units > 0 && pixel_units < threads && p.flops() / 2 > kSerialWork)
    p.block_splits = int(std::min<std::int64_t>(std::int64_t(p.blocks.size()), ceil_div(threads, pixel_units)));
  p.units = pixel_units * p.block_splits;
  // Few pixels under a large weight: threads share the weight, so that each reads its own part of it once.
  const std::int64_t input = g.batch * image_rows * row_bytes;
  if (!p.dot && threads > 1 && pixel_units > 1 && pixel_units < want_units && input <= kSlabBytes &&
      p.packed_size * value_bytes > input && std::int64_t(p.blocks.size()) >= threads && p.flops() / 2 > kSerialWork) {
    p.unit_rows = round_up(g.out_h, p.out_step_h), p.row_units = 1;
    p.unit_images = g.batch, p.image_units = 1;
    p.slab_rows = image_rows;
    p.slab_values = p.unit_images * p.slab_rows * p.slab_cols * g.in_c;
    p.units = p.block_splits = threads;
  }
  return p;
}

// A sum for every thread is refused where it would take more memory than this.
static bool fits(const WeightGradPlan& p, std::int64_t value_bytes, int threads) {
  return double(p.sum_values) * double(value_bytes) * threads <= 256e6;
}

WeightGradPlan plan_weight_grad(const Geometry& g, const TileShape& tile, std::int64_t value_bytes, int threads,
                                Filtering filtering) {
  filtering = resolved(filtering);
  WeightGradPlan p;
  p.geometry = g;
  p.tile = tile;
  p.padded_out_c = round_up(g.out_c, tile.lanes);
  // Without output channels there is nothing to sum, but bands are counted all the same.
  const int most = tile.pixels_by_width[std::clamp<std::int64_t>(p.padded_out_c / tile.lanes, 1, tile.max_vectors)];
  const bool faster = filtering == Filtering::where_faster;
  if (filtering != Filtering::never) p.winograd = winograd_grid(g, value_bytes, tile.lanes, faster ? kGradSum : 0);
  if (faster && !p.winograd.m) p.winograd = winograd_grid_stride1(p, value_bytes, threads);
  if (filtering == Filtering::where_possible && !p.winograd.m) p.winograd = trimmed(stride1_tiles(g, value_bytes), g);
  if (p.winograd.m) {
    const WinogradGrid& w = p.winograd;
    p.sum_rows = w.weights(), p.sum_length = g.in_c;
    p.sum_values = p.sum_rows * p.sum_length * p.padded_out_c;
    p.bands_per_row = ceil_div(p.sum_length, most);
    p.slab_cols = (w.cols - 1) * w.in_step + w.window;
    // The sums are read and written once a unit: enough tiles that this does not show.
    const std::int64_t tiles =
        std::max<std::int64_t>(96, kWinogradGradBytes / (value_bytes * w.points() * (g.in_c + p.padded_out_c)));
    const std::int64_t wanted =
        std::max<std::int64_t>(1, std::min(tiles, ceil_div(g.batch * w.rows * w.cols, threads)));
    if (w.rows * w.cols > wanted) {
      p.row_units = ceil_div(w.rows, std::max<std::int64_t>(1, wanted / w.cols));
      p.tile_rows = ceil_div(w.rows, p.row_units);
      p.row_units = ceil_div(w.rows, p.tile_rows);
    } else {
      p.tile_rows = w.rows;
      p.unit_images = even_images(g.batch, wanted / (w.rows * w.cols), threads);
    }
    p.unit_rows = p.tile_rows * w.m;
    p.image_units = ceil_div(g.batch, p.unit_images);
    p.units = p.row_units * p.image_units;
    p.slab_rows = (p.tile_rows - 1) * w.in_step + w.window;
    p.big_values = p.unit_images * p.slab_rows * p.slab_cols * g.in_c;
    p.small_values = p.unit_images * p.unit_rows * w.cols * w.m * p.padded_out_c;
    p.split_pixels = p.units >= threads && fits(p, value_bytes, threads) &&
                     (!w.stride1() || own_sums(w, double(g.in_c), double(p.padded_out_c), value_bytes, threads));
    return p;
  }
  p.sum_rows = g.kernel_h, p.sum_length = std::int64_t(g.kernel_w) * g.in_c;
  p.sum_values = p.sum_rows * p.sum_length * p.padded_out_c;
  p.slab_cols = (g.out_w - 1) * g.stride_w + g.kernel_w;
  const std::int64_t row_bytes = value_bytes * (p.slab_cols * g.in_c * g.stride_h + g.out_w * p.padded_out_c);
  std::int64_t rows = std::clamp<std::int64_t>(kSlabBytes / std::max<std::int64_t>(1, row_bytes), 1,
                                               std::max<std::int64_t>(1, g.out_h));
  rows = std::clamp<std::int64_t>(std::min(rows, ceil_div(g.out_h * g.batch, threads)), 1,
                                  std::max<std::int64_t>(1, g.out_h));
  p.row_units = ceil_div(g.out_h, rows);
  p.unit_rows = ceil_div(g.out_h, std::max<std::int64_t>(1, p.row_units));
  p.row_units = ceil_div(g.out_h, std::max<std::int64_t>(1, p.unit_rows));  // none of them empty
  if (p.row_units <= 1) {
    const std::int64_t images = kSlabBytes / std::max<std::int64_t>(1, row_bytes * g.out_h);
    p.unit_images = even_images(
        g.batch, std::clamp<std::int64_t>(images, 1, std::max<std::int64_t>(1, g.batch / threads)), threads);
  }
  p.image_units = ceil_div(g.batch, p.unit_images);
  p.units = p.row_units * p.image_units;
  p.slab_rows = (p.unit_rows - 1) * g.stride_h + g.kernel_h;
  p.big_values = p.unit_images * p.slab_rows * p.slab_cols * g.in_c;
  p.small_values = p.unit_images * p.unit_rows * g.out_w * p.padded_out_c;
  p.bands_per_row = ceil_div(p.sum_length, most);
  // A sum per task is zeroed, added and reduced; taking bands instead, every task reads all pixels.
  const double values = double(g.batch) * (double(g.in_h) * double(g.in_w) * double(g.in_c) +
                                           double(g.out_h) * double(g.out_w) * double(g.out_c));
  p.split_pixels = p.units >= threads && 2.0 * double(p.sum_values) < values && fits(p, value_bytes, threads);
  return p;
}

}  // namespace lmser
