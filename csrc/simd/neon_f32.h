/* simd/neon_f32.h - the vector vocabulary for 4 floats on aarch64. */

/* The codecs of 16 bits, on 4 numbers: codecs/words.h and codecs/split.h. */
static inline uint16x4_t load_halves(const void *p) { return vld1_u16((const uint16_t *)p); }

static inline void store_halves(void *p, uint16x4_t half) { vst1_u16((uint16_t *)p, half); }

static inline float32x4_t load_bf16(const void *p)
{
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(load_halves(p)), 16));
}

static inline uint16x4_t bf16_of(float32x4_t x)
{
    const uint32x4_t word = vreinterpretq_u32_f32(x), high = vshrq_n_u32(word, 16);
    const uint32x4_t carry = vaddq_u32(vandq_u32(high, vdupq_n_u32(1)), vdupq_n_u32(0x7fff));
    const uint32x4_t even = vshrq_n_u32(vaddq_u32(word, carry), 16);
    return vmovn_u32(vbslq_u32(vceqq_f32(x, x), even, vorrq_u32(high, vdupq_n_u32(0x40))));
}

static inline uint16x4_t f16_of(float32x4_t x) { return vreinterpret_u16_f16(vcvt_f16_f32(x)); }

static inline float32x4_t load_master(float32x4_t master, uint16x4_t rounded, uint16x4_t half, float32x4_t written)
{
    const int32x4_t own = vmovl_s16(vreinterpret_s16_u16(vceq_u16(half, rounded)));
    return vbslq_f32(vreinterpretq_u32_s32(own), master, written);
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
    store_halves(p, vshrn_n_u32(vaddq_u32(word, vdupq_n_u32(0x8000)), 16));
    store_halves(q, vmovn_u32(word));
}

static inline uint32x2_t load_4_bytes(const void *p)
{
    uint32_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    return vdup_n_u32(bytes);
}

static inline float32x4_t load_int8(const void *p)
{
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(load_4_bytes(p))))));
}

static inline float32x4_t load_uint8(const void *p)
{
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(load_4_bytes(p))))));
}

static inline void store_byte(void *p, float32x4_t x)
{
    const uint16x4_t half = vmovn_u32(vreinterpretq_u32_s32(vcvtq_s32_f32(x)));
    const uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(half, half))), 0);
    memcpy(p, &bytes, sizeof bytes);
}

static inline float32x4_t fraction_of(float32x4_t x)
{
    const uint32x4_t fraction = vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x007fffff));
    return vreinterpretq_f32_u32(vorrq_u32(fraction, vdupq_n_u32(0x3f800000)));
}

static inline float32x4_t shrink(float32x4_t x, float32x4_t y)
{
    const int32x4_t exponent = vsubq_s32(vdupq_n_s32(127), vcvtq_s32_f32(y));
    return vmulq_f32(x, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}

static inline float32x4_t lookup(const float *table, float32x4_t x)
{
    uint32_t place[4];
    float entries[4];
    vst1q_u32(place, vandq_u32(vshrq_n_u32(vreinterpretq_u32_f32(x), 20), vdupq_n_u32(7)));
    for (int i = 0; i < 4; i++) entries[i] = table[place[i]];
    return vld1q_f32(entries);
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

#define LOAD_BF16(p)           load_bf16(p)
#define STORE_BF16(p, x)       store_halves(p, bf16_of(x))
#define LOAD_BF16_MASTER(p, q) load_master(LOAD(q), bf16_of(LOAD(q)), load_halves(p), LOAD_BF16(p))
#define LOAD_F16(p)            vcvt_f32_f16(vreinterpret_f16_u16(load_halves(p)))
#define STORE_F16(p, x)        store_halves(p, f16_of(x))
#define LOAD_F16_MASTER(p, q)  load_master(LOAD(q), f16_of(LOAD(q)), load_halves(p), LOAD_F16(p))
#define LOAD_SPLIT(p, q)       load_split(p, q)
#define STORE_SPLIT(p, q, x)   store_split(p, q, x)

#define LOAD_INT8(p)     load_int8(p)
#define LOAD_UINT8(p)    load_uint8(p)
#define STORE_BYTE(p, x) store_byte(p, x)
#define EXACT(x, y, z)   ADD(MUL(x, y), z)
#define MIN_SIZE(x, y)   MIN(ABS(x), y)
#define NEAR_ROOT(x)     vsqrtq_f32(x)
#define FLOOR(x)         vrndmq_f32(x)
#define EXPONENT(x)      vcvtq_f32_u32(vshrq_n_u32(BITS(x), 23))
#define SIGNIFICAND(x)   fraction_of(x)
#define SHRINK(x, y)     shrink(x, y)
#define LOOKUP(table, x) lookup(table, x)
