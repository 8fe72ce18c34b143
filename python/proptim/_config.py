"""What this installation runs on: for bug reports and for `proptim info`."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

from proptim import _backend
from proptim._version import __version__


def _version(package: str) -> str | None:
    from importlib import metadata  # imported here because it takes a tenth of a second and steps do not need it

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - a device, read once
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


DOORS = {
    "c": "",
    "cython": "",
    "mpi": "mpi4py",
    "numba": "numba",
    "scipy": "scipy",
    "sklearn": "sklearn",
    "threadpoolctl": "threadpoolctl",
    "torch": "torch",
}
"""Door to other software -> the package that it needs; an empty name means the compiled core."""


def doors() -> dict[str, str]:
    """Door -> why it cannot be used here; an empty string if it can."""
    from importlib.util import find_spec

    return {
        door: _backend.missing_core if not package else "" if find_spec(package) else f"{package} is not installed"
        for door, package in DOORS.items()
    }


def config() -> dict[str, Any]:
    """Versions, backend and instruction set with reasons, threads, compiler, CPU, and the doors to other software."""
    reasons, closed = _backend.available_backends(), doors()
    forced_isa = os.environ.get("PROPTIM_ISA")
    build: dict[str, str] = {}
    if not _backend.missing_core:
        from proptim import _core

        build = _core.build_info()
    return {
        "proptim": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "backend": _backend.backend(),
        "backend_reason": (
            f"PROPTIM_BACKEND={os.environ['PROPTIM_BACKEND']}"
            if os.environ.get("PROPTIM_BACKEND")
            else "the best that runs here"
        ),
        "unavailable_backends": {name: reason for name, reason in reasons.items() if reason},
        "isa": _backend.isa() or None,
        "isa_reason": f"PROPTIM_ISA={forced_isa}" if forced_isa else "the best that this CPU runs",
        "available_isas": list(_backend.available_isas()),
        "threads": _backend.get_num_threads(),
        "parallel": _backend.parallel_status(),
        "available_doors": [door for door, reason in closed.items() if not reason],
        "unavailable_doors": {door: reason for door, reason in closed.items() if reason},
        "compiler": build.get("compiler"),
        "flags": build.get("flags"),
        "numpy": _version("numpy"),
        "numba": _version("numba"),
        "scipy": _version("scipy"),
        "scikit-learn": _version("scikit-learn"),
        "torch": _version("torch"),
    }


def show_config() -> None:
    """Print version, backend, instruction set, threads, compiler and CPU, one to a line."""
    for key, value in config().items():
        if isinstance(value, dict):
            value = "; ".join(f"{k}: {v}" for k, v in value.items()) or "none"
        if isinstance(value, list):
            value = ", ".join(value) or "none"
        print(f"{key:21}{'-' if value is None else value}")
