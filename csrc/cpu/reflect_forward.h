// The passes of a reflection network as steps. Inside everything is dense channels-last memory of T.
#pragma once

#include "reflect_steps.h"

namespace lmser {

template <class T>
class Reflection {
 public:
  // Views of one piece of the batch: images [first, first + x.n).
  struct Piece {
    View x, reconstruction, code;  // no code: not wanted
    std::int64_t first;
    Trajectory<T> kept;
  };

  // Pieces of up to `most` images; `keeps`: their states go to a trajectory.
  Reflection(const ReflectNetwork& net, const ReflectConvs& convs, const std::vector<View>& biases, const View& noise,
             std::int64_t most, bool keeps)
      : net_(net), convs_(convs), noise_(noise) {
    for (const View& b : biases) biases_.push_back(dense_bias<ComputeType<T>>(b));
    for (const Layer& l : net.layers) {
      const bool hidden = &l != &net.layers[0];
      states_.push_back(hidden && !keeps ? Memory<T>(l.image() * most) : Memory<T>());
      drives_.push_back(Memory<T>());
    }
    for (const ReflectUpdate& u : net.updates)
      if (u.keeps && !drives_[std::size_t(u.layer)])
        drives_[std::size_t(u.layer)] = Memory<T>(net.layers[std::size_t(u.layer)].image() * most);
  }

  // The last of them makes the reconstruction.
  void append(std::vector<Step<T>>& steps, const Piece& piece) const {
    const std::int64_t images = piece.x.n;
    View state = piece.x;
    for (std::size_t i = 0; i < net_.updates.size(); ++i) {
      const ReflectUpdate& u = net_.updates[i];
      const std::size_t l = std::size_t(u.layer);
      Sink sink;
      if (u.layer == 0)
        sink.out = piece.reconstruction;
      else if (piece.kept)
        sink.out = piece.kept.state(net_, u, piece.first, piece.first + images);
      else
        sink.out = dense_state(net_, u.layer, states_[l].get(), images);
      // A drive that is added and the one that is kept in its place may be one memory.
      if (u.partner >= 0) sink.add = dense_state(net_, u.layer, drives_[l].get(), images);
      if (u.keeps) sink.drive = dense_state(net_, u.layer, drives_[l].get(), images);
      sink.bias = biases_[l].get();
      sink.activation = net_.activation_of(u), sink.slope = net_.slope;
      Step<T>& step = steps.emplace_back();
      step.calls.push_back({u.up ? convs_.up[l - 1] : convs_.down[l], source_of(state), sink});
      state = sink.out;
      if (u.layer == net_.top()) {
        const View code = int(i) == net_.last_top ? piece.code : View{};
        step.after = [this, state, code, from = piece.first](std::int64_t a, std::int64_t b, std::int64_t) {
          const View h = images_of(state, a, b);
          finish_top(h, images_of(noise_, from + a, from + b));
          if (code) run_add_act(isa_, alone(), h, {}, {}, images_of(code, a, b), Activation::identity, 0);
        };
      }
    }
  }

  // The memory of each layer's drives, which none of a piece's images needs once its last step is over; or none.
  std::vector<T*> drives() const {
    std::vector<T*> all;
    for (const Memory<T>& m : drives_) all.push_back(m.get());
    return all;
  }

 private:
  // Images of the top layer: f on what is not read out linearly, noise to its last channels.
  void finish_top(const View& state, const View& noise) const {
    const auto channels = [&](std::int64_t c0, std::int64_t c1) {
      View part = state;
      part.data = static_cast<T*>(state.data) + c0 * state.sc, part.c = c1 - c0;
      return part;
    };
    const std::int64_t behind = state.c - net_.linear.last;
    if (net_.linear.mixed(state.c)) {
      const View active = channels(net_.linear.first, behind);
      run_add_act(isa_, alone(), active, {}, {}, active, net_.activation, net_.slope);
    }
    if (noise) {
      const View last = channels(behind, state.c);
      run_add_act(isa_, alone(), last, noise, {}, last, Activation::identity, 0);
    }
  }

  const InstructionSet& isa_ = instruction_set();
  const ReflectNetwork& net_;
  const ReflectConvs& convs_;
  View noise_;
  std::vector<Buffer<ComputeType<T>>> biases_;
  std::vector<Memory<T>> states_, drives_;
};

}  // namespace lmser
