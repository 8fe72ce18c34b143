"""The checks, each in an environment of its own. `nox` runs all of them, `nox -s lint` one."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"

# The whole suite is also run with each of these in the environment.
VARIANTS: list[dict[str, str]] = [
    {"PROPTIM_ISA": "scalar", "PROPTIM_PARALLEL": "openmp", "PROPTIM_NUM_THREADS": "3"},
    {"PROPTIM_BACKEND": "numpy"},
    {"PROPTIM_BACKEND": "numba"},
]
# Those of .ci/run. The plan of the numba backend is that of numpy but for its loop, which every test with the fixture
# `backend` runs; the whole suite with it is left to a release.
CI_VARIANTS = VARIANTS[:2]

# CMake preset -> programs that it needs, which a machine with gcc may not have.
PRESETS: dict[str, list[str]] = {
    "clang": ["clang"],
    "aarch64": ["aarch64-linux-gnu-gcc", "qemu-aarch64"],
    "aarch64-clang": ["clang", "aarch64-linux-gnu-gcc", "qemu-aarch64"],
    "s390x": ["s390x-linux-gnu-gcc", "qemu-s390x"],
    "riscv64": ["riscv64-linux-gnu-gcc", "qemu-riscv64"],
    "armhf": ["arm-linux-gnueabihf-gcc", "qemu-arm"],
    "i686": ["i686-linux-gnu-gcc", "qemu-i386"],
    "mingw": ["x86_64-w64-mingw32-gcc", "/usr/lib/wine/wine64"],
    "tsan": ["gcc"],
    "coverage": ["gcov"],
}

# Sessions that a release runs and .ci/run has no time for; each prints what it did NOT RUN.
FULL = [
    "tests",
    "preset(aarch64-clang)",
    "preset(riscv64)",
    "preset(armhf)",
    "preset(i686)",
    "preset(mingw)",
    "mpi(openmpi)",
    "mpi(mpich)",
    "integrations",
]

# The part of tests/integrations that .ci/run has time for.
FEW = ["test_transformers.py", "test_lightning.py", "test_shards.py"]

WARNS_ONCE = """
import warnings, numpy, proptim
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for _ in range(2):
        proptim.SGD([numpy.zeros(3)]).step([numpy.ones(3)])
assert proptim.backend() == "numba", proptim.backend()
assert [w.category for w in told] == [RuntimeWarning] and "PROPTIM_PURE" in str(told[0].message), list(map(str, told))
print(told[0].message)
"""


@nox.session
def lint(session: nox.Session) -> None:
    """Style and types of Python, layout of C."""
    session.install("-U", "pip>=25.1")  # the first with --group
    session.install("--group", "lint", "numba")
    folders = ("csrc", "tests/c", "bench", "examples")
    sources = sorted(str(p) for folder in folders for p in Path(folder).rglob("*.[ch]"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("clang-format", "--dry-run", "-Werror", *sources)


@nox.session(venv_backend="none")
def c(session: nox.Session) -> None:
    """The C half, without Python: sanitizers on, warnings are errors."""
    session.run("cmake", "--preset", "dev")
    session.run("cmake", "--build", "--preset", "dev")
    session.run("ctest", "--preset", "dev", "--parallel", "2")


@nox.session(venv_backend="none", default=False)
@nox.parametrize("name", [nox.param(name, id=name) for name in PRESETS])
def preset(session: nox.Session, name: str) -> None:
    """The C tests by a preset of CMake: another compiler, CPU or system."""
    missing = [tool for tool in PRESETS[name] if not shutil.which(tool)]
    if missing:
        session.skip(f"NOT RUN: needs {', '.join(missing)}")
    session.run("cmake", "--preset", name)
    session.run("cmake", "--build", "--preset", name)
    session.run("ctest", "--preset", name, "--parallel", "2")


@nox.session(venv_backend="none", default=False)
def full(session: nox.Session) -> None:
    """What a release runs in addition to .ci/run: the sessions of FULL, one after the other."""
    for name in FULL:
        session.notify(name)


@nox.session
def tests(session: nox.Session) -> None:
    """The Python suite, with default settings and in every variant."""
    session.install(".[test]")
    for variant in [{}, *VARIANTS]:
        session.log(" ".join(f"{k}={v}" for k, v in variant.items()) or "defaults")
        session.run("python", "-m", "pytest", "-n", "auto", *session.posargs, env=variant)


@nox.session
def doors(session: nox.Session) -> None:
    """Every door to other software and every example, with the installed wheel, outside the checkout."""
    session.install(".[test,examples]", "optax>=0.2.3", "keras>=3")  # these two for the schedules of docs/migrate.md
    away = Path(session.create_tmp()).absolute() / "away"
    shutil.rmtree(away, ignore_errors=True)
    for folder in ("tests", "examples", "docs", "csrc", "cmake"):  # what programs are built from, and no package
        shutil.copytree(folder, away / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (away / "python/proptim").mkdir(parents=True)
    for file in ("pyproject.toml", "CMakeLists.txt", "python/proptim/_version.py"):
        shutil.copy(file, away / file)
    with session.chdir(away):
        tests = sorted(map(str, Path("tests").glob("test_door_*.py")))
        tests += ["tests/test_examples.py", "tests/test_migrate.py"]
        session.run("python", "-m", "pytest", "-n", "auto", *tests, *session.posargs)


@nox.session(default=False)
def integrations(session: nox.Session) -> None:
    """Libraries that train with optimizers of torch, in pinned versions, with ours; `-- few` for those of .ci/run."""
    few = session.posargs[:1] == ["few"]
    session.install("-U", "pip>=25.1")  # the first with --group
    session.install("--group", "few" if few else "integrations", ".[torch]")
    tests = [f"tests/integrations/{name}" for name in FEW] if few else ["tests/integrations"]
    extensions = {"TORCH_EXTENSIONS_DIR": str(Path(session.create_tmp()).absolute() / "extensions")}  # DeepSpeed's
    session.run("python", "-m", "pytest", *tests, *session.posargs[few:], env={**extensions, "KERAS_BACKEND": "torch"})


@nox.session
def sklearn(session: nox.Session) -> None:
    """proptim.sklearn, train and predict with the oldest scikit-learn that is supported; `tests` has the newest."""
    session.install(".[sklearn]", "scikit-learn==1.4.0", "numpy<2", "pandas", "pytest>=8", "hypothesis", "psutil")
    tests = ("tests/test_door_sklearn.py", "tests/test_cli_train.py", "tests/test_cli_predict.py")
    session.run("python", "-m", "pytest", *tests, *session.posargs)


@nox.session(default=False)
@nox.parametrize("library", [nox.param(name, id=name) for name in ("openmpi", "mpich")])
def mpi(session: nox.Session, library: str) -> None:
    """proptim.mpi on 1 to 4 ranks of this MPI, outside the checkout; with `-- --short` on two, in a minute."""
    torch = [] if "--short" in session.posargs else ["torch"]
    session.install(".[mpi,sklearn]", "ml_dtypes", library, *torch)
    away = Path(session.create_tmp()).absolute() / "away"
    shutil.rmtree(away, ignore_errors=True)
    for folder in ("tests/mpi", "examples", "docs/embed"):
        shutil.copytree(folder, away / folder, ignore=shutil.ignore_patterns("__pycache__"))
    session.run("python", str(away / "tests/mpi/run.py"), *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, in build/docs: examples run, warnings are errors, every internal link is checked."""
    session.install(".[docs]")
    for made in ("build/docs", "docs/examples"):  # nothing of another time
        shutil.rmtree(made, ignore_errors=True)
    session.run("sphinx-build", "-nW", "--keep-going", "docs", "build/docs", *session.posargs)


@nox.session
def pure(session: nox.Session) -> None:
    """The wheel without the compiled core, outside the checkout."""
    session.install(".[numba,demo]", env={"PROPTIM_PURE": "1"})
    with session.chdir(session.create_tmp()):
        session.run("proptim", "info")
        session.run("proptim", "selftest")
        session.run("python", "-c", WARNS_ONCE)
        session.run("proptim", "train", "--epochs", "3", env={"PROPTIM_BACKEND": "numba"})


# The versions that wheels are made for; a machine builds and tests those that it has.
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14", "3.14t"]
# The part of the suite that needs neither torch nor the checkout; `proptim selftest` runs first.
WHEEL_TESTS = ["test_golden.py", "test_traces.py", "test_bits.py", "test_api.py", "test_packaging.py"]
WHEEL_SAYS = "import numpy, proptim; assert proptim.backend() == {!r}, proptim.backend(); print(numpy.__version__)"
# The machine's compiler compiles; zig links the modules, because it has the symbols of an old glibc.
OLD_GLIBC = """#!/bin/sh
case " $* " in
*" -shared "*) exec {python} -m ziglang cc -target "$(uname -m)-linux-gnu.2.28" "$@" ;;
*) exec gcc "$@" ;;
esac
"""


def find_python(version: str) -> str | None:
    """An interpreter of this version, from pyenv or on the path."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    ask = "import sys, sysconfig; free = sysconfig.get_config_var('Py_GIL_DISABLED'); "
    ask += "print(*sys.version_info[:2], sep='.', end='t' if free else '')"
    for python in [*sorted(pyenv.glob(f"{version.rstrip('t')}*/bin/python")), shutil.which(f"python{version}")]:
        if python and subprocess.run([python, "-c", ask], capture_output=True, text=True).stdout == version:
            return str(python)
    return None


@nox.session
def wheels(session: nox.Session) -> None:
    """sdist and wheels in dist/, checked, and tested on every Python found here with the oldest and newest NumPy."""
    session.install("-U", "pip>=25.1")
    session.install("--group", "release")
    dist, work = Path("dist").absolute(), Path(session.create_tmp()).absolute()
    for folder in (dist, work):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    # All wheels are built from the unpacked sdist, which shows that it is complete.
    session.run("python", "-m", "build", "--sdist", "--outdir", str(dist))
    (sdist,) = dist.glob("*.tar.gz")
    shutil.unpack_archive(sdist, work)
    source = work / sdist.name.removesuffix(".tar.gz")
    linker = work / "cc"
    linker.write_text(OLD_GLIBC.format(python=shutil.which("python", path=session.bin)))
    linker.chmod(0o755)

    def build(name: str, *options: str, **env: str) -> Path:
        """Build a wheel from the sdist into dist/; auditwheel repairs it if it is not pure."""
        made = work / name
        session.run("uv", "build", "-q", "--wheel", str(source), "--out-dir", str(made), *options, env=env)
        (wheel,) = made.glob("*.whl")
        if "PROPTIM_PURE" not in env:
            repair = ("auditwheel", "repair", "--exclude", "libgomp.so.1", "-w", str(made / "repaired"))
            session.run(*repair, str(wheel))
            (wheel,) = (made / "repaired").glob("*.whl")
        return Path(shutil.copy(wheel, dist))

    pythons = {version: python for version in PYTHONS if (python := find_python(version))}
    pure = build("pure", PROPTIM_PURE="1")
    own = {v: build(v, "--python", python, CC=str(linker)) for v, python in pythons.items()}
    stable = [version for version in pythons if version >= "3.12" and not version.endswith("t")]
    if stable:
        abi3 = build("abi3", "--python", pythons[stable[0]], "-C", "wheel.py-api=cp312", CC=str(linker))
        session.run("abi3audit", "--strict", "--summary", str(abi3))
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    session.run("python", "tools/check_wheel.py", *map(str, sorted(dist.glob("*.whl"))))

    # Outside the checkout, in environments that have nothing else.
    away = work / "away"
    shutil.copytree(source / "tests", away / "tests")
    shutil.copy(source / "pyproject.toml", away)
    table = []
    for version, python in pythons.items():
        tried = [(own[version], "c"), (pure, "numpy"), *([(abi3, "c")] if version in stable else [])]
        for (wheel, backend), age in itertools.product(tried, ("lowest", "highest")):
            table.append(try_wheel(session, version, python, wheel, backend, age, away))
            session.log(table[-1])
    session.log("\n".join(["Python, NumPy, wheel, tests of the suite:", *table]))
    for version in PYTHONS:
        if version not in pythons:
            session.log(f"NOT RUN: no Python {version} on this machine")


def try_wheel(session: nox.Session, version: str, python: str, wheel: Path, backend: str, age: str, away: Path) -> str:
    """Install a wheel with the oldest or the newest NumPy and test it; return a line about it."""
    home = away.parent / "installed"
    session.run("uv", "venv", "-q", "--clear", "--python", python, str(home))
    its = str(home / "bin" / "python")
    install = ("uv", "pip", "install", "-q", "--only-binary", ":all:", "--python", its)
    session.run(*install, "--resolution", age, str(wheel))
    session.run(*install, "pytest", "hypothesis", "psutil")
    with session.chdir(away):
        numpy = session.run(its, "-W", "ignore", "-c", WHEEL_SAYS.format(backend), external=True, silent=True)
        # If only the numpy backend runs there is nothing to compare, and selftest fails.
        session.run(its, "-m", "proptim", "selftest", external=True, success_codes=[int(backend == "numpy")])
        tests = [f"tests/{name}" for name in WHEEL_TESTS]
        told = session.run(its, "-m", "pytest", "-q", "-m", "not slow", *tests, external=True, silent=True)
    return f"{version:6} {str(numpy).strip():7} {wheel.name:82} {str(told).strip().splitlines()[-1]}"
