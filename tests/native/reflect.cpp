// The passes of reflection networks, those back through them and both for a loss, as the operators run them, on tensors
// in plain memory. The headers name torch's tensors, so that torch's headers are needed here; of its library the two
// functions that share out work are, and stand below.
#include <cmath>
#include <thread>

#include "cpu/reflect_network.h"
#include "harness.h"

namespace native {
namespace {

int thread_count = 1;
const InstructionSet* in_use = nullptr;

}  // namespace
}  // namespace native

extern "C" {
AOTITorchError torch_get_num_threads(std::uint32_t* count) {
  *count = std::uint32_t(native::thread_count);
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError torch_parallel_for(std::int64_t begin, std::int64_t end, std::int64_t, ParallelFunc f, void* context) {
  std::vector<std::thread> all;
  for (std::int64_t i = begin; i < end; ++i) all.emplace_back([=] { f(i, i + 1, context); });
  for (std::thread& one : all) one.join();
  return AOTI_TORCH_SUCCESS;
}
}
namespace lmser {
const InstructionSet& instruction_set() { return *native::in_use; }
}  // namespace lmser

namespace native {
namespace {

template <class T>
constexpr DType kType = lmser::kDTypeOf<T>;

void add(Numbers& to, const Numbers& more) {
  for (std::size_t i = 0; i < to.at.size(); ++i) to.at[i] += more.at[i];
}

// Edges of stride 1 and 2 below a top layer that reads out some channels linearly.
template <class T>
struct Case {
  lmser::ReflectNetwork net;
  std::vector<Array> weights, back, biases, of_weights, of_back, of_biases;
  std::vector<View> bias_views;
  Array x, target, noise;
  std::string what;
  // Every state is rounded, and every gradient of one.
  static constexpr double kTimes = kType<T> == DType::bf16 ? 6 : 1;

  Case(Random& random, std::int64_t samples, bool tied, bool paired, int reflections, bool reads_out) {
    const int widths[] = {3, 16, 9, 12}, kernels[] = {3, 3, 5}, strides[] = {1, 2, 2};
    net.layers = {{samples, 3, 10, 9}};
    for (std::size_t e = 0; e < 3; ++e) {
      const lmser::Layer below = net.layers[e];
      const int k = kernels[e], above = widths[e + 1];
      for (auto* side : {&weights, &back}) {
        side->emplace_back(kType<T>, above, below.c, k, k, e == 1 ? Layout::nhwc : Layout::nchw);
        const View& v = side->back().view;
        side->back().fill(random);
        for (std::int64_t o = 0; o < v.n; ++o)
          for (std::int64_t i = 0; i < v.c; ++i)
            for (int a = 0; a < k; ++a)
              for (int b = 0; b < k; ++b) put(v, o, i, a, b, value_of(v, o, i, a, b) / 4);
      }
      lmser::ReflectEdge edge;
      edge.up = geometry(samples, below.c, below.h, below.w, above, k, k, strides[e], strides[e], k / 2, k / 2);
      edge.down = native::transposed(edge.up);
      edge.weight = weights[e].view, edge.back = (tied ? weights : back)[e].view;
      net.edges.push_back(edge);
      net.layers.push_back({samples, above, edge.up.out_h, edge.up.out_w});
      for (auto* side : {&of_weights, &of_back}) side->emplace_back(kType<T>, above, below.c, k, k, Layout::nchw);
    }
    for (const lmser::Layer& l : net.layers) {
      biases.emplace_back(kType<T>, 1, l.c, 1, 1, Layout::nchw);
      biases.back().fill(random);
      of_biases.emplace_back(kType<T>, 1, l.c, 1, 1, Layout::nchw);
      bias_views.push_back(biases.back().view);
    }
    net.activation = Activation::tanh, net.tied = tied;
    if (reads_out) net.linear = {3, 4};
    lmser::chain_updates(net, paired, reflections);
    const lmser::Layer& first = net.layers[0];
    const lmser::Layer& top = net.layers.back();
    for (Array* a : {&x, &target}) {
      *a = Array(kType<T>, samples, first.c, first.h, first.w, any_layout(random, false));
      a->fill(random);
    }
    if (reads_out) {
      noise = Array(kType<T>, samples, 4, top.h, top.w, Layout::nchw);
      noise.fill(random);
    }
    what = std::string("reflect, ") + std::to_string(samples) + " samples, " + std::to_string(thread_count) +
           " threads, " + (tied ? "tied, " : "untied, ") + (paired ? "paired, " : "") + std::to_string(reflections) +
           " reflections" + (reads_out ? ", linear" : "");
  }

  const Geometry& geometry_of(const lmser::ReflectUpdate& u) const {
    return u.up ? net.edges[std::size_t(u.layer) - 1].up : net.edges[std::size_t(u.layer)].down;
  }
  View weight_of(const lmser::ReflectUpdate& u) const {
    return u.up ? net.edges[std::size_t(u.layer) - 1].weight : net.edges[std::size_t(u.layer)].back;
  }
  Activation activation_at(const lmser::ReflectUpdate& u, std::int64_t channel) const {
    if (u.layer == 0) return Activation::identity;
    const std::int64_t behind = net.layers.back().c - net.linear.last;
    const bool linear = u.layer == net.top() && (channel < net.linear.first || channel >= behind);
    return linear ? Activation::identity : net.activation;
  }
  template <class F>
  static void each(Numbers& v, F&& f) {
    for (std::int64_t n = 0; n < v.n; ++n)
      for (std::int64_t c = 0; c < v.c; ++c)
        for (std::int64_t y = 0; y < v.h; ++y)
          for (std::int64_t q = 0; q < v.w; ++q) f(v(n, c, y, q), n, c, y, q);
  }

  // The states of all updates, the last the reconstruction.
  std::vector<Numbers> states() const {
    std::vector<Numbers> all, drives;
    Numbers from = numbers(x.view);
    for (const lmser::ReflectUpdate& u : net.updates) {
      drives.push_back(linear_map(geometry_of(u), from, weight_of(u)));
      Numbers h = drives.back();
      if (u.partner >= 0) add(h, drives[std::size_t(u.partner)]);
      const std::int64_t behind = net.layers.back().c - net.linear.last;
      each(h, [&](double& v, std::int64_t n, std::int64_t c, std::int64_t y, std::int64_t q) {
        v = activated(activation_at(u, c), v + value_of(bias_views[std::size_t(u.layer)], 0, c, 0, 0), net.slope);
        if (u.layer == net.top() && noise.view && c >= behind) v += value_of(noise.view, n, c - behind, y, q);
      });
      all.push_back(h), from = h;
    }
    return all;
  }

  struct Gradients {
    Numbers x;
    std::vector<Numbers> weights, back, biases;
  };
  // From those of the reconstruction, and of the code.
  Gradients gradients(const std::vector<Numbers>& states, Numbers grad, const Numbers* code) const {
    Gradients to;
    for (const lmser::ReflectEdge& e : net.edges)
      for (auto* side : {&to.weights, &to.back}) side->emplace_back(e.weight.n, e.weight.c, e.weight.h, e.weight.w);
    for (const lmser::Layer& l : net.layers) to.biases.emplace_back(1, l.c, 1, 1);
    std::vector<Numbers> of_drive(net.updates.size());
    for (std::size_t i = net.updates.size(); i-- > 0;) {
      const lmser::ReflectUpdate& u = net.updates[i];
      if (code && int(i) == net.last_top) add(grad, *code);
      each(grad, [&](double& v, std::int64_t n, std::int64_t c, std::int64_t y, std::int64_t q) {
        v = pulled_back(activation_at(u, c), v, states[i](n, c, y, q), net.slope);
        to.biases[std::size_t(u.layer)](0, c, 0, 0) += v;
      });
      if (u.partner >= 0) {
        Numbers& partner = of_drive[std::size_t(u.partner)];
        partner.at.empty() ? void(partner = grad) : add(partner, grad);
      }
      if (!of_drive[i].at.empty()) add(grad, of_drive[i]);
      const Numbers from = i ? states[i - 1] : numbers(x.view);
      const std::size_t e = std::size_t(u.up ? u.layer - 1 : u.layer);
      add((u.up || net.tied ? to.weights : to.back)[e],
          weight_gradient(net.edges[e].up, u.up ? from : grad, u.up ? grad : from));
      grad = linear_map(u.up ? net.edges[e].down : net.edges[e].up, grad, weight_of(u));
    }
    to.x = grad;
    return to;
  }

  lmser::ReflectGradients wanted() const {
    lmser::ReflectGradients to;
    for (std::size_t e = 0; e < net.edges.size(); ++e) {
      to.weights.push_back(of_weights[e].view);
      if (!net.tied) to.back.push_back(of_back[e].view);
    }
    for (const Array& b : of_biases) {
      View v = b.view;
      to.biases.push_back(v);
    }
    return to;
  }
  void check(const Gradients& expected, const std::string& of) const {
    for (std::size_t e = 0; e < net.edges.size(); ++e) {
      expect(of_weights[e].view, expected.weights[e], what + of + ": gradient of weight " + std::to_string(e), kTimes);
      if (!net.tied)
        expect(of_back[e].view, expected.back[e], what + of + ": gradient of decoder weight " + std::to_string(e),
               kTimes);
    }
    for (std::size_t l = 0; l < of_biases.size(); ++l)
      expect(of_biases[l].view, expected.biases[l], what + of + ": gradient of bias " + std::to_string(l), kTimes);
  }

  void run(Random& random) {
    const std::vector<Numbers> expected = states();
    const Numbers& made = expected.back();
    const lmser::Layer &first = net.layers[0], &top = net.layers.back();
    const auto like = [&](const lmser::Layer& l, Layout layout) { return Array(kType<T>, l.n, l.c, l.h, l.w, layout); };
    Array reconstruction = like(first, any_layout(random, true)), code = like(top, any_layout(random, true)),
          trajectory(kType<T>, 1, 1, 1, std::max<std::int64_t>(1, net.kept * first.n), Layout::nchw);
    run_reflect(net, x.view, bias_views, noise.view, reconstruction.view, code.view, trajectory.view.data);
    expect(reconstruction.view, made, what + ": reconstruction", kTimes);
    expect(code.view, expected[std::size_t(net.last_top)], what + ": code", kTimes);

    Array grad = like(first, any_layout(random, false)), of_code = like(top, any_layout(random, false)),
          of_x = like(first, any_layout(random, true));
    grad.fill(random), of_code.fill(random);
    lmser::ReflectGradients to = wanted();
    to.x = of_x.view;
    const Numbers code_grad = numbers(of_code.view);
    const Gradients back_all = gradients(expected, numbers(grad.view), &code_grad);
    run_reflect_backward(net, grad.view, of_code.view, x.view, trajectory.view.data, to);
    check(back_all, ", back");
    expect(of_x.view, back_all.x, what + ": gradient of the image", kTimes);

    for (const bool apart : {false, true}) {
      Numbers residual = made;
      add(residual, numbers((apart ? target : x).view));  // of the difference: twice is taken away
      const Numbers aim = numbers((apart ? target : x).view);
      double squares = 0;
      for (std::size_t i = 0; i < residual.at.size(); ++i) {
        residual.at[i] -= 2 * aim.at[i];
        squares += residual.at[i] * residual.at[i], residual.at[i] /= double(first.n);
      }
      const double loss = run_reflect_loss(net, x.view, apart ? target.view : View{}, bias_views, noise.view, wanted());
      const double exact = squares / (2.0 * double(first.n));
      expect(std::abs(loss - exact) <= (sizeof(T) == 8   ? 1e-11
                                        : sizeof(T) == 4 ? 1e-4
                                                         : 1e-2) *
                                           (1 + exact),
             what + ": loss");
      check(gradients(expected, residual, nullptr), ", loss");
    }
  }
};

template <class T>
void passes(const InstructionSet& isa, std::int64_t samples, int count, bool tied, bool paired, int reflections,
            bool reads_out) {
  in_use = &isa, thread_count = count;
  Random random(std::uint64_t(samples) * 8 + std::uint64_t(reflections));
  Case<T>(random, samples, tied, paired, reflections, reads_out).run(random);
}

// In tiles of bfloat16, where the instruction set has any.
void halves(const InstructionSet& isa, std::int64_t samples, int count, bool tied, bool paired, int reflections,
            bool reads_out) {
  using lmser::NarrowTiles;
  const NarrowTiles before = lmser::narrow_tiles();
  for (NarrowTiles tiles : {NarrowTiles::emulated, NarrowTiles::amx})
    if (lmser::choose_narrow_tiles(tiles) && lmser::narrow_kernels(isa))
      passes<lmser::BFloat16>(isa, samples, count, tied, paired, reflections, reads_out);
  lmser::choose_narrow_tiles(before);
}

void any(const InstructionSet& isa) {
  for (bool tied : {true, false})
    for (bool paired : {true, false}) {
      passes<double>(isa, 2, 1, tied, paired, 3, false);
      passes<float>(isa, 3, 2, tied, paired, 2, true);
      halves(isa, 3, 2, tied, paired, 2, !tied);
    }
}
void threaded(const InstructionSet& isa) {
  for (std::int64_t samples : {1, 7, 13}) passes<float>(isa, samples, 3, samples == 7, true, 2, samples == 13);
  for (std::int64_t samples : {1, 14}) halves(isa, samples, 3, samples == 14, true, 1, false);
}

}  // namespace

std::vector<Test> reflect_tests() { return {{"reflect any", any}, {"threaded reflect", threaded}}; }

}  // namespace native
