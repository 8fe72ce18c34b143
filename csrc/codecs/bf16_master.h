/* codecs/bf16_master.h - the bfloat16 that a model uses, and its float32 master: see master_load in words.h. */
static inline void FN(bf16_master_load)(ARGS(bf16_master), size_t i)
{
    STORE(a->x + i, LOAD_BF16_MASTER(a->half + i, a->master + i));
}

static inline void FN(bf16_master_store)(ARGS(bf16_master), size_t i)
{
    const VEC x = LOAD(a->x + i);
    STORE(a->master + i, x);
    STORE_BF16(a->half + i, x);
}
