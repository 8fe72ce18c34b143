"""Instructions of fixed steps, counted by valgrind: a check for regressions without noise.

`python -m proptim.bench.instructions` counts and compares with instructions.json; `--update FILE` writes the counts.
They depend on compiler, Python and NumPy, so counts of another environment than the recorded one are shown and not
compared. The counter is read before and after the steps of each case, so that the start of Python does not count. The
addresses of Python objects would matter: a pool of Python's allocator that a step empties and fills again costs a tenth
of a small step. So memory comes from malloc, whose fast path is the same for all addresses.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import proptim
from proptim import _backend
from proptim._config import config

from .workloads import CLIP, Workload

TOLERANCE = 0.02  # a rise above it fails; a fall is reported, so that the recorded count can be lowered
RECORDED = Path(__file__).with_name("instructions.json")
ISA = "avx2"  # the best that valgrind runs

CASES: dict[str, tuple[Workload, int]] = {
    "bound step of 8 weights": (Workload("rmsprop", "8"), 500),
    "fresh gradients, 8 weights": (Workload("rmsprop", "8", gradients="fresh"), 300),
    "rmsprop 1k": (Workload("rmsprop", "1000"), 300),
    "rprop 1k": (Workload("rprop", "1000"), 300),
    "adam 1k": (Workload("adam", "1000"), 200),
    "rmsprop 100k": (Workload("rmsprop", "100000"), 20),
    "rprop 100k": (Workload("rprop", "100000"), 20),
    "adam 100k": (Workload("adam", "100000"), 20),
    "rmsprop 200x64": (Workload("rmsprop", "200x64"), 50),
    "rmsprop 1k, clip_norm": (Workload("rmsprop", "1000", clip_norm=CLIP), 300),
}
"""Work, and how many steps are counted: a million instructions or more."""

FIRST = 20  # steps before the count begins, for work that is done only once
MARK = "sched_yield"  # a function of libc that nothing else calls here; the counter is read at each call of it


def steps() -> None:
    """The program that valgrind runs: every case between two marks."""
    for work, number in CASES.values():
        params, sets = work.data()
        optimizer = work.optimizer(params, grads=sets[0], threads=1)
        turns = [()] if len(sets) == 1 else [(grads,) for grads in sets]
        for i in range(FIRST):
            optimizer.step(*turns[i % len(turns)])
        gc.collect()
        gc.disable()
        os.sched_yield()
        for i in range(number):
            optimizer.step(*turns[i % len(turns)])
        os.sched_yield()
        gc.enable()


def count() -> dict[str, float]:
    """Instructions of one step of each case."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        code = f"from {__package__}.instructions import steps; steps()"
        done = subprocess.run(
            [
                *("valgrind", "--tool=callgrind", f"--dump-before={MARK}", f"--callgrind-out-file={out}"),
                *(sys.executable, "-c", code),
            ],
            env={**os.environ, **FIXED},
            capture_output=True,
            text=True,
            check=False,
        )
        dumps = [Path(f"{out}.{2 * (i + 1)}") for i in range(len(CASES))]
        if done.returncode or not all(dump.is_file() for dump in dumps):
            raise RuntimeError(f"valgrind ended with exit code {done.returncode}: {done.stderr[-400:]}")
        totals = [re.search(r"^(?:totals|summary): (\d+)", dump.read_text(), re.MULTILINE) for dump in dumps]
        found = {}
        for (name, (_, number)), total in zip(CASES.items(), totals, strict=True):
            if total is None:
                raise RuntimeError(f"valgrind has written no count of {name}")
            found[name] = int(total[1]) / number
        return found


# One thread everywhere, no random hash seed, and no garbage collector, which could run during any step.
FIXED = {
    "PROPTIM_ISA": ISA,
    "PROPTIM_BACKEND": "c",
    "PROPTIM_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONMALLOC": "malloc",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def environment() -> dict[str, str]:
    """The versions that the counts depend on."""
    return {
        "machine": platform.machine(),
        "compiler": str(config()["compiler"]).rpartition(".")[0],
        "python": f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}",
        "numpy": ".".join(metadata.version("numpy").split(".")[:2]),
    }


def hindrance() -> str:
    """Why instructions cannot be counted here; an empty string if they can."""
    if not shutil.which("valgrind"):
        return "valgrind is not installed"
    if _backend.missing_core:
        return _backend.missing_core
    if ISA not in proptim.available_isas():
        return f"this CPU does not run {ISA}"
    return ""


def compare(counts: dict[str, float], recorded: dict[str, float]) -> tuple[list[str], bool]:
    """A line for each case with both numbers, and whether all are within the limit."""
    told = [f"{name:28} is recorded and was not counted" for name in recorded.keys() - counts.keys()]
    good = not told
    for name, now in counts.items():
        if name not in recorded:
            told.append(f"{name:28} {now:14,.1f}  not recorded")
            good = False
            continue
        before = recorded[name]
        change = now / before - 1
        verdict = ""
        if now > before * (1 + TOLERANCE):
            verdict, good = f"  FAILS: more than {TOLERANCE:.0%} above", False
        elif now < before * (1 - TOLERANCE):
            verdict = "  has fallen: record it with --update"
        told.append(f"{name:28} {now:14,.1f}  recorded {before:14,.1f}  {change:+.2%}{verdict}")
    return told, good


def main() -> int:
    """Exit code 1 if a count has risen, 0 if none has or nothing can be compared."""
    parser = argparse.ArgumentParser(prog="python -m proptim.bench.instructions", description=__doc__)
    parser.add_argument("--update", metavar="FILE", help="write the counts there, to bench/instructions.json")
    args = parser.parse_args()
    if reason := hindrance():
        print(f"NOT COUNTED: {reason}")
        return 0
    counts, here = count(), environment()
    if args.update:
        found: dict[str, Any] = {"environment": here, "instructions": {k: round(v, 1) for k, v in counts.items()}}
        Path(args.update).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(f"{len(counts)} counts written to {args.update}")
        return 0
    held = json.loads(RECORDED.read_text(encoding="utf-8"))
    lines, good = compare(counts, held["instructions"])
    print("\n".join(lines))
    if here != held["environment"]:
        print(f"NOT COMPARED: recorded with {held['environment']}, this is {here}, which compiles to other code")
        return 0
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
