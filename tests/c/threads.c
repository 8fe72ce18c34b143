/*
 * threads.c - each part on a thread of its own, and several steps at the same time: no two threads write the same byte,
 * and the bits are those of one thread.  It is for ThreadSanitizer (the preset tsan), which sees these threads but not
 * those of libgomp; it also runs without.
 */
#include <pthread.h>

#include "check.h"

/* A proptim_parallel that starts every part at once, each on a new thread: nothing but the parts orders them. */
struct piece {
    proptim_task *task;
    void *data;
    int part, parts;
};

static void *run_piece(void *argument)
{
    const struct piece *piece = (const struct piece *)argument;
    piece->task(piece->data, piece->part, piece->parts);
    return NULL;
}

static proptim_ran on_threads(proptim_task *task, void *data, int parts, int threads)
{
    (void)threads;
    enum { MOST = 16 };
    struct piece pieces[MOST];
    pthread_t started[MOST];
    CHECK(parts <= MOST, "%d parts", parts);
    for (int part = 0; part < parts; part++) {
        pieces[part] = (struct piece){ task, data, part, parts };
        CHECK(!pthread_create(&started[part], NULL, run_piece, &pieces[part]), "no thread");
    }
    for (int part = 0; part < parts; part++) CHECK(!pthread_join(started[part], NULL), "thread lost");
    return PROPTIM_RAN_PARALLEL;
}

/* One optimizer: two segments whose arrays are adjacent, or whose elements alternate in memory. */
enum { SEGMENTS = 2, N = 1000, ARRAYS = PROPTIM_MAX_ARRAYS * SEGMENTS };

static double shared_grads[SEGMENTS][N]; /* read by all steps at the same time */
static const proptim_isa *isas[MOST_ISAS];
static int n_isas;

struct run {
    const proptim_isa *isa;
    int rule, dtype, interlaced, zero, parts;
    proptim_parallel *parallel;
    double memory[ARRAYS * N];
};

static void step(struct run *run)
{
    const size_t itemsize = itemsize_of(run->dtype);
    const int n_arrays = count_words(texts[run->rule].arrays);
    uint64_t random = 1;
    proptim_segment segments[SEGMENTS] = { { .ndim = 0 } };
    size_t shapes[SEGMENTS][1];
    ptrdiff_t strides[SEGMENTS][PROPTIM_MAX_ARRAYS][1];
    proptim_row row = { .active = 1 };
    for (int s = 0; s < PROPTIM_STAGES; s++) row.stages[s] = proptim_stage_neutral((proptim_stage)s);
    row.stages[PROPTIM_zero] = run->zero;
    row.stages[PROPTIM_l2] = 0.1 * run->zero;
    draw_coefs(&texts[run->rule], &random, row.coefs);
    fill(run->dtype, run->memory, (size_t)ARRAYS * N, PROPTIM_STATE, TAME, &random);
    for (int i = 0; i < SEGMENTS; i++) {
        proptim_segment *s = &segments[i];
        s->dtype = (proptim_dtype)run->dtype;
        s->ndim = 1;
        s->shape = shapes[i];
        shapes[i][0] = N;
        for (int j = 0; j < n_arrays; j++) {
            const size_t place = (size_t)(i * PROPTIM_MAX_ARRAYS + j) * (run->interlaced ? 1 : N);
            s->arrays[j].planes[0] = (char *)run->memory + place * itemsize;
            s->arrays[j].strides[0] = strides[i][j];
            strides[i][j][0] = (ptrdiff_t)itemsize * (run->interlaced ? ARRAYS : 1);
        }
        if (!run->zero) {
            s->arrays[PROPTIM_GRADS].planes[0] = shared_grads[i];
            strides[i][PROPTIM_GRADS][0] = (ptrdiff_t)itemsize;
        }
        proptim_layout(s);
    }
    const proptim_ran ran =
        proptim_step(run->isa, (proptim_rule)run->rule, segments, SEGMENTS, &row, run->parts, run->parallel);
    CHECK(ran == (run->parts > 1 ? PROPTIM_RAN_PARALLEL : PROPTIM_RAN_SERIAL), "ran %d", ran);

    const ptrdiff_t shape = N, stride = (ptrdiff_t)itemsize;
    const proptim_view view = { { shared_grads[0] }, (proptim_dtype)run->dtype, 1, &shape, { &stride }, PROPTIM_PLAIN };
    double partials[1];
    int finite;
    proptim_reduce(run->isa, &view, 1, partials, &finite, 1, NULL);
    CHECK(finite, "finite gradients");
}

/* Do everything once, while other threads do the same. */
static void *work(void *argument)
{
    static const int parts[] = { 2, 3, 7 };
    struct run *one = (struct run *)malloc(sizeof *one), *many = (struct run *)malloc(sizeof *many);
    (void)argument;
    for (int i = 0; i < n_isas; i++)
        for (int kind = 0; kind < PROPTIM_RULES * PROPTIM_DTYPES * 4; kind++) {
            one->isa = isas[i];
            one->zero = kind & 1, one->interlaced = kind >> 1 & 1;
            one->dtype = (kind >> 2) % PROPTIM_DTYPES, one->rule = (kind >> 2) / PROPTIM_DTYPES;
            one->parts = 1, one->parallel = NULL;
            *many = *one;
            many->parts = parts[kind % 3], many->parallel = on_threads;
            step(one);
            step(many);
            CHECK(difference(one->dtype, many->memory, one->memory, (size_t)ARRAYS * N) == (size_t)ARRAYS * N,
                  "%s %s %s, %d parts", one->isa->name, texts[one->rule].name, dtypes[one->dtype], many->parts);
        }
    free(one);
    free(many);
    return NULL;
}

int main(void)
{
    enum { OPTIMIZERS = 3 };
    pthread_t threads[OPTIMIZERS];
    n_isas = take_part(isas);
    for (int i = 0; i < SEGMENTS; i++)
        for (size_t e = 0; e < N; e++) put(PROPTIM_F64, shared_grads[i], e, 0.5); /* 1.75 and 0 as floats */
    for (int t = 0; t < OPTIMIZERS; t++) CHECK(!pthread_create(&threads[t], NULL, work, NULL), "no thread");
    for (int t = 0; t < OPTIMIZERS; t++) CHECK(!pthread_join(threads[t], NULL), "thread lost");
    printf("%d optimizers at the same time, %d steps each in parts\n", OPTIMIZERS,
           n_isas * PROPTIM_RULES * PROPTIM_DTYPES * 4);
    return 0;
}
