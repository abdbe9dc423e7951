// What a convolution kernel is told to do, free of torch and of any instruction set.
//
// Both directions are one algorithm, an implicit matrix product over channels-last pixels. A *phase* is the
// set of output pixels that use the same kernel taps: a convolution has one, a transposed convolution of
// stride s has s*s (sub-pixel form, no zeros are multiplied). In each phase the taps used, reordered where
// needed, meet consecutive input rows and columns, so that for one kernel row the products run over one
// contiguous piece of memory of taps_w * channels values.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "../activation.h"

namespace lmser {

enum class DType : int { f32, f64, bf16, f16 };

// A 4-D tensor (N, C, H, W) anywhere in memory; strides in elements.
struct View {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t n = 0, c = 0, h = 0, w = 0;
  std::int64_t sn = 0, sc = 0, sh = 0, sw = 0;
  explicit operator bool() const { return data != nullptr; }
};

// What is read: value = base [* f'(output)] [* (gate > 0 ? 1 : gate_slope)] [+ extra], then summed over windows of
// pool_h x pool_w and multiplied by scale. Sizes are those of `base`. The channels of `beside` follow those of base;
// they are read as they are, at its size after the sum over windows.
struct Source {
  View base, output, gate, extra, beside;
  Activation activation = Activation::identity;
  double slope = 0, gate_slope = 0;
  int pool_h = 1, pool_w = 1;
  double scale = 1;
  bool plain() const { return !output && !gate && !extra && !beside && pool_h == 1 && pool_w == 1 && scale == 1; }
  std::int64_t channels() const { return base.c + beside.c; }
  // Values of the widest row that is read, after conversion.
  std::int64_t row_values() const { return std::max(base.w * base.c, beside.w * beside.c); }
};

// What follows a result while it is in the cache (epilogue.h); null where it is not asked for. Every tensor is of the
// compute type, or of bfloat16 in tiles (narrow.h), and lies as `result`, the sink's output, does.
struct Epilogue {
  void* result = nullptr;
  std::int64_t image = 1;  // values of one image
  // state = result, or evidence where hold is 1, or their mixture
  void* state = nullptr;
  const void *evidence = nullptr, *hold = nullptr;
  // change[image] = max(change, |state - previous|), largest[image] = max(largest, |state|), as bits of the magnitude.
  // Where `previous` is `result`, its values are read before they are overwritten: by minimal filtering alone, which
  // then looks at no `state` and no `largest`.
  const void* previous = nullptr;
  std::atomic<std::uint64_t>*change = nullptr, *largest = nullptr;
  // result = (result [* (1 - hold)] [+ inject]) f'(output), total = result + extra, bias_grad[channel] += result
  const void *output = nullptr, *inject = nullptr, *extra = nullptr;
  void* total = nullptr;
  double* bias_grad = nullptr;
  double* sums = nullptr;  // of each unit, the engine's own
  std::int64_t channels = 0;
  Activation activation = Activation::identity;
  double slope = 0;
};

// What is written: out = f(scale * up(linear) + add + bias) [* (gate > 0 ? 1 : gate_slope)], drive = scale *
// up(linear), where up repeats pixels upsample_h x upsample_w times. Rows and columns of `out` beyond that are zero.
// Drives may be as small as what they were computed from: every value of `add` is used for add_h x add_w pixels, and
// with `drive_once` the drive is scale * linear.
// With `pooled`, dense channels-last values of the compute type, its means over windows are all that is written of
// `out`, which then tells its layout alone.
struct Sink {
  View out, drive, add, gate, pooled;
  const void* bias = nullptr;  // in the compute type, one value per channel
  Activation activation = Activation::identity;
  double slope = 0, gate_slope = 0;
  int upsample_h = 1, upsample_w = 1;
  double scale = 1;
  int add_h = 1, add_w = 1;
  bool drive_once = false;
  int pool_h = 1, pool_w = 1;  // of `pooled`, which divide its size
  const Epilogue* epilogue = nullptr;
};

struct Phase {
  std::int64_t out_h0, out_w0;  // its first output row and column
  std::int64_t rows, cols;      // how many it has of each
  std::int64_t off_h, off_w;    // input row and column under its first tap, for its first pixel
  int taps_h, taps_w;
  int first_tap_h, first_tap_w;  // kernel index of tap 0; the next is one up (conv) or one stride down
  std::int64_t weight_offset;    // into the packed weight, in values
  // Whether pixels are told apart by the rows, and the columns, of their taps that lie in the padding: pixels that have
  // the same go together, and nothing is multiplied by zeros.
  bool by_rows = false, by_cols = false;
  // The outer taps of a kernel row, of two or three, are filtered (filtered_rows.h): always by rows.
  bool pairs = false;
  // Values of the packed weight for each output channel.
  LMSER_HD std::int64_t depth(std::int64_t in_c) const {
    constexpr int kPoints = 4;
    return taps_h * in_c * (pairs ? kPoints + taps_w - 2 : taps_w);
  }
};
// Most groups of pixels that a phase may have.
inline constexpr int kMostGroups = 64;

struct Geometry {
  bool transposed = false;
  std::int64_t batch = 0;
  std::int64_t in_c = 0, in_h = 0, in_w = 0;     // after pooling
  std::int64_t out_c = 0, out_h = 0, out_w = 0;  // before upsampling
  int kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0;
  bool operator==(const Geometry&) const = default;
};

// One block of output channels: `vectors` registers wide.
struct Block {
  int channel, vectors;
  std::int64_t weight_column;  // channels before it, rounded up to whole registers
};

// The register tile of an instruction set.
struct TileShape {
  int lanes;               // values in a register
  int pixels;              // rows of the tile
  int max_vectors;         // columns of the tile, in registers
  int pixels_by_width[4];  // most rows of a narrower tile
  bool filters_in_registers;
  bool shares_reads = false;  // registers enough for the tiles of four_phases.h and sliding_tile.h
};

// Tiles of a minimal-filtering algorithm (winograd.h): `m` small-side pixels a side, 0 for none; at stride 1 4 for 3
// taps and 2 for 5, at stride 2 2 or 3 for 3 taps and 2 for 5.
struct WinogradGrid {
  int m = 0, taps = 3;
  // No tiles, but the direct sum with its rows filtered: three columns of taps at stride 2 (filtered_rows.h).
  bool along_rows = false;
  bool filters() const { return m > 0 || along_rows; }
  bool stride1() const { return m > 0 && out_step == in_step; }
  bool buffered() const { return m > 0 && !in_registers; }
  std::int64_t rows = 0, cols = 0;      // tiles of an image
  std::int64_t out0_h = 0, out0_w = 0;  // output under the first output of tile (0, 0): 0, or -1 to fall outside
  std::int64_t in0_h = 0, in0_w = 0;    // input under the first of its window
  int out_step = 0, in_step = 0, window = 0;
  // Outputs that the last tile of a column or a row is computed for, fewer than m (winograd_order.h); 0: m, as others.
  int last_h = 0, last_w = 0;
  // All blocks of channels of one point, then the next point, and the weight packed in that order; else all points of
  // one block. The transformed input is read once, the sums of all blocks wait for their transform.
  bool by_point = false;
  // Three taps at stride 2: sums stay in registers until they are outputs (winograd_registers.h).
  bool in_registers = false;
  // Distinct weights: at stride 2 the single taps of the one phase share theirs, of five taps none do.
  int weights() const { return stride1() ? 36 : taps == 5 ? points() : (m + 2) * (m + 2); }
  // Values between one point and the next, of `values` each. A tile's points are written and read together, so at
  // stride 1, where nothing asks for them to be dense, they lie an odd number of cache lines apart: powers of two
  // would put them all into a few sets of the cache.
  std::int64_t pitch(std::int64_t values) const { return stride1() ? ((values + 15) / 16 | 1) * 16 : values; }
  int points() const { return stride1() ? 36 : (2 * m + taps - 2) * (2 * m + taps - 2); }
  // Whether a tile of so many outputs has no product at this one of the six points of an axis.
  static constexpr bool leaves_out(int outputs, int point) {
    return outputs == 3 ? point == 4 : outputs == 2 && (point == 3 || point == 4);
  }
  // Products of an image for each pair of channels.
  double products() const {
    const auto axis = [](std::int64_t tiles, int last) { return double(6 * tiles - (last ? 4 - last : 0)); };
    return stride1() ? axis(rows, last_h) * axis(cols, last_w) : double(rows * cols * points());
  }
};

// Below this many multiply-adds (some ten microseconds) a second thread costs more than it brings.
inline constexpr double kSerialWork = 1e6;
// A value that is read or written takes the time of so many.
inline constexpr double kWorkOfValue = 16;
inline double work_of_values(const View& v) { return kWorkOfValue * double(v.n * v.c) * double(v.h * v.w); }
// A weight that is read once for few rows takes the time of so many rows of products.
inline constexpr double kRowsOfReading = 8;

struct ConvPlan {
  Geometry geometry;
  WinogradGrid winograd;
  TileShape tile{};
  std::vector<Phase> phases;
  std::vector<Block> blocks;
  // Few output channels: registers run along the depth (dot_tile), or along a row of pixels whose input is staged as
  // planes (planar_tile) of `planar_pitch` values a row, in memory for `planar_slots` rows.
  bool dot = false, planar = false;
  std::int64_t planar_pitch = 0, planar_slots = 0;
  // One register of channels: tiles in which a value that is read serves the sums of several pixels (four_phases.h,
  // sliding_tile.h).
  bool four_phases = false, sliding = false;
  // Few pixels: the weight is read as it lies (unpacked_unit.h). With `gathers` the plan's geometry is that of the
  // product with what lies under the kernel, gathered before; `taps_together`: in whose order, the taps of a channel
  // side by side or its channels.
  bool unpacked = false, gathers = false, taps_together = true;
  bool narrow = false;                          // products of bfloat16, in tiles (narrow.h)
  bool packs_blocks = false;                    // each unit packs its own blocks of the weight, into its scratch
  std::int64_t out_step_h = 1, out_step_w = 1;  // between pixels of a phase
  std::int64_t in_step_h = 1, in_step_w = 1;
  std::int64_t packed_size = 0;   // values
  std::int64_t padded_out_c = 0;  // out_c in whole registers
  // Units of work: `unit_images` whole images, or `unit_rows` output rows of one image, times a range of
  // channel blocks.
  std::int64_t unit_images = 1, unit_rows = 1, row_units = 1, image_units = 1;
  int block_splits = 1;
  std::int64_t units = 0;
  // Minimal filtering by points with a weight beyond the caches: so many units are transformed, multiplied point by
  // point and transformed back; 0: a unit is one piece of work. Where a thread has tiles enough a round is its own, and
  // nothing of it is written by one thread and read by another; else all threads share its points, so that each reads
  // its part of the weight once.
  std::int64_t round_units = 0;
  bool own_rounds = false;
  // Staged input of a unit: columns [slab_w0, slab_w0 + slab_cols), rows as the unit needs them.
  std::int64_t slab_w0 = 0, slab_cols = 0, slab_rows = 0, slab_values = 0;
  double flops() const;
  // Multiply-adds, or as many as could be done in the time that reading the weight takes.
  double work() const;
  // The number of a unit's first row of tiles, from the first of image 0 on; of `units`, how many there are.
  std::int64_t tile_row(std::int64_t unit) const {
    const std::int64_t pixel_unit = unit / block_splits,
                       image = std::min(pixel_unit / row_units * unit_images, geometry.batch);
    return image * winograd.rows + pixel_unit % row_units * (unit_rows / winograd.out_step);
  }
};

// Of filtered rows: a packed weight that stays in the second-level cache from one group of tiles to the next.
inline constexpr std::int64_t kNearPairsBytes = 512 << 10;

// Whether all taps of a phase that are multiplied are over the input, and none over its padding.
LMSER_HD bool inside_input(const ConvPlan& p, const Phase& ph) {
  const Geometry& g = p.geometry;
  if (ph.pairs) return true;  // the middle tap is, and what the others meet is looked at
  return (ph.by_rows || (ph.off_h >= 0 && ph.off_h + (ph.rows - 1) * p.in_step_h + ph.taps_h <= g.in_h)) &&
         (ph.by_cols || (ph.off_w >= 0 && ph.off_w + (ph.cols - 1) * p.in_step_w + ph.taps_w <= g.in_w));
}

// Whether a plan reads its input where it lies, if that lies as it wants it: nothing of the padding is read, or single
// windows are copied (winograd_registers.h).
inline bool reads_as_it_lies(const ConvPlan& p) {
  if (p.winograd.m) return p.winograd.in_registers;
  if (p.four_phases) return true;
  return !p.planar && !p.unpacked &&
         std::ranges::all_of(p.phases, [&](const Phase& ph) { return ph.taps_w == 0 || inside_input(p, ph); });
}

// Whether the pixels of a convolution are its input's, with nothing between or beside them: a matrix product.
inline bool is_product(const Geometry& g) {
  return g.kernel_h == 1 && g.kernel_w == 1 && g.stride_h == 1 && g.stride_w == 1 && g.pad_h == 0 && g.pad_w == 0;
}
// Whether an unpacked product is of values under the kernel, which are added to the pixels it reaches.
inline bool scatters(const ConvPlan& p) { return p.unpacked && p.geometry.transposed && !is_product(p.geometry); }
inline std::int64_t small_pixels(const Geometry& g) {
  return g.batch * (g.transposed ? g.in_h * g.in_w : g.out_h * g.out_w);
}
// Whether there are so few pixels of the small side that the weight is read as it lies, which `lies_well` says it can
// be: packing it, or comparing it with what was packed before, would take longer than the product saves. Asked of the
// whole batch, so that its parts have its bits. `calls` would share one packing; `far`: the weight and what was packed
// of it have left the nearer caches; `packed` is the whole batch's plan with a packed weight, where it has been made
// already.
bool takes_unpacked(const Geometry& whole, const TileShape& tile, std::int64_t value_bytes, int threads, int calls,
                    bool far, const ConvPlan* packed = nullptr);
ConvPlan plan_unpacked(const Geometry& geometry, const TileShape& tile, int threads, bool taps_together = true);
// So few rows of a product that each value of the matrix is used as soon as it is read.
inline constexpr int kDirectRows = 4;
// Whether the gradient of a weight is formed of what lies under the kernel, where it is wanted.
bool gathers_gradient(const Geometry& geometry, const TileShape& tile, std::int64_t value_bytes, const View& grad);
// Of a convolution upwards: the product of what lies under the kernel with the weight's rows.
inline Geometry gathered(Geometry g) {
  g.in_c *= std::int64_t(g.kernel_h) * g.kernel_w, g.in_h = g.out_h, g.in_w = g.out_w;
  g.kernel_h = g.kernel_w = g.stride_h = g.stride_w = 1, g.pad_h = g.pad_w = 0;
  return g;
}
// A dense axis of a matrix, or of a kernel all values of one channel of the small side.
inline bool steps_of(const View& w, std::int64_t c, std::int64_t h, std::int64_t x) {
  return (w.sc == c || w.c == 1) && (w.sh == h || w.h == 1) && (w.sw == x || w.w == 1);
}
inline bool taps_lie_together(const View& w) { return steps_of(w, w.h * w.w, w.w, 1); }
inline bool rows_lie_dense(const View& w) { return taps_lie_together(w) || steps_of(w, 1, w.w * w.c, w.c); }
inline bool lies_well(const View& w, const Geometry& g) { return (is_product(g) && w.sn == 1) || rows_lie_dense(w); }

// Whether the weight is a matrix, each block of which is read by one unit of one call alone. The unit packs it where it
// is used, which takes no longer than to compare it with what was packed before (more taps than one would take longer);
// a weight that an optimiser writes between two steps is then neither packed to memory nor kept to be compared.
inline bool packs_once(const ConvPlan& p, int calls) {
  return calls == 1 && !p.unpacked && !p.dot && !p.winograd.m && p.phases.size() == 1 && p.units == p.block_splits &&
         p.geometry.kernel_h * p.geometry.kernel_w == 1;
}

// Rows of input that output rows [r0, r1) of any phase need: [first, last].
struct RowSpan {
  std::int64_t first, last;
};
RowSpan input_rows(const ConvPlan& plan, std::int64_t r0, std::int64_t r1);

// `p` in the units of `other`, a plan with as many outputs: its unit of some number has that one's outputs. Only where
// `shares_units`: each unit of `other` is all channels of some rows, and `p` takes any, which a filtered one does not.
ConvPlan in_units_of(ConvPlan p, const ConvPlan& other);
bool shares_units(const ConvPlan& p, const ConvPlan& other);

// Minimal filtering where it is faster; never; or wherever the shape allows it. The last three are that as well, and
// say which form three taps at stride 2 have, if a convolution can have it: tiles with their sums in buffers or in
// registers, or along rows alone. A part of a batch asks for what the whole takes, so that its results are those of the
// whole.
enum class Filtering { where_faster, never, where_possible, in_buffers, in_registers, along_rows };

// What plans made from now on put in the place of `where_faster`, for benchmarks and tests that compare the choice with
// its alternatives; returns what they put there until now.
Filtering choose_filtering(Filtering filtering);

// Few pixels under the weight as it lies where that is faster; never; or wherever there are few. The choice among the
// three is made like that of filtering, and the fastest form is looked for only where filtering is free to be.
enum class Unpacking { where_faster, never, where_possible };
Unpacking choose_unpacking(Unpacking unpacking);

// `calls` share one packing of the weight.
ConvPlan plan_conv(const Geometry& geometry, const TileShape& tile, std::int64_t value_bytes, int threads,
                   Filtering filtering = Filtering::where_faster, int calls = 1);

// Weight gradient of one pair: big (N, in_c, H, W) under kernel taps, small (N, out_c, h, w).
struct WeightGradPlan {
  Geometry geometry;  // of the convolution big -> small
  TileShape tile{};
  std::int64_t unit_images = 1, unit_rows = 1, row_units = 1, image_units = 1, units = 0;
  std::int64_t slab_cols = 0, slab_rows = 0, big_values = 0, small_values = 0;
  std::int64_t padded_out_c = 0;
  // The sum a task forms: (sum_rows, sum_length, padded_out_c); kernel rows x values under one, or distinct weights
  // of the minimal-filtering algorithm x input channels. Bands are pieces of sum_length, one tile high each.
  std::int64_t sum_rows = 0, sum_length = 0, sum_values = 0, bands_per_row = 1;
  WinogradGrid winograd;
  std::int64_t tile_rows = 0;  // of the grid, a unit
  bool split_pixels = true;    // else tasks take bands, and one sum serves all
  bool narrow = false;         // products of bfloat16, in tiles; the sum is in their order (narrow.h)
  bool inside = false;         // pixels whose value under a tap is of the padding are left out of its sum
  // Minimal filtering with one sum: so many units are transformed to points that all threads share, of so many pairs
  // before their products, which read and write the sum once for all of them.
  std::int64_t round_units = 0, round_pairs = 1;
  // A unit's first row of tiles, from the first of image 0 on; of `units`, how many there are.
  std::int64_t tile_row(std::int64_t unit) const {
    const std::int64_t image = std::min(unit / row_units * unit_images, geometry.batch);
    return image * winograd.rows + unit % row_units * tile_rows;
  }
  // Values of the points of so many tiles: those of the big side, and of both.
  std::int64_t big_points(std::int64_t tiles) const {
    return winograd.points() * winograd.pitch(tiles * geometry.in_c);
  }
  std::int64_t all_points(std::int64_t tiles) const {
    return big_points(tiles) + winograd.points() * winograd.pitch(tiles * padded_out_c);
  }
};
// As of two convolutions, above; each task of both has a sum of its own.
WeightGradPlan in_units_of(WeightGradPlan p, const WeightGradPlan& other);
bool shares_units(const WeightGradPlan& p, const WeightGradPlan& other);

// Whether every thread may have a sum of its own, of values of so many bytes.
bool fits(const WeightGradPlan& p, std::int64_t value_bytes, int threads);

// `unit_bytes`: of both sides of a unit of the direct sum; 0: what a small second-level cache holds.
WeightGradPlan plan_weight_grad(const Geometry& geometry, const TileShape& tile, std::int64_t value_bytes, int threads,
                                Filtering filtering = Filtering::where_faster, std::int64_t unit_bytes = 0);

}  // namespace lmser
