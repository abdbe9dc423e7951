// Units of work of the minimal-filtering algorithms: transform, one matrix product per distinct weight, transform
// back. The slab is the zero-padded staged input of conv_unit.h.
#pragma once

#include <algorithm>

#include "ahead.h"
#include "columns.h"
#include "epilogue.h"
#include "kernels.h"
#include "pack_unit.h"
#include "winograd.h"

namespace lmser::LMSER_ISA {

// Where the packed weight of a block of channels at a point (a distinct weight) begins, [in_c][block width]: all blocks
// of a point before the next point, or all points of a block before the next block. A pitch lies between points.
LMSER_HD std::int64_t packed_panel(const ConvPlan& p, int block, int point) {
  const std::int64_t in_c = p.geometry.in_c;
  const WinogradGrid& w = p.winograd;
  if (w.by_point) return point * w.pitch(in_c * p.padded_out_c) + in_c * p.blocks[block].weight_column;
  std::int64_t at = 0;
  for (int b = 0; b < block; ++b) at += w.weights() * w.pitch(in_c * p.blocks[b].vectors * kLanes<float>);
  return at + point * w.pitch(in_c * p.blocks[block].vectors * kLanes<float>);
}

// Scratch in values: transformed input | sums of one block, or of all. In rounds threads share both.
struct WinogradScratch {
  std::int64_t input = 0, sums = 0;
  WinogradScratch() = default;
  explicit WinogradScratch(const ConvPlan& p) {
    const WinogradGrid& w = p.winograd;
    const std::int64_t tiles = p.unit_images * (p.unit_rows / w.out_step) * w.cols;
    if (p.round_units) return;
    input = w.points() * w.pitch(tiles * p.geometry.in_c);
    sums = w.points() * w.pitch(tiles * (w.by_point ? p.padded_out_c : kTileVectors * kLanes<float>));
    for (std::int64_t* x : {&input, &sums}) *x = (*x + 63) / 64 * 64;
  }
  std::int64_t values() const { return input + sums; }
};

struct WinogradSlab {
  const float* data;
  std::int64_t images, image, row, col;  // how many, and strides
};

// Where the outputs of a unit go: rows [r0, r1) of the output, relative to dst. With `repeat` each, times `scale`, goes
// to up_h x up_w pixels of dst. What is smaller than dst has strides of its own: `add` with add_h * add_w > 1, `drive`
// with drive_once.
struct WinogradOut {
  float* dst;
  const float* add;
  float* drive;
  const float* bias;
  std::int64_t image, row, col, r0, r1;
  Activation activation;
  float slope;
  bool repeat = false;
  int up_h = 1, up_w = 1;
  float scale = 1;
  int add_h = 1, add_w = 1;
  std::int64_t add_image = 0, add_row = 0, add_col = 0;
  bool drive_once = false;
  std::int64_t drive_image = 0, drive_row = 0, drive_col = 0;
  std::atomic<std::uint64_t>* change = nullptr;  // of the first image, by what dst held
};

// Sums of blocks [block0, block1): [point][block][tile][channel of the block], `row` values from one point to the next.
// The products of a tile of registers leave as one piece of memory.
struct WinogradSums {
  float* data;
  int block0, block1;
  std::int64_t tiles, row;
  bool far;  // beyond the second-level cache: those of the next tile are fetched ahead
  WinogradSums(const ConvPlan& p, float* data, int block0, int block1, std::int64_t tiles, bool far = false)
      : data(data), block0(block0), block1(block1), tiles(tiles), row(p.winograd.pitch(tiles * width(p))), far(far) {}
  std::int64_t first_column(const ConvPlan& p) const { return p.blocks[block0].weight_column; }
  std::int64_t width(const ConvPlan& p) const {
    const std::int64_t until = block1 < int(p.blocks.size()) ? p.blocks[block1].weight_column : p.padded_out_c;
    return until - first_column(p);
  }
  float* of_block(const ConvPlan& p, int block) const {
    return data + tiles * (p.blocks[block].weight_column - first_column(p));
  }
};

// Tiles from row `row0` of the order on, transformed back, finished and stored. `checked` gathers a zero of every
// output, which is none where an output is not finite.
template <class F, bool Down, Activation A, bool Repeat>
void winograd_store_as(const ConvPlan& p, const WinogradSums& sums, const TileOrder& order, std::int64_t row0,
                       std::int64_t images, std::int64_t t0, std::int64_t t1, const WinogradOut& out,
                       Vec<float>& checked) {
  constexpr int L = kLanes<float>, O = F::outputs(Down);
  constexpr int kRun = 8;  // registers of channels that are finished together
  const Geometry& g = p.geometry;
  const WinogradGrid& w = p.winograd;
  const std::int64_t pitch = sums.row;
  // Copies, which stores of floats cannot change.
  const bool add_apart = !Repeat && out.add && out.add_h * out.add_w > 1, drive_apart = Repeat && out.drive_once;
  float *const dst = out.dst, *const drive = drive_apart ? nullptr : out.drive;
  const float *const add = add_apart ? nullptr : out.add, *const few_add = add_apart ? out.add : nullptr;
  const bool compares = out.change;
  Magnitude<float> moved;
  const float slope = out.slope, scale = out.scale;
  const int up_h = Repeat ? out.up_h : 1, up_w = Repeat ? out.up_w : 1;
  const std::int64_t row_step = up_h * out.row, col_step = up_w * out.col;
  alignas(64) float linear[O * O * kRun * L], bias[kRun * L];
  const std::int64_t channel0 = p.blocks[sums.block0].channel;
  const int all = int(sums.width(p) / L);
  int block = sums.block0;
  for (int v0 = 0; v0 < all; v0 += kRun) {
    const int vectors = all - v0 < kRun ? all - v0 : kRun;
    const std::int64_t c0 = channel0 + v0 * L, left = g.out_c - c0;
    const float* from[kRun];
    std::int64_t step[kRun];  // to the next tile
    for (int v = 0; v < vectors; ++v) {
      const std::int64_t column = sums.first_column(p) + (v0 + v) * L;
      while (column >= p.blocks[block].weight_column + p.blocks[block].vectors * L) ++block;
      step[v] = p.blocks[block].vectors * L;
      from[v] = sums.of_block(p, block) + column - p.blocks[block].weight_column;
    }
    const int whole = int(left < vectors * L ? left / L : vectors), rest = int(left < vectors * L ? left % L : 0);
    for (int v = 0; v < kRun; ++v) {
      const int lanes = v < whole ? L : v == whole ? rest : 0;
      store<float>(bias + v * L, out.bias && lanes ? load_n<float>(out.bias + c0 + v * L, lanes) : Vec<float>{});
    }
    for (std::int64_t n = 0; n < images; ++n) {
      moved = {};
      for (std::int64_t t = t0; t < t1; ++t)
        for (std::int64_t x = 0; x < w.cols; ++x) {
          const std::int64_t row = row0 + n * (t1 - t0) + t - t0, tile = order.index(row, x);
          for (int v = 0; v < vectors; ++v) {
            const float* const points = from[v] + tile * step[v];
            if (sums.far)
              for (int k = 0; k < F::points * F::points; ++k) __builtin_prefetch(points + step[v] + k * pitch, 0, 3);
            Vec<float> y[O * O], sum[O];
            bool whole_tile = true;
            if constexpr (std::is_same_v<F, ThreeTaps>) {
              whole_tile = !order.last_h(row) && !order.last_w(x);
              if (!whole_tile)
                with_last_tile(order.last_h(row), order.last_w(x), [&](auto kind) { kind.out(points, pitch, y); });
            }
            if (whole_tile) transform_out<F, Down>(points, pitch, y);
#pragma GCC unroll 8
            for (int i = 0; i < O; ++i) {
              sum[i] = y[i * O];
#pragma GCC unroll 8
              for (int j = 1; j < O; ++j) sum[i] = sum[i] + y[i * O + j];
            }
#pragma GCC unroll 8
            for (int i = 1; i < O; ++i) sum[0] = sum[0] + sum[i];
            checked = checked + sum[0] * 0.0f;
#pragma GCC unroll 64
            for (int k = 0; k < O * O; ++k) store<float>(linear + (k * kRun + v) * L, Repeat ? y[k] * scale : y[k]);
          }
          // Pixel after pixel as they lie in memory: the lines of one register's channels in all of them, some power
          // of two apart, would fall into a few sets of the cache.
          const std::int64_t h0 = w.out0_h + t * w.out_step, w0 = w.out0_w + x * w.out_step;
          const int i0 = int(h0 < out.r0 ? out.r0 - h0 : 0), i1 = int(out.r1 - h0 < O ? out.r1 - h0 : O);
          const int j0 = int(w0 < 0 ? -w0 : 0), j1 = int(g.out_w - w0 < O ? g.out_w - w0 : O);
          // Where the next tile's values lie from this one's, which no hardware foresees.
          const bool turns = x + 1 == w.cols;
          const std::int64_t ahead = turns ? O * row_step - x * O * col_step : O * col_step,
                             add_ahead = turns ? O * out.add_row / out.add_h - x * O * out.add_col / out.add_w
                                               : O * out.add_col / out.add_w;
          const auto finish = [ =, &moved ](Vec<float> z, Vec<float> with, std::int64_t at, std::int64_t add_at,
                                            int lanes) __attribute__((always_inline)) {
            __builtin_prefetch(dst + at + ahead, 1);
            Vec<float> sum = z + with;
            if (add) {
              __builtin_prefetch(add + at + ahead, 0);
              sum = sum + load_n<float>(add + at, lanes);
            }
            if (!Repeat && few_add) {
              __builtin_prefetch(few_add + add_at + add_ahead, 0);
              sum = sum + load_n<float>(few_add + add_at, lanes);
            }
            if (drive) store_n<float>(drive + at, z, lanes);  // may lie where `add` does
            const Vec<float> state = act<A, float>(sum, slope);
            if (compares) moved.take(state - load_n<float>(dst + at, lanes));
            store_n<float>(dst + at, state, lanes);
          };
          const std::int64_t corner = n * out.image + (h0 - out.r0) * row_step + w0 * col_step + c0;
          for (int i = i0; i < i1; ++i) {
            if (drive_apart)
              for (int j = j0; j < j1; ++j) {
                const float* const z = linear + (i * O + j) * kRun * L;
                float* const to =
                    out.drive + n * out.drive_image + (h0 + i - out.r0) * out.drive_row + (w0 + j) * out.drive_col + c0;
                for (int v = 0; v < whole; ++v) store<float>(to + v * L, load<float>(z + v * L));
                if (rest) store_n<float>(to + whole * L, load<float>(z + whole * L), rest);
              }
            for (int a = 0; a < up_h; ++a) {
              std::int64_t at = corner + i * row_step + a * out.row + j0 * col_step;
              // Of `few_add`: the value under `at`, and for how many pixels it still serves.
              std::int64_t add_at = 0;
              int serves = 0;
              if (add_apart) {
                add_at = n * out.add_image + ((h0 + i) / out.add_h - out.r0 / out.add_h) * out.add_row +
                         (w0 + j0) / out.add_w * out.add_col + c0;
                serves = out.add_w - int((w0 + j0) % out.add_w);
              }
              for (int j = j0; j < j1; ++j) {
                const float* const z = linear + (i * O + j) * kRun * L;
                for (int b = 0; b < up_w; ++b, at += out.col) {
                  for (int v = 0; v < whole; ++v)
                    finish(load<float>(z + v * L), load<float>(bias + v * L), at + v * L, add_at + v * L, L);
                  if (rest)
                    finish(load<float>(z + whole * L), load<float>(bias + whole * L), at + whole * L,
                           add_at + whole * L, rest);
                }
                if (--serves == 0) add_at += out.add_col, serves = out.add_w;
              }
            }
          }
        }
      if (compares) raise_to(out.change[n], moved.largest());
    }
  }
}

template <class F, bool Down>
void winograd_store(const ConvPlan& p, const WinogradSums& sums, const TileOrder& order, std::int64_t row0,
                    std::int64_t images, std::int64_t t0, std::int64_t t1, const WinogradOut& out,
                    Vec<float>& checked) {
  with_activation(out.activation, [&]<Activation A>() {
    if (out.repeat)
      winograd_store_as<F, Down, A, true>(p, sums, order, row0, images, t0, t1, out, checked);
    else
      winograd_store_as<F, Down, A, false>(p, sums, order, row0, images, t0, t1, out, checked);
  });
}
inline bool all_finite(Vec<float> checked) {
  bool finite = true;
  for (int i = 0; i < kLanes<float>; ++i) finite = finite && checked[i] == 0.0f;
  return finite;
}

// Rows of one distinct weight, out of `rows`, times one block of it. `next_bytes` from `next` on are fetched meanwhile.
inline void winograd_product(const ConvPlan& p, const Block& block, const float* panel, const float* rows,
                             TileRange range, float* to, const float* next, std::int64_t next_bytes) {
  constexpr std::int64_t kAheadSteps = 64;  // 4 KiB of a panel with AVX2
  constexpr int kMost = kTilePixels[1];     // of the narrowest tile
  const std::int64_t in_c = p.geometry.in_c, width = block.vectors * kLanes<float>, count = range.count(),
                     pieces = (count + kTilePixels[block.vectors] - 1) / kTilePixels[block.vectors];
  if (count == 0) return;
  std::int64_t offsets[kMost];
  for (int i = 0; i < kMost; ++i) offsets[i] = i * in_c;
  ProductTile<float> args{rows + range.begin * in_c, offsets, 1, 0, in_c, panel, to + range.begin * width, width};
  args.ahead = kAheadSteps * width;
  Ahead ahead(next, next_bytes, pieces);
  for (std::int64_t i = 0, done = 0; i < pieces; ++i) {
    const int m = int((count - done + pieces - i - 1) / (pieces - i));
    ahead.step();
    product_fn<float>(m, block.vectors)(args);
    args.slab += m * in_c, args.result += m * width, done += m;
  }
}

// Returns false where an output is not finite: such values spread over whole tiles here, so the caller lets the
// direct sum say which outputs they really reach.
template <class F, bool Down>
bool winograd_tiles(const ConvPlan& p, const float* weight, const WinogradSlab& slab, std::int64_t t0, std::int64_t t1,
                    int block0, int block1, const WinogradOut& out, float* scratch) {
  constexpr int kDistinct = F::distinct * F::distinct;
  const Geometry& g = p.geometry;
  const WinogradGrid& w = p.winograd;
  const WinogradScratch layout(p);
  float* const input = scratch;
  float* const sums = input + layout.input;
  const std::int64_t rows = t1 - t0, tiles = slab.images * rows * w.cols;
  const std::int64_t in_pitch = w.pitch(tiles * g.in_c);
  const TileOrder order(w, t0, t0 + slab.images * rows);
  if (order.trimmed())
    transform_trimmed<Transform::up>(order, t0, slab.data, slab.images, rows, w.cols, slab.image, w.in_step * slab.row,
                                     w.in_step * slab.col, slab.row, slab.col, g.in_c, g.in_c, in_pitch, input);
  else
    transform_tiles<F, Down ? Transform::down : Transform::up>(slab.data, slab.images, rows, w.cols, slab.image,
                                                               w.in_step * slab.row, w.in_step * slab.col, slab.row,
                                                               slab.col, g.in_c, g.in_c, in_pitch, input);
  Vec<float> checked{};
  const auto some_blocks = [&](int first, int last) {
    const WinogradSums to(p, sums, first, last, tiles);
    for (int point = 0; point < kDistinct; ++point)
      for (int b = first; b < last; ++b) {
        const int d = point / F::distinct, e = point % F::distinct, copies = F::copies(d) * F::copies(e);
        const float* const from = input + F::rows_before(d, e) * in_pitch;
        const TileRange range = F::stride1 ? order.at_point(d, e) : TileRange{0, copies * tiles};
        const bool next = b + 1 == last && point + 1 < kDistinct;  // whose rows are fetched meanwhile
        winograd_product(p, p.blocks[b], weight + packed_panel(p, b, point), from, range,
                         to.of_block(p, b) + F::rows_before(d, e) * to.row, from + copies * in_pitch,
                         next ? 4 * tiles * g.in_c : 0);
      }
    winograd_store<F, Down>(p, to, order, t0, slab.images, t0, t1, out, checked);
  };
  if (w.by_point)
    some_blocks(block0, block1);
  else
    for (int b = block0; b < block1; ++b) some_blocks(b, b + 1);
  return all_finite(checked);
}

// Input channels [c0, c1) of one block of the weight.
template <class F>
void winograd_pack(const ConvPlan& p, const WeightLayout<float>& weight, int index, std::int64_t c0, std::int64_t c1,
                   float* packed) {
  constexpr int L = kLanes<float>, D = F::distinct, R = F::taps;
  constexpr std::int64_t kChunk = 8;  // input channels whose taps are turned together
  const Geometry& g = p.geometry;
  const Block& block = p.blocks[index];
  const std::int64_t width = std::int64_t(block.vectors) * L,
                     pitch = packed_panel(p, index, 1) - packed_panel(p, index, 0);
  float* const base = packed + packed_panel(p, index, 0);
  alignas(64) float taps[kChunk * R * R * L];
  // In the order they meet ascending input: reversed for the transposed direction.
  const auto order = [&](int i) { return g.transposed ? R - 1 - i : i; };
  for (std::int64_t from = c0; from < c1; from += kChunk)
    for (int v = 0; v < block.vectors; ++v) {
      const std::int64_t count = c1 - from < kChunk ? c1 - from : kChunk;
      gather_taps<float>(g, weight, block.channel + v * L, from, count, taps);
      for (std::int64_t c = 0; c < count; ++c) {
        Vec<float> half[R][D], tap[R], t[D];
        for (int i = 0; i < R; ++i) {
          for (int j = 0; j < R; ++j) tap[j] = load<float>(taps + ((c * R + order(i)) * R + order(j)) * L);
          F::weights(tap, half[i]);
        }
#pragma GCC unroll 8
        for (int e = 0; e < D; ++e) {
          for (int i = 0; i < R; ++i) tap[i] = half[i][e];
          F::weights(tap, t);
#pragma GCC unroll 8
          for (int d = 0; d < D; ++d) store<float>(base + (d * D + e) * pitch + (from + c) * width + v * L, t[d]);
        }
      }
    }
}

struct WinogradGradScratch {
  std::int64_t big = 0, small = 0;
  WinogradGradScratch() = default;
  explicit WinogradGradScratch(const WeightGradPlan& p) {
    const std::int64_t tiles = p.unit_images * p.tile_rows * p.winograd.cols;
    big = p.winograd.points() * p.winograd.pitch(tiles * p.geometry.in_c);
    small = p.winograd.points() * p.winograd.pitch(tiles * p.padded_out_c);
  }
};

// Both sides transformed to points; the products themselves are gradient tiles over rows of equal weight.
template <class F>
void winograd_grad_transform(const WeightGradPlan& p, const TileOrder& order, std::int64_t row0, const float* big,
                             const float* small, std::int64_t images, std::int64_t tile_rows, float* scratch) {
  const Geometry& g = p.geometry;
  const WinogradGrid& w = p.winograd;
  const WinogradGradScratch layout(p);
  const std::int64_t tiles = images * tile_rows * w.cols;
  const std::int64_t big_col = g.in_c, big_row = p.slab_cols * big_col,
                     big_image = ((tile_rows - 1) * w.in_step + w.window) * big_row;
  const std::int64_t small_col = p.padded_out_c, small_row = w.cols * w.m * small_col,
                     small_image = tile_rows * w.m * small_row;
  if (order.trimmed())
    transform_trimmed<Transform::up>(order, row0, big, images, tile_rows, w.cols, big_image, w.in_step * big_row,
                                     w.in_step * big_col, big_row, big_col, g.in_c, g.in_c, w.pitch(tiles * g.in_c),
                                     scratch);
  else
    transform_tiles<F, Transform::up>(big, images, tile_rows, w.cols, big_image, w.in_step * big_row,
                                      w.in_step * big_col, big_row, big_col, g.in_c, g.in_c, w.pitch(tiles * g.in_c),
                                      scratch);
  for_columns<float>(p, [&](int v, int width) {
    const std::int64_t from = v * kLanes<float>, values = width * kLanes<float>;
    float* const to = scratch + layout.big + from * tiles;
    if (order.trimmed())
      transform_trimmed<Transform::small>(order, row0, small + from, images, tile_rows, w.cols, small_image,
                                          w.m * small_row, w.m * small_col, small_row, small_col, values, values,
                                          w.pitch(tiles * p.padded_out_c), to);
    else
      transform_tiles<F, Transform::small>(small + from, images, tile_rows, w.cols, small_image, w.m * small_row,
                                           w.m * small_col, small_row, small_col, values, values,
                                           w.pitch(tiles * p.padded_out_c), to);
  });
}

// Input channels [c0, c1) of the sums of `count` tasks, added and brought back to taps: (taps, in_c, padded_out_c).
template <class F>
bool winograd_grad_finish(const WeightGradPlan& p, const float* sums, int count, std::int64_t c0, std::int64_t c1,
                          float* out) {
  constexpr int L = kLanes<float>, D = F::distinct, R = F::taps;
  const std::int64_t in_c = p.geometry.in_c, width = p.padded_out_c;
  Vec<float> spoiled{};
  for (std::int64_t c = c0; c < c1; ++c)
    for (std::int64_t o = 0; o < width; o += L) {
      Vec<float> half[R][D];
      for (int e = 0; e < D; ++e) {
        Vec<float> t[D], taps[R];
        for (int d = 0; d < D; ++d) {
          const float* from = sums + ((d * D + e) * in_c + c) * width + o;
          t[d] = load<float>(from);
          for (int k = 1; k < count; ++k) t[d] = t[d] + load<float>(from + k * p.sum_values);
        }
        F::weights_adjoint(t, taps);
        for (int i = 0; i < R; ++i) half[i][e] = taps[i];
      }
      for (int i = 0; i < R; ++i) {
        Vec<float> taps[R];
        F::weights_adjoint(half[i], taps);
        for (int j = 0; j < R; ++j) {
          spoiled = spoiled + taps[j] * 0.0f;
          store<float>(out + ((i * R + j) * in_c + c) * width + o, taps[j]);
        }
      }
    }
  return all_finite(spoiled);
}

}  // namespace lmser::LMSER_ISA
