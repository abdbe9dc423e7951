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
    for (std::int64_t i = piece < lines ? piece : lines; i > 0; --i, --lines, at += 64) __builtin_prefetch(at, 0, 2);
  }
};

}  // namespace lmser::LMSER_ISA
