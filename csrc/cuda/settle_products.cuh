// A slice of a weight times the states of a few samples, by one warp.
//
// A warp takes four rows of the weight at once: its lanes share the sum, then each holds one value.
#pragma once

#include "settle_place.cuh"

namespace lmser {

constexpr unsigned kEveryLane = 0xffffffffu;

// Sums of products along `width` of four rows with S samples, sample after sample, each lane with its share of them.
template <class T, int S>
__device__ __forceinline__ void settle_dots(const T* weights, const int (&row)[kSettleRows], const T* states,
                                            const int (&sample)[S], int width, int lane, T (&sums)[kSettleRows * S]) {
#pragma unroll(S == 1 && sizeof(T) == 4 ? 2 : 1)
  for (int k = 4 * lane; k < width; k += 128) {
    Four<T> w[kSettleRows];
#pragma unroll
    for (int r = 0; r < kSettleRows; ++r) w[r] = *reinterpret_cast<const Four<T>*>(weights + row[r] + k);
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const Four<T> h = *reinterpret_cast<const Four<T>*>(states + sample[s] + k);
#pragma unroll
      for (int r = 0; r < kSettleRows; ++r)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[s * kSettleRows + r] += w[r].v[i] * h.v[i];
    }
  }
}

// Adds V values over the lanes of a warp, halving what a lane holds at each step: value i ends in the 32 / V lanes from
// i * 32 / V on.
template <class T, int V, int kOffset = 16>
__device__ __forceinline__ T settle_add_lanes(const T (&v)[V], int lane) {
  if constexpr (V > 1) {
    const bool upper = lane & kOffset;
    T half[V / 2];
#pragma unroll
    for (int i = 0; i < V / 2; ++i) {
      const T keep = upper ? v[i + V / 2] : v[i], send = upper ? v[i] : v[i + V / 2];
      half[i] = keep + __shfl_xor_sync(kEveryLane, send, kOffset);
    }
    return settle_add_lanes<T, V / 2, kOffset / 2>(half, lane);
  } else if constexpr (kOffset > 0) {
    const T sum[1] = {v[0] + __shfl_xor_sync(kEveryLane, v[0], kOffset)};
    return settle_add_lanes<T, 1, kOffset / 2>(sum, lane);
  } else {
    return v[0];
  }
}

// Rows [row0, row0 + 4) of this block's slice of a layer, for samples from sample0 on: what one warp computes.
struct SettleTile {
  int slice, rows, row0, sample0;
};
// The block's slice of a layer in such tiles.
template <class Layer, class T>
struct SettleTiles {
  int slice, rows, row_tiles, count, samples;
  __device__ SettleTiles(const Layer& layer, const SettlePlace<T>& p, int samples_each) : samples(samples_each) {
    slice = p.rank * layer.own;
    const int left = layer.channels - slice;
    rows = left < layer.own ? left : layer.own;
    row_tiles = rows > 0 ? (rows + kSettleRows - 1) / kSettleRows : 0;
    count = row_tiles * ((p.samples + samples - 1) / samples);
  }
  __device__ SettleTile operator[](int i) const {
    return {slice, rows, i % row_tiles * kSettleRows, i / row_tiles * samples};
  }
};

// What the tile is given by the vectors at `from_at`, of `width` values a sample, in the lanes that finish it.
template <class T, int S>
__device__ T settle_drive(const SettleMatrix<T>& m, int from_at, int width, const SettlePlace<T>& p,
                          const SettleTile& tile) {
  const int slice = tile.slice, rows = tile.rows, row0 = tile.row0, sample0 = tile.sample0;
  int row[kSettleRows], sample[S];
  // Rows and samples beyond the last are the last again; nobody reads their sums.
#pragma unroll
  for (int r = 0; r < kSettleRows; ++r) row[r] = (row0 + r < rows ? row0 + r : rows - 1) * width;
#pragma unroll
  for (int s = 0; s < S; ++s) sample[s] = (sample0 + s < p.samples ? sample0 + s : p.samples - 1) * width;
  T sums[kSettleRows * S];
#pragma unroll
  for (int i = 0; i < kSettleRows * S; ++i) sums[i] = T(0);
  const T* const states = p.values + from_at;
  if (row0 < m.resident)
    settle_dots<T, S>(p.values + m.at, row, states, sample, width, p.lane, sums);
  else
    settle_dots<T, S>(m.packed + std::int64_t(slice) * width, row, states, sample, width, p.lane, sums);
  return settle_add_lanes<T, kSettleRows * S>(sums, p.lane);
}

// `value`, in the lanes that finish the tile, to the vectors at `to_at` in every block of the cluster: the four values
// of a sample at once.
template <class T, int S, class Arguments>
__device__ void settle_spread(const Arguments& a, const SettlePlace<T>& p, const SettleTile& tile, T value, int to_at,
                              int width) {
  constexpr int kStep = 8 / S;
  __syncwarp();
  for (int pair0 = 0; pair0 < S * a.cluster; pair0 += 32) {
    const int pair = pair0 + p.lane, mine = pair / a.cluster % S;
    Four<T> four;
#pragma unroll
    for (int i = 0; i < kSettleRows; ++i) four.v[i] = __shfl_sync(kEveryLane, value, (mine * kSettleRows + i) * kStep);
    const int to = tile.sample0 + mine;
    if (pair < S * a.cluster && to < p.samples && !p.stopped[to]) {
      T* const own = p.values + to_at + to * width + tile.slice + tile.row0;
      T* const there = a.cluster > 1 ? at_rank(own, unsigned(pair % a.cluster)) : own;
      *reinterpret_cast<Four<T>*>(there) = four;
    }
  }
}

}  // namespace lmser
