"""The machine and the software, which every figure depends on."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from proptim._config import config

PACKAGES = ("numpy", "numba", "torch", "jax", "optax", "deepspeed", "thinc", "bitsandbytes", "torchao")
BUSY = 0.1  # of all cores: above this, other programs affect every timing


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def caches() -> list[str]:
    """Data caches of the first core, such as "L1 32K"."""
    folders = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    return [f"L{_read(f'{f}/level')} {_read(f'{f}/size')}" for f in folders if _read(f"{f}/type") != "Instruction"]


def busy(seconds: float = 0.5) -> float | None:
    """Share of all cores that other programs use; None if it cannot be read."""

    def ticks() -> tuple[int, int]:
        numbers = list(map(int, _read("/proc/stat").partition("\n")[0].split()[1:9]))
        return sum(numbers), numbers[3] + numbers[4]

    try:
        total, idle = ticks()
        time.sleep(seconds)
        total_after, idle_after = ticks()
    except (ValueError, IndexError):
        return None
    passed = total_after - total
    return 1 - (idle_after - idle) / passed if passed else None


def available_memory() -> int | None:
    """Bytes of memory that are available without swapping; None if it cannot be read."""
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """Everything, before anything is measured."""
    facts = config()
    share = busy()
    return {
        **{key: facts[key] for key in ("proptim", "python", "platform", "cpu", "isa", "threads", "parallel")},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "compiler": facts["compiler"],
        "caches": caches(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled") or None,
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "busy": share,
        "warnings": [f"other work takes {share:.0%} of the cores"] if share is not None and share > BUSY else [],
        "packages": {name: _version(name) for name in PACKAGES},
        "date": time.strftime("%Y-%m-%d %H:%M %z"),
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """For people."""
    versions = [f"{name} {version}" for name, version in facts["packages"].items() if version]
    rest = [f"caches {', '.join(facts['caches'])}"] if facts["caches"] else []
    rest += [f"governor {facts['governor']}"] if facts["governor"] else []
    rest += ["load " + " ".join(f"{x:.2f}" for x in facts["load"])] if facts["load"] else []
    ours = f"proptim {facts['proptim']}" + (f" ({facts['compiler']})" if facts["compiler"] else "")
    return [
        f"{facts['cpu']}, {facts['cores']} cores, {facts['isa'] or 'no compiled core'}, threads {facts['threads']}",
        "; ".join(rest),
        ", ".join([ours, f"Python {facts['python']}", *versions]),
        *(f"WARNING: {warning}; the figures are below what this machine can do" for warning in facts["warnings"]),
    ]
