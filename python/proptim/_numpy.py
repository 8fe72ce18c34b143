"""The `numpy` backend: the Python text of the rule on whole arrays. The tests compare all other backends with it."""

from __future__ import annotations

import os
from _thread import allocate_lock, get_ident
from collections.abc import Iterable, Sequence
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from proptim import _stages
from proptim._arrays import BFLOAT16, Array, Ranges, byte_bounds
from proptim._formats import Stored, after, apart, arithmetic, loaded, planes, stores, widened
from proptim._interrupts import Store, commit
from proptim._random import Draw
from proptim._rows import Rows, taken

if TYPE_CHECKING:
    from proptim._parameters import Changes, Clock, Parameter
    from proptim.rule import Rule

Segment = tuple["Stored | None", ...]
"""params, then the state arrays of a rule, all real, in formats that follow from their dtypes; None if absent.

Last there may be the average of the parameter, in the dtype of the arithmetic."""


def busy(process: int | None, own: bool = False, averaged: bool = False) -> str:
    """The error message if the claim is held; `process` took it; `own`: in this thread; `averaged`: for a block."""
    if averaged:
        return (
            "the parameters are the averages of the weights, within `with opt.averaged():`; expected this call after "
            "the block, which puts the weights back"
        )
    if process is not None and process != os.getpid():
        return (
            "this optimizer was being stepped by another thread when this process was forked, so its arrays may be "
            "half stepped; expected a fork between steps: make a new optimizer"
        )
    if own:
        return (
            "this call was made by a schedule or a signal handler within another call of the same optimizer; expected "
            "no call until that one has returned: do this afterwards"
        )
    return "this optimizer is being stepped by another thread; expected one thread at a time: use a lock"


LANES, BLOCK = 16, 4096
"""Shape of the sum of squares, the same in `csrc/reduce.c`: see `sum_of_squares`."""


class Claim:
    """Holds an optimizer for one call: `with claim:`. A second call at the same time raises RuntimeError.

    Any thread may release it: a block of `averaged` may end in another one than it has begun in. `__exit__` is that of
    the lock, in C: one in Python could be interrupted before it begins, and never release the claim.
    """

    process: int | None = None
    thread: int | None = None
    """The thread that has it, or had it last."""
    averaged = False
    """Whether the averages of the weights are in their place: see `_averages`."""

    def __init__(self) -> None:
        self.lock = allocate_lock()

    def __enter__(self) -> bool:
        got: list[bool] = []
        try:
            got.extend(map(self.lock.acquire, [False]))  # in one C call, so that it is known that it was taken
            if not got[0]:
                raise RuntimeError(busy(self.process, self.thread == get_ident(), self.averaged))
            self.process, self.thread = os.getpid(), get_ident()
        except BaseException:
            if True in got:
                self.lock.release()
            raise
        return True

    __exit__ = property(attrgetter("lock.__exit__"))


class Plan:
    """One rule bound to the arrays it steps. The same surface as the compiled `_core.Plan`."""

    def __init__(
        self,
        rule: type[Rule],
        segments: Sequence[Segment],
        threads: int,
        auto: bool,
        claim: Claim | None = None,
        changes: Changes | None = None,
    ) -> None:
        self.rule = rule.rule
        self.coefs = len(rule.coef_names)
        self.arrays = 2 + len(rule.states)
        # Views of its own, as the compiled plan has buffers: what is made of the arrays that it was given, such as
        # `setflags(write=False)` and another shape, changes nothing for arrays that are stepped already.
        self.segments: list[list[Any]] = [[apart(param), None, *map(apart, state)] for param, *state in segments]
        self.row_of = [0] * len(segments)
        self.clocks: list[Clock] = []
        self.cohorts: Any = None
        self.written = Ranges(plane for segment in segments for array in segment for plane in planes(array))
        self.disjoint = True
        self.casts = False
        self.seed: int | None = None
        self.places = [(i, 0) for i in range(len(segments))]
        self.claim = claim or Claim()
        self.given: list[Any] = [None] * len(segments)
        self.grads: list[Any] = [None] * len(segments)
        self.tally: Any = None
        self.begun: set[int] = set()
        self.steps = 0
        self.told: Any = None

    def bind(self, grads: Sequence[Any], given: list[Any] | None = None, arrays: list[Any] | None = None) -> None:
        """Set the gradient of every segment, an array or Rows, None for none; the caller has checked them.

        `given` and `arrays` are kept for the caller: the gradients as the user passed them, and as arrays.
        """
        kept = [] if given is None else [(self, "given", given), (self, "grads", arrays)]
        own = map(apart, grads)
        commit(zip(self.segments, repeat(1, len(self.segments)), [*own], strict=True), kept)

    def bind_one(self, i: int, grad: Array | Rows | None, given: Any, array: Any) -> None:
        """`bind` for one segment."""
        if self.given is self.grads:
            self.given = self.given.copy()
        commit([(self.segments[i], 1, apart(grad)), (self.given, i, given), (self.grads, i, array)])

    def assign(self, row_of: list[int], clocks: list[Clock], cohorts: Any = None) -> None:
        """Set the row of coefficients that each segment uses, the clock of each row, and the cohorts of the rows."""
        vars(self).update(row_of=row_of or self.row_of, clocks=clocks, cohorts=cohorts)

    def locate(self, places: list[tuple[int, int]]) -> None:
        """Set what each segment is, for stochastic rounding: the number of the parameter, and where it begins in it."""
        self.places = places

    def _draw(self, i: int, step: float) -> Draw | None:
        """The stochastic rounding of a segment at this step; None where numbers are rounded to nearest."""
        return None if self.seed is None else Draw(self.seed, *self.places[i], int(step))

    def sort_rows(self, only: int = -1) -> tuple[int, int] | None:
        """Look at the indices of all gradients of rows (or one): a segment and which of its indices is no row, if any.

        Other backends step by the indices that were looked at here.
        """
        for i in range(len(self.segments)) if only < 0 else (only,):
            segment = self.segments[i]
            if isinstance(segment[1], Rows):
                at = segment[1].unknown(len(planes(segment[0])[0]))
                if at < len(segment[1].indices):
                    return i, at
        return None

    def reduce(self, among: Sequence[int] | None = None) -> tuple[float, bool]:
        """Sum of squares of all bound gradients, or of those of some segments, and whether every one is finite."""
        segments = self.segments if among is None else [self.segments[i] for i in among]
        return sum_of_squares([seen(s) for s in segments if s[1] is not None])

    def meets(self, low: int, high: int) -> bool:
        """Whether some address in [low, high) may belong to a parameter or a state array."""
        return not self.disjoint or self.written.meet(low, high)

    def offer(self, grads: list[Any], given: list[Any] | None = None) -> bool:
        """Bind these gradients if a quick check shows that they fit; else do nothing and return False.

        A gradient can replace only a gradient, and None only None. `given`: the gradients as the user passed them.
        """
        if len(grads) != len(self.segments) or not self.disjoint:
            return False
        for segment, grad, bound in zip(self.segments, grads, self.grads, strict=True):
            if grad is not bound and (segment[1] is None or not self._evident(segment, grad, given)):
                return False
        kept = grads.copy()
        self.bind(kept, kept if given is None else given, kept)
        return True

    def offer_one(self, i: int, grad: Any, given: Any = None) -> bool:
        """`offer` for one segment, which need not have had a gradient."""
        if not self.disjoint or not self._evident(self.segments[i], grad, given):
            return False
        self.bind_one(i, grad, grad if given is None else given, grad)
        return True

    def _evident(self, segment: Sequence[Stored | None], grad: Any, given: Any) -> bool:
        """Whether it is a plain array of the dtype and shape of the segment with memory of its own."""
        param, *_ = planes(segment[0])
        return (
            type(grad) is np.ndarray
            and grad.dtype == param.dtype
            and (grad.dtype != BFLOAT16 or given is not None)  # a gradient of uint16 is none
            and grad.shape == param.shape
            and not self.written.meet(*byte_bounds(grad))
        )

    def remember(self, *step: Any) -> None:
        """Does nothing: only the compiled plan repeats steps, for speed."""

    def forget(self) -> None:
        """Does nothing: there is no step to repeat."""

    def repeat(self, grads: Any = None) -> bool:
        """Always False: this plan does not repeat steps without checks."""
        return False

    def step(self, rows: Sequence[Sequence[float] | None], clocks: list[Clock], tally: Any = None) -> None:
        """One step of every segment with the coefficients of its row; then set the clocks and the tally.

        A row has the coefficients of the rule, then those of the stages; segments of a row that is None are left out. A
        round of `step_one` ends: `begun` is emptied. With a `seed`, numbers are rounded at random by it.
        """
        work = [
            (segment, coefs, self._draw(i, clocks[row][0]) if clocks else None)
            for i, (segment, row) in enumerate(zip(self.segments, self.row_of, strict=True))
            if (coefs := rows[row]) is not None and segment[1] is not None
        ]
        counts = {"clocks": clocks, "tally": tally, "begun": set(), "steps": self.steps + 1}
        self._run(work, [(self, name, value) for name, value in counts.items()])
        if self.told is not None:
            self.told()

    def step_one(self, index: int, row: Sequence[float], parameter: Parameter, clock: Clock, tally: Any = None) -> None:
        """One step of one segment; then set the clock of its parameter.

        A segment that is already in `begun` begins a new round.
        """
        begins = not self.begun or index in self.begun
        begun: set[int] = set() if begins else self.begun
        counts = {"tally": tally, "begun": begun, "steps": self.steps + begins}
        stores = [(self, name, value) for name, value in counts.items()]
        also = map(begun.add, [index])
        work = [(self.segments[index], row, self._draw(index, clock[0]))]
        self._run(work, [*stores, (parameter, "clock", clock)], also)
        if self.told is not None:
            self.told()

    def _run(
        self,
        work: Sequence[tuple[Sequence[Stored | None], Sequence[float], Draw | None]],
        counts: Sequence[Store],
        also: Iterable[Any] = (),
    ) -> None:
        """Step these segments with their rows and set the counts: everything, or nothing if it fails."""
        found: list[Store] = []
        for segment, row, draw in work:
            found += self._stepped(segment, row, draw)
        commit(found, counts, also)

    def _stepped(self, segment: Sequence[Stored | None], row: Sequence[float], draw: Draw | None) -> list[Store]:
        """The arrays of a segment that a step changes, and their new values."""
        zeroed, at, part = picked(segment)
        param, grad, *state = loaded(part[: self.arrays])
        assert param is not None
        assert grad is not None
        real = param.dtype.type
        stages = row[self.coefs :]
        *_, zero, flush, _ = stages
        with np.errstate(all="ignore"):  # IEEE arithmetic: inf and NaN are results, not errors
            decayed, seen = _stages.before(param, grad, stages)
            new = self.rule(decayed, seen, *state, *(real(c) for c in row[: self.coefs]))
            if flush != _stages.NEUTRAL["flush"]:
                smallest = np.finfo(real).smallest_normal
                new = (new[0], *(None if a is None else _stages.flush(a, smallest) for a in new[1:]))
            found: list[Store] = []
            for j, n in zip((0, *range(2, self.arrays)), new, strict=True):
                if (array := segment[j]) is not None:
                    if draw is not None:
                        n = draw.rounded(j, array, n, at)
                    made = stores(array, n)
                    found += [(plane, at, values) for plane, _, values in made]
                    if j == 0:
                        found += self._averaged(segment, made, row)
        return [*found, (zeroed, ..., 0)] if zero != _stages.NEUTRAL["zero"] else found

    def _averaged(self, segment: Sequence[Any], made: Sequence[Store], row: Sequence[float]) -> list[Store]:
        """What to store as the average of a parameter, given what is stored in that."""
        share = row[-1]
        if len(segment) == self.arrays or share == _stages.NEUTRAL["average"]:
            return []
        average = segment[-1]
        real = average.dtype
        with np.errstate(all="ignore"):
            new = _stages.average(average, after(segment[0], made, real), real.type(share))
        return [(average, ..., new)]


def picked(segment: Sequence[Any]) -> tuple[Array, Any, Sequence[Any]]:
    """What of a segment is stepped: the numbers of its gradient, which rows, and these of every array.

    Of a gradient of rows they are copies, and the gradient is their sums.
    """
    grad = segment[1]
    if not isinstance(grad, Rows):
        return grad, ..., segment
    rows, sums = grad.summed(arithmetic(planes(segment[0])[0].dtype))
    return grad.values, rows, [taken(segment[0], rows), sums, *(taken(a, rows) for a in segment[2:])]


def seen(segment: Sequence[Any]) -> Array:
    """The gradient of a segment as the rule sees it, of rows the sum of each."""
    real = arithmetic(planes(segment[0])[0].dtype)
    return segment[1].summed(real)[1] if isinstance(segment[1], Rows) else widened(segment[1], real)


def sum_of_squares(grads: Sequence[Array]) -> tuple[float, bool]:
    """Sum of squares of all elements in float64, and whether all are finite; `grads` are real arrays.

    The order of the additions is fixed, so that every backend and thread count gives the same bits. Elements in C order
    are distributed to 16 lanes, and each lane adds up its 256 squares of a block of 4096. Then the lanes, and after
    them the blocks of all arrays, are added in pairs of neighbours.
    """
    sums, finite = sums_of_blocks(grads)
    return sum_of_blocks(sums), finite


def sums_of_blocks(grads: Sequence[Array], threads: int = 1) -> tuple[Array, bool]:
    """The sum of squares of each block, and whether all elements are finite; `threads` make no difference here."""
    finite = True
    sums = []
    with np.errstate(all="ignore"):
        for grad in grads:
            grad = widened(grad, arithmetic(grad.dtype))
            finite = finite and bool(np.isfinite(grad).all())
            padded = np.zeros(-(-grad.size // BLOCK) * BLOCK)  # adding a zero square is exact
            padded[: grad.size] = grad.reshape(-1)
            squares = (padded * padded).reshape(-1, BLOCK // LANES, LANES)
            lanes = np.zeros((len(squares), LANES))
            for i in range(BLOCK // LANES):
                lanes += squares[:, i]
            while lanes.shape[1] > 1:
                lanes = lanes[:, 0::2] + lanes[:, 1::2]
            sums.append(lanes[:, 0])
    return np.concatenate([*sums, np.zeros(0)]), finite


def sum_of_blocks(sums: Array) -> float:
    """The sum of the sums of blocks, in pairs."""
    tree = np.append(sums, 0.0)
    with np.errstate(all="ignore"):
        while len(tree) > 1:
            if len(tree) % 2:
                tree = np.append(tree, 0.0)
            tree = tree[0::2] + tree[1::2]
    return float(tree[0])
