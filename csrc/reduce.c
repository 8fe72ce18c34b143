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

static int all_finite(const void *x, proptim_dtype dtype, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(dtype == PROPTIM_F32 ? (double)((const float *)x)[i] : ((const double *)x)[i])) return 0;
    return 1;
}

size_t proptim_reduce_partials(const proptim_view *views, size_t count)
{
    size_t blocks = 0;
    for (size_t i = 0; i < count; i++) blocks += (size_of(&views[i]) + PROPTIM_BLOCK - 1) / PROPTIM_BLOCK;
    return blocks;
}

double proptim_reduce(const proptim_isa *isa, const proptim_view *views, size_t count, double *partials, int *finite)
{
    const fpenv saved = fpenv_enter();
    double scratch[PROPTIM_BLOCK];
    size_t blocks = 0;
    *finite = 1;
    for (size_t i = 0; i < count; i++) {
        const proptim_view *v = &views[i];
        const size_t itemsize = v->dtype == PROPTIM_F32 ? 4 : 8, size = size_of(v);
        const int dense = is_dense(v, itemsize);
        for (size_t begin = 0; begin < size; begin += PROPTIM_BLOCK) {
            const size_t n = size - begin < PROPTIM_BLOCK ? size - begin : PROPTIM_BLOCK;
            const void *x = scratch;
            if (dense)
                x = (const char *)v->data + begin * itemsize;
            else
                proptim_gather(v->data, v->ndim, (const size_t *)v->shape, v->strides, itemsize, begin, n, scratch);
            const double sum = isa->squares[v->dtype](x, n);
            /* A sum that is not finite may also be an overflow of finite doubles. */
            if (!isfinite(sum) && !all_finite(x, v->dtype, n)) *finite = 0;
            partials[blocks++] = sum;
        }
    }
    for (size_t step = 1; step < blocks; step *= 2)
        for (size_t i = 0; i + step < blocks; i += 2 * step) partials[i] += partials[i + step];
    fpenv_leave(saved);
    return blocks ? partials[0] : 0.0;
}
