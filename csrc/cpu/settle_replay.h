// The states of replayed layers, made again one sweep at a time on the way back (see settle_state.h).
#pragma once

#include "settle_state.h"

namespace lmser {

template <class T>
class Replay {
 public:
  // trajectory: of the forward sweeps, laid out as `places`.
  Replay(const InstructionSet& isa, const ThreadPool& pool, const Network& net, const Trajectory& places,
         View trajectory, Activation activation, double slope)
      : isa_(isa),
        pool_(pool),
        net_(net),
        places_(places),
        trajectory_(trajectory),
        activation_(activation),
        slope_(slope),
        directions_(isa, net, kType, false),
        rising_(net.layers.size()),
        falling_(net.layers.size()) {}

  bool is_of(int layer) const { return places_.is_replayed(layer); }

  // The state that update `i` of sweep t made of a replayed layer. `visible()`: that of the visible layer before that
  // sweep, asked for once a sweep.
  template <class F>
  const T* state(std::int64_t t, int layer, std::size_t i, F&& visible) {
    if (sweep_ != t) replay(t, visible()), sweep_ = t;
    return (int(i) == places_.replayed(t, layer).up ? rising_ : falling_)[layer].get();
  }

  // The values of the trajectory that update `i` of sweep t wrote, as they lie.
  View kept(const Layer& layer, std::int64_t t, std::size_t i) const {
    const std::int64_t bytes = trajectory_.dtype == DType::f64 ? 8 : trajectory_.dtype == DType::f32 ? 4 : 2;
    return layer.view(static_cast<const char*>(trajectory_.data) + bytes * places_.at(t, i), trajectory_.dtype);
  }

 private:
  static constexpr DType kType = kDTypeOf<T>;

  void replay(std::int64_t t, const T* visible) {
    for (int l = 1; l < net_.top(); ++l) {
      if (!is_of(l)) continue;
      const Layer& layer = net_.layers[l];
      const Replayed now = places_.replayed(t, l);
      for (auto* states : {&rising_, &falling_})
        if (!(*states)[l]) (*states)[l] = Memory<T>(layer.values());
      // y takes the place of the second state, which is made of it in place.
      T *const up = rising_[l].get(), *const y = falling_[l].get();
      Dense<T> stored;
      const T* below = visible;
      if (l > 1 && is_of(l - 1)) {
        below = rising_[l - 1].get();
      } else if (l > 1) {
        stored = Dense<T>(isa_, pool_, kept(net_.layers[l - 1], t, now.below));
        below = stored.get();
      }
      Sink sink;
      sink.out = layer.view(y, kType);
      const DirectionCall call = directions_.up(l, below, sink);
      call.conv->run(pool_, call.source, call.sink);
      // The drive from above that the first state was made with is the one of the sweep before.
      const View first = t == 0 ? kept(windows_of(net_, l), 0, now.up)
                                : kept(windows_of(net_, l), t - 1, places_.replayed(t - 1, l).down);
      add_drive(l, y, first, up);
      add_drive(l, y, kept(windows_of(net_, l), t, now.down), y);
    }
  }

  // to = f(y + u), u repeated over windows.
  void add_drive(int l, const T* y, const View& u, T* to) const {
    const Layer& layer = net_.layers[l];
    const Pair& pool = net_.edges[l].pool;
    run_add_act(isa_, pool_, layer.view(y, kType), u, {}, layer.view(to, kType), activation_, slope_, int(pool.h),
                int(pool.w));
  }

  const InstructionSet& isa_;
  const ThreadPool& pool_;
  const Network& net_;
  const Trajectory& places_;
  View trajectory_;  // its data and dtype alone
  Activation activation_;
  double slope_;
  Directions directions_;
  std::vector<Memory<T>> rising_, falling_;  // by layer: its states on the way up and down
  std::int64_t sweep_ = -1;
};

}  // namespace lmser
