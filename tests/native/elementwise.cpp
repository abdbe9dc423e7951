// What runs over rows: the gradient before an activation, add_act, max pooling, the epilogue of settling.
#include "harness.h"

#include <cmath>
#include <cstring>

namespace native {
namespace {

struct Shape {
  std::int64_t n, c, h, w;
  std::string text() const {
    return std::to_string(n) + "x" + std::to_string(c) + "x" + std::to_string(h) + "x" + std::to_string(w);
  }
};
Shape any_shape(Random& random) {
  return {random.of({0, 1, 2, 3}), random.of({0, 1, 2, 3, 5, 7, 8, 9, 16, 17, 31}), random.of({0, 1, 2, 5, 8, 13}),
          random.of({1, 2, 3, 7, 9, 16, 19})};
}
DType any_dtype(Random& random) {
  static constexpr DType all[] = {DType::f32, DType::f64, DType::bf16, DType::f16};
  return all[random.below(4)];
}
Layout one_or_any(Random& random, Layout one, bool written) {
  return random.one_in(3) ? any_layout(random, written) : one;
}
Array filled(Random& random, DType dtype, const Shape& s, Layout layout) {
  Array a(dtype, s.n, s.c, s.h, s.w, layout);
  a.fill(random);
  return a;
}

void add_act_of(const InstructionSet& isa, Random& random, const Shape& s, DType dtype, int count) {
  const Layout one = any_layout(random, true);
  const Array y = filled(random, dtype, s, one_or_any(random, one, false));
  const Array u = filled(random, dtype, s, one_or_any(random, one, false));
  const Array bias = filled(random, dtype, {1, s.c, 1, 1}, Layout::nchw);
  const Array out(dtype, s.n, s.c, s.h, s.w, one_or_any(random, one, true));
  const bool with_u = random.one_in(2), with_bias = random.one_in(2);
  const Activation a = Activation(random.below(6));
  Sink as;  // the same, for the specification
  as.out = out.view, as.activation = a, as.slope = 0.25;
  if (with_u) as.add = u.view;
  run_add_act(isa, threads(count), y.view, with_u ? u.view : View{}, with_bias ? bias.view : View{}, out.view, a, 0.25);
  const std::string what = "add_act " + s.text() + " dtype " + std::to_string(int(dtype));
  expect(out.view, sink_values(as, numbers(y.view), with_bias ? bias.view : View{}).out, what);
  expect(out.gaps_are_whole(), what + ": wrote between the values");
}

void transform_of(const InstructionSet& isa, Random& random, const Shape& s, DType dtype, int count) {
  const Layout one = any_layout(random, true);
  const auto tensor = [&] { return filled(random, dtype, s, one_or_any(random, one, false)); };
  const Array base = tensor(), output = tensor(), gate = tensor(), extra = tensor();
  const Array pre(dtype, s.n, s.c, s.h, s.w, one_or_any(random, one, true)),
      total(dtype, s.n, s.c, s.h, s.w, one_or_any(random, one, true));
  Source source;
  source.base = base.view;
  source.activation = Activation(random.below(6)), source.slope = 0.25, source.gate_slope = 0.5;
  if (random.one_in(2)) source.output = output.view;
  if (random.one_in(3)) source.gate = gate.view;
  const Numbers before = source_values(source);
  if (random.one_in(2)) source.extra = extra.view;
  const bool with_pre = random.one_in(2), with_total = random.one_in(2), with_bias = random.one_in(2);
  const bool accumulate = with_bias && (dtype == DType::f32 || dtype == DType::f64) && random.one_in(2);
  Array bias(dtype, 1, s.c, 1, 1, Layout::nchw);
  Numbers sums(1, s.c, 1, 1);
  if (accumulate) bias.fill(random), sums = numbers(bias.view);
  for (std::int64_t n = 0; n < s.n; ++n)
    for (std::int64_t c = 0; c < s.c; ++c)
      for (std::int64_t h = 0; h < s.h; ++h)
        for (std::int64_t w = 0; w < s.w; ++w) sums(0, c, 0, 0) += before(n, c, h, w);
  run_transform(isa, threads(count), source, with_pre ? pre.view : View{}, with_total ? total.view : View{},
                with_bias ? bias.view : View{}, accumulate);
  const std::string what = "transform " + s.text() + " dtype " + std::to_string(int(dtype));
  if (with_pre) expect(pre.view, before, what + ": pre");
  if (with_total) expect(total.view, source_values(source), what + ": total");
  if (with_bias) expect(bias.view, sums, what + ": bias");
  expect(pre.gaps_are_whole() && total.gaps_are_whole(), what + ": wrote between the values");
}

void any(const InstructionSet& isa) {
  for (int seed = 0; seed < cases(2000); ++seed) {
    Random random(seed);
    const Shape s = any_shape(random);
    const DType dtype = any_dtype(random);
    add_act_of(isa, random, s, dtype, int(random.between(1, 3)));
    transform_of(isa, random, s, dtype, int(random.between(1, 3)));
  }
}

void threaded(const InstructionSet& isa) {
  for (int seed = 0; seed < cases(12); ++seed) {
    Random random(seed);
    add_act_of(isa, random, {3, 17, 40, 61}, any_dtype(random), 3);
    transform_of(isa, random, {3, 17, 40, 61}, any_dtype(random), 3);
  }
}

struct Pooling {
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
};

void pool_of(const InstructionSet& isa, Random& random, const Shape& s, const Pooling& p, DType dtype, int count) {
  const Shape small{s.n, s.c, (s.h + 2 * p.pad_h - p.kernel_h) / p.stride_h + 1,
                    (s.w + 2 * p.pad_w - p.kernel_w) / p.stride_w + 1};
  lmser::PoolCall call;
  call.kernel_h = p.kernel_h, call.kernel_w = p.kernel_w, call.stride_h = p.stride_h, call.stride_w = p.stride_w;
  call.pad_h = p.pad_h, call.pad_w = p.pad_w;
  call.activation = Activation(random.below(6)), call.slope = 0.25;
  const std::string what = "max pool " + s.text() + " kernel " + std::to_string(p.kernel_h) + "x" +
                           std::to_string(p.kernel_w) + " dtype " + std::to_string(int(dtype));
  const Array x = filled(random, dtype, s, any_layout(random, false));
  const Array h(dtype, small.n, small.c, small.h, small.w, any_layout(random, true));
  const std::size_t values = std::size_t(small.n * small.c * small.h * small.w);
  const auto places = std::make_unique<std::uint8_t[]>(values);
  call.big = x.view, call.small = h.view, call.places = places.get();
  run_max_pool(isa, threads(count), call);

  // Which pixel of big each value of small is from, the first of equals.
  Numbers largest(small.n, small.c, small.h, small.w), selected = largest, raised(s.n, s.c, s.h, s.w);
  const Array z = filled(random, dtype, small, any_layout(random, false));
  const Array v = filled(random, dtype, s, any_layout(random, false));
  const bool pulled = random.one_in(2);
  bool same_places = true;
  for (std::int64_t n = 0; n < small.n; ++n)
    for (std::int64_t c = 0; c < small.c; ++c)
      for (std::int64_t r = 0; r < small.h; ++r)
        for (std::int64_t q = 0; q < small.w; ++q) {
          double best = -INFINITY;
          std::int64_t y = 0, at = 0, place = 0;
          for (int i = 0; i < p.kernel_h; ++i)
            for (int j = 0; j < p.kernel_w; ++j) {
              const std::int64_t big_y = r * p.stride_h - p.pad_h + i, big_x = q * p.stride_w - p.pad_w + j;
              if (big_y < 0 || big_y >= s.h || big_x < 0 || big_x >= s.w) continue;
              const double value = value_of(x.view, n, c, big_y, big_x);
              if (value > best) best = value, y = big_y, at = big_x, place = i * p.kernel_w + j;
            }
          largest(n, c, r, q) = activated(call.activation, best, call.slope);
          same_places = same_places && places[std::size_t(((n * small.h + r) * small.w + q) * small.c + c)] == place;
          const auto pull = [&](double g) {
            return pulled ? pulled_back(call.activation, g, value_of(h.view, n, c, r, q), call.slope) : g;
          };
          raised(n, c, y, at) += pull(value_of(z.view, n, c, r, q));
          selected(n, c, r, q) = pull(value_of(v.view, n, c, y, at));
        }
  expect(h.view, largest, what);
  expect(same_places, what + ": places");

  const Array up(dtype, s.n, s.c, s.h, s.w, any_layout(random, true));
  if (pulled) call.output = h.view;
  if (!pulled) call.activation = Activation::identity;
  call.big = up.view, call.small = z.view;
  run_max_unpool(isa, threads(count), call);
  expect(up.view, raised, what + ": unpool");
  const Array down(dtype, small.n, small.c, small.h, small.w, any_layout(random, true));
  call.big = v.view, call.small = down.view;
  run_max_select(isa, threads(count), call);
  expect(down.view, selected, what + ": select");
  expect(h.gaps_are_whole() && up.gaps_are_whole() && down.gaps_are_whole(), what + ": wrote between the values");
}

void pool(const InstructionSet& isa) {
  for (int seed = 0; seed < cases(1000); ++seed) {
    Random random(seed);
    const int kh = int(random.between(1, 4)), kw = int(random.between(1, 4));
    const Pooling p{kh,
                    kw,
                    int(random.between(1, 5)),
                    int(random.between(1, 5)),
                    int(random.below(kh / 2 + 1)),
                    int(random.below(kw / 2 + 1))};
    Shape s = any_shape(random);
    s.h = random.between(std::max(1, kh - 2 * p.pad_h), 12), s.w = random.between(std::max(1, kw - 2 * p.pad_w), 12);
    pool_of(isa, random, s, p, any_dtype(random), int(random.between(1, 3)));
  }
  Random random(1);
  pool_of(isa, random, {1, 3, 260, 2}, {255, 1, 1, 1, 127, 0}, DType::f32, 1);  // the most places there may be
  pool_of(isa, random, {1, 3, 2, 260}, {1, 255, 1, 2, 0, 127}, DType::f64, 1);
  pool_of(isa, random, {2, 9, 6, 6}, {2, 2, (1 << 20) - 1, (1 << 20) - 1, 1, 1}, DType::f32, 1);
}
void threaded_pool(const InstructionSet& isa) {
  Random random(2);
  for (DType dtype : {DType::f32, DType::bf16}) pool_of(isa, random, {3, 17, 41, 90}, {3, 2, 1, 2, 1, 0}, dtype, 3);
}

// Evidence, change and size; the way back with its sums.
template <class T>
void epilogue_of(const InstructionSet& isa, Random& random, const Shape& s, int count) {
  constexpr DType kType = sizeof(T) == 4 ? DType::f32 : DType::f64;
  const auto tensor = [&] { return filled(random, kType, s, Layout::nhwc); };
  const Array result = tensor(), state = tensor(), evidence = tensor(), hold = tensor(), previous = tensor(),
              output = tensor(), inject = tensor(), extra = tensor(), total = tensor();
  std::vector<std::atomic<std::uint64_t>> change(std::size_t(s.n)), largest(std::size_t(s.n));
  for (auto* slots : {&change, &largest})
    for (auto& slot : *slots) slot = 0;
  std::vector<double> bias(std::size_t(s.c), 0.0);
  lmser::Epilogue e;
  e.result = result.view.data, e.image = std::max<std::int64_t>(1, s.c * s.h * s.w), e.channels = s.c;
  const bool back = random.one_in(2);
  if (back) {
    e.output = output.view.data, e.inject = inject.view.data, e.extra = extra.view.data, e.hold = hold.view.data;
    e.total = total.view.data, e.bias_grad = bias.data();
    e.activation = Activation(random.below(6)), e.slope = 0.25;
  } else {
    e.state = state.view.data, e.evidence = evidence.view.data, e.hold = hold.view.data;
    e.previous = previous.view.data, e.change = change.data(), e.largest = largest.data();
  }
  Numbers expected(s.n, s.c, s.h, s.w), with_extra = expected, sums(1, s.c, 1, 1), moved(s.n, 1, 1, 1), size = moved;
  for (std::int64_t n = 0; n < s.n; ++n)
    for (std::int64_t c = 0; c < s.c; ++c)
      for (std::int64_t y = 0; y < s.h; ++y)
        for (std::int64_t x = 0; x < s.w; ++x) {
          const auto at = [&](const Array& a) { return value_of(a.view, n, c, y, x); };
          const double share = at(hold);
          if (back) {
            const double g = pulled_back(e.activation, at(result) * (1 - share) + at(inject), at(output), e.slope);
            expected(n, c, y, x) = g, with_extra(n, c, y, x) = g + at(extra), sums(0, c, 0, 0) += g;
          } else {
            const double h = share * at(evidence) + (1 - share) * at(result);
            expected(n, c, y, x) = h;
            moved(n, 0, 0, 0) = std::max(moved(n, 0, 0, 0), std::abs(h - at(previous)));
            size(n, 0, 0, 0) = std::max(size(n, 0, 0, 0), std::abs(h));
          }
        }
  run_epilogue(isa, threads(count), e, result.view);
  const std::string what = "epilogue " + s.text();
  expect(back ? result.view : state.view, expected, what);
  if (back) {
    expect(total.view, with_extra, what + ": total");
    std::vector<T> got(bias.begin(), bias.end());  // within what its terms allow
    expect({got.data(), kType, 1, s.c, 1, 1, 0, 1, 0, 0}, sums, what + ": bias");
    return;
  }
  std::vector<T> found(std::size_t(2 * s.n));
  for (std::size_t n = 0; n < std::size_t(s.n); ++n) {
    const std::uint64_t bits[2] = {change[n], largest[n]};
    for (int i = 0; i < 2; ++i) std::memcpy(&found[std::size_t(i) * std::size_t(s.n) + n], &bits[i], sizeof(T));
  }
  expect({found.data(), kType, s.n, 1, 1, 1, 1, 1, 1, 1}, moved, what + ": change");
  expect({found.data() + s.n, kType, s.n, 1, 1, 1, 1, 1, 1, 1}, size, what + ": largest");
}

void epilogue(const InstructionSet& isa) {
  for (int seed = 0; seed < cases(500); ++seed) {
    Random random(seed);
    const Shape s = any_shape(random);
    epilogue_of<float>(isa, random, s, 2);
    epilogue_of<double>(isa, random, s, 1);
  }
}
void threaded_epilogue(const InstructionSet& isa) {
  for (int seed = 0; seed < 6; ++seed) {
    Random random(seed);
    epilogue_of<float>(isa, random, {3, 17, 40, 61}, 3);
  }
}

}  // namespace

std::vector<Test> elementwise_tests() {
  return {{"rows any", any},          {"threaded rows", threaded},
          {"pool any", pool},         {"threaded pool", threaded_pool},
          {"epilogue any", epilogue}, {"threaded epilogue", threaded_epilogue}};
}

}  // namespace native
