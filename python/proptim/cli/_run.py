"""A training run of `proptim train`: the optimizers, the loop, and the file that a run is saved in."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from time import perf_counter
from typing import Any, Literal

import numpy as np

import proptim
from proptim import _model, checkpoint
from proptim._arrays import Array
from proptim._prepared import ROUNDINGS
from proptim._storage import STATE_DTYPES
from proptim.cli._console import require
from proptim.cli._samples import TASKS, Samples
from proptim.rprop import ETAS_ON_GRID, VARIANTS

# The published learning rates do well here. SGD has none: its rate always belongs to the task.
SPECIAL: dict[str, dict[str, dict[str, Any]]] = {
    "sgd": {"sgd": {"lr": 0.1}},
    "rprop": {variant: {"variant": variant} for variant in VARIANTS},
}
OPTIMIZERS: dict[str, tuple[type[proptim.Optimizer], dict[str, Any]]] = {
    name: (cls, options)
    for rule, cls in proptim.OPTIMIZERS.items()
    for name, options in SPECIAL.get(rule, {rule: {}}).items()
}
PARAM_DTYPES = ("float32", "float64", "bfloat16", "float16")
"""What weights may be; a network with weights of 16 bits computes in float32."""
SCORES = {"classification": "accuracy", "regression": "R2"}
"""What is measured on the test samples: the share of correct classes; or the coefficient of determination."""


def full_batch(name: str) -> bool:
    """Whether it is Rprop, which uses only signs, and those of mini-batch gradients are mostly noise."""
    return OPTIMIZERS[name][0] is proptim.Rprop


class Diverged(Exception):
    """Loss or weights are no longer finite."""


@dataclass
class Run:
    """The training run of one optimizer: its settings and its progress."""

    name: str
    seed: int
    batch_size: int
    epochs: int
    sizes: list[int] = field(default_factory=list)  # of the layers, which the data say, and so for the digest
    digest: int = 0
    lr: float | None = None  # the optimizer's own
    task: str = TASKS[0]
    param_dtype: str = PARAM_DTYPES[0]
    state_dtype: str = ""  # what the network computes in
    rounding: str = ROUNDINGS[0]
    steps: int = 0
    seconds: float = 0.0
    optimizer_seconds: float = 0.0
    loss: list[float] = field(default_factory=list)
    test_score: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state_dtype = self.state_dtype or self.network_dtype

    @property
    def full_batch(self) -> bool:
        """Whether every step sees all samples."""
        return full_batch(self.name)

    @property
    def network_dtype(self) -> str:
        """What the network computes in."""
        return "float64" if self.param_dtype == "float64" else "float32"

    @property
    def score_name(self) -> str:
        """What `test_score` is."""
        return SCORES[self.task]

    @property
    def diverged(self) -> bool:
        """Whether it ended before the last epoch because its numbers were not finite."""
        return bool(self.loss) and not math.isfinite(self.test_score[-1])

    def score_text(self) -> str:
        """The last score, formatted."""
        return f"{self.test_score[-1]:.1%}" if self.score_name == "accuracy" else f"{self.test_score[-1]:.3f}"

    def result(self) -> dict[str, Any]:
        """What --json prints."""
        score = f"test_{self.score_name.lower()}"
        loss, scores = ([x if math.isfinite(x) else None for x in xs] for xs in (self.loss, self.test_score))
        return {
            "name": self.name,
            "task": self.task,
            score: scores[-1],
            "loss": loss[-1],
            "diverged": self.diverged,
            "epochs": len(self.loss),
            "steps": self.steps,
            "seconds": self.seconds,
            "optimizer_seconds": self.optimizer_seconds,
            "lr": self.lr,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "param_dtype": self.param_dtype,
            "state_dtype": self.state_dtype,
            "rounding": self.rounding,
            "history": {"loss": loss, score: scores},
        }


def arguments(run: Run) -> dict[str, Any]:
    """What its optimizer is made with."""
    given = {**OPTIMIZERS[run.name][1], "state_dtype": run.state_dtype, "rounding": run.rounding}
    given["seed"] = run.seed % 2**64
    if run.full_batch and run.state_dtype == "int8":
        given["etas"] = ETAS_ON_GRID
    return given if run.lr is None else {**given, "lr": run.lr}


def check(run: Run, backend: Literal["c", "numba", "numpy"] | None) -> None:
    """Raise ValueError if its optimizer cannot be made, ImportError if the backend cannot run here."""
    options = {**arguments(run), "backend": backend}
    try:
        OPTIMIZERS[run.name][0]([np.zeros(1, run.network_dtype)], **options)
    except ValueError as error:
        raise ValueError(f"{run.name}: {error}") from error


def build(run: Run, data: Samples, backend: Literal["c", "numba", "numpy"] | None, threads: int | None) -> Any:
    """The estimator, not fitted yet."""
    door = require("proptim.sklearn", "the network is scikit-learn's", "write a loop: docs/start.md")
    options = {**arguments(run), "backend": backend, "threads": threads or "auto"}
    lr = options.pop("lr", None)
    make = door.MLPClassifier if run.task == "classification" else door.MLPRegressor
    estimator = make(
        run.sizes[1:-1],
        optimizer=OPTIMIZERS[run.name][0],
        lr=lr,
        optimizer_options=options,
        batch_size=min(run.batch_size, len(data.y)),
        shuffle=False,
        # Any whole number, where random_state=seed takes 32 bits.
        random_state=np.random.RandomState(np.random.MT19937(run.seed)),
    )
    estimator._param_dtype = run.param_dtype
    return estimator


def train(run: Run, estimator: Any, data: Samples) -> Iterator[None]:
    """Train up to `run.epochs`; yields after every epoch. Raises Diverged if the loss or weights are not finite."""
    classes = {} if data.classes is None else {"classes": np.arange(len(data.classes))}
    x = data.x.astype(run.network_dtype, copy=False)
    for epoch in range(len(run.loss) + 1, run.epochs + 1):
        # Depends only on seed and epoch, so that a resumed run has the same batches.
        order = np.random.default_rng((run.seed, epoch)).permutation(len(data.y))
        stepping = estimator._optimizer.seconds if epoch > 1 else 0.0
        start = perf_counter()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Training interrupted by user")  # scikit-learn's, for a KeyboardInterrupt
            try:
                estimator.partial_fit(x[order], data.y[order], **classes)
            except UserWarning:
                raise KeyboardInterrupt from None
            except ValueError:
                if not hasattr(estimator, "coefs_") or _finite(estimator):
                    raise
        run.seconds += perf_counter() - start
        run.optimizer_seconds += estimator._optimizer.seconds - stepping
        run.steps = estimator.optimizer_.steps
        run.lr = float(estimator.optimizer_.lr)
        loss = float(estimator.loss_curve_[-1])
        finite = math.isfinite(loss) and _finite(estimator)
        run.test_score.append(_score(estimator, data) if finite else math.nan)
        run.loss.append(loss if finite else math.nan)
        yield
        if run.diverged:
            raise Diverged


def _finite(estimator: Any) -> bool:
    return all(np.isfinite(weights).all() for weights in estimator.coefs_ + estimator.intercepts_)


def _score(estimator: Any, data: Samples) -> float:
    predicted = estimator.predict(data.test_x.astype(estimator.coefs_[0].dtype, copy=False))
    if data.classes is not None:
        return float(np.mean(predicted == data.test_y))
    return r2(data.test_y, predicted)


def r2(y: Array, predicted: Array) -> float:
    """The coefficient of determination: 1 - squared error over that of the mean of y."""
    y, predicted = y.astype(np.float64), predicted.astype(np.float64)
    error, spread = np.sum((y - predicted) ** 2), np.sum((y - y.mean()) ** 2)
    return float(1 - error / spread) if spread else float(error == 0)


def save(path: str, run: Run, estimator: Any, data: Samples) -> None:
    """Write the optimizer's checkpoint, with each parameter next to its state, the model, and the run."""
    model = _model.Model(
        activation=estimator.activation,
        classes=None if data.classes is None else data.classes.tolist(),
        features=data.features,
        mean=data.mean.tolist(),
        scale=data.scale.tolist(),
        y_mean=data.y_mean,
        y_scale=data.y_scale,
    )
    saved = _model.dump(estimator.optimizer_.state_dict(), model, estimator.coefs_ + estimator.intercepts_)
    checkpoint.write(path, {**saved, "run": asdict(run)})


Saved = tuple[list[Array], dict[str, Any]]
"""The parameters in a file, and the state_dict."""


def load(path: str) -> tuple[Run, Saved]:
    """What `save` wrote; ValueError for anything else."""
    try:
        saved = checkpoint.read(path)
        run = _parse(saved)
        _, params = _model.parse(saved)
        shapes = [*zip(run.sizes[:-1], run.sizes[1:], strict=True), *((size,) for size in run.sizes[1:])]
        if [p.shape for p in params] != shapes or params[0].dtype != run.network_dtype:
            raise ValueError(f"it holds no {run.network_dtype} layers of {run.sizes}")
    except ValueError as error:
        reason = error.__cause__ or error
        raise ValueError(f"{path} cannot be resumed ({reason}); expected a file that --save wrote") from error
    return run, (params, saved)


def _parse(saved: dict[str, Any]) -> Run:
    """Take the run out of a checkpoint."""
    if "run" not in saved:
        raise ValueError("it holds an optimizer and no run")
    given = saved.pop("run")
    names = {each.name for each in fields(Run)}
    # Files of earlier versions have no param_dtype, which was float32, and none of the options of the state.
    if not isinstance(given, dict) or given.keys() | {"param_dtype", "state_dtype", "rounding"} != names:
        raise ValueError("its run does not have the fields of a run")
    run = Run(**given)
    if not all(isinstance(each, list) for each in (run.sizes, run.loss, run.test_score)):
        raise ValueError("its run does not have lists of sizes, loss and test_score")
    counts = [run.batch_size, run.epochs, run.seed, run.digest, run.steps, *run.sizes]
    numbers = [run.lr, run.seconds, run.optimizer_seconds, *run.loss, *run.test_score]
    if not all(type(each) is int and each >= 0 for each in counts) or not all(
        type(each) is float and math.isfinite(each) for each in numbers
    ):
        raise ValueError("its run has values that are not counts or numbers")
    # In lists, because the values may be unhashable.
    known = run.name in [*OPTIMIZERS] and run.task in [*TASKS] and run.rounding in [*ROUNDINGS]
    known = known and run.param_dtype in [*PARAM_DTYPES] and run.state_dtype in [*STATE_DTYPES]
    if not known or not 0 < len(run.loss) == len(run.test_score) or 0 in counts[:2] or len(run.sizes) < 2:
        raise ValueError("its run has no epochs, or an unknown optimizer, task, dtype or rounding")
    return run


def restore(path: str, saved: Saved, estimator: Any, data: Samples) -> None:
    """Restore the weights and the optimizer."""
    door = require("proptim.sklearn", "the network is scikit-learn's", "write a loop: docs/start.md")
    params, state = saved
    params = [param.copy() for param in params]
    layers = len(params) // 2
    classes = None if data.classes is None else np.arange(len(data.classes))
    try:
        door.restore(estimator, params[:layers], params[layers:], classes, state)
        estimator.optimizer_  # noqa: B018 - made and loaded now, not at the first step
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit this {estimator.optimizer.__name__}: {error}") from error
