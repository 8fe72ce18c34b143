/*
 * rules/radam.h - RAdam on one vector of weights.
 *
 *   m <- beta1 m + (1 - beta1) g
 *   v <- beta2 v + (1 - beta2) g g
 *   p <- p - step_size m / (sqrt(v) + eps)    if rectified is 1
 *   p <- p - step_size m                      if it is 0, in the first steps
 *
 * step_size = lr / (1 - beta1^t), multiplied by r sqrt(1 - beta2^t) if rectified; radam.py defines r.  Liu et al. 2020.
 */
static inline void FN(radam)(ARGS(radam), size_t i)
{
    VEC grad = GET(grad);
    VEC exp_avg = ADD(MUL(k->beta1, GET(exp_avg)), MUL(k->one_minus_beta1, grad));
    VEC square = ADD(MUL(k->beta2, GET(exp_avg_sq)), MUL(k->one_minus_beta2, MUL(grad, grad)));
    VEC step = SELECT(GT(k->rectified, ZERO()), DIV(exp_avg, ADD(SQRT(square), k->eps)), exp_avg);

    PUT(exp_avg, exp_avg);
    PUT(exp_avg_sq, square);
    PUT(param, SUB(GET(param), MUL(k->step_size, step)));
}
