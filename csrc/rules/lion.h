/*
 * rules/lion.h - Lion on one vector of weights.
 *
 *   p <- p - lr sign(beta1 m + (1 - beta1) g)
 *   m <- beta2 m + (1 - beta2) g
 *
 * Chen et al. 2023.
 */
static inline void FN(lion)(ARGS(lion), size_t i)
{
    VEC grad = GET(grad);
    VEC exp_avg = GET(exp_avg);
    VEC update = ADD(MUL(k->beta1, exp_avg), MUL(k->one_minus_beta1, grad));
    VEC still = ABS(update); /* subtracting +0 keeps even the sign of a zero parameter; a NaN is passed on */
    VEC step = SELECT(GT(still, ZERO()), FLIPSIGN(k->lr, update), still);

    PUT(exp_avg, ADD(MUL(k->beta2, exp_avg), MUL(k->one_minus_beta2, grad)));
    PUT(param, SUB(GET(param), step));
}
