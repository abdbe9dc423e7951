// AVX-512 (F, BW, DQ, VL): 32 registers of 16 floats, tiles up to 8 pixels x 3 registers.
#pragma once

#define LMSER_VECTOR_BYTES 64
#define LMSER_REGISTERS 32
#define LMSER_TILE_PIXELS_1 16
#define LMSER_TILE_PIXELS_2 12
#define LMSER_TILE_PIXELS_3 8
#define LMSER_TILE_VECTORS 3
