/* stages/l2.h - seen <- grad + weight_decay * param: the gradient of an L2 penalty. */
static inline void FN(l2)(ARGS(l2), size_t i) { PUT(seen, ADD(GET(grad), MUL(k->coef, GET(param)))); }
