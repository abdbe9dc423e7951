// The two register tiles everything runs in.
//
// product_tile: pixels x output channels, over kernel rows of contiguous values (see plan.h).
// gradient_tile: taps x output channels, over pixels, for the weight gradient.
#pragma once

#include <utility>

#include "simd.h"

namespace lmser::LMSER_ISA {

// What follows the sums of a tile while they are in registers: out = f(z + add + bias) [* (gate > 0 ? 1 : gate_slope)],
// drive = z, at each pixel's offset, that of `add` its own. Of whole registers of channels, and of the activations that
// `in_registers` names.
template <class T>
struct TileFinish {
  T* out;
  const T* add;
  T* drive;  // may lie where `add` does
  const T* gate;
  T gate_slope;
  const T* bias;
  const std::int64_t *offset, *add_offset;
  Activation activation;
  T slope;
  const T* later = nullptr;  // what the epilogue will read, as `out` lies: it is fetched with it
};
template <class T>
LMSER_HD Vec<T> gated(Vec<T> v, Vec<T> gate, T slope) {
  return v * (gate > T(0) ? splat<T>(T(1)) : splat<T>(slope));
}
constexpr bool in_registers(Activation a) { return a != Activation::sigmoid && a != Activation::tanh; }

template <class T>
struct ProductTile {
  const T* slab;
  const std::int64_t* offset;  // of each pixel of the tile in the slab
  int kernel_rows;
  std::int64_t row_stride;  // in the slab, between kernel rows
  std::int64_t length;      // values under one kernel row
  const T* weight;          // [kernel row][length][vectors * lanes]
  T* result;                // [pixel][vectors * lanes], `result_row` values apart
  std::int64_t result_row = 0;
  const TileFinish<T>* finish = nullptr;  // takes the sums instead of `result`
  bool more = false;                      // sums go on from what `result` holds
  // How far ahead of the products weights are fetched into the first-level cache: where few tiles share a panel of them
  // it comes from farther, and the end of one fetches the next.
  std::int64_t ahead = 0;
  std::int64_t weight_gap = 0;  // values of the weight between two kernel rows that are not multiplied
};

template <Activation A, class T, int M, int V>
LMSER_HD void finish_as(const Vec<T> (&sum)[M][V], const TileFinish<T>& f) {
  constexpr int L = kLanes<T>;
  Vec<T> bias[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) bias[v] = f.bias ? load<T>(f.bias + v * L) : splat<T>(T(-0.0));
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m) {
    const std::int64_t at = f.offset[m], add_at = f.add_offset[m];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Vec<T> h = sum[m][v] + bias[v];
      if (f.add) h = h + load<T>(f.add + add_at + v * L);
      if (f.drive) store<T>(f.drive + at + v * L, sum[m][v]);
      h = act<A, T>(h, f.slope);
      if (f.gate) h = gated<T>(h, load<T>(f.gate + at + v * L), f.gate_slope);
      store<T>(f.out + at + v * L, h);
    }
  }
}
template <class T, int M, int V>
LMSER_HD void finish_tile(const Vec<T> (&sum)[M][V], const TileFinish<T>& f) {
  switch (f.activation) {
    case Activation::relu:
      return finish_as<Activation::relu, T, M, V>(sum, f);
    case Activation::leaky_relu:
      return finish_as<Activation::leaky_relu, T, M, V>(sum, f);
    case Activation::leaky_sigmoid:
      return finish_as<Activation::leaky_sigmoid, T, M, V>(sum, f);
    default:
      return finish_as<Activation::identity, T, M, V>(sum, f);
  }
}

// How many values of depth are multiplied between two visits of a pixel's pointer: narrow tiles hold more pixels
// than there are address registers, so each pointer that is fetched should serve several products. Sums, weights and
// the value that multiplies them have to fit the registers: one sum kept in memory makes every step wait for it.
constexpr int depth_step(int pixels, int vectors) {
  int step = vectors == 1 ? 4 : vectors == 2 ? 2 : 1;
  while (step > 1 && (pixels + step) * vectors + 1 > LMSER_REGISTERS) step /= 2;
  return step;
}

template <class T, int M, int V, int K, bool Fetches>
LMSER_HD void product_step(Vec<T> (&sum)[M][V], const T* const (&pixel)[M], std::int64_t k, const T* w,
                           std::int64_t ahead) {
  constexpr int L = kLanes<T>, kLine = 64 / sizeof(T);
  Vec<T> b[K][V];
  if constexpr (Fetches)
#pragma GCC unroll 8
    for (int i = 0; i < K * V * L; i += kLine) __builtin_prefetch(w + ahead + i, 0, 3);
#pragma GCC unroll 4
  for (int d = 0; d < K; ++d)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) b[d][v] = load<T>(w + (d * V + v) * L);
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int d = 0; d < K; ++d) {
      const T a = pixel[m][k + d];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[m][v] += a * b[d][v];
    }
}

template <class T, int M, int V>
void product_tile(const ProductTile<T>& t) {
  constexpr int L = kLanes<T>, K = depth_step(M, V);
  T* const result = t.result;
  const std::int64_t result_row = t.result_row;
  Vec<T> sum[M][V];
  if (t.more) {
#pragma GCC unroll 32
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[m][v] = load<T>(result + m * result_row + v * L);
  } else {
#pragma GCC unroll 32
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[m][v] = Vec<T>{};
  }
  const T* pixel[M];
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m) pixel[m] = t.slab + t.offset[m];
  const T* w = t.weight;
  const std::int64_t length = t.length, whole = length / K * K, ahead = t.ahead;
  const auto rows = [&]<bool Fetches>() {
    for (int r = 0; r < t.kernel_rows; ++r) {
      std::int64_t k = 0;
      for (; k < whole; k += K, w += K * V * L) product_step<T, M, V, K, Fetches>(sum, pixel, k, w, ahead);
      for (; k < length; ++k, w += V * L) product_step<T, M, V, 1, Fetches>(sum, pixel, k, w, ahead);
#pragma GCC unroll 32
      for (int m = 0; m < M; ++m) pixel[m] += t.row_stride;
      w += t.weight_gap;
    }
  };
  // Where weights are in the first-level cache anyway a narrow tile has no load to spare.
  if (ahead)
    rows.template operator()<true>();
  else
    rows.template operator()<false>();
  if (t.finish) return finish_tile<T, M, V>(sum, *t.finish);
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store<T>(result + m * result_row + v * L, sum[m][v]);
}

// Few output channels (C <= lanes / 2): a register of depth instead of one of channels. Accumulators hold partial
// sums of pixel p, channel c in the order p * C + c; adding neighbours of pairs of registers log2(lanes) times
// leaves their totals, in that order, in one register: the pixels as they lie in memory.
template <class T>
LMSER_HD Vec<T> add_neighbours(Vec<T> a, Vec<T> b) {
  constexpr int L = kLanes<T>;
  LaneIndex<T> even{}, odd{};
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) even[i] = 2 * i, odd[i] = 2 * i + 1;
  return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
}

template <class T, int C>
void dot_tile(const ProductTile<T>& t) {
  constexpr int L = kLanes<T>, M = L / C;
  Vec<T> sum[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) sum[i] = Vec<T>{};
  const T* pixel[M];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) pixel[m] = t.slab + t.offset[m];
  const T* w = t.weight;  // [kernel row][depth in registers][C][lanes], zero behind the depth
  const std::int64_t length = t.length, whole = length / L * L;
  const int rest = int(length - whole);
  for (int r = 0; r < t.kernel_rows; ++r) {
    for (std::int64_t k = 0; k < whole; k += L, w += C * L) {
      Vec<T> b[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) b[c] = load<T>(w + c * L);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const Vec<T> a = load<T>(pixel[m] + k);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sum[m * C + c] += a * b[c];
      }
    }
    if (rest) {
      for (int m = 0; m < M; ++m) {
        const Vec<T> a = load_partial<T>(pixel[m] + whole, rest);
        for (int c = 0; c < C; ++c) sum[m * C + c] += a * load<T>(w + c * L);
      }
      w += C * L;
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) pixel[m] += t.row_stride;
  }
#pragma GCC unroll 16
  for (int width = L / 2; width >= 1; width /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) sum[i] = add_neighbours<T>(sum[2 * i], sum[2 * i + 1]);
  store<T>(t.result, sum[0]);
}

template <class T>
struct GradientTile {
  const T* big;    // first of M consecutive values under the kernel row, at the first pixel
  const T* small;  // output channels at the first pixel
  std::int64_t images, rows, cols;
  std::int64_t big_image, big_row, big_col;
  std::int64_t small_image, small_row, small_col;
  T* sum;  // [M][sum_stride], added to
  std::int64_t sum_stride;
  bool fresh = false;  // written, whatever it held
};

template <class T, int M, int V>
void gradient_tile(const GradientTile<T>& t) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[M][V];
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[m][v] = Vec<T>{};
      // Large sums have left the caches since the last piece of pixels: they come while this one's products run.
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) __builtin_prefetch(t.sum + m * t.sum_stride + v * L, 1);
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
  T* const to = t.sum;
  const std::int64_t stride = t.sum_stride;
  if (t.fresh) {
#pragma GCC unroll 32
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) store<T>(to + m * stride + v * L, sum[m][v]);
    return;
  }
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      T* const p = to + m * stride + v * L;
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

inline constexpr int kTileVectors = LMSER_TILE_VECTORS;  // at most 3
static_assert(kTileVectors == 2 || kTileVectors == 3);
// Most pixels (or taps) of a tile, by its width in registers.
inline constexpr int kTilePixels[4] = {0, LMSER_TILE_PIXELS_1, LMSER_TILE_PIXELS_2, LMSER_TILE_PIXELS_3};

template <class T>
ProductFn<T> product_fn(int m, int v) {
  if (v == 1) return product_of<T, 1>(m, std::make_integer_sequence<int, kTilePixels[1]>{});
  if (v == 2) return product_of<T, 2>(m, std::make_integer_sequence<int, kTilePixels[2]>{});
  if constexpr (kTileVectors == 3) return product_of<T, 3>(m, std::make_integer_sequence<int, kTilePixels[3]>{});
  return nullptr;
}
template <class T>
GradientFn<T> gradient_fn(int m, int v) {
  if (v == 1) return gradient_of<T, 1>(m, std::make_integer_sequence<int, kTilePixels[1]>{});
  if (v == 2) return gradient_of<T, 2>(m, std::make_integer_sequence<int, kTilePixels[2]>{});
  if constexpr (kTileVectors == 3) return gradient_of<T, 3>(m, std::make_integer_sequence<int, kTilePixels[3]>{});
  return nullptr;
}

template <class T, int... C>
LMSER_HD ProductFn<T> dot_of(int c, std::integer_sequence<int, C...>) {
  static constexpr ProductFn<T> table[] = {dot_tile<T, C + 1>...};
  return table[c - 1];
}
template <class T>
ProductFn<T> dot_fn(int channels) {
  return dot_of<T>(channels, std::make_integer_sequence<int, kLanes<T> / 2>{});
}

}  // namespace lmser::LMSER_ISA
