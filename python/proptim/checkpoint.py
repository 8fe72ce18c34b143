"""What an optimizer has learned, as plain data and as a file.

`dump` and `restore` are `Optimizer.state_dict` and `load_state_dict`; `write` and `read` keep such a dict in an
.npz file: one array for each state array, and one of JSON text for all the rest. Nothing in a file is executed.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from proptim._arrays import Array, as_array
from proptim._parameters import Clock, Group, Parameter, is_schedule

if TYPE_CHECKING:
    from proptim.optimizer import Optimizer

RUN_KEYS = {"foreach", "fused", "capturable", "differentiable", "initial_lr", "params", "param_names"}
"""Keys of a torch.optim group that do not belong to the rule: how torch runs it, and whose group it is."""

FORMAT = "proptim checkpoint 1"


def dump(optimizer: Optimizer) -> dict[str, Any]:
    """See `Optimizer.state_dict`."""
    index = {id(p): i for i, p in enumerate(optimizer._parameters)}
    groups = []
    for group in optimizer.param_groups:
        members = [p for p in optimizer._parameters if p.group is group]
        saved = {k: _plain(v) for k, v in group.items() if k != "params" and not is_schedule(v)}
        saved["params"] = [index[id(p)] for p in members]
        if members and members[0].name is not None:
            saved["param_names"] = [p.name for p in members]
        groups.append(saved)
    state = {
        i: {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in entry.items()}
        for i, entry in enumerate(optimizer.state.values())
    }
    return {"state": state, "param_groups": groups, "steps": optimizer.steps, "skipped": optimizer.skipped}


def restore(optimizer: Optimizer, saved: Any) -> None:
    """See `Optimizer.load_state_dict`: everything is checked before anything is taken over."""
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        raise ValueError('state_dict has no "state" and "param_groups"; expected what state_dict() returned')
    if not isinstance(saved["state"], Mapping) or not isinstance(saved["param_groups"], (list, tuple)):
        raise ValueError('"state" must be a dict and "param_groups" a list; expected what state_dict() returned')
    if len(saved["param_groups"]) != len(optimizer.param_groups):
        raise ValueError(
            f"state_dict has {len(saved['param_groups'])} parameter groups; expected {len(optimizer.param_groups)}"
        )
    groups, entries = [], []
    for i, given in enumerate(saved["param_groups"]):
        group = optimizer.param_groups[i]
        members = [p for p in optimizer._parameters if p.group is group]
        groups.append(_restore_group(optimizer, group, given, members, f"group {i} of state_dict"))
        for key, p in zip(given["params"], members, strict=True):
            entries.append((p, _restore_state(optimizer, p, saved["state"].get(key, {}), key)))
    most = max((clock[0] for _, (clock, _) in entries), default=0)
    steps = _count(saved.get("steps", most), "'steps' of state_dict")
    skipped = _count(saved.get("skipped", 0), "'skipped' of state_dict")
    for group, data in zip(optimizer.param_groups, groups, strict=True):
        optimizer.settled(Group({**group.data, **data}, optimizer.fixed), steps)
    optimizer._dissolve()
    for p, (clock, state) in entries:
        p.clock, p.state = clock, state
    for group, data in zip(optimizer.param_groups, groups, strict=True):
        group.data.update(data)
        group.touched()
    optimizer._steps, optimizer.skipped = steps, skipped
    optimizer._round.clear()


def _restore_group(
    optimizer: Optimizer, group: Group, given: Any, members: list[Parameter], label: str
) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not isinstance(given.get("params"), (list, tuple)):
        raise ValueError(f'{label} has no list "params"; expected what state_dict() returned')
    if len(given["params"]) != len(members):
        raise ValueError(f"{label} has {len(given['params'])} parameters; expected {len(members)}")
    names = [p.name for p in members]
    if given.get("param_names", names) != names and names[:1] != [None]:
        raise ValueError(f"{label} has the parameters {given['param_names']}; expected {names}")
    data = {k: _plain(v) for k, v in given.items() if k not in RUN_KEYS}
    for key in data:
        if key not in group:
            raise ValueError(
                f"{label} has the hyperparameter {key!r}, unknown to {type(optimizer).__name__}; expected the "
                "state of an optimizer of the same class"
            )
    return {k: v for k, v in data.items() if not is_schedule(group[k])}  # a schedule is code: it stays


def _restore_state(optimizer: Optimizer, p: Parameter, entry: Any, key: Any) -> tuple[Clock, dict[str, Array]]:
    label = f"state {key!r} of state_dict"
    if not isinstance(entry, Mapping):
        raise ValueError(f"{label} is {type(entry).__name__}; expected a dict")
    shown = {}
    for name, value in entry.items():
        if name not in optimizer.clock_start and value is not None:
            array = as_array(value, f"{name!r} in {label}")
            if array.shape != p.array.shape:
                raise ValueError(
                    f"{name!r} in {label} has shape {array.shape}; expected {p.array.shape}, the shape of {p.label}"
                )
            if not np.can_cast(array.dtype, p.array.dtype):
                raise TypeError(
                    f"{name!r} in {label} is {array.dtype.name}; expected {p.array.dtype.name}, the dtype of {p.label}"
                )
            shown[name] = np.empty_like(p.array, subok=False)
            shown[name][...] = array
    state = optimizer.read_state(shown) if shown else {}
    for name in state:
        if name not in optimizer.states:
            raise ValueError(
                f"{label} has the array {name!r}, unknown to {type(optimizer).__name__}; expected the state of an "
                "optimizer of the same class"
            )
    for name in optimizer.states:
        if state and name not in state and name not in optimizer.optional:
            raise ValueError(f"{label} has no {name!r}; expected every state array of {type(optimizer).__name__}")
    start = dict(optimizer.clock_start)
    if state:  # torch.optim.SGD keeps no step; a momentum buffer says that there has been one
        start["step"] = 1
    step, *rest = (entry.get(name, value) for name, value in start.items())
    return (_count(step, f"'step' in {label}"), *(float(_plain(value)) for value in rest)), state


def _count(value: Any, label: str) -> int:
    number = float(_plain(value))
    if not (number >= 0 and number.is_integer()):
        raise ValueError(f"{label} is {number:g}; expected a count")
    return int(number)


def _plain(value: Any) -> Any:
    """Numbers out of 0-d arrays and tensors, tuples out of lists."""
    if hasattr(value, "item") and not isinstance(value, (int, float)):
        return value.item()
    if isinstance(value, (list, tuple)):
        return tuple(_plain(v) for v in value)
    return value


def write(path: str | PathLike[str], saved: Mapping[str, Any]) -> None:
    """Write a state_dict to an .npz file: to a temporary name, synced, then renamed over `path`."""
    arrays: dict[str, Any] = {}  # Any: of savez, every keyword but one is an array
    counts: dict[str, dict[str, Any]] = {}
    for key, entry in saved["state"].items():
        counts[str(key)] = {k: v for k, v in entry.items() if not isinstance(v, np.ndarray)}
        arrays |= {f"state/{key}/{k}": v for k, v in entry.items() if isinstance(v, np.ndarray)}
    rest = {**saved, "format": FORMAT, "state": counts, "arrays": list(arrays)}
    target = Path(path).resolve()  # a link is followed, not replaced
    if target.exists() and not target.is_file():
        raise ValueError(f"{os.fspath(path)} is not a regular file; expected a path for a checkpoint of its own")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            np.savez(file, rest=np.frombuffer(json.dumps(rest).encode(), np.uint8), **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """Read back what `write` wrote; ValueError for anything else."""
    with Path(path).open("rb") as raw:  # opened here: NumPy leaves a damaged file open
        try:
            return _parse(raw)
        except Exception as error:  # whatever zip, zlib, NumPy and JSON raise on bytes that are not ours
            raise ValueError(
                f"{os.fspath(path)} cannot be read ({error}); expected a file written by Optimizer.save"
            ) from error


def _parse(raw: BinaryIO) -> dict[str, Any]:
    with np.load(raw, allow_pickle=False) as file:
        rest: dict[str, Any] = json.loads(file["rest"].tobytes())
        if rest.pop("format") != FORMAT:
            raise ValueError("another format")
        names = rest.pop("arrays")
        if {*file.files} != {"rest", *names}:  # a damaged directory may leave some out
            raise ValueError("arrays are missing")
        state: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in rest["state"].items()}
        for name in names:
            _, key, array = name.split("/")
            state[int(key)][array] = file[name]
    return {**rest, "state": state}
