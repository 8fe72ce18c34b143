"""A process for contestants, `python -m proptim.bench.worker`, which gets requests as lines of JSON; and its client.

Idle threads of torch, JAX and OpenMP spin and slow each other down, so no two libraries share a process.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from itertools import repeat
from queue import Empty, Queue
from time import perf_counter
from typing import Any

from .contestants import CONTESTANTS, Contestant, Declined, Step
from .workloads import Workload

TIMING_SECONDS = 0.02  # of one timing at least: long compared with the resolution of the clock and a context switch
WARM_UP_SECONDS = 2.0  # at most, once the second step is made


def limits(threads: int) -> dict[str, str]:
    """Environment of a process that is to use this number of threads; 0: its own default."""
    return dict.fromkeys(("OMP_NUM_THREADS", "PROPTIM_NUM_THREADS"), str(threads)) if threads else {}


class Failed(Exception):
    """A contestant could not do what was requested."""


# In the worker ----------------------------------------------------------------------------------------------------


@functools.cache
def _schedule() -> int | None:
    """A descriptor of what Linux counts of the calling thread.

    None on other systems, and without `--threads 1`: a thread may also wait for others of its own step.
    """
    if os.environ.get("OMP_NUM_THREADS") != "1":
        return None
    try:
        return os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        return None


def waited() -> float:
    """Seconds that this thread could run and had no core, since it began; 0 where they are not known.

    A step of one thread waits for other programs, which is no part of it.
    """
    file = _schedule()
    return 0.0 if file is None else int(os.pread(file, 100, 0).split()[1]) * 1e-9


def timed(step: Step, repetitions: int) -> float:
    """Seconds of one step, the mean of many, without those in which it waited for a core."""
    run, between = step.run, step.between
    if between is None:
        lost, begin = waited(), perf_counter()
        for _ in repeat(None, repetitions):
            run()
        total = perf_counter() - begin
        return (total - (waited() - lost)) / repetitions
    total = 0.0
    for _ in repeat(None, repetitions):
        lost, begin = waited(), perf_counter()
        run()
        total += perf_counter() - begin
        total -= waited() - lost
        between()
    return total / repetitions


def calibrate(step: Step, warm_up: int, seconds: float = TIMING_SECONDS) -> int:
    """Warm up, then find the number of repetitions that takes at least this long."""
    begin = perf_counter()
    for done in range(warm_up):
        timed(step, 1)
        if done and perf_counter() - begin > WARM_UP_SECONDS:
            break
    repetitions = 1
    while (taken := timed(step, repetitions) * repetitions) < seconds:
        repetitions *= 2 if taken < seconds / 4 else 1 + int(seconds / taken)
    return repetitions


class Bench:
    """One contestant with at most one workload."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.step: Step | None = None
        self.repetitions = 1

    def prepare(self, workload: dict[str, Any]) -> None:
        """Make the arrays and the optimizer, and the first step, in which some contestants compile."""
        self.drop()
        work = Workload.from_json(workload)
        params, sets = work.data()
        self.step = self.contestant.build(work, params, sets)
        timed(self.step, 1)

    def calibrate(self, seconds: float) -> int:
        """Warm up and choose the number of repetitions."""
        assert self.step is not None
        gc.collect()
        self.repetitions = calibrate(self.step, self.contestant.warm_up, seconds)
        return self.repetitions

    def time(self) -> float:
        """Seconds of one step."""
        assert self.step is not None
        if self.repetitions > 1:
            timed(self.step, 1)  # others have had the caches, and threads are asleep
        gc.disable()
        try:
            return timed(self.step, self.repetitions)
        finally:
            gc.enable()

    def drop(self) -> None:
        """Free the memory."""
        self.step = None
        gc.collect()


def serve(answer: Callable[[str, dict[str, Any]], Any]) -> None:
    """Answer the lines of standard input until it ends; output of libraries goes to standard error.

    The argument of the process is the number of cores to use; 0: all.
    """
    threads = int(sys.argv[1])
    if threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"value": None}), file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            told = {"value": answer(asked.pop("do"), asked)}
        except Declined as reason:
            told = {"declined": str(reason)}
        except Exception as error:  # whatever a library raises belongs in the report
            told = {"error": f"{type(error).__name__}: {error}".strip().partition("\n")[0][:300]}
        print(json.dumps(told), file=out, flush=True)


def main() -> None:
    """Serve contestants."""
    benches: dict[str, Bench] = {}

    def answer(do: str, arguments: dict[str, Any]) -> Any:
        label, name = arguments.pop("label"), arguments.pop("name")
        if label not in benches:
            benches[label] = Bench(CONTESTANTS[name])
        return getattr(benches[label], do)(**arguments)

    serve(answer)


# In the client ----------------------------------------------------------------------------------------------------


class Worker:
    """A worker process."""

    def __init__(self, module: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - lives as long
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, **environment},
        )
        self.last = ""  # of its standard error, once it has ended
        self.answers: Queue[str] = Queue()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")

    def tell(self, do: str, **arguments: Any) -> None:
        """Send a request without waiting for the answer."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it has ended; hear() says how
            print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)

    def hear(self, seconds: float) -> Any:
        """Wait for the answer; raise Declined or Failed with the reason if there is none."""
        try:
            line = self.answers.get(timeout=seconds)
        except Empty:
            self.close()
            raise Failed(f"no answer in {seconds:.0f} s") from None
        if not line:
            self.answers.put(line)  # so that every other waiting request ends too
            self.close()
            raise Failed(f"ended with exit code {self.process.returncode}: {self.last or 'no output'}")
        told = json.loads(line)
        if "declined" in told:
            raise Declined(told["declined"])
        if "error" in told:
            raise Failed(told["error"])
        return told["value"]

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self.process.poll() is None

    def close(self) -> None:
        """End it, if it has not ended."""
        if self.errors.closed:
            return
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.listener.join(timeout=2)  # longer only if the worker has left children behind
        if not self.listener.is_alive():
            self.process.stdout.close()
        self.errors.seek(0)
        self.last = (self.errors.read().strip().splitlines() or [""])[-1][:300]
        self.errors.close()


if __name__ == "__main__":
    main()
