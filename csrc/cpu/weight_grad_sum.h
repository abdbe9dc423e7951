// The sum of a weight gradient: one a task over its pixels, or one whose bands the tasks share. It may take pairs over
// many calls: it is turned into the weight's layout once, at the end.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "all_finite.h"
#include "buffer.h"
#include "engine.h"
#include "layout.h"
#include "narrow.h"
#include "units.h"
#include "write_weight.h"

namespace lmser {

struct WeightGradSum::State {
  virtual ~State() = default;
  virtual void add(std::vector<WeightGradPair> pairs) = 0;
  virtual bool finish(View grad, bool accumulate) = 0;
  virtual void finish_channels(const View& bias, bool accumulate) const = 0;
  virtual bool merge(State& other, const ThreadPool& pool) = 0;
  virtual void finish_by(const ThreadPool& pool) = 0;
  bool channels = false;
};

template <class T>
class GradientSum final : public WeightGradSum::State {
 public:
  GradientSum(const InstructionSet& isa, const ThreadPool& pool, const Geometry& geometry, bool winograd, bool narrow)
      : k_(kernels_of<T>(isa)),
        pool_(pool),
        geometry_(geometry),
        winograd_(winograd),
        tiles_(narrow ? narrow_kernels(isa) : nullptr) {}

  void add(std::vector<WeightGradPair> pairs) override {
    Geometry g = geometry_;
    // Every pair must normalise alike; a second one of another layout keeps the first from being merged.
    if (pairs.size() == 1)
      normalise(g, pairs[0].big, pairs[0].small);
    else
      normalise(g, pairs[0].big, pairs[0].small, pairs[1].big, pairs[1].small);
    const bool turned = geometry_.kernel_h != g.kernel_h;
    const bool swapped = is_product(g) && !tiles_;
    if (swapped) swap_sides(g, pairs);
    const bool first = !sum_;
    if (first)
      plan(g, turned, swapped, work_of(pairs[0]));
    else if (!(g == plan_.geometry) || turned != turned_)
      throw std::logic_error("weight gradients of one sum lie differently");
    accumulate(pairs, first);
  }

  // To this and to `other`, both still empty: unit by unit, where that one's can be these.
  void add_both(const WeightGradPair& pair, GradientSum& other, const WeightGradPair& other_pair) {
    Geometry g = geometry_;
    std::vector<WeightGradPair> pairs{pair};
    normalise(g, pairs[0].big, pairs[0].small);
    if (g == geometry_ && !is_product(g)) {
      plan(g, false, false, work_of(pair));
      if (other.plan_in_units_of(*this, work_of(other_pair))) {
        std::vector<WeightGradPair> others{other_pair};
        if (other.swapped_) swap_sides(g, others);
        return accumulate(pairs, true, &other, &others);
      }
      sum_.reset();
    }
    add({pair});
    other.add({other_pair});
  }

  // False, and nothing is written, where a sum is not finite that was not made of all products.
  bool finish(View grad, bool accumulate) override {
    add_products();
    if (inside_ && !all_finite(pool_, sum_.get(), plan_.sum_values * sums_)) return false;
    if (swapped_) std::swap(grad.n, grad.c), std::swap(grad.sn, grad.sc);
    std::int64_t partial = sums_;  // how many sums are left to add
    if (plan_.winograd.filters()) {
      const Geometry& g = plan_.geometry;
      Buffer<T> taps = allocate<T>(g.kernel_h * g.kernel_w * g.in_c * plan_.padded_out_c);
      std::atomic<bool> finite{true};
      over_tasks([&](std::int64_t t) {
        if (!k_.winograd_grad_finish(plan_, sum_.get(), int(sums_), g.in_c * t / tasks_, g.in_c * (t + 1) / tasks_,
                                     taps.get()))
          finite.store(false);
      });
      if (!finite.load()) return false;
      sum_ = std::move(taps);
      partial = 1;
    }
    if constexpr (sizeof(T) == 4)
      if (plan_.narrow) {
        const std::int64_t pieces = narrow_weight_pieces(plan_);
        over_tasks([&](std::int64_t t) {
          for (std::int64_t i = pieces * t / tasks_; i < pieces * (t + 1) / tasks_; ++i)
            tiles_->write_weight(plan_, sum_.get(), sums_, i, turned_, grad, accumulate);
        });
        return true;
      }
    write_weight(pool_, tasks_, plan_, sum_.get(), partial, turned_, grad, accumulate);
    return true;
  }

  void finish_channels(const View& bias, bool accumulate) const override {
    const std::int64_t count = channel_count();
    const Buffer<double> total = allocate<double>(count);
    for (std::int64_t c = 0; c < count; ++c) total[c] = accumulate ? value_at<double>(bias, c * bias.sc) : 0;
    for (std::int64_t i = 0; i < channel_sums_; ++i)
      for (std::int64_t c = 0; c < count; ++c) total[c] += channels_[i * channel_stride() + c];
    for (std::int64_t c = 0; c < count; ++c) store_value<double>(bias, c * bias.sc, total[c]);
  }

  bool merge(WeightGradSum::State& state, const ThreadPool& pool) override {
    GradientSum& other = static_cast<GradientSum&>(state);
    add_products(), other.add_products();
    const WeightGradPlan &a = plan_, &b = other.plan_;
    if (!sum_ || !other.sum_ || a.narrow != b.narrow || a.winograd.m != b.winograd.m ||
        a.winograd.along_rows != b.winograd.along_rows || a.winograd.taps != b.winograd.taps ||
        a.sum_values != b.sum_values || a.sum_length != b.sum_length || turned_ != other.turned_ ||
        swapped_ != other.swapped_)
      return false;
    inside_ |= other.inside_;
    const auto part = [&](std::int64_t first, std::int64_t last) {
      T* const to = sum_.get();
      for (std::int64_t t = 0; t < other.sums_; ++t) {
        const T* const from = other.sum_.get() + t * a.sum_values;
        for (std::int64_t v = first; v < last; ++v) to[v] += from[v];
      }
    };
    if (a.sum_values < 1 << 14)
      part(0, a.sum_values);
    else
      pool.run(pool.threads,
               [&](std::int64_t t) { part(a.sum_values * t / pool.threads, a.sum_values * (t + 1) / pool.threads); });
    return true;
  }

  void finish_by(const ThreadPool& pool) override {
    pool_ = pool;
    tasks_ = std::max(1, pool.threads);
  }

 private:
  // Of a product of two matrices: its sum lies as the weight does, and nothing has to be turned at the end.
  static void swap_sides(Geometry& g, std::vector<WeightGradPair>& pairs) {
    for (WeightGradPair& pair : pairs) std::swap(pair.big, pair.small);
    std::swap(g.in_c, g.out_c);
  }
  static double work_of(const WeightGradPair& pair) {
    return work_of_values(pair.big.base) + work_of_values(pair.small.base);
  }

  void plan(const Geometry& g, bool turned, bool swapped, double work_of_reading) {
    turned_ = turned, swapped_ = swapped;
    plan_ = planned(g);
    prepare(work_of_reading);
  }
  WeightGradPlan planned(const Geometry& g) const {
    if (tiles_) return plan_narrow_weight_grad(g, pool_.threads);
    const Filtering how = winograd_ ? Filtering::where_faster : Filtering::never;
    return plan_weight_grad(g, k_.tile, sizeof(T), pool_.threads, how);
  }
  // False, and nothing is planned, where the units of `first` cannot be had.
  bool plan_in_units_of(const GradientSum& first, double work_of_reading) {
    Geometry g = geometry_;
    swapped_ = is_product(g);
    if (swapped_) std::swap(g.in_c, g.out_c);
    WeightGradPlan found = planned(g);
    if (!shares_units(found, first.plan_)) return false;
    plan_ = in_units_of(std::move(found), first.plan_);
    prepare(work_of_reading);
    if (tasks_ == first.tasks_) return true;
    sum_.reset();
    return false;
  }
  // Memory and tasks for the plan.
  void prepare(double work_of_reading) {
    const Geometry& g = plan_.geometry;
    inside_ = plan_.inside;
    bands_ = plan_.bands_per_row * plan_.sum_rows;
    tasks_ =
        std::max<std::int64_t>(1, std::min<std::int64_t>(pool_.threads, plan_.split_pixels ? plan_.units : bands_));
    const double rows = double(g.batch) * double(g.out_h) * double(g.out_w);
    if (double(plan_.sum_values) * std::max(rows, kRowsOfReading) + work_of_reading < kSerialWork) tasks_ = 1;
    sums_ = plan_.split_pixels ? tasks_ : 1;
    sum_ = allocate<T>(plan_.sum_values * sums_);
    if (channels) {
      channel_sums_ = plan_.round_units ? plan_.units : tasks_;
      channels_ = allocate<double>(channel_sums_ * channel_stride());
      std::fill_n(channels_.get(), channel_sums_ * channel_stride(), 0.0);
    }
  }

  // Those of the small side, before the sides were exchanged.
  std::int64_t channel_count() const { return swapped_ ? plan_.geometry.in_c : plan_.geometry.out_c; }
  std::int64_t channel_stride() const { return (channel_count() + 7) / 8 * 8; }  // each in lines of its own
  WeightGradCall<T> with_channels(WeightGradCall<T> call, std::int64_t sum) const {
    if (channels) call.channels = channels_.get() + sum * channel_stride(), call.channels_of_big = swapped_;
    return call;
  }

  TileOrder round(std::int64_t first) const {
    return {plan_.winograd, plan_.tile_row(first), plan_.tile_row(std::min(first + plan_.round_units, plan_.units))};
  }

  // Points of a pair, a round of its units at a time, and their products; those of a pair that is no more than a round
  // wait for the next pairs.
  void accumulate_rounds(const WeightGradCall<T>& call, std::int64_t scratch) {
    if (!points_) {
      std::int64_t most = 0;
      for (std::int64_t u = 0; u < plan_.units; u += plan_.round_units) most = std::max(most, round(u).count());
      points_ = allocate<T>(plan_.all_points(most) * plan_.round_pairs);
    }
    for (std::int64_t first = 0; first < plan_.units; first += plan_.round_units) {
      const TileOrder order = round(first);
      const std::int64_t units = std::min(plan_.round_units, plan_.units - first);
      T* const points = points_.get() + waiting_ * plan_.all_points(order.count());
      run_units<T>(pool_, std::min(tasks_, units), units, scratch, [&](std::int64_t u, T* memory) {
        k_.grad_points(with_channels(call, first + u), first + u, order, points, memory);
      });
      ++waiting_;
      if (units < plan_.units || waiting_ == plan_.round_pairs) add_products(first);
    }
  }

  // Of the pairs that wait, whose round begins at unit `first`.
  void add_products(std::int64_t first = 0) {
    if (!waiting_) return;
    const TileOrder order = round(first);
    const WeightGradCall<T> call{&plan_, {}, {}, sum_.get(), fresh_};
    const std::int64_t pieces = tasks_ == 1 ? 1 : std::min(bands_, 4 * tasks_);
    run_units<T>(pool_, tasks_, pieces, 0, [&](std::int64_t i, T*) {
      k_.grad_products(call, waiting_, bands_ * i / pieces, bands_ * (i + 1) / pieces, order, points_.get());
    });
    waiting_ = 0, fresh_ = false;
    if (first + plan_.round_units >= plan_.units) points_.reset();  // another sum's turn to use the memory
  }

  template <class F>
  void over_tasks(F&& f) {
    if (tasks_ == 1)
      f(0);
    else
      pool_.run(tasks_, f);
  }

  std::vector<WeightGradCall<T>> calls_of(const std::vector<WeightGradPair>& pairs) const {
    std::vector<WeightGradCall<T>> calls;
    for (const WeightGradPair& pair : pairs) calls.push_back({&plan_, pair.big, pair.small, nullptr});
    return calls;
  }
  std::int64_t scratch_of(const std::vector<WeightGradCall<T>>& calls) const {
    std::int64_t scratch = 1;
    for (const WeightGradCall<T>& call : calls) scratch = std::max(scratch, scratch_of(call));
    return scratch;
  }

  std::int64_t scratch_of(const WeightGradCall<T>& call) const {
    if constexpr (sizeof(T) == 4)
      if (plan_.narrow) return tiles_->weight_grad_scratch(call);
    return k_.weight_grad_scratch(call);
  }
  void add_unit(const WeightGradCall<T>& call, std::int64_t unit, std::int64_t band0, std::int64_t band1,
                T* memory) const {
    if constexpr (sizeof(T) == 4)
      if (plan_.narrow) return tiles_->weight_grad_unit(call, unit, band0, band1, memory);
    k_.weight_grad_unit(call, unit, band0, band1, memory);
  }

  // What a task sums: units [unit0, unit1) of bands [band0, band1), to `own`.
  struct Share {
    std::int64_t task, band0, band1, unit0, unit1;
    T* own;
    bool fresh;
  };
  Share share_of(std::int64_t task, bool first) const {
    const bool split = plan_.split_pixels;
    Share s{task,
            split ? 0 : bands_ * task / tasks_,
            split ? bands_ : bands_ * (task + 1) / tasks_,
            split ? plan_.units * task / tasks_ : 0,
            split ? plan_.units * (task + 1) / tasks_ : plan_.units,
            sum_.get() + (split ? task * plan_.sum_values : 0),
            first};
    // Bands are consecutive rows of the sum.
    const std::int64_t length = plan_.sum_length;
    const auto row = [&](std::int64_t band) {
      return band / plan_.bands_per_row * length + length * (band % plan_.bands_per_row) / plan_.bands_per_row;
    };
    if (first && s.unit0 == s.unit1)
      std::memset(static_cast<void*>(s.own + row(s.band0) * plan_.padded_out_c), 0,
                  sizeof(T) * (row(s.band1) - row(s.band0)) * plan_.padded_out_c);
    return s;
  }
  void sum_unit(Share& s, WeightGradCall<T> call, std::int64_t unit, T* memory) const {
    call.sum = s.own, call.fresh = s.fresh;
    add_unit(with_channels(call, s.task), unit, s.band0, s.band1, memory);
    s.fresh = false;
  }

  // `other`, in the same units, takes one of its own after each of these.
  void accumulate(const std::vector<WeightGradPair>& pairs, bool first, GradientSum* other = nullptr,
                  const std::vector<WeightGradPair>* other_pairs = nullptr) {
    const std::vector<WeightGradCall<T>> calls = calls_of(pairs);
    std::int64_t scratch = scratch_of(calls);
    if (plan_.round_units) {
      for (const WeightGradCall<T>& call : calls) accumulate_rounds(call, scratch);
      return;
    }
    std::vector<WeightGradCall<T>> others;
    if (other) others = other->calls_of(*other_pairs), scratch = std::max(scratch, other->scratch_of(others));
    over_tasks([&](std::int64_t task) {
      const Buffer<T> memory = allocate<T>(scratch);
      Share own = share_of(task, first), beside = other ? other->share_of(task, first) : Share{};
      for (const WeightGradCall<T>& call : calls)
        for (std::int64_t u = own.unit0; u < own.unit1; ++u) {
          sum_unit(own, call, u, memory.get());
          for (const WeightGradCall<T>& next : others) other->sum_unit(beside, next, u, memory.get());
        }
    });
  }

  const Kernels<T>& k_;
  ThreadPool pool_;
  Geometry geometry_;
  bool winograd_;
  const NarrowKernels* tiles_;  // where both sides are bfloat16, and there are any
  bool turned_ = false, swapped_ = false, inside_ = false;
  WeightGradPlan plan_;
  std::int64_t bands_ = 0, tasks_ = 1, sums_ = 1;
  Buffer<T> sum_;
  // Sums of channels: of every task, or, of rounds, whose units are whoever's comes first, of every unit.
  Buffer<double> channels_;
  std::int64_t channel_sums_ = 0;
  // Of rounds: the points of pairs that wait for their products, how many there are, and whether the sum holds nothing.
  Buffer<T> points_;
  std::int64_t waiting_ = 0;
  bool fresh_ = true;
};

}  // namespace lmser
