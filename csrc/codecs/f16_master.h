/* codecs/f16_master.h - the binary16 that a model uses, and its float32 master: see master_load in words.h. */
static inline void FN(f16_master_load)(ARGS(f16_master), size_t i)
{
    a->x[i] = FN(master_load)(a->master[i], a->half[i], BINARY16);
}

static inline void FN(f16_master_store)(ARGS(f16_master), size_t i)
{
    FN(master_store)(a->x[i], &a->master[i], &a->half[i], BINARY16);
}
