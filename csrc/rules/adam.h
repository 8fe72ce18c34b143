/*
 * rules/adam.h - Adam on one vector of weights; AdamW is this after the decay stage.
 *
 *   m <- beta1 m + (1 - beta1) g
 *   v <- beta2 v + (1 - beta2) g^2
 *   x <- max(x, v)                    if max_exp_avg_sq is not NULL (AMSGrad), otherwise x = v
 *   p <- p - step_size m / (sqrt(x) root_correction + eps)
 *
 * step_size = lr / (1 - beta1^t), root_correction = 1 / sqrt(1 - beta2^t).  With eps_hat root_correction is 1, and
 * step_size contains the correction instead.  Kingma & Ba 2015; Reddi, Kale & Kumar 2018.
 */
static inline void FN(adam)(ARGS(adam), size_t i)
{
    VEC grad = GET(grad);
    VEC exp_avg = ADD(MUL(k->beta1, GET(exp_avg)), MUL(k->one_minus_beta1, grad));
    VEC square = ADD(MUL(k->beta2, GET(exp_avg_sq)), MUL(k->one_minus_beta2, MUL(grad, grad)));
    PUT(exp_avg, exp_avg);
    PUT(exp_avg_sq, square);
    if (a->max_exp_avg_sq) {
        VEC largest = GET(max_exp_avg_sq);
        square = SELECT(GT(largest, square), largest, square); /* keeps a NaN in square */
        PUT(max_exp_avg_sq, square);
    }

    VEC step = DIV(exp_avg, ADD(MUL(SQRT(square), k->root_correction), k->eps));
    PUT(param, SUB(GET(param), MUL(k->step_size, step)));
}
