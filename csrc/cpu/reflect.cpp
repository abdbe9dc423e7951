// The passes of a reflection network.
//
// Inside everything is dense channels-last memory of the compute type. The trajectory, where it is kept, is all that
// the backward pass reads beside the arguments.
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
  Reflection(const ReflectNetwork& net, const View& x, const std::vector<View>& biases, const View& noise,
             const View& reconstruction, const View& code, T* trajectory, bool filtering)
      : net_(net), x_(x), noise_(noise), reconstruction_(reconstruction), code_(code), trajectory_(trajectory) {
    for (const View& b : biases) biases_.push_back(dense_bias<T>(b));
    for (const ReflectEdge& e : net.edges) {
      up_.emplace_back(isa_, e.up, kType, e.weight, net.calls, filtering);
      down_.emplace_back(isa_, e.down, kType, e.back, net.calls, filtering);
    }
  }

  // False where a result is not finite and was not made by direct sums alone.
  bool run() {
    std::int64_t image = 0;  // values of an image in the working memory
    for (int l = 1; l <= net_.top(); ++l) image += net_.layers[std::size_t(l)].image() * (trajectory_ ? 1 : 2);
    std::int64_t most = 0;
    const auto pieces = [&](auto&& f) { return over_pieces(x_.n, image * std::int64_t(sizeof(T)), pool_.threads, f); };
    pieces([&](std::int64_t n0, std::int64_t n1) { return most = std::max(most, n1 - n0), true; });
    for (const Layer& l : net_.layers) {
      const bool hidden = &l != &net_.layers[0];
      states_.push_back(hidden && !trajectory_ ? Memory<T>(l.image() * most) : Memory<T>());
      drives_.push_back(Memory<T>());
    }
    for (const ReflectUpdate& u : net_.updates)
      if (u.keeps && !drives_[std::size_t(u.layer)])
        drives_[std::size_t(u.layer)] = Memory<T>(net_.layers[std::size_t(u.layer)].image() * most);
    return pieces([&](std::int64_t n0, std::int64_t n1) { return piece(n0, n1); });
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
        sink.out = images_of(reconstruction_, n0, n1);
      else if (trajectory_)
        sink.out = images_of(net_.layers[l].view(trajectory_ + u.before * x_.n, kType), n0, n1);
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
          const View to = images_of(code_, from + a, from + b);
          run_add_act(isa_, alone(), h, {}, {}, to, Activation::identity, 0);
        };
      }
    }
    return run_steps<T>(isa_, pool_, steps, n1 - n0, kReflectStageBytes);
  }

  const InstructionSet& isa_ = instruction_set();
  const ThreadPool pool_ = torch_pool();
  const ReflectNetwork& net_;
  View x_, noise_, reconstruction_, code_;
  T* trajectory_;  // null: not kept
  std::vector<Buffer<T>> biases_;
  std::vector<PreparedConv> up_, down_;
  std::vector<Memory<T>> states_, drives_;
};

}  // namespace

void run_reflect(const ReflectNetwork& net, const View& x, const std::vector<View>& biases, const View& noise,
                 const View& reconstruction, const View& code, void* trajectory) {
  const auto run = [&]<class T>(T) {
    for (const bool filtering : {true, false}) {
      Reflection<T> r(net, x, biases, noise, reconstruction, code, static_cast<T*>(trajectory), filtering);
      // Minimal filtering spreads what is not finite over whole tiles: the direct sum says where it really goes.
      if (r.run()) return;
    }
  };
  x.dtype == DType::f64 ? run(double()) : run(float());
}

}  // namespace lmser
