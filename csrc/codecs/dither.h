/*
 * codecs/dither.h - round a number at random to one that a narrower format has, so that its store is exact.
 *
 * Of the two neighbours of x in the format it becomes the one further from zero with a probability that is the distance
 * from the other one, in units of the distance of both; so the expected value is x.  `word` has 32 random bits: of the
 * bits of x that the format does not have, those below the 32nd do not count.  A number that the format has stays as it
 * is, also an infinity or NaN.  Above the largest finite number the neighbour is infinity.
 */
static inline REAL FN(dither)(REAL x, uint32_t word, const int fraction, const int bias)
{
    const int shift = FRACTION - fraction;
    const WORD bits = (WORD)word << (WORD_BITS - 32), w = FN(word)(x), sign = (WORD)1 << (WORD_BITS - 1);
    const WORD size = w & ~sign, infinity = (WORD)(2 * BIAS + 1) << FRACTION;

    /* Add the random bits to those that are dropped: the carry rounds up. */
    WORD rounded = (size + (bits >> (WORD_BITS - shift))) & ~(((WORD)1 << shift) - 1);
    if (bias != BIAS) {
        /* Below the smallest normal number of the format more bits are dropped; as many units of its last are left. */
        const WORD one = (WORD)1 << FRACTION, smallest = (WORD)(BIAS - bias + 1) << FRACTION;
        const int is_small = LESS(size, smallest);
        const WORD dropped = (WORD)shift + PICK(is_small, (WORD)(BIAS - bias + 1) - (size >> FRACTION), (WORD)0);
        const WORD most = WORD_BITS - 1, by = PICK(LESS(most, dropped), most, dropped), less = dropped - by;
        const WORD digits = ((size & (one - 1)) | one) >> PICK(LESS(most, less), most, less);
        const WORD units = (digits + (bits >> (WORD_BITS - by))) >> by;
        const REAL unit = FN(real)((WORD)(BIAS - bias + 1 - fraction) << FRACTION);
        rounded = PICK(is_small, FN(word)((REAL)(SIGNED_WORD)units * unit), rounded);
    }
    return FN(real)(PICK(LESS(size, infinity), rounded, size) | (w & sign));
}
