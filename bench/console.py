"""Output during and after the benchmark, to a stream that may close, support few characters or be narrow."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Say = Callable[[str], None]

ASCII = str.maketrans({"\N{MULTIPLICATION SIGN}": "x", "≥": ">=", "≤": "<="})


def width() -> int:
    """Columns of the terminal; 80 if there is none."""
    return shutil.get_terminal_size().columns


def wrapped(text: str, columns: int | None = None) -> str:
    """One paragraph, wrapped; lines after the first are indented."""
    return "\n".join(textwrap.wrap(text, columns or width(), subsequent_indent="    ", break_on_hyphens=False))


def encodable(text: str, stream: TextIO) -> str:
    """The text in characters that the stream can write."""
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(ASCII).encode(encoding, "replace").decode(encoding)
    return text


class Printer:
    """Prints lines to a stream, or nothing to None.

    If files are to be written (`lasting`) and the stream breaks, as a pipe to `head` does, printing ends and the work
    continues; otherwise the error of the stream ends the work.
    """

    def __init__(self, stream: TextIO | None, lasting: bool = False) -> None:
        self.stream = stream
        self.lasting = lasting

    def __call__(self, text: str) -> None:
        if self.stream is None:
            return
        try:
            print(encodable(text, self.stream), file=self.stream, flush=True)
        except OSError:
            if not self.lasting:
                raise
            self.give_up()

    def give_up(self) -> None:
        """Stop printing; Python's last flush must not write to the stream either."""
        if self.stream is sys.__stdout__ and self.stream is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        self.stream = None

    @contextmanager
    def progress(self, steps: int) -> Iterator[tuple[Say, Say, Callable[[], None]]]:
        """Functions that print a paragraph, show what is being measured, and count a case as done."""

        def nothing(*given: object) -> None:
            """No stream, or no terminal."""

        plain = (lambda text: self(wrapped(text)), nothing, nothing)
        if self.stream is None or not self.stream.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
            yield plain
            return
        try:
            rich_progress = importlib.import_module("rich.progress")
            console = importlib.import_module("rich.console").Console(file=self.stream, highlight=False)
        except ImportError:
            yield plain
            return
        columns = (
            rich_progress.BarColumn(bar_width=24),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeElapsedColumn(),
            "{task.description}",
        )
        stream = self.stream
        with rich_progress.Progress(*columns, console=console, transient=True) as bars:
            task = bars.add_task("starting", total=steps)
            yield (
                lambda text: console.print(encodable(wrapped(text), stream), markup=False, soft_wrap=True),
                lambda text: bars.update(task, description=text),
                lambda: bars.advance(task),
            )
