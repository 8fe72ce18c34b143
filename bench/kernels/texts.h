/* texts.h - the C text of every row of list.def. */

/*
 * The roof: read the arrays of a rule and write all except the gradient, with the least arithmetic that writes new
 * values.  x <- x / 2 + g stays finite, and normal while g is.  first, second and third may be NULL.
 */
static inline void FN(stream)(ARGS(stream), size_t i)
{
    VEC grad = GET(grad);
    PUT(param, ADD(MUL(GET(param), k->half), grad));
    if (a->first) PUT(first, ADD(MUL(GET(first), k->half), grad));
    if (a->second) PUT(second, ADD(MUL(GET(second), k->half), grad));
    if (a->third) PUT(third, ADD(MUL(GET(third), k->half), grad));
}

/* irprop- with the state of torch and other libraries: the last gradient and the step size in two arrays. */
static inline void FN(rprop)(ARGS(rprop), size_t i)
{
    VEC zero = ZERO();
    VEC grad = GET(grad);
    VEC prev = GET(prev);
    VEC old = GET(step_size);
    VEC turned = SELECT(GT(ABS(prev), zero), FLIPSIGN(grad, prev), zero); /* > 0: the signs agree, < 0: they differ */
    MASK flip = LT(turned, zero);
    VEC size = SELECT(GT(turned, zero), MIN(MUL(old, k->eta_plus), k->step_max), old);
    size = SELECT(flip, MAX(MUL(old, k->eta_minus), k->step_min), size);
    grad = SELECT(flip, zero, grad);
    VEC length = SELECT(GT(ABS(grad), zero), size, zero);
    PUT(param, SUB(GET(param), FLIPSIGN(length, grad)));
    PUT(prev, grad);
    PUT(step_size, size);
}
