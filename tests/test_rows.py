"""Gradients of rows: the bits of a dense step on the rows that have one, and nothing of the others changes."""

from __future__ import annotations

import copy
import math
import pickle
import re

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from placed import CANARY

import proptim
from proptim.cli import selftest
from proptim.cli.selftest import OPTIONS
from proptim.cli.selftest import STAGES as NONE_AND_ALL

CASES = [
    pytest.param(name, options, id=f"{name}-{i}") for name, all_ in OPTIONS.items() for i, options in enumerate(all_)
]
DECOUPLED = {"weight_decay": 0.1, "decoupled_weight_decay": True, "nonfinite": "skip"}
STAGES = (*NONE_AND_ALL, DECOUPLED)
ALL = NONE_AND_ALL[1]
SHARED = "share memory; expected separate memory: pass a copy of one"
WIDTHS = ((), (1,), (3,), (16,), (17,), (2, 3), (1030,))
DTYPES = (np.float32, np.float64, np.complex64, np.float16, ml_dtypes.bfloat16)
LAYOUTS = {
    "dense": lambda m: m,
    "every other row": lambda m: m[::2],
    "reversed": lambda m: m[::-1, ::-1],
    "columns of a wider table": lambda m: m[:, 1:-1],
    "transposed": lambda m: m.T,
}


def drawn(rng, dtype, shape):
    """Random numbers of a dtype, with zeros of both signs and subnormal ones among them."""
    values = rng.standard_normal(shape)
    values.reshape(-1)[::7] = -0.0
    values.reshape(-1)[3::11] = 1e-41
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.standard_normal(shape)
    return values.astype(dtype)


def arithmetic(dtype):
    """What is computed in."""
    return {"float64": np.float64, "complex64": np.complex64}.get(np.dtype(dtype).name, np.float32)


def summed(indices, values, dtype):
    """Row -> the sum of its values, one after the other, from the first on."""
    sums = {}
    with np.errstate(all="ignore"):
        for index, value in zip(indices.tolist(), values.astype(arithmetic(dtype)), strict=True):
            sums[index] = sums[index] + value if index in sums else value
    return dict(sorted(sums.items()))


def arrays_of(opt, params):
    """Parameters and all that is kept of them, copies."""
    found = {("param", i): np.array(p) for i, p in enumerate(params)}
    for i, state in opt.state_dict()["state"].items():
        found |= {(name, i): value for name, value in state.items()}
    return found


def assert_same(a, b, where=""):
    assert a.keys() == b.keys()
    for key, array in a.items():
        other = b[key]
        assert np.asarray(array).tobytes() == np.asarray(other).tobytes(), (where, key, array, other)


def check_against_dense(opt, params, options, indices, values, other):
    """A step with these rows of params[0], and this gradient of params[1], is the dense step on the touched rows."""
    table = params[0]
    sums = summed(indices, values, table.dtype)
    before = arrays_of(opt, params)
    dense = np.zeros(table.shape, arithmetic(table.dtype))
    for row, total in sums.items():
        dense[row] = total
    twins = [np.array(p) for p in params]
    twin = type(opt)(twins, **{**options, "backend": "numpy"})
    twin.load_state_dict(opt.state_dict())
    for mine, theirs in zip(twins, params, strict=True):
        mine[...] = theirs
    rows = np.array([*sums.values()], arithmetic(table.dtype)).reshape(-1, *table.shape[1:])
    grad = proptim.Rows(indices, values)
    losses = {"loss": 1.0} if options.get("variant") == "irprop+" else {}
    measured = {} if "clip_norm" not in options else {"grad_norm": proptim.global_norm([rows, other])}
    twin.step([dense, other.copy()], **losses, **measured)
    opt.step([grad, other.copy()], **losses)
    after, expected = arrays_of(opt, params), arrays_of(twin, twins)
    touched = [*sums]
    for (name, i), array in before.items():
        if i == 0 and np.ndim(array):  # the others are those of before, to the byte
            rest = np.array(array)
            rest[touched] = expected[name, i][touched]
            expected[name, i] = rest
    assert_same(after, expected, (type(opt).__name__, options, table.dtype, table.shape))
    if measured:
        assert opt.grad_norm == twin.grad_norm
    if options.get("zero_grads"):
        assert not grad.values.astype(np.complex64).any()


def steps(name, options, dtype, width, layout="dense", length=9, seed=0, **where):
    """Steps with many, one, no and all rows, dense ones in between."""
    rng = np.random.default_rng(seed)
    memory = drawn(rng, dtype, (2 * length, *width))
    table = memory[:length] if width == () or len(width) > 1 else LAYOUTS[layout](memory)
    other = drawn(rng, np.float32, (5,))
    opt = proptim.OPTIMIZERS[name]([table, other], **options, **where)
    grad_dtype = np.float32 if np.dtype(dtype).itemsize == 2 and seed % 2 else dtype
    losses = {"loss": 2.0} if options.get("variant") == "irprop+" else {}
    for count in (13, 1, None, 0, 4):
        if count is None:
            opt.step([drawn(rng, grad_dtype, table.shape), drawn(rng, np.float32, (5,))], **losses)
            continue
        indices = rng.integers(0, len(table), count)
        values = drawn(rng, grad_dtype, (count, *table.shape[1:]))
        check_against_dense(opt, [table, other], {**options, **where}, indices, values, drawn(rng, np.float32, (5,)))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_rule(backend, name, options):
    for seed, stages in enumerate(STAGES):
        steps(name, {**options, **stages}, np.float32, (17,), seed=seed)
        steps(name, {**options, **stages}, np.float64, (3,), seed=seed)


@pytest.mark.parametrize("form", ["step", "step_param"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_state_that_begins_late(backend, name, options, form):
    """Hyperparameters that need another state array, set between two steps: the next step looks at the rows too."""
    rng = np.random.default_rng(0)
    table, touched = rng.standard_normal((5, 3)).astype(np.float32), np.array([3, 1])
    alone, start = table[touched].copy(), table.copy()
    cls = proptim.OPTIMIZERS[name]
    fixed = {key: value for key, value in options.items() if key in (*cls.identity, *cls.fixed)}
    opt, dense = (cls([each], **{"lr": 0.01} | fixed) for each in (table, alone))
    late = {key: value for key, value in options.items() if key not in (*fixed, "variant")}  # one needs the loss
    for t in range(3):
        grad = rng.standard_normal((2, 3)).astype(np.float32)
        for each, its in ((opt, proptim.Rows(touched, grad)), (dense, grad)):
            if t == 1:
                each.param_groups[0].update(late)
            each.step([its]) if form == "step" else each.step_param(0, its)
        np.testing.assert_array_equal(table[touched], alone)
    np.testing.assert_array_equal(np.delete(table, touched, 0), np.delete(start, touched, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_every_dtype(contestant, name, dtype):
    for width in ((), (17,)):
        steps(name, {}, dtype, width)
    steps(name, ALL, dtype, (16,), seed=1)


@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize("options", STAGES, ids=["plain", "all", "decoupled"])
def test_every_width(contestant, options, width):
    steps("rmsprop", options, np.float32, width)
    steps("sgd", {"lr": 0.1, "momentum": 0.9, **options}, np.float32, width, seed=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(contestant, layout):
    for dtype in DTYPES:
        steps("adam", ALL, dtype, (6,), layout)
        steps("adam", {}, dtype, (20,), layout)


@pytest.mark.once
@pytest.mark.skipif(not selftest.contestants(), reason="only the numpy backend runs here")
@settings(max_examples=150, deadline=None)
@given(
    case=st.sampled_from([(name, options) for name, all_ in OPTIONS.items() for options in all_]),
    stages=st.sampled_from(STAGES),
    dtype=st.sampled_from(DTYPES),
    length=st.integers(1, 12),
    width=st.sampled_from(WIDTHS),
    threads=st.sampled_from([1, 2, 3]),
    data=st.data(),
)
def test_drawn_indices(case, stages, dtype, length, width, threads, data):
    name, options = case
    options = {**options, **stages, "threads": threads}
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    table, other = drawn(rng, dtype, (length, *width)), drawn(rng, np.float32, (5,))
    opt = proptim.OPTIMIZERS[name]([table, other], **options)
    for _ in range(2):
        indices = np.array(data.draw(st.lists(st.integers(0, length - 1), max_size=20)), np.int64)
        values = drawn(rng, dtype, (len(indices), *width))
        check_against_dense(opt, [table, other], options, indices, values, drawn(rng, np.float32, (5,)))


@pytest.mark.once
def test_same_bits_for_threads_and_orders():
    rng = np.random.default_rng(5)
    start, indices = rng.standard_normal((300, 40)).astype(np.float32), rng.integers(0, 300, 2000)
    values = rng.standard_normal((2000, 40)).astype(np.float32)
    stable = np.argsort(indices, kind="stable")
    groups = [stable[indices[stable] == row] for row in rng.permutation(300)]
    shuffled = np.concatenate(groups)  # rows in another order, those of each as they stood
    found = []
    for threads, order in ((1, slice(None)), (2, slice(None)), (7, shuffled), (3, stable)):
        table = start.copy()
        opt = proptim.Adam([table], lr=0.1, clip_norm=3.0, threads=threads)
        for _ in range(3):
            opt.step([proptim.Rows(indices[order], values[order])])
        found.append((table.tobytes(), opt.state[0]["exp_avg_sq"].tobytes(), opt.grad_norm))
    assert len({*found}) == 1


def test_nothing_beside_the_rows(backend):
    for width in ((), (3,), (40,)):
        shape = (8, *width)
        memory = np.full((10, *width, 4), CANARY, np.uint8).view(np.float32)[..., 0]
        table = memory[1:-1]
        table[...] = 1
        values = np.ones((3, *width), np.float32)
        values.flags.writeable = False
        opt = proptim.RMSprop([table], lr=0.1)
        opt.step([proptim.Rows([5, 2, 5], values)])
        assert (memory[[0, -1]].copy().view(np.uint8) == CANARY).all()
        changed = (table != 1).reshape(8, -1)
        assert changed[[2, 5]].all()
        assert not changed[[0, 1, 3, 4, 6, 7]].any()
        assert not opt.state[0]["square_avg"].reshape(8, -1)[[0, 1, 3, 4, 6, 7]].any()
        assert table.shape == shape


def test_bound(backend):
    table, indices, values = np.ones((4, 2)), np.array([3, 0]), np.ones((2, 2))
    opt = proptim.SGD([table], lr=1.0, grads=[proptim.Rows(indices, values)])
    opt.step()
    np.testing.assert_array_equal(table[:, 0], [0, 1, 1, 0])
    indices[:] = [1, 1]  # which are looked at anew
    values[:] = [[2, 3], [4, 5]]
    opt.step()
    np.testing.assert_array_equal(table, [[0, 0], [-5, -7], [1, 1], [0, 0]])
    indices[1] = 4
    before = table.copy()
    with pytest.raises(
        ValueError, match=exactly("indices of grads[0] has 4 at place 1; expected 0 to 3, a row of params[0]")
    ):
        opt.step()
    np.testing.assert_array_equal(table, before)
    assert opt.steps == 2
    indices[1] = 2
    opt.step()
    opt.zero_grad()
    assert not values.any()
    assert opt.steps == 3
    np.testing.assert_array_equal(table[2], [-3, -4])


@pytest.mark.parametrize("name", ["indices", "values", "others"])
def test_attributes_stay(backend, name):
    table, values = np.ones((4, 2)), np.ones((1, 2))
    grad = proptim.Rows(np.array([1]), values)
    opt = proptim.SGD([table], lr=1.0, grads=[grad], zero_grads=True)
    opt.step()
    rest = (
        "expected changes only of the numbers in its arrays: write into those, or pass another proptim.Rows to the step"
    )
    for new in (np.array([3]), np.array([1.5]), table[1:2]):
        with pytest.raises(AttributeError, match=exactly(f"{name} of Rows cannot be set; {rest}")):
            setattr(grad, name, new)
    with pytest.raises(AttributeError, match=exactly(f"{name} of Rows cannot be deleted; {rest}")):
        delattr(grad, name)
    for step in (opt.step, lambda: opt.step([grad]), lambda: opt.step_param(0, grad)):
        grad.values[...] = 2  # which is seen, as is what is written to the array that was passed
        grad.indices[0] += 1
        step()
        assert not values.any()
        grad.indices[0] %= 3
    np.testing.assert_array_equal(table[:, 0], [1, -2, -1, -1])


def reshaped(array):
    array.shape = (*array.shape[::-1], 1)


def of_other_dtype(array):
    array.dtype = {8: np.int32, 4: np.int16}[array.itemsize]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy is about to refuse these changes
@pytest.mark.parametrize("change", [reshaped, of_other_dtype])
@pytest.mark.parametrize("which", ["indices", "values"])
def test_arrays_that_become_others(backend, change, which):
    """Once they are bound they are stepped as they were, by all backends alike; before that they are refused."""
    table, twin = np.ones((4, 2)), np.ones((4, 2))
    arrays = {"indices": np.array([3, 1, 3]), "values": np.arange(6.0).reshape(3, 2)}
    expected = proptim.Rows(*(a.copy() for a in arrays.values()))
    grad = proptim.Rows(**arrays)
    opt = proptim.Adam([table], lr=0.1, grads=[grad], clip_norm=1.0)
    other = proptim.Adam([twin], lr=0.1, clip_norm=1.0)
    for step in (opt.step, lambda: opt.step([grad]), opt.step):
        step()
        other.step([expected])
        if opt.steps == 1:
            change(arrays[which])
    assert_same(arrays_of(opt, [table]), arrays_of(other, [twin]))
    before = table.copy()
    with pytest.raises((TypeError, ValueError), match=r"^(indices|values) of grads\[0\] (is|has shape) "):
        proptim.Adam([table], lr=0.1).step([grad])
    with pytest.raises((TypeError, ValueError), match=r"^(indices|values) of grad (is|has shape) "):
        proptim.functional.sgd(table, grad, lr=0.1)
    np.testing.assert_array_equal(table, before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_messages_of_arrays_that_become_others(backend):
    table, indices, values = np.ones((4, 2)), np.array([3, 1]), np.ones((2, 2))
    opt = proptim.SGD([table], lr=1.0, grads=[proptim.Rows(indices, values)], nonfinite="raise")
    values[1, 0], numbers = np.inf, values[...]
    reshaped(values)
    with pytest.raises(FloatingPointError, match=exactly("grads[0] is inf at index (1, 0); expected finite gradients")):
        opt.step()
    numbers[...], indices[1] = 1, 4
    reshaped(indices)
    with pytest.raises(
        ValueError, match=exactly("indices of grads[0] has 4 at place 1; expected 0 to 3, a row of params[0]")
    ):
        opt.step()
    assert (table == 1).all()


@pytest.mark.parametrize("kind", ["bound", "fresh"])
def test_a_refused_step_keeps_the_gradients(backend, kind):
    """Of the step before, also after steps that needed no checks; the next step is as if nothing had been."""
    table, other = np.zeros((4, 2)), np.zeros(3)
    good = [proptim.Rows(np.array([1]), np.ones((1, 2))), np.ones(3)]
    opt = proptim.SGD([table, other], lr=1.0)
    for _ in range(3):
        opt.step(good)
    bad = {
        "indices of grads[0] has 4 at place 1; expected 0 to 3, a row of params[0]": ([0, 4], np.ones((2, 2))),
        f"grads[0] and params[0] {SHARED}": ([0], table[2:3]),
        "values of grads[0] has shape (1, 3); expected (1, 2), a row of params[0] for each of indices": (
            [0],
            np.ones((1, 3)),
        ),
    }
    for message, (indices, values) in bad.items():
        with pytest.raises(ValueError, match=exactly(message)):
            opt.step([proptim.Rows(indices, values), np.full(3, 7.0)])
        opt.step() if kind == "bound" else opt.step(good)
    assert table.tolist() == [[0, 0], [-6, -6], [0, 0], [0, 0]]
    assert other.tolist() == [-6, -6, -6]
    opt.step([np.ones((4, 2)), np.ones(3)])
    opt.step(good)
    assert table.tolist() == [[-1, -1], [-8, -8], [-1, -1], [-1, -1]]


def test_step_param(backend):
    tables = [np.ones((4, 2)), np.ones((4, 2))]
    opts = [proptim.Adam({"t": table}, lr=0.1) for table in tables]
    for rows in ([1, 1, 3], [], [0]):
        grad = proptim.Rows(rows, np.arange(2.0 * len(rows)).reshape(-1, 2))
        opts[0].step({"t": grad})
        opts[1].step_param("t", grad)
    assert_same(arrays_of(opts[0], tables[:1]), arrays_of(opts[1], tables[1:]))
    with pytest.raises(
        ValueError,
        match=exactly('indices of grads[0] ("t") has -1 at place 0; expected 0 to 3, a row of params[0] ("t")'),
    ):
        opts[1].step_param("t", proptim.Rows([-1], np.ones((1, 2))))
    assert_same(arrays_of(opts[0], tables[:1]), arrays_of(opts[1], tables[1:]))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64, ">i4"])
def test_index_dtypes(backend, dtype):
    table = np.zeros(100)
    indices = np.array([7, 99, 7, 0], dtype)
    proptim.SGD([table], lr=1.0).step([proptim.Rows(indices, np.ones(4))])
    assert table.nonzero()[0].tolist() == [0, 7, 99]
    assert table[7] == -2
    proptim.SGD([table], lr=1.0).step([proptim.Rows(indices[::2], np.ones(4)[::2])])
    assert table[7] == -4


def test_an_empty_gradient_is_a_step(backend):
    table = np.ones((3, 2))
    opt = proptim.Adam([table], lr=0.1)
    opt.step([proptim.Rows([], np.zeros((0, 2)))])
    assert opt.steps == opt.state[0]["step"] == 1
    assert (table == 1).all()
    empty = np.ones((0, 4))
    opt = proptim.Adam([empty], lr=0.1)
    opt.step([proptim.Rows([], np.zeros((0, 4)))])
    with pytest.raises(
        ValueError, match=exactly("indices of grads[0] has 0 at place 0; expected none, for params[0] has no rows")
    ):
        opt.step([proptim.Rows([0], np.zeros((1, 4)))])
    narrow = np.ones((4, 0))
    proptim.Adam([narrow], lr=0.1, clip_norm=1.0).step([proptim.Rows([1, 1], np.zeros((2, 0)))])


def test_nonfinite(backend):
    table = np.ones((4, 2), np.float32)
    largest = np.finfo(np.float32).max
    values = np.array([[1, 2], [largest, 0], [largest, 0]], np.float32)
    opt = proptim.SGD([table], lr=1.0, nonfinite="raise")
    with pytest.raises(FloatingPointError, match=exactly("grads[0] is inf at index (2, 0); expected finite gradients")):
        opt.step([proptim.Rows([1, 2, 2], values)])  # each is finite, and their sum is not
    opt.nonfinite = "skip"
    opt.step([proptim.Rows([1, 2, 2], values)])
    assert opt.skipped == 1
    assert opt.steps == 0
    assert (table == 1).all()
    opt.step([proptim.Rows([1, 2, 3], values)])
    assert opt.steps == 1
    assert table[1, 0] == 0
    opt = proptim.SGD([table], lr=1.0, nonfinite="skip", zero_grads=True)
    opt.step([proptim.Rows([1, 2, 2], values)])
    assert not values.any()


def exactly(text):
    """A pattern for the whole of a message."""
    return "^" + re.escape(text) + "$"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.0], np.ones(1)), TypeError, "indices is float64; expected integers: convert it with .astype(numpy.int64)"),
        (([True], np.ones(1)), TypeError, "indices is bool; expected integers: convert it with .astype(numpy.int64)"),
        (([[0]], np.ones(1)), ValueError, "indices has shape (1, 1); expected one axis"),
        ((0, np.ones(1)), ValueError, "indices has shape (); expected one axis"),
        (([0], np.ones(2)), ValueError, "values has shape (2,); expected 1 rows, one for each of indices"),
        (([0], np.array(1.0)), ValueError, "values has shape (); expected 1 rows, one for each of indices"),
        (
            ([0], np.ones(1, int)),
            TypeError,
            "values is int64; supported: float32, float64, complex64, complex128, float16, bfloat16: convert it with "
            ".astype, a tensor with .to",
        ),
    ],
    ids=str,
)
def test_what_are_no_rows(arguments, error, message):
    with pytest.raises(error, match=exactly(message)):
        proptim.Rows(*arguments)


def refusals():
    rows, ones = proptim.Rows, np.ones
    table = lambda p: p["t"]  # noqa: E731
    return {
        "too large": (
            lambda p: rows([0, 5], ones((2, 2))),
            ValueError,
            'indices of grads[0] ("t") has 5 at place 1; expected 0 to 4, a row of params[0] ("t")',
        ),
        "negative": (
            lambda p: rows([-1], ones((1, 2))),
            ValueError,
            'indices of grads[0] ("t") has -1 at place 0; expected 0 to 4, a row of params[0] ("t")',
        ),
        "huge": (
            lambda p: rows(np.array([2**64 - 1], np.uint64), ones((1, 2))),
            ValueError,
            'indices of grads[0] ("t") has 18446744073709551615 at place 0; expected 0 to 4, a row of params[0] ("t")',
        ),
        "wide": (
            lambda p: rows([0], ones((1, 3))),
            ValueError,
            'values of grads[0] ("t") has shape (1, 3); expected (1, 2), a row of params[0] ("t") for each of indices',
        ),
        "flat": (
            lambda p: rows([0], ones(1)),
            ValueError,
            'values of grads[0] ("t") has shape (1,); expected (1, 2), a row of params[0] ("t") for each of indices',
        ),
        "complex": (
            lambda p: rows([0], ones((1, 2), complex)),
            TypeError,
            'values of grads[0] ("t") is complex128; expected float64, the dtype of params[0] ("t"): convert it with '
            ".astype, a tensor with .to",
        ),
        "the table": (
            lambda p: rows([0, 1], table(p)[:2]),
            ValueError,
            f'grads[0] ("t") and params[0] ("t") {SHARED}',
        ),
    }


@pytest.mark.parametrize("what", refusals())
@pytest.mark.parametrize("bound", [False, True])
def test_refused(backend, what, bound):
    make, error, message = refusals()[what]
    params = {"t": np.ones((5, 2)), "s": np.array(1.0)}
    opt = proptim.Adam(params, lr=0.1)
    opt.step({"t": proptim.Rows([2], np.ones((1, 2))) if bound else np.ones((5, 2)), "s": np.array(1.0)})
    before = arrays_of(opt, [*params.values()])
    with pytest.raises(error, match=exactly(message)):
        opt.step({"t": make(params), "s": np.array(1.0)})
    assert_same(arrays_of(opt, [*params.values()]), before)
    assert opt.steps == 1
    opt.step()  # with the gradients of before
    assert opt.steps == 2


def test_refused_by_shape_or_rights(backend):
    scalar = np.array(1.0)
    with pytest.raises(
        ValueError,
        match=exactly("params[0] has no axis, and so no rows to have a gradient; expected an array of shape ()"),
    ):
        proptim.SGD([scalar], lr=0.1).step([proptim.Rows([0], np.ones(1))])
    with pytest.raises(
        TypeError, match="values of grads\\[0\\] is float64; expected float32, the dtype of params\\[0\\]"
    ):
        proptim.SGD([np.ones(3, np.float32)], lr=0.1).step([proptim.Rows([0], np.ones(1))])
    frozen = np.ones(3)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="params\\[0\\] is read-only"):
        proptim.SGD([frozen], lr=0.1)
    values = np.ones(1)
    values.flags.writeable = False
    with pytest.raises(ValueError, match="grads\\[0\\] is read-only"):
        proptim.SGD([np.ones(3)], lr=0.1, zero_grads=True).step([proptim.Rows([0], values)])
    shared = proptim.Rows([0, 1], np.ones(2))
    opt = proptim.SGD([np.ones(3), np.ones(3)], lr=0.1, zero_grads=True)
    with pytest.raises(ValueError, match=exactly(f"grads[1] and grads[0] {SHARED}")):
        opt.step([shared, shared])
    with pytest.raises(TypeError, match="grads is Rows; expected a collection like params"):
        proptim.SGD([np.ones(3)], lr=0.1).step(proptim.Rows([0], np.ones(1)))
    table = np.ones(3, np.float32)
    proptim.SGD([table], lr=1.0, cast_grads=True).step([proptim.Rows([1], np.ones(1))])
    assert table.tolist() == [1, 0, 1]


def test_schedules_and_groups(backend):
    tables = [np.ones((4, 2)), np.ones((4, 2))]
    opt = proptim.SGD([{"params": [tables[0]]}, {"params": [tables[1]], "lr": lambda k: k + 1.0}], lr=0.5)
    grad = [proptim.Rows([1], np.ones((1, 2))), proptim.Rows([2], np.ones((1, 2)))]
    opt.step(grad)
    opt.step(grad)
    opt.step([None, grad[1]])
    assert tables[0][1, 0] == 0
    assert tables[1][2, 0] == 1 - 1 - 2 - 3
    opt.step([[np.ones((4, 2))], [grad[1]]])
    assert tables[0][0, 0] == 0.5


def test_groups_come_and_go(backend):
    tables = [np.ones((4, 2)), np.ones((4, 2))]
    opt = proptim.SGD([{"params": [tables[0]]}], lr=1.0)
    opt.step([proptim.Rows([1], np.ones((1, 2)))])
    opt.add_param_group({"params": [tables[1]]})
    opt.step([proptim.Rows([1], np.ones((1, 2))), None])
    opt.remove_param_group(1)
    opt.step()
    assert tables[0][1, 0] == -2
    assert (tables[1] == 1).all()


def test_copies_and_checkpoints(backend, tmp_path):
    table = np.ones((4, 2))
    grad = proptim.Rows(np.array([1, 1, 3]), np.ones((3, 2)))
    opt = proptim.Adam([table], lr=0.1, grads=[grad])
    opt.step()
    copied = pickle.loads(pickle.dumps(opt))
    deep = copy.deepcopy(opt)
    opt.save(tmp_path / "a.npz")
    loaded = proptim.Adam([table.copy()], lr=0.5)
    loaded.load(tmp_path / "a.npz")
    for each in (opt, copied, deep):
        each.step()
    loaded.step([grad])
    expected = opt.param_groups[0]["params"][0].tobytes()
    for each in (copied, deep, loaded):
        assert each.param_groups[0]["params"][0].tobytes() == expected
    for way in (copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))):
        rows, indices, values = way((grad, grad.indices, grad.values))
        assert rows.indices is indices  # so it sees what is written into the copies of its arrays
        assert rows.values is values
        np.testing.assert_array_equal(rows.indices, [1, 1, 3])
        np.testing.assert_array_equal(rows.values, np.ones((3, 2)))
    assert copy.copy(grad).indices is grad.indices
    assert copy.copy(grad).values is grad.values
    assert repr(grad) == "Rows(3 rows of shape (2,), float64)"


def test_watched(backend):
    tables = [np.ones((4, 2)), np.ones((4, 2))]
    opts = [proptim.Rprop([table]) for table in tables]
    watch = opts[0].watch()
    for values in ([[3.0, 4.0]], [[-3.0, 4.0]], [[-3.0, -4.0]]):
        for opt in opts:
            opt.step([proptim.Rows([1], np.array(values))])
    assert_same(arrays_of(opts[0], tables[:1]), arrays_of(opts[1], tables[1:]))
    assert watch[0]["grad_norm"].tolist() == [5, 5, 5]
    assert watch[0]["turned"].tolist() == [0, 0.5, 0.5]


@pytest.mark.once
def test_threads_look_for_themselves():
    table = np.zeros((2000, 64), np.float32)
    rng = np.random.default_rng(0)
    opt = proptim.SGD([table], lr=1.0, threads="auto")
    expected = np.zeros_like(table)
    for _ in range(40):
        indices, values = rng.integers(0, 2000, 500), np.ones((500, 64), np.float32)
        opt.step([proptim.Rows(indices, values)])
        np.subtract.at(expected, indices, values)
    np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.csr_matrix])
def test_sparse_matrices(backend, kind):
    tables = [np.ones((5, 3), np.float32), np.ones((5, 3), np.float32)]
    opts = [proptim.Adam([table], lr=0.1, clip_norm=1.0) for table in tables]
    rng = np.random.default_rng(1)
    for rows in ([1, 4], [0], [], range(5)):
        dense = np.zeros((5, 3), np.float32)
        dense[[*rows]] = rng.standard_normal((len([*rows]), 3))
        opts[0].step([kind(dense)])
        opts[1].step([proptim.Rows([*rows], dense[[*rows]])])
    assert_same(arrays_of(opts[0], tables[:1]), arrays_of(opts[1], tables[1:]))


def test_sparse_matrices_are_seen_anew(backend):
    table = np.ones((4, 2))
    grad = scipy.sparse.csr_array(np.array([[0, 0], [3.0, 0], [0, 0], [1, 2]]))
    opt = proptim.SGD([table], lr=1.0, grads=[grad])
    opt.step()
    grad.data *= 2
    opt.step()
    assert table.tolist() == [[1, 1], [1 - 9, 1], [1, 1], [1 - 3, 1 - 6]]
    stored_in_parts = scipy.sparse.csr_array((np.array([1.0, 2.0, 0.0]), [1, 1, 0], [0, 2, 2, 3, 3]), shape=(4, 2))
    opt.step_param(0, stored_in_parts)
    assert table.tolist() == [[1, 1 - 3], [1 - 9, 1], [1, 1], [1 - 3, 1 - 6]]
    with_room = scipy.sparse.csr_array((np.ones(9), np.ones(9, np.int32), [0, 9, 9, 9, 9]), shape=(4, 2))
    with_room.indptr[1:] = 1
    opt.step_param(0, with_room)
    assert table.tolist() == [[1, 1 - 3 - 1], [1 - 9, 1], [1, 1], [1 - 3, 1 - 6]]
    before = table.copy()
    with pytest.raises(ValueError, match=exactly("grads[0] has shape (3, 2); expected (4, 2), the shape of params[0]")):
        opt.step([scipy.sparse.csr_array((3, 2))])
    with pytest.raises(TypeError, match=exactly("grads[0] has format csc; expected csr: convert it with .tocsr()")):
        opt.step([grad.tocsc()])
    with pytest.raises(TypeError, match="params\\[0\\] is csr_array"):
        proptim.SGD([grad], lr=1.0)
    np.testing.assert_array_equal(table, before)


COPIED = (
    "grads[0] is a sparse matrix, of which a step sees a copy that would be set to zero; expected proptim.Rows, or no "
    "zeros from here: write its data[:] = 0"
)


def test_sparse_matrices_are_not_set_to_zero(backend):
    table = np.ones((4, 2))
    grad = scipy.sparse.csr_array(np.eye(4, 2))
    opt = proptim.SGD([table], lr=1.0, zero_grads=True)
    for step in (lambda: opt.step([grad]), lambda: opt.step_param(0, grad)):
        with pytest.raises(ValueError, match=exactly(COPIED)):
            step()
    opt = proptim.SGD([table], lr=1.0, grads=[grad], nonfinite="skip")
    for change in (opt.zero_grad, lambda: setattr(opt, "zero_grads", True)):
        with pytest.raises(ValueError, match=exactly(COPIED)):
            change()
    assert opt.zero_grads is False
    with pytest.raises(ValueError, match=exactly(COPIED.replace("grads[0]", "grad"))):
        proptim.functional.sgd(table, grad, lr=1.0, zero_grads=True)
    assert (table == 1).all()
    assert grad.data.tolist() == [1, 1]
    opt.step()
    assert table.tolist() == [[0, 1], [1, 0], [1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("indices", "indptr"),
    [
        ([0, 5], [0, 1, 2, 2, 2]),
        ([0, -1], [0, 1, 2, 2, 2]),
        ([0, 2], [0, 1, 2, 2, 2]),
        ([0, 1], [0, 1, 3, 3, 3]),
        ([0, 1], [0, 2, 1, 2, 2]),
        ([0, 1], [1, 1, 2, 2, 2]),
        ([0, 1], [0, 1, 2]),
        ([0, 1], [0, 1, 2, 2, 2, 2]),
        ([0], [0, 1, 2, 2, 2]),
    ],
)
def test_sparse_matrices_that_are_none(backend, indices, indptr):
    """Their arrays can be replaced, and SciPy does not look at them again."""
    table = np.ones((4, 2))
    grad = scipy.sparse.csr_array(np.eye(4, 2))
    opt = proptim.SGD([table], lr=1.0, grads=[grad])
    grad.indices, grad.indptr = np.array(indices), np.array(indptr)
    message = "the indices of grads[0] do not fit its shape, (4, 2); expected what its check_format() passes"
    for call in (opt.step, lambda: proptim.global_norm([grad]), lambda: proptim.clip_grad_norm([grad], 0.5)):
        with pytest.raises(ValueError, match=exactly(message)):
            call()
    assert (table == 1).all()
    assert grad.data.tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr", "dok", "lil", "dia"])
def test_one_sparse_matrix_is_no_collection(kind):
    grad = scipy.sparse.eye_array(3, format=kind)
    opt = proptim.SGD([np.ones((3, 3))], lr=1.0)
    for call in (lambda: opt.step(grad), lambda: proptim.global_norm(grad), lambda: proptim.clip_grad_norm(grad, 1.0)):
        with pytest.raises(TypeError, match=f"^grads is {kind}_array; expected a "):
            call()
    if kind != "csr":
        with pytest.raises(TypeError, match=rf"^grads\[0\] (is {kind}_array|has format {kind})"):
            opt.step([grad])


# Norms ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm(backend, dtype):
    """The norm of the added-up rows, with the bits of `clip_norm`; passed to a step it makes the same step."""
    rng = np.random.default_rng(0)
    for width in ((), (5,), (300,)):
        tables = [drawn(rng, dtype, (40, *width)) for _ in range(2)]
        tables += [np.ones(9, np.float32), np.ones(9, np.float32)]
        indices = rng.integers(0, 40, 60)
        values = drawn(rng, dtype, (60, *width))
        grads = [proptim.Rows(indices, values), drawn(rng, np.float32, (9,))]
        opts = [proptim.SGD(tables[::2], lr=1.0, clip_norm=0.5), proptim.SGD(tables[1::2], lr=1.0, clip_norm=0.5)]
        tables[1][...] = tables[0]
        norm = proptim.global_norm(grads)
        opts[0].step(grads)
        opts[1].step(grads, grad_norm=norm)
        assert opts[0].grad_norm == opts[1].grad_norm == norm == proptim.global_norm([*grads, None])
        for a, b in zip(tables[::2], tables[1::2], strict=True):
            assert a.tobytes() == b.tobytes()
        sums = [*summed(indices, values, dtype).values()]
        assert norm == proptim.global_norm([np.array(sums), grads[1]])
        assert norm == proptim.global_norm({"a": grads[0], "b": {"c": grads[1]}})
        kept = values.copy()
        assert proptim.clip_grad_norm(grads, math.inf) == norm
        assert kept.tobytes() == values.tobytes()
        assert proptim.clip_grad_norm(grads, 0.5) == norm
        factor = 0.5 / (norm + 1e-6)
        scaled = (
            kept.astype(np.float32) * np.float32(factor) if kept.itemsize == 2 else kept * kept.real.dtype.type(factor)
        )
        np.testing.assert_array_equal(values, scaled.astype(dtype))
        assert abs(proptim.global_norm(grads) - 0.5) < 0.5 * 2 * float(ml_dtypes.finfo(kept.real.dtype).eps) + 1e-6
    assert proptim.global_norm([proptim.Rows([], np.zeros((0, 2), dtype))]) == 0


def test_norm_of_sparse_matrices_and_tensors(backend):
    rng = np.random.default_rng(0)
    dense = np.zeros((6, 4), np.float32)
    dense[[1, 4]] = rng.standard_normal((2, 4))
    matrix = scipy.sparse.csr_array(dense)
    stored = len(matrix.data)
    arrays = np.append(matrix.data, np.float32(7)), np.append(matrix.indices, 0), np.full(7, stored + 1)
    arrays[2][0] = 0
    room = scipy.sparse.csr_array(arrays, shape=(6, 4))
    room.indptr[:] = matrix.indptr
    parts = torch.sparse_coo_tensor([[1, 4, 1]], torch.from_numpy(dense[[1, 4, 1]]), (6, 4), **CHECKED)
    expected = proptim.global_norm([proptim.Rows([1, 4], dense[[1, 4]])])
    assert proptim.global_norm([matrix]) == proptim.global_norm([room]) == expected
    assert proptim.global_norm([parts]) == proptim.global_norm([proptim.Rows([1, 4], dense[[1, 4]] * [[2], [1]])])
    for each in (matrix, room, parts):
        norm = proptim.clip_grad_norm([each], 0.5)
        assert norm > 0.5
        assert abs(proptim.global_norm([each]) - 0.5) < 2e-6
    assert room.data.tolist() == [*matrix.data.tolist(), 7]
    two = torch.sparse_coo_tensor(torch.tensor([[2], [1]]), torch.ones(1), (10, 4), **CHECKED)
    with pytest.raises(ValueError, match="grads\\[0\\] has 2 sparse dimensions; expected 1"):
        proptim.global_norm([two])
    values = np.ones((2, 2))
    values.flags.writeable = False
    other = np.ones(3)
    for grads, message in (
        ([other, proptim.Rows([0, 1], values)], "grads[1] is read-only; expected a writable array: pass a copy"),
        ([other, proptim.Rows([0, 1, 2], other)], f"grads[1] and grads[0] {SHARED}"),
    ):
        with pytest.raises(ValueError, match=exactly(message)):
            proptim.clip_grad_norm(grads, 0.5)
        assert (other == 1).all()
    with pytest.raises(TypeError, match=r"^grads is Rows; expected a sequence or dict of arrays: put it into a list$"):
        proptim.global_norm(proptim.Rows([0], np.ones(1)))


@pytest.mark.skipif(tuple(map(int, scipy.__version__.split(".")[:2])) < (1, 15), reason="csr has two axes before 1.15")
def test_sparse_vectors(backend):
    """Rows of a parameter with one axis are numbers, and so are those of a csr_array with one."""
    tables = [np.ones(6, np.float32), np.ones(6, np.float32)]
    opts = [proptim.Adam([table], lr=0.1, clip_norm=1.0) for table in tables]
    for indices in ([4, 1], [], [3, 0, 3], range(6)):
        values = np.arange(1, 1 + len(indices), dtype=np.float32)
        room = np.append(values, np.float32(9)), np.array([*indices, 0], np.int32)  # for more than are stored
        grad = scipy.sparse.csr_array((*room, [0, len(room[0])]), shape=(6,))
        grad.indptr[1] = len(indices)
        assert grad.shape == (6,)
        opts[0].step([grad])
        opts[1].step([proptim.Rows(indices, values)])
    grad.data *= 2  # which is seen while it is bound
    values *= 2
    for opt in opts:
        opt.step()
    assert_same(arrays_of(opts[0], tables[:1]), arrays_of(opts[1], tables[1:]))
    before = tables[0].copy()
    with pytest.raises(ValueError, match=exactly("grads[0] has shape (5,); expected (6,), the shape of params[0]")):
        opts[0].step([scipy.sparse.csr_array(np.ones(5, np.float32))])
    with pytest.raises(ValueError, match=exactly(COPIED)):
        proptim.SGD([tables[0]], lr=1.0, zero_grads=True).step([grad])
    np.testing.assert_array_equal(tables[0], before)


CHECKED = {"check_invariants": True}  # torch warns where nobody says whether they are to be


def test_sparse_tensors(backend):
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(10, 4, sparse=True)
    table = embedding.weight.detach().numpy().copy()
    opt, other = proptim.Adagrad([embedding.weight], lr=0.1), proptim.Adagrad([table], lr=0.1)
    for picked in ([1, 1, 7], [], [3, 1]):
        embedding.zero_grad()
        embedding(torch.tensor(picked, dtype=torch.int64)).square().sum().backward()
        grad = embedding.weight.grad
        rows = proptim.Rows(grad._indices()[0].clone(), grad._values().clone())
        opt.step([grad.coalesce() if picked == [3, 1] else grad])
        other.step([rows])
    assert embedding.weight.detach().numpy().tobytes() == table.tobytes()
    grad = torch.sparse_coo_tensor(torch.tensor([[2, 2]]), torch.ones(2, 4), (10, 4), **CHECKED)
    opt = proptim.SGD([table], lr=1.0, grads=[grad], zero_grads=True)
    before = table.copy()
    opt.step()
    assert not grad._values().any()
    opt.step()
    before[2] -= 2
    np.testing.assert_array_equal(table, before)
    with pytest.raises(
        ValueError, match=exactly("grads[0] has shape (9, 4); expected (10, 4), the shape of params[0]")
    ):
        opt.step([torch.sparse_coo_tensor(torch.tensor([[2]]), torch.ones(1, 4), (9, 4), **CHECKED)])
    two = torch.sparse_coo_tensor(torch.tensor([[2], [1]]), torch.ones(1), (10, 4), **CHECKED)
    with pytest.raises(ValueError, match="grads\\[0\\] has 2 sparse dimensions; expected 1"):
        opt.step([two])
    np.testing.assert_array_equal(table, before)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_functional(contestant, name, options):
    """The function of a rule takes rows and has the bits of the class."""
    if options.get("variant") == "irprop+":
        options = {**options, "variant": "irprop-"}
    step = getattr(proptim.functional, name)
    params = [np.ones((6, 4), np.float32), np.ones((6, 4), np.float32)]
    opt = proptim.OPTIMIZERS[name](params[:1], **options)
    state = step.init(params[1], **options)
    rng = np.random.default_rng(0)
    for t in (1, 2, 3):
        grad = proptim.Rows(rng.integers(0, 6, 4), rng.standard_normal((4, 4)).astype(np.float32))
        opt.step([grad])
        step(params[1], grad, **state, step=t, **options)
    assert params[0].tobytes() == params[1].tobytes()
    before = params[1].copy()
    with pytest.raises(ValueError, match=exactly("indices of grad has 6 at place 0; expected 0 to 5, a row of param")):
        step(params[1], proptim.Rows([6], np.ones((1, 4), np.float32)), **state, step=4, **options)
    assert params[1].tobytes() == before.tobytes()


@pytest.mark.parametrize("norm", [proptim.global_norm, lambda grads: proptim.clip_grad_norm(grads, 1.0)])
@pytest.mark.parametrize("indices", [[-5, 1], [1, -1], [1, 10]])
def test_norm_of_rows_that_are_none(norm, indices):
    """An index that can be a row of no table is an error, also where no table is given; nothing has been clipped."""
    values, at = np.ones((2, 3)), next(i for i, row in enumerate(indices) if not 0 <= row < 10)
    of_tensor = torch.sparse_coo_tensor([indices], torch.from_numpy(values), (10, 3), check_invariants=False)
    given = [(of_tensor, "expected a row, 0 to 9")]
    if indices[at] < 0:
        given.append((proptim.Rows(np.array(indices), values), "expected a row, 0 or above"))
    for grad, expected in given:
        message = f"indices of grads[0] has {indices[at]} at place {at}; {expected}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            norm([grad])
        assert (values == 1).all()
