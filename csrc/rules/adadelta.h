/*
 * rules/adadelta.h - Adadelta on one vector of weights.
 *
 *   v <- rho v + (1 - rho) g^2
 *   d <- sqrt(u + eps) / sqrt(v + eps) g
 *   u <- rho u + (1 - rho) d^2
 *   p <- p - lr d
 *
 * Zeiler 2012.  The quotient of two roots, not the root of the quotient, which overflows earlier.
 */
static inline void FN(adadelta)(ARGS(adadelta), size_t i)
{
    VEC grad = GET(grad);
    VEC acc_delta = GET(acc_delta);
    VEC square_avg = ADD(MUL(k->rho, GET(square_avg)), MUL(k->one_minus_rho, MUL(grad, grad)));
    VEC delta = MUL(DIV(SQRT(ADD(acc_delta, k->eps)), SQRT(ADD(square_avg, k->eps))), grad);
    acc_delta = ADD(MUL(k->rho, acc_delta), MUL(k->one_minus_rho, MUL(delta, delta)));

    PUT(square_avg, square_avg);
    PUT(acc_delta, acc_delta);
    PUT(param, SUB(GET(param), MUL(k->lr, delta)));
}
