// Convolutions of bfloat16 values in tiles (narrow.h), for processors with AVX-512.
#include "avx512.h"
#define LMSER_ISA avx512_narrow

// GCC takes the operands that its own intrinsics leave open for variables that were forgotten.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "narrow_conv.h"
#include "narrow_grad.h"
#include "narrow_pull_back.h"

namespace lmser::LMSER_ISA {

template <class Tiles>
constexpr NarrowKernels narrow_table() {
  return {narrow_conv_scratch,     narrow_conv_unit<Tiles>, pack_narrow,
          narrow_grad_scratch,     narrow_grad_unit<Tiles>, write_narrow_weight,
          narrow_pull_back<Tiles>, product_rounds<Tiles>};
}
extern const NarrowKernels amx_table, emulated_table;
const NarrowKernels amx_table = narrow_table<AmxTiles>(), emulated_table = narrow_table<EmulatedTiles>();

}  // namespace lmser::LMSER_ISA
