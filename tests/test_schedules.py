"""Hyperparameters that change: schedules at their edges and against torch's, and changes in param_groups."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import re

import numpy as np
import pytest
import torch

import proptim
from proptim import schedules
from proptim.schedules import (
    constant,
    cosine,
    exponential,
    join,
    linear,
    one_cycle,
    plateau,
    step,
    warm_restarts,
    warmup,
)

NAMES = list(proptim.OPTIMIZERS)
SCHEDULED = [
    (name, key)
    for name, cls in proptim.OPTIMIZERS.items()
    for key, parameter in inspect.signature(cls).parameters.items()
    if "Schedulable" in str(parameter.annotation)
]
RNG = np.random.default_rng(0)
W, G = RNG.standard_normal((2, 500))  # enough that some signs change with any hyperparameter

EVERY = [
    constant(0.5),
    linear(1.0, 0.25, 3),
    cosine(1.0, 4),
    cosine(0.5, 7, end=0.1),
    exponential(1.0, 0.5),
    exponential(1.0, 0.5, every=2.5),
    step(1.0, 0.1, 10),
    one_cycle(1.0, 10),
    one_cycle(0.5, 100, warm=0.25, div=2.0, final_div=8.0),
    warmup(4, then=linear(1.0, 0.0, 5)),
    warmup(4, 0.5),
    join(linear(0.0, 1.0, 4), 4, constant(0.5), 9, warmup(2, cosine(1.0, 4))),
    join(constant(1.0)),
    warm_restarts(1.0, 4),
    warm_restarts(0.5, 3, 2, end=0.1),
    plateau(0.1),
    plateau(0.1, 0.5, 3, 1e-3, "abs", cooldown=2, end=1e-3, eps=0.0, mode="max"),
]


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (constant(0.3), {0: 0.3, 1: 0.3, 10**9: 0.3}),
        (linear(1.0, 0.0, 4), {0: 1.0, 1: 0.75, 3: 0.25, 4: 0.0, 5: 0.0, 10**9: 0.0}),
        (linear(0.0, 1.0, 1), {0: 0.0, 1: 1.0, 2: 1.0}),
        (cosine(1.0, 4), {0: 1.0, 1: 0.5 + math.sqrt(0.125), 2: 0.5, 4: 0.0, 5: 0.0}),
        (cosine(3.0, 2, end=1.0), {0: 3.0, 1: 2.0, 2: 1.0, 10**9: 1.0}),
        (exponential(2.0, 0.5), {0: 2.0, 1: 1.0, 3: 0.25}),
        (exponential(2.0, 0.5, every=10), {0: 2.0, 5: math.sqrt(2.0), 10: 1.0, 20: 0.5}),
        (step(1.0, 0.5, 3), {0: 1.0, 2: 1.0, 3: 0.5, 5: 0.5, 6: 0.25}),
        (one_cycle(1.0, 10, warm=0.5, div=4.0, final_div=10.0), {0: 0.25, 5: 1.0, 10: 0.1, 11: 0.1}),
        (one_cycle(25.0, 10), {0: 1.0, 3: 25.0, 10: 1e-4}),
        (warmup(4, then=linear(1.0, 0.0, 2)), {0: 0.25, 2: 0.75, 3: 1.0, 4: 1.0, 5: 0.5, 6: 0.0}),
        (warmup(1, 0.5), {0: 0.5, 1: 0.5}),
        (join(linear(0.0, 1.0, 2), 2, constant(9.0), 5, linear(3.0, 4.0, 1)), {1: 0.5, 2: 9.0, 4: 9.0, 5: 3.0, 6: 4.0}),
    ],
    ids=repr,
)
def test_values(schedule, values):
    """The value at the edges and between, by hand."""
    assert {k: schedule(k) for k in values} == pytest.approx(values, rel=1e-15, abs=1e-16)
    assert all(isinstance(schedule(k), float) for k in values)


@pytest.mark.parametrize(
    ("ours", "theirs", "steps"),
    [
        (linear(1.0, 0.25, 6), lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.25, 6), 9),
        (cosine(1.0, 8, end=0.1), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 8, 0.1), 9),
        (exponential(1.0, 0.9), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9), 20),
        (step(1.0, 0.5, 3), lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5), 20),
        # torch counts the last step as step total - 1 and has its peak one step before pct_start of the total
        (one_cycle(0.9, 100, warm=0.293), lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.9, total_steps=101), 101),
    ],
    ids=lambda case: repr(case) if callable(case) and hasattr(case, "__dataclass_fields__") else "",
)
def test_against_torch(ours, theirs, steps):
    """The schedules that torch has too give its learning rates."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = theirs(optimizer)
    for k in range(steps):
        assert ours(k) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-13)
        optimizer.step()
        if k < steps - 1:
            scheduler.step()


@pytest.mark.parametrize("mult", [1, 2, 3])
def test_warm_restarts_are_those_of_torch(mult):
    """To the bit, over several restarts."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 7, mult, 0.01)
    ours = warm_restarts(0.3, 7, mult, end=0.01)
    for k in range(200):
        assert ours(k) == optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize("cooldown", [0, 3])
@pytest.mark.parametrize("factor", [0.1, 0.7])
def test_plateaus_are_those_of_torch(mode, threshold_mode, cooldown, factor):
    """To the bit, whatever is reported: improvements, plateaus, NaN and infinity."""
    rng = np.random.default_rng(0)
    reports = np.concatenate(
        [np.repeat(rng.standard_normal(60), rng.integers(1, 9, 60)), [np.nan, np.inf, -np.inf] * 9]
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, factor, 4, 1e-2, threshold_mode, cooldown, min_lr=1e-5
    )
    lr = plateau(0.3, factor, 4, 1e-2, threshold_mode, cooldown, end=1e-5, mode=mode)
    opt = proptim.SGD([np.zeros(1)], lr=lr)
    seen = set()
    for report in reports:
        lr.report(report)
        optimizer.step()
        scheduler.step(report)
        opt.step([np.zeros(1)])
        assert opt.lr == optimizer.param_groups[0]["lr"]
        seen.add(opt.lr)
    assert len(seen) > 3


def test_a_plateau_goes_on_where_it_was():
    first, second = (plateau(0.1, patience=1) for _ in range(2))
    assert first == second
    for report in (1.0, 1.0):
        first.report(report)
    assert first != second
    vars(second).update(vars(first))
    for each in (first, second):
        each.report(1.0)
    assert first == second
    assert second(0) == pytest.approx(0.01)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_schedules_are_plain_objects(schedule):
    """repr gives the schedule back, as do pickle and deepcopy; equal ones hash alike, others differ."""
    twins = [eval(repr(schedule), vars(schedules)), pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)]
    for twin in twins:
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert [twin(k) for k in range(20)] == [schedule(k) for k in range(20)]
    assert sum(other == schedule for other in EVERY) == 1
    assert schedule != repr(schedule)


def test_all_schedules_are_tested():
    """No schedule is left out above."""
    public = {v for v in vars(schedules).values() if isinstance(v, type) and v.__module__ == schedules.__name__}
    assert {type(s) for s in EVERY} == public


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear(1.0, 0.0, 0), "steps is 0; expected more than 0"),
        (lambda: cosine(1.0, -1), "steps is -1; expected more than 0"),
        (lambda: cosine(1.0, math.nan), "steps is nan; expected more than 0"),
        (lambda: exponential(1.0, 0.0), "rate is 0.0; expected more than 0"),
        (lambda: exponential(1.0, 0.5, every=0), "every is 0; expected more than 0"),
        (lambda: step(1.0, 0.5, 0), "every is 0; expected more than 0"),
        (lambda: one_cycle(1.0, 0), "steps is 0; expected more than 0"),
        (lambda: one_cycle(1.0, 9, div=0), "div is 0; expected more than 0"),
        (lambda: one_cycle(1.0, 9, final_div=-1), "final_div is -1; expected more than 0"),
        (lambda: one_cycle(1.0, 9, warm=0.0), "warm is 0.0; expected more than 0 and less than 1"),
        (lambda: one_cycle(1.0, 9, warm=1.0), "warm is 1.0; expected more than 0 and less than 1"),
        (lambda: warmup(0, 1.0), "steps is 0; expected more than 0"),
        (lambda: warm_restarts(1.0, 0), "steps is 0; expected more than 0"),
        (lambda: warm_restarts(1.0, 4, 0), "mult is 0; expected a whole number of at least 1"),
        (lambda: warm_restarts(1.0, 4, 1.5), "mult is 1.5; expected a whole number of at least 1"),
        (lambda: plateau(0.1, 1.0), "factor is 1.0; expected at least 0 and less than 1"),
        (lambda: plateau(0.1, mode="least"), "mode is 'least'; expected 'min' or 'max'"),
        (lambda: plateau(0.1, threshold_mode="much"), "threshold_mode is 'much'; expected 'rel' or 'abs'"),
        (lambda: join(constant(1.0), 5), "join got 2 arguments; expected schedule, step, schedule, ..."),
        (
            lambda: join(constant(1.0), 0, constant(2.0)),
            "join got 0, constant(2.0); expected a later step and a schedule",
        ),
        (lambda: join(constant(1.0), 5, 0.5), "join got 5, 0.5; expected a later step and a schedule"),
        (
            lambda: join(constant(1.0), constant(2.0), 5),
            "join got constant(2.0), 5; expected a later step and a schedule",
        ),
    ],
)
def test_errors(make, message):
    """What cannot be a schedule is refused where it is made."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


# Under an optimizer ------------------------------------------------------------------------------------------------


def tried(name, key, value, change, **options):
    """Bits after seven steps from hyperparameter `key` = `value`, with `change(opt, step)` before each."""
    w = W.copy()
    hyper = {key: (value, 0.99) if key == "betas" else value}
    opt = proptim.OPTIMIZERS[name]([w], **(options | hyper))
    for k in range(7):  # RAdam looks at its eps from the sixth on
        change(opt, k)
        opt.step([np.roll(G, k)])
    return w.tobytes()


@pytest.mark.parametrize(("name", "key"), SCHEDULED)
def test_every_hyperparameter_may_be_scheduled(name, key):
    """A schedule gives the bits of setting its value by hand before every step."""
    schedule, options = linear(0.5, 0.25, 4), {"momentum": 0.9} if key == "dampening" else {}

    def by_hand(opt, k):
        opt.param_groups[0][key] = (schedule(k), 0.99) if key == "betas" else schedule(k)

    scheduled = tried(name, key, schedule, lambda opt, k: None, **options)
    assert scheduled == tried(name, key, 0.5, by_hand, **options)
    assert scheduled != tried(name, key, 0.5, lambda opt, k: None, **options)


@pytest.mark.parametrize("key", ["weight_decay", "clip_value", "clip_norm", "grad_scale"])
@pytest.mark.parametrize("name", NAMES)
def test_every_option_may_be_scheduled(name, key):
    """So do schedules of the options that all optimizers share."""
    schedule = linear(0.5, 0.25, 4)

    def by_hand(opt, k):
        if key in opt.param_groups[0]:
            opt.param_groups[0][key] = schedule(k)
        else:
            setattr(opt, key, schedule(k))

    assert tried(name, key, schedule, lambda opt, k: None) == tried(name, key, 0.5, by_hand)


def test_second_beta_may_be_scheduled():
    """Each element of betas may be a schedule by itself, also in a list."""
    schedule, seen = linear(0.9, 0.5, 4), []
    for betas in [(0.9, schedule), [0.9, schedule], None]:
        w = W.copy()
        opt = proptim.Adam([w], betas=betas or (0.9, 0.9))
        for k in range(5):
            if betas is None:
                opt.param_groups[0]["betas"] = [0.9, schedule(k)]
            opt.step([G])
        seen.append(w.tobytes())
    assert len(set(seen)) == 1


def test_schedules_of_groups():
    """Each group follows its own schedule; skipped steps do not count."""
    a, b = np.zeros(1), np.zeros(1)
    opt = proptim.SGD(
        [{"params": [a], "lr": linear(1.0, 0.0, 2)}, {"params": [b]}], lr=exponential(1.0, 2.0), nonfinite="skip"
    )
    for bad in (False, True, False, False):
        opt.step([np.array([math.nan if bad else 1.0]), np.ones(1)])
    assert (a[0], b[0]) == (-1.5, -7.0)


# Changes in param_groups ---------------------------------------------------------------------------------------------


def stepped(name, changes, **options):
    """Parameter bits after two steps for every dict of changes to the group."""
    w = W.copy()
    opt = proptim.OPTIMIZERS[name]([w], **options)
    for change in changes:
        opt.param_groups[0].update(change)
        opt.step([G])
        opt.step([0.1 * G[::-1]])
    return w.tobytes()


SWITCHES = [
    (name, key, value)
    for name, cls in proptim.OPTIMIZERS.items()
    for key, value in [("momentum", 0.9), ("amsgrad", True), ("centered", True), ("weight_decay", 0.1), ("lr", 0.5)]
    if key in cls([W.copy()]).param_groups[0] and key not in cls.fixed
]


@pytest.mark.parametrize(("name", "key", "value"), SWITCHES)
def test_changes_take_effect(name, key, value):
    """A hyperparameter that is set holds from the next step on, and so does taking it back."""
    before = proptim.OPTIMIZERS[name]([W.copy()]).param_groups[0][key]
    seen = {
        stepped(name, [{}, {}, {}]),
        stepped(name, [{}, {key: value}, {}]),
        stepped(name, [{key: value}, {}, {}]),
        stepped(name, [{key: value}, {key: before}, {}]),
    }
    assert len(seen) == 4
    assert stepped(name, [{key: value}, {}, {}]) == stepped(name, [{}, {}, {}], **{key: value})


@pytest.mark.parametrize(("name", "key"), [("rmsprop", "centered"), ("adam", "amsgrad"), ("adamw", "amsgrad")])
def test_switched_off_is_off(name, key):
    """After centered or amsgrad is switched off, a step is that of an optimizer which never had it."""
    never = stepped(name, [{}, {"lr": 0.5}], lr=0.0)
    assert stepped(name, [{key: True}, {key: False, "lr": 0.5}], lr=0.0) == never
    assert stepped(name, [{key: True}, {"lr": 0.5}], lr=0.0) != never


@pytest.mark.parametrize(("name", "key", "array"), [
    ("sgd", "momentum", "momentum_buffer"), ("rmsprop", "momentum", "momentum_buffer"),
    ("rmsprop", "centered", "grad_avg"), ("adam", "amsgrad", "max_exp_avg_sq"), ("adamw", "amsgrad", "max_exp_avg_sq"),
])  # fmt: skip
def test_state_is_switched_with_its_hyperparameter(name, key, array):
    """The state array comes with the hyperparameter, rests while that is off, and goes on after."""
    opt = proptim.OPTIMIZERS[name]([W.copy()])
    opt.step([G])
    assert array not in opt.state[0]
    on, off = (0.9, 0.0) if key == "momentum" else (True, False)
    opt.param_groups[0][key] = on
    opt.step([G])
    kept = opt.state[0][array].copy()
    assert kept.any()
    opt.param_groups[0][key] = off
    opt.step([10 * G])
    assert (opt.state[0][array] == kept).all()
    opt.param_groups[0][key] = on
    opt.step([10 * G])
    assert (opt.state[0][array] != kept).any()


def test_changes_of_one_group_survive_an_error_in_another():
    """A step refused for the second group's hyperparameter does not lose what the first group's asks for."""
    opt = proptim.SGD([{"params": [W.copy()]}, {"params": [W.copy()]}])
    opt.step([G, G])
    opt.param_groups[0]["momentum"], opt.param_groups[1]["lr"] = 0.9, -1.0
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        opt.step([G, G])
    opt.param_groups[1]["lr"] = 0.1
    opt.step([G, G])
    assert opt.state[0]["momentum_buffer"].any()


def test_lr():
    """lr reads the rate of the next step and sets that of every group; if groups differ it is an error."""
    a, b = np.zeros(1), np.zeros(1)
    opt = proptim.SGD([{"params": [a], "lr": 0.5}, {"params": [b]}], lr=0.25)
    for ambiguous in (lambda: opt.lr, lambda: setattr(opt, "lr", 0.125)):
        with pytest.raises(
            ValueError, match=r"lr differs between parameter groups: \[0.5, 0.25\]; expected one for all"
        ):
            ambiguous()
    opt.param_groups[0]["lr"] = 0.25
    opt.lr = 0.125
    assert [g["lr"] for g in opt.param_groups] == [0.125, 0.125]
    opt.lr = linear(1.0, 0.0, 4)
    opt.step([np.ones(1), np.ones(1)])
    assert opt.lr == 0.75
    assert (a[0], b[0]) == (-1.0, -1.0)


def int8_tensor(n):
    return torch.tensor(n, dtype=torch.int8)


@pytest.mark.parametrize("whole", [np.int8, np.uint8, int8_tensor])
@pytest.mark.parametrize("real", [np.float16, np.float32, torch.tensor])
def test_arguments_of_other_types(whole, real):
    """Every schedule computes with Python numbers, whatever the type of its arguments: no count overflows."""

    def make(n, x):
        rising = schedules.warmup(n(100), schedules.linear(x(0.1), x(0.01), n(100)))
        return [
            schedules.constant(x(0.1)), schedules.linear(x(0.1), x(0.01), n(100)),
            schedules.cosine(x(0.1), n(100), x(0.01)), schedules.exponential(x(0.1), x(0.9), n(3)),
            schedules.step(x(0.1), x(0.5), n(30)), schedules.one_cycle(x(0.1), n(100), x(0.3), x(25), x(1000)),
            rising, schedules.warm_restarts(x(0.1), n(10), n(2), x(0.01)), schedules.warm_restarts(x(0.1), n(100)),
            schedules.join(schedules.constant(x(0.1)), n(100), rising),
            schedules.plateau(x(0.1), x(0.5), n(1), x(1e-4), cooldown=n(1), end=x(1e-3), eps=x(1e-8)),
        ]  # fmt: skip

    every = make(whole, real), make(int, lambda x: float(real(x)))
    known = {c for c in vars(schedules).values() if isinstance(c, type) and c.__module__ == schedules.__name__}
    assert {*map(type, every[0])} == known
    with np.errstate(all="raise"):
        for given, expected in zip(*every, strict=True):
            for k in (0, 1, 99, 100, 127, 128, 129, 255, 256, 300, 40_000):
                if hasattr(given, "report"):
                    given.report(np.float32(1))
                    expected.report(1.0)
                assert type(given(k)) is float
                assert given(k) == expected(k), (given, k)
