/* openmp.c - parts on OpenMP threads give the bits of one thread; they are serial in a region and in a forked child. */
#include "check.h"

#include <omp.h>

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "parallel_openmp.h"

enum { N = 10007 };
static float param[N], grad[N], square_avg[N];
static const proptim_isa *isa;

static proptim_ran step(int parts)
{
    proptim_segment segment = {
        .arrays = { { .planes = { param } }, { .planes = { grad } }, { .planes = { square_avg } } },
        .size = N,
        .dtype = PROPTIM_F32,
        .dense = PROPTIM_DENSE
    };
    proptim_row row = { .coefs = { 1e-3, 0.9, 0.1, 1, 0, 1e-8, 0, 0, 1, 1, 1 }, .active = 1 };
    uint64_t random = 1;
    for (int s = 0; s < PROPTIM_STAGES; s++) row.stages[s] = proptim_stage_neutral((proptim_stage)s);
    for (int j = 0; j < 3; j++) fill(PROPTIM_F32, segment.arrays[j].planes[0], N, j, TAME, &random);
    return proptim_step(isa, PROPTIM_rmsprop, &segment, 1, &row, parts, proptim_parallel_openmp);
}

int main(void)
{
    static float expected[N];
    isa = proptim_isa_find(NULL);
    CHECK(step(1) == PROPTIM_RAN_SERIAL, "one part");
    memcpy(expected, param, sizeof expected);

    static const int parts[] = { 2, 3, 7, 200 };
    for (int p = 0; p < 4; p++) {
        CHECK(step(parts[p]) == PROPTIM_RAN_PARALLEL, "%d parts", parts[p]);
        CHECK(difference(PROPTIM_F32, param, expected, N) == N, "%d parts", parts[p]);
    }

    proptim_ran inside = PROPTIM_RAN_PARALLEL;
#pragma omp parallel num_threads(2)
#pragma omp single
    inside = step(2);
    CHECK(inside == PROPTIM_RAN_SERIAL && difference(PROPTIM_F32, param, expected, N) == N, "inside a region");

#ifndef _WIN32
    const pid_t child = fork();
    if (child == 0) { /* where the pool of threads is dead, and waiting for it would never end */
        alarm(60);
        _exit(step(2) != PROPTIM_RAN_FORKED || difference(PROPTIM_F32, param, expected, N) != N);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0, "status %d of the child", status);
#endif
    CHECK(step(2) == PROPTIM_RAN_PARALLEL, "after the child");
    return 0;
}
