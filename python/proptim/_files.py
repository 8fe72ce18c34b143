"""Output files: check a path before the work begins, and write a file atomically."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

MAX_NAME = 200  # bytes of the file's name that the temporary name repeats; a name may have 255 in all


def check_out(path: str | PathLike[str], option: str = "") -> None:
    """Raise ValueError if no file can be written to this path; to be called before the work, not after it."""
    told = f"{option} {os.fspath(path)}".strip()
    found = Path(path)
    if found.is_dir():
        raise ValueError(f"{told} is a folder; expected the name of a file")
    regular(path, told, "the name of a file")
    check_folder(found.absolute().parent, told)


def check_folder(folder: Path, told: str) -> None:
    """Raise ValueError unless this is a folder in which files can be created."""
    if not folder.is_dir():
        raise ValueError(f"{told}: there is no such folder; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{told}: nothing can be written to that folder; choose another, or change its permissions")


def regular(path: str | PathLike[str], told: str = "", expected: str = "a path for a file of its own") -> Path:
    """The path, or ValueError for a folder, and for a device or a pipe, which a file must not replace."""
    found = Path(path)
    if found.exists() and not found.is_file():
        raise ValueError(f"{told or os.fspath(path) or repr(path)} is not a regular file; expected {expected}")
    return found


@contextmanager
def whole(path: str | PathLike[str]) -> Iterator[Path]:
    """A temporary name in the same folder, for a file that replaces `path` once it is written.

    If that fails, an older file at `path` stays, and the error of the system names `path`. Raises ValueError if `path`
    names something else than a regular file.
    """
    target = regular(path).resolve()  # a link is followed, not replaced
    start = os.fsdecode(os.fsencode(target.stem)[:MAX_NAME])
    temporary = target.with_name(f".{start}.{secrets.token_hex(4)}{target.suffix}")
    try:
        yield temporary
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))  # a file that others cannot read stays so
        temporary.replace(target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # an error of the system, which names a file
            raise type(error)(error.errno, error.strerror, os.fspath(path)) from error  # `path`, not the temporary name
        raise
