/*
 * codecs/words.h - what the texts of codecs share, on REAL numbers as integers of the same bits: 16-bit formats.
 *
 * Texts of codecs are plain C on one element, also those of halves.h at width 1.  With -O3 gcc and clang vectorize the
 * loops over them, which they can because the texts have no branches: PICK selects one of two words by a mask, and LESS
 * compares words that are below 2^31 or 2^63, as signed integers.
 */
#define WORD_BITS       (8 * (int)sizeof(WORD))
#define PICK(yes, x, y) ((y) ^ (((x) ^ (y)) & -(WORD)(yes)))
#define LESS(x, y)      ((SIGNED_WORD)(x) < (SIGNED_WORD)(y))

/* Bits of the fraction and bias of the exponent: of REAL, and of 16-bit formats as the arguments `fraction, bias`. */
#define FRACTION (REAL_MANT_DIG - 1)
#define BIAS     (REAL_MAX_EXP - 1)
#define BFLOAT16 7, 127
#define BINARY16 10, 15

/*
 * x in a 16-bit format: rounded once, to nearest even, with subnormals; infinity from halfway between the largest
 * finite number and the next power of two.  A NaN becomes quiet, and keeps its sign and the upper bits of its payload.
 */
static inline uint16_t FN(narrow)(REAL x, const int fraction, const int bias)
{
    const int shift = FRACTION - fraction;
    const WORD w = FN(word)(x), size = w & ~((WORD)1 << (WORD_BITS - 1));
    const WORD infinity = (WORD)(2 * bias + 1) << fraction, quiet = (WORD)1 << (fraction - 1);

    /* Add half a unit of the last bit that stays, less one if that bit is 0, so that a tie rounds to an even number. */
    WORD half =
        (size - ((WORD)(BIAS - bias) << FRACTION) + ((WORD)1 << (shift - 1)) - 1 + (size >> shift & 1)) >> shift;
    if (bias != BIAS) {
        /* One unit in the last place of `ruler` is the smallest subnormal: sums are rounded to multiples of it. */
        const WORD ruler = (WORD)(BIAS - bias + 1 + shift) << FRACTION;
        const WORD subnormal = FN(word)(FN(real)(size) + FN(real)(ruler)) - ruler;
        half = PICK(LESS(size, (WORD)(BIAS - bias + 1) << FRACTION), subnormal, half);
        half = PICK(LESS(size, (WORD)(BIAS + bias + 1) << FRACTION), half, infinity);
    }
    half = PICK(LESS((WORD)(2 * BIAS + 1) << FRACTION, size), infinity | quiet | (size >> shift & (quiet - 1)), half);
    return (uint16_t)(half | (w >> (WORD_BITS - 16) & 0x8000));
}

/* A number of a 16-bit format as REAL, exactly. */
static inline REAL FN(widen)(uint16_t half, const int fraction, const int bias)
{
    const int shift = FRACTION - fraction;
    WORD size = (WORD)(half & 0x7fff) << shift;
    if (bias != BIAS) {
        const WORD step = (WORD)(BIAS - bias) << FRACTION, one = (WORD)1 << FRACTION;
        const WORD infinity = (WORD)(2 * bias + 1) << FRACTION;
        /* A subnormal has no leading one: add one to make the number normal, and subtract it again, which is exact. */
        const WORD subnormal = FN(word)(FN(real)(size + step + one) - FN(real)(step + one));
        const WORD normal = PICK(LESS(size, infinity), size + step, size + 2 * step);
        size = PICK(LESS(size, one), subnormal, normal);
    }
    return FN(real)(size | (WORD)(half & 0x8000) << (WORD_BITS - 16));
}

/*
 * A REAL master, and the number of 16 bits that a model uses.
 *
 *   store   master <- x, half <- x rounded
 *   load    x <- master; but if `half` is not the rounded master, the program has written to it: x <- half
 */
static inline REAL FN(master_load)(REAL master, uint16_t half, const int fraction, const int bias)
{
    const int own = half == FN(narrow)(master, fraction, bias);
    return FN(real)(PICK(own, FN(word)(master), FN(word)(FN(widen)(half, fraction, bias))));
}

/* The words of the vocabulary for these formats, at width 1. */
#define LOAD_BF16(p)           FN(widen)(*(p), BFLOAT16)
#define STORE_BF16(p, x)       (*(p) = FN(narrow)(x, BFLOAT16))
#define LOAD_BF16_MASTER(p, q) FN(master_load)(*(q), *(p), BFLOAT16)
#define LOAD_F16(p)            FN(widen)(*(p), BINARY16)
#define STORE_F16(p, x)        (*(p) = FN(narrow)(x, BINARY16))
#define LOAD_F16_MASTER(p, q)  FN(master_load)(*(q), *(p), BINARY16)
