/*
 * simd/avx512_f32.h - the vector vocabulary for 16 floats.
 *
 * One root and one division occupy the divider for longer than the rest of a step takes.  With MIXED_ROOTS some vectors
 * compute their root by multiplications, while the divider works on the others.  i is that of the text, as in GET.
 */
#define MIXED_ROOTS (!(~i & atomic_load_explicit(&proptim_mixed_roots, memory_order_relaxed)))

/*
 * The correctly rounded root, as vsqrtps has it: one step of Newton's iteration from an estimate, and a correction by
 * the exact remainder x - g * g (Markstein 1990).  tests/c/roots.c compares it with the instruction on all 2^32 inputs,
 * also from estimates three times worse than the 2^-14 that the architecture allows.
 */
static inline __m512 root_f32(__m512 x, size_t mixed)
{
    if (mixed) {
        const __m512 half = _mm512_set1_ps(0.5f), smallest = _mm512_set1_ps(0x1p-40f);
        const __mmask16 nonzero = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        __m512 y = _mm512_maskz_rsqrt14_ps(nonzero, x); /* 0 where x is +0 or -0, whose root is x */
        /* 1 / (2 sqrt(x)), by the exponent: the multipliers are what this way has to save */
        __m512 h =
            _mm512_castsi512_ps(_mm512_maskz_sub_epi32(nonzero, _mm512_castps_si512(y), _mm512_set1_epi32(1 << 23)));
        __m512 g = _mm512_mul_ps(x, y); /* sqrt(x) */
        __m512 r = _mm512_fnmadd_ps(g, h, half);
        g = _mm512_fmadd_ps(g, r, g);
        h = _mm512_fmadd_ps(h, r, h);
        g = _mm512_fmadd_ps(_mm512_fnmadd_ps(g, g, x), h, g);
        /*
         * The instruction handles numbers that are negative, infinite or NaN, all of which give NaN here, and those
         * below 2^-80: for these the remainder may be subnormal, which is slow on some CPUs, and may not be exact.
         */
        if (!_mm512_mask_cmp_ps_mask(nonzero, g, smallest, _CMP_NGE_UQ)) return g;
    }
    return _mm512_sqrt_ps(x);
}

/* The codecs of 16 bits, on 16 numbers: codecs/words.h and codecs/split.h. */
static inline __m256i load_halves(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

static inline void store_halves(void *p, __m256i half) { _mm256_storeu_si256((__m256i *)p, half); }

static inline __m512 load_bf16(const void *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_halves(p)), 16));
}

static inline __m256i bf16_of(__m512 x)
{
    const __m512i word = _mm512_castps_si512(x), high = _mm512_srli_epi32(word, 16);
    const __m512i carry = _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    const __m512i even = _mm512_srli_epi32(_mm512_add_epi32(word, carry), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(even, nan, high, _mm512_set1_epi32(0x40)));
}

static inline __m256i f16_of(__m512 x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }

static inline __m512 load_master(__m512 master, __m256i rounded, __m256i half, __m512 written)
{
    return _mm512_mask_blend_ps(_mm256_cmpeq_epi16_mask(half, rounded), written, master);
}

static inline __m512 load_split(const void *p, const void *q)
{
    const __m512 high = load_bf16(p);
    const __m512i low = _mm512_cvtepi16_epi32(load_halves(q));
    const __m512 sum = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(high), low));
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(sum, sum, _CMP_UNORD_Q), sum, high);
}

static inline void store_split(void *p, void *q, __m512 x)
{
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i word = _mm512_mask_mov_epi32(_mm512_castps_si512(x), nan, _mm512_set1_epi32(0x7fc00000));
    const __m512i high = _mm512_srli_epi32(_mm512_add_epi32(word, _mm512_set1_epi32(0x8000)), 16);
    store_halves(p, _mm512_cvtepi32_epi16(high));
    store_halves(q, _mm512_cvtepi32_epi16(word));
}

static inline void store_byte(void *p, __m512 x)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}

static inline __m512 fraction_of(__m512 x)
{
    const __m512i fraction = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x007fffff));
    return _mm512_castsi512_ps(_mm512_or_si512(fraction, _mm512_set1_epi32(0x3f800000)));
}

/* All but the lowest 3 bits of a place among 16 make no difference: the table is there twice. */
static inline __m512 lookup(const float *table, __m512 x)
{
    const __m512i place = _mm512_srli_epi32(_mm512_castps_si512(x), 20);
    return _mm512_permutexvar_ps(place, _mm512_broadcast_f32x8(_mm256_loadu_ps(table)));
}

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
#define SQRT(x)         root_f32(x, MIXED_ROOTS)
#define MIN(x, y)       _mm512_min_ps(x, y)
#define MAX(x, y)       _mm512_max_ps(x, y)
#define ABS(x)          _mm512_andnot_ps(SET1(-(REAL)0), x)
#define FLIPSIGN(x, y)  _mm512_xor_ps(x, _mm512_and_ps(y, SET1(-(REAL)0)))
#define MASK            __mmask16
#define GT(x, y)        _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ)
#define LT(x, y)        _mm512_cmp_ps_mask(x, y, _CMP_LT_OQ)
#define DIFFER(x, y)    _mm512_movepi32_mask(_mm512_castps_si512(_mm512_xor_ps(x, y)))
#define AND(m, n)       _mm512_kand(m, n)
#define ANDNOT(m, n)    _mm512_kandn(n, m)
#define SELECT(m, x, y) _mm512_mask_blend_ps(m, y, x)
#define FIRST(x)        _mm_cvtss_f32(_mm512_castps512_ps128(x))

#define LOAD_BF16(p)           load_bf16(p)
#define STORE_BF16(p, x)       store_halves(p, bf16_of(x))
#define LOAD_BF16_MASTER(p, q) load_master(LOAD(q), bf16_of(LOAD(q)), load_halves(p), LOAD_BF16(p))
#define LOAD_F16(p)            _mm512_cvtph_ps(load_halves(p))
#define STORE_F16(p, x)        store_halves(p, f16_of(x))
#define LOAD_F16_MASTER(p, q)  load_master(LOAD(q), f16_of(LOAD(q)), load_halves(p), LOAD_F16(p))
#define LOAD_SPLIT(p, q)       load_split(p, q)
#define STORE_SPLIT(p, q, x)   store_split(p, q, x)

#define LOAD_INT8(p)     _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p))))
#define LOAD_UINT8(p)    _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(p))))
#define STORE_BYTE(p, x) store_byte(p, x)
#define EXACT(x, y, z)   _mm512_fmadd_ps(x, y, z)
#define MIN_SIZE(x, y)   _mm512_range_ps(x, y, 10) /* the smaller size, as a positive number; of a NaN and y it is y */
#define NEAR_ROOT(x)     _mm512_mul_ps(x, _mm512_rsqrt14_ps(x))
#define FLOOR(x)         _mm512_roundscale_ps(x, (_MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC))
#define EXPONENT(x)      _mm512_cvtepi32_ps(_mm512_srli_epi32(_mm512_castps_si512(x), 23))
#define SIGNIFICAND(x)   fraction_of(x)
#define SHRINK(x, y)     _mm512_scalef_ps(x, _mm512_sub_ps(_mm512_setzero_ps(), y))
#define LOOKUP(table, x) lookup(table, x)
