/* api.c - everything public in one table. */
#include "parallel_pool.h"

#ifndef PROPTIM_POOL
#define proptim_parallel_pool NULL
#endif

static const proptim_api api = {
    .abi = PROPTIM_ABI,
    .size = sizeof api,
    .rules = PROPTIM_RULES,
    .stages = PROPTIM_STAGES,
    .apply = proptim_apply,
    .row_init = proptim_row_init,
    .layout = proptim_layout,
    .step = proptim_step,
    .reduce_partials = proptim_reduce_partials,
    .reduce = proptim_reduce,
    .isa_at = proptim_isa_at,
    .isa_name = proptim_isa_name,
    .isa_runs = proptim_isa_runs,
    .isa_find = proptim_isa_find,
    .isa_kernel = proptim_isa_kernel,
    .rule_name = proptim_rule_name,
    .rule_arrays = proptim_rule_arrays,
    .rule_coefs = proptim_rule_coefs,
    .stage_name = proptim_stage_name,
    .stage_neutral = proptim_stage_neutral,
    .pool = proptim_parallel_pool,
};

const proptim_api *proptim_get_api(void) { return &api; }
