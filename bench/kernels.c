/*
 * kernels.c - the harness's kernels for one instruction set and one type, compiled once for each pair.  Parameters:
 *   ISA      e.g. avx2             TYPE       f32 or f64
 *   VECTORS  its vocabulary        REAL, REAL_FABS, REAL_SQRT   float, fabsf, sqrtf or double, fabs, sqrt
 */
#include <math.h>
#include <stdint.h>
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>
#endif

#include "kernels.h"

#define STR_(a) #a
#define STR(a)  STR_(a)

#include "simd/scalar.h"
#define FN(name) name##_one
#include "kernels.inc"
#undef FN
#include "simd/undef.h"

#include VECTORS
#define FN(name) name##_vec
#include "kernels.inc"
#undef FN

/* As proptim's kernels, these begin at width 1 until the first array is aligned. */
static size_t head(const REAL *first, size_t n)
{
    const size_t elements = -(uintptr_t)first / sizeof(REAL) % WIDTH;
    return elements < n ? elements : n;
}

/* The number of arrays is a constant in each, so that the loops over them are unrolled. */
#define STREAM(arrays)                                                    \
    static void stream##arrays(void *const *a, size_t n)                  \
    {                                                                     \
        REAL *p[arrays];                                                  \
        const size_t begin = head((REAL *)a[0], n);                       \
        size_t i = 0;                                                     \
        for (int j = 0; j < arrays; j++) p[j] = (REAL *)a[j];             \
        for (; i < begin; i++) stream_one(p, arrays, i);                  \
        for (int j = 0; j < arrays; j++) p[j] += begin;                   \
        n -= begin;                                                       \
        for (i = 0; i + WIDTH <= n; i += WIDTH) stream_vec(p, arrays, i); \
        for (; i < n; i++) stream_one(p, arrays, i);                      \
    }
STREAM(2)
STREAM(3)
STREAM(4)
STREAM(5)

static void rprop(void *const *a, size_t n)
{
    REAL *p[] = { (REAL *)a[0], (REAL *)a[1], (REAL *)a[2], (REAL *)a[3] };
    const size_t begin = head(p[0], n);
    size_t i = 0;
    for (; i < begin; i++) rprop_one(p, i);
    for (int j = 0; j < 4; j++) p[j] += begin;
    n -= begin;
    for (i = 0; i + WIDTH <= n; i += WIDTH) rprop_vec(p, i);
    for (; i < n; i++) rprop_one(p, i);
}

const struct bench_kernels
    BENCH_KERNELS(ISA, TYPE) = { STR(ISA), { NULL, NULL, stream2, stream3, stream4, stream5 }, rprop };
