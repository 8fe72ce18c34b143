"""
Rprop, adam and lbfgs on five data sets
=======================================

The same networks of scikit-learn, trained by :class:`proptim.Rprop` through ``proptim.sklearn``, and by scikit-learn's
own adam and lbfgs. All options have their defaults, and no learning rate was tuned. Rprop and lbfgs see all samples in
every step, adam 200 at a time.
"""

import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn import datasets, neural_network
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import proptim.sklearn

SETS = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "breast cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
    "diabetes": datasets.load_diabetes,  # a regression
}
SOLVERS = ("Rprop", "adam", "lbfgs")
SPLITS = 5


def network(solver, regression, seed):
    if solver == "Rprop":
        home, options = proptim.sklearn, {"optimizer": "rprop"}
    else:
        home, options = neural_network, {"solver": solver}
    make = home.MLPRegressor if regression else home.MLPClassifier
    model = make_pipeline(StandardScaler(), make(hidden_layer_sizes=(50,), random_state=seed, **options))
    return TransformedTargetRegressor(model, transformer=StandardScaler()) if regression else model


# %%
# The runs
# --------
# Five splits into three quarters for training and one quarter for testing. The score is the accuracy, and R2 for
# diabetes.

scores, seconds = ({solver: [] for solver in SOLVERS} for _ in range(2))
for load in SETS.values():
    x, y = load(return_X_y=True)
    for solver in SOLVERS:
        found, took = [], []
        for seed in range(SPLITS):
            train_x, test_x, train_y, test_y = train_test_split(x, y, random_state=seed)
            model = network(solver, load is datasets.load_diabetes, seed)
            start = time.perf_counter()
            with warnings.catch_warnings(), threadpool_limits(1, "blas"):  # two threads do not help for these sizes
                warnings.simplefilter("ignore", ConvergenceWarning)  # 200 epochs are not always enough
                model.fit(train_x, train_y)
            took.append(time.perf_counter() - start)
            found.append(model.score(test_x, test_y))
        scores[solver].append(np.mean(found))
        seconds[solver].append(np.median(took))

# %%
# Score and time
# --------------
# The mean score of the five splits, and the median of seconds for one fit, on the machine that built this page.

print(f"{'':14}" + "".join(f"{solver:>16}" for solver in SOLVERS))
for i, name in enumerate(SETS):
    cells = [f"{scores[solver][i]:.3f} {seconds[solver][i]:6.2f} s" for solver in SOLVERS]
    print(f"{name:14}" + "".join(f"{cell:>16}" for cell in cells))

figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.6), sharey=True)
places = np.arange(len(SETS))
for solver, marker in zip(SOLVERS, "os^", strict=True):
    axes[0].plot(1 - np.array(scores[solver]), places, marker, ms=8, alpha=0.8, label=solver)
    axes[1].plot(seconds[solver], places, marker, ms=8, alpha=0.8)
axes[0].set(yticks=places, yticklabels=SETS, xscale="log", xlabel="1 - score: less is better")
axes[0].invert_yaxis()
axes[0].legend(loc="upper right")
axes[1].set(xscale="log", xlabel="seconds of a fit")

# %%
# Overfitting
# -----------
# The diabetes data are few and noisy, so an optimizer that minimizes the training loss well fits the noise, and adam
# does best because it is the slowest. This does not depend on the optimizer but on the penalty alpha, which is too
# small. With Rprop:

x, y = datasets.load_diabetes(return_X_y=True)
for alpha in (1e-4, 1, 30):
    found = []
    for seed in range(SPLITS):
        train_x, test_x, train_y, test_y = train_test_split(x, y, random_state=seed)
        model = network("Rprop", True, seed).set_params(regressor__mlpregressor__alpha=alpha)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found.append(model.fit(train_x, train_y).score(test_x, test_y))
    print(f"alpha {alpha:<7g} R2 {np.mean(found):.3f}")

plt.show()
