/* stages/zero.h - grad <- 0, in the caller's memory. */
static inline void STAGE_FN(zero)(REAL *const *a, const VEC *k, size_t i)
{
    enum { GRAD };
    (void)k;
    STORE(a[GRAD] + i, ZERO());
}
