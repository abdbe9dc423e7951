// Weight gradients: those asked for at once, and those summed over many calls.
#include <algorithm>

#include "gathered_gradient.h"
#include "weight_grad_sum.h"

namespace lmser {

WeightGradSum::WeightGradSum(const InstructionSet& isa, const ThreadPool& pool, const Geometry& geometry, DType dtype,
                             bool winograd, bool tiles) {
  if (dtype == DType::f64)
    state_ = std::make_unique<GradientSum<double>>(isa, pool, geometry, winograd, false);
  else
    state_ = std::make_unique<GradientSum<float>>(isa, pool, geometry, winograd, tiles && dtype == DType::bf16);
}
WeightGradSum::WeightGradSum(WeightGradSum&&) noexcept = default;
WeightGradSum& WeightGradSum::operator=(WeightGradSum&&) noexcept = default;
WeightGradSum::~WeightGradSum() = default;

void WeightGradSum::add_channels() { state_->channels = true; }
void WeightGradSum::add(std::vector<WeightGradPair> pairs) { state_->add(std::move(pairs)); }
bool WeightGradSum::finish(const View& grad, bool accumulate) { return state_->finish(grad, accumulate); }
void WeightGradSum::finish_channels(const View& bias, bool accumulate) const {
  state_->finish_channels(bias, accumulate);
}
bool WeightGradSum::merge(WeightGradSum& other, const ThreadPool& pool) { return state_->merge(*other.state_, pool); }
void WeightGradSum::finish_by(const ThreadPool& pool) { state_->finish_by(pool); }

bool gathers_gradient(const InstructionSet& isa, const Geometry& geometry, const View& grad) {
  if (grad.dtype == DType::f64) return gathers_gradient(geometry, isa.f64.tile, 8, grad);
  return grad.dtype == DType::f32 && gathers_gradient(geometry, isa.f32.tile, 4, grad);
}

void run_gathered_gradients(const InstructionSet& isa, const ThreadPool& pool,
                            const std::vector<GatheredGradient>& wanted) {
  if (wanted.empty()) return;
  const auto run_as = wanted.front().grad.dtype == DType::f64 ? run_gathered<double> : run_gathered<float>;
  run_as(isa, pool, wanted, {});
}

void run_weight_grad(const InstructionSet& isa, const ThreadPool& pool, const Geometry& geometry,
                     const std::vector<WeightGradPair>& pairs, const View& grad, bool accumulate, const View& bias) {
  if (gathers_gradient(isa, geometry, grad)) {
    const auto run_as = grad.dtype == DType::f64 ? run_gathered<double> : run_gathered<float>;
    run_as(isa, pool, {{geometry, pairs, grad, accumulate}}, bias);
    return;
  }
  const bool tiles =
      std::ranges::all_of(pairs, [](const WeightGradPair& p) { return p.big.plain() && p.small.plain(); });
  for (const bool winograd : {true, false}) {
    WeightGradSum sum(isa, pool, geometry, grad.dtype, winograd, tiles);
    if (bias) sum.add_channels();
    sum.add(pairs);
    if (!sum.finish(grad, accumulate)) continue;
    if (bias) sum.finish_channels(bias, accumulate);
    return;
  }
}

template <class T>
void run_pair_as(const InstructionSet& isa, const ThreadPool& pool, const WeightGradTask& first,
                 const WeightGradTask& second) {
  GradientSum<T> a(isa, pool, first.geometry, true, false), b(isa, pool, second.geometry, true, false);
  a.channels = bool(first.bias), b.channels = bool(second.bias);
  a.add_both(first.pair, b, second.pair);
  const auto finish = [&](GradientSum<T>& sum, const WeightGradTask& task) {
    if (!sum.finish(task.grad, false))
      run_weight_grad(isa, pool, task.geometry, {task.pair}, task.grad, false, task.bias);
    else if (task.bias)
      sum.finish_channels(task.bias, false);
  };
  finish(a, first), finish(b, second);
}
void run_weight_grad_pair(const InstructionSet& isa, const ThreadPool& pool, const WeightGradTask& first,
                          const WeightGradTask& second) {
  if (first.grad.dtype == DType::bf16 && narrow_kernels(isa)) {  // by themselves in tiles rather than together in float
    for (const WeightGradTask* task : {&first, &second})
      run_weight_grad(isa, pool, task->geometry, {task->pair}, task->grad, false, task->bias);
    return;
  }
  const auto run = first.grad.dtype == DType::f64 ? run_pair_as<double> : run_pair_as<float>;
  run(isa, pool, first, second);
}

}  // namespace lmser
