/* table.h - the benchmark's kernels of one instruction set, by their numbers in list.def. */
#ifndef PROPTIM_BENCH_TABLE_H
#define PROPTIM_BENCH_TABLE_H

#include "proptim.h"

enum {
#define PROPTIM_RULE(name, arrays, marks, coefs) BENCH_##name,
#include "list.def"
#undef PROPTIM_RULE
    BENCH_KERNELS
};

struct bench_isa {
    const char *name;
    proptim_kernel *kernels[BENCH_KERNELS][PROPTIM_DTYPES];
};

extern const struct bench_isa bench_isa_scalar, bench_isa_avx2, bench_isa_avx512, bench_isa_neon;

#endif
