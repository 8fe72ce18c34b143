"""The `numba` backend: the rule's own text, compiled by Numba and run weight by weight.

The text sees scalars here and whole arrays in `_numpy`; Numba keeps IEEE semantics without fused multiply-add (its
fastmath is off by default), so both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numba
import numba.extending
import numpy as np

from proptim import _numpy
from proptim._arrays import Array, select


class Plan(_numpy.Plan):
    """Stages as in the `numpy` backend; the rule in one compiled loop."""

    def _apply(self, param: Array, grad: Array, state: Sequence[Array | None], coefs: tuple[Any, ...]) -> None:
        arrays = (param, grad, *state)
        flat = tuple(None if a is None else np.ascontiguousarray(a).reshape(-1) for a in arrays)
        _loop(self.rule, len(state))(*flat, coefs)
        for array, stepped in zip((param, *state), (flat[0], *flat[2:]), strict=True):
            if array is not None and stepped is not None and not np.may_share_memory(array, stepped):
                array[...] = stepped.reshape(array.shape)  # ascontiguousarray had to copy


@numba.extending.overload(select, strict=False)
def _select(condition: Any, x: Any, y: Any) -> Callable[..., Any]:
    return lambda condition, x, y: x if condition else y


@numba.njit
def _get(array: Any, i: int) -> Any:
    return None if array is None else array[i]


@numba.njit
def _put(array: Any, i: int, value: Any) -> None:
    if array is not None:
        array[i] = value


@cache
def _loop(text: Callable[..., Any], states: int) -> Callable[..., None]:
    """The loop around a rule with that many state arrays; Numba needs their number written out."""
    # As NumPy and C do: a division by zero is a number and not an exception in the middle of an array.
    rule = numba.njit(text, error_model="numpy")

    def one(param: Any, grad: Any, a: Any, coefs: Any) -> None:
        for i in range(param.size):
            param[i], a_new = rule(param[i], grad[i], _get(a, i), *coefs)
            _put(a, i, a_new)

    def two(param: Any, grad: Any, a: Any, b: Any, coefs: Any) -> None:
        for i in range(param.size):
            param[i], a_new, b_new = rule(param[i], grad[i], _get(a, i), _get(b, i), *coefs)
            _put(a, i, a_new)
            _put(b, i, b_new)

    def three(param: Any, grad: Any, a: Any, b: Any, c: Any, coefs: Any) -> None:
        for i in range(param.size):
            param[i], a_new, b_new, c_new = rule(param[i], grad[i], _get(a, i), _get(b, i), _get(c, i), *coefs)
            _put(a, i, a_new)
            _put(b, i, b_new)
            _put(c, i, c_new)

    compiled: Callable[..., None] = numba.njit((one, two, three)[states - 1], error_model="numpy")
    return compiled
