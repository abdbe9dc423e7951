// Minimal filtering as units of work: a unit as one piece, or units in rounds (ConvPlan::round_units), whose three
// parts meet in memory that all threads share: [point][tile][channel], the transformed input and the sums.
#pragma once

#include "conv_place.h"

namespace lmser::LMSER_ISA {

template <class T>
WinogradOut winograd_out(const ConvCall<T>& call, const UnitRange& unit, const UnitOutput<T>& to) {
  const Sink& s = call.sink;
  return {to.out,       to.add,       to.drive,      to.bias,       to.image, to.row,
          to.col,       unit.r0,      unit.r1,       to.activation, to.slope, to.direct && repeats(s),
          s.upsample_h, s.upsample_w, float(s.scale)};
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

// The products of one point and blocks [block0, block1).
inline void round_products(const ConvCall<float>& call, int point, int block0, int block1, std::int64_t tiles,
                           const float* points, float* sums) {
  const ConvPlan& p = *call.plan;
  const std::int64_t in_c = p.geometry.in_c, pitch = p.winograd.pitch(tiles * in_c);
  const WinogradSums to(p, sums, 0, int(p.blocks.size()), tiles);
  const std::int64_t next = point + call.tasks;  // of this thread, as a rule
  for (int b = block0; b < block1; ++b) {
    const bool ahead = b + 1 == block1 && next < p.winograd.points();
    winograd_product(p, p.blocks[b], call.weight + packed_panel(p, b, point), points + point * pitch, tiles,
                     to.of_block(p, b) + point * to.row, points + (ahead ? next : 0) * pitch,
                     ahead ? 4 * tiles * in_c : 0);
  }
}

// A unit's sums to its outputs; false where one is not finite.
inline bool round_outputs(const ConvCall<float>& call, std::int64_t index, std::int64_t tile, std::int64_t tiles,
                          float* sums, float* scratch) {
  const ConvPlan& p = *call.plan;
  const WinogradGrid& w = p.winograd;
  const ConvScratch<float> layout(call);
  float* const linear = scratch + layout.slab + layout.line + layout.rows + layout.offsets;
  const UnitRange unit(p, index);
  const UnitOutput<float> to(call, unit, linear, nullptr);
  const WinogradSums from(p, sums, 0, int(p.blocks.size()), tiles, true);
  Vec<float> checked{};
  with_filter(w, [&]<class F>() {
    if constexpr (F::stride1)
      winograd_store<F, false>(p, from, tile, unit.n1 - unit.n0, unit.t0(w), unit.t1(w), winograd_out(call, unit, to),
                               checked);
  });
  const bool finite = all_finite(checked);
  finish_unit(call, index, unit, to, linear, linear + layout.linear, finite);
  return finite;
}

}  // namespace lmser::LMSER_ISA
