"""First-order optimizers on the CPU: Rprop, RMSprop and their relatives, fast, and bit-identical on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proptim import _backend, _registry, functional, presets
from proptim._backend import available_isas, backend, get_num_threads, isa, set_num_threads
from proptim._config import show_config
from proptim._embed import get_cmake_dir, get_include
from proptim._registry import *  # noqa: F403
from proptim._registry import OPTIMIZERS
from proptim._rows import Rows
from proptim._version import __version__
from proptim.functional import clip_grad_norm, decay_groups, flatten, global_norm
from proptim.optimizer import Optimizer

if TYPE_CHECKING:
    from proptim import schedules
    from proptim._plot import plot
    from proptim._watch import Watch

__all__ = [
    "OPTIMIZERS",
    "Optimizer",
    "Rows",
    "Watch",
    "__version__",
    "available_isas",
    "backend",
    "clip_grad_norm",
    "decay_groups",
    "flatten",
    "functional",
    "get_cmake_dir",
    "get_include",
    "get_num_threads",
    "global_norm",
    "isa",
    "plot",
    "presets",
    "schedules",
    "set_num_threads",
    "show_config",
]
__all__ += _registry.__all__


def __getattr__(name: str) -> Any:
    if name == "schedules":  # importing it takes 8 ms for its dataclasses, so it waits until somebody needs it
        from importlib import import_module

        return import_module("proptim.schedules")
    if name in ("Watch", "plot"):
        from proptim import _plot, _watch

        return _plot.plot if name == "plot" else _watch.Watch
    if name == "_C_API":  # the capsule that proptim_python.h asks for
        if _backend.missing_core:
            raise AttributeError(f"proptim has no C API here: {_backend.missing_core}")
        from proptim import _core

        return _core._C_API
    raise AttributeError(f"module 'proptim' has no attribute {name!r}")
