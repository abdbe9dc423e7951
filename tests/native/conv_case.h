// A convolution of either direction, with everything that may be read with its input and done to its output, made up.
#pragma once

#include "harness.h"

namespace native {

inline constexpr std::initializer_list<std::int64_t> kChannels = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 33};

inline DType any_dtype(Random& random) {
  static constexpr DType all[] = {DType::f32, DType::f32, DType::f64, DType::bf16, DType::f16};
  return all[random.below(5)];
}
inline Activation any_activation(Random& random) { return Activation(random.below(6)); }

// Tensors of a call, which its views point to.
struct Case {
  Geometry g;
  DType dtype;
  Source source;
  Sink sink;
  View bias;
  Array base, output, gate, extra, weight, out, drive, add, sink_gate, bias_values;
  std::string what;

  Case(Random& random, const Geometry& g, DType dtype, bool plain = false) : g(g), dtype(dtype) {
    what = text(g);
    what += " dtype " + std::to_string(int(dtype));
    read(random, plain), write(random, plain);
    const std::int64_t o = g.transposed ? g.in_c : g.out_c, i = g.transposed ? g.out_c : g.in_c;
    weight = Array(dtype, o, i, g.kernel_h, g.kernel_w, any_layout(random, true));
    weight.fill(random);
  }

  void read(Random& random, bool plain) {
    if (!plain && random.one_in(3))
      source.pool_h = int(random.between(1, 3)), source.pool_w = int(random.between(1, 3)), source.scale = 0.5;
    // What does not fill a window is not read.
    const std::int64_t h = g.in_h * source.pool_h + random.below(source.pool_h),
                       w = g.in_w * source.pool_w + random.below(source.pool_w);
    const auto tensor = [&](Array& a) {
      a = Array(dtype, g.batch, g.in_c, h, w, any_layout(random, false));
      a.fill(random);
      return a.view;
    };
    source.base = tensor(base);
    if (plain) return;
    source.activation = any_activation(random), source.slope = 0.25, source.gate_slope = 0.5;
    if (random.one_in(4)) source.output = tensor(output), what += " output";
    if (random.one_in(4)) source.gate = tensor(gate), what += " gate";
    if (random.one_in(4)) source.extra = tensor(extra), what += " extra";
    what += " pool " + std::to_string(source.pool_h) + "," + std::to_string(source.pool_w);
  }

  void write(Random& random, bool plain) {
    if (!plain && random.one_in(3))
      sink.upsample_h = int(random.between(1, 3)), sink.upsample_w = int(random.between(1, 3)), sink.scale = 0.5;
    std::int64_t h = g.out_h * sink.upsample_h, w = g.out_w * sink.upsample_w;
    const bool more = !plain && random.one_in(6);  // rows and columns beyond the windows of a pooled gradient
    if (more) h += random.below(3), w += random.below(3);
    const Layout layout = any_layout(random, true);
    const auto sized = [&](Array& a, std::int64_t rows, std::int64_t cols, bool read) {
      a = Array(dtype, g.batch, g.out_c, rows, cols, random.one_in(2) ? layout : any_layout(random, true));
      if (read) a.fill(random);
      return a.view;
    };
    const auto tensor = [&](Array& a, bool read) { return sized(a, h, w, read); };
    out = Array(dtype, g.batch, g.out_c, h, w, layout);
    sink.out = out.view;
    what += " up " + std::to_string(sink.upsample_h) + "," + std::to_string(sink.upsample_w) + " layout " +
            std::to_string(int(layout)) + (more ? " more" : "");
    if (plain || more) return;
    sink.activation = any_activation(random), sink.slope = 0.25, sink.gate_slope = 0.5;
    if (random.one_in(2)) {
      if (random.one_in(2)) sink.add_h = int(random.between(1, 3)), sink.add_w = int(random.between(1, 3));
      sink.add = sized(add, (h + sink.add_h - 1) / sink.add_h, (w + sink.add_w - 1) / sink.add_w, true);
      what += " add " + std::to_string(sink.add_h) + "," + std::to_string(sink.add_w);
    }
    if (random.one_in(3)) {
      sink.drive_once = random.one_in(2);
      sink.drive = sink.drive_once ? sized(drive, g.out_h, g.out_w, false) : tensor(drive, false);
      what += sink.drive_once ? " drive once" : " drive";
    }
    if (random.one_in(4)) sink.gate = tensor(sink_gate, true), what += " sink gate";
    if (random.one_in(2)) {
      bias_values = Array(dtype, 1, g.out_c, 1, 1, Layout::nchw);
      bias_values.fill(random);
      bias = bias_values.view, what += " bias";
    }
  }

  Written expected() const { return sink_values(sink, linear_map(g, source_values(source), weight.view), bias); }
  void check(const Written& e) const {
    expect(out.view, e.out, what);
    expect(out.gaps_are_whole(), what + ": wrote between the values of out");
    if (!sink.drive) return;
    expect(drive.view, e.drive, what + ": drive");
    expect(drive.gaps_are_whole(), what + ": wrote between the values of drive");
  }
};

inline Geometry any_geometry(Random& random) {
  const int kh = int(random.between(1, 5)), kw = int(random.between(1, 5));
  const int ph = int(random.below(kh)), pw = int(random.below(kw));
  const std::int64_t h = random.between(std::max(1, kh - 2 * ph), 13), w = random.between(std::max(1, kw - 2 * pw), 13);
  const Geometry g = geometry(random.of({0, 1, 1, 2, 3}), random.of(kChannels), h, w, random.of(kChannels), kh, kw,
                              int(random.between(1, 3)), int(random.between(1, 3)), ph, pw);
  return random.one_in(2) ? g : transposed(g);
}

inline void run(const InstructionSet& isa, int count, const Case& c) {
  run_conv(isa, threads(count), c.g, c.source, c.sink, c.weight.view, c.bias);
}

}  // namespace native
