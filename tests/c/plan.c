/*
 * plan.c - layouts are recognized correctly, and a step of any segments, in any layout and any number of parts, equals
 * decay, scale, clip, l2, rule, zero, flush on dense arrays, element for element, also where it rounds at random.  A
 * step of tables equals that of arrays of the rows that have a gradient, each added up, and other rows are unchanged.
 */
#include <limits.h>

#include "check.h"
#include "random.h"

enum { DIMS = 4, CANARY = 0xA5 };

/* Arrays in any layout --------------------------------------------------------------------------------------------- */

/* The axes from the outermost in memory to the innermost, and the stride of each in elements: 0 repeats an element. */
struct layout {
    int order[DIMS];
    int step[DIMS];
};

/* An array that fills its allocation: ASan finds accesses outside, and canaries those between the elements. */
struct strided {
    unsigned char *memory, *start; /* of all, and of element 0 */
    size_t bytes, itemsize;
    int ndim;
    size_t shape[DIMS];
    ptrdiff_t strides[DIMS];
};

static size_t product(const size_t *shape, int ndim)
{
    size_t n = 1;
    for (int d = 0; d < ndim; d++) n *= shape[d];
    return n;
}

/* The array begins `shift` bytes after an aligned address. */
static struct strided strided(const size_t *shape, int ndim, const struct layout *layout, size_t itemsize, size_t shift)
{
    struct strided a = { .bytes = shift + itemsize, .itemsize = itemsize, .ndim = ndim };
    ptrdiff_t run = (ptrdiff_t)itemsize;
    size_t start = shift;
    for (int o = ndim - 1; o >= 0; o--) {
        const int d = layout->order[o], step = layout->step[d];
        const size_t reach = shape[d] ? (shape[d] - 1) * (size_t)(run * abs(step)) : 0;
        a.shape[d] = shape[d];
        a.strides[d] = run * step;
        a.bytes += reach;
        if (step < 0) start += reach;
        if (step) run *= abs(step) * (ptrdiff_t)(shape[d] ? shape[d] : 1);
    }
    if (product(shape, ndim) == 0) a.bytes = start = shift;
    a.memory = (unsigned char *)malloc(a.bytes);
    CHECK(a.memory || !a.bytes, "out of memory");
    memset(a.memory, CANARY, a.bytes);
    a.start = a.memory + start;
    return a;
}

/* Element i in C order. */
static unsigned char *element(const struct strided *a, size_t i)
{
    unsigned char *at = a->start;
    for (int d = a->ndim - 1; d >= 0; i /= a->shape[d], d--) at += (ptrdiff_t)(i % a->shape[d]) * a->strides[d];
    return at;
}

static int gaps_untouched(const struct strided *a)
{
    unsigned char *used = (unsigned char *)calloc(a->bytes + 1, 1);
    int good = 1;
    for (size_t i = 0; i < product(a->shape, a->ndim); i++) memset(used + (element(a, i) - a->memory), 1, a->itemsize);
    for (size_t i = 0; i < a->bytes; i++) good = good && (used[i] || a->memory[i] == CANARY);
    free(used);
    return good;
}

/* proptim_layout() ------------------------------------------------------------------------------------------------- */

static const struct layout c_order = { { 0, 1, 2, 3 }, { 1, 1, 1, 1 } };
static const struct layout f_order = { { 2, 1, 0, 3 }, { 1, 1, 1, 1 } };
static const struct layout transposed = { { 1, 0, 2, 3 }, { 1, 1, 1, 1 } };
static const struct layout negative = { { 0, 1, 2, 3 }, { -1, -1, -1, -1 } };
static const struct layout one_negative = { { 0, 1, 2, 3 }, { 1, -1, 1, 1 } };
static const struct layout sliced = { { 0, 1, 2, 3 }, { 1, 1, 2, 1 } };
static const struct layout sliced_rows = { { 0, 1, 2, 3 }, { 2, 1, 1, 1 } };
static const struct layout broadcast = { { 0, 1, 2, 3 }, { 0, 1, 1, 1 } };
static const struct layout one_value = { { 0, 1, 2, 3 }, { 0, 0, 0, 0 } };

static void check_layouts(void)
{
    enum { PARAM = 1, GRAD = 2, STATE = 4 };
    static const struct {
        const char *name;
        const struct layout *param, *grad, *state;
        int dims;
        size_t shape[3];
        int ndim;       /* that should remain */
        unsigned dense; /* of param, grad, state */
    } all[] = {
        { "C order", &c_order, &c_order, &c_order, 3, { 3, 4, 5 }, 0, PARAM | GRAD | STATE },
        { "F order", &f_order, &f_order, &f_order, 3, { 3, 4, 5 }, 0, PARAM | GRAD | STATE },
        { "transposed", &transposed, &transposed, &transposed, 3, { 3, 4, 5 }, 0, PARAM | GRAD | STATE },
        { "negative", &negative, &negative, &negative, 3, { 3, 4, 5 }, 0, PARAM | GRAD | STATE },
        { "one axis negative", &one_negative, &one_negative, &one_negative, 3, { 3, 4, 5 }, 0, PARAM | GRAD | STATE },
        { "gradient in F order", &c_order, &f_order, &c_order, 3, { 3, 4, 5 }, 3, PARAM | STATE },
        { "all but the gradient in F order", &f_order, &c_order, &f_order, 3, { 3, 4, 5 }, 3, PARAM | STATE },
        { "gradient transposed", &c_order, &transposed, &c_order, 3, { 3, 4, 5 }, 3, PARAM | STATE },
        { "negative gradient", &c_order, &negative, &c_order, 3, { 3, 4, 5 }, 1, PARAM | STATE },
        { "negative parameter", &negative, &c_order, &c_order, 3, { 3, 4, 5 }, 1, PARAM },
        { "sliced", &sliced, &sliced, &sliced, 3, { 3, 4, 5 }, 1, 0 },
        { "sliced parameter", &sliced, &c_order, &c_order, 3, { 3, 4, 5 }, 1, GRAD | STATE },
        { "sliced rows", &sliced_rows, &c_order, &c_order, 3, { 3, 4, 5 }, 2, GRAD | STATE },
        { "broadcast gradient", &c_order, &broadcast, &c_order, 3, { 3, 4, 5 }, 2, PARAM | STATE },
        { "gradient of one value", &c_order, &one_value, &c_order, 3, { 3, 4, 5 }, 1, PARAM | STATE },
        { "axes of size 1", &c_order, &f_order, &negative, 3, { 1, 7, 1 }, 1, PARAM | GRAD },
        { "one element", &sliced, &negative, &one_value, 3, { 1, 1, 1 }, 0, PARAM | GRAD | STATE },
        { "empty", &c_order, &f_order, &sliced, 3, { 3, 0, 5 }, 0, PARAM | GRAD | STATE },
        { "0-d", &c_order, &c_order, &c_order, 0, { 0 }, 0, PARAM | GRAD | STATE },
    };
    for (size_t l = 0; l < sizeof all / sizeof *all; l++)
        for (int dtype = 0; dtype < PROPTIM_DTYPES; dtype++)
            for (size_t shift = 0; shift < 2; shift++) { /* the gradient by a byte: then it is no dense run */
                const struct layout *layouts[] = { all[l].param, all[l].grad, all[l].state };
                const size_t size = product(all[l].shape, all[l].dims);
                struct strided arrays[3];
                size_t shape[DIMS];
                proptim_segment s = { .dtype = (proptim_dtype)dtype, .ndim = all[l].dims, .shape = shape };
                memcpy(shape, all[l].shape, sizeof all[l].shape);
                for (int j = 0; j < 3; j++) {
                    const size_t itemsize = itemsize_of(dtype);
                    arrays[j] = strided(all[l].shape, all[l].dims, layouts[j], itemsize, j == 1 ? shift : 0);
                    s.arrays[j].planes[0] = arrays[j].start;
                    s.arrays[j].strides[0] = arrays[j].strides;
                }
                proptim_layout(&s);
                const int ndim = shift && size > 1 && all[l].ndim == 0 ? 1 : all[l].ndim;
                const unsigned dense = all[l].dense & ~(shift ? GRAD : 0u);
                CHECK(s.size == size, "%s: size %zu", all[l].name, s.size);
                CHECK(s.ndim == ndim, "%s: %d axes remain, expected %d", all[l].name, s.ndim, ndim);
                CHECK((s.dense & 7) == dense, "%s: dense %x, expected %x", all[l].name, s.dense & 7, dense);
                for (int j = 0; j < 3; j++) {
                    if (s.size && s.dense >> j & 1)
                        CHECK(s.arrays[j].planes[0] == arrays[j].memory,
                              "%s: array %d does not begin at its lowest address", all[l].name, j);
                    free(arrays[j].memory);
                }
            }
}

/* proptim_step() --------------------------------------------------------------------------------------------------- */

/* The reference for a step: dense arrays, scalar kernels, one stage after the other. */
static void step_dense(int rule, int dtype, void *const *arrays, size_t n, const proptim_row *row)
{
    proptim_kernel *const *stages[PROPTIM_STAGES];
    void *a[PROPTIM_MAX_ARRAYS], *seen = malloc(n * sizeof(double));
    for (int s = 0; s < PROPTIM_STAGES; s++)
        stages[s] =
            row->stages[s] == proptim_stage_neutral((proptim_stage)s) ? NULL : &proptim_isa_scalar.stages[s][dtype];
    memcpy(a, arrays, sizeof a);
    memcpy(seen, a[PROPTIM_GRADS], n * itemsize_of(dtype));
    a[PROPTIM_GRADS] = seen;
#define STAGE(name, ...) \
    if (stages[PROPTIM_##name]) (*stages[PROPTIM_##name])((void *[]){ __VA_ARGS__ }, &row->stages[PROPTIM_##name], n)
    STAGE(decay, a[PROPTIM_PARAMS]);
    STAGE(scale, seen, seen);
    STAGE(clip, seen, seen);
    STAGE(l2, seen, seen, a[PROPTIM_PARAMS]);
    proptim_isa_scalar.rules[rule][dtype](a, row->coefs, n);
    STAGE(zero, arrays[PROPTIM_GRADS]);
    for (int j = PROPTIM_STATE; j < PROPTIM_MAX_ARRAYS; j++)
        if (a[j]) STAGE(flush, a[j]);
#undef STAGE
    free(seen);
}

/*
 * Round values at random as a step does, if it does: those of elements whose indices, in C order of the parameter,
 * begin at `index`.
 */
static void dither(const proptim_row *row, const proptim_segment *s, int j, void *values, uint64_t index, size_t n)
{
    const struct proptim_narrow narrow = proptim_narrows[s->arrays[j].format];
    const uint64_t numbers[] = { row->seed, s->parameter, (uint64_t)j, row->step };
    if (row->rounding != PROPTIM_STOCHASTIC || !(narrow.fraction | narrow.levels) || j == PROPTIM_GRADS) return;
    uint32_t *const words = malloc((n + 1) * sizeof *words);
    CHECK(words, "out of memory");
    for (size_t i = 0; i < n; i++, index++) {
        uint64_t key = 0;
        for (int k = 0; k < 4; k++) key = random_key(key, numbers[k]);
        words[i] = random_word(random_key(key, index >> 32), (uint32_t)index * RANDOM_STRIDE);
    }
    if (narrow.levels)
        proptim_isa_scalar.dither_levels(values, words, n, narrow.levels);
    else
        proptim_isa_scalar.dithers[s->dtype](values, words, n, narrow.fraction, narrow.bias);
    free(words);
}

/* Indices around which the upper half of the index changes, or any. */
static uint64_t random_first(uint64_t *random)
{
    return uniform(random) < 0.5 ? 0 : ((uint64_t)below(random, 3) << 32) - (uint64_t)below(random, 1000);
}

/* Run the last part first, to detect a part that reads what another part wrote. */
static proptim_ran backwards(proptim_task *task, void *data, int parts, int threads)
{
    (void)threads;
    for (int part = parts - 1; part >= 0; part--) task(data, part, parts);
    return PROPTIM_RAN_PARALLEL;
}

enum { SEGMENTS = 7, ROWS = 3 };

/* A random row: a stage runs or not, and sometimes the whole row does not. */
static proptim_row random_row(const struct text *text, uint64_t *random)
{
    static const double on[PROPTIM_STAGES] = {
        [PROPTIM_decay] = 0.99, [PROPTIM_scale] = -0.5, [PROPTIM_clip] = 0.25,   [PROPTIM_l2] = 0.1,
        [PROPTIM_zero] = 1,     [PROPTIM_flush] = 1,    [PROPTIM_average] = 0.3,
    };
    proptim_row row = { .active = uniform(random) < 0.8 };
    const double share = uniform(random) < 0.3 ? 0 : 0.5;
    draw_coefs(text, random, row.coefs);
    row.rounding = uniform(random) < 0.5 ? PROPTIM_STOCHASTIC : PROPTIM_NEAREST;
    row.seed = below(random, 1000);
    row.step = below(random, 1000);
    for (int s = 0; s < PROPTIM_STAGES; s++)
        row.stages[s] = uniform(random) < share ? on[s] : proptim_stage_neutral((proptim_stage)s);
    return row;
}

static struct layout random_layout(int ndim, int may_repeat, uint64_t *random)
{
    struct layout l = c_order;
    if (uniform(random) < 0.3) return l;
    for (int d = ndim - 1; d > 0; d--) {
        const int e = (int)below(random, (size_t)d + 1), kept = l.order[d];
        l.order[d] = l.order[e];
        l.order[e] = kept;
    }
    for (int d = 0; d < ndim; d++) {
        const double choice = uniform(random);
        l.step[d] = choice < 0.6 ? 1 : choice < 0.75 ? -1 : choice < 0.85 ? 2 : choice < 0.9 || !may_repeat ? -3 : 0;
    }
    return l;
}

static size_t random_shape(size_t *shape, int *ndim, uint64_t *random)
{
    /* Around a unit (256), a block of doubles (512) and one of floats (1024), and over several blocks. */
    static const size_t lengths[] = { 0, 1, 64, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 1100, 5000 };
    *ndim = (int)below(random, DIMS + 1);
    for (int d = 0; d < *ndim; d++) shape[d] = 1 + below(random, 9);
    if (*ndim == 1) shape[0] = lengths[below(random, sizeof lengths / sizeof *lengths)];
    return product(shape, *ndim);
}

/* Formats of one byte are of state, and those with a scale for each block not of tables; averages are plain. */
static int random_format(int dtype, int j, int of_table, uint64_t *random)
{
    const int format = uniform(random) < 0.5 ? PROPTIM_PLAIN : (int)below(random, PROPTIM_FORMATS);
    const int of_one_byte = format >= PROPTIM_INT8, of_blocks = of_one_byte && format != PROPTIM_STEPS8;
    if ((of_one_byte && j < PROPTIM_STATE) || (of_blocks && of_table) || j == PROPTIM_AVERAGE) return PROPTIM_PLAIN;
    return exists(dtype, format) ? format : PROPTIM_PLAIN;
}

/* One array of a segment, in the layout and format that the step sees, and its expected values in a dense array. */
struct array {
    struct strided planes[2];
    ptrdiff_t strides[2][DIMS];
    void *expected[2]; /* planes, dense */
    void *values;      /* in the dtype of the rule */
};

/* Convert between values and planes by the scalar codec; the values of a plain array are its plane. */
static void convert(proptim_codec *const table[][PROPTIM_DTYPES], int dtype, int format, struct array *a, size_t n)
{
    void *const operands[3] = { a->values, a->expected[0], a->expected[1] };
    if (format != PROPTIM_PLAIN) table[format][dtype](operands, n);
}

/* An array with any values, those of formats of several planes partly changed since they were stored. */
static struct array random_array(proptim_segment *s, int j, int of_table, int role, int may_repeat, uint64_t *random)
{
    const int dtype = s->dtype, format = random_format(dtype, j, of_table, random);
    const size_t n = product(s->shape, s->ndim);
    struct array a = { .values = malloc(n * itemsize_of(dtype)) };
    fill(dtype, a.values, n, role, TAME, random);
    for (int p = 0; p < 2; p++) {
        const size_t bytes = plane_bytes(dtype, format, p);
        const struct layout layout = random_layout(s->ndim, may_repeat, random);
        const size_t count = plane_count(format, p, n);
        if (!bytes) continue;
        if (p == 1 && format >= PROPTIM_INT8)
            a.planes[p] = strided(&count, 1, &c_order, bytes, 0);
        else if (format == PROPTIM_INT8 || format == PROPTIM_SQUARES8)
            a.planes[p] = strided(s->shape, s->ndim, &c_order, bytes, 0);
        else
            a.planes[p] = strided(s->shape, s->ndim, &layout, bytes, uniform(random) < 0.1);
        a.expected[p] = format == PROPTIM_PLAIN ? a.values : malloc((count + 1) * bytes);
    }
    if (format == PROPTIM_STEPS8) {
        ((float *)a.expected[1])[0] = (float)(0.01 + uniform(random));
        ((float *)a.expected[1])[1] = (float)(1 + below(random, 4));
    }
    convert(proptim_isa_scalar.stores, dtype, format, &a, n);
    for (int p = 0; p < 2; p++) {
        struct strided *const plane = &a.planes[p];
        char *const dense = (char *)a.expected[p];
        const size_t count = plane_count(format, p, n);
        if (!dense) continue;
        for (size_t e = 1; e < count; e++)
            if (format != PROPTIM_PLAIN && !(p && format == PROPTIM_STEPS8) && uniform(random) < 0.1)
                memcpy(dense + e * plane->itemsize, dense + (e - 1) * plane->itemsize, plane->itemsize);
        for (size_t e = 0; e < count; e++) memcpy(element(plane, e), dense + e * plane->itemsize, plane->itemsize);
        for (size_t e = 0; e < count; e++) /* what is repeated has the last of its values */
            memcpy(dense + e * plane->itemsize, element(plane, e), plane->itemsize);
        memcpy(a.strides[p], plane->strides, sizeof plane->strides);
        s->arrays[j].planes[p] = plane->start;
    }
    convert(proptim_isa_scalar.loads, dtype, format, &a, n);
    s->arrays[j].format = (uint8_t)format;
    return a;
}

/* Every element is as expected and nothing between them has changed; the array is then freed. */
static void check_array(int dtype, int format, struct array *a, size_t n, const char *where)
{
    for (int p = 0; p < 2; p++) {
        const struct strided *plane = &a->planes[p];
        const void *expected = a->expected[p];
        if (!expected) continue;
        for (size_t e = 0; e < plane_count(format, p, n); e++)
            CHECK(plane_bits_at(dtype, format, p, element(plane, e), 0) == plane_bits_at(dtype, format, p, expected, e),
                  "%s %s, plane %d, element %zu of %zu", where, formats[format], p, e, n);
        CHECK(gaps_untouched(plane), "%s, plane %d", where, p);
        free(plane->memory);
        if (expected != a->values) free((void *)expected);
    }
    free(a->values);
}

/* Several segments of all kinds, stepped by proptim_step() and by step_dense(). */
static void scenario(const proptim_isa *isa, int rule, int parts, uint64_t seed)
{
    const struct text *text = &texts[rule];
    const int n_arrays = count_words(text->arrays);
    uint64_t random = seed;
    proptim_row rows[ROWS];
    proptim_segment segments[SEGMENTS] = { { .ndim = 0 } };
    struct array arrays[SEGMENTS][PROPTIM_MAX_ARRAYS] = { { { .values = NULL } } };
    size_t shapes[SEGMENTS][DIMS], n[SEGMENTS];
    ptrdiff_t orders[SEGMENTS][DIMS];
    char word[32];

    for (int r = 0; r < ROWS; r++) rows[r] = random_row(text, &random);
    for (int i = 0; i < SEGMENTS; i++) {
        proptim_segment *s = &segments[i];
        void *values[PROPTIM_MAX_ARRAYS] = { NULL };
        const unsigned mask = present(text, (unsigned)below(&random, 4));
        s->dtype = (proptim_dtype)below(&random, PROPTIM_DTYPES);
        s->row = (unsigned)below(&random, ROWS);
        s->shape = shapes[i];
        s->order = orders[i];
        s->parameter = below(&random, 1000);
        s->first = random_first(&random);
        n[i] = random_shape(shapes[i], &s->ndim, &random);
        const double zeroed = rows[s->row].stages[PROPTIM_zero];
        for (int j = 0; j < n_arrays; j++) {
            word_at(text->arrays, j, word);
            if (!(mask >> j & 1) || (j == PROPTIM_GRADS && uniform(&random) < 0.2)) continue;
            arrays[i][j] = random_array(s, j, 0, role_of(word), j == PROPTIM_GRADS && zeroed == 0, &random);
            for (int p = 0; p < 2; p++) s->arrays[j].strides[p] = arrays[i][j].strides[p];
            values[j] = arrays[i][j].values;
        }
        struct array *const average = &arrays[i][PROPTIM_AVERAGE];
        if (uniform(&random) < 0.7) {
            *average = random_array(s, PROPTIM_AVERAGE, 0, role_of("param"), 0, &random);
            s->arrays[PROPTIM_AVERAGE].strides[0] = average->strides[0];
        }
        if (values[PROPTIM_GRADS] && rows[s->row].active) {
            step_dense(rule, s->dtype, values, n[i], &rows[s->row]);
            for (int j = 0; j < n_arrays; j++)
                if (values[j] && (j == PROPTIM_GRADS ? zeroed != 0 : text->marks[j] != 'r')) {
                    dither(&rows[s->row], s, j, values[j], s->first, n[i]);
                    convert(proptim_isa_scalar.stores, s->dtype, s->arrays[j].format, &arrays[i][j], n[i]);
                }
            const double *const share = &rows[s->row].stages[PROPTIM_average];
            convert(proptim_isa_scalar.loads, s->dtype, s->arrays[PROPTIM_PARAMS].format, &arrays[i][PROPTIM_PARAMS],
                    n[i]);
            if (average->values && *share != 0)
                proptim_isa_scalar.stages[PROPTIM_average][s->dtype](
                    (void *[]){ average->values, values[PROPTIM_PARAMS] }, share, n[i]);
        }
        proptim_layout(s);
        /* The values that programs may set themselves, whatever the formats are. */
        if ((s->dense & PROPTIM_DENSE) == PROPTIM_DENSE && i % 3) s->dense = i % 3 == 1 ? ~0u : PROPTIM_DENSE;
    }

    const proptim_ran ran = proptim_step(isa, (proptim_rule)rule, segments, SEGMENTS, rows, parts, backwards);
    CHECK(ran == (parts > 1 ? PROPTIM_RAN_PARALLEL : PROPTIM_RAN_SERIAL), "ran %d", ran);

    for (int i = 0; i < SEGMENTS; i++)
        for (int j = 0; j < PROPTIM_MAX_ARRAYS; j++) {
            char where[200];
            snprintf(where, sizeof where, "%s %s %s, %d parts, seed %llu: segment %d, array %d", isa->name, text->name,
                     dtypes[segments[i].dtype], parts, (unsigned long long)seed, i, j);
            check_array(segments[i].dtype, segments[i].arrays[j].format, &arrays[i][j], n[i], where);
        }
}

/* proptim_step_rows() and proptim_reduce_rows() -------------------------------------------------------------------- */

/* Rows to and from `rows` of an array of such rows. */
static void copy_rows(int to_picked, void *all, void *picked, const size_t *rows, size_t count, size_t bytes)
{
    for (size_t d = 0; d < count; d++) {
        char *const row = (char *)all + rows[d] * bytes, *const other = (char *)picked + d * bytes;
        memcpy(to_picked ? other : row, to_picked ? row : other, bytes);
    }
}

static size_t random_table(size_t *shape, int *ndim, size_t *count, uint64_t *random)
{
    /* Around what is copied and what is not, and over a piece of a sum, a block and a prefetch. */
    static const size_t widths[] = { 0, 1, 15, 16, 17, 64, 511, 513, 1025 };
    size_t width = 1;
    *ndim = 1 + (int)below(random, DIMS);
    shape[0] = below(random, 7);
    for (int d = 1; d < *ndim; d++) shape[d] = 1 + below(random, 4);
    if (*ndim == 2) shape[1] = widths[below(random, sizeof widths / sizeof *widths)];
    for (int d = 1; d < *ndim; d++) width *= shape[d];
    if (width == 1) shape[0] = 2100;           /* indices of two digits */
    *count = shape[0] ? below(random, 17) : 0; /* more than are prefetched */
    return width;
}

/* Several tables of all kinds through proptim_step_rows() on one side and through step_dense() on the other. */
static void rows_scenario(const proptim_isa *isa, int rule, int parts, uint64_t seed)
{
    enum { TABLES = 4, MOST = 16, ROOM = MOST * 1025 };
    const struct text *text = &texts[rule];
    const int n_arrays = count_words(text->arrays);
    uint64_t random = seed;
    proptim_row rows[ROWS];
    proptim_table tables[TABLES] = { { .count = 0 } };
    struct array arrays[TABLES][PROPTIM_MAX_ARRAYS] = { { { .values = NULL } } };
    size_t shapes[TABLES][DIMS], of_values[TABLES][DIMS], scratch[TABLES][4 * MOST + 1];
    char word[32];

    for (int r = 0; r < ROWS; r++) rows[r] = random_row(text, &random);
    for (int i = 0; i < TABLES; i++) {
        proptim_table *t = &tables[i];
        proptim_segment *s = &t->first;
        void *picked[PROPTIM_MAX_ARRAYS] = { NULL };
        int64_t indices[MOST];
        size_t rows_of[MOST];
        const unsigned mask = present(text, (unsigned)below(&random, 4));
        s->dtype = (proptim_dtype)below(&random, PROPTIM_DTYPES);
        s->row = (unsigned)below(&random, ROWS);
        s->parameter = below(&random, 1000);
        s->first = random_first(&random);
        const size_t width = random_table(shapes[i], &s->ndim, &t->count, &random), length = shapes[i][0];
        const size_t bytes = width * itemsize_of(s->dtype);
        const double zeroed = rows[s->row].stages[PROPTIM_zero];
        memcpy(of_values[i], shapes[i], sizeof shapes[i]);
        of_values[i][0] = t->count;
        for (int j = 0; j < n_arrays; j++) {
            word_at(text->arrays, j, word);
            if (!(mask >> j & 1)) continue;
            s->shape = j == PROPTIM_GRADS ? of_values[i] : shapes[i];
            arrays[i][j] = random_array(s, j, 1, role_of(word), j == PROPTIM_GRADS && zeroed == 0, &random);
            for (int p = 0; p < 2; p++) s->arrays[j].strides[p] = arrays[i][j].strides[p];
        }
        s->shape = shapes[i];
        proptim_rows_layout(t);
        if ((s->dense & PROPTIM_DENSE) == PROPTIM_DENSE && i % 3) s->dense = i % 3 == 1 ? ~0u : PROPTIM_DENSE;

        const int ascends = uniform(&random) < 0.2;
        for (size_t k = 0; k < t->count; k++) indices[k] = (int64_t)below(&random, length);
        for (size_t k = 1; k < t->count; k++)
            if (ascends && indices[k] < indices[k - 1]) indices[k] = indices[k - 1];
        if (t->count) { /* what is no row is found, and the first of them */
            static const int64_t beyond[] = { INT64_MIN, -1, INT64_MAX };
            const size_t at = below(&random, t->count), choice = below(&random, 4);
            const int64_t kept = indices[at], last = indices[t->count - 1];
            indices[t->count - 1] = -5;
            indices[at] = choice < 3 ? beyond[choice] : (int64_t)length;
            CHECK(proptim_rows_sort(t, indices, scratch[i]) == at && t->distinct == 0, "place %zu", at);
            indices[t->count - 1] = last;
            indices[at] = kept;
        }
        CHECK(proptim_rows_scratch(t->count) == 4 * t->count + 1, "scratch for %zu", t->count);
        CHECK(proptim_rows_sort(t, indices, scratch[i]) == t->count, "%zu good indices", t->count);

        /* The rows, ascending, with the sums of what is theirs. */
        size_t distinct = 0;
        for (size_t r = 0; r < length; r++) {
            int found = 0;
            for (size_t k = 0; k < t->count; k++) found |= indices[k] == (int64_t)r;
            if (found) rows_of[distinct++] = r;
        }
        CHECK(t->distinct == distinct, "%zu different rows, expected %zu", t->distinct, distinct);
        for (int j = 0; j < n_arrays; j++)
            if (arrays[i][j].values) picked[j] = calloc(distinct * bytes + 1, 1);
        for (size_t d = 0; d < distinct; d++) {
            char *const sum = (char *)picked[PROPTIM_GRADS] + d * bytes;
            int first = 1;
            for (size_t k = 0; k < t->count; k++) {
                const char *const value = (const char *)arrays[i][PROPTIM_GRADS].values + k * bytes;
                if (indices[k] != (int64_t)rows_of[d]) continue;
                if (first)
                    memcpy(sum, value, bytes);
                else
                    for (size_t e = 0; e < width; e++)
                        if (s->dtype == PROPTIM_F32)
                            ((float *)sum)[e] += ((const float *)value)[e];
                        else
                            ((double *)sum)[e] += ((const double *)value)[e];
                first = 0;
            }
        }
        memset(indices, -1, sizeof indices); /* which are read once */

        /* The sum of squares is that of these sums. */
        const ptrdiff_t shape[] = { (ptrdiff_t)(distinct * width) }, strides[] = { (ptrdiff_t)itemsize_of(s->dtype) };
        const proptim_view view = { { picked[PROPTIM_GRADS] }, s->dtype, 1, shape, { strides }, PROPTIM_PLAIN };
        double partials[2][ROOM / PROPTIM_BLOCK + 1];
        int finite[2];
        CHECK(proptim_reduce_rows_partials(t) == proptim_reduce_partials(&view, 1), "%zu rows", distinct);
        proptim_reduce_rows(isa, t, partials[0], &finite[0], parts, backwards);
        proptim_reduce_blocks(isa, &view, 1, partials[1], &finite[1], 1, NULL);
        CHECK(finite[0] == finite[1], "%d and %d", finite[0], finite[1]);
        for (size_t b = 0; b < proptim_reduce_partials(&view, 1); b++)
            CHECK(bits_at(PROPTIM_F64, partials[0], b) == bits_at(PROPTIM_F64, partials[1], b), "block %zu", b);

        if (rows[s->row].active) {
            for (int j = 0; j < n_arrays; j++)
                if (picked[j] && j != PROPTIM_GRADS)
                    copy_rows(1, arrays[i][j].values, picked[j], rows_of, distinct, bytes);
            step_dense(rule, s->dtype, picked, distinct * width, &rows[s->row]);
            for (int j = 0; j < n_arrays; j++) {
                struct array *const a = &arrays[i][j];
                if (!picked[j] || j == PROPTIM_GRADS) continue;
                copy_rows(0, a->values, picked[j], rows_of, distinct, bytes);
                for (size_t d = 0; d < distinct && text->marks[j] != 'r'; d++) { /* others stay to the byte */
                    struct array row = { .values = (char *)a->values + rows_of[d] * bytes };
                    for (int p = 0; p < 2 && a->expected[p]; p++)
                        row.expected[p] = (char *)a->expected[p] + (p && s->arrays[j].format == PROPTIM_STEPS8
                                                                        ? 0
                                                                        : rows_of[d] * width * a->planes[p].itemsize);
                    dither(&rows[s->row], s, j, row.values, s->first + rows_of[d] * width, width);
                    convert(proptim_isa_scalar.stores, s->dtype, s->arrays[j].format, &row, width);
                }
            }
            for (int p = 0; p < 2 && zeroed != 0 && arrays[i][PROPTIM_GRADS].expected[p]; p++)
                memset(arrays[i][PROPTIM_GRADS].expected[p], 0,
                       t->count * width * arrays[i][PROPTIM_GRADS].planes[p].itemsize);
        }
        for (int j = 0; j < n_arrays; j++) free(picked[j]);
    }

    const proptim_ran ran = proptim_step_rows(isa, (proptim_rule)rule, tables, TABLES, rows, parts, backwards);
    CHECK(ran == (parts > 1 ? PROPTIM_RAN_PARALLEL : PROPTIM_RAN_SERIAL), "ran %d", ran);
    for (int i = 0; i < TABLES; i++)
        for (int j = 0; j < n_arrays; j++) {
            const size_t n = product(arrays[i][j].planes[0].shape, arrays[i][j].planes[0].ndim);
            char where[200];
            snprintf(where, sizeof where, "%s %s %s, %d parts, seed %llu: table %d, array %d", isa->name, text->name,
                     dtypes[tables[i].first.dtype], parts, (unsigned long long)seed, i, j);
            check_array(tables[i].first.dtype, tables[i].first.arrays[j].format, &arrays[i][j], n, where);
        }
}

static int dealt;
static proptim_ran only_count(proptim_task *task, void *data, int parts, int threads)
{
    (void)task, (void)data, (void)threads;
    dealt = parts;
    return PROPTIM_RAN_PARALLEL;
}

/* At least one part and at most 64 parts for each thread, and in between one for each 8192 weights. */
static void check_parts(void)
{
    static const struct {
        size_t size;
        int parts;
    } all[] = { { 0, 3 }, { 64, 3 }, { 3 * 8192, 3 }, { 5 * 8192, 5 }, { 192 * 8192, 192 }, { (size_t)1 << 31, 192 } };
    double never_touched;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const proptim_segment segment = {
            .arrays = { { .planes = { &never_touched } }, { .planes = { &never_touched } } }, .size = all[i].size
        };
        const proptim_row row = { .active = 1 };
        CHECK(proptim_step(NULL, PROPTIM_sgd, &segment, 1, &row, 3, only_count) == PROPTIM_RAN_PARALLEL, "counted");
        CHECK(dealt == all[i].parts, "%zu weights in %d parts, expected %d", all[i].size, dealt, all[i].parts);
    }
    const proptim_segment segment = { .arrays = { { .planes = { &never_touched } }, { .planes = { &never_touched } } },
                                      .size = SIZE_MAX / 2 };
    const proptim_row row = { .active = 1 };
    CHECK(proptim_step(NULL, PROPTIM_sgd, &segment, 1, &row, INT_MAX, only_count) == PROPTIM_RAN_PARALLEL, "counted");
    CHECK(dealt == 1024 * 64, "%d parts for as many threads as there are numbers", dealt);
}

/* Formats ---------------------------------------------------------------------------------------------------------- */

static double get(int dtype, const void *at)
{
    float narrow;
    double wide;
    memcpy(dtype == PROPTIM_F32 ? (void *)&narrow : (void *)&wide, at, itemsize_of(dtype));
    return dtype == PROPTIM_F32 ? (double)narrow : wide;
}

/*
 * Rprop over step sizes and last signs in two planes, dense, interlaced and with a second plane that is not aligned,
 * has the bits of Rprop over its words.
 */
static void check_steps(const proptim_isa *isa, int dtype, int apart, size_t shift, size_t n)
{
    enum { MOST = 3007, STEPS = 3 };
    static const proptim_rprop_coefs coefs = {
        .eta_minus = 0.5,
        .eta_plus = 1.2,
        .step_min = 1e-6,
        .step_max = 50,
        .remember = 0,
        .remembered = 0x1p38,
        .forget = 0x1p90,
        .unforget = 0x1p-90,
    };
    const size_t itemsize = itemsize_of(dtype), gap = (size_t)apart * itemsize;
    double param[MOST], other[MOST], grad[MOST], word[MOST];
    unsigned char *const planes[2] = { malloc(n * gap), malloc(n * gap + shift) };
    uint64_t random = 7;
    proptim_row row;
    CHECK(planes[0] && planes[1], "out of memory");
    proptim_row_init(&row, PROPTIM_rprop, &coefs.eta_minus);
    for (size_t i = 0; i < n; i++) {
        const double size = 1 + uniform(&random), sign = (double)(i % 3) - 1;
        double value = 0;
        put(dtype, param, i, size);
        put(dtype, other, i, size);
        put(dtype, word, i, sign != 0 ? sign * size : size * 0x1p90);
        put(dtype, &value, 0, size);
        memcpy(planes[0] + i * gap, &value, itemsize);
        put(dtype, &value, 0, sign);
        memcpy(planes[1] + shift + i * gap, &value, itemsize);
    }
    for (int step = 0; step < STEPS; step++) {
        size_t shapes[2][1] = { { n }, { n } };
        ptrdiff_t dense[2][1] = { { (ptrdiff_t)itemsize }, { (ptrdiff_t)itemsize } };
        ptrdiff_t strides[2][1] = { { (ptrdiff_t)gap }, { (ptrdiff_t)gap } };
        proptim_segment plain = { .dtype = (proptim_dtype)dtype, .ndim = 1, .shape = shapes[0] }, steps = plain;
        fill(dtype, grad, n, PROPTIM_GRADS, TAME, &random);
        steps.shape = shapes[1];
        plain.arrays[0] = (proptim_plane_array){ { param }, { dense[0] }, PROPTIM_PLAIN };
        steps.arrays[0] = (proptim_plane_array){ { other }, { dense[0] }, PROPTIM_PLAIN };
        plain.arrays[1] = steps.arrays[1] = (proptim_plane_array){ { grad }, { dense[1] }, PROPTIM_PLAIN };
        plain.arrays[2] = (proptim_plane_array){ { word }, { dense[1] }, PROPTIM_PLAIN };
        steps.arrays[2] =
            (proptim_plane_array){ { planes[0], planes[1] + shift }, { strides[0], strides[1] }, PROPTIM_STEPS };
        proptim_layout(&plain);
        proptim_layout(&steps);
        CHECK(proptim_step(isa, PROPTIM_rprop, &plain, 1, &row, 1, NULL) == PROPTIM_RAN_SERIAL, "words");
        CHECK(proptim_step(isa, PROPTIM_rprop, &steps, 1, &row, 3, backwards) == PROPTIM_RAN_PARALLEL, "planes");
    }
    CHECK(difference(dtype, param, other, n) == n, "%s %s: parameters", isa->name, dtypes[dtype]);
    for (size_t i = 0; i < n; i++) {
        double bits = 0;
        const double d = get(dtype, planes[0] + i * gap), last = get(dtype, planes[1] + shift + i * gap);
        put(dtype, &bits, 0, last != 0 ? last * d : d * 0x1p90);
        CHECK(bits_at(dtype, &bits, 0) == bits_at(dtype, word, i), "%s %s: word %zu", isa->name, dtypes[dtype], i);
    }
    free(planes[0]);
    free(planes[1]);
}

int main(void)
{
    enum { EACH = 8 };
    static const int parts[] = { 1, 2, 3, 7, 1000 }; /* the last: more than there are units */
    const proptim_isa *isas[MOST_ISAS];
    const int n_isas = take_part(isas);
    uint64_t seed = 0;
    check_layouts();
    check_parts();
    for (int i = 0; i < n_isas; i++)
        for (int dtype = 0; dtype < PROPTIM_DTYPES; dtype++) {
            /* Several blocks and a long tail, which ends with no last sign, with one down and with one up. */
            for (size_t n = 3007; n > 3001; n -= 2) {
                check_steps(isas[i], dtype, 1, 0, n);
                check_steps(isas[i], dtype, 2, 0, n);
                check_steps(isas[i], dtype, 1, 1, n);
            }
        }
    for (int i = 0; i < n_isas; i++)
        for (int rule = 0; rule < PROPTIM_RULES; rule++)
            for (size_t p = 0; p < sizeof parts / sizeof *parts; p++)
                for (int e = 0; e < EACH; e++) {
                    scenario(isas[i], rule, parts[p], ++seed);
                    rows_scenario(isas[i], rule, parts[p], seed);
                }
    printf("%llu steps of %d segments, and of tables\n", (unsigned long long)seed, SEGMENTS);
    CHECK(proptim_step(isas[0], PROPTIM_sgd, NULL, 0, NULL, 3, backwards) == PROPTIM_RAN_PARALLEL, "nothing to do");
    CHECK(proptim_step(isas[0], PROPTIM_sgd, NULL, 0, NULL, 3, NULL) == PROPTIM_RAN_SERIAL, "nobody to do it");
    CHECK(proptim_step_rows(isas[0], PROPTIM_sgd, NULL, 0, NULL, 3, NULL) == PROPTIM_RAN_SERIAL, "nobody to do it");
    return 0;
}
