// The sweeps of settling and their weight gradients, as the operators run them but on states in plain memory. The
// headers name torch's tensors, so that torch's headers are needed here; its library is not.
#include <cmath>
#include <cstring>

#include "cpu/settle_gradients.h"
#include "harness.h"

namespace native {
namespace {

template <class T>
constexpr DType kType = lmser::kDTypeOf<T>;

template <class T>
struct Net {
  lmser::Network net;
  std::vector<Array> weights, reverse, biases, states;
  std::vector<View> bias_views;

  // An image under pooling, two convolutions, and a fully connected layer that reduces the last map to a pixel.
  Net(Random& random, std::int64_t samples, bool tied) {
    net.layers = {{samples, 3, 12, 12}, {samples, 16, 6, 6}, {samples, 9, 6, 6}, {samples, 10, 1, 1}};
    const int kernels[] = {3, 5, 6}, padding[] = {1, 2, 0}, pools[] = {2, 1, 1};
    for (std::size_t e = 0; e < 3; ++e) {
      const lmser::Layer &below = net.layers[e], &above = net.layers[e + 1];
      const int k = kernels[e];
      for (auto* side : {&weights, &reverse}) {
        side->emplace_back(kType<T>, above.c, below.c, k, k, e == 1 ? Layout::nhwc : Layout::nchw);
        side->back().fill(random);
        for (std::int64_t o = 0; o < above.c; ++o)  // small, so that states do not all saturate
          for (std::int64_t i = 0; i < below.c; ++i)
            for (int a = 0; a < k; ++a)
              for (int b = 0; b < k; ++b)
                put(side->back().view, o, i, a, b, value_of(side->back().view, o, i, a, b) / 8);
      }
      lmser::Edge edge;
      edge.pool = {pools[e], pools[e]};
      edge.up = geometry(samples, below.c, below.h / pools[e], below.w / pools[e], above.c, k, k, 1, 1, padding[e],
                         padding[e]);
      edge.down = transposed(edge.up);
      edge.weight = weights[e].view, edge.reverse = (tied ? weights : reverse)[e].view;
      net.edges.push_back(edge);
    }
    for (const lmser::Layer& l : net.layers) {
      states.emplace_back(kType<T>, l.n, l.c, l.h, l.w, Layout::nhwc);
      states.back().fill(random);
      biases.emplace_back(kType<T>, 1, l.c, 1, 1, Layout::nchw);
      biases.back().fill(random);
      bias_views.push_back(biases.back().view);
    }
  }
};

Sink activated_sink(const View& out) {
  Sink s;
  s.out = out, s.activation = Activation::tanh;
  return s;
}

// Layer l from its neighbours, by the specification.
template <class T>
Numbers updated(const Net<T>& n, const std::vector<Numbers>& states, int l) {
  const lmser::Layer& layer = n.net.layers[std::size_t(l)];
  Numbers sum(layer.n, layer.c, layer.h, layer.w);
  const auto as_source = [](Array& memory, const Numbers& v) {
    memory = Array(DType::f64, v.n, v.c, v.h, v.w, Layout::nchw);
    std::memcpy(memory.view.data, v.at.data(), sizeof(double) * v.at.size());
    Source s;
    s.base = memory.view;
    return s;
  };
  Array memory;
  if (l > 0) {
    const lmser::Edge& e = n.net.edges[std::size_t(l - 1)];
    Source s = as_source(memory, states[std::size_t(l - 1)]);
    s.pool_h = e.pool.h, s.pool_w = e.pool.w, s.scale = 1.0 / (e.pool.h * e.pool.w);
    const Numbers up = linear_map(e.up, source_values(s), e.weight);
    for (std::size_t i = 0; i < sum.at.size(); ++i) sum.at[i] += up.at[i];
  }
  if (l < n.net.top()) {
    const lmser::Edge& e = n.net.edges[std::size_t(l)];
    Sink s;
    s.out = {nullptr, DType::f64, layer.n, layer.c, layer.h, layer.w, 0, 0, 0, 0};
    s.upsample_h = e.pool.h, s.upsample_w = e.pool.w;
    const Numbers down = sink_values(s, linear_map(e.down, states[std::size_t(l + 1)], e.reverse), {}).out;
    for (std::size_t i = 0; i < sum.at.size(); ++i) sum.at[i] += down.at[i];
  }
  View out{nullptr, DType::f64, layer.n, layer.c, layer.h, layer.w, 0, 0, 0, 0};
  return sink_values(activated_sink(out), sum, n.bias_views[std::size_t(l)]).out;
}

template <class T>
void sweeps(const InstructionSet& isa, bool up_down, bool tied, std::int64_t samples, int thread_count) {
  constexpr int kSweeps = 3;
  Random random(std::uint64_t(samples) + 1);
  Net<T> n(random, samples, tied);
  const int layers = n.net.top() + 1;
  const lmser::Schedule plan = lmser::schedule(layers, up_down, false, true);
  const ThreadPool pool = threads(thread_count);
  std::vector<Array> ends[2], rounded;
  std::vector<const T*> start;
  for (const lmser::Layer& l : n.net.layers) {
    for (auto& e : ends) e.emplace_back(kType<T>, l.n, l.c, l.h, l.w, Layout::nhwc);
    rounded.emplace_back(DType::bf16, l.n, l.c, l.h, l.w, Layout::nhwc);
  }
  for (const Array& s : n.states) start.push_back(static_cast<const T*>(s.view.data));
  std::vector<const T*> ended = start;
  lmser::Sweeper<T> sweeper(isa, pool, n.net, n.bias_views, false, plan, start, true);
  lmser::Changes<T> changes(samples);
  std::vector<Numbers> states, before;
  for (const Array& s : n.states) states.push_back(numbers(s.view));
  const std::string what = std::string("settle, ") + (up_down ? "up_down" : "odd_even") + ", " +
                           std::to_string(samples) + " samples, " + std::to_string(thread_count) + " threads";
  for (int t = 0; t < kSweeps; ++t) {
    changes.clear();
    before = states;
    for (const lmser::Update& u : plan.sweep(t)) {
      const auto l = std::size_t(u.layer);
      T* const to = static_cast<T*>(ends[t % 2][l].view.data);
      Sink sink = activated_sink(n.net.layers[l].view(to, kType<T>));
      lmser::Step<T>& step = sweeper.add(u, sink, to);
      step.epilogue.result = to, step.epilogue.image = n.net.layers[l].image();
      if (u.last) step.epilogue.previous = ended[l], step.epilogue.change = changes.change.data(), ended[l] = to;
      step.rounded = rounded[l].view;
    }
    expect(sweeper.run(samples), what + ": not finite");
    for (int l : lmser::sweep_order(layers, up_down)) states[std::size_t(l)] = updated(n, states, l);
  }
  double moved = 0;
  for (std::size_t l = 0; l < states.size(); ++l) {
    expect(ends[(kSweeps - 1) % 2][l].view, states[l], what + ", layer " + std::to_string(l));
    expect(rounded[l].view, states[l], what + ", rounded, layer " + std::to_string(l));
    for (std::size_t i = 0; i < states[l].at.size(); ++i)
      moved = std::max(moved, std::abs(states[l].at[i] - before[l].at[i]));
  }
  expect(std::abs(lmser::Changes<T>::most(changes.change, samples) - moved) <= 1e-4, what + ": change");

  // Both directions of every edge, from the states as they are and gradients that are something.
  std::vector<Array> grads, reverse_grads, drives;
  for (const lmser::Edge& e : n.net.edges)
    for (auto* to : {&grads, &reverse_grads})
      to->emplace_back(kType<T>, e.weight.n, e.weight.c, e.weight.h, e.weight.w, Layout::nchw);
  for (const lmser::Layer& l : n.net.layers) {
    drives.emplace_back(kType<T>, l.n, l.c, l.h, l.w, Layout::nhwc);
    drives.back().fill(random);
  }
  std::vector<View> views, reverse_views;
  for (const Array& a : grads) views.push_back(a.view);
  for (const Array& a : reverse_grads)
    if (!tied) reverse_views.push_back(a.view);
  lmser::WeightGradients<T> sums(isa, pool, n.net, views, reverse_views, true);
  for (int again = 0; again < 2; ++again)
    for (int e = 0; e < n.net.top(); ++e) {
      const auto at = [](const Array& a) { return static_cast<const T*>(a.view.data); };
      const auto below = std::size_t(e), above = below + 1;
      sums.up(e, at(n.states[below]), at(drives[above]));
      sums.down(e, at(drives[below]), at(n.states[above]));
    }
  expect(sums.finish(), what + ": gradient not finite");
  for (std::size_t e = 0; e < n.net.edges.size(); ++e) {
    const lmser::Edge& edge = n.net.edges[e];
    const auto pooled = [&](const View& v, double scale) {
      Source s;
      s.base = v, s.pool_h = edge.pool.h, s.pool_w = edge.pool.w, s.scale = 2 * scale;  // both times
      return source_values(s);
    };
    Numbers up = weight_gradient(edge.up, pooled(n.states[e].view, 1.0 / (edge.pool.h * edge.pool.w)),
                                 numbers(drives[e + 1].view));
    const Numbers down = weight_gradient(edge.up, pooled(drives[e].view, 1), numbers(n.states[e + 1].view));
    if (tied)
      for (std::size_t i = 0; i < up.at.size(); ++i) up.at[i] += down.at[i];
    else
      expect(reverse_grads[e].view, down, what + ": gradient of reverse weight " + std::to_string(e));
    expect(grads[e].view, up, what + ": gradient of weight " + std::to_string(e));
  }
}

void any(const InstructionSet& isa) {
  for (bool up_down : {true, false})
    for (bool tied : {true, false}) {
      sweeps<float>(isa, up_down, tied, 1, 1);
      sweeps<double>(isa, up_down, tied, 2, 2);
    }
}
void threaded(const InstructionSet& isa) {
  for (bool up_down : {true, false})
    for (std::int64_t samples : {5, 13}) sweeps<float>(isa, up_down, samples == 5, samples, 3);
}

}  // namespace

std::vector<Test> settle_tests() { return {{"settle any", any}, {"threaded settle", threaded}}; }

}  // namespace native
