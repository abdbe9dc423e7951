// Minimal filtering of 3-tap kernels at stride 2 with its sums in registers (Phased, both directions).
//
// A row of points needs the products of its M + 1 two-tap columns and its M single ones. The transform of columns is
// linear, so the sums of several rows of points that one row of outputs adds are one sum of registers: of the two taps
// first, N tiles x (M + 1), then their transform, then the single taps go on from it, N x M. Rows of points that two
// rows of outputs share are summed once and wait in the first-level cache. What a row of outputs takes is never
// written but as what it is, where buffers of points (winograd_unit.h) write and read each product: there transforms
// cost as much as they save of few channels.
//
// Points lie as [tile][channels of a register][point][channel], so that those of a tile are at constant distances, and
// the weight of a block as [row class][channel][column class][register], the single column behind the others.
#pragma once

#include "conv_place.h"

namespace lmser::LMSER_ISA {

// Consecutive columns of a window that comes some tiles later.
template <int W>
LMSER_HD void fetch_columns(const float* src, std::int64_t row_stride, std::int64_t values) {
  for (int r = 0; r < W; ++r)
    for (std::int64_t i = 0; i < values; i += 16) __builtin_prefetch(src + r * row_stride + i, 0);
}

// A window of which rows [h0, h1) and columns [w0, w1) are inside the input, with zeros around them.
template <int W>
void copy_window(const float* src, std::int64_t row_stride, std::int64_t col_stride, std::int64_t channels,
                 std::int64_t h0, std::int64_t h1, std::int64_t w0, std::int64_t w1, float* to) {
  for (int r = 0; r < W; ++r)
    for (int c = 0; c < W; ++c, to += channels) {
      const bool inside = r >= h0 && r < h1 && c >= w0 && c < w1;
      const float* const from = src + r * row_stride + c * col_stride;
      for_lanes<float>(channels, [&](std::int64_t i, int n) {
        store_n<float>(to + i, inside ? load_n<float>(from + i, n) : Vec<float>{}, n);
      });
    }
}

// N tiles and one block of the weight.
template <class F, int N>
struct RegisterTiles {
  static constexpr int M = F::small, P = F::points, Two = M + 1, L = kLanes<float>;
  using Vector = Vec<float>;
  using Outputs = Vector[N * M][1];  // as finish_tile has them

  const float* tile[N];
  std::int64_t in_c;
  const float* weight;

  // += products of Q columns from `column` on of row `row` of points; `w`: [channel][Q, or one for all][L].
  template <int Q, bool Each>
  LMSER_HD void add(Vector (&sum)[N][Q], int row, int column, const float* w) const {
    for (std::int64_t c = 0; c < in_c; c += L) {
      const int count = int(in_c - c < L ? in_c - c : L);
      const float* at[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        at[n] = tile[n] + c * (P * P) + (row * P + column) * L;
        // Of many channels the points of a group are beyond the first-level cache.
        if (in_c > 2 * L)
#pragma GCC unroll 4
          for (int q = 0; q < Q; ++q) __builtin_prefetch(at[n] + (P * P + q) * L, 0, 3);
      }
      for (int k = 0; k < count; ++k) {
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
          const Vector b = load<float>(w + (Each ? q : 0) * L);
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) sum[n][q] += at[n][q * L + k] * b;
        }
        w += (Each ? Q : 1) * L;
      }
    }
  }
  const float* weights_of(int row, int column_class) const {
    const int row_class = row < Two ? row : Two;
    return weight + (row_class * (Two + 1) + column_class) * in_c * L;
  }

  // The rows of points that one row of outputs adds, summed and transformed to M columns of outputs each: those of two
  // taps, and on top of them, or of nothing, those of a single one.
  template <int R>
  LMSER_HD void two_taps(Outputs& out, const int (&rows)[R]) const {
    Vector sum[N][Two] = {};
    for (int r = 0; r < R; ++r) add<Two, true>(sum, rows[r], 0, weights_of(rows[r], 0));
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      Vector y[M];
      F::two_taps_out(sum[n], y);
#pragma GCC unroll 4
      for (int j = 0; j < M; ++j) out[n * M + j][0] = y[j];
    }
  }
  template <int R>
  LMSER_HD void single_tap(Outputs& out, const int (&rows)[R]) const {
    auto& sum = reinterpret_cast<Vector(&)[N][M]>(out);
    for (int r = 0; r < R; ++r) add<M, false>(sum, rows[r], Two, weights_of(rows[r], Two));
  }
};

// Where the M outputs of N tiles in a row of outputs go: those that are outputs at all, side by side.
template <class F, int N>
struct RegisterRow {
  static constexpr int kMost = N * F::small;
  std::int64_t offset[kMost], add_offset[kMost];
  int slot[kMost];  // of each; kMost: no output
  int count = 0;
  bool all() const { return count == kMost; }
};

// N tiles of one unit, all blocks or one, from points to outputs.
template <class F, int N, bool Down>
struct RegisterOutputs {
  static constexpr int M = F::small, Two = M + 1, L = kLanes<float>, Parities = Down ? 2 : 1, Rows = F::outputs(Down);
  using Tiles = RegisterTiles<F, N>;
  using Outputs = typename Tiles::Outputs;

  Tiles tiles;
  RegisterRow<F, N> rows[Rows][Parities];
  TileFinish<float> finish;
  int channels = 0;
  Vec<float> checked{};

  LMSER_HD void take(Outputs& out, int row, int parity) {
    const RegisterRow<F, N>& to = rows[row][parity];
    if (to.count == 0) return;
    Vec<float> of_row[4] = {};
#pragma GCC unroll 32
    for (int i = 0; i < N * M; ++i) of_row[i % 4] = of_row[i % 4] + out[i][0] * 0.0f;
    checked = checked + ((of_row[0] + of_row[1]) + (of_row[2] + of_row[3]));
    finish.offset = to.offset, finish.add_offset = to.add_offset;
    if (to.all() && channels == L && in_registers(finish.activation)) return finish_tile<float, N * M, 1>(out, finish);
    alignas(64) float linear[(N * M + 1) * L];
#pragma GCC unroll 32
    for (int i = 0; i < N * M; ++i) store<float>(linear + to.slot[i] * L, out[i][0]);
    write_tile<float>(linear, to.count, L, channels, finish);
  }

  // What a row of outputs will read and write outside the caches is fetched while its sums are formed.
  LMSER_HD void fetch(int row, int parity) const {
    const RegisterRow<F, N>& to = rows[row][parity];
    for (int i = 0; i < to.count; ++i) {
      __builtin_prefetch(finish.out + to.offset[i], 1);
      if (finish.add) __builtin_prefetch(finish.add + to.add_offset[i], 0);
      if (finish.drive) __builtin_prefetch(finish.drive + to.offset[i], 1);
      if (finish.gate) __builtin_prefetch(finish.gate + to.offset[i], 0);
    }
  }

  template <int R>
  LMSER_HD void sum(Outputs& out, int parity, const int (&of)[R]) const {
    if (!Down || parity) {
      tiles.two_taps(out, of);
      if (!Down) tiles.single_tap(out, of);
    } else {
#pragma GCC unroll 32
      for (int i = 0; i < N * M; ++i) out[i][0] = Vec<float>{};
      tiles.single_tap(out, of);
    }
  }
  // What waits for the rows of outputs that add it.
  struct Waiting {
    alignas(64) float values[N * M * L];
    LMSER_HD void keep(const Outputs& out) {
#pragma GCC unroll 32
      for (int i = 0; i < N * M; ++i) store<float>(values + i * L, out[i][0]);
    }
    LMSER_HD void add_to(Outputs& out) const {
#pragma GCC unroll 32
      for (int i = 0; i < N * M; ++i) out[i][0] = out[i][0] + load<float>(values + i * L);
    }
  };

  // Row `row` of the M that two taps make: of the points in `of`, and what waits.
  template <int R>
  LMSER_HD void row_of(int row, int parity, const int (&of)[R], const Waiting& waiting) {
    Outputs out;
    fetch(Down ? 2 * row + 1 : row, parity);
    sum(out, parity, of);
    waiting.add_to(out);
    take(out, Down ? 2 * row + 1 : row, parity);
  }
  LMSER_HD void block_part(int parity) {
    // Upwards the single rows of points join those of two taps; downwards they are rows of outputs by themselves.
    Waiting shared;
    if constexpr (M == 2) {
      {
        Outputs out;
        sum(out, parity, {1});
        shared.keep(out);
      }
      for (int r = 0; r < 2; ++r) {
        if constexpr (Down)
          row_of(r, parity, {2 * r}, shared);
        else
          row_of(r, parity, {2 * r, Two + r}, shared);
      }
    } else {
      Waiting difference;
      {
        Outputs first, second;
        sum(first, parity, {1});
        difference.keep(first);
        sum(second, parity, {2});
#pragma GCC unroll 32
        for (int i = 0; i < N * M; ++i) {
          float* const kept = difference.values + i * L;
          const Vec<float> a = load<float>(kept), b = second[i][0];
          store<float>(shared.values + i * L, a + b), store<float>(kept, a - b);
        }
      }
      if constexpr (Down) {
        row_of(0, parity, {0}, shared);
        take_waiting(difference, 3, parity);
        row_of(2, parity, {3}, shared);
      } else {
        row_of(0, parity, {0, Two}, shared);
        row_of(1, parity, {Two + 1}, difference);
        row_of(2, parity, {3, Two + 2}, shared);
      }
    }
    if constexpr (Down)
      for (int r = 0; r < M; ++r) {
        Outputs out;
        fetch(2 * r, parity);
        sum(out, parity, {Two + r});
        take(out, 2 * r, parity);
      }
  }
  LMSER_HD void take_waiting(const Waiting& waiting, int row, int parity) {
    Outputs out;
#pragma GCC unroll 32
    for (int i = 0; i < N * M; ++i) out[i][0] = load<float>(waiting.values + i * L);
    take(out, row, parity);
  }
  void block() {
    for (int parity = 0; parity < Parities; ++parity) block_part(parity);
  }
};

// Tiles [from, from + count) of a unit, count at most N: those beyond the last repeat it, and their outputs are none.
template <class F, int N, bool Down>
struct RegisterGroup {
  using Out = RegisterOutputs<F, N, Down>;

  template <class T>
  static void prepare(const ConvCall<float>& call, const UnitRange& unit, const UnitOutput<T>& to, std::int64_t from,
                      std::int64_t count, const float* points, Out& out) {
    const ConvPlan& p = *call.plan;
    const WinogradGrid& w = p.winograd;
    const Geometry& g = p.geometry;
    const std::int64_t rows = unit.t1(w) - unit.t0(w), tile_values = register_points_of_tile(p);
    const int add_h = call.sink.add_h, add_w = call.sink.add_w;
    const bool add_apart = to.add && add_h * add_w > 1;
    out.tiles.in_c = g.in_c;
    bool whole = count == N && !add_apart;
    std::int64_t base[N], first_h[N], first_w[N], images[N];
    for (int n = 0; n < N; ++n) {
      const std::int64_t at = n < count ? n : count - 1, tile = from + at, x = tile % w.cols, r = tile / w.cols;
      images[n] = r / rows;
      first_h[n] = w.out0_h + (unit.t0(w) + r - images[n] * rows) * w.out_step, first_w[n] = w.out0_w + x * w.out_step;
      base[n] = to.out.at(images[n], first_h[n] - unit.r0, first_w[n]);
      out.tiles.tile[n] = points + at * tile_values;
      whole = whole && first_h[n] >= unit.r0 && first_h[n] + Out::Rows <= unit.r1 && first_w[n] >= 0 &&
              first_w[n] + Out::Rows <= g.out_w;
    }
    constexpr int kColumns = Down ? 2 : 1;  // from one output of a parity to the next
    for (int i = 0; i < Out::Rows; ++i)
      for (int parity = 0; parity < Out::Parities; ++parity) {
        auto& row = out.rows[i][parity];
        if (whole) {
          for (int n = 0; n < N; ++n)
            for (int j = 0; j < F::small; ++j) {
              const int at = n * F::small + j;
              row.offset[at] = row.add_offset[at] = base[n] + i * to.out.row + (kColumns * j + parity) * to.out.col;
              row.slot[at] = at;
            }
          row.count = row.kMost;
          continue;
        }
        row.count = 0;
        for (int n = 0; n < N; ++n)
          for (int j = 0; j < F::small; ++j) {
            const std::int64_t h = first_h[n] + i, col = first_w[n] + kColumns * j + parity;
            const bool is = n < count && h >= unit.r0 && h < unit.r1 && col >= 0 && col < g.out_w;
            row.slot[n * F::small + j] = is ? row.count : row.kMost;
            if (!is) continue;
            row.offset[row.count] = base[n] + i * to.out.row + (kColumns * j + parity) * to.out.col;
            row.add_offset[row.count] =
                add_apart ? to.add.at(images[n], h / add_h - unit.r0 / add_h, col / add_w) : row.offset[row.count];
            ++row.count;
          }
      }
  }
};

// Returns false where an output is not finite, as winograd_tiles does.
template <class F, bool Down>
bool register_tiles(const ConvCall<float>& call, const UnitRange& unit, const UnitInput<float>& from,
                    const UnitOutput<float>& to, float* scratch) {
  constexpr int L = kLanes<float>, Most = kFilterTiles<F>, Fewer = (Most + 1) / 2;
  const ConvPlan& p = *call.plan;
  const WinogradGrid& w = p.winograd;
  const Geometry& g = p.geometry;
  const std::int64_t rows = unit.t1(w) - unit.t0(w), tiles = (unit.n1 - unit.n0) * rows * w.cols,
                     tile_values = register_points_of_tile(p);
  // Where the input is read as it lies, a window that reaches into the padding is copied first.
  constexpr int W = Down ? F::down_window : F::up_window, kAhead = Most;
  const bool lies = direct_source(call);
  float* const window = scratch + register_scratch(p) - register_window(p);
  const auto transform = [&](std::int64_t first, std::int64_t count, float* points) {
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t tile = first + i, x = tile % w.cols, r = tile / w.cols % rows, image = tile / w.cols / rows,
                         h = w.in0_h + (unit.t0(w) + r) * w.in_step, col = w.in0_w + x * w.in_step;
      const float* src =
          from.slab.data + image * from.slab.image + r * w.in_step * from.slab.row + x * w.in_step * from.slab.col;
      std::int64_t row_stride = from.slab.row, col_stride = from.slab.col;
      if (lies) fetch_columns<W>(src + kAhead * w.in_step * col_stride, row_stride, w.in_step * g.in_c);
      if (lies && (h < 0 || h + W > g.in_h || col < 0 || col + W > g.in_w)) {
        copy_window<W>(src, row_stride, col_stride, g.in_c, -h, g.in_h - h, -col, g.in_w - col, window);
        src = window, row_stride = W * g.in_c, col_stride = g.in_c;
      }
      constexpr Transform kKind = Down ? Transform::down : Transform::up;
      float* to_points = points + i * tile_values;
      for (std::int64_t c = 0; c < g.in_c; c += L, to_points += F::points * F::points * L)
        if (g.in_c - c >= L)
          transform_in<F, kKind, true>(src + c, row_stride, col_stride, L, to_points, L);
        else
          transform_in<F, kKind, true>(src + c, row_stride, col_stride, int(g.in_c - c), to_points, L);
    }
  };
  Vec<float> checked{};
  const auto group = [&](auto fewer, std::int64_t first, std::int64_t count, const float* points, int b0, int b1) {
    constexpr int N = decltype(fewer)::value ? Fewer : Most;
    RegisterOutputs<F, N, Down> out;
    RegisterGroup<F, N, Down>::prepare(call, unit, to, first, count, points, out);
    for (int b = b0; b < b1; ++b) {
      const Block& block = p.blocks[b];
      out.finish = to.tile_finish(block.channel);
      out.channels = int(g.out_c - block.channel < L ? g.out_c - block.channel : L);
      out.tiles.weight = call.weight + packed_panel(p, b, 0);
      out.block();
    }
    checked = checked + out.checked;
  };
  const auto groups = [&](int b0, int b1, auto&& points_of) {
    for (std::int64_t first = 0; first < tiles;) {
      const std::int64_t left = tiles - first, count = left < Most ? left : std::int64_t(Most);
      const float* const points = points_of(first, count);
      if (count <= Fewer)
        group(std::true_type(), first, count, points, b0, b1);
      else
        group(std::false_type(), first, count, points, b0, b1);
      first += count;
    }
  };
  const int together = register_blocks(p);
  if (together >= int(p.blocks.size())) {
    groups(unit.block0, unit.block1, [&](std::int64_t first, std::int64_t count) {
      transform(first, count, scratch);
      return scratch;
    });
  } else {
    transform(0, tiles, scratch);
    for (int b = unit.block0; b < unit.block1; b += together)
      groups(b, lesser(b + together, unit.block1),
             [&](std::int64_t first, std::int64_t) { return scratch + first * tile_values; });
  }
  return all_finite(checked);
}

template <class T>
bool register_unit(const ConvCall<T>& call, const UnitRange& unit, const UnitInput<T>& from, const UnitOutput<T>& to,
                   T* scratch) {
  return with_phased(call.plan->winograd, [&]<class F>() {
    return call.plan->geometry.transposed ? register_tiles<F, true>(call, unit, from, to, scratch)
                                          : register_tiles<F, false>(call, unit, from, to, scratch);
  });
}

}  // namespace lmser::LMSER_ISA
