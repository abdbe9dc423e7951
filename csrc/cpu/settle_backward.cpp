// Back through the sweeps, update by update.
//
// Walking back to the update that made version v of h_l, every drive computed from v has its whole gradient: that of
// y_{l+1} and that of u_{l-1}, each of which may have served several updates. Their transposed convolutions give the
// gradient of h_l, the epilogue makes d = f'(h_l) * (that) of it, and d goes to the gradients of y_l and of u_l.
#include "settle_gradients.h"

namespace lmser {
namespace {

// The gradients of the two drives of a layer, in three places of memory: a sum never overwrites what it reads.
template <class T>
class DriveGradients {
 public:
  explicit DriveGradients(std::int64_t values) : values_(values) {}
  T *up = nullptr, *down = nullptr;  // null: none yet
  // A place that neither of the two is in, nor `but`.
  T* free_place(const T* but = nullptr) {
    for (Memory<T>& m : places_) {
      if (!m) m = Memory<T>(values_);
      if (m.get() != up && m.get() != down && m.get() != but) return m.get();
    }
    return nullptr;
  }

 private:
  std::int64_t values_;
  Memory<T> places_[4];
};

// Edge directions of the adjoint: the gradient of a drive, carried to the state it was computed from.
template <class T>
class Carrier {
 public:
  Carrier(const InstructionSet& isa, const ThreadPool& pool, const Network& net)
      : net_(net), directions_(isa, pool, net, kDTypeOf<T>, {}, true) {
    for (const Layer& l : net.layers) drives.emplace_back(l.values());
  }
  std::vector<DriveGradients<T>> drives;

  // The gradient of layer l's state into `to` (with `epilogue` on the finished sum); false if there is none.
  bool gather(int l, T* to, const T* add, const Epilogue* epilogue, WeightGradients<T>& weights, const T* state) {
    T* const above = l < net_.top() ? drives[l + 1].up : nullptr;
    T* const below = l > 0 ? drives[l - 1].down : nullptr;
    const Layer& layer = net_.layers[l];
    Sink sink;
    sink.out = layer.view(to, kDTypeOf<T>);
    if (add) sink.add = layer.view(add, kDTypeOf<T>);
    if (above && below) {
      if (!partial_[l]) partial_[l] = Memory<T>(layer.values());
      Sink first = sink;
      first.out = layer.view(partial_[l].get(), kDTypeOf<T>);
      directions_.up(l, layer.n, below, first);
      sink.add = first.out;
    }
    sink.epilogue = epilogue;
    if (above)
      directions_.down(l, layer.n, above, sink);
    else if (below)
      directions_.up(l, layer.n, below, sink);
    if (above) weights.up(l, state, above), drives[l + 1].up = nullptr;
    if (below) weights.down(l - 1, below, state), drives[l - 1].down = nullptr;
    return above || below;
  }

 private:
  const Network& net_;
  Directions directions_;
  std::vector<Memory<T>> partial_ = std::vector<Memory<T>>(net_.layers.size());
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

}  // namespace
}  // namespace lmser

STABLE_TORCH_LIBRARY_IMPL(lmser, CPU, m) { m.impl("settle_backward", TORCH_BOX(&lmser::settle_backward)); }
