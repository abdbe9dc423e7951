// Sizes of minimal filtering along rows (filtered_rows.h).
#pragma once

#include "plan.h"
#include "tile.h"

namespace lmser::LMSER_ISA {

inline constexpr int kPairOutputs = 3, kPairPoints = 4;
// Tiles whose sums wait for their transform together.
inline constexpr int kPairGroup = 24;

LMSER_HD std::int64_t pair_tiles(const Phase& ph) { return (ph.cols + kPairOutputs - 1) / kPairOutputs; }
// The widest row of pairs of a plan, in tiles.
inline std::int64_t most_pair_tiles(const ConvPlan& p) {
  std::int64_t most = 0;
  for (const Phase& ph : p.phases)
    if (ph.pairs && pair_tiles(ph) > most) most = pair_tiles(ph);
  return most;
}

// Scratch in values: the points of a unit | sums of a group | one pixel of zeros.
struct PairScratch {
  std::int64_t points, sums, zeros;
  explicit PairScratch(const ConvPlan& p)
      : points(p.unit_images * p.slab_rows * kPairPoints * most_pair_tiles(p) * p.geometry.in_c),
        sums(std::int64_t(kPairGroup) * (kPairPoints + kPairOutputs) * p.tile.max_vectors * p.tile.lanes),
        zeros(p.geometry.in_c) {
    for (std::int64_t* x : {&points, &sums, &zeros}) *x = (*x + 63) / 64 * 64;
  }
  std::int64_t values() const { return points + sums + zeros; }
};

}  // namespace lmser::LMSER_ISA
