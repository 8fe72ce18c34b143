/* parallel_openmp.h - a proptim_parallel on OpenMP threads. */
#ifndef PROPTIM_PARALLEL_OPENMP_H
#define PROPTIM_PARALLEL_OPENMP_H

#include "proptim.h"

/* The process whose threads may be used; 0: that of the first call.  A child of fork() has no threads to use. */
extern long proptim_openmp_process;

proptim_ran proptim_parallel_openmp(proptim_task *task, void *data, int parts, int threads);

#endif
