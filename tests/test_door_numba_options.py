"""proptim.numba: one byte, rounding at random, averages and published copies, as text and from the core.

The core is called with every rule. What surrounds the text of a rule does not depend on the rule, so that the texts of
two rules, which have all formats of one byte between them, show it. To compile a function takes seconds, and one is
compiled for as many cases as its types allow.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import proptim
from proptim import _backend, _random, functional
from proptim._formats import rounded, shown
from proptim._storage import CODE, DTYPES, SCALE
from proptim.cli import selftest

numba = pytest.importorskip("numba", exc_type=ModuleNotFoundError)
import proptim.numba  # noqa: E402
from proptim.numba import bfloat16, float16  # noqa: E402

pytestmark = pytest.mark.once

needs_core = pytest.mark.skipif(bool(_backend.missing_core), reason=_backend.missing_core)
MODULES = {"text": proptim.numba, "core": proptim.numba.c}
each_way = pytest.mark.parametrize("way", ["text", pytest.param("core", marks=needs_core)])
NUMBERS = {"bfloat16": bfloat16, "float16": float16}
LOSSES = (np.inf, 3.0, 2.0, 2.5, 1.0)
SIZE = 4203
"""Enough for state in one byte, and no whole number of blocks."""
STAGES = {"weight_decay": 0.1, "clip_value": 0.7, "zero_grads": True, "flush_denormals": True}


@cache
def compiled(way, text, **known):
    """A function of this text, in which `step` may be a step of this way by its name."""
    known = {**vars(MODULES[way]), "bfloat16": bfloat16, "float16": float16, **known}
    exec(text, known)
    return numba.njit(known["run"])


def options_of(name):
    """The case of a rule that has most state arrays, all in one byte, and every stage."""
    cls = proptim.OPTIMIZERS[name]
    cases = [selftest.in_one_byte(name, case) for case in cls.cases]
    cases = [case for case in cases if case["state_dtype"] == "int8"]
    most = max(cases, key=lambda case: len(cls.wanted({**cls.hyper, **case})))
    return {**{key: value for key, value in most.items() if key != "state_dtype"}, "lr": 0.01, **STAGES}


@cache
def in_one_byte(way, name):
    """A step with state in one byte, an average and a copy, compiled once for all roundings."""
    states = proptim.OPTIMIZERS[name].wanted({**proptim.OPTIMIZERS[name].hyper, **options_of(name)})
    given = [f"{key}={key}, {key}{SCALE}={key}{SCALE}" for key in states]
    given += [f"{key}={value!r}" for key, value in options_of(name).items()]
    given += ["loss=losses[k]", "prev_loss=losses[k - 1]"] * (name == "rprop")
    arrays = [each for key in states for each in (key, key + SCALE)]
    return compiled(
        way,
        f"""
def run({", ".join(["w", "g", "average", "copy", *arrays, "losses", "k", "ema", "rounding", "seed"])}):
    {name}(w, g, {", ".join(given)}, step=k, rounding=rounding, seed=seed, ema=ema, average=average,
        publish=bfloat16(copy))
""",
    )


RULES = [
    *(pytest.param("core", name, marks=needs_core) for name in proptim.OPTIMIZERS),
    *(("text", name) for name in ("rprop", "rmsprop")),
]


@pytest.mark.parametrize(("way", "name"), RULES)
def test_one_byte_average_and_copy(way, name):
    """Weights, codes, scales, average and copy are those of the object, rounded to nearest and at random."""
    rng = np.random.default_rng(1)
    start = rng.standard_normal(SIZE).astype(np.float32)
    for rounding, seed in (("nearest", 0), ("stochastic", 2**40 + 3)):
        theirs, mine, options = start.copy(), start.copy(), options_of(name)
        stages = {key: options.pop(key) for key in ("zero_grads", "flush_denormals")}
        copy, words = shown(np.zeros(SIZE, np.uint16)), np.zeros(SIZE, np.uint16)
        opt = proptim.OPTIMIZERS[name](
            [theirs],
            backend="numpy",
            state_dtype="int8",
            rounding=rounding,
            seed=seed,
            ema=0.9,
            publish=[copy],
            **options,
            **stages,
        )
        state = getattr(functional, name).init(mine, state_dtype="int8", ema=0.9, **options)
        average = state.pop("average")
        assert list(state)[1::2] == [key + SCALE for key in list(state)[::2]], "all of it is in one byte"
        for k in range(1, 5):
            grad = selftest.gradient(rng, SIZE, np.float32)
            opt.step([grad.copy()], loss=LOSSES[k])
            in_one_byte(way, name)(
                mine, grad, average, words, *state.values(), np.array(LOSSES), k, 0.9, rounding, seed
            )
            assert not grad.any()
        assert mine.tobytes() == theirs.tobytes()
        assert words.tobytes() == copy.tobytes()
        assert average.tobytes() == opt.ema[0].tobytes()
        saved = opt.state_dict()["state"][0]
        for key, array in state.items():
            assert array.tobytes() == saved[key if key.endswith(SCALE) else key + CODE].tobytes(), (rounding, key)


FORMATS = [  # of param, grad and state, and the option master
    ("bfloat16", "bfloat16", "float16", None),
    ("float16", "float32", "bfloat16", None),
    ("float64", "float64", "float16", None),
    ("bfloat16", "float16", "bfloat16", "split"),
]
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -3e-8, 65520.0, 6e4, 3.4e38, 1.00390625, 5e-8]


def of_dtype(values, name):
    """Numbers in a dtype by its name: as Python has them, and as compiled code takes the same memory."""
    array = shown(rounded(np.asarray(values, np.float64), DTYPES[name]))
    return array, NUMBERS[name](array) if name in NUMBERS else array


def same(got, expected):
    """The same bytes, where a NaN of a rule's own may have any payload."""
    got, expected = (np.ascontiguousarray(a) for a in (got, expected))
    nan = expected != expected
    return np.array_equal(got != got, nan) and got[~nan].tobytes() == expected[~nan].tobytes()


@pytest.mark.parametrize(
    ("way", "formats"),
    [
        *(("text", formats) for formats in FORMATS),
        *(pytest.param("core", formats, marks=needs_core) for formats in FORMATS[::2]),
    ],
    ids=str,
)
def test_formats_at_random(way, formats):
    """Numbers of 16 bits are rounded at random as by the object, special ones too, and their average follows them."""
    param, slope, kept, master = formats
    run = compiled(
        way,
        """
def run(w, g, total, master, average, k, seed):
    adagrad(w, g, total, master=master, step=k, lr=0.01, rounding="stochastic", seed=seed, ema=0.5, average=average)
""",
    )
    rng = np.random.default_rng(2)
    theirs, mine = of_dtype(np.concatenate([SPECIAL, rng.standard_normal(300)]), param)
    theirs = theirs.copy()
    options = {"state_dtype": kept, "ema": 0.5, **({"master": master} if param in NUMBERS else {})}
    opt = proptim.Adagrad([theirs], lr=0.01, backend="numpy", rounding="stochastic", seed=7, **options)
    words = mine.words if param in NUMBERS else mine
    state = functional.adagrad.init(words.view(theirs.dtype), **options)
    for k in range(1, 4):
        grad, given = of_dtype(np.concatenate([rng.standard_normal(300), SPECIAL]), slope)
        opt.step([grad])
        run(mine, given, NUMBERS[kept](state["sum"]), state.get("master"), state["average"], k, 7)
    assert same(words.view(theirs.dtype), theirs)
    assert same(state["sum"], opt.state[0]["sum"])
    assert same(state["average"], opt.ema[0])
    plane = opt._stepper.parameters[0].plane
    assert (plane is None) == ("master" not in state)
    assert plane is None or state["master"].tobytes() == plane.tobytes()


LAYOUTS = {
    "column-major": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 3, axis=1)[:, ::3],
}


@pytest.mark.parametrize(
    ("way", "layout"), [("text", "strided"), pytest.param("core", "column-major", marks=needs_core)]
)
def test_layouts(way, layout):
    """A matrix in any memory order has its codes in C order, and the random bits of its places."""
    run = compiled(
        way,
        """
def run(w, g, buffer, scale, average, k):
    sgd(w, bfloat16(g), buffer, momentum_buffer_scale=scale, momentum=0.9, step=k, ema=0.5, average=average,
        rounding="stochastic", seed=5)
""",
    )
    rng = np.random.default_rng(3)
    start = rng.standard_normal((61, 83)).astype(np.float32)
    theirs, mine = start.copy(), LAYOUTS[layout](start)
    options = {"momentum": 0.9, "state_dtype": "int8", "ema": 0.5}
    state = functional.sgd.init(start, **options)
    average = LAYOUTS[layout](state["average"])
    opt = proptim.SGD([theirs], backend="numpy", rounding="stochastic", seed=5, **options)
    for k in range(1, 4):
        grad, words = of_dtype(rng.standard_normal(start.shape), "bfloat16")
        opt.step([grad])
        run(mine, LAYOUTS[layout](words.words), state["momentum_buffer"], state["momentum_buffer_scale"], average, k)
    assert mine.tobytes() == theirs.tobytes()
    assert average.tobytes() == opt.ema[0].tobytes()
    saved = opt.state_dict()["state"][0]
    assert state["momentum_buffer"].tobytes() == saved["momentum_buffer_code"].tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (1,)])
def test_small_shapes(shape):
    """Codes of an array without axes, without elements and with one."""
    run = compiled(
        "text",
        """
def run(w, g, buffer, scale):
    sgd(w, g, buffer, momentum_buffer_scale=scale, momentum=0.9)
""",
    )
    w, grad = np.ones(shape, np.float32), np.full(shape, 0.5, np.float32)
    code, scale = np.zeros(shape, np.int8), np.zeros(min(1, w.size), np.float32)
    run(w, grad, code, scale)
    run(w, grad, code, scale)
    expected = np.ones(shape, np.float32), np.zeros(shape, np.int8), np.zeros(min(1, w.size), np.float32)
    for _ in range(2):
        functional.sgd(expected[0], grad, expected[1], momentum_buffer_scale=expected[2], momentum=0.9)
    assert [a.tobytes() for a in (w, code, scale)] == [a.tobytes() for a in expected]


@pytest.mark.parametrize(("way", "shape"), [("text", (9, 5)), pytest.param("core", (45,), marks=needs_core)])
def test_rows(way, shape):
    """Rows rounded at random by their places, step sizes in one byte, and copies of the rows that are stepped."""
    sparse = compiled(
        way,
        """
def run(w, indices, values, total, k):
    adagrad_rows(bfloat16(w), indices, values, float16(total), lr=0.1, step=k, rounding="stochastic", seed=2**63)
""",
    )
    steps = compiled(
        way,
        """
def run(w, indices, values, word, grid, copy):
    rprop_rows(w, indices, values, word, step_word_scale=grid, etas=(0.5, 2**0.25), publish=float16(copy))
""",
    )
    rng = np.random.default_rng(4)
    start = rng.standard_normal(shape)
    (theirs, mine), (total, own) = of_dtype(start, "bfloat16"), of_dtype(np.zeros(shape), "float16")
    theirs, total = theirs.copy(), total.copy()
    w, copy = start.astype(np.float32), np.zeros(shape, np.float16)
    other, words = w.copy(), np.zeros(shape, np.uint16)
    state = functional.rprop.init(w, state_dtype="int8", etas=(0.5, 2**0.25))
    kept = {key: array.copy() for key, array in state.items()}
    for k in range(1, 4):
        indices = rng.integers(0, shape[0], 6)
        values = rng.standard_normal((6, *shape[1:])).astype(np.float32)
        rows = proptim.Rows(indices, values)
        functional.adagrad(theirs, rows, total, lr=0.1, step=k, rounding="stochastic", seed=2**63)
        sparse(mine.words, indices, values, own.words, k)
        functional.rprop(w, rows, **state, etas=(0.5, 2**0.25), publish=copy)
        steps(other, indices, values, kept["step_word"], kept["step_word_scale"], words)
    assert mine.words.tobytes() == theirs.tobytes()
    assert own.words.tobytes() == total.tobytes()
    assert other.tobytes() == w.tobytes()
    assert words.tobytes() == copy.tobytes()
    assert kept["step_word"].tobytes() == state["step_word"].tobytes()


def test_parts_of_whole_blocks():
    """Parts that begin where blocks begin have the bits of the whole."""
    run = compiled(
        "text",
        """
def run(w, g, buffer, scale, size):
    for i in range(0, len(w), 256 * size):
        part, own = slice(i, i + 256 * size), slice(i // 256, i // 256 + size)
        sgd(w[part], g[part], buffer[part], momentum_buffer_scale=scale[own], momentum=0.9)
""",
    )
    rng = np.random.default_rng(5)
    start, grad = rng.standard_normal((2, SIZE)).astype(np.float32)
    found = []
    for size in (100, 5, 1):
        w, state = start.copy(), functional.sgd.init(start, state_dtype="int8", momentum=0.9)
        for _ in range(3):
            run(w, grad, *state.values(), size)
        found.append([w.tobytes(), *(array.tobytes() for array in state.values())])
    assert found[0] == found[1] == found[2]


CACHED = """
import sys
import numba, numpy as np, proptim.numba
from proptim.numba import bfloat16
{c}
@numba.njit(cache=True)
def one_byte(w, grad, buffer, scale, average, copy):
    {place}.sgd(w, grad, buffer, momentum_buffer_scale=scale, momentum=0.9, ema=0.9, average=average, step=1,
                publish=bfloat16(copy))

@numba.njit(cache=True)
def at_random(w, grad):
    {place}.sgd(bfloat16(w), grad, lr=0.1, step=1, rounding="stochastic", seed=3)

@numba.njit(cache=True)
def rows(table, indices, values):
    {place}.sgd_rows(table, indices, values, lr=0.1)

w, grad = np.linspace(-1, 1, 5000, dtype="f4"), np.cos(np.arange(5000, dtype="f4"))
state = proptim.numba.sgd.init(w, state_dtype="int8", momentum=0.9, ema=0.9)
half, copy, table = np.full((9, 5), 0x3F80, np.uint16), np.zeros(5000, np.uint16), np.ones((9, 5))
one_byte(w, grad, state["momentum_buffer"], state["momentum_buffer_scale"], state["average"], copy)
at_random(half, np.full((9, 5), 0.1, np.float32))
rows(table, np.array([2, 2, 7]), np.ones((3, 5)))
print(*(sum(array.tobytes()) for array in (w, half, copy, table, *state.values())))
print(*(sum(f.stats.cache_hits.values()) for f in (one_byte, at_random, rows)))
"""


@each_way
def test_cache(way, fresh, tmp_path):
    """A second process takes all of it from Numba's cache."""
    place = {"text": "proptim.numba", "core": "c"}[way]
    imported = "from proptim.numba import c" if way == "core" else ""
    (tmp_path / "cached.py").write_text(CACHED.format(place=place, c=imported))
    first, second = (fresh("import cached", NUMBA_CACHE_DIR=str(tmp_path / "cache")).splitlines() for _ in range(2))
    assert (first[1], second[1]) == ("0 0 0", "1 1 1")
    assert first[0] == second[0]


def test_random_bits_beyond_32():
    """Elements above 2**32 have the bits of the other backends too."""
    from proptim._numba_stores import key_of, word_at

    word = compiled("text", "def run(seed, j, step, index): return word_at(key_of(seed, j, step), index)",
                    word_at=word_at, key_of=key_of)  # fmt: skip
    index = np.array([0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**63 + 5], np.uint64)
    for seed, j, step in ((0, 0, 1), (2**64 - 1, 4, 2**53)):
        expected = _random.words(_random.key_of(seed, 0, j, step), index)
        assert [word(np.uint64(seed), j, np.uint64(step), i) for i in index] == expected.tolist()


def test_without_a_compiler(fresh):
    """Where compiling is switched off the same program is one of proptim.functional."""
    program = """
import numba, numpy as np, proptim.numba
from proptim.numba import bfloat16
@numba.njit
def train(w, grad, buffer, scale, average, copy):
    for k in range(1, 4):
        proptim.numba.sgd(w, grad, buffer, momentum_buffer_scale=scale, momentum=0.9, ema=0.9, average=average,
                          publish=bfloat16(copy), step=k, rounding="stochastic", seed=3)
w, grad = np.linspace(-1, 1, 5000, dtype="f4"), np.cos(np.arange(5000, dtype="f4"))
state = proptim.numba.sgd.init(w, state_dtype="int8", momentum=0.9, ema=0.9)
copy = np.zeros(5000, np.uint16)
train(w, grad, state["momentum_buffer"], state["momentum_buffer_scale"], state["average"], copy)
print(*(sum(array.tobytes()) for array in (w, copy, *state.values())))
"""
    w, grad = np.linspace(-1, 1, 5000, dtype="f4"), np.cos(np.arange(5000, dtype="f4"))
    state, copy = functional.sgd.init(w, state_dtype="int8", momentum=0.9, ema=0.9), shown(np.zeros(5000, np.uint16))
    options = {"momentum": 0.9, "ema": 0.9, "publish": copy, "rounding": "stochastic", "seed": 3}
    for k in range(1, 4):
        functional.sgd(w, grad, **state, step=k, **options)
    sums = [sum(array.tobytes()) for array in (w, copy, *state.values())]
    assert fresh(program, NUMBA_DISABLE_JIT="1") == " ".join(map(str, sums))


C, S, W = np.zeros(4, np.int8), np.zeros(1, np.float32), np.zeros(4, np.uint16)
REFUSED = [
    ("step(w, g, C)", "momentum_buffer has one byte and no momentum_buffer_scale; expected both, as init"),
    ("step(w, g, momentum_buffer_scale=S)", "momentum_buffer is none beside momentum_buffer_scale; expected int8"),
    ("step(w, g, g, momentum_buffer_scale=S)", r"momentum_buffer is array\(float32, .* expected int8 of the shape of"),
    ("step(w, g, C, momentum_buffer_scale=C)", r"momentum_buffer_scale is .*array\(int8, .* expected a dense array o"),
    ("step(w, g, C[::2], momentum_buffer_scale=S)", "whose elements are not in C order; expected an array as init"),
    ("step(D, D, C, momentum_buffer_scale=S)", "momentum_buffer is in one byte, and param is .*stepped in float32"),
    ("step(w, g, ema=0.9)", r"ema is given, and no average; expected both or neither: proptim\.numba\.sgd\.init\("),
    ("step(w, g, average=A)", "average is given, and no ema; expected both or neither"),
    ("step(w, g, ema=True, average=A)", "ema is .*; expected the like of 0.0, and no schedule"),
    ("step(w, g, ema=0.9, average=D)", r"average is .*array\(float64, .*; expected float32"),
    ("step(w, g, ema=0.9, average=bfloat16(W))", r"average is .*BFloat16.*; expected float32, in which the rule"),
    ("step(w, g, publish=A)", r"publish is .*array\(float32, .*; expected proptim\.numba\.bfloat16\(publish\) or"),
    ("step(D, D, publish=bfloat16(W))", "publish is given, and param is .*; expected none: copies are of float32"),
    ("step(w, g, rounding=1)", "rounding is .*; expected the like of 'nearest'"),
    ("step(w, g, seed=0.5)", "seed is float64; expected the like of 0"),
    ("step(w, g, seed=None)", "seed is none; expected the like of 0"),
    ("step(w, g, lr=None)", "lr is none; expected the like of 0.001, and no schedule"),
    ("step(w, g, rounding=None)", "rounding is none; expected the like of 'nearest'"),
    ("step(w, g, C, momentum_buffer_scale=F[::2])", r"array\(float32, 1d, A\); expected a dense array of float32"),
    ("rprop(w, g, C.view(np.uint8), step_word_scale=F[::2])", "step_word_scale is .*; expected a dense array of"),
    ("rows(w, I, g, ema=0.9, average=A)", "average is given, and it moves in all rows at each step; expected no"),
    ("rows(w, I, g, C, momentum_buffer_scale=S)", "momentum_buffer is in int8, where 256 weights of one block share"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refused_when_compiling(call, message):
    """What the types of a call show to be wrong is refused, in words."""
    known = {"np": np, "step": proptim.numba.sgd, "rows": proptim.numba.sgd_rows, "bfloat16": bfloat16}
    known["rprop"] = proptim.numba.rprop
    exec(f"def refused(w, g, C, S, A, D, W, I, F): {call}", known)
    arrays = np.ones((4, 4), np.float32)
    with pytest.raises(numba.TypingError, match=message):
        numba.njit(known["refused"])(*arrays[:2], C, S, arrays[2], np.ones(4), W, np.arange(4), arrays[3])


WRONG = [  # what is changed in a call of `in_one_byte`, and the error
    ({"square_avg_scale": np.zeros(3, np.float32)}, "square_avg_scale is not what belongs to square_avg; exp"),
    ({"square_avg_scale": np.full(17, np.nan, np.float32)}, "square_avg_scale is not what belongs to"),
    ({"average": np.zeros(5, np.float32)}, "average has not the shape of param"),
    ({"copy": np.zeros(5, np.uint16)}, "publish has not the shape of param"),
    ({"ema": 1.0}, "Invalid ema value: expected a number >= 0 and < 1"),
    ({"ema": np.nan}, "Invalid ema value"),
    ({"rounding": "up"}, "Invalid rounding: expected 'nearest' or 'stochastic'"),
    ({"seed": -1}, "Invalid seed: expected a whole number >= 0"),
]  # fmt: skip


@each_way
def test_refused_when_running(way):
    """What only the values show to be wrong is refused, and nothing has changed."""
    w, grad = np.ones((2, SIZE), np.float32)
    options = {key: value for key, value in options_of("rmsprop").items() if key in proptim.RMSprop.hyper}
    state = functional.rmsprop.init(w, state_dtype="int8", ema=0.9, **options)
    call = {"w": w, "g": grad, "average": state.pop("average"), "copy": np.zeros(SIZE, np.uint16), **state}
    call |= {"losses": np.array(LOSSES), "k": 1, "ema": 0.9, "rounding": "nearest", "seed": 0}
    before = [array.copy() for array in call.values() if isinstance(array, np.ndarray)]
    shared = {"average": call["w"]}, "param and average share memory"
    for changed, message in [*WRONG, shared]:
        with pytest.raises(ValueError, match=message):
            in_one_byte(way, "rmsprop")(*{**call, **changed}.values())
    after = [array for array in call.values() if isinstance(array, np.ndarray)]
    assert [array.tobytes() for array in after] == [array.tobytes() for array in before]


@each_way
def test_grids_of_rprop(way):
    """Etas off the grid, and a grid of other etas or step sizes, are refused; the least step size is of the grid."""
    run = compiled(
        way,
        """
def run(w, g, word, grid, etas, sizes):
    rprop(w, g, word, step_word_scale=grid, etas=etas, step_sizes=sizes)
""",
    )
    start, grad = np.zeros(5, np.float32), np.ones(5, np.float32)
    for etas, sizes in (((0.5, 2**0.25), (1e-3, 0.7)), ((0.25, 2.0), (1e-6, 50.0))):
        state = functional.rprop.init(start, state_dtype="int8", etas=etas, step_sizes=sizes)
        w, theirs = start.copy(), start.copy()
        kept = {key: array.copy() for key, array in state.items()}
        for k in range(40):
            sign = np.float32((-1) ** k)
            run(w, grad * sign, state["step_word"], state["step_word_scale"], etas, sizes)
            functional.rprop(theirs, grad * sign, **kept, etas=etas, step_sizes=sizes)
        assert w.tobytes() == theirs.tobytes()
        assert state["step_word"].tobytes() == kept["step_word"].tobytes()
        for wrong, message in (
            (((0.5, 1.2), sizes), "etas are not those of step sizes in one byte; expected eta_plus = "),
            (((0.5, 2**0.5), sizes), "step_word_scale is the grid of other etas or step_sizes"),
            ((etas, sizes[::-1]), "step_sizes is a pair in the wrong order; expected step_min <= step_max"),
            ((etas, (1e-6, 49.0)), "step_word_scale is the grid of other etas or step_sizes"),
        ):
            with pytest.raises(ValueError, match=message):
                run(w, grad, state["step_word"], state["step_word_scale"], *wrong)
        assert w.tobytes() == theirs.tobytes()


def test_centered_rmsprop_has_no_averages_in_one_byte():
    """A difference of two averages is refused in one byte, and its momentum is not."""
    start, message = np.ones(300, np.float32), "centered is on, and square_avg is in one byte; expected 16 bits or more"
    run = compiled(
        "text",
        """
def run(w, g, squares, scale, average): rmsprop(w, g, squares, average, square_avg_scale=scale, centered=True)
""",
    )
    with pytest.raises(ValueError, match=message):
        run(start.copy(), start, np.zeros(300, np.uint8), np.ones(2, np.float32), np.zeros(300, np.float32))
    options = {"centered": True, "momentum": 0.5}
    dtypes = {"momentum_buffer": "int8"}
    w, theirs = np.ones((2, SIZE), np.float32)
    state, kept = (functional.rmsprop.init(w, state_dtype=dtypes, **options) for _ in range(2))
    run = compiled(
        "text",
        """
def run(w, g, squares, average, buffer, scale):
    rmsprop(w, g, squares, average, buffer, momentum_buffer_scale=scale, centered=True, momentum=0.5, step=1)
""",
    )
    grad = np.linspace(-1, 1, SIZE, dtype=np.float32)
    run(w, grad, *state.values())
    functional.rmsprop(theirs, grad, **kept, step=1, **options)
    assert w.tobytes() == theirs.tobytes()
    assert [array.tobytes() for array in state.values()] == [array.tobytes() for array in kept.values()]


def test_random_rounding_counts_its_steps():
    """Without `step` there are no random bits, even of a rule that does not depend on it."""
    run = compiled("text", "def run(w, g, rounding): sgd(bfloat16(w), g, lr=0.1, rounding=rounding)")
    w = np.full(3, 0x3F80, np.uint16)
    with pytest.raises(ValueError, match="rounded at random by the number of the step; expected step="):
        run(w, np.ones(3, np.float32), "stochastic")
    assert (w == 0x3F80).all()
    run(w, np.zeros(3, np.float32), "nearest")
    assert (w == 0x3F80).all()
