"""
Why Rprop fails on mini-batches
===============================

Take ten mini-batches: nine gradients of 0.1 and one of -0.9. They add up to zero, so the weight should stay where it
is. Rprop uses only signs: it takes nine steps one way and one step back. RMSprop divides every gradient by nearly the
same number, so that they still cancel.
"""

import matplotlib.pyplot as plt
import numpy as np

import proptim

GRADIENTS = np.array([0.1] * 9 + [-0.9])
ROUNDS = 20

figure, axes = plt.subplots(figsize=(6.4, 2.4))
axes.bar(np.arange(1, 11), GRADIENTS, color="#595959")
axes.axhline(0, color="black", lw=1)
axes.set(xlabel="mini-batch", ylabel="gradient", xticks=range(1, 11))
axes.set_title("One round: the sum is 0")

# %%
# Where the weight goes
# ---------------------
# One weight in 20 rounds. Equal bounds keep Rprop's step size at 0.001, since Hinton supposes that it hardly changes
# within ten mini-batches. The moving average of RMSprop begins at the mean square, as in the middle of training.

start = float(np.mean(GRADIENTS**2))
optimizers = {
    "SGD": lambda w: proptim.SGD(w, lr=0.01),
    "Rprop": lambda w: proptim.Rprop(w, lr=1e-3, step_sizes=(1e-3, 1e-3)),
    "RMSprop, alpha 0.9": lambda w: proptim.RMSprop(w, lr=3e-3, alpha=0.9, initial_square_avg=start),
    "RMSprop, alpha 0.99": lambda w: proptim.RMSprop(w, lr=3e-3, alpha=0.99, initial_square_avg=start),
}
paths = {}
for name, make in optimizers.items():
    weight = np.zeros(1)
    optimizer = make([weight])
    path = [0.0]
    for gradient in np.tile(GRADIENTS, ROUNDS):
        optimizer.step([np.array([gradient])])
        path.append(weight.item())
    paths[name] = np.array(path)

figure, axes = plt.subplots(figsize=(6.4, 4.4))
STYLES = [("black", "-"), ("#D55E00", "-"), ("#0072B2", "-"), ("#009E73", "-")]
for (name, path), (colour, line) in zip(paths.items(), STYLES, strict=True):
    axes.plot(path, color=colour, ls=line, label=f"{name}: drift {path[-1]:+.3f}")
axes.set(xlabel="mini-batches", ylabel="weight")
axes.set_title("Rprop drifts, RMSprop stays near")
axes.legend()

# %%
# Net drift as a share of the path
# --------------------------------
# The closer alpha is to 1, the less the divisors of consecutive mini-batches differ, and the smaller is the drift.

for name, path in paths.items():
    print(f"{abs(path[-1]) / np.abs(np.diff(path)).sum():6.1%}  {name}")

plt.show()
