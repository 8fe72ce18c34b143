"""The methods for scipy.optimize.minimize: the same steps as by hand, and the conventions of SciPy's own methods."""

from __future__ import annotations

import functools
import inspect
import itertools
import pickle

import numpy as np
import pytest
from scipy.optimize import (
    Bounds,
    LinearConstraint,
    OptimizeResult,
    OptimizeWarning,
    basinhopping,
    minimize,
    rosen,
    rosen_der,
)
from test_convergence import BOWL, bowl, rosenbrock

import proptim
import proptim.scipy
from proptim.rprop import VARIANTS

CASES = [
    pytest.param(name, case, id=f"{name}-{i}")
    for name, cls in proptim.OPTIMIZERS.items()
    for i, case in enumerate(cls.cases)
]
START = [-1.2, 1.0]


def method(name):
    return getattr(proptim.scipy, name)


def bowl_of(size):
    """x.x of so many variables, which checks what it is given."""

    def function(x):
        assert type(x) is np.ndarray
        assert x.shape == (size,)
        return x @ x, 2 * x

    return function


class Counted:
    """A function that counts its calls and remembers where it was called."""

    def __init__(self, function):
        self.function, self.points = function, []

    def __call__(self, x, *args):
        self.points.append(x.copy())
        return self.function(x, *args)

    @property
    def calls(self):
        return len(self.points)


# The steps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_trajectory(name, case, dtype):
    """Every point is, bit for bit, that of a loop over the optimizer itself."""
    x = np.array(START, dtype)
    expected = []
    opt = proptim.OPTIMIZERS[name]([x], **case)
    for _ in range(40):
        value, grad = rosenbrock(x.copy())
        opt.step([grad.astype(dtype)], loss=float(value))
        expected.append(x.copy())
    seen = []
    start, options = np.array(START, dtype), {**case, "maxiter": 40, "gtol": 0}
    result = minimize(rosenbrock, start, jac=True, method=method(name), callback=seen.append, options=options)
    assert np.array_equal(seen, expected)
    assert seen[0].dtype == result.x.dtype == result.jac.dtype == dtype
    assert (result.nit, result.nfev, result.njev) == (40, 41, 41)


@pytest.mark.parametrize(("name", "hyper", "steps", "loss"), BOWL)
def test_bowl(name, hyper, steps, loss):
    """Every optimizer reaches the bottom of a quadratic; what may change over time may be a schedule here too."""
    options = {**hyper, "maxiter": steps}
    result = minimize(bowl, [1.0, -1.0, 2.0], jac=True, method=method(name), tol=0, options=options)
    assert result.fun < loss
    assert result.fun == bowl(result.x)[0]
    assert np.array_equal(result.jac, bowl(result.x)[1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_rosenbrock(variant):
    """Along the bent valley; irprop+ has the loss that it needs."""
    options = {"variant": variant, "maxiter": 5000}
    result = minimize(rosen, START, jac=rosen_der, method=proptim.scipy.rprop, options=options)
    assert result.fun < 1e-3
    assert result.fun == rosen(result.x)


@pytest.mark.parametrize("variant", VARIANTS)
def test_diabetes(variant):
    """A real least-squares fit ends at the exact solution."""
    features, target = pytest.importorskip("sklearn.datasets").load_diabetes(return_X_y=True, scaled=False)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    target = (target - target.mean()) / target.std()

    def loss(weights):
        error = features @ weights - target
        return error @ error / (2 * len(target)), features.T @ error / len(target)

    exact = np.linalg.lstsq(features, target, rcond=None)[0]
    result = minimize(loss, np.zeros(10), jac=True, method=proptim.scipy.rprop, options={"variant": variant})
    assert result.success
    assert np.abs(result.jac).max() <= 1e-5
    assert 0 <= result.fun - loss(exact)[0] < 1e-7
    assert np.abs(result.x - exact).max() < 5e-3


# Bounds --------------------------------------------------------------------------------------------------------------


def quadratic(x):
    """A coupled quadratic; within bounds some variables end on them and some between."""
    matrix, away = np.diag([1.0, 4.0, 10.0]) + 0.5, x - np.array([2.0, -3.0, 0.5])
    return 0.5 * away @ matrix @ away, matrix @ away


def styblinski(x):
    return ((x**4 - 16 * x**2 + 5 * x) / 2).sum(), (4 * x**3 - 32 * x + 5) / 2


BOUNDED = {
    "one of three": (quadratic, [0.0, 0.0, 0.0], [(None, 1.0), (-np.inf, None), (-5.0, 5.0)]),
    "a corner": (quadratic, [4.0, 1.0, 9.0], [(3.0, None), (0.0, np.inf), (1.0, 2.0)]),
    "fixed": (quadratic, [0.0, 7.0, 0.0], [(None, None), (-1.0, -1.0), (None, None)]),
    "valley": (rosenbrock, [-1.2, 1.0], [(-2.0, 0.5), (None, None)]),
    "minima": (styblinski, [-1.0, 1.0], [(-2.0, 0.0), (0.0, 2.0)]),
    "wide": (quadratic, [0.0, 0.0, 0.0], [(-1e300, 1e300)] * 3),
}
RATES = {"sgd": 2e-3, "adadelta": 1.0, "adagrad": 0.5, "adamax": 0.1, "radam": 1e-2}


def falling(name):
    """An lr that reaches a tolerance in the end."""
    every = 2000 if name in RATES else 300
    return {} if name == "rprop" else {"lr": proptim.schedules.exponential(RATES.get(name, 0.05), 0.5, every=every)}


@pytest.mark.parametrize("problem", BOUNDED)
@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_bounds(name, problem):
    """The minimum within bounds is that of L-BFGS-B, and no function is ever asked for a value outside."""
    function, start, bounds = BOUNDED[problem]
    fun = Counted(function)
    options = {**falling(name), "maxiter": 4000}
    if name == "rprop":
        options["xtol"] = 2e-6
    if name == "adamw":
        options["weight_decay"] = 0.0  # which is not part of fun
    result = minimize(fun, start, jac=True, bounds=bounds, method=method(name), options=options)
    expected = minimize(function, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"gtol": 1e-9, "ftol": 0})
    low, high = np.array([(-np.inf if a is None else a, np.inf if b is None else b) for a, b in bounds]).T
    assert all(((low <= x) & (x <= high)).all() for x in [*fun.points, result.x])
    assert 0 <= result.fun - expected.fun + 1e-12 < 1e-3
    assert result.fun == function(result.x)[0]
    assert np.array_equal(result.jac, function(result.x)[1])
    on = (expected.x == low) | (expected.x == high)
    assert np.array_equal(result.x[on], expected.x[on])


def test_convergence_within_bounds():
    """The projected gradient is tested: a run succeeds at a corner whose gradient points outward."""
    for bounds in ([(1, 2)] * 2, Bounds(1, 2), Bounds([1, 1], [2, 2]), np.array([[1, 2], [1, 2]]), [(1, 2)]):
        result = minimize(bowl_of(2), [1.5, 7.0], jac=True, bounds=bounds, method=proptim.scipy.rprop)
        assert result.success
        assert result.x.tolist() == [1, 1]
        assert result.jac.tolist() == [2, 2]
    result = minimize(bowl_of(2), [9.0, 9.0], jac=True, bounds=[(3, 3), (4, 4)], method=proptim.scipy.adam)
    assert (result.success, result.nit, result.x.tolist()) == (True, 0, [3, 4])


@pytest.mark.parametrize(("name", "case"), CASES)
def test_infinite_bounds_are_none(name, case):
    """Every point is that of the run without bounds, bit for bit."""
    points = []
    for bounds in (None, [(None, None)] * 2, Bounds(), [(-np.inf, np.inf)] * 2):
        points.append([])
        options = {**case, "maxiter": 20}
        minimize(
            rosenbrock, START, jac=True, bounds=bounds, method=method(name), callback=points[-1].append, options=options
        )
    assert all(np.array_equal(seen, points[0]) for seen in points)


@pytest.mark.parametrize(
    "bounds", [[(0.1, 0.1 + 1e-12), (0.2, None)], [(0.1, 0.7), (None, 0.3)], [(0.0, 0.0), (1e-9, 2)]]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("derivative", [True, False])
def test_nothing_outside(bounds, dtype, derivative):
    """fun is never evaluated outside the bounds, neither by rounding to float32 nor by a finite difference."""
    fun = Counted((lambda x: (x @ x, 2 * x)) if derivative else (lambda x: x @ x))
    x0, options = np.array([0.5, 0.25], dtype), {"lr": 0.1, "maxiter": 50}
    result = minimize(fun, x0, jac=derivative, bounds=bounds, method=proptim.scipy.adam, options=options)
    low, high = np.array([(-np.inf if a is None else a, np.inf if b is None else b) for a, b in bounds]).T
    assert all(((low <= x) & (x <= high)).all() for x in [*fun.points, result.x])
    between = not 0 < bounds[0][1] - bounds[0][0] < 1e-9  # whether there is a float32 between the bounds
    assert result.x.dtype == ("float32" if dtype == "float32" and derivative and between else "float64")


def test_differences_within_bounds():
    """Finite differences at a bound point inwards, as in L-BFGS-B: fun need not be defined outside."""

    def fun(x):
        assert (x >= 0).all()
        return np.sqrt(x).sum() + (x - 3) @ (x - 3)

    result = minimize(fun, [1.0, 2.0], bounds=[(0, 2.5)] * 2, method=proptim.scipy.rprop, options={"xtol": 2e-6})
    expected = minimize(fun, [1.0, 2.0], bounds=[(0, 2.5)] * 2, method="L-BFGS-B")
    assert result.success
    assert result.x == pytest.approx(expected.x, abs=1e-5)
    assert result.x.tolist() == [2.5, 2.5]


def test_hessians():
    """Not used, which is told by the warning of SciPy's own methods, at the line of the caller."""
    given = {"hess": lambda x: np.eye(2), "hessp": lambda x, p: p}
    expected = minimize(rosen, START, jac=rosen_der, method=proptim.scipy.rprop, options={"maxiter": 20})
    told = []
    for name in (proptim.scipy.rprop, "BFGS"):
        with pytest.warns(RuntimeWarning) as warned:
            result = minimize(rosen, START, jac=rosen_der, method=name, options={"maxiter": 20}, **given)
        if name == "BFGS":
            warned = [w for w in warned if "Method" in str(w.message)]
        else:
            assert np.array_equal(result.x, expected.x)
            assert {w.filename for w in warned} == {__file__}
        told.append([(w.category, str(w.message).replace("BFGS", "rprop")) for w in warned])
    assert told[0] == told[1]


# What is evaluated -------------------------------------------------------------------------------------------------


def test_counts():
    """One evaluation of the value and one of the gradient for each point; one for both with jac=True."""
    fun, jac = Counted(rosen), Counted(rosen_der)
    result = minimize(fun, START, jac=jac, method=proptim.scipy.rprop, options={"maxiter": 25})
    assert (result.nit, result.nfev, result.njev) == (25, fun.calls, jac.calls) == (25, 26, 26)
    both = Counted(rosenbrock)
    result = minimize(both, START, jac=True, method=proptim.scipy.rprop, options={"maxiter": 25})
    assert (result.nfev, result.njev, both.calls) == (26, 26, 26)


@pytest.mark.parametrize("jac", [None, False, "2-point"])
def test_finite_differences(jac):
    """Without a gradient it is taken by forward differences, as BFGS does, and every evaluation is counted."""
    fun = Counted(rosen)
    result = minimize(fun, START, jac=jac, method=proptim.scipy.adam, options={"lr": 0.1, "gtol": 1e-3})
    assert result.success
    assert fun.calls == result.nfev == 3 * (result.nit + 1) == 3 * result.njev
    assert result.fun < 1e-5
    assert np.allclose(result.jac, rosen_der(result.x), rtol=0, atol=1e-4)  # 1.5e-8 times half the curvature


def test_finite_differences_of_single_precision():
    """Finite differences, and the run, are computed in double precision, in which a difference of 1.5e-8 exists."""
    start = np.array([3, 4], np.float32)
    result = minimize(lambda x: x @ x, start, method=proptim.scipy.rprop)
    assert result.success
    assert result.x.dtype == np.float64
    assert np.array_equal(result.x, minimize(lambda x: x @ x, [3.0, 4.0], method=proptim.scipy.rprop).x)


@pytest.mark.parametrize("args", [(2.0,), 2.0])
@pytest.mark.parametrize("jac", [lambda x, a: 2 * a * x, None])
def test_args(args, jac):
    """More arguments reach both functions; a single one need not be a tuple, called directly or by minimize."""
    start = np.array([3.0, -1.0])
    direct = proptim.scipy.rprop(lambda x, a: a * x @ x, start, args, jac=jac)
    result = minimize(lambda x, a: a * x @ x, start, args, jac=jac, method=proptim.scipy.rprop)
    assert result.success
    assert np.array_equal(direct.x, result.x)
    assert result.nfev == direct.nfev


@pytest.mark.parametrize("x0", [[3, 4], (3.0, 4.0), np.array([3, 4]), np.array([3, 4], ">f8"), np.array([3, 4], bool)])
def test_start(x0):
    """Anything real starts a run in float64."""
    expected = minimize(bowl_of(2), np.array(x0, float), jac=True, method=proptim.scipy.rprop)
    result = minimize(bowl_of(2), x0, jac=True, method=proptim.scipy.rprop)
    assert np.array_equal(result.x, expected.x)
    assert result.x.dtype == np.float64


def test_shapes_of_the_start():
    """A number is a vector of one; called directly, any shape is raveled, as by SciPy's methods; empty is solved."""
    assert minimize(bowl_of(1), 3.0, jac=True, method=proptim.scipy.rprop).x.shape == (1,)
    start = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], order="F")
    result = proptim.scipy.rprop(lambda x: x @ x, start, jac=lambda x: 2 * x, maxiter=0)
    assert np.array_equal(result.x, start.ravel())
    result = minimize(bowl_of(0), [], jac=True, method=proptim.scipy.rprop)
    assert (result.success, result.nit, result.x.shape) == (True, 0, (0,))


def test_nothing_is_shared():
    """Functions and callbacks that write to the arrays that they get change nothing."""
    start = np.array(START)
    start.flags.writeable = False
    buffer = np.empty(2)

    def scribbler(x):
        value, buffer[:] = rosenbrock(x)
        x[:] = np.nan
        return value, buffer  # the same array each time, as many programs do

    def scribbling_gradient(x):
        buffer[:] = rosen_der(x)
        x[:] = np.nan
        return buffer

    def callback(intermediate_result):
        intermediate_result.x[:] = np.nan
        buffer[:] = np.nan

    options = {"lr": 0.1, "maxiter": 50}
    expected = minimize(rosenbrock, START, jac=True, method=proptim.scipy.adam, options=options)
    result = minimize(scribbler, start, jac=True, method=proptim.scipy.adam, callback=callback, options=options)
    assert np.array_equal(result.x, expected.x)
    assert np.array_equal(result.jac, expected.jac)
    assert not np.shares_memory(result.jac, buffer)
    expected, result = (
        minimize(rosen, start, jac=jac, method=proptim.scipy.adam, options=options)
        for jac in (rosen_der, scribbling_gradient)
    )
    assert np.array_equal(result.x, expected.x)
    assert list(start) == START
    assert options == {"lr": 0.1, "maxiter": 50}


@pytest.mark.parametrize("wrap", [np.array, lambda v: np.array([v]), lambda v: [[v]], np.float32, int])
def test_forms_of_a_value(wrap):
    """One number may come in any shape and type; so may a gradient of one variable."""
    result = minimize(lambda x: wrap(4.0), [1.0], jac=lambda x: wrap(0.0), method=proptim.scipy.sgd)
    assert type(result.fun) is float
    assert (result.fun, result.jac) == (4.0, np.zeros(1))


# How a run ends ----------------------------------------------------------------------------------------------------


def stop(xk):
    raise StopIteration


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(
    ("fun", "keywords"),
    [
        pytest.param(bowl_of(3), {}, id="success"),
        pytest.param(bowl, {"options": {"maxiter": 1}}, id="maxiter"),
        pytest.param(bowl, {"callback": stop}, id="callback"),
        pytest.param(lambda x: (np.nan, x), {}, id="nan"),
    ],
)
def test_endings(fun, keywords):
    """Success, status and message are those of BFGS."""
    ours, theirs = (
        minimize(fun, [1.0, -1.0, 2.0], jac=True, method=m, **keywords) for m in (proptim.scipy.rprop, "BFGS")
    )
    for key in ("success", "status", "message"):
        assert ours[key] == theirs[key]
    assert type(ours) is OptimizeResult
    assert type(ours.success) is bool


def test_maxiter_returns_the_best():
    """Out of steps, the result is the best point on the way, its value and its gradient."""
    fun = Counted(bowl)
    result = minimize(fun, [1.0, -1.0, 2.0], jac=True, method=proptim.scipy.rprop, options={"maxiter": 37})
    losses = [bowl(x)[0] for x in fun.points]
    best = int(np.argmin(losses))
    assert best < 37, "the last point happens to be the best: the test shows nothing"
    assert np.array_equal(result.x, fun.points[best])
    assert result.fun == losses[best]
    assert np.array_equal(result.jac, bowl(fun.points[best])[1])
    assert result.nit == 37


@pytest.mark.parametrize("maxiter", [0, 1, 3.0, np.int64(3)])
def test_maxiter(maxiter):
    """Steps at most, also none; success at the last step is success."""
    result = minimize(bowl, [1.0, 1.0, 1.0], jac=True, method=proptim.scipy.rprop, options={"maxiter": maxiter})
    assert (result.nit, result.nfev, result.status) == (maxiter, maxiter + 1, 1)
    options = {"lr": 0.5, "maxiter": max(maxiter, 1)}
    result = minimize(bowl_of(1), [1.0], jac=True, method=proptim.scipy.sgd, options=options)
    assert (result.nit, result.status, result.x) == (1, 0, 0.0)


def test_defaults():
    """gtol is that of BFGS, maxiter that of L-BFGS-B."""
    result = minimize(lambda x: (x[0], np.ones(1)), [0.0], jac=True, method=proptim.scipy.sgd)
    assert (result.nit, result.status) == (15_000, 1)
    for slope, status in [(1e-5, 0), (1.1e-5, 1)]:
        result = minimize(
            lambda x, slope: (x[0], [slope]), [0.0], slope, jac=True, method=proptim.scipy.sgd, options={"maxiter": 2}
        )
        assert result.status == status


def test_tolerances():
    """The largest element of the gradient counts, at any sign; gtol precedes tol."""
    fun = Counted(bowl)
    for keywords, gtol in [({"tol": 0.5}, 0.5), ({"tol": 0.5, "options": {"gtol": 0.25}}, 0.25)]:
        fun.points.clear()
        result = minimize(fun, [1.0, -1.0, 2.0], jac=True, method=proptim.scipy.rprop, **keywords)
        sizes = [np.abs(bowl(x)[1]).max() for x in fun.points]
        assert result.success
        assert sizes[-1] <= gtol < min(sizes[:-1])
        assert np.array_equal(result.x, fun.points[-1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_xtol(variant):
    """Rprop ends where its steps are the smallest, on both sides of the minimum, not where it rests once."""
    points = [[1.0, -1.0, 2.0]]
    options = {"variant": variant, "xtol": 2e-6, "gtol": 0}
    result = minimize(bowl, points[0], jac=True, method=proptim.scipy.rprop, callback=points.append, options=options)
    small = np.abs(np.diff(points, axis=0)).max(axis=1) <= 2e-6
    assert result.success
    assert small[-2:].all()
    assert not (small[:-2] & small[1:-1]).any()
    assert np.array_equal(result.x, points[-1])
    assert np.abs(result.x).max() < 2e-6
    options["lr"] = 3.0  # a single variable, and so a rest of all of them
    result = minimize(bowl_of(1), [1.0], jac=True, method=proptim.scipy.rprop, options=options)
    assert result.success
    assert np.abs(result.x).max() < 2e-6


def test_ftol():
    """A run ends where fun has changed by at most ftol in two steps in a row, and not before."""
    values = []
    options = {"lr": 0.05, "ftol": 1e-6, "gtol": 0}
    result = minimize(
        lambda x: (values.append(10 * (x @ x) + 5) or values[-1], 20 * x), [1.0, -1.0],
        jac=True, method=proptim.scipy.adam, options=options,
    )  # fmt: skip
    close = [abs(a - b) <= 1e-6 * max(abs(a), abs(b), 1) for a, b in itertools.pairwise(values)]
    assert result.success
    assert close[-2:] == [True, True]
    assert not any(a and b for a, b in itertools.pairwise(close[:-1]))


def test_nan_on_the_way():
    """A NaN ends the run at once; the result is the best point before it."""

    def cliff(x):
        return (x @ x, 2 * x) if x[0] > 0.5 else (np.nan, 2 * x)

    result = minimize(cliff, [1.0], jac=True, method=proptim.scipy.sgd, options={"lr": 0.05})
    assert (result.status, result.success, result.message) == (3, False, "NaN result encountered.")
    assert result.x[0] == pytest.approx(0.9**6)
    assert result.fun == result.x[0] ** 2
    assert result.nit == 7
    result = minimize(lambda x: (1.0, [np.nan]), [2.0], jac=True, method=proptim.scipy.sgd)
    assert (result.status, result.nit, result.x, result.fun) == (3, 0, 2.0, 1.0)


@pytest.mark.parametrize("at", [1, 5])
def test_stopped_by_the_callback(at):
    """StopIteration ends the run at the point that the callback saw, the best or not."""
    seen = []

    def callback(intermediate_result: OptimizeResult):
        seen.append(intermediate_result)
        if len(seen) == at:
            raise StopIteration

    options = {"step_sizes": (1.0, 2.0)}  # too long: over the minimum and up again
    result = minimize(bowl, [0.1, 0.1, 0.1], jac=True, method=proptim.scipy.rprop, callback=callback, options=options)
    assert result.fun > bowl(np.full(3, 0.1))[0]
    assert (result.status, result.nit) == (99, at)
    assert np.array_equal(result.x, seen[-1].x)
    assert result.fun == seen[-1].fun == bowl(result.x)[0]


def test_signatures_of_callbacks():
    """By SciPy's rule: the result for a single parameter `intermediate_result`, the point for anything else."""

    class Recorder:
        def __init__(self):
            self.given = []

        def __call__(self, intermediate_result):
            self.given.append(intermediate_result.x)

        def method(self, x, note="", intermediate_result=None):
            assert intermediate_result is None
            self.given.append(x)

    points = []
    partial = functools.partial(Recorder.method, note="!")
    for make in (lambda r: r, lambda r: r.method, lambda r: functools.partial(partial, r), lambda r: r.given.append):
        recorder = Recorder()
        callback, options = make(recorder), {"maxiter": 5}
        minimize(rosenbrock, START, jac=True, method=proptim.scipy.rprop, callback=callback, options=options)
        points.append(recorder.given)
    assert len(points[0]) == 5
    assert all(np.array_equal(p, points[0]) for p in points)


def test_disp(capsys):
    """The message and the counts, as BFGS prints them; nothing without it."""
    for disp in (False, True):
        assert capsys.readouterr().out == ""
        minimize(bowl, [1.0, 1.0, 1.0], jac=True, method=proptim.scipy.rprop, options={"disp": disp, "maxiter": 2})
    assert capsys.readouterr().out == (
        "Maximum number of iterations has been exceeded.\n"
        "         Current function value: 53.084862\n"
        "         Iterations: 2\n"
        "         Function evaluations: 3\n"
        "         Gradient evaluations: 3\n"
    )


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"bounds": [(0, 1), (2, 1)]}, ValueError, "bounds of variable 1 are 2.0 and 1.0; expected a lower bound that"),
        ({"bounds": Bounds([0, 3], 2)}, ValueError, "bounds of variable 1 are 3.0 and 2.0"),
        ({"bounds": [(np.nan, 1)] * 2}, ValueError, "bounds of variable 0 are nan and 1.0"),
        ({"bounds": [(np.inf, None)] * 2}, ValueError, "bounds of variable 0 are inf and inf"),
        ({"bounds": [(None, -np.inf)] * 2}, ValueError, "bounds of variable 0 are -inf and -inf"),
        ({"bounds": []}, ValueError, "bounds are of shapes (0,) and (0,); expected one pair for each of 2 variables"),
        ({"bounds": [(0, 1)] * 3}, ValueError, "bounds are of shapes (3,) and (3,); expected one pair for each of 2"),
        ({"bounds": [(0, 1, 2)] * 2}, ValueError, "bounds[0] has 3 values; expected two, the lower and the upper"),
        ({"options": {"ftol": -1.0}}, ValueError, "Invalid ftol: -1.0"),
        ({"constraints": {"type": "eq", "fun": sum}}, ValueError, "got constraints"),
        ({"constraints": LinearConstraint(np.eye(2), 0, 1)}, ValueError, "got constraints"),
        ({"tol": -1.0}, ValueError, "Invalid gtol: -1.0"),
        ({"options": {"gtol": np.nan}}, ValueError, "Invalid gtol: nan"),
        ({"options": {"xtol": -1}}, ValueError, "Invalid xtol: -1"),
        ({"options": {"maxiter": -1}}, ValueError, "Invalid maxiter: -1"),
        ({"options": {"maxiter": "many"}}, TypeError, "Invalid maxiter: 'many'"),
        ({"options": {"lr": -1.0}}, ValueError, "Invalid learning rate: -1.0"),
        ({"options": {"variant": "rprop"}}, ValueError, "Invalid variant: 'rprop'"),
        ({"options": {"threads": -3}}, ValueError, "threads"),
        ({"x0": [1j, 0]}, TypeError, "x0 is complex128; expected real numbers"),
    ],
)
def test_refusals(keywords, error, message):
    """Bad arguments raise an error before anything is evaluated."""
    fun = Counted(rosenbrock)
    with pytest.raises(error) as raised:
        minimize(**{"fun": fun, "x0": START, "jac": True, "method": proptim.scipy.rprop, **keywords})
    assert message in str(raised.value)
    assert fun.calls == 0


@pytest.mark.parametrize(
    ("fun", "jac", "error", "message"),
    [
        (rosenbrock, None, TypeError, "fun returned a tuple; expected one number: pass jac=True"),
        (rosenbrock, rosen_der, TypeError, "fun returned a tuple"),
        (lambda x: x, rosen_der, ValueError, "fun returned an array of shape (2,); expected one number"),
        (lambda x: 1j, rosen_der, TypeError, "fun returned complex numbers; expected real ones"),
        (rosen, lambda x: x + 1j, TypeError, "jac returned complex numbers"),
        (rosen, lambda x: np.ones(3), ValueError, "jac returned an array of shape (3,); expected (2,)"),
        (rosen, lambda x: np.ones((2, 1)), ValueError, "jac returned an array of shape (2, 1); expected (2,)"),
        (rosen, lambda x: 1.0, ValueError, "jac returned an array of shape (); expected (2,)"),
    ],
)
def test_what_functions_may_not_return(fun, jac, error, message):
    """Arrays are neither broadcast nor truncated."""
    with pytest.raises(error) as raised:
        minimize(fun, START, jac=jac, method=proptim.scipy.rprop)
    assert message in str(raised.value)


@pytest.mark.parametrize("jac", [True, "2-point"])
def test_forms_of_jac_that_minimize_translates(jac):
    """Called directly, what only SciPy understands is refused."""
    with pytest.raises(ValueError, match=f"jac is {jac!r}; expected a callable or None: .*method=proptim.scipy.rprop"):
        proptim.scipy.rprop(rosen, START, jac=jac)


def test_unknown_options():
    """A warning like that of SciPy's methods, at the line of the caller; and a run without them."""
    foreign = {"maxcor": 10, "grads": [], "maximize": True, "nonfinite": "skip", "max_skips": 1, "zero_grads": True}
    expected = minimize(rosen, START, jac=rosen_der, method=proptim.scipy.rprop, options={"maxiter": 20})
    with pytest.warns(OptimizeWarning) as told:
        result = minimize(rosen, START, jac=rosen_der, method=proptim.scipy.rprop, options={"maxiter": 20, **foreign})
    assert [str(w.message) for w in told] == [f"Unknown solver options: {', '.join(foreign)}"]
    assert told[0].filename == __file__
    assert np.array_equal(result.x, expected.x)
    with pytest.warns(OptimizeWarning, match="^Unknown solver options: variant$"):
        minimize(rosen, START, jac=rosen_der, method=proptim.scipy.adam, options={"maxiter": 1, "variant": "rprop+"})


def test_options_of_all_optimizers():
    """weight_decay, clip_norm, backend and the like reach the optimizer."""
    options = {"weight_decay": 0.1, "clip_norm": 1.0, "clip_value": 0.9, "grad_scale": 0.5, "backend": "numpy"}
    x = np.array(START)
    opt = proptim.SGD([x], **options)
    for _ in range(10):
        opt.step([rosen_der(x)])
    seen = []
    options["maxiter"] = 10
    minimize(rosen, START, jac=rosen_der, method=proptim.scipy.sgd, callback=seen.append, options=options)
    assert np.array_equal(seen[-1], x)


def test_errors_of_the_functions_pass():
    """Exceptions of a function or callback are not caught."""

    def broken(x):
        raise ZeroDivisionError("mine")

    for keywords in ({"fun": broken}, {"jac": broken}, {"callback": broken}):
        with pytest.raises(ZeroDivisionError, match="mine"):
            minimize(**{"fun": rosen, "x0": START, "jac": rosen_der, "method": proptim.scipy.rprop, **keywords})


# The module --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_registry(name):
    """One callable for each optimizer, that says what it takes and can be sent to another process."""
    ours = method(name)
    assert repr(ours) == f"<function proptim.scipy.{name}>"
    assert pickle.loads(pickle.dumps(ours)) is ours
    assert proptim.OPTIMIZERS[name].__name__ in ours.__doc__
    taken = inspect.signature(proptim.OPTIMIZERS[name]).parameters
    shown = inspect.signature(ours).parameters
    assert {k: shown[k].default for k in taken if k not in ("params", "options")} == {
        k: p.default for k, p in taken.items() if k not in ("params", "options")
    }


@pytest.mark.once
def test_all():
    """What the module exports is the registry."""
    assert proptim.scipy.__all__ == list(proptim.OPTIMIZERS)
    with pytest.raises(AttributeError, match="'adabelief'"):
        proptim.scipy.adabelief  # noqa: B018


def test_inside_basinhopping():
    """As the local method of SciPy's global ones."""
    keywords = {"method": proptim.scipy.rprop, "jac": True, "options": {"xtol": 2e-6}}
    result = basinhopping(
        lambda x: (np.cos(14.5 * x[0] - 0.3) + (x[0] + 0.2) * x[0], -14.5 * np.sin(14.5 * x - 0.3) + 2 * x + 0.2),
        [1.0], niter=50, minimizer_kwargs=keywords, rng=np.random.default_rng(0),
    )  # fmt: skip
    assert result.fun == pytest.approx(-1.000876, abs=1e-6)  # the value in SciPy's documentation of basinhopping


@pytest.mark.once
def test_without_scipy(fresh):
    """proptim does not need SciPy and does not load it; the door says what to install."""
    told = fresh(
        "import sys, proptim\n"
        "assert 'scipy' not in sys.modules and 'proptim.scipy' not in sys.modules\n"
        "sys.path[:] = [p for p in sys.path if not p.endswith('-packages')]\n"
        "try:\n    import proptim.scipy\nexcept ImportError as error:\n    print(error)"
    )
    assert told == "proptim.scipy needs SciPy (No module named 'scipy'): pip install 'proptim[scipy]'"
