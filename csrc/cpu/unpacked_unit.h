// One unit of a product of few pixels with a weight as it lies. Of a convolution upwards the pixels hold what lies
// under the kernel, gathered before, in the order of the weight's values; downwards products are values under the
// kernel, which are added to the pixels that it reaches.
#pragma once

#include "conv_place.h"
#include "transpose.h"
#include "unpacked_tiles.h"

namespace lmser::LMSER_ISA {

template <class T>
struct UnpackedUnit {
  static constexpr int L = kLanes<T>;
  const ConvCall<T>& call;
  const ConvPlan& p = *call.plan;
  const Geometry& g = p.geometry;
  const WeightLayout<T>& w = call.as_it_lies;
  const ConvScratch<T> layout{call};
  const UnitRange unit;
  T* const scratch;
  const UnitOutput<T> to;
  const int taps = g.kernel_h * g.kernel_w, channels = int(unit.c1 - unit.c0);
  T *const linear = scratch + layout.before_linear(), *const columns = scratch + layout.before_columns(),
           *const panel = columns + layout.columns, *const turned = panel + layout.panel;
  std::int64_t* const in_offset = reinterpret_cast<std::int64_t*>(scratch + layout.before_offsets());
  const std::int64_t offsets = layout.offsets_each();

  UnpackedUnit(const ConvCall<T>& c, std::int64_t index, T* memory)
      : call(c),
        unit(*c.plan, index),
        scratch(memory),
        to(c, unit, memory + layout.before_linear(), memory + layout.before_pooled()) {}

  Pixels<const T> input() const {
    const View& v = call.source.base;
    if (direct_source(call)) return {static_cast<const T*>(v.data), v.sn, v.sh, v.sw};
    const std::int64_t rows = g.in_h, cols = g.in_w;
    const auto row_scratch = RowScratch<T>::at(scratch + layout.slab + layout.line, call.source.row_values());
    for (std::int64_t n = 0; n < g.batch; ++n)
      stage<T>(call.source, n, 0, rows, 0, cols, g.in_c, scratch + n * rows * cols * g.in_c, row_scratch);
    return {scratch, rows * cols * g.in_c, cols * g.in_c, g.in_c};
  }

  // f(number, image, row, column) for the pixels of the input.
  template <class F>
  void pixels(F&& f) const {
    std::int64_t i = 0;
    for (std::int64_t n = 0; n < g.batch; ++n)
      for (std::int64_t r = 0; r < g.in_h; ++r)
        for (std::int64_t x = 0; x < g.in_w; ++x) f(i++, n, r, x);
  }

  // `count` results of every row, of a matrix whose value (depth, result) is at depth * in + result * out.
  void products(const FewRows<T>& rows, const T* weight, std::int64_t in, std::int64_t out, int count,
                Results<T> results) const {
    if (in == 1)
      rows_along<T>(rows, weight, out, count, results);
    else
      rows_across<T>(rows, weight, in, count, panel + layout.results, results);
  }
  static constexpr int kWidth = kTileVectors * L;

  // Rows times the weight are the output's pixels.
  void finish_pixels(const FewRows<T>& rows) const {
    auto *const out_offset = in_offset + offsets, *const add_offset = out_offset + offsets;
    const int add_h = call.sink.add_h, add_w = call.sink.add_w;
    std::int64_t i = 0;
    for (std::int64_t n = 0; n < g.batch; ++n)
      for (std::int64_t r = 0; r < g.out_h; ++r)
        for (std::int64_t x = 0; x < g.out_w; ++x, ++i) {
          out_offset[i] = to.out.at(n, r, x);
          add_offset[i] = to.add && add_h * add_w > 1 ? to.add.at(n, r / add_h, x / add_w) : out_offset[i];
        }
    for (int c = 0; c < channels; c += kWidth) {
      const int count = lesser(kWidth, channels - c), channel = int(unit.c0) + c;
      products(rows, w.data + channel * w.out, w.in, w.out, count, {panel, kWidth});
      TileFinish<T> finish = to.tile_finish(channel);
      finish.offset = out_offset, finish.add_offset = add_offset;
      write_tile<T>(panel, rows.rows, kWidth, count, finish);
    }
  }

  // Rows times the weight are values under the kernel at each pixel: they are added up in the linear result.
  void scatter(const FewRows<T>& rows) const {
    const bool together = p.taps_together;
    const std::int64_t values = std::int64_t(channels) * taps, row = layout.columns_row;
    const auto segment = [&](const T* weight, std::int64_t count, T* result) {
      for (std::int64_t k = 0; k < count; k += kWidth)
        products(rows, weight + k, w.in, 1, int(lesser<std::int64_t>(kWidth, count - k)), {result + k, row});
    };
    const std::int64_t tap_row = together ? 0 : div_up(channels, L) * L;
    if (together) {
      segment(w.from(unit.c0, 0), values, columns);
    } else {
      for (int a = 0; a < g.kernel_h; ++a)
        for (int b = 0; b < g.kernel_w; ++b)
          segment(w.from(unit.c0, 0) + a * w.row + b * w.col, channels, columns + (a * g.kernel_w + b) * tap_row);
    }
    std::memset(static_cast<void*>(linear), 0, sizeof(T) * g.batch * g.out_h * g.out_w * channels);
    pixels([&](std::int64_t i, std::int64_t n, std::int64_t r, std::int64_t x) {
      const T* of_tap = columns + i * row;
      std::int64_t step = tap_row;
      if (together) {
        transpose<T>(of_tap, taps, channels, taps, turned, channels);
        of_tap = turned, step = channels;
      }
      for (int a = 0; a < g.kernel_h; ++a)
        for (int b = 0; b < g.kernel_w; ++b, of_tap += step) {
          const std::int64_t h = r * g.stride_h - g.pad_h + a, v = x * g.stride_w - g.pad_w + b;
          if (h < 0 || h >= g.out_h || v < 0 || v >= g.out_w) continue;
          T* const sum = linear + ((n * g.out_h + h) * g.out_w + v) * channels;
          for_lanes<T>(channels, [&](std::int64_t c, int k) {
            store_n<T>(sum + c, load_n<T>(sum + c, k) + load_n<T>(of_tap + c, k), k);
          });
        }
    });
  }

  void run(std::int64_t index) const {
    const Pixels<const T> in = input();
    pixels([&](std::int64_t i, std::int64_t n, std::int64_t r, std::int64_t x) { in_offset[i] = in.at(n, r, x); });
    const FewRows<T> rows{in.data, in_offset, int(g.batch * g.in_h * g.in_w), g.in_c};
    scatters(p) ? scatter(rows) : finish_pixels(rows);
    finish_unit(call, index, unit, to, linear, scratch + layout.before_linear() + layout.linear, true);
  }
};

// Values of scratch for `gather_columns`.
template <class T>
std::int64_t columns_scratch(const Source& s, const Geometry& g) {
  const std::int64_t taps = std::int64_t(g.kernel_h) * g.kernel_w;
  return taps * g.in_c + s.base.w * g.in_c * g.kernel_h + RowScratch<T>::values(s.row_values());
}
// What lies under the kernel at each pixel of output row `row` of image n, pixel after pixel: for each channel its
// taps, where they are together, else for each tap its channels.
template <class T>
void gather_columns(const Source& s, const Geometry& g, std::int64_t n, std::int64_t row, bool taps_together,
                    T* columns, T* scratch) {
  const std::int64_t c = g.in_c, top = row * g.stride_h - g.pad_h;
  const int taps = g.kernel_h * g.kernel_w;
  T *const turned = scratch, *const slab = turned + taps * c;
  const View& v = s.base;
  Pixels<const T> from;  // row `top`, whether it is there or not
  if (s.plain() && v.dtype == kDType<T> && (v.sc == 1 || c == 1)) {
    from = {static_cast<const T*>(v.data) + n * v.sn + top * v.sh, 0, v.sh, v.sw};
  } else {
    from = {slab, 0, g.in_w * c, c};
    stage<T>(s, n, top, g.kernel_h, 0, g.in_w, c, slab,
             RowScratch<T>::at(slab + g.kernel_h * g.in_w * c, s.row_values()));
  }
  for (std::int64_t x = 0; x < g.out_w; ++x, columns += taps * c) {
    T* const to = taps_together ? turned : columns;
    const std::int64_t left = x * g.stride_w - g.pad_w, first = left < 0 ? lesser<std::int64_t>(-left, g.kernel_w) : 0,
                       last = greater(first, lesser<std::int64_t>(g.kernel_w, g.in_w - left));
    for (int a = 0; a < g.kernel_h; ++a) {
      T* const line = to + a * g.kernel_w * c;
      if (top + a < 0 || top + a >= g.in_h) {
        std::memset(static_cast<void*>(line), 0, sizeof(T) * g.kernel_w * c);
        continue;
      }
      std::memset(static_cast<void*>(line), 0, sizeof(T) * first * c);
      std::memset(static_cast<void*>(line + last * c), 0, sizeof(T) * (g.kernel_w - last) * c);
      const T* const pixels = from.data + a * from.row + left * from.col;
      if (from.col == c)
        std::memcpy(line + first * c, pixels + first * c, sizeof(T) * (last - first) * c);
      else
        for (std::int64_t b = first; b < last; ++b) std::memcpy(line + b * c, pixels + b * from.col, sizeof(T) * c);
    }
    if (taps_together) transpose<T>(turned, c, taps, c, columns, taps);
  }
}

}  // namespace lmser::LMSER_ISA
