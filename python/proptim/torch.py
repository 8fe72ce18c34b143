"""The door to PyTorch: the optimizers of torch.optim, stepped by the kernels of proptim.

``proptim.torch.RMSprop`` is a subclass of ``torch.optim.RMSprop``: arguments and their checks, parameter groups, hooks,
saving and loading are torch's own code; only `step` is proptim's. A rule that torch does not have, such as Lion, gets a
class in the same manner. `Offload` steps the parameters of another device by one of them. ``torch.pyi`` has their
signatures for type checkers and editors.

>>> import torch, proptim.torch
>>> model = torch.nn.Linear(3, 1)
>>> opt = proptim.torch.RMSprop(model.parameters(), lr=1e-3)
>>> loss = model(torch.ones(2, 3)).square().mean()
>>> loss.backward()
>>> opt.step()
"""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal

import numpy as np

from proptim import OPTIMIZERS
from proptim.rule import Rule

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "proptim.torch needs PyTorch, which is not installed: pip install 'proptim[torch]'", name="torch"
    ) from error

from proptim._storage import AVERAGE
from proptim._torch_offload import Offload as Offload
from proptim._torch_optimizer import FLAGS, OPTIONS, REFUSED, Door

DEFAULTS: dict[str, dict[str, Any]] = {"rprop": {"variant": "irprop-"}}
"""Hyperparameters with which proptim's rule is that of torch, if its defaults differ."""
PARAMS = inspect.signature(torch.optim.SGD).parameters["params"].annotation
ANNOTATIONS: dict[str, Any] = {
    "foreach": bool | None,
    "fused": bool | None,
    "clip_norm": float | None,
    "grad_scale": float,
    "nonfinite": Literal["propagate", "skip", "raise"],
    "max_skips": int | None,
    "zero_grads": bool,
    "flush_denormals": bool,
    "master": Literal["auto", "split", "float32"] | None,
    "state_dtype": Literal["float32", "float64", "bfloat16", "float16", "int8"] | dict[str, str] | None,
    "rounding": Literal["nearest", "stochastic"],
    "threads": int | Literal["auto"],
    "backend": Literal["c", "numba", "numpy"] | None,
    "fallback": Literal["warn", "torch", "error"],
    "clip_value": float | None,
    "ema": float | None,
    "variant": Literal["rprop-", "irprop-", "rprop+", "irprop+"],
    "initial_square_avg": float | None,
}
"""Types of keyword arguments that are not the type of their default."""


def keyword_only(name: str, default: Any) -> inspect.Parameter:
    """A parameter of a signature."""
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation(name, default)
    )


def annotation(name: str, default: Any) -> Any:
    """The type of a keyword argument."""
    if name in ANNOTATIONS:
        return ANNOTATIONS[name]
    return tuple[tuple(map(type, default))] if isinstance(default, tuple) else type(default)  # type: ignore[misc]


def base(rule: type[Rule], hyper: dict[str, Any]) -> type[torch.optim.Optimizer]:
    """The class of torch.optim with the name of a rule, or one that takes the arguments of the rule."""
    known: type[torch.optim.Optimizer] | None = getattr(torch.optim, rule.__name__, None)
    if known is not None:
        return known
    taken = [
        p.replace(annotation=PARAMS if name == "params" else annotation(name, p.default))
        for name, p in inspect.signature(rule).parameters.items()
        if name in ("params", *hyper)
    ]
    options = [keyword_only(key, value) for key, value in hyper.items() if key not in [p.name for p in taken]]
    signature = inspect.Signature([*taken, *options])

    def __init__(self: Any, *args: Any, **keywords: Any) -> None:
        bound = signature.bind(*args, **keywords)
        bound.apply_defaults()
        defaults = dict(bound.arguments)
        torch.optim.Optimizer.__init__(self, defaults.pop("params"), defaults)

    return type(rule.__name__, (torch.optim.Optimizer,), {"__init__": __init__, "__signature__": signature})


def door(rule: type[Rule]) -> type[Door]:
    """The optimizer class of a rule for torch."""
    name = rule.__name__
    hyper = {**rule.hyper, **DEFAULTS.get(name.lower(), {}), AVERAGE: None}
    theirs = base(rule, hyper)
    signature = inspect.signature(theirs)
    # torch's AdamW is decoupled for good
    extras = {k: v for k, v in hyper.items() if k not in signature.parameters and v is not True}
    flags = {k: v for k, v in FLAGS.items() if k not in signature.parameters}
    ours = [keyword_only(key, value) for key, value in {**extras, **flags, **OPTIONS}.items()]
    ones = {state: np.ones(1) for state in rule.states}
    known = hasattr(torch.optim, name)
    origin = f"torch.optim.{name}" if known else f"`proptim.{name}`"
    states = ", ".join(f"``{state}``" for state in rule.states)
    more = "".join(
        f"{', '.join(keys)}\n    {text}\n"
        for keys, text in (
            (extras, f"As in `proptim.{name}`; in group dicts too."),
            ([k for k in flags if k not in REFUSED], "As in the classes of torch.optim that have it; changes nothing."),
            ([k for k in flags if k in REFUSED], "As in the classes of torch.optim that have it; must be False."),
        )
        if keys
    )
    honest = signature.replace(parameters=[*signature.parameters.values(), *ours], return_annotation=None)
    members = {
        "__module__": __name__,
        "__doc__": DOC.format(
            name=name, origin=origin, names=", ".join([*signature.parameters][1:]), more=more, states=states
        ),
        "__signature__": honest.replace(return_annotation=inspect.Signature.empty),
        "_rule": rule,
        "_hyper": hyper,
        "_extras": frozenset(extras),
        "_flags": tuple(flags),
        "_arguments": tuple(honest.parameters)[1:],
        "_theirs": theirs if known else None,
        "_shown": tuple(rule.show_state(ones)),
        # torch.optim.SGD keeps none; prev_loss, which starts at infinity, is kept only where the rule looks at it
        "_counts": ()
        if name == "SGD"
        else tuple(k for k, start in rule.clock_start.items() if math.isfinite(start) and not k.startswith("_")),
    }
    cls: Any = type(name, (Door, theirs), members)

    def __init__(self: Any, *args: Any, **keywords: Any) -> None:
        super(cls, self).__init__(*args, **keywords)

    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    __init__.__signature__ = honest.replace(parameters=[itself, *honest.parameters.values()])  # type: ignore[attr-defined]
    __init__.__annotations__ = {p.name: p.annotation for p in honest.parameters.values()} | {"return": None}
    __init__.__qualname__ = f"{name}.__init__"
    cls.__init__ = __init__
    return cls  # type: ignore[no-any-return]


DOC = """{origin} as an optimizer of torch, stepped by the kernels of proptim.

Parameters
----------
params : iterable of tensors, of (name, tensor) or of group dicts
    As in torch.optim. Tensors of bfloat16, float16, float32, float64, complex64 or complex128 in CPU memory, with any
    strides, and DTensors of those. Others are stepped by torch's own class, if it can; see `fallback`. Of a sparse
    gradient with one sparse dimension, as ``nn.Embedding(sparse=True)`` gives it, the rows that it has are stepped.
{names}
    As in {origin}, with its defaults.
{more}clip_norm : float, optional
    Scale all gradients of this optimizer so that their norm is at most this, as ``torch.nn.utils.clip_grad_norm_``
    before the step would, without changing them. `grad_norm` is then the norm before. Infinity only computes the norm.
grad_scale : float, default 1
    Factor on every gradient, applied first: the inverse of a loss scale.
nonfinite : {{"propagate", "skip", "raise"}}, default "propagate"
    What to do about NaN and infinity in gradients: compute with them as usual, leave everything as it is and count the
    step in `skipped`, or raise FloatingPointError.
max_skips : int, optional
    With "skip", raise after this many skips in a row.
zero_grads : bool, default False
    Set the gradients to zero after the step, also after a skipped one; sparse ones have no rows then.
flush_denormals : bool, default False
    Set subnormal numbers in the state to zero after the step.
master : {{"split", "float32", None}}, optional
    How the float32 values of parameters of 16 bits are kept. "split", the default for bfloat16, keeps the lower 16 bits
    of each as int16 in ``opt.state[p]["master_lo"]``. "float32", the default for float16, keeps a float32 array in
    ``opt.state[p]["master"]``. With None they are rounded at every step, as in torch. "auto" means these defaults. With
    a master a run has the bits of the run of float32 parameters with the same gradients.
state_dtype : {{"float32", "float64", "bfloat16", "float16", "int8"}} or dict, optional
    The dtype of the state, or a dict with the dtypes of some of its arrays, by name:
    {states}.
    The default is float32 for parameters of 16 and 32 bits, and float64 for float64; torch keeps state in the dtype of
    the parameter. "int8" keeps averages as codes of one byte, as in ``opt.state[p]["exp_avg_code"]``, with a scale for
    each 256 of them in ``opt.state[p]["exp_avg_scale"]``, and Rprop's step sizes in one byte: see `proptim.Optimizer`.
rounding : {{"nearest", "stochastic"}}, default "nearest"
    How parameters of 16 bits with ``master=None`` and state of a narrower `state_dtype` are rounded when they are
    stored: to nearest, or to one of both neighbours at random, so that the expected value is the number itself. With
    "stochastic" the state of SGD has a "step" too, and every "step" is float64, because float32 counts to 2**24.
seed : int, default 0
    Of the random bits, which are a hash of the seed, the number of the parameter in all groups, the array, its step,
    and the index of the element: see `proptim.Optimizer`. ``state_dict()`` has it as a third key.
cast_grads : bool, default False
    Accept float64 gradients of narrower parameters, which ``p.grad_dtype`` makes possible; otherwise they are an error.
threads : int or "auto", default "auto"
    Number of threads; "auto" measures how many make the step faster, at most `torch.get_num_threads()`.
backend : {{"c", "numba", "numpy"}}, optional
    Default `proptim.backend()`.
fallback : {{"warn", "torch", "error"}}, default "warn"
    What to do about parameters that proptim cannot step, on other devices or without memory of their own, and about
    gradients with several sparse dimensions: let torch's own class step them, with one warning or without, or raise
    TypeError.

Attributes
----------
ema : dict
    With `ema`, parameter -> the average of its weights, also in ``opt.state[p]["ema"]``. It begins with the weights
    before the first step of the parameter. `averaged` puts the averages in the place of the weights.
grad_norm : float or None
    The norm of all gradients at the last step, before clipping; only with `clip_norm`.
skipped : int
    Steps that `nonfinite="skip"` has skipped.
clip_norm, grad_scale, nonfinite, max_skips, zero_grads, flush_denormals, seed, fallback
    The arguments; they can be set between steps.
master, state_dtype, rounding, cast_grads, threads, backend
    As given.

Raises
------
ValueError
    For a hyperparameter or option out of range, `differentiable` or `capturable`, and for a `master` or `state_dtype`
    that these parameters cannot have.
TypeError
    For a parameter that neither proptim nor torch's own class can step with these options.

Examples
--------
>>> import torch, proptim.torch
>>> w = torch.nn.Parameter(torch.ones(2))
>>> opt = proptim.torch.{name}([w], lr=0.25, clip_norm=1.0)
>>> w.sum().backward()
>>> opt.step()
>>> bool((w < 1).all()), round(opt.grad_norm, 3)
(True, 1.414)
"""

__all__ = [rule.__name__ for rule in OPTIMIZERS.values()]
globals().update({rule.__name__: door(rule) for rule in OPTIMIZERS.values()})
