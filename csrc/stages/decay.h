/* stages/decay.h - param <- param * factor: decoupled weight decay, factor = 1 - lr * weight_decay. */
static inline void STAGE_FN(decay)(REAL *const *a, const VEC *k, size_t i)
{
    enum { PARAM };
    STORE(a[PARAM] + i, MUL(LOAD(a[PARAM] + i), k[0]));
}
