"""Hyperparameters that change over time: callables of the number of completed steps.

Any callable that takes that number and returns a number is a schedule. These also print what they are and compare equal
when they are the same. Each raises ValueError for numbers of steps, factors and shares that are out of range.

Examples
--------
>>> from proptim import schedules
>>> lr = schedules.warmup(100, then=schedules.cosine(1e-3, 900))
>>> lr
warmup(100, then=cosine(0.001, 900, end=0.0))
>>> lr(49), lr(100), lr(1000)
(0.0005, 0.001, 0.0)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Schedule = Callable[[int], float]


def _show(name: str, *args: Any, **kwargs: Any) -> str:
    parts = [repr(a) for a in args] + [f"{k}={v!r}" for k, v in kwargs.items()]
    return f"{name}({', '.join(parts)})"


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value}; expected more than 0")


@dataclass(frozen=True)
class constant:
    """The same at every step.

    Parameters
    ----------
    value : float
        That.
    """

    value: float

    def __call__(self, step: int) -> float:
        return self.value

    def __repr__(self) -> str:
        return _show("constant", self.value)


@dataclass(frozen=True)
class linear:
    """In a straight line from `start` to `end`, then `end`.

    Parameters
    ----------
    start, end : float
        First and last value.
    steps : int
        How many steps the line takes.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _positive("steps", self.steps)

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        return self.start + (self.end - self.start) * (step / self.steps)

    def __repr__(self) -> str:
        return _show("linear", self.start, self.end, self.steps)


@dataclass(frozen=True)
class cosine:
    r"""Half a cosine from `start` to `end`, then `end`.

    .. math:: e + (s - e) \frac{1 + \cos(\pi\,t/T)}{2}

    after t of T steps, as in [1]_ without restarts and in torch.optim.lr_scheduler.CosineAnnealingLR up to T.

    Parameters
    ----------
    start : float
        First value, s.
    steps : int
        How many steps it takes, T.
    end : float, default 0
        Last value, e.

    References
    ----------
    .. [1] Loshchilov & Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017.
    """

    start: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        _positive("steps", self.steps)

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))

    def __repr__(self) -> str:
        return _show("cosine", self.start, self.steps, end=self.end)


@dataclass(frozen=True)
class exponential:
    """Smoothly, times `rate` in `every` steps: ``start * rate ** (step / every)``.

    Parameters
    ----------
    start : float
        First value.
    rate : float
        Factor, above 0.
    every : float, default 1
        In how many steps.
    """

    start: float
    rate: float
    every: float = 1

    def __post_init__(self) -> None:
        _positive("rate", self.rate)
        _positive("every", self.every)

    def __call__(self, step: int) -> float:
        return float(self.start * self.rate ** (step / self.every))

    def __repr__(self) -> str:
        return _show("exponential", self.start, self.rate, every=self.every)


@dataclass(frozen=True)
class step:
    """In stairs: times `factor` at once after each `every` steps, as torch.optim.lr_scheduler.StepLR.

    Parameters
    ----------
    start : float
        First value.
    factor : float
        What a stair multiplies by.
    every : int
        Steps of one stair.
    """

    start: float
    factor: float
    every: int

    def __post_init__(self) -> None:
        _positive("every", self.every)

    def __call__(self, step: int) -> float:
        return float(self.start * self.factor ** (step // self.every))

    def __repr__(self) -> str:
        return _show("step", self.start, self.factor, self.every)


@dataclass(frozen=True)
class one_cycle:
    """Up from ``peak / div`` to ``peak`` and down to ``peak / final_div``, both by cosine [1]_.

    Parameters
    ----------
    peak : float
        Greatest value.
    steps : int
        How many steps it takes, up and down.
    warm : float, default 0.3
        The share of `steps` that goes up.
    div, final_div : float, default 25 and 25e4
        What `peak` is divided by at the beginning and at the end.

    Notes
    -----
    The defaults are those of torch's OneCycleLR, whose final divisor of 1e4 counts from the start of the cycle and not
    from its peak.

    References
    ----------
    .. [1] Smith & Topin, "Super-convergence: very fast training of neural networks using large learning rates", 2018.
    """

    peak: float
    steps: int
    warm: float = 0.3
    div: float = 25.0
    final_div: float = 25.0 * 1e4

    def __post_init__(self) -> None:
        _positive("steps", self.steps)
        _positive("div", self.div)
        _positive("final_div", self.final_div)
        if not 0.0 < self.warm < 1.0:
            raise ValueError(f"warm is {self.warm}; expected more than 0 and less than 1")

    def __call__(self, step: int) -> float:
        up = self.warm * self.steps
        if step < up:
            return cosine(self.peak / self.div, up, self.peak)(step)  # type: ignore[arg-type]
        return cosine(self.peak, self.steps - up, self.peak / self.final_div)(step - up)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return _show("one_cycle", self.peak, self.steps, warm=self.warm, div=self.div, final_div=self.final_div)


@dataclass(frozen=True)
class warmup:
    """In a straight line up to the first value of `then`, then `then` from its beginning.

    The first step already moves, and the last one of the line is at full height.

    Parameters
    ----------
    steps : int
        How many steps the line takes.
    then : schedule or float
        What comes after it.
    """

    steps: int
    then: Schedule | float

    def __post_init__(self) -> None:
        _positive("steps", self.steps)

    def __call__(self, step: int) -> float:
        after = self.then if callable(self.then) else constant(self.then)
        if step >= self.steps:
            return after(step - self.steps)
        return after(0) * (step + 1) / self.steps

    def __repr__(self) -> str:
        return _show("warmup", self.steps, then=self.then)


class join:
    """One schedule after the other, each from its own beginning.

    Parameters
    ----------
    first : schedule
        What begins.
    *rest : int and schedule in turn
        When the next one takes over, and what it is.

    Examples
    --------
    >>> from proptim import schedules
    >>> lr = schedules.join(schedules.constant(0.1), 100, schedules.linear(0.1, 0.0, 400))
    >>> lr(99), lr(300), lr(500)
    (0.1, 0.05, 0.0)
    """

    def __init__(self, first: Schedule, *rest: int | Schedule) -> None:
        self.parts: list[tuple[int, Schedule]] = [(0, first)]
        boundaries, schedules = rest[0::2], rest[1::2]
        if len(boundaries) != len(schedules):
            raise ValueError(f"join got {1 + len(rest)} arguments; expected schedule, step, schedule, ...")
        for boundary, schedule in zip(boundaries, schedules, strict=True):
            if callable(boundary) or not callable(schedule) or boundary <= self.parts[-1][0]:
                raise ValueError(f"join got {boundary!r}, {schedule!r}; expected a later step and a schedule")
            self.parts.append((boundary, schedule))

    def __call__(self, step: int) -> float:
        begin, schedule = max((part for part in self.parts if part[0] <= step), key=lambda part: part[0])
        return schedule(step - begin)

    def __repr__(self) -> str:
        (_, first), *rest = self.parts
        return _show("join", first, *(item for part in rest for item in part))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, join) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(tuple(self.parts))
