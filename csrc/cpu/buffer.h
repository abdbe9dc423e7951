// Memory for a call, and single values of any dtype read and written as the compute type.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine.h"
#include "pages.h"

namespace lmser {

// Scratch is returned to a small store of the calling thread and taken from there by its next call: fresh pages
// cost more to clear than a small layer costs to compute. Layers of other sizes leave pieces of other sizes: what is in
// use and what is kept together hold little more than the most that ever was in use, and beyond kKept bytes it goes
// back to the system.
class ScratchStore {
 public:
  static constexpr std::size_t kKept = kReuse ? std::size_t(64) << 20 : 0;
  static ScratchStore& of_this_thread() {
    static thread_local ScratchStore store;
    return store;
  }
  // At least `bytes`; `bytes` becomes what the piece really holds.
  void* take(std::size_t& bytes) {
    most_ = std::max(most_, live_ + bytes);
    const std::size_t room = most_ + most_ / kSlack;
    const bool full = live_ + kept_ + bytes > room;
    const std::size_t found = best(bytes, full ? std::size_t(-1) : 2 * bytes + 4096);
    if (found < pieces_.size()) {
      const Piece piece = taken(found);
      bytes = piece.bytes;
      live_ += bytes;
      return piece.data;
    }
    while (!pieces_.empty() && live_ + kept_ + bytes > room) free_oldest();
    void* const data = pages(bytes);
    live_ += bytes;
    return data;
  }
  void give(void* data, std::size_t bytes) noexcept {
    live_ -= std::min(live_, bytes);  // it may have been taken by another thread
    if (bytes > kKept) return free_pages(data, bytes);
    while (!pieces_.empty() && kept_ + bytes > kKept) free_oldest();
    if (pieces_.size() == pieces_.capacity()) return free_pages(data, bytes);  // room was reserved: no throw here
    pieces_.push_back({data, bytes});
    kept_ += bytes;
  }

 private:
  struct Piece {
    void* data;
    std::size_t bytes;
  };
  // The smallest piece of [least, largest] bytes; pieces_.size() where there is none.
  std::size_t best(std::size_t least, std::size_t largest) const {
    std::size_t found = pieces_.size();
    for (std::size_t i = 0; i < pieces_.size(); ++i)
      if (pieces_[i].bytes >= least && pieces_[i].bytes <= largest &&
          (found == pieces_.size() || pieces_[i].bytes < pieces_[found].bytes))
        found = i;
    return found;
  }
  Piece taken(std::size_t i) {
    const Piece piece = pieces_[i];
    pieces_.erase(pieces_.begin() + std::ptrdiff_t(i));
    kept_ -= piece.bytes;
    return piece;
  }
  void free_oldest() {
    const Piece piece = taken(0);
    free_pages(piece.data, piece.bytes);
  }
  static constexpr std::size_t kSlack = 16;
  std::vector<Piece> pieces_;
  std::size_t kept_ = 0, live_ = 0, most_ = 0;
  ScratchStore() { pieces_.reserve(64); }
  ~ScratchStore() {
    for (const Piece& p : pieces_) free_pages(p.data, p.bytes);
  }
  ScratchStore(const ScratchStore&) = delete;
  ScratchStore& operator=(const ScratchStore&) = delete;
};

struct GiveBack {
  std::size_t bytes = 0;
  void operator()(void* p) const { ScratchStore::of_this_thread().give(p, bytes); }
};
template <class T>
using Buffer = std::unique_ptr<T[], GiveBack>;
template <class T>
Buffer<T> allocate(std::int64_t values) {
  std::size_t bytes = (std::size_t(std::max<std::int64_t>(values, 1)) * sizeof(T) + 63) / 64 * 64;
  void* p = ScratchStore::of_this_thread().take(bytes);
  return Buffer<T>(static_cast<T*>(p), GiveBack{bytes});
}

template <class T>
const Kernels<T>& kernels_of(const InstructionSet& isa) {
  if constexpr (sizeof(T) == 4)
    return isa.f32;
  else
    return isa.f64;
}

inline std::uint16_t bf16_bits(float f) {  // to nearest, ties to even; NaN stays
  std::uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  return f != f ? 0x7FC0 : std::uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}
inline float bf16_value(std::uint16_t b) {
  const std::uint32_t bits = std::uint32_t(b) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
template <class T>
T value_at(const View& v, std::int64_t i) {
  switch (v.dtype) {
    case DType::f32:
      return T(static_cast<const float*>(v.data)[i]);
    case DType::f64:
      return T(static_cast<const double*>(v.data)[i]);
    case DType::bf16:
      return T(bf16_value(static_cast<const std::uint16_t*>(v.data)[i]));
    case DType::f16:
      return T(float(static_cast<const _Float16*>(v.data)[i]));
  }
  __builtin_unreachable();
}
// `count` values as they follow each other in memory.
template <class T>
void convert(const View& v, std::int64_t count, T* to) {
  const auto each = [&](auto* from, auto&& value) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = T(value(from[i]));
  };
  switch (v.dtype) {
    case DType::f32:
      return each(static_cast<const float*>(v.data), [](float x) { return x; });
    case DType::f64:
      return each(static_cast<const double*>(v.data), [](double x) { return x; });
    case DType::bf16:
      return each(static_cast<const std::uint16_t*>(v.data), bf16_value);
    case DType::f16:
      return each(static_cast<const _Float16*>(v.data), [](_Float16 x) { return float(x); });
  }
}
// A value kept as bfloat16, computed with as float.
struct BFloat16 {
  std::uint16_t bits = 0;
  BFloat16() = default;
  explicit BFloat16(float f) : bits(bf16_bits(f)) {}
  operator float() const { return bf16_value(bits); }
};
template <class T>
using ComputeType = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;

template <class T>
constexpr DType kDTypeOf = sizeof(T) == 2   ? DType::bf16
                           : sizeof(T) == 4 ? DType::f32
                                            : DType::f64;

template <class T>
void store_value(const View& v, std::int64_t i, T x) {
  switch (v.dtype) {
    case DType::f32:
      static_cast<float*>(v.data)[i] = float(x);
      return;
    case DType::f64:
      static_cast<double*>(v.data)[i] = double(x);
      return;
    case DType::f16:
      static_cast<_Float16*>(v.data)[i] = _Float16(float(x));
      return;
    case DType::bf16:
      static_cast<std::uint16_t*>(v.data)[i] = bf16_bits(float(x));
      return;
  }
}

// A bias as values of T.
template <class T>
Buffer<T> dense_bias(const View& bias) {
  if (!bias) return {};
  Buffer<T> copy = allocate<T>(bias.c);
  for (std::int64_t i = 0; i < bias.c; ++i) copy[i] = value_at<T>(bias, i * bias.sc);
  return copy;
}

}  // namespace lmser
