/*
 * kernels.h - what the harness measures proptim's kernels against.  Compiled, like those, for each instruction set.
 */
#ifndef PROPTIM_BENCH_KERNELS_H
#define PROPTIM_BENCH_KERNELS_H

#include <stddef.h>

enum { BENCH_MIN_ARRAYS = 2, BENCH_MAX_ARRAYS = 5 }; /* parameter, gradient, up to three state arrays */

typedef void bench_kernel(void *const *arrays, size_t n);

struct bench_kernels {
    const char *isa;
    bench_kernel *stream[BENCH_MAX_ARRAYS + 1]; /* by number of arrays: all are read, all but the gradient written */
    bench_kernel *rprop;                        /* parameter, gradient, last gradient, step size */
};

#define BENCH_KERNELS_(isa, type) bench_kernels_##isa##_##type
#define BENCH_KERNELS(isa, type)  BENCH_KERNELS_(isa, type)

/* As in csrc/dispatch.c. */
#if defined(__x86_64__) || defined(_M_X64)
#define BENCH_ISAS(X) X(avx512) X(avx2) X(scalar)
#elif defined(__aarch64__) || defined(_M_ARM64)
#define BENCH_ISAS(X) X(neon) X(scalar)
#else
#define BENCH_ISAS(X) X(scalar)
#endif

#endif
