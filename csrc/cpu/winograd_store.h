// The sums of minimal-filtering tiles back to outputs: transformed, finished and stored.
#pragma once

#include "epilogue.h"
#include "kernels.h"
#include "pixels.h"
#include "winograd.h"

namespace lmser::LMSER_ISA {

// Where the outputs of a unit go: rows [r0, r1) of the output, relative to dst. With `repeat` each, times `scale`, goes
// to up_h x up_w pixels of dst. What is smaller than dst has strides of its own: `add` with add_h * add_w > 1, `drive`
// with drive_once.
struct WinogradOut {
  Pixels<float> dst, drive;
  Pixels<const float> add, gate;  // the gate lies as dst does
  const float* bias;
  std::int64_t r0, r1;
  Activation activation;
  float slope, gate_slope;
  bool repeat = false;
  int up_h = 1, up_w = 1;
  float scale = 1;
  int add_h = 1, add_w = 1;
  bool drive_once = false;
  std::atomic<std::uint64_t>* change = nullptr;  // of the first image, by what dst held
};

// Sums of blocks [block0, block1): [point][block][tile][channel of the block], `row` values from one point to the next.
// The products of a tile of registers leave as one piece of memory.
struct WinogradSums {
  float* data;
  int block0, block1;
  std::int64_t tiles, row;
  bool far;  // beyond the second-level cache: those of the next tile are fetched ahead
  WinogradSums(const ConvPlan& p, float* data, int block0, int block1, std::int64_t tiles, bool far = false)
      : data(data), block0(block0), block1(block1), tiles(tiles), row(p.winograd.pitch(tiles * width(p))), far(far) {}
  std::int64_t first_column(const ConvPlan& p) const { return p.blocks[block0].weight_column; }
  std::int64_t width(const ConvPlan& p) const {
    const std::int64_t until = block1 < int(p.blocks.size()) ? p.blocks[block1].weight_column : p.padded_out_c;
    return until - first_column(p);
  }
  float* of_block(const ConvPlan& p, int block) const {
    return data + tiles * (p.blocks[block].weight_column - first_column(p));
  }
};

// Tiles from row `row0` of the order on, transformed back, finished and stored. `checked` gathers a zero of every
// output, which is none where an output is not finite.
template <class F, bool Down, Activation A, bool Repeat>
void winograd_store_as(const ConvPlan& p, const WinogradSums& sums, const TileOrder& order, std::int64_t row0,
                       std::int64_t images, std::int64_t t0, std::int64_t t1, const WinogradOut& out,
                       Vec<float>& checked) {
  constexpr int L = kLanes<float>, O = F::outputs(Down);
  constexpr int kRun = 8;  // registers of channels that are finished together
  const Geometry& g = p.geometry;
  const WinogradGrid& w = p.winograd;
  const std::int64_t pitch = sums.row;
  // Copies, which stores of floats cannot change.
  const bool add_apart = !Repeat && out.add && out.add_h * out.add_w > 1, drive_apart = Repeat && out.drive_once;
  float *const dst = out.dst.data, *const drive = drive_apart ? nullptr : out.drive.data;
  const float *const add = add_apart ? nullptr : out.add.data, *const few_add = add_apart ? out.add.data : nullptr;
  const float* const gate = out.gate.data;
  const bool compares = out.change;
  Magnitude<float> moved;
  const float slope = out.slope, gate_slope = out.gate_slope, scale = out.scale;
  const int up_h = Repeat ? out.up_h : 1, up_w = Repeat ? out.up_w : 1;
  const std::int64_t row_step = up_h * out.dst.row, col_step = up_w * out.dst.col;
  alignas(64) float linear[O * O * kRun * L], bias[kRun * L];
  const std::int64_t channel0 = p.blocks[sums.block0].channel;
  const int all = int(sums.width(p) / L);
  int block = sums.block0;
  for (int v0 = 0; v0 < all; v0 += kRun) {
    const int vectors = all - v0 < kRun ? all - v0 : kRun;
    const std::int64_t c0 = channel0 + v0 * L, left = g.out_c - c0;
    const float* from[kRun];
    std::int64_t step[kRun];  // to the next tile
    for (int v = 0; v < vectors; ++v) {
      const std::int64_t column = sums.first_column(p) + (v0 + v) * L;
      while (column >= p.blocks[block].weight_column + p.blocks[block].vectors * L) ++block;
      step[v] = p.blocks[block].vectors * L;
      from[v] = sums.of_block(p, block) + column - p.blocks[block].weight_column;
    }
    const int whole = int(left < vectors * L ? left / L : vectors), rest = int(left < vectors * L ? left % L : 0);
    for (int v = 0; v < kRun; ++v) {
      const int lanes = v < whole ? L : v == whole ? rest : 0;
      store<float>(bias + v * L, out.bias && lanes ? load_n<float>(out.bias + c0 + v * L, lanes) : Vec<float>{});
    }
    for (std::int64_t n = 0; n < images; ++n) {
      moved = {};
      for (std::int64_t t = t0; t < t1; ++t)
        for (std::int64_t x = 0; x < w.cols; ++x) {
          const std::int64_t row = row0 + n * (t1 - t0) + t - t0, tile = order.index(row, x);
          for (int v = 0; v < vectors; ++v) {
            const float* const points = from[v] + tile * step[v];
            if (sums.far)
              for (int k = 0; k < F::points * F::points; ++k) __builtin_prefetch(points + step[v] + k * pitch, 0, 3);
            Vec<float> y[O * O], sum[O];
            bool whole_tile = true;
            if constexpr (std::is_same_v<F, ThreeTaps>) {
              whole_tile = !order.last_h(row) && !order.last_w(x);
              if (!whole_tile)
                with_last_tile(order.last_h(row), order.last_w(x), [&](auto kind) { kind.out(points, pitch, y); });
            }
            if (whole_tile) transform_out<F, Down>(points, pitch, y);
#pragma GCC unroll 8
            for (int i = 0; i < O; ++i) {
              sum[i] = y[i * O];
#pragma GCC unroll 8
              for (int j = 1; j < O; ++j) sum[i] = sum[i] + y[i * O + j];
            }
#pragma GCC unroll 8
            for (int i = 1; i < O; ++i) sum[0] = sum[0] + sum[i];
            checked = checked + sum[0] * 0.0f;
#pragma GCC unroll 64
            for (int k = 0; k < O * O; ++k) store<float>(linear + (k * kRun + v) * L, Repeat ? y[k] * scale : y[k]);
          }
          // Pixel after pixel as they lie in memory: the lines of one register's channels in all of them, some power
          // of two apart, would fall into a few sets of the cache.
          const std::int64_t h0 = w.out0_h + t * w.out_step, w0 = w.out0_w + x * w.out_step;
          const int i0 = int(h0 < out.r0 ? out.r0 - h0 : 0), i1 = int(out.r1 - h0 < O ? out.r1 - h0 : O);
          const int j0 = int(w0 < 0 ? -w0 : 0), j1 = int(g.out_w - w0 < O ? g.out_w - w0 : O);
          // Where the next tile's values lie from this one's, which no hardware foresees.
          const bool turns = x + 1 == w.cols;
          const std::int64_t ahead = turns ? O * row_step - x * O * col_step : O * col_step,
                             add_ahead = turns ? O * out.add.row / out.add_h - x * O * out.add.col / out.add_w
                                               : O * out.add.col / out.add_w;
          const auto finish = [ =, &moved ](Vec<float> z, Vec<float> with, std::int64_t at, std::int64_t add_at,
                                            int lanes) __attribute__((always_inline)) {
            __builtin_prefetch(dst + at + ahead, 1);
            Vec<float> sum = z + with;
            if (add) {
              __builtin_prefetch(add + at + ahead, 0);
              sum = sum + load_n<float>(add + at, lanes);
            }
            if (!Repeat && few_add) {
              __builtin_prefetch(few_add + add_at + add_ahead, 0);
              sum = sum + load_n<float>(few_add + add_at, lanes);
            }
            if (drive) store_n<float>(drive + at, z, lanes);  // may lie where `add` does
            Vec<float> state = act<A, float>(sum, slope);
            if (gate) {
              __builtin_prefetch(gate + at + ahead, 0);
              state = gated<float>(state, load_n<float>(gate + at, lanes), gate_slope);
            }
            const Vec<float> before = compares ? load_n<float>(dst + at, lanes) : Vec<float>{};
            store_n<float>(dst + at, state, lanes);
            // Behind the last channel a register holds f(0), which need not be zero.
            if (compares) moved.take((lanes == L ? state : load_n<float>(dst + at, lanes)) - before);
          };
          const std::int64_t corner = n * out.dst.image + (h0 - out.r0) * row_step + w0 * col_step + c0;
          for (int i = i0; i < i1; ++i) {
            if (drive_apart)
              for (int j = j0; j < j1; ++j) {
                const float* const z = linear + (i * O + j) * kRun * L;
                float* const to = out.drive.data + out.drive.at(n, h0 + i - out.r0, w0 + j) + c0;
                for (int v = 0; v < whole; ++v) store<float>(to + v * L, load<float>(z + v * L));
                if (rest) store_n<float>(to + whole * L, load<float>(z + whole * L), rest);
              }
            for (int a = 0; a < up_h; ++a) {
              std::int64_t at = corner + i * row_step + a * out.dst.row + j0 * col_step;
              // Of `few_add`: the value under `at`, and for how many pixels it still serves.
              std::int64_t add_at = 0;
              int serves = 0;
              if (add_apart) {
                add_at = out.add.at(n, (h0 + i) / out.add_h - out.r0 / out.add_h, (w0 + j0) / out.add_w) + c0;
                serves = out.add_w - int((w0 + j0) % out.add_w);
              }
              for (int j = j0; j < j1; ++j) {
                const float* const z = linear + (i * O + j) * kRun * L;
                for (int b = 0; b < up_w; ++b, at += out.dst.col) {
                  for (int v = 0; v < whole; ++v)
                    finish(load<float>(z + v * L), load<float>(bias + v * L), at + v * L, add_at + v * L, L);
                  if (rest)
                    finish(load<float>(z + whole * L), load<float>(bias + whole * L), at + whole * L,
                           add_at + whole * L, rest);
                }
                if (--serves == 0) add_at += out.add.col, serves = out.add_w;
              }
            }
          }
        }
      if (compares) raise_to(out.change[n], moved.largest());
    }
  }
}

template <class F, bool Down>
void winograd_store(const ConvPlan& p, const WinogradSums& sums, const TileOrder& order, std::int64_t row0,
                    std::int64_t images, std::int64_t t0, std::int64_t t1, const WinogradOut& out,
                    Vec<float>& checked) {
  with_activation(out.activation, [&]<Activation A>() {
    if (out.repeat)
      winograd_store_as<F, Down, A, true>(p, sums, order, row0, images, t0, t1, out, checked);
    else
      winograd_store_as<F, Down, A, false>(p, sums, order, row0, images, t0, t1, out, checked);
  });
}
inline bool all_finite(Vec<float> checked) {
  bool finite = true;
  for (int i = 0; i < kLanes<float>; ++i) finite = finite && checked[i] == 0.0f;
  return finite;
}

}  // namespace lmser::LMSER_ISA
