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
from proptim import _backend, functional
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
    return {**more, **getattr(functional, name).hyper, "clip_value": math.inf}


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
        theirs = {key: opt._parameters[0].state.get(key, np.full(67, OFF, dtype)) for key in cls.states}
        state = {key: array.copy() for key, array in theirs.items()}
        values = tuple((settings(name) | options).values())
        train(way, name)(mine, given, tuple(state.values()), np.array(LOSSES), values)
        for grad, loss in zip(grads, LOSSES[1:], strict=True):
            opt.step([grad], loss=loss)
        assert mine.tobytes() == param.tobytes(), options
        assert given.tobytes() == grads.tobytes(), options
        assert {k: a.tobytes() for k, a in state.items()} == {k: a.tobytes() for k, a in theirs.items()}, options


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
    """The core refuses code that was compiled for another ABI, or for rules or stages that it has not."""
    from proptim import _core

    address, abi = _core.step_arrays_for_jit()
    step = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 9)(address)
    for numbers in ((abi + 1, 0, 0), (abi, len(_core.rules()), 0), (abi, 0, len(_core.stages()) + 1)):
        assert step(*numbers[:2], 8, 0, 2, 0, 0, 0, numbers[2]) == 1


def test_from_python():
    """Called from Python they are proptim.functional, with its defaults and errors."""
    for name, cls in proptim.OPTIMIZERS.items():
        for way, module in MODULES.items():
            if way == "core" and _backend.missing_core:
                continue
            step = getattr(module, name)
            w, other, grad = np.linspace(-1, 1, 9), np.linspace(-1, 1, 9), np.ones(9)
            assert step(w, grad, *step.init(w).values(), step=1) is None
            getattr(functional, name)(other, grad, **getattr(functional, name).init(other))
            assert w.tobytes() == other.tobytes()
            shown = inspect.signature(step).parameters
            assert list(shown)[: 2 + len(cls.states)] == ["param", "grad", *cls.states]
            assert {key: shown[key].default for key in step.hyper} == step.hyper
            assert pickle.loads(pickle.dumps(step)) is step
            assert repr(step).startswith(f"<function proptim.numba{'.c' * (way == 'core')}.{name}(param, grad")
    proptim.numba.nadam(*np.ones((4, 2)), mu_product=None)  # as left out
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        proptim.numba.sgd(np.ones(2), np.ones(2), lr=-1.0)
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
    proptim.numba.sgd(w, w, lr=0.5)
@numba.njit
def core(w):
    proptim.numba.c.sgd(w, w, lr=0.5)
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
    ("step(w, A.astype(np.float32), s)", r"grad is array\(float32, .*; expected float64, the dtype of param"),
    ("step(w, A.astype(np.int64), s)", r"grad is array\(int64, .*; expected an array of float32 or float64"),
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
    known = {"np": np, "A": A, "LOCKED": LOCKED, "step": MODULES[way].rmsprop}
    exec(f"def refused(w, s): {call}", known)
    w, s = np.arange(3.0), np.full(3, 0.5)
    with pytest.raises((numba.TypingError, ValueError), match=message):
        numba.njit(known["refused"])(w, s)
    assert w.tolist() == [0, 1, 2]
    assert s.tolist() == [0.5] * 3


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
    assert w.tolist() == [-0.01, -0.01]


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
