// Plans of convolutions.
#include "plan.h"

#include <algorithm>
#include <limits>

#include "filter_choice.h"
#include "padding.h"
#include "plan_units.h"

namespace lmser {
namespace {

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

void split_blocks(ConvPlan& p, int most) {
  const int vectors = int(ceil_div(p.geometry.out_c, p.tile.lanes));
  const int count = int(ceil_div(vectors, most));
  p.blocks.clear();
  int done = 0;
  for (int b = 0; b < count; ++b) {
    const int width = int(ceil_div(vectors - done, count - b));
    p.blocks.push_back({done * p.tile.lanes, width, std::int64_t(done) * p.tile.lanes});
    done += width;
  }
  p.padded_out_c = std::int64_t(vectors) * p.tile.lanes;
}

}  // namespace

double ConvPlan::work() const {
  const double rows = double(small_pixels(geometry));
  return flops() / 2 * (unpacked && rows > 0 ? std::max(1.0, kRowsOfReading / rows) : 1);
}

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
constexpr std::int64_t kStride1Bytes = 512 << 10, kWinogradBytes = 640 * 1024;
// With sums in registers: staged input and points of a unit, and its fewest tiles.
constexpr std::int64_t kRegisterBytes = 256 << 10, kLeastRegisterTiles = 16;
// A weight that every unit would fetch from beyond the second-level cache; what a round of one thread, and one of all,
// may fill of the third; fewest tiles of all, and of a thread that has rounds of its own, which are more where the
// weight comes from memory.
constexpr std::int64_t kSharedWeightBytes = 1 << 20, kOwnRoundBytes = 3 << 20, kRoundBytes = 6 << 20,
                       kLeastRoundTiles = 12, kLeastOwnTiles = 24, kFarWeightBytes = 16 << 20, kLeastOwnTilesFar = 64;

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
        w.stride1() ? balanced(g.batch, 1, wanted / image, threads) : even(g.batch, wanted / image, threads);
  }
  p.image_units = ceil_div(g.batch, p.unit_images);
  p.units = p.image_units * p.row_units;
}

void plan_winograd(ConvPlan& p, std::int64_t value_bytes, int threads) {
  const Geometry& g = p.geometry;
  WinogradGrid& w = p.winograd;
  if (w.in_registers) split_blocks(p, 1);
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
    const std::int64_t own_tiles = p.packed_size * value_bytes > kFarWeightBytes ? kLeastOwnTilesFar : kLeastOwnTiles;
    p.own_rounds = p.units >= threads && all >= threads * own_tiles;
    const std::int64_t tile_bytes = value_bytes * w.points() * (g.in_c + p.padded_out_c),
                       most = std::max(2 * kRoundUnitTiles, (p.own_rounds ? kOwnRoundBytes : kRoundBytes) / tile_bytes);
    std::int64_t rounds = ceil_div(all, most);
    if (p.own_rounds) rounds = round_up(rounds, threads);
    rounds = std::min(p.units, rounds);
    p.round_units = ceil_div(p.units, rounds);
  } else {
    const std::int64_t tile_bytes = value_bytes * w.points() * (g.in_c + block);
    std::int64_t wanted;
    if (w.in_registers) {
      const std::int64_t of_tile = value_bytes * g.in_c * (w.in_step * w.in_step + w.points());
      wanted =
          std::min(std::max<std::int64_t>(kLeastRegisterTiles, kRegisterBytes / of_tile), ceil_div(all, 2 * threads));
      wanted = std::max<std::int64_t>(1, wanted);
    } else if (w.stride1()) {
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

// Of a unit's tiles, in products of registers: what one of few pixels takes at least for a value of depth, and what any
// takes besides.
constexpr double kLeastTile = 8, kTileOverhead = 64;
// What has to be saved before pixels are told apart: their tiles are less full and more in number.
constexpr double kWorthGroups = 0.97;
// Shorter rows fill too few sums of a tile that slides along them.
constexpr std::int64_t kLeastSliding = 6;
// And of four phases, where the weight is not in the first-level cache any more when the next tile comes.
constexpr std::int64_t kLeastFourPhases = 8, kMostStreamed = 64;
// Staging, in products of registers for each register of values.
constexpr double kStaging = 20;

// What the pixels of a phase cost, in products of registers for `images` images; none where there are too many groups.
double cost_of_groups(const ConvPlan& p, const Phase& ph, std::int64_t images, bool by_rows, bool by_cols) {
  const Geometry& g = p.geometry;
  const int vectors = p.blocks[0].vectors;
  const std::int64_t most = p.tile.pixels_by_width[vectors];
  double cost = 0;
  int groups = 0;
  for_tap_ranges(by_rows, 0, ph.rows, ph.off_h, p.in_step_h, ph.taps_h, g.in_h,
                 [&](std::int64_t q0, std::int64_t q1, TapRange rows) {
                   for_tap_ranges(by_cols, 0, ph.cols, ph.off_w, p.in_step_w, ph.taps_w, g.in_w,
                                  [&](std::int64_t x0, std::int64_t x1, TapRange cols) {
                                    const std::int64_t pixels = images * (q1 - q0) * (x1 - x0),
                                                       tiles = ceil_div(pixels, most);
                                    const double depth = double(rows.count()) * cols.count() * double(g.in_c),
                                                 tile = double(pixels) / double(tiles) * vectors;
                                    cost += double(tiles) * (std::max(tile, kLeastTile) * depth + kTileOverhead);
                                    ++groups;
                                  });
                 });
  return groups > kMostGroups ? std::numeric_limits<double>::infinity() : cost;
}

// Whether the pixels of each phase are told apart by what of their taps lies in the padding. Where all are, nothing of
// the padding is read, and input that is as the tiles want it need not be staged.
static void choose_groups(ConvPlan& p) {
  if (p.blocks.empty() || p.dot || p.four_phases || p.sliding || p.winograd.along_rows) return;
  const Geometry& g = p.geometry;
  const std::int64_t images = p.row_units == 1 ? p.unit_images : 1;
  double as_it_lies = 0, staged = kStaging * double(images * g.in_h * g.in_w) * double(g.in_c) / double(p.tile.lanes) *
                                  double(p.block_splits);
  std::vector<Phase> apart = p.phases;
  for (std::size_t i = 0; i < apart.size(); ++i) {
    Phase& ph = p.phases[i];
    ph.by_rows = ph.by_cols = false;
    if (ph.taps_h * ph.taps_w <= 1) {
      if (ph.taps_h && !inside_input(p, ph)) as_it_lies = std::numeric_limits<double>::infinity();
      continue;
    }
    double best = std::numeric_limits<double>::infinity(), cost = 0;
    for (const bool by_rows : {false, true})
      for (const bool by_cols : {false, true}) {
        cost = cost_of_groups(p, ph, images, by_rows, by_cols);
        const double counts = by_rows || by_cols ? cost : kWorthGroups * cost;
        if (counts < best) best = counts, ph.by_rows = by_rows, ph.by_cols = by_cols;
      }
    staged += best, as_it_lies += cost;  // the last: both ways
    apart[i].by_rows = apart[i].by_cols = true;
  }
  if (as_it_lies < staged) p.phases = std::move(apart);
}

// The most rows of input that a unit needs.
static std::int64_t rows_of_slab(const ConvPlan& p) {
  std::int64_t rows = 0;
  for (std::int64_t u = 0; u < p.row_units; ++u) {
    const RowSpan s = input_rows(p, u * p.unit_rows, std::min(p.geometry.out_h, (u + 1) * p.unit_rows));
    rows = std::max(rows, s.last - s.first + 1);
  }
  return rows;
}

// Tiles of pairs of a unit, so that those of a point fill a register tile; and where the packed weight, fetched once a
// unit, has left the second-level cache since.
constexpr std::int64_t kLeastPairTiles = 24, kLeastPairTilesFar = 96;
// Whole images of a unit of pairs.
static std::int64_t images_of_pairs(const ConvPlan& p, std::int64_t value_bytes, int threads) {
  const Geometry& g = p.geometry;
  const std::int64_t image =
      std::max<std::int64_t>(1, g.transposed ? g.in_h * ceil_div(g.in_w, 3) : g.out_h * ceil_div(g.out_w, 3));
  const std::int64_t least = p.packed_size * value_bytes > kNearPairsBytes ? kLeastPairTilesFar : kLeastPairTiles;
  return even(g.batch, std::min(ceil_div(least, image), ceil_div(g.batch, threads)), threads);
}

// Tiles in which a value that is read serves the sums of several pixels.
static void choose_sharing(ConvPlan& p) {
  const Geometry& g = p.geometry;
  if (!p.tile.shares_reads || p.dot || p.winograd.along_rows || p.padded_out_c != p.tile.lanes || g.kernel_h != 3 ||
      g.kernel_w != 3)
    return;
  if (g.stride_h == 1 && g.stride_w == 1) {
    p.sliding = g.out_w >= kLeastSliding;
  } else if (g.transposed && g.stride_h == 2 && g.stride_w == 2 && g.pad_h == 1 && g.pad_w == 1) {
    const auto covers = [](std::int64_t in, std::int64_t out) { return out == 2 * in || out == 2 * in - 1; };
    p.four_phases =
        covers(g.in_h, g.out_h) && covers(g.in_w, g.out_w) && (g.in_w >= kLeastFourPhases || g.in_c <= kMostStreamed);
    if (p.four_phases) p.packed_size = 9 * g.in_c * p.padded_out_c;  // also where phases have no pixel
  }
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
  split_blocks(p, p.tile.max_vectors);
  // Half a register of channels or less, and depth enough to fill registers the other way.
  p.dot = 2 * g.out_c <= tile.lanes && g.in_c * g.kernel_w >= 2 * g.out_c && g.in_c * g.kernel_w >= tile.lanes / 2;
  p.winograd = chosen_grid(p, value_bytes, calls, filtering);
  if (p.winograd.m) {
    p.dot = false;
    plan_winograd(p, value_bytes, threads);
    return p;
  }
  p.dot = p.dot && !p.winograd.along_rows;
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
      if (p.winograd.along_rows && !empty) ph.by_rows = true, ph.pairs = u.taps > 1;
      if (!empty) {
        first_col = std::min(first_col, u.offset);
        last_col = std::max(last_col, u.offset + (u.count - 1) * p.in_step_w + u.taps - 1);
      }
      const std::int64_t length = std::int64_t(ph.taps_w) * g.in_c;
      p.packed_size += ph.taps_h * (p.planar ? length * g.out_c : p.dot ? round_up(length, tile.lanes) * g.out_c : 0);
      if (!p.dot) p.packed_size += ph.depth(g.in_c) * p.padded_out_c;
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
    if (g.batch == 1) rows = even(g.out_h, rows, threads);
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
    if (p.winograd.along_rows) p.unit_images = std::max(p.unit_images, images_of_pairs(p, value_bytes, threads));
  }
  p.image_units = ceil_div(g.batch, p.unit_images);
  p.slab_rows = rows_of_slab(p);
  p.slab_values = p.unit_images * p.slab_rows * p.slab_cols * g.in_c;
  if (p.planar) {
    // An odd number of registers: powers of two would put all planes into a few sets of the cache.
    p.planar_pitch = ((ceil_div(p.slab_cols, tile.lanes) + 2) | 1) * tile.lanes;
    // Phases share the rows of an image; of one phase two rows of output at most are made together.
    p.planar_slots = p.phases.size() == 1 ? std::min(p.slab_rows, p.phases[0].taps_h + p.in_step_h) : p.slab_rows;
    p.slab_values = p.planar_slots * p.planar_pitch * g.in_c;
  }
  const std::int64_t pixel_units = p.image_units * p.row_units;
  if (pixel_units > 0 && pixel_units < threads && p.work() > kSerialWork)
    p.block_splits = int(std::min<std::int64_t>(std::int64_t(p.blocks.size()), ceil_div(threads, pixel_units)));
  p.units = pixel_units * p.block_splits;
  // Few pixels under a large weight: threads share the weight, so that each reads its own part of it once.
  const std::int64_t input = g.batch * image_rows * row_bytes;
  if (!p.dot && threads > 1 && pixel_units > 1 && pixel_units < want_units && input <= kSlabBytes &&
      p.packed_size * value_bytes > input && std::int64_t(p.blocks.size()) >= threads && p.work() > kSerialWork) {
    p.unit_rows = round_up(g.out_h, p.out_step_h), p.row_units = 1;
    p.unit_images = g.batch, p.image_units = 1;
    p.slab_rows = image_rows;
    p.slab_values = p.unit_images * p.slab_rows * p.slab_cols * g.in_c;
    p.units = p.block_splits = threads;
  }
  choose_sharing(p);
  choose_groups(p);
  return p;
}

bool shares_units(const ConvPlan& p, const ConvPlan& other) {
  const Geometry &g = p.geometry, &o = other.geometry;
  return g.batch == o.batch && g.out_h == o.out_h && g.out_w == o.out_w && other.units > 0 && other.block_splits == 1 &&
         other.winograd.out0_h == 0 && !p.dot && !p.winograd.m && !p.winograd.along_rows && p.out_step_h == 1;
}

ConvPlan in_units_of(ConvPlan p, const ConvPlan& other) {
  p.unit_images = other.unit_images, p.image_units = other.image_units;
  p.unit_rows = other.unit_rows, p.row_units = other.row_units;
  p.units = other.units, p.block_splits = 1;
  p.slab_rows = rows_of_slab(p);
  p.slab_values = p.unit_images * p.slab_rows * p.slab_cols * p.geometry.in_c;
  choose_groups(p);
  return p;
}

}  // namespace lmser
