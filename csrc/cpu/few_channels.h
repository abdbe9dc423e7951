// How the results of few output channels leave: tiles of whole pixels, side by side.
#pragma once

#include "conv_place.h"

namespace lmser::LMSER_ISA {

// Values of the largest tile of few channels, and a register behind them.
template <class T>
inline constexpr int kFewValues = (LMSER_REGISTERS + 1) * kLanes<T>;

template <class T>
class FewChannels {
 public:
  FewChannels(const UnitOutput<T>& to, int channels) : finish_(to.tile_finish(0)), bias_(to.bias), channels_(channels) {
    for (int i = 0, c = 0; bias_ && i < kFewValues<T>; ++i, c = c + 1 < channels ? c + 1 : 0) repeated_[i] = bias_[c];
  }
  // Pixels that follow each other in memory leave as one piece, with the bias repeated for each.
  void write(const T* values, int pixels, const std::int64_t* offset, const std::int64_t* add_offset) {
    const bool joins = add_offset == offset && offset[pixels - 1] - offset[0] == (pixels - 1) * channels_;
    finish_.offset = offset, finish_.add_offset = add_offset;
    finish_.bias = bias_ && joins ? repeated_ : bias_;
    if (joins)
      write_tile<T>(values, 1, 0, pixels * channels_, finish_);
    else
      write_tile<T>(values, pixels, channels_, channels_, finish_);
  }

 private:
  TileFinish<T> finish_;
  const T* bias_;
  int channels_;
  alignas(64) T repeated_[kFewValues<T>];
};

}  // namespace lmser::LMSER_ISA
