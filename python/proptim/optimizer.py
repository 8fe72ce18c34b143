"""Everything about an optimizer that is not its rule: groups, state, the step, saving and loading."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar

import numpy as np

from proptim import _backend
from proptim._arrays import Array, as_array, check_disjoint, check_writable, first_nonfinite, real_view
from proptim._options import GROUP_OPTIONS, Hyperparameter, Options, Setting
from proptim._parameters import (
    Clock,
    Group,
    Parameter,
    Schedulable,
    Values,
    at_step,
    check_gradients,
    check_number,
    is_schedule,
    match_gradients,
    parse_groups,
    parse_parameters,
    state_arrays,
)


@dataclass(eq=False)
class Cohort:
    """Parameters of one group that have made the same steps, and so share one row of coefficients."""

    group: Group
    active: bool
    members: list[Parameter]
    stages: tuple[float, ...] = ()


class Optimizer:
    """Base of all optimizers: groups, state, the step, saving and loading; a subclass adds one rule.

    Every optimizer takes, beside its own hyperparameters, these options by keyword.

    Parameters
    ----------
    params : sequence or dict of arrays, or sequence of groups
        What is stepped, in place: arrays of float32, float64, complex64 or complex128 (as pairs of reals), of any shape
        and strides, in CPU memory: NumPy arrays, torch tensors, anything with the buffer protocol or DLPack. A group
        is a dict with "params" and the hyperparameters that differ from the arguments.
    grads : like `params`, optional
        Gradients, bound once, so that `step()` needs no argument. Shape and dtype are those of the parameters.
    weight_decay : float or schedule, default 0
        L2 penalty added to the gradient, or decoupled.
    decoupled_weight_decay : bool, default False
        Multiply the parameter by 1 - lr * weight_decay instead, before the rule.
    maximize : bool, default False
        Step up the gradient instead of down.
    clip_value : float or schedule, optional
        Clip every element of the gradient to [-clip_value, clip_value].
    clip_norm : float or schedule, optional
        Scale all gradients so that their global norm is at most this, as ``torch.nn.utils.clip_grad_norm_``.
    grad_scale : float or schedule, default 1
        Factor on every gradient: the inverse of a loss scale.
    nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        What to do about NaN and infinity in gradients: as IEEE does, leave everything as it is and count the step in
        `skipped`, or raise FloatingPointError.
    max_skips : int, optional
        With "skip", raise after this many skips in a row.
    zero_grads : bool, default False
        Set the gradients to zero as part of the step, also of a skipped one.
    flush_denormals : bool, default False
        Set subnormal numbers in the state to zero after the step.
    threads : int or "auto", default "auto"
        How many to step on; "auto" takes as many as help, decided by measuring.
    backend : {"c", "numba", "numpy"}, optional
        Who runs the rule; what `proptim.backend` says if it is not given.

    Attributes
    ----------
    param_groups : list of dict
        The hyperparameters and parameters of each group.
    defaults : dict
        The hyperparameters of groups that do not name their own.
    skipped : int
        Steps that were skipped.
    grad_norm : float or None
        The global norm of the gradients at the last step, before clipping; only with `clip_norm`.

    Raises
    ------
    ValueError
        For an option or hyperparameter out of range, read-only arrays, arrays that share memory, shapes that differ.
    TypeError
        For an unknown keyword, and for what is no array of a supported dtype in CPU memory.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> w, b = np.ones(2), np.zeros(1)
    >>> opt = proptim.SGD([{"params": [w]}, {"params": [b], "lr": 1.0}], lr=0.5, clip_norm=5.0)
    >>> opt.step([np.array([6.0, 8.0]), np.array([0.0])])
    >>> w.round(6), opt.grad_norm
    (array([-0.5, -1. ]), 10.0)
    >>> opt.lr = 0.1
    >>> [group["lr"] for group in opt.param_groups]
    [0.1, 0.1]

    Notes
    -----
    Hyperparameters, `weight_decay`, `decoupled_weight_decay`, `maximize` and `clip_value` can be set at any time for
    each group, and for all groups as attributes. The numbers among them, `clip_norm` and `grad_scale` may be schedules:
    callables of the number of completed steps, see `proptim.schedules`.

    A gradient is scaled (`grad_scale`, `clip_norm`, `maximize`), clipped by value, and then gets its L2 penalty.

    A subclass states `states`, the names of its state arrays; `optional`, the hyperparameter that switches on some of
    them; `rule`, the update itself; `check`, which hyperparameters are legal; and `advance`, the numbers that the rule
    needs at a step.
    """

    kernel: ClassVar[str]
    """Name of the rule in `csrc/rules.def`."""
    coef_names: ClassVar[tuple[str, ...]]
    """Names of the numbers that the rule takes after its arrays."""
    states: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[Mapping[str, str]] = {}
    clock_start: ClassVar[Mapping[str, float]] = {"step": 0}
    fixed: ClassVar[frozenset[str]] = frozenset()
    """Hyperparameters without effect after construction."""
    rule: Callable[..., tuple[Any, ...]]

    cases: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Sets of hyperparameters that between them reach every branch of the rule: what selftest and tests go through."""

    flags: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that are true or false."""

    clip_norm, grad_scale, nonfinite, max_skips = Setting(), Setting(), Setting(), Setting()
    flush_denormals, threads, backend = Setting(), Setting(fixed=True), Setting(fixed=True)

    def __init_subclass__(cls) -> None:
        parameters = inspect.signature(cls.__init__).parameters.values()
        cls.flags = (
            *(k for k, v in GROUP_OPTIONS.items() if v is False),
            *(p.name for p in parameters if p.default is False),
        )
        given = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"self", "params"}
        for name in {*GROUP_OPTIONS, *given}:
            if not hasattr(cls, name):
                setattr(cls, name, Hyperparameter(name))
        if "rule" in vars(cls):
            cls.kernel = cls.__module__.removeprefix("proptim.")  # the C text is that of our module, of no other class
            cls.coef_names = tuple(inspect.signature(cls.rule).parameters)[2 + len(cls.states) :]

    # What a subclass says of its rule ----------------------------------------------------------------------------

    @staticmethod
    def check(h: Values) -> None:
        """Raise ValueError or TypeError for a hyperparameter that is not legal."""

    @staticmethod
    def advance(h: Values, clock: Clock, loss: float | None) -> tuple[tuple[float, ...], Clock]:
        """Coefficients of the step that follows `clock`, and the clock after that step."""
        raise NotImplementedError

    @staticmethod
    def check_clock(clock: Clock) -> None:
        """Raise ValueError for a clock, as a file may have it, that no steps lead to."""

    @staticmethod
    def steady(h: Values) -> bool:
        """Whether `advance` gives the same coefficients at every step."""
        return False

    @staticmethod
    def needs_loss(h: Values) -> bool:
        """Whether `step` must be given the loss."""
        return False

    @staticmethod
    def initial(h: Values, state: str) -> float:
        """First value of a state array."""
        return 0.0

    @staticmethod
    def show_state(state: dict[str, Array]) -> dict[str, Array]:
        """State arrays as the user sees them, under torch's names."""
        return state

    @staticmethod
    def read_state(state: dict[str, Array]) -> dict[str, Array]:
        """Undo `show_state`; raise ValueError for values that it never shows."""
        return state

    # Construction ------------------------------------------------------------------------------------------------

    def __init__(self, params: Any, hyper: dict[str, Any], options: Options) -> None:
        for key in options:
            if key not in Options.__annotations__:
                raise TypeError(
                    f"{type(self).__name__} got an unexpected keyword argument {key!r}; expected some of: "
                    f"{', '.join([*hyper, *Options.__annotations__])}"
                )
        self.defaults = {**hyper, **{k: options.get(k, v) for k, v in GROUP_OPTIONS.items()}}
        self.clip_norm = options.get("clip_norm")
        self.grad_scale = options.get("grad_scale", 1.0)
        self.nonfinite = options.get("nonfinite", "propagate")
        self.max_skips = options.get("max_skips")
        self._zero_grads = is_on("zero_grads", options.get("zero_grads", False))
        self.flush_denormals = options.get("flush_denormals", False)
        self.threads = options.get("threads", "auto")
        self.backend = options.get("backend") or _backend.backend()
        self.skipped = 0
        self.grad_norm: float | None = None
        self.param_groups: list[Group] = []
        self._parameters: list[Parameter] = []
        self._skips_in_a_row = 0
        self._round: set[int] = set()
        self._cohorts: list[Cohort] | None = None
        self._values: list[Values | None] = []  # of the cohorts, at the last step
        self._given: list[Any] = []
        self._grads: list[Array | None] = []
        self._check_options()
        for group in parse_groups(params):
            self._add_group(group, 0)
        self._plan = self._build(None)
        if options.get("grads") is not None:
            self._bind(options["grads"])

    def _check_options(self) -> None:
        """Check the options that are not a group's."""
        self._limits(0)
        _backend.thread_count(self.threads)
        _backend.plan_type(self.backend)

    def _limits(self, steps: int) -> tuple[float, float | None]:
        """`grad_scale` and `clip_norm` after `steps` completed steps, checked like all that can be set at any time."""
        if self.nonfinite not in ("propagate", "skip", "raise"):
            raise ValueError(f"Invalid nonfinite policy: {self.nonfinite!r} (expected 'propagate', 'skip' or 'raise')")
        if self.max_skips is not None:
            check_number("max_skips value", self.max_skips)
        is_on("flush_denormals", self.flush_denormals)
        scale, limit = at_step(self.grad_scale, steps), at_step(self.clip_norm, steps)
        check_number("grad_scale value", scale, low=-math.inf)
        if limit is not None:
            check_number("clip_norm value", limit)
        return float(scale), limit

    def _add_group(self, given: Mapping[str, Any], steps: int) -> None:
        if "params" not in given:
            raise ValueError(f'a parameter group has only {sorted(given)}; expected the key "params" too')
        for key in given:
            if key != "params" and key not in self.defaults:
                raise ValueError(f"unknown hyperparameter {key!r}; known here: {', '.join(sorted(self.defaults))}")
        group = Group({**self.defaults, **given}, self.fixed)
        fresh = parse_parameters(group, self._parameters, tuple(self.clock_start.values()))
        bound = [(p.grad_label, g) for p, g in zip(self._parameters, self._grads, strict=True) if g is not None]
        check_disjoint([(p.label, p.array) for p in fresh], bound + state_arrays(self._parameters))
        self.settled(group, steps)
        for parameter in fresh:
            self._grow(parameter)
        group.data["params"] = [p.given for p in fresh]
        self.param_groups.append(group)
        self._parameters += fresh
        self._given = [*self._given, *[None] * len(fresh)]  # not in place: the two may be one list
        self._grads = [*self._grads, *[None] * len(fresh)]

    @classmethod
    def settled(cls, group: Group, steps: int) -> Values:
        """The hyperparameters of a group after `steps` completed steps, checked."""
        for key in cls.fixed:
            if is_schedule(group[key]):
                raise ValueError(
                    f"Invalid {key}: a schedule (expected a number: {cls.__name__} reads {key} only once, before the "
                    "first step)"
                )
        h = group.at(steps)
        for key in cls.flags:
            is_on(key, h[key])
        check_number("weight_decay value", h["weight_decay"])
        if h["clip_value"] is not None:
            check_number("clip_value", h["clip_value"])
        cls.check(h)
        group.values_now = h
        return h

    @classmethod
    def wanted(cls, group: Group) -> tuple[str, ...]:
        """Names of the state arrays that the hyperparameters of a group ask for."""
        return tuple(name for name in cls.states if name not in cls.optional or group[cls.optional[name]])

    def _grow(self, parameter: Parameter) -> None:
        """Add the state arrays that the hyperparameters ask for and that are not there yet."""
        for name in self.wanted(parameter.group):
            if name not in parameter.state:
                assert parameter.group.values_now is not None
                array = np.empty_like(parameter.array, subok=False)
                real_view(array)[...] = self.initial(parameter.group.values_now, name)
                parameter.state = {**parameter.state, name: array}

    def _rebuild(self) -> None:
        """Put another plan in the place of this one; the clocks are then with the parameters."""
        self._dissolve()
        self._plan = self._build(self._plan)

    def _build(self, before: Any) -> Any:
        """A plan of all parameters, with the claim and the count of the plan before it."""
        self._ready = self._quick = self._steady = False
        self._note_plain()
        wanted = {id(group): self.wanted(group) for group in self.param_groups}
        arrays = [[p.state.get(s) if s in wanted[id(p.group)] else None for s in self.states] for p in self._parameters]
        segments = [
            (real_view(p.array), *(None if array is None else real_view(array) for array in state))
            for p, state in zip(self._parameters, arrays, strict=True)
        ]
        plan = _backend.plan_type(self.backend)(type(self), segments, *_backend.thread_count(self.threads), before)
        if any(p.state.keys() - wanted[id(p.group)] for p in self._parameters):
            plan.disjoint = False  # state arrays that are off: the plan cannot tell what overlaps them
        plan.bind([None if g is None else real_view(g) for g in self._grads])
        grown = all(p.state.keys() >= set(wanted[id(p.group)]) for p in self._parameters)
        self._planned = list(wanted.values()) if grown else None  # state arrays in the plan, group by group
        return plan

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group of parameters.

        Parameters
        ----------
        param_group : dict
            "params", and the hyperparameters that differ from the defaults.

        Raises
        ------
        ValueError
            For unknown keys, and for arrays or names that are there already; nothing has changed then.
        TypeError
            For what is no dict, or holds what is no array; nothing has changed then.
        """
        if not isinstance(param_group, Mapping):
            raise TypeError(f"param_group is {type(param_group).__name__}; expected a dict")
        with self._plan.claim, self._or_nothing():
            self._add_group(param_group, self.steps)
            self._rebuild()

    # Gradients ---------------------------------------------------------------------------------------------------

    def _bind(self, grads: Any) -> None:
        """Check all gradients, then take them all."""
        self._take(match_gradients(grads, self._parameters, self.param_groups))

    def _take(self, given: list[Any]) -> None:
        for p in self._parameters:
            p.check_home()
        arrays = [
            old if g is h else None if g is None else as_array(g, p.grad_label)
            for p, g, h, old in zip(self._parameters, given, self._given, self._grads, strict=True)
        ]
        if self._plain and self._plan.offer(arrays):
            self._given, self._grads = list(given), arrays
            return
        triples = list(zip(self._parameters, arrays, self._grads, strict=True))
        fresh = [(p, a) for p, a, old in triples if a is not None and a is not old]
        kept = [(p, a) for p, a, old in triples if a is not None and a is old]
        if fresh:
            check_gradients(fresh, kept, self._parameters, self.zero_grads)
        if any((a is None) != (old is None) for _, a, old in triples):
            self._dissolve()
        self._plan.bind([None if a is None else real_view(a) for a in arrays])
        self._given, self._grads = list(given), arrays

    @property
    def zero_grads(self) -> bool:
        """Whether a step sets the gradients to zero; switching it on asks for writable ones."""
        return self._zero_grads

    @zero_grads.setter
    def zero_grads(self, on: bool) -> None:
        if is_on("zero_grads", on):
            bound = [(p, g) for p, g in zip(self._parameters, self._grads, strict=True) if g is not None]
            check_gradients(bound, [], self._parameters, zero=True)
        self._zero_grads = bool(on)
        self._ready = self._quick = False
        self._note_plain()

    def _note_plain(self) -> None:
        """Whether gradients need no other look than at dtype, shape and overlap: real ones, which are only read."""
        self._plain = not self._zero_grads and all(p.array.dtype.kind == "f" for p in self._parameters)

    def zero_grad(self) -> None:
        """Set the gradients that are bound, or were last passed, to zero."""
        with self._plan.claim:
            bound = [(p, g) for p, g in zip(self._parameters, self._grads, strict=True) if g is not None]
            for p, grad in bound:
                check_writable(grad, p.grad_label)
            for _, grad in bound:
                grad[...] = 0

    # The step ----------------------------------------------------------------------------------------------------

    def step(self, grads: Any = None, *, loss: float | None = None) -> None:
        """Step every parameter once, in place.

        Parameters
        ----------
        grads : like `params`, optional
            A gradient for each parameter, None for one that is left out this time. They stay bound; without `grads`
            those bound before are read again.
        loss : float, optional
            For rules that look at it: Rprop's "irprop+".

        Raises
        ------
        ValueError, TypeError
            For gradients that do not fit; nothing has changed then.
        FloatingPointError
            As `nonfinite` says; nothing has changed then.
        RuntimeError
            If another thread is stepping this optimizer.
        """
        # Nothing but gradients and clocks may have changed since the last step, whose numbers stand in the plan.
        if self._quick and (grads is None or (self._plain and type(grads) is list)):
            for group in self.param_groups:
                if group.values_now is None:
                    break
            else:
                if self._plan.repeat(self, grads, None if self._steady else self.advance, self._values):
                    return
        with self._plan.claim:
            self._quick = False  # until this step has been made: a refused one leaves nothing to repeat
            given, bound, steps = self._given, self._grads, self.steps
            try:
                self._step(grads, loss)
            except BaseException:
                if grads is not None and self.steps == steps:  # refused, and not interrupted after it
                    self._rebind(given, bound)
                raise

    def _step(self, grads: Any, loss: float | None) -> None:
        if self._plain and type(grads) is list and self._plan.offer(grads):
            self._given = self._grads = grads.copy()
        elif grads is not None:
            self._bind(grads)
        if any(group.values_now is None for group in self.param_groups):
            self._ready = False
        if not (self._ready and self._blind) and not self._prepare(loss):
            return
        cohorts = self._cohorts or ()
        rows: list[tuple[float, ...] | None] = []
        after = []
        for cohort, clock in zip(cohorts, self._plan.clocks, strict=True):
            coefs = None
            if cohort.active:
                coefs, clock = self.numbers(cohort.group, clock, loss)
            rows.append(None if coefs is None else (*coefs, *cohort.stages))
            after.append(clock)
        self._plan.step(rows, after, self._round)
        if self._ready and self._blind:
            self._values = [c.group.values_now if c.active else None for c in cohorts]
            values = [h for h in self._values if h is not None]
            self._quick = not any(map(self.needs_loss, values))
            self._steady = all(map(self.steady, values))

    def _rebind(self, given: list[Any], grads: list[Array | None]) -> None:
        """Have these gradients again, after a step with others was refused."""
        self._plan.bind([None if g is None else real_view(g) for g in grads])
        self._given, self._grads = given, grads
        self._dissolve()

    def _prepare(self, loss: float | None) -> bool:
        """Look at everything that may have changed but the gradients' arrays; False if the step is to be skipped.

        What can be refused comes first, what changes something last.
        """
        if not self._ready:
            self._settle(self.steps)
            self._bounds = self._limits(self.steps)
        for group in self.param_groups:
            self.check_loss(group.values_now or {}, loss)
        factor, norm = self._factor(*self._bounds)
        if factor is None:
            return False
        if not self._ready:
            self._fit_plan()
        for cohort in self._cohorts or self._gather():
            cohort.stages = self.stages(cohort.group.values_now or {}, factor, self.zero_grads, self.flush_denormals)
        self._skips_in_a_row = 0
        if norm is not None:
            self.grad_norm = norm
        self._blind = self.clip_norm is None and self.nonfinite == "propagate"  # no step looks at its gradients
        self._ready = not (  # all that does not depend on the gradients stands in the plan until something changes
            callable(self.clip_norm) or callable(self.grad_scale) or any(group.scheduled for group in self.param_groups)
        )
        return True

    def step_param(self, key: int | str, grad: Any) -> None:
        """Step one parameter as soon as its gradient exists and is still in cache.

        Going round all parameters equals one `step`, and `steps` counts the rounds. Not with `clip_norm` or "irprop+",
        which need all gradients or the loss. Raises as `step` does.

        Parameters
        ----------
        key : int or str
            Index or name of the parameter.
        grad : array
            Its gradient.
        """
        with self._plan.claim:
            index = self._index(key)
            given, bound = self._given, self._grads
            before = given[index], bound[index]
            self._dissolve()
            clock = self._parameters[index].clock
            try:
                self._step_param(index, grad)
            except BaseException:
                if self._parameters[index].clock is clock:  # refused, and not interrupted after it
                    given[index], bound[index] = before
                    self._rebind(given, bound)
                raise

    def _step_param(self, index: int, grad: Any) -> None:
        if self.clip_norm is not None:
            raise ValueError("step_param cannot clip the global norm; expected step() with all gradients")
        if grad is None:
            raise TypeError(f"{self._parameters[index].grad_label} is None; expected an array")
        if grad is not self._given[index]:
            if self._plain and self._plan.offer_one(index, grad):
                self._given[index] = self._grads[index] = grad
            else:
                self._take([*self._given[:index], grad, *self._given[index + 1 :]])
        begins = not self._round or index in self._round
        now = self.steps if begins else self.steps - 1  # schedules see one count all through a round
        self._settle(now)
        p = self._parameters[index]
        self.check_loss(p.group.values_now or {}, None)
        factor, _ = self._factor(*self._limits(now), index)
        if factor is None:
            return
        self._fit_plan()
        coefs, clock = self.numbers(p.group, p.clock, None)
        stages = self.stages(p.group.values_now or {}, factor, self.zero_grads, self.flush_denormals)
        self._skips_in_a_row = 0
        self._plan.step_one(index, (*coefs, *stages), p, clock, self._round)

    @contextmanager
    def _or_nothing(self) -> Iterator[None]:
        """Put everything back if what is done inside fails half-way: it must replace values, not change them."""
        kept = [(vars(each), vars(each).copy()) for each in (self, *self._parameters, *self.param_groups)]
        groups, parameters = len(self.param_groups), len(self._parameters)
        try:
            yield
        except BaseException:
            for now, before in kept:
                now.update(before)
            del self.param_groups[groups:], self._parameters[parameters:]
            raise

    def _index(self, key: int | str) -> int:
        if isinstance(key, int) and 0 <= key < len(self._parameters):
            return key
        names = [p.name for p in self._parameters]
        if isinstance(key, str) and key in names:
            return names.index(key)
        known = names if names[0] is not None else f"0 to {len(names) - 1}"
        raise ValueError(f"unknown parameter {key!r}; expected one of: {known}")

    def _settle(self, steps: int) -> None:
        """Evaluate and check the hyperparameters that have changed since the last step."""
        changed = [group for group in self.param_groups if group.values_now is None]
        try:
            for group in self.param_groups:
                if group.values_now is None or group.scheduled:
                    self.settled(group, steps)
        except BaseException:
            for group in changed:
                group.touched()
            raise

    def _fit_plan(self) -> None:
        """Have the state arrays in the plan that the hyperparameters ask for."""
        if self._planned != [self.wanted(group) for group in self.param_groups]:
            with self._or_nothing():
                for p in self._parameters:
                    self._grow(p)
                self._rebuild()

    def _factor(self, scale: float, limit: float | None, only: int = -1) -> tuple[float | None, float | None]:
        """The factor on all gradients of this step, None if it is to be skipped; and their norm if it was measured."""
        if all(g is None for g in self._grads):
            raise ValueError("step() has no gradients; pass them, step(grads), or bind them with grads= before")
        if self.nonfinite == "propagate" and limit is None:
            return scale, None
        squares, finite = self._plan.reduce(only)
        if not finite and self.nonfinite != "propagate":
            self._refuse(range(len(self._grads)) if only < 0 else [only])
            return None, None
        if limit is None:
            return scale, None
        norm = math.sqrt(squares) * abs(scale)
        return scale * clip_factor(norm, limit), norm

    def _refuse(self, indices: Iterable[int]) -> None:
        """Skip this step or raise, because a gradient is not finite."""
        grads = [(self._parameters[i], g) for i in indices if (g := self._grads[i]) is not None]
        p, grad, index = next((p, g, at) for p, g in grads if (at := first_nonfinite(g)) is not None)
        message = f"{p.grad_label} is {grad[index]} at index {index}; expected finite gradients"
        if self.nonfinite == "raise":
            raise FloatingPointError(message)
        if self.max_skips is not None and self._skips_in_a_row >= self.max_skips:
            raise FloatingPointError(f"{message}, after {self.max_skips} skips in a row (max_skips)")
        if self.zero_grads:  # a gradient that is added up would stay NaN for ever
            for p, g in grads:
                check_writable(g, p.grad_label)
            for _, g in grads:
                g[...] = 0
        self.skipped += 1
        self._skips_in_a_row += 1

    @classmethod
    def numbers(cls, group: Group, clock: Clock, loss: float | None) -> tuple[tuple[float, ...], Clock]:
        """Coefficients of the rule at the step after `clock`, and the clock after it."""
        h = group.values_now
        assert h is not None
        cls.check_loss(h, loss)
        if loss is not None and cls.needs_loss(h):
            loss = -float(loss) if h["maximize"] else float(loss)
        return cls.advance(h, clock, loss)

    @classmethod
    def check_loss(cls, h: Values, loss: float | None) -> None:
        """Raise ValueError if the rule needs a loss and there is none."""
        if loss is None and cls.needs_loss(h):
            raise ValueError(f"{h['variant']} compares losses; expected step(..., loss=the loss)")

    @staticmethod
    def stages(h: Values, factor: float, zero_grads: bool, flush: bool) -> tuple[float, ...]:
        """Coefficients of the stages, in the order of `_stages.NEUTRAL`."""
        decoupled, clip = h["decoupled_weight_decay"], h["clip_value"]
        return (
            1.0 - h["lr"] * h["weight_decay"] if decoupled else 1.0,
            -factor if h["maximize"] else factor,
            math.inf if clip is None else clip,
            0.0 if decoupled else h["weight_decay"],
            float(zero_grads),
            float(flush),
        )

    # Clocks: with the cohorts while there are any, otherwise with the parameters ------------------------------------

    def _gather(self) -> list[Cohort]:
        """Put parameters that step alike into cohorts, and tell the plan."""
        cohorts: dict[tuple[int, Clock, bool], Cohort] = {}
        for p, grad in zip(self._parameters, self._grads, strict=True):
            active = grad is not None
            key = (id(p.group), p.clock, active)
            cohorts.setdefault(key, Cohort(p.group, active, [])).members.append(p)
        self._cohorts = list(cohorts.values())
        row = {id(p): i for i, cohort in enumerate(self._cohorts) for p in cohort.members}
        self._plan.assign([row[id(p)] for p in self._parameters], [clock for _, clock, _ in cohorts])
        return self._cohorts

    def _hand_back(self) -> None:
        """Let the parameters have the clocks of their cohorts."""
        for cohort, clock in zip(self._cohorts or (), self._plan.clocks, strict=self._cohorts is not None):
            for p in cohort.members:
                p.clock = clock

    def _dissolve(self) -> None:
        """Give the clocks back to the parameters, which then need not step alike."""
        self._hand_back()
        self._cohorts = None
        self._ready = self._quick = False

    @property
    def steps(self) -> int:
        """Completed steps; skipped ones do not count."""
        return int(self._plan.steps)

    # What has been learned ---------------------------------------------------------------------------------------

    @property
    def lr(self) -> float:
        """Learning rate of the coming step, of the first group; setting it sets every group's."""
        return float(at_step(self.param_groups[0]["lr"], self.steps))

    @lr.setter
    def lr(self, value: Schedulable) -> None:
        for group in self.param_groups:
            group["lr"] = value

    @property
    def state(self) -> dict[int | str, dict[str, Any]]:
        """Name or index of each parameter -> its state arrays and counts."""
        self._hand_back()
        return {
            i if p.name is None else p.name: {
                **dict(zip(self.clock_start, p.clock, strict=True)),
                **self.show_state(p.state),
            }
            for i, p in enumerate(self._parameters)
        }

    def state_dict(self) -> dict[str, Any]:
        """A copy of state and hyperparameters, under torch.optim's keys.

        Returns
        -------
        dict
            "state", "param_groups" and counts, made of dicts, lists, arrays and numbers. Schedules are code and not
            part of it.
        """
        from proptim import checkpoint

        with self._plan.claim:
            return checkpoint.dump(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the state and hyperparameters of another optimizer.

        Parameters
        ----------
        state_dict : dict
            What `state_dict` of this class, or of the torch.optim class of this name, returned.

        Raises
        ------
        ValueError, TypeError
            If it does not fit these parameters; nothing has changed then.
        """
        from proptim import checkpoint

        with self._plan.claim, self._or_nothing():
            loaded = checkpoint.parse(self, state_dict)
            self._dissolve()
            for p, (clock, state) in loaded.states.items():
                p.clock, p.state = clock, state
            for group, data in zip(self.param_groups, loaded.groups, strict=True):
                group.data = {**group.data, **data}
                group.touched()
            self.skipped, self._skips_in_a_row, self._round = loaded.skipped, loaded.skips_in_a_row, loaded.round
            self._planned = None  # have a plan made of the new arrays
            self._settle(loaded.steps)
            self._fit_plan()
            self._plan.steps = loaded.steps

    def save(self, path: str | PathLike[str]) -> None:
        """Write `state_dict()` to an .npz file, which is there whole or not at all.

        Parameters
        ----------
        path : str or path-like
            An existing file is replaced.
        """
        from proptim import checkpoint

        checkpoint.write(path, self.state_dict())

    def load(self, path: str | PathLike[str]) -> None:
        """`load_state_dict` from a file that `save` wrote; never executes anything in it.

        Parameters
        ----------
        path : str or path-like
            The file.

        Raises
        ------
        ValueError
            Naming the file, if it is damaged or does not fit; nothing has changed then.
        """
        from proptim import checkpoint

        saved = checkpoint.read(path)
        try:
            self.load_state_dict(saved)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"{os.fspath(path)} does not fit this {type(self).__name__}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        with self._plan.claim:
            self._dissolve()
            return {**{k: v for k, v in vars(self).items() if k != "_plan"}, "steps": self.steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        steps = state.pop("steps")
        vars(self).update(state)
        for p in self._parameters:  # views of what was copied, not copies of their own
            p.array = as_array(p.given, p.label)
            p.take_home()
        self._grads = [
            None if g is None else as_array(g, p.grad_label) for p, g in zip(self._parameters, self._given, strict=True)
        ]
        self._plan = self._build(None)
        self._plan.steps = steps

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} (backend={self.backend!r}, threads={self.threads!r}, steps={self.steps}"]
        for i, group in enumerate(self.param_groups):
            count = sum(p.array.size for p in self._parameters if p.group is group)
            lines.append(f"Parameter Group {i}: {len(group['params'])} arrays, {count:,} weights")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join(lines) + "\n)"


def is_on(label: str, value: Any) -> bool:
    """A switch; TypeError for what is neither True nor False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"Invalid {label}: {value!r} (expected True or False)")
    return bool(value)


def clip_factor(norm: float, max_norm: float) -> float:
    """The factor that brings `norm` down to `max_norm`, as torch.nn.utils.clip_grad_norm_; NaN stays NaN."""
    factor = float(max_norm) / (norm + 1e-6)  # 1e-6: torch's guard against a zero norm
    return 1.0 if factor > 1.0 else factor
