/*
 * rules/nadam.h - NAdam on one vector of weights.
 *
 *   m <- beta1 m + (1 - beta1) g
 *   v <- beta2 v + (1 - beta2) g^2
 *   p <- p - (grad_size g + avg_size m) / (sqrt(v) root_correction + eps)
 *
 * grad_size = lr (1 - mu_t) / (1 - c_t), avg_size = lr mu_{t+1} / (1 - c_t mu_{t+1}), c_t = mu_1 ... mu_t,
 * root_correction = 1 / sqrt(1 - beta2^t).  Dozat 2016.
 */
static inline void FN(nadam)(ARGS(nadam), size_t i)
{
    VEC grad = GET(grad);
    VEC exp_avg = ADD(MUL(k->beta1, GET(exp_avg)), MUL(k->one_minus_beta1, grad));
    VEC square = ADD(MUL(k->beta2, GET(exp_avg_sq)), MUL(k->one_minus_beta2, MUL(grad, grad)));
    VEC ahead = ADD(MUL(k->grad_size, grad), MUL(k->avg_size, exp_avg));
    VEC step = DIV(ahead, ADD(MUL(SQRT(square), k->root_correction), k->eps));

    PUT(exp_avg, exp_avg);
    PUT(exp_avg_sq, square);
    PUT(param, SUB(GET(param), step));
}
