/*
 * isa.h - the table of kernels that each kernels_<isa>.c exports, and the only thing that it exports.
 *
 * Internal.  An inline function compiled with -mavx2 may be the copy that the linker keeps for the whole program, and
 * old CPUs then die in it; so those files hold static functions only, and no header with inline ones.
 */
#ifndef PROPTIM_ISA_H
#define PROPTIM_ISA_H

#include "proptim.h"

/* Sum of the squares of n <= PROPTIM_BLOCK elements in the order that reduce.c describes. */
typedef double proptim_squares(const void *x, size_t n);

struct proptim_isa {
    const char *name;
    proptim_kernel *rules[PROPTIM_RULES][PROPTIM_DTYPES];
    proptim_kernel *stages[PROPTIM_STAGES][PROPTIM_DTYPES];
    proptim_squares *squares[PROPTIM_DTYPES];
};

/* What is asked for, or the best that runs here where that is NULL. */
const proptim_isa *proptim_isa_or_best(const proptim_isa *isa);

extern const struct proptim_isa proptim_isa_scalar;
extern const struct proptim_isa proptim_isa_avx2;
extern const struct proptim_isa proptim_isa_avx512;
extern const struct proptim_isa proptim_isa_neon;

#endif
