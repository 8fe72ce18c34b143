/* codecs/bf16_copy.h - float32, and a bfloat16 array that gets a rounded copy of every number that is stored. */
static inline void FN(bf16_copy_load)(ARGS(bf16_copy), size_t i) { STORE(a->x + i, LOAD(a->full + i)); }

static inline void FN(bf16_copy_store)(ARGS(bf16_copy), size_t i)
{
    const VEC x = LOAD(a->x + i);
    STORE(a->full + i, x);
    STORE_BF16(a->half + i, x);
}
