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
static inline void RULE_FN(nadam)(REAL *const *a, const VEC *k, size_t i)
{
    enum { PARAM, GRAD, EXP_AVG, EXP_AVG_SQ };
    enum { GRAD_SIZE, AVG_SIZE, BETA1, ONE_MINUS_BETA1, BETA2, ONE_MINUS_BETA2, ROOT_CORRECTION, EPS };

    VEC grad = LOAD(a[GRAD] + i);
    VEC exp_avg = ADD(MUL(k[BETA1], LOAD(a[EXP_AVG] + i)), MUL(k[ONE_MINUS_BETA1], grad));
    VEC square = ADD(MUL(k[BETA2], LOAD(a[EXP_AVG_SQ] + i)), MUL(k[ONE_MINUS_BETA2], MUL(grad, grad)));
    VEC ahead = ADD(MUL(k[GRAD_SIZE], grad), MUL(k[AVG_SIZE], exp_avg));
    VEC step = DIV(ahead, ADD(MUL(SQRT(square), k[ROOT_CORRECTION]), k[EPS]));

    STORE(a[EXP_AVG] + i, exp_avg);
    STORE(a[EXP_AVG_SQ] + i, square);
    STORE(a[PARAM] + i, SUB(LOAD(a[PARAM] + i), step));
}
