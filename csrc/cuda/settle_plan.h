// How a whole solve of a fully connected network is laid onto a device: how many blocks share a group of samples, how
// many samples a group has, which weights stay on chip. Arithmetic alone: it is asked where there is no device, too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace lmser {

constexpr int kSettleLayers = 8;     // at most
constexpr int kSettleThreads = 512;  // of a block
constexpr int kSettleRows = 4;       // rows of a weight, and values of a state, that a warp takes at once

// Why the kernels cannot run on the device of this number, as far as can be told without a launch, or nothing: a driver
// older than the library's CUDA runtime, no code for the device, a torch without CUDA. In a library compiled with nvcc.
std::string settle_obstacle(int device);

// Where a block keeps what, in values of the compute type behind the words that count changes.
struct SettlePlan {
  bool fits = false;
  int cluster = 1;  // blocks that share a group of samples, each with its slice of every layer
  int group = 1;    // samples of a group
  int tile = 1;     // samples that a warp takes at once
  std::int64_t groups = 0;
  std::int64_t shared_bytes = 0;
  std::int64_t streamed_bytes = 0;  // of weights that a block reads again in every sweep
  std::int64_t resident_bytes = 0;
  std::vector<int> own, state_at, drive_at, before_at;  // per layer; -1: none
  std::vector<int> up_at, down_at;                      // on the way back: gradients of the two drives
  std::vector<int> below_rows, above_rows;              // rows that stay on chip, of each direction into a layer
  std::vector<int> below_at, above_at;
};

struct SettleShape {
  std::vector<std::int64_t> sizes;  // channels of each layer
  std::int64_t samples = 0;
  int itemsize = 4;
  bool up_down = true;
  bool together = true;  // one stop for the whole batch: all groups must run at the same time
  bool back = false;     // back through the sweeps
};

struct SettleDevice {
  std::int64_t shared_bytes = 0;         // of a block
  std::vector<std::int64_t> clusters{};  // that run at the same time, of 1, 2, 4, ... blocks
};

inline std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

// Samples that a warp takes at once: as many as leave its sums in registers.
inline int settle_tile(std::int64_t group, int itemsize) {
  if (group == 1) return 1;
  if (group == 2 || itemsize == 8) return 2;
  return group > 4 && (group % 8 == 0 || group % 8 > 4) ? 8 : 4;
}

// Words of the magnitude's size: two moved and two gathered quantities, a stop and a count of sweeps for each sample.
inline std::int64_t settle_words(int cluster, int group) {
  return round_up(std::int64_t(group) * (2 + 4 * cluster + 2) + 4, 4);
}

inline SettlePlan settle_layout(const SettleShape& shape, int cluster, int group, std::int64_t shared_bytes) {
  SettlePlan p;
  p.cluster = cluster, p.group = group, p.tile = settle_tile(group, shape.itemsize);
  const int layers = int(shape.sizes.size());
  std::int64_t at = 0;
  const auto take = [&](std::int64_t values) {
    const std::int64_t here = at;
    at += round_up(values, 4);
    return int(here);
  };
  const std::int64_t room = (shared_bytes - settle_words(cluster, group) * shape.itemsize) / shape.itemsize;
  for (int l = 0; l < layers; ++l) {
    p.own.push_back(int(round_up((shape.sizes[l] + cluster - 1) / cluster, kSettleRows)));
    if (p.own[l] > room) return p;
    const std::int64_t state = group * round_up(shape.sizes[l], 4);
    const bool twice = shape.up_down && l > 0 && l + 1 < layers;  // is updated on the way up and on the way down
    p.state_at.push_back(shape.back ? -1 : take(state));
    p.drive_at.push_back(twice && !shape.back ? take(std::int64_t(p.own[l]) * group) : -1);
    p.before_at.push_back(twice && !shape.back ? take(std::int64_t(p.own[l]) * group) : -1);
    p.up_at.push_back(shape.back && l > 0 ? take(state) : -1);
    p.down_at.push_back(shape.back && l + 1 < layers ? take(state) : -1);
    if (at > room) return p;
  }
  p.below_rows.assign(layers, 0), p.above_rows.assign(layers, 0);
  p.below_at.assign(layers, 0), p.above_at.assign(layers, 0);
  for (int l = 0; l < layers; ++l)
    for (const int from : {l - 1, l + 1}) {
      if (from < 0 || from >= layers) continue;
      const std::int64_t width = round_up(shape.sizes[from], 4), left = (room - at) / width;
      const int rows =
          int(std::min<std::int64_t>(p.own[l], std::max<std::int64_t>(left, 0) / kSettleRows * kSettleRows));
      (from < l ? p.below_rows : p.above_rows)[l] = rows;
      (from < l ? p.below_at : p.above_at)[l] = take(rows * width);
      p.resident_bytes += rows * width * shape.itemsize;
      p.streamed_bytes += (p.own[l] - rows) * width * shape.itemsize;
    }
  p.shared_bytes = (settle_words(cluster, group) + at) * shape.itemsize;
  p.groups = (shape.samples + group - 1) / group;
  p.fits = true;
  return p;
}

// Clocks of one sweep, roughly: enough to choose between layouts. 128 bytes of shared memory and 32 bytes of the
// second-level cache a clock and multiprocessor.
inline double settle_clocks(const SettleShape& shape, const SettlePlan& p, std::int64_t at_once) {
  double products = 0;
  int updates = 0;
  for (std::size_t l = 0; l + 1 < shape.sizes.size(); ++l)
    products += 2.0 * p.group * double(shape.sizes[l]) * double(shape.sizes[l + 1]) / p.cluster;
  updates = int(shape.sizes.size()) * (shape.up_down ? 2 : 1);
  const double arithmetic = products / (shape.itemsize == 8 ? 64 : 128);
  const double on_chip = products * (kSettleRows + p.tile) / (kSettleRows * p.tile) * shape.itemsize / 128;
  const double streamed = double(p.streamed_bytes) * ((p.group + p.tile - 1) / p.tile) / 32;
  const double waves = double((p.groups + at_once - 1) / at_once);
  return waves * (std::max(arithmetic, on_chip) + streamed + updates * (p.cluster > 1 ? 900.0 : 150.0));
}

inline SettlePlan settle_plan(const SettleShape& shape, const SettleDevice& device) {
  SettlePlan best;
  const int layers = int(shape.sizes.size());
  if (layers < 2 || layers > kSettleLayers || shape.samples < 1) return best;
  for (const std::int64_t c : shape.sizes)
    if (c < 1 || c > (1 << 20)) return best;
  double least = 0;
  for (std::size_t i = 0; i < device.clusters.size(); ++i) {
    const std::int64_t at_once = device.clusters[i];
    if (at_once < 1) continue;
    std::int64_t group = (shape.samples + at_once - 1) / at_once;
    if (group > 1024) {
      if (shape.together) continue;
      group = 1024;
    }
    SettlePlan p = settle_layout(shape, 1 << i, int(group), device.shared_bytes);
    while (!p.fits && !shape.together && group > 1) {
      group = (group + 1) / 2;
      p = settle_layout(shape, 1 << i, int(group), device.shared_bytes);
    }
    if (!p.fits) continue;
    const double clocks = settle_clocks(shape, p, at_once);
    if (!best.fits || clocks < least) best = p, least = clocks;
  }
  return best;
}

}  // namespace lmser
