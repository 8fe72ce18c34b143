/*
 * fpenv.h - the floating-point environment in which all kernels run: round to nearest, subnormals kept.
 *
 * A library linked with -ffast-math switches its whole process to flush-to-zero; our bits must not depend on that.
 * fpenv_leave() restores the caller's environment, status flags included.
 */
#ifndef PROPTIM_FPENV_H
#define PROPTIM_FPENV_H

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>

typedef unsigned fpenv;
enum { MXCSR_DEFAULT = 0x1F80 }; /* after reset: all exceptions masked, to nearest, no FTZ, no DAZ */
static inline fpenv fpenv_enter(void)
{
    fpenv saved = _mm_getcsr();
    if (saved != MXCSR_DEFAULT) _mm_setcsr(MXCSR_DEFAULT);
    return saved;
}
static inline void fpenv_leave(fpenv saved) { _mm_setcsr(saved); }

#elif defined(__aarch64__)
#include <stdint.h>

typedef uint64_t fpenv;
static inline fpenv fpenv_enter(void)
{
    fpenv saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
    __asm__ volatile("msr fpcr, %0" : : "r"((fpenv)0)); /* to nearest, no traps, no flushing, IEEE NaN */
    return saved;
}
static inline void fpenv_leave(fpenv saved) { __asm__ volatile("msr fpcr, %0" : : "r"(saved)); }

#else
#include <fenv.h>

typedef fenv_t fpenv;
static inline fpenv fpenv_enter(void)
{
    fpenv saved;
    fegetenv(&saved);
    fesetenv(FE_DFL_ENV); /* an external function: no compiler moves the call of a kernel across it */
    return saved;
}
static inline void fpenv_leave(fpenv saved) { fesetenv(&saved); }

#endif
#endif
