"""What an optimizer steps: parameters, their groups, and gradients matched to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from proptim._arrays import Array, as_array, check_disjoint, check_writable, is_array

Clock = tuple[float, ...]
"""The numbers in the state of a parameter: the steps it has made, and what else its rule counts."""
Values = Mapping[str, Any]
"""The hyperparameters of a group with every schedule evaluated."""
Schedulable = float | Callable[[int], float]
"""A number, or a callable of the number of completed steps that returns one."""


@dataclass(eq=False)
class Parameter:
    """One parameter array with all that belongs to it."""

    place: str
    name: str | None
    given: Any
    array: Array
    group: Group
    clock: Clock
    state: dict[str, Array] = field(default_factory=dict)
    home: int | None = None
    """Where a tensor of torch lay when it was taken; None for what cannot be given other memory."""

    def __post_init__(self) -> None:
        self.take_home()

    def take_home(self) -> None:
        """Note where the tensor lies."""
        self.home = self.given.data_ptr() if hasattr(self.given, "data_ptr") else None

    def check_home(self) -> None:
        """Raise ValueError if a tensor has been given other memory since, which `tensor.data = ...` and `.to()` do."""
        if self.home is not None and self.given.data_ptr() != self.home:
            raise ValueError(
                f"{self.label} has been given other memory since the optimizer was made; expected it to stay where it "
                "was: make a new optimizer, or take proptim.torch, which looks at every step"
            )

    @property
    def label(self) -> str:
        """How messages name the parameter."""
        return f"params{self.place}"

    @property
    def grad_label(self) -> str:
        """How messages name its gradient."""
        return f"grads{self.place}"

    def check_like(self, array: Array, label: str) -> None:
        """Raise unless `array` has the dtype and shape of this parameter."""
        if array.dtype != self.array.dtype:
            raise TypeError(
                f"{label} is {array.dtype.name}; expected {self.array.dtype.name}, the dtype of {self.label}: "
                "convert it with .astype"
            )
        if array.shape != self.array.shape:
            raise ValueError(f"{label} has shape {array.shape}; expected {self.array.shape}, the shape of {self.label}")


class Group(MutableMapping[str, Any]):
    """The hyperparameters of one parameter group: a dict whose changes take effect at the next step."""

    def __init__(self, items: Mapping[str, Any], fixed: frozenset[str]) -> None:
        self.fixed = fixed
        self.data = {key: value if key == "params" else frozen(value) for key, value in items.items()}
        self.touched()

    def touched(self) -> None:
        """Have the values evaluated and checked again before the next step."""
        self.values_now: Values | None = None
        self.scheduled = any(is_schedule(value) for value in self.data.values())

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self.data:
            raise ValueError(f"unknown hyperparameter {key!r}; known here: {', '.join(sorted(self.data))}")
        if key in self.fixed or key == "params":
            raise ValueError(f"{key!r} has no effect after construction; expected no change: make a new optimizer")
        self.data[key] = frozen(value)
        self.touched()

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return repr(self.data)

    def __delitem__(self, key: str) -> None:
        raise ValueError(f"hyperparameter {key!r} cannot be removed; set it to the value wanted instead")

    def at(self, steps: int) -> dict[str, Any]:
        """The hyperparameters with schedules evaluated after `steps` completed steps."""
        return {k: at_step(v, steps) for k, v in self.data.items() if k != "params"}


def frozen(value: Any) -> Any:
    """A hyperparameter in a form that cannot change unseen: no list, no array, not even one of a single number."""
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
        return tuple(map(plain, value))
    return plain(value)


def plain(value: Any) -> Any:
    """A number for a float32 scalar, an array or a tensor of one element, which bring their own arithmetic."""
    if isinstance(value, (int, float, np.integer, np.bool_)) or not hasattr(value, "__float__"):
        return value
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # no single number: refused in words where it is used
        return value


def is_schedule(value: Any) -> bool:
    """Whether a hyperparameter, or an element of a pair of them, is a callable of the step count."""
    return callable(value) or (isinstance(value, tuple) and any(map(callable, value)))


def at_step(value: Any, steps: int) -> Any:
    """Evaluate what may be a schedule after `steps` completed steps."""
    if callable(value):
        value = value(steps)
    if isinstance(value, tuple):
        return tuple(at_step(v, steps) for v in value)
    return plain(value)


def check_number(label: str, value: Any, low: float = 0.0, high: float = math.inf) -> None:
    """Raise unless `value` is a finite number with low <= value < high; `label` as torch.optim words it."""
    interval = f"a finite number >= {low:g}" if high == math.inf else f"a number >= {low:g} and < {high:g}"
    if low == -math.inf:
        interval = "a finite number"
    message = f"Invalid {label}: {value} (expected {interval})"
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"Invalid {label}: {value!r:.80} (expected {interval})")
    try:
        number = float(value)
    except OverflowError:  # an int beyond every float
        raise ValueError(message[:200]) from None
    if not (low <= number < high) or math.isinf(number):
        raise ValueError(message)


def is_pair(value: Any) -> bool:
    """Whether a hyperparameter is a pair of numbers."""
    return isinstance(value, tuple) and len(value) == 2 and all(hasattr(v, "__float__") for v in value)


def parse_groups(params: Any) -> list[dict[str, Any]]:
    """The group dicts in `params`: a sequence of arrays, a dict of named arrays, or a sequence of group dicts."""
    if is_array(params):
        raise TypeError(
            f"params is one {type(params).__name__}; expected a sequence or dict of arrays, or a sequence of groups: "
            "put it into a list"
        )
    if isinstance(params, Mapping):
        if "params" in params and not is_array(params["params"]):
            raise TypeError("params is one group; expected a sequence of groups: put it into a list")
        items: list[Any] = [{"params": params}] if params else []
    elif isinstance(params, Iterable):
        given = list(params)
        grouped = [isinstance(g, Mapping) for g in given]
        if any(grouped) and not all(grouped):
            raise TypeError("params mixes groups and arrays; expected one kind: make every element a group")
        items = given if any(grouped) else [{"params": given}] if given else []
    else:
        raise TypeError(f"params is {type(params).__name__}; expected a sequence or dict of arrays")
    if not items:
        raise ValueError("optimizer got an empty parameter list; expected at least one array")
    return items


def parse_parameters(group: Group, others: list[Parameter], start: Clock) -> list[Parameter]:
    """The parameters of a new group, checked by themselves and against those that are there already."""
    given = group.data["params"]
    if not is_array(given) and not isinstance(given, Iterable):
        raise TypeError(f"params of a group is {type(given).__name__}; expected a sequence or dict of arrays")
    if isinstance(given, Mapping):
        items = list(given.items())
    else:
        items = [(None, array) for array in ([given] if is_array(given) else given)]
    names = {p.name for p in others}
    fresh: list[Parameter] = []
    for name, array in items:
        if name is not None and not isinstance(name, str):
            raise TypeError(f"parameter name {name!r} is {type(name).__name__}; expected a string")
        if name is not None and name in names:
            raise ValueError(f"parameter name {name!r} is used twice; expected a name of its own in every group")
        place = f"[{len(others) + len(fresh)}]" + (f' ("{name}")' if name is not None else "")
        view = as_array(array, f"params{place}")
        check_writable(view, f"params{place}")
        fresh.append(Parameter(place, name, array, view, group, start))
    if others and fresh and (fresh[0].name is None) != (others[0].name is None):
        raise ValueError("some groups name their parameters and some do not; expected all or none: use dicts")
    check_disjoint([(p.label, p.array) for p in [*others, *fresh]])
    return fresh


def match_gradients(grads: Any, parameters: list[Parameter], groups: list[Group]) -> list[Any]:
    """One gradient or None for every parameter, from a sequence, a dict, or one of these for each group."""
    if is_array(grads) or not isinstance(grads, Iterable):
        raise TypeError(
            f"grads is {type(grads).__name__}; expected a collection like params, with one array or None each"
        )
    if isinstance(grads, Mapping):
        return _match(grads, parameters, "grads")
    grads = list(grads)
    if not any(isinstance(g, (list, tuple, Mapping)) for g in grads):
        return _match(grads, parameters, "grads")
    if len(grads) != len(groups):
        raise ValueError(f"grads has {len(grads)} groups; expected {len(groups)}, one per parameter group")
    matched: list[Any] = []
    for i, (given, group) in enumerate(zip(grads, groups, strict=True)):
        matched += _match(given, [p for p in parameters if p.group is group], f"grads of group {i}")
    return matched


def _match(grads: Any, members: list[Parameter], label: str) -> list[Any]:
    if not isinstance(grads, Mapping):
        given = list(grads)
        if len(given) != len(members):
            raise ValueError(f"{label} has {len(given)} arrays; expected {len(members)}, one per parameter")
        return given
    names = [p.name for p in members]
    for key in grads:
        if key not in names:
            raise ValueError(f"{label} has the unknown key {key!r}; expected the names of params: {names}")
    for name in names:
        if name not in grads:
            raise ValueError(f"{label} has no {name!r}; expected every name of params, None to leave one out")
    return [grads[name] for name in names]


def state_arrays(parameters: list[Parameter]) -> list[tuple[str, Array]]:
    """All state arrays, and how messages name them."""
    return [(f"state {name!r} of {p.label}", array) for p in parameters for name, array in p.state.items()]


def check_gradients(
    fresh: list[tuple[Parameter, Array]], kept: list[tuple[Parameter, Array]], written: list[Parameter], zero: bool
) -> None:
    """Raise unless the fresh gradients fit their parameters and share no memory with what a step writes.

    That is parameters and state and, with `zero`, the gradients themselves, those that are kept included.
    """
    for p, grad in fresh:
        p.check_like(grad, p.grad_label)
        if zero:
            check_writable(grad, p.grad_label)
    mine = [(p.label, p.array) for p in written] + state_arrays(written)
    grads = [(p.grad_label, grad) for p, grad in fresh]
    if zero:
        check_disjoint(mine + grads + [(p.grad_label, grad) for p, grad in kept])
    else:
        check_disjoint(mine, grads)
