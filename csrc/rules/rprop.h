/*
 * rules/rprop.h - Rprop in all four variants on one vector of weights.
 *
 *   signs of the last two gradients agree:   d <- min(d eta_plus, step_max)
 *   they differ:                             d <- max(d eta_minus, step_min)
 *   p <- p - sign(g) d, but where they differ p <- p - sign(g) (move d + take_back d_old)
 *
 * Riedmiller & Braun 1993; Igel & Huesken 2003.  The variants (move, take_back, remember) on a change of sign:
 *   rprop- (1, 0, 1)   irprop- (0, 0, 0)   rprop+ (0, 1, 0)   irprop+ (0, loss has risen, 0)
 * Taking back is p += sign(g_old) d_old, and there sign(g_old) = -sign(g).
 *
 * State is one word a weight: d with the sign of the last gradient in its sign bit.  "No last sign" is d * forget,
 * forget = 2^90, told apart by not being below remembered = 2^38; powers of two scale exactly, and legal step sizes
 * (2^-50 .. 2^37) keep both forms apart and finite in float32.  Signs are compared and gradients never multiplied with
 * each other, so tiny ones count.  A zero gradient moves nothing and is no last sign; NaN makes the parameter NaN.
 */
static inline void RULE_FN(rprop)(REAL *const *a, const VEC *k, size_t i)
{
    enum { PARAM, GRAD, STEP_WORD };
    enum { ETA_MINUS, ETA_PLUS, STEP_MIN, STEP_MAX, MOVE, TAKE_BACK, REMEMBER, REMEMBERED, FORGET, UNFORGET };

    VEC zero = ZERO();
    VEC grad = LOAD(a[GRAD] + i);
    VEC state = LOAD(a[STEP_WORD] + i);

    VEC word = ABS(state);
    MASK known = LT(word, k[REMEMBERED]);
    VEC old = SELECT(known, word, MUL(word, k[UNFORGET]));
    VEC turned = SELECT(known, FLIPSIGN(grad, state), zero); /* > 0: the signs agree, < 0: they differ */
    MASK flip = LT(turned, zero);

    VEC size = SELECT(GT(turned, zero), MIN(MUL(old, k[ETA_PLUS]), k[STEP_MAX]), old);
    size = SELECT(flip, MAX(MUL(old, k[ETA_MINUS]), k[STEP_MIN]), size);
    VEC length = SELECT(flip, ADD(MUL(k[MOVE], size), MUL(k[TAKE_BACK], old)), size);

    VEC still = ABS(grad); /* +0 leaves even the sign of a zero parameter alone; NaN goes on */
    MASK moves = GT(still, zero);
    STORE(a[PARAM] + i, SUB(LOAD(a[PARAM] + i), SELECT(moves, FLIPSIGN(length, grad), still)));

    VEC lost = MUL(size, k[FORGET]);
    VEC kept = SELECT(moves, FLIPSIGN(size, grad), lost);
    STORE(a[STEP_WORD] + i, SELECT(GT(k[REMEMBER], zero), kept, SELECT(flip, lost, kept)));
}
