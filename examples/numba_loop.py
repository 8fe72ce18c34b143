"""A whole training loop compiled by Numba, with steps of proptim: no Python code runs between two steps.

Logistic regression, once by RMSprop on mini-batches and once by Rprop on all samples. A second run finds the compiled
code in Numba's cache.
"""

from __future__ import annotations

import sys
import time

import numpy as np

try:
    import numba
except ModuleNotFoundError:
    print("this example needs Numba: pip install 'proptim[numba]'", file=sys.stderr)
    sys.exit(77)

import proptim
import proptim.numba

SAMPLES, FEATURES = 4000, 20


@numba.njit(cache=True)
def gradient(x, y, w, grad):
    """Mean logistic loss of labels -1 and 1; its gradient is written to `grad`."""
    loss = 0.0
    grad[:] = 0
    for i in range(len(y)):
        margin = 0.0
        for j in range(len(w)):
            margin += x[i, j] * w[j]
        margin *= y[i]
        loss += np.log1p(np.exp(-margin))
        pull = y[i] / (1.0 + np.exp(margin)) / len(y)
        for j in range(len(w)):
            grad[j] -= pull * x[i, j]
    return loss / len(y)


@numba.njit(cache=True)
def train_on_batches(x, y, w, square_avg, epochs, batch, seed):
    """RMSprop with a learning rate that falls to zero."""
    np.random.seed(seed)  # noqa: NPY002 - the generator that Numba has
    grad = np.empty_like(w)
    batches = len(y) // batch
    step = 0
    for _ in range(epochs):
        order = np.random.permutation(len(y))  # noqa: NPY002
        for i in range(batches):
            rows = order[i * batch : (i + 1) * batch]
            gradient(x[rows], y[rows], w, grad)
            lr = 0.02 * (1.0 - step / (epochs * batches))
            step += 1
            proptim.numba.rmsprop(w, grad, square_avg, step=step, lr=lr, alpha=0.99)


@numba.njit(cache=True)
def train_on_all(x, y, w, step_word, steps):
    """Rprop on the full batch. `proptim.numba.c.rprop` would be the same call into the compiled core."""
    grad = np.empty_like(w)
    loss = 0.0
    for step in range(1, steps + 1):
        loss = gradient(x, y, w, grad)
        proptim.numba.rprop(w, grad, step_word, step=step, variant="irprop-")
    return loss


def main() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(FEATURES)
    x = rng.standard_normal((SAMPLES, FEATURES)) * np.geomspace(0.1, 10.0, FEATURES)
    y = np.where(rng.random(SAMPLES) < 1.0 / (1.0 + np.exp(-x @ truth)), 1.0, -1.0)

    def report(name, w, seconds):
        accuracy = np.mean(np.sign(x @ w) == y)
        print(f"{name:8} accuracy {accuracy:.3f}  ({seconds:.2f} s, compiling included)")
        assert accuracy > 0.9

    w = np.zeros(FEATURES)
    state = proptim.numba.rmsprop.init(w)
    begin = time.perf_counter()
    train_on_batches(x, y, w, state["square_avg"], 10, 50, 1)
    report("RMSprop", w, time.perf_counter() - begin)

    w = np.zeros(FEATURES)
    state = proptim.numba.rprop.init(w, variant="irprop-")
    begin = time.perf_counter()
    train_on_all(x, y, w, state["step_word"], 100)
    report("Rprop", w, time.perf_counter() - begin)

    # An optimizer object, stepped from Python, gives the same bits.
    other, grad = np.zeros(FEATURES), np.empty(FEATURES)
    optimizer = proptim.Rprop([other], grads=[grad], variant="irprop-")
    for _ in range(100):
        gradient(x, y, other, grad)
        optimizer.step()
    assert np.array_equal(other, w)
    print("Rprop from Python: the same bits")


if __name__ == "__main__":
    main()
