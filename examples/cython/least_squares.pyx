# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Least squares by Adam in one loop without the GIL, in an extension that links nothing of proptim."""

import numpy as np

from libc.math cimport pow, sqrt

from proptim cimport PROPTIM_F64, proptim_api, proptim_import
from proptim.rules cimport PROPTIM_adam, proptim_adam_arrays, proptim_adam_coefs

cdef const proptim_api *api = proptim_import()  # ImportError if proptim is older than what this was compiled with


def train(double[:, ::1] x, double[::1] y, double[::1] weights, int steps, double lr=1e-3, double beta1=0.9,
          double beta2=0.999, double eps=1e-8):
    """Step the weights towards the smallest mean squared error of x @ weights - y."""
    cdef Py_ssize_t samples = x.shape[0], size = x.shape[1], i, j
    if y.shape[0] != samples or weights.shape[0] != size or not samples or not size:
        raise ValueError(f"x has {samples} rows of {size}, y {y.shape[0]} numbers, and there are {weights.shape[0]} "
                         "weights; expected one number a row and one weight a column")
    cdef double[::1] grad = np.empty(size), exp_avg = np.zeros(size), exp_avg_sq = np.zeros(size)
    cdef proptim_adam_arrays arrays
    cdef proptim_adam_coefs coefs
    cdef double error
    cdef int t
    arrays.param, arrays.grad = &weights[0], &grad[0]
    arrays.exp_avg, arrays.exp_avg_sq, arrays.max_exp_avg_sq = &exp_avg[0], &exp_avg_sq[0], NULL
    coefs.beta1, coefs.one_minus_beta1 = beta1, 1 - beta1
    coefs.beta2, coefs.one_minus_beta2 = beta2, 1 - beta2
    coefs.eps = eps
    with nogil:
        for t in range(1, steps + 1):
            grad[:] = 0
            for i in range(samples):
                error = -y[i]
                for j in range(size):
                    error += x[i, j] * weights[j]
                for j in range(size):
                    grad[j] += error * x[i, j] / samples
            coefs.step_size = lr / (1 - pow(beta1, t))
            coefs.root_correction = 1 / sqrt(1 - pow(beta2, t))
            api.apply(NULL, PROPTIM_adam, PROPTIM_F64, &arrays.param, &coefs.step_size, size)
