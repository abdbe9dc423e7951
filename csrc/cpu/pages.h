// Memory from the system, in large pages where it has them.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lmser {

#if defined(__SANITIZE_ADDRESS__)
// The sanitizer sees where a piece ends, and fresh memory is what it was filled with, if no piece is used twice.
inline constexpr bool kReuse = false;
#else
inline constexpr bool kReuse = true;
#endif

// Released by std::free. Blocks of a large page or more begin at one and ask for such pages: states and packed weights
// of some megabytes, read in pieces far apart, would else miss the processor's table of addresses again and again. What
// is never written takes no memory either way.
inline void* pages(std::size_t alignment, std::size_t bytes) {
  constexpr std::size_t kLarge = std::size_t(2) << 20, kSmall = 4096;
  const bool large = bytes >= kLarge;
  void* data = nullptr;  // aligned_alloc may refuse a size that is no multiple of the alignment
  if (posix_memalign(&data, large ? kLarge : alignment, bytes) != 0) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (large) madvise(data, bytes / kSmall * kSmall, MADV_HUGEPAGE);  // a wish: nothing depends on it
#endif
  return data;
}

}  // namespace lmser
