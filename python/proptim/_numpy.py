"""The `numpy` backend: the rule's own text over whole arrays. Also the oracle of all tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from proptim import _stages
from proptim._arrays import Array

if TYPE_CHECKING:
    from proptim._parameters import Clock, Parameter, Values
    from proptim.optimizer import Optimizer

Advance = Callable[["Values", "Clock", "float | None"], "tuple[tuple[float, ...], Clock]"]
"""`Optimizer.advance`."""
Segment = tuple["Array | None", ...]
"""params, then the state arrays of a rule, all real and of one dtype; None for a state array that is off."""

BUSY = "this optimizer is being stepped by another thread; expected one thread at a time: use a lock"

LANES, BLOCK = 16, 4096
"""Shape of the sum of squares, the same in `csrc/reduce.c`: see `sum_of_squares`."""


class Claim:
    """Holds the plan of an optimizer for one thread: `with claim:`. A second thread is told so and does not wait."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            raise RuntimeError(BUSY)

    def __exit__(self, *exc: object) -> None:
        self.lock.release()


class Plan:
    """One rule bound to the arrays it steps. The same surface as the compiled `_core.Plan`."""

    def __init__(
        self,
        optimizer: type[Optimizer],
        segments: Sequence[Segment],
        threads: int,
        auto: bool,
        before: Plan | None = None,
    ) -> None:
        self.rule = optimizer.rule
        self.coefs = len(optimizer.coef_names)
        self.segments = [[param, None, *state] for param, *state in segments]
        self.row_of = [0] * len(segments)
        self.clocks: list[Clock] = []
        self.disjoint = False  # `offer` tells nothing here
        self.claim: Claim = Claim() if before is None else before.claim
        self.steps: int = 0 if before is None else before.steps

    def bind(self, grads: Sequence[Array | None]) -> None:
        """Point every segment at its gradient of this step, or at none. The caller has checked them."""
        for segment, grad in zip(self.segments, grads, strict=True):
            segment[1] = grad

    def assign(self, row_of: Sequence[int], clocks: list[Clock]) -> None:
        """Say which row of coefficients each segment uses, and the clock of each row."""
        self.row_of, self.clocks = list(row_of), clocks

    def reduce(self, only: int = -1) -> tuple[float, bool]:
        """Sum of squares of all bound gradients (or one), and whether every one of them is finite."""
        grads = [s[1] for s in (self.segments if only < 0 else self.segments[only : only + 1])]
        return sum_of_squares([g for g in grads if g is not None])

    def offer(self, grads: list[Any]) -> bool:
        """Bind these gradients if they evidently fit; False, and nothing done, if that needs a closer look."""
        return False

    def offer_one(self, i: int, grad: Any) -> bool:
        """`offer` for one segment."""
        return False

    def repeat(
        self, optimizer: Optimizer, grads: list[Any] | None, advance: Advance | None, values: list[Values | None]
    ) -> bool:
        """A step like the last one, after `offer` if there are gradients; claims the plan by itself.

        False where it cannot be told that it is: here always, for the short way is only for speed.
        """
        return False

    def step(self, rows: Sequence[Sequence[float] | None], clocks: list[Clock], begun: set[int] | None = None) -> None:
        """One step of every segment with the coefficients of its row, after which the clocks are these.

        A row is the rule's coefficients followed by those of the stages; a row that is None is not stepped. `begun`,
        what `step_one` has stepped of a round, is then empty.
        """
        for segment, row in zip(self.segments, self.row_of, strict=True):
            coefs = rows[row]
            if coefs is not None and segment[1] is not None:
                self._run(segment, coefs)
        self.clocks = clocks
        self.steps += 1
        if begun is not None:
            begun.clear()

    def step_one(self, index: int, row: Sequence[float], parameter: Parameter, clock: Clock, begun: set[int]) -> None:
        """One step of one segment, after which this is the clock of its parameter.

        `begun` are the segments that have been stepped of this round; one that is among them begins another.
        """
        self._run(self.segments[index], row)
        parameter.clock = clock
        if not begun or index in begun:
            self.steps += 1
            begun.clear()
        begun.add(index)

    def _run(self, segment: Sequence[Array | None], row: Sequence[float]) -> None:
        param, grad, *state = segment
        assert param is not None
        assert grad is not None
        real = param.dtype.type
        decay, scale, clip, l2, zero, flush = row[self.coefs :]
        with np.errstate(all="ignore"):  # IEEE all the way: inf and NaN are results here, not errors
            coefs = [real(c) for c in row]
            factor = dict(zip(_stages.NEUTRAL, coefs[self.coefs :], strict=True))
            seen: Any = grad
            if decay != _stages.NEUTRAL["decay"]:
                param[...] = _stages.decay(param, factor["decay"])
            if scale != _stages.NEUTRAL["scale"]:
                seen = _stages.scale(seen, factor["scale"])
            if clip != _stages.NEUTRAL["clip"]:
                seen = _stages.clip(seen, factor["clip"])
            if l2 != _stages.NEUTRAL["l2"]:
                seen = _stages.l2(seen, param, factor["l2"])
            self._apply(param, seen, state, tuple(coefs[: self.coefs]))
            if zero != _stages.NEUTRAL["zero"]:
                grad[...] = 0
            if flush != _stages.NEUTRAL["flush"]:
                for array in state:
                    if array is not None:
                        array[...] = _stages.flush(array, np.finfo(real).smallest_normal)

    def _apply(self, param: Array, grad: Array, state: Sequence[Array | None], coefs: tuple[Any, ...]) -> None:
        arrays = (param, *state)
        for array, new in zip(arrays, self.rule(param, grad, *state, *coefs), strict=True):
            if array is not None:
                array[...] = new


def sum_of_squares(grads: Sequence[Array]) -> tuple[float, bool]:
    """Sum of squares of all elements in float64, and whether all are finite; `grads` are real arrays.

    The order of the additions is fixed, so that every backend and thread count gives the same bits: elements in C
    order are dealt to 16 lanes, each lane adds up its 256 squares of a block of 4096, the lanes and then the
    blocks of all arrays are added in pairs, neighbours first.
    """
    finite = True
    partials = []
    with np.errstate(all="ignore"):
        for grad in grads:
            finite = finite and bool(np.isfinite(grad).all())
            padded = np.zeros(-(-grad.size // BLOCK) * BLOCK)  # adding a zero square is exact
            padded[: grad.size] = grad.reshape(-1)
            squares = (padded * padded).reshape(-1, BLOCK // LANES, LANES)
            lanes = np.zeros((len(squares), LANES))
            for i in range(BLOCK // LANES):
                lanes += squares[:, i]
            while lanes.shape[1] > 1:
                lanes = lanes[:, 0::2] + lanes[:, 1::2]
            partials.append(lanes[:, 0])
        tree = np.concatenate([*partials, np.zeros(1)])
        while len(tree) > 1:
            if len(tree) % 2:
                tree = np.append(tree, 0.0)
            tree = tree[0::2] + tree[1::2]
    return float(tree[0]), finite
