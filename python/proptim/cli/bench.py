"""`proptim bench`: proptim, its peers and the memory's own speed, measured on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from proptim import OPTIMIZERS
from proptim.cli._console import require

QUICK_ROUNDS, FULL_ROUNDS = 5, 9


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = commands.add_parser(
        "bench",
        help="measure this machine: every rule beside its peers and the memory's own speed",
        description="Measure proptim, the peers that are installed and a kernel that only streams through memory, "
        "each in a process of its own and asked in turn. Quick by default, under two minutes. "
        "pip install 'proptim[bench]' brings the peers.",
    )
    add = parser.add_argument
    add("--full", action="store_true", help="the whole table and the slowest steps: about half an hour")
    add("--rules", type=_rules, metavar="NAME[,NAME]", help=f"{', '.join(OPTIMIZERS)} (default: as the table says)")
    add(
        "--sizes",
        type=_models,
        metavar="N[,N]",
        help="weights in one array, such as 1000, 100k, 10M, or perceptron, resnet50, transformer, 200x64",
    )
    add(
        "--contestants",
        type=_contestants,
        metavar="NAME[,NAME]",
        help="only these, such as 'proptim,torch-*'; --list names them",
    )
    add("--list", action="store_true", help="name the contestants, and those that are absent with the reason; no more")
    add("--rounds", type=_positive, metavar="N", help=f"at most (default: {QUICK_ROUNDS}, --full {FULL_ROUNDS})")
    add("--threads", type=_positive, metavar="N", help="cores for each contestant (default: what it takes by itself)")
    add("--self", action="store_true", help="check the harness: proptim entered twice has to show a ratio of 1")
    add("--json", metavar="FILE", help="write all figures for a machine to read; - prints them and nothing else")
    add("--html", metavar="FILE", help="write the report as one page")
    add("--plot", metavar="DIR", help="write its charts as .png")
    parser.set_defaults(run=run, usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Measure as told; 1 if interrupted, or if the harness does not agree with itself."""
    from proptim.bench import report, session

    for path in filter(None, (args.html, args.json if args.json != "-" else None)):
        if not Path(path).absolute().parent.is_dir():  # said before the run, not after it
            raise ValueError(f"{path}: there is no such folder; make it first")
        if Path(path).is_dir():
            raise ValueError(f"{path} is a folder; expected the name of a file")
    if args.self and (args.rules or args.sizes or args.contestants):
        args.usage_error("--self has cases of its own; leave out --rules, --sizes and --contestants")
    if args.plot and not Path(args.plot).is_dir():
        raise ValueError(f"--plot {args.plot}: there is no such folder; make it first")
    if args.html or args.plot:
        option = "--html" if args.html else "--plot"
        require("matplotlib.figure", f"{option} needs matplotlib", f"leave {option} out")
    if args.list:
        print("\n".join(report.contestants(session.roll_call(args.full))))
        return 0
    if args.self:
        return int(session.check_itself(args.rounds or FULL_ROUNDS, sys.stdout))
    quiet = args.json == "-"
    found = session.run(
        full=args.full,
        rules=args.rules or (),
        models=args.sizes or (),
        contestants=args.contestants or (),
        rounds=args.rounds or (FULL_ROUNDS if args.full else QUICK_ROUNDS),
        threads=args.threads or 0,
        stream=None if quiet and not sys.stderr.isatty() else sys.stderr if quiet else sys.stdout,
    )
    text = json.dumps(found, indent=1)
    if quiet:
        print(text)
    else:
        report.show(found, sys.stdout)
    if args.json and not quiet:
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    if args.html:
        Path(args.html).write_text(report.page(found), encoding="utf-8")
    if args.plot:
        report.plot(found, args.plot)
    return 1 if found["interrupted"] else 0


def _rules(text: str) -> list[str]:
    for name in text.split(","):
        if name not in OPTIMIZERS:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown; expected some of {', '.join(OPTIMIZERS)}")
    return text.split(",")


def _models(text: str) -> list[str]:
    from proptim.bench.workloads import long

    try:
        return [long(model) for model in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _contestants(text: str) -> list[str]:
    from proptim.bench.contestants import select

    try:
        select(text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text.split(",")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
