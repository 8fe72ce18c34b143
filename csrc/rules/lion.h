/*
 * rules/lion.h - Lion on one vector of weights.
 *
 *   p <- p - lr sign(beta1 m + (1 - beta1) g)
 *   m <- beta2 m + (1 - beta2) g
 *
 * Chen et al. 2023.
 */
static inline void RULE_FN(lion)(REAL *const *a, const VEC *k, size_t i)
{
    enum { PARAM, GRAD, EXP_AVG };
    enum { LR, BETA1, ONE_MINUS_BETA1, BETA2, ONE_MINUS_BETA2 };

    VEC grad = LOAD(a[GRAD] + i);
    VEC exp_avg = LOAD(a[EXP_AVG] + i);
    VEC update = ADD(MUL(k[BETA1], exp_avg), MUL(k[ONE_MINUS_BETA1], grad));
    VEC still = ABS(update); /* +0 leaves even the sign of a zero parameter alone; NaN goes on */
    VEC step = SELECT(GT(still, ZERO()), FLIPSIGN(k[LR], update), still);

    STORE(a[EXP_AVG] + i, ADD(MUL(k[BETA2], exp_avg), MUL(k[ONE_MINUS_BETA2], grad)));
    STORE(a[PARAM] + i, SUB(LOAD(a[PARAM] + i), step));
}
