/*
 * pool.c - the thread pool: it gives the bits of one thread, with many short jobs, several callers and sums, and a
 * child of fork() has threads of its own.  With ThreadSanitizer (preset tsan) also: there is no data race.
 */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "parallel_pool.h"

enum { N = 10007, CALLERS = 4, STEPS = 500 };
static const proptim_isa *isa;

struct arrays {
    float param[N], grad[N], square_avg[N];
};

static void start(struct arrays *a)
{
    uint64_t random = 1;
    fill(PROPTIM_F32, a->param, N, 0, TAME, &random);
    fill(PROPTIM_F32, a->grad, N, 1, TAME, &random);
    fill(PROPTIM_F32, a->square_avg, N, 2, TAME, &random);
}

static proptim_ran step(struct arrays *a, int threads)
{
    proptim_segment segment = {
        .arrays = { { .planes = { a->param } }, { .planes = { a->grad } }, { .planes = { a->square_avg } } },
        .size = N,
        .dtype = PROPTIM_F32,
        .dense = PROPTIM_DENSE
    };
    proptim_row row = { .coefs = { 1e-3, 0.9, 0.1, 1, 0, 1e-8, 0, 0, 1, 1, 1 }, .active = 1 };
    for (int s = 0; s < PROPTIM_STAGES; s++) row.stages[s] = proptim_stage_neutral((proptim_stage)s);
    return proptim_step(isa, PROPTIM_rmsprop, &segment, 1, &row, threads, proptim_parallel_pool);
}

static double squares(struct arrays *a, int threads)
{
    const ptrdiff_t shape[] = { N }, strides[] = { sizeof(float) };
    const proptim_view view = { { a->param }, PROPTIM_F32, 1, shape, { strides }, PROPTIM_PLAIN };
    double partials[N / PROPTIM_BLOCK + 1];
    int finite = 0;
    const double sum = proptim_reduce(isa, &view, 1, partials, &finite, threads, proptim_parallel_pool);
    CHECK(finite, "%d threads", threads);
    return sum;
}

static void *caller(void *threads)
{
    struct arrays *a = (struct arrays *)malloc(sizeof *a);
    CHECK(a, "memory");
    start(a);
    for (int t = 0; t < STEPS; t++) step(a, *(int *)threads);
    return a;
}

/* A task whose parts take so long in a worker that the caller goes to sleep while it waits. */
static pthread_t here;
static atomic_int slow_parts, all_parts;

static void slow_in_workers(void *data, int part, int parts)
{
    (void)data, (void)part, (void)parts;
    atomic_fetch_add(&all_parts, 1);
    const struct timespec pause = { 0, pthread_equal(pthread_self(), here) ? 1000000 : 20000000 };
    if (pause.tv_nsec > 1000000) atomic_fetch_add(&slow_parts, 1);
    nanosleep(&pause, NULL);
}

static int same(const struct arrays *a, const struct arrays *b)
{
    return difference(PROPTIM_F32, a->param, b->param, N) == N &&
           difference(PROPTIM_F32, a->square_avg, b->square_avg, N) == N;
}

static void count_parts(void *data, int part, int parts)
{
    (void)part;
    *(int *)data = parts;
}

static void check_child(struct arrays *a, const struct arrays *expected)
{
#ifdef _WIN32
    (void)a, (void)expected;
    puts("NOT RUN: a child of fork(), for Windows has none");
#else
    const pid_t child = fork();
    if (child == 0) {
        alarm(60); /* a step that hangs kills the child */
        start(a);
        _exit(step(a, 2) != PROPTIM_RAN_PARALLEL || !same(a, expected));
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0, "status %d of the child", status);
    start(a);
    CHECK(step(a, 2) == PROPTIM_RAN_PARALLEL && same(a, expected), "after the child");
#endif
}

/* no-fork: qemu-user cannot start threads in a child of fork(). */
int main(int argc, char **argv)
{
    const int no_fork = argc > 1 && !strcmp(argv[1], "no-fork");
    static struct arrays expected, a;
    int parts = 0;
    CHECK(proptim_parallel_pool(count_parts, &parts, 1 << 24, 2) == PROPTIM_RAN_SERIAL && parts == 1, "%d", parts);
    isa = proptim_isa_find(NULL);
    start(&expected);
    CHECK(step(&expected, 1) == PROPTIM_RAN_SERIAL, "one thread");

    static const int threads[] = { 2, 7, 3, 40 };
    for (int t = 0; t < 4; t++) {
        start(&a);
        CHECK(step(&a, threads[t]) == PROPTIM_RAN_PARALLEL, "%d threads", threads[t]);
        CHECK(same(&a, &expected), "%d threads", threads[t]);
        CHECK(squares(&a, threads[t]) == squares(&a, 1), "%d threads", threads[t]);
    }

    here = pthread_self();
    CHECK(proptim_parallel_pool(slow_in_workers, NULL, 12, 3) == PROPTIM_RAN_PARALLEL, "slow parts");
    CHECK(atomic_load(&all_parts) == 12 && atomic_load(&slow_parts) > 0, "%d parts, %d in workers",
          atomic_load(&all_parts), atomic_load(&slow_parts));

    CHECK(proptim_pool_get_limit() == 1024, "limit %d", proptim_pool_get_limit());
    proptim_pool_set_limit(1);
    CHECK(proptim_pool_get_limit() == 1, "limit %d", proptim_pool_get_limit());
    start(&a);
    CHECK(step(&a, 3) == PROPTIM_RAN_SERIAL && same(&a, &expected), "limited to one thread");
    proptim_pool_set_limit(5000);
    CHECK(proptim_pool_get_limit() == 1024, "limit %d", proptim_pool_get_limit());
    proptim_pool_set_limit(0);
    CHECK(proptim_pool_get_limit() == 1024, "limit %d", proptim_pool_get_limit());

    int one = 1, numbers[CALLERS] = { 2, 3, 4, 2 };
    struct arrays *serial = (struct arrays *)caller(&one);
    pthread_t callers[CALLERS];
    for (int i = 0; i < CALLERS; i++) CHECK(!pthread_create(&callers[i], NULL, caller, &numbers[i]), "caller %d", i);
    for (int i = 0; i < CALLERS; i++) {
        void *found;
        pthread_join(callers[i], &found);
        CHECK(same((struct arrays *)found, serial), "caller %d", i);
        free(found);
    }
    free(serial);

    if (no_fork) {
        puts("NOT RUN: a child of fork(), for qemu-user cannot start threads in it");
        return 0;
    }
    check_child(&a, &expected);
    return 0;
}
