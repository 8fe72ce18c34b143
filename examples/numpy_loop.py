"""The simplest training loop: NumPy alone, with parameter groups, a schedule, clip_norm, and a resumed run.

A small network learns y = sin(3 x) from mini-batches. A second run is stopped half-way and saved. A new optimizer for
new arrays loads it and continues: it ends with the same bits as the run that was never stopped.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import proptim
from proptim.schedules import cosine, warmup

STEPS, BATCH = 2000, 32
X = np.random.default_rng(0).uniform(-1, 1, (512, 1)).astype(np.float32)
Y = np.sin(3 * X)


def new_params():
    """Weights and biases of 1 -> 32 -> 1."""
    rng = np.random.default_rng(1)
    return {
        "W1": rng.standard_normal((1, 32), np.float32),
        "b1": rng.standard_normal(32, np.float32),
        "W2": rng.standard_normal((32, 1), np.float32) / np.float32(32**0.5),
        "b2": np.zeros(1, np.float32),
    }


def new_optimizer(p):
    """Weights decay, biases do not; the learning rate warms up and then falls along half a cosine."""
    groups = [
        {"params": {"W1": p["W1"], "W2": p["W2"]}, "weight_decay": 1e-4},
        {"params": {"b1": p["b1"], "b2": p["b2"]}},
    ]
    return proptim.RMSprop(groups, lr=warmup(100, then=cosine(0.01, STEPS - 100)), clip_norm=1.0)


def loss_and_grads(p, x, y):
    """Half the mean squared error, and its gradients, derived by hand."""
    hidden = np.tanh(x @ p["W1"] + p["b1"])
    error = hidden @ p["W2"] + p["b2"] - y
    out = error / np.float32(len(x))
    back = out @ p["W2"].T * (1 - hidden * hidden)
    grads = {"W1": x.T @ back, "b1": back.sum(axis=0), "W2": hidden.T @ out, "b2": out.sum(axis=0)}
    return float((error * error).mean()) / 2, grads


def train(p, opt, until):
    """Step until step number `until`. A batch depends only on the step number, so a resumed run sees the same."""
    while opt.steps < until:
        batch = np.random.default_rng(opt.steps).integers(len(X), size=BATCH)
        _, grads = loss_and_grads(p, X[batch], Y[batch])
        opt.step(grads)
        if opt.steps % 500 == 0:
            loss, _ = loss_and_grads(p, X, Y)
            print(f"step {opt.steps:4}  lr {opt.lr:.5f}  norm of the gradient {opt.grad_norm:.4f}  loss {loss:.6f}")


print("one run")
params = new_params()
before, _ = loss_and_grads(params, X, Y)
train(params, new_optimizer(params), STEPS)
after, _ = loss_and_grads(params, X, Y)

print("stopped, saved, loaded, resumed")
with tempfile.TemporaryDirectory() as folder:
    stopped = new_params()
    optimizer = new_optimizer(stopped)
    train(stopped, optimizer, STEPS // 2)
    optimizer.save(Path(folder) / "optimizer.npz")
    np.savez(Path(folder) / "params.npz", **stopped)

    with np.load(Path(folder) / "params.npz") as file:
        resumed = dict(file)
    optimizer = new_optimizer(resumed)  # with its schedule, which is not in the file
    optimizer.load(Path(folder) / "optimizer.npz")
train(resumed, optimizer, STEPS)

same = all(np.array_equal(resumed[name], params[name]) for name in params)
print(f"loss {before:.4f} -> {after:.6f}; the resumed run has {'the same' if same else 'OTHER'} bits")
assert after < before / 100
assert same
