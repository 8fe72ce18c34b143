"""skorch: a grid search over our hyperparameters and options, and saving and loading of the optimizer."""

from __future__ import annotations

import pytest
import torch
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetRegressor
from training import close, data, network, same, weights

import proptim.torch


def regressor(cls, **options):
    torch.manual_seed(0)
    return NeuralNetRegressor(
        network,
        module__seed=3,
        optimizer=cls,
        lr=0.01,
        max_epochs=4,
        batch_size=8,
        verbose=0,
        train_split=None,
        **options,
    )


@pytest.mark.parametrize("name", ["RMSprop", "AdamW"])
def test_parity_and_checkpoint(tmp_path, name):
    x, y = data()
    mine, theirs = regressor(getattr(proptim.torch, name)), regressor(getattr(torch.optim, name))
    torch.manual_seed(1)
    mine.fit(x, y)
    torch.manual_seed(1)
    theirs.fit(x, y)
    close(weights(mine.module_), weights(theirs.module_))
    files = {"f_params": str(tmp_path / "p"), "f_optimizer": str(tmp_path / "o")}
    mine.save_params(**files)
    other = regressor(getattr(proptim.torch, name)).initialize()
    other.load_params(**files)
    for each in (mine, other):
        torch.manual_seed(2)
        each.partial_fit(x, y)
    assert same(weights(mine.module_), weights(other.module_))


def test_grid_search():
    x, y = data()
    grid = {"optimizer__alpha": [0.9, 0.99], "optimizer__clip_norm": [0.1, 10.0], "lr": [1e-4, 1e-2]}
    search = GridSearchCV(regressor(proptim.torch.RMSprop), grid, cv=2, scoring="neg_mean_squared_error")
    search.fit(x.numpy(), y.numpy())
    assert search.best_params_["lr"] == 1e-2
    assert search.best_estimator_.optimizer_.clip_norm == search.best_params_["optimizer__clip_norm"]
