// Where a tile of some rows of neighbouring pixels goes, all of one register of channels.
#pragma once

#include "conv_place.h"

namespace lmser::LMSER_ISA {

// Tiles of at most `Most` pixels.
template <class T, int Most>
class TileRows {
 public:
  TileRows(const ConvCall<T>& call, const UnitRange& unit, const UnitOutput<T>& to)
      : to_(to),
        r0_(unit.r0),
        channels_(int(call.plan->geometry.out_c)),
        add_h_(call.sink.add_h),
        add_w_(call.sink.add_w),
        add_apart_(to.add && add_h_ * add_w_ > 1),
        whole_(channels_ == kLanes<T> && in_registers(to.activation)),
        finish_(to.tile_finish(0)) {}

  // The next tile has `tile_rows` rows of `tile_cols` pixels, of which `rows` and `cols` are there: those from row h,
  // column w on of image n of the unit. What finishes it in registers; none: it is to be left in `result()`.
  const TileFinish<T>* place(std::int64_t n, std::int64_t h, std::int64_t w, int rows, int cols, int tile_rows,
                             int tile_cols) {
    rows_ = rows, cols_ = cols, step_ = tile_cols;
    for (int a = 0; a < rows; ++a) {
      count_up(offset_ + step_ * a, to_.out.at(n, h + a - r0_, w), to_.out.col, cols);
      for (int x = 0; add_apart_ && x < cols; ++x)
        apart_[step_ * a + x] = to_.add.at(n, (h + a) / add_h_ - r0_ / add_h_, (w + x) / add_w_);
    }
    point_at(0);
    finishes_ = whole_ && rows == tile_rows && cols == tile_cols;
    if (!finishes_) return nullptr;
    if (to_.direct) prefetch_tile<T>(rows * cols, channels_, finish_);
    return &finish_;
  }
  T* result() { return tile_; }
  // After the tile is there.
  void write() {
    if (finishes_) return;
    for (int a = 0; a < rows_; ++a) {
      point_at(step_ * a);
      write_tile<T>(tile_ + step_ * a * kLanes<T>, cols_, kLanes<T>, channels_, finish_);
    }
  }

 private:
  void point_at(int pixel) {
    finish_.offset = offset_ + pixel;
    finish_.add_offset = (add_apart_ ? apart_ : offset_) + pixel;
  }

  const UnitOutput<T>& to_;
  std::int64_t r0_;
  int channels_, add_h_, add_w_;
  bool add_apart_, whole_, finishes_ = false;
  TileFinish<T> finish_;
  int rows_ = 0, cols_ = 0, step_ = 0;
  std::int64_t offset_[Most + kLanes<double>], apart_[Most];
  alignas(64) T tile_[Most * kLanes<T>];
};

}  // namespace lmser::LMSER_ISA
