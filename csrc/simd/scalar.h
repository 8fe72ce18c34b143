/*
 * simd/scalar.h - the vector vocabulary at width 1: portable C, and the tail of every vector loop.
 *
 * MIN and MAX return y if x or y is NaN, and if both are zeros of any sign; GT and LT are false for NaN.  DIFFER
 * compares sign bits, also of zeros and NaN.  FIRST is the number that all lanes of a coefficient hold: a condition on
 * it is the same for the whole run, and compilers hoist it out of the loop.
 *
 * LOAD_BF16, LOAD_F16 and so on, of numbers of 16 bits, are defined in codecs/words.h at width 1, and for vectors only
 * in float32.  LOAD_F16 of a vector makes a NaN quiet.
 *
 * The last words are those of codecs of one byte.  STORE_BYTE stores whole numbers of -128 to 255, the negative ones as
 * their two's complement, and NaN, which scalar.h does not get, as 0.  EXACT is x y + z, where the product and the sum
 * are exact.  MIN_SIZE is MIN(ABS(x), y).  NEAR_ROOT is at least 0, and within 1/4 of the root of a number of 0 to
 * 2^16, and may be NaN for 0; the bits of results do not depend on it.  FLOOR is that of a number of 0 to 2^22.
 * EXPONENT and SIGNIFICAND are the fields of a number that is not negative: its biased exponent, and its fraction with
 * that of 1. SHRINK is x 2^-y for whole numbers y of 0 to 126.  LOOKUP is an entry of a table of 8 in memory, chosen by
 * the first three bits of the fraction of x.
 */
#define VEC             REAL
#define WIDTH           1
#define LOAD(p)         (*(p))
#define STORE(p, x)     (*(p) = (x))
#define SET1(s)         (s)
#define ZERO()          ((REAL)0)
#define ADD(x, y)       ((x) + (y))
#define SUB(x, y)       ((x) - (y))
#define MUL(x, y)       ((x) * (y))
#define DIV(x, y)       ((x) / (y))
#define SQRT(x)         REAL_SQRT(x)
#define MIN(x, y)       ((x) < (y) ? (x) : (y))
#define MAX(x, y)       ((x) > (y) ? (x) : (y))
#define ABS(x)          REAL_FABS(x)
#define FLIPSIGN(x, y)  (signbit(y) ? -(x) : (x))
#define MASK            int
#define GT(x, y)        ((x) > (y))
#define LT(x, y)        ((x) < (y))
#define DIFFER(x, y)    (!signbit(x) != !signbit(y))
#define AND(m, n)       ((m) && (n))
#define ANDNOT(m, n)    ((m) && !(n))
#define SELECT(m, x, y) ((m) ? (x) : (y))
#define FIRST(x)        (x)

/* In float32 alone. */
#define LOAD_INT8(p)     ((REAL) * (const int8_t *)(p))
#define LOAD_UINT8(p)    ((REAL) * (const uint8_t *)(p))
#define STORE_BYTE(p, x) (*(uint8_t *)(p) = (uint8_t)(int)(x))
#define EXACT(x, y, z)   ((x) * (y) + (z))
#define MIN_SIZE(x, y)   MIN(ABS(x), y)
#define NEAR_ROOT(x)     REAL_SQRT(x)
#define FLOOR(x)         ((REAL)(int)(x))
#define EXPONENT(x)      ((REAL)(CAT(word, TYPE)(x) >> 23))
#define SIGNIFICAND(x)   CAT(real, TYPE)((CAT(word, TYPE)(x) & 0x007fffff) | 0x3f800000)
#define SHRINK(x, y)     ((x) * CAT(real, TYPE)((WORD)(127 - (int)(y)) << 23))
#define LOOKUP(table, x) ((table)[CAT(word, TYPE)(x) >> 20 & 7])
