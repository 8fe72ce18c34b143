"""Gradient steps on the CPU: Rprop, RMSprop and their relatives, fast, and the same bits on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proptim import _backend, functional, presets
from proptim._backend import available_isas, backend, get_num_threads, isa, set_num_threads
from proptim._config import show_config
from proptim._embed import get_cmake_dir, get_include
from proptim._version import __version__
from proptim.adadelta import Adadelta
from proptim.adagrad import Adagrad
from proptim.adam import Adam, AdamW
from proptim.functional import clip_grad_norm, flatten, global_norm
from proptim.lion import Lion
from proptim.nadam import NAdam
from proptim.optimizer import Optimizer
from proptim.rmsprop import RMSprop
from proptim.rprop import Rprop
from proptim.sgd import SGD

if TYPE_CHECKING:
    from proptim import schedules

OPTIMIZERS: dict[str, type[Optimizer]] = {
    cls.__name__.lower(): cls for cls in (SGD, Rprop, RMSprop, Adagrad, Adadelta, Adam, AdamW, NAdam, Lion)
}
"""Every optimizer by name: what the tests, the command line and the benchmarks go through."""

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Lion",
    "NAdam",
    "Optimizer",
    "RMSprop",
    "Rprop",
    "__version__",
    "available_isas",
    "backend",
    "clip_grad_norm",
    "flatten",
    "functional",
    "get_cmake_dir",
    "get_include",
    "get_num_threads",
    "global_norm",
    "isa",
    "presets",
    "schedules",
    "set_num_threads",
    "show_config",
]


def __getattr__(name: str) -> Any:
    if name == "schedules":  # 8 ms of dataclasses, for whom wants them
        from importlib import import_module

        return import_module("proptim.schedules")
    if name == "_C_API":  # the capsule that proptim_python.h asks for
        if _backend.missing_core:
            raise AttributeError(f"proptim has no C API here: {_backend.missing_core}")
        from proptim import _core

        return _core._C_API
    raise AttributeError(f"module 'proptim' has no attribute {name!r}")
