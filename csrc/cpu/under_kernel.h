// What lies under a kernel at each pixel of a convolution's output, as pixels of so many channels.
#pragma once

#include "buffer.h"
#include "kernels.h"
#include "layout.h"
#include "units.h"

namespace lmser {

// Of each pixel for each channel its taps, where they are together, else for each tap its channels: gathered by all
// threads of the pool to `memory`, which the result is a view of; of a product of dense values the source as it lies.
template <class T>
Source under_kernel(const Kernels<T>& k, const ThreadPool& pool, const Geometry& g, const Source& source,
                    bool taps_together, Buffer<T>& memory) {
  if (is_product(g) && source.plain() && source.base.dtype == kDTypeOf<T> && source.base.sc == 1 &&
      pixel_stride(source.base))
    return source;
  const std::int64_t row = g.out_w * g.in_c * g.kernel_h * g.kernel_w, rows = g.batch * g.out_h;
  memory = allocate<T>(rows * row);
  constexpr std::int64_t kSerialValues = 1 << 14;  // some microseconds
  const std::int64_t tasks = rows * row < kSerialValues ? 1 : std::min<std::int64_t>(pool.threads, rows);
  run_units<T>(pool, tasks, rows, k.columns_scratch(source, g), [&](std::int64_t i, T* scratch) {
    k.gather_columns(source, g, i / g.out_h, i % g.out_h, taps_together, memory.get() + i * row, scratch);
  });
  const Geometry to = gathered(g);
  Source columns;
  View& v = columns.base;
  v.data = memory.get(), v.dtype = sizeof(T) == 8 ? DType::f64 : DType::f32;
  v.n = to.batch, v.c = to.in_c, v.h = to.in_h, v.w = to.in_w;
  v.sc = 1, v.sw = v.c, v.sh = v.w * v.sw, v.sn = v.h * v.sh;
  return columns;
}

}  // namespace lmser
