"""Hyperparameters that change over time: callables of the number of completed steps.

Any callable that takes that number and returns a number is a schedule. The ones here also have a readable `repr`, and
two with the same arguments compare equal. They raise ValueError for numbers of steps, factors and shares out of range.

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
from dataclasses import dataclass, fields
from typing import Any

from proptim._parameters import plain

Schedule = Callable[[int], float]


def _show(name: str, *args: Any, **kwargs: Any) -> str:
    parts = [repr(a) for a in args] + [f"{k}={v!r}" for k, v in kwargs.items()]
    return f"{name}({', '.join(parts)})"


def _take_numbers(schedule: Any) -> None:
    """Convert arguments to Python numbers: in the arithmetic of NumPy's a count could overflow."""
    for each in fields(schedule):
        object.__setattr__(schedule, each.name, plain(getattr(schedule, each.name)))


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value}; expected more than 0")


@dataclass(frozen=True)
class constant:
    """The same value at every step.

    Parameters
    ----------
    value : float
        The value.
    """

    value: float

    def __post_init__(self) -> None:
        _take_numbers(self)

    def __call__(self, step: int) -> float:
        return self.value

    def __repr__(self) -> str:
        return _show("constant", self.value)


@dataclass(frozen=True)
class linear:
    """Change linearly from `start` to `end`, then stay at `end`.

    Parameters
    ----------
    start, end : float
        First and last value.
    steps : int
        Number of steps of the change.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _take_numbers(self)
        _positive("steps", self.steps)

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        return self.start + (self.end - self.start) * (step / self.steps)

    def __repr__(self) -> str:
        return _show("linear", self.start, self.end, self.steps)


@dataclass(frozen=True)
class cosine:
    r"""Follow half a period of a cosine from `start` to `end`, then stay at `end`.

    .. math:: e + (s - e) \frac{1 + \cos(\pi\,t/T)}{2}

    after t of T steps, as in [1]_ without restarts and in torch.optim.lr_scheduler.CosineAnnealingLR up to T.

    Parameters
    ----------
    start : float
        First value, s.
    steps : int
        Number of steps of the change, T.
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
        _take_numbers(self)
        _positive("steps", self.steps)

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))

    def __repr__(self) -> str:
        return _show("cosine", self.start, self.steps, end=self.end)


@dataclass(frozen=True)
class warm_restarts:
    r"""Repeat `cosine`, each time from `start` and `mult` times as long as before [1]_.

    Equal to torch.optim.lr_scheduler.CosineAnnealingWarmRestarts if that is stepped after every step.

    Parameters
    ----------
    start : float
        First value of every cosine.
    steps : int
        Number of steps of the first cosine.
    mult : int, default 1
        Factor by which each cosine is longer than the previous one.
    end : float, default 0
        The value that every cosine approaches; one step later the next one starts.

    References
    ----------
    .. [1] Loshchilov & Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017.
    """

    start: float
    steps: int
    mult: int = 1
    end: float = 0.0

    def __post_init__(self) -> None:
        _take_numbers(self)
        _positive("steps", self.steps)
        if self.mult < 1 or self.mult != int(self.mult):
            raise ValueError(f"mult is {self.mult}; expected a whole number of at least 1")

    def __call__(self, step: int) -> float:
        length = self.steps
        if self.mult == 1:
            step %= length
        while step >= length:
            step, length = step - length, length * self.mult
        return cosine(self.start, length, self.end)(step)

    def __repr__(self) -> str:
        return _show("warm_restarts", self.start, self.steps, self.mult, end=self.end)


@dataclass(frozen=True)
class exponential:
    """Change smoothly by the factor `rate` in `every` steps: ``start * rate ** (step / every)``.

    Parameters
    ----------
    start : float
        First value.
    rate : float
        The factor, above 0.
    every : float, default 1
        Number of steps in which the value changes by this factor.
    """

    start: float
    rate: float
    every: float = 1

    def __post_init__(self) -> None:
        _take_numbers(self)
        _positive("rate", self.rate)
        _positive("every", self.every)

    def __call__(self, step: int) -> float:
        return float(self.start * self.rate ** (step / self.every))

    def __repr__(self) -> str:
        return _show("exponential", self.start, self.rate, every=self.every)


@dataclass(frozen=True)
class step:
    """Multiply by `factor` after every `every` steps, as torch.optim.lr_scheduler.StepLR does.

    Parameters
    ----------
    start : float
        First value.
    factor : float
        The factor.
    every : int
        Number of steps between two changes.
    """

    start: float
    factor: float
    every: int

    def __post_init__(self) -> None:
        _take_numbers(self)
        _positive("every", self.every)

    def __call__(self, step: int) -> float:
        return float(self.start * self.factor ** (step // self.every))

    def __repr__(self) -> str:
        return _show("step", self.start, self.factor, self.every)


@dataclass(frozen=True)
class one_cycle:
    """Rise from ``peak / div`` to ``peak``, then fall to ``peak / final_div``, both along half a cosine [1]_.

    Parameters
    ----------
    peak : float
        Greatest value.
    steps : int
        Number of steps of both parts together.
    warm : float, default 0.3
        The share of `steps` in which it rises.
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
        _take_numbers(self)
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
    """Rise linearly to the first value of `then`, then follow `then` from its beginning.

    The value of the first step is not 0, and the last step of the rise has the full value.

    Parameters
    ----------
    steps : int
        Number of steps of the rise.
    then : schedule or float
        The schedule that follows.
    """

    steps: int
    then: Schedule | float

    def __post_init__(self) -> None:
        _take_numbers(self)
        _positive("steps", self.steps)

    def __call__(self, step: int) -> float:
        after = self.then if callable(self.then) else constant(self.then)
        if step >= self.steps:
            return after(step - self.steps)
        return after(0) * (step + 1) / self.steps

    def __repr__(self) -> str:
        return _show("warmup", self.steps, then=self.then)


class join:
    """Follow several schedules one after the other, each from its own beginning.

    Parameters
    ----------
    first : schedule
        The first schedule.
    *rest : int and schedule in turn
        The step at which the next schedule begins, and that schedule.

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
        for boundary, schedule in zip(map(plain, boundaries), schedules, strict=True):
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


@dataclass(eq=False, repr=False)
class plateau:
    """Multiply the value by `factor` when a measure no longer improves, as ReduceLROnPlateau does.

    The optimizer asks for the value at every step. You pass a loss, or an accuracy, to `report`, once an epoch or
    whenever you measure it. Values are those of torch.optim.lr_scheduler.ReduceLROnPlateau, bit for bit.

    Parameters
    ----------
    start : float
        First value.
    factor : float, default 0.1
        The factor, below 1.
    patience : int, default 10
        Number of reports in a row without improvement that change nothing.
    threshold : float, default 1e-4
        How much better than the best so far a measure must be to count as an improvement.
    threshold_mode : {"rel", "abs"}
        Whether the threshold is relative to the best or absolute.
    cooldown : int, default 0
        Number of reports after a change that are not counted.
    end : float, default 0
        The least value; min_lr of torch.
    eps : float, default 1e-8
        A change must be greater than this; a smaller one is not made.
    mode : {"min", "max"}
        Whether a smaller measure is better, such as a loss, or a larger one, such as an accuracy.

    Attributes
    ----------
    value, best, waited, cooling
        The current value, the best report, the number of reports in a row without improvement, and the remaining
        reports of the cooldown. To resume a run, save ``vars(schedule)`` with the checkpoint, and later restore it with
        ``vars(schedule).update(saved)``.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> lr = proptim.schedules.plateau(0.1, factor=0.5, patience=1)
    >>> opt = proptim.SGD([np.zeros(3)], lr=lr)
    >>> for loss in (1.0, 0.9, 0.9, 0.9):
    ...     lr.report(loss)
    >>> opt.lr
    0.05
    """

    start: float
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    end: float = 0.0
    eps: float = 1e-8
    mode: str = "min"

    def __post_init__(self) -> None:
        _take_numbers(self)
        if not 0.0 <= self.factor < 1.0:
            raise ValueError(f"factor is {self.factor}; expected at least 0 and less than 1")
        for name, legal in (("threshold_mode", ("rel", "abs")), ("mode", ("min", "max"))):
            if getattr(self, name) not in legal:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {legal[0]!r} or {legal[1]!r}")
        self.value = self.start
        self.best = math.inf if self.mode == "min" else -math.inf
        self.waited = self.cooling = 0

    def __call__(self, step: int) -> float:
        return self.value

    def report(self, measure: float) -> None:
        """Report a loss or an accuracy, which may change the value for the following steps."""
        measure = float(measure)
        if self._better(measure):
            self.best, self.waited = measure, 0
        else:
            self.waited += 1
        if self.cooling > 0:
            self.cooling, self.waited = self.cooling - 1, 0
        if self.waited > self.patience:
            lower = max(self.value * self.factor, self.end)
            if self.value - lower > self.eps:
                self.value = lower
            self.cooling, self.waited = self.cooldown, 0

    def _better(self, measure: float) -> bool:
        if self.threshold_mode == "rel":
            share = 1.0 - self.threshold if self.mode == "min" else self.threshold + 1.0
            return measure < self.best * share if self.mode == "min" else measure > self.best * share
        return measure < self.best - self.threshold if self.mode == "min" else measure > self.best + self.threshold

    def __eq__(self, other: object) -> bool:
        return isinstance(other, plateau) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.start, self.factor, self.patience, self.mode))  # attributes that do not change

    def __repr__(self) -> str:
        return _show(
            "plateau",
            self.start,
            self.factor,
            self.patience,
            self.threshold,
            self.threshold_mode,
            cooldown=self.cooldown,
            end=self.end,
            eps=self.eps,
            mode=self.mode,
        )
