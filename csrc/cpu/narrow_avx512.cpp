// Convolutions of bfloat16 values in tiles (narrow.h), for processors with AVX-512.
#define LMSER_ISA avx512_narrow
#define LMSER_VECTOR_BYTES 64
#define LMSER_REGISTERS 32
#define LMSER_TILE_PIXELS_1 16
#define LMSER_TILE_PIXELS_2 12
#define LMSER_TILE_PIXELS_3 8
#define LMSER_TILE_VECTORS 3
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
