/*
 * train.cpp - least squares with a bias by AdamW in C++11: two float arrays in one step on two threads, with weight
 * decay for the first.
 *
 *   cc -O3 -ffp-contract=off -fno-math-errno -DPROPTIM_POOL $(python -m proptim --includes) \
 *       train.cpp $(python -m proptim --sources) -lstdc++ -lm -pthread -o train
 */
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include <proptim.h>
#include <proptim_coefs.h>

static const int samples = 8, steps = 3000, threads = 2;
static const double truth[] = { 1, -2, 3, 0.5 }; // the last is the bias

static double feature(int i, int j) { return ((7 * i + 5 * j + i * j) % 11 - 5) / 4.0; }

// A parameter array with its gradient and the state of Adam.
struct Parameter {
    std::vector<float> value, grad, exp_avg, exp_avg_sq;

    explicit Parameter(size_t size) : value(size), grad(size), exp_avg(size), exp_avg_sq(size) {}

    proptim_segment segment(unsigned row)
    {
        proptim_segment s = proptim_segment();
        s.arrays[PROPTIM_PARAMS].planes[0] = value.data();
        s.arrays[PROPTIM_GRADS].planes[0] = grad.data();
        s.arrays[PROPTIM_STATE].planes[0] = exp_avg.data();
        s.arrays[PROPTIM_STATE + 1].planes[0] = exp_avg_sq.data();
        s.size = value.size();
        s.dtype = PROPTIM_F32;
        s.dense = PROPTIM_DENSE; // every array is one run
        s.row = row;
        return s;
    }
};

static void gradients(Parameter &weights, Parameter &bias)
{
    double sum[] = { 0, 0, 0, 0 };
    for (int i = 0; i < samples; i++) {
        double error = bias.value[0] - truth[3];
        for (int j = 0; j < 3; j++) error += feature(i, j) * (weights.value[j] - truth[j]);
        for (int j = 0; j < 3; j++) sum[j] += error * feature(i, j) / samples;
        sum[3] += error / samples;
    }
    std::copy(sum, sum + 3, weights.grad.begin());
    bias.grad[0] = float(sum[3]);
}

int main()
{
    const double lr = 0.01, beta1 = 0.9, beta2 = 0.999, weight_decay = 1e-4;
    Parameter weights(3), bias(1);
    const proptim_segment segments[] = { weights.segment(0), bias.segment(1) };
    proptim_row rows[2];
    for (int t = 1; t <= steps; t++) {
        gradients(weights, bias);
        proptim_adam_coefs coefs;
        proptim_adam_coefs_init(&coefs, lr, beta1, beta2, 1e-8, 0, t);
        for (proptim_row &row : rows) proptim_row_init(&row, PROPTIM_adam, &coefs.step_size);
        rows[0].stages[PROPTIM_decay] = 1 - lr * weight_decay;
        proptim_step(NULL, PROPTIM_adam, segments, 2, rows, threads, proptim_get_api()->pool);
    }

    double worst = std::fabs(bias.value[0] - truth[3]);
    for (int j = 0; j < 3; j++) {
        std::printf("%.9g\n", weights.value[j]);
        worst = std::max(worst, std::fabs(weights.value[j] - truth[j]));
    }
    std::printf("%.9g\n", bias.value[0]);
    return worst < 1e-2 ? 0 : 1;
}
