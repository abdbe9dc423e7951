// Convolutions whose registers do not hold the channels of single pixels.
#include "conv_case.h"

namespace native {
namespace {

lmser::ConvPlan plan_of(const InstructionSet& isa, const Geometry& g, DType dtype, int threads) {
  return dtype == DType::f64 ? lmser::plan_conv(g, isa.f64.tile, 8, threads)
                             : lmser::plan_conv(g, isa.f32.tile, 4, threads);
}

// Few output channels, in rows long enough for registers of pixels and high enough for the rows that are kept to be
// used again and again.
void planar(const InstructionSet& isa) {
  int made = 0;
  for (int seed = 0; seed < cases(400); ++seed) {
    Random random(seed);
    const DType dtype = any_dtype(random);
    const int lanes = dtype == DType::f64 ? isa.f64.tile.lanes : isa.f32.tile.lanes, kh = int(random.between(1, 5)),
              kw = int(random.between(1, 5)), ph = int(random.below(kh)), pw = int(random.below(kw));
    const std::int64_t channels = random.between(1, lanes / 2);
    Geometry g;
    if (random.one_in(3)) {
      g = transposed(geometry(random.between(1, 3), channels, random.between(kh, 25), random.between(kw, 90),
                              random.between(1, 20), kh, kw, int(random.between(1, 3)), int(random.between(1, 3)), ph,
                              pw));
    } else {
      g = geometry(random.between(1, 3), random.between(1, 20), random.between(kh, 40), random.between(kw, 70),
                   channels, kh, kw, int(random.between(1, 3)), 1, ph, pw);
    }
    const int count = int(random.between(1, 3));
    made += plan_of(isa, g, dtype, count).planar;
    const Case c(random, g, dtype, random.one_in(3));
    run(isa, count, c);
    c.check(c.expected());
  }
  expect(made > cases(400) / 4, "few of the planar tests are planar: " + std::to_string(made));
}

// Three taps at stride 2 downwards, to more than half a register of channels and up to a whole one.
void four_phases(const InstructionSet& isa) {
  for (int seed = 0; seed < cases(200); ++seed) {
    Random random(seed);
    const DType dtype = any_dtype(random);
    const int lanes = dtype == DType::f64 ? isa.f64.tile.lanes : isa.f32.tile.lanes;
    const Geometry g =
        transposed(geometry(random.between(1, 3), random.one_in(2) ? lanes : random.between(lanes / 2 + 1, lanes),
                            random.between(1, 24), random.between(1, 40), random.of(kChannels), 3, 3, 2, 2, 1, 1));
    const int count = int(random.between(1, 3));
    const lmser::ConvPlan plan = plan_of(isa, g, dtype, count);
    const bool can = dtype == DType::f64 ? isa.f64.tile.shares_reads : isa.f32.tile.shares_reads;
    expect(plan.four_phases == (can && !plan.winograd.m), text(g) + ": not in one tile");
    const Case c(random, g, dtype, random.one_in(3));
    run(isa, count, c);
    c.check(c.expected());
  }
}

// Three taps at stride 1, either way, to as many channels.
void sliding(const InstructionSet& isa) {
  for (int seed = 0; seed < cases(200); ++seed) {
    Random random(seed);
    const DType dtype = any_dtype(random);
    const bool wide = dtype == DType::f64;
    const int lanes = wide ? isa.f64.tile.lanes : isa.f32.tile.lanes, ph = int(random.below(4)),
              pw = int(random.below(4));
    const std::int64_t in = random.between(1, 7), out = random.one_in(2) ? lanes : random.between(lanes / 2 + 1, lanes);
    Geometry g =
        geometry(random.between(1, 3), in, random.between(3, 20), random.between(3, 40), out, 3, 3, 1, 1, ph, pw);
    if (random.one_in(2)) {
      std::swap(g.in_c, g.out_c);
      g = transposed(g);
    }
    const int count = int(random.between(1, 3));
    const lmser::ConvPlan plan = plan_of(isa, g, dtype, count);
    const bool can = wide ? isa.f64.tile.shares_reads : isa.f32.tile.shares_reads;
    expect(plan.sliding == (can && !plan.winograd.m && !plan.dot && g.out_w >= 6), text(g) + ": not as it was meant");
    const Case c(random, g, dtype, random.one_in(3));
    run(isa, count, c);
    c.check(c.expected());
  }
}

// Three taps at stride 2 with their rows filtered, wherever the middle ones meet no padding. With finite numbers that
// result is used, and not a second, direct one in its place.
void along_rows(const InstructionSet& isa) {
  using lmser::Filtering;
  const Filtering before = choose_filtering(Filtering::along_rows);
  int made = 0, most = 0;
  for (int seed = 0; seed < cases(300); ++seed) {
    Random random(seed);
    const bool wide = seed % 20 == 0;  // a weight that blocks of channels take in turn
    const int ph = int(random.below(3)), pw = int(random.below(2));
    const std::int64_t in = wide ? 96 : random.of(kChannels), out = wide ? 144 : random.of({13, 16, 17, 33, 48, 60});
    Geometry g = geometry(random.between(1, 5), in, random.between(std::max(1, 3 - 2 * ph), 15),
                          random.between(std::max(1, 3 - 2 * pw), 22), out, 3, 3, 2, 2, ph, pw);
    if (random.one_in(2)) {
      std::swap(g.in_c, g.out_c);
      g = transposed(g);
    }
    const int count = int(random.between(1, 3));
    const lmser::ConvPlan plan = plan_of(isa, g, DType::f32, count);
    const bool fills = 4 * g.out_c > 3 * isa.f32.tile.lanes;
    most += fills && g.out_w > 1, made += plan.winograd.along_rows;
    const Case c(random, g, DType::f32, random.one_in(3));
    Sink sink = c.sink;
    std::vector<float> bias;
    for (std::int64_t k = 0; c.bias && k < g.out_c; ++k) bias.push_back(float(value_of(c.bias, 0, k, 0, 0)));
    sink.bias = c.bias ? bias.data() : nullptr;
    lmser::PreparedConv conv(isa, g, c.dtype, c.weight.view);
    const ThreadPool pool = threads(count);
    conv.prepare(pool, c.source, sink);
    expect(conv.run_once(pool, c.source, sink), c.what + ": not finite");
    c.check(c.expected());
  }
  choose_filtering(before);
  // The rest: rows of output that reach beyond what any tap meets.
  expect(made > most * 4 / 5, "of " + std::to_string(most) + " filtered are " + std::to_string(made));
}

}  // namespace

std::vector<Test> conv_tile_tests() {
  return {{"conv planar", planar},
          {"conv four phases", four_phases},
          {"conv sliding", sliding},
          {"conv along rows", along_rows}};
}

}  // namespace native
