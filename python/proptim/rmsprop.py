"""RMSprop: divide by a moving root mean square of the gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from proptim._arrays import select
from proptim._options import Options
from proptim._parameters import Clock, Schedulable, Values, check_number
from proptim.optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class RMSprop(Optimizer):
    r"""RMSprop with the options of all common implementations: momentum, centering, the places of eps and lr.

    .. math::

        v \leftarrow \alpha v + (1-\alpha) g^2

        p \leftarrow p - \eta \frac{g}{\sqrt{v} + \epsilon}

    as in [1]_. Centered [2]_, with :math:`a \leftarrow \alpha a + (1-\alpha) g`, the root is of
    :math:`\max(v - a^2, 0)`. With momentum, and :math:`u` the quotient, :math:`b \leftarrow \mu b + u` and
    :math:`p \leftarrow p - \eta b`, or :math:`p \leftarrow p - \eta (u + \mu b)` with nesterov.

    Parameters
    ----------
    params : sequence or dict of arrays, or sequence of groups
        Float or complex arrays, stepped in place; see `Optimizer`.
    lr : float or schedule, default 1e-3
        Learning rate :math:`\eta`.
    alpha : float or schedule, default 0.9
        Decay of the moving average, as published; torch has 0.99.
    eps : float or schedule, default 1e-8
        Added to the root, or under it with `eps_inside_sqrt`.
    momentum : float or schedule, default 0
        :math:`\mu`; above 0 it needs the state array ``momentum_buffer``.
    centered : bool, default False
        Divide by the standard deviation instead of the root mean square; needs the state array ``grad_avg``.
    nesterov : bool, default False
        Nesterov momentum; requires `momentum`.
    eps_inside_sqrt : bool, default False
        Add eps under the root. Keras, TF1, optax and timm have True.
    lr_in_momentum : bool, default False
        Multiply by lr before the momentum buffer (Keras, TF1, optax, timm), so that a change of lr does not affect the
        steps that are already in the buffer, instead of after it (torch).
    bias_correction : bool, default False
        Divide v and a by :math:`1-\alpha^t`, as optax and Adam do.
    initial_square_avg : float, default 0
        First value of v; TF1 and timm start at 1.
    **options
        See `Optimizer`.

    Raises
    ------
    ValueError
        For a hyperparameter out of range, read-only or overlapping arrays.
    TypeError
        For anything that is not an array of a supported dtype in CPU memory.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> w = np.array([1.0, 1.0])
    >>> opt = proptim.RMSprop([w], lr=0.1)
    >>> opt.step([np.array([1e-3, 1e3])])  # sizes of gradients hardly matter
    >>> w.round(4)
    array([0.6838, 0.6838])

    A preset reproduces the run of another library:

    >>> opt = proptim.RMSprop([w], **proptim.presets.rmsprop["keras"])

    Notes
    -----
    torch.optim.RMSprop is ``presets.rmsprop["torch"]``; unlike torch, optax and Keras the centered variance is clamped
    at 0, where cancellation would make it negative and the step NaN or unbounded.

    References
    ----------
    .. [1] Tieleman & Hinton, "Lecture 6.5 - rmsprop", Neural Networks for Machine Learning, 2012.
    .. [2] Graves, "Generating sequences with recurrent neural networks", 2013 (centered).
    """

    states = ("square_avg", "grad_avg", "momentum_buffer")
    squares = frozenset({"square_avg"})
    fixed_in_one_byte = frozenset({"centered"})
    optional = {"grad_avg": "centered", "momentum_buffer": "momentum"}
    clock_start = {"step": 0, "_grad_avg_missed": -1.0}
    fixed = frozenset({"initial_square_avg"})
    cases = (
        {},
        {"momentum": 0.9, "nesterov": True, "lr_in_momentum": True},
        {"centered": True, "eps_inside_sqrt": True, "bias_correction": True},
        {"centered": True, "momentum": 0.5, "initial_square_avg": 1.0},
    )

    @staticmethod
    def rule(
        param: Any,
        grad: Any,
        square_avg: Any,
        grad_avg: Any,
        momentum_buffer: Any,
        lr: Any,
        alpha: Any,
        one_minus_alpha: Any,
        correction: Any,
        eps_inside: Any,
        eps: Any,
        momentum: Any,
        nesterov: Any,
        lr_inside: Any,
        lr_outside: Any,
        mean_correction: Any,
    ) -> tuple[Any, ...]:
        square_avg = alpha * square_avg + one_minus_alpha * (grad * grad)
        variance = square_avg * correction
        if grad_avg is not None:
            grad_avg = alpha * grad_avg + one_minus_alpha * grad
            mean = grad_avg * mean_correction
            variance = variance - mean * mean
            variance = select(variance < 0, mean - mean, variance)  # a zero of the right dtype
        step = grad / (np.sqrt(variance + eps_inside) + eps)
        if momentum_buffer is None:
            step = lr * step
        else:
            step = lr_inside * step
            momentum_buffer = momentum * momentum_buffer + step
            step = step + momentum * momentum_buffer if nesterov else momentum_buffer
            step = lr_outside * step
        return param - step, square_avg, grad_avg, momentum_buffer

    def __init__(
        self,
        params: Any,
        lr: Schedulable = 1e-3,
        alpha: Schedulable = 0.9,
        eps: Schedulable = 1e-8,
        momentum: Schedulable = 0.0,
        centered: bool = False,
        *,
        nesterov: bool = False,
        eps_inside_sqrt: bool = False,
        lr_in_momentum: bool = False,
        bias_correction: bool = False,
        initial_square_avg: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "momentum": momentum,
            "centered": centered,
            "nesterov": nesterov,
            "eps_inside_sqrt": eps_inside_sqrt,
            "lr_in_momentum": lr_in_momentum,
            "bias_correction": bias_correction,
            "initial_square_avg": initial_square_avg,
        }
        super().__init__(params, hyper, options)

    @classmethod
    def held_in_one_byte(cls, h: Values, given: Mapping[str, Any], states: frozenset[str]) -> dict[str, Any]:
        if h["centered"] and states & {"square_avg", "grad_avg"}:
            raise ValueError(
                "Invalid state_dtype: 'int8' with centered=True, which divides by a difference of two averages that "
                "their rounding can make 0 (expected 'bfloat16', or state_dtype={'momentum_buffer': 'int8'})"
            )
        return dict(given)

    @staticmethod
    def check(h: Values) -> None:
        check_number("learning rate", h["lr"])
        check_number("alpha value", h["alpha"], high=1.0)
        check_number("epsilon value", h["eps"])
        check_number("momentum value", h["momentum"])
        check_number("initial_square_avg value", h["initial_square_avg"])
        if h["nesterov"] and h["momentum"] <= 0:
            raise ValueError("Nesterov momentum requires a momentum")

    @staticmethod
    def advance(h: Values, clock: Clock, loss: float | None) -> tuple[tuple[float, ...], Clock]:
        t, missed = clock[0] + 1, clock[1]
        # The mean may begin in mid-run, so it needs a count of its own: while the mean is kept, the number of steps
        # that it has missed; while it is not kept, -1 minus the number of steps that it has seen. This number changes
        # only when `centered` is switched.
        if h["centered"] and missed < 0:
            missed += t
        elif not h["centered"] and missed >= 0:
            missed -= t
        lr, alpha, eps = h["lr"], h["alpha"], h["eps"]
        return (
            lr,
            alpha,
            1.0 - alpha,
            1.0 / (1.0 - alpha**t) if h["bias_correction"] else 1.0,
            eps if h["eps_inside_sqrt"] else 0.0,
            0.0 if h["eps_inside_sqrt"] else eps,
            h["momentum"],
            float(h["nesterov"]),
            lr if h["lr_in_momentum"] else 1.0,
            1.0 if h["lr_in_momentum"] else lr,
            1.0 / (1.0 - alpha ** (t - missed)) if h["bias_correction"] and h["centered"] else 1.0,
        ), (t, missed)

    @staticmethod
    def clock_at(h: Values, steps: int) -> Clock:
        return (steps, 0.0 if steps and h["centered"] else -1.0)

    @classmethod
    def started(cls, state: Mapping[str, Any], step: int) -> dict[str, float]:
        return {"step": step, "_grad_avg_missed": 0.0 if step and "grad_avg" in state else -1.0}

    @staticmethod
    def check_clock(clock: Clock) -> None:
        if not -1 - clock[0] <= clock[1] <= clock[0] or clock[1] % 1:
            raise ValueError(f"_grad_avg_missed is {clock[1]}; expected a count of the steps that grad_avg has missed")

    @staticmethod
    def idle(h: Values) -> Mapping[str, float] | str:
        if h["momentum"]:
            return f"momentum={h['momentum']} moves weights that have no gradient"
        if not h["eps"]:
            return "eps=0 makes NaN of a gradient of zero before the first other one"
        return {"square_avg": h["alpha"], **({"grad_avg": h["alpha"]} if h["centered"] else {})}

    @staticmethod
    def steady(h: Values) -> bool:
        return not h["bias_correction"]

    @staticmethod
    def initial(h: Values, state: str) -> float:
        return float(h["initial_square_avg"]) if state == "square_avg" else 0.0
