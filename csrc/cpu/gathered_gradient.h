// The weight gradient of few pixels, written as it lies.
#pragma once

#include <algorithm>

#include "under_kernel.h"

namespace lmser {

// Of what lies under the kernel the gradient is a product, in the order in which it is wanted; `bias`: the sums over
// pixels of the small side.
template <class T>
void run_gathered(const InstructionSet& isa, const ThreadPool& pool, const Geometry& geometry,
                  const WeightGradPair& pair, const View& grad, bool accumulate, const View& bias) {
  const Kernels<T>& k = kernels_of<T>(isa);
  Geometry of_small = gathered(geometry);
  of_small.in_c = geometry.out_c;
  Buffer<T> big_memory, small_memory;
  const View big = under_kernel<T>(k, pool, geometry, pair.big, taps_lie_together(grad), big_memory).base,
             small = under_kernel<T>(k, pool, of_small, pair.small, true, small_memory).base;
  const OuterProduct<T> product{static_cast<const T*>(small.data),
                                *pixel_stride(small),
                                static_cast<const T*>(big.data),
                                *pixel_stride(big),
                                big.c,
                                small_pixels(geometry),
                                static_cast<T*>(grad.data),
                                grad.sn,
                                accumulate};
  constexpr std::int64_t kRows = 16;  // a unit; two tiles or more
  const std::int64_t units = (grad.n + kRows - 1) / kRows;
  const double rows = std::max(double(product.pixels), kRowsOfReading);
  const std::int64_t tasks =
      double(grad.n) * double(product.columns) * rows < kSerialWork ? 1 : std::min<std::int64_t>(pool.threads, units);
  run_units<T>(pool, tasks, units, 0,
               [&](std::int64_t u, T*) { k.outer_rows(product, u * kRows, std::min((u + 1) * kRows, grad.n)); });
  for (std::int64_t c = 0; bias && c < bias.c; ++c) {
    double sum = accumulate ? value_at<double>(bias, c * bias.sc) : 0;
    for (std::int64_t i = 0; i < product.pixels; ++i) sum += double(product.small[i * product.small_step + c]);
    store_value<double>(bias, c * bias.sc, sum);
  }
}

}  // namespace lmser
