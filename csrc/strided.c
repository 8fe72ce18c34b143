/*
 * strided.c - axes sorted and merged so that most arrays become one dense run, and block copies for the rest.
 */
#include "strided.h"

#include <stdint.h>
#include <string.h>

/* Exchange, drop or merge an axis in the shape and in every array's strides. */
static void move_axis(proptim_segment *s, int from, int to)
{
    s->shape[to] = s->shape[from];
    for (int j = 0; j < PROPTIM_MAX_ARRAYS; j++)
        if (s->arrays[j]) s->strides[j][to] = s->strides[j][from];
}

static void swap_axes(proptim_segment *s, int a, int b)
{
    size_t n = s->shape[a];
    s->shape[a] = s->shape[b], s->shape[b] = n;
    for (int j = 0; j < PROPTIM_MAX_ARRAYS; j++)
        if (s->arrays[j]) {
            ptrdiff_t stride = s->strides[j][a];
            s->strides[j][a] = s->strides[j][b], s->strides[j][b] = stride;
        }
}

void proptim_layout(proptim_segment *s)
{
    const size_t itemsize = s->dtype == PROPTIM_F32 ? 4 : 8;
    int ndim = 0;
    s->size = 1;
    for (int d = 0; d < s->ndim; d++) {
        s->size *= s->shape[d];
        if (s->shape[d] != 1) move_axis(s, d, ndim++);
    }
    if (s->size == 0) ndim = 0;

    /* The order of elements does not matter to a rule: go through the parameters as they lie in memory. */
    for (int d = 0; d < ndim; d++)
        if (s->strides[PROPTIM_PARAMS][d] < 0)
            for (int j = 0; j < PROPTIM_MAX_ARRAYS; j++)
                if (s->arrays[j]) {
                    s->arrays[j] = (char *)s->arrays[j] + (ptrdiff_t)(s->shape[d] - 1) * s->strides[j][d];
                    s->strides[j][d] = -s->strides[j][d];
                }
    const ptrdiff_t *const strides = s->strides[PROPTIM_PARAMS];
    for (int d = 1; d < ndim; d++)
        for (int e = d; e > 0 && strides[e - 1] < strides[e]; e--) swap_axes(s, e - 1, e);

    /* Merge an axis into the next inner one where every array steps over the whole of that. */
    int inner = ndim - 1;
    for (int d = ndim - 2; d >= 0; d--) {
        int merge = 1;
        for (int j = 0; j < PROPTIM_MAX_ARRAYS; j++)
            merge = merge && (!s->arrays[j] || s->strides[j][d] == (ptrdiff_t)s->shape[inner] * s->strides[j][inner]);
        if (merge) {
            s->shape[inner] *= s->shape[d];
        } else if (--inner != d) {
            move_axis(s, d, inner);
        }
    }
    if (ndim > 0) {
        for (int d = inner; d < ndim; d++) move_axis(s, d, d - inner);
        ndim -= inner;
    }

    s->ndim = ndim;
    s->dense = 0;
    int all = 1;
    for (int j = 0; j < PROPTIM_MAX_ARRAYS; j++) {
        int dense = 1;
        if (s->arrays[j]) {
            size_t stride = itemsize;
            dense = (uintptr_t)s->arrays[j] % itemsize == 0; /* a field of a packed record is gathered */
            for (int d = ndim - 1; d >= 0; stride *= s->shape[d], d--)
                dense = dense && s->strides[j][d] == (ptrdiff_t)stride;
        }
        s->dense |= (unsigned)dense << j;
        all = all && dense;
    }
    if (all) s->ndim = 0;
}

/* Both directions of a copy: `to_dense` or from it.  One inner run at a time, indices counted like an odometer. */
static inline void copy(char *array, int ndim, const size_t *shape, const ptrdiff_t *strides, size_t itemsize,
                        size_t start, size_t count, char *dense, int to_dense)
{
    size_t index[PROPTIM_MAX_DIMS];
    if (ndim == 0) {
        memcpy(to_dense ? dense : array, to_dense ? array : dense, itemsize * count); /* one element, or none */
        return;
    }
    for (int d = ndim - 1; d >= 0; d--) {
        index[d] = start % shape[d];
        start /= shape[d];
        array += (ptrdiff_t)index[d] * strides[d];
    }
    const int last = ndim - 1;
    const ptrdiff_t step = strides[last];
    while (count > 0) {
        size_t run = shape[last] - index[last];
        if (run > count) run = count;
        char *at = array;
        if (itemsize == 4)
            for (size_t i = 0; i < run; i++, at += step, dense += 4)
                memcpy(to_dense ? dense : at, to_dense ? at : dense, 4);
        else
            for (size_t i = 0; i < run; i++, at += step, dense += 8)
                memcpy(to_dense ? dense : at, to_dense ? at : dense, 8);
        count -= run;
        if (count == 0) break;
        array -= (ptrdiff_t)index[last] * step;
        index[last] = 0;
        for (int d = last - 1; d >= 0; d--) {
            array += strides[d];
            if (++index[d] < shape[d]) break;
            array -= (ptrdiff_t)shape[d] * strides[d];
            index[d] = 0;
        }
    }
}

void proptim_gather(const void *array, int ndim, const size_t *shape, const ptrdiff_t *strides, size_t itemsize,
                    size_t start, size_t count, void *dense)
{
    copy((char *)array, ndim, shape, strides, itemsize, start, count, (char *)dense, 1);
}

void proptim_scatter(void *array, int ndim, const size_t *shape, const ptrdiff_t *strides, size_t itemsize,
                     size_t start, size_t count, const void *dense)
{
    copy((char *)array, ndim, shape, strides, itemsize, start, count, (char *)dense, 0);
}
