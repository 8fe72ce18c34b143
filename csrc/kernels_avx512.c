#include "isa.h"
#if defined(__x86_64__) || defined(_M_X64) || defined(EMULATED)
#include <immintrin.h>

#define ISA         avx512
#define TARGET      "avx512f,avx512bw,avx512dq,avx512vl"
#define VECTORS_F32 "simd/avx512_f32.h"
#define VECTORS_F64 "simd/avx512_f64.h"
#include "kernels.inc"
#endif
