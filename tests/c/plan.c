/*
 * plan.c - layouts are recognised for what they are, and a step of any segments, in any layout and any number of
 * parts, is the pipeline decay, scale, clip, l2, rule, zero, flush on dense arrays, element for element.
 */
#include "check.h"

enum { DIMS = 4, CANARY = 0xA5 };

/* Arrays in any layout --------------------------------------------------------------------------------------------- */

/* The axes from the outermost in memory to the innermost, and how many elements each steps: 0 repeats, < 0 goes back.
 */
struct layout {
    int order[DIMS];
    int step[DIMS];
};

/* An array that ends where its allocation ends, on both sides: a wrong address is found by ASan, or in the gaps. */
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

/* `shift` bytes off the alignment that malloc gives. */
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
                    s.arrays[j] = arrays[j].start;
                    s.strides[j] = arrays[j].strides;
                }
                proptim_layout(&s);
                const int ndim = shift && size > 1 && all[l].ndim == 0 ? 1 : all[l].ndim;
                const unsigned dense = all[l].dense & ~(shift ? GRAD : 0u);
                CHECK(s.size == size, "%s: size %zu", all[l].name, s.size);
                CHECK(s.ndim == ndim, "%s: %d axes remain, expected %d", all[l].name, s.ndim, ndim);
                CHECK((s.dense & 7) == dense, "%s: dense %x, expected %x", all[l].name, s.dense & 7, dense);
                for (int j = 0; j < 3; j++) {
                    if (s.size && s.dense >> j & 1)
                        CHECK(s.arrays[j] == arrays[j].memory, "%s: array %d does not begin at its lowest address",
                              all[l].name, j);
                    free(arrays[j].memory);
                }
            }
}

/* proptim_step() --------------------------------------------------------------------------------------------------- */

/* What a step promises, on dense arrays, by the scalar kernels and with nothing shared. */
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

/* The last part first: a part that reads what another wrote shows. */
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
        [PROPTIM_decay] = 0.99, [PROPTIM_scale] = -0.5, [PROPTIM_clip] = 0.25,
        [PROPTIM_l2] = 0.1,     [PROPTIM_zero] = 1,     [PROPTIM_flush] = 1,
    };
    proptim_row row = { .active = uniform(random) < 0.8 };
    const double share = uniform(random) < 0.3 ? 0 : 0.5;
    draw_coefs(text, random, row.coefs);
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
    static const size_t lengths[] = { 0, 1, 63, 64, 65, 1024, 1100, 5000 };
    *ndim = (int)below(random, DIMS + 1);
    for (int d = 0; d < *ndim; d++) shape[d] = 1 + below(random, 9);
    if (*ndim == 1) shape[0] = lengths[below(random, sizeof lengths / sizeof *lengths)];
    return product(shape, *ndim);
}

/* Several segments of all kinds through proptim_step() on one side and through step_dense() on the other. */
static void scenario(const proptim_isa *isa, int rule, int parts, uint64_t seed)
{
    const struct text *text = &texts[rule];
    const int n_arrays = count_words(text->arrays);
    uint64_t random = seed;
    proptim_row rows[ROWS];
    proptim_segment segments[SEGMENTS] = { { .ndim = 0 } };
    struct strided arrays[SEGMENTS][PROPTIM_MAX_ARRAYS] = { { { .ndim = 0 } } };
    void *dense[SEGMENTS][PROPTIM_MAX_ARRAYS] = { { NULL } };
    size_t shapes[SEGMENTS][DIMS], n[SEGMENTS];
    ptrdiff_t strides[SEGMENTS][PROPTIM_MAX_ARRAYS][DIMS];
    char word[32];

    for (int r = 0; r < ROWS; r++) rows[r] = random_row(text, &random);
    for (int i = 0; i < SEGMENTS; i++) {
        proptim_segment *s = &segments[i];
        const int dtype = (int)below(&random, PROPTIM_DTYPES);
        const unsigned mask = present(text, (unsigned)below(&random, 4));
        s->dtype = (proptim_dtype)dtype;
        s->row = (unsigned)below(&random, ROWS);
        s->shape = shapes[i];
        n[i] = random_shape(shapes[i], &s->ndim, &random);
        for (int j = 0; j < n_arrays; j++) {
            word_at(text->arrays, j, word);
            if (!(mask >> j & 1) || (j == PROPTIM_GRADS && uniform(&random) < 0.2)) continue;
            const int repeats = j == PROPTIM_GRADS && rows[s->row].stages[PROPTIM_zero] == 0;
            const struct layout layout = random_layout(s->ndim, repeats, &random);
            struct strided *a = &arrays[i][j];
            *a = strided(shapes[i], s->ndim, &layout, itemsize_of(dtype), uniform(&random) < 0.1);
            dense[i][j] = malloc(n[i] * a->itemsize);
            fill(dtype, dense[i][j], n[i], role_of(word), TAME, &random);
            for (size_t e = 0; e < n[i]; e++) memcpy(element(a, e), (char *)dense[i][j] + e * a->itemsize, a->itemsize);
            for (size_t e = 0; e < n[i]; e++) /* what is repeated has the last of its values */
                memcpy((char *)dense[i][j] + e * a->itemsize, element(a, e), a->itemsize);
            s->arrays[j] = a->start;
            s->strides[j] = strides[i][j];
            memcpy(strides[i][j], a->strides, sizeof a->strides);
        }
        if (dense[i][PROPTIM_GRADS] && rows[s->row].active) step_dense(rule, dtype, dense[i], n[i], &rows[s->row]);
        proptim_layout(s);
    }

    const proptim_ran ran = proptim_step(isa, (proptim_rule)rule, segments, SEGMENTS, rows, parts, backwards);
    CHECK(ran == (parts > 1 ? PROPTIM_RAN_PARALLEL : PROPTIM_RAN_SERIAL), "ran %d", ran);

    for (int i = 0; i < SEGMENTS; i++)
        for (int j = 0; j < n_arrays; j++) {
            if (!dense[i][j]) continue;
            const struct strided *a = &arrays[i][j];
            for (size_t e = 0; e < n[i]; e++)
                CHECK(bits_at(segments[i].dtype, element(a, e), 0) == bits_at(segments[i].dtype, dense[i][j], e),
                      "%s %s %s, %d parts, seed %llu: segment %d, array %d, element %zu of %zu", isa->name, text->name,
                      dtypes[segments[i].dtype], parts, (unsigned long long)seed, i, j, e, n[i]);
            CHECK(gaps_untouched(a), "%s, seed %llu: segment %d, array %d", text->name, (unsigned long long)seed, i, j);
            free(a->memory);
            free(dense[i][j]);
        }
}

static int dealt;
static proptim_ran only_count(proptim_task *task, void *data, int parts, int threads)
{
    (void)task, (void)data, (void)threads;
    dealt = parts;
    return PROPTIM_RAN_PARALLEL;
}

/* One part for each thread at least, 64 for each at most, between them as many as there are runs of 8192 weights. */
static void check_parts(void)
{
    static const struct {
        size_t size;
        int parts;
    } all[] = { { 0, 3 }, { 64, 3 }, { 3 * 8192, 3 }, { 5 * 8192, 5 }, { 192 * 8192, 192 }, { (size_t)1 << 31, 192 } };
    double never_touched;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const proptim_segment segment = { .arrays = { &never_touched, &never_touched }, .size = all[i].size };
        const proptim_row row = { .active = 1 };
        CHECK(proptim_step(NULL, PROPTIM_sgd, &segment, 1, &row, 3, only_count) == PROPTIM_RAN_PARALLEL, "counted");
        CHECK(dealt == all[i].parts, "%zu weights in %d parts, expected %d", all[i].size, dealt, all[i].parts);
    }
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
        for (int rule = 0; rule < PROPTIM_RULES; rule++)
            for (size_t p = 0; p < sizeof parts / sizeof *parts; p++)
                for (int e = 0; e < EACH; e++) scenario(isas[i], rule, parts[p], ++seed);
    printf("%llu steps of %d segments\n", (unsigned long long)seed, SEGMENTS);
    CHECK(proptim_step(isas[0], PROPTIM_sgd, NULL, 0, NULL, 3, backwards) == PROPTIM_RAN_PARALLEL, "nothing to do");
    CHECK(proptim_step(isas[0], PROPTIM_sgd, NULL, 0, NULL, 3, NULL) == PROPTIM_RAN_SERIAL, "nobody to do it");
    return 0;
}
