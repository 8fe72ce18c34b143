/*
 * codecs/split.h - a float32 in two halves, without loss; the upper half is a bfloat16 that a model can use.
 *
 *   store   high <- (word + 2^15) >> 16    the number rounded to nearest, ties away from zero
 *           low  <- word mod 2^16          as a signed number: by how much it was rounded
 *   load    word <- high 2^16 + low        but high 2^16 where that is a NaN
 *
 * A NaN is stored as 0x7fc00000, because the carry of the rounding could change its sign.
 *
 * If the program has written `high` since, `low` still belongs to an older number.  It is added all the same, except
 * where it would make a NaN of a zero or an infinity.  So an infinity with a negative `low` is loaded as a finite
 * number of about 3.39e38, and a zero with a positive `low` as a subnormal number of up to 4.6e-41.  A load cannot
 * distinguish these from numbers that were stored.  A program that writes zeros or infinities sets `low` to 0 at the
 * same places; weights that are pruned without that become subnormal, which makes every later step slow.
 */
static inline void FN(split_load)(ARGS(split), size_t i)
{
    const WORD high = (WORD)a->high[i] << 16, word = high + (WORD)(SIGNED_WORD)a->low[i];
    a->x[i] = FN(real)(PICK(LESS(0x7f800000, word & 0x7fffffff), high, word));
}

static inline void FN(split_store)(ARGS(split), size_t i)
{
    WORD word = FN(word)(a->x[i]);
    word = PICK(LESS(0x7f800000, word & 0x7fffffff), (WORD)0x7fc00000, word);
    a->high[i] = (uint16_t)((word + 0x8000) >> 16);
    a->low[i] = (int16_t)word;
}
