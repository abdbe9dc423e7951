// Units of work of the minimal-filtering algorithms: transform, one matrix product per distinct weight, transform
// back. The slab is the zero-padded staged input of conv_unit.h.
#pragma once

#include <algorithm>

#include "ahead.h"
#include "columns.h"
#include "kernels.h"
#include "pack_unit.h"
#include "tile.h"
#include "winograd_store.h"

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
bool winograd_tiles(const ConvPlan& p, const float* weight, const Pixels<const float>& slab, std::int64_t images,
                    std::int64_t t0, std::int64_t t1, int block0, int block1, const WinogradOut& out, float* scratch) {
  constexpr int kDistinct = F::distinct * F::distinct;
  const Geometry& g = p.geometry;
  const WinogradGrid& w = p.winograd;
  const WinogradScratch layout(p);
  float* const input = scratch;
  float* const sums = input + layout.input;
  const std::int64_t rows = t1 - t0, tiles = images * rows * w.cols;
  const std::int64_t in_pitch = w.pitch(tiles * g.in_c);
  const TileOrder order(w, t0, t0 + images * rows);
  transform_grid<F, Down ? Transform::down : Transform::up>(order, t0, windows_in(slab, w, images, rows), g.in_c,
                                                            g.in_c, in_pitch, input);
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
    winograd_store<F, Down>(p, to, order, t0, images, t0, t1, out, checked);
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
  // Where the weight of one channel at a pair of classes lies, and the next channel's from there.
  const bool columns_together = p.winograd.in_registers;
  const auto place = [&](int d, int e, std::int64_t c) {
    if (!columns_together) return base + (d * D + e) * pitch + c * width;
    const std::int64_t of_row = d * D * g.in_c * width;
    return base + of_row + (e + 1 < D ? (c * (D - 1) + e) * width : ((D - 1) * g.in_c + c) * width);
  };
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
          for (int d = 0; d < D; ++d) store<float>(place(d, e, from + c) + v * L, t[d]);
        }
      }
    }
}

// Both sides transformed to points; the products themselves are gradient tiles over rows of equal weight.
template <class F>
void winograd_grad_transform(const WeightGradPlan& p, const TileOrder& order, std::int64_t row0, const float* big,
                             const float* small, std::int64_t images, std::int64_t tile_rows, float* points) {
  const Geometry& g = p.geometry;
  const WinogradGrid& w = p.winograd;
  const std::int64_t tiles = order.count();
  const std::int64_t big_col = g.in_c, big_row = p.slab_cols * big_col,
                     big_image = ((tile_rows - 1) * w.in_step + w.window) * big_row;
  const std::int64_t small_col = p.padded_out_c, small_row = w.cols * w.m * small_col,
                     small_image = tile_rows * w.m * small_row;
  const Windows windows{big,     images, tile_rows, w.cols, big_image, w.in_step * big_row, w.in_step * big_col,
                        big_row, big_col};
  transform_grid<F, Transform::up>(order, row0, windows, g.in_c, g.in_c, w.pitch(tiles * g.in_c), points);
  for_columns<float>(p, [&](int v, int width) {
    const std::int64_t from = v * kLanes<float>, values = width * kLanes<float>;
    float* const to = points + p.big_points(tiles) + from * tiles;
    const Windows outputs{small + from,    images,          tile_rows, w.cols,   small_image,
                          w.m * small_row, w.m * small_col, small_row, small_col};
    transform_grid<F, Transform::small>(order, row0, outputs, values, values, w.pitch(tiles * p.padded_out_c), to);
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
