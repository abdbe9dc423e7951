// One unit of a weight gradient of bfloat16 values (narrow.h): pixels are the depth of its products. The small side is
// turned once, 16 output channels x 32 pixels a tile; what lies under a band's taps is laid out as pairs of pixels. The
// sums stay in the order of tiles to the end.
#pragma once

#include "conv_place.h"
#include "narrow.h"
#include "narrow_rows.h"
#include "narrow_tiles.h"

namespace lmser::LMSER_ISA {

// The small side is read where it lies: whole tiles of channels, one pixel of the unit after the other.
inline bool direct_narrow_small(const WeightGradCall<float>& call) {
  const WeightGradPlan& p = *call.plan;
  const View& v = call.small.base;
  return plain_halves(call.small) && v.c == p.padded_out_c && lies_dense(v, p.unit_images > 1) &&
         (p.unit_images == 1 || p.unit_rows == v.h);
}

// Scratch of a unit, in floats: both sides staged | a row while it is staged, and rows for that | offsets of pixels |
// tiles of the small side | tiles of a band.
struct NarrowGradScratch {
  static constexpr std::int64_t kTile = 16 * kNarrowDepth;
  std::int64_t big, small, line, rows, offsets, small_tiles, band_tiles;
  explicit NarrowGradScratch(const WeightGradCall<float>& call) {
    const WeightGradPlan& p = *call.plan;
    const View &b = call.big.base, &s = call.small.base;
    const std::int64_t pixels = p.unit_images * p.unit_rows * p.geometry.out_w, chunks = div_up(pixels, kNarrowDepth);
    big = div_up(p.big_values, 2), small = direct_narrow_small(call) ? 0 : div_up(p.small_values, 2);
    line = div_up(greater(b.w * b.c, s.w * s.c), 64) * 64;
    rows = RowScratch<float>::values(line);
    offsets = 2 * pixels;
    small_tiles = chunks * p.padded_out_c * kNarrowDepth / 2;
    band_tiles = chunks * kTile;
    for (std::int64_t* x : {&big, &small, &line, &rows, &offsets, &small_tiles, &band_tiles}) *x = div_up(*x, 64) * 64;
  }
  std::int64_t before_line() const { return big + small; }
  std::int64_t before_offsets() const { return before_line() + line + rows; }
  std::int64_t before_tiles() const { return before_offsets() + offsets; }
  std::int64_t values() const { return before_tiles() + small_tiles + band_tiles; }
};
inline std::int64_t narrow_grad_scratch(const WeightGradCall<float>& call) { return NarrowGradScratch(call).values(); }

// Adds the sums of channels over pixels, `pixel` values apart: of some of them in float, of all in double.
inline void add_half_channels(const Half* from, std::int64_t pixels, std::int64_t pixel, std::int64_t channels,
                              double* to) {
  constexpr std::int64_t kPixels = 64;
  for (std::int64_t x0 = 0; x0 < pixels; x0 += kPixels)
    for_lanes<float>(channels, [&](std::int64_t c, int lanes) {
      Vec<float> sum{};
      for (std::int64_t x = x0; x < lesser(x0 + kPixels, pixels); ++x)
        sum = sum + load_halves(from + x * pixel + c, lanes);
      for (int i = 0; i < lanes; ++i) to[c + i] += double(sum[i]);
    });
}

// Pixel pairs of 16 values each, zero behind the last pixel: row r of a tile is what `at(2 r)` and `at(2 r + 1)` point
// to.
template <class At>
LMSER_HD __m512i pair_of_pixels(std::int64_t first, std::int64_t pixels, __mmask16 values, At&& at) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i a = first < pixels ? _mm256_maskz_loadu_epi16(values, at(first)) : zero,
                b = first + 1 < pixels ? _mm256_maskz_loadu_epi16(values, at(first + 1)) : zero;
  return interleave(a, b);
}

// Sixteen rows of sixteen words turned.
LMSER_HD void turn_words(const __m512i (&row)[16], Half* to) {
  __m512i pairs[16], fours[16], eights[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      fours[i + 2 * j] = _mm512_unpacklo_epi64(pairs[i + j], pairs[i + 2 + j]);
      fours[i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[i + j], pairs[i + 2 + j]);
    }
    // fours[4 a + b] has in each quarter q rows 4 a to 4 a + 3 of column 4 q + b.
#pragma GCC unroll 4
  for (int b = 0; b < 4; ++b) {
    eights[b] = _mm512_shuffle_i32x4(fours[b], fours[4 + b], 0x88);
    eights[4 + b] = _mm512_shuffle_i32x4(fours[b], fours[4 + b], 0xDD);
    eights[8 + b] = _mm512_shuffle_i32x4(fours[8 + b], fours[12 + b], 0x88);
    eights[12 + b] = _mm512_shuffle_i32x4(fours[8 + b], fours[12 + b], 0xDD);
  }
#pragma GCC unroll 4
  for (int b = 0; b < 4; ++b) {
    _mm512_storeu_si512(to + b * 32, _mm512_shuffle_i32x4(eights[b], eights[8 + b], 0x88));
    _mm512_storeu_si512(to + (4 + b) * 32, _mm512_shuffle_i32x4(eights[4 + b], eights[12 + b], 0x88));
    _mm512_storeu_si512(to + (8 + b) * 32, _mm512_shuffle_i32x4(eights[b], eights[8 + b], 0xDD));
    _mm512_storeu_si512(to + (12 + b) * 32, _mm512_shuffle_i32x4(eights[4 + b], eights[12 + b], 0xDD));
  }
}

template <class Tiles>
void narrow_grad_unit(const WeightGradCall<float>& call, std::int64_t unit, std::int64_t band0, std::int64_t band1,
                      float* scratch) {
  constexpr std::int64_t kTile = NarrowGradScratch::kTile, kSums = 16 * 16;
  const WeightGradPlan& p = *call.plan;
  const Geometry& g = p.geometry;
  const NarrowGradScratch layout(call);
  const std::int64_t n0 = unit / p.row_units * p.unit_images, n1 = lesser(n0 + p.unit_images, g.batch),
                     r0 = unit % p.row_units * p.unit_rows, r1 = lesser(r0 + p.unit_rows, g.out_h), rows = r1 - r0,
                     pixels = (n1 - n0) * rows * g.out_w, chunks = div_up(pixels, kNarrowDepth);
  auto* const big = reinterpret_cast<Half*>(scratch);
  const bool direct_small = direct_narrow_small(call);
  auto* const staged = reinterpret_cast<Half*>(scratch + layout.big);
  const View& lies = call.small.base;
  const Half* const small = direct_small ? static_cast<const Half*>(lies.data) + n0 * lies.sn + r0 * lies.sh : staged;
  float* const line = scratch + layout.before_line();
  auto* const offset = reinterpret_cast<std::int64_t*>(scratch + layout.before_offsets());
  auto* const small_tiles = reinterpret_cast<Half*>(scratch + layout.before_tiles());
  auto* const band_tiles = reinterpret_cast<Half*>(scratch + layout.before_tiles() + layout.small_tiles);

  const std::int64_t big_rows = (rows - 1) * g.stride_h + g.kernel_h, big_row = p.slab_cols * g.in_c,
                     big_image = big_rows * big_row, width = p.padded_out_c;
  const auto row_scratch = RowScratch<float>::at(line + layout.line, layout.line);
  std::int64_t pixel = 0;
  for (std::int64_t n = 0; n < n1 - n0; ++n) {
    stage_halves(call.big, n0 + n, r0 * g.stride_h - g.pad_h, big_rows, -std::int64_t(g.pad_w), p.slab_cols, g.in_c,
                 big + n * big_image, line, row_scratch);
    if (!direct_small)
      stage_halves(call.small, n0 + n, r0, rows, 0, g.out_w, width, staged + n * rows * g.out_w * width, line,
                   row_scratch);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t x = 0; x < g.out_w; ++x)
        offset[pixel++] = n * big_image + r * g.stride_h * big_row + x * g.stride_w * g.in_c;
  }
  if (call.channels && band0 == 0)  // of tasks that share a unit the first one's
    add_half_channels(small, pixels, width, g.out_c, call.channels);

  for (std::int64_t k = 0; k < chunks; ++k)
    for (std::int64_t c = 0; c < width; c += 16) {
      __m512i pairs[16];
#pragma GCC unroll 16
      for (std::int64_t r = 0; r < 16; ++r)
        pairs[r] = pair_of_pixels(k * kNarrowDepth + 2 * r, pixels, 0xFFFF,
                                  [&](std::int64_t i) { return small + i * width + c; });
      turn_words(pairs, small_tiles + (c / 16 * chunks + k) * kTile);
    }

  Tiles::start(kNarrowDepth);
  const std::int64_t length = std::int64_t(g.kernel_w) * g.in_c;
  for (std::int64_t band = band0; band < band1; ++band) {
    const std::int64_t value0 = band % p.bands_per_row * kNarrowDepth, left = length - value0;
    const Half* const under = big + band / p.bands_per_row * big_row + value0;
    const bool two = left > 16;
    const std::int64_t step = two ? 2 * kTile : kTile;
    for (std::int64_t k = 0; k < chunks; ++k)
      for (std::int64_t r = 0; r < 16; ++r) {
        const std::int64_t first = k * kNarrowDepth + 2 * r;
        Half* const to = band_tiles + k * step + r * 32;
        _mm512_storeu_si512(
            to, pair_of_pixels(first, pixels, first_lanes(left), [&](std::int64_t i) { return under + offset[i]; }));
        if (two)
          _mm512_storeu_si512(to + kTile, pair_of_pixels(first, pixels, first_lanes(left - 16),
                                                         [&](std::int64_t i) { return under + offset[i] + 16; }));
      }
    NarrowProduct product{};
    product.a_chunk = kTile, product.pieces = 1, product.depth = kNarrowDepth;
    product.b = band_tiles, product.b_tile = kTile, product.b_chunk = step;
    product.chunks = chunks;
    product.c_row = 16, product.c_half = 2 * kSums, product.c_tile = kSums;
    product.more = !call.fresh;
    for (std::int64_t c = 0; c < width; c += 32) {
      for (int half = 0; half < 2; ++half)
        product.a[half] = {small_tiles + (c / 16 + half) * chunks * kTile, kNarrowDepth, 0};
      product.c = call.sum + narrow_band(p, band) + c / 16 * 2 * kSums;
      if (!two && call.fresh)  // a tile of nothing beside each
        for (std::int64_t half = 0; half < 2 && c + 16 * half < width; ++half)
          std::memset(product.c + (2 * half + 1) * kSums, 0, sizeof(float) * kSums);
      narrow_product<Tiles>(product, c + 16 < width, two);
    }
  }
  Tiles::stop();
}

inline void write_narrow_weight(const WeightGradPlan& p, const float* sums, std::int64_t count, std::int64_t piece,
                                bool turned, const View& grad, bool more) {
  constexpr std::int64_t kSide = 16, kTaps = 32;  // taps at a time
  const Geometry& g = p.geometry;
  const std::int64_t chunks = div_up(g.in_c, kSide), out0 = piece / chunks * kSide, in0 = piece % chunks * kSide,
                     outs = lesser(kSide, g.out_c - out0), ins = lesser(kSide, g.in_c - in0),
                     taps = std::int64_t(g.kernel_h) * g.kernel_w, row_step = turned ? grad.sw : grad.sh,
                     col_step = turned ? grad.sh : grad.sw;
  for (std::int64_t tap0 = 0; tap0 < taps; tap0 += kTaps) {
    const std::int64_t some = lesser(kTaps, taps - tap0);
    // Of each tap where output channel 0 of the first tile of values lies, and of the next, which has the rest.
    const float* from[kTaps][2];
    int first[kTaps], at_first[kTaps];  // values of the first tile, and the place of value 0 in it
    std::int64_t at[kTaps];
    for (std::int64_t t = 0; t < some; ++t) {
      const std::int64_t row = (tap0 + t) / g.kernel_w, col = (tap0 + t) % g.kernel_w, k = col * g.in_c + in0;
      at[t] = row * row_step + col * col_step;
      at_first[t] = int(k % kSide), first[t] = int(lesser(ins, kSide - k % kSide));
      for (int tile = 0; tile < 2; ++tile) {
        const std::int64_t value = k / kSide * kSide + tile * kSide,
                           band = row * p.bands_per_row + lesser(value / kNarrowDepth, p.bands_per_row - 1);
        from[t][tile] = sums + narrow_band(p, band) + (out0 / kSide * 2 + value % kNarrowDepth / kSide) * kSide * kSide;
      }
    }
    // [input channel][tap], as a weight lies as a rule.
    const bool dense = tap0 == 0 && some == taps && grad.sc == taps && (g.kernel_w == 1 || col_step == 1) &&
                       (g.kernel_h == 1 || row_step == g.kernel_w);
    for (std::int64_t o = 0; o < outs; ++o) {
      Half line[kSide * kTaps];
      for (std::int64_t t = 0; t < some; ++t) {
        const int n = first[t], rest = int(ins) - n;
        const float *const a = from[t][0] + o * kSide + at_first[t], *const b = from[t][1] + o * kSide - n;
        const __mmask16 low = first_lanes(n), high = first_lanes(ins) & ~low;
        Vec<float> sum{};
        for (std::int64_t s = 0; s < count; ++s) {
          __m512 v = _mm512_maskz_loadu_ps(low, a + s * p.sum_values);
          if (rest) v = _mm512_mask_loadu_ps(v, high, b + s * p.sum_values);
          sum = s ? sum + (Vec<float>)v : (Vec<float>)v;
        }
        if (more) {  // of the whole gradient that is there already
          Half held[kSide] = {};
          const Half* const to = static_cast<const Half*>(grad.data) + (out0 + o) * grad.sn + in0 * grad.sc + at[t];
          for (std::int64_t i = 0; i < ins; ++i) held[i] = to[i * grad.sc];
          sum = sum + load_halves(held, kSide);
        }
        if (dense && taps == 1) {
          store_halves(static_cast<Half*>(grad.data) + (out0 + o) * grad.sn + in0, sum, int(ins));
          continue;
        }
        Half values[kSide];
        store_halves(values, sum, kSide);
        for (std::int64_t i = 0; i < kSide; ++i) line[i * some + t] = values[i];
      }
      Half* const to = static_cast<Half*>(grad.data) + (out0 + o) * grad.sn + in0 * grad.sc;
      if (dense) {
        if (taps > 1) copy_halves(to, line, ins * taps);
        continue;
      }
      for (std::int64_t i = 0; i < ins; ++i)
        for (std::int64_t t = 0; t < some; ++t) to[i * grad.sc + at[t]] = line[i * some + t];
    }
  }
}

}  // namespace lmser::LMSER_ISA
