/* stages/zero.h - grad <- 0, in the caller's memory. */
static inline void FN(zero)(ARGS(zero), size_t i)
{
    (void)k;
    PUT(grad, ZERO());
}
