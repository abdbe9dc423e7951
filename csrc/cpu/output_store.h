// Memory of large results, kept between calls.
//
// A training step asks for the same few large tensors again and again. The C library returns such pieces to the
// system and gets fresh pages for the next, and clearing those costs as much as a cheap layer computes. So results of
// at least kLeast bytes come from here and return here when their tensor dies, as those of torch's CUDA allocator do;
// lmser_kernels.empty_cache() gives what is idle back to the system. What is in use and what is idle together stay
// within the most that ever was in use and a kSlack-th of it.
#pragma once

#include <cstddef>

#include "pages.h"

namespace lmser::output_store {

constexpr std::size_t kLeast = kMapped;  // smaller pieces are the C library's, and not kept
constexpr std::size_t kMostIdle = kReuse ? std::size_t(1) << 30 : 0;  // what is kept at most while nobody uses it

constexpr std::size_t kSlack = 16;

struct Piece {
  void* data;
  std::size_t bytes;  // at least what was asked for
};
Piece take(std::size_t bytes);  // throws std::bad_alloc
void give(Piece piece) noexcept;
std::size_t idle_bytes() noexcept;
void empty() noexcept;

}  // namespace lmser::output_store
