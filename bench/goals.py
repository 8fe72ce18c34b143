"""The goals of docs/performance.md: figure, target, and whether it is met, or that it was not measured."""

from __future__ import annotations

import statistics
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import proptim

from .contestants import US
from .workloads import (
    CLIP,
    HEADLINERS,
    LARGE,
    LENGTHS,
    ROWS,
    TENSORS,
    WITH_ROWS,
    Workload,
    one_byte,
    short,
    sixteen,
    table,
)

SIZES = ("1000", "100000", "10000000", LARGE)
STARTS = 7


@dataclass(frozen=True)
class Part:
    """One figure of a goal."""

    label: str
    figure: float | None  # None: not measured
    target: float
    at_least: bool
    unit: str = "x"

    @property
    def met(self) -> bool | None:
        """None if it was not measured."""
        if self.figure is None:
            return None
        return self.figure >= self.target if self.at_least else self.figure <= self.target


@dataclass(frozen=True)
class Goal:
    """One row of the table."""

    name: str
    what: str
    command: str
    parts: list[Part]

    def to_json(self) -> dict[str, Any]:
        """All fields, and whether each part is met."""
        return {**asdict(self), "parts": [{**asdict(part), "met": part.met} for part in self.parts]}


class Figures:
    """The results of a run."""

    def __init__(self, workloads: Sequence[dict[str, Any]], tails: Sequence[dict[str, Any]], start: dict[str, Any]):
        self.rows = {
            (entry["name"], row["contestant"]): row
            for entry in workloads
            for row in entry["results"]
            if row["status"] == "ok"
        }
        self.tails = {
            (row["situation"], row["model"], threads): timing
            for row in tails
            if row["status"] == "ok"
            for threads, timing in row["threads"].items()
        }
        self.sizes = sorted({row["model"] for row in tails if row["status"] == "ok"}, key=int)
        self.start = start

    def get(self, workload: Workload, contestant: str, key: str = "median") -> float | None:
        """A figure of a row, if it was measured."""
        figure: float | None = self.rows.get((workload.name, contestant), {}).get(key)
        return figure

    def least_ratio(self, workload: Workload, contestants: Iterable[str]) -> float | None:
        """The time of the fastest of these, relative to proptim's."""
        found = [ratio for name in contestants if (ratio := self.get(workload, name, "ratio")) is not None]
        return min(found, default=None)


def _over(part: float | None, whole: float | None) -> float | None:
    return None if part is None or whole is None else part / whole


def _sized(
    figures: Figures, rule: str, contestants: Sequence[str], sizes: Sequence[str], targets: Sequence[float], who: str
) -> Iterator[Part]:
    for size, target in zip(sizes, targets, strict=True):
        ratio = figures.least_ratio(Workload(rule, size), contestants)
        yield Part(f"{rule} {short(int(size))} against {who}", ratio, target, at_least=True)


def _s1(f: Figures) -> Iterator[Part]:
    for rule in ("rmsprop", "rprop", "adagrad", "adam"):
        work = Workload(rule, LARGE)
        ratio = f.least_ratio(work, ("roof-1", "roof-threads"))  # of the faster roof's time to ours, round by round
        yield Part(f"{work.name} / stream", _over(1.0, ratio), 1.08, at_least=False)


def _against_torch(rule: str, targets: Sequence[float]) -> Callable[[Figures], Iterator[Part]]:
    def parts(f: Figures) -> Iterator[Part]:
        yield from _sized(f, rule, ("torch-loop", "torch-foreach"), SIZES, targets, "torch's loop and foreach")
        yield from _sized(f, rule, ("torch-compiled",), SIZES[2:], (1, 1), "torch compiled")

    return parts


def _s4(f: Figures) -> Iterator[Part]:
    for rule in ("adam", "adagrad"):
        for peer in ("torch-fused", "deepspeed"):
            yield from _sized(f, rule, (peer,), SIZES, (20, 2, 1, 1), peer)


def _s5(f: Figures) -> Iterator[Part]:
    for rule in proptim.OPTIMIZERS:
        yield from _sized(f, rule, ("optax",), SIZES, (30, 5, 4, 4), "optax")


def _s6(f: Figures) -> Iterator[Part]:
    work = Workload("rmsprop", "200x64")
    seconds = f.get(work, US)
    yield Part(work.name, None if seconds is None else seconds * 1e6, 10, at_least=False, unit="us")
    ratio = f.least_ratio(work, ("torch-loop", "torch-foreach"))
    yield Part(f"{work.name} against torch's loop and foreach", ratio, 200, at_least=True)


def _s7(f: Figures) -> Iterator[Part]:
    for kind, target in (("bound", 0.4), ("fresh", 1.0)):
        seconds = f.get(Workload("rmsprop", "8", gradients=kind), US)
        yield Part(
            f"step on 8 weights, gradients {kind}", None if seconds is None else seconds * 1e6, target, False, "us"
        )


def _s8(f: Figures) -> Iterator[Part]:
    for rule in ("rmsprop", "adam"):
        clipped, plain = f.get(Workload(rule, LARGE, clip_norm=CLIP), US), f.get(Workload(rule, LARGE), US)
        yield Part(f"{rule} {short(int(LARGE))}: with clip_norm / without", _over(clipped, plain), 1.3, at_least=False)


def _s9(f: Figures) -> Iterator[Part]:
    for situation in ("alone", "torch", "busy"):
        for size in f.sizes or ("1000",):
            serial, auto = (f.tails.get((situation, size, threads), {}) for threads in ("1", "auto"))
            for q, target in (("p50", 1.05), ("p99", 1.5)):
                figure = _over(auto.get(q), serial.get(q))
                yield Part(f"{situation}, {short(int(size))}: {q} auto / 1 thread", figure, target, at_least=False)
    serial, auto = (f.tails.get(("alone", "1000000", threads), {}) for threads in ("1", "auto"))
    yield Part("alone, 1M: 1 thread / auto", _over(serial.get("p50"), auto.get("p50")), 1.5, at_least=True)


def _s10(f: Figures) -> Iterator[Part]:
    seconds, size = f.start.get("seconds"), f.start.get("bytes")
    yield Part("import proptim after numpy", None if seconds is None else seconds * 1e3, 30, at_least=False, unit="ms")
    yield Part("wheel", None if size is None else size / 1e3, 800, at_least=False, unit="kB")


def _s11(f: Figures) -> Iterator[Part]:
    work = Workload("rprop", LARGE)
    ratio = _over(f.get(work, "rprop-two-arrays", "ratio"), f.get(work, "proptim-1", "ratio"))  # one thread each
    yield Part(f"{work.name}: two arrays / signed word", ratio, 1.2, at_least=True)


def _s12(f: Figures) -> Iterator[Part]:
    base = f.get(Workload("rmsprop", "1000000"), US, "ns_per_weight")
    for size in ("10000000", LARGE, "100000000"):
        cost = f.get(Workload("rmsprop", size), US, "ns_per_weight")
        yield Part(f"rmsprop: a weight of {short(int(size))} / of 1M", _over(cost, base), 1.1, at_least=False)


def _s14(f: Figures) -> Iterator[Part]:
    for rule in proptim.OPTIMIZERS:
        for model in TENSORS:
            bound, fresh = Workload(rule, model), Workload(rule, model, gradients="fresh")
            ours, door = f.get(bound, US), f.get(bound, "proptim-torch")
            # This kernel keeps Rprop's state as torch does: two arrays instead of one.
            state = 1.4 if rule == "rprop" else 1.0
            allowed = None if ours is None else state * ours + 15e-6 + 0.2e-6 * len(bound.shapes)
            yield Part(f"{bound.name}: time / time allowed", _over(door, allowed), 1.0, at_least=False)
            theirs = [t for name in ("loop", "foreach", "fused") if (t := f.get(fresh, f"torch-{name}")) is not None]
            ratio = _over(min(theirs, default=None), f.get(fresh, "proptim-torch"))
            yield Part(f"{fresh.name}: torch's best / ours", ratio, 1.0, at_least=True)


LARGE_SIZES = ("10000000", LARGE)


def _of_float32(kinds: Sequence[tuple[Callable[[str], Workload], float]]) -> Callable[[Figures], Iterator[Part]]:
    """Time of what is kept in fewer bytes over that of the same rule in float32, on one thread and on all."""

    def parts(f: Figures) -> Iterator[Part]:
        for make, target in kinds:
            for size in LARGE_SIZES:
                work = make(size)
                for who in (US, "proptim-1"):
                    ratio = _over(f.get(work, who), f.get(Workload(work.rule, size), who))
                    threads = "1 thread" if who == "proptim-1" else "all threads"
                    yield Part(f"{work.name}, {threads}: time / float32", ratio, target, at_least=False)

    return parts


def _s18(f: Figures) -> Iterator[Part]:
    for rule, peers, target in (
        ("adam", ("torch-fused",), 1.3),
        ("rmsprop", ("torch-loop", "torch-foreach"), 2.5),
        ("rprop", ("torch-loop", "torch-foreach"), 20),
    ):
        work = sixteen(rule, "10000000")["all"]
        yield Part(f"{work.name} against torch", f.least_ratio(work, peers), target, at_least=True)


def _s19(f: Figures) -> Iterator[Part]:
    for rule in ("adam", "adagrad"):
        for rows, target in zip(ROWS, (100, 30), strict=True):
            for drawn in ("uniform", "zipf"):
                work = table(rule, rows, drawn=drawn)
                theirs = "SparseAdam" if rule == "adam" else "Adagrad"
                yield Part(f"{work.name} against torch's {theirs}", f.least_ratio(work, ("torch-loop",)), target, True)


def _s20(f: Figures) -> Iterator[Part]:
    for rule in WITH_ROWS:
        for columns in LENGTHS:
            for rows in ROWS:
                work = table(rule, rows, columns)
                ratio = _over(f.get(work, "proptim-1", "ratio"), f.get(work, "roof-1", "ratio"))  # one thread each
                yield Part(f"{work.name} / gather, stream and scatter", ratio, 1.6, at_least=False)


FULL = "proptim bench --goals --full"
GOALS: tuple[tuple[str, str, str, Callable[[Figures], Iterator[Part]]], ...] = (
    ("S1", "large arrays against the stream kernel", f"{FULL} --sizes {short(int(LARGE))}", _s1),
    ("S2", "RMSprop against torch.optim", f"{FULL} --rules rmsprop", _against_torch("rmsprop", (30, 5, 5, 5))),
    ("S3", "Rprop against torch.optim", f"{FULL} --rules rprop", _against_torch("rprop", (60, 30, 15, 20))),
    ("S4", "Adam, Adagrad against torch fused and DeepSpeed", f"{FULL} --rules adam,adagrad", _s4),
    ("S5", "every rule against optax", f"{FULL} --contestants 'proptim,roof-*,optax'", _s5),
    ("S6", "200 arrays of 64 weights in one step", "proptim bench --goals --rules rmsprop --sizes 200x64", _s6),
    ("S7", "opt.step() on 8 weights", f"{FULL} --rules rmsprop --sizes 8", _s7),
    ("S8", "clip_norm, folded in", f"{FULL} --rules rmsprop,adam --sizes {short(int(LARGE))}", _s8),
    ("S9", 'threads="auto" against one thread', f"{FULL} --rules rmsprop", _s9),
    ("S10", "import and wheel", "proptim bench --goals", _s10),
    ("S11", "Rprop's signed word against two arrays", f"{FULL} --rules rprop --sizes {short(int(LARGE))}", _s11),
    ("S12", "cost of a weight, 1 M to 100 M", f"{FULL} --rules rmsprop", _s12),
    (
        "S14",
        "proptim.torch, many small tensors: the bound step + 15 us + 0.2 us a tensor, and torch.optim",
        f"{FULL} --contestants 'proptim,proptim-torch,torch-*,!torch-compiled'",
        _s14,
    ),
    (
        "S15",
        "bfloat16 with low halves and float32 state, against float32",
        f"{FULL} --rules rmsprop --sizes 10M,50M",
        _of_float32([(lambda size: sixteen("rmsprop", size)["split"], 1.0)]),
    ),
    (
        "S16",
        "the same with bfloat16 state, and all bfloat16 without a master",
        f"{FULL} --rules rmsprop --sizes 10M,50M",
        _of_float32(
            [
                (lambda size: sixteen("rmsprop", size)["state"], 0.80),
                (lambda size: sixteen("rmsprop", size)["all"], 0.62),
            ]
        ),
    ),
    (
        "S17",
        "state in one byte under float32 parameters, against float32",
        f"{FULL} --rules rmsprop,rprop,adam --sizes 10M,50M",
        _of_float32([(partial(one_byte, rule), 0.80 if rule == "rprop" else 0.85) for rule in HEADLINERS]),
    ),
    ("S18", "all bfloat16 against torch's own", f"{FULL} --rules rmsprop,rprop,adam --sizes 10M", _s18),
    ("S19", "rows of a table against torch's sparse gradients", f"{FULL} --rules adam,adagrad --sizes 64M", _s19),
    (
        "S20",
        "rows of a table against the same rows gathered, streamed and scattered",
        f"{FULL} --rules sgd,adagrad,adam --sizes 16M,64M",
        _s20,
    ),
)


def judge(
    workloads: Sequence[dict[str, Any]], tails: Sequence[dict[str, Any]], start: dict[str, Any]
) -> list[dict[str, Any]]:
    """All goals with their figures."""
    figures = Figures(workloads, tails, start)
    return [Goal(name, what, command, list(parts(figures))).to_json() for name, what, command, parts in GOALS]


def starting() -> dict[str, Any]:
    """Seconds of `import proptim` once NumPy is imported, and the size of its files, compressed as in a wheel."""
    script = "import time, numpy; t = time.perf_counter(); import proptim; print(time.perf_counter() - t)"
    taken = []
    for _ in range(STARTS):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            taken.append(float(done.stdout))
    return {"seconds": statistics.median(taken) if taken else None, "bytes": packed_size()}


def packed_size() -> int | None:
    """Bytes of the installed files, each compressed as in a wheel; None if there is no record of the files."""
    try:
        files = metadata.files("proptim") or []
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if "__pycache__" not in file.parts and ".." not in file.parts]
    return sum(len(zlib.compress(path.read_bytes())) + 150 for path in paths if path.is_file()) or None
