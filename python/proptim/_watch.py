"""What `Optimizer.watch` records of a run: for each parameter and step some norms and, for Rprop, its step sizes.

The arrays are read before and after a watched step, in NumPy, so that the kernels are not involved and training does
not change. Norms are sums in the fixed order of `_numpy.sum_of_squares`, and counts do not depend on the order, so the
record is the same on every backend and for every number of threads.
"""

from __future__ import annotations

import csv
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from proptim import _backend, _stages
from proptim._arrays import Array
from proptim._files import whole
from proptim._formats import FORGET, PAIRS, REMEMBERED, widened
from proptim._interrupts import at_once
from proptim._parameters import Parameter, Shown
from proptim._rows import Rows, real_gradient
from proptim._storage import state_of

if TYPE_CHECKING:
    from proptim._stepper import Stepper

LOWEST, OCTAVES = -50, 88
"""The octaves of all legal step sizes of Rprop: the first begins at 2**-50, the last at 2**37."""
CELLS = 64
"""Cells of an octave: a step size is counted according to its exponent and the first six bits of its fraction."""
EDGES = [round(CELLS * 2 ** (k / 8)) - CELLS for k in range(8)]
"""The first cell of each eighth of an octave: edges of bins are rounded to 1/64 of their octave."""
HIDDEN = round(math.log2(FORGET))
"""Octaves by which the word of a weight without a last sign is larger than its step size; see `_formats`."""
PIECE = 1 << 16
"""Elements that are processed together: their temporary arrays fit into an L2 cache."""

NORMS = ("grad_norm", "weight_norm", "update_norm")


class Row(NamedTuple):
    """The record of one parameter at one step."""

    step: int
    grad_norm: float
    weight_norm: float
    update_norm: float
    turned: float | None
    """The share of weights whose gradient has changed its sign; None for rules that do not use signs."""
    first: int
    """The bin of the first of `counts`."""
    counts: Array | None


class Watch(Mapping[int | str, Mapping[str, Array]]):
    """The record of the watched steps: name or index of a parameter -> column -> array with one element per step.

    Made by `Optimizer.watch`. A parameter without a gradient at a step has no row for that step, and a step that was
    skipped or raised an error has no rows. Parameters without names have the index that they had at the step.

    These columns, int64 and float64, exist for every optimizer:

    ============== ===============================================================================
    step           number of the step: `Optimizer.steps` after it
    grad_norm      Euclidean norm of the gradient, times `grad_scale`, before clipping and decay
    weight_norm    norm of the weights after the step
    update_norm    norm of the difference between the weights after the step and before it
    ratio          update_norm / weight_norm
    ============== ===============================================================================

    Rprop has three more:

    ============== ===============================================================================
    turned         share of the weights whose gradient has changed its sign, from 0 to 1
    step_sizes     counts of step sizes after the step: a row per step, a column per bin
    edges          the bins in use: column j counts edges[j] <= step size < edges[j + 1]
    ============== ===============================================================================

    Bins are an eighth of an octave wide: each edge is larger than the previous one by a factor of 2**(1/8), about 9 %,
    rounded to 1/64 of an octave. A complex weight counts as two.

    Parameters
    ----------
    every : int
        Interval between watched steps.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> w = np.array([3.0, 4.0])
    >>> opt = proptim.SGD({"w": w}, lr=0.5)
    >>> watch = opt.watch()
    >>> opt.step([w.copy()])
    >>> opt.step([w.copy()])
    >>> watch["w"]["grad_norm"], watch["w"]["ratio"]
    (array([5. , 2.5]), array([1., 1.]))
    """

    def __init__(self, every: int) -> None:
        if isinstance(every, bool) or not hasattr(every, "__index__") or operator.index(every) < 1:
            raise ValueError(f"every is {every!r:.80}; expected a whole number of at least 1")
        self.every = operator.index(every)
        self.stopped = False
        self._rows: dict[int | str, list[Row]] = {}

    def stop(self) -> None:
        """Stop recording; the record stays."""
        self.stopped = True

    def __getitem__(self, key: int | str) -> Mapping[str, Array]:
        if key not in self._rows:
            raise KeyError(f"there is no record of a parameter {key!r}; expected one of: {[*self._rows]}")
        rows = list(self._rows[key])  # a copy, because another thread may be stepping
        columns: dict[str, Array] = {
            "step": np.array([row.step for row in rows]),
            **{name: np.array([getattr(row, name) for row in rows]) for name in NORMS},
        }
        with np.errstate(all="ignore"):  # weights may be all zero
            columns["ratio"] = columns["update_norm"] / columns["weight_norm"]
        if rows[0].turned is not None:
            columns["turned"] = np.array([row.turned for row in rows])
            columns |= histogram(rows)
        return Shown(columns, "take a copy of the arrays, or of all with dict()")

    def __iter__(self) -> Iterator[int | str]:
        return iter(list(self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        count = sum(map(len, self._rows.values()))
        state = "stopped" if self.stopped else f"every {self.every} steps" if self.every > 1 else "every step"
        return f"Watch({state}, {len(self)} parameters, {count:,} rows)"

    def quantiles(self, key: int | str, shares: Sequence[float] = (0.1, 0.5, 0.9)) -> Array:
        """Quantiles of the step sizes of Rprop, estimated from the histograms, with an error of at most 5 %.

        Parameters
        ----------
        key : int or str
            Name or index of the parameter.
        shares : sequence of float
            Numbers from 0 to 1; 0.5 is the median.

        Returns
        -------
        array
            A row per watched step, a column per share; NaN for a parameter without weights.

        Raises
        ------
        KeyError
            If there is no record of the parameter, or its optimizer has no step sizes.
        ValueError
            For a share that is not from 0 to 1.

        Examples
        --------
        >>> import numpy as np, proptim
        >>> opt = proptim.Rprop([np.zeros(3)], lr=0.1)
        >>> watch = opt.watch()
        >>> opt.step([np.ones(3)])
        >>> watch.quantiles(0, [0.5]).round(2)
        array([[0.1]])
        """
        wanted = np.asarray(shares, np.float64)
        if wanted.ndim != 1 or not ((wanted >= 0) & (wanted <= 1)).all():
            raise ValueError(f"shares is {shares!r:.80}; expected a sequence of numbers from 0 to 1")
        seen = self[key]
        if "step_sizes" not in seen:
            raise KeyError(f"there are no step sizes of parameter {key!r}; expected one that Rprop steps")
        below = seen["step_sizes"].cumsum(axis=1)
        middles = np.sqrt(seen["edges"][:-1] * seen["edges"][1:])
        found = np.full((len(below), len(wanted)), np.nan)
        for row, total in zip(found, below, strict=True):
            if total.size and total[-1]:
                row[:] = middles[np.searchsorted(total, np.maximum(1, np.ceil(wanted * total[-1])))]
        return found

    def save(self, path: str | PathLike[str]) -> None:
        """Write all rows as CSV, atomically: a failed or interrupted call leaves no partial file.

        A line is one parameter at one step: its name or index, and the columns. Each bin of step sizes is a column,
        named after its lower edge, such as ``size 0.0131``. Numbers are written with all digits that are needed to read
        them back exactly. The cells of columns that an optimizer does not have are empty.

        Parameters
        ----------
        path : str or path-like
            An existing file is replaced.

        Raises
        ------
        OSError
            If it cannot be written.

        Examples
        --------
        >>> watch.save("watch.csv")  # doctest: +SKIP
        """
        tables = {key: self[key] for key in self}
        used = sorted({float(edge) for seen in tables.values() for edge in seen.get("edges", ())[:-1]})
        names = ["step", *NORMS, "ratio", *(["turned"] if used else [])]
        with whole(path) as temporary, temporary.open("x", newline="", encoding="utf-8") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(["parameter", *names, *(f"size {edge:.6g}" for edge in used)])
            for key, seen in tables.items():
                places = {float(edge): j for j, edge in enumerate(seen.get("edges", ())[:-1])}
                for i in range(len(seen["step"])):
                    numbers = [seen[name][i].item() if name in seen else "" for name in names]
                    sizes: list[Any] = [""] * len(used)
                    if places:
                        sizes = [seen["step_sizes"][i, places[e]].item() if e in places else 0 for e in used]
                    out.writerow([key, *numbers, *sizes])

    # For the stepper ---------------------------------------------------------------------------------------------

    def due(self, step: int) -> bool:
        """Whether this step is recorded."""
        return step % self.every == 0

    def look(self, stepper: Stepper, step: int, scale: float, rows: Sequence[Sequence[float] | None]) -> list[Look]:
        """What to record before this step, in which all cohorts are stepped with these rows of coefficients."""
        if not self.due(step):
            return []
        cohorts = zip(stepper.plan.cohorts, rows, strict=True)
        row_of = {id(p): row for cohort, row in cohorts for p in cohort.members}
        work = ((i, row_of[id(p)]) for i, p in enumerate(stepper.parameters))
        return self.look_at(stepper, step, scale, [(i, row) for i, row in work if row is not None])

    def look_at(
        self, stepper: Stepper, step: int, scale: float, work: Iterable[tuple[int, Sequence[float]]]
    ) -> list[Look]:
        """The same for some parameters, each with its row of coefficients."""
        return [Look.before(stepper, step, scale, *each) for each in work] if self.due(step) else []

    def keep(self, looks: Sequence[Look]) -> None:
        """After the step, add a row for each parameter that was recorded before it."""
        rows = [look.row() for look in looks]
        kept = [self._rows.setdefault(look.key, []) for look in looks]
        at_once(map(list.append, kept, rows))


class Look(NamedTuple):
    """The record of a parameter before a step."""

    parameter: Parameter
    key: int | str
    step: int
    weights: Array
    """A copy, which `row` overwrites."""
    grad_norm: float
    turned: float | None

    @classmethod
    def before(cls, stepper: Stepper, step: int, scale: float, i: int, numbers: Sequence[float]) -> Look:
        """Record parameter i before it is stepped with these coefficients of rule and stages."""
        p = stepper.parameters[i]
        weights = np.array(p.numbers(), order="C", subok=False)
        squares, _ = stepper.plan.reduce((i,))
        turned = None
        if "step_word" in p.state:
            given, stages = real_gradient(stepper.plan.grads[i]), numbers[len(stepper.rule.coef_names) :]
            if isinstance(given, Rows):  # of the rows that have a gradient
                rows, grad = given.summed(p.real)
                turned = turned_share(weights[rows], grad, word_of(p)[rows], stages)
            else:
                turned = turned_share(weights, widened(given, p.real), word_of(p), stages)
        key = i if p.name is None else p.name
        return cls(p, key, step, weights, math.sqrt(squares) * abs(scale), turned)

    def row(self) -> Row:
        """The row of the parameter, to be called after the step."""
        now, moved = self.parameter.numbers(), self.weights
        with np.errstate(all="ignore"):
            np.subtract(now, moved, out=moved)
        first, counts = 0, None
        if self.turned is not None:
            first, counts = trimmed(count_sizes(word_of(self.parameter)))
        return Row(self.step, self.grad_norm, norm(now), norm(moved), self.turned, first, counts)


def word_of(p: Parameter) -> Array:
    """The state word of Rprop of a parameter, as the rule sees it."""
    assert p.group.rule is not None
    word = state_of(p.group.rule, p.state, "step_word")
    return word.load() if isinstance(word, PAIRS) else widened(word, p.real)


def norm(array: Array) -> float:
    """Euclidean norm of a real array."""
    squares, _ = _backend.sum_of_squares([array])
    return math.sqrt(squares)


def pieces(*arrays: Array) -> Iterator[Any]:
    """Corresponding elements of arrays of one shape, `PIECE` at a time."""
    readonly: Any = [["readonly"]] * len(arrays)
    for piece in np.nditer(arrays, ["external_loop", "buffered", "zerosize_ok"], readonly, buffersize=PIECE):
        yield piece if len(arrays) > 1 else (piece,)


def turned_share(weights: Array, grad: Array, word: Array, stages: Sequence[float]) -> float:
    """The share of weights whose gradient, as the rule sees it, has another sign than the last one that Rprop keeps."""
    turned: Any = 0
    with np.errstate(all="ignore"):
        for w, g, last in pieces(weights, grad, word):
            _, seen = _stages.before(w, g, stages)
            turned += np.count_nonzero(((seen < 0) & (last > 0) & (last < REMEMBERED)) | ((seen > 0) & (last < 0)))
    return float(turned / weights.size) if weights.size else math.nan


def count_sizes(word: Array) -> Array:
    """The number of step sizes in each bin, from state words of Rprop."""
    info = np.finfo(word.dtype)
    shift = info.nmant - (CELLS.bit_length() - 1)
    lowest = (LOWEST + info.maxexp - 1) * CELLS  # maxexp - 1 is the bias of exponents
    cells = np.zeros((HIDDEN + OCTAVES) * CELLS, np.int64)
    for (piece,) in pieces(word):
        bits = np.abs(piece).view(f"i{word.itemsize}")
        cells += np.bincount((bits >> shift) - lowest, minlength=len(cells))
    known = (cells[: OCTAVES * CELLS] + cells[HIDDEN * CELLS :]).reshape(OCTAVES, CELLS)
    return np.asarray(np.add.reduceat(known, EDGES, axis=1).reshape(-1))


def trimmed(counts: Array) -> tuple[int, Array]:
    """The index of the first count that is not 0, and the counts from there to the last one that is not 0."""
    used = counts.nonzero()[0]
    first, stop = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
    return first, counts[first:stop].copy()


def histogram(rows: Sequence[Row]) -> dict[str, Array]:
    """The counts of all rows, for the bins that at least one of them uses."""
    held = [(row.first, row.counts) for row in rows if row.counts is not None and row.counts.size]
    first = min((start for start, _ in held), default=0)
    stop = max((start + counts.size for start, counts in held), default=0)
    table = np.zeros((len(rows), stop - first), np.int64)
    for line, row in zip(table, rows, strict=True):
        if row.counts is not None:
            line[row.first - first : row.first - first + row.counts.size] = row.counts
    bins = np.arange(first, stop + 1)
    within = 1 + np.array(EDGES) / CELLS
    return {"step_sizes": table, "edges": np.ldexp(within[bins % 8], bins // 8 + LOWEST)}
