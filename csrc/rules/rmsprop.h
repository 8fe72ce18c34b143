/*
 * rules/rmsprop.h - RMSprop with every option on one vector of weights.
 *
 *   v <- alpha v + (1 - alpha) g^2
 *   a <- alpha a + (1 - alpha) g                             if grad_avg is not NULL (centered)
 *   u <- g / (sqrt(max(c v - (c a)^2, 0) + eps_inside) + eps)    c = correction, 1 or 1 / (1 - alpha^t)
 *   p <- p - lr u                                            if momentum_buffer is NULL; else, with s = lr_inside u,
 *   b <- momentum b + s
 *   p <- p - lr_outside (s + momentum b)  with nesterov,  p - lr_outside b  without
 *
 * Tieleman & Hinton 2012, lecture 6e; Graves 2013 for the centered form.
 */
static inline void RULE_FN(rmsprop)(REAL *const *a, const VEC *k, size_t i)
{
    enum { PARAM, GRAD, SQUARE_AVG, GRAD_AVG, MOMENTUM_BUFFER };
    enum { LR, ALPHA, ONE_MINUS_ALPHA, CORRECTION, EPS_INSIDE, EPS, MOMENTUM, NESTEROV, LR_INSIDE, LR_OUTSIDE };

    VEC grad = LOAD(a[GRAD] + i);
    VEC square_avg = ADD(MUL(k[ALPHA], LOAD(a[SQUARE_AVG] + i)), MUL(k[ONE_MINUS_ALPHA], MUL(grad, grad)));
    STORE(a[SQUARE_AVG] + i, square_avg);

    VEC variance = MUL(square_avg, k[CORRECTION]);
    if (a[GRAD_AVG]) {
        VEC grad_avg = ADD(MUL(k[ALPHA], LOAD(a[GRAD_AVG] + i)), MUL(k[ONE_MINUS_ALPHA], grad));
        STORE(a[GRAD_AVG] + i, grad_avg);
        VEC mean = MUL(grad_avg, k[CORRECTION]);
        variance = SUB(variance, MUL(mean, mean));
        /* Cancellation makes it negative.  Zero is written as in Python, which has no constant of the dtype. */
        variance = SELECT(LT(variance, ZERO()), SUB(mean, mean), variance);
    }

    VEC step = DIV(grad, ADD(SQRT(ADD(variance, k[EPS_INSIDE])), k[EPS]));
    if (a[MOMENTUM_BUFFER]) {
        step = MUL(k[LR_INSIDE], step);
        VEC buffer = ADD(MUL(k[MOMENTUM], LOAD(a[MOMENTUM_BUFFER] + i)), step);
        STORE(a[MOMENTUM_BUFFER] + i, buffer);
        step = SELECT(GT(k[NESTEROV], ZERO()), ADD(step, MUL(k[MOMENTUM], buffer)), buffer);
        step = MUL(k[LR_OUTSIDE], step);
    } else {
        step = MUL(k[LR], step);
    }
    STORE(a[PARAM] + i, SUB(LOAD(a[PARAM] + i), step));
}
