"""The parser of every command: help with examples, errors that suggest what was meant, completion in shells."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

INTERRUPTED = 130  # the exit code that a shell reports for a process that Ctrl-C ended
SHELLS = ("bash", "zsh", "tcsh")
CLOSE = 0.6  # difflib's default: 60 % of the letters agree, in order. A wrong hint in a message does little harm.


def nearest(word: str, words: Iterable[str]) -> str:
    """The one of `words` that a misspelt one probably stands for; empty if there is none."""
    lower = {each.lower(): each for each in words}
    found = difflib.get_close_matches(word.lower(), lower, 1, CLOSE)
    return lower[found[0]] if found else ""


def unknown(word: str, words: Sequence[str], expected: str = "") -> str:
    """The message about a word that is none of `words`."""
    meant = nearest(word, words)
    names = expected or ", ".join(words)
    return f"{word!r} is unknown" + (f"; did you mean {meant!r}? Expected {names}" if meant else f"; expected {names}")


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an argument that is a whole number within these bounds."""

    def taken(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {bounds}")
        return number

    return taken


def name_ending(*endings: str) -> Callable[[str], str]:
    """The type of an argument that names a file, whose format is that of the ending."""

    def taken(text: str) -> str:
        if os.path.splitext(text)[1] not in endings:  # noqa: PTH122 - as in Path.suffix, and the text stays as it is
            raise argparse.ArgumentTypeError(f"{text!r}: expected a name that ends in {' or '.join(endings)}")
        return text

    return taken


Files = Iterable[tuple[str, str | os.PathLike[str] | None]]
"""Options with the files that they name; None where an option was not given."""


def overwritten(read: Files, written: Files) -> str:
    """The message about a file that would replace one that is read, or another that is written; empty if none does."""
    taken = {os.path.realpath(path): f"{option} reads" for option, path in read if path}
    for option, path in written:
        if path:
            place = os.path.realpath(path)  # of what a link leads to, which is what is replaced
            if place in taken:
                return f"{option} would overwrite {os.fspath(path)}, which {taken[place]}"
            taken[place] = f"{option} writes"
    return ""


class Parser(argparse.ArgumentParser):
    """An argument parser with examples, pairs of a command and what it does, at the end of its help."""

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **kwargs: Any) -> None:
        width = shutil.get_terminal_size().columns - 2  # as in argparse
        if kwargs.get("description"):
            paragraphs = kwargs["description"].split("\n\n")
            kwargs["description"] = "\n\n".join(textwrap.fill(text, width) for text in paragraphs)
        if examples:
            kwargs["epilog"] = "examples:\n" + "\n".join(f"  {line}\n      {what}" for line, what in examples)
        super().__init__(*args, **kwargs)
        self.formatter_class = argparse.RawDescriptionHelpFormatter  # keeps the lines of examples, to be copied

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, but the command itself refuses unknown arguments, and suggests its nearest option."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            word = next((each for each in rest if each.startswith("-")), rest[0]).partition("=")[0]
            options = [option for action in self._actions for option in action.option_strings]
            meant = nearest(word, options) if word.startswith("-") else ""
            hint = f"; did you mean {meant}?" if meant else f"; {self.prog} --help lists what there is"
            self.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
        return found, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, unknown(str(value), [*map(str, action.choices)]))


class Completion(argparse.Action):
    """Print the script, written by shtab, that lets a shell complete this command, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, shell: Any, option: str | None = None) -> None:
        try:
            import shtab
        except ImportError as error:
            fail(parser, f"{option} needs shtab ({error}); pip install 'proptim[completion]'")
        _describe(parser, shtab)
        print(shtab.complete(parser, shell))
        parser.exit()


def fail(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Print the message and exit with code 1."""
    parser.exit(1, f"{parser.prog}: {message}\n")
    raise AssertionError


def _describe(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """Tell shtab which arguments are files and folders, and which words others take."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _describe(each, shtab)
        metavar = str(action.metavar or "")
        if metavar.startswith(("FILE", "MODEL")):
            setattr(action, "complete", shtab.FILE)  # noqa: B010 - shtab's name, not argparse's
        elif metavar.startswith("DIR"):
            setattr(action, "complete", shtab.DIRECTORY)  # noqa: B010
        if words := getattr(action, "words", None):
            action.choices = words
