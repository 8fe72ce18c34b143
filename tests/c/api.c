/*
 * api.c - functions of proptim.h that only programs use: one rule on one array in any floating-point environment, rows,
 * and NULL for the best instruction set.
 */
#include <fenv.h>

#include "check.h"

enum { N = 77 };

static double initial[PROPTIM_MAX_ARRAYS][N], expected[PROPTIM_MAX_ARRAYS][N], got[PROPTIM_MAX_ARRAYS][N];

static void compare(const char *what, const proptim_isa *isa, int rule, int dtype)
{
    for (int j = 0; j < PROPTIM_MAX_ARRAYS; j++)
        CHECK(difference(dtype, got[j], expected[j], N) == N, "%s of %s %s on %s, array %d", what, texts[rule].name,
              dtypes[dtype], isa ? isa->name : "NULL", j);
}

static void check_rule(const proptim_isa *isa, int rule, int dtype)
{
    const int n_arrays = count_words(texts[rule].arrays), n_coefs = count_words(texts[rule].coefs);
    uint64_t random = 1;
    void *arrays[PROPTIM_MAX_ARRAYS] = { NULL };
    double coefs[PROPTIM_MAX_COEFS] = { 0 };
    proptim_row row;
    draw_coefs(&texts[rule], &random, coefs);
    for (int j = 0; j < n_arrays; j++) fill(dtype, initial[j], N, j, TAME, &random);

    memcpy(expected, initial, sizeof initial);
    for (int j = 0; j < n_arrays; j++) arrays[j] = expected[j];
    proptim_isa_kernel(isa, (proptim_rule)rule, (proptim_dtype)dtype)(arrays, coefs, N);

    memcpy(got, initial, sizeof initial);
    for (int j = 0; j < n_arrays; j++) arrays[j] = got[j];
    CHECK(!fesetround(FE_UPWARD), "rounding");
    proptim_apply(isa, (proptim_rule)rule, (proptim_dtype)dtype, arrays, coefs, N);
    const int after = fegetround();
    CHECK(!fesetround(FE_TONEAREST), "rounding");
    CHECK(after == FE_UPWARD, "rounding was left at %d", after);
    compare("proptim_apply", isa, rule, dtype);

    memset(&row, 0xA5, sizeof row);
    proptim_row_init(&row, (proptim_rule)rule, coefs);
    CHECK(row.active && !memcmp(row.coefs, coefs, sizeof coefs), "coefficients of %s", texts[rule].name);
    for (int s = 0; s < PROPTIM_MAX_STAGES; s++)
        CHECK(row.stages[s] == (s < PROPTIM_STAGES ? proptim_stage_neutral((proptim_stage)s) : 0), "stage %d", s);
    CHECK(n_coefs < PROPTIM_MAX_COEFS && row.coefs[n_coefs] == 0, "coefficients behind those of %s", texts[rule].name);

    memcpy(got, initial, sizeof initial);
    proptim_segment segment = { .size = N, .dtype = (proptim_dtype)dtype, .dense = PROPTIM_DENSE };
    for (int j = 0; j < n_arrays; j++) segment.arrays[j].planes[0] = arrays[j];
    proptim_step(isa, (proptim_rule)rule, &segment, 1, &row, 1, NULL);
    compare("proptim_step", isa, rule, dtype);
}

int main(void)
{
    const proptim_isa *isas[MOST_ISAS + 1], *best = proptim_isa_find(NULL);
    const int n_isas = take_part(isas);
    isas[n_isas] = NULL;
    for (int i = 0; i <= n_isas; i++)
        for (int rule = 0; rule < PROPTIM_RULES; rule++)
            for (int dtype = 0; dtype < PROPTIM_DTYPES; dtype++) check_rule(isas[i], rule, dtype);

    CHECK(proptim_isa_name(NULL) == proptim_isa_name(best), "the name of NULL");
    CHECK(proptim_isa_kernel(NULL, PROPTIM_adam, PROPTIM_F32) == proptim_isa_kernel(best, PROPTIM_adam, PROPTIM_F32),
          "the kernel of NULL");
    const double three_four[] = { 3, 4 };
    const ptrdiff_t shape = 2, stride = sizeof *three_four;
    const proptim_view view = { { three_four }, PROPTIM_F64, 1, &shape, { &stride }, PROPTIM_PLAIN };
    double partials[1];
    int finite;
    CHECK(proptim_reduce(NULL, &view, 1, partials, &finite, 1, NULL) == 25 && finite, "the sum of NULL");
    return 0;
}
