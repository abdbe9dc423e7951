// Back through the passes of a reflection network, as steps.
//
// Update i is read by update i + 1 alone, so one chain of transposed steps carries the gradient: from the gradient of
// what update i + 1 takes from it, d = f'(h_i) (that), and t = d + the gradient of its drive from the updates that it
// is the partner of, goes on to update i - 1, to the weight and, where it has a partner, to that. The epilogue of the
// convolution makes d and t before they leave the cache.
#pragma once

#include "reflect_steps.h"

namespace lmser {

template <class T>
class ReflectBackward {
 public:
  // Views of one piece of the batch: images [first, first + x.n).
  struct Piece {
    View x, grad;               // grad: of the reconstruction
    View grad_x;                // none: not wanted
    const T* inject = nullptr;  // gradient of the code, or none
    std::int64_t first;
    Trajectory<T> kept;
    bool takes_states = false;  // may write over the states that nothing needs any more
    std::vector<T*> lent{};     // memory of each layer that it may use, or none
  };

  // Pieces of up to `most` images.
  ReflectBackward(const ReflectNetwork& net, const ReflectConvs& convs, const ReflectGradients& to, std::int64_t most,
                  bool filtering)
      : net_(net), convs_(convs), to_(to), most_(most), places_(net.layers.size()) {
    const std::int64_t tasks = std::max(1, pool_.threads);
    for (std::size_t e = 0; e < to.weights.size(); ++e) {
      const auto sum = [&](std::deque<WeightSums>& sums, const View& grad) {
        sums.emplace_back(isa_, pool_, alone(), net.edges[e].up, kType, filtering, tasks).will_finish(grad);
      };
      sum(weights_, to.weights[e]);
      if (!net.tied) sum(back_, to.back[e]);
    }
    for (const Layer& l : net.layers) first_bias_.push_back(biases_in_all_), biases_in_all_ += l.c;
    if (!to.biases.empty()) bias_sums_.assign(std::size_t(biases_in_all_ * (tasks + 1)), 0.0);
  }

  // Working memory of an image, in values.
  static std::int64_t image_values(const ReflectNetwork& net) {
    std::int64_t image = 0;
    for (int l = 1; l <= net.top(); ++l) image += 2 * net.layers[std::size_t(l)].image();
    return image;
  }

  // What a step that sums a bias gradient has between the places of two tasks; 0 where none is wanted.
  std::int64_t bias_values() const { return to_.biases.empty() ? 0 : biases_in_all_; }
  // The visible layer's, where `task` adds what it finds.
  double* visible_bias(std::int64_t task) { return bias_sums_.data() + task * biases_in_all_; }

  // After all pieces; false where a result is not finite and was not made by direct sums alone.
  bool finish() {
    for (std::size_t e = 0; e < to_.weights.size(); ++e) {
      if (!weights_[e].template finish<T>(to_.weights[e])) return false;
      if (!net_.tied && !back_[e].template finish<T>(to_.back[e])) return false;
    }
    if (to_.biases.empty()) return true;
    const std::int64_t tasks = std::int64_t(bias_sums_.size()) / biases_in_all_;
    for (std::size_t l = 0; l < net_.layers.size(); ++l) {
      T* const to = static_cast<T*>(to_.biases[l].data);
      for (std::int64_t c = 0; c < net_.layers[l].c; ++c) {
        double sum = 0;
        for (std::int64_t t = 0; t < tasks; ++t) sum += bias_sums_[t * biases_in_all_ + first_bias_[l] + c];
        to[c] = T(ComputeType<T>(sum));
      }
    }
    return true;
  }

  // Steps for a piece of which no other is under way.
  void append(std::vector<Step<T>>& steps, const Piece& piece) {
    for (std::size_t l = 0; l < places_.size(); ++l) {
      std::deque<Place>& of_layer = places_[l];
      std::erase_if(of_layer, [](const Place& p) { return !p.memory; });
      for (Place& p : of_layer) p.held = false;
      if (l < piece.lent.size() && piece.lent[l]) of_layer.push_front({{}, piece.lent[l], false});
    }
    const std::int64_t images = piece.x.n;
    const std::size_t last = net_.updates.size() - 1;
    Step<T> later;                         // what all threads add together at the end; what it reads stays where it is
    std::vector<T*> drive(last, nullptr);  // gradient of the drive of an update, from those it is the partner of
    const auto state = [&](int i) {        // what update i + 1 reads
      if (i < 0) return piece.x;
      return piece.kept.state(net_, net_.updates[std::size_t(i)], piece.first, piece.first + images);
    };
    const auto place = [&](int layer, T* memory) { return dense_state(net_, layer, memory, images); };
    const auto weight = [&](Step<T>& step, std::size_t i, const View& t) {
      if (to_.weights.empty()) return;
      const ReflectUpdate& u = net_.updates[i];
      const View from = state(int(i) - 1);
      WeightSums* const sums =
          &(u.up ? weights_[std::size_t(u.layer) - 1] : (net_.tied ? weights_ : back_)[std::size_t(u.layer)]);
      const GradPair pair{sums, u.up ? from : t, u.up ? t : from};
      (sums->together(images) ? later : step).pairs.push_back(pair);
    };

    const auto waits = [&](const T* memory) {  // for what is added at the end
      return std::ranges::any_of(later.pairs,
                                 [&](const GradPair& p) { return p.big.data == memory || p.small.data == memory; });
    };
    // Where a sum with the gradient of a drive goes: to its own place, unless that is still to be read as it is.
    const auto sum_with = [&](Epilogue& e, int layer, T* of_drive) {
      e.extra = of_drive;
      T* const to = waits(of_drive) ? free_place(layer) : of_drive;
      e.total = to;
      return to;
    };

    View above = piece.grad;  // t of the update after this one
    T* above_place = nullptr;
    for (std::size_t i = last; i-- > 0;) {
      const ReflectUpdate &u = net_.updates[i], &next = net_.updates[i + 1];
      const std::size_t l = std::size_t(u.layer);
      T* const d = free_place(u.layer);
      T* t = d;
      Sink sink;
      sink.out = place(u.layer, d);
      Step<T>& step = steps.emplace_back();
      carry(step, next, above, sink);
      if (!to_.biases.empty()) step.bias_values = biases_in_all_;
      if (i + 1 == last) weight(step, last, above);
      const View h = state(int(i));
      Epilogue& e = step.epilogue;
      if (u.layer == net_.top()) {
        const T* const inject = int(i) == net_.last_top ? piece.inject : nullptr;
        step.after = [this, out = sink.out, h, inject](std::int64_t a, std::int64_t b, std::int64_t task) {
          pull_back_top(images_of(out, a, b), images_of(h, a, b),
                        inject ? inject + a * net_.layers.back().image() : nullptr, task);
        };
      } else {
        e.result = d, e.image = net_.layers[l].image(), e.channels = u.layer ? net_.layers[l].c : 0;
        e.activation = net_.activation, e.slope = net_.slope, e.output = h.data;
        if (!to_.biases.empty()) e.bias_grad = bias_sums_.data() + first_bias_[l];
        if (u.partner >= 0 && drive[std::size_t(u.partner)]) {
          // One more of those that share a partner; such an update has no drive of its own.
          drive[std::size_t(u.partner)] = sum_with(e, u.layer, drive[std::size_t(u.partner)]);
        } else if (drive[i]) {
          t = sum_with(e, u.layer, drive[i]);
        }
        if (u.partner >= 0 && !drive[std::size_t(u.partner)]) drive[std::size_t(u.partner)] = d;
      }
      const View total = place(u.layer, t);
      weight(step, i, total);
      if (above_place && !waits(above_place)) release(next.layer, above_place);
      // Places are taken again by later steps of the layer: a place that is a partner's gradient stays.
      const bool partners = u.partner >= 0 && drive[std::size_t(u.partner)] == d;
      if (t != d && !partners) release(u.layer, d);
      if (piece.takes_states && !waits(static_cast<const T*>(h.data)))
        places_[l].push_front({{}, static_cast<T*>(h.data), false});
      above = total;
      above_place = t == d && partners ? nullptr : t;
    }
    if (piece.grad_x) {
      Sink sink;
      sink.out = piece.grad_x;
      carry(steps.emplace_back(), net_.updates[0], above, sink);
    }
    if (!later.pairs.empty()) steps.push_back(std::move(later));
  }

 private:
  static constexpr DType kType = kDTypeOf<T>;

  // Working memory of a layer that nothing holds.
  T* free_place(int layer) {
    for (Place& p : places_[std::size_t(layer)])
      if (!p.held) {
        p.held = true;
        return p.at;
      }
    Memory<T> memory(net_.layers[std::size_t(layer)].image() * most_);
    T* const at = memory.get();
    places_[std::size_t(layer)].push_back({std::move(memory), at, true});
    return at;
  }
  void release(int layer, const T* place) {
    for (Place& p : places_[std::size_t(layer)])
      if (p.at == place) p.held = false;
  }

  // Through the linear part of `update`, from the gradient of its drive to that of the state it reads.
  void carry(Step<T>& step, const ReflectUpdate& update, const View& grad, const Sink& sink) {
    PreparedConv* const conv =
        update.up ? convs_.grad_up[std::size_t(update.layer) - 1] : convs_.grad_down[std::size_t(update.layer)];
    step.calls.push_back({conv, source_of(grad), sink});
  }

  // In place on images of the top layer, dense: few values, where channels differ in what f is.
  void pull_back_top(const View& g, const View& h, const T* inject, std::int64_t task) {
    const std::int64_t pixels = g.n * g.h * g.w, first = net_.linear.first, behind = g.c - net_.linear.last;
    using C = ComputeType<T>;
    T* const values = static_cast<T*>(g.data);
    if (inject)
      for (std::int64_t k = 0; k < pixels * g.c; ++k) values[k] = T(C(values[k]) + C(inject[k]));
    if (net_.linear.none() || behind > first) {
      View part = g, output = h;
      if (!net_.linear.none())
        for (View* v : {&part, &output}) v->data = static_cast<T*>(v->data) + first, v->c = behind - first;
      Source source;
      source.base = part, source.output = output, source.activation = net_.activation, source.slope = net_.slope;
      if (net_.activation != Activation::identity) run_transform(isa_, alone(), source, part, {}, {});
    }
    if (to_.biases.empty()) return;
    double* const sums = bias_sums_.data() + task * biases_in_all_ + first_bias_.back();
    for (std::int64_t p = 0; p < pixels; ++p)
      for (std::int64_t c = 0; c < g.c; ++c) sums[c] += double(C(values[p * g.c + c]));
  }

  struct Place {
    Memory<T> memory;  // none: lent for the piece
    T* at;
    bool held;
  };

  const InstructionSet& isa_ = instruction_set();
  const ThreadPool pool_ = torch_pool();
  const ReflectNetwork& net_;
  const ReflectConvs& convs_;
  const ReflectGradients& to_;
  std::int64_t most_;
  std::deque<WeightSums> weights_, back_;
  std::vector<std::int64_t> first_bias_;
  std::int64_t biases_in_all_ = 0;
  std::vector<double> bias_sums_;  // of every task
  std::vector<std::deque<Place>> places_;
};

}  // namespace lmser
