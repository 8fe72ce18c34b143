/* dispatch.c - names and tables: everything in the lists is found by its name, and nothing else. */
#include "check.h"

int main(void)
{
    const proptim_isa *isas[MOST_ISAS];
    CHECK(take_part(isas) > 0, "nothing runs");

    int count = 0;
    while (proptim_isa_at(count)) count++;
    CHECK(proptim_isa_at(count + 1) == NULL && proptim_isa_at(-1) == NULL, "beyond the list");
    CHECK(!strcmp(proptim_isa_name(proptim_isa_at(count - 1)), "scalar"), "portable last");
    CHECK(proptim_isa_runs(proptim_isa_at(count - 1)), "portable runs everywhere");
    for (int i = 0; i < count; i++) {
        const proptim_isa *isa = proptim_isa_at(i), *found = proptim_isa_find(proptim_isa_name(isa));
        CHECK(found == (proptim_isa_runs(isa) ? isa : NULL), "%s", proptim_isa_name(isa));
    }
    CHECK(proptim_isa_find(NULL) && proptim_isa_runs(proptim_isa_find(NULL)), "the best runs");
    CHECK(!proptim_isa_find("") && !proptim_isa_find("AVX2") && !proptim_isa_find("avx"), "unknown names");
    CHECK(!proptim_isa_runs(NULL), "no instruction set");

    for (int r = 0; r < PROPTIM_RULES; r++) {
        const proptim_rule rule = (proptim_rule)r;
        char arrays[256], coefs[256]; /* in brackets, as the lists have them */
        snprintf(arrays, sizeof arrays, "(%s)", proptim_rule_arrays(rule));
        snprintf(coefs, sizeof coefs, "(%s)", proptim_rule_coefs(rule));
        CHECK(!strcmp(texts[r].name, proptim_rule_name(rule)), "rule %d", r);
        CHECK(!strcmp(texts[r].arrays, arrays) && !strcmp(texts[r].coefs, coefs), "%s", texts[r].name);
        CHECK(!strncmp(arrays, "(param, grad", 12), "%s", arrays);
        CHECK(!strcmp(texts[r].marks, proptim_rule_marks(rule)) && !strncmp(texts[r].marks, "wr", 2), "%s",
              texts[r].name);
        CHECK(count_words(arrays) == (int)strlen(texts[r].marks), "%s", texts[r].marks);
        CHECK(count_words(arrays) <= PROPTIM_AVERAGE && count_words(coefs) <= PROPTIM_MAX_COEFS, "%s", arrays);
    }
    CHECK((int)PROPTIM_STAGES <= PROPTIM_MAX_STAGES, "%d stages", PROPTIM_STAGES);
    for (int s = 0; s < PROPTIM_STAGES; s++) {
        CHECK(!strcmp(texts[PROPTIM_RULES + s].name, proptim_stage_name((proptim_stage)s)), "stage %d", s);
        CHECK(!isnan(proptim_stage_neutral((proptim_stage)s)), "the neutral coefficient must equal itself");
    }
    for (int i = 0; i < count; i++)
        for (int k = 0; k < KERNELS; k++)
            for (int d = 0; d < PROPTIM_DTYPES; d++) {
                proptim_kernel *kernel = kernel_of(proptim_isa_at(i), k, d);
                CHECK(kernel, "%s %s", texts[k].name, dtypes[d]);
                if (k < PROPTIM_RULES)
                    CHECK(kernel == proptim_isa_kernel(proptim_isa_at(i), (proptim_rule)k, (proptim_dtype)d), "%s",
                          texts[k].name);
            }
    return 0;
}
