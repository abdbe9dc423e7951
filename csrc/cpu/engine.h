// Runs plans over tasks: memory, threads, packing. Torch-free but for the thread pool handed in.
#pragma once

#include <functional>
#include <vector>

#include "kernels.h"

namespace lmser {

// threads, and run(count, f): f(task) for every task in [0, count), in parallel, returning when all are done.
struct ThreadPool {
  int threads;
  std::function<void(std::int64_t count, const std::function<void(std::int64_t)>& f)> run;
};

// out = sink(conv or conv_transpose of source with weight). `weight` is the convolution's (C_out, C_in, kh, kw)
// in either direction.
void run_conv(const InstructionSet& isa, const ThreadPool& pool, Geometry geometry, Source source, Sink sink,
              const View& weight, const View& bias);

// grad = sum over the pairs of the weight gradient of the convolution big -> small; (C_out, C_in, kh, kw).
struct WeightGradPair {
  Source big, small;
};
// `accumulate` adds to what `grad` holds (float32 and float64 only).
void run_weight_grad(const InstructionSet& isa, const ThreadPool& pool, Geometry geometry,
                     std::vector<WeightGradPair> pairs, const View& grad, bool accumulate = false);

// pre, total and bias of TransformCall; bias_grad (1-D over channels) may be absent.
void run_transform(const InstructionSet& isa, const ThreadPool& pool, Source source, View pre, View total,
                   const View& bias_grad, bool accumulate = false);

void run_add_act(const InstructionSet& isa, const ThreadPool& pool, View y, View u, const View& bias, View out,
                 Activation activation, double slope);

// The plan of a convolution as run_conv would make it, after layout normalisation.
ConvPlan inspect_conv(const InstructionSet& isa, int threads, Geometry geometry, bool double_precision,
                      bool channels_last);

}  // namespace lmser
