// Which minimal-filtering algorithm a plan takes: the grid of its tiles, or none where the direct sum is faster or the
// shape allows no other.
#pragma once

#include "plan.h"

namespace lmser {

// What stands in the place of Filtering::where_faster (choose_filtering).
Filtering filtering_mode();

// Of a plan whose geometry, tile and output channels in whole registers are there, and whether it takes the dot tile.
// `calls` share one packing of the weight.
WinogradGrid chosen_grid(const ConvPlan& plan, std::int64_t value_bytes, int calls, Filtering filtering);
WinogradGrid chosen_grid(const WeightGradPlan& plan, std::int64_t value_bytes, int threads, Filtering filtering);

// Weights of a kernel row of three taps that is filtered: four points of the outer two, and the middle one.
inline constexpr int kAlongRowsWeights = 5;
// Products of an image with its rows filtered, for each pair of channels.
double products_along_rows(const Geometry& g);

// Whether the sums of a filtered gradient are small enough that every thread has one.
bool own_sums(const WeightGradPlan& plan, std::int64_t value_bytes, int threads);

}  // namespace lmser
