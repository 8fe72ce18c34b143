/*
 * proptim_coefs.h - compute the coefficients of every rule from its hyperparameters.  C99 and C++; everything is in
 * this header.
 *
 *     proptim_adam_coefs coefs;
 *     proptim_adam_coefs_init(&coefs, 1e-3, 0.9, 0.999, 1e-8, 0, step);
 *     proptim_apply(NULL, PROPTIM_adam, PROPTIM_F32, &arrays.param, &coefs.step_size, n);
 *
 * Call the function before each step, with the number of that step: 1, 2, ...  Hyperparameters may change between
 * steps.  They have the names, order and meaning of those of the Python classes, in float64, and the coefficients have
 * the same bits as Python's if both use the same libm.  Nothing is checked.  Hyperparameters of a class that are
 * missing here concern only the state: which arrays are NULL, and their first values.
 */
#ifndef PROPTIM_COEFS_H
#define PROPTIM_COEFS_H

#include <math.h>
#include <stdint.h>

#include "proptim.h"

#ifdef __cplusplus
extern "C" {
#endif

/* step is counted from the first step with momentum. */
static inline void proptim_sgd_coefs_init(proptim_sgd_coefs *coefs, double lr, double momentum, double dampening,
                                          int nesterov, uint64_t step)
{
    coefs->lr = lr;
    coefs->momentum = momentum;
    coefs->undamped = step > 1 && momentum != 0.0 ? 1.0 - dampening : 1.0;
    coefs->nesterov = nesterov ? 1.0 : 0.0;
}

/* What a weight does when the sign of its gradient has changed. */
typedef enum proptim_rprop_variant {
    PROPTIM_RPROP_MINUS,  /* "rprop-": moves with the halved step size */
    PROPTIM_IRPROP_MINUS, /* "irprop-": does not move */
    PROPTIM_RPROP_PLUS,   /* "rprop+": takes its last move back */
    PROPTIM_IRPROP_PLUS   /* "irprop+": takes its last move back if the loss has risen, else does not move */
} proptim_rprop_variant;

/* loss_has_risen is for "irprop+": whether the loss is greater than at the previous step; 0 at the first step. */
static inline void proptim_rprop_coefs_init(proptim_rprop_coefs *coefs, double eta_minus, double eta_plus,
                                            double step_min, double step_max, proptim_rprop_variant variant,
                                            int loss_has_risen, uint64_t step)
{
    (void)step; /* all steps are alike */
    coefs->eta_minus = eta_minus;
    coefs->eta_plus = eta_plus;
    coefs->step_min = step_min;
    coefs->step_max = step_max;
    coefs->move = variant == PROPTIM_RPROP_MINUS ? 1.0 : 0.0;
    coefs->take_back = variant == PROPTIM_RPROP_PLUS || (variant == PROPTIM_IRPROP_PLUS && loss_has_risen) ? 1.0 : 0.0;
    coefs->remember = variant == PROPTIM_RPROP_MINUS ? 1.0 : 0.0;
    coefs->remembered = 274877906944.0;             /* 2**38, above every step size */
    coefs->forget = 1237940039285380274899124224.0; /* 2**90: rules/rprop.h says what a word of state holds */
    coefs->unforget = 1.0 / coefs->forget;
}

/* The first value of all elements of step_word: a step size of lr, clamped to the bounds, and no last sign. */
static inline double proptim_rprop_step_word(double lr, double step_min, double step_max)
{
    return (lr < step_min ? step_min : lr > step_max ? step_max : lr) * 1237940039285380274899124224.0; /* 2**90 */
}

/*
 * The same for state in PROPTIM_STEPS8: sets its grid, and returns the first code of all elements.  etas are powers of
 * the n-th root of 2, for n of 1 to 4; sizes below step_max 2^(-84 / n) cannot be stored: pass a step_min of at least
 * that to proptim_rprop_coefs_init().  lr is rounded to the nearest size of the grid.
 */
static inline uint8_t proptim_rprop_steps8(float grid[2], double lr, double step_max, int n)
{
    const double k = n * log2(step_max / lr) + 0.5;
    grid[0] = (float)step_max;
    grid[1] = (float)n;
    return (uint8_t)(170 + (k < 0 ? 0 : k > 84 ? 84 : (int)k));
}

/* Not centered: grad_avg is NULL.  Without momentum: momentum_buffer is NULL. */
static inline void proptim_rmsprop_coefs_init(proptim_rmsprop_coefs *coefs, double lr, double alpha, double eps,
                                              double momentum, int nesterov, int eps_inside_sqrt, int lr_in_momentum,
                                              int bias_correction, uint64_t step)
{
    coefs->lr = lr;
    coefs->alpha = alpha;
    coefs->one_minus_alpha = 1.0 - alpha;
    coefs->correction = bias_correction ? 1.0 / (1.0 - pow(alpha, (double)step)) : 1.0;
    coefs->eps_inside = eps_inside_sqrt ? eps : 0.0;
    coefs->eps = eps_inside_sqrt ? 0.0 : eps;
    coefs->momentum = momentum;
    coefs->nesterov = nesterov ? 1.0 : 0.0;
    coefs->lr_inside = lr_in_momentum ? lr : 1.0;
    coefs->lr_outside = lr_in_momentum ? 1.0 : lr;
    coefs->mean_correction = coefs->correction; /* both averages begin at the same step */
}

static inline void proptim_adagrad_coefs_init(proptim_adagrad_coefs *coefs, double lr, double lr_decay, double eps,
                                              int eps_inside_sqrt, uint64_t step)
{
    coefs->lr = lr / (1.0 + (double)(step - 1) * lr_decay);
    coefs->eps_inside = eps_inside_sqrt ? eps : 0.0;
    coefs->eps = eps_inside_sqrt ? 0.0 : eps;
}

static inline void proptim_adadelta_coefs_init(proptim_adadelta_coefs *coefs, double lr, double rho, double eps,
                                               uint64_t step)
{
    (void)step; /* all steps are alike */
    coefs->lr = lr;
    coefs->rho = rho;
    coefs->one_minus_rho = 1.0 - rho;
    coefs->eps = eps;
}

/* Also for AdamW: weight decay is a stage.  Without amsgrad: max_exp_avg_sq is NULL. */
static inline void proptim_adam_coefs_init(proptim_adam_coefs *coefs, double lr, double beta1, double beta2, double eps,
                                           int eps_hat, uint64_t step)
{
    double root = sqrt(1.0 - pow(beta2, (double)step));
    coefs->step_size = lr / (1.0 - pow(beta1, (double)step));
    if (eps_hat) {
        coefs->step_size *= root;
        root = 1.0;
    }
    coefs->beta1 = beta1;
    coefs->one_minus_beta1 = 1.0 - beta1;
    coefs->beta2 = beta2;
    coefs->one_minus_beta2 = 1.0 - beta2;
    coefs->root_correction = 1.0 / root;
    coefs->eps = eps;
}

/* The program keeps mu_product with the state: 1 before the first step, and multiplied by each call. */
static inline void proptim_nadam_coefs_init(proptim_nadam_coefs *coefs, double lr, double beta1, double beta2,
                                            double eps, double momentum_decay, double *mu_product, uint64_t step)
{
    /* 0.96 and 1/2: the warming schedule of the momentum in Dozat 2016, section 3 */
    const double mu = beta1 * (1.0 - 0.5 * pow(0.96, (double)step * momentum_decay));
    const double mu_next = beta1 * (1.0 - 0.5 * pow(0.96, (double)(step + 1) * momentum_decay));
    *mu_product *= mu;
    coefs->grad_size = lr * (1.0 - mu) / (1.0 - *mu_product);
    coefs->avg_size = lr * mu_next / (1.0 - *mu_product * mu_next);
    coefs->beta1 = beta1;
    coefs->one_minus_beta1 = 1.0 - beta1;
    coefs->beta2 = beta2;
    coefs->one_minus_beta2 = 1.0 - beta2;
    coefs->root_correction = 1.0 / sqrt(1.0 - pow(beta2, (double)step));
    coefs->eps = eps;
}

static inline void proptim_lion_coefs_init(proptim_lion_coefs *coefs, double lr, double beta1, double beta2,
                                           uint64_t step)
{
    (void)step; /* all steps are alike */
    coefs->lr = lr;
    coefs->beta1 = beta1;
    coefs->one_minus_beta1 = 1.0 - beta1;
    coefs->beta2 = beta2;
    coefs->one_minus_beta2 = 1.0 - beta2;
}

static inline void proptim_adamax_coefs_init(proptim_adamax_coefs *coefs, double lr, double beta1, double beta2,
                                             double eps, uint64_t step)
{
    coefs->step_size = lr / (1.0 - pow(beta1, (double)step));
    coefs->beta1 = beta1;
    coefs->one_minus_beta1 = 1.0 - beta1;
    coefs->beta2 = beta2;
    coefs->eps = eps;
}

static inline void proptim_radam_coefs_init(proptim_radam_coefs *coefs, double lr, double beta1, double beta2,
                                            double eps, uint64_t step)
{
    const double power = pow(beta2, (double)step), known = 1.0 - power, most = 2.0 / (1.0 - beta2) - 1.0;
    const double rho = most - 2.0 * (double)step * power / known;
    coefs->step_size = lr / (1.0 - pow(beta1, (double)step));
    coefs->rectified = 0.0;
    if (rho > 5.0) { /* 5: where torch begins; the paper has 4, at which the variance of the rate is first finite */
        const double r = (rho - 4.0) * (rho - 2.0) * most / ((most - 4.0) * (most - 2.0) * rho);
        coefs->step_size *= sqrt(r * known);
        coefs->rectified = 1.0;
    }
    coefs->beta1 = beta1;
    coefs->one_minus_beta1 = 1.0 - beta1;
    coefs->beta2 = beta2;
    coefs->one_minus_beta2 = 1.0 - beta2;
    coefs->eps = eps;
}

#ifdef __cplusplus
}
#endif

#endif
