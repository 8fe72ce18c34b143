/*
 * simd/scalar.h - the vector vocabulary at width 1: portable C, and the tail of every vector loop.
 *
 * MIN and MAX return y if x or y is NaN, and if both are zeros of any sign; GT and LT are false for NaN.  DIFFER
 * compares sign bits, also of zeros and NaN.  FIRST is the number that all lanes of a coefficient hold: a condition on
 * it is the same for the whole run, and compilers hoist it out of the loop.
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
