#include "isa.h"
#if defined(__x86_64__) || defined(_M_X64) || defined(EMULATED)
#include <immintrin.h>

#define ISA         avx2
#define TARGET      "avx2,f16c"
#define VECTORS_F32 "simd/avx2_f32.h"
#define VECTORS_F64 "simd/avx2_f64.h"
#include "kernels.inc"
#endif
