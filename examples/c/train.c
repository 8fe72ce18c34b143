/*
 * train.c - least squares by RMSprop: a program in C99 with proptim compiled into it, and no Python when it runs.
 *
 *   cc -std=c11 -O3 -ffp-contract=off -fno-math-errno $(python -m proptim --includes) \
 *       train.c $(python -m proptim --sources) -lm -o train
 */
#include <math.h>
#include <stdio.h>

#include <proptim.h>

enum { SAMPLES = 8, WEIGHTS = 3, STEPS = 2000 };

static const double truth[WEIGHTS] = { 1, -2, 3 };

static double feature(int i, int j) { return ((7 * i + 5 * j + i * j) % 11 - 5) / 4.0; }

/* The gradient of half the mean squared error. */
static void gradient(const double *weights, double *grad)
{
    for (int j = 0; j < WEIGHTS; j++) grad[j] = 0;
    for (int i = 0; i < SAMPLES; i++) {
        double error = 0;
        for (int j = 0; j < WEIGHTS; j++) error += feature(i, j) * (weights[j] - truth[j]);
        for (int j = 0; j < WEIGHTS; j++) grad[j] += error * feature(i, j) / SAMPLES;
    }
}

int main(void)
{
    double weights[WEIGHTS] = { 0 }, grad[WEIGHTS], square_avg[WEIGHTS] = { 0 };
    const proptim_rmsprop_arrays arrays = { .param = weights, .grad = grad, .square_avg = square_avg };
    proptim_rmsprop_coefs coefs = { .alpha = 0.9, .one_minus_alpha = 1 - 0.9, .correction = 1, .eps = 1e-8 };
    for (int step = 0; step < STEPS; step++) {
        gradient(weights, grad);
        coefs.lr = 0.02 * (STEPS - step) / STEPS;
        proptim_apply(NULL, PROPTIM_rmsprop, PROPTIM_F64, &arrays.param, &coefs.lr, WEIGHTS);
    }

    double worst = 0;
    for (int j = 0; j < WEIGHTS; j++) {
        printf("%.17g\n", weights[j]);
        worst = fmax(worst, fabs(weights[j] - truth[j]));
    }
    return worst < 1e-3 ? 0 : 1;
}
