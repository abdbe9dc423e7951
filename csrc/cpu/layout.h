// Brings a call into the form that has units of work along its longest axis.
#pragma once

#include <optional>
#include <type_traits>
#include <utility>

#include "plan.h"

namespace lmser {

// The stride of (n, h, w) seen as one axis of pixels, where there is one.
inline std::optional<std::int64_t> pixel_stride(const View& v) {
  std::int64_t stride = 0, count = 1;
  for (auto [size, s] : {std::pair{v.w, v.sw}, std::pair{v.h, v.sh}, std::pair{v.n, v.sn}}) {
    if (size == 1) continue;
    if (count > 1 && s != stride * count) return std::nullopt;
    if (count == 1) stride = s;
    count *= size;
  }
  return count == 1 ? v.c : stride;
}
template <class F>
void for_views(Source& s, F&& f) {
  for (View* v : {&s.base, &s.output, &s.gate, &s.extra, &s.beside})
    if (*v) f(*v);
}
template <class F>
void for_views(Sink& s, F&& f) {
  for (View* v : {&s.out, &s.drive, &s.add, &s.gate, &s.pooled})
    if (*v) f(*v);
}
inline void merge_pixels(View& v) {
  const std::int64_t stride = *pixel_stride(v), pixels = v.n * v.h * v.w;
  v.sn = stride * pixels, v.n = 1, v.h = pixels, v.sh = stride, v.w = 1, v.sw = v.c;
}
inline void swap_axes(View& v) { std::swap(v.h, v.w), std::swap(v.sh, v.sw); }

// Pixels of a pointwise convolution (a fully connected layer among them) become rows of one image; a height-1
// signal is turned so that its length runs along rows. Both give units of work along the long axis.
template <class... Parts>
void normalise(Geometry& g, Parts&... parts) {
  bool mergeable = g.kernel_h == 1 && g.kernel_w == 1 && g.stride_h == 1 && g.stride_w == 1 && g.pad_h == 0 &&
                   g.pad_w == 0 && g.in_h == g.out_h && g.in_w == g.out_w && g.batch * g.out_h * g.out_w > 0;
  const auto same_pixels = [&](View& v) {
    mergeable = mergeable && v.h == g.in_h && v.w == g.in_w && pixel_stride(v).has_value();
  };
  (for_views(parts, same_pixels), ...);
  if (mergeable) {
    (for_views(parts, merge_pixels), ...);
    const auto once = [](auto& part) {  // `add` has as many pixels as the others
      if constexpr (std::is_same_v<std::decay_t<decltype(part)>, Sink>) part.add_h = part.add_w = 1;
    };
    (once(parts), ...);
    g.in_h = g.out_h = g.batch * g.out_h * g.out_w;
    g.in_w = g.out_w = g.batch = 1;
    return;
  }
  bool flat = g.kernel_h == 1 && g.stride_h == 1 && g.pad_h == 0 && g.in_h == 1 && g.out_h == 1;
  const auto one_row = [&](View& v) { flat = flat && v.h == 1; };
  (for_views(parts, one_row), ...);
  if (flat) {
    (for_views(parts, swap_axes), ...);
    std::swap(g.in_h, g.in_w), std::swap(g.out_h, g.out_w);
    std::swap(g.kernel_h, g.kernel_w), std::swap(g.stride_h, g.stride_w), std::swap(g.pad_h, g.pad_w);
    const auto turn = [](auto& part) {
      if constexpr (std::is_same_v<std::decay_t<decltype(part)>, Source>)
        std::swap(part.pool_h, part.pool_w);
      else
        std::swap(part.upsample_h, part.upsample_w), std::swap(part.pool_h, part.pool_w),
            std::swap(part.add_h, part.add_w);
    };
    (turn(parts), ...);
  }
}

}  // namespace lmser
