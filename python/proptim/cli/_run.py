"""A training run of `proptim train`: the optimizers, the loop, and the file that a run is kept in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from time import perf_counter
from typing import Any, Literal

import numpy as np

import proptim
from proptim import checkpoint
from proptim.cli._digits import Perceptron, Samples
from proptim.rprop import VARIANTS

# The published learning rates do well here. SGD has none: its rate always belongs to the task.
SPECIAL: dict[str, dict[str, dict[str, Any]]] = {
    "sgd": {"sgd": {"lr": 0.1}},
    "rprop": {variant: {"variant": variant} for variant in VARIANTS},
}
OPTIMIZERS: dict[str, tuple[Callable[..., proptim.Optimizer], dict[str, Any]]] = {
    name: (cls, options)
    for rule, cls in proptim.OPTIMIZERS.items()
    for name, options in SPECIAL.get(rule, {rule: {}}).items()
}


def full_batch(name: str) -> bool:
    """Rprop looks at signs alone, and those of mini-batches are mostly noise."""
    return OPTIMIZERS[name][0] is proptim.Rprop


@dataclass
class Run:
    """The training of one optimizer: what it is, and how far it has come."""

    name: str
    seed: int
    sizes: list[int]
    batch_size: int
    digest: int
    epochs: int
    lr: float | None = None  # the optimizer's own
    steps: int = 0
    seconds: float = 0.0
    optimizer_seconds: float = 0.0
    loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)

    @property
    def full_batch(self) -> bool:
        """Whether every step sees all samples."""
        return full_batch(self.name)

    def result(self) -> dict[str, Any]:
        """What --json prints."""
        return {
            "name": self.name,
            "test_accuracy": self.test_accuracy[-1],
            "loss": self.loss[-1] if math.isfinite(self.loss[-1]) else None,
            "epochs": len(self.loss),
            "steps": self.steps,
            "seconds": self.seconds,
            "optimizer_seconds": self.optimizer_seconds,
            "lr": self.lr,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }


def build(
    run: Run, backend: Literal["c", "numba", "numpy"] | None, threads: int | None
) -> tuple[Perceptron, proptim.Optimizer]:
    """The network as the seed draws it, and the optimizer bound to it."""
    network = Perceptron(run.sizes, run.seed)
    rule, options = OPTIMIZERS[run.name]
    if run.lr is not None:
        options = {**options, "lr": run.lr}
    optimizer = rule(network.params, grads=network.grads, backend=backend, threads=threads or "auto", **options)
    run.lr = optimizer.lr
    return network, optimizer


def train(run: Run, network: Perceptron, data: Samples, optimizer: proptim.Optimizer) -> Iterator[None]:
    """Train up to `run.epochs`; yields after every epoch."""
    for epoch in range(len(run.loss) + 1, run.epochs + 1):
        # Drawn from seed and epoch alone, so that a resumed run meets the same batches.
        order = np.random.default_rng((run.seed, epoch)).permutation(len(data.y))
        start, stepping, total = perf_counter(), 0.0, 0.0
        for first in range(0, len(order), run.batch_size):
            batch = order[first : first + run.batch_size]
            loss = network.backward(data.x[batch], data.y[batch])  # fills the gradients that are bound
            before = perf_counter()
            optimizer.step(loss=loss)
            stepping += perf_counter() - before
            total += loss * len(batch)
        run.seconds += perf_counter() - start
        run.optimizer_seconds += stepping
        run.steps = optimizer.steps
        run.test_accuracy.append(network.accuracy(data.test_x, data.test_y))
        run.loss.append(total / len(order))
        yield


def save(path: str, run: Run, network: Perceptron, optimizer: proptim.Optimizer) -> None:
    """Write the optimizer's checkpoint with each parameter beside its state, and the run."""
    saved = optimizer.state_dict()
    for i, param in enumerate(network.params):
        saved["state"][i]["param"] = param
    checkpoint.write(path, {**saved, "run": asdict(run)})


def load(path: str) -> tuple[Run, dict[str, Any]]:
    """What `save` wrote; ValueError for anything else."""
    try:
        saved = checkpoint.read(path)
        return _parse(saved), saved
    except ValueError as error:
        reason = error.__cause__ or error
        raise ValueError(f"{path} cannot be resumed ({reason}); expected a file that --save wrote") from error


def _parse(saved: dict[str, Any]) -> Run:
    """Take the run out of a checkpoint."""
    if "run" not in saved:
        raise ValueError("it holds an optimizer and no run")
    given = saved.pop("run")
    if not isinstance(given, dict) or given.keys() != {each.name for each in fields(Run)}:
        raise ValueError("its run has not the fields of a run")
    run = Run(**given)
    if not all(isinstance(each, list) for each in (run.sizes, run.loss, run.test_accuracy)):
        raise ValueError("its run has no lists of sizes, loss and test_accuracy")
    counts = [run.batch_size, run.epochs, run.seed, run.digest, run.steps, *run.sizes]
    numbers = [run.lr, run.seconds, run.optimizer_seconds, *run.loss, *run.test_accuracy]
    if not all(type(each) is int and each >= 0 for each in counts) or not all(type(each) is float for each in numbers):
        raise ValueError("its run has values that are no counts or numbers")
    known = run.name in [*OPTIMIZERS]  # in the dict, what cannot be hashed would be an error
    if not known or not 0 < len(run.loss) == len(run.test_accuracy) or 0 in counts[:2]:
        raise ValueError("its run has no epochs, or an optimizer that is not known")
    shapes = [shape for sizes in pairwise(run.sizes) for shape in (sizes, sizes[1:])]
    params = [entry.get("param") if isinstance(entry, dict) else None for entry in saved["state"].values()]
    if len(shapes) < 2 or [getattr(p, "shape", None) for p in params] != shapes:
        raise ValueError(f"it holds no layers of {run.sizes}")
    return run


def restore(path: str, saved: dict[str, Any], network: Perceptron, optimizer: proptim.Optimizer) -> None:
    """Put network and optimizer where they were."""
    params = [saved["state"][i].pop("param") for i in range(len(network.params))]
    try:
        for i, (param, kept) in enumerate(zip(network.params, params, strict=True)):
            if kept.dtype != param.dtype:
                raise TypeError(f"param of state {i} is {kept.dtype.name}; expected {param.dtype.name}")
        optimizer.load_state_dict(saved)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit this {type(optimizer).__name__}: {error}") from error
    for param, kept in zip(network.params, params, strict=True):
        param[...] = kept
