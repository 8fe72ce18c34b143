/*
 * cpu.c - what this CPU and operating system can run.  Nothing else looks at the CPU.
 *
 * A CPU that has AVX is not enough: the operating system must save the wide registers too, and says so in XCR0.
 */
#include "cpu.h"

int proptim_cpu_always(void) { return 1; }

#if defined(__x86_64__) || defined(_M_X64)

#ifdef _MSC_VER
#include <immintrin.h>
#include <intrin.h>

static void cpuid(int leaf, unsigned reg[4]) { __cpuidex((int *)reg, leaf, 0); }
static unsigned xcr0(void) { return (unsigned)_xgetbv(0); }
#else
#include <cpuid.h>

static void cpuid(int leaf, unsigned reg[4]) { __cpuid_count(leaf, 0, reg[0], reg[1], reg[2], reg[3]); }
static unsigned xcr0(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0)); /* the intrinsic would need -mxsave */
    return low;
}
#endif

enum { EAX, EBX, ECX, EDX };

/* Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2A, CPUID; volume 1, 13.3 for XCR0. */
#define OSXSAVE     (1u << 27) /* leaf 1, ECX */
#define AVX         (1u << 28) /* leaf 1, ECX */
#define AVX2        (1u << 5)  /* leaf 7, EBX */
#define AVX512F     (1u << 16) /* leaf 7, EBX */
#define AVX512DQ    (1u << 17) /* leaf 7, EBX: logic on packed floats */
#define XCR0_AVX    0x06u      /* XMM and YMM state */
#define XCR0_AVX512 0xE6u      /* and opmask, upper ZMM, ZMM16-31 */

static int has(unsigned leaf7_ebx, unsigned state)
{
    unsigned reg[4];
    cpuid(0, reg);
    if (reg[EAX] < 7) return 0;
    cpuid(1, reg);
    if ((reg[ECX] & (OSXSAVE | AVX)) != (OSXSAVE | AVX)) return 0;
    if ((xcr0() & state) != state) return 0;
    cpuid(7, reg);
    return (reg[EBX] & leaf7_ebx) == leaf7_ebx;
}

int proptim_cpu_avx2(void) { return has(AVX2, XCR0_AVX); }

int proptim_cpu_avx512(void)
{
#ifdef __APPLE__
    return 0; /* Darwin switches the state on thread by thread, and has lost opmask registers on the way */
#else
    return has(AVX2 | AVX512F | AVX512DQ, XCR0_AVX512);
#endif
}

/*
 * On the first Intel generations with AVX-512 a few 512-bit instructions lower the clock of everything around them, and
 * their divider is no faster: AVX2 is the better choice there.  libdeflate (lib/x86/cpu_features.c) has the same list.
 */
int proptim_cpu_likes_avx512(void)
{
    unsigned reg[4];
    cpuid(0, reg);
    if (reg[EBX] != 0x756e6547) return 1; /* "Genu" of GenuineIntel */
    cpuid(1, reg);
    unsigned family = (reg[EAX] >> 8) & 0xf, model = ((reg[EAX] >> 4) & 0xf) | ((reg[EAX] >> 12) & 0xf0);
    if (family != 6) return 1;
    switch (model) {
    case 85:  /* Skylake-SP, Cascade Lake, Cooper Lake */
    case 106: /* Ice Lake-SP */
    case 108: /* Ice Lake-D */
    case 126: /* Ice Lake client */
    case 140: /* Tiger Lake */
    case 141: /* Tiger Lake H */
        return 0;
    }
    return 1;
}

#endif
