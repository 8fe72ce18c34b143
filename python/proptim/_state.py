"""The state of an optimizer as plain data: what `Optimizer.state_dict` returns and `load_state_dict` accepts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from proptim import _backend
from proptim._arrays import BFLOAT16, Array, as_array, name_of, real_view
from proptim._formats import CODES, FLOAT32, SIXTEEN, arithmetic, empty, rounded, shown, widened
from proptim._parameters import Clock, Group, Parameter, at_step, frozen, is_schedule, listed
from proptim._rows import is_sparse_tensor
from proptim._storage import (
    AVERAGE,
    SCALE,
    compacted,
    dtype_of_state,
    find_codes,
    in_one_byte,
    is_compact,
    named,
    plane_like,
    saved_as,
    show_state,
    taken_compact,
)
from proptim.rule import Rule

MAX_COUNT = 2**63
"""More steps than any run makes, and still a number that the rules can compute with."""

Members = Sequence[tuple[Group, Sequence[Parameter]]]
"""Each group with its parameters."""


@dataclass
class Loaded:
    """A state_dict that fits, converted for an optimizer."""

    hyper: list[dict[str, Any]]
    """The hyperparameters of each group."""
    parameters: list[Parameter]
    """The parameters in order, with their new state."""
    steps: int
    skipped: int
    skips_in_a_row: int
    round: set[int]


def dump(rule: type[Rule], members: Members, counts: Mapping[str, Any]) -> dict[str, Any]:
    """See `Optimizer.state_dict`; `counts` are those of the whole optimizer, steps among them."""
    groups: list[dict[str, Any]] = []
    state: dict[int, dict[str, Any]] = {}
    for group, parameters in members:
        # A schedule is code: its value at the next step is saved instead.
        saved = {
            k: _plain(at_step(v, counts["steps"]) if k in rule.grouped else v)
            for k, v in group.items()
            if k != "params"
        }
        saved["params"] = list(range(len(state), len(state) + len(parameters)))
        if parameters and parameters[0].name is not None:
            saved["param_names"] = [p.name for p in parameters]
        for p in parameters:
            arrays = p.state if is_compact(p.state) else show_state(rule, p.state)
            copied = {n: shown(array.copy() if array is p.state.get(n) else array) for n, array in arrays.items()}
            copied = saved_as(copied)
            master = {} if p.plane is None else {"master": p.numbers()}
            state[len(state)] = {**rule.show_clock(p.clock, p.state), **copied, **master}
        groups.append(saved)
    return {"rule": rule.owner, "state": state, "param_groups": groups, **counts}


def parse(rule: type[Rule], members: Members, saved: Any, state_dtype: Any, cast: bool) -> Loaded:
    """What `Optimizer.load_state_dict` loads; everything is checked except the values of hyperparameters."""
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        raise ValueError('state_dict has no "state" and "param_groups"; expected what state_dict() returned')
    if not isinstance(saved["state"], Mapping) or not isinstance(saved["param_groups"], (list, tuple)):
        raise ValueError('"state" must be a dict and "param_groups" a list; expected what state_dict() returned')
    if saved.get("rule", rule.owner) != rule.owner:
        raise ValueError(
            f"state_dict is that of {short(saved['rule'])}; expected one of {rule.__name__}: arrays of the same names "
            "mean something else to another rule"
        )
    if len(saved["param_groups"]) != len(members):
        raise ValueError(f"state_dict has {len(saved['param_groups'])} parameter groups; expected {len(members)}")
    hyper, owners = [], {}
    for i, ((group, parameters), given) in enumerate(zip(members, saved["param_groups"], strict=True)):
        data = _parse_group(rule, group, given, parameters, f"group {i} of state_dict")
        if compact := in_one_byte(rule, state_dtype):
            h = rule.settled(data, _count(saved.get("steps", 0), "'steps' of state_dict"))
            data |= rule.held_in_one_byte(h, data, compact)
        hyper.append(data)
        for key, p in zip(given["params"], parameters, strict=True):
            if not isinstance(key, (int, str)) or key in owners:
                raise ValueError(f'"params" in group {i} of state_dict has {short(key)}; expected one key a parameter')
            owners[key] = p, data
    for key in saved["state"]:
        if key not in owners:
            raise ValueError(
                f"state_dict has the state {short(key)}; expected the keys in its groups: {listed(owners)}"
            )
    loaded = [
        _parse_state(rule, p, data, saved["state"].get(key, {}), key, state_dtype, cast)
        for key, (p, data) in owners.items()
    ]
    most = max((p.clock[0] for p in loaded), default=0)
    stepped = saved.get("round", ())
    if not isinstance(stepped, (list, tuple)) or not all(type(i) is int and i in range(len(owners)) for i in stepped):
        raise ValueError(f"'round' of state_dict is {short(stepped)}; expected a list of indices of parameters")
    for i, ((group, _), given) in enumerate(zip(members, saved["param_groups"], strict=True)):
        for key, value in rule.torch_means.items():
            if key not in given and group[key] != value:
                warnings.warn(
                    f"group {i} of state_dict has no {key!r}, as those of torch.optim.{rule.__name__}, whose rule is "
                    f"{key}={value!r}; this optimizer goes on with {key}={group[key]!r}",
                    UserWarning,
                    stacklevel=_backend._level_outside(),
                )
    return Loaded(
        hyper,
        loaded,
        _count(saved.get("steps", most), "'steps' of state_dict"),
        _count(saved.get("skipped", 0), "'skipped' of state_dict"),
        _count(saved.get("skips_in_a_row", 0), "'skips_in_a_row' of state_dict"),
        set(stepped),
    )


def _parse_group(
    rule: type[Rule], group: Group, given: Any, members: Sequence[Parameter], label: str
) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not isinstance(given.get("params"), (list, tuple)):
        raise ValueError(f'{label} has no list "params"; expected what state_dict() returned')
    if len(given["params"]) != len(members):
        raise ValueError(f"{label} has {len(given['params'])} parameters; expected {len(members)}")
    names = [p.name for p in members]
    if given.get("param_names", names) != names and names[:1] != [None]:
        raise ValueError(f"{label} has the parameters {listed(given['param_names'])}; expected {listed(names)}")
    data = dict(group.data)
    for key, value in given.items():
        if key not in rule.grouped:
            if key not in ("params", "param_names") and (key in Rule.known or rule.meant(key)):
                raise ValueError(
                    f"{label} has the hyperparameter {key!r}, unknown to {rule.__name__}; expected the state of an "
                    "optimizer of the same class"
                )
        elif key == AVERAGE and value is None:
            continue  # what the run that was saved did not average, this one may
        elif key not in rule.identity and not is_schedule(group[key]):  # a schedule is code: it stays
            data[key] = _plain(value)
    return data


def _parse_state(
    rule: type[Rule], p: Parameter, h: Mapping[str, Any], entry: Any, key: Any, state_dtype: Any, cast: bool
) -> Parameter:
    label = f"state {key!r} of state_dict"
    if not isinstance(entry, Mapping):
        raise ValueError(f"{label} is {type(entry).__name__}; expected a dict")
    given: dict[str, Array] = {}
    average: dict[str, Array] = {}
    plane = None

    def kept_as(name: str) -> np.dtype[Any]:
        return dtype_of_state(rule, state_dtype, rule.shown_from.get(name, name), p.array.dtype, p.size)

    entry, compact = _parse_compact(rule, p, h, entry, kept_as, label, cast)
    for name, value in entry.items():
        if name in rule.clock_start or name == "row_step" or value is None:
            continue
        if name == "master":
            plane = _parse_master(p, as_array(value, f"'master' in {label}", bits=True), label, cast)
            continue
        if name == "master_lo":
            plane = _parse_low(p, value, label, cast)
            continue
        if is_sparse_tensor(value):  # the momentum_buffer that torch.optim.SGD makes of a sparse gradient
            value = value.to_dense()
        array = as_array(value, f"{name!r} in {label}", bits=True)
        if name == AVERAGE:
            kept = dtype_of_state(None, None, name, p.array.dtype, p.size)
            average[name] = _in_dtype(array, kept, p, f"{name!r} in {label}", cast)
            continue
        kept = kept_as(name)
        if kept in CODES and not cast:
            raise TypeError(
                f"{name!r} in {label} is {name_of(array.dtype)}; expected int8, in which the state of {p.label} is "
                "kept: pass cast=True to have it rounded"
            )
        given[name] = _in_dtype(array, FLOAT32 if kept in CODES else kept, p, f"{name!r} in {label}", cast)
        numbers = widened(real_view(given[name]), p.real)
        if name in rule.squares and (numbers < 0).any():
            raise ValueError(f"{name!r} in {label} has negative elements; expected none in what is made of squares")
    if plane is None and p.plane is not None:  # the weights are the master
        plane = plane_like(p.array, p.plane.dtype, widened(p.array, FLOAT32))
    if given.keys() <= {*rule.states}:  # proptim.torch.Rprop with a state_dtype saves it as it is kept
        given = rule.show_state(given) if given else {}
    state = rule.read_state(given) if given else {}
    state |= {name: array for name, array in compact.items() if name in rule.states}
    for name in state:
        if name not in rule.states:
            raise ValueError(
                f"{label} has the array {name!r}, unknown to {rule.__name__}; expected the state of an "
                "optimizer of the same class"
            )
    for name in rule.states:
        if state and name not in state and name not in rule.optional:
            raise ValueError(f"{label} has no {name!r}; expected every state array of {rule.__name__}")
    for name in [*state]:
        if kept_as(name) in CODES and name not in compact:
            state |= compacted(rule, h, name, state[name])
    state |= compact
    state = {each: state[each] for name in rule.states for each in (name, name + SCALE) if each in state}
    if (
        not state
        and len(rule.states) > len(rule.optional)
        and (made := _count(entry.get("step", 0), f"'step' in {label}"))
    ):
        raise ValueError(f"{label} has made {made} steps and has no arrays; expected those of {rule.__name__}")
    clock = parse_clock(rule, {name: entry[name] for name in rule.clock_start if name in entry}, state, label)
    if entry.get("row_step") is not None:
        _check_row_step(p, entry["row_step"], int(clock[0]), f"'row_step' in {label}")
    return replace(p, clock=clock, state=state | average, plane=plane)


def _check_row_step(p: Parameter, given: Any, step: int, label: str) -> None:
    """Raise unless all rows have made all steps: a state does not say by what to make them up.

    torch, which makes dense steps, converts it to the dtype of the parameter, and leaves it as it is in its steps.
    """
    array = np.asarray(given)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{label} is {array.dtype.name}; expected int64, a number of steps for each row of {p.label}")
    if array.shape != p.array.shape[:1]:
        raise ValueError(
            f"{label} has shape {array.shape}; expected {p.array.shape[:1]}, one for each row of {p.label}"
        )
    if array.dtype.kind != "f" and (array != step).any():
        at = int((array != step).argmax())
        raise ValueError(
            f"{label} is {array[at]} at index {at}; expected {step}, the step of {p.label}: state_dict() lets all rows "
            "catch up before it saves them"
        )


def _parse_compact(
    rule: type[Rule],
    p: Parameter,
    h: Mapping[str, Any],
    entry: Mapping[Any, Any],
    kept_as: Callable[[str], np.dtype[Any]],
    label: str,
    cast: bool,
) -> tuple[dict[Any, Any], dict[str, Array]]:
    """State in one byte: the entry without it, or with it in float32 where it is kept otherwise; and what is kept."""
    of = "{!r} in {}".format
    rest = dict(entry)
    compact: dict[str, Array] = {}
    for name in rule.states:
        if not (found := find_codes(entry, name, lambda n: of(n, label))):
            continue
        code, scale = np.asarray(rest.pop(found)), rest.pop(name + SCALE, None)
        one_byte = kept_as(name) in CODES
        if not one_byte and not cast:
            raise TypeError(
                f"{of(found, label)} is {code.dtype.name}; expected {name_of(kept_as(name))}, in which the state of "
                f"{p.label} is kept: {_mend(code.dtype, kept_as(name))}"
            )
        labels = of(found, label), of(name + SCALE, label)
        saved = taken_compact(rule, h if one_byte else None, name, code, scale, p.array.shape, *labels)
        if one_byte:
            compact |= {n: a.copy("C") for n, a in named(name, saved).items()}
        else:
            rest |= rule.show_state({name: saved.load()})
    return rest, compact


def _parse_master(p: Parameter, master: Array, label: str, cast: bool) -> Array | None:
    """The second plane of a parameter, from the float32 master that was saved; None if the weights are the master."""
    if master.dtype in SIXTEEN and not cast:
        raise TypeError(
            f"'master' in {label} is {name_of(master.dtype)}; expected float32: load_state_dict of torch.optim casts "
            "what it loads, so pass cast=True to leave it out, and the weights count"
        )
    if p.plane is None and not cast:
        raise TypeError(
            f"{label} has the array 'master', of a parameter of 16 bits, and {p.label} is {name_of(p.array.dtype)} "
            "and keeps none; expected a state without it: pass cast=True to leave it out"
        )
    if p.plane is None or master.dtype in SIXTEEN:
        return None
    return plane_like(p.array, p.plane.dtype, _in_dtype(master, FLOAT32, p, f"'master' in {label}", cast))


def _parse_low(p: Parameter, given: Any, label: str, cast: bool) -> Array | None:
    """The second plane of a parameter, from the low halves that proptim.torch saved, of the weights as they are."""
    label = f"'master_lo' in {label}"
    dtype = str(getattr(given, "dtype", type(given).__name__)).removeprefix("torch.")
    halves = p.plane is not None and p.plane.dtype == BFLOAT16 and dtype in ("int16", "uint16")
    if not halves and not cast:
        raise TypeError(
            f"{label} is {dtype}, the low halves of bfloat16 weights; expected int16 for a parameter with "
            'master="split": pass cast=True to leave it out, and the weights count'
        )
    if not halves:
        return None
    low = np.asarray(given)
    check_shape(low, label, p)
    plane = empty(p.array, BFLOAT16)
    plane[...] = low.view(np.uint16)
    return plane


def _mend(given: np.dtype[Any], kept: np.dtype[Any]) -> str:
    """What a message says about an array of this dtype that is to be kept in that one."""
    wider = given.itemsize <= 2 and kept not in SIXTEEN
    return f"pass cast=True to have it {'widened' if wider else 'rounded'}"


def _in_dtype(array: Array, dtype: np.dtype[Any], p: Parameter, label: str, cast: bool) -> Array:
    """A copy of a state array in the dtype of this optimizer; complex numbers of 16 bits are pairs."""
    pairs = check_shape(array, label, p)
    if array.dtype.kind == "c" and p.array.dtype.kind != "c":
        raise TypeError(f"{label} is {array.dtype.name}; expected {p.array.dtype.name}, the dtype of {p.label}")
    kept = empty(p.array, dtype)
    wider = array.dtype not in SIXTEEN and dtype not in SIXTEEN and np.can_cast(array.dtype, dtype)
    if array.dtype != dtype and not wider and not cast:
        of = f"the dtype of {p.label}" if dtype == p.array.dtype else f"in which the state of {p.label} is kept"
        raise TypeError(
            f"{label} is {name_of(array.dtype)}; expected {name_of(dtype)}, {of}: {_mend(array.dtype, dtype)}"
        )
    if array.dtype == dtype or wider:
        kept[...] = array
        return kept
    numbers = widened(real_view(array), np.dtype(np.float64)) if array.dtype in SIXTEEN else real_view(array)
    if p.array.dtype.kind == "c" and array.dtype.kind != "c" and not pairs:  # real numbers
        numbers = real_view(array.astype(np.complex128))
    view = real_view(kept)
    view[...] = rounded(numbers, view.dtype)
    if (np.isfinite(numbers) & ~np.isfinite(widened(view, arithmetic(view.dtype)))).any():
        raise ValueError(f"{label} has numbers beyond {name_of(view.dtype)}; expected one that can hold them")
    return kept


def check_shape(array: Array, label: str, p: Parameter) -> bool:
    """Raise ValueError unless a state array has the shape of the parameter; whether it has pairs of complex numbers."""
    pairs = p.array.dtype.kind == "c" and array.dtype in SIXTEEN
    shape = (*p.array.shape, 2) if pairs else p.array.shape
    if array.shape != shape:
        raise ValueError(f"{label} has shape {array.shape}; expected {shape}, the shape of {p.label}")
    return pairs


def parse_clock(rule: type[Rule], entry: Mapping[str, Any], state: Mapping[str, Any], label: str) -> Clock:
    """The clock of a parameter with these state arrays; a state_dict may have only a part of its numbers."""
    # torch.optim.SGD has no step count; a momentum buffer means that there has been a step.
    step = _count(entry.get("step", 1 if state else 0), f"'step' in {label}")
    start = rule.started(state, step)
    clock = (step, *(_number(entry.get(name, start[name]), f"{name!r} in {label}") for name in [*start][1:]))
    rule.check_clock(clock)
    return clock


def _number(value: Any, label: str) -> float:
    try:
        return float(_plain(value))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{label} is {short(value)}; expected a number") from None


def _count(value: Any, label: str) -> int:
    whole = _plain(value)
    number = whole if type(whole) is int else _number(value, label)
    if not 0 <= number < MAX_COUNT or number % 1:
        shown = f"{number:g}" if abs(number) < 2**1000 else short(number)
        raise ValueError(f"{label} is {shown}; expected a count, below 2**63")
    return int(number)


def _plain(value: Any) -> Any:
    """Numbers from arrays and tensors with one element, and tuples of numbers from others and from lists."""
    if hasattr(value, "tolist"):
        value = value.item() if math.prod(value.shape) == 1 else value.tolist()
    return frozen(value)


def short(value: Any) -> str:
    """Any value, shortened for a message."""
    return f"{value!r:.80}"
