"""One run of the benchmark, from the description of the machine to the goals."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from proptim import _backend

from . import goals, machine, tails
from .console import Printer
from .contestants import CONTESTANTS, US, select
from .report import absent, line
from .tournament import Tournament
from .workloads import Case, Workload, full, quick

SCHEMA = 1
QUICK_LIMIT, FULL_LIMIT = 2.5, 15.0  # seconds for the rounds of one case, after the minimum number of rounds
QUICK_TAILS: dict[str, Any] = {"models": ("1000", "100000", "1000000"), "steps": 1500, "seconds": 0.8}
FULL_TAILS: dict[str, Any] = {"models": ("1000", "100000", "1000000", "10000000"), "steps": 5000, "seconds": 6.0}
TWIN = "proptim again"
TOLERANCE = 0.05  # an idle virtual machine stays within it; on a busy one nothing can be measured


def roll_call(full: bool = True) -> list[dict[str, str]]:
    """All contestants, and why some are missing."""
    return [
        {
            "name": c.name,
            "what": "; ".join([c.what, *(f"its {rule} differs: {why}" for rule, why in c.differs.items())]),
            "absent": c.absent(full),
        }
        for c in CONTESTANTS.values()
    ]


def run(
    full: bool,
    rules: Sequence[str],
    models: Sequence[str],
    contestants: Sequence[str],
    rounds: int,
    threads: int,
    printer: Printer,
    judged: bool = False,
) -> dict[str, Any]:
    """All results as one object for JSON; `judged`: include the goals."""
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
    everyone = [each for each in roll_call(full) if each["name"] in names]
    with printer.progress(len(cases) + 1) as (say, tell, advance):
        for text in (*machine.lines(facts), *absent(everyone)):
            say(text)
        with Tournament({name: name for name in names}, full, threads) as tournament:
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
                if not (models or contestants or _backend.missing_core) and (not rules or tails.RULE in rules):
                    slowest = tails.play(**(FULL_TAILS if full else QUICK_TAILS), threads=threads, tell=tell)
                start = goals.starting() if judged else {}
            except KeyboardInterrupt:
                interrupted = True
            advance()
    return {
        "schema": SCHEMA,
        "machine": facts,
        "settings": {"full": full, "rounds": rounds, "threads": threads, "seconds": time.monotonic() - begin},
        "interrupted": interrupted,
        "contestants": everyone,
        "workloads": workloads,
        "tails": slowest,
        "start": start,
        "goals": goals.judge(workloads, slowest, start) if judged else [],
    }


def plan(whole: bool, rules: Sequence[str], models: Sequence[str]) -> list[Case]:
    """The cases of a run: those of the table, and simple ones if the table has none for what was asked."""
    cases = (full if whole else quick)(rules, models)
    known = {(case.workload.rule, case.workload.model) for case in cases}
    if models:
        wanted = rules or ("rmsprop", "rprop", "adam")
        cases += [Case(Workload(r, m), ("!torch-compiled",)) for r in wanted for m in models if (r, m) not in known]
    return cases


def check_itself(rounds: int, say: Printer) -> int:
    """Measure proptim against itself: the ratio has to be 1 within TOLERANCE; return 0 if it is."""
    code = 0
    # On one thread where that can be set: two processes with threads="auto" may choose different numbers of threads.
    name = US if CONTESTANTS["proptim-1"].absent() else "proptim-1"
    with Tournament(dict.fromkeys((US, TWIN), name), full=False) as tournament:
        for model in ("1000", "100000", "10000000"):
            entry = tournament.play(Case(Workload("rmsprop", model)), max(rounds, 9))
            row = next(row for row in entry["results"] if row["contestant"] == TWIN)
            if row["status"] != "ok":
                say(f"{entry['name']}: {row['reason']}")
                code = 1
                continue
            least, most = row["ratio_low"], row["ratio_high"]
            agrees = abs(row["ratio"] - 1) <= TOLERANCE
            code = code if agrees else 1
            say(
                f"{entry['name']}: ratio {row['ratio']:.3f} ({least:.3f} to {most:.3f})"
                f"{'' if agrees else '  DOES NOT AGREE with itself'}"
            )
    return code
