/* parallel_openmp.h - a proptim_parallel on OpenMP threads. */
#ifndef PROPTIM_PARALLEL_OPENMP_H
#define PROPTIM_PARALLEL_OPENMP_H

#include "proptim.h"

/* The process that has the OpenMP threads; 0 until the first call sets it.  A child of fork() does not have them. */
extern long proptim_openmp_process;

proptim_ran proptim_parallel_openmp(proptim_task *task, void *data, int parts, int threads);

#endif
