/* codecs/float32.h - float32 arrays of a rule that computes in float64; stores round to nearest even. */
static inline void FN(float32_load)(ARGS(float32), size_t i) { a->x[i] = (REAL)a->narrow[i]; }

static inline void FN(float32_store)(ARGS(float32), size_t i) { a->narrow[i] = (float)a->x[i]; }
