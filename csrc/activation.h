// Each activation once: f(z), its derivative read off the output h = f(z), and nothing else.
//
// Written for one value of type V, where V is a scalar (host or device) or a GCC vector (CPU kernels):
// everything is branch-free selects, so the same text serves both. NaN propagates as in eager PyTorch.
#pragma once

#if defined(__CUDACC__)
#define LMSER_HD __host__ __device__ __forceinline__
#else
#define LMSER_HD inline __attribute__((always_inline))
#endif

namespace lmser {

enum class Activation : int { identity, relu, leaky_relu, sigmoid, tanh, leaky_sigmoid };

// `Math` supplies exp-based functions for V: static V sigmoid(V), static V tanh(V).
template <Activation A, class V, class S, class Math>
LMSER_HD V activate(V z, S slope) {
  if constexpr (A == Activation::identity) {
    return z;
  } else if constexpr (A == Activation::relu) {
    return z < S(0) ? Math::splat(S(0)) : z;
  } else if constexpr (A == Activation::leaky_relu) {
    return z > S(0) ? z : z * slope;
  } else if constexpr (A == Activation::sigmoid) {
    return Math::sigmoid(z);
  } else if constexpr (A == Activation::tanh) {
    return Math::tanh(z);
  } else {
    const V above = (z - S(1)) * slope + S(1);
    const V below = (z + S(1)) * slope - S(1);
    return z > S(1) ? above : (z < S(-1) ? below : z);
  }
}

// g f'(z) from h = f(z). Subgradients at the kinks: relu'(0) = 0, leaky_relu'(0) = slope (PyTorch's),
// leaky_sigmoid'(+-1) = 1. Selected rather than multiplied where f' is 0, as PyTorch does: nothing flows through a
// dead unit, NaN and Inf included.
template <Activation A, class V, class S, class Math>
LMSER_HD V pull_back(V g, V h, S slope) {
  if constexpr (A == Activation::identity) {
    return g;
  } else if constexpr (A == Activation::relu) {
    return h <= S(0) ? Math::splat(S(0)) : g;
  } else if constexpr (A == Activation::leaky_relu) {
    return h > S(0) ? g : g * slope;
  } else if constexpr (A == Activation::sigmoid) {
    return g * ((S(1) - h) * h);
  } else if constexpr (A == Activation::tanh) {
    return g * (S(1) - h * h);
  } else {
    const V outside = g * slope;
    return h > S(1) ? outside : (h < S(-1) ? outside : g);
  }
}

}  // namespace lmser
