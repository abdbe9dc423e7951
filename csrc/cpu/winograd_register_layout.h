// Sizes of minimal filtering with its sums in registers (winograd_registers.h).
#pragma once

#include "tile.h"
#include "winograd.h"

namespace lmser::LMSER_ISA {

// With fewer registers there are too few sums for what each of them loads; the direct sum is faster then.
inline constexpr bool kFiltersInRegisters = LMSER_REGISTERS >= 32;
// Tiles whose sums of two taps fill three quarters of them.
template <class F>
inline constexpr int kFilterTiles = 24 / (F::small + 1);

// Calls f with the algorithm of a grid of 3 taps at stride 2 as a type.
template <class G>
LMSER_HD auto with_phased(const WinogradGrid& w, G&& f) {
  return w.m == 3 ? f.template operator()<Phased<3>>() : f.template operator()<Phased<2>>();
}

// Values of all points of a tile.
inline std::int64_t register_points_of_tile(const ConvPlan& p) {
  constexpr int L = kLanes<float>;
  return (p.geometry.in_c + L - 1) / L * L * p.winograd.points();
}

// Blocks whose weights stay in the second-level cache from one group of tiles to the next.
inline int register_blocks(const ConvPlan& p) {
  constexpr std::int64_t kWeights = 256 << 10;
  const std::int64_t block = p.packed_size * std::int64_t(sizeof(float)) / std::int64_t(p.blocks.size());
  return block >= kWeights ? 1 : int(kWeights / block);
}

// Scratch: the points of one group of tiles, or of all where not all blocks go over a group together | a window.
inline std::int64_t register_window(const ConvPlan& p) {
  return std::int64_t(p.winograd.window) * p.winograd.window * p.geometry.in_c;
}
inline std::int64_t register_scratch(const ConvPlan& p) {
  const std::int64_t all = p.unit_images * (p.unit_rows / p.winograd.out_step) * p.winograd.cols,
                     group = with_phased(p.winograd, []<class F>() { return std::int64_t(kFilterTiles<F>); });
  return register_points_of_tile(p) * (register_blocks(p) >= int(p.blocks.size()) ? group : all) + register_window(p);
}

}  // namespace lmser::LMSER_ISA
