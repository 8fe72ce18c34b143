"""Everything about an optimizer that is not its rule: groups, state, the step, saving and loading."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np

from proptim import _backend, checkpoint
from proptim._arrays import Array, as_array, check_disjoint, check_writable, real_view
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


class Options(TypedDict, total=False):
    """Keyword options that every optimizer takes; see `Optimizer`."""

    grads: Any
    weight_decay: Schedulable
    decoupled_weight_decay: bool
    maximize: bool
    clip_value: Schedulable | None
    clip_norm: Schedulable | None
    grad_scale: Schedulable
    nonfinite: Literal["propagate", "skip", "raise"]
    max_skips: int | None
    zero_grads: bool
    flush_denormals: bool
    threads: int | Literal["auto"]
    backend: Literal["c", "numba", "numpy"] | None


GROUP_OPTIONS: dict[str, Any] = {
    "weight_decay": 0.0,
    "decoupled_weight_decay": False,
    "maximize": False,
    "clip_value": None,
}
"""The options that a parameter group may override, with their defaults."""


@dataclass(eq=False)
class Cohort:
    """Parameters of one group that have made the same steps, and so share one row of coefficients."""

    group: Group
    clock: Clock
    active: bool
    members: list[Parameter]
    stages: tuple[float, ...] = ()


class Optimizer:
    """Base of all optimizers; a subclass adds one rule.

    Options, all keyword-only:

    grads : arrays like `params`, bound once, so that `step()` needs no argument.
    weight_decay : L2 penalty added to the gradient, or decoupled (param *= 1 - lr * weight_decay) with
        `decoupled_weight_decay=True`.
    maximize : step up the gradient instead of down.
    clip_value : clip every element of the gradient to [-clip_value, clip_value].
    clip_norm : scale all gradients so that their global norm is at most clip_norm, as
        torch.nn.utils.clip_grad_norm_; the norm found is kept in `grad_norm`.
    grad_scale : factor on every gradient (the inverse of a loss scale).
    nonfinite : "propagate" NaN and inf as IEEE does, "skip" the step (counted in `skipped`), or "raise"
        FloatingPointError.
    max_skips : with "skip", raise after this many skips in a row.
    zero_grads : set the gradients to zero as part of the step, also of a skipped one.
    flush_denormals : set subnormal numbers in the state to zero after the step.
    threads : how many, or "auto": as many as help, decided by measuring.
    backend : "c", "numba" or "numpy"; None takes `proptim.backend()`.

    All hyperparameters and `weight_decay`, `decoupled_weight_decay`, `maximize` and `clip_value` can be set for
    each parameter group. The numbers among them, `clip_norm` and `grad_scale` may be schedules: callables of the
    number of completed steps.

    A subclass states `states`, the names of its state arrays; `optional`, the hyperparameter that switches on
    some of them; `rule`, the update itself; `check`, which hyperparameters are legal; and `advance`, the numbers
    that the rule needs at a step.
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

    flags: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that are true or false."""

    def __init_subclass__(cls) -> None:
        parameters = inspect.signature(cls.__init__).parameters.values()
        cls.flags = (
            *(k for k, v in GROUP_OPTIONS.items() if v is False),
            *(p.name for p in parameters if p.default is False),
        )
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
        self._zero_grads = bool(options.get("zero_grads", False))
        self.flush_denormals = bool(options.get("flush_denormals", False))
        self.threads = options.get("threads", "auto")
        self.backend = options.get("backend") or _backend.backend()
        self.skipped = 0
        self.grad_norm: float | None = None
        self.param_groups: list[Group] = []
        self._parameters: list[Parameter] = []
        self._steps = 0
        self._skips_in_a_row = 0
        self._round: set[int] = set()
        self._cohorts: list[Cohort] | None = None
        self._given: list[Any] = []
        self._grads: list[Array | None] = []
        self._check_options()
        for group in parse_groups(params):
            self._add_group(group)
        self._build()
        if options.get("grads") is not None:
            self._bind(options["grads"])

    def _check_options(self) -> None:
        """Check the options that are not a group's."""
        if self.max_skips is not None:
            check_number("max_skips value", self.max_skips)
        self._limits(0)
        _backend.thread_count(self.threads)
        _backend.plan_type(self.backend)

    def _limits(self, steps: int) -> tuple[float, float | None]:
        """`grad_scale` and `clip_norm` after `steps` completed steps, checked like all that can be set at any time."""
        if self.nonfinite not in ("propagate", "skip", "raise"):
            raise ValueError(f"Invalid nonfinite policy: {self.nonfinite!r} (expected 'propagate', 'skip' or 'raise')")
        scale, limit = at_step(self.grad_scale, steps), at_step(self.clip_norm, steps)
        check_number("grad_scale value", scale, low=-math.inf)
        if limit is not None:
            check_number("clip_norm value", limit)
        return float(scale), limit

    def _add_group(self, given: Mapping[str, Any]) -> None:
        if "params" not in given:
            raise ValueError(f'a parameter group has only {sorted(given)}; expected the key "params" too')
        for key in given:
            if key != "params" and key not in self.defaults:
                raise ValueError(f"unknown hyperparameter {key!r}; known here: {', '.join(sorted(self.defaults))}")
        group = Group({**self.defaults, **given}, self.fixed)
        fresh = parse_parameters(group, self._parameters, tuple(self.clock_start.values()))
        bound = [(p.grad_label, g) for p, g in zip(self._parameters, self._grads, strict=True) if g is not None]
        check_disjoint([(p.label, p.array) for p in fresh], bound + state_arrays(self._parameters))
        self.settled(group, self._steps)
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
            if not isinstance(h[key], (bool, np.bool_)):
                raise TypeError(f"Invalid {key}: {h[key]!r} (expected True or False)")
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
                parameter.state[name] = array

    def _rebuild(self) -> None:
        """Put another plan in the place of the claimed one; the clocks are then with the parameters."""
        self._dissolve()
        self._build()
        self._plan.claim()

    def _build(self) -> None:
        """Make the plan of all parameters."""
        self._ready = self._steady = False
        self._real = all(p.array.dtype.kind == "f" for p in self._parameters)
        wanted = {id(group): self.wanted(group) for group in self.param_groups}
        arrays = [[p.state.get(s) if s in wanted[id(p.group)] else None for s in self.states] for p in self._parameters]
        segments = [
            (real_view(p.array), *(None if array is None else real_view(array) for array in state))
            for p, state in zip(self._parameters, arrays, strict=True)
        ]
        self._plan = _backend.plan_type(self.backend)(type(self), segments, *_backend.thread_count(self.threads))
        self._plan.bind([None if g is None else real_view(g) for g in self._grads])
        grown = all(p.state.keys() >= set(wanted[id(p.group)]) for p in self._parameters)
        self._planned = list(wanted.values()) if grown else None  # state arrays in the plan, group by group

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group: a dict with "params" and the hyperparameters that differ from the defaults.

        Raises ValueError for unknown keys and for arrays or names that are there already, TypeError for what is
        no array; nothing has changed then.
        """
        if not isinstance(param_group, Mapping):
            raise TypeError(f"param_group is {type(param_group).__name__}; expected a dict")
        with self._alone():
            self._add_group(param_group)
            self._rebuild()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("threads", "backend") and "_plan" in vars(self):
            raise AttributeError(f"{name} is fixed at construction; expected no change: make a new optimizer")
        object.__setattr__(self, name, value)
        if not name.startswith("_"):  # an option: look at everything again before the next step
            object.__setattr__(self, "_ready", False)
            object.__setattr__(self, "_steady", False)

    # Gradients ---------------------------------------------------------------------------------------------------

    def _bind(self, grads: Any) -> None:
        """Check all gradients, then take them all."""
        self._take(match_gradients(grads, self._parameters, self.param_groups))

    def _take(self, given: list[Any]) -> None:
        arrays = [
            old if g is h else None if g is None else as_array(g, p.grad_label)
            for p, g, h, old in zip(self._parameters, given, self._given, self._grads, strict=True)
        ]
        if self._real and not self._zero_grads and self._plan.offer(arrays):
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
        if on:
            bound = [(p, g) for p, g in zip(self._parameters, self._grads, strict=True) if g is not None]
            check_gradients(bound, [], self._parameters, zero=True)
        self._zero_grads = bool(on)

    def zero_grad(self) -> None:
        """Set the gradients that are bound, or were last passed, to zero."""
        with self._alone():
            bound = [(p, g) for p, g in zip(self._parameters, self._grads, strict=True) if g is not None]
            for p, grad in bound:
                check_writable(grad, p.grad_label)
            for _, grad in bound:
                grad[...] = 0

    # The step ----------------------------------------------------------------------------------------------------

    def step(self, grads: Any = None, *, loss: float | None = None) -> None:
        """Step every parameter once, in place.

        `grads` mirrors `params`, with None for a parameter that is left out this time; they stay bound, and
        without `grads` the gradients bound before are read again. `loss` is for rules that look at it (irprop+).
        Raises ValueError or TypeError for gradients that do not fit, RuntimeError if another thread is stepping
        this optimizer, FloatingPointError as `nonfinite` says; nothing has changed then.
        """
        plain = type(grads) is list and self._real and not self._zero_grads
        # Nothing but gradients may have changed since the last step, whose coefficients stand in the plan.
        if self._steady and (plain or grads is None) and self._unchanged() and self._plan.repeat(grads):
            if grads is not None:
                self._given = self._grads = grads.copy()
            return
        with self._alone():
            self._steady = False  # until this step has been made: a refused one leaves nothing to repeat
            if plain and self._plan.offer(grads):
                self._given = self._grads = grads.copy()
            elif grads is not None:
                self._bind(grads)
            if not (self._ready and self._unchanged()) and not self._prepare():
                return
            cohorts = self._cohorts or ()
            steps = [self.numbers(c.group, c.clock, loss) if c.active else None for c in cohorts]
            self._plan.step([s and (*s[0], *c.stages) for s, c in zip(steps, cohorts, strict=True)])
            for cohort, step in zip(cohorts, steps, strict=True):
                if step is not None:
                    cohort.clock = step[1]
            self._steps += 1
            self._round.clear()
            self._steady = self._ready and all(g.values_now and self.steady(g.values_now) for g in self.param_groups)

    def _unchanged(self) -> bool:
        """Whether no group has been touched since the last step."""
        return None not in [group.values_now for group in self.param_groups]

    def _prepare(self) -> bool:
        """Look at everything that may have changed but the gradients' arrays; False if the step is to be skipped."""
        self._refresh(self._steps)
        factor = self._factor(self._steps)
        if factor is None:
            return False
        for cohort in self._cohorts or self._gather():
            cohort.stages = self.stages(cohort.group, factor, self.zero_grads, self.flush_denormals)
        self._ready = (
            self.clip_norm is None
            and self.nonfinite == "propagate"
            and not callable(self.grad_scale)
            and not any(group.scheduled for group in self.param_groups)
        )
        return True

    def step_param(self, key: int | str, grad: Any) -> None:
        """Step one parameter, by name or index, as soon as its gradient exists and is still in cache.

        Going round all parameters equals one `step`, and `steps` counts the rounds. Not with clip_norm or irprop+,
        which need all gradients or the loss. Raises as `step` does.
        """
        with self._alone():
            index = self._index(key)
            if self.clip_norm is not None:
                raise ValueError("step_param cannot clip the global norm; expected step() with all gradients")
            if grad is None:
                raise TypeError(f"{self._parameters[index].grad_label} is None; expected an array")
            if grad is not self._given[index]:
                self._take([*self._given[:index], grad, *self._given[index + 1 :]])
            self._dissolve()
            new_round = not self._round or index in self._round
            now = self._steps if new_round else self._steps - 1  # schedules see one count all through a round
            self._refresh(now)
            factor = self._factor(now, index)
            if factor is None:
                return
            p = self._parameters[index]
            coefs, clock = self.numbers(p.group, p.clock, None)
            stages = self.stages(p.group, factor, self.zero_grads, self.flush_denormals)
            self._plan.step_one(index, (*coefs, *stages))
            p.clock = clock
            if new_round:
                self._steps += 1
                self._round.clear()
            self._round.add(index)

    def _alone(self) -> _Alone:
        return _Alone(self)

    def _index(self, key: int | str) -> int:
        names = [p.name for p in self._parameters]
        if isinstance(key, str) and key in names:
            return names.index(key)
        if isinstance(key, int) and 0 <= key < len(names):
            return key
        known = names if names[0] is not None else f"0 to {len(names) - 1}"
        raise ValueError(f"unknown parameter {key!r}; expected one of: {known}")

    def _refresh(self, steps: int) -> None:
        """Take up what has changed in the groups since the last step."""
        changed = [group for group in self.param_groups if group.values_now is None]
        try:
            for group in self.param_groups:
                if group.values_now is None or group.scheduled:
                    self.settled(group, steps)
            if changed and self._planned != [self.wanted(group) for group in self.param_groups]:
                for p in self._parameters:
                    self._grow(p)
                self._rebuild()
        except BaseException:
            for group in changed:
                group.touched()
            raise

    def _factor(self, steps: int, only: int = -1) -> float | None:
        """The factor on all gradients of this step, or None if the step is to be skipped."""
        if all(g is None for g in self._grads):
            raise ValueError("step() has no gradients; pass them, step(grads), or bind them with grads= before")
        scale, limit = self._limits(steps)
        if self.nonfinite == "propagate" and limit is None:
            return scale
        squares, finite = self._plan.reduce(only)
        if not finite and self.nonfinite != "propagate":
            self._refuse(range(len(self._grads)) if only < 0 else [only])
            return None
        self._skips_in_a_row = 0
        if limit is None:
            return scale
        self.grad_norm = math.sqrt(squares) * abs(scale)
        return scale * clip_factor(self.grad_norm, limit)

    def _refuse(self, indices: Iterable[int]) -> None:
        """Skip this step or raise, because a gradient is not finite."""
        grads = [(self._parameters[i], g) for i in indices if (g := self._grads[i]) is not None]
        p, grad = next((p, g) for p, g in grads if not np.isfinite(g).all())
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(grad))[0])
        message = f"{p.grad_label} is {grad[index]} at index {index}; expected finite gradients"
        if self.nonfinite == "raise":
            raise FloatingPointError(message)
        if self.max_skips is not None and self._skips_in_a_row >= self.max_skips:
            raise FloatingPointError(f"{message}, after {self.max_skips} skips in a row (max_skips)")
        self.skipped += 1
        self._skips_in_a_row += 1
        if self.zero_grads:  # a gradient that is added up would stay NaN for ever
            for _, g in grads:
                g[...] = 0

    @classmethod
    def numbers(cls, group: Group, clock: Clock, loss: float | None) -> tuple[tuple[float, ...], Clock]:
        """Coefficients of the rule at the step after `clock`, and the clock after it."""
        h = group.values_now
        assert h is not None
        if cls.needs_loss(h):
            if loss is None:
                raise ValueError(f"{h['variant']} compares losses; expected step(..., loss=the loss)")
            loss = -float(loss) if h["maximize"] else float(loss)
        return cls.advance(h, clock, loss)

    @staticmethod
    def stages(group: Group, factor: float, zero_grads: bool, flush: bool) -> tuple[float, ...]:
        """Coefficients of the stages, in the order of `_stages.NEUTRAL`."""
        h = group.values_now
        assert h is not None
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
            cohorts.setdefault(key, Cohort(p.group, p.clock, active, [])).members.append(p)
        self._cohorts = list(cohorts.values())
        row = {id(p): i for i, cohort in enumerate(self._cohorts) for p in cohort.members}
        self._plan.assign([row[id(p)] for p in self._parameters])
        return self._cohorts

    def _dissolve(self) -> None:
        """Give the clocks back to the parameters."""
        self._catch_up()
        for cohort in self._cohorts or ():
            for p in cohort.members:
                p.clock = cohort.clock
        self._cohorts = None
        self._ready = self._steady = False

    def _catch_up(self) -> None:
        """Count the steps that the plan has repeated by itself."""
        repeats = self._plan.take_repeats()
        if repeats:
            self._steps += repeats
            for cohort in self._cohorts or ():
                if cohort.active:
                    cohort.clock = (cohort.clock[0] + repeats, *cohort.clock[1:])

    @property
    def steps(self) -> int:
        """Completed steps; skipped ones do not count."""
        return self._steps + int(self._plan.repeats)

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
        self._catch_up()
        for cohort in self._cohorts or ():
            for p in cohort.members:
                p.clock = cohort.clock
        return {
            i if p.name is None else p.name: {
                **dict(zip(self.clock_start, p.clock, strict=True)),
                **self.show_state(p.state),
            }
            for i, p in enumerate(self._parameters)
        }

    def state_dict(self) -> dict[str, Any]:
        """A copy of state and hyperparameters as dicts, arrays and numbers, under torch.optim's keys.

        Schedules are code and not part of it.
        """
        with self._alone():
            return checkpoint.dump(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` of this class, or of the torch.optim class of this name, returned.

        Raises ValueError or TypeError if it does not fit these parameters; nothing has changed then.
        """
        with self._alone():
            checkpoint.restore(self, state_dict)
            self._planned = None
            self._refresh(self._steps)

    def save(self, path: str | PathLike[str]) -> None:
        """Write `state_dict()` to an .npz file, which is there whole or not at all."""
        checkpoint.write(path, self.state_dict())

    def load(self, path: str | PathLike[str]) -> None:
        """`load_state_dict` from a file that `save` wrote; never executes anything in it."""
        self.load_state_dict(checkpoint.read(path))

    def __getstate__(self) -> dict[str, Any]:
        with self._alone():
            self._dissolve()
            return {k: v for k, v in vars(self).items() if k != "_plan"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        for p in self._parameters:  # views of what was copied, not copies of their own
            p.array = as_array(p.given, p.label)
        self._grads = [
            None if g is None else as_array(g, p.grad_label) for p, g in zip(self._parameters, self._given, strict=True)
        ]
        self._build()

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} (backend={self.backend!r}, threads={self.threads!r}, steps={self.steps}"]
        for i, group in enumerate(self.param_groups):
            count = sum(p.array.size for p in self._parameters if p.group is group)
            lines.append(f"Parameter Group {i}: {len(group['params'])} arrays, {count:,} weights")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join(lines) + "\n)"


class _Alone:
    """Holds an optimizer for one thread; a second thread is told so and does not wait."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def __enter__(self) -> None:
        self.optimizer._plan.claim()
        self.optimizer._catch_up()

    def __exit__(self, *exc: object) -> None:
        self.optimizer._plan.release()


def clip_factor(norm: float, max_norm: float) -> float:
    """The factor that brings `norm` down to `max_norm`, as torch.nn.utils.clip_grad_norm_; NaN stays NaN."""
    factor = float(max_norm) / (norm + 1e-6)  # 1e-6: torch's guard against a zero norm
    return 1.0 if factor > 1.0 else factor
