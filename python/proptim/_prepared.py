"""The hyperparameters and options of a step: evaluated once, checked, and used until one of them changes."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from proptim._parameters import Group, at_step, check_number, is_on, is_schedule, plain
from proptim._storage import AVERAGE
from proptim.rule import Rule

ROUNDINGS = ("nearest", "stochastic")


@dataclass(frozen=True, eq=False)
class Prepared:
    """The hyperparameters and options of one step or many, evaluated and checked once."""

    stamp: object
    """`Changes.now` when they were evaluated: they are valid until that is another object."""
    values: dict[int, Settled]
    """id of a group -> its hyperparameters."""
    scale: float
    clip_norm: float | None
    nonfinite: str
    max_skips: int | None
    zero_grads: bool
    flush: bool
    seed: int | None
    """That of stochastic rounding; None where numbers are rounded to nearest."""
    scheduled: bool
    """Whether they are valid for one step only."""
    blind: bool
    """Whether no step has to check or sum up its gradients."""
    loses: bool
    """Whether a rule needs the loss."""
    lazy: bool
    """Whether `lazy_rows` is on in all groups."""


class Settled(NamedTuple):
    """The hyperparameters of a group at a step."""

    h: dict[str, Any]
    wanted: tuple[str, ...]
    """The names of the state arrays that they need."""
    scheduled: bool
    """Whether one of them is a schedule."""
    lazy: bool
    """Whether rows that have no gradient miss the step for good."""
    ema: Any
    """The decay of the averages of the weights; None if there are none."""

    @property
    def share(self) -> float:
        """What comes to the averages of the weights at a step, 1 - `ema`; 0 if there are none."""
        return 0.0 if self.ema is None else 1.0 - float(self.ema)


def settle(rule: type[Rule], hyper: Mapping[str, Any], dtypes: Iterable[str], steps: int) -> Settled:
    """Hyperparameters after `steps` completed steps, checked for the dtypes that the rule computes in."""
    h = rule.settled(hyper, steps)
    for dtype in dtypes:
        rule.check_in(h, dtype)
    lazy = is_on("lazy_rows", hyper.get("lazy_rows", True))
    if not lazy:
        rule.check_idle(h)
    ema = hyper.get("ema")
    scheduled = any(is_schedule(hyper[key]) for key in rule.hyper) or is_schedule(ema)
    decay = at_step(ema, steps)
    if isinstance(decay, bool):  # the switch that other libraries have, and no number here
        raise TypeError(f"Invalid ema value: {decay} (expected a number >= 0 and < 1, or None)")
    if ema is not None:
        check_number("ema value", decay, high=1.0)
    return Settled(h, wanted(rule, {**h, "ema": ema}), scheduled, lazy, decay)


def wanted(rule: type[Rule], hyper: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the state arrays that a group asks for, last that of the average of its weights."""
    return rule.wanted(hyper) if hyper.get("ema") is None else (*rule.wanted(hyper), AVERAGE)


def settled(rule: type[Rule], group: Group, steps: int) -> Settled:
    """`settle` for a group, which keeps the result."""
    known: tuple[object, Settled] | None = group.settled
    stamp = group.stamp  # read first, so that a change in the meantime makes the result out of date
    if known is not None and known[0] is stamp and not known[1].scheduled:
        return known[1]
    now = settle(rule, dict(group.data), group.dtypes, steps)  # a schedule or another thread may set keys meanwhile
    group.settled = (stamp, now)
    return now


def take_options(settings: Mapping[str, Any], steps: int, mean_of: int = 1) -> dict[str, Any]:
    """The checked options of the optimizer after `steps` completed steps; gradients are sums of `mean_of` gradients."""
    settings = dict(settings)
    nonfinite, max_skips = settings["nonfinite"], settings["max_skips"]
    if nonfinite not in ("propagate", "skip", "raise"):
        raise ValueError(f"Invalid nonfinite policy: {nonfinite!r} (expected 'propagate', 'skip' or 'raise')")
    if max_skips is not None:
        check_number("max_skips value", max_skips)
        if float(max_skips) % 1:
            raise ValueError(f"Invalid max_skips value: {max_skips!r} (expected a whole number >= 0)")
    check_rounding(settings["rounding"])
    seed = checked_seed(settings["seed"])
    flush, zero = is_on("flush_denormals", settings["flush_denormals"]), is_on("zero_grads", settings["zero_grads"])
    is_on("cast_grads", settings["cast_grads"])
    scale, clip_norm = at_step(settings["grad_scale"], steps), at_step(settings["clip_norm"], steps)
    check_number("grad_scale value", scale, low=-math.inf)
    if clip_norm is not None:
        check_number("clip_norm value", clip_norm, infinite=True)
    return {
        "scale": float(scale) / mean_of,
        "clip_norm": clip_norm,
        "blind": clip_norm is None and nonfinite == "propagate",
        "nonfinite": nonfinite,
        "max_skips": max_skips,
        "zero_grads": zero,
        "flush": flush,
        "seed": seed if settings["rounding"] == "stochastic" else None,
    }


def check_rounding(rounding: Any) -> None:
    """Raise ValueError for a `rounding` that there is not."""
    if rounding not in ROUNDINGS:
        raise ValueError(f"Invalid rounding: {rounding!r:.80} (expected 'nearest' or 'stochastic')")


def checked_seed(seed: Any) -> int:
    """The seed of stochastic rounding; ValueError for what is none."""
    if not isinstance(seed, bool) and hasattr(seed, "__index__"):
        with suppress(TypeError):  # an array or a tensor that is not one whole number
            if 0 <= (number := operator.index(seed)) < 2**64:
                return number
    raise ValueError(f"Invalid seed: {seed!r:.80} (expected a whole number >= 0, below 2**64)")


def as_loss(loss: Any, label: str = "loss") -> float:
    """The loss, or a number that follows from losses or steps before, as a Python number."""
    number = plain(loss)  # also from an array or tensor with one element
    if isinstance(number, (int, float)):
        with suppress(OverflowError):
            return float(number)
    raise TypeError(f"{label} is {loss!r:.80}; expected one number")


def as_norm(norm: Any) -> float:
    """The norm of all gradients as a Python number, which may be NaN or infinity."""
    number = plain(norm)
    real = isinstance(number, (int, float))
    if real and not number < 0:
        with suppress(OverflowError):
            return float(number)
    raise (ValueError if real else TypeError)(f"grad_norm is {norm!r:.80}; expected one number >= 0")


def clip_factor(norm: float, max_norm: float) -> float:
    """The factor that scales `norm` down to `max_norm`, as in torch.nn.utils.clip_grad_norm_; NaN stays NaN."""
    factor = float(max_norm) / (norm + 1e-6)  # 1e-6: torch's guard against a zero norm
    return 1.0 if factor > 1.0 or max_norm == math.inf else factor
