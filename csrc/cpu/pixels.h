// Values of pixels as they lie: `data` is the first channel of the first pixel, channels are dense.
#pragma once

#include <cstdint>

namespace lmser::LMSER_ISA {

template <class T>
struct Pixels {
  T* data = nullptr;
  std::int64_t image = 0, row = 0, col = 0;  // from one to the next
  explicit operator bool() const { return data != nullptr; }
  std::int64_t at(std::int64_t n, std::int64_t h, std::int64_t w) const { return n * image + h * row + w * col; }
};

}  // namespace lmser::LMSER_ISA
