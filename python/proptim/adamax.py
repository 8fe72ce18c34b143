"""AdaMax: Adam with the largest recent gradient in place of the root mean square."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from proptim._arrays import select
from proptim._options import Options
from proptim._parameters import Clock, Schedulable, Values, check_number
from proptim.adam import check_betas
from proptim.optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Adamax(Optimizer):
    r"""AdaMax: Adam that divides by a decaying maximum of the gradients, and so needs no square root.

    .. math::

        m \leftarrow \beta_1 m + (1-\beta_1) g

        u \leftarrow \max(\beta_2 u, |g| + \epsilon)

        p \leftarrow p - \frac{\eta}{1-\beta_1^t} \frac{m}{u}

    at step t, as in [1]_, section 7.1.

    Parameters
    ----------
    params : sequence or dict of arrays, or sequence of groups
        Float or complex arrays, stepped in place; see `Optimizer`.
    lr : float or schedule, default 2e-3
        Learning rate :math:`\eta`.
    betas : (float, float), default (0.9, 0.999)
        Decay of the moving average and of the maximum; each may be a schedule.
    eps : float or schedule, default 1e-8
        Added to the absolute value of the gradient.
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
    >>> opt = proptim.Adamax([w], lr=0.1)
    >>> opt.step([np.array([1e-3, 1e3])])  # the first step is lr, whatever the gradient
    >>> w.round(4)
    array([0.9, 0.9])

    Notes
    -----
    Equal to torch.optim.Adamax. With eps = 0 a weight whose gradients were all zero becomes NaN, as in torch.
    optax.adamax and Keras add eps to the maximum instead of to the gradient.

    References
    ----------
    .. [1] Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    """

    states = ("exp_avg", "exp_inf")
    squares = frozenset({"exp_inf"})
    cases = ({}, {"betas": (0.5, 0.9), "eps": 1e-3})

    @staticmethod
    def rule(
        param: Any,
        grad: Any,
        exp_avg: Any,
        exp_inf: Any,
        step_size: Any,
        beta1: Any,
        one_minus_beta1: Any,
        beta2: Any,
        eps: Any,
    ) -> tuple[Any, ...]:
        exp_avg = beta1 * exp_avg + one_minus_beta1 * grad
        decayed = beta2 * exp_inf
        size = np.abs(grad) + eps
        exp_inf = select(decayed < math.inf, np.maximum(decayed, size), decayed + size)  # NaN stays
        return param - step_size * (exp_avg / exp_inf), exp_avg, exp_inf

    def __init__(
        self,
        params: Any,
        lr: Schedulable = 2e-3,
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
        return (h["lr"] / (1.0 - beta1**t), beta1, 1.0 - beta1, beta2, h["eps"]), (t,)
