/* simde/arm_neon.h - stands in for the compiler's header: the same intrinsics in portable C, by SIMDe. */
#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/arm/neon.h>

#include "halves.h"

/* What SIMDe 0.7 has not. */
#if SIMDE_VERSION_MAJOR == 0 && SIMDE_VERSION_MINOR < 8
#include <math.h>

static inline float32x4_t vdivq_f32(float32x4_t a, float32x4_t b)
{
    float x[4], y[4];
    vst1q_f32(x, a);
    vst1q_f32(y, b);
    for (int i = 0; i < 4; i++) x[i] /= y[i];
    return vld1q_f32(x);
}

static inline float64x2_t vdivq_f64(float64x2_t a, float64x2_t b)
{
    double x[2], y[2];
    vst1q_f64(x, a);
    vst1q_f64(y, b);
    for (int i = 0; i < 2; i++) x[i] /= y[i];
    return vld1q_f64(x);
}

static inline float32x4_t vsqrtq_f32(float32x4_t a)
{
    float x[4];
    vst1q_f32(x, a);
    for (int i = 0; i < 4; i++) x[i] = sqrtf(x[i]);
    return vld1q_f32(x);
}

static inline float64x2_t vsqrtq_f64(float64x2_t a)
{
    double x[2];
    vst1q_f64(x, a);
    for (int i = 0; i < 2; i++) x[i] = sqrt(x[i]);
    return vld1q_f64(x);
}
#endif

/* binary16 */
static inline float32x4_t floats_of_halves(float16x4_t a)
{
    uint16_t x[4];
    float y[4];
    vst1_u16(x, vreinterpret_u16_f16(a));
    for (int i = 0; i < 4; i++) y[i] = float_of_half(x[i]);
    return vld1q_f32(y);
}

static inline float16x4_t halves_of_floats(float32x4_t a)
{
    float x[4];
    uint16_t y[4];
    vst1q_f32(x, a);
    for (int i = 0; i < 4; i++) y[i] = half_of(x[i]);
    return vreinterpret_f16_u16(vld1_u16(y));
}
#undef vcvt_f32_f16
#undef vcvt_f16_f32
#define vcvt_f32_f16(a) floats_of_halves(a)
#define vcvt_f16_f32(a) halves_of_floats(a)
