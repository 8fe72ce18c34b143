"""
Rprop's step sizes over time
============================

Rprop gives every weight a step size of its own. It grows by a factor of 1.2 while the sign of the gradient stays, and
halves when the sign changes. The four variants differ in what else happens when the sign changes.
"""

import matplotlib.pyplot as plt
import numpy as np

import proptim

# %%
# Eight gradients, four variants
# ------------------------------
# One weight that starts at 0 with a step size of 0.1. "irprop+" compares losses, so it is given some. Where the sign of
# the gradient has changed, the bar is orange: "rprop-" moves with the smaller step size, "irprop-" does not move,
# "rprop+" takes the last move back, and "irprop+" does so only if the loss has risen.

GRADIENTS = [1, 1, -1, -1, -1, 0.5, 0, 0.5]
LOSSES = [5, 4, 4.5, 3, 2, 1, 1, 1]
VARIANTS = ["rprop-", "irprop-", "rprop+", "irprop+"]

figure, axes = plt.subplots(len(VARIANTS), 1, figsize=(6.4, 8.6), sharex=True, sharey=True)
steps = np.arange(1, len(GRADIENTS) + 1)
for ax, variant in zip(axes, VARIANTS, strict=True):
    weight = np.zeros(1)
    optimizer = proptim.Rprop([weight], lr=0.1, variant=variant)
    positions, sizes = [0.0], []
    for gradient, loss in zip(GRADIENTS, LOSSES, strict=True):
        optimizer.step([np.array([float(gradient)])], loss=loss)
        positions.append(weight.item())
        sizes.append(optimizer.state[0]["step_size"].item())
    shrunk = np.diff([0.1, *sizes]) < 0
    ax.bar(steps, sizes, width=0.55, color=np.where(shrunk, "#E69F00", "#9CC4DE"))
    ax.step([0, *steps], positions, where="post", color="#0072B2", marker="o", ms=5)
    ax.axhline(0, color="black", lw=0.8)
    ax.set_title(f'"{variant}"')
axes[0].text(8.45, 0.055, "bars: step size", ha="right", color="#595959")
axes[0].text(8.45, -0.2, "line: weight", ha="right", color="#0072B2")
signs = ["+" if g > 0 else "\N{MINUS SIGN}" if g < 0 else "0" for g in GRADIENTS]
axes[-1].set_xticks(steps, [f"{step}\n{sign}" for step, sign in zip(steps, signs, strict=True)])
axes[-1].set_xlabel("step, and the sign of its gradient")

# %%
# A step size for every weight
# ----------------------------
# Seven weights, each on its own parabola, with curvatures from 0.001 to 1000. Their gradients differ by a factor of a
# million, but on the way their step sizes are the same: they depend only on the distance to the minimum.

curvature = 10.0 ** np.arange(-3, 4)
weights = np.full(curvature.shape, 10.0)
optimizer = proptim.Rprop([weights], lr=0.01)
sizes, distances = [], []
for _ in range(60):
    optimizer.step([curvature * weights])
    sizes.append(optimizer.state[0]["step_size"].copy())
    distances.append(np.abs(weights).copy())

figure, (top, bottom) = plt.subplots(2, 1, figsize=(6.4, 6), sharex=True)
top.semilogy(sizes, color="#0072B2", lw=1.6)
top.set(ylabel="step size")
top.set_title("Seven curves in one: the step sizes")
bottom.semilogy(distances, color="#0072B2", lw=1.6)
bottom.set(xlabel="step", ylabel="distance from the minimum")
bottom.set_title("and so are the ways")
print(f"largest difference between the seven: {np.ptp(distances, axis=1).max():g}")

plt.show()
