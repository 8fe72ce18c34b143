/*
 * os_threads.h - what the pool needs from the operating system, on POSIX and on Windows: a mutex, a condition variable,
 * a detached thread, and a handler for fork().  Include it first, because it defines _POSIX_C_SOURCE.
 */
#ifndef PROPTIM_OS_THREADS_H
#define PROPTIM_OS_THREADS_H

#ifdef _WIN32
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>

#define OS_MUTEX_INIT SRWLOCK_INIT
typedef SRWLOCK os_mutex;
static inline void os_mutex_lock(os_mutex *mutex) { AcquireSRWLockExclusive(mutex); }
static inline void os_mutex_unlock(os_mutex *mutex) { ReleaseSRWLockExclusive(mutex); }

#define OS_COND_INIT CONDITION_VARIABLE_INIT
typedef CONDITION_VARIABLE os_cond;
static inline void os_cond_wait(os_cond *cond, os_mutex *mutex) { SleepConditionVariableSRW(cond, mutex, INFINITE, 0); }
static inline void os_cond_signal(os_cond *cond) { WakeConditionVariable(cond); }
static inline void os_cond_broadcast(os_cond *cond) { WakeAllConditionVariable(cond); }

/* Start a detached thread that runs function(argument) on a stack of `stack` bytes; return 1, or 0 if it fails. */
#define OS_CALL WINAPI
typedef DWORD os_result;
static inline int os_thread_start(os_result(OS_CALL *function)(void *), void *argument, size_t stack)
{
    const HANDLE thread = CreateThread(NULL, stack, function, argument, STACK_SIZE_PARAM_IS_A_RESERVATION, NULL);
    return thread && CloseHandle(thread);
}

/* Have every child of fork() call this function first; return 1, or 0 if it fails. */
static inline int os_atfork_child(void (*function)(void))
{
    (void)function; /* no fork() */
    return 1;
}

#define OS_PAUSE() YieldProcessor()

#else
#if defined(__unix__) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* pthread_sigmask */
#endif
#include <pthread.h>
#include <signal.h>

#define OS_MUTEX_INIT PTHREAD_MUTEX_INITIALIZER
typedef pthread_mutex_t os_mutex;
static inline void os_mutex_lock(os_mutex *mutex) { pthread_mutex_lock(mutex); }
static inline void os_mutex_unlock(os_mutex *mutex) { pthread_mutex_unlock(mutex); }

#define OS_COND_INIT PTHREAD_COND_INITIALIZER
typedef pthread_cond_t os_cond;
static inline void os_cond_wait(os_cond *cond, os_mutex *mutex) { pthread_cond_wait(cond, mutex); }
static inline void os_cond_signal(os_cond *cond) { pthread_cond_signal(cond); }
static inline void os_cond_broadcast(os_cond *cond) { pthread_cond_broadcast(cond); }

#define OS_CALL
typedef void *os_result;
static inline int os_thread_start(os_result(OS_CALL *function)(void *), void *argument, size_t stack)
{
    pthread_attr_t attributes;
    pthread_t thread;
    if (pthread_attr_init(&attributes)) return 0;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, stack);
    /* Block signals, which are for the program's own threads, except faults, which the faulting thread must receive. */
    static const int faults[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS };
    sigset_t all, before;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(&all, faults[i]);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&thread, &attributes, function, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return !failed;
}

static inline int os_atfork_child(void (*function)(void)) { return pthread_atfork(NULL, NULL, function) == 0; }

#if defined(__x86_64__) || defined(__i386__)
#define OS_PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define OS_PAUSE() __asm__ volatile("isb") /* yield is a no-op on most cores */
#else
#define OS_PAUSE() ((void)0)
#endif
#endif
#endif
