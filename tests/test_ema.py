"""`ema`, averages of the weights that are made in the same pass as the step; `averaged()`, which has them in place."""

from __future__ import annotations

import copy
import gc
import pickle
import threading

import ml_dtypes
import numpy as np
import pytest
import torch

import proptim
from proptim._averages import Averaged

BF16 = np.dtype(ml_dtypes.bfloat16)
LOSSES = (3.0, 2.0, 2.5, 1.0)


def start(*more):
    """Arrays of all dtypes that are stepped in float32, strided and not, shorter and longer than blocks."""
    rng = np.random.default_rng(3)
    kinds = [((37, 45), "f4"), ((1100,), BF16), ((300,), "f2"), ((), "f4"), ((0,), "f4"), ((33,), "c8"), *more]
    params = [np.asarray(rng.normal(size=shape)).astype(dtype) for shape, dtype in kinds]
    return [*params, rng.normal(size=(60, 46)).astype("f4")[::-1, ::2]]


def gradients(params, k):
    rng = np.random.default_rng(k)
    return [np.asarray(rng.normal(size=w.shape)).astype(w.dtype) for w in params]


def seen(opt, key, w):
    """A copy of the weights as the rule sees them."""
    master = opt.state[key].get("master")
    wide = {2: np.float32}.get(w.dtype.itemsize, w.dtype)
    return np.array(w if master is None else master, wide)


def moved(average, w, decay):
    """The formula."""
    share = average.real.dtype.type(1 - decay)
    if w.dtype.kind != "c":
        return average + share * (w - average)
    new = np.empty_like(w)
    new.real, new.imag = (a + share * (b - a) for a, b in ((average.real, w.real), (average.imag, w.imag)))
    return new


class Oracle:
    """The averages by the formula, from what is seen of the weights after each step."""

    def __init__(self, opt, params, decay):
        self.opt, self.params, self.decay = opt, params, decay
        self.averages = [seen(opt, k, w) for k, w in enumerate(params)]

    def check(self, step=True, only=None, decay=None):
        for k, w in enumerate(self.params):
            if step and (only is None or k in only):
                now = seen(self.opt, k, w)
                self.averages[k] = moved(self.averages[k], now, self.decay if decay is None else decay)
            found = self.opt.ema[k]
            assert (found.shape, found.dtype) == (w.shape, self.averages[k].dtype)
            np.testing.assert_array_equal(found, self.averages[k])


def bits(arrays):
    return [a.tobytes() for a in arrays]


@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_every_rule(backend, name):
    """The averages have the bits of the formula, and all else those of a run without."""
    plain, params = start(), start()
    options = {"weight_decay": 0.01, "backend": backend}
    alone = proptim.OPTIMIZERS[name](plain, **options, threads=1)
    opt = proptim.OPTIMIZERS[name](params, **options, ema=0.9, threads=3)
    oracle = Oracle(opt, params, 0.9)
    oracle.check(step=False)
    for k in range(3):
        for each, arrays in ((opt, params), (alone, plain)):
            each.step(gradients(arrays, k), loss=LOSSES[k])
        assert bits(params) == bits(plain)
        oracle.check()
    for i, state in alone.state.items():
        for key, value in state.items():
            assert np.asarray(opt.state[i][key]).tobytes() == np.asarray(value).tobytes()
    assert {**opt.state[0]}.keys() == {**alone.state[0], "ema": 0}.keys()


@pytest.mark.parametrize(
    "options",
    [
        {"clip_norm": 1.0, "zero_grads": True, "decoupled_weight_decay": True},
        {"clip_value": 0.5, "maximize": True, "flush_denormals": True},
        {"master": None},
        {"master": None, "rounding": "stochastic", "state_dtype": "bfloat16"},
        {"master": "float32", "state_dtype": "float16"},
        {"state_dtype": "int8"},
        {"threads": 3, "grad_scale": 0.5},
    ],
    ids=lambda options: "-".join(options),
)
def test_options(backend, options):
    """Every other option is as without an average, which is that of what is stored, rounded or not."""
    wide = (
        []
        if options.get("state_dtype") == "int8" or options.get("master") == "float32"
        else [((70, 90), "f8"), ((40,), "c16")]
    )
    params, plain = start(*wide), start(*wide)
    if options.get("master") == "float32":
        params[2:], plain[2:] = params[2:3], plain[2:3]
    if options.get("state_dtype") == "int8":
        params, plain = ([np.tile(np.arange(90, dtype="f4"), (70, 1)).T, np.zeros(5000, BF16)] for _ in range(2))
    opts = [proptim.Adam(w, weight_decay=0.1, backend=backend, **{"threads": 1, **options}, **more)
            for w, more in ((params, {"ema": 0.7}), (plain, {}))]  # fmt: skip
    oracle = Oracle(opts[0], params, 0.7)
    for k in range(3):
        for opt, arrays in zip(opts, (params, plain), strict=True):
            opt.step(gradients(arrays, k))
        assert bits(params) == bits(plain)
        oracle.check()


def test_long_arrays_and_threads(backend):
    """Parts for threads, elements at the end that fill no vector, and steps that the plan repeats by itself."""
    for n in (4097, 20_001):
        for dtype in ("f4", BF16, "f8"):
            params = [np.linspace(-1, 1, n).astype(dtype), np.ones(3, dtype)]
            opt = proptim.RMSprop(params, lr=0.01, ema=0.5, threads=3, backend=backend)
            oracle = Oracle(opt, params, 0.5)
            grads = gradients(params, 0)
            for k in range(4):
                opt.step(grads if k < 2 else None)
                oracle.check()


def test_where_no_step_is_made(backend):
    """Averages move with the step of their parameter alone, and in no step that is skipped or refused."""
    params = [np.ones(9, "f4"), np.full(5, 2.0, "f4")]
    opt = proptim.SGD(params, lr=0.5, ema=0.9, backend=backend, nonfinite="skip")
    oracle = Oracle(opt, params, 0.9)
    opt.step([np.ones(9, "f4"), None])
    oracle.check(only=[0])
    opt.step([np.full(9, np.nan, "f4"), np.ones(5, "f4")])
    with pytest.raises(ValueError, match="shape"):
        opt.step([np.ones(4, "f4"), None])
    assert opt.skipped == 1
    oracle.check(step=False)
    for k in (1, 0, 0):
        opt.step_param(k, np.ones(params[k].shape, "f4"))
        oracle.check(only=[k])


def test_schedules_and_groups(backend):
    """Each group has a decay of its own, a number, a schedule or none, which can be changed."""
    params = [np.ones(9, "f4"), np.full(5, 2.0), np.ones(4)]
    warm = lambda t: min(0.9, (1 + t) / (10 + t))  # noqa: E731
    groups = [{"params": params[:1], "ema": 0.5}, {"params": params[1:2]}, {"params": params[2:], "ema": None}]
    opt = proptim.SGD(groups, lr=0.5, ema=warm, backend=backend)
    assert [*opt.ema] == [0, 1]
    averages = [w.copy() for w in params]
    grads = [np.ones_like(w) for w in params]

    def check(decays):
        opt.step(grads)
        for k, decay in enumerate(decays):
            if decay is not None:
                averages[k] = moved(averages[k], params[k], decay)
                np.testing.assert_array_equal(opt.ema[k], averages[k])

    check([0.5, warm(0), None])
    check([0.5, warm(1), None])
    opt.param_groups[0]["ema"] = 0.0
    opt.param_groups[1]["ema"] = None  # it stays where it is
    averages[2] = params[2].copy()
    opt.param_groups[2]["ema"] = proptim.schedules.constant(0.25)  # begins with the weights before the step
    before = opt.ema[1].copy()
    check([0.0, None, 0.25])
    np.testing.assert_array_equal(opt.ema[1], before)
    opt.param_groups[1]["ema"] = 0.75
    check([0.0, 0.75, 0.25])
    opt.param_groups[0]["ema"] = 1.0
    with pytest.raises(ValueError, match=r"^Invalid ema value: 1.0 \(expected a number >= 0 and < 1\)"):
        opt.step(grads)


def test_groups_that_are_added_and_removed(backend):
    """Averages go with their parameters, and `reset` begins them anew."""
    params = [np.ones(3, "f4"), np.full(4, 2.0, "f4")]
    opt = proptim.Adam({"a": params[0], "b": params[1]}, ema=0.5, backend=backend)
    more = {"c": np.full(2, 5.0, "f4"), "d": np.ones(2)}
    opt.add_param_group({"params": {"c": more["c"]}, "ema": 0.9})
    opt.add_param_group({"params": {"d": more["d"]}, "ema": None})
    assert [*opt.ema] == ["a", "b", "c"]
    opt.step({key: np.ones_like(w) for key, w in zip("abcd", [*params, *more.values()], strict=True)})
    np.testing.assert_array_equal(opt.ema["c"], moved(np.full(2, 5.0, "f4"), more["c"], 0.9))
    opt.remove_param_group(0)
    assert [*opt.ema] == ["c"]
    opt.reset("c")
    np.testing.assert_array_equal(opt.ema["c"], more["c"])
    opt.remove_param_group(0)
    with pytest.raises(AttributeError, match=r"^no average of the weights is kept; expected ema=0.999 when"):
        opt.ema  # noqa: B018
    assert not hasattr(opt, "ema")
    with pytest.raises(ValueError, match=r"^no average of the weights is kept"), opt.averaged():
        pass


# Saving and loading -------------------------------------------------------------------------------------------------


def test_a_run_that_is_resumed(backend, tmp_path):
    """It goes on with the same bits; the average has the dtype of the arithmetic."""
    params = start(((40,), "f8"))
    opt = proptim.RMSprop(params, ema=0.9, backend=backend, momentum=0.5)
    opt.step(gradients(params, 0))
    saved = opt.state_dict()
    assert [entry["ema"].dtype.name for entry in saved["state"].values()] == [
        "float32", "float32", "float32", "float32", "float32", "complex64", "float64", "float32"
    ]  # fmt: skip
    assert saved["param_groups"][0]["ema"] == 0.9
    opt.save(tmp_path / "run.npz")
    others = [w.copy() for w in params]
    other = proptim.RMSprop(others, backend=backend)
    other.load(tmp_path / "run.npz")
    third = [w.copy() for w in params]
    fourth = proptim.RMSprop(third, ema=0.5, backend=backend)
    fourth.load_state_dict(saved)
    for k in (1, 2):
        opt.step(gradients(params, k))
        for each, arrays in ((other, others), (fourth, third)):
            each.step(gradients(arrays, k))
            assert bits(arrays) == bits(params)
            for key, average in opt.ema.items():
                assert each.ema[key].tobytes() == average.tobytes()


def test_what_was_not_saved(backend):
    """An average that the run had not begins with the weights as they are; one that it had goes on."""
    w = np.ones(3, "f4")
    plain = proptim.SGD([w], lr=0.5, backend=backend)
    plain.step([np.ones(3, "f4")])
    v = np.full(3, 7.0, "f4")
    opt = proptim.SGD([v], lr=0.5, ema=0.75, backend=backend)
    opt.step([np.ones(3, "f4")])
    for saved in (plain.state_dict(), torch.optim.SGD([torch.ones(3)], lr=0.5).state_dict()):
        v[:] = 3.0
        opt.load_state_dict(saved)
        assert opt.param_groups[0]["ema"] == 0.75
        assert opt.ema[0].tolist() == [3.0] * 3
        opt.step([np.ones(3, "f4")])
        assert opt.ema[0].tolist() == [3.0 + 0.25 * -0.5] * 3


def test_load_in_another_dtype():
    """Only with cast=True, rounded once; of another shape or kind it is refused, and nothing has changed."""
    saved = proptim.SGD([np.full(3, 0.1)], lr=0.5, ema=0.5).state_dict()
    w = np.ones(3, BF16)
    opt = proptim.SGD([w], lr=0.5, ema=0.5)
    with pytest.raises(TypeError, match=r"^'ema' in state 0 of state_dict is float64; expected float32, in which"):
        opt.load_state_dict(saved)
    opt.load_state_dict(saved, cast=True)
    assert opt.ema[0].tolist() == [float(np.float32(0.1))] * 3
    saved["state"][0]["ema"] = np.zeros(4)
    with pytest.raises(ValueError, match=r"^'ema' in state 0 of state_dict has shape \(4,\); expected \(3,\)"):
        opt.load_state_dict(saved, cast=True)
    assert opt.ema[0].tolist() == [float(np.float32(0.1))] * 3


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_of_the_optimizer(backend, way):
    params = start()
    opt = proptim.Adam(params, ema=0.9, backend=backend)
    opt.step(gradients(params, 0))
    other, others = way((opt, params))
    for each, arrays in ((opt, params), (other, others)):
        each.step(gradients(arrays, 1))
    for key, average in opt.ema.items():
        assert not np.shares_memory(average, other.ema[key])
        assert average.tobytes() == other.ema[key].tobytes()


def test_what_is_shown():
    """In state it can be written, in `ema` it is read-only; groups show the decay."""
    w = np.ones(3, "f4")
    opt = proptim.SGD({"w": w}, lr=0.5, ema=0.75)
    assert "    ema: 0.75\n" in repr(opt)
    assert "ema" in opt._repr_html_()
    with pytest.raises(ValueError, match="read-only"):
        opt.ema["w"][:] = 0
    with pytest.raises(TypeError, match="is shown here and cannot be set"):
        opt.ema["w"] = w
    opt.state["w"]["ema"][:] = 9.0
    assert opt.ema["w"].tolist() == [9.0] * 3


# The averages in the place of the weights ---------------------------------------------------------------------------


def test_averaged(backend):
    """They are the rounded averages; afterwards every bit of weights, masters and copies is back."""
    params = [*start(((20,), "f8")), np.full(3, 2.0, "f4"), np.array([np.nan, -0.0, np.inf, 1e-41], "f4")]
    params[-1].view("u4")[0] |= 1  # a payload
    published = [None] * len(params)
    published[0] = np.zeros(params[0].shape, BF16)
    groups = [{"params": params[:-2]}, {"params": params[-2:-1], "ema": None}, {"params": params[-1:]}]
    opt = proptim.Adam(groups, ema=0.9, lr=0.1, publish=published, backend=backend)
    grads = gradients(params, 0)
    for _ in range(3):
        opt.step(grads)
    masters = {k: s["master"].tobytes() for k, s in opt.state.items() if "master" in s}
    assert len(masters) == 2
    before, copied = bits(params), published[0].tobytes()
    averages = {key: a.tobytes() for key, a in opt.ema.items()}
    with opt.averaged():
        for k, w in enumerate(params):
            if k in opt.ema:
                np.testing.assert_array_equal(w, opt.ema[k].astype(w.dtype))
            else:
                assert w.tobytes() == before[k]
            if k in masters:
                assert opt.state[k]["master"].tobytes() == averages[k]
        np.testing.assert_array_equal(published[0], opt.ema[0].astype(BF16))
        assert {key: a.tobytes() for key, a in opt.ema.items()} == averages
        params[0][:] = 77.0
    assert bits(params) == before
    assert published[0].tobytes() == copied
    assert masters == {k: s["master"].tobytes() for k, s in opt.state.items() if "master" in s}
    assert {key: a.tobytes() for key, a in opt.ema.items()} == averages
    oracle = Oracle(opt, params[:5], 0.9)
    oracle.averages = [np.frombuffer(averages[k], opt.ema[k].dtype).reshape(w.shape) for k, w in enumerate(params[:5])]
    opt.step()
    oracle.check()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_averaged_ends_with_an_exception(backend, error):
    w = np.ones(5, BF16)
    opt = proptim.SGD([w], lr=2.0**-12, ema=0.5, backend=backend)
    opt.step([np.ones(5, "f4")])
    before = w.tobytes(), opt.state[0]["master"].tobytes()
    with pytest.raises(error), opt.averaged():
        raise error
    assert (w.tobytes(), opt.state[0]["master"].tobytes()) == before
    opt.step()


def test_averaged_refuses(backend, tmp_path):
    """Whatever would step, save or change what it has put in its place, in this thread and in others."""
    w = np.ones(5, "f4")
    opt = proptim.SGD([w], lr=0.5, ema=0.5, momentum=0.5, backend=backend)
    grads = [np.ones(5, "f4")]
    for _ in range(3):
        opt.step(grads)  # the last was repeated by the plan alone
    saved = opt.state_dict()
    opt.save(tmp_path / "run.npz")
    before, steps = w.tobytes(), opt.steps
    calls = [
        lambda: opt.step(grads),
        opt.step,
        lambda: opt.step_param(0, grads[0]),
        lambda: opt.load_state_dict(saved),
        lambda: opt.load(tmp_path / "run.npz"),
        lambda: opt.add_param_group({"params": [np.ones(2)]}),
        lambda: opt.remove_param_group(0),
        opt.reset,
        opt.catch_up,
        opt.state_dict,
        lambda: opt.save(tmp_path / "other.npz"),
        lambda: copy.deepcopy(opt),
        lambda: pickle.dumps(opt),
        lambda: opt.averaged().__enter__(),
    ]
    told = r"^the parameters are the averages of the weights, within `with opt.averaged\(\):`; expected this call after"
    with opt.averaged():
        average = w.tobytes()
        for call in calls:
            with pytest.raises(RuntimeError, match=told):
                call()
        found = []

        def elsewhere():
            with pytest.raises(RuntimeError, match=told) as caught:
                opt.step(grads)
            found.append(caught)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(found) == 1
        assert w.tobytes() == average
    assert (w.tobytes(), opt.steps) == (before, steps)
    opt.step()
    assert opt.steps == steps + 1
    block = opt.averaged()
    for _ in range(2):  # it can be used again
        with block:
            assert w.tobytes() == opt.ema[0].tobytes()
        opt.step()


def test_averaged_ends_in_another_thread(backend):
    """As a generator that is closed there: the weights are back, and the optimizer is not held."""
    w = np.ones(5, "f4")
    opt = proptim.SGD([w], lr=0.5, ema=0.5, backend=backend)
    opt.step([np.ones(5, "f4")])
    before, block = w.tobytes(), opt.averaged()
    for _ in range(2):
        block.__enter__()
        assert w.tobytes() == opt.ema[0].tobytes() != before
        thread = threading.Thread(target=block.__exit__)
        thread.start()
        thread.join()
        assert w.tobytes() == before
    opt.step()
    assert opt.steps == 2


@pytest.mark.once
def test_a_block_that_was_not_made():
    """An interrupted constructor leaves nothing to put back; what was entered and dropped is put back."""
    block = Averaged.__new__(Averaged)
    block.__del__()
    assert vars(block) == {}
    w = np.ones(5, "f4")
    opt = proptim.SGD([w], lr=0.5, ema=0.5)
    opt.step([np.ones(5, "f4")])
    before, block = w.tobytes(), opt.averaged()
    block.__enter__()
    assert w.tobytes() != before
    del block
    gc.collect()
    assert w.tobytes() == before
    opt.step()


def test_averages_that_are_off(backend):
    """With None in a group the block has its weights; with a number again the average goes on from where it stood."""
    params = [np.ones(3, "f4"), np.ones(4, "f4")]
    opt = proptim.SGD([{"params": [w]} for w in params], lr=0.5, ema=0.5, backend=backend)
    grads = [np.ones_like(w) for w in params]
    opt.step(grads)
    opt.param_groups[0]["ema"] = None
    for _ in range(2):  # at once, and after a step
        before = bits(params)
        with opt.averaged():
            assert params[0].tobytes() == before[0]
            assert params[1].tobytes() == opt.ema[1].tobytes() != before[1]
        assert bits(params) == before
        assert opt.ema[0].tolist() == [0.75] * 3
        opt.step(grads)
    opt.param_groups[1]["ema"] = None
    with pytest.raises(ValueError, match=r"^no average of the weights is kept"), opt.averaged():
        pass
    opt.param_groups[0]["ema"] = 0.5
    with opt.averaged():
        assert params[0].tolist() == [0.75] * 3
    opt.step(grads)
    assert opt.ema[0].tolist() == [0.75 + 0.5 * (-1.0 - 0.75)] * 3


def test_averaged_within_itself(backend):
    """The inner `with` is refused, and the outer block goes on: the optimizer is held until its end."""
    w = np.ones(5, "f4")
    opt = proptim.SGD([w], lr=0.5, ema=0.5, backend=backend)
    opt.step([np.ones(5, "f4")])
    before, block = w.tobytes(), opt.averaged()
    told = r"^the parameters are the averages of the weights, within"
    with block:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=told), block:
                pass
            assert w.tolist() == [0.75] * 5
            with pytest.raises(RuntimeError, match=told):
                opt.step()
    assert w.tobytes() == before
    opt.step()


def test_tensors(backend):
    """autograd is told of both changes; a tensor that was given other memory is refused, with nothing changed."""
    w = torch.ones(5)
    opt = proptim.SGD([w], lr=0.5, ema=0.5, backend=backend)
    opt.step([torch.ones(5)])
    before = w._version
    with opt.averaged():
        assert w.tolist() == [0.75] * 5
        assert w._version > before
        before = w._version
    assert w._version > before
    w.data = torch.zeros(5)
    with pytest.raises(ValueError, match=r"^params\[0\] has been given other memory"), opt.averaged():
        pass
    assert w.tolist() == [0.0] * 5
    with pytest.raises(ValueError, match=r"^params\[0\] has been given other memory"):
        opt.step()  # and not that it is held


def there_and_back(w):
    """Other memory by way of another dtype, as `model.double()` and `model.float()` give it."""
    dtype = w.dtype
    w.data = w.data.to(torch.complex128 if dtype.is_complex else torch.float64)
    w.data = w.data.to(dtype)


def cloned(w):
    w.data = w.data.clone()


def shared(w):
    """Memory in another order."""
    w.data = w.data.t().contiguous().t()


def of_another_shape(w):
    w.data = w.data.repeat(5, 1)


def without_memory(w):
    w.data = w.data[:0]


@pytest.mark.parametrize("move", [there_and_back, cloned, shared, of_another_shape, without_memory])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_tensors_that_get_other_memory(dtype, move):
    """Within the block: they have their bits back all the same, of their shape and in their dtype."""
    w = torch.linspace(-1, 1, 6).reshape(2, 3).to(dtype)
    copied = torch.zeros(2, 3, dtype=torch.bfloat16) if dtype == torch.float32 else None
    opt = proptim.SGD([w], lr=0.3, ema=0.5, publish=[copied])
    opt.step([torch.full((2, 3), 0.7).to(dtype)])
    tensors = [w] if copied is None else [w, copied]
    before, old = [t.clone() for t in tensors], [t.data for t in tensors]
    with opt.averaged():
        for each, weights in zip(tensors, before, strict=True):
            assert not torch.equal(each, weights)
            move(each)
    for each, weights, at in zip(tensors, before, old, strict=True):
        assert each.dtype == weights.dtype
        assert torch.equal(each, weights)
        assert torch.equal(at, weights)  # also where it was


def test_tensors_that_get_another_dtype():
    """And keep it: their weights are converted."""
    w = torch.tensor([1.0, 2.0**-30])
    opt = proptim.SGD([w], lr=0.5, ema=0.5)
    opt.step([torch.ones(2)])
    before = w.clone()
    with opt.averaged():
        w.data = w.data.half()
    assert torch.equal(w, before.half())


def expanded(t):
    t.data = torch.zeros(1, dtype=t.dtype).expand(6)


def in_windows(t):
    t.data = torch.zeros(8, dtype=t.dtype).as_strided((6,), (0,))


def without_storage(t):
    t.data = t.data.clone()
    t.untyped_storage().resize_(0)


def in_a_short_storage(t):
    t.data = t.data.clone()
    t.untyped_storage().resize_(4)


def of_whole_numbers(t):
    t.data = t.data.int()


def negated(t):
    t.data = torch._neg_view(t.data)


def of_inference(t):
    with torch.inference_mode():
        t.data = torch.zeros(6, dtype=t.dtype)


LOSING = [expanded, in_windows, without_storage, in_a_short_storage, of_whole_numbers, negated, of_inference]


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("lose", LOSING)
def test_tensors_that_cannot_hold_weights(lose, published):
    """They get memory of their own with them, and those after them theirs."""
    tensors = [torch.linspace(-1, 1, 6) for _ in range(3)]
    copies = [torch.zeros(6, dtype=torch.bfloat16) for _ in tensors]
    opt = proptim.SGD(tensors, lr=0.3, ema=0.5, publish=copies)
    opt.step([torch.full((6,), 0.7)] * 3)
    before = [t.clone() for t in (*tensors, *copies)]
    each = copies if published else tensors
    with opt.averaged():
        lose(each[1])
        each[2].data = each[2].data.double()
    for t, weights in zip((*tensors, *copies), before, strict=True):
        assert torch.equal(t, weights.to(t.dtype))
        assert t.dtype == (torch.float64 if t is each[2] else weights.dtype)
        assert not t.is_inference()
    assert opt.state_dict()  # it is not held


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_complex_and_real_numbers(dtype):
    """Weights that become complex are so; complex ones that become real or lazily conjugated do not."""
    for change in (torch.conj, lambda t: t.real if t.is_complex() else t.to(torch.complex64)):
        w = torch.linspace(-1, 1, 6).to(dtype) * (1j if dtype.is_complex else 1)
        opt = proptim.SGD([w], lr=0.5, ema=0.5)
        opt.step([torch.ones(6, dtype=dtype)])
        weights = w.clone()
        with opt.averaged():
            w.data = change(w.data)
        assert w.is_complex() or not dtype.is_complex
        assert not w.is_conj()
        assert torch.equal(w, weights.to(w.dtype))


def of_another(tensors):
    tensors[1].data = tensors[2].data


def of_each_other(tensors):
    tensors[1].data, tensors[2].data = tensors[2].data, tensors[1].data


def both_new(tensors):
    tensors[1].data = torch.zeros(8)[2:]
    tensors[2].data = tensors[1].data.as_strided((6,), (1,), 0)


def of_one_with_an_array(tensors):
    tensors[1].data = torch.from_numpy(tensors[3])


def of_one_without_average(tensors):
    tensors[1].data = tensors[4].data


@pytest.mark.parametrize("tie", [of_another, of_each_other, both_new, of_one_with_an_array, of_one_without_average])
def test_tensors_that_are_tied(tie):
    """Within the block: each has its own weights afterwards, and so has an array."""
    tensors = [*(torch.full((6,), float(i)) for i in range(3)), np.full(6, 3.0, np.float32), torch.full((6,), 4.0)]
    opt = proptim.SGD([{"params": tensors[:4], "ema": 0.5}, {"params": tensors[4:]}], lr=0.5)
    opt.step([torch.ones(6)] * 5)
    with opt.averaged():
        tie(tensors)
    assert [t.tolist() for t in tensors] == [[i - 0.5] * 6 for i in range(5)]


def test_a_tensor_that_is_transposed():
    """Within the memory that it has."""
    w = torch.arange(9.0).reshape(3, 3)
    opt = proptim.SGD([w], lr=0.5, ema=0.5)
    opt.step([torch.ones(3, 3)])
    before, old = w.clone(), w.data
    with opt.averaged():
        w.data = w.data.t()
    assert torch.equal(w, before)
    assert torch.equal(old, before)


def test_columns_of_a_table():
    """Memory of a tensor between that of others is its own: it stays there."""
    tensors = [torch.full((4,), float(i)) for i in range(3)]
    opt = proptim.SGD(tensors, lr=0.5, ema=0.5)
    opt.step([torch.ones(4)] * 3)
    table = torch.zeros(4, 3)
    with opt.averaged():
        for t, column in zip(tensors, table.t(), strict=True):
            t.data = column
    assert table.tolist() == [[-0.5, 0.5, 1.5]] * 4


def test_a_failure_that_was_not_foreseen(monkeypatch):
    """It costs that tensor alone: the error names it, all others have their weights, the optimizer is not held."""
    tensors = [torch.full((4,), float(i)) for i in range(5)]
    opt = proptim.SGD(tensors, lr=0.5, ema=0.5)
    opt.step([torch.ones(4)] * 5)
    usual, failing = torch.Tensor.copy_, []

    def copy_(target, source):
        if target.data_ptr() in failing:
            raise OSError("no such memory")
        return usual(target, source)

    def move(*fail):
        with opt.averaged():
            for t in tensors[1:]:
                t.data = t.data.double()
            failing[:] = [tensors[i].data_ptr() for i in fail]

    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    with pytest.raises(
        RuntimeError,
        match=r"^params\[1\] raised OSError\('no such memory'\), so that it cannot have its weights back; expected a "
        r"model that is moved after `with opt.averaged\(\):`; 1 more are like it, and all other weights are back$",
    ) as caught:
        move(1, 3)
    assert isinstance(caught.value.__context__, OSError)
    assert [t[0].item() for t in tensors] == [-0.5, 0.75, 1.5, 2.75, 3.5]
    assert opt.state_dict()


def test_a_signal_handler_that_raises_at_the_end(monkeypatch):
    """While tensors are written: its exception is raised, when all have their weights."""
    tensors = [torch.full((4,), float(i)) for i in range(3)]
    opt = proptim.SGD(tensors, lr=0.5, ema=0.5)
    opt.step([torch.ones(4)] * 3)
    usual, rings = torch.Tensor.copy_, [TimeoutError("the alarm")]

    def copy_(target, source):
        if rings:
            raise rings.pop()
        return usual(target, source)

    def move():
        with opt.averaged():
            for t in tensors:
                t.data = t.data.double()

    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    with pytest.raises(TimeoutError, match=r"^the alarm$"):
        move()
    assert [t[0].item() for t in tensors] == [-0.5, 0.5, 1.5]
    assert opt.state_dict()


@pytest.mark.parametrize("published", [False, True])
def test_a_tensor_that_has_no_memory_any_more(published):
    """An error that names it, when all others have their weights; the optimizer is not held."""
    tensors = [torch.linspace(-1, 1, 6) for _ in range(3)]
    copies = [torch.zeros(6, dtype=torch.bfloat16) for _ in tensors]
    opt = proptim.SGD(tensors, lr=0.3, ema=0.5, publish=copies)
    opt.step([torch.full((6,), 0.7)] * 3)
    before = [t.clone() for t in (*tensors, *copies)]
    gone = (copies if published else tensors)[1]
    other = torch.empty(6, dtype=gone.dtype, device="meta")
    name = "publish" if published else "params"

    def move():
        with opt.averaged():
            assert not any(map(torch.equal, tensors, before))
            torch.utils.swap_tensors(gone, other)

    with pytest.raises(
        RuntimeError,
        match=rf"^{name}\[1\] is on meta with layout torch.strided .* expected a model that is moved after",
    ):
        move()
    assert gone.is_meta
    now = [other if t is gone else t for t in (*tensors, *copies)]  # the memory that it had, too
    assert all(map(torch.equal, now, before))
    torch.utils.swap_tensors(gone, other)
    with opt.averaged():
        pass
    opt.step()
    assert opt.steps == 2


# What is refused ----------------------------------------------------------------------------------------------------


def test_rows_are_refused(backend):
    """A row that is not stepped would have to move with the average; whole gradients are as ever."""
    table, b = np.ones((9, 4), "f4"), np.ones(3, "f4")
    rows = proptim.Rows([1, 3], np.ones((2, 4), "f4"))
    message = (
        r"^grads\[0\] is a gradient of rows, and params\[0\] has an average of its weights, which moves in all rows"
    )
    with pytest.raises(ValueError, match=message):
        proptim.SGD([table], lr=0.5, ema=0.9, grads=[rows], backend=backend)
    opt = proptim.SGD([{"params": [table], "ema": 0.9}, {"params": [b], "ema": None}], lr=0.5, backend=backend)
    whole = [np.ones_like(table), np.ones_like(b)]
    for _ in range(2):
        opt.step(whole)
        with pytest.raises(ValueError, match=message):
            opt.step([rows, whole[1]])
        with pytest.raises(ValueError, match=message):
            opt.step_param(0, rows)
    assert opt.steps == 2
    assert (table == 0.0).all()
    opt.param_groups[0]["ema"] = None
    opt.step([rows, whole[1]])
    opt.step([rows, whole[1]])
    opt.param_groups[0]["ema"] = 0.9
    with pytest.raises(ValueError, match=message):
        opt.step()
    assert opt.steps == 4


@pytest.mark.parametrize("begin", ["step", "step_param", "reset", "reset one"])
def test_an_average_begins_with_rows_that_have_caught_up(backend, begin):
    """With `lazy_rows=False`: with the weights that `catch_up` gives, not with those of rows that have missed steps."""
    tables, b = [np.ones((6, 4), "f4") for _ in range(2)], np.ones(3, "f4")
    opt, twin = (
        proptim.SGD([table, b.copy()], lr=0.25, weight_decay=1.0, lazy_rows=False, backend=backend) for table in tables
    )
    for row in (1, 3, 1):
        for each in (opt, twin):
            each.step([proptim.Rows([row], np.ones((1, 4), "f4")), np.ones(3, "f4")])
    twin.catch_up()
    assert (tables[0] != tables[1]).any()
    start = tables[1].copy()
    opt.param_groups[0]["ema"] = 0.5
    whole = [np.ones((6, 4), "f4"), np.ones(3, "f4")]
    behind = tables[0].copy()
    with pytest.raises(ValueError, match=r"^grads\[0\] is a gradient of rows"):
        opt.reset() if begin.startswith("reset") else opt.step()
    np.testing.assert_array_equal(tables[0], behind)
    if begin.startswith("reset"):
        opt.param_groups[0]["ema"] = None
        opt.step([None, whole[1]])
        np.testing.assert_array_equal(tables[0], behind)
        opt.param_groups[0]["ema"] = 0.5
        opt.reset(*([0] if begin == "reset one" else []))
        np.testing.assert_array_equal(opt.ema[0], start)
        np.testing.assert_array_equal(tables[0], start)
        return
    for each in (opt, twin):
        if begin == "step":
            each.step(whole)
        else:
            each.step_param(0, whole[0])
    np.testing.assert_array_equal(tables[0], tables[1])
    np.testing.assert_array_equal(opt.ema[0], moved(start, tables[0], 0.5))


def test_an_average_that_begins_with_a_loaded_state(backend):
    """It begins with the weights as they are, which may have been loaded too: their rows do not catch up first."""
    tables, whole = [np.ones((6, 4), "f4") for _ in range(2)], [np.full((6, 4), 0.5, "f4"), np.ones(3, "f4")]
    opt, twin = (
        proptim.SGD([table, np.ones(3, "f4")], lr=0.25, weight_decay=1.0, lazy_rows=False, backend=backend)
        for table in tables
    )
    opt.step(whole)
    saved = opt.state_dict()
    for row in (1, 3, 1):
        opt.step([proptim.Rows([row], np.ones((1, 4), "f4")), None])
    opt.step([None, whole[1]])  # so that no gradient of rows is bound, which an average would refuse
    assert opt.state[0]["row_step"].tolist() == [1, 4, 1, 3, 1, 1]
    behind = tables[0].copy()
    opt.param_groups[0]["ema"] = twin.param_groups[0]["ema"] = 0.5
    opt.load_state_dict(saved)
    tables[1][:] = behind
    twin.load_state_dict(saved)
    np.testing.assert_array_equal(tables[0], behind)
    np.testing.assert_array_equal(opt.ema[0], behind)
    assert opt.state[0]["row_step"].tolist() == [1] * 6
    for each in (opt, twin):
        each.step(whole)
    np.testing.assert_array_equal(tables[0], tables[1])
    np.testing.assert_array_equal(opt.ema[0], twin.ema[0])
    np.testing.assert_array_equal(opt.ema[0], moved(behind, tables[0], 0.5))


@pytest.mark.parametrize("ema", [-0.1, 1.0, 1.5, np.nan, lambda t: 1.0])
def test_numbers_that_are_refused(ema):
    with pytest.raises(ValueError, match=r"^Invalid ema value: .* \(expected a number >= 0 and < 1\)"):
        proptim.SGD([np.ones(3)], lr=0.5, ema=ema)


@pytest.mark.parametrize("ema", ["0.9", [0.9, 0.99], lambda t: None, True, False, lambda t: np.True_])
def test_what_is_no_number(ema):
    with pytest.raises(TypeError, match=r"^Invalid ema value: .* \(expected a number >= 0 and < 1"):
        proptim.SGD([np.ones(3)], lr=0.5, ema=ema)


def test_the_largest_decays(backend):
    """A decay is rounded once, as its distance from 1."""
    for decay in (np.nextafter(1.0, 0.0), 1 - 1e-12, 0.9999):
        w = np.ones(4, "f4")
        opt = proptim.SGD([w], lr=1e6, ema=decay, backend=backend)
        oracle = Oracle(opt, [w], decay)
        opt.step([np.ones(4, "f4")])
        oracle.check()


def test_misspelt_names():
    """Names of other libraries lead here."""
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'use_ema': did you mean 'ema'\?"):
        proptim.Adam([np.ones(3)], use_ema=True)
    with pytest.raises(ValueError, match=r"unknown hyperparameter 'ema_momentum': did you mean 'ema'\?"):
        proptim.Adam([{"params": [np.ones(3)], "ema_momentum": 0.9}])
