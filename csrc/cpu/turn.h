// Matrices turned in registers, where transpose.h takes four by four.
#pragma once

#include "simd.h"
#include "transpose.h"

namespace lmser::LMSER_ISA {

// As many registers as each has lanes: value j of register i becomes value i of register j. Halves change places, then
// quarters in each half, and so on.
template <class T, int Width = kLanes<T> / 2>
LMSER_HD void turn_registers(Vec<T> (&r)[kLanes<T>]) {
  constexpr int L = kLanes<T>;
  LaneIndex<T> low{}, high{};
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    low[i] = i & Width ? L + i - Width : i;
    high[i] = i & Width ? L + i : i + Width;
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if (i & Width) continue;
    const Vec<T> a = r[i], b = r[i + Width];
    r[i] = __builtin_shuffle(a, b, low), r[i + Width] = __builtin_shuffle(a, b, high);
  }
  if constexpr (Width > 1) turn_registers<T, Width / 2>(r);
}

// As `transpose`.
template <class T>
void turn(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t count, T* to,
          std::int64_t to_stride) {
  constexpr std::int64_t L = kLanes<T>;
  const std::int64_t whole_rows = rows / L * L, whole = count / L * L;
  for (std::int64_t v = 0; v < whole_rows; v += L)
    for (std::int64_t c = 0; c < whole; c += L) {
      Vec<T> r[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) r[i] = load<T>(from + (v + i) * from_stride + c);
      turn_registers<T>(r);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) store<T>(to + (c + i) * to_stride + v, r[i]);
    }
  if (whole < count) transpose(from + whole, from_stride, whole_rows, count - whole, to + whole * to_stride, to_stride);
  if (whole_rows < rows)
    transpose(from + whole_rows * from_stride, from_stride, rows - whole_rows, count, to + whole_rows, to_stride);
}

}  // namespace lmser::LMSER_ISA
