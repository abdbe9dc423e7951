// Convolutions of few pixels that read their weight as it lies.
#include <algorithm>
#include <atomic>
#include <optional>

#include "divide.h"
#include "filter_choice.h"
#include "plan.h"

namespace lmser {
namespace {

std::atomic<Unpacking> chosen_unpacking{Unpacking::where_faster};

// More pixels are not asked about; of a gradient; and where all that is possible is asked for.
constexpr std::int64_t kMostPixels = 128, kMostOfGradient = 256, kMostPossible = 1024;

// In products of a register: comparing a value of a packed weight with what was packed, or packing a matrix where it is
// used (packs_once); what either takes more where the weight comes from memory; starting minimal filtering, and what
// its products take more than others, as their weight is larger; the same for products with a weight as it lies; adding
// up the lanes of a sum; gathering or scattering a value under the kernel; copying one of a panel; and what the other
// form of a gradient takes to turn a value into the weight's order, and more where the gradient goes to memory. Fitted
// to measured times of all forms: 32 to 784 channels, 1 to 200 pixels, 1x1, 3x3 and 5x5, both strides and directions
// (AVX-512, two threads); but minimal filtering of 3 taps to those of CLmser at batch 1, among whose other layers its
// weight, three to four times as large, has left the caches when it is its turn again, and comparing to layers of 64
// channels forwards and back, where it takes longer than in calls that follow each other.
constexpr double kCompared = 0.65, kPackedAgain = 1, kFar = 2.1, kFiltered3 = 26, kFiltered5 = 10,
                 kFilteredProduct = 1.3, kUnpackedProduct = 1.05, kLanesAdded = 3, kGathered = 1.9, kCopied = 0.12,
                 kTurned = 1.9, kFarTurned = 6;
constexpr double kFarBytes = 16 << 20;
// Reading a register that has left the second-level cache, of weights whose packings do not stay there beside each
// other and their gradient: fitted to layers of 64 to 256 channels forwards and back at 7 x 7 pixels.
constexpr double kAway = 24, kAwayBytes = 96 << 10;

double weight_bytes(const Geometry& g, std::int64_t value_bytes) {
  return double(g.kernel_h * g.kernel_w * value_bytes) * double(g.in_c) * double(g.out_c);
}

// For each register of the weight.
double packed_cost(const ConvPlan& p, std::int64_t pixels, double bytes, int calls, bool away) {
  const Geometry& g = p.geometry;
  // What was packed, and what that was compared with, are read beside the weight.
  const double lanes = p.tile.lanes,
               wider = p.winograd.m ? double(p.winograd.weights()) / (g.kernel_h * g.kernel_w) : 1,
               far = (bytes > kFarBytes ? kFar * lanes : 0) + (away && bytes > kAwayBytes ? kAway * (wider + 1) : 0);
  if (p.winograd.m) {
    const double products = double(g.batch) * p.winograd.products() / (double(g.kernel_h) * g.kernel_w);
    return kFilteredProduct * products + (p.winograd.taps == 5 ? kFiltered5 : kFiltered3) + far;
  }
  return double(pixels) + (packs_once(p, calls) ? kPackedAgain : kCompared) * lanes + far;
}
double unpacked_cost(const ConvPlan& p, std::int64_t pixels) {
  const Geometry& g = p.geometry;
  const double lanes = p.tile.lanes, taps = double(g.kernel_h) * g.kernel_w,
               small_channels = double(g.transposed ? g.in_c : g.out_c);
  double product = kUnpackedProduct;
  if (taps > 1) product += kGathered * lanes / small_channels;
  if (!g.transposed) product += kLanesAdded * lanes / (double(g.in_c) * taps);
  return product * double(pixels) + (g.transposed && pixels > kDirectRows ? kCopied * lanes : 0);
}

}  // namespace

Unpacking choose_unpacking(Unpacking unpacking) { return chosen_unpacking.exchange(unpacking); }

bool takes_unpacked(const Geometry& whole, const TileShape& tile, std::int64_t value_bytes, int threads, int calls,
                    bool far, const ConvPlan* packed) {
  const std::int64_t pixels = small_pixels(whole);
  const Unpacking how = chosen_unpacking.load();
  if (pixels == 0 || how == Unpacking::never) return false;
  if (how == Unpacking::where_possible) return pixels <= kMostPossible;
  if (pixels > kMostPixels || calls > 1 || filtering_mode() != Filtering::where_faster) return false;
  std::optional<ConvPlan> own;
  if (!packed) packed = &own.emplace(plan_conv(whole, tile, value_bytes, threads, Filtering::where_faster, calls));
  return unpacked_cost(*packed, pixels) < packed_cost(*packed, pixels, weight_bytes(whole, value_bytes), calls, far);
}

bool gathers_gradient(const Geometry& g, const TileShape& tile, std::int64_t value_bytes, const View& grad) {
  const std::int64_t pixels = small_pixels(g);
  const Unpacking how = chosen_unpacking.load();
  if (pixels == 0 || how == Unpacking::never || !rows_lie_dense(grad)) return false;
  if (how == Unpacking::where_possible) return pixels <= kMostPossible;
  if (pixels > kMostOfGradient || filtering_mode() != Filtering::where_faster) return false;
  if (is_product(g)) return true;
  const double lanes = tile.lanes,
               gathered = (kUnpackedProduct - 1 + kGathered * lanes / double(g.out_c)) * double(pixels);
  return gathered < lanes * (kTurned + (weight_bytes(g, value_bytes) > kFarBytes ? kFarTurned : 0));
}

ConvPlan plan_unpacked(const Geometry& geometry, const TileShape& tile, int threads, bool taps_together) {
  ConvPlan p;
  p.gathers = !geometry.transposed && !is_product(geometry);
  const Geometry g = p.gathers ? gathered(geometry) : geometry;
  p.geometry = g, p.tile = tile, p.unpacked = true, p.taps_together = taps_together;
  for (std::int64_t c = 0; c < g.out_c; c += tile.lanes) p.blocks.push_back({int(c), 1, c});
  p.padded_out_c = std::int64_t(p.blocks.size()) * tile.lanes;
  p.unit_images = std::max<std::int64_t>(1, g.batch), p.image_units = g.batch > 0;
  p.unit_rows = g.out_h;
  p.slab_rows = g.in_h, p.slab_cols = g.in_w;
  p.slab_values = g.batch * p.slab_rows * p.slab_cols * g.in_c;
  if (p.work() > kSerialWork) p.block_splits = int(std::min<std::int64_t>(std::int64_t(p.blocks.size()), threads));
  p.units = p.image_units * p.block_splits;
  return p;
}

}  // namespace lmser
