// Minimal filtering of 3- and 5-tap kernels at stride 1: F(4, 3) and F(2, 5).
#pragma once

#include "simd.h"

namespace lmser::LMSER_ISA {

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

}  // namespace lmser::LMSER_ISA
