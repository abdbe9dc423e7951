// Runs plans over tasks: memory, threads, packing. Torch-free but for the thread pool handed in.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "kernels.h"

namespace lmser {

// threads, and run(count, f): f(task) for every task in [0, count), in parallel, returning when all are done.
struct ThreadPool {
  int threads;
  std::function<void(std::int64_t count, const std::function<void(std::int64_t)>& f)> run;
};

// out = sink(conv or conv_transpose of source with weight). `weight` is the convolution's (C_out, C_in, kh, kw)
// in either direction. `far`: since the weight was last used so much else has been done, as a pass forward and back,
// that it is looked for beyond the nearer caches, and what was packed of it as well.
void run_conv(const InstructionSet& isa, const ThreadPool& pool, const Geometry& geometry, const Source& source,
              const Sink& sink, const View& weight, const View& bias, bool far = false);

// One convolution and then another of as many outputs, whose sink adds what the first one's has. Each of its units
// comes right after the first one's unit of the same outputs, which are still in the cache. Nothing else that is read
// may share memory with what is written.
struct ConvTask {
  Geometry geometry;
  Source source;
  Sink sink;
  View weight, bias;
};
void run_conv_pair(const InstructionSet& isa, const ThreadPool& pool, const ConvTask& first, const ConvTask& second);

// The same for many calls: plans and the packed weight are kept from the first on. `dtype` is the source's, the batch
// too; `geometry.batch` is the most there will be: whether it is worth filtering decides for every part of it, so that
// parts have the bits of the whole. The memory of `weight` must stay and not change. `calls`, how often it will be run,
// decides whether a packing that costs more pays; `filtering` false asks for the direct sum. `beside` is the weight of
// a transposed convolution of stride 1 whose sums are added, taken of the channels of `Source::beside`: a convolution
// of as many taps, padded by taps - 1 - its padding, which must be `geometry`'s; `geometry.in_c` counts both. Of the
// compute type. `far` as in `run_conv`.
class PreparedConv {
 public:
  PreparedConv(const InstructionSet& isa, const Geometry& geometry, DType dtype, const View& weight, int calls = 1,
               bool filtering = true, const View& beside = {}, bool far = false);
  PreparedConv(PreparedConv&&) noexcept;
  PreparedConv& operator=(PreparedConv&&) noexcept;
  ~PreparedConv();
  // Where a minimal-filtering result is not finite all is computed once more by the direct sum, which says which
  // outputs that really reaches: nothing that is read may share memory with what is written. One call at a time.
  void run(const ThreadPool& pool, const Source& source, const Sink& sink);
  // Once, without that; false where a result is not finite, and then without an epilogue. `sink.add` and `sink.drive`
  // may be one memory. After `prepare` with the same arguments it may be called by several threads at a time.
  bool run_once(const ThreadPool& pool, const Source& source, const Sink& sink);
  const ConvPlan& prepare(const ThreadPool& pool, const Source& source, const Sink& sink);
  // Where there were many batch sizes, the plans of all but the last; what was prepared before may be gone.
  void forget_plans();
  struct State;

 private:
  std::unique_ptr<State> state_;
};

// The epilogue by itself, on a dense channels-last result.
void run_epilogue(const InstructionSet& isa, const ThreadPool& pool, const Epilogue& epilogue, const View& result);

// grad = sum over the pairs of the weight gradient of the convolution big -> small; (C_out, C_in, kh, kw).
struct WeightGradPair {
  Source big, small;
};
// `accumulate` adds to what `grad` holds (float32 and float64 only), and to `bias` (C_out,), where it is given: the
// sums over pixels of the small sides.
void run_weight_grad(const InstructionSet& isa, const ThreadPool& pool, const Geometry& geometry,
                     const std::vector<WeightGradPair>& pairs, const View& grad, bool accumulate = false,
                     const View& bias = {});

// Whether the gradient of one pair is written to `grad` as it is formed (unpacked_plan.cpp): summing it elsewhere first
// would save nothing.
bool gathers_gradient(const InstructionSet& isa, const Geometry& geometry, const View& grad);
// Several of those, of one dtype, in one parallel region. The pairs of each, of any batch, are added one after the
// other.
struct GatheredGradient {
  Geometry geometry;
  std::vector<WeightGradPair> pairs;
  View grad;
  bool accumulate = false;
};
void run_gathered_gradients(const InstructionSet& isa, const ThreadPool& pool,
                            const std::vector<GatheredGradient>& wanted);

// Two of them, of as many outputs each: of a unit of pixels the second is summed right after the first, out of the
// cache.
struct WeightGradTask {
  Geometry geometry;
  WeightGradPair pair;
  View grad, bias;
};
void run_weight_grad_pair(const InstructionSet& isa, const ThreadPool& pool, const WeightGradTask& first,
                          const WeightGradTask& second);

// The same over many calls: what is added stays in the form it is summed in until the end. `finish` gives false, and
// writes nothing, where a minimal-filtering sum is not finite: all must then be added once more to a sum without it.
class WeightGradSum {
 public:
  // `tiles`: of bfloat16 the sides are read as they are, and may be multiplied as such (narrow.h).
  WeightGradSum(const InstructionSet& isa, const ThreadPool& pool, const Geometry& geometry, DType dtype,
                bool winograd = true, bool tiles = false);
  WeightGradSum(WeightGradSum&&) noexcept;
  WeightGradSum& operator=(WeightGradSum&&) noexcept;
  ~WeightGradSum();
  void add_channels();                          // before any pair: the channels of the small sides are summed as well
  void add(std::vector<WeightGradPair> pairs);  // whose tensors lie as those of the first call
  bool finish(const View& grad, bool accumulate = false);
  void finish_channels(const View& bias, bool accumulate) const;
  // Adds what `other` holds, a sum of the same weight over other pixels; false, and nothing is done, where the two are
  // formed differently.
  bool merge(WeightGradSum& other, const ThreadPool& pool);
  void finish_by(const ThreadPool& pool);  // whose threads share the last part, whoever added
  struct State;

 private:
  std::unique_ptr<State> state_;
};

// pre, total and bias of TransformCall; bias_grad (1-D over channels) may be absent.
void run_transform(const InstructionSet& isa, const ThreadPool& pool, Source source, View pre, View total,
                   const View& bias_grad, bool accumulate = false);

// Every value of `u` counts for repeat_h x repeat_w of the others.
void run_add_act(const InstructionSet& isa, const ThreadPool& pool, View y, View u, const View& bias, View out,
                 Activation activation, double slope, int repeat_h = 1, int repeat_w = 1);

// small and places from big; big from small and places; small from big and places.
void run_max_pool(const InstructionSet& isa, const ThreadPool& pool, const PoolCall& call);
void run_max_unpool(const InstructionSet& isa, const ThreadPool& pool, const PoolCall& call);
void run_max_select(const InstructionSet& isa, const ThreadPool& pool, const PoolCall& call);

// The plan of a convolution as run_conv would make it, after layout normalisation, of input that is read as it is or is
// pooled first.
ConvPlan inspect_conv(const InstructionSet& isa, int threads, Geometry geometry, DType dtype, bool channels_last,
                      bool pools);

}  // namespace lmser
