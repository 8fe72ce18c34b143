"""More weights than 2**31: every size, offset and count of a step is a size_t or wider.

The arrays are 8.6 GB of addresses over little memory: nearly all of their pages are one small file mapped again and
again, and only the ends and the place where an int would turn negative have memory of their own.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys

import numpy as np
import pytest

import proptim
from proptim import _backend

pytestmark = [
    pytest.mark.slow,
    pytest.mark.once,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maps memory as Linux does"),
    pytest.mark.skipif(sys.maxsize < 2**32, reason="needs 64-bit addresses"),
    pytest.mark.skipif(bool(_backend.missing_core), reason=_backend.missing_core),
]

CHUNK = 2**24  # bytes of the file that repeats
SIZE = 2**31 + 2**20 + 77  # float32 elements
WINDOW = 2**13  # elements that are looked at, in memory of their own: at both ends, and where an int turns negative
WATCHED = [0, 2**31 - WINDOW // 2, SIZE - 2**31 - WINDOW // 2, SIZE - WINDOW]  # the same places seen from the end
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_NORESERVE, MAP_ANONYMOUS = 0x01, 0x02, 0x10, 0x4000, 0x20
"""MAP_* of Linux; Python's mmap cannot place a mapping."""


class Huge:
    """SIZE float32 elements over one small file, but for those that are watched."""

    def __init__(self, file):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        rights = mmap.PROT_READ | mmap.PROT_WRITE
        self.libc, self.bytes = libc, -(-4 * SIZE // CHUNK) * CHUNK

        def place(address, length, flags, descriptor=-1):
            found = libc.mmap(address, length, rights, flags, descriptor, 0)
            assert found != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
            return found

        nothing = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        self.start = place(None, self.bytes, nothing)
        for at in range(0, self.bytes, CHUNK):
            place(self.start + at, CHUNK, MAP_SHARED | MAP_FIXED, file)
        for first in WATCHED:
            low = 4 * first // mmap.PAGESIZE * mmap.PAGESIZE
            place(self.start + low, 4 * WINDOW + mmap.PAGESIZE, nothing | MAP_FIXED)
        self.array = np.ctypeslib.as_array((ctypes.c_float * SIZE).from_address(self.start))

    def close(self):
        self.libc.munmap(ctypes.c_void_p(self.start), ctypes.c_size_t(self.bytes))


def windows(array):
    return [array[first : first + WINDOW] for first in WATCHED]


@pytest.fixture(scope="module")
def huge():
    """A parameter and its gradient."""
    made, files = [], []
    for name in ("param", "grad"):
        files.append(os.memfd_create(name))
        os.ftruncate(files[-1], CHUNK)
        made.append(Huge(files[-1]))
    yield [each.array for each in made]
    for each, file in zip(made, files, strict=True):
        each.close()
        os.close(file)


@pytest.mark.parametrize(("threads", "step"), [(1, 1), (3, 1), (3, -1)], ids=["serial", "threads", "reversed"])
def test_more_than_two_to_the_31(huge, threads, step):
    """One array of 2**31 + a million weights is right at both ends and around 2**31; all others have gradient 0."""
    param, grad = huge[0][::step], huge[1]
    assert param.size == SIZE > 2**31
    rng = np.random.default_rng(threads)
    for p, g in zip(windows(param), windows(grad), strict=True):
        p[:], g[:] = rng.standard_normal(WINDOW), rng.integers(-8, 9, WINDOW)
    expected = [p.copy() for p in windows(param)]
    proptim.SGD(expected, lr=0.5, backend="numpy").step(windows(grad))
    proptim.SGD([param], lr=0.5, threads=threads, backend="c").step([grad])
    for found, wanted, first in zip(windows(param), expected, WATCHED, strict=True):
        assert np.array_equal(found, wanted), f"from {first} on"
    assert not param[2**30 : 2**30 + CHUNK].any()  # the file: gradients of 0 have left it alone


def test_norm(huge):
    """The sum of squares counts every element: squares of whole numbers, exact in any order."""
    grad = huge[1]
    for g in windows(grad):
        g[:] = np.random.default_rng(1).integers(-8, 9, WINDOW)
    assert proptim.global_norm([grad]) == math.sqrt(sum(float((g * g).sum()) for g in windows(grad)))


def rows_in_windows(width, length):
    """Rows of a table of this width that lie in the windows as a whole, of which the last is the last row that does."""
    found = []
    for first in WATCHED:
        low, high = -(-first // width), min((first + WINDOW) // width, length)
        found += [low, (low + high) // 2, high - 1]
    return np.array(found)


def test_numbers_of_rows(huge):
    """Rows are found by an index beyond 2**31, or by an offset beyond it, and no other memory is written."""
    for width, step, threads in ((1, 1, 1), (1, -1, 3), (64, 1, 3), (64, -1, 1)):
        length = SIZE // width
        arrays = [array[: length * width] for array in huge]
        if width > 1:
            arrays = [array.reshape(length, width) for array in arrays]
        rng = np.random.default_rng(width)
        for p, g in zip(*map(windows, huge), strict=True):
            p[:], g[:] = rng.standard_normal(WINDOW), rng.integers(1, 9, WINDOW)
        places = rows_in_windows(width, length)
        assert places[-1] * width > 2**31
        before = [[w.copy() for w in windows(array)] for array in huge]
        small = [array[places].copy() for array in arrays]
        order = rng.permutation(np.append(np.arange(len(places)), [len(places) - 1, 0]))
        values = rng.standard_normal((len(order), *arrays[0].shape[1:])).astype(np.float32)
        proptim.functional.adagrad(small[0], proptim.Rows(order, values), small[1], lr=0.5, backend="numpy")
        indices = places[order] if step == 1 else length - 1 - places[order]
        table, total = (array[::step] for array in arrays)
        proptim.functional.adagrad(table, proptim.Rows(indices, values), total, lr=0.5, backend="c", threads=threads)
        for array, expected in zip(arrays, small, strict=True):
            assert array[places].tobytes() == expected.tobytes(), (width, step)
        touched = (places[:, None] * width + np.arange(width)).reshape(-1)
        for array, old in zip(huge, before, strict=True):
            for window, kept, first in zip(windows(array), old, WATCHED, strict=True):
                rest = np.ones(WINDOW, bool)
                rest[touched[(touched >= first) & (touched < first + WINDOW)] - first] = False
                assert (window[rest] == kept[rest]).all(), (width, step, first)
        assert not huge[0][2**30 : 2**30 + CHUNK].any()
        with pytest.raises(ValueError, match=f"indices of grad has {length} at place 0; expected 0 to {length - 1}"):
            proptim.functional.adagrad(table, proptim.Rows([length], values[:1]), total, lr=0.5, backend="c")


def test_rows_that_catch_up(huge):
    """What a row beyond 2**31 weights has missed is made up when it is stepped again."""
    width = 1024
    length = SIZE // width
    table = huge[0][: length * width].reshape(length, width)
    rng = np.random.default_rng(0)
    for p in windows(huge[0]):
        p[:] = rng.standard_normal(WINDOW)
    places = rows_in_windows(width, length)
    small = table[places].copy()
    options = {"lr": 0.5, "weight_decay": 0.25, "lazy_rows": False}
    opts = [proptim.SGD([table], backend="c", **options), proptim.SGD([small], backend="numpy", **options)]
    for order in (np.arange(3), np.array([len(places) - 1, 0]), np.arange(len(places))):
        values = rng.standard_normal((len(order), width)).astype(np.float32)
        for opt, rows in zip(opts, (places[order], order), strict=True):
            opt.step([proptim.Rows(rows, values)])
    assert table[places].tobytes() == small.tobytes()
    assert (opts[0].state[0]["row_step"][places] == 3).all()
    assert opts[0].state[0]["row_step"].sum() == 3 * len(places)
