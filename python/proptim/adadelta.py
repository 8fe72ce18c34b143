"""Adadelta: RMSprop whose learning rate is the root mean square of its own past steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from proptim._options import Options
from proptim._parameters import Clock, Schedulable, Values, check_number
from proptim.optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Adadelta(Optimizer):
    r"""Adadelta: past steps give each step its scale, so that no learning rate is needed.

    .. math::

        v \leftarrow \rho v + (1-\rho) g^2

        d = \frac{\sqrt{u + \epsilon}}{\sqrt{v + \epsilon}}\, g

        u \leftarrow \rho u + (1-\rho) d^2

        p \leftarrow p - \eta d

    as in [1]_.

    Parameters
    ----------
    params : sequence or dict of arrays, or sequence of groups
        Float or complex arrays, stepped in place; see `Optimizer`.
    lr : float or schedule, default 1
        Factor :math:`\eta` on the step.
    rho : float or schedule, default 0.9
        Decay of both moving averages.
    eps : float or schedule, default 1e-6
        Under both roots; it also sets the size of the first steps.
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
    >>> opt = proptim.Adadelta([w])
    >>> opt.step([np.array([2.0])])
    >>> w.round(5)  # the first step is sqrt(eps / (1 - rho)), whatever the gradient
    array([0.99684])

    Notes
    -----
    Equal to torch.optim.Adadelta. Keras and TF default to lr = 1e-3 and rho = 0.95; optax.adadelta() with its default
    learning_rate=None ascends instead of descending.

    References
    ----------
    .. [1] Zeiler, "ADADELTA: an adaptive learning rate method", 2012.
    """

    states = ("square_avg", "acc_delta")
    squares = frozenset({"square_avg", "acc_delta"})

    @staticmethod
    def rule(
        param: Any, grad: Any, square_avg: Any, acc_delta: Any, lr: Any, rho: Any, one_minus_rho: Any, eps: Any
    ) -> tuple[Any, ...]:
        square_avg = rho * square_avg + one_minus_rho * (grad * grad)
        delta = np.sqrt(acc_delta + eps) / np.sqrt(square_avg + eps) * grad
        acc_delta = rho * acc_delta + one_minus_rho * (delta * delta)
        return param - lr * delta, square_avg, acc_delta

    def __init__(
        self,
        params: Any,
        lr: Schedulable = 1.0,
        rho: Schedulable = 0.9,
        eps: Schedulable = 1e-6,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, {"lr": lr, "rho": rho, "eps": eps}, options)

    @staticmethod
    def check(h: Values) -> None:
        check_number("learning rate", h["lr"])
        check_number("rho value", h["rho"], high=1.0)
        check_number("epsilon value", h["eps"])

    @staticmethod
    def advance(h: Values, clock: Clock, loss: float | None) -> tuple[tuple[float, ...], Clock]:
        return (h["lr"], h["rho"], 1.0 - h["rho"], h["eps"]), (clock[0] + 1,)

    @staticmethod
    def idle(h: Values) -> Mapping[str, float] | str:
        if not h["eps"]:
            return "eps=0 makes NaN of a gradient of zero before the first other one"
        return {"square_avg": h["rho"], "acc_delta": h["rho"]}

    @staticmethod
    def steady(h: Values) -> bool:
        return True
