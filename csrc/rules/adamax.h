/*
 * rules/adamax.h - AdaMax on one vector of weights.
 *
 *   m <- beta1 m + (1 - beta1) g
 *   u <- max(beta2 u, |g| + eps)
 *   p <- p - step_size m / u
 *
 * step_size = lr / (1 - beta1^t).  Kingma & Ba 2015, section 7.1.  As in torch, eps is added to |g|, and u keeps a NaN.
 */
static inline void FN(adamax)(ARGS(adamax), size_t i)
{
    VEC grad = GET(grad);
    VEC exp_avg = ADD(MUL(k->beta1, GET(exp_avg)), MUL(k->one_minus_beta1, grad));
    VEC decayed = MUL(k->beta2, GET(exp_inf));
    VEC size = ADD(ABS(grad), k->eps);
    /* MAX would lose a NaN in its first operand; if `decayed` is not finite, the sum is what the maximum should be. */
    VEC exp_inf = SELECT(LT(decayed, SET1((REAL)INFINITY)), MAX(decayed, size), ADD(decayed, size));

    PUT(exp_avg, exp_avg);
    PUT(exp_inf, exp_inf);
    PUT(param, SUB(GET(param), MUL(k->step_size, DIV(exp_avg, exp_inf))));
}
