// Where a thread of the settling kernel stands, the memory of its block, and what that begins with.
#pragma once

#include "device.cuh"
#include "settle_arguments.h"

namespace lmser {

// Where a thread stands, and the block's memory.
template <class T>
struct SettlePlace {
  using Bits = typename Magnitude<T>::Bits;
  int rank, lane, warp, warps, samples;
  std::int64_t group, first;  // the group, its first sample
  // change and largest value of each sample in this block's slices, and as every block of the cluster found them
  Bits *moved, *gathered;
  int *stopped, *steps, *decision;
  T* values;
};

template <class T>
__device__ SettlePlace<T> settle_place(const SettleArguments<T>& a) {
  SettlePlace<T> p;
  p.rank = a.cluster > 1 ? int(cluster_rank()) : 0;
  p.lane = int(threadIdx.x) % 32, p.warp = int(threadIdx.x) / 32, p.warps = int(blockDim.x) / 32;
  p.group = blockIdx.x / a.cluster, p.first = p.group * a.group;
  const std::int64_t left = a.samples - p.first;
  p.samples = int(left < a.group ? left : a.group);
  auto* words = reinterpret_cast<typename Magnitude<T>::Bits*>(dynamic_shared());
  p.moved = words, words += 2 * a.group;
  p.gathered = words, words += 4 * a.cluster * a.group;
  p.stopped = reinterpret_cast<int*>(words), words += a.group;
  p.steps = reinterpret_cast<int*>(words), words += a.group;
  p.decision = reinterpret_cast<int*>(words);
  p.values = reinterpret_cast<T*>(dynamic_shared()) + a.values_at;
  return p;
}

template <class T>
__device__ void settle_meet_cluster(const SettleArguments<T>& a) {
  if (a.cluster > 1)
    cluster_sync();
  else
    __syncthreads();
}

template <class T>
__device__ T read(const Strided<T>& s, std::int64_t n, int c) {
  return s.data[n * s.n + c * s.c];
}

// hold 1: evidence; 0: the value itself; between: their mixture.
template <class T>
__device__ T put_in_evidence(const SettleArguments<T>& a, std::int64_t n, int c, T value) {
  if (!a.evidence.data) return value;
  const T share = read(a.hold, n, c), given = read(a.evidence, n, c);
  const T mixed = share * given + (T(1) - share) * value;
  return share == T(1) ? given : (share == T(0) ? value : mixed);
}

template <class T>
__device__ void settle_load(const SettleArguments<T>& a, const SettlePlace<T>& p) {
  const int threads = int(blockDim.x);
  for (int i = threadIdx.x; i < a.group; i += threads)
    p.moved[i] = p.moved[a.group + i] = 0, p.stopped[i] = 0, p.steps[i] = 0;
  for (int l = 0; l < a.layers; ++l) {
    const SettleLayer<T>& layer = a.layer[l];
    for (int i = threadIdx.x; i < a.group * layer.padded; i += threads) {
      const int s = i / layer.padded, c = i % layer.padded;
      T value = T(0);
      if (s < p.samples && c < layer.channels && !a.adjoint) {
        value = read(layer.start, p.first + s, c);
        if (l == 0) value = put_in_evidence(a, p.first + s, c, value);
      }
      p.values[layer.state_at + i] = value;
    }
    const int from_row = p.rank * layer.own;
    for (const bool below : {true, false}) {
      const SettleMatrix<T>& m = below ? layer.below : layer.above;
      if (!m.packed) continue;
      const int width = (below ? a.layer[l - 1] : a.layer[l + 1]).padded;
      const int left = layer.channels - from_row, rows = left < m.resident ? left : m.resident;
      const auto* from = reinterpret_cast<const Four<T>*>(m.packed + std::int64_t(from_row) * width);
      auto* to = reinterpret_cast<Four<T>*>(p.values + m.at);
      for (int i = threadIdx.x; i < rows * (width / 4); i += threads) to[i] = from[i];
    }
  }
}

}  // namespace lmser
