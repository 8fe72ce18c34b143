#include <immintrin.h>

#define ISA         avx512
#define VECTORS_F32 "simd/avx512_f32.h"
#define VECTORS_F64 "simd/avx512_f64.h"
#include "kernels.inc"
