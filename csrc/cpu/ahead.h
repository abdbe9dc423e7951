// Memory that is needed later, fetched while something else is computed.
#pragma once

#include <cstdint>

#include "../activation.h"

namespace lmser::LMSER_ISA {

// A stretch of memory on its way to the second-level cache, a piece a tile.
struct Ahead {
  const char* at = nullptr;
  std::int64_t lines = 0, piece = 0;
  Ahead() = default;
  Ahead(const void* begin, std::int64_t bytes, std::int64_t pieces)
      : at(static_cast<const char*>(begin)), lines(bytes / 64), piece(lines / pieces + 1) {}
  LMSER_HD void step() {
    const std::int64_t count = piece < lines ? piece : lines;
    const char* const from = at;
    for (std::int64_t i = 0; i < count; ++i) __builtin_prefetch(from + 64 * i, 0, 2);
    at = from + 64 * count, lines -= count;
  }
};

}  // namespace lmser::LMSER_ISA
