/*
 * parallel_pool.c - the thread pool that steps use by default.
 *
 * The caller works through the parts of a job itself, from the front, and workers help from the back.  So it waits only
 * for parts that a worker has already begun.  An OpenMP region, in contrast, ends only when every thread of the team
 * has arrived, which takes milliseconds if one of their cores is busy.
 *
 * Workers are started when they are first needed, sleep between jobs, and end with the process.  A child of fork() has
 * none of them and starts its own.  There is one job at a time: a caller that finds the pool busy runs its whole job
 * itself.
 *
 * Unless PROPTIM_POOL is defined there is no pool, and the library does not need threads.
 */
#ifdef PROPTIM_POOL
#include "os_threads.h"
#include "parallel_pool.h"

#include <stdatomic.h>
#include <stdint.h>

enum {
    SPIN = 1000,        /* pauses before sleeping: 10 to 40 us, as long as going to sleep and waking up takes */
    STACK = 512 * 1024, /* bytes: more than nine times what a part needs: 53 KiB in plan.c, 41 in reduce.c */
    MAX_WORKERS = 1023
};

/*
 * The parts of the job that no thread has taken, in one word: front and back (24 bits each) bound them, and workers
 * with numbers below `helpers` (16 bits) may take one.  The caller waits until every part that was taken is finished,
 * so the job cannot change in the meantime: a thread reads the fields of the job only after it has taken a part, and
 * they need not be atomic.
 */
static _Atomic uint64_t unclaimed;
static proptim_task *job_task;
static void *job_data;
static int job_parts;
static atomic_int finished; /* parts of the job */

static atomic_flag in_use = ATOMIC_FLAG_INIT;
static atomic_int limit = MAX_WORKERS + 1;

static os_mutex lock = OS_MUTEX_INIT; /* orders sleeping and waking */
static os_cond published = OS_COND_INIT, all_finished = OS_COND_INIT;
static atomic_int sleepers, waiting;
static int workers, most_workers = MAX_WORKERS; /* under in_use */

enum { MOST_PARTS = 0xFFFFFF }; /* of a job; a job with more parts runs on the caller alone */

static uint64_t pack(unsigned front, unsigned back, unsigned helpers)
{
    return (uint64_t)helpers << 48 | (uint64_t)back << 24 | front;
}
static unsigned front_of(uint64_t word) { return word & 0xFFFFFF; }
static unsigned back_of(uint64_t word) { return word >> 24 & 0xFFFFFF; }
static int may_help(uint64_t word, int worker)
{
    return front_of(word) < back_of(word) && (unsigned)worker < word >> 48;
}

static void run_part(int part)
{
    const int parts = job_parts;
    job_task(job_data, part, parts);
    if (atomic_fetch_add(&finished, 1) + 1 == parts && atomic_load(&waiting)) {
        os_mutex_lock(&lock);
        os_mutex_unlock(&lock);
        os_cond_signal(&all_finished);
    }
}

static os_result OS_CALL work(void *number)
{
    const int me = (int)(intptr_t)number;
    for (;;) {
        uint64_t word = atomic_load(&unclaimed);
        for (int spins = 0; !may_help(word, me) && spins < SPIN; spins++) {
            OS_PAUSE();
            word = atomic_load(&unclaimed);
        }
        if (!may_help(word, me)) {
            os_mutex_lock(&lock);
            atomic_fetch_add(&sleepers, 1);
            while (word = atomic_load(&unclaimed), !may_help(word, me)) os_cond_wait(&published, &lock);
            atomic_fetch_sub(&sleepers, 1);
            os_mutex_unlock(&lock);
        }
        while (may_help(word, me)) {
            const unsigned last = back_of(word) - 1;
            const uint64_t rest = pack(front_of(word), last, (unsigned)(word >> 48));
            if (!atomic_compare_exchange_weak(&unclaimed, &word, rest)) continue;
            run_part((int)last);
            word = atomic_load(&unclaimed);
        }
    }
    return 0;
}

static void forget_workers(void)
{
    static const os_mutex free_lock = OS_MUTEX_INIT;
    static const os_cond nobody = OS_COND_INIT;
    lock = free_lock;
    published = all_finished = nobody;
    atomic_store(&unclaimed, 0);
    atomic_store(&sleepers, 0);
    atomic_store(&waiting, 0);
    atomic_flag_clear(&in_use);
    workers = 0;
    most_workers = MAX_WORKERS;
}

/* Start workers until there are `wanted`, or as many as the system allows; return how many there are. */
static int start(int wanted)
{
    static int told_fork;
    if (wanted > most_workers) wanted = most_workers;
    if (workers >= wanted) return wanted;
    if (!told_fork) told_fork = os_atfork_child(forget_workers);
    if (!told_fork) return 0;
    while (workers < wanted && os_thread_start(work, (void *)(intptr_t)workers, STACK)) workers++;
    if (workers < wanted) most_workers = workers; /* do not try again at every step */
    return workers;
}

void proptim_pool_set_limit(int threads)
{
    atomic_store(&limit, threads < 1 || threads > MAX_WORKERS + 1 ? MAX_WORKERS + 1 : threads);
}

int proptim_pool_get_limit(void) { return atomic_load(&limit); }

proptim_ran proptim_parallel_pool(proptim_task *task, void *data, int parts, int threads)
{
    const int most = atomic_load(&limit); /* read once, because another thread may change it */
    if (threads > most) threads = most;
    if (threads < 2 || parts > MOST_PARTS || atomic_flag_test_and_set(&in_use)) {
        task(data, 0, 1);
        return PROPTIM_RAN_SERIAL;
    }
    const int helpers = start(threads - 1);
    job_task = task;
    job_data = data;
    job_parts = parts;
    atomic_store(&finished, 0);
    atomic_store(&unclaimed, pack(0, (unsigned)parts, (unsigned)helpers));
    if (atomic_load(&sleepers)) {
        os_mutex_lock(&lock); /* a worker that counts as a sleeper and has not seen the job is waiting by now */
        os_mutex_unlock(&lock);
        os_cond_broadcast(&published);
    }

    uint64_t word = atomic_load(&unclaimed);
    while (front_of(word) < back_of(word)) {
        const unsigned first = front_of(word);
        if (!atomic_compare_exchange_weak(&unclaimed, &word, word + 1)) continue;
        run_part((int)first);
        word = atomic_load(&unclaimed);
    }
    for (int spins = 0; atomic_load(&finished) < parts && spins < SPIN; spins++) OS_PAUSE();
    if (atomic_load(&finished) < parts) {
        os_mutex_lock(&lock);
        atomic_store(&waiting, 1);
        while (atomic_load(&finished) < parts) os_cond_wait(&all_finished, &lock);
        atomic_store(&waiting, 0);
        os_mutex_unlock(&lock);
    }
    atomic_flag_clear(&in_use);
    return helpers ? PROPTIM_RAN_PARALLEL : PROPTIM_RAN_SERIAL;
}
#else
typedef int proptim_no_pool; /* ISO C does not allow an empty translation unit */
#endif
