// A transposed convolution of stride 2 with 3 x 3 taps and a padding of 1, to one register of channels: its four phases
// in one tile. A value of the input that is read serves up to six sums instead of one, where a tile of one register
// would have to read as often as it multiplies.
//
// Input pixels (i, j) to (i + 1, j + 1) are under output pixels (2 i, 2 j) to (2 i + 1, 2 j + 1): an even row or column
// meets the first of the two by tap 1, an odd one the first by tap 2 and the second by tap 0. Nothing beyond the input
// is read.
#pragma once

#include "ahead.h"
#include "pack_unit.h"
#include "tile_rows.h"

namespace lmser::LMSER_ISA {

// Columns of input of a tile, whose four sums each and six weights fit the registers.
inline constexpr int kFourPhasesColumns = (LMSER_REGISTERS - 8) / 4;
inline constexpr bool kFourPhases = kFourPhasesColumns >= 4;
// Weights of an input channel that meet the first row of input, and the second: row and column of the kernel.
inline constexpr int kTapsOfRow[2] = {6, 3};
inline constexpr int kFourPhasesTaps[9][2] = {{1, 1}, {1, 2}, {2, 1}, {2, 2}, {1, 0}, {2, 0}, {0, 1}, {0, 2}, {0, 0}};

template <class T>
struct FourPhasesTile {
  const T* rows[2];  // the first pixel's channels in two rows of input, of which the second may be none
  std::int64_t col;  // from one pixel to the next
  std::int64_t channels;
  const T* weight;              // [row of input][channel][taps of the row][lanes]
  T* result;                    // [row][column][lanes], of twice as many columns as there are of input
  const TileFinish<T>* finish;  // takes the sums instead of `result`
};

// `Last`: there is no column of input after those of the tile.
template <class T, int P, bool Last>
void four_phases_tile(const FourPhasesTile<T>& t) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[4 * P][1];
#pragma GCC unroll 32
  for (int m = 0; m < 4 * P; ++m) sum[m][0] = Vec<T>{};
  const T* w = t.weight;
  const auto row = [&]<int Row>() __attribute__((always_inline)) {
    constexpr int kTaps = kTapsOfRow[Row];
    const T* const x = t.rows[Row];
    const std::int64_t col = t.col;
    for (std::int64_t k = 0; k < t.channels; ++k, w += kTaps * L) {
      Vec<T> b[kTaps];
#pragma GCC unroll 6
      for (int i = 0; i < kTaps; ++i) b[i] = load<T>(w + i * L);
#pragma GCC unroll 8
      for (int q = 0; q < P + !Last; ++q) {
        const Vec<T> a = repeated_once<T>(x + q * col + k);
        if (q < P) {
          if constexpr (Row == 0) sum[2 * q][0] += a * b[0], sum[2 * q + 1][0] += a * b[1];
          sum[2 * P + 2 * q][0] += a * b[Row == 0 ? 2 : 0], sum[2 * P + 2 * q + 1][0] += a * b[Row == 0 ? 3 : 1];
        }
        if (q > 0) {
          if constexpr (Row == 0) sum[2 * q - 1][0] += a * b[4];
          sum[2 * P + 2 * q - 1][0] += a * b[Row == 0 ? 5 : 2];
        }
      }
    }
  };
  row.template operator()<0>();
  if (t.rows[1]) row.template operator()<1>();
  if (t.finish) return finish_tile<T, 4 * P, 1>(sum, *t.finish);
#pragma GCC unroll 32
  for (int m = 0; m < 4 * P; ++m) store<T>(t.result + m * L, sum[m][0]);
}

template <class T>
using FourPhasesFn = void (*)(const FourPhasesTile<T>&);
template <class T, bool Last, int... P>
LMSER_HD FourPhasesFn<T> four_phases_of(int columns, std::integer_sequence<int, P...>) {
  static constexpr FourPhasesFn<T> table[] = {four_phases_tile<T, P + 1, Last>...};
  return table[columns - 1];
}
template <class T>
FourPhasesFn<T> four_phases_fn(int columns, bool last) {
  constexpr std::make_integer_sequence<int, kFourPhasesColumns> all{};
  return last ? four_phases_of<T, true>(columns, all) : four_phases_of<T, false>(columns, all);
}

// Input channels [c0, c1).
template <class T>
void pack_four_phases(const ConvPlan& p, const WeightLayout<T>& w, std::int64_t c0, std::int64_t c1, T* packed) {
  constexpr int L = kLanes<T>, kTaps = 9, kSome = 8;  // channels at a time
  alignas(64) T taps[kSome * kTaps * L];
  const std::int64_t channels = p.geometry.in_c;
  for (std::int64_t from = c0; from < c1; from += kSome) {
    const std::int64_t count = lesser<std::int64_t>(kSome, c1 - from);
    gather_taps<T>(p.geometry, w, 0, from, count, taps);
    for (std::int64_t c = 0; c < count; ++c)
      for (int i = 0; i < kTaps; ++i) {
        const int row = i >= kTapsOfRow[0], first = row * kTapsOfRow[0];
        T* const to = packed + (channels * first + (from + c) * kTapsOfRow[row] + i - first) * L;
        store<T>(to, load<T>(taps + (c * kTaps + kFourPhasesTaps[i][0] * 3 + kFourPhasesTaps[i][1]) * L));
      }
  }
}

template <class T>
void four_phases_unit(const ConvCall<T>& call, std::int64_t index, const UnitRange& unit, const UnitInput<T>& from,
                      const UnitOutput<T>& to, Ahead& ahead) {
  const ConvPlan& p = *call.plan;
  const Geometry& g = p.geometry;
  TileRows<T, 4 * kFourPhasesColumns> results(call, unit, to);
  FourPhasesTile<T> args{{}, from.slab.col, g.in_c, call.weight, results.result(), nullptr};
  const std::int64_t tiles = div_up(g.in_w, kFourPhasesColumns);
  for (std::int64_t n = 0; n < unit.n1 - unit.n0; ++n)
    for (std::int64_t i = unit.r0 / 2; i < div_up(unit.r1, 2); ++i) {
      const int rows = int(lesser<std::int64_t>(2, unit.r1 - 2 * i));
      for (std::int64_t t = 0, j = 0; t < tiles; ++t) {
        const int columns = int(div_up(g.in_w - j, tiles - t)),
                  pixels = int(lesser<std::int64_t>(2 * columns, g.out_w - 2 * j));
        args.rows[0] = from.slab.data + from.slab.at(n, i - from.first_row, j - p.slab_w0);
        args.rows[1] = i + 1 < g.in_h ? args.rows[0] + from.slab.row : nullptr;
        args.finish = results.place(n, 2 * i, 2 * j, rows, pixels, 2, 2 * columns);
        ahead.step();
        four_phases_fn<T>(columns, j + columns == g.in_w)(args);
        results.write();
        j += columns;
      }
      finish_rows(call, index, unit, to, unit.n0 + n, 2 * i, 2 * i + rows);
    }
}

}  // namespace lmser::LMSER_ISA
