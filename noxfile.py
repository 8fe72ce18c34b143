"""The checks, each in an environment of its own: `nox`, or one of them: `nox -s lint`."""

from __future__ import annotations

import shutil
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
    for folder in ("tests", "examples"):
        shutil.copytree(folder, away / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy("pyproject.toml", away)
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
