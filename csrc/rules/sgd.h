/*
 * rules/sgd.h - gradient descent with momentum on one vector of weights.  No include guard: included once per
 * vocabulary and type (kernels_type.inc).
 *
 *   b <- momentum b + undamped g         undamped = 1 - dampening, and 1 at the first step
 *   p <- p - lr (g + momentum b)         with nesterov
 *   p <- p - lr b                        without
 *   p <- p - lr g                        if momentum_buffer is NULL
 *
 * Polyak 1964; Sutskever et al. 2013 for this form of Nesterov's method.
 */
static inline void RULE_FN(sgd)(REAL *const *a, const VEC *k, size_t i)
{
    enum { PARAM, GRAD, MOMENTUM_BUFFER };
    enum { LR, MOMENTUM, UNDAMPED, NESTEROV };

    VEC grad = LOAD(a[GRAD] + i);
    VEC step = grad;
    if (a[MOMENTUM_BUFFER]) {
        VEC buffer = ADD(MUL(k[MOMENTUM], LOAD(a[MOMENTUM_BUFFER] + i)), MUL(k[UNDAMPED], grad));
        STORE(a[MOMENTUM_BUFFER] + i, buffer);
        step = SELECT(GT(k[NESTEROV], ZERO()), ADD(grad, MUL(k[MOMENTUM], buffer)), buffer);
    }
    STORE(a[PARAM] + i, SUB(LOAD(a[PARAM] + i), MUL(k[LR], step)));
}
