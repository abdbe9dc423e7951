// Packed weights, kept between calls.
//
// Packing a weight costs as much as a small layer computes, and the same weight is packed again and again: in every
// call of inference, and in a training step by the forward pass and, for the other direction's gradient, by the
// backward pass. So a copy of the weight as it lay is kept beside what was packed from it, and what is kept is taken
// where the weight still holds those very bits: no version number has to be trusted, whoever wrote to the weight. A
// comparison reads memory in its order, some ten times faster than packing.
#pragma once

#include <memory>

#include "engine.h"

namespace lmser::packed_store {

constexpr std::int64_t kLeast = 1024;                 // values of a weight that is worth it
constexpr std::size_t kMost = std::size_t(96) << 20;  // bytes kept; the longest unused go first

// A convolution's weight, and that of the channels beside, if there is one (PreparedConv).
struct Weights {
  View weight, beside{};
};

// What was packed from these for plans that pack as `plan` does; null where there is nothing, or where they have
// changed.
std::shared_ptr<void> find(const InstructionSet& isa, const ThreadPool& pool, const Weights& weights,
                           const ConvPlan& plan, std::size_t value_bytes);
void keep(const InstructionSet& isa, const Weights& weights, const ConvPlan& plan, std::size_t value_bytes,
          std::shared_ptr<void> packed);
std::size_t bytes() noexcept;
void empty() noexcept;

// What is packed depends on channels and taps of the phases and on the algorithm, not on how many pixels there are.
bool same_packing(const ConvPlan& a, const ConvPlan& b);

}  // namespace lmser::packed_store
