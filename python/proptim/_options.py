"""The options that all optimizers take, and how a change of one is noticed."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from proptim._parameters import Schedulable, frozen


class Options(TypedDict, total=False):
    """Keyword options that every optimizer takes; see `Optimizer`."""

    grads: Any
    weight_decay: Schedulable
    decoupled_weight_decay: bool
    maximize: bool
    clip_value: Schedulable | None
    clip_norm: Schedulable | None
    grad_scale: Schedulable
    nonfinite: Literal["propagate", "skip", "raise"]
    max_skips: int | None
    zero_grads: bool
    flush_denormals: bool
    threads: int | Literal["auto"]
    backend: Literal["c", "numba", "numpy"] | None


GROUP_OPTIONS: dict[str, Any] = {
    "weight_decay": 0.0,
    "decoupled_weight_decay": False,
    "maximize": False,
    "clip_value": None,
}
"""The options that a parameter group may override, with their defaults."""


class Hyperparameter:
    """A hyperparameter as an attribute: reads the first group's value, sets every group's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        return self if optimizer is None else optimizer.param_groups[0][self.name]

    def __set__(self, optimizer: Any, value: Any) -> None:
        for group in optimizer.param_groups:
            group[self.name] = value


class Setting:
    """An option of a whole optimizer: a change is looked at before the next step, or refused where it has no effect."""

    def __init__(self, fixed: bool = False) -> None:
        self.fixed = fixed

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        return self if optimizer is None else vars(optimizer)[self.name]

    def __set__(self, optimizer: Any, value: Any) -> None:
        if self.fixed and self.name in vars(optimizer):
            raise AttributeError(f"{self.name} is fixed at construction; expected no change: make a new optimizer")
        vars(optimizer)[self.name] = frozen(value)
        optimizer._ready = optimizer._quick = False
