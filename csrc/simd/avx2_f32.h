/* simd/avx2_f32.h - the vector vocabulary for 8 floats. */

/* The codecs of 16 bits, on 8 numbers: codecs/words.h and codecs/split.h. */
static inline __m128i load_halves(const void *p) { return _mm_loadu_si128((const __m128i *)p); }

static inline void store_halves(void *p, __m128i half) { _mm_storeu_si128((__m128i *)p, half); }

/* The lower halves of words, all of which are less than 2^16. */
static inline __m128i halves_of(__m256i word)
{
    return _mm_packus_epi32(_mm256_castsi256_si128(word), _mm256_extracti128_si256(word, 1));
}

static inline __m256i choose(__m256 mask, __m256i x, __m256i y)
{
    return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(y), _mm256_castsi256_ps(x), mask));
}

static inline __m256 load_bf16(const void *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_halves(p)), 16));
}

static inline __m128i bf16_of(__m256 x)
{
    const __m256i word = _mm256_castps_si256(x), high = _mm256_srli_epi32(word, 16);
    const __m256i carry = _mm256_add_epi32(_mm256_and_si256(high, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
    const __m256i even = _mm256_srli_epi32(_mm256_add_epi32(word, carry), 16);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    return halves_of(choose(_mm256_cmp_ps(x, x, _CMP_UNORD_Q), quiet, even));
}

static inline __m128i f16_of(__m256 x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }

static inline __m256 load_master(__m256 master, __m128i rounded, __m128i half, __m256 written)
{
    const __m256i own = _mm256_cvtepi16_epi32(_mm_cmpeq_epi16(half, rounded));
    return _mm256_blendv_ps(written, master, _mm256_castsi256_ps(own));
}

static inline __m256 load_split(const void *p, const void *q)
{
    const __m256 high = load_bf16(p);
    const __m256i low = _mm256_cvtepi16_epi32(load_halves(q));
    const __m256 sum = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(high), low));
    return _mm256_blendv_ps(sum, high, _mm256_cmp_ps(sum, sum, _CMP_UNORD_Q));
}

static inline void store_split(void *p, void *q, __m256 x)
{
    const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    const __m256i word = choose(nan, _mm256_set1_epi32(0x7fc00000), _mm256_castps_si256(x));
    store_halves(p, halves_of(_mm256_srli_epi32(_mm256_add_epi32(word, _mm256_set1_epi32(0x8000)), 16)));
    store_halves(q, halves_of(_mm256_and_si256(word, _mm256_set1_epi32(0xffff))));
}

static inline __m128i load_8_bytes(const void *p) { return _mm_loadl_epi64((const __m128i *)p); }

static inline void store_byte(void *p, __m256 x)
{
    const __m256i word = _mm256_cvtps_epi32(x);
    const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(word), _mm256_extracti128_si256(word, 1));
    const __m128i byte = _mm_and_si128(half, _mm_set1_epi16(0xff));
    _mm_storel_epi64((__m128i *)p, _mm_packus_epi16(byte, byte));
}

/* The smallest keeps the estimate of 1 / sqrt(0) finite. */
static inline __m256 near_root(__m256 x)
{
    return _mm256_mul_ps(x, _mm256_rsqrt_ps(_mm256_add_ps(x, _mm256_set1_ps(0x1p-40f))));
}

static inline __m256 fraction_of(__m256 x)
{
    const __m256i fraction = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x007fffff));
    return _mm256_castsi256_ps(_mm256_or_si256(fraction, _mm256_set1_epi32(0x3f800000)));
}

static inline __m256 shrink(__m256 x, __m256 y)
{
    const __m256i exponent = _mm256_sub_epi32(_mm256_set1_epi32(127), _mm256_cvtps_epi32(y));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

static inline __m256 lookup(const float *table, __m256 x)
{
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), _mm256_srli_epi32(_mm256_castps_si256(x), 20));
}

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
#define DIFFER(x, y)    _mm256_xor_ps(x, y)
#define AND(m, n)       _mm256_and_ps(m, n)
#define ANDNOT(m, n)    _mm256_andnot_ps(n, m)
#define SELECT(m, x, y) _mm256_blendv_ps(y, x, m)
#define FIRST(x)        _mm256_cvtss_f32(x)

#define LOAD_BF16(p)           load_bf16(p)
#define STORE_BF16(p, x)       store_halves(p, bf16_of(x))
#define LOAD_BF16_MASTER(p, q) load_master(LOAD(q), bf16_of(LOAD(q)), load_halves(p), LOAD_BF16(p))
#define LOAD_F16(p)            _mm256_cvtph_ps(load_halves(p))
#define STORE_F16(p, x)        store_halves(p, f16_of(x))
#define LOAD_F16_MASTER(p, q)  load_master(LOAD(q), f16_of(LOAD(q)), load_halves(p), LOAD_F16(p))
#define LOAD_SPLIT(p, q)       load_split(p, q)
#define STORE_SPLIT(p, q, x)   store_split(p, q, x)

#define LOAD_INT8(p)     _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_8_bytes(p)))
#define LOAD_UINT8(p)    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_8_bytes(p)))
#define STORE_BYTE(p, x) store_byte(p, x)
#define EXACT(x, y, z)   ADD(MUL(x, y), z)
#define MIN_SIZE(x, y)   MIN(ABS(x), y)
#define NEAR_ROOT(x)     near_root(x)
#define FLOOR(x)         _mm256_floor_ps(x)
#define EXPONENT(x)      _mm256_cvtepi32_ps(_mm256_srli_epi32(_mm256_castps_si256(x), 23))
#define SIGNIFICAND(x)   fraction_of(x)
#define SHRINK(x, y)     shrink(x, y)
#define LOOKUP(table, x) lookup(table, x)
