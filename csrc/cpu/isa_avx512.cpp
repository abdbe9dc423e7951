#include "avx512.h"
#define LMSER_ISA avx512
#include "isa.inl"
