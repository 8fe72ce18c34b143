/* codecs/int8.h - averages of either sign in one byte: 127 levels of each sign, see bytes.h, and -128 for NaN. */
static inline void FN(int8_load)(ARGS(int8), size_t n)
{
    const REAL scale = (REAL)*a->scale, inverse = INVERSE(127);
    const WORD nan = FN(word)((REAL)INFINITY) | (WORD)1 << (FRACTION - 1);
    REAL *const x = a->x;
    const int8_t *const code = a->code;
    for (size_t i = 0; i < n; i++) {
        const SIGNED_WORD level = code[i];
        const WORD size = FN(word)(FN(of_level)(level, inverse, scale));
        const WORD sign = (WORD)LESS((WORD)level, 0) << (WORD_BITS - 1);
        x[i] = FN(real)(PICK(level == -128, nan, size | sign));
    }
}

static inline void FN(int8_store)(ARGS(int8), size_t n)
{
    const REAL *const x = a->x;
    const REAL scale = FN(scale_of)(x, n), factor = (REAL)(127 * 127) / scale;
    int8_t *const code = a->code;
    for (size_t i = 0; i < n; i++) {
        const SIGNED_WORD level = FN(level_of)(x[i], factor);
        const SIGNED_WORD with_sign = (SIGNED_WORD)PICK(x[i] < 0, (WORD)-level, (WORD)level);
        code[i] = (int8_t)(SIGNED_WORD)PICK(FN(is_finite)(x[i]), (WORD)with_sign, (WORD)-128);
    }
    *a->scale = (float)scale;
}
