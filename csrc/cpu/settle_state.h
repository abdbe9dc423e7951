// What the settling operators share: tensors over memory of their own, what holds the visible layer, where the
// trajectory keeps what, how far states moved.
//
// The trajectory keeps the hidden states of every update, so that the backward can walk back through them; of a layer
// whose drive from below costs little, it keeps less. Its two states of a sweep, on the way up and on the way down, are
// f(y + u) of one drive y from below and of the drives u from above before and after it, and u is as small as the layer
// above: u + b is kept, y is computed again. That is called a replayed layer.
#pragma once

#include <limits>
#include <numeric>
#include <tuple>

#include "settle_sweep.h"

namespace lmser {

inline std::vector<View> bias_views(const Tensors& biases, const Network& net, const Tensor& first) {
  STD_TORCH_CHECK(biases.size() == net.layers.size(), "biases: expected one for each layer, got ", biases.size());
  std::vector<View> views;
  for (std::size_t l = 0; l < biases.size(); ++l)
    views.push_back(biases[l].numel() == 0 && net.layers[l].c > 0
                        ? View{}
                        : bias_view(biases[l], first, "states[0]", net.layers[l].c));
  return views;
}

inline bool up_down_of(const std::string& order) {
  STD_TORCH_CHECK(order == "up_down" || order == "odd_even", "order is '", order, "'; expected up_down or odd_even");
  return order == "up_down";
}

// What holds the visible layer.
template <class T>
struct Held {
  Dense<T> evidence, hold;
  bool any = false, all = false;
  Held(const InstructionSet& isa, const ThreadPool& pool, const Layer& visible, const Maybe& evidence_given,
       const Maybe& hold_given, const Tensor& first) {
    STD_TORCH_CHECK(evidence_given.has_value() == hold_given.has_value(), "evidence and hold must be given together");
    if (!evidence_given) return;
    any = true;
    const auto view = [&](const Maybe& t, const char* name) {
      return same_shape_view(t, name, first, "states[0]", visible.n, visible.c, visible.h, visible.w);
    };
    evidence = Dense<T>(isa, pool, view(evidence_given, "evidence"));
    hold = Dense<T>(isa, pool, view(hold_given, "hold"));
    all = all_are(pool, T(1), hold.get(), visible.values());
  }
};

// Multiply-adds for a value of y up to which a layer is replayed: memory of the trajectory for time of the way back.
inline constexpr std::int64_t kReplayedTaps = 512;

// The two updates of a replayed layer in a sweep, by their numbers in it, and the one of the layer below before them,
// where that is hidden; -1 where the layer is not replayed.
struct Replayed {
  int up = -1, down = -1, below = -1;
  explicit operator bool() const { return up >= 0; }
};

// How `layer` is replayed in the sweeps of `updates`, if it can be: updated once for a new drive from below, then for a
// new one from above, where the layer below has changed before in the same sweep. In the first sweep both drives of the
// first update are new.
inline Replayed replayed_in(const std::vector<Update>& updates, int layer, bool first) {
  Replayed found;
  int below = -1;
  for (std::size_t i = 0; i < updates.size(); ++i) {
    const Update& u = updates[i];
    if (u.layer == layer - 1 && u.changes && !found) below = int(i);
    if (u.layer != layer) continue;
    if (!found && u.new_up && u.keep_up && (below >= 0) == (layer > 1) && u.new_down == first)
      found.up = int(i), found.below = below;
    else if (found && found.down < 0 && u.new_down && u.keep_down && !u.new_up)
      found.down = int(i);
    else
      return {};
  }
  return found.down < 0 ? Replayed{} : found;
}

// Layout of the trajectory: what an update of a sweep begins at, in values.
struct Trajectory {
  struct Sweep {
    std::vector<Replayed> replayed;   // by layer
    std::vector<std::int64_t> begin;  // by update
    std::int64_t values = 0;
  };
  Sweep first, later;

  Trajectory(const Network& net, const Schedule& s) {
    first.replayed.resize(net.layers.size()), later.replayed.resize(net.layers.size());
    for (int l = 1; l < net.top(); ++l) {
      const View& w = net.edges[l - 1].weight;
      const Replayed start = replayed_in(s.first, l, true), after = replayed_in(s.later, l, false);
      if (start && after && w.c * w.h * w.w <= kReplayedTaps) first.replayed[l] = start, later.replayed[l] = after;
    }
    for (const auto& [sweep, updates] : {std::pair{&first, &s.first}, std::pair{&later, &s.later}})
      for (std::size_t i = 0; i < updates->size(); ++i) {
        const int l = (*updates)[i].layer;
        sweep->begin.push_back(sweep->values);
        if (l == 0) continue;  // the readouts tell the visible states
        if (!sweep->replayed[l])
          sweep->values += net.layers[l].values();
        else if ((*updates)[i].new_down)
          sweep->values += windows_of(net, l).values();
      }
  }
  bool is_replayed(int layer) const { return bool(first.replayed[layer]); }
  const Replayed& replayed(std::int64_t t, int layer) const { return (t == 0 ? first : later).replayed[layer]; }
  std::int64_t at(std::int64_t t, std::size_t update) const {
    return t == 0 ? first.begin[update] : values(t) + later.begin[update];
  }
  std::int64_t values(std::int64_t sweeps) const { return sweeps ? first.values + (sweeps - 1) * later.values : 0; }
};

template <class T>
std::vector<Dense<T>> dense_states(const InstructionSet& isa, const ThreadPool& pool, const Tensors& states) {
  std::vector<Dense<T>> dense;
  for (const Tensor& state : states) dense.emplace_back(isa, pool, view_of(state, "states"));
  return dense;
}

template <class T>
struct Changes {
  std::vector<std::atomic<std::uint64_t>> change, largest;
  explicit Changes(std::int64_t n) : change(n), largest(n) {}
  void clear() {
    for (auto& c : change) c.store(0, std::memory_order_relaxed);
    for (auto& c : largest) c.store(0, std::memory_order_relaxed);
  }
  static double most(const std::vector<std::atomic<std::uint64_t>>& slots, std::int64_t n) {
    std::uint64_t bits = 0;
    for (std::int64_t i = 0; i < n; ++i) bits = std::max(bits, slots[i].load(std::memory_order_relaxed));
    return magnitude<T>(bits);
  }
};

struct Stop {
  double theta;
  std::int64_t max_steps;
  bool per_sample;
};

}  // namespace lmser
