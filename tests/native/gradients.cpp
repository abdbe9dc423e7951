// Weight gradients: one or two pairs, in one call or summed over several, written anew or added to.
#include "harness.h"

namespace native {
namespace {

struct Pair {
  Array big, small, output, extra;
  lmser::WeightGradPair views;
  Pair(Random& random, const Geometry& g, DType dtype, bool plain, Layout big_layout, Layout small_layout) {
    if (!plain && random.one_in(3))
      views.big.pool_h = int(random.between(1, 2)), views.big.pool_w = int(random.between(1, 3)), views.big.scale = 0.5;
    big = Array(dtype, g.batch, g.in_c, g.in_h * views.big.pool_h, g.in_w * views.big.pool_w, big_layout);
    small = Array(dtype, g.batch, g.out_c, g.out_h, g.out_w, small_layout);
    big.fill(random), small.fill(random);
    views.big.base = big.view, views.small.base = small.view;
    if (plain) return;
    const auto beside = [&](Array& a) {
      a = Array(dtype, g.batch, g.out_c, g.out_h, g.out_w, any_layout(random, false));
      a.fill(random);
      return a.view;
    };
    views.small.activation = Activation(random.below(6)), views.small.slope = 0.25;
    if (random.one_in(2)) views.small.output = beside(output);
    if (random.one_in(3)) views.small.extra = beside(extra);
  }
  Numbers expected(const Geometry& g) const {
    return weight_gradient(g, source_values(views.big), source_values(views.small));
  }
};
// Sums over pixels of the channels of the small side.
Numbers channel_sums(const Geometry& g, const Source& small) {
  Numbers sums(g.out_c, 1, 1, 1);
  const Numbers values = source_values(small);
  for (std::int64_t n = 0; n < values.n; ++n)
    for (std::int64_t c = 0; c < values.c; ++c)
      for (std::int64_t y = 0; y < values.h; ++y)
        for (std::int64_t x = 0; x < values.w; ++x) sums(c, 0, 0, 0) += values(n, c, y, x);
  return sums;
}
void add(Numbers& sum, const Numbers& more) {
  for (std::size_t i = 0; i < sum.at.size(); ++i) sum.at[i] += more.at[i];
}

Geometry any_geometry(Random& random) {
  const auto channels = [&] { return random.of({1, 2, 3, 5, 8, 9, 16, 17, 24, 33}); };
  const int kh = int(random.between(1, 5)), kw = int(random.between(1, 5));
  const int ph = int(random.below(kh)), pw = int(random.below(kw));
  const std::int64_t h = random.between(std::max(1, kh - 2 * ph), 12), w = random.between(std::max(1, kw - 2 * pw), 12);
  return geometry(random.of({0, 1, 2, 3}), channels(), h, w, channels(), kh, kw, int(random.between(1, 3)),
                  int(random.between(1, 3)), ph, pw);
}

void any(const InstructionSet& isa) {
  static constexpr DType dtypes[] = {DType::f32, DType::f32, DType::f64, DType::bf16, DType::f16};
  for (int seed = 0; seed < cases(1000); ++seed) {
    Random random(seed);
    const Geometry g = any_geometry(random);
    const DType dtype = dtypes[random.below(5)];
    std::vector<Pair> pairs;
    const bool plain = random.one_in(2);
    const auto count = random.between(1, 2);
    for (std::int64_t i = 0; i < count; ++i)
      pairs.emplace_back(random, g, dtype, plain, any_layout(random, false), any_layout(random, false));
    Array grad(dtype, g.out_c, g.in_c, g.kernel_h, g.kernel_w, any_layout(random, true));
    const bool accumulate = (dtype == DType::f32 || dtype == DType::f64) && random.one_in(3);
    if (accumulate) grad.fill(random);
    Numbers expected = accumulate ? numbers(grad.view) : Numbers(g.out_c, g.in_c, g.kernel_h, g.kernel_w);
    std::vector<lmser::WeightGradPair> views;
    for (const Pair& p : pairs) add(expected, p.expected(g)), views.push_back(p.views);
    Array channels(dtype, g.out_c, 1, 1, 1, Layout::nchw);
    if (accumulate) channels.fill(random);
    Numbers sums = accumulate ? numbers(channels.view) : Numbers(g.out_c, 1, 1, 1);
    for (const Pair& p : pairs) add(sums, channel_sums(g, p.views.small));
    const bool wanted = random.one_in(2);
    View bias = channels.view;  // of channels
    std::swap(bias.n, bias.c), std::swap(bias.sn, bias.sc);
    using lmser::Unpacking;
    const Unpacking before = choose_unpacking(random.one_in(2) ? Unpacking::where_possible : Unpacking::never);
    const AnyTiles tiles(random);
    run_weight_grad(isa, threads(int(random.between(1, 3))), g, views, grad.view, accumulate, wanted ? bias : View{});
    choose_unpacking(before);
    const std::string what = "weight gradient, " + std::to_string(count) + " pairs, dtype " +
                             std::to_string(int(dtype)) + (accumulate ? ", added: " : ": ") + text(g);
    expect(grad.view, expected, what);
    expect(grad.gaps_are_whole(), what + ": wrote between the values");
    if (wanted) expect(channels.view, sums, what + ": channel sums");
  }
}

// Sums over several calls, by minimal filtering wherever it can be had and never.
void sums(const InstructionSet& isa) {
  using lmser::Filtering;
  for (int seed = 0; seed < cases(80); ++seed) {
    Random random(seed);
    const bool wide = seed % 10 == 0;
    const int taps = random.one_in(2) ? 3 : 5, stride = wide || random.one_in(2) ? 2 : 1, pad = int(random.below(taps));
    const std::int64_t least = std::max(1, taps - 2 * pad);
    const Geometry g = geometry(random.between(0, 3), wide ? 128 : random.of({8, 9, 16, 33}), random.between(least, 11),
                                random.between(least, 11), wide ? 129 : random.of({8, 9, 16, 33}), taps, taps, stride,
                                stride, pad, pad);
    for (Filtering how : {Filtering::where_possible, Filtering::along_rows, Filtering::never}) {
      const Filtering before = choose_filtering(how);
      const Layout big = any_layout(random, false), small = any_layout(random, false);
      const bool plain = random.one_in(2);
      lmser::WeightGradSum sum(isa, threads(int(random.between(1, 3))), g, DType::f32);
      Numbers expected(g.out_c, g.in_c, taps, taps);
      for (int call = 0; call < 3; ++call) {
        const Pair pair(random, g, DType::f32, plain, big, small);
        add(expected, pair.expected(g));
        sum.add({pair.views});
      }
      const std::string what = "sum of weight gradients: " + text(g);
      Array grad(DType::f32, g.out_c, g.in_c, taps, taps, any_layout(random, true));
      expect(sum.finish(grad.view), what + ": not finite");
      expect(grad.view, expected, what);
      choose_filtering(before);
    }
  }
}

// Two of as many outputs, which share their units where they can.
void pairs(const InstructionSet& isa) {
  using lmser::Filtering;
  static constexpr DType dtypes[] = {DType::f32, DType::f32, DType::f64, DType::bf16};
  for (int seed = 0; seed < cases(300); ++seed) {
    Random random(seed);
    const int taps = int(random.of({1, 2, 3, 3, 5})), stride = int(random.of({1, 1, 2})),
              beside = int(random.of({1, 1, 3}));
    const auto channels = [&] { return random.of({3, 16, 33}); };
    const Geometry one = geometry(random.of({0, 1, 2, 9}), channels(), random.between(5, 20), random.between(5, 20),
                                  channels(), taps, taps, stride, stride, taps / 2, taps / 2),
                   other = geometry(one.batch, channels(), one.out_h, one.out_w, channels(), beside, beside, 1, 1,
                                    beside / 2, beside / 2);
    const DType dtype = dtypes[random.below(4)];
    struct Side {
      Geometry g;
      Pair pair;
      Array grad, channels;
      bool wanted;
      lmser::WeightGradTask task() const {
        View bias = channels.view;
        std::swap(bias.n, bias.c), std::swap(bias.sn, bias.sc);
        return {g, pair.views, grad.view, wanted ? bias : View{}};
      }
    };
    const auto side = [&](const Geometry& g) {
      return Side{g, Pair(random, g, dtype, random.one_in(2), any_layout(random, false), any_layout(random, false)),
                  Array(dtype, g.out_c, g.in_c, g.kernel_h, g.kernel_w, any_layout(random, true)),
                  Array(dtype, g.out_c, 1, 1, 1, Layout::nchw), random.one_in(2)};
    };
    const Side first = side(one), second = side(other);
    const Filtering before = choose_filtering(random.one_in(2) ? Filtering::where_possible : Filtering::where_faster);
    run_weight_grad_pair(isa, threads(int(random.between(1, 3))), first.task(), second.task());
    choose_filtering(before);
    for (const Side* s : {&first, &second}) {
      const std::string what = std::string("weight gradients of both, the ") + (s == &first ? "first: " : "second: ") +
                               text(one) + " and " + text(other);
      expect(s->grad.view, s->pair.expected(s->g), what);
      expect(s->grad.gaps_are_whole(), what + ": wrote between the values");
      if (s->wanted) expect(s->channels.view, channel_sums(s->g, s->pair.views.small), what + ": channel sums");
    }
  }
}

void edges(const InstructionSet& isa) {
  Random random(3);
  for (const Geometry& g :
       {geometry(2, 3, 0, 4, 5, 2, 3, 1, 1, 1, 1), geometry(2, 9, 4, 0, 8, 3, 2, 2, 1, 1, 2),
        geometry(0, 9, 4, 4, 8, 3, 3, 1, 1, 1, 1), geometry(2, 0, 4, 4, 8, 3, 3, 1, 1, 1, 1),
        geometry(2, 8, 4, 4, 0, 3, 3, 1, 1, 1, 1), geometry(2, 4, 5, 5, 8, 3, 3, (1 << 20) - 1, (1 << 20) - 1, 1, 1),
        geometry(2, 4, 1, 1, 8, 1, 1, 411849, 20857, 0, 0), geometry(2, 4, 1, 1, 8, 1, 1, 1, 1, 300, 3)})
    for (DType dtype : {DType::f32, DType::f64, DType::f16}) {
      const Pair pair(random, g, dtype, true, Layout::nhwc, Layout::nchw);
      Array grad(dtype, g.out_c, g.in_c, g.kernel_h, g.kernel_w, Layout::nchw);
      run_weight_grad(isa, threads(2), g, {pair.views}, grad.view);
      expect(grad.view, pair.expected(g), "weight gradient: " + text(g));
    }
}

void threaded(const InstructionSet& isa) {
  Random random(5);
  for (const Geometry& g :
       {geometry(3, 16, 20, 20, 24, 3, 3, 1, 1, 1, 1), geometry(2, 3, 40, 40, 32, 5, 5, 1, 1, 2, 2),
        geometry(40, 200, 1, 1, 300, 1, 1, 1, 1, 0, 0), geometry(2, 64, 4, 4, 160, 3, 3, 1, 1, 1, 1)})
    for (Layout layout : {Layout::nchw, Layout::nhwc}) {
      const Pair one(random, g, DType::f32, true, layout, layout), two(random, g, DType::f32, true, layout, layout);
      Array grad(DType::f32, g.out_c, g.in_c, g.kernel_h, g.kernel_w, layout);
      run_weight_grad(isa, threads(3), g, {one.views, two.views}, grad.view);
      Numbers expected = one.expected(g);
      add(expected, two.expected(g));
      expect(grad.view, expected, "weight gradient, threads: " + text(g));
    }
}

}  // namespace

std::vector<Test> gradient_tests() {
  return {{"gradient any", any},
          {"gradient sums", sums},
          {"threaded gradient pairs", pairs},
          {"gradient edges", edges},
          {"threaded gradient", threaded}};
}

}  // namespace native
