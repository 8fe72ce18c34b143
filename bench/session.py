"""One run of the benchmark from head to goals."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from . import goals, machine, tails
from .contestants import CONTESTANTS, US, select
from .report import line
from .tournament import Tournament
from .workloads import Case, Workload, full, quick

SCHEMA = 1
QUICK_LIMIT, FULL_LIMIT = 2.5, 15.0  # seconds for the rounds of one case, once the least number is done
QUICK_TAILS: dict[str, Any] = {"models": ("1000", "100000", "1000000"), "steps": 1500, "seconds": 0.8}
FULL_TAILS: dict[str, Any] = {"models": ("1000", "100000", "1000000", "10000000"), "steps": 5000, "seconds": 6.0}
TWIN = "proptim again"
TOLERANCE = 0.05  # what an idle virtual machine keeps to; on a busy one nothing can be measured


def roll_call(full: bool = True) -> list[dict[str, str]]:
    """All contestants, and why some are absent."""
    return [{"name": c.name, "what": c.what, "absent": c.absent(full)} for c in CONTESTANTS.values()]


def run(
    full: bool,
    rules: Sequence[str],
    models: Sequence[str],
    contestants: Sequence[str],
    rounds: int,
    threads: int,
    stream: TextIO | None,
) -> dict[str, Any]:
    """Everything as one object that JSON can hold."""
    begin = time.monotonic()
    names = select(contestants)
    if US not in names:
        names.insert(0, US)  # with whom all are compared
    cases = plan(full, rules, models)
    facts = machine.describe()
    workloads: list[dict[str, Any]] = []
    slowest: list[dict[str, Any]] = []
    start: dict[str, Any] = {}
    interrupted = False
    with progress(len(cases) + 1, stream) as (say, tell, advance):
        for text in machine.lines(facts):
            say(text)
        with Tournament({name: name for name in names}, full, threads) as tournament:
            for label, reason in tournament.absent.items():
                say(f"absent: {label}: {reason}")
            try:
                for case in cases:
                    entry = tournament.play(
                        case,
                        rounds,
                        limit=FULL_LIMIT if full else QUICK_LIMIT,
                        tell=lambda text, name=case.workload.name: tell(f"{name}: {text}"),  # type: ignore[misc]
                    )
                    workloads.append(entry)
                    say(line(entry))
                    advance()
            except KeyboardInterrupt:
                interrupted = True
                say("interrupted; the cases above are complete")
        if not interrupted:
            try:
                if not models and not contestants and (not rules or tails.RULE in rules):
                    slowest = tails.play(**(FULL_TAILS if full else QUICK_TAILS), threads=threads, tell=tell)
                start = goals.starting()
            except KeyboardInterrupt:
                interrupted = True
            advance()
    return {
        "schema": SCHEMA,
        "machine": facts,
        "settings": {"full": full, "rounds": rounds, "threads": threads, "seconds": time.monotonic() - begin},
        "interrupted": interrupted,
        "contestants": [each for each in roll_call(full) if each["name"] in names],
        "workloads": workloads,
        "tails": slowest,
        "start": start,
        "goals": goals.judge(workloads, slowest, start),
    }


def plan(whole: bool, rules: Sequence[str], models: Sequence[str]) -> list[Case]:
    """The cases of a run; the table's, and where it has none for what was asked, plain ones."""
    cases = (full if whole else quick)(rules, models)
    known = {(case.workload.rule, case.workload.model) for case in cases}
    if models:
        wanted = rules or ("rmsprop", "rprop", "adam")
        cases += [Case(Workload(r, m), ("!torch-compiled",)) for r in wanted for m in models if (r, m) not in known]
    return cases


def check_itself(rounds: int, stream: TextIO) -> int:
    """Enter proptim twice: its ratio to itself has to be 1 within TOLERANCE; 0 if it is."""
    code = 0
    # On one thread: two processes with threads="auto" may come to different minds.
    with Tournament(dict.fromkeys((US, TWIN), "proptim-1"), full=False) as tournament:
        for model in ("1000", "100000", "10000000"):
            entry = tournament.play(Case(Workload("rmsprop", model)), max(rounds, 9))
            row = next(row for row in entry["results"] if row["contestant"] == TWIN)
            if row["status"] != "ok":
                print(f"{entry['name']}: {row['reason']}", file=stream)
                code = 1
                continue
            least, most = row["ratio_low"], row["ratio_high"]
            agrees = abs(row["ratio"] - 1) <= TOLERANCE
            code = code if agrees else 1
            print(
                f"{entry['name']}: ratio {row['ratio']:.3f} ({least:.3f} to {most:.3f})"
                f"{'' if agrees else '  DOES NOT AGREE with itself'}",
                file=stream,
                flush=True,
            )
    return code


Say = Callable[[str], None]


@contextmanager
def progress(steps: int, stream: TextIO | None) -> Iterator[tuple[Say, Say, Callable[[], None]]]:
    """Functions that print a line, show what is under way, and count a case as done."""

    def nothing(*given: object) -> None:
        """No stream, or no terminal."""

    if stream is None:
        yield nothing, nothing, nothing
        return
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        yield lambda text: print(text, file=stream, flush=True), nothing, nothing
        return
    try:
        rich_progress = importlib.import_module("rich.progress")
        console = importlib.import_module("rich.console").Console(file=stream, highlight=False)
    except ImportError:
        yield lambda text: print(text, file=stream, flush=True), nothing, nothing
        return
    columns = (
        rich_progress.BarColumn(bar_width=24),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        "{task.description}",
    )
    with rich_progress.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("starting", total=steps)
        yield (
            lambda text: console.print(text, markup=False, soft_wrap=True),
            lambda text: bars.update(task, description=text),
            lambda: bars.advance(task),
        )
