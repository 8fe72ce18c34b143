/* codecs/f16_copy.h - float32, and a binary16 array that gets a rounded copy of every number that is stored. */
static inline void FN(f16_copy_load)(ARGS(f16_copy), size_t i) { STORE(a->x + i, LOAD(a->full + i)); }

static inline void FN(f16_copy_store)(ARGS(f16_copy), size_t i)
{
    const VEC x = LOAD(a->x + i);
    STORE(a->full + i, x);
    STORE_F16(a->half + i, x);
}
