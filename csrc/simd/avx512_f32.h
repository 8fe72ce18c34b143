/* simd/avx512_f32.h - the vector vocabulary for 16 floats. */
#define VEC             __m512
#define WIDTH           16
#define LOAD(p)         _mm512_loadu_ps(p)
#define STORE(p, x)     _mm512_storeu_ps(p, x)
#define SET1(s)         _mm512_set1_ps(s)
#define ZERO()          _mm512_setzero_ps()
#define ADD(x, y)       _mm512_add_ps(x, y)
#define SUB(x, y)       _mm512_sub_ps(x, y)
#define MUL(x, y)       _mm512_mul_ps(x, y)
#define DIV(x, y)       _mm512_div_ps(x, y)
#define SQRT(x)         _mm512_sqrt_ps(x)
#define MIN(x, y)       _mm512_min_ps(x, y)
#define MAX(x, y)       _mm512_max_ps(x, y)
#define ABS(x)          _mm512_andnot_ps(SET1(-(REAL)0), x)
#define FLIPSIGN(x, y)  _mm512_xor_ps(x, _mm512_and_ps(y, SET1(-(REAL)0)))
#define MASK            __mmask16
#define GT(x, y)        _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ)
#define LT(x, y)        _mm512_cmp_ps_mask(x, y, _CMP_LT_OQ)
#define SELECT(m, x, y) _mm512_mask_blend_ps(m, y, x)
