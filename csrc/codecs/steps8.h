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

/* n, and the roots of 2 in float32: 2^-(b / n) for b < n, and 2^((2 b + 1) / 2 n), on the way between two of them. */
static inline int FN(parts_of_octave)(const float *grid)
{
    return 1 + (grid[1] >= 2) + (grid[1] >= 3) + (grid[1] >= 4);
}
static const REAL FN(grid_roots)[4][4] = {
    { (REAL)1.0, 0, 0, 0 },
    { (REAL)1.0, (REAL)0x1.6a09e6p-1, 0, 0 },
    { (REAL)1.0, (REAL)0x1.965feap-1, (REAL)0x1.428a3p-1, 0 },
    { (REAL)1.0, (REAL)0x1.ae89fap-1, (REAL)0x1.6a09e6p-1, (REAL)0x1.306fep-1 },
};
static const REAL FN(grid_middles)[4][4] = {
    { (REAL)0x1.6a09e6p+0, 2, 2, 2 },
    { (REAL)0x1.306fep+0, (REAL)0x1.ae89fap+0, 2, 2 },
    { (REAL)0x1.1f59acp+0, (REAL)0x1.6a09e6p+0, (REAL)0x1.c823ep+0, 2 },
    { (REAL)0x1.172b84p+0, (REAL)0x1.4bfdaep+0, (REAL)0x1.8ace54p+0, (REAL)0x1.d5818ep+0 },
};

static inline void FN(steps8_load)(ARGS(steps8), size_t count)
{
    const int n = FN(parts_of_octave)(a->grid);
    const REAL *const roots = FN(grid_roots)[n - 1];
    const REAL largest = (REAL)a->grid[0], r0 = roots[0], r1 = roots[1], r2 = roots[2], r3 = roots[3];
    const WORD minus = (WORD)1 << (WORD_BITS - 1), one = FN(word)((REAL)1), forget = FN(word)((REAL)0x1p90);
    const SIGNED_WORD share = 256 / n + (n == 3); /* k share / 256 is k / n without a remainder, for k of 0 to 85 */
    REAL *const word = a->word;
    const uint8_t *const code = a->code;
    for (size_t i = 0; i < count; i++) {
        const SIGNED_WORD c = code[i], none = c >= 2 * SIZES, signs = (c >= SIZES) + none;
        const SIGNED_WORD k = c - signs * SIZES, halvings = k * share >> 8, b = k - halvings * n;
        WORD root = PICK(b == 1, FN(word)(r1), FN(word)(r0));
        root = PICK(b == 2, FN(word)(r2), root);
        root = PICK(b == 3, FN(word)(r3), root);
        const REAL size = largest * FN(real)(root) * FN(real)(one - ((WORD)halvings << FRACTION));
        const REAL kept = size * FN(real)(PICK(none, forget, one));
        word[i] = FN(real)(FN(word)(kept) ^ (minus & -(WORD)(signs == 1)));
    }
}

static inline void FN(steps8_store)(ARGS(steps8), size_t count)
{
    const int n = FN(parts_of_octave)(a->grid);
    const REAL *const middles = FN(grid_middles)[n - 1];
    const REAL inverse = (REAL)1 / (REAL)a->grid[0], m0 = middles[0], m1 = middles[1], m2 = middles[2], m3 = middles[3];
    const WORD minus = (WORD)1 << (WORD_BITS - 1), one = FN(word)((REAL)1), part = ((WORD)1 << FRACTION) - 1;
    const REAL *const word = a->word;
    uint8_t *const code = a->code;
    for (size_t i = 0; i < count; i++) {
        const WORD w = FN(word)(word[i]), size = w & ~minus;
        const int known = LESS(size, FN(word)((REAL)0x1p38));
        const REAL unforget = FN(real)(PICK(known, one, FN(word)((REAL)0x1p-90)));
        const WORD ratio = FN(word)(FN(real)(size) * unforget * inverse) & ~minus;
        /* ratio = 2^exponent m with 1 <= m < 2 */
        const SIGNED_WORD exponent = (SIGNED_WORD)(ratio >> FRACTION) - BIAS;
        const REAL m = FN(real)((ratio & part) | one);
        const SIGNED_WORD up = exponent * n + (m > m0) + (m > m1) + (m > m2) + (m > m3);
        const SIGNED_WORD positive = up < 0 ? -up : 0, k = positive < SIZES - 1 ? positive : SIZES - 1;
        const SIGNED_WORD signs = known ? (SIGNED_WORD)(w >> (WORD_BITS - 1)) : 2;
        code[i] = (uint8_t)(k + signs * SIZES);
    }
}
#undef SIZES
