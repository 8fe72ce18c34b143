/*
 * digest.c - one number for the bits of every kernel: the same for every instruction set, compiler and architecture.
 *
 *   digest               print a line per kernel and dtype: the new digests.txt, after an intended change of bits
 *   digest digests.txt   compare with the lines of a file
 */
#include "check.h"

enum { N = 77, RUNS = 8, STEPS = 5 }; /* 77 = 4 * 16 + 8 + 4 + 1: vectors and a tail at every width */

/* FNV-1a, 64 bits. */
static const uint64_t FNV_START = 0xcbf29ce484222325u;
static uint64_t fnv(uint64_t hash, uint64_t value, int bytes)
{
    for (; bytes > 0; bytes--, value >>= 8) hash = (hash ^ (value & 0xff)) * 0x100000001b3u;
    return hash;
}

static uint64_t seed_of(const char *name)
{
    uint64_t hash = FNV_START;
    while (*name) hash = fnv(hash, (unsigned char)*name++, 1);
    return hash;
}

/* Several steps with fresh gradients, for several draws of the coefficients; half of them with any values at all. */
static uint64_t digest_kernel(const proptim_isa *isa, int kernel, int dtype)
{
    const struct text *text = &texts[kernel];
    const int n_arrays = count_words(text->arrays);
    uint64_t random = seed_of(text->name), hash = FNV_START;
    double memory[PROPTIM_MAX_ARRAYS][N], coefs[PROPTIM_MAX_COEFS];
    char word[32];
    for (unsigned run = 0; run < RUNS; run++) {
        const unsigned mask = present(text, run);
        draw_coefs(text, &random, coefs);
        for (int step = 0; step < STEPS; step++) {
            void *arrays[PROPTIM_MAX_ARRAYS];
            for (int j = 0; j < n_arrays; j++) {
                word_at(text->arrays, j, word);
                const int role = role_of(word);
                if (step == 0 || role == PROPTIM_GRADS) fill(dtype, memory[j], N, role, run & 4 ? WILD : TAME, &random);
                arrays[j] = mask >> j & 1 ? memory[j] : NULL;
            }
            kernel_of(isa, kernel, dtype)(arrays, coefs, N);
            for (int j = 0; j < n_arrays; j++)
                for (size_t i = 0; i < N && arrays[j]; i++)
                    hash = fnv(hash, bits_at(dtype, arrays[j], i), (int)itemsize_of(dtype));
        }
    }
    return hash;
}

/* Three sums: less than a row of lanes, a whole block, several blocks. */
static uint64_t digest_squares(const proptim_isa *isa, int dtype)
{
    static double memory[3 * PROPTIM_BLOCK];
    static const ptrdiff_t sizes[] = { 5, PROPTIM_BLOCK, 2 * PROPTIM_BLOCK + N };
    uint64_t random = 1, hash = FNV_START;
    for (int i = 0; i < 3; i++) {
        const ptrdiff_t stride = (ptrdiff_t)itemsize_of(dtype);
        const proptim_view view = { memory, (proptim_dtype)dtype, 1, &sizes[i], &stride };
        double partials[3];
        int finite;
        fill(dtype, memory, (size_t)sizes[i], PROPTIM_PARAMS, TAME, &random);
        const double sum = proptim_reduce(isa, &view, 1, partials, &finite, 1, NULL);
        hash = fnv(hash, bits_at(PROPTIM_F64, &sum, 0), 8);
    }
    return hash;
}

int main(int argc, char **argv)
{
    const proptim_isa *isas[MOST_ISAS];
    const int n_isas = take_part(isas);
    FILE *known = argc > 1 ? fopen(argv[1], "r") : NULL;
    int lines = 0;
    CHECK(known || argc < 2, "cannot open %s", argv[1]);
    for (int kernel = 0; kernel <= KERNELS; kernel++) /* and the sum of squares */
        for (int dtype = 0; dtype < PROPTIM_DTYPES; dtype++, lines++) {
            const char *name = kernel < KERNELS ? texts[kernel].name : "squares";
            char line[80], expected[80] = "no line";
            uint64_t first = 0;
            for (int i = 0; i < n_isas; i++) {
                const uint64_t hash =
                    kernel < KERNELS ? digest_kernel(isas[i], kernel, dtype) : digest_squares(isas[i], dtype);
                if (i == 0) first = hash;
                CHECK(hash == first, "%s %s: %s differs from %s", name, dtypes[dtype], isas[i]->name, isas[0]->name);
            }
            snprintf(line, sizeof line, "%-8s %s %016llx\n", name, dtypes[dtype], (unsigned long long)first);
            if (!known) {
                fputs(line, stdout);
                continue;
            }
            CHECK(fgets(expected, sizeof expected, known) && !strcmp(line, expected), "got %s, expected %s", line,
                  expected);
        }
    if (known) {
        printf("%d digests from %d tables of kernels: as in %s\n", lines, n_isas, argv[1]);
        fclose(known);
    }
    return 0;
}
