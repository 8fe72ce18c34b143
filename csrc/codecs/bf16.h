/* codecs/bf16.h - bfloat16: the upper half of a float32.  Rounding and NaN as in words.h. */
static inline void FN(bf16_load)(ARGS(bf16), size_t i) { STORE(a->x + i, LOAD_BF16(a->half + i)); }

static inline void FN(bf16_store)(ARGS(bf16), size_t i) { STORE_BF16(a->half + i, LOAD(a->x + i)); }
