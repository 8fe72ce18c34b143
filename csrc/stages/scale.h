/* stages/scale.h - seen <- grad * factor: the product of grad_scale, the factor of clip_norm and maximize's -1. */
static inline void FN(scale)(ARGS(scale), size_t i) { PUT(seen, MUL(GET(grad), k->coef)); }
