/*
 * train.c - least squares by Rprop in C, built by CMake.  The target proptim::proptim brings the header and the
 * kernels.
 */
#include <math.h>
#include <stdio.h>

#include <proptim.h>
#include <proptim_coefs.h>

enum { SAMPLES = 8, WEIGHTS = 3, STEPS = 200 };

static const double truth[WEIGHTS] = { 1, -2, 3 };

static double feature(int i, int j) { return ((7 * i + 5 * j + i * j) % 11 - 5) / 4.0; }

/* The gradient over all samples: Rprop uses signs, and those of mini-batches would be misleading. */
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
    double weights[WEIGHTS] = { 0 }, grad[WEIGHTS], step_word[WEIGHTS];
    const proptim_rprop_arrays arrays = { weights, grad, step_word };
    proptim_rprop_coefs coefs;
    proptim_rprop_coefs_init(&coefs, 0.5, 1.2, 1e-6, 50, PROPTIM_RPROP_MINUS, 0, 1);
    for (int j = 0; j < WEIGHTS; j++) step_word[j] = proptim_rprop_step_word(0.01, 1e-6, 50);
    for (int step = 0; step < STEPS; step++) {
        gradient(weights, grad);
        proptim_apply(NULL, PROPTIM_rprop, PROPTIM_F64, &arrays.param, &coefs.eta_minus, WEIGHTS);
    }

    double worst = 0;
    for (int j = 0; j < WEIGHTS; j++) {
        printf("%.17g\n", weights[j]);
        worst = fmax(worst, fabs(weights[j] - truth[j]));
    }
    return worst < 1e-3 ? 0 : 1;
}
