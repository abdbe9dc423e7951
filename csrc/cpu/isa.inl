// The table of one instruction set; included by cpu/isa_*.cpp, which name LMSER_ISA and its register shape.
#include "conv_unit.h"
#include "max_pool_unit.h"
#include "rows_unit.h"
#include "weight_grad_unit.h"

namespace lmser::LMSER_ISA {
namespace {

template <class T>
void pack_any(const ConvPlan& p, const WeightLayout<T>& weight, int block, std::int64_t c0, std::int64_t c1,
              T* packed) {
  if constexpr (sizeof(T) == 4) {
    if (p.winograd.m)
      return with_filter(p.winograd, [&]<class F>() { winograd_pack<F>(p, weight, block, c0, c1, packed); });
  }
  if (p.four_phases) return pack_four_phases<T>(p, weight, c0, c1, packed);
  const auto place = [&](const Phase& ph) {
    return packed + ph.weight_offset + p.blocks[block].weight_column * ph.depth(p.geometry.in_c);
  };
  if constexpr (sizeof(T) == 4)
    for (const Phase& ph : p.phases)
      if (ph.pairs) pack_pairs(p, ph, weight, block, c0, c1, place(ph));
  pack_block<T>(p, weight, block, c0, c1, place);
}
template <class T>
bool winograd_finish_any(const WeightGradPlan& p, const T* sums, int count, std::int64_t c0, std::int64_t c1, T* out) {
  if constexpr (sizeof(T) == 4) {
    if (p.winograd.along_rows) return pair_grad_finish(p, sums, count, c0, c1, out), true;
    return with_filter(p.winograd, [&]<class F>() { return winograd_grad_finish<F>(p, sums, count, c0, c1, out); });
  }
  return true;
}

template <class T>
constexpr Kernels<T> kernels() {
  Kernels<T> k{};
  k.tile = {kLanes<T>,           kTilePixels[kTileVectors],
            kTileVectors,        {0, kTilePixels[1], kTilePixels[2], kTilePixels[3]},
            kFiltersInRegisters, kFourPhases};
  k.conv_scratch = conv_scratch<T>;
  k.conv_unit = conv_unit<T>;
  k.columns_scratch = columns_scratch<T>;
  k.gather_columns = gather_columns<T>;
  k.outer_rows = outer_rows<T>;
  if constexpr (sizeof(T) == 4)
    k.round_points = round_points, k.round_products = round_products, k.round_outputs = round_outputs;
  k.pooled_rows = pooled_rows<T>;
  k.pools_by_unit = pools_by_unit<T>;
  k.pack = pack_any<T>;
  k.weight_grad_scratch = weight_grad_scratch<T>;
  k.weight_grad_unit = weight_grad_unit<T>;
  if constexpr (sizeof(T) == 4) k.grad_points = grad_points, k.grad_products = grad_products;
  k.winograd_grad_finish = winograd_finish_any<T>;
  k.transform_scratch = transform_scratch<T>;
  k.transform_rows = transform_rows<T>;
  k.add_act_scratch = add_act_scratch<T>;
  k.add_act_rows = add_act_rows<T>;
  k.pool_scratch = pool_scratch<T>;
  k.pool_rows = pool_rows<T>;
  k.unpool_rows = unpool_rows<T>;
  k.select_rows = select_rows<T>;
  k.epilogue_rows = epilogue_rows<T>;
  k.fma_rounds = fma_rounds<T>;
  return k;
}

}  // namespace

#define LMSER_TEXT_(x) #x
#define LMSER_TEXT(x) LMSER_TEXT_(x)
extern const InstructionSet table;
const InstructionSet table{LMSER_TEXT(LMSER_ISA), kernels<float>(), kernels<double>()};

}  // namespace lmser::LMSER_ISA
