/* strided.h - memory that is not one dense run.  Internal. */
#ifndef PROPTIM_STRIDED_H
#define PROPTIM_STRIDED_H

#include "proptim.h"

/*
 * proptim_layout() sets `dense` to this if every array is a dense run and plain, so that steps of many small segments
 * need not check the formats.  It is not ~0u, because programs may set that themselves for any format.
 */
enum { PROPTIM_DENSE_PLAIN = 2 * PROPTIM_DENSE + 1 };

/* Bytes of an element of a plane. */
size_t proptim_itemsize(proptim_dtype dtype, int format, int plane);

/* Whether elements share those of a plane, which is then one dense run: blocks of them, or all. */
static inline int proptim_shared(int format, int plane) { return plane == 1 && format >= PROPTIM_INT8; }

/* Where a dense plane has what belongs to the elements from number `begin` on. */
static inline void *proptim_plane_at(proptim_dtype dtype, const proptim_plane_array *a, int plane, size_t begin)
{
    if (proptim_shared(a->format, plane)) begin = a->format == PROPTIM_STEPS8 ? 0 : begin / PROPTIM_QUANTA;
    return (char *)a->planes[plane] + begin * proptim_itemsize(dtype, a->format, plane);
}

/*
 * Copy elements start .. start + count, counted in C order, of an array with this shape and these byte strides, to
 * dense memory (gather) or from it (scatter).
 */
void proptim_gather(const void *array, int ndim, const size_t *shape, const ptrdiff_t *strides, size_t itemsize,
                    size_t start, size_t count, void *dense);
void proptim_scatter(void *array, int ndim, const size_t *shape, const ptrdiff_t *strides, size_t itemsize,
                     size_t start, size_t count, const void *dense);

#endif
