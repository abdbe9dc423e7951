// Few output channels: registers hold neighbouring pixels of one channel instead of channels of one pixel. The input
// lies as planes, [row][channel][column], so that the pixels under a tap are one read, of any alignment.
#pragma once

#include "tile.h"

namespace lmser::LMSER_ISA {

template <class T>
struct PlanarTile {
  const T* slab;              // channel 0 of row 0, at the column under the first tap of the first pixel
  std::int64_t row, channel;  // strides
  std::int64_t slot, slots;   // the row under the first kernel row; after the last one comes row 0
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
  std::int64_t slot = t.slot;
  // Row r of input meets kernel row r - o for output row o, `From` <= o < `Until`.
  const auto input_row = [&]<int From, int Until>(int r) __attribute__((always_inline)) {
    const T* plane = t.slab + slot * t.row;
    if (++slot == t.slots) slot = 0;
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

// Planes of one row, as planar_tile leaves them, to pixels side by side: whole registers, up to the one that holds the
// last of `pixels`.
template <class T, int C>
void weave(const T* planes, std::int64_t plane, std::int64_t pixels, T* to) {
  constexpr int L = kLanes<T>;
  for (std::int64_t x = 0; x < pixels; x += L, to += C * L) {
    Vec<T> of_plane[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) of_plane[c] = load<T>(planes + c * plane + x);
#pragma GCC unroll 8
    for (int r = 0; r < C; ++r) {
      Vec<T> v = of_plane[0];
#pragma GCC unroll 8
      for (int c = C > 1; c < C; ++c) {
        LaneIndex<T> from{};  // the second register's is plane c, and at first all of the first plane's are taken
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) {
          const int value = r * L + i, channel = value % C, pixel = value / C;
          from[i] = channel == c ? L + pixel : c == 1 && channel == 0 ? pixel : i;
        }
        v = __builtin_shuffle(v, of_plane[c], from);
      }
      store<T>(to + r * L, v);
    }
  }
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

template <class T>
using WeaveFn = void (*)(const T*, std::int64_t, std::int64_t, T*);
template <class T, int... C>
LMSER_HD WeaveFn<T> weave_of(int channels, std::integer_sequence<int, C...>) {
  static constexpr WeaveFn<T> table[] = {weave<T, C + 1>...};
  return table[channels - 1];
}
template <class T>
WeaveFn<T> weave_fn(int channels) {
  return weave_of<T>(channels, std::make_integer_sequence<int, kLanes<T> / 2>{});
}

}  // namespace lmser::LMSER_ISA
