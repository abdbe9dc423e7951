// Max pooling over rows, and the two linear maps that it is once its winners are known.
#pragma once

#include "kernels.h"
#include "rows.h"

namespace lmser::LMSER_ISA {

// The integer vectors that comparisons of T give, and as many bytes.
template <class T>
struct Places {
  typedef std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t> Int;
  typedef Int V __attribute__((vector_size(LMSER_VECTOR_BYTES)));
  typedef std::uint8_t Bytes __attribute__((vector_size(LMSER_VECTOR_BYTES / sizeof(T))));
  static LMSER_HD V load(const std::uint8_t* p, int n) {
    Bytes b{};
    std::memcpy(&b, p, std::size_t(n));
    return __builtin_convertvector(b, V);
  }
  static LMSER_HD void store(std::uint8_t* p, V v, int n) {
    const Bytes b = __builtin_convertvector(v, Bytes);
    std::memcpy(p, &b, std::size_t(n));
  }
};

// The part of window i of an axis that lies on it: its first place, and the first beyond.
struct Window {
  int first, end;
  std::int64_t start;  // position of place 0
  Window(std::int64_t i, int kernel, int stride, int pad, std::int64_t size) : start(i * stride - pad) {
    first = start < 0 ? int(-start) : 0;
    end = size - start < kernel ? int(size - start) : kernel;
  }
};

template <class T>
std::int64_t pool_scratch(const PoolCall& call) {
  return (call.kernel_h + 1) * call.big.w * call.big.c + 3 * call.small.w * call.small.c;
}

// A row of the output itself where it can be written directly, else the buffer.
template <class T>
T* own_row(const View& v, std::int64_t n, std::int64_t h, T* buffer) {
  const bool direct = v.dtype == kDType<T> && (v.sc == 1 || v.c == 1) && (v.sw == v.c || v.w == 1);
  return direct ? static_cast<T*>(v.data) + n * v.sn + h * v.sh : buffer;
}

inline std::uint8_t* places_row(const PoolCall& call, std::int64_t n, std::int64_t r) {
  return call.places + (n * call.small.h + r) * call.small.w * call.small.c;
}

// Rows [r0, r1) of small = f(max of the windows of big), and of the places. A NaN wins, the last of several; of equal
// values the first, as in torch.
template <class T>
void pool_rows(const PoolCall& call, std::int64_t n, std::int64_t r0, std::int64_t r1, T* scratch) {
  using P = Places<T>;
  const std::int64_t c = call.big.c, row_size = call.big.w * c;
  const T* rows[256];
  T* const buffer = scratch + call.kernel_h * row_size;
  for (std::int64_t r = r0; r < r1; ++r) {
    const Window down(r, call.kernel_h, call.stride_h, call.pad_h, call.big.h);
    for (int i = down.first; i < down.end; ++i)
      rows[i] = read_row<T>(call.big, n, down.start + i, scratch + i * row_size);
    T* const out = own_row<T>(call.small, n, r, buffer);
    std::uint8_t* const places = places_row(call, n, r);
    with_activation(call.activation, [&]<Activation A>() {
      for (std::int64_t q = 0; q < call.small.w; ++q) {
        const Window across(q, call.kernel_w, call.stride_w, call.pad_w, call.big.w);
        for_lanes<T>(c, [&](std::int64_t k, int lanes) {
          Vec<T> best = splat<T>(-T(__builtin_inff()));
          typename P::V place = typename P::V{} + (down.first * call.kernel_w + across.first);
          for (int i = down.first; i < down.end; ++i)
            for (int j = across.first; j < across.end; ++j) {
              const Vec<T> v = load_n<T>(rows[i] + (across.start + j) * c + k, lanes);
              const auto wins = (v > best) | (v != v);
              best = wins ? v : best;
              place = wins ? typename P::V{} + (i * call.kernel_w + j) : place;
            }
          store_n<T>(out + q * c + k, act<A, T>(best, T(call.slope)), lanes);
          P::store(places + q * c + k, place, lanes);
        });
      }
    });
    if (out == buffer) write_row<T>(call.small, n, r, out);
  }
}

// Row r of small, times f'(output) where there is one.
template <class T>
const T* pulled_row(const PoolCall& call, std::int64_t n, std::int64_t r, T* scratch) {
  const std::int64_t count = call.small.w * call.small.c;
  const T* g = read_row<T>(call.small, n, r, scratch);
  if (!call.output) return g;
  const T* h = read_row<T>(call.output, n, r, scratch + count);
  T* const out = scratch + 2 * count;
  with_activation(call.activation, [&]<Activation A>() {
    for_lanes<T>(count, [&](std::int64_t i, int k) {
      store_n<T>(out + i, act_pull_back<A, T>(load_n<T>(g + i, k), load_n<T>(h + i, k), T(call.slope)), k);
    });
  });
  return out;
}

// Rows [r0, r1) of big: each value of small [* f'(output)] added where its winner was, zero elsewhere.
template <class T>
void unpool_rows(const PoolCall& call, std::int64_t n, std::int64_t r0, std::int64_t r1, T* scratch) {
  using P = Places<T>;
  const std::int64_t c = call.big.c, row_size = call.big.w * c;
  T* const small_scratch = scratch + row_size;
  for (std::int64_t y = r0; y < r1; ++y) {
    T* const out = own_row<T>(call.big, n, y, scratch);
    std::memset(static_cast<void*>(out), 0, sizeof(T) * std::size_t(row_size));
    const std::int64_t past = y + call.pad_h - call.kernel_h;  // the last window that ends above this row starts here
    std::int64_t r = past < 0 ? 0 : past / call.stride_h + 1;
    for (; r < call.small.h && r * call.stride_h <= y + call.pad_h; ++r) {
      const int i = int(y + call.pad_h - r * call.stride_h);
      const T* const g = pulled_row<T>(call, n, r, small_scratch);
      const std::uint8_t* const places = places_row(call, n, r);
      for (std::int64_t q = 0; q < call.small.w; ++q) {
        const Window across(q, call.kernel_w, call.stride_w, call.pad_w, call.big.w);
        for_lanes<T>(c, [&](std::int64_t k, int lanes) {
          const Vec<T> v = load_n<T>(g + q * c + k, lanes);
          const typename P::V place = P::load(places + q * c + k, lanes);
          for (int j = across.first; j < across.end; ++j) {
            T* const at = out + (across.start + j) * c + k;
            const auto here = place == typename P::V{} + (i * call.kernel_w + j);
            store_n<T>(at, load_n<T>(at, lanes) + (here ? v : splat<T>(T(0))), lanes);
          }
        });
      }
    }
    if (out == scratch) write_row<T>(call.big, n, y, out);
  }
}

// Rows [r0, r1) of small: the value of big at each winner's place [* f'(output)].
template <class T>
void select_rows(const PoolCall& call, std::int64_t n, std::int64_t r0, std::int64_t r1, T* scratch) {
  using P = Places<T>;
  const std::int64_t c = call.big.c, row_size = call.big.w * c;
  const T* rows[256];
  T *const buffer = scratch + call.kernel_h * row_size, *const h_row = buffer + call.small.w * c;
  for (std::int64_t r = r0; r < r1; ++r) {
    const Window down(r, call.kernel_h, call.stride_h, call.pad_h, call.big.h);
    for (int i = down.first; i < down.end; ++i)
      rows[i] = read_row<T>(call.big, n, down.start + i, scratch + i * row_size);
    const T* const h = call.output ? read_row<T>(call.output, n, r, h_row) : nullptr;
    T* const out = own_row<T>(call.small, n, r, buffer);
    const std::uint8_t* const places = places_row(call, n, r);
    with_activation(call.activation, [&]<Activation A>() {
      for (std::int64_t q = 0; q < call.small.w; ++q) {
        const Window across(q, call.kernel_w, call.stride_w, call.pad_w, call.big.w);
        for_lanes<T>(c, [&](std::int64_t k, int lanes) {
          const typename P::V place = P::load(places + q * c + k, lanes);
          Vec<T> found = splat<T>(T(0));
          for (int i = down.first; i < down.end; ++i)
            for (int j = across.first; j < across.end; ++j) {
              const auto here = place == typename P::V{} + (i * call.kernel_w + j);
              found = here ? load_n<T>(rows[i] + (across.start + j) * c + k, lanes) : found;
            }
          if (h) found = act_pull_back<A, T>(found, load_n<T>(h + q * c + k, lanes), T(call.slope));
          store_n<T>(out + q * c + k, found, lanes);
        });
      }
    });
    if (out == buffer) write_row<T>(call.small, n, r, out);
  }
}

}  // namespace lmser::LMSER_ISA
