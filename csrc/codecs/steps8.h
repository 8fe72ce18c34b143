/*
 * codecs/steps8.h - Rprop's state (see rules/rprop.h) in one byte: the last sign and one of 85 step sizes, each smaller
 * than the one before by the n-th root of 2, for n of 1 to 4.
 *
 *   grid    the largest step size, and n
 *   code    k, 85 + k, 170 + k for the k-th largest step size and a last sign +, -, none; 255 is not used
 *
 * With eta_plus the n-th root of 2 and eta_minus a power of it, steps of Rprop stay on the grid: what is rounded here
 * is only the error of one multiplication.  A size between two of the grid becomes the nearer, by their quotients.
 */
#define SIZES 85

/*
 * Of a grid: -n, 1 / n and the inverse of the largest step size; then three tables of 8.  `sizes` has the n largest
 * sizes. The others are chosen by the eighth of [1, 2) in which m is: each has at most one of the numbers 2^((2 b + 1)
 * / 2 n) with b < n, on the way between two sizes, which is its entry of `middles`; `places` is 127 n less the number
 * of those in the eighths before.
 */
typedef struct {
    VEC minus_n, nth, inverse;
    const REAL *sizes, *middles, *places;
} CAT(steps, CAT(FORM, CAT(numbers, TYPE)));

static inline void FN(steps8_load)(REAL *word, const unsigned char *code, const STEPS *k, size_t i)
{
    const VEC c = LOAD_UINT8(code + i);
    const MASK not_plus = GT(c, SET1((REAL)(SIZES - 1))), none = GT(c, SET1((REAL)(2 * SIZES - 1)));
    /* 8 + place: what is left of it after whole octaves is 8 to 12, whose fraction begins with three bits of b. */
    const VEC first = SELECT(not_plus, SET1((REAL)(SIZES - 8)), SET1((REAL)-8));
    const VEC place = SUB(c, SELECT(none, SET1((REAL)(2 * SIZES - 8)), first));
    /* place = n halvings + b with b < n; half a place more, so that the rounding of 1 / n makes no difference */
    const VEC halvings = FLOOR(MUL(SUB(place, SET1((REAL)7.5)), k->nth));
    const VEC size = SHRINK(LOOKUP(k->sizes, EXACT(halvings, k->minus_n, place)), halvings);
    const VEC sign = SELECT(none, SET1((REAL)0x1p90), SELECT(not_plus, SET1((REAL)-1), SET1((REAL)1)));
    STORE(word + i, MUL(size, sign));
}

static inline void FN(steps8_store)(const REAL *word, unsigned char *code, const STEPS *k, size_t i)
{
    const VEC one = SET1((REAL)1), w = LOAD(word + i), size = ABS(w);
    const MASK known = LT(size, SET1((REAL)0x1p38));
    const VEC ratio = MUL(MUL(size, SELECT(known, one, SET1((REAL)0x1p-90))), k->inverse);
    /* ratio = 2^(exponent - 127) m with 1 <= m < 2; its place is (127 - exponent) n less the number of middles below m
     */
    const VEC most = EXACT(EXPONENT(ratio), k->minus_n, LOOKUP(k->places, ratio));
    const MASK passes = GT(SIGNIFICAND(ratio), LOOKUP(k->middles, ratio));
    const VEC place = SELECT(passes, SUB(most, one), most);
    const VEC held = MIN(MAX(place, ZERO()), SET1((REAL)(SIZES - 1)));
    const VEC sign = SELECT(DIFFER(w, ZERO()), SET1((REAL)SIZES), ZERO());
    STORE_BYTE(code + i, ADD(held, SELECT(known, sign, SET1((REAL)(2 * SIZES)))));
}
