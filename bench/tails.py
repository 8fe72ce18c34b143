"""The slowest steps: the 99th percentile of the time of a step, with and without threads and other load."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np

from .worker import Failed, Worker, limits, serve
from .workloads import Workload

RULE = "rmsprop"
THREADS: tuple[int | str, ...] = (1, "auto")
SITUATIONS = {
    "alone": "nothing else runs",
    "torch": "torch multiplies matrices in the same process between steps",
    "busy": "another process keeps one core busy",
}
BLOCK = 20  # steps of one setting before the other setting
WARM_UP = 60
MATRIX = 384  # square, large enough for torch to take all its threads


def measure(model: str, steps: int, seconds: float, company: bool) -> dict[str, Any]:
    """Median and 99th percentile for each setting of threads, measured in turn."""
    between: Callable[[], Any] = lambda: None  # noqa: E731
    if company:
        torch: Any = importlib.import_module("torch")
        matrix = torch.ones(MATRIX, MATRIX)
        between = lambda: torch.mm(matrix, matrix)  # noqa: E731
    work = Workload(RULE, model)
    contestants = []
    for threads in THREADS:
        params, (grads,) = work.data()
        contestants.append(work.optimizer(params, grads=grads, threads=threads))
    taken: list[list[float]] = [[] for _ in contestants]
    for optimizer in contestants:
        for _ in range(WARM_UP):
            between()
            optimizer.step()
    begin = perf_counter()
    while len(taken[-1]) < steps and perf_counter() - begin < seconds:
        for optimizer, times in zip(contestants, taken, strict=True):
            for _ in range(BLOCK):
                between()
                start = perf_counter()
                optimizer.step()
                times.append(perf_counter() - start)
    return {
        str(threads): {
            "steps": len(times),
            **{f"p{q}": float(np.percentile(times, q)) for q in (50, 99)},
        }
        for threads, times in zip(THREADS, taken, strict=True)
    }


@contextmanager
def _busy_core(on: bool) -> Iterator[None]:
    if not on:
        yield
        return
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def play(
    models: Sequence[str], steps: int, seconds: float, threads: int, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Every situation at every size."""
    found: list[dict[str, Any]] = []
    for situation, what in SITUATIONS.items():
        if situation == "torch" and importlib.util.find_spec("torch") is None:
            found.append({"situation": situation, "what": what, "status": "absent", "reason": "torch is not installed"})
            continue
        tell(f"slowest steps, {situation}")
        worker = Worker("tails", [str(threads)], limits(threads))
        try:
            worker.hear(120)
            with _busy_core(situation == "busy"):
                for model in models:
                    worker.tell("measure", model=model, steps=steps, seconds=seconds, company=situation == "torch")
                    timings = worker.hear(120)
                    row = {"situation": situation, "what": what, "status": "ok", "model": model, "threads": timings}
                    found.append(row)
        except Failed as failure:
            found.append({"situation": situation, "what": what, "status": "failed", "reason": str(failure)})
        finally:
            worker.close()
    return found


if __name__ == "__main__":
    serve(lambda do, arguments: measure(**arguments))
