// From the sums of a weight gradient to the weight's own layout.
#pragma once

#include <algorithm>
#include <cstring>

#include "buffer.h"
#include "engine.h"
#include "transpose.h"

namespace lmser {

// Adds the `count` sums of a plan in their order, the first one in place, and turns (kh, kw, C_in, C_out) into
// (C_out, C_in, kh, kw), or (C_out, C_in, kw, kh) where `turned`.
template <class T>
void write_weight(const ThreadPool& pool, std::int64_t tasks, const WeightGradPlan& plan, T* sum, std::int64_t count,
                  bool turned, const View& grad, bool accumulate) {
  const Geometry& g = plan.geometry;
  const std::int64_t lanes = plan.tile.lanes, width = plan.padded_out_c, groups = width / lanes;
  const std::int64_t taps = std::int64_t(g.kernel_h) * g.kernel_w, tap_stride = g.in_c * width;
  // Dense taps of one pair of channels are written together.
  const bool dense = grad.dtype == kDTypeOf<T> && !accumulate && !turned && grad.sn != 1 && taps > 1 &&
                     (grad.sw == 1 || g.kernel_w == 1) && (grad.sh == g.kernel_w || g.kernel_h == 1);
  // Output channels that lie side by side leave as rows of them.
  const bool rows = grad.dtype == kDTypeOf<T> && !accumulate && grad.sn == 1;
  const auto reduce_rows = [&](std::int64_t in0, std::int64_t in1) {
    for (int i = 0; i < g.kernel_h; ++i)
      for (int j = 0; j < g.kernel_w; ++j)
        for (std::int64_t ci = in0; ci < in1; ++ci) {
          T* const from = sum + (std::int64_t(i) * g.kernel_w + j) * tap_stride + ci * width;
          for (std::int64_t t = 1; t < count; ++t)
            for (std::int64_t v = 0; v < width; ++v) from[v] += from[t * plan.sum_values + v];
          const std::int64_t at = turned ? j * grad.sh + i * grad.sw : i * grad.sh + j * grad.sw;
          std::memcpy(static_cast<T*>(grad.data) + at + ci * grad.sc, from, sizeof(T) * g.out_c);
        }
  };
  const auto reduce = [&](std::int64_t group, std::int64_t in0, std::int64_t in1) {
    const std::int64_t c0 = group * lanes, c1 = std::min(c0 + lanes, g.out_c);
    for (std::int64_t ci = in0; ci < in1; ++ci) {
      T* const sums = sum + ci * width + c0;
      for (std::int64_t t = 1; t < count; ++t)
        for (std::int64_t tap = 0; tap < taps; ++tap) {
          T* const to = sums + tap * tap_stride;
          const T* const more = to + t * plan.sum_values;
          for (std::int64_t v = 0; v < lanes; ++v) to[v] += more[v];
        }
      if (dense) {
        transpose(sums, tap_stride, taps, c1 - c0, static_cast<T*>(grad.data) + c0 * grad.sn + ci * grad.sc, grad.sn);
        continue;
      }
      for (int i = 0; i < g.kernel_h; ++i)
        for (int j = 0; j < g.kernel_w; ++j) {
          const T* const from = sums + (std::int64_t(i) * g.kernel_w + j) * tap_stride;
          const std::int64_t at = ci * grad.sc + (turned ? j * grad.sh + i * grad.sw : i * grad.sh + j * grad.sw);
          if (grad.dtype == kDTypeOf<T>) {
            T* const to = static_cast<T*>(grad.data) + at;
            for (std::int64_t co = c0; co < c1; ++co)
              to[co * grad.sn] = accumulate ? to[co * grad.sn] + from[co - c0] : from[co - c0];
          } else {
            for (std::int64_t co = c0; co < c1; ++co) store_value<T>(grad, at + co * grad.sn, from[co - c0]);
          }
        }
    }
  };
  constexpr std::int64_t kChunk = 16;  // input channels, whose taps fill whole lines of the result
  const std::int64_t chunks = (g.in_c + kChunk - 1) / kChunk, pieces = rows ? g.in_c : groups * chunks;
  const auto part = [&](std::int64_t first, std::int64_t last) {
    if (rows) return reduce_rows(first, last);
    for (std::int64_t i = first; i < last; ++i)
      reduce(i / chunks, i % chunks * kChunk, std::min((i % chunks + 1) * kChunk, g.in_c));
  };
  if (tasks == 1 || plan.sum_values < 1 << 14)
    part(0, pieces);
  else
    pool.run(tasks, [&](std::int64_t t) { part(pieces * t / tasks, pieces * (t + 1) / tasks); });
}

}  // namespace lmser
