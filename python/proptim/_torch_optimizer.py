"""The step of the optimizers of `proptim.torch`, and the options that torch.optim does not have."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from proptim import _backend
from proptim._arrays import Array, as_array, check_disjoint, check_writable, real_view
from proptim._averages import NONE_KEPT, Averaged, Found
from proptim._formats import PAIRS, Steps
from proptim._numpy import busy
from proptim._options import OBJECT_OPTIONS, SETTINGS, as_shown
from proptim._parameters import (
    Group,
    Parameter,
    check_shape,
    did_you_mean,
    frozen,
    is_on,
    is_schedule,
    state_arrays,
)
from proptim._prepared import as_loss, checked_seed, clip_factor, settle, take_options
from proptim._rows import told_nonfinite
from proptim._stepper import Tally
from proptim._storage import (
    AVERAGE,
    CODE,
    MASTER_DTYPES,
    SCALE,
    check_master,
    check_state_dtype,
    check_storage,
    check_storage_of,
    check_whole,
    in_one_byte,
    is_compact,
    state_of,
)
from proptim._torch_averages import averages_in, find_averages, first_average
from proptim._torch_plan import Bound, Member, Settled
from proptim._torch_state import Keeping, release
from proptim._torch_tensors import (
    ARITHMETIC,
    DTYPES,
    increment_version,
    is_fake,
    is_fixed,
    is_spread,
    like,
    local,
    native,
    places,
    plain,
    scalar,
    seen,
    unfit,
    unfit_gradient,
    unfit_state,
)
from proptim.rule import Rule

CORE: Any = getattr(_backend, "core", None)
EXCHANGE = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
"""The DLPack exchange by which C code accesses tensors, in torch >= 2.10."""
NO_GROUP = Group({})
"""Of parameters here: groups are torch's."""
REFUSED = {
    "differentiable": "no gradient flows through a step of proptim",
    "capturable": "proptim steps on the CPU, where there is no graph to capture",
}
"""Arguments of torch.optim that must be false where proptim steps, and why."""
FLAGS: dict[str, Any] = {"foreach": None, "fused": None, **dict.fromkeys(REFUSED, False)}
"""Arguments of some classes of torch.optim that every class here takes, and their defaults."""
OPTIONS: dict[str, Any] = {**SETTINGS, "fallback": "warn"}
"""The options of a whole optimizer, with their defaults."""
FALLBACKS = ("warn", "torch", "error")
TAKES_SPARSE = ("SGD", "Adagrad")
"""The classes of torch that can step sparse gradients."""


class Option:
    """An option of a whole optimizer as an attribute: a change is checked at once and applies at the next step."""

    def __init__(self, *, fixed: bool = False) -> None:
        self.fixed = fixed

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        return self if optimizer is None else as_shown(optimizer._options[self.name])

    def __set__(self, optimizer: Any, value: Any) -> None:
        if self.fixed:
            raise AttributeError(f"{self.name} is fixed at construction; expected no change: make a new optimizer")
        options = {**optimizer._options, self.name: frozen(value)}
        optimizer._taken = taken(options)
        optimizer._options = options

    def __delete__(self, optimizer: Any) -> None:
        raise AttributeError(
            f"{self.name} is an option, which cannot be removed; expected a value: set it to {OPTIONS[self.name]!r}, "
            "the default"
        )


def not_here(key: str) -> str:
    """The message for one of `REFUSED`."""
    return f"{key}=True: {REFUSED[key]}; expected False, or an optimizer of torch.optim"


def taken(options: dict[str, Any]) -> dict[str, Any]:
    """The checked options; ValueError or TypeError for one that is illegal."""
    for key in ("clip_norm", "grad_scale"):
        if is_schedule(options[key]):
            raise TypeError(f"Invalid {key}: {options[key]!r} (expected a number: set it between steps)")
    if options["fallback"] not in FALLBACKS:
        raise ValueError(
            f"Invalid fallback: {options['fallback']!r} (expected one of {', '.join(map(repr, FALLBACKS))})"
        )
    return take_options({**SETTINGS, **options}, 0)


def check_no_option(group: dict[str, Any]) -> None:
    """Raise ValueError for an option in a group where it would have no effect."""
    for key in OPTIONS:
        if key in group:
            raise ValueError(f"{key} is an option of the whole optimizer; expected it as a keyword, not in a group")
    if not is_on("lazy_rows", group.get("lazy_rows", True)):
        raise ValueError(
            "Invalid lazy_rows: False (expected True: in proptim.torch the other rows do not catch up; an optimizer of "
            "arrays is saved for it after catch_up() and with lazy_rows=True)"
        )


class Door(torch.optim.Optimizer):
    """Base of the classes here: their step is one call of a plan of proptim."""

    _rule: ClassVar[type[Rule]]
    _hyper: ClassVar[dict[str, Any]]
    """Hyperparameters of the rule, and their values if a parameter group does not have them."""
    _extras: ClassVar[frozenset[str]]
    """Hyperparameters that the torch class does not have."""
    _shown: ClassVar[tuple[str, ...]]
    """Names of the state arrays in torch.optim."""
    _counts: ClassVar[tuple[str, ...]]
    """Names of the numbers in the state of torch.optim."""
    _arguments: ClassVar[tuple[str, ...]]
    """Names of the arguments of the constructor, without params."""
    _flags: ClassVar[tuple[str, ...]]
    """Those of `FLAGS` that the torch class does not have."""
    _theirs: ClassVar[Any]
    """The class of torch.optim of this name; None where there is none."""

    state: Any
    param_groups: list[dict[str, Any]]
    clip_norm, grad_scale, nonfinite, max_skips = (Option() for _ in range(4))
    zero_grads, flush_denormals, seed, fallback = (Option() for _ in range(4))
    master, state_dtype, rounding, cast_grads, threads, backend = (Option(fixed=True) for _ in range(6))
    _options: dict[str, Any]
    _taken: dict[str, Any]
    """The options, checked."""
    _used: Any = None
    """Those of the last step."""
    _factor: float = 1.0
    """The factor of all gradients of the last step."""
    _tally: Tally = Tally()
    _told: bool = False
    """Whether the warning that torch's own code steps some parameters has been given."""
    _number_of_first: int = 0
    """The number by which rounding="stochastic" knows the first parameter."""
    _settled: list[Settled] = []
    _bound: Any = None
    """A `Bound`, or a `_core.Tensors`, which is faster."""
    _torch_threads: int = 0
    """torch.get_num_threads() when it was made."""
    _plan_is_new: bool = False
    """Whether the plan of the step that runs, or ran last, was made for it."""
    _members: list[Member] = []
    """Of the plan."""
    _closer: bool = False
    """Whether gradients are of a kind that `_core.Tensors` does not support."""

    def __init__(self, params: Any, *args: Any, **keywords: Any) -> None:
        if "publish" in keywords:
            raise TypeError(
                f"publish is not an argument of proptim.torch.{type(self).__name__}; expected parameters of bfloat16 "
                "or float16, which keep the precision of float32 by themselves, or an optimizer of proptim"
            )
        for key in keywords:
            if key not in self._arguments:
                meant = self._rule.meant(key, *self._arguments)
                hint = did_you_mean(meant if meant in self._arguments else "")
                raise TypeError(
                    f"proptim.torch.{self._rule.__name__} got an unexpected keyword argument {key!r}{hint}; expected "
                    f"some of: {', '.join(self._arguments)}"
                )
        for key in self._flags:
            if keywords.pop(key, None) and key in REFUSED:
                raise ValueError(not_here(key))
        options = {key: frozen(keywords.pop(key, default)) for key, default in OPTIONS.items()}
        check_master(options["master"])
        check_state_dtype(self._rule, options["state_dtype"])
        if isinstance(options["state_dtype"], Mapping):
            options["state_dtype"] = dict(options["state_dtype"])  # which cannot change unseen
        _backend.thread_count(options["threads"])
        backend = _backend.chosen(options["backend"])
        _backend.plan_type(backend)
        self._options, self._taken = options, taken(options)
        self._claim = _backend.new_claim(backend)
        self._given = {key: keywords.pop(key) for key in [*keywords] if key in self._extras}
        super().__init__(params, *args, **keywords)
        self._step_supports_amp_scaling = False  # as torch's fused steps do; without, GradScaler unscales the gradients
        stepped = [
            (f"params{place}", DTYPES[p.dtype])
            for place, p in places(self.param_groups)
            if p.requires_grad and not unfit(p)
        ]
        if stepped:
            check_storage(self._rule, self.master, self.state_dtype, stepped)
        self._remake()
        self._tell()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch.optim does; ValueError or TypeError for tensors that could never be stepped."""
        self._check_place()
        self.defaults.update(self._given)
        super().add_param_group(param_group)
        try:
            settled = self._settle(param_group)
            for place, p in places([param_group]):
                label = f"params{place} of the group"
                if p.requires_grad and (why := unfit(p)):
                    self._check_fallback(p, param_group, label, why)
                elif p.requires_grad:
                    check_storage_of(self._rule, self.master, self.state_dtype, label, DTYPES[p.dtype])
                    self._check_spread(p)
                    self._keeping.check_first(settled.h, settled.wanted, p)
            if in_one_byte(self._rule, self.state_dtype):
                param_group.update({key: settled.h[key] for key in self._rule.fixed_in_one_byte})
        except BaseException:
            self.param_groups.pop()
            raise

    def _remake(self) -> None:
        """Have the state that torch's constructor has made, as Adagrad's does, as it is kept here.

        All of it: torch.distributed.checkpoint loads into what is there.
        """
        keeping = self._keeping
        for p, own in self.state.items():
            if unfit(p):
                continue
            for name in self._rule.states:
                if name in own and keeping.dtype(name, p) != DTYPES[p.dtype]:
                    del own[name]
                    own.update(keeping.first({**self._hyper, **self.defaults}, name, p))
            own.update(keeping.first_plane(p))

    def _first(self, h: dict[str, Any], p: Any) -> dict[str, Any]:
        """The state arrays of a parameter before its first step, and what lies beside it, by name."""
        made: dict[str, Any] = {}
        for name in self._rule.wanted(h):
            made |= self._keeping.first(h, name, p)
        return made | self._keeping.first_plane(p)

    @property
    def _keeping(self) -> Keeping:
        """How the state of parameters is kept."""
        return Keeping(self._rule, self._shown, self._counted, self.master, self.state_dtype)

    @property
    def _counted(self) -> tuple[str, ...]:
        """Names of the numbers in the state here, which has the step of SGD too if that is rounded by it."""
        return self._counts or (("step",) if self.rounding == "stochastic" else ())

    def state_dict(self) -> dict[str, Any]:
        """The state as torch.optim returns it; with weights written since the last step in a float32 master."""
        self._check_place()
        keeping = self._keeping
        for p in (p for group in self.param_groups for p in group["params"]):
            keeping.read(p, self.state.get(p) or {})
        state: dict[str, Any] = super().state_dict()
        return {**state, "seed": self.seed} if self.rounding == "stochastic" else state

    def load_state_dict(self, state_dict: dict[str, Any], *, cast: bool = False) -> None:
        """Take over a state as `torch.optim.Optimizer.load_state_dict` does, in the dtypes in which it was saved.

        State that torch.optim has saved in 16 bits is widened where it is kept in float32 here. What would be rounded,
        as float32 for ``state_dtype="bfloat16"``, is a TypeError without `cast`. Weights stay as they are, but those
        with a float32 array beside them, which are set to what that rounds to.
        """
        is_on("cast", cast)
        self._check_place()
        seed = checked_seed(state_dict.get("seed", self.seed))
        params = [p for group in self.param_groups for p in group["params"]]
        keeping = self._keeping

        def hold(_: Any, given: Any) -> Any:
            return keeping.hold(params, self._checked_groups(given), cast)

        hook = self.register_load_state_dict_pre_hook(hold)  # the last
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        for p in params:
            keeping.write(p, self.state.get(p) or {})
        self.seed = seed

    def _checked_groups(self, saved: Any) -> Any:
        """A state_dict whose groups have the hyperparameters of the groups here where they have none of their own.

        Raises ValueError for groups of an optimizer of another class. Those of torch.optim.SparseAdam have no
        weight_decay, for example.
        """
        expected = "expected the state of an optimizer of the same class"
        groups = saved.get("param_groups") if isinstance(saved, Mapping) else None
        if not isinstance(groups, (list, tuple)) or not all(isinstance(group, Mapping) for group in groups):
            return saved  # torch says what is wrong
        completed = list(groups)
        for i, (group, own) in enumerate(zip(groups, self.param_groups, strict=False)):
            label, name = f"group {i} of state_dict", self._rule.__name__
            for key in group:
                if key in Rule.known and key not in self._hyper and key not in own and key not in OBJECT_OPTIONS:
                    raise ValueError(f"{label} has the hyperparameter {key!r}, unknown to {name}; {expected}")
            for key, value in self._hyper.items():
                # What is 0, False or None by default may be missing.
                if value and not isinstance(value, bool) and key not in self._extras and key not in group:
                    raise ValueError(f"{label} has no hyperparameter {key!r}; {expected}: {name}")
            completed[i] = {**{key: own[key] for key in self._hyper if key in own}, **group}
            if group.get(AVERAGE) is None and own.get(AVERAGE) is not None:
                completed[i][AVERAGE] = own[AVERAGE]  # what the run that was saved did not average, this one may
        return {**saved, "param_groups": completed}

    # Averages of the weights ------------------------------------------------------------------------------------------

    @property
    def ema(self) -> dict[Any, Any]:
        """Parameter -> the average of its weights, of those that have made a step."""
        found = averages_in(self.state)
        if not found and all(group.get(AVERAGE) is None for group in self.param_groups):
            raise AttributeError(NONE_KEPT)
        return found

    def averaged(self) -> Averaged:
        """Have the averages of the weights in their place, while the block of this `with` runs.

        As `proptim.Optimizer.averaged`: parameters whose group has no `ema` stay as they are, the model is evaluated or
        saved within it, a step, loading and `state_dict` are refused, and afterwards the weights have their bits back,
        also after an exception. A parameter that has been moved to the device "meta" meanwhile, which holds no weights,
        is a RuntimeError after the block, when all others have theirs.
        """
        return Averaged(self._claim, self._find_averages)

    def _find_averages(self) -> Found:
        return find_averages(self.param_groups, self.state, self._keeping)

    def _check_place(self) -> None:
        """Raise RuntimeError if the averages of the weights are in their place."""
        if self._claim.averaged:
            raise RuntimeError(busy(None, averaged=True))

    def __getstate__(self) -> dict[str, Any]:
        self._check_place()
        kept = {key: vars(self)[key] for key in ("_options", "_given")}
        return {**super().__getstate__(), **kept, "_tally": self._tally, "_told": self._told}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._settled = []  # what was known of the groups that are replaced
        for group in state.get("param_groups", ()):
            check_no_option(group)
        for own in state.get("state", {}).values():
            if isinstance(own, dict):
                release(own)
        super().__setstate__(state)
        self._options = {**OPTIONS, **self._options}
        self._taken = taken(self._options)
        self._claim = _backend.new_claim(_backend.chosen(self.backend))
        self._step_supports_amp_scaling = False
        for group in self.param_groups:
            for key, value in {**self._hyper, **self._given}.items():
                if key in self._given or key not in self._extras:
                    group.setdefault(key, value)

    @property
    def skipped(self) -> int:
        """Steps that `nonfinite="skip"` has skipped."""
        return self._tally.skipped

    @property
    def grad_norm(self) -> float | None:
        """The global norm of the gradients at the last step, before clipping; only with `clip_norm`."""
        return self._tally.norm

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
            bound = before = self._bound
            kept = self._settled, self._torch_threads
            try:
                bound = self._current(before)
                self._make(bound, loss)
            except BaseException:
                if bound is not None:
                    bound.rest()
                raise
            finally:
                if self._bound is before and self._plan_is_new:  # after a failed or skipped step: keep the old plan
                    self._settled, self._torch_threads = kept
                    if before is not None:
                        before.rest()
        return loss

    def _current(self, bound: Any) -> Any:
        """The plan of the next step: the plan of the last step, if it is still valid, or a new one."""
        groups, threads = self.param_groups, torch.get_num_threads()
        self._plan_is_new = False
        stands: bool = bound is not None and threads == self._torch_threads and bound.look(groups, self.state)
        if stands and bound.same_numbers(groups):
            return bound
        known: list[Settled | None] = [*self._settled, *[None] * len(groups)]
        now = [
            self._settle(group, old, old.dtypes if stands and old is not None else None)
            for group, old in zip(groups, known, strict=False)
        ]
        if not stands or [s.wanted for s in now] != [s.wanted for s in self._settled]:
            self._plan_is_new = True
            self._settled, self._torch_threads = now, threads
            return self._bind()
        self._settled = now
        if not isinstance(bound, Bound):
            bound.keep_numbers([])  # so that the next step settles again if this one is interrupted here
            bound.settle(self._stages(self._factor, self._taken))
            bound.keep_numbers(groups if all(s.fixed for s in now) else [])
        return bound

    def _make(self, bound: Any, loss: Any) -> None:
        """One step, which is made completely or not at all."""
        options, seen = self._taken, isinstance(bound, Bound)
        if seen or options is not self._used:
            self._check_whole()
        zeroed = self._zeroed() if options["zero_grads"] else []
        if seen:
            self._check_foreign(bound.foreign)
            bound.offer(self.param_groups)
        number = self._number(bound, loss)
        factor, tally = self._scaled(bound, options)
        made = bound.steps
        try:
            if factor is None:
                bound.rest()
            elif seen or options is not self._used:
                self._regroup(bound, number, factor, options)
            else:
                if factor != self._factor:
                    self._used = None  # so that the next step takes all numbers again if this one is interrupted here
                    bound.settle(self._stages(factor, options))
                    self._used, self._factor = options, factor
                if not bound.repeat(number):
                    self._regroup(bound, number, factor, options)
        finally:
            if factor is None or bound.steps != made:  # also where a signal or a warning is raised when it was made
                self._tally = tally
                self._zero(zeroed)

    def _zero(self, zeroed: list[Any]) -> None:
        """Set gradients to zero; sparse ones have no rows then, so that the next ones are not added to zeros."""
        for grad in zeroed:
            with torch.no_grad():
                grad.zero_()
            if grad.is_leaf:  # as zero_grad(set_to_none=False) of torch leaves it
                grad.requires_grad_(False)
            elif not grad._is_view():
                grad.detach_()

    def _number(self, bound: Any, loss: Any) -> float | None:
        """The loss for rules that compare it."""
        for settled in self._settled:
            if settled.compares:
                break
        else:
            return None
        if loss is not None:
            return as_loss(loss)
        # torch.distributed.checkpoint has a fresh optimizer make its state by a step with gradients of zero.
        clocks = [clock for clock in bound.clocks() if clock is not None]
        found = [local(p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        grads = [g._values() if g.is_sparse else g for g in found]
        if any(clock[0] for clock in clocks) or any(g.count_nonzero() for g in grads):
            raise ValueError("irprop+ compares losses; expected a closure that returns the loss: step(closure)")
        return math.inf

    def _stages(self, factor: float, options: dict[str, Any]) -> list[tuple[dict[str, Any], tuple[float, ...]]]:
        """The hyperparameters of each group, and the coefficients of the stages."""
        flush = options["flush"]
        return [(s.h, self._rule.stages(s.h, factor, False, flush, s.share)) for s in self._settled]

    # Options ----------------------------------------------------------------------------------------------------------

    def _scaled(self, bound: Any, options: dict[str, Any]) -> tuple[float | None, Tally]:
        """The factor on all gradients of this step, None if it is skipped; and what is counted after it."""
        tally = self._tally
        scale: float = options["scale"]
        if options["blind"]:
            return scale, Tally(tally.skipped) if tally.in_a_row or tally.norm is not None else tally
        squares, finite = bound.reduce()
        if not finite and options["nonfinite"] != "propagate":
            if options["nonfinite"] == "raise":
                raise FloatingPointError(self._nonfinite(bound))
            if options["max_skips"] is not None and tally.in_a_row >= options["max_skips"]:
                raise FloatingPointError(
                    f"{self._nonfinite(bound)}, after {options['max_skips']} skips in a row (max_skips)"
                )
            return None, Tally(tally.skipped + 1, tally.in_a_row + 1, tally.norm)
        if options["clip_norm"] is None:
            return scale, Tally(tally.skipped)
        norm = math.sqrt(squares) * abs(scale)
        return scale * clip_factor(norm, options["clip_norm"]), Tally(tally.skipped, 0, norm)

    def _nonfinite(self, bound: Any) -> str:
        """A message that says which gradient is not finite, and where. No collective: processes differ here."""
        taken = {id(p): g for p, g in zip(bound.given, bound.grads, strict=True)} if isinstance(bound, Bound) else {}
        for place, p in places(self.param_groups):
            grad = taken.get(id(p), p.grad)
            if grad is not None and not unfit(p):
                label = f"grads{place}"
                if told := told_nonfinite(plain(grad, label), label, np.dtype(ARITHMETIC[p.dtype])):
                    return f"{told}; expected finite gradients"
        return "a gradient of another process is not finite; expected finite gradients"

    def _zeroed(self) -> list[Any]:
        """The gradients that are to be set to zero."""
        for place, p in places(self.param_groups):
            if p.grad is None or p.grad.is_sparse:  # which only loses its rows
                continue
            if torch._debug_has_internal_overlap(local(p.grad)) == 1:
                raise ValueError(
                    f"grads{place} has elements that share memory, and zero_grads=True writes them; expected a "
                    "gradient without: use .clone()"
                )
        return [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]

    # What torch's own code steps --------------------------------------------------------------------------------------

    def _check_fallback(self, p: Any, group: dict[str, Any], label: str, why: str) -> None:
        """Raise TypeError if torch's own code has to step a parameter of this group and cannot, or must not."""
        if self.fallback == "error" or self._theirs is None:
            raise TypeError(f"{label} {why}")
        if is_spread(p) and self._theirs is torch.optim.Rprop:
            raise TypeError(f"{label} {why}. It is a DTensor, which torch.optim.Rprop does not step")
        lacks = [key for key in self._extras if group.get(key, self._hyper[key]) != self._hyper[key]]
        lacks += [
            key
            for key in (
                "clip_norm",
                "grad_scale",
                "nonfinite",
                "zero_grads",
                "flush_denormals",
                "state_dtype",
                "rounding",
            )
            if self._options[key] != OPTIONS[key]
        ]
        lacks += ["master"] if self.master in MASTER_DTYPES else []  # it keeps none
        if lacks:
            name = self._theirs.__name__
            raise TypeError(f"{label} {why}. torch.optim.{name} would step it, but has no {lacks[0]}: leave that out")

    def _check_foreign(self, foreign: dict[int, str]) -> None:
        """Raise TypeError unless torch's own code can step these parameters."""
        if not foreign:
            return
        groups = [group for group in self.param_groups for _ in group["params"]]
        for i, (place, p) in enumerate(places(self.param_groups)):
            if i not in foreign:
                continue
            label = f"params{place}" if unfit(p) else f"grads{place}"
            self._check_fallback(p, groups[i], label, foreign[i])
            sparse = p.grad is not None and p.grad.layout == torch.sparse_coo
            # weight_decay: torch adds no dense parameter to a sparse gradient
            if sparse and (self._theirs.__name__ not in TAKES_SPARSE or groups[i].get("weight_decay")):
                raise TypeError(f"{label} {foreign[i]}")

    def _tell(self, foreign: list[tuple[str, str]] | None = None) -> None:
        """Warn once that torch's own code steps these parameters, (place, why); without, those that it will step."""
        if foreign is None:
            every = places(self.param_groups)
            foreign = [(place, why) for place, p in every if p.requires_grad and not is_fake(p) and (why := unfit(p))]
        if not foreign or self._told or self.fallback != "warn":
            return
        place, why = foreign[0]
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        known, keeping = dict(places(self.param_groups)), self._keeping
        halves = [each for each, _ in foreign if (d := DTYPES.get(known[each].dtype)) and keeping.plane(d)]
        rounds = (
            f". Without the master that proptim keeps, params{halves[0]} is rounded at every step" if halves else ""
        )
        warnings.warn(
            f"torch's own {self._theirs.__name__} steps params{place}{more}, which {why.partition(';')[0]}; "
            f"fallback='torch' says that this is wanted, fallback='error' refuses it{rounds}",
            UserWarning,
            stacklevel=_backend._level_outside(),
        )
        self._told = True  # not where the warning is an error

    def _step_foreign(self, foreign: set[int]) -> None:
        """Let torch's own code step these parameters, with the same groups and the same state."""
        numbers = iter(range(sum(len(group["params"]) for group in self.param_groups)))
        groups = [
            {**group, "params": [p for p in group["params"] if next(numbers) in foreign]} for group in self.param_groups
        ]
        for group in groups:
            if group.get("fused") and any(p.grad is not None and p.grad.is_sparse for p in group["params"]):
                group["fused"] = False  # which torch has not for sparse gradients
        twin = object.__new__(self._theirs)
        vars(twin).update(vars(self), param_groups=groups)
        step = self._theirs.step
        if getattr(step, "hooked", False):  # an optimizer of torch has been made: hooks and profiler are ours already
            step = step.__wrapped__
        step(twin)

    # Plans ------------------------------------------------------------------------------------------------------------

    def _thread_count(self) -> tuple[int, bool]:
        """The largest number of threads, and whether to choose by measuring: "auto" takes no more than torch does."""
        count, auto = _backend.thread_count(self.threads)
        return (min(count, torch.get_num_threads()), True) if auto else (count, False)

    def _settle(self, group: dict[str, Any], known: Settled | None = None, dtypes: Any = None) -> Settled:
        """The hyperparameters of a group, `known` if that still holds; `dtypes` where they are known."""
        check_no_option(group)
        raw = [*(group.get(key, value) for key, value in self._hyper.items()), *(group.get(key) for key in REFUSED)]
        if dtypes is None:
            dtypes = frozenset(ARITHMETIC[p.dtype] for p in group["params"] if p.dtype in ARITHMETIC)
        if known is not None and known.fixed and known.raw == raw and known.dtypes == dtypes:
            return known
        own = not group["params"] or not all(p.requires_grad and unfit(p) for p in group["params"])
        for key in REFUSED:
            if own and group.get(key):
                raise ValueError(not_here(key))
        ours = {key: frozen(value) for key, value in zip(self._hyper, raw, strict=False)}
        for key, value in ours.items():
            if is_schedule(value):
                raise TypeError(f"Invalid {key}: {value!r} (expected a number; torch.optim.lr_scheduler has schedules)")
        now = settle(self._rule, ours, dtypes, 0)
        h, wanted, share = now.h, now.wanted, now.share
        if compact := in_one_byte(self._rule, self.state_dtype):
            h = self._rule.held_in_one_byte(h, h, compact)
            for key in self._rule.fixed_in_one_byte:
                if known is not None and known.h[key] != h[key]:
                    raise ValueError(
                        f"{key!r} cannot be changed with state_dtype='int8', in which the state was made for "
                        "it; expected no change: make a new optimizer"
                    )
        return Settled(raw, all(map(is_fixed, raw)), dtypes, h, wanted, self._rule.needs_loss(h), share)

    def _bind(self) -> Bound:
        """A plan of all parameters that have a gradient, or had one at an earlier step."""
        groups = self.param_groups
        params = [p for group in groups for p in group["params"]]
        grads = [p.grad for p in params]
        old = {id(m.parameter.given) for m in self._members}
        homes = [i for i, group in enumerate(groups) for _ in group["params"]]
        every: list[Member | None] = []
        foreign: dict[int, str] = {}
        told = []
        for i, ((place, p), g, home) in enumerate(zip(places(groups), grads, homes, strict=True)):
            if g is None and id(p) not in old:
                every.append(None)
            elif why := unfit(p):
                every.append(None)
                if g is not None:
                    foreign[i] = why
                    told += [] if is_fake(p) else [(place, why)]
            elif why := unfit_gradient(p, g) or unfit_state((self.state.get(p) or {}).values()):
                every.append(None)
                foreign[i] = why
                told.append((place, f"has a gradient that {why}"))
            else:
                every.append(self._member(place, p, home))
        self._check_foreign(foreign)
        self._tell(told)
        members = [m for m in every if m is not None]
        written = [m.parameter for m in members]
        check_disjoint([(p.label, p.array) for p in written] + state_arrays(written))
        segments = [
            (
                m.parameter.stored,
                *(
                    a if a is None or isinstance(a, PAIRS) else real_view(a)
                    for a in map(m.state.get, self._rule.states)
                ),
                *([real_view(m.parameter.state[AVERAGE])] if AVERAGE in m.parameter.state else []),
            )
            for m in members
        ]
        plan = _backend.plan_type(_backend.chosen(self.backend))(
            self._rule, segments, *self._thread_count(), self._claim
        )
        plan.bind([m.idle for m in members])
        plan.locate([(self._number_of_first + i, 0) for i, m in enumerate(every) if m is not None])
        return Bound(plan, every, params, [len(group["params"]) for group in groups], foreign, self.cast_grads)

    def _member(self, place: str, p: Any, home: int) -> Member:
        """A parameter with its state; what is new of it is not in `state` yet."""
        settled = self._settled[home]
        part = local(p)
        parameter = Parameter(place, None, p, as_array(part, f"params{place}"), NO_GROUP, ())
        check_writable(parameter.array, parameter.label)
        if self.rounding == "stochastic" and (part.shape != p.shape or getattr(p, "_fsdp_flattened", False)):
            raise ValueError(
                f"{parameter.label} is a part of a tensor that is divided among processes, and rounding='stochastic' "
                "has to know which; expected a whole tensor: leave `rounding` out, or use proptim.mpi"
            )
        keeping, dtype = self._keeping, parameter.array.dtype
        check_storage_of(self._rule, self.master, self.state_dtype, parameter.label, dtype)
        self._check_spread(p)
        before = self.state.get(p) or {}
        own = keeping.kept(p, before, settled.h, lambda name: f"state {name!r} of {parameter.label}")
        names = keeping.names(p)
        plain = names == self._rule.states
        wanted = [n for n in settled.wanted if n != AVERAGE]
        parts = {name: keeping.parts(name, p) for name in (wanted if plain else names)}
        tensors = {n: own[n] for every in parts.values() for n in every if own.get(n) is not None}
        arrays = {name: seen(t, f"state {name!r} of {parameter.label}") for name, t in tensors.items()}
        begun, known = bool(tensors), {name.removesuffix(CODE): array for name, array in arrays.items()}
        if begun and not plain:
            self._rule.read_state(arrays)  # which raises for what no step leads to
        for name in wanted:
            if not begun or (plain and parts[name][0] not in tensors):
                tensors |= keeping.first(settled.h, name, p)
        plane = keeping.plane(dtype)
        if plane is not None:
            tensors |= {plane[0]: own[plane[0]]} if own.get(plane[0]) is not None else keeping.first_plane(p)
        arrays = {name: seen(t, f"state {name!r} of {parameter.label}") for name, t in tensors.items()}
        if plane is not None:
            parameter.plane = arrays[plane[0]]
        if AVERAGE in settled.wanted:
            average = own.get(AVERAGE)
            tensors[AVERAGE] = first_average(p, parameter.numbers()) if average is None else average
            arrays[AVERAGE] = seen(tensors[AVERAGE], f"state {AVERAGE!r} of {parameter.label}")
        for name, array in arrays.items():
            if name.endswith(SCALE):
                continue
            halved = parameter.array.dtype.kind == "c" and array.dtype.kind != "c"
            like_this = real_view(parameter.array) if halved else parameter.array
            check_shape(array, f"state {name!r} of {parameter.label}", like_this, parameter.label)
            check_writable(array, f"state {name!r} of {parameter.label}")
        if plane is not None:
            del arrays[plane[0]]
        arrays = {name.removesuffix(CODE): array for name, array in arrays.items()}
        state = self._formatted(p, tensors, arrays)
        parameter.state = arrays
        clock: list[Any] = []
        for name, start in self._rule.started(known, int(begun)).items():
            if name in self._counted:
                # Random bits are those of the step: they would repeat if it stayed at 2**24.
                tensors[name] = scalar(own.get(name, start), self.rounding != "stochastic")
                clock.append(tensors[name])
            else:
                # A loss is a plain number: torch casts tensors of a state to the dtype of the parameter when it loads.
                kept = own.get(name, start) if settled.compares else start
                clock.append(float(kept))
        stale = [name for name in before if name not in own]
        real = real_view(parameter.array)
        idle = np.broadcast_to(np.zeros((), real.dtype), real.shape)
        return Member(parameter, home, state, tensors, clock, stale, idle)

    def _check_spread(self, p: Any) -> None:
        """Raise ValueError for a DTensor, if state is to be in one byte."""
        if is_spread(p):
            check_whole(self._rule, self.state_dtype, "under DTensors")

    def _check_whole(self) -> None:
        """Raise ValueError if an option needs all gradients, and other processes have some of them."""
        if self.clip_norm is None and self.nonfinite != "skip":
            return
        for place, p in places(self.param_groups):
            if getattr(p, "_fsdp_flattened", False):
                option = "clip_norm" if self.clip_norm is not None else "nonfinite"
                raise ValueError(
                    f"params{place} is a part of what FullyShardedDataParallel divides among processes, and {option} "
                    "asks for all of it; expected no such option: use FullyShardedDataParallel.clip_grad_norm_, or "
                    "fully_shard"
                )

    def _formatted(self, p: Any, tensors: dict[str, Any], arrays: dict[str, Array]) -> dict[str, Any]:
        """The state of the rule in what is shown: its arrays, or of Rprop's word two planes of the same strides."""
        if is_compact(arrays):
            return {name: state_of(self._rule, arrays, name) for name in self._rule.states if name in arrays}
        if not arrays or "step_size" not in arrays:
            return arrays
        size, sign = local(tensors["step_size"]), local(tensors["prev"])
        if sign.stride() != size.stride():
            sign = torch.empty_strided(size.shape, size.stride(), dtype=size.dtype, device=size.device).copy_(sign)
            tensors["prev"], arrays["prev"] = like(p, sign), as_array(sign, "prev")
        return {"step_word": Steps(real_view(arrays["step_size"]), real_view(arrays["prev"]))}

    def _regroup(self, bound: Any, loss: float | None, factor: float, options: dict[str, Any]) -> None:
        """One step of parameters, gathered by group and clock; everything that can fail comes first."""
        found = bound.clocks()
        keys = [None if clock is None else (home, *clock) for home, clock in zip(bound.homes, found, strict=True)]
        index = {key: row for row, key in enumerate(dict.fromkeys(key for key in keys if key is not None))}
        rows: list[tuple[float, ...] | None] = []
        clocks: list[Any] = []
        values: list[tuple[int, Any, bool] | None] = []
        of = self._stages(factor, options)
        for home, *clock in index:
            settled = self._settled[home]
            if not clock[0] >= 0 or clock[0] % 1:
                raise ValueError(f"'step' of the state is {clock[0]}; expected a whole number of at least 0")
            coefs, after = self._rule.numbers(settled.h, tuple(clock), loss)
            stages = of[home][1]
            asked = (stages[0], options["scale"], *stages[2:])  # clip_norm's factor is NaN where a gradient is
            for dtype in settled.dtypes:
                self._rule.check_numbers(coefs, asked, dtype)
            rows.append((*coefs, *stages))
            clocks.append(after)
            values.append((home, settled.h, clock[0] > 0 and self._rule.steady(settled.h)))
        row_of = [len(rows) if key is None else index[key] for key in keys]
        rows.append(None)  # that of members without a gradient, which this step leaves alone
        clocks.append(None)
        values.append(None)
        seen = isinstance(bound, Bound)
        if seen and bound.foreign:
            self._step_foreign({*bound.foreign})
        if seen and bound is not self._bound:
            self._take(bound)
        self._used, self._factor = options, factor
        bound.plan.seed = options["seed"]
        bound.step(row_of, rows, clocks, values)
        if not seen:
            return
        if loss is None:
            self._hasten(bound)
        else:
            for p, key, row in zip(bound.given, keys, row_of, strict=True):
                if key is not None and self._settled[key[0]].compares:
                    self.state[p]["prev_loss"] = clocks[row][1]
            bound.contents = bound.list_state(self.state)

    def _take(self, bound: Bound) -> None:
        """Use a new plan from now on, and store its new state."""
        for m in bound.members:
            if m.tensors or m.stale:
                own = self.state[m.parameter.given]
                for name in m.stale:
                    own.pop(name, None)
                own.update(m.tensors)
        bound.contents = bound.list_state(self.state)
        self._closer = not isinstance(self._bound, Bound) and self._bound is not None and not self._bound.used
        self._bound, self._members = bound, bound.members

    def _hasten(self, bound: Bound) -> None:
        """Let the compiled core access the tensors itself at the following steps, if it can."""
        core_plan = EXCHANGE is not None and CORE is not None and isinstance(bound.plan, CORE.Plan)
        real = not any(bound.pairs) and not bound.spread and not bound.foreign
        if any(is_compact(m.parameter.state) for m in bound.members):  # whose scales have a shape of their own
            return
        if not core_plan or self._closer or not real or not bound.members or not isinstance(self.state, dict):
            return
        names = self._rule.states
        place, n = [], 0
        for m in bound.every:
            place.append(None if m is None else n)
            n += m is not None
        # The last but one is Rprop's.
        planes = [(0, 0), (0, 1), *((2 + j, 0) for j in range(len(names))), (2, 1), (CORE.AVERAGE, 0)]
        tensors = []
        for m in bound.members:
            held = m.tensors.get
            state = [held("step_size"), held("prev")] if "step_size" in m.tensors else [*map(held, names), None]
            tensors.append([m.parameter.given, held("master_lo", held("master")), *state, held(AVERAGE)])
        self._bound = None  # the plan of the old one loses its memory
        try:
            quick = CORE.Tensors(
                bound.plan,
                EXCHANGE,
                torch.Tensor,
                torch.nn.Parameter,
                torch.Tensor.is_neg,
                increment_version,
                native(),
                self._rule,
                [p for group in self.param_groups for p in group["params"]],
                place,
                tensors,
                bound.counts(),
                bound.homes,
                planes,
            )
            # The exchange is three times as quick for a tensor to which C++ has another reference, as a view has. Not
            # for parameters: swap_tensors wants to have the only one, and a view holds the memory.
            with torch.no_grad():
                quick.own([t.view_as(t) for own in tensors for t in own[1:] if t is not None])
                quick.own([t.view_as(t) for m in bound.members for t in m.clock if isinstance(t, torch.Tensor)])
        except (BufferError, ValueError):  # a closer look is needed, or a version that is not known here
            self._closer, self._bound = True, bound
            return
        quick.keep(self.param_groups, self.state, all(s.fixed for s in self._settled))
        self._bound = quick
