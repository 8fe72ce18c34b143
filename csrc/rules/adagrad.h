/*
 * rules/adagrad.h - Adagrad on one vector of weights.
 *
 *   S <- S + g^2
 *   p <- p - lr g / (sqrt(S + eps_inside) + eps)      lr already divided by 1 + (t - 1) lr_decay
 *
 * Duchi, Hazan & Singer 2011.
 */
static inline void RULE_FN(adagrad)(REAL *const *a, const VEC *k, size_t i)
{
    enum { PARAM, GRAD, SUM };
    enum { LR, EPS_INSIDE, EPS };

    VEC grad = LOAD(a[GRAD] + i);
    VEC sum = ADD(LOAD(a[SUM] + i), MUL(grad, grad));
    VEC step = DIV(grad, ADD(SQRT(ADD(sum, k[EPS_INSIDE])), k[EPS]));

    STORE(a[SUM] + i, sum);
    STORE(a[PARAM] + i, SUB(LOAD(a[PARAM] + i), MUL(k[LR], step)));
}
