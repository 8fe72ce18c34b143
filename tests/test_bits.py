"""The same bits from every backend and instruction set, at every length, start and special value."""

from __future__ import annotations

import inspect
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placed import CANARY, Placed, places

import proptim
from proptim import _backend, _stages
from proptim.cli import selftest

RULES = [
    pytest.param(name, options, id="-".join([name, *map(str, options)]))
    for name in proptim.OPTIMIZERS
    for options in selftest.OPTIONS.get(name, [{}])
]
REALS = (np.float32, np.float64)
DTYPES = (np.float32, np.float64, np.complex64, np.complex128)
LOSSES = (3.0, 2.0, 2.5)  # falls and rises, for irprop+

ON = {"decay": 0.99, "scale": -0.5, "clip": 0.7, "l2": 0.1, "zero": 1.0, "flush": 1.0, "average": 0.3}
PIPELINES = [{}, *({name: ON[name]} for name in _stages.NEUTRAL), ON]
"""No stage, every single one, all of them: coefficients by name."""


def special(dtype):
    """Gradients that a wrong kernel may mishandle; their squares are zero, subnormal, finite or infinite."""
    limits = np.finfo(dtype)
    tiny = [0.0, -0.0, limits.smallest_subnormal, -0.7 * limits.tiny, 1e-25, -0.7 * np.sqrt(limits.tiny)]
    return np.array([*tiny, limits.max / 2, -limits.max / 2], dtype)


def gradient(rng, size, dtype):
    """Normally distributed gradients, with special ones at positions that change."""
    grad = rng.standard_normal(size).astype(dtype)
    if np.dtype(dtype).kind == "c":
        grad.imag = rng.standard_normal(size)
    reals = grad.view(grad.real.dtype)
    for i, value in enumerate(special(reals.dtype)):
        reals[i::19] = value
    return grad


def assert_same(got, expected, label):
    """The same bits; NaN in the same places, with any payload."""
    got, expected = np.ascontiguousarray(got), np.ascontiguousarray(expected)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), label
    got, expected = (a.reshape(-1).view(a.real.dtype) for a in (got, expected))
    bits = f"u{got.itemsize}"
    different = (got.view(bits) != expected.view(bits)) & ~(np.isnan(got) & np.isnan(expected))
    where = np.flatnonzero(different)[:3]
    assert not where.size, f"{label} differs at {where}: {got[where]} for {expected[where]}"


class Spread:
    """One array cut into separate pieces, each at another offset from a cache line, surrounded by canary values."""

    def __init__(self, flat, starts, lengths):
        room = -(-max(lengths) // 16) * 16 + 32
        raw = np.full(room * len(lengths) * flat.itemsize + 64, CANARY, np.uint8)
        raw = raw[-raw.ctypes.data % 64 :][: room * len(lengths) * flat.itemsize]
        rows = raw.view(flat.dtype).reshape(len(lengths), room)
        # 8 canaries at least before a piece, and 8 after it
        self.pieces = [row[8 + s : 8 + s + n] for row, s, n in zip(rows, starts, lengths, strict=True)]
        inside = np.zeros(rows.shape, bool)
        for row, s, n in zip(inside, starts, lengths, strict=True):
            row[8 + s : 8 + s + n] = True
        self.rows, self.inside = rows, inside
        self.set(flat)

    def set(self, flat):
        self.rows[self.inside] = flat

    def get(self):
        return self.rows[self.inside]

    def assert_apart(self, label):
        assert (self.rows[~self.inside].view(np.uint8) == CANARY).all(), f"{label}: written outside"


def steps(name, options, stages):
    """The rows of coefficients of the first steps of an optimizer, with these stages."""
    opt = proptim.OPTIMIZERS[name]([np.zeros(1)], **options)
    clock = tuple(opt.clock_start.values())
    for loss in LOSSES:
        coefs, clock = opt.advance(opt.settled(opt.param_groups[0], 0), clock, loss)
        yield (*coefs, *(_stages.NEUTRAL | stages).values())


def check_spread(backend, name, options, stages, lengths, dtype, shift, grads, threads=1):
    """Pieces of every length stepped by `backend` against one whole array stepped by the oracle."""
    opt = proptim.OPTIMIZERS[name]([np.zeros(1, dtype)], **options)  # which state arrays, and their first values
    first = opt._stepper.parameters[0].state
    rng = np.random.default_rng(len(lengths))
    size = sum(lengths)
    averages = ["average"] if "average" in stages else []
    names = ["param", "grad", *first, *averages]
    whole = {"param": rng.standard_normal(size).astype(dtype), "grad": np.zeros(size, dtype)}
    whole |= {key: np.full(size, value[0], dtype) for key, value in first.items()}
    whole |= {key: rng.standard_normal(size).astype(dtype) for key in averages}
    spread = {
        key: Spread(array, [(shift + (2 * j + 1) * i) % 16 for i in range(len(lengths))], lengths)
        for j, (key, array) in enumerate(whole.items())
    }

    def plan(kind, arrays):
        segments = [tuple(a.get(key) for key in ("param", *opt.states, *averages)) for a in arrays]
        made = _backend.plan_type(kind)(type(opt), segments, threads, False)
        made.bind([a["grad"] for a in arrays])
        return made

    oracle = plan("numpy", [whole])
    tested = plan(backend, [{key: spread[key].pieces[i] for key in names} for i in range(len(lengths))])
    for grad, row in zip(grads, steps(name, options, stages), strict=False):
        whole["grad"][:] = grad
        spread["grad"].set(grad)
        oracle.step([row], [])
        tested.step([row], [])
        for key in names:
            label = f"{key}, {np.dtype(dtype).name}, stages {stages}"
            assert_same(spread[key].get(), whole[key], label)
            spread[key].assert_apart(label)


@pytest.mark.parametrize(("name", "options"), RULES)
def test_every_length(backend, name, options):
    """Lengths 0 to 130 at all starts within a cache line, without stages, with each and with all."""
    for case, stages in enumerate(PIPELINES):
        # NumPy and Numba see a stage as a pass of its own, whatever the length
        lengths = range(131) if backend == "c" or not stages else (0, 1, 7, 16, 33, 130)
        for dtype in REALS:
            rng = np.random.default_rng(case)
            grads = [gradient(rng, sum(lengths), dtype) for _ in LOSSES]
            check_spread(backend, name, options, stages, lengths, dtype, case, grads)


@pytest.mark.parametrize(("name", "options"), RULES)
def test_every_start(contestant, name, options):
    """The lengths around a vector at every start within a cache line."""
    lengths = [n for n in (1, 4, 15, 17, 33) for _ in range(16)]
    for dtype in REALS:
        grads = [gradient(np.random.default_rng(1), sum(lengths), dtype) for _ in LOSSES]
        check_spread(contestant, name, options, {}, lengths, dtype, 0, grads)


@pytest.mark.parametrize(("name", "options"), RULES)
def test_large(contestant, name, options):
    """Lengths around the blocks of a step and of the reduction, on one thread and on three."""
    lengths = (1023, 1025, 4095, 4097, 65535, 65537)
    for dtype, stages, threads in zip(REALS, ({}, ON), (1, 3), strict=True):
        grads = [gradient(np.random.default_rng(2), sum(lengths), dtype)]
        check_spread(contestant, name, options, stages, lengths, dtype, 5, grads, threads)


@pytest.mark.parametrize(("name", "options"), RULES)
def test_nonfinite_everywhere(contestant, name, options):
    """NaN and infinities in each lane and each place of the tail give what IEEE 754 says, in no other element."""
    width = 39  # two AVX-512 vectors of floats and a tail of seven
    rng = np.random.default_rng(3)
    for dtype in REALS:
        clean = rng.standard_normal((3, width, width)).astype(dtype)
        dirty = clean.copy()
        for plane, value in zip(dirty, (np.nan, np.inf, -np.inf), strict=True):
            np.fill_diagonal(plane, value)
        for stages in ({}, ON):
            grads = [clean.ravel(), dirty.ravel(), clean.ravel()]
            check_spread(contestant, name, options, stages, [width] * (3 * width), dtype, 3, grads)


def train(name, options, params, grads, **where):
    """Step an optimizer through all gradients; parameters, gradients and state as it shows them."""
    opt = proptim.OPTIMIZERS[name](params, **options, **where)
    for step, loss in zip(grads, LOSSES, strict=False):
        opt.step(step, loss=loss)
    found = {f"params[{i}]": p for i, p in enumerate(params)}
    found |= {f"grads[{i}]": g for i, g in enumerate(grads[-1])}
    return found | {f"{key} of {i}": a for i, s in opt.state.items() for key, a in s.items() if np.ndim(a)}


@pytest.mark.parametrize("stages", selftest.STAGES, ids=["plain", "staged"])
@pytest.mark.parametrize(("name", "options"), RULES)
def test_optimizer(contestant, name, options, stages):
    """Whole optimizers over float and complex parameters of all kinds of shapes, options mixed in."""
    shapes = [(5,), (0,), (), (33,), (3, 7, 11), (1025,)]
    found = []
    for dtype in DTYPES:
        for kind in ("numpy", contestant):
            rng = np.random.default_rng(4)
            params = [gradient(rng, int(np.prod(s)), dtype).clip(-9, 9).reshape(s) for s in shapes]
            grads = [[gradient(rng, p.size, dtype).reshape(p.shape) for p in params] for _ in LOSSES]
            found.append(train(name, options | stages, params, grads, backend=kind))
        expected, got = found[-2:]
        assert got.keys() == expected.keys()
        for label, array in got.items():
            assert_same(array, expected[label], f"{label}, {np.dtype(dtype).name}")


OPTION_VALUES = {
    "weight_decay": st.sampled_from([0.0, 0.1]),
    "decoupled_weight_decay": st.booleans(),
    "maximize": st.booleans(),
    "clip_value": st.sampled_from([None, 0.0, 0.7]),
    "clip_norm": st.sampled_from([None, 0.5]),
    "grad_scale": st.sampled_from([1.0, 2.0**-7, 3.0]),
    "zero_grads": st.booleans(),
    "flush_denormals": st.booleans(),
}


HYPER_VALUES = {
    "lr": st.floats(0, 2),
    "eps": st.floats(0, 0.125, width=32),
    "momentum": st.floats(0.1, 1),
    "alpha": st.floats(0, 0.99),
    "rho": st.floats(0, 0.99),
    "betas": st.tuples(st.floats(0, 0.99), st.floats(0, 0.9999)),
    "etas": st.tuples(st.floats(0.01, 0.99), st.floats(1.01, 3)),
    "step_sizes": st.tuples(st.floats(2.0**-50, 0.1), st.floats(0.1, 2.0**37)),
}


@st.composite
def optimizers(draw):
    """A rule and its options, with some of its numbers drawn too."""
    name, options = draw(st.sampled_from([p.values for p in RULES]))
    known = inspect.signature(proptim.OPTIMIZERS[name]).parameters
    numbers = {key: values for key, values in HYPER_VALUES.items() if key in known}
    return name, options | draw(st.fixed_dictionaries({}, optional=numbers | OPTION_VALUES))


@pytest.mark.once
@pytest.mark.skipif(not selftest.contestants(), reason="only the numpy backend runs here")
@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(
    rule=optimizers(),
    where=st.sampled_from(list(selftest.contestants().values())) if selftest.contestants() else st.nothing(),
    dtype=st.sampled_from(DTYPES),
    arrays=st.lists(st.tuples(st.integers(0, 4100), places, places), min_size=1, max_size=4),
    threads=st.sampled_from([1, 2, 3, 7]),
)
def test_anything(rule, where, dtype, arrays, threads):
    """Random rules, options, dtypes, sizes, byte offsets, strides, threads and instruction sets against the NumPy text.

    The oracle steps contiguous copies.
    """
    check_anywhere(*rule, where, dtype, arrays, threads)


def check_anywhere(name, options, where, dtype, arrays, threads):
    """Compare arrays of these sizes and places, stepped by a backend and instruction set, with the oracle's."""
    backend, isa = where
    results = []
    for placed in (False, True):
        rng = np.random.default_rng([size for size, _, _ in arrays])
        params = [gradient(rng, size, dtype).clip(-9, 9) for size, _, _ in arrays]
        grads = [[gradient(rng, size, dtype) for size, _, _ in arrays] for _ in LOSSES]
        if not placed:
            results.append(train(name, options, params, grads, backend="numpy"))
            continue
        laid_params = [Placed(p, *place) for p, (_, place, _) in zip(params, arrays, strict=True)]
        laid_grads = [[Placed(g, *place) for g, (_, _, place) in zip(step, arrays, strict=True)] for step in grads]
        views = [p.array for p in laid_params], [[g.array for g in step] for step in laid_grads]
        with selftest.isa(isa) if isa else nullcontext():
            results.append(train(name, options, *views, backend=backend, threads=threads))
        expected, got = results
        assert got.keys() == expected.keys()
        for label, array in got.items():
            assert_same(array, expected[label], label)
        for laid in (laid_params, *laid_grads):
            for i, each in enumerate(laid):
                each.assert_apart(f"array {i}")
