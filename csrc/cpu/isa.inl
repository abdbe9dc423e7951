// The table of one instruction set; included by cpu/isa_*.cpp, which name LMSER_ISA and its register shape.
#include "conv_unit.h"
#include "rows_unit.h"
#include "weight_grad_unit.h"

namespace lmser::LMSER_ISA {
namespace {

template <class T>
constexpr Kernels<T> kernels() {
  return {{kLanes<T>, kTilePixels[kTileVectors], kTileVectors, {0, kTilePixels[1], kTilePixels[2], kTilePixels[3]}}, conv_scratch<T>,   conv_unit<T>,      weight_grad_scratch<T>, weight_grad_unit<T>,
          transform_scratch<T>,                   transform_rows<T>, add_act_scratch<T>, add_act_rows<T>,        fma_rounds<T>};
}

}  // namespace

#define LMSER_TEXT_(x) #x
#define LMSER_TEXT(x) LMSER_TEXT_(x)
extern const InstructionSet table;
const InstructionSet table{LMSER_TEXT(LMSER_ISA), kernels<float>(), kernels<double>()};

}  // namespace lmser::LMSER_ISA
