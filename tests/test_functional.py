"""Steps without an optimizer object, and helpers for collections: the same bits and checks as with the object."""

from __future__ import annotations

import gc
import inspect
import itertools
import math
import pickle
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import CASES, LOSSES, NAMES, STAGED

import proptim
from proptim import _backend, functional, schedules
from proptim.cli.selftest import gradient

LAYOUTS = {
    "dense": lambda a: a,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "strided": lambda a: np.repeat(a, 2, axis=0)[::2],
    "reversed": lambda a: a[:, ::-1].copy()[:, ::-1],
}


def call(name, param, grad, state, k, **options):
    """Step k of one optimizer by its function."""
    variant = options.get("variant")
    extra = {"loss": LOSSES[k], "prev_loss": LOSSES[k - 1] if k else math.inf} if variant == "irprop+" else {}
    getattr(functional, name)(param, grad, **state, step=k + 1, **extra, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", [{}, STAGED], ids=["plain", "staged"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_same_bits_as_the_object(name, options, stage, layout):
    """Function and object give the same parameters, gradients and state over several steps."""
    options = {**options, **stage}
    for dtype in ("f4", "f8", "c8", "c16"):
        rng = np.random.default_rng(1)
        start = rng.standard_normal((3, 5)).astype(dtype)
        mine, theirs = LAYOUTS[layout](start.copy()), LAYOUTS[layout](start.copy())
        opt = proptim.OPTIMIZERS[name]([theirs], **options)
        hyper = {k: v for k, v in options.items() if k not in ("grad_scale", "zero_grads", "flush_denormals")}
        state = getattr(functional, name).init(mine, **hyper)
        for k, loss in enumerate(LOSSES):
            grad = LAYOUTS[layout](gradient(rng, 15, np.dtype(dtype).type(0).real.dtype).reshape(3, 5).astype(dtype))
            other = grad.copy()
            call(name, mine, grad, state, k, **options)
            opt.step([other], loss=loss)
            kept = opt._stepper.parameters[0].state
            assert mine.tobytes() == theirs.tobytes()
            assert grad.tobytes() == other.tobytes()
            assert {n: a.tobytes() for n, a in state.items()} == {n: a.tobytes() for n, a in kept.items()}


@pytest.mark.parametrize("name", NAMES)
def test_defaults_and_schedules(name):
    """Defaults are the object's, state may be positional, and schedules are evaluated as the object does."""
    rng = np.random.default_rng(2)
    start, grad = rng.standard_normal((2, 9))
    decayed = {"weight_decay": schedules.linear(0.5, 0.0, 3), "clip_value": schedules.exponential(1.0, 0.5)}
    for options in ({}, decayed, {"grad_scale": schedules.exponential(1.0, 0.5)}):
        mine, theirs = start.copy(), start.copy()
        opt = proptim.OPTIMIZERS[name]([theirs], **options)
        state = getattr(functional, name).init(mine)
        for k in range(4):
            getattr(functional, name)(mine, grad, *state.values(), step=k + 1, **options)
            opt.step([grad])
        assert mine.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_threads_and_backends(name):
    """The same bits on every backend and number of threads."""
    seen = set()
    for backend in [b for b, missing in _backend.available_backends().items() if not missing]:
        for threads in (1, 2, "auto"):
            param = np.linspace(-1, 1, 300)
            state = getattr(functional, name).init(param)
            getattr(functional, name)(param, np.cos(param), **state, step=1, backend=backend, threads=threads)
            seen.add(param.tobytes())
    assert len(seen) == 1


def test_nadam_product():
    """Passing mu_product saves NAdam the computation from the first step on, and gives the same bits."""
    opt = proptim.NAdam([np.ones(3)])
    for _ in range(5):
        opt.step([np.ones(3)])
    results = []
    for product in ({}, {"mu_product": opt.state[0]["mu_product"]}):
        param, m, v = np.ones(3), np.ones(3), np.ones(3)
        functional.nadam(param, np.full(3, 0.5), m, v, step=6, **product)
        results.append(param.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize(("product", "error", "message"), [
    (-0.1, ValueError, "mu_product is -0.1; expected a product of decays, at least 0 and at most 1"),
    (math.nan, ValueError, "mu_product is nan; expected a product of decays, at least 0 and at most 1"),
    (1.5, ValueError, "mu_product is 1.5; expected a product of decays, at least 0 and at most 1"),
    (math.inf, ValueError, "mu_product is inf; expected a product of decays, at least 0 and at most 1"),
    (1, ValueError,
     "state has no 'mu_product', or it is 1 after 5 steps; expected the product of their decays, as the state of NAd"),
    ("0.5", TypeError, "mu_product is '0.5'; expected one number"),
    (np.full(3, 0.5), TypeError, "mu_product is array([0.5, 0.5, 0.5]); expected one number"),
    ([0.5], TypeError, "mu_product is [0.5]; expected one number"),
    (lambda step: 0.5, TypeError, "mu_product is <function"),
])  # fmt: skip
def test_products_that_are_none(product, error, message):
    """What no run has as its product of decays is refused in words, and changes nothing."""
    arrays = np.full((4, 3), 0.5)
    functional.nadam(*arrays.copy(), step=6, mu_product=0.5)
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        functional.nadam(*arrays, step=6, mu_product=product)
    assert (arrays == 0.5).all()


def test_numbers_of_a_clock_of_any_type():
    """One number, of whatever type; that of the last loss is checked as that of this one is."""
    found = set()
    for product in (0.25, np.float32(0.25), np.array([0.25]), torch.tensor(0.25)):
        arrays = np.full((4, 3), 0.5)
        functional.nadam(*arrays, step=6, mu_product=product)
        found.add(arrays.tobytes())
    assert len(found) == 1
    w, word = np.ones(3), functional.rprop.init(np.ones(3))["step_word"]
    for loss, label in ({"loss": 1.0, "prev_loss": "x"}, "prev_loss"), ({"loss": "x", "prev_loss": 1.0}, "loss"):
        with pytest.raises(TypeError, match=f"^{label} is 'x'; expected one number$"):
            functional.rprop(w, np.ones(3), word, variant="irprop+", **loss)
    assert (w == 1).all()


def test_arrays_in_place():
    """Tensors and buffers are stepped in their own memory."""
    param, square = torch.ones(3, dtype=torch.float64), memoryview(bytearray(24)).cast("d")
    functional.rmsprop(param, torch.ones(3, dtype=torch.float64), square, lr=0.1, alpha=0.75)
    assert square.tolist() == [0.25] * 3
    assert param.numpy() == pytest.approx(0.8, rel=1e-7)


OPTIONAL = [(name, *pair) for name, cls in proptim.OPTIMIZERS.items() for pair in cls.optional.items()]


@pytest.mark.parametrize(("name", "array", "switch"), OPTIONAL)
def test_hyperparameters_decide(backend, name, array, switch):
    """A state array whose hyperparameter is given and off, also by a schedule, is neither read nor written."""
    function, off = getattr(functional, name), proptim.OPTIMIZERS[name].hyper[switch]
    for value in (off, int(off), np.zeros(1), lambda steps: off) if switch == "momentum" else (off, np.bool_(off)):
        plain, given, extra = np.ones(3), np.ones(3), np.full(3, 7.0)
        for step in (1, 2):
            function(plain, np.ones(3), step=step, backend=backend, **function.init(plain))
            arrays = {**function.init(given), array: extra}
            function(given, np.ones(3), step=step, backend=backend, **arrays, **{switch: value})
        assert given.tobytes() == plain.tobytes()
        assert (extra == 7).all()


@pytest.mark.parametrize(("name", "array", "switch"), OPTIONAL)
def test_a_hyperparameter_that_was_forgotten(name, array, switch):
    """An array for it, in one plane or two, is refused where the hyperparameter is left out, also after legal calls."""
    function, cls = getattr(functional, name), proptim.OPTIMIZERS[name]
    off, on = cls.hyper[switch], 0.5 if switch == "momentum" else True
    message = (
        f"{name} got {array} and no {switch}, which is {off} then; expected {switch}= as in init(), or no {array}: "
        f"{switch}={off} makes a step that leaves it alone"
    )
    kinds = [{}, {"state_dtype": "bfloat16"}, *[{"state_dtype": {array: "int8"}}] * (switch != "centered")]
    for storage in kinds:
        w = np.linspace(-1, 1, 5000, dtype="f4")
        state = function.init(w, **storage, **{switch: on})
        assert array in state
        off_state = function.init(w, **storage)
        for _ in range(2):
            function(w.copy(), w, **{n: a.copy() for n, a in state.items()}, step=2, **{switch: on})
            function(w.copy(), w, **{n: a.copy() for n, a in off_state.items()}, step=2)
            before = [w.tobytes(), *(a.tobytes() for a in state.values())]
            with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
                function(w, np.ones(5000, "f4"), **state, step=2)
            if not any(n.endswith("_scale") for n in state):
                every = [state.get(n) for n in cls.states]
                with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
                    function(w, np.ones(5000, "f4"), *every, step=2)
            assert [w.tobytes(), *(a.tobytes() for a in state.values())] == before


@pytest.mark.parametrize("name", NAMES)
def test_wrong_calls(name):
    """Arguments that are missing, given twice, too many or unknown: the message names the function, and what it got."""
    function, states = getattr(functional, name), proptim.OPTIMIZERS[name].states
    w, g = np.ones(3), np.ones(3)
    again = {"lr": 1.0}
    arrays, most = ", ".join(("param", "grad", *states)), 2 + len(states)
    for call, message in {
        lambda: function(): f"{name} has no param; expected an array: pass param=",
        lambda: function(w): f"{name} has no grad; expected an array: pass grad=",
        lambda: function(grad=g): f"{name} has no param; expected an array: pass param=",
        lambda: function(w, g, param=w): f"{name} got param twice, by place and by name; expected it once",
        lambda: function(w, g, grad=g): f"{name} got grad twice, by place and by name; expected it once",
        lambda: function(w, g, None, **{states[0]: g}): (
            f"{name} got {states[0]} twice, by place and by name; expected it once"
        ),
        lambda: function(*[w] * (most + 1)): (
            f"{name} got {most + 1} arguments by place; expected at most {most}: {arrays}, and all others by name"
        ),
        **{
            lambda key=key: function(w, g, **{key: 1}): f"{name} got an unexpected keyword argument {key!r}"
            for key in ("self", "args", "keywords", "indices", "clip_norm", "_momentum_begun")
        },
        lambda: function(w, g, lr=1.0, **again): (
            f"proptim.functional.{name}() got multiple values for keyword argument 'lr'"
        ),
        lambda: function(w, g, **{1: 2}): "keywords must be strings",
        lambda: function(*1): f"proptim.functional.{name}() argument after * must be an iterable, not int",
        lambda: function(**1): f"proptim.functional.{name}() argument after ** must be a mapping, not int",
    }.items():
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            call()
    assert (w == 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    """Each function shows its arrays, hyperparameters and defaults."""
    function, cls = getattr(functional, name), proptim.OPTIMIZERS[name]
    shown = inspect.signature(function).parameters
    assert list(shown)[: 2 + len(cls.states)] == ["param", "grad", *cls.states]
    wanted = {
        p.name: p.default for p in inspect.signature(cls).parameters.values() if p.name not in ("params", "options")
    }
    assert {k: shown[k].default for k in wanted} == wanted
    assert repr(function).startswith(f"<function proptim.functional.{name}(param, grad")
    assert cls.__name__ in function.__doc__


ONES = np.ones(3)
REFUSED = [
    (lambda p, v: functional.rmsprop(p, ONES), TypeError, r"rmsprop has no square_avg; expected an array like param"),
    (lambda p, v: functional.rmsprop(p, ONES, None), TypeError, r"rmsprop has no square_avg; expected an array"),
    (lambda p, v: functional.rmsprop(p, ONES, v, momentum=0.5), TypeError, r"rmsprop has no momentum_buffer"),
    (lambda p, v: functional.rmsprop(p, ONES, v, *[ONES] * 3), TypeError, r"rmsprop got 6 arguments by place; ex"),
    (lambda p, v: functional.rmsprop(p, ONES, v, betas=1), TypeError, r"unexpected keyword argument 'betas'"),
    (lambda p, v: functional.rmsprop(p, ONES, v, clip_norm=1.0), TypeError, r"unexpected keyword argument 'clip_norm'"),
    (lambda p, v: functional.rmsprop(p, ONES, v, square_avg=v), TypeError, r"rmsprop got square_avg twice, by place"),
    (lambda p, v: functional.rmsprop(p, ONES, v, lr=-1.0), ValueError, r"Invalid learning rate: -1.0"),
    (lambda p, v: functional.rmsprop(p, ONES, v, nesterov=True), ValueError, r"Nesterov momentum requires a momentum"),
    (lambda p, v: functional.rmsprop(p, ONES, v, grad_scale=math.nan), ValueError, r"Invalid grad_scale value: nan"),
    (lambda p, v: functional.rmsprop(p, ONES, v, threads=0), ValueError, r"threads is 0; expected a whole number"),
    (lambda p, v: functional.rmsprop(p, ONES, v, backend="x"), ValueError, r"Invalid backend: 'x'"),
    (lambda p, v: functional.rmsprop(p, ONES, v, backend=""), ValueError, r"Invalid backend: ''"),
    (lambda p, v: functional.rmsprop(p, ONES, v, grad_scale=lambda step: 1.0), TypeError, r"rmsprop counts its steps"),
    (lambda p, v: functional.rmsprop(p, ONES, v, step=True), ValueError, r"step is True; expected a whole number"),
    (lambda p, v: functional.rmsprop(p, ONES, v, step=0), ValueError, r"step is 0; expected a whole number"),
    (lambda p, v: functional.rmsprop(p, ONES, v, step=1.5), ValueError, r"step is 1.5; expected a whole number"),
    (lambda p, v: functional.adam(p, ONES, v, v.copy(), step=2**63), ValueError, r"step is 9.*, below 2\*\*63"),
    (lambda p, v: functional.adam(p, ONES, v, v.copy(), step=10**400), ValueError, r"step is 1000.*, below 2\*\*63"),
    (lambda p, v: functional.adam(p, ONES, v, v.copy(), step=np.ones(2, int)), ValueError, r"step is array\(\[1, 1\]"),
    (lambda p, v: functional.adam(p, ONES, v, v.copy(), step=""), ValueError, r"step is ''; expected a whole number"),
    (lambda p, v: functional.rmsprop([1.0], ONES, v), TypeError, r"param is list; expected a NumPy array"),
    (lambda p, v: functional.rmsprop(p, None, v), TypeError, r"grad is NoneType; expected a NumPy array"),
    (lambda p, v: functional.rmsprop(p, ONES, v.astype("f4")), TypeError, r"square_avg is float32; expected float64"),
    (lambda p, v: functional.rmsprop(p, ONES[:2], v), ValueError, r"grad has shape \(2,\); expected \(3,\), the shape"),
    (lambda p, v: functional.rmsprop(p, ONES, v[:2]), ValueError, r"square_avg has shape \(2,\); expected \(3,\)"),
    (lambda p, v: functional.rmsprop(p, p, v), ValueError, r"share memory; expected separate memory"),
    (lambda p, v: functional.rmsprop(p, ONES, p), ValueError, r"share memory; expected separate memory"),
    (lambda p, v: functional.rmsprop(p, v[::-1], v), ValueError, r"share memory; expected separate memory"),
    (lambda p, v: functional.rmsprop(p, ONES, np.broadcast_to(v[:1], 3)), ValueError, r"square_avg is read-only"),
    (lambda p, v: functional.rmsprop(np.broadcast_to(p[:1], 3), ONES, v), ValueError, r"param is read-only"),
    (lambda p, v: functional.rmsprop(p, np.broadcast_to(1.0, 3), v, zero_grads=True), ValueError, r"grad is read-only"),
    (lambda p, v: functional.rprop(p, ONES, v, variant="irprop+"), ValueError, r"irprop\+ compares losses; expected"),
    (lambda p, v: functional.rmsprop(p, ONES, v, zero_grads="nan"), TypeError, r"Invalid zero_grads: 'nan' \(expected"),
    (lambda p, v: functional.rmsprop(p, ONES, v, flush_denormals=1), TypeError, r"Invalid flush_denormals: 1 \(expec"),
]  # fmt: skip


@pytest.mark.parametrize(("action", "error", "message"), REFUSED)
def test_errors(action, error, message):
    """A call that is refused says why and changes nothing."""
    param, state = np.arange(3.0), np.full(3, 0.5)
    with pytest.raises(error, match=message):
        action(param, state)
    assert (param == np.arange(3.0)).all()
    assert (state == 0.5).all()
    assert (ONES == 1).all()


# Calls like an earlier one -------------------------------------------------------------------------------------------

STUB = Path(__file__).parents[1] / "tools/functional_stub.py"


def settled(name, arrays, **options):
    """Make a valid call, so that the next one can repeat it."""
    getattr(functional, name)(*(a.copy() for a in arrays), **options)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_alike_is_the_same(name, options):
    """A call that repeats another one without checks gives the bits of a call with all checks, at every step."""
    function = getattr(functional, name)
    if options.get("variant") == "irprop+":
        options = {**options, "variant": "irprop-"}
    rng = np.random.default_rng(5)
    given = options
    for dtype, stages in itertools.product(("f4", "f8"), ({}, STAGED)):
        options = {**given, **stages}
        start = rng.standard_normal((5, 3)).astype(dtype)
        hyper = {k: v for k, v in options.items() if k in proptim.OPTIMIZERS[name].hyper}
        mine, theirs = ([start.copy(), *function.init(start, **hyper).values()] for _ in range(2))
        used = list(function.init(start, **hyper))
        for step in (1, 2, 3, 2, 1, 1000):
            grad = rng.standard_normal((5, 3)).astype(dtype)
            other = grad.copy()
            for _ in range(2):
                grad[...] = other
                function(mine[0], grad, **dict(zip(used, mine[1:], strict=True)), step=step, **options)
                again = other.copy()
                function._step(theirs[0], again, **dict(zip(used, theirs[1:], strict=True)), step=step, **options)
                assert grad.tobytes() == again.tobytes()
                assert [a.tobytes() for a in mine] == [a.tobytes() for a in theirs]


@pytest.mark.parametrize(("action", "error", "message"), REFUSED)
def test_errors_after_a_like_call(action, error, message):
    """Repeating a call without checks accepts nothing that the checks would refuse."""
    for options in ({}, {"zero_grads": True}, {"step": 1}):
        functional.rmsprop(np.ones(3), np.ones(3), np.ones(3), **options)
    test_errors(action, error, message)


def test_values_that_are_equal():
    """True is not 1, nor -0.0 the same as 0.0, though Python finds them equal."""
    functional.sgd(np.ones(3), np.ones(3), maximize=True)
    with pytest.raises(TypeError, match="Invalid maximize: 1 "):
        functional.sgd(np.ones(3), np.ones(3), maximize=1)
    found = []
    for scale in (0.0, -0.0, 0.0):
        w = np.zeros(1)
        functional.sgd(w, np.ones(1), grad_scale=scale, lr=1.0)
        found.append(math.copysign(1, w[0]))
    expected = []
    for scale in (0.0, -0.0, 0.0):
        w = np.zeros(1)
        functional.sgd._step(w, np.ones(1), grad_scale=scale, lr=1.0)
        expected.append(math.copysign(1, w[0]))
    assert found == expected
    for lr in (np.float64(0.5), np.float32(0.5), 0.5, np.int8(1), 1, True):
        w = np.ones(2)
        functional.sgd(w, np.ones(2), lr=lr)
        assert w.tolist() == [1 - float(lr)] * 2


def test_memory_is_looked_at_each_time():
    """Arrays with other memory, shapes, dtypes or locks, and overlaps, after calls that were like these."""
    w, g, v = np.ones(8), np.full(8, 0.5), np.zeros(8)
    for _ in range(3):
        functional.rmsprop(w, g, v)
    with pytest.raises(ValueError, match="share memory"):
        functional.rmsprop(w, w, v)
    with pytest.raises(ValueError, match="share memory"):
        functional.rmsprop(w[:6], g[:6], w[2:])
    with pytest.raises(ValueError, match="has shape"):
        functional.rmsprop(w, g[:7], v)
    with pytest.raises(ValueError, match="has shape"):
        functional.rmsprop(w, g.reshape(2, 4), v)
    with pytest.raises(TypeError, match="square_avg is float32"):
        functional.rmsprop(w, g, v.astype("f4"))
    w.flags.writeable = False
    with pytest.raises(ValueError, match="param is read-only"):
        functional.rmsprop(w, g, v)
    w.flags.writeable = True
    w.resize(3, refcheck=False)
    functional.rmsprop(w, np.ones(3), np.zeros(3))
    w[:] = 7
    expected = w.copy()
    functional.rmsprop._step(expected, np.ones(3), np.zeros(3))
    functional.rmsprop(w, np.ones(3), np.zeros(3))
    assert w.tobytes() == expected.tobytes()
    half, other = np.ones(6), np.ones(6)  # every second element: not one run of memory
    functional.rmsprop(half[::2], np.ones(3), other[1::2])
    assert half[1::2].tolist() == [1, 1, 1] != half[::2].tolist()


def test_nothing_is_kept_alive():
    """No array of a call is held after it."""
    arrays = [np.ones(4), np.ones(4), np.zeros(4)]
    gone = [weakref.ref(a) for a in arrays]
    for _ in range(3):
        functional.rmsprop(*arrays, lr=0.1)
    del arrays
    gc.collect()
    assert [r() for r in gone] == [None] * 3


def test_many_different_calls():
    """An lr that is another at every step, and two threads."""

    def run(w):
        for k in range(1, 400):
            functional.adam(w, np.cos(w), *state[id(w)], step=k, lr=0.1 / k)

    mine = [np.linspace(-1, 1, 9) for _ in range(3)]
    state = {id(w): (np.zeros(9), np.zeros(9)) for w in mine}
    threads = [threading.Thread(target=run, args=(w,)) for w in mine[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(mine[0])
    assert len({w.tobytes() for w in mine}) == 1


def test_pickled_by_name():
    """A function goes to another process by its name."""
    assert all(pickle.loads(pickle.dumps(getattr(functional, n))) is getattr(functional, n) for n in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_step_may_always_be_given(name):
    """Also where it changes nothing; rules that count cannot do without."""
    function = getattr(functional, name)
    w, other = np.ones(3), np.ones(3)
    function(w, np.full(3, 0.5), **function.init(w), step=5)
    if name in ("adam", "adamw", "nadam", "radam", "adamax"):
        with pytest.raises(TypeError, match=f"^{name} counts its steps; expected step=, the number of this one, from"):
            function(other, np.full(3, 0.5), **function.init(other))
        assert (other == 1).all()
    else:
        function(other, np.full(3, 0.5), **function.init(other))
        assert w.tobytes() == other.tobytes()


@pytest.mark.skipif(not STUB.is_file(), reason="no tools/ beside tests/")
def test_stub():
    """functional.pyi has the signatures that the functions have."""
    done = subprocess.run([sys.executable, str(STUB), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_errstate_of_the_caller(name):
    """np.errstate(all="raise") around a call changes nothing."""
    results = []
    for mode in ("ignore", "raise"):
        for backend in [b for b, missing in _backend.available_backends().items() if not missing]:
            w, g = np.full(6, 3e38, "f4"), np.array([3e38, -3e38, 1e-45, 0, math.inf, math.nan], "f4")
            state = getattr(functional, name).init(w)
            grads = [g.copy(), np.full(3, 1e300)]
            with np.errstate(all=mode):
                getattr(functional, name)(w, g, **state, step=1, backend=backend, grad_scale=0.5, weight_decay=0.5)
                norm = proptim.clip_grad_norm(grads, 1e-3)
                flat, _ = proptim.flatten([g, g])
                whole = proptim.global_norm([g])
            results.append([a.tobytes() for a in (w, *state.values(), *grads, flat)] + [repr(norm), repr(whole)])
    assert all(each == results[0] for each in results)


# Collections ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_flatten_steps_alike(name):
    """Stepping one flat buffer gives the bits of stepping the arrays one by one."""
    rng = np.random.default_rng(3)
    arrays = [
        np.asfortranarray(rng.standard_normal((4, 3))),
        rng.standard_normal(7)[::-1],
        np.array(2.0),
        np.empty((0, 2)),
    ]
    grads = [rng.standard_normal(a.shape) for a in arrays]
    flat, views = proptim.flatten(arrays)
    flat_grad, _ = proptim.flatten(grads)
    alone = [a.copy() for a in arrays]
    for params, given in (([flat], [flat_grad]), (alone, grads)):
        opt = proptim.OPTIMIZERS[name](params, lr=0.1, clip_value=0.5)
        for _ in range(3):
            opt.step(given)
    assert [v.tobytes() for v in views] == [a.tobytes() for a in alone]


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_flatten(dtype):
    """One aligned buffer in the order given, views of the original shapes, the originals untouched."""
    arrays = {"w": np.arange(6, dtype=dtype).reshape(2, 3), "b": np.array(6, dtype), "none": np.empty((0, 4), dtype)}
    flat, views = proptim.flatten(arrays)
    assert flat.dtype == dtype
    assert flat.tolist() == list(range(7))
    assert flat.ctypes.data % 64 == 0
    assert {k: v.shape for k, v in views.items()} == {"w": (2, 3), "b": (), "none": (0, 4)}
    views["w"][0, 0], views["b"][...] = 9, 8
    assert (flat[0], flat[-1], arrays["w"][0, 0]) == (9, 8, 0)
    again, listed = proptim.flatten(a for a in arrays.values())
    assert [v.shape for v in listed] == [(2, 3), (), (0, 4)]
    assert again.tolist() == list(range(7))


def test_global_norm():
    """The norm of everything in float64, whatever the collection, layout and dtype."""
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((70, 90)).astype("f4"), rng.standard_normal(50) + 1j
    expected = proptim.global_norm([a, b])
    assert expected == pytest.approx(math.hypot(np.linalg.norm(a.astype("f8")), np.linalg.norm(b)), rel=1e-14)
    for other in ({"a": a, "b": b}, (a, None, b), iter([a, b]), [np.asfortranarray(a), b], [torch.tensor(a), b]):
        assert proptim.global_norm(other) == expected
    assert proptim.global_norm([]) == proptim.global_norm([None, np.empty(0)]) == 0.0
    assert proptim.global_norm([np.full(2, 1e200)]) == math.inf
    assert math.isnan(proptim.global_norm([np.array([1.0, math.nan])]))
    assert proptim.global_norm([np.float64(-3.0)]) == 3.0


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
def test_clip_grad_norm(max_norm):
    """As torch's clip_grad_norm_: gradients scaled in place, the norm before returned."""
    rng = np.random.default_rng(5)
    grads = [rng.standard_normal((4, 6)).T, rng.standard_normal(5) + 1j * rng.standard_normal(5), np.array(3.0)]
    params = [torch.nn.Parameter(torch.tensor(g)) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = torch.tensor(g)
    theirs = torch.nn.utils.clip_grad_norm_(params, max_norm)
    for wrap in (list, dict, iter):
        mine = [g.copy(order="K") for g in grads]
        given = dict(enumerate(mine)) if wrap is dict else wrap([*mine, None])
        assert proptim.clip_grad_norm(given, max_norm) == pytest.approx(theirs.item(), rel=1e-14)
        for m, p in zip(mine, params, strict=True):
            np.testing.assert_allclose(m, p.grad.numpy(), rtol=1e-14)


def test_clip_grad_norm_of_what_is_not_finite():
    """An infinite norm clips to nothing or NaN, a NaN makes everything NaN: visibly, as in torch."""
    for bad, expected in [(math.inf, [0.0, math.nan]), (math.nan, [math.nan, math.nan])]:
        grads, theirs = [np.array([1.0, bad])], torch.nn.Parameter(torch.ones(2))
        theirs.grad = torch.tensor([1.0, bad])
        with np.errstate(invalid="ignore"):
            proptim.clip_grad_norm(grads, 1.0)
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        np.testing.assert_array_equal(grads[0], expected)
        np.testing.assert_array_equal(theirs.grad.numpy(), expected)


LOCKED = np.broadcast_to(1.0, 3)


@pytest.mark.parametrize(("action", "error", "message"), [
    (lambda g: proptim.clip_grad_norm([g], -1.0), ValueError, "Invalid max_norm value: -1.0"),
    (lambda g: proptim.clip_grad_norm([g], "1"), TypeError, "Invalid max_norm value: '1'"),
    (lambda g: proptim.clip_grad_norm(g, 1.0), TypeError, "grads is ndarray; expected a sequence or dict of arrays"),
    (lambda g: proptim.clip_grad_norm(None, 1.0), TypeError, "grads is NoneType; expected a sequence or dict"),
    (lambda g: proptim.clip_grad_norm([g, LOCKED], 1.0), ValueError, r"grads\[1\] is read-only; expected"),
    (lambda g: proptim.clip_grad_norm({"a": g, "b": g[1:]}, 1.0), ValueError, r"grads\[.*\] and .* share memory"),
    (lambda g: proptim.clip_grad_norm([g, [1.0]], 1.0), TypeError, r"grads\[1\] is list; expected a NumPy array"),
    (lambda g: proptim.global_norm([g.astype(int)]), TypeError, r"grads\[0\] is int64; supported: float32"),
    (lambda g: proptim.flatten(g), TypeError, "params is ndarray; expected a sequence or dict of arrays"),
    (lambda g: proptim.flatten(3), TypeError, "params is int; expected a sequence or dict of arrays"),
    (lambda g: proptim.flatten([]), ValueError, "params is empty; expected at least one array"),
    (lambda g: proptim.flatten({"a": g, "b": g.astype("f4")}), TypeError, r"params\['b'\] is float32; expected"),
    (lambda g: proptim.flatten([g, g.astype("f2")]), TypeError, r"params\[1\] is float16; expected float64, the dtype"),
])  # fmt: skip
def test_refused_collections(action, error, message):
    """Collections that cannot be clipped, measured or flattened are refused unchanged."""
    grad = np.array([3.0, 4.0, 12.0])
    with pytest.raises(error, match=message):
        action(grad)
    assert grad.tolist() == [3.0, 4.0, 12.0]


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8"])
def test_zeros_that_init_did_not_make(backend, dtype):
    """Rprop's word is never 0: zeros are refused, also right after a call of the same arguments that was legal."""
    w, grad = np.ones(3, dtype), np.ones(3, dtype)
    legal = functional.rprop.init(w)["step_word"]
    for _ in range(3):
        functional.rprop(w, grad, legal)
    before = w.copy()
    for word in (np.zeros_like(legal), np.concatenate([np.zeros(1, dtype), legal[1:]])):
        kept = word.copy()
        with pytest.raises(ValueError, match=r"^step_word has zeros.*expected what functional.rprop.init\(param\)"):
            functional.rprop(w, grad, word)
        assert word.tobytes() == kept.tobytes()
    assert w.tobytes() == before.tobytes()
    functional.rprop(w[:0], grad[:0], legal[:0])
