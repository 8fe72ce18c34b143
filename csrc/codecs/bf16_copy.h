/* codecs/bf16_copy.h - float32, and a bfloat16 array that gets a rounded copy of every number that is stored. */
static inline void FN(bf16_copy_load)(ARGS(bf16_copy), size_t i) { a->x[i] = a->full[i]; }

static inline void FN(bf16_copy_store)(ARGS(bf16_copy), size_t i)
{
    FN(master_store)(a->x[i], &a->full[i], &a->half[i], BFLOAT16);
}
