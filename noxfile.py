"""The checks, each in an environment of its own: `nox`, or one of them: `nox -s lint`."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"

# The whole suite again, with each of these in the environment.
VARIANTS: list[dict[str, str]] = [
    {"PROPTIM_ISA": "scalar", "PROPTIM_PARALLEL": "openmp"},
    {"PROPTIM_BACKEND": "numpy"},
    {"PROPTIM_BACKEND": "numba"},
    {"PROPTIM_NUM_THREADS": "3"},
]

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
    session.run("ctest", "--preset", "dev")


@nox.session
def tests(session: nox.Session) -> None:
    """The Python suite, as it is and in every variant."""
    session.install(".[test]")
    for variant in [{}, *VARIANTS]:
        session.log(" ".join(f"{k}={v}" for k, v in variant.items()) or "defaults")
        session.run("python", "-m", "pytest", *session.posargs, env=variant)


@nox.session
def doors(session: nox.Session) -> None:
    """Every door to another ecosystem and every example, from the installed wheel, away from the checkout."""
    session.install(".[test,examples]")
    away = Path(session.create_tmp()).absolute() / "away"
    shutil.rmtree(away, ignore_errors=True)
    for folder in ("tests", "examples", "docs", "csrc", "cmake"):  # what programs are built from, and no package
        shutil.copytree(folder, away / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (away / "python/proptim").mkdir(parents=True)
    for file in ("pyproject.toml", "CMakeLists.txt", "python/proptim/_version.py"):
        shutil.copy(file, away / file)
    with session.chdir(away):
        tests = sorted(map(str, Path("tests").glob("test_door_*.py")))
        session.run("python", "-m", "pytest", *tests, "tests/test_examples.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, in build/docs: examples run, warnings are errors, every link inside leads somewhere."""
    session.install(".[docs]")
    for made in ("build/docs", "docs/examples"):  # nothing of another time
        shutil.rmtree(made, ignore_errors=True)
    session.run("sphinx-build", "-nW", "--keep-going", "docs", "build/docs", *session.posargs)


@nox.session
def pure(session: nox.Session) -> None:
    """The wheel without the compiled core, away from the checkout."""
    session.install(".[numba,demo]", env={"PROPTIM_PURE": "1"})
    with session.chdir(session.create_tmp()):
        session.run("proptim", "info")
        session.run("proptim", "selftest")
        session.run("python", "-c", WARNS_ONCE)
        session.run("proptim", "train", "--epochs", "3", env={"PROPTIM_BACKEND": "numba"})


# Those that wheels are made for; a machine builds and tries what it has.
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14", "3.14t"]
# Of the suite what needs neither torch nor the checkout; `proptim selftest` comes first.
WHEEL_TESTS = ["test_golden.py", "test_traces.py", "test_bits.py", "test_api.py", "test_packaging.py"]
WHEEL_SAYS = "import numpy, proptim; assert proptim.backend() == {!r}, proptim.backend(); print(numpy.__version__)"
# The compiler is this machine's; zig links the modules, for it has the symbols of an old glibc.
OLD_GLIBC = """#!/bin/sh
case " $* " in
*" -shared "*) exec {python} -m ziglang cc -target "$(uname -m)-linux-gnu.2.28" "$@" ;;
*) exec gcc "$@" ;;
esac
"""


def find_python(version: str) -> str | None:
    """An interpreter of this version, pyenv's or on the path."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    ask = "import sys, sysconfig; free = sysconfig.get_config_var('Py_GIL_DISABLED'); "
    ask += "print(*sys.version_info[:2], sep='.', end='t' if free else '')"
    for python in [*sorted(pyenv.glob(f"{version.rstrip('t')}*/bin/python")), shutil.which(f"python{version}")]:
        if python and subprocess.run([python, "-c", ask], capture_output=True, text=True).stdout == version:
            return str(python)
    return None


@nox.session
def wheels(session: nox.Session) -> None:
    """sdist and wheels in dist/, checked; each on every Python found here, with the oldest and the newest NumPy."""
    session.install("-U", "pip>=25.1")
    session.install("--group", "release")
    dist, work = Path("dist").absolute(), Path(session.create_tmp()).absolute()
    for folder in (dist, work):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    # All wheels are built from the unpacked sdist, which so is known to have what it needs.
    session.run("python", "-m", "build", "--sdist", "--outdir", str(dist))
    (sdist,) = dist.glob("*.tar.gz")
    shutil.unpack_archive(sdist, work)
    source = work / sdist.name.removesuffix(".tar.gz")
    linker = work / "cc"
    linker.write_text(OLD_GLIBC.format(python=shutil.which("python", path=session.bin)))
    linker.chmod(0o755)

    def build(name: str, *options: str, **env: str) -> Path:
        """A wheel of the sdist, repaired if it is not pure, in dist/."""
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

    # Away from the checkout, in environments that have nothing else.
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
    """Install a wheel with the oldest or the newest NumPy and test it; a line about it."""
    home = away.parent / "installed"
    session.run("uv", "venv", "-q", "--clear", "--python", python, str(home))
    its = str(home / "bin" / "python")
    install = ("uv", "pip", "install", "-q", "--only-binary", ":all:", "--python", its)
    session.run(*install, "--resolution", age, str(wheel))
    session.run(*install, "pytest", "hypothesis", "psutil")
    with session.chdir(away):
        numpy = session.run(its, "-W", "ignore", "-c", WHEEL_SAYS.format(backend), external=True, silent=True)
        session.run(its, "-m", "proptim", "selftest", external=True)
        tests = [f"tests/{name}" for name in WHEEL_TESTS]
        told = session.run(its, "-m", "pytest", "-q", "-m", "not slow", *tests, external=True, silent=True)
    return f"{version:6} {str(numpy).strip():7} {wheel.name:82} {str(told).strip().splitlines()[-1]}"
