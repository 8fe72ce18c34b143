/*
 * strided.c - sort and merge axes so that most arrays become one dense run, and copy blocks of the others.
 */
#include "strided.h"

#include <stdint.h>
#include <string.h>

size_t proptim_itemsize(proptim_dtype dtype, int format, int plane)
{
#define BYTES(first, second)                     { first, second }
#define PROPTIM_CODEC(NAME, name, bytes, arrays) BYTES bytes,
#define PROPTIM_CODEC_F32                        PROPTIM_CODEC
#define PROPTIM_CODEC_F64                        PROPTIM_CODEC
    static const uint8_t of_format[PROPTIM_FORMATS][2] = {
        { 0, 0 },
#include "codecs.def"
    };
#undef BYTES
#undef PROPTIM_CODEC
#undef PROPTIM_CODEC_F32
#undef PROPTIM_CODEC_F64
    const size_t bytes = of_format[format][plane];
    return bytes ? bytes : dtype == PROPTIM_F32 ? 4 : 8;
}

enum {
    PLANES = 2 * PROPTIM_MAX_ARRAYS, /* of a segment: plane k is plane k % 2 of array k / 2 */
    STRIDES                          /* of planes, and then those of the index */
};

/* The strides of plane k, or of the index in C order; NULL where it has none or is absent. */
static ptrdiff_t *strides_of(const proptim_segment *s, int k)
{
    if (k == PLANES) return s->order;
    const proptim_plane_array *a = &s->arrays[k / 2];
    return a->planes[k % 2] && !proptim_shared(a->format, k % 2) ? a->strides[k % 2] : NULL;
}

/* Exchange, drop or merge an axis in the shape and in every plane's strides. */
static void move_axis(proptim_segment *s, int from, int to)
{
    s->shape[to] = s->shape[from];
    for (int k = 0; k < STRIDES; k++) {
        ptrdiff_t *const strides = strides_of(s, k);
        if (strides) strides[to] = strides[from];
    }
}

static void swap_axes(proptim_segment *s, int a, int b)
{
    size_t n = s->shape[a];
    s->shape[a] = s->shape[b], s->shape[b] = n;
    for (int k = 0; k < STRIDES; k++) {
        ptrdiff_t *const strides = strides_of(s, k);
        if (!strides) continue;
        const ptrdiff_t stride = strides[a];
        strides[a] = strides[b], strides[b] = stride;
    }
}

/* Drop the axes of length 1, and all where there are no elements. */
static void drop_axes(proptim_segment *s)
{
    int ndim = 0;
    s->size = 1;
    for (int d = 0; d < s->ndim; d++) {
        s->size *= s->shape[d];
        if (s->shape[d] != 1) move_axis(s, d, ndim++);
    }
    s->ndim = s->size ? ndim : 0;
}

/*
 * The order of elements does not matter to a rule: visit the parameters in the order of their addresses.  It matters to
 * formats with a scale for each block: these stay in C order.
 */
static void order_axes(proptim_segment *s)
{
    for (int j = 0; j < PROPTIM_MAX_ARRAYS; j++)
        if (s->arrays[j].format == PROPTIM_INT8 || s->arrays[j].format == PROPTIM_SQUARES8) return;
    for (int d = 0; d < s->ndim; d++)
        if (s->arrays[PROPTIM_PARAMS].strides[0][d] < 0)
            for (int k = 0; k < STRIDES; k++) {
                ptrdiff_t *const strides = strides_of(s, k);
                if (!strides) continue;
                const ptrdiff_t last = (ptrdiff_t)(s->shape[d] - 1) * strides[d];
                if (k == PLANES)
                    s->first += (uint64_t)last;
                else
                    s->arrays[k / 2].planes[k % 2] = (char *)s->arrays[k / 2].planes[k % 2] + last;
                strides[d] = -strides[d];
            }
    const ptrdiff_t *const first = s->arrays[PROPTIM_PARAMS].strides[0];
    for (int d = 1; d < s->ndim; d++)
        for (int e = d; e > 0 && first[e - 1] < first[e]; e--) swap_axes(s, e - 1, e);
}

/* Set the strides of the index in C order. */
static void order_elements(proptim_segment *s)
{
    ptrdiff_t stride = 1;
    for (int d = s->ndim - 1; s->order && d >= 0; stride *= (ptrdiff_t)s->shape[d--]) s->order[d] = stride;
}

/*
 * Merge an axis into the next inner one if its stride in every plane is the whole extent of the inner axis; then find
 * the arrays that are dense.
 */
static void merge_axes(proptim_segment *s)
{
    int ndim = s->ndim, inner = ndim - 1;
    for (int d = ndim - 2; d >= 0; d--) {
        int merge = 1;
        for (int k = 0; k < STRIDES; k++) {
            const ptrdiff_t *const strides = strides_of(s, k);
            merge = merge && (!strides || strides[d] == (ptrdiff_t)s->shape[inner] * strides[inner]);
        }
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
    s->dense = PROPTIM_DENSE;
    for (int k = 0; k < PLANES; k++) {
        const proptim_plane_array *a = &s->arrays[k / 2];
        const ptrdiff_t *const strides = strides_of(s, k);
        if (!strides) continue;
        const size_t itemsize = proptim_itemsize(s->dtype, a->format, k % 2);
        size_t stride = itemsize;
        int dense = (uintptr_t)a->planes[k % 2] % itemsize == 0; /* a field of a packed record is gathered */
        for (int d = ndim - 1; d >= 0; stride *= s->shape[d], d--) dense = dense && strides[d] == (ptrdiff_t)stride;
        if (!dense) s->dense &= ~(1u << k / 2);
    }
    if (s->dense == PROPTIM_DENSE) {
        int plain = 1;
        for (int j = 0; j < PROPTIM_MAX_ARRAYS; j++) plain = plain && s->arrays[j].format == PROPTIM_PLAIN;
        if (!s->order || !ndim || (ndim == 1 && s->order[0] == 1)) s->ndim = 0;
        if (plain) s->dense = PROPTIM_DENSE_PLAIN;
    }
}

void proptim_layout(proptim_segment *s)
{
    order_elements(s);
    drop_axes(s);
    order_axes(s);
    merge_axes(s);
}

void proptim_rows_layout(proptim_table *table)
{
    proptim_segment *s = &table->first;
    s->order = NULL; /* elements stay in C order */
    table->length = *s->shape++;
    s->ndim--;
    for (int k = 0; k < PLANES; k++)
        if (strides_of(s, k)) table->strides[k / 2][k % 2] = *s->arrays[k / 2].strides[k % 2]++;
    drop_axes(s);
    merge_axes(s); /* C order is also that in which reduce.c takes them */
}

/* Copy to dense memory or from it, one innermost run at a time; the other indices count like an odometer. */
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
        if (itemsize == 1)
            for (size_t i = 0; i < run; i++, at += step, dense++) *(to_dense ? dense : at) = *(to_dense ? at : dense);
        else if (itemsize == 2)
            for (size_t i = 0; i < run; i++, at += step, dense += 2)
                memcpy(to_dense ? dense : at, to_dense ? at : dense, 2);
        else if (itemsize == 4)
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
