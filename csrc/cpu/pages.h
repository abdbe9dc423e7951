// Memory from the system, in large pages where it has them.
#pragma once

#include <cstddef>
#include <cstdint>
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

// Larger blocks come from the system and go back to it: in the C library's heap, aligned blocks of ever other sizes
// leave gaps that add up while a network that settles learns (smaller ones, and torch's own, still do). Those of a
// large page or more begin at one and ask for such pages: states and packed weights of some megabytes, read in pieces
// far apart, would else miss the processor's table of addresses again and again. What is never written takes no memory
// either way.
inline constexpr std::size_t kMapped = std::size_t(256) << 10, kLargePage = std::size_t(2) << 20,
                             kPage = std::size_t(64) << 10;

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
inline constexpr bool kMaps = true;
// Whole pages of any size that systems have.
inline std::size_t mapped_bytes(std::size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }
inline void* map_pages(std::size_t bytes) {
  const std::size_t length = mapped_bytes(bytes), slack = bytes >= kLargePage ? kLargePage : 0;
  if (length + slack < bytes) throw std::bad_alloc();
  void* const all = mmap(nullptr, length + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) throw std::bad_alloc();
  if (!slack) return all;
  const std::size_t before = (kLargePage - reinterpret_cast<std::uintptr_t>(all) % kLargePage) % kLargePage;
  char* const data = static_cast<char*>(all) + before;
  if (before) munmap(all, before);
  munmap(data + length, slack - before);
#if defined(MADV_HUGEPAGE)
  madvise(data, length, MADV_HUGEPAGE);  // a wish: nothing depends on it
#endif
  return data;
}
inline void unmap_pages(void* data, std::size_t bytes) noexcept { munmap(data, mapped_bytes(bytes)); }
#else
inline constexpr bool kMaps = false;
inline void* map_pages(std::size_t) { throw std::bad_alloc(); }
inline void unmap_pages(void*, std::size_t) noexcept {}
#endif

// Aligned to a line of the cache at least.
inline void* pages(std::size_t bytes) {
  if (kMaps && bytes >= kMapped) return map_pages(bytes);
  void* data = nullptr;  // aligned_alloc may refuse a size that is no multiple of the alignment
  if (posix_memalign(&data, bytes >= kLargePage ? kLargePage : 64, bytes) != 0) throw std::bad_alloc();
  return data;
}
// What `pages` gave for so many bytes.
inline void free_pages(void* data, std::size_t bytes) noexcept {
  if (kMaps && bytes >= kMapped) return unmap_pages(data, bytes);
  std::free(data);
}

}  // namespace lmser
