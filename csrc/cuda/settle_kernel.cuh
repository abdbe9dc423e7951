// A whole solve in one launch. A cluster of blocks owns a group of samples: every block keeps the states of the group
// on chip, computes its slice of each layer from them and writes it into every block of the cluster. What fits of a
// block's slices of the weights stays on chip as well; the rest is read from the second-level cache in every sweep.
// Groups meet once a sweep, and only where one stop ends them all.
//
// A warp takes four rows of a weight times a few samples: its lanes share the sum, then each finishes one value.
#pragma once

#include "settle_products.cuh"

namespace lmser {

// What the states begin with, all of them in every block; the adjoint begins with nothing.
template <class T>
__device__ void settle_load_states(const SettleArguments<T>& a, const SettlePlace<T>& p) {
  for (int l = 0; l < a.layers; ++l) {
    const SettleLayer<T>& layer = a.layer[l];
    for (int i = threadIdx.x; i < a.group * layer.padded; i += int(blockDim.x)) {
      const int s = i / layer.padded, c = i % layer.padded;
      T value = T(0);
      if (s < p.samples && c < layer.channels && !a.adjoint) {
        value = read(layer.start, p.first + s, c);
        if (l == 0) value = put_in_evidence(a, p.first + s, c, value);
      }
      p.values[layer.state_at + i] = value;
    }
  }
}

// The state of one unit from its drives, with everything that is kept of it.
template <class T>
__device__ T settle_finish(const SettleArguments<T>& a, const SettleUpdate& u, T up, T down, std::int64_t n, int c,
                           std::int64_t t) {
  const SettleLayer<T>& layer = a.layer[u.layer];
  T value = up + down;
  if (a.adjoint) {
    if (u.layer == 0) {
      a.readouts[n * layer.channels + c] = down;
      const T share = a.hold.data ? read(a.hold, n, c) : T(0), free = T(1) - share;
      value = free == T(0) ? T(0) : value * free;
      if (layer.grad.data && free != T(0)) value += free * read(layer.grad, n, c);
      if (a.grad_readout.data) value += read(a.grad_readout, n, c);
    } else if (layer.grad.data) {
      value += read(layer.grad, n, c);
    }
    const T h = read(layer.fixed, n, c);
    with_activation(a.activation,
                    [&]<Activation A>() { value = pull_back<A, T, T, DeviceMath<T>>(value, h, a.slope); });
    return value;
  }
  if (layer.bias.data) value += layer.bias.data[c * layer.bias.c];
  if (u.layer == 0 && a.external.data) value += read(a.external, n, c);
  with_activation(a.activation, [&]<Activation A>() { value = activate<A, T, T, DeviceMath<T>>(value, a.slope); });
  if (u.kept_at >= 0) {
    const std::int64_t at = t * a.kept + u.kept_at + n * layer.channels + c;
    if (a.half)
      static_cast<std::uint16_t*>(a.trajectory)[at] = bf16_bits(float(value));
    else
      static_cast<T*>(a.trajectory)[at] = value;
  }
  if (u.layer == 0) {
    a.readouts[((a.every ? t * a.samples : 0) + n) * layer.channels + c] = value;
    value = put_in_evidence(a, n, c, value);
  }
  return value;
}

template <class T, int S>
__device__ void settle_update(const SettleArguments<T>& a, const SettleUpdate& u, const SettlePlace<T>& p,
                              std::int64_t t) {
  using M = Magnitude<T>;
  constexpr int kStep = 8 / S;  // lanes that hold one value
  const SettleLayer<T>& layer = a.layer[u.layer];
  const SettleTiles tiles(layer, p, S);
  for (int i = p.warp; i < tiles.count; i += p.warps) {
    const SettleTile tile = tiles[i];
    const int slice = tile.slice, sample0 = tile.sample0;
    if (a.per_sample) {
      bool moving = false;
      for (int s = sample0; s < sample0 + S && s < p.samples; ++s) moving = moving || !p.stopped[s];
      if (!moving) continue;
    }
    T up = T(0), down = T(0);
#pragma unroll 1
    for (int upward = 1; upward >= 0; --upward) {
      if (!(upward ? u.new_up : u.new_down)) continue;
      const SettleLayer<T>& from = a.layer[upward ? u.layer - 1 : u.layer + 1];
      (upward ? up : down) =
          settle_drive<T, S>(upward ? layer.below : layer.above, from.state_at, from.padded, p, tile);
    }

    const int index = p.lane / kStep, s = sample0 + index / kSettleRows, r = tile.row0 + index % kSettleRows;
    T value = T(0);
    typename M::Bits moved = 0, largest = 0;
    if (p.lane % kStep == 0 && s < p.samples && r < tile.rows && !p.stopped[s]) {
      const int slot = r * a.group + s;
      // A drive that is used again waits in the place of the one that it follows.
      if (layer.drive_at >= 0) {
        T& drive = p.values[layer.drive_at + slot];
        if (!u.new_up) up = drive;
        if (!u.new_down) down = drive;
        if (u.keep_up) drive = up;
        if (u.keep_down) drive = down;
      }
      value = settle_finish(a, u, up, down, p.first + s, slice + r, t);
      T before = p.values[layer.state_at + s * layer.padded + slice + r];
      if (layer.before_at >= 0) {
        T& ended = p.values[layer.before_at + slot];
        if (u.last)
          before = ended;
        else
          ended = before;
      }
      if (u.last) moved = M::of(value - before), largest = M::of(value);
    }
    if (u.last) {
#pragma unroll
      for (int offset = kStep; offset < kSettleRows * kStep; offset *= 2) {
        const auto others = __shfl_xor_sync(kEveryLane, moved, offset);
        moved = others > moved ? others : moved;
        if (a.adjoint) {
          const auto sizes = __shfl_xor_sync(kEveryLane, largest, offset);
          largest = sizes > largest ? sizes : largest;
        }
      }
      if (p.lane % (kSettleRows * kStep) == 0 && s < p.samples) {
        atomicMax(p.moved + s, moved);
        if (a.adjoint) atomicMax(p.moved + a.group + s, largest);
      }
    }
    settle_spread<T, S>(a, p, tile, value, layer.state_at, layer.padded);
  }
}

// After the last update of a sweep: every block of the cluster learns how far each sample moved.
template <class T>
__device__ void settle_gather(const SettleArguments<T>& a, const SettlePlace<T>& p, std::int64_t t) {
  __syncthreads();
  // Two sets in turns: a block may be a sweep ahead of one that still reads.
  auto* const set = p.gathered + int(t % 2) * 2 * a.cluster * a.group;
  for (int i = threadIdx.x; i < 2 * a.group; i += int(blockDim.x)) {
    const int quantity = i / a.group, s = i % a.group;
    const auto found = p.moved[i];
    p.moved[i] = 0;
    auto* const own = set + (quantity * a.cluster + p.rank) * a.group + s;
    for (int r = 0; r < a.cluster; ++r) *(a.cluster > 1 ? at_rank(own, unsigned(r)) : own) = found;
  }
  settle_meet_cluster(a);
}

template <class T>
__device__ typename Magnitude<T>::Bits settle_found(const SettleArguments<T>& a, const SettlePlace<T>& p,
                                                    std::int64_t t, int quantity, int sample) {
  const auto* const set = p.gathered + int(t % 2) * 2 * a.cluster * a.group;
  typename Magnitude<T>::Bits most = 0;
  for (int r = 0; r < a.cluster; ++r) {
    const auto found = set[(quantity * a.cluster + r) * a.group + sample];
    most = found > most ? found : most;
  }
  return most;
}

template <class T>
__device__ bool settle_samples_stop(const SettleArguments<T>& a, const SettlePlace<T>& p, std::int64_t t) {
  bool moving = false;
  for (int s = threadIdx.x; s < p.samples; s += int(blockDim.x)) {
    if (p.stopped[s]) continue;
    const T change = Magnitude<T>::value(settle_found(a, p, t, 0, s));
    p.steps[s] = int(t + 1);
    if (p.rank == 0) a.steps[p.first + s] = t + 1, a.change[p.first + s] = change;
    if (double(change) < a.theta)
      p.stopped[s] = 1;
    else
      moving = true;
  }
  return !__syncthreads_or(moving);
}

// Ten thousand sweeps' time and more: groups that were promised to run at once and do not would wait for ever.
constexpr std::uint64_t kSettleLongestWait = 60'000'000'000;

// One stop for all: the groups meet, each with the largest of its changes.
template <class T>
__device__ bool settle_all_stop(const SettleArguments<T>& a, const SettlePlace<T>& p, std::int64_t t) {
  using M = Magnitude<T>;
  const bool end = t + 1 == a.max_steps, meet = a.theta > 0 || a.adjoint;
  if (!meet && !end) return false;
  if (p.warp == 0) {
    typename M::Bits change = 0, largest = 0;
    for (int s = p.lane; s < p.samples; s += 32) {
      const auto moved = settle_found(a, p, t, 0, s), size = settle_found(a, p, t, 1, s);
      change = moved > change ? moved : change, largest = size > largest ? size : largest;
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      const auto moved = __shfl_xor_sync(kEveryLane, change, offset),
                 size = __shfl_xor_sync(kEveryLane, largest, offset);
      change = moved > change ? moved : change, largest = size > largest ? size : largest;
    }
    if (p.lane == 0 && !meet) {
      if (p.rank == 0) atomicMax(reinterpret_cast<typename M::Bits*>(a.change), change);
      if (p.rank == 0 && p.group == 0) *a.steps = t + 1;
    } else if (p.lane == 0) {
      SettleMeeting& meeting = a.meetings[t];
      if (p.rank == 0) {
        atomicMax(&meeting.change, (unsigned long long)(change));
        if (a.adjoint) atomicMax(&meeting.largest, (unsigned long long)(largest));
        announce(&meeting.arrived);
      }
      const std::uint64_t since = nanoseconds();
      while (announced(&meeting.arrived) < unsigned(a.groups))
        if (nanoseconds() - since > kSettleLongestWait) give_up();
      const volatile SettleMeeting& all = meeting;
      double moved = double(M::value(typename M::Bits(all.change)));
      bool stop = moved < a.theta;
      if (a.adjoint) {
        const double size = double(M::value(typename M::Bits(all.largest)));
        moved = size > 0 ? moved / size : (size == 0 ? 0 : size);
        stop = moved < a.theta || size == 0;
      }
      *p.decision = stop;
      if ((stop || end) && p.rank == 0 && p.group == 0) *a.steps = t + 1, *a.change = T(moved);
    }
  }
  __syncthreads();
  return meet && *p.decision;
}

template <class T, int S>
__global__ void __launch_bounds__(kSettleThreads, 1) settle_kernel(const __grid_constant__ SettleArguments<T> a) {
  const SettlePlace<T> p = settle_place<T>(a);
  settle_load_weights(a, p);
  settle_load_states(a, p);
  settle_meet_cluster(a);
  for (std::int64_t t = 0; t < a.max_steps; ++t) {
    for (int i = 0; i < a.updates; ++i) {
      const SettleUpdate& u = t == 0 ? a.first[i] : a.later[i];
      settle_update<T, S>(a, u, p, t);
      if (u.sync) settle_meet_cluster(a);
    }
    settle_gather(a, p, t);
    if (a.per_sample ? settle_samples_stop(a, p, t) : settle_all_stop(a, p, t)) break;
  }
  for (int l = 0; l < a.layers; ++l) {
    const SettleLayer<T>& layer = a.layer[l];
    const int slice = p.rank * layer.own, left = layer.channels - slice, rows = left < layer.own ? left : layer.own;
    for (int i = threadIdx.x; i < p.samples * rows; i += int(blockDim.x)) {
      const int s = i / rows, c = slice + i % rows;
      layer.result[(p.first + s) * layer.channels + c] = p.values[layer.state_at + s * layer.padded + c];
    }
    if (l > 0 || !a.per_sample || !a.every) continue;
    // A sample at rest shows its last readout in all sweeps that follow.
    for (int i = threadIdx.x; i < p.samples * rows; i += int(blockDim.x)) {
      const int s = i / rows, c = slice + i % rows;
      T* const shown = a.readouts + (p.first + s) * layer.channels + c;
      const std::int64_t sweep = a.samples * layer.channels;
      for (std::int64_t t = p.steps[s]; t < a.max_steps; ++t) shown[t * sweep] = shown[(p.steps[s] - 1) * sweep];
    }
  }
}

}  // namespace lmser
