"""`proptim info`: version, backend, instruction set and why, threads, compiler, CPU."""

from __future__ import annotations

import argparse
import json
from typing import Any

from proptim._config import config, show_config


def add_parser(commands: Any) -> None:
    """Declare `proptim info`."""
    parser = commands.add_parser(
        "info",
        help="what this installation runs on, for bug reports",
        description="Print the version, the backend and instruction set with the reason for each, threads, compiler, "
        "CPU and the versions of related libraries.",
        examples=(
            ("proptim info", "the text to paste into a bug report"),
            ("PROPTIM_ISA=scalar proptim info", "check that an environment variable takes effect"),
            ("proptim info --json | python -m json.tool", "the same as JSON"),
        ),
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the configuration."""
    if args.json:
        print(json.dumps(config(), indent=2))
    else:
        show_config()
    return 0
