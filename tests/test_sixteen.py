"""Sixteen bits: parameters, gradients and state of bfloat16 and float16, and what keeps the precision of float32."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from placed import Placed

import proptim
from proptim import _backend, _formats, functional
from proptim._formats import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Mastered, Split, rounded, widened
from proptim.cli import selftest

BF16 = np.dtype(ml_dtypes.bfloat16)
RULES = [
    pytest.param(name, options, id="-".join([name, *map(str, options)]))
    for name in proptim.OPTIMIZERS
    for options in selftest.OPTIONS.get(name, [{}])
]
LOSSES = (3.0, 2.0, 2.5, 1.0, 1.5, 0.5)
STAGES = [{}, {**selftest.STAGES[1], "zero_grads": False}]


def bits(array):
    """The bits of real numbers, every NaN the same: its payload is left open."""
    array = np.ascontiguousarray(array)
    kind = np.dtype(f"u{array.dtype.itemsize}")
    seen = array.view(kind)
    nan = np.isnan(widened(array, FLOAT32) if array.dtype == BFLOAT16 else array)
    return np.where(nan, kind.type(-1 % 2 ** (8 * kind.itemsize)), seen).reshape(array.shape)


def assert_bits(got, expected, label=""):
    assert got.shape == expected.shape, label
    assert got.dtype == expected.dtype, label
    different = np.argwhere(bits(got) != bits(expected))
    assert not different.size, f"{label} at {different[0]}: {got[tuple(different[0])]}, {expected[tuple(different[0])]}"


@pytest.mark.parametrize("master", ["split", "float32", None])
@pytest.mark.parametrize("dtype", [BF16, FLOAT16], ids=["bfloat16", "float16"])
def test_nothing_is_copied_when_an_optimizer_is_made(dtype, master):
    """What is kept beside the parameter is all the memory that is ever used for it: no array of float32 in between."""
    if (dtype, master) == (FLOAT16, "split"):
        return
    w = np.ones(10**6, dtype)
    w[:3] = -0.0, np.inf, np.nan
    bytes_each = {"split": 2, "float32": 4, None: 0}[master]
    tracemalloc.start()
    opt = proptim.SGD([w], master=master, backend="numpy")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < bytes_each * len(w) + 2**17
    assert_bits(opt._stepper.parameters[0].numbers(), widened(w.view(np.uint16) if dtype == BF16 else w, FLOAT32))


# The codecs -----------------------------------------------------------------------------------------------------------

PATTERNS = np.arange(2**16, dtype=np.uint16)


def near(dtype, real):
    """Every number of a dtype, the midpoint between it and the next, and the numbers one unit from these."""
    numbers = widened(PATTERNS.view(dtype), FLOAT64)
    numbers = np.sort(numbers[np.isfinite(numbers)])
    middles = (numbers[1:] + numbers[:-1]) / 2
    with np.errstate(all="ignore"):
        each = np.concatenate([numbers, middles, [numbers[-1] * (1 + 2.0**-9), 1e300, np.inf]]).astype(real)
        each = np.concatenate([each, np.nextafter(each, real.type(np.inf)), np.nextafter(each, real.type(-np.inf))])
    return np.concatenate([each, -each])


@pytest.mark.parametrize("real", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=["bfloat16", "float16"])
def test_rounding_is_to_nearest_even_and_once(dtype, real):
    """Against numbers by their distances, in float64 where a middle and its neighbours are exact."""
    values = near(dtype, real)
    finite = widened(PATTERNS[: 0x7F80 if dtype == BFLOAT16 else 0x7C00].view(dtype), FLOAT64)  # rising, none negative
    size = np.abs(values.astype(np.float64))
    above = np.searchsorted(finite, size).clip(1, len(finite) - 1)
    low, high = finite[above - 1], finite[above]
    up = (size - low > high - size) | ((size - low == high - size) & (above % 2 == 0))
    nearest = np.where(up, above, above - 1)
    step = finite[-1] - finite[-2]
    nearest = np.where(
        size >= finite[-1] + step / 2, len(finite), np.where(size >= finite[-1], len(finite) - 1, nearest)
    )
    expected = nearest.astype(np.uint16) | (np.signbit(values) * np.uint16(0x8000))
    assert np.array_equal(rounded(values, dtype).view(np.uint16), expected)


def test_every_pattern_is_loaded_and_stored():
    """Both formats give back every number that they hold, and keep a NaN, quiet, with its sign."""
    for dtype, inf, quiet in ((BFLOAT16, 0x7F80, 0x40), (FLOAT16, 0x7C00, 0x200)):
        given = PATTERNS.view(dtype)
        nan = inf < (PATTERNS & 0x7FFF)
        for real in (FLOAT32, FLOAT64):
            seen = widened(given, real)
            assert np.array_equal(np.isnan(seen), nan)
            assert np.array_equal(rounded(seen, dtype).view(np.uint16), np.where(nan, PATTERNS | quiet, PATTERNS))
    assert np.array_equal(bits(widened(PATTERNS, FLOAT32)), bits(PATTERNS.view(BF16).astype(np.float32)))


def test_split_loses_nothing():
    """Every float32 comes back from its halves; the upper one is it rounded to nearest, ties away from zero."""
    rng = np.random.default_rng(0)
    every = rng.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    edges = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    every = np.concatenate([every, (PATTERNS.astype(np.uint32)[:, None] << np.uint32(16) | edges).ravel()])
    numbers = every.view(np.float32)
    split = Split(np.empty(every.shape, np.uint16), np.empty(every.shape, np.uint16))
    for target, where, value in split.stores(numbers):
        target[where] = value
    assert_bits(split.load(), numbers)
    assert np.array_equal(np.signbit(split.load())[~np.isnan(numbers)], np.signbit(numbers)[~np.isnan(numbers)])
    finite = np.isfinite(numbers) & np.isfinite(widened(split.high, FLOAT32))
    error = widened(split.high, FLOAT64)[finite] - numbers[finite].astype(np.float64)
    away = np.abs(widened(split.high, FLOAT64)[finite]) > np.abs(numbers[finite])
    unit = np.ldexp(1.0, (np.maximum(np.frexp(numbers[finite])[1], -125) - 8).astype(int))
    assert (np.abs(error) <= unit / 2).all()
    assert away[np.abs(error) == unit / 2].all()
    assert (split.high[np.isnan(numbers)] == 0x7FC0).all()


def written(value, low):
    """A bfloat16 that the user wrote, combined with an old low half, number by number."""
    high = int(np.array(value, np.float32).view(np.uint32)) >> 16
    signed = low - 2**16 if low >= 2**15 else low
    if (high & 0x7FFF == 0 and signed < 0) or (high & 0x7FFF == 0x7F80 and signed > 0):
        signed = 0
    return np.array((high << 16) + signed & 0xFFFFFFFF, np.uint32).view(np.float32)


def test_what_users_write_beside_old_low_halves():
    for value in (0.0, -0.0, 1.0, -3.0, np.inf, -np.inf, np.nan):
        for low in (0, 1, 0x7FFF, 0x8000, 0xFFFF):
            split = Split(np.full(1, np.float32(value).view(np.uint32) >> 16, np.uint16), np.full(1, low, np.uint16))
            assert_bits(split.load(), written(value, low).reshape(1))
            assert np.isnan(split.load()[0]) == np.isnan(value)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=["bfloat16", "float16"])
def test_a_float32_master_gives_way_to_what_users_write(dtype):
    master = np.array([1.001, -2.002, 0.0, np.nan, 5.0], np.float32)
    kept = Mastered(rounded(master, dtype).copy(), master.copy())
    assert_bits(kept.load(), master)
    for i, value in enumerate((7.0, -0.0, -0.0, 3.0, np.nan)):
        kept.half[i] = rounded(np.full(1, value, np.float32), dtype)[0]
    assert_bits(kept.load(), np.array([7.0, -0.0, -0.0, 3.0, np.nan], np.float32))


# A run of bfloat16 is the run of float32 ------------------------------------------------------------------------------


def laid(values, layout):
    """The same numbers in other strides."""
    if layout == "dense":
        return values.copy()
    if layout == "fortran":
        return np.asfortranarray(values)
    if layout == "strided":
        return np.repeat(values, 3, axis=-1)[..., 1::3]
    return values[::-1].copy()[::-1]  # the last row first


LAYOUTS = {
    "u": ((3, 41), "dense"),
    "v": ((7, 5, 3), "fortran"),
    "w": ((130,), "strided"),
    "x": ((9, 17), "negative"),
    "y": ((), "dense"),
    "z": ((0, 4), "dense"),
    "o": ((2500,), "dense"),
}
WRITTEN = (0.0, -0.0, np.inf, -np.inf, np.nan, 1.5)


def gradients(rng, steps=6):
    for _ in range(steps):
        yield {
            key: laid(selftest.gradient(rng, int(np.prod(shape)), np.float32).reshape(shape).astype(BF16), layout)
            for key, (shape, layout) in LAYOUTS.items()
        }


class Twins:
    """One run of bfloat16 and one of float32, which get the same gradients, and in whose weights somebody writes."""

    def __init__(self, name, options, threads=1):
        rng = np.random.default_rng(7)
        self.make = lambda params: proptim.OPTIMIZERS[name](params, threads=threads, **options)
        start = {key: rng.standard_normal(shape).astype(BF16) for key, (shape, _) in LAYOUTS.items()}
        self.half = {key: laid(array, LAYOUTS[key][1]) for key, array in start.items()}
        self.whole = {key: laid(array.astype(np.float32), LAYOUTS[key][1]) for key, array in start.items()}
        self.ours, self.theirs = self.make(self.half), self.make(self.whole)
        self.count = 0

    def step(self, grads, how="step"):
        loss = LOSSES[self.count % len(LOSSES)]
        self.count += 1
        for opt, mine in ((self.ours, grads), (self.theirs, {k: g.astype(np.float32) for k, g in grads.items()})):
            if how == "step":
                opt.step(mine, loss=loss)
            else:
                for key, grad in mine.items():
                    opt.step_param(key, grad)
        self.compare()

    def write(self):
        """Somebody writes zeros, infinities, NaN and a number into weights."""
        for key, half in self.half.items():
            flat, low = half.reshape(-1), self.lows(key)
            for i, value in zip(range(self.count % 3, flat.size, 11), WRITTEN * 99, strict=False):
                at = np.unravel_index(i, half.shape)
                half[at] = value
                self.whole[key][at] = written(value, int(low[at]))

    def lows(self, key):
        return self.ours._stepper.parameters[self.ours._stepper.number(key)].plane

    def compare(self):
        for key in LAYOUTS:
            ours, theirs = dict(self.ours.state[key]), self.theirs.state[key]
            master = ours.pop("master")
            assert not master.flags.writeable
            assert_bits(master, self.whole[key], f"master of {key}")
            assert ours.keys() == theirs.keys()
            for name, value in theirs.items():
                if np.ndim(value) or isinstance(value, np.ndarray):
                    assert_bits(ours[name], value, f"{name} of {key}")
                else:
                    assert ours[name] == value
            nan = np.isnan(self.whole[key])
            bits32 = np.where(nan, np.uint32(0x7FC00000), self.whole[key].view(np.uint32))
            assert np.array_equal(self.half[key].view(np.uint16), (bits32 + np.uint32(0x8000)) >> 16)

    def through(self, way, path):
        """The optimizer of bfloat16 is saved and loaded into a new one over copies of the weights, or copied."""
        if way in ("deepcopy", "pickle"):
            self.ours, self.half = (
                copy.deepcopy((self.ours, self.half))
                if way == "deepcopy"
                else pickle.loads(pickle.dumps((self.ours, self.half)))
            )
            return
        weights = {key: laid(np.array(array), LAYOUTS[key][1]) for key, array in self.half.items()}
        opt = self.make(weights)
        if way == "file":
            self.ours.save(path / "state.npz")
            opt.load(path / "state.npz")
        elif way == "model last":
            for array in weights.values():
                array[...] = 1
            opt.load_state_dict(self.ours.state_dict())
            assert all((array == 1).all() for array in weights.values())
            for key, array in weights.items():
                array[...] = self.half[key]
        else:
            opt.load_state_dict(self.ours.state_dict())
        self.ours, self.half = opt, weights


@pytest.mark.parametrize("stages", STAGES, ids=["plain", "staged"])
@pytest.mark.parametrize(("name", "options"), RULES)
def test_split_runs_are_float32_runs(backend, name, options, stages):
    """k steps of bfloat16 are k steps of float32, with what users write in between; P17."""
    twins = Twins(name, {**options, **stages})
    for grads in gradients(np.random.default_rng(1)):
        twins.step(grads)
        twins.write()


WAYS = ("file", "state_dict", "model last", "deepcopy", "pickle")


@pytest.mark.parametrize(("name", "options"), RULES)
def test_split_runs_go_on_after_every_way_of_saving(name, options, tmp_path):
    """The low halves come with the state, however it is kept; weights are left alone by loading."""
    twins = Twins(name, options, threads=2)
    for grads, way in zip(gradients(np.random.default_rng(2)), ("none", *WAYS), strict=True):
        if way != "none":
            twins.through(way, tmp_path)
        twins.step(grads)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_split_runs_on_threads(name, threads):
    twins = Twins(name, {}, threads=threads)
    for grads in gradients(np.random.default_rng(3), 3):
        twins.step(grads)
        twins.write()


@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_split_runs_param_by_param(backend, name):
    twins = Twins(name, {})
    for k, grads in enumerate(gradients(np.random.default_rng(4), 5)):
        twins.step(grads, "step" if k == 3 else "param")


def test_groups_come_and_go():
    """Masters stay through reset, added and removed groups, and state that grows in mid-run."""
    twins = Twins("rmsprop", {})
    steps = gradients(np.random.default_rng(5), 8)
    twins.step(next(steps))
    more = np.full(5, 1.001, BF16), np.full(5, 1.001, BF16).astype(np.float32)
    for opt, array in zip((twins.ours, twins.theirs), more, strict=True):
        opt.add_param_group({"params": {"more": array}, "lr": 0.1})
        opt.param_groups[0]["momentum"] = 0.9
    for _ in range(2):
        grads = next(steps)
        for opt, kind in ((twins.ours, BF16), (twins.theirs, FLOAT32)):
            opt.step({**{k: g.astype(kind) for k, g in grads.items()}, "more": np.full(5, 0.25, kind)})
        twins.compare()
        assert_bits(twins.ours.state["more"]["master"], more[1])
        for opt in (twins.ours, twins.theirs):
            opt.reset("u")
    for opt in (twins.ours, twins.theirs):
        opt.remove_param_group(1)
        opt.reset()
    twins.step(next(steps))


# Every format on every backend ----------------------------------------------------------------------------------------

PARAMETERS = {
    "split": (BF16, {}),
    "bfloat16, float32": (BF16, {"master": "float32"}),
    "bfloat16 alone": (BF16, {"master": None}),
    "float16": (FLOAT16, {}),
    "float16 alone": (FLOAT16, {"master": None}),
    "float32": (FLOAT32, {}),
    "float64": (FLOAT64, {}),
    "complex64": (np.dtype(np.complex64), {}),
    "complex128": (np.dtype(np.complex128), {}),
}
STATES = (None, "bfloat16", "float16")


def kept(opt, params):
    """All memory of an optimizer: parameters, state as it lies, masters."""
    found = [np.array(p) for p in params]
    for p in opt._stepper.parameters:
        found += [a.copy() for a in p.state.values()] + ([] if p.plane is None else [p.plane.copy()])
    return found


def cast(values, dtype):
    """In another dtype, where some are infinite that were not."""
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def run(name, options, kind, storage, grad_kind, **where):
    """A few steps over arrays of some layouts that lie among canaries."""
    rng = np.random.default_rng(8)
    sizes = ((33, 0, 1), (1030, 1, 1), (40, 0, -2), (17, 6, 3), (0, 0, 1))
    if np.dtype(kind).kind == "c":
        sizes = ((33, 0, 1), (40, 0, -2))
    laid_params, laid_grads = [], []
    for size, offset, step in sizes:
        offset *= np.dtype(kind).itemsize
        laid_params.append(Placed(rng.standard_normal(size).astype(kind), offset, step))
    params = [each.array for each in laid_params]
    opt = proptim.OPTIMIZERS[name](params, **options, **storage, **where)
    for loss in LOSSES:
        laid_grads = [
            Placed(cast(selftest.gradient(rng, p.size, np.float32), grad_kind), 0, step)
            for p, (_, _, step) in zip(params, sizes, strict=True)
        ]
        opt.step([each.array for each in laid_grads], loss=loss)
    for each in (*laid_params, *laid_grads):
        each.assert_apart("array")
    return [*kept(opt, params), *(np.array(each.array) for each in laid_grads)]


@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_backends_agree(contestant, name, kind):
    """Parameters, state, masters and zeroed gradients have the bits of the NumPy text, in every format."""
    dtype, storage = PARAMETERS[kind]
    if contestant == "numba" and dtype.itemsize >= 8 and name not in ("rprop", "adam"):
        return  # half a minute of compilation, for rules that differ in nothing here
    for i, state in enumerate(STATES):
        if name == "rprop" and state == "float16":
            continue
        grads = [dtype] if dtype.kind == "c" else [BF16, FLOAT16, FLOAT32, FLOAT64]
        options = {**selftest.OPTIONS[name][0], **selftest.STAGES[i % 2]}
        options |= {**storage, "state_dtype": state, "cast_grads": True}
        for grad in grads:
            expected = run(name, {}, dtype, options, grad, backend="numpy")
            got = run(name, {}, dtype, options, grad, backend=contestant, threads=1 + i)
            for k, (a, b) in enumerate(zip(got, expected, strict=True)):
                label = f"array {k}, state {state}, gradients {grad.name}"
                if a.dtype.kind == "c":
                    assert np.array_equal(a.view(a.real.dtype), b.view(b.real.dtype), equal_nan=True), label
                else:
                    assert_bits(a, b, label)


def test_stored_dtypes():
    """State lies in what was asked for, complex state of 16 bits as pairs, and is shown as it lies."""
    w, z = np.ones(3, BF16), np.ones((2, 3), np.complex64)
    opt = proptim.Adam([w, z], state_dtype={"exp_avg": "bfloat16"})
    assert opt.state[0]["exp_avg"].dtype == BF16
    assert opt.state[0]["exp_avg_sq"].dtype == FLOAT32
    assert opt.state[1]["exp_avg"].dtype == BF16
    assert opt.state[1]["exp_avg"].shape == (2, 3, 2)
    assert opt.state[1]["exp_avg_sq"].dtype == np.complex64
    opt.step([w.copy(), z.copy()])
    assert np.allclose(opt.state[0]["exp_avg"].astype(float), 0.1, rtol=2**-8)
    opt.state[0]["exp_avg"][:] = 0  # writes into the state
    assert not opt._stepper.parameters[0].state["exp_avg"].any()
    opt = proptim.Adam([np.ones(2), np.ones(2, np.complex128)], state_dtype="float32")
    assert [opt.state[i]["exp_avg"].dtype.name for i in (0, 1)] == ["float32", "complex64"]
    opt = proptim.Rprop([w], state_dtype="bfloat16")
    assert {opt.state[0][name].dtype for name in ("step_size", "prev")} == {BF16}


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BF16, FLOAT16, FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("dtype", [BF16, FLOAT16, FLOAT32, FLOAT64], ids=str)
def test_gradients_of_any_dtype(backend, dtype, kind):
    """Bound, fresh, in other memory, of another dtype: the numbers that a float32 or float64 gradient would give."""
    real = FLOAT64 if dtype == FLOAT64 else FLOAT32
    w, twin = np.ones(9, dtype), np.ones(9, dtype)
    opt = proptim.RMSprop([w], cast_grads=True, clip_norm=1.0, nonfinite="raise")
    other = proptim.RMSprop([twin], clip_norm=1.0)
    rng = np.random.default_rng(1)
    bound = [np.zeros(9, kind), np.zeros(9, kind)]
    for k in range(7):
        grad = rng.standard_normal(9).astype(kind if k < 6 else FLOAT32)
        if k < 4:
            bound[k % 2][:] = grad
            opt.step([bound[k % 2]])
        elif k < 6:
            opt._stepper.plan.grads[0][:] = grad.view(BFLOAT16) if kind == BF16 else grad
            opt.step()
        else:
            opt.step([grad])
        other.step([grad.astype(real)])
        assert opt.grad_norm == other.grad_norm
        assert w.tobytes() == twin.tobytes()
    bad = np.ones(9, kind)
    bad[5] = np.nan
    with pytest.raises(FloatingPointError, match=r"grads\[0\] is nan at index \(5,\); expected finite gradients"):
        opt.step([bad])


def test_float64_gradients_of_narrower_parameters():
    """float64 gradients are an error that names cast_grads, and accepted with it; beyond float32 they are infinite."""
    for dtype, said in (
        (FLOAT32, "float32, the dtype of params[0]"),
        (BF16, "bfloat16, the dtype of params[0], or float32"),
    ):
        w = np.ones(3, dtype)
        opt = proptim.SGD([w])
        for _ in range(2):
            with pytest.raises(TypeError) as error:
                opt.step([np.ones(3)])
            with pytest.raises(TypeError) as single:
                opt.step_param(0, np.ones(3))
            message = f"grads[0] is float64; expected {said}: convert it with .astype, a tensor with .to, or pass "
            message += "cast_grads=True"
            assert str(error.value) == str(single.value) == message
            opt.step([np.ones(3, dtype)])
        assert opt.cast_grads is False
    for backend in [b for b, why in _backend.available_backends().items() if not why]:
        w = np.ones(3, np.float32)
        opt = proptim.SGD([w], lr=1.0, cast_grads=True, nonfinite="skip", backend=backend)
        opt.step([np.full(3, 1e39)])
        assert opt.skipped == 1
        opt.step([np.full(3, 0.1)])
        assert (w == np.float32(1) - np.float32(0.1)).all()


def test_raw_bits_are_no_gradient(backend):
    """uint16 is no bfloat16, also where one was bound before."""
    w = np.ones(3, BF16)
    opt = proptim.SGD([w], lr=1.0)
    for _ in range(2):
        opt.step([np.ones(3, BF16)])
        for call in (lambda: opt.step([np.ones(3, np.uint16)]), lambda: opt.step_param(0, np.ones(3, np.uint16))):
            with pytest.raises(TypeError, match=r"grads\[0\] is uint16; supported: "):
                call()
    assert (w == -1).all()


def test_zeroed_gradients(backend):
    """zero_grads clears gradients of every dtype, bytes beside them left alone."""
    for kind in (BF16, FLOAT16, FLOAT32, FLOAT64):
        grad = Placed(np.ones(5, kind), 0, 2)
        opt = proptim.SGD([np.ones(5, BF16)], zero_grads=True, cast_grads=True)
        opt.step([grad.array])
        assert not grad.array.astype(float).any()
        grad.assert_apart("grad")
        grad.array[:] = 1
        opt.zero_grad()
        assert not grad.array.astype(float).any()


def test_tensors(backend):
    """Tensors of torch in both dtypes, strided ones too, are stepped in place."""
    for dtype in (torch.bfloat16, torch.float16):
        w = torch.ones(4, 6, dtype=dtype).T[::2]
        whole = torch.ones(4, 6).T[::2]
        ours, theirs = proptim.RMSprop([w]), proptim.RMSprop([whole])
        for k in range(4):
            grad = (torch.arange(12.0).reshape(3, 4) - 5 * k).to(dtype)
            ours.step([grad])
            theirs.step([grad.float()])
        assert np.array_equal(ours.state[0]["master"], whole.numpy())
        # a split master rounds ties away from zero, which none of these is
        assert torch.equal(w, whole.to(dtype))
        parameter = torch.nn.Parameter(torch.zeros(3, dtype=dtype))
        opt = proptim.SGD([parameter], lr=1.0)
        opt.step([torch.ones(3, dtype=dtype)])
        assert (parameter == -1).all()
        parameter.data = torch.zeros(3, dtype=dtype)
        with pytest.raises(ValueError, match="has been given other memory"):
            opt.step()


# What is refused ------------------------------------------------------------------------------------------------------

W16, W32, H16, W64 = np.ones(3, BF16), np.ones(3, np.float32), np.ones(3, np.float16), np.ones(3)


@pytest.mark.parametrize(("params", "options", "message"), [
    ([W16], {"master": "bfloat16"}, r"Invalid master: 'bfloat16' \(expected 'split', 'float32' or None\)"),
    ([W16], {"master": 1}, r"Invalid master: 1 \(expected 'split', 'float32' or None\)"),
    ([W16], {"master": np.ones(2)}, r"Invalid master: .*expected 'split', 'float32' or None\)"),
    ([H16], {"master": "split"}, r"'split' for params\[0\], which is float16 .*\(expected 'float32' or None\)"),
    ([W16, H16], {"master": "split"}, r"'split' for params\[1\], which is float16"),
    ([W32], {"master": "split"}, r"'split' for parameters of float32, .*\(expected bfloat16 or float16: leave it"),
    ([W32, W64], {"master": "float32"}, r"'float32' for parameters of float32 and float64, .*leave it out"),
    ([W32], {"state_dtype": "int4"}, r"Invalid state_dtype: 'int4' \(expected 'float32', 'float64', 'bfloat16', "),
    ([W32], {"state_dtype": np.float16}, r"Invalid state_dtype: <class 'numpy.float16'> \(expected 'float32'"),
    ([W32], {"state_dtype": {"exp_avg": 16}}, r"Invalid state_dtype: 16 \(expected"),
    ([W32], {"state_dtype": {"avg": "float16"}}, r"Adam has no state array 'avg' \(expected some of: \['exp_avg', "),
    ([W32], {"state_dtype": {1: "float16"}}, r"Adam has no state array 1 \(expected some of"),
    ([W64, W32], {"state_dtype": "float64"}, r"'float64' for params\[1\], which is float32 and is stepped in float32"),
    ([W16], {"state_dtype": {"exp_avg_sq": "float64"}}, r"'float64' for params\[0\], which is bfloat16"),
    ([W32], {"cast_grads": "yes"}, r"Invalid cast_grads: 'yes' \(expected True or False\)"),
])  # fmt: skip
def test_refused_at_construction(params, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        proptim.Adam(params, **options)


def test_weights_that_numpy_has_loaded_are_told_how_to_be_bfloat16():
    """np.load returns bfloat16 as V2, for which astype does not help."""
    with pytest.raises(TypeError, match=r"params\[0\] is void16, as np.load .*: .view\(ml_dtypes.bfloat16\)"):
        proptim.SGD([W16.view("V2")])
    proptim.SGD([W16.view("V2").view(ml_dtypes.bfloat16)])


def test_refused_for_a_rule():
    """What a state array cannot hold: Rprop's word in float16, and a first value beyond it."""
    with pytest.raises(
        ValueError, match=r"'float16' for 'step_word', whose values range from .* \(expected 'bfloat16', or"
    ):
        proptim.Rprop([W32], state_dtype="float16")
    with pytest.raises(ValueError, match=r"'float16' cannot hold 1e\+06, with which 'sum' begins"):
        proptim.Adagrad([W32], initial_accumulator_value=1e6, state_dtype="float16")
    opt = proptim.Adagrad([W16])
    with pytest.raises(ValueError, match="'split' for params"):
        proptim.SGD([W16], master="split").add_param_group({"params": [H16]})
    for name in ("master", "state_dtype", "cast_grads"):
        with pytest.raises(AttributeError, match=f"{name} is fixed at construction"):
            setattr(opt, name, None)
        with pytest.raises(ValueError, match=f"{name} is an option of the whole optimizer"):
            proptim.SGD([{"params": [W16], name: None}])


def test_overlap_is_found():
    """A gradient in the memory of a master or of another parameter's halves is refused."""
    w = np.ones(8, BF16)
    opt = proptim.SGD([w], master="float32")
    plane = opt._stepper.parameters[0].plane
    for _ in range(2):
        with pytest.raises(ValueError, match=r"grads\[0\] and the master of params\[0\] share memory"):
            opt.step([plane])
        with pytest.raises(ValueError, match="share memory"):
            opt.step([w])
        opt.step([np.ones(8, BF16)])
    with pytest.raises(ValueError, match=r"params\[1\] and params\[0\] share memory"):
        proptim.SGD([w, w[1:]])
    with pytest.raises(ValueError, match=r"the master of params.* share memory"):
        opt.add_param_group({"params": [plane]})


# Saving and loading ---------------------------------------------------------------------------------------------------


def frozen(saved):
    """All numbers, dtypes, shapes and bytes of a state_dict, or of the optimizer that has it."""
    if isinstance(saved, proptim.Optimizer):
        saved = saved.state_dict()
    if isinstance(saved, dict):
        return {key: frozen(value) for key, value in saved.items()}
    if isinstance(saved, np.ndarray):
        return saved.dtype, saved.shape, saved.tobytes()
    return [frozen(value) for value in saved] if isinstance(saved, list) else saved


@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize("state", STATES)
def test_every_format_is_saved(kind, state, tmp_path):
    """A file holds arrays as they lie, names bfloat16, and loads into the same formats with the same bits."""
    dtype, storage = PARAMETERS[kind]
    params = [np.full((2, 3), 1.5, dtype), np.ones((), dtype)]
    opt = proptim.Adam(params, state_dtype=state, **storage)
    opt.step([p.copy() for p in params])
    opt.save(tmp_path / "a.npz")
    twin = proptim.Adam([p.copy() for p in params], state_dtype=state, **storage)
    twin.load(tmp_path / "a.npz")
    assert frozen(twin) == frozen(opt)
    for copied in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert frozen(copied) == frozen(opt)
    with np.load(tmp_path / "a.npz") as file:  # with NumPy alone
        assert all(file[name].dtype.name != "void16" for name in file)


def test_old_files_load(tmp_path):
    """A file of format 2, kept here, and into parameters of other formats."""
    path = Path(__file__).parent / "checkpoints/format2.npz"
    opt = proptim.Adam({"u": np.zeros(3, np.float32), "v": np.zeros((1, 2))}, amsgrad=True)
    opt.load(path)
    assert opt.steps == 3
    assert opt.lr == 0.1
    assert opt.state["u"]["exp_avg"].tolist() == pytest.approx([0.019, -0.0095, 0.038], rel=1e-6)
    twin = proptim.Adam({"u": np.zeros(3, BF16), "v": np.zeros((1, 2))}, amsgrad=True, state_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"format2\.npz does not fit this Adam: 'exp_avg' in state 0 .*pass cast=True"):
        twin.load(path)
    twin.load(path, cast=True)
    got = twin.state["u"]["exp_avg"].astype(np.float32)
    assert np.array_equal(got, opt.state["u"]["exp_avg"].astype(BF16).astype(np.float32))
    assert not twin.state["u"]["master"].any()


def test_files_of_format_3_load():
    """A file of format 3, kept here, with state and weights of 16 bits; also into state of one byte."""
    path = Path(__file__).parent / "checkpoints/format3.npz"
    params = {"w": np.zeros((3, 4), np.float32), "v": np.zeros(2, np.float16)}
    opt = proptim.Adam(params, amsgrad=True, state_dtype={"exp_avg": "bfloat16"})
    opt.load(path)
    assert opt.steps == 3
    assert opt.lr == 0.1
    assert np.asarray(opt.state["w"]["exp_avg"], np.float32).ravel().tolist() == pytest.approx([0.1355] * 12, rel=4e-3)
    assert (opt.state["v"]["master"] != 0).all()


@pytest.mark.parametrize("into", PARAMETERS)
@pytest.mark.parametrize("kind", PARAMETERS)
def test_state_loads_across_formats(kind, into, tmp_path):
    """With cast=True each number is rounded once; without it the refusal names it, and nothing has changed."""
    (dtype, storage), (other, other_storage) = PARAMETERS[kind], PARAMETERS[into]
    opt = proptim.Adam([np.full(3, 0.7, dtype)], state_dtype="bfloat16", **storage)
    opt.step([np.full(3, 0.3, dtype)])
    twin = proptim.Adam([np.full(3, 0.7, other)], **other_storage)
    before = frozen(twin)
    if "c" in (dtype.kind, other.kind) and dtype.kind != other.kind:
        with pytest.raises((TypeError, ValueError), match="expected"):
            twin.load_state_dict(opt.state_dict(), cast=True)
        assert frozen(twin) == before
        return
    with pytest.raises(TypeError, match=r"is bfloat16; expected .*: pass cast=True to have it (rounded|widened)"):
        twin.load_state_dict(opt.state_dict())
    assert frozen(twin) == before
    opt.save(tmp_path / "a.npz")
    twin.load(tmp_path / "a.npz", cast=True)
    for name in ("exp_avg", "exp_avg_sq"):
        saved, got = (o._stepper.parameters[0].state[name] for o in (opt, twin))
        reals = np.ascontiguousarray(got).view(got.real.dtype).reshape(saved.shape)
        assert np.array_equal(reals, widened(saved, reals.dtype))


def test_numbers_that_do_not_fit_are_refused():
    """What is beyond the dtype that it is to be rounded to, and a master that nobody keeps."""
    w = np.ones(2, np.float32)
    opt = proptim.Adagrad([w])
    opt.state[0]["sum"][:] = 1e6
    twin = proptim.Adagrad([w.copy()], state_dtype="float16")
    with pytest.raises(ValueError, match="'sum' in state 0 of state_dict has numbers beyond float16"):
        twin.load_state_dict(opt.state_dict(), cast=True)
    half = proptim.SGD([np.ones(2, BF16)])
    with pytest.raises(TypeError, match=r"has the array 'master', .* pass cast=True to leave it out"):
        proptim.SGD([w.copy()]).load_state_dict(half.state_dict())
    whole = proptim.SGD([w.copy()])
    whole.load_state_dict(half.state_dict(), cast=True)
    with pytest.raises(TypeError, match="Invalid cast: 'yes'"):
        whole.load_state_dict(half.state_dict(), cast="yes")
    for given, kept, mend in (
        ("int8", "bfloat16", "rounded"),
        ("int8", "float32", "widened"),
        ("float16", "bfloat16", "rounded"),
        ("bfloat16", "float32", "widened"),
        ("float32", "float16", "rounded"),
        ("float32", "int8", "rounded"),
    ):
        ours, theirs = (proptim.Adam([np.ones(5000, np.float32)], state_dtype=dtype) for dtype in (kept, given))
        with pytest.raises(TypeError, match=f"is {given}; expected {kept}, .*: pass cast=True to have it {mend}$"):
            ours.load_state_dict(theirs.state_dict())


def test_cast_is_not_the_fault_of_the_file(tmp_path):
    """`load` looks at its argument before the file, which is not named."""
    opt = proptim.Adam([np.ones(2)])
    opt.save(tmp_path / "state.npz")
    for path in (tmp_path / "state.npz", tmp_path / "none.npz"):
        with pytest.raises(TypeError, match=r"^Invalid cast: 1 \(expected True or False\)$"):
            opt.load(path, cast=1)


def test_float64_and_float32():
    """float64 state in float32 parameters and back, with cast=True."""
    wide, narrow = proptim.Adam([np.ones(2)]), proptim.Adam([np.ones(2, np.float32)])
    wide.step([np.full(2, 0.1)])
    with pytest.raises(TypeError, match=r"is float64; expected float32, the dtype of params\[0\]: pass cast=True"):
        narrow.load_state_dict(wide.state_dict())
    narrow.load_state_dict(wide.state_dict(), cast=True)
    assert np.array_equal(narrow.state[0]["exp_avg"], wide.state[0]["exp_avg"].astype(np.float32))
    wide.load_state_dict(narrow.state_dict(), cast=True)
    assert np.array_equal(wide.state[0]["exp_avg"], narrow.state[0]["exp_avg"].astype(float))


def test_loading_rewrites_weights_with_a_float32_master_alone(tmp_path):
    """The weights follow their float32 master; those of a split master are the user's."""
    for dtype, storage in ((BF16, {"master": "float32"}), (FLOAT16, {}), (BF16, {})):
        w = np.full(3, 0.7, dtype)
        opt = proptim.SGD([w], lr=1e-4, **storage)
        opt.step([np.full(3, 0.3, dtype)])
        opt.save(tmp_path / "a.npz")
        later = np.zeros(3, dtype)
        twin = proptim.SGD([later], lr=1e-4, **storage)
        twin.load(tmp_path / "a.npz")
        if storage or dtype == FLOAT16:
            assert np.array_equal(later, w)
            assert np.array_equal(twin.state[0]["master"], opt.state[0]["master"])
        else:
            assert not later.astype(float).any()


def test_without_ml_dtypes(fresh, tmp_path):
    """bfloat16 state is shown and saved as its bits, and such a state loads; a tensor of torch is stepped as ever."""
    script = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np, proptim
for k in range(2):
    opt = proptim.Adam([np.ones(3, np.float32)], state_dtype="bfloat16")
    if k:
        opt.load(path)
        opt.load_state_dict(opt.state_dict())
    opt.step([np.ones(3, np.float32)])
    opt.save(path)
print(opt.state[0]["exp_avg"].dtype, opt.steps)
"""
    assert fresh(f"path = {str(tmp_path / 'a.npz')!r}\n{script}") == "uint16 2"
    opt = proptim.Adam([np.ones(3, np.float32)], state_dtype="bfloat16")
    opt.load(tmp_path / "a.npz")
    assert opt.state[0]["exp_avg"].dtype == BF16


# Without an object ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize("name", [name for name in proptim.OPTIMIZERS if hasattr(functional, name)])
def test_functional(backend, name, kind):
    """`init` makes the master too; with what it makes steps are those of the object."""
    dtype, storage = PARAMETERS[kind]
    rng = np.random.default_rng(0)
    w = rng.standard_normal(20).astype(dtype)
    twin = w.copy()
    step = getattr(functional, name)
    opt = proptim.OPTIMIZERS[name]([twin], state_dtype="bfloat16", **storage)
    state = step.init(w, state_dtype="bfloat16", **storage)
    for k in range(3):
        grad = rng.standard_normal(20).astype(dtype if k % 2 or dtype.kind == "c" else np.float16)
        opt.step([grad], loss=1.0)
        step(w, grad, **state, step=k + 1)
        assert w.tobytes() == twin.tobytes()
    given = dict(state)
    plane = given.pop("master", None)
    assert (plane is None) == (opt._stepper.parameters[0].plane is None)


@pytest.mark.parametrize(("call", "message"), [
    (lambda w: functional.sgd(w, np.ones(3)), "grad is float64; expected bfloat16, the dtype of param, or float32"),
    (lambda w: functional.sgd(w, w.copy(), master=np.ones(3)), "master is float64; expected float32 or uint16"),
    (lambda w: functional.sgd(w, w.copy(), master=np.ones(2, "u2")), r"master has shape \(2,\); expected \(3,\)"),
    (lambda w: functional.sgd(H16.copy(), w, master=np.ones(3, "u2")), "master is uint16; expected float32, as init"),
    (lambda w: functional.sgd(W32.copy(), w, master=np.ones(3, "f4")), "master is given, and param is float32"),
    (lambda w: functional.sgd(w, w.copy(), master=w), "share memory"),
    (lambda w: functional.adam(w, w.copy(), np.ones(3), np.ones(3, "f4"), step=1), "exp_avg is float64; expected"),
    (lambda w: functional.adam.init(w, master="float16"), "Invalid master: 'float16'"),
    (lambda w: functional.adam.init(W64, state_dtype="float32"), "exp_avg is float32; expected float64"),
])  # fmt: skip
def test_functional_refuses(call, message):
    w = np.ones(3, BF16)
    with pytest.raises((TypeError, ValueError), match=message):
        call(w)
    assert (w == 1).all()


def test_collections(backend):
    """Norms, clipping and flattening of 16 bits: each number as it is, and rounded once where it changes."""
    for dtype in (BF16, FLOAT16):
        grads = [np.array([3.0, 4.0], dtype), np.array([[12.0]], dtype), np.array([84.0])]
        assert proptim.global_norm(grads) == 85.0
        assert proptim.clip_grad_norm(grads, 1.0) == 85.0
        factor = np.float32(1.0 / (85.0 + 1e-6))
        assert np.array_equal(grads[0], (np.array([3, 4], np.float32) * factor).astype(dtype))
        flat, (a, b) = proptim.flatten([np.ones((2, 3), dtype), np.zeros(2, dtype)])
        assert flat.dtype == a.dtype == b.dtype == dtype
        proptim.SGD([flat], lr=1.0).step([np.ones(8, dtype)])
        assert not a.astype(float).any()
        assert (b == -1).all()


def test_shown_names():
    assert _formats.shown(np.ones(2, np.float16)).dtype == FLOAT16
    assert repr(proptim.SGD([W16.copy()])).startswith("SGD")
