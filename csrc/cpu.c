/*
 * cpu.c - what this CPU and operating system can run.  No other file queries the CPU.
 *
 * It is not enough that the CPU has AVX: the operating system must also save the wide registers, and says so in XCR0.
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
#define F16C        (1u << 29) /* leaf 1, ECX: conversions of binary16 */
#define AVX2        (1u << 5)  /* leaf 7, EBX */
#define AVX512F     (1u << 16) /* leaf 7, EBX */
#define AVX512DQ    (1u << 17) /* leaf 7, EBX: logic on packed floats */
#define AVX512BW    (1u << 30) /* leaf 7, EBX: vectors of 16-bit integers, for codecs */
#define AVX512VL    (1u << 31) /* leaf 7, EBX: shorter vectors; without them gcc does not vectorize 16-bit integers */
#define XCR0_AVX    0x06u      /* XMM and YMM state */
#define XCR0_AVX512 0xE6u      /* and opmask, upper ZMM, ZMM16-31 */

static int has(unsigned leaf7_ebx, unsigned state)
{
    unsigned reg[4];
    cpuid(0, reg);
    if (reg[EAX] < 7) return 0;
    cpuid(1, reg);
    if (~reg[ECX] & (OSXSAVE | AVX | F16C)) return 0; /* every CPU with AVX2 has F16C, unless it is switched off */
    if ((xcr0() & state) != state) return 0;
    cpuid(7, reg);
    return (reg[EBX] & leaf7_ebx) == leaf7_ebx;
}

int proptim_cpu_avx2(void) { return has(AVX2, XCR0_AVX); }

int proptim_cpu_avx512(void)
{
#ifdef __APPLE__
    return 0; /* Darwin enables this state thread by thread on first use, and some versions lost opmask registers */
#else
    return has(AVX2 | AVX512F | AVX512DQ | AVX512BW | AVX512VL, XCR0_AVX512);
#endif
}

enum vendor { INTEL, AMD, OTHER };

/* Vendor, and family and model with their extended bits, as the vendors' manuals number them. */
static enum vendor which(unsigned *family, unsigned *model)
{
    unsigned reg[4];
    cpuid(0, reg);
    const unsigned vendor = reg[EBX];
    cpuid(1, reg);
    *family = (reg[EAX] >> 8) & 0xf;
    *model = ((reg[EAX] >> 4) & 0xf) | ((reg[EAX] >> 12) & 0xf0);
    if (*family == 0xf) *family += (reg[EAX] >> 20) & 0xff;
    return vendor == 0x756e6547 ? INTEL : vendor == 0x68747541 ? AMD : OTHER; /* "Genu"ineIntel, "Auth"enticAMD */
}

/*
 * On the first Intel generations with AVX-512 a few 512-bit instructions lower the clock of everything around them, and
 * their divider is no faster: AVX2 is the better choice there.  libdeflate (lib/x86/cpu_features.c) has the same list.
 */
int proptim_cpu_likes_avx512(void)
{
    unsigned family, model;
    if (which(&family, &model) != INTEL || family != 6) return 1;
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

/*
 * CPUs on which a step is faster if some 512-bit square roots are computed by multiplications, so that the divider and
 * the multipliers work at the same time: half of them or a quarter.  The numbers are ns per weight, by `roots time`.
 *
 *                 Emerald Rapids        Zen 4
 *                 RMSprop  Adam         RMSprop  Adagrad  Adam   NAdam
 *   none          0.493    not noted    0.277    0.275    0.281  0.279
 *   half          0.363    0.365        0.257    0.208    0.276  0.286
 *   a quarter     not measured          0.237    0.234    0.245  0.252
 *
 * Where three of four were, Emerald Rapids took 0.364 for RMSprop and 0.383 for Adam.  On Zen 4 the multipliers are
 * busy with the rule itself, the more the longer it is.  Intel's other CPUs in this list have the same divider,
 * according to its manuals: 22 cycles for a vector, and 16 when mixed.  With AVX2, whose estimate takes two steps of
 * Newton's iteration, half of them made RMSprop slower on Zen 3 and Zen 4 (0.383 instead of 0.290), and llvm-mca
 * predicts a gain of 2 % for Skylake to Ice Lake: there is no such root for AVX2.  For all other CPUs, such as Zen 5
 * with a divider twice as fast, it is not known, and they use the instruction.
 */
enum { NONE = 1, HALF = 16, QUARTER = 48 };

size_t proptim_cpu_mixed_roots(void)
{
    unsigned family, model;
    switch (which(&family, &model)) {
    case INTEL:
        if (family != 6) return NONE;
        switch (model) {
        case 85:  /* Skylake-SP, Cascade Lake, Cooper Lake */
        case 106: /* Ice Lake-SP */
        case 108: /* Ice Lake-D */
        case 126: /* Ice Lake client */
        case 140: /* Tiger Lake */
        case 141: /* Tiger Lake H */
        case 143: /* Sapphire Rapids */
        case 167: /* Rocket Lake */
        case 173: /* Granite Rapids */
        case 174: /* Granite Rapids D */
        case 207: /* Emerald Rapids */
            return HALF;
        }
        return NONE;
    case AMD: /* family 0x19 is Zen 3 and, under these models, Zen 4 */
        if (family != 0x19) return NONE;
        return (model & 0xf0) == 0x10 || (model & 0xe0) == 0x60 || (model & 0xf0) == 0xa0 ? QUARTER : NONE;
    default:
        return NONE;
    }
}

#else

size_t proptim_cpu_mixed_roots(void) { return 1; }

#endif
