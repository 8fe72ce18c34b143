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
static inline void FN(sgd)(ARGS(sgd), size_t i)
{
    VEC grad = GET(grad);
    VEC step = grad;
    if (a->momentum_buffer) {
        VEC buffer = ADD(MUL(k->momentum, GET(momentum_buffer)), MUL(k->undamped, grad));
        PUT(momentum_buffer, buffer);
        step = SELECT(GT(k->nesterov, ZERO()), ADD(grad, MUL(k->momentum, buffer)), buffer);
    }
    PUT(param, SUB(GET(param), MUL(k->lr, step)));
}
