// The passes of a reflection network as one operator.
//
// Inside everything is dense channels-last memory of the compute type. With `keep` the states of all updates are
// written to one trajectory, each for the whole batch, update after update: all that the backward pass reads beside the
// arguments.
#include "reflect_network.h"

namespace lmser {
namespace {

// Images of the top layer: f on what is not read out linearly, noise to its last channels.
template <class T>
void finish_top(const InstructionSet& isa, const ReflectNetwork& net, const View& state, const View& noise) {
  const auto channels = [&](std::int64_t c0, std::int64_t c1) {
    View part = state;
    part.data = static_cast<T*>(state.data) + c0 * state.sc, part.c = c1 - c0;
    return part;
  };
  const std::int64_t behind = state.c - net.linear.last;
  if (net.linear.mixed(state.c)) {
    const View active = channels(net.linear.first, behind);
    run_add_act(isa, alone(), active, {}, {}, active, net.activation, net.slope);
  }
  if (noise) {
    const View last = channels(behind, state.c);
    run_add_act(isa, alone(), last, noise, {}, last, Activation::identity, 0);
  }
}

template <class T>
class Reflection {
 public:
  Reflection(const ReflectNetwork& net, const Tensor& x, const std::vector<View>& biases, const View& noise, bool keep,
             bool filtering)
      : net_(net), x_(view_of(x, "x")), noise_(noise), keep_(keep) {
    const Layer &visible = net.layers[0], &top = net.layers.back();
    reconstruction = empty_4d(x, channels_last(x_), visible.n, visible.c, visible.h, visible.w);
    code = empty_4d(x, top.h * top.w > 1, top.n, top.c, top.h, top.w);
    for (const View& b : biases) biases_.push_back(dense_bias<T>(b));
    for (const ReflectEdge& e : net.edges) {
      up_.emplace_back(isa_, e.up, kType, e.weight, net.calls, filtering);
      down_.emplace_back(isa_, e.down, kType, e.back, net.calls, filtering);
    }
    if (keep) trajectory_ = Memory<T>(net.kept * visible.n);
  }

  // False where a result is not finite and was not made by direct sums alone.
  bool run() {
    std::int64_t image = 0;  // values of an image in the working memory
    for (int l = 1; l <= net_.top(); ++l) image += net_.layers[std::size_t(l)].image() * (keep_ ? 1 : 2);
    std::int64_t most = 0;
    const auto pieces = [&](auto&& f) { return over_pieces(x_.n, image * std::int64_t(sizeof(T)), pool_.threads, f); };
    pieces([&](std::int64_t n0, std::int64_t n1) { return most = std::max(most, n1 - n0), true; });
    for (const Layer& l : net_.layers) {
      const bool hidden = &l != &net_.layers[0];
      states_.push_back(hidden && !keep_ ? Memory<T>(l.image() * most) : Memory<T>());
      drives_.push_back(Memory<T>());
    }
    for (const ReflectUpdate& u : net_.updates)
      if (u.keeps && !drives_[std::size_t(u.layer)])
        drives_[std::size_t(u.layer)] = Memory<T>(net_.layers[std::size_t(u.layer)].image() * most);
    return pieces([&](std::int64_t n0, std::int64_t n1) { return piece(n0, n1); });
  }

  Tensor reconstruction, code;
  Tensor trajectory(const Tensor& like) {
    return keep_ ? tensor_of(std::move(trajectory_), like, {net_.kept * x_.n}, {1}) : empty_1d(like, 0);
  }

 private:
  static constexpr DType kType = kDTypeOf<T>;

  // Working memory of a layer, which holds the images of the piece.
  View working(const Memory<T>& m, int layer, std::int64_t images) const {
    Layer l = net_.layers[std::size_t(layer)];
    l.n = images;
    return l.view(m.get(), kType);
  }

  bool piece(std::int64_t n0, std::int64_t n1) {
    std::vector<Step<T>> steps;
    View state = images_of(x_, n0, n1);
    for (std::size_t i = 0; i < net_.updates.size(); ++i) {
      const ReflectUpdate& u = net_.updates[i];
      const std::size_t l = std::size_t(u.layer);
      Sink sink;
      if (u.layer == 0)
        sink.out = images_of(view_of(reconstruction, "reconstruction"), n0, n1);
      else if (keep_)
        sink.out = images_of(net_.layers[l].view(trajectory_.get() + u.before * x_.n, kType), n0, n1);
      else
        sink.out = working(states_[l], u.layer, n1 - n0);
      // A drive that is added and the one that is kept in its place may be one memory.
      if (u.partner >= 0) sink.add = working(drives_[l], u.layer, n1 - n0);
      if (u.keeps) sink.drive = working(drives_[l], u.layer, n1 - n0);
      sink.bias = biases_[l].get();
      sink.activation = net_.activation_of(u), sink.slope = net_.slope;
      Step<T>& step = steps.emplace_back();
      step.calls.push_back({u.up ? &up_[l - 1] : &down_[l], source_of(state), sink});
      state = sink.out;
      if (u.layer == net_.top()) {
        const bool last = int(i) == net_.last_top;
        step.after = [this, state, last, from = n0](std::int64_t a, std::int64_t b, std::int64_t) {
          const View h = images_of(state, a, b);
          finish_top<T>(isa_, net_, h, images_of(noise_, from + a, from + b));
          if (!last) return;
          const View to = images_of(view_of(code, "code"), from + a, from + b);
          run_add_act(isa_, alone(), h, {}, {}, to, Activation::identity, 0);
        };
      }
    }
    return run_steps<T>(isa_, pool_, steps, n1 - n0, kReflectStageBytes);
  }

  const InstructionSet& isa_ = instruction_set();
  const ThreadPool pool_ = torch_pool();
  const ReflectNetwork& net_;
  View x_, noise_;
  bool keep_;
  std::vector<Buffer<T>> biases_;
  std::vector<PreparedConv> up_, down_;
  std::vector<Memory<T>> states_, drives_;
  Memory<T> trajectory_;
};

std::tuple<Tensor, Tensor, Tensor> reflect(const Tensor& x, const Tensors& weights, const Tensors& decoder_weights,
                                           const Tensors& biases, const Maybe& noise, const Ints& stride,
                                           const Ints& padding, const Ints& linear, bool paired,
                                           std::int64_t reflections, const std::string& activation, double slope,
                                           bool keep) {
  const ReflectNetwork net =
      reflect_network(x, weights, decoder_weights, stride, padding, linear, paired, reflections, activation, slope);
  STD_TORCH_CHECK(biases.size() == net.layers.size(), "biases: expected one for each of ", net.layers.size(),
                  " layers, got ", biases.size());
  std::vector<View> b;
  for (std::size_t l = 0; l < biases.size(); ++l) b.push_back(bias_view(biases[l], x, "x", net.layers[l].c));
  const Layer& top = net.layers.back();
  const View noise_view = same_shape_view(noise, "noise", x, "x", top.n, net.linear.last, top.h, top.w);
  const auto run = [&]<class T>(T) -> std::tuple<Tensor, Tensor, Tensor> {
    for (const bool filtering : {true, false}) {
      Reflection<T> r(net, x, b, noise_view, keep, filtering);
      // Minimal filtering spreads what is not finite over whole tiles: the direct sum says where it really goes.
      if (r.run() || !filtering) return {r.reconstruction, r.code, r.trajectory(x)};
    }
    __builtin_unreachable();
  };
  return dtype_of(x, "x") == DType::f64 ? run(double()) : run(float());
}

}  // namespace
}  // namespace lmser

STABLE_TORCH_LIBRARY_IMPL(lmser, CPU, m) { m.impl("reflect", TORCH_BOX(&lmser::reflect)); }
