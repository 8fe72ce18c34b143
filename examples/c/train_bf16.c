/*
 * train_bf16.c - train.c with weights in bfloat16.  A second array has the other 16 bits of each float32, so no step is
 * lost to rounding, and the steps are those of float32.
 *
 *   cc -std=c11 -O3 -ffp-contract=off -fno-math-errno $(python -m proptim --includes) \
 *       train_bf16.c $(python -m proptim --sources) -lm -o train_bf16
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <proptim.h>

enum { SAMPLES = 8, WEIGHTS = 3, STEPS = 2000 };

static const double truth[WEIGHTS] = { 1, -2, 3 };

static double feature(int i, int j) { return ((7 * i + 5 * j + i * j) % 11 - 5) / 4.0; }

/* A bfloat16 is the upper half of a float32. */
static float value(uint16_t bfloat16)
{
    const uint32_t bits = (uint32_t)bfloat16 << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The gradient of half the mean squared error. */
static void gradient(const uint16_t *weights, float *grad)
{
    double sum[WEIGHTS] = { 0 };
    for (int i = 0; i < SAMPLES; i++) {
        double error = 0;
        for (int j = 0; j < WEIGHTS; j++) error += feature(i, j) * (value(weights[j]) - truth[j]);
        for (int j = 0; j < WEIGHTS; j++) sum[j] += error * feature(i, j) / SAMPLES;
    }
    for (int j = 0; j < WEIGHTS; j++) grad[j] = (float)sum[j];
}

int main(void)
{
    uint16_t weights[WEIGHTS] = { 0 }; /* what the model sees */
    int16_t low[WEIGHTS] = { 0 };      /* the other half of each float32 */
    float grad[WEIGHTS], square_avg[WEIGHTS] = { 0 };
    const proptim_segment segment = {
        .size = WEIGHTS,
        .dtype = PROPTIM_F32,
        .dense = PROPTIM_DENSE,
        .arrays = { [PROPTIM_PARAMS] = { .planes = { weights, low }, .format = PROPTIM_SPLIT },
                    [PROPTIM_GRADS] = { .planes = { grad } },
                    [PROPTIM_STATE] = { .planes = { square_avg } } },
    };
    proptim_rmsprop_coefs coefs = { .alpha = 0.9, .one_minus_alpha = 1 - 0.9, .correction = 1, .eps = 1e-8 };
    for (int step = 0; step < STEPS; step++) {
        proptim_row row;
        gradient(weights, grad);
        coefs.lr = 0.02 * (STEPS - step) / STEPS;
        proptim_row_init(&row, PROPTIM_rmsprop, &coefs.lr);
        proptim_step(NULL, PROPTIM_rmsprop, &segment, 1, &row, 1, NULL);
    }

    double worst = 0;
    for (int j = 0; j < WEIGHTS; j++) {
        printf("%.9g\n", value(weights[j]));
        worst = fmax(worst, fabs(value(weights[j]) - truth[j]));
    }
    return worst < 1e-2 ? 0 : 1;
}
