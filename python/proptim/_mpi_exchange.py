"""Which rank has which part of the arrays, and how ranks exchange gradients and parameters.

The parts are runs of whole blocks of the sum of squares, counted array by array, so that the norm keeps its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from proptim import _backend
from proptim._arrays import Array, name_of, real_view
from proptim._formats import arithmetic, widened
from proptim._mpi_team import MPI, Team
from proptim._numpy import BLOCK

BUCKET = 1 << 20
"""Bytes of a part that are sent at a time: enough for the full speed of a network, and few compared with a model."""
BUFFERS = 1 << 24
"""Bytes that the buckets of all ranks may take together; with many ranks they are smaller, down to one block."""
ADDED_IN = {
    **{name: np.dtype(name) for name in ("float32", "float64", "complex64", "complex128")},
    **dict.fromkeys(("float16", "bfloat16"), np.dtype(np.float32)),
}
"""dtype of gradients -> dtype in which those of all ranks are added."""
BYTE = MPI.BYTE


class Run(NamedTuple):
    """Elements `begin` to `end` of parameter number `i`, in C order."""

    i: int
    begin: int
    end: int


def _elements(array: Array) -> int:
    """Elements of a block."""
    return BLOCK // (2 if array.dtype.kind == "c" else 1)


def _room(array: Array) -> int:
    """Bytes of an element in a bucket: as it is computed in, for gradients may be wider than their parameter."""
    return arithmetic(array.dtype).itemsize * (2 if array.dtype.kind == "c" else 1)


def cuts_of(arrays: Sequence[Array], ranks: int) -> list[list[int]]:
    """Where the part of each rank begins in each array, and where the last one ends; parts consist of whole blocks."""
    blocks = [-(-a.size // _elements(a)) for a in arrays]
    starts = [sum(blocks) * rank // ranks for rank in range(ranks + 1)]
    cuts, before = [], 0
    for array, count in zip(arrays, blocks, strict=True):
        cuts.append([min(min(max(start - before, 0), count) * _elements(array), array.size) for start in starts])
        before += count
    return cuts


def _buckets(arrays: Sequence[Array], cuts: list[list[int]], rank: int, most: int) -> list[list[Run]]:
    """The part of a rank in runs of whole blocks, together of `most` bytes of what is computed in, or one block."""
    made: list[list[Run]] = []
    room = 0
    for i, (array, cut) in enumerate(zip(arrays, cuts, strict=True)):
        begin, end = cut[rank], cut[rank + 1]
        block, size = _elements(array), _room(array)
        while begin < end:
            count = min(room // (block * size) * block, end - begin)
            if (end - begin) * size <= room:
                count = end - begin  # the last block may be a short one
            if count == 0:
                made.append([])
                room = max(most, block * size)
                continue
            made[-1].append(Run(i, begin, begin + count))
            begin += count
            room -= count * size
    return made


def flat_of(array: Array) -> Any:
    """The elements in C order, to be read and written in runs: in place if their memory is in that order."""
    return array.reshape(-1) if array.flags.c_contiguous else array.flat


def bytes_of(run: Array) -> Array:
    """A dense run as bytes."""
    return run.reshape(-1).view(np.uint8)


def pieces(size: int) -> Iterator[slice]:
    """Where a number of bytes or elements is cut into pieces that are sent one after the other."""
    return (slice(at, min(at + BUCKET, size)) for at in range(0, size, BUCKET))


class Exchange:
    """The arrays that are divided among ranks, and the exchange of gradients and parameters, a bucket at a time.

    Round k is about bucket k of every rank. Two rounds are on their way at a time, each with buffers of its own, which
    are allocated when they are first needed; a run that lies in one place is sent from there and received there.
    """

    def __init__(self, team: Team, arrays: Sequence[Array], cuts: list[list[int]], old: Exchange | None = None) -> None:
        self.team, self.cuts = team, cuts
        self.arrays = list(arrays)
        self.flats = [flat_of(a) for a in arrays]
        most = max(min(BUCKET, BUFFERS // team.size), 1)
        self.buckets = [_buckets(arrays, cuts, rank, most) for rank in range(team.size)]
        self.rounds = max(map(len, self.buckets))
        self.mine = self.buckets[team.rank]
        kept = [] if old is None else zip(map(id, old.arrays), old.parts, old.sums, strict=True)
        known = {key: (part, total) for key, part, total in kept}
        self.parts: list[Array] = []
        """The part of this rank of each array: in place, or a copy if it is not one dense run."""
        self.sums: list[Array | None] = []
        """The gradients of this part, added up; None where there has been none."""
        for i, array in enumerate(self.arrays):
            part, total = known.get(id(array)) or (self.flats[i][slice(*self.own(i))], None)
            self.parts.append(part)
            self.sums.append(total)
        self.moves: list[bool] = []
        """Which arrays go between ranks."""
        self.seen: Any = None
        """The gradients of this rank as they are bound, a list with None for one that is left out, and"""
        self.local: list[Any] = []
        """... to be read in runs."""
        self.summed = False
        sizes = [_room(array) for array in self.arrays]
        every = [sum((run.end - run.begin) * sizes[run.i] for run in runs) for of in self.buckets for runs in of]
        self.largest = max(every, default=0)
        """Bytes of the largest bucket."""
        self.buffers: dict[tuple[str, int, int], Array] = {}
        self.sent = self.received = 0
        self.waited = self.stepped = 0.0
        if old is not None:
            self.sent, self.received, self.waited, self.stepped = old.sent, old.received, old.waited, old.stepped

    def own(self, i: int) -> tuple[int, int]:
        """Where the part of this rank of an array begins and ends."""
        return self.cuts[i][self.team.rank], self.cuts[i][self.team.rank + 1]

    def within(self, run: Run) -> slice:
        """Where a run lies in the part of this rank."""
        begin, _ = self.own(run.i)
        return slice(run.begin - begin, run.end - begin)

    def refresh(self) -> None:
        """Update the copies of arrays that are not one dense run."""
        for i, flat in enumerate(self.flats):
            if not isinstance(flat, np.ndarray):
                begin, end = self.own(i)
                self.parts[i][...] = flat[begin:end]

    def see(self, grads: Sequence[Array | None]) -> list[Array | None]:
        """Take these gradients of this rank as those that go between ranks; the arrays that are to have their sums."""
        self.seen = None  # until all of them are
        for i, grad in enumerate(grads):
            total = self.sums[i]
            if grad is not None and (total is None or total.dtype != ADDED_IN[name_of(grad.dtype)]):
                self.sums[i] = np.zeros(self.parts[i].size, ADDED_IN[name_of(grad.dtype)])
        self.seen, self.local = grads, [None if grad is None else flat_of(grad) for grad in grads]
        self.moves = [grad is not None for grad in grads]
        return [None if grad is None else total for grad, total in zip(grads, self.sums, strict=True)]

    def here(self, rank: int, k: int) -> list[Run]:
        """Bucket k of a rank without the arrays that stay."""
        if k >= len(self.buckets[rank]):
            return []
        return [run for run in self.buckets[rank][k] if self.moves[run.i]]

    @staticmethod
    def _size(runs: Sequence[Run], arrays: Any) -> int:
        """Bytes of these runs of arrays."""
        return sum((run.end - run.begin) * arrays[run.i].itemsize for run in runs)

    def _buffer(self, what: str, k: int, rank: int, size: int) -> Array:
        """A buffer for a bucket, of the size of the largest one, so that it can be kept."""
        key = (what, k % 2, rank)
        if key not in self.buffers or self.buffers[key].size < size:  # by float64 gradients that are rounded
            self.buffers[key] = np.empty(max(self.largest, size), np.uint8)
        return self.buffers[key][:size]

    def _others(self) -> list[int]:
        """The other ranks, from the next on, so that not all send to the same one first."""
        return [(self.team.rank + i) % self.team.size for i in range(1, self.team.size)]

    def _wait(self, requests: list[Any]) -> None:
        begin = perf_counter()
        MPI.Request.Waitall(requests)
        self.waited += perf_counter() - begin

    def _send(self, what: str, k: int, pieces: list[Array], ranks: Sequence[int], tag: int) -> list[Any]:
        """Send runs to ranks, together in a buffer unless there is one alone."""
        message = (
            bytes_of(pieces[0]) if len(pieces) == 1 else self._buffer(what, k, ranks[0], sum(p.nbytes for p in pieces))
        )
        at = 0
        for piece in pieces if len(pieces) > 1 else []:
            message[at : at + piece.nbytes] = bytes_of(piece)
            at += piece.nbytes
        self.sent += message.nbytes * len(ranks)
        return [self.team.comm.Isend([message, BYTE], rank, tag) for rank in ranks]

    # Gradients: from all ranks to the one whose part it is

    def ask(self, k: int) -> list[Any]:
        """Begin round k: send the other ranks the gradients of their parts, receive those of this part."""
        comm, requests = self.team.comm, []
        size = self._size(self.here(self.team.rank, k), self.seen)
        for rank in self._others() if size else []:
            self.received += size
            requests.append(comm.Irecv([self._buffer("gradients", k, rank, size), BYTE], rank, 0))
        for rank in self._others():
            if runs := self.here(rank, k):
                requests += self._send("packed", k, [self.local[i][begin:end] for i, begin, end in runs], [rank], 0)
        return requests

    def add(self, k: int, requests: list[Any]) -> None:
        """End round k: add what was received, in the order of ranks."""
        self._wait(requests)
        runs, at = self.here(self.team.rank, k), 0
        size = self._size(runs, self.seen)
        room = {rank: self._buffer("gradients", k, rank, size) for rank in self._others() if runs}
        with np.errstate(all="ignore"):  # IEEE all the way
            for run in runs:
                dtype = self.seen[run.i].dtype
                end = at + (run.end - run.begin) * dtype.itemsize
                room[self.team.rank] = self.local[run.i][run.begin : run.end]
                whole = self.sums[run.i]
                assert whole is not None
                total = whole[self.within(run)]
                for rank in range(self.team.size):
                    each = room[rank] if rank == self.team.rank else room[rank][at:end].view(dtype)
                    if each.dtype.itemsize == 2:
                        each = widened(each, total.dtype)
                    if rank == 0:
                        first = each
                    else:
                        np.add(first if rank == 1 else total, each, out=total)
                if self.team.size == 1:
                    total[...] = first
                at = end

    def add_all(self) -> None:
        """The rounds of all gradients."""
        coming = self.ask(0) if self.rounds else []
        for k in range(self.rounds):
            after = self.ask(k + 1) if k + 1 < self.rounds else []
            self.add(k, coming)
            coming = after
        self.summed = True

    # Parameters: from the rank whose part it is to all

    def give(self, k: int) -> list[Any]:
        """Begin round k: send this part, receive the others in place or into buffers."""
        comm, requests = self.team.comm, []
        for rank in self._others():
            if runs := self.here(rank, k):
                place = self._place(rank, k, runs)
                self.received += place.nbytes
                requests.append(comm.Irecv([place, BYTE], rank, 1))
        runs = self.here(self.team.rank, k)
        for run in runs:
            if not isinstance(self.flats[run.i], np.ndarray):
                self.flats[run.i][run.begin : run.end] = self.parts[run.i][self.within(run)]
        if runs and self.team.size > 1:
            requests += self._send("part", k, [self.parts[run.i][self.within(run)] for run in runs], self._others(), 1)
        return requests

    def _place(self, rank: int, k: int, runs: list[Run]) -> Array:
        flat = self.flats[runs[0].i]
        if len(runs) == 1 and isinstance(flat, np.ndarray):
            return bytes_of(flat[runs[0].begin : runs[0].end])
        return self._buffer("parameters", k, rank, self._size(runs, self.arrays))

    def take(self, k: int, requests: list[Any]) -> None:
        """End round k: copy from buffers what was not received in place."""
        self._wait(requests)
        for rank in self._others():
            runs, at = self.here(rank, k), 0
            if not runs or (len(runs) == 1 and isinstance(self.flats[runs[0].i], np.ndarray)):
                continue
            place = self._place(rank, k, runs)
            for run in runs:
                dtype = self.arrays[run.i].dtype
                end = at + (run.end - run.begin) * dtype.itemsize
                self.flats[run.i][run.begin : run.end] = place[at:end].view(dtype)
                at = end

    def spread(self, moves: Sequence[bool]) -> None:
        """The rounds of these parameters, of which each rank has set its part."""
        self.seen, self.moves = None, list(moves)
        going: list[Any] = []
        for k in range(self.rounds):
            before, going = going, self.give(k)
            if k:
                self.take(k - 1, before)
        if self.rounds:
            self.take(self.rounds - 1, going)

    # The norm

    def sum_of_squares(self, backend: str, threads: int) -> tuple[float, bool]:
        """Sum of squares of all gradients, and whether all are finite: each rank has summed the blocks of its part."""
        sums: Any = _backend.sums_of(backend)
        here = [i for i, moves in enumerate(self.moves) if moves]
        seen = [real_view(total) for i in here if (total := self.sums[i]) is not None]
        # float64 gradients are rounded as the rule rounds them; narrower ones are exact in what it computes in.
        real = [arithmetic(self.arrays[i].dtype) for i in here]
        seen = [widened(a, to) if a.itemsize > to.itemsize else a for a, to in zip(seen, real, strict=True)]
        blocks, finite = sums.sums_of_blocks(seen, threads)
        of = [[-(-(end - begin) // _elements(self.arrays[i])) for begin, end in pairwise(self.cuts[i])] for i in here]
        counts = [sum(column) + 1 for column in zip(*of, strict=True)]  # and one that says whether all are finite
        starts = np.cumsum([0, *counts])
        every = np.empty(starts[-1])
        mine = np.append(blocks, float(finite))
        request = self.team.comm.Iallgatherv([mine, MPI.DOUBLE], [every, (counts, starts[:-1].tolist()), MPI.DOUBLE])
        self._wait([request])
        self.sent += mine.nbytes * (self.team.size - 1)
        self.received += every.nbytes - mine.nbytes
        at, order = starts[:-1].copy(), []
        for counted in of:  # array by array, and of each rank by rank
            for rank, count in enumerate(counted):
                order.append(every[at[rank] : at[rank] + count])
                at[rank] += count
        squares: float = sums.sum_of_blocks(np.concatenate(order))
        return squares, bool(every[starts[1:] - 1].all())
