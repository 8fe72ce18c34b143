"""`MLPClassifier` and `MLPRegressor` of scikit-learn, trained by proptim's optimizers: fit without a loop.

>>> from proptim.sklearn import MLPClassifier
>>> from sklearn.datasets import load_iris
>>> X, y = load_iris(return_X_y=True)
>>> model = MLPClassifier((8,), optimizer="rprop", random_state=0).fit(X, y)
>>> bool(model.score(X, y) > 0.95)
True

Networks, losses, validation, early stopping and pickling are those of scikit-learn: the estimators are subclasses of
its estimators, and only the inner optimizer is from proptim. `load` reads a model that `proptim train --save` has
saved.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os import PathLike
from time import perf_counter
from typing import Any

import numpy as np

from proptim import OPTIMIZERS, Optimizer, Rprop, _model
from proptim._arrays import SIXTEEN, Array, Bits
from proptim._formats import rounded, widened
from proptim._options import Options
from proptim._storage import DTYPES
from proptim.rprop import VARIANTS

try:
    from sklearn import neural_network
    from sklearn.preprocessing import LabelBinarizer
    from sklearn.utils import check_random_state
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"proptim.sklearn needs scikit-learn ({error}): pip install 'proptim[sklearn]'", name=error.name
    ) from error

AUTO_BATCH = 200
"""scikit-learn's batch_size="auto"."""
NOT_HERE = {
    "params": "it is the weights of the network",
    "grads": "they come from the network",
    "publish": "the network has its weights alone",
    "lr": "pass it as the argument lr",
    "maximize": "the loss is minimized",
    "zero_grads": "every gradient is a new array",
    "lazy_rows": "every gradient is dense",
    "ema": "the network has its weights alone",
    "master": "the weights are of float32 or float64",
    "cast_grads": "gradients have the dtype of the weights",
}
"""Arguments of optimizers that optimizer_options refuses, and why."""
HERE = {
    "solver": "optimizer='adam', or another name or class of proptim",
    "learning_rate": "lr, a number or a schedule",
    "learning_rate_init": "lr, a number or a schedule",
    "power_t": "lr, a number or a schedule",
    "momentum": "optimizer_options={'momentum': 0.9}",
    "nesterovs_momentum": "optimizer_options={'nesterov': True}",
    "beta_1": "optimizer_options={'betas': (0.9, 0.999)}",
    "beta_2": "optimizer_options={'betas': (0.9, 0.999)}",
    "epsilon": "optimizer_options={'eps': 1e-8}",
    "max_fun": "max_iter, the number of epochs",
}
"""Parameters of scikit-learn's estimators that belong to its own optimizers -> what replaces them here."""


class _Inner:
    """The object that scikit-learn uses as optimizer of an estimator: one of proptim, for the arrays of the weights.

    After early stopping, copying or unpickling the weights are in other arrays; the state is then loaded into a new
    optimizer for these.

    Weights of 16 bits are in the arrays `halves`, which the optimizer steps. The network computes in float32, with the
    same numbers.
    """

    def __init__(
        self,
        make: type[Optimizer],
        options: dict[str, Any],
        param_dtype: str | None = None,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        self.make, self.options, self.param_dtype, self.saved = make, options, param_dtype, saved
        self.halves: list[Array] = []
        self.optimizer: Optimizer | None = None
        self.params: list[Array] = []
        self.loss: float | None = None
        self.seconds = 0.0

    def over(self, params: Sequence[Array]) -> Optimizer:
        """The optimizer of these arrays."""
        held = self.optimizer
        if held is None or any(a is not b for a, b in zip(self.params, params, strict=True)):
            saved = held.state_dict() if held is not None else self.saved
            halves = [in_sixteen(p, self.param_dtype) for p in params] if self.param_dtype in SIXTEEN else []
            held = self.make(halves or [*params], **self.options)
            if saved is not None:
                held.load_state_dict(saved)
            self.optimizer, self.params, self.halves, self.saved = held, [*params], halves, None
            self.show()
        return held

    def show(self) -> None:
        """Have the network compute with weights of 16 bits as they are now."""
        for param, half in zip(self.params, self.halves, strict=False):
            param[...] = widened(np.asarray(half), param.dtype)

    def __getstate__(self) -> dict[str, Any]:
        saved = self.optimizer.state_dict() if self.optimizer is not None else self.saved
        return {**vars(self), "optimizer": None, "params": [], "halves": [], "saved": saved}

    # What scikit-learn calls ------------------------------------------------------------------------------------------

    def update_params(self, params: list[Array], grads: list[Array]) -> None:
        """Make a step. With sample weights, scikit-learn's gradients of float32 weights may be float64."""
        start = perf_counter()
        self.over(params).step([np.asarray(g, p.dtype) for g, p in zip(grads, params, strict=True)], loss=self.loss)
        self.show()
        self.seconds += perf_counter() - start

    def iteration_ends(self, time_step: int) -> None:
        """Called at the end of an epoch; there is nothing to do."""

    def trigger_stopping(self, msg: str, verbose: bool) -> bool:
        """Stop when loss or score no longer improve."""
        if verbose:
            print(msg + " Stopping.")
        return True


class _Trained:
    """What both estimators add to those of scikit-learn."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        signature = inspect.signature(cls.__init__)  # `help` would show that of __new__
        vars_of_init = [p for p in signature.parameters.values() if p.name != "self"]
        cls.__signature__ = signature.replace(parameters=vars_of_init)  # type: ignore[attr-defined]

    def __new__(cls, *args: Any, **named: Any) -> Any:
        for name in named.keys() & HERE.keys() - {*inspect.signature(cls.__init__).parameters}:
            raise TypeError(
                f"{cls.__name__} has no {name!r}, which is for scikit-learn's own optimizers; expected {HERE[name]}"
            )
        return super().__new__(cls)

    solver = "sgd"
    """To scikit-learn: train by epochs and batches."""
    _param_dtype: str | None = None
    """Of `proptim train`: "bfloat16" or "float16" for weights of 16 bits."""

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        optimizer: str | type[Optimizer] = "rprop",
        lr: Any = None,
        optimizer_options: dict[str, Any] | None = None,
        alpha: float = 1e-4,
        batch_size: Any = "auto",
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.optimizer = optimizer
        self.lr = lr
        self.optimizer_options = optimizer_options
        self.alpha = alpha
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change

    # Set while the estimator is fitted.
    coefs_: list[Array]
    intercepts_: list[Array]
    _optimizer: _Inner

    @property
    def optimizer_(self) -> Optimizer:
        """The optimizer that trains the weights, as it is now: its `steps`, `state`, `state_dict` and so on."""
        if "_optimizer" not in vars(self):
            raise AttributeError(f"this {type(self).__name__} has no optimizer_ yet; expected a fit first: fit(X, y)")
        return self._optimizer.over(self.coefs_ + self.intercepts_)

    def _choice(self, dtype: Any = None) -> tuple[type[Optimizer], dict[str, Any]]:
        """The optimizer's class and its arguments, checked for weights of this dtype, or of either if X is not seen."""
        make = _optimizer_class(self.optimizer)
        options = _checked_options(make, self.optimizer_options)
        if self.lr is not None:
            options["lr"] = self.lr
        # Refuses what is out of range, before anything is changed.
        if dtype is None:
            with suppress(ValueError):
                make([np.zeros(1)], **options)
                return make, options
        make([np.zeros(1, dtype or np.float32)], **options)
        return make, options

    # Around what scikit-learn calls -----------------------------------------------------------------------------------

    def _fit(self, X: Any, y: Any, **kwargs: Any) -> Any:
        self._choice()
        return super()._fit(X, y, **kwargs)  # type: ignore[misc]

    def _initialize(self, y: Any, layer_units: Any, dtype: Any) -> None:
        self._choice(dtype)
        super()._initialize(y, layer_units, dtype)  # type: ignore[misc]

    def _fit_stochastic(self, X: Any, y: Any, *rest: Any) -> None:
        incremental = rest[-1]
        if not incremental or not hasattr(self, "_optimizer"):
            self._optimizer = _Inner(*self._choice(), self._param_dtype)
            self._optimizer.over(self.coefs_ + self.intercepts_)
        n = X.shape[0]
        if self.early_stopping and not incremental:
            n -= math.ceil(self.validation_fraction * n)  # as train_test_split counts
        size = self.batch_size
        if size == "auto":
            size = n if issubclass(self._optimizer.make, Rprop) else min(AUTO_BATCH, n)
        given = {name: vars(self)[name] for name in ("batch_size", "shuffle")}
        # The order of samples does not matter in a batch of all samples, and without shuffling it needs no copy. For a
        # solver that it does not know, scikit-learn makes no optimizer and keeps the present one.
        self.batch_size, self.shuffle, self.solver = max(size, 1), self.shuffle and size < n, "proptim"
        try:
            super()._fit_stochastic(X, y, *rest)  # type: ignore[misc]
        finally:
            vars(self).update(given)
            del self.solver

    def _backprop(self, *args: Any) -> Any:
        loss, *grads = super()._backprop(*args)  # type: ignore[misc]
        self._optimizer.loss = float(loss)
        return (loss, *grads)


def in_sixteen(param: Array, dtype: str) -> Array:
    """The numbers of a parameter rounded to 16 bits, as an optimizer takes them."""
    array = rounded(param, DTYPES[dtype])
    return array.view(Bits) if dtype == "bfloat16" else array


def _constraints(of: Any) -> dict[str, Any]:
    """What scikit-learn checks of the parameters that are still there."""
    return {name: allowed for name, allowed in of._parameter_constraints.items() if name not in HERE}


def _optimizer_class(given: Any) -> type[Optimizer]:
    if isinstance(given, type) and issubclass(given, Optimizer):
        return given
    names = ", ".join(OPTIMIZERS)
    if not isinstance(given, str):
        raise TypeError(f"optimizer is {given!r}; expected a class of proptim or a name: {names}")
    if given.lower() in OPTIMIZERS:
        return OPTIMIZERS[given.lower()]
    if given.lower() in VARIANTS:
        raise ValueError(
            f"optimizer {given!r} is a variant of Rprop; expected optimizer='rprop', "
            f"optimizer_options={{'variant': {given.lower()!r}}}"
        )
    raise ValueError(f"unknown optimizer {given!r}{_guess(given.lower(), [*OPTIMIZERS])}; expected one of {names}")


def _checked_options(make: type[Optimizer], given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"optimizer_options is {given!r}; expected a dict of arguments of {make.__name__}")
    own = [p.name for p in inspect.signature(make.__init__).parameters.values() if p.kind is not p.VAR_KEYWORD][2:]
    known = [name for name in dict.fromkeys([*own, *Options.__annotations__]) if name not in NOT_HERE]
    for name in given:
        if name in NOT_HERE:
            raise ValueError(f"optimizer_options has {name!r}; expected none: {NOT_HERE[name]}")
        if name not in known:
            raise ValueError(
                f"optimizer_options has {name!r}, unknown to {make.__name__}{_guess(name, known)}; "
                f"expected some of {', '.join(known)}"
            )
    return dict(given)


def _guess(name: Any, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


class MLPClassifier(_Trained, neural_network.MLPClassifier):  # type: ignore[misc]
    r"""A multi-layer perceptron that classifies, trained by an optimizer of proptim.

    .. math:: \min_W\; \frac{1}{n}\sum_{i=1}^{n} -\log p_W(y_i \mid x_i) + \frac{\alpha}{2n}\lVert W\rVert^2

    It is `sklearn.neural_network.MLPClassifier` with another optimizer; whatever is not described here is the same.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default (100,)
        Units in each hidden layer.
    activation : {"identity", "logistic", "tanh", "relu"}, default "relu"
        Activation function of the hidden layers.
    optimizer : str or subclass of proptim.Optimizer, default "rprop"
        A name in `proptim.OPTIMIZERS`, in upper or lower case, or a class: ``"rmsprop"``, ``proptim.RMSprop``.
    lr : float or schedule, optional
        Learning rate, for Rprop the first step size; the optimizer's own default if it is not given. A schedule of
        `proptim.schedules` counts steps, not epochs.
    optimizer_options : dict, optional
        More arguments of the optimizer: ``{"variant": "irprop+"}``, ``{"alpha": 0.9, "momentum": 0.9}``,
        ``{"clip_norm": 1.0, "threads": 1}``.
    alpha : float, default 1e-4
        Strength of the L2 penalty on the weights (not the biases), which is part of the loss. The `alpha` of RMSprop
        goes into optimizer_options.
    batch_size : int or "auto", default "auto"
        Samples in a step. "auto" is all of them for Rprop and its subclasses, else min(200, n_samples).
    max_iter : int, default 200
        Largest number of epochs. For Rprop an epoch is one step.
    shuffle : bool, default True
        Shuffle the samples before each epoch, unless a batch has all of them.
    random_state : int, RandomState instance or None, default None
        Seed of the first weights, of the order of samples and of the validation samples.
    tol : float, default 1e-4
        Training stops when the loss, or with early_stopping the score, has improved by less than tol in more than
        n_iter_no_change epochs in a row.
    verbose : bool, default False
        Print the loss after each epoch.
    warm_start : bool, default False
        Let `fit` start from the weights of the previous fit. The optimizer starts without state.
    early_stopping : bool, default False
        Set a share of the samples aside for validation, stop when their score stops improving, and keep the best
        weights.
    validation_fraction : float, default 0.1
        The share of the samples that early_stopping sets aside.
    n_iter_no_change : int, default 10
        See tol.

    Attributes
    ----------
    coefs_, intercepts_ : list of arrays
        Weights, of shape (units before, units after), and biases of each layer, in the dtype of X: float32 or float64.
    classes_ : array
        The labels.
    loss_curve_ : list of float
        Mean loss of each epoch, including the penalty; `loss_` is the last one and `best_loss_` the least.
    validation_scores_ : list of float or None
        With early_stopping, the accuracy on the samples that were set aside.
    n_iter_ : int
        Number of epochs of the last fit.
    optimizer_ : proptim.Optimizer
        The optimizer with its state.

    Raises
    ------
    ValueError
        By `fit` and `partial_fit`, for an unknown optimizer or option, a hyperparameter out of range, and data that
        scikit-learn rejects, before the estimator has changed; and for weights that are not finite after training.
    TypeError
        For an optimizer that is neither a name nor a class, and for options that are not a dict.

    Examples
    --------
    >>> import proptim
    >>> from proptim.sklearn import MLPClassifier
    >>> X, y = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], ["no", "yes", "yes", "no"]
    >>> model = MLPClassifier((4,), "tanh", optimizer=proptim.Rprop, max_iter=500, random_state=0).fit(X, y)
    >>> model.predict(X).tolist()
    ['no', 'yes', 'yes', 'no']
    >>> model.optimizer_.steps == model.n_iter_ == len(model.loss_curve_)
    True

    Notes
    -----
    `fit` and the first `partial_fit` make an optimizer from the parameters of the estimator. As in scikit-learn, later
    calls of `partial_fit` continue with it. Weights and predictions are float32 if X is. "irprop+" gets the loss of its
    batch. Weight decay among the options acts on biases too; its default in AdamW is 0.01.

    scikit-learn's "sgd" is `SGD` with ``{"momentum": 0.9, "nesterov": True}``; its "adam" is `Adam`, except that it
    adds epsilon before the bias correction. `fit` and `partial_fit` accept sample_weight from scikit-learn 1.7 on.
    """

    loss = "log_loss"
    _parameter_constraints = _constraints(neural_network.MLPClassifier)


class MLPRegressor(_Trained, neural_network.MLPRegressor):  # type: ignore[misc]
    r"""A multi-layer perceptron that predicts numbers, trained by an optimizer of proptim.

    .. math:: \min_W\; \frac{1}{2n}\sum_{i=1}^{n} \lVert f_W(x_i) - y_i\rVert^2 + \frac{\alpha}{2n}\lVert W\rVert^2

    It is `sklearn.neural_network.MLPRegressor` with another optimizer; whatever is not described here is the same. y is
    not scaled: if its numbers are far from 1, wrap the estimator in
    ``sklearn.compose.TransformedTargetRegressor(model, transformer=StandardScaler())``.

    Parameters
    ----------
    hidden_layer_sizes, activation, optimizer, lr, optimizer_options, alpha, batch_size, max_iter, shuffle
        As in `MLPClassifier`.
    random_state, tol, verbose, warm_start, early_stopping, validation_fraction, n_iter_no_change
        As in `MLPClassifier`; the score of early_stopping is R2.
    loss : {"squared_error", "poisson"}, default "squared_error"
        As in scikit-learn, which has "poisson" from 1.7 on.

    Attributes
    ----------
    coefs_, intercepts_, loss_curve_, validation_scores_, n_iter_, optimizer_
        As in `MLPClassifier`.

    Raises
    ------
    ValueError, TypeError
        As in `MLPClassifier`.

    Examples
    --------
    >>> import numpy as np
    >>> from proptim.sklearn import MLPRegressor
    >>> X = np.linspace(-3, 3, 100)[:, None]
    >>> y = np.sin(X[:, 0])
    >>> model = MLPRegressor((20,), "tanh", optimizer="rprop", tol=1e-6, max_iter=1000, random_state=0).fit(X, y)
    >>> bool(model.score(X, y) > 0.99)
    True

    Notes
    -----
    As in `MLPClassifier`. With float32 X, y is converted to float32 too, whereas scikit-learn's own estimator computes
    in float64 then.
    """

    _parameter_constraints = _constraints(neural_network.MLPRegressor)

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        optimizer: str | type[Optimizer] = "rprop",
        lr: Any = None,
        optimizer_options: dict[str, Any] | None = None,
        alpha: float = 1e-4,
        batch_size: Any = "auto",
        loss: str = "squared_error",
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            activation,
            optimizer=optimizer,
            lr=lr,
            optimizer_options=optimizer_options,
            alpha=alpha,
            batch_size=batch_size,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            verbose=verbose,
            warm_start=warm_start,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
        )
        self.loss = loss

    def _fit(self, X: Any, y: Any, **kwargs: Any) -> Any:
        if self.loss != "squared_error" and "loss" not in self._parameter_constraints:
            raise ValueError(f"loss is {self.loss!r}; expected 'squared_error': 'poisson' needs scikit-learn 1.7")
        return super()._fit(X, y, **kwargs)

    def _validate_input(self, X: Any, y: Any, incremental: bool, reset: bool) -> Any:
        X, y = super()._validate_input(X, y, incremental, reset)
        return X, y.astype(X.dtype, copy=False)


def restore(
    estimator: MLPClassifier | MLPRegressor,
    coefs: Sequence[Array],
    intercepts: Sequence[Array],
    classes: Array | None,
    saved: Mapping[str, Any] | None = None,
) -> None:
    """Put an estimator into the state after `fit`, with these weights; `saved` is a state_dict of its optimizer."""
    if classes is not None:
        estimator._label_binarizer = LabelBinarizer().fit(classes)
        estimator.classes_ = estimator._label_binarizer.classes_
    estimator.n_features_in_ = len(coefs[0])
    estimator._random_state = check_random_state(estimator.random_state)
    units = [len(coefs[0]), *map(len, intercepts)]
    estimator._initialize(np.empty((1, units[-1])), units, coefs[0].dtype)
    estimator.coefs_, estimator.intercepts_ = [*coefs], [*intercepts]
    if saved is not None:
        estimator._optimizer = _Inner(*estimator._choice(), estimator._param_dtype, saved)


def load(path: str | PathLike[str]) -> MLPClassifier | MLPRegressor:
    """Read a model that `proptim train --save` has saved, as a fitted estimator.

    Parameters
    ----------
    path : str or path
        The file.

    Returns
    -------
    MLPClassifier or MLPRegressor
        An estimator that predicts in float64. It takes unscaled features and predicts labels or numbers as in the
        training data: its weights include the scaling of features and numbers.

    Raises
    ------
    ValueError
        For any other file, and for a damaged one. No code in a file is executed.
    OSError
        For a file that cannot be read.

    Examples
    --------
    ``proptim train --data flowers.csv --save flowers.npz`` on the command line, then::

        model = proptim.sklearn.load("flowers.npz")
        model.predict([[5.1, 3.5, 1.4, 0.2]])
    """
    model, params = _model.read(path)
    layers = len(params) // 2
    coefs = [np.asarray(p, np.float64) for p in params[:layers]]
    intercepts = [np.asarray(p, np.float64) for p in params[layers:]]
    # (x - mean) / scale @ w + b is x @ (w / scale) + (b - mean / scale @ w). In float64, because terms may cancel if a
    # mean is large compared with its scale.
    coefs[0] = coefs[0] / np.array(model.scale)[:, None]
    intercepts[0] = intercepts[0] - np.array(model.mean) @ coefs[0]
    make: Any = MLPClassifier
    if model.classes is None:
        make = MLPRegressor
        coefs[-1] = coefs[-1] * model.y_scale
        intercepts[-1] = intercepts[-1] * model.y_scale + model.y_mean
    estimator: MLPClassifier | MLPRegressor = make(tuple(len(b) for b in intercepts[:-1]), model.activation)
    restore(estimator, coefs, intercepts, None if model.classes is None else np.array(model.classes))
    if model.features is not None:
        estimator.feature_names_in_ = np.array(model.features, dtype=object)
    return estimator


__all__ = ["MLPClassifier", "MLPRegressor", "load"]
