"""A program on any number of ranks that goes on from its last checkpoint; what goes wrong with it is said by its words.

`train.py FOLDER STEPS [WORD RANK STEP]`: at this step this rank does what the word says. Gradients are whole numbers,
whose sum is the same however many ranks share them, so that the bits at the end are those of any other number of ranks.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
from mpi4py import MPI

import proptim
from proptim import _mpi_exchange
from proptim.mpi import Sharded

COMM = MPI.COMM_WORLD
BATCH = 12
"""Samples of a step: 1, 2, 3 and 4 ranks share them."""


def gradient(step, sample, size):
    return np.random.default_rng([step, sample]).integers(-9, 10, size).astype(np.float32)


def fail(word, opt):
    if word == "raise":
        raise ZeroDivisionError("of the program")
    if word in ("exit", "early"):
        sys.exit(3)
    if word == "return":
        os.environ["ENDED"] = "1"
    if word == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "half-way":  # of what cannot be taken back
        _mpi_exchange.Exchange.add = lambda *_: [][0]
    if word == "save":
        opt.save("elsewhere")
    if word == "caught":
        try:
            opt.step([np.ones(3, np.float32)])
        except ValueError as error:
            print(f"rank {COMM.rank} caught: {error}", flush=True)


def main(folder, steps, word="", rank=-1, at=-1):
    if word == "early" and COMM.rank == int(rank):  # before there is a Sharded
        fail(word, None)
    params = [np.zeros(3 * 4096 + 5, np.float32), np.zeros(70, np.float32)]
    options = {"momentum": 0.9, "clip_norm": 100.0, "state_dtype": "int8", "ema": 0.9}
    opt = Sharded(proptim.RMSprop, params, reduce="sum", lr=0.01, **options)
    last = Path(folder, "last")
    if last.exists():
        begun = last.read_text()
        opt.load(Path(folder, f"{begun}.optimizer"))
        with np.load(Path(folder, f"{begun}.npz")) as file:
            for i, p in enumerate(params):
                p[...] = file[f"arr_{i}"]
    while opt.steps < int(steps):
        if COMM.rank == int(rank) and opt.steps == int(at):
            fail(word, opt)
            if "ENDED" in os.environ:
                return
        share = range(COMM.rank, BATCH, COMM.size)
        try:
            opt.step([sum(gradient(opt.steps, sample, p.size) for sample in share) for p in params])
        except ValueError as error:
            print(f"rank {COMM.rank} caught: {error}", flush=True)
            continue
        opt.save(Path(folder, f"{opt.steps}.optimizer"))
        if COMM.rank == 0:
            np.savez(Path(folder, f"{opt.steps}.npz"), *params)
            Path(folder, "new").write_text(str(opt.steps))
            Path(folder, "new").rename(last)  # only now is this checkpoint the last one
            Path(folder, f"{opt.steps - 1}.optimizer").unlink(missing_ok=True)
            Path(folder, f"{opt.steps - 1}.npz").unlink(missing_ok=True)
        COMM.Barrier()  # what fails at the next step finds this checkpoint whole


main(*sys.argv[1:])
