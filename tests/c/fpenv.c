/*
 * fpenv.c - results do not depend on the floating-point environment of the caller, which is restored on every thread
 * that runs a part: another rounding mode, and subnormals flushed to zero, as by a library that is linked with
 * -ffast-math.
 */
#include <fenv.h>

#include "check.h"

#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>

static unsigned long get_mode(void) { return _mm_getcsr(); }
static void set_mode(unsigned long mode) { _mm_setcsr((unsigned)mode); }
static const unsigned long FLUSH = 0x8040; /* FTZ and DAZ */
#elif defined(__aarch64__)
static unsigned long get_mode(void)
{
    unsigned long mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static void set_mode(unsigned long mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
static const unsigned long FLUSH = 1ul << 24; /* FZ */
#elif defined(__ARM_FP)
static unsigned long get_mode(void)
{
    unsigned long mode;
    __asm__ volatile("vmrs %0, fpscr" : "=r"(mode));
    return mode & 0x07c00000; /* AHP, DN, FZ, rounding; not the flags of comparisons */
}
static void set_mode(unsigned long mode) { __asm__ volatile("vmsr fpscr, %0" : : "r"(mode)); }
static const unsigned long FLUSH = 1ul << 24; /* FZ */
#else
static unsigned long get_mode(void) { return (unsigned long)fegetround(); }
static void set_mode(unsigned long mode) { (void)fesetround((int)mode); }
static const unsigned long FLUSH = 0;
#endif

enum { N = 100, PARTS = 2 };
static unsigned long normal, hostile;

/* As if every part had a thread of its own, each with the unusual mode. */
static proptim_ran in_turn(proptim_task *task, void *data, int parts, int threads)
{
    (void)threads;
    for (int part = 0; part < parts; part++) {
        set_mode(hostile);
        task(data, part, parts);
        const unsigned long after = get_mode();
        set_mode(normal);
        CHECK(after == hostile, "part %d left mode %lx, found %lx", part, after, hostile);
    }
    return PROPTIM_RAN_PARALLEL;
}

/* A step of parameters that are plain or binary16: the latter are read and rounded in the unusual mode, too. */
static void run(const proptim_isa *isa, int dtype, int format, int parts, unsigned long mode, double *param,
                double *sum)
{
    const ptrdiff_t shape = N, stride = (ptrdiff_t)itemsize_of(dtype);
    const double tiny = dtype == PROPTIM_F32 ? 1e-41 : 1e-311, least = format == PROPTIM_F16 ? 0x1p-24 : tiny;
    double grad[N], partials[1];
    uint16_t half[N];
    void *const operands[3] = { param, half };
    proptim_segment segment = { .size = N, .dtype = (proptim_dtype)dtype, .dense = PROPTIM_DENSE };
    proptim_row row = { .coefs = { 1.0 / 3 }, .active = 1 };
    int finite;
    for (int s = 0; s < PROPTIM_STAGES; s++) row.stages[s] = proptim_stage_neutral((proptim_stage)s);
    for (size_t i = 0; i < N; i++) {
        put(dtype, param, i, i % 2 ? least * (double)i : 1 + 0.1 * (double)i);
        put(dtype, grad, i, i % 3 ? tiny : -0.7 * (double)i);
    }
    if (format == PROPTIM_F16) isa->stores[format][dtype](operands, N);
    segment.arrays[PROPTIM_PARAMS].planes[0] = format == PROPTIM_F16 ? (void *)half : param;
    segment.arrays[PROPTIM_PARAMS].format = (uint8_t)format;
    segment.arrays[PROPTIM_GRADS].planes[0] = grad;
    const proptim_view view = { { grad }, (proptim_dtype)dtype, 1, &shape, { &stride }, PROPTIM_PLAIN };

    set_mode(mode);
    proptim_step(isa, PROPTIM_sgd, &segment, 1, &row, parts, parts > 1 ? in_turn : NULL);
    if (parts > 1) set_mode(mode);
    *sum = proptim_reduce(isa, &view, 1, partials, &finite, 1, NULL);
    const unsigned long after = get_mode();
    set_mode(normal);
    CHECK(after == mode, "%s left mode %lx, found %lx", isa->name, after, mode);
    if (format == PROPTIM_F16) isa->loads[format][dtype](operands, N);
}

int main(void)
{
    static const int roundings[] = { FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO };
    static const int tried[] = { PROPTIM_PLAIN, PROPTIM_F16 };
    const proptim_isa *isas[MOST_ISAS];
    const int n_isas = take_part(isas);
    normal = get_mode();
    if (!FLUSH) fprintf(stderr, "NOT RUN: flush-to-zero, unknown on this architecture\n");
    for (int i = 0; i < n_isas; i++)
        for (int k = 0; k < 2 * PROPTIM_DTYPES; k++) {
            const int dtype = k / 2, format = tried[k % 2];
            double expected[N], sum, got[N], got_sum;
            run(isas[i], dtype, format, 1, normal, expected, &sum);
            const uint64_t exponents = dtype == PROPTIM_F32 ? 0x7f800000u : 0x7ff0000000000000u;
            const uint64_t bits = bits_at(dtype, expected, 1);
            CHECK(bits && (format == PROPTIM_F16 || !(bits & exponents)), "%s %s %s: no subnormal to be lost",
                  isas[i]->name, dtypes[dtype], formats[format]);
            for (int r = 0; r < 4; r++)
                for (int parts = 1; parts <= PARTS; parts++) {
                    CHECK(!fesetround(roundings[r]), "rounding %d", r);
                    hostile = get_mode() | FLUSH;
                    CHECK(!fesetround(FE_TONEAREST), "rounding of all units, of which get_mode() may know one");
                    set_mode(normal);
                    run(isas[i], dtype, format, parts, hostile, got, &got_sum);
                    CHECK(difference(dtype, got, expected, N) == N && got_sum == sum, "%s %s %s rounding %d, %d parts",
                          isas[i]->name, dtypes[dtype], formats[format], r, parts);
                }
        }
    return 0;
}
