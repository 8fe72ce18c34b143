"""Stochastic rounding: unbiased, and the same bits from every backend, layout, thread count and resumed run."""

from __future__ import annotations

import copy
import math
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch

import proptim
import proptim.torch
from proptim import _random, functional
from proptim._formats import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, QUANTA, Int8, Squares8, rounded, widened
from proptim.cli import selftest

BF16 = np.dtype(ml_dtypes.bfloat16)
STORED = [BFLOAT16, FLOAT16, FLOAT32]
RULES = [
    pytest.param(name, options, id="-".join([name, *map(str, options)]))
    for name in proptim.OPTIMIZERS
    for options in selftest.OPTIONS.get(name, [{}])
]
LOSSES = (3.0, 2.0, 2.5, 1.0, 1.5, 0.5)
ON = {"rounding": "stochastic", "seed": 7}


def draws(n, seed=7, parameter=0, array=0, step=1, start=0):
    return _random.words(_random.key_of(seed, parameter, array, step), np.arange(start, start + n, dtype=np.uint64))


# The hash -------------------------------------------------------------------------------------------------------------


def test_words_are_those_that_are_documented():
    """The numbers on the page on fewer bytes, by Python's integers alone."""

    def mix(key, n):
        key = (key ^ n) + 0x9E3779B97F4A7C15 & 2**64 - 1
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
        key = (key ^ key >> 27) * 0x94D049BB133111EB & 2**64 - 1
        return key ^ key >> 31

    def word(seed, parameter, array, step, index):
        key = 0
        for n in (seed, parameter, array, step, index >> 32):
            key = mix(key, n)
        x = (index * 0x9E3779B9 + key) % 2**32
        x = ((x ^ x >> 16) * 0x7FEB352D & 2**32 - 1) ^ key >> 32
        x = (x ^ x >> 15) * 0x846CA68B & 2**32 - 1
        return x ^ x >> 16

    places = [(0, 0, 0, 1, 0), (7, 3, 2, 10, 5), (2**64 - 1, 2**31, 5, 2**40, 2**32 - 1), (7, 3, 2, 10, 2**40 + 5)]
    for *where, index in places:
        (found,) = _random.words(_random.key_of(*where), np.array([index], np.uint64))
        assert found == word(*where, index)
    assert [word(*each) for each in places[:2]] == [*WORDS]


WORDS = (0x65376109, 0xEE9C9A1A)


N = 2**20


def deviation(share, expected, n):
    """By how many standard deviations a share of n draws is off."""
    return abs(share - expected) / math.sqrt(expected * (1 - expected) / n)


def test_bits_are_fair_and_independent():
    """Of a million words: each bit, each value of a byte, and words beside each other in every way that they can be.

    Bounds are of 5 standard deviations, which a good hash exceeds once in two million such numbers.
    """
    base = draws(N)
    near = {
        "index": draws(N, start=1),
        "step": draws(N, step=2),
        "array": draws(N, array=2),
        "parameter": draws(N, parameter=1),
        "seed": draws(N, seed=8),
        "upper half of the index": draws(N, start=2**32),
    }
    for bit in range(32):
        own = base >> np.uint32(bit) & np.uint32(1)
        assert deviation(own.mean(), 0.5, N) < 5, bit
        for name, other in near.items():
            for more in (bit, (bit + 1) % 32):
                same = own == (other >> np.uint32(more) & np.uint32(1))
                assert deviation(same.mean(), 0.5, N) < 5, (name, bit, more)
    for shift in (0, 8, 16, 24):  # chi squared of 255 degrees has mean 255 and variance 510
        for words in (base, *(base ^ other for other in near.values())):
            counts = np.bincount((words >> np.uint32(shift) & np.uint32(255)).astype(np.int64), minlength=256)
            chi = ((counts - N / 256) ** 2 / (N / 256)).sum()
            assert abs(chi - 255) < 5 * math.sqrt(510), shift
    assert len(np.unique(base)) == N  # a permutation of indices, of one key


# Rounding -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", STORED, ids=["bfloat16", "float16", "float32"])
def test_rounding_is_unbiased(dtype):
    """A number between two neighbours goes up as often as it is far from the lower one."""
    real = FLOAT64 if dtype == FLOAT32 else FLOAT32
    fraction, bias = _random.NARROW[dtype]
    words = draws(N)
    for exponent in (0, 3, 1 - bias, -bias - fraction // 2):  # normal numbers, and subnormal ones, for bfloat16 too
        unit = 2.0 ** (max(exponent, 1 - bias) - fraction)
        low = 2.0**exponent // unit * unit
        for part in (1 / 256, 0.25, 0.3125, 0.5, 0.75, 255 / 256):
            for sign in (1.0, -1.0):
                x = sign * (low + part * unit)
                found = _random.dithered(np.full(N, x, real), dtype, words)
                up = np.abs(found.astype(np.float64)) != low
                assert np.array_equal(np.abs(found[up]), np.full(up.sum(), low + unit, real))
                assert deviation(up.mean(), part, N) < 5, (exponent, part)


@pytest.mark.parametrize("real", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("dtype", STORED, ids=["bfloat16", "float16", "float32"])
def test_numbers_of_a_format_stay(dtype, real):
    """What is stored exactly is not rounded, whatever the random bits: every number of 16 bits, infinities and NaN."""
    if dtype == real:
        return
    patterns = np.arange(2**16, dtype=np.uint16).view(dtype if dtype != FLOAT32 else np.uint16)
    numbers = widened(patterns, real)
    for word in (0, 2**32 - 1, 0x80000000):
        found = _random.dithered(numbers, dtype, np.full(numbers.shape, word, np.uint32))
        kind = f"u{real.itemsize}"
        assert np.array_equal(found.view(kind), numbers.view(kind))


@pytest.mark.parametrize("dtype", STORED, ids=["bfloat16", "float16", "float32"])
def test_what_is_rounded_at_random_is_stored_exactly(dtype):
    """Of any number one of its two neighbours, so that the store that follows rounds no more."""
    real = FLOAT64 if dtype == FLOAT32 else FLOAT32
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 2 ** (8 * real.itemsize), 200_000, dtype=f"u{real.itemsize}")
    numbers = bits.view(real)
    numbers = numbers[np.isfinite(numbers)]
    found = _random.dithered(numbers, dtype, draws(numbers.size))
    stored = widened(rounded(found, dtype), real)
    over = np.abs(found) > float(np.finfo(np.float32).max if dtype != FLOAT16 else np.finfo(np.float16).max)
    assert np.array_equal(stored[~over], found[~over])
    assert np.isinf(stored[over]).all()
    assert not over.all()


@pytest.mark.parametrize("levels", [127, 254])
def test_rounding_to_levels_is_unbiased(levels):
    """Of averages in one byte: so too between two levels; of squares those above zero never become zero."""
    words = draws(N)
    values = np.ones(N, np.float32)
    for below in (0, 1, 5, 60, levels - 1):
        low, high = (np.float32((below + i) ** 2 * np.float32(levels**-2)) for i in (0, 1))
        for part in (1 / 256, 0.25, 0.5, 255 / 256):
            values[:] = x = np.float32(low + part * (high - low))
            values[::256] = 1  # the scale of each block
            values[1::2] *= -1
            found = _random.dithered_levels(values, levels, words)
            assert np.array_equal(np.signbit(found), np.signbit(values))
            assert (found[::256] == 1).all()
            others = np.abs(found[np.arange(N) % 256 != 0])
            up = others == high
            assert (up | (others == low)).all()
            if levels == 254 and below == 0:
                assert up.all()
            else:
                assert deviation(up.mean(), (x - low) / (high - low), len(others)) < 5, (below, part)


@pytest.mark.parametrize("levels", [127, 254])
def test_levels_stay(levels):
    """What was loaded is not rounded, and stored as the same bytes, whatever the random bits; NaN and infinity too."""
    kind = Int8 if levels == 127 else Squares8
    codes = np.arange(256, dtype=np.uint8).view(np.int8 if kind is Int8 else np.uint8)
    for scale in (1.0, 2.0**-109, 0.1, 3e38):
        numbers = kind(codes, np.array([scale], np.float32)).load()
        for word in (0, 2**32 - 1):
            with np.errstate(all="ignore"):
                found = _random.dithered_levels(numbers, levels, np.full(256, word, np.uint32))
            assert np.array_equal(found, numbers, equal_nan=True)
    infinite = np.full(256, -np.inf, np.float32)
    with np.errstate(all="ignore"):
        assert np.array_equal(_random.dithered_levels(infinite, levels, draws(256)), infinite)


def test_small_steps_add_up_on_average():
    """Steps of a hundredth of a unit in the last place: to nearest they are lost, at random they arrive."""
    n, steps = 4096, 200
    moved = {}
    for rounding in ("nearest", "stochastic"):
        w = np.ones(n, BF16)
        opt = proptim.SGD([w], lr=2.0**-14, master=None, rounding=rounding, seed=3)  # 1/128 of a unit above 1
        for _ in range(steps):
            opt.step([np.full(n, -1.0, np.float32)])
        moved[rounding] = (w.astype(np.float64) - 1).mean()
    assert moved["nearest"] == 0
    # Each weight is 1 and the sum of 200 draws, which are 2**-7 with a probability of 1/128 and else 0.
    expected = steps * 2.0**-14
    assert abs(moved["stochastic"] - expected) < 5 * math.sqrt(steps / 128 / n) * 2.0**-7


def test_averages_of_squares_do_not_get_stuck():
    """An average at beta2 = 0.999 whose gradient has become smaller: at random it follows, to nearest it does not.

    To nearest it stays where abs(g**2 / v - 1) < 2**-9 / (1 - beta2). At random its mean is that of the exact average,
    because the rule is linear in it: of 4096 elements, each with an error of half a unit or less a step, which later
    steps shrink, within 5 standard deviations.
    """
    n, steps, beta2 = 4096, 300, float(np.float32(0.999))
    units = []
    for rounding in ("nearest", "stochastic"):
        opt = proptim.Adam([np.zeros(n, np.float32)], state_dtype={"exp_avg_sq": "bfloat16"}, rounding=rounding, seed=1)
        opt.state[0]["exp_avg_sq"][:] = 0.75
        grad = np.full(n, 0.5, np.float32)
        for _ in range(steps):
            opt.step([grad])
        found = opt.state[0]["exp_avg_sq"].astype(np.float64)
        exact = 0.25 + 0.5 * beta2**steps
        units.append((found.mean() - exact) / 2.0**-8)  # of numbers from 0.5 to 1
    assert units[0] == (0.75 - exact) * 2**8
    assert abs(units[1]) < 5 * math.sqrt(0.25 / (1 - beta2**2) / n)


def test_averages_in_one_byte_do_not_get_stuck():
    """The same of squares in one byte: beside one of 4 a level at 0.75 is 0.013, and a step moves it by 0.0005."""
    n, steps, beta2 = 4096, 300, float(np.float32(0.999))
    others = np.arange(n) % QUANTA != 0
    grad = np.where(others, 0.5, 2).astype(np.float32)
    wide = proptim.Adam([np.zeros(n, np.float32)])
    wide.state[0]["exp_avg_sq"][:] = np.where(others, 0.75, 4)
    found = []
    for rounding in ("nearest", "stochastic"):
        opt = proptim.Adam([np.zeros(n, np.float32)], state_dtype="int8", rounding=rounding, seed=1)
        opt.load_state_dict(wide.state_dict(), cast=True)
        begin = opt.state[0]["exp_avg_sq"].astype(np.float64)[others]
        for _ in range(steps):
            opt.step([grad])
        found.append((begin, opt.state[0]["exp_avg_sq"].astype(np.float64)[others]))
    assert np.array_equal(*found[0])
    begin, end = found[1]
    exact = 0.25 + (begin.mean() - 0.25) * beta2**steps
    level = 2 * 4 * math.sqrt(0.75 / 4) / 254
    assert abs(end.mean() - exact) < 5 * level * math.sqrt(0.25 / (1 - beta2**2) / len(end))


def trained(run, options):
    """Percent of the test digits that a network tells after 30 epochs of Adam; with options, weights have 16 bits."""
    x, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    rng = np.random.default_rng(run)
    test, train = np.split(rng.permutation(len(x)), [360])
    params = []
    for rows, columns in ((64, 64), (64, 10)):
        weights = (rng.normal(size=(rows, columns)) * np.sqrt(2 / rows)).astype(np.float32)
        params += [w.astype(BF16) if options else w for w in (weights, np.zeros(columns, np.float32))]
    opt = proptim.Adam(params, lr=1e-3, threads=1, **options)

    def forward(samples):
        w, b, v, c = (p.astype(np.float32) for p in params)
        hidden = np.maximum(samples @ w + b, 0)
        return v, hidden, hidden @ v + c

    for _ in range(30):
        order = rng.permutation(train)
        for batch in np.split(order, range(64, len(order), 64)):
            v, hidden, scores = forward(x[batch])
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
            scores[np.arange(len(batch)), y[batch]] -= 1
            scores /= len(batch)
            back = (scores @ v.T) * (hidden > 0)
            opt.step([x[batch].T @ back, back.sum(axis=0), hidden.T @ scores, scores.sum(axis=0)])
    return 100 * (forward(x[test])[2].argmax(axis=1) == y[test]).mean()


@pytest.mark.slow
@pytest.mark.once
def test_accuracy_of_float32():
    """Weights and state of bfloat16 alone, over ten seeds: within 0.3 points at random, and not to nearest."""
    sixteen = {"master": None, "state_dtype": "bfloat16"}
    float32, nearest, stochastic = (
        np.mean([trained(run, options) for run in range(10)])
        for options in ({}, sixteen, {**sixteen, "rounding": "stochastic", "seed": 1})
    )
    assert abs(stochastic - float32) <= 0.3
    assert nearest < float32 - 0.3


# The same bits --------------------------------------------------------------------------------------------------------


def start(order="C"):
    """Parameters of every dtype that a rule rounds, and of some that it does not."""
    rng = np.random.default_rng(1)
    shapes = {"a": ((37, 45), BF16), "b": ((11,), np.float16), "c": ((3, 5, 7), np.float64), "d": ((33,), np.float32)}
    shapes |= {"e": ((), BF16), "f": ((0,), BF16), "g": ((5, 4), np.complex64)}
    made = {}
    for name, (shape, dtype) in shapes.items():
        numbers = rng.normal(size=shape) + (1j * rng.normal(size=shape) if np.dtype(dtype).kind == "c" else 0)
        made[name] = np.array(numbers, dtype, order=order)
    return made


def gradients(params, k):
    rng = np.random.default_rng(100 + k)
    return {
        name: np.array(rng.normal(size=w.shape) * (1 - 2j if w.dtype.kind == "c" else 1), w.dtype)
        for name, w in params.items()
    }


def bits(opt, params):
    """Bytes of all parameters and of their state, in C order."""
    arrays = [*params.values()]
    arrays += [a for key in params for a in opt.state[key].values() if isinstance(a, np.ndarray)]
    return [np.asarray(a).tobytes() for a in arrays]


def made(name, options, params, **more):
    options = {"lr": 1e-3, "master": None, "state_dtype": "bfloat16", **ON, **options, **more}
    return proptim.OPTIMIZERS[name](params, **options)


def run(name, options, begin=0, end=6, params=None, opt=None, **more):
    params = start() if params is None else params
    opt = made(name, options, params, **more) if opt is None else opt
    for k in range(begin, end):
        opt.step(gradients(params, k), loss=LOSSES[k])
    return opt, params


@pytest.mark.parametrize(("name", "options"), RULES)
@pytest.mark.parametrize("state", ["bfloat16", "float16", "float32"])
def test_every_backend(contestant, name, options, state):
    """Every rule, with every kind of parameter, has the bits of the numpy backend, also on three threads."""
    if name == "rprop" and state == "float16":
        return  # which cannot hold step sizes, and is refused
    more = {"state_dtype": state, "zero_grads": True, "weight_decay": 0.01}
    expected = bits(*run(name, options, backend="numpy", **more))
    assert bits(*run(name, options, backend=contestant, **more)) == expected
    if contestant == "c":
        assert bits(*run(name, options, backend=contestant, threads=3, **more)) == expected


@pytest.mark.parametrize("order", ["F", "strided", "reversed", "swapped"])
def test_every_layout(backend, order):
    """An element has the random bits of its index in C order, wherever it lies."""
    expected = bits(*run("adam", {}, backend=backend))
    params = start("F" if order == "F" else "C")
    if order != "F":
        for key, w in params.items():
            if order == "strided":
                room = np.zeros([2 * n for n in w.shape], w.dtype)[(..., *(slice(None, None, 2) for _ in w.shape))]
            elif order == "reversed":
                room = np.zeros(w.shape, w.dtype)[(..., *(slice(None, None, -1) for _ in w.shape))]
            else:
                room = np.zeros(w.shape[::-1], w.dtype).T
            room[...] = w
            params[key] = room
    assert bits(*run("adam", {}, backend=backend, params=params)) == expected


def test_rows(backend):
    """The rows of a table have the bits of these rows in a dense step, and others are unchanged."""
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(50, 21)).astype(BF16)
    for rows in ([3, 4, 49], [49, 0, 7]):
        table, dense = whole.copy(), whole.copy()
        options = {"lr": 1e-2, "master": None, "state_dtype": "bfloat16", "backend": backend, **ON}
        sparse, full = proptim.Adam([table], **options), proptim.Adam([dense], **options)
        for _ in range(3):
            values = rng.normal(size=(3, 21)).astype(np.float32)
            grad = np.zeros((50, 21), np.float32)
            grad[rows] = values
            sparse.step([proptim.Rows(rows, values)])
            full.step([grad])
        assert table[rows].tobytes() == dense[rows].tobytes()
        for key in ("exp_avg", "exp_avg_sq"):
            assert sparse.state[0][key][rows].tobytes() == full.state[0][key][rows].tobytes()
        rest = np.delete(np.arange(50), rows)
        assert table[rest].tobytes() == whole[rest].tobytes()


def test_rows_that_make_up_missed_steps(contestant):
    """What is made up is rounded at random too: without a bias, by words of its own, the same on every backend."""
    found = []
    for backend in ("numpy", contestant):
        table = np.ones((2, 4096), np.float32)
        options = {"alpha": 0.999, "state_dtype": "bfloat16", "backend": backend, **ON}
        opt = proptim.RMSprop([table], lazy_rows=False, **options)
        opt.step([np.ones((2, 4096), np.float32)])
        before = opt.state[0]["square_avg"][1].astype(np.float64)
        for _ in range(100):
            opt.step([proptim.Rows([0], np.ones((1, 4096), np.float32))])
        opt.catch_up()
        found.append(bits(opt, {0: table}))
        after = opt.state[0]["square_avg"][1].astype(np.float64)
        exact = (before * float(np.float32(0.999)) ** 100).astype(np.float32).astype(np.float64)
        unit = 2.0 ** (np.floor(np.log2(exact)) - 7)
        part = exact / unit % 1
        assert 0.01 < part.min() < part.max() < 0.99
        assert abs((after - exact).sum()) < 5 * math.sqrt((unit**2 * part * (1 - part)).sum())
    assert found[0] == found[1]


def test_every_form_of_the_step(backend):
    """Bound gradients, passed ones, and step_param in any order: the step count of each parameter decides."""
    expected = bits(*run("adam", {}, backend=backend))
    params = start()
    opt = made("adam", {}, params, backend=backend)
    for k in range(6):
        for key in sorted(params, reverse=k % 2 == 1):
            opt.step_param(key, gradients(params, k)[key])
    assert bits(opt, params) == expected
    params = start()
    grads = gradients(params, 0)
    opt = made("adam", {}, params, backend=backend, grads=grads)
    for k in range(6):
        for key, grad in gradients(params, k).items():
            grads[key][...] = grad
        opt.step()
    assert bits(opt, params) == expected


def test_the_seed_decides(backend):
    """Other seeds give other bits, and the same seed the same; a seed that is set applies from the next step on."""
    first = bits(*run("adam", {}, backend=backend))
    assert bits(*run("adam", {}, backend=backend, seed=8)) != first
    opt, params = run("adam", {}, end=3, backend=backend, seed=8)
    opt.seed = 9
    other, others = run("adam", {}, end=3, backend=backend, seed=8)
    loaded = made("adam", {}, others, backend=backend, seed=9)
    saved = other.state_dict()
    del saved["seed"]
    loaded.load_state_dict(saved)
    assert bits(*run("adam", {}, 3, params=params, opt=opt)) == bits(*run("adam", {}, 3, params=others, opt=loaded))


@pytest.mark.parametrize("way", ["state_dict", "file", "pickle", "deepcopy"])
@pytest.mark.parametrize("name", ["sgd", "adam", "rprop"])
def test_a_resumed_run_goes_on_with_the_same_bits(backend, name, way, tmp_path):
    """Whatever seed the new optimizer was made with: that of the run is saved with it."""
    expected = bits(*run(name, {}, backend=backend))
    opt, params = run(name, {}, end=3, backend=backend)
    if way in ("state_dict", "file"):
        fresh = made(name, {}, params, backend=backend, seed=0)
        if way == "file":
            opt.save(tmp_path / "run.npz")
            fresh.load(tmp_path / "run.npz")
        else:
            fresh.load_state_dict(opt.state_dict())
        assert fresh.seed == 7
    else:
        fresh = pickle.loads(pickle.dumps(opt)) if way == "pickle" else copy.deepcopy(opt)
        params = dict(zip(params, (p.array for p in fresh._stepper.parameters), strict=True))
        params = {key: w.view(BF16) if w.dtype == np.uint16 else w for key, w in params.items()}
    assert bits(*run(name, {}, 3, params=params, opt=fresh)) == expected


def test_functional(backend):
    """One step without an object is that of parameter 0."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=300).astype(BF16)
    v = w.copy()
    opt = proptim.Adam([w], lr=1e-3, master=None, state_dtype="bfloat16", backend=backend, **ON)
    state = functional.adam.init(v, master=None, state_dtype="bfloat16")
    for step in range(1, 4):
        grad = rng.normal(size=300).astype(np.float32)
        opt.step([grad])
        functional.adam(v, grad, **state, step=step, lr=1e-3, backend=backend, **ON)
        assert v.tobytes() == w.tobytes()


# torch ----------------------------------------------------------------------------------------------------------------


def tensors():
    rng = np.random.default_rng(4)
    made = [rng.normal(size=shape).astype(np.float32) for shape in ((40, 30), (9,), (3, 2, 5))]
    found = [torch.nn.Parameter(torch.from_numpy(a).to(torch.bfloat16)) for a in made]
    return [*found, torch.nn.Parameter(found[0].detach().clone().t().contiguous().t())]


def torch_run(name, begin=0, end=6, params=None, opt=None, left_out=(), **options):
    params = tensors() if params is None else params
    options = {"lr": 1e-3, "master": None, "state_dtype": "bfloat16", **ON, **options}
    opt = getattr(proptim.torch, name)(params, **options) if opt is None else opt
    for k in range(begin, end):
        rng = np.random.default_rng(k)
        for i, p in enumerate(params):
            grad = torch.from_numpy(rng.normal(size=tuple(p.shape))).to(torch.bfloat16)
            p.grad = None if i in left_out else grad
        opt.step()
    return opt, params


def torch_bits(opt, params):
    state = [[t for t in opt.state[p].values() if isinstance(t, torch.Tensor) and t.ndim] for p in params]
    tensors = [*params, *(t for own in state for t in own)]
    return [t.detach().contiguous().view(torch.int16).numpy().tobytes() for t in tensors]


@pytest.mark.parametrize("name", ["SGD", "Adam", "Lion"])
def test_torch(backend, name):
    """The bits of the optimizer of NumPy, by the number of a parameter, also if others have no gradient."""
    for left_out in ((), (0, 2)):
        opt, params = torch_run(name, backend=backend, left_out=left_out)
        arrays = tensors()
        other = getattr(proptim, name)(
            [p.detach() for p in arrays], lr=1e-3, master=None, state_dtype="bfloat16", backend=backend, **ON
        )
        for k in range(6):
            rng = np.random.default_rng(k)
            grads = [torch.from_numpy(rng.normal(size=tuple(p.shape))).to(torch.bfloat16) for p in arrays]
            other.step([None if i in left_out else grad for i, grad in enumerate(grads)])
        assert torch_bits(opt, params)[:4] == torch_bits(opt, arrays)[:4]


@pytest.mark.parametrize("way", ["state_dict", "file", "pickle"])
@pytest.mark.parametrize(("name", "options"), [("SGD", {}), ("SGD", {"momentum": 0.9}), ("Adam", {}), ("Rprop", {})])
def test_torch_resumes(name, options, way, tmp_path):
    """Also SGD, whose state has the step where it is needed, and through torch.save."""
    expected = torch_bits(*torch_run(name, **options))
    opt, params = torch_run(name, end=3, **options)
    if way == "pickle":
        fresh = pickle.loads(pickle.dumps(opt))
        params = [p for group in fresh.param_groups for p in group["params"]]
    else:
        saved = opt.state_dict()
        assert saved["seed"] == 7
        if way == "file":
            torch.save(saved, tmp_path / "run.pt")
            saved = torch.load(tmp_path / "run.pt", weights_only=True)
        fresh, _ = torch_run(name, end=0, params=params, **options, seed=0)
        fresh.load_state_dict(saved)
        assert fresh.seed == 7
    assert torch_bits(*torch_run(name, 3, params=params, opt=fresh)) == expected


def test_torch_counts_beyond_float32():
    """Steps are counted in float64, for float32 stays at 2**24 and so would the random bits; also those of a file."""
    runs = []
    for count in (torch.float32, torch.float64):
        opt, params = torch_run("SGD", end=1)
        saved = opt.state_dict()
        for own in saved["state"].values():
            assert own["step"].dtype == torch.float64
            own["step"] = torch.tensor(2.0**24, dtype=count)
        opt.load_state_dict(saved)
        torch_run("SGD", 1, 3, params=params, opt=opt)
        assert {float(own["step"]) for own in opt.state.values()} == {2.0**24 + 2}
        runs.append(torch_bits(opt, params))
    assert runs[0] == runs[1]


def test_torch_refuses():
    with pytest.raises(ValueError, match="Invalid rounding: 'up'"):
        torch_run("SGD", rounding="up")
    opt, _ = torch_run("SGD")
    with pytest.raises(ValueError, match="Invalid seed: -1"):
        opt.seed = -1
    with pytest.raises(ValueError, match="Invalid seed: 'x'"):
        opt.load_state_dict({**opt.state_dict(), "seed": "x"})
    with pytest.raises(AttributeError, match="rounding is fixed"):
        opt.rounding = "nearest"
    assert (opt.seed, opt.rounding) == (7, "stochastic")
    assert "seed" not in proptim.torch.SGD([torch.zeros(2)]).state_dict()


# Where nothing is rounded, and what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize("master", ["auto", "float32"])
def test_nothing_changes_where_nothing_is_rounded_at_random(backend, master):
    """Masters and plain arrays: a split loses nothing, and the 16 bits beside a float32 master are its nearest."""
    found = []
    for options in ({}, ON):
        params = {key: w for key, w in start().items() if key != "c"}
        opt = proptim.Adam(params, master=master, backend=backend, **options)
        for k in range(3):
            opt.step(gradients(params, k))
        found.append(bits(opt, params))
    assert found[0] == found[1]


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, 1.0, True, None, "7", (1, 2)])
def test_illegal_seeds(seed):
    with pytest.raises(ValueError, match=r"^Invalid seed: .* \(expected a whole number >= 0, below 2\*\*64\)$"):
        proptim.SGD([np.zeros(2)], lr=0.1, seed=seed)
    with pytest.raises(ValueError, match=r"^Invalid seed: "):
        functional.sgd(np.zeros(2), np.zeros(2), lr=0.1, seed=seed)
    opt = proptim.SGD([np.zeros(2)], lr=0.1, seed=5)
    saved = {**opt.state_dict(), "seed": seed}
    with pytest.raises(ValueError, match=r"^Invalid seed: "):
        opt.load_state_dict(saved)
    assert opt.seed == 5


@pytest.mark.parametrize("rounding", ["Stochastic", "", None, True, 1, ["nearest"]])
def test_illegal_roundings(rounding):
    with pytest.raises(ValueError, match=r"^Invalid rounding: .* \(expected 'nearest' or 'stochastic'\)$"):
        proptim.SGD([np.zeros(2)], lr=0.1, rounding=rounding)
    with pytest.raises(ValueError, match=r"^Invalid rounding: "):
        functional.sgd(np.zeros(2), np.zeros(2), lr=0.1, rounding=rounding)


def test_rounding_is_fixed():
    opt = proptim.SGD([np.zeros(2)], lr=0.1)
    with pytest.raises(AttributeError, match="rounding is fixed at construction; expected no change: make a new"):
        opt.rounding = "stochastic"


def test_a_step_without_a_number_is_refused():
    """The random bits are those of a step: without its number all steps would round alike."""
    w = np.ones(3, BF16)
    with pytest.raises(TypeError, match="sgd rounds at random by the number of the step; expected step="):
        functional.sgd(w, np.ones(3, np.float32), lr=0.1, **ON)
    assert (w == 1).all()


@pytest.mark.parametrize("whole", [np.int64, np.uint8, np.array, torch.tensor])
def test_seeds_of_other_libraries(whole):
    """Whole numbers of NumPy and torch are seeds everywhere, and are kept as those of Python."""
    w = torch.zeros(2)
    opt = proptim.torch.SGD([w], lr=0.1, rounding="stochastic", seed=whole(7))
    opt.load_state_dict({**opt.state_dict(), "seed": whole(8)})
    assert opt.state_dict()["seed"] == 8
    opt.seed = whole(9)
    array = proptim.SGD([np.zeros(2)], lr=0.1, rounding="stochastic", seed=whole(7))
    array.seed = whole(9)
    for each in (opt, array):
        assert type(each.seed) is int
        assert each.seed == 9
    functional.sgd(np.zeros(2), np.zeros(2), lr=0.1, step=1, rounding="stochastic", seed=whole(7))


def test_seeds_up_to_64_bits(backend):
    """Also of NumPy, and all bits count."""
    found = {
        bytes(run("sgd", {}, backend=backend, seed=seed)[1]["a"].tobytes()) for seed in (np.int64(0), 2**63, 2**64 - 1)
    }
    assert len(found) == 3
