/* stages/scale.h - seen <- grad * factor: unscaling, the factor of the norm clip and the sign of maximize in one. */
static inline void STAGE_FN(scale)(REAL *const *a, const VEC *k, size_t i)
{
    enum { SEEN, GRAD };
    STORE(a[SEEN] + i, MUL(LOAD(a[GRAD] + i), k[0]));
}
