"""Formats in code that Numba compiles: numbers of 16 bits as words of uint16, and their conversion.

Numba has no arrays of float16 on the CPU and none of the bfloat16 of ml_dtypes, and does not accept them as arguments.
So an array of 16 bits is passed as its bits, in a tuple whose class is the format. The texts of the codecs are those of
`_formats`, compiled; only that of float16, for which NumPy has a dtype, is written out here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from proptim import _formats
from proptim._arrays import Array, select
from proptim._formats import (
    QUANTA,
    Int8,
    Split,
    Squares8,
    Steps8,
    from_bfloat16,
    from_int8,
    from_squares8,
    from_steps8,
    halves,
    is_nan,
    joined,
    steps_of_octave,
    to_bfloat16,
    to_odd,
)
from proptim._jit import compiled, means, types


class BFloat16(NamedTuple):
    """The bits of bfloat16 numbers."""

    words: Array


class Float16(NamedTuple):
    """The bits of float16 numbers."""

    words: Array


class BFloat16Master(NamedTuple):
    """bfloat16 numbers and the float32 numbers from which they were rounded, unless they were written to since."""

    words: Array
    master: Array


class Float16Master(NamedTuple):
    """The same of float16."""

    words: Array
    master: Array


class BFloat16Copy(NamedTuple):
    """float32 numbers, and bfloat16 numbers that get a rounded copy of each that is stored."""

    full: Array
    words: Array


class Float16Copy(NamedTuple):
    """The same of float16."""

    full: Array
    words: Array


FORMATS = {
    BFloat16: "BF16",
    Float16: "F16",
    Split: "SPLIT",
    BFloat16Master: "BF16_MASTER",
    Float16Master: "F16_MASTER",
    BFloat16Copy: "BF16_COPY",
    Float16Copy: "F16_COPY",
    Int8: "INT8",
    Squares8: "SQUARES8",
    Steps8: "STEPS8",
}
"""Class -> the format of `codecs.def`."""
ONE_BYTE = (Int8, Squares8, Steps8)
"""Those of which the second array is not of elements: scales of blocks, or a grid."""


# Types ----------------------------------------------------------------------------------------------------------------


def is_words(kind: Any) -> bool:
    """Whether this is the type of an array of uint16."""
    return isinstance(kind, types.Array) and kind.dtype == types.uint16


def format_of(kind: Any) -> Any:
    """The class that is the format of an array of this type; None if its dtype is."""
    made = getattr(kind, "instance_class", None)
    return made if made in FORMATS else None


def planes_of(kind: Any) -> tuple[Any, ...]:
    """The types of the arrays with an element for each of an array of this type."""
    if isinstance(kind, types.Array):
        return (kind,)
    made = format_of(kind)
    return () if made is None else tuple(kind.types)[: 1 if made in ONE_BYTE else 2]


def real_of(kind: Any) -> Any:
    """The type of number in which a rule computes for a parameter of this type."""
    return types.float64 if isinstance(kind, types.Array) and kind.dtype == types.float64 else types.float32


# What compiled code does with arrays of any format --------------------------------------------------------------------


def first(array: Any) -> Any:
    """The first plane: an array with the shape of them all."""


@means(first)
def _first(array: Any) -> Callable[..., Any]:
    return (lambda array: array[0]) if format_of(array) else (lambda array: array)


def planewise(function: Any, array: Any, argument: Any) -> Any:
    """The array of this format with function(plane, argument) for each plane."""


@means(planewise)
def _planewise(function: Any, array: Any, argument: Any) -> Callable[..., Any]:
    made = format_of(array)
    if made is None:
        return lambda function, array, argument: function(array, argument)
    if made in ONE_BYTE:
        return lambda function, array, argument: made(function(array[0], argument), array[1])
    if len(planes_of(array)) == 1:
        return lambda function, array, argument: made(function(array[0], argument))
    return lambda function, array, argument: made(function(array[0], argument), function(array[1], argument))


def paired(array: Any, master: Any, publish: Any) -> Any:
    """A parameter with its second plane."""


@means(paired)
def _paired(array: Any, master: Any, publish: Any) -> Callable[..., Any]:
    if is_words(master):
        return lambda array, master, publish: Split(array[0], master)
    if isinstance(master, types.Array):
        made: Any = BFloat16Master if format_of(array) is BFloat16 else Float16Master
        return lambda array, master, publish: made(array[0], master)
    if format_of(publish):
        copy: Any = BFloat16Copy if format_of(publish) is BFloat16 else Float16Copy
        return lambda array, master, publish: copy(array, publish[0])
    return lambda array, master, publish: array


# Codecs ---------------------------------------------------------------------------------------------------------------


def from_float16(half: Any) -> Any:
    """The bits of a float32 from those of a float16; as `widen` in `csrc/codecs/words.h`."""
    bits = np.uint32(half)
    size = np.uint32((bits & np.uint32(0x7FFF)) << np.uint32(13))
    step, one = np.uint32(112 << 23), np.uint32(1 << 23)
    # A subnormal has no leading one: with it the number is normal, and subtracting it is exact.
    subnormal = np.float32(single(size + step + one) - single(step + one)).view(np.uint32)
    normal = select(size < np.uint32(0x0F800000), size + step, size + step + step)
    return np.uint32(select(size < one, subnormal, np.uint32(normal))) | (bits & np.uint32(0x8000)) << np.uint32(16)


def to_float16(bits: Any) -> Any:
    """The float16 to which a float32 is rounded, ties to even; as `narrow` in `csrc/codecs/words.h`."""
    size = np.uint32(bits) & np.uint32(0x7FFFFFFF)
    odd = size >> np.uint32(13) & np.uint32(1)
    half = (size - np.uint32(112 << 23) + np.uint32(0x0FFF) + odd) >> np.uint32(13)
    # The last bit of 1/2 is the smallest subnormal: a sum with it is rounded to a multiple of that.
    subnormal = np.float32(single(size) + np.float32(0.5)).view(np.uint32) - np.uint32(0x3F000000)
    half = select(size < np.uint32(113 << 23), subnormal, half)
    half = select(size < np.uint32(143 << 23), half, np.uint32(0x7C00))
    half = select(size > np.uint32(0x7F800000), np.uint32(0x7E00) | (size >> np.uint32(13) & np.uint32(0x01FF)), half)
    return np.uint16(half | (np.uint32(bits) >> np.uint32(16) & np.uint32(0x8000)))


@compiled
def single(bits: Any) -> Any:
    """The float32 of these bits."""
    return np.uint32(bits).view(np.float32)


def bits_of(number: Any) -> Any:
    """The bits of the float32 through which a number is rounded to 16 bits."""


@means(bits_of)
def _bits_of(number: Any) -> Callable[..., Any]:
    if number == types.float64:
        return lambda number: to_odd(number)
    return lambda number: np.float32(number).view(np.uint32)


def by_name(*texts: Callable[..., Any]) -> None:
    """Let compiled code call texts by their names."""
    for text in texts:
        means(text)(_always(text))


def _always(text: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: text


by_name(from_bfloat16, to_bfloat16, from_float16, to_float16, to_odd, joined, halves, is_nan)
by_name(_formats.finite_size, _formats.level_of, _formats.size_of, steps_of_octave)
by_name(from_int8, _formats.to_int8, from_squares8, _formats.to_squares8, from_steps8, _formats.to_steps8)


def passed(text: Callable[..., Any]) -> Callable[..., Any]:
    """Let compiled code call a text by its name and pass it on, and be cached.

    A compiled function that is passed on is an address, and no code with one can be cached.
    """
    by_name(text)
    return text


def load(array: Any, i: Any, real: Any) -> Any:
    """Element `i`, as a number of the type of `real`."""


@means(load)
def _load(array: Any, i: Any, real: Any) -> Callable[..., Any]:
    made = format_of(array)
    number = np.float64 if real == types.float64 else np.float32
    if made is BFloat16:
        return lambda array, i, real: number(single(from_bfloat16(array.words[i])))
    if made is Float16:
        return lambda array, i, real: number(single(from_float16(array.words[i])))
    if made is Split:
        return lambda array, i, real: single(joined(array.high[i], array.low[i]))
    if made in (BFloat16Copy, Float16Copy):
        return lambda array, i, real: array.full[i]
    if made is Int8:
        return lambda array, i, real: from_int8(array.code[i], array.scale[i // QUANTA])
    if made is Squares8:
        return lambda array, i, real: from_squares8(array.code[i], array.scale[i // QUANTA])
    if made is Steps8:
        return lambda array, i, real: from_steps8(array.code[i], array.grid[0], steps_of_octave(array.grid))
    if made is None:
        return lambda array, i, real: number(array[i])
    widen, narrow = (from_bfloat16, to_bfloat16) if made is BFloat16Master else (from_float16, to_float16)

    def master(array: Any, i: Any, real: Any) -> Any:
        own, half = array.master[i], array.words[i]
        return own if narrow(bits_of(own)) == half else single(widen(half))

    return master


def store(array: Any, i: Any, value: Any) -> None:
    """Set element `i`, rounded once."""


@means(store)
def _store(array: Any, i: Any, value: Any) -> Callable[..., None]:
    made = format_of(array)
    if made is None:

        def plain(array: Any, i: Any, value: Any) -> None:
            array[i] = value

        return plain
    if made is Split:

        def split(array: Any, i: Any, value: Any) -> None:
            array.high[i], array.low[i] = halves(bits_of(value))

        return split
    narrow = to_bfloat16 if made in (BFloat16, BFloat16Master, BFloat16Copy) else to_float16
    if made in (BFloat16Copy, Float16Copy):

        def published(array: Any, i: Any, value: Any) -> None:
            array.full[i] = value
            array.words[i] = narrow(bits_of(value))

        return published
    if len(planes_of(array)) == 1:

        def words(array: Any, i: Any, value: Any) -> None:
            array.words[i] = narrow(bits_of(value))

        return words

    def both(array: Any, i: Any, value: Any) -> None:
        array.words[i] = narrow(bits_of(value))
        array.master[i] = value

    return both
