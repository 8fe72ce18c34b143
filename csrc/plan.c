/*
 * plan.c - one step: segments -> parts for threads -> blocks -> pipeline.  Knows stages, but no rule by name.
 */
#include <math.h>
#include <string.h>

#include "fpenv.h"
#include "isa.h"
#include "parts.h"
#include "strided.h"

enum {
    /*
     * Elements of one block of the pipeline.  A double block of scratch for the gradient and for every array that has
     * to be gathered is 6 * 8 KiB: small enough for L1 beside the caller's lines, and for any thread's stack.
     */
    BLOCK = 1024,
    /* Parts begin and end on multiples of this many elements from the array's start: 4 or 8 cache lines. */
    UNIT = 64
};

/* Where a stage does nothing: one table for the test below, which every range makes. */
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
};

static size_t units_of(const proptim_segment *s, const proptim_row *rows)
{
    return s->arrays[PROPTIM_GRADS] && rows[s->row].active ? (s->size + UNIT - 1) / UNIT : 0;
}

/* Bit i: stage i does something. */
static unsigned stages_on(const proptim_row *row)
{
    unsigned on = 0;
    for (int i = 0; i < PROPTIM_STAGES; i++) on |= (unsigned)(row->stages[i] != neutral[i]) << i;
    return on;
}

/* Elements begin .. end of one segment. */
static void run_range(const struct step *step, const proptim_segment *s, unsigned on, size_t begin, size_t end)
{
    const proptim_row *row = &step->rows[s->row];
    const proptim_dtype dtype = s->dtype;
    const size_t itemsize = dtype == PROPTIM_F32 ? 4 : 8;
    proptim_kernel *const rule = step->isa->rules[step->rule][dtype];
    double scratch[PROPTIM_MAX_ARRAYS + 1][BLOCK];

#define RUN_STAGE(name, ...)                                                                    \
    do {                                                                                        \
        void *operands[] = { __VA_ARGS__ };                                                     \
        step->isa->stages[PROPTIM_##name][dtype](operands, &row->stages[PROPTIM_##name], size); \
    } while (0)

    const size_t block = on || s->ndim ? BLOCK : end - begin;
    for (size_t size; begin < end; begin += size) {
        size = end - begin < block ? end - begin : block;

        /* Where the rule finds its arrays: in the caller's memory, or gathered. */
        void *a[PROPTIM_MAX_ARRAYS];
        for (int j = 0; j < PROPTIM_MAX_ARRAYS; j++) {
            a[j] = s->arrays[j];
            if (!a[j]) continue;
            if (s->dense >> j & 1) {
                a[j] = (char *)a[j] + begin * itemsize;
            } else {
                proptim_gather(a[j], s->ndim, s->shape, s->strides[j], itemsize, begin, size, scratch[j]);
                a[j] = scratch[j];
            }
        }

        void *grad = a[PROPTIM_GRADS], *seen = scratch[PROPTIM_MAX_ARRAYS];
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
        if (on >> PROPTIM_zero & 1) RUN_STAGE(zero, grad);
        if (on >> PROPTIM_flush & 1)
            for (int j = PROPTIM_STATE; j < PROPTIM_MAX_ARRAYS; j++)
                if (a[j]) RUN_STAGE(flush, a[j]);

        /* What was gathered and written goes back; gradients only if they were set to zero. */
        a[PROPTIM_GRADS] = (on >> PROPTIM_zero & 1) ? grad : NULL;
        for (int j = 0; j < PROPTIM_MAX_ARRAYS; j++)
            if (a[j] == scratch[j])
                proptim_scatter(s->arrays[j], s->ndim, s->shape, s->strides[j], itemsize, begin, size, scratch[j]);
    }
#undef RUN_STAGE
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
        if (first < last) run_range(step, s, on, first * UNIT, last * UNIT < s->size ? last * UNIT : s->size);
        at += units;
    }
    fpenv_leave(saved);
}

proptim_ran proptim_step(const proptim_isa *isa, proptim_rule rule, const proptim_segment *segments, size_t count,
                         const proptim_row *rows, int threads, proptim_parallel *parallel)
{
    struct step step = { proptim_isa_or_best(isa), rule, segments, count, 0, rows };
    for (size_t i = 0; i < count; i++) step.units += units_of(&segments[i], rows);
    if (threads > 1 && parallel) return parallel(run_part, &step, parts_of(step.units * UNIT, count, threads), threads);
    run_part(&step, 0, 1);
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
#define PROPTIM_RULE(name, arrays, coefs) sizeof(proptim_##name##_coefs),
#include "rules.def"
#undef PROPTIM_RULE
    };
    memset(row, 0, sizeof *row);
    memcpy(row->coefs, coefs, bytes[rule]);
    memcpy(row->stages, neutral, sizeof neutral);
    row->active = 1;
}
