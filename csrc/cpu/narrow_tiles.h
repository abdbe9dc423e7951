// Products of tiles: by the processor's instructions (Intel AMX), and by loops that stand for them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "narrow_rows.h"

namespace lmser::LMSER_ISA {

// Sixteen rows of values: `row` from one to the next, `piece` from one piece of their depth to the next.
struct NarrowRows {
  const std::uint16_t* at;
  std::int64_t row, piece;
};
// One or two tiles of 16 rows of `a` times one or two of 16 columns of `b`, each a sum over `pieces` of `chunks` of as
// many values as `start` was told: c[row][column] = [c +] sum a[row][k] b[k][column]. A tile of b is [k /
// 2][column][2].
struct NarrowProduct {
  NarrowRows a[2];
  std::int64_t a_chunk;  // values from one chunk to the next, of a piece
  const std::uint16_t* b;
  std::int64_t b_tile, b_chunk;
  std::int64_t pieces, chunks, depth;
  float* c;
  std::int64_t c_row, c_half, c_tile;
  bool more = false;  // sums go on from what `c` holds
};

#if defined(__x86_64__)
// Tiles 0 to 3 are sums, 4 and 5 rows of `a`, 6 and 7 columns of `b`. The instructions are written out: the compiler's
// names for them need flags under which it would use other instructions that not every processor here has, and do not
// say that they read and write memory.
#define LMSER_TILE_LOAD(tile, at, bytes) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(at), "r"(std::int64_t(bytes)) : "memory")
#define LMSER_TILE_STORE(tile, at, bytes) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(at), "r"(std::int64_t(bytes)) : "memory")
#define LMSER_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile::)
#define LMSER_TILE_PRODUCT(sum, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum::)

struct AmxTiles {
  // A thread has tiles from `start` to `stop` alone: the operating system need not save them at other times.
  static void start(std::int64_t depth) {
    struct alignas(64) Shape {
      std::uint8_t palette = 1, first_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 0, 0, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 0, 0};
    } shape;
    static_assert(sizeof(Shape) == 64);
    shape.row_bytes[4] = shape.row_bytes[5] = std::uint16_t(2 * depth);
    shape.rows[6] = shape.rows[7] = std::uint8_t(depth / 2);
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  static void stop() { asm volatile("tilerelease" ::); }
  // To nearest, ties to even; what is below the smallest normal number becomes zero, as in a product.
  static LMSER_HD __m256i rounded(Vec<float> v) {
    __m256i halves;
    asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(v));
    return halves;
  }

  template <int Halves, int Tiles>
  static void product(const NarrowProduct& p) {
    const std::int64_t a_bytes = 2 * p.a[0].row, other_bytes = 2 * p.a[1].row, c_bytes = 4 * p.c_row;
    if (p.more) {
      LMSER_TILE_LOAD(0, p.c, c_bytes);
      if constexpr (Tiles > 1) LMSER_TILE_LOAD(1, p.c + p.c_tile, c_bytes);
      if constexpr (Halves > 1) LMSER_TILE_LOAD(2, p.c + p.c_half, c_bytes);
      if constexpr (Halves > 1 && Tiles > 1) LMSER_TILE_LOAD(3, p.c + p.c_half + p.c_tile, c_bytes);
    } else {
      LMSER_TILE_ZERO(0);
      if constexpr (Tiles > 1) LMSER_TILE_ZERO(1);
      if constexpr (Halves > 1) LMSER_TILE_ZERO(2);
      if constexpr (Halves > 1 && Tiles > 1) LMSER_TILE_ZERO(3);
    }
    const std::uint16_t *a = p.a[0].at, *other = p.a[1].at, *b = p.b;
    const std::int64_t gap = p.a[0].piece - p.chunks * p.a_chunk, other_gap = p.a[1].piece - p.chunks * p.a_chunk;
    for (std::int64_t left = p.chunks, pieces = p.pieces; pieces > 0; a += p.a_chunk, b += p.b_chunk) {
      LMSER_TILE_LOAD(4, a, a_bytes);
      LMSER_TILE_LOAD(6, b, 64);
      LMSER_TILE_PRODUCT(0, 4, 6);
      if constexpr (Tiles > 1) {
        LMSER_TILE_LOAD(7, b + p.b_tile, 64);
        LMSER_TILE_PRODUCT(1, 4, 7);
      }
      if constexpr (Halves > 1) {
        LMSER_TILE_LOAD(5, other, other_bytes);
        LMSER_TILE_PRODUCT(2, 5, 6);
        if constexpr (Tiles > 1) LMSER_TILE_PRODUCT(3, 5, 7);
        other += p.a_chunk;
      }
      if (--left > 0) continue;
      a += gap, left = p.chunks, --pieces;
      if constexpr (Halves > 1) other += other_gap;
    }
    LMSER_TILE_STORE(0, p.c, c_bytes);
    if constexpr (Tiles > 1) LMSER_TILE_STORE(1, p.c + p.c_tile, c_bytes);
    if constexpr (Halves > 1) LMSER_TILE_STORE(2, p.c + p.c_half, c_bytes);
    if constexpr (Halves > 1 && Tiles > 1) LMSER_TILE_STORE(3, p.c + p.c_half + p.c_tile, c_bytes);
  }
};
#undef LMSER_TILE_LOAD
#undef LMSER_TILE_STORE
#undef LMSER_TILE_ZERO
#undef LMSER_TILE_PRODUCT
#endif

struct EmulatedTiles {
  static void start(std::int64_t) {}
  static void stop() {}
  static LMSER_HD __m256i rounded(Vec<float> v) { return halves_of(v); }
  template <int Halves, int Tiles>
  static void product(const NarrowProduct& p) {
    for (int h = 0; h < Halves; ++h)
      for (int t = 0; t < Tiles; ++t) {
        float* const c = p.c + h * p.c_half + t * p.c_tile;
        for (int m = 0; m < 16; ++m)
          for (int n = 0; n < 16; ++n) {
            float sum = p.more ? c[m * p.c_row + n] : 0.0f;
            for (std::int64_t k = 0; k < p.pieces * p.chunks; ++k) {
              const NarrowRows& rows = p.a[h];
              const std::uint16_t *const a = rows.at + m * rows.row + k / p.chunks * rows.piece +
                                             k % p.chunks * p.a_chunk,
                                         *const b = p.b + t * p.b_tile + k * p.b_chunk;
              for (int i = 0; i < p.depth; ++i) sum += from_bf16(a[i]) * from_bf16(b[i / 2 * 32 + n * 2 + i % 2]);
            }
            c[m * p.c_row + n] = sum;
          }
      }
  }
};

template <class Tiles>
double product_rounds(std::int64_t rounds) {
  constexpr std::int64_t kSide = 16, kDepth = 32;
  alignas(64) static const std::uint16_t values[4 * kSide * kDepth] = {};
  alignas(64) float sums[4 * kSide * kSide];
  NarrowProduct p{};
  p.a[0] = {values, kDepth, 0}, p.a[1] = {values + kSide * kDepth, kDepth, 0};
  p.b = values + 2 * kSide * kDepth, p.b_tile = kSide * kDepth;
  p.pieces = 1, p.chunks = rounds, p.depth = kDepth;
  p.c = sums, p.c_row = 2 * kSide, p.c_half = 2 * kSide * kSide, p.c_tile = kSide;
  Tiles::start(kDepth);
  Tiles::template product<2, 2>(p);
  Tiles::stop();
  return 2.0 * double(rounds) * double(4 * kSide * kSide * kDepth);
}

template <class Tiles>
LMSER_HD void narrow_product(const NarrowProduct& p, bool two_halves, bool two_tiles) {
  if (two_halves)
    two_tiles ? Tiles::template product<2, 2>(p) : Tiles::template product<2, 1>(p);
  else
    two_tiles ? Tiles::template product<1, 2>(p) : Tiles::template product<1, 1>(p);
}

}  // namespace lmser::LMSER_ISA
