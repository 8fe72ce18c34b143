# The C API of csrc/proptim.h, for the core itself and for other Cython packages.
cdef extern from "proptim.h" nogil:
    enum:
        PROPTIM_MAX_ARRAYS
        PROPTIM_MAX_COEFS
        PROPTIM_GRADS
        PROPTIM_RULES
        PROPTIM_STAGES
        PROPTIM_RAN_PARALLEL
        PROPTIM_RAN_FORKED
    ctypedef int proptim_dtype
    ctypedef int proptim_rule
    ctypedef int proptim_stage
    ctypedef int proptim_ran
    int PROPTIM_F32, PROPTIM_F64
    ctypedef struct proptim_isa:
        pass
    ctypedef struct proptim_segment:
        void *arrays[5]
        size_t size
        int dtype
        unsigned row
        int ndim
        unsigned dense
        size_t *shape
        ptrdiff_t *strides[5]
    ctypedef struct proptim_row:
        double coefs[12]
        double stages[6]
        int active
    ctypedef struct proptim_view:
        const void *data
        int dtype
        int ndim
        const ptrdiff_t *shape
        const ptrdiff_t *strides
    ctypedef void proptim_task(void *data, int part, int parts)
    ctypedef proptim_ran proptim_parallel(proptim_task *task, void *data, int threads)

    const proptim_isa *proptim_isa_at(int index)
    const char *proptim_isa_name(const proptim_isa *isa)
    int proptim_isa_runs(const proptim_isa *isa)
    const proptim_isa *proptim_isa_find(const char *name)
    void proptim_layout(proptim_segment *segment)
    proptim_ran proptim_step(const proptim_isa *isa, proptim_rule rule, const proptim_segment *segments, size_t count,
                             const proptim_row *rows, int threads, proptim_parallel *parallel)
    size_t proptim_reduce_partials(const proptim_view *views, size_t count)
    double proptim_reduce(const proptim_isa *isa, const proptim_view *views, size_t count, double *partials,
                          int *finite, int threads, proptim_parallel *parallel)
    const char *proptim_rule_name(proptim_rule rule)
    const char *proptim_rule_arrays(proptim_rule rule)
    const char *proptim_rule_coefs(proptim_rule rule)
    const char *proptim_stage_name(proptim_stage stage)
    double proptim_stage_neutral(proptim_stage stage)
