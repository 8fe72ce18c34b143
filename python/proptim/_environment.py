"""Settings from the environment; an unknown value is an error that lists the legal ones."""

from __future__ import annotations

import os


def choice(name: str, legal: tuple[str, ...]) -> str | None:
    """The value of a variable, None where it is not set or empty."""
    value = os.environ.get(name) or None
    if value is not None and value not in legal:
        raise ValueError(f"{name}={value} is unknown; expected one of: {', '.join(legal)}")
    return value
