/*
 * rules/adam.h - Adam on one vector of weights; AdamW is this after the decay stage.
 *
 *   m <- beta1 m + (1 - beta1) g
 *   v <- beta2 v + (1 - beta2) g^2
 *   x <- max(x, v)                    if max_exp_avg_sq is not NULL (AMSGrad), otherwise x = v
 *   p <- p - step_size m / (sqrt(x) root_correction + eps)
 *
 * step_size = lr / (1 - beta1^t), root_correction = 1 / sqrt(1 - beta2^t); with eps_hat the root's correction is in
 * step_size.  Kingma & Ba 2015; Reddi, Kale & Kumar 2018.
 */
static inline void RULE_FN(adam)(REAL *const *a, const VEC *k, size_t i)
{
    enum { PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ };
    enum { STEP_SIZE, BETA1, ONE_MINUS_BETA1, BETA2, ONE_MINUS_BETA2, ROOT_CORRECTION, EPS };

    VEC grad = LOAD(a[GRAD] + i);
    VEC exp_avg = ADD(MUL(k[BETA1], LOAD(a[EXP_AVG] + i)), MUL(k[ONE_MINUS_BETA1], grad));
    VEC square = ADD(MUL(k[BETA2], LOAD(a[EXP_AVG_SQ] + i)), MUL(k[ONE_MINUS_BETA2], MUL(grad, grad)));
    STORE(a[EXP_AVG] + i, exp_avg);
    STORE(a[EXP_AVG_SQ] + i, square);
    if (a[MAX_EXP_AVG_SQ]) {
        VEC largest = LOAD(a[MAX_EXP_AVG_SQ] + i);
        square = SELECT(GT(largest, square), largest, square); /* NaN in square stays */
        STORE(a[MAX_EXP_AVG_SQ] + i, square);
    }

    VEC step = DIV(exp_avg, ADD(MUL(SQRT(square), k[ROOT_CORRECTION]), k[EPS]));
    STORE(a[PARAM] + i, SUB(LOAD(a[PARAM] + i), MUL(k[STEP_SIZE], step)));
}
