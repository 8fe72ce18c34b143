/*
 * rules/rmsprop.h - RMSprop with every option on one vector of weights.
 *
 *   v <- alpha v + (1 - alpha) g^2
 *   a <- alpha a + (1 - alpha) g                             if grad_avg is not NULL (centered)
 *   u <- g / (sqrt(max(c v - (d a)^2, 0) + eps_inside) + eps)
 *   p <- p - lr u                                            if momentum_buffer is NULL; else, with s = lr_inside u,
 *   b <- momentum b + s
 *   p <- p - lr_outside (s + momentum b)  with nesterov,  p - lr_outside b  without
 *
 * c = correction and d = mean_correction are 1, or 1 / (1 - alpha^t), where t is the number of steps in that average.
 *
 * Tieleman & Hinton 2012, lecture 6e; Graves 2013 for the centered form.
 */
static inline void FN(rmsprop)(ARGS(rmsprop), size_t i)
{
    VEC grad = GET(grad);
    VEC square_avg = ADD(MUL(k->alpha, GET(square_avg)), MUL(k->one_minus_alpha, MUL(grad, grad)));
    PUT(square_avg, square_avg);

    VEC variance = MUL(square_avg, k->correction);
    if (a->grad_avg) {
        VEC grad_avg = ADD(MUL(k->alpha, GET(grad_avg)), MUL(k->one_minus_alpha, grad));
        PUT(grad_avg, grad_avg);
        VEC mean = MUL(grad_avg, k->mean_correction);
        variance = SUB(variance, MUL(mean, mean));
        /* Cancellation can make it negative.  SUB(mean, mean) is 0, written as in Python, which has no typed 0. */
        variance = SELECT(LT(variance, ZERO()), SUB(mean, mean), variance);
    }

    VEC step = DIV(grad, ADD(SQRT(ADD(variance, k->eps_inside)), k->eps));
    if (a->momentum_buffer) {
        step = MUL(k->lr_inside, step);
        VEC buffer = ADD(MUL(k->momentum, GET(momentum_buffer)), step);
        PUT(momentum_buffer, buffer);
        step = SELECT(GT(k->nesterov, ZERO()), ADD(step, MUL(k->momentum, buffer)), buffer);
        step = MUL(k->lr_outside, step);
    } else {
        step = MUL(k->lr, step);
    }
    PUT(param, SUB(GET(param), step));
}
