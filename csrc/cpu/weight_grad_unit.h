// One unit of a weight gradient: sum over pixels of (values under the taps) x (output channels).
#pragma once

#include "conv_unit.h"
#include "filtered_rows_grad.h"
#include "padding.h"

namespace lmser::LMSER_ISA {

template <class T>
bool direct_big(const WeightGradCall<T>& call) {
  const Geometry& g = call.plan->geometry;
  const View& v = call.big.base;
  if (call.plan->winograd.m || !call.big.plain() || v.dtype != kDType<T> || (v.sc != 1 && v.c != 1)) return false;
  if (call.plan->winograd.along_rows) return true;  // which looks at the padding itself
  if (g.kernel_w > 1 && v.sw != v.c) return false;
  return g.pad_h == 0 && g.pad_w == 0;
}
template <class T>
bool direct_small(const WeightGradCall<T>& call) {
  const View& v = call.small.base;
  const Geometry& g = call.plan->geometry;
  // Columns of a wide side are read once for every band: where there are many, they had better lie together.
  const bool near = one_column<T>(*call.plan) || g.kernel_h * g.kernel_w == 1;
  return !call.plan->winograd.m && near && call.small.plain() && v.dtype == kDType<T> && v.sc == 1 &&
         v.c % kLanes<T> == 0;
}

template <class T>
struct WeightGradScratch {
  std::int64_t big = 0, small = 0, line = 0, rows = 0, winograd = 0;
  explicit WeightGradScratch(const WeightGradCall<T>& call) {
    const WeightGradPlan& p = *call.plan;
    if (!direct_big(call)) big = p.big_values;
    if (!direct_small(call)) small = p.small_values;
    if (!p.winograd.m && !one_column<T>(p)) line = p.geometry.out_w * p.padded_out_c;
    rows = RowScratch<T>::values(greater(call.big.base.w * call.big.base.c, call.small.base.w * call.small.base.c));
    if (p.winograd.m && !p.round_units) winograd = p.all_points(p.unit_images * p.tile_rows * p.winograd.cols);
    if (p.winograd.along_rows) winograd = PairGradScratch(p).values();
    for (std::int64_t* x : {&big, &small, &line, &rows, &winograd}) *x = div_up(*x, 64) * 64;
  }
  std::int64_t values() const { return big + small + line + rows + winograd; }
};
template <class T>
std::int64_t weight_grad_scratch(const WeightGradCall<T>& call) {
  return WeightGradScratch<T>(call).values();
}

// Adds the sums of channels over pixels: of some of them in T, of all in double.
template <class T>
void add_channel_sums(const T* data, std::int64_t images, std::int64_t rows, std::int64_t cols, std::int64_t image,
                      std::int64_t row, std::int64_t col, std::int64_t channels, double* to) {
  constexpr std::int64_t kPixels = 64;
  if (cols == 1) cols = rows, rows = 1, col = row;
  for (std::int64_t n = 0; n < images; ++n)
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t x0 = 0; x0 < cols; x0 += kPixels) {
        const T* const from = data + n * image + r * row + x0 * col;
        const std::int64_t count = lesser(kPixels, cols - x0);
        for_lanes<T>(channels, [&](std::int64_t c, int lanes) {
          Vec<T> sum{};
          for (std::int64_t x = 0; x < count; ++x) sum = sum + load_n<T>(from + x * col + c, lanes);
          for (int i = 0; i < lanes; ++i) to[c + i] += double(sum[i]);
        });
      }
}

// One tile: a band's height of the sum, a column's width. `big` is the first value under the band's kernel row, or of
// its distinct weight.
template <class T>
LMSER_HD void gradient_band(const WeightGradPlan& p, GradientTile<T>& t, std::int64_t band, const T* big, int v,
                            int width, T* sum) {
  const std::int64_t length = p.sum_length, bands = p.bands_per_row, i = band / bands, b = band % bands,
                     k = length * b / bands;
  t.big = big + k;
  t.sum = sum + (i * length + k) * p.padded_out_c + v * kLanes<T>;
  gradient_fn<T>(int(length * (b + 1) / bands - k), width)(t);
}

// Over the points of `pairs`, each `all_points` behind the one before.
template <class F>
void winograd_products(const WeightGradPlan& p, std::int64_t pairs, const float* points, const TileOrder& order,
                       std::int64_t band0, std::int64_t band1, float* sum, bool fresh) {
  const std::int64_t tiles = order.count();
  const float *const big = points, *const small = points + p.big_points(tiles);
  GradientTile<float> t{};
  t.fresh = fresh;
  t.images = pairs, t.big_image = t.small_image = p.all_points(tiles);
  t.big_col = p.geometry.in_c, t.sum_stride = p.padded_out_c;
  t.big_row = p.winograd.pitch(tiles * t.big_col), t.small_row = p.winograd.pitch(tiles * p.padded_out_c);
  for (std::int64_t band = band0; band < band1; ++band) {
    const int d = int(band / p.bands_per_row) / F::distinct, e = int(band / p.bands_per_row) % F::distinct;
    const std::int64_t before = F::rows_before(d, e);
    const TileRange range = F::stride1 ? order.at_point(d, e) : TileRange{0, tiles};
    t.rows = F::copies(d) * F::copies(e), t.cols = range.count();
    for_columns<float>(p, [&](int v, int width) {
      t.small_col = width * kLanes<float>;
      t.small = small + before * t.small_row + v * kLanes<float> * tiles + range.begin * t.small_col;
      gradient_band<float>(p, t, band, big + before * t.big_row + range.begin * t.big_col, v, width, sum);
    });
  }
}

// A unit's sides to the points of its tiles, staged in `scratch` before.
inline void grad_points(const WeightGradCall<float>& call, std::int64_t unit, const TileOrder& order, float* points,
                        float* scratch) {
  const WeightGradPlan& p = *call.plan;
  const Geometry& g = p.geometry;
  const WinogradGrid& w = p.winograd;
  const WeightGradScratch<float> layout(call);
  float *const big = scratch, *const small = big + layout.big, *const row_memory = small + layout.small;
  const std::int64_t n0 = unit / p.row_units * p.unit_images, n1 = lesser(n0 + p.unit_images, g.batch),
                     t0 = unit % p.row_units * p.tile_rows, t1 = lesser(t0 + p.tile_rows, w.rows),
                     rows = (t1 - t0 - 1) * w.in_step + w.window;
  const std::int64_t big_image = rows * p.slab_cols * g.in_c,
                     small_image = (t1 - t0) * w.m * w.cols * w.m * p.padded_out_c;
  const auto big_rows = RowScratch<float>::at(row_memory, call.big.base.w * call.big.base.c);
  const auto small_rows = RowScratch<float>::at(row_memory, call.small.base.w * call.small.base.c);
  for (std::int64_t n = n0; n < n1; ++n) {
    stage<float>(call.big, n, w.in0_h + t0 * w.in_step, rows, w.in0_w, p.slab_cols, g.in_c, big + (n - n0) * big_image,
                 big_rows);
    stage<float>(call.small, n, t0 * w.m, (t1 - t0) * w.m, 0, w.cols * w.m, p.padded_out_c,
                 small + (n - n0) * small_image, small_rows);
  }
  if (call.channels)
    add_channel_sums<float>(small, n1 - n0, (t1 - t0) * w.m, w.cols * w.m, small_image, w.cols * w.m * p.padded_out_c,
                            p.padded_out_c, g.out_c, call.channels);
  with_filter(w, [&]<class F>() {
    winograd_grad_transform<F>(p, order, p.tile_row(unit), big, small, n1 - n0, t1 - t0, points);
  });
}
inline void grad_products(const WeightGradCall<float>& call, std::int64_t pairs, std::int64_t band0, std::int64_t band1,
                          const TileOrder& order, const float* points) {
  with_filter(call.plan->winograd, [&]<class F>() {
    winograd_products<F>(*call.plan, pairs, points, order, band0, band1, call.sum, call.fresh);
  });
}

// Of `rows` rows of pixels from `first` on those for which a value under one of the band's taps is not of the padding.
struct PixelRange {
  std::int64_t row, rows, col, cols;
};
inline PixelRange pixels_inside(const WeightGradPlan& p, std::int64_t band, std::int64_t first, std::int64_t rows) {
  const Geometry& g = p.geometry;
  const std::int64_t bands = p.bands_per_row, i = band / bands, b = band % bands,
                     tap0 = p.sum_length * b / bands / g.in_c, tap1 = (p.sum_length * (b + 1) / bands - 1) / g.in_c;
  const OutputRange down = outputs_inside(i, i, g.stride_h, g.pad_h, g.in_h, g.out_h),
                    across = outputs_inside(tap0, tap1, g.stride_w, g.pad_w, g.in_w, g.out_w);
  const std::int64_t row = between(down.first - first, 0, rows);
  return {row, between(down.last - first, row, rows) - row, across.first, across.last - across.first};
}

template <class T>
void weight_grad_unit(const WeightGradCall<T>& call, std::int64_t unit, std::int64_t band0, std::int64_t band1,
                      T* scratch) {
  const WeightGradPlan& p = *call.plan;
  const Geometry& g = p.geometry;
  const WeightGradScratch<T> layout(call);
  T* const big_memory = scratch;
  T* const small_memory = scratch + layout.big;
  T* const row_memory = small_memory + layout.small + layout.line;
  const std::int64_t n0 = unit / p.row_units * p.unit_images, n1 = lesser(n0 + p.unit_images, g.batch);
  const std::int64_t r0 = unit % p.row_units * p.unit_rows, r1 = lesser(r0 + p.unit_rows, g.out_h);

  if constexpr (sizeof(T) == 4) {
    if (p.winograd.m) {
      const TileOrder order(p.winograd, p.tile_row(unit), p.tile_row(unit + 1));
      float* const points = row_memory + layout.rows;
      grad_points(call, unit, order, points, scratch);
      grad_products(call, 1, band0, band1, order, points);
      return;
    }
  }
  GradientTile<T> t{};
  const T* big;
  std::int64_t kernel_row;
  if (direct_big(call)) {
    const View& v = call.big.base;
    t.big_image = v.sn, t.big_row = v.sh * g.stride_h, t.big_col = v.sw * g.stride_w, kernel_row = v.sh;
    big = static_cast<const T*>(v.data) + n0 * v.sn + (p.winograd.along_rows ? 0 : r0 * t.big_row);
  } else {
    const std::int64_t rows = (r1 - r0 - 1) * g.stride_h + g.kernel_h, cols = p.slab_cols;
    kernel_row = cols * g.in_c;
    t.big_image = rows * kernel_row, t.big_row = kernel_row * g.stride_h, t.big_col = g.in_c * g.stride_w;
    const auto row_scratch = RowScratch<T>::at(row_memory, call.big.base.w * call.big.base.c);
    for (std::int64_t n = n0; n < n1; ++n)
      stage<T>(call.big, n, r0 * g.stride_h - g.pad_h, rows, -std::int64_t(g.pad_w), cols, g.in_c,
               big_memory + (n - n0) * t.big_image, row_scratch);
    big = big_memory;
  }
  const std::int64_t rows = r1 - r0, all = (n1 - n0) * rows * g.out_w;
  double* const channels = band0 == 0 ? call.channels : nullptr;  // of tasks that share a unit the first one's
  if (channels && call.channels_of_big)
    add_channel_sums<T>(big, n1 - n0, rows, g.out_w, t.big_image, t.big_row, t.big_col, g.in_c, channels);
  double* const small_channels = call.channels_of_big ? nullptr : channels;
  const T* small = small_memory;
  if (direct_small(call)) {
    const View& v = call.small.base;
    t.small_image = v.sn, t.small_row = v.sh, t.small_col = v.sw;
    small = static_cast<const T*>(v.data) + n0 * v.sn + r0 * v.sh;
    if (small_channels) add_channel_sums<T>(small, n1 - n0, rows, g.out_w, v.sn, v.sh, v.sw, g.out_c, small_channels);
  } else {
    const auto row_scratch = RowScratch<T>::at(row_memory, call.small.base.w * call.small.base.c);
    const std::int64_t row_values = g.out_w * p.padded_out_c;
    T* const line = small_memory + layout.small;
    for (std::int64_t n = n0; n < n1; ++n) {
      if (one_column<T>(p)) {
        T* const to = small_memory + (n - n0) * rows * row_values;
        stage<T>(call.small, n, r0, rows, 0, g.out_w, p.padded_out_c, to, row_scratch);
        if (small_channels)
          add_channel_sums<T>(to, 1, rows, g.out_w, 0, row_values, p.padded_out_c, g.out_c, small_channels);
        continue;
      }
      for (std::int64_t r = r0; r < r1; ++r) {
        stage<T>(call.small, n, r, 1, 0, g.out_w, p.padded_out_c, line, row_scratch);
        if (small_channels) add_channel_sums<T>(line, 1, 1, g.out_w, 0, 0, p.padded_out_c, g.out_c, small_channels);
        const std::int64_t before = ((n - n0) * rows + r - r0) * g.out_w;
        for_columns<T>(p, [&](int v, int width) {
          const std::int64_t values = width * kLanes<T>;
          T* to = small_memory + v * kLanes<T> * all + before * values;
          const T* from = line + v * kLanes<T>;
          for (std::int64_t x = 0; x < g.out_w; ++x, to += values, from += p.padded_out_c)
            for (int i = 0; i < width; ++i) store<T>(to + i * kLanes<T>, load<T>(from + i * kLanes<T>));
        });
      }
    }
  }

  // Pixels of which a column and what lies under a band stay in the first-level cache; more where the sum, which every
  // such piece reads and writes, is large.
  t.sum_stride = p.padded_out_c;
  const std::int64_t wanted = p.sum_values * std::int64_t(sizeof(T)) > (256 << 10) ? 512 : 192;
  const std::int64_t images =
                         lesser(n1 - n0, greater<std::int64_t>(1, wanted / greater<std::int64_t>(1, rows * g.out_w))),
                     piece = images > 1
                                 ? rows
                                 : lesser(rows, greater<std::int64_t>(1, wanted / greater<std::int64_t>(1, g.out_w)));
  const bool direct = direct_small(call);
  if constexpr (sizeof(T) == 4)
    if (p.winograd.along_rows) {
      const bool lies = direct_big(call);
      const PairGradSides sides{{big, t.big_image, kernel_row, t.big_col / g.stride_w},
                                {small, t.small_image, t.small_row, t.small_col},
                                lies ? 0 : r0 * g.stride_h - g.pad_h,
                                lies ? 0 : -std::int64_t(g.pad_w),
                                !direct,
                                all};
      PairGrad sum(p, sides, n1 - n0, r0, rows, row_memory + layout.rows);
      sum.points();
      for (std::int64_t n = 0; n < n1 - n0; n += images)
        for (std::int64_t r = 0; r < rows; r += piece)
          sum.products(n, lesser(images, n1 - n0 - n), r, lesser(piece, rows - r), band0, band1, call.sum,
                       call.fresh && n == 0 && r == 0);
      return;
    }
  for (std::int64_t n = 0; n < n1 - n0; n += images)
    for (std::int64_t r = 0; r < rows; r += piece)
      for_columns<T>(p, [&](int v, int width) {
        GradientTile<T> part = t;
        part.fresh = call.fresh && n == 0 && r == 0;
        part.images = lesser(images, n1 - n0 - n), part.rows = lesser(piece, rows - r), part.cols = g.out_w;
        if (!direct) {
          part.small_col = width * kLanes<T>, part.small_row = g.out_w * part.small_col;
          part.small_image = rows * part.small_row;
        }
        part.small = small + v * kLanes<T> * (direct ? 1 : all) + n * part.small_image + r * part.small_row;
        const T* const from = big + n * t.big_image + r * t.big_row;
        GradientTile<T> tile = in_one_run(part);
        for (std::int64_t band = band0; band < band1; ++band) {
          const T* under = from + band / p.bands_per_row * kernel_row;
          if (p.inside) {
            const PixelRange range = pixels_inside(p, band, r0 + r, part.rows);
            tile = part;
            tile.rows = range.rows, tile.cols = range.cols;
            tile.small += range.row * part.small_row + range.col * part.small_col;
            under += range.row * part.big_row + range.col * part.big_col;
            tile = in_one_run(tile);
          }
          gradient_band<T>(p, tile, band, under, v, width, call.sum);
        }
      });
}

}  // namespace lmser::LMSER_ISA
