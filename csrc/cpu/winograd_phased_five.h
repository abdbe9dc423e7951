// Minimal filtering of 5-tap kernels at stride 2.
//
// As with 3 taps (winograd_phased.h) the two phases of the input are met separately: y[q] = w0 o[q] + w2 o[q+1] + w4
// o[q+2] + w1 e[q] + w3 e[q+1], three taps over one phase and two over the other. They run as F(2, 3), with the points
// 0, 1, -1 and infinity, and F(2, 2), with 0, 1 and infinity: 7 products for 10, in two dimensions 49 for 100. The
// transposed direction has the same products: its odd outputs are the two taps, its even ones the three.
#pragma once

#include "winograd_phased.h"

namespace lmser::LMSER_ISA {

// One dimension. Points 0 .. 3 are those of F(2, 3), 4 .. 6 those of F(2, 2); every one has a weight of its own.
struct PhasedFive {
  using Two = Phased<2>;
  static constexpr bool stride1 = false;
  static constexpr int taps = 5, points = 7, distinct = 7, up_window = 7, down_window = 4, small = 2, most_copies = 1;
  static constexpr int outputs(bool down) { return down ? 4 : 2; }

  template <class V>
  static LMSER_HD void three_taps_in(const V (&x)[4], V* t) {
    t[0] = x[0] - x[2], t[1] = x[1] + x[2], t[2] = x[2] - x[1], t[3] = x[3] - x[1];
  }
  template <class V>
  static LMSER_HD void three_taps_out(const V* m, V (&y)[2]) {
    y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] + m[3];
  }

  // The convolution: window of 7 inputs -> points; points -> 2 outputs.
  template <class V>
  static LMSER_HD void up_in(const V (&x)[7], V (&t)[7]) {
    const V o[4] = {x[0], x[2], x[4], x[6]}, e[3] = {x[1], x[3], x[5]};
    three_taps_in(o, t), Two::two_taps_in(e, t + 4);
  }
  template <class V>
  static LMSER_HD void up_out(const V (&m)[7], V (&y)[2]) {
    V e[2];
    three_taps_out(m, y), Two::two_taps_out(m + 4, e);
    y[0] = y[0] + e[0], y[1] = y[1] + e[1];
  }
  // The transposed one: window of 4 inputs -> points; points -> 4 outputs, the three taps first.
  template <class V>
  static LMSER_HD void down_in(const V (&z)[4], V (&t)[7]) {
    const V last[3] = {z[1], z[2], z[3]};
    three_taps_in(z, t), Two::two_taps_in(last, t + 4);
  }
  template <class V>
  static LMSER_HD void down_out(const V (&m)[7], V (&y)[4]) {
    V even[2], odd[2];
    three_taps_out(m, even), Two::two_taps_out(m + 4, odd);
    for (int k = 0; k < 2; ++k) y[2 * k] = even[k], y[2 * k + 1] = odd[k];
  }
  // The gradient of up_out, for the weight gradient.
  template <class V>
  static LMSER_HD void small_in(const V (&g)[2], V (&t)[7]) {
    t[0] = g[0], t[1] = g[0] + g[1], t[2] = g[0] - g[1], t[3] = g[1];
    Two::two_taps_out_adjoint(g, t + 4);
  }
  // Weights, in the order in which they meet ascending input -> values at the points; and the adjoint, to the taps.
  template <class V>
  static LMSER_HD void weights(const V (&w)[5], V (&t)[7]) {
    const V ends = (w[0] + w[4]) * 0.5f, middle = w[2] * 0.5f;
    t[0] = w[0], t[1] = ends + middle, t[2] = ends - middle, t[3] = w[4];
    t[4] = w[1], t[5] = w[1] + w[3], t[6] = w[3];
  }
  template <class V>
  static LMSER_HD void weights_adjoint(const V (&t)[7], V (&w)[5]) {
    const V both = (t[1] + t[2]) * 0.5f;
    w[0] = t[0] + both, w[2] = (t[1] - t[2]) * 0.5f, w[4] = t[3] + both;
    w[1] = t[4] + t[5], w[3] = t[5] + t[6];
  }

  static constexpr int copies(int) { return 1; }
  static constexpr int rows_before(int d, int e) { return d * 7 + e; }
  static constexpr int row_of(int p, int q) { return p * 7 + q; }
};

}  // namespace lmser::LMSER_ISA
