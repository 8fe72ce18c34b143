"""Which backend and instruction set runs, the errors if it cannot, and what an import must not change."""

from __future__ import annotations

import platform
import shutil
import subprocess

import pytest
from conftest import runners

import proptim
from proptim import _backend

needs_core = pytest.mark.skipif(bool(_backend.missing_core), reason=_backend.missing_core)
needs_numba = pytest.mark.skipif(
    bool(_backend.available_backends()["numba"]), reason=_backend.available_backends()["numba"]
)
ISAS = {isa: not why for _, isa, why in runners().values() if isa}

ASK = """
try:
    import proptim
    print(proptim.backend(), proptim.isa())
except ValueError as error:
    print(error)
"""


@needs_core
@pytest.mark.parametrize("isa", ISAS)
def test_forced_isa(fresh, isa):
    """PROPTIM_ISA takes the one named; one that this CPU lacks is refused with those that it has."""
    legal = ", ".join(proptim.available_isas())
    refusal = f"PROPTIM_ISA={isa} is unknown or does not run on this CPU; expected one of: {legal}"
    assert fresh(ASK, PROPTIM_ISA=isa) == (f"c {isa}" if ISAS[isa] else refusal)


@needs_core
def test_unknown_isa(fresh):
    """A name that no build knows is refused, an empty one means the best."""
    legal = ", ".join(proptim.available_isas())
    for name in ("mmx", "AVX2"):
        assert fresh(ASK, PROPTIM_ISA=name).endswith(f"; expected one of: {legal}")
    assert fresh(ASK, PROPTIM_ISA="").startswith("c ")


@needs_core
@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates another x86-64 CPU")
@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="qemu-x86_64 is not installed")
def test_old_cpu(fresh):
    """On a CPU without AVX the scalar kernels are found, and nothing else is offered."""
    script = f"{ASK}\nimport numpy as np\nw = np.ones(9)\nproptim.Adam([w], lr=0.5).step([w.copy()])\nprint(w.round(6))"
    old = fresh(script, launcher=("qemu-x86_64", "-cpu", "Nehalem"))
    assert old == f"c scalar\n{str([0.5] * 9).replace(',', '')}"


@pytest.mark.parametrize("name", _backend.BACKENDS)
def test_forced_backend(fresh, name):
    """PROPTIM_BACKEND makes optimizers step with that backend, or say why they cannot."""
    script = """
import numpy as np, proptim
try:
    print(proptim.SGD([np.ones(1)]).backend)
except ImportError as error:
    print(error)
"""
    reason = _backend.available_backends()[name]
    assert (reason or name) in fresh(script, "-W", "error", PROPTIM_BACKEND=name)


def test_unknown_backend(fresh):
    """An unknown backend is refused with the legal ones, in the environment and as an option."""
    assert fresh(ASK, PROPTIM_BACKEND="gpu") == "PROPTIM_BACKEND=gpu is unknown; expected one of: c, numba, numpy"
    with pytest.raises(ValueError, match=r"Invalid backend: 'gpu' \(expected one of 'c', 'numba', 'numpy'\)"):
        proptim.SGD([], backend="gpu")


HIDE = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "proptim._core":
            raise %s

sys.meta_path.insert(0, Hide())
import warnings
import numpy as np
import proptim
"""
GONE = "ModuleNotFoundError(f'No module named {name}', name=name)"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GONE, "this installation has no compiled core (the pure-Python wheel, PROPTIM_PURE=1)"),
        ("ImportError('bad ELF')", "the compiled core cannot be loaded (bad ELF)"),
    ],
    ids=["pure", "broken"],
)
def test_no_core(fresh, error, reason):
    """If the compiled core is requested and missing, everything that would use it raises an error that says why."""
    script = """
w = np.ones(3)
for use in (lambda: proptim.SGD([w]), lambda: proptim.functional.sgd(w, w.copy(), lr=1.0),
            lambda: proptim.global_norm([w]), lambda: proptim.clip_grad_norm([w], 1.0)):
    try:
        use()
    except ImportError as error:
        print(error)
print(w, proptim.available_isas(), repr(proptim.isa()))
"""
    refusal = f"backend 'c' was requested, but {reason}; expected 'numba' or 'numpy'"
    found = fresh(HIDE % error + script, PROPTIM_BACKEND="c")
    assert found.splitlines() == [*[refusal] * 4, "[1. 1. 1.] () ''"]


@pytest.mark.parametrize("instead", [pytest.param("numba", marks=needs_numba), "numpy"])
def test_fallback(fresh, instead):
    """Without the core, the next best backend steps, after exactly one warning that names the reason."""
    script = f"""
from importlib import util
if {instead!r} == "numpy":
    found = util.find_spec
    util.find_spec = lambda name, *rest: None if name == "numba" else found(name, *rest)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        opt = proptim.SGD([np.ones(3)])
        proptim.global_norm([np.ones(3)])
print(proptim.backend(), opt.backend)
for w in caught:
    print(w.category.__name__, w.message)
"""
    reason = "this installation has no compiled core (the pure-Python wheel, PROPTIM_PURE=1)"
    assert fresh(HIDE % GONE + script).splitlines() == [
        f"{instead} {instead}",
        f"RuntimeWarning proptim uses the backend {instead!r}: {reason}; "
        f"set PROPTIM_BACKEND={instead} to avoid this warning",
    ]


def test_core_that_misses_a_module(fresh):
    """An import that fails inside the core is not taken for a pure installation."""
    script = HIDE.replace("import proptim\n", "") % "ModuleNotFoundError('No module named other', name='other')"
    script += "\ntry:\n    import proptim\nexcept ModuleNotFoundError as error:\n    print(error.name)"
    assert fresh(script) == "other"


def test_import_changes_nothing(fresh):
    """Importing proptim loads only NumPy and the core, starts no thread, and leaves environment and warnings alone."""
    script = """
import os, sys, threading, warnings
import numpy as np

def world():
    tasks = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    return dict(os.environ), threading.active_count(), tasks, list(warnings.filters), np.geterr()

before, loaded = world(), set(sys.modules)
import proptim
assert world() == before
new = set(sys.modules) - loaded
heavy = {"numba", "torch", "matplotlib", "sklearn", "scipy", "rich", "pytest"}
print(sorted({m for m in new if m.partition(".")[0] in heavy or m == "proptim._openmp"}))
assert float(np.float64(5e-324) * 1) == 5e-324  # subnormals are still numbers
"""
    assert fresh(script) == "[]"


MODES = r"""
#if defined(__x86_64__)
#include <xmmintrin.h>
unsigned get(void) { return _mm_getcsr() & 0xffc0; } /* without the sticky flags */
void set(unsigned mode) { _mm_setcsr(mode); }
unsigned flushing(void) { return get() | 0x8040; } /* results and operands */
#elif defined(__aarch64__)
unsigned get(void) { unsigned long x; __asm__ volatile("mrs %0, fpcr" : "=r"(x)); return (unsigned)x; }
void set(unsigned mode) { __asm__ volatile("msr fpcr, %0" : : "r"((unsigned long)mode)); }
unsigned flushing(void) { return get() | 1u << 24; }
#endif
"""

FLUSHED = """
import ctypes
import numpy as np
import proptim
from proptim.cli.selftest import OPTIONS

modes = ctypes.CDLL("./modes.so")
usual = modes.get()

def arrays(opt, param):
    return [param, *opt._stepper.parameters[0].state.values()]

def run(name, dtype, options):
    rng = np.random.default_rng(0)
    tiny = np.finfo(dtype).tiny
    param = (rng.standard_normal(3001) * tiny).astype(dtype)
    grads = [(rng.standard_normal(3001) * np.sqrt(tiny)).astype(dtype) for _ in range(2)]
    opt = proptim.OPTIMIZERS[name]([param], threads=THREADS, backend="c", **options)
    yield
    for grad in grads:
        opt.step([grad], loss=1.0)
    yield opt.grad_norm, *(a.tobytes() for a in arrays(opt, param))
    yield sum(int(((a != 0) & (abs(a) < tiny)).sum()) for a in arrays(opt, param))

subnormals = 0
for name in proptim.OPTIMIZERS:
    for options in OPTIONS.get(name, [{}]):
        for extra in ({}, {"weight_decay": 0.1, "clip_norm": 1.0}):
            for dtype in (np.float32, np.float64):
                ours, theirs = (run(name, dtype, {**options, **extra}) for _ in range(2))
                next(ours), next(theirs)
                expected = next(ours)
                modes.set(modes.flushing())
                assert np.finfo(np.float32).tiny * np.float32(0.5) == 0, "the mode is not on"
                found = next(theirs)
                assert modes.get() == modes.flushing(), "the mode is lost"
                modes.set(usual)
                assert found == expected, (name, options, extra, dtype)
                subnormals += next(ours)
assert subnormals > 1000
print("same")
"""


@needs_core
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="knows the modes of x86-64 and aarch64")
@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
@pytest.mark.parametrize("threads", [1, 3])
def test_flush_to_zero(fresh, tmp_path, threads):
    """Flush-to-zero, set by other code, does not affect the results of the core and is still on afterwards."""
    (tmp_path / "modes.c").write_text(MODES)
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", "modes.so", "modes.c"], cwd=tmp_path, check=True)
    assert fresh(FLUSHED.replace("THREADS", str(threads))) == "same"
