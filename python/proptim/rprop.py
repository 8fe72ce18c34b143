"""Resilient backpropagation: only the signs of the last two gradients count."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from proptim._arrays import Array, real_view, select
from proptim._formats import (
    FORGET,
    REMEMBERED,
    SIZES,
    Compact,
    Steps,
    Steps8,
    arithmetic,
    from_steps8,
    rounded,
    steps_of_octave,
    widened,
)
from proptim._options import Options
from proptim._parameters import Clock, Values, check_number, is_pair, is_schedule
from proptim.optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

VARIANTS = ("rprop-", "irprop-", "rprop+", "irprop+")

SMALLEST, LARGEST = 2.0**-50, 2.0**37
LARGEST_ETA = sys.float_info.max  # a whole number may be beyond every float
ETAS_ON_GRID = (0.5, 2**0.25)
"""For state in one byte: of all that are on a grid those nearest to the default."""


# Two texts for steps in one byte, which Numba compiles as it does the rule.


def _grid_steps(etas: Any) -> Any:
    """The steps of an octave, 1 to 4, of the grid of step sizes that these etas are on; 0 if they are on none."""
    minus, plus = etas
    n = round(1 / math.log2(plus))
    m = round(-math.log2(minus) * n)
    # The same but for roundings to float32.
    on = 1 <= n <= 4 and m >= 1 and abs(minus / 2.0 ** (-m / n) - 1) < 1e-6 and abs(plus / 2.0 ** (1 / n) - 1) < 1e-6
    return n if on else 0


def _on_grid(step_sizes: Any, grid: Any) -> Any:
    """The step sizes in force on a grid: the least is the smallest of the grid that is not below step_min."""
    low, high = step_sizes
    # A size of the grid itself may be off by a rounding.
    k = min(math.floor(float(grid[1]) * math.log2(high / low) + 1e-5), SIZES - 1)
    # Of np.float64, for in code that Numba compiles the float of a float32 is one.
    return float(np.float64(from_steps8(k, grid[0], steps_of_octave(grid)))), high


class Rprop(Optimizer):
    r"""Rprop in all four variants: step sizes grow while the sign of the gradient stays and shrink when it changes.

    With :math:`s` the product of the signs of the last two gradients,

    .. math::

        d \leftarrow \begin{cases} d\,\eta_+ & s > 0 \\ d\,\eta_- & s < 0 \\ d & s = 0 \end{cases} \qquad
        d \leftarrow \min(\max(d, d_\mathrm{min}), d_\mathrm{max})

        p \leftarrow p - \mathrm{sign}(g)\, d

    as in [1]_, and when the sign changes (:math:`s < 0`) the variants [2]_ differ:

    ========== ============================================================ =====================
    variant    the move                                                     the next step sees
    ========== ============================================================ =====================
    "rprop-"   with the new, smaller step size                              this sign
    "irprop-"  none                                                         no last sign
    "rprop+"   takes back the last move                                     no last sign
    "irprop+"  takes back the last move if the loss has risen, else none    no last sign
    ========== ============================================================ =====================

    Rprop is for full batches: on mini-batches, nine gradients of 0.1 and one of -0.9 should cancel, and do not.

    Parameters
    ----------
    params : sequence or dict of arrays, or sequence of groups
        Float or complex arrays, stepped in place; see `Optimizer`.
    lr : float, default 1e-2
        First step size of every weight, clamped to `step_sizes`. It cannot be a schedule, because it is read only once.
    etas : (float, float), default (0.5, 1.2)
        :math:`(\eta_-, \eta_+)`, below and above 1.
    step_sizes : (float, float), default (1e-6, 50)
        :math:`(d_\mathrm{min}, d_\mathrm{max})`, within 2**-50 and 2**37. A change in mid-run applies at the next step.
    variant : {"rprop-", "irprop-", "rprop+", "irprop+"}, default "rprop-"
        "irprop+" needs ``step(..., loss=...)``.
    **options
        See `Optimizer`.

    Raises
    ------
    ValueError
        For a hyperparameter out of range or a schedule for lr; read-only or overlapping arrays.
    TypeError
        For anything that is not an array of a supported dtype in CPU memory.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> w = np.zeros(2)
    >>> opt = proptim.Rprop([w], lr=0.1)
    >>> for grad in ([1e-6, 1e3], [1e-6, 1e3], [-1e-6, 1e3]):
    ...     opt.step([np.array(grad)])
    >>> w.round(3)
    array([-0.16 , -0.364])
    >>> opt.state[0]["step_size"]
    array([0.06 , 0.144])

    Notes
    -----
    torch.optim.Rprop is ``variant="irprop-"``, with two differences. Here signs are compared and gradients are never
    multiplied with each other, so that tiny ones (1e-25 in float32) count; and a NaN gradient makes its parameter NaN,
    where torch ignores it. optax.rprop (0.2.8) applies every update one step late. The state is one number per weight;
    `state_dict` shows it as torch's ``step_size`` and ``prev``, the latter as -1, 0 or 1.

    References
    ----------
    .. [1] Riedmiller & Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm",
       ICNN 1993.
    .. [2] Igel & Huesken, "Empirical evaluation of the improved Rprop learning algorithms", Neurocomputing 50, 2003.
    """

    states = ("step_word",)
    never_zero = frozenset({"step_word"})
    shown_from = {"prev": "step_word", "step_size": "step_word"}
    clock_start = {"step": 0, "prev_loss": math.inf}
    fixed = frozenset({"lr"})
    torch_means = {"variant": "irprop-"}
    cases = (
        {"lr": 0.1, "variant": "rprop-"},
        {"lr": 0.1, "variant": "irprop-", "step_sizes": (0.05, 0.2)},
        {"lr": 0.1, "variant": "rprop+"},
        {"lr": 0.1, "variant": "irprop+"},
    )

    fixed_in_one_byte = frozenset({"etas", "step_sizes"})

    @staticmethod
    def rule(
        param: Any,
        grad: Any,
        step_word: Any,
        eta_minus: Any,
        eta_plus: Any,
        step_min: Any,
        step_max: Any,
        move: Any,
        take_back: Any,
        remember: Any,
        remembered: Any,
        forget: Any,
        unforget: Any,
    ) -> tuple[Any, ...]:
        word = np.abs(step_word)
        still = np.abs(grad)  # subtracting +0 keeps even the sign of a zero parameter; a NaN is passed on
        known = word < remembered
        moves = still > 0
        turned = (grad < 0) != (step_word < 0)
        one = forget * unforget  # in the dtype
        factor = select(moves, select(turned, eta_minus, eta_plus), one)
        size = word * select(known, factor, unforget)
        size = np.minimum(np.maximum(size, step_min), step_max)
        flip = known & moves & turned
        length = select(flip, move * size + take_back * word, size)
        param = param - select(moves, select(grad < 0, -length, length), still)
        lost = size * forget
        kept = select(moves, select(grad < 0, -size, size), lost)
        return param, kept if remember else select(flip, lost, kept)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        variant: str = "rprop-",
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "etas": etas, "step_sizes": step_sizes, "variant": variant}
        super().__init__(params, hyper, options)

    @staticmethod
    def check(h: Values) -> None:
        check_number("learning rate", h["lr"])
        if h["variant"] not in VARIANTS:
            raise ValueError(f"Invalid variant: {h['variant']!r} (expected one of {', '.join(map(repr, VARIANTS))})")
        if not is_pair(h["etas"]) or not 0.0 < h["etas"][0] < 1.0 < h["etas"][1] <= LARGEST_ETA:
            raise ValueError(f"Invalid eta values: {h['etas']} (expected 0 < eta_minus < 1 < eta_plus)")
        if not is_pair(h["step_sizes"]) or not SMALLEST <= h["step_sizes"][0] <= h["step_sizes"][1] <= LARGEST:
            raise ValueError(
                f"Invalid step sizes: {h['step_sizes']} (expected 2**-50 <= step_min <= step_max <= 2**37)"
            )

    @staticmethod
    def advance(h: Values, clock: Clock, loss: float | None) -> tuple[tuple[float, ...], Clock]:
        t, last_loss = clock
        variant = h["variant"]
        # What a change of sign does: move with the new step, take back the last move, remember this sign.
        if variant == "rprop-":
            move, take_back, remember = 1.0, 0.0, 1.0
        elif variant == "irprop-":
            move, take_back, remember = 0.0, 0.0, 0.0
        elif variant == "rprop+":
            move, take_back, remember = 0.0, 1.0, 0.0
        elif variant == "irprop+" and loss is not None:
            move, take_back, remember = 0.0, 1.0 if loss > last_loss else 0.0, 0.0
            last_loss = loss
        else:
            raise ValueError("Invalid variant: expected one of 'rprop-', 'irprop-', 'rprop+', 'irprop+'")
        if variant != "irprop+":
            last_loss = math.inf  # should the variant become "irprop+", there is no last loss to compare with
        coefs = (*h["etas"], *h["step_sizes"], move, take_back, remember, REMEMBERED, FORGET, 1 / FORGET)
        return coefs, (t + 1, last_loss)

    @staticmethod
    def clock_at(h: Values, steps: int) -> Clock:
        return (steps, math.inf)

    @staticmethod
    def steady(h: Values) -> bool:
        return bool(h["variant"] != "irprop+")

    @staticmethod
    def needs_loss(h: Values) -> bool:
        return bool(h["variant"] == "irprop+")

    @staticmethod
    def initial(h: Values, state: str) -> float:
        low, high = h["step_sizes"]
        return float(min(max(h["lr"], low), high)) * FORGET

    @classmethod
    def check_state_dtype(cls, state: str, dtype: str | None) -> None:
        if dtype == "float16":
            raise ValueError(
                "Invalid state_dtype: 'float16' for 'step_word', whose values range from 2**-50 to 2**127 (expected "
                "'bfloat16', or none)"
            )

    @classmethod
    def in_one_byte(cls, state: str) -> type[Compact]:
        return Steps8

    @classmethod
    def held_in_one_byte(cls, h: Values, given: Mapping[str, Any], states: frozenset[str]) -> dict[str, Any]:
        for key in ("etas", "step_sizes"):
            if is_schedule(given[key]):
                raise ValueError(
                    f"Invalid {key}: a schedule with state_dtype='int8' (expected numbers, for which the grid of step "
                    "sizes is made)"
                )
        return {**given, "step_sizes": _on_grid(h["step_sizes"], cls.grid_of(h))}

    @classmethod
    def grid_of(cls, h: Values) -> Array:
        n = _grid_steps(h["etas"])
        if n == 0:
            raise ValueError(
                f"Invalid eta values: {h['etas']} with state_dtype='int8', whose step sizes are on a grid (expected "
                "eta_plus = 2**(1/n) with n of 1 to 4, and eta_minus a power of it: etas=(0.5, 2**0.25), or leave "
                "state_dtype out)"
            )
        return np.array([h["step_sizes"][1], n], np.float32)

    @staticmethod
    def show_state(state: dict[str, Array]) -> dict[str, Array]:
        shown = {name: np.empty_like(state["step_word"]) for name in ("prev", "step_size")}
        steps = Steps(real_view(shown["step_size"]), real_view(shown["prev"]))
        word = real_view(state["step_word"])
        with np.errstate(all="ignore"):  # what is not taken may underflow
            stores = steps.stores(widened(word, arithmetic(word.dtype)))
        for array, where, value in stores:
            array[where] = rounded(value, array.dtype)
        return shown

    @staticmethod
    def read_state(state: dict[str, Array]) -> dict[str, Array]:
        if state.keys() != {"prev", "step_size"}:
            raise ValueError(f"state has the arrays {sorted(state)}; expected prev and step_size")
        size, sign = (real_view(state[name]) for name in ("step_size", "prev"))
        size, sign = (widened(array, arithmetic(array.dtype)) for array in (size, sign))
        if not ((size >= SMALLEST) & (size <= LARGEST)).all():
            raise ValueError("step_size has values out of range; expected 2**-50 <= step_size <= 2**37")
        word = np.empty_like(state["step_size"])
        with np.errstate(all="ignore"):  # what is not taken may underflow
            real_view(word)[...] = rounded(Steps(size, sign).load(), real_view(word).dtype)
        return {"step_word": word}
