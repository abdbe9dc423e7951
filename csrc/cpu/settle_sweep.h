// One sweep after another over a network: which drive is computed, which is remembered.
#pragma once

#include "settle_network.h"

namespace lmser {

template <class T>
class Sweeper {
 public:
  static constexpr DType kType = kDTypeOf<T>;

  // `states`: where each layer stands, dense; hidden layers that are all zero drive nothing until they are updated.
  Sweeper(const InstructionSet& isa, const ThreadPool& pool, const Network& net, const std::vector<View>& biases,
          bool adjoint, const Schedule& schedule, std::vector<const T*> states)
      : net_(net),
        schedule_(schedule),
        directions_(isa, pool, net, kType, biases, adjoint),
        states_(std::move(states)),
        zero_(net.layers.size(), false),
        up_drive_(net.layers.size()),
        down_drive_(net.layers.size()),
        has_down_(net.layers.size(), false),
        has_up_(net.layers.size(), false) {
    for (int l = 1; l <= net.top(); ++l) zero_[l] = all_zero(states_[l], net.layers[l].values());
  }

  // Writes what `u.layer` takes from its neighbours to sink.out, and `kept` (what its readers see, sink.out unless the
  // epilogue makes another state of it) becomes its state.
  void update(const Update& u, std::int64_t n, Sink sink, const T* kept) {
    const int l = u.layer;
    Layer layer = net_.layers[l];
    layer.n = n;
    const bool up = u.new_up && !zero_[l - 1], down = u.new_down && !zero_[l + 1];  // drives that are not zero
    if (up && down) {
      T* const drive = drive_of(up_drive_, l);
      Sink linear;
      linear.out = layer.view(drive, kType);
      directions_.up(l, n, states_[l - 1], linear, false);
      sink.add = linear.out;
      if (u.keep_down) sink.drive = layer.view(drive_of(down_drive_, l), kType);
      directions_.down(l, n, states_[l + 1], sink);
      has_up_[l] = u.keep_up, has_down_[l] = u.keep_down;
    } else if (down || l == 0) {
      if (l > 0 && !u.new_up && has_up_[l]) sink.add = layer.view(up_drive_[l].get(), kType);
      if (u.keep_down) sink.drive = layer.view(drive_of(down_drive_, l), kType);
      directions_.down(l, n, states_[l + 1], sink);
      has_down_[l] = u.keep_down;
      if (u.new_up) has_up_[l] = false;
    } else if (up || u.new_up) {
      if (!u.new_down && has_down_[l]) sink.add = layer.view(down_drive_[l].get(), kType);
      if (u.keep_up) sink.drive = layer.view(drive_of(up_drive_, l), kType);
      directions_.up(l, n, states_[l - 1], sink);
      has_up_[l] = u.keep_up;
      if (u.new_down) has_down_[l] = false;
    } else {  // a new drive of zeros from above: computed, so that it is there
      if (has_up_[l]) sink.add = layer.view(up_drive_[l].get(), kType);
      directions_.down(l, n, states_[l + 1], sink);
      has_down_[l] = false;
    }
    if (u.changes) states_[l] = kept, zero_[l] = false;
  }

  const std::vector<Update>& sweep(std::int64_t t) const { return schedule_.sweep(t); }
  Directions& directions() { return directions_; }

  // Sample `a` takes the place of sample `b` in what is remembered, and the other way round.
  void swap_samples(std::int64_t a, std::int64_t b) {
    for (std::size_t l = 0; l < up_drive_.size(); ++l)
      for (const Memory<T>* drive : {&up_drive_[l], &down_drive_[l]})
        if (*drive) {
          const std::int64_t image = net_.layers[l].image();
          std::swap_ranges(drive->get() + a * image, drive->get() + (a + 1) * image, drive->get() + b * image);
        }
  }

 private:
  T* drive_of(std::vector<Memory<T>>& drives, int l) {
    if (!drives[l]) drives[l] = Memory<T>(net_.layers[l].values());
    return drives[l].get();
  }

  const Network& net_;
  Schedule schedule_;
  Directions directions_;
  std::vector<const T*> states_;
  std::vector<bool> zero_;
  std::vector<Memory<T>> up_drive_, down_drive_;
  std::vector<bool> has_down_, has_up_;
};

}  // namespace lmser
