"""Faults that were found in use, and others of the same kind: numbers, containers, names, unusual arrays, settings."""

from __future__ import annotations

import array
import collections
import collections.abc
import copy
import math
import pickle
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

import proptim
from proptim import schedules
from proptim.cli.selftest import OPTIONS

NAMES = list(proptim.OPTIMIZERS)


def draw(steps, size=3):
    return np.random.default_rng(5).standard_normal((steps, size))


# State that is born late -----------------------------------------------------------------------------------------


def beside_torch(name, changes, steps=12, **options):
    """A run here and one of torch whose groups change alike; the largest difference."""
    start = np.linspace(-1.0, 1.0, 3)
    ours, theirs = start.copy(), torch.tensor(start)
    opt = getattr(proptim, name)([ours], **options)
    options.pop("variant", None)
    other = getattr(torch.optim, name)([theirs], **options)
    for k, grad in enumerate(draw(steps)):
        opt.param_groups[0].update(changes.get(k, {}))
        other.param_groups[0].update(changes.get(k, {}))
        opt.step([grad])
        theirs.grad = torch.tensor(grad)
        other.step()
    return np.abs(ours - theirs.numpy()).max()


@pytest.mark.parametrize("changes", [
    {1: {"momentum": 0.9}},
    {2: {"momentum": 0.9}, 4: {"momentum": 0.0}, 6: {"momentum": 0.5}},
    {0: {"momentum": 0.9}, 5: {"momentum": 0.0}, 6: {"momentum": 0.5, "dampening": 0.1}},
])  # fmt: skip
def test_momentum_that_begins_late(backend, changes):
    """SGD's first buffer is the gradient, undamped, whenever momentum begins, and stays while momentum is off."""
    assert beside_torch("SGD", changes, lr=0.1, dampening=0.5) < 1e-14


def test_the_momentum_of_the_report(backend):
    """One step without momentum and one with it: -1 and another -1, not -0.5."""
    w = np.zeros(1)
    opt = proptim.SGD([w], lr=1, dampening=0.5)
    opt.step([np.ones(1)])
    opt.momentum = 0.9
    opt.step([np.ones(1)])
    assert w == [-2.0]


def test_momentum_that_a_schedule_begins(backend):
    """A schedule that is 0 at first begins momentum as a change by hand does."""
    values = [0.0, 0.0, 0.9, 0.9, 0.0, 0.0, 0.5, 0.5]
    start = np.linspace(-1.0, 1.0, 3)
    ours, theirs = start.copy(), torch.tensor(start)
    opt = proptim.SGD([ours], lr=0.1, dampening=0.3, momentum=values.__getitem__)
    other = torch.optim.SGD([theirs], lr=0.1, dampening=0.3)
    for value, grad in zip(values, draw(8), strict=True):
        other.param_groups[0]["momentum"] = value
        theirs.grad = torch.tensor(grad)
        other.step()
        opt.step([grad])
        assert np.abs(ours - theirs.numpy()).max() < 1e-14


def test_momentum_after_a_load_without_a_buffer_and_after_reset(backend):
    """A state_dict without a buffer, and `reset`, begin momentum anew."""
    plain = proptim.SGD([np.zeros(1)], lr=1.0)
    plain.step([np.ones(1)])
    for again in ("load", "reset", "reset one"):
        w = np.zeros(1)
        opt = proptim.SGD([w], lr=1.0, momentum=0.9, dampening=0.5)
        for _ in range(2):
            opt.step([np.ones(1)])
        if again == "load":
            opt.load_state_dict(plain.state_dict())
            opt.param_groups[0].update(momentum=0.9, dampening=0.5)
        else:
            opt.reset(*([0] if again == "reset one" else []))
        w[:] = 0
        opt.step([np.ones(1)])
        assert w == [-1.0]


@pytest.mark.parametrize("way", ["step", "step_param", "resumed"])
def test_mean_that_begins_late(backend, way):
    """A centered RMSprop with bias correction corrects its mean by the number of steps in the mean."""
    alpha, lr, eps = 0.9, 0.1, 0.1
    w, x = np.zeros(3), np.zeros(3)
    opt = proptim.RMSprop([w], lr=lr, alpha=alpha, eps=eps, bias_correction=True)
    square = mean = np.zeros(3)
    seen = 0
    for k, grad in enumerate(draw(12)):
        opt.centered = on = k in (3, 4, 7, 8, 9)
        if way == "step_param":
            opt.step_param(0, grad)
        else:
            opt.step([grad])
        square = alpha * square + (1 - alpha) * grad * grad
        variance = square / (1 - alpha ** (k + 1))
        if on:
            mean, seen = alpha * mean + (1 - alpha) * grad, seen + 1
            variance = np.maximum(variance - (mean / (1 - alpha**seen)) ** 2, 0)
        x = x - lr * grad / (np.sqrt(variance) + eps)
        assert np.abs(w - x).max() < 1e-13
        if way == "resumed":
            saved = opt.state_dict()
            opt = proptim.RMSprop([w], lr=lr, alpha=alpha, eps=eps, bias_correction=True)
            opt.load_state_dict(saved)
            assert repr(opt.state_dict()) == repr(saved)


def test_losses_that_are_compared_again(backend):
    """Rprop that returns to comparing losses after another variant has no old loss to compare with."""
    start, grads = np.zeros(1), [np.ones(1), np.ones(1), -np.ones(1)]
    opt = proptim.Rprop([start], lr=0.1, variant="irprop+")
    opt.step([grads[0]], loss=0.0)
    opt.param_groups[0]["variant"] = "irprop-"
    opt.step([grads[1]])
    opt.param_groups[0]["variant"] = "irprop+"
    before = start.copy()
    opt.step([grads[2]], loss=5.0)  # a change of sign, and no last loss: no move
    assert np.array_equal(start, before)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "sgd"])
def test_steps_without_arrays(name):
    """A state that has made steps and has none of its arrays is refused: nothing would be corrected rightly."""
    w = np.zeros(2)
    opt = proptim.OPTIMIZERS[name]([w])
    with pytest.raises(ValueError, match="state 0 of state_dict has made 5 steps and has no arrays; expected those of"):
        opt.load_state_dict({"state": {0: {"step": 5}}, "param_groups": [{"params": [0]}]})


# Bounds that change in mid-run -----------------------------------------------------------------------------------


def test_step_sizes_narrowed(backend):
    """Rprop's bounds hold at every step, whatever the signs, as in torch; also for a loaded state outside them."""
    changes = {3: {"step_sizes": (1e-6, 0.05)}, 6: {"step_sizes": (0.2, 0.3)}, 9: {"step_sizes": (1e-3, 0.1)}}
    assert beside_torch("Rprop", changes, lr=0.1, variant="irprop-") < 1e-14
    for variant in ("rprop-", "irprop-", "rprop+", "irprop+"):
        w = np.zeros(3)
        wide = proptim.Rprop([w], lr=0.5, variant=variant)
        wide.step([np.ones(3)], loss=1.0)
        opt = proptim.Rprop([w], lr=0.5, variant=variant)
        opt.load_state_dict(wide.state_dict())
        opt.param_groups[0]["step_sizes"] = (1e-6, 0.1)
        w[:] = 0
        opt.step([np.array([1.0, 0.0, 1.0])], loss=1.0)
        assert np.array_equal(w, [-0.1, 0.0, -0.1])
        assert np.array_equal(opt.state[0]["step_size"], [0.1] * 3)


# Numbers in the precision in which they are used -----------------------------------------------------------------

EDGES = [
    {"lr": 1e39}, {"lr": 3.4028236e38}, {"weight_decay": 1e39}, {"grad_scale": 5e254}, {"grad_scale": -1e39},
    {"eps": 1e-60}, {"betas": (0.9, 1 - 1e-9)}, {"betas": (1 - 1e-9, 0.9)}, {"alpha": 1 - 1e-9}, {"rho": 1 - 1e-9},
    {"momentum": 1e39}, {"dampening": -1e39}, {"initial_square_avg": 1e39}, {"initial_accumulator_value": 1e39},
    {"lr_decay": 1e39}, {"momentum_decay": 1e39}, {"etas": (0.5, 1 + 1e-9)}, {"etas": (1e-60, 1.2)},
    {"lr": 1e30, "weight_decay": 1e30, "decoupled_weight_decay": True},
]  # fmt: skip
BEYOND = [(n, o) for n, c in proptim.OPTIMIZERS.items() for o in EDGES if o.keys() <= c.hyper.keys() | {"grad_scale"}]


@pytest.mark.parametrize("dtype", ["f4", "c8"])
@pytest.mark.parametrize(("name", "option"), BEYOND)
def test_numbers_in_single_precision(name, option, dtype):
    """What is not finite or not legal once rounded to float32 is refused, before anything changes."""
    w, other = np.ones(2, dtype), np.ones(2, "f8")
    grads = [np.ones(2, "f8"), np.ones(2, dtype)]
    with pytest.raises(ValueError, match=r"float32, in which the rule computes$"):
        proptim.OPTIMIZERS[name]([other, w], **option).step(grads)
    assert (w == 1).all()
    assert (other == 1).all()
    legal = {"f8": proptim.OPTIMIZERS[name]([other], **option)}  # in double precision alone
    legal["f8"].step(grads[:1])


@pytest.mark.parametrize(("name", "option"), [(n, o) for n, o in BEYOND if len(o) == 1])
def test_schedules_that_leave_single_precision(backend, name, option):
    """A schedule that comes to such a number is refused at that step, and the run goes on where it was."""
    ((key, bad),) = option.items()
    cls = proptim.OPTIMIZERS[name]
    if key in cls.fixed:
        return
    good = {"grad_scale": 1.0}.get(key, cls.hyper.get(key))
    late = [False]
    value = (
        tuple((lambda k, i=i: (bad if late[0] else good)[i]) for i in range(2))
        if isinstance(good, tuple)
        else lambda k: bad if late[0] else good
    )
    w, grad = np.ones(2, "f4"), np.ones(2, "f4")
    opt = cls([w], **{key: value})
    opt.step([grad])
    before, late[0] = w.copy(), True
    with pytest.raises(ValueError, match="float32, in which the rule computes"):
        opt.step([grad])
    assert np.array_equal(w, before)
    assert opt.steps == 1
    late[0] = False
    opt.step([grad])
    assert opt.steps == 2


def test_coefficients_that_leave_single_precision_on_the_short_way(backend):
    """A coefficient that grows with the steps is looked at also where steps are only repeated."""
    w = np.zeros(2, "f4")
    opt = proptim.Adam([w], lr=1e37, betas=(0.0, 0.9), eps_hat=False)
    for _ in range(3):
        opt.step([np.ones(2, "f4")])
    opt.param_groups[0]["betas"] = (0.99999994, 0.9)  # 1 - beta1^t is 6e-8 t
    before = w.copy()
    with pytest.raises(ValueError, match="Adam computes step_size = "):
        opt.step([np.ones(2, "f4")])
    assert np.array_equal(w, before)


@pytest.mark.parametrize("name", NAMES)
def test_infinite_bounds(backend, name):
    """clip_norm and clip_value may be infinite, in either precision: no clipping, and the norm is measured."""
    cls, grad = proptim.OPTIMIZERS[name], np.array([3.0, 4.0], "f4")
    plain = np.ones(2, "f4")
    cls([plain]).step([grad])
    for bound in (math.inf, 1e39, np.float32("inf"), lambda k: math.inf):
        w = np.ones(2, "f4")
        opt = cls([w], clip_norm=bound, clip_value=bound)
        opt.step([grad])
        assert np.array_equal(w, plain)
        assert opt.grad_norm == 5.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_no_number(backend, bad):
    """A norm that is NaN or infinite because of the gradients is not an invalid hyperparameter."""
    w = np.zeros(2)
    opt = proptim.SGD([w], lr=1.0, clip_norm=1.0)
    opt.step([np.array([bad, 1.0])])
    assert np.array_equal(w, [math.nan, math.nan if math.isnan(bad) else 0.0], equal_nan=True)


@pytest.mark.parametrize("nonfinite", ["propagate", "skip", "raise"])
def test_a_norm_that_overflows(backend, nonfinite):
    """Finite gradients whose squares overflow float64 have an infinite norm and are clipped to 0, as by torch."""
    w, grads = np.ones(2), [np.array([3e200, 4e200])]
    opt = proptim.SGD([w], lr=1.0, clip_norm=1.0, nonfinite=nonfinite, backend=backend)
    for _ in range(2):
        opt.step(grads)
    assert w.tolist() == [1.0, 1.0]
    assert (opt.grad_norm, opt.steps, opt.skipped) == (math.inf, 2, 0)
    theirs = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    theirs.grad = torch.tensor(grads[0])
    assert torch.nn.utils.clip_grad_norm_([theirs], 1.0).item() == proptim.clip_grad_norm(grads, 1.0) == math.inf
    assert theirs.grad.tolist() == grads[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", [
    np.int8, np.uint8, np.int64, np.float16, np.float32, np.longdouble, np.bool_, np.array, torch.tensor,
    Fraction, Decimal,
    lambda v: np.array(v, "f2"), lambda v: torch.tensor(v, dtype=torch.float16), lambda v: torch.tensor(v).bool(),
])  # fmt: skip
def test_numbers_of_any_type(backend, kind):
    """A number of another type is converted to a Python number, so that 300 steps do not overflow an int8."""
    one, zero = kind(1), kind(0)
    results = []
    for a, b in ((one, zero), (1, 0)):
        w = np.zeros(2, "f4")
        opt = proptim.Adagrad(
            [w], lr=a, lr_decay=a, weight_decay=b, grad_scale=a, clip_norm=a, max_skips=a, nonfinite="skip"
        )
        assert {type(v) for v in opt.param_groups[0].values()} <= {int, float, bool, tuple, type(None)}
        for _ in range(300):
            opt.step([np.ones(2, "f4")])
        results.append(w.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("true", [np.bool_(True), np.array(True), torch.tensor(True)], ids=["bool_", "0-d", "tensor"])
def test_switches_of_any_type(true):
    """A bool of NumPy or torch is accepted as a bool."""
    opt = proptim.SGD([np.zeros(1)], momentum=0.9, nesterov=true, maximize=true, zero_grads=true, flush_denormals=true)
    assert opt.nesterov is opt.maximize is opt.zero_grads is opt.flush_denormals is True


def test_schedules_of_numpy_numbers():
    """A schedule counts in numbers of Python, whatever it was given."""
    i8, f2 = np.int8, np.float16
    for ours, same in [
        (schedules.warmup(i8(100), then=f2(0.5)), schedules.warmup(100, then=0.5)),
        (schedules.linear(f2(1), f2(0), i8(100)), schedules.linear(1.0, 0.0, 100)),
        (schedules.cosine(f2(1), i8(100), f2(0)), schedules.cosine(1.0, 100, 0.0)),
        (schedules.step(f2(1), f2(0.5), i8(100)), schedules.step(1.0, 0.5, 100)),
        (schedules.exponential(f2(1), f2(0.5), i8(100)), schedules.exponential(1.0, 0.5, 100)),
        (schedules.one_cycle(f2(1), i8(100)), schedules.one_cycle(1.0, 100)),
        (schedules.constant(f2(1)), schedules.constant(1.0)),
        (schedules.join(schedules.constant(1.0), i8(100), schedules.constant(2.0)),
         schedules.join(schedules.constant(1.0), 100, schedules.constant(2.0))),
    ]:  # fmt: skip
        assert ours == same
        for step in (0, 50, 99, 100, 127, 128, 1000):
            assert type(ours(step)) in (int, float)
            assert ours(step) == same(step)


class Listing(collections.abc.Sequence):
    """A sequence as Hydra's ListConfig is one."""

    def __init__(self, *items):
        self.items = items

    def __getitem__(self, i):
        return self.items[i]

    def __len__(self):
        return len(self.items)


class Duck:
    """A sequence by its methods alone."""

    __init__, __getitem__, __len__ = Listing.__init__, Listing.__getitem__, Listing.__len__


@pytest.mark.parametrize("kind", [
    list, tuple, np.array, torch.tensor, collections.deque, lambda v: array.array("d", v), lambda v: Listing(*v),
    lambda v: Duck(*v), lambda v: memoryview(np.array(v)), lambda v: tuple(map(np.float64, v)),
    lambda v: (torch.tensor(v[0]), lambda k: v[1]),
])  # fmt: skip
def test_pairs(kind):
    """Any sequence of two numbers is a pair, and a copy of it."""
    for name, key, pair in (("rprop", "etas", [0.5, 1.25]), ("adam", "betas", [0.5, 0.75])):
        opt = proptim.OPTIMIZERS[name]([np.zeros(1)], **{key: kind(pair)})
        assert getattr(opt, key) == tuple(pair)
        opt.step([np.ones(1)])
    assert proptim.Rprop([np.zeros(1)], step_sizes=range(1, 3)).step_sizes == (1, 2)


@pytest.mark.parametrize(("act", "error"), [
    (lambda: proptim.Adam([np.zeros(1)], betas={0.9, 0.999}), ValueError),
    (lambda: proptim.Rprop([np.zeros(1)], etas=frozenset({0.5, 1.2})), ValueError),
    (lambda: proptim.SGD({torch.zeros(1)}), TypeError),
    (lambda: proptim.SGD([{"params": {torch.zeros(1)}}]), TypeError),
    (lambda: proptim.SGD([torch.zeros(1)]).step({torch.zeros(1)}), TypeError),
    (lambda: proptim.SGD([torch.zeros(1)], grads=frozenset({torch.zeros(1)})), TypeError),
    (lambda: proptim.global_norm({torch.zeros(1)}), TypeError),
    (lambda: proptim.clip_grad_norm({torch.zeros(1)}, 1.0), TypeError),
    (lambda: proptim.flatten({torch.zeros(1)}), TypeError),
])  # fmt: skip
def test_sets(act, error):
    """A set has no order and is not accepted anywhere."""
    with pytest.raises(error, match=r"set|Invalid"):
        act()


# Identity, and schedules that are not there ----------------------------------------------------------------------


def test_what_a_class_is_cannot_be_loaded(backend):
    """AdamW that loads the state of Adam, ours or torch's, is decoupled as before."""
    tensor = torch.zeros(1)
    other = torch.optim.Adam([tensor], weight_decay=0.5)
    tensor.grad = torch.ones(1)
    other.step()
    adam = proptim.Adam([np.zeros(1, "f4")], weight_decay=0.5)
    adam.step([np.ones(1, "f4")])
    for saved in (adam.state_dict(), other.state_dict()):
        w = np.ones(1, "f4")
        opt = proptim.AdamW([w], lr=0.5)
        opt.load_state_dict(saved)
        assert opt.decoupled_weight_decay
        opt.param_groups[0].update(lr=0.5, weight_decay=0.5)
        opt.state[0]["exp_avg"][:] = 0
        opt.step([np.zeros(1, "f4")])
        assert w == [0.75]


@pytest.mark.parametrize("form", ["state_dict", "file"])
def test_a_run_loaded_without_its_schedules(tmp_path, form):
    """The current value of a schedule is saved, and loaded if there is no schedule; a schedule is kept."""
    half = schedules.exponential(0.5, 0.5)
    saved = proptim.Adam([np.zeros(1)], lr=half, betas=(half, 0.9), grad_scale=half, clip_norm=half)
    for _ in range(2):
        saved.step([np.ones(1)])
    plain = proptim.Adam([np.zeros(1)], lr=7.0)
    own = proptim.Adam([np.zeros(1)], lr=lambda k: 3.0, grad_scale=lambda k: 2.0, clip_norm=9.0)
    for opt in (plain, own):
        if form == "file":
            saved.save(tmp_path / "run.npz")
            opt.load(tmp_path / "run.npz")
        else:
            opt.load_state_dict(saved.state_dict())
    assert (plain.lr, plain.betas, plain.grad_scale, plain.clip_norm) == (0.125, (0.125, 0.9), 0.125, 0.125)
    assert (own.lr, own.clip_norm) == (3.0, 0.125)
    assert callable(own.grad_scale)
    kept = proptim.SGD([np.zeros(1)], clip_norm=9.0)
    kept.load_state_dict(proptim.SGD([np.zeros(1)]).state_dict())
    assert kept.clip_norm == 9.0  # an option that is no schedule is not part of what is saved
    with pytest.raises(ValueError, match="Invalid clip_norm value: -1"):
        kept.load_state_dict({**kept.state_dict(), "clip_norm": -1.0})
    assert kept.clip_norm == 9.0


# What is shown ---------------------------------------------------------------------------------------------------


def put(container, key, value=None):
    container[key] = value


def remove(container, key):
    del container[key]


SHOWN = {
    "params": (lambda o: put(o.param_groups[0]["params"], 0), TypeError),
    "params of a group": (lambda o: put(o.param_groups[0], "params", []), ValueError),
    "append to params": (lambda o: o.param_groups[0]["params"].append(1), AttributeError),
    "a group": (lambda o: put(o.param_groups, 0), TypeError),
    "append a group": (lambda o: o.param_groups.append({}), AttributeError),
    "groups": (lambda o: setattr(o, "param_groups", []), AttributeError),
    "a pair": (lambda o: put(o.param_groups[0]["betas"], 0, 0.5), TypeError),
    "clear a group": (lambda o: o.param_groups[0].clear(), ValueError),
    "pop": (lambda o: o.param_groups[0].pop("lr"), ValueError),
    "popitem": (lambda o: o.param_groups[0].popitem(), ValueError),
    "update": (lambda o: o.param_groups[0].update(lr=9.0, lrs=9.0), ValueError),
    "attribute of a group": (lambda o: setattr(o.param_groups[0], "lr", 9.0), AttributeError),
    "option in a group": (lambda o: put(o.param_groups[0], "clip_norm", 1.0), ValueError),
    "misspelt option in a group": (lambda o: put(o.param_groups[0], "clipnorm", 1.0), ValueError),
    "number as a key": (lambda o: put(o.param_groups[0], 3, 1.0), ValueError),
    "count": (lambda o: put(o.state[0], "step", 0), TypeError),
    "array": (lambda o: put(o.state[0], "exp_avg", np.zeros(2)), TypeError),
    "new key": (lambda o: put(o.state[0], "new", 1), TypeError),
    "state of a parameter": (lambda o: put(o.state, 0, {}), TypeError),
    "delete": (lambda o: remove(o.state, 0), TypeError),
    "delete a count": (lambda o: remove(o.state[0], "step"), TypeError),
    "clear": (lambda o: o.state.clear(), AttributeError),
    "clear one": (lambda o: o.state[0].clear(), AttributeError),
    "update state": (lambda o: o.state[0].update(step=0), AttributeError),
    "state": (lambda o: setattr(o, "state", {}), AttributeError),
    "steps": (lambda o: setattr(o, "steps", 0), AttributeError),
    "defaults": (lambda o: put(o.defaults, "lr", 9.0), TypeError),
    "a pair of the defaults": (lambda o: put(o.defaults["betas"], 0, 0.5), TypeError),
    "preset": (lambda o: put(proptim.presets.rmsprop["torch"], "lr", 9.0), TypeError),
    "presets": (lambda o: put(proptim.presets.rmsprop, "torch", {}), TypeError),
    "update a preset": (lambda o: proptim.presets.rmsprop["torch"].update(lr=9.0), AttributeError),
    "method of the class": (lambda o: setattr(o, "advance", None), AttributeError),
    "names of the class": (lambda o: setattr(o, "states", ()), AttributeError),
    "foo": (lambda o: setattr(o, "foo", 1), AttributeError),
    "grads": (lambda o: setattr(o, "grads", []), AttributeError),
    "threads": (lambda o: setattr(o, "threads", 1), AttributeError),
}


@pytest.mark.parametrize("what", SHOWN)
def test_what_is_shown_refuses(what):
    """Setting a read-only view raises an error that says so, and changes nothing."""
    act, error = SHOWN[what]
    opt = proptim.Adam([np.zeros(2)], lr=0.1, betas=[0.9, 0.99])
    opt.step([np.ones(2)])
    before, presets = pickle.dumps(opt.state_dict()), repr(proptim.presets.rmsprop)
    with pytest.raises(error):
        act(opt)
    assert pickle.dumps(opt.state_dict()) == before
    assert repr(proptim.presets.rmsprop) == presets


def test_what_is_shown_and_takes_effect(backend):
    """State arrays, `group[...] = value`, wrapped methods; `state[...][...] *= 0` is no assignment."""
    opt = proptim.Adam([np.zeros(2)], lr=0.1)
    opt.step([np.ones(2)])
    opt.state[0]["exp_avg"] *= 0
    opt.state[0]["exp_avg_sq"][:] = 4
    assert opt.state_dict()["state"][0]["exp_avg_sq"].tolist() == [4, 4]
    assert not opt.state[0]["exp_avg"].any()
    copies = copy.deepcopy((opt.state, opt.defaults, opt.param_groups[0]))
    assert [type(c) for c in copies] == [dict, dict, dict]
    assert opt.state[0].get("nothing", 5) == 5
    assert "nothing" not in opt.state[0]
    calls, step = [], opt.step
    opt.step = lambda grads: (calls.append(1), step(grads))  # as schedulers of torch do
    opt.step([np.ones(2)])
    assert (calls, opt.steps) == ([1], 2)
    opt.lr = math.nan  # refused by the next step, and can be mended
    with pytest.raises(ValueError, match="learning rate"):
        step([np.ones(2)])
    opt.lr = 0.1
    step([np.ones(2)])


HINTS = [
    ("rmsprop", "rho", "alpha"), ("rmsprop", "decay", "alpha"), ("rmsprop", "epsilon", "eps"),
    ("rmsprop", "learning_rate", "lr"), ("rmsprop", "initial_scale", "initial_square_avg"),
    ("rmsprop", "eps_in_sqrt", "eps_inside_sqrt"), ("adadelta", "alpha", "rho"), ("adadelta", "decay", "rho"),
    ("adam", "beta1", "betas"), ("adam", "beta_2", "betas"), ("adam", "b1", "betas"), ("adam", "epsilon", "eps"),
    ("adagrad", "decay", "lr_decay"), ("rprop", "etaplus", "etas"), ("rprop", "step_size_max", "step_sizes"),
    ("nadam", "schedule_decay", "momentum_decay"), ("sgd", "momentun", "momentum"), ("sgd", "Learning_Rate", "lr"),
    ("sgd", "wd", "weight_decay"), ("lion", "weight_decays", "weight_decay"),
]  # fmt: skip
WHOLE = [("clipnorm", "clip_norm"), ("max_grad_norm", "clip_norm"), ("loss_scale", "grad_scale"), ("n_jobs", "threads")]


@pytest.mark.parametrize(("name", "given", "meant"), HINTS + [("lion", *pair) for pair in WHOLE])
def test_did_you_mean(name, given, meant):
    """A name of another library, or a misspelt one, is refused with ours: as a keyword, an attribute, in a group."""
    cls, hint = proptim.OPTIMIZERS[name], f"did you mean '{meant}'\\?"
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{given}': {hint}"):
        cls([np.zeros(1)], **{given: 0.5})
    opt = cls([np.zeros(1)])
    with pytest.raises(AttributeError, match=f"no attribute '{given}' to set: {hint}"):
        setattr(opt, given, 0.5)
    with pytest.raises(ValueError, match=f"'{given}': {hint}"):
        opt.param_groups[0][given] = 0.5
    with pytest.raises(ValueError, match=f"'{given}': {hint}"):
        cls([{"params": [np.zeros(1)], given: 0.5}])
    assert not hasattr(opt, given)


def test_presets():
    """A preset can be merged, and one that is misspelt is told which was meant."""
    torch_like = proptim.presets.rmsprop["torch"]
    for merged in ({**torch_like, "lr": 0.5}, torch_like | {"lr": 0.5}):
        assert proptim.RMSprop([np.zeros(1)], **merged).lr == 0.5
    with pytest.raises(KeyError, match="did you mean 'keras'"):
        proptim.presets.rmsprop["kers"]


def test_subclasses_have_attributes_of_their_own():
    """Subclasses outside proptim can have any attributes."""

    class Mine(proptim.SGD):
        pass

    opt = Mine([np.zeros(1)])
    opt.foo = 1
    assert opt.foo == 1


@pytest.mark.parametrize(("name", "key"), [
    ("rmsprop", "initial_square_avg"), ("adagrad", "initial_accumulator_value"), ("rprop", "lr"),
])  # fmt: skip
def test_what_is_read_once(name, key):
    """No schedule and no later change where it would have no effect."""
    cls = proptim.OPTIMIZERS[name]
    with pytest.raises(ValueError, match=f"Invalid {key}: a schedule .*reads {key} only once"):
        cls([np.zeros(1)], **{key: lambda k: 0.5})
    opt = cls([np.zeros(1)], **{key: 0.25})
    for act in (lambda: setattr(opt, key, 0.5), lambda: put(opt.param_groups[0], key, 0.5)):
        with pytest.raises(ValueError, match="has no effect after construction"):
            act()
    opt.add_param_group({"params": [np.zeros(1)], key: 0.5})
    assert [group[key] for group in opt.param_groups] == [0.25, 0.5]


@pytest.mark.parametrize("way", ["list", "bound", "step_param", "zero_grads"])
def test_a_tensor_that_was_given_other_memory(way):
    """`tensor.data = ...` is refused on every way to a step."""
    tensor, grad = torch.ones(2), torch.ones(2)
    opt = proptim.SGD([tensor], grads=[grad] if way == "bound" else None, zero_grads=way == "zero_grads")
    step = {"bound": opt.step, "step_param": lambda: opt.step_param(0, grad)}.get(way, lambda: opt.step([grad]))
    for _ in range(3):
        step()
    tensor.data = torch.ones(2)
    for _ in range(3):
        with pytest.raises(ValueError, match="has been given other memory"):
            step()
    assert tensor.tolist() == [1, 1]


@pytest.mark.parametrize("way", ["list", "bound", "step_param"])
def test_a_tensor_that_was_transposed_in_place(way):
    """Other strides over the same memory are refused for a parameter, and seen for a gradient."""
    tensor, grad = torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    opt = proptim.SGD([tensor], lr=1.0, grads=[grad] if way == "bound" else None)
    step = {"bound": opt.step, "step_param": lambda: opt.step_param(0, grad)}.get(way, lambda: opt.step([grad]))
    for _ in range(3):
        step()
    tensor.t_()
    for _ in range(3):
        with pytest.raises(ValueError, match="has been given other memory"):
            step()
    tensor.t_().zero_()
    grad.t_()
    for _ in range(3):
        step()
    assert tensor.tolist() == [[-3, -9], [-6, -12]]


@pytest.mark.parametrize("dtype", ["f4", "c16", "f2"])
def test_memory_that_steps_write_is_not_resized(backend, dtype):
    """NumPy refuses resize(refcheck=False) of parameters, of what they are views of, and of state."""
    whole = np.ones(8, dtype)
    opt = proptim.SGD([whole[2:6], np.ones(4, dtype)], momentum=0.5, backend=backend)
    opt.add_param_group({"params": [np.ones(4, dtype)]})
    opt.step([np.ones(4, dtype)] * 3)
    opt.load_state_dict(opt.state_dict())
    for each in (opt, pickle.loads(pickle.dumps(opt))):
        params = [param for group in each.param_groups for param in group["params"]]
        for held in (*params, *(each.state[i]["momentum_buffer"] for i in range(3))):
            owner = held
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            with pytest.raises(ValueError, match="cannot resize"):
                owner.resize(100_000, refcheck=False)
    assert len(whole) == 8


@pytest.mark.parametrize("name", NAMES)
def test_arrays_that_are_changed_in_place(backend, name):
    """What is made read-only, or given another shape, is stepped as through any view that was made before."""
    arrays, kept = [np.ones(4), np.ones(4)], [np.ones(4), np.ones(4)]
    grads = [np.full(4, 0.5), np.full(4, 0.25)]
    opt = proptim.OPTIMIZERS[name](arrays, grads=grads, zero_grads=True, backend=backend)
    other = proptim.OPTIMIZERS[name](kept, grads=[grad.copy() for grad in grads], zero_grads=True, backend=backend)
    for each in (opt, other):
        each.step()
    arrays[1].flags.writeable = grads[1].flags.writeable = False
    for value in opt.state[1].values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    arrays[0].shape = grads[0].shape = 2, 2
    for each in (opt, other):
        each.step()
        each.clip_value = 0.5
        each.step()
    assert not any(grad.any() for grad in grads)
    assert [a.tobytes() for a in arrays] == [a.tobytes() for a in kept]
    with pytest.raises(ValueError, match=r"grads\[0\] has shape \(2, 2\); expected \(4,\)"):
        opt.step([np.ones((2, 2)), np.ones(4)])


# Keys that are nobody's hyperparameters --------------------------------------------------------------------------


def test_foreign_keys_of_a_torch_checkpoint(tmp_path):
    """Keys that schedulers of torch leave in groups are ignored; keys of the user are kept and saved."""
    tensor = torch.zeros(2)
    other = torch.optim.Adam([{"params": [tensor], "name": "body", "lr_scale": 0.5, "max_grad_norm": 1.0}])
    for make in (
        lambda: torch.optim.lr_scheduler.OneCycleLR(other, max_lr=0.1, total_steps=10),
        lambda: torch.optim.swa_utils.SWALR(other, swa_lr=0.05),
        lambda: torch.optim.lr_scheduler.CyclicLR(other, 0.01, 0.1, cycle_momentum=False),
    ):
        make()
    tensor.grad = torch.ones(2)
    other.step()
    saved = other.state_dict()
    assert {"max_lr", "min_lr", "initial_lr", "base_momentum", "max_momentum", "swa_lr", "name"} <= {
        *saved["param_groups"][0]
    }
    opt = proptim.Adam([{"params": [np.zeros(2, "f4")], "name": "ours"}])
    opt.load_state_dict(saved)
    assert opt.param_groups[0]["name"] == "ours"
    assert opt.lr == saved["param_groups"][0]["lr"]
    group = opt.param_groups[0]
    group.update(max_lr=0.1, tags=["a", "b"], none=None, on=True, number=np.float32(0.5))
    opt.save(tmp_path / "run.npz")
    opt.load(tmp_path / "run.npz")
    assert (group["tags"], group["none"], group["on"]) == (["a", "b"], None, True)
    called = []
    group["hook"] = called.append
    opt.step([np.ones(2, "f4")])
    assert not called  # a callable of somebody else's is no schedule
    with pytest.raises(ValueError, match=r"group 0 has 'hook' = .*, which no file can hold"):
        opt.save(tmp_path / "run.npz")
    del group["hook"]
    opt.save(tmp_path / "run.npz")


@pytest.mark.parametrize("key", ["momentum", "alpha", "epsilon", "lrs", "beta"])
def test_hyperparameters_of_other_classes(key):
    """A hyperparameter of another class, or a near miss of one, is refused by name in a checkpoint."""
    opt = proptim.Adam([np.zeros(1)])
    saved = opt.state_dict()
    saved["param_groups"][0][key] = 0.5
    with pytest.raises(ValueError, match=f"has the hyperparameter '{key}', unknown to Adam"):
        opt.load_state_dict(saved)


def test_named_parameters():
    """Pairs of names and arrays, as torch's named_parameters() gives, are named parameters, and gradients too."""
    model = torch.nn.Linear(2, 1)
    for make in (lambda: model.named_parameters(), lambda: [{"params": model.named_parameters()}]):
        opt = proptim.SGD(make(), lr=1.0)
        assert [*opt.state] == ["weight", "bias"]
        before = model.bias.item()
        opt.step([(name, torch.ones_like(p)) for name, p in model.named_parameters()])
        assert model.bias.item() == pytest.approx(before - 1)


# Strange arrays --------------------------------------------------------------------------------------------------


def raising(error, *names):
    """An object whose attributes of these names raise."""

    def fail(self, *args, **options):
        raise error

    return type("Strange", (), {name: property(fail) for name in names})()


class Bfloat16:
    """An array as JAX has it."""

    dtype = "bfloat16"

    def astype(self, dtype):
        """Not called."""

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **options):
        raise BufferError("bfloat16 is unknown to NumPy")


class Sparse:
    """A matrix as SciPy has it."""

    dtype = np.dtype("f8")

    def toarray(self):
        """Not called."""


class Misleading:
    """Methods of DLPack that return nonsense."""

    def __dlpack_device__(self):
        return None

    def __dlpack__(self, **options):
        return 5


class Masked(np.ndarray):
    """An array with a property that raises."""

    mask = property(lambda self: 1 / 0)


STRANGE = {
    **{f"{n} {type(e).__name__}": (raising(e, n), "is Strange; expected a NumPy array")
       for n in ("__array_interface__", "__dlpack__", "__dlpack_device__", "dtype", "detach", "__array__",
                 "layout", "indptr", "data_ptr", "stride", "shape")
       for e in (RuntimeError("x"), KeyError("x"), ZeroDivisionError(), NotImplementedError(), AssertionError())},
    "bfloat16": (Bfloat16(), "is Bfloat16 of dtype bfloat16; supported: .*: convert it with .astype"),
    "sparse": (Sparse(), r"is Sparse of dtype float64; expected .*: convert it with \.toarray\(\)"),
    "misleading": (Misleading(), "is Misleading; expected"),
    "mask": (np.zeros(2).view(Masked), "is a masked array"),
    "object": (np.zeros(2, object), "is object; supported"),
    "bits": (np.zeros(2, "u2"), "is uint16; supported"),
    "time": (np.zeros(2, "M8[s]"), "is datetime64"),
    "record": (np.zeros(2, "f4,f4"), "is void64; supported"),
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_arrays(kind):
    """Any exception raised while an object is examined becomes an error of proptim, which names the object."""
    given, message = STRANGE[kind]
    w = np.zeros(2)
    opt = proptim.SGD([w])
    for act in (lambda: proptim.SGD([given]), lambda: opt.step([given]), lambda: opt.step_param(0, given),
                lambda: proptim.SGD([w], grads=[given]), lambda: proptim.global_norm([given]),
                lambda: proptim.functional.sgd(given, w, None)):  # fmt: skip
        with pytest.raises(TypeError, match=message):
            act()
    for act in (lambda: proptim.SGD(given), lambda: opt.step(given)):
        with pytest.raises(TypeError, match=r"^(params|grads) is "):
            act()
    assert not w.any()


@pytest.mark.parametrize(("loss", "legal"), [
    (np.array([1.0]), True), (np.float16(1), True), (torch.tensor([[1.0]]), True), (Decimal(1), True), (True, True),
    (np.ones(2), False), ("1", False), (b"1", False), (1j, False), ([1.0], False), (10**400, False),
    (raising(KeyError("x"), "item"), False), (raising(RuntimeError("x"), "__float__"), False), (object(), False),
])  # fmt: skip
def test_losses(backend, loss, legal):
    """One number, of whatever type; or our error."""
    w = np.zeros(1)
    opt = proptim.Rprop([w], variant="irprop+")
    if legal:
        opt.step([np.ones(1)], loss=loss)
        assert opt.state[0]["prev_loss"] == 1.0
        return
    with pytest.raises(TypeError, match=r"^loss is .*; expected one number$"):
        opt.step([np.ones(1)], loss=loss)
    assert w == [0.0]


@pytest.mark.parametrize(("grads", "message"), [
    ({"w": np.ones(3)}, "grads is a dict, but the parameters have no names; expected a list of 1 arrays"),
    ([[1, 2, 3]], r"grads\[0\] is list; expected an array or None: convert it with numpy.asarray"),
    ([1.0], r"grads\[0\] is float; expected a NumPy array"),
    ("abc", "grads is str; expected a collection like params"),
])  # fmt: skip
def test_gradients_that_are_none(grads, message):
    """The message describes the given object."""
    with pytest.raises((TypeError, ValueError), match=message):
        proptim.SGD([np.zeros(3)]).step(grads)


# Settings of the caller ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
@pytest.mark.parametrize(("name", "options"), [(n, o) for n in NAMES for o in OPTIONS[n]])
def test_errors_that_the_caller_wants_raised(tmp_path, name, options, dtype):
    """np.errstate(all="raise") of the caller does not reach our arithmetic: the bits are the same."""

    def run():
        opt = proptim.OPTIMIZERS[name]([np.full(3, 1e-20).astype(dtype)], **options, backend="numpy")
        for grad in grads:
            opt.step([grad], loss=1.0)
        opt.load_state_dict(opt.state_dict())
        opt.save(tmp_path / "run.npz")
        opt.load(tmp_path / "run.npz")
        saved = pickle.dumps((opt.state_dict(), opt.param_groups[0]["params"], {**opt.state[0]}))
        repr(opt)
        opt.reset()
        return saved

    with np.errstate(all="ignore"):
        grads = [np.full(3, g).astype(dtype) for g in (1e-44, 3e38, 0.0, -1e-38, math.inf, math.nan)]
        expected = run()
    with np.errstate(all="raise"):
        assert run() == expected


def test_clipping_while_errors_are_raised():
    """clip_grad_norm scales all gradients or none, whatever underflows."""
    grads = [np.array([1e-38, 3e38], "f4"), np.array([3e38], "f4"), np.array([1e-45, 1.0], "f4")]
    with np.errstate(all="raise"):
        norm = proptim.clip_grad_norm(grads, 1.0)
        assert norm == proptim.global_norm([np.array([3e38, 3e38], "f4")])
        proptim.flatten(grads)
        w = np.ones(2, "f4")
        proptim.functional.rprop(w, np.ones(2, "f4"), proptim.functional.rprop.init(w)["step_word"], step=1)
    assert grads[1][0] == pytest.approx(1 / math.sqrt(2), rel=1e-5)


@pytest.mark.once
@pytest.mark.parametrize(
    "command",
    [
        ["-m", "proptim", "info"],
        ["-m", "proptim", "--version"],
        ["-m", "proptim.bench.instructions"],
        ["SCRIPT", "selftest"],
    ],
)
@pytest.mark.parametrize(("variable", "words"), [
    ("PROPTIM_BACKEND", "PROPTIM_BACKEND=x is unknown; expected one of: c, numba, numpy"),
    ("PROPTIM_NUM_THREADS", "PROPTIM_NUM_THREADS is 'x'; expected a whole number of at least 1"),
    ("PROPTIM_ISA", "PROPTIM_ISA=x is unknown or does not run on this CPU; expected one of: "),
    ("PROPTIM_PARALLEL", "PROPTIM_PARALLEL=x is unknown; expected one of: pool, openmp"),
])  # fmt: skip
def test_variables_that_no_command_can_use(monkeypatch, tmp_path, command, variable, words):
    """One sentence and exit code 2; a program that imports proptim has the exception."""
    if proptim._backend.missing_core and variable in ("PROPTIM_ISA", "PROPTIM_PARALLEL"):
        return  # read by the core alone
    script = tmp_path / "proptim"
    script.write_text("from proptim.cli import main\nraise SystemExit(main())\n", encoding="utf-8")
    monkeypatch.setenv(variable, "x")
    monkeypatch.chdir(tmp_path)
    arguments = [str(script) if word == "SCRIPT" else word for word in command]
    done = subprocess.run(
        [sys.executable, "-P", *arguments] if sys.version_info >= (3, 11) else [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"proptim: {words}")
    assert done.stderr.count("\n") == 1
    done = subprocess.run([sys.executable, "-c", "import proptim"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"ValueError: {words}" in done.stderr


def test_memory_that_runs_out_in_a_command(monkeypatch, capsys):
    """One sentence, too."""
    from proptim import cli
    from proptim.cli import info

    def starve(args):
        raise MemoryError

    monkeypatch.setattr(info, "run", starve)
    assert cli.main(["info"]) == 1
    assert capsys.readouterr().err == "proptim info: out of memory\n"


def test_gradients_of_a_group_are_not_taken_for_a_name():
    """Gradients are bound for all parameters together, so a group that brings some is refused."""
    with pytest.raises(ValueError, match="unknown hyperparameter 'grads'; grads is an option of the whole optimizer"):
        proptim.SGD([{"params": [np.ones(1)], "grads": [np.ones(1)]}])


@pytest.mark.parametrize("index", ["a", None, True, 1.0, {}])
def test_no_index_of_a_group(index):
    """What is no whole number removes no group."""
    opt = proptim.SGD([{"params": [np.ones(1)]}, {"params": [np.ones(1)]}])
    with pytest.raises(TypeError, match="is no index of a parameter group; expected 0 to 1"):
        opt.remove_param_group(index)
    assert len(opt.param_groups) == 2


def test_subclass_with_a_constructor_of_its_own():
    """A subclass that passes its options on keeps the hyperparameters of its base."""

    class Mine(proptim.Adam):
        def __init__(self, params, **options):
            super().__init__(params, **options)

    ours, theirs = np.ones(3), np.ones(3)
    mine, adam = Mine([ours], lr=0.1, amsgrad=True), proptim.Adam([theirs], lr=0.1, amsgrad=True)
    for opt in (mine, adam):
        opt.step([np.full(3, 0.5)])
    assert {**mine.param_groups[0]}.keys() == {**adam.param_groups[0]}.keys()
    assert ours.tobytes() == theirs.tobytes()
