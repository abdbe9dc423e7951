// Weight gradients: one sum a task over its pixels, or one sum whose bands the tasks share.
#include "engine.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "buffer.h"
#include "layout.h"

namespace lmser {
namespace {

template <class T>
void weight_grad(const InstructionSet& isa, const ThreadPool& pool, Geometry g, std::vector<WeightGradPair>& pairs,
                 const View& grad, bool turned, bool accumulate, bool winograd = true) {
  const Kernels<T>& k = kernels_of<T>(isa);
  const WeightGradPlan plan = plan_weight_grad(g, k.tile, sizeof(T), pool.threads, winograd);
  const std::int64_t bands = plan.bands_per_row * plan.sum_rows;
  std::int64_t tasks =
      std::max<std::int64_t>(1, std::min<std::int64_t>(pool.threads, plan.split_pixels ? plan.units : bands));
  if (double(plan.sum_values) * double(g.batch) * double(g.out_h) * double(g.out_w) < kSerialWork) tasks = 1;
  const std::int64_t sums = plan.split_pixels ? tasks : 1;
  std::vector<WeightGradCall<T>> calls;
  std::int64_t scratch = 1;
  for (WeightGradPair& pair : pairs) {
    calls.push_back({&plan, pair.big, pair.small, nullptr});
    scratch = std::max(scratch, k.weight_grad_scratch(calls.back()));
  }
  const Buffer<T> memory = allocate<T>(scratch * tasks);
  Buffer<T> sum = allocate<T>(plan.sum_values * sums);
  const auto work = [&](std::int64_t task) {
    T* const own = sum.get() + (plan.split_pixels ? task * plan.sum_values : 0);
    const std::int64_t band0 = plan.split_pixels ? 0 : bands * task / tasks,
                       band1 = plan.split_pixels ? bands : bands * (task + 1) / tasks;
    const std::int64_t unit0 = plan.split_pixels ? plan.units * task / tasks : 0,
                       unit1 = plan.split_pixels ? plan.units * (task + 1) / tasks : plan.units;
    // Bands are consecutive rows of the sum.
    const std::int64_t length = plan.sum_length;
    const auto row = [&](std::int64_t band) {
      return band / plan.bands_per_row * length + length * (band % plan.bands_per_row) / plan.bands_per_row;
    };
    std::memset(static_cast<void*>(own + row(band0) * plan.padded_out_c), 0,
                sizeof(T) * (row(band1) - row(band0)) * plan.padded_out_c);
    for (WeightGradCall<T> call : calls) {
      call.sum = own;
      for (std::int64_t u = unit0; u < unit1; ++u)
        k.weight_grad_unit(call, u, band0, band1, memory.get() + task * scratch);
    }
  };
  if (tasks == 1)
    work(0);
  else
    pool.run(tasks, work);

  std::int64_t partial = sums;  // how many sums are left to add
  if (plan.winograd.m) {
    Buffer<T> taps = allocate<T>(9 * g.in_c * plan.padded_out_c);
    std::atomic<bool> finite{true};
    const auto finish = [&](std::int64_t t) {
      if (!k.winograd_grad_finish(plan, sum.get(), int(sums), g.in_c * t / tasks, g.in_c * (t + 1) / tasks, taps.get()))
        finite.store(false);
    };
    if (tasks == 1)
      finish(0);
    else
      pool.run(tasks, finish);
    if (!finite.load()) return weight_grad<T>(isa, pool, g, pairs, grad, turned, accumulate, false);
    sum = std::move(taps);
    partial = 1;
  }
  // Sum the tasks in their order and turn (kh, kw, C_in, C_out) into (C_out, C_in, kh, kw).
  const int lanes = k.tile.lanes;
  const std::int64_t groups = plan.padded_out_c / lanes;
  const auto reduce = [&](std::int64_t group) {
    const std::int64_t c0 = group * lanes, c1 = std::min(c0 + lanes, g.out_c);
    for (int i = 0; i < g.kernel_h; ++i)
      for (int j = 0; j < g.kernel_w; ++j)
        for (std::int64_t ci = 0; ci < g.in_c; ++ci) {
          T* const from = sum.get() + ((i * g.kernel_w + j) * g.in_c + ci) * plan.padded_out_c + c0;
          for (std::int64_t t = 1; t < partial; ++t)
            for (int v = 0; v < lanes; ++v) from[v] += from[t * plan.sum_values + v];
          const std::int64_t at = ci * grad.sc + (turned ? j * grad.sh + i * grad.sw : i * grad.sh + j * grad.sw);
          if (grad.dtype == kDTypeOf<T>) {
            T* const to = static_cast<T*>(grad.data) + at;
            if (grad.sn == 1 && !accumulate) {
              std::memcpy(to + c0, from, sizeof(T) * (c1 - c0));
              continue;
            }
            for (std::int64_t co = c0; co < c1; ++co)
              to[co * grad.sn] = accumulate ? to[co * grad.sn] + from[co - c0] : from[co - c0];
          } else {
            for (std::int64_t co = c0; co < c1; ++co) store_value<T>(grad, at + co * grad.sn, from[co - c0]);
          }
        }
  };
  if (tasks == 1 || plan.sum_values < 1 << 14) {
    for (std::int64_t group = 0; group < groups; ++group) reduce(group);
  } else {
    pool.run(tasks, [&](std::int64_t t) {
      for (std::int64_t group = groups * t / tasks; group < groups * (t + 1) / tasks; ++group) reduce(group);
    });
  }
}

}  // namespace

void run_weight_grad(const InstructionSet& isa, const ThreadPool& pool, Geometry geometry,
                     std::vector<WeightGradPair> pairs, const View& grad, bool accumulate) {
  const Geometry before = geometry;
  // Every pair must normalise alike; a second one of another layout keeps the first from being merged.
  if (pairs.size() == 1)
    normalise(geometry, pairs[0].big, pairs[0].small);
  else
    normalise(geometry, pairs[0].big, pairs[0].small, pairs[1].big, pairs[1].small);
  const bool turned = before.kernel_h != geometry.kernel_h;
  View to = grad;
  const Geometry& g = geometry;
  if (g.kernel_h * g.kernel_w == 1 && g.stride_h * g.stride_w == 1 && g.pad_h + g.pad_w == 0) {
    // A plain product of two matrices: with the sides exchanged its sum lies as the weight does, and nothing has to
    // be turned at the end.
    for (WeightGradPair& pair : pairs) std::swap(pair.big, pair.small);
    std::swap(geometry.in_c, geometry.out_c);
    std::swap(to.n, to.c), std::swap(to.sn, to.sc);
  }
  if (grad.dtype == DType::f64)
    weight_grad<double>(isa, pool, geometry, pairs, to, turned, accumulate);
  else
    weight_grad<float>(isa, pool, geometry, pairs, to, turned, accumulate);
}

}  // namespace lmser
