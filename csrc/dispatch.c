/*
 * dispatch.c - choose a table of kernels from a list, best first; and the names of everything in the tables.
 */
#include <math.h>
#include <string.h>

#include "cpu.h"
#include "isa.h"

static const struct choice {
    const proptim_isa *isa;
    int (*runs)(void);
    int (*likes)(void); /* whether to choose it on this CPU if no instruction set is named */
} choices[] = {
#if defined(__x86_64__) || defined(_M_X64)
    { &proptim_isa_avx512, proptim_cpu_avx512, proptim_cpu_likes_avx512 },
    { &proptim_isa_avx2, proptim_cpu_avx2, proptim_cpu_always },
#elif defined(__aarch64__) || defined(_M_ARM64)
    { &proptim_isa_neon, proptim_cpu_always, proptim_cpu_always }, /* part of the base architecture */
#endif
    { &proptim_isa_scalar, proptim_cpu_always, proptim_cpu_always },
};

enum { CHOICES = sizeof choices / sizeof *choices };

const proptim_isa *proptim_isa_at(int index) { return index >= 0 && index < CHOICES ? choices[index].isa : NULL; }

const char *proptim_isa_name(const proptim_isa *isa) { return proptim_isa_or_best(isa)->name; }

int proptim_isa_runs(const proptim_isa *isa)
{
    for (int i = 0; i < CHOICES; i++)
        if (choices[i].isa == isa) return choices[i].runs();
    return 0;
}

atomic_size_t proptim_mixed_roots = 1;

const proptim_isa *proptim_isa_find(const char *name)
{
    atomic_store_explicit(&proptim_mixed_roots, proptim_cpu_mixed_roots(), memory_order_relaxed);
    for (int i = 0; i < CHOICES; i++)
        if (choices[i].runs() && (name ? !strcmp(name, choices[i].isa->name) : choices[i].likes()))
            return choices[i].isa;
    return NULL;
}

const proptim_isa *proptim_isa_or_best(const proptim_isa *isa)
{
    static _Atomic(const proptim_isa *) best; /* remembered: cpuid takes microseconds in a virtual machine */
    if (isa) return isa;
    isa = atomic_load_explicit(&best, memory_order_relaxed);
    if (isa) return isa;
    isa = proptim_isa_find(NULL);
    atomic_store_explicit(&best, isa, memory_order_relaxed);
    return isa;
}

proptim_kernel *proptim_isa_kernel(const proptim_isa *isa, proptim_rule rule, proptim_dtype dtype)
{
    return proptim_isa_or_best(isa)->rules[rule][dtype];
}

/* "(a, b)" as the list files write it, to "a, b". */
#define TEXT(...) #__VA_ARGS__

static const struct {
    const char *name, *arrays, *marks, *coefs;
} rules[] = {
#define PROPTIM_RULE(name, arrays, marks, coefs) { #name, TEXT arrays, marks, TEXT coefs },
#include "rules.def"
#undef PROPTIM_RULE
};

static const struct {
    const char *name;
    double neutral;
} stages[] = {
#define PROPTIM_STAGE(name, arrays, neutral) { #name, neutral },
#include "stages.def"
#undef PROPTIM_STAGE
};

const char *proptim_rule_name(proptim_rule rule) { return rules[rule].name; }
const char *proptim_rule_arrays(proptim_rule rule) { return rules[rule].arrays; }
const char *proptim_rule_marks(proptim_rule rule) { return rules[rule].marks; }
const char *proptim_rule_coefs(proptim_rule rule) { return rules[rule].coefs; }
const char *proptim_stage_name(proptim_stage stage) { return stages[stage].name; }
double proptim_stage_neutral(proptim_stage stage) { return stages[stage].neutral; }
