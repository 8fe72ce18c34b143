"""Arrays of any library, viewed through NumPy without a copy, and the checks that make stepping them safe."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:
    Array = np.ndarray  # numpy.typing takes 2 ms to import
"""A NumPy array of one of the supported dtypes."""

SUPPORTED = ("float32", "float64", "complex64", "complex128")
SIXTEEN = ("float16", "bfloat16")
MEND_DTYPE = "convert it with .astype, a tensor with .to"
"""What messages say to do about a dtype."""
CONVERT = f"{', '.join((*SUPPORTED, *SIXTEEN))}: {MEND_DTYPE}"
"""The dtypes in messages, and what to do."""
BFLOAT16 = np.dtype(np.uint16)
"""The dtype of bfloat16 arrays here, since NumPy does not have bfloat16: their bits."""

# Exact overlap of two strided arrays is NP-hard; this many candidate solutions decides every real case.
# What is still undecided then counts as overlapping.
MAX_OVERLAP_WORK = 100_000


class _NotSeen(TypeError):
    """Why something cannot be viewed as an array, with a message of proptim."""


def is_array(given: object) -> bool:
    """Whether `given` is one array rather than a collection of arrays."""
    return _has(given, "__array_interface__") or _has(given, "__dlpack__") or isinstance(given, memoryview)


def _has(given: object, name: str) -> bool:
    """Whether there is this attribute; False if reading it raises anything."""
    try:
        return hasattr(type(given), name) or hasattr(given, name)
    except MemoryError:
        raise
    except Exception:
        return True


def attribute(given: object, name: str) -> Any:
    """This attribute of any object; None if it has none, or if reading it raises anything."""
    try:
        return getattr(given, name, None)
    except MemoryError:
        raise
    except Exception:
        return None


@lru_cache(maxsize=64)
def _name(dtype: np.dtype[Any]) -> str:
    """NumPy's name of a dtype, which NumPy makes anew each time, in a microsecond."""
    return dtype.name


def name_of(dtype: np.dtype[Any]) -> str:
    """The name of the dtype of an array that `as_array` returned."""
    return "bfloat16" if dtype == BFLOAT16 else _name(dtype)


class Bits(Array):
    """An array of uint16 that is said to be the bits of bfloat16 numbers."""


def is_bfloat16(given: Any) -> bool:
    """Whether this is said to be the bits of bfloat16, or is a tensor of torch that NumPy sees as them."""
    return isinstance(given, Bits) or (hasattr(given, "detach") and str(given.dtype) == "torch.bfloat16")


def as_array(given: Any, label: str, *, bits: bool = False) -> Array:
    """View `given` as a NumPy array of a supported dtype; never a copy, except of a NumPy scalar.

    Takes NumPy arrays, torch CPU tensors, exporters of the buffer protocol and DLPack CPU exporters. bfloat16, that of
    ml_dtypes or torch, is seen as uint16; with `bits` uint16 is bfloat16 too, as in state where ml_dtypes is missing.
    Raises TypeError for anything else, another device or another dtype, whatever such an object raises itself.
    """
    try:
        array = _seen(given, label)
    except _NotSeen as error:
        raise TypeError(*error.args) from error.__cause__
    except MemoryError:
        raise
    except Exception as error:
        raise TypeError(_no_array(given, label)) from error
    name = _name(array.dtype)
    if name == "bfloat16":  # of ml_dtypes, which need not be installed
        return array.view(BFLOAT16)
    half = name == "float16" or (name == "uint16" and (bits or is_bfloat16(given)))
    known = half or name in SUPPORTED
    if not known or not array.dtype.isnative:
        order = "" if array.dtype.isnative else " of foreign byte order"
        if name == "void16":
            raise TypeError(f"{label} is void16, as np.load returns bfloat16; expected that: .view(ml_dtypes.bfloat16)")
        raise TypeError(f"{label} is {name}{order}; supported: {CONVERT}")
    return array


def _seen(given: Any, label: str) -> Array:
    if isinstance(given, np.ndarray):
        if _has(given, "mask"):  # of numpy.ma, which would take 14 ms to import
            raise _NotSeen(f"{label} is a masked array, but no step leaves elements out; expected an array: use .data")
        array: Array = np.asarray(given)  # subclasses give operators another meaning
    elif isinstance(given, np.generic):
        array = np.asarray(given)
        array.flags.writeable = False  # a copy: writing to it would be lost
    elif hasattr(given, "detach") and hasattr(given, "layout"):  # a torch tensor, without importing torch
        array = _from_torch(given, label)
    elif hasattr(given, "__dlpack_device__") and given.__dlpack_device__()[0] != 1:  # 1 is kDLCPU
        raise _NotSeen(f"{label} is on {_device(given)}; expected an array in CPU memory: copy it to the CPU first")
    else:
        array = _from_exporter(given, label)
    return array


def _from_torch(tensor: Any, label: str) -> Array:
    if tensor.device.type != "cpu":
        raise _NotSeen(f"{label} is on {tensor.device}; expected a CPU tensor: move it with .cpu()")
    if str(tensor.layout) != "torch.strided":
        raise _NotSeen(f"{label} has layout {tensor.layout}; expected a strided tensor: use .to_dense()")
    for name, word in {"conj": "conjugate", "neg": "negative"}.items():
        if getattr(tensor, f"is_{name}", bool)():  # a view of the memory of another tensor, which has other numbers
            raise _NotSeen(
                f"{label} is the {word} of another tensor, in whose memory are other numbers; expected a tensor of its "
                f"own: use .resolve_{name}()"
            )
    try:
        tensor = tensor.detach()
        if is_bfloat16(tensor):  # which NumPy does not have
            return tensor.view(sys.modules["torch"].int16).numpy().view(BFLOAT16)  # type: ignore[no-any-return]
        array: Array = tensor.numpy()
        if array.size and not tensor.data_ptr():  # NumPy has taken memory of its own for it
            raise ValueError("its storage has been freed")
    except MemoryError:
        raise
    except Exception as error:
        known = (*SUPPORTED, *SIXTEEN)
        if str(tensor.dtype).removeprefix("torch.") in known:  # as a FakeTensor is, or a nested one
            raise _NotSeen(f"{label} is a tensor without an array of numbers in memory ({error})") from error
        raise _NotSeen(f"{label} is {tensor.dtype}; supported: {', '.join(known)}: convert it ({error})") from error
    return array


def _from_exporter(given: Any, label: str) -> Array:
    try:
        return np.asarray(memoryview(given))
    except MemoryError:
        raise
    except Exception:  # not a buffer; DLPack is the last door
        pass
    try:
        return np.from_dlpack(given)
    except MemoryError:
        raise
    except Exception as error:
        raise _NotSeen(_no_array(given, label)) from error


def _no_array(given: Any, label: str) -> str:
    """The message for something that NumPy cannot view: another class, or another dtype."""
    kind = type(given).__name__
    try:
        dtype = given.dtype
        name = str(getattr(dtype, "name", dtype))
    except MemoryError:
        raise
    except Exception:
        name = ""
    if name and name not in SUPPORTED and hasattr(type(given), "astype"):
        return f"{label} is {kind} of dtype {name}; supported: {CONVERT}"
    mend = ".toarray()" if hasattr(type(given), "toarray") else "numpy.asarray"
    of = f" of dtype {name}" if name else ""
    return (
        f"{label} is {kind}{of}; expected a NumPy array, a torch CPU tensor, or an exporter of the buffer protocol or "
        f"DLPack: convert it with {mend}"
    )


def _device(given: Any) -> str:
    kinds = {2: "CUDA", 3: "CUDA (host)", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 13: "CUDA (managed)"}
    kind, number = given.__dlpack_device__()
    return f"{kinds.get(int(kind), f'DLPack device type {int(kind)}')}:{number}"


def tell_torch(given: Iterable[Any]) -> None:
    """Tell autograd that tensors among these were written, so that a graph that needs the old values raises."""
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", ())
    written = [t for t in given if isinstance(t, tensor) and not t.is_inference()]
    if torch is not None and written:
        graph = torch.autograd.graph
        getattr(torch._C, "_increment_version", graph.increment_version)(written)


def real_view(array: Array) -> Array:
    """The same memory as real numbers: complex numbers are stepped as independent real and imaginary parts."""
    if array.dtype.kind != "c":
        return array
    parts = array.real
    return np.lib.stride_tricks.as_strided(
        parts, (*parts.shape, 2), (*parts.strides, parts.itemsize), writeable=array.flags.writeable
    )


def owner_of(array: Array) -> Array:
    """The array whose memory this one shows: itself, if that is not one of NumPy's."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def byte_bounds(array: Array) -> tuple[int, int]:
    """Address of the first byte of `array`, and of the first byte after the array."""
    low = high = array.__array_interface__["data"][0]
    if array.size == 0:
        return low, low
    for length, stride in zip(array.shape, array.strides, strict=True):
        reach = (length - 1) * stride
        low, high = low + min(reach, 0), high + max(reach, 0)
    return low, high + array.itemsize


def overlaps_itself(array: Array) -> bool:
    """Whether two elements may share memory, as in a broadcast or a sliding window.

    Sorted by stride, every axis must step over the whole extent of the axes below it. All views that slicing,
    transposing and reshaping make do so.
    """
    extent = array.itemsize
    axes = sorted((abs(s), n) for n, s in zip(array.shape, array.strides, strict=True) if n > 1)
    for stride, length in axes:
        if stride < extent:
            return array.size > 0
        extent += (length - 1) * stride
    return False


def check_writable(array: Array, label: str) -> None:
    """Raise ValueError unless `array` can be written, each element in memory of its own."""
    if not array.flags.writeable:
        raise ValueError(f"{label} is read-only; expected a writable array: pass a copy")
    if overlaps_itself(array):
        raise ValueError(f"{label} has elements that share memory; expected one place per element: pass a copy")


def share_memory(a: Array, b: Array) -> bool:
    """Whether two arrays have a byte in common; "too hard to say" counts as yes."""
    try:
        return np.shares_memory(a, b, max_work=MAX_OVERLAP_WORK)  # type: ignore[arg-type]
    except RuntimeError:  # numpy.exceptions.TooHardError
        return True


class Ranges:
    """The sorted address ranges of arrays; ranges that overlap, as of interleaved arrays, are merged."""

    def __init__(self, arrays: Iterable[Array]) -> None:
        self.low: list[int] = []
        self.high: list[int] = []
        self._take(byte_bounds(array) for array in arrays if array.size)

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Ranges:
        """These ranges."""
        self = cls(())
        self._take(ranges)
        return self

    def _take(self, ranges: Iterable[tuple[int, int]]) -> None:
        for low, high in sorted(ranges):
            if self.high and low < self.high[-1]:
                self.high[-1] = max(self.high[-1], high)
            else:
                self.low.append(low)
                self.high.append(high)

    def meet(self, low: int, high: int) -> bool:
        """Whether some address in [low, high) may belong to one of the arrays."""
        at = bisect_right(self.high, low)
        return low < high and at < len(self.low) and self.low[at] < high

    def exchange(self, old: tuple[int, int], new: tuple[int, int]) -> bool:
        """Replace a range by another, unless one of them overlaps others or has been merged."""
        at = bisect_right(self.low, old[0]) - 1
        known = at >= 0 and (self.low[at], self.high[at]) == old
        if old[0] < old[1] and not known:
            return False
        if known:
            del self.low[at], self.high[at]
        if self.meet(*new):
            return False
        if new[0] < new[1]:
            at = bisect_right(self.low, new[0])
            self.low.insert(at, new[0])
            self.high.insert(at, new[1])
        return True


Range = tuple[int, int, int, str, Array]
"""Where an array begins and ends, its number among `arrays`, OTHER for one of `others`, its label, the array."""
OTHER = 1 << 62


def check_disjoint(arrays: Iterable[tuple[str, Array]], others: Sequence[tuple[str, Array]] = ()) -> None:
    """Raise ValueError if two of `arrays`, or one of them and one of `others`, share memory.

    This is one sweep over sorted address ranges; only ranges that overlap are examined more closely.
    """
    ranges = [(*byte_bounds(array), i, label, array) for i, (label, array) in enumerate(arrays) if array.size]
    ranges += [(*byte_bounds(array), OTHER, label, array) for label, array in others if array.size]
    ranges.sort(key=lambda item: item[0])
    cluster: list[Range] = []  # ranges that meet, one after the other
    end = 0
    for item in ranges:
        if item[0] >= end:
            _check_cluster(cluster)
            cluster = []
        cluster.append(item)
        end = max(end, item[1])
    _check_cluster(cluster)


def _check_cluster(cluster: list[Range]) -> None:
    """`check_disjoint` for overlapping ranges, sorted by their beginnings."""
    if len(cluster) > 2:
        cluster = _not_in_columns(cluster)
    open_ranges: list[Range] = []
    for item in cluster:
        open_ranges = [other for other in open_ranges if other[1] > item[0]]
        for other in open_ranges:
            if min(item[2], other[2]) != OTHER and share_memory(item[4], other[4]):
                # The message names first the array that was passed later, whatever the addresses.
                earlier, later = sorted((item, other), key=lambda each: each[2])
                raise ValueError(
                    f"{later[3]} and {earlier[3]} share memory; expected separate memory: pass a copy of one"
                )
        open_ranges.append(item)


def _not_in_columns(cluster: list[Range]) -> list[Range]:
    """The ranges that are not evidently distinct columns of one table.

    Columns that occupy other bytes of the row share no memory, however many there are; all pairs of them would be too
    many to look at.
    """
    width = max(_width(item[4]) for item in cluster)
    base = cluster[0][0]
    columns = []
    for item in cluster:
        column = _column(item[4], width, base)
        if column is None:
            return cluster
        columns.append((*column, item))
    columns.sort(key=lambda column: column[0])
    kept, end = [], 0
    for i, (begin, stop, item) in enumerate(columns):
        if begin < end or (i + 1 < len(columns) and columns[i + 1][0] < stop):
            kept.append(item)
        end = max(end, stop)
    return sorted(kept, key=lambda item: item[0])


def _width(array: Array) -> int:
    """Bytes of a row of the table of which an array would be a column."""
    return max((abs(s) for s, n in zip(array.strides, array.shape, strict=True) if n > 1), default=0)


def _column(array: Array, width: int, base: int) -> tuple[int, int] | None:
    """Which bytes of each row an array has that is a column of a table with rows of `width` bytes; None if it is none.

    It is one where its strides are multiples of the width, but for those of axes that end within a row.
    """
    if not width:
        return None
    extent = array.itemsize
    low = 0
    for stride, length in zip(array.strides, array.shape, strict=True):
        if length > 1 and abs(stride) < width:
            extent += abs(stride) * (length - 1)
            low += min(stride, 0) * (length - 1)
        elif length > 1 and stride % width:
            return None
    begin: int = (array.__array_interface__["data"][0] + low - base) % width
    return None if begin + extent > width else (begin, begin + extent)


class Occupied:
    """The memory of arrays that share none, to which others are added one after the other.

    To look at all others for each array would take a time that grows with the square of their number. So it keeps
    sorted ranges of arrays that meet, and of a range that is a table the columns, sorted too.
    """

    def __init__(self, arrays: Iterable[tuple[str, Array]]) -> None:
        self.low: list[int] = []
        self.met: list[_Met] = []
        self.add(sorted((a for a in arrays if a[1].size), key=lambda item: byte_bounds(item[1])))

    def add(self, arrays: Iterable[tuple[str, Array]]) -> None:
        """Add these arrays; ValueError, with some of them added, for one that shares memory with another."""
        for label, array in arrays:
            low, high = byte_bounds(array)
            if low == high:
                continue
            begin = bisect_right(self.low, low)
            if begin and self.met[begin - 1].high > low:
                begin -= 1
            end = begin
            while end < len(self.met) and self.low[end] < high:
                end += 1
            if end == begin + 1 and self.met[begin].take(label, array, high):
                met = self.met[begin]
            else:
                known = [item for met in self.met[begin:end] for item in met.arrays]
                check_disjoint([(label, array)], known)
                met = _Met([*known, (label, array)], max([high, *(met.high for met in self.met[begin:end])]))
            self.met[begin:end] = [met]
            self.low[begin:end] = [min([low, *self.low[begin:end]])]


class _Met:
    """Arrays whose ranges meet, one after the other; as many columns as are known of them if they are a table."""

    def __init__(self, arrays: list[tuple[str, Array]], high: int) -> None:
        self.arrays, self.high = arrays, high
        self.columns: Ranges | None = None

    def take(self, label: str, array: Array, high: int) -> bool:
        """Add a column that is evidently apart from all others; False, and nothing done, if it needs a closer look."""
        if self.columns is None:
            self.width = max(_width(known) for _, known in self.arrays)
            self.base = byte_bounds(self.arrays[0][1])[0]
            columns = [_column(known, self.width, self.base) for _, known in self.arrays]
            self.columns = Ranges.of(c for c in columns if c is not None) if None not in columns else Ranges.of([])
        column = _column(array, self.width, self.base)
        if not self.columns.low or column is None or not self.columns.exchange((0, 0), column):
            return False
        self.arrays.append((label, array))
        self.high = max(self.high, high)
        return True


def select(condition: Any, x: Any, y: Any) -> Any:
    """`x` where the condition holds, `y` elsewhere: the function that the rules use, here for arrays.

    `_numba` defines it for scalars, for which Numba's own numpy.where would make 0-d arrays.
    """
    return np.where(condition, x, y)
