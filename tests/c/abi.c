/*
 * abi.c - everything in proptim.h that is compiled into programs must not change: values, layouts, signatures, and the
 * order of the lists.
 *
 *   abi             print a line for each: the new abi.txt.  With the same PROPTIM_ABI lines may be added to it, but
 *                   none may change, because existing programs were compiled with the old ones.
 *   abi abi.txt     compare with the lines of a file
 */
#include "check.h"

static FILE *known;
static int lines;

static void line(const char *format, const char *name, size_t number, const char *more)
{
    char here[300], expected[300] = "no line\n";
    snprintf(here, sizeof here, format, name, number, more);
    lines++;
    if (!known)
        printf("%s\n", here);
    else
        CHECK(fgets(expected, sizeof expected, known) && expected[strcspn(expected, "\n")] == '\n' &&
                  !strncmp(here, expected, strlen(expected) - 1) && strlen(here) == strlen(expected) - 1,
              "got \"%s\", expected %s", here, expected);
}

static const struct {
    size_t number, arrays, coefs; /* bytes of the structs */
    const char *neutral;
} numbers[KERNELS] = {
#define PROPTIM_RULE(name, arrays, marks, coefs) \
    { PROPTIM_##name, sizeof(proptim_##name##_arrays), sizeof(proptim_##name##_coefs), NULL },
#include "rules.def"
#undef PROPTIM_RULE
#define PROPTIM_STAGE(name, arrays, neutral) { PROPTIM_##name, 0, 0, #neutral },
#include "stages.def"
#undef PROPTIM_STAGE
};

#define VALUE(name)          line("%s = %zu", #name, name, "")
#define STRUCT(type)         line("%s: %zu bytes", #type, sizeof(type), "")
#define MEMBER(type, member) line("    %s at %zu", #member, offsetof(type, member), "")
#define FUNCTION(name, ...)                                                                      \
    do {                                                                                         \
        __VA_ARGS__ = proptim_##name; /* a signature that has changed does not compile */        \
        CHECK(proptim_get_api()->name == pointer, "%s is another function in the table", #name); \
        MEMBER(proptim_api, name);                                                               \
    } while (0)

int main(int argc, char **argv)
{
    known = argc > 1 ? fopen(argv[1], "r") : NULL;
    CHECK(known || argc < 2, "cannot open %s", argv[1]);
    if (sizeof(void *) != 8) {
        fprintf(stderr, "NOT RUN: abi.txt is for 64 bits\n");
        return 0;
    }
    VALUE(PROPTIM_ABI);
    VALUE(PROPTIM_MAX_ARRAYS);
    VALUE(PROPTIM_MAX_COEFS);
    VALUE(PROPTIM_MAX_STAGES);
    VALUE(PROPTIM_MAX_DIMS);
    VALUE(PROPTIM_BLOCK);
    VALUE(PROPTIM_DENSE);
    VALUE(PROPTIM_PARAMS);
    VALUE(PROPTIM_GRADS);
    VALUE(PROPTIM_STATE);
    VALUE(PROPTIM_AVERAGE);
    VALUE(PROPTIM_F32);
    VALUE(PROPTIM_F64);
    VALUE(PROPTIM_PLAIN);
    VALUE(PROPTIM_RAN_SERIAL);
    VALUE(PROPTIM_RAN_PARALLEL);
    VALUE(PROPTIM_RAN_FORKED);
    STRUCT(proptim_dtype);
    STRUCT(proptim_format);
    STRUCT(proptim_rule);
    STRUCT(proptim_stage);
    STRUCT(proptim_ran);
    STRUCT(proptim_plane_array);
    MEMBER(proptim_plane_array, planes);
    MEMBER(proptim_plane_array, strides);
    MEMBER(proptim_plane_array, format);
    STRUCT(proptim_segment);
    MEMBER(proptim_segment, size);
    MEMBER(proptim_segment, dtype);
    MEMBER(proptim_segment, row);
    MEMBER(proptim_segment, ndim);
    MEMBER(proptim_segment, dense);
    MEMBER(proptim_segment, shape);
    MEMBER(proptim_segment, arrays);
    MEMBER(proptim_segment, parameter);
    MEMBER(proptim_segment, first);
    MEMBER(proptim_segment, order);
    STRUCT(proptim_row);
    MEMBER(proptim_row, coefs);
    MEMBER(proptim_row, stages);
    MEMBER(proptim_row, active);
    MEMBER(proptim_row, rounding);
    MEMBER(proptim_row, seed);
    MEMBER(proptim_row, step);
    STRUCT(proptim_table);
    MEMBER(proptim_table, first);
    MEMBER(proptim_table, count);
    MEMBER(proptim_table, length);
    MEMBER(proptim_table, strides);
    MEMBER(proptim_table, distinct);
    MEMBER(proptim_table, entries);
    MEMBER(proptim_table, starts);
    STRUCT(proptim_view);
    MEMBER(proptim_view, planes);
    MEMBER(proptim_view, dtype);
    MEMBER(proptim_view, ndim);
    MEMBER(proptim_view, shape);
    MEMBER(proptim_view, strides);
    MEMBER(proptim_view, format);

    line("%s", "proptim_api:", 0, "");
    MEMBER(proptim_api, abi);
    MEMBER(proptim_api, size);
    MEMBER(proptim_api, rules);
    MEMBER(proptim_api, stages);
    MEMBER(proptim_api, formats);
    FUNCTION(apply,
             void (*pointer)(const proptim_isa *, proptim_rule, proptim_dtype, void *const *, const double *, size_t));
    FUNCTION(row_init, void (*pointer)(proptim_row *, proptim_rule, const double *));
    FUNCTION(layout, void (*pointer)(proptim_segment *));
    FUNCTION(step, proptim_ran(*pointer)(const proptim_isa *, proptim_rule, const proptim_segment *, size_t,
                                         const proptim_row *, int, proptim_parallel *));
    FUNCTION(reduce_partials, size_t (*pointer)(const proptim_view *, size_t));
    FUNCTION(reduce, double (*pointer)(const proptim_isa *, const proptim_view *, size_t, double *, int *, int,
                                       proptim_parallel *));
    FUNCTION(isa_at, const proptim_isa *(*pointer)(int));
    FUNCTION(isa_name, const char *(*pointer)(const proptim_isa *));
    FUNCTION(isa_runs, int (*pointer)(const proptim_isa *));
    FUNCTION(isa_find, const proptim_isa *(*pointer)(const char *));
    FUNCTION(isa_kernel, proptim_kernel * (*pointer)(const proptim_isa *, proptim_rule, proptim_dtype));
    FUNCTION(rule_name, const char *(*pointer)(proptim_rule));
    FUNCTION(rule_arrays, const char *(*pointer)(proptim_rule));
    FUNCTION(rule_marks, const char *(*pointer)(proptim_rule));
    FUNCTION(rule_coefs, const char *(*pointer)(proptim_rule));
    FUNCTION(stage_name, const char *(*pointer)(proptim_stage));
    FUNCTION(stage_neutral, double (*pointer)(proptim_stage));
    MEMBER(proptim_api, pool);
    FUNCTION(reduce_blocks, void (*pointer)(const proptim_isa *, const proptim_view *, size_t, double *, int *, int,
                                            proptim_parallel *));
    FUNCTION(reduce_tree, double (*pointer)(double *, size_t));
    FUNCTION(rows_layout, void (*pointer)(proptim_table *));
    FUNCTION(rows_scratch, size_t (*pointer)(size_t));
    FUNCTION(rows_sort, size_t (*pointer)(proptim_table *, const int64_t *, size_t *));
    FUNCTION(step_rows, proptim_ran(*pointer)(const proptim_isa *, proptim_rule, const proptim_table *, size_t,
                                              const proptim_row *, int, proptim_parallel *));
    FUNCTION(reduce_rows_partials, size_t (*pointer)(const proptim_table *));
    FUNCTION(reduce_rows,
             void (*pointer)(const proptim_isa *, const proptim_table *, double *, int *, int, proptim_parallel *));
    void (*const kernel)(void *const *, const double *, size_t) = proptim_isa_kernel(NULL, PROPTIM_sgd, PROPTIM_F32);
    proptim_ran (*const pool)(void (*)(void *, int, int), void *, int, int) = proptim_get_api()->pool;
    CHECK(kernel, "types of kernels and of the pool, which may be %s", pool ? "there" : "NULL");

    for (int i = 0; i < PROPTIM_RULES; i++) {
        char lists[250];
        snprintf(lists, sizeof lists, "%s %s %s", texts[i].arrays, texts[i].marks, texts[i].coefs);
        line("rule %s = %zu %s", texts[i].name, numbers[i].number, lists);
        CHECK(numbers[i].arrays == sizeof(void *) * (size_t)count_words(texts[i].arrays), "%s", lists);
        CHECK(numbers[i].coefs == sizeof(double) * (size_t)count_words(texts[i].coefs), "%s", lists);
    }
    for (int i = PROPTIM_RULES; i < KERNELS; i++)
        line("stage %s = %zu, neutral at %s", texts[i].name, numbers[i].number, numbers[i].neutral);
#define PROPTIM_CODEC(NAME, name, bytes, arrays)               \
    line("format %s = %zu %s", #name, PROPTIM_##NAME, #bytes); \
    CHECK(!strcmp(formats[PROPTIM_##NAME], #name), "number %d is of %s", PROPTIM_##NAME, formats[PROPTIM_##NAME]);
#define PROPTIM_CODEC_F32 PROPTIM_CODEC
#define PROPTIM_CODEC_F64 PROPTIM_CODEC
#include "codecs.def"
#undef PROPTIM_CODEC
#undef PROPTIM_CODEC_F32
#undef PROPTIM_CODEC_F64

    const proptim_api *api = proptim_get_api();
    CHECK(api->abi == PROPTIM_ABI && api->size == sizeof *api, "abi %u of %u bytes", api->abi, api->size);
    CHECK(api->rules == PROPTIM_RULES && api->stages == PROPTIM_STAGES && api->formats == PROPTIM_FORMATS,
          "%u rules, %u stages, %u formats", api->rules, api->stages, api->formats);
    if (known) {
        CHECK(fgetc(known) == EOF, "more lines in %s than the %d of proptim.h", argv[1], lines);
        printf("%d lines as in %s\n", lines, argv[1]);
        fclose(known);
    }
    return 0;
}
