/*
 * rows.c - gradients of some rows of a parameter: sort indices, add up repeated rows, copy rows to blocks and back.
 */
#include "rows.h"

#include <string.h>

#include "isa.h"
#include "strided.h"

#if defined(__GNUC__)
#define PREFETCH(address) __builtin_prefetch(address, 1)
#else
#define PREFETCH(address) ((void)(address))
#endif

enum {
    DIGIT = 11, /* bits of an index that are sorted at a time: 16 KiB of counts stay in L1; a million rows take two */
    ROOM = 512, /* elements that are loaded at a time: 4 KiB */
    LINE = 64,  /* bytes of a cache line */
    LINES = 16  /* of a row that are prefetched at most; the hardware prefetcher loads the rest of a longer row */
};

/* Indices ---------------------------------------------------------------------------------------------------------- */

struct entry {
    size_t row, at; /* of the parameter, and of the values */
};

size_t proptim_rows_scratch(size_t count) { return 4 * count + 1; }

/* Stable radix sort by row; `most` is the largest.  Returns the one of the two arrays that has the result. */
static struct entry *sort(struct entry *from, struct entry *to, size_t count, size_t most)
{
    for (unsigned shift = 0; most; most >>= DIGIT, shift += DIGIT) {
        size_t next[1 << DIGIT] = { 0 }, at = 0;
        for (size_t i = 0; i < count; i++) next[from[i].row >> shift & ((1 << DIGIT) - 1)]++;
        for (size_t digit = 0; digit < 1 << DIGIT; digit++) {
            const size_t size = next[digit];
            next[digit] = at;
            at += size;
        }
        for (size_t i = 0; i < count; i++) to[next[from[i].row >> shift & ((1 << DIGIT) - 1)]++] = from[i];
        struct entry *const sorted = to;
        to = from;
        from = sorted;
    }
    return from;
}

size_t proptim_rows_sort(proptim_table *table, const int64_t *indices, size_t *scratch)
{
    const size_t count = table->count;
    struct entry *const first = (struct entry *)scratch, *const second = first + count;
    size_t most = 0;
    int ascends = 1;
    table->distinct = 0;
    for (size_t i = 0; i < count; i++) {
        const int64_t index = indices[i];
        if (index < 0 || (uint64_t)index >= table->length) return i;
        first[i] = (struct entry){ (size_t)index, i };
        ascends &= most <= (size_t)index;
        if (most < (size_t)index) most = (size_t)index;
    }
    const struct entry *const sorted = ascends ? first : sort(first, second, count, most);
    size_t *const starts = (size_t *)(sorted == first ? second : first);
    for (size_t i = 0; i < count; i++)
        if (i == 0 || sorted[i].row != sorted[i - 1].row) starts[table->distinct++] = i;
    starts[table->distinct] = count;
    table->entries = &scratch[2 * (size_t)(sorted - first)];
    table->starts = starts;
    return count;
}

/* Prefetch every cache line of some bytes, which need not begin at one: arrays of NumPy begin 16 bytes after one. */
static void prefetch(const char *begin, size_t bytes)
{
    const char *const end = begin + bytes;
    for (begin -= (size_t)begin % LINE; begin < end; begin += LINE) PREFETCH(begin);
}

/* Elements --------------------------------------------------------------------------------------------------------- */

/* The elements of one row among begin .. begin + n of all rows. */
struct piece {
    size_t d, from, size; /* which row, and which of its elements */
};

static struct piece piece_at(const proptim_table *table, size_t begin, size_t n, size_t most)
{
    const size_t size = table->first.size;
    struct piece piece = { begin / size, begin % size, n };
    if (piece.size > size - piece.from) piece.size = size - piece.from;
    if (piece.size > most) piece.size = most;
    return piece;
}

/* Copy a piece of a row of a plane to dense memory or from it. */
static void copy(const proptim_table *table, int j, int plane, size_t row, struct piece piece, char *dense,
                 int to_dense)
{
    const proptim_segment *s = &table->first;
    const size_t itemsize = proptim_itemsize(s->dtype, s->arrays[j].format, plane);
    char *const at = proptim_row_at(table, j, plane, row);
    if (s->dense >> j & 1) {
        char *const run = at + piece.from * itemsize;
        memcpy(to_dense ? dense : run, to_dense ? run : dense, piece.size * itemsize);
    } else if (to_dense) {
        proptim_gather(at, s->ndim, s->shape, s->arrays[j].strides[plane], itemsize, piece.from, piece.size, dense);
    } else {
        proptim_scatter(at, s->ndim, s->shape, s->arrays[j].strides[plane], itemsize, piece.from, piece.size, dense);
    }
}

void proptim_rows_ahead(const proptim_table *table, struct proptim_ahead *ahead)
{
    const proptim_segment *s = &table->first;
    ahead->count = 0;
    for (int j = 0; j < PROPTIM_MAX_ARRAYS; j++)
        for (int p = 0; p < 2 && s->arrays[j].planes[p]; p++) {
            const size_t bytes = s->size * proptim_itemsize(s->dtype, s->arrays[j].format, p);
            if (proptim_shared(s->arrays[j].format, p)) continue; /* of all rows */
            const int i = ahead->count++;
            ahead->planes[i].first = proptim_row_at(table, j, p, 0);
            ahead->planes[i].stride = table->strides[j][p];
            ahead->planes[i].bytes = bytes < LINES * LINE ? bytes : LINES * LINE;
            ahead->planes[i].values = j == PROPTIM_GRADS;
        }
}

void proptim_rows_prefetch(const proptim_table *table, const struct proptim_ahead *ahead, size_t d)
{
    if (d >= table->distinct) return;
    const struct entry entry = ((const struct entry *)table->entries)[table->starts[d]];
    for (int i = 0; i < ahead->count; i++) {
        const ptrdiff_t row = (ptrdiff_t)(ahead->planes[i].values ? entry.at : entry.row);
        prefetch(ahead->planes[i].first + row * ahead->planes[i].stride, ahead->planes[i].bytes);
    }
}

void proptim_rows_copy(const proptim_table *table, int j, int plane, size_t begin, size_t n, void *dense, int to_dense)
{
    const size_t itemsize = proptim_itemsize(table->first.dtype, table->first.arrays[j].format, plane);
    for (char *at = (char *)dense; n > 0;) {
        const struct piece piece = piece_at(table, begin, n, n);
        copy(table, j, plane, proptim_row_of(table, piece.d), piece, at, to_dense);
        at += piece.size * itemsize;
        begin += piece.size;
        n -= piece.size;
    }
}

/* A piece of a row of the values, in the dtype of the rule. */
static void load(const proptim_isa *isa, const proptim_table *table, size_t at, struct piece piece, void *dense)
{
    const proptim_segment *s = &table->first;
    const proptim_plane_array *values = &s->arrays[PROPTIM_GRADS];
    double rooms[2][ROOM];
    void *operands[3] = { dense, rooms[0], rooms[1] };
    if (values->format == PROPTIM_PLAIN) {
        copy(table, PROPTIM_GRADS, 0, at, piece, (char *)dense, 1);
        return;
    }
    for (int p = 0; p < 2 && values->planes[p]; p++) copy(table, PROPTIM_GRADS, p, at, piece, (char *)rooms[p], 1);
    isa->loads[values->format][s->dtype](operands, piece.size);
}

/* Have a piece of a row of the values, taken for dense floats, read into the caches: repeated rows lie anywhere. */
static void prefetch_values(const proptim_table *table, size_t at, struct piece piece)
{
    prefetch(proptim_row_at(table, PROPTIM_GRADS, 0, at) + piece.from * sizeof(float), piece.size * sizeof(float));
}

void proptim_rows_sums(const proptim_isa *isa, const proptim_table *table, size_t begin, size_t n, void *dense)
{
    const size_t itemsize = table->first.dtype == PROPTIM_F32 ? sizeof(float) : sizeof(double);
    const struct entry *const entries = (const struct entry *)table->entries;
    double room[ROOM];
    for (char *to = (char *)dense; n > 0;) {
        const struct piece piece = piece_at(table, begin, n, ROOM);
        size_t e = table->starts[piece.d];
        load(isa, table, entries[e].at, piece, to);
        while (++e < table->starts[piece.d + 1]) {
            if (e + ROWS_AHEAD < table->count) prefetch_values(table, entries[e + ROWS_AHEAD].at, piece);
            load(isa, table, entries[e].at, piece, room);
            if (table->first.dtype == PROPTIM_F32)
                for (size_t i = 0; i < piece.size; i++) ((float *)to)[i] += ((const float *)room)[i];
            else
                for (size_t i = 0; i < piece.size; i++) ((double *)to)[i] += room[i];
        }
        to += piece.size * itemsize;
        begin += piece.size;
        n -= piece.size;
    }
}

void proptim_rows_zero(const proptim_table *table, size_t begin, size_t n)
{
    static const double zeros[ROOM];
    const struct entry *const entries = (const struct entry *)table->entries;
    while (n > 0) {
        const struct piece piece = piece_at(table, begin, n, ROOM);
        for (size_t e = table->starts[piece.d]; e < table->starts[piece.d + 1]; e++)
            for (int p = 0; p < 2 && table->first.arrays[PROPTIM_GRADS].planes[p]; p++)
                copy(table, PROPTIM_GRADS, p, entries[e].at, piece, (char *)zeros, 0);
        begin += piece.size;
        n -= piece.size;
    }
}
