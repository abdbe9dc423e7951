// Whole numbers rounded up; not for the units of an instruction set, whose inline functions are their own.
#pragma once

#include <cstdint>

namespace lmser {

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
inline std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

}  // namespace lmser
