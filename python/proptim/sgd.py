"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from proptim._options import Options
from proptim._parameters import Clock, Schedulable, Values, check_number
from proptim.optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SGD(Optimizer):
    r"""Stochastic gradient descent with momentum, dampening and Nesterov's look-ahead.

    .. math::

        b \leftarrow \mu b + (1-\tau) g

        p \leftarrow p - \eta \, b

    as in [1]_, with nesterov [2]_ :math:`p \leftarrow p - \eta\,(g + \mu b)`, and without momentum
    :math:`p \leftarrow p - \eta g`. At the first step with momentum :math:`b = g`, without dampening.

    Parameters
    ----------
    params : sequence or dict of arrays, or sequence of groups
        Float or complex arrays, stepped in place; see `Optimizer`.
    lr : float or schedule, default 1e-3
        Learning rate :math:`\eta`.
    momentum : float or schedule, default 0
        :math:`\mu`; above 0 it needs the state array ``momentum_buffer``.
    dampening : float or schedule, default 0
        :math:`\tau`.
    nesterov : bool, default False
        Look ahead; needs momentum and no dampening.
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
    >>> w = np.array([1.0, -2.0])
    >>> opt = proptim.SGD([w], lr=0.1, momentum=0.9)
    >>> opt.step([2 * w])
    >>> w
    array([ 0.8, -1.6])

    Notes
    -----
    Equal to torch.optim.SGD, and to optax.sgd, which has no dampening. Keras multiplies the gradient by lr before it
    enters the buffer, so that a run with momentum differs there if lr changes.

    References
    ----------
    .. [1] Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    .. [2] Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013.
    """

    states = ("momentum_buffer",)
    optional = {"momentum_buffer": "momentum"}
    clock_start = {"step": 0, "_momentum_begun": 0.0}
    cases = (
        {},
        {"momentum": 0.9, "dampening": 0.1},
        {"momentum": 0.9, "nesterov": True},
    )

    @staticmethod
    def rule(
        param: Any, grad: Any, momentum_buffer: Any, lr: Any, momentum: Any, undamped: Any, nesterov: Any
    ) -> tuple[Any, ...]:
        step = grad
        if momentum_buffer is not None:
            momentum_buffer = momentum * momentum_buffer + undamped * grad
            step = grad + momentum * momentum_buffer if nesterov else momentum_buffer
        return param - lr * step, momentum_buffer

    def __init__(
        self,
        params: Any,
        lr: Schedulable = 1e-3,
        momentum: Schedulable = 0.0,
        dampening: Schedulable = 0.0,
        nesterov: bool = False,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "momentum": momentum, "dampening": dampening, "nesterov": nesterov}
        super().__init__(params, hyper, options)

    @staticmethod
    def check(h: Values) -> None:
        check_number("learning rate", h["lr"])
        check_number("momentum value", h["momentum"])
        check_number("dampening value", h["dampening"], low=-float("inf"))
        if h["nesterov"] and (h["momentum"] <= 0 or h["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")

    @staticmethod
    def advance(h: Values, clock: Clock, loss: float | None) -> tuple[tuple[float, ...], Clock]:
        t, begun = clock
        undamped = 1.0 - h["dampening"] if begun else 1.0  # whenever momentum begins, also in mid-run
        return (h["lr"], h["momentum"], undamped, float(h["nesterov"])), (t + 1, 1.0 if h["momentum"] else begun)

    @staticmethod
    def clock_at(h: Values, steps: int) -> Clock:
        return (steps, 1.0 if steps and h["momentum"] else 0.0)

    @classmethod
    def started(cls, state: Mapping[str, Any], step: int) -> dict[str, float]:
        return {"step": step, "_momentum_begun": 1.0 if step and "momentum_buffer" in state else 0.0}

    @staticmethod
    def idle(h: Values) -> Mapping[str, float] | str:
        if h["momentum"]:
            return f"momentum={h['momentum']} moves weights that have no gradient"
        return {"param": 1.0 if h["decoupled_weight_decay"] else 1.0 - h["lr"] * h["weight_decay"]}

    @staticmethod
    def steady(h: Values) -> bool:
        return not h["dampening"]
