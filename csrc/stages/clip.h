/* stages/clip.h - seen <- grad clipped to [-bound, bound]; comparisons with NaN are false, so a NaN stays NaN. */
static inline void FN(clip)(ARGS(clip), size_t i)
{
    VEC grad = GET(grad), low = FLIPSIGN(k->coef, SET1((REAL)-1));
    PUT(seen, SELECT(GT(grad, k->coef), k->coef, SELECT(LT(grad, low), low, grad)));
}
