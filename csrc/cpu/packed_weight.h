// A convolution's weight in the order in which its units read it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>

#include "all_finite.h"
#include "buffer.h"
#include "engine.h"
#include "narrow.h"

namespace lmser {

// The weight as values of T: itself, or a converted copy held by `copy`, in the order of memory where that is dense.
template <class T>
WeightLayout<T> layout_of(const Geometry& g, const View& w, Buffer<T>& copy) {
  std::int64_t sn = w.sn, sc = w.sc, sh = w.sh, sw = w.sw;
  const T* data = static_cast<const T*>(w.data);
  if (w.dtype != kDTypeOf<T>) {
    const std::int64_t values = w.n * w.c * w.h * w.w;
    copy = allocate<T>(values);
    data = copy.get();
    if ((w.n - 1) * sn + (w.c - 1) * sc + (w.h - 1) * sh + (w.w - 1) * sw + 1 == values) {
      convert<T>(w, values, copy.get());
    } else {
      T* p = copy.get();
      for (std::int64_t n = 0; n < w.n; ++n)
        for (std::int64_t c = 0; c < w.c; ++c)
          for (std::int64_t i = 0; i < w.h; ++i)
            for (std::int64_t j = 0; j < w.w; ++j) *p++ = value_at<T>(w, n * sn + c * sc + i * sh + j * sw);
      sw = 1, sh = w.w, sc = w.h * w.w, sn = w.c * sc;
    }
  }
  return g.transposed ? WeightLayout<T>{data, sc, sn, sh, sw} : WeightLayout<T>{data, sn, sc, sh, sw};
}

// The weight of a transposed convolution of stride 1 as that of the convolution which gives the same, for input
// channels from `first` on: its taps are met from the last to the first.
template <class T>
WeightLayout<T> turned(const View& w, std::int64_t first) {
  return {static_cast<const T*>(w.data) + (w.h - 1) * w.sh + (w.w - 1) * w.sw, w.sc, w.sn, -w.sh, -w.sw, first};
}

// The weight of a convolution, and that of the channels beside.
template <class T>
struct WeightParts {
  WeightLayout<T> weight, beside{};
  const WeightLayout<T>& of(std::int64_t c) const { return beside.data && c >= beside.first ? beside : weight; }
};

// A phase for the planar tile: [tap row][input channel][tap column][output channel].
template <class T>
void pack_planar(const ConvPlan& p, const Phase& ph, const WeightParts<T>& parts, T* packed) {
  const Geometry& g = p.geometry;
  T* to = packed + ph.weight_offset;
  for (int a = 0; a < ph.taps_h; ++a)
    for (std::int64_t c = 0; c < g.in_c; ++c)
      for (int b = 0; b < ph.taps_w; ++b) {
        const int i = g.transposed ? ph.first_tap_h - a * g.stride_h : a,
                  j = g.transposed ? ph.first_tap_w - b * g.stride_w : b;
        const WeightLayout<T>& w = parts.of(c);
        for (std::int64_t v = 0; v < g.out_c; ++v) *to++ = w.from(v, c)[i * w.row + j * w.col];
      }
}

// A phase for the dot tile: [tap row][depth in registers][output channel][lanes], zero behind the depth.
template <class T>
void pack_dot(const ConvPlan& p, const Phase& ph, const WeightParts<T>& parts, T* packed) {
  const Geometry& g = p.geometry;
  const std::int64_t lanes = p.tile.lanes, registers = (ph.taps_w * g.in_c + lanes - 1) / lanes;
  T* row = packed + ph.weight_offset;
  for (int a = 0; a < ph.taps_h; ++a, row += registers * g.out_c * lanes) {
    std::memset(static_cast<void*>(row), 0, sizeof(T) * registers * g.out_c * lanes);
    const int i = g.transposed ? ph.first_tap_h - a * g.stride_h : a;
    for (int b = 0; b < ph.taps_w; ++b) {
      const int j = g.transposed ? ph.first_tap_w - b * g.stride_w : b;
      for (std::int64_t c = 0; c < g.in_c; ++c) {
        const std::int64_t k = b * g.in_c + c;
        const WeightLayout<T>& w = parts.of(c);
        for (std::int64_t v = 0; v < g.out_c; ++v)
          row[(k / lanes * g.out_c + v) * lanes + k % lanes] = w.from(v, c)[i * w.row + j * w.col];
      }
    }
  }
}

template <class T>
void pack(const InstructionSet& isa, const NarrowKernels* tiles, const ThreadPool& pool, const ConvPlan& p,
          const WeightParts<T>& parts, T* packed) {
  if (p.dot) {
    for (const Phase& ph : p.phases)
      p.planar ? pack_planar<T>(p, ph, parts, packed) : pack_dot<T>(p, ph, parts, packed);
    return;
  }
  constexpr std::int64_t kChunk = 32;  // input channels a piece, all of one part
  const auto chunks_of = [](std::int64_t channels) { return (channels + kChunk - 1) / kChunk; };
  const std::int64_t in_c = p.geometry.in_c, split = parts.beside.data ? parts.beside.first : in_c,
                     before = chunks_of(split), chunks = before + chunks_of(in_c - split),
                     pieces = chunks * std::int64_t(p.blocks.size());
  const std::int64_t tasks = p.packed_size < 1 << 16 ? 1 : std::min<std::int64_t>(pool.threads, pieces);
  const auto part = [&](std::int64_t t) {
    for (std::int64_t i = pieces * t / tasks; i < pieces * (t + 1) / tasks; ++i) {
      const std::int64_t chunk = i % chunks;
      const bool beside = chunk >= before;
      const std::int64_t from = beside ? split + (chunk - before) * kChunk : chunk * kChunk;
      const std::int64_t until = std::min(from + kChunk, beside ? in_c : split);
      if constexpr (sizeof(T) == 4)
        if (tiles) {
          tiles->pack(p, parts.weight, int(i / chunks), from, until, packed);
          continue;
        }
      kernels_of<T>(isa).pack(p, beside ? parts.beside : parts.weight, int(i / chunks), from, until, packed);
    }
  };
  if (tasks == 1)
    part(0);
  else
    pool.run(tasks, part);
}

template <class T>
struct PackedWeight {
  Buffer<T> values;
  std::int64_t count;
  // Found out when it is first asked for.
  bool is_finite(const ThreadPool& pool) const {
    int known = finite_.load(std::memory_order_relaxed);
    if (known == kUnknown) finite_.store(known = all_finite(pool, values.get(), count), std::memory_order_relaxed);
    return known != 0;
  }

 private:
  static constexpr int kUnknown = -1;
  mutable std::atomic<int> finite_{kUnknown};
};

}  // namespace lmser
