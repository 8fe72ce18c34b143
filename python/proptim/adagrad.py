"""Adagrad: divide by the root of the sum of all squared gradients so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from proptim._options import Options
from proptim._parameters import Clock, Schedulable, Values, check_number
from proptim.optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Adagrad(Optimizer):
    r"""Adagrad: divide by the root of the sum of all squared gradients of a weight, so that steps shrink for ever.

    .. math::

        S \leftarrow S + g^2

        p \leftarrow p - \frac{\eta}{1 + (t-1)\,\lambda} \frac{g}{\sqrt{S} + \epsilon}

    at step t, as in [1]_.

    Parameters
    ----------
    params : sequence or dict of arrays, or sequence of groups
        Float or complex arrays, stepped in place; see `Optimizer`.
    lr : float or schedule, default 1e-2
        Learning rate :math:`\eta`.
    lr_decay : float or schedule, default 0
        :math:`\lambda`.
    initial_accumulator_value : float, default 0
        First value of S; Keras, TF and optax start at 0.1.
    eps : float or schedule, default 1e-10
        Added to the root, or under it with `eps_inside_sqrt`.
    eps_inside_sqrt : bool, default False
        Keras and optax have True, with eps = 1e-7.
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
    >>> opt = proptim.Adagrad([w], lr=0.1)
    >>> for _ in range(4):
    ...     opt.step([np.array([1.0])])
    >>> w.round(4)  # 1 - 0.1 (1 + 1/sqrt(2) + 1/sqrt(3) + 1/2)
    array([0.7216])

    Notes
    -----
    Equal to torch.optim.Adagrad. optax.adagrad and Keras are ``initial_accumulator_value=0.1, eps=1e-7,
    eps_inside_sqrt=True``; their lr decays by a schedule.

    References
    ----------
    .. [1] Duchi, Hazan & Singer, "Adaptive subgradient methods for online learning and stochastic optimization",
       JMLR 12, 2011.
    """

    states = ("sum",)
    squares = frozenset({"sum"})
    fixed = frozenset({"initial_accumulator_value"})
    cases = ({}, {"lr_decay": 0.1, "eps_inside_sqrt": True, "initial_accumulator_value": 0.1})

    @staticmethod
    def rule(param: Any, grad: Any, sum: Any, lr: Any, eps_inside: Any, eps: Any) -> tuple[Any, ...]:
        sum = sum + grad * grad
        return param - lr * (grad / (np.sqrt(sum + eps_inside) + eps)), sum

    def __init__(
        self,
        params: Any,
        lr: Schedulable = 1e-2,
        lr_decay: Schedulable = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: Schedulable = 1e-10,
        *,
        eps_inside_sqrt: bool = False,
        **options: Unpack[Options],
    ) -> None:
        hyper = {
            "lr": lr,
            "lr_decay": lr_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "eps_inside_sqrt": eps_inside_sqrt,
        }
        super().__init__(params, hyper, options)

    @staticmethod
    def check(h: Values) -> None:
        check_number("learning rate", h["lr"])
        check_number("lr_decay value", h["lr_decay"])
        check_number("initial_accumulator_value value", h["initial_accumulator_value"])
        check_number("epsilon value", h["eps"])

    @staticmethod
    def advance(h: Values, clock: Clock, loss: float | None) -> tuple[tuple[float, ...], Clock]:
        t = clock[0] + 1
        eps_inside, eps = (h["eps"], 0.0) if h["eps_inside_sqrt"] else (0.0, h["eps"])
        return (h["lr"] / (1.0 + (t - 1) * h["lr_decay"]), eps_inside, eps), (t,)

    @staticmethod
    def idle(h: Values) -> Mapping[str, float] | str:
        if not h["eps"]:
            return "eps=0 makes NaN of a gradient of zero before the first other one"
        return {"sum": 1.0}

    @staticmethod
    def steady(h: Values) -> bool:
        return not h["lr_decay"]

    @staticmethod
    def initial(h: Values, state: str) -> float:
        return float(h["initial_accumulator_value"])
