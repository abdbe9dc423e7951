// Weight gradients of few pixels, written as they lie.
#pragma once

#include <algorithm>
#include <deque>

#include "under_kernel.h"

namespace lmser {

// Of what lies under the kernel a gradient is a product, in the order in which it is wanted.
template <class T>
class GatheredProducts {
 public:
  // Pairs of one gradient, one after the other.
  GatheredProducts(const Kernels<T>& k, const ThreadPool& pool, const GatheredGradient& wanted)
      : rows_(wanted.grad.n), units_((rows_ + kRows - 1) / kRows) {
    const auto dense = [&](const Geometry& geometry, const Source& source, bool taps_together) {
      return under_kernel<T>(k, pool, geometry, source, taps_together, memory_.emplace_back()).base;
    };
    bool accumulate = wanted.accumulate;
    for (const WeightGradPair& pair : wanted.pairs) {
      Geometry g = wanted.geometry;
      g.batch = pair.big.base.n;
      Geometry of_small = gathered(g);
      of_small.in_c = g.out_c;
      const View big = dense(g, pair.big, taps_lie_together(wanted.grad)), small = dense(of_small, pair.small, true);
      products_.push_back({static_cast<const T*>(small.data), *pixel_stride(small), static_cast<const T*>(big.data),
                           *pixel_stride(big), big.c, small_pixels(g), static_cast<T*>(wanted.grad.data),
                           wanted.grad.sn, accumulate});
      accumulate = true;
    }
  }

  std::int64_t units() const { return units_; }
  void unit(const Kernels<T>& k, std::int64_t u) const {
    for (const OuterProduct<T>& p : products_) k.outer_rows(p, rows_ * u / units_, rows_ * (u + 1) / units_);
  }
  double work() const {
    double work = 0;
    for (const OuterProduct<T>& p : products_)
      work += double(rows_) * double(p.columns) * std::max(double(p.pixels), kRowsOfReading);
    return work;
  }
  // The sums over pixels of the small sides.
  void sum_channels(const View& bias, bool accumulate) const {
    for (std::int64_t c = 0; c < bias.c; ++c) {
      double sum = accumulate ? value_at<double>(bias, c * bias.sc) : 0;
      for (const OuterProduct<T>& p : products_)
        for (std::int64_t i = 0; i < p.pixels; ++i) sum += double(p.small[i * p.small_step + c]);
      store_value<double>(bias, c * bias.sc, sum);
    }
  }

 private:
  static constexpr std::int64_t kRows = 16;  // a unit's, two tiles or more
  std::int64_t rows_, units_;
  std::deque<Buffer<T>> memory_;
  std::vector<OuterProduct<T>> products_;
};

// `bias`, of the first alone: the sums over pixels of its small sides.
template <class T>
void run_gathered(const InstructionSet& isa, const ThreadPool& pool, const std::vector<GatheredGradient>& wanted,
                  const View& bias = {}) {
  const Kernels<T>& k = kernels_of<T>(isa);
  std::deque<GatheredProducts<T>> all;
  std::int64_t units = 0;
  double work = 0;
  for (const GatheredGradient& g : wanted) {
    const GatheredProducts<T>& products = all.emplace_back(k, pool, g);
    units += products.units(), work += products.work();
  }
  const std::int64_t tasks = work < kSerialWork ? 1 : std::min<std::int64_t>(pool.threads, units);
  run_units<T>(pool, tasks, units, 0, [&](std::int64_t u, T*) {
    auto of = all.begin();
    while (u >= of->units()) u -= of++->units();
    of->unit(k, u);
  });
  if (bias) all.front().sum_channels(bias, wanted.front().accumulate);
}

}  // namespace lmser
