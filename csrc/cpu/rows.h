// Rows of pixels, (w, c) with c fastest, between any tensor and the compute type T.
#pragma once

#include "plan.h"
#include "simd.h"

namespace lmser::LMSER_ISA {

LMSER_HD float from_bf16(std::uint16_t b) {
  const std::uint32_t bits = std::uint32_t(b) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
LMSER_HD std::uint16_t to_bf16(float f) {
  std::uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  const std::uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  return f != f ? std::uint16_t(0x7FC0) : std::uint16_t(rounded);
}

template <class T>
inline constexpr DType kDType = sizeof(T) == 4 ? DType::f32 : DType::f64;

template <class T, class From, class F>
LMSER_HD void gather(const From* p, std::int64_t w, std::int64_t c, std::int64_t sw, std::int64_t sc, T* dst,
                     F convert) {
  if (sc == 1 || c == 1) {  // a step of one value, which the compiler should know
    for (std::int64_t x = 0; x < w; ++x)
      for (std::int64_t k = 0; k < c; ++k) dst[x * c + k] = convert(p[x * sw + k]);
  } else {
    for (std::int64_t k = 0; k < c; ++k)
      for (std::int64_t x = 0; x < w; ++x) dst[x * c + k] = convert(p[x * sw + k * sc]);
  }
}
template <class T, class To, class F>
LMSER_HD void scatter(To* p, std::int64_t w, std::int64_t c, std::int64_t sw, std::int64_t sc, const T* src,
                      F convert) {
  if (sc == 1 || c == 1) {
    for (std::int64_t x = 0; x < w; ++x)
      for (std::int64_t k = 0; k < c; ++k) p[x * sw + k] = convert(src[x * c + k]);
  } else {
    for (std::int64_t k = 0; k < c; ++k)
      for (std::int64_t x = 0; x < w; ++x) p[x * sw + k * sc] = convert(src[x * c + k]);
  }
}

// Row h of image n as (w, c) values of T: the tensor's own memory where it is laid out like that, else `buffer`.
template <class T>
const T* read_row(const View& v, std::int64_t n, std::int64_t h, T* buffer) {
  const std::int64_t at = n * v.sn + h * v.sh;
  const bool dense = (v.sc == 1 || v.c == 1) && (v.sw == v.c || v.w == 1);
  const std::int64_t w = dense ? 1 : v.w, c = dense ? v.w * v.c : v.c;
  const std::int64_t sw = dense ? 0 : v.sw, sc = dense ? 1 : v.sc;
  if (v.dtype == kDType<T>) {
    const T* p = static_cast<const T*>(v.data) + at;
    if (dense) return p;
    gather<T>(p, w, c, sw, sc, buffer, [](T x) { return x; });
    return buffer;
  }
  switch (v.dtype) {
    case DType::bf16:
      gather<T>(static_cast<const std::uint16_t*>(v.data) + at, w, c, sw, sc, buffer,
                [](std::uint16_t x) { return T(from_bf16(x)); });
      break;
    case DType::f16:
      gather<T>(static_cast<const _Float16*>(v.data) + at, w, c, sw, sc, buffer,
                [](_Float16 x) { return T(float(x)); });
      break;
    case DType::f32:
      gather<T>(static_cast<const float*>(v.data) + at, w, c, sw, sc, buffer, [](float x) { return T(x); });
      break;
    case DType::f64:
      gather<T>(static_cast<const double*>(v.data) + at, w, c, sw, sc, buffer, [](double x) { return T(x); });
      break;
  }
  return buffer;
}

template <class T>
void write_row(const View& v, std::int64_t n, std::int64_t h, const T* src) {
  const std::int64_t at = n * v.sn + h * v.sh;
  const bool dense = (v.sc == 1 || v.c == 1) && (v.sw == v.c || v.w == 1);
  const std::int64_t w = dense ? 1 : v.w, c = dense ? v.w * v.c : v.c;
  const std::int64_t sw = dense ? 0 : v.sw, sc = dense ? 1 : v.sc;
  switch (v.dtype) {
    case DType::bf16:
      scatter<T>(static_cast<std::uint16_t*>(v.data) + at, w, c, sw, sc, src, [](T x) { return to_bf16(float(x)); });
      break;
    case DType::f16:
      scatter<T>(static_cast<_Float16*>(v.data) + at, w, c, sw, sc, src, [](T x) { return _Float16(float(x)); });
      break;
    case DType::f32:
      scatter<T>(static_cast<float*>(v.data) + at, w, c, sw, sc, src, [](T x) { return float(x); });
      break;
    case DType::f64:
      scatter<T>(static_cast<double*>(v.data) + at, w, c, sw, sc, src, [](T x) { return double(x); });
      break;
  }
}

// p[i] = f(p-vectors at i): whole registers, then the rest through zero-padded ones.
template <class T, class F>
LMSER_HD void for_lanes(std::int64_t count, F&& f) {
  constexpr int L = kLanes<T>;
  std::int64_t i = 0;
  for (; i + L <= count; i += L) f(i, L);
  if (i < count) f(i, int(count - i));
}
template <class T>
LMSER_HD Vec<T> load_n(const T* p, int n) {
  return n == kLanes<T> ? load<T>(p) : load_partial<T>(p, n);
}
template <class T>
LMSER_HD void store_n(T* p, Vec<T> v, int n) {
  if (n == kLanes<T>)
    store<T>(p, v);
  else
    store_partial<T>(p, v, n);
}

// Scratch for read_value_row: rows of the base tensor's full width.
template <class T>
struct RowScratch {
  T *base, *output, *gate, *extra, *value;
  static std::int64_t values(std::int64_t row) { return 5 * row; }
  static RowScratch at(T* p, std::int64_t row) { return {p, p + row, p + 2 * row, p + 3 * row, p + 4 * row}; }
};

// The gradient before the activation, g = base * f'(output) [* (gate > 0 ? 1 : gate_slope)] [+ extra], for row h of
// image n: where it lies, or in `scratch.value`.
template <class T>
const T* transformed_row(const Source& s, std::int64_t n, std::int64_t h, const RowScratch<T>& scratch,
                         bool with_extra = true) {
  const T* g = read_row<T>(s.base, n, h, scratch.base);
  const bool extra = with_extra && s.extra;
  if (!s.output && !s.gate && !extra) return g;
  const std::int64_t count = s.base.w * s.base.c;
  const T* out = s.output ? read_row<T>(s.output, n, h, scratch.output) : nullptr;
  const T* gate = s.gate ? read_row<T>(s.gate, n, h, scratch.gate) : nullptr;
  const T* add = extra ? read_row<T>(s.extra, n, h, scratch.extra) : nullptr;
  T* dst = scratch.value;
  const T slope = T(s.slope);
  with_activation(s.activation, [&]<Activation A>() {
    for_lanes<T>(count, [&](std::int64_t i, int k) {
      Vec<T> v = load_n<T>(g + i, k);
      if (out) v = act_pull_back<A, T>(v, load_n<T>(out + i, k), slope);
      if (gate) v = v * (load_n<T>(gate + i, k) > T(0) ? splat<T>(T(1)) : splat<T>(T(s.gate_slope)));
      if (add) v = v + load_n<T>(add + i, k);
      store_n<T>(dst + i, v, k);
    });
  });
  return dst;
}

// Row h (after pooling) of image n of the source, `columns` pixels of it, into dst with `stride` values a pixel.
template <class T>
void read_value_row(const Source& s, std::int64_t n, std::int64_t h, std::int64_t columns, std::int64_t stride, T* dst,
                    const RowScratch<T>& scratch) {
  const std::int64_t c = s.base.c;
  if (s.pool_h == 1 && s.pool_w == 1) {
    const bool dense = s.scale == 1 && stride == c;
    RowScratch<T> own = scratch;
    if (dense && columns == s.base.w) own.value = dst;
    const T* row = transformed_row<T>(s, n, h, own);
    if (dense) {
      if (row != dst) std::memcpy(dst, row, sizeof(T) * columns * c);
    } else {
      for (std::int64_t x = 0; x < columns; ++x)
        if (s.scale == 1)
          std::memcpy(dst + x * stride, row + x * c, sizeof(T) * c);
        else
          for (std::int64_t k = 0; k < c; ++k) dst[x * stride + k] = row[x * c + k] * T(s.scale);
    }
    return;
  }
  // Rows above the first are added to it; the last one of them leaves the cache scaled.
  for (int a = 0; a < s.pool_h; ++a) {
    const T* row = transformed_row<T>(s, n, h * s.pool_h + a, scratch);
    const T scale = a + 1 == s.pool_h ? T(s.scale) : T(1);
    for (std::int64_t x = 0; x < columns; ++x) {
      const T* const p = row + x * s.pool_w * c;
      T* const to = dst + x * stride;
      for_lanes<T>(c, [&](std::int64_t k, int lanes) {
        Vec<T> sum = load_n<T>(p + k, lanes);
        for (int b = 1; b < s.pool_w; ++b) sum = sum + load_n<T>(p + b * c + k, lanes);
        if (a) sum = sum + load_n<T>(to + k, lanes);
        store_n<T>(to + k, sum * scale, lanes);
      });
    }
  }
}

// The same from column `col` (after pooling) on.
template <class T>
void read_values_from(const Source& s, std::int64_t n, std::int64_t h, std::int64_t col, std::int64_t columns,
                      std::int64_t stride, T* dst, const RowScratch<T>& scratch) {
  if (col == 0) return read_value_row<T>(s, n, h, columns, stride, dst, scratch);
  Source part = s;
  for (View* v : {&part.base, &part.output, &part.gate, &part.extra}) {
    if (!*v) continue;
    const std::int64_t bytes = v->dtype == DType::f64 ? 8 : v->dtype == DType::f32 ? 4 : 2;
    v->data = static_cast<char*>(v->data) + bytes * v->sw * col * s.pool_w;
    v->w -= col * s.pool_w;
  }
  read_value_row<T>(part, n, h, columns, stride, dst, scratch);
}

// Rows [row0, row0 + rows) x columns [col0, col0 + cols) of image n, zero outside the source, into a slab with
// `stride` values a pixel (channels beyond the source's are set to zero).
template <class T>
void stage(const Source& s, std::int64_t n, std::int64_t row0, std::int64_t rows, std::int64_t col0, std::int64_t cols,
           std::int64_t stride, T* slab, const RowScratch<T>& scratch) {
  const std::int64_t h = s.base.h / s.pool_h, w = s.base.w / s.pool_w;
  const std::int64_t inside0 = col0 > 0 ? col0 : 0, inside1 = col0 + cols < w ? col0 + cols : w;
  Source beside;
  beside.base = s.beside;
  for (std::int64_t r = 0; r < rows; ++r) {
    T* dst = slab + r * cols * stride;
    const std::int64_t row = row0 + r;
    if (row < 0 || row >= h || inside1 <= inside0) {
      std::memset(dst, 0, sizeof(T) * cols * stride);
      continue;
    }
    if (stride != s.channels()) std::memset(dst, 0, sizeof(T) * cols * stride);
    const std::int64_t before = inside0 - col0, after = col0 + cols - inside1;
    std::memset(dst, 0, sizeof(T) * before * stride);
    std::memset(dst + (cols - after) * stride, 0, sizeof(T) * after * stride);
    read_values_from<T>(s, n, row, inside0, inside1 - inside0, stride, dst + before * stride, scratch);
    if (beside.base)
      read_values_from<T>(beside, n, row, inside0, inside1 - inside0, stride, dst + before * stride + s.base.c,
                          scratch);
  }
}

}  // namespace lmser::LMSER_ISA
