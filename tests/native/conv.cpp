// Convolutions of both directions, with everything that may be read with their input and done to their output.
#include "conv_case.h"

namespace native {
namespace {

// With packed weights, and with the weight as it lies wherever it can be read so.
void any(const InstructionSet& isa) {
  using lmser::Unpacking;
  for (int seed = 0; seed < cases(1500); ++seed) {
    Random random(seed);
    const Geometry g = any_geometry(random);
    const Case c(random, g, any_dtype(random), random.one_in(3));
    const Unpacking before = choose_unpacking(random.one_in(2) ? Unpacking::where_possible : Unpacking::never);
    const AnyTiles tiles(random);
    run(isa, int(random.between(1, 3)), c);
    choose_unpacking(before);
    c.check(c.expected());
  }
}

// Every count of channels about the widths of registers and tiles, every width of a row about theirs.
void every_width(const InstructionSet& isa) {
  Random random(1);
  for (DType dtype : {DType::f32, DType::f64})
    for (std::int64_t channels = 1; channels <= 20; ++channels)
      for (int taps : {1, 3}) {
        const Geometry g =
            geometry(1, channels % 5 + 1, 3, channels + 2, channels, taps, taps, 1, 1, taps / 2, taps / 2);
        for (const Geometry& way : {g, transposed(geometry(1, channels, 4, channels, 3, 2, 2, 2, 2, 0, 0))}) {
          const Case c(random, way, dtype, true);
          run(isa, 1, c);
          c.check(c.expected());
        }
      }
}

lmser::Filtering any_filtering(Random& random) {
  static constexpr lmser::Filtering forms[] = {lmser::Filtering::in_registers, lmser::Filtering::in_buffers,
                                               lmser::Filtering::along_rows};
  return forms[random.below(3)];
}

// Minimal filtering wherever it can be had, and never. With finite numbers its result is used, and not a second, direct
// one in its place.
void filtered(const InstructionSet& isa) {
  using lmser::Filtering;
  for (int seed = 0; seed < cases(120); ++seed) {
    Random random(seed);
    const bool wide = seed % 20 == 0;  // weights beyond the caches
    const int taps = random.one_in(2) ? 3 : 5, stride = wide || random.one_in(2) ? 2 : 1, pad = int(random.below(taps));
    const std::int64_t least = std::max(1, taps - 2 * pad);
    Geometry g = geometry(random.between(1, 2), wide ? 128 : random.of({8, 9, 16, 17, 33}), random.between(least, 17),
                          random.between(least, 17), wide ? 129 : random.of({8, 9, 16, 17, 33}), taps, taps, stride,
                          stride, pad, pad);
    if (random.one_in(2)) g = transposed(g);
    for (Filtering how : {Filtering::in_registers, Filtering::in_buffers, Filtering::never}) {
      const Filtering before = choose_filtering(how);
      const Case c(random, g, DType::f32, random.one_in(3));
      Sink sink = c.sink;
      std::vector<float> bias;  // PreparedConv takes it as it is used
      for (std::int64_t k = 0; c.bias && k < g.out_c; ++k) bias.push_back(float(value_of(c.bias, 0, k, 0, 0)));
      sink.bias = c.bias ? bias.data() : nullptr;
      lmser::PreparedConv conv(isa, g, c.dtype, c.weight.view);
      const ThreadPool pool = threads(int(random.between(1, 3)));
      const lmser::WinogradGrid grid = conv.prepare(pool, c.source, sink).winograd;
      expect((grid.m > 0) == (how != Filtering::never), c.what + ": filtering is not as asked");
      expect(grid.in_registers ==
                 (isa.f32.tile.filters_in_registers && how == Filtering::in_registers && stride == 2 && taps == 3),
             c.what + ": its sums are not where they were asked for");
      expect(conv.run_once(pool, c.source, sink), c.what + ": not finite");
      c.check(c.expected());
      choose_filtering(before);
    }
  }
}

// A convolution and a transposed one of as many taps as one sum over the channels of both.
template <class T>
void beside_as(const InstructionSet& isa, Random& random, DType dtype) {
  using lmser::Filtering;
  const int kh = int(random.between(1, 5)), kw = random.one_in(2) ? kh : int(random.between(1, 5)),
            ph = int(random.below(kh)), pw = int(random.below(kw));
  const Geometry up =
      geometry(random.of({0, 1, 2, 3}), random.of(kChannels), random.between(std::max(1, kh - 2 * ph), 13),
               random.between(std::max(1, kw - 2 * pw), 13), random.of(kChannels), kh, kw, 1, 1, ph, pw);
  const Geometry down = transposed(
      geometry(up.batch, up.out_c, up.out_h, up.out_w, random.of(kChannels), kh, kw, 1, 1, kh - 1 - ph, kw - 1 - pw));
  const Case c(random, up, dtype, random.one_in(3));
  Array above(dtype, up.batch, down.in_c, up.in_h, up.in_w, any_layout(random, false)),
      weight(dtype, down.in_c, up.out_c, kh, kw, any_layout(random, true));
  above.fill(random), weight.fill(random);
  Source source = c.source;
  source.beside = above.view;
  Sink sink = c.sink;
  std::vector<T> bias;  // PreparedConv takes it as it is used
  for (std::int64_t k = 0; c.bias && k < up.out_c; ++k) bias.push_back(T(value_of(c.bias, 0, k, 0, 0)));
  sink.bias = c.bias ? bias.data() : nullptr;
  Numbers sum = linear_map(up, source_values(c.source), c.weight.view);
  const Numbers more = linear_map(down, numbers(above.view), weight.view);
  for (std::size_t i = 0; i < sum.at.size(); ++i) sum.at[i] += more.at[i];
  Geometry both = up;
  both.in_c += down.in_c;
  for (Filtering how : {Filtering::where_possible, Filtering::never}) {
    const Filtering before = choose_filtering(how);
    lmser::PreparedConv(isa, both, dtype, c.weight.view, 1, true, weight.view)
        .run(threads(int(random.between(1, 3))), source, sink);
    c.check(sink_values(sink, sum, c.bias));
    choose_filtering(before);
  }
}
void beside(const InstructionSet& isa) {
  for (int seed = 0; seed < cases(300); ++seed) {
    Random random(seed);
    if (random.one_in(3))
      beside_as<double>(isa, random, DType::f64);
    else
      beside_as<float>(isa, random, DType::f32);
  }
}

// One packed weight for batches of several sizes, as settling uses it.
void prepared(const InstructionSet& isa) {
  for (int seed = 0; seed < cases(20); ++seed) {
    Random random(seed);
    Geometry g = any_geometry(random);
    g.batch = 5;
    Case whole(random, g, random.one_in(2) ? DType::f32 : DType::f64, true);
    lmser::PreparedConv conv(isa, g, whole.dtype, whole.weight.view, 8);
    for (std::int64_t batch : {5, 2, 0, 1, 5}) {
      g.batch = batch;
      Case part(random, g, whole.dtype, true);
      conv.run(threads(2), part.source, part.sink);
      part.weight = Array();
      part.check(sink_values(part.sink, linear_map(g, source_values(part.source), whole.weight.view), {}));
    }
    conv.forget_plans();
    conv.run(threads(1), whole.source, whole.sink);
    whole.check(whole.expected());
  }
}

// What settling does: the drive that is written takes the place of the one that is added.
void shared_drive(const InstructionSet& isa) {
  for (int seed = 0; seed < cases(30); ++seed) {
    Random random(seed);
    Case c(random, any_geometry(random), random.one_in(2) ? DType::f32 : DType::f64, true);
    c.add = Array(c.dtype, c.g.batch, c.g.out_c, c.out.view.h, c.out.view.w, Layout::nhwc);
    c.add.fill(random);
    c.sink.add = c.add.view;
    const Written expected = c.expected();
    c.sink.drive = c.add.view;
    run(isa, 1, c);
    expect(c.out.view, expected.out, c.what);
    expect(c.add.view, expected.drive, c.what + ": drive");
  }
}

// Means over windows are all that is asked for: where a unit holds whole windows, and where it does not.
void pooled(const InstructionSet& isa) {
  for (int seed = 0; seed < cases(300); ++seed) {
    Random random(seed);
    Case c(random, any_geometry(random), random.one_in(2) ? DType::f32 : DType::f64, random.one_in(2));
    c.out = Array(c.dtype, c.g.batch, c.g.out_c, c.sink.out.h, c.sink.out.w, Layout::nhwc);
    c.sink.out = c.out.view;
    const auto window = [&](std::int64_t size) {
      for (std::int64_t n : {random.between(2, 4), std::int64_t(2), std::int64_t(3)})
        if (size % n == 0) return n;
      return std::int64_t(1);
    };
    const std::int64_t h = window(c.out.view.h), w = window(c.out.view.w);
    c.sink.pool_h = int(h), c.sink.pool_w = int(w);
    const Array means(c.dtype, c.g.batch, c.g.out_c, c.out.view.h / h, c.out.view.w / w, Layout::nhwc);
    c.sink.pooled = means.view;
    const Written e = c.expected();
    Numbers expected(means.view.n, means.view.c, means.view.h, means.view.w);
    for (std::int64_t n = 0; n < e.out.n; ++n)
      for (std::int64_t k = 0; k < e.out.c; ++k)
        for (std::int64_t y = 0; y < e.out.h; ++y)
          for (std::int64_t x = 0; x < e.out.w; ++x) expected(n, k, y / h, x / w) += e.out(n, k, y, x) / double(h * w);
    run(isa, int(random.between(1, 3)), c);
    expect(means.view, expected, c.what + " windows " + std::to_string(h) + "," + std::to_string(w));
    if (c.sink.drive) expect(c.drive.view, e.drive, c.what + ": drive");
  }
}

// One and then another that adds what it has written, with the bits that two calls give.
void pairs(const InstructionSet& isa) {
  using lmser::Filtering;
  for (int seed = 0; seed < cases(400); ++seed) {
    Random random(seed);
    const bool large = seed % 50 == 0;  // in rounds, of all threads or of each its own
    const int taps = large ? 3 : int(random.of({2, 3, 3, 5})), stride = large ? 1 : int(random.of({1, 1, 1, 2}));
    const std::int64_t channels = large ? 100 : random.of({5, 16, 33});
    Geometry one =
        geometry(large ? random.of({4, 11}) : random.of({0, 1, 2, 5}), channels, large ? 9 : random.between(5, 17),
                 large ? 10 : random.between(5, 17), channels, taps, taps, stride, stride, taps / 2, taps / 2);
    if (random.one_in(2)) one = transposed(one);
    const int other_taps = int(random.of({1, 1, 3}));
    Geometry other = geometry(one.batch, random.of({3, 16, 33}), one.out_h, one.out_w, one.out_c, other_taps,
                              other_taps, 1, 1, other_taps / 2, other_taps / 2);
    if (random.one_in(2)) std::swap(other.in_c, other.out_c), other = transposed(other);
    const DType dtype = any_dtype(random);
    const Layout layout = any_layout(random, true);
    Case first(random, one, dtype), second(random, other, dtype);
    for (Case* c : {&first, &second}) {  // of one size, and of the second the sum with the first
      c->sink = {}, c->bias = {};
      c->sink.upsample_h = c->sink.upsample_w = 1 + int(seed % 3 == 0), c->sink.scale = seed % 3 == 0 ? 0.25 : 1;
      c->out =
          Array(dtype, one.batch, one.out_c, one.out_h * c->sink.upsample_h, one.out_w * c->sink.upsample_w, layout);
      c->sink.out = c->out.view;
      if (random.one_in(2)) {
        c->bias_values = Array(dtype, 1, one.out_c, 1, 1, Layout::nchw);
        c->bias_values.fill(random);
        c->bias = c->bias_values.view;
      }
    }
    first.sink.activation = Activation::relu;
    second.sink.add = first.out.view;
    if (random.one_in(3)) {
      second.sink_gate = Array(dtype, one.batch, one.out_c, second.out.view.h, second.out.view.w, layout);
      second.sink_gate.fill(random);
      second.sink.gate = second.sink_gate.view, second.sink.gate_slope = 0.5;
    }
    const Filtering before = choose_filtering(random.one_in(2) ? any_filtering(random) : Filtering::where_faster);
    const int count = int(random.between(1, 3));
    const auto pair = [&](const Sink& sink) {
      run_conv_pair(isa, threads(count), {one, first.source, first.sink, first.weight.view, first.bias},
                    {other, second.source, sink, second.weight.view, second.bias});
    };
    pair(second.sink);
    first.check(first.expected());
    second.check(second.expected());
    // In place, and one after the other.
    const Numbers apart = numbers(second.out.view);
    Sink in_place = second.sink;
    in_place.out = first.out.view;
    pair(in_place);
    const Numbers together = numbers(first.out.view);
    run(isa, count, first), run(isa, count, second);
    choose_filtering(before);
    expect(together.at == apart.at && apart.at == numbers(second.out.view).at,
           "pair, not the bits of two calls: " + first.what + " and " + second.what);
  }
}

// Images without pixels, seen through padding; strides beyond every image.
void edges(const InstructionSet& isa) {
  Random random(3);
  const Geometry cases[] = {
      geometry(2, 3, 0, 4, 5, 2, 3, 1, 1, 1, 1),
      geometry(1, 9, 4, 0, 8, 3, 2, 2, 1, 1, 2),
      geometry(2, 4, 5, 5, 8, 3, 3, (1 << 20) - 1, (1 << 20) - 1, 1, 1),
      geometry(2, 4, 1, 1, 8, 1, 1, 411849, 20857, 0, 0),  // whose product is 1 in 32 bits
      transposed(geometry(2, 4, 5, 5, 8, 3, 3, 70000, 70000, 1, 1)),
      geometry(1, 2, 1, 1, 3, 1, 1, 1, 1, 2000, 3),
      geometry(1, 2, 1, 300, 9, 1, 5, 1, 2, 0, 2),
      transposed(geometry(1, 2, 1, 300, 9, 1, 5, 1, 2, 0, 2)),
  };
  for (const Geometry& g : cases)
    for (DType dtype : {DType::f32, DType::f64, DType::bf16}) {
      const Case c(random, g, dtype, true);
      run(isa, 2, c);
      c.check(c.expected());
    }
}

// Large enough to be shared out.
void threaded(const InstructionSet& isa) {
  const Geometry cases[] = {
      geometry(2, 16, 24, 24, 24, 3, 3, 1, 1, 1, 1),  geometry(3, 24, 20, 21, 32, 3, 3, 2, 2, 1, 1),
      geometry(2, 3, 40, 40, 32, 5, 5, 1, 1, 2, 2),   geometry(40, 200, 1, 1, 300, 1, 1, 1, 1, 0, 0),
      geometry(2, 64, 4, 4, 160, 3, 3, 1, 1, 1, 1),   geometry(3, 33, 17, 17, 2, 4, 4, 1, 1, 1, 1),
      geometry(4, 100, 9, 10, 96, 3, 3, 1, 1, 1, 1),  // in rounds of all threads, and of each its own
      geometry(11, 100, 9, 10, 96, 3, 3, 1, 1, 1, 1),
  };
  Random random(5);
  for (const Geometry& g : cases)
    for (const Geometry& way : {g, transposed(g)})
      for (bool plain : {true, false}) {
        const Case c(random, way, plain ? DType::f32 : any_dtype(random), plain);
        run(isa, plain ? 2 : 3, c);
        c.check(c.expected());
      }
}

}  // namespace

std::vector<Test> conv_tests() {
  return {{"conv any", any},           {"conv every width", every_width}, {"conv filtered", filtered},
          {"conv prepared", prepared}, {"conv beside", beside},           {"conv shared drive", shared_drive},
          {"conv edges", edges},       {"conv pooled", pooled},           {"threaded conv pairs", pairs},
          {"threaded conv", threaded}};
}

}  // namespace native
