/*
 * parallel_pool.c - the parallel path that is used by default: a few POSIX threads of our own.
 *
 * The caller works through the parts of a job itself, from the front, and workers help from the back.  So it waits
 * only for parts that a worker has really begun, while an OpenMP region ends when every member of the team has come,
 * which beside a busy core means milliseconds.
 *
 * Workers are started on first need, sleep between jobs, and end with the process.  A child of fork() has none of
 * them and starts its own.  There is one job at a time; who comes while it runs works alone.
 *
 * Without PROPTIM_POOL defined there is none, and nothing of POSIX is needed.
 */
#if defined(__unix__) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* pthread_sigmask */
#endif
#include "parallel_pool.h"

#ifdef PROPTIM_POOL
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("isb") /* yield is a no-op on most cores */
#else
#define PAUSE() ((void)0)
#endif

enum {
    SPIN = 1000,        /* pauses before sleeping: 10 to 40 us, what falling asleep and waking costs */
    STACK = 512 * 1024, /* bytes: ten times what a part takes in plan.c */
    MAX_WORKERS = 1023
};

/*
 * The parts of the job that nobody has claimed, in one word: front and back (24 bits each) bound them, and workers
 * below `helpers` (16 bits) may claim.  A claim that succeeds pins the job, for the caller waits until every claimed
 * part is finished; so the fields of the job are read only after it, and need not be atomic.
 */
static _Atomic uint64_t unclaimed;
static proptim_task *job_task;
static void *job_data;
static int job_parts;
static atomic_int finished; /* parts of the job */

static atomic_flag in_use = ATOMIC_FLAG_INIT;
static atomic_int limit = MAX_WORKERS + 1;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* orders sleeping and waking */
static pthread_cond_t published = PTHREAD_COND_INITIALIZER, all_finished = PTHREAD_COND_INITIALIZER;
static atomic_int sleepers, waiting;
static int workers, most_workers = MAX_WORKERS; /* under in_use */

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
        pthread_mutex_lock(&lock);
        pthread_mutex_unlock(&lock);
        pthread_cond_signal(&all_finished);
    }
}

static void *work(void *number)
{
    const int me = (int)(intptr_t)number;
    for (;;) {
        uint64_t word = atomic_load(&unclaimed);
        for (int spins = 0; !may_help(word, me) && spins < SPIN; spins++) {
            PAUSE();
            word = atomic_load(&unclaimed);
        }
        if (!may_help(word, me)) {
            pthread_mutex_lock(&lock);
            atomic_fetch_add(&sleepers, 1);
            while (word = atomic_load(&unclaimed), !may_help(word, me)) pthread_cond_wait(&published, &lock);
            atomic_fetch_sub(&sleepers, 1);
            pthread_mutex_unlock(&lock);
        }
        while (may_help(word, me)) {
            const unsigned last = back_of(word) - 1;
            const uint64_t rest = pack(front_of(word), last, (unsigned)(word >> 48));
            if (!atomic_compare_exchange_weak(&unclaimed, &word, rest)) continue;
            run_part((int)last);
            word = atomic_load(&unclaimed);
        }
    }
    return NULL;
}

static void forget_workers(void)
{
    static const pthread_mutex_t free_lock = PTHREAD_MUTEX_INITIALIZER;
    static const pthread_cond_t nobody = PTHREAD_COND_INITIALIZER;
    lock = free_lock;
    published = all_finished = nobody;
    atomic_store(&unclaimed, 0);
    atomic_store(&sleepers, 0);
    atomic_store(&waiting, 0);
    atomic_flag_clear(&in_use);
    workers = 0;
    most_workers = MAX_WORKERS;
}

/* As many workers as can be had, up to `wanted`. */
static int start(int wanted)
{
    static int told_fork;
    if (wanted > most_workers) wanted = most_workers;
    if (workers >= wanted) return wanted;
    if (!told_fork) told_fork = pthread_atfork(NULL, NULL, forget_workers) == 0;
    pthread_attr_t attributes;
    if (!told_fork || pthread_attr_init(&attributes)) return 0;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK);
    /* Signals are for the program's own threads; but a fault is of the thread that made it. */
    static const int faults[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS };
    sigset_t all, before;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(&all, faults[i]);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (pthread_t thread; workers < wanted; workers++)
        if (pthread_create(&thread, &attributes, work, (void *)(intptr_t)workers)) {
            most_workers = workers; /* not tried again at every step */
            break;
        }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return workers;
}

void proptim_pool_set_limit(int threads)
{
    atomic_store(&limit, threads < 1 || threads > MAX_WORKERS + 1 ? MAX_WORKERS + 1 : threads);
}

int proptim_pool_get_limit(void) { return atomic_load(&limit); }

proptim_ran proptim_parallel_pool(proptim_task *task, void *data, int parts, int threads)
{
    const int most = atomic_load(&limit); /* once: another thread may lift it */
    if (threads > most) threads = most;
    if (threads < 2 || atomic_flag_test_and_set(&in_use)) {
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
        pthread_mutex_lock(&lock); /* who counts as asleep, and has not seen the job, is in its wait now */
        pthread_mutex_unlock(&lock);
        pthread_cond_broadcast(&published);
    }

    uint64_t word = atomic_load(&unclaimed);
    while (front_of(word) < back_of(word)) {
        const unsigned first = front_of(word);
        if (!atomic_compare_exchange_weak(&unclaimed, &word, word + 1)) continue;
        run_part((int)first);
        word = atomic_load(&unclaimed);
    }
    for (int spins = 0; atomic_load(&finished) < parts && spins < SPIN; spins++) PAUSE();
    if (atomic_load(&finished) < parts) {
        pthread_mutex_lock(&lock);
        atomic_store(&waiting, 1);
        while (atomic_load(&finished) < parts) pthread_cond_wait(&all_finished, &lock);
        atomic_store(&waiting, 0);
        pthread_mutex_unlock(&lock);
    }
    atomic_flag_clear(&in_use);
    return helpers ? PROPTIM_RAN_PARALLEL : PROPTIM_RAN_SERIAL;
}
#endif
