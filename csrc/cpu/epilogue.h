// What is done to a result while it is still in the cache: by the unit of work that has just written it.
//
// Settling asks for it: how far a state moved since the last sweep, evidence put in, and on the way back the
// derivative of the activation and the sum with the other drive's gradient. Every tensor named here is of the compute
// type and lies as the result does, so that one offset serves all.
#pragma once

#include "kernels.h"
#include "rows.h"

namespace lmser::LMSER_ISA {

// Magnitudes as bits that order as the values do, NaN above everything.
template <class T>
struct Magnitude {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  typedef Bits V __attribute__((vector_size(LMSER_VECTOR_BYTES)));
  static constexpr Bits kNoSign = ~Bits(0) >> 1;
  V most{};
  void take(Vec<T> d) {
    const V bits = (V)d & (V{} + kNoSign);
    most = bits > most ? bits : most;
  }
  std::uint64_t largest() const {
    Bits found = 0;
    for (int i = 0; i < kLanes<T>; ++i) found = most[i] > found ? most[i] : found;
    return found;
  }
};

inline void raise_to(std::atomic<std::uint64_t>& slot, std::uint64_t value) {
  std::uint64_t seen = slot.load(std::memory_order_relaxed);
  while (value > seen && !slot.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

// Values [at, at + count) of one image.
template <class T>
void change_of(const Epilogue& e, std::int64_t at, std::int64_t count, std::int64_t image) {
  const T *h = static_cast<const T*>(e.state ? e.state : e.result) + at,
          *before = static_cast<const T*>(e.previous) + at;
  Magnitude<T> moved, size;
  for_lanes<T>(count, [&](std::int64_t i, int k) { moved.take(load_n<T>(h + i, k) - load_n<T>(before + i, k)); });
  raise_to(e.change[image], moved.largest());
  if (!e.largest) return;
  for_lanes<T>(count, [&](std::int64_t i, int k) { size.take(load_n<T>(h + i, k)); });
  raise_to(e.largest[image], size.largest());
}

// hold 1: evidence; 0: the value itself; between: their mixture.
template <class T>
void put_in_evidence(const Epilogue& e, std::int64_t at, std::int64_t count) {
  const T *v = static_cast<const T*>(e.result) + at, *evidence = static_cast<const T*>(e.evidence) + at,
          *hold = static_cast<const T*>(e.hold) + at;
  T* const h = static_cast<T*>(const_cast<void*>(e.state)) + at;
  for_lanes<T>(count, [&](std::int64_t i, int k) {
    const Vec<T> value = load_n<T>(v + i, k), given = load_n<T>(evidence + i, k), share = load_n<T>(hold + i, k);
    const Vec<T> mixed = share * given + (splat<T>(T(1)) - share) * value;
    store_n<T>(h + i, share == T(1) ? given : (share == T(0) ? value : mixed), k);
  });
}

// g = (result [* (1 - hold)] [+ inject]) f'(output), in place; sums += g; total = g + extra.
template <class T>
void pull_back_region(const Epilogue& e, std::int64_t at, std::int64_t pixels, std::int64_t channels, double* sums) {
  T* const result = static_cast<T*>(const_cast<void*>(e.result)) + at;
  const T* const output = static_cast<const T*>(e.output) + at;
  const T* const hold = e.hold ? static_cast<const T*>(e.hold) + at : nullptr;
  const T* const inject = e.inject ? static_cast<const T*>(e.inject) + at : nullptr;
  const T* const extra = e.extra ? static_cast<const T*>(e.extra) + at : nullptr;
  T* const total = e.total ? static_cast<T*>(e.total) + at : nullptr;
  with_activation(e.activation, [&]<Activation A>() {
    const auto values = [&](std::int64_t i, int k) {
      Vec<T> g = load_n<T>(result + i, k);
      if (hold) {
        const Vec<T> free = splat<T>(T(1)) - load_n<T>(hold + i, k);
        g = free == T(0) ? splat<T>(T(0)) : g * free;
      }
      if (inject) g = g + load_n<T>(inject + i, k);
      g = act_pull_back<A, T>(g, load_n<T>(output + i, k), T(e.slope));
      store_n<T>(result + i, g, k);
      if (total) store_n<T>(total + i, extra ? g + load_n<T>(extra + i, k) : g, k);
      return g;
    };
    constexpr int L = kLanes<T>;
    // Of `Registers` of channels from c on, those of a pixel together: lines that lie side by side.
    const auto some = [&]<int Registers>(std::int64_t c, int k, auto&& value) __attribute__((always_inline)) {
      Vec<T> sum[Registers] = {};
      for (std::int64_t x = 0; x < pixels; ++x)
#pragma GCC unroll 4
        for (int v = 0; v < Registers; ++v) sum[v] = sum[v] + value(x * channels + c + v * L, k);
#pragma GCC unroll 4
      for (int v = 0; v < Registers; ++v)
        for (int i = 0; i < k; ++i) sums[c + v * L + i] += double(sum[v][i]);
    };
    const auto channel_sums = [&](auto&& value) __attribute__((always_inline)) {
      std::int64_t c = 0;
      for (; c + 4 * L <= channels; c += 4 * L) some.template operator()<4>(c, L, value);
      for (; c + 2 * L <= channels; c += 2 * L) some.template operator()<2>(c, L, value);
      for (; c + L <= channels; c += L) some.template operator()<1>(c, L, value);
      if (c < channels) some.template operator()<1>(c, int(channels - c), value);
    };
    if (sums && channels % L == 0) return channel_sums(values);
    for_lanes<T>(pixels * channels, values);
    if (sums) channel_sums([&](std::int64_t i, int k) { return load_n<T>(result + i, k); });
  });
}

// Rows [r0, r1) of images [n0, n1) of `out`, channels [c0, c1).
template <class T>
void run_epilogue(const Epilogue& e, const View& out, std::int64_t n0, std::int64_t n1, std::int64_t r0,
                  std::int64_t r1, std::int64_t c0, std::int64_t c1, std::int64_t unit) {
  const bool whole = c0 == 0 && c1 == out.c && (out.sw == out.c || out.w == 1);
  const std::int64_t pieces = whole ? 1 : out.w, pixels = whole ? out.w : 1, channels = c1 - c0;
  double* const sums = e.sums ? e.sums + unit * e.channels + c0 : nullptr;
  for (std::int64_t n = n0; n < n1; ++n)
    for (std::int64_t r = r0; r < r1; ++r)
      for (std::int64_t p = 0; p < pieces; ++p) {
        const std::int64_t at = n * out.sn + r * out.sh + p * out.sw + c0, count = pixels * channels;
        if (e.output) pull_back_region<T>(e, at, pixels, channels, sums);
        if (e.state) put_in_evidence<T>(e, at, count);
        if (e.previous && e.previous != e.result) change_of<T>(e, at, count, at / e.image);
      }
}

template <class T>
void epilogue_rows(const Epilogue& e, const View& result, std::int64_t image, std::int64_t row0, std::int64_t row1,
                   std::int64_t unit) {
  run_epilogue<T>(e, result, image, image + 1, row0, row1, 0, result.c, unit);
}

}  // namespace lmser::LMSER_ISA
