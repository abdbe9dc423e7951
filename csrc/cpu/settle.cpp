// The settling loop as one operator.
//
// Everything inside is dense channels-last memory of the compute type. With `keep` what the backward needs of the
// hidden layers (`Trajectory`) is written to one trajectory, sweep after sweep in the order of the updates, and the
// visible layer's unclamped values to `readouts`: all that it reads.
#include "settle_state.h"

namespace lmser {
namespace {

// Memory that grows at its end. Pages that are not written are not there, so room for all that may come is asked for
// where it is at most kRoom; more would crowd everything else out of the output store. What pointed into it before it
// grew stays valid until `forget`.
template <class T>
class Growing {
 public:
  static constexpr std::int64_t kRoom = (std::int64_t(1) << 28) / std::int64_t(sizeof(T));
  explicit Growing(std::int64_t most) : most_(most) {}
  // Room for `needed` values, of which the first `used` are kept.
  T* with_room(std::int64_t used, std::int64_t needed) {
    if (needed > room_) {
      room_ = std::max(needed, std::min(most_, std::max({kRoom, 4 * room_, 16 * (needed - used)})));
      Memory<T> larger(room_);
      if (used) std::memcpy(static_cast<void*>(larger.get()), block_.get(), sizeof(T) * used);
      before_ = std::move(block_), block_ = std::move(larger);
    }
    return block_.get();
  }
  T* get() const { return block_.get(); }
  void forget() { before_ = Memory<T>(); }
  Memory<T> take() {
    with_room(0, 1);
    return std::move(block_);
  }

 private:
  std::int64_t most_, room_ = 0;
  Memory<T> block_, before_;
};

struct How {
  Activation activation;
  double slope;
  bool up_down, keep, half, readouts;  // half: the trajectory is kept in bfloat16
};

template <class T>
class Solve {
 public:
  Solve(const Network& net, const Tensors& states, const std::vector<View>& biases, const Maybe& evidence,
        const Maybe& hold, const Maybe& external, const How& how, const Stop& stop, bool filtering)
      : net_(net),
        visible_(net.layers[0]),
        samples_(visible_.n),
        like_(states[0]),
        how_(how),
        stop_(stop),
        every_(how.keep || how.readouts),
        held_(isa_, pool_, visible_, evidence, hold, like_),
        // a held unit's state is not what the sweep computed: it has a place of its own
        apart_(held_.any && !held_.all),
        plan_(schedule(net.top() + 1, how.up_down, held_.all, every_)),
        given_(dense_states<T>(isa_, pool_, states)),
        places_(net, plan_),
        biases_(biases),
        in_trajectory_(how.keep && !how.half),
        trajectory_(std::max<std::int64_t>(places_.values(stop.max_steps), 1)),
        rounded_(std::max<std::int64_t>(places_.values(stop.max_steps), 1)),
        seen_(visible_.values() * (every_ ? stop.max_steps : 1)),
        changes_(samples_),
        who_(samples_),
        steps_(samples_, 0),
        change_(samples_, std::numeric_limits<double>::infinity()) {
    STD_TORCH_CHECK(!(how.keep && stop.per_sample), "per_sample cannot keep a trajectory");
    if (external)
      external_ = Dense<T>(
          isa_, pool_,
          same_shape_view(external, "external", like_, "states[0]", visible_.n, visible_.c, visible_.h, visible_.w));
    evidence_ = movable(own_evidence_, held_.evidence.get());
    hold_ = movable(own_hold_, held_.hold.get());
    input_ = movable(own_external_, external_.get());
    std::iota(who_.begin(), who_.end(), 0);
    start();
    // What a replayed layer's first state is made with is kept as well.
    for (int l = 1; how.keep && l < net.top(); ++l)
      if (places_.is_replayed(l)) plan_.first[places_.replayed(0, l).up].keep_down = true;
    sweeper_.emplace(isa_, pool_, net_, biases, false, plan_, ended_, filtering);
  }

  // Nothing where a result is not finite and was not made by direct sums.
  std::optional<std::tuple<Tensors, Tensor, Tensor, Tensor, Tensor>> run() {
    std::int64_t active = samples_;
    double change = std::numeric_limits<double>::infinity();
    while (sweeps_ < stop_.max_steps) {
      if (!sweep(active)) return std::nullopt;
      if (stop_.per_sample) {
        active = stop_samples(active);
        if (active == 0) break;
        carry_stopped(active);
      } else {
        change = Changes<T>::most(changes_.change, samples_);
        if (change < stop_.theta) break;
      }
    }
    if (!every_ && !last_readout()) return std::nullopt;
    return results(change);
  }

 private:
  static constexpr DType kType = kDTypeOf<T>;

  bool computed_in_trajectory(int layer) const { return in_trajectory_ && layer > 0 && !places_.is_replayed(layer); }

  // Stopping by sample moves samples about: it works on copies.
  const T* movable(Memory<T>& own, const T* data) {
    if (!data || !stop_.per_sample) return data;
    own = Memory<T>(visible_.values());
    std::memcpy(static_cast<void*>(own.get()), data, sizeof(T) * visible_.values());
    return own.get();
  }

  void start() {
    const int top = net_.top();
    for (auto& e : ends_) e.resize(top + 1);
    shown_ = Memory<T>(visible_.values());
    for (const Dense<T>& state : given_) ended_.push_back(state.get());
    for (int l = 0; l <= top; ++l) {
      if (l > 0 && !stop_.per_sample) continue;  // nothing of the caller's may be moved
      T* const to = place_beside(l);
      if (l == 0 && held_.any)
        run_epilogue(isa_, pool_, put_in(const_cast<T*>(ended_[0]), to), visible_.view(ended_[0], kType));
      else
        std::memcpy(static_cast<void*>(to), ended_[l], sizeof(T) * net_.layers[l].values());
      ended_[l] = to;
    }
  }

  bool is_own(int layer) const {
    return ended_[layer] == ends_[0][layer].get() || ended_[layer] == ends_[1][layer].get();
  }
  // Where a layer's next state goes: its other place than the one it stands in.
  T* place_beside(int layer) {
    if (computed_in_trajectory(layer)) return nullptr;
    Memory<T>& place = ends_[ended_[layer] == ends_[0][layer].get() ? 1 : 0][layer];
    if (!place) place = Memory<T>(net_.layers[layer].values());
    return place.get();
  }

  // Evidence into `state`, where `result` is what the visible units would take.
  Epilogue put_in(T* result, T* state) const {
    Epilogue e;
    e.result = result, e.image = visible_.image(), e.state = state;
    e.evidence = evidence_, e.hold = hold_;
    return e;
  }

  bool sweep(std::int64_t active) {
    const std::vector<Update>& updates = plan_.sweep(sweeps_);
    if (in_trajectory_)
      trajectory_.with_room(places_.values(sweeps_), places_.values(sweeps_ + 1));
    else if (how_.keep)
      rounded_.with_room(places_.values(sweeps_), places_.values(sweeps_ + 1));
    T* readout = shown_.get();
    if (every_ && !stop_.per_sample)
      readout =
          seen_.with_room(sweeps_ * visible_.values(), (sweeps_ + 1) * visible_.values()) + sweeps_ * visible_.values();
    changes_.clear();
    for (std::size_t i = 0; i < updates.size(); ++i) {
      const Update& u = updates[i];
      const Layer& layer = net_.layers[u.layer];
      const bool ends = u.last && u.changes,
                 in_place = ends && u.layer > 0 && is_own(u.layer) && sweeper_->compares_in_place(u);
      T* const end = in_place ? const_cast<T*>(ended_[u.layer]) : place_beside(u.layer);
      Epilogue e;
      T *to, *stays;  // what is computed, and what its readers see
      if (u.layer > 0) {
        to = stays = computed_in_trajectory(u.layer) ? trajectory_.get() + places_.at(sweeps_, i) : end;
      } else if (apart_) {
        e = put_in(readout, end);
        to = readout, stays = end;
      } else {
        // Without evidence the readout is the state; it must outlive the next sweep, which is compared with it.
        const bool own_place = u.changes && (!every_ || stop_.per_sample);
        to = stays = own_place ? end : readout;
      }
      e.result = to, e.image = layer.image();
      if (ends) e.previous = ended_[u.layer], e.change = changes_.change.data();
      const bool replayed = how_.keep && places_.is_replayed(u.layer),
                 pooled = u.layer > 0 && (!how_.keep || replayed) && sweeper_->only_pooled(u),
                 zero_above = u.layer < net_.top() && sweeper_->is_zero(u.layer + 1);
      Step<T>& step = sweeper_->add(u, sink(u.layer, to), stays, pooled);
      step.epilogue = e;
      if (replayed && u.new_down)
        step.after =
            keep_drive(u.layer, zero_above ? nullptr : sweeper_->drive_from_above(u.layer), places_.at(sweeps_, i));
      else if (!replayed && u.layer > 0 && how_.keep && how_.half)
        step.rounded = layer.view(rounded_.get() + places_.at(sweeps_, i), DType::bf16);
      if (ends) ended_[u.layer] = stays;
    }
    if (!sweeper_->run(active)) return false;
    trajectory_.forget(), rounded_.forget(), seen_.forget();
    ++sweeps_;
    return true;
  }

  // A step's last part: the drive from above of a replayed layer, one value a window, with its bias into the trajectory
  // from value `at` on. `drive` null: zero.
  std::function<void(std::int64_t, std::int64_t, std::int64_t)> keep_drive(int l, const T* drive, std::int64_t at) {
    const Layer windows = windows_of(net_, l);
    static constexpr T kZero = 0;
    View from = windows.view(drive ? drive : &kZero, kType);
    if (!drive) from.sn = from.sc = from.sh = from.sw = 0;
    const View to =
        how_.half ? windows.view(rounded_.get() + at, DType::bf16) : windows.view(trajectory_.get() + at, kType);
    return [this, l, from, to](std::int64_t n0, std::int64_t n1, std::int64_t task) {
      run_add_act(isa_, task == std::max(1, pool_.threads) ? pool_ : alone(), images_of(from, n0, n1), {}, biases_[l],
                  images_of(to, n0, n1), Activation::identity, 0);
    };
  }

  Sink sink(int layer, T* to) const {
    Sink s;
    s.out = net_.layers[layer].view(to, kType);
    s.activation = how_.activation, s.slope = how_.slope;
    if (layer == 0 && input_) s.add = visible_.view(input_, kType);
    return s;
  }

  // After a sweep in which every sample stops by itself: those that are at rest go behind the active ones.
  std::int64_t stop_samples(std::int64_t active) {
    if (every_) show_samples(active);
    for (std::int64_t i = 0; i < active; ++i)
      steps_[who_[i]] = sweeps_, change_[who_[i]] = magnitude<T>(changes_.change[i].load());
    for (std::int64_t i = 0; i < active;) {
      if (!(change_[who_[i]] < stop_.theta)) {
        ++i;
        continue;
      }
      if (i == --active) break;
      const auto exchange = [&](const T* data, std::int64_t image) {
        T* const p = const_cast<T*>(data);
        if (p) std::swap_ranges(p + i * image, p + (i + 1) * image, p + active * image);
      };
      for (int l = 0; l <= net_.top(); ++l) exchange(ended_[l], net_.layers[l].image());
      for (const Memory<T>* m : {&own_evidence_, &own_hold_, &own_external_, &shown_})
        exchange(m->get(), visible_.image());
      sweeper_->swap_samples(i, active);
      std::swap(who_[i], who_[active]);
    }
    return active;
  }
  // The readouts of this sweep, every sample in its own place; those at rest repeat their last.
  void show_samples(std::int64_t active) {
    const std::int64_t image = visible_.image(), values = visible_.values();
    T* const all = seen_.with_room((sweeps_ - 1) * values, sweeps_ * values);
    const T* const from = held_.any ? shown_.get() : ended_[0];
    for (std::int64_t i = 0; i < samples_; ++i) {
      const T* const value = i < active ? from + i * image : all + (sweeps_ - 2) * values + who_[i] * image;
      std::memcpy(static_cast<void*>(all + (sweeps_ - 1) * values + who_[i] * image), value, sizeof(T) * image);
    }
  }
  // The next sweep ends in the other place: what is at rest must be there as well.
  void carry_stopped(std::int64_t active) {
    for (int l = 0; l <= net_.top(); ++l) {
      const std::int64_t image = net_.layers[l].image();
      T* const other = place_beside(l);
      std::memcpy(static_cast<void*>(other + active * image), ended_[l] + active * image,
                  sizeof(T) * (samples_ - active) * image);
    }
  }

  std::tuple<Tensors, Tensor, Tensor, Tensor, Tensor> results(double change) {
    Tensors states;
    for (int l = 0; l <= net_.top(); ++l) {
      Memory<T>* own = nullptr;  // the state may be handed over as it lies
      for (auto& e : ends_)
        if (e[l].get() == ended_[l] && !stop_.per_sample && (every_ || held_.any || l > 0)) own = &e[l];
      Memory<T> state = own ? std::move(*own) : Memory<T>(net_.layers[l].values());
      if (!own) into_place(ended_[l], net_.layers[l].image(), state.get());
      states.push_back(state_tensor(std::move(state), net_.layers[l], like_));
    }
    if (!every_)
      into_place(held_.any ? shown_.get() : ended_[0], visible_.image(), seen_.with_room(0, visible_.values()));
    Tensor readouts = sweeps_tensor(seen_.take(), every_ ? sweeps_ : 1, visible_, like_);
    const std::vector<std::int64_t> values{places_.values(sweeps_)};
    Tensor trajectory = in_trajectory_ ? tensor_of(trajectory_.take(), like_, values, {1})
                        : how_.keep    ? tensor_of(rounded_.take(), like_, values, {1}, ScalarType::BFloat16)
                                       : empty_1d(like_, 0);
    std::vector<std::int64_t> size;
    if (stop_.per_sample) size.push_back(samples_);
    const torch::headeronly::IntHeaderOnlyArrayRef sizes(size.data(), size.size());
    Tensor steps = torch::stable::empty(sizes, ScalarType::Long, std::nullopt, like_.device());
    Tensor changes = torch::stable::empty(sizes, like_.scalar_type(), std::nullopt, like_.device());
    for (std::int64_t i = 0; i < (stop_.per_sample ? samples_ : 1); ++i) {
      static_cast<std::int64_t*>(steps.data_ptr())[i] = stop_.per_sample ? steps_[i] : sweeps_;
      static_cast<T*>(changes.data_ptr())[i] = T(stop_.per_sample ? change_[i] : change);
    }
    return {std::move(states), readouts, trajectory, steps, changes};
  }
  void into_place(const T* from, std::int64_t image, T* to) const {
    for (std::int64_t i = 0; i < samples_; ++i)
      std::memcpy(static_cast<void*>(to + who_[i] * image), from + i * image, sizeof(T) * image);
  }
  // What the visible units would take at the end, where a wholly held layer was not swept for it.
  bool last_readout() {
    if (!held_.all) return true;
    Update u{0};
    u.new_down = true, u.changes = false;
    Step<T>& step = sweeper_->add(u, sink(0, shown_.get()), nullptr);
    step.epilogue.result = shown_.get(), step.epilogue.image = visible_.image();
    return sweeper_->run(samples_);
  }

  const InstructionSet& isa_ = instruction_set();
  ThreadPool pool_ = torch_pool();
  const Network& net_;
  const Layer visible_;
  std::int64_t samples_;
  Tensor like_;
  How how_;
  Stop stop_;
  bool every_;  // readouts of every sweep
  Held<T> held_;
  bool apart_;
  Schedule plan_;
  std::vector<Dense<T>> given_;
  Trajectory places_;
  const std::vector<View>& biases_;
  bool in_trajectory_;  // states are computed where they are kept
  Growing<T> trajectory_;
  Growing<std::uint16_t> rounded_;
  Growing<T> seen_;
  Changes<T> changes_;
  std::vector<std::int64_t> who_, steps_;  // which sample stands where
  std::vector<double> change_;
  Dense<T> external_;
  Memory<T> own_evidence_, own_hold_, own_external_, shown_;
  const T *evidence_ = nullptr, *hold_ = nullptr, *input_ = nullptr;
  // Two places a layer, the second where it is needed: taken in turns, but a state whose values are compared as they
  // are overwritten stays where it is. What comes before it in its sweep is beside it.
  std::vector<Memory<T>> ends_[2];
  std::vector<const T*> ended_;  // the states at the end of the last sweep
  std::optional<Sweeper<T>> sweeper_;
  std::int64_t sweeps_ = 0;
};

std::tuple<Tensors, Tensor, Tensor, Tensor, Tensor> settle(
    const Tensors& states, const Tensors& weights, const Tensors& reverse, const Tensors& biases, const Maybe& evidence,
    const Maybe& hold, const Maybe& external, const Ints& pools, const Ints& padding, const std::string& activation,
    double slope, const std::string& order, double theta, std::int64_t max_steps, bool per_sample, bool keep, bool half,
    bool readouts, double /* of the derivative: adjoint_theta */, std::int64_t /* adjoint_max_steps */,
    const std::string& /* unconverged */) {
  const Network net = network_of(states, weights, reverse, pools, padding);
  const std::vector<View> b = bias_views(biases, net, states[0]);
  STD_TORCH_CHECK(max_steps >= 1, "max_steps is ", max_steps, "; expected at least 1");
  const Stop stop{theta, max_steps, per_sample};
  const How how{activation_named(activation), slope, up_down_of(order), keep, half, readouts};
  const DType dtype = dtype_of(states[0], "states[0]");
  STD_TORCH_CHECK(dtype == DType::f32 || dtype == DType::f64, "states must be float32 or float64");
  STD_TORCH_CHECK(!half || dtype == DType::f32, "a bfloat16 trajectory is for float32 states");
  const auto solve = [&]<class T>(T) {
    auto found = Solve<T>(net, states, b, evidence, hold, external, how, stop, true).run();
    // Minimal filtering spreads what is not finite over whole tiles: the direct sum says where it really goes.
    return found ? *std::move(found) : *Solve<T>(net, states, b, evidence, hold, external, how, stop, false).run();
  };
  return dtype == DType::f64 ? solve(double()) : solve(float());
}

}  // namespace
}  // namespace lmser

STABLE_TORCH_LIBRARY_IMPL(lmser, CPU, m) { m.impl("settle", TORCH_BOX(&lmser::settle)); }
