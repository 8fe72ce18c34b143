"""Stores of compiled code that take more than the number that is stored: one byte, random rounding, the average.

A rule is stepped element by element. State in one byte needs the largest number of a block first, and rounding at
random the place of an element in the whole array, which no part of it knows. So these arrays are opened before the
step, as copies in the dtype of the arithmetic, and closed after it. The texts are those of `_formats` and `_random`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from proptim import _stages
from proptim._arrays import BFLOAT16
from proptim._formats import (
    LEAST_SCALE,
    LEVELS,
    QUANTA,
    Int8,
    Steps8,
    finite_size,
    steps_of_octave,
    to_int8,
    to_squares8,
    to_steps8,
)
from proptim._jit import compiled, means, types
from proptim._numba import over
from proptim._numba_formats import (
    ONE_BYTE,
    BFloat16,
    Float16,
    by_name,
    first,
    format_of,
    load,
    passed,
    planewise,
    real_of,
    store,
)
from proptim._random import FLOAT16, dither, dither_level, mixed, word_of

_average = compiled(_stages.average)
by_name(mixed, word_of, dither_level)


def is_opened(kind: Any, draw: Any) -> bool:
    """Whether an array of this type is stepped as a copy; `draw` is that of a step, none where all is to nearest."""
    made = format_of(kind)
    return made in ONE_BYTE or (made in (BFloat16, Float16) and not isinstance(draw, types.NoneType))


def all_opened(arrays: Any, draw: Any) -> Any:
    """The parameter, its gradient and its state as the rule steps them."""


@means(all_opened)
def _all_opened(arrays: Any, draw: Any) -> Callable[..., Any]:
    if not any(is_opened(array, draw) for array in arrays.types[:1] + arrays.types[2:]):
        return lambda arrays, draw: arrays
    real = np.float64 if real_of(arrays[0]) == types.float64 else np.float32

    def opened(arrays: Any, draw: Any) -> Any:
        how = (real(0), draw)
        return open_one(arrays[0], how), arrays[1], *over(open_one, arrays[2:], how, None)

    return opened


def open_one(array: Any, how: Any) -> Any:
    """A copy of an array that is opened, any other array itself."""


@means(open_one)
def _open_one(array: Any, how: Any) -> Callable[..., Any]:
    real, draw = how
    if not is_opened(array, draw):
        return lambda array, how: array
    number = np.float64 if real == types.float64 else np.float32

    def copy(array: Any, how: Any) -> Any:
        numbers = np.empty(first(array).shape, number)
        flat, whole = numbers.reshape(numbers.size), planewise(flattened, array, None)
        for i in range(flat.size):
            flat[i] = load(whole, i, how[0])
        return numbers

    return copy


@passed
def flattened(plane: Any, _: Any) -> Any:
    """The elements of a plane in C order, in the same memory if they have that already."""
    return np.ascontiguousarray(plane).reshape(plane.size)


def close_all(arrays: Any, opened: Any, draw: Any, j: Any) -> None:
    """Store the copies that were stepped in the place of arrays; `j` is the number of the first of these."""


@means(close_all)
def _close_all(arrays: Any, opened: Any, draw: Any, j: Any) -> Callable[..., None]:
    if not any(is_opened(array, draw) for array in arrays.types):
        return lambda arrays, opened, draw, j: None
    if not is_opened(arrays[0], draw):
        return lambda arrays, opened, draw, j: close_all(arrays[1:], opened[1:], draw, j + 1)

    def both(arrays: Any, opened: Any, draw: Any, j: Any) -> None:
        close(arrays[0], opened[0], draw, j)
        close_all(arrays[1:], opened[1:], draw, j + 1)

    return both


def close(array: Any, numbers: Any, draw: Any, j: Any) -> None:
    """Store these numbers in array `j`."""


@means(close)
def _close(array: Any, numbers: Any, draw: Any, j: Any) -> Callable[..., None]:
    made = format_of(array)
    if made is Steps8:

        def steps(array: Any, numbers: Any, draw: Any, j: Any) -> None:
            n = steps_of_octave(array.grid)
            for i, word in np.ndenumerate(numbers):
                array.code[i] = to_steps8(word, array.grid[0], n)

        return steps
    if made in LEVELS:
        levels, encoded = LEVELS[made], to_int8 if made is Int8 else to_squares8

        def blocks(array: Any, numbers: Any, draw: Any, j: Any) -> None:
            flat, code = numbers.reshape(numbers.size), array.code.reshape(numbers.size)
            for block in range(len(array.scale)):
                start = block * QUANTA
                part = flat[start : start + QUANTA]
                levelled(part, scale_of(part), levels, draw, j, start)
                array.scale[block] = scale = scale_of(part)
                for i in range(part.size):
                    code[start + i] = encoded(part[i], scale)

        return blocks

    rounded = compiled(dither(np.dtype(str(numbers.dtype)), BFLOAT16 if made is BFloat16 else FLOAT16))

    def words(array: Any, numbers: Any, draw: Any, j: Any) -> None:
        random, seed, step, index = draw
        key, index = key_of(seed, j, step), np.uint64(index)
        for i, value in np.ndenumerate(numbers):
            if random:
                value = rounded(value, word_at(key, index))
            store(array, i, value)
            index += np.uint64(1)

    return words


def levelled(numbers: Any, scale: Any, levels: Any, draw: Any, j: Any, start: Any) -> None:
    """Round the numbers of a block of array `j`, which begins at `start`, to levels at random, if numbers are."""


@means(levelled)
def _levelled(numbers: Any, scale: Any, levels: Any, draw: Any, j: Any, start: Any) -> Callable[..., None]:
    if isinstance(draw, types.NoneType):
        return lambda numbers, scale, levels, draw, j, start: None

    def drawn(numbers: Any, scale: Any, levels: Any, draw: Any, j: Any, start: Any) -> None:
        random, seed, step, index = draw
        if random:
            key = key_of(seed, j, step)
            for i in range(numbers.size):
                word = word_at(key, np.uint64(index) + np.uint64(start + i))
                numbers[i] = dither_level(numbers[i], word, levels, scale)

    return drawn


@compiled
def scale_of(numbers: Any) -> Any:
    """The scale of a block, as `_formats.scales_of`."""
    most = LEAST_SCALE
    for number in numbers:
        most = max(most, finite_size(number))
    return most


@compiled
def key_of(seed: Any, j: Any, step: Any) -> Any:
    """The key of array `j` of the parameter with the number 0, as `_random.key_of`."""
    return mixed(mixed(mixed(mixed(np.uint64(0), np.uint64(seed)), np.uint64(0)), np.uint64(j)), np.uint64(step))


@compiled
def word_at(key: Any, index: Any) -> Any:
    """The random bits of an element, as `_random.words`."""
    return word_of(mixed(key, index >> np.uint64(32)), np.uint32(index & np.uint64(0xFFFFFFFF)))


def move(average: Any, param: Any, share: Any) -> None:
    """Move the average of a parameter, if it has one, towards what has been stored in that."""


@means(move)
def _move(average: Any, param: Any, share: Any) -> Callable[..., None]:
    if isinstance(average, types.NoneType):
        return lambda average, param, share: None
    real = np.float64 if average.dtype == types.float64 else np.float32

    def moved(average: Any, param: Any, share: Any) -> None:
        if share != 0:
            for i in np.ndindex(average.shape):
                average[i] = _average(average[i], load(param, i, average[i]), real(share))

    return moved
