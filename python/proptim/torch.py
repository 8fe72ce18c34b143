"""The door to PyTorch: the optimizers of torch.optim, stepped by the kernels of proptim.

``proptim.torch.RMSprop`` is a subclass of ``torch.optim.RMSprop``: arguments and their checks, parameter groups, hooks,
saving and loading are torch's own code, and only `step` is ours. A rule that torch does not have, such as Lion, gets a
class in the same manner.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from proptim import OPTIMIZERS, _backend, functional
from proptim._arrays import SUPPORTED, Array, as_array, check_writable, real_view
from proptim._numpy import Claim
from proptim._parameters import Group, Parameter, check_gradients, is_schedule
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


DTYPES = {getattr(torch, name) for name in SUPPORTED}
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

    def __init__(self, plan: Any, every: list[Member | None], params: list[Any], layout: list[Any]) -> None:
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
        self.layout = layout
        self.places = self.find()
        self.contents: list[int] = []

    def find(self) -> list[Any]:
        """Where the arrays are, and their form where it may change."""
        return [
            *(t.data_ptr() for t in self.tensors),
            *(p.shape for p in self.given),
            *(p.stride() for p in self.given),
        ]

    def list_state(self, state: Mapping[Any, Any]) -> list[int]:
        """Which tensors are the state."""
        return [id(value) for own in map(state.get, self.given) if own for value in own.values()]

    def stands(self, params: list[Any], grads: list[Any], layout: list[Any], state: Mapping[Any, Any]) -> bool:
        """Whether a plan made now would be this one."""
        return (
            self.params == [id(p) for p in params]
            and self.layout == layout
            and not any(m is None and g is not None for m, g in zip(self.every, grads, strict=True))
            and self.contents == self.list_state(state)
            and self.places == self.find()
        )


class Door(torch.optim.Optimizer):  # type: ignore[misc]
    """What the classes here have in common: their step is one call of a plan of proptim."""

    _rule: ClassVar[type[Optimizer]]
    _hyper: ClassVar[dict[str, Any]]
    """Hyperparameters of the rule, and their values where a parameter group has none."""
    _extras: ClassVar[frozenset[str]]
    """Those that the torch class does not take."""
    _shown: ClassVar[tuple[str, ...]]
    """Names of the state arrays in torch.optim."""
    _counts: ClassVar[tuple[str, ...]]
    """Names of the numbers in the state of torch.optim."""

    state: Any
    param_groups: list[dict[str, Any]]
    _settled: list[Settled] = []
    _bound: Bound | None = None

    def __init__(
        self, params: Any, *args: Any, threads: int | str = "auto", backend: str | None = None, **keywords: Any
    ) -> None:
        _backend.thread_count(threads)
        if backend is not None:
            _backend.plan_type(backend)
        self._threads, self._backend = threads, backend
        self._claim = Claim()
        self._given = {key: keywords.pop(key) for key in [*keywords] if key in self._extras}
        super().__init__(params, *args, **keywords)
        self._step_supports_amp_scaling = False  # as torch's fused steps do; without, GradScaler unscales the gradients

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch.optim does; ValueError or TypeError for what no step could take."""
        self.defaults.update(self._given)
        super().add_param_group(param_group)
        try:
            self._settle(param_group)
            for place, p in places([param_group]):
                if p.requires_grad:
                    check_tensor(p, f"params{place} of the group")
        except BaseException:
            self.param_groups.pop()
            raise

    # State: as in torch.optim, but packed where the rule of proptim packs it ------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As that of torch.optim, which can load it: Rprop's packed `step_word` is shown as `prev` and `step_size`."""
        state = self.state
        if self._shown != self._rule.states:
            self.state = {p: self._unpacked(own) for p, own in state.items()}
        try:
            saved: dict[str, Any] = super().state_dict()
        finally:
            self.state = state
        return saved

    def _unpacked(self, own: dict[str, Any]) -> dict[str, Any]:
        packed = {name: own[name].numpy() for name in self._rule.states if name in own}
        if not packed:
            return dict(own)  # which the next step may pack
        rest = {name: value for name, value in own.items() if name not in packed}
        return rest | {name: torch.from_numpy(array) for name, array in self._rule.show_state(packed).items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{key: vars(self)[key] for key in ("_threads", "_backend", "_given")}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._claim = Claim()
        for group in self.param_groups:
            for key, value in self._given.items():
                group.setdefault(key, value)

    # The step ---------------------------------------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]
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
        with self._claim:
            known = [*self._settled, *[None] * len(self.param_groups)]
            self._settled = [self._settle(group, old) for group, old in zip(self.param_groups, known, strict=False)]
            params = [p for group in self.param_groups for p in group["params"]]
            grads = [p.grad for p in params]
            layout = [(len(g["params"]), s.wanted) for g, s in zip(self.param_groups, self._settled, strict=True)]
            bound = self._bound
            if bound is None or not bound.stands(params, grads, layout, self.state):
                bound = self._bind(params, grads, layout)
            self._run(bound, [g for m, g in zip(bound.every, grads, strict=True) if m is not None], loss)
        return loss

    def _settle(self, group: dict[str, Any], known: Settled | None = None) -> Settled:
        """The hyperparameters of a group, `known` if that still holds."""
        raw = [*(group.get(key, value) for key, value in self._hyper.items()), *(group.get(key) for key in REFUSED)]
        if known is not None and known.fixed and known.raw == raw:
            return known
        for key, why in REFUSED.items():
            if group.get(key):
                raise ValueError(f"{key}=True: {why}; expected False, or an optimizer of torch.optim")
        ours = Group({**dict(zip(self._hyper, raw, strict=False)), "params": ()}, frozenset())
        for key in self._hyper:
            if is_schedule(ours[key]):
                raise TypeError(
                    f"Invalid {key}: {ours[key]!r} (expected a number; torch.optim.lr_scheduler has schedules)"
                )
        self._rule.settled(ours, 0)
        stages = self._rule.stages(ours, 1.0, zero_grads=False, flush=False)
        return Settled(raw, all(map(is_fixed, raw)), ours, stages, self._rule.wanted(ours))

    def _bind(self, params: list[Any], grads: list[Any], layout: list[Any]) -> Bound:
        """A plan of all parameters that have a gradient, or had one at an earlier step."""
        before = self._bound
        old = set() if before is None else {id(m.parameter.given) for m in before.members}
        homes = [i for i, group in enumerate(self.param_groups) for _ in group["params"]]
        every = [
            None if g is None and id(p) not in old else self._member(place, p, home)
            for (place, p), g, home in zip(places(self.param_groups), grads, homes, strict=True)
        ]
        members = [m for m in every if m is not None]
        segments = [
            tuple(
                None if array is None else real_view(array) for array in (p.array, *map(p.state.get, self._rule.states))
            )
            for p in (m.parameter for m in members)
        ]
        plan = _backend.plan_type(self._backend or _backend.backend())(
            self._rule, segments, *_backend.thread_count(self._threads), before and before.plan
        )
        plan.bind([m.idle for m in members])
        return Bound(plan, every, params, layout)

    def _member(self, place: str, p: Any, home: int) -> Member:
        """A parameter with its state; what is new of it is not in `state` yet."""
        settled = self._settled[home]
        check_tensor(p, f"params{place}")
        parameter = Parameter(place, None, p, as_array(p, f"params{place}"), settled.group, ())
        check_writable(parameter.array, parameter.label)
        own = self.state.get(p) or {}
        packed = any(own.get(name) is not None for name in self._rule.states)
        tensors = {n: own[n] for n in (settled.wanted if packed else self._shown) if own.get(n) is not None}
        arrays = {name: as_array(tensor, f"state {name!r} of {parameter.label}") for name, tensor in tensors.items()}
        for name, array in arrays.items():
            parameter.check_like(array, f"state {name!r} of {parameter.label}")
            check_writable(array, f"state {name!r} of {parameter.label}")
        begun = bool(tensors)
        if begun and not packed:
            arrays = self._rule.read_state(arrays)
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        for name in settled.wanted:
            if name not in tensors:
                value = self._rule.initial(settled.group, name)
                tensors[name] = torch.full_like(p, complex(value, value) if p.is_complex() else value)
                arrays[name] = as_array(tensors[name], name)
        parameter.state = arrays
        clock = []
        for name, start in self._rule.clock_start.items():
            if name in self._counts or self._rule.needs_loss(settled.group):
                tensors[name] = scalar(own.get(name, start), name in self._counts)
                clock.append(tensors[name].numpy())
            else:
                clock.append(np.array(1.0 if name == "step" and begun else start))
        real = real_view(parameter.array)
        return Member(parameter, home, tensors, clock, np.broadcast_to(np.zeros((), real.dtype), real.shape))

    def _run(self, bound: Bound, grads: list[Any], loss: Any) -> None:
        """One step of a plan; what can be refused comes first, what changes something last."""
        if any(self._rule.needs_loss(settled.group) for settled in self._settled):
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
                if not key[1] >= 0 or key[1] % 1:
                    raise ValueError(f"'step' of the state is {key[1]}; expected a whole number of at least 0")
                coefs, clock = self._rule.numbers(settled.group, key[1:], loss)
                rows.append((*coefs, *settled.stages))
                clocks.append(clock)
        row_of = [index[key] for key in keys]
        plan = bound.plan
        before = plan.steps
        try:
            self._offer(bound, grads)
            if bound is not self._bound:
                self._take(bound)
            plan.assign(row_of, clocks)
            plan.step(rows, clocks)
        finally:
            if plan.steps != before:  # also when it was interrupted, which is told as soon as the kernels are done
                for i, numbers in enumerate(bound.clock):
                    for number, row in zip(numbers, row_of, strict=True):
                        if rows[row] is not None:
                            number.fill(clocks[row][i])
                stepped = [p for p, g in zip(bound.given, grads, strict=True) if g is not None]
                torch.autograd.graph.increment_version(stepped)
            if not plan.offer(bound.idle):
                plan.bind(bound.idle)

    def _take(self, bound: Bound) -> None:
        """Make a new plan the plan, and the state in it the state."""
        for m in bound.members:
            if m.tensors:
                own = self.state[m.parameter.given]
                for name in set(self._shown) - set(self._rule.states):
                    own.pop(name, None)
                own.update(m.tensors)
        bound.contents = bound.list_state(self.state)
        self._bound = bound

    @staticmethod
    def _offer(bound: Bound, grads: list[Any]) -> None:
        """Have the plan read these gradients, or raise."""
        try:
            arrays = [
                idle if g is None else torch.view_as_real(g).numpy() if pairs else g.numpy()
                for idle, g, pairs in zip(bound.idle, grads, bound.pairs, strict=True)
            ]
            if bound.plan.offer(arrays):
                return
        except (TypeError, RuntimeError):
            pass  # what NumPy cannot show as it is gets a closer look too
        fresh = [
            (m.parameter, as_array(g.detach().resolve_conj().resolve_neg(), m.parameter.grad_label))
            for m, g in zip(bound.members, grads, strict=True)
            if g is not None
        ]
        check_gradients(fresh, [], [m.parameter for m in bound.members], zero=False)
        found = {id(p): real_view(array) for p, array in fresh}
        bound.plan.bind([found.get(id(m.parameter), m.idle) for m in bound.members])


def places(groups: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """How messages name the parameters of these groups, and the parameters."""
    params = [p for group in groups for p in group["params"]]
    names = [name for group in groups for name in group.get("param_names", [""] * len(group["params"]))]
    labels = [f"[{i}]" + (f' ("{name}")' if name else "") for i, name in enumerate(names)]
    return list(zip(labels, params, strict=True))


def check_tensor(p: Any, label: str) -> None:
    """Raise TypeError for a parameter that no step could take, without making an array of it."""
    if p.device.type != "cpu":
        raise TypeError(f"{label} is on {p.device}; expected a CPU tensor: move the model with .cpu()")
    if p.layout != torch.strided:
        raise TypeError(f"{label} has layout {p.layout}; expected a strided tensor: use .to_dense()")
    if p.dtype not in DTYPES:
        raise TypeError(f"{label} is {p.dtype}; supported: {', '.join(SUPPORTED)}: convert the model with .float()")
    if hasattr(p, "__tensor_flatten__"):
        raise TypeError(f"{label} is a {type(p).__name__}; expected a tensor with memory of its own")


def is_fixed(value: Any) -> bool:
    """Whether a hyperparameter cannot change in place."""
    if isinstance(value, tuple):
        return all(map(is_fixed, value))
    return value is None or isinstance(value, (int, float, str))


def scalar(value: Any, as_torch: bool) -> Any:
    """A number of the state as a tensor without dimensions, which in torch.optim is of float32 by default."""
    if isinstance(value, torch.Tensor) and value.ndim == 0 and value.device.type == "cpu" and value.is_floating_point():
        return value.detach()
    single = as_torch and torch.get_default_dtype() != torch.float64
    return torch.tensor(float(value), dtype=torch.float32 if single else torch.float64, device="cpu")


def keyword_only(name: str, default: Any) -> inspect.Parameter:
    """A parameter of a signature."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)


def base(rule: type[Optimizer], hyper: dict[str, Any]) -> type[torch.optim.Optimizer]:
    """The class of torch.optim with the name of a rule, or one that takes the arguments of the rule."""
    known: type[torch.optim.Optimizer] | None = getattr(torch.optim, rule.__name__, None)
    if known is not None:
        return known
    taken = [
        p.replace(annotation=p.empty)
        for p in inspect.signature(rule).parameters.values()
        if p.name in ("params", *hyper)
    ]
    options = [keyword_only(key, value) for key, value in hyper.items() if key not in [p.name for p in taken]]
    signature = inspect.Signature([*taken, *options])

    def __init__(self: Any, *args: Any, **keywords: Any) -> None:
        bound = signature.bind(*args, **keywords)
        bound.apply_defaults()
        defaults = dict(bound.arguments)
        torch.optim.Optimizer.__init__(self, defaults.pop("params"), defaults)

    return type(rule.__name__, (torch.optim.Optimizer,), {"__init__": __init__, "__signature__": signature})


def door(rule: type[Optimizer]) -> type[Door]:
    """The optimizer class of a rule for torch."""
    name = rule.__name__
    hyper = {**getattr(functional, name.lower()).hyper, **DEFAULTS.get(name.lower(), {})}
    theirs = base(rule, hyper)
    signature = inspect.signature(theirs)
    # torch's AdamW is decoupled for good
    extras = {k: v for k, v in hyper.items() if k not in signature.parameters and v is not True}
    ours = [keyword_only(key, value) for key, value in {**extras, "threads": "auto", "backend": None}.items()]
    ones = {state: np.ones(1) for state in rule.states}
    origin = f"torch.optim.{name}" if hasattr(torch.optim, name) else f"`proptim.{name}`"
    more = f"{', '.join(extras)}\n    As in `proptim.{name}`; in group dicts too.\n" if extras else ""
    members = {
        "__module__": __name__,
        "__doc__": DOC.format(name=name, origin=origin, names=", ".join([*signature.parameters][1:]), more=more),
        "__signature__": signature.replace(parameters=[*signature.parameters.values(), *ours]),
        "_rule": rule,
        "_hyper": hyper,
        "_extras": frozenset(extras),
        "_shown": tuple(rule.show_state(ones)),
        # torch.optim.SGD keeps none; prev_loss, which starts at infinity, is kept only where the rule looks at it
        "_counts": () if name == "SGD" else tuple(k for k, start in rule.clock_start.items() if math.isfinite(start)),
    }
    return type(name, (Door, theirs), members)


DOC = """{origin} as an optimizer of torch, stepped by the kernels of proptim.

Parameters
----------
params : iterable of tensors, of (name, tensor) or of group dicts
    As in torch.optim. Tensors of float32, float64, complex64 or complex128 in CPU memory, with any strides.
{names}
    As in {origin}, with its defaults.
{more}threads : int or "auto", default "auto"
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

__all__ = [rule.__name__ for rule in OPTIMIZERS.values()]
globals().update({rule.__name__: door(rule) for rule in OPTIMIZERS.values()})
