// Few output channels: registers hold neighbouring pixels of one channel instead of channels of one pixel. The staged
// input lies as [row][channel][column], so that the pixels under a tap are one unaligned read.
#pragma once

#include "rows.h"
#include "tile.h"
#include "transpose.h"

namespace lmser::LMSER_ISA {

template <class T>
struct PlanarTile {
  const T* slab;              // channel 0 of the first kernel row, at the column under the first tap of the first pixel
  std::int64_t row, channel;  // strides
  int kernel_rows, taps;
  std::int64_t in_c;
  const T* weight;  // [kernel row][input channel][tap][output channel]
  T* result;        // [row][output channel][pixel], `result_row` values apart
  std::int64_t result_row;
};

// Registers of pixels of each of `rows` rows whose sums leave room for the weights of a tap, a value of the input and
// one more.
template <class T>
constexpr int planar_width(int channels, int rows) {
  const int sums = channels * rows, most = (LMSER_REGISTERS - sums - 2) / sums;
  return most < 8 ? most : 8;
}
// Rows of output that are computed together where their rows of input overlap: what is read serves both.
template <class T>
constexpr int planar_rows(int channels) {
  return planar_width<T>(channels, 2) >= 2 ? 2 : 1;
}

template <class T, int C, int R, int P>
void planar_tile(const PlanarTile<T>& t) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[R][C][P];
#pragma GCC unroll 2
  for (int o = 0; o < R; ++o)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sum[o][c][p] = Vec<T>{};
  const std::int64_t weight_row = t.in_c * t.taps * C;
  // Row r of input meets kernel row r - o for output row o, `From` <= o < `Until`.
  const auto input_row = [&]<int From, int Until>(int r) __attribute__((always_inline)) {
    const T* plane = t.slab + r * t.row;
    const T* w = t.weight + (r - From) * weight_row;
    const auto tap = [&](const T* x) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        const Vec<T> a = loaded_once<T>(x + p * L);
#pragma GCC unroll 2
        for (int o = From; o < Until; ++o)
#pragma GCC unroll 8
          for (int c = 0; c < C; ++c) sum[o][c][p] += a * w[c - (o - From) * weight_row];
      }
      w += C;
    };
    if (t.taps == 3) {  // no branch to be foretold for every few products
      for (std::int64_t k = 0; k < t.in_c; ++k, plane += t.channel) tap(plane), tap(plane + 1), tap(plane + 2);
    } else {
      for (std::int64_t k = 0; k < t.in_c; ++k, plane += t.channel)
        for (int i = 0; i < t.taps; ++i) tap(plane + i);
    }
  };
  if constexpr (R == 1) {
    for (int r = 0; r < t.kernel_rows; ++r) input_row.template operator()<0, 1>(r);
  } else {
    static_assert(R == 2);
    if (t.kernel_rows > 0) input_row.template operator()<0, 1>(0);
    for (int r = 1; r < t.kernel_rows; ++r) input_row.template operator()<0, 2>(r);
    if (t.kernel_rows > 0) input_row.template operator()<1, 2>(t.kernel_rows);
  }
#pragma GCC unroll 2
  for (int o = 0; o < R; ++o)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) store<T>(t.result + (o * C + c) * t.result_row + p * L, sum[o][c][p]);
}

template <class T>
using PlanarFn = void (*)(const PlanarTile<T>&);
template <class T, int C, int R, int... P>
LMSER_HD PlanarFn<T> planar_of(int width, std::integer_sequence<int, P...>) {
  static constexpr PlanarFn<T> table[] = {planar_tile<T, C, R, P + 1>...};
  return table[width - 1];
}
template <class T, int C>
LMSER_HD PlanarFn<T> planar_of_rows(int rows, int width) {
  if constexpr (planar_rows<T>(C) == 2)
    if (rows == 2) return planar_of<T, C, 2>(width, std::make_integer_sequence<int, planar_width<T>(C, 2)>{});
  return planar_of<T, C, 1>(width, std::make_integer_sequence<int, planar_width<T>(C, 1)>{});
}
template <class T, int... C>
LMSER_HD PlanarFn<T> planar_of_channels(int channels, int rows, int width, std::integer_sequence<int, C...>) {
  PlanarFn<T> found = nullptr;
  ((channels == C + 1 ? void(found = planar_of_rows<T, C + 1>(rows, width)) : void()), ...);
  return found;
}
// `rows` at most planar_rows(channels), `width` at most planar_width(channels, rows).
template <class T>
PlanarFn<T> planar_fn(int channels, int rows, int width) {
  return planar_of_channels<T>(channels, rows, width, std::make_integer_sequence<int, kLanes<T> / 2>{});
}

// Rows [row0, row0 + rows) x columns [col0, col0 + cols) of image n, zero outside the source, as planes `pitch` values
// wide. `line` holds one row before it is turned.
template <class T>
void stage_planar(const Source& s, std::int64_t n, std::int64_t row0, std::int64_t rows, std::int64_t col0,
                  std::int64_t cols, std::int64_t pitch, T* slab, T* line, const RowScratch<T>& scratch) {
  const View& v = s.base;
  constexpr int L = kLanes<T>;
  const std::int64_t c = s.channels();
  const bool dense = s.plain() && v.dtype == kDType<T> && (v.sw == 1 || v.sc == 1);
  const std::int64_t before = col0 < 0 ? -col0 : 0, inside = (col0 + cols < v.w ? col0 + cols : v.w) - col0 - before;
  for (std::int64_t r = 0; r < rows; ++r, slab += c * pitch) {
    const std::int64_t row = row0 + r;
    if (dense && row >= 0 && row < v.h && inside > 0) {
      const T* const from = static_cast<const T*>(v.data) + n * v.sn + row * v.sh + (col0 + before) * v.sw;
      // Whole registers of zeros around the values, which come after them.
      const std::int64_t end = before + inside;
      for (std::int64_t k = 0; k < c; ++k) {
        T* const to = slab + k * pitch;
        for (std::int64_t x = 0; x < before; x += L) store<T>(to + x, Vec<T>{});
        for (std::int64_t x = end / L * L; x < pitch; x += L) store<T>(to + x, Vec<T>{});
        if (v.sw == 1) std::memcpy(to + before, from + k * v.sc, sizeof(T) * inside);
      }
      if (v.sw != 1) transpose(from, v.sw, inside, c, slab + before, pitch);
      continue;
    }
    stage<T>(s, n, row, 1, col0, cols, c, line, scratch);
    transpose(line, c, cols, c, slab, pitch);
    for (std::int64_t k = 0; k < c; ++k) std::memset(slab + k * pitch + cols, 0, sizeof(T) * (pitch - cols));
  }
}

}  // namespace lmser::LMSER_ISA
