// Minimal filtering as units of work: a unit as one piece, or units in rounds (ConvPlan::round_units), whose three
// parts meet in memory that all threads share: [point][tile][channel], the transformed input and the sums.
#pragma once

#include "conv_place.h"

namespace lmser::LMSER_ISA {

template <class T>
WinogradOut winograd_out(const ConvCall<T>& call, const UnitRange& unit, const UnitOutput<T>& to) {
  const Sink& s = call.sink;
  WinogradOut out{to.out, to.drive, to.add, to.gate, to.bias, unit.r0, unit.r1, to.activation, to.slope, to.gate_slope};
  if (!to.direct) return out;
  out.add_h = s.add_h, out.add_w = s.add_w;
  out.repeat = repeats(s), out.up_h = s.upsample_h, out.up_w = s.upsample_w, out.scale = float(s.scale);
  out.drive_once = s.drive_once && out.repeat;
  if (s.epilogue && s.epilogue->previous && s.epilogue->previous == s.epilogue->result)
    out.change = s.epilogue->change + unit.n0;
  return out;
}

template <class T>
bool winograd_unit(const ConvCall<T>& call, const UnitRange& unit, const UnitInput<T>& from, const UnitOutput<T>& to,
                   T* scratch) {
  const ConvPlan& p = *call.plan;
  const WinogradGrid& w = p.winograd;
  const std::int64_t images = unit.n1 - unit.n0;
  const WinogradOut out = winograd_out(call, unit, to);
  return with_filter(w, [&]<class F>() {
    if constexpr (!F::stride1)
      if (p.geometry.transposed)
        return winograd_tiles<F, true>(p, call.weight, from.slab, images, unit.t0(w), unit.t1(w), unit.block0,
                                       unit.block1, out, scratch);
    return winograd_tiles<F, false>(p, call.weight, from.slab, images, unit.t0(w), unit.t1(w), unit.block0, unit.block1,
                                    out, scratch);
  });
}

// A unit's input to the points of its tiles.
inline void round_points(const ConvCall<float>& call, std::int64_t index, const TileOrder& order, float* points,
                         float* scratch) {
  const ConvPlan& p = *call.plan;
  const WinogradGrid& w = p.winograd;
  const std::int64_t in_c = p.geometry.in_c, pitch = w.pitch(order.count() * in_c), row0 = p.tile_row(index);
  const ConvScratch<float> layout(call);
  const UnitRange unit(p, index);
  const UnitInput<float> from(call, unit, layout, scratch);
  const Windows windows = windows_in(from.slab, w, unit.n1 - unit.n0, unit.t1(w) - unit.t0(w));
  // Windows of five taps go to the same points by the same transform.
  transform_grid<ThreeTaps, Transform::up>(order, row0, windows, in_c, in_c, pitch, points);
}

// The products of one point and blocks [block0, block1).
inline void round_products(const ConvCall<float>& call, int point, int block0, int block1, const TileOrder& order,
                           const float* points, float* sums) {
  const ConvPlan& p = *call.plan;
  const std::int64_t in_c = p.geometry.in_c, pitch = p.winograd.pitch(order.count() * in_c);
  const WinogradSums to(p, sums, 0, int(p.blocks.size()), order.count());
  const int next = point + 1;  // of this thread, as a rule
  const TileRange tiles = order.at_point(point / 6, point % 6), then = order.at_point(next / 6, next % 6);
  for (int b = block0; b < block1; ++b) {
    const bool ahead = b + 1 == block1 && next < p.winograd.points();
    winograd_product(p, p.blocks[b], call.weight + packed_panel(p, b, point), points + point * pitch, tiles,
                     to.of_block(p, b) + point * to.row, points + (ahead ? next * pitch + then.begin * in_c : 0),
                     ahead ? 4 * then.count() * in_c : 0);
  }
}

// A unit's sums to its outputs; false where one is not finite.
inline bool round_outputs(const ConvCall<float>& call, std::int64_t index, const TileOrder& order, float* sums,
                          float* scratch) {
  const ConvPlan& p = *call.plan;
  const WinogradGrid& w = p.winograd;
  const ConvScratch<float> layout(call);
  float* const linear = scratch + layout.slab + layout.line + layout.rows + layout.offsets;
  const UnitRange unit(p, index);
  const UnitOutput<float> to(call, unit, linear, nullptr);
  const WinogradSums from(p, sums, 0, int(p.blocks.size()), order.count(), true);
  Vec<float> checked{};
  with_filter(w, [&]<class F>() {
    if constexpr (F::stride1)
      winograd_store<F, false>(p, from, order, p.tile_row(index), unit.n1 - unit.n0, unit.t0(w), unit.t1(w),
                               winograd_out(call, unit, to), checked);
  });
  const bool finite = all_finite(checked);
  finish_unit(call, index, unit, to, linear, linear + layout.linear, finite);
  return finite;
}

}  // namespace lmser::LMSER_ISA
