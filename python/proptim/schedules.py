"""Hyperparameters that change over time: callables of the number of completed steps.

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
    """`value` at every step."""

    value: float

    def __call__(self, step: int) -> float:
        return self.value

    def __repr__(self) -> str:
        return _show("constant", self.value)


@dataclass(frozen=True)
class linear:
    """In a straight line from `start` to `end` over `steps` steps, then `end`."""

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
    """Half a cosine from `start` to `end` over `steps` steps, then `end` (Loshchilov & Hutter 2017, SGDR)."""

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
    """`start * rate ** (step / every)`: smoothly, times `rate` in `every` steps."""

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
    """`start`, times `factor` at once after each `every` steps, as torch.optim.lr_scheduler.StepLR."""

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
    """Up from `peak / div` to `peak` and down to `peak / final_div`, both by cosine (Smith & Topin 2018).

    `warm` is the share of `steps` that goes up; the defaults are those of torch's OneCycleLR, whose final divisor of
    1e4 counts from the start of the cycle and not from its peak.
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
    """In a straight line up to the first value of `then` over `steps` steps, then `then` from its beginning."""

    steps: int
    then: Schedule | float

    def __post_init__(self) -> None:
        _positive("steps", self.steps)

    def __call__(self, step: int) -> float:
        after = self.then if callable(self.then) else constant(self.then)
        if step >= self.steps:
            return after(step - self.steps)
        return after(0) * (step + 1) / self.steps  # the first step already moves, the last one is at full height

    def __repr__(self) -> str:
        return _show("warmup", self.steps, then=self.then)


class join:
    """One schedule after the other: `join(a, 100, b, 500, c)` changes at steps 100 and 500.

    Each starts at its own beginning.
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
