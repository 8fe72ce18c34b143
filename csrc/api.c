/* api.c - everything public in one table. */
#include "parallel_pool.h"

#ifndef PROPTIM_POOL
#define proptim_parallel_pool NULL
#endif

static const proptim_api api = {
    PROPTIM_ABI,           sizeof api,          PROPTIM_RULES,      PROPTIM_STAGES,          proptim_apply,
    proptim_row_init,      proptim_layout,      proptim_step,       proptim_reduce_partials, proptim_reduce,
    proptim_isa_at,        proptim_isa_name,    proptim_isa_runs,   proptim_isa_find,        proptim_isa_kernel,
    proptim_rule_name,     proptim_rule_arrays, proptim_rule_coefs, proptim_stage_name,      proptim_stage_neutral,
    proptim_parallel_pool,
};

const proptim_api *proptim_get_api(void) { return &api; }
