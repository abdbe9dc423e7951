// One unit of a convolution or transposed convolution: stage its input once into a zero-padded slab in the
// second-level cache, run the register tiles over it, finish the neuron (bias, add, activation) in the same pass.
#pragma once

#include "ahead.h"
#include "epilogue.h"
#include "few_rows.h"
#include "kernels.h"
#include "planar_unit.h"
#include "rows.h"
#include "tile.h"
#include "winograd_unit.h"

namespace lmser::LMSER_ISA {

LMSER_HD std::int64_t div_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
template <class X>
constexpr X lesser(X a, X b) {
  return a < b ? a : b;
}
template <class X>
constexpr X greater(X a, X b) {
  return a > b ? a : b;
}

// The input is used where it lies: channels-last values of T without padding, transform or conversion.
template <class T>
bool direct_source(const ConvCall<T>& call) {
  const ConvPlan& p = *call.plan;
  const View& v = call.source.base;
  if (p.winograd.m || p.planar || !call.source.plain() || v.dtype != kDType<T> || (v.sc != 1 && v.c != 1)) return false;
  for (const Phase& ph : p.phases) {
    if (ph.taps_w == 0) continue;
    if (ph.taps_w > 1 && v.sw != v.c) return false;
    if (ph.off_h < 0 || ph.off_w < 0) return false;
    if (ph.off_h + (ph.rows - 1) * p.in_step_h + ph.taps_h > v.h) return false;
    if (ph.off_w + (ph.cols - 1) * p.in_step_w + ph.taps_w > v.w) return false;
  }
  return true;
}
LMSER_HD bool same_layout(const View& a, const View& b) {
  return a.dtype == b.dtype && a.sn == b.sn && a.sc == b.sc && a.sh == b.sh && a.sw == b.sw;
}
inline bool repeats(const Sink& s) { return s.upsample_h != 1 || s.upsample_w != 1 || s.scale != 1; }
// The output is written where it lies, straight from the tile; repeated by minimal filtering alone.
template <class T>
bool direct_sink(const ConvCall<T>& call) {
  const Sink& s = call.sink;
  const Geometry& g = call.plan->geometry;
  if (s.gate || (repeats(s) && !call.plan->winograd.m)) return false;
  if (s.out.dtype != kDType<T> || (s.out.sc != 1 && s.out.c != 1)) return false;
  if (s.out.h != g.out_h * s.upsample_h || s.out.w != g.out_w * s.upsample_w) return false;
  return (!s.add || same_layout(s.add, s.out)) && (!s.drive || same_layout(s.drive, s.out));
}

// Of a block: kernel rows whose weights stay in the second-level cache together.
template <class T>
std::int64_t kernel_rows_together(std::int64_t length, std::int64_t width, int rows) {
  constexpr std::int64_t kWeights = 128 << 10;
  const std::int64_t row = length * width * std::int64_t(sizeof(T));
  if (row * rows <= kWeights + kWeights / 4) return greater(rows, 1);
  return div_up(rows, div_up(rows, greater<std::int64_t>(1, kWeights / row)));
}

// Scratch of a unit, in values of T: staged slab | rows for staging | pixel offsets | linear result | output rows.
template <class T>
struct ConvScratch {
  std::int64_t slab = 0, line = 0, rows = 0, offsets = 0, linear = 0, out_row = 0, winograd = 0, sums = 0;
  explicit ConvScratch(const ConvCall<T>& call) {
    const ConvPlan& p = *call.plan;
    const Geometry& g = p.geometry;
    if (!direct_source(call)) {
      slab = p.slab_values;
      rows = RowScratch<T>::values(call.source.base.w * call.source.base.c);
      if (p.planar) line = p.slab_cols * g.in_c;
    }
    const std::int64_t pixels =
        p.unit_images * (div_up(p.unit_rows, p.out_step_h) + 1) * (div_up(g.out_w, p.out_step_w) + 1);
    if (p.winograd.m)
      winograd = WinogradScratch(p).values();
    else
      offsets = 2 * (pixels + 16) * std::int64_t(sizeof(std::int64_t)) / std::int64_t(sizeof(T));
    for (const Phase& ph : p.phases) {
      const std::int64_t width = std::int64_t(p.tile.max_vectors) * p.tile.lanes;
      if (kernel_rows_together<T>(ph.taps_w * g.in_c, width, ph.taps_h) < ph.taps_h)
        sums = greater(sums, p.unit_images * (div_up(p.unit_rows, p.out_step_h) + 1) * ph.cols * width);
    }
    if (!direct_sink(call)) {
      linear = p.unit_images * p.unit_rows * g.out_w * g.out_c;
      out_row = 3 * greater(call.sink.out.w, g.out_w * call.sink.upsample_w) * g.out_c;
    }
    for (std::int64_t* x : {&slab, &line, &rows, &offsets, &linear, &out_row, &winograd, &sums})
      *x = div_up(*x, 64) * 64;
  }
  std::int64_t values() const { return slab + line + rows + offsets + linear + out_row + winograd + sums; }
};

template <class T>
inline constexpr int kTileValues =
    kLanes<T> * greater(LMSER_REGISTERS, greater(greater(kTilePixels[1], 2 * kTilePixels[2]), 3 * kTilePixels[3])) +
    kLanes<T>;

// Of few channels: pixels x channels of the widest planar tile, and whole registers behind them.
template <class T>
inline constexpr int kFewValues = (LMSER_REGISTERS + 1) * kLanes<T>;

template <class T>
struct Finish {
  const T* bias;
  Activation activation;
  T slope;
};

// What a tile will read and write outside the caches is fetched while its products run.
template <class T>
LMSER_HD void prefetch_tile(const std::int64_t* offset, int pixels, int channels, T* out, const T* add, T* drive) {
  constexpr int kLine = 64 / sizeof(T);
  for (int m = 0; m < pixels; ++m)
    for (int c = 0; c < channels; c += kLine) {
      __builtin_prefetch(out + offset[m] + c, 1);
      if (add) __builtin_prefetch(add + offset[m] + c, 0);
      if (drive) __builtin_prefetch(drive + offset[m] + c, 1);
    }
}

// From the tile to memory: one pixel row at a time, whole registers then the remaining channels.
template <class T>
void write_tile(const T* tile, int pixels, int tile_stride, int channels, const std::int64_t* offset, T* out,
                const T* add, T* drive, const Finish<T>& finish) {
  with_activation(finish.activation, [&]<Activation A>() {
    for (int m = 0; m < pixels; ++m) {
      const T* src = tile + m * tile_stride;
      const std::int64_t at = offset[m];
      for_lanes<T>(channels, [&](std::int64_t i, int k) {
        const Vec<T> z = load<T>(src + i);  // the tile holds whole registers
        Vec<T> v = z;
        if (finish.bias) v = v + load_n<T>(finish.bias + i, k);
        if (add) v = v + load_n<T>(add + at + i, k);
        if (drive) store_n<T>(drive + at + i, z, k);  // may lie where `add` does
        store_n<T>(out + at + i, act<A, T>(v, finish.slope), k);
      });
    }
  });
}

// The sink restricted to channels [c0, c1).
template <class T>
Sink channels_of(Sink s, std::int64_t c0, std::int64_t c1) {
  for (View* v : {&s.out, &s.drive, &s.add, &s.gate}) {
    if (!*v) continue;
    const std::int64_t bytes = v->dtype == DType::f64 ? 8 : v->dtype == DType::f32 ? 4 : 2;
    v->data = static_cast<char*>(v->data) + bytes * v->sc * c0;
    v->c = c1 - c0;
  }
  if (s.bias) s.bias = static_cast<const T*>(s.bias) + c0;
  return s;
}

// The linear rows of a unit through upsampling, add, bias, activation and gate into the output.
template <class T>
void flush_rows(const Sink& s, std::int64_t linear_h, std::int64_t linear_w, std::int64_t n, std::int64_t r0,
                std::int64_t r1, const T* linear, T* scratch) {
  const std::int64_t c = s.out.c, wide = linear_w * s.upsample_w, row_size = greater(s.out.w, wide) * c;
  T *row = scratch, *other = scratch + row_size, *gate_row = scratch + 2 * row_size;
  const std::int64_t tail = (s.out.w - wide) * c;
  for (std::int64_t r = r0; r < r1; ++r) {
    const T* src = linear + (r - r0) * linear_w * c;
    for (int up = 0; up < s.upsample_h; ++up) {
      const std::int64_t h = r * s.upsample_h + up;
      for (std::int64_t x = 0; x < linear_w; ++x)
        for (int e = 0; e < s.upsample_w; ++e)
          for (std::int64_t k = 0; k < c; ++k) row[(x * s.upsample_w + e) * c + k] = src[x * c + k] * T(s.scale);
      const T* add = s.add ? read_row<T>(s.add, n, h, other) : nullptr;
      if (s.drive) {
        if (add && add != other && s.add.data == s.drive.data) {  // one memory: read before it is overwritten
          std::memcpy(other, add, sizeof(T) * wide * c);
          add = other;
        }
        write_row<T>(s.drive, n, h, row);
      }
      if (s.bias) {
        const T* bias = static_cast<const T*>(s.bias);
        for (std::int64_t x = 0; x < wide; ++x)
          for (std::int64_t k = 0; k < c; ++k) row[x * c + k] += bias[k];
      }
      const T* gate = s.gate ? read_row<T>(s.gate, n, h, gate_row) : nullptr;
      with_activation(s.activation, [&]<Activation A>() {
        for_lanes<T>(wide * c, [&](std::int64_t i, int k) {
          Vec<T> v = load_n<T>(row + i, k);
          if (add) v = v + load_n<T>(add + i, k);
          v = act<A, T>(v, T(s.slope));
          if (gate) v = v * (load_n<T>(gate + i, k) > T(0) ? splat<T>(T(1)) : splat<T>(T(s.gate_slope)));
          store_n<T>(row + i, v, k);
        });
      });
      if (tail > 0) std::memset(row + wide * c, 0, sizeof(T) * tail);
      write_row<T>(s.out, n, h, row);
    }
  }
  if (r1 == linear_h) {
    std::memset(row, 0, sizeof(T) * s.out.w * c);
    for (std::int64_t h = linear_h * s.upsample_h; h < s.out.h; ++h) write_row<T>(s.out, n, h, row);
  }
}

// The input of this thread's next unit, which nothing else would fetch before it is staged.
template <class T>
Ahead input_ahead(const ConvCall<T>& call, std::int64_t unit, std::int64_t images, std::int64_t rows, int blocks) {
  const ConvPlan& p = *call.plan;
  const View& v = call.source.base;
  const std::int64_t next = (unit + call.tasks) / p.block_splits;
  if (p.winograd.m || unit + call.tasks >= p.units || v.sc != 1 || v.sw != v.c || v.sh != v.w * v.c) return {};
  if (p.unit_images > 1 && v.sn != v.h * v.sh) return {};  // what lies between images is not needed
  const std::int64_t value = v.dtype == DType::f64 ? 8 : v.dtype == DType::f32 ? 4 : 2;
  const std::int64_t r0 = next % p.row_units * p.unit_rows;
  const RowSpan span = input_rows(p, r0, lesser(r0 + p.unit_rows, p.geometry.out_h));
  const std::int64_t pool = call.source.pool_h;
  const std::int64_t first = greater<std::int64_t>(span.first, 0) * pool, last = lesser((span.last + 1) * pool, v.h);
  const std::int64_t image = next / p.row_units * p.unit_images;
  std::int64_t bytes = (last - first) * v.sh * value;
  if (p.unit_images > 1) bytes = lesser(p.unit_images, v.n - image) * v.sn * value;
  const std::int64_t pixels = images * rows * p.geometry.out_w,
                     tile = p.planar ? planar_width<T>(int(p.geometry.out_c)) * kLanes<T>
                            : p.dot  ? greater<std::int64_t>(1, kLanes<T> / p.geometry.out_c)
                                     : p.tile.pixels,
                     tiles = greater<std::int64_t>(1, pixels / tile * blocks);
  return {static_cast<const char*>(v.data) + value * (image * v.sn + first * v.sh), bytes, tiles};
}

template <class T>
std::int64_t pixel_group(const ConvPlan& p, const Phase& ph, std::int64_t pixels, int blocks) {
  constexpr std::int64_t kInput = 16 << 10, kWeights = 160 << 10;
  const std::int64_t depth = std::int64_t(ph.taps_h) * ph.taps_w * p.geometry.in_c;
  const std::int64_t block = std::int64_t(p.tile.max_vectors) * p.tile.lanes * depth * sizeof(T);
  if (blocks == 1 || depth == 0 || blocks * block > kWeights) return greater<std::int64_t>(pixels, 1);
  const std::int64_t pixel = ph.taps_h * p.in_step_w * p.geometry.in_c * std::int64_t(sizeof(T));
  constexpr std::int64_t kStep = 2 * kTilePixels[1];
  return greater<std::int64_t>(1, kInput / pixel / kStep) * kStep;
}

template <class T>
std::int64_t conv_scratch(const ConvCall<T>& call) {
  return ConvScratch<T>(call).values();
}

template <class T>
bool conv_unit(const ConvCall<T>& call, std::int64_t unit, T* scratch) {
  const ConvPlan& p = *call.plan;
  const Geometry& g = p.geometry;
  const Source& in = call.source;
  const Sink& out = call.sink;
  const ConvScratch<T> layout(call);
  T* const slab_memory = scratch;
  T* const line = slab_memory + layout.slab;
  T* const row_memory = line + layout.line;
  auto* const in_offset = reinterpret_cast<std::int64_t*>(row_memory + layout.rows);
  auto* const out_offset = in_offset + layout.offsets * sizeof(T) / sizeof(std::int64_t) / 2;
  T* const linear = row_memory + layout.rows + layout.offsets;
  T* const out_row = linear + layout.linear;
  T* const sums = out_row + layout.out_row + layout.winograd;

  const int split = int(unit % p.block_splits);
  const std::int64_t pixel_unit = unit / p.block_splits;
  const int block0 = int(p.blocks.size() * split / p.block_splits),
            block1 = int(p.blocks.size() * (split + 1) / p.block_splits);
  const std::int64_t n0 = pixel_unit / p.row_units * p.unit_images, n1 = lesser(n0 + p.unit_images, g.batch);
  const std::int64_t from_row = pixel_unit % p.row_units * p.unit_rows + p.winograd.out0_h;
  const std::int64_t r0 = greater<std::int64_t>(from_row, 0), r1 = lesser(from_row + p.unit_rows, g.out_h);

  const bool direct_in = direct_source(call), direct_out = direct_sink(call);
  const std::int64_t c0 = p.blocks[block0].channel;
  const std::int64_t c1 = block1 < int(p.blocks.size()) ? p.blocks[block1].channel : g.out_c;
  const RowSpan span = input_rows(p, r0, r1);
  const T* slab;
  std::int64_t slab_image, slab_row, slab_col;
  if (direct_in) {
    slab_image = in.base.sn, slab_row = in.base.sh, slab_col = in.base.sw;
    slab = static_cast<const T*>(in.base.data) + n0 * slab_image + span.first * slab_row + p.slab_w0 * slab_col;
  } else {
    const std::int64_t rows = span.last - span.first + 1;
    slab_col = g.in_c, slab_row = p.slab_cols * slab_col, slab_image = rows * slab_row;
    const auto row_scratch = RowScratch<T>::at(row_memory, in.base.w * in.base.c);
    if (p.planar) slab_col = 1, slab_row = g.in_c * p.planar_pitch, slab_image = rows * slab_row;
    for (std::int64_t n = n0; n < n1; ++n) {
      T* const to = slab_memory + (n - n0) * slab_image;
      if (p.planar)
        stage_planar<T>(in, n, span.first, rows, p.slab_w0, p.slab_cols, p.planar_pitch, to, line, row_scratch);
      else
        stage<T>(in, n, span.first, rows, p.slab_w0, p.slab_cols, g.in_c, to, row_scratch);
    }
    slab = slab_memory;
  }

  T* dst;
  std::int64_t dst_image, dst_row, dst_col;
  const T* add = nullptr;
  T* drive = nullptr;
  if (direct_out) {
    dst_image = out.out.sn, dst_row = out.out.sh, dst_col = out.out.sw;
    const std::int64_t first = n0 * dst_image + r0 * out.upsample_h * dst_row;
    dst = static_cast<T*>(out.out.data) + first;
    if (out.add) add = static_cast<const T*>(out.add.data) + first;
    if (out.drive) drive = static_cast<T*>(out.drive.data) + first;
  } else {
    dst_col = c1 - c0, dst_row = g.out_w * dst_col, dst_image = (r1 - r0) * dst_row;
    dst = linear - c0;
  }

  bool finite = true;
  if constexpr (sizeof(T) == 4) {
    if (p.winograd.m) {
      const WinogradGrid& w = p.winograd;
      const WinogradSlab from{slab, n1 - n0, slab_image, slab_row, slab_col};
      const WinogradOut to{dst,
                           add,
                           drive,
                           direct_out ? static_cast<const float*>(out.bias) : nullptr,
                           dst_image,
                           dst_row,
                           dst_col,
                           r0,
                           r1,
                           direct_out ? out.activation : Activation::identity,
                           float(out.slope),
                           direct_out && repeats(out),
                           out.upsample_h,
                           out.upsample_w,
                           float(out.scale)};
      const std::int64_t t0 = (from_row - w.out0_h) / w.out_step, t1 = div_up(r1 - w.out0_h, w.out_step);
      finite = with_filter(w, [&]<class F>() {
        float* const memory = out_row + layout.out_row;
        if constexpr (!F::stride1)
          if (g.transposed) return winograd_tiles<F, true>(p, call.weight, from, t0, t1, block0, block1, to, memory);
        return winograd_tiles<F, false>(p, call.weight, from, t0, t1, block0, block1, to, memory);
      });
    }
  }
  alignas(64) T tile[kTileValues<T>], planes[kFewValues<T>];
  Ahead ahead = input_ahead<T>(call, unit, n1 - n0, r1 - r0, block1 - block0);
  for (const Phase& ph : p.phases) {
    const std::int64_t q0 = div_up(greater<std::int64_t>(r0 - ph.out_h0, 0), p.out_step_h);
    const std::int64_t q1 = lesser(ph.rows, div_up(greater<std::int64_t>(r1 - ph.out_h0, 0), p.out_step_h));
    std::int64_t pixels = 0;
    for (std::int64_t n = 0; n < n1 - n0; ++n)
      for (std::int64_t q = q0; q < q1; ++q) {
        const std::int64_t from =
            n * slab_image + (ph.off_h + q * p.in_step_h - span.first) * slab_row + (ph.off_w - p.slab_w0) * slab_col;
        const std::int64_t to = n * dst_image + (ph.out_h0 + q * p.out_step_h - r0) * dst_row + ph.out_w0 * dst_col;
        for (std::int64_t x = 0; x < ph.cols; ++x, ++pixels) {
          in_offset[pixels] = ph.taps_h ? from + x * p.in_step_w * slab_col : 0;
          out_offset[pixels] = to + x * p.out_step_w * dst_col;
        }
      }
    if (pixels == 0) continue;
    const std::int64_t depth = std::int64_t(ph.taps_h) * ph.taps_w * g.in_c;
    if (p.dot) {
      const int channels = int(g.out_c);
      const Finish<T> finish = direct_out ? Finish<T>{static_cast<const T*>(out.bias), out.activation, T(out.slope)}
                                          : Finish<T>{nullptr, Activation::identity, T(0)};
      // Pixels that follow each other in memory leave as one piece, with the bias repeated for each.
      alignas(64) T repeated[kFewValues<T>];
      Finish<T> joined = finish;
      if (finish.bias) {
        for (int i = 0; i < kFewValues<T>; ++i) repeated[i] = finish.bias[i % channels];
        joined.bias = repeated;
      }
      const auto write = [&](const T* values, std::int64_t done, int m) {
        ahead.step();
        const bool joins = out_offset[done + m - 1] - out_offset[done] == (m - 1) * channels;
        if (joins)
          write_tile<T>(values, 1, 0, m * channels, out_offset + done, dst, add, drive, joined);
        else
          write_tile<T>(values, m, channels, channels, out_offset + done, dst, add, drive, finish);
      };
      if (p.planar) {
        const int most = planar_width<T>(channels);
        PlanarTile<T> args{
            nullptr, slab_row,        p.planar_pitch, ph.taps_h, ph.taps_w, g.in_c, call.weight + ph.weight_offset,
            planes,  most * kLanes<T>};
        for (std::int64_t row = 0; row < pixels; row += ph.cols)
          for (std::int64_t x = 0; x < ph.cols;) {
            const std::int64_t left = div_up(ph.cols - x, kLanes<T>), width = div_up(left, div_up(left, most));
            const int m = int(lesser<std::int64_t>(width * kLanes<T>, ph.cols - x));
            args.slab = slab + in_offset[row] + x;
            planar_fn<T>(channels, int(width))(args);
            for (int c = 0; c < channels; ++c)
              for (int i = 0; i < m; ++i) tile[i * channels + c] = planes[c * args.result_row + i];
            write(tile, row + x, m);
            x += m;
          }
        continue;
      }
      const int most = kLanes<T> / channels;
      // The last tile repeats its last pixel: the tile is cheap, and always full.
      for (std::int64_t i = pixels; i < pixels + most; ++i) in_offset[i] = in_offset[pixels - 1];
      ProductTile<T> args{slab, nullptr, ph.taps_h, slab_row, ph.taps_w * g.in_c, call.weight + ph.weight_offset, tile};
      const auto run = dot_fn<T>(channels);
      for (std::int64_t done = 0; done < pixels; done += most) {
        args.offset = in_offset + done;
        run(args);
        write(tile, done, int(lesser<std::int64_t>(most, pixels - done)));
      }
      continue;
    }
    // Pixels whose input stays in the first-level cache while all blocks go over it, where the blocks' weights stay
    // in the second; else all pixels, block after block.
    const std::int64_t group = pixel_group<T>(p, ph, pixels, block1 - block0);
    for (std::int64_t first = 0; first < pixels; first += group) {
      const std::int64_t last = lesser(first + group, pixels);
      for (int b = block0; b < block1; ++b) {
        const Block& block = p.blocks[b];
        const std::int64_t tiles = div_up(last - first, kTilePixels[block.vectors]);
        const int width = block.vectors * kLanes<T>,
                  channels = int(lesser<std::int64_t>(width, g.out_c - block.channel));
        const T* const bias = direct_out && out.bias ? static_cast<const T*>(out.bias) + block.channel : nullptr;
        const Activation activation = direct_out ? out.activation : Activation::identity;
        TileFinish<T> finish{dst + block.channel,
                             add ? add + block.channel : nullptr,
                             drive ? drive + block.channel : nullptr,
                             bias,
                             nullptr,
                             activation,
                             T(out.slope)};
        const bool whole = channels == width && in_registers(activation) && !p.unpacked;
        // Kernel rows whose weights stay in the second-level cache from one tile to the next; sums wait for the others.
        const std::int64_t length = ph.taps_w * g.in_c, step = kernel_rows_together<T>(length, width, ph.taps_h);
        const bool pieces = step < ph.taps_h;
        ProductTile<T> args{slab,     nullptr, 0,
                            slab_row, length,  call.weight + ph.weight_offset + block.weight_column * depth,
                            tile,     width};
        for (std::int64_t row = 0; row == 0 || row < ph.taps_h; row += step) {
          const bool ends = row + step >= ph.taps_h;
          args.kernel_rows = int(lesser<std::int64_t>(step, ph.taps_h - row));
          args.slab = slab + row * slab_row;
          args.weight = call.weight + ph.weight_offset + block.weight_column * depth + row * length * width;
          args.more = row > 0;
          args.finish = ends && whole ? &finish : nullptr;
          std::int64_t done = first;
          for (std::int64_t t = 0; t < tiles; ++t) {
            const int m = int(div_up(last - done, tiles - t));
            args.offset = in_offset + done;
            if (pieces) args.result = sums + (done - first) * width;
            finish.offset = out_offset + done;
            if (ends && direct_out) prefetch_tile<T>(finish.offset, m, channels, finish.out, finish.add, finish.drive);
            ahead.step();
            if (p.unpacked) {
              const WeightLayout<T>& w = call.unpacked;
              few_rows<T>(
                  {slab, args.offset, length, w.data + block.channel * w.out, w.in, w.out, channels, tile, width}, m);
            } else {
              product_fn<T>(m, block.vectors)(args);
            }
            if (ends && !whole)
              write_tile<T>(args.result, m, width, channels, finish.offset, finish.out, finish.add, finish.drive,
                            {bias, activation, T(out.slope)});
            done += m;
          }
        }
      }
    }
  }
  if (!direct_out) {
    const Sink part = channels_of<T>(out, c0, c1);
    for (std::int64_t n = n0; n < n1; ++n)
      flush_rows<T>(part, g.out_h, g.out_w, n, r0, r1, linear + (n - n0) * dst_image, out_row);
  }
  if (out.epilogue && finite)
    run_epilogue<T>(*out.epilogue, out.out, n0, n1, r0 * out.upsample_h, r1 * out.upsample_h, c0, c1, unit);
  return finite;
}

}  // namespace lmser::LMSER_ISA
