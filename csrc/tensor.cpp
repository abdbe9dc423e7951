#include "tensor.h"

#include "cpu/output_store.h"

namespace lmser {

Tensor empty_4d(const Tensor& like, bool last, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) {
  const std::int64_t size[] = {n, c, h, w};
  const torch::headeronly::IntHeaderOnlyArrayRef sizes(size, 4);
  std::int64_t total = std::int64_t(like.element_size());
  bool fits = n >= 0 && c >= 0 && h >= 0 && w >= 0;
  for (const std::int64_t s : size) fits = fits && !__builtin_mul_overflow(total, s, &total);
  STD_TORCH_CHECK(fits, "no result of size (", n, ", ", c, ", ", h, ", ", w, ") can be held");
  const std::size_t bytes = std::size_t(total);
  if (!like.is_cpu() || bytes < output_store::kLeast)
    return torch::stable::empty(
        sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
        last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous);
  const std::int64_t stride[] = {c * h * w, last ? 1 : h * w, last ? w * c : w, last ? c : 1};
  const output_store::Piece piece = output_store::take(bytes);
  try {
    return torch::stable::from_blob(piece.data, sizes, torch::headeronly::IntHeaderOnlyArrayRef(stride, 4),
                                    like.device(), like.scalar_type(), [piece](void*) { output_store::give(piece); });
  } catch (...) {
    output_store::give(piece);
    throw;
  }
}

}  // namespace lmser
