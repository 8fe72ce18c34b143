# proptim.h and proptim_python.h for Cython: `from proptim cimport proptim_api, proptim_import`, compiled with
# proptim.get_include() among the include directories. The names that rules.def and stages.def define are in rules.pxd.
# Call the functions through the table that proptim_import() returns, or link proptim::proptim and call them by name.
from libc.stdint cimport int64_t, uint64_t

cdef extern from "proptim.h" nogil:
    enum:
        PROPTIM_ABI
        PROPTIM_QUANTA
        PROPTIM_MAX_ARRAYS
        PROPTIM_MAX_COEFS
        PROPTIM_MAX_STAGES
        PROPTIM_MAX_DIMS
        PROPTIM_BLOCK
        PROPTIM_DENSE
        PROPTIM_PARAMS
        PROPTIM_GRADS
        PROPTIM_STATE
        PROPTIM_AVERAGE
        PROPTIM_RULES
        PROPTIM_STAGES
        PROPTIM_FORMATS
    ctypedef int proptim_dtype
    ctypedef int proptim_format
    ctypedef int proptim_rule
    ctypedef int proptim_stage
    ctypedef int proptim_ran
    ctypedef int proptim_rounding
    proptim_dtype PROPTIM_F32, PROPTIM_F64
    proptim_format PROPTIM_PLAIN, PROPTIM_STEPS, PROPTIM_BF16, PROPTIM_F16, PROPTIM_SPLIT
    proptim_format PROPTIM_BF16_MASTER, PROPTIM_F16_MASTER, PROPTIM_FLOAT32, PROPTIM_FLOAT64
    proptim_format PROPTIM_BF16_COPY, PROPTIM_F16_COPY
    proptim_rounding PROPTIM_NEAREST, PROPTIM_STOCHASTIC
    proptim_format PROPTIM_INT8, PROPTIM_SQUARES8, PROPTIM_STEPS8
    proptim_ran PROPTIM_RAN_SERIAL, PROPTIM_RAN_PARALLEL, PROPTIM_RAN_FORKED
    ctypedef void *proptim_array
    ctypedef void proptim_kernel(void *const *arrays, const double *coefs, size_t n)
    ctypedef struct proptim_isa:
        pass
    ctypedef struct proptim_plane_array:
        void *planes[2]
        ptrdiff_t *strides[2]
        unsigned char format
    ctypedef struct proptim_segment:
        size_t size
        proptim_dtype dtype
        unsigned row
        int ndim
        unsigned dense
        size_t *shape
        proptim_plane_array arrays[PROPTIM_MAX_ARRAYS]
        uint64_t parameter
        uint64_t first
        ptrdiff_t *order
    ctypedef struct proptim_row:
        double coefs[PROPTIM_MAX_COEFS]
        double stages[PROPTIM_MAX_STAGES]
        int active
        proptim_rounding rounding
        uint64_t seed
        uint64_t step
    ctypedef struct proptim_table:
        proptim_segment first
        size_t count
        size_t length
        ptrdiff_t strides[PROPTIM_MAX_ARRAYS][2]
        size_t distinct
        const size_t *entries
        const size_t *starts
    ctypedef struct proptim_view:
        const void *planes[2]
        proptim_dtype dtype
        int ndim
        const ptrdiff_t *shape
        const ptrdiff_t *strides[2]
        unsigned char format
    ctypedef void proptim_task(void *data, int part, int parts)
    ctypedef proptim_ran proptim_parallel(proptim_task *task, void *data, int parts, int threads)

    void proptim_apply(const proptim_isa *isa, proptim_rule rule, proptim_dtype dtype, void *const *arrays,
                       const double *coefs, size_t n)
    void proptim_row_init(proptim_row *row, proptim_rule rule, const double *coefs)
    void proptim_layout(proptim_segment *segment)
    proptim_ran proptim_step(const proptim_isa *isa, proptim_rule rule, const proptim_segment *segments, size_t count,
                             const proptim_row *rows, int threads, proptim_parallel *parallel)
    size_t proptim_reduce_partials(const proptim_view *views, size_t count)
    double proptim_reduce(const proptim_isa *isa, const proptim_view *views, size_t count, double *partials,
                          int *finite, int threads, proptim_parallel *parallel)
    void proptim_reduce_blocks(const proptim_isa *isa, const proptim_view *views, size_t count, double *partials,
                               int *finite, int threads, proptim_parallel *parallel)
    double proptim_reduce_tree(double *partials, size_t blocks)
    void proptim_rows_layout(proptim_table *table)
    size_t proptim_rows_scratch(size_t count)
    size_t proptim_rows_sort(proptim_table *table, const int64_t *indices, size_t *scratch)
    proptim_ran proptim_step_rows(const proptim_isa *isa, proptim_rule rule, const proptim_table *tables, size_t count,
                                  const proptim_row *rows, int threads, proptim_parallel *parallel)
    size_t proptim_reduce_rows_partials(const proptim_table *table)
    void proptim_reduce_rows(const proptim_isa *isa, const proptim_table *table, double *partials, int *finite,
                             int threads, proptim_parallel *parallel)
    const proptim_isa *proptim_isa_at(int index)
    const char *proptim_isa_name(const proptim_isa *isa)
    int proptim_isa_runs(const proptim_isa *isa)
    const proptim_isa *proptim_isa_find(const char *name_or_null)
    proptim_kernel *proptim_isa_kernel(const proptim_isa *isa, proptim_rule rule, proptim_dtype dtype)
    const char *proptim_rule_name(proptim_rule rule)
    const char *proptim_rule_arrays(proptim_rule rule)
    const char *proptim_rule_marks(proptim_rule rule)
    const char *proptim_rule_coefs(proptim_rule rule)
    const char *proptim_stage_name(proptim_stage stage)
    double proptim_stage_neutral(proptim_stage stage)

    ctypedef struct proptim_api:
        void (*apply)(const proptim_isa *isa, proptim_rule rule, proptim_dtype dtype, void *const *arrays,
                      const double *coefs, size_t n) noexcept nogil
        void (*row_init)(proptim_row *row, proptim_rule rule, const double *coefs) noexcept nogil
        void (*layout)(proptim_segment *segment) noexcept nogil
        proptim_ran (*step)(const proptim_isa *isa, proptim_rule rule, const proptim_segment *segments, size_t count,
                            const proptim_row *rows, int threads, proptim_parallel *parallel) noexcept nogil
        size_t (*reduce_partials)(const proptim_view *views, size_t count) noexcept nogil
        double (*reduce)(const proptim_isa *isa, const proptim_view *views, size_t count, double *partials,
                         int *finite, int threads, proptim_parallel *parallel) noexcept nogil
        const proptim_isa *(*isa_at)(int index) noexcept nogil
        const char *(*isa_name)(const proptim_isa *isa) noexcept nogil
        int (*isa_runs)(const proptim_isa *isa) noexcept nogil
        const proptim_isa *(*isa_find)(const char *name_or_null) noexcept nogil
        proptim_kernel *(*isa_kernel)(const proptim_isa *isa, proptim_rule rule, proptim_dtype dtype) noexcept nogil
        const char *(*rule_name)(proptim_rule rule) noexcept nogil
        const char *(*rule_arrays)(proptim_rule rule) noexcept nogil
        const char *(*rule_marks)(proptim_rule rule) noexcept nogil
        const char *(*rule_coefs)(proptim_rule rule) noexcept nogil
        const char *(*stage_name)(proptim_stage stage) noexcept nogil
        double (*stage_neutral)(proptim_stage stage) noexcept nogil
        proptim_parallel *pool
        void (*reduce_blocks)(const proptim_isa *isa, const proptim_view *views, size_t count, double *partials,
                              int *finite, int threads, proptim_parallel *parallel) noexcept nogil
        double (*reduce_tree)(double *partials, size_t blocks) noexcept nogil
        void (*rows_layout)(proptim_table *table) noexcept nogil
        size_t (*rows_scratch)(size_t count) noexcept nogil
        size_t (*rows_sort)(proptim_table *table, const int64_t *indices, size_t *scratch) noexcept nogil
        proptim_ran (*step_rows)(const proptim_isa *isa, proptim_rule rule, const proptim_table *tables, size_t count,
                                 const proptim_row *rows, int threads, proptim_parallel *parallel) noexcept nogil
        size_t (*reduce_rows_partials)(const proptim_table *table) noexcept nogil
        void (*reduce_rows)(const proptim_isa *isa, const proptim_table *table, double *partials, int *finite,
                            int threads, proptim_parallel *parallel) noexcept nogil
    const proptim_api *proptim_get_api()

cdef extern from "proptim_python.h":
    const proptim_api *proptim_import() except NULL
