"""A state_dict as a file.

An .npz file has one array for each state array, and one of JSON text for everything else. Nothing in a file is
executed, and nothing is decompressed: arrays are views of its bytes. docs/checkpoint-format.md describes the format.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import secrets
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from os import PathLike
from typing import Any, BinaryIO

import numpy as np

from proptim._arrays import BFLOAT16, Array
from proptim._files import MAX_NAME, regular
from proptim._state import short

FORMAT = "proptim checkpoint 4"
READABLE = ("proptim checkpoint 2", "proptim checkpoint 3", FORMAT)
"""Format 3 has no arrays of one byte, format 2 none of 16 bits and of int64 either. No release has written format 1."""
SEAL = 8
"""A file ends with the CRC-32 of all bytes before it, in so many hexadecimal digits; to zip they are a comment."""
MAX_HEADER = 1 << 26
"""Largest size of the JSON text in bytes: half a million parameters. Parsed, it can take 30 times as much memory."""

OWN = "a path for a checkpoint of its own"

LOCAL = b"PK\3\4"
"""The header at the beginning of a member of a zip archive."""
NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>](?:f2|u2|f4|f8|c8|c16|i8)|\|[iu]1)', 'fortran_order': (True|False), "
    rb"'shape': \((|\d{1,19}(?:, \d{1,19})*,?)\), \} *\n",
    re.DOTALL,
)


class Streamed:
    """An array that is never in memory as a whole: its bytes, in C order, are taken from an iterator of pieces."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], pieces: Iterator[Array]) -> None:
        self.shape, self.dtype, self.pieces = shape, dtype, pieces

    def write(self, file: Any) -> None:
        """Write it as `numpy.lib.format.write_array` writes arrays."""
        descr = np.lib.format.dtype_to_descr(self.dtype)
        np.lib.format.write_array_header_1_0(
            file,
            {"descr": descr, "fortran_order": False, "shape": self.shape},
        )
        left = math.prod(self.shape) * self.dtype.itemsize
        while left:
            piece = next(self.pieces)
            file.write(piece)
            left -= piece.nbytes


def write(path: str | PathLike[str], saved: Mapping[str, Any]) -> None:
    """Write a state_dict to an .npz file: to a temporary name, synced, then renamed over `path`."""
    arrays: dict[str, Any] = {}  # Any: of savez, every keyword but one is an array
    counts: dict[str, dict[str, Any]] = {}
    for key, entry in saved["state"].items():
        counts[str(key)] = {k: v for k, v in entry.items() if not isinstance(v, (np.ndarray, Streamed))}
        arrays |= {f"state/{key}/{k}": v for k, v in entry.items() if isinstance(v, (np.ndarray, Streamed))}
    # .npz does not know bfloat16: its bits are saved as uint16, and the header says so.
    seen = {name: a.view(BFLOAT16) if a.dtype.name == "bfloat16" else a for name, a in arrays.items()}
    halves = {name: "bfloat16" for name, array in seen.items() if array.dtype == BFLOAT16}
    for i, group in enumerate(saved["param_groups"]):
        for key, value in group.items():
            if not _is_json(value):
                raise ValueError(
                    f"group {i} has {key!r} = {short(value)}, which no file can hold; expected None, True, False, a "
                    "number, a string or a list of these"
                )
    rest = {"format": FORMAT, "state": counts, "arrays": list(arrays), **({"formats": halves} if halves else {})}
    header = json.dumps({**saved, **rest}).encode()
    if len(header) > MAX_HEADER:
        raise ValueError(f"hyperparameters and names take {len(header)} bytes; expected at most {MAX_HEADER}")
    target = regular(path, expected=OWN).resolve()  # follow a symbolic link, do not replace it
    start = os.fsdecode(os.fsencode(target.name)[:MAX_NAME])  # shortened, so that the temporary name is not too long
    temporary = target.with_name(f".{start}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x+b") as file:
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))  # a file that others cannot read stays so
            members: dict[str, Any] = {"rest": np.frombuffer(header, np.uint8), **seen}
            streamed = any(isinstance(array, Streamed) for array in seen.values())
            _write_streamed(file, members) if streamed else np.savez(file, **members)
            _seal(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # an error of the system, which names a file
            raise type(error)(error.errno, error.strerror, os.fspath(path)) from error  # `path`, not the temporary name
        raise
    if os.name == "posix":  # other systems cannot open folders
        with suppress(PermissionError):  # a folder without read permission cannot be opened either
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # makes the renaming durable
            finally:
                os.close(folder)


def _write_streamed(file: BinaryIO, arrays: Mapping[str, Any]) -> None:
    """Write a file like that of numpy.savez, which cannot take an array in pieces."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                array.write(member) if isinstance(array, Streamed) else np.lib.format.write_array(member, array)


def _is_json(value: Any) -> bool:
    """Whether a value survives conversion to JSON and back, except that tuples become lists."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _seal(file: BinaryIO) -> None:
    file.seek(-2, os.SEEK_END)  # an archive ends with the length of its comment
    file.write(struct.pack("<H", SEAL))
    file.seek(0)
    crc = 0
    while part := file.read(1 << 20):
        crc = zlib.crc32(part, crc)
    file.write(b"%0*x" % (SEAL, crc))


def seal_of(path: str | PathLike[str]) -> str:
    """The checksum with which a file ends that `read` has read."""
    with regular(path, expected=OWN).open("rb") as file:
        file.seek(-SEAL, os.SEEK_END)
        return file.read().decode()


def read(path: str | PathLike[str], *, mapped: bool = False) -> dict[str, Any]:
    """Read back what `write` wrote; ValueError for anything else. The arrays are views of one buffer, read-only.

    `mapped`: map the file into memory instead of reading it, for callers that need only a part.
    """
    with regular(path, expected=OWN).open("rb") as file:
        empty = os.fstat(file.fileno()).st_size == 0  # an empty file cannot be mapped
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if mapped and not empty else file.read()
    try:
        return _parse_file(data)
    except ValueError as error:  # with the name of the file
        raise ValueError(
            f"{os.fspath(path)} cannot be read ({error}); expected a file written by Optimizer.save"
        ) from error


def _parse_file(data: bytes | mmap.mmap) -> dict[str, Any]:
    sealed = data[-SEAL:] == b"%0*x" % (SEAL, zlib.crc32(memoryview(data)[:-SEAL]))
    members = _members(memoryview(data))
    name, content = next(members)
    if name != "rest.npy":
        raise ValueError(f"its first member is {short(name)} and not 'rest.npy'")
    if len(content) > MAX_HEADER:
        raise ValueError(f"its header has {len(content)} bytes, more than {MAX_HEADER}")
    text = _array(name, content).tobytes()
    try:
        header: dict[str, Any] = dict(json.loads(text.decode("ascii")))
    except (ValueError, TypeError, RecursionError):
        raise ValueError("its header is no dict in JSON text") from None
    form = header.pop("format", None)
    if form not in READABLE:
        raise ValueError(f"its format is {short(form)}, which this version does not read")
    if not sealed:
        raise ValueError("it is damaged or cut short: its checksum at the end is wrong")
    state, names = header.get("state"), header.pop("arrays", None)
    halves = header.pop("formats", {}) if form != READABLE[0] else {}
    if not isinstance(names, list) or not isinstance(state, dict) or [*state] != [*map(str, range(len(state)))]:
        raise ValueError('its header has no dict "state" with the keys "0", "1" and so on, and no list "arrays"')
    if not isinstance(halves, dict) or not halves.items() <= dict.fromkeys(map(str, names), "bfloat16").items():
        raise ValueError('its header has no dict "formats" with "bfloat16" for some of its "arrays"')
    header["state"] = {int(key): entry for key, entry in state.items()}
    for listed in names:
        name, content = next(members, ("", memoryview(b"")))
        place = re.fullmatch(r"state/([0-9]+)/(\w+)", str(listed))
        entry = state.get(place[1]) if place else None
        if name != f"{listed}.npy" or not place or not isinstance(entry, dict) or place[2] in entry:
            raise ValueError(f"it has the member {short(name)} where its header lists the array {short(listed)}")
        array = _array(name, content)
        if (array.dtype == BFLOAT16) != (listed in halves):
            raise ValueError(f"its member {short(name)} is {array.dtype.name}, and its header says otherwise")
        entry[place[2]] = array
    for name, _ in members:
        raise ValueError(f"it has the member {short(name)}, which its header does not list")
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
        if size == 0xFFFFFFFF and extended == 20:  # zip64, which Python writes for files of any size
            size = int.from_bytes(extra[4:12], "little")
        content = data[at : at + size]
        at += size
        if flags & ~0x800 or method:  # 0x800: the name is UTF-8
            raise ValueError(f"its member {short(name)} is compressed, encrypted or streamed, and not just stored")
        if len(content) < size:
            raise ValueError(f"it ends within {short(name)}")
        if zlib.crc32(content) != crc:
            raise ValueError(f"its member {short(name)} is damaged: the checksum is wrong")
        yield name, content


def _array(name: str, content: memoryview) -> Array:
    """The array in the content of a member, as a view."""
    head = NPY.match(content)
    if not head or head.end() != 10 + int.from_bytes(content[8:10], "little"):
        raise ValueError(
            f"its member {short(name)} is no array of float32, float64, complex64, complex128, float16, bfloat16, "
            "int64, int8 or uint8"
        )
    dtype = np.dtype(head[1].decode())
    shape = tuple(int(length) for length in head[3].split(b",") if length)
    if math.prod(shape) * dtype.itemsize != len(content) - head.end():
        raise ValueError(
            f"its member {short(name)} has {len(content) - head.end()} bytes for {dtype.name} of shape {short(shape)}"
        )
    try:
        array: Array = np.ndarray(shape, dtype, content, head.end(), order="F" if head[2] == b"True" else "C")
    except ValueError:  # an empty array with a shape that NumPy does not allow
        raise ValueError(f"its member {short(name)} has the shape {short(shape)}") from None
    return array.astype(dtype.newbyteorder("="), copy=False)
