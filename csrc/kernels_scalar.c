#define ISA         scalar
#define VECTORS_F32 "simd/scalar.h"
#define VECTORS_F64 "simd/scalar.h"
#include "kernels.inc"
