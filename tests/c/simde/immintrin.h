/* simde/immintrin.h - stands in for the compiler's header: the same intrinsics in portable C, by SIMDe. */
#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "halves.h"

/* SIMDe 0.7 has the types, but not under these names. */
typedef simde__mmask8 __mmask8;
typedef simde__mmask16 __mmask16;

/* What SIMDe 0.7 has not. */
#ifndef _mm512_mask_cmp_ps_mask
#define _mm512_mask_cmp_ps_mask(mask, a, b, how) ((__mmask16)((mask) & _mm512_cmp_ps_mask(a, b, how)))
#endif

#ifndef _kand_mask8
#define _kand_mask8(a, b)  ((__mmask8)((a) & (b)))
#define _kandn_mask8(a, b) ((__mmask8)(~(a) & (b)))
#endif
#ifndef _mm512_kand
#define _mm512_kand(a, b)  ((__mmask16)((a) & (b)))
#define _mm512_kandn(a, b) ((__mmask16)(~(a) & (b)))
#endif

#ifndef _mm512_cvtepu16_epi32
static inline __m512i _mm512_cvtepu16_epi32(__m256i a)
{
    uint16_t x[16];
    uint32_t y[16];
    _mm256_storeu_si256((__m256i *)x, a);
    for (int i = 0; i < 16; i++) y[i] = x[i];
    return _mm512_loadu_si512(y);
}

static inline __m512i _mm512_cvtepi16_epi32(__m256i a)
{
    int16_t x[16];
    int32_t y[16];
    _mm256_storeu_si256((__m256i *)x, a);
    for (int i = 0; i < 16; i++) y[i] = x[i];
    return _mm512_loadu_si512(y);
}

static inline __m256i _mm512_cvtepi32_epi16(__m512i a)
{
    uint32_t x[16];
    uint16_t y[16];
    _mm512_storeu_si512(x, a);
    for (int i = 0; i < 16; i++) y[i] = (uint16_t)x[i];
    return _mm256_loadu_si256((const __m256i *)y);
}
#endif

#ifndef _MM_FROUND_NO_EXC
#define _MM_FROUND_NO_EXC SIMDE_MM_FROUND_NO_EXC
#endif

#ifndef _mm512_cvtepi8_epi32
static inline __m512i _mm512_cvtepi8_epi32(__m128i a)
{
    int8_t x[16];
    int32_t y[16];
    _mm_storeu_si128((__m128i *)x, a);
    for (int i = 0; i < 16; i++) y[i] = x[i];
    return _mm512_loadu_si512(y);
}

static inline __m512i _mm512_cvtepu8_epi32(__m128i a)
{
    uint8_t x[16];
    uint32_t y[16];
    _mm_storeu_si128((__m128i *)x, a);
    for (int i = 0; i < 16; i++) y[i] = x[i];
    return _mm512_loadu_si512(y);
}

static inline __m128i _mm512_cvtepi32_epi8(__m512i a)
{
    uint32_t x[16];
    uint8_t y[16];
    _mm512_storeu_si512(x, a);
    for (int i = 0; i < 16; i++) y[i] = (uint8_t)x[i];
    return _mm_loadu_si128((const __m128i *)y);
}

static inline __m512 _mm512_cvtepi32_ps(__m512i a)
{
    int32_t x[16];
    float y[16];
    _mm512_storeu_si512(x, a);
    for (int i = 0; i < 16; i++) y[i] = (float)x[i];
    return _mm512_loadu_ps(y);
}

static inline __m512i _mm512_cvtps_epi32(__m512 a)
{
    float x[16];
    int32_t y[16];
    _mm512_storeu_ps(x, a);
    for (int i = 0; i < 16; i++) y[i] = fabsf(x[i]) < 0x1p31f ? (int32_t)lrintf(x[i]) : INT32_MIN; /* also of NaN */
    return _mm512_loadu_si512(y);
}
#endif

/*
 * x * y + z, rounded once; SIMDe rounds twice, and so does fmaf() of some C libraries.  The product is exact in double.
 * What the sum loses there goes into its last bit, so that rounding to float sees it (Boldo & Melquiond 2008).
 */
static inline float fused_one(float x, float y, float z)
{
    const double product = (double)x * y, sum = product + z;
    const double added = sum - product, lost = (product - (sum - added)) + (z - added);
    uint64_t bits;
    double odd;
    memcpy(&bits, &sum, 8);
    if (isfinite(lost) && lost != 0 && !(bits & 1)) bits = (lost > 0) == (sum > 0) ? bits + 1 : bits - 1;
    memcpy(&odd, &bits, 8);
    return (float)odd;
}

static inline __m512 fused(__m512 a, float sign, __m512 b, __m512 c)
{
    float x[16], y[16], z[16];
    _mm512_storeu_ps(x, a);
    _mm512_storeu_ps(y, b);
    _mm512_storeu_ps(z, c);
    for (int i = 0; i < 16; i++) z[i] = fused_one(sign * x[i], y[i], z[i]);
    return _mm512_loadu_ps(z);
}
#undef _mm512_fmadd_ps
#undef _mm512_fnmadd_ps
#define _mm512_fmadd_ps(a, b, c)  fused(a, 1, b, c)
#define _mm512_fnmadd_ps(a, b, c) fused(a, -1, b, c)

/*
 * The estimate as bad as it could be: relative errors of -3, -2, ... 3 times the 2^-14 that the architecture allows,
 * taken in turn.  7 has no factor in common with the 16 lanes, and so an input meets them all in runs over the same
 * inputs.
 */
#undef _mm512_maskz_rsqrt14_ps
static inline __m512 _mm512_maskz_rsqrt14_ps(__mmask16 mask, __m512 a)
{
    static int turn;
    float x[16];
    _mm512_storeu_ps(x, a);
    for (int i = 0; i < 16; i++) {
        x[i] = mask >> i & 1 ? (float)((1 + (turn - 3) * 0x1p-14) / sqrt(x[i])) : 0;
        turn = turn < 6 ? turn + 1 : 0;
    }
    return _mm512_loadu_ps(x);
}

#ifndef _mm512_rsqrt14_ps
#define _mm512_rsqrt14_ps(a) _mm512_maskz_rsqrt14_ps(0xffff, a)
#endif

/* binary16, in so many lanes: the upper half of a vector that is cast from a narrower one is undefined. */
#define CONVERSIONS(lanes, halves, floats, load, store, load_floats, store_floats) \
    static inline floats floats_of_##lanes(halves a)                               \
    {                                                                              \
        uint16_t x[lanes];                                                         \
        float y[lanes];                                                            \
        store((halves *)x, a);                                                     \
        for (int i = 0; i < lanes; i++) y[i] = float_of_half(x[i]);                \
        return load_floats(y);                                                     \
    }                                                                              \
    static inline halves halves_of_##lanes(floats a)                               \
    {                                                                              \
        float x[lanes];                                                            \
        uint16_t y[lanes];                                                         \
        store_floats(x, a);                                                        \
        for (int i = 0; i < lanes; i++) y[i] = half_of(x[i]);                      \
        return load((const halves *)y);                                            \
    }
CONVERSIONS(8, __m128i, __m256, _mm_loadu_si128, _mm_storeu_si128, _mm256_loadu_ps, _mm256_storeu_ps)
CONVERSIONS(16, __m256i, __m512, _mm256_loadu_si256, _mm256_storeu_si256, _mm512_loadu_ps, _mm512_storeu_ps)
#undef CONVERSIONS
#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#undef _mm256_cvtph_ps
#undef _mm256_cvtps_ph
#define _mm512_cvtph_ps(a)      floats_of_16(a)
#define _mm512_cvtps_ph(a, how) halves_of_16(a)
#define _mm256_cvtph_ps(a)      floats_of_8(a)
#define _mm256_cvtps_ph(a, how) halves_of_8(a)

#ifndef _mm256_cmpeq_epi16_mask
static inline __mmask16 _mm256_cmpeq_epi16_mask(__m256i a, __m256i b)
{
    uint16_t x[16], y[16];
    int mask = 0;
    _mm256_storeu_si256((__m256i *)x, a);
    _mm256_storeu_si256((__m256i *)y, b);
    for (int i = 0; i < 16; i++) mask |= (x[i] == y[i]) << i;
    return (__mmask16)mask;
}
#endif

#ifndef _mm512_permutexvar_ps
static inline __m512 _mm512_permutexvar_ps(__m512i place, __m512 a)
{
    uint32_t of[16];
    float x[16], y[16];
    _mm512_storeu_si512(of, place);
    _mm512_storeu_ps(x, a);
    for (int i = 0; i < 16; i++) y[i] = x[of[i] & 15];
    return _mm512_loadu_ps(y);
}
#endif
#ifndef _mm512_broadcast_f32x8
static inline __m512 _mm512_broadcast_f32x8(__m256 a)
{
    float x[16];
    _mm256_storeu_ps(x, a);
    _mm256_storeu_ps(x + 8, a);
    return _mm512_loadu_ps(x);
}
#endif
