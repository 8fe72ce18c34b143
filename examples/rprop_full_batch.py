"""Rprop on full batches and on mini-batches: handwritten digits, a small network, all four variants.

Rprop uses only the sign of each gradient. On the full batch that sign is right, and every variant trains in a few dozen
steps without a learning rate. On mini-batches the sign is noisy: nine gradients of 0.1 and one of -0.9 should cancel,
but nine steps go one way and one the other. RMSprop divides by a moving root mean square, which is nearly the same for
consecutive batches, and trains on the same batches in the same order.
"""

from __future__ import annotations

import sys

import numpy as np

try:
    from sklearn.datasets import load_digits
except ModuleNotFoundError as error:
    print(f"skipped: {error.name} is not installed; pip install 'proptim[examples]'", file=sys.stderr)
    sys.exit(77)

import proptim

FULL_STEPS, EPOCHS, BATCH = 100, 10, 8
raw_x, raw_y = load_digits(return_X_y=True)
X = (raw_x / 8 - 1).astype(np.float32)
ONE_HOT = np.eye(10, dtype=np.float32)[raw_y]
train, test = np.split(np.random.default_rng(0).permutation(len(X)), [1437])


def new_params():
    """Weights and biases of 64 -> 32 -> 10."""
    rng = np.random.default_rng(1)
    w1, w2 = (rng.standard_normal(shape, np.float32) / np.float32(8) for shape in [(64, 32), (32, 10)])
    return [w1, np.zeros(32, np.float32), w2, np.zeros(10, np.float32)]


def loss_and_grads(params, rows):
    """Mean cross-entropy of these digits, and its gradients."""
    w1, b1, w2, b2 = params
    hidden = np.tanh(X[rows] @ w1 + b1)
    score = hidden @ w2 + b2
    score -= score.max(axis=1, keepdims=True)
    log_p = score - np.log(np.exp(score).sum(axis=1, keepdims=True))
    out = (np.exp(log_p) - ONE_HOT[rows]) / np.float32(len(rows))
    back = out @ w2.T * (1 - hidden * hidden)
    loss = -float((log_p * ONE_HOT[rows]).sum()) / len(rows)
    return loss, [X[rows].T @ back, back.sum(axis=0), hidden.T @ out, out.sum(axis=0)]


def error_rate(params, rows):
    """Share of digits that are classified wrongly."""
    w1, b1, w2, b2 = params
    return float(np.mean((np.tanh(X[rows] @ w1 + b1) @ w2 + b2).argmax(axis=1) != raw_y[rows]))


def run(batches, optimizer, **options):
    """Train on these batches; the loss over the whole training part, and the share of test digits that are wrong."""
    params = new_params()
    opt = optimizer(params, **options)
    for rows in batches:
        loss, grads = loss_and_grads(params, rows)
        opt.step(grads, loss=loss)
    return loss_and_grads(params, train)[0], error_rate(params, test)


print(f"full batch, {FULL_STEPS} steps   training loss  test error")
for variant in ("rprop-", "irprop-", "rprop+", "irprop+"):
    loss, wrong = run([train] * FULL_STEPS, proptim.Rprop, variant=variant)
    print(f"  {variant:21} {loss:14.1e} {wrong:11.1%}")
    assert loss < 0.01
    assert wrong < 0.1

rng = np.random.default_rng(2)
batches = [rows for _ in range(EPOCHS) for rows in np.array_split(rng.permutation(train), len(train) // BATCH)]
print(f"batches of {BATCH}, {EPOCHS} epochs")
mini = {}
for optimizer in (proptim.Rprop, proptim.RMSprop):
    name = optimizer.__name__
    mini[name], wrong = run(batches, optimizer)
    print(f"  {name:21} {mini[name]:14.1e} {wrong:11.1%}")
assert mini["RMSprop"] < 0.1
assert mini["Rprop"] > 5 * mini["RMSprop"]
