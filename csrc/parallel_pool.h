/* parallel_pool.h - a proptim_parallel on a few threads of our own. */
#ifndef PROPTIM_PARALLEL_POOL_H
#define PROPTIM_PARALLEL_POOL_H

#include "proptim.h"

#ifdef __cplusplus
extern "C" {
#endif

proptim_ran proptim_parallel_pool(proptim_task *task, void *data, int parts, int threads);

/* threadpoolctl looks these two up in the Python module by name; another program's copy keeps them to itself. */
#if defined(PROPTIM_POOL_EXPORTED) && defined(__GNUC__)
#pragma GCC visibility push(default)
#endif
/* Let no step take more threads than this, whatever it asks for; below 1: any number.  How many that is now. */
void proptim_pool_set_limit(int threads);
int proptim_pool_get_limit(void);
#if defined(PROPTIM_POOL_EXPORTED) && defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif
