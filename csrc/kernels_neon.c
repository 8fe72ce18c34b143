#include <arm_neon.h>

#define ISA         neon
#define VECTORS_F32 "simd/neon_f32.h"
#define VECTORS_F64 "simd/neon_f64.h"
#include "kernels.inc"
