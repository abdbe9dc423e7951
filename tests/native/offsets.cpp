// Tensors whose values lie further apart than 32 bits count: an offset formed in fewer than 64 reads or writes
// elsewhere, which shows as another value or as a fault. Their memory is reserved, and only what is touched is there.
#include <sys/mman.h>

#include <cstdio>

#include "harness.h"

namespace native {
namespace {

enum class Axis { image, channel, row, column };
constexpr Axis kAxes[] = {Axis::image, Axis::channel, Axis::row, Axis::column};
constexpr std::int64_t kFar = (std::int64_t(1) << 31) + 8;  // values

class Far {
 public:
  Far(DType dtype, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, Axis axis) {
    view = {nullptr, dtype, n, c, h, w, 0, 0, 0, 0};
    std::int64_t step = 1;
    const auto lay = [&](std::int64_t& stride, std::int64_t size) { stride = step, step *= size; };
    // Channels-last but for the axis that is far; with far channels, rows of one channel.
    if (axis != Axis::channel) lay(view.sc, c);
    if (axis != Axis::column) lay(view.sw, w);
    if (axis != Axis::row) lay(view.sh, h);
    if (axis != Axis::image) lay(view.sn, n);
    (axis == Axis::image ? view.sn : axis == Axis::channel ? view.sc : axis == Axis::row ? view.sh : view.sw) = kFar;
    const std::int64_t values = (n - 1) * view.sn + (c - 1) * view.sc + (h - 1) * view.sh + (w - 1) * view.sw + 1;
    bytes_ = std::size_t(values) * (dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2);
    view.data = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    there_ = view.data != MAP_FAILED;
    if (there_) madvise(view.data, bytes_, MADV_NOHUGEPAGE);  // a few values would else take megabytes each
  }
  Far(const Far&) = delete;
  Far& operator=(const Far&) = delete;
  ~Far() {
    if (there_) munmap(view.data, bytes_);
  }
  View view;
  bool there() const { return there_; }
  void fill(Random& random) const {
    for (std::int64_t n = 0; n < view.n; ++n)
      for (std::int64_t c = 0; c < view.c; ++c)
        for (std::int64_t h = 0; h < view.h; ++h)
          for (std::int64_t w = 0; w < view.w; ++w) put(view, n, c, h, w, random.value());
  }

 private:
  std::size_t bytes_;
  bool there_;
};

// Where a system does not reserve more than it has, there is nothing to test with.
bool reserved(const Far& probe) {
  if (!probe.there()) std::printf("  skipped: no room is reserved for far values\n");
  return probe.there();
}
const char* name(Axis axis) {
  static constexpr const char* names[] = {"images", "channels", "rows", "columns"};
  return names[int(axis)];
}

// Minimal filtering in its forms wherever it can be had, the direct sum, and the weight as it lies.
struct Form {
  lmser::Filtering filtering;
  lmser::Unpacking unpacking;
};
constexpr Form kForms[] = {{lmser::Filtering::in_registers, lmser::Unpacking::never},
                           {lmser::Filtering::in_buffers, lmser::Unpacking::never},
                           {lmser::Filtering::along_rows, lmser::Unpacking::never},
                           {lmser::Filtering::never, lmser::Unpacking::never},
                           {lmser::Filtering::where_faster, lmser::Unpacking::where_possible}};
constexpr bool filters(const Form& form) {
  return form.filtering != lmser::Filtering::never && form.filtering != lmser::Filtering::where_faster;
}
template <class F>
void in_form(const Form& form, F&& f) {
  const lmser::Filtering filtering = choose_filtering(form.filtering);
  const lmser::Unpacking unpacking = choose_unpacking(form.unpacking);
  f();
  choose_filtering(filtering), choose_unpacking(unpacking);
}

void conv(const InstructionSet& isa) {
  const Geometry cases[] = {
      geometry(3, 9, 5, 6, 17, 3, 3, 1, 1, 1, 1),   // minimal filtering, where it is asked for
      geometry(3, 16, 4, 5, 16, 1, 1, 1, 1, 0, 0),  // pixels of all images as one axis, where they are
      geometry(3, 5, 5, 14, 2, 3, 3, 1, 1, 1, 1),   // few channels
      geometry(3, 8, 6, 5, 19, 2, 2, 2, 2, 0, 0),
      geometry(24, 9, 4, 4, 17, 3, 3, 1, 1, 1, 1),  // several images to a unit of work
      geometry(3, 9, 12, 7, 17, 3, 3, 2, 2, 1, 1),
      geometry(24, 4, 4, 4, 16, 3, 3, 1, 1, 0, 0),
  };
  Random random(7);
  for (const Form& form : kForms)
    for (const Geometry& forward : cases)
      for (const Geometry& g : {forward, transposed(forward)})
        for (Axis axis : kAxes)
          for (DType dtype : {DType::f32, DType::f64, DType::bf16}) {
            if (dtype != DType::f32 && filters(form)) continue;
            const Far x(dtype, g.batch, g.in_c, g.in_h, g.in_w, axis),
                out(dtype, g.batch, g.out_c, g.out_h, g.out_w, axis),
                add(dtype, g.batch, g.out_c, g.out_h, g.out_w, axis),
                drive(dtype, g.batch, g.out_c, g.out_h, g.out_w, axis),
                weight(dtype, g.transposed ? g.in_c : g.out_c, g.transposed ? g.out_c : g.in_c, g.kernel_h, g.kernel_w,
                       axis);
            if (!reserved(x)) return;
            x.fill(random), add.fill(random), weight.fill(random);
            Source source;
            source.base = x.view;
            if (random.one_in(2)) source.output = x.view, source.activation = Activation::tanh;
            Sink sink;
            sink.out = out.view, sink.activation = Activation::leaky_relu, sink.slope = 0.25;
            sink.add = add.view, sink.drive = drive.view;
            if (random.one_in(3)) sink.gate = add.view, sink.gate_slope = 0.5;
            in_form(form, [&] { run_conv(isa, threads(2), g, source, sink, weight.view, {}); });
            const Written expected = sink_values(sink, linear_map(g, source_values(source), weight.view), {});
            const std::string what = std::string("far ") + name(axis) + ": " + text(g);
            expect(out.view, expected.out, what);
            expect(drive.view, expected.drive, what + ": drive");
          }
}

void gradient(const InstructionSet& isa) {
  Random random(8);
  for (const Form& form : kForms)
    for (const Geometry& g : {geometry(3, 9, 5, 6, 17, 3, 3, 1, 1, 1, 1), geometry(3, 16, 4, 5, 16, 1, 1, 1, 1, 0, 0),
                              geometry(3, 8, 6, 5, 8, 2, 2, 2, 2, 0, 0), geometry(3, 9, 7, 6, 17, 3, 3, 2, 2, 1, 1),
                              geometry(24, 9, 4, 4, 17, 3, 3, 1, 1, 1, 1), geometry(24, 4, 4, 4, 16, 3, 3, 1, 1, 0, 0)})
      for (Axis axis : kAxes)
        for (DType dtype : {DType::f32, DType::f64, DType::bf16}) {
          if (dtype != DType::f32 && filters(form)) continue;
          const Far big(dtype, g.batch, g.in_c, g.in_h, g.in_w, axis),
              small(dtype, g.batch, g.out_c, g.out_h, g.out_w, axis),
              grad(dtype, g.out_c, g.in_c, g.kernel_h, g.kernel_w, axis);
          if (!reserved(big)) return;
          big.fill(random), small.fill(random);
          lmser::WeightGradPair pair;
          pair.big.base = big.view, pair.small.base = small.view;
          in_form(form, [&] { run_weight_grad(isa, threads(2), g, {pair}, grad.view); });
          expect(grad.view, weight_gradient(g, numbers(big.view), numbers(small.view)),
                 std::string("far ") + name(axis) + ": weight gradient, " + text(g));
        }
}

void rows(const InstructionSet& isa) {
  Random random(9);
  for (Axis axis : kAxes)
    for (DType dtype : {DType::f32, DType::f64, DType::f16}) {
      const Far y(dtype, 3, 9, 4, 5, axis), u(dtype, 3, 9, 4, 5, axis), out(dtype, 3, 9, 4, 5, axis),
          total(dtype, 3, 9, 4, 5, axis);
      if (!reserved(y)) return;
      y.fill(random), u.fill(random);
      const std::string what = std::string("far ") + name(axis);
      Sink sink;
      sink.out = out.view, sink.add = u.view, sink.activation = Activation::sigmoid;
      run_add_act(isa, threads(2), y.view, u.view, {}, out.view, sink.activation, 0);
      expect(out.view, sink_values(sink, numbers(y.view), {}).out, what + ": add_act");
      Source source;
      source.base = y.view, source.output = u.view, source.activation = Activation::tanh;
      const Numbers before = source_values(source);
      source.extra = u.view;
      run_transform(isa, threads(2), source, out.view, total.view, {});
      expect(out.view, before, what + ": transform");
      expect(total.view, source_values(source), what + ": transform, total");
    }
}

void pool(const InstructionSet& isa) {
  Random random(10);
  for (Axis axis : kAxes)
    for (DType dtype : {DType::f32, DType::f64, DType::bf16}) {
      const Far x(dtype, 3, 9, 6, 7, axis), h(dtype, 3, 9, 3, 3, axis);
      if (!reserved(x)) return;
      x.fill(random);
      std::vector<std::uint8_t> places(3 * 3 * 3 * 9);
      lmser::PoolCall call;
      call.big = x.view, call.small = h.view, call.places = places.data();
      call.kernel_h = call.kernel_w = call.stride_h = call.stride_w = 2;
      run_max_pool(isa, threads(2), call);
      Numbers largest(3, 9, 3, 3), raised(3, 9, 6, 7);
      for (std::int64_t n = 0; n < 3; ++n)
        for (std::int64_t c = 0; c < 9; ++c)
          for (std::int64_t r = 0; r < 3; ++r)
            for (std::int64_t q = 0; q < 3; ++q) {
              std::int64_t y = 2 * r, at = 2 * q;
              for (std::int64_t i = 0; i < 2; ++i)
                for (std::int64_t j = 0; j < 2; ++j)
                  if (value_of(x.view, n, c, 2 * r + i, 2 * q + j) > value_of(x.view, n, c, y, at))
                    y = 2 * r + i, at = 2 * q + j;
              largest(n, c, r, q) = raised(n, c, y, at) = value_of(x.view, n, c, y, at);
            }
      const std::string what = std::string("far ") + name(axis);
      expect(h.view, largest, what + ": max pool");
      const Far up(dtype, 3, 9, 6, 7, axis), down(dtype, 3, 9, 3, 3, axis);
      call.big = up.view;
      run_max_unpool(isa, threads(2), call);
      expect(up.view, raised, what + ": max unpool");
      call.big = x.view, call.small = down.view;
      run_max_select(isa, threads(2), call);
      expect(down.view, largest, what + ": max select");
    }
}

}  // namespace

std::vector<Test> offset_tests() {
  return {{"offsets conv", conv}, {"offsets gradient", gradient}, {"offsets rows", rows}, {"offsets pool", pool}};
}

}  // namespace native
