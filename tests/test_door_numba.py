"""proptim.numba: every optimizer called from code that Numba compiles, as text and from the core, with equal bits."""

from __future__ import annotations

import ctypes
import inspect
import json
import math
import pickle
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import proptim
from proptim import _backend, _formats, functional
from proptim._formats import rounded, shown
from proptim._storage import DTYPES
from proptim.cli import selftest

numba = pytest.importorskip("numba", exc_type=ModuleNotFoundError)
import proptim.numba  # noqa: E402

PAGE = Path(__file__).parents[1] / "docs/embed/numba.md"
pytestmark = pytest.mark.once

needs_core = pytest.mark.skipif(bool(_backend.missing_core), reason=_backend.missing_core)
MODULES = {"text": proptim.numba, "core": proptim.numba.c}
each_way = pytest.mark.parametrize("way", ["text", pytest.param("core", marks=needs_core)])
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_optimizer = pytest.mark.parametrize(("name", "cls"), proptim.OPTIMIZERS.items(), ids=proptim.OPTIMIZERS)
LOSSES = (math.inf, 3.0, 2.0, 2.5, 1.0)
STAGES = {
    "weight_decay": 0.1,
    "maximize": True,
    "clip_value": 0.7,
    "grad_scale": 0.5,
    "zero_grads": True,
    "flush_denormals": True,
}
OFF = 7.0


def settings(name):
    """Every option of a step by name, and its default; an infinite clip_value is none, and has the type of one."""
    more = {"grad_scale": 1.0, "zero_grads": False, "flush_denormals": False}
    return {**more, **proptim.OPTIMIZERS[name].hyper, "clip_value": math.inf}


@cache
def train(way, name):
    """A compiled loop over steps. Options are its arguments, so that it is compiled once for all of them."""
    cls = proptim.OPTIMIZERS[name]
    arguments = [*(f"state[{i}]" for i in range(len(cls.states))), "step=k + 1"]
    arguments += [f"{option}=values[{i}]" for i, option in enumerate(settings(name))]
    if cls.needs_loss is not proptim.Optimizer.needs_loss:
        arguments += ["loss=losses[k + 1]", "prev_loss=losses[k]"]
    text = f"""
def train(param, grads, state, losses, values):
    for k in range(len(grads)):
        step(param, grads[k], {", ".join(arguments)})"""
    known = {"step": getattr(MODULES[way], name)}
    exec(text, known)
    return numba.njit(known["train"])


@each_way
@each_dtype
@each_optimizer
def test_same_bits_as_the_object(way, name, cls, dtype):
    """All option sets, without stages and with all of them; a state array that is off is given and left alone."""
    for options in [{**options, **stages} for options in cls.cases for stages in ({}, STAGES)]:
        rng = np.random.default_rng(1)
        param = rng.standard_normal(67).astype(dtype)
        grads = np.stack([selftest.gradient(rng, 67, np.dtype(dtype).type) for _ in LOSSES[1:]])
        mine, given = param.copy(), grads.copy()
        opt = cls([param], backend="numpy", **options)
        theirs = {key: opt._stepper.parameters[0].state.get(key, np.full(67, OFF, dtype)) for key in cls.states}
        state = {key: array.copy() for key, array in theirs.items()}
        values = tuple((settings(name) | options).values())
        train(way, name)(mine, given, tuple(state.values()), np.array(LOSSES), values)
        for grad, loss in zip(grads, LOSSES[1:], strict=True):
            opt.step([grad], loss=loss)
        assert mine.tobytes() == param.tobytes(), options
        assert given.tobytes() == grads.tobytes(), options
        assert {k: a.tobytes() for k, a in state.items()} == {k: a.tobytes() for k, a in theirs.items()}, options


NUMBERS = {"bfloat16": proptim.numba.bfloat16, "float16": proptim.numba.float16}
FORMATS = [  # of param, grad and state, and the option master
    ("bfloat16", "bfloat16", "float32", "split"),
    ("float16", "float16", "float32", "float32"),
    ("bfloat16", "float32", "bfloat16", None),
    ("float16", "bfloat16", "float32", None),
    ("bfloat16", "float16", "bfloat16", "float32"),
    ("float32", "bfloat16", "float32", None),
    ("float64", "float32", "bfloat16", None),
    ("float64", "float16", "float64", None),
]
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -3e-8, 65520.0, 6e4, 3.4e38, 1.00390625, 5e-8]


WORDS = np.arange(2**16, dtype=np.uint16)


def of_dtype(values, name):
    """Numbers in a dtype by its name: as Python has them, and as compiled code takes the same memory."""
    array = shown(rounded(np.asarray(values, np.float64), DTYPES[name]))
    return array, NUMBERS[name](array) if name in NUMBERS else array


def check_formats(way, name, cls, formats):
    """Three steps of compiled code over these formats, every stage on, are those of the NumPy backend to the byte."""
    param, slope, kept, master = formats
    options = {**cls.cases[-1], "lr": 0.01, **STAGES}
    beside = {"master": master} if param in NUMBERS else {}
    text = [f"state[{i}]" for i in range(len(cls.states))] + [f"{key}={value!r}" for key, value in options.items()]
    text += ["loss=losses[k + 1]", "prev_loss=losses[k]"] * (cls.needs_loss is not proptim.Optimizer.needs_loss)
    known = {"step": getattr(MODULES[way], name)}
    exec(f"def run(w, g, state, master, losses, k): step(w, g, {', '.join(text)}, step=k + 1, master=master)", known)
    run = numba.njit(known["run"])
    rng = np.random.default_rng(6)
    seen, mine = of_dtype(np.concatenate([SPECIAL, rng.standard_normal(53)]), param)
    theirs = seen.copy()
    opt = cls([theirs], backend="numpy", state_dtype=kept, **beside, **options)
    hyper = {key: value for key, value in options.items() if key in cls.hyper}
    state = getattr(functional, name).init(seen, state_dtype=kept, **beside, **hyper)
    plane = state.pop("master", None)
    off = np.full(len(seen), OFF, "float64" if param == "float64" else "float32")
    given = [state.get(key, off) for key in cls.states]
    given = tuple(NUMBERS[kept](a) if kept in NUMBERS and a is not off else a for a in given)
    for k in range(3):
        grad, words = of_dtype(np.concatenate([rng.standard_normal(53), SPECIAL]), slope)
        opt.step([grad.copy()], loss=LOSSES[k + 1])
        run(mine, words, given, plane, np.array(LOSSES), k)
        assert not grad.view(np.uint8).any(), "zero_grads"
        assert_bits(seen, theirs)
    ours = opt._stepper.parameters[0]
    for key, array in ours.state.items():
        assert_bits(state[key], shown(array))
    assert (plane is None) == (ours.plane is None)
    if plane is not None:
        assert_bits(plane, ours.plane)
    assert (off == OFF).all()


def assert_bits(got, expected):
    """The same bytes, where a NaN of a rule's own may have any payload."""
    got, expected = (np.ascontiguousarray(a) for a in (got, expected))
    nan = expected != expected
    assert np.array_equal(got != got, nan)
    assert got[~nan].tobytes() == expected[~nan].tobytes()


@each_way
@pytest.mark.parametrize("formats", FORMATS, ids=lambda each: "-".join(map(str, each)))
def test_formats(way, formats):
    """Every format of every array, with zeros, subnormals, infinities and NaN."""
    check_formats(way, "adagrad", proptim.Adagrad, formats)


@each_optimizer
def test_formats_of_every_rule(name, cls):
    """Each rule steps bfloat16 with low halves or, every second one, other formats; as text and by the core in turn."""
    place = list(proptim.OPTIMIZERS).index(name)
    way = "text" if _backend.missing_core or place % 4 < 2 else "core"
    check_formats(way, name, cls, FORMATS[0 if place % 2 else place % len(FORMATS)])


@numba.njit
def narrowed(numbers, array):
    proptim.numba.narrow(numbers, array)


@numba.njit
def widened_there(array):
    return proptim.numba.widen(array)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_sixteen_bits(name):
    """Every pattern, and numbers between and beside them, are read and rounded as NumPy has it; every NaN stays one."""
    marked = NUMBERS[name](WORDS.copy())
    expected = _formats.widened(WORDS.view(DTYPES[name]), _formats.FLOAT32)
    for got in (widened_there(marked), proptim.numba.widen(marked)):
        assert_bits(got, expected)
    finite = np.sort(expected[np.isfinite(expected)].astype(np.float64))
    middle = (finite[1:] + finite[:-1]) / 2
    for real in (np.float32, np.float64):
        with np.errstate(over="ignore"):
            near = np.concatenate([finite, middle, [1e300, -1e300, np.inf, -np.inf, np.nan, 1e-320]]).astype(real)
        near = np.concatenate([near, np.nextafter(near, real(np.inf)), np.nextafter(near, real(-np.inf))])
        out = [NUMBERS[name](np.zeros(len(near), np.uint16)) for _ in range(2)]
        narrowed(near, out[0])
        proptim.numba.narrow(near, out[1])
        assert out[0].words.tobytes() == out[1].words.tobytes()
        assert out[0].words.tobytes() == rounded(near, DTYPES[name]).tobytes()


def test_sixteen_bits_from_python(fresh):
    """The same call without a compiler, on marked arrays or those of ml_dtypes, is that of proptim.functional."""
    program = """
import numba, numpy as np, proptim.numba
from proptim.numba import bfloat16, float16
@numba.njit
def train(w, grad, square_avg, low, half):
    for step in range(1, 4):
        proptim.numba.rmsprop(bfloat16(w), bfloat16(grad), square_avg, step=step, master=low)
        proptim.numba.sgd(float16(half), bfloat16(grad), lr=0.1)
w, grad = np.arange(0x3F00, 0x3F09, dtype=np.uint16), np.arange(0x3D80, 0x3D89, dtype=np.uint16)
state = proptim.numba.rmsprop.init(bfloat16(w))
half = np.arange(0x3C00, 0x3C09, dtype=np.uint16)
train(w, grad, state["square_avg"], state["master"], half)
print(w.tobytes().hex(), state["master"].tobytes().hex(), half.tobytes().hex())"""
    there = fresh(program)
    assert there == fresh(program, NUMBA_DISABLE_JIT="1")
    for give in (lambda a: a, proptim.numba.bfloat16):
        w, grad = (shown(np.arange(first, first + 9, dtype=np.uint16)) for first in (0x3F00, 0x3D80))
        state = proptim.numba.rmsprop.init(give(w))
        for step in range(1, 4):
            proptim.numba.rmsprop(give(w), give(grad), state["square_avg"], step=step, master=state["master"])
        assert there.split()[:2] == [w.tobytes().hex(), state["master"].tobytes().hex()]


LAYOUTS = {
    "matrix": np.copy,
    "column-major": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 3, axis=1)[:, ::3],
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
}


def adagrad(way):
    step = MODULES[way].adagrad

    @numba.njit
    def adagrad(param, grad, sum, lr):
        step(param, grad, sum, lr=lr)

    return adagrad


@each_way
def test_layouts(way):
    """Dense, transposed, strided and reversed matrices, and mixtures; the memory between the elements stays."""
    rng = np.random.default_rng(2)
    start, slope = rng.standard_normal((2, 4, 6)).astype(np.float32)
    expected, total = start.copy(), np.zeros_like(start)
    functional.adagrad(expected, slope, total, lr=0.1)
    step = adagrad(way)
    mixtures = [(name,) * 3 for name in LAYOUTS] + [("matrix", "column-major", "strided")]
    for mixture in mixtures:
        w, g, s = (LAYOUTS[name](a) for name, a in zip(mixture, (start, slope, np.zeros_like(start)), strict=True))
        step(w, g, s, 0.1)
        assert (w.tobytes(), g.tobytes(), s.tobytes()) == (expected.tobytes(), slope.tobytes(), total.tobytes())
        for array in (w, s):
            if array.base is not None and array.base.shape == (4, 18):
                between = np.delete(array.base, np.s_[::3], axis=1)
                assert (between == (np.repeat(start, 2, axis=1) if array is w else 0)).all()


@each_way
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 4)])
def test_shapes(way, shape):
    """Arrays of no, one and more dimensions, and of no element."""
    rng = np.random.default_rng(3)
    w, g = (np.asarray(rng.standard_normal(shape)) for _ in range(2))
    other, s, total = w.copy(), np.zeros(shape), np.zeros(shape)
    adagrad(way)(w, g, s, 0.1)
    functional.adagrad(other, g, total, lr=0.1)
    assert (w.tobytes(), s.tobytes()) == (other.tobytes(), total.tobytes())
    sliced, total = np.zeros((3, 4, 5), "f4"), np.zeros((3, 4, 5), "f4")
    if len(shape) == 3:  # no axis of it can be merged with another
        adagrad(way)(sliced[::2, ::2, ::2], np.ones((2, 2, 3), "f4"), total[::2, ::2, ::2], 0.1)
        assert (total[::2, ::2, ::2] == 1).all()
        assert total.sum() == 12
        assert (sliced != 0).sum() == 12


@each_way
def test_callers_options_stay_outside(way):
    """fastmath of the caller does not reach the step, and in its parallel loop parts give the bits of the whole."""
    step = MODULES[way].rmsprop

    @numba.njit(fastmath=True, error_model="numpy")
    def fast(w, grad, square_avg):
        for k in range(1, 4):
            step(w, grad, square_avg, step=k, bias_correction=True)

    @numba.njit(parallel=True)
    def parts(w, grad, square_avg, size):
        for k in range(1, 4):
            for i in numba.prange(-(-len(w) // size)):
                part = slice(i * size, (i + 1) * size)
                step(w[part], grad[part], square_avg[part], step=k, bias_correction=True)

    rng = np.random.default_rng(4)
    start, grad = rng.standard_normal((2, 1003)).astype(np.float32)
    grad[:4] = 0.0, -0.0, math.inf, 1e-41
    expected = start.copy()
    opt = proptim.RMSprop([expected], bias_correction=True, backend="numpy")
    for _ in range(3):
        opt.step([grad])
    for run, *size in ((fast,), (parts, 1003), (parts, 100), (parts, 7)):
        w, square_avg = start.copy(), np.zeros_like(start)
        run(w, grad, square_avg, *size)
        np.testing.assert_array_equal(
            w.view(np.uint32)[np.isfinite(w)], expected.view(np.uint32)[np.isfinite(expected)]
        )
        assert np.isnan(w).sum() == np.isnan(expected).sum() == 1


@each_way
def test_step_known_when_compiling(way):
    """alpha**2 is what the C library says, where LLVM would multiply: the last bits differ for these alphas."""
    rng = np.random.default_rng(5)
    alphas = [a for a in rng.uniform(0.5, 1.0, 100_000).tolist() if 1 / (1 - a**2) != 1 / (1 - a * a)]
    assert alphas
    step = MODULES[way].rmsprop

    @numba.njit(forceinline=True)
    def second(w, grad, square_avg, alpha):
        step(w, grad, square_avg, step=2, alpha=alpha, bias_correction=True)

    for alpha in alphas:
        w, grad = rng.standard_normal((2, 100))
        other, square_avg = w.copy(), np.zeros(100)
        second(w, grad, square_avg.copy(), alpha)
        functional.rmsprop(other, grad, square_avg, step=2, alpha=alpha, bias_correction=True)
        assert w.tobytes() == other.tobytes()


@each_way
def test_nadam_product(way):
    """Without mu_product it is multiplied up from the first step, to the same bits."""
    step = MODULES[way].nadam

    @numba.njit
    def sixth(w, grad, exp_avg, exp_avg_sq, product):
        step(w, grad, exp_avg, exp_avg_sq, step=6, mu_product=product)

    opt = proptim.NAdam([np.ones(3)], backend="numpy")
    for _ in range(5):
        opt.step([np.ones(3)])
    expected, m, v = np.ones((3, 3))
    functional.nadam(expected, np.full(3, 0.5), m, v, step=6)
    for product in (None, opt.state[0]["mu_product"]):
        w, m, v = np.ones((3, 3))
        sixth(w, np.full(3, 0.5), m, v, product)
        assert w.tobytes() == expected.tobytes()


LOOPS = """
import json, sys
import numpy as np
if "without the core" in sys.argv:
    sys.modules["proptim._core"] = None
import numba, proptim, proptim.numba
from proptim.numba import c
"""
LOOP = """
@numba.njit(cache=True)
def {way}_{name}({arrays}):
    for k in range(1, 4):
        {module}.{name}({arrays}, step=k)
"""
MAIN = """
found = {}
for name in proptim.OPTIMIZERS:
    for way in sys.argv[1].split():
        w, grad = np.linspace(-1, 1, 41), np.cos(np.arange(41.0))
        loop = globals()[way + "_" + name]
        try:
            loop(w, grad, *proptim.numba.__dict__[name].init(w).values())
        except RuntimeError as error:
            w = str(error).encode()
        hits, misses = (sum(counts.values()) for counts in (loop.stats.cache_hits, loop.stats.cache_misses))
        found[way + "_" + name] = [hits, misses, w.tobytes().hex() if hasattr(w, "tobytes") else w.decode()]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_cache(tmp_path, fresh):
    """A second process takes every loop from Numba's cache; without the core a loop that needs it says so."""
    ways = ["text"] if _backend.missing_core else ["text", "core"]
    text = LOOPS
    expected = {}
    for name, cls in proptim.OPTIMIZERS.items():
        w, grad = np.linspace(-1, 1, 41), np.cos(np.arange(41.0))
        state = getattr(functional, name).init(w)
        for way in ways:
            place = {"text": "proptim.numba", "core": "c"}[way]
            text += LOOP.format(way=way, name=name, module=place, arrays=", ".join(["w", "grad", *state]))
        opt = cls([w], backend="numpy")
        for _ in range(3):
            opt.step([grad])
        expected |= {f"{way}_{name}": w.tobytes().hex() for way in ways}
    (tmp_path / "loops.py").write_text(text + MAIN)
    run = f"import sys; sys.argv[1:] = ['{' '.join(ways)}', *{{}}]; import loops".format

    def results(*arguments):
        return json.loads(fresh(run(list(arguments)), NUMBA_CACHE_DIR=str(tmp_path / "cache")))

    assert results() == {key: [0, 1, bits] for key, bits in expected.items()}
    assert results() == {key: [1, 0, bits] for key, bits in expected.items()}
    if not _backend.missing_core:
        found = results("without the core")
        for key, bits in expected.items():
            hits, misses, outcome = found[key]
            assert (hits, misses) == (1, 0)
            assert outcome == bits if key.startswith("text") else "not the one here" in outcome


@needs_core
def test_core_of_another_version():
    """The core refuses code that was compiled for another ABI, other rules or stages, or other numbers of arguments."""
    from proptim import _core

    address, abi, _ = _core.step_arrays_for_jit()
    step = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 8)(address)
    for numbers in ((abi + 1, 0, 0), (abi, len(_core.rules()), 0), (abi, 0, len(_core.stages()) + 1)):
        assert step(*numbers[:2], 0, 2, 0, 0, 0, numbers[2]) == 1
    for rule, (arrays, _, coefs) in enumerate(_core.rules().values()):
        for more_arrays, more_coefs in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            counts = len(arrays) + more_arrays, len(coefs) + more_coefs
            assert step(abi, rule, 0, counts[0], 0, counts[1], 0, len(_core.stages())) == 1


def test_from_python():
    """Called from Python they are proptim.functional, with its defaults and errors."""
    for name, cls in proptim.OPTIMIZERS.items():
        for way, module in MODULES.items():
            if way == "core" and _backend.missing_core:
                continue
            step = getattr(module, name)
            w, other, grad = np.linspace(-1, 1, 9), np.linspace(-1, 1, 9), np.ones(9)
            assert step(w, grad, *step.init(w).values(), step=1) is None
            getattr(functional, name)(other, grad, **getattr(functional, name).init(other), step=1)
            assert w.tobytes() == other.tobytes()
            shown = inspect.signature(step).parameters
            assert list(shown)[: 2 + len(cls.states)] == ["param", "grad", *cls.states]
            assert {key: shown[key].default for key in cls.hyper} == cls.hyper
            assert pickle.loads(pickle.dumps(step)) is step
            assert repr(step).startswith(f"<function proptim.numba{'.c' * (way == 'core')}.{name}(param, grad")
    proptim.numba.nadam(*np.ones((4, 2)), step=1, mu_product=None)  # as left out
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        proptim.numba.sgd(np.ones(2), np.ones(2), lr=-1.0)
    for mark, array, mend in (
        (proptim.numba.bfloat16, np.ones(2, np.float16), "array is float16; expected bfloat16, or uint16 for its bits"),
        (proptim.numba.float16, np.ones(2), "array is float64; expected float16, or uint16 for its bits"),
    ):
        with pytest.raises(TypeError, match=mend):
            mark(array)
    with pytest.raises(ValueError, match="numbers has not the shape of array"):
        proptim.numba.narrow(np.ones(3), proptim.numba.float16(np.ones(2, np.float16)))
    for call, message in (
        (lambda: proptim.numba.sgd(np.ones(2)), "^sgd has no grad; expected an array: pass grad=$"),
        (
            lambda: proptim.numba.sgd(*[np.ones(2)] * 4),
            "^sgd got 4 arguments by place; expected at most 3: param, grad, ",
        ),
        (lambda: proptim.numba.sgd_rows(np.ones(2), [0]), "^sgd_rows has no values; expected an array: pass values=$"),
        (lambda: proptim.numba.sgd_rows(*[np.ones(2)] * 5), "^sgd_rows got 5 arguments by place; expected at most 4: "),
        (lambda: proptim.numba.sgd(np.ones(2), np.ones(2), self=1), "^sgd got an unexpected keyword argument 'self'$"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(AttributeError, match=r"'proptim\.numba' has no attribute 'rmspop'; expected sgd, rprop"):
        proptim.numba.rmspop  # noqa: B018


def test_compiling_switched_off(fresh):
    """With NUMBA_DISABLE_JIT the same program gives the same bits, and so does backend="numba"."""
    program = """
import numba, numpy as np, proptim, proptim.numba
@numba.njit
def train(w, grad, square_avg):
    for step in range(1, 4):
        proptim.numba.rmsprop(w, grad, square_avg, step=step, bias_correction=True)
w, grad = np.linspace(-1, 1, 9, dtype="f4"), np.cos(np.arange(9, dtype="f4"))
other = w.copy()
train(w, grad, np.zeros_like(w))
opt = proptim.RMSprop([other], bias_correction=True, backend="numba")
for _ in range(3):
    opt.step([grad])
print(w.tobytes().hex(), other.tobytes().hex())"""
    compiled, interpreted = fresh(program), fresh(program, NUMBA_DISABLE_JIT="1")
    assert compiled == interpreted
    assert len(set(compiled.split())) == 1


def test_without_numba(fresh):
    """The door says what to install."""
    text = fresh("""
import sys
sys.modules["numba"] = None
try:
    import proptim.numba
except ImportError as error:
    print(error)""")
    assert "pip install 'proptim[numba]'" in text


def test_without_core(fresh):
    """Without the compiled core the text is there, and the core's steps are refused in words."""
    text = fresh("""
import sys
sys.modules["proptim._core"] = None
import numba, numpy, proptim.numba
@numba.njit
def text(w):
    proptim.numba.sgd(w, w.copy(), lr=0.5)
@numba.njit
def core(w):
    proptim.numba.c.sgd(w, w.copy(), lr=0.5)
w = numpy.ones(2)
text(w)
print(w)
try:
    core(w)
except numba.TypingError as error:
    print(error)
print(w)""")
    assert text.startswith("[0.5 0.5]")
    assert text.endswith("[0.5 0.5]")
    assert "proptim.numba.c: this installation has no compiled core" in text


A = np.ones(3)
LOCKED = np.broadcast_to(1.0, 3)
REFUSED = [
    ('step(w)', "missing a required argument: 'grad'"),
    ('step(w, A)', "missing a required argument: 'square_avg'"),
    ("step(w, A, None)", "square_avg is none; expected an array of float32 or float64"),
    ("step(w, A, s, 0.1)", "grad_avg is float64; expected an array"),
    ("step(w, A, s, None, None, 0.1)", "too many positional arguments"),
    ('step(w, A, s, betas=0.1)', "got an unexpected keyword argument 'betas'"),
    ('step(w, A, s, threads=2)', "got an unexpected keyword argument 'threads'"),
    ("step(w.astype(np.float32), A, s.astype(np.float32))", r"grad is .*array\(float64, .*; expected float32: use"),
    ("step(w.astype(np.float32), A, s.astype(np.float32), cast_grads=False)", "expected cast_grads to be True"),
    ("step(w, A, s.astype(np.float32))", r"square_avg is array\(float32, .*; expected float64, in which the rule"),
    ("step(w, A.astype(np.int64), s)", r"grad is array\(int64, .*; expected an array of float32 or float64, or propt"),
    ("step(w.astype(np.uint16), A, s)", r"param is array\(uint16, .*, bits that may be of two formats; expected"),
    ("step(w, A.astype(np.uint16), s)", r"grad is .*; expected proptim.numba.bfloat16\(grad\) or .float16\(grad\) to"),
    ("step(w, A, bfloat16(s))", r"array is .*array\(float64, .*; expected an array of uint16, the bits of the numbers"),
    ("step(w, bfloat16(A.astype(np.uint16))[0], s)", r"grad is array\(uint16"),
    ("step(w, A, s, master=A)", "master is given, and param is complete by itself; expected none: leave it out"),
    ("step(bfloat16(H), F, F, master=A)", r"master is .*array\(float64, .*; expected an array of float32 or uint16"),
    ("step(float16(H), F, F, master=H)", r"master is array\(uint16, .*; expected an array of float32, as init makes"),
    ("step(float16(H), F, F, master=F.reshape(1, 3))", "master has 2 dimensions; expected 1, those of param"),
    ("step(bfloat16(H), F, F, master=F[:2])", "master has not the shape of param; expected it"),
    ("step(bfloat16(H), F, 1 * F, master=H)", "param and master share memory; expected separate memory"),
    ("step(bfloat16(H), bfloat16(H), F)", "param and grad share memory; expected separate memory"),
    ("step(bfloat16(H), F, s)", r"square_avg is .*array\(float64, .*; expected float32, in which the rule computes"),
    ("step(bfloat16(H), A, F)", r"grad is .*array\(float64, .*; expected float32: use .astype, or pass cast"),
    ("widen(A)", r"array is .*array\(float64, .*; expected proptim.numba.bfloat16\(array\) or .float16"),
    ("narrow(A, A)", r"array is .*array\(float64, .*; expected proptim.numba.bfloat16\(array\) or .float16"),
    ("narrow(H, bfloat16(H))", r"numbers is array\(uint16, .*; expected an array of float32 or float64"),
    ("narrow(F[:2], bfloat16(H))", "numbers has not the shape of array; expected it"),
    ("step(w.astype(np.complex64), A, s)", r"param is array\(complex64, .*; expected an array of float32"),
    ("step(w, A.reshape(1, 3), s)", "grad has 2 dimensions; expected 1, those of param"),
    ("step(LOCKED, A, s)", "param is read-only; expected a writable array"),
    ("step(w, LOCKED, s, zero_grads=True)", "grad is read-only; expected a writable array"),
    ("step(w, A, s, step=1.0)", "step is float64; expected the like of 1"),
    ('step(w, A, s, lr="1")', "lr is .*; expected the like of 0.001"),
    ("step(w, A, s, centered=0.5)", "centered is float64; expected the like of False"),
    ("step(w, A[:2], s)", "grad has not the shape of param; expected it"),
    ("step(w, A, s[:2])", "square_avg has not the shape of param; expected it"),
    ("step(w, A, s, s[:2], centered=True)", "grad_avg has not the shape of param"),
    ("step(w, A, s, step=0)", "step is below 1; expected the number of this step"),
    ("step(w, A, s, centered=True)", "centered is on; expected an array grad_avg"),
    ("step(w, A, s, momentum=0.5)", "momentum is on; expected an array momentum_buffer"),
]  # fmt: skip


@each_way
@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_errors(way, call, message):
    """What is refused, when compiling or when running, says why and changes nothing."""
    known = {"np": np, "A": A, "LOCKED": LOCKED, "step": MODULES[way].rmsprop, "bfloat16": proptim.numba.bfloat16}
    known |= {name: getattr(proptim.numba, name) for name in ("float16", "widen", "narrow")}
    exec(f"def refused(w, s, H, F): {call}", known)
    w, s, half, single = np.arange(3.0), np.full(3, 0.5), np.zeros(3, np.uint16), np.zeros(3, np.float32)
    with pytest.raises((numba.TypingError, ValueError), match=message):
        numba.njit(known["refused"])(w, s, half, single)
    assert not half.any()
    assert not single.any()
    assert w.tolist() == [0, 1, 2]
    assert s.tolist() == [0.5] * 3


@each_optimizer
def test_arrays_that_are_off(name, cls):
    """Given without the hyperparameter that they are for they are left alone from Python too, as in compiled code."""
    function = getattr(functional, name)
    for kind in ("", "_rows"):
        step = getattr(proptim.numba, name + kind)
        w, other, extra = np.ones((3, 2)), np.ones((3, 2)), {key: np.full((3, 2), OFF) for key in cls.optional}
        grad = (np.arange(3), np.ones((3, 2))) if kind else (np.ones((3, 2)),)
        for k in (1, 2):
            step(w, *grad, **{**step.init(w), **extra}, step=k)
            function(other, np.ones((3, 2)), **function.init(other), step=k)
        assert w.tobytes() == other.tobytes()
        assert all((array == OFF).all() for array in extra.values())


@each_way
@pytest.mark.parametrize("kind", NUMBERS)
def test_zeros_of_sixteen_bits(way, kind):
    """One of either sign is refused as the first step_word, and the smallest number that is none is not."""
    step, mark = MODULES[way].rprop, NUMBERS[kind]

    @numba.njit
    def run(w, grad, word):
        step(w, grad, mark(word))

    grad = np.ones(2)
    for word in (0x0000, 0x8000):
        w, words = np.ones(2), np.full(2, word, np.uint16)
        with pytest.raises(ValueError, match=r"^step_word begins with 0, which no step leaves; expected what "):
            run(w, grad, words)
        with pytest.raises(ValueError, match=r"^step_word has zeros, which no step leaves; expected what "):
            step(w, grad, mark(words))
        assert w.tolist() == [1.0, 1.0]
        assert words.tolist() == [word] * 2
    for word in (0x0001, 0x8001):
        run(np.ones(2), grad, np.full(2, word, np.uint16))
    run(np.ones(0), np.ones(0), np.zeros(0, np.uint16))


@each_way
def test_variants(way):
    """A variant that there is not, and irprop+ without a loss, are refused when running: it may be any string then."""
    step = MODULES[way].rprop

    @numba.njit
    def run(w, grad, word, variant):
        step(w, grad, word, variant=variant)

    w = np.zeros(2)
    word = step.init(w)["step_word"]
    run(w, np.ones(2), word, "rprop-")
    assert w.tolist() == [-0.01, -0.01]
    with pytest.raises(ValueError, match="this variant compares losses; expected loss="):
        run(w, np.ones(2), word, "irprop+")
    with pytest.raises(ValueError, match="Invalid variant: expected one of 'rprop-'"):
        run(w, np.ones(2), word, "RPROP-")
    with pytest.raises(ValueError, match=r"step_word begins with 0, which no step leaves; expected what "):
        run(w, np.ones(2), np.zeros(2), "rprop-")
    assert w.tolist() == [-0.01, -0.01]


OUTSIDE = [
    ("lr", -0.1),
    ("lr", np.nan),
    ("alpha", 1.0),
    ("alpha", -0.5),
    ("eps", -1.0),
    ("momentum", -1.0),
    ("weight_decay", -1.0),
    ("clip_value", -1.0),
]
RANGES = [
    (
        "rmsprop",
        "alpha",
        0.99999999999,
        "alpha is out of range in the dtype of param; expected one that proptim.RMSprop",
    ),
    ("rmsprop", "eps", 1e-50, "eps is out of range"),
    ("rmsprop", "lr", 1e40, "not finite in the dtype of param"),
    ("rmsprop", "weight_decay", 1e40, "not finite in the dtype of param"),
    ("rmsprop", "grad_scale", 1e40, "not finite in the dtype of param"),
    ("adam", "betas", (0.9999999999, 0.9), r"betas\[0\] is out of range"),
    ("adam", "betas", (0.9, 0.9999999999), r"betas\[1\] is out of range"),
    ("adam", "eps", 1e-50, "eps is out of range"),
    ("rprop", "etas", (0.5, 1.00000000001), r"etas\[1\] is out of range"),
    ("rprop", "etas", (1e-50, 1.2), r"etas\[0\] is out of range"),
]


@each_way
@pytest.mark.parametrize(("name", "option", "value", "message"), RANGES)
def test_numbers_in_the_dtype(way, name, option, value, message):
    """Legal numbers that are not legal any more in float32 are refused there, and nothing has changed."""
    state = ", ".join(key for key in proptim.OPTIMIZERS[name].states if key not in proptim.OPTIMIZERS[name].optional)
    known = {"step": getattr(MODULES[way], name)}
    exec(f"def run(w, grad, {state}, value): step(w, grad, {state}, step=2, {option}=value)", known)
    run = numba.njit(known["run"])
    for dtype in ("float64", "float32"):
        w, grad = np.ones(3, dtype), np.ones(3, dtype)
        arrays = list(getattr(functional, name).init(w).values())
        before = [a.tobytes() for a in (w, *arrays)]
        if dtype == "float64":
            run(w, grad, *arrays, value)
            continue
        with pytest.raises(ValueError, match=message):
            run(w, grad, *arrays, value)
        assert [a.tobytes() for a in (w, *arrays)] == before
        with pytest.raises(ValueError, match="float32, in which"):
            getattr(functional, name)(w, grad, *arrays, step=2, **{option: value})


@each_way
@pytest.mark.parametrize(("option", "value"), OUTSIDE)
def test_ranges(way, option, value):
    """Numbers out of range are refused as by the class."""
    known = {"step": MODULES[way].rmsprop}
    exec(f"def run(w, s, value): step(w, w.copy(), s, step=2, {option}=value)", known)
    w, s = np.ones(3), np.ones(3)
    with pytest.raises(ValueError, match=f"{option} is out of range"):
        numba.njit(known["run"])(w, s, value)
    assert (w.tolist(), s.tolist()) == ([1] * 3, [1] * 3)
    with pytest.raises(ValueError, match=r"^Invalid "):
        proptim.RMSprop([w], **{option: value})


PASSED = """
import sys, json
import numba, numpy as np, proptim.numba

@numba.njit(cache=True)
def inner(step, w, grad, state, k):
    step(w, grad, state, step=k)

@numba.njit(cache=True)
def train(step, w, grad, state, steps):
    for k in range(1, steps + 1):
        inner(step, w, grad, state, k)

@numba.njit(cache=True)
def usual(w, grad, state, step=proptim.numba.rmsprop):
    step(w, grad, state, step=1)

found = {}
for name in ("rmsprop", "adagrad", "rprop", "lion"):
    for module in [proptim.numba, proptim.numba.c][: int(sys.argv[1])]:
        step = getattr(module, name)
        w = np.linspace(-1, 1, 5)
        train(step, w, np.ones(5), *step.init(w).values(), 3)
        found[step.place] = w.tobytes().hex()
w = np.linspace(-1, 1, 5)
usual(w, np.ones(5), np.zeros(5))
found["usual"] = w.tobytes().hex()
print(json.dumps([found, sum(train.stats.cache_hits.values()), sum(train.stats.cache_misses.values())]))
"""


def test_step_as_an_argument(fresh, tmp_path):
    """A step may be handed to a jitted function, and on to another; a second process takes both from the cache."""
    ways = 1 if _backend.missing_core else 2
    (tmp_path / "passed.py").write_text(PASSED)
    run = f"import sys; sys.argv[1:] = ['{ways}']; import passed"
    outcomes = [json.loads(fresh(run, NUMBA_CACHE_DIR=str(tmp_path / "cache"))) for _ in range(2)]
    expected = {}
    for name in ("rmsprop", "adagrad", "rprop", "lion"):
        w = np.linspace(-1, 1, 5)
        opt = proptim.OPTIMIZERS[name]([w], backend="numpy")
        for k in range(3):
            opt.step([np.ones(5)])
            if (name, k) == ("rmsprop", 0):
                expected["usual"] = w.tobytes().hex()
        expected |= {place: w.tobytes().hex() for place in [name, f"c.{name}"][:ways]}
    assert [found for found, *_ in outcomes] == [expected] * 2
    assert [counts for _, *counts in outcomes] == [[0, 4 * ways], [4 * ways, 0]]


@pytest.mark.skipif(not PAGE.is_file(), reason="no docs/ beside tests/")
def test_page(fresh):
    """The examples of docs/embed/numba.md print what stands below them."""
    blocks = re.findall(r"^```(python|text)\n(.*?)^```\n", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    text = {kind: "".join(block for k, block in blocks if k == kind) for kind in ("python", "text")}
    assert fresh(f"open('page.py', 'w').write({text['python']!r})\nimport page") == text["text"].strip()


def test_hyperparameters_of_float32():
    """A hyperparameter of another type is a float64 to the rule, as it is to the objects."""

    @numba.njit
    def step(w, grad, square_avg, lr):
        proptim.numba.rmsprop(w, grad, square_avg, step=1, lr=lr)

    w, expected, grad = np.ones(4), np.ones(4), np.arange(4.0)
    step(w, grad, np.zeros(4), np.float32(0.1))
    proptim.RMSprop([expected], lr=float(np.float32(0.1))).step([grad])
    np.testing.assert_array_equal(w, expected)


@each_way
def test_dense_arrays_that_share_memory(way):
    """They are refused and nothing has changed; arrays that adjoin, are empty or interlaced are not."""
    step = MODULES[way].rmsprop

    @numba.njit
    def train(w, grad, square_avg):
        step(w, grad, square_avg, step=1, lr=0.1)

    a, b = np.ones(10), np.ones(10)
    for args, names in (
        ((a, a, b), "param and grad"),
        ((a, b, a), "param and square_avg"),
        ((a, b, b), "grad and square_avg"),
        ((a[:6], b[:6], a[4:]), "param and square_avg"),
    ):
        with pytest.raises(ValueError, match=f"{names} share memory; expected separate memory: pass a copy"):
            train(*args)
    assert a.tolist() == b.tolist() == [1.0] * 10
    for args in ((a[:5], a[5:], b[:5]), (a[:0], a[:0], a[:0]), (a[::2], b[::2], a[1::2])):
        train(*args)
