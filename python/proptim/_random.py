"""Stochastic rounding in NumPy: the Python twin of `csrc/random.h`, `csrc/codecs/dither.h` and `csrc/bytes.inc`.

A number that is stored in a narrower format becomes one of its two neighbours there, at random, so that the expected
value is the number. The random bits are a hash of where and when the number is stored.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from proptim._arrays import BFLOAT16, Array
from proptim._formats import LEVELS, levels_of, of_level

FLOAT16, FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)
NARROW = {BFLOAT16: (7, 127), FLOAT16: (10, 15), FLOAT32: (23, 127)}
"""Dtype -> bits of the fraction and bias of the exponent, of formats in which numbers are rounded at random."""
LIMIT = 2**64


def mixed(key: int, n: int) -> int:
    """A key of 64 bits, from another and one more number: see `csrc/random.h`."""
    key = ((key ^ n) + 0x9E3779B97F4A7C15) % LIMIT
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % LIMIT
    key = (key ^ key >> 27) * 0x94D049BB133111EB % LIMIT
    return key ^ key >> 31


def key_of(seed: int, parameter: int, array: int, step: int) -> int:
    """The key of an array of a parameter at a step: array 0 is the parameter, the first of the state is 2."""
    key = 0
    for n in (seed, parameter, array, step):
        key = mixed(key, n)
    return key


def words(key: int, index: Array) -> Array:
    """32 random bits for each index (uint64) of an element, in C order of the whole array."""
    found = np.empty(index.shape, np.uint32)
    upper = index >> np.uint64(32)
    for high in np.unique(upper).tolist():
        own = mixed(key, high)
        here = upper == np.uint64(high)
        word = index[here].astype(np.uint32) * np.uint32(0x9E3779B9) + np.uint32(own % 2**32)
        word = (word ^ word >> np.uint32(16)) * np.uint32(0x7FEB352D) ^ np.uint32(own >> 32)
        word = (word ^ word >> np.uint32(15)) * np.uint32(0x846CA68B)
        found[here] = word ^ word >> np.uint32(16)
    return found


def dithered(values: Array, dtype: np.dtype[Any], word: Array) -> Array:
    """Numbers that a narrower dtype has, to which these are rounded at random; NaN and infinities as they are."""
    fraction, bias = NARROW[dtype]
    single = values.dtype == np.float32
    u: Any = np.uint32 if single else np.uint64
    width, digits, middle = (32, 23, 127) if single else (64, 52, 1023)  # of the numbers that are rounded
    shift = digits - fraction
    bits = values.view(u)
    sign, size = bits & u(1 << (width - 1)), bits & u((1 << (width - 1)) - 1)
    random = word.astype(u) << u(width - 32)
    rounded = (size + (random >> u(width - shift))) & ~u((1 << shift) - 1)
    if bias != middle:
        # Below the smallest normal number of the format more bits are dropped; as many units of its last are left.
        smallest = middle - bias + 1
        small = size < u(smallest << digits)
        dropped = u(shift) + np.where(small, u(smallest) - (size >> u(digits)), u(0))
        by = np.minimum(dropped, u(width - 1))
        left = (size & u((1 << digits) - 1) | u(1 << digits)) >> np.minimum(dropped - by, u(width - 1))
        units = (left + (random >> (u(width) - by))) >> by
        unit = np.array((smallest - fraction) << digits, u).view(values.dtype)
        rounded = np.where(small, np.asarray(units.astype(values.dtype) * unit).view(u), rounded)
    infinity = u((2 * middle + 1) << digits)
    return np.asarray(np.where(size < infinity, rounded, size) | sign).view(values.dtype)


def dithered_levels(values: Array, levels: int, word: Array) -> Array:
    """Levels of their blocks, to which averages are rounded at random; NaN and infinities as they are.

    Of 254 levels, which are those of numbers that are never negative, no number above zero becomes zero.
    """
    near, scale = levels_of(values, levels)
    exact = np.abs(values)
    below = near - (of_level(near, levels, scale) > exact)
    low, high = of_level(below, levels, scale), of_level(below + 1, levels, scale)
    part = (word >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    up = exact - low > part * (high - low)
    if levels == 254:
        up |= (below == 0) & (exact > 0)
    return np.where(np.isfinite(values), np.copysign(np.where(up, high, low), values), values)


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
