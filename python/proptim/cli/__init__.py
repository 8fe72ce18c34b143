"""The command line: `proptim COMMAND`, the same as `python -m proptim COMMAND`.

Each command is one module of this folder with two functions: `add_parser(commands)`, which declares its
arguments, and `run(args)`, which does the work and returns the exit code.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from proptim import __version__
from proptim.cli import bench, explain, info, selftest, train

COMMANDS = (info, train, explain, selftest, bench)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 success, 1 failure, 2 usage."""
    parser = argparse.ArgumentParser(
        prog="proptim", description="Gradient steps on the CPU: Rprop, RMSprop and their relatives."
    )
    parser.add_argument("--version", action="version", version=f"proptim {__version__}")
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
