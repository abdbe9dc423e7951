#include "harness.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>

#include "cpu/buffer.h"

// dispatch.cpp names every instruction set; here only those that were asked for are compiled.
namespace lmser {
namespace baseline {
extern const InstructionSet table;
}
namespace avx2 {
extern const InstructionSet table;
}
namespace avx512 {
extern const InstructionSet table;
}
}  // namespace lmser

namespace native {

const std::vector<const InstructionSet*>& instruction_sets() {
  static const std::vector<const InstructionSet*> sets = [] {
    std::vector<const InstructionSet*> found;
#if defined(NATIVE_BASELINE)
    found.push_back(&lmser::baseline::table);
#endif
#if defined(NATIVE_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
      found.push_back(&lmser::avx2::table);
#endif
#if defined(NATIVE_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      found.push_back(&lmser::avx512::table);
#endif
    return found;
  }();
  return sets;
}

ThreadPool threads(int count) {
  return {count, [](std::int64_t tasks, const std::function<void(std::int64_t)>& f) {
            std::vector<std::thread> others;
            for (std::int64_t t = 1; t < tasks; ++t) others.emplace_back([&f, t] { f(t); });
            if (tasks > 0) f(0);
            for (std::thread& other : others) other.join();
          }};
}

Layout any_layout(Random& random, bool written) {
  static constexpr Layout all[] = {Layout::nchw, Layout::nhwc, Layout::nchw, Layout::nhwc,
                                   Layout::gaps, Layout::hwcn, Layout::ncwh, Layout::repeated};
  return all[random.below(written ? 7 : 8)];
}

namespace {
std::int64_t bytes_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }
constexpr unsigned char kNothing = 0xFF;  // as bytes of a value of any dtype: NaN
}  // namespace

Array::Array(DType dtype, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, Layout layout) {
  view = {nullptr, dtype, n, c, h, w, 0, 0, 0, 0};
  const auto lay = [](std::int64_t& stride, std::int64_t size, std::int64_t step) {
    stride = step;
    return step * std::max<std::int64_t>(size, 1);
  };
  switch (layout) {
    case Layout::nchw:
      lay(view.sn, n, lay(view.sc, c, lay(view.sh, h, lay(view.sw, w, 1))));
      break;
    case Layout::nhwc:
      lay(view.sn, n, lay(view.sh, h, lay(view.sw, w, lay(view.sc, c, 1))));
      break;
    case Layout::gaps:  // a piece of a larger channels-last tensor
      lay(view.sn, n, lay(view.sh, h, lay(view.sw, w, lay(view.sc, c, 1) + 3) + 5) + 7);
      break;
    case Layout::hwcn:
      lay(view.sh, h, lay(view.sw, w, lay(view.sc, c, lay(view.sn, n, 1))));
      break;
    case Layout::ncwh:
      lay(view.sn, n, lay(view.sc, c, lay(view.sw, w, lay(view.sh, h, 2) + 1)));
      break;
    case Layout::repeated:
      lay(view.sc, c, lay(view.sh, h, lay(view.sw, w, 1)));
      break;
  }
  if (n * c * h * w > 0) values_ = (n - 1) * view.sn + (c - 1) * view.sc + (h - 1) * view.sh + (w - 1) * view.sw + 1;
  const std::size_t bytes = std::size_t(std::max<std::int64_t>(values_ * bytes_of(dtype), 1));
  memory_.reset(static_cast<char*>(std::malloc(bytes)));
  if (!memory_) throw std::bad_alloc();
  std::memset(memory_.get(), kNothing, bytes);
  view.data = memory_.get();
}

double value_of(const View& v, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) {
  return lmser::value_at<double>(v, n * v.sn + c * v.sc + h * v.sh + w * v.sw);
}
void put(const View& v, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, double value) {
  lmser::store_value<double>(v, n * v.sn + c * v.sc + h * v.sh + w * v.sw, value);
}

namespace {
template <class F>
void over(const View& v, F&& f) {
  for (std::int64_t n = 0; n < v.n; ++n)
    for (std::int64_t c = 0; c < v.c; ++c)
      for (std::int64_t h = 0; h < v.h; ++h)
        for (std::int64_t w = 0; w < v.w; ++w) f(n, c, h, w);
}
}  // namespace

void Array::fill(Random& random) {
  over(view, [&](auto... at) { put(view, at..., random.value()); });
}
void Array::fill(double value) {
  over(view, [&](auto... at) { put(view, at..., value); });
}
bool Array::gaps_are_whole() const {
  std::vector<bool> given(std::size_t(values_), false);
  over(view, [&](std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) {
    given[std::size_t(n * view.sn + c * view.sc + h * view.sh + w * view.sw)] = true;
  });
  const std::int64_t size = bytes_of(view.dtype);
  for (std::int64_t i = 0; i < values_; ++i)
    for (std::int64_t b = 0; b < size; ++b)
      if (!given[std::size_t(i)] && static_cast<unsigned char>(memory_.get()[i * size + b]) != kNothing) return false;
  return true;
}
Numbers numbers(const View& v) {
  Numbers all(v.n, v.c, v.h, v.w);
  over(v, [&](auto... at) { all(at...) = value_of(v, at...); });
  return all;
}

double activated(Activation a, double z, double slope) {
  switch (a) {
    case Activation::identity:
      return z;
    case Activation::relu:
      return z < 0 ? 0 : z;
    case Activation::leaky_relu:
      return z > 0 ? z : z * slope;
    case Activation::sigmoid:
      return 1 / (1 + std::exp(-z));
    case Activation::tanh:
      return std::tanh(z);
    case Activation::leaky_sigmoid:
      return z > 1 ? (z - 1) * slope + 1 : z < -1 ? (z + 1) * slope - 1 : z;
  }
  std::abort();
}
double pulled_back(Activation a, double g, double h, double slope) {
  switch (a) {
    case Activation::identity:
      return g;
    case Activation::relu:
      return h <= 0 ? 0 : g;
    case Activation::leaky_relu:
      return h > 0 ? g : g * slope;
    case Activation::sigmoid:
      return g * (1 - h) * h;
    case Activation::tanh:
      return g * (1 - h * h);
    case Activation::leaky_sigmoid:
      return h > 1 || h < -1 ? g * slope : g;
  }
  std::abort();
}

Numbers source_values(const Source& s) {
  const View& b = s.base;
  Numbers all(b.n, b.c, b.h / s.pool_h, b.w / s.pool_w);
  over(b, [&](std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) {
    if (h / s.pool_h >= all.h || w / s.pool_w >= all.w) return;
    double v = value_of(b, n, c, h, w);
    if (s.output) v = pulled_back(s.activation, v, value_of(s.output, n, c, h, w), s.slope);
    if (s.gate) v *= value_of(s.gate, n, c, h, w) > 0 ? 1 : s.gate_slope;
    if (s.extra) v += value_of(s.extra, n, c, h, w);
    all(n, c, h / s.pool_h, w / s.pool_w) += v * s.scale;
  });
  return all;
}

namespace {
// f(output row, input row) for every kernel row a that joins the two, of the convolution big -> small.
template <class F>
void joined(std::int64_t small, std::int64_t big, int kernel, int stride, int pad, F&& f) {
  for (std::int64_t p = 0; p < small; ++p)
    for (int a = 0; a < kernel; ++a) {
      const std::int64_t at = p * stride - pad + a;
      if (at >= 0 && at < big) f(p, at, a);
    }
}
// All (row of small, row of big, column of small, column of big, kernel row, kernel column).
template <class F>
void over_taps(const Geometry& g, std::int64_t small_h, std::int64_t small_w, std::int64_t big_h, std::int64_t big_w,
               F&& f) {
  joined(small_h, big_h, g.kernel_h, g.stride_h, g.pad_h, [&](std::int64_t p, std::int64_t y, int a) {
    joined(small_w, big_w, g.kernel_w, g.stride_w, g.pad_w,
           [&](std::int64_t q, std::int64_t x, int b) { f(p, y, q, x, a, b); });
  });
}
}  // namespace

Numbers linear_map(const Geometry& g, const Numbers& x, const View& weight) {
  Numbers y(g.batch, g.out_c, g.out_h, g.out_w);
  const Numbers k = numbers(weight);
  for (std::int64_t n = 0; n < g.batch; ++n)
    for (std::int64_t o = 0; o < g.out_c; ++o)
      for (std::int64_t i = 0; i < g.in_c; ++i)
        if (g.transposed)
          over_taps(g, g.in_h, g.in_w, g.out_h, g.out_w,
                    [&](std::int64_t p, std::int64_t r, std::int64_t q, std::int64_t c, int a, int b) {
                      y(n, o, r, c) += x(n, i, p, q) * k(i, o, a, b);
                    });
        else
          over_taps(g, g.out_h, g.out_w, g.in_h, g.in_w,
                    [&](std::int64_t p, std::int64_t r, std::int64_t q, std::int64_t c, int a, int b) {
                      y(n, o, p, q) += x(n, i, r, c) * k(o, i, a, b);
                    });
  return y;
}

Written sink_values(const Sink& s, const Numbers& linear, const View& bias) {
  const View& v = s.out;
  Written all{Numbers(v.n, v.c, v.h, v.w),
              s.drive_once ? Numbers(v.n, v.c, linear.h, linear.w) : Numbers(v.n, v.c, v.h, v.w)};
  over(v, [&](std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) {
    if (h >= linear.h * s.upsample_h || w >= linear.w * s.upsample_w) return;
    double z = s.scale * linear(n, c, h / s.upsample_h, w / s.upsample_w);
    (s.drive_once ? all.drive(n, c, h / s.upsample_h, w / s.upsample_w) : all.drive(n, c, h, w)) = z;
    if (s.add) z += value_of(s.add, n, c, h / s.add_h, w / s.add_w);
    if (bias) z += lmser::value_at<double>(bias, c * bias.sc);
    z = activated(s.activation, z, s.slope);
    if (s.gate) z *= value_of(s.gate, n, c, h, w) > 0 ? 1 : s.gate_slope;
    all.out(n, c, h, w) = z;
  });
  return all;
}

Numbers weight_gradient(const Geometry& g, const Numbers& big, const Numbers& small) {
  Numbers grad(g.out_c, g.in_c, g.kernel_h, g.kernel_w);
  for (std::int64_t n = 0; n < g.batch; ++n)
    for (std::int64_t o = 0; o < g.out_c; ++o)
      for (std::int64_t i = 0; i < g.in_c; ++i)
        over_taps(g, g.out_h, g.out_w, g.in_h, g.in_w,
                  [&](std::int64_t p, std::int64_t r, std::int64_t q, std::int64_t c, int a, int b) {
                    grad(o, i, a, b) += small(n, o, p, q) * big(n, i, r, c);
                  });
  return grad;
}

Geometry geometry(std::int64_t batch, std::int64_t in_c, std::int64_t h, std::int64_t w, std::int64_t out_c, int kh,
                  int kw, int stride_h, int stride_w, int pad_h, int pad_w) {
  return {false,
          batch,
          in_c,
          h,
          w,
          out_c,
          (h + 2 * pad_h - kh) / stride_h + 1,
          (w + 2 * pad_w - kw) / stride_w + 1,
          kh,
          kw,
          stride_h,
          stride_w,
          pad_h,
          pad_w};
}
Geometry transposed(Geometry g) {
  g.transposed = !g.transposed;
  std::swap(g.in_c, g.out_c), std::swap(g.in_h, g.out_h), std::swap(g.in_w, g.out_w);
  return g;
}

namespace {
int failed = 0;
bool few = false;
}  // namespace
AnyTiles::AnyTiles(Random& random) : before_(lmser::narrow_tiles()) {
  using lmser::NarrowTiles;
  // Emulated ones are seen by sanitizers.
  const auto tiles = random.of(
      {int(NarrowTiles::none), int(NarrowTiles::emulated), int(NarrowTiles::emulated), int(NarrowTiles::amx)});
  lmser::choose_narrow_tiles(NarrowTiles(tiles));
}
AnyTiles::~AnyTiles() { lmser::choose_narrow_tiles(before_); }

int failures() { return failed; }
int cases(int all) { return few ? (all + 9) / 10 : all; }

void expect(bool holds, const std::string& what) {
  if (holds) return;
  if (++failed <= 20) std::printf("FAILED: %s\n", what.c_str());
}
void expect(const View& got, const Numbers& expected, const std::string& what, double times) {
  double largest = 1;
  for (double e : expected.at) largest = std::max(largest, std::abs(e));
  const double each = times * (got.dtype == DType::f64    ? 1e-11
                               : got.dtype == DType::f32  ? 3e-5
                               : got.dtype == DType::bf16 ? 6e-3
                                                          : 1e-3);
  std::string worst;
  over(got, [&](std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) {
    const double have = value_of(got, n, c, h, w), want = expected(n, c, h, w);
    if (!worst.empty() || std::abs(have - want) <= each * largest) return;  // NaN is never within
    char line[160];
    std::snprintf(line, sizeof line, ": (%d, %d, %d, %d) is %.9g, expected %.9g", int(n), int(c), int(h), int(w), have,
                  want);
    worst = line;
  });
  expect(worst.empty(), what + worst);
}

std::string text(const Geometry& g) {
  char line[240];
  std::snprintf(line, sizeof line, "%s batch %d, %dx%dx%d -> %dx%dx%d, kernel %dx%d stride %d,%d pad %d,%d",
                g.transposed ? "transposed" : "conv", int(g.batch), int(g.in_c), int(g.in_h), int(g.in_w), int(g.out_c),
                int(g.out_h), int(g.out_w), g.kernel_h, g.kernel_w, g.stride_h, g.stride_w, g.pad_h, g.pad_w);
  return line;
}

}  // namespace native

int main(int count, char** names) {
  using namespace native;
  if (count > 1 && std::strcmp(names[1], "--few") == 0) few = true, --count, ++names;
  std::vector<Test> tests;
  for (auto make : {conv_tests, conv_tile_tests, gradient_tests, elementwise_tests, offset_tests, thread_tests,
                    settle_tests, reflect_tests})
    for (Test& test : make()) tests.push_back(std::move(test));
  int ran = 0;
  for (const InstructionSet* isa : instruction_sets())
    for (const Test& test : tests) {
      bool asked = count == 1;
      for (int i = 1; i < count; ++i) asked = asked || std::strncmp(test.name, names[i], std::strlen(names[i])) == 0;
      if (!asked) continue;
      std::printf("%s %s\n", isa->name, test.name);
      std::fflush(stdout);
      const int before = failures();
      test.run(*isa);
      if (failures() > before) std::printf("%s %s: %d failed\n", isa->name, test.name, failures() - before);
      ++ran;
    }
  std::printf("%d tests, %d failures\n", ran, failures());
  return failures() || !ran;
}
