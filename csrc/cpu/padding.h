// Which taps of a kernel meet the input and which its padding: a product with padding adds nothing.
#pragma once

#include <cstdint>

#include "../activation.h"

namespace lmser {

// Inlined always: the units of an instruction set must not share a function with what runs everywhere.
LMSER_HD std::int64_t between(std::int64_t x, std::int64_t least, std::int64_t most) {
  return x < least ? least : x > most ? most : x;
}

// Taps [first, last) of an axis, of which the first lies over value `start` of `size`.
struct TapRange {
  int first, last;
  LMSER_HD bool operator==(const TapRange& o) const { return first == o.first && last == o.last; }
  LMSER_HD int count() const { return last - first; }
};
LMSER_HD TapRange taps_inside(std::int64_t start, int taps, std::int64_t size) {
  const std::int64_t first = between(-start, 0, taps);
  return {int(first), int(between(size - start, first, taps))};
}

// Outputs [first, last) of an axis of a convolution for which a tap meets the input: for `low` or another up to `high`.
struct OutputRange {
  std::int64_t first, last;
};
LMSER_HD OutputRange outputs_inside(std::int64_t low, std::int64_t high, int stride, int pad, std::int64_t in,
                                    std::int64_t out) {
  const std::int64_t before = pad - high, after = in - 1 + pad - low;
  const std::int64_t first = between(before > 0 ? (before + stride - 1) / stride : 0, 0, out);
  return {first, between(after < 0 ? 0 : after / stride + 1, first, out)};
}

// Of the products of an axis of a convolution those that meet the input.
LMSER_HD double share_inside(int taps, int stride, int pad, std::int64_t in, std::int64_t out) {
  std::int64_t met = 0;
  for (int i = 0; i < taps; ++i) {
    const OutputRange range = outputs_inside(i, i, stride, pad, in, out);
    met += range.last - range.first;
  }
  return taps * out > 0 ? double(met) / double(taps * out) : 1;
}

// f(first, end, taps): consecutive outputs of [q0, q1) that meet the input with the same taps, of which the first lies
// over value `offset + q * step`; all with all taps where they are not to be told apart.
template <class F>
LMSER_HD void for_tap_ranges(bool apart, std::int64_t q0, std::int64_t q1, std::int64_t offset, std::int64_t step,
                             int taps, std::int64_t size, F&& f) {
  if (!apart) return f(q0, q1, TapRange{0, taps});
  for (std::int64_t q = q0; q < q1;) {
    const TapRange range = taps_inside(offset + q * step, taps, size);
    std::int64_t end = q + 1;
    if (range.count() == taps) end = between((size - taps - offset) / step + 1, end, q1);  // up to the far edge
    while (end < q1 && taps_inside(offset + end * step, taps, size) == range) ++end;
    f(q, end, range);
    q = end;
  }
}

}  // namespace lmser
