// A few rows times a matrix that lies as it was given: a fully connected layer of few samples reads its weight once,
// and packing it, or comparing it with what was packed, would read it several times.
#pragma once

#include "kernels.h"
#include "rows.h"

namespace lmser::LMSER_ISA {

template <class T>
struct FewRows {
  const T* slab;
  const std::int64_t* offset;  // of each row in the slab
  std::int64_t depth;
  const T* weight;       // of the first channel
  std::int64_t in, out;  // between its values along the depth, and along the channels
  int channels;
  T* result;  // [row][channel], `result_row` values apart
  std::int64_t result_row;
};

// Channels lie side by side: registers of them, over the depth.
template <class T, int M>
void few_rows_across(const FewRows<T>& f) {
  const T* row[M];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) row[m] = f.slab + f.offset[m];
  constexpr int L = kLanes<T>, V = 2;  // so that sums do not wait for each other
  std::int64_t done = 0;
  for (; done + V * L <= f.channels; done += V * L) {
    Vec<T> sum[M][V]{};
    const T* w = f.weight + done;
    for (std::int64_t k = 0; k < f.depth; ++k, w += f.in) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const Vec<T> b = load<T>(w + v * L);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) sum[m][v] += row[m][k] * b;
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) store<T>(f.result + m * f.result_row + done + v * L, sum[m][v]);
  }
  for_lanes<T>(f.channels - done, [&](std::int64_t from, int lanes) {
    const std::int64_t c = done + from;
    Vec<T> sum[M]{};
    const T* w = f.weight + c;
    for (std::int64_t k = 0; k < f.depth; ++k, w += f.in) {
      const Vec<T> b = load_n<T>(w, lanes);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) sum[m] += row[m][k] * b;
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) store<T>(f.result + m * f.result_row + c, sum[m]);
  });
}

// The depth lies dense: registers of it, for C channels at a time.
template <class T, int M, int C>
void few_rows_along(const FewRows<T>& f, int c) {
  Vec<T> sum[C][M]{};
  const T *row[M], *w[C];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) row[m] = f.slab + f.offset[m];
#pragma GCC unroll 4
  for (int i = 0; i < C; ++i) w[i] = f.weight + (c + i) * f.out;
  for_lanes<T>(f.depth, [&](std::int64_t k, int lanes) {
    Vec<T> a[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) a[m] = load_n<T>(row[m] + k, lanes);
#pragma GCC unroll 4
    for (int i = 0; i < C; ++i) {
      const Vec<T> b = load_n<T>(w[i] + k, lanes);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) sum[i][m] += a[m] * b;
    }
  });
  for (int m = 0; m < M; ++m)
    for (int i = 0; i < C; ++i) {
      T total = 0;
      for (int l = 0; l < kLanes<T>; ++l) total += sum[i][m][l];
      f.result[m * f.result_row + c + i] = total;
    }
}

template <class T, int M>
void few_rows_of(const FewRows<T>& f) {
  if (f.out == 1) return few_rows_across<T, M>(f);
  int c = 0;
  for (; c + 4 <= f.channels; c += 4) few_rows_along<T, M, 4>(f, c);
  for (; c < f.channels; ++c) few_rows_along<T, M, 1>(f, c);
}
template <class T>
void few_rows(const FewRows<T>& f, int rows) {
  static_assert(kFewRows == 4);
  switch (rows) {
    case 1:
      return few_rows_of<T, 1>(f);
    case 2:
      return few_rows_of<T, 2>(f);
    case 3:
      return few_rows_of<T, 3>(f);
    default:
      return few_rows_of<T, 4>(f);
  }
}

}  // namespace lmser::LMSER_ISA
