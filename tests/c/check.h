/*
 * check.h - what the C tests share: CHECK, the instruction sets under test, pseudo-random arguments for any kernel,
 * comparison of bits.
 *
 * Rules and stages come from the lists in rules.def and stages.def, so a new row is tested without a change here.
 */
#ifndef PROPTIM_CHECK_H
#define PROPTIM_CHECK_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "isa.h"

/* CHECK(condition, format, ...): if it is false, print where and with which numbers, and exit with 1. */
#define CHECK(condition, ...)                                               \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__);                                   \
            fputc('\n', stderr);                                            \
            exit(1);                                                        \
        }                                                                   \
    } while (0)

/* The instruction sets under test ---------------------------------------------------------------------------------- */

#ifdef EMULATED
extern const struct proptim_isa proptim_isa_avx2_simde, proptim_isa_avx512_simde, proptim_isa_neon_simde;
static const proptim_isa *const emulated[] = { &proptim_isa_avx2_simde, &proptim_isa_avx512_simde,
                                               &proptim_isa_neon_simde };
enum { EMULATED_ISAS = 3 };
#else
static const proptim_isa *const emulated[] = { NULL };
enum { EMULATED_ISAS = 0 };
#endif

enum { MOST_ISAS = 8 };

/* Square roots by the instruction in every vector, or by multiplications in every second one: see isa.h. */
static inline void mix_roots(int mix) { atomic_store(&proptim_mixed_roots, mix ? 16 : 1); }

/* Every table of kernels that runs here, natively or emulated by SIMDe; the others are listed on stderr. */
static inline int take_part(const proptim_isa **isas)
{
    int count = 0;
    fprintf(stderr, "instruction sets:");
    for (int i = 0; proptim_isa_at(i); i++) {
        const proptim_isa *isa = proptim_isa_at(i);
        const int runs = proptim_isa_runs(isa);
        fprintf(stderr, " %s%s", isa->name, runs ? "" : " (NOT RUN: not on this CPU)");
        if (runs) isas[count++] = isa;
    }
    for (int i = 0; i < EMULATED_ISAS; i++) {
        fprintf(stderr, " %s(SIMDe)", emulated[i]->name);
        isas[count++] = emulated[i];
    }
    fprintf(stderr, "%s\n", EMULATED_ISAS ? "" : " (NOT EMULATED: SIMDe was not found)");
    return count;
}

/* The lists -------------------------------------------------------------------------------------------------------- */

enum { KERNELS = PROPTIM_RULES + PROPTIM_STAGES }; /* rules, then stages */

static const struct text {
    const char *name, *arrays, *marks, *coefs; /* as the lists have them: "(a, b)" */
} texts[KERNELS] = {
#define PROPTIM_RULE(name, arrays, marks, coefs) { #name, #arrays, marks, #coefs },
#include "rules.def"
#undef PROPTIM_RULE
#define PROPTIM_STAGE(name, arrays, neutral) { #name, #arrays, "", "(coef)" },
#include "stages.def"
#undef PROPTIM_STAGE
};

static const char *const dtypes[PROPTIM_DTYPES] = { "f32", "f64" };

static inline size_t itemsize_of(int dtype) { return dtype == PROPTIM_F32 ? sizeof(float) : sizeof(double); }

static inline proptim_kernel *kernel_of(const proptim_isa *isa, int kernel, int dtype)
{
    return kernel < PROPTIM_RULES ? isa->rules[kernel][dtype] : isa->stages[kernel - PROPTIM_RULES][dtype];
}

/* Word number i of "(a, b)"; 0 after the last. */
static inline int word_at(const char *list, int i, char word[32])
{
    for (; i >= 0; i--) {
        list += strspn(list, "(, ");
        const size_t length = strcspn(list, ",)");
        if (length == 0) return 0;
        CHECK(length < 32, "a longer name than word_at() expects: %s", list);
        memcpy(word, list, length);
        word[length] = 0;
        list += length;
    }
    return 1;
}

static inline int count_words(const char *list)
{
    char word[32];
    int count = 0;
    while (word_at(list, count, word)) count++;
    return count;
}

/* Each call returns another choice of optional arrays to leave out: bit j of the result is for array j. */
static inline unsigned present(const struct text *text, unsigned way)
{
    unsigned absent = 0;
    for (int j = 0; text->marks[j]; j++)
        if (text->marks[j] == 'o') {
            absent |= (way & 1) << j;
            way >>= 1;
        }
    return ~absent;
}

/* Formats ---------------------------------------------------------------------------------------------------------- */

static const char *const formats[PROPTIM_FORMATS] = {
    "plain",
#define PROPTIM_CODEC(NAME, name, bytes, arrays) #name,
#define PROPTIM_CODEC_F32                        PROPTIM_CODEC
#define PROPTIM_CODEC_F64                        PROPTIM_CODEC
#include "codecs.def"
#undef PROPTIM_CODEC
#undef PROPTIM_CODEC_F32
#undef PROPTIM_CODEC_F64
};

/* Bytes of an element of each plane, 0 if a format has no second one: written down from proptim.h, not codecs.def. */
static inline size_t plane_bytes(int dtype, int format, int plane)
{
    switch (format) {
    case PROPTIM_PLAIN:
        return plane ? 0 : itemsize_of(dtype);
    case PROPTIM_STEPS:
        return itemsize_of(dtype);
    case PROPTIM_BF16:
    case PROPTIM_F16:
        return plane ? 0 : 2;
    case PROPTIM_SPLIT:
        return 2;
    case PROPTIM_BF16_MASTER:
    case PROPTIM_F16_MASTER:
        return plane ? 4 : 2;
    case PROPTIM_BF16_COPY:
    case PROPTIM_F16_COPY:
        return plane ? 2 : 4;
    case PROPTIM_FLOAT32:
        return plane ? 0 : 4;
    case PROPTIM_INT8:
    case PROPTIM_SQUARES8:
    case PROPTIM_STEPS8:
        return plane ? 4 : 1;
    default:
        return plane ? 0 : 8;
    }
}

/* Elements of a plane of an array of n: a scale for each 256, or a grid for all, in formats of one byte. */
static inline size_t plane_count(int format, int plane, size_t n)
{
    if (plane == 0 || format < PROPTIM_INT8) return n;
    return format == PROPTIM_STEPS8 ? 2 : (n + 255) / 256;
}

static inline int exists(int dtype, int format)
{
    return format == PROPTIM_PLAIN || proptim_isa_scalar.loads[format][dtype];
}

/* Pseudo-random arguments ------------------------------------------------------------------------------------------ */

/* Uniform in [0, 1), 53 bits.  Knuth's MMIX generator: the same everywhere, no libm. */
static inline double uniform(uint64_t *random)
{
    *random = *random * 6364136223846793005u + 1442695040888963407u;
    return (double)(*random >> 11) * 0x1p-53;
}

static inline size_t below(uint64_t *random, size_t n) { return (size_t)(uniform(random) * (double)n); }

/* Coefficients have a meaning only for their rule, but kernels are defined for any numbers: 0, 1, or between. */
static inline void draw_coefs(const struct text *text, uint64_t *random, double *coefs)
{
    static const struct {
        const char *name;
        double value;
    } fixed[] = { { "remembered", 0x1p38 }, { "forget", 0x1p90 }, { "unforget", 0x1p-90 } };
    char word[32];
    for (int k = 0; word_at(text->coefs, k, word); k++) {
        const double choice = uniform(random), value = uniform(random);
        coefs[k] = choice < 0.2 ? 0 : choice < 0.4 ? 1 : value;
        for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
            if (!strcmp(word, fixed[i].name)) coefs[k] = fixed[i].value;
    }
}

static inline void put(int dtype, void *array, size_t i, double value)
{
    if (dtype == PROPTIM_F32)
        ((float *)array)[i] = (float)value;
    else
        ((double *)array)[i] = value;
}

enum { TAME, WILD };

/* Gradients and parameters have both signs, state is positive; with WILD all arrays have any bits. */
static inline void fill(int dtype, void *array, size_t n, int role, int temper, uint64_t *random)
{
    static const double special[] = { 0.0,     -0.0,     1e-40,    -1e-44,  FLT_MIN,  1e-310,    -DBL_MIN,
                                      1e-25,   -3e-23,   1e19,     FLT_MAX, INFINITY, -INFINITY, NAN,
                                      DBL_MAX, 0x1p-126, -0x1p100, 0x1p38,  -0x1p37 };
    enum { TAME_ONES = 9, ALL = sizeof special / sizeof *special };
    for (size_t i = 0; i < n; i++) {
        const double x = uniform(random), choice = uniform(random);
        double value = role == PROPTIM_STATE && temper == TAME ? x : 4 * x - 2;
        if (choice < 0.2 && (temper == WILD || role == PROPTIM_GRADS))
            value = special[below(random, temper == WILD ? ALL : TAME_ONES)];
        put(dtype, array, i, value);
    }
}

static inline int role_of(const char *array)
{
    return !strcmp(array, "param") ? PROPTIM_PARAMS : !strcmp(array, "grad") ? PROPTIM_GRADS : PROPTIM_STATE;
}

/* Bits ------------------------------------------------------------------------------------------------------------- */

/* The bits of element i.  Sign and payload of a NaN differ between architectures and are not promised. */
static inline uint64_t bits_at(int dtype, const void *array, size_t i)
{
    if (dtype == PROPTIM_F32) {
        uint32_t bits;
        memcpy(&bits, (const char *)array + 4 * i, 4);
        return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : bits;
    }
    uint64_t bits;
    memcpy(&bits, (const char *)array + 8 * i, 8);
    return (bits & 0x7fffffffffffffffu) > 0x7ff0000000000000u ? 0x7ff8000000000000u : bits;
}

/* The same of an element of a plane. */
static inline uint64_t plane_bits_at(int dtype, int format, int plane, const void *array, size_t i)
{
    const size_t bytes = plane_bytes(dtype, format, plane);
    if (bytes == 1) return ((const unsigned char *)array)[i];
    if (bytes != 2) return bits_at(bytes == 4 ? PROPTIM_F32 : PROPTIM_F64, array, i);
    uint16_t bits;
    memcpy(&bits, (const char *)array + 2 * i, 2);
    if (plane == 1 && format == PROPTIM_SPLIT) return bits; /* the low half of a word */
    const int binary = format == PROPTIM_F16 || format == PROPTIM_F16_MASTER || format == PROPTIM_F16_COPY;
    const uint16_t infinity = binary ? 0x7c00 : 0x7f80;
    return (bits & 0x7fff) > infinity ? 0x7fff : bits;
}

/* Index of the first element whose bits differ, n if none does. */
static inline size_t difference(int dtype, const void *a, const void *b, size_t n)
{
    size_t i = 0;
    while (i < n && bits_at(dtype, a, i) == bits_at(dtype, b, i)) i++;
    return i;
}

#endif
