"""
Adagrad slows down for ever
===========================

Adagrad divides by the root of the sum of all squared gradients so far. The sum only grows, so the steps only shrink:
with a constant gradient, in proportion to one over the root of the number of steps. RMSprop forgets old gradients, and
its steps keep their length.
"""

import matplotlib.pyplot as plt
import numpy as np

import proptim

STEPS = 10_000
LR = 0.01
COLOURS = {"Adagrad": "#009E73", "RMSprop": "#0072B2", "Adam": "#CC79A7"}

# %%
# A constant slope
# ----------------
# The gradient is always 1.

moves = {}
for name in COLOURS:
    weight, gradient = np.zeros(1), np.ones(1)
    optimizer = getattr(proptim, name)([weight], grads=[gradient], lr=LR)
    path = [0.0]
    for _ in range(STEPS):
        optimizer.step()
        path.append(weight.item())
    moves[name] = np.abs(np.diff(path)) / LR

figure, axes = plt.subplots(figsize=(6.4, 4.2))
steps = np.arange(1, STEPS + 1)
for name, length in moves.items():
    axes.loglog(steps, length, color=COLOURS[name], ls="--" if name == "Adam" else "-", label=name)
axes.set(xlabel="step", ylabel="length of the step / lr")
axes.set_title("The length of a step on a steady slope")
axes.legend()
print("last step and distance travelled, in lr")
for name, length in moves.items():
    print(f"{length[-1]:8.4f} {length.sum():8,.0f}  {name}")

# %%
# A slope that becomes flat
# -------------------------
# For 500 steps the gradient of a weight is 100; then the landscape becomes flat and the gradient is 0.1. Adagrad
# continues to divide by the early gradients for ever; RMSprop has forgotten them after 130 steps.

figure, axes = plt.subplots(figsize=(6.4, 4.2))
for name in ("Adagrad", "RMSprop"):
    weight = np.zeros(1)
    optimizer = getattr(proptim, name)([weight], lr=LR)
    path = [0.0]
    for step in range(1500):
        optimizer.step([np.array([100.0 if step < 500 else 0.1])])
        path.append(weight.item())
    axes.plot(np.negative(path), color=COLOURS[name], label=name)
axes.axvline(500, color="#595959", lw=1.2, ls="--")
axes.text(520, 1.2, "from here on the gradient\nis a thousandth", color="#595959", va="bottom")
axes.set(xlabel="step", ylabel="distance travelled")
axes.set_title("After a steep beginning")
axes.legend()

plt.show()
