// Vectors of one instruction set, by the compiler's vector extensions. Included once per instruction set,
// inside the namespace that the including file names (LMSER_ISA): nothing here may be shared between them.
//
// LMSER_VECTOR_BYTES is the register width. Products and sums contract to fused multiply-adds
// (-ffp-contract=fast) where the instruction set has them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../activation.h"

namespace lmser::LMSER_ISA {

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(LMSER_VECTOR_BYTES)));
  typedef T unaligned __attribute__((vector_size(LMSER_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
  static constexpr int lanes = LMSER_VECTOR_BYTES / sizeof(T);
};
template <class T>
using Vec = typename VectorOf<T>::type;
template <class T>
inline constexpr int kLanes = VectorOf<T>::lanes;
// Numbers of lanes, for __builtin_shuffle: of two registers those of the second come after the first one's.
template <class T>
struct IndexOf {
  typedef std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t> type
      __attribute__((vector_size(LMSER_VECTOR_BYTES)));
};
template <class T>
using LaneIndex = typename IndexOf<T>::type;

template <class T>
LMSER_HD Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(p);
}
template <class T>
LMSER_HD void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(p) = v;
}
template <class T>
LMSER_HD Vec<T> splat(T x) {
  return x - Vec<T>{};  // of which the compiler knows that it is x, whatever its sign
}
// Keeps what was loaded in its register, where the compiler would load it again for every use.
template <class T>
LMSER_HD Vec<T> loaded_once(const T* p) {
  Vec<T> v = load<T>(p);
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
  return v;
}
// The same of one value in all lanes.
template <class T>
LMSER_HD Vec<T> repeated_once(const T* p) {
  Vec<T> v = splat<T>(*p);
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
  return v;
}
// The first `n` lanes (0 < n < lanes), zero elsewhere on loading: never touches what lies behind.
template <class T>
LMSER_HD Vec<T> load_partial(const T* p, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return (Vec<T>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
  else
    return (Vec<T>)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
#elif defined(__AVX2__)
  // Values written one by one and read as a register would wait for every write to reach the cache.
  alignas(64) static constexpr std::int32_t kFirst[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  const __m256i lanes = _mm256_loadu_si256((const __m256i*)(kFirst + 8 - n * int(sizeof(T) / 4)));
  if constexpr (sizeof(T) == 4)
    return (Vec<T>)_mm256_maskload_ps(p, lanes);
  else
    return (Vec<T>)_mm256_maskload_pd(p, lanes);
#else
  alignas(LMSER_VECTOR_BYTES) T buffer[kLanes<T>] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return load<T>(buffer);
#endif
}
template <class T>
LMSER_HD void store_partial(T* p, Vec<T> v, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
  else
    _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)v);
#else
  // Masked stores of AVX2 are slow where they are not slower still; pieces of a register that has just been written
  // are read back without a wait.
  alignas(LMSER_VECTOR_BYTES) T buffer[kLanes<T>];
  store<T>(buffer, v);
  int done = 0;
#pragma GCC unroll 4
  for (int piece = kLanes<T> / 2; piece; piece /= 2)
    if (n & piece) std::memcpy(p + done, buffer + done, sizeof(T) * piece), done += piece;
#endif
}

// x where it is not above (below) c, else c; NaN stays. One instruction, where a comparison and a blend are two.
LMSER_HD Vec<float> at_most(Vec<float> x, float c) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_min_ps(__mmask16(-1), _mm512_set1_ps(c), (__m512)x);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_min_ps(_mm256_set1_ps(c), (__m256)x);
#else
  return x > c ? splat(c) : x;
#endif
}
LMSER_HD Vec<float> at_least(Vec<float> x, float c) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_max_ps(__mmask16(-1), _mm512_set1_ps(c), (__m512)x);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_max_ps(_mm256_set1_ps(c), (__m256)x);
#else
  return x < c ? splat(c) : x;
#endif
}

// exp, sigmoid and tanh. float: exp by a polynomial after Cephes (expf), it and the sigmoid below 2 ulp where the
// result is normal; tanh by a rational function. double: the C library, lane by lane (float64 is for checking, not for
// speed).
template <class T>
struct Math;

template <>
struct Math<float> {
  using V = Vec<float>;
  typedef std::int32_t I __attribute__((vector_size(LMSER_VECTOR_BYTES)));
  static LMSER_HD V splat(float x) { return x - V{}; }
  static LMSER_HD V exp(V x) {
    const V given = x;
    x = at_least(at_most(x, 88.3762626647949f), -87.3365478515625f);
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
    const V shifted = x * 1.44269504088896341f + magic;
    const V n = shifted - magic;
    const V r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    V p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    I bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + (127 - 0x4B400000)) << 23;  // low bits of `shifted` hold n
    V scale;
    std::memcpy(&scale, &bits, sizeof scale);
    // Above the range to infinity, so that sigmoid(-inf) is exactly 0.
    return given > 88.3762626647949f ? splat(__builtin_inff()) : p * scale;
  }
  static LMSER_HD V sigmoid(V z) { return 1.0f / (exp(-z) + 1.0f); }
  // x P(x^2) / Q(x^2), fitted to the least relative error on [-9, 9] (2.1e-8); rounding leaves 4.2 ulp at most.
  static LMSER_HD V tanh(V z) {
    const V x = at_least(at_most(z, kTanhIsOne), -kTanhIsOne);
    const V s = x * x;
    V p = splat(1.333686181e-8f);
    p = p * s + 2.059628570e-5f;
    p = p * s + 3.494811839e-3f;
    p = p * s + 1.338037228e-1f;
    p = p * s + 1.0f;
    V q = splat(7.769289188e-7f);
    q = q * s + 3.284364469e-4f;
    q = q * s + 2.587402981e-2f;
    q = q * s + 4.671368769e-1f;
    q = q * s + 1.0f;
    return at_least(at_most(x * p / q, 1.0f), -1.0f);
  }

 private:
  static constexpr float kTanhIsOne = 9.5f;  // the quotient is above 1 there, however it was rounded
};

template <>
struct Math<double> {
  using V = Vec<double>;
  static LMSER_HD V splat(double x) { return x - V{}; }
  static V sigmoid(V z) {
    V r{};
    for (int i = 0; i < kLanes<double>; ++i) r[i] = 1.0 / (1.0 + __builtin_exp(-z[i]));
    return r;
  }
  static V tanh(V z) {
    V r{};
    for (int i = 0; i < kLanes<double>; ++i) r[i] = __builtin_tanh(z[i]);
    return r;
  }
};

template <Activation A, class T>
LMSER_HD Vec<T> act(Vec<T> z, T slope) {
  return activate<A, Vec<T>, T, Math<T>>(z, slope);
}
template <Activation A, class T>
LMSER_HD Vec<T> act_pull_back(Vec<T> g, Vec<T> h, T slope) {
  return pull_back<A, Vec<T>, T, Math<T>>(g, h, slope);
}

// Calls f with the activation as a compile-time constant.
template <class F>
LMSER_HD void with_activation(Activation a, F&& f) {
  switch (a) {
    case Activation::identity:
      return f.template operator()<Activation::identity>();
    case Activation::relu:
      return f.template operator()<Activation::relu>();
    case Activation::leaky_relu:
      return f.template operator()<Activation::leaky_relu>();
    case Activation::sigmoid:
      return f.template operator()<Activation::sigmoid>();
    case Activation::tanh:
      return f.template operator()<Activation::tanh>();
    case Activation::leaky_sigmoid:
      return f.template operator()<Activation::leaky_sigmoid>();
  }
}

}  // namespace lmser::LMSER_ISA
