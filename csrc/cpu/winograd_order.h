// The order of tiles in a minimal-filtering buffer, [point][tile][channel].
//
// The last tile of a row or a column may need 2 or 3 of its 4 outputs alone. F(2, 3) and F(3, 3) evaluate at 4 and 5 of
// the points of F(4, 3) with the same weights (ThreeTaps in winograd_six_points.h), so such a tile takes no part in the
// products of the others: 16 % fewer at 7 and at 14 pixels. That products of one point stay one stretch of tiles, tiles
// of the last row come first, those of the last column last, and the corners behind these:
//
//     last row | inner tiles | last column | corners
//
// A point that columns leave out takes the first two parts, one that rows leave out the middle two.
#pragma once

#include "plan.h"

namespace lmser {

struct TileRange {
  std::int64_t begin, end;
  std::int64_t count() const { return end - begin; }
};

// Tiles of rows [begin, end) of tiles, counted from the first of image 0 of the batch on.
class TileOrder {
 public:
  TileOrder(const WinogradGrid& w, std::int64_t begin, std::int64_t end)
      : rows_(w.rows),
        begin_(begin),
        last_h_(w.last_h),
        last_w_(w.last_w),
        inner_cols_(w.cols - (w.last_w ? 1 : 0)),
        cols_(w.cols),
        last_rows_(w.last_h ? end / w.rows - begin / w.rows : 0),
        inner_rows_(end - begin - last_rows_) {}

  std::int64_t count() const { return (last_rows_ + inner_rows_) * cols_; }
  bool trimmed() const { return last_h_ || last_w_; }
  // Outputs of tile x of row `row` that are needed, each way; 0: all.
  int last_h(std::int64_t row) const { return last_h_ && row % rows_ == rows_ - 1 ? last_h_ : 0; }
  int last_w(std::int64_t x) const { return x == inner_cols_ ? last_w_ : 0; }

  std::int64_t index(std::int64_t row, std::int64_t x) const {
    const std::int64_t lasts = last_h_ ? row / rows_ - begin_ / rows_ : 0, inner = row - begin_ - lasts;
    const bool last = last_h(row);
    if (x < inner_cols_) return (last ? lasts : last_rows_ + inner) * inner_cols_ + x;
    return (last_rows_ + inner_rows_) * inner_cols_ + (last ? inner_rows_ + lasts : inner);
  }
  // Those that have a product at point `p` of rows and `q` of columns.
  TileRange at_point(int p, int q) const {
    const bool no_last_row = last_h_ && WinogradGrid::leaves_out(last_h_, p),
               no_last_col = last_w_ && WinogradGrid::leaves_out(last_w_, q);
    const std::int64_t before_columns = (last_rows_ + inner_rows_) * inner_cols_, columns = cols_ - inner_cols_;
    return {no_last_row ? last_rows_ * inner_cols_ : 0, no_last_col ? before_columns
                                                        : no_last_row
                                                            ? before_columns + inner_rows_ * columns
                                                            : before_columns + (inner_rows_ + last_rows_) * columns};
  }

 private:
  std::int64_t rows_, begin_;
  int last_h_, last_w_;
  std::int64_t inner_cols_, cols_, last_rows_, inner_rows_;
};

}  // namespace lmser
