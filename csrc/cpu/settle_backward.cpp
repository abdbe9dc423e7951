// Back through the sweeps, update by update.
//
// Walking back to the update that made version v of h_l, every drive computed from v has its whole gradient: that of
// y_{l+1} and that of u_{l-1}, each of which may have served several updates. Their transposed convolutions give the
// gradient of h_l, the epilogue makes d = f'(h_l) * (that) of it, and d goes to the gradients of y_l and of u_l.
#include "settle_gradients.h"
#include "settle_replay.h"

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
      : net_(net), pool_(pool), directions_(isa, net, kDTypeOf<T>, true) {
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
      run(directions_.up(l, below, first));
      sink.add = first.out;
    }
    sink.epilogue = epilogue;
    if (above)
      run(directions_.down(l, above, sink));
    else if (below)
      run(directions_.up(l, below, sink));
    if (above) weights.up(l, state, above), drives[l + 1].up = nullptr;
    if (below) weights.down(l - 1, below, state), drives[l - 1].down = nullptr;
    return above || below;
  }

 private:
  void run(const DirectionCall& call) const { call.conv->run(pool_, call.source, call.sink); }

  const Network& net_;
  const ThreadPool& pool_;
  Directions directions_;
  std::vector<Memory<T>> partial_ = std::vector<Memory<T>>(net_.layers.size());
};

struct Forward {
  const Tensors& states;
  const Maybe &evidence, &hold;
  bool external;
  const Tensor &readouts, &trajectory;
  bool tied;
  Activation activation;
  double slope;
  bool up_down;
};

template <class T>
class Backward {
 public:
  Backward(const Network& net, const Forward& forward, const Tensors& grad_states, const Tensor& grad_readouts,
           const Wanted& want, bool winograd)
      : net_(net),
        visible_(net.layers[0]),
        forward_(forward),
        grad_readouts_(grad_readouts),
        want_(want),
        held_(isa_, pool_, visible_, forward.evidence, forward.hold, forward.states[0]),
        plan_(schedule(net.top() + 1, forward.up_down, held_.all, true)),
        given_(dense_states<T>(isa_, pool_, forward.states)),
        places_(net, plan_),
        replay_(isa_, pool_, net, places_, {forward.trajectory.data_ptr(), dtype_of(forward.trajectory, "trajectory")},
                forward.activation, forward.slope),
        out_(net, forward.states[0], want, !forward.tied, held_.any, forward.external),
        weights_(isa_, pool_, net, out_.weights, out_.reverse, winograd),
        carrier_(isa_, pool_, net),
        ended_(net.layers.size(), false),
        held_state_(visible_.values()) {
    const Tensor& seen = forward.readouts;
    STD_TORCH_CHECK(seen.dim() == 5 && seen.numel() == seen.size(0) * visible_.values(),
                    "readouts must be (T, N, C, H, W)");
    STD_TORCH_CHECK(forward.trajectory.numel() == places_.values(seen.size(0)), "trajectory has ",
                    forward.trajectory.numel(), " values; expected ", places_.values(seen.size(0)));
    for (const Tensor& grad : grad_states)
      final_grads_.emplace_back(grad.numel() ? Dense<T>(isa_, pool_, view_of(grad, "grad_states")) : Dense<T>());
  }

  // False where a minimal-filtering weight gradient is not finite.
  bool run() {
    for (std::int64_t t = forward_.readouts.size(0); t-- > 0;)
      for (std::size_t i = plan_.sweep(t).size(); i-- > 0;) update(t, i);
    for (int l = 0; l <= net_.top(); ++l) start(l);
    if (!weights_.finish()) return false;
    out_.finish(want_);
    return true;
  }
  Tensors take() { return std::move(out_.all); }

 private:
  static constexpr DType kType = kDTypeOf<T>;

  static View sweep_of(const Tensor& t, std::int64_t i) {
    return {static_cast<char*>(t.data_ptr()) + std::int64_t(sizeof(T)) * i * t.stride(0),
            kType,
            t.size(1),
            t.size(2),
            t.size(3),
            t.size(4),
            t.stride(1),
            t.stride(2),
            t.stride(3),
            t.stride(4)};
  }

  // Back through update i of sweep t.
  void update(std::int64_t t, std::size_t i) {
    const Update& u = plan_.sweep(t)[i];
    const int l = u.layer;
    const Layer& layer = net_.layers[l];
    DriveGradients<T>& drives = carrier_.drives[l];
    const T* const final_grad = u.changes && !ended_[l] ? final_grads_[l].get() : nullptr;
    if (u.changes) ended_[l] = true;
    T* const d = drives.free_place();
    Epilogue e;
    e.result = d, e.image = layer.image(), e.channels = layer.c;
    e.activation = forward_.activation, e.slope = forward_.slope;
    if (want_.biases) e.bias_grad = out_.biases[l].data();
    Dense<T> seen, read_grad;
    const T* state;
    if (l == 0) {
      seen = Dense<T>(isa_, pool_, sweep_of(forward_.readouts, t));
      if (grad_readouts_.numel()) read_grad = Dense<T>(isa_, pool_, sweep_of(grad_readouts_, t));
      e.output = seen.get(), e.inject = read_grad.get(), e.hold = held_.hold.get();
      state = visible_state(seen.get());
    } else {
      if (!replay_.is_of(l)) seen = Dense<T>(isa_, pool_, replay_.kept(layer, t, i));
      state = replay_.is_of(l) ? replay_.state(t, l, i, [&] { return visible_before(t); }) : seen.get();
      e.output = state;
    }
    T** const open = open_drive(l);
    if (open) e.extra = *open, e.total = drives.free_place(d);

    // Where the evidence wants its share of what reaches a held unit, that is taken before the epilogue.
    const bool shares = l == 0 && out_.evidence && u.changes;
    const bool gathered = u.changes && carrier_.gather(l, d, final_grad, shares ? nullptr : &e, weights_, state);
    if (!gathered) {
      if (!final_grad && !e.inject) return;  // nothing flows through this update
      if (final_grad)
        std::memcpy(static_cast<void*>(d), final_grad, sizeof(T) * layer.values());
      else
        std::memset(static_cast<void*>(d), 0, sizeof(T) * layer.values());
    }
    if (shares) add_share(d);
    if (!gathered || shares) run_epilogue(isa_, pool_, e, layer.view(d, kType));
    if (l == 0 && out_.external)
      for (std::int64_t k = 0; k < layer.values(); ++k) out_.external[k] += d[k];
    if (open) *open = static_cast<T*>(e.total);
    if (l > 0 && open != &drives.up) drives.up = d;
    if (l < net_.top() && open != &drives.down) drives.down = d;
  }

  // The drive of `layer` that has a gradient from a later update already: the new one is added to it.
  T** open_drive(int layer) {
    DriveGradients<T>& drives = carrier_.drives[layer];
    STD_TORCH_CHECK(!drives.up || !drives.down, "settle_backward: both drives of a layer are open");
    return drives.up ? &drives.up : drives.down ? &drives.down : nullptr;
  }

  // What the first hidden layer saw, of what the visible units would have taken.
  const T* visible_state(const T* seen) {
    if (!held_.any) return seen;
    if (!held_.all || !visible_done_) put_in(held_.all ? given_[0].get() : seen);
    visible_done_ = true;
    return held_state_.get();
  }
  // The visible state that sweep t began with, where it is not wholly held.
  const T* visible_before(std::int64_t t) {
    read_before_ = t == 0 ? Dense<T>() : Dense<T>(isa_, pool_, sweep_of(forward_.readouts, t - 1));
    const T* const value = t == 0 ? given_[0].get() : read_before_.get();
    if (!held_.any) return value;
    put_in(value);
    return held_state_.get();
  }
  void put_in(const T* value) {
    Epilogue e;
    e.result = const_cast<T*>(value), e.image = visible_.image(), e.state = held_state_.get();
    e.evidence = held_.evidence.get(), e.hold = held_.hold.get();
    run_epilogue(isa_, pool_, e, visible_.view(value, kType));
  }
  void add_share(const T* grad) {
    for (std::int64_t k = 0; k < visible_.values(); ++k) {
      const T share = held_.hold.get()[k];
      out_.evidence[k] += share == T(0) ? T(0) : share * grad[k];
    }
  }

  // What reaches the state that layer l started from.
  void start(int l) {
    const Layer& layer = net_.layers[l];
    const bool asked = out_.states[l] || (l == 0 && out_.evidence);
    const bool drove = want_.weights && (l == 0 || !all_are(pool_, T(0), given_[l].get(), layer.values()));
    if (!asked && !drove) return;
    Memory<T> g = zeros<T>(layer.values());
    const T* state = given_[l].get();
    if (l == 0 && held_.any) put_in(state), state = held_state_.get();
    const T* const final_grad = ended_[l] ? nullptr : final_grads_[l].get();
    if (!carrier_.gather(l, g.get(), final_grad, nullptr, weights_, state) && final_grad)
      std::memcpy(static_cast<void*>(g.get()), final_grad, sizeof(T) * layer.values());
    if (l == 0 && out_.evidence) add_share(g.get());
    if (!out_.states[l]) return;
    for (std::int64_t k = 0; k < layer.values(); ++k) {
      const T share = l == 0 && held_.any ? held_.hold.get()[k] : T(0);
      out_.states[l][k] = share == T(1) ? T(0) : (T(1) - share) * g.get()[k];
    }
  }

  const InstructionSet& isa_ = instruction_set();
  ThreadPool pool_ = torch_pool();
  const Network& net_;
  const Layer visible_;
  Forward forward_;
  const Tensor& grad_readouts_;
  Wanted want_;
  Held<T> held_;
  Schedule plan_;
  std::vector<Dense<T>> given_;
  Trajectory places_;
  Replay<T> replay_;
  Outputs<T> out_;
  WeightGradients<T> weights_;
  Carrier<T> carrier_;
  std::vector<bool> ended_;  // whether the gradient of the final state was taken in
  Memory<T> held_state_;
  bool visible_done_ = false;
  Dense<T> read_before_;
  std::vector<Dense<T>> final_grads_;
};

template <class T>
Tensors settle_backward_as(const Network& net, const Forward& forward, const Tensors& grad_states,
                           const Tensor& grad_readouts, const Wanted& want) {
  Backward<T> once(net, forward, grad_states, grad_readouts, want, true);
  if (once.run()) return once.take();
  Backward<T> again(net, forward, grad_states, grad_readouts, want, false);
  again.run();
  return again.take();
}

Tensors settle_backward(const Tensors& grad_states, const Tensor& grad_readouts, const Tensors& states,
                        const Tensors& weights, const Tensors& reverse, const Maybe& evidence, const Maybe& hold,
                        bool has_external, const Tensor& readouts, const Tensor& trajectory, const Ints& pools,
                        const Ints& padding, const std::string& activation, double slope, const std::string& order,
                        const std::vector<bool>& needs) {
  const Network net = network_of(states, weights, reverse, pools, padding);
  STD_TORCH_CHECK(grad_states.size() == states.size(), "grad_states: expected one for each state");
  const Forward forward{
      states, evidence,         hold, has_external, readouts, trajectory, reverse.empty(), activation_named(activation),
      slope,  up_down_of(order)};
  const auto run =
      dtype_of(states[0], "states[0]") == DType::f64 ? settle_backward_as<double> : settle_backward_as<float>;
  return run(net, forward, grad_states, grad_readouts, wanted_of(needs));
}

}  // namespace
}  // namespace lmser

STABLE_TORCH_LIBRARY_IMPL(lmser, CPU, m) { m.impl("settle_backward", TORCH_BOX(&lmser::settle_backward)); }
