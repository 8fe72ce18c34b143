/* parallel_openmp.h - a proptim_parallel on OpenMP threads. */
#ifndef PROPTIM_PARALLEL_OPENMP_H
#define PROPTIM_PARALLEL_OPENMP_H

#include "proptim.h"

proptim_ran proptim_parallel_openmp(proptim_task *task, void *data, int parts);

#endif
