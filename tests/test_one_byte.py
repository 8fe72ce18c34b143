"""State in one byte: the codecs, every rule on every backend, and what is refused."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import proptim
from proptim._formats import FORGET, QUANTA, Int8, Squares8, Steps8
from proptim._storage import SMALLEST_IN_BLOCKS
from proptim.cli import selftest
from proptim.rprop import ETAS_ON_GRID

SHAPE = (67, 83)
"""Of more elements than SMALLEST_IN_BLOCKS, no whole number of blocks."""
CASES = [(name, i) for name, cls in proptim.OPTIMIZERS.items() for i in range(len(cls.cases))]
ON_GRID = {"etas": ETAS_ON_GRID}


def made(name, i, params=None, **options):
    params = [np.zeros(SHAPE, np.float32)] if params is None else params
    cls = proptim.OPTIMIZERS[name]
    return cls(params, **{**selftest.in_one_byte(name, cls.cases[i]), **options})


def step(opt, rng, times=4):
    """Steps with gradients of many sizes, some of them zero."""
    for k in range(times):
        grad = rng.standard_normal(SHAPE) * np.exp(3 * rng.standard_normal(SHAPE)) * (rng.random(SHAPE) < 0.9)
        opt.step([grad.astype(np.float32)], loss=float(10 - k) if opt.needs_loss(opt.param_groups[0]) else None)


def bits(opt, w):
    """The weights and the state as bytes."""
    state = opt.state_dict()["state"][0]
    return [
        np.ascontiguousarray(w).tobytes(),
        *((n, a.tobytes()) for n, a in state.items() if isinstance(a, np.ndarray)),
    ]


# Codecs ---------------------------------------------------------------------------------------------------------------


def through(kind, values):
    """Numbers as they are stored and loaded again."""
    code = np.empty(values.shape, np.int8 if kind is Int8 else np.uint8)
    stored = kind(code, np.empty(-(-code.size // QUANTA), np.float32))
    for target, where, value in stored.stores(values):
        target[where] = value
    return stored


@pytest.mark.parametrize(("kind", "levels"), [(Int8, 127), (Squares8, 254)])
def test_averages_are_rounded_to_the_nearest_level(kind, levels):
    """The largest of a block is exact, all others are nearer to no other level, and stored again they are the same."""
    rng = np.random.default_rng(0)
    values = (rng.random(1000) * 2.0 ** -rng.integers(0, 30, 1000)).astype(np.float32)
    values[::50] = 0
    if kind is Int8:
        values[::3] *= -1
    stored = through(kind, values)
    got, scale = stored.load(), np.repeat(stored.scale, QUANTA)[:1000].astype(float)
    assert got.dtype == np.float32
    largest = np.abs(values) == scale
    assert largest.sum() >= 4
    assert np.array_equal(got[largest], values[largest])
    grid = (np.arange(levels + 1) / levels) ** 2 * scale[:, None]
    nearest = np.abs(grid - np.abs(values.astype(float))[:, None]).min(axis=1)
    miss = np.abs(got.astype(float) - values)
    raised = (kind is Squares8) & (values > 0) & (np.abs(values) < grid[:, 1] / 2)
    assert (miss <= nearest + scale * 2.0**-22)[~raised].all()
    assert np.allclose(got[raised], grid[raised, 1])
    assert ((got > 0) == (values > 0)).all() if kind is Squares8 else (got * values >= 0).all()
    again = through(kind, got)
    assert np.array_equal(again.code, stored.code)
    assert np.array_equal(again.scale, stored.scale)


@pytest.mark.once
@pytest.mark.parametrize(("kind", "levels"), [(Int8, 127), (Squares8, 254)])
def test_the_largest_of_a_block_is_exact_from_the_least_scale_on(kind, levels):
    """Below it numbers are levels of the least scale, 2^-109; the first level of squares is a normal number then."""
    least = np.float32(2.0**-109)
    for largest in (np.nextafter(least, np.float32(1)), least):
        stored = through(kind, np.array([0, largest], np.float32))
        assert (stored.scale[0], stored.load()[1]) == (largest, largest)
    under = np.nextafter(least, np.float32(0))
    stored = through(kind, np.array([0, under], np.float32))
    assert (stored.scale[0], stored.load()[1]) == (least, least) != (least, under)
    first = float(through(kind, np.array([np.float32(2.0**-126)])).load()[0])
    assert first == (0.0 if kind is Int8 else float(np.float32(1 / levels**2) * least))
    assert kind is Int8 or np.finfo(np.float32).smallest_normal <= first < 2.0**-124


@pytest.mark.parametrize("kind", [Int8, Squares8])
def test_what_is_not_finite_is_nan_alone(kind):
    """NaN and infinity become NaN; the others of their block are as without them."""
    values = np.linspace(0, 1, 300, dtype=np.float32)
    broken = values.copy()
    broken[[3, 7]] = np.nan, np.inf
    got, expected = through(kind, broken).load(), through(kind, values).load()
    assert np.isnan(got[[3, 7]]).all()
    assert np.array_equal(np.delete(got, [3, 7]), np.delete(expected, [3, 7]))
    assert not through(kind, np.zeros(300, np.float32)).load().any()


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_steps_stay_on_the_grid(n):
    """Products with powers of the root are the sizes of the grid; the grid ends at its smallest and largest."""
    grid = np.array([50, n], np.float32)
    words = Steps8(np.arange(255, dtype=np.uint8), grid).load()
    sizes = 50 * 2.0 ** (-np.arange(85) / n)
    assert np.allclose(words, np.concatenate([sizes, -sizes, sizes * FORGET]), rtol=1e-6)
    k = np.arange(255) % 85
    for by in (-2 * n, -1, 0, 1):
        code = np.empty(255, np.uint8)
        ((_, _, got),) = Steps8(code, grid).stores(words * np.float32(2.0 ** (by / n)))
        inside = sizes[k] * 2.0 ** (by / n) > 2.0**-50
        assert np.array_equal(got[inside], (np.arange(255) - k + np.clip(k - by, 0, 84))[inside])


# Optimizers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["C", "F", "reversed"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("name", "i"), CASES)
def test_same_bits_everywhere(backend, name, i, threads, layout):
    """Weights, codes and scales are those of the numpy backend, with any number of threads and memory layout."""
    weights = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    w = {"C": weights.copy(), "F": np.asfortranarray(weights), "reversed": weights[::-1, ::-1].copy()[::-1, ::-1]}[
        layout
    ]
    twin = made(name, i, [weights], backend="numpy")
    opt = made(name, i, [w], backend=backend, threads=threads)
    step(twin, np.random.default_rng(2))
    step(opt, np.random.default_rng(2))
    assert bits(opt, w) == bits(twin, weights)


@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize(("name", "i"), CASES)
def test_same_bits_at_random(backend, name, i, layout):
    """So too with stochastic rounding, and of a run that is saved in between."""
    weights = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    w = np.array(weights, order=layout)
    options = {"rounding": "stochastic", "seed": 5}
    twin = made(name, i, [weights], backend="numpy", **options)
    opt = made(name, i, [w], backend=backend, threads=3, **options)
    step(twin, np.random.default_rng(2), 4)
    step(opt, np.random.default_rng(2), 2)
    resumed = made(name, i, [w], backend=backend, rounding="stochastic")
    resumed.load_state_dict(opt.state_dict())
    rng = np.random.default_rng(2)
    step(made(name, i), rng, 2)  # takes what the first two steps took
    step(resumed, rng, 2)
    if not opt.needs_loss(opt.param_groups[0]):  # whose losses begin again
        assert bits(resumed, w) == bits(twin, weights)


@pytest.mark.parametrize(("name", "i"), CASES)
def test_state_survives(name, i, tmp_path):
    """A file, pickle, a copy and step_param: the same bits, and a run goes on with the same bits."""
    w = np.ones(SHAPE, np.float32)
    opt = made(name, i, [w])
    step(opt, np.random.default_rng(3))
    opt.save(tmp_path / "a.npz")
    loaded, rng = made(name, i, [w.copy()]), np.random.default_rng
    loaded.load(tmp_path / "a.npz")
    twins = [loaded, pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt)]
    step(opt, rng(4), 2)
    for twin in twins:
        step(twin, rng(4), 2)
        assert bits(twin, twin.param_groups[0]["params"][0]) == bits(opt, w)
    if not opt.needs_loss(opt.param_groups[0]):
        grad = rng(5).standard_normal(SHAPE).astype(np.float32)
        opt.step([grad])
        loaded.step_param(0, grad)
        assert bits(loaded, loaded.param_groups[0]["params"][0]) == bits(opt, w)


@pytest.mark.parametrize(("name", "i"), CASES)
def test_state_is_shown_in_float32_and_loads_across(name, i):
    """It is shown read-only; with cast=True it loads into float32 and back to the same bytes, without it is refused."""
    opt, wide = made(name, i), made(name, i, state_dtype=None)
    step(opt, np.random.default_rng(6))
    arrays = {n: a for n, a in opt.state[0].items() if isinstance(a, np.ndarray)}
    kept = opt.state_dict()["state"][0]
    for n, array in arrays.items():
        assert array.dtype == np.float32
        assert array.flags.writeable == (n in kept and kept[n].dtype == np.float32)
    if not any(n.endswith("_scale") for n in kept):
        return
    with pytest.raises(TypeError, match=r"is u?int8; expected float32, .* pass cast=True"):
        wide.load_state_dict(opt.state_dict())
    wide.load_state_dict(opt.state_dict(), cast=True)
    for n, array in arrays.items():
        assert np.array_equal(wide.state[0][n], array)
    back = made(name, i)
    with pytest.raises(TypeError, match=r"is float32; expected int8, .* pass cast=True"):
        back.load_state_dict(wide.state_dict())
    back.load_state_dict(wide.state_dict(), cast=True)
    assert bits(back, 0) == bits(opt, 0)


def test_small_averages_stay_in_float32_and_a_dict_says_which():
    small, large = np.zeros(SMALLEST_IN_BLOCKS - 1, np.float32), np.zeros(SMALLEST_IN_BLOCKS, np.float32)
    opt = proptim.Adam([small, large], state_dtype={"exp_avg": "int8", "exp_avg_sq": "float16"})
    state = opt.state_dict()["state"]
    assert {n: a.dtype.name for n, a in state[0].items() if n != "step"} == {
        "exp_avg": "float32",
        "exp_avg_sq": "float16",
    }
    assert {n: a.dtype.name for n, a in state[1].items() if n != "step"} == {
        "exp_avg_code": "int8",
        "exp_avg_scale": "float32",
        "exp_avg_sq": "float16",
    }
    word = proptim.Rprop([small], state_dtype="int8", **ON_GRID).state_dict()["state"][0]["step_word_code"]
    assert word.dtype == np.uint8


@pytest.mark.parametrize("magnitude", [1e-3, 1.0, 1e3])
def test_average_of_squares_with_a_small_gradient(magnitude):
    """A constant gradient beside one a thousand times as large: the root of its average is off by less than a level."""
    w = np.zeros(SMALLEST_IN_BLOCKS, np.float32)
    grad = np.full_like(w, 1e-3 * magnitude)
    grad[::QUANTA] = magnitude
    opt = proptim.Adam([w], lr=0.0, betas=(0.9, 0.999), state_dtype="int8")
    for _ in range(3000):
        opt.step([grad])
    root = np.sqrt(opt.state[0]["exp_avg_sq"] / (1 - 0.999**3000))
    assert (root[1:QUANTA] > 0).all()
    assert np.abs(root[1:QUANTA] - grad[1:QUANTA]).max() < magnitude / 254
    assert root[0] == pytest.approx(magnitude, rel=1e-3)


# Rprop ----------------------------------------------------------------------------------------------------------------


def test_step_sizes_in_force_are_shown():
    opt = proptim.Rprop([np.zeros(3, np.float32)], state_dtype="int8", **ON_GRID)
    low, high = opt.param_groups[0]["step_sizes"]
    assert (low, high) == (pytest.approx(50 * 2.0**-21, rel=1e-6), 50.0)
    assert opt.step_sizes == (low, high)
    third = proptim.Rprop([np.zeros(3, np.float32)], state_dtype="int8", etas=(0.5, 2 ** (1 / 3)))
    assert third.step_sizes[0] == pytest.approx(50 * 2.0 ** -(25 + 1 / 3), rel=1e-6)  # the first that is above 1e-6
    for key, value in {"etas": (0.5, 2 ** (1 / 3)), "step_sizes": (1e-3, 1.0)}.items():
        with pytest.raises(ValueError, match=f"{key}' cannot be changed with state_dtype='int8'"):
            opt.param_groups[0][key] = value


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (1, 1)])
def test_one_step_size_or_none(backend, shape):
    """The grid is that of any array."""
    w = np.ones(shape, np.float32)
    opt = proptim.Rprop([w], lr=50 * 2.0**-9, state_dtype="int8", backend=backend, **ON_GRID)
    for size in (1, 2**0.25, 2**0.5):
        before = w.copy()
        opt.step([np.ones(shape, np.float32)])
        assert np.allclose(before - w, 50 * 2.0**-9 * size)
    saved = opt.state_dict()
    assert saved["state"][0]["step_word_scale"].tolist() == [50, 4]
    proptim.Rprop([w], state_dtype="int8", **ON_GRID).load_state_dict(saved)


@pytest.mark.parametrize("variant", ["rprop-", "irprop-", "rprop+", "irprop+"])
def test_steps_are_those_of_float32_on_the_grid(variant):
    """With a first step size on the grid, weights follow float32 to a few roundings of each step."""
    rng = np.random.default_rng(7)
    w = np.zeros(SHAPE, np.float32)
    twin = w.copy()
    kept = {"lr": 50 * 2.0**-9, "variant": variant, "step_sizes": (50 * 2.0**-21, 50.0), **ON_GRID}
    opt, wide = proptim.Rprop([w], state_dtype="int8", **kept), proptim.Rprop([twin], **kept)
    for k in range(40):
        grad = rng.standard_normal(SHAPE).astype(np.float32)
        for each in (opt, wide):
            each.step([grad], loss=float(rng.integers(2)) if k < 0 else float(k % 3) if variant == "irprop+" else None)
    sizes, expected = opt.state[0]["step_size"], wide.state[0]["step_size"]
    assert np.allclose(sizes, expected, rtol=1e-5)
    assert np.array_equal(opt.state[0]["prev"], wide.state[0]["prev"])
    assert np.allclose(w, twin, atol=1e-4)


# Refusals -------------------------------------------------------------------------------------------------------------


def test_refusals():
    """At construction, in words that say what to do instead."""
    w = np.zeros(SMALLEST_IN_BLOCKS, np.float32)
    with pytest.raises(ValueError, match=r"Invalid eta values: \(0.5, 1.2\) .* etas=\(0.5, 2\*\*0.25\)"):
        proptim.Rprop([w], state_dtype="int8")
    with pytest.raises(ValueError, match=r"Invalid step_sizes: a schedule with state_dtype='int8'"):
        proptim.Rprop([w], state_dtype="int8", step_sizes=lambda t: (1e-3, 1.0), **ON_GRID)
    with pytest.raises(ValueError, match=r"'int8' with centered=True, .*expected 'bfloat16'"):
        proptim.RMSprop([w], state_dtype="int8", centered=True)
    opt = proptim.RMSprop([w], state_dtype="int8")
    with pytest.raises(ValueError, match="'centered' cannot be changed with state_dtype='int8'"):
        opt.centered = True
    for dtype in (np.float64, np.complex64, np.complex128):
        with pytest.raises(ValueError, match=rf"'int8' for params\[0\], which is {np.dtype(dtype).name} .*'bfloat16'"):
            proptim.Adam([np.zeros(3, dtype)], state_dtype="int8")


@pytest.mark.parametrize(("name", "i"), CASES)
def test_functions_take_codes_and_scales(backend, name, i):
    """A function that steps what `init` made leaves the bits of an optimizer, also where rounding is random."""
    w, twin = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    opt = made(name, i, [twin], backend=backend, rounding="stochastic", seed=3)
    if opt.needs_loss(opt.param_groups[0]):
        return
    hyper = selftest.in_one_byte(name, proptim.OPTIMIZERS[name].cases[i])
    state_dtype = hyper.pop("state_dtype")
    function, more = getattr(proptim.functional, name), {"rounding": "stochastic", "seed": 3, "backend": backend}
    state, rng = function.init(w, state_dtype=state_dtype, **hyper), np.random.default_rng(11)
    for k in range(3):
        grad = rng.standard_normal(SHAPE).astype(np.float32)
        opt.step([grad])
        function(w, grad, **state, step=k + 1, **hyper, **more)
    kept = opt.state_dict()["state"][0]
    assert np.array_equal(w, twin)
    kept = {n.removesuffix("_code"): a for n, a in kept.items() if isinstance(a, np.ndarray)}
    assert state.keys() == kept.keys()
    assert all(np.array_equal(a, kept[n]) for n, a in state.items())


def test_functions_refuse_what_init_does_not_make():
    """In words, before anything is written."""
    adam, w = proptim.functional.adam, np.ones((SMALLEST_IN_BLOCKS, 2), np.float32)
    grad, state = np.ones_like(w), adam.init(w, state_dtype="int8")
    code, scale = state["exp_avg"], state["exp_avg_scale"]
    readonly = scale.copy()
    readonly.flags.writeable = False
    for change, kind, words in (
        ({"exp_avg_scale": None}, TypeError, "exp_avg has one byte and no exp_avg_scale; expected both"),
        ({"exp_avg": code.view(np.uint8)}, ValueError, "^exp_avg is uint8 .* expected int8"),
        ({"exp_avg": code[:9]}, ValueError, r"^exp_avg is int8 of shape \(9, 2\)"),
        (
            {"exp_avg_scale": scale[:3]},
            ValueError,
            r"^exp_avg_scale is float32 of shape \(3,\); expected .* \(32,\), saved",
        ),
        ({"exp_avg_scale": readonly}, ValueError, "exp_avg_scale is read-only"),
        ({"exp_avg": np.asfortranarray(code)}, ValueError, "exp_avg is not in C order; expected an array as init"),
        ({"exp_avg": code, "exp_avg_scale": state["exp_avg_sq_scale"]}, ValueError, "exp_avg.* share memory"),
    ):
        with pytest.raises(kind, match=words):
            adam(w, grad, **{**state, **change}, step=1)
    with pytest.raises(ValueError, match="grad is a gradient of rows, and exp_avg is in int8"):
        adam(w, proptim.Rows([1], np.ones((1, 2), np.float32)), **state, step=1)
    with pytest.raises(ValueError, match="'int8' for param, which is float64"):
        adam(w.astype(float), grad, **state, step=1)
    with pytest.raises(TypeError, match="adam has no exp_avg; expected an array like param"):
        adam(w, grad, **{**state, "exp_avg": None}, step=1)
    with pytest.raises(TypeError, match="momentum_buffer_scale is given and no momentum_buffer; expected both"):
        proptim.functional.sgd(w, grad, momentum_buffer_scale=scale)
    assert (w == 1).all()


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_rows_of_blocks_are_refused(backend):
    """Rows of state in blocks cannot be stepped; a gradient that is bound stays, and nothing has changed."""
    w = np.ones((SMALLEST_IN_BLOCKS, 2), np.float32)
    rows = proptim.Rows(np.array([1]), np.ones((1, 2), np.float32))
    opt = proptim.Adam([w], state_dtype="int8", backend=backend)
    for call in (lambda: opt.step([rows]), lambda: opt.step_param(0, rows)):
        with pytest.raises(ValueError, match=r"grads\[0\] is a gradient of rows, .* expected a whole gradient"):
            call()
    assert opt.steps == 0
    assert (w == 1).all()
    late = proptim.SGD([w], lr=0.5, state_dtype="int8", backend=backend, grads=[rows])
    late.momentum = 0.9
    with pytest.raises(ValueError, match=r"grads\[0\] is a gradient of rows"):
        late.step()
    assert (w == 1).all()


def test_rows_of_steps(backend):
    """Step sizes have no blocks: rows are stepped as whole gradients step them, and others stay as they are."""
    w, twin = np.ones((30, 5), np.float32), np.ones((30, 5), np.float32)
    opt = proptim.Rprop([w], state_dtype="int8", backend=backend, **ON_GRID)
    whole = proptim.Rprop([twin], state_dtype="int8", backend="numpy", **ON_GRID)
    grad = np.zeros_like(w)
    grad[[3, 7]] = np.random.default_rng(8).standard_normal((2, 5))
    for sign in (1, 1, -1, 1):
        opt.step([proptim.Rows(np.array([7, 3]), sign * grad[[7, 3]])])
        whole.step([sign * grad])
    assert np.array_equal(w, twin)
    assert np.array_equal(opt.state[0]["step_size"], whole.state[0]["step_size"])


@pytest.mark.parametrize(("name", "i"), CASES)
def test_names_of_before(name, i):
    """A state whose codes have the name of their array, as it was saved before they had one of their own, loads."""
    opt, twin = made(name, i), made(name, i)
    step(opt, np.random.default_rng(10))
    saved = opt.state_dict()
    state = saved["state"][0]
    saved["state"][0] = {n.removesuffix("_code"): a for n, a in state.items()}
    assert not state.keys() & {n.removesuffix("_code") for n in state if n.endswith("_code")}
    twin.load_state_dict(saved)
    assert bits(twin, 0) == bits(opt, 0)


def test_damaged_state_is_refused():
    w = np.zeros(SHAPE, np.float32)
    opt = proptim.Adam([w], state_dtype="int8")
    step(opt, np.random.default_rng(9))
    before = bits(opt, w)
    for change, words in {
        "missing": "^'exp_avg_scale' in state 0 of state_dict is missing; expected 22 numbers in float32, saved",
        "negative": "'exp_avg_scale' in state 0 of state_dict has numbers that are no scales",
        "signed": "'exp_avg_code' in state 0 of state_dict is uint8 .* expected int8",
        "shape": r"'exp_avg_code' in state 0 of state_dict is int8 of shape \(83, 67\)",
        "cast": "^'exp_avg_code' in state 0 of state_dict is float32; expected int8 or uint8: load_state_dict of",
        "both": "^'exp_avg' in state 0 of state_dict is float32 beside 'exp_avg_code' and 'exp_avg_scale', of state in",
        "beside": "^'exp_avg' in state 0 of state_dict is float32 beside 'exp_avg_scale', of state in one byte;",
        "alone": "^'exp_avg_scale' in state 0 of state_dict is there, and there is no 'exp_avg_code'; expected both",
    }.items():
        saved = opt.state_dict()
        state = saved["state"][0]
        if change == "missing":
            del state["exp_avg_scale"]
        elif change == "negative":
            state["exp_avg_scale"][3] = -1
        elif change == "signed":
            state["exp_avg_code"] = state["exp_avg_code"].view(np.uint8)
        elif change == "shape":
            state["exp_avg_code"] = state["exp_avg_code"].reshape(83, 67)
        elif change == "cast":
            state["exp_avg_code"] = state["exp_avg_code"].astype(np.float32)
        elif change == "both":
            state["exp_avg"] = state["exp_avg_code"].astype(np.float32)
        elif change == "beside":
            state["exp_avg"] = state.pop("exp_avg_code").astype(np.float32)
        else:
            del state["exp_avg_code"]
        torch_has_had_it = change in ("cast", "both", "beside", "alone")
        for cast in (False, True):
            with pytest.raises(TypeError if torch_has_had_it else ValueError, match=words):
                opt.load_state_dict(saved, cast=cast)
        assert bits(opt, w) == before
    rprop = proptim.Rprop([w], state_dtype="int8", **ON_GRID)
    saved = rprop.state_dict()
    saved["param_groups"][0]["step_sizes"] = (1e-3, 1.0)
    with pytest.raises(ValueError, match=r"'step_word_scale' in state 0 .*expected \[1.0, 4.0\], the grid of etas"):
        rprop.load_state_dict(saved)
