"""Coverage of csrc by the C tests: a table of lines and branches, and every branch without coverage, or the reason.

Usage, after `ctest --preset coverage`: python3 tests/c/coverage.py. Exits with 1 if a branch without coverage is not in
UNREACHABLE. A kernel counts once for each instruction set and dtype, native or emulated by SIMDe.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD, CSRC = ROOT / "build/coverage", ROOT / "csrc"

UNREACHABLE = {
    r".* \w+_(one|(load|store)_end)_f\d\d \(kernels_scalar": "the body of the scalar kernels has width 1, so no tail",
    r"include/(rules|stages).def:.* \(kernels_scalar": "the same, seen from the driver's loop over the tail",
    r"include/\w+.def:.*PROPTIM_\w+\((?!.*(momentum|max_exp_avg))": "an absent array where none is optional",
    r"codecs/levels.h:.*MIN_SIZE\(": "a loop of SIMDe, whose range of a vector is a statement with one",
    r"codecs/(words|dither).h:.*_f64 .*bias != BIAS": "no format of 16 bits has the exponents of a double",
    r"os_threads.h:.*attr_init|parallel_pool.c:.*(!told_fork\)|os_thread_start|most_w)": "a system out of threads",
    r"parallel_pool.c:.* of work .*!may_help": "a worker that a job finds awake: not where others have the cores",
    r"parallel_pool.c:.*atomic_load\(&sleepers\)": "whether a worker sleeps when a job comes: the system decides",
    r"parallel_pool.c:.* of forget_workers": "reached in a child of fork(), which ends without counting",
    r"parallel_pool.c:.*compare_exchange_weak": "another thread claims between two instructions: now and then",
    r"strided.c:.* while \(count > 0\)": "a bound for safety: the loop ends at its `break`, before the odometer turns",
    r"parallel_openmp.c:.*proptim_openmp_process != here": "reached in a child of fork(), which ends without counting",
    r"strided.c:.* d = last - 1": "a bound for safety: after the last element the outer loop has ended",
}
"""Pattern of "file:line: branch of function (unit) text of the line" -> why no test can get there."""

Place = tuple[str, int]
Counts = dict[tuple[str, str], list[int]]
"""(file that was compiled, function) -> how often the line or each of its branches ran."""


def add(counts: Counts, key: tuple[str, str], more: list[int]) -> None:
    """Add up what several programs reached."""
    before = counts.get(key, [])
    width = max(len(before), len(more))
    counts[key] = [sum(c[i] for c in (before, more) if i < len(c)) for i in range(width)]


def measure() -> tuple[dict[Place, Counts], dict[Place, Counts]]:
    """Lines and branches of csrc."""
    lines: dict[Place, Counts] = defaultdict(dict)
    branches: dict[Place, Counts] = defaultdict(dict)
    for data in sorted(BUILD.rglob("*.gcda")):
        told = subprocess.run(["gcov", "-j", "-b", "-t", data], capture_output=True, text=True, check=True).stdout
        unit = data.name.removesuffix(".gcda")
        for file in json.loads(told)["files"]:
            path = Path(file["file"]).resolve()
            if CSRC not in path.parents:
                continue
            for line in file["lines"]:
                place = str(path.relative_to(CSRC)), line["line_number"]
                key = unit, line.get("function_name", "")
                add(lines[place], key, [line["count"]])
                if line["branches"]:
                    add(branches[place], key, [b["count"] for b in line["branches"]])
    return lines, branches


def unreached(lines: dict[Place, Counts], branches: dict[Place, Counts]) -> list[str]:
    """What nothing reached, as UNREACHABLE has it."""
    return [
        f"{file}:{number}: {kind} of {function} ({unit}) {(CSRC / file).read_text().splitlines()[number - 1].strip()}"
        for kind, found in (("line", lines), ("branch", branches))
        for (file, number), counts in sorted(found.items())
        for (unit, function), each in counts.items()
        if not all(each)
    ]


def main() -> int:
    """Print the table; 1 if a branch is unreached without a reason."""
    lines, branches = measure()
    if not lines:
        print("nothing measured; expected: cmake, build and ctest with the preset coverage before")
        return 1
    print(f"{'file':24}{'lines':>14}{'branches':>16}")
    total = [0, 0, 0, 0]
    for file in sorted({file for file, _ in lines}):
        row = []
        for found in (lines, branches):
            counts = [n for (f, _), c in found.items() if f == file for each in c.values() for n in each]
            row += [sum(map(bool, counts)), len(counts)]
        total = [a + b for a, b in zip(total, row, strict=True)]
        print(f"{file:24}{row[0]:>7} /{row[1]:>5}{row[2]:>9} /{row[3]:>5}")
    print(f"{'all':24}{total[0]:>7} /{total[1]:>5}{total[2]:>9} /{total[3]:>5}")

    missed = unreached(lines, branches)
    for pattern, why in UNREACHABLE.items():
        known = [place for place in missed if re.match(pattern, place)]
        missed = [place for place in missed if place not in known]
        print(f"{len(known):4} not reached: {why}")
    for place in missed:
        print(f"NOT REACHED: {place}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
