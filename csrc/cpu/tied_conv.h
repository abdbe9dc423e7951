// What the tied convolution's operators and the direct way into its kernels (direct.cpp) share, on plain views.
#pragma once

#include "../tensor.h"

namespace lmser {

// x is the big side (N, C_in, H, W) after pooling, y the small one. Throws where the kernel is larger than the padded
// x.
Geometry conv_geometry(std::int64_t n, std::int64_t c_in, std::int64_t h, std::int64_t w, std::int64_t c_out,
                       std::int64_t kh, std::int64_t kw, Pair stride, Pair pad);
// The same edge in the other direction.
Geometry transposed(Geometry g);

inline Source source_of(const View& v) {
  Source s;
  s.base = v;
  return s;
}
inline Sink sink_of(const View& v) {
  Sink s;
  s.out = v;
  return s;
}
// The average over windows before a convolution, the spreading after a transposed one.
inline double mean_of(Pair window) { return 1.0 / (double(window.h) * window.w); }

// What flows back into the linear part: grad * f'(h) [* (gate > 0 ? 1 : gate_slope)] + grad_drive; with an identity and
// no gate the gradient itself.
struct Incoming {
  Source pre;    // without grad_drive; no base where there is no grad
  Source total;  // with it
  Incoming(const View& grad, const View& grad_drive, const View& h, const View& gate, Activation activation,
           double slope, double gate_slope);
};

// Where the four gradients go; a view without data is not wanted. Those of add and bias need `Incoming::pre`.
struct GradientViews {
  View input, weight, add, bias;
};

// One backward pass. `geometry` is that of the operator; `side` is its input, with `pool` and `scale` as what happens
// to it before (convolution); what happens to the incoming gradient after (transposed) is `in.total`'s.
void run_conv_backward(const Geometry& geometry, const Incoming& in, const Source& side, const View& weight,
                       const GradientViews& out);

}  // namespace lmser
