// What the settling operators share: tensors over memory of their own, what holds the visible layer, where the
// trajectory keeps what, how far states moved.
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
    all = all_are(T(1), hold.get(), visible.values());
  }
};

// Layout of the trajectory: what an update of a sweep begins at, in values.
struct Trajectory {
  std::vector<std::int64_t> first, later;
  std::int64_t first_values = 0, later_values = 0;
  Trajectory(const Network& net, const Schedule& s) {
    const auto lay = [&](const std::vector<Update>& updates, std::vector<std::int64_t>& at) {
      std::int64_t values = 0;
      for (const Update& u : updates) {
        at.push_back(values);
        if (u.layer > 0) values += net.layers[u.layer].values();  // the readouts tell the visible states
      }
      return values;
    };
    first_values = lay(s.first, first), later_values = lay(s.later, later);
  }
  std::int64_t at(std::int64_t t, std::size_t update) const {
    return t == 0 ? first[update] : first_values + (t - 1) * later_values + later[update];
  }
  std::int64_t values(std::int64_t sweeps) const { return sweeps ? first_values + (sweeps - 1) * later_values : 0; }
};

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
