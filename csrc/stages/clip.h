/* stages/clip.h - seen <- grad clipped to [-bound, bound]; NaN compares false and so stays NaN. */
static inline void STAGE_FN(clip)(REAL *const *a, const VEC *k, size_t i)
{
    enum { SEEN, GRAD };
    VEC grad = LOAD(a[GRAD] + i), low = FLIPSIGN(k[0], SET1((REAL)-1));
    STORE(a[SEEN] + i, SELECT(GT(grad, k[0]), k[0], SELECT(LT(grad, low), low, grad)));
}
