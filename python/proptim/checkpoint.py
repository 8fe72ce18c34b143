"""What an optimizer has learned, as plain data and as a file.

`dump` and `parse` are `Optimizer.state_dict` and the half of `load_state_dict` that changes nothing; `write` and `read`
keep such a dict in an .npz file: one array for each state array, and one of JSON text for all the rest. Nothing in a
file is executed, and nothing is unpacked: arrays are views of its bytes. docs/checkpoint-format.md has the format.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from proptim._arrays import Array, as_array
from proptim._parameters import Clock, Group, Parameter, frozen, is_schedule

if TYPE_CHECKING:
    from proptim.optimizer import Optimizer

RUN_KEYS = {"foreach", "fused", "capturable", "differentiable", "initial_lr", "params", "param_names"}
"""Keys of a torch.optim group that do not belong to the rule: how torch runs it, and whose group it is."""

FORMAT = "proptim checkpoint 2"
"""No release has written format 1."""
SEAL = 8
"""A file ends with the CRC-32 of all bytes before, in so many hexadecimal digits; to zip they are a comment."""
MAX_HEADER = 1 << 26
"""Bytes of JSON text: half a million parameters. Parsed, it can take 30 times as much memory."""
MAX_COUNT = 2**53
"""Up to here every whole number is a float64."""

LOCAL = b"PK\3\4"
"""What a member of a zip archive begins with."""
NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>](?:f4|f8|c8|c16)|\|u1)', 'fortran_order': (True|False), "
    rb"'shape': \((|\d{1,19}(?:, \d{1,19})*,?)\), \} *\n",
    re.DOTALL,
)


@dataclass
class Loaded:
    """A state_dict that fits, in an optimizer's own terms."""

    groups: list[dict[str, Any]]
    states: dict[Parameter, tuple[Clock, dict[str, Array]]]
    steps: int
    skipped: int
    skips_in_a_row: int
    round: set[int]


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
    return {
        "state": state,
        "param_groups": groups,
        "steps": optimizer.steps,
        "skipped": optimizer.skipped,
        "skips_in_a_row": optimizer._skips_in_a_row,
        "round": sorted(optimizer._round),
    }


def parse(optimizer: Optimizer, saved: Any) -> Loaded:
    """What `Optimizer.load_state_dict` is to take over, checked but for the values of hyperparameters."""
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        raise ValueError('state_dict has no "state" and "param_groups"; expected what state_dict() returned')
    if not isinstance(saved["state"], Mapping) or not isinstance(saved["param_groups"], (list, tuple)):
        raise ValueError('"state" must be a dict and "param_groups" a list; expected what state_dict() returned')
    if len(saved["param_groups"]) != len(optimizer.param_groups):
        raise ValueError(
            f"state_dict has {len(saved['param_groups'])} parameter groups; expected {len(optimizer.param_groups)}"
        )
    groups, owners = [], {}
    for i, (group, given) in enumerate(zip(optimizer.param_groups, saved["param_groups"], strict=True)):
        members = [p for p in optimizer._parameters if p.group is group]
        groups.append(_parse_group(optimizer, group, given, members, f"group {i} of state_dict"))
        for key, p in zip(given["params"], members, strict=True):
            if not isinstance(key, (int, str)) or key in owners:
                raise ValueError(f'"params" in group {i} of state_dict has {_short(key)}; expected one key a parameter')
            owners[key] = p
    for key in saved["state"]:
        if key not in owners:
            raise ValueError(f"state_dict has the state {_short(key)}; expected the keys in its groups: {[*owners]}")
    states = {p: _parse_state(optimizer, p, saved["state"].get(key, {}), key) for key, p in owners.items()}
    most = max((clock[0] for clock, _ in states.values()), default=0)
    stepped = saved.get("round", ())
    if not isinstance(stepped, (list, tuple)) or not all(type(i) is int and i in range(len(owners)) for i in stepped):
        raise ValueError(f"'round' of state_dict is {_short(stepped)}; expected a list of indices of parameters")
    return Loaded(
        groups,
        states,
        _count(saved.get("steps", most), "'steps' of state_dict"),
        _count(saved.get("skipped", 0), "'skipped' of state_dict"),
        _count(saved.get("skips_in_a_row", 0), "'skips_in_a_row' of state_dict"),
        set(stepped),
    )


def _parse_group(
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


def _parse_state(optimizer: Optimizer, p: Parameter, entry: Any, key: Any) -> tuple[Clock, dict[str, Array]]:
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
    step, *rest = ((entry.get(name, value), f"{name!r} in {label}") for name, value in start.items())
    clock = (_count(*step), *(_number(*each) for each in rest))
    optimizer.check_clock(clock)
    return clock, state


def _number(value: Any, label: str) -> float:
    try:
        return float(_plain(value))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{label} is {_short(value)}; expected a number") from None


def _count(value: Any, label: str) -> int:
    number = _number(value, label)
    if not (0 <= number <= MAX_COUNT and number.is_integer()):
        raise ValueError(f"{label} is {number:g}; expected a count, at most 2**53")
    return int(number)


def _plain(value: Any) -> Any:
    """Numbers out of arrays and tensors with one element, tuples of numbers out of others and of lists."""
    if hasattr(value, "tolist"):
        value = value.item() if math.prod(value.shape) == 1 else value.tolist()
    value = frozen(value)
    if isinstance(value, tuple):  # JSON has no numbers of NumPy
        return tuple(v.item() if isinstance(v, np.generic) else v for v in value)
    return value


def _short(value: Any) -> str:
    """A value from anywhere, for a message."""
    return f"{value!r:.80}"


def write(path: str | PathLike[str], saved: Mapping[str, Any]) -> None:
    """Write a state_dict to an .npz file: to a temporary name, synced, then renamed over `path`."""
    arrays: dict[str, Any] = {}  # Any: of savez, every keyword but one is an array
    counts: dict[str, dict[str, Any]] = {}
    for key, entry in saved["state"].items():
        counts[str(key)] = {k: v for k, v in entry.items() if not isinstance(v, np.ndarray)}
        arrays |= {f"state/{key}/{k}": v for k, v in entry.items() if isinstance(v, np.ndarray)}
    header = json.dumps({**saved, "format": FORMAT, "state": counts, "arrays": list(arrays)}).encode()
    if len(header) > MAX_HEADER:
        raise ValueError(f"hyperparameters and names take {len(header)} bytes; expected at most {MAX_HEADER}")
    target = _regular(path).resolve()  # a link is followed, not replaced
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x+b") as file:
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))  # what nobody else could read stays so
            np.savez(file, rest=np.frombuffer(header, np.uint8), **arrays)
            _seal(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # one of the system's, which names files
            error.filename, error.filename2 = os.fspath(path), None  # and not the temporary name
        raise
    if os.name == "posix":  # elsewhere folders cannot be opened
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # a renaming is only then on the disk
        finally:
            os.close(folder)


def _seal(file: BinaryIO) -> None:
    file.seek(-2, os.SEEK_END)  # an archive ends with the length of its comment
    file.write(struct.pack("<H", SEAL))
    file.seek(0)
    crc = 0
    while part := file.read(1 << 20):
        crc = zlib.crc32(part, crc)
    file.write(b"%0*x" % (SEAL, crc))


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """Read back what `write` wrote; ValueError for anything else. The arrays are views of one buffer, read-only."""
    data = _regular(path).read_bytes()
    try:
        return _parse_file(data)
    except ValueError as error:  # in our own words
        raise ValueError(
            f"{os.fspath(path)} cannot be read ({error}); expected a file written by Optimizer.save"
        ) from error


def _regular(path: str | PathLike[str]) -> Path:
    """Neither a folder nor a device, which may have no end."""
    found = Path(path)
    if found.exists() and not found.is_file():
        raise ValueError(f"{os.fspath(path)} is not a regular file; expected a path for a checkpoint of its own")
    return found


def _parse_file(data: bytes) -> dict[str, Any]:
    sealed = data[-SEAL:] == b"%0*x" % (SEAL, zlib.crc32(memoryview(data)[:-SEAL]))
    members = _members(memoryview(data))
    name, content = next(members)
    if name != "rest.npy":
        raise ValueError(f"its first member is {_short(name)} and not 'rest.npy'")
    if len(content) > MAX_HEADER:
        raise ValueError(f"its header has {len(content)} bytes, more than {MAX_HEADER}")
    text = _array(name, content).tobytes()
    try:
        header: dict[str, Any] = dict(json.loads(text.decode("ascii")))
    except (ValueError, TypeError, RecursionError):
        raise ValueError("its header is no dict in JSON text") from None
    form = header.pop("format", None)
    if form != FORMAT:
        raise ValueError(f"its format is {_short(form)}, which this version does not read")
    if not sealed:
        raise ValueError("it is damaged or cut short: its checksum at the end is wrong")
    state, names = header.get("state"), header.pop("arrays", None)
    if not isinstance(names, list) or not isinstance(state, dict) or [*state] != [*map(str, range(len(state)))]:
        raise ValueError('its header has no dict "state" with the keys "0", "1" and so on, and no list "arrays"')
    header["state"] = {int(key): entry for key, entry in state.items()}
    for listed in names:
        name, content = next(members, ("", memoryview(b"")))
        place = re.fullmatch(r"state/([0-9]+)/(\w+)", str(listed))
        entry = state.get(place[1]) if place else None
        if name != f"{listed}.npy" or not place or not isinstance(entry, dict) or place[2] in entry:
            raise ValueError(f"it has the member {_short(name)} where its header lists the array {_short(listed)}")
        entry[place[2]] = _array(name, content)
    for name, _ in members:
        raise ValueError(f"it has the member {_short(name)}, which its header does not list")
    return header


def _members(data: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Names and contents of the members of a zip archive, in the order of the file; at least one."""
    at = 0
    while at == 0 or data[at : at + 4] == LOCAL:
        if len(data) < at + 30 or data[at : at + 4] != LOCAL:
            raise ValueError("it is no .npz file")
        flags, method, crc, _, size, named, extended = struct.unpack_from("<6x2H4x3L2H", data, at)
        at += 30 + named
        name = str(data[at - named : at], "utf-8", "replace")
        extra = data[at : at + extended]
        at += extended
        if size == 0xFFFFFFFF and extended == 20:  # as Python writes it whatever the size: zip64
            size = int.from_bytes(extra[4:12], "little")
        content = data[at : at + size]
        at += size
        if flags & ~0x800 or method:  # 0x800: the name is UTF-8
            raise ValueError(f"its member {_short(name)} is compressed, encrypted or streamed, and not just stored")
        if len(content) < size:
            raise ValueError(f"it ends within {_short(name)}")
        if zlib.crc32(content) != crc:
            raise ValueError(f"its member {_short(name)} is damaged: the checksum is wrong")
        yield name, content


def _array(name: str, content: memoryview) -> Array:
    """View the content of a member as the array that it is."""
    head = NPY.match(content)
    if not head or head.end() != 10 + int.from_bytes(content[8:10], "little"):
        raise ValueError(f"its member {_short(name)} is no array of float32, float64, complex64 or complex128")
    dtype = np.dtype(head[1].decode())
    shape = tuple(int(length) for length in head[3].split(b",") if length)
    if math.prod(shape) * dtype.itemsize != len(content) - head.end():
        raise ValueError(
            f"its member {_short(name)} has {len(content) - head.end()} bytes for {dtype.name} of shape {_short(shape)}"
        )
    try:
        array: Array = np.ndarray(shape, dtype, content, head.end(), order="F" if head[2] == b"True" else "C")
    except ValueError:  # no bytes, and lengths or a number of axes that no array has
        raise ValueError(f"its member {_short(name)} has the shape {_short(shape)}") from None
    return array.astype(dtype.newbyteorder("="), copy=False)
