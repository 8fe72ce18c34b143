"""Steps without an object, for loops that keep their own state; and helpers over collections of gradients.

One function for each rule, called by its name: ``functional.rmsprop(param, grad, square_avg, lr=1e-3)``.

``functional.rmsprop.init(param, **hyperparameters)`` makes the state arrays, by name. Most are zeros at first. Rprop's
``step_word`` holds a step size and a sign in one number: make it with ``functional.rprop.init(param, lr=0.1)``; zeros
are refused. For a parameter of 16 bits `init` also makes the ``master``, which gives steps the precision of float32.
The arguments ``master`` and ``state_dtype``, described at `proptim.Optimizer`, choose its kind and the dtype of the
state.

Parameters
----------
param : array
    Stepped in place.
grad : array
    Its gradient, of the same shape; `proptim.Optimizer` lists the dtypes. A gradient of some rows is `proptim.Rows`.
state arrays : array
    Those of the rule, by name or in its order, of the same shape and of a dtype that `state_dtype` allows; updated in
    place. Leave out, or pass None for, one whose option is off. One that is passed requires its option in the call, as
    in ``functional.sgd(w, grad, **state, momentum=0.9)``: a call that forgets it is refused, and one in which it is
    off, as ``momentum=0.0``, leaves the array as it is. uint16 arrays are taken as the bits of bfloat16. With "int8"
    `init` makes two arrays of each, as ``exp_avg`` and ``exp_avg_scale``: pass both, as in
    ``functional.adam(w, grad, **state, step=1)``.
master : array, optional
    What `init` made for a parameter of 16 bits: uint16 with the low 16 bits of each bfloat16, or float32. Without it
    the parameter is rounded at every step.
ema : float or schedule, optional
    The decay d of an average of the weights, >= 0 and < 1. It moves with the step, in the same pass over memory:
    e + (1 - d) (p - e), with p the weights that the step has stored, those of the master where there is one.
average : array, optional
    That average e, updated in place, which `ema` requires: ``init(param, ema=0.999)`` makes it, with the weights that
    there are then. It has the shape of `param` and the dtype of the arithmetic: float32 for parameters of 32 or 16
    bits, complex64 for those of complex64.
publish : array, optional
    An array of float16 or bfloat16 of the shape of a float32 parameter. The step writes a copy of the parameter into
    it, rounded to nearest, in the same pass; of a gradient of some rows into these rows.
step : int
    The number of this step, counted from 1. Rules that depend on it, such as Adam with its bias correction, require it;
    for others it may be left out.
loss, prev_loss : float, optional
    For Rprop's "irprop+".
mu_product : float, optional
    For NAdam, the product up to the previous step; without it, the product is computed from the first step on.
hyperparameters : by keyword
    Those of the class of this name, and of the options of `proptim.Optimizer`: grad_scale, clip_value, weight_decay,
    decoupled_weight_decay, maximize, zero_grads, flush_denormals, cast_grads, rounding, seed, threads (1 by default)
    and backend. ``rounding="stochastic"`` requires `step`. The parameter has the number 0: give each a seed of its own.

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
from collections.abc import Callable, Iterable, Mapping
from itertools import starmap
from operator import setitem
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np

from proptim import _backend
from proptim._arrays import Array, as_array, check_disjoint, check_writable, is_array, name_of, real_view, tell_torch
from proptim._formats import FLOAT32, SIXTEEN, Compact, Steps8, arithmetic, load, numbers, rounded, shown, widened
from proptim._interrupts import at_once
from proptim._options import SETTINGS
from proptim._parameters import (
    Clock,
    Schedulable,
    check_copy,
    check_gradient,
    check_number,
    frozen,
    is_schedule,
    named,
    paths,
    plain,
    stored,
)
from proptim._prepared import as_loss, clip_factor, settle, take_options
from proptim._registry import OPTIMIZERS
from proptim._rows import (
    Rows,
    as_gradient,
    check_zeroed,
    is_matrix,
    memory_of,
    no_row,
    real_gradient,
    summed,
    values_of,
    viewed,
)
from proptim._storage import (
    ONE_BYTE,
    SCALE,
    check_plane,
    check_state,
    check_storage,
    first_average,
    first_plane,
    first_state,
    in_one_byte,
    taken_compact,
)
from proptim._storage import named as named_compact
from proptim.rule import Rule

OPTIONS: dict[str, Any] = {
    **{n: SETTINGS[n] for n in ("grad_scale", "zero_grads", "flush_denormals", "cast_grads", "rounding", "seed")},
    "threads": 1,
    "backend": None,
}
"""Options of a whole optimizer that a step without one has too, and their defaults here."""
CACHE_LINE = 64
"""Bytes; also the widest vector."""


class OneShot:
    """The rule of one optimizer class as a function on arrays."""

    given: tuple[str, ...] = ("grad",)
    """The arguments that are the gradient; the last of them are its numbers."""
    lenient: ClassVar[bool] = False
    """Whether a state array is accepted, and left alone, in a call that leaves out the option which it is for."""

    def __init__(self, optimizer: type[Rule]) -> None:
        self.optimizer = optimizer
        self.alike = None if _backend.missing_core else _backend.core.OneShot(optimizer)
        """Repeats calls that are like an earlier one, without the checks below."""
        self.__name__ = self.__qualname__ = optimizer.__name__.lower()
        self.__doc__ = f"One step of `proptim.{optimizer.__name__}` on one parameter, in place."
        own = [p for p in inspect.signature(optimizer.__init__).parameters if p in optimizer.hyper]
        self.counts = [name for name in tuple(optimizer.clock_start)[1:] if not name.startswith("_")]
        """The numbers of a clock, but for the step, that a call may give."""
        self.losses = optimizer.needs_loss is not Rule.needs_loss
        self.keywords: dict[str, Any] = {
            "step": None,
            **{name: optimizer.hyper[name] for name in (*own, *optimizer.hyper)},
            **dict.fromkeys([*self.counts, *["loss"] * self.losses]),
            "master": None,
            "ema": None,
            "average": None,
            "publish": None,
            **{name + SCALE: None for name in optimizer.states},
            **OPTIONS,
        }
        """Keyword arguments and their defaults."""
        self.__signature__ = self._signature()

    def _signature(self) -> inspect.Signature:
        arrays = ["param", *self.given, *self.optimizer.states]
        either, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        off = {n: None if n in self.optimizer.optional else inspect.Parameter.empty for n in arrays}
        parameters = [inspect.Parameter(n, either, default=default) for n, default in off.items()]
        parameters += [inspect.Parameter(n, keyword, default=default) for n, default in self.keywords.items()]
        return inspect.Signature(parameters, return_annotation=None)

    def __repr__(self) -> str:
        return f"<function proptim.functional.{self.__name__}{self.__signature__}>"

    def __reduce__(self) -> str:
        return self.__name__

    def init(
        self, param: Any, *, master: str | None = "auto", state_dtype: Any = None, ema: Any = None, **hyper: Any
    ) -> dict[str, Array]:
        """The state arrays of this rule before the first step, by name, and the master of a parameter of 16 bits.

        With `ema` also "average", the average of the weights, which begins with the weights as they are.
        """
        rule, array = self.optimizer, as_array(param, "param")
        now = settle(rule, {**self._hyper(hyper), "ema": frozen(ema)}, (), 0)
        check_storage(rule, master, state_dtype, [("param", array.dtype)])
        h = now.h
        if compact := in_one_byte(rule, state_dtype):
            h = rule.held_in_one_byte(h, h, compact)
        wanted = rule.wanted(self._hyper(hyper))  # those too that a schedule asks for later
        state: dict[str, Array] = {}
        for name in wanted:
            made = first_state(rule, h, state_dtype, name, array, array.size)
            if name + SCALE not in made:
                check_state(made[name], name, array)
            state |= made
        plane = first_plane(master, array)
        named = {name: shown(each) for name, each in state.items()}
        if plane is not None:
            named["master"] = plane
        if ema is not None:
            named["average"] = first_average(array, load(stored(array, plane), arithmetic(array.dtype)))
        return named

    def _hyper(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """All hyperparameters: those given, and the defaults of the others."""
        for key in keywords:
            if key not in self.optimizer.hyper:
                meant = self.optimizer.meant(key, "ema")
                hint = f": did you mean {meant!r}?" if meant else ""
                raise TypeError(f"{self.__name__} got an unexpected keyword argument {key!r}{hint}")
        return {**self.optimizer.hyper, **{key: frozen(value) for key, value in keywords.items()}}

    def __call__(self, /, *args: Any, **keywords: Any) -> None:
        if self.alike is None or not self.alike.step(args, keywords):
            kept = self._step(*args, **keywords)
            if self.alike is not None and kept is not None:
                self.alike.remember(args, keywords, *kept)

    def _arrays(self, gradient: tuple[str, ...], args: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
        """The arrays of a call by name; those that were given by their names are taken out of `keywords`."""
        names = ("param", *gradient, *self.optimizer.states)
        if len(args) > len(names):
            raise TypeError(
                f"{self.__name__} got {len(args)} arguments by place; expected at most {len(names)}: "
                f"{', '.join(names)}, and all others by name"
            )
        given = dict(zip(names, args, strict=False))
        for name in names:
            if name in given and name in keywords:
                raise TypeError(f"{self.__name__} got {name} twice, by place and by name; expected it once")
            if name in keywords:
                given[name] = keywords.pop(name)
        for name in ("param", *gradient):
            if name not in given:
                raise TypeError(f"{self.__name__} has no {name}; expected an array: pass {name}=")
        return given

    def _step(
        self,
        /,
        *args: Any,
        step: int | None = None,
        loss: float | None = None,
        master: Any = None,
        ema: Any = None,
        average: Any = None,
        publish: Any = None,
        **keywords: Any,
    ) -> tuple[Any, ...] | None:
        """The step with all its checks; returns what `_core.OneShot.remember` needs to repeat it, None if it cannot."""
        rule = self.optimizer
        given = self._arrays(("grad",), args, keywords)
        param, grad = given.pop("param"), given.pop("grad")
        scales = {name: keywords.pop(name + SCALE, None) for name in rule.states}
        more = {name: keywords.pop(name) for name in self.counts if name in keywords}
        clock = {name: as_loss(value, name) for name, value in more.items() if value is not None}
        options = {name: frozen(keywords.pop(name, default)) for name, default in OPTIONS.items()}
        array = as_array(param, "param")
        dtype = arithmetic(array.dtype).name
        hyper = {**self._hyper(keywords), "ema": frozen(ema)}
        number = None if step is None else plain(step)
        if number is not None and (type(number) is not int or not 1 <= number < 2**63):
            raise ValueError(f"step is {step!r:.80}; expected a whole number of at least 1, below 2**63")
        before = 0 if number is None else number - 1
        now, taken = settle(rule, hyper, (dtype,), before), take_options({**SETTINGS, **options}, before)
        h, zero_grads, seed = now.h, taken["zero_grads"], taken["seed"]
        scheduled = now.scheduled or is_schedule(options["grad_scale"])
        if number is None and (scheduled or not (rule.steady(h) or rule.needs_loss(h))):
            raise TypeError(f"{self.__name__} counts its steps; expected step=, the number of this one, from 1 on")
        if h["maximize"] and "prev_loss" in clock:
            clock["prev_loss"] = -clock["prev_loss"]
        if seed is not None and number is None:
            raise TypeError(
                f"{self.__name__} rounds at random by the number of the step; expected step=, the number of this one, "
                "from 1 on"
            )
        if (ema is None) != (average is None):
            one, other = ("ema", "average") if average is None else ("average", "ema")
            raise TypeError(
                f"{self.__name__} got {one} and no {other}; expected both or neither: init(param, ema=0.999) makes the "
                "average, and ema= is its decay in each step"
            )
        beside = () if average is None else ("average",)
        wanted = (*rule.wanted(h), *beside)
        for name, each in given.items():
            kind = getattr(each, "dtype", None)
            byte = getattr(kind, "itemsize", 1) == 1 and str(kind).rpartition(".")[2] in ONE_BYTE
            if byte and scales[name] is None:
                raise TypeError(f"{name} has one byte and no {name}{SCALE}; expected both, as init() makes them")
        for name in rule.states:
            if given.get(name) is None and name in wanted:
                raise TypeError(f"{self.__name__} has no {name}; expected an array like param: pass {name}=")
        compact = {n: (given.get(n), scale) for n, scale in scales.items() if scale is not None}
        if compact:
            h = rule.held_in_one_byte(h, h, frozenset(compact))
        pairs = {n: _compact(rule, h, n, *both, array) for n, both in compact.items()}
        arrays = {"param": array}
        arrays |= {n: as_array(a, n, bits=True) for n, a in given.items() if a is not None and n not in pairs}
        for name, switch in rule.optional.items():
            if (name in arrays or name in pairs) and not (name in wanted or switch in keywords or self.lenient):
                off = rule.hyper[switch]
                raise TypeError(
                    f"{self.__name__} got {name} and no {switch}, which is {off} then; expected {switch}= as in "
                    f"init(), or no {name}: {switch}={off} makes a step that leaves it alone"
                )
        gradient = as_gradient(grad, "grad", array, "param")
        plane = None if master is None else as_array(master, "master", bits=True)
        copy = None if publish is None else as_array(publish, "publish", bits=True)
        for name, each in arrays.items():
            check_state(each, name, array)
            check_writable(each, name)
        for name in rule.never_zero & arrays.keys():
            if not numbers(real_view(arrays[name])).all():
                raise ValueError(
                    f"{name} has zeros, which no step leaves; expected what functional.{self.__name__}.init(param) "
                    "makes"
                )
        if plane is not None:
            arrays["master"] = plane
            check_plane(plane, array)
            check_writable(plane, "master")
        if average is not None:
            arrays["average"] = as_array(average, "average")
            check_state(arrays["average"], "average", array, whole=True)
            check_writable(arrays["average"], "average")
            if isinstance(gradient, Rows):
                raise ValueError(
                    "grad is a gradient of rows, and param has an average of its weights, which moves in all rows at "
                    "each step; expected a whole gradient, or ema=None"
                )
        if copy is not None:
            arrays["publish"] = copy
            check_copy(copy, "publish", array, "param")
        check_gradient(gradient, "grad", array, "param", options["cast_grads"])
        if zero_grads:
            check_zeroed(gradient, "grad")
        for name, pair in pairs.items():
            arrays |= named_compact(name, pair)
            if isinstance(gradient, Rows) and not isinstance(pair, Steps8):
                raise ValueError(
                    f"grad is a gradient of rows, and {name} is in int8, where 256 weights of one block share a scale, "
                    "rows that are not stepped among them; expected a whole gradient, or state_dtype='bfloat16'"
                )
        check_disjoint(list(arrays.items()), [("grad", values_of(gradient))])
        coefs, _ = rule.numbers(h, self._clock(h, number, clock), None if loss is None else as_loss(loss))
        stages = rule.stages(h, taken["scale"], zero_grads, taken["flush"], now.share)
        rule.check_numbers(coefs, stages, dtype)
        state_of = {n: pairs[n] if n in pairs else real_view(arrays[n]) for n in wanted}
        segment = [stored(array, plane, copy), *map(state_of.get, (*rule.states, *beside))]
        backend, count = _backend.chosen(options["backend"]), _backend.thread_count(options["threads"])
        plan = _backend.plan_type(backend)(rule, [tuple(segment)], *count)
        plan.bind([real_gradient(gradient)])
        if (found := plan.sort_rows()) is not None:
            raise no_row(gradient, found[1], "grad", array, "param")
        plan.seed = seed
        plan.step([(*coefs, *stages)], [(number,)])
        written = [param, *given.values(), *scales.values(), master, average, publish]
        tell_torch([*written, *([grad] if zero_grads else [])])
        if clock or backend != "c" or count != (1, False) or rule.needs_loss(h):
            return None
        return plan, None if rule.steady(h) else h

    def _clock(self, h: Mapping[str, Any], step: int | None, given: Mapping[str, float]) -> Clock:
        """The clock before step number `step`; before the second step if that is None, as all later ones are alike."""
        before = 1 if step is None else step - 1
        if not given:
            return self.optimizer.clock_at(h, before)
        start = {**self.optimizer.clock_start, **given}
        clock: Clock = (before, *list(start.values())[1:])
        self.optimizer.check_clock(clock)
        return clock


if TYPE_CHECKING:

    def __getattr__(name: str) -> OneShot: ...


globals().update({name: OneShot(optimizer) for name, optimizer in OPTIMIZERS.items()})


def _compact(rule: type[Rule], h: Mapping[str, Any], name: str, code: Any, scale: Any, param: Array) -> Compact:
    """A state array in one byte; ValueError or TypeError for what `init` does not make for this parameter."""
    check_storage(rule, "auto", {name: "int8"}, [("param", param.dtype)])
    if code is None:
        raise TypeError(f"{name}{SCALE} is given and no {name}; expected both, as init() makes them")
    planes = np.asarray(code), np.asarray(scale)
    pair = taken_compact(rule, h, name, *planes, param.shape, name, name + SCALE)
    for label, plane in named_compact(name, pair).items():
        check_writable(plane, label)
        if not plane.flags.c_contiguous:
            raise ValueError(f"{label} is not in C order; expected an array as init() makes it")
    return pair


def _items(grads: Any) -> list[tuple[str, Any]]:
    """The gradients that are not None, and how messages name them."""
    if is_array(grads) or is_matrix(grads) or not isinstance(grads, Iterable) or isinstance(grads, (set, frozenset)):
        raise TypeError(f"grads is {type(grads).__name__}; expected a sequence or dict of arrays: put it into a list")
    items = paths(grads) if isinstance(grads, Mapping) else enumerate(grads)
    return [(f"grads[{key!r}]", g) for key, g in items if g is not None]


def global_norm(grads: Any) -> float:
    """Euclidean norm of all gradients together, in float64, with the same bits on every backend and thread count.

    Parameters
    ----------
    grads : sequence or dict of arrays
        Entries that are None are ignored. The norm of gradients of some rows, `proptim.Rows`, sparse matrices of SciPy
        in csr format and sparse tensors of torch, is that of the sums of their rows, added as for a parameter of their
        dtype.

    Returns
    -------
    float
        The norm.

    Raises
    ------
    TypeError
        For anything that is not a supported array.
    ValueError
        For an index below 0, or above the rows of a sparse matrix or tensor.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> proptim.global_norm([np.array([3.0]), np.array([[4.0]])])
    5.0
    """
    return _norm([_seen(g, label) for label, g in _items(grads)])


def _seen(grad: Any, label: str) -> Array | Rows:
    """A gradient of a parameter that is not known, so that only a sparse tensor says how many rows there are."""
    seen = viewed(grad, label)
    if isinstance(seen, Rows):
        size = math.inf if isinstance(grad, Rows) else grad.shape[0]
        bad = (seen.indices < 0) | (seen.indices >= size)
        if bad.any():
            at = int(bad.argmax())
            raise ValueError(
                f"indices of {label} has {seen.indices[at]} at place {at}; expected a row, "
                + ("0 or above" if size == math.inf else f"0 to {size - 1}")
            )
    return seen


def _norm(grads: list[Array | Rows]) -> float:
    squares, _ = _backend.sum_of_squares([*map(summed, grads)])
    return math.sqrt(squares)


def clip_grad_norm(grads: Any, max_norm: float) -> float:
    r"""Scale the gradients in place so that their global norm is at most `max_norm`; return the norm before.

    .. math:: g \leftarrow g \cdot \min\left(1, \frac{\mathrm{max\_norm}}{\|g\| + 10^{-6}}\right)

    Parameters
    ----------
    grads : sequence or dict of arrays
        Entries that are None are ignored. Gradients of some rows are taken as by `global_norm`, and all their stored
        numbers are scaled.
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
        For anything that is not a supported array; nothing has changed then.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> grad = np.array([3.0, 4.0])
    >>> proptim.clip_grad_norm([grad], 1.0), grad.round(5)
    (5.0, array([0.6, 0.8]))

    Notes
    -----
    Equal to ``torch.nn.utils.clip_grad_norm_``, also where the squares of numbers beyond 1e154 overflow float64: the
    norm is infinite then, and finite gradients become 0. optax and Keras divide by the norm without the 1e-6. An
    optimizer's `clip_norm` does the same inside the step, without writing to the gradients, and accepts a known norm as
    ``step(grads, grad_norm=norm)``: one returned by `global_norm`, or by this function if it did not have to clip.
    """
    check_number("max_norm value", max_norm, infinite=True)
    items = _items(grads)
    seen = [(label, g, _seen(g, label)) for label, g in items]
    arrays = [(label, memory_of(g, grad, label)) for label, g, grad in seen]
    for label, array in arrays:
        check_writable(array, label)
    check_disjoint(arrays)
    norm = _norm([grad for _, _, grad in seen])
    factor = clip_factor(norm, max_norm)
    if factor != 1.0:
        with np.errstate(all="ignore"):  # IEEE arithmetic without warnings, whatever the caller has set
            views = [real_view(grad) for _, grad in arrays if grad.dtype not in SIXTEEN]
            halves = [grad for _, grad in arrays if grad.dtype in SIXTEEN]
            scaled = [(grad, ..., rounded(widened(grad, FLOAT32) * np.float32(factor), grad.dtype)) for grad in halves]
            at_once(
                map(np.multiply, views, [view.dtype.type(factor) for view in views], views), starmap(setitem, scaled)
            )
        tell_torch(g for _, g in items)
    return norm


@overload
def flatten(params: Mapping[str, Any]) -> tuple[Array, dict[str, Array]]: ...
@overload
def flatten(params: Iterable[Any]) -> tuple[Array, list[Array]]: ...
def flatten(params: Any) -> tuple[Array, Any]:
    """Copy arrays into one aligned buffer; return it and views of it in the original shapes.

    A step of the buffer steps all of them in one kernel call, and collective communication needs one buffer too.

    Parameters
    ----------
    params : sequence or dict of arrays
        All of one dtype.

    Returns
    -------
    buffer : array
        All elements, one after another, aligned to a cache line of 64 bytes.
    views : list or dict of arrays
        Views of the buffer, arranged as `params`.

    Raises
    ------
    TypeError
        For mixed dtypes, and for anything that is not a supported array.
    ValueError
        If there is no array.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> flat, (w, b) = proptim.flatten([np.ones((2, 3)), np.zeros(3)])
    >>> opt = proptim.SGD([flat], lr=0.5)
    >>> opt.step([np.ones(9)])
    >>> w[0], b
    (array([0.5, 0.5, 0.5]), array([-0.5, -0.5, -0.5]))
    """
    if is_array(params) or not isinstance(params, Iterable) or isinstance(params, (set, frozenset)):
        raise TypeError(f"params is {type(params).__name__}; expected a sequence or dict of arrays")
    named = isinstance(params, Mapping)
    items = list(params.items() if isinstance(params, Mapping) else enumerate(params))
    arrays = [as_array(a, f"params[{key!r}]") for key, a in items]
    if not arrays:
        raise ValueError("params is empty; expected at least one array")
    dtype = arrays[0].dtype
    for (key, _), array in zip(items, arrays, strict=True):
        if array.dtype != dtype:
            raise TypeError(
                f"params[{key!r}] is {name_of(array.dtype)}; expected {name_of(dtype)}, the dtype of the first"
            )
    size = sum(a.size for a in arrays)
    room = np.empty(size * dtype.itemsize + CACHE_LINE, np.uint8)
    start = -room.ctypes.data % CACHE_LINE
    buffer = room[start : start + size * dtype.itemsize].view(dtype)
    views, begin = [], 0
    for array in arrays:
        view = buffer[begin : begin + array.size].reshape(array.shape)
        view[...] = array
        views.append(shown(view))
        begin += array.size
    return shown(buffer), dict(zip(params, views, strict=True)) if named else views


def decay_groups(
    params: Any, weight_decay: Schedulable, without: Callable[[str | None, Array], bool] | None = None
) -> list[dict[str, Any]]:
    """Make two parameter groups: "decay" with the matrices, and "no_decay" with the biases and scales.

    Weight decay is meant for matrices; it would pull biases and the scales of normalization layers towards zero, which
    does not regularize a model.

    Parameters
    ----------
    params : sequence or dict of arrays
        As for an optimizer, but not groups.
    weight_decay : float or schedule
        Weight decay of the first group; that of the second is 0.
    without : callable, optional
        Called with the name, or None, and the array; returns whether it belongs to the second group. By default an
        array with fewer than two dimensions does.

    Returns
    -------
    groups : list of dicts
        To be passed to any optimizer; a group that would be empty is left out.

    Raises
    ------
    TypeError
        For anything that is not a supported array.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> params = {"l1": {"w": np.ones((2, 3)), "b": np.zeros(3)}}
    >>> opt = proptim.AdamW(proptim.decay_groups(params, 0.1), lr=1e-3)
    >>> [(group["name"], group["weight_decay"]) for group in opt.param_groups]
    [('decay', 0.1), ('no_decay', 0.0)]
    >>> [name for name, _ in proptim.decay_groups(params, 0.1, lambda name, array: name.endswith(".w"))[1]["params"]]
    ['l1.w']
    """
    if is_array(params) or not isinstance(params, Iterable) or isinstance(params, (set, frozenset)):
        raise TypeError(f"params is {type(params).__name__}; expected a sequence or dict of arrays")
    parts: tuple[list[Any], list[Any]] = ([], [])
    for i, (name, given) in enumerate(named(params)):
        array = as_array(given, f"params[{i}]" + (f' ("{name}")' if name is not None else ""))
        second = array.ndim < 2 if without is None else bool(without(name, array))
        parts[second].append(given if name is None else (name, given))
    groups: list[dict[str, Any]] = [
        {"params": parts[0], "weight_decay": weight_decay, "name": "decay"},
        {"params": parts[1], "weight_decay": 0.0, "name": "no_decay"},
    ]
    return [group for group in groups if group["params"]]
