/* parallel_pool.h - a proptim_parallel on a few threads of our own. */
#ifndef PROPTIM_PARALLEL_POOL_H
#define PROPTIM_PARALLEL_POOL_H

#include "proptim.h"

#ifdef __cplusplus
extern "C" {
#endif

proptim_ran proptim_parallel_pool(proptim_task *task, void *data, int parts, int threads);

/* Let no step take more threads than this, whatever it asks for; below 1: any number.  How many that is now. */
#if defined(__GNUC__)
__attribute__((visibility("default"))) /* threadpoolctl looks them up in the Python module by name */
#endif
void proptim_pool_set_limit(int threads);
#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
int proptim_pool_get_limit(void);

#ifdef __cplusplus
}
#endif

#endif
