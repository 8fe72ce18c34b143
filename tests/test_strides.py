"""Any memory layout: the values of contiguous copies, and not one byte between the elements changed."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import proptim
from proptim import functional
from proptim.cli import selftest

SHAPE = (4, 5, 6)
CANARY = 0xA5

# Shape of the memory, and the view of SHAPE in it.
LAYOUTS = {
    "dense": ((4, 5, 6), lambda m: m),
    "fortran": ((6, 5, 4), lambda m: m.T),
    "axes permuted": ((5, 6, 4), lambda m: m.transpose(2, 0, 1)),
    "inner axes swapped": ((4, 6, 5), lambda m: m.transpose(0, 2, 1)),
    "every other": ((4, 9, 12), lambda m: m[:, ::2, 1::2]),
    "rows of a wider array": ((4, 5, 9), lambda m: m[..., 2:8]),
    "reversed": ((4, 5, 6), lambda m: m[::-1, ::-1, ::-1]),
    "partly reversed": ((9, 5, 18), lambda m: m[::-2, :, ::-3][:4]),
    "reversed and transposed": ((12, 5, 8), lambda m: m[::-2, :, 1::2].T),
}
DTYPES = (np.float32, np.float64, np.complex64, np.complex128)
RULES = [(name, options) for name in proptim.OPTIMIZERS for options in selftest.OPTIONS.get(name, [{}])]
LOSSES = (3.0, 2.0, 2.5)
IDS = {"ids": lambda value: value if isinstance(value, str) else "-".join(value)}


class Laid:
    """Values in memory that is filled with canary values."""

    def __init__(self, values, layout):
        shape, self.view_of = LAYOUTS[layout]
        self.memory = np.full((*shape, values.itemsize), CANARY, np.uint8).view(values.dtype)[..., 0]
        self.array = self.view_of(self.memory)
        self.array[...] = values

    def assert_apart(self):
        after = np.array(self.memory, order="C")  # the same, but with the elements of the view canaries again
        self.view_of(after)[...] = np.full(after.itemsize, CANARY, np.uint8).view(after.dtype)[0]
        assert (after.view(np.uint8) == CANARY).all()


def values(rng, dtype, shape=SHAPE):
    """Random values of a dtype."""
    array = rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else 0)
    return np.asarray(array, dtype)


def same(a, b):
    """The same shape and bits."""
    return a.shape == b.shape and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


@pytest.mark.parametrize(("name", "options"), RULES, **IDS)
def test_every_pair_of_layouts(name, options):
    """Parameters and gradients in all pairs of layouts step as contiguous copies do, norm clipping included."""
    pairs = list(product(LAYOUTS, LAYOUTS))
    # elements of 4 bytes and of twice 8
    for stages, dtype in zip(selftest.STAGES, (np.float32, np.complex128), strict=True):
        rng = np.random.default_rng(0)
        params = [values(rng, dtype) for _ in pairs]
        grads = [[values(rng, dtype) for _ in pairs] for _ in LOSSES[1:]]
        laid = [Laid(p, layout) for p, (layout, _) in zip(params, pairs, strict=True)]
        plain = proptim.OPTIMIZERS[name](params, **options | stages)
        strided = proptim.OPTIMIZERS[name]([p.array for p in laid], **options | stages)
        for step, loss in zip(grads, LOSSES[1:], strict=True):
            laid_grads = [Laid(g, layout) for g, (_, layout) in zip(step, pairs, strict=True)]
            plain.step(step, loss=loss)
            strided.step([g.array for g in laid_grads], loss=loss)
            assert all(same(g.array, h) for g, h in zip(laid_grads, step, strict=True))  # zeroed or untouched
        for each in (*laid, *laid_grads):
            each.assert_apart()
        assert plain.grad_norm == strided.grad_norm
        for pair, p, q in zip(pairs, laid, params, strict=True):
            assert same(p.array, q), (pair, dtype)
        for i, expected in plain.state.items():
            found = strided.state[i]
            assert all(same(np.asarray(found[key]), np.asarray(v)) for key, v in expected.items()), (pairs[i], dtype)


@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_every_backend(contestant, name):
    """Numba, and C with every instruction set, step all layouts as the NumPy text does."""
    results = []
    for kind in ("numpy", contestant):
        rng = np.random.default_rng(1)
        laid = [Laid(values(rng, np.float32), layout) for layout in LAYOUTS]
        opt = proptim.OPTIMIZERS[name]([p.array for p in laid], backend=kind, **selftest.STAGES[-1])
        for _ in LOSSES:
            grads = [Laid(values(rng, np.float32), layout) for layout in reversed(LAYOUTS)]
            opt.step([g.array for g in grads], loss=1.0)
        results.append([each.memory.tobytes() for each in (*laid, *grads)])
    assert results[0] == results[1]


@pytest.mark.parametrize("packed", [False, True], ids=["aligned", "packed"])
def test_field_of_records(backend, packed):
    """One field of an array of records, aligned or not, steps as its copy does, and the other fields stay."""
    for dtype in (np.float32, np.float64):
        kind = np.dtype([("tag", np.uint8), ("weight", dtype), ("rest", np.uint8)], align=not packed)
        params, grads = np.zeros(100, kind), np.zeros(100, kind)
        rng = np.random.default_rng(6)
        params["weight"], grads["weight"] = rng.standard_normal((2, 100))
        params["tag"] = params["rest"] = CANARY
        copy = params["weight"].copy()
        for array, grad in ((params["weight"], grads["weight"]), (copy, grads["weight"].copy())):
            opt = proptim.Adam([array], clip_norm=0.5, weight_decay=0.1)
            for _ in range(3):
                opt.step([grad])
        assert same(params["weight"], copy)
        assert (params["tag"] == CANARY).all()
        assert (params["rest"] == CANARY).all()


@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_large(name):
    """Strided arrays of many blocks and parts, on several threads."""
    rng = np.random.default_rng(2)
    for options in selftest.STAGES:
        memory = rng.standard_normal((70, 2, 130)).astype(np.float32)
        strided, dense = memory[::-1, 1, ::2].T, memory[::-1, 1, ::2].T.copy()
        grad = rng.standard_normal((70, 65)).astype(np.float32)
        untouched = memory.copy()
        opt = proptim.OPTIMIZERS[name]([strided], threads=3, **options)
        for _ in range(2):
            opt.step([grad.T.copy(order="F")], loss=1.0)
        opt = proptim.OPTIMIZERS[name]([dense], threads=1, **options)
        for _ in range(2):
            opt.step([grad.T.copy()], loss=1.0)
        assert same(strided, dense)
        memory[::-1, 1, ::2].T[...] = 0
        untouched[::-1, 1, ::2].T[...] = 0
        assert same(memory, untouched)


@pytest.mark.parametrize(("name", "options"), RULES, **IDS)
def test_degenerate_shapes(name, options):
    """0-d, empty and one-element arrays, alone and beside others, step as the same values in a flat array do."""
    shapes = [(), (0,), (3, 0, 2), (1,), (1, 1, 1), (1, 3), (3, 1)]
    sizes = [int(np.prod(s)) for s in shapes]
    rng = np.random.default_rng(3)
    for dtype in DTYPES:
        flat = values(rng, dtype, sum(sizes))
        params = [a.reshape(s).copy() for a, s in zip(np.split(flat, np.cumsum(sizes)[:-1]), shapes, strict=True)]
        many, one = (proptim.OPTIMIZERS[name](p, **options) for p in (params, [flat]))
        for loss in LOSSES:
            grad = values(rng, dtype, sum(sizes))
            grads = [g.reshape(s).copy() for g, s in zip(np.split(grad, np.cumsum(sizes)[:-1]), shapes, strict=True)]
            many.step(grads, loss=loss)
            one.step([grad], loss=loss)
        assert same(np.concatenate([p.ravel() for p in params]), flat)
        for i, shape in enumerate(shapes):
            assert all(a.shape == shape for a in many.state[i].values() if isinstance(a, np.ndarray))


@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_broadcast_gradient(name):
    """A gradient of one number or one row, repeated with stride 0, steps as its copy does, norm and checks included."""
    options = {"clip_norm": 0.5, "nonfinite": "raise", "weight_decay": 0.1}
    for dtype in DTYPES:
        rng = np.random.default_rng(4)
        for shape in ((), (1,), (5, 1), (1, 6), (4, 1, 1)):
            grad = np.broadcast_to(values(rng, dtype, shape), SHAPE)
            param = values(rng, dtype)
            copy, laid = param.copy(), Laid(param, "partly reversed")
            for array, step in ((copy, grad.copy()), (param, grad), (laid.array, grad)):
                opt = proptim.OPTIMIZERS[name]([array], **options)
                for _ in range(3):
                    opt.step([step], loss=1.0)
            assert same(param, copy)
            assert same(laid.array, copy)


def test_broadcast_cannot_be_zeroed():
    """Zeroing elements that share memory is refused, and nothing has changed."""
    param, number = np.ones((2, 3)), np.ones(1)
    grad = np.lib.stride_tricks.as_strided(number, (2, 3), (0, 0))  # writable, unlike broadcast_to
    opt = proptim.SGD([param], zero_grads=True)
    with pytest.raises(ValueError, match="share memory"):
        opt.step([grad])
    assert (param == 1).all()
    assert number[0] == 1


def test_nonfinite_in_strided_gradient():
    """A NaN is found in every layout and named by its index; one between the elements is not seen."""
    bad = np.zeros(SHAPE, np.float32)
    bad[2, 1, 3] = np.nan
    for layout, (shape, view_of) in LAYOUTS.items():
        opt = proptim.SGD([np.ones(SHAPE, np.float32)], nonfinite="raise", zero_grads=True)
        with pytest.raises(FloatingPointError, match=r"index \(2, 1, 3\)"):
            opt.step([Laid(bad, layout).array])
        memory = np.full(shape, np.nan, np.float32)
        view_of(memory)[...] = 1
        opt.step([view_of(memory)])
        assert opt.steps == 1
        assert not view_of(memory).any()


@pytest.mark.parametrize("averaging", [{}, {"ema": 0.5}], ids=["alone", "average"])
@pytest.mark.parametrize(("name", "options"), RULES, **IDS)
def test_functional_with_strided_state(name, options, averaging):
    """One-shot calls take every array in a layout of its own."""
    step, options = getattr(functional, name), {**options, **averaging}
    order = list(LAYOUTS)
    for dtype in DTYPES:
        rng = np.random.default_rng(5)
        dense = {"param": values(rng, dtype), "grad": values(rng, dtype)}
        dense |= step.init(dense["param"], **options)
        for turn in range(len(order)):
            laid = {key: Laid(a, order[(turn + 2 * j) % len(order)]) for j, (key, a) in enumerate(dense.items())}
            step(**{key: each.array for key, each in laid.items()}, step=1, loss=1.0, **options)
            step(**dense, step=1, loss=1.0, **options)
            for key, each in laid.items():
                assert same(each.array, dense[key]), (key, turn, dtype)
                each.assert_apart()
