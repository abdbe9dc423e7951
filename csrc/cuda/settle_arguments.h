// What the settling kernel is told: one struct for the forward solve and for the adjoint of a fixed point.
#pragma once

#include <cstdint>

#include "../activation.h"
#include "../cpu/settle_schedule.h"
#include "settle_plan.h"

namespace lmser {

// (N, C) anywhere in memory; strides in values.
template <class T>
struct Strided {
  const T* data = nullptr;
  std::int64_t n = 0, c = 0;
};

// One direction into a layer: rows of `packed` are the layer's channels, padded to four values.
template <class T>
struct SettleMatrix {
  const T* packed = nullptr;
  int resident = 0;  // rows of each slice that stay on chip
  int at = 0;
};

template <class T>
struct SettleLayer {
  int channels = 0, padded = 0, own = 0;
  int state_at = 0, drive_at = -1, before_at = -1;
  SettleMatrix<T> below, above;
  Strided<T> start;     // forward: the state to begin with
  Strided<T> bias;      // forward: along c alone
  Strided<T> fixed;     // adjoint: the state found; of the visible layer its readout
  Strided<T> grad;      // adjoint: what is injected
  T* result = nullptr;  // (N, C), dense
};

struct SettleUpdate {
  std::int64_t kept_at = 0;  // in the trajectory of a sweep, in values; -1: not kept
  int layer = 0;
  bool new_up = false, new_down = false, keep_up = false, keep_down = false, last = false;
  bool sync = false;  // the next update reads what this one writes, or the other way round
};

// What the groups tell one another after a sweep.
struct SettleMeeting {
  unsigned long long change, largest;
  unsigned arrived, unused;
};

template <class T>
struct SettleArguments {
  SettleLayer<T> layer[kSettleLayers];
  SettleUpdate first[2 * kSettleLayers], later[2 * kSettleLayers];
  int layers = 0, updates = 0, cluster = 1, group = 1, values_at = 0;
  std::int64_t samples = 0, groups = 0, max_steps = 1;
  bool adjoint = false, per_sample = false, half = false, every = false;  // every: readouts of all sweeps are kept
  Activation activation = Activation::identity;
  T slope = T(0);
  double theta = 0;
  Strided<T> evidence, hold, external, grad_readout;
  T* readouts = nullptr;              // (sweeps or 1, N, C); adjoint: what the visible layer is given from above
  void* trajectory = nullptr;         // of T, or bfloat16 with `half`
  std::int64_t kept = 0;              // values of a sweep
  SettleMeeting* meetings = nullptr;  // one for each sweep, zero to begin with
  std::int64_t* steps = nullptr;
  T* change = nullptr;  // zero to begin with
};

// Sizes, places and the order of the updates; tensors are the caller's to fill in.
template <class T>
SettleArguments<T> settle_arguments(const SettleShape& shape, const SettlePlan& plan, bool keep) {
  SettleArguments<T> a;
  a.layers = int(shape.sizes.size());
  a.cluster = plan.cluster, a.group = plan.group, a.samples = shape.samples, a.groups = plan.groups;
  a.values_at = int(settle_words(plan.cluster, plan.group));
  for (int l = 0; l < a.layers; ++l) {
    SettleLayer<T>& layer = a.layer[l];
    layer.channels = int(shape.sizes[l]), layer.padded = int(round_up(shape.sizes[l], 4)), layer.own = plan.own[l];
    layer.state_at = plan.state_at[l], layer.drive_at = plan.drive_at[l], layer.before_at = plan.before_at[l];
    layer.below = {nullptr, plan.below_rows[l], plan.below_at[l]};
    layer.above = {nullptr, plan.above_rows[l], plan.above_at[l]};
  }
  // Whether evidence holds the whole visible layer is not asked: that would be a look at values.
  const Schedule order = schedule(a.layers, shape.up_down, false, true);
  a.updates = int(order.later.size());
  for (const bool first : {true, false}) {
    const std::vector<Update>& updates = first ? order.first : order.later;
    std::int64_t at = 0;
    for (std::size_t i = 0; i < updates.size(); ++i) {
      const Update& u = updates[i];
      SettleUpdate& to = (first ? a.first : a.later)[i];
      to.layer = u.layer, to.last = u.last;
      to.new_up = u.new_up, to.new_down = u.new_down, to.keep_up = u.keep_up, to.keep_down = u.keep_down;
      // Layers of one parity do not drive each other; after the last update all blocks meet anyway.
      to.sync = i + 1 < updates.size() && (updates[i + 1].layer - u.layer) % 2 != 0;
      to.kept_at = keep && u.layer > 0 ? at : -1;
      if (u.layer > 0) at += shape.samples * shape.sizes[u.layer];
    }
    a.kept = at;
  }
  return a;
}

// A weight as the two directions read it: rows padded with zeros to four values.
template <class T>
struct SettlePacking {
  struct Matrix {
    const T* from = nullptr;
    std::int64_t row = 0, column = 0;  // strides
    T* to = nullptr;
    int rows = 0, columns = 0, padded = 0;
  } matrix[2 * (kSettleLayers - 1)];
  int count = 0;
};

inline std::int64_t settle_packed_values(const std::vector<std::int64_t>& sizes) {
  std::int64_t values = 0;
  for (std::size_t e = 0; e + 1 < sizes.size(); ++e)
    values += sizes[e + 1] * round_up(sizes[e], 4) + sizes[e] * round_up(sizes[e + 1], 4);
  return values;
}

// `up[e]` and `down[e]`: the weights (C_above, C_below) of edge e that the two directions use.
template <class T, class Arguments>
SettlePacking<T> settle_packing(Arguments& a, const Strided<T>* up, const Strided<T>* down, T* to) {
  SettlePacking<T> p;
  for (int e = 0; e + 1 < a.layers; ++e) {
    auto &below = a.layer[e], &above = a.layer[e + 1];
    p.matrix[p.count++] = {up[e].data, up[e].n, up[e].c, to, above.channels, below.channels, below.padded};
    above.below.packed = to;
    to += std::int64_t(above.channels) * below.padded;
    p.matrix[p.count++] = {down[e].data, down[e].c, down[e].n, to, below.channels, above.channels, above.padded};
    below.above.packed = to;
    to += std::int64_t(below.channels) * above.padded;
  }
  return p;
}

}  // namespace lmser
