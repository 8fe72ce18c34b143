/* simd/avx2_f32.h - the vector vocabulary for 8 floats. */
#define VEC             __m256
#define WIDTH           8
#define LOAD(p)         _mm256_loadu_ps(p)
#define STORE(p, x)     _mm256_storeu_ps(p, x)
#define SET1(s)         _mm256_set1_ps(s)
#define ZERO()          _mm256_setzero_ps()
#define ADD(x, y)       _mm256_add_ps(x, y)
#define SUB(x, y)       _mm256_sub_ps(x, y)
#define MUL(x, y)       _mm256_mul_ps(x, y)
#define DIV(x, y)       _mm256_div_ps(x, y)
#define SQRT(x)         _mm256_sqrt_ps(x)
#define MIN(x, y)       _mm256_min_ps(x, y)
#define MAX(x, y)       _mm256_max_ps(x, y)
#define ABS(x)          _mm256_andnot_ps(SET1(-(REAL)0), x)
#define FLIPSIGN(x, y)  _mm256_xor_ps(x, _mm256_and_ps(y, SET1(-(REAL)0)))
#define MASK            __m256
#define GT(x, y)        _mm256_cmp_ps(x, y, _CMP_GT_OQ)
#define LT(x, y)        _mm256_cmp_ps(x, y, _CMP_LT_OQ)
#define SELECT(m, x, y) _mm256_blendv_ps(y, x, m)
