// Whether an infinity or NaN is among many values.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "engine.h"

namespace lmser {

// Whether no value has an exponent of ones.
template <class T>
bool all_finite(const ThreadPool& pool, const T* values, std::int64_t count) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  constexpr Bits kOnes = sizeof(T) == 4 ? Bits(0x7f800000) : Bits(0x7ff0000000000000);
  constexpr std::int64_t kPiece = 1 << 16;
  const std::int64_t pieces = (count + kPiece - 1) / kPiece;
  std::atomic<bool> finite{true};
  const auto piece = [&](std::int64_t i) {
    Bits found = 0;
    const std::int64_t end = std::min(count, (i + 1) * kPiece);
    for (std::int64_t v = i * kPiece; v < end; ++v) {
      Bits bits;
      std::memcpy(&bits, values + v, sizeof(T));
      found |= Bits((bits & kOnes) == kOnes);
    }
    if (found) finite.store(false, std::memory_order_relaxed);
  };
  if (pieces == 1)
    piece(0);
  else
    pool.run(pieces, piece);
  return finite.load();
}

}  // namespace lmser
