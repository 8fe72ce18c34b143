/*
 * reduce.c - global norm and finite check, the same bits for every instruction set, layout and backend.
 *
 * The elements of each array in C order are cut into blocks of PROPTIM_BLOCK.  A block is summed in 16 fixed lanes
 * (table.inc).  The sums of the blocks of all arrays, in order, are added in pairs of neighbours until one is left.
 * Where several processes have parts of the arrays, each sums its own blocks, and a process that has collected all sums
 * adds them up.  The array of a table is the gradients of its rows, each added up.
 */
#include <math.h>
#include <stdint.h>

#include "fpenv.h"
#include "isa.h"
#include "parts.h"
#include "rows.h"
#include "strided.h"

static size_t size_of(const proptim_view *v)
{
    size_t size = 1;
    for (int d = 0; d < v->ndim; d++) size *= (size_t)v->shape[d];
    return size;
}

static int is_dense(const proptim_view *v, int plane, size_t itemsize)
{
    ptrdiff_t stride = (ptrdiff_t)itemsize;
    if ((uintptr_t)v->planes[plane] % itemsize != 0) return 0;
    for (int d = v->ndim - 1; d >= 0; stride *= v->shape[d], d--)
        if (v->shape[d] != 1 && v->strides[plane][d] != stride) return 0;
    return 1;
}

/* Bit p: plane p is one aligned dense run. */
static unsigned dense_planes(const proptim_view *v)
{
    unsigned dense = 0;
    for (int p = 0; p < 2 && v->planes[p]; p++)
        dense |= (unsigned)is_dense(v, p, proptim_itemsize(v->dtype, v->format, p)) << p;
    return dense;
}

/* Elements begin .. begin + n of a plane as one dense run: in place, or gathered.  `dense` is from dense_planes(). */
static void *dense_run(const proptim_view *v, unsigned dense, int plane, size_t begin, size_t n, void *room)
{
    const size_t itemsize = proptim_itemsize(v->dtype, v->format, plane);
    if (dense >> plane & 1) return (char *)v->planes[plane] + begin * itemsize;
    proptim_gather(v->planes[plane], v->ndim, (const size_t *)v->shape, v->strides[plane], itemsize, begin, n, room);
    return room;
}

/* Elements begin .. begin + n of a view in its dtype, as one dense run: in place, or converted into `block`. */
static const void *loaded(const proptim_isa *isa, const proptim_view *v, unsigned dense, size_t begin, size_t n,
                          double *block)
{
    enum { ROOM = 512 }; /* elements that are gathered at a time: 4 KiB a plane */
    if (v->format == PROPTIM_PLAIN) return dense_run(v, dense, 0, begin, n, block);
    const size_t itemsize = v->dtype == PROPTIM_F32 ? 4 : 8;
    double rooms[2][ROOM];
    for (size_t i = 0, size; i < n; i += size) {
        size = n - i < ROOM ? n - i : ROOM;
        void *operands[3] = { (char *)block + i * itemsize };
        for (int p = 0; p < 2 && v->planes[p]; p++) operands[1 + p] = dense_run(v, dense, p, begin + i, size, rooms[p]);
        isa->loads[v->format][v->dtype](operands, size);
    }
    return block;
}

static int all_finite(const void *x, proptim_dtype dtype, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(dtype == PROPTIM_F32 ? (double)((const float *)x)[i] : ((const double *)x)[i])) return 0;
    return 1;
}

static size_t blocks_of(size_t size) { return (size + PROPTIM_BLOCK - 1) / PROPTIM_BLOCK; }

size_t proptim_reduce_partials(const proptim_view *views, size_t count)
{
    size_t blocks = 0;
    for (size_t i = 0; i < count; i++) blocks += blocks_of(size_of(&views[i]));
    return blocks;
}

struct reduction {
    const proptim_isa *isa;
    const proptim_view *views;
    size_t count, blocks;
    double *partials;
    const proptim_table *table; /* in the place of views, of which it then counts as one; or NULL */
};

static size_t elements_of(const struct reduction *r, size_t i)
{
    return r->table ? r->table->distinct * r->table->first.size : size_of(&r->views[i]);
}

static proptim_dtype dtype_of(const struct reduction *r, size_t i)
{
    return r->table ? r->table->first.dtype : r->views[i].dtype;
}

/* Elements begin .. begin + n of array i in the dtype that they are summed in. */
static const void *elements(const struct reduction *r, size_t i, unsigned dense, size_t begin, size_t n, double *block)
{
    if (!r->table) return loaded(r->isa, &r->views[i], dense, begin, n, block);
    proptim_rows_sums(r->isa, r->table, begin, n, block);
    return block;
}

/* One part: its blocks, counted through all views. */
static void run_part(void *data, int part, int parts)
{
    const struct reduction *r = (const struct reduction *)data;
    const fpenv saved = fpenv_enter();
    const size_t begin = part_begin(r->blocks, part, parts), end = part_begin(r->blocks, part + 1, parts);
    double block[PROPTIM_BLOCK];
    size_t at = 0;
    for (size_t i = 0; i < r->count && at < end; i++) {
        const size_t size = elements_of(r, i), blocks = blocks_of(size);
        const unsigned dense = r->table ? 0 : dense_planes(&r->views[i]);
        for (size_t b = begin > at ? begin - at : 0; b < blocks && at + b < end; b++) {
            const size_t from = b * PROPTIM_BLOCK, n = size - from < PROPTIM_BLOCK ? size - from : PROPTIM_BLOCK;
            r->partials[at + b] = r->isa->squares[dtype_of(r, i)](elements(r, i, dense, from, n, block), n);
        }
        at += blocks;
    }
    fpenv_leave(saved);
}

/* Whether every element is finite.  Only a block whose sum is not finite is examined: finite elements can overflow. */
static int finite_all(const struct reduction *r)
{
    double block[PROPTIM_BLOCK];
    const double *partial = r->partials;
    for (size_t i = 0; i < r->count; i++) {
        const size_t size = elements_of(r, i);
        const unsigned dense = r->table ? 0 : dense_planes(&r->views[i]);
        for (size_t from = 0; from < size; from += PROPTIM_BLOCK) {
            const size_t n = size - from < PROPTIM_BLOCK ? size - from : PROPTIM_BLOCK;
            if (isfinite(*partial++)) continue;
            if (!all_finite(elements(r, i, dense, from, n, block), dtype_of(r, i), n)) return 0;
        }
    }
    return 1;
}

static int reduce(struct reduction *r, int threads, proptim_parallel *parallel)
{
    if (threads > 1 && parallel)
        parallel(run_part, r, parts_of(r->blocks * PROPTIM_BLOCK, r->count, threads), threads);
    else
        run_part(r, 0, 1);
    const fpenv saved = fpenv_enter();
    const int finite = finite_all(r);
    fpenv_leave(saved);
    return finite;
}

void proptim_reduce_blocks(const proptim_isa *isa, const proptim_view *views, size_t count, double *partials,
                           int *finite, int threads, proptim_parallel *parallel)
{
    const size_t blocks = proptim_reduce_partials(views, count);
    struct reduction r = { proptim_isa_or_best(isa), views, count, blocks, partials, NULL };
    *finite = reduce(&r, threads, parallel);
}

size_t proptim_reduce_rows_partials(const proptim_table *table)
{
    return blocks_of(table->distinct * table->first.size);
}

void proptim_reduce_rows(const proptim_isa *isa, const proptim_table *table, double *partials, int *finite, int threads,
                         proptim_parallel *parallel)
{
    const size_t blocks = proptim_reduce_rows_partials(table);
    struct reduction r = { proptim_isa_or_best(isa), NULL, 1, blocks, partials, table };
    *finite = reduce(&r, threads, parallel);
}

double proptim_reduce_tree(double *partials, size_t blocks)
{
    const fpenv saved = fpenv_enter();
    for (size_t step = 1; step < blocks; step *= 2)
        for (size_t i = 0; i + step < blocks; i += 2 * step) partials[i] += partials[i + step];
    fpenv_leave(saved);
    return blocks ? partials[0] : 0.0;
}

double proptim_reduce(const proptim_isa *isa, const proptim_view *views, size_t count, double *partials, int *finite,
                      int threads, proptim_parallel *parallel)
{
    proptim_reduce_blocks(isa, views, count, partials, finite, threads, parallel);
    return proptim_reduce_tree(partials, proptim_reduce_partials(views, count));
}
