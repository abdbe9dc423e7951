// Rows times a matrix that lies as it was given: where there are few rows, packing it, or comparing it with what was
// packed before, would take as long as the product.
#pragma once

#include "kernels.h"
#include "rows.h"
#include "tile.h"

namespace lmser::LMSER_ISA {

// Channels of a result side by side, `row` values from one row to the next; registers may be written whole.
template <class T>
struct Results {
  T* data;
  std::int64_t row;
};
template <class T>
struct FewRows {
  const T* from;
  const std::int64_t* offset;  // of each row
  int rows;
  std::int64_t depth;
};

// Registers of the matrix's rows, where its depth is dense: a tile of sums, each of them a register of partial ones.
inline constexpr int kAlongRows = LMSER_REGISTERS >= 32 ? 6 : 3, kAlongChannels = 4;

template <class T, int M, int C>
void along_tile(const T* const* row, const T* weight, std::int64_t out, std::int64_t depth, Results<T> to) {
  constexpr int L = kLanes<T>, kGroups = (M * C + L - 1) / L;
  Vec<T> sum[M * C];
#pragma GCC unroll 32
  for (int i = 0; i < M * C; ++i) sum[i] = Vec<T>{};
  const T *a[M], *w[C];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) a[m] = row[m];
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) w[c] = weight + c * out;
  std::int64_t k = 0;
  for (; k + L <= depth; k += L) {
    Vec<T> b[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) b[c] = load<T>(w[c] + k);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Vec<T> value = load<T>(a[m] + k);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[m * C + c] += value * b[c];
    }
  }
  if (const int rest = int(depth - k)) {
    Vec<T> b[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) b[c] = load_partial<T>(w[c] + k, rest);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Vec<T> value = load_partial<T>(a[m] + k, rest);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[m * C + c] += value * b[c];
    }
  }
  // A register's worth of sums at a time: neighbours are added until one register holds their totals in their order.
  alignas(64) T total[kGroups * L];
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) {
    Vec<T> part[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) part[i] = g * L + i < M * C ? sum[g * L + i] : Vec<T>{};
#pragma GCC unroll 4
    for (int width = L / 2; width >= 1; width /= 2)
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) part[i] = add_neighbours<T>(part[2 * i], part[2 * i + 1]);
    store<T>(total + g * L, part[0]);
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) std::memcpy(to.data + m * to.row, total + m * C, sizeof(T) * C);
}

template <class T, int C, int... M>
auto along_of(int m, std::integer_sequence<int, M...>) {
  using Fn = void (*)(const T* const*, const T*, std::int64_t, std::int64_t, Results<T>);
  static constexpr Fn table[] = {along_tile<T, M + 1, C>...};
  return table[m - 1];
}
template <class T>
void rows_along(const FewRows<T>& f, const T* weight, std::int64_t out, int channels, Results<T> to) {
  constexpr auto kRows = std::make_integer_sequence<int, kAlongRows>{};
  const int tiles = (f.rows + kAlongRows - 1) / kAlongRows;
  for (int c = 0; c < channels;) {
    const bool whole = c + kAlongChannels <= channels;
    for (int i = 0, m = 0; i < tiles; ++i) {
      const int next = f.rows * (i + 1) / tiles;
      const T* row[kAlongRows];
      for (int r = m; r < next; ++r) row[r - m] = f.from + f.offset[r];
      const Results<T> part{to.data + m * to.row + c, to.row};
      const auto tile = whole ? along_of<T, kAlongChannels>(next - m, kRows) : along_of<T, 1>(next - m, kRows);
      tile(row, weight + c * out, out, f.depth, part);
      m = next;
    }
    c += whole ? kAlongChannels : 1;
  }
}

// Up to kDirectRows rows: registers of channels, which are dense, over the depth.
template <class T, int M>
void across_directly(const FewRows<T>& f, const T* weight, std::int64_t in, int channels, Results<T> to) {
  constexpr int L = kLanes<T>, V = 2;  // so that sums do not wait for each other
  const T* row[M];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) row[m] = f.from + f.offset[m];
  int done = 0;
  for (; done + V * L <= channels; done += V * L) {
    Vec<T> sum[M][V]{};
    const T* w = weight + done;
    for (std::int64_t k = 0; k < f.depth; ++k, w += in) {
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
      for (int v = 0; v < V; ++v) store<T>(to.data + m * to.row + done + v * L, sum[m][v]);
  }
  for_lanes<T>(channels - done, [&](std::int64_t from, int lanes) {
    const std::int64_t c = done + from;
    Vec<T> sum[M]{};
    const T* w = weight + c;
    for (std::int64_t k = 0; k < f.depth; ++k, w += in) {
      const Vec<T> b = load_n<T>(w, lanes);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) sum[m] += row[m][k] * b;
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) store<T>(to.data + m * to.row + c, sum[m]);
  });
}
template <class T, int... M>
auto across_of(int m, std::integer_sequence<int, M...>) {
  using Fn = void (*)(const FewRows<T>&, const T*, std::int64_t, int, Results<T>);
  static constexpr Fn table[] = {across_directly<T, M + 1>...};
  return table[m - 1];
}

// More rows share a panel of the channels' registers, copied to `panel` as it is read: the tiles find it dense and in
// the nearer caches.
template <class T>
void rows_across(const FewRows<T>& f, const T* weight, std::int64_t in, int channels, T* panel, Results<T> to) {
  constexpr int L = kLanes<T>;
  if (f.rows <= kDirectRows)
    return across_of<T>(f.rows, std::make_integer_sequence<int, kDirectRows>{})(f, weight, in, channels, to);
  const int vectors = (channels + L - 1) / L, width = vectors * L, last = channels - (vectors - 1) * L;
  const int most = kTilePixels[vectors], tiles = (f.rows + most - 1) / most;
  // As much of the depth at a time as stays in the first-level cache; sums go on from where they were.
  constexpr std::int64_t kPanel = 24 << 10;
  const std::int64_t bytes = f.depth * width * std::int64_t(sizeof(T)),
                     pieces = bytes > kPanel ? (bytes + kPanel - 1) / kPanel : 1;
  for (std::int64_t piece = 0; piece < pieces; ++piece) {
    const std::int64_t k0 = f.depth * piece / pieces, depth = f.depth * (piece + 1) / pieces - k0;
    for (std::int64_t k = 0; k < depth; ++k) {
      const T* const w = weight + (k0 + k) * in;
      T* const line = panel + k * width;
      for (int v = 0; v + 1 < vectors; ++v) store<T>(line + v * L, load<T>(w + v * L));
      store<T>(line + (vectors - 1) * L, load_n<T>(w + (vectors - 1) * L, last));
    }
    for (int i = 0, m = 0; i < tiles; ++i) {
      const int next = f.rows * (i + 1) / tiles;
      ProductTile<T> tile{f.from + k0, f.offset + m, 1, 0, depth, panel, to.data + m * to.row, to.row};
      tile.more = piece > 0;
      product_fn<T>(next - m, vectors)(tile);
      m = next;
    }
  }
}

// Rows [row0, row1) of the sum over pixels of (small value of the row) x (a row of columns), written or added to where
// it is wanted: one tile's rows after the other, each from its first value to its last.
template <class T>
void outer_rows(const OuterProduct<T>& p, std::int64_t row0, std::int64_t row1) {
  constexpr int L = kLanes<T>, kMost = kTilePixels[kTileVectors];
  GradientTile<T> t{};
  t.images = t.rows = 1, t.cols = p.pixels;
  t.big_col = p.small_step, t.small_col = p.columns_step;
  const std::int64_t whole = p.columns / L * L;
  const int rest = int(p.columns - whole);
  for (std::int64_t row = row0; row < row1;) {
    const std::int64_t tiles = (row1 - row + kMost - 1) / kMost;
    const int rows = int((row1 - row + tiles - 1) / tiles);
    t.big = p.small + row;
    t.fresh = !p.accumulate;
    for (std::int64_t k = 0; k < whole;) {
      const std::int64_t left = (whole - k) / L;
      const int vectors = left < kTileVectors ? int(left) : kTileVectors;
      t.small = p.from + k, t.sum = p.to + row * p.row + k, t.sum_stride = p.row;
      gradient_fn<T>(rows, vectors)(t);
      k += vectors * L;
    }
    if (rest) {
      // The last columns end a register of which others, done already, are the beginning.
      alignas(64) T sums[kMost * L];
      const std::int64_t before = whole ? L - rest : 0;
      if (whole) {
        t.small = p.from + p.columns - L, t.sum = sums, t.sum_stride = L, t.fresh = true;
        gradient_fn<T>(rows, 1)(t);
      }
      for (int m = 0; m < rows; ++m) {
        Vec<T> sum{};
        if (whole)
          sum = load_partial<T>(sums + m * L + before, rest);
        else
          for (std::int64_t x = 0; x < p.pixels; ++x)
            sum += t.big[m + x * p.small_step] * load_partial<T>(p.from + x * p.columns_step, rest);
        T* const to = p.to + (row + m) * p.row + whole;
        store_partial<T>(to, p.accumulate ? load_partial<T>(to, rest) + sum : sum, rest);
      }
    }
    row += rows;
  }
}

}  // namespace lmser::LMSER_ISA
