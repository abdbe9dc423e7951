// Minimal-filtering (Winograd) algorithms over grids of tiles, both directions and the weight gradient: windows of
// input to points, sums of points to outputs. One dimension of each algorithm is a class: ThreeTaps and FiveTaps at
// stride 1, Phased and PhasedFive at stride 2.
#pragma once

#include <type_traits>

#include "pixels.h"
#include "winograd_last_tile.h"
#include "winograd_phased_five.h"

namespace lmser::LMSER_ISA {

// Calls f with the algorithm of a grid as a type.
template <class G>
LMSER_HD auto with_filter(const WinogradGrid& w, G&& f) {
  if (w.stride1()) return w.taps == 5 ? f.template operator()<FiveTaps>() : f.template operator()<ThreeTaps>();
  if (w.taps == 5) return f.template operator()<PhasedFive>();
  return w.m == 3 ? f.template operator()<Phased<3>>() : f.template operator()<Phased<2>>();
}

struct RowTable {
  int row[49];
};
template <class F>
constexpr RowTable row_table() {
  RowTable t{};
  constexpr int P = F::points;
  for (int p = 0; p < P; ++p)
    for (int q = 0; q < P; ++q) t.row[p * P + q] = F::row_of(p, q);
  return t;
}

// One tile, `n` channels from `c` on: window -> points^2, each to its row of `out`, [row][tiles][channels].
template <class F, Transform Kind>
LMSER_HD constexpr int window_of() {
  if constexpr (Kind == Transform::up)
    return F::up_window;
  else if constexpr (Kind == Transform::down)
    return F::down_window;
  else
    return F::small;
}
// `InOrder`: [point][point] instead.
template <class F, Transform Kind, bool InOrder = false>
LMSER_HD void transform_in(const float* src, std::int64_t row_stride, std::int64_t col_stride, int n, float* out,
                           std::int64_t point_stride) {
  using V = Vec<float>;
  constexpr int W = window_of<F, Kind>(), P = F::points;
  constexpr RowTable table = row_table<F>();
  V half[W][P];
#pragma GCC unroll 8
  for (int r = 0; r < W; ++r) {
    V x[W];
#pragma GCC unroll 8
    for (int c = 0; c < W; ++c) x[c] = load_n<float>(src + r * row_stride + c * col_stride, n);
    if constexpr (Kind == Transform::up)
      F::up_in(x, half[r]);
    else if constexpr (Kind == Transform::down)
      F::down_in(x, half[r]);
    else
      F::small_in(x, half[r]);
  }
#pragma GCC unroll 8
  for (int q = 0; q < P; ++q) {
    V x[W], t[P];
#pragma GCC unroll 8
    for (int r = 0; r < W; ++r) x[r] = half[r][q];
    if constexpr (Kind == Transform::up)
      F::up_in(x, t);
    else if constexpr (Kind == Transform::down)
      F::down_in(x, t);
    else
      F::small_in(x, t);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
      store_n<float>(out + (InOrder ? p * P + q : table.row[p * P + q]) * point_stride, t[p], n);
  }
}

// Windows of rows of tiles of some images. `origin` is that of the first tile; strides between windows, then within
// one.
struct Windows {
  const float* origin;
  std::int64_t images, rows, cols;
  std::int64_t image_step, row_step, col_step, row_stride, col_stride;
};
// Those of a grid over staged input.
inline Windows windows_in(const Pixels<const float>& slab, const WinogradGrid& w, std::int64_t images,
                          std::int64_t rows) {
  return {slab.data, images, rows, w.cols, slab.image, w.in_step * slab.row, w.in_step * slab.col, slab.row, slab.col};
}

// All channels of all tiles to their places in `order`, in which the first of them are of row `row0`. A tile has
// `out_channels` places, and `point_stride` lies between the rows of `out`.
template <class F, Transform Kind>
void transform_grid(const TileOrder& order, std::int64_t row0, const Windows& in, std::int64_t channels,
                    std::int64_t out_channels, std::int64_t point_stride, float* out) {
  constexpr int L = kLanes<float>;
  for (std::int64_t n = 0; n < in.images; ++n)
    for (std::int64_t r = 0; r < in.rows; ++r)
      for (std::int64_t x = 0; x < in.cols; ++x) {
        const std::int64_t row = row0 + n * in.rows + r;
        const float* const src = in.origin + n * in.image_step + r * in.row_step + x * in.col_step;
        float* const to = out + order.index(row, x) * out_channels;
        if constexpr (std::is_same_v<F, ThreeTaps>)
          if (order.trimmed()) {
            with_last_tile(order.last_h(row), order.last_w(x), [&](auto tile) {
              tile.template in<Kind>(src, in.row_stride, in.col_stride, channels, to, point_stride);
            });
            continue;
          }
        std::int64_t c = 0;
        for (; c + L <= channels; c += L)
          transform_in<F, Kind>(src + c, in.row_stride, in.col_stride, L, to + c, point_stride);
        if (c < channels)
          transform_in<F, Kind>(src + c, in.row_stride, in.col_stride, int(channels - c), to + c, point_stride);
      }
}

// points^2 sums of one tile and one register of channels -> outputs x outputs values.
template <class F, bool Down>
LMSER_HD void transform_out(const float* in, std::int64_t point_stride, Vec<float>* out) {
  using V = Vec<float>;
  constexpr int P = F::points, O = F::outputs(Down);
  constexpr RowTable table = row_table<F>();
  V half[O][P];
#pragma GCC unroll 8
  for (int q = 0; q < P; ++q) {
    V m[P], y[O];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) m[p] = load<float>(in + table.row[p * P + q] * point_stride);
    if constexpr (Down)
      F::down_out(m, y);
    else
      F::up_out(m, y);
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) half[o][q] = y[o];
  }
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) {
    V y[O];
    if constexpr (Down)
      F::down_out(half[o], y);
    else
      F::up_out(half[o], y);
#pragma GCC unroll 8
    for (int k = 0; k < O; ++k) out[o * O + k] = y[k];
  }
}

}  // namespace lmser::LMSER_ISA
