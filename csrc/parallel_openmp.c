/*
 * parallel_openmp.c - run parts on OpenMP threads, for programs that want one thread pool for everything.  It is linked
 * into a Python module of its own, which the core loads when a step first needs more than one thread.
 *
 * Each step is one parallel region, in which each thread runs consecutive parts; inside another region a step is
 * serial.  After fork() the threads of libgomp do not exist in the child, and a region would wait for them for ever
 * (xgboost #7044, faiss #5206), so a process other than proptim_openmp_process runs all parts itself.
 */
#include "parallel_openmp.h"

#include <omp.h>

#ifdef _WIN32
static long process(void) { return 1; } /* no fork() */
#else
#include <unistd.h>
static long process(void) { return (long)getpid(); }
#endif

long proptim_openmp_process; /* written under the GIL or with the same value */

proptim_ran proptim_parallel_openmp(proptim_task *task, void *data, int parts, int threads)
{
    const long here = process();
    if (!proptim_openmp_process) proptim_openmp_process = here;
    if (proptim_openmp_process != here || omp_in_parallel()) {
        task(data, 0, 1);
        return proptim_openmp_process != here ? PROPTIM_RAN_FORKED : PROPTIM_RAN_SERIAL;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < parts; part++) task(data, part, parts);
    return PROPTIM_RAN_PARALLEL;
}
