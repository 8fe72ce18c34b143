/*
 * rules/rprop.h - Rprop in all four variants on one vector of weights.
 *
 *   signs of the last two gradients agree:   d <- d eta_plus
 *   they differ:                             d <- d eta_minus
 *   d <- min(max(d, step_min), step_max)     always, because the bounds may have changed since the last step
 *   p <- p - sign(g) d, but where the signs differ p <- p - sign(g) (move d + take_back d_old)
 *
 * Riedmiller & Braun 1993; Igel & Huesken 2003.  The variants (move, take_back, remember) on a change of sign:
 *   rprop- (1, 0, 1)   irprop- (0, 0, 0)   rprop+ (0, 1, 0)   irprop+ (0, loss has risen, 0)
 * To take a move back is p += sign(g_old) d_old, and where signs differ sign(g_old) = -sign(g).
 *
 * The state is one number for each weight: d with the sign of the last gradient in its sign bit.  If there is no last
 * sign, the number is d * forget with forget = 2^90, which is recognized because it is not below remembered = 2^38.
 * Powers of two scale exactly, and for legal step sizes (2^-50 .. 2^37) both forms are distinct and finite in float32.
 * Signs are compared and gradients never multiplied with each other, so tiny gradients count.  A zero gradient moves
 * nothing and leaves no last sign; a NaN makes the parameter NaN.
 */
static inline void FN(rprop)(ARGS(rprop), size_t i)
{
    VEC grad = GET(grad);
    VEC state = GET(step_word);
    VEC word = ABS(state);
    VEC still = ABS(grad); /* subtracting +0 keeps even the sign of a zero parameter; a NaN is passed on */
    MASK known = LT(word, k->remembered);
    MASK moves = GT(still, ZERO());
    MASK turned = DIFFER(grad, state);

    VEC factor = SELECT(moves, SELECT(turned, k->eta_minus, k->eta_plus), SET1((REAL)1));
    VEC size = MUL(word, SELECT(known, factor, k->unforget));
    size = MIN(k->step_max, MAX(k->step_min, size)); /* operands in this order keep a NaN in size */

    /* Independent of i; with | instead of ||, compilers hoist them out of the loop.  Both are 0 for rprop-. */
    const int takes_back = FIRST(k->take_back) != 0;
    const int flips_differ = takes_back | (FIRST(k->move) != 1) | (FIRST(k->remember) == 0);
    VEC length = size;
    MASK remembers = moves;
    if (flips_differ) {
        MASK flip = AND(AND(known, moves), turned);
        length = MUL(k->move, size);
        if (takes_back) length = ADD(length, MUL(k->take_back, word));
        length = SELECT(flip, length, size);
        remembers = ANDNOT(moves, ANDNOT(flip, GT(k->remember, ZERO())));
    }

    PUT(param, SUB(GET(param), SELECT(moves, FLIPSIGN(length, grad), still)));
    PUT(step_word, SELECT(remembers, FLIPSIGN(size, grad), MUL(size, k->forget)));
}
