"""What runs the rules: the compiled core, Numba or NumPy; and the number of threads."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from proptim import _numpy
from proptim._arrays import Array
from proptim._environment import choice, unusable

BACKENDS = ("c", "numba", "numpy")
"""Best first."""

try:
    import proptim._core as core

    missing_core = ""
except ModuleNotFoundError as error:
    if error.name != "proptim._core":
        raise
    missing_core = "this installation has no compiled core (the pure-Python wheel, PROPTIM_PURE=1)"
except ImportError as error:
    missing_core = f"the compiled core cannot be loaded ({error})"

MAX_THREADS = 1024
"""More than a step can use. There is a limit because OpenMP ends the process if it cannot start that many threads."""

_told = False
_threads: int | None = None


_forced = choice("PROPTIM_BACKEND", BACKENDS)


def available_backends() -> dict[str, str]:
    """Backend -> why it cannot run here; an empty string for one that can."""
    import importlib.util  # takes 2 ms, and this function is rarely called

    no_numba = "" if importlib.util.find_spec("numba") else "Numba is not installed: pip install 'proptim[numba]'"
    return {"c": missing_core, "numba": no_numba, "numpy": ""}


def _level_outside() -> int:
    """The stacklevel at which a warning of the caller names the user's line, also where torch's code is in between."""
    level, frame = 1, sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] in ("proptim", "torch") and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    return level


def backend() -> Literal["c", "numba", "numpy"]:
    """The backend of optimizers that name none: PROPTIM_BACKEND, or the best that runs here.

    Falling back from a missing compiled core warns once.
    """
    global _told
    if _forced is not None:
        return _forced  # type: ignore[return-value]
    if not missing_core:
        return "c"
    reasons = available_backends()
    chosen = next(name for name in BACKENDS if not reasons[name])
    if not _told:
        _told = True
        warnings.warn(
            f"proptim uses the backend {chosen!r}: {missing_core}; set PROPTIM_BACKEND={chosen} to avoid this warning",
            RuntimeWarning,
            stacklevel=_level_outside(),
        )
    return chosen  # type: ignore[return-value]


def chosen(option: Any) -> Any:
    """The backend that an option names, of which None is the one in use; `plan_type` refuses what is none."""
    return backend() if option is None else option


def _require_core() -> None:
    if missing_core:
        raise ImportError(f"backend 'c' was requested, but {missing_core}; expected 'numba' or 'numpy'")


def plan_type(name: str) -> Callable[..., Any]:
    """The class of plans of a backend; ImportError with the reason if it cannot run here."""
    if name not in BACKENDS:
        raise ValueError(f"Invalid backend: {name!r} (expected one of {', '.join(map(repr, BACKENDS))})")
    if name == "c":
        _require_core()
        return core.Plan
    if name == "numba":
        if reason := available_backends()["numba"]:
            raise ImportError(f"backend 'numba' was requested, but {reason}")
        from proptim._numba import Plan as NumbaPlan

        return NumbaPlan
    return _numpy.Plan


def new_claim(name: str) -> Any:
    """The claim of an optimizer of a backend."""
    return core.Claim() if name == "c" else _numpy.Claim()


def sums_of(name: str) -> Any:
    """The module that computes sums of squares for a backend."""
    if name == "c":
        _require_core()
        return core
    return _numpy


def sum_of_squares(grads: list[Array]) -> tuple[float, bool]:
    """Sum of squares of real arrays and whether all are finite, by the backend in use."""
    summed: tuple[float, bool] = sums_of(backend()).sum_of_squares(grads)
    return summed


def isa() -> str:
    """The instruction set of the compiled kernels in use: PROPTIM_ISA, or the best that this CPU runs."""
    return "" if missing_core else core.isa()


def available_isas() -> tuple[str, ...]:
    """The instruction sets that this build has and this CPU runs, best first."""
    return () if missing_core else core.available_isas()


def _positive(value: str | int, label: str) -> int:
    huge = isinstance(value, int) and abs(value) > 10**80  # so many digits that Python may refuse to write them
    shown = "beyond 10**80" if huge else f"{value!r:.80}"
    try:
        count = int(value)
        if isinstance(value, (bool, np.bool_)) or count < 1 or (count <= MAX_THREADS and count != float(value)):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{label} is {shown}; expected a whole number of at least 1") from None
    if count > MAX_THREADS:
        raise ValueError(f"{label} is {shown}; expected at most {MAX_THREADS}")
    return count


def get_num_threads() -> int:
    """The largest number of threads that threads="auto" uses.

    It is that of `set_num_threads`, else PROPTIM_NUM_THREADS, else OMP_NUM_THREADS, else the number of CPUs that the
    process may use.
    """
    if _threads is not None:
        return _threads
    own = os.environ.get("PROPTIM_NUM_THREADS")
    if own:
        return _positive(own, "PROPTIM_NUM_THREADS")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    omp = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # a list names one count per nesting level
    return min(cpus, int(omp)) if omp.isdigit() and int(omp) else cpus


def set_num_threads(n: int) -> None:
    """Set the largest number of threads that new optimizers use with threads="auto".

    Parameters
    ----------
    n : int
        At least 1, at most 1024.

    Raises
    ------
    ValueError
        For any other value.
    """
    global _threads
    _threads = _positive(n, "number of threads")


def thread_count(threads: int | str) -> tuple[int, bool]:
    """The largest number of threads to use, and whether to choose by measuring."""
    if threads == "auto":
        return get_num_threads(), True
    return _positive(threads, "threads"), False


try:
    get_num_threads()  # raise the error for an invalid PROPTIM_NUM_THREADS at import, as for the other variables
except ValueError as error:
    raise unusable(str(error)) from None


def parallel_status() -> str:
    """Whether steps can use several threads, and if not why."""
    return missing_core or core.parallel_status()
