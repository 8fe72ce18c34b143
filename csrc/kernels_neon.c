#include "isa.h"
#if defined(__aarch64__) || defined(_M_ARM64) || defined(EMULATED)
#include <arm_neon.h>

#define ISA         neon
#define VECTORS_F32 "simd/neon_f32.h"
#define VECTORS_F64 "simd/neon_f64.h"
#include "kernels.inc"
#endif
