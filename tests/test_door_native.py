"""The doors for C, C++, CMake and Cython, built against the installed package: the bits are those of Python."""

from __future__ import annotations

import ctypes
import filecmp
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from math import prod, sqrt
from pathlib import Path

import numpy as np
import pytest

import proptim
from proptim import _backend, cli

ROOT = Path(__file__).parents[1]
EXAMPLES, PAGES, ABI = ROOT / "examples", ROOT / "docs/embed", ROOT / "tests/c/abi.txt"

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(bool(_backend.missing_core), reason=_backend.missing_core),
    pytest.mark.skipif(not EXAMPLES.is_dir(), reason="no examples/ beside tests/: not a checkout"),
]


def needs(*tools):
    """Skip if a program is missing, and name it."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def run(command, folder, *, code=0, **variables):
    """Run words, or a line for the shell in which `python` is this one; return all it prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", command] if isinstance(command, str) else command,
        cwd=folder,
        env={**os.environ, "PATH": path, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def command_of(source):
    """The command with which an example says at its head that it is built."""
    lines = re.findall(r"^ \*   (.+)$|^# (cmake .+)$", source.read_text(), re.MULTILINE)
    return " ".join(a or b for a, b in lines).replace("\\", "")


# What the examples do, in Python --------------------------------------------------------------------------------------

SAMPLES, TRUTH = 8, np.array([1.0, -2.0, 3.0])
X = np.array([[((7 * i + 5 * j + i * j) % 11 - 5) / 4 for j in range(3)] for i in range(SAMPLES)])


def gradient(weights, error=0.0):
    """Of the mean squared error, halved, summed in the order of the examples; and the mean error."""
    grad, mean = [0.0] * 3, 0.0
    for row in X:
        e = error
        for j in range(3):
            e += float(row[j]) * (float(weights[j]) - float(TRUTH[j]))
        for j in range(3):
            grad[j] += e * float(row[j]) / SAMPLES
        mean += e / SAMPLES
    return grad, mean


def numbers(printed):
    """One number a line."""
    return np.array([float(line) for line in printed.split()])


@needs("bash", "cc")
@pytest.mark.slow
def test_c(tmp_path):
    """The program in C, compiled by hand from the installed sources, prints the weights of RMSprop."""
    source = Path(shutil.copy(EXAMPLES / "c/train.c", tmp_path))
    run(f"{command_of(source)} -Wall -Wextra -pedantic -Werror", tmp_path)

    w, grad = np.zeros(3), np.zeros(3)
    opt = proptim.RMSprop([w], grads=[grad], alpha=0.9, eps=1e-8)
    for step in range(2000):
        grad[:] = gradient(w)[0]
        opt.lr = 0.02 * (2000 - step) / 2000
        opt.step()
    assert np.array_equal(numbers(run(["./train"], tmp_path)), w)


@needs("bash", "cc")
@pytest.mark.slow
def test_c_bfloat16(tmp_path):
    """The program with weights in bfloat16 prints those of float32, rounded, with gradients at the rounded ones."""
    source = Path(shutil.copy(EXAMPLES / "c/train_bf16.c", tmp_path))
    run(f"{command_of(source)} -Wall -Wextra -pedantic -Werror", tmp_path)

    w, grad = np.zeros(3, np.float32), np.zeros(3, np.float32)
    opt = proptim.RMSprop([w], grads=[grad], alpha=0.9, eps=1e-8)

    def rounded():
        return ((w.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)

    for step in range(2000):
        grad[:] = gradient(rounded())[0]
        opt.lr = 0.02 * (2000 - step) / 2000
        opt.step()
    assert np.array_equal(numbers(run(["./train_bf16"], tmp_path)).astype(np.float32), rounded())


@needs("bash", "cc", "c++")
@pytest.mark.slow
def test_cpp(tmp_path):
    """The program in C++ prints those of AdamW, with two arrays in float32 and threads; it is clean C++11."""
    source = Path(shutil.copy(EXAMPLES / "cpp/train.cpp", tmp_path))
    strict = ["-std=c++11", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only"]
    run(["c++", *strict, f"-I{proptim.get_include()}", source], tmp_path)
    run(command_of(source), tmp_path)

    w, b = np.zeros(3, np.float32), np.zeros(1, np.float32)
    groups = [{"params": [w], "weight_decay": 1e-4}, {"params": [b], "weight_decay": 0.0}]
    opt = proptim.AdamW(groups, lr=0.01, betas=(0.9, 0.999), eps=1e-8)
    for _ in range(3000):
        grad, mean = gradient(w, float(b[0]) - 0.5)
        opt.step([np.array(grad, np.float32), np.array([mean], np.float32)])
    assert np.array_equal(numbers(run(["./train"], tmp_path)).astype(np.float32), [*w, *b])


@needs("bash", "cc", "cmake")
@pytest.mark.slow
def test_cmake(tmp_path):
    """The project that finds proptim with CMake prints those of Rprop."""
    shutil.copytree(EXAMPLES / "cmake", tmp_path, dirs_exist_ok=True)
    printed = run(command_of(tmp_path / "CMakeLists.txt"), tmp_path)

    w = np.zeros(3)
    opt = proptim.Rprop([w], lr=0.01, etas=(0.5, 1.2), step_sizes=(1e-6, 50), variant="rprop-")
    for _ in range(200):
        opt.step([np.array(gradient(w)[0])])
    assert np.array_equal(numbers("\n".join(printed.splitlines()[-3:])), w)


@needs("bash", "cc")
@pytest.mark.slow
def test_cython(tmp_path):
    """The extension in Cython, built by pip, trains as Adam does; so is what its page adds to it."""
    pytest.importorskip("Cython")
    pytest.importorskip("setuptools")
    shutil.copytree(EXAMPLES / "cython", tmp_path / "source")
    (more,) = re.findall(r"^```cython\n(.+?)^```", (PAGES / "cython.md").read_text(), re.MULTILINE | re.DOTALL)
    with (tmp_path / "source/least_squares.pyx").open("a") as file:
        file.write(f"\n{more}")
    run(f"python -m pip install -q --no-build-isolation --no-deps --no-index --target {tmp_path} ./source", tmp_path)
    script = f"""
import numpy as np
import least_squares
x, w = np.array({X.tolist()}), np.zeros(3)
least_squares.train(x, x @ np.array({TRUTH.tolist()}), w, 500, lr=0.01)
print(*w.tolist())
try:
    least_squares.train(x, w, w, 1)
except ValueError as error:
    print(error)
"""
    first, told = run([sys.executable, "-c", script], tmp_path).splitlines()
    assert (
        told
        == "x has 8 rows of 3, y 3 numbers, and there are 3 weights; expected one number a row and one weight a column"
    )

    w, y = np.zeros(3), X @ TRUTH
    opt = proptim.Adam([w], lr=0.01)
    for _ in range(500):
        grad = [0.0] * 3
        for row, target in zip(X.tolist(), y.tolist(), strict=True):
            error = -target
            for j in range(3):
                error += row[j] * float(w[j])
            for j in range(3):
                grad[j] += error * row[j] / SAMPLES
        opt.step([np.array(grad)])
    assert np.array_equal(numbers(first), w)

    hidden = "import sys\nsys.modules['proptim._core'] = None\nimport least_squares"
    told = run([sys.executable, "-W", "ignore", "-c", hidden], tmp_path, code=1).splitlines()[-1]
    assert told.startswith("AttributeError: proptim has no C API here: this installation has no compiled core")


# The extension in C, and what it is told ------------------------------------------------------------------------------


def build_stepper(folder, include):
    """Compile examples/c_extension against a folder of headers."""
    made = folder / f"stepper{sysconfig.get_config_var('EXT_SUFFIX')}"
    python = [f"-isystem{sysconfig.get_path(name)}" for name in ("include", "platinclude")]
    strict = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror"]
    source = EXAMPLES / "c_extension/stepper.c"
    run(["cc", *strict, "-O2", "-shared", "-fPIC", *python, f"-I{include}", source, "-o", made], folder)
    return made


needs_headers = pytest.mark.skipif(
    not Path(sysconfig.get_path("include"), "Python.h").is_file(), reason="this Python has no Python.h"
)


@needs("bash", "cc")
@needs_headers
def test_c_extension(tmp_path):
    """It takes the functions from the package, which it imports by itself, and steps like RMSprop."""
    build_stepper(tmp_path, proptim.get_include())
    script = """
import stepper
from array import array
param, grad, square_avg = array("d", [1, 2, 3]), array("d", [0.1, -5, 1e-9]), array("d", [0, 0, 0])
for _ in range(3):
    stepper.step(param, grad, square_avg, 0.01)
print(*param)
try:
    stepper.step(param, grad, array("d", [0]), 0.01)
except ValueError as error:
    print(error)
"""
    first, told = run([sys.executable, "-c", script], tmp_path).splitlines()
    w = np.array([1.0, 2, 3])
    opt = proptim.RMSprop([w], lr=0.01, alpha=0.9, eps=1e-8)
    for _ in range(3):
        opt.step([np.array([0.1, -5, 1e-9])])
    assert np.array_equal(numbers(first), w)
    assert told == "expected three buffers of as many float64 each"


def recorded():
    """ABI number, bytes of the table, rules, stages and formats, as tests/c/abi.txt has them."""
    text = ABI.read_text()
    (abi,) = re.findall(r"^PROPTIM_ABI = (\d+)$", text, re.MULTILINE)
    members = re.findall(r"^    \w+ at (\d+)$", text.partition("\nproptim_api:\n")[2], re.MULTILINE)
    size = int(members[-1]) + ctypes.sizeof(ctypes.c_void_p)
    rules, stages, codecs = (len(re.findall(rf"^{row} ", text, re.MULTILINE)) for row in ("rule", "stage", "format"))
    return int(abi), size, rules, stages, codecs + 1  # plain has no codec


@needs("bash", "cc")
@needs_headers
@pytest.mark.parametrize(
    ("file", "before", "after", "more", "advice"),
    [
        ("proptim.h", "PROPTIM_ABI = ", "PROPTIM_ABI = 1 + ", (1, 0, 0, 0, 0), "upgrade proptim"),
        ("proptim.h", "PROPTIM_ABI = ", "PROPTIM_ABI = -1 + ", (-1, 0, 0, 0, 0), "compile it again"),
        ("proptim.h", "} proptim_api;", "void *one; } proptim_api;", (0, 8, 0, 0, 0), "upgrade proptim"),
        ("rules.def", "", 'PROPTIM_RULE(ftrl, (param, grad), "wr", (lr))\n', (0, 0, 1, 0, 0), "upgrade proptim"),
        ("stages.def", "", "PROPTIM_STAGE(ema, (param), 0.0)\n", (0, 0, 0, 1, 0), "upgrade proptim"),
        ("codecs.def", "", "PROPTIM_CODEC(F8, f8, (1, 0), REAL *x)\n", (0, 0, 0, 0, 1), "upgrade proptim"),
    ],
    ids=["newer ABI", "older ABI", "longer table", "more rules", "more stages", "more formats"],
)
def test_other_header(tmp_path, file, before, after, more, advice):
    """An extension that was compiled with a header that does not fit is refused when it is imported, in words."""
    include = Path(shutil.copytree(proptim.get_include(), tmp_path / "include"))
    text = (include / file).read_text()
    assert not before or text.count(before) == 1
    (include / file).write_text(text.replace(before, after) if before else text + after)
    build_stepper(tmp_path, include)
    told = run([sys.executable, "-c", "import stepper"], tmp_path, code=1).splitlines()[-1]
    words = "{} of {} bytes, {} rules, {} stages and {} formats"
    theirs, mine = words.format(*recorded()), words.format(*(n + m for n, m in zip(recorded(), more, strict=True)))
    assert told == (f"ImportError: proptim has C API {theirs}, and this extension was compiled with {mine}: {advice}")


# The capsule ----------------------------------------------------------------------------------------------------------

ASK = """
import ctypes, sys
get = ctypes.pythonapi.PyCapsule_Import
get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int]
at = get(b"proptim._C_API", 0)
name = ctypes.pythonapi.PyCapsule_GetName
name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
import proptim
print(name(proptim._C_API).decode(), *(ctypes.c_uint32 * 5).from_address(at))
print(all((ctypes.c_void_p * 16).from_address(at + 24)))
"""


def test_capsule(fresh):
    """Any process finds it by name, nothing imported before; its head is as tests/c/abi.txt has it, its table full."""
    head = " ".join(map(str, recorded()))
    assert fresh(ASK).splitlines() == [f"proptim._C_API {head}", "True"]


def test_no_cython_functions():
    """The core exports no Cython function, whose signature would be frozen: the table is the only door."""
    from proptim import _core

    assert not hasattr(_core, "__pyx_capi__")


def test_pure_wheel(monkeypatch, capsys):
    """Without the compiled core there is no capsule, no header and no path, and each says why."""
    monkeypatch.setattr(_backend, "missing_core", "this installation has no compiled core (the pure-Python wheel)")
    with pytest.raises(AttributeError) as told:
        proptim._C_API  # noqa: B018
    assert str(told.value) == f"proptim has no C API here: {_backend.missing_core}"
    message = f"{_backend.missing_core}, so there are no C headers and sources; expected a compiled installation"
    for find in (proptim.get_include, proptim.get_cmake_dir):
        with pytest.raises(FileNotFoundError) as missing:
            find()
        assert str(missing.value) == message
    with pytest.raises(SystemExit) as left:
        cli.main(["--includes"])
    assert left.value.code == 1
    assert capsys.readouterr().err == f"proptim --includes: {message}\n"


# What is installed ----------------------------------------------------------------------------------------------------


def test_installed_files():
    """Headers and sources are those of the checkout, whose tests hold for them; the OpenMP path is not among them."""
    ours, theirs = ROOT / "csrc", Path(proptim.get_include()).parent
    files = {str(path.relative_to(ours)) for path in ours.rglob("*") if path.is_file()}
    files -= {"parallel_openmp.c", "parallel_openmp.h"}
    assert {str(path.relative_to(theirs)) for path in theirs.rglob("*") if path.is_file()} == files
    assert filecmp.cmpfiles(ours, theirs, sorted(files), shallow=False)[1:] == ([], [])
    for name in ("proptim.cmake", "proptimConfig.cmake"):
        assert filecmp.cmp(ROOT / "cmake" / name, Path(proptim.get_cmake_dir(), name), shallow=False)


def test_command_line(capsys):
    """`python -m proptim` prints the folders that the functions return, and all the sources."""
    printed = {}
    for option in ("includes", "sources", "cmakedir", "pkgconfigdir"):
        with pytest.raises(SystemExit) as left:
            cli.main([f"--{option}"])
        assert left.value.code == 0
        printed[option] = capsys.readouterr().out.strip()
    assert printed["includes"] == f"-I{proptim.get_include()}"
    assert printed["cmakedir"] == proptim.get_cmake_dir()
    assert Path(printed["pkgconfigdir"], "proptim.pc").is_file()
    listed = re.search(r"set\(sources ([^)]+)\)", (ROOT / "cmake/proptim.cmake").read_text())[1].split()
    assert [Path(source).stem for source in printed["sources"].split()] == sorted(listed)


@needs("pkg-config")
def test_pkg_config(tmp_path):
    """pkg-config has the include folder, the version, and the folder of the sources."""
    folder = str(Path(proptim.get_cmake_dir()).parent)
    told = [
        run(["pkg-config", option, "proptim"], tmp_path, PKG_CONFIG_PATH=folder).strip()
        for option in ("--cflags", "--variable=csrc", "--modversion")
    ]
    include = Path(told[0].removeprefix("-I")).resolve()
    assert include == Path(proptim.get_include()).resolve()
    assert Path(told[1]).resolve() == include.parent
    assert told[2] == proptim.__version__


def test_entry_points():
    """scikit-build-core and pkgconf find the folders by entry points."""
    found = {
        group: next(iter(importlib.metadata.entry_points(group=group, name="proptim"))).value
        for group in ("cmake.root", "pkg_config")
    }
    assert found == {"cmake.root": "proptim", "pkg_config": "proptim"}


def test_pxd():
    """What Cython can cimport is what the headers declare, and the names of all rules and stages."""
    from proptim import _core

    header = re.sub(r"/\*.*?\*/", "", (Path(proptim.get_include()) / "proptim.h").read_text(), flags=re.DOTALL)
    pxd = Path(proptim.__file__).with_name("__init__.pxd").read_text()
    functions, members = r"\b(proptim_\w+)\(", r"\(\*(\w+)\)\("
    assert set(re.findall(functions, pxd)) - {"proptim_import"} == set(re.findall(functions, header))
    assert re.findall(members, pxd) == re.findall(members, header)

    lists = (Path(_core.__file__).parent / "rules.pxd").read_text()
    for rule, (arrays, _, coefs) in _core.rules().items():
        assert f"    proptim_rule PROPTIM_{rule}\n" in lists
        assert f"    ctypedef struct proptim_{rule}_arrays:\n        proptim_array {', '.join(arrays)}\n" in lists
        assert f"    ctypedef struct proptim_{rule}_coefs:\n        double {', '.join(coefs)}\n" in lists
    assert re.findall(r"^    proptim_stage PROPTIM_(\w+)$", lists, re.MULTILINE) == list(_core.stages())
    assert lists.count("PROPTIM_") == len(_core.rules()) + len(_core.stages())


@needs("bash", "cc", "c++")
@pytest.mark.parametrize("compiler", ["cc -std=c99 -xc", "c++ -std=c++11 -xc++"])
def test_headers(tmp_path, compiler):
    """The headers compile as C99 and as C++11 without a warning, and leave no macro behind but their own."""
    (tmp_path / "header").write_text(
        "#include <proptim_python.h>\n#include <proptim.h>\n#include <proptim_coefs.h>\n#include <proptim_python.h>\n"
    )
    python = [f"-isystem{sysconfig.get_path(name)}" for name in ("include", "platinclude")]
    strict = ["-Wall", "-Wextra", "-pedantic", "-Werror", *python, f"-I{proptim.get_include()}"]
    run([*compiler.split(), *strict, "-fsyntax-only", "header"], tmp_path)
    (tmp_path / "plain").write_text("#include <stddef.h>\n#include <stdint.h>\n")
    (tmp_path / "proptim").write_text("#include <stddef.h>\n#include <stdint.h>\n#include <proptim.h>\n")
    plain, defined = (
        set(run([*compiler.split(), *strict, "-E", "-dM", name], tmp_path).splitlines())
        for name in ("plain", "proptim")
    )
    assert defined - plain == {"#define PROPTIM_H "}


# CMake ----------------------------------------------------------------------------------------------------------------

PROJECT = """
cmake_minimum_required(VERSION 3.21)
project(consumer LANGUAGES {languages})
{find}
file(WRITE ${{PROJECT_BINARY_DIR}}/used.c
  "#include <proptim.h>\\nint used(void) {{ return proptim_isa_find(NULL) && proptim_get_api()->pool; }}")
add_library(used SHARED ${{PROJECT_BINARY_DIR}}/used.c)
target_link_libraries(used PRIVATE proptim::proptim)
"""


def configure(folder, find, *options, languages="C", code=0):
    """Configure a project with this line in it; return what CMake says, in one line."""
    (folder / "CMakeLists.txt").write_text(PROJECT.format(find=find, languages=languages))
    return " ".join(run(["cmake", "-B", "build", *options], folder, code=code).split())


@needs("bash", "cc", "cmake", "nm")
@pytest.mark.skipif(sys.platform != "linux", reason="reads the output of GNU nm")
@pytest.mark.slow
@pytest.mark.parametrize("way", ["find_package", "add_subdirectory"])
def test_hidden_symbols(tmp_path, way):
    """A shared library with proptim in it, found as scikit-build-core does or as a folder, exports none of it."""
    root = f"-Dproptim_ROOT={Path(proptim.get_cmake_dir()).parent}"  # what the entry point cmake.root stands for
    find = {"find_package": "find_package(proptim REQUIRED)", "add_subdirectory": f"add_subdirectory({ROOT} proptim)"}
    configure(tmp_path, find[way], root, "-DCMAKE_BUILD_TYPE=Debug", "-DSKBUILD=2")
    run(["cmake", "--build", "build"], tmp_path)
    names = run(["nm", "-D", "--defined-only", "build/libused.so"], tmp_path).splitlines()
    assert [line.split()[-1] for line in names] == ["used"]
    assert ctypes.CDLL(str(tmp_path / "build/libused.so")).used() == 1


@needs("bash", "cc", "c++", "cmake")
@pytest.mark.parametrize(
    ("find", "languages", "told"),
    [
        ("find_package(proptim 0.1 REQUIRED)", "C", ""),
        ("find_package(proptim 0.1 REQUIRED)\nfind_package(proptim)", "C CXX", ""),
        ("find_package(proptim 99 REQUIRED)", "C", 'compatible with requested version "99"'),
        ("find_package(proptim REQUIRED)", "CXX", "expected C among the languages: project(... LANGUAGES C CXX)"),
    ],
    ids=["version", "twice", "newer version", "no C"],
)
def test_find_package(tmp_path, find, languages, told):
    """find_package looks at the version and at the languages, and may be called again."""
    folder = f"-Dproptim_DIR={proptim.get_cmake_dir()}"
    assert told in configure(tmp_path, find, folder, languages=languages, code=int(bool(told)))


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Where `cmake --install` of the checkout has put the C library, moved from where it was told to put it."""
    folder = tmp_path_factory.mktemp("installed")
    options = f"-DBUILD_TESTING=OFF -DCMAKE_INSTALL_PREFIX={folder}/told"
    run(f"cmake -S {ROOT} -B build {options} && cmake --build build -j2 && cmake --install build", folder)
    return (folder / "told").rename(folder / "moved")


@needs("bash", "cc", "cmake")
@pytest.mark.slow
def test_a_checkout_installed_for_cmake(tmp_path, prefix):
    """find_package of the example takes the installed library, without Python, sources or a variable of its own."""
    shutil.copytree(EXAMPLES / "cmake", tmp_path, dirs_exist_ok=True)
    command = command_of(tmp_path / "CMakeLists.txt")
    own = command.replace("-Dproptim_DIR=$(python -m proptim --cmakedir)", f"-DCMAKE_PREFIX_PATH={prefix}")
    assert "python" in command
    assert "python" not in own
    printed = run(own, tmp_path)
    assert not list((tmp_path / "build").rglob("kernels_*.o"))
    assert np.abs(numbers("\n".join(printed.splitlines()[-3:])) - [1, -2, 3]).max() < 1e-3


@needs("bash", "cc", "cmake", "pkg-config")
@pytest.mark.slow
def test_a_checkout_installed_for_pkg_config(tmp_path, prefix):
    """A program is compiled with what pkg-config says, and that is all it needs; the pool of threads is there."""
    (folder,) = {path.parent for path in prefix.rglob("proptim.pc")}
    source = EXAMPLES / "cmake/train.c"
    run(f"cc {source} -o train $(pkg-config --cflags --libs proptim) -lm", tmp_path, PKG_CONFIG_PATH=str(folder))
    assert np.abs(numbers(run(["./train"], tmp_path)) - [1, -2, 3]).max() < 1e-3
    (tmp_path / "pool.c").write_text(
        "#include <proptim.h>\nint main(void) { return proptim_get_api()->pool ? 0 : 1; }\n"
    )
    run("cc pool.c $(pkg-config --cflags --libs proptim) && ./a.out", tmp_path, PKG_CONFIG_PATH=str(folder))
    asked = run(["pkg-config", "--modversion", "proptim"], tmp_path, PKG_CONFIG_PATH=str(folder))
    assert asked.strip() == proptim.__version__


@needs("bash", "cc")
def test_fast_math_is_refused(tmp_path):
    """The sources do not compile with flags that would change the bits without a word."""
    (kernels,) = Path(proptim.get_include()).parent.glob("kernels_scalar.c")
    told = run(["cc", "-ffast-math", f"-I{proptim.get_include()}", "-c", kernels], tmp_path, code=1)
    assert "The same bits everywhere need IEEE arithmetic: no -ffast-math" in told


# The pages ------------------------------------------------------------------------------------------------------------

PAGE = (PAGES / "c.md").read_text() if PAGES.is_dir() else ""
TABLE = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `(.+)` \|$", PAGE, re.MULTILINE)

DEFINED = dict(re.findall(r"`(\w+)\(t\)` is\s`(.+?)`", PAGE))
MOST = "".join(re.findall(r"with `(.+?)` for\s`most`", PAGE))


@pytest.mark.parametrize(
    "cls", {cls.kernel: cls for cls in proptim.OPTIMIZERS.values()}.values(), ids=lambda c: c.kernel
)
def test_coefficients(cls):
    """The table of coefficients, evaluated, is what the optimizer hands to its kernel, whatever the options."""
    written = {name: text for rule, name, text in TABLE if rule == cls.kernel}
    assert written.keys() <= set(cls.coef_names)
    for options in cls.cases:
        if options.get("variant") == "irprop+":  # which needs a loss; the page says so
            continue
        opt = cls([np.zeros(1)], **options)
        names = dict(cls.settled(opt.param_groups[0], 0))
        clock = opt._stepper.parameters[0].clock
        if "betas" in names:
            names["beta1"], names["beta2"] = names["betas"]
            names["most"] = eval(MOST, dict(names))
        names["sqrt"] = sqrt
        for name, text in DEFINED.items():
            names[name] = lambda t, names=names, text=text: eval(text, {**names, "t": t})
        names["mu_product"] = lambda t, mu=names["mu"]: prod(map(mu, range(1, t + 1)), start=1.0)
        for t in (1, 2, 3):
            coefs, clock = cls.advance(names, clock, None)
            here = {**names, "t": t}
            assert coefs == tuple(eval(written[c], here) if c in written else plain(c, here) for c in cls.coef_names)


def plain(name, names):
    """A coefficient that is a hyperparameter, or one minus it."""
    return 1 - names[name.removeprefix("one_minus_")] if name.startswith("one_minus_") else names[name]


INITS = dict(
    re.findall(
        r"proptim_(\w+)_coefs_init\(proptim_\w+_coefs \*coefs, ([^)]+)\)\s*{",
        (ROOT / "csrc/include/proptim_coefs.h").read_text() if EXAMPLES.is_dir() else "",
    )
)
"""Rule -> the parameters of its function in proptim_coefs.h, as C has them."""
IN_C = {
    "double": ctypes.c_double,
    "int": ctypes.c_int,
    "uint64_t": ctypes.c_uint64,
    "proptim_rprop_variant": ctypes.c_int,
}
PARTS = {"betas": ("beta1", "beta2"), "etas": ("eta_minus", "eta_plus"), "step_sizes": ("step_min", "step_max")}


@pytest.fixture(scope="module")
def inits(tmp_path_factory):
    """The functions of proptim_coefs.h, which are inline, in a library."""
    folder = tmp_path_factory.mktemp("inits")
    lines = ["#include <proptim_coefs.h>"]
    for rule, parameters in INITS.items():
        names = ", ".join(re.findall(r"(\w+)(?:,|$)", parameters))
        lines.append(f"void init_{rule}(proptim_{rule}_coefs *coefs, {parameters})")
        lines.append(f"{{ proptim_{rule}_coefs_init(coefs, {names}); }}")
    lines.append("double word(double lr, double low, double high) { return proptim_rprop_step_word(lr, low, high); }")
    (folder / "inits.c").write_text("\n".join(lines) + "\n")
    command = f"cc -std=c99 -O2 -ffp-contract=off -shared -fPIC -I{proptim.get_include()} inits.c -o inits.so -lm"
    run(command, folder)
    return ctypes.CDLL(str(folder / "inits.so"))


@needs("bash", "cc")
@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_coefs_init(inits, name):
    """A function of C for every rule computes what `advance` does, to the bit, whatever the options, at every step."""
    from proptim.rprop import VARIANTS

    cls = proptim.OPTIMIZERS[name]
    assert cls.kernel in INITS, f"csrc/include/proptim_coefs.h has no proptim_{cls.kernel}_coefs_init"
    parameters = [part.strip().rpartition(" ")[::2] for part in " ".join(INITS[cls.kernel].split()).split(",")]
    coefs = (ctypes.c_double * len(cls.coef_names))()
    for options in cls.cases:
        h = cls.settled(cls.hyper | options, 0)
        values = {
            part: value for key, parts in PARTS.items() for part, value in zip(parts, h.get(key, ()), strict=False)
        }
        mu_product = ctypes.c_double(1.0)
        clock, last = tuple(cls.clock_start.values()), float("inf")
        for step in range(1, 41):
            loss = float((7 * step) % 5)
            expected, clock = cls.advance(h, clock, loss)
            here = {
                **h,
                **values,
                "variant": VARIANTS.index(h["variant"]) if "variant" in h else None,
                "loss_has_risen": loss > last,
                "step": step,
            }
            last = loss
            given = [
                ctypes.byref(mu_product) if parameter.startswith("*") else IN_C[kind](here[parameter])
                for kind, parameter in parameters
            ]
            getattr(inits, f"init_{cls.kernel}")(coefs, *given)
            assert tuple(coefs) == expected


@needs("bash", "cc")
def test_the_first_step_word(inits):
    inits.word.restype, inits.word.argtypes = ctypes.c_double, [ctypes.c_double] * 3
    for lr, low, high in ((0.01, 1e-6, 50.0), (1e-9, 1e-6, 50.0), (99.0, 1e-6, 50.0)):
        h = proptim.Rprop.settled({**proptim.Rprop.hyper, "lr": lr, "step_sizes": (low, high)}, 0)
        assert inits.word(lr, low, high) == proptim.Rprop.initial(h, "step_word")
