"""`ema`, `average` and `publish` of functions: the bits and the refusals of the objects that have the same options."""

from __future__ import annotations

import inspect
import itertools
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from calls import CASES, LOSSES, NAMES, OF_CALL, OF_INIT, STAGED

import proptim
import proptim.numba
from proptim import _backend, functional, schedules
from proptim._formats import BFLOAT16, FLOAT16, rounded
from proptim.cli import selftest

BF16 = np.dtype(ml_dtypes.bfloat16)
AT_RANDOM = {"rounding": "stochastic", "seed": 3}
KINDS = {
    "float32": ("f4", {}, BF16),
    "float32 staged": ("f4", STAGED, np.float16),
    "float64": ("f8", STAGED, None),
    "complex64": ("c8", {}, None),
    "complex128": ("c16", {}, None),
    "split": (BF16, {"weight_decay": 0.1, "decoupled_weight_decay": True}, None),
    "bfloat16 and float32": (BF16, {"master": "float32"}, None),
    "bfloat16 alone": (BF16, {"master": None, "state_dtype": "bfloat16", **AT_RANDOM}, None),
    "float16": ("f2", {"state_dtype": "bfloat16"}, None),
    "float16 alone": ("f2", {"master": None, "zero_grads": True}, None),
    "state of 16 bits": ("f4", {"state_dtype": "bfloat16", **AT_RANDOM}, BF16),
    "state of 8 bits": ("f4", {"state_dtype": "int8", "cast_grads": True}, np.float16),
}
"""The dtype of the parameter, options, and the dtype of its copy if it has one."""


def without(options, *keys):
    return {key: value for key, value in options.items() if key not in keys}


def assert_copy(w, w16):
    """Of every number, to the bit."""
    kind = BFLOAT16 if w16.dtype == BF16 else FLOAT16
    assert np.ascontiguousarray(w16).tobytes() == np.asarray(rounded(np.ascontiguousarray(w), kind)).tobytes()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_bits_of_the_object(backend, name, options):
    """Weights, gradients, state, masters, averages and copies of every kind of parameter after every step."""
    function = getattr(functional, name)
    losing = options.get("variant") == "irprop+"
    for i, (dtype, more, copied) in enumerate(KINDS.values()):
        small = more.get("state_dtype") != "int8"
        given = {**options, **more, **({} if small else selftest.in_one_byte(name, options))}
        rng, shape = np.random.default_rng(i), (37, 5) if small else (70, 60)
        start = rng.standard_normal(shape).astype(dtype)
        mine, theirs = start.copy(), start.copy()
        copies = [None if copied is None else np.full(shape, 9, copied) for _ in range(2)]
        ema = schedules.linear(0.1, 0.9, 3) if i % 2 else 0.9
        opt = proptim.OPTIMIZERS[name]([theirs], **given, ema=ema, publish=copies[:1])
        (p,) = opt._stepper.parameters
        state = function.init(mine, **without(given, *OF_CALL), ema=ema)
        for k, loss in enumerate(LOSSES):
            grad = rng.standard_normal(shape).astype("f8" if given.get("cast_grads") else dtype)
            other = grad.copy()
            opt.step([other], loss=loss)
            extra = {"loss": loss, "prev_loss": LOSSES[k - 1] if k else math.inf} if losing else {}
            function(mine, grad, **state, step=k + 1, ema=ema, publish=copies[1], **extra, **without(given, *OF_INIT))
            assert (mine.tobytes(), grad.tobytes()) == (theirs.tobytes(), other.tobytes())
            assert state["average"].dtype == opt.ema[0].dtype
            kept = {**p.state, **({} if p.plane is None else {"master": p.plane}), "average": opt.ema[0]}
            assert {n: a.tobytes() for n, a in state.items()} == {n: kept[n].tobytes() for n in state}
            assert {*kept} - {*state} == {"ema"}
            if copied is not None:
                assert copies[0].tobytes() == copies[1].tobytes()
                assert_copy(mine, copies[1])


@pytest.mark.parametrize("name", NAMES)
def test_threads(backend, name):
    """A parameter in parts for threads, longer than a block, with elements at the end that fill no vector."""
    function, found = getattr(functional, name), set()
    for threads in (1, 3):
        w, w16 = np.linspace(-1, 1, 20_001, dtype="f4"), np.empty(20_001, BF16)
        state = function.init(w, ema=0.75)
        for step in (1, 2):
            function(w, np.cos(w), **state, step=step, ema=0.75, publish=w16, threads=threads, backend=backend)
        assert_copy(w, w16)
        found.add(b"".join(a.tobytes() for a in (w, *state.values())))
    assert len(found) == 1


def test_the_formula(backend):
    """An average that the caller has made, of weights that make the arithmetic exact."""
    w, average = np.ones(5, "f4"), memoryview(bytearray(20)).cast("f")
    functional.sgd(w, np.full(5, 0.5, "f4"), lr=1.0, ema=0.75, average=average)
    assert average.tolist() == [0.125] * 5
    functional.sgd(w, np.full(5, 0.5, "f4"), lr=1.0, ema=0, average=average)
    assert average.tolist() == w.tolist() == [0.0] * 5


def test_copies_of_any_strides(backend):
    """Nothing between their elements is written; uint16 is bfloat16."""
    rng = np.random.default_rng(1)
    for dtype, at in itertools.product((np.float16, BF16, np.uint16), (np.s_[::2, ::2], np.s_[::-2, ::-2])):
        w, room = rng.standard_normal((9, 7)).astype("f4"), np.full((18, 14), 3, dtype)
        functional.lion(w, np.ones_like(w), np.zeros_like(w), publish=room[at])
        assert_copy(w, room[at].view(BF16) if dtype == np.uint16 else room[at])
        room[at] = 3
        assert (room == 3).all()


def test_copies_of_rows(backend):
    """Those that are stepped."""
    table, t16 = np.ones((6, 3), "f4"), np.full((6, 3), 7, np.float16)
    functional.sgd(table, proptim.Rows([1, 4, 1], np.ones((3, 3), "f4")), lr=0.25, publish=t16)
    assert t16[:, 0].tolist() == [7, 0.5, 7, 7, 0.75, 7]


@pytest.mark.parametrize("name", NAMES)
def test_init(name):
    """It begins with the weights, in memory of its own; without `ema` there is none."""
    function = getattr(functional, name)
    rng = np.random.default_rng(2)
    for (dtype, more, _), ema in itertools.product(KINDS.values(), (0.5, lambda step: 0.5)):
        for w in (rng.standard_normal((4, 6)).astype(dtype)[::-1, ::2], np.ones((), dtype), np.empty((0, 3), dtype)):
            storage = without(more, *OF_CALL)
            if name == "rprop" and more.get("state_dtype") == "int8":
                storage = selftest.in_one_byte(name, storage)
            made = function.init(w, **storage, ema=ema)
            average = made.pop("average")
            kept = {"f8": "f8", "c8": "c8", "c16": "c16"}.get(dtype, "f4")
            assert (average.dtype, average.shape) == (kept, w.shape)
            np.testing.assert_array_equal(average, w.astype(kept))
            assert not np.shares_memory(average, w)
            plain = function.init(w, **storage)
            assert {n: a.tobytes() for n, a in made.items()} == {n: a.tobytes() for n, a in plain.items()}


def test_signatures():
    """All three are keywords with the default None, in every function."""
    for name in NAMES:
        shown = inspect.signature(getattr(functional, name)).parameters
        assert [(shown[n].kind, shown[n].default) for n in ("ema", "average", "publish")] == [
            (inspect.Parameter.KEYWORD_ONLY, None)
        ] * 3
    with pytest.raises(TypeError, match=r"^sgd got an unexpected keyword argument 'use_ema': did you mean 'ema'\?"):
        functional.sgd(np.ones(2), np.ones(2), use_ema=True)
    with pytest.raises(TypeError, match=r"^sgd got an unexpected keyword argument 'ema_momentum': did you mean 'ema'"):
        functional.sgd.init(np.ones(2), ema_momentum=0.9)


def test_tensors(backend):
    """autograd is told of all that is written."""
    w, average, w16 = torch.ones(5), torch.ones(5), torch.zeros(5, dtype=torch.bfloat16)
    half, master = torch.ones(5, dtype=torch.float16), torch.ones(5)
    for _ in range(2):
        before = [t._version for t in (w, average, w16, half, master)]
        functional.sgd(w, torch.ones(5), lr=0.5, ema=0.5, average=average, publish=w16)
        functional.sgd(half, torch.ones(5), lr=0.5, master=master)
        assert all(t._version > v for t, v in zip((w, average, w16, half, master), before, strict=True))
    assert w.tolist() == w16.tolist() == half.tolist() == master.tolist() == [0.0] * 5
    assert average.tolist() == [0.375] * 5


# Calls like an earlier one -------------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.skipif(bool(_backend.missing_core), reason=_backend.missing_core)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_calls_with_averages_are_repeated(name, options):
    """Without the checks, and with the same bits; but not without an average, or with one more."""
    function, rng = getattr(functional, name), np.random.default_rng(5)
    if options.get("variant") == "irprop+":
        options = {**options, "variant": "irprop-"}
    for dtype, stages in itertools.product(("f4", "f8"), ({}, STAGED)):
        given = {**options, **stages, "ema": 0.75}
        w = rng.standard_normal((5, 3)).astype(dtype)
        state = function.init(w, **without(given, *OF_CALL))
        mine, theirs = ((w.copy(), {n: a.copy() for n, a in state.items()}) for _ in range(2))
        function(w, np.ones_like(w), **state, step=2, **given)
        for step in (2, 3, 1000):
            grads = [rng.standard_normal((5, 3)).astype(dtype)]
            grads.append(grads[0].copy())
            assert function.alike.step((mine[0], grads[0]), {**mine[1], "step": step, **given})
            function._step(theirs[0], grads[1], **theirs[1], step=step, **given)
            assert grads[0].tobytes() == grads[1].tobytes()
            assert mine[0].tobytes() == theirs[0].tobytes()
            assert [a.tobytes() for a in mine[1].values()] == [a.tobytes() for a in theirs[1].values()]
        keywords = {**mine[1], "step": 2, **given}
        for refused in ({"average": None}, {"ema": None}, {"ema": 0.5}, {"publish": np.empty((5, 3), np.float16)}):
            assert not function.alike.step((mine[0], grads[0]), {**keywords, **refused})
        assert mine[0].tobytes() == theirs[0].tobytes()


# What is refused -----------------------------------------------------------------------------------------------------


def locked(array):
    array.flags.writeable = False
    return array


REFUSED = [
    (lambda a: {"average": None}, TypeError, r"adam got ema and no average; expected both or neither: init\("),
    (lambda a: {"ema": None}, TypeError, r"adam got average and no ema; expected both or neither: init\("),
    (lambda a: {"ema": 1.0}, ValueError, r"Invalid ema value: 1.0 \(expected a number >= 0 and < 1\)"),
    (lambda a: {"ema": -0.1}, ValueError, r"Invalid ema value: -0.1 \(expected a number >= 0 and < 1\)"),
    (lambda a: {"ema": math.nan}, ValueError, r"Invalid ema value: nan \(expected a number >= 0 and < 1\)"),
    (lambda a: {"ema": lambda steps: steps}, ValueError, r"Invalid ema value: 1 \(expected a number >= 0 and < 1\)"),
    (lambda a: {"ema": True}, TypeError, r"Invalid ema value: True \(expected a number >= 0 and < 1, or None\)"),
    (lambda a: {"ema": False}, TypeError, r"Invalid ema value: False \(expected a number >= 0 and < 1, or None\)"),
    (lambda a: {"ema": "0.9"}, TypeError, r"Invalid ema value: '0.9' \(expected a number"),
    (lambda a: {"ema": [0.9, 0.99]}, TypeError, r"Invalid ema value: \(0.9, 0.99\) \(expected a number"),
    (lambda a: {"average": [0.0]}, TypeError, r"average is list; expected a NumPy array"),
    (lambda a: {"average": np.zeros((6, 4))}, TypeError, r"average is float64; expected float32, the dtype of param"),
    (lambda a: {"average": np.zeros((6, 4), "c8")}, TypeError, r"average is complex64; expected float32, the dtype of"),
    (lambda a: {"average": np.zeros((6, 4), BF16)}, TypeError, r"average is bfloat16; expected float32, the dtype of"),
    (lambda a: {"average": np.zeros((6, 4), "f2")}, TypeError, r"average is float16; expected float32, the dtype of"),
    (lambda a: {"average": np.zeros((6, 4), "u2")}, TypeError, r"average is uint16; supported: float32"),
    (lambda a: {"average": np.zeros((4, 6), "f4")}, ValueError, r"average has shape \(4, 6\); expected \(6, 4\)"),
    (lambda a: {"average": locked(np.zeros((6, 4), "f4"))}, ValueError, r"average is read-only; expected"),
    (lambda a: {"average": a["param"]}, ValueError, r"share memory; expected separate memory"),
    (lambda a: {"average": a["grad"]}, ValueError, r"share memory; expected separate memory"),
    (lambda a: {"average": a["exp_avg_sq"][::-1]}, ValueError, r"share memory; expected separate memory"),
    (lambda a: {"exp_avg": a["average"]}, ValueError, r"share memory; expected separate memory"),
    (lambda a: {"publish": a["average"].view("f2")[:, :4]}, ValueError, r"share memory; expected separate memory"),
    (lambda a: {"publish": a["param"].view("f2")[:, ::2]}, ValueError, r"share memory; expected separate memory"),
    (lambda a: {"publish": [0.0]}, TypeError, r"publish is list; expected a NumPy array"),
    (lambda a: {"publish": np.zeros((6, 4), "f4")}, TypeError, r"publish is float32; expected bfloat16 or float16"),
    (lambda a: {"publish": np.zeros((6, 4), "i1")}, TypeError, r"publish is int8; supported: float32"),
    (lambda a: {"publish": np.zeros(24, "f2")}, ValueError, r"publish has shape \(24,\); expected \(6, 4\), the shape"),
    (lambda a: {"publish": locked(np.zeros((6, 4), "f2"))}, ValueError, r"publish is read-only; expected"),
    (
        lambda a: {"grad": proptim.Rows([1], np.ones((1, 4), "f4"))},
        ValueError,
        r"grad is a gradient of rows, and param has an average of its weights, which moves in all rows at each step",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_what_is_refused(backend, change, error, message):
    """In words, with nothing changed, also right after calls that differ in nothing else."""
    arrays = {"param": np.ones((6, 4), "f4"), "grad": np.full((6, 4), 0.5, "f4")}
    arrays |= functional.adam.init(arrays["param"], ema=0.9)
    for called in (False, True):
        if called:
            for step in (1, 2):
                functional.adam(**{n: a.copy() for n, a in arrays.items()}, step=step, ema=0.9)
        before = {n: a.tobytes() for n, a in arrays.items()}
        with pytest.raises(error, match=f"^{message}" if "share" not in message else message):
            functional.adam(**{**arrays, "step": 2, "ema": 0.9, **change(arrays)})
        assert {n: a.tobytes() for n, a in arrays.items()} == before


@pytest.mark.parametrize("dtype", ["f8", "c8", "f2", BF16], ids=str)
def test_copies_are_of_float32(dtype):
    """As with `publish` of an object."""
    w, w16 = np.ones(3, dtype), np.zeros(3, np.float16)
    message = rf"^publish is for param, which is {np.dtype(dtype).name}; expected None there: copies are of float32"
    with pytest.raises(TypeError, match=message):
        functional.sgd(w, w.copy(), lr=0.5, publish=w16)
    with pytest.raises(
        TypeError,
        match=rf"^average is float32; expected {np.dtype(dtype).name}"
        if dtype in ("f8", "c8")
        else r"^average is float16; expected float32, in which state of param",
    ):
        functional.sgd(w, w.copy(), lr=0.5, ema=0.5, average=w16.astype("f4" if dtype in ("f8", "c8") else "f2"))
    assert (w == 1).all()
    assert (w16 == 0).all()


@pytest.mark.parametrize("ema", [1.0, -0.1, math.nan, True, "0.9"])
def test_init_refuses(ema):
    """What a step would refuse."""
    with pytest.raises((ValueError, TypeError), match=r"^Invalid ema value: "):
        functional.adam.init(np.ones(3), ema=ema)
    with pytest.raises((ValueError, TypeError), match=r"^Invalid ema value: "):
        proptim.Adam([np.ones(3)], ema=ema)


def test_a_schedule_requires_the_step():
    """Without its number a schedule has no value."""
    w, average = np.ones(3), np.ones(3)
    with pytest.raises(TypeError, match=r"^sgd counts its steps; expected step="):
        functional.sgd(w, np.ones(3), lr=0.5, ema=lambda steps: 0.5, average=average)
    assert w.tolist() == average.tolist() == [1.0] * 3


# Numba ---------------------------------------------------------------------------------------------------------------


def test_functions_of_numba_that_are_called_from_python(backend):
    """They are these functions."""
    w, w16 = np.ones(3, "f4"), np.zeros(3, np.uint16)
    state = proptim.numba.sgd.init(w, ema=0.5)
    proptim.numba.sgd(w, np.ones(3, "f4"), **state, lr=0.5, ema=0.5, publish=proptim.numba.bfloat16(w16))
    assert w.tolist() == w16.view(BF16).tolist() == [0.5] * 3
    assert state["average"].tolist() == [0.75] * 3
