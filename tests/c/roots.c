/*
 * roots.c - the square root of every float32 is correctly rounded, whichever way a kernel computes it.
 *
 *   roots           the special numbers, and every 4999th of all 2^32; of avx512, which has a root of its own, every
 *                   17th from 1 to 4 as well
 *   roots all       of avx512 all numbers: some minutes where it is emulated
 *   roots time      ns a weight of rules with roots, by the instruction and in three mixes; the fastest of many runs
 *
 * Scaling by a power of 4 scales each operation of Newton's iteration exactly, so that the numbers from 1 to 4 stand
 * for all from 2^-80 on.  They are gone through seven times, once with each error that the emulated estimates have.
 */
#include <time.h>

#include "check.h"

enum { LANES = 16, INPUTS = 1024, N = 2 * INPUTS };

static float one_or_input[N]; /* vectors of ones, by the instruction, and of inputs, by multiplication, in turn */
static int filled;
static unsigned long long done;

/*
 * Adadelta with these coefficients leaves -sqrt(acc_delta) in a parameter that was -0, in so many words:
 * -0 - 1 (sqrt(x + -0) / sqrt(1 * 1 + 0 * 1 * 1 + -0) * 1).  None of it rounds but the root.
 */
static void flush(const proptim_isa *isa)
{
    static const double coefs[] = { 1, 1, 0, -0.0 }; /* lr, rho, 1 - rho, eps */
    static float param[N], grad[N], square_avg[N], acc_delta[N];
    void *arrays[PROPTIM_MAX_ARRAYS] = { param, grad, square_avg, acc_delta };
    for (int i = 0; i < N; i++) {
        param[i] = -0.0f;
        grad[i] = square_avg[i] = 1;
        acc_delta[i] = one_or_input[i];
    }
    isa->rules[PROPTIM_adadelta][PROPTIM_F32](arrays, coefs, N);
    for (int i = 0; i < N; i++) {
        const float expected = -sqrtf(one_or_input[i]);
        CHECK(bits_at(PROPTIM_F32, param, (size_t)i) == bits_at(PROPTIM_F32, &expected, 0),
              "%s: root of %a is %a, expected %a", isa->name, one_or_input[i], -param[i], -expected);
    }
    done += (unsigned)filled;
    filled = 0;
}

static void root_of(const proptim_isa *isa, uint32_t bits)
{
    memcpy(&one_or_input[2 * LANES * (filled / LANES) + LANES + filled % LANES], &bits, 4);
    if (++filled == INPUTS) flush(isa);
}

static void roots(const proptim_isa *isa, int all)
{
    static const float special[] = { 0,         -0.0f,           INFINITY,       -INFINITY, NAN,
                                     -1,        FLT_MAX,         -FLT_MAX,       FLT_MIN,   -FLT_MIN,
                                     0x1p-149f, -0x1p-149f,      0x1.fffffep-1f, 1,         0x1p-126f,
                                     0x1p-80f,  0x1.fffffep-81f, 0x1p-79f,       0x1p-100f, 0x1.fffffep3f,
                                     4 };
    enum { SPECIALS = sizeof special / sizeof *special };
    uint32_t bits, last;
    for (int i = 0; i < N; i++) one_or_input[i] = 1;

    /* Each alone among numbers that need nothing special, in every lane; then all together. */
    for (int i = 0; i < SPECIALS * LANES; i++) {
        memcpy(&bits, &special[i / LANES], 4);
        for (int lane = 0; lane < LANES; lane++) root_of(isa, lane == i % LANES ? bits : 0x40490fdb); /* pi */
    }
    for (int i = 0; i < SPECIALS * LANES; i++) {
        memcpy(&bits, &special[i % SPECIALS], 4);
        root_of(isa, bits);
    }

    /* From 1 to 4 there are 2^24 numbers, and as many as these strides leave of them are 1 modulo 7. */
    if (!strcmp(isa->name, "avx512"))
        for (int error = 0; error < 7; error++)
            for (bits = 0x3f800000; bits < 0x40800000; bits += all ? 1 : 17) root_of(isa, bits);
    const uint32_t stride = all && !strcmp(isa->name, "avx512") ? 1 : 4999;
    for (bits = last = 0; bits >= last; last = bits, bits += stride) root_of(isa, bits);
    flush(isa);
}

static void time_roots(const proptim_isa *isa)
{
    static const struct {
        proptim_rule rule;
        double coefs[PROPTIM_MAX_COEFS];
    } rules[] = { { PROPTIM_rmsprop, { 1e-3, .9, .1, 1, 0, 1e-8 } },
                  { PROPTIM_adagrad, { 1e-2, 0, 1e-10 } },
                  { PROPTIM_adam, { 1e-3, .9, .1, .999, .001, 1, 1e-8 } },
                  { PROPTIM_nadam, { 1e-4, 1e-3, .9, .1, .999, .001, 1, 1e-8 } } };
    static const size_t sizes[] = { 10000, 100000, 1000000 };
    static const size_t mixes[] = { 1, 16, 16 | 32, 16 | 32 | 64 }; /* by multiplication: 0, 1/2, 1/4, 1/8 of all */
    enum { MIXES = sizeof mixes / sizeof *mixes };
    for (size_t r = 0; r < sizeof rules / sizeof *rules; r++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            const size_t n = sizes[s], calls = 1 + 1000000 / n;
            const int n_arrays = rules[r].rule == PROPTIM_rmsprop || rules[r].rule == PROPTIM_adagrad ? 3 : 4;
            void *arrays[PROPTIM_MAX_ARRAYS] = { NULL };
            double best[MIXES] = { 1, 1, 1, 1 };
            float *memory = (float *)malloc(((size_t)n_arrays * (n + 1024) + 64) * sizeof(float));
            CHECK(memory, "out of memory");
            for (int j = 0; j < n_arrays; j++) /* 832 bytes apart modulo a page */
                arrays[j] = (float *)(((uintptr_t)memory + 63) & ~(uintptr_t)63) + (size_t)j * ((n | 1023) + 1 + 208);
            for (int turn = 0; turn < 100 * MIXES; turn++) {
                for (int j = 0; j < n_arrays; j++)
                    for (size_t i = 0; i < n; i++) ((float *)arrays[j])[i] = (float)(1 + i % 1000) * 1e-5f;
                atomic_store(&proptim_mixed_roots, mixes[turn % MIXES]);
                const clock_t begin = clock();
                for (size_t k = 0; k < calls; k++) isa->rules[rules[r].rule][PROPTIM_F32](arrays, rules[r].coefs, n);
                const double took = (double)(clock() - begin) / CLOCKS_PER_SEC / (double)(calls * n);
                if (took < best[turn % MIXES]) best[turn % MIXES] = took;
            }
            printf("%-7s %-8s %7zu weights: %.3f ns a weight by the instruction", isa->name,
                   proptim_rule_name(rules[r].rule), n, best[0] * 1e9);
            for (int m = 1; m < MIXES; m++)
                printf(", %.3f by %zu mixed (%.2f times as fast)", best[m] * 1e9, mixes[m], best[0] / best[m]);
            putchar('\n');
            free(memory);
        }
}

int main(int argc, char **argv)
{
    const proptim_isa *isas[MOST_ISAS];
    const int n_isas = take_part(isas);
    if (argc > 1 && !strcmp(argv[1], "time")) {
        time_roots(isas[0]);
        return 0;
    }
    for (int i = 0; i < n_isas; i++) {
        mix_roots(1);
        roots(isas[i], argc > 1 && !strcmp(argv[1], "all"));
    }
    printf("%llu roots on %d tables of kernels: the correctly rounded ones\n", done, n_isas);
    return 0;
}
