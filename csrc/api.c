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
    .formats = PROPTIM_FORMATS,
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
    .rule_marks = proptim_rule_marks,
    .rule_coefs = proptim_rule_coefs,
    .stage_name = proptim_stage_name,
    .stage_neutral = proptim_stage_neutral,
    .pool = proptim_parallel_pool,
    .reduce_blocks = proptim_reduce_blocks,
    .reduce_tree = proptim_reduce_tree,
    .rows_layout = proptim_rows_layout,
    .rows_scratch = proptim_rows_scratch,
    .rows_sort = proptim_rows_sort,
    .step_rows = proptim_step_rows,
    .reduce_rows_partials = proptim_reduce_rows_partials,
    .reduce_rows = proptim_reduce_rows,
};

const proptim_api *proptim_get_api(void) { return &api; }
