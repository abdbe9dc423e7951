// A small matrix turned.
#pragma once

#include <cstdint>

namespace lmser {
// Compiled under several instruction sets: each file has its own copy, none may reach another by the linker.
namespace {

// to[c][v] = from[v][c] for `rows` v and `count` c. Four by four in registers where the type allows.
template <class T>
void transpose(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t count, T* to,
               std::int64_t to_stride) {
  std::int64_t v = 0;
  if constexpr (sizeof(T) == 4) {
    typedef float Four __attribute__((vector_size(16)));
    typedef float Unaligned __attribute__((vector_size(16), aligned(4), may_alias));
    typedef int Index __attribute__((vector_size(16)));
    const auto load = [](const float* p) { return Four(*reinterpret_cast<const Unaligned*>(p)); };
    const auto store = [](float* p, Four x) { *reinterpret_cast<Unaligned*>(p) = x; };
    for (; v + 4 <= rows; v += 4) {
      const T* const row = from + v * from_stride;
      std::int64_t c = 0;
      for (; c + 4 <= count; c += 4) {
        const Four a0 = load(row + c), a1 = load(row + from_stride + c), a2 = load(row + 2 * from_stride + c),
                   a3 = load(row + 3 * from_stride + c);
        const Four low01 = __builtin_shuffle(a0, a1, Index{0, 4, 1, 5}),
                   low23 = __builtin_shuffle(a2, a3, Index{0, 4, 1, 5});
        const Four high01 = __builtin_shuffle(a0, a1, Index{2, 6, 3, 7}),
                   high23 = __builtin_shuffle(a2, a3, Index{2, 6, 3, 7});
        store(to + c * to_stride + v, __builtin_shuffle(low01, low23, Index{0, 1, 4, 5}));
        store(to + (c + 1) * to_stride + v, __builtin_shuffle(low01, low23, Index{2, 3, 6, 7}));
        store(to + (c + 2) * to_stride + v, __builtin_shuffle(high01, high23, Index{0, 1, 4, 5}));
        store(to + (c + 3) * to_stride + v, __builtin_shuffle(high01, high23, Index{2, 3, 6, 7}));
      }
      for (; c < count; ++c)
        for (int k = 0; k < 4; ++k) to[c * to_stride + v + k] = row[k * from_stride + c];
    }
  }
  for (; v < rows; ++v)
    for (std::int64_t c = 0; c < count; ++c) to[c * to_stride + v] = from[v * from_stride + c];
}

}  // namespace
}  // namespace lmser
