"""scipy.optimize.minimize with proptim's rules: least squares on the diabetes data of scikit-learn.

442 patients, 10 measurements, standardized. The exact solution is known, so each method reports how far from it it
ended and how many gradients it needed. All four variants of Rprop find it. BFGS is far quicker on a small smooth
problem such as this: Rprop is for many weights, for gradients whose sizes cannot be trusted, and for objectives with
kinks.
"""

from __future__ import annotations

import sys

import numpy as np

try:
    from scipy.optimize import minimize
    from sklearn.datasets import load_diabetes
except ModuleNotFoundError as error:
    print(f"skipped: {error.name} is not installed; pip install 'proptim[examples]'", file=sys.stderr)
    sys.exit(77)

import proptim.scipy

raw_x, raw_y = load_diabetes(return_X_y=True, scaled=False)
features = (raw_x - raw_x.mean(axis=0)) / raw_x.std(axis=0)
target = (raw_y - raw_y.mean()) / raw_y.std()


def loss(weights):
    """Half the mean squared error, and its gradient."""
    error = features @ weights - target
    return error @ error / (2 * len(target)), features.T @ error / len(target)


exact = np.linalg.lstsq(features, target, rcond=None)[0]
least = loss(exact)[0]
methods = {v: (proptim.scipy.rprop, {"variant": v}) for v in ("rprop-", "irprop-", "rprop+", "irprop+")}
methods["adam"] = (proptim.scipy.adam, {"lr": 0.02})
methods["BFGS"] = ("BFGS", {})

print(f"least loss {least:.6f}, of w = 0 {loss(0 * exact)[0]:.6f}")
print("method    gradients  loss above the least  largest error of a weight")
for name, (method, options) in methods.items():
    result = minimize(loss, np.zeros(features.shape[1]), jac=True, method=method, options=options)
    error = np.abs(result.x - exact).max()
    print(f"{name:9} {result.njev:9}  {result.fun - least:20.1e}  {error:25.1e}")
    assert result.success, result.message
    assert result.fun - least < 1e-7
    assert error < 5e-3
