"""A training run of `proptim train`: the optimizers, the loop, and the file that a run is kept in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import Any, Literal

import numpy as np

import proptim
from proptim import checkpoint
from proptim.cli._digits import Perceptron, Samples

# The published learning rates do well here. SGD has none: its rate always belongs to the task.
OPTIMIZERS: dict[str, tuple[Callable[..., proptim.Optimizer], dict[str, Any]]] = {
    "sgd": (proptim.SGD, {"lr": 0.1}),
    "rprop-": (proptim.Rprop, {"variant": "rprop-"}),
    "irprop-": (proptim.Rprop, {"variant": "irprop-"}),
    "rprop+": (proptim.Rprop, {"variant": "rprop+"}),
    "irprop+": (proptim.Rprop, {"variant": "irprop+"}),
    "rmsprop": (proptim.RMSprop, {}),
    "adagrad": (proptim.Adagrad, {}),
    "adadelta": (proptim.Adadelta, {}),
    "adam": (proptim.Adam, {}),
    "adamw": (proptim.AdamW, {}),
    "nadam": (proptim.NAdam, {}),
    "lion": (proptim.Lion, {}),
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
        if "run" not in saved:
            raise ValueError("it holds an optimizer and no run")
        run = Run(**saved.pop("run"))
        shapes = [shape for sizes in pairwise(run.sizes) for shape in (sizes, sizes[1:])]
        if run.name not in OPTIMIZERS or [saved["state"][i]["param"].shape for i in range(len(shapes))] != shapes:
            raise ValueError(f"not {run.name} with layers of {run.sizes}")
    except OSError:
        raise
    except Exception as error:  # whatever a damaged file leads zipfile, zlib, NumPy or this function to raise
        reason = error.__cause__ or error
        raise ValueError(f"{path} cannot be resumed ({reason}); expected a file that --save wrote") from error
    return run, saved


def restore(saved: dict[str, Any], network: Perceptron, optimizer: proptim.Optimizer) -> None:
    """Put network and optimizer where they were."""
    for i, param in enumerate(network.params):
        param[...] = saved["state"][i].pop("param")
    optimizer.load_state_dict(saved)
