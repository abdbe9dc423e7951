// AVX2 with FMA and F16C: 16 registers of 8 floats, tiles up to 6 pixels x 2 registers.
#define LMSER_ISA avx2
#define LMSER_VECTOR_BYTES 32
#define LMSER_REGISTERS 16
#define LMSER_TILE_PIXELS_1 12
#define LMSER_TILE_PIXELS_2 6
#define LMSER_TILE_PIXELS_3 0
#define LMSER_TILE_VECTORS 2
#include "isa.inl"
