/*
 * proptim.h - step parameters on the CPU.  The public C API: C99 and C++, no Python.
 *
 * A rule (rules.def) updates parameters and state from gradients, element by element: proptim_apply() does that to one
 * array.  Stages (stages.def) run before or after the rule on the same block of elements while it is in L1.
 * proptim_step() takes segments - one parameter array with its gradient and state arrays - and rows of coefficients,
 * and does one step of all of them, stages and threads included.
 *
 * Contract: kernels and steps cannot fail and never allocate.  Arrays of one segment must not overlap, except that
 * nothing is written through the gradient pointer unless the zero stage is on.  Alignment to the element size is
 * enough.  Results are the same bits for every instruction set, thread count, alignment and memory layout.
 *
 * ABI: while PROPTIM_ABI stays, rules.def, stages.def and proptim_api grow only at their ends, no row of them changes,
 * and no struct changes its layout; so a program compiled with an older header runs with a newer library.
 */
#ifndef PROPTIM_H
#define PROPTIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    PROPTIM_ABI = 1,
    PROPTIM_MAX_ARRAYS = 5,  /* params, grads and three state arrays (Adam with AMSGrad, RMSprop with everything) */
    PROPTIM_MAX_COEFS = 16,  /* Rprop and RMSprop have ten; the rest is room for rules to come */
    PROPTIM_MAX_STAGES = 16, /* room as well */
    PROPTIM_MAX_DIMS = 65,   /* NumPy's 64, and one for the parts of complex numbers */
    PROPTIM_BLOCK = 4096     /* elements of one partial sum in proptim_reduce() */
};

enum { PROPTIM_PARAMS, PROPTIM_GRADS, PROPTIM_STATE }; /* indices of arrays; state arrays follow from PROPTIM_STATE */

typedef enum proptim_dtype { PROPTIM_F32, PROPTIM_F64, PROPTIM_DTYPES } proptim_dtype;

typedef enum proptim_rule {
#define PROPTIM_RULE(name, arrays, coefs) PROPTIM_##name,
#include "rules.def"
#undef PROPTIM_RULE
    PROPTIM_RULES
} proptim_rule;

typedef enum proptim_stage {
#define PROPTIM_STAGE(name, arrays, neutral) PROPTIM_##name,
#include "stages.def"
#undef PROPTIM_STAGE
    PROPTIM_STAGES
} proptim_stage;

/*
 * Arrays and coefficients of every rule by their names in rules.def, for those who write the rule's name into their
 * program: proptim_rmsprop_coefs has the members lr, alpha, one_minus_alpha, ...  Set all of them ("= { 0 }", then
 * by name), and pass the address of the first: `&arrays.param, &coefs.lr`.  rules/<name>.h has the formula.
 */
typedef void *proptim_array;
#define PROPTIM_NAMES(...) __VA_ARGS__
#define PROPTIM_RULE(name, arrays, coefs)    \
    typedef struct proptim_##name##_arrays { \
        proptim_array PROPTIM_NAMES arrays;  \
    } proptim_##name##_arrays;               \
    typedef struct proptim_##name##_coefs {  \
        double PROPTIM_NAMES coefs;          \
    } proptim_##name##_coefs;
#include "rules.def"
#undef PROPTIM_RULE
#undef PROPTIM_NAMES

/* Apply a rule or a stage to n contiguous elements.  An optional state array may be NULL. */
typedef void proptim_kernel(void *const *arrays, const double *coefs, size_t n);

/* The kernels of one instruction set; opaque.  NULL is the best that runs here, to all but proptim_isa_runs(). */
typedef struct proptim_isa proptim_isa;

/* One parameter array with its gradient and state.  grads == NULL: not stepped this time. */
typedef struct proptim_segment {
    void *arrays[PROPTIM_MAX_ARRAYS];
    size_t size; /* elements */
    proptim_dtype dtype;
    unsigned row; /* which row of coefficients */
    /* Memory layout, as proptim_layout() leaves it.  Where every array is one dense run: ndim 0 and dense ~0u. */
    int ndim;
    unsigned dense;                         /* bit j: array j is one aligned dense run, used in place */
    size_t *shape;                          /* [ndim] */
    ptrdiff_t *strides[PROPTIM_MAX_ARRAYS]; /* [ndim] bytes each */
} proptim_segment;

/* The numbers of one step, shared by segments that step alike; proptim_row_init() makes one. */
typedef struct proptim_row {
    double coefs[PROPTIM_MAX_COEFS];
    double stages[PROPTIM_MAX_STAGES]; /* a stage runs unless its coefficient is the neutral one of stages.def */
    int active;                        /* 0: segments of this row are not stepped this time */
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

/*
 * One step of one rule on n contiguous elements of each array; no stages and no threads.  Arrays and coefficients as
 * rules.def has them, the arrays that the rule allows to be absent NULL.  Sets and restores the floating-point
 * environment.
 */
void proptim_apply(const proptim_isa *isa, proptim_rule rule, proptim_dtype dtype, void *const *arrays,
                   const double *coefs, size_t n);

/* Instruction sets, best first; NULL behind the last.  Not every one runs on this CPU. */
const proptim_isa *proptim_isa_at(int index);
const char *proptim_isa_name(const proptim_isa *isa);
int proptim_isa_runs(const proptim_isa *isa);
/* The best that runs here, or the one of this name, as in getenv("PROPTIM_ISA"); NULL if it is none or does not run. */
const proptim_isa *proptim_isa_find(const char *name_or_null);

/* A kernel by rule and dtype.  It runs in the floating-point environment of its caller. */
proptim_kernel *proptim_isa_kernel(const proptim_isa *isa, proptim_rule rule, proptim_dtype dtype);

/* Make a row of these coefficients that is active, with every stage neutral. */
void proptim_row_init(proptim_row *row, proptim_rule rule, const double *coefs);

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

/*
 * All of this in one table, for those who do not link it but get it from somewhere: the Python package has it in the
 * capsule proptim._C_API (proptim_python.h).  New members come at the end.
 */
typedef struct proptim_api {
    uint32_t abi;           /* PROPTIM_ABI, */
    uint32_t size;          /* sizeof(proptim_api), */
    uint32_t rules, stages; /* PROPTIM_RULES and PROPTIM_STAGES of the library */
    void (*apply)(const proptim_isa *isa, proptim_rule rule, proptim_dtype dtype, void *const *arrays,
                  const double *coefs, size_t n);
    void (*row_init)(proptim_row *row, proptim_rule rule, const double *coefs);
    void (*layout)(proptim_segment *segment);
    proptim_ran (*step)(const proptim_isa *isa, proptim_rule rule, const proptim_segment *segments, size_t count,
                        const proptim_row *rows, int threads, proptim_parallel *parallel);
    size_t (*reduce_partials)(const proptim_view *views, size_t count);
    double (*reduce)(const proptim_isa *isa, const proptim_view *views, size_t count, double *partials, int *finite,
                     int threads, proptim_parallel *parallel);
    const proptim_isa *(*isa_at)(int index);
    const char *(*isa_name)(const proptim_isa *isa);
    int (*isa_runs)(const proptim_isa *isa);
    const proptim_isa *(*isa_find)(const char *name_or_null);
    proptim_kernel *(*isa_kernel)(const proptim_isa *isa, proptim_rule rule, proptim_dtype dtype);
    const char *(*rule_name)(proptim_rule rule);
    const char *(*rule_arrays)(proptim_rule rule);
    const char *(*rule_coefs)(proptim_rule rule);
    const char *(*stage_name)(proptim_stage stage);
    double (*stage_neutral)(proptim_stage stage);
    proptim_parallel *pool; /* threads of the library's own; NULL where it was built without */
} proptim_api;

const proptim_api *proptim_get_api(void);

#ifdef __cplusplus
}
#endif

#endif
