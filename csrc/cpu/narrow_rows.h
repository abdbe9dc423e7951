// Rows of bfloat16 values in registers of float32 and back, and staged as they are.
#pragma once

#include <cstring>

#include "rows.h"

namespace lmser::LMSER_ISA {

using Half = std::uint16_t;  // the bits of a bfloat16

inline __mmask32 first_halves(std::int64_t n) { return __mmask32(n >= 32 ? ~0u : (1u << n) - 1); }
inline __mmask16 first_lanes(std::int64_t n) { return __mmask16(n >= 16 ? 0xFFFF : (1u << n) - 1); }

// The first `n` <= 16 values.
LMSER_HD Vec<float> load_halves(const Half* p, int n) {
  const __m256i v =
      n == 16 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)) : _mm256_maskz_loadu_epi16(first_lanes(n), p);
  return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16);
}
// To nearest, ties to even; NaN stays.
LMSER_HD __m256i halves_of(Vec<float> v) {
  const __m512i bits = (__m512i)v;
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7FC0)));
}
LMSER_HD void store_halves(Half* p, __m256i v, int n) {
  if (n == 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
  else
    _mm256_mask_storeu_epi16(p, first_lanes(n), v);
}
LMSER_HD void store_halves(Half* p, Vec<float> v, int n) { store_halves(p, halves_of(v), n); }
LMSER_HD void copy_halves(Half* to, const Half* from, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + 32 <= count; i += 32) _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
  if (i < count) {
    const __mmask32 rest = first_halves(count - i);
    _mm512_mask_storeu_epi16(to + i, rest, _mm512_maskz_loadu_epi16(rest, from + i));
  }
}

// Whether the values of a source are there in memory, channels side by side.
inline bool plain_halves(const Source& s) {
  return s.plain() && s.base.dtype == DType::bf16 && (s.base.sc == 1 || s.base.c == 1);
}

// As `stage` (rows.h), of a source without transform: rows x cols pixels of image n, zero outside the source, `stride`
// values a pixel. `line` is memory for a row of the source.
inline void stage_halves(const Source& s, std::int64_t n, std::int64_t row0, std::int64_t rows, std::int64_t col0,
                         std::int64_t cols, std::int64_t stride, Half* slab, float* line,
                         const RowScratch<float>& scratch) {
  const View& v = s.base;
  const std::int64_t h = v.h, w = v.w, c = v.c, inside0 = col0 > 0 ? col0 : 0,
                     inside1 = col0 + cols < w ? col0 + cols : w, count = inside1 - inside0;
  for (std::int64_t r = 0; r < rows; ++r) {
    Half* const to = slab + r * cols * stride;
    const std::int64_t row = row0 + r;
    if (row < 0 || row >= h || count <= 0) {
      std::memset(to, 0, sizeof(Half) * cols * stride);
      continue;
    }
    const std::int64_t before = (inside0 - col0) * stride, after = (col0 + cols - inside1) * stride;
    Half* const values = to + before;
    if (stride != c)
      std::memset(to, 0, sizeof(Half) * cols * stride);
    else
      std::memset(to, 0, sizeof(Half) * before), std::memset(values + count * stride, 0, sizeof(Half) * after);
    if (plain_halves(s)) {
      const Half* const from = static_cast<const Half*>(v.data) + n * v.sn + row * v.sh + inside0 * v.sw;
      if (stride == c && v.sw == c)
        std::memcpy(values, from, sizeof(Half) * count * c);
      else
        for (std::int64_t x = 0; x < count; ++x) copy_halves(values + x * stride, from + x * v.sw, c);
      continue;
    }
    read_values_from<float>(s, n, row, inside0, count, c, line, scratch);
    if (stride == c)
      for_lanes<float>(count * c,
                       [&](std::int64_t i, int k) { store_halves(values + i, load_n<float>(line + i, k), k); });
    else
      for (std::int64_t x = 0; x < count; ++x)
        for_lanes<float>(c, [&](std::int64_t i, int k) {
          store_halves(values + x * stride + i, load_n<float>(line + x * c + i, k), k);
        });
  }
}

// Values of two pixels in turn, (a0, b0, a1, b1, ...): a row of a tile whose depth is pixels.
LMSER_HD __m512i interleave(__m256i a, __m256i b) {
  alignas(64) static constexpr std::int16_t kOrder[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                          8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  return _mm512_permutex2var_epi16(_mm512_castsi256_si512(a), _mm512_load_si512(kOrder), _mm512_castsi256_si512(b));
}

}  // namespace lmser::LMSER_ISA
