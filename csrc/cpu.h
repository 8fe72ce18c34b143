/* cpu.h - what this CPU and operating system can run.  Internal. */
#ifndef PROPTIM_CPU_H
#define PROPTIM_CPU_H

int proptim_cpu_always(void);
int proptim_cpu_avx2(void);
int proptim_cpu_avx512(void);
/* Whether 512-bit vectors are worth it, where they run. */
int proptim_cpu_likes_avx512(void);

#endif
