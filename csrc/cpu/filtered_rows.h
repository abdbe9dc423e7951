// Minimal filtering along rows alone: kernels of 3 columns of taps at stride 2, both directions.
//
// The outer two taps of a kernel row meet every other column of the input: a convolution of two taps over those, three
// outputs of which F(3, 2) makes of four products instead of six (winograd_phased.h). The middle tap meets the columns
// between and is a plain product. Along columns nothing is filtered, so that all rows of taps and all channels are
// summed before anything is transformed back: 7 products for 9. Filtering of both axes has 49 for 81, but there each
// sum of C products is written and read; here the transforms cost next to nothing, and few channels are enough.
//
// A row's last tile has one or two outputs where three do not divide it: F(2, 2) and F(1, 2) take points 0, 1 and
// infinity, or 0 and infinity, of the same weights, so that nothing is computed beyond the output.
#pragma once

#include "ahead.h"
#include "conv_place.h"
#include "pack_unit.h"
#include "padding.h"

namespace lmser::LMSER_ISA {

// One tile of so many outputs: columns `x` to points `step` apart.
template <int Outputs>
LMSER_HD void pair_points_of_channels(const float* const (&x)[kPairPoints], std::int64_t c, int n, std::int64_t step,
                                      float* to) {
  using V = Vec<float>;
  V a[Outputs + 1];
#pragma GCC unroll 4
  for (int k = 0; k <= Outputs; ++k) a[k] = load_n<float>(x[k] + c, n);
  const auto put = [&](int at, V v) __attribute__((always_inline)) { store_n<float>(to + at * step + c, v, n); };
  if constexpr (Outputs == 3) {
    V points[kPairPoints];
    Phased<3>::two_taps_in(a, points);
#pragma GCC unroll 4
    for (int i = 0; i < kPairPoints; ++i) put(i, points[i]);
  } else if constexpr (Outputs == 2) {
    put(0, a[0] - a[1]), put(1, a[1] + a[1]), put(3, a[2] - a[1]);
  } else {
    put(0, a[0]), put(3, a[1]);
  }
}
template <int Outputs>
LMSER_HD void pair_points_of_tile(const float* const (&x)[kPairPoints], std::int64_t channels, std::int64_t step,
                                  float* to) {
  constexpr int L = kLanes<float>;
  std::int64_t c = 0;
  for (; c + L <= channels; c += L) pair_points_of_channels<Outputs>(x, c, L, step, to);
  if (c < channels) pair_points_of_channels<Outputs>(x, c, int(channels - c), step, to);
}

// Which columns of a row of input pairs of taps meet: `cols` outputs, of which output j meets columns `off + j * step`
// and the next step's, `values` apart in memory.
struct PairColumns {
  std::int64_t off, step, in_w, cols, channels, values;
};
// The points of one row, `src` being its column `off`, each `point` values behind the one before; columns outside the
// input are `zeros`.
inline void pair_points_of_row(const PairColumns& c, const float* src, const float* zeros, std::int64_t point,
                               float* to) {
  const std::int64_t last = (c.cols + kPairOutputs - 1) / kPairOutputs - 1;
  const auto columns = [&](std::int64_t t, const float*(&x)[kPairPoints]) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int k = 0; k < kPairPoints; ++k) x[k] = src + (t * kPairOutputs + k) * c.values;
  };
  const float* x[kPairPoints];
  for (std::int64_t t = c.off < 0 ? 1 : 0; t < last; ++t) {
    columns(t, x);
    pair_points_of_tile<kPairOutputs>(x, c.channels, point, to + t * c.channels);
  }
  // The first tile and the last may reach beyond the input.
  for (std::int64_t t = c.off < 0 ? 0 : last; t <= last; t += greater<std::int64_t>(1, last)) {
    const std::int64_t outputs = lesser<std::int64_t>(kPairOutputs, c.cols - t * kPairOutputs);
    columns(t, x);
    if (t == 0 && c.off < 0) x[0] = zeros;
    if (c.off + (t * kPairOutputs + outputs) * c.step >= c.in_w) x[outputs] = zeros;
    float* const at = to + t * c.channels;
    if (outputs == 3)
      pair_points_of_tile<3>(x, c.channels, point, at);
    else if (outputs == 2)
      pair_points_of_tile<2>(x, c.channels, point, at);
    else
      pair_points_of_tile<1>(x, c.channels, point, at);
  }
}

// The points of a unit's input, [image][row][point][tile][channel], of the rows that are no padding.
struct PairPoints {
  float* data;
  std::int64_t image, row, point, channels;

  PairPoints(const ConvPlan& p, float* memory)
      : data(memory),
        image(p.slab_rows * kPairPoints * most_pair_tiles(p) * p.geometry.in_c),
        row(kPairPoints * most_pair_tiles(p) * p.geometry.in_c),
        point(most_pair_tiles(p) * p.geometry.in_c),
        channels(p.geometry.in_c) {}

  std::int64_t at(std::int64_t n, std::int64_t r, std::int64_t tile) const {
    return n * image + r * row + tile * channels;
  }

  void transform(const ConvPlan& p, const UnitRange& unit, const UnitInput<float>& from, float* zeros) const {
    std::memset(zeros, 0, sizeof(float) * channels);
    const Phase* pairs = p.phases.data();
    while (!pairs->pairs) ++pairs;  // any of them: all meet the same columns
    const RowSpan span = input_rows(p, unit.r0, unit.r1);
    const std::int64_t first = greater<std::int64_t>(span.first, 0), last = lesser(span.last, p.geometry.in_h - 1);
    const PairColumns columns{pairs->off_w, p.in_step_w, p.geometry.in_w,
                              pairs->cols,  channels,    p.in_step_w * from.slab.col};
    for (std::int64_t n = 0; n < unit.n1 - unit.n0; ++n)
      for (std::int64_t r = first; r <= last; ++r)
        pair_points_of_row(columns, from.slab.data + from.slab.at(n, r - from.first_row, pairs->off_w - p.slab_w0),
                           zeros, point, data + at(n, r - from.first_row, 0));
  }
};

// Some tiles, and the pixels that they make, side by side.
struct PairGroup {
  static constexpr int kPixels = kPairGroup * kPairOutputs;
  int tiles = 0, pixels = 0;
  // Tiles of a point, where theirs lie and which of them is which tile: those of points 0 and infinity are all.
  int counts[3] = {}, place[3][kPairGroup];
  std::int64_t points[3][kPairGroup];
  int outputs[kPairGroup];
  std::int64_t single[kPixels + 8], out[kPixels + 8], add[kPixels + 8];  // count_up writes some more

  void push(std::int64_t at, int count) {
    for (int list = 0; list < kPairOutputs; ++list) {
      place[list][tiles] = 0;
      if (list >= count) continue;
      place[list][tiles] = counts[list];
      points[list][counts[list]++] = at;
    }
    outputs[tiles++] = count;
  }
};

// One unit's pixels of a phase: false where a sum is not finite.
class PairPhase {
 public:
  PairPhase(const ConvCall<float>& call, const Phase& ph, const UnitRange& unit, const UnitInput<float>& from,
            const UnitOutput<float>& to, const PairPoints& points, float* sums, Ahead& ahead)
      : call_(call),
        p_(*call.plan),
        ph_(ph),
        unit_(unit),
        from_(from),
        to_(to),
        points_(points),
        sums_(sums),
        ahead_(ahead) {}

  // Rows [q0, q1) of the phase: all blocks of channels to a group of tiles, or, where their weights would leave the
  // second-level cache meanwhile, all groups to a block.
  bool run(std::int64_t q0, std::int64_t q1) {
    const std::int64_t weights = ph_.depth(p_.geometry.in_c) * p_.padded_out_c * std::int64_t(sizeof(float));
    const int step = weights > kNearPairsBytes ? 1 : unit_.block1 - unit_.block0;
    for (int b = unit_.block0; b < unit_.block1; b += step)
      for_tap_ranges(true, q0, q1, ph_.off_h, p_.in_step_h, ph_.taps_h, p_.geometry.in_h,
                     [&](std::int64_t row0, std::int64_t row1, TapRange taps) { rows(row0, row1, taps, b, b + step); });
    for (int i = 0; i < kLanes<float>; ++i)
      if (checked_[i] != 0.0f) return false;
    return true;
  }

 private:
  void rows(std::int64_t row0, std::int64_t row1, TapRange taps, int block0, int block1) {
    const std::int64_t images = unit_.n1 - unit_.n0, across = pair_tiles(ph_), all = images * (row1 - row0) * across;
    if (all == 0) return;
    const std::int64_t group = div_up(all, div_up(all, kPairGroup));
    std::int64_t t = 0, q = row0, n = 0;
    for (std::int64_t left = all; left > 0;) {
      PairGroup tiles;
      for (std::int64_t more = lesser(group, left); more > 0;) {
        const std::int64_t run = lesser(more, across - t);
        push(tiles, n, q, t, run);
        t += run, more -= run, left -= run;
        if (t < across) continue;
        t = 0;
        if (++q == row1) q = row0, ++n;
      }
      for (int b = block0; b < block1; ++b) block(tiles, taps, b);
    }
  }

  // Tiles [tile, tile + run) of a row.
  void push(PairGroup& to, std::int64_t n, std::int64_t q, std::int64_t tile, std::int64_t run) const {
    const std::int64_t x0 = tile * kPairOutputs, row = ph_.off_h + q * p_.in_step_h - from_.first_row,
                       h = ph_.out_h0 + q * p_.out_step_h, pixels = lesser(run * kPairOutputs, ph_.cols - x0),
                       w = ph_.out_w0 + x0 * p_.out_step_w;
    std::int64_t at = points_.at(n, row, tile);
    for (std::int64_t left = pixels; left > 0; left -= kPairOutputs, at += points_.channels)
      to.push(at, int(lesser<std::int64_t>(kPairOutputs, left)));
    count_up(to.single + to.pixels, from_.slab.at(n, row, ph_.off_w + 1 + x0 * p_.in_step_w - p_.slab_w0),
             p_.in_step_w * from_.slab.col, pixels);
    const int add_h = call_.sink.add_h, add_w = call_.sink.add_w;
    std::int64_t* const add = to.add + to.pixels;
    count_up(to.out + to.pixels, to_.out.at(n, h - unit_.r0, w), p_.out_step_w * to_.out.col, pixels);
    if (to_.add && add_h * add_w > 1)
      for (std::int64_t j = 0; j < pixels; ++j)
        add[j] = to_.add.at(n, h / add_h - unit_.r0 / add_h, (w + j * p_.out_step_w) / add_w);
    to.pixels += int(pixels);
  }

  // Sums of `count` tiles, in register tiles as even as can be.
  LMSER_HD static void products(ProductTile<float>& args, const std::int64_t* offset, int count, int vectors) {
    const int most = kTilePixels[vectors], pieces = (count + most - 1) / most;
    for (int i = 0, done = 0; i < pieces; ++i) {
      const int m = (count - done + pieces - i - 1) / (pieces - i);
      args.offset = offset + done;
      product_fn<float>(m, vectors)(args);
      args.result += m * args.result_row, done += m;
    }
  }

  void block(const PairGroup& tiles, TapRange taps, int index) {
    constexpr int L = kLanes<float>;
    const Geometry& g = p_.geometry;
    const Block& block = p_.blocks[index];
    const int vectors = block.vectors, width = vectors * L,
              channels = int(lesser<std::int64_t>(width, g.out_c - block.channel)), rows = taps.count();
    const std::int64_t of_point = ph_.taps_h * g.in_c * width;
    const float* const weight =
        call_.weight + ph_.weight_offset + block.weight_column * ph_.depth(g.in_c) + taps.first * g.in_c * width;
    float* const linear = sums_ + std::int64_t(kPairGroup) * kPairPoints * width;
    ProductTile<float> args{};
    args.length = g.in_c, args.result_row = width;
    if (rows > 0) {
      args.kernel_rows = rows, args.row_stride = points_.row;
      for (int point = 0; point < kPairPoints; ++point) {
        const int list = point % 3;  // that of infinity is that of 0
        args.slab = points_.data + point * points_.point + taps.first * points_.row;
        args.weight = weight + point * of_point;
        args.result = sums_ + std::int64_t(point) * kPairGroup * width;
        products(args, tiles.points[list], tiles.counts[list], vectors);
      }
      transform_back(tiles, width, linear);
    } else {
      std::memset(linear, 0, sizeof(float) * tiles.pixels * width);
    }
    // The middle tap goes on from there; without one the sums are finished.
    const bool add_apart = to_.add && call_.sink.add_h * call_.sink.add_w > 1;
    const bool single = ph_.taps_w == 3, whole = channels == width && in_registers(to_.activation);
    TileFinish<float> finish = to_.tile_finish(block.channel);
    args.slab = from_.slab.data + taps.first * from_.slab.row, args.row_stride = from_.slab.row;
    args.kernel_rows = single ? rows : 0, args.weight = weight + kPairPoints * of_point;
    args.more = true, args.finish = whole ? &finish : nullptr;
    const int most = kTilePixels[vectors], pieces = (tiles.pixels + most - 1) / most;
    for (int i = 0, done = 0; i < pieces; ++i) {
      const int m = (tiles.pixels - done + pieces - i - 1) / (pieces - i);
      finish.offset = tiles.out + done, finish.add_offset = (add_apart ? tiles.add : tiles.out) + done;
      args.offset = tiles.single + done, args.result = linear + std::int64_t(done) * width;
      if (to_.direct) prefetch_tile<float>(m, channels, finish);
      ahead_.step();
      product_fn<float>(m, vectors)(args);
      if (!whole) write_tile<float>(args.result, m, width, channels, finish);
      done += m;
    }
  }

  // `Outputs` outputs of one tile from its sums, at `first` of points 0 and infinity, `second` and `third` of the
  // others.
  template <int Outputs>
  LMSER_HD void tile_back(const float* first, const float* second, const float* third, int width, float* to,
                          Vec<float>& checked) const {
    using V = Vec<float>;
    constexpr int L = kLanes<float>;
    const std::int64_t infinity = std::int64_t(kPairGroup) * width * (kPairPoints - 1);
    for (int v = 0; v < width; v += L) {
      const V a = load<float>(first + v), d = load<float>(first + infinity + v);
      V y[Outputs];
      if constexpr (Outputs == 3) {
        const V m[kPairPoints] = {a, load<float>(second + v), load<float>(third + v), d};
        Phased<3>::two_taps_out(m, y);
        checked = checked + ((y[0] + y[1]) + y[2]) * 0.0f;
      } else if constexpr (Outputs == 2) {
        const V m = load<float>(second + v);
        y[0] = a + m, y[1] = m + d;
        checked = checked + (y[0] + y[1]) * 0.0f;
      } else {
        y[0] = a + d;
        checked = checked + y[0] * 0.0f;
      }
#pragma GCC unroll 4
      for (int j = 0; j < Outputs; ++j) store<float>(to + j * width + v, y[j]);
    }
  }
  void transform_back(const PairGroup& tiles, int width, float* to) {
    const std::int64_t of_point = std::int64_t(kPairGroup) * width;
    Vec<float> checked{};
    for (int t = 0; t < tiles.tiles; ++t) {
      const int outputs = tiles.outputs[t];
      const float *const first = sums_ + tiles.place[0][t] * width,
                         *const second = sums_ + of_point + tiles.place[1][t] * width,
                         *const third = sums_ + 2 * of_point + tiles.place[2][t] * width;
      if (outputs == 3)
        tile_back<3>(first, second, third, width, to, checked);
      else if (outputs == 2)
        tile_back<2>(first, second, third, width, to, checked);
      else
        tile_back<1>(first, second, third, width, to, checked);
      to += outputs * width;
    }
    checked_ = checked_ + checked;
  }

  const ConvCall<float>& call_;
  const ConvPlan& p_;
  const Phase& ph_;
  const UnitRange& unit_;
  const UnitInput<float>& from_;
  const UnitOutput<float>& to_;
  const PairPoints& points_;
  float* const sums_;
  Ahead& ahead_;
  Vec<float> checked_{};
};

// The phases of pairs of one unit; false where a sum is not finite.
inline bool paired_phases(const ConvCall<float>& call, const UnitRange& unit, const UnitInput<float>& from,
                          const UnitOutput<float>& to, float* memory, Ahead& ahead) {
  const ConvPlan& p = *call.plan;
  const PairScratch layout(p);
  float* const sums = memory + layout.points;
  const PairPoints points(p, memory);
  points.transform(p, unit, from, sums + layout.sums);
  bool finite = true;
  for (const Phase& ph : p.phases) {
    if (!ph.pairs) continue;
    const auto row = [&](std::int64_t r) { return div_up(greater<std::int64_t>(r - ph.out_h0, 0), p.out_step_h); };
    const std::int64_t q0 = row(unit.r0), q1 = greater(q0, lesser(ph.rows, row(unit.r1)));
    finite &= PairPhase(call, ph, unit, from, to, points, sums, ahead).run(q0, q1);
  }
  return finite;
}

// Input channels [c0, c1) of one block of a phase of pairs: [point, and behind them the middle tap][tap row][input
// channel][block width], from `to` on.
inline void pack_pairs(const ConvPlan& p, const Phase& ph, const WeightLayout<float>& w, int index, std::int64_t c0,
                       std::int64_t c1, float* to) {
  constexpr int L = kLanes<float>;
  constexpr std::int64_t kChunk = 8;
  using V = Vec<float>;
  const Geometry& g = p.geometry;
  const Block& block = p.blocks[index];
  const std::int64_t all = std::int64_t(g.kernel_h) * g.kernel_w, width = std::int64_t(block.vectors) * L,
                     of_row = g.in_c * width, of_point = ph.taps_h * of_row;
  alignas(64) float taps[kChunk * 9 * L];
  for (std::int64_t from = c0; from < c1; from += kChunk) {
    const std::int64_t count = lesser(kChunk, c1 - from);
    for (int v = 0; v < block.vectors; ++v) {
      gather_taps<float>(g, w, block.channel + v * L, from, count, taps);
      for (std::int64_t c = 0; c < count; ++c)
        for (int a = 0; a < ph.taps_h; ++a) {
          const auto tap = [&](int b) {  // in the order in which they meet ascending columns
            const int i = g.transposed ? ph.first_tap_h - a * g.stride_h : a,
                      j = g.transposed ? ph.first_tap_w - b * g.stride_w : b;
            return load<float>(taps + (c * all + i * g.kernel_w + j) * L);
          };
          const V first = tap(0), second = tap(ph.taps_w - 1);
          float* const at = to + a * of_row + (from + c) * width + v * L;
          store<float>(at, first);
          store<float>(at + of_point, (first + second) * 0.5f);
          store<float>(at + 2 * of_point, (first - second) * 0.5f);
          store<float>(at + 3 * of_point, second);
          if (ph.taps_w == 3) store<float>(at + 4 * of_point, tap(1));
        }
    }
  }
}

}  // namespace lmser::LMSER_ISA
