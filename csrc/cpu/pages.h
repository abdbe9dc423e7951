// Memory from the system, in large pages where it has them.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lmser {

// `bytes` must be a multiple of `alignment`; released by std::free. Blocks of a large page or more begin at one and ask
// for such pages: states and packed weights of some megabytes, read in pieces far apart, would else miss the
// processor's table of addresses again and again. What is never written takes no memory either way.
inline void* pages(std::size_t alignment, std::size_t bytes) {
  constexpr std::size_t kLarge = std::size_t(2) << 20, kSmall = 4096;
  const bool large = bytes >= kLarge;
  void* const data =
      std::aligned_alloc(large ? kLarge : alignment, large ? (bytes + kSmall - 1) / kSmall * kSmall : bytes);
  if (!data) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (large) madvise(data, bytes / kSmall * kSmall, MADV_HUGEPAGE);  // a wish: nothing depends on it
#endif
  return data;
}

}  // namespace lmser
