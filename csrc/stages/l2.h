/* stages/l2.h - seen <- grad + weight_decay * param: the gradient of an L2 penalty. */
static inline void STAGE_FN(l2)(REAL *const *a, const VEC *k, size_t i)
{
    enum { SEEN, GRAD, PARAM };
    STORE(a[SEEN] + i, ADD(LOAD(a[GRAD] + i), MUL(k[0], LOAD(a[PARAM] + i))));
}
