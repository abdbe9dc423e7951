// One unit of a weight gradient: sum over pixels of (values under the taps) x (output channels).
#pragma once

#include "conv_unit.h"

namespace lmser::LMSER_ISA {

template <class T>
bool direct_big(const WeightGradCall<T>& call) {
  const Geometry& g = call.plan->geometry;
  const View& v = call.big.base;
  if (!call.big.plain() || v.dtype != kDType<T> || (v.sc != 1 && v.c != 1)) return false;
  if (g.kernel_w > 1 && v.sw != v.c) return false;
  return g.pad_h == 0 && g.pad_w == 0;
}
template <class T>
bool direct_small(const WeightGradCall<T>& call) {
  const View& v = call.small.base;
  return call.small.plain() && v.dtype == kDType<T> && v.sc == 1 && v.c % kLanes<T> == 0;
}

template <class T>
struct WeightGradScratch {
  std::int64_t big = 0, small = 0, rows = 0;
  explicit WeightGradScratch(const WeightGradCall<T>& call) {
    const WeightGradPlan& p = *call.plan;
    if (!direct_big(call)) big = p.big_values;
    if (!direct_small(call)) small = p.small_values;
    rows = RowScratch<T>::values(greater(call.big.base.w * call.big.base.c, call.small.base.w * call.small.base.c));
    for (std::int64_t* x : {&big, &small, &rows}) *x = div_up(*x, 64) * 64;
  }
  std::int64_t values() const { return big + small + rows; }
};
template <class T>
std::int64_t weight_grad_scratch(const WeightGradCall<T>& call) { return WeightGradScratch<T>(call).values(); }

template <class T>
void weight_grad_unit(const WeightGradCall<T>& call, std::int64_t unit, std::int64_t band0, std::int64_t band1, T* scratch) {
  const WeightGradPlan& p = *call.plan;
  const Geometry& g = p.geometry;
  const WeightGradScratch<T> layout(call);
  T* const big_memory = scratch;
  T* const small_memory = scratch + layout.big;
  T* const row_memory = small_memory + layout.small;
  const std::int64_t n0 = unit / p.row_units * p.unit_images, n1 = lesser(n0 + p.unit_images, g.batch);
  const std::int64_t r0 = unit % p.row_units * p.unit_rows, r1 = lesser(r0 + p.unit_rows, g.out_h);

  GradientTile<T> t{};
  t.images = n1 - n0, t.rows = r1 - r0, t.cols = g.out_w;
  const T* big;
  std::int64_t kernel_row;
  if (direct_big(call)) {
    const View& v = call.big.base;
    t.big_image = v.sn, t.big_row = v.sh * g.stride_h, t.big_col = v.sw * g.stride_w, kernel_row = v.sh;
    big = static_cast<const T*>(v.data) + n0 * v.sn + r0 * t.big_row;
  } else {
    const std::int64_t rows = (r1 - r0 - 1) * g.stride_h + g.kernel_h, cols = p.slab_cols;
    kernel_row = cols * g.in_c;
    t.big_image = rows * kernel_row, t.big_row = kernel_row * g.stride_h, t.big_col = g.in_c * g.stride_w;
    const auto row_scratch = RowScratch<T>::at(row_memory, call.big.base.w * call.big.base.c);
    for (std::int64_t n = n0; n < n1; ++n)
      stage<T>(call.big, n, r0 * g.stride_h - g.pad_h, rows, -std::int64_t(g.pad_w), cols, g.in_c,
               big_memory + (n - n0) * t.big_image, row_scratch);
    big = big_memory;
  }
  const T* small;
  if (direct_small(call)) {
    const View& v = call.small.base;
    t.small_image = v.sn, t.small_row = v.sh, t.small_col = v.sw;
    small = static_cast<const T*>(v.data) + n0 * v.sn + r0 * v.sh;
  } else {
    t.small_col = p.padded_out_c, t.small_row = g.out_w * t.small_col, t.small_image = (r1 - r0) * t.small_row;
    const auto row_scratch = RowScratch<T>::at(row_memory, call.small.base.w * call.small.base.c);
    for (std::int64_t n = n0; n < n1; ++n)
      stage<T>(call.small, n, r0, r1 - r0, 0, g.out_w, t.small_col, small_memory + (n - n0) * t.small_image, row_scratch);
    small = small_memory;
  }
  if (t.cols == 1) {  // one pixel a row: let rows be the inner loop
    t.cols = t.rows, t.big_col = t.big_row, t.small_col = t.small_row;
    t.rows = 1;
  }

  const std::int64_t length = g.kernel_w * g.in_c, bands = p.bands_per_row;
  const int vectors = int(p.padded_out_c / kLanes<T>), columns = int(div_up(vectors, kTileVectors));
  t.sum_stride = p.padded_out_c;
  for (std::int64_t band = band0; band < band1; ++band) {
    const std::int64_t i = band / bands, b = band % bands, k = length * b / bands;
    const int m = int(length * (b + 1) / bands - k);
    t.big = big + i * kernel_row + k;
    int v = 0;
    for (int c = 0; c < columns; ++c) {
      const int width = int(div_up(vectors - v, columns - c));
      t.small = small + v * kLanes<T>;
      t.sum = call.sum + (i * length + k) * p.padded_out_c + v * kLanes<T>;
      gradient_fn<T>(m, width)(t);
      v += width;
    }
  }
}

}  // namespace lmser::LMSER_ISA
