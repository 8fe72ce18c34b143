"""Adam and AdamW: RMSprop with momentum, both averages corrected for their start at zero."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from proptim._arrays import select
from proptim._options import Options
from proptim._parameters import Clock, Schedulable, Values, check_number
from proptim.optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Adam(Optimizer):
    r"""Adam, with AMSGrad and the "epsilon hat" form as options.

    .. math::

        m \leftarrow \beta_1 m + (1-\beta_1) g

        v \leftarrow \beta_2 v + (1-\beta_2) g^2

        p \leftarrow p - \frac{\eta}{1-\beta_1^t} \frac{m}{\sqrt{v / (1-\beta_2^t)} + \epsilon}

    at step t, as in [1]_.

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
    amsgrad : bool, default False
        Divide by the largest v so far [2]_; needs the state array ``max_exp_avg_sq``.
    eps_hat : bool, default False
        Add eps to the root of the uncorrected v, as Keras and TF do.
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
    >>> opt = proptim.Adam([w], lr=0.1)
    >>> opt.step([np.array([1e-3, 1e3])])  # the first step is lr, whatever the gradient
    >>> w.round(4)
    array([0.9, 0.9])

    Notes
    -----
    Equal to torch.optim.Adam. optax takes AMSGrad's maximum of the corrected v; Keras and TF are ``eps_hat=True`` with
    eps = 1e-7.

    References
    ----------
    .. [1] Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    .. [2] Reddi, Kale & Kumar, "On the convergence of Adam and beyond", ICLR 2018 (AMSGrad).
    """

    states = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    squares = frozenset({"exp_avg_sq", "max_exp_avg_sq"})
    optional = {"max_exp_avg_sq": "amsgrad"}
    cases = ({}, {"amsgrad": True}, {"eps_hat": True})

    @staticmethod
    def rule(
        param: Any,
        grad: Any,
        exp_avg: Any,
        exp_avg_sq: Any,
        max_exp_avg_sq: Any,
        step_size: Any,
        beta1: Any,
        one_minus_beta1: Any,
        beta2: Any,
        one_minus_beta2: Any,
        root_correction: Any,
        eps: Any,
    ) -> tuple[Any, ...]:
        exp_avg = beta1 * exp_avg + one_minus_beta1 * grad
        exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * (grad * grad)
        square = exp_avg_sq
        if max_exp_avg_sq is not None:
            max_exp_avg_sq = select(max_exp_avg_sq > square, max_exp_avg_sq, square)
            square = max_exp_avg_sq
        step = exp_avg / (np.sqrt(square) * root_correction + eps)
        return param - step_size * step, exp_avg, exp_avg_sq, max_exp_avg_sq

    def __init__(
        self,
        params: Any,
        lr: Schedulable = 1e-3,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.999),
        eps: Schedulable = 1e-8,
        amsgrad: bool = False,
        *,
        eps_hat: bool = False,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "eps": eps, "amsgrad": amsgrad, "eps_hat": eps_hat}
        super().__init__(params, hyper, options)

    @staticmethod
    def check(h: Values) -> None:
        check_number("learning rate", h["lr"])
        check_betas(h["betas"])
        check_number("epsilon value", h["eps"])

    @staticmethod
    def advance(h: Values, clock: Clock, loss: float | None) -> tuple[tuple[float, ...], Clock]:
        t = clock[0] + 1
        beta1, beta2 = h["betas"]
        step_size = h["lr"] / (1.0 - beta1**t)
        root = math.sqrt(1.0 - beta2**t)
        if h["eps_hat"]:
            step_size, root = step_size * root, 1.0
        return (step_size, beta1, 1.0 - beta1, beta2, 1.0 - beta2, 1.0 / root, h["eps"]), (t,)


class AdamW(Adam):
    r"""Adam with decoupled weight decay: the decay does not pass through the moving averages.

    .. math:: p \leftarrow p\,(1 - \eta\lambda) - \frac{\eta}{1-\beta_1^t} \frac{m}{\sqrt{v / (1-\beta_2^t)} + \epsilon}

    at step t, with :math:`\lambda` the `weight_decay` and m and v the moving averages of `Adam` [1]_.

    Parameters, errors and references of `Adam` hold; `weight_decay` defaults to 1e-2 and `decoupled_weight_decay` to
    True.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> w = np.array([1.0])
    >>> opt = proptim.AdamW([w], lr=0.1, weight_decay=0.5)
    >>> opt.step([np.array([0.0])])
    >>> w
    array([0.95])

    Notes
    -----
    Equal to torch.optim.AdamW. optax.adamw decays with the parameter before its own update, which is the same, by 1e-4;
    Keras by 4e-3. All multiply the decay by lr.

    References
    ----------
    .. [1] Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """

    identity = {"decoupled_weight_decay": True}

    def __init__(  # type: ignore[misc]  # weight_decay has a place of its own here, as in torch
        self,
        params: Any,
        lr: Schedulable = 1e-3,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.999),
        eps: Schedulable = 1e-8,
        weight_decay: Schedulable = 1e-2,
        amsgrad: bool = False,
        *,
        eps_hat: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr, betas, eps, amsgrad, eps_hat=eps_hat, **{**options, "weight_decay": weight_decay})


def check_betas(betas: Any) -> None:
    """Two decays, each at least 0 and below 1; worded as torch.optim does."""
    if not isinstance(betas, tuple) or len(betas) != 2:
        raise ValueError(f"Invalid betas: {betas} (expected two numbers >= 0 and < 1)")
    for i, beta in enumerate(betas):
        check_number(f"beta parameter at index {i}", beta, high=1.0)
