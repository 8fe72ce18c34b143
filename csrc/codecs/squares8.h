/*
 * codecs/squares8.h - numbers that are never negative, such as averages of squares, in one byte: 254 levels, see
 * bytes.h, and 255 for NaN.  A number above zero is never stored as zero, because rules divide by its root.
 */
static inline void FN(squares8_load)(ARGS(squares8), size_t n)
{
    const REAL scale = (REAL)*a->scale, inverse = INVERSE(254);
    const WORD nan = FN(word)((REAL)INFINITY) | (WORD)1 << (FRACTION - 1);
    REAL *const x = a->x;
    const uint8_t *const code = a->code;
    for (size_t i = 0; i < n; i++) {
        const SIGNED_WORD level = code[i];
        x[i] = FN(real)(PICK(level == 255, nan, FN(word)(FN(of_level)(level, inverse, scale))));
    }
}

static inline void FN(squares8_store)(ARGS(squares8), size_t n)
{
    const REAL *const x = a->x;
    const REAL scale = FN(scale_of)(x, n), factor = (REAL)(254 * 254) / scale;
    uint8_t *const code = a->code;
    for (size_t i = 0; i < n; i++) {
        const SIGNED_WORD level = FN(level_of)(x[i], factor), least = x[i] > 0;
        const SIGNED_WORD held = level > least ? level : least;
        code[i] = (uint8_t)PICK(FN(is_finite)(x[i]), (WORD)held, (WORD)255);
    }
    *a->scale = (float)scale;
}
