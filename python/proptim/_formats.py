"""Arrays in other formats than the rule computes in, in NumPy: the Python twin of `csrc/codecs/`.

The format of an array of one plane follows from its dtype and from the dtype of the rule: `widened` is its load,
`rounded` its store. Internally bfloat16, which NumPy does not have, is uint16 everywhere; `shown` converts it for
users. Arrays of two planes are pairs: `Steps`, `Split`, `Mastered` and
`Published`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from proptim._arrays import BFLOAT16, Array, real_view, select
from proptim._interrupts import Store

FLOAT16, FLOAT32, FLOAT64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)
SIXTEEN = (BFLOAT16, FLOAT16)
"""The internal dtypes of 16 bits."""

# The state word of Rprop is the step size of a weight with the sign of the last gradient in the sign bit. If there is
# no last sign it is the step size times 2**90, which is recognized because it is above 2**38. Powers of two scale
# exactly. For legal step sizes both forms are distinct and finite in float32: 2**-50 * 2**90 > 2**38 > 2**37, and
# 2**37 * 2**90 < 2**128.
FORGET = 2.0**90
REMEMBERED = 2.0**38


def arithmetic(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which a rule computes for a parameter of this dtype: float32 for all below 64 bits."""
    return FLOAT64 if dtype.char in "dD" else FLOAT32  # a name would take NumPy a microsecond


# The texts of codecs --------------------------------------------------------------------------------------------------
#
# On the bits of float32: of whole arrays here, and in code that Numba compiles of one number at a time. Sums go through
# np.uint32 because Numba adds words of 32 bits in 64.


def from_bfloat16(half: Any) -> Any:
    """The bits of a float32 from those of a bfloat16."""
    return np.uint32(np.uint32(half) << np.uint32(16))


def to_bfloat16(bits: Any) -> Any:
    """The bfloat16 to which a float32 is rounded, ties to even. A NaN stays one, and is quiet."""
    even = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    nan = bits >> np.uint32(16) | np.uint32(0x0040)
    return np.uint16(select(is_nan(bits), nan, even))


def to_odd(values: Any) -> Any:
    """The float32 to which a float64 is rounded so that rounding it again is rounding once.

    That is towards zero, with the last bit set where the float64 lies in between.
    """
    single = np.float32(values)
    away = np.abs(single) > np.abs(values)
    inexact = (single != values) & (values == values)
    return np.uint32(single.view(np.uint32) - np.uint32(away)) | np.uint32(inexact)


def joined(high: Any, low: Any) -> Any:
    """The bits of a float32 from its halves, from the upper one alone where both together would be a NaN.

    No float32 that is stored has such halves; a zero or an infinity that the user wrote beside an old low half has.
    """
    upper = np.uint32(np.uint32(high) << np.uint32(16))
    sign = np.uint32(low) & np.uint32(0x8000)
    word = np.uint32(upper + np.uint32(low) - (sign << np.uint32(1)))
    return np.uint32(select(is_nan(word), upper, word))


def halves(bits: Any) -> Any:
    """The two halves of a float32. Every NaN becomes the canonical one, for the carry would run into its sign."""
    word = select(is_nan(bits), np.uint32(0x7FC00000), bits)
    return np.uint16((word + np.uint32(0x8000)) >> np.uint32(16)), np.uint16(word & np.uint32(0xFFFF))


def is_nan(bits: Any) -> Any:
    """Whether these are the bits of a float32 that is NaN."""
    return (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)


# One plane ------------------------------------------------------------------------------------------------------------


def widened(array: Array, real: np.dtype[Any]) -> Array:
    """A real array in the dtype of the rule: the array itself if it has that dtype."""
    if array.dtype == real:
        return array
    if array.dtype == BFLOAT16:
        array = np.asarray(from_bfloat16(array)).view(np.float32)  # with no axis it is a scalar
    with np.errstate(all="ignore"):  # a float64 may exceed the range of float32
        return array.astype(real, copy=False)


def rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    """Real numbers in another dtype, each rounded once, to nearest with ties to even; a NaN becomes a quiet NaN."""
    if dtype == values.dtype:
        return values
    with np.errstate(all="ignore"):
        if dtype == BFLOAT16:
            return _to_bfloat16(values)
        if dtype == FLOAT16:
            return _to_float16(values)
        return values.astype(dtype)


def _to_bfloat16(values: Array) -> Array:
    bits = to_odd(values) if values.dtype == FLOAT64 else np.asarray(values).view(np.uint32)
    return np.asarray(to_bfloat16(bits))


def _to_float16(values: Array) -> Array:
    bits = np.asarray(values.astype(np.float16)).view(np.uint16)
    if not np.isnan(values).any():
        return bits.view(np.float16)
    single = np.asarray(values.astype(np.float32)).view(np.uint32)  # keeps the upper payload bits of a float64 NaN
    nan = (
        (single >> np.uint32(16) & np.uint32(0x8000)) | np.uint32(0x7E00) | (single >> np.uint32(13) & np.uint32(0x1FF))
    )
    return np.where(np.isnan(values), nan.astype(np.uint16), bits).view(np.float16)


# Two planes -----------------------------------------------------------------------------------------------------------


class Steps(NamedTuple):
    """The state word of Rprop in two real arrays: step sizes, and numbers with the last signs."""

    size: Array
    sign: Array

    def load(self) -> Array:
        """The word, in a new array."""
        size, sign = self
        word: Array = np.where(sign > 0, size, np.where(sign < 0, -size, size * size.dtype.type(FORGET)))
        return word

    def stores(self, word: Array) -> list[Store]:
        """What both arrays are to be set to."""
        size = np.abs(word)
        known = size < REMEMBERED
        return [
            (self.size, ..., np.where(known, size, size * size.dtype.type(1 / FORGET))),
            (self.sign, ..., np.where(known, np.copysign(size.dtype.type(1), word), size.dtype.type(0))),
        ]


class Split(NamedTuple):
    """A float32 in two arrays of 16 bits: the bfloat16 that it is rounded to, ties away from zero, and its low half.

    If b are the bits of the float32, high is (b + 0x8000) >> 16 and low is b & 0xffff; b is (high << 16) plus low as a
    signed number. See `halves` and `joined`.
    """

    high: Array
    low: Array

    def load(self) -> Array:
        """The float32, in an array of its own."""
        with np.errstate(over="ignore"):  # modulo 2**32
            return np.asarray(joined(self.high, self.low)).view(np.float32)

    def stores(self, values: Array) -> list[Store]:
        """What both arrays are to be set to."""
        high, low = halves(np.asarray(values).view(np.uint32))
        return [(self.high, ..., high), (self.low, ..., low)]


class Mastered(NamedTuple):
    """An array of 16 bits, and the float32 array of which it is the rounded value.

    An element of 16 bits that is not its rounded float32 has been written by the user, and is used instead of it.
    """

    half: Array
    master: Array

    def load(self) -> Array:
        """The float32, in an array of its own."""
        half, master = self
        same = rounded(master, half.dtype).view(np.uint16) == half.view(np.uint16)
        return np.where(same, master, widened(half, master.dtype))

    def stores(self, values: Array) -> list[Store]:
        """What both arrays are to be set to."""
        return [(self.half, ..., rounded(values, self.half.dtype)), (self.master, ..., values)]


class Published(NamedTuple):
    """A float32 array, and one of 16 bits that gets a rounded copy of every number that is stored."""

    full: Array
    copy: Array

    def load(self) -> Array:
        """The float32 array itself."""
        return self.full

    def stores(self, values: Array) -> list[Store]:
        """What both arrays are to be set to."""
        return [(self.full, ..., values), (self.copy, ..., rounded(values, self.copy.dtype))]


# One byte -------------------------------------------------------------------------------------------------------------
#
# The twins of `csrc/codecs/levels.h`, `int8.h`, `squares8.h` and `steps8.h`, where the formats are described. The bytes
# of an array are in C order whatever its parameter is. The texts are, as those of 16 bits, for whole arrays here and
# for one number at a time in code that Numba compiles.

QUANTA = 256
"""Elements that share a scale."""
LEAST_SCALE = np.float32(2.0**-109)
"""Of a block in which all numbers are smaller: the smallest level of squares, 2^-125, is a normal number with it."""
CODES = (np.dtype(np.int8), np.dtype(np.uint8))
"""The dtypes of codes of one byte."""


def finite_size(value: Any) -> Any:
    """The size of a number as it counts for the scale of its block: 0 of one that is not finite."""
    return select(np.isfinite(value), np.abs(value), np.float32(0))


def level_of(size: Any, levels: int, scale: Any) -> Any:
    """The level that is nearest to a size in a block of this scale, the largest size."""
    square = size * (np.float32(levels * levels) / scale)
    below = np.int32(np.sqrt(square))
    up = square - np.float32(below * below) > np.float32(below) + np.float32(0.5)
    return np.int32(below + up)


def size_of(level: Any, levels: int, scale: Any) -> Any:
    """The size that a level stands for."""
    return np.float32(level * level) * np.float32(1 / (levels * levels)) * scale


def from_int8(code: Any, scale: Any) -> Any:
    """The number of a code of `Int8`."""
    level = np.abs(np.int32(code))
    size = select(level == 128, np.float32(np.nan), size_of(level, 127, scale))
    return select((code < 0) & (level < 128), -size, size)


def to_int8(value: Any, scale: Any) -> Any:
    """The code of `Int8` that is nearest to a number."""
    level = level_of(finite_size(value), 127, scale)
    return np.int8(select(np.isfinite(value), select(value < 0, -level, level), np.int32(-128)))


def from_squares8(code: Any, scale: Any) -> Any:
    """The number of a code of `Squares8`."""
    level = np.int32(code)
    return select(level == 255, np.float32(np.nan), size_of(level, 254, scale))


def to_squares8(value: Any, scale: Any) -> Any:
    """The code of `Squares8` that is nearest to a number, and 0 for no number above 0."""
    level = np.maximum(level_of(finite_size(value), 254, scale), np.int32(value > 0))
    return np.uint8(select(np.isfinite(value), level, np.int32(255)))


SIZES = 85
"""Step sizes of Rprop in one byte."""
GRID_ROOTS, GRID_MIDDLES = (
    np.array([[float.fromhex(x) for x in (*row.split(), *["0x0p0"] * 4)[:4]] for row in rows], np.float32)
    for rows in (
        (
            "0x1p0",
            "0x1p0 0x1.6a09e6p-1",
            "0x1p0 0x1.965feap-1 0x1.428a3p-1",
            "0x1p0 0x1.ae89fap-1 0x1.6a09e6p-1 0x1.306fep-1",
        ),
        (
            "0x1.6a09e6p0 0x1p1 0x1p1 0x1p1",
            "0x1.306fep0 0x1.ae89fap0 0x1p1 0x1p1",
            "0x1.1f59acp0 0x1.6a09e6p0 0x1.c823ep0 0x1p1",
            "0x1.172b84p0 0x1.4bfdaep0 0x1.8ace54p0 0x1.d5818ep0",
        ),
    )
)


def steps_of_octave(grid: Any) -> Any:
    """The steps of an octave of a grid of `Steps8`, 1 to 4."""
    return 1 + int(grid[1] >= 2) + int(grid[1] >= 3) + int(grid[1] >= 4)


def from_steps8(code: Any, largest: Any, n: int) -> Any:
    """The word of a code of `Steps8`, on a grid of this largest step size and `n` steps of an octave."""
    signs = np.minimum(np.int32(code) // SIZES, 2)
    k = np.int32(code) - signs * SIZES
    size = largest * GRID_ROOTS[n - 1][k % n] * np.ldexp(np.float32(1), -(k // n))
    return select(signs == 1, -size, size) * select(signs == 2, np.float32(FORGET), np.float32(1))


def to_steps8(word: Any, largest: Any, n: int) -> Any:
    """The code of `Steps8` whose step size is nearest to that of a word, by its logarithm."""
    size = np.abs(word)
    known = size < np.float32(REMEMBERED)
    ratio = size * select(known, np.float32(1), np.float32(1 / FORGET)) * (np.float32(1) / largest)
    bits = np.uint32(np.float32(ratio).view(np.uint32) & np.uint32(0x7FFFFFFF))
    part = np.uint32((bits & np.uint32(0x7FFFFF)) | np.uint32(0x3F800000)).view(np.float32)
    middles = GRID_MIDDLES[n - 1]
    up = np.int32(part > middles[0]) + np.int32(part > middles[1])
    up = up + np.int32(part > middles[2]) + np.int32(part > middles[3])
    k = np.minimum(np.maximum(-((np.int32(bits >> np.uint32(23)) - 127) * n + up), 0), SIZES - 1)
    return np.uint8(k + SIZES * select(known, np.int32(np.signbit(word)), np.int32(2)))


class Int8(NamedTuple):
    """Averages of either sign in one byte, and the scale of each block: the largest size in it, or `LEAST_SCALE`."""

    code: Array
    scale: Array

    def load(self) -> Array:
        """The float32, in an array of its own."""
        return np.asarray(from_int8(self.code, of_block(self.scale, self.code)))

    def stores(self, values: Array) -> list[Store]:
        """What both arrays are to be set to."""
        scale = scales_of(values)
        return [(self.code, ..., to_int8(values, of_block(scale, values))), (self.scale, ..., scale)]


class Squares8(NamedTuple):
    """Numbers that are never negative in one byte, 0 only where they are 0; and the scale of each block."""

    code: Array
    scale: Array

    def load(self) -> Array:
        """The float32, in an array of its own."""
        return np.asarray(from_squares8(self.code, of_block(self.scale, self.code)))

    def stores(self, values: Array) -> list[Store]:
        """What both arrays are to be set to."""
        scale = scales_of(values)
        return [(self.code, ..., to_squares8(values, of_block(scale, values))), (self.scale, ..., scale)]


LEVELS: dict[type[Any], int] = {Int8: 127, Squares8: 254}


def scales_of(values: Array) -> Array:
    """The scale of each block."""
    size = finite_size(values).reshape(-1)
    padded = np.zeros((-(-size.size // QUANTA), QUANTA), np.float32)
    padded.reshape(-1)[: size.size] = size
    return np.asarray(np.maximum(padded.max(axis=1, initial=0), LEAST_SCALE))


def of_block(scale: Array, array: Array) -> Array:
    """The scale of the block of each element of an array."""
    return np.repeat(scale, QUANTA)[: array.size].reshape(array.shape)


class Steps8(NamedTuple):
    """The state word of Rprop in one byte, and the grid of all: the largest step size and the steps of an octave."""

    code: Array
    grid: Array

    def load(self) -> Array:
        """The word, in a new array."""
        return np.asarray(from_steps8(self.code, self.grid[0], steps_of_octave(self.grid)))

    def stores(self, values: Array) -> list[Store]:
        """What the codes are to be set to; the grid stays."""
        return [(self.code, ..., to_steps8(values, self.grid[0], steps_of_octave(self.grid)))]


PAIRS = (Steps, Split, Mastered, Published, Int8, Squares8, Steps8)
Pair = Steps | Split | Mastered | Published | Int8 | Squares8 | Steps8
Compact = Int8 | Squares8 | Steps8
"""State in one byte."""
Stored = Array | Pair
"""A real array in any format."""


# Any format -----------------------------------------------------------------------------------------------------------


def planes(array: Stored | None) -> tuple[Array, ...]:
    """The planes of an array."""
    if array is None:
        return ()
    return tuple(array) if isinstance(array, PAIRS) else (array,)


def apart(array: Any) -> Any:
    """Views of the same memory, which stay as they are when the arrays are given another shape or made read-only."""
    if isinstance(array, PAIRS):
        return type(array)(*map(apart, array))
    return array[...] if isinstance(array, np.ndarray) else array  # None, or rows, which are such views


def load(array: Stored, real: np.dtype[Any]) -> Array:
    """An array as a rule that computes in `real` sees it."""
    return array.load() if isinstance(array, PAIRS) else widened(array, real)


def loaded(segment: Sequence[Stored | None]) -> list[Array | None]:
    """The arrays of a segment, its parameter first, as the rule sees them."""
    real = arithmetic(planes(segment[0])[0].dtype)
    return [None if array is None else load(array, real) for array in segment]


def stores(array: Stored, values: Array) -> list[Store]:
    """The values to store in the planes of an array, so that the array has these values."""
    if isinstance(array, PAIRS):
        return array.stores(values)
    return [(array, ..., rounded(values, array.dtype))]


def after(array: Stored, stores: Sequence[Store], real: np.dtype[Any]) -> Array:
    """What a rule sees of an array in which `stores` puts new values."""
    new = [values for _, _, values in stores]
    return load(type(array)(*new) if isinstance(array, PAIRS) else new[0], real)


# What users see -------------------------------------------------------------------------------------------------------


@cache
def _named() -> np.dtype[Any] | None:
    """The dtype bfloat16 of ml_dtypes; None if that is not installed."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    named: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return named


def shown(array: Array) -> Array:
    """The same memory for a user: bfloat16 with the dtype of ml_dtypes, or as uint16 if that is not installed."""
    named = _named() if array.dtype == BFLOAT16 else None
    return array if named is None else array.view(named)


def empty(like: Array, dtype: np.dtype[Any]) -> Array:
    """A new array of this dtype with the shape and memory order of `like`; pairs of reals for complex numbers."""
    if like.dtype.kind == "c" and dtype.kind != "c":
        return np.empty_like(real_view(like), dtype)
    return np.empty_like(like, dtype, subok=False)


def first_nonfinite(array: Array, real: np.dtype[Any] | None = None) -> tuple[int, ...] | None:
    """Index of the first element that is NaN or infinite to a rule, which computes in `real` if it is another dtype.

    The search goes piece by piece, to avoid a temporary array of the whole size.
    """
    piece = 1 << 16
    for start in range(0, array.size, piece):
        bad = ~np.isfinite(numbers(array.flat[start : start + piece], real))
        if bad.any():
            return tuple(map(int, np.unravel_index(start + int(bad.argmax()), array.shape)))
    return None


def numbers(array: Any, real: np.dtype[Any] | None = None) -> Array:
    """The numbers of an array, or of an element, as a rule that computes in `real` sees them."""
    array = np.asarray(array)
    return array if array.dtype.kind == "c" else widened(array, real or arithmetic(array.dtype))
