"""`proptim bench`: proptim, its peers and the memory's own speed, measured on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from proptim import OPTIMIZERS
from proptim._backend import MAX_THREADS
from proptim._files import check_folder, check_out, whole
from proptim.cli._console import require
from proptim.cli._parser import INTERRUPTED, overwritten, unknown, whole_number

QUICK_ROUNDS, FULL_ROUNDS = 5, 9


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = commands.add_parser(
        "bench",
        help="measure the speed of every rule, compared with other libraries and memory bandwidth",
        description="Measure proptim, other installed libraries (peers) and a kernel that only streams through "
        "memory (the roof), each in a process of its own, in turn. It takes less than two minutes by default. "
        "pip install 'proptim[bench]' installs the peers.",
        examples=(
            ("proptim bench", "every rule, in about two minutes"),
            ("proptim bench --rules adam --sizes 1000,1M --contestants 'proptim,torch-*'", "one rule, few contestants"),
            ("proptim bench --full --json run.json --html report.html", "the whole table, as an HTML page"),
            ("proptim bench --compare before.json after.json", "the differences between two runs"),
        ),
    )
    add = parser.add_argument
    add("--full", action="store_true", help="measure the whole table and the slowest steps: about half an hour")
    add(
        "--rules", type=_rules, metavar="NAME[,NAME]", help=f"{', '.join(OPTIMIZERS)} (default: as the table says)"
    ).words = [*OPTIMIZERS]
    add(
        "--sizes",
        type=_models,
        metavar="N[,N]",
        help="weights in one array, such as 1000, 100k, 10M; many arrays of one size, such as 200x64; or perceptron, "
        "resnet50, transformer",
    )
    add(
        "--contestants",
        type=_contestants,
        metavar="NAME[,NAME]",
        help="measure only these, such as 'proptim,torch-*'; --list names them",
    )
    add("--list", action="store_true", help="only list the contestants, and why others are missing")
    add("--rounds", type=whole_number(1), metavar="N", help=f"at most (default: {QUICK_ROUNDS}, --full {FULL_ROUNDS})")
    add(
        "--threads",
        type=whole_number(1, MAX_THREADS),
        metavar="N",
        help="cores for each contestant (default: its own choice)",
    )
    add("--self", action="store_true", help="check the harness: proptim compared with itself has to give a ratio of 1")
    add("--json", metavar="FILE", help="write all figures as JSON; - prints them and nothing else")
    add("--html", metavar="FILE", help="write the report as one HTML page")
    add("--plot", metavar="DIR", help="write the charts of the report as .png files")
    add(
        "--compare",
        metavar="FILE",
        nargs="+",
        help="compare with an earlier report that --json wrote; with two reports, compare these and measure nothing",
    )
    add("--goals", action="store_true", help="compare the figures with the goals in docs/performance.md")
    parser.set_defaults(run=run, usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Measure as told; 1 if nothing was measured, or if the harness does not agree with itself."""
    from proptim.bench import charts, compare, report, session
    from proptim.bench.console import Printer
    from proptim.bench.contestants import select

    drawn = charts.files(args.plot).values() if args.plot else ()
    json_file = args.json if args.json != "-" else None
    read = [("--compare", path) for path in args.compare or ()]
    written = [("--json", json_file), ("--html", args.html), *(("--plot", path) for path in drawn)]
    if clash := overwritten(read, written):
        args.usage_error(clash)
    for path in filter(None, (args.html, json_file)):
        check_out(path)
    if args.self and (args.rules or args.sizes or args.contestants):
        args.usage_error("--self has cases of its own; leave out --rules, --sizes and --contestants")
    if args.compare and len(args.compare) > 2:
        args.usage_error(f"--compare takes one report or two, and there are {len(args.compare)}")
    if args.plot:
        check_folder(Path(args.plot), f"--plot {args.plot}")
    if args.html or args.plot:
        option = "--html" if args.html else "--plot"
        require("matplotlib.figure", f"{option} needs matplotlib", f"leave {option} out")
    earlier = [compare.read(path) for path in args.compare or ()]
    out = Printer(sys.stdout)
    if args.list:
        out("\n".join(report.contestants(session.roll_call(args.full))))
        return 0
    if args.self:
        return int(session.check_itself(args.rounds or FULL_ROUNDS, out))
    quiet = args.json == "-"
    stream = sys.stdout if not quiet else sys.stderr if sys.stderr.isatty() else None
    lasting = bool(args.html or args.plot or (args.json and not quiet))
    asked = args.contestants or ()
    measures = len(earlier) < 2
    found = (
        earlier.pop()
        if not measures
        else session.run(
            full=args.full,
            rules=args.rules or (),
            models=args.sizes or (),
            contestants=asked,
            rounds=args.rounds or (FULL_ROUNDS if args.full else QUICK_ROUNDS),
            threads=args.threads or 0,
            printer=Printer(stream, lasting),
            judged=args.goals,
        )
    )
    compared = compare.Comparison(earlier[0], found) if earlier else None
    try:  # write files first: printing may fail because nobody reads the pipe any more
        text = json.dumps(found, indent=1)
        if args.json and not quiet:
            with whole(args.json) as path:
                path.write_text(text + "\n", encoding="utf-8")
        if args.html:
            with whole(args.html) as path:
                path.write_text(report.page(found, compared), encoding="utf-8")
        if args.plot:
            report.plot(found, args.plot)
    finally:  # if one of the files cannot be written, the figures are printed nevertheless
        out = Printer(sys.stdout, lasting)
        if quiet:
            out(text)
        else:
            told = [report.text(found)] if measures else []
            told += [report.comparison(compared)] if compared else []
            out(("\n" if measures else "") + "\n\n".join(told))
    if measures and found["interrupted"]:
        return INTERRUPTED
    if reason := report.hindrance(found, select(asked)):
        raise ValueError(reason)
    return 0


def _rules(text: str) -> list[str]:
    names = [name.lower() for name in text.split(",")]  # of classes too
    for name, given in zip(names, text.split(","), strict=True):
        if name not in OPTIMIZERS:
            raise argparse.ArgumentTypeError(unknown(given, [*OPTIMIZERS]))
    return names


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
