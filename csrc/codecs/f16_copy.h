/* codecs/f16_copy.h - float32, and a binary16 array that gets a rounded copy of every number that is stored. */
static inline void FN(f16_copy_load)(ARGS(f16_copy), size_t i) { a->x[i] = a->full[i]; }

static inline void FN(f16_copy_store)(ARGS(f16_copy), size_t i)
{
    FN(master_store)(a->x[i], &a->full[i], &a->half[i], BINARY16);
}
