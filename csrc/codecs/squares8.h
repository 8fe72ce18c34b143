/*
 * codecs/squares8.h - numbers that are never negative, such as averages of squares, in one byte: 254 levels, see
 * levels.h, and 255 for NaN.  A number above zero is never stored as zero, because rules divide by its root.
 */
static inline void FN(squares8_load)(REAL *x, const unsigned char *code, const AVERAGES *k, size_t i)
{
    const VEC level = LOAD_UINT8(code + i), loaded = FN(of_level)(level, SET1(INVERSE(254)), k->scale);
    STORE(x + i, SELECT(GT(level, SET1((REAL)254)), SET1((REAL)NAN), loaded));
}

static inline void FN(squares8_store)(const REAL *x, unsigned char *code, const AVERAGES *k, size_t i)
{
    const VEC number = LOAD(x + i), level = FN(level_of)(number, k->factor, 254);
    STORE_BYTE(code + i, SELECT(GT(number, ZERO()), MAX(level, SET1((REAL)1)), level));
}
