// Between stable-ABI tensors and the kernels' plain views, with the checks that every operator makes.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <vector>

#include "cpu/plan.h"

namespace lmser {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<std::int64_t>;

inline constexpr int kActivations = 6;
inline constexpr const char* kActivationNames[kActivations] = {"identity", "relu", "leaky_relu",
                                                               "sigmoid",  "tanh", "leaky_sigmoid"};
inline Activation activation_named(const std::string& name) {
  for (int i = 0; i < kActivations; ++i)
    if (name == kActivationNames[i]) return Activation(i);
  STD_TORCH_CHECK(false, "activation is '", name,
                  "'; expected identity, relu, leaky_relu, sigmoid, tanh or leaky_sigmoid");
}

inline DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16");
  }
}

inline std::string shape_text(const Tensor& t) {
  std::string s = "(";
  for (std::int64_t i = 0; i < t.dim(); ++i) s += (i ? ", " : "") + std::to_string(t.size(i));
  return s + ")";
}

inline View view_of(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4, name, " has shape ", shape_text(t), "; expected 4 dimensions (N, C, H, W)");
  return {t.data_ptr(), dtype_of(t, name), t.size(0),   t.size(1),   t.size(2),
          t.size(3),    t.stride(0),       t.stride(1), t.stride(2), t.stride(3)};
}

// Images [n0, n1) of a view; none of none.
inline View images_of(View v, std::int64_t n0, std::int64_t n1) {
  if (!v) return v;
  const std::int64_t bytes = v.dtype == DType::f64 ? 8 : v.dtype == DType::f32 ? 4 : 2;
  v.data = static_cast<char*>(v.data) + bytes * v.sn * n0;
  v.n = n1 - n0;
  return v;
}

inline void check_like(const Tensor& t, const char* name, const Tensor& first, const char* first_name) {
  STD_TORCH_CHECK(t.is_cpu() == first.is_cpu(), name, " and ", first_name, " are on different devices");
  STD_TORCH_CHECK(t.scalar_type() == first.scalar_type(), name, " and ", first_name, " have different dtypes");
}
inline View like_view(const std::optional<Tensor>& t, const char* name, const Tensor& first, const char* first_name) {
  if (!t) return {};
  check_like(*t, name, first, first_name);
  View v = view_of(*t, name);
  static char nothing;
  if (!v.data) v.data = &nothing;  // an empty tensor is still there
  return v;
}
inline View same_shape_view(const std::optional<Tensor>& t, const char* name, const Tensor& first,
                            const char* first_name, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) {
  const View v = like_view(t, name, first, first_name);
  STD_TORCH_CHECK(!v || (v.n == n && v.c == c && v.h == h && v.w == w), name, " has shape ", shape_text(*t),
                  "; expected the output's (", n, ", ", c, ", ", h, ", ", w, ")");
  return v;
}
inline View bias_view(const std::optional<Tensor>& t, const Tensor& first, const char* first_name,
                      std::int64_t channels) {
  if (!t) return {};
  check_like(*t, "bias", first, first_name);
  STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == channels, "bias has shape ", shape_text(*t), "; expected (", channels,
                  ",)");
  return {t->data_ptr(), dtype_of(*t, "bias"), 1, channels, 1, 1, 0, t->stride(0), 0, 0};
}

// Channels-last in, channels-last out; a tensor that is both or neither gives a plainly contiguous result. Of one
// channel every layout is the same memory: there the stride of the channel axis tells what was meant.
inline bool channels_last(const View& v) {
  if (v.n * v.c * v.h * v.w == 0 || v.h * v.w == 1) return false;
  const auto matches = [&](std::int64_t sn, std::int64_t sc, std::int64_t sh, std::int64_t sw) {
    return (v.n == 1 || v.sn == sn) && v.sc == sc && (v.h == 1 || v.sh == sh) && (v.w == 1 || v.sw == sw);
  };
  return matches(v.h * v.w * v.c, 1, v.w * v.c, v.c) && !matches(v.c * v.h * v.w, v.h * v.w, v.w, 1);
}
// The first of a source and what joins it whose layout can be told. It cannot of a map of one pixel, nor of one channel
// that lies plainly contiguous.
inline const View& telling(const View& source, const View& add, const View& gate = {}) {
  const auto tells = [](const View& v) { return v && v.h * v.w != 1 && (v.c != 1 || v.sc == 1); };
  return tells(source) ? source : tells(add) ? add : tells(gate) ? gate : source;
}
// Uninitialised, on the device and of the dtype of `like`; large ones on the CPU from the output store.
Tensor empty_4d(const Tensor& like, bool last, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w);
inline Tensor empty_1d(const Tensor& like, std::int64_t n) {
  const std::int64_t size[] = {n};
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(size, 1), like.scalar_type(), std::nullopt,
                              like.device());
}

struct Pair {
  int h, w;
};
inline constexpr std::int64_t kMostOfPair = (1 << 20) - 1;
inline Pair pair_of(const Ints& v, const char* name, std::int64_t least) {
  STD_TORCH_CHECK(v.size() == 2, name, " has ", v.size(), " values; expected 2");
  STD_TORCH_CHECK(v[0] >= least && v[1] >= least && v[0] <= kMostOfPair && v[1] <= kMostOfPair, name, " is (", v[0],
                  ", ", v[1], "); expected at least ", least, " and at most ", kMostOfPair);
  return {int(v[0]), int(v[1])};
}

}  // namespace lmser
