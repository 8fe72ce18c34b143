"""
Schedules
=========

Any hyperparameter that is a number can be a schedule: a callable that takes the number of completed steps. These
schedules come with proptim; a function of your own works as well.
"""

import matplotlib.pyplot as plt
import numpy as np

from proptim import schedules

STEPS = 1000
SCHEDULES = [
    schedules.constant(1.0),
    schedules.linear(1.0, 0.1, 800),
    schedules.cosine(1.0, 1000),
    schedules.warm_restarts(1.0, 150, 2),
    schedules.exponential(1.0, 0.5, every=200),
    schedules.step(1.0, 0.5, every=250),
    schedules.one_cycle(1.0, 1000),
    schedules.warmup(200, then=schedules.cosine(1.0, 800)),
    schedules.join(schedules.constant(1.0), 300, schedules.linear(0.5, 0.0, 500)),
]

figure, axes = plt.subplots(3, 3, figsize=(9.0, 6.4), sharex=True, sharey=True)
steps = np.arange(STEPS)
for ax, schedule in zip(axes.flat, SCHEDULES, strict=True):
    ax.plot(steps, [schedule(int(step)) for step in steps], color="#0072B2")
    ax.set_title(type(schedule).__name__)
    ax.set(ylim=(-0.05, 1.1))
for ax in axes[-1]:
    ax.set_xlabel("completed steps")

# %%
# Their `repr` is the expression that makes them:

for schedule in SCHEDULES:
    print(schedule)

plt.show()
