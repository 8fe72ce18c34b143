/*
 * codecs/bytes.h - what the codecs of one byte share.  They convert a block of at most PROPTIM_QUANTA elements at a
 * time, because all of them have one scale: the largest size among them.
 *
 *   store   scale <- max |x|;  level <- sqrt(|x| / scale) levels, rounded to the nearer of both squares
 *   load    |x|   <- scale level^2 / levels^2
 *
 * Small numbers need many levels: beside gradients of one, averages of gradients of a hundredth still move.  The scale
 * is exact, and so is the largest number of a block; what was loaded is stored as the same bytes again.
 */

/* 1 / (levels * levels), as a REAL: its product with the square of `levels` is exactly 1 for 127 and for 254. */
#define INVERSE(levels) ((REAL)(1.0 / ((levels) * (levels))))

/*
 * The scale of n elements: the largest finite one, and at least 2^-109, with which the smallest level of the squares,
 * 2^-125, is a normal number, and 254^2 / scale is finite.
 */
static inline REAL FN(scale_of)(const REAL *x, size_t n)
{
    const SIGNED_WORD infinity = (SIGNED_WORD)FN(word)((REAL)INFINITY);
    SIGNED_WORD most = (SIGNED_WORD)FN(word)((REAL)0x1p-109);
    for (size_t i = 0; i < n; i++) {
        const SIGNED_WORD size = (SIGNED_WORD)FN(word)(REAL_FABS(x[i]));
        const SIGNED_WORD finite = size < infinity ? size : 0;
        most = finite > most ? finite : most;
    }
    return FN(real)((WORD)most);
}

/* Whether x is finite, of which the codes of NaN are made: infinities become NaN too. */
static inline int FN(is_finite)(REAL x) { return LESS(FN(word)(REAL_FABS(x)), FN(word)((REAL)INFINITY)); }

/* The level of |x|, of which `factor` is levels^2 / scale; 0 where x is not finite. */
static inline SIGNED_WORD FN(level_of)(REAL x, REAL factor)
{
    const WORD size = FN(word)(REAL_FABS(x));
    const REAL square = FN(real)(size & -(WORD)FN(is_finite)(x)) * factor;
    const SIGNED_WORD below = (SIGNED_WORD)(int32_t)REAL_SQRT(square);
    /* Half of the way to the next square, 2 below + 1, is exact. */
    return below + (square - (REAL)(below * below) > (REAL)below + (REAL)0.5);
}

static inline REAL FN(of_level)(SIGNED_WORD level, REAL inverse, REAL scale)
{
    return (REAL)(level * level) * inverse * scale;
}
