"""
Test accuracy against bytes a weight
====================================

What networks learn if weights and state of the optimizer are kept in fewer bytes. Each point is the mean test accuracy
of eight networks, which differ in their first weights and in the order of their samples; bars are standard errors. The
eight are the same in every format.
"""

import matplotlib.pyplot as plt
import ml_dtypes
import numpy as np
from sklearn.datasets import load_digits

import proptim

x, y = load_digits(return_X_y=True)
x = (x / 16).astype(np.float32)
order = np.random.default_rng(0).permutation(len(y))
test, train = order[:360], order[360:]

# %%
# Formats
# -------
# For each the dtype of the weights, and options of the optimizer. With ``master=None`` nothing is kept beside a weight
# of 16 bits: each step rounds it, to nearest or at random.

BFLOAT16 = ml_dtypes.bfloat16
WITHOUT_MASTER = {"master": None, "state_dtype": "bfloat16"}
FORMATS = {
    "float32": (np.float32, {}),
    "float32, state in bfloat16": (np.float32, {"state_dtype": "bfloat16"}),
    "float32, state in int8": (np.float32, {"state_dtype": "int8"}),
    "bfloat16, split": (BFLOAT16, {}),
    "bfloat16, split, state in int8": (BFLOAT16, {"state_dtype": "int8"}),
    "bfloat16 alone, to nearest": (BFLOAT16, WITHOUT_MASTER),
    "bfloat16 alone, at random": (BFLOAT16, {**WITHOUT_MASTER, "rounding": "stochastic"}),
}

# %%
# Eight networks at once
# ----------------------
# 64 pixels, 64 hidden units, 10 digits. The weights of all eight are in the same arrays, and so are stepped together.

NETWORKS, EPOCHS, BATCH = 8, 20, 48


def first_weights(dtype):
    rng = np.random.default_rng(1)
    shapes = [(64, 64), (1, 64), (64, 10), (1, 10)]
    scales = [np.sqrt(2 / 64), 0, np.sqrt(2 / 64), 0]
    return [
        (rng.standard_normal((NETWORKS, *shape)) * scale).astype(dtype)
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def forward(params, samples):
    w, b, v, c = (p.astype(np.float32) for p in params)
    hidden = np.maximum(samples @ w + b, 0)
    return v, hidden, hidden @ v + c


def accuracy(name, dtype, options):
    params = first_weights(dtype)
    optimizer = getattr(proptim, name)(params, **options)
    rng = np.random.default_rng(2)
    for _ in range(EPOCHS):
        orders = np.stack([rng.permutation(train) for _ in range(NETWORKS)])
        for begin in range(0, len(train), BATCH):
            batch = orders[:, begin : begin + BATCH]
            v, hidden, scores = forward(params, x[batch])
            p = np.exp(scores - scores.max(axis=2, keepdims=True))
            p /= p.sum(axis=2, keepdims=True)
            np.put_along_axis(p, y[batch][..., None], np.take_along_axis(p, y[batch][..., None], 2) - 1, 2)
            p /= batch.shape[1]
            back = (p @ v.transpose(0, 2, 1)) * (hidden > 0)
            w_grad, v_grad = x[batch].transpose(0, 2, 1) @ back, hidden.transpose(0, 2, 1) @ p
            optimizer.step([w_grad, back.sum(axis=1, keepdims=True), v_grad, p.sum(axis=1, keepdims=True)])
    right = forward(params, x[test])[2].argmax(axis=2) == y[test]
    return 100 * right.mean(axis=1), bytes_per_weight(params, optimizer)


def bytes_per_weight(params, optimizer):
    """The weights, the 16 bits beside each if there is a split master, and the state."""
    states = [*optimizer.state_dict()["state"].values()]
    arrays = [a for entry in states for name, a in entry.items() if isinstance(a, np.ndarray) and name != "master"]
    split = 2 if "master" in states[0] else 0
    return split + sum(a.nbytes for a in (*params, *arrays)) / sum(p.size for p in params)


# %%
# The runs
# --------

figure, axes = plt.subplots(2, 1, figsize=(6.4, 8.6), sharex=True)
for ax, name in zip(axes, ("RMSprop", "Adam"), strict=True):
    print(name)
    for i, (label, (dtype, options)) in enumerate(FORMATS.items()):
        percent, size = accuracy(name, dtype, options)
        error = percent.std(ddof=1) / np.sqrt(NETWORKS)
        ax.errorbar(size, percent.mean(), error, fmt="os^Dvx+"[i], ms=9, mew=2, color=f"C{i}", label=label)
        print(f"  {size:5.2f} bytes  {percent.mean():6.2f} %  {label}")
    ax.set(ylabel="test accuracy in %")
    ax.set_title(name)
axes[-1].set_xlabel("bytes a weight: weight, master and state")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=1)

plt.show()
