"""Calls of functions: the cases of every rule, and options of each kind."""

from __future__ import annotations

import pytest

import proptim
from proptim.cli.selftest import OPTIONS

NAMES = list(proptim.OPTIMIZERS)
CASES = [pytest.param(name, options, id=f"{name}-{i}") for name in NAMES for i, options in enumerate(OPTIONS[name])]
LOSSES = (3.0, 2.0, 2.5, 1.0)
STAGED = {
    "weight_decay": 0.1,
    "clip_value": 0.7,
    "grad_scale": 0.5,
    "maximize": True,
    "zero_grads": True,
    "flush_denormals": True,
}
"""Every stage is on."""
OF_CALL = ("grad_scale", "zero_grads", "flush_denormals", "cast_grads", "rounding", "seed")
"""Options that `init` does not take."""
OF_INIT = ("master", "state_dtype")
"""Options that a step does not take."""
