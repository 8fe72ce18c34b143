/*
 * codecs/steps.h - Rprop's state (see rules/rprop.h) as two arrays, step sizes and last signs, as torch keeps them.
 *
 *   load    word <- size with the sign of `sign`; or size 2^90, for "no last sign", if `sign` is 0 or NaN
 *   store   size <- |word| or |word| 2^-90, sign <- -1, 0 or 1
 *
 * Powers of two scale exactly, so nothing is lost either way.
 */
static inline void FN(steps_load)(ARGS(steps), size_t i)
{
    const WORD minus = (WORD)1 << (WORD_BITS - 1), sign = FN(word)(a->sign[i]), size = sign & ~minus;
    const int known = LESS(0, size) & LESS(size, FN(word)((REAL)INFINITY) + 1);
    const REAL factor = FN(real)(PICK(known, FN(word)(1), FN(word)((REAL)0x1p90)));
    a->word[i] = FN(real)(FN(word)(a->size[i] * factor) ^ (sign & minus & -(WORD)known));
}

static inline void FN(steps_store)(ARGS(steps), size_t i)
{
    const WORD minus = (WORD)1 << (WORD_BITS - 1), word = FN(word)(a->word[i]), size = word & ~minus;
    const int known = LESS(size, FN(word)((REAL)0x1p38));
    const REAL factor = FN(real)(PICK(known, FN(word)(1), FN(word)((REAL)0x1p-90)));
    a->size[i] = FN(real)(size) * factor;
    a->sign[i] = FN(real)((FN(word)(1) | (word & minus)) & -(WORD)known);
}
