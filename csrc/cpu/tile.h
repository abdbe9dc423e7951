// The two register tiles everything runs in.
//
// product_tile: pixels x output channels, over kernel rows of contiguous values (see plan.h).
// gradient_tile: taps x output channels, over pixels, for the weight gradient.
#pragma once

#include <utility>

#include "simd.h"

namespace lmser::LMSER_ISA {

template <class T>
struct ProductTile {
  const T* slab;
  const std::int64_t* offset;  // of each pixel of the tile in the slab
  int kernel_rows;
  std::int64_t row_stride;     // in the slab, between kernel rows
  std::int64_t length;         // values under one kernel row
  const T* weight;             // [kernel row][length][vectors * lanes]
  T* result;                   // [pixel][vectors * lanes]
};

template <class T, int M, int V>
void product_tile(const ProductTile<T>& t) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[M][V];
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[m][v] = Vec<T>{};
  const T* pixel[M];
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m) pixel[m] = t.slab + t.offset[m];
  const T* w = t.weight;
  const std::int64_t length = t.length;
  for (int r = 0; r < t.kernel_rows; ++r) {
    for (std::int64_t k = 0; k < length; ++k) {
      Vec<T> b[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) b[v] = load<T>(w + v * L);
      w += V * L;
#pragma GCC unroll 32
      for (int m = 0; m < M; ++m) {
        const T a = pixel[m][k];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[m][v] += a * b[v];
      }
    }
#pragma GCC unroll 32
    for (int m = 0; m < M; ++m) pixel[m] += t.row_stride;
  }
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store<T>(t.result + (m * V + v) * L, sum[m][v]);
}

template <class T>
struct GradientTile {
  const T* big;                 // first of M consecutive values under the kernel row, at the first pixel
  const T* small;               // output channels at the first pixel
  std::int64_t images, rows, cols;
  std::int64_t big_image, big_row, big_col;
  std::int64_t small_image, small_row, small_col;
  T* sum;                       // [M][sum_stride], added to
  std::int64_t sum_stride;
};

template <class T, int M, int V>
void gradient_tile(const GradientTile<T>& t) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[M][V];
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[m][v] = Vec<T>{};
  for (std::int64_t n = 0; n < t.images; ++n)
    for (std::int64_t r = 0; r < t.rows; ++r) {
      const T* a = t.big + n * t.big_image + r * t.big_row;
      const T* g = t.small + n * t.small_image + r * t.small_row;
      for (std::int64_t x = 0; x < t.cols; ++x) {
        Vec<T> b[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) b[v] = load<T>(g + v * L);
#pragma GCC unroll 32
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) sum[m][v] += a[m] * b[v];
        a += t.big_col;
        g += t.small_col;
      }
    }
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      T* p = t.sum + m * t.sum_stride + v * L;
      store<T>(p, load<T>(p) + sum[m][v]);
    }
}

// Tables over every tile size up to the instruction set's largest, so that a remainder runs in a tile of its
// own size rather than in a padded one.
template <class T>
using ProductFn = void (*)(const ProductTile<T>&);
template <class T>
using GradientFn = void (*)(const GradientTile<T>&);

template <class T, int V, int... M>
LMSER_HD ProductFn<T> product_of(int m, std::integer_sequence<int, M...>) {
  static constexpr ProductFn<T> table[] = {product_tile<T, M + 1, V>...};
  return table[m - 1];
}
template <class T, int V, int... M>
LMSER_HD GradientFn<T> gradient_of(int m, std::integer_sequence<int, M...>) {
  static constexpr GradientFn<T> table[] = {gradient_tile<T, M + 1, V>...};
  return table[m - 1];
}

inline constexpr int kTilePixels = LMSER_TILE_PIXELS;    // of product_tile, and of gradient_tile at full width
inline constexpr int kTileVectors = LMSER_TILE_VECTORS;  // at most

template <class T>
ProductFn<T> product_fn(int m, int v) {
  using Seq = std::make_integer_sequence<int, kTilePixels>;
  static_assert(kTileVectors == 2 || kTileVectors == 3);
  if (v == 1) return product_of<T, 1>(m, Seq{});
  if (v == 2) return product_of<T, 2>(m, Seq{});
  if constexpr (kTileVectors == 3) return product_of<T, 3>(m, Seq{});
  return nullptr;
}
template <class T>
GradientFn<T> gradient_fn(int m, int v) {
  using Seq = std::make_integer_sequence<int, kTilePixels>;
  if (v == 1) return gradient_of<T, 1>(m, Seq{});
  if (v == 2) return gradient_of<T, 2>(m, Seq{});
  if constexpr (kTileVectors == 3) return gradient_of<T, 3>(m, Seq{});
  return nullptr;
}

}  // namespace lmser::LMSER_ISA
