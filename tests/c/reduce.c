/* reduce.c - the sum of squares in its fixed order, for any memory layout; and the check for finite elements. */
#include <limits.h>

#include "check.h"

enum { LANES = 16 };

/* Add neighbours, then pairs of pairs, and so on; one without a neighbour is carried to the next level. */
static double tree(double *x, size_t n)
{
    for (; n > 1; n = (n + 1) / 2)
        for (size_t i = 0; i < n; i += 2) x[i / 2] = i + 1 < n ? x[i] + x[i + 1] : x[i];
    return n ? x[0] : 0;
}

static double value_at(int dtype, const void *x, size_t i)
{
    return dtype == PROPTIM_F32 ? (double)((const float *)x)[i] : ((const double *)x)[i];
}

/* Append the sums of the blocks of one array. */
static size_t blocks_of(int dtype, const void *x, size_t n, double *sums)
{
    size_t count = 0;
    for (size_t begin = 0; begin < n; begin += PROPTIM_BLOCK) {
        double lanes[LANES] = { 0 };
        for (size_t i = begin; i < n && i < begin + PROPTIM_BLOCK; i++) {
            const double value = value_at(dtype, x, i);
            lanes[i % LANES] += value * value;
        }
        sums[count++] = tree(lanes, LANES);
    }
    return count;
}

static double reduce(const proptim_isa *isa, const proptim_view *views, size_t count, int *finite)
{
    const size_t room = proptim_reduce_partials(views, count);
    double *partials = (double *)malloc(room * sizeof *partials);
    const double sum = proptim_reduce(isa, views, count, partials, finite, 2, NULL);
    free(partials);
    return sum;
}

static void sizes(const proptim_isa *isa)
{
    static const size_t all[] = { 0,    1,    2,    15,   16, 17, 31,   33,       4095,         4096,
                                  4097, 8191, 8192, 8193, 5,  3,  1000, 3 * 4096, 5 * 4096 + 7, 1 };
    enum { COUNT = sizeof all / sizeof *all };
    proptim_view views[COUNT];
    ptrdiff_t shapes[COUNT], strides[COUNT];
    double sums[64];
    size_t blocks = 0;
    uint64_t random = 1;
    int finite;
    for (size_t i = 0; i < COUNT; i++) {
        const int dtype = (int)(i % PROPTIM_DTYPES);
        void *data = malloc(all[i] * itemsize_of(dtype));
        fill(dtype, data, all[i], PROPTIM_PARAMS, TAME, &random);
        shapes[i] = (ptrdiff_t)all[i];
        strides[i] = (ptrdiff_t)itemsize_of(dtype);
        views[i] = (proptim_view){ { data }, (proptim_dtype)dtype, 1, &shapes[i], { &strides[i] }, PROPTIM_PLAIN };

        double own[8];
        const size_t n_own = blocks_of(dtype, data, all[i], own);
        memcpy(sums + blocks, own, n_own * sizeof *own);
        blocks += n_own;
        CHECK(proptim_reduce_partials(&views[i], 1) == n_own, "n=%zu", all[i]);
        const double got = reduce(isa, &views[i], 1, &finite), expected = tree(own, n_own);
        CHECK(got == expected && finite, "%s %s n=%zu: %a, expected %a", isa->name, dtypes[dtype], all[i], got,
              expected);
    }
    CHECK(proptim_reduce_partials(views, COUNT) == blocks, "%zu blocks", blocks);
    const double got = reduce(isa, views, COUNT, &finite), expected = tree(sums, blocks);
    CHECK(got == expected && finite, "%s, all together: %a, expected %a", isa->name, got, expected);
    CHECK(reduce(isa, views, 0, &finite) == 0 && finite, "no arrays");

    /* As two processes do it: each sums some of the blocks, and then the sums are combined. */
    double shared[64];
    for (size_t i = 0, at = 0; i < 2; i++) {
        const size_t half = i == 0 ? COUNT / 2 : COUNT - COUNT / 2;
        proptim_reduce_blocks(isa, views + i * (COUNT / 2), half, shared + at, &finite, 1, NULL);
        CHECK(finite, "half %zu", i);
        at += proptim_reduce_partials(views, COUNT / 2);
    }
    const double together = proptim_reduce_tree(shared, blocks);
    CHECK(together == expected, "%s, by halves: %a, expected %a", isa->name, together, expected);
    for (size_t i = 0; i < COUNT; i++) free((void *)views[i].planes[0]);
}

/* Elements count in C order, wherever they lie. */
static void layouts(const proptim_isa *isa, int dtype)
{
    enum { ROWS = 70, COLUMNS = 131, N = ROWS * COLUMNS };
    const ptrdiff_t s = (ptrdiff_t)itemsize_of(dtype);
    static const struct {
        const char *name;
        ptrdiff_t rows, columns, start; /* strides and offset in elements */
    } all[] = {
        { "C order", COLUMNS, 1, 0 },
        { "F order", 1, ROWS, 0 },
        { "sliced", 4 * COLUMNS, 2, 1 },
        { "negative", -COLUMNS, -1, N - 1 },
        { "one axis negative", COLUMNS, -1, COLUMNS - 1 },
        { "broadcast", 0, 1, 0 },
        { "one value", 0, 0, 7 },
    };
    char *memory = (char *)malloc((size_t)(4 * N * s)), *dense = (char *)malloc((size_t)(N * s));
    uint64_t random = 2;
    fill(dtype, memory, 4 * N, PROPTIM_PARAMS, TAME, &random);
    for (size_t l = 0; l < sizeof all / sizeof *all; l++) {
        const ptrdiff_t shape[] = { ROWS, 1, COLUMNS }, strides[] = { all[l].rows * s, 12345, all[l].columns * s };
        const char *start = memory + all[l].start * s;
        for (ptrdiff_t r = 0; r < ROWS; r++)
            for (ptrdiff_t c = 0; c < COLUMNS; c++)
                memcpy(dense + (r * COLUMNS + c) * s, start + r * strides[0] + c * strides[2], (size_t)s);
        const proptim_view view = { { start }, (proptim_dtype)dtype, 3, shape, { strides }, PROPTIM_PLAIN };
        double own[8];
        int finite;
        const double got = reduce(isa, &view, 1, &finite), expected = tree(own, blocks_of(dtype, dense, N, own));
        CHECK(got == expected && finite, "%s %s: %a, expected %a", all[l].name, dtypes[dtype], got, expected);
    }
    for (int shift = 0; shift < 2; shift++) { /* also off the alignment of the dtype, as in a packed record */
        const ptrdiff_t shape = N;
        const proptim_view scalar = { { memory + shift }, (proptim_dtype)dtype, 0, NULL, { NULL }, PROPTIM_PLAIN };
        const proptim_view run = { { memory + shift }, (proptim_dtype)dtype, 1, &shape, { &s }, PROPTIM_PLAIN };
        double own[8];
        int finite;
        memcpy(dense, memory, (size_t)(N * s));
        memmove(memory + shift, dense, (size_t)(N * s));
        const double x = value_at(dtype, dense, 0);
        CHECK(reduce(isa, &scalar, 1, &finite) == x * x && finite, "0-d, shift %d", shift);
        CHECK(reduce(isa, &run, 1, &finite) == tree(own, blocks_of(dtype, dense, N, own)) && finite, "shift %d", shift);
    }
    free(memory);
    free(dense);
}

/* One value that is not finite is found anywhere; a sum that overflows does not count as one. */
static void finiteness(const proptim_isa *isa, int dtype)
{
    enum { N = PROPTIM_BLOCK + 21 };
    static const double bad[] = { NAN, INFINITY, -INFINITY };
    double data[N];
    const ptrdiff_t shape = N, stride = (ptrdiff_t)itemsize_of(dtype);
    const proptim_view view = { { data }, (proptim_dtype)dtype, 1, &shape, { &stride }, PROPTIM_PLAIN };
    int finite;
    for (size_t i = 0; i < N; i++) put(dtype, data, i, 0.5);
    for (size_t i = 0; i < N; i += i < 40 || i > N - 40 ? 1 : 511) {
        put(dtype, data, i, bad[i % 3]);
        const double sum = reduce(isa, &view, 1, &finite);
        CHECK(!finite && !isfinite(sum), "%s %s: %g at %zu", isa->name, dtypes[dtype], bad[i % 3], i);
        put(dtype, data, i, 0.5);
    }
    for (size_t i = 0; i < N; i++) put(dtype, data, i, dtype == PROPTIM_F32 ? FLT_MAX : DBL_MAX);
    const double sum = reduce(isa, &view, 1, &finite);
    CHECK(finite, "%s: the largest numbers are finite", isa->name);
    CHECK(isfinite(sum) == (dtype == PROPTIM_F32), "%s: squares of float32 do not overflow a double", isa->name);
}

static int dealt;
static proptim_ran in_turn(proptim_task *task, void *data, int parts, int threads)
{
    (void)threads;
    dealt = parts;
    for (int part = 0; part < parts; part++) task(data, part, parts);
    return PROPTIM_RAN_PARALLEL;
}

/* One number, repeated so often that there are few parts, more, and as many as there may be for two threads. */
static void many_parts(const proptim_isa *isa)
{
    enum { MOST = 2 * 130 };
    static const struct {
        int blocks, parts;
    } all[] = { { 1, 2 }, { 2 * 5, 5 }, { MOST, 2 * 64 } };
    const double three = 3;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const ptrdiff_t shape = all[i].blocks * PROPTIM_BLOCK, stride = 0;
        const proptim_view view = { { &three }, PROPTIM_F64, 1, &shape, { &stride }, PROPTIM_PLAIN };
        double partials[MOST];
        int finite;
        const double sum = proptim_reduce(isa, &view, 1, partials, &finite, 2, in_turn);
        CHECK(sum == 9.0 * (double)shape && finite, "%s: %a of %d blocks", isa->name, sum, all[i].blocks);
        CHECK(dealt == all[i].parts, "%d blocks in %d parts, expected %d", all[i].blocks, dealt, all[i].parts);
    }
    const ptrdiff_t shape = PROPTIM_BLOCK, stride = 0;
    const proptim_view view = { { &three }, PROPTIM_F64, 1, &shape, { &stride }, PROPTIM_PLAIN };
    double partial;
    int finite;
    const double sum = proptim_reduce(isa, &view, 1, &partial, &finite, INT_MAX, in_turn);
    CHECK(sum == 9.0 * PROPTIM_BLOCK && dealt == 1024, "%a in %d parts, for more threads than can be used", sum, dealt);
}

/* The sum of an array in any format is that of its loaded values, for dense arrays and with gaps between elements. */
static void formats_too(const proptim_isa *isa, int dtype, int format)
{
    enum { N = 2 * PROPTIM_BLOCK + 77 };
    static double values[N];
    static unsigned char planes[2][2][2 * 8 * N]; /* dense, apart */
    const ptrdiff_t shape = N;
    uint64_t random = 4;
    double own[4];
    int finite;
    void *const operands[3] = { values, planes[0][0], planes[0][1] };
    for (int all_finite = 1; all_finite >= 0; all_finite--) {
        ptrdiff_t strides[2][2];
        fill(dtype, values, N, PROPTIM_PARAMS, TAME, &random);
        if (!all_finite) put(dtype, values, N - 1, INFINITY);
        proptim_isa_scalar.stores[format][dtype](operands, N);
        proptim_isa_scalar.loads[format][dtype](operands, N);
        for (int p = 0; p < 2; p++) {
            const size_t bytes = plane_bytes(dtype, format, p);
            strides[0][p] = (ptrdiff_t)bytes;
            strides[1][p] = 2 * (ptrdiff_t)bytes;
            for (size_t i = 0; i < N; i++) memcpy(planes[1][p] + 2 * i * bytes, planes[0][p] + i * bytes, bytes);
        }
        for (int apart = 0; apart < 2; apart++) {
            proptim_view view = { { planes[apart][0] },   (proptim_dtype)dtype, 1, &shape,
                                  { &strides[apart][0] }, (uint8_t)format };
            if (plane_bytes(dtype, format, 1)) {
                view.planes[1] = planes[apart][1];
                view.strides[1] = &strides[apart][1];
            }
            const double got = reduce(isa, &view, 1, &finite), expected = tree(own, blocks_of(dtype, values, N, own));
            CHECK(bits_at(PROPTIM_F64, &got, 0) == bits_at(PROPTIM_F64, &expected, 0) && finite == all_finite,
                  "%s %s %s: %a, expected %a", isa->name, formats[format], dtypes[dtype], got, expected);
        }
    }
}

int main(void)
{
    const proptim_isa *isas[MOST_ISAS];
    const int n_isas = take_part(isas);
    for (int i = 0; i < n_isas; i++) {
        sizes(isas[i]);
        many_parts(isas[i]);
        for (int dtype = 0; dtype < PROPTIM_DTYPES; dtype++) {
            layouts(isas[i], dtype);
            finiteness(isas[i], dtype);
            for (int format = PROPTIM_PLAIN + 1; format < PROPTIM_INT8; format++) /* those of gradients */
                if (exists(dtype, format)) formats_too(isas[i], dtype, format);
        }
    }
    return 0;
}
