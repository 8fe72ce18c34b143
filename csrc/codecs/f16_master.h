/* codecs/f16_master.h - the binary16 that a model uses, and its float32 master: see master_load in words.h. */
static inline void FN(f16_master_load)(ARGS(f16_master), size_t i)
{
    STORE(a->x + i, LOAD_F16_MASTER(a->half + i, a->master + i));
}

static inline void FN(f16_master_store)(ARGS(f16_master), size_t i)
{
    const VEC x = LOAD(a->x + i);
    STORE(a->master + i, x);
    STORE_F16(a->half + i, x);
}
