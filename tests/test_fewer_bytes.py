"""State in fewer bytes, in every format: what a step is, within which bounds an average is stuck, and drawn cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placed import places
from test_bits import LOSSES, RULES, check_anywhere, optimizers

import proptim
from proptim._formats import FLOAT64, rounded, widened
from proptim._random import NARROW
from proptim._storage import DTYPES, SMALLEST_IN_BLOCKS
from proptim.cli import selftest

pytestmark = pytest.mark.once  # other tests compare every backend with NumPy, in each of these formats

SHAPE = (67, 83)
"""Of more elements than SMALLEST_IN_BLOCKS, no whole number of blocks."""
FORMS = {
    "bfloat16": {"state_dtype": "bfloat16"},
    "float16": {"state_dtype": "float16"},
    "int8": {},
    "bfloat16 at random": {"state_dtype": "bfloat16", "rounding": "stochastic", "seed": 3},
    "float16 at random": {"state_dtype": "float16", "rounding": "stochastic", "seed": 3},
}
"""Options beside those of a rule; in one byte they depend on the rule."""
CASES = [
    pytest.param(*rule.values, form, id=f"{rule.id}-{form}")
    for form in FORMS
    for rule in RULES
    if not (rule.values[0] == "rprop" and form.startswith("float16"))
]
BETA2 = float(np.float32(0.999))


def kept(name, options, form):
    """All options of a rule with state in a form."""
    return selftest.in_one_byte(name, options) if form == "int8" else {**options, **FORMS[form]}


def unit(numbers, dtype):
    """The distance of neighbours in a format of 16 bits, where these numbers are."""
    fraction, bias = NARROW[DTYPES[dtype]]
    exponent = np.floor(np.log2(np.maximum(np.abs(numbers), 2.0 ** (1 - bias))))
    return 2.0 ** (exponent - fraction)


# A step ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options", "form"), CASES)
def test_a_step_is_that_of_float32_and_one_rounding(name, options, form):
    """From the state as it is shown, the weights get the bits of the float32 step, and each number is rounded once."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal(SHAPE).astype(np.float32)
    cls, compact = proptim.OPTIMIZERS[name], kept(name, options, form)
    opt = cls([w], **compact)
    plain = {key: value for key, value in compact.items() if key not in ("state_dtype", "rounding", "seed")}
    plain |= {"step_sizes": opt.param_groups[0]["step_sizes"]} if name == "rprop" else {}
    rounded_here = 0
    for loss in LOSSES:
        twin, grad = w.copy(), rng.standard_normal(SHAPE).astype(np.float32)
        wide = cls([twin], **plain)
        wide.load_state_dict(opt.state_dict(), cast=True)
        for each in (wide, opt):
            each.step([grad], loss=loss)
        assert np.array_equal(w, twin)
        if "rounding" not in compact:
            again = cls([twin], **compact)
            again.load_state_dict(wide.state_dict(), cast=True)
            found, expected = (each.state_dict()["state"][0] for each in (opt, again))
            assert found.keys() == expected.keys()
            for key, array in found.items():
                assert np.asarray(array).tobytes() == np.asarray(expected[key]).tobytes(), key
            continue
        dtype = DTYPES[compact["state_dtype"]]
        for key, array in opt.state[0].items():
            if not isinstance(array, np.ndarray):
                continue
            found, exact = (np.asarray(a).astype(np.float64) for a in (array, wide.state[0][key]))
            assert (np.abs(found - exact) < unit(exact, compact["state_dtype"])).all(), key
            there = widened(rounded(exact, dtype), FLOAT64) == exact
            assert np.array_equal(found[there], exact[there]), key
            rounded_here += np.count_nonzero(found != exact)
    assert rounded_here > 0 or "rounding" not in compact or not opt.state_dict()["state"][0].keys() - {"step"}


# Averages of squares --------------------------------------------------------------------------------------------------


def average(dtype, values, ratios, **options):
    """Averages of squares at beta2 = 0.999 around a step with gradients whose squares are (1 + ratio) of them.

    Of those in one byte their codes, which are numbers of levels.
    """
    name = "exp_avg_sq_code" if dtype == "int8" else "exp_avg_sq"
    opt = proptim.Adam([np.zeros(values.shape, np.float32)], lr=0.0, state_dtype={"exp_avg_sq": dtype}, **options)
    first = proptim.Adam([np.zeros(values.shape, np.float32)]).state_dict()
    first["state"][0]["exp_avg_sq"] = values.astype(np.float32)
    opt.load_state_dict(first, cast=True)
    before = opt.state_dict()["state"][0][name].astype(np.float64)
    opt.step([np.sqrt(values * (1 + ratios)).astype(np.float32)])
    return before, opt.state_dict()["state"][0][name].astype(np.float64)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_where_an_average_of_squares_is_stuck(dtype):
    """The bounds of docs/fewer-bytes.md: below the lower one no average changes, above twice that every one does."""
    fraction, _ = NARROW[DTYPES[dtype]]
    rng = np.random.default_rng(1)
    values = widened(rounded(2.0 ** rng.uniform(-9, 4, 4096), DTYPES[dtype]), FLOAT64)
    bound = 2.0 ** (-2 - fraction) / (1 - BETA2)
    for ratio in (0.99 * bound, max(-1.0, -0.99 * bound)):
        before, after = average(dtype, values, ratio)
        assert np.array_equal(before, values)
        assert np.array_equal(after, values)
    for ratio in (2.02 * bound, *([-2.02 * bound] if 2.02 * bound < 1 else [])):
        before, after = average(dtype, values, ratio)
        assert (np.sign(after - before) == np.sign(ratio)).all()


def test_where_an_average_of_squares_in_one_byte_is_stuck():
    """The bound of docs/fewer-bytes.md for every level, beside a number that keeps the scale; it never sinks alone."""
    levels = np.tile([254, *range(1, 254), 1, 1], 16)
    values = (levels / 254) ** 2
    bound = (levels + 0.5) / levels**2 / (1 - BETA2)
    for ratio, step in ((0.99 * bound, 0), (1.01 * bound, 1), (-1.0, 0)):
        before, after = average("int8", values, np.where(levels == 254, 0, ratio))
        assert np.array_equal(before, levels)
        assert np.array_equal(after, levels + step * (levels < 254))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_on_a_quadratic_an_average_is_stuck_within_its_bound(dtype):
    """Small gradients of many sizes, walked by Adam itself: it moves above the bound, and stays below."""
    fraction, bias = NARROW[DTYPES[dtype]]
    rng = np.random.default_rng(2)
    curvature = 2.0 ** rng.uniform(-3, 0, 4096)
    w = rng.uniform(0.5, 1, 4096).astype(np.float32)
    opt = proptim.Adam([w], lr=2e-3, state_dtype={"exp_avg_sq": dtype})
    low, high = (2.0 ** (k - fraction) / (1 - BETA2) for k in (-2, -1))
    stayed = 0
    for _ in range(400):
        before = opt.state[0]["exp_avg_sq"].astype(np.float64)
        grad = (curvature * w).astype(np.float32)
        opt.step([grad])
        changed = opt.state[0]["exp_avg_sq"].astype(np.float64) != before
        normal = before >= 2.0 ** (1 - bias)  # below, the distance of neighbours does not shrink with them
        ratio = np.abs(grad.astype(np.float64) ** 2 / np.where(normal, before, 1) - 1)
        assert changed[normal & (ratio > 1.01 * high)].all()
        assert not changed[normal & (ratio < 0.99 * low)].any()
        stayed += np.count_nonzero(normal & ~changed)
    assert stayed > 4096


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rule", ["rmsprop", "adam"])
def test_on_a_quadratic_rounding_at_random_has_no_bias(rule, dtype):
    """Small gradients that a run in float32 takes: the mean over 4,096 elements is its average of squares.

    The rule is linear in the average, so the expected value is exact. An error of half a unit or less in each step,
    which later steps shrink, gives 5 standard deviations.
    """
    n, steps = 4096, 300
    key = "exp_avg_sq" if rule == "adam" else "square_avg"
    given = {"betas": (0.9, 0.999)} if rule == "adam" else {"alpha": 0.999}
    w = np.ones(1, np.float32)
    wide = proptim.OPTIMIZERS[rule]([w], lr=1e-3, **given)
    opt = proptim.OPTIMIZERS[rule](
        [np.ones(n, np.float32)], lr=1e-3, state_dtype={key: dtype}, rounding="stochastic", seed=5, **given
    )
    most = 0.0
    for _ in range(steps):
        grad = 0.5 * w
        wide.step([grad])
        opt.step([np.full(n, grad[0])])
        most = max(most, float(wide.state[0][key][0]))
    miss = opt.state[0][key].astype(np.float64).mean() - float(wide.state[0][key][0])
    assert abs(miss) < 5 * unit(most, dtype) * math.sqrt(0.25 / (1 - BETA2**2) / n) + 1e-5 * most


# Any case -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not selftest.contestants(), reason="only the numpy backend runs here")
@settings(max_examples=80, derandomize=True, deadline=None, database=None)
@given(
    rule=optimizers(),
    form=st.sampled_from([*FORMS]),
    where=st.sampled_from(list(selftest.contestants().values())) if selftest.contestants() else st.nothing(),
    dtype=st.sampled_from([np.float32, np.float32, np.float64, np.complex64]),
    arrays=st.lists(
        st.tuples(st.one_of(st.integers(0, 300), st.integers(SMALLEST_IN_BLOCKS - 1, 4700)), places, places),
        min_size=1,
        max_size=3,
    ),
    threads=st.sampled_from([1, 2, 3, 7]),
)
def test_anything_in_fewer_bytes(rule, form, where, dtype, arrays, threads):
    """As `test_bits.test_anything`, with state in every format: random options, sizes, places, threads and kernels."""
    name, options = rule
    if form == "int8":
        dtype = np.float32
        options = {key: value for key, value in options.items() if key not in ("etas", "step_sizes", "centered")}
    elif name == "rprop" and form.startswith("float16"):
        form = f"b{form}"  # which can hold step sizes
    check_anywhere(name, kept(name, options, form), where, dtype, arrays, threads)
