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
from proptim.cli import bench, explain, info, predict, selftest, train
from proptim.cli._parser import INTERRUPTED, SHELLS, Completion, Parser

COMMANDS = (info, train, predict, explain, selftest, bench)


class _Path(argparse.Action):
    """Print a path, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        try:
            print(self.const())
        except OSError as error:
            parser.exit(1, f"proptim {self.option_strings[0]}: {error}\n")
        parser.exit()


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="proptim",
        description="First-order optimizers on the CPU: Rprop, RMSprop and their relatives.",
        examples=(
            ("proptim train", "train a network on handwritten digits, in a few seconds"),
            ("proptim train --data train.csv --save model.npz", "train one on data of your own"),
            ("proptim explain", "why these optimizers exist, with numbers"),
            ("proptim COMMAND --help", "the options of a command, with examples"),
        ),
    )
    parser.add_argument("--version", action="version", version=f"proptim {__version__}")
    for name, (words, find) in _embed.PATHS.items():
        parser.add_argument(f"--{name}", action=_Path, nargs=0, const=find, help=f"print {words}, and exit")
    parser.add_argument(
        "--print-completion",
        action=Completion,
        choices=SHELLS,
        help="print the completion script for a shell, and exit",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module in COMMANDS:
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 success, 1 failure, 2 usage, 130 interrupted by Ctrl-C."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    try:
        code: int = args.run(args)
    except KeyboardInterrupt:
        print(f"proptim {args.command}: interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has exited: Python's last flush must not write to it either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        print(f"proptim {args.command}: {str(error) or 'out of memory'}", file=sys.stderr)
        code = 1
    return code
