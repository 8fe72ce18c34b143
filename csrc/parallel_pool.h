/* parallel_pool.h - a proptim_parallel on the thread pool of this library. */
#ifndef PROPTIM_PARALLEL_POOL_H
#define PROPTIM_PARALLEL_POOL_H

#include "proptim.h"

#ifdef __cplusplus
extern "C" {
#endif

proptim_ran proptim_parallel_pool(proptim_task *task, void *data, int parts, int threads);

/* threadpoolctl looks up the next two functions in the Python module by name; other programs do not export them. */
#if !defined(PROPTIM_POOL_EXPORTED)
#define PROPTIM_POOL_EXPORT
#elif defined(_WIN32)
#define PROPTIM_POOL_EXPORT __declspec(dllexport)
#else
#define PROPTIM_POOL_EXPORT __attribute__((visibility("default")))
#endif

/* Set and get the largest number of threads that a step may use, whatever it asks for; below 1 means no limit. */
PROPTIM_POOL_EXPORT void proptim_pool_set_limit(int threads);
PROPTIM_POOL_EXPORT int proptim_pool_get_limit(void);

#ifdef __cplusplus
}
#endif

#endif
