"""
Paths on a ravine and on a saddle
=================================

Every optimizer on two small landscapes. Each has the best of many learning rates, so that the pictures show the rule
and not the choice of a learning rate.
"""

import matplotlib.pyplot as plt
import numpy as np

import proptim

# %%
# The landscapes
# --------------
# The first is a *ravine* whose curvature is 30 times as large across as along it, rotated so that none of its axes is
# an axis of the weights. The second is a *saddle* with a minimum on each side. The runs start at a distance of a
# hundredth from the ridge, where the gradient hardly points to either side.

ALONG = np.array([np.cos(0.4), np.sin(0.4)])
ACROSS = np.array([-np.sin(0.4), np.cos(0.4)])


def ravine(w):
    u, v = w @ ALONG, w @ ACROSS
    gradient = np.multiply.outer(u, ALONG) + 30 * np.multiply.outer(v, ACROSS)
    return (u**2 + 30 * v**2) / 2, gradient


def saddle(w):
    x, y = w[..., 0], w[..., 1]
    return x**2 / 2 - y**2 / 2 + y**4 / 4, np.stack([x, y**3 - y], axis=-1)


LANDSCAPES = {  # function, start, minima, what is shown: left, right, bottom, top
    "ravine": (ravine, [-2.2, 0.4], [(0, 0)], (-2.6, 0.9, -1.6, 1.4)),
    "saddle": (saddle, [-1.7, 0.01], [(0, 1), (0, -1)], (-2.0, 1.6, -1.6, 2.0)),
}

# %%
# The best learning rate
# ----------------------
# The one of fifty learning rates with the least sum of losses over 60 steps: with that a run is fast, does not leave
# the picture, and does not oscillate at the end. Rprop needs no learning rate; here it is its first step size.

STEPS = 60


def follow(cls, landscape, lr):
    """The path of 60 steps, and the losses along it."""
    function, start, *_ = LANDSCAPES[landscape]
    w = np.array(start)
    optimizer = cls([w], lr=lr)
    path, losses = [w.copy()], [function(w)[0]]
    for _ in range(STEPS):
        optimizer.step([function(w)[1]], loss=losses[-1])
        path.append(w.copy())
        losses.append(function(w)[0])
        if np.abs(w).max() > 5:  # out of the picture
            losses.append(np.inf)
            break
    return np.array(path), losses


def best(cls, landscape):
    """The best path and its learning rate."""
    tries = [(*follow(cls, landscape, lr), lr) for lr in np.geomspace(1e-3, 1e3, 50)]
    path, _, lr = min(tries, key=lambda run: sum(run[1]))
    return path, lr


PATHS = {}
for landscape in LANDSCAPES:
    PATHS[landscape] = {name: best(cls, landscape) for name, cls in proptim.OPTIMIZERS.items()}

# %%
# All of them
# -----------


def draw(axes, landscape, name):
    """The path of one optimizer before those of all others."""
    function, start, minima, (left, right, bottom, top) = LANDSCAPES[landscape]
    x, y = np.meshgrid(np.linspace(left, right, 120), np.linspace(bottom, top, 120))
    height, _ = function(np.stack([x, y], axis=-1))
    levels = height.min() + np.ptp(height) * np.linspace(0.01, 1, 14) ** 2
    axes.contour(x, y, height, levels=levels, colors="#D8D8D8", linewidths=0.9)
    for path, _ in PATHS[landscape].values():
        axes.plot(*path.T, color="#A6A6A6", lw=0.8)
    path, lr = PATHS[landscape][name]
    axes.plot(*path.T, color="#0072B2", lw=1.6, marker="o", ms=3.2)
    axes.plot(*start, color="#D55E00", marker="o", ms=7)
    axes.plot(*np.transpose(minima), color="black", marker="+", ms=11, mew=2, ls="none")
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axes.set_axis_off()
    return lr


rows = -(-len(proptim.OPTIMIZERS) // 3)
figure, axes = plt.subplots(rows, 3, figsize=(6.4, 2.0 * rows), squeeze=False)
for ax in axes.flat[len(proptim.OPTIMIZERS) :]:
    ax.set_axis_off()
for ax, (name, cls) in zip(axes.flat, proptim.OPTIMIZERS.items(), strict=False):
    draw(ax, "ravine", name)
    ax.set_title(cls.__name__)

# %%
# One by one
# ----------
# The start is the orange point, the minima are the crosses, the grey lines are the paths of all others.

for name, cls in proptim.OPTIMIZERS.items():
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.3))
    for ax, landscape in zip(axes, LANDSCAPES, strict=True):
        lr = draw(ax, landscape, name)
        ax.set_title(f"{landscape}, lr = {lr:.3g}")
    figure.suptitle(cls.__name__)

plt.show()
