// What the kernel that walks back through the sweeps is told.
#pragma once

#include "settle_arguments.h"

namespace lmser {

template <class T>
struct SettleBackLayer {
  int channels = 0, padded = 0, own = 0;
  int up_at = -1, down_at = -1;  // gradients of the drive from below, from above
  SettleMatrix<T> below, above;  // what brings those of the neighbours to this layer's state
  Strided<T> grad;               // of the final state
  T* start_grad = nullptr;       // of the state to begin with, (N, C)
  T* up_grads = nullptr;         // (T, N, C): of the drive from below that sweep t used
  T* down_grads = nullptr;       // (T + 1, N, C): of the drive from the layer above as it was after t sweeps
};

struct SettleBackUpdate {
  std::int64_t kept_at = -1;
  int layer = 0;
  int after = 0;      // the drive from above is that of the state after t + `after` sweeps
  bool sync = false;  // before the update that comes next on the way back
};

template <class T>
struct SettleBackArguments {
  SettleBackLayer<T> layer[kSettleLayers];
  SettleBackUpdate update[2 * kSettleLayers];  // in the order of the forward sweep
  int layers = 0, updates = 0, cluster = 1, group = 1, values_at = 0;
  std::int64_t samples = 0, sweeps = 0;
  bool half = false;
  Activation activation = Activation::identity;
  T slope = T(0);
  Strided<T> evidence, hold, start;  // start: the visible state before evidence was put in
  const T* readouts = nullptr;       // (T, N, C), dense
  Strided<T> grad_readouts;          // (T, N, C)
  std::int64_t grad_readouts_t = 0;
  const void* trajectory = nullptr;
  std::int64_t kept = 0;       // values of a sweep
  T* visible = nullptr;        // (T, N, C): what the first hidden layer saw in sweep t
  T* evidence_grad = nullptr;  // (N, C), zero to begin with
};

template <class T>
SettleBackArguments<T> settle_back_arguments(const SettleShape& shape, const SettlePlan& plan) {
  SettleBackArguments<T> a;
  a.layers = int(shape.sizes.size());
  a.cluster = plan.cluster, a.group = plan.group, a.samples = shape.samples;
  a.values_at = int(settle_words(plan.cluster, plan.group));
  for (int l = 0; l < a.layers; ++l) {
    SettleBackLayer<T>& layer = a.layer[l];
    layer.channels = int(shape.sizes[l]), layer.padded = int(round_up(shape.sizes[l], 4)), layer.own = plan.own[l];
    layer.up_at = plan.up_at[l], layer.down_at = plan.down_at[l];
    layer.below = {nullptr, plan.below_rows[l], plan.below_at[l]};
    layer.above = {nullptr, plan.above_rows[l], plan.above_at[l]};
  }
  const std::vector<Update> updates = schedule(a.layers, shape.up_down, false, true).later;
  a.updates = int(updates.size());
  std::int64_t at = 0;
  for (int i = 0; i < a.updates; ++i) {
    const int l = updates[i].layer;
    SettleBackUpdate& u = a.update[i];
    u.layer = l;
    // In an upward pass, and for the odd layers of odd_even, the layer above is still that of the sweep before.
    u.after = shape.up_down ? (updates[i].last ? 1 : 0) : (l % 2 == 0 ? 1 : 0);
    u.sync = i == 0 || (updates[i - 1].layer - l) % 2 != 0;
    if (l == 0) continue;
    u.kept_at = at;
    at += shape.samples * shape.sizes[l];
  }
  a.kept = at;
  return a;
}

}  // namespace lmser
