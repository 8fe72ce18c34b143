/* stages/flush.h - state <- 0 where it is subnormal: averages of vanished gradients end there and slow the FPU down. */
static inline void STAGE_FN(flush)(REAL *const *a, const VEC *k, size_t i)
{
    enum { STATE };
    VEC state = LOAD(a[STATE] + i);
    (void)k;
    STORE(a[STATE] + i, SELECT(LT(ABS(state), SET1(REAL_MIN)), ZERO(), state));
}
