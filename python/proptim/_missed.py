"""With `lazy_rows=False`: what rows without a gradient have missed, and how it is made up.

In the rules that allow it, a step with a gradient of zero multiplies a row and its state by numbers that are the same
for all rows. These are recorded for each step, and a row gets their product before it is stepped again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from proptim import _stages
from proptim._arrays import Array, real_view, tell_torch
from proptim._formats import load, planes, stores
from proptim._interrupts import Store, commit
from proptim._random import Draw
from proptim._rows import Rows, taken
from proptim.rule import Rule

if TYPE_CHECKING:
    from proptim._parameters import Parameter
    from proptim._prepared import Prepared

Run = tuple[int, tuple[float, ...]]
"""Steps in a row that have the same factors: the number of the last, and the factors on the parameter and its state."""

MOST_RUNS = 1024
"""When a table has so many runs, which needs a schedule, all its rows are made up, so that the record stays short."""
MADE_UP = 8
"""Added to the number of an array for the random bits: that step may have stored it with those of the number itself."""
PIECE = 1 << 18
"""Numbers of a table that are made up at a time."""


class Table:
    """The steps that the rows of a table have made."""

    def __init__(self, length: int, step: int) -> None:
        self.row_step = np.full(length, step, np.int64)
        """The last step of the table that a row has made or made up."""
        self.runs: tuple[Run, ...] = ()

    def runs_with(self, step: int, factors: tuple[float, ...]) -> tuple[Run, ...]:
        """The runs, and one more step."""
        kept = self.runs[:-1] if self.runs and self.runs[-1][1] == factors else self.runs
        return (*kept, (step, factors))

    def factors(self, since: Array) -> Array:
        """The product of all factors after each of these steps: a row for each, a column for each array."""
        ends = np.array([end for end, _ in self.runs])
        each = np.array([factors for _, factors in self.runs])
        after = np.ones_like(each)  # the product of all later runs
        after[:-1] = np.cumprod(power(each[1:], np.diff(ends)[:, None])[::-1], axis=0)[::-1]
        run = np.searchsorted(ends, since, side="right")  # that of the first step that was missed
        return np.asarray(power(each[run], (ends[run] - since)[:, None]) * after[run])

    def behind(self, step: int, width: int) -> Iterator[Array]:
        """The rows that have missed a step, in pieces."""
        rows = np.flatnonzero(self.row_step < step)
        size = max(1, PIECE // max(1, width))
        for first in range(0, len(rows), size):
            yield rows[first : first + size]


class Missed:
    """What the rows of all tables of a stepper have missed."""

    def __init__(self, rule: type[Rule]) -> None:
        self.rule = rule
        self.tables: dict[int, Table] = {}
        """id of the array of a parameter -> the steps that its rows have made; the rows of others have missed none."""
        self.undo: tuple[list[Store], list[Store]] = [], []
        """What to store if a step fails after it has made up what rows had missed."""

    def catch_up(self, work: Iterable[tuple[int, Parameter, int]], flush: bool, seed: int | None) -> None:
        """Make up all that the rows of these parameters have missed.

        For each its number, itself and the steps that it has made. `seed`: of stochastic rounding; None without.
        """
        found = [each for each in work if id(each[1].array) in self.tables]
        for _, p, _ in found:
            p.check_home()
        for i, p, step in found:
            table = self.tables[id(p.array)]
            for rows in table.behind(step, p.array[:1].size):
                stores, _ = made_up(self.rule, p, table, rows, flush, draw_at(seed, i, step))
                commit([*stores, (table.row_step, rows, step)])
            del self.tables[id(p.array)]
        tell_torch([given for _, p, _ in found for given, _ in p.homes])

    def make_up(self, prepared: Prepared, work: Iterable[tuple[int, Parameter, Any, Sequence[float], int]]) -> None:
        """Before a step of these parameters: make up what the rows have missed that it steps, and note the others.

        For each its number, itself, its gradient, the coefficients of the step and the steps that it has made.
        """
        undo: list[Store] = []
        stores: list[Store] = []
        notes: list[Store] = []
        tables = dict(self.tables)
        for i, p, grad, row, step in work:
            now = prepared.values[id(p.group)]
            sparse = isinstance(grad, Rows) and not now.lazy
            table = tables.get(id(p.array))
            if table is not None and (not sparse or len(table.runs) >= MOST_RUNS):
                self.catch_up([(i, p, step)], prepared.flush, prepared.seed)
                del tables[id(p.array)]
                table = None
            if not sparse:
                continue
            table = table or Table(len(p.array), step)
            tables[id(p.array)] = table
            rows = np.array(grad.indices, np.int64)
            behind = rows[table.row_step[rows] < step]
            if behind.size:
                made, unmade = made_up(self.rule, p, table, behind, prepared.flush, draw_at(prepared.seed, i, step))
                stores += made
                undo += unmade
            factors = shrinkage(self.rule, now.h, tuple(row), p.real)
            notes.append((table, "runs", table.runs_with(step + 1, factors)))
            stores.append((table.row_step, rows, step + 1))
            undo.append((table.row_step, rows, table.row_step[rows]))
        notes.append((self, "tables", tables))
        self.undo = undo, [(target, name, getattr(target, name)) for target, name, _ in notes]
        commit(stores, notes)


def draw_at(seed: int | None, i: int, step: int) -> Draw | None:
    """The stochastic rounding of parameter i at a step; None without a seed, where numbers are rounded to nearest."""
    return None if seed is None else Draw(seed, i, 0, step)


def power(base: Array, exponent: Array) -> Array:
    """base ** exponent for whole exponents, by multiplications alone, so that no library decides about the last bit."""
    result = np.ones(np.broadcast_shapes(base.shape, exponent.shape))
    while exponent.any():
        result = np.where(exponent & 1, result * base, result)
        base, exponent = base * base, exponent >> 1
    return result


def shrinkage(rule: type[Rule], h: Mapping[str, Any], row: tuple[float, ...], real: np.dtype[Any]) -> tuple[float, ...]:
    """The factors of a step on a parameter without a gradient, and on each of its state arrays.

    `row` are the coefficients of rule and stages. Factors that a step takes from it are rounded as it rounds them.
    """
    decay, scale, *_ = row[len(rule.coef_names) :]
    idle = rule.idle(h)
    assert not isinstance(idle, str)
    lost = 0.0 * scale  # NaN if the norm of the gradients is: then the dense step leaves no number
    states = (float(real.type(idle.get(name, 1.0))) + lost for name in rule.states)
    return (float(real.type(decay)) * idle.get("param", 1.0) + lost, *states)


def made_up(
    rule: type[Rule], p: Parameter, table: Table, rows: Array, flush: bool, draw: Draw | None
) -> tuple[list[Store], list[Store]]:
    """What to store so that these rows, which have missed steps, have made them up; and what to store to undo it.

    With stochastic rounding, `draw` is that of the last step that they make up.
    """
    found: list[Store] = []
    undo: list[Store] = []
    with np.errstate(all="ignore"):
        factors = table.factors(table.row_step[rows])
        arrays = [p.stored, *(real_view(p.state[name]) if name in p.state else None for name in rule.states)]
        for j, array in enumerate(arrays):
            if array is None or (factors[:, j] == 1).all():
                continue
            part = taken(array, rows)
            numbers = load(part, p.real)
            factor = factors[:, j].reshape(-1, *[1] * (numbers.ndim - 1))
            new = (numbers * factor).astype(p.real)
            np.copyto(new, numbers, where=np.isinf(numbers) & (factor == 0))  # the product has underflowed
            if flush and j > 0:
                new = _stages.flush(new, np.finfo(p.real).smallest_normal)
            if draw is not None:
                new = draw.rounded(MADE_UP + (j and 1 + j), array, new, rows)
            found += [(plane, rows, values) for plane, _, values in stores(array, new)]
            undo += [(plane, rows, values) for plane, values in zip(planes(array), planes(part), strict=True)]
    return found, undo
