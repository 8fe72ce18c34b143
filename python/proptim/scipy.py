"""Every optimizer as a method of `scipy.optimize.minimize`, under its name: `method=proptim.scipy.rprop`.

>>> import proptim.scipy
>>> from scipy.optimize import minimize, rosen, rosen_der
>>> result = minimize(rosen, [-1.2, 1.0], jac=rosen_der, method=proptim.scipy.adam, options={"lr": 0.1})
>>> result.message
'Optimization terminated successfully.'
>>> result.x.round(3)
array([1., 1.])

Arguments are those of `minimize`, options those of the optimizer besides `gtol`, `xtol`, `ftol`, `maxiter` and `disp`;
see `Method`.
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
    from scipy.optimize import Bounds, OptimizeResult, OptimizeWarning, approx_fprime
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"proptim.scipy needs SciPy ({error}): pip install 'proptim[scipy]'", name=error.name
    ) from error

GTOL = 1e-5
"""Default of BFGS."""
MAXITER = 15_000
"""Default of L-BFGS-B; the 200 steps per variable of BFGS assume its line search."""
DIFFERENCE = float(np.sqrt(np.finfo(float).eps))
"""Of finite differences, as in BFGS and L-BFGS-B."""
POINTLESS = {
    "grads",
    "publish",
    "maximize",
    "nonfinite",
    "max_skips",
    "zero_grads",
    "master",
    "cast_grads",
    "lazy_rows",
    "ema",
}
"""Options of `Optimizer` that make no sense here: the method computes the gradient, minimizes, and ends at a NaN."""

# Status numbers and messages of BFGS, and that of `minimize` for a callback.
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
        ``fun(x, *args)`` returns one number; x has shape (n,) and is a copy.
    x0 : array of real numbers
        Start; the array is not changed. With jac, float32 is stepped in float32; everything else in float64.
    args : tuple
        Further arguments of fun and jac.
    jac : callable, True or None
        ``jac(x, *args)`` returns the gradient, of shape (n,); True if fun returns (value, gradient). For None, False
        and the names of difference schemes, which SciPy does not pass on, forward differences are used as in BFGS: n
        more evaluations in each step, all within the bounds as in L-BFGS-B.
    hess, hessp : ignored
        With the RuntimeWarning of `minimize` for methods that do not use them.
    bounds : `scipy.optimize.Bounds`, or sequence of pairs, optional
        Lower and upper bound of each variable, or one pair, such as ``[(2, 3)]``, for all of them; None and infinity
        mean no bound. The start, and every variable after every step, is moved to the nearest point within the bounds.
        fun is never evaluated outside. A variable at a bound whose gradient pushes it outwards is stepped with a
        gradient of 0.
    callback : callable
        ``callback(intermediate_result)``, with this name of the parameter, or ``callback(x)``, called after each step;
        StopIteration ends the run.
    tol, gtol : float, default 1e-5
        The run succeeds when no element of the gradient is larger than gtol; tol is used if gtol is not given. With
        bounds, this is the projected gradient of L-BFGS-B, :math:`P(x - g) - x`.
    xtol : float, default 0
        If above 0, the run also succeeds when no variable moved by more than xtol in each of two successive steps. For
        Rprop set it to twice the smallest step size: then Rprop alternates between both sides of the minimum, where
        the gradient may be larger than gtol.
    ftol : float, default 0
        If above 0, the run also succeeds when fun changed by at most ftol in each of two successive steps, relative to
        its larger value if that is above 1.
    maxiter : int, default 15000
        Largest number of steps.
    disp : bool, default False
        Print the message and the counts at the end.
    **options
        Hyperparameters of the optimizer, and the options of `Optimizer` except grads, maximize, nonfinite, max_skips,
        zero_grads, master, publish, ema and cast_grads.

    Returns
    -------
    OptimizeResult
        With x, fun, jac, nit, nfev, njev, success, status and message. x is the point at which a tolerance was met
        or the callback stopped the run. Otherwise (maxiter, NaN) it is the point with the smallest fun, because these
        rules may step uphill.

    Raises
    ------
    ValueError
        For constraints, for bounds that exclude all values or whose number is not that of the variables, for
        hyperparameters out of range, and for a gradient of another shape.
    TypeError
        For complex numbers.

    Warns
    -----
    OptimizeWarning
        For unknown options.
    RuntimeWarning
        For hess and hessp.

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
    irprop+ takes the value of fun at each point as the loss. If no tolerance is ever met, as for rules that move by lr
    whatever the gradient, let lr fall by a schedule, or stop the run by a callback. weight_decay, 0.01 in AdamW, is not
    part of fun: with it a run ends where the gradient of fun is not zero. `eps` is that of the optimizer, not the step
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
        ftol: float = 0.0,
        maxiter: float | None = None,
        disp: bool = False,
        **options: Any,
    ) -> OptimizeResult:
        if not (constraints is None or (isinstance(constraints, (list, tuple)) and not constraints)):
            raise ValueError(
                f"{self.__name__} got constraints, but supports only bounds; expected none: leave constraints out, or "
                "take a method of SciPy that supports them"
            )
        if jac and not callable(jac):
            raise ValueError(
                f"jac is {jac!r}; expected a callable or None: to use other forms, call "
                f"scipy.optimize.minimize(..., jac={jac!r}, method=proptim.scipy.{self.__name__})"
            )
        gtol = next(value for value in (gtol, tol, GTOL) if value is not None)
        check_number("gtol", gtol)
        check_number("xtol", xtol)
        check_number("ftol", ftol)
        maxiter = MAXITER if maxiter is None else maxiter
        check_number("maxiter", maxiter)
        unknown = [name for name in options if name not in self.known]
        if unknown:  # warn as SciPy's own methods do; stacklevel 3 is the caller of minimize
            warnings.warn(f"Unknown solver options: {', '.join(unknown)}", OptimizeWarning, stacklevel=3)
        for name, what, value in (("hess", "Hessian", hess), ("hessp", "Hessian-vector product", hessp)):
            if value is not None:
                message = f"Method {self.__name__} does not use {what} information ({name})."
                warnings.warn(message, RuntimeWarning, stacklevel=3)
        x = _start(x0, callable(jac))
        box = None if bounds is None else _Box(bounds, x.size)
        if box is not None:
            x = box.enter(x)
        grad = np.empty_like(x)
        slope = grad if box is None else np.empty_like(x)
        known = {name: value for name, value in options.items() if name in self.known}
        optimizer = self.optimizer([x], **{**known, "grads": [slope]})
        objective = _Objective(fun, jac, args if isinstance(args, tuple) else (args,), box)
        report = _reporter(callback)

        def point() -> OptimizeResult:
            return OptimizeResult(x=x.copy(), fun=value, jac=grad.copy())

        nit = still = level = 0
        value = objective.evaluate(x, grad)
        best = point()
        while True:
            if value < best.fun:
                best = point()
            largest = np.abs(grad if box is None else box.reach(x, grad)).max(initial=0.0)
            if math.isnan(value) or math.isnan(largest):
                status = NOT_A_NUMBER
                break
            if largest <= gtol or 2 in (still, level):  # not 1: irprop- and irprop+ do not move when a sign changes
                status = SUCCESS
                break
            if nit >= maxiter:
                status = OUT_OF_STEPS
                break
            before, last = x.copy() if xtol else x, value
            if box is not None:
                box.slope(x, grad, slope)
            optimizer.step(loss=value)
            if box is not None:
                box.project(x)
            still = still + 1 if xtol and np.abs(x - before).max() <= xtol else 0
            nit, value = nit + 1, objective.evaluate(x, grad)
            level = level + 1 if ftol and abs(value - last) <= ftol * max(abs(value), abs(last), 1.0) else 0
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


class _Box:
    """Bounds of variables."""

    def __init__(self, bounds: Any, size: int) -> None:
        if isinstance(bounds, Bounds):
            low, high = bounds.lb, bounds.ub
        else:
            pairs = [tuple(np.ravel(np.asarray(pair, object))) for pair in bounds]
            for i, pair in enumerate(pairs):
                if len(pair) != 2:
                    raise ValueError(f"bounds[{i}] has {len(pair)} values; expected two, the lower and the upper bound")
            low = [-math.inf if pair[0] is None else float(pair[0]) for pair in pairs]
            high = [math.inf if pair[1] is None else float(pair[1]) for pair in pairs]
        try:
            self.low, self.high = (np.array(np.broadcast_to(side, size), float) for side in (low, high))
        except ValueError:
            raise ValueError(
                f"bounds are of shapes {np.shape(low)} and {np.shape(high)}; expected one pair for each of {size} "
                "variables, or one for all"
            ) from None
        possible = (self.low <= self.high) & (self.low < math.inf) & (self.high > -math.inf)
        if not possible.all():
            i = int(np.argmin(possible))
            raise ValueError(
                f"bounds of variable {i} are {self.low[i]} and {self.high[i]}; expected a lower bound that is at most "
                "the upper one"
            )

    def enter(self, x: Array) -> Array:
        """The nearest point within the bounds; in float64 if there is no float32 between some bounds."""
        if x.dtype == np.float32:
            low, high = self.low.astype(x.dtype), self.high.astype(x.dtype)
            low = np.where(low < self.low, np.nextafter(low, x.dtype.type(math.inf)), low)
            high = np.where(high > self.high, np.nextafter(high, x.dtype.type(-math.inf)), high)
            if (low <= high).all():
                self.low, self.high = low, high
            else:
                x = x.astype(np.float64)
        return np.clip(x, self.low, self.high)

    def project(self, x: Array) -> None:
        """Move every variable that is outside its bounds to the nearest bound."""
        np.clip(x, self.low, self.high, out=x)

    def reach(self, x: Array, grad: Array) -> Array:
        """The projected gradient: how far a step of the gradient would move each variable."""
        with np.errstate(over="ignore"):
            reach: Array = np.clip(x - grad, self.low, self.high) - x
        return reach

    def slope(self, x: Array, grad: Array, slope: Array) -> None:
        """The gradient to step with: 0 for variables at a bound that the gradient pushes outwards."""
        slope[...] = grad
        slope[((x <= self.low) & (grad > 0)) | ((x >= self.high) & (grad < 0))] = 0

    def differences(self, x: Array) -> Array:
        """The step of the finite difference for each variable, within the bounds; 0 for one that cannot move."""
        up, down = self.high - x, x - self.low
        short = np.where(up >= down, up, -down)
        return np.where(up >= DIFFERENCE, DIFFERENCE, np.where(down >= DIFFERENCE, -DIFFERENCE, short))


class _Objective:
    """A function and its gradient, with counts of their evaluations; both get only copies of arrays."""

    def __init__(
        self, fun: Callable[..., Any], jac: Callable[..., Any] | None, args: tuple[Any, ...], box: _Box | None
    ) -> None:
        self.fun, self.jac, self.args, self.box = fun, jac, args, box
        self.nfev = self.njev = 0

    def evaluate(self, x: Array, grad: Array) -> float:
        """The value at `x`; writes the gradient to `grad`. In this order, jac=True needs one evaluation for both."""
        value = self.value(x)
        self.njev += 1
        if callable(self.jac):
            grad[...] = _real(self.jac(x.copy(), *self.args), "jac", x.shape)
            return value
        difference = np.full(x.size, DIFFERENCE) if self.box is None else self.box.differences(x)
        free = difference != 0

        def at(some: Array) -> float:  # is also called at x, whose value is known
            if np.array_equal(some, x[free]):
                return value
            point = x.copy()
            point[free] = some
            if self.box is not None:
                self.box.project(point)  # the rounded sum of x and the difference may be outside
            return self.value(point)

        grad[...] = 0
        if free.any():
            grad[free] = approx_fprime(x[free], at, difference[free])
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
    """A copy of x0 to step, in float32 if x0 is and jac is given; finite differences need float64."""
    array = np.asarray(x0)
    if np.iscomplexobj(array):
        raise TypeError(f"x0 is {array.dtype.name}; expected real numbers: take real and imaginary parts as variables")
    return array.astype("float32" if single and array.dtype.name == "float32" else "float64").ravel()


def _reporter(callback: Callable[..., Any] | None) -> Callable[[Array, float], Any]:
    """How to call a callback: SciPy passes the result to one whose only parameter is `intermediate_result`."""
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
