/* simd/avx2_f64.h - the vector vocabulary for 4 doubles. */
#define VEC             __m256d
#define WIDTH           4
#define LOAD(p)         _mm256_loadu_pd(p)
#define STORE(p, x)     _mm256_storeu_pd(p, x)
#define SET1(s)         _mm256_set1_pd(s)
#define ZERO()          _mm256_setzero_pd()
#define ADD(x, y)       _mm256_add_pd(x, y)
#define SUB(x, y)       _mm256_sub_pd(x, y)
#define MUL(x, y)       _mm256_mul_pd(x, y)
#define DIV(x, y)       _mm256_div_pd(x, y)
#define SQRT(x)         _mm256_sqrt_pd(x)
#define MIN(x, y)       _mm256_min_pd(x, y)
#define MAX(x, y)       _mm256_max_pd(x, y)
#define ABS(x)          _mm256_andnot_pd(SET1(-(REAL)0), x)
#define FLIPSIGN(x, y)  _mm256_xor_pd(x, _mm256_and_pd(y, SET1(-(REAL)0)))
#define MASK            __m256d
#define GT(x, y)        _mm256_cmp_pd(x, y, _CMP_GT_OQ)
#define LT(x, y)        _mm256_cmp_pd(x, y, _CMP_LT_OQ)
#define DIFFER(x, y)    _mm256_xor_pd(x, y)
#define AND(m, n)       _mm256_and_pd(m, n)
#define ANDNOT(m, n)    _mm256_andnot_pd(n, m)
#define SELECT(m, x, y) _mm256_blendv_pd(y, x, m)
#define FIRST(x)        _mm256_cvtsd_f64(x)
