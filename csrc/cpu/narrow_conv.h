// One unit of a convolution or transposed convolution of bfloat16 values (narrow.h). Where the values under a kernel
// row are cut into equal chunks (NarrowCut), and 16 pixels the same step apart, a tile is loaded from where they lie;
// else what lies under the kernel is laid side by side, [pixel][kernel row][value]. All blocks of channels go over it.
#pragma once

#include "conv_place.h"
#include "narrow.h"
#include "narrow_rows.h"
#include "narrow_tiles.h"
#include "pack_unit.h"

namespace lmser::LMSER_ISA {

// The output is written where it lies, straight from the tile.
inline bool direct_narrow_sink(const ConvCall<float>& call) {
  const Sink& s = call.sink;
  const Geometry& g = call.plan->geometry;
  const auto fits = [&](const View& v) { return !v || same_layout(v, s.out); };
  return !repeats(s) && s.add_h * s.add_w == 1 && s.out.dtype == DType::bf16 && (s.out.sc == 1 || s.out.c == 1) &&
         s.out.h == g.out_h && s.out.w == g.out_w && fits(s.add) && fits(s.drive) && fits(s.gate);
}
inline bool direct_narrow_source(const ConvCall<float>& call) {
  return direct_source(*call.plan, call.source, DType::bf16);
}

// Scratch of a unit, in floats: staged input | a row while it is staged, and rows for that | offsets of pixels | linear
// result | output rows | pixels' values side by side | a tile's sums.
struct NarrowScratch {
  static constexpr std::int64_t kSums = kNarrowPixels * kNarrowPixels;
  // Of the second-level cache, for pixels whose values stay while the blocks of a large weight go over them.
  static constexpr std::int64_t kPanelBytes = 128 << 10, kMostPanels = 64;
  std::int64_t slab = 0, line = 0, rows = 0, offsets, linear = 0, out_row = 0, panel = 0;
  std::int64_t panels = 1;  // of 32 pixels, side by side at a time
  explicit NarrowScratch(const ConvCall<float>& call) {
    const ConvPlan& p = *call.plan;
    const Geometry& g = p.geometry;
    if (!direct_narrow_source(call)) {
      slab = div_up(p.slab_values, 2);
      line = call.source.row_values();
      rows = RowScratch<float>::values(line);
    }
    offsets = 2 * (pixels(p) + kNarrowPixels) * 2;
    if (!direct_narrow_sink(call)) {
      linear = p.unit_images * p.unit_rows * g.out_w * g.out_c;
      out_row = 3 * greater(call.sink.out.w, g.out_w * call.sink.upsample_w) * g.out_c;
    }
    std::int64_t deepest = 0;
    for (const Phase& ph : p.phases) deepest = greater(deepest, NarrowCut(p, ph).values());
    const std::int64_t one = kNarrowPixels * pitch(deepest) / 2;
    const std::int64_t room = lesser(kMostPanels, kPanelBytes / greater<std::int64_t>(1, 4 * one));
    panels = greater<std::int64_t>(1, lesser(div_up(pixels(p), kNarrowPixels), room));
    panel = panels * one;
    for (std::int64_t* x : {&slab, &line, &rows, &offsets, &linear, &out_row, &panel}) *x = div_up(*x, 64) * 64;
  }
  std::int64_t before_offsets() const { return slab + line + rows; }
  std::int64_t before_linear() const { return before_offsets() + offsets; }
  std::int64_t before_panel() const { return before_linear() + linear + out_row; }
  std::int64_t before_sums() const { return before_panel() + panel; }
  std::int64_t values() const { return before_sums() + kSums; }
  std::int64_t offsets_each() const { return offsets / 4; }
  // From one pixel's values to the next: an odd number of cache lines, for rows a power of two apart would share a few
  // sets of the first-level cache.
  static std::int64_t pitch(std::int64_t values) { return (div_up(values, kNarrowDepth) | 1) * kNarrowDepth; }

 private:
  static std::int64_t pixels(const ConvPlan& p) {
    return p.unit_images * (div_up(p.unit_rows, p.out_step_h) + 1) * (div_up(p.geometry.out_w, p.out_step_w) + 1);
  }
};

// Where the results of pixels go: bfloat16 values, finished, or a linear result.
struct NarrowOutput {
  Half *out = nullptr, *drive = nullptr;
  const Half *add = nullptr, *gate = nullptr;
  const float* bias = nullptr;
  float* linear = nullptr;
  float slope = 0, gate_slope = 0;
  // Of an epilogue (epilogue.h): out = result f'(output), total = out + extra, sums of `out`.
  const Half *output = nullptr, *extra = nullptr;
  Half* total = nullptr;
  double* bias_grad = nullptr;
};

// What results will be added to and written over is fetched while their products run.
LMSER_HD void prefetch_narrow(const std::int64_t* offset, int pixels, int channels, int channel,
                              const NarrowOutput& to) {
  constexpr int kLine = 64 / sizeof(Half);
  for (int m = 0; m < pixels; ++m)
    for (int c = channel; c < channel + channels; c += kLine) {
      __builtin_prefetch(to.out + offset[m] + c, 1);
      if (to.add) __builtin_prefetch(to.add + offset[m] + c, 0);
    }
}

template <Activation A, class Tiles>
void finish_narrow(const float* sums, const std::int64_t* offset, int pixels, int channels, int channel,
                   const NarrowOutput& to) {
  for_lanes<float>(channels, [&](std::int64_t c, int k) {
    const Vec<float> bias = to.bias ? load_n<float>(to.bias + channel + c, k) : splat(-0.0f);
    for (int m = 0; m < pixels; ++m) {
      const std::int64_t at = offset[m] + channel + c;
      const Vec<float> z = load<float>(sums + m * kNarrowPixels + c);
      Vec<float> v = z + bias;
      if (to.add) v = v + load_halves(to.add + at, k);
      if (to.drive) store_halves(to.drive + at, Tiles::rounded(z), k);
      v = act<A, float>(v, to.slope);
      if (to.gate) v = v * (load_halves(to.gate + at, k) > 0.0f ? splat(1.0f) : splat(to.gate_slope));
      store_halves(to.out + at, Tiles::rounded(v), k);
    }
  });
}

// The same where the activation is that of an epilogue, whose derivative is taken; nothing else is done to the result.
template <Activation A, class Tiles>
void pull_back_narrow(const float* sums, const std::int64_t* offset, int pixels, int channels, int channel,
                      const NarrowOutput& to) {
  for_lanes<float>(channels, [&](std::int64_t c, int k) {
    Vec<float> sum{};
    for (int m = 0; m < pixels; ++m) {
      const std::int64_t at = offset[m] + channel + c;
      const Vec<float> z = load<float>(sums + m * kNarrowPixels + c),
                       g = act_pull_back<A, float>(z, load_halves(to.output + at, k), to.slope);
      sum = sum + g;
      // `total` may lie where `extra` does.
      const Vec<float> total = to.extra ? g + load_halves(to.extra + at, k) : g;
      store_halves(to.out + at, Tiles::rounded(g), k);
      if (to.total) store_halves(to.total + at, Tiles::rounded(total), k);
    }
    if (to.bias_grad)
      for (int i = 0; i < k; ++i) to.bias_grad[channel + c + i] += double(sum[i]);
  });
}

// What lies under the kernel of pixels, side by side: `kernel_rows` pieces of `length` values, and zeros up to a whole
// number of registers. A register of one pixel is made of the parts of pieces that fall into it, each loaded to its
// place by a mask; nothing beside a piece is touched.
inline void lay_side_by_side(const Half* slab, const std::int64_t* offset, std::int64_t pixels, int kernel_rows,
                             std::int64_t row_stride, std::int64_t length, Half* to, std::int64_t pitch) {
  constexpr int kMost = 3;  // parts of a register taken together
  const std::int64_t depth = kernel_rows * length;
  for (std::int64_t k = 0; k < depth; k += kNarrowDepth) {
    const std::int64_t end = lesser(k + kNarrowDepth, depth);
    bool fresh = true;
    for (std::int64_t at = k; at < end;) {
      __mmask32 mask[kMost] = {};
      const Half* from[kMost] = {slab, slab, slab};
      for (int part = 0; part < kMost && at < end; ++part) {
        const std::int64_t row = at / length, until = lesser(end, (row + 1) * length);
        mask[part] = first_halves(until - k) & ~first_halves(at - k);
        from[part] = slab + row * row_stride + k - row * length;
        at = until;
      }
      const auto load_all = [&]<int Parts>() {
        for (std::int64_t m = 0; m < pixels; ++m) {
          __m512i v = fresh ? _mm512_setzero_si512() : _mm512_loadu_si512(to + m * pitch + k);
          for (int part = 0; part < Parts; ++part) v = _mm512_mask_loadu_epi16(v, mask[part], from[part] + offset[m]);
          _mm512_storeu_si512(to + m * pitch + k, v);
        }
      };
      if (mask[0] == first_halves(kNarrowDepth))
        for (std::int64_t m = 0; m < pixels; ++m)
          _mm512_storeu_si512(to + m * pitch + k, _mm512_loadu_si512(from[0] + offset[m]));
      else if (!mask[1])
        load_all.template operator()<1>();
      else
        load_all.template operator()<kMost>();
      fresh = false;
    }
  }
}

// The same of up to 16 pixels without zeros behind, or where they lie, if that is as regular.
inline NarrowRows rows_under(const Half* slab, const std::int64_t* offset, std::int64_t pixels, std::int64_t step,
                             int kernel_rows, std::int64_t row_stride, std::int64_t length, Half* to,
                             std::int64_t pitch) {
  bool regular = pixels == 16;
  for (std::int64_t m = 1; m < pixels; ++m) regular &= offset[m] == offset[0] + m * step;
  if (regular) return {slab + offset[0], step, row_stride};
  for (std::int64_t m = 0; m < pixels; ++m)
    for (int r = 0; r < kernel_rows; ++r)
      copy_halves(to + m * pitch + r * length, slab + offset[m] + r * row_stride, length);
  return {to, pitch, length};
}

inline void pack_narrow(const ConvPlan& p, const WeightLayout<float>& w, int index, std::int64_t c0, std::int64_t c1,
                        float* packed) {
  constexpr int L = 16;
  constexpr std::int64_t kValues = 128 * L;
  const Geometry& g = p.geometry;
  const Block& block = p.blocks[index];
  const std::int64_t all = std::int64_t(g.kernel_h) * g.kernel_w;
  // The tiles of a block in a phase, and where in them value k of tile column v lies.
  struct Tiles {
    Half* at;
    NarrowCut cut;
    int vectors;
    Half* place(std::int64_t k, std::int64_t v) const {
      const std::int64_t in_piece = cut.by_rows ? k % cut.length : k, piece = cut.by_rows ? k / cut.length : 0,
                         tile = piece * cut.chunks + in_piece / cut.depth, row = in_piece % cut.depth;
      return at + (tile * vectors + v) * kNarrowTile + row / 2 * (2 * L) + row % 2;
    }
  };
  const auto tiles_of = [&](const Phase& ph) {
    const NarrowCut cut(p, ph);
    return Tiles{
        reinterpret_cast<Half*>(packed + ph.weight_offset) + block.weight_column / L * cut.tiles() * kNarrowTile, cut,
        block.vectors};
  };
  const auto each_tap = [&](auto&& f) {  // f(kernel index, the depth of its first channel, tiles of its phase)
    for (const Phase& ph : p.phases) {
      const Tiles tiles = tiles_of(ph);
      for (int a = 0; a < ph.taps_h; ++a)
        for (int b = 0; b < ph.taps_w; ++b)
          f(g.transposed ? ph.first_tap_h - a * g.stride_h : a, g.transposed ? ph.first_tap_w - b * g.stride_w : b,
            (std::int64_t(a) * ph.taps_w + b) * g.in_c, tiles);
    }
  };
  if (c1 == g.in_c)  // the last of the block: zeros beyond the depth
    for (const Phase& ph : p.phases) {
      const Tiles tiles = tiles_of(ph);
      for (std::int64_t k = std::int64_t(ph.taps_h) * ph.taps_w * g.in_c; k < tiles.cut.values(); ++k)
        for (int v = 0; v < block.vectors; ++v)
          for (int i = 0; i < L; ++i) tiles.place(k, v)[2 * i] = 0;
    }
  alignas(64) float taps[kValues];
  const bool small = all * L <= kValues;  // else a tap and a few channels at a time
  const std::int64_t chunk = small ? kValues / (all * L) : kValues / L;
  const auto write = [&](const float* from, std::int64_t step, std::int64_t k, std::int64_t count, int v,
                         const Tiles& tiles) {
    for (std::int64_t c = 0; c < count;) {
      const __m512i one = _mm512_castps_si512(_mm512_loadu_ps(from + c * step));
      Half* const to = tiles.place(k + c, v);
      // Of neighbours in a row of a tile: pieces and chunks of an odd number of values are never cut by rows.
      if ((k + c) % 2 == 0 && c + 1 < count) {
        const __m512i next = _mm512_castps_si512(_mm512_loadu_ps(from + (c + 1) * step));
        _mm512_storeu_si512(to, _mm512_or_si512(_mm512_srli_epi32(one, 16),
                                                _mm512_and_si512(next, _mm512_set1_epi32(int(0xFFFF0000)))));
        c += 2;
      } else {
        for (int i = 0; i < L; ++i) to[2 * i] = to_bf16(from[c * step + i]);
        ++c;
      }
    }
  };
  for (std::int64_t from = c0; from < c1; from += chunk) {
    const std::int64_t count = lesser(chunk, c1 - from);
    for (int v = 0; v < block.vectors; ++v) {
      const std::int64_t out = block.channel + std::int64_t(v) * L;
      if (small) gather_taps<float>(g, w, out, from, count, taps);
      each_tap([&](int i, int j, std::int64_t k, const Tiles& tiles) {
        if (small) return write(taps + (std::int64_t(i) * g.kernel_w + j) * L, all * L, k + from, count, v, tiles);
        for (std::int64_t c = 0; c < count; ++c)
          for (std::int64_t o = 0; o < L; ++o)
            taps[c * L + o] = out + o < g.out_c ? w.from(out + o, from + c)[i * w.row + j * w.col] : 0.0f;
        write(taps, L, k + from, count, v, tiles);
      });
    }
  }
}

inline std::int64_t narrow_conv_scratch(const ConvCall<float>& call) { return NarrowScratch(call).values(); }

template <class Tiles>
void narrow_conv_unit(const ConvCall<float>& call, std::int64_t index, float* scratch) {
  const ConvPlan& p = *call.plan;
  const Geometry& g = p.geometry;
  const Source& in = call.source;
  const Sink& s = call.sink;
  const NarrowScratch layout(call);
  const UnitRange unit(p, index);
  const RowSpan span = input_rows(p, unit.r0, unit.r1);
  const std::int64_t images = unit.n1 - unit.n0;

  Pixels<const Half> slab;
  if (direct_narrow_source(call)) {
    slab = {static_cast<const Half*>(in.base.data), in.base.sn, in.base.sh, in.base.sw};
    slab.data += slab.at(unit.n0, span.first, p.slab_w0);
  } else {
    auto* const memory = reinterpret_cast<Half*>(scratch);
    float* const line = scratch + layout.slab;
    const std::int64_t rows = span.last - span.first + 1, row = p.slab_cols * g.in_c;
    slab = {memory, rows * row, row, g.in_c};
    for (std::int64_t n = unit.n0; n < unit.n1; ++n)
      stage_halves(in, n, span.first, rows, p.slab_w0, p.slab_cols, g.in_c, memory + (n - unit.n0) * slab.image, line,
                   RowScratch<float>::at(line + layout.line, in.row_values()));
  }

  const bool direct = direct_narrow_sink(call);
  float* const linear = scratch + layout.before_linear();
  Pixels<float> lies{nullptr, 0, 0, 0};  // of the output, or of the linear result
  NarrowOutput to;
  if (direct) {
    const View& v = s.out;
    lies.image = v.sn, lies.row = v.sh, lies.col = v.sw;
    const std::int64_t first = unit.n0 * v.sn + unit.r0 * v.sh;
    const auto at = [&](const View& view) { return view ? static_cast<Half*>(view.data) + first : nullptr; };
    to = {at(s.out), at(s.drive),    at(s.add),          at(s.gate), static_cast<const float*>(s.bias),
          nullptr,   float(s.slope), float(s.gate_slope)};
    if (s.epilogue && s.epilogue->output) {  // which lies as the output does
      const Epilogue& e = *s.epilogue;
      const auto beside = [&](const void* data) { return data ? static_cast<const Half*>(data) + first : nullptr; };
      to.output = beside(e.output), to.extra = beside(e.extra), to.total = const_cast<Half*>(beside(e.total));
      to.slope = float(e.slope);
      to.bias_grad = e.sums ? e.sums + index * e.channels : nullptr;
    }
  } else {
    lies.col = unit.c1 - unit.c0, lies.row = g.out_w * lies.col, lies.image = (unit.r1 - unit.r0) * lies.row;
    to.linear = linear - unit.c0;
  }

  auto* const in_offset = reinterpret_cast<std::int64_t*>(scratch + layout.before_offsets());
  auto* const out_offset = in_offset + layout.offsets_each();
  auto* const panel = reinterpret_cast<Half*>(scratch + layout.before_panel());
  float* const sums = scratch + layout.before_sums();
  for (const Phase& ph : p.phases) {
    const std::int64_t q0 = div_up(greater<std::int64_t>(unit.r0 - ph.out_h0, 0), p.out_step_h),
                       q1 = lesser(ph.rows, div_up(greater<std::int64_t>(unit.r1 - ph.out_h0, 0), p.out_step_h));
    const std::int64_t cols = ph.cols, in_step = ph.taps_h ? p.in_step_w * slab.col : 0,
                       out_step = p.out_step_w * lies.col;
    std::int64_t pixels = 0;
    for (std::int64_t n = 0; n < images; ++n)
      for (std::int64_t q = q0; q < q1; ++q, pixels += cols) {
        const std::int64_t in0 = slab.at(n, ph.off_h + q * p.in_step_h - span.first, ph.off_w - p.slab_w0),
                           out0 = lies.at(n, ph.out_h0 + q * p.out_step_h - unit.r0, ph.out_w0);
        for (std::int64_t x = 0; x < cols; ++x) in_offset[pixels + x] = (ph.taps_h ? in0 : 0) + x * in_step;
        for (std::int64_t x = 0; x < cols; ++x) out_offset[pixels + x] = out0 + x * out_step;
      }
    const NarrowCut cut(p, ph);
    const std::int64_t pitch = NarrowScratch::pitch(cut.values()), group = layout.panels * kNarrowPixels;
    Tiles::start(cut.depth);
    const auto* const weight = reinterpret_cast<const Half*>(call.weight + ph.weight_offset);
    for (std::int64_t first = 0; first < pixels; first += group) {
      const std::int64_t last = lesser(first + group, pixels);
      NarrowRows rows[2 * NarrowScratch::kMostPanels];
      if (!cut.by_rows && cut.length > 0)
        lay_side_by_side(slab.data, in_offset + first, last - first, ph.taps_h, slab.row, cut.length, panel, pitch);
      for (std::int64_t m = first; m < last; m += 16) {
        Half* const own = panel + (m - first) * pitch;
        rows[(m - first) / 16] = cut.by_rows
                                     ? rows_under(slab.data, in_offset + m, lesser<std::int64_t>(16, last - m),
                                                  p.in_step_w * slab.col, ph.taps_h, slab.row, cut.length, own, pitch)
                                     : NarrowRows{own, pitch, 0};
      }
      for (int b = unit.block0; b < unit.block1; ++b) {
        const Block& block = p.blocks[b];
        const int channels = int(lesser<std::int64_t>(block.vectors * 16, g.out_c - block.channel));
        NarrowProduct product{};
        product.a_chunk = product.depth = cut.depth;
        product.b = weight + block.weight_column / 16 * cut.tiles() * kNarrowTile;
        product.b_tile = kNarrowTile, product.b_chunk = block.vectors * kNarrowTile;
        product.pieces = cut.pieces, product.chunks = cut.chunks;
        product.c = sums, product.c_row = kNarrowPixels, product.c_half = 16 * kNarrowPixels, product.c_tile = 16;
        for (std::int64_t done = first; done < last; done += kNarrowPixels) {
          const int m = int(lesser(kNarrowPixels, last - done));
          product.a[0] = rows[(done - first) / 16],
          product.a[1] = m > 16 ? rows[(done - first) / 16 + 1] : NarrowRows{};
          if (direct) prefetch_narrow(out_offset + done, m, channels, block.channel, to);
          narrow_product<Tiles>(product, m > 16, block.vectors > 1);
          if (to.output) {
            with_activation(s.epilogue->activation, [&]<Activation A>() {
              pull_back_narrow<A, Tiles>(sums, out_offset + done, m, channels, block.channel, to);
            });
            continue;
          }
          if (direct) {
            with_activation(s.activation, [&]<Activation A>() {
              finish_narrow<A, Tiles>(sums, out_offset + done, m, channels, block.channel, to);
            });
            continue;
          }
          for (int i = 0; i < m; ++i)
            for_lanes<float>(channels, [&](std::int64_t c, int k) {
              store_n<float>(to.linear + out_offset[done + i] + block.channel + c,
                             load<float>(sums + i * kNarrowPixels + c), k);
            });
        }
      }
    }
  }
  Tiles::stop();
  if (direct) return;
  const Sink part = channels_of<float>(s, unit.c0, unit.c1);
  for (std::int64_t n = unit.n0; n < unit.n1; ++n)
    flush_rows<float>(part, g.out_h, g.out_w, n, unit.r0, unit.r1, linear + (n - unit.n0) * lies.image,
                      linear + layout.linear);
}

}  // namespace lmser::LMSER_ISA
