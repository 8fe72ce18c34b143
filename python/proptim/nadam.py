"""NAdam: Adam with Nesterov's look-ahead."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from proptim._options import Options
from proptim._parameters import Clock, Schedulable, Values, check_number
from proptim.adam import check_betas
from proptim.optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class NAdam(Optimizer):
    r"""NAdam: Adam whose step already uses the momentum of the next one.

    .. math::

        \mu_t = \beta_1 (1 - \tfrac{1}{2} 0.96^{t\psi}), \quad c_t = \prod_{i \le t} \mu_i

        p \leftarrow p - \eta \frac{\frac{1-\mu_t}{1-c_t} g + \frac{\mu_{t+1}}{1-c_t\mu_{t+1}} m}
        {\sqrt{v / (1-\beta_2^t)} + \epsilon}

    at step t, with m and v the moving averages of `Adam` [1]_.

    Parameters
    ----------
    params : sequence or dict of arrays, or sequence of groups
        Float or complex arrays, stepped in place; see `Optimizer`.
    lr : float or schedule, default 1e-3
        Learning rate :math:`\eta`. torch has 2e-3.
    betas : (float, float), default (0.9, 0.999)
        Decay of the two moving averages; each may be a schedule.
    eps : float or schedule, default 1e-8
        Added to the root.
    momentum_decay : float or schedule, default 4e-3
        :math:`\psi`.
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
    >>> w = np.array([1.0])
    >>> opt = proptim.NAdam([w], lr=0.1)
    >>> opt.step([np.array([3.0])])
    >>> w.round(4)
    array([0.8944])

    Notes
    -----
    torch.optim.NAdam keeps the product c in float32 and this class in float64, so that the two agree to about 1e-7.
    Keras has :math:`\psi = 1`. optax.nadam has no such schedule and uses :math:`\mu = \beta_1` from the first step on;
    ``momentum_decay=1e6`` gives the same here.

    References
    ----------
    .. [1] Dozat, "Incorporating Nesterov momentum into Adam", ICLR workshop 2016.
    """

    states = ("exp_avg", "exp_avg_sq")
    squares = frozenset({"exp_avg_sq"})
    clock_start = {"step": 0, "mu_product": 1.0}

    @staticmethod
    def rule(
        param: Any,
        grad: Any,
        exp_avg: Any,
        exp_avg_sq: Any,
        grad_size: Any,
        avg_size: Any,
        beta1: Any,
        one_minus_beta1: Any,
        beta2: Any,
        one_minus_beta2: Any,
        root_correction: Any,
        eps: Any,
    ) -> tuple[Any, ...]:
        exp_avg = beta1 * exp_avg + one_minus_beta1 * grad
        exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * (grad * grad)
        step = (grad_size * grad + avg_size * exp_avg) / (np.sqrt(exp_avg_sq) * root_correction + eps)
        return param - step, exp_avg, exp_avg_sq

    def __init__(
        self,
        params: Any,
        lr: Schedulable = 1e-3,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.999),
        eps: Schedulable = 1e-8,
        momentum_decay: Schedulable = 4e-3,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "eps": eps, "momentum_decay": momentum_decay}
        super().__init__(params, hyper, options)

    @staticmethod
    def check(h: Values) -> None:
        check_number("learning rate", h["lr"])
        check_betas(h["betas"])
        check_number("epsilon value", h["eps"])
        check_number("momentum_decay value", h["momentum_decay"])

    @staticmethod
    def check_clock(clock: Clock) -> None:
        if clock[0] and clock[1] == 1.0:  # every decay is below 1
            raise ValueError(
                f"state has no 'mu_product', or it is 1 after {clock[0]:.0f} steps; expected the product of their "
                "decays, as the state of NAdam has it"
            )
        if not 0.0 <= clock[1] <= 1.0:
            raise ValueError(f"mu_product is {clock[1]}; expected a product of decays, at least 0 and at most 1")

    @staticmethod
    def advance(h: Values, clock: Clock, loss: float | None) -> tuple[tuple[float, ...], Clock]:
        t, product = clock[0] + 1, clock[1]
        lr, (beta1, beta2) = h["lr"], h["betas"]
        # 0.96 and 1/2: the warming schedule of the momentum in Dozat 2016, section 3
        mu = beta1 * (1.0 - 0.5 * 0.96 ** (t * h["momentum_decay"]))
        mu_next = beta1 * (1.0 - 0.5 * 0.96 ** ((t + 1) * h["momentum_decay"]))
        product *= mu
        return (
            lr * (1.0 - mu) / (1.0 - product),
            lr * mu_next / (1.0 - product * mu_next),
            beta1,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            1.0 / math.sqrt(1.0 - beta2**t),
            h["eps"],
        ), (t, product)
