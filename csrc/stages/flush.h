/* stages/flush.h - state <- 0 where it is subnormal: averages of vanished gradients decay to that and slow the FPU. */
static inline void FN(flush)(ARGS(flush), size_t i)
{
    VEC state = GET(state);
    (void)k;
    PUT(state, SELECT(LT(ABS(state), SET1(REAL_MIN)), ZERO(), state));
}
