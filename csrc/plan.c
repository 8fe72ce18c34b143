/*
 * plan.c - one step: segments or tables -> parts for threads -> blocks -> pipeline.  Knows stages, but no rule by name.
 */
#include <math.h>
#include <string.h>

#include "fpenv.h"
#include "isa.h"
#include "parts.h"
#include "random.h"
#include "rows.h"
#include "strided.h"

enum {
    /*
     * Bytes of each array in one block.  Stages, rule and copies process a block one after the other,
     * so the arrays of a rule and the gradient that it sees, 6 blocks at most, should stay in an L1 of 32 KiB together.
     * Half the size was 3 to 10 % slower on Zen 3, in float32 and float64, and twice the size no faster.  With formats
     * the planes that lie in memory come on top, up to 36 KiB together; half of it gained nothing there with AVX-512
     * and lost 1 to 5 % with AVX2.
     */
    BLOCK = 4096,
    /*
     * Parts begin and end on multiples of this many elements from the array's start: those that share a scale, and
     * whole cache lines of any plane.  A block has a whole number of them.
     */
    UNIT = PROPTIM_QUANTA,
    /*
     * Elements of a row from which on the rule is called on each row where it lies.  A call takes as long as some 16
     * elements; shorter rows are copied together into blocks.
     */
    LONG_ROW = 16
};

/* Marks of rules.def: of every rule, a letter for each of its arrays. */
static const char marks_of[PROPTIM_RULES][PROPTIM_MAX_ARRAYS + 1] = {
#define PROPTIM_RULE(name, arrays, marks, coefs) marks,
#include "rules.def"
#undef PROPTIM_RULE
};

/* The neutral coefficient of each stage, for the test below. */
static const double neutral[PROPTIM_STAGES] = {
#define PROPTIM_STAGE(name, arrays, neutral) neutral,
#include "stages.def"
#undef PROPTIM_STAGE
};

struct step {
    const proptim_isa *isa;
    proptim_rule rule;
    const proptim_segment *segments;
    size_t count, units;
    const proptim_row *rows;
    const char *marks;
    const proptim_table *tables; /* of a step of rows, in the place of segments; its units are rows */
};

static size_t itemsize_of(proptim_dtype dtype) { return dtype == PROPTIM_F32 ? 4 : 8; }

static size_t units_of(const proptim_segment *s, const proptim_row *rows)
{
    return s->arrays[PROPTIM_GRADS].planes[0] && rows[s->row].active ? (s->size + UNIT - 1) / UNIT : 0;
}

/* Bit i: stage i is on. */
static unsigned stages_on(const proptim_row *row)
{
    unsigned on = 0;
    for (int i = 0; i < PROPTIM_STAGES; i++) on |= (unsigned)(row->stages[i] != neutral[i]) << i;
    return on;
}

/* Whether every array is a dense run of the dtype that the rule computes in. */
static int is_plain(const struct step *step, const proptim_segment *s)
{
    unsigned formats = PROPTIM_PLAIN; /* which is 0 */
    if (s->dense == PROPTIM_DENSE_PLAIN) return 1;
    for (int j = 0; step->marks[j]; j++) formats |= s->arrays[j].format;
    return ((s->dense & PROPTIM_DENSE) == PROPTIM_DENSE) & (formats == PROPTIM_PLAIN);
}

/* Elements begin .. end of a segment that is plain and has no stages: the rule, on all of them at once. */
static void run_plain(const struct step *step, const proptim_segment *s, size_t begin, size_t end)
{
    const size_t offset = begin * itemsize_of(s->dtype);
    void *a[PROPTIM_MAX_ARRAYS];
    for (int j = 0; step->marks[j]; j++) a[j] = s->arrays[j].planes[0] ? (char *)s->arrays[j].planes[0] + offset : NULL;
    step->isa->rules[step->rule][s->dtype](a, step->rows[s->row].coefs, end - begin);
}

const struct proptim_narrow proptim_narrows[PROPTIM_FORMATS] = {
    [PROPTIM_BF16] = { .fraction = 7, .bias = 127 },
    [PROPTIM_F16] = { .fraction = 10, .bias = 15 },
    [PROPTIM_FLOAT32] = { .fraction = 23, .bias = 127 },
    [PROPTIM_INT8] = { .levels = 127 },
    [PROPTIM_SQUARES8] = { .levels = 254 },
};

/* Whether numbers are rounded at random before they are stored in array j. */
static int dithers(const struct step *step, const proptim_segment *s, int j)
{
    const struct proptim_narrow *narrow = &proptim_narrows[s->arrays[j].format];
    return step->rows[s->row].rounding == PROPTIM_STOCHASTIC && step->marks[j] != 'r' &&
           (narrow->fraction | narrow->levels);
}

/* Whether a segment can be stepped with these stages where its arrays lie, by the kernels of fused.inc. */
static int fuses(const struct step *step, const proptim_segment *s, unsigned on)
{
    int known = step->isa->fused[step->rule] && s->dtype == PROPTIM_F32;
    unsigned formats = PROPTIM_PLAIN;
    for (int j = 0; known && step->marks[j]; j++) {
        const uint8_t format = s->arrays[j].format;
        known = s->dense >> j & (format == PROPTIM_PLAIN || format == PROPTIM_BF16 || format == PROPTIM_SPLIT) &
                !dithers(step, s, j);
        formats |= format;
    }
    return known & (formats != PROPTIM_PLAIN || !(on & ~PROPTIM_FUSED_STAGES));
}

/* Room for the planes of one array: elements of 8 bytes, in a block of elements of 4. */
typedef double plane_room[BLOCK / sizeof(float)];

/* Copy a plane of array j of a segment, or of the rows of a table, to dense memory or from it. */
static void copy_plane(const proptim_segment *s, const proptim_table *table, int j, int p, size_t begin, size_t size,
                       void *dense, int to_dense)
{
    const proptim_plane_array *a = &s->arrays[j];
    const size_t itemsize = proptim_itemsize(s->dtype, a->format, p);
    if (table)
        proptim_rows_copy(table, j, p, begin, size, dense, to_dense);
    else if (to_dense)
        proptim_gather(a->planes[p], s->ndim, s->shape, a->strides[p], itemsize, begin, size, dense);
    else
        proptim_scatter(a->planes[p], s->ndim, s->shape, a->strides[p], itemsize, begin, size, dense);
}

/*
 * Where elements begin .. begin + size of the planes of array j are: in the caller's memory, if it is dense, or in
 * `rooms`, to which they are gathered where they are to be read.
 */
static void find_planes(const proptim_segment *s, const proptim_table *table, int dense, int j, size_t begin,
                        size_t size, int gathers, plane_room *rooms, void **found)
{
    const proptim_plane_array *a = &s->arrays[j];
    for (int p = 0; p < 2 && a->planes[p]; p++) {
        if (dense || proptim_shared(a->format, p)) {
            found[p] = proptim_plane_at(s->dtype, a, p, begin);
        } else {
            found[p] = rooms[p];
            if (gathers) copy_plane(s, table, j, p, begin, size, rooms[p], 1);
        }
    }
}

/* Random words of n elements whose indices begin at `index` and go up by `by`, which is not 0. */
static void draw_run(const proptim_isa *isa, uint64_t key, uint64_t index, ptrdiff_t by, size_t n, uint32_t *words)
{
    while (n > 0) { /* as far as the upper 32 bits of the index stay the same */
        const uint64_t left = by > 0 ? (uint32_t)~index : (uint32_t)index, each = (uint64_t)(by > 0 ? by : -by);
        const size_t size = left / each < n - 1 ? (size_t)(left / each) + 1 : n;
        isa->random(words, size, random_key(key, index >> 32), (uint32_t)index, (uint32_t)by);
        index += (uint64_t)by * size;
        words += size;
        n -= size;
    }
}

/* The random words of elements begin .. begin + n, counted as in run_blocks(), for stores in array j. */
static void draw(const struct step *step, const proptim_segment *s, const proptim_table *table, int j, size_t begin,
                 size_t n, uint32_t *words)
{
    const proptim_row *row = &step->rows[s->row];
    const uint64_t numbers[] = { row->seed, s->parameter, (uint64_t)j, row->step };
    uint64_t key = 0;
    for (int i = 0; i < 4; i++) key = random_key(key, numbers[i]);
    for (size_t run; n > 0; begin += run, words += run, n -= run) {
        const int last = s->ndim - 1;
        uint64_t index = s->first;
        ptrdiff_t by = 1;
        run = n;
        if (table) {
            const size_t from = begin % s->size;
            if (run > s->size - from) run = s->size - from;
            index += (uint64_t)proptim_row_of(table, begin / s->size) * s->size + from;
        } else if (!s->order || last < 0) {
            index += begin;
        } else {
            size_t rest = begin;
            by = s->order[last];
            if (run > s->shape[last] - begin % s->shape[last]) run = s->shape[last] - begin % s->shape[last];
            for (int d = last; d >= 0; rest /= s->shape[d--]) index += rest % s->shape[d] * (uint64_t)s->order[d];
        }
        draw_run(step->isa, key, index, by, run, words);
    }
}

/*
 * The same for any arrays and stages, block by block: gathered and loaded, through stages and rule, and back.  Of a
 * table, whose first row the segment is, elements are counted through the rows that have a gradient, and no array is
 * used in place; otherwise it is NULL.
 */
static void run_blocks(const struct step *step, const proptim_segment *s, const proptim_table *table, unsigned on,
                       size_t begin, size_t end)
{
    const proptim_row *row = &step->rows[s->row];
    const proptim_dtype dtype = s->dtype;
    const size_t itemsize = itemsize_of(dtype), block = BLOCK / itemsize;
    const char *const marks = step->marks;
    const unsigned dense = table ? 0 : s->dense;
    struct proptim_ahead ahead;
    proptim_kernel *const rule = step->isa->rules[step->rule][dtype];
    double scratch[PROPTIM_MAX_ARRAYS + 1][BLOCK / sizeof(double)];
    plane_room planes[2];

#define RUN_STAGE(name, ...)                                                                    \
    do {                                                                                        \
        void *operands[] = { __VA_ARGS__ };                                                     \
        step->isa->stages[PROPTIM_##name][dtype](operands, &row->stages[PROPTIM_##name], size); \
    } while (0)

    if (table) proptim_rows_ahead(table, &ahead);
    for (size_t size; begin < end; begin += size) {
        size = end - begin < block ? end - begin : block;
        if (table) /* the rows of the next block, while this one is stepped */
            for (size_t d = begin / s->size; d * s->size < begin + size; d++)
                proptim_rows_prefetch(table, &ahead, d + block / s->size + 1);

        /* The arrays of the rule: in the caller's memory, or gathered. */
        void *a[PROPTIM_MAX_ARRAYS];
        for (int j = 0; marks[j]; j++) {
            const proptim_plane_array *from = &s->arrays[j];
            a[j] = from->planes[0];
            if (!a[j]) continue;
            if (table && j == PROPTIM_GRADS) {
                proptim_rows_sums(step->isa, table, begin, size, scratch[j]);
                a[j] = scratch[j];
            } else if (from->format != PROPTIM_PLAIN) {
                void *operands[3] = { scratch[j] };
                find_planes(s, table, dense >> j & 1, j, begin, size, 1, planes, operands + 1);
                step->isa->loads[from->format][dtype](operands, size);
                a[j] = scratch[j];
            } else if (dense >> j & 1) {
                a[j] = (char *)a[j] + begin * itemsize;
            } else {
                copy_plane(s, table, j, 0, begin, size, scratch[j], 1);
                a[j] = scratch[j];
            }
        }

        void *const grad = a[PROPTIM_GRADS], *const seen = scratch[PROPTIM_MAX_ARRAYS];
        const int zeroed = on >> PROPTIM_zero & 1;
        if (on >> PROPTIM_decay & 1) RUN_STAGE(decay, a[PROPTIM_PARAMS]);
        if (on >> PROPTIM_scale & 1) {
            RUN_STAGE(scale, seen, a[PROPTIM_GRADS]);
            a[PROPTIM_GRADS] = seen;
        }
        if (on >> PROPTIM_clip & 1) {
            RUN_STAGE(clip, seen, a[PROPTIM_GRADS]);
            a[PROPTIM_GRADS] = seen;
        }
        if (on >> PROPTIM_l2 & 1) {
            RUN_STAGE(l2, seen, a[PROPTIM_GRADS], a[PROPTIM_PARAMS]);
            a[PROPTIM_GRADS] = seen;
        }
        rule(a, row->coefs, size);
        a[PROPTIM_GRADS] = grad;
        if (zeroed) RUN_STAGE(zero, grad);
        if (on >> PROPTIM_flush & 1)
            for (int j = PROPTIM_STATE; marks[j]; j++)
                if (a[j]) RUN_STAGE(flush, a[j]);

        /* Store and scatter what was gathered or loaded, and then written. */
        for (int j = 0; marks[j]; j++) {
            const proptim_plane_array *to = &s->arrays[j];
            const int written = (marks[j] != 'r') | ((j == PROPTIM_GRADS) & zeroed);
            if (!written || a[j] != scratch[j]) continue;
            if (table && j == PROPTIM_GRADS) {
                proptim_rows_zero(table, begin, size);
                continue;
            }
            if (j != PROPTIM_GRADS && dithers(step, s, j)) {
                uint32_t *const words = (uint32_t *)(void *)seen; /* which the rule has read */
                draw(step, s, table, j, begin, size, words);
                const struct proptim_narrow narrow = proptim_narrows[to->format];
                if (narrow.levels)
                    step->isa->dither_levels(scratch[j], words, size, narrow.levels);
                else
                    step->isa->dithers[dtype](scratch[j], words, size, narrow.fraction, narrow.bias);
            }
            void *operands[3] = { scratch[j], scratch[j] };
            if (to->format != PROPTIM_PLAIN) {
                find_planes(s, table, dense >> j & 1, j, begin, size, 0, planes, operands + 1);
                step->isa->stores[to->format][dtype](operands, size);
            }
            for (int p = 0; p < 2 && to->planes[p] && !(dense >> j & 1); p++)
                if (!proptim_shared(to->format, p)) copy_plane(s, table, j, p, begin, size, operands[1 + p], 0);
        }
    }
#undef RUN_STAGE
}

/* The stage `average` on elements begin .. begin + size, a block at most, of a segment that has been stepped there. */
static void run_average(const struct step *step, const proptim_segment *s, size_t begin, size_t size)
{
    const proptim_plane_array *param = &s->arrays[PROPTIM_PARAMS];
    const int in_place = s->dense >> PROPTIM_AVERAGE & 1;
    double weights[BLOCK / sizeof(double)];
    plane_room planes[2], room[1];
    void *stored[3] = { weights }, *operands[2];
    find_planes(s, NULL, s->dense >> PROPTIM_PARAMS & 1, PROPTIM_PARAMS, begin, size, 1, planes, stored + 1);
    find_planes(s, NULL, in_place, PROPTIM_AVERAGE, begin, size, 1, room, operands);
    operands[1] = param->format == PROPTIM_PLAIN ? stored[1] : weights;
    if (param->format != PROPTIM_PLAIN) step->isa->loads[param->format][s->dtype](stored, size);
    step->isa->stages[PROPTIM_average][s->dtype](operands, &step->rows[s->row].stages[PROPTIM_average], size);
    if (!in_place) copy_plane(s, NULL, PROPTIM_AVERAGE, 0, begin, size, operands[0], 0);
}

/* Elements begin .. end of a segment that has stages or is not plain. */
static void run_segment(const struct step *step, const proptim_segment *s, unsigned on, size_t begin, size_t end)
{
    const unsigned around = on & ~(1u << PROPTIM_average);
    const int averages = on != around && s->arrays[PROPTIM_AVERAGE].planes[0];
    /* With an average, its stage follows while the weights of a block are in the cache. */
    const size_t most = averages ? BLOCK / itemsize_of(s->dtype) : end - begin;
    for (size_t next; begin < end; begin = next) {
        next = end - begin < most ? end : begin + most;
        if (!around && is_plain(step, s)) {
            run_plain(step, s, begin, next);
        } else {
            size_t rest = begin;
            if (fuses(step, s, around))
                rest = step->isa->fused[step->rule](s->arrays, &step->rows[s->row], around, begin, next);
            run_blocks(step, s, NULL, around, rest, next);
        }
        if (averages) run_average(step, s, begin, next - begin);
    }
}

/* One part: its units, counted through all segments. */
static void run_part(void *data, int part, int parts)
{
    const struct step *step = (const struct step *)data;
    const fpenv saved = fpenv_enter();
    const size_t begin = part_begin(step->units, part, parts), end = part_begin(step->units, part + 1, parts);
    const proptim_row *row = NULL;
    unsigned on = 0;
    size_t at = 0;
    for (size_t i = 0; i < step->count && at < end; i++) {
        const proptim_segment *s = &step->segments[i];
        if (row != &step->rows[s->row]) on = stages_on(row = &step->rows[s->row]); /* segments share rows */
        const size_t units = units_of(s, step->rows);
        const size_t first = begin > at ? begin - at : 0, last = end - at < units ? end - at : units;
        if (first < last) {
            const size_t from = first * UNIT, to = last * UNIT < s->size ? last * UNIT : s->size;
            if (!on && is_plain(step, s))
                run_plain(step, s, from, to);
            else
                run_segment(step, s, on, from, to);
        }
        at += units;
    }
    fpenv_leave(saved);
}

proptim_ran proptim_step(const proptim_isa *isa, proptim_rule rule, const proptim_segment *segments, size_t count,
                         const proptim_row *rows, int threads, proptim_parallel *parallel)
{
    struct step step = { proptim_isa_or_best(isa), rule, segments, count, 0, rows, marks_of[rule], NULL };
    for (size_t i = 0; i < count; i++) step.units += units_of(&segments[i], rows);
    if (threads > 1 && parallel) return parallel(run_part, &step, parts_of(step.units * UNIT, count, threads), threads);
    run_part(&step, 0, 1);
    return PROPTIM_RAN_SERIAL;
}

/* Whether the rule can be called on each row of a table where it lies. */
static int steps_in_place(const struct step *step, const proptim_table *table)
{
    const proptim_segment *s = &table->first;
    size_t odd = 0; /* bytes by which rows are off the alignment of the first */
    for (int j = 0; step->marks[j]; j++)
        if (s->arrays[j].planes[0]) odd |= (size_t)table->strides[j][0] % itemsize_of(s->dtype);
    return s->size >= LONG_ROW && !odd && is_plain(step, s);
}

/* Rows begin .. end of those that have a gradient, where they lie; gradients that have to be added up are, in blocks.
 */
static void run_rows(const struct step *step, const proptim_table *table, size_t begin, size_t end)
{
    const proptim_segment *s = &table->first;
    const size_t itemsize = itemsize_of(s->dtype), block = BLOCK / itemsize;
    const double *const coefs = step->rows[s->row].coefs;
    proptim_kernel *const rule = step->isa->rules[step->rule][s->dtype];
    double sums[BLOCK / sizeof(double)];
    struct proptim_ahead ahead;
    proptim_rows_ahead(table, &ahead);
    for (size_t d = begin; d < end; d++) {
        const size_t first = table->starts[d], row = table->entries[2 * first], at = table->entries[2 * first + 1];
        const int repeats = table->starts[d + 1] - first > 1;
        void *a[PROPTIM_MAX_ARRAYS];
        proptim_rows_prefetch(table, &ahead, d + ROWS_AHEAD);
        for (int j = 0; step->marks[j]; j++)
            a[j] = s->arrays[j].planes[0] ? proptim_row_at(table, j, 0, j == PROPTIM_GRADS ? at : row) : NULL;
        if (!repeats) {
            rule(a, coefs, s->size);
            continue;
        }
        a[PROPTIM_GRADS] = sums;
        for (size_t from = 0, size; from < s->size; from += size) {
            size = s->size - from < block ? s->size - from : block;
            proptim_rows_sums(step->isa, table, d * s->size + from, size, sums);
            rule(a, coefs, size);
            for (int j = 0; step->marks[j]; j++)
                if (a[j] && j != PROPTIM_GRADS) a[j] = (char *)a[j] + size * itemsize;
        }
    }
}

static size_t rows_of(const proptim_table *table, const proptim_row *rows)
{
    return rows[table->first.row].active && table->first.size ? table->distinct : 0;
}

/* One part of a step of tables: its rows, counted through all of them. */
static void run_part_of_rows(void *data, int part, int parts)
{
    const struct step *step = (const struct step *)data;
    const fpenv saved = fpenv_enter();
    const size_t begin = part_begin(step->units, part, parts), end = part_begin(step->units, part + 1, parts);
    size_t at = 0;
    for (size_t i = 0; i < step->count && at < end; i++) {
        const proptim_table *table = &step->tables[i];
        const size_t rows = rows_of(table, step->rows);
        const size_t first = begin > at ? begin - at : 0, last = end - at < rows ? end - at : rows;
        if (first < last) {
            const proptim_segment *s = &table->first;
            const unsigned on = stages_on(&step->rows[s->row]);
            if (!on && steps_in_place(step, table))
                run_rows(step, table, first, last);
            else
                run_blocks(step, s, table, on, first * s->size, last * s->size);
        }
        at += rows;
    }
    fpenv_leave(saved);
}

proptim_ran proptim_step_rows(const proptim_isa *isa, proptim_rule rule, const proptim_table *tables, size_t count,
                              const proptim_row *rows, int threads, proptim_parallel *parallel)
{
    struct step step = { proptim_isa_or_best(isa), rule, NULL, count, 0, rows, marks_of[rule], tables };
    size_t elements = 0;
    for (size_t i = 0; i < count; i++) {
        const size_t stepped = rows_of(&tables[i], rows);
        step.units += stepped;
        elements += stepped * tables[i].first.size;
    }
    if (threads > 1 && parallel) return parallel(run_part_of_rows, &step, parts_of(elements, count, threads), threads);
    run_part_of_rows(&step, 0, 1);
    return PROPTIM_RAN_SERIAL;
}

void proptim_apply(const proptim_isa *isa, proptim_rule rule, proptim_dtype dtype, void *const *arrays,
                   const double *coefs, size_t n)
{
    const fpenv saved = fpenv_enter();
    proptim_isa_or_best(isa)->rules[rule][dtype](arrays, coefs, n);
    fpenv_leave(saved);
}

void proptim_row_init(proptim_row *row, proptim_rule rule, const double *coefs)
{
    static const size_t bytes[PROPTIM_RULES] = {
#define PROPTIM_RULE(name, arrays, marks, coefs) sizeof(proptim_##name##_coefs),
#include "rules.def"
#undef PROPTIM_RULE
    };
    memset(row, 0, sizeof *row);
    memcpy(row->coefs, coefs, bytes[rule]);
    memcpy(row->stages, neutral, sizeof neutral);
    row->active = 1;
}
