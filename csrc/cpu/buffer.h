// Memory for a call, and single values of any dtype read and written as the compute type.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "engine.h"

namespace lmser {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;
template <class T>
Buffer<T> allocate(std::int64_t values) {
  const std::size_t bytes = (std::size_t(std::max<std::int64_t>(values, 1)) * sizeof(T) + 63) / 64 * 64;
  void* p = std::aligned_alloc(64, bytes);
  if (!p) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(p));
}

template <class T>
const Kernels<T>& kernels_of(const InstructionSet& isa) {
  if constexpr (sizeof(T) == 4)
    return isa.f32;
  else
    return isa.f64;
}

inline float bf16_value(std::uint16_t b) {
  const std::uint32_t bits = std::uint32_t(b) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
template <class T>
T value_at(const View& v, std::int64_t i) {
  switch (v.dtype) {
    case DType::f32:
      return T(static_cast<const float*>(v.data)[i]);
    case DType::f64:
      return T(static_cast<const double*>(v.data)[i]);
    case DType::bf16:
      return T(bf16_value(static_cast<const std::uint16_t*>(v.data)[i]));
    case DType::f16:
      return T(float(static_cast<const _Float16*>(v.data)[i]));
  }
  __builtin_unreachable();
}
template <class T>
constexpr DType kDTypeOf = sizeof(T) == 4 ? DType::f32 : DType::f64;

template <class T>
void store_value(const View& v, std::int64_t i, T x) {
  switch (v.dtype) {
    case DType::f32:
      static_cast<float*>(v.data)[i] = float(x);
      return;
    case DType::f64:
      static_cast<double*>(v.data)[i] = double(x);
      return;
    case DType::f16:
      static_cast<_Float16*>(v.data)[i] = _Float16(float(x));
      return;
    case DType::bf16: {
      const float f = float(x);
      std::uint32_t bits;
      std::memcpy(&bits, &f, sizeof bits);
      static_cast<std::uint16_t*>(v.data)[i] =
          f != f ? 0x7FC0 : std::uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
      return;
    }
  }
}

// A bias as values of T.
template <class T>
Buffer<T> dense_bias(const View& bias) {
  if (!bias) return {};
  Buffer<T> copy = allocate<T>(bias.c);
  for (std::int64_t i = 0; i < bias.c; ++i) copy[i] = value_at<T>(bias, i * bias.sc);
  return copy;
}

}  // namespace lmser
