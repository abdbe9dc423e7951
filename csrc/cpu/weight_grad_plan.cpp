// Plans of weight gradients.
#include <algorithm>

#include "filter_choice.h"
#include "padding.h"
#include "plan.h"
#include "plan_units.h"

namespace lmser {
namespace {

// Of minimal filtering: bytes of a unit's points; fewest tiles between two passes over the sum, of a unit and of a
// round; what the points of a round may fill of the third level.
constexpr std::int64_t kWinogradGradBytes = 512 << 10, kLeastGradTiles = 64, kLeastGradRoundTiles = 96,
                       kGradRoundBytes = 12 << 20;

// Tiles in units of at most `wanted` of them, where one row of tiles is not more.
void split_tiles(WeightGradPlan& p, std::int64_t wanted, int threads) {
  const Geometry& g = p.geometry;
  const WinogradGrid& w = p.winograd;
  wanted = std::max<std::int64_t>(1, wanted);
  p.row_units = p.unit_images = 1;
  if (w.rows * w.cols > wanted) {
    p.row_units = ceil_div(w.rows, std::max<std::int64_t>(1, wanted / w.cols));
    p.tile_rows = ceil_div(w.rows, p.row_units);
    p.row_units = ceil_div(w.rows, p.tile_rows);
  } else {
    p.tile_rows = w.rows;
    p.unit_images = even(g.batch, wanted / (w.rows * w.cols), threads);
  }
  p.unit_rows = p.tile_rows * w.m;
  p.image_units = ceil_div(g.batch, p.unit_images);
  p.units = p.row_units * p.image_units;
  p.slab_rows = (p.tile_rows - 1) * w.in_step + w.window;
  p.big_values = p.unit_images * p.slab_rows * p.slab_cols * g.in_c;
  p.small_values = p.unit_images * p.unit_rows * w.cols * w.m * p.padded_out_c;
}

// Of the products of a weight gradient those of the padding, for every value of the sum: what is saved by leaving them
// out, less reading the sums once more, which tells where it must not be done. That every pixel has a tap that meets
// the input is needed for that.
constexpr double kLeastInside = 64, kLeastShareInside = 0.04;
bool worth_inside(const Geometry& g) {
  if ((g.pad_h == 0 && g.pad_w == 0) || g.pad_h >= g.kernel_h || g.pad_w >= g.kernel_w) return false;
  const double left_out = 1 - share_inside(g.kernel_h, g.stride_h, g.pad_h, g.in_h, g.out_h) *
                                  share_inside(g.kernel_w, g.stride_w, g.pad_w, g.in_w, g.out_w);
  return left_out >= kLeastShareInside && left_out * double(g.batch * g.out_h * g.out_w) >= kLeastInside;
}

// What a unit of the direct sum stages.
void set_slabs(WeightGradPlan& p) {
  const Geometry& g = p.geometry;
  p.slab_rows = (p.unit_rows - 1) * g.stride_h + g.kernel_h;
  p.big_values = p.unit_images * p.slab_rows * p.slab_cols * g.in_c;
  p.small_values = p.unit_images * p.unit_rows * g.out_w * p.padded_out_c;
}

}  // namespace

bool fits(const WeightGradPlan& p, std::int64_t value_bytes, int threads) {
  return double(p.sum_values) * double(value_bytes) * threads <= 256e6;
}

bool shares_units(const WeightGradPlan& p, const WeightGradPlan& other) {
  const Geometry &g = p.geometry, &o = other.geometry;
  return g.batch == o.batch && g.out_h == o.out_h && g.out_w == o.out_w && !p.winograd.m && p.split_pixels &&
         other.split_pixels;
}

WeightGradPlan in_units_of(WeightGradPlan p, const WeightGradPlan& other) {
  p.unit_images = other.unit_images, p.image_units = other.image_units;
  p.unit_rows = other.unit_rows, p.row_units = other.row_units;
  p.units = other.units;
  set_slabs(p);
  return p;
}

WeightGradPlan plan_weight_grad(const Geometry& g, const TileShape& tile, std::int64_t value_bytes, int threads,
                                Filtering filtering, std::int64_t unit_bytes) {
  if (!unit_bytes) unit_bytes = kSlabBytes;
  WeightGradPlan p;
  p.geometry = g;
  p.tile = tile;
  p.padded_out_c = round_up(g.out_c, tile.lanes);
  // Without output channels there is nothing to sum, but bands are counted all the same.
  const std::int64_t vectors = std::max<std::int64_t>(p.padded_out_c / tile.lanes, 1),
                     widest = ceil_div(vectors, ceil_div(vectors, tile.max_vectors));
  const int most = tile.pixels_by_width[widest];
  p.winograd = chosen_grid(p, value_bytes, threads, filtering);
  if (p.winograd.m) {
    const WinogradGrid& w = p.winograd;
    p.sum_rows = w.weights(), p.sum_length = g.in_c;
    p.sum_values = p.sum_rows * p.sum_length * p.padded_out_c;
    p.bands_per_row = ceil_div(p.sum_length, most);
    p.slab_cols = (w.cols - 1) * w.in_step + w.window;
    // The sums are read and written once a unit, or once a round: enough tiles that this does not show.
    const std::int64_t tile_bytes = value_bytes * w.points() * (g.in_c + p.padded_out_c),
                       all = g.batch * w.rows * w.cols;
    split_tiles(p, std::min(std::max(kLeastGradTiles, kWinogradGradBytes / tile_bytes), ceil_div(all, threads)),
                threads);
    p.split_pixels =
        p.units >= threads && fits(p, value_bytes, threads) && (!w.stride1() || own_sums(p, value_bytes, threads));
    if (!p.split_pixels && p.units > 0) {
      split_tiles(p, std::min(kRoundUnitTiles, ceil_div(all, threads)), threads);
      const std::int64_t most = std::max(kLeastGradRoundTiles, kGradRoundBytes / tile_bytes);
      p.round_units = ceil_div(p.units, std::min(p.units, ceil_div(all, most)));
      p.round_pairs = std::max<std::int64_t>(1, most / all);
    }
    return p;
  }
  if (p.winograd.along_rows)
    p.sum_rows = kAlongRowsWeights * g.kernel_h, p.sum_length = g.in_c;
  else
    p.sum_rows = g.kernel_h, p.sum_length = std::int64_t(g.kernel_w) * g.in_c;
  p.sum_values = p.sum_rows * p.sum_length * p.padded_out_c;
  p.slab_cols = (g.out_w - 1) * g.stride_w + g.kernel_w;
  const std::int64_t row_bytes = value_bytes * (p.slab_cols * g.in_c * g.stride_h + g.out_w * p.padded_out_c);
  std::int64_t rows = std::clamp<std::int64_t>(unit_bytes / std::max<std::int64_t>(1, row_bytes), 1,
                                               std::max<std::int64_t>(1, g.out_h));
  rows = std::clamp<std::int64_t>(std::min(rows, ceil_div(g.out_h * g.batch, threads)), 1,
                                  std::max<std::int64_t>(1, g.out_h));
  if (g.batch == 1) rows = even(g.out_h, rows, threads);
  p.row_units = ceil_div(g.out_h, rows);
  p.unit_rows = ceil_div(g.out_h, std::max<std::int64_t>(1, p.row_units));
  p.row_units = ceil_div(g.out_h, std::max<std::int64_t>(1, p.unit_rows));  // none of them empty
  if (p.row_units <= 1) {
    const std::int64_t images = unit_bytes / std::max<std::int64_t>(1, row_bytes * g.out_h);
    p.unit_images =
        even(g.batch, std::clamp<std::int64_t>(images, 1, std::max<std::int64_t>(1, g.batch / threads)), threads);
  }
  p.image_units = ceil_div(g.batch, p.unit_images);
  p.units = p.row_units * p.image_units;
  set_slabs(p);
  p.bands_per_row = ceil_div(p.sum_length, most);
  // A sum per task is zeroed, added and reduced; taking bands instead, every task reads all pixels.
  const double values = double(g.batch) * (double(g.in_h) * double(g.in_w) * double(g.in_c) +
                                           double(g.out_h) * double(g.out_w) * double(g.out_c));
  p.split_pixels = p.units >= threads && 2.0 * double(p.sum_values) < values && fits(p, value_bytes, threads);
  p.inside = p.winograd.along_rows || (filtering != Filtering::never && worth_inside(g));
  return p;
}

}  // namespace lmser
