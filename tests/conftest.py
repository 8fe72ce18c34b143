"""Fixtures for backends; the report's header lists the backends and instruction sets that are tested."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

import proptim
from proptim import _backend
from proptim.cli import selftest

CSRC = Path(__file__).parents[1] / "csrc"


def runners() -> dict[str, tuple[str, str | None, str]]:
    """Label -> (backend, instruction set, why it does not run here)."""
    missing = _backend.available_backends()
    isas = {path.stem.removeprefix("kernels_") for path in CSRC.glob("kernels_*.c")} | set(proptim.available_isas())
    found: dict[str, tuple[str, str | None, str]] = {}
    for isa in sorted(isas):
        idle = missing["c"] or ("" if isa in proptim.available_isas() else f"{isa} does not run on this CPU")
        found[f"c-{isa}"] = ("c", isa, idle)
    return found | {name: (name, None, missing[name]) for name in ("numba", "numpy")}


with warnings.catch_warnings():  # without the compiled core it is told once, here; the header says it too
    warnings.simplefilter("ignore", RuntimeWarning)
    proptim.backend()


def pytest_report_header() -> list[str]:
    """Default, tested and skipped backends."""
    idle = [f"{label} ({why})" for label, (_, _, why) in runners().items() if why]
    return [
        f"proptim {proptim.__version__}: {_backend.backend()} {proptim.isa()}, threads {proptim.get_num_threads()}",
        f"proptim runs: {', '.join(label for label, (_, _, why) in runners().items() if not why)}",
        f"proptim skips: {'; '.join(idle) or 'nothing'}",
        *([f"proptim leaves out what runs once, without {', '.join(named())}"] if named() else []),
    ]


VARIABLES = ("PROPTIM_BACKEND", "PROPTIM_ISA", "PROPTIM_NUM_THREADS")


def named() -> list[str]:
    """The environment variables that select a backend, instruction set or number of threads for the whole suite."""
    return [name for name in VARIABLES if os.environ.get(name)]


def runs_python(item) -> bool:
    """Whether a fixture below has chosen one of the backends without instruction sets and threads for it."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    # Strings are names that tests give themselves.
    chosen = [params[name] for name in ("backend", "contestant") if name in params]
    return any(isinstance(each, tuple) and each[1] is None for each in chosen)


def pytest_collection_modifyitems(config, items) -> None:
    """Tests that go through all variants themselves run only if the environment selects none.

    Those with the fixtures below do so too for backends, of which only "c" has instruction sets and threads. What a
    `fresh` process does is the same in every variant.
    """
    once = {item for item in items if named() and (item.get_closest_marker("once") or "fresh" in item.fixturenames)}
    if "PROPTIM_BACKEND" in named():
        once |= {item for item in items if {"backend", "contestant"} & {*item.fixturenames}}
    elif named():
        once |= {item for item in items if runs_python(item)}
    if once:
        config.hook.pytest_deselected(items=[item for item in items if item in once])
        items[:] = [item for item in items if item not in once]


RUN_HERE = [pytest.param(where[:2], id=label) for label, where in runners().items() if not where[2]]


@contextmanager
def default(patch, name, isa):
    """Make a backend and an instruction set the default of proptim."""
    patch.setattr(_backend, "_forced", name)
    with selftest.isa(isa) if isa else nullcontext():
        yield name


@pytest.fixture(params=RUN_HERE)
def backend(request, monkeypatch):
    """Every backend that runs here in turn, C with every instruction set; it is the default meanwhile."""
    with default(monkeypatch, *request.param) as name:
        yield name


@pytest.fixture(params=[p for p in RUN_HERE if p.id != "numpy"])
def contestant(request, monkeypatch):
    """As `backend`, without the numpy backend, which the others are compared with."""
    with default(monkeypatch, *request.param) as name:
        yield name


@pytest.fixture
def fresh(tmp_path):
    """Run a script in a new Python process without PROPTIM_ variables, except those given; return what it prints."""

    def run(script: str, *options: str, launcher: tuple[str, ...] = (), **variables: str) -> str:
        ours = (*VARIABLES, "PROPTIM_PARALLEL", "OMP_NUM_THREADS")
        done = subprocess.run(
            [*launcher, sys.executable, *options, "-c", script],
            env={k: v for k, v in os.environ.items() if k not in ours} | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
