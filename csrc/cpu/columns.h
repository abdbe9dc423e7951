// The columns in which a weight gradient is summed.
#pragma once

#include "kernels.h"
#include "tile.h"

namespace lmser::LMSER_ISA {

// The sum's columns, f(first register, registers), each as wide as a tile. The small side is staged column after
// column: a tile reads it as one stream, and not a line of every pixel.
template <class T, class F>
LMSER_HD void for_columns(const WeightGradPlan& p, F&& f) {
  const int vectors = int(p.padded_out_c / kLanes<T>), columns = (vectors + kTileVectors - 1) / kTileVectors;
  int v = 0;
  for (int c = 0; c < columns; ++c) {
    const int width = (vectors - v + columns - c - 1) / (columns - c);
    f(v, width);
    v += width;
  }
}
template <class T>
LMSER_HD bool one_column(const WeightGradPlan& p) {
  return p.padded_out_c <= kTileVectors * kLanes<T>;
}

}  // namespace lmser::LMSER_ISA
