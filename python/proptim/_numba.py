"""The `numba` backend: the texts of rule and stages, compiled by Numba and run weight by weight.

The texts get scalars here and whole arrays in `_numpy`. Both give the same bits, because Numba keeps IEEE semantics
without fused multiply-add. `proptim.numba` calls the same loops from the caller's compiled code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import starmap
from typing import Any

import numpy as np

from proptim import _numpy, _stages
from proptim._arrays import select
from proptim._formats import Stored, loaded, planes, stores
from proptim._interrupts import Store, commit
from proptim._jit import callable_too, compiled, intrinsic, means, types, untyped
from proptim._numba_formats import first, load, planes_of, real_of, store
from proptim._random import Draw

_decay, _scale, _clip, _l2, _flush = (
    compiled(text) for text in (_stages.decay, _stages.scale, _stages.clip, _stages.l2, _stages.flush)
)
_, _, _, NO_L2, NO_ZERO, NO_FLUSH, _ = _stages.NEUTRAL.values()


class Plan(_numpy.Plan):
    """All of a step of a segment in one compiled loop."""

    def _run(
        self,
        work: Sequence[tuple[Sequence[Stored | None], Sequence[float], Draw | None]],
        counts: Sequence[Store],
        also: Iterable[Any] = (),
    ) -> None:
        if untyped.config.DISABLE_JIT:
            super()._run(work, counts, also)
            return
        step = loop(self.rule)
        calls: list[tuple[Any, ...]] = []
        found: list[Store] = []
        for segment, row, draw in work:
            numbers = tuple(map(float, row))
            coefs, stages = numbers[: self.coefs], numbers[self.coefs :]
            *_, zero, _, _ = stages
            zeroed, at, part = _numpy.picked(segment)
            seen = loaded(part[: self.arrays])
            # What the rule sees of a format is a copy in any case, and so is what it sees of rows. An average needs the
            # new weights before they are stored.
            apart = len(segment) > self.arrays or any(a is not b for a, b in zip(segment, seen, strict=True))
            # An array that is not aligned has another type than its first elements, of which there are none, here.
            flat = tuple(
                None if a is None else (a.flatten() if apart else np.require(a, None, ["C", "A"]).reshape(-1))
                for a in seen
            )
            if apart:
                step(flat, coefs, stages)
            else:
                step(
                    tuple(None if a is None else a[:0] for a in flat), coefs, stages
                )  # compile now: below, everything runs in C
                calls.append((flat, coefs, stages))
            for i, (array, stepped) in enumerate(zip(segment[: self.arrays], flat, strict=True)):
                if array is None or stepped is None:
                    continue
                if not apart and np.may_share_memory(array, stepped):
                    continue
                if i != 1:  # it had to be copied
                    values = stepped.reshape(planes(part[i])[0].shape)
                    if draw is not None:
                        values = draw.rounded(i, array, values, at)
                    made = stores(array, values)
                    found += [(plane, at, new) for plane, _, new in made]
                    if i == 0:
                        found += self._averaged(segment, made, row)
                elif zero != NO_ZERO:  # a gradient is only written if it is to be zeroed
                    found.append((zeroed, ..., 0))
        commit(found, counts, starmap(step, calls), also)


@cache
def loop(text: Callable[..., Any]) -> Callable[..., None]:
    """A compiled step of this rule: (arrays of one dimension, coefficients, those of the stages)."""
    rule = compiled(text)

    @callable_too
    def step(arrays: Any, coefs: Any, stages: Any) -> None:
        param, grad, state = arrays[0], arrays[1], arrays[2:]
        numbers = rounded(coefs, param)
        decay, scale, clip, l2, _, _, _ = rounded(stages, param)
        weight_decay, zero, flush = stages[3:6]
        smallest = smallest_normal(scale) if flush != NO_FLUSH else scale - scale  # nothing is below 0
        for i in range(first(param).size):
            # Decay, scale and clip are exact at their neutral coefficients; to add 0 is not.
            p = _decay(load(param, i, scale), decay)
            g = _clip(_scale(load(grad, i, scale), scale), clip)
            if weight_decay != NO_L2:
                g = _l2(g, p, l2)
            new = rule(p, g, *elements(state, i, scale), *numbers)
            store(param, i, new[0])
            put(state, i, new[1:], smallest)
            if zero != NO_ZERO:
                clear(grad, i)

    return step


@means(select)
def _select(condition: Any, x: Any, y: Any) -> Callable[..., Any]:
    return lambda condition, x, y: x if condition else y


# Tuples of arrays, in which None stands for an array that is off --------------------------------------------------


def over(function: Any, arrays: Any, argument: Any, off: Any) -> Any:
    """The tuple of function(array, argument), with `off` for None."""


@means(over)
def _over(function: Any, arrays: Any, argument: Any, off: Any) -> Callable[..., Any]:
    if not len(arrays):
        return lambda function, arrays, argument, off: ()
    if isinstance(arrays[0], types.NoneType):
        return lambda function, arrays, argument, off: (off, *over(function, arrays[1:], argument, off))
    return lambda function, arrays, argument, off: (
        function(arrays[0], argument),
        *over(function, arrays[1:], argument, off),
    )


def elements(arrays: Any, i: Any, real: Any) -> Any:
    """The tuple of element `i` of each array, as the rule sees it; None for None."""


@means(elements)
def _elements(arrays: Any, i: Any, real: Any) -> Callable[..., Any]:
    if not len(arrays):
        return lambda arrays, i, real: ()
    if isinstance(arrays[0], types.NoneType):
        return lambda arrays, i, real: (None, *elements(arrays[1:], i, real))
    return lambda arrays, i, real: (load(arrays[0], i, real), *elements(arrays[1:], i, real))


def put(arrays: Any, i: Any, values: Any, smallest: Any) -> None:
    """Store a value in each array, subnormals as zero if `smallest` is the smallest normal number."""


@means(put)
def _put(arrays: Any, i: Any, values: Any, smallest: Any) -> Callable[..., None]:
    if not len(arrays):
        return lambda arrays, i, values, smallest: None
    if isinstance(arrays[0], types.NoneType):
        return lambda arrays, i, values, smallest: put(arrays[1:], i, values[1:], smallest)

    def both(arrays: Any, i: Any, values: Any, smallest: Any) -> None:
        store(arrays[0], i, _flush(values[0], smallest))
        put(arrays[1:], i, values[1:], smallest)

    return both


def clear(grad: Any, i: Any) -> None:
    """Set an element to zero; do nothing to a read-only array, which is an error if it has to be zeroed."""


@means(clear)
def _clear(grad: Any, i: Any) -> Callable[..., None]:
    def store_zero(grad: Any, i: Any) -> None:
        first(grad)[i] = 0  # of every format

    (plane,) = planes_of(grad)
    return store_zero if plane.mutable else lambda grad, i: None


def smallest_normal(real: Any) -> Any:
    """The smallest normal number of a type."""


@means(smallest_normal)
def _smallest_normal(real: Any) -> Callable[..., Any]:
    number = np.finfo(untyped.np.numpy_support.as_dtype(real)).smallest_normal
    return lambda real: number


@intrinsic
def rounded(context: Any, numbers: Any, array: Any) -> Any:
    """A tuple of float64 in the dtype in which the rule computes for a parameter; each number is rounded once."""
    real = real_of(array)
    result = types.UniTuple(real, len(numbers))

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        parts = untyped.core.cgutils.unpack_tuple(builder, args[0])
        return context.make_tuple(builder, result, [context.cast(builder, part, types.float64, real) for part in parts])

    return result(numbers, array), code
