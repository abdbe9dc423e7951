// One unit of a convolution or transposed convolution: stage its input once into a zero-padded slab in the
// second-level cache, run the register tiles over it, finish the neuron (bias, add, activation) in the same pass.
#pragma once

#include "epilogue.h"
#include "kernels.h"
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
  if (p.winograd.m || !call.source.plain() || v.dtype != kDType<T> || (v.sc != 1 && v.c != 1)) return false;
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

// Scratch of a unit, in values of T: staged slab | rows for staging | pixel offsets | linear result | output rows.
template <class T>
struct ConvScratch {
  std::int64_t slab = 0, rows = 0, offsets = 0, linear = 0, out_row = 0, winograd = 0;
  explicit ConvScratch(const ConvCall<T>& call) {
    const ConvPlan& p = *call.plan;
    const Geometry& g = p.geometry;
    if (!direct_source(call)) {
      slab = p.slab_values;
      rows = RowScratch<T>::values(call.source.base.w * call.source.base.c);
    }
    const std::int64_t pixels =
        p.unit_images * (div_up(p.unit_rows, p.out_step_h) + 1) * (div_up(g.out_w, p.out_step_w) + 1);
    if (p.winograd.m)
      winograd = WinogradScratch(p).values();
    else
      offsets = 2 * (pixels + 16) * std::int64_t(sizeof(std::int64_t)) / std::int64_t(sizeof(T));
    if (!direct_sink(call)) {
      linear = p.unit_images * p.unit_rows * g.out_w * g.out_c;
      out_row = 3 * greater(call.sink.out.w, g.out_w * call.sink.upsample_w) * g.out_c;
    }
    for (std::int64_t* x : {&slab, &rows, &offsets, &linear, &out_row, &winograd}) *x = div_up(*x, 64) * 64;
  }
  std::int64_t values() const { return slab + rows + offsets + linear + out_row + winograd; }
};

template <class T>
inline constexpr int kTileValues =
    kLanes<T> * greater(greater(kTilePixels[1], 2 * kTilePixels[2]), 3 * kTilePixels[3]) + kLanes<T>;

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
  T* const row_memory = slab_memory + layout.slab;
  auto* const in_offset = reinterpret_cast<std::int64_t*>(row_memory + layout.rows);
  auto* const out_offset = in_offset + layout.offsets * sizeof(T) / sizeof(std::int64_t) / 2;
  T* const linear = row_memory + layout.rows + layout.offsets;
  T* const out_row = linear + layout.linear;

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
    for (std::int64_t n = n0; n < n1; ++n)
      stage<T>(in, n, span.first, rows, p.slab_w0, p.slab_cols, g.in_c, slab_memory + (n - n0) * slab_image,
               row_scratch);
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
      const auto run = w.m == 4   ? winograd_tiles<4, false>
                       : w.m == 3 ? (g.transposed ? winograd_tiles<3, true> : winograd_tiles<3, false>)
                                  : (g.transposed ? winograd_tiles<2, true> : winograd_tiles<2, false>);
      finite = run(p, call.weight, from, t0, t1, block0, block1, to, out_row + layout.out_row);
    }
  }
  alignas(64) T tile[kTileValues<T>];
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
      const int channels = int(g.out_c), most = kLanes<T> / channels;
      // The last tile repeats its last pixel: the tile is cheap, and always full.
      for (std::int64_t i = pixels; i < pixels + most; ++i) in_offset[i] = in_offset[pixels - 1];
      const Finish<T> finish = direct_out ? Finish<T>{static_cast<const T*>(out.bias), out.activation, T(out.slope)}
                                          : Finish<T>{nullptr, Activation::identity, T(0)};
      ProductTile<T> args{slab, nullptr, ph.taps_h, slab_row, ph.taps_w * g.in_c, call.weight + ph.weight_offset, tile};
      const auto run = dot_fn<T>(channels);
      // Pixels that follow each other in memory leave as one piece, with the bias repeated for each.
      alignas(64) T repeated[2 * kLanes<T>];
      Finish<T> joined = finish;
      if (finish.bias) {
        for (int i = 0; i < most * channels; ++i) repeated[i] = finish.bias[i % channels];
        joined.bias = repeated;
      }
      for (std::int64_t done = 0; done < pixels; done += most) {
        args.offset = in_offset + done;
        run(args);
        const int m = int(lesser<std::int64_t>(most, pixels - done));
        const bool joins = out_offset[done + m - 1] - out_offset[done] == (m - 1) * channels;
        if (joins)
          write_tile<T>(tile, 1, 0, m * channels, out_offset + done, dst, add, drive, joined);
        else
          write_tile<T>(tile, m, channels, channels, out_offset + done, dst, add, drive, finish);
      }
      continue;
    }
    for (int b = block0; b < block1; ++b) {
      const Block& block = p.blocks[b];
      const std::int64_t tiles = div_up(pixels, kTilePixels[block.vectors]);
      const int width = block.vectors * kLanes<T>, channels = int(lesser<std::int64_t>(width, g.out_c - block.channel));
      const Finish<T> finish = direct_out
                                   ? Finish<T>{out.bias ? static_cast<const T*>(out.bias) + block.channel : nullptr,
                                               out.activation, T(out.slope)}
                                   : Finish<T>{nullptr, Activation::identity, T(0)};
      ProductTile<T> args{slab,
                          nullptr,
                          ph.taps_h,
                          slab_row,
                          ph.taps_w * g.in_c,
                          call.weight + ph.weight_offset + block.weight_column * depth,
                          tile,
                          width};
      std::int64_t done = 0;
      for (std::int64_t t = 0; t < tiles; ++t) {
        const int m = int(div_up(pixels - done, tiles - t));
        args.offset = in_offset + done;
        if (direct_out)
          prefetch_tile<T>(out_offset + done, m, channels, dst + block.channel, add ? add + block.channel : nullptr,
                           drive ? drive + block.channel : nullptr);
        product_fn<T>(m, block.vectors)(args);
        write_tile<T>(tile, m, width, channels, out_offset + done, dst + block.channel,
                      add ? add + block.channel : nullptr, drive ? drive + block.channel : nullptr, finish);
        done += m;
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
