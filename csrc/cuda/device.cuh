// What device code asks of its surroundings, beyond the CUDA language: clusters, words that blocks share, four values
// at once, exact functions. Tests compile the same kernels for the host, where an emulator answers.
#pragma once

#if defined(LMSER_EMULATED)
#include "cuda_emulator.h"
#else
#include <cuda_runtime.h>
#endif

#include <cstdint>
#include <cstdlib>

#include "../activation.h"

namespace lmser {

template <class T>
struct DeviceMath {
  static __device__ T splat(T x) { return x; }
  static __device__ T sigmoid(T z) { return T(1) / (T(1) + exp(-z)); }
  static __device__ T tanh(T z) { return ::tanh(z); }
};

#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
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

// Four neighbouring values; moved 16 bytes at a time.
template <class T>
struct alignas(16) Four {
  T v[4];
};

// Magnitudes as bits that order as the values do, NaN above everything.
template <class T>
struct Magnitude;
template <>
struct Magnitude<float> {
  using Bits = unsigned;
  static __device__ Bits of(float x) { return __float_as_uint(x) & 0x7fffffffu; }
  static __device__ float value(Bits b) { return __uint_as_float(b); }
};
template <>
struct Magnitude<double> {
  using Bits = unsigned long long;
  static __device__ Bits of(double x) { return Bits(__double_as_longlong(x)) & 0x7fffffffffffffffull; }
  static __device__ double value(Bits b) { return __longlong_as_double((long long)b); }
};

// bfloat16, rounded to the nearest, ties to even.
__device__ inline std::uint16_t bf16_bits(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  if (x != x) return 0x7fc0;
  return std::uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ inline float bf16_value(std::uint16_t bits) { return __uint_as_float(std::uint32_t(bits) << 16); }

#if defined(LMSER_EMULATED)

__device__ inline unsigned char* dynamic_shared() { return emulator::dynamic_shared(); }
__device__ inline unsigned cluster_rank() { return emulator::cluster_rank(); }
__device__ inline void cluster_sync() { emulator::cluster_sync(); }
template <class T>
__device__ T* at_rank(T* own, unsigned rank) {
  return static_cast<T*>(emulator::at_rank(own, rank));
}
__device__ inline std::uint64_t nanoseconds() { return 0; }  // it finds by itself that nothing moves any more
[[noreturn]] inline void give_up() { std::abort(); }
__device__ inline void announce(unsigned* word) { atomicAdd(word, 1u); }
__device__ inline unsigned announced(const unsigned* word) {
  emulator::spin();
  return *word;
}

#else

__device__ inline unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

// Before sm_90 a block is a cluster of its own.
__device__ inline unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}
// What any thread of the cluster wrote before, every thread of it reads after.
__device__ inline void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
}
// The same place in the shared memory of another block of the cluster.
template <class T>
__device__ T* at_rank(T* own, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  std::uint64_t there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(reinterpret_cast<std::uint64_t>(own)), "r"(rank));
  return reinterpret_cast<T*>(there);
#else
  return own;
#endif
}
__device__ inline std::uint64_t nanoseconds() {
  std::uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}
// Ends the launch with an error.
__device__ inline void give_up() { __trap(); }
// One more block has come; whoever sees it there sees what that thread wrote before.
__device__ inline void announce(unsigned* word) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(word) : "memory");
}
__device__ inline unsigned announced(const unsigned* word) {
  unsigned seen;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(word) : "memory");
  return seen;
}

#endif

}  // namespace lmser
