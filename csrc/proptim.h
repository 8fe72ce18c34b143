/*
 * proptim.h - step parameters on the CPU.  The public C API: C99 and C++, no Python.
 *
 * A rule (rules.def) updates parameters and state from gradients, element by element.  Stages (stages.def) run before
 * or after the rule on the same block of elements while it is in L1.  proptim_step() takes segments - one parameter
 * array with its gradient and state arrays - and rows of coefficients, and does one step of all of them.
 *
 * Contract: kernels and steps cannot fail and never allocate.  Arrays of one segment must not overlap, except that
 * nothing is written through the gradient pointer unless the zero stage is on.  Alignment to the element size is
 * enough.  Results are the same bits for every instruction set, thread count, alignment and memory layout.
 */
#ifndef PROPTIM_H
#define PROPTIM_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    PROPTIM_MAX_ARRAYS = 5, /* params, grads and three state arrays (Adam with AMSGrad, RMSprop with everything) */
    PROPTIM_MAX_COEFS = 12, /* Rprop, NAdam and RMSprop: ten to twelve */
    PROPTIM_BLOCK = 4096    /* elements of one partial sum in proptim_reduce() */
};

enum { PROPTIM_PARAMS, PROPTIM_GRADS, PROPTIM_STATE }; /* indices of arrays; state arrays follow from PROPTIM_STATE */

typedef enum proptim_dtype { PROPTIM_F32, PROPTIM_F64, PROPTIM_DTYPES } proptim_dtype;

typedef enum proptim_rule {
#define RULE(name, arrays, coefs) PROPTIM_##name,
#include "rules.def"
#undef RULE
    PROPTIM_RULES
} proptim_rule;

typedef enum proptim_stage {
#define STAGE(name, arrays, neutral) PROPTIM_##name,
#include "stages.def"
#undef STAGE
    PROPTIM_STAGES
} proptim_stage;

/* Apply a rule or a stage to n contiguous elements.  An optional state array may be NULL. */
typedef void proptim_kernel(void *const *arrays, const double *coefs, size_t n);

/* The kernels of one instruction set; opaque. */
typedef struct proptim_isa proptim_isa;

/* One parameter array with its gradient and state.  grads == NULL: not stepped this time. */
typedef struct proptim_segment {
    void *arrays[PROPTIM_MAX_ARRAYS];
    size_t size; /* elements */
    proptim_dtype dtype;
    unsigned row; /* which row of coefficients */
    /* Memory layout, as proptim_layout() leaves it: ndim == 0 when every array is one dense run. */
    int ndim;
    unsigned dense;                         /* bit j: array j is one aligned dense run, used in place */
    size_t *shape;                          /* [ndim] */
    ptrdiff_t *strides[PROPTIM_MAX_ARRAYS]; /* [ndim] bytes each */
} proptim_segment;

/* The numbers of one step, shared by segments that step alike. */
typedef struct proptim_row {
    double coefs[PROPTIM_MAX_COEFS];
    double stages[PROPTIM_STAGES]; /* a stage runs unless its coefficient is the neutral one of stages.def */
    int active;
} proptim_row;

/* Read-only array of any layout, elements in C order. */
typedef struct proptim_view {
    const void *data;
    proptim_dtype dtype;
    int ndim;
    const ptrdiff_t *shape, *strides; /* strides in bytes */
} proptim_view;

/*
 * Run task(data, part, parts) for every part of `parts`, or task(data, 0, 1), on at most `threads` threads and in any
 * order; return after the last.
 */
typedef void proptim_task(void *data, int part, int parts);
typedef enum proptim_ran { PROPTIM_RAN_SERIAL, PROPTIM_RAN_PARALLEL, PROPTIM_RAN_FORKED } proptim_ran;
typedef proptim_ran proptim_parallel(proptim_task *task, void *data, int parts, int threads);

/* Instruction sets, best first; NULL behind the last.  Not every one runs on this CPU. */
const proptim_isa *proptim_isa_at(int index);
const char *proptim_isa_name(const proptim_isa *isa);
int proptim_isa_runs(const proptim_isa *isa);
/* The best that runs here, or the one of this name; NULL if there is none or it does not run. */
const proptim_isa *proptim_isa_find(const char *name_or_null);

/* A kernel by rule and dtype. */
proptim_kernel *proptim_isa_kernel(const proptim_isa *isa, proptim_rule rule, proptim_dtype dtype);

/*
 * Set the layout of a segment from the shape and the byte strides of its arrays (NULL for absent arrays): sort, flip
 * and merge axes so that as much as possible is one dense run.  arrays, shape and strides must be set, shape and
 * strides in memory of at least ndim elements each; all are rewritten, size is computed.
 */
void proptim_layout(proptim_segment *segment);

/*
 * One step of all segments, cut into parts of equal size that `parallel` deals to its threads; serially with
 * threads == 1 or parallel == NULL.  Saves, sets and restores the floating-point environment of every thread.
 */
proptim_ran proptim_step(const proptim_isa *isa, proptim_rule rule, const proptim_segment *segments, size_t count,
                         const proptim_row *rows, int threads, proptim_parallel *parallel);

/*
 * Sum of squares of all elements of all views in double, in a fixed order: see reduce.c.  `partials` is scratch for
 * proptim_reduce_partials() doubles.  *finite: whether every element is.  Threads as in proptim_step().
 */
size_t proptim_reduce_partials(const proptim_view *views, size_t count);
double proptim_reduce(const proptim_isa *isa, const proptim_view *views, size_t count, double *partials, int *finite,
                      int threads, proptim_parallel *parallel);

/* Names, for those who choose rules at run time: "rmsprop", "param, grad, square_avg, ...", "lr, alpha, ...". */
const char *proptim_rule_name(proptim_rule rule);
const char *proptim_rule_arrays(proptim_rule rule);
const char *proptim_rule_coefs(proptim_rule rule);
const char *proptim_stage_name(proptim_stage stage);
double proptim_stage_neutral(proptim_stage stage);

#ifdef __cplusplus
}
#endif

#endif
