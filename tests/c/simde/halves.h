/*
 * simde/halves.h - binary16 and float32, as the instructions convert them; SIMDe rounds in another way and forgets the
 * payload of a NaN.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint16_t half_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (isnan(x)) return (uint16_t)(sign | 0x7e00 | (bits >> 13 & 0x3ff));
    if (fabsf(x) >= 65520) return sign | 0x7c00; /* halfway between the largest number and 2^16 */
    const int exponent = fabsf(x) < 0x1p-14f ? -14 : ilogbf(x);
    /* Units in the last place, with the leading one of a number that has one. */
    const int units = (int)nearbyint(ldexp(fabsf(x), 10 - exponent));
    return (uint16_t)(sign | ((exponent + 14) * 1024 + units));
}

static inline float float_of_half(uint16_t half)
{
    const int exponent = half >> 10 & 31, units = half & 0x3ff;
    const uint32_t nan = (uint32_t)(half & 0x8000) << 16 | 0x7fc00000 | (uint32_t)units << 13;
    float x = ldexpf((float)(exponent ? units + 1024 : units), (exponent ? exponent : 1) - 25);
    if (exponent == 31) x = INFINITY;
    if (half & 0x8000) x = -x;
    if (exponent == 31 && units) memcpy(&x, &nan, 4);
    return x;
}
