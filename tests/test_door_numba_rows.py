"""proptim.numba.<rule>_rows: steps of some rows in code that Numba compiles have the bits of the optimizer objects."""

from __future__ import annotations

import inspect
import math
import pickle
import re
from functools import cache

import numpy as np
import pytest

numba = pytest.importorskip("numba", exc_type=ModuleNotFoundError)

import proptim  # noqa: E402
import proptim.numba  # noqa: E402
from proptim import _backend  # noqa: E402
from proptim._formats import rounded, shown  # noqa: E402
from proptim._storage import DTYPES  # noqa: E402

pytestmark = pytest.mark.once
MODULES = {"text": proptim.numba, "core": proptim.numba.c}
each_way = pytest.mark.parametrize(
    "way",
    [
        "text",
        pytest.param("core", marks=pytest.mark.skipif(bool(_backend.missing_core), reason=str(_backend.missing_core))),
    ],
)
STAGES = {
    "weight_decay": 0.1,
    "maximize": True,
    "clip_value": 0.7,
    "grad_scale": 0.5,
    "zero_grads": True,
    "flush_denormals": True,
}
OFF = 7.0
INDICES = [[3, 1, 3, 8, 3], [0], [], [8, 7, 6, 5, 4, 3, 2, 1, 0, 0]]


def settings(name):
    """Every option of a step by name, and its default."""
    more = {"grad_scale": 1.0, "zero_grads": False, "flush_denormals": False}
    return {**more, **proptim.OPTIMIZERS[name].hyper, "clip_value": math.inf}


@cache
def stepped(way, name):
    """A compiled step of rows. Options are its arguments, so that it is compiled once for all of them."""
    cls = proptim.OPTIMIZERS[name]
    arguments = [*(f"state[{i}]" for i in range(len(cls.states))), "step=k"]
    arguments += [f"{option}=options[{i}]" for i, option in enumerate(settings(name))]
    if cls.needs_loss is not proptim.Optimizer.needs_loss:
        arguments += ["loss=losses[k]", "prev_loss=losses[k - 1]"]
    known = {"step": getattr(MODULES[way], f"{name}_rows")}
    head = "def run(param, indices, values, state, losses, options, k):"
    exec(f"{head}\n    step(param, indices, values, {', '.join(arguments)})", known)
    return numba.njit(known["run"])


@each_way
@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_same_bits_as_the_object(way, name):
    cls = proptim.OPTIMIZERS[name]
    losses = np.array([math.inf, 3.0, 4.0, 2.0, 2.5])
    for options in [{**options, **stages} for options in cls.cases for stages in ({}, STAGES)]:
        rng = np.random.default_rng(1)
        param = rng.standard_normal((9, 3)).astype(np.float32)
        mine = param.copy()
        opt = cls([param], backend="numpy", **options)
        theirs = {key: opt._stepper.parameters[0].state.get(key, np.full((9, 3), OFF, "f4")) for key in cls.states}
        state = {key: array.copy() for key, array in theirs.items()}
        for k, rows in enumerate(INDICES, 1):
            indices, values = np.array(rows, np.int64), rng.standard_normal((len(rows), 3)).astype(np.float32)
            given = values.copy()
            numbers = tuple((settings(name) | options).values())
            stepped(way, name)(mine, indices, given, tuple(state.values()), losses, numbers, k)
            opt.step([proptim.Rows(indices, values)], loss=losses[k])
            assert mine.tobytes() == param.tobytes(), options
            assert given.tobytes() == values.tobytes(), options
            assert {k: a.tobytes() for k, a in state.items()} == {k: a.tobytes() for k, a in theirs.items()}, options


NUMBERS = {"bfloat16": proptim.numba.bfloat16, "float16": proptim.numba.float16}
FORMATS = [  # of param, values and state, and the option master
    ("bfloat16", "bfloat16", "float32", "split"),
    ("float16", "float16", "bfloat16", "float32"),
    ("bfloat16", "float16", "float32", "float32"),
    ("float16", "float32", "float16", None),
    ("float64", "bfloat16", "float64", None),
]


@each_way
@pytest.mark.parametrize("formats", FORMATS, ids=lambda each: "-".join(map(str, each)))
def test_formats(way, formats):
    param, slope, kept, master = formats

    def of_dtype(values, name):
        array = shown(rounded(values, DTYPES[name]))
        return array, NUMBERS[name](array) if name in NUMBERS else array

    step = MODULES[way].adagrad_rows

    @numba.njit
    def run(w, indices, values, total, master):
        step(w, indices, values, total, master=master, lr=0.1, zero_grads=True)

    rng = np.random.default_rng(0)
    seen, mine = of_dtype(rng.standard_normal((6, 5)), param)
    theirs = seen.copy()
    beside = {"master": master} if param in NUMBERS else {}
    opt = proptim.Adagrad([theirs], lr=0.1, backend="numpy", state_dtype=kept, zero_grads=True, **beside)
    state = proptim.functional.adagrad.init(seen, state_dtype=kept, **beside)
    total = state["sum"] if kept not in NUMBERS else NUMBERS[kept](state["sum"])
    for rows in ([5, 0, 5, 5], [1]):
        values, words = of_dtype(rng.standard_normal((len(rows), 5)), slope)
        opt.step([proptim.Rows(rows, values.copy())])
        run(mine, np.array(rows), words, total, state.get("master"))
        assert not values.view(np.uint8).any()
        assert seen.tobytes() == theirs.tobytes()
        assert state["sum"].tobytes() == np.asarray(opt.state[0]["sum"]).tobytes()
    if "master" in state:
        plane = opt._stepper.parameters[0].plane
        assert state["master"].tobytes() == plane.tobytes()


def adagrad(way):
    step = MODULES[way].adagrad_rows

    @numba.njit
    def run(w, indices, values, total):
        step(w, indices, values, total, lr=0.1)

    return run


LAYOUTS = {
    "one axis": lambda: np.arange(7.0),
    "column-major": lambda: np.asfortranarray(np.arange(21.0).reshape(7, 3)),
    "strided": lambda: np.arange(84.0).reshape(14, 6)[::2, ::2],
    "three axes": lambda: np.arange(42.0).reshape(7, 2, 3),
}


@each_way
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(way, layout):
    """Of every array, also indices; what lies between the elements stays."""
    w, total = LAYOUTS[layout](), LAYOUTS[layout]()
    other, sums = w.copy(), total.copy()
    values = np.repeat(np.random.default_rng(0).standard_normal((4, *w.shape[1:])), 2, axis=0)[::2]
    indices = np.array([6, 0, 2, 0, 6, 0, 0, 0], np.int32)[::2]
    run = adagrad(way)
    for rows in (indices, indices.astype(np.uint8), indices.astype(np.uint64)):
        run(w, rows, values, total)
        proptim.functional.adagrad(other, proptim.Rows(rows, values), sums, lr=0.1)
        assert (w.tobytes(), total.tobytes()) == (other.tobytes(), sums.tobytes())
    if w.base is not None and w.base.size == 84:
        assert w.base.reshape(14, 6)[1::2].tobytes() == np.arange(84.0).reshape(14, 6)[1::2].tobytes()
    run(w, indices[:0], values[:0], total)
    assert w.tobytes() == other.tobytes()
    none = w[:0].copy()
    run(none, indices[:0], values[:0], none.copy())


@each_way
def test_refused(way):
    """What does not fit is an error before anything changes."""
    run = adagrad(way)
    w, total, values = np.ones((4, 2)), np.ones((4, 2)), np.ones((2, 2))
    unknown = "indices has one that is no row of param; expected 0 to len(param) - 1"
    shapes = "values has another shape; expected a row of param for each of indices"
    for indices, given, message in (
        (np.array([0, 4]), values, unknown),
        (np.array([0, -1]), values, unknown),
        (np.array([2**64 - 1, 0], np.uint64), values, unknown),
        (np.array([0]), values, shapes),
        (np.array([0, 1]), np.ones((2, 3)), shapes),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            run(w, indices, given, total)
    with pytest.raises(ValueError, match="sum has not the shape of param"):
        run(w, np.array([0, 1]), values, np.ones((3, 2)))
    with pytest.raises(ValueError, match="param and values share memory"):
        run(w, np.array([0, 1]), w[:2], total)
    for indices, given, message in (
        (np.array([0.0, 1.0]), values, "indices is array\\(float64, 1d, C\\); expected an array of integers"),
        (np.array([True, False]), values, "indices is array\\(bool, 1d, C\\); expected an array of integers"),
        (np.array([[0, 1]]), values, "indices is array\\(int64, 2d, C\\); expected an array of integers"),
        (np.array([0, 1]), np.ones(2), "values has 1 dimensions; expected 2, those of param"),
        (
            np.array([0, 1]),
            np.ones((2, 2), np.int64),
            "values is array\\(int64, 2d, C\\); expected an array of float32",
        ),
    ):
        with pytest.raises(numba.TypingError, match=message):
            run(w, indices, given, total)
    with pytest.raises(numba.TypingError, match="param has no dimension, and so no rows to have a gradient"):
        run(np.array(1.0), np.array([0]), np.array(1.0), np.array(1.0))
    assert (w == 1).all()
    assert (total == 1).all()
    frozen = values.copy()
    frozen.flags.writeable = False
    run(w, np.array([0, 1]), frozen, total)
    assert (w[:2] != 1).all()


@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_in_python(name):
    """From Python it is proptim.functional with `Rows`."""
    cls = proptim.OPTIMIZERS[name]
    for way, module in MODULES.items():
        if way == "core" and _backend.missing_core:
            continue
        step = getattr(module, f"{name}_rows")
        w, other, rows, values = np.ones((4, 2)), np.ones((4, 2)), [3, 1, 3], np.ones((3, 2))
        assert step(w, rows, values, *step.init(w).values(), step=1) is None
        function = getattr(proptim.functional, name)
        function(other, proptim.Rows(rows, values), **function.init(other), step=1)
        assert w.tobytes() == other.tobytes()
        shown = inspect.signature(step).parameters
        assert list(shown)[: 3 + len(cls.states)] == ["param", "indices", "values", *cls.states]
        assert {key: shown[key].default for key in cls.hyper} == cls.hyper
        assert pickle.loads(pickle.dumps(step)) is step
        place = "c." * (way == "core") + name
        assert repr(step).startswith(f"<function proptim.numba.{place}_rows(param, indices, values")
