"""The options that all optimizers take, and what happens when one is set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from proptim._interrupts import commit
from proptim._parameters import Schedulable, Shown, at_step, frozen, listed


class Options(TypedDict, total=False):
    """Keyword options that every optimizer takes; see `Optimizer`."""

    grads: Any
    publish: Any
    weight_decay: Schedulable
    decoupled_weight_decay: bool
    maximize: bool
    clip_value: Schedulable | None
    lazy_rows: bool
    ema: Schedulable | None
    clip_norm: Schedulable | None
    grad_scale: Schedulable
    nonfinite: Literal["propagate", "skip", "raise"]
    max_skips: int | None
    zero_grads: bool
    flush_denormals: bool
    master: Literal["auto", "split", "float32"] | None
    state_dtype: str | Mapping[str, str] | None
    rounding: Literal["nearest", "stochastic"]
    seed: int
    cast_grads: bool
    threads: int | Literal["auto"]
    backend: Literal["c", "numba", "numpy"] | None


GROUP_OPTIONS: dict[str, Any] = {
    "weight_decay": 0.0,
    "decoupled_weight_decay": False,
    "maximize": False,
    "clip_value": None,
}
"""The options that a parameter group may override and that have a meaning for each step alone, with their defaults."""

OBJECT_OPTIONS: dict[str, Any] = {"lazy_rows": True, "ema": None}
"""Those that a parameter group may override and that are about what it keeps besides the state of its rule."""


SETTINGS: dict[str, Any] = {
    "clip_norm": None,
    "grad_scale": 1.0,
    "nonfinite": "propagate",
    "max_skips": None,
    "zero_grads": False,
    "flush_denormals": False,
    "master": "auto",
    "state_dtype": None,
    "rounding": "nearest",
    "seed": 0,
    "cast_grads": False,
    "threads": "auto",
    "backend": None,
}
"""The options of a whole optimizer, with their defaults."""


def as_shown(value: Any) -> Any:
    """The value of an option; a dict, which is fixed at construction, raises an error when it is changed."""
    return Shown(value, "make a new optimizer") if isinstance(value, dict) else value


class Hyperparameter:
    """A hyperparameter as an attribute: reading gives its value at the next step, setting sets it in every group."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        return self if optimizer is None else at_step(self.common(optimizer), optimizer.steps)

    def __set__(self, optimizer: Any, value: Any) -> None:
        self.common(optimizer)
        groups, value = optimizer.param_groups, frozen(value)
        for group in groups:
            group.check_key(self.name)
        commit([(group.data, self.name, value) for group in groups], [s for group in groups for s in group.changed()])

    def common(self, optimizer: Any) -> Any:
        """The value in all groups, ValueError if they differ."""
        values = [group[self.name] for group in optimizer.param_groups]
        if any(value is not values[0] and value != values[0] for value in values):
            raise ValueError(
                f"{self.name} differs between parameter groups: {listed(values)}; expected one for all: read or set "
                f"it in each of param_groups, as in param_groups[0][{self.name!r}]"
            )
        return values[0]


class Setting:
    """An option of a whole optimizer: a change is checked at once, or an error if it is fixed."""

    def __init__(self, *, fixed: bool = False) -> None:
        self.fixed = fixed

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        return self if optimizer is None else as_shown(optimizer._stepper.settings[self.name])

    def __set__(self, optimizer: Any, value: Any) -> None:
        if self.fixed:
            raise AttributeError(f"{self.name} is fixed at construction; expected no change: make a new optimizer")
        optimizer._stepper.set(self.name, frozen(value))

    def __delete__(self, optimizer: Any) -> None:
        raise AttributeError(
            f"{self.name} is an option, which cannot be removed; expected a value: set it to {SETTINGS[self.name]!r}, "
            "the default"
        )
