// Back through the passes of a reflection network.
//
// Update i is read by update i + 1 alone, so one chain of transposed steps carries the gradient: from the gradient of
// what update i + 1 takes from it, d = f'(h_i) (that), and t = d + the gradient of its drive from the updates that it
// is the partner of, goes on to update i - 1, to the weight and, where it has a partner, to that. The epilogue of the
// convolution makes d and t before they leave the cache.
#include "reflect_network.h"

namespace lmser {
namespace {

template <class T>
class ReflectBackward {
 public:
  ReflectBackward(const ReflectNetwork& net, const View& grad_reconstruction, const View& grad_code, const View& x,
                  const T* trajectory, const ReflectGradients& to, bool filtering)
      : net_(net), x_(x), grad_(grad_reconstruction), kept_(trajectory), to_(to) {
    if (!grad_) {
      nothing_ = zeros<T>(net.layers[0].values());
      grad_ = net.layers[0].view(nothing_.get(), kType);
    }
    if (grad_code) grad_code_ = Dense<T>(isa_, pool_, grad_code);
    const std::int64_t tasks = std::max(1, pool_.threads);
    for (const ReflectEdge& e : net.edges) {
      up_.emplace_back(isa_, e.up, kType, e.back, net.calls, filtering);  // the transpose of going down
      down_.emplace_back(isa_, e.down, kType, e.weight, net.calls, filtering);
      weights_.emplace_back(isa_, pool_, alone(), e.up, kType, filtering, tasks);
      if (!net.tied) back_.emplace_back(isa_, pool_, alone(), e.up, kType, filtering, tasks);
    }
    for (std::size_t e = 0; e < to.weights.size(); ++e) {
      weights_[e].will_finish(to.weights[e]);
      if (!net.tied) back_[e].will_finish(to.back[e]);
    }
    for (const Layer& l : net.layers) first_bias_.push_back(biases_in_all_), biases_in_all_ += l.c;
    bias_sums_.assign(std::size_t(biases_in_all_ * (tasks + 1)), 0.0);
  }

  // False where a result is not finite and was not made by direct sums alone.
  bool run() {
    std::int64_t image = 0;
    for (int l = 1; l <= net_.top(); ++l) image += 2 * net_.layers[std::size_t(l)].image();
    const auto pieces = [&](auto&& f) { return over_pieces(x_.n, image * std::int64_t(sizeof(T)), pool_.threads, f); };
    pieces([&](std::int64_t n0, std::int64_t n1) { return most_ = std::max(most_, n1 - n0), true; });
    places_.resize(net_.layers.size());
    if (!pieces([&](std::int64_t n0, std::int64_t n1) { return piece(n0, n1); })) return false;
    for (std::size_t e = 0; e < to_.weights.size(); ++e) {
      if (!weights_[e].template finish<T>(to_.weights[e])) return false;
      if (!net_.tied && !back_[e].template finish<T>(to_.back[e])) return false;
    }
    if (!to_.biases.empty()) finish_biases();
    return true;
  }

 private:
  static constexpr DType kType = kDTypeOf<T>;

  void finish_biases() {
    // The visible layer's: the gradient of the reconstruction itself.
    run_transform(isa_, pool_, source_of(grad_), {}, {}, to_.biases[0]);
    const std::int64_t tasks = std::int64_t(bias_sums_.size()) / biases_in_all_;
    for (std::size_t l = 1; l < net_.layers.size(); ++l) {
      T* const to = static_cast<T*>(to_.biases[l].data);
      for (std::int64_t c = 0; c < net_.layers[l].c; ++c) {
        double sum = 0;
        for (std::int64_t t = 0; t < tasks; ++t) sum += bias_sums_[t * biases_in_all_ + first_bias_[l] + c];
        to[c] = T(sum);
      }
    }
  }

  // Working memory of a layer that nothing holds.
  T* free_place(int layer) {
    for (Place& p : places_[std::size_t(layer)])
      if (!p.held) {
        p.held = true;
        return p.memory.get();
      }
    places_[std::size_t(layer)].push_back({Memory<T>(net_.layers[std::size_t(layer)].image() * most_), true});
    return places_[std::size_t(layer)].back().memory.get();
  }
  void release(int layer, const T* place) {
    for (Place& p : places_[std::size_t(layer)])
      if (p.memory.get() == place) p.held = false;
  }

  bool piece(std::int64_t n0, std::int64_t n1) {
    const std::size_t last = net_.updates.size() - 1;
    std::vector<Step<T>> steps;
    Step<T> later;                         // what all threads add together at the end; what it reads stays where it is
    std::vector<T*> drive(last, nullptr);  // gradient of the drive of an update, from those it is the partner of
    const auto state = [&](int i) {        // what update i + 1 reads
      if (i < 0) return images_of(x_, n0, n1);
      const ReflectUpdate& u = net_.updates[std::size_t(i)];
      const Layer& l = net_.layers[std::size_t(u.layer)];
      return images_of(l.view(kept_ + u.before * x_.n, kType), n0, n1);
    };
    const auto place = [&](int layer, T* memory) {
      Layer l = net_.layers[std::size_t(layer)];
      l.n = n1 - n0;
      return l.view(memory, kType);
    };
    const auto weight = [&](Step<T>& step, std::size_t i, const View& t) {
      if (to_.weights.empty()) return;
      const ReflectUpdate& u = net_.updates[i];
      const View from = state(int(i) - 1);
      WeightSums* const sums =
          &(u.up ? weights_[std::size_t(u.layer) - 1] : (net_.tied ? weights_ : back_)[std::size_t(u.layer)]);
      const GradPair pair{sums, u.up ? from : t, u.up ? t : from};
      (sums->together(n1 - n0) ? later : step).pairs.push_back(pair);
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

    View above = images_of(grad_, n0, n1);  // t of the update after this one
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
        const T* const inject =
            int(i) == net_.last_top && grad_code_.get() ? grad_code_.get() + n0 * net_.layers[l].image() : nullptr;
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
      above = total;
      above_place = t == d && partners ? nullptr : t;
    }
    if (to_.x) {
      Sink sink;
      sink.out = images_of(to_.x, n0, n1);
      carry(steps.emplace_back(), net_.updates[0], above, sink);
    }
    if (!later.pairs.empty()) steps.push_back(std::move(later));
    const bool finite = run_steps<T>(isa_, pool_, steps, n1 - n0, kReflectStageBytes);
    for (auto& of_layer : places_)
      for (Place& p : of_layer) p.held = false;
    return finite;
  }

  // Through the linear part of `update`, from the gradient of its drive to that of the state it reads.
  void carry(Step<T>& step, const ReflectUpdate& update, const View& grad, const Sink& sink) {
    PreparedConv& conv = update.up ? down_[std::size_t(update.layer) - 1] : up_[std::size_t(update.layer)];
    step.calls.push_back({&conv, source_of(grad), sink});
  }

  // In place on images of the top layer, dense: few values, where channels differ in what f is.
  void pull_back_top(const View& g, const View& h, const T* inject, std::int64_t task) {
    const std::int64_t pixels = g.n * g.h * g.w, first = net_.linear.first, behind = g.c - net_.linear.last;
    T* const values = static_cast<T*>(g.data);
    if (inject)
      for (std::int64_t k = 0; k < pixels * g.c; ++k) values[k] += inject[k];
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
      for (std::int64_t c = 0; c < g.c; ++c) sums[c] += double(values[p * g.c + c]);
  }

  struct Place {
    Memory<T> memory;
    bool held;
  };

  const InstructionSet& isa_ = instruction_set();
  const ThreadPool pool_ = torch_pool();
  const ReflectNetwork& net_;
  View x_, grad_;
  const T* kept_;
  const ReflectGradients& to_;
  Dense<T> grad_code_;
  Memory<T> nothing_;
  std::vector<PreparedConv> up_, down_;
  std::deque<WeightSums> weights_, back_;
  std::vector<std::int64_t> first_bias_;
  std::int64_t biases_in_all_ = 0, most_ = 0;
  std::vector<double> bias_sums_;  // of every task
  std::vector<std::deque<Place>> places_;
};

}  // namespace

void run_reflect_backward(const ReflectNetwork& net, const View& grad_reconstruction, const View& grad_code,
                          const View& x, const void* trajectory, const ReflectGradients& to) {
  const auto run = [&]<class T>(T) {
    for (const bool filtering : {true, false}) {
      ReflectBackward<T> b(net, grad_reconstruction, grad_code, x, static_cast<const T*>(trajectory), to, filtering);
      if (b.run()) return;
    }
  };
  x.dtype == DType::f64 ? run(double()) : run(float());
}

}  // namespace lmser
