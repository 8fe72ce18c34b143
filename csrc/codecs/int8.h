/* codecs/int8.h - averages of either sign in one byte: 127 levels of each sign, see levels.h, and -128 for NaN. */
static inline void FN(int8_load)(REAL *x, const unsigned char *code, const AVERAGES *k, size_t i)
{
    const VEC level = LOAD_INT8(code + i), loaded = FN(of_level)(level, SET1(INVERSE(127)), k->scale);
    STORE(x + i, SELECT(LT(level, SET1((REAL)-127)), SET1((REAL)NAN), loaded));
}

static inline void FN(int8_store)(const REAL *x, unsigned char *code, const AVERAGES *k, size_t i)
{
    const VEC number = LOAD(x + i);
    STORE_BYTE(code + i, FLIPSIGN(FN(level_of)(number, k->factor, 127), number)); /* 128 and -128 are the same byte */
}
