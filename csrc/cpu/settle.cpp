// The settling loop as one operator, and its two backward passes.
//
// Everything inside is dense channels-last memory of the compute type. With `keep` the states of every update are
// written to one trajectory, sweep after sweep in the order of the updates, the visible layer's unclamped values to
// `readouts`: all that the backward through the sweeps reads.
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "settle_backward.h"
#include "settle_sweep.h"

namespace lmser {
namespace {

using Tensors = std::vector<Tensor>;
using Maybe = std::optional<Tensor>;

// A tensor over memory of a block, which it takes.
template <class T>
Tensor tensor_of(Memory<T> block, const Tensor& like, const std::vector<std::int64_t>& size,
                 const std::vector<std::int64_t>& stride) {
  const output_store::Piece piece = block.release();
  const torch::headeronly::IntHeaderOnlyArrayRef sizes(size.data(), size.size()), strides(stride.data(), stride.size());
  try {
    return torch::stable::from_blob(piece.data, sizes, strides, like.device(), like.scalar_type(),
                                    [piece](void*) { output_store::give(piece); });
  } catch (...) {
    output_store::give(piece);
    throw;
  }
}
template <class T>
Tensor state_tensor(Memory<T> block, const Layer& l, const Tensor& like) {
  return tensor_of(std::move(block), like, {l.n, l.c, l.h, l.w}, {l.image(), 1, l.w * l.c, l.c});
}
template <class T>
Tensor sweeps_tensor(Memory<T> block, std::int64_t sweeps, const Layer& l, const Tensor& like) {
  return tensor_of(std::move(block), like, {sweeps, l.n, l.c, l.h, l.w}, {l.values(), l.image(), 1, l.w * l.c, l.c});
}

// Pages that are not written are not there: room for all sweeps that may come is asked for where it is at most this.
constexpr std::size_t kRoom = std::size_t(1) << 30;
// How many sweeps of so many values to make room for, when there is room for `now` and at most `most` may come.
template <class T>
std::int64_t sweeps_of_room(std::int64_t values, std::int64_t now, std::int64_t most) {
  const std::int64_t fit = std::int64_t(kRoom / sizeof(T)) / std::max<std::int64_t>(values, 1);
  return std::min(most, std::max<std::int64_t>({fit, 16, 2 * now}));
}

// The values of one sweep after the other.
template <class T>
class Sweeps {
 public:
  Sweeps(std::int64_t values, std::int64_t most) : values_(values), most_(most) {}
  T* at(std::int64_t t) {
    if (t >= room_) {
      const std::int64_t room = sweeps_of_room<T>(values_, room_, most_);
      Memory<T> larger(std::max(room, t + 1) * values_);
      if (room_) std::memcpy(static_cast<void*>(larger.get()), block_.get(), sizeof(T) * room_ * values_);
      block_ = std::move(larger), room_ = std::max(room, t + 1);
    }
    return block_.get() + t * values_;
  }
  Memory<T> take() {
    if (!block_) at(0);
    return std::move(block_);
  }

 private:
  std::int64_t values_, most_, room_ = 0;
  Memory<T> block_;
};

std::vector<View> bias_views(const Tensors& biases, const Network& net, const Tensor& first) {
  STD_TORCH_CHECK(biases.size() == net.layers.size(), "biases: expected one for each layer, got ", biases.size());
  std::vector<View> views;
  for (std::size_t l = 0; l < biases.size(); ++l)
    views.push_back(biases[l].numel() == 0 && net.layers[l].c > 0
                        ? View{}
                        : bias_view(biases[l], first, "states[0]", net.layers[l].c));
  return views;
}

bool up_down_of(const std::string& order) {
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
    all = all_one(hold.get(), visible.values());
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

template <class T>
std::tuple<Tensors, Tensor, Tensor, Tensor, Tensor> settle_as(const Network& net, const Tensors& states,
                                                              const std::vector<View>& biases, const Maybe& evidence,
                                                              const Maybe& hold, const Maybe& external,
                                                              Activation activation, double slope, bool up_down,
                                                              const Stop& stop, bool keep, bool readouts) {
  const InstructionSet& isa = instruction_set();
  const ThreadPool pool = torch_pool();
  constexpr DType kType = kDTypeOf<T>;
  const Tensor& first = states[0];
  const int top = net.top();
  const Layer& visible = net.layers[0];
  const std::int64_t samples = visible.n;
  STD_TORCH_CHECK(!(keep && stop.per_sample), "per_sample cannot keep a trajectory");

  Held<T> held(isa, pool, visible, evidence, hold, first);
  Dense<T> drive_in;
  if (external)
    drive_in =
        Dense<T>(isa, pool,
                 same_shape_view(external, "external", first, "states[0]", visible.n, visible.c, visible.h, visible.w));
  // Per-sample stopping moves samples about: it works on copies.
  Memory<T> own_evidence, own_hold, own_external;
  const auto movable = [&](Memory<T>& own, const T*& data) {
    if (!data || !stop.per_sample) return;
    own = Memory<T>(visible.values());
    std::memcpy(static_cast<void*>(own.get()), data, sizeof(T) * visible.values());
    data = own.get();
  };
  const T *evidence_data = held.evidence.get(), *hold_data = held.hold.get(), *external_data = drive_in.get();
  movable(own_evidence, evidence_data), movable(own_hold, hold_data), movable(own_external, external_data);

  // Where layers stand: two places for the end of a sweep, one for what comes before it.
  std::vector<Dense<T>> given;
  std::vector<const T*> start;
  for (int l = 0; l <= top; ++l)
    given.emplace_back(isa, pool, view_of(states[l], "states")), start.push_back(given[l].get());
  std::vector<Memory<T>> ends[2], between(top + 1);
  for (auto& e : ends)
    for (int l = 0; l <= top; ++l) e.emplace_back(keep && l > 0 ? Memory<T>() : Memory<T>(net.layers[l].values()));
  if (stop.per_sample)  // nothing of the caller's may be moved
    for (int l = 1; l <= top; ++l) {
      std::memcpy(static_cast<void*>(ends[1][l].get()), start[l], sizeof(T) * net.layers[l].values());
      start[l] = ends[1][l].get();
    }
  {
    T* const at = ends[1][0].get();
    if (held.any) {
      Epilogue e;
      e.result = const_cast<T*>(start[0]), e.image = visible.image(), e.state = at;
      e.evidence = evidence_data, e.hold = hold_data;
      run_epilogue(isa, pool, e, visible.view(start[0], kType));
    } else {
      std::memcpy(static_cast<void*>(at), start[0], sizeof(T) * visible.values());
    }
    start[0] = at;
  }
  Memory<T> shown(visible.values());

  const bool read_held = keep || readouts;
  Sweeper<T> sweeper(isa, pool, net, biases, false, schedule(top + 1, up_down, held.all, read_held), start);
  const bool visible_apart = held.any && !held.all;
  const Trajectory places(net, schedule(top + 1, up_down, held.all, read_held));
  Memory<T> trajectory;
  std::int64_t room = 0;
  Sweeps<T> seen(visible.values(), keep || readouts ? stop.max_steps : 1);
  const bool every = keep || readouts;

  Changes<T> changes(samples);
  std::vector<const T*> ended = start;
  std::vector<std::int64_t> who(samples), steps(samples, 0);
  std::vector<double> change(samples, std::numeric_limits<double>::infinity());
  std::iota(who.begin(), who.end(), 0);
  std::int64_t active = samples, sweeps = 0;
  double whole = std::numeric_limits<double>::infinity();

  while (sweeps < stop.max_steps) {
    const std::vector<Update>& updates = sweeper.sweep(sweeps);
    if (keep && places.values(sweeps + 1) > room) {
      const std::int64_t more =
          places.values(sweeps_of_room<T>(std::max(places.later_values, places.first_values), sweeps, stop.max_steps));
      Memory<T> larger(more);
      if (room) {
        const T* const from = trajectory.get();
        std::memcpy(static_cast<void*>(larger.get()), from, sizeof(T) * places.values(sweeps));
        const auto moved = [&](const T*& p) {
          if (p >= from && p < from + room) p = larger.get() + (p - from);
        };
        for (const T*& p : ended) moved(p);
        for (int l = 0; l <= top; ++l) {
          const T* p = sweeper.states()[l];
          moved(p);
          sweeper.move_state(l, p);
        }
      }
      trajectory = std::move(larger), room = more;
    }
    changes.clear();
    T* readout = shown.get();
    if (every && !stop.per_sample) {
      const T* const before = sweeps ? seen.at(sweeps - 1) - (sweeps - 1) * visible.values() : nullptr;
      readout = seen.at(sweeps);
      const T* const now = readout - sweeps * visible.values();
      if (before && now != before) {  // it has grown: what pointed into it moves along
        const auto moved = [&](const T*& p) {
          if (p >= before && p < before + sweeps * visible.values()) p = now + (p - before);
        };
        for (const T*& p : ended) moved(p);
        const T* p = sweeper.states()[0];
        moved(p);
        sweeper.move_state(0, p);
      }
    }
    for (std::size_t i = 0; i < updates.size(); ++i) {
      const Update& u = updates[i];
      const Layer& layer = net.layers[u.layer];
      T* to;
      if (u.layer == 0)
        to = readout;
      else if (keep)
        to = trajectory.get() + places.at(sweeps, i);
      else if (u.last)
        to = ends[sweeps % 2][u.layer].get();
      else
        to = (between[u.layer] ? between[u.layer] : between[u.layer] = Memory<T>(layer.values())).get();
      Epilogue e;
      e.result = to, e.image = layer.image(), e.change = changes.change.data();
      const T* stays = to;
      if (u.layer == 0 && visible_apart) {
        e.state = ends[sweeps % 2][0].get();
        e.evidence = evidence_data, e.hold = hold_data;
        stays = static_cast<const T*>(e.state);
      } else if (u.layer == 0 && u.changes && (!every || stop.per_sample)) {
        // the readout is the state: it must outlive the next sweep, which is compared with it
        e.result = to = ends[sweeps % 2][0].get();
        stays = to;
      }
      if (u.last && u.changes) e.previous = ended[u.layer];
      Sink sink;
      Layer now = layer;
      now.n = active;
      sink.out = now.view(to, kType);
      sink.activation = activation, sink.slope = slope;
      if (u.layer == 0 && external) sink.add = now.view(external_data, kType);
      sink.epilogue = &e;
      sweeper.update(u, active, sink, stays);
      if (u.last && u.changes) ended[u.layer] = stays;
    }
    ++sweeps;
    if (stop.per_sample) {
      if (every) {
        T* const row = seen.at(sweeps - 1);
        const T* const from = visible_apart || held.all ? shown.get() : ended[0];
        for (std::int64_t i = 0; i < samples; ++i) {
          const std::int64_t image = visible.image();
          const T* const value = i < active ? from + i * image : seen.at(sweeps - 2) + who[i] * image;
          std::memcpy(static_cast<void*>(row + who[i] * image), value, sizeof(T) * image);
        }
      }
      for (std::int64_t i = 0; i < active; ++i)
        steps[who[i]] = sweeps, change[who[i]] = magnitude<T>(changes.change[i].load());
      for (std::int64_t i = 0; i < active;) {
        if (!(change[who[i]] < stop.theta)) {
          ++i;
          continue;
        }
        --active;
        if (i == active) break;
        const auto exchange = [&](const T* data, std::int64_t image) {
          T* const p = const_cast<T*>(data);
          if (p) std::swap_ranges(p + i * image, p + (i + 1) * image, p + active * image);
        };
        for (int l = 0; l <= top; ++l) exchange(ended[l], net.layers[l].image());
        exchange(own_evidence.get(), visible.image()), exchange(own_hold.get(), visible.image());
        exchange(own_external.get(), visible.image()), exchange(shown.get(), visible.image());
        sweeper.swap_samples(i, active);
        std::swap(who[i], who[active]);
        const std::uint64_t bits = changes.change[active].load();
        changes.change[active].store(changes.change[i].load()), changes.change[i].store(bits);
      }
      if (active == 0) break;
      // What ended stays where it is: the two places are exchanged whole.
      for (int l = 0; l <= top; ++l) {
        const std::int64_t image = net.layers[l].image();
        T* const other = ended[l] == ends[0][l].get() ? ends[1][l].get() : ends[0][l].get();
        std::memcpy(static_cast<void*>(other + active * image), ended[l] + active * image,
                    sizeof(T) * (samples - active) * image);
      }
    } else {
      whole = Changes<T>::most(changes.change, samples);
      if (whole < stop.theta) break;
    }
  }

  Tensors out;
  for (int l = 0; l <= top; ++l) {
    const Layer& layer = net.layers[l];
    Memory<T> copy(layer.values());
    for (std::int64_t i = 0; i < samples; ++i)
      std::memcpy(static_cast<void*>(copy.get() + who[i] * layer.image()), ended[l] + i * layer.image(),
                  sizeof(T) * layer.image());
    out.push_back(state_tensor(std::move(copy), layer, first));
  }
  if (!every) {  // the last one
    const T* from = ended[0];
    if (held.all) {
      Sink sink;
      sink.out = visible.view(shown.get(), kType);
      sink.activation = activation, sink.slope = slope;
      if (external) sink.add = visible.view(external_data, kType);
      Update u{0};
      u.new_down = true, u.changes = false;
      sweeper.update(u, samples, sink, nullptr);
    }
    if (held.any) from = shown.get();
    T* const to = seen.at(0);
    for (std::int64_t i = 0; i < samples; ++i)
      std::memcpy(static_cast<void*>(to + who[i] * visible.image()), from + i * visible.image(),
                  sizeof(T) * visible.image());
  }
  Tensor readouts_out = sweeps_tensor(seen.take(), every ? sweeps : 1, visible, first);
  Tensor trajectory_out =
      keep ? tensor_of(trajectory ? std::move(trajectory) : Memory<T>(1), first, {places.values(sweeps)}, {1})
           : empty_1d(first, 0);
  const std::int64_t reported = stop.per_sample ? samples : 1;
  const std::vector<std::int64_t> size =
      stop.per_sample ? std::vector<std::int64_t>{samples} : std::vector<std::int64_t>{};
  const torch::headeronly::IntHeaderOnlyArrayRef sizes(size.data(), size.size());
  Tensor steps_out = torch::stable::empty(sizes, ScalarType::Long, std::nullopt, first.device());
  Tensor change_out = torch::stable::empty(sizes, first.scalar_type(), std::nullopt, first.device());
  for (std::int64_t i = 0; i < reported; ++i) {
    static_cast<std::int64_t*>(steps_out.data_ptr())[i] = stop.per_sample ? steps[i] : sweeps;
    static_cast<T*>(change_out.data_ptr())[i] = T(stop.per_sample ? change[i] : whole);
  }
  return {std::move(out), readouts_out, trajectory_out, steps_out, change_out};
}

std::tuple<Tensors, Tensor, Tensor, Tensor, Tensor> settle(
    const Tensors& states, const Tensors& weights, const Tensors& reverse, const Tensors& biases, const Maybe& evidence,
    const Maybe& hold, const Maybe& external, const Ints& pools, const Ints& padding, const std::string& activation,
    double slope, const std::string& order, double theta, std::int64_t max_steps, bool per_sample, bool keep,
    bool readouts, double /* of the derivative: adjoint_theta */, std::int64_t /* adjoint_max_steps */,
    const std::string& /* unconverged */) {
  const Network net = network_of(states, weights, reverse, pools, padding);
  const std::vector<View> b = bias_views(biases, net, states[0]);
  STD_TORCH_CHECK(max_steps >= 1, "max_steps is ", max_steps, "; expected at least 1");
  const Stop stop{theta, max_steps, per_sample};
  const Activation f = activation_named(activation);
  const DType dtype = dtype_of(states[0], "states[0]");
  STD_TORCH_CHECK(dtype == DType::f32 || dtype == DType::f64, "states must be float32 or float64");
  return dtype == DType::f64 ? settle_as<double>(net, states, b, evidence, hold, external, f, slope, up_down_of(order),
                                                 stop, keep, readouts)
                             : settle_as<float>(net, states, b, evidence, hold, external, f, slope, up_down_of(order),
                                                stop, keep, readouts);
}

struct Wanted {
  bool states, weights, biases, evidence, external;
};
Wanted wanted_of(const std::vector<bool>& needs) {
  STD_TORCH_CHECK(needs.size() == 5, "needs has ", needs.size(),
                  " values; expected 5 (states, weights, biases, evidence, external)");
  return {needs[0], needs[1], needs[2], needs[3], needs[4]};
}

// The gradients of a backward pass, in the order of the operator's result: states, weights, reverse weights, biases,
// evidence, external. What is not wanted has no values.
template <class T>
struct Outputs {
  Tensors all;
  std::vector<T*> states;
  std::vector<View> weights, reverse;
  std::vector<std::vector<double>> biases;
  std::vector<Tensor> bias_tensors;
  T *evidence = nullptr, *external = nullptr;

  Outputs(const Network& net, const Tensor& like, const Wanted& want, bool reverse_too, bool evidence_too,
          bool external_too) {
    const auto state = [&](const Layer& l, bool wanted) -> T* {
      if (!wanted) {
        all.push_back(empty_1d(like, 0));
        return nullptr;
      }
      Memory<T> m = zeros<T>(l.values());
      T* const data = m.get();
      all.push_back(state_tensor(std::move(m), l, like));
      return data;
    };
    for (const Layer& l : net.layers) states.push_back(state(l, want.states));
    const auto weight = [&](std::vector<View>& to, const View& w) {
      all.push_back(want.weights ? empty_4d(like, false, w.n, w.c, w.h, w.w) : empty_1d(like, 0));
      to.push_back(want.weights ? view_of(all.back(), "grad_weight") : View{});
    };
    for (const Edge& e : net.edges) weight(weights, e.weight);
    for (const Edge& e : net.edges) {
      if (reverse_too) weight(reverse, e.weight);
    }
    for (const Layer& l : net.layers) {
      all.push_back(empty_1d(like, want.biases ? l.c : 0));
      bias_tensors.push_back(all.back());
      biases.emplace_back(l.c, 0.0);
    }
    evidence = state(net.layers[0], want.evidence && evidence_too);
    external = state(net.layers[0], want.external && external_too);
  }
  void finish(const Wanted& want) {
    if (want.biases)
      for (std::size_t l = 0; l < biases.size(); ++l) {
        T* const to = static_cast<T*>(bias_tensors[l].data_ptr());
        for (std::size_t c = 0; c < biases[l].size(); ++c) to[c] = T(biases[l][c]);
      }
  }
};

template <class T>
void add_to(T* to, const T* from, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) to[i] += from[i];
}

template <class T>
Tensors settle_backward_as(const Network& net, const Tensors& grad_states, const Tensor& grad_readouts,
                           const Tensors& states, const Maybe& evidence, const Maybe& hold, bool has_external,
                           const Tensor& readouts, const Tensor& trajectory, bool tied, Activation activation,
                           double slope, bool up_down, const Wanted& want, bool winograd = true) {
  const InstructionSet& isa = instruction_set();
  const ThreadPool pool = torch_pool();
  constexpr DType kType = kDTypeOf<T>;
  const Tensor& like = states[0];
  const int top = net.top();
  const Layer& visible = net.layers[0];
  const Held<T> held(isa, pool, visible, evidence, hold, like);
  const bool visible_apart = held.any && !held.all;
  const Schedule plan = schedule(top + 1, up_down, held.all, true);
  const Trajectory places(net, plan);
  STD_TORCH_CHECK(readouts.dim() == 5, "readouts must have 5 dimensions");
  const std::int64_t sweeps = readouts.size(0);
  STD_TORCH_CHECK(trajectory.numel() == places.values(sweeps), "trajectory has ", trajectory.numel(),
                  " values; expected ", places.values(sweeps));
  const auto sweep_view = [&](const Tensor& t, std::int64_t i) {
    View v{static_cast<char*>(t.data_ptr()) + std::int64_t(sizeof(T)) * i * t.stride(0),
           kType,
           t.size(1),
           t.size(2),
           t.size(3),
           t.size(4),
           t.stride(1),
           t.stride(2),
           t.stride(3),
           t.stride(4)};
    return v;
  };
  const T* const path = static_cast<const T*>(trajectory.data_ptr());
  std::vector<Dense<T>> given, final_grads;
  for (int l = 0; l <= top; ++l) {
    given.emplace_back(isa, pool, view_of(states[l], "states"));
    final_grads.emplace_back(grad_states[l].numel() ? Dense<T>(isa, pool, view_of(grad_states[l], "grad_states"))
                                                    : Dense<T>());
  }
  // The visible state at the start.
  Memory<T> start(visible.values());
  std::memcpy(static_cast<void*>(start.get()), given[0].get(), sizeof(T) * visible.values());
  if (held.any) {
    Epilogue e;
    e.result = const_cast<T*>(given[0].get()), e.image = visible.image(), e.state = start.get();
    e.evidence = held.evidence.get(), e.hold = held.hold.get();
    run_epilogue(isa, pool, e, visible.view(given[0].get(), kType));
  }

  Outputs<T> out(net, like, want, !tied, held.any, has_external);
  std::vector<View> to_weights = out.weights, to_reverse = out.reverse;
  WeightGradients<T> weights(isa, pool, net, to_weights, to_reverse, winograd);
  Carrier<T> carrier(isa, pool, net);
  std::vector<bool> ended(top + 1, false);  // the gradient of the final state was taken in

  Memory<T> held_state;
  if (visible_apart) held_state = Memory<T>(visible.values());
  for (std::int64_t t = sweeps; t-- > 0;) {
    const std::vector<Update>& updates = plan.sweep(t);
    for (std::size_t i = updates.size(); i-- > 0;) {
      const Update& u = updates[i];
      const int l = u.layer;
      const Layer& layer = net.layers[l];
      const bool last_version = u.changes && !ended[l];
      const T* const final_grad = last_version ? final_grads[l].get() : nullptr;
      if (u.changes) ended[l] = true;
      DriveGradients<T>& drives = carrier.drives[l];
      T* const d = drives.free_place();
      Dense<T> read_grad;
      Memory<T> from_hold;
      Epilogue e;
      e.result = d, e.image = layer.image(), e.activation = activation, e.slope = slope, e.channels = layer.c;
      const T* state;
      if (l == 0) {
        const View seen = sweep_view(readouts, t);
        e.output = static_cast<const T*>(seen.data);
        if (grad_readouts.numel()) {
          read_grad = Dense<T>(isa, pool, sweep_view(grad_readouts, t));
          e.inject = read_grad.get();
        }
        if (held.any) e.hold = held.hold.get();
        if (visible_apart) {
          Epilogue put_in;
          put_in.result = seen.data, put_in.image = visible.image(), put_in.state = held_state.get();
          put_in.evidence = held.evidence.get(), put_in.hold = held.hold.get();
          run_epilogue(isa, pool, put_in, visible.view(seen.data, kType));
        }
        state = held.all ? start.get() : visible_apart ? held_state.get() : static_cast<const T*>(seen.data);
      } else {
        e.output = state = path + places.at(t, i);
      }
      if (want.biases) e.bias_grad = out.biases[l].data();
      // Which drives take d: the ones this layer has.
      const bool has_up = l > 0, has_down = l < top;
      T* total = nullptr;
      T** joined = nullptr;
      if (has_up && drives.up) joined = &drives.up;
      if (has_down && drives.down) {
        STD_TORCH_CHECK(!joined, "settle_backward: both drives of a layer are open");
        joined = &drives.down;
      }
      if (joined) {
        total = drives.free_place(d);
        e.extra = *joined, e.total = total;
      }
      const bool unfused = l == 0 && out.evidence && u.changes;
      bool any = false;
      if (u.changes) {
        any = carrier.gather(l, d, final_grad, unfused ? nullptr : &e, weights, state);
        if (!any && final_grad) {
          std::memcpy(static_cast<void*>(d), final_grad, sizeof(T) * layer.values());
        }
      }
      if (!any && !(u.changes && final_grad)) {
        if (!e.inject && !joined) continue;  // nothing flows through this update
        if (!e.inject) continue;             // the open drive keeps what it has
        std::memset(static_cast<void*>(d), 0, sizeof(T) * layer.values());
      }
      if (unfused)
        for (std::int64_t k = 0; k < layer.values(); ++k)
          out.evidence[k] += held.hold.get()[k] == T(0) ? T(0) : held.hold.get()[k] * d[k];
      if (!any || unfused) run_epilogue(isa, pool, e, layer.view(d, kType));
      if (l == 0 && out.external) add_to(out.external, d, layer.values());
      if (joined) *joined = total;
      if (has_up && joined != &drives.up) drives.up = d;
      if (has_down && joined != &drives.down) drives.down = d;
    }
  }
  // What reaches the start.
  for (int l = 0; l <= top; ++l) {
    const Layer& layer = net.layers[l];
    const bool zero = l > 0 && all_zero(given[l].get(), layer.values());
    const bool asked = out.states[l] || (l == 0 && out.evidence);
    if (l == 0 ? !(asked || want.weights) : !(asked || (want.weights && !zero))) continue;
    Memory<T> g = zeros<T>(layer.values());
    const T* const final_grad = ended[l] ? nullptr : final_grads[l].get();
    if (!carrier.gather(l, g.get(), final_grad, nullptr, weights, l == 0 ? start.get() : given[l].get()) && final_grad)
      std::memcpy(static_cast<void*>(g.get()), final_grad, sizeof(T) * layer.values());
    for (std::int64_t k = 0; asked && k < layer.values(); ++k) {
      const T share = l == 0 && held.any ? held.hold.get()[k] : T(0);
      if (l == 0 && out.evidence) out.evidence[k] += share == T(0) ? T(0) : share * g.get()[k];
      if (out.states[l]) out.states[l][k] = share == T(1) ? T(0) : (T(1) - share) * g.get()[k];
    }
  }
  if (!weights.finish())
    return settle_backward_as<T>(net, grad_states, grad_readouts, states, evidence, hold, has_external, readouts,
                                 trajectory, tied, activation, slope, up_down, want, false);
  out.finish(want);
  return std::move(out.all);
}

Tensors settle_backward(const Tensors& grad_states, const Tensor& grad_readouts, const Tensors& states,
                        const Tensors& weights, const Tensors& reverse, const Maybe& evidence, const Maybe& hold,
                        bool has_external, const Tensor& readouts, const Tensor& trajectory, const Ints& pools,
                        const Ints& padding, const std::string& activation, double slope, const std::string& order,
                        const std::vector<bool>& needs) {
  const Network net = network_of(states, weights, reverse, pools, padding);
  STD_TORCH_CHECK(grad_states.size() == states.size(), "grad_states: expected one for each state");
  const Activation f = activation_named(activation);
  const bool up_down = up_down_of(order);
  return dtype_of(states[0], "states[0]") == DType::f64
             ? settle_backward_as<double>(net, grad_states, grad_readouts, states, evidence, hold, has_external,
                                          readouts, trajectory, reverse.empty(), f, slope, up_down, wanted_of(needs))
             : settle_backward_as<float>(net, grad_states, grad_readouts, states, evidence, hold, has_external,
                                         readouts, trajectory, reverse.empty(), f, slope, up_down, wanted_of(needs));
}

// The adjoint of a fixed point: a_l = f'(h_l) (g_l + the adjoint drives from below and above), swept as the states
// were.
template <class T>
std::tuple<Tensors, Tensor, Tensor> settle_adjoint_as(const Network& net, const Tensors& grad_states,
                                                      const Tensor& grad_readout, const Tensors& states,
                                                      const Maybe& evidence, const Maybe& hold, bool has_external,
                                                      const Tensor& readout, bool tied, Activation activation,
                                                      double slope, bool up_down, const Stop& stop,
                                                      const Wanted& want) {
  const InstructionSet& isa = instruction_set();
  const ThreadPool pool = torch_pool();
  constexpr DType kType = kDTypeOf<T>;
  const Tensor& like = states[0];
  const int top = net.top();
  const Layer& visible = net.layers[0];
  const std::int64_t samples = visible.n;
  const Held<T> held(isa, pool, visible, evidence, hold, like);

  std::vector<Dense<T>> fixed, grads;
  for (int l = 0; l <= top; ++l) {
    fixed.emplace_back(isa, pool, view_of(states[l], "states"));
    grads.emplace_back(grad_states[l].numel() ? Dense<T>(isa, pool, view_of(grad_states[l], "grad_states"))
                                              : Dense<T>());
  }
  const Dense<T> seen(isa, pool, view_of(readout, "readout"));
  Dense<T> seen_grad;
  if (grad_readout.numel()) seen_grad = Dense<T>(isa, pool, view_of(grad_readout, "grad_readout"));
  // What is injected into the visible layer, beside what the layer above returns.
  Memory<T> inject = zeros<T>(visible.values());
  for (std::int64_t k = 0; k < visible.values(); ++k) {
    const T share = held.any ? held.hold.get()[k] : T(0);
    if (grads[0].get() && share != T(1)) inject.get()[k] += (T(1) - share) * grads[0].get()[k];
    if (seen_grad.get()) inject.get()[k] += seen_grad.get()[k];
  }

  std::vector<Memory<T>> places[2], between(top + 1);
  std::vector<const T*> start, ended;
  for (auto& p : places)
    for (const Layer& l : net.layers) p.push_back(zeros<T>(l.values()));
  for (int l = 0; l <= top; ++l) start.push_back(places[1][l].get());
  ended = start;
  // Nothing that a held unit takes is passed on: the visible layer is still swept, for its own gradient.
  Sweeper<T> sweeper(isa, pool, net, {}, true, schedule(top + 1, up_down, false, true), start);
  Changes<T> changes(samples);
  std::int64_t sweeps = 0;
  double change = std::numeric_limits<double>::infinity();
  while (sweeps < stop.max_steps) {
    changes.clear();
    for (const Update& u : sweeper.sweep(sweeps)) {
      const Layer& layer = net.layers[u.layer];
      T* const to = u.last ? places[sweeps % 2][u.layer].get()
                           : (between[u.layer] ? between[u.layer] : between[u.layer] = Memory<T>(layer.values())).get();
      Epilogue e;
      e.result = to, e.image = layer.image(), e.channels = layer.c;
      e.activation = activation, e.slope = slope;
      e.output = u.layer ? fixed[u.layer].get() : seen.get();
      e.inject = u.layer ? grads[u.layer].get() : inject.get();
      if (u.layer == 0 && held.any) e.hold = held.hold.get();
      if (u.last) e.previous = ended[u.layer], e.change = changes.change.data(), e.largest = changes.largest.data();
      Sink sink;
      sink.out = layer.view(to, kType);
      sink.epilogue = &e;
      sweeper.update(u, samples, sink, to);
      if (u.last) ended[u.layer] = to;
    }
    ++sweeps;
    const double largest = Changes<T>::most(changes.largest, samples);
    change = Changes<T>::most(changes.change, samples);
    change = largest > 0 ? change / largest : (largest == 0 ? 0 : largest);
    if (change < stop.theta || largest == 0) break;
  }

  Outputs<T> out(net, like, want, !tied, held.any, has_external);
  for (const bool winograd : {true, false}) {
    WeightGradients<T> weights(isa, pool, net, out.weights, out.reverse, winograd);
    for (int e = 0; e < top; ++e) {
      weights.up(e, fixed[e].get(), ended[e + 1]);
      weights.down(e, ended[e], fixed[e + 1].get());
    }
    if (weights.finish()) break;
  }
  if (want.biases)
    for (int l = 0; l <= top; ++l) {
      const Layer& layer = net.layers[l];
      for (std::int64_t k = 0; k < layer.values(); ++k) out.biases[l][k % layer.c] += double(ended[l][k]);
    }
  if (out.external) std::memcpy(static_cast<void*>(out.external), ended[0], sizeof(T) * visible.values());
  if (out.evidence) {
    Memory<T> g(visible.values());
    Sink sink;
    sink.out = visible.view(g.get(), kType);
    sweeper.directions().down(0, samples, ended[1], sink);
    for (std::int64_t k = 0; k < visible.values(); ++k) {
      const T share = held.hold.get()[k];
      out.evidence[k] = share == T(0) ? T(0) : share * (g.get()[k] + (grads[0].get() ? grads[0].get()[k] : T(0)));
    }
  }
  out.finish(want);
  const torch::headeronly::IntHeaderOnlyArrayRef none;
  Tensor steps_out = torch::stable::empty(none, ScalarType::Long, std::nullopt, like.device());
  Tensor change_out = torch::stable::empty(none, like.scalar_type(), std::nullopt, like.device());
  *static_cast<std::int64_t*>(steps_out.data_ptr()) = sweeps;
  *static_cast<T*>(change_out.data_ptr()) = T(change);
  return {std::move(out.all), steps_out, change_out};
}

std::tuple<Tensors, Tensor, Tensor> settle_adjoint(const Tensors& grad_states, const Tensor& grad_readout,
                                                   const Tensors& states, const Tensors& weights,
                                                   const Tensors& reverse, const Maybe& evidence, const Maybe& hold,
                                                   bool has_external, const Tensor& readout, const Ints& pools,
                                                   const Ints& padding, const std::string& activation, double slope,
                                                   const std::string& order, double theta, std::int64_t max_steps,
                                                   const std::vector<bool>& needs) {
  const Network net = network_of(states, weights, reverse, pools, padding);
  const Activation f = activation_named(activation);
  const Stop stop{theta, max_steps, false};
  const bool up_down = up_down_of(order);
  return dtype_of(states[0], "states[0]") == DType::f64
             ? settle_adjoint_as<double>(net, grad_states, grad_readout, states, evidence, hold, has_external, readout,
                                         reverse.empty(), f, slope, up_down, stop, wanted_of(needs))
             : settle_adjoint_as<float>(net, grad_states, grad_readout, states, evidence, hold, has_external, readout,
                                        reverse.empty(), f, slope, up_down, stop, wanted_of(needs));
}

}  // namespace
}  // namespace lmser

STABLE_TORCH_LIBRARY_IMPL(lmser, CPU, m) {
  m.impl("settle", TORCH_BOX(&lmser::settle));
  m.impl("settle_backward", TORCH_BOX(&lmser::settle_backward));
  m.impl("settle_adjoint", TORCH_BOX(&lmser::settle_adjoint));
}
