// The last tile of a row or a column of F(4, 3), where 2 or 3 of its 4 outputs are needed alone (winograd_order.h).
#pragma once

#include "rows.h"
#include "winograd_order.h"
#include "winograd_six_points.h"

namespace lmser::LMSER_ISA {

// What is taken to points: the input going up or going down, or the small side of a weight's gradient.
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

}  // namespace lmser::LMSER_ISA
