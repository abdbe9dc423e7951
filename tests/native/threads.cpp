// What several threads may do at a time: call the engine each for itself, run one prepared convolution, take and give
// memory of results, and leave memory for others to release.
#include <atomic>
#include <cstring>
#include <thread>

#include "cpu/output_store.h"
#include "cpu/weight_sums.h"
#include "harness.h"

namespace native {
namespace {

void together(int count, const std::function<void(int)>& f) {
  std::vector<std::thread> all;
  for (int t = 0; t < count; ++t) all.emplace_back(f, t);
  for (std::thread& one : all) one.join();
}

// Callers with threads of their own, as Python threads have them.
void callers(const InstructionSet& isa) {
  const Geometry g = geometry(2, 16, 20, 20, 24, 3, 3, 1, 1, 1, 1);
  Random random(1);
  Array x(DType::f32, g.batch, g.in_c, g.in_h, g.in_w, Layout::nhwc), weight(DType::f32, 24, 16, 3, 3, Layout::nchw),
      z(DType::f32, g.batch, g.out_c, g.out_h, g.out_w, Layout::nchw);
  x.fill(random), weight.fill(random), z.fill(random);
  struct Result {
    Array y, u, grad, sum;
  };
  std::vector<Result> results;
  for (int t = 0; t < 3; ++t)
    results.push_back({Array(DType::f32, g.batch, g.out_c, g.out_h, g.out_w, Layout::nhwc),
                       Array(DType::f32, g.batch, g.in_c, g.in_h, g.in_w, Layout::nhwc),
                       Array(DType::f32, 24, 16, 3, 3, Layout::nchw),
                       Array(DType::f32, g.batch, g.out_c, g.out_h, g.out_w, Layout::nchw)});
  together(3, [&](int t) {
    for (int again = 0; again < 2; ++again) {
      const Result& r = results[std::size_t(t)];
      Source from_x, from_z;
      from_x.base = x.view, from_z.base = z.view;
      Sink to_y, to_u;
      to_y.out = r.y.view, to_u.out = r.u.view;
      run_conv(isa, threads(2), g, from_x, to_y, weight.view, {});
      run_conv(isa, threads(2), transposed(g), from_z, to_u, weight.view, {});
      run_weight_grad(isa, threads(2), g, {{from_x, from_z}}, r.grad.view);
      run_add_act(isa, threads(2), z.view, r.y.view, {}, r.sum.view, Activation::relu, 0);
    }
  });
  const Numbers y = linear_map(g, numbers(x.view), weight.view),
                u = linear_map(transposed(g), numbers(z.view), weight.view),
                grad = weight_gradient(g, numbers(x.view), numbers(z.view));
  for (const Result& r : results) {
    expect(r.y.view, y, "callers at a time: conv");
    expect(r.u.view, u, "callers at a time: transposed");
    expect(r.grad.view, grad, "callers at a time: weight gradient");
  }
}

// After `prepare` several threads may run one convolution; then its memory is released where it was not taken.
void prepared(const InstructionSet& isa) {
  for (int taps : {1, 3, 5}) {
    const Geometry g = geometry(3, 16, 9, 10, 24, taps, taps, 1, 1, taps / 2, taps / 2);
    Random random(2);
    Array x(DType::f32, g.batch, g.in_c, g.in_h, g.in_w, Layout::nhwc),
        weight(DType::f32, g.out_c, g.in_c, taps, taps, Layout::nchw);
    x.fill(random), weight.fill(random);
    std::vector<Array> results;
    for (int t = 0; t < 3; ++t) results.emplace_back(DType::f32, g.batch, g.out_c, g.out_h, g.out_w, Layout::nhwc);
    auto conv = std::make_unique<lmser::PreparedConv>(isa, g, DType::f32, weight.view, 8);
    const ThreadPool one = threads(1);
    const auto call = [&](int t) {
      Source source;
      source.base = x.view;
      Sink sink;
      sink.out = results[std::size_t(t)].view;
      return std::pair{source, sink};
    };
    conv->prepare(one, call(0).first, call(0).second);
    std::atomic<bool> finite{true};
    together(3, [&](int t) {
      if (!conv->run_once(one, call(t).first, call(t).second)) finite = false;
    });
    expect(finite, "prepared, threads at a time: not finite");
    const Numbers expected = linear_map(g, numbers(x.view), weight.view);
    for (const Array& r : results) expect(r.view, expected, "prepared, threads at a time: " + text(g));
    together(1, [&](int) { conv.reset(); });
  }
}

// Every thread adds pairs to the sums of its own; they meet at the end.
void sums(const InstructionSet& isa) {
  for (int taps : {1, 3}) {
    const Geometry g = geometry(6, 16, 9, 10, 24, taps, taps, 1, 1, taps / 2, taps / 2);
    Random random(3);
    Array x(DType::f32, g.batch, g.in_c, g.in_h, g.in_w, Layout::nhwc),
        z(DType::f32, g.batch, g.out_c, g.out_h, g.out_w, Layout::nhwc),
        grad(DType::f32, 24, 16, taps, taps, Layout::nchw);
    x.fill(random), z.fill(random);
    const auto images = [](View v, std::int64_t n0, std::int64_t n1) {
      v.data = static_cast<float*>(v.data) + v.sn * n0, v.n = n1 - n0;
      return v;
    };
    const ThreadPool one = threads(1), all = threads(3);
    Geometry part = g;
    part.batch = 1;
    lmser::WeightSums sum(isa, all, one, part, DType::f32, true, 3);
    together(3, [&](int t) {
      for (int n = 2 * t; n < 2 * t + 2; ++n) sum.add(t, images(x.view, n, n + 1), images(z.view, n, n + 1));
    });
    expect(sum.finish<float>(grad.view), "sums of threads: not finite");
    expect(grad.view, weight_gradient(g, numbers(x.view), numbers(z.view)), "sums of threads: " + text(g));
  }
}

// A piece belongs to whoever took it, and to nobody else.
void store(const InstructionSet&) {
  namespace output_store = lmser::output_store;
  std::atomic<int> spoiled{0};
  together(4, [&](int t) {
    Random random{std::uint64_t(t)};
    std::vector<std::pair<output_store::Piece, unsigned char>> held;
    for (int i = 0; i < 300; ++i) {
      const std::size_t bytes = output_store::kLeast + std::size_t(random.below(8)) * 100000;
      const auto mark = static_cast<unsigned char>(random.below(256));
      held.push_back({output_store::take(bytes), mark});
      if (held.back().first.bytes < bytes) ++spoiled;
      auto* const data = static_cast<unsigned char*>(held.back().first.data);
      for (std::size_t at : {std::size_t(0), bytes / 2, bytes - 1}) data[at] = mark;
      if (held.size() > 3) {
        const auto [piece, given] = held[std::size_t(random.below(4))];
        if (*static_cast<unsigned char*>(piece.data) != given) ++spoiled;
        std::erase_if(held, [&, data = piece.data](const auto& h) { return h.first.data == data; });
        output_store::give(piece);
      }
      if (i % 64 == t) output_store::empty();
    }
    for (const auto& h : held) output_store::give(h.first);
  });
  expect(spoiled == 0, "output store: a piece was given to two");
  output_store::empty();
  expect(output_store::idle_bytes() == 0, "output store: empty, yet not");
}

}  // namespace

std::vector<Test> thread_tests() {
  return {
      {"threads callers", callers}, {"threads prepared", prepared}, {"threads sums", sums}, {"threads store", store}};
}

}  // namespace native
