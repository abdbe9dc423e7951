// Back through all sweeps in one launch, laid out as the solve was.
//
// Walking back to the update that made a state, every drive computed from that state has its whole gradient: that of
// the layer above from below and that of the layer below from above, each of which may have served several updates. The
// weights bring both to the state, f' makes d of it, and d is added to the gradients of the two drives of this update.
// Those gradients are kept in every block of a cluster, as the states were, and written out: with the states of the
// trajectory they make the gradients of the weights.
#pragma once

#include "settle_back_arguments.h"
#include "settle_products.cuh"

namespace lmser {

// Which gradients of drives are there, and which layers had the gradient of their final state: a bit for each layer.
struct SettleOpen {
  unsigned up = 0, down = 0, ended = 0;
  __device__ bool above(int layer, int layers) const { return layer + 1 < layers && (up >> (layer + 1) & 1u); }
  __device__ bool below(int layer) const { return layer > 0 && (down >> (layer - 1) & 1u); }
};

// What reaches the state of `layer` from the drives that it made, in the lanes that finish the tile.
template <class T, int S>
__device__ T settle_reaching(const SettleBackArguments<T>& a, int l, const SettlePlace<T>& p, const SettleOpen& open,
                             const SettleTile& tile) {
  const SettleBackLayer<T>& layer = a.layer[l];
  T sum = T(0);
#pragma unroll 1
  for (int upper = 1; upper >= 0; --upper) {
    if (!(upper ? open.above(l, a.layers) : open.below(l))) continue;
    const SettleBackLayer<T>& from = a.layer[upper ? l + 1 : l - 1];
    sum +=
        settle_drive<T, S>(upper ? layer.above : layer.below, upper ? from.up_at : from.down_at, from.padded, p, tile);
  }
  return sum;
}

template <class T>
__device__ T settle_kept(const SettleBackArguments<T>& a, const SettleBackUpdate& u, std::int64_t n, int c,
                         std::int64_t t) {
  const SettleBackLayer<T>& layer = a.layer[u.layer];
  if (u.layer == 0) return a.readouts[(t * a.samples + n) * layer.channels + c];
  const std::int64_t at = t * a.kept + u.kept_at + n * layer.channels + c;
  if (a.half) return T(bf16_value(static_cast<const std::uint16_t*>(a.trajectory)[at]));
  return static_cast<const T*>(a.trajectory)[at];
}

// d of one unit from what reaches its state.
template <class T>
__device__ T settle_pull_back(const SettleBackArguments<T>& a, const SettleBackUpdate& u, T grad, T h, std::int64_t n,
                              int c, std::int64_t t) {
  const SettleBackLayer<T>& layer = a.layer[u.layer];
  if (u.layer == 0) {
    if (a.hold.data) {
      const T share = read(a.hold, n, c), free = T(1) - share;
      if (a.evidence_grad && share != T(0)) a.evidence_grad[n * layer.channels + c] += share * grad;
      grad = free == T(0) ? T(0) : grad * free;
    }
    if (a.grad_readouts.data)
      grad += a.grad_readouts.data[t * a.grad_readouts_t + n * a.grad_readouts.n + c * a.grad_readouts.c];
  }
  with_activation(a.activation, [&]<Activation A>() { grad = pull_back<A, T, T, DeviceMath<T>>(grad, h, a.slope); });
  return grad;
}

// The unit that a lane finishes, if any.
struct SettleUnit {
  int sample, channel;
  bool mine;
};
template <int S, class T>
__device__ SettleUnit settle_unit(const SettleTile& tile, const SettlePlace<T>& p) {
  constexpr int kStep = 8 / S;
  const int index = p.lane / kStep, s = tile.sample0 + index / kSettleRows, r = tile.row0 + index % kSettleRows;
  return {s, tile.slice + r, p.lane % kStep == 0 && s < p.samples && r < tile.rows};
}

// The visible state that the readout of sweep t made: the sweep after it saw that.
template <class T>
__device__ void settle_show(const SettleBackArguments<T>& a, const SettlePlace<T>& p, std::int64_t t) {
  if (t + 1 == a.sweeps) return;
  const SettleBackLayer<T>& layer = a.layer[0];
  const int slice = p.rank * layer.own, left = layer.channels - slice, rows = left < layer.own ? left : layer.own;
  const std::int64_t sweep = a.samples * layer.channels;
  for (int i = threadIdx.x; i < p.samples * rows; i += int(blockDim.x)) {
    const int s = i / rows, c = slice + i % rows;
    const std::int64_t n = p.first + s, unit = n * layer.channels + c;
    a.visible[(t + 1) * sweep + unit] = put_in_evidence(a, n, c, a.readouts[t * sweep + unit]);
  }
}

template <class T, int S>
__device__ void settle_back_update(const SettleBackArguments<T>& a, const SettleBackUpdate& u, const SettlePlace<T>& p,
                                   std::int64_t t, const SettleOpen& open) {
  const int l = u.layer;
  const SettleBackLayer<T>& layer = a.layer[l];
  const bool final = layer.grad.data && !(open.ended >> l & 1u);
  const SettleTiles tiles(layer, p, S);
  for (int i = p.warp; i < tiles.count; i += p.warps) {
    const SettleTile tile = tiles[i];
    T h = T(0), up = T(0), down = T(0);
    // What was kept comes from memory while the products are made; doubles need the registers.
    constexpr bool kEarly = sizeof(T) == 4;
    if constexpr (kEarly) {
      const SettleUnit unit = settle_unit<S>(tile, p);
      if (unit.mine) h = settle_kept(a, u, p.first + unit.sample, unit.channel, t);
    }
    T grad = settle_reaching<T, S>(a, l, p, open, tile);
    const SettleUnit at = settle_unit<S>(tile, p);
    if (at.mine) {
      const int s = at.sample, c = at.channel;
      const std::int64_t n = p.first + s, unit = n * layer.channels + c, sweep = a.samples * layer.channels;
      if constexpr (!kEarly) h = settle_kept(a, u, n, c, t);
      if (final) grad += read(layer.grad, n, c);
      const T d = settle_pull_back(a, u, grad, h, n, c, t);
      if (l > 0) {
        up = (open.up >> l & 1u) ? d + p.values[layer.up_at + s * layer.padded + c] : d;
        layer.up_grads[t * sweep + unit] = up;
      }
      if (l + 1 < a.layers) {
        down = (open.down >> l & 1u) ? d + p.values[layer.down_at + s * layer.padded + c] : d;
        layer.down_grads[(t + u.after) * sweep + unit] = down;
      }
    }
    if (l > 0) settle_spread<T, S>(a, p, tile, up, layer.up_at, layer.padded);
    if (l + 1 < a.layers) settle_spread<T, S>(a, p, tile, down, layer.down_at, layer.padded);
  }
}

// What reaches the states that the solve began with.
template <class T, int S>
__device__ void settle_back_start(const SettleBackArguments<T>& a, int l, const SettlePlace<T>& p,
                                  const SettleOpen& open) {
  const SettleBackLayer<T>& layer = a.layer[l];
  const bool final = layer.grad.data && !(open.ended >> l & 1u), held = l == 0 && a.hold.data;
  const SettleTiles tiles(layer, p, S);
  for (int i = p.warp; i < tiles.count; i += p.warps) {
    const SettleTile tile = tiles[i];
    T grad = settle_reaching<T, S>(a, l, p, open, tile);
    const SettleUnit at = settle_unit<S>(tile, p);
    if (!at.mine) continue;
    const int c = at.channel;
    const std::int64_t n = p.first + at.sample, unit = n * layer.channels + c;
    if (final) grad += read(layer.grad, n, c);
    if (l == 0) a.visible[unit] = put_in_evidence(a, n, c, read(a.start, n, c));
    const T share = held ? read(a.hold, n, c) : T(0);
    if (held && a.evidence_grad && share != T(0)) a.evidence_grad[unit] += share * grad;
    if (layer.start_grad) layer.start_grad[unit] = share == T(1) ? T(0) : (T(1) - share) * grad;
  }
}

template <class T, int S>
__global__ void __launch_bounds__(kSettleThreads, 1)
    settle_back_kernel(const __grid_constant__ SettleBackArguments<T> a) {
  const SettlePlace<T> p = settle_place<T>(a);
  settle_load_weights(a, p);
  for (int l = 0; l < a.layers; ++l)
    for (const int at : {a.layer[l].up_at, a.layer[l].down_at})
      for (int i = threadIdx.x; at >= 0 && i < a.group * a.layer[l].padded; i += int(blockDim.x))
        p.values[at + i] = T(0);
  settle_meet_cluster(a);
  SettleOpen open;
  for (std::int64_t t = a.sweeps; t-- > 0;)
    for (int i = a.updates; i-- > 0;) {
      const SettleBackUpdate& u = a.update[i];
      const int l = u.layer;
      const bool final = a.layer[l].grad.data && !(open.ended >> l & 1u);
      const bool shown = l == 0 && a.grad_readouts.data;
      const bool flows = open.above(l, a.layers) || open.below(l) || final || shown;
      if (flows) settle_back_update<T, S>(a, u, p, t, open);
      if (l == 0) settle_show(a, p, t);
      if (l + 1 < a.layers) open.up &= ~(2u << l);
      if (l > 0) open.down &= ~(1u << (l - 1));
      open.ended |= 1u << l;
      if (flows) open.up |= l > 0 ? 1u << l : 0u, open.down |= l + 1 < a.layers ? 1u << l : 0u;
      if (u.sync) settle_meet_cluster(a);
    }
  for (int l = 0; l < a.layers; ++l) settle_back_start<T, S>(a, l, p, open);
  settle_meet_cluster(a);  // nobody leaves while others write into its memory
}

}  // namespace lmser
