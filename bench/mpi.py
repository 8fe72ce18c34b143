"""proptim.mpi measured: `mpiexec -n 4 python -m proptim.bench.mpi --json runs.json`, once for each number of ranks.

Of each size: milliseconds of the fastest step and of the median one, of them waiting for others and stepping, bytes
that a rank sends, and bytes of state that it has. Runs are gathered in one file, and
`python -m proptim.bench.mpi --json runs.json --draw model.png` draws them, and what the model says for up to 1,000
ranks.

The model: a rank steps its part, P / N weights; adds the gradients of the other N - 1 ranks for it; and exchanges, in
rounds of a bucket of every rank, 2 (N - 1) / N of the model with N - 1 others, which costs a latency for each message
and its bytes at the bandwidth. It takes no credit for what overlaps, and so is a bound from above.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import proptim
from proptim._numpy import BLOCK

WEIGHT = 4
"""Bytes of a float32."""
BIG = 1 << 20
"""Bytes of a message whose time is bandwidth."""
TABLE = 40 * BIG
"""Bytes that such messages go round in: more than caches hold, as gradients and parameters are."""


def bucket(ranks: int, most: int, together: int) -> int:
    """Bytes of a bucket, as `proptim.mpi` cuts them."""
    return max(min(most, together // ranks) // (BLOCK * WEIGHT), 1) * BLOCK * WEIGHT


def predicted(weights: int, ranks: int, known: dict[str, float]) -> dict[str, float]:
    """Seconds of a step by the model: stepping, adding, and communication."""
    part = weights * WEIGHT / ranks
    rounds = -(-part // bucket(ranks, int(known["bucket"]), int(known["buffers"])))
    return {
        "step": weights / ranks / known["stepped"],
        "add": part * (ranks - 1) / known["added"],
        "communicate": 2 * (ranks - 1) * (rounds * known["latency"] + part / known["bandwidth"]),
    }


def seconds(call: Any, rounds: int) -> float:
    """The fastest of some calls."""
    taken = []
    for _ in range(rounds):
        begin = perf_counter()
        call()
        taken.append(perf_counter() - begin)
    return min(taken)


def known_here(comm: Any, weights: int) -> dict[str, float]:
    """The numbers of the model: latency and bandwidth between two ranks, weights stepped and bytes added a second."""
    from proptim import _mpi_exchange

    rank, other = comm.rank, comm.rank ^ 1
    out, into = (np.zeros(TABLE, np.uint8) for _ in range(2))

    def exchange(size: int, at: int = 0) -> None:
        """Rank 0 and rank 1 send each other a message at the same time, as in a step."""
        if rank < 2 <= comm.size:
            wanted = comm.Irecv([into[at : at + size], size], other)
            comm.Send([out[at : at + size], size], other)
            wanted.Wait()

    latency = seconds(lambda: exchange(1), 200)

    def exchange_all() -> None:
        for at in range(0, TABLE, BIG):
            exchange(BIG, at)

    there = seconds(exchange_all, 5) / (TABLE // BIG)
    a, b = (np.ones(weights, np.float32) for _ in range(2))
    added = seconds(lambda: np.add(a, b, out=a), 9)
    opt = proptim.RMSprop([a], threads=1, grads=[b])
    opt.step()
    return {
        "latency": latency,
        "bandwidth": BIG / max(there - latency, 1e-12),
        "added": weights * WEIGHT / added,
        "stepped": weights / seconds(opt.step, 9),
        "bucket": _mpi_exchange.BUCKET,
        "buffers": _mpi_exchange.BUFFERS,
    }


def measured(comm: Any, weights: int, rounds: int) -> dict[str, float]:
    """A run on all ranks: figures of the slowest rank, and of the one with most state."""
    from proptim.mpi import Sharded

    w, g = np.ones(weights, np.float32), np.ones(weights, np.float32)
    opt = Sharded(proptim.RMSprop, [w], grads=[g], threads=1, lr=1e-6)
    opt.step()
    opt.step()
    before = opt.traffic
    each: dict[str, list[float]] = {"seconds": [], "waited": [], "stepped": [], "sent": []}
    for _ in range(rounds):
        comm.Barrier()
        start = perf_counter()
        opt.step()
        after = {"seconds": perf_counter() - start, **opt.traffic}
        for name, values in each.items():
            values.append(after[name] - before.get(name, 0.0))
        before = opt.traffic
    state = sum(a.nbytes for entry in opt.state.values() for a in entry.values() if isinstance(a, np.ndarray))
    told = {name: statistics.median(values) for name, values in each.items()}
    told |= {"fastest": min(each["seconds"]), "fastest_stepped": min(each["stepped"]), "state": float(state)}
    every = comm.allgather(told)
    return {name: max(each[name] for each in every) for name in told}


def run(sizes: list[int], rounds: int, path: Path | None) -> None:
    """Measure on the ranks there are, print it, and add it to the file."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    known = comm.bcast(known_here(comm, 1 << 22))
    runs = []
    for weights in sizes:
        figures = measured(comm, weights, rounds)
        runs.append({"ranks": comm.size, "weights": weights, **figures})
        if comm.rank == 0:
            model = predicted(weights, comm.size, known)
            print(
                f"{comm.size} ranks, {weights:>11,} weights: fastest {figures['fastest'] * 1e3:8.2f} ms, median "
                f"{figures['seconds'] * 1e3:8.2f} ms, of which waiting {figures['waited'] * 1e3:8.2f}; stepping "
                f"{figures['stepped'] * 1e3:7.2f}, at the fastest {figures['fastest_stepped'] * 1e3:7.2f}; sent "
                f"{figures['sent'] / 1e6:7.2f} MB, state {figures['state'] / 1e6:7.2f} MB; model "
                + ", ".join(f"{name} {value * 1e3:.2f}" for name, value in model.items()),
                flush=True,
            )
    if comm.rank == 0 and path is not None:
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        library = MPI.Get_library_version().split(",")[0].split("\n")[0].strip()
        path.write_text(
            json.dumps([*before, {"mpi": library, "known": known, "runs": runs}], indent=1), encoding="utf-8"
        )


def draw(path: Path, picture: Path, latency: float, bandwidth: float) -> None:
    """The model to 1,000 ranks, by what was measured here and on a network of this latency and bandwidth."""
    import matplotlib.pyplot as plt

    told = json.loads(path.read_text(encoding="utf-8"))
    known = next((each for each in told if each["runs"][0]["ranks"] == 2), told[-1])["known"]
    network = {**known, "latency": latency, "bandwidth": bandwidth}
    ranks = sorted({round(10 ** (i / 40)) for i in range(121)})
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for ax, numbers, title in (
        (axes[0], known, "this machine"),
        (axes[1], network, f"a network of {latency * 1e6:g} us and {bandwidth / 1e9:g} GB/s"),
    ):
        for weights in sorted({each["weights"] for one in told for each in one["runs"]}):
            lines = [predicted(weights, n, numbers) for n in ranks]
            (line,) = ax.loglog(ranks, [sum(parts.values()) * 1e3 for parts in lines], label=f"{weights:,} weights")
            ax.loglog(ranks, [parts["step"] * 1e3 for parts in lines], ":", color=line.get_color())
            if ax is axes[0]:
                points = [
                    (r["ranks"], r["fastest"] * 1e3) for one in told for r in one["runs"] if r["weights"] == weights
                ]
                ax.loglog(*zip(*points, strict=True), "o", color=line.get_color())
        ax.set(xlabel="ranks", title=f"{title}: points measured" if ax is axes[0] else title)
    axes[0].set_ylabel("ms a step; dotted: without communication")
    axes[0].legend()
    fig.savefig(picture, dpi=110)


def main() -> None:
    """Run, or draw what runs have left."""
    parser = argparse.ArgumentParser(prog="python -m proptim.bench.mpi", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sizes", default="1000000,10000000,50000000", help="numbers of weights, float32")
    parser.add_argument("--rounds", type=int, default=11, help="steps of which the median is taken")
    parser.add_argument("--json", type=Path, help="file that runs are added to")
    parser.add_argument("--draw", type=Path, help="draw what is in the file into this picture, instead of running")
    parser.add_argument("--latency", type=float, default=5e-6, help="seconds for a message of a network, for --draw")
    parser.add_argument("--bandwidth", type=float, default=3e9, help="bytes a second of a network, for --draw")
    given = parser.parse_args()
    if given.draw is None:
        run([int(float(size)) for size in given.sizes.split(",")], given.rounds, given.json)
    elif given.json is None:
        sys.exit("--draw needs the file of the runs; expected --json too")
    else:
        draw(given.json, given.draw, given.latency, given.bandwidth)


if __name__ == "__main__":
    main()
