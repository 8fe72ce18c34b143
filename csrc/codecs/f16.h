/* codecs/f16.h - binary16 of IEEE 754, float16 in NumPy and torch.  Rounding and NaN as in words.h. */
static inline void FN(f16_load)(ARGS(f16), size_t i) { a->x[i] = FN(widen)(a->half[i], BINARY16); }

static inline void FN(f16_store)(ARGS(f16), size_t i) { a->half[i] = FN(narrow)(a->x[i], BINARY16); }
