/*
 * kernels.c - every rule and stage, dtype and instruction set gives the bits of the scalar kernels, and accesses only
 * its arrays: every length around the vector widths, misaligned starts, optional arrays present and NULL, any values.
 */
#include "check.h"

enum { CANARY = 0xA5, MARGIN = 64 };

/* An array with canaries before and after it.  With a margin of 0 it ends with its allocation, which ASan guards. */
struct guarded {
    unsigned char *memory;
    void *data;
    size_t before, bytes, behind;
};

static struct guarded guarded(size_t before, size_t bytes, size_t behind)
{
    struct guarded g = { (unsigned char *)malloc(before + bytes + behind), NULL, before, bytes, behind };
    CHECK(g.memory || !(before | bytes | behind), "out of memory");
    memset(g.memory, CANARY, before + bytes + behind);
    g.data = g.memory + before;
    return g;
}

static int untouched(const struct guarded *g)
{
    for (size_t i = 0; i < g->before; i++)
        if (g->memory[i] != CANARY) return 0;
    for (size_t i = g->before + g->bytes; i < g->before + g->bytes + g->behind; i++)
        if (g->memory[i] != CANARY) return 0;
    return 1;
}

/* Call one kernel of every instruction set on the same arguments: first the scalar one, then all of isas. */
static void compare(const proptim_isa *const *isas, int n_isas, int kernel, int dtype, size_t n, size_t offset,
                    unsigned way, uint64_t *random)
{
    const struct text *text = &texts[kernel];
    const size_t itemsize = itemsize_of(dtype), bytes = n * itemsize;
    const unsigned mask = present(text, way);
    const int n_arrays = count_words(text->arrays), temper = way & 4 ? WILD : TAME;
    mix_roots(n % 2); /* every way to leave arrays out at every second length */
    struct guarded initial[PROPTIM_MAX_ARRAYS], expected[PROPTIM_MAX_ARRAYS];
    double coefs[PROPTIM_MAX_COEFS];
    char word[32];

    draw_coefs(text, random, coefs);
    for (int j = 0; j < n_arrays; j++) {
        initial[j] = guarded(0, bytes, 0);
        word_at(text->arrays, j, word);
        fill(dtype, initial[j].data, n, role_of(word), temper, random);
    }
    for (int i = -1; i < n_isas; i++) {
        const proptim_isa *isa = i < 0 ? &proptim_isa_scalar : isas[i];
        struct guarded arrays[PROPTIM_MAX_ARRAYS];
        void *pointers[PROPTIM_MAX_ARRAYS];
        for (int j = 0; j < n_arrays; j++) {
            arrays[j] = guarded(offset * itemsize, bytes, offset ? MARGIN : 0);
            memcpy(arrays[j].data, initial[j].data, bytes);
            pointers[j] = mask >> j & 1 ? arrays[j].data : NULL;
        }
        kernel_of(isa, kernel, dtype)(pointers, coefs, n);
        for (int j = 0; j < n_arrays; j++) {
            word_at(text->arrays, j, word);
            CHECK(untouched(&arrays[j]), "%s %s %s n=%zu offset=%zu: outside %s", isa->name, text->name, dtypes[dtype],
                  n, offset, word);
            if (i < 0) {
                const int only_read = !(mask >> j & 1) || (kernel < PROPTIM_RULES && text->marks[j] == 'r');
                CHECK(!only_read || !memcmp(arrays[j].data, initial[j].data, bytes), "%s writes %s", text->name, word);
                expected[j] = arrays[j];
                continue;
            }
            const size_t at = difference(dtype, arrays[j].data, expected[j].data, n);
            CHECK(at == n, "%s %s %s n=%zu offset=%zu way=%u: %s[%zu] has bits %016llx, scalar has %016llx", isa->name,
                  text->name, dtypes[dtype], n, offset, way, word, at,
                  (unsigned long long)bits_at(dtype, arrays[j].data, at),
                  (unsigned long long)bits_at(dtype, expected[j].data, at));
            free(arrays[j].memory);
        }
    }
    for (int j = 0; j < n_arrays; j++) {
        free(initial[j].memory);
        free(expected[j].memory);
    }
}

int main(void)
{
    const proptim_isa *isas[MOST_ISAS];
    const int n_isas = take_part(isas);
    /* Every length below four of the widest vectors and some more, then around the block of the plan and of reduce. */
    enum { SHORT = 68 };
    static const size_t longer[] = { 127, 129, 1000, 1023, 1024, 1025, 4099 };
    uint64_t random = 1;
    long calls = 0;
    for (int kernel = 0; kernel < KERNELS; kernel++)
        for (int dtype = 0; dtype < PROPTIM_DTYPES; dtype++)
            for (size_t l = 0; l < SHORT + sizeof longer / sizeof *longer; l++)
                for (unsigned way = 0; way < 8; way++, calls++)
                    compare(isas, n_isas, kernel, dtype, l < SHORT ? l : longer[l - SHORT], (way + l) % 4, way,
                            &random);
    printf("%ld cases on %d tables of kernels: the bits of the scalar ones\n", calls, n_isas);
    return 0;
}
