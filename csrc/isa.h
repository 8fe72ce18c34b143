/*
 * isa.h - the table of kernels that each kernels_<isa>.c exports, and the only thing that it exports.
 *
 * Internal.  An inline function compiled with -mavx2 may be the copy that the linker keeps for the whole program, and
 * an old CPU then stops at an illegal instruction.  So those files hold only static functions, and include no header
 * with inline functions.
 */
#ifndef PROPTIM_ISA_H
#define PROPTIM_ISA_H

#include <stdatomic.h>

#include "proptim.h"

/* Sum of the squares of n <= PROPTIM_BLOCK elements in the order that reduce.c describes. */
typedef double proptim_squares(const void *x, size_t n);

/* Load or store of a codec: n elements of a block, arrays[0], and of two planes, of which the second may be NULL. */
typedef void proptim_codec(void *const *arrays, size_t n);

/* Words of random bits for n elements, whose indices begin at `index` and go up by `step`, modulo 2^32: see random.h.
 */
typedef void proptim_random(uint32_t *words, size_t n, uint64_t key, uint32_t index, uint32_t step);

/* Round n elements of a block at random to numbers of a format with these: see codecs/dither.h. */
typedef void proptim_dither(void *block, const uint32_t *words, size_t n, int fraction, int bias);

/* Round n elements, whole blocks of PROPTIM_QUANTA and one at the end, at random to so many levels: see bytes.inc. */
typedef void proptim_dither_levels(void *block, const uint32_t *words, size_t n, int levels);

/* Of formats that may round at random: bits of the fraction and bias of the exponent, or a number of levels; else 0. */
struct proptim_narrow {
    int fraction, bias, levels;
};
extern const struct proptim_narrow proptim_narrows[PROPTIM_FORMATS];

/*
 * A rule, with the stages around it whose bits are in `on`, on elements begin .. end of dense arrays of float32, plain
 * or in a format that fused.inc supports.  It leaves out the last elements if they do not fill a vector, and returns
 * the index of the first element that it left out.  If all arrays are plain, `on` has bits of PROPTIM_FUSED_STAGES
 * only: these take no time in the loop of a rule, and the others are rare there.
 */
typedef size_t proptim_fused(const proptim_plane_array *arrays, const proptim_row *row, unsigned on, size_t begin,
                             size_t end);
enum { PROPTIM_FUSED_STAGES = 1 << PROPTIM_decay | 1 << PROPTIM_scale | 1 << PROPTIM_l2 };

struct proptim_isa {
    const char *name;
    proptim_kernel *rules[PROPTIM_RULES][PROPTIM_DTYPES];
    proptim_kernel *stages[PROPTIM_STAGES][PROPTIM_DTYPES];
    proptim_codec *loads[PROPTIM_FORMATS][PROPTIM_DTYPES], *stores[PROPTIM_FORMATS][PROPTIM_DTYPES];
    proptim_dither *dithers[PROPTIM_DTYPES];
    proptim_dither_levels *dither_levels;
    proptim_random *random;
    proptim_squares *squares[PROPTIM_DTYPES];
    proptim_fused *fused[PROPTIM_RULES]; /* NULL for the instruction set without vectors, scalar */
};

/*
 * Which vectors of float32 compute their square root by multiplications: those whose first index i has all of these
 * bits set.  16 is every second vector, 48 every fourth, and 1 none, because i is a multiple of 16.  proptim_isa_find()
 * sets it for this CPU; the bits of results do not depend on it.
 */
extern atomic_size_t proptim_mixed_roots;

/* The argument, or the best instruction set that runs here if it is NULL. */
const proptim_isa *proptim_isa_or_best(const proptim_isa *isa);

extern const struct proptim_isa proptim_isa_scalar;
extern const struct proptim_isa proptim_isa_avx2;
extern const struct proptim_isa proptim_isa_avx512;
extern const struct proptim_isa proptim_isa_neon;

#endif
