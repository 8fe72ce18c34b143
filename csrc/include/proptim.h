/*
 * proptim.h - optimizer steps on the CPU.  The public C API: C99 and C++, no Python.
 *
 * A rule (rules.def) updates parameters and state from gradients, element by element: proptim_apply() does that to one
 * array.  Stages (stages.def) run before or after the rule on the same block of elements while it is in L1.
 * proptim_step() takes segments - one parameter array with its gradient and state arrays - and rows of coefficients,
 * and does one step of all of them, stages and threads included.
 *
 * Contract: kernels and steps cannot fail and never allocate.  Arrays of one segment must not overlap.  Arrays that
 * rules.def marks as read-only are not written, except that the zero stage clears gradients.  Alignment to the element
 * size is enough.  Results are the same bits for every instruction set, thread count, alignment and memory layout.
 *
 * ABI: as long as PROPTIM_ABI is the same, rules.def, stages.def, codecs.def and proptim_api grow only at their ends,
 * none of their rows changes, and no struct changes its layout.  So a program compiled with an older header runs with a
 * newer library.
 */
#ifndef PROPTIM_H
#define PROPTIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    PROPTIM_ABI = 2,
    PROPTIM_QUANTA = 256,    /* elements that share a scale in PROPTIM_INT8 and _SQUARES8 */
    PROPTIM_MAX_ARRAYS = 8,  /* params, grads, up to three state arrays; two are reserved; PROPTIM_AVERAGE */
    PROPTIM_MAX_COEFS = 16,  /* RMSprop uses eleven; the others are reserved for new rules */
    PROPTIM_MAX_STAGES = 16, /* the same, for new stages */
    PROPTIM_MAX_DIMS = 65,   /* NumPy's 64, and one for the parts of complex numbers */
    PROPTIM_BLOCK = 4096,    /* elements of one partial sum in proptim_reduce() */
    PROPTIM_DENSE = 255      /* `dense` of a segment in which every array is one aligned dense run */
};

/* How numbers are rounded that are stored in an array of fewer bits than the rule computes in. */
typedef enum proptim_rounding { PROPTIM_NEAREST, PROPTIM_STOCHASTIC } proptim_rounding;

/*
 * Indices of arrays; state arrays follow from PROPTIM_STATE.  PROPTIM_AVERAGE is no array of the rule: a plain one for
 * the average of the parameter that the stage `average` keeps.  Without it the stage does nothing.  It averages what
 * the step has stored, a master where there is one, and proptim_step_rows() leaves it out.
 */
enum { PROPTIM_PARAMS, PROPTIM_GRADS, PROPTIM_STATE, PROPTIM_AVERAGE = PROPTIM_MAX_ARRAYS - 1 };

/* The type of a rule's arithmetic. */
typedef enum proptim_dtype { PROPTIM_F32, PROPTIM_F64, PROPTIM_DTYPES } proptim_dtype;

/*
 * How an array lies in memory.  A rule computes in its dtype whatever its arrays hold: they are converted when they are
 * read, and rounded once when they are written: to nearest even, or in the formats PROPTIM_BF16, _F16, _FLOAT32, _INT8
 * and _SQUARES8, if the row says so, at random to one of both neighbours, so that the expected value is the number
 * itself.
 *
 * A model that uses weights of 16 bits has them in planes[0].  If planes[1] holds the rest of a float32, steps have the
 * precision of float32.  For a new array of weights, set low halves to 0, and a master to the same numbers.
 *
 * The program may write to planes[0] between steps.  If a number there is not the rounded master, it is loaded instead
 * of the master.  With PROPTIM_SPLIT the number is loaded together with its old low half: an infinity with a negative
 * low half is loaded as a finite number of about 3.39e38, and a zero with a positive low half as a subnormal number of
 * up to 4.6e-41, which makes every later step slow.  A program that writes zeros or infinities, for example to prune
 * weights, sets planes[1] to 0 at the same places, so that exactly what it has written is loaded.
 *
 *   PROPTIM_PLAIN         the dtype that the rule computes in
 *   PROPTIM_STEPS         Rprop's state in two planes of that dtype: step sizes, and numbers with the last signs
 *   PROPTIM_BF16, _F16    bfloat16; binary16 of IEEE 754
 *   PROPTIM_SPLIT         where the rule computes in float32: bfloat16 and int16_t, whose sum
 *                         planes[0] 2^16 + planes[1] is its bits
 *   PROPTIM_BF16_MASTER, _F16_MASTER
 *                         where the rule computes in float32: bfloat16 or binary16, and a float32 master, of which
 *                         the former is the rounded value
 *   PROPTIM_BF16_COPY, _F16_COPY
 *                         where the rule computes in float32: float32, and bfloat16 or binary16, which every step sets
 *                         to the rounded float32 and never reads
 *   PROPTIM_FLOAT32       float32, where the rule computes in float64
 *   PROPTIM_FLOAT64       float64, where the rule computes in float32
 *   PROPTIM_INT8, _SQUARES8
 *                         where the rule computes in float32: averages in int8_t, and numbers that are never negative
 *                         in uint8_t.  planes[0] has the elements in C order, as one dense run; planes[1] has a float
 *                         for each PROPTIM_QUANTA of them, and for the fewer at the end: the largest size among them,
 *                         of which codecs/levels.h has the rest.  Zeros everywhere are zeros.  Not in tables.
 *   PROPTIM_STEPS8        where the rule computes in float32: Rprop's state in uint8_t.  planes[1] has two floats, the
 *                         largest step size and n: etas are powers of the n-th root of 2, and n is 1 to 4; see
 *                         codecs/steps8.h.  proptim_rprop_steps8() is the code of a first step size.
 * The second planes of the last three have no strides.
 */
typedef enum proptim_format {
    PROPTIM_PLAIN,
#define PROPTIM_CODEC(NAME, name, bytes, arrays) PROPTIM_##NAME,
#define PROPTIM_CODEC_F32                        PROPTIM_CODEC
#define PROPTIM_CODEC_F64                        PROPTIM_CODEC
#include "codecs.def"
#undef PROPTIM_CODEC
#undef PROPTIM_CODEC_F32
#undef PROPTIM_CODEC_F64
    PROPTIM_FORMATS
} proptim_format;

typedef enum proptim_rule {
#define PROPTIM_RULE(name, arrays, marks, coefs) PROPTIM_##name,
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
 * Arrays and coefficients of every rule by their names in rules.def, for programs whose source names the rule:
 * proptim_rmsprop_coefs has the members lr, alpha, one_minus_alpha, ...  Set all of them (start with "= { 0 }"), and
 * pass the address of the first: `&arrays.param, &coefs.lr`.  rules/<name>.h has the formula.
 */
typedef void *proptim_array;
#define PROPTIM_NAMES(...) __VA_ARGS__
#define PROPTIM_RULE(name, arrays, marks, coefs) \
    typedef struct proptim_##name##_arrays {     \
        proptim_array PROPTIM_NAMES arrays;      \
    } proptim_##name##_arrays;                   \
    typedef struct proptim_##name##_coefs {      \
        double PROPTIM_NAMES coefs;              \
    } proptim_##name##_coefs;
#include "rules.def"
#undef PROPTIM_RULE
#undef PROPTIM_NAMES

/* Apply a rule or a stage to n contiguous elements.  An optional state array may be NULL. */
typedef void proptim_kernel(void *const *arrays, const double *coefs, size_t n);

/* The kernels of one instruction set; opaque.  Except for proptim_isa_runs(), NULL means the best that runs here. */
typedef struct proptim_isa proptim_isa;

/* One array of a segment.  planes[0] == NULL: the array is absent. */
typedef struct proptim_plane_array {
    void *planes[2];       /* the elements; the second plane is NULL in formats that have only one */
    ptrdiff_t *strides[2]; /* of each plane, [ndim] bytes; not read where the segment is dense */
    uint8_t format;        /* a proptim_format */
} proptim_plane_array;

/* One parameter array with its gradient and state.  A segment without a gradient is left out of the step. */
typedef struct proptim_segment {
    size_t size; /* elements */
    proptim_dtype dtype;
    unsigned row; /* which row of coefficients */
    /*
     * Memory layout, as proptim_layout() sets it.  If every array is a dense run, in any format, the program can set it
     * itself: ndim = 0 and dense = PROPTIM_DENSE.  dense = ~0u means the same.
     */
    int ndim;
    unsigned dense; /* bit j: every plane of array j is one aligned dense run, used in place */
    size_t *shape;  /* [ndim] */
    proptim_plane_array arrays[PROPTIM_MAX_ARRAYS];
    /*
     * Which elements these are, for stochastic rounding: `parameter` is a number of the parameter, and `first` the
     * index of the first element, in C order of the whole parameter: 0 unless the segment is only a part of it.
     * `order`: memory for [ndim] numbers, which proptim_layout() sets, and `first` with it, to the strides of that
     * index; NULL if the elements are stepped in C order, as dense runs are, or if nothing is rounded at random.
     */
    uint64_t parameter, first;
    ptrdiff_t *order;
} proptim_segment;

/* The numbers of one step, shared by all segments with the same coefficients; proptim_row_init() makes a row. */
typedef struct proptim_row {
    double coefs[PROPTIM_MAX_COEFS];
    double stages[PROPTIM_MAX_STAGES]; /* a stage runs unless its coefficient has the neutral value of stages.def */
    int active;                        /* 0: segments of this row are left out of the step */
    proptim_rounding rounding;
    uint64_t seed, step; /* for stochastic rounding; `step` counts the steps of these segments: no two share a number */
} proptim_row;

/*
 * One parameter of which the gradient has only some rows, a row being all elements of one index of the first axis: row
 * k of the values is a gradient of row indices[k].  The gradient of a row is the sum of all that are its, added in the
 * order in which they stand, from the first on, in the dtype of the rule.  Other rows are neither read nor written.
 *
 * Set `first` as for proptim_layout(), of the whole arrays, with the values as arrays[PROPTIM_GRADS], and how many
 * these are; then proptim_rows_layout() and, for each step, proptim_rows_sort() set the rest.
 */
typedef struct proptim_table {
    proptim_segment first;                    /* then of the first row of each array */
    size_t count;                             /* rows of the values */
    size_t length;                            /* rows of the parameter */
    ptrdiff_t strides[PROPTIM_MAX_ARRAYS][2]; /* of each plane, bytes from a row to the next */
    size_t distinct;                          /* rows that have a gradient */
    const size_t *entries; /* [2 count] a row of the parameter and one of the values, in the order of the former */
    const size_t *starts;  /* [distinct + 1] which of the entries are those of each row */
} proptim_table;

/* Read-only array of any layout and format, elements in C order; `dtype` is the type in which they are squared. */
typedef struct proptim_view {
    const void *planes[2]; /* as in proptim_plane_array */
    proptim_dtype dtype;
    int ndim;
    const ptrdiff_t *shape, *strides[2]; /* strides of each plane, in bytes */
    uint8_t format;
} proptim_view;

/*
 * Run task(data, part, parts) for every part of 0 .. parts - 1 on at most `threads` threads and in any order, or run
 * task(data, 0, 1); return after the last has finished.
 */
typedef void proptim_task(void *data, int part, int parts);
typedef enum proptim_ran { PROPTIM_RAN_SERIAL, PROPTIM_RAN_PARALLEL, PROPTIM_RAN_FORKED } proptim_ran;
typedef proptim_ran proptim_parallel(proptim_task *task, void *data, int parts, int threads);

/*
 * One step of one rule on n contiguous elements of each array, without stages and threads.  Arrays and coefficients are
 * in the order of rules.def; optional arrays may be NULL.  Sets and restores the floating-point environment.
 */
void proptim_apply(const proptim_isa *isa, proptim_rule rule, proptim_dtype dtype, void *const *arrays,
                   const double *coefs, size_t n);

/* Instruction sets, best first; NULL after the last.  Not every one runs on this CPU. */
const proptim_isa *proptim_isa_at(int index);
const char *proptim_isa_name(const proptim_isa *isa);
int proptim_isa_runs(const proptim_isa *isa);
/* The best that runs here, or the one of this name, such as getenv("PROPTIM_ISA"); NULL if that does not run here. */
const proptim_isa *proptim_isa_find(const char *name_or_null);

/* A kernel by rule and dtype.  It runs in the floating-point environment of its caller. */
proptim_kernel *proptim_isa_kernel(const proptim_isa *isa, proptim_rule rule, proptim_dtype dtype);

/* Make an active row of these coefficients, with every stage neutral, that rounds to nearest. */
void proptim_row_init(proptim_row *row, proptim_rule rule, const double *coefs);

/*
 * Set the layout of a segment from the shape and the byte strides of its arrays (NULL for planes that are absent):
 * sort, flip and merge axes so that as much as possible is one dense run.  The program sets arrays, shape and strides,
 * where shape and the strides of every plane each have memory of their own for at least ndim elements.  All of them are
 * rewritten, and size is computed.
 */
void proptim_layout(proptim_segment *segment);

/*
 * One step of all segments, cut into parts of equal size that `parallel` distributes to its threads; serial with
 * threads == 1 or parallel == NULL.  Saves, sets and restores the floating-point environment of every thread.
 */
proptim_ran proptim_step(const proptim_isa *isa, proptim_rule rule, const proptim_segment *segments, size_t count,
                         const proptim_row *rows, int threads, proptim_parallel *parallel);

/* Set the layout of a table, whose parameter has an axis at least; shape and strides are rewritten. */
void proptim_rows_layout(proptim_table *table);

/*
 * Sort the indices of a gradient, `count` numbers; `scratch` is memory for proptim_rows_scratch(count) numbers of
 * size_t, in use for as long as the table is.  Returns the position of the first index that is not in 0 .. length - 1,
 * and then no row is stepped; otherwise `count`.  Indices are read once, and may change afterwards.
 */
size_t proptim_rows_scratch(size_t count);
size_t proptim_rows_sort(proptim_table *table, const int64_t *indices, size_t *scratch);

/*
 * One step of the rows that have a gradient, with the numbers in rows[first.row] of each table; the zero stage clears
 * the values.  Otherwise as proptim_step().
 */
proptim_ran proptim_step_rows(const proptim_isa *isa, proptim_rule rule, const proptim_table *tables, size_t count,
                              const proptim_row *rows, int threads, proptim_parallel *parallel);

/*
 * Sum of squares of all elements of all views in double, in a fixed order: see reduce.c.  `partials` is scratch memory
 * for proptim_reduce_partials() doubles.  *finite is set to whether every element is finite.  Threads as in
 * proptim_step().
 */
size_t proptim_reduce_partials(const proptim_view *views, size_t count);
double proptim_reduce(const proptim_isa *isa, const proptim_view *views, size_t count, double *partials, int *finite,
                      int threads, proptim_parallel *parallel);
/*
 * The two halves of proptim_reduce(), for arrays of which each process has a run of whole blocks: the first computes
 * the sum of each block, the `partials`; the second adds up the partials of all arrays in order, and overwrites them.
 */
void proptim_reduce_blocks(const proptim_isa *isa, const proptim_view *views, size_t count, double *partials,
                           int *finite, int threads, proptim_parallel *parallel);
double proptim_reduce_tree(double *partials, size_t blocks);
/*
 * The sum of each block of the gradients of the rows of a table, added up and in the order of the rows: as many
 * partials as proptim_reduce() has for an array of `distinct` such rows.
 */
size_t proptim_reduce_rows_partials(const proptim_table *table);
void proptim_reduce_rows(const proptim_isa *isa, const proptim_table *table, double *partials, int *finite, int threads,
                         proptim_parallel *parallel);

/*
 * A row of rules.def, for programs that choose a rule at run time: "sgd", "param, grad, momentum_buffer", "wro",
 * "lr, ...".
 */
const char *proptim_rule_name(proptim_rule rule);
const char *proptim_rule_arrays(proptim_rule rule);
const char *proptim_rule_marks(proptim_rule rule);
const char *proptim_rule_coefs(proptim_rule rule);
const char *proptim_stage_name(proptim_stage stage);
double proptim_stage_neutral(proptim_stage stage);

/*
 * All of this in one table, for programs that get it at run time instead of linking it: the Python package has it in
 * the capsule proptim._C_API (proptim_python.h).  New members come at the end.
 */
typedef struct proptim_api {
    uint32_t abi;                    /* PROPTIM_ABI of the library */
    uint32_t size;                   /* sizeof(proptim_api) in the library */
    uint32_t rules, stages, formats; /* PROPTIM_RULES, PROPTIM_STAGES and PROPTIM_FORMATS of the library */
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
    const char *(*rule_marks)(proptim_rule rule);
    const char *(*rule_coefs)(proptim_rule rule);
    const char *(*stage_name)(proptim_stage stage);
    double (*stage_neutral)(proptim_stage stage);
    proptim_parallel *pool; /* the thread pool of the library; NULL if it was built without one */
    void (*reduce_blocks)(const proptim_isa *isa, const proptim_view *views, size_t count, double *partials,
                          int *finite, int threads, proptim_parallel *parallel);
    double (*reduce_tree)(double *partials, size_t blocks);
    void (*rows_layout)(proptim_table *table);
    size_t (*rows_scratch)(size_t count);
    size_t (*rows_sort)(proptim_table *table, const int64_t *indices, size_t *scratch);
    proptim_ran (*step_rows)(const proptim_isa *isa, proptim_rule rule, const proptim_table *tables, size_t count,
                             const proptim_row *rows, int threads, proptim_parallel *parallel);
    size_t (*reduce_rows_partials)(const proptim_table *table);
    void (*reduce_rows)(const proptim_isa *isa, const proptim_table *table, double *partials, int *finite, int threads,
                        proptim_parallel *parallel);
} proptim_api;

const proptim_api *proptim_get_api(void);

#ifdef __cplusplus
}
#endif

#endif
