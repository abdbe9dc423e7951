// The gradient before an activation, of bfloat16 values that all lie alike: what tiles read of it (narrow.h).
#pragma once

#include "narrow.h"
#include "narrow_rows.h"

namespace lmser::LMSER_ISA {

// Pixels [pixel0, pixel1): g = base f'(output) [* gate], rounded to `pre`, g + extra to `total`, the sums of g added to
// `bias`.
template <class Tiles>
void narrow_pull_back(const NarrowPullBack& call, std::int64_t pixel0, std::int64_t pixel1, double* bias) {
  constexpr std::int64_t kPixels = 64;  // whose sum is in float
  const std::int64_t channels = call.channels;
  with_activation(call.activation, [&]<Activation A>() {
    for (std::int64_t first = pixel0; first < pixel1; first += kPixels) {
      const std::int64_t last = first + kPixels < pixel1 ? first + kPixels : pixel1;
      for_lanes<float>(channels, [&](std::int64_t c, int k) {
        Vec<float> sum{};
        for (std::int64_t at = first * channels + c; at < last * channels + c; at += channels) {
          Vec<float> g = load_halves(call.base + at, k);
          if (call.output) g = act_pull_back<A, float>(g, load_halves(call.output + at, k), call.slope);
          if (call.gate) g = g * (load_halves(call.gate + at, k) > 0.0f ? splat(1.0f) : splat(call.gate_slope));
          sum = sum + g;
          if (call.pre) store_halves(call.pre + at, Tiles::rounded(g), k);
          if (call.extra) g = g + load_halves(call.extra + at, k);
          if (call.total) store_halves(call.total + at, Tiles::rounded(g), k);
        }
        if (bias)
          for (int i = 0; i < k; ++i) bias[c + i] += double(sum[i]);
      });
    }
  });
}

}  // namespace lmser::LMSER_ISA
