/*
 * digest.c - a checksum of the results of every kernel, codec and rule on formats of 16 bits and of one byte, which is
 * the same for every instruction set, compiler and architecture.
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
        const proptim_view view = { { memory }, (proptim_dtype)dtype, 1, &sizes[i], { &stride }, PROPTIM_PLAIN };
        double partials[3];
        int finite;
        fill(dtype, memory, (size_t)sizes[i], PROPTIM_PARAMS, TAME, &random);
        const double sum = proptim_reduce(isa, &view, 1, partials, &finite, 1, NULL);
        hash = fnv(hash, bits_at(PROPTIM_F64, &sum, 0), 8);
    }
    return hash;
}

/* Load elements of any bits, with scales and grids as they are stored, and store any numbers. */
static uint64_t digest_codec(const proptim_isa *isa, int format, int dtype)
{
    uint64_t random = seed_of(formats[format]), hash = FNV_START;
    double block[N], planes[2][N];
    void *const operands[3] = { block, planes[0], planes[1] };
    for (int run = 0; run < RUNS; run++) {
        for (int p = 0; p < 2; p++)
            for (size_t i = 0; i < N; i++) {
                const size_t bytes = plane_bytes(dtype, format, p);
                uint64_t bits = 0;
                for (int b = 0; b < 4; b++) bits = bits << 16 | (uint64_t)below(&random, 0x10000);
                const uint16_t half = (uint16_t)bits;
                const uint32_t word = (uint32_t)bits;
                const uint8_t byte = (uint8_t)bits;
                const void *from = bytes == 1   ? (const void *)&byte
                                   : bytes == 2 ? (const void *)&half
                                   : bytes == 4 ? (const void *)&word
                                                : &bits;
                memcpy((char *)planes[p] + i * bytes, from, bytes);
            }
        for (size_t i = 0; format >= PROPTIM_INT8 && i < N; i++) {
            const float size = (float)(0.5 + i), grid = (float)(1 + run % 4);
            ((float *)(void *)planes[1])[i] = format == PROPTIM_STEPS8 && i == 1 ? grid : size;
        }
        isa->loads[format][dtype](operands, N);
        for (size_t i = 0; i < N; i++) hash = fnv(hash, bits_at(dtype, block, i), (int)itemsize_of(dtype));
        fill(dtype, block, N, PROPTIM_PARAMS, WILD, &random);
        isa->stores[format][dtype](operands, N);
        for (int p = 0; p < 2; p++)
            for (size_t i = 0; i < plane_count(format, p, N) && plane_bytes(dtype, format, p); i++)
                hash = fnv(hash, plane_bits_at(dtype, format, p, planes[p], i), (int)plane_bytes(dtype, format, p));
    }
    return hash;
}

/*
 * Several steps of a rule with 16-bit gradients and state, and bfloat16 parameters: split if it computes in float32 and
 * stores are rounded to nearest, else by themselves.
 */
static uint64_t digest_formats(const proptim_isa *isa, int rule, int dtype, proptim_rounding rounding)
{
    const struct text *text = &texts[rule];
    uint64_t random = seed_of(text->name), hash = FNV_START;
    uint16_t planes[PROPTIM_MAX_ARRAYS][2][N];
    double block[N];
    char word[32];
    for (unsigned run = 0; run < RUNS; run++) {
        const unsigned mask = present(text, run);
        double coefs[PROPTIM_MAX_COEFS];
        proptim_row row;
        draw_coefs(text, &random, coefs);
        proptim_row_init(&row, (proptim_rule)rule, coefs);
        row.stages[PROPTIM_zero] = run & 1;
        row.rounding = rounding;
        row.seed = 7;
        for (int step = 0; step < STEPS; step++) {
            proptim_segment s = { .size = N, .dtype = (proptim_dtype)dtype, .dense = PROPTIM_DENSE };
            for (int j = 0; text->marks[j]; j++) {
                const int format = j > PROPTIM_GRADS ? (run & 2 ? PROPTIM_F16 : PROPTIM_BF16)
                                   : j == PROPTIM_PARAMS && exists(dtype, PROPTIM_SPLIT) && rounding == PROPTIM_NEAREST
                                       ? PROPTIM_SPLIT
                                       : PROPTIM_BF16;
                void *const operands[3] = { block, planes[j][0], planes[j][1] };
                word_at(text->arrays, j, word);
                fill(dtype, block, N, role_of(word), run & 4 ? WILD : TAME, &random);
                if (step == 0 || j == PROPTIM_GRADS) proptim_isa_scalar.stores[format][dtype](operands, N);
                for (int p = 0; p < 2 && mask >> j & 1; p++)
                    if (plane_bytes(dtype, format, p)) s.arrays[j].planes[p] = planes[j][p];
                s.arrays[j].format = (uint8_t)format;
            }
            row.step = (uint64_t)step + 1;
            proptim_step(isa, (proptim_rule)rule, &s, 1, &row, 1, NULL);
            for (int j = 0; text->marks[j]; j++)
                for (int p = 0; p < 2 && s.arrays[j].planes[p]; p++)
                    for (size_t i = 0; i < N; i++)
                        hash = fnv(hash, plane_bits_at(dtype, s.arrays[j].format, p, planes[j][p], i), 2);
        }
    }
    return hash;
}

/* Several steps of a rule with state in one byte, over blocks and a tail, under float32 parameters. */
static uint64_t digest_one_byte(const proptim_isa *isa, int rule)
{
    enum { LARGE = 2 * PROPTIM_QUANTA + N, SCALES = 3 };
    const struct text *text = &texts[rule];
    uint64_t random = seed_of(text->name), hash = FNV_START;
    float values[PROPTIM_MAX_ARRAYS][LARGE], scales[PROPTIM_MAX_ARRAYS][SCALES];
    uint8_t codes[PROPTIM_MAX_ARRAYS][LARGE];
    char word[32];
    for (unsigned run = 0; run < RUNS; run++) {
        const unsigned mask = present(text, run);
        const uint8_t averages = run & 2 ? PROPTIM_SQUARES8 : PROPTIM_INT8;
        double coefs[PROPTIM_MAX_COEFS];
        proptim_row row;
        draw_coefs(text, &random, coefs);
        proptim_row_init(&row, (proptim_rule)rule, coefs);
        row.stages[PROPTIM_zero] = run & 1;
        for (int step = 0; step < STEPS; step++) {
            proptim_segment s = { .size = LARGE, .dtype = PROPTIM_F32, .dense = PROPTIM_DENSE };
            for (int j = 0; text->marks[j]; j++) {
                proptim_plane_array *const a = &s.arrays[j];
                void *const operands[3] = { values[j], codes[j], scales[j] };
                word_at(text->arrays, j, word);
                if (step == 0 || j == PROPTIM_GRADS)
                    fill(PROPTIM_F32, values[j], LARGE, role_of(word), run & 4 ? WILD : TAME, &random);
                if (j > PROPTIM_GRADS) a->format = rule == PROPTIM_rprop ? PROPTIM_STEPS8 : averages;
                if (step == 0 && j > PROPTIM_GRADS) {
                    scales[j][0] = 50;
                    scales[j][1] = (float)(1 + run % 4);
                    proptim_isa_scalar.stores[a->format][PROPTIM_F32](operands, LARGE);
                }
                if (!(mask >> j & 1)) continue;
                a->planes[0] = j > PROPTIM_GRADS ? (void *)codes[j] : values[j];
                a->planes[1] = j > PROPTIM_GRADS ? scales[j] : NULL;
            }
            proptim_step(isa, (proptim_rule)rule, &s, 1, &row, 1, NULL);
            for (int j = 0; text->marks[j]; j++)
                for (int p = 0; p < 2 && s.arrays[j].planes[p]; p++)
                    for (size_t i = 0; i < plane_count(s.arrays[j].format, p, LARGE); i++)
                        hash = fnv(hash, plane_bits_at(PROPTIM_F32, s.arrays[j].format, p, s.arrays[j].planes[p], i),
                                   (int)plane_bytes(PROPTIM_F32, s.arrays[j].format, p));
        }
    }
    return hash;
}

/* Digest number i of a dtype, and its name; "" after the last, NULL if there is none for this dtype. */
static const char *digest_at(int i, const proptim_isa *isa, int dtype, uint64_t *hash)
{
    static char name[32];
    if (i < KERNELS) {
        *hash = digest_kernel(isa, i, dtype);
        return texts[i].name;
    }
    i -= KERNELS;
    if (i-- == 0) {
        *hash = digest_squares(isa, dtype);
        return "squares";
    }
    if (i < PROPTIM_FORMATS) {
        if (i == PROPTIM_PLAIN || !exists(dtype, i)) return NULL;
        *hash = digest_codec(isa, i, dtype);
        return formats[i];
    }
    i -= PROPTIM_FORMATS;
    if (i >= 3 * PROPTIM_RULES) return "";
    static const char *const kinds[] = { "16", "16-stochastic", "8" };
    const int rule = i % PROPTIM_RULES, kind = i / PROPTIM_RULES;
    if (kind == 2 && !exists(dtype, PROPTIM_INT8)) return NULL;
    *hash = kind == 2 ? digest_one_byte(isa, rule)
                      : digest_formats(isa, rule, dtype, kind ? PROPTIM_STOCHASTIC : PROPTIM_NEAREST);
    snprintf(name, sizeof name, "%s-%s", texts[rule].name, kinds[kind]);
    return name;
}

int main(int argc, char **argv)
{
    const proptim_isa *isas[MOST_ISAS];
    const int n_isas = take_part(isas);
    FILE *known = argc > 1 ? fopen(argv[1], "r") : NULL;
    int lines = 0;
    CHECK(known || argc < 2, "cannot open %s", argv[1]);
    for (int d = 0;; d++) {
        const int dtype = d % PROPTIM_DTYPES;
        const char *name = NULL;
        char line[80], expected[80] = "no line";
        uint64_t first = 0;
        for (int i = 0; i < 2 * n_isas; i++) {
            const proptim_isa *isa = isas[i / 2];
            uint64_t hash = 0;
            mix_roots(i % 2);
            name = digest_at(d / PROPTIM_DTYPES, isa, dtype, &hash);
            if (i == 0) first = hash;
            CHECK(hash == first, "%s %s: %s differs from %s", name, dtypes[dtype], isa->name, isas[0]->name);
        }
        if (!name) continue;
        if (!*name) break;
        lines++;
        snprintf(line, sizeof line, "%-8s %s %016llx\n", name, dtypes[dtype], (unsigned long long)first);
        if (!known) {
            fputs(line, stdout);
            continue;
        }
        CHECK(fgets(expected, sizeof expected, known) && !strcmp(line, expected), "got %s, expected %s", line,
              expected);
    }
    if (known) {
        CHECK(fgetc(known) == EOF, "more lines in %s than the %d digests", argv[1], lines);
        printf("%d digests from %d tables of kernels: as in %s\n", lines, n_isas, argv[1]);
        fclose(known);
    }
    return 0;
}
