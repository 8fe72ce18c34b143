"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from proptim._arrays import select
from proptim._options import Options
from proptim._parameters import Clock, Schedulable, Values, check_number
from proptim.adam import check_betas
from proptim.optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Lion(Optimizer):
    r"""Lion: every weight moves by exactly lr, against the sign of an average of momentum and gradient.

    .. math::

        p \leftarrow p - \eta\,\mathrm{sign}(\beta_1 m + (1-\beta_1) g)

        m \leftarrow \beta_2 m + (1-\beta_2) g

    as in [1]_.

    Parameters
    ----------
    params : sequence or dict of arrays, or sequence of groups
        Float or complex arrays, stepped in place; see `Optimizer`.
    lr : float or schedule, default 1e-4
        Learning rate :math:`\eta`, three to ten times below Adam's.
    betas : (float, float), default (0.9, 0.99)
        :math:`(\beta_1, \beta_2)`; each may be a schedule.
    **options
        See `Optimizer`; the paper uses decoupled weight decay.

    Raises
    ------
    ValueError
        For a hyperparameter out of range, read-only or overlapping arrays.
    TypeError
        For anything that is not an array of a supported dtype in CPU memory.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> w = np.array([1.0, 1.0, 1.0])
    >>> opt = proptim.Lion([w], lr=0.25)
    >>> opt.step([np.array([1e-6, -1e6, 0.0])])
    >>> w
    array([0.75, 1.25, 1.  ])

    Notes
    -----
    Equal to optax.lion, whose default is a decoupled weight decay of 1e-3, and to Keras, whose default lr is 1e-3.
    torch.optim has no Lion. A NaN gradient makes its parameter NaN.

    References
    ----------
    .. [1] Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023.
    """

    states = ("exp_avg",)
    cases = ({}, {"weight_decay": 0.1, "decoupled_weight_decay": True})

    @staticmethod
    def rule(
        param: Any,
        grad: Any,
        exp_avg: Any,
        lr: Any,
        beta1: Any,
        one_minus_beta1: Any,
        beta2: Any,
        one_minus_beta2: Any,
    ) -> tuple[Any, ...]:
        update = beta1 * exp_avg + one_minus_beta1 * grad
        still = np.abs(update)  # +0 leaves even the sign of a zero alone; NaN goes on
        param = param - select(update < 0, -lr, select(update > 0, lr, still))
        return param, beta2 * exp_avg + one_minus_beta2 * grad

    def __init__(
        self,
        params: Any,
        lr: Schedulable = 1e-4,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.99),
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas}, options)

    @staticmethod
    def check(h: Values) -> None:
        check_number("learning rate", h["lr"])
        check_betas(h["betas"])

    @staticmethod
    def advance(h: Values, clock: Clock, loss: float | None) -> tuple[tuple[float, ...], Clock]:
        beta1, beta2 = h["betas"]
        return (h["lr"], beta1, 1.0 - beta1, beta2, 1.0 - beta2), (clock[0] + 1,)

    @staticmethod
    def steady(h: Values) -> bool:
        return True
