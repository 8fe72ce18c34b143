/*
 * rules/adagrad.h - Adagrad on one vector of weights.
 *
 *   S <- S + g^2
 *   p <- p - lr g / (sqrt(S + eps_inside) + eps)      lr already divided by 1 + (t - 1) lr_decay
 *
 * Duchi, Hazan & Singer 2011.
 */
static inline void FN(adagrad)(ARGS(adagrad), size_t i)
{
    VEC grad = GET(grad);
    VEC sum = ADD(GET(sum), MUL(grad, grad));
    VEC step = DIV(grad, ADD(SQRT(ADD(sum, k->eps_inside)), k->eps));

    PUT(sum, sum);
    PUT(param, SUB(GET(param), MUL(k->lr, step)));
}
