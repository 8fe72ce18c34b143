"""Rounds of A B A B: every contestant in turn on the same data, with ratios computed for each round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import machine
from .contestants import CONTESTANTS, US, Contestant, Declined, select
from .worker import TIMING_SECONDS, Failed, Worker, limits
from .workloads import Case, Workload

START_SECONDS = 120.0
PREPARE_SECONDS = 600.0  # DeepSpeed compiles its optimizers, torch its loops
STEP_SECONDS = 120.0
PAUSE = 0.003  # before each turn: OpenMP threads of the previous contestant continue to spin for about that long
LEAST_ROUNDS = 3
Lost = dict[str, tuple[str, str]]
"""Contestant -> status ("cannot", "failed" or "skipped") and the reason."""


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def summary(workload: Workload, label: str, rounds: Sequence[float], ours: Sequence[float] | None) -> dict[str, Any]:
    """One row of the report."""
    low, middle, high = quartiles(rounds)
    moved = workload.weights * moved_per_weight(workload, label)
    row: dict[str, Any] = {
        "contestant": label,
        "status": "ok",
        "seconds": list(rounds),
        "median": middle,
        "low": low,
        "high": high,
        "ns_per_weight": middle / workload.weights * 1e9,
        "gb_per_s": moved / middle / 1e9,
    }
    if ours:
        ratios = [theirs / us for theirs, us in zip(rounds, ours, strict=True)]
        row["ratio_low"], row["ratio"], row["ratio_high"] = quartiles(ratios)
    return row


def moved_per_weight(workload: Workload, label: str) -> float:
    """Bytes that the rule must move; the roof does not read the gradient a second time for its norm."""
    norm = workload.gradient_bytes if workload.clip_norm is not None and label.startswith("roof-") else 0
    return workload.bytes_per_weight - norm


def under_the_roof(rows: list[dict[str, Any]]) -> None:
    """Add to each row how many percent of the faster roof's GB/s it reaches."""
    roofs = [row["gb_per_s"] for row in rows if row["status"] == "ok" and row["contestant"].startswith("roof-")]
    for row in rows:
        if roofs and row["status"] == "ok":
            row["roof_percent"] = 100 * row["gb_per_s"] / max(roofs)


class Tournament:
    """The workers of all contestants that can take part here, each for the whole run."""

    def __init__(self, entries: Mapping[str, str], full: bool, threads: int = 0) -> None:
        self.entries = dict(entries)
        self.threads = threads
        self.workers: dict[str, Worker] = {}
        self.absent: dict[str, str] = {}
        for label, name in self.entries.items():
            if reason := CONTESTANTS[name].absent(full):
                self.absent[label] = reason

    def __enter__(self) -> Tournament:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self.workers.values():
            worker.close()

    def contestant(self, label: str) -> Contestant:
        """The contestant of a label."""
        return CONTESTANTS[self.entries[label]]

    def start(self, labels: Sequence[str]) -> Lost:
        """Start a worker for each if it has none; contestants whose worker cannot start are marked as lost."""
        fresh = []
        for label in labels:
            key = self._key(label)
            if key not in self.workers or not self.workers[key].alive:
                environment = {**limits(self.threads), **self.contestant(label).environment}
                self.workers[key] = Worker("worker", [str(self.threads)], environment)
                fresh.append(label)
        return self._hear(fresh, START_SECONDS)[1]

    def _key(self, label: str) -> str:
        return self.contestant(label).process or label

    def _tell(self, label: str, do: str, **arguments: Any) -> None:
        self.workers[self._key(label)].tell(do, label=label, name=self.entries[label], **arguments)

    def _hear(self, labels: Sequence[str], seconds: float) -> tuple[dict[str, Any], Lost]:
        """The answers of the contestants that got a request, in that order, and the contestants without an answer."""
        answers, lost = {}, {}
        for label in labels:
            try:
                answers[label] = self.workers[self._key(label)].hear(seconds)
            except (Declined, Failed) as reason:  # noqa: PERF203 - the others go on
                lost[label] = ("cannot" if isinstance(reason, Declined) else "failed", str(reason))
        return answers, lost

    def play(
        self,
        case: Case,
        rounds: int,
        seconds: float = TIMING_SECONDS,
        limit: float = 30.0,
        tell: Callable[[str], None] = lambda text: None,
    ) -> dict[str, Any]:
        """All rounds of one case; only the minimum number once `limit` seconds have passed."""
        workload = case.workload
        wanted = select(case.contestants)
        failures: Lost = {}
        playing = []
        for label in self.entries:
            if self.entries[label] not in wanted or label in self.absent:
                continue
            if reason := self.contestant(label).declines(workload):
                failures[label] = ("cannot", reason)
            else:
                playing.append(label)
        if reason := self._too_large(workload, playing):
            failures.update(dict.fromkeys(playing, ("skipped", reason)))
            playing = []

        def drop_out(lost: Lost) -> None:
            failures.update(lost)
            playing[:] = [label for label in playing if label not in lost]

        drop_out(self.start(playing))
        tell("preparing")
        for label in playing:
            self._tell(label, "prepare", workload=workload.to_json())
        drop_out(self._hear(playing, PREPARE_SECONDS)[1])
        for label in playing.copy():
            tell(f"{label} warms up")
            self._tell(label, "calibrate", seconds=seconds)
            drop_out(self._hear([label], STEP_SECONDS)[1])
        times: list[dict[str, float]] = []
        begin = time.monotonic()
        while len(times) < rounds and (len(times) < LEAST_ROUNDS or time.monotonic() - begin < limit):
            tell(f"round {len(times) + 1}")
            now: dict[str, float] = {}
            # Alternate the direction, so that a contestant does not always follow the same one, which may affect it.
            for label in playing[:: 1 if len(times) % 2 == 0 else -1]:
                time.sleep(PAUSE)
                self._tell(label, "time")
                answers, lost = self._hear([label], STEP_SECONDS)
                now.update(answers)
                drop_out(lost)
            times.append(now)
            if not playing:
                break
        for label in playing:
            self._tell(label, "drop")
        self._hear(playing, STEP_SECONDS)
        ours = [each[US] for each in times] if US in playing else None
        rows = [summary(workload, label, [each[label] for each in times], ours) for label in playing]
        under_the_roof(rows)
        rows += [{"contestant": c, "status": status, "reason": why} for c, (status, why) in failures.items()]
        order = list(self.entries)
        return {
            "name": workload.name,
            "workload": workload.to_json(),
            "weights": workload.weights,
            "bytes_per_weight": workload.bytes_per_weight,
            "results": sorted(rows, key=lambda row: order.index(row["contestant"])),
        }

    def _too_large(self, workload: Workload, playing: Sequence[str]) -> str:
        free = machine.available_memory()
        own = workload.kept_bytes + workload.gradient_bytes
        temporaries = sum(self.contestant(label).temporaries for label in playing) * workload.gradient_bytes
        needed = round((own * len(playing) + temporaries) * workload.held)
        if free is None or needed <= 0.9 * free:
            return ""
        return f"all together need {needed // 10**6} MB, {free // 10**6} are free"
