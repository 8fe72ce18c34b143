"""Every optimizer as a method of `scipy.optimize.minimize`, under its name: `method=proptim.scipy.rprop`.

>>> import proptim.scipy
>>> from scipy.optimize import minimize, rosen, rosen_der
>>> result = minimize(rosen, [-1.2, 1.0], jac=rosen_der, method=proptim.scipy.adam, options={"lr": 0.1})
>>> result.message
'Optimization terminated successfully.'
>>> result.x.round(3)
array([1., 1.])

Arguments are those of `minimize`, options those of the optimizer besides `gtol`, `maxiter` and `disp`; see `Method`.
"""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from proptim import OPTIMIZERS, Optimizer
from proptim._arrays import Array
from proptim._options import Options
from proptim._parameters import check_number

try:
    from scipy.optimize import OptimizeResult, OptimizeWarning, approx_fprime
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"proptim.scipy needs SciPy ({error}): pip install 'proptim[scipy]'", name=error.name
    ) from error

GTOL = 1e-5
"""Default of BFGS."""
MAXITER = 15_000
"""Default of L-BFGS-B; the 200 steps per variable of BFGS count on its line search."""
POINTLESS = {"grads", "maximize", "nonfinite", "max_skips", "zero_grads"}
"""Options of all optimizers that mean nothing here: the method evaluates the gradient, minimizes and ends at a NaN."""

# Statuses as BFGS numbers and words them, and the one of `minimize` for a callback.
SUCCESS, OUT_OF_STEPS, NOT_A_NUMBER, STOPPED = 0, 1, 3, 99
MESSAGES = {
    SUCCESS: "Optimization terminated successfully.",
    OUT_OF_STEPS: "Maximum number of iterations has been exceeded.",
    NOT_A_NUMBER: "NaN result encountered.",
    STOPPED: "`callback` raised `StopIteration`.",
}


class Method:
    """One optimizer class as a method of `scipy.optimize.minimize`.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)``, one number; x has shape (n,). Of all arrays it sees and returns, none is one that is stepped.
    x0 : array of real numbers
        Start, which is left alone. With jac, float32 is stepped as float32; everything else is float64.
    args : tuple
        More arguments of fun and jac.
    jac : callable, True or None
        ``jac(x, *args)``, shape (n,); True if fun returns (value, gradient). None, False and the names of schemes,
        which SciPy does not pass on, take forward differences as BFGS does: n more evaluations for each step.
    callback : callable
        ``callback(intermediate_result)``, by this name, or ``callback(x)``, after each step; StopIteration ends the
        run.
    tol, gtol : float, default 1e-5
        Success is a gradient whose largest element is at most gtol, which precedes tol.
    xtol : float, default 0
        Above 0, success is also that no variable moved by more than xtol in two steps in a row. For Rprop twice its
        smallest step size: there it stays on both sides of the minimum, where a gradient may be larger than gtol.
    maxiter : int, default 15000
        Steps at most.
    disp : bool, default False
        Print the message and the counts at the end.
    **options
        Hyperparameters of the optimizer, and all that `Optimizer` takes but grads, maximize, nonfinite, max_skips and
        zero_grads.

    Returns
    -------
    OptimizeResult
        With x, fun, jac, nit, nfev, njev, success, status and message. x is the point at which a tolerance was met
        or the callback stopped the run, otherwise (maxiter, NaN) the one of the smallest fun on the way: these rules
        may step uphill.

    Raises
    ------
    ValueError
        For bounds, constraints, hess and hessp; for hyperparameters out of range; for a gradient of another shape.
    TypeError
        For complex numbers.

    Warns
    -----
    OptimizeWarning
        For options that nobody knows.

    Examples
    --------
    >>> import numpy as np, proptim.scipy
    >>> from scipy.optimize import minimize
    >>> def bowl(x):
    ...     return x @ x, 2 * x
    >>> result = minimize(bowl, [3.0, -4.0], jac=True, method=proptim.scipy.rprop, options={"variant": "irprop+"})
    >>> result.success, result.nfev == result.nit + 1
    (True, True)

    Notes
    -----
    The value of fun at each point is also the loss that irprop+ compares. Where no tolerance is ever met, as for rules
    that move by lr whatever the gradient, let lr fall by a schedule or stop by a callback. weight_decay, 0.01 in AdamW,
    is not part of fun: a decayed run ends where the gradient of fun is not zero. `eps` is the optimizer's, not the step
    of finite differences.
    """

    def __init__(self, optimizer: type[Optimizer]) -> None:
        self.optimizer = optimizer
        self.__name__ = optimizer.__name__.lower()
        self.__doc__ = f"`{optimizer.__name__}` as a method of `scipy.optimize.minimize`; see `proptim.scipy.Method`."
        own = [
            p.replace(kind=p.KEYWORD_ONLY)
            for p in inspect.signature(optimizer.__init__).parameters.values()
            if p.name not in ("self", "params", "options")
        ]
        *common, rest = inspect.signature(self.__call__).parameters.values()
        self.__signature__ = inspect.Signature([*common, *own, rest])
        self.known = {p.name for p in own} | Options.__annotations__.keys() - POINTLESS

    def __repr__(self) -> str:
        return f"<function proptim.scipy.{self.__name__}>"

    def __reduce__(self) -> str:
        return self.__name__

    def __call__(
        self,
        fun: Callable[..., Any],
        x0: Any,
        args: Any = (),
        *,
        jac: Callable[..., Any] | None = None,
        hess: Any = None,
        hessp: Any = None,
        bounds: Any = None,
        constraints: Any = (),
        callback: Callable[..., Any] | None = None,
        tol: float | None = None,
        gtol: float | None = None,
        xtol: float = 0.0,
        maxiter: float | None = None,
        disp: bool = False,
        **options: Any,
    ) -> OptimizeResult:
        given = {"bounds": bounds, "constraints": constraints or None, "hess": hess, "hessp": hessp}
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{self.__name__} got {name}, but looks at fun and its gradient only; expected none: leave {name} "
                    "out, or take a method of SciPy that knows it"
                )
        if jac and not callable(jac):
            raise ValueError(
                f"jac is {jac!r}; expected a callable or None: other forms pass through "
                f"scipy.optimize.minimize(..., jac={jac!r}, method=proptim.scipy.{self.__name__})"
            )
        gtol = next(value for value in (gtol, tol, GTOL) if value is not None)
        check_number("gtol", gtol)
        check_number("xtol", xtol)
        maxiter = MAXITER if maxiter is None else maxiter
        check_number("maxiter", maxiter)
        unknown = [name for name in options if name not in self.known]
        if unknown:  # as SciPy's own methods do; the third level is the caller of minimize
            warnings.warn(f"Unknown solver options: {', '.join(unknown)}", OptimizeWarning, stacklevel=3)
        x = _start(x0, callable(jac))
        grad = np.empty_like(x)
        known = {name: value for name, value in options.items() if name in self.known}
        optimizer = self.optimizer([x], **{**known, "grads": [grad]})
        objective = _Objective(fun, jac, args if isinstance(args, tuple) else (args,))
        report = _reporter(callback)

        def point() -> OptimizeResult:
            return OptimizeResult(x=x.copy(), fun=value, jac=grad.copy())

        nit = still = 0
        value = objective.evaluate(x, grad)
        best = point()
        while True:
            if value < best.fun:
                best = point()
            largest = np.abs(grad).max(initial=0.0)
            if math.isnan(value) or math.isnan(largest):
                status = NOT_A_NUMBER
                break
            if largest <= gtol or still == 2:  # one is too few: irprop- and irprop+ rest where signs change
                status = SUCCESS
                break
            if nit >= maxiter:
                status = OUT_OF_STEPS
                break
            before = x.copy() if xtol else x
            optimizer.step(loss=value)
            still = still + 1 if xtol and np.abs(x - before).max() <= xtol else 0
            nit, value = nit + 1, objective.evaluate(x, grad)
            try:
                report(x, value)
            except StopIteration:
                status = STOPPED
                break
        result = point() if status in (SUCCESS, STOPPED) else best
        result.update(nit=nit, nfev=objective.nfev, njev=objective.njev)
        result.update(success=status == SUCCESS, status=status, message=MESSAGES[status])
        if disp:
            print(result.message)
            print(f"         Current function value: {result.fun:f}")
            print(f"         Iterations: {nit:d}")
            print(f"         Function evaluations: {result.nfev:d}")
            print(f"         Gradient evaluations: {result.njev:d}")
        return result


class _Objective:
    """A function and its gradient, counted, and handed nothing but copies."""

    def __init__(self, fun: Callable[..., Any], jac: Callable[..., Any] | None, args: tuple[Any, ...]) -> None:
        self.fun, self.jac, self.args = fun, jac, args
        self.nfev = self.njev = 0

    def evaluate(self, x: Array, grad: Array) -> float:
        """The value at `x`; the gradient is written into `grad`. In this order jac=True evaluates once for both."""
        value = self.value(x)
        self.njev += 1
        if callable(self.jac):
            grad[...] = _real(self.jac(x.copy(), *self.args), "jac", x.shape)
        else:  # which asks for the value at x too
            grad[...] = approx_fprime(x, lambda at: value if np.array_equal(at, x) else self.value(at))
        return value

    def value(self, x: Array) -> float:
        self.nfev += 1
        value = self.fun(x.copy(), *self.args)
        if isinstance(value, tuple):
            raise TypeError("fun returned a tuple; expected one number: pass jac=True if it is (value, gradient)")
        return float(_real(value, "fun", ()))


def _real(given: Any, name: str, shape: tuple[int, ...]) -> Array:
    """What `fun` or `jac` returned as an array; a single number may come in any shape, as everywhere in SciPy."""
    if np.iscomplexobj(given):
        raise TypeError(f"{name} returned complex numbers; expected real ones")
    array = np.asarray(given)
    if array.shape != shape and not array.size == math.prod(shape) == 1:
        raise ValueError(f"{name} returned an array of shape {array.shape}; expected {shape or 'one number'}")
    return array.reshape(shape)


def _start(x0: Any, single: bool) -> Array:
    """A copy of x0 to step, in float32 if it is and may be: a finite difference needs float64."""
    array = np.asarray(x0)
    if np.iscomplexobj(array):
        raise TypeError(f"x0 is {array.dtype.name}; expected real numbers: take real and imaginary parts as variables")
    return array.astype("float32" if single and array.dtype.name == "float32" else "float64").ravel()


def _reporter(callback: Callable[..., Any] | None) -> Callable[[Array, float], Any]:
    """How to call a callback: SciPy hands the result to one with the single parameter `intermediate_result`."""
    if callback is None:
        return lambda x, value: None
    if sys.version_info >= (3, 14):  # where annotations may be names that do not exist
        from annotationlib import Format

        parameters = inspect.signature(callback, annotation_format=Format.STRING).parameters
    else:
        parameters = inspect.signature(callback).parameters
    if set(parameters) == {"intermediate_result"}:
        return lambda x, value: callback(intermediate_result=OptimizeResult(x=x.copy(), fun=value))
    return lambda x, value: callback(x.copy())


if TYPE_CHECKING:

    def __getattr__(name: str) -> Method: ...


globals().update({name: Method(optimizer) for name, optimizer in OPTIMIZERS.items()})

__all__ = list(OPTIMIZERS)
