"""The door to PyTorch: the optimizers of torch.optim, stepped by the kernels of proptim.

``proptim.torch.RMSprop`` is a subclass of ``torch.optim.RMSprop``: arguments and their checks, parameter groups, hooks,
saving and loading are torch's own code, and only `step` is ours. A rule that torch does not have, such as Lion, gets a
class in the same manner.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from proptim import OPTIMIZERS, _backend, functional
from proptim._arrays import Array, as_array, check_disjoint, check_writable, real_view
from proptim._parameters import Group, Parameter, check_gradients, is_schedule, state_arrays
from proptim.optimizer import Optimizer

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "proptim.torch needs PyTorch, which is not installed: pip install 'proptim[torch]'", name="torch"
    ) from error

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """The optimizer classes, which are made at the end."""


DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
REFUSED = {
    "differentiable": "no gradient flows through a step of proptim",
    "capturable": "proptim steps on the CPU, where there is no graph to capture",
}
"""Arguments of torch.optim that must be false, and why."""
DEFAULTS: dict[str, dict[str, Any]] = {"rprop": {"variant": "irprop-"}}
"""Where torch's rule is another than that of proptim without arguments."""


@dataclass(eq=False)
class Settled:
    """The hyperparameters of a parameter group, checked, and what follows from them."""

    raw: list[Any]
    fixed: bool
    """Whether equal `raw` means equal numbers: not for tensors and lists, which change in place."""
    group: Group
    stages: tuple[float, ...]
    wanted: tuple[str, ...]


@dataclass(eq=False)
class Member:
    """A parameter of a plan."""

    parameter: Parameter
    settled: int
    """Index of its group."""
    tensors: dict[str, Any]
    """What the plan uses of its state."""
    clock: list[Array]
    """The numbers of its clock, seen through arrays."""
    idle: Array
    """What the plan holds in place of a gradient between steps, so that it keeps no gradient alive."""


class Bound:
    """A plan over the tensors of an optimizer, for as long as they stay where they are."""

    def __init__(self, plan: Any, every: list[Member | None], params: list[Any], wanted: list[Any]) -> None:
        self.plan = plan
        self.every = every
        self.members = [m for m in every if m is not None]
        self.given = [m.parameter.given for m in self.members]
        self.tensors = [*self.given, *(t for m in self.members for t in m.tensors.values())]
        self.idle = [m.idle for m in self.members]
        self.pairs = [p.is_complex() for p in self.given]
        self.homes = [m.settled for m in self.members]
        self.clock = list(zip(*(m.clock for m in self.members), strict=True))
        self.params = [id(p) for p in params]
        self.wanted = wanted
        self.places = self.find()
        self.contents: list[int] = []

    def find(self) -> list[Any]:
        """Where the arrays are; the views of the plan keep memory alive, so that no address comes to mean another."""
        return [
            *(t.data_ptr() for t in self.tensors),
            *(p.shape for p in self.given),
            *(p.stride() for p in self.given),
        ]

    def list_state(self, state: Mapping[Any, Any]) -> list[int]:
        """Which tensors are the state."""
        return [id(value) for own in map(state.get, self.given) if own for value in own.values()]

    def stands(self, params: list[Any], grads: list[Any], wanted: list[Any], state: Mapping[Any, Any]) -> bool:
        """Whether a plan made now would be this one."""
        return (
            self.params == [id(p) for p in params]
            and self.wanted == wanted
            and not any(m is None and g is not None for m, g in zip(self.every, grads, strict=True))
            and self.contents == self.list_state(state)
            and self.places == self.find()
        )


class Door(torch.optim.Optimizer):  # type: ignore[misc]
    """What the classes here have in common: their step is one call of a plan of proptim."""

    rule: ClassVar[type[Optimizer]]
    hyper: ClassVar[dict[str, Any]]
    """Hyperparameters of the rule, and their values where a parameter group has none."""
    extras: ClassVar[frozenset[str]]
    """Those that the torch class does not take."""
    shown: ClassVar[tuple[str, ...]]
    """Names of the state arrays in torch.optim."""
    counts: ClassVar[tuple[str, ...]]
    """Names of the numbers in the state of torch.optim."""

    _settled: list[Settled] = []
    _bound: Bound | None = None

    def __init__(
        self, params: Any, *args: Any, threads: int | str = "auto", backend: str | None = None, **keywords: Any
    ) -> None:
        _backend.thread_count(threads)
        if backend is not None:
            _backend.plan_type(backend)
        self._threads, self._backend = threads, backend
        self._given = {key: keywords.pop(key) for key in self.extras & keywords.keys()}
        super().__init__(params, *args, **keywords)
        self._step_supports_amp_scaling = False  # as torch's fused steps do; without, GradScaler unscales the gradients

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch.optim does; ValueError or TypeError for what no step could take."""
        self.defaults.update(self._given)
        super().add_param_group(param_group)
        try:
            self._settle(param_group)
            for index, p in enumerate(param_group["params"]):
                if p.requires_grad and (p.device.type != "cpu" or p.dtype not in DTYPES or p.layout != torch.strided):
                    as_array(p, f"params[{index}] of the group")
        except BaseException:
            self.param_groups.pop()
            raise

    # State: as in torch.optim, but packed where the rule of proptim packs it ------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As that of torch.optim, which can load it: Rprop's packed `step_word` is shown as `prev` and `step_size`."""
        state = self.state
        if self.shown != self.rule.states:
            self.state = {p: self._unpacked(own) for p, own in state.items()}
        try:
            saved: dict[str, Any] = super().state_dict()
        finally:
            self.state = state
        return saved

    def _unpacked(self, own: dict[str, Any]) -> dict[str, Any]:
        packed = {name: own[name].numpy() for name in self.rule.states if name in own}
        if not packed:
            return own
        rest = {name: value for name, value in own.items() if name not in packed}
        return rest | {name: torch.from_numpy(array) for name, array in self.rule.show_state(packed).items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{key: vars(self)[key] for key in ("_threads", "_backend", "_given")}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self._given.items():
                group.setdefault(key, value)
        self._settled, self._bound = [], None

    # The step ---------------------------------------------------------------------------------------------------------

    @torch.compiler.disable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every parameter that has a gradient.

        `closure` evaluates the model again and returns the loss, which is returned. Raises ValueError or TypeError
        for hyperparameters, tensors and gradients that no step can take, RuntimeError if another thread is stepping
        this optimizer; nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        known = [*self._settled, *[None] * len(self.param_groups)]
        self._settled = [self._settle(group, old) for group, old in zip(self.param_groups, known, strict=False)]
        params = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in params]
        wanted = [s.wanted for s in self._settled]
        if all(g is None for g in grads):
            return loss
        bound = self._bound
        if bound is None or not bound.stands(params, grads, wanted, self.state):
            bound = self._bind(params, grads, wanted)
        self._run(bound, [g for m, g in zip(bound.every, grads, strict=True) if m is not None], loss)
        return loss

    def _settle(self, group: dict[str, Any], known: Settled | None = None) -> Settled:
        """The hyperparameters of a group, `known` if that still holds."""
        raw = [*(group.get(key, value) for key, value in self.hyper.items()), *(group.get(key) for key in REFUSED)]
        if known is not None and known.fixed and known.raw == raw:
            return known
        for key, why in REFUSED.items():
            if group.get(key):
                raise ValueError(f"{key}=True: {why}; expected False, or an optimizer of torch.optim")
        ours = Group({**dict(zip(self.hyper, raw, strict=False)), "params": ()}, frozenset())
        for key in self.hyper:
            if is_schedule(ours[key]):
                raise TypeError(f"Invalid {key}: {ours[key]!r} (expected a number; torch.optim.lr_scheduler has schedules)")
        self.rule.settled(ours, 0)
        stages = self.rule.stages(ours, 1.0, zero_grads=False, flush=False)
        return Settled(raw, all(map(is_fixed, raw)), ours, stages, self.rule.wanted(ours))

    def _bind(self, params: list[Any], grads: list[Any], wanted: list[Any]) -> Bound:
        """A plan of all parameters that have a gradient, or had one at an earlier step."""
        before = self._bound
        old = set() if before is None else {id(m.parameter.given) for m in before.members}
        homes = [i for i, group in enumerate(self.param_groups) for _ in group["params"]]
        names = [n for group in self.param_groups for n in group.get("param_names", [None] * len(group["params"]))]
        every = [
            None if g is None and id(p) not in old else self._member(f"[{i}]" + (f' ("{name}")' if name else ""), p, home)
            for i, (p, g, home, name) in enumerate(zip(params, grads, homes, names, strict=True))
        ]
        members = [m for m in every if m is not None]
        written = [m.parameter for m in members]
        check_disjoint([(p.label, p.array) for p in written] + state_arrays(written))
        segments = [
            tuple(None if array is None else real_view(array) for array in (p.array, *map(p.state.get, self.rule.states)))
            for p in written
        ]
        plan = _backend.plan_type(self._backend or _backend.backend())(
            self.rule, segments, *_backend.thread_count(self._threads), before and before.plan
        )
        plan.bind([m.idle for m in members])
        return Bound(plan, every, params, wanted)

    def _member(self, place: str, p: Any, home: int) -> Member:
        """A parameter with its state; what is new of it is not in `state` yet."""
        settled = self._settled[home]
        parameter = Parameter(place, None, p, as_array(p, f"params{place}"), settled.group, ())
        check_writable(parameter.array, parameter.label)
        own = self.state.get(p) or {}
        packed = any(own.get(name) is not None for name in self.rule.states)
        tensors = {n: own[n] for n in (settled.wanted if packed else self.shown) if own.get(n) is not None}
        arrays = {name: as_array(tensor, f"state {name!r} of {parameter.label}") for name, tensor in tensors.items()}
        for name, array in arrays.items():
            parameter.check_like(array, f"state {name!r} of {parameter.label}")
            check_writable(array, f"state {name!r} of {parameter.label}")
        begun = bool(tensors)
        if begun and not packed:
            arrays = self.rule.read_state(arrays)
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        for name in settled.wanted:
            if name not in tensors:
                value = self.rule.initial(settled.group, name)
                tensors[name] = torch.full_like(p, complex(value, value) if p.is_complex() else value)
                arrays[name] = as_array(tensors[name], name)
        parameter.state = arrays
        clock = []
        for name, start in self.rule.clock_start.items():
            if name in self.counts or self.rule.needs_loss(settled.group):
                tensors[name] = scalar(own.get(name, start))
                clock.append(tensors[name].numpy())
            else:
                clock.append(np.array(1.0 if name == "step" and begun else start))
        real = real_view(parameter.array)
        return Member(parameter, home, tensors, clock, np.broadcast_to(np.zeros((), real.dtype), real.shape))

    def _run(self, bound: Bound, grads: list[Any], loss: Any) -> None:
        """One step of a plan; what can be refused comes first, what changes something last."""
        if any(self.rule.needs_loss(settled.group) for settled in self._settled):
            if loss is None:
                raise ValueError("irprop+ compares losses; expected a closure that returns the loss: step(closure)")
            loss = loss.item() if isinstance(loss, torch.Tensor) else loss
        counts = [[number.item() for number in numbers] for numbers in bound.clock]
        alike = zip(bound.homes, *counts, strict=True)
        keys = [None if g is None else key for g, key in zip(grads, alike, strict=True)]
        index = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        rows: list[tuple[float, ...] | None] = []
        clocks: list[tuple[float, ...]] = []
        for key in index:
            if key is None:
                rows.append(None)
                clocks.append(())
            else:
                settled = self._settled[key[0]]
                coefs, clock = self.rule.numbers(settled.group, key[1:], loss)
                rows.append((*coefs, *settled.stages))
                clocks.append(clock)
        row_of = [index[key] for key in keys]
        plan = bound.plan
        with plan.claim:
            try:
                self._offer(bound, grads)
                if bound is not self._bound:
                    self._take(bound)
                plan.assign(row_of, clocks)
                plan.step(rows, clocks)
            finally:
                if not plan.offer(bound.idle):
                    plan.bind(bound.idle)
            for i, numbers in enumerate(bound.clock):
                for number, row in zip(numbers, row_of, strict=True):
                    if rows[row] is not None:
                        number.fill(clocks[row][i])
        torch.autograd.graph.increment_version([p for p, g in zip(bound.given, grads, strict=True) if g is not None])

    def _take(self, bound: Bound) -> None:
        """Make a new plan the plan, and the state in it the state."""
        for m in bound.members:
            if m.tensors:
                own = self.state[m.parameter.given]
                for name in set(self.shown) - set(self.rule.states):
                    own.pop(name, None)
                own.update(m.tensors)
        bound.contents = bound.list_state(self.state)
        self._bound = bound

    @staticmethod
    def _offer(bound: Bound, grads: list[Any]) -> None:
        """Have the plan read these gradients, or raise."""
        try:
            arrays = [
                idle if g is None else torch.view_as_real(g.resolve_conj()).numpy() if pairs else g.numpy()
                for idle, g, pairs in zip(bound.idle, grads, bound.pairs, strict=True)
            ]
            if bound.plan.offer(arrays):
                return
        except (TypeError, RuntimeError):
            pass  # what NumPy cannot show is looked at again, and refused in words
        fresh = [
            (m.parameter, as_array(g.detach().resolve_conj().resolve_neg(), m.parameter.grad_label))
            for m, g in zip(bound.members, grads, strict=True)
            if g is not None
        ]
        check_gradients(fresh, [], [m.parameter for m in bound.members], zero=False)
        found = {id(p): real_view(array) for p, array in fresh}
        bound.plan.bind([found.get(id(m.parameter), m.idle) for m in bound.members])


def is_fixed(value: Any) -> bool:
    """Whether a hyperparameter cannot change in place."""
    if isinstance(value, tuple):
        return all(map(is_fixed, value))
    return value is None or isinstance(value, (int, float, str))


def scalar(value: Any) -> Any:
    """A number of the state as torch.optim keeps it: a tensor without dimensions."""
    if isinstance(value, torch.Tensor) and value.ndim == 0 and value.device.type == "cpu" and value.is_floating_point():
        return value.detach()
    double = torch.get_default_dtype() == torch.float64
    return torch.tensor(float(value), dtype=torch.float64 if double else torch.float32)


def base(rule: type[Optimizer], hyper: dict[str, Any]) -> type[torch.optim.Optimizer]:
    """The class of torch.optim with the name of a rule, or one that takes the arguments of the rule."""
    known: type[torch.optim.Optimizer] | None = getattr(torch.optim, rule.__name__, None)
    if known is not None:
        return known
    own = [p for p in inspect.signature(rule).parameters.values() if p.name in hyper]
    rest = [p for p in hyper if p not in inspect.signature(rule).parameters]
    params = inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    options = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=hyper[n]) for n in rest]
    signature = inspect.Signature([params, *own, *options])

    def __init__(self: Any, *args: Any, **keywords: Any) -> None:
        bound = signature.bind(*args, **keywords)
        bound.apply_defaults()
        params = bound.arguments.pop("params")
        torch.optim.Optimizer.__init__(self, params, bound.arguments)

    return type(rule.__name__, (torch.optim.Optimizer,), {"__init__": __init__, "__signature__": signature})


def door(rule: type[Optimizer]) -> type[Door]:
    """The optimizer class of a rule for torch."""
    name = rule.__name__
    hyper = {**getattr(functional, name.lower()).hyper, **DEFAULTS.get(name.lower(), {})}
    theirs = base(rule, hyper)
    signature = inspect.signature(theirs)
    # torch's AdamW is decoupled for good
    extras = {k: v for k, v in hyper.items() if k not in signature.parameters and v is not True}
    ours = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value)
        for key, value in {**extras, "threads": "auto", "backend": None}.items()
    ]
    ones = {state: np.ones(1) for state in rule.states}
    members = {
        "__module__": __name__,
        "__doc__": DOC.format(
            name=name,
            names=", ".join(k for k in signature.parameters if k != "params"),
            extras=", ".join(extras),
        ),
        "__signature__": signature.replace(parameters=[*signature.parameters.values(), *ours]),
        "rule": rule,
        "hyper": hyper,
        "extras": frozenset(extras),
        "shown": tuple(rule.show_state(ones)),
        # torch.optim.SGD keeps none; prev_loss, which starts at infinity, is kept only where the rule looks at it
        "counts": () if name == "SGD" else tuple(k for k, start in rule.clock_start.items() if math.isfinite(start)),
    }
    return type(name, (Door, theirs), members)


DOC = """torch.optim.{name} on the kernels of `proptim.{name}`.

Parameters
----------
params : iterable of tensors, of (name, tensor) or of group dicts
    As in torch.optim; float32, float64, complex64 or complex128 in CPU memory, with any strides.
{names}
    As in torch.optim, with its defaults.
{extras}
    As in `proptim.{name}`; also in group dicts.
threads : int or "auto", default "auto"
    How many, or as many as help.
backend : {{"c", "numba", "numpy"}}, optional
    Default `proptim.backend()`.

Raises
------
ValueError
    For a hyperparameter out of range, `differentiable` or `capturable`.
TypeError
    For a parameter on another device than the CPU or of another dtype.

Examples
--------
>>> import torch, proptim.torch
>>> w = torch.nn.Parameter(torch.ones(2))
>>> opt = proptim.torch.{name}([w], lr=0.25)
>>> w.sum().backward()
>>> opt.step()
>>> bool((w < 1).all())
True
"""

__all__ = [rule.__name__ for rule in OPTIMIZERS.values()]  # noqa: PLE0604
globals().update({rule.__name__: door(rule) for rule in OPTIMIZERS.values()})
