/*
 * codecs/levels.h - what the codecs of averages in one byte share.  The elements of a block, PROPTIM_QUANTA or the
 * fewer at the end, have one scale: the largest size among them, and at least 2^-109, as bytes.inc explains.
 *
 *   store   scale <- max(|x|, 2^-109);  level <- sqrt(|x| / scale) levels, rounded to the nearer of both squares
 *   load    |x|   <- scale level^2 / levels^2
 *
 * Small numbers need many levels: beside gradients of one, averages of gradients of a hundredth still move.  The scale
 * is exact, and so is the largest number of a block that is at least 2^-109; what was loaded is stored as the same
 * bytes again.
 */

/* 1 / (levels * levels), as a REAL: its product with the square of `levels` is exactly 1 for 127 and for 254. */
#define INVERSE(levels) ((REAL)(1.0 / ((levels) * (levels))))

/* Of a block: the scale, and levels^2 / scale. */
typedef struct {
    VEC scale, factor;
} CAT(averages, CAT(FORM, CAT(numbers, TYPE)));

static inline VEC FN(of_level)(VEC level, VEC inverse, VEC scale)
{
    return MUL(MUL(MUL(level, ABS(level)), inverse), scale);
}

/* The level of |x|, of which `factor` is levels^2 / scale; levels + 1 where x is not finite. */
static inline VEC FN(level_of)(VEC x, VEC factor, REAL levels)
{
    const VEC square = MIN_SIZE(MUL(x, factor), SET1((levels + 1) * (levels + 1)));
    /* The root is off by less than 1/4, so that the level is `below` or one more. */
    const VEC below = FLOOR(NEAR_ROOT(square)), above = ADD(below, SET1((REAL)1));
    /* Half of the way from one square to the next: below^2 + below + 1/2. */
    return SELECT(GT(square, EXACT(below, above, SET1((REAL)0.5))), above, below);
}

/*
 * The level of its block, as a number, to which x is rounded at random, as dither.h rounds to numbers of 16 bits: the
 * one above |x| if `part`, a random number of 0 to 1, is below the place of |x| between both.  `levels` is 127, or 254
 * for numbers that are never negative, of which none above zero becomes zero.
 */
static inline VEC FN(dither_level)(VEC x, VEC part, VEC scale, VEC factor, REAL levels)
{
    const VEC exact = ABS(x), inverse = SET1(INVERSE(levels)), one = SET1((REAL)1);
    /* The level of 0 may be NaN, as its NEAR_ROOT may; beside a NaN MAX is its second operand. */
    const VEC near = MAX(FN(level_of)(exact, factor, levels), ZERO());
    const VEC below = SELECT(GT(FN(of_level)(near, inverse, scale), exact), SUB(near, one), near);
    const VEC low = FN(of_level)(below, inverse, scale), high = FN(of_level)(ADD(below, one), inverse, scale);
    VEC rounded = SELECT(GT(SUB(exact, low), MUL(part, SUB(high, low))), high, low);
    if (levels > 127) rounded = SELECT(AND(LT(below, one), GT(exact, ZERO())), high, rounded);
    return SELECT(GT(near, SET1(levels)), x, FLIPSIGN(rounded, x));
}
