"""JAX on the CPU computes loss and gradient, proptim steps: a classifier of two spirals.

JAX arrays are immutable, so proptim cannot step them. The parameters are in a NumPy vector; JAX gets a copy of it at
each step, and its gradient is read without a copy. So the cost is one pass over the parameters and a call from Python,
which the last lines measure. To avoid both, stay inside JAX, with optax.
"""

from __future__ import annotations

import sys
from time import perf_counter

import numpy as np

try:
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree
except ModuleNotFoundError as error:
    print(f"skipped: {error.name} is not installed; pip install 'proptim[examples]'", file=sys.stderr)
    sys.exit(77)

import proptim

jax.config.update("jax_platforms", "cpu")
STEPS = 400
rng = np.random.default_rng(0)
angle = rng.uniform(0.5, 3 * np.pi, 400)
label = rng.integers(2, size=400)
turned = angle + np.pi * label  # the second spiral is the first, rotated by 180 degrees
X = jnp.asarray(np.stack([angle * np.cos(turned), angle * np.sin(turned)], axis=1) / 2.5, jnp.float32)
Y = jnp.asarray(label, jnp.float32)

layers = [(rng.standard_normal((m, n)) * (2 / m) ** 0.5, np.zeros(n)) for m, n in [(2, 64), (64, 64), (64, 1)]]
start, unravel = ravel_pytree([(jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32)) for w, b in layers])


def scores(vector):
    """ReLU layers and a linear one; a value above 0 means that the point belongs to the second spiral."""
    *hidden, (weight, bias) = unravel(vector)
    x = X
    for w, b in hidden:
        x = jax.nn.relu(x @ w + b)
    return (x @ weight + bias)[:, 0]


@jax.jit
@jax.value_and_grad
def loss_and_grad(vector):
    """Mean cross-entropy."""
    score = scores(vector)
    return jnp.mean(jax.nn.softplus(score) - Y * score)


try:
    proptim.Adam([start])
except ValueError as error:
    print(f"refused: {error}")
else:
    raise AssertionError("a JAX array was stepped in place")

params = np.array(start)  # a copy, and writable
optimizer = proptim.Adam([params], lr=5e-3)
losses = []
copying = stepping = 0.0
for step in range(STEPS):
    begin = perf_counter()
    # Not jnp.asarray: that may share the memory of `params` (jax-ml/jax#37830), which the step changes.
    vector = jnp.array(params, copy=True).block_until_ready()
    copied = perf_counter()
    loss, grad = loss_and_grad(vector)
    grad.block_until_ready()
    computed = perf_counter()
    optimizer.step([grad])
    copying, stepping = copying + copied - begin, stepping + perf_counter() - computed
    losses.append(float(loss))
    if step % 100 == 0:
        print(f"step {step:3}  loss {losses[-1]:.4f}")

right = float(jnp.mean((scores(jnp.array(params)) > 0) == (Y > 0)))
print(f"step {STEPS}  loss {losses[-1]:.4f}, {right:.1%} of the points on the right side")
print(f"{params.size} weights: copy to JAX {copying / STEPS * 1e6:.0f} us a step, step {stepping / STEPS * 1e6:.0f} us")
assert losses[-1] < losses[0] / 4
assert right > 0.95
