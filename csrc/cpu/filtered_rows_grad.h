// The weight gradient with its rows filtered (filtered_rows.h): kernels of 3 columns of taps at stride 2.
//
// Of three outputs of a row the two outer taps need six products of what lies under them and the gradient there; the
// adjoint of F(3, 2) takes four, of the points of both, summed over all pixels before they are brought back to taps.
// The middle tap is summed as it is. Sums are [tap row][point, and behind them the middle tap][input channel][channel].
#pragma once

#include "columns.h"
#include "filtered_rows.h"

namespace lmser::LMSER_ISA {

inline constexpr int kPairSums = kPairPoints + 1;

// Scratch in values: points of the big side, [row parity][point][image][row][tile][channel], so that the rows under one
// tap row follow each other | of the small side, [column of the sum][point][image][row][tile][width] | a pixel of
// zeros.
struct PairGradScratch {
  std::int64_t tiles, rows, big_point, small_point, big, small, zeros;
  explicit PairGradScratch(const WeightGradPlan& p)
      : tiles((p.geometry.out_w + kPairOutputs - 1) / kPairOutputs),
        rows(p.slab_rows / 2 + 1),
        big_point(p.unit_images * rows * tiles * p.geometry.in_c),
        small_point(p.unit_images * p.unit_rows * tiles),
        big(2 * kPairPoints * big_point),
        small(kPairPoints * small_point * p.padded_out_c),
        zeros(p.geometry.in_c) {
    for (std::int64_t* x : {&big, &small, &zeros}) *x = (*x + 63) / 64 * 64;
  }
  std::int64_t values() const { return big + small + zeros; }
};

// One tile of `Outputs` gradients, a register of channels: to points `step` apart.
template <int Outputs>
LMSER_HD void small_points(const float* from, std::int64_t col, float* to, std::int64_t step) {
  using V = Vec<float>;
  V g[Outputs];
#pragma GCC unroll 4
  for (int k = 0; k < Outputs; ++k) g[k] = load<float>(from + k * col);
  if constexpr (Outputs == 3) {
    V t[kPairPoints];
    Phased<3>::two_taps_out_adjoint(g, t);
#pragma GCC unroll 4
    for (int i = 0; i < kPairPoints; ++i) store<float>(to + i * step, t[i]);
  } else if constexpr (Outputs == 2) {
    store<float>(to, g[0]), store<float>(to + step, g[0] + g[1]), store<float>(to + 3 * step, g[1]);
  } else {
    store<float>(to, g[0]), store<float>(to + 3 * step, g[0]);
  }
}

// Rows, and images, that follow each other without a gap are one row.
template <class T>
LMSER_HD GradientTile<T> in_one_run(GradientTile<T> t) {
  if (t.cols == 1) t.big_col = t.big_row, t.small_col = t.small_row, t.cols = t.rows, t.rows = 1;
  if (t.rows > 1 && t.big_row == t.cols * t.big_col && t.small_row == t.cols * t.small_col)
    t.cols *= t.rows, t.rows = 1;
  if (t.rows == 1 && t.images > 1 && t.big_image == t.cols * t.big_col && t.small_image == t.cols * t.small_col)
    t.cols *= t.images, t.images = 1;
  return t;
}

// Of one unit: what is under the taps, in a slab or where it lies, its first row being row `first_row` of the input and
// its first column `first_col`; and the gradients, [column of the sum][pixel][width], or where they lie.
struct PairGradSides {
  Pixels<const float> big, small;
  std::int64_t first_row, first_col;
  bool columns;  // `small` is of columns, each `pixels` pixels behind the one before
  std::int64_t pixels;
};

class PairGrad {
 public:
  PairGrad(const WeightGradPlan& p, const PairGradSides& sides, std::int64_t images, std::int64_t r0, std::int64_t rows,
           float* memory)
      : p_(p),
        g_(p.geometry),
        s_(sides),
        layout_(p),
        images_(images),
        r0_(r0),
        rows_(rows),
        big_(memory),
        small_(memory + layout_.big),
        zeros_(small_ + layout_.small) {}

  void points() {
    std::memset(zeros_, 0, sizeof(float) * g_.in_c);
    for (std::int64_t n = 0; n < images_; ++n) {
      const std::int64_t first = greater<std::int64_t>(0, r0_ * g_.stride_h - g_.pad_h),
                         last = lesser(g_.in_h - 1, (r0_ + rows_ - 1) * g_.stride_h - g_.pad_h + g_.kernel_h - 1);
      for (std::int64_t h = first; h <= last; ++h) big_row(n, h);
      for (std::int64_t r = 0; r < rows_; ++r) small_row(n, r);
    }
  }

  // Rows [row, row + rows) of images [image, image + images) of the unit, to bands [band0, band1) of the sum.
  void products(std::int64_t image, std::int64_t images, std::int64_t row, std::int64_t rows, std::int64_t band0,
                std::int64_t band1, float* sum, bool fresh) const {
    constexpr int L = kLanes<float>;
    const std::int64_t bands = p_.bands_per_row, in_c = g_.in_c, rest = g_.out_w % kPairOutputs;
    for_columns<float>(p_, [&](int v, int vectors) {
      const std::int64_t width = vectors * L;
      for (std::int64_t at = band0 / bands; at < div_up(band1, bands); ++at) {
        const int tap = int(at / kPairSums), point = int(at % kPairSums);
        // Of rows in the padding nothing is summed.
        const OutputRange inside = outputs_inside(tap, tap, g_.stride_h, g_.pad_h, g_.in_h, g_.out_h);
        const std::int64_t from = between(inside.first - r0_ - row, 0, rows),
                           until = between(inside.last - r0_ - row, from, rows), q = row + from,
                           h = (r0_ + q) * g_.stride_h + tap - g_.pad_h;
        GradientTile<float> t{};
        t.fresh = fresh, t.images = images, t.rows = until - from, t.sum_stride = p_.padded_out_c;
        const float* big = big_;  // where there is no row
        if (point < kPairPoints) {
          const bool missing = (point == 1 && rest == 1) || (point == 2 && rest != 0);  // of the last tile
          t.cols = layout_.tiles - missing;
          t.big_col = in_c, t.big_row = layout_.tiles * in_c, t.big_image = layout_.rows * t.big_row;
          t.small_col = width, t.small_row = layout_.tiles * width, t.small_image = p_.unit_rows * t.small_row;
          if (t.rows > 0) big = big_ + big_at(image, h) + point * layout_.big_point;
          t.small = small_ + kPairPoints * layout_.small_point * v * L + point * layout_.small_point * width +
                    (image * p_.unit_rows + q) * t.small_row;
        } else {
          t.cols = g_.out_w;
          t.big_col = g_.stride_w * s_.big.col, t.big_row = g_.stride_h * s_.big.row, t.big_image = s_.big.image;
          if (t.rows > 0) big = s_.big.data + s_.big.at(image, h - s_.first_row, 1 - g_.pad_w - s_.first_col);
          t.small = s_.small.data;
          if (s_.columns) {
            t.small_col = width, t.small_row = g_.out_w * width, t.small_image = rows_ * t.small_row;
            t.small += v * L * s_.pixels + image * t.small_image + q * t.small_row;
          } else {
            t.small_col = s_.small.col, t.small_row = s_.small.row, t.small_image = s_.small.image;
            t.small += s_.small.at(image, q, 0) + v * L;
          }
        }
        if (t.rows == 0) t.images = 0;
        t = in_one_run(t);
        for (std::int64_t b = greater(band0, at * bands); b < lesser(band1, (at + 1) * bands); ++b) {
          const std::int64_t i = b % bands, k = in_c * i / bands;
          t.big = big + k;
          t.sum = sum + (at * in_c + k) * p_.padded_out_c + v * L;
          gradient_fn<float>(int(in_c * (i + 1) / bands - k), vectors)(t);
        }
      }
    });
  }

 private:
  std::int64_t big_at(std::int64_t n, std::int64_t h) const {
    const std::int64_t first = r0_ * g_.stride_h - g_.pad_h, even = first - (first & 1);
    return (h & 1) * kPairPoints * layout_.big_point + ((n * layout_.rows + (h - even) / 2) * layout_.tiles) * g_.in_c;
  }
  void big_row(std::int64_t n, std::int64_t h) {
    const float* const src = s_.big.data + s_.big.at(n, h - s_.first_row, -g_.pad_w - s_.first_col);
    const PairColumns columns{-std::int64_t(g_.pad_w), g_.stride_w, g_.in_w, g_.out_w, g_.in_c,
                              g_.stride_w * s_.big.col};
    pair_points_of_row(columns, src, zeros_, layout_.big_point, big_ + big_at(n, h));
  }
  void small_row(std::int64_t n, std::int64_t r) {
    constexpr int L = kLanes<float>;
    for_columns<float>(p_, [&](int v, int vectors) {
      const std::int64_t width = vectors * L, step = layout_.small_point * width,
                         col = s_.columns ? width : s_.small.col;
      const float* from = s_.columns ? s_.small.data + v * L * s_.pixels + (n * rows_ + r) * g_.out_w * width
                                     : s_.small.data + s_.small.at(n, r, 0) + v * L;
      float* to = small_ + kPairPoints * layout_.small_point * v * L + (n * p_.unit_rows + r) * layout_.tiles * width;
      for (std::int64_t t = 0; t < layout_.tiles; ++t, from += kPairOutputs * col, to += width) {
        const std::int64_t outputs = g_.out_w - t * kPairOutputs;
        for (int c = 0; c < width; c += L)
          if (outputs >= 3)
            small_points<3>(from + c, col, to + c, step);
          else if (outputs == 2)
            small_points<2>(from + c, col, to + c, step);
          else
            small_points<1>(from + c, col, to + c, step);
      }
    });
  }

  const WeightGradPlan& p_;
  const Geometry& g_;
  const PairGradSides& s_;
  const PairGradScratch layout_;
  const std::int64_t images_, r0_, rows_;
  float *const big_, *const small_, *const zeros_;
};

// Input channels [c0, c1) of the sums of `count` tasks, added and brought back to taps: (taps, in_c, padded_out_c).
inline void pair_grad_finish(const WeightGradPlan& p, const float* sums, int count, std::int64_t c0, std::int64_t c1,
                             float* out) {
  constexpr int L = kLanes<float>;
  using V = Vec<float>;
  const std::int64_t in_c = p.geometry.in_c, width = p.padded_out_c;
  for (int i = 0; i < p.geometry.kernel_h; ++i)
    for (std::int64_t c = c0; c < c1; ++c)
      for (std::int64_t o = 0; o < width; o += L) {
        V t[kPairSums];
#pragma GCC unroll 5
        for (int e = 0; e < kPairSums; ++e) {
          const float* const from = sums + ((i * kPairSums + e) * in_c + c) * width + o;
          t[e] = load<float>(from);
          for (int k = 1; k < count; ++k) t[e] = t[e] + load<float>(from + k * p.sum_values);
        }
        V taps[3];
        Phased<3>::weights_adjoint(t, taps);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) store<float>(out + ((i * 3 + j) * in_c + c) * width + o, taps[j]);
      }
}

}  // namespace lmser::LMSER_ISA
