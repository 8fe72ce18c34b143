"""Arrays between inaccessible pages: a kernel that reads or writes one byte outside of an array crashes.

Each case runs in a process of its own, whose end is looked at: `python tests/test_guard_pages.py c avx2`.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys

import numpy as np
import pytest

import proptim
from proptim import _backend, _stages
from proptim.cli import selftest

pytestmark = [
    pytest.mark.once,  # over all backends and instruction sets by itself
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect is called as on Linux"),
]

LENGTHS = (*range(36), 63, 64, 65, 127, 129, 1023, 1025, 4096 + 35)
"""All lengths around vectors of up to 16, then around the alignment of parts for threads, and a block of a step."""
LAYOUTS = ("dense", "every other", "reversed", "packed")  # packed: a field of records of one byte more
MIXES = [("dense",) * 6, *(tuple(LAYOUTS[(turn + j) % len(LAYOUTS)] for j in range(6)) for turn in range(4))]
"""Layout of params, grads, each state array, and the average of the weights."""
STAGES = {"decay": 0.99, "scale": -0.5, "clip": 0.7, "l2": 0.1, "zero": 1.0, "flush": 1.0, "average": 0.3}
PAGE, GRADS = mmap.PAGESIZE, 1
NONE, READ, WRITE = 0, 1, 2  # PROT_* of sys/mman.h; Python names them from 3.12 on


class Arena:
    """Arrays of all lengths, each on pages of its own, touching the forbidden page behind them or before them."""

    def __init__(self, dtype, mix, side):
        itemsize = np.dtype(dtype).itemsize
        room = -(-2 * max(LENGTHS) * itemsize // PAGE) * PAGE + PAGE
        count = len(LENGTHS) * len(mix)
        self.map = mmap.mmap(-1, count * room + PAGE)
        memory = np.frombuffer(self.map, np.uint8)
        values = memory.view(dtype)
        values[:] = np.resize(np.linspace(0.1, 0.9, 1009, dtype=dtype), values.size)
        self.start, self.room = memory.ctypes.data, room
        self.columns = []  # of arrays: params, grads, state...
        for j, layout in enumerate(mix):
            column = []
            for i, n in enumerate(LENGTHS):
                step = {"dense": 1, "every other": 2, "reversed": -2, "packed": 1}[layout] * itemsize
                step += layout == "packed"
                used = (n - 1) * abs(step) + itemsize if n else 0
                low = PAGE + (i * len(mix) + j) * room
                start = low if side == "before" else low + room - PAGE - used
                first = start + used - itemsize if step < 0 and n else start
                column.append(np.ndarray((n,), dtype, self.map, first, (step,)))
            self.columns.append(column)
        for k in range(count + 1):
            self.protect(k * room, PAGE, NONE)

    def protect(self, start, length, rights):
        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.mprotect(ctypes.c_void_p(self.start + start), ctypes.c_size_t(length), rights)
        assert done == 0, f"mprotect: errno {ctypes.get_errno()}"

    def gradients(self, rights):
        """Make the pages of the gradients writable, or read-only."""
        for i in range(len(LENGTHS)):
            k = i * len(self.columns) + GRADS
            self.protect(PAGE + k * self.room, self.room - PAGE, rights)


def step_everything(backend):
    """Every rule once plain, where a write to a gradient is deadly too, and once with all stages; the steps made."""
    count = 0
    for dtype in (np.float32, np.float64):
        for mix in MIXES if backend == "c" else MIXES[:1]:  # Numba's loops do not depend on the layout
            for side in ("before", "behind"):
                arena = Arena(dtype, mix, side)
                for stages, rights in (({}, READ), (STAGES, READ | WRITE)):
                    arena.gradients(rights)
                    for name in proptim.OPTIMIZERS:
                        for options in selftest.OPTIONS[name]:
                            print(backend, name, options, np.dtype(dtype), mix, side, stages, file=sys.stderr)
                            step_one(backend, name, options, arena, stages, threads=1 + 2 * (count % 2))
                            count += 1
    return count


def step_one(backend, name, options, arena, stages, threads):
    opt = proptim.OPTIMIZERS[name]([np.zeros(1)], **options)
    present = [0, *(2 + j for j, key in enumerate(opt.states) if key in opt._stepper.parameters[0].state)]
    columns = [arena.columns[j] if j in present else [None] * len(LENGTHS) for j in range(2 + len(opt.states))]
    averages = arena.columns[-1:] if "average" in stages else []
    segments = list(zip(columns[0], *columns[2:], *averages, strict=True))
    coefs, _ = opt.advance(opt.settled(opt.param_groups[0], 0), tuple(opt.clock_start.values()), 1.0)
    row = (*coefs, *(_stages.NEUTRAL | stages).values())
    plan = _backend.plan_type(backend)(type(opt), segments, threads, False)
    plan.bind(arena.columns[GRADS])
    plan.reduce()
    plan.step([row], [])
    if backend == "c":  # the others step copies of rows
        tables = [tuple(None if a is None else table_of(a) for a in segment) for segment in segments]
        values = map(table_of, arena.columns[GRADS])
        plan = _backend.plan_type(backend)(type(opt), tables, threads, False)
        plan.bind([proptim.Rows(np.arange(len(v))[::-1] * 2 // 3, v) for v in values])  # repeated ones among them
        assert plan.sort_rows() is None
        plan.reduce()
        plan.step([row], [])


def table_of(array):
    """The same memory as rows: of one element, short ones and long ones."""
    width = next(w for w in (51, 31, 16, 7, 3, 1) if array.size % w == 0)
    (stride,) = array.strides
    return np.lib.stride_tricks.as_strided(array, (array.size // width, width), (width * stride, stride))


def child(*arguments):
    """This file as a program: backend and instruction set, or what to do that must not go well."""
    return subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("backend", "isa"),
    [pytest.param("c", isa, id=f"c-{isa}") for isa in _backend.available_isas()]
    + [pytest.param("numba", "", id="numba")] * (not _backend.available_backends()["numba"]),
)
def test_nothing_beside_the_arrays(backend, isa):
    """All rules, options, dtypes, layouts and lengths between forbidden pages; gradients on read-only ones."""
    done = child(backend, isa)
    assert done.returncode == 0, f"ended with {done.returncode} at {done.stderr[-2000:]}"
    steps = 2 * (len(MIXES) if backend == "c" else 1) * 2 * 2 * sum(map(len, selftest.OPTIONS.values()))
    assert done.stdout.split() == [str(steps), "steps"]


@pytest.mark.parametrize("crime", ["read behind", "read before", "write gradient"])
def test_pages_are_guarded(crime):
    """Accessing a byte outside an array, or writing to a gradient, crashes: so the test above can fail."""
    assert child(crime).returncode == -11  # SIGSEGV


def commit(crime):
    arena = Arena(np.float32, MIXES[0], "before" if crime == "read before" else "behind")
    arena.gradients(READ)
    column = arena.columns[GRADS]
    if crime == "write gradient":
        column[5][4] = 1
    else:
        ctypes.string_at(column[5].ctypes.data + (-1 if crime == "read before" else column[5].nbytes), 1)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        commit(sys.argv[1])
    else:
        if sys.argv[2]:
            from proptim import _core

            _core.use_isa(sys.argv[2])
        print(step_everything(sys.argv[1]), "steps")
