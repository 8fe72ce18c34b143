"""The base of all optimizers without the parameters: one rule, its hyperparameters and its state.

The door modules and `proptim.functional` use the subclasses of `Rule` as descriptions of rules; `proptim.optimizer`
adds the parameters and the step.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any, ClassVar

from proptim._arrays import Array
from proptim._formats import Compact, Int8, Squares8
from proptim._options import GROUP_OPTIONS, OBJECT_OPTIONS, SETTINGS
from proptim._parameters import Clock, Values, at_step, check_number, did_you_mean, is_on, is_schedule, near

LARGEST = {"float32": (2.0 - 2.0**-24) * 2.0**127, "float64": math.inf}
"""dtype -> the smallest number that rounds to infinity in it: half a unit above the largest finite one."""
FLOAT = Struct("=f")

HINTS = {
    "lr": "learning_rate eta step_size stepsize",
    "eps": "epsilon",
    "betas": "beta beta1 beta2 beta_1 beta_2 b1 b2",
    "alpha": "rho decay decay_rate discounting_factor smoothing_constant",
    "rho": "alpha decay",
    "momentum": "mu",
    "nesterov": "use_nesterov nesterovs",
    "momentum_decay": "schedule_decay",
    "lr_decay": "decay learning_rate_decay",
    "weight_decay": "wd l2 weight_decay_rate",
    "initial_square_avg": "initial_scale",
    "eps_inside_sqrt": "eps_in_sqrt",
    "etas": "eta_plus eta_minus etaplus etaminus",
    "step_sizes": "step_size_min step_size_max min_step_size max_step_size delta_min delta_max",
    "clip_norm": "clipnorm global_clipnorm max_grad_norm max_norm",
    "clip_value": "clipvalue",
    "grad_scale": "loss_scale loss_scale_factor inv_scale",
    "master": "master_weights master_weight keep_master",
    "state_dtype": "mu_dtype accumulator_dtype optim_bits",
    "ema": "use_ema ema_momentum ema_decay ema_rate polyak",
    "threads": "num_threads n_threads n_jobs",
}
"""Name here -> what optax, Keras, TF1 and others call it."""


class Rule:
    """One rule: the update, the names of its state and numbers, and which hyperparameters are legal.

    A subclass states `states`, the names of its state arrays; `optional`, the hyperparameter that switches on some of
    them; `rule`, the update itself; `check`, which hyperparameters are legal; and `advance`, the numbers that the rule
    needs at a step. Hyperparameters and their defaults are those of its constructor.
    """

    kernel: ClassVar[str]
    """Name of the rule in `csrc/include/rules.def`."""
    owner: ClassVar[str]
    """Name of the class that states the rule: Adam for AdamW too."""
    coef_names: ClassVar[tuple[str, ...]]
    """Names of the numbers that the rule takes after its arrays."""
    hyper: ClassVar[Mapping[str, Any]]
    """All hyperparameters, including those that every rule has, and their defaults."""
    grouped: ClassVar[Mapping[str, Any]]
    """What a parameter group of an optimizer has: the hyperparameters, `lazy_rows` and `ema`, with their defaults."""
    flags: ClassVar[tuple[str, ...]]
    """Hyperparameters that are true or false."""
    known: ClassVar[dict[str, Any]] = {}
    """The hyperparameters of all rules of proptim."""

    states: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[Mapping[str, str]] = {}
    clock_start: ClassVar[Mapping[str, float]] = {"step": 0}
    fixed: ClassVar[frozenset[str]] = frozenset()
    """Hyperparameters that are read only once, before the first step."""
    identity: ClassVar[Mapping[str, Any]] = {}
    """Hyperparameters that define the class, with their defaults, which loading a state does not change."""
    squares: ClassVar[frozenset[str]] = frozenset()
    """Names of state arrays that are never negative: sums and averages of squares, whose square roots are computed.

    In one byte an array of these is `Squares8`, and any other `Int8`, unless `in_one_byte` says otherwise.
    """
    never_zero: ClassVar[frozenset[str]] = frozenset()
    """Names of state arrays that no step leaves a 0 in: zeros there are those of a caller who did not use `init`."""
    torch_means: ClassVar[Mapping[str, Any]] = {}
    """Hyperparameters that torch's class of this name does not have -> the value that corresponds to torch's rule."""
    shown_from: ClassVar[Mapping[str, str]] = {}
    """Name of an array that `show_state` makes -> the state array that it is made from."""
    rule: Callable[..., tuple[Any, ...]]

    cases: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Sets of hyperparameters that together reach every branch of the rule, for selftest and tests."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not hasattr(cls, "rule"):
            return
        parameters = inspect.signature(cls.__init__).parameters.values()
        own = {
            p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in ("self", "params")
        }
        # A subclass has the hyperparameters of its base, whose constructor it passes options to, and its own.
        cls.hyper = {**getattr(cls, "hyper", GROUP_OPTIONS), **own, **cls.identity}
        cls.flags = tuple(name for name, default in cls.hyper.items() if isinstance(default, bool))
        cls.grouped = {**cls.hyper, **OBJECT_OPTIONS}
        if cls.__module__.startswith("proptim."):
            Rule.known.update(cls.grouped)
        if "idle" not in vars(cls) and any(text in vars(cls) for text in ("rule", "advance", "stages")):
            cls.idle = staticmethod(Rule.idle)  # type: ignore[method-assign]  # that of a base is about its own texts
        if "rule" in vars(cls):
            cls.owner = cls.__name__
            cls.kernel = cls.__module__.removeprefix("proptim.")  # a class outside proptim has no C text
            cls.coef_names = tuple(inspect.signature(cls.rule).parameters)[2 + len(cls.states) :]

    # What a subclass defines -------------------------------------------------------------------------------------

    @staticmethod
    def check(h: Values) -> None:
        """Raise ValueError or TypeError for a hyperparameter that is not legal."""

    @staticmethod
    def advance(h: Values, clock: Clock, loss: float | None) -> tuple[tuple[float, ...], Clock]:
        """Coefficients of the step that follows `clock`, and the clock after that step."""
        raise NotImplementedError

    @classmethod
    def clock_at(cls, h: Values, steps: int) -> Clock:
        """The clock after `steps` steps with these hyperparameters, for callers that keep no clock."""
        clock: Clock = tuple(cls.clock_start.values())
        if len(clock) == 1:
            return (steps,)
        while clock[0] < steps:
            _, clock = cls.advance(h, clock, None)
        return clock

    @classmethod
    def started(cls, state: Mapping[str, Any], step: int) -> dict[str, float]:
        """The numbers of a clock by name, if only these state arrays and the number of steps are known."""
        return {**cls.clock_start, "step": step}

    @classmethod
    def show_clock(cls, clock: Clock, state: Mapping[str, Any]) -> dict[str, float]:
        """The numbers of a clock by name; one whose name begins with _ only if it differs from that of `started`."""
        usual = cls.started(state, int(clock[0]))
        shown = zip(cls.clock_start, clock, strict=True)
        return {name: value for name, value in shown if not name.startswith("_") or value != usual[name]}

    @staticmethod
    def check_clock(clock: Clock) -> None:
        """Raise ValueError for a clock that no run can reach, which a file may contain."""

    @staticmethod
    def steady(h: Values) -> bool:
        """Whether `advance` gives the same coefficients at every step but the first."""
        return False

    @staticmethod
    def needs_loss(h: Values) -> bool:
        """Whether `step` must be given the loss."""
        return False

    @staticmethod
    def idle(h: Values) -> Mapping[str, float] | str:
        """What a step with a gradient of zero does: the factors that it has for state arrays, by name.

        A rule says so if it does nothing else, for `lazy_rows=False`. A factor for "param" is that of an L2 penalty.
        With hyperparameters for which this is not true, and in a rule that does not say anything, the reason, in words.
        """
        return "a gradient of zero does more in this rule than shrink the state"

    @staticmethod
    def initial(h: Values, state: str) -> float:
        """First value of a state array."""
        return 0.0

    @classmethod
    def check_state_dtype(cls, state: str, dtype: str | None) -> None:
        """Raise ValueError for a dtype that cannot hold a state array; None is the dtype of the arithmetic."""

    @classmethod
    def in_one_byte(cls, state: str) -> type[Compact]:
        """The format of a state array with ``state_dtype="int8"``."""
        return Squares8 if state in cls.squares else Int8

    @classmethod
    def held_in_one_byte(cls, h: Mapping[str, Any], given: Mapping[str, Any], states: frozenset[str]) -> dict[str, Any]:
        """Hyperparameters as they are in force with these states in one byte; ValueError for those that cannot be.

        `given` are the same, of which some may be schedules.
        """
        return dict(given)

    @classmethod
    def grid_of(cls, h: Values) -> Array:
        """The grid of `Steps8`, for rules whose state is in that format."""
        raise NotImplementedError

    fixed_in_one_byte: ClassVar[frozenset[str]] = frozenset()
    """Hyperparameters that cannot change while state is in one byte."""

    @staticmethod
    def show_state(state: dict[str, Array]) -> dict[str, Array]:
        """State arrays as the user sees them, under torch's names."""
        return state

    @staticmethod
    def read_state(state: dict[str, Array]) -> dict[str, Array]:
        """Undo `show_state`; raise ValueError for values that it never returns."""
        return state

    # What follows from these definitions -------------------------------------------------------------------------

    @classmethod
    def settled(cls, hyper: Values, steps: int) -> dict[str, Any]:
        """Hyperparameters of which some may be schedules, evaluated after `steps` completed steps and checked."""
        for key in cls.fixed:
            if is_schedule(hyper[key]):
                raise ValueError(
                    f"Invalid {key}: a schedule (expected a number: {cls.__name__} reads {key} only once, before the "
                    "first step)"
                )
        h = {key: at_step(hyper[key], steps) for key in cls.hyper}
        cls.check_all(h)
        return h

    @classmethod
    def check_all(cls, h: Values) -> None:
        """Raise ValueError or TypeError for illegal hyperparameters, including those that every rule has."""
        for key in cls.flags:
            if key in h:  # a subclass may have removed it from its hyperparameters
                is_on(key, h[key])
        check_number("weight_decay value", h["weight_decay"])
        if h["clip_value"] is not None:
            check_number("clip_value", h["clip_value"], infinite=True)
        cls.check(h)

    @classmethod
    def check_idle(cls, h: Values) -> None:
        """Raise ValueError if `lazy_rows=False` is not possible, because a gradient of zero does more than `idle`."""
        found = cls.idle(h)
        if not isinstance(found, str) and h["weight_decay"] and not h["decoupled_weight_decay"]:
            penalty = f"weight_decay={h['weight_decay']} is a gradient, unless decoupled_weight_decay is True"
            found = found if "param" in found else penalty
        if isinstance(found, str):
            raise ValueError(f"Invalid lazy_rows: False for {cls.__name__}: {found} (expected True)")

    @classmethod
    def check_in(cls, h: Values, dtype: str) -> None:
        """Raise ValueError for hyperparameters that are illegal when rounded to the dtype of the arithmetic."""
        if dtype != "float32":
            return
        rounded = {key: in_float32(value) for key, value in h.items()}
        try:
            cls.check_all(rounded)
            if rounded.get("eps") == 0 < h["eps"]:
                raise ValueError(
                    f"Invalid epsilon value: {h['eps']} (expected 0, or a number that is not 0 when rounded)"
                )
        except ValueError as error:
            raise ValueError(f"{error}, as rounded to float32, in which the rule computes") from None

    @classmethod
    def check_numbers(cls, coefs: tuple[float, ...], stages: tuple[float, ...], dtype: str) -> None:
        """Raise ValueError for coefficients of a step that are not finite in the dtype of the arithmetic."""
        largest = LARGEST[dtype]
        decay, scale, _, l2, *_ = stages
        for i, value in enumerate((*coefs, decay, scale, l2)):
            if not -largest < value < largest:
                name = (*cls.coef_names, *STAGES)[i]
                raise ValueError(
                    f"{cls.__name__} computes {name} = {value:g} from its hyperparameters; expected a number that is "
                    f"finite in {dtype}, in which the rule computes"
                )

    @classmethod
    def wanted(cls, h: Values) -> tuple[str, ...]:
        """Names of the state arrays that the hyperparameters ask for."""
        return tuple(name for name in cls.states if name not in cls.optional or h[cls.optional[name]])

    @classmethod
    def numbers(cls, h: Values, clock: Clock, loss: float | None) -> tuple[tuple[float, ...], Clock]:
        """Coefficients of the rule at the step after `clock`, and the clock after it."""
        cls.check_loss(h, loss)
        if loss is not None and cls.needs_loss(h):
            loss = -loss if h["maximize"] else loss
        return cls.advance(h, clock, loss)

    @classmethod
    def check_loss(cls, h: Values, loss: float | None) -> None:
        """Raise ValueError if the rule needs a loss and there is none."""
        if loss is None and cls.needs_loss(h):
            raise ValueError(f"{h['variant']} compares losses; expected step(..., loss=the loss)")

    @staticmethod
    def stages(
        h: Values, factor: float, zero_grads: bool, flush_denormals: bool, share: float = 0.0
    ) -> tuple[float, ...]:
        """Coefficients of the stages, in the order of `_stages.NEUTRAL`; `share` is that of the average of weights."""
        decoupled, clip = h["decoupled_weight_decay"], h["clip_value"]
        return (
            1.0 - h["lr"] * h["weight_decay"] if decoupled else 1.0,
            -factor if h["maximize"] else factor,
            math.inf if clip is None else clip,
            0.0 if decoupled else h["weight_decay"],
            float(zero_grads),
            float(flush_denormals),
            share,
        )

    @classmethod
    def refused(cls, key: Any) -> str:
        """Why a key that is not a hyperparameter is not allowed in a group; empty if it is a key of the user."""
        if not isinstance(key, str):
            return f"unknown hyperparameter {key!r}; expected a string"
        meant = cls.meant(key, *OBJECT_OPTIONS, *SETTINGS, "grads", "publish")
        if meant in (*SETTINGS, "grads", "publish"):
            hint = "" if meant == key else did_you_mean(meant)
            return f"unknown hyperparameter {key!r}{hint}; {meant} is an option of the whole optimizer, not of a group"
        if key in Rule.known or meant:
            return f"unknown hyperparameter {key!r}{did_you_mean(meant)}; known here: {', '.join(sorted(cls.grouped))}"
        return ""

    @classmethod
    def meant(cls, key: Any, *more: str) -> str:
        """The hyperparameter, or one of `more`, that a misspelt name or one of another library means; empty if none."""
        names = [*cls.hyper, *more]
        if key in names:
            return str(key)
        if not isinstance(key, str):
            return ""
        return next((ours for ours in names if key.lower() in HINTS.get(ours, "").split()), "") or near(key, names)


STAGES = ("the decay", "the factor of the gradient", "weight_decay")


def in_float32(value: Any) -> Any:
    """A number, or a tuple of numbers, rounded to float32; any other object unchanged."""
    if isinstance(value, tuple):
        return tuple(map(in_float32, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if -LARGEST["float32"] < value < LARGEST["float32"]:
        return FLOAT.unpack(FLOAT.pack(value))[0]  # NumPy takes five times as long
    return value if math.isnan(value) else math.copysign(math.inf, value)
