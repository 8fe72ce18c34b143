"""Runs computed by hand, on every backend: the four variants of Rprop, and properties that distinguish the rules."""

from __future__ import annotations

import numpy as np
import pytest

import proptim
from proptim import _backend, _stages

GRADS = [1, 1, -1, -1, -1, 0.5, 0, 0.5]
LOSSES = [5, 4, 4.5, 3, 2, 1, 1, 1]
# (parameter, step size) after each of these gradients, from p = 0 with a first step of 0.1.
TRACES = {
    "rprop-": "-.1,.1 -.22,.12 -.16,.06 -.088,.072 -.0016,.0864 -.0448,.0432 -.0448,.0432 -.088,.0432",
    "irprop-": "-.1,.1 -.22,.12 -.22,.06 -.16,.06 -.088,.072 -.088,.036 -.088,.036 -.124,.036",
    "rprop+": "-.1,.1 -.22,.12 -.1,.06 -.04,.06 .032,.072 -.04,.036 -.04,.036 -.076,.036",
    "irprop+": "-.1,.1 -.22,.12 -.1,.06 -.04,.06 .032,.072 .032,.036 .032,.036 -.004,.036",
}
# Where 12 steps lead on sum(a x^2)/2, a = (1, 10, .1), from (1, -1, 2).
QUADRATIC = {
    "rprop-": [0.045825792, -0.045825792, -0.1013892608],
    "irprop-": [-0.05271168, 0.05271168, 0.135100672],
    "rprop+": [0.007008, -0.007008, -0.1228883456],
    "irprop+": [0.007008, -0.007008, -0.1228883456],
}
EXACT = {"rtol": 0, "atol": 1e-14}  # the digits above are exact; the sums round at 1e-16


@pytest.mark.parametrize("variant", TRACES)
def test_rprop_trace(backend, variant):
    """Parameter and step size after every one of eight gradients; each lane and the tail alike."""
    expected = np.array([pair.split(",") for pair in TRACES[variant].split()], float)
    for dtype, close in ((np.float64, EXACT), (np.float32, {"rtol": 0, "atol": 1e-7})):
        param = np.zeros(21, dtype)
        opt = proptim.Rprop([param], lr=0.1, variant=variant)
        for grad, loss, (p, d) in zip(GRADS, LOSSES, expected, strict=True):
            opt.step([np.full(21, grad, dtype)], loss=loss)
            np.testing.assert_allclose(param, np.full(21, p), **close)
            np.testing.assert_allclose(opt.state[0]["step_size"], np.full(21, d), **close)


@pytest.mark.parametrize("variant", QUADRATIC)
def test_rprop_on_quadratic(backend, variant):
    """Twelve steps on a quadratic of condition number 100."""
    a, x = np.array([1, 10, 0.1]), np.array([1.0, -1, 2])
    opt = proptim.Rprop([x], lr=0.1, variant=variant)
    for _ in range(12):
        opt.step([a * x], loss=float((a * x * x).sum() / 2))
    np.testing.assert_allclose(x, QUADRATIC[variant], **EXACT)


@pytest.mark.parametrize(("loss", "expected"), [(1.0, -0.1), (2.0, -0.1), (np.nextafter(2.0, 3.0), 0.0)])
def test_irprop_plus_takes_back_only_what_did_harm(backend, loss, expected):
    """A change of sign takes the last move back if the loss has risen strictly; maximize turns that round."""
    for maximize in (False, True):
        param = np.zeros(9)
        opt = proptim.Rprop([param], lr=0.1, variant="irprop+", maximize=maximize)
        sign = -1.0 if maximize else 1.0
        opt.step([np.full(9, sign)], loss=sign * 2.0)
        opt.step([np.full(9, -sign)], loss=sign * loss)
        assert (param == expected).all()


def test_rprop_looks_at_signs_only(backend):
    """Gradients too small or too large for their product step as ordinary ones do."""
    signs = np.array([1, 1, -1, -1, 1, 0, 1], np.float32)
    results = []
    for size in (1, 1e-25, 1e-45, 3e38):
        param = np.zeros(9, np.float32)
        opt = proptim.Rprop([param])
        for sign in signs:
            opt.step([np.full(9, sign * np.float32(size))])
        results.append((param.tobytes(), opt.state[0]["step_size"].tobytes()))
    assert len(set(results)) == 1


def test_rprop_step_sizes_stay_in_bounds(backend):
    """Steps grow to 50 and shrink to 1e-6 and stay there; a first step outside the bounds begins at them."""
    for dtype in (np.float32, np.float64):
        low, high = (dtype(x) for x in (1e-6, 50))
        grow, shrink = np.zeros(9, dtype), np.zeros(9, dtype)
        up, down = proptim.Rprop([grow]), proptim.Rprop([shrink])
        for t in range(60):
            up.step([np.ones(9, dtype)])
            down.step([np.full(9, (-1) ** t, dtype)])
        assert (up.state[0]["step_size"] == high).all()
        assert (down.state[0]["step_size"] == low).all()
        for lr, first in ((1e3, high), (1e-9, low)):
            param = np.zeros(9, dtype)
            opt = proptim.Rprop([param], lr=lr)
            opt.step([np.ones(9, dtype)])
            assert (param == -first).all()


# Where gradients of +1, -1 and 0 lead from p = -2.2, d = 1.2 and a last gradient of +1 once the bounds have changed:
# (parameter, step size). Taking back gives back the whole 1.2 of the last move.
NARROWED = {  # to at most 0.1
    "rprop-": "-2.3,.1 -2.1,.1 -2.2,.1",
    "irprop-": "-2.3,.1 -2.2,.1 -2.2,.1",
    "rprop+": "-2.3,.1 -1,.1 -2.2,.1",
    "irprop+": "-2.3,.1 -1,.1 -2.2,.1",
}
RAISED = {  # to at least 5
    "rprop-": "-7.2,5 2.8,5 -2.2,5",
    "irprop-": "-7.2,5 -2.2,5 -2.2,5",
    "rprop+": "-7.2,5 -1,5 -2.2,5",
    "irprop+": "-7.2,5 -1,5 -2.2,5",
}


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("variant", NARROWED)
def test_rprop_bounds_hold_at_once(backend, variant, loaded):
    """Bounds changed in mid-run, or narrower than a loaded state, hold in the next step, whatever the signs."""
    for bounds, table in (((1e-6, 0.1), NARROWED), ((5.0, 50.0), RAISED)):
        for dtype, close in ((np.float64, EXACT), (np.float32, {"rtol": 0, "atol": 1e-6})):
            for grad, pair in zip((1, -1, 0), table[variant].split(), strict=True):
                param = np.zeros(21, dtype)
                opt = proptim.Rprop([param], lr=1.0, variant=variant)
                for loss in (2, 1):
                    opt.step([np.ones(21, dtype)], loss=loss)
                if loaded:
                    saved, opt = opt.state_dict(), proptim.Rprop([param], lr=1.0, variant=variant)
                    opt.load_state_dict(saved)
                opt.param_groups[0]["step_sizes"] = bounds
                opt.step([np.full(21, grad, dtype)], loss=1.5)
                p, d = map(float, pair.split(","))
                np.testing.assert_allclose(param, np.full(21, p), **close)
                assert (opt.state[0]["step_size"] == dtype(d)).all()


def test_rprop_bounds_hold_without_a_last_sign(backend):
    """Before the first step, and after a gradient of zero, which also takes the bounds of its time."""
    for variant in TRACES:
        param = np.zeros(9)
        opt = proptim.Rprop([param], lr=1.0, variant=variant)
        for bounds, grad, at, size in (
            ((1e-6, 0.5), 1.0, -0.5, 0.5),
            ((1e-6, 0.25), -0.0, -0.5, 0.25),
            ((2.0, 8.0), -1.0, 1.5, 2.0),
            ((1e-6, 50.0), -1.0, 1.5 + 2 * 1.2, 2 * 1.2),
        ):
            opt.step_sizes = bounds
            opt.step([np.full(9, grad)], loss=1.0)
            assert (param == at).all()
            assert (opt.state[0]["step_size"] == size).all()


def test_rprop_bounds_leave_nan(backend):
    """A step size or gradient that is NaN stays visible under any bounds."""
    for variant in TRACES:
        param, word = np.zeros(9), np.full(9, 0.1)
        word[4] = np.nan
        for grad in (1.0, -1.0, 1.0):
            plan_step(backend, variant, param, np.full(9, grad), word)
        assert np.isnan(param).nonzero()[0].tolist() == [4], variant


def plan_step(backend, variant, param, grad, word):
    """One step of Rprop on a state of any values, which no optimizer would load."""
    opt = proptim.Rprop([np.zeros(1)], lr=0.1, variant=variant)
    coefs, _ = opt.advance(opt.settled(opt.param_groups[0], 0), tuple(opt.clock_start.values()), 1.0)
    plan = _backend.plan_type(backend)(proptim.Rprop, [(param, word)], 1, False)
    plan.bind([grad])
    plan.step([(*coefs, *_stages.NEUTRAL.values())], [])


def test_rprop_and_zero(backend):
    """A zero gradient moves nothing, changes no step size, and is no last sign: the next step does not adapt."""
    param = np.zeros(9)
    opt = proptim.Rprop([param], lr=0.1)
    for grad, at in ((1.0, -0.1), (0.0, -0.1), (-1.0, 0.0), (-0.0, 0.0)):
        opt.step([np.full(9, grad)])
        assert (param == at).all()
        assert (opt.state[0]["step_size"] == 0.1).all()
        assert (opt.state[0]["prev"] == np.sign(grad)).all()


def test_nan_is_visible(backend):
    """A NaN gradient makes its parameter NaN under every rule, and no other."""
    for name, cls in proptim.OPTIMIZERS.items():
        param = np.ones(9)
        grad = np.full(9, 0.5)
        grad[4] = np.nan
        cls([param]).step([grad])
        assert np.isnan(param).nonzero()[0].tolist() == [4], name


def test_mini_batches(backend):
    """Nine gradients of 0.1 and one of -0.9 cancel for SGD; Rprop, which sees signs, drifts far away."""
    weights = {name: np.zeros(3) for name in ("sgd", "rprop")}
    sgd = proptim.SGD([weights["sgd"]], lr=0.01)
    rprop = proptim.Rprop([weights["rprop"]], lr=0.01)
    for _ in range(10):
        for grad in [0.1] * 9 + [-0.9]:
            sgd.step([np.full(3, grad)])
            rprop.step([np.full(3, grad)])
    assert abs(weights["sgd"]).max() < 1e-15
    assert weights["rprop"].max() < -1


def test_rmsprop_is_adam_without_momentum(backend):
    """RMSprop(alpha=b, bias_correction=True) and Adam(betas=(0, b)) are the same rule."""
    rng = np.random.default_rng(0)
    for b in (0.5, 0.9, 0.999):
        start = rng.standard_normal(50)
        a, c = start.copy(), start.copy()
        rmsprop = proptim.RMSprop([a], lr=0.01, alpha=b, bias_correction=True)
        adam = proptim.Adam([c], lr=0.01, betas=(0.0, b))
        for _ in range(30):
            grad = rng.standard_normal(50)
            rmsprop.step([grad])
            adam.step([grad])
        # one divides before the root, one after it: a few roundings a step
        np.testing.assert_allclose(a, c, rtol=0, atol=30 * 4 * np.finfo(float).eps)
        assert not np.allclose(a, start)


def test_averages_of_nothing(backend):
    """With gradients gone, averages decay into subnormal numbers; flush_denormals ends them at zero."""
    for dtype in (np.float32, np.float64):
        tiny = np.finfo(dtype).tiny
        averages = []
        for flush in (False, True):
            opt = proptim.RMSprop([np.ones(9, dtype)], alpha=0.5, flush_denormals=flush)
            opt.step([np.full(9, np.sqrt(tiny) * 8, dtype)])
            for _ in range(10):
                opt.step([np.zeros(9, dtype)])
            averages.append(opt.state[0]["square_avg"])
        kept, flushed = averages
        assert ((kept > 0) & (kept < tiny)).all()
        assert (flushed == 0).all()


def test_flush_leaves_normal_numbers(backend):
    """The smallest normal number stays, of either sign; what is below it becomes zero."""
    tiny = np.finfo(np.float64).tiny
    grad = np.tile([tiny, -tiny, tiny / 2, -tiny / 2, 1.0], 5)
    opt = proptim.SGD([np.zeros(25)], momentum=0.5, flush_denormals=True)
    opt.step([grad])
    expected = np.tile([tiny, -tiny, 0, 0, 1], 5)
    assert np.array_equal(opt.state[0]["momentum_buffer"], expected)
