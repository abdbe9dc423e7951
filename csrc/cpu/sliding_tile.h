// A convolution of 3 x 3 taps at stride 1 to one register of channels: two rows of neighbouring pixels in one tile. A
// value of the input that is read serves all sums that it lies under, up to six, where a tile of one register would
// have to read as often as it multiplies.
#pragma once

#include "ahead.h"
#include "tile_rows.h"

namespace lmser::LMSER_ISA {

// Pixels of a row of a tile: two rows of them and the weights of two rows of taps fit the registers.
inline constexpr int kSlidingTaps = 3, kSlidingPixels = (LMSER_REGISTERS - 2 * kSlidingTaps - 2) / 2;
inline constexpr bool kSliding = kSlidingPixels >= 8;

template <class T>
struct SlidingTile {
  const T* slab;  // under the first tap of the first pixel
  std::int64_t row, col;
  std::int64_t channels;
  const T* weight;              // [tap row][tap][channel][lanes]
  T* result;                    // [row][pixel][lanes]
  const TileFinish<T>* finish;  // takes the sums instead of `result`
};

template <class T, int P, int Rows>
void sliding_tile(const SlidingTile<T>& t) {
  constexpr int L = kLanes<T>, K = kSlidingTaps;
  Vec<T> sum[Rows * P][1];
#pragma GCC unroll 32
  for (int m = 0; m < Rows * P; ++m) sum[m][0] = Vec<T>{};
  const std::int64_t taps = t.channels * L;  // from one tap to the next
  // Row r of input meets row r - o of taps for output row o, `From` <= o < `Until`.
  const auto input_row = [&]<int From, int Until>(int r) __attribute__((always_inline)) {
    const T* const x = t.slab + r * t.row;
    const T* w = t.weight + (r - From) * K * taps;
    for (std::int64_t k = 0; k < t.channels; ++k, w += L) {
      Vec<T> b[Until - From][K];
#pragma GCC unroll 2
      for (int o = From; o < Until; ++o)
#pragma GCC unroll 3
        for (int i = 0; i < K; ++i) b[o - From][i] = load<T>(w + (i - (o - From) * K) * taps);
#pragma GCC unroll 16
      for (int q = 0; q < P + K - 1; ++q) {
        const Vec<T> a = repeated_once<T>(x + q * t.col + k);
#pragma GCC unroll 2
        for (int o = From; o < Until; ++o)
#pragma GCC unroll 3
          for (int i = 0; i < K; ++i)
            if (q - i >= 0 && q - i < P) sum[o * P + q - i][0] += a * b[o - From][i];
      }
    }
  };
  if constexpr (Rows == 1) {
    for (int r = 0; r < K; ++r) input_row.template operator()<0, 1>(r);
  } else {
    static_assert(Rows == 2);
    input_row.template operator()<0, 1>(0);
    for (int r = 1; r < K; ++r) input_row.template operator()<0, 2>(r);
    input_row.template operator()<1, 2>(K);
  }
  if (t.finish) return finish_tile<T, Rows * P, 1>(sum, *t.finish);
#pragma GCC unroll 32
  for (int m = 0; m < Rows * P; ++m) store<T>(t.result + m * L, sum[m][0]);
}

template <class T>
using SlidingFn = void (*)(const SlidingTile<T>&);
template <class T, int Rows, int... P>
LMSER_HD SlidingFn<T> sliding_of(int pixels, std::integer_sequence<int, P...>) {
  static constexpr SlidingFn<T> table[] = {sliding_tile<T, P + 1, Rows>...};
  return table[pixels - 1];
}
template <class T>
SlidingFn<T> sliding_fn(int pixels, int rows) {
  constexpr std::make_integer_sequence<int, kSlidingPixels> all{};
  return rows == 2 ? sliding_of<T, 2>(pixels, all) : sliding_of<T, 1>(pixels, all);
}

template <class T>
void sliding_unit(const ConvCall<T>& call, std::int64_t index, const UnitRange& unit, const UnitInput<T>& from,
                  const UnitOutput<T>& to, Ahead& ahead) {
  const ConvPlan& p = *call.plan;
  const Geometry& g = p.geometry;
  const Phase& ph = p.phases[0];
  TileRows<T, 2 * kSlidingPixels> results(call, unit, to);
  SlidingTile<T> args{nullptr, from.slab.row, from.slab.col, g.in_c, call.weight, results.result(), nullptr};
  const std::int64_t tiles = div_up(g.out_w, kSlidingPixels);
  for (std::int64_t n = 0; n < unit.n1 - unit.n0; ++n)
    for (std::int64_t h = unit.r0; h < unit.r1; h += 2) {
      const int rows = int(lesser<std::int64_t>(2, unit.r1 - h));
      for (std::int64_t t = 0, w = 0; t < tiles; ++t) {
        const int pixels = int(div_up(g.out_w - w, tiles - t));
        args.slab = from.slab.data + from.slab.at(n, ph.off_h + h - from.first_row, ph.off_w + w - p.slab_w0);
        args.finish = results.place(n, h, w, rows, pixels, rows, pixels);
        ahead.step();
        sliding_fn<T>(pixels, rows)(args);
        results.write();
        w += pixels;
      }
      finish_rows(call, index, unit, to, unit.n0 + n, h, h + rows);
    }
}

}  // namespace lmser::LMSER_ISA
