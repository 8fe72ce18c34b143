/* rows.h - the rows of a table that have a gradient, as one array of `distinct` rows in C order.  Internal. */
#ifndef PROPTIM_ROWS_H
#define PROPTIM_ROWS_H

#include "proptim.h"

/* Elements begin .. begin + n of the summed gradients, in the dtype of the rule. */
void proptim_rows_sums(const proptim_isa *isa, const proptim_table *table, size_t begin, size_t n, void *dense);

/* Set the same elements of the values to zero, in every entry of a row. */
void proptim_rows_zero(const proptim_table *table, size_t begin, size_t n);

/* Copy the same elements of a plane of array j, the parameter or a state array, to dense memory or from it. */
void proptim_rows_copy(const proptim_table *table, int j, int plane, size_t begin, size_t n, void *dense, int to_dense);

/* What of a row is prefetched: where the first row of each plane is, how far it is to the next, and its bytes. */
struct proptim_ahead {
    int count;
    struct {
        const char *first;
        ptrdiff_t stride;
        size_t bytes;
        int values; /* whether it is a plane of the values */
    } planes[2 * PROPTIM_MAX_ARRAYS];
};
void proptim_rows_ahead(const proptim_table *table, struct proptim_ahead *ahead);

/* Prefetch row d into the caches, if there is one, while others are stepped. */
void proptim_rows_prefetch(const proptim_table *table, const struct proptim_ahead *ahead, size_t d);

enum {
    /*
     * A row is prefetched this many rows before it is stepped: a step of a row takes 10 to 50 ns, and the latency of
     * memory is 100 to 150 ns.
     */
    ROWS_AHEAD = 8
};

/* The address of a row of a plane. */
static inline char *proptim_row_at(const proptim_table *table, int j, int plane, size_t row)
{
    return (char *)table->first.arrays[j].planes[plane] + (ptrdiff_t)row * table->strides[j][plane];
}

/* The index, in the parameter, of row d of those that have a gradient. */
static inline size_t proptim_row_of(const proptim_table *table, size_t d)
{
    return table->entries[2 * table->starts[d]];
}

#endif
