/*
 * reduce.c - global norm and finite check, the same bits for every instruction set, layout and backend.
 *
 * The elements of each array in C order are cut into blocks of PROPTIM_BLOCK; a block is summed in 16 fixed lanes
 * (kernels_type.inc); the blocks of all arrays in turn are added in pairs, neighbours first.
 */
#include <math.h>
#include <stdint.h>

#include "fpenv.h"
#include "isa.h"
#include "parts.h"
#include "strided.h"

static size_t size_of(const proptim_view *v)
{
    size_t size = 1;
    for (int d = 0; d < v->ndim; d++) size *= (size_t)v->shape[d];
    return size;
}

static int is_dense(const proptim_view *v, size_t itemsize)
{
    ptrdiff_t stride = (ptrdiff_t)itemsize;
    if ((uintptr_t)v->data % itemsize != 0) return 0;
    for (int d = v->ndim - 1; d >= 0; stride *= v->shape[d], d--)
        if (v->shape[d] != 1 && v->strides[d] != stride) return 0;
    return 1;
}

/* Elements begin .. begin + n of a view in one dense run: in its memory, or gathered. */
static const void *dense_run(const proptim_view *v, size_t begin, size_t n, void *scratch)
{
    const size_t itemsize = v->dtype == PROPTIM_F32 ? 4 : 8;
    if (is_dense(v, itemsize)) return (const char *)v->data + begin * itemsize;
    proptim_gather(v->data, v->ndim, (const size_t *)v->shape, v->strides, itemsize, begin, n, scratch);
    return scratch;
}

static int all_finite(const void *x, proptim_dtype dtype, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(dtype == PROPTIM_F32 ? (double)((const float *)x)[i] : ((const double *)x)[i])) return 0;
    return 1;
}

static size_t blocks_of(const proptim_view *v) { return (size_of(v) + PROPTIM_BLOCK - 1) / PROPTIM_BLOCK; }

size_t proptim_reduce_partials(const proptim_view *views, size_t count)
{
    size_t blocks = 0;
    for (size_t i = 0; i < count; i++) blocks += blocks_of(&views[i]);
    return blocks;
}

struct reduction {
    const proptim_isa *isa;
    const proptim_view *views;
    size_t count, blocks;
    double *partials;
};

/* One part: its blocks, counted through all views. */
static void run_part(void *data, int part, int parts)
{
    const struct reduction *r = (const struct reduction *)data;
    const fpenv saved = fpenv_enter();
    const size_t begin = part_begin(r->blocks, part, parts), end = part_begin(r->blocks, part + 1, parts);
    double scratch[PROPTIM_BLOCK];
    size_t at = 0;
    for (size_t i = 0; i < r->count && at < end; i++) {
        const proptim_view *v = &r->views[i];
        const size_t size = size_of(v), blocks = blocks_of(v);
        for (size_t b = begin > at ? begin - at : 0; b < blocks && at + b < end; b++) {
            const size_t from = b * PROPTIM_BLOCK, n = size - from < PROPTIM_BLOCK ? size - from : PROPTIM_BLOCK;
            r->partials[at + b] = r->isa->squares[v->dtype](dense_run(v, from, n, scratch), n);
        }
        at += blocks;
    }
    fpenv_leave(saved);
}

/* Whether every element is finite; only a block whose sum is not has to be looked at, for finite doubles overflow. */
static int finite_all(const struct reduction *r)
{
    double scratch[PROPTIM_BLOCK];
    const double *partial = r->partials;
    for (size_t i = 0; i < r->count; i++) {
        const proptim_view *v = &r->views[i];
        const size_t size = size_of(v);
        for (size_t from = 0; from < size; from += PROPTIM_BLOCK) {
            const size_t n = size - from < PROPTIM_BLOCK ? size - from : PROPTIM_BLOCK;
            if (!isfinite(*partial++) && !all_finite(dense_run(v, from, n, scratch), v->dtype, n)) return 0;
        }
    }
    return 1;
}

double proptim_reduce(const proptim_isa *isa, const proptim_view *views, size_t count, double *partials, int *finite,
                      int threads, proptim_parallel *parallel)
{
    struct reduction r = { proptim_isa_or_best(isa), views, count, proptim_reduce_partials(views, count), partials };
    if (threads > 1 && parallel)
        parallel(run_part, &r, parts_of(r.blocks * PROPTIM_BLOCK, count, threads), threads);
    else
        run_part(&r, 0, 1);
    *finite = finite_all(&r);
    const fpenv saved = fpenv_enter();
    for (size_t step = 1; step < r.blocks; step *= 2)
        for (size_t i = 0; i + step < r.blocks; i += 2 * step) partials[i] += partials[i + step];
    fpenv_leave(saved);
    return r.blocks ? partials[0] : 0.0;
}
