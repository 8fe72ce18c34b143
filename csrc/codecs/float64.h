/* codecs/float64.h - float64 gradients of a rule that computes in float32; loads round to nearest even. */
static inline void FN(float64_load)(ARGS(float64), size_t i) { a->x[i] = (REAL)a->wide[i]; }

static inline void FN(float64_store)(ARGS(float64), size_t i) { a->wide[i] = a->x[i]; }
