// Minimal filtering of 3-tap kernels at stride 2.
//
// The taps meet the two phases of the input separately: y[q] = w0 o[q] + w2 o[q+1] + w1 e[q], a two-tap stride-1
// convolution over one phase and a one-tap one over the other. The two taps run as F(M, 2) with the points 0, 1 (, -1),
// infinity; the single tap is a plain product. Over M outputs that is 2M + 1 products for 3M, in two dimensions
// (2M + 1)^2 for 9 M^2: 1.65 times fewer at M = 3, 1.44 at M = 2. Every transform is made of additions (the halves sit
// in the weights), so the error stays close to the direct sum's.
//
// The transposed direction has the same products: its odd outputs are the single tap, its even ones F(M, 2).
//
// Products with the same weight are one matrix product: in one dimension the M single taps share w1, so there are
// `kDistinct` = D weights, D^2 in two dimensions, with 1, M or M^2 rows a tile.
#pragma once

#include "simd.h"

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

}  // namespace lmser::LMSER_ISA
