"""The stages around a rule, in NumPy: the Python twin of `csrc/stages/`.

A stage is switched on by its coefficient: at the neutral value it does not run at all, so that it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from proptim._arrays import select

NEUTRAL = {"decay": 1.0, "scale": 1.0, "clip": math.inf, "l2": 0.0, "zero": 0.0, "flush": 0.0, "average": 0.0}
"""Name -> coefficient at which the stage does nothing, in the order of `stages.def`."""


def decay(param: Any, factor: Any) -> Any:
    """Decoupled weight decay: factor = 1 - lr * weight_decay."""
    return param * factor


def scale(grad: Any, factor: Any) -> Any:
    """Unscaling, the factor of the norm clip and the sign of `maximize`, in one product."""
    return grad * factor


def clip(grad: Any, bound: Any) -> Any:
    """Clip to [-bound, bound]; NaN compares false and so stays NaN."""
    return select(grad > bound, bound, select(grad < -bound, -bound, grad))


def l2(grad: Any, param: Any, weight_decay: Any) -> Any:
    """Add the gradient of weight_decay/2 * param**2."""
    return grad + weight_decay * param


def before(param: Any, grad: Any, stages: Sequence[float]) -> tuple[Any, Any]:
    """Parameter and gradient as the rule sees them; `stages` has the coefficients in the order of `NEUTRAL`."""
    real = param.dtype.type
    on = {name: real(c) for (name, off), c in zip(NEUTRAL.items(), stages, strict=True) if c != off}
    if "decay" in on:
        param = decay(param, on["decay"])
    if "scale" in on:
        grad = scale(grad, on["scale"])
    if "clip" in on:
        grad = clip(grad, on["clip"])
    if "l2" in on:
        grad = l2(grad, param, on["l2"])
    return param, grad


def flush(state: Any, smallest_normal: Any) -> Any:
    """Set subnormal numbers to zero."""
    return select(np.abs(state) < smallest_normal, state - state, state)  # a zero of the right dtype


def average(average: Any, param: Any, share: Any) -> Any:
    """The average of a parameter after a step: share = 1 - decay of what the step has stored comes to it."""
    return average + share * (param - average)
