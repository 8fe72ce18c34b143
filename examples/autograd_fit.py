"""Gradients by HIPS autograd, steps by proptim: a full-batch fit of a small network, as one flat vector.

autograd differentiates ordinary NumPy code. `flatten` makes one vector of the nested parameters, proptim steps this
vector in place, and irprop+ gets the loss, which autograd returns together with the gradient.
"""

from __future__ import annotations

import sys

import numpy as np

try:
    import autograd.numpy as anp
    from autograd import value_and_grad
    from autograd.misc.flatten import flatten
except ModuleNotFoundError as error:
    print(f"skipped: {error.name} is not installed; pip install 'proptim[examples]'", file=sys.stderr)
    sys.exit(77)

import proptim

STEPS = 300
rng = np.random.default_rng(0)
X = np.linspace(-2, 2, 200)[:, None]
NOISE = 0.1
Y = np.sin(4 * X) * X + NOISE * rng.standard_normal(X.shape)


def predict(layers, x):
    """Tanh layers and a linear one."""
    *hidden, (weight, bias) = layers
    for w, b in hidden:
        x = anp.tanh(x @ w + b)
    return x @ weight + bias


layers = [(rng.standard_normal((m, n)) / m**0.5, np.zeros(n)) for m, n in [(1, 20), (20, 20), (20, 1)]]
flat, unflatten = flatten(layers)
loss_and_grad = value_and_grad(lambda vector: anp.mean((predict(unflatten(vector), X) - Y) ** 2))

# Step sizes up to 50, the published bound, would make weights so large that cosh overflows.
optimizer = proptim.Rprop([flat], step_sizes=(1e-6, 1.0), variant="irprop+")
losses = []
for step in range(STEPS):
    loss, grad = loss_and_grad(flat)
    losses.append(loss)
    optimizer.step([grad], loss=loss)
    if step % 60 == 0:
        print(f"step {step:3}  mean squared error {loss:.5f}")

final = loss_and_grad(flat)[0]
print(f"step {STEPS}  mean squared error {final:.5f}; of the noise {NOISE**2:.5f}")
assert optimizer.steps == STEPS
assert final < 2 * NOISE**2 < losses[0]
