// States as the whole-network operators hold them: dense channels-last memory of the compute type.
#pragma once

#include <optional>
#include <vector>

#include "../tensor.h"
#include "buffer.h"
#include "engine.h"
#include "layout.h"
#include "output_store.h"
#include "torch_pool.h"

namespace lmser {

using Tensors = std::vector<Tensor>;
using Maybe = std::optional<Tensor>;

struct Layer {
  std::int64_t n, c, h, w;
  std::int64_t image() const { return c * h * w; }
  std::int64_t values() const { return n * image(); }
  View view(const void* data, DType dtype) const {
    return {const_cast<void*>(data), dtype, n, c, h, w, h * w * c, 1, w * c, c};
  }
};

// Memory of a whole state or more: from the store that keeps what large results leave behind.
template <class T>
class Memory {
 public:
  Memory() = default;
  explicit Memory(std::int64_t values) : piece_(output_store::take(std::max<std::size_t>(sizeof(T) * values, 64))) {}
  Memory(Memory&& other) noexcept : piece_(std::exchange(other.piece_, {nullptr, 0})) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(piece_, other.piece_);
    return *this;
  }
  ~Memory() {
    if (piece_.data) output_store::give(piece_);
  }
  T* get() const { return static_cast<T*>(piece_.data); }
  explicit operator bool() const { return piece_.data; }
  output_store::Piece release() { return std::exchange(piece_, {nullptr, 0}); }

 private:
  output_store::Piece piece_{nullptr, 0};
};

template <class T>
Memory<T> zeros(std::int64_t values) {
  Memory<T> b(values);
  std::memset(static_cast<void*>(b.get()), 0, sizeof(T) * values);
  return b;
}

// A tensor as dense channels-last values of T: itself, or a copy.
template <class T>
class Dense {
 public:
  Dense() = default;
  Dense(const InstructionSet& isa, const ThreadPool& pool, const View& v) {
    const bool lies = v.dtype == kDTypeOf<T> && (v.sc == 1 || v.c == 1) && (v.sw == v.c || v.w == 1) &&
                      (v.sh == v.w * v.c || v.h == 1) && (v.sn == v.h * v.w * v.c || v.n == 1);
    if (lies) {
      data_ = static_cast<const T*>(v.data);
      return;
    }
    const Layer layer{v.n, v.c, v.h, v.w};
    copy_ = Memory<T>(layer.values());
    data_ = copy_.get();
    Source s;
    s.base = v;
    if (layer.values()) run_transform(isa, pool, s, layer.view(copy_.get(), kDTypeOf<T>), {}, {});
  }
  const T* get() const { return data_; }

 private:
  Memory<T> copy_;
  const T* data_ = nullptr;
};

// A tensor over memory of a block, which it takes.
template <class T>
Tensor tensor_of(Memory<T> block, const Tensor& like, const std::vector<std::int64_t>& size,
                 const std::vector<std::int64_t>& stride, std::optional<ScalarType> dtype = std::nullopt) {
  const output_store::Piece piece = block.release();
  const torch::headeronly::IntHeaderOnlyArrayRef sizes(size.data(), size.size()), strides(stride.data(), stride.size());
  try {
    return torch::stable::from_blob(piece.data, sizes, strides, like.device(), dtype.value_or(like.scalar_type()),
                                    [piece](void*) { output_store::give(piece); });
  } catch (...) {
    output_store::give(piece);
    throw;
  }
}
template <class T>
Tensor state_tensor(Memory<T> block, const Layer& l, const Tensor& like) {
  return tensor_of(std::move(block), like, {l.n, l.c, l.h, l.w}, {l.image(), 1, l.w * l.c, l.c});
}
template <class T>
Tensor sweeps_tensor(Memory<T> block, std::int64_t sweeps, const Layer& l, const Tensor& like) {
  return tensor_of(std::move(block), like, {sweeps, l.n, l.c, l.h, l.w}, {l.values(), l.image(), 1, l.w * l.c, l.c});
}

}  // namespace lmser
