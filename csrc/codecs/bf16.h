/* codecs/bf16.h - bfloat16: the upper half of a float32.  Rounding and NaN as in words.h. */
static inline void FN(bf16_load)(ARGS(bf16), size_t i) { a->x[i] = FN(widen)(a->half[i], BFLOAT16); }

static inline void FN(bf16_store)(ARGS(bf16), size_t i) { a->half[i] = FN(narrow)(a->x[i], BFLOAT16); }
