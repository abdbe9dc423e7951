// What one instruction set offers. Each is built from the same sources with its own compiler flags; the choice
// is made once, from the processor, when the library is loaded.
#pragma once

#include "winograd_order.h"

namespace lmser {

// A convolution's weight as it lies: value (out, in, i, j), strides in values. In and out are those of the direction
// that runs; `data` is of input channel `first`.
template <class T>
struct WeightLayout {
  const T* data;
  std::int64_t out, in, row, col, first = 0;
  const T* from(std::int64_t o, std::int64_t c) const { return data + o * out + (c - first) * in; }
};

template <class T>
struct ConvCall {
  const ConvPlan* plan;
  Source source;
  Sink sink;
  const T* weight;               // packed
  WeightLayout<T> as_it_lies{};  // where the plan's units read it so, or pack it themselves
};

template <class T>
struct WeightGradCall {
  const WeightGradPlan* plan;
  Source big, small;
  T* sum;              // as the plan says, added to
  bool fresh = false;  // the unit is the first of its sum, which holds nothing yet
  // The sums over the unit's pixels of the channels of `small`, or of `big`, are added; null where nobody asks.
  double* channels = nullptr;
  bool channels_of_big = false;
};

// g = base * f'(output) [* (gate > 0 ? 1 : gate_slope)] over a range of rows, written to `pre`; g + extra to `total`;
// the sum of g over pixels added to `bias`. Any of the three may be absent.
struct TransformCall {
  Source source;
  View pre, total;
  double* bias = nullptr;
  bool bias_by_row = false;  // bias[row], not bias[channel]
};

template <class T>
struct AddActCall {
  View y, u, out;
  const T* bias = nullptr;
  bool bias_by_row = false;
  Activation activation = Activation::identity;
  double slope = 0;
  int repeat_h = 1, repeat_w = 1;  // of every value of u
};

// Max pooling: `big` before it, `small` after it; of each value of `small` the place of its winner in its window, row
// by row, as dense (N, H', W', C).
struct PoolCall {
  View big, small, output;  // output: what f' is read from, as `small`
  std::uint8_t* places = nullptr;
  int kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0;
  Activation activation = Activation::identity;
  double slope = 0;
  // The size of `small`, where the windows fit into `big`, no padding holds a whole one, and a place is a byte.
  std::int64_t small_h() const { return (big.h + 2 * pad_h - kernel_h) / stride_h + 1; }
  std::int64_t small_w() const { return (big.w + 2 * pad_w - kernel_w) / stride_w + 1; }
  static constexpr std::int64_t kMostPlaces = 255;
};

// The gradient of a weight whose rows lie dense, over few pixels: to[row][k] = the sum over pixels of small[row] x
// from[k], each `step` values from one pixel to the next.
template <class T>
struct OuterProduct {
  const T* small;
  std::int64_t small_step;
  const T* from;
  std::int64_t columns_step, columns, pixels;
  T* to;
  std::int64_t row;  // values between two
  bool accumulate;
};

template <class T>
struct Kernels {
  TileShape tile;
  std::int64_t (*conv_scratch)(const ConvCall<T>&);  // values of T
  // False: an output of a minimal-filtering unit is not finite, and the direct plan must be run instead.
  bool (*conv_unit)(const ConvCall<T>&, std::int64_t unit, T* scratch);
  // What lies under the kernel of a convolution at the pixels of one row of its output (unpacked_unit.h).
  std::int64_t (*columns_scratch)(const Source&, const Geometry&);
  void (*gather_columns)(const Source&, const Geometry&, std::int64_t image, std::int64_t row, bool taps_together,
                         T* columns, T* scratch);
  void (*outer_rows)(const OuterProduct<T>&, std::int64_t row0, std::int64_t row1);
  // The parts of a round of minimal filtering (ConvPlan::round_units), float alone: a unit's input to points, the
  // products of a point and some blocks, a unit's sums to outputs.
  void (*round_points)(const ConvCall<T>&, std::int64_t unit, const TileOrder&, T* points, T* scratch);
  void (*round_products)(const ConvCall<T>&, int point, int block0, int block1, const TileOrder&, const T* points,
                         T* sums);
  bool (*round_outputs)(const ConvCall<T>&, std::int64_t unit, const TileOrder&, T* sums, T* scratch);
  // Rows of the pooled sink from its output.
  void (*pooled_rows)(const Sink&, std::int64_t image, std::int64_t row0, std::int64_t row1);
  bool (*pools_by_unit)(const ConvCall<T>&);
  // Input channels [c0, c1) of one block; not of a dot plan.
  void (*pack)(const ConvPlan&, const WeightLayout<T>&, int block, std::int64_t c0, std::int64_t c1, T* packed);
  std::int64_t (*weight_grad_scratch)(const WeightGradCall<T>&);
  // Bands [band0, band1) of sum_rows * bands_per_row: a task may take a part of the gradient instead of a part of the
  // pixels.
  void (*weight_grad_unit)(const WeightGradCall<T>&, std::int64_t unit, std::int64_t band0, std::int64_t band1,
                           T* scratch);
  // The parts of a round (WeightGradPlan::round_units), float alone: a unit's sides to points, and the products of some
  // bands over the points of `pairs`, each `all_points` behind the one before.
  void (*grad_points)(const WeightGradCall<T>&, std::int64_t unit, const TileOrder&, T* points, T* scratch);
  void (*grad_products)(const WeightGradCall<T>&, std::int64_t pairs, std::int64_t band0, std::int64_t band1,
                        const TileOrder&, const T* points);
  bool (*winograd_grad_finish)(const WeightGradPlan&, const T* sums, int count, std::int64_t c0, std::int64_t c1,
                               T* out);
  std::int64_t (*transform_scratch)(const TransformCall&);
  void (*transform_rows)(const TransformCall&, std::int64_t image, std::int64_t row0, std::int64_t row1, T* scratch);
  std::int64_t (*add_act_scratch)(const AddActCall<T>&);
  void (*add_act_rows)(const AddActCall<T>&, std::int64_t image, std::int64_t row0, std::int64_t row1, T* scratch);
  // Rows of `small` from `big`, rows of `big` from `small`, and rows of `small` from `big` again (max_pool_unit.h).
  std::int64_t (*pool_scratch)(const PoolCall&);
  void (*pool_rows)(const PoolCall&, std::int64_t image, std::int64_t row0, std::int64_t row1, T* scratch);
  void (*unpool_rows)(const PoolCall&, std::int64_t image, std::int64_t row0, std::int64_t row1, T* scratch);
  void (*select_rows)(const PoolCall&, std::int64_t image, std::int64_t row0, std::int64_t row1, T* scratch);
  // Rows [row0, row1) of an image of `result`, whole channels; `unit` tells the sums apart.
  void (*epilogue_rows)(const Epilogue&, const View& result, std::int64_t image, std::int64_t row0, std::int64_t row1,
                        std::int64_t unit);
  // Peak probe: `rounds` dependent-free fused multiply-adds over a full register tile; returns operations done.
  double (*fma_rounds)(std::int64_t rounds, T* sink);
};

struct InstructionSet {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
};

// The one in use: the best this processor runs, unless another was chosen to compare them. All that run here,
// best first.
const InstructionSet& instruction_set();
bool choose_instruction_set(const char* name);
const InstructionSet* const* instruction_sets(int* count);

}  // namespace lmser
