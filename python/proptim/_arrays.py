"""Arrays from anywhere, seen through NumPy without a copy, and the checks that make stepping them safe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:
    Array = np.ndarray  # numpy.typing takes 2 ms to import
"""A NumPy array of one of the supported dtypes."""

SUPPORTED = ("float32", "float64", "complex64", "complex128")

# Exact overlap of two strided arrays is NP-hard; this many candidate solutions decides every real case.
# What is still undecided then counts as overlapping.
MAX_OVERLAP_WORK = 100_000


def is_array(given: object) -> bool:
    """Whether `given` is one array rather than a collection of arrays."""
    return hasattr(given, "__array_interface__") or hasattr(given, "__dlpack__") or isinstance(given, memoryview)


def as_array(given: Any, label: str) -> Array:
    """View `given` as a NumPy array of a supported dtype; never a copy, except of a NumPy scalar.

    Takes NumPy arrays, torch CPU tensors, exporters of the buffer protocol and DLPack CPU exporters.
    Raises TypeError for anything else, another device or another dtype.
    """
    if isinstance(given, np.ndarray):
        if hasattr(given, "mask"):  # of numpy.ma, which would take 14 ms to import
            raise TypeError(f"{label} is a masked array, but no step leaves elements out; expected an array: use .data")
        array: Array = np.asarray(given)  # subclasses give operators another meaning
    elif isinstance(given, np.generic):
        array = np.asarray(given)
        array.flags.writeable = False  # a copy: writing to it would be lost
    elif hasattr(given, "detach") and hasattr(given, "layout"):  # a torch tensor, without importing torch
        array = _from_torch(given, label)
    elif hasattr(given, "__dlpack_device__") and given.__dlpack_device__()[0] != 1:  # 1 is kDLCPU
        raise TypeError(f"{label} is on {_device(given)}; expected an array in CPU memory: copy it to the CPU first")
    else:
        array = _from_exporter(given, label)
    if array.dtype.name not in SUPPORTED or not array.dtype.isnative:
        order = "" if array.dtype.isnative else " of foreign byte order"
        raise TypeError(
            f"{label} is {array.dtype.name}{order}; supported: {', '.join(SUPPORTED)}: convert it with .astype"
        )
    return array


def _from_torch(tensor: Any, label: str) -> Array:
    if tensor.device.type != "cpu":
        raise TypeError(f"{label} is on {tensor.device}; expected a CPU tensor: move it with .cpu()")
    if str(tensor.layout) != "torch.strided":
        raise TypeError(f"{label} has layout {tensor.layout}; expected a strided tensor: use .to_dense()")
    try:
        array: Array = tensor.detach().numpy()
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"{label} is {tensor.dtype}; supported: {', '.join(SUPPORTED)}: convert it ({error})"
        ) from error
    return array


def _from_exporter(given: Any, label: str) -> Array:
    try:
        return np.asarray(memoryview(given))
    except (TypeError, ValueError, BufferError):
        pass  # not a buffer; DLPack is the last door
    try:
        return np.from_dlpack(given)
    except (AttributeError, TypeError, BufferError, RuntimeError):
        raise TypeError(
            f"{label} is {type(given).__name__}; expected a NumPy array, a torch CPU tensor, or an exporter of the "
            "buffer protocol or DLPack: convert it with numpy.asarray"
        ) from None


def _device(given: Any) -> str:
    kinds = {2: "CUDA", 3: "CUDA (host)", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 13: "CUDA (managed)"}
    kind, number = given.__dlpack_device__()
    return f"{kinds.get(int(kind), f'DLPack device type {int(kind)}')}:{number}"


def real_view(array: Array) -> Array:
    """The same memory as reals: complex numbers are stepped as independent real and imaginary parts."""
    if array.dtype.kind != "c":
        return array
    parts = array.real
    return np.lib.stride_tricks.as_strided(
        parts, (*parts.shape, 2), (*parts.strides, parts.itemsize), writeable=array.flags.writeable
    )


def byte_bounds(array: Array) -> tuple[int, int]:
    """Address of the first byte of `array` and of the first byte after it."""
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


def check_disjoint(arrays: Iterable[tuple[str, Array]], others: Sequence[tuple[str, Array]] = ()) -> None:
    """Raise ValueError if two of `arrays`, or one of them and one of `others`, share memory.

    One sweep over sorted address ranges; only ranges that meet are looked at more closely.
    """
    ranges = [(*byte_bounds(array), True, label, array) for label, array in arrays if array.size]
    ranges += [(*byte_bounds(array), False, label, array) for label, array in others if array.size]
    ranges.sort(key=lambda item: item[0])
    open_ranges: list[tuple[int, int, bool, str, Array]] = []
    for item in ranges:
        low, _, first, label, array = item
        open_ranges = [other for other in open_ranges if other[1] > low]
        for _, _, other_first, other_label, other in open_ranges:
            if (first or other_first) and share_memory(array, other):
                raise ValueError(
                    f"{label} and {other_label} share memory; expected separate memory: pass a copy of one"
                )
        open_ranges.append(item)


def select(condition: Any, x: Any, y: Any) -> Any:
    """`x` where the condition holds, `y` elsewhere: the word that the rules use, over arrays here.

    `_numba` gives it a meaning for scalars, where Numba's own numpy.where would make 0-d arrays.
    """
    return np.where(condition, x, y)


def first_nonfinite(array: Array) -> tuple[int, ...] | None:
    """Index of the first element that is NaN or infinite, looked for piece by piece: no array of the whole size."""
    piece = 1 << 16
    for start in range(0, array.size, piece):
        bad = ~np.isfinite(array.flat[start : start + piece])
        if bad.any():
            return tuple(map(int, np.unravel_index(start + int(bad.argmax()), array.shape)))
    return None
