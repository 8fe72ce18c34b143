"""One optimizer step, proptim beside torch.optim, on this machine: `python bench/versus_torch.py`.

Each contestant lives in a process of its own (thread pools spoil each other), has the same float32 arrays with its
gradients bound, and is asked in turn: a round is one timing of each, and the ratio is taken round by round.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import numpy as np

RULES = ("SGD", "Rprop", "RMSprop", "Adagrad", "Adadelta", "Adam", "AdamW", "NAdam")
SIZES = (1_000, 100_000, 10_000_000)
ROUNDS = 15
ROUND_SECONDS = 0.02  # long beside the clock's grain and a context switch


def contestant(pipe: Connection, library: str, rule: str, size: int) -> None:
    """Step on request; answer with the seconds of one step, the mean over a round."""
    rng = np.random.default_rng(0)
    weights, grads = (rng.standard_normal(size, dtype=np.float32) for _ in range(2))
    optimizer: Any
    if library == "torch":
        import torch

        tensor = torch.from_numpy(weights).requires_grad_()
        tensor.grad = torch.from_numpy(grads)
        optimizer = getattr(torch.optim, rule)([tensor])
    else:
        import proptim

        optimizer = getattr(proptim, rule)([weights], grads=[grads])
    for _ in range(30):  # caches, pages, proptim's look at whether threads help
        optimizer.step()
    steps = 1
    while True:
        begin = perf_counter()
        for _ in range(steps):
            optimizer.step()
        seconds = perf_counter() - begin
        if seconds > ROUND_SECONDS:
            break
        steps *= 2
    pipe.send("ready")
    while pipe.recv():
        begin = perf_counter()
        for _ in range(steps):
            optimizer.step()
        pipe.send((perf_counter() - begin) / steps)


def duel(rule: str, size: int) -> tuple[float, float, list[float]]:
    """Median seconds of a step of proptim and of torch, and the ratio torch / proptim of every round."""
    context = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    for library in ("proptim", "torch"):
        ours, theirs = context.Pipe()
        worker = context.Process(target=contestant, args=(theirs, library, rule, size), daemon=True)
        worker.start()
        ours.recv()
        pipes.append(ours)
        workers.append(worker)
    rounds = []
    for _ in range(ROUNDS):
        times = []
        for pipe in pipes:
            pipe.send(True)
            times.append(pipe.recv())
        rounds.append(times)
    for pipe, worker in zip(pipes, workers, strict=True):
        pipe.send(False)
        worker.join()
    mine, theirs_ = (statistics.median(column) for column in zip(*rounds, strict=True))
    return mine, theirs_, sorted(t / m for m, t in rounds)


def main() -> None:
    """Print a table of medians, with the spread of the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rules", nargs="+", default=RULES, choices=RULES)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    args = parser.parse_args()
    print(f"{'rule':10}{'weights':>12}{'proptim us':>13}{'torch us':>12}{'torch / proptim':>18}   quartiles")
    for rule in args.rules:
        for size in args.sizes:
            mine, theirs, ratios = duel(rule, size)
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(
                f"{rule:10}{size:12,}{mine * 1e6:13.1f}{theirs * 1e6:12.1f}{middle:18.1f}   {low:.1f} to {high:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
