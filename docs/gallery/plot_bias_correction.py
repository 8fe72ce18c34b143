r"""
The first steps: Adam's bias correction
=======================================

A moving average that starts at zero is too small at first. RMSprop divides by the root of such an average, so its first
steps are too long: the first is :math:`1 / \sqrt{1 - \alpha}` times the learning rate. Adam divides its averages by
:math:`1 - \beta^t`, which is exactly the factor by which they are too small.
"""

import matplotlib.pyplot as plt
import numpy as np

import proptim

LR = 0.01
OPTIMIZERS = {
    "RMSprop, alpha 0.99 (torch)": (lambda w: proptim.RMSprop(w, lr=LR, alpha=0.99), "#D55E00", "-"),
    "RMSprop, alpha 0.9": (lambda w: proptim.RMSprop(w, lr=LR), "#0072B2", "-"),
    "RMSprop, initial_square_avg 1 (TF1)": (
        lambda w: proptim.RMSprop(w, lr=LR, initial_square_avg=1.0),
        "#009E73",
        "-",
    ),
    "RMSprop, bias_correction": (lambda w: proptim.RMSprop(w, lr=LR, bias_correction=True), "black", "-"),
    "Adam": (lambda w: proptim.Adam(w, lr=LR), "#E69F00", "--"),
}


def lengths(make, gradients):
    """The length of every step, in learning rates."""
    weight = np.zeros(1)
    optimizer = make([weight])
    path = [0.0]
    for gradient in gradients:
        optimizer.step([np.array([gradient])])
        path.append(weight.item())
    return np.abs(np.diff(path)) / LR


# %%
# A constant gradient
# -------------------
# The gradient is 0.1; with another one, only the run that starts at 1 would differ.

figure, axes = plt.subplots(figsize=(6.4, 5.2))
steps = np.arange(1, 41)
print("first and tenth step, in lr")
for name, (make, colour, line) in OPTIMIZERS.items():
    length = lengths(make, np.full(len(steps), 0.1))
    axes.plot(steps, length, color=colour, ls=line, marker="o", ms=3, label=name)
    print(f"{length[0]:8.4f} {length[9]:8.4f}  {name}")
axes.set(yscale="log", ylim=(0.08, 60), xlabel="step", ylabel="length of the step / lr")
axes.set_title("How long the first steps are")
axes.legend(loc="upper right", fontsize=11)

# %%
# Without momentum Adam is RMSprop
# --------------------------------
# Adam with ``betas=(0, alpha)`` and RMSprop with bias correction are the same rule, up to rounding.

gradients = np.random.default_rng(0).standard_normal(200)
adam = lengths(lambda w: proptim.Adam(w, lr=LR, betas=(0.0, 0.9)), gradients)
rmsprop = lengths(lambda w: proptim.RMSprop(w, lr=LR, alpha=0.9, bias_correction=True), gradients)
print(f"greatest difference in 200 steps: {np.abs(adam - rmsprop).max():.1e} lr")

plt.show()
