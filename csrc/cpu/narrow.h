// Convolutions of bfloat16 values, whose products are of bfloat16 and whose sums are float32, in the processor's own
// registers for matrices (Intel AMX): a tile of 16 rows x 32 values times one of 32 values x 16 columns is one
// instruction. All input under the kernel of 32 pixels is laid side by side first; what is read and written is as in
// the other kernels.
#pragma once

#include "engine.h"

namespace lmser {

// Rows of an image follow each other, and pixels and channels in them; of images `together` as well. A stride along
// which there is one value says nothing.
inline bool lies_dense(const View& v, bool together) {
  return (v.sc == 1 || v.c == 1) && (v.sw == v.c || v.w == 1) && (v.sh == v.w * v.c || v.h == 1) &&
         (!together || v.sn == v.h * v.w * v.c || v.n == 1);
}

// Which tiles there are. `emulated` gives what the instructions give, but for the order of sums and numbers below the
// smallest normal one, by plain loops: what is around them can be tested, and looked at by sanitizers, on any processor
// with AVX-512.
enum class NarrowTiles { none, emulated, amx };
NarrowTiles narrow_tiles();
// From now on, for tests and comparisons; false, and nothing is changed, where this processor, or its operating
// system, does not have them.
bool choose_narrow_tiles(NarrowTiles tiles);

// Values of a row of a tile, pixels of two tiles, and values of a tile.
inline constexpr std::int64_t kNarrowDepth = 32, kNarrowPixels = 32, kNarrowTile = 16 * kNarrowDepth;

// How the values under a kernel are cut into rows of tiles: `chunks` of `depth` values in each of `pieces`. Where that
// is little more than all of them one after the other would take, a piece is what lies under a kernel row: pixels are
// then read where they lie. Else there is one piece, whose last chunk is filled up with zeros.
struct NarrowCut {
  bool by_rows = false;
  std::int64_t length = 0;  // values under a kernel row
  std::int64_t depth = kNarrowDepth, pieces = 0, chunks = 0;
  NarrowCut(const ConvPlan& p, const Phase& ph) : length(ph.taps_w * p.geometry.in_c) {
    if (length == 0) return;
    const auto chunks_of = [](std::int64_t values) { return (values + kNarrowDepth - 1) / kNarrowDepth; };
    const std::int64_t of_row = chunks_of(length), all = chunks_of(length * ph.taps_h);
    by_rows = length % (2 * of_row) == 0 && 4 * of_row * ph.taps_h <= 5 * all;
    if (by_rows)
      depth = length / of_row, pieces = ph.taps_h, chunks = of_row;
    else
      pieces = 1, chunks = all;
  }
  std::int64_t tiles() const { return pieces * chunks; }
  // Values of a pixel laid side by side.
  std::int64_t values() const { return by_rows ? pieces * length : chunks * depth; }
};

// Dense channels-last tensors of one shape; null where not given.
struct NarrowPullBack {
  const std::uint16_t *base, *output, *gate, *extra;
  std::uint16_t *pre, *total;
  std::int64_t channels;
  Activation activation;
  float slope, gate_slope;
};

struct NarrowKernels {
  std::int64_t (*conv_scratch)(const ConvCall<float>&);  // values of float
  void (*conv_unit)(const ConvCall<float>&, std::int64_t unit, float* scratch);
  // As Kernels::pack, two values in the place of one: of a block all tiles of a phase one after the other, each
  // [depth / 2][channel][2], in the place of a whole one.
  void (*pack)(const ConvPlan&, const WeightLayout<float>&, int block, std::int64_t c0, std::int64_t c1, float* packed);
  std::int64_t (*weight_grad_scratch)(const WeightGradCall<float>&);
  void (*weight_grad_unit)(const WeightGradCall<float>&, std::int64_t unit, std::int64_t band0, std::int64_t band1,
                           float* scratch);
  // 16 output channels x 16 input channels of `count` sums, added in their order, to a gradient of bfloat16 in the
  // weight's layout, or in that of a `turned` kernel; `more`: and to what it holds.
  void (*write_weight)(const WeightGradPlan&, const float* sums, std::int64_t count, std::int64_t piece, bool turned,
                       const View& grad, bool more);
  void (*pull_back)(const NarrowPullBack&, std::int64_t pixel0, std::int64_t pixel1, double* bias);
  // Peak probe: operations of `rounds` products of four tiles each, of values in the first-level cache.
  double (*product_rounds)(std::int64_t rounds);
};
// Of the tiles in use; null where there are none, or `isa` is not the instruction set they belong to.
const NarrowKernels* narrow_kernels(const InstructionSet& isa);

ConvPlan plan_narrow_conv(const Geometry& geometry, int threads, int calls);
WeightGradPlan plan_narrow_weight_grad(const Geometry& geometry, int threads);

// As run_transform, where everything is bfloat16 and lies alike, channels last; false, and nothing is done, elsewhere.
bool run_narrow_pull_back(const InstructionSet& isa, const ThreadPool& pool, const Source& source, const View& pre,
                          const View& total, const View& bias_grad);

// Where the sum of a band lies: its tiles of 16 output channels x 16 values, [output tile][value tile][16][16].
inline std::int64_t narrow_band(const WeightGradPlan& p, std::int64_t band) {
  return band * kNarrowDepth * p.padded_out_c;
}
// So many pieces of a gradient are written one by one.
inline std::int64_t narrow_weight_pieces(const WeightGradPlan& p) {
  return p.padded_out_c / 16 * ((p.geometry.in_c + 15) / 16);
}

}  // namespace lmser
