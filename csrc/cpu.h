/* cpu.h - what this CPU and operating system can run.  Internal. */
#ifndef PROPTIM_CPU_H
#define PROPTIM_CPU_H

#include <stddef.h>

int proptim_cpu_always(void);
int proptim_cpu_avx2(void);
int proptim_cpu_avx512(void);
/* Whether AVX-512 is faster than AVX2 here, on a CPU that runs it. */
int proptim_cpu_likes_avx512(void);
/* The value of proptim_mixed_roots for this CPU. */
size_t proptim_cpu_mixed_roots(void);

#endif
