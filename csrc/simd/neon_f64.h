/* simd/neon_f64.h - the vector vocabulary for 2 doubles on aarch64. */
#define VEC             float64x2_t
#define WIDTH           2
#define LOAD(p)         vld1q_f64(p)
#define STORE(p, x)     vst1q_f64(p, x)
#define SET1(s)         vdupq_n_f64(s)
#define ZERO()          vdupq_n_f64(0)
#define ADD(x, y)       vaddq_f64(x, y)
#define SUB(x, y)       vsubq_f64(x, y)
#define MUL(x, y)       vmulq_f64(x, y)
#define DIV(x, y)       vdivq_f64(x, y)
#define SQRT(x)         vsqrtq_f64(x)
#define MIN(x, y)       vbslq_f64(vcltq_f64(x, y), x, y) /* vminq treats NaN in another way */
#define MAX(x, y)       vbslq_f64(vcgtq_f64(x, y), x, y)
#define ABS(x)          vabsq_f64(x)
#define BITS(x)         vreinterpretq_u64_f64(x)
#define FLIPSIGN(x, y)  vreinterpretq_f64_u64(veorq_u64(BITS(x), vandq_u64(BITS(y), BITS(SET1(-(REAL)0)))))
#define MASK            uint64x2_t
#define GT(x, y)        vcgtq_f64(x, y)
#define LT(x, y)        vcltq_f64(x, y)
#define DIFFER(x, y)    vcltzq_s64(vreinterpretq_s64_u64(veorq_u64(BITS(x), BITS(y))))
#define AND(m, n)       vandq_u64(m, n)
#define ANDNOT(m, n)    vbicq_u64(m, n)
#define SELECT(m, x, y) vbslq_f64(m, x, y)
#define FIRST(x)        vgetq_lane_f64(x, 0)
