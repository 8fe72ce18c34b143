"""Comparison of two reports: what has changed by more than the spread of the rounds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .charts import rows, seconds, times
from .contestants import US, is_peer

FACTS = ("cpu", "cores", "isa", "threads", "compiler", "python", "proptim")
"""Properties of the machine and its software, besides versions of packages, whose differences are reported."""


def read(path: str) -> dict[str, Any]:
    """A report that --json has written; ValueError with the reason for another file."""
    expected = "expected a report that `proptim bench --json FILE` has written"
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{path} is no JSON ({error}); {expected}") from None
    if not isinstance(found, dict) or not {"schema", "machine", "workloads"} <= found.keys():
        raise ValueError(f"{path} is no report; {expected}")
    if found["schema"] != 1:
        raise ValueError(f"{path} is a report of schema {found['schema']}; expected 1: measure again with this version")
    return found


@dataclass(frozen=True)
class Change:
    """One contestant in one step, before and after."""

    step: str
    contestant: str
    before: dict[str, Any]
    after: dict[str, Any]

    @property
    def ratio(self) -> float:
        """The ratio of the medians: below 1 is faster now."""
        return float(self.after["median"] / self.before["median"])

    @property
    def verdict(self) -> str:
        """Faster, slower, or an empty string if the quartiles of the two runs overlap."""
        if self.after["high"] < self.before["low"]:
            return "faster"
        return "slower" if self.after["low"] > self.before["high"] else ""


class Comparison:
    """All steps that two reports have in common."""

    about = (
        "Medians of both runs. Faster or slower: the quartiles of the rounds do not overlap. Every step of proptim, "
        "and of the others those that have changed:"
    )

    def __init__(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        old = {entry["name"]: rows(entry) for entry in before["workloads"]}
        new = {entry["name"]: rows(entry) for entry in after["workloads"]}
        self.changes = [
            Change(step, name, old[step][name], row)
            for step, measured in new.items()
            for name, row in measured.items()
            if name in old.get(step, {})
        ]
        self.notes = list(self._notes(old.keys(), new.keys(), before["machine"], after["machine"]))

    def _notes(self, old: Set[str], new: Set[str], before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
        others = [change.ratio for change in self.changes if is_peer(change.contestant)]
        if others:
            yield (
                f"The peers, which no version of proptim changes, take {times(statistics.median(others))} as long as "
                f"before in the median ({times(min(others))} to {times(max(others))}), because the machine has "
                "changed."
            )
        for words, only in (("earlier", old - new), ("this", new - old)):
            if only:
                yield f"Only in {words} run: {', '.join(sorted(only))}."
        facts = [{**{fact: each.get(fact) for fact in FACTS}, **each.get("packages", {})} for each in (before, after)]
        for fact in dict.fromkeys((*facts[0], *facts[1])):
            earlier, now = (each.get(fact) for each in facts)
            if earlier != now:
                yield f"{fact}: {earlier or 'none'} before, {now or 'none'} now."

    def table(self) -> tuple[list[str], list[list[str]]]:
        """A line for each step of proptim; for other contestants only if they have changed."""
        lines, head = [], ""
        for change in self.changes:
            if change.contestant == US:
                head = change.step
                name = head
            elif not change.verdict:
                continue
            else:  # under its step, which stands there where proptim was measured in both
                name = f"  {change.contestant}" if head == change.step else f"{change.step}, {change.contestant}"
            medians = seconds(change.before["median"]), seconds(change.after["median"])
            lines.append([name, *medians, times(change.ratio), change.verdict])
        return ["step", "before", "now", "now/before", ""], lines
