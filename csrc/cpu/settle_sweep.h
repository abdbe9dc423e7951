// One sweep after another over a network: which drive is computed, and which is remembered.
#pragma once

#include "settle_network.h"

namespace lmser {

template <class T>
class Sweeper {
 public:
  static constexpr DType kType = kDTypeOf<T>;

  // `states`: where each layer stands, dense; hidden layers that are all zero drive nothing until they are updated.
  // `biases`: one a layer, or none at all.
  Sweeper(const InstructionSet& isa, const ThreadPool& pool, const Network& net, const std::vector<View>& biases,
          bool adjoint, const Schedule& schedule, std::vector<const T*> states, bool filtering)
      : isa_(isa),
        pool_(pool),
        net_(net),
        schedule_(schedule),
        directions_(isa, net, kType, adjoint, filtering),
        states_(std::move(states)),
        zero_(net.layers.size(), false),
        pooled_(net.layers.size()),
        is_pooled_(net.layers.size(), false),
        up_drive_(net.layers.size()),
        down_drive_(net.layers.size()),
        has_down_(net.layers.size(), false),
        has_up_(net.layers.size(), false) {
    for (int l = 0; l <= net.top(); ++l) {
      biases_.push_back(dense_bias<T>(biases.empty() ? View{} : biases[l]));
      shares_.push_back(drives_share(schedule, l) && windows_of(net, l).values() == net.layers[l].values());
      if (l > 0) zero_[l] = all_are(pool, T(0), states_[l], net.layers[l].values());
    }
  }

  const std::vector<Update>& updates(std::int64_t t) const { return schedule_.sweep(t); }
  bool is_zero(int layer) const { return zero_[layer]; }
  // Where the step of an update that keeps it writes the drive from above, one value a window.
  T* drive_from_above(int layer) { return down_drive(layer); }
  Directions& directions() { return directions_; }

  // Whether the next step of `u` can compare the state it makes with what lay in its place.
  bool compares_in_place(const Update& u) {
    Sink sink;
    sink.out = net_.layers[u.layer].view(states_[u.layer], kType);
    const bool down = u.layer == 0 || !u.new_up || (u.new_down && !zero_[u.layer + 1]);  // the last of its calls
    const DirectionCall call = down ? directions_.down(u.layer, states_[u.layer + 1], sink) : up_to(u.layer, sink);
    return call.conv->prepare(pool_, call.source, call.sink).winograd.buffered();
  }

  // Whether means over windows are all that is needed of the state that `u` makes.
  bool only_pooled(const Update& u) const {
    return u.only_above && net_.edges[u.layer].pool.h * net_.edges[u.layer].pool.w > 1;
  }

  // The next step of this sweep: writes what `u.layer` takes from its neighbours to sink.out, and `kept` (what its
  // readers see, sink.out unless the epilogue makes another state of it) becomes its state. With `pooled`, which
  // `only_pooled` allows, sink.out is not read again.
  Step<T>& add(const Update& u, Sink sink, const T* kept, bool pooled = false) {
    const int l = u.layer;
    const Layer& layer = net_.layers[l];
    steps_.emplace_back();
    auto& calls = steps_.back().calls;
    sink.bias = biases_[l].get();
    if (pooled) {
      const Layer means = windows_of(net_, l);
      if (!pooled_[l]) pooled_[l] = Memory<T>(means.values());
      sink.pooled = means.view(pooled_[l].get(), kType);
      sink.pool_h = net_.edges[l].pool.h, sink.pool_w = net_.edges[l].pool.w;
    }
    const bool up = u.new_up && !zero_[l - 1], down = u.new_down && !zero_[l + 1];  // drives that are not zero
    if (up && down) {
      Sink linear;
      linear.out = layer.view(up_drive(l), kType);
      calls.push_back(up_to(l, linear));
      sink.add = linear.out;
      if (u.keep_down) keep_down(l, sink);
      calls.push_back(directions_.down(l, states_[l + 1], sink));
      has_up_[l] = u.keep_up, has_down_[l] = u.keep_down;
    } else if (down || l == 0) {
      if (l > 0 && !u.new_up && has_up_[l]) sink.add = layer.view(up_drive(l), kType);
      if (u.keep_down) keep_down(l, sink);
      calls.push_back(directions_.down(l, states_[l + 1], sink));
      has_down_[l] = u.keep_down;
      if (u.new_up || (shares_[l] && u.keep_down)) has_up_[l] = false;
    } else if (up || u.new_up) {
      if (!u.new_down && has_down_[l]) {
        const Pair window = window_of(net_, l);
        sink.add = windows_of(net_, l).view(down_drive(l), kType), sink.add_h = window.h, sink.add_w = window.w;
      }
      if (u.keep_up) sink.drive = layer.view(up_drive(l), kType);
      calls.push_back(up_to(l, sink));
      has_up_[l] = u.keep_up;
      if (u.new_down || (shares_[l] && u.keep_up)) has_down_[l] = false;
    } else {  // a new drive of zeros from above: computed, so that it is there
      if (has_up_[l]) sink.add = layer.view(up_drive(l), kType);
      calls.push_back(directions_.down(l, states_[l + 1], sink));
      has_down_[l] = false;
    }
    if (u.changes) states_[l] = kept, zero_[l] = false, is_pooled_[l] = pooled;
    return steps_.back();
  }

  // Makes the steps that were added, for the first `samples`; false where a result is not finite and the direct sum
  // must say which outputs that really reaches: then nothing computed so far is to be used.
  bool run(std::int64_t samples) {
    const bool finite = run_steps<T>(isa_, pool_, steps_, samples);
    steps_.clear();
    return finite;
  }

  // Sample `a` takes the place of sample `b` in what is remembered, and the other way round.
  void swap_samples(std::int64_t a, std::int64_t b) {
    for (int l = 0; l <= net_.top(); ++l)
      for (const auto& [drive, image] : {std::pair{up_drive_[l].get(), net_.layers[l].image()},
                                         std::pair{down_drive_[l].get(), windows_of(net_, l).image()}})
        if (drive) std::swap_ranges(drive + a * image, drive + (a + 1) * image, drive + b * image);
  }

 private:
  DirectionCall up_to(int l, const Sink& sink) {
    const bool pooled = is_pooled_[l - 1];
    return directions_.up(l, pooled ? pooled_[l - 1].get() : states_[l - 1], sink, pooled);
  }
  void keep_down(int l, Sink& sink) {
    sink.drive = windows_of(net_, l).view(down_drive(l), kType), sink.drive_once = true;
  }
  T* up_drive(int l) {
    if (!up_drive_[l]) up_drive_[l] = Memory<T>(net_.layers[l].values());
    return up_drive_[l].get();
  }
  T* down_drive(int l) {
    if (shares_[l]) return up_drive(l);
    if (!down_drive_[l]) down_drive_[l] = Memory<T>(windows_of(net_, l).values());
    return down_drive_[l].get();
  }

  const InstructionSet& isa_;
  const ThreadPool& pool_;
  const Network& net_;
  Schedule schedule_;
  Directions directions_;
  std::vector<Buffer<T>> biases_;
  std::vector<const T*> states_;
  std::vector<bool> zero_;
  std::vector<Memory<T>> pooled_;  // means over windows of the states that are nothing else
  std::vector<bool> is_pooled_;
  std::vector<bool> shares_;  // whether the drives take turns in one memory
  std::vector<Memory<T>> up_drive_, down_drive_;
  std::vector<bool> has_down_, has_up_;
  std::vector<Step<T>> steps_;
};

}  // namespace lmser
