"""
Every optimizer learns digits
=============================

A small network learns the 1,797 handwritten digits that come with scikit-learn. Every optimizer starts from the same
weights and sees the same mini-batches, with its published learning rate; SGD has none, and gets 0.1. Rprop gets the
same number of *epochs*, but with full batches: it makes one step in each epoch, where the others make 45.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import proptim

x, y = load_digits(return_X_y=True)
x = (x / 8 - 1).astype(np.float32)
order = np.random.default_rng(0).permutation(len(y))
test, train = order[:360], order[360:]

# %%
# The network
# -----------
# 64 pixels, 32 hidden units, 10 digits. Gradients are written to the arrays that are bound to the optimizer.


class Network:
    def __init__(self):
        rng = np.random.default_rng(1)
        self.params = [
            rng.standard_normal((64, 32), np.float32) * np.float32(0.18),
            np.zeros(32, np.float32),
            rng.standard_normal((32, 10), np.float32) * np.float32(0.25),
            np.zeros(10, np.float32),
        ]
        self.grads = [np.zeros_like(p) for p in self.params]

    def forward(self, x):
        w1, b1, w2, b2 = self.params
        hidden = np.maximum(x @ w1 + b1, 0)
        scores = hidden @ w2 + b2
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        return hidden, p / p.sum(axis=1, keepdims=True)

    def backward(self, x, y):
        hidden, p = self.forward(x)
        loss = -np.log(p[np.arange(len(y)), y] + 1e-12).mean()
        p[np.arange(len(y)), y] -= 1
        p /= len(y)
        back = (p @ self.params[2].T) * (hidden > 0)
        for grad, value in zip(self.grads, (x.T @ back, back.sum(0), hidden.T @ p, p.sum(0)), strict=True):
            grad[...] = value
        return float(loss)

    def error(self, x, y):
        return float(np.mean(self.forward(x)[1].argmax(axis=1) != y))


# %%
# The runs
# --------

EPOCHS, BATCH = 40, 32
errors = {}
for name, cls in proptim.OPTIMIZERS.items():
    network = Network()
    optimizer = cls(network.params, grads=network.grads, **({"lr": 0.1} if name == "sgd" else {}))
    size = len(train) if name == "rprop" else BATCH
    curve = [network.error(x[test], y[test])]
    for epoch in range(EPOCHS):
        shuffled = np.random.default_rng(epoch).permutation(train)
        for first in range(0, len(train), size):
            batch = shuffled[first : first + size]
            optimizer.step(loss=network.backward(x[batch], y[batch]))
        curve.append(network.error(x[test], y[test]))
    errors[cls.__name__] = 100 * np.array(curve)

# %%
# Percentage of test digits that are recognized wrongly
# -----------------------------------------------------
# Every panel highlights one optimizer among the others.

rows = -(-len(errors) // 3)
figure, axes = plt.subplots(rows, 3, figsize=(6.4, 2.1 * rows), sharex=True, sharey=True, squeeze=False)
for ax in axes.flat[len(errors) :]:
    ax.set_axis_off()
for ax, (name, curve) in zip(axes.flat, errors.items(), strict=False):
    for other in errors.values():
        ax.plot(other, color="#CCCCCC", lw=0.9)
    ax.plot(curve, color="#0072B2", lw=2)
    ax.set(yscale="log", ylim=(1.5, 100), xticks=[0, 20, 40])
    ax.set_yticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
    ax.minorticks_off()
    ax.set_title(f"{name}: {curve[-1]:.1f} %")
for ax in axes[-1]:
    ax.set_xlabel("epoch")

print(f"after 1, 10 and {EPOCHS} epochs")
for name, curve in errors.items():
    print(f"{curve[1]:5.1f} {curve[10]:5.1f} {curve[-1]:5.1f}  {name}")

plt.show()
