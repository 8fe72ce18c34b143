"""Every optimizer finds the minimum of a quadratic and of Rosenbrock's function; and properties of a few rules."""

from __future__ import annotations

import numpy as np
import pytest

import proptim
from proptim.rprop import VARIANTS
from proptim.schedules import exponential

CURVATURES = np.array([1.0, 10.0, 100.0])


def bowl(x):
    """A quadratic of condition number 100, and its gradient."""
    return (CURVATURES * x * x).sum() / 2, CURVATURES * x


def rosenbrock(x):
    """Rosenbrock's function, whose bottom is a bent valley with the minimum 0 at (1, 1), and its gradient."""
    a, b = x
    return (1 - a) ** 2 + 100 * (b - a * a) ** 2, np.array([2 * (a - 1) - 400 * a * (b - a * a), 200 * (b - a * a)])


# Hyperparameters, steps, and the loss that must be reached by then; the loss at first is 252.5 and 24.2.
# Lion and RMSprop move by lr whatever the gradient, Adadelta by its own past: they settle only if lr falls.
# An optimizer that is not named has to get there from a small learning rate, in many steps.
BOWL = [
    ("sgd", {"lr": 0.018}, 500, 1e-7),
    ("sgd", {"lr": 0.01, "momentum": 0.9}, 300, 1e-10),
    ("sgd", {"lr": 0.01, "momentum": 0.9, "nesterov": True}, 300, 1e-10),
    *[("rprop", {"variant": variant}, 100, 1e-9) for variant in VARIANTS],
    ("rmsprop", {"lr": exponential(0.1, 0.9, every=10)}, 1000, 1e-8),
    ("rmsprop", {"lr": exponential(0.1, 0.9, every=10), "momentum": 0.9}, 1000, 1e-8),
    ("rmsprop", {"lr": exponential(0.1, 0.9, every=10), "centered": True}, 1000, 1e-8),
    ("adagrad", {"lr": 0.5}, 100, 1e-10),
    ("adadelta", {"lr": exponential(1.0, 0.9, every=10), "eps": 1e-3}, 500, 1e-10),
    ("adam", {"lr": 0.1}, 300, 1e-10),
    ("adam", {"lr": 0.1, "amsgrad": True}, 300, 1e-8),
    ("adamw", {"lr": 0.1, "weight_decay": 0.0}, 300, 1e-10),
    ("nadam", {"lr": 0.1}, 200, 1e-10),
    ("lion", {"lr": exponential(0.1, 0.9, every=10)}, 1000, 1e-9),
]
BOWL += [(name, {"lr": 0.01}, 2000, 1e-6) for name in proptim.OPTIMIZERS if name not in {row[0] for row in BOWL}]
VALLEY = [
    ("sgd", {"lr": 1e-3, "momentum": 0.9}, 3000, 1e-10),
    *[("rprop", {"variant": variant}, 5000, 1e-3) for variant in ("rprop-", "rprop+")],
    *[("rprop", {"variant": variant}, 3000, 1e-4) for variant in ("irprop-", "irprop+")],
    ("rmsprop", {"lr": exponential(0.02, 0.5, every=500)}, 5000, 1e-4),
    ("rmsprop", {"lr": exponential(0.005, 0.5, every=1000), "momentum": 0.9}, 5000, 1e-4),
    ("adagrad", {"lr": 1.0}, 5000, 1e-3),
    ("adadelta", {"lr": exponential(1.0, 0.5, every=1000), "eps": 1e-5}, 5000, 1e-3),
    ("adam", {"lr": 0.05}, 2000, 1e-6),
    ("adamw", {"lr": 0.05, "weight_decay": 0.0}, 2000, 1e-6),
    ("nadam", {"lr": exponential(0.05, 0.5, every=1000)}, 3000, 1e-5),
    ("lion", {"lr": exponential(0.02, 0.5, every=300)}, 5000, 1e-8),
]
VALLEY += [
    (name, {"lr": exponential(2e-3, 0.5, every=4000)}, 10000, 0.1)
    for name in proptim.OPTIMIZERS
    if name not in {row[0] for row in VALLEY}
]


def descend(function, start, name, hyper, steps):
    """The loss after so many steps."""
    x = np.array(start)
    opt = proptim.OPTIMIZERS[name]([x], **hyper)
    for _ in range(steps):
        loss, grad = function(x)
        opt.step([grad], loss=loss)
    return function(x)[0]


@pytest.mark.parametrize(("name", "hyper", "steps", "loss"), BOWL)
def test_bowl(name, hyper, steps, loss):
    """The bottom of a quadratic of condition number 100."""
    assert descend(bowl, [1.0, -1.0, 2.0], name, hyper, steps) < loss


@pytest.mark.parametrize(("name", "hyper", "steps", "loss"), VALLEY)
def test_valley(name, hyper, steps, loss):
    """Along Rosenbrock's bent valley from (-1.2, 1)."""
    assert descend(rosenbrock, [-1.2, 1.0], name, hyper, steps) < loss


def test_maximize():
    """maximize climbs: with the loss and its gradient negated, every run is the same run."""
    for name, hyper, _, _ in VALLEY:
        flipped = descend(lambda x: tuple(-v for v in rosenbrock(x)), [-1.2, 1.0], name, hyper | {"maximize": True}, 50)
        assert -flipped == descend(rosenbrock, [-1.2, 1.0], name, hyper, 50)


def test_all_descend():
    """No optimizer, and no variant of Rprop, is left out."""
    for table in (BOWL, VALLEY):
        assert {name for name, *_ in table} == set(proptim.OPTIMIZERS)
        assert {hyper["variant"] for name, hyper, *_ in table if name == "rprop"} == set(VARIANTS)


def test_sgd_first_step_is_undamped():
    """The momentum buffer begins as the gradient, as in torch; dampening counts from the second step."""
    w = np.zeros(1)
    opt = proptim.SGD([w], lr=1.0, momentum=0.5, dampening=0.25)
    opt.step([np.ones(1)])
    assert opt.state[0]["momentum_buffer"] == 1.0
    opt.step()
    assert opt.state[0]["momentum_buffer"] == 1.25


def test_irprop_plus_looks_at_the_loss():
    """A step after which the sign turned is taken back if the loss has risen, strictly; a gain if it has fallen."""
    for loss, maximize, place in [(3.0, False, 0.0), (2.0, False, -0.5), (1.0, False, -0.5),
                                  (3.0, True, -0.5), (1.0, True, 0.0)]:  # fmt: skip
        w, sign = np.zeros(1), -1.0 if maximize else 1.0
        opt = proptim.Rprop([w], lr=0.5, variant="irprop+", maximize=maximize)
        opt.step([np.array([sign])], loss=2.0)
        opt.step([np.array([-sign])], loss=loss)
        assert w == place
