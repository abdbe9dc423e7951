// Minimal filtering as units of work: a unit as one piece, or units in rounds (ConvPlan::round_units), whose three parts
// meet in memory that all threads share: [point][tile][channel], the transformed input and the sums.
#pragma once

#include "conv_place.h"

namespace lmser::LMSER_ISA {

template <class T>
WinogradOut winograd_out(const ConvCall<T>& call, const UnitRange& unit, const UnitOutput<T>& to) {
  const Sink& s = call.sink;
  return {to.out,  to.add,  to.drive,      to.bias,  to.image,                 to.row,       to.col,       unit.r0,
          unit.r1, to.activation, to.slope, to.direct && repeats(s), s.upsample_h, s.upsample_w, float(s.scale)};
}

template <class T>
bool winograd_unit(const ConvCall<T>& call, const UnitRange& unit, const UnitInput<T>& from, const UnitOutput<T>& to,
                   T* scratch) {
  const ConvPlan& p = *call.plan;
  const WinogradGrid& w = p.winograd;
  const WinogradSlab slab{from.data, unit.n1 - unit.n0, from.image, from.row, from.col};
  const WinogradOut out = winograd_out(call, unit, to);
  return with_filter(w, [&]<class F>() {
    if constexpr (!F::stride1)
      if (p.geometry.transposed)
        return winograd_tiles<F, true>(p, call.weight, slab, unit.t0(w), unit.t1(w), unit.block0, unit.block1, out,
                                       scratch);
    return winograd_tiles<F, false>(p, call.weight, slab, unit.t0(w), unit.t1(w), unit.block0, unit.block1, out,
                                    scratch);
  });
}

// A unit's input to the points of its tiles, the first of which is number `tile` of the round's `tiles`.
inline void round_points(const ConvCall<float>& call, std::int64_t index, std::int64_t tile, std::int64_t tiles,
                         float* points, float* scratch) {
  const ConvPlan& p = *call.plan;
  const WinogradGrid& w = p.winograd;
  const std::int64_t in_c = p.geometry.in_c;
  const ConvScratch<float> layout(call);
  const UnitRange unit(p, index);
  const UnitInput<float> from(call, unit, layout, scratch);
  transform_tiles<SixPoints, Transform::up>(from.data, unit.n1 - unit.n0, unit.t1(w) - unit.t0(w), w.cols, from.image,
                                            w.in_step * from.row, w.in_step * from.col, from.row, from.col, in_c, in_c,
                                            w.pitch(tiles * in_c), points + tile * in_c);
}

// The products of one point and one block, to `sum_row` values a row; `next` is the rows' next point, if any.
inline void round_product(const ConvCall<float>& call, int block, int point, std::int64_t tiles, const float* points,
                          float* sums, std::int64_t sum_row, std::int64_t next) {
  const ConvPlan& p = *call.plan;
  const std::int64_t in_c = p.geometry.in_c, pitch = p.winograd.pitch(tiles * in_c);
  const bool ahead = next >= 0 && next < p.winograd.points();
  winograd_product(p, p.blocks[block], call.weight + packed_panel(p, block, point), points + point * pitch, tiles, sums,
                   sum_row, points + (ahead ? next : 0) * pitch, ahead ? 4 * tiles * in_c : 0);
}

// Sums of blocks [unit.block0, unit.block1) of a unit to its outputs; false where one is not finite.
inline bool round_store(const ConvCall<float>& call, std::int64_t index, const UnitRange& unit, const WinogradSums& sums,
                        float* scratch) {
  const ConvPlan& p = *call.plan;
  const WinogradGrid& w = p.winograd;
  const ConvScratch<float> layout(call);
  float* const linear = scratch + layout.slab + layout.line + layout.rows + layout.offsets;
  const UnitOutput<float> to(call, unit, linear, nullptr);
  const bool last = unit.block1 == int(p.blocks.size());
  const std::int64_t first = p.blocks[unit.block0].weight_column,
                     until = last ? p.padded_out_c : p.blocks[unit.block1].weight_column;
  const Block blocks{p.blocks[unit.block0].channel, int((until - first) / kLanes<float>), first};
  Vec<float> checked{};
  with_filter(w, [&]<class F>() {
    if constexpr (F::stride1)
      winograd_store<F, false>(p, blocks, sums, unit.n1 - unit.n0, unit.t0(w), unit.t1(w), winograd_out(call, unit, to),
                               checked);
  });
  const bool finite = all_finite(checked);
  finish_unit(call, index, unit, to, linear, linear + layout.linear, finite);
  return finite;
}

// By points: the products of one of them, blocks [block0, block1), and then a unit's sums to its outputs.
inline void round_products(const ConvCall<float>& call, int point, int block0, int block1, std::int64_t tiles,
                           const float* points, float* sums) {
  const ConvPlan& p = *call.plan;
  float* const to = sums + point * p.winograd.pitch(tiles * p.padded_out_c);
  for (int b = block0; b < block1; ++b)
    round_product(call, b, point, tiles, points, to + p.blocks[b].weight_column, p.padded_out_c,
                  b + 1 == block1 ? point + call.tasks : -1);
}
inline bool round_outputs(const ConvCall<float>& call, std::int64_t index, std::int64_t tile, std::int64_t tiles,
                          const float* sums, float* scratch) {
  const ConvPlan& p = *call.plan;
  const std::int64_t row = p.padded_out_c;
  return round_store(call, index, UnitRange(p, index), {sums + tile * row, p.winograd.pitch(tiles * row), row, true},
                     scratch);
}

// By blocks: all points of one of them, and its outputs of all units [first, last).
inline bool round_block(const ConvCall<float>& call, int block, std::int64_t first, std::int64_t last,
                        std::int64_t tiles, const float* points, float* scratch) {
  const ConvPlan& p = *call.plan;
  const WinogradGrid& w = p.winograd;
  const ConvScratch<float> layout(call);
  float* const sums = scratch + layout.before_pooled() - layout.sums - layout.winograd;
  const std::int64_t row = p.blocks[block].vectors * kLanes<float>, pitch = w.pitch(tiles * row);
  for (int point = 0; point < w.points(); ++point)
    round_product(call, block, point, tiles, points, sums + point * pitch, row, point + 1);
  bool finite = true;
  std::int64_t tile = 0;
  for (std::int64_t u = first; u < last; ++u) {
    UnitRange unit(p, u);
    unit.block0 = block, unit.block1 = block + 1;
    unit.c0 = p.blocks[block].channel;
    unit.c1 = block + 1 < int(p.blocks.size()) ? p.blocks[block + 1].channel : p.geometry.out_c;
    finite = round_store(call, u, unit, {sums + tile * row, pitch, row}, scratch) && finite;
    tile += (unit.n1 - unit.n0) * (unit.t1(w) - unit.t0(w)) * w.cols;
  }
  return finite;
}

}  // namespace lmser::LMSER_ISA
