// Minimal-filtering (Winograd) algorithms, both directions and the weight gradient: 3-tap kernels at strides 1 and 2,
// 5-tap ones at stride 1.
//
// At stride 1 it is F(4, 3) or F(2, 5), ThreeTaps and FiveTaps below.
//
// At stride 2 the taps meet the two phases of the input separately: y[q] = w0 o[q] + w2 o[q+1] + w1 e[q], a
// two-tap stride-1 convolution over one phase and a one-tap one over the other. The two taps run as F(M, 2) with
// the points 0, 1 (, -1), infinity; the single tap is a plain product. Over M outputs that is 2M + 1 products for
// 3M, in two dimensions (2M + 1)^2 for 9 M^2: 1.65 times fewer at M = 3, 1.44 at M = 2. Every transform is made of
// additions (the halves sit in the weights), so the error stays close to the direct sum's.
//
// The transposed direction has the same products: its odd outputs are the single tap, its even ones F(M, 2).
//
// Products with the same weight are one matrix product: in one dimension the M single taps share w1, so there are
// `kDistinct` = D weights, D^2 in two dimensions, with 1, M or M^2 rows a tile.
#pragma once

#include "rows.h"
#include "tile.h"
#include "winograd_order.h"

namespace lmser::LMSER_ISA {

// One dimension. Points 0 .. M are those of F(M, 2), M + 1 .. 2M the single taps.
template <int M>
struct Phased {
  static_assert(M == 2 || M == 3);
  static constexpr bool stride1 = false;
  static constexpr int taps = 3, points = 2 * M + 1, distinct = M + 2, up_window = 2 * M + 1, down_window = M + 1,
                       small = M, most_copies = M;
  static constexpr int outputs(bool down) { return down ? 2 * M : M; }

  template <class V>
  static LMSER_HD void two_taps_in(const V (&x)[M + 1], V* t) {
    if constexpr (M == 2)
      t[0] = x[0] - x[1], t[1] = x[1], t[2] = x[2] - x[1];
    else
      t[0] = x[0] - x[2], t[1] = x[1] + x[2], t[2] = x[2] - x[1], t[3] = x[3] - x[1];
  }
  template <class V>
  static LMSER_HD void two_taps_out(const V* m, V (&y)[M]) {
    if constexpr (M == 2) {
      y[0] = m[0] + m[1], y[1] = m[1] + m[2];
    } else {
      const V both = m[1] + m[2];
      y[0] = m[0] + both, y[1] = m[1] - m[2], y[2] = both + m[3];
    }
  }
  template <class V>
  static LMSER_HD void two_taps_out_adjoint(const V (&g)[M], V* t) {
    if constexpr (M == 2) {
      t[0] = g[0], t[1] = g[0] + g[1], t[2] = g[1];
    } else {
      const V ends = g[0] + g[2];
      t[0] = g[0], t[1] = ends + g[1], t[2] = ends - g[1], t[3] = g[2];
    }
  }

  // The convolution: window of 2M + 1 inputs -> points; points -> M outputs.
  template <class V>
  static LMSER_HD void up_in(const V (&x)[up_window], V (&t)[points]) {
    V o[M + 1];
    for (int k = 0; k <= M; ++k) o[k] = x[2 * k];
    two_taps_in(o, t);
    for (int k = 0; k < M; ++k) t[M + 1 + k] = x[2 * k + 1];
  }
  template <class V>
  static LMSER_HD void up_out(const V (&m)[points], V (&y)[M]) {
    two_taps_out(m, y);
    for (int k = 0; k < M; ++k) y[k] = y[k] + m[M + 1 + k];
  }
  // The transposed one: window of M + 1 inputs -> points; points -> 2M outputs, single tap first.
  template <class V>
  static LMSER_HD void down_in(const V (&z)[down_window], V (&t)[points]) {
    two_taps_in(z, t);
    for (int k = 0; k < M; ++k) t[M + 1 + k] = z[k];
  }
  template <class V>
  static LMSER_HD void down_out(const V (&m)[points], V (&y)[2 * M]) {
    V even[M];
    two_taps_out(m, even);
    for (int k = 0; k < M; ++k) y[2 * k] = m[M + 1 + k], y[2 * k + 1] = even[k];
  }
  // The gradient of up_out, for the weight gradient.
  template <class V>
  static LMSER_HD void small_in(const V (&g)[M], V (&t)[points]) {
    two_taps_out_adjoint(g, t);
    for (int k = 0; k < M; ++k) t[M + 1 + k] = g[k];
  }
  // Weights, in the order in which they meet ascending input -> distinct values; and the adjoint, to taps 0, 1, 2.
  template <class V>
  static LMSER_HD void weights(const V (&w)[3], V (&t)[distinct]) {
    const V first = w[0], single = w[1], second = w[2];
    if constexpr (M == 2)
      t[0] = first, t[1] = first + second, t[2] = second, t[3] = single;
    else
      t[0] = first, t[1] = (first + second) * 0.5f, t[2] = (first - second) * 0.5f, t[3] = second, t[4] = single;
  }
  template <class V>
  static LMSER_HD void weights_adjoint(const V (&t)[distinct], V (&w)[3]) {
    if constexpr (M == 2)
      w[0] = t[0] + t[1], w[2] = t[1] + t[2], w[1] = t[3];
    else
      w[0] = t[0] + (t[1] + t[2]) * 0.5f, w[2] = t[3] + (t[1] - t[2]) * 0.5f, w[1] = t[4];
  }

  // Which distinct weight a point uses, which copy it is, and how many copies there are.
  static constexpr int weight_of(int p) { return p <= M ? p : M + 1; }
  static constexpr int copy_of(int p) { return p <= M ? 0 : p - (M + 1); }
  static constexpr int copies(int d) { return d <= M ? 1 : M; }
  // Rows (in units of tiles) before distinct pair (a, b).
  static constexpr int rows_before(int a, int b) {
    int sum = 0;
    for (int i = 0; i < distinct; ++i)
      for (int j = 0; j < distinct; ++j) {
        if (i == a && j == b) return sum;
        sum += copies(i) * copies(j);
      }
    return sum;
  }
  // Row (in units of tiles) of point pair (p, q).
  static constexpr int row_of(int p, int q) {
    return rows_before(weight_of(p), weight_of(q)) + copy_of(p) * copies(weight_of(q)) + copy_of(q);
  }
};

// Stride 1: 6 products for the 12 of F(4, 3) and the 10 of F(2, 5); in two dimensions 36 for 144 and 100. Both evaluate
// at the points 0, +-sqrt(1/2), +-sqrt(2) and infinity, and so transform their input alike: products of neighbours in
// 0, +-1, +-2 grow four times as far (measured on 3x3, 128 channels: 2e-6 of the largest output instead of 8e-6). The
// transposed direction is the convolution with its taps in reverse.
struct SixPoints {
  static constexpr bool stride1 = true;
  static constexpr int points = 6, distinct = 6, up_window = 6, most_copies = 1;
  static constexpr float a = 0.70710678118654752f, b = 1.41421356237309505f;

  template <class V>
  static LMSER_HD void up_in(const V (&x)[6], V (&t)[6]) {
    const V even_a = x[4] - 2.0f * x[2], odd_a = x[3] - 2.0f * x[1];
    const V even_b = x[4] - 0.5f * x[2], odd_b = x[3] - 0.5f * x[1];
    t[0] = x[0] - 2.5f * x[2] + x[4];
    t[1] = even_a + a * odd_a, t[2] = even_a - a * odd_a;
    t[3] = even_b + b * odd_b, t[4] = even_b - b * odd_b;
    t[5] = x[1] - 2.5f * x[3] + x[5];
  }
  static constexpr int copies(int) { return 1; }
  static constexpr int rows_before(int d, int e) { return d * 6 + e; }
  static constexpr int row_of(int p, int q) { return p * 6 + q; }
};

struct ThreeTaps : SixPoints {
  static constexpr int taps = 3, small = 4;
  static constexpr int outputs(bool) { return 4; }

  template <class V>
  static LMSER_HD void up_out(const V (&m)[6], V (&y)[4]) {
    const V sum_a = m[1] + m[2], difference_a = a * (m[1] - m[2]);
    const V sum_b = m[3] + m[4], difference_b = b * (m[3] - m[4]);
    y[0] = m[0] + sum_a + sum_b;
    y[1] = difference_a + difference_b;
    y[2] = 0.5f * sum_a + 2.0f * sum_b;
    y[3] = 0.5f * difference_a + 2.0f * difference_b + m[5];
  }
  template <class V>
  static LMSER_HD void small_in(const V (&g)[4], V (&t)[6]) {  // adjoint of up_out
    const V even_a = g[0] + 0.5f * g[2], odd_a = a * (g[1] + 0.5f * g[3]);
    const V even_b = g[0] + 2.0f * g[2], odd_b = b * (g[1] + 2.0f * g[3]);
    t[0] = g[0];
    t[1] = even_a + odd_a, t[2] = even_a - odd_a;
    t[3] = even_b + odd_b, t[4] = even_b - odd_b;
    t[5] = g[3];
  }
  template <class V>
  static LMSER_HD void weights(const V (&w)[3], V (&t)[6]) {
    const V even_a = (w[0] + 0.5f * w[2]) * (-2.0f / 3.0f), odd_a = w[1] * (-2.0f / 3.0f * a);
    const V even_b = (w[0] + 2.0f * w[2]) * (1.0f / 6.0f), odd_b = w[1] * (1.0f / 6.0f * b);
    t[0] = w[0];
    t[1] = even_a + odd_a, t[2] = even_a - odd_a;
    t[3] = even_b + odd_b, t[4] = even_b - odd_b;
    t[5] = w[2];
  }
  template <class V>
  static LMSER_HD void weights_adjoint(const V (&t)[6], V (&w)[3]) {
    const V sum_a = (t[1] + t[2]) * (-2.0f / 3.0f), sum_b = (t[3] + t[4]) * (1.0f / 6.0f);
    w[0] = t[0] + sum_a + sum_b;
    w[1] = (t[1] - t[2]) * (-2.0f / 3.0f * a) + (t[3] - t[4]) * (1.0f / 6.0f * b);
    w[2] = 0.5f * sum_a + 2.0f * sum_b + t[5];
  }
};

enum class Transform { up, down, small };

// F(2, 3) and F(3, 3) with the weights of F(4, 3): `Last` outputs of Last + 2 inputs, at the points that
// WinogradGrid::leaves_out leaves. Weights are divided by the product of the distances between all six points; the
// input is transformed with what that is too much.
template <int Last>
struct LastOfThreeTaps {
  static_assert(Last == 2 || Last == 3 || Last == 4);
  static constexpr int window = Last + 2;
  static constexpr float a = SixPoints::a, b = SixPoints::b;
  static constexpr bool has(int point) { return !WinogradGrid::leaves_out(Last, point); }

  template <class V>
  static LMSER_HD void in(const V (&x)[6], V (&t)[6]) {
    if constexpr (Last == 4) {
      SixPoints::up_in(x, t);
    } else if constexpr (Last == 3) {
      const V odd = x[3] + x[1], even = 1.5f * x[2];
      t[0] = x[0] - a * x[1] - 2.0f * x[2] + b * x[3];
      t[1] = (1.5f * b) * (x[3] - x[1]) - even, t[2] = a * odd - even;
      t[3] = (2.0f * b) * x[3] - b * x[1];
      t[5] = x[4] - b * x[3] - 0.5f * x[2] + a * x[1];
    } else {
      t[0] = x[0] - 2.0f * x[2];
      t[1] = -1.5f * (x[2] + a * x[1]), t[2] = -1.5f * (x[2] - a * x[1]);
      t[5] = x[3] - 0.5f * x[1];
    }
  }
  template <class V>
  static LMSER_HD void out(const V (&m)[6], V (&y)[4]) {
    if constexpr (Last == 4) {
      ThreeTaps::up_out(m, y);
    } else if constexpr (Last == 3) {
      const V sum_a = m[1] + m[2];
      y[0] = m[0] + sum_a + m[3];
      y[1] = a * (m[1] - m[2]) + b * m[3];
      y[2] = 0.5f * sum_a + 2.0f * m[3] + m[5];
    } else {
      y[0] = m[0] + m[1] + m[2];
      y[1] = a * (m[1] - m[2]) + m[5];
    }
  }
  // The adjoint of `out`, for the weight gradient; of g the first Last.
  template <class V>
  static LMSER_HD void small_in(const V (&g)[6], V (&t)[6]) {
    if constexpr (Last == 4) {
      const V four[4] = {g[0], g[1], g[2], g[3]};
      ThreeTaps::small_in(four, t);
    } else {
      const V even = Last == 3 ? g[0] + 0.5f * g[2] : g[0], odd = a * g[1];
      t[0] = g[0];
      t[1] = even + odd, t[2] = even - odd;
      if constexpr (Last == 3) t[3] = g[0] + b * g[1] + 2.0f * g[2];
      t[5] = g[Last - 1];
    }
  }
};

struct FiveTaps : SixPoints {
  static constexpr int taps = 5, small = 2;
  static constexpr int outputs(bool) { return 2; }

  template <class V>
  static LMSER_HD void up_out(const V (&m)[6], V (&y)[2]) {
    y[0] = m[0] + (m[1] + m[2]) + (m[3] + m[4]);
    y[1] = a * (m[1] - m[2]) + b * (m[3] - m[4]) + m[5];
  }
  template <class V>
  static LMSER_HD void small_in(const V (&g)[2], V (&t)[6]) {  // adjoint of up_out
    const V odd_a = a * g[1], odd_b = b * g[1];
    t[0] = g[0];
    t[1] = g[0] + odd_a, t[2] = g[0] - odd_a;
    t[3] = g[0] + odd_b, t[4] = g[0] - odd_b;
    t[5] = g[1];
  }
  template <class V>
  static LMSER_HD void weights(const V (&w)[5], V (&t)[6]) {
    const V even_a = (w[0] + 0.5f * w[2] + 0.25f * w[4]) * (-2.0f / 3.0f);
    const V odd_a = (w[1] + 0.5f * w[3]) * (-2.0f / 3.0f * a);
    const V even_b = (w[0] + 2.0f * w[2] + 4.0f * w[4]) * (1.0f / 6.0f),
            odd_b = (w[1] + 2.0f * w[3]) * (1.0f / 6.0f * b);
    t[0] = w[0];
    t[1] = even_a + odd_a, t[2] = even_a - odd_a;
    t[3] = even_b + odd_b, t[4] = even_b - odd_b;
    t[5] = w[4];
  }
  template <class V>
  static LMSER_HD void weights_adjoint(const V (&t)[6], V (&w)[5]) {
    const V sum_a = (t[1] + t[2]) * (-2.0f / 3.0f), sum_b = (t[3] + t[4]) * (1.0f / 6.0f);
    const V difference_a = (t[1] - t[2]) * (-2.0f / 3.0f * a), difference_b = (t[3] - t[4]) * (1.0f / 6.0f * b);
    w[0] = t[0] + sum_a + sum_b;
    w[1] = difference_a + difference_b;
    w[2] = 0.5f * sum_a + 2.0f * sum_b;
    w[3] = 0.5f * difference_a + 2.0f * difference_b;
    w[4] = 0.25f * sum_a + 4.0f * sum_b + t[5];
  }
};

// One tile of `last_h` x `last_w` outputs (0: 4): all channels of its window to points, and one register of sums to
// outputs, 4 x 4 of which those that are not needed are zero.
template <int H, int W, Transform Kind>
void last_tile_in(const float* src, std::int64_t row_stride, std::int64_t col_stride, std::int64_t channels, float* out,
                  std::int64_t point_stride) {
  using V = Vec<float>;
  using Rows = LastOfThreeTaps<H>;
  using Cols = LastOfThreeTaps<W>;
  constexpr bool small = Kind == Transform::small;
  constexpr int rows = small ? H : Rows::window, cols = small ? W : Cols::window;
  constexpr auto row_points = small ? &Rows::template small_in<V> : &Rows::template in<V>;
  constexpr auto col_points = small ? &Cols::template small_in<V> : &Cols::template in<V>;
  for_lanes<float>(
      channels, [&](std::int64_t c, int n) __attribute__((always_inline)) {
        V half[6][6];
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
          V x[6];
#pragma GCC unroll 8
          for (int k = 0; k < cols; ++k) x[k] = load_n<float>(src + r * row_stride + k * col_stride + c, n);
          col_points(x, half[r]);
        }
#pragma GCC unroll 8
        for (int q = 0; q < 6; ++q) {
          if (!Cols::has(q)) continue;
          V x[6], t[6];
#pragma GCC unroll 8
          for (int r = 0; r < rows; ++r) x[r] = half[r][q];
          row_points(x, t);
#pragma GCC unroll 8
          for (int p = 0; p < 6; ++p)
            if (Rows::has(p)) store_n<float>(out + (p * 6 + q) * point_stride + c, t[p], n);
        }
      });
}
template <int H, int W>
void last_tile_out(const float* in, std::int64_t point_stride, Vec<float>* out) {
  using V = Vec<float>;
  using Rows = LastOfThreeTaps<H>;
  using Cols = LastOfThreeTaps<W>;
  V half[4][6];
#pragma GCC unroll 8
  for (int q = 0; q < 6; ++q) {
    if (!Cols::has(q)) continue;
    V m[6], y[4];
#pragma GCC unroll 8
    for (int p = 0; p < 6; ++p)
      if (Rows::has(p)) m[p] = load<float>(in + (p * 6 + q) * point_stride);
    Rows::out(m, y);
#pragma GCC unroll 8
    for (int o = 0; o < H; ++o) half[o][q] = y[o];
  }
#pragma GCC unroll 8
  for (int o = 0; o < 4; ++o) {
    V y[4];
    if (o < H) Cols::out(half[o], y);
#pragma GCC unroll 8
    for (int k = 0; k < 4; ++k) out[o * 4 + k] = o < H && k < W ? y[k] : V{};
  }
}
template <int H, int W>
struct LastTile {
  template <Transform Kind>
  static constexpr auto in = last_tile_in<H, W, Kind>;
  static constexpr auto out = last_tile_out<H, W>;
};
// Calls f with the kind of a tile as a type.
template <class G>
auto with_last_tile(int last_h, int last_w, G&& f) {
  const auto cols = [&]<int H>() {
    return last_w == 2 ? f(LastTile<H, 2>{}) : last_w == 3 ? f(LastTile<H, 3>{}) : f(LastTile<H, 4>{});
  };
  return last_h == 2   ? cols.template operator()<2>()
         : last_h == 3 ? cols.template operator()<3>()
                       : cols.template operator()<4>();
}

// Calls f with the algorithm of a grid as a type.
template <class G>
LMSER_HD auto with_filter(const WinogradGrid& w, G&& f) {
  if (w.stride1()) return w.taps == 5 ? f.template operator()<FiveTaps>() : f.template operator()<ThreeTaps>();
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
template <class F, Transform Kind>
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
    for (int p = 0; p < P; ++p) store_n<float>(out + table.row[p * P + q] * point_stride, t[p], n);
  }
}

// All channels of all tiles of a grid. `origin` is the window of tile (0, 0) of image 0; `point_stride` lies between
// the rows of `out`.
template <class F, Transform Kind>
void transform_tiles(const float* origin, std::int64_t images, std::int64_t rows, std::int64_t cols,
                     std::int64_t image_stride, std::int64_t row_step, std::int64_t col_step, std::int64_t row_stride,
                     std::int64_t col_stride, std::int64_t channels, std::int64_t out_channels,
                     std::int64_t point_stride, float* out) {
  constexpr int L = kLanes<float>;
  for (std::int64_t n = 0; n < images; ++n)
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t x = 0; x < cols; ++x, out += out_channels) {
        const float* src = origin + n * image_stride + r * row_step + x * col_step;
        std::int64_t c = 0;
        for (; c + L <= channels; c += L)
          transform_in<F, Kind>(src + c, row_stride, col_stride, L, out + c, point_stride);
        if (c < channels)
          transform_in<F, Kind>(src + c, row_stride, col_stride, int(channels - c), out + c, point_stride);
      }
}

// The same for tiles of which the last are smaller, each to its place in `order`, where the first of them are of row
// `row0`.
template <Transform Kind>
void transform_trimmed(const TileOrder& order, std::int64_t row0, const float* origin, std::int64_t images,
                       std::int64_t rows, std::int64_t cols, std::int64_t image_stride, std::int64_t row_step,
                       std::int64_t col_step, std::int64_t row_stride, std::int64_t col_stride, std::int64_t channels,
                       std::int64_t out_channels, std::int64_t point_stride, float* out) {
  for (std::int64_t n = 0; n < images; ++n)
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t x = 0; x < cols; ++x) {
        const std::int64_t row = row0 + n * rows + r;
        const float* const src = origin + n * image_stride + r * row_step + x * col_step;
        with_last_tile(order.last_h(row), order.last_w(x), [&](auto tile) {
          tile.template in<Kind>(src, row_stride, col_stride, channels, out + order.index(row, x) * out_channels,
                                 point_stride);
        });
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
