/* simd/avx512_f64.h - the vector vocabulary for 8 doubles. */
#define VEC             __m512d
#define WIDTH           8
#define LOAD(p)         _mm512_loadu_pd(p)
#define STORE(p, x)     _mm512_storeu_pd(p, x)
#define SET1(s)         _mm512_set1_pd(s)
#define ZERO()          _mm512_setzero_pd()
#define ADD(x, y)       _mm512_add_pd(x, y)
#define SUB(x, y)       _mm512_sub_pd(x, y)
#define MUL(x, y)       _mm512_mul_pd(x, y)
#define DIV(x, y)       _mm512_div_pd(x, y)
#define SQRT(x)         _mm512_sqrt_pd(x)
#define MIN(x, y)       _mm512_min_pd(x, y)
#define MAX(x, y)       _mm512_max_pd(x, y)
#define ABS(x)          _mm512_andnot_pd(SET1(-(REAL)0), x)
#define FLIPSIGN(x, y)  _mm512_xor_pd(x, _mm512_and_pd(y, SET1(-(REAL)0)))
#define MASK            __mmask8
#define GT(x, y)        _mm512_cmp_pd_mask(x, y, _CMP_GT_OQ)
#define LT(x, y)        _mm512_cmp_pd_mask(x, y, _CMP_LT_OQ)
#define DIFFER(x, y)    _mm512_movepi64_mask(_mm512_castpd_si512(_mm512_xor_pd(x, y)))
#define AND(m, n)       _kand_mask8(m, n)
#define ANDNOT(m, n)    _kandn_mask8(n, m)
#define SELECT(m, x, y) _mm512_mask_blend_pd(m, y, x)
#define FIRST(x)        _mm_cvtsd_f64(_mm512_castpd512_pd128(x))
