"""Settings from environment variables; an invalid value is an error that lists the valid ones."""

from __future__ import annotations

import os
import sys
from pathlib import PurePath


def choice(name: str, legal: tuple[str, ...]) -> str | None:
    """The value of a variable; None if it is not set or empty."""
    value = os.environ.get(name) or None
    if value is not None and value not in legal:
        raise unusable(f"{name}={value} is unknown; expected one of: {', '.join(legal)}")
    return value


def unusable(message: str) -> ValueError:
    """The error to raise at import for an invalid variable; in the command `proptim`, print it and exit instead."""
    module = next((after for flag, after in zip(sys.orig_argv, sys.orig_argv[1:], strict=False) if flag == "-m"), "")
    # While Python searches for the module of `python -m`, argv[0] is "-m".
    if (sys.argv[:1] == ["-m"] and module.partition(".")[0] == "proptim") or PurePath(
        (sys.argv or [""])[0]
    ).stem == "proptim":
        print(f"proptim: {message}", file=sys.stderr)
        sys.exit(2)
    return ValueError(message)
