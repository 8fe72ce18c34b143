"""The command line: `proptim COMMAND`, the same as `python -m proptim COMMAND`.

Each command is one module of this folder with two functions: `add_parser(commands)`, which declares its
arguments, and `run(args)`, which does the work and returns the exit code.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from proptim import __version__, _embed
from proptim.cli import bench, explain, info, selftest, train

COMMANDS = (info, train, explain, selftest, bench)


class _Path(argparse.Action):
    """Print where something is, and be done."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        try:
            print(self.const())
        except OSError as error:
            parser.exit(1, f"proptim {self.option_strings[0]}: {error}\n")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 success, 1 failure, 2 usage."""
    parser = argparse.ArgumentParser(
        prog="proptim", description="Gradient steps on the CPU: Rprop, RMSprop and their relatives."
    )
    parser.add_argument("--version", action="version", version=f"proptim {__version__}")
    for name, (words, find) in _embed.PATHS.items():
        parser.add_argument(f"--{name}", action=_Path, nargs=0, const=find, help=f"print {words}, and be done")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_parser(commands)
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
    except KeyboardInterrupt:
        code = 1
    except BrokenPipeError:  # who reads has gone, as `head` does: not even Python's last flush may write there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"proptim {args.command}: {error}", file=sys.stderr)
        code = 1
    return code
