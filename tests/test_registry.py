"""Things that are written twice agree: C and Python texts, lists, files; and what the compiled files export."""

from __future__ import annotations

import inspect
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import proptim
from proptim import _backend, _stages, functional
from proptim.cli import selftest

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"

needs_core = pytest.mark.skipif(bool(_backend.missing_core), reason=_backend.missing_core)
needs_sources = pytest.mark.skipif(not CSRC.is_dir(), reason="no csrc/ beside tests/: not a checkout")
each_optimizer = pytest.mark.parametrize(("name", "cls"), proptim.OPTIMIZERS.items(), ids=proptim.OPTIMIZERS)


@needs_core
def test_rules_of_both_texts():
    """rules.def and the Python rules have the same names, arrays, marks and coefficients, in the same order."""
    from proptim import _core

    written = {}
    for cls in proptim.OPTIMIZERS.values():
        names = tuple(inspect.signature(cls.rule).parameters)
        arrays = 2 + len(cls.states)
        assert names[:arrays] == ("param", "grad", *cls.states)
        assert names[arrays:] == cls.coef_names
        marks = "wr" + "".join("o" if state in cls.optional else "w" for state in cls.states)
        written[cls.kernel] = (names[:arrays], marks, names[arrays:])
    assert written == _core.rules()


@needs_core
def test_stages_of_both_texts():
    """stages.def and _stages.py have the same stages with the same neutral values, in the same order."""
    from proptim import _core

    assert list(_core.stages().items()) == list(_stages.NEUTRAL.items())


@each_optimizer
def test_names(name, cls):
    """Every optimizer is exported by its class name, and is a function by its own."""
    assert name == cls.__name__.lower()
    assert getattr(proptim, cls.__name__) is cls
    assert cls.__name__ in proptim.__all__
    assert getattr(functional, name).optimizer is cls


def test_nothing_is_left_out():
    """Every optimizer class of the package is in the registry."""

    def below(cls):
        return {cls}.union(*(below(sub) for sub in cls.__subclasses__()))

    ours = {cls for cls in below(proptim.Optimizer) if cls.__module__.startswith("proptim.")} - {proptim.Optimizer}
    assert ours == set(proptim.OPTIMIZERS.values())


@needs_sources
@each_optimizer
def test_files(name, cls):
    """The rule is in csrc/rules and python/proptim under its own name, and all.h includes it."""
    assert (CSRC / "rules" / f"{cls.kernel}.h").is_file()
    assert (ROOT / "python" / "proptim" / f"{cls.kernel}.py").is_file()
    assert f'#include "{cls.kernel}.h"' in (CSRC / "rules" / "all.h").read_text()
    assert inspect.getmodule(cls.rule).__name__ == f"proptim.{cls.kernel}"


@needs_sources
def test_no_file_too_many():
    """Every rule and stage header is in its list."""
    rules = {cls.kernel for cls in proptim.OPTIMIZERS.values()}
    assert {path.stem for path in (CSRC / "rules").glob("*.h")} - {"all"} == rules
    assert {path.stem for path in (CSRC / "stages").glob("*.h")} - {"all"} == set(_stages.NEUTRAL)


@needs_sources
def test_vocabularies():
    """Every vocabulary defines the same operations, and undef.h undefines all of them; some are of float32 alone."""

    def words(text):
        return set(re.findall(r"^#\s*(?:define|undef)\s+(\w+)", text, re.MULTILINE))

    simd = CSRC / "simd"
    of_all, of_float32 = map(words, (simd / "scalar.h").read_text().split("/* In float32 alone. */"))
    assert "SELECT" in of_all
    for path in simd.glob("*_f*.h"):
        spoken = of_all | of_float32 if path.stem.endswith("f32") else of_all
        assert words(path.read_text()) >= spoken, path.name
        assert words(path.read_text()) <= words((simd / "undef.h").read_text()), path.name


def test_selftest_covers_all():
    """The option sets of the selftest, which the tests share, reach every optimizer and every optional state."""
    assert selftest.OPTIONS.keys() == proptim.OPTIMIZERS.keys()
    for name, sets in selftest.OPTIONS.items():
        made = [proptim.OPTIMIZERS[name]([np.zeros(1)], **options) for options in sets]
        assert {key for opt in made for key in opt._stepper.parameters[0].state} == set(made[0].states), name


def exact_flags():
    """The compiler's flags for all of csrc, from cmake/proptim.cmake."""
    found = re.findall(r"set\(PROPTIM_EXACT ([^)]*)\)", (ROOT / "cmake" / "proptim.cmake").read_text())
    return found[1].split()  # after MSVC's


def compiler(isa):
    """A gcc for the CPU that has this instruction set."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    if isa == "neon" and x86:
        return "aarch64-linux-gnu-gcc"
    return "gcc" if x86 or isa in ("scalar", "neon") else "x86_64-linux-gnu-gcc"


@needs_sources
@pytest.mark.skipif(sys.platform != "linux", reason="reads the output of GNU nm")
@pytest.mark.parametrize("isa", [path.stem.removeprefix("kernels_") for path in sorted(CSRC.glob("kernels_*.c"))])
def test_kernels_let_out_one_name(tmp_path, isa):
    """An object for one instruction set defines one global symbol, so that the linker cannot use its code elsewhere."""
    cc = compiler(isa)
    for tool in (cc, "nm"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    made = tmp_path / "kernels.o"
    source = CSRC / f"kernels_{isa}.c"
    # -O0 inlines nothing, so whatever could become a symbol is one
    subprocess.run(
        [cc, "-std=c11", "-O0", *exact_flags(), "-fPIC", f"-I{CSRC}/include", "-c", source, "-o", made], check=True
    )
    names = subprocess.run(["nm", made], capture_output=True, text=True, check=True).stdout.splitlines()
    symbols = [line.split()[-2:] for line in names]
    # upper case is global, and u, v and w are global as well: unique or weak; U is used, not defined
    assert [name for kind, name in symbols if kind != "U" and kind in "uvw" + kind.upper()] == [f"proptim_isa_{isa}"]
    used = {name for kind, name in symbols if kind == "U"} - {"_GLOBAL_OFFSET_TABLE_"}
    assert used <= {"sqrt", "sqrtf", "memcpy", "memset", "proptim_mixed_roots"}


@needs_core
@pytest.mark.skipif(sys.platform != "linux", reason="reads the output of GNU nm")
@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
@pytest.mark.parametrize(
    ("module", "others"), [("_core", ["proptim_pool_get_limit", "proptim_pool_set_limit"]), ("_openmp", [])]
)
def test_modules_let_out_few_names(module, others):
    """The extension modules export their initializer, the core what threadpoolctl looks up, and nothing else."""
    (file,) = Path(proptim.__file__).parent.glob(f"{module}.*.so")
    names = subprocess.run(["nm", "-D", "--defined-only", file], capture_output=True, text=True, check=True).stdout
    assert sorted(line.split()[-1] for line in names.splitlines()) == [f"PyInit_{module}", *others]
