"""RAdam: Adam that divides by its second moment only once that has averaged over enough steps."""

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


class RAdam(Optimizer):
    r"""Rectified Adam: the first steps use momentum only, later ones a factor for the uncertainty of the second moment.

    .. math::

        \rho_\infty = \frac{2}{1-\beta_2} - 1, \quad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1-\beta_2^t}

        p \leftarrow p - \eta\, r_t \frac{m / (1-\beta_1^t)}{(\sqrt{v} + \epsilon) / \sqrt{1-\beta_2^t}}
        \quad \text{if } \rho_t > 5, \text{ else} \quad p \leftarrow p - \eta \frac{m}{1-\beta_1^t}

        r_t = \sqrt{\frac{(\rho_t-4)(\rho_t-2)\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\rho_t}}

    at step t, with m and v the moving averages of `Adam` [1]_.

    Parameters
    ----------
    params : sequence or dict of arrays, or sequence of groups
        Float or complex arrays, stepped in place; see `Optimizer`.
    lr : float or schedule, default 1e-3
        Learning rate :math:`\eta`.
    betas : (float, float), default (0.9, 0.999)
        Decay of the two moving averages; each may be a schedule.
    eps : float or schedule, default 1e-8
        Added to the root.
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
    >>> opt = proptim.RAdam([w], lr=0.1)
    >>> opt.step([np.array([0.5, 2.0])])  # the first steps are as long as the gradient
    >>> w
    array([0.95, 0.8 ])

    Notes
    -----
    Equal to torch.optim.RAdam, where eps is added to the root before its correction. optax.radam adds it after, and
    begins to rectify at its argument `threshold`, also 5.

    References
    ----------
    .. [1] Liu et al., "On the variance of the adaptive learning rate and beyond", ICLR 2020.
    """

    states = ("exp_avg", "exp_avg_sq")
    squares = frozenset({"exp_avg_sq"})
    cases = ({}, {"betas": (0.5, 0.6)})
    # Steps are rectified from the 6th on; with a beta2 of 0.6, which averages over too few steps, none is.

    @staticmethod
    def rule(
        param: Any,
        grad: Any,
        exp_avg: Any,
        exp_avg_sq: Any,
        step_size: Any,
        beta1: Any,
        one_minus_beta1: Any,
        beta2: Any,
        one_minus_beta2: Any,
        rectified: Any,
        eps: Any,
    ) -> tuple[Any, ...]:
        exp_avg = beta1 * exp_avg + one_minus_beta1 * grad
        exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * (grad * grad)
        step = exp_avg / (np.sqrt(exp_avg_sq) + eps) if rectified else exp_avg
        return param - step_size * step, exp_avg, exp_avg_sq

    def __init__(
        self,
        params: Any,
        lr: Schedulable = 1e-3,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.999),
        eps: Schedulable = 1e-8,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps}, options)

    @staticmethod
    def check(h: Values) -> None:
        check_number("learning rate", h["lr"])
        check_betas(h["betas"])
        check_number("epsilon value", h["eps"])

    @staticmethod
    def advance(h: Values, clock: Clock, loss: float | None) -> tuple[tuple[float, ...], Clock]:
        t = clock[0] + 1
        beta1, beta2 = h["betas"]
        step_size, rectified = h["lr"] / (1.0 - beta1**t), 0.0
        known = 1.0 - beta2**t
        most = 2.0 / (1.0 - beta2) - 1.0
        rho = most - 2.0 * t * beta2**t / known
        if rho > 5.0:  # 5: where torch begins; the paper has 4, at which the variance of the rate is first finite
            r = (rho - 4.0) * (rho - 2.0) * most / ((most - 4.0) * (most - 2.0) * rho)
            step_size, rectified = step_size * math.sqrt(r * known), 1.0
        return (step_size, beta1, 1.0 - beta1, beta2, 1.0 - beta2, rectified, h["eps"]), (t,)
