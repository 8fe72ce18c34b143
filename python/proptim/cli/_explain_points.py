"""The three experiments of `proptim explain`; every move is made by an optimizer of proptim."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

import proptim

Floats = NDArray[np.float64]
Make = Callable[[list[Floats]], proptim.Optimizer]

# Point 1: gradients nine orders of magnitude apart. From 1000 away Rprop meets both bounds of its step size
# in 150 steps, 50 on the way and 1e-6 at the end.
GRADIENTS = (1e-6, 1e3)
FAR = 1000.0
SIZES_STEPS = 150
SGD_LRS = (0.1, 1e8)  # a first move of 100 for the steep weight, and for the flat one

# Point 2: the ten mini-batches of Hinton's lecture 6e; they cancel, and their root mean square is 0.3. At the
# learning rates below an ordinary one (0.1) moves the weight by 0.001: by 0.01 * 0.1 under SGD and 0.003 * 0.1 /
# 0.3 under RMSprop.
BATCHES = (*[0.1] * 9, -0.9)
CYCLES = 20
ALPHAS = (0.9, 0.99, 0.999)
FIGURES = ("1_sizes.png", "2_mini_batches.png", "3_condition_and_saddle.png")

# Point 3: one learning rate for Adagrad, RMSprop and Adam; SGD gets the one that theory recommends for each landscape.
LR = 0.05
CONDITION = 1000.0
NEAR = 0.1  # a run has arrived when it is this close to the minimum; RMSprop oscillates at a distance of about LR / 2
RIDGES = (1e-3, 1e-6)
OFF_RIDGE = 0.5  # half way to the minimum at 1
PATIENCE = 2500  # steps; the slowest run that arrives takes about 2000
UNIT_STEPS = 10_000  # the square root is 100


@dataclass(frozen=True)
class Sizes:
    """Two weights, each on its own parabola, with the least and the greatest gradient."""

    gradients: tuple[float, ...]
    start: float
    steps: int
    sgd_lrs: tuple[float, ...]
    sgd_first_moves: list[list[float]]
    sgd_ratio: float
    sgd_left: list[float]
    rprop_moves: dict[str, float]
    rprop_left: list[float]
    rprop_difference: float
    paths: dict[str, Floats]


@dataclass(frozen=True)
class Batches:
    """One weight under gradients that cancel in every cycle."""

    gradients: tuple[float, ...]
    cycles: int
    drift: dict[str, float]
    drift_over_travel: dict[str, float]
    paths: dict[str, Floats]


@dataclass(frozen=True)
class Landscapes:
    """A ravine, a saddle and an endless slope. None: the run did not arrive within `patience` steps."""

    lr: float
    condition: float
    patience: int
    ravine_steps: dict[str, int | None]
    diagonal_ravine_steps: dict[str, int | None]
    ridges: tuple[float, ...]
    saddle_steps: dict[str, list[int | None]]
    slope_steps: int
    last_move_over_lr: dict[str, float]
    travelled: dict[str, float]
    paths: dict[str, Floats]


def numbers(point: Sizes | Batches | Landscapes) -> dict[str, object]:
    """All but the paths."""
    return {f.name: getattr(point, f.name) for f in fields(point) if f.name != "paths"}


def follow(
    make: Make,
    start: list[float],
    gradient: Callable[[Floats], Floats],
    steps: int,
    arrived: Callable[[Floats], bool] = lambda w: False,
) -> Floats:
    """Positions of the weights by step, the start first, until they have arrived."""
    w = np.array(start)
    grad = np.empty_like(w)  # always the same array, which step() need not check again
    optimizer = make([w])
    path = [w.copy()]
    while len(path) <= steps and not arrived(w):
        grad[...] = gradient(w)
        optimizer.step([grad])
        path.append(w.copy())
    return np.array(path)


def sizes() -> Sizes:
    curvature = np.array(GRADIENTS) / FAR

    def run(make: Make, steps: int) -> Floats:
        return follow(make, [FAR, FAR], lambda w: curvature * w, steps)

    sgd = run(lambda p: proptim.SGD(p, lr=SGD_LRS[0]), SIZES_STEPS)
    bold = run(lambda p: proptim.SGD(p, lr=SGD_LRS[1]), 1)
    rprop = run(proptim.Rprop, SIZES_STEPS)
    first_moves = [np.abs(path[1] - path[0]) for path in (sgd, bold)]
    moves = np.abs(np.diff(rprop, axis=0))
    return Sizes(
        gradients=GRADIENTS,
        start=FAR,
        steps=SIZES_STEPS,
        sgd_lrs=SGD_LRS,
        sgd_first_moves=[first.tolist() for first in first_moves],
        sgd_ratio=float(first_moves[0][1] / first_moves[0][0]),
        sgd_left=np.abs(sgd[-1]).tolist(),
        rprop_moves={
            "first": float(moves[0, 0]),
            "largest": float(moves.max()),
            "smallest": float(moves.min()),
        },
        rprop_left=np.abs(rprop[-1]).tolist(),
        rprop_difference=float(np.ptp(rprop, axis=1).max()),
        paths={"SGD": sgd, "Rprop": rprop},
    )


def batches() -> Batches:
    def run(make: Make) -> Floats:
        stream = itertools.cycle(np.array(BATCHES)[:, np.newaxis])
        return follow(make, [0.0], lambda w: next(stream), CYCLES * len(BATCHES))[:, 0]

    def rmsprop(alpha: float) -> Make:
        # Start the average as if in the middle of training: the experiment is not about how it fills up.
        mean_square = float(np.mean(np.square(BATCHES)))
        return lambda p: proptim.RMSprop(p, lr=3e-3, alpha=alpha, initial_square_avg=mean_square)

    paths = {
        "SGD": run(lambda p: proptim.SGD(p, lr=1e-2)),
        # Equal bounds keep the step size constant: Hinton supposes that it hardly changes within ten mini-batches.
        "Rprop": run(lambda p: proptim.Rprop(p, lr=1e-3, step_sizes=(1e-3, 1e-3))),
        "Rprop, adapting": run(lambda p: proptim.Rprop(p, lr=1e-3)),
        **{f"RMSprop, alpha {alpha}": run(rmsprop(alpha)) for alpha in ALPHAS},
    }
    drift = {name: float(path[-1]) for name, path in paths.items()}
    travel = {name: float(np.abs(np.diff(path)).sum()) for name, path in paths.items()}
    return Batches(
        gradients=BATCHES,
        cycles=CYCLES,
        drift=drift,
        drift_over_travel={name: abs(drift[name]) / travel[name] for name in paths},
        paths=paths,
    )


def landscapes() -> Landscapes:
    adaptive: dict[str, Make] = {
        "Adagrad": lambda p: proptim.Adagrad(p, lr=LR),
        "RMSprop": lambda p: proptim.RMSprop(p, lr=LR),
        "Adam": lambda p: proptim.Adam(p, lr=LR),
    }
    paths: dict[str, Floats] = {}

    # A ravine along an axis, (x^2 + 1000 y^2) / 2, and the same ravine turned by 45 degrees.
    curvature = np.array([1.0, CONDITION])
    turn = np.array([[1.0, -1.0], [1.0, 1.0]]) / math.sqrt(2)
    ravine: dict[str, int | None] = {}
    diagonal: dict[str, int | None] = {}
    # 2 / (least + greatest curvature) is the fastest constant rate of SGD on a quadratic.
    for name, make in {"SGD": lambda p: proptim.SGD(p, lr=2 / curvature.sum()), **adaptive}.items():
        for steps, axes in ((ravine, np.eye(2)), (diagonal, turn)):
            hessian = axes @ np.diag(curvature) @ axes.T
            path = follow(make, list(axes @ [-1.0, 1.0]), hessian.dot, PATIENCE, near)
            steps[name] = arrival(path, near)
            paths.setdefault(f"ravine {name}", path)

    # A saddle between minima at y = -1 and 1: x^2/2 - y^2/2 + y^4/4.
    saddle: dict[str, list[int | None]] = {}
    # 1 / (greatest curvature, 2 at the minima) is the textbook's safe rate of SGD.
    for name, make in {"SGD": lambda p: proptim.SGD(p, lr=1 / 2), **adaptive}.items():
        tries = [follow(make, [1.0, y], saddle_gradient, PATIENCE, off_ridge) for y in RIDGES]
        saddle[name] = [arrival(path, off_ridge) for path in tries]
        paths[f"saddle {name}"] = tries[-1]

    last: dict[str, float] = {}
    travelled: dict[str, float] = {}
    for name in ("Adagrad", "RMSprop"):
        path = follow(adaptive[name], [0.0], np.ones_like, UNIT_STEPS)[:, 0]
        moves = paths[f"slope {name}"] = np.abs(np.diff(path))
        last[name], travelled[name] = float(moves[-1] / LR), float(moves.sum())

    return Landscapes(
        lr=LR,
        condition=CONDITION,
        patience=PATIENCE,
        ravine_steps=ravine,
        diagonal_ravine_steps=diagonal,
        ridges=RIDGES,
        saddle_steps=saddle,
        slope_steps=UNIT_STEPS,
        last_move_over_lr=last,
        travelled=travelled,
        paths=paths,
    )


def arrival(path: Floats, arrived: Callable[[Floats], bool]) -> int | None:
    """How many steps it took, None if it did not arrive."""
    return len(path) - 1 if arrived(path[-1]) else None


def near(w: Floats) -> bool:
    return bool(np.linalg.norm(w) < NEAR)


def off_ridge(w: Floats) -> bool:
    return bool(abs(w[1]) > OFF_RIDGE)


def saddle_gradient(w: Floats) -> Floats:
    return np.array([w[0], w[1] ** 3 - w[1]])
