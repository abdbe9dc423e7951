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

template <class T, class Arguments>
__device__ SettlePlace<T> settle_place(const Arguments& a) {
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

template <class Arguments>
__device__ void settle_meet_cluster(const Arguments& a) {
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
template <class T, class Arguments>
__device__ T put_in_evidence(const Arguments& a, std::int64_t n, int c, T value) {
  if (!a.evidence.data) return value;
  const T share = read(a.hold, n, c), given = read(a.evidence, n, c);
  const T mixed = share * given + (T(1) - share) * value;
  return share == T(1) ? given : (share == T(0) ? value : mixed);
}

// What stays on chip of this block's slices of the weights; and nothing has moved yet.
template <class T, class Arguments>
__device__ void settle_load_weights(const Arguments& a, const SettlePlace<T>& p) {
  const int threads = int(blockDim.x);
  for (int i = threadIdx.x; i < a.group; i += threads)
    p.moved[i] = p.moved[a.group + i] = 0, p.stopped[i] = 0, p.steps[i] = 0;
  for (int l = 0; l < a.layers; ++l) {
    const auto& layer = a.layer[l];
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

// A weight as both directions read it.
template <class T>
__global__ void settle_pack_kernel(const __grid_constant__ SettlePacking<T> a) {
  const auto& m = a.matrix[blockIdx.y];
  const std::int64_t values = std::int64_t(m.rows) * m.padded;
  for (std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < values;
       i += std::int64_t(gridDim.x) * blockDim.x) {
    const std::int64_t row = i / m.padded, column = i % m.padded;
    m.to[i] = column < m.columns ? m.from[row * m.row + column * m.column] : T(0);
  }
}

}  // namespace lmser
