/*
 * rules/adadelta.h - Adadelta on one vector of weights.
 *
 *   v <- rho v + (1 - rho) g^2
 *   d <- sqrt(u + eps) / sqrt(v + eps) g
 *   u <- rho u + (1 - rho) d^2
 *   p <- p - lr d
 *
 * Zeiler 2012.  Two roots, not the root of the quotient, whose range overflows earlier.
 */
static inline void RULE_FN(adadelta)(REAL *const *a, const VEC *k, size_t i)
{
    enum { PARAM, GRAD, SQUARE_AVG, ACC_DELTA };
    enum { LR, RHO, ONE_MINUS_RHO, EPS };

    VEC grad = LOAD(a[GRAD] + i);
    VEC acc_delta = LOAD(a[ACC_DELTA] + i);
    VEC square_avg = ADD(MUL(k[RHO], LOAD(a[SQUARE_AVG] + i)), MUL(k[ONE_MINUS_RHO], MUL(grad, grad)));
    VEC delta = MUL(DIV(SQRT(ADD(acc_delta, k[EPS])), SQRT(ADD(square_avg, k[EPS]))), grad);
    acc_delta = ADD(MUL(k[RHO], acc_delta), MUL(k[ONE_MINUS_RHO], MUL(delta, delta)));

    STORE(a[SQUARE_AVG] + i, square_avg);
    STORE(a[ACC_DELTA] + i, acc_delta);
    STORE(a[PARAM] + i, SUB(LOAD(a[PARAM] + i), MUL(k[LR], delta)));
}
