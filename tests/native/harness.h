// What the native tests share: tensors in memory of exactly their size, threads that a sanitizer understands, and the
// specification of the kernels as plain loops in double precision.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cpu/engine.h"
#include "cpu/narrow.h"

namespace native {

using lmser::Activation;
using lmser::DType;
using lmser::Geometry;
using lmser::InstructionSet;
using lmser::Sink;
using lmser::Source;
using lmser::ThreadPool;
using lmser::View;

// The instruction sets that were linked and that this processor runs.
const std::vector<const InstructionSet*>& instruction_sets();
// One std::thread for every task.
ThreadPool threads(int count);

// The same numbers on every machine.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  std::int64_t below(std::int64_t n) {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return std::int64_t(state_ >> 11) % n;
  }
  std::int64_t between(std::int64_t first, std::int64_t last) { return first + below(last - first + 1); }
  bool one_in(std::int64_t n) { return below(n) == 0; }
  std::int64_t of(std::initializer_list<std::int64_t> values) {
    return values.begin()[below(std::int64_t(values.size()))];
  }
  // An eighth of an integer: the same in every dtype.
  double value() { return double(between(-8, 8)) / 8; }

 private:
  std::uint64_t state_;
};

// Numbers (N, C, H, W) without a layout.
struct Numbers {
  std::int64_t n = 0, c = 0, h = 0, w = 0;
  std::vector<double> at;
  Numbers() = default;
  Numbers(std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w)
      : n(n), c(c), h(h), w(w), at(std::size_t(n * c * h * w), 0.0) {}
  double& operator()(std::int64_t i, std::int64_t k, std::int64_t y, std::int64_t x) {
    return at[std::size_t(((i * c + k) * h + y) * w + x)];
  }
  double operator()(std::int64_t i, std::int64_t k, std::int64_t y, std::int64_t x) const {
    return at[std::size_t(((i * c + k) * h + y) * w + x)];
  }
};

enum class Layout { nchw, nhwc, gaps, hwcn, ncwh, repeated };  // repeated: one image read as many
Layout any_layout(Random& random, bool written);

// A tensor that ends where its memory does. What lies between its values, and what was not given one, is NaN.
class Array {
 public:
  Array() = default;
  Array(DType dtype, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, Layout layout);
  View view;
  void fill(Random& random);
  void fill(double value);
  // Whether what lies between the values is what it was.
  bool gaps_are_whole() const;

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> memory_;
  std::int64_t values_ = 0;
};
double value_of(const View& v, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w);
void put(const View& v, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, double value);
Numbers numbers(const View& v);

// The specification (plan.h, engine.h).
Numbers source_values(const Source& s);
Numbers linear_map(const Geometry& g, const Numbers& x, const View& weight);
struct Written {
  Numbers out, drive;
};
Written sink_values(const Sink& s, const Numbers& linear, const View& bias);
Numbers weight_gradient(const Geometry& g, const Numbers& big, const Numbers& small);
double activated(Activation a, double z, double slope);
double pulled_back(Activation a, double g, double h, double slope);

// The geometry of a convolution; in the other direction.
Geometry geometry(std::int64_t batch, std::int64_t in_c, std::int64_t h, std::int64_t w, std::int64_t out_c, int kh,
                  int kw, int stride_h, int stride_w, int pad_h, int pad_w);
Geometry transposed(Geometry g);

// Compares with what is expected, within what the dtype and sums of this size allow, `times` that where values were
// rounded on the way; tells what failed, and counts it.
void expect(const View& got, const Numbers& expected, const std::string& what, double times = 1);
void expect(bool holds, const std::string& what);
std::string text(const Geometry& g);
int failures();
// How many made-up cases a test takes: all, or with --few a tenth.
int cases(int all);

// Convolutions of bfloat16 in any of the tiles that run here, or in float32, while it lives.
class AnyTiles {
 public:
  explicit AnyTiles(Random& random);
  AnyTiles(const AnyTiles&) = delete;
  ~AnyTiles();

 private:
  lmser::NarrowTiles before_;
};

struct Test {
  const char* name;
  std::function<void(const InstructionSet&)> run;
};
std::vector<Test> conv_tests(), conv_tile_tests(), gradient_tests(), elementwise_tests(), offset_tests(),
    thread_tests(), settle_tests(), reflect_tests();

}  // namespace native
