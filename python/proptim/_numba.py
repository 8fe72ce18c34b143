"""The `numba` backend: the texts of rule and stages, compiled by Numba and run weight by weight.

The texts see scalars here and whole arrays in `_numpy`; both give the same bits, for Numba keeps IEEE semantics without
fused multiply-add. `proptim.numba` calls the same loops from the caller's compiled code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numba
import numba.core.cgutils
import numba.extending
import numpy as np

from proptim import _numpy, _stages
from proptim._arrays import Array, select

# Said aloud, for a caller compiled with other options would pass its own on. A division by zero is a number, as in
# NumPy and C, and not an exception in the middle of an array.
EXACT = {"fastmath": False, "error_model": "numpy"}
INSIDE = {**EXACT, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # for compiled code alone: quicker to compile

untyped: Any = numba  # its annotations leave out half of what it takes
types = untyped.types
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
compiled: Decorator = untyped.njit(**INSIDE)
callable_too: Decorator = untyped.njit(**EXACT)
intrinsic: Decorator = untyped.extending.intrinsic
# Not strict, which would compare the annotations of what is typed and of what is compiled.
means: Callable[..., Decorator] = partial(untyped.extending.overload, strict=False, jit_options=INSIDE)

_decay, _scale, _clip, _l2, _flush = (
    compiled(text) for text in (_stages.decay, _stages.scale, _stages.clip, _stages.l2, _stages.flush)
)
_, _, _, NO_L2, NO_ZERO, NO_FLUSH = _stages.NEUTRAL.values()


class Plan(_numpy.Plan):
    """All of a step in one compiled loop."""

    def _run(self, segment: Sequence[Array | None], row: Sequence[float]) -> None:
        if untyped.config.DISABLE_JIT:
            super()._run(segment, row)
            return
        flat = tuple(None if a is None else np.ascontiguousarray(a).reshape(-1) for a in segment)
        numbers = tuple(map(float, row))
        coefs, stages = numbers[: self.coefs], numbers[self.coefs :]
        loop(self.rule)(flat, coefs, stages)
        *_, zero, _ = stages
        for i, (array, stepped) in enumerate(zip(segment, flat, strict=True)):
            if array is None or stepped is None or np.may_share_memory(array, stepped):
                continue
            if i != 1 or zero != NO_ZERO:  # a gradient is only written if it is to be zeroed
                array[...] = stepped.reshape(array.shape)  # ascontiguousarray had to copy


@cache
def loop(text: Callable[..., Any]) -> Callable[..., None]:
    """A compiled step with the rule of this text: (arrays of one dimension, coefficients, those of the stages)."""
    rule = compiled(text)

    @callable_too
    def step(arrays: Any, coefs: Any, stages: Any) -> None:
        param, grad, state = arrays[0], arrays[1], arrays[2:]
        numbers = rounded(coefs, param)
        decay, scale, clip, l2, _, _ = rounded(stages, param)
        weight_decay, zero, flush = stages[3:]
        smallest = smallest_normal(param) if flush != NO_FLUSH else param.dtype.type(0)  # nothing is below 0
        for i in range(param.size):
            # Decay, scale and clip are exact at their neutral coefficients; to add 0 is not.
            p = _decay(param[i], decay)
            g = _clip(_scale(grad[i], scale), clip)
            if weight_decay != NO_L2:
                g = _l2(g, p, l2)
            new = rule(p, g, *over(at, state, i, None), *numbers)
            param[i] = new[0]
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


@compiled
def at(array: Any, i: Any) -> Any:
    """The element, or of an array of more dimensions the row."""
    return array[i]


def put(arrays: Any, i: Any, values: Any, smallest: Any) -> None:
    """Store a value in each array, subnormals as zero if `smallest` is the smallest normal number."""


@means(put)
def _put(arrays: Any, i: Any, values: Any, smallest: Any) -> Callable[..., None]:
    if not len(arrays):
        return lambda arrays, i, values, smallest: None
    if isinstance(arrays[0], types.NoneType):
        return lambda arrays, i, values, smallest: put(arrays[1:], i, values[1:], smallest)

    def both(arrays: Any, i: Any, values: Any, smallest: Any) -> None:
        arrays[0][i] = _flush(values[0], smallest)
        put(arrays[1:], i, values[1:], smallest)

    return both


def clear(grad: Any, i: Any) -> None:
    """Set an element to zero. Of a read-only array it does nothing: such are refused if they are to be cleared."""


@means(clear)
def _clear(grad: Any, i: Any) -> Callable[..., None]:
    def store(grad: Any, i: Any) -> None:
        grad[i] = 0

    return store if grad.mutable else lambda grad, i: None


def smallest_normal(array: Any) -> Any:
    """The smallest normal number of the dtype of an array."""


@means(smallest_normal)
def _smallest_normal(array: Any) -> Callable[..., Any]:
    number = np.finfo(untyped.np.numpy_support.as_dtype(array.dtype)).smallest_normal
    return lambda array: number


@intrinsic
def rounded(context: Any, numbers: Any, array: Any) -> Any:
    """A tuple of float64 in the dtype of an array: each number is rounded once."""
    result = types.UniTuple(array.dtype, len(numbers))

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        parts = untyped.core.cgutils.unpack_tuple(builder, args[0])
        return context.make_tuple(
            builder, result, [context.cast(builder, part, types.float64, array.dtype) for part in parts]
        )

    return result(numbers, array), code
