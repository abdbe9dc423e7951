// Element-wise passes over rows: the gradient before the activation, and the neuron update itself.
#pragma once

#include "conv_unit.h"

namespace lmser::LMSER_ISA {

// Per-channel sums are formed over blocks of whole registers: a few channels repeat until they fill some.
template <class T>
std::int64_t bias_block(std::int64_t channels) {
  return channels % kLanes<T> == 0 ? channels : channels * kLanes<T>;
}

template <class T>
std::int64_t transform_scratch(const TransformCall& call) {
  const View& v = call.source.base;
  return RowScratch<T>::values(v.w * v.c) + v.w * v.c + bias_block<T>(v.c);
}

template <class T>
void transform_rows(const TransformCall& call, std::int64_t n, std::int64_t r0, std::int64_t r1, T* scratch) {
  const View& v = call.source.base;
  const std::int64_t count = v.w * v.c;
  const auto rows = RowScratch<T>::at(scratch, count);
  T* const total_row = scratch + RowScratch<T>::values(count);
  T* const sums = total_row + count;
  for (std::int64_t r = r0; r < r1; ++r) {
    const T* g = transformed_row<T>(call.source, n, r, rows, false);
    if (call.pre) write_row<T>(call.pre, n, r, g);
    if (call.bias && call.bias_by_row) {
      // Sixteen partial sums, so that a long row loses no digits.
      T part[16] = {};
      std::int64_t i = 0;
      for (; i + 16 <= count; i += 16)
        for (int k = 0; k < 16; ++k) part[k] += g[i + k];
      double sum = 0;
      for (; i < count; ++i) sum += g[i];
      for (int k = 0; k < 16; ++k) sum += part[k];
      call.bias[r] += sum;
    } else if (call.bias) {
      const std::int64_t block = bias_block<T>(v.c), whole = count / block * block;
      std::memset(sums, 0, sizeof(T) * block);
      for (std::int64_t i = 0; i < whole; i += block)
        for (std::int64_t k = 0; k < block; k += kLanes<T>) store<T>(sums + k, load<T>(sums + k) + load<T>(g + i + k));
      for (std::int64_t i = whole; i < count; ++i) sums[i - whole] += g[i];
      for (std::int64_t k = 0; k < block; k += v.c)
        for (std::int64_t c = 0; c < v.c; ++c) call.bias[c] += sums[k + c];
    }
    if (call.total) {
      const T* out = g;
      if (call.source.extra) {
        const T* extra = read_row<T>(call.source.extra, n, r, rows.extra);
        for_lanes<T>(count, [&](std::int64_t i, int k) {
          store_n<T>(total_row + i, load_n<T>(g + i, k) + load_n<T>(extra + i, k), k);
        });
        out = total_row;
      }
      write_row<T>(call.total, n, r, out);
    }
  }
}

template <class T>
std::int64_t add_act_scratch(const AddActCall<T>& call) {
  return 5 * call.y.w * call.y.c;
}

template <class T>
void add_act_rows(const AddActCall<T>& call, std::int64_t n, std::int64_t r0, std::int64_t r1, T* scratch) {
  const std::int64_t c = call.y.c, count = call.y.w * c;
  T *y_row = scratch, *u_row = scratch + count, *bias_row = scratch + 2 * count, *out_row = scratch + 3 * count,
    *few_row = scratch + 4 * count;
  const bool repeats = call.repeat_h > 1 || call.repeat_w > 1;
  const bool by_channel = call.bias && !call.bias_by_row;
  if (by_channel)
    for (std::int64_t x = 0; x < call.y.w; ++x) std::memcpy(bias_row + x * c, call.bias, sizeof(T) * c);
  const bool in_place =
      call.out.dtype == kDType<T> && (call.out.sc == 1 || c == 1) && (call.out.sw == c || call.out.w == 1);
  for (std::int64_t r = r0; r < r1; ++r) {
    const T* y = read_row<T>(call.y, n, r, y_row);
    const T* u = nullptr;
    if (call.u && repeats) {
      const T* const few = read_row<T>(call.u, n, r / call.repeat_h, few_row);
      if (r == r0 || r % call.repeat_h == 0)
        for (std::int64_t x = 0; x < call.y.w; ++x)
          std::memcpy(u_row + x * c, few + x / call.repeat_w * c, sizeof(T) * c);
      u = u_row;
    } else if (call.u) {
      u = read_row<T>(call.u, n, r, u_row);
    }
    const Vec<T> row_bias = splat<T>(call.bias && call.bias_by_row ? call.bias[r] : T(0));
    T* out = in_place ? static_cast<T*>(call.out.data) + n * call.out.sn + r * call.out.sh : out_row;
    with_activation(call.activation, [&]<Activation A>() {
      const T slope = T(call.slope);
      for_lanes<T>(count, [&](std::int64_t i, int k) {
        Vec<T> v = load_n<T>(y + i, k);
        if (u) v = v + load_n<T>(u + i, k);
        if (by_channel)
          v = v + load_n<T>(bias_row + i, k);
        else
          v = v + row_bias;
        store_n<T>(out + i, act<A, T>(v, slope), k);
      });
    });
    if (!in_place) write_row<T>(call.out, n, r, out);
  }
}

// Peak probe: a full register tile of independent fused multiply-adds.
template <class T>
double fma_rounds(std::int64_t rounds, T* sink) {
  constexpr int M = kTilePixels[kTileVectors] * kTileVectors;
  Vec<T> sum[M];
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m) sum[m] = splat<T>(T(m));
  Vec<T> a = load<T>(sink), b = load<T>(sink + kLanes<T>);
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 32
    for (int m = 0; m < M; ++m) sum[m] = sum[m] * a + b;
  }
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m) b += sum[m];
  store<T>(sink, b);
  return 2.0 * double(rounds) * M * kLanes<T>;
}

}  // namespace lmser::LMSER_ISA
