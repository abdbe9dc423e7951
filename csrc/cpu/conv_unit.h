// One unit of a convolution or transposed convolution: stage its input once into a zero-padded slab in the
// second-level cache, run the register tiles over it, finish the neuron (bias, add, activation) in the same pass.
#pragma once

#include "ahead.h"
#include "few_channels.h"
#include "filtered_rows.h"
#include "four_phases.h"
#include "pack_unit.h"
#include "padding.h"
#include "planar_unit.h"
#include "sliding_tile.h"
#include "unpacked_unit.h"
#include "winograd_registers.h"
#include "winograd_round.h"

namespace lmser::LMSER_ISA {

template <class T>
inline constexpr int kTileValues =
    kLanes<T> * greater(LMSER_REGISTERS, greater(greater(kTilePixels[1], 2 * kTilePixels[2]), 3 * kTilePixels[3])) +
    kLanes<T>;

// The input of the next unit, this thread's as a rule, which nothing else would fetch before it is staged.
template <class T>
Ahead input_ahead(const ConvCall<T>& call, std::int64_t index, const UnitRange& unit) {
  // Short pixels that are read one after the other come by themselves, and their tiles are over before it pays to ask.
  constexpr std::int64_t kShort = 256;
  const ConvPlan& p = *call.plan;
  const View& v = call.source.base;
  const std::int64_t next = (index + 1) / p.block_splits;
  if (index + 1 >= p.units || next == index / p.block_splits) return {};
  if (v.c * std::int64_t(sizeof(T)) <= kShort && direct_source(call)) return {};
  if (v.sc != 1 || v.sw != v.c || v.sh != v.w * v.c) return {};
  if (p.unit_images > 1 && v.sn != v.h * v.sh) return {};  // what lies between images is not needed
  const std::int64_t value = v.dtype == DType::f64 ? 8 : v.dtype == DType::f32 ? 4 : 2;
  const std::int64_t r0 = next % p.row_units * p.unit_rows;
  const RowSpan span = input_rows(p, r0, lesser(r0 + p.unit_rows, p.geometry.out_h));
  const std::int64_t pool = call.source.pool_h;
  const std::int64_t first = greater<std::int64_t>(span.first, 0) * pool, last = lesser((span.last + 1) * pool, v.h);
  const std::int64_t image = next / p.row_units * p.unit_images;
  std::int64_t bytes = (last - first) * v.sh * value;
  if (p.unit_images > 1) bytes = lesser(p.unit_images, v.n - image) * v.sn * value;
  const std::int64_t pixels = (unit.n1 - unit.n0) * (unit.r1 - unit.r0) * p.geometry.out_w,
                     tile = p.planar        ? planar_width<T>(int(p.geometry.out_c), 1) * kLanes<T>
                            : p.dot         ? greater<std::int64_t>(1, kLanes<T> / p.geometry.out_c)
                            : p.four_phases ? 4 * kFourPhasesColumns
                            : p.sliding     ? 2 * kSlidingPixels
                                            : p.tile.pixels,
                     tiles = greater<std::int64_t>(1, pixels / tile * (unit.block1 - unit.block0));
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
bool conv_unit(const ConvCall<T>& call, std::int64_t index, T* scratch) {
  const ConvPlan& p = *call.plan;
  if (p.unpacked) {
    UnpackedUnit<T>(call, index, scratch).run(index);
    return true;
  }
  const Geometry& g = p.geometry;
  const ConvScratch<T> layout(call);
  auto* const in_offset = reinterpret_cast<std::int64_t*>(scratch + layout.before_offsets());
  const std::int64_t offsets = layout.offsets_each();
  auto* const out_offset = in_offset + offsets;
  T* const linear = scratch + layout.before_linear();
  T* const out_row = linear + layout.linear;
  T* const sums = out_row + layout.out_row + layout.winograd;
  const UnitRange unit(p, index);
  const UnitOutput<T> to(call, unit, linear, scratch + layout.before_pooled());
  Ahead ahead = input_ahead<T>(call, index, unit);
  if (p.planar) {
    planar_unit(call, unit, to, layout, scratch, ahead);
    finish_unit(call, index, unit, to, linear, out_row, true);
    return true;
  }
  const UnitInput<T> from(call, unit, layout, scratch);
  if constexpr (sizeof(T) == 4) {
    if (p.winograd.m) {
      T* const memory = out_row + layout.out_row;
      bool finite = false;
      if (!p.winograd.in_registers)
        finite = winograd_unit(call, unit, from, to, memory);
      else if constexpr (kFiltersInRegisters)
        finite = register_unit(call, unit, from, to, memory);
      finish_unit(call, index, unit, to, linear, out_row, finite);
      return finite;
    }
  }
  if (p.four_phases || p.sliding) {
    if constexpr (kFourPhases && kSliding)
      p.sliding ? sliding_unit(call, index, unit, from, to, ahead)
                : four_phases_unit(call, index, unit, from, to, ahead);
    finish_unit(call, index, unit, to, linear, out_row, true, true);
    return true;
  }
  const int add_h = call.sink.add_h, add_w = call.sink.add_w;
  const bool add_apart = to.add && add_h * add_w > 1;
  auto* const add_offset = add_apart ? out_offset + offsets : out_offset;
  alignas(64) T tile[kTileValues<T>];
  bool finite = true;
  if constexpr (sizeof(T) == 4)
    if (p.winograd.along_rows) finite = paired_phases(call, unit, from, to, out_row + layout.out_row, ahead);
  for (const Phase& ph : p.phases) {
    if (ph.pairs) continue;
    const std::int64_t q0 = div_up(greater<std::int64_t>(unit.r0 - ph.out_h0, 0), p.out_step_h);
    const std::int64_t q1 =
        greater(q0, lesser(ph.rows, div_up(greater<std::int64_t>(unit.r1 - ph.out_h0, 0), p.out_step_h)));
    std::int64_t pixels = 0;
    // Pixels [begin, end) that meet the input with the same taps.
    struct Group {
      std::int64_t begin, end;
      TapRange rows, cols;
    };
    Group groups[kMostGroups];
    int group_count = 0;
    // From one pixel to the next along the axis that is counted fastest: one column is counted along its rows.
    const std::int64_t in_row = p.in_step_h * from.slab.row, in_col = p.in_step_w * from.slab.col,
                       out_row_step = p.out_step_h * to.out.row, out_col = p.out_step_w * to.out.col;
    for_tap_ranges(ph.by_rows, q0, q1, ph.off_h, p.in_step_h, ph.taps_h, g.in_h, [&](auto row0, auto row1, auto rows) {
      for_tap_ranges(
          ph.by_cols, 0, ph.cols, ph.off_w, p.in_step_w, ph.taps_w, g.in_w, [&](auto x0, auto x1, auto cols) {
            const bool column = x1 - x0 == 1;
            Group& group = groups[group_count++] = {pixels, pixels, rows, cols};
            for (std::int64_t n = 0; n < unit.n1 - unit.n0; ++n) {
              std::int64_t first_in = n * from.slab.image +
                                      (ph.off_h + row0 * p.in_step_h - from.first_row) * from.slab.row +
                                      (ph.off_w + x0 * p.in_step_w - p.slab_w0) * from.slab.col,
                           first_out =
                               to.out.at(n, ph.out_h0 + row0 * p.out_step_h - unit.r0, ph.out_w0 + x0 * p.out_step_w);
              if (add_apart)
                for (std::int64_t q = row0; q < row1; ++q) {
                  const std::int64_t row = (ph.out_h0 + q * p.out_step_h) / add_h - unit.r0 / add_h;
                  for (std::int64_t x = x0; x < x1; ++x)
                    add_offset[pixels + (q - row0) * (x1 - x0) + x - x0] =
                        to.add.at(n, row, (ph.out_w0 + x * p.out_step_w) / add_w);
                }
              const std::int64_t runs = column ? 1 : row1 - row0, run = column ? row1 - row0 : x1 - x0,
                                 in_step = ph.taps_h ? column ? in_row : in_col : 0,
                                 out_step = column ? out_row_step : out_col;
              for (std::int64_t q = 0; q < runs; ++q, first_in += in_row, first_out += out_row_step) {
                const std::int64_t in0 = ph.taps_h ? first_in : 0;
                count_up(in_offset + pixels, in0, in_step, run);
                count_up(out_offset + pixels, first_out, out_step, run);
                pixels += run;
              }
            }
            group.end = pixels;
          });
    });
    if (pixels == 0) continue;
    const std::int64_t depth = ph.depth(g.in_c);
    if (p.dot) {
      const int channels = int(g.out_c);
      FewChannels<T> results(to, channels);
      const int most = kLanes<T> / channels;
      // The last tile repeats its last pixel: the tile is cheap, and always full.
      for (std::int64_t i = pixels; i < pixels + most; ++i) in_offset[i] = in_offset[pixels - 1];
      ProductTile<T> args{
          from.slab.data, nullptr, ph.taps_h, from.slab.row, ph.taps_w * g.in_c, call.weight + ph.weight_offset, tile};
      const auto run = dot_fn<T>(channels);
      for (std::int64_t done = 0; done < pixels; done += most) {
        args.offset = in_offset + done;
        run(args);
        ahead.step();
        results.write(tile, int(lesser<std::int64_t>(most, pixels - done)), out_offset + done, add_offset + done);
      }
      continue;
    }
    // Pixels whose input stays in the first-level cache while all blocks go over it, where the blocks' weights stay
    // in the second; else all pixels, block after block.
    const std::int64_t group = p.packs_blocks ? pixels : pixel_group<T>(p, ph, pixels, unit.block1 - unit.block0);
    for (std::int64_t first = 0; first < pixels; first += group) {
      const std::int64_t last = lesser(first + group, pixels);
      for (int b = unit.block0; b < unit.block1; ++b) {
        const Block& block = p.blocks[b];
        const int most = kTilePixels[block.vectors], width = block.vectors * kLanes<T>,
                  channels = int(lesser<std::int64_t>(width, g.out_c - block.channel));
        TileFinish<T> finish = to.tile_finish(block.channel);
        const bool whole = channels == width && in_registers(to.activation);
        // Kernel rows whose weights stay in the second-level cache from one tile to the next; sums wait for the others.
        const std::int64_t length = ph.taps_w * g.in_c, step = kernel_rows_together<T>(length, width, ph.taps_h);
        const bool pieces = step < ph.taps_h;
        const T* weight = nullptr;
        if (p.packs_blocks) {
          T* const panel = scratch + layout.before_panel();
          pack_block<T>(p, call.as_it_lies, b, 0, g.in_c, [&](const Phase&) { return panel; });
          weight = panel;
        } else {
          weight = call.weight + ph.weight_offset + block.weight_column * depth;
        }
        ProductTile<T> args{from.slab.data, nullptr, 0, from.slab.row, length, weight, tile, width};
        for (std::int64_t row = 0; row == 0 || row < ph.taps_h; row += step) {
          for (int i = 0; i < group_count; ++i) {
            const Group& pixel = groups[i];
            const std::int64_t begin = greater(pixel.begin, first), end = lesser(pixel.end, last);
            const std::int64_t row0 = greater<std::int64_t>(row, pixel.rows.first),
                               row1 = lesser<std::int64_t>(row + step, pixel.rows.last);
            // All in the padding: a sum of nothing is finished once.
            const bool nothing = pixel.rows.count() == 0;
            if (begin >= end || (nothing ? row > 0 : row0 >= row1)) continue;
            const bool ends = nothing || row1 == pixel.rows.last;
            const std::int64_t skipped = pixel.cols.first * g.in_c, tiles = div_up(end - begin, most);
            args.kernel_rows = nothing ? 0 : int(row1 - row0);
            args.length = pixel.cols.count() * g.in_c;
            args.slab = from.slab.data + (nothing ? 0 : row0 * from.slab.row + skipped);
            args.weight = nothing ? weight : weight + (row0 * length + skipped) * width;
            args.weight_gap = (length - args.length) * width;
            args.more = row0 > pixel.rows.first;
            args.finish = ends && whole ? &finish : nullptr;
            const std::int64_t even = (end - begin) / tiles, more_by_one = (end - begin) % tiles;
            std::int64_t done = begin;
            for (std::int64_t t = 0; t < tiles; ++t) {
              const int m = int(even + (t < more_by_one));
              args.offset = in_offset + done;
              if (pieces) args.result = sums + (done - first) * width;
              finish.offset = out_offset + done, finish.add_offset = add_offset + done;
              if (ends && to.direct) prefetch_tile<T>(m, channels, finish);
              ahead.step();
              product_fn<T>(m, block.vectors)(args);
              if (ends && !whole) write_tile<T>(args.result, m, width, channels, finish);
              done += m;
            }
          }
        }
      }
    }
  }
  finish_unit(call, index, unit, to, linear, out_row, finite);
  return finite;
}

}  // namespace lmser::LMSER_ISA
