"""Formats: arrays that are stored in another form than the rule computes in, with the same bits on every backend."""

from __future__ import annotations

import numpy as np
import pytest

import proptim
from proptim import _backend, _stages
from proptim._formats import Steps

CASES = proptim.Rprop.cases


def planes_of(word):
    shown = proptim.Rprop.show_state({"step_word": word})
    return Steps(shown["step_size"], shown["prev"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_lose_nothing(dtype):
    """Word to planes and back, for every legal step size and last sign; of prev only the sign counts."""
    size = np.array([2.0**-50, 1e-6, 0.1, 1.0, 50.0, 2.0**37], dtype)
    word = np.concatenate([size, -size, size * dtype(2.0**90)])
    steps = planes_of(word)
    assert np.array_equal(steps.load(), word)
    assert np.array_equal(steps.size, np.tile(size, 3))
    assert np.array_equal(steps.sign, np.repeat([1, -1, 0], len(size)))
    assert np.array_equal(Steps(steps.size, steps.sign * dtype(1e-30)).load(), word)
    assert Steps(np.ones(1, dtype), np.full(1, np.nan, dtype)).load() == dtype(2.0**90)


def laid(values, layout):
    """The same numbers in C order, in Fortran's, and as every second element."""
    if layout == "dense":
        return values.copy()
    if layout == "fortran":
        return np.asfortranarray(values)
    return np.repeat(values, 2, axis=1)[:, ::2]


@pytest.mark.parametrize("layout", ["dense", "fortran", "strided"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("stages", [tuple(_stages.NEUTRAL.values()), (0.9, 2.0, 0.5, 0.1, 1.0, 1.0, 0.0)])
def test_two_planes_are_stepped_as_one_word(backend, case, dtype, layout, stages):
    """A plan over two planes steps as one over words does, whatever the layout; the planes hold what the word would."""
    rng = np.random.default_rng(case)
    h = {**proptim.Rprop.hyper, **CASES[case]}
    shape = (37, 41)
    param = rng.standard_normal(shape).astype(dtype)
    word = np.full(shape, proptim.Rprop.initial(h, "step_word"), dtype)
    mine, steps = laid(param, layout), Steps(*(laid(plane, layout) for plane in planes_of(word)))
    kind = _backend.plan_type(backend)
    plan, twin = kind(proptim.Rprop, [(mine, steps)], 1, False), kind(proptim.Rprop, [(param, word)], 1, False)
    clock = (0, np.inf)
    for k in range(6):
        grad = (rng.standard_normal(shape) * (rng.random(shape) < 0.8)).astype(dtype)
        coefs, clock = proptim.Rprop.numbers(h, clock, float([5, 4, 4.5, 3, 2, 3][k]))
        for each in (plan, twin):
            each.bind([grad.copy()])
            each.assign([0], [clock])
            each.step([(*coefs, *stages)], [clock])
        shown = planes_of(word)
        assert np.array_equal(mine, param), k
        assert np.array_equal(steps.size, shown.size)
        assert np.array_equal(steps.sign, shown.sign)


def test_planes_of_different_strides():
    """Each plane has a memory layout of its own."""
    if _backend.missing_core:
        pytest.skip(_backend.missing_core)
    rng = np.random.default_rng(0)
    grad = rng.standard_normal((2, 3))
    apart, alike = Steps(np.ones((2, 3)), np.zeros((3, 2)).T), Steps(np.ones((2, 3)), np.zeros((2, 3)))
    coefs, clock = proptim.Rprop.numbers({**proptim.Rprop.hyper, **CASES[0]}, (0, np.inf), None)
    params = []
    for steps in (apart, alike):
        params.append(np.ones((2, 3)))
        plan = _backend.plan_type("c")(proptim.Rprop, [(params[-1], steps)], 1, False)
        plan.bind([grad])
        plan.assign([0], [clock])
        plan.step([(*coefs, *_stages.NEUTRAL.values())], [clock])
    assert np.array_equal(*params)
    assert np.array_equal(apart.size, alike.size)
    assert np.array_equal(apart.sign, alike.sign)
    assert np.array_equal(apart.sign, np.sign(grad))
