"""Steps without an object, for loops that keep their own state; and helpers over collections of gradients.

One function for each rule, called by its name: ``functional.rmsprop(param, grad, square_avg, lr=1e-3)``.

``functional.rmsprop.init(param, **hyperparameters)`` makes the state arrays, by name. Most are zeros at first; Rprop's
``step_word`` is a step size with a sign in it, and only ``functional.rprop.init(param, lr=0.1)`` makes it.

Parameters
----------
param : array
    Stepped in place.
grad : array
    Its gradient, of the same shape and dtype.
state arrays : array
    Those of the rule, by name or in its order, of the same shape and dtype; stepped in place. None, or left out, for
    one that an option switches on.
step : int, default 1
    Which step this is, counted from 1; only rules that correct or decay by it look (Adam, NAdam, Adagrad, ...).
loss, prev_loss : float, optional
    For Rprop's "irprop+".
mu_product : float, optional
    For NAdam, the product up to the step before; without it, it is multiplied up from the first step.
hyperparameters : by keyword
    Those of the class of this name, and of the options of `proptim.Optimizer`: grad_scale, clip_value, weight_decay,
    decoupled_weight_decay, maximize, zero_grads, flush_denormals, threads (1 by default) and backend.

Raises
------
ValueError, TypeError
    As the class does; nothing has changed then.

Examples
--------
>>> import numpy as np
>>> from proptim import functional
>>> w, square_avg = np.array([1.0, 1.0]), np.zeros(2)
>>> functional.rmsprop(w, np.array([1e-3, 1e3]), square_avg, lr=0.1)
>>> w.round(4)
array([0.6838, 0.6838])
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, overload

import numpy as np

from proptim import _backend
from proptim._arrays import Array, as_array, check_disjoint, check_writable, is_array, real_view
from proptim._options import GROUP_OPTIONS
from proptim._parameters import Group, Parameter, check_number
from proptim.adadelta import Adadelta
from proptim.adagrad import Adagrad
from proptim.adam import Adam, AdamW
from proptim.lion import Lion
from proptim.nadam import NAdam
from proptim.optimizer import Optimizer, clip_factor
from proptim.rmsprop import RMSprop
from proptim.rprop import Rprop
from proptim.sgd import SGD

CACHE_LINE = 64
"""Bytes; also the widest vector."""


class OneShot:
    """The rule of one optimizer class as a function on arrays."""

    def __init__(self, optimizer: type[Optimizer]) -> None:
        self.optimizer = optimizer
        self.__name__ = optimizer.__name__.lower()
        self.__doc__ = f"One step of `proptim.{optimizer.__name__}` on one parameter, in place."
        keyword = inspect.Parameter.KEYWORD_ONLY
        own = [
            p.replace(kind=keyword)
            for p in inspect.signature(optimizer.__init__).parameters.values()
            if p.name not in ("self", "params", "options")
        ]
        self.hyper = {**GROUP_OPTIONS, **{p.name: p.default for p in own}}
        if optimizer is AdamW:
            self.hyper["decoupled_weight_decay"] = True
        arrays = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("param", "grad")]
        arrays += [
            inspect.Parameter(
                n,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None if n in optimizer.optional else inspect.Parameter.empty,
            )
            for n in optimizer.states
        ]
        clock = [inspect.Parameter("step", keyword, default=1)]
        rest = [inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)]
        self.__signature__ = inspect.Signature([*arrays, *clock, *own, *rest], return_annotation=None)

    def __repr__(self) -> str:
        return f"<function proptim.functional.{self.__name__}{self.__signature__}>"

    def init(self, param: Any, **hyper: Any) -> dict[str, Array]:
        """The state arrays of this rule before the first step, by name."""
        opt = self.optimizer([as_array(param, "param").copy()], **hyper)
        return opt._parameters[0].state

    def __call__(
        self,
        param: Any,
        grad: Any,
        *state: Any,
        step: int = 1,
        loss: float | None = None,
        grad_scale: float = 1.0,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        threads: int | str = 1,
        backend: str | None = None,
        **keywords: Any,
    ) -> None:
        rule = self.optimizer
        if len(state) > len(rule.states):
            raise TypeError(f"{self.__name__} got {len(state)} state arrays; expected at most {rule.states}")
        given = dict(zip(rule.states, state, strict=False))
        for name in rule.states:
            if name in keywords and name not in given:
                given[name] = keywords.pop(name)
        clock = {name: keywords.pop(name) for name in tuple(rule.clock_start)[1:] if name in keywords}
        for key in keywords:
            if key not in self.hyper:
                raise TypeError(f"{self.__name__} got an unexpected keyword argument {key!r}")
        group = Group({**self.hyper, **keywords, "params": ()}, frozenset())
        h = rule.settled(group, max(step - 1, 0))
        wanted = rule.wanted(group)
        if h["maximize"] and "prev_loss" in clock:
            clock["prev_loss"] = -clock["prev_loss"]
        check_number("grad_scale value", grad_scale, low=-math.inf)
        p = Parameter("", None, param, as_array(param, "param"), group, ())
        for name in rule.states:
            if given.get(name) is None and name in wanted:
                raise TypeError(f"{self.__name__} has no {name}; expected an array like param: pass {name}=")
        arrays = {"param": p.array} | {n: as_array(a, n) for n, a in given.items() if a is not None}
        gradient = as_array(grad, "grad")
        for name, array in arrays.items():
            p.check_like(array, name)
            check_writable(array, name)
        p.check_like(gradient, "grad")
        if zero_grads:
            check_writable(gradient, "grad")
        check_disjoint(list(arrays.items()), [("grad", gradient)])
        coefs, _ = rule.numbers(group, self._clock(h, step, clock), loss)
        stages = rule.stages(h, grad_scale, zero_grads, flush_denormals)
        segment = [real_view(p.array), *(real_view(arrays[n]) if n in wanted else None for n in rule.states)]
        plan = _backend.plan_type(backend or _backend.backend())(
            rule, [tuple(segment)], *_backend.thread_count(threads)
        )
        plan.bind([real_view(gradient)])
        plan.step([(*coefs, *stages)], [])

    def _clock(self, h: Mapping[str, Any], step: int, given: Mapping[str, float]) -> tuple[float, ...]:
        """The clock before step number `step`."""
        if step < 1 or step != int(step):
            raise ValueError(f"step is {step}; expected a whole number of at least 1")
        start = {**self.optimizer.clock_start, **given}
        clock = tuple(start.values())
        if len(start) > 1 and not given and self.optimizer is NAdam:
            for _ in range(step - 1):
                _, clock = self.optimizer.advance(h, clock, None)
        return (step - 1, *clock[1:])


sgd = OneShot(SGD)
rprop = OneShot(Rprop)
rmsprop = OneShot(RMSprop)
adagrad = OneShot(Adagrad)
adadelta = OneShot(Adadelta)
adam = OneShot(Adam)
adamw = OneShot(AdamW)
nadam = OneShot(NAdam)
lion = OneShot(Lion)


def _gradients(grads: Any) -> list[tuple[str, Array]]:
    if is_array(grads) or not isinstance(grads, Iterable):
        raise TypeError(f"grads is {type(grads).__name__}; expected a sequence or dict of arrays: put it into a list")
    items = grads.items() if isinstance(grads, Mapping) else enumerate(grads)
    return [(f"grads[{key!r}]", as_array(g, f"grads[{key!r}]")) for key, g in items if g is not None]


def global_norm(grads: Any) -> float:
    """Euclidean norm of all gradients together, in float64, the same bits on every backend and thread count.

    Parameters
    ----------
    grads : sequence or dict of arrays
        None among them is passed over.

    Returns
    -------
    float
        The norm.

    Raises
    ------
    TypeError
        For what is no supported array.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> proptim.global_norm([np.array([3.0]), np.array([[4.0]])])
    5.0
    """
    squares, _ = _backend.sum_of_squares([real_view(g) for _, g in _gradients(grads)])
    return math.sqrt(squares)


def clip_grad_norm(grads: Any, max_norm: float) -> float:
    r"""Scale the gradients in place so that their global norm is at most `max_norm`; return the norm before.

    .. math:: g \leftarrow g \cdot \min\left(1, \frac{\mathrm{max\_norm}}{\|g\| + 10^{-6}}\right)

    Parameters
    ----------
    grads : sequence or dict of arrays
        None among them is passed over.
    max_norm : float
        At least 0.

    Returns
    -------
    float
        The norm before.

    Raises
    ------
    ValueError
        For read-only arrays, arrays that share memory or a negative `max_norm`; nothing has changed then.
    TypeError
        For what is no supported array; nothing has changed then.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> grad = np.array([3.0, 4.0])
    >>> proptim.clip_grad_norm([grad], 1.0), grad.round(5)
    (5.0, array([0.6, 0.8]))

    Notes
    -----
    As ``torch.nn.utils.clip_grad_norm_``; optax and Keras divide by the norm without the 1e-6. An optimizer's
    `clip_norm` does the same inside the step, without a second pass over the gradients.
    """
    check_number("max_norm value", max_norm)
    arrays = _gradients(grads)
    for label, grad in arrays:
        check_writable(grad, label)
    check_disjoint(arrays)
    norm = global_norm([grad for _, grad in arrays])
    factor = clip_factor(norm, max_norm)
    if factor != 1.0:
        for _, grad in arrays:
            view = real_view(grad)
            view *= view.dtype.type(factor)
    return norm


@overload
def flatten(params: Mapping[str, Any]) -> tuple[Array, dict[str, Array]]: ...
@overload
def flatten(params: Iterable[Any]) -> tuple[Array, list[Array]]: ...
def flatten(params: Any) -> tuple[Array, Any]:
    """Copy arrays into one aligned buffer; return it and views of it in the original shapes.

    Stepping the buffer steps all of them in one kernel call, and collectives want one buffer too.

    Parameters
    ----------
    params : sequence or dict of arrays
        All of one dtype.

    Returns
    -------
    buffer : array
        All elements in one row, on a cache line of 64 bytes.
    views : list or dict of arrays
        As `params`.

    Raises
    ------
    TypeError
        For mixed dtypes or what is no supported array.
    ValueError
        For no array at all.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> flat, (w, b) = proptim.flatten([np.ones((2, 3)), np.zeros(3)])
    >>> opt = proptim.SGD([flat], lr=0.5)
    >>> opt.step([np.ones(9)])
    >>> w[0], b
    (array([0.5, 0.5, 0.5]), array([-0.5, -0.5, -0.5]))
    """
    if is_array(params) or not isinstance(params, Iterable):
        raise TypeError(f"params is {type(params).__name__}; expected a sequence or dict of arrays")
    named = isinstance(params, Mapping)
    items = list(params.items() if isinstance(params, Mapping) else enumerate(params))
    arrays = [as_array(a, f"params[{key!r}]") for key, a in items]
    if not arrays:
        raise ValueError("params is empty; expected at least one array")
    dtype = arrays[0].dtype
    for (key, _), array in zip(items, arrays, strict=True):
        if array.dtype != dtype:
            raise TypeError(f"params[{key!r}] is {array.dtype.name}; expected {dtype.name}, the dtype of the first")
    size = sum(a.size for a in arrays)
    room = np.empty(size * dtype.itemsize + CACHE_LINE, np.uint8)
    start = -room.ctypes.data % CACHE_LINE
    buffer = room[start : start + size * dtype.itemsize].view(dtype)
    views, begin = [], 0
    for array in arrays:
        view = buffer[begin : begin + array.size].reshape(array.shape)
        view[...] = array
        views.append(view)
        begin += array.size
    return buffer, dict(zip(params, views, strict=True)) if named else views
