// What a unit of a convolution covers, where its input is staged and where its output goes.
#pragma once

#include "epilogue.h"
#include "filtered_rows_layout.h"
#include "kernels.h"
#include "pixels.h"
#include "rows.h"
#include "winograd_register_layout.h"
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

// The input is used where it lies: channels-last values of `stored` without transform or conversion.
LMSER_HD bool direct_source(const ConvPlan& p, const Source& source, DType stored) {
  const View& v = source.base;
  if (!source.plain() || v.dtype != stored || (v.sc != 1 && v.c != 1) || !reads_as_it_lies(p)) return false;
  if (!p.winograd.m && v.sw != v.c)
    for (const Phase& ph : p.phases)
      if (ph.taps_w > 1) return false;
  return true;
}
template <class T>
bool direct_source(const ConvCall<T>& call) {
  return direct_source(*call.plan, call.source, kDType<T>);
}
// Of one size: one offset finds a value in both. A stride along which there is one value says nothing.
LMSER_HD bool same_layout(const View& a, const View& b) {
  return a.dtype == b.dtype && (a.sn == b.sn || a.n == 1) && (a.sc == b.sc || a.c == 1) && (a.sh == b.sh || a.h == 1) &&
         (a.sw == b.sw || a.w == 1);
}
inline bool repeats(const Sink& s) { return s.upsample_h != 1 || s.upsample_w != 1 || s.scale != 1; }
// The output is written where it lies, straight from the tile; repeated by minimal filtering with buffers alone.
template <class T>
bool direct_sink(const ConvCall<T>& call) {
  const Sink& s = call.sink;
  const Geometry& g = call.plan->geometry;
  if ((repeats(s) && !call.plan->winograd.buffered()) || scatters(*call.plan)) return false;
  if (s.out.dtype != kDType<T> || (s.out.sc != 1 && s.out.c != 1)) return false;
  if (s.out.h != g.out_h * s.upsample_h || s.out.w != g.out_w * s.upsample_w) return false;
  // What is smaller than the output lies as it likes, in values of T with dense channels.
  const auto dense = [](const View& v) { return v.dtype == kDType<T> && (v.sc == 1 || v.c == 1); };
  const bool adds_once = s.add_h * s.add_w > 1;
  if (adds_once && repeats(s)) return false;
  return (!s.gate || same_layout(s.gate, s.out)) &&
         (!s.add || (adds_once ? dense(s.add) : same_layout(s.add, s.out))) &&
         (!s.drive || (s.drive_once && repeats(s) ? dense(s.drive) : same_layout(s.drive, s.out)));
}

// Whether a unit's outputs are whole windows of the pooled sink: then they stay in its scratch.
template <class T>
bool pools_by_unit(const ConvCall<T>& call) {
  const ConvPlan& p = *call.plan;
  const Sink& s = call.sink;
  const View& v = s.out;
  return s.pooled && direct_sink(call) && v.sc == 1 && v.sw == v.c && v.sh == v.w * v.c && v.sn == v.h * v.sh &&
         p.block_splits == 1 && !p.round_units && p.winograd.out0_h == 0 &&
         (p.row_units == 1 || p.unit_rows * s.upsample_h % s.pool_h == 0);
}
// Rows [h0, h1) of image n of the pooled sink, from `out`, whose image 0 is image n0 and row 0 is row r0 of the sink.
template <class T>
void pool_rows_of(const Sink& s, const View& out, std::int64_t n0, std::int64_t r0, std::int64_t n, std::int64_t h0,
                  std::int64_t h1) {
  Source from;
  from.base = out;
  from.pool_h = s.pool_h, from.pool_w = s.pool_w, from.scale = 1.0 / (double(s.pool_h) * s.pool_w);
  for (std::int64_t h = h0; h < h1; ++h)
    read_value_row<T>(from, n - n0, h - r0 / s.pool_h, s.pooled.w, s.pooled.sw,
                      static_cast<T*>(s.pooled.data) + n * s.pooled.sn + h * s.pooled.sh, {});
}
template <class T>
void pooled_rows(const Sink& s, std::int64_t image, std::int64_t row0, std::int64_t row1) {
  pool_rows_of<T>(s, s.out, 0, 0, image, row0, row1);
}

// Of a block: kernel rows whose weights stay in the second-level cache together.
template <class T>
std::int64_t kernel_rows_together(std::int64_t length, std::int64_t width, int rows) {
  constexpr std::int64_t kWeights = 128 << 10;
  const std::int64_t row = length * width * std::int64_t(sizeof(T));
  if (row * rows <= kWeights + kWeights / 4) return greater(rows, 1);
  return div_up(rows, div_up(rows, greater<std::int64_t>(1, kWeights / row)));
}

// Scratch of a unit, in values of T: staged slab | rows for staging | pixel offsets | linear result | output rows |
// points and sums | sums of the direct form | outputs to be pooled | of an unpacked product values under the kernel |
// a panel of the weight, and before it an unpacked product's results | values under the kernel of one pixel.
template <class T>
struct ConvScratch {
  std::int64_t slab = 0, line = 0, rows = 0, offsets = 0, linear = 0, out_row = 0, winograd = 0, sums = 0, pooled = 0,
               columns = 0, panel = 0, turned = 0;
  std::int64_t columns_row = 0, results = 0;
  explicit ConvScratch(const ConvCall<T>& call) {
    const ConvPlan& p = *call.plan;
    const Geometry& g = p.geometry;
    if (!direct_source(call)) {
      slab = p.slab_values;
      rows = RowScratch<T>::values(call.source.row_values());
      if (p.planar) line = p.slab_cols * g.in_c;
    }
    const std::int64_t pixels =
        p.unpacked ? g.batch * g.in_h * g.in_w
                   : p.unit_images * (div_up(p.unit_rows, p.out_step_h) + 1) * (div_up(g.out_w, p.out_step_w) + 1);
    if (p.winograd.along_rows) winograd = PairScratch(p).values();
    if (p.winograd.m)
      winograd = p.winograd.in_registers ? register_scratch(p) : WinogradScratch(p).values();
    else
      offsets = 3 * (pixels + 16) * std::int64_t(sizeof(std::int64_t)) / std::int64_t(sizeof(T));
    for (const Phase& ph : p.phases) {
      const std::int64_t width = std::int64_t(p.tile.max_vectors) * p.tile.lanes;
      if (kernel_rows_together<T>(ph.taps_w * g.in_c, width, ph.taps_h) < ph.taps_h)
        sums = greater(sums, p.unit_images * (div_up(p.unit_rows, p.out_step_h) + 1) * ph.cols * width);
    }
    if (!direct_sink(call)) {
      linear = p.unit_images * p.unit_rows * g.out_w * g.out_c;
      out_row = 3 * greater(call.sink.out.w, g.out_w * call.sink.upsample_w) * g.out_c;
    }
    if (pools_by_unit(call)) {
      const View& v = call.sink.out;
      pooled = p.unit_images > 1 ? p.unit_images * v.sn : lesser(p.unit_rows * call.sink.upsample_h, v.h) * v.sh;
    }
    if (p.packs_blocks) {
      const Phase& ph = p.phases[0];
      panel = std::int64_t(ph.taps_h) * ph.taps_w * g.in_c * p.tile.max_vectors * p.tile.lanes;
    }
    if (p.unpacked) {
      constexpr std::int64_t kWidth = kTileVectors * kLanes<T>;
      const std::int64_t taps = std::int64_t(g.kernel_h) * g.kernel_w,
                         channels = div_up(std::int64_t(p.blocks.size()), p.block_splits) * kLanes<T>;
      if (scatters(p)) turned = columns_row = taps * channels;
      columns = pixels * columns_row;
      results = scatters(p) ? 0 : pixels * kWidth;
      panel = results + g.in_c * kWidth;
    }
    for (std::int64_t* x :
         {&slab, &line, &rows, &offsets, &linear, &out_row, &winograd, &sums, &pooled, &columns, &panel, &turned})
      *x = div_up(*x, 64) * 64;
  }
  std::int64_t values() const { return before_panel() + panel + turned; }
  std::int64_t before_panel() const { return before_columns() + columns; }
  std::int64_t before_columns() const { return before_pooled() + pooled; }
  std::int64_t before_pooled() const { return before_linear() + linear + out_row + winograd + sums; }
  std::int64_t before_linear() const { return before_offsets() + offsets; }
  std::int64_t before_offsets() const { return slab + line + rows; }
  // Of three tables of pixels.
  std::int64_t offsets_each() const {
    return offsets * std::int64_t(sizeof(T)) / std::int64_t(sizeof(std::int64_t)) / 3;
  }
};

// Images [n0, n1), rows [r0, r1) of the output, of which the unit's first would be `from_row`, and channels [c0, c1):
// those of blocks [block0, block1).
struct UnitRange {
  std::int64_t n0, n1, from_row, r0, r1, c0, c1;
  int block0, block1;
  UnitRange(const ConvPlan& p, std::int64_t unit) {
    const int split = int(unit % p.block_splits), blocks = int(p.blocks.size());
    const std::int64_t pixel_unit = unit / p.block_splits;
    block0 = blocks * split / p.block_splits, block1 = blocks * (split + 1) / p.block_splits;
    c0 = p.blocks[block0].channel, c1 = block1 < blocks ? p.blocks[block1].channel : p.geometry.out_c;
    n0 = pixel_unit / p.row_units * p.unit_images, n1 = lesser(n0 + p.unit_images, p.geometry.batch);
    from_row = pixel_unit % p.row_units * p.unit_rows + p.winograd.out0_h;
    r0 = greater<std::int64_t>(from_row, 0), r1 = lesser(from_row + p.unit_rows, p.geometry.out_h);
  }
  // Rows [t0, t1) of tiles of a minimal-filtering grid.
  std::int64_t t0(const WinogradGrid& w) const { return (from_row - w.out0_h) / w.out_step; }
  std::int64_t t1(const WinogradGrid& w) const { return div_up(r1 - w.out0_h, w.out_step); }
};

// The zero-padded input of a unit from row `first_row` and column slab_w0 on, in a slab of its own or where it lies.
template <class T>
struct UnitInput {
  Pixels<const T> slab;
  std::int64_t first_row;
  UnitInput(const ConvCall<T>& call, const UnitRange& unit, const ConvScratch<T>& layout, T* memory) {
    const ConvPlan& p = *call.plan;
    const Geometry& g = p.geometry;
    const Source& in = call.source;
    const RowSpan span = input_rows(p, unit.r0, unit.r1);
    first_row = span.first;
    if (direct_source(call)) {
      slab = {static_cast<const T*>(in.base.data), in.base.sn, in.base.sh, in.base.sw};
      slab.data += slab.at(unit.n0, span.first, p.slab_w0);
      return;
    }
    const std::int64_t rows = span.last - span.first + 1, row = p.slab_cols * g.in_c;
    const auto row_scratch = RowScratch<T>::at(memory + layout.slab, in.row_values());
    slab = {memory, rows * row, row, g.in_c};
    for (std::int64_t n = unit.n0; n < unit.n1; ++n)
      stage<T>(in, n, span.first, rows, p.slab_w0, p.slab_cols, g.in_c, memory + (n - unit.n0) * slab.image,
               row_scratch);
  }
};

// Where the first pixel of a unit goes: where the sink has it, finished; as a linear result to memory that
// `finish_unit` takes it from; or finished to memory that it is pooled from.
template <class T>
struct UnitOutput {
  Pixels<T> out, drive;
  Pixels<const T> add, gate;
  const T *bias = nullptr, *later = nullptr;
  Activation activation = Activation::identity;
  T slope = 0, gate_slope = 0;
  bool direct;
  UnitOutput(const ConvCall<T>& call, const UnitRange& unit, T* linear, T* pooled) : direct(direct_sink(call)) {
    const Sink& s = call.sink;
    if (!direct) {
      const std::int64_t col = unit.c1 - unit.c0, row = call.plan->geometry.out_w * col;
      out = {linear - unit.c0, (unit.r1 - unit.r0) * row, row, col};
      return;
    }
    const std::int64_t r0 = unit.r0 * s.upsample_h;
    out = from<T>(s.out, unit.n0, r0);
    if (s.epilogue && s.epilogue->output)
      later = static_cast<const T*>(s.epilogue->output) + (out.data - static_cast<const T*>(s.epilogue->result));
    if (pools_by_unit(call)) out.data = pooled;
    if (s.add) add = from<const T>(s.add, unit.n0, r0 / s.add_h);
    if (s.drive) drive = from<T>(s.drive, unit.n0, s.drive_once ? unit.r0 : r0);
    if (s.gate) gate = from<const T>(s.gate, unit.n0, r0);
    bias = static_cast<const T*>(s.bias), activation = s.activation, slope = T(s.slope), gate_slope = T(s.gate_slope);
  }
  // Of channels from `channel` on, for tiles that have their offsets.
  TileFinish<T> tile_finish(int channel) const {
    const auto at = [&](auto* data) { return data ? data + channel : data; };
    return {at(out.data), at(add.data), at(drive.data), at(gate.data), gate_slope, at(bias),
            nullptr,      nullptr,      activation,     slope,         at(later)};
  }

 private:
  template <class V>
  static Pixels<V> from(const View& v, std::int64_t n, std::int64_t h) {
    return {static_cast<V*>(v.data) + n * v.sn + h * v.sh, v.sn, v.sh, v.sw};
  }
};

// to[i] = first + i * step, by whole registers: up to one less than a register holds is written behind them.
LMSER_HD void count_up(std::int64_t* to, std::int64_t first, std::int64_t step, std::int64_t count) {
  using V = LaneIndex<double>;
  constexpr int L = kLanes<double>;
  V v{};
#pragma GCC unroll 8
  for (int i = 0; i < L; ++i) v[i] = first + i * step;
  const V next = V{} + L * step;
  for (std::int64_t i = 0; i < count; i += L, v += next) std::memcpy(to + i, &v, sizeof v);
}

// What a tile will read and write outside the caches is fetched while its products run.
template <class T>
LMSER_HD void prefetch_tile(int pixels, int channels, const TileFinish<T>& f) {
  constexpr int kLine = 64 / sizeof(T);
  for (int m = 0; m < pixels; ++m)
    for (int c = 0; c < channels; c += kLine) {
      __builtin_prefetch(f.out + f.offset[m] + c, 1);
      if (f.add) __builtin_prefetch(f.add + f.add_offset[m] + c, 0);
      if (f.drive) __builtin_prefetch(f.drive + f.offset[m] + c, 1);
      if (f.gate) __builtin_prefetch(f.gate + f.offset[m] + c, 0);
      if (f.later) __builtin_prefetch(f.later + f.offset[m] + c, 0);
    }
}

// From the tile to memory: one pixel row at a time, whole registers then the remaining channels.
template <class T>
void write_tile(const T* tile, int pixels, int tile_stride, int channels, const TileFinish<T>& f) {
  with_activation(f.activation, [&]<Activation A>() {
    for (int m = 0; m < pixels; ++m) {
      const T* src = tile + m * tile_stride;
      const std::int64_t at = f.offset[m], add_at = f.add_offset[m];
      for_lanes<T>(channels, [&](std::int64_t i, int k) {
        const Vec<T> z = load<T>(src + i);  // the tile holds whole registers
        Vec<T> v = z;
        if (f.bias) v = v + load_n<T>(f.bias + i, k);
        if (f.add) v = v + load_n<T>(f.add + add_at + i, k);
        if (f.drive) store_n<T>(f.drive + at + i, z, k);  // may lie where `add` does
        v = act<A, T>(v, f.slope);
        if (f.gate) v = gated<T>(v, load_n<T>(f.gate + at + i, k), f.gate_slope);
        store_n<T>(f.out + at + i, v, k);
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
      const T* add = s.add ? read_row<T>(s.add, n, h / s.add_h, other) : nullptr;
      if (add && s.add_w > 1) {  // from the end on, so that it may be done in place
        for (std::int64_t x = wide; x-- > 0;) std::memmove(other + x * c, add + x / s.add_w * c, sizeof(T) * c);
        add = other;
      }
      if (s.drive && s.drive_once) {
        if (up == 0) {
          for (std::int64_t i = 0; i < linear_w * c; ++i) gate_row[i] = src[i] * T(s.scale);
          write_row<T>(s.drive, n, r, gate_row);
        }
      } else if (s.drive) {
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

// The epilogue of rows [h0, h1) of image n of the output, as soon as they are there: while the first-level cache has
// them. Where it has to wait for the whole unit, finish_unit takes it.
template <class T>
void finish_rows(const ConvCall<T>& call, std::int64_t index, const UnitRange& unit, const UnitOutput<T>& to,
                 std::int64_t n, std::int64_t h0, std::int64_t h1) {
  const Sink& s = call.sink;
  if (s.epilogue && to.direct) run_epilogue<T>(*s.epilogue, s.out, n, n + 1, h0, h1, unit.c0, unit.c1, index);
}

// What follows a unit's results: from the linear ones to the sink, and the epilogue of `finite` ones, but for `rows`,
// which finish_rows had.
template <class T>
void finish_unit(const ConvCall<T>& call, std::int64_t index, const UnitRange& unit, const UnitOutput<T>& to,
                 const T* linear, T* out_row, bool finite, bool rows = false) {
  const Sink& s = call.sink;
  const Geometry& g = call.plan->geometry;
  if (!to.direct) {
    const Sink part = channels_of<T>(s, unit.c0, unit.c1);
    for (std::int64_t n = unit.n0; n < unit.n1; ++n)
      flush_rows<T>(part, g.out_h, g.out_w, n, unit.r0, unit.r1, linear + (n - unit.n0) * to.out.image, out_row);
  }
  if (pools_by_unit(call)) {
    const std::int64_t from = unit.r0 * s.upsample_h, until = unit.r1 * s.upsample_h;
    View v = s.out;
    v.data = to.out.data, v.n = unit.n1 - unit.n0, v.h = until - from;
    for (std::int64_t n = unit.n0; n < unit.n1; ++n)
      pool_rows_of<T>(s, v, unit.n0, from, n, from / s.pool_h, until / s.pool_h);
  }
  if (s.epilogue && finite && !(rows && to.direct))
    run_epilogue<T>(*s.epilogue, s.out, unit.n0, unit.n1, unit.r0 * s.upsample_h, unit.r1 * s.upsample_h, unit.c0,
                    unit.c1, index);
}

}  // namespace lmser::LMSER_ISA
