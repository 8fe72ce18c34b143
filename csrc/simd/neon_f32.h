/* simd/neon_f32.h - the vector vocabulary for 4 floats on aarch64. */
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
#define MIN(x, y)       vminq_f32(x, y)
#define MAX(x, y)       vmaxq_f32(x, y)
#define ABS(x)          vabsq_f32(x)
#define BITS(x)         vreinterpretq_u32_f32(x)
#define FLIPSIGN(x, y)  vreinterpretq_f32_u32(veorq_u32(BITS(x), vandq_u32(BITS(y), BITS(SET1(-(REAL)0)))))
#define MASK            uint32x4_t
#define GT(x, y)        vcgtq_f32(x, y)
#define LT(x, y)        vcltq_f32(x, y)
#define SELECT(m, x, y) vbslq_f32(m, x, y)
