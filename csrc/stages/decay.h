/* stages/decay.h - param <- param * factor: decoupled weight decay, factor = 1 - lr * weight_decay. */
static inline void FN(decay)(ARGS(decay), size_t i) { PUT(param, MUL(GET(param), k->coef)); }
