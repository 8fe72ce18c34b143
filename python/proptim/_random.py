"""Stochastic rounding in NumPy: the Python twin of `csrc/random.h`, `csrc/codecs/dither.h` and `csrc/bytes.inc`.

A number that is stored in a narrower format becomes one of its two neighbours there, at random, so that the expected
value is the number. The random bits are a hash of where and when the number is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from proptim._arrays import BFLOAT16, Array, select
from proptim._formats import LEVELS, finite_size, level_of, of_block, scales_of, size_of

FLOAT16, FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)
NARROW = {BFLOAT16: (7, 127), FLOAT16: (10, 15), FLOAT32: (23, 127)}
"""Dtype -> bits of the fraction and bias of the exponent, of formats in which numbers are rounded at random."""
LAYOUTS: dict[np.dtype[Any], tuple[Any, Any, int, int, int]] = {
    FLOAT32: (np.uint32, np.float32, 32, 23, 127),
    np.dtype(np.float64): (np.uint64, np.float64, 64, 52, 1023),
}
"""Dtype of numbers that are rounded -> the types of their bits and of themselves, how many bits these are, those of the
fraction, and the bias of the exponent."""

# The texts, as in `_formats`: of whole arrays here, of one number at a time in code that Numba compiles. Sums and
# products are modulo 2**32 or 2**64.


def mixed(key: Any, n: Any) -> Any:
    """A key of 64 bits, from another and one more number, both np.uint64: see `csrc/random.h`."""
    key = np.uint64(np.uint64(key ^ n) + np.uint64(0x9E3779B97F4A7C15))
    key = np.uint64(np.uint64(key ^ key >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9))
    key = np.uint64(np.uint64(key ^ key >> np.uint64(27)) * np.uint64(0x94D049BB133111EB))
    return np.uint64(key ^ key >> np.uint64(31))


def word_of(key: Any, index: Any) -> Any:
    """32 random bits for the lower half of an index, by the key of its upper half."""
    word = np.uint32(np.uint32(index * np.uint32(0x9E3779B9)) + np.uint32(key & np.uint64(0xFFFFFFFF)))
    word = np.uint32(np.uint32(word ^ word >> np.uint32(16)) * np.uint32(0x7FEB352D))
    word = np.uint32(word ^ np.uint32(key >> np.uint64(32)))
    word = np.uint32(np.uint32(word ^ word >> np.uint32(15)) * np.uint32(0x846CA68B))
    return np.uint32(word ^ word >> np.uint32(16))


@cache
def dither(dtype: np.dtype[Any], narrow: np.dtype[Any]) -> Callable[[Any, Any], Any]:
    """The text (number, word) -> the number of a narrower format to which one of this dtype is rounded at random.

    NaN and infinities stay as they are.
    """
    u, real, width, digits, middle = LAYOUTS[dtype]
    fraction, bias = NARROW[narrow]
    shift, smallest = digits - fraction, middle - bias + 1
    top, kept, infinity = u(1 << (width - 1)), u((1 << width) - (1 << shift)), u((2 * middle + 1) << digits)

    def text(value: Any, word: Any) -> Any:
        bits = real(value).view(u)
        sign, size = u(bits & top), u(bits & u(~top))
        random = u(u(word) << u(width - 32))
        rounded = u(u(size + u(random >> u(width - shift))) & kept)
        if bias != middle:
            # Below the smallest normal number of the format more bits are dropped; as many units of its last are left.
            small = size < u(smallest << digits)
            dropped = u(u(shift) + select(small, u(u(smallest) - u(size >> u(digits))), u(0)))
            by = np.minimum(dropped, u(width - 1))
            left = u(u(size & u((1 << digits) - 1)) | u(1 << digits)) >> np.minimum(u(dropped - by), u(width - 1))
            units = u(u(left + u(random >> u(u(width) - by))) >> by)
            unit = u((smallest - fraction) << digits).view(real)
            rounded = select(small, real(real(units) * unit).view(u), rounded)
        return u(select(size < infinity, rounded, size) | sign).view(real)

    return text


def dither_level(value: Any, word: Any, levels: int, scale: Any) -> Any:
    """The level of its block, as a number, to which an average is rounded at random; NaN and infinities as they are.

    Of 254 levels, which are those of numbers that are never negative, no number above zero becomes zero.
    """
    exact = finite_size(value)
    near = level_of(exact, levels, scale)
    below = np.int32(near - (size_of(near, levels, scale) > exact))
    low, high = size_of(below, levels, scale), size_of(below + np.int32(1), levels, scale)
    part = np.float32(word >> np.uint32(8)) * np.float32(2.0**-24)
    up = (exact - low > part * (high - low)) | ((levels == 254) & (below == 0) & (exact > 0))
    return select(np.isfinite(value), np.copysign(select(up, high, low), value), value)


def key_of(seed: int, parameter: int, array: int, step: int) -> Any:
    """The key of an array of a parameter at a step: array 0 is the parameter, the first of the state is 2."""
    key = np.uint64(0)
    with np.errstate(over="ignore"):
        for n in (seed, parameter, array, step):
            key = mixed(key, np.uint64(n))
    return key


def words(key: Any, index: Array) -> Array:
    """32 random bits for each index (uint64) of an element, in C order of the whole array."""
    found = np.empty(index.shape, np.uint32)
    upper = index >> np.uint64(32)
    with np.errstate(over="ignore"):
        for high in np.unique(upper):
            here = upper == high
            found[here] = word_of(mixed(key, high), index[here].astype(np.uint32))
    return found


def dithered(values: Array, dtype: np.dtype[Any], word: Array) -> Array:
    """Numbers that a narrower dtype has, to which these are rounded at random; NaN and infinities as they are."""
    return np.asarray(dither(values.dtype, dtype)(values, word))


def dithered_levels(values: Array, levels: int, word: Array) -> Array:
    """Levels of their blocks, to which averages are rounded at random; NaN and infinities as they are."""
    return np.asarray(dither_level(values, word, levels, of_block(scales_of(values), values)))


class Draw(NamedTuple):
    """Stochastic rounding of the arrays of one parameter at one step."""

    seed: int
    parameter: int
    """Its number in the optimizer."""
    first: int
    """Index, in the whole parameter, of the first element of what is stepped."""
    step: int

    def rounded(self, j: int, array: Any, values: Array, at: Any) -> Array:
        """The values to store in array `j` at these rows, or `...`, so that its store rounds none of them any more."""
        levels = LEVELS.get(type(array))
        if levels is None and (isinstance(array, tuple) or array.dtype not in NARROW or array.dtype == values.dtype):
            return values  # a pair, which loses nothing, or what is as wide as the rule's numbers
        index = np.arange(self.first, self.first + values.size, dtype=np.uint64)
        if at is not ...:
            width = math.prod(array.shape[1:])
            index = (self.first + at.astype(np.uint64)[:, None] * width + np.arange(width, dtype=np.uint64)).ravel()
        word = words(key_of(self.seed, self.parameter, j, self.step), index).reshape(values.shape)
        with np.errstate(all="ignore"):
            return dithered(values, array.dtype, word) if levels is None else dithered_levels(values, levels, word)
