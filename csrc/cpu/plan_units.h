// How both kinds of plans cut their work into units.
#pragma once

#include <algorithm>

#include "divide.h"

namespace lmser {

// Half of the smallest second-level cache of the machines aimed at (512 KiB): the other half is for weights.
inline constexpr std::int64_t kSlabBytes = 192 * 1024;
// Tiles of a unit that is a part of a round.
inline constexpr std::int64_t kRoundUnitTiles = 16;

// How many of `total` a unit so that no thread has a unit more than another where that can be had: `most` at most.
inline std::int64_t even(std::int64_t total, std::int64_t most, int threads) {
  most = std::max<std::int64_t>(1, most);
  const std::int64_t units = ceil_div(std::max<std::int64_t>(1, total), most);
  return units == 1 ? most : ceil_div(total, round_up(units, threads));
}

}  // namespace lmser
