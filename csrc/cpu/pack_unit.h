// The weight turned into the order in which the units read it.
#pragma once

#include "kernels.h"
#include "rows.h"
#include "turn.h"

namespace lmser::LMSER_ISA {

// All taps of `count` input channels from c0 on and of one register of output channels from `out` on, as
// [input channel][tap][lanes], zero beyond the last output channel. Wherever one of the weight's axes lies dense,
// memory is read as it lies.
template <class T>
void gather_taps(const Geometry& g, const WeightLayout<T>& w, std::int64_t out, std::int64_t c0, std::int64_t count,
                 T* taps) {
  constexpr int L = kLanes<T>;
  const std::int64_t all = std::int64_t(g.kernel_h) * g.kernel_w, lanes = g.out_c - out < L ? g.out_c - out : L;
  const T* const from = w.from(out, c0);
  if (w.col == -1 && w.row == -g.kernel_w) {  // from the last tap to the first
    WeightLayout<T> turned = w;
    turned.data -= all - 1, turned.row = g.kernel_w, turned.col = 1;
    gather_taps(g, turned, out, c0, count, taps);
    for (std::int64_t c = 0; c < count; ++c)
      for (std::int64_t i = 0, j = all - 1; i < j; ++i, --j) {
        T *const a = taps + (c * all + i) * L, *const b = taps + (c * all + j) * L;
        const Vec<T> first = load<T>(a);
        store<T>(a, load<T>(b)), store<T>(b, first);
      }
    return;
  }
  const bool dense_taps = (w.col == 1 || g.kernel_w == 1) && (w.row == g.kernel_w || g.kernel_h == 1);
  if (lanes < L) std::memset(taps, 0, sizeof(T) * count * all * L);
  const auto each_tap = [&](auto&& f) {
    for (int i = 0; i < g.kernel_h; ++i)
      for (int j = 0; j < g.kernel_w; ++j) f(i * w.row + j * w.col, std::int64_t(i) * g.kernel_w + j);
  };
  if (w.out == 1) {
    each_tap([&](std::int64_t at, std::int64_t tap) {
      for (std::int64_t c = 0; c < count; ++c)
        store<T>(taps + (c * all + tap) * L, load_n<T>(from + c * w.in + at, int(lanes)));
    });
  } else if (dense_taps && w.in == all) {
    turn<T>(from, w.out, lanes, count * all, taps, L);
  } else if (dense_taps && w.out == all) {
    for (std::int64_t c = 0; c < count; ++c) turn<T>(from + c * w.in, all, lanes, all, taps + c * all * L, L);
  } else if (w.in == 1) {
    each_tap(
        [&](std::int64_t at, std::int64_t tap) { turn<T>(from + at, w.out, lanes, count, taps + tap * L, all * L); });
  } else {
    each_tap([&](std::int64_t at, std::int64_t tap) {
      for (std::int64_t c = 0; c < count; ++c)
        for (std::int64_t v = 0; v < lanes; ++v) taps[(c * all + tap) * L + v] = from[v * w.out + c * w.in + at];
    });
  }
}

// Input channels [c0, c1) of one block of the direct sum, in every phase: [tap row][tap column][input channel][block
// width], from `place(phase)` on. A kernel tap belongs to one phase.
template <class T, class Place>
void pack_block(const ConvPlan& p, const WeightLayout<T>& w, int index, std::int64_t c0, std::int64_t c1,
                Place&& place) {
  constexpr int L = kLanes<T>;
  constexpr std::int64_t kValues = 128 * L;  // half of the first-level cache at most
  const Geometry& g = p.geometry;
  const Block& block = p.blocks[index];
  const std::int64_t all = std::int64_t(g.kernel_h) * g.kernel_w, width = std::int64_t(block.vectors) * L;
  const auto each = [&](auto&& f) {  // f(kernel index, place of its first input channel)
    for (const Phase& ph : p.phases) {
      if (ph.pairs) continue;  // filtered_rows.h
      T* dst = place(ph);
      for (int a = 0; a < ph.taps_h; ++a)
        for (int b = 0; b < ph.taps_w; ++b, dst += g.in_c * width)
          f(g.transposed ? ph.first_tap_h - a * g.stride_h : a, g.transposed ? ph.first_tap_w - b * g.stride_w : b,
            dst);
    }
  };
  if (all * L > kValues) {
    each([&](int i, int j, T* dst) {
      for (std::int64_t c = c0; c < c1; ++c) {
        const T* const from = w.from(block.channel, c) + i * w.row + j * w.col;
        for (std::int64_t v = 0; v < width; ++v)
          dst[c * width + v] = block.channel + v < g.out_c ? from[v * w.out] : T(0);
      }
    });
    return;
  }
  alignas(64) T taps[kValues];
  const std::int64_t chunk = kValues / (all * L);
  for (std::int64_t from = c0; from < c1; from += chunk) {
    const std::int64_t count = c1 - from < chunk ? c1 - from : chunk;
    for (int v = 0; v < block.vectors; ++v) {
      gather_taps<T>(g, w, block.channel + v * L, from, count, taps);
      each([&](int i, int j, T* dst) {
        const T* const tap = taps + (std::int64_t(i) * g.kernel_w + j) * L;
        for (std::int64_t c = 0; c < count; ++c) store<T>(dst + (from + c) * width + v * L, load<T>(tap + c * all * L));
      });
    }
  }
}

}  // namespace lmser::LMSER_ISA
