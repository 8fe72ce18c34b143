/* simd/neon_f32.h - the vector vocabulary for 4 floats on aarch64. */

/* bfloat16, and float32 in two halves: codecs/bf16.h and codecs/split.h, on 4 numbers. */
static inline float32x4_t load_bf16(const void *p)
{
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16((const uint16_t *)p)), 16));
}

static inline void store_bf16(void *p, float32x4_t x)
{
    const uint32x4_t word = vreinterpretq_u32_f32(x), high = vshrq_n_u32(word, 16);
    const uint32x4_t carry = vaddq_u32(vandq_u32(high, vdupq_n_u32(1)), vdupq_n_u32(0x7fff));
    const uint32x4_t even = vshrq_n_u32(vaddq_u32(word, carry), 16);
    vst1_u16((uint16_t *)p, vmovn_u32(vbslq_u32(vceqq_f32(x, x), even, vorrq_u32(high, vdupq_n_u32(0x40)))));
}

static inline float32x4_t load_split(const void *p, const void *q)
{
    const float32x4_t high = load_bf16(p);
    const int32x4_t word = vaddw_s16(vreinterpretq_s32_f32(high), vld1_s16((const int16_t *)q));
    const float32x4_t sum = vreinterpretq_f32_s32(word);
    return vbslq_f32(vceqq_f32(sum, sum), sum, high);
}

static inline void store_split(void *p, void *q, float32x4_t x)
{
    const uint32x4_t word = vbslq_u32(vceqq_f32(x, x), vreinterpretq_u32_f32(x), vdupq_n_u32(0x7fc00000));
    vst1_u16((uint16_t *)p, vshrn_n_u32(vaddq_u32(word, vdupq_n_u32(0x8000)), 16));
    vst1_u16((uint16_t *)q, vmovn_u32(word));
}

#define VEC             float32x4_t
#define WIDTH           4
#define LOAD(p)         vld1q_f32(p)
#define STORE(p, x)     vst1q_f32(p, x)
#define SET1(s)         vdupq_n_f32(s)
#define ZERO()          vdupq_n_f32(0)
#define ADD(x, y)       vaddq_f32(x, y)
#define SUB(x, y)       vsubq_f32(x, y)
#define MUL(x, y)       vmulq_f32(x, y)
#define DIV(x, y)       vdivq_f32(x, y)
#define SQRT(x)         vsqrtq_f32(x)
#define MIN(x, y)       vbslq_f32(vcltq_f32(x, y), x, y) /* vminq treats NaN in another way */
#define MAX(x, y)       vbslq_f32(vcgtq_f32(x, y), x, y)
#define ABS(x)          vabsq_f32(x)
#define BITS(x)         vreinterpretq_u32_f32(x)
#define FLIPSIGN(x, y)  vreinterpretq_f32_u32(veorq_u32(BITS(x), vandq_u32(BITS(y), BITS(SET1(-(REAL)0)))))
#define MASK            uint32x4_t
#define GT(x, y)        vcgtq_f32(x, y)
#define LT(x, y)        vcltq_f32(x, y)
#define DIFFER(x, y)    vcltzq_s32(vreinterpretq_s32_u32(veorq_u32(BITS(x), BITS(y))))
#define AND(m, n)       vandq_u32(m, n)
#define ANDNOT(m, n)    vbicq_u32(m, n)
#define SELECT(m, x, y) vbslq_f32(m, x, y)
#define FIRST(x)        vgetq_lane_f32(x, 0)

#define LOAD_BF16(p)         load_bf16(p)
#define STORE_BF16(p, x)     store_bf16(p, x)
#define LOAD_SPLIT(p, q)     load_split(p, q)
#define STORE_SPLIT(p, q, x) store_split(p, q, x)
