"""A grid search over optimizers: scikit-learn's network on its handwritten digits, with Rprop, RMSprop and Adam inside.

Each candidate is cross-validated three times; the best is fitted again and reads digits that it has not seen.
"""

from __future__ import annotations

import sys
import warnings

try:
    from sklearn.datasets import load_digits
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV, train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler
except ModuleNotFoundError as error:
    print(f"skipped: {error.name} is not installed; pip install 'proptim[examples]'", file=sys.stderr)
    sys.exit(77)

from proptim.sklearn import MLPClassifier

warnings.simplefilter("ignore", ConvergenceWarning)  # 30 epochs are enough to compare

x, y = load_digits(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(x, y, random_state=0)
network = make_pipeline(MinMaxScaler(), MLPClassifier((32,), max_iter=30, random_state=0))
grid = {
    "mlpclassifier__optimizer": ["rprop", "rmsprop", "adam"],
    "mlpclassifier__lr": [0.01, 0.03],
}
search = GridSearchCV(network, grid, cv=3).fit(train_x, train_y)

for candidate, score in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True):
    name, rate = candidate["mlpclassifier__optimizer"], candidate["mlpclassifier__lr"]
    print(f"{name:8} lr {rate:g}  accuracy {score:.3f}")
accuracy = search.score(test_x, test_y)
print(f"the best of them on the test digits: {accuracy:.3f}")
assert accuracy > 0.95
