// From tensors to the settling kernels: what they are given, what the device offers, how they are launched.
#pragma once

#include <array>
#include <mutex>

#include "launch.cuh"
#include "settle_place.cuh"

namespace lmser {

using Tensors = std::vector<Tensor>;
using Maybe = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

inline void check(cudaError_t error, const char* what) { check(error, "settle_persistent", what); }

// The kernels of one kind, by the samples that a warp takes at once: `Kernels<T>::of<S>()`.
template <class T>
constexpr std::array<int, sizeof(T) == 4 ? 4 : 2> kTiles{};
template <>
constexpr std::array<int, 4> kTiles<float>{1, 2, 4, 8};
template <>
constexpr std::array<int, 2> kTiles<double>{1, 2};

template <class Kernels>
auto kernel_of(int tile) {
  if (tile == 1) return Kernels::template of<1>();
  if (tile == 2) return Kernels::template of<2>();
  if constexpr (sizeof(typename Kernels::Value) == 4) {
    if (tile == 4) return Kernels::template of<4>();
    if (tile == 8) return Kernels::template of<8>();
  }
  STD_TORCH_CHECK(false, "settle_persistent: no kernel for tiles of ", tile, " samples");
}

template <class Kernels, class Arguments>
void launch(const SettlePlan& plan, bool together, cudaStream_t stream, const Arguments& a) {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(plan.groups * plan.cluster)), config.blockDim = dim3(kSettleThreads);
  config.dynamicSmemBytes = std::size_t(plan.shared_bytes), config.stream = stream, config.attrs = attributes;
  if (plan.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {unsigned(plan.cluster), 1, 1};
  }
  if (together) {  // refused, not stuck, where the groups cannot run at the same time
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel_of<Kernels>(plan.tile), a), "launch");
}

// What this device offers the kernels; asked once.
template <class Kernels>
SettleDevice device_of(int index) {
  using T = typename Kernels::Value;
  constexpr int kDevices = 64;
  static std::mutex mutex;
  static std::array<SettleDevice, kDevices> known;
  STD_TORCH_CHECK(index >= 0 && index < kDevices, "settle_persistent: device ", index, " is beyond the last, ",
                  kDevices - 1);
  const std::lock_guard<std::mutex> lock(mutex);
  SettleDevice& d = known[index];
  if (!d.clusters.empty()) return d;
  int shared = 0, processors = 0, major = 0;
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index), "shared memory");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index), "multiprocessors");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "compute capability");
  for (const int tile : kTiles<T>)
    check(cudaFuncSetAttribute(kernel_of<Kernels>(tile), cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
          "shared memory");
  SettleDevice found{shared, {processors}};
  // Code for earlier devices knows no clusters, on whatever device it is made ready for.
  cudaFuncAttributes code{};
  check(cudaFuncGetAttributes(&code, kernel_of<Kernels>(kTiles<T>.back())), "kernel");
  for (unsigned blocks = 2; major >= 9 && code.ptxVersion >= 90 && blocks <= 8; blocks *= 2) {
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension, attribute.val.clusterDim = {blocks, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks), config.blockDim = dim3(kSettleThreads);
    config.dynamicSmemBytes = std::size_t(shared), config.attrs = &attribute, config.numAttrs = 1;
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, kernel_of<Kernels>(kTiles<T>.back()), &config) != cudaSuccess)
      clusters = 0, cudaGetLastError();  // a size that this device does not take
    found.clusters.push_back(clusters);
  }
  return d = found;
}

template <class T>
Strided<T> strided(const Tensor& t, const char* name, const Tensor& first, std::int64_t n, std::int64_t c) {
  check_like(t, name, first, "states[0]");
  const View v = view_of(t, name);
  STD_TORCH_CHECK(v.n == n && v.c == c && v.h == 1 && v.w == 1, name, " has shape ", shape_text(t), "; expected (", n,
                  ", ", c, ", 1, 1)");
  return {static_cast<const T*>(v.data), v.sn, v.sc};
}
template <class T>
Strided<T> maybe(const Maybe& t, const char* name, const Tensor& first, std::int64_t n, std::int64_t c) {
  return t ? strided<T>(*t, name, first, n, c) : Strided<T>{};
}
// Nothing where the tensor is empty.
template <class T>
Strided<T> given(const Tensor& t, const char* name, const Tensor& first, std::int64_t n, std::int64_t c) {
  return t.numel() ? strided<T>(t, name, first, n, c) : Strided<T>{};
}

inline Tensor empty_of(const Tensor& like, const std::vector<std::int64_t>& size, ScalarType dtype) {
  return torch::stable::empty(Sizes(size.data(), size.size()), dtype, std::nullopt, like.device());
}
// (sweeps, N, C, 1, 1) as the CPU's: channels-last.
inline Tensor empty_readouts(const Tensor& like, std::int64_t sweeps, std::int64_t n, std::int64_t c) {
  return torch::stable::transpose(empty_of(like, {sweeps, n, 1, 1, c}, like.scalar_type()), 2, 4);
}

inline SettleShape shape_of(const Tensors& states, const Tensors& weights, const Tensors& reverse, bool up_down,
                            bool together) {
  STD_TORCH_CHECK(!weights.empty() && states.size() == weights.size() + 1,
                  "settle_persistent: expected one state more than weights, got ", states.size(), " and ",
                  weights.size());
  STD_TORCH_CHECK(reverse.empty() || reverse.size() == weights.size(), "reverse_weights: expected ", weights.size(),
                  " or none, got ", reverse.size());
  const DType dtype = dtype_of(states[0], "states[0]");
  STD_TORCH_CHECK(dtype == DType::f32 || dtype == DType::f64, "states must be float32 or float64");
  SettleShape s;
  for (const Tensor& t : states) s.sizes.push_back(view_of(t, "states").c);
  s.samples = states[0].size(0), s.itemsize = int(states[0].element_size());
  s.up_down = up_down, s.together = together;
  return s;
}

// The weights (C_above, C_below) of every edge packed for the directions up and down, in memory that is returned.
template <class T, class Arguments>
Tensor packed(Arguments& a, const SettleShape& shape, const Tensors& up, const Tensors& down, const Tensor& like,
              cudaStream_t stream) {
  std::vector<Strided<T>> u, d;
  for (int e = 0; e + 1 < a.layers; ++e) {
    u.push_back(strided<T>(up[e], "weights", like, shape.sizes[e + 1], shape.sizes[e]));
    d.push_back(strided<T>(down[e], "weights", like, shape.sizes[e + 1], shape.sizes[e]));
  }
  Tensor to = empty_1d(like, settle_packed_values(shape.sizes));
  const SettlePacking<T> p = settle_packing(a, u.data(), d.data(), static_cast<T*>(to.data_ptr()));
  settle_pack_kernel<T><<<dim3(64, unsigned(p.count)), 256, 0, stream>>>(p);
  check_launch("settle_persistent, weights");
  return to;
}

// (N, C, 1, 1) of each layer as the CPU's: channels-last.
inline Tensors empty_states(const Tensor& like, const SettleShape& shape) {
  Tensors out;
  for (const std::int64_t c : shape.sizes) out.push_back(empty_4d(like, true, shape.samples, c, 1, 1));
  return out;
}

inline void check_fits(const SettlePlan& plan, const SettleShape& shape) {
  STD_TORCH_CHECK(plan.fits, "settle_persistent: ", shape.samples, " samples of ", shape.sizes.size(),
                  " layers do not fit on this device at once; settle_persistent_fits tells beforehand");
}

inline bool up_down_of(const std::string& order) {
  STD_TORCH_CHECK(order == "up_down" || order == "odd_even", "order is '", order, "'; expected up_down or odd_even");
  return order == "up_down";
}

}  // namespace lmser
