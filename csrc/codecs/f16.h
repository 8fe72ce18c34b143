/* codecs/f16.h - binary16 of IEEE 754, float16 in NumPy and torch.  Rounding and NaN as in words.h. */
static inline void FN(f16_load)(ARGS(f16), size_t i) { STORE(a->x + i, LOAD_F16(a->half + i)); }

static inline void FN(f16_store)(ARGS(f16), size_t i) { STORE_F16(a->half + i, LOAD(a->x + i)); }
