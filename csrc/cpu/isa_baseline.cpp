// The compiler's default target: SSE2 on x86-64, NEON on 64-bit Arm. 16-byte registers, tiles up to 6 pixels x 2.
#define LMSER_ISA baseline
#define LMSER_VECTOR_BYTES 16
#if defined(__aarch64__)
#define LMSER_REGISTERS 32
#else
#define LMSER_REGISTERS 16
#endif
#define LMSER_TILE_PIXELS_1 12
#define LMSER_TILE_PIXELS_2 6
#define LMSER_TILE_PIXELS_3 0
#define LMSER_TILE_VECTORS 2
#include "isa.inl"
