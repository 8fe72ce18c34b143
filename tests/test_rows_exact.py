"""`lazy_rows=False`: gradients of rows with the result of dense gradients, within rounding."""

from __future__ import annotations

import copy
import math
import pickle
import re

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import torch

import proptim
from proptim import _missed, schedules


def falling(k):
    """A schedule that can be pickled."""
    return 0.5 + 0.4 / (1 + k)


CASES = {
    "sgd": [
        {"lr": 0.1},
        {"lr": 0.1, "weight_decay": 0.1},
        {"lr": schedules.exponential(0.5, 0.9), "weight_decay": 0.1, "maximize": True},
        {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True, "clip_value": 0.5},
        {"lr": 1.0, "weight_decay": 1.5},  # the factor is negative
    ],
    "adagrad": [{"lr": 0.1}, {"lr": 0.1, "weight_decay": 0.01, "decoupled_weight_decay": True, "lr_decay": 0.1}],
    "rmsprop": [
        {"lr": 0.1},
        {"lr": schedules.exponential(0.5, 0.9), "weight_decay": 0.1, "decoupled_weight_decay": True},
        {"lr": 0.1, "alpha": falling, "clip_norm": 2.0, "bias_correction": True},
        {"lr": 0.1, "centered": True, "eps_inside_sqrt": True},
    ],
    "adadelta": [{}, {"weight_decay": 0.1, "decoupled_weight_decay": True, "grad_scale": 0.5}],
}
ALL = [pytest.param(name, options, id=f"{name}-{i}") for name, each in CASES.items() for i, options in enumerate(each)]
STEPS = 60


def run(name, options, dtype, shape, seed=0, steps=STEPS, **how):
    """The table and the state of steps with few rows, many, none, all and dense ones, with how they were made.

    The other optimizer gets the same gradients as dense ones.
    """
    rng = np.random.default_rng(seed)
    start = rng.standard_normal(shape).astype(dtype)
    tables = [start.copy(), start.copy()]
    opt = proptim.OPTIMIZERS[name](tables[:1], lazy_rows=False, **options, **how)
    dense = proptim.OPTIMIZERS[name](tables[1:], **options, backend="numpy", **{k: how[k] for k in STORAGE if k in how})
    for t in range(steps):
        if t % 23 == 11:
            grad = rng.standard_normal(shape).astype(dtype)
            opt.step([grad])
            dense.step([grad])
        else:
            count = {0: 1, 1: 0, 2: 2 * len(start), 7: len(start)}.get(t % 11, 3) if len(start) else 0
            rows = rng.permutation(len(start)) if t % 11 == 7 else rng.integers(0, len(start), count) if count else []
            values = rng.standard_normal((len(rows), *shape[1:])).astype(dtype)
            rows = np.asarray(rows, np.int64)
            opt.step([proptim.Rows(rows, values)])
            grad = np.zeros(shape, dtype)
            seen = sorted({*rows.tolist()})
            for row in seen:  # in their order, as `Rows` adds them
                first, *rest = values[rows == row]
                for value in rest:
                    first = first + value
                grad[row] = first
            scale = {} if opt.grad_norm is None else {"grad_norm": opt.grad_norm}
            dense.step([grad], **scale)
        yield t, opt, dense, tables


STORAGE = ("state_dtype", "master")


def at(value, t):
    return value(t) if callable(value) else value


def check_within_rounding(name, options, dtype, shape=(7, 5), **how):
    """Both runs are within a bound of each other, which follows from the roundings of a step.

    Let u be half a unit in the last place. Averages and sums of squares have terms of one sign, and a step rounds each
    of them at most 4 times. What was missed is a product in float64, rounded once. So each run is within (1 + 4u)^T of
    exact numbers, and the two are within 10 u T. The mean of a centered rule is at most the largest gradient, and has
    that error of it. A change of a parameter is a product of roots: half of that error and 8 roundings in each run. In
    Adadelta the average of squared steps has the error of the steps, which are made with it: the sum of 10 u T over
    all steps. Decay and sum round the parameter 4 times in both runs.
    """
    u = np.finfo(dtype).eps / 2
    bound = np.zeros(shape)
    before = None
    largest = 0.0
    for t, opt, dense, tables in run(name, options, dtype, shape, **how):  # noqa: B007
        rate, decay = at(dense.lr, t), at(options.get("weight_decay", 0.0), t)
        factor = 1 - rate * decay
        steps = t + 1
        after = tables[1].astype(np.float64)
        if before is None:
            before = np.random.default_rng(how.get("seed", 0)).standard_normal(shape).astype(dtype).astype(np.float64)
        change = np.abs(after - factor * before)
        amplified = 5 * steps**2 + 40 * steps if name == "adadelta" else 10 * steps + 16
        state = {k: np.asarray(v, np.float64) for k, v in dense.state[0].items() if np.ndim(v)}
        if "grad_avg" in state:
            largest = max(largest, np.abs(dense._stepper.plan.grads[0]).max(initial=0))
            variance = state["square_avg"] - state["grad_avg"] ** 2
            spread = state["square_avg"] + 2 * np.abs(state["grad_avg"]) * largest
            amplified = amplified + 10 * steps * spread / np.maximum(variance, 1e-8)
        bound = abs(factor) * bound + u * (4 * (np.abs(before) + np.abs(after)) + amplified * change)
        before = after
    opt.catch_up()
    assert (np.abs(tables[0].astype(np.float64) - after) <= bound).all()
    usable = bound < 1e-2 * np.maximum(np.abs(after), 1)
    assert usable.all() or ("centered" in options and usable.mean() > 0.5)
    tiny = np.finfo(dtype).smallest_subnormal
    for key, array in state.items():
        found = np.asarray(opt.state[0][key], np.float64)
        size = largest if key == "grad_avg" else np.abs(array)
        factor = 5 * steps**2 + 40 * steps if key == "acc_delta" else 10 * steps
        assert (np.abs(found - array) <= u * factor * size + steps * tiny).all(), key
    assert (opt.state[0]["row_step"] == STEPS).all()
    return opt, tables


@pytest.mark.parametrize(("name", "options"), ALL)
def test_within_rounding_of_dense_steps(backend, name, options):
    for dtype in (np.float32, np.float64):
        check_within_rounding(name, options, dtype)


@pytest.mark.parametrize("shape", [(7,), (1, 3), (4, 2, 3), (300, 17)], ids=str)
def test_shapes(backend, shape):
    for name in CASES:
        check_within_rounding(name, CASES[name][1], np.float32, shape)


@pytest.mark.parametrize("name", CASES)
def test_without_a_factor_the_bits_are_those_of_dense_steps(backend, name):
    """A sum of squares does not shrink: nothing is to be made up."""
    if name not in ("sgd", "adagrad"):
        return
    for _, opt, dense, tables in run(name, {"lr": 0.1}, np.float32, (7, 5)):  # noqa: B007
        assert tables[0].tobytes() == tables[1].tobytes()
    for key, array in dense.state[0].items():
        assert np.asarray(opt.state[0][key]).tobytes() == np.asarray(array).tobytes()


@pytest.mark.once
@pytest.mark.parametrize(("name", "options"), ALL)
def test_same_bits_everywhere(name, options):
    found = set()
    for how in ({"backend": "numpy"}, {"backend": "numba"}, {"backend": "c"}, {"backend": "c", "threads": 3}):
        for dtype in (np.float32, ml_dtypes.bfloat16, np.float16, np.complex64):
            shape = (9, 4)
            *_, (_, opt, _, tables) = run(name, options, dtype, shape, **how)
            state = opt.state_dict()["state"][0]
            found.add((np.dtype(dtype).name, tables[0].tobytes(), *(np.asarray(state[key]).tobytes() for key in state)))
    assert len(found) == 4


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_sixteen_bits(backend, dtype):
    """With a master the numbers are those of float32 parameters, rounded."""
    options = {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}
    rng = np.random.default_rng(0)
    half = rng.standard_normal((6, 4)).astype(dtype)
    whole = half.astype(np.float32)
    opts = [proptim.RMSprop([table], lazy_rows=False, **options) for table in (half, whole)]
    for _ in range(30):
        grad = proptim.Rows(rng.integers(0, 6, 2), rng.standard_normal((2, 4)).astype(np.float32))
        for opt in opts:
            opt.step([grad])
    a, b = (opt.state_dict()["state"][0] for opt in opts)
    assert a["master"].tobytes() == whole.tobytes()
    assert a["square_avg"].tobytes() == b["square_avg"].tobytes()
    wide = np.asarray(half, np.float32)
    assert np.abs(wide - whole).max() <= np.abs(whole).max() * float(ml_dtypes.finfo(dtype).eps)


def test_state_of_sixteen_bits(backend):
    """What is made up is rounded once, and not once for each step that was missed."""
    table = np.ones((2, 3), np.float32)
    opt = proptim.RMSprop([table], alpha=0.999, lazy_rows=False, state_dtype="bfloat16")
    opt.step([np.ones((2, 3), np.float32)])
    for _ in range(1000):
        opt.step([proptim.Rows([0], np.zeros((1, 3), np.float32))])
    before = float(opt.state[0]["square_avg"][1, 0])
    opt.catch_up()
    after = float(opt.state[0]["square_avg"][1, 0])
    assert abs(after / (before * float(np.float32(0.999)) ** 1000) - 1) <= 2.0**-8


# What happens when ----------------------------------------------------------------------------------------------------


def exactly(text):
    """A pattern for the whole of a message."""
    return "^" + re.escape(text) + "$"


def decaying(table, **options):
    """An optimizer of which every step halves every row."""
    return proptim.SGD([table], lr=0.5, weight_decay=1.0, lazy_rows=False, **options)


def nothing(*rows):
    return [proptim.Rows([*rows], np.zeros((len(rows), 2)))]


def test_row_step(backend):
    table = np.ones((4, 2))
    opt = decaying(table)
    assert opt.state[0]["row_step"].tolist() == [0, 0, 0, 0]
    for rows in ([0], [1, 1, 0], [], [3]):
        opt.step(nothing(*rows))
    assert opt.state[0]["row_step"].tolist() == [2, 2, 0, 4]
    assert table[:, 0].tolist() == [1 / 4, 1 / 4, 1, 1 / 16]
    with pytest.raises(ValueError, match="read-only"):
        opt.state[0]["row_step"][:] = 4
    opt.catch_up()
    assert opt.state[0]["row_step"].tolist() == [4, 4, 4, 4]
    assert (table == 1 / 16).all()
    opt.catch_up()
    opt.step(nothing(2))
    assert table[:, 0].tolist() == [1 / 16, 1 / 16, 1 / 32, 1 / 16]
    assert opt.state[0]["row_step"].dtype == np.int64


@pytest.mark.parametrize("rows", [(), (0,), (0, 0), (0, 1, 2), (2, 1, 0, 1)])
def test_repeated_no_and_all_rows(backend, rows):
    table = np.ones((3, 2))
    opt = decaying(table)
    for _ in range(3):
        opt.step(nothing(*rows))
    assert opt.state[0]["row_step"].tolist() == [3 if row in rows else 0 for row in range(3)]
    opt.catch_up()
    assert (table == 1 / 8).all()


def test_tables_without_rows(backend):
    for shape in ((0, 2), (3, 0)):
        opt = decaying(np.ones(shape))
        rows = [*range(shape[0])][:1]
        opt.step([proptim.Rows(rows, np.ones((len(rows), *shape[1:])))])
        opt.step([proptim.Rows([], np.ones((0, *shape[1:])))])
        opt.catch_up()
        assert opt.state[0]["row_step"].tolist() == [2] * shape[0]
    scalar = proptim.SGD([np.array(1.0)], lr=1.0, lazy_rows=False)
    scalar.step([np.array(1.0)])
    assert scalar.state[0] == {"step": 1}  # it has no rows


def test_what_lets_rows_catch_up(backend, tmp_path):
    def made():
        table = np.ones((3, 2))
        opt = decaying(table)
        opt.step(nothing(0))
        return table, opt

    table, opt = made()
    opt.step([np.zeros((3, 2))])
    assert (table == 1 / 4).all()
    table, opt = made()
    opt.step_param(0, np.zeros((3, 2)))
    assert (table == 1 / 4).all()
    for see in (
        lambda opt: opt.state_dict(),
        lambda opt: opt.save(tmp_path / "a.npz"),
        pickle.dumps,
        copy.deepcopy,
        lambda opt: opt.reset(),
        lambda opt: opt.reset(0),
    ):
        table, opt = made()
        see(opt)
        assert (table == 1 / 2).all()
    table, opt = made()
    opt.add_param_group({"params": [np.ones(1)]})
    assert table[1, 0] == 1
    opt.remove_param_group(0)
    assert (table == 1 / 2).all()
    table, opt = made()
    saved = opt.state_dict()
    assert saved["state"][0]["row_step"].tolist() == [1, 1, 1]
    opt.step(nothing(1))
    opt.load_state_dict(saved)  # which leaves parameters as they are
    assert table[:, 0].tolist() == [1 / 2, 1 / 4, 1 / 2]
    opt.catch_up()
    assert table[:, 0].tolist() == [1 / 2, 1 / 4, 1 / 2]


@pytest.mark.parametrize("saved", [True, False])
def test_lazy_rows_is_loaded(backend, saved):
    """It is that of the state, as every hyperparameter of a group is; a state that has none leaves it as it is."""
    opts = [
        proptim.SGD([np.ones((3, 2))], lr=0.5, weight_decay=1.0, lazy_rows=lazy, backend=backend)
        for lazy in (saved, not saved)
    ]
    opts[0].step(nothing(0))
    state = opts[0].state_dict()
    opts[1].load_state_dict(state)
    assert opts[1].lazy_rows is saved
    table = opts[1].param_groups[0]["params"][0]
    opts[1].step(nothing(1))
    opts[1].catch_up()
    assert table[:, 0].tolist() == ([1, 1 / 2, 1] if saved else [1 / 2] * 3)
    opts[1].lazy_rows = not saved
    opts[1].step(nothing(1))
    opts[1].catch_up()
    assert table[:, 0].tolist() == [1 / 2, 1 / 4, 1 / 2]
    del state["param_groups"][0]["lazy_rows"]
    opts[1].load_state_dict(state)
    assert opts[1].lazy_rows is not saved


def test_reset_of_one(backend):
    tables = [np.ones((2, 2)), np.ones((2, 2))]
    opt = proptim.SGD(tables, lr=0.5, weight_decay=1.0, lazy_rows=False)
    opt.step(nothing(0) * 2)
    opt.reset(0)
    assert [table[1, 0] for table in tables] == [1 / 2, 1]
    assert [opt.state[i]["row_step"].tolist() for i in (0, 1)] == [[0, 0], [1, 0]]
    opt.step(nothing(0) * 2)
    opt.catch_up()
    assert (np.array(tables) == 1 / 4).all()


def test_one_by_one(backend):
    tables = [np.ones((3, 2)), np.ones((3, 2))]
    opts = [decaying(table) for table in tables]
    for rows in ([0], [1, 1], [], [2, 0]):
        opts[0].step(nothing(*rows))
        opts[1].step_param(0, *nothing(*rows))
    assert tables[0].tobytes() == tables[1].tobytes()
    assert opts[0].state[0]["row_step"].tolist() == opts[1].state[0]["row_step"].tolist() == [4, 2, 4]


def test_groups(backend):
    """Groups are lazy or not for themselves, and a parameter that is left out misses nothing."""
    tables = [np.ones((3, 2)) for _ in range(3)]
    groups = [{"params": tables[:1], "lazy_rows": False}, {"params": tables[1:2]}]
    opt = proptim.SGD(groups, lr=0.5, weight_decay=1.0)
    opt.add_param_group({"params": tables[2:], "lazy_rows": False, "lr": 0.25})
    assert [group["lazy_rows"] for group in opt.param_groups] == [False, True, False]
    with pytest.raises(ValueError, match="lazy_rows differs between parameter groups: \\[False, True, False\\]"):
        assert opt.lazy_rows
    opt.step(nothing(0) * 3)
    opt.step([*nothing(1), *nothing(1), None])
    assert "row_step" not in opt.state[1]
    opt.catch_up()
    assert tables[0][:, 0].tolist() == [1 / 4, 1 / 4, 1 / 4]
    assert tables[1][:, 0].tolist() == [1 / 2, 1 / 2, 1]
    assert tables[2][:, 0].tolist() == [3 / 4, 3 / 4, 3 / 4]
    assert [key for key in opt.state_dict()["state"] if "row_step" in opt.state_dict()["state"][key]] == [0, 2]
    assert "lazy_rows: False" in repr(opt)
    opt.step([None, None, *nothing(0)])
    assert opt.state[2]["row_step"].tolist() == [2, 1, 1]


def test_switched(backend):
    """What was missed while it was off is made up when it is switched on, before the next step."""
    table = np.ones((3, 2))
    opt = decaying(table)
    opt.step(nothing(0))
    opt.lazy_rows = True
    opt.step(nothing(0))
    assert table[:, 0].tolist() == [1 / 4, 1 / 2, 1 / 2]
    opt.lazy_rows = False
    assert opt.state[0]["row_step"].tolist() == [2, 2, 2]
    opt.step(nothing(1))
    opt.catch_up()
    assert table[:, 0].tolist() == [1 / 8, 1 / 4, 1 / 4]


def test_changes_between_steps(backend):
    """Each missed step is made up with what it would have been made with."""
    table = np.ones((3, 2))
    opt = decaying(table)
    opt.step(nothing(0))
    opt.lr = 0.25
    opt.step(nothing(0))
    opt.param_groups[0]["weight_decay"] = 2.0
    opt.step(nothing(1))
    opt.maximize = True
    opt.step(nothing(1))
    opt.catch_up()
    np.testing.assert_array_equal(table, np.full((3, 2), 0.5 * 0.75 * 0.5 * 0.5))


def test_many_different_steps(backend, monkeypatch):
    """The record of different steps is kept short."""
    monkeypatch.setattr(_missed, "MOST_RUNS", 5)
    monkeypatch.setattr(_missed, "PIECE", 4)
    factors = [1 - 2.0 ** -(k % 7 + 1) for k in range(40)]
    table = np.ones((9, 2))
    opt = proptim.SGD([table], lr=lambda k: 1 - factors[k], weight_decay=1.0, lazy_rows=False)
    for k in range(40):
        opt.step(nothing(k % 4))
        assert all(len(table.runs) <= 5 for table in opt._stepper.missed.tables.values())
    opt.catch_up()
    expected = math.prod(factors)
    assert (np.abs(table - expected) <= 40 * 2 * 2.0**-53 * expected).all()


def test_products_of_runs():
    rng = np.random.default_rng(0)
    table = _missed.Table(1, 0)
    steps = [(float(rng.choice([0.5, -1.5, 0.9])), 1.0) for _ in range(50)]
    for k, factors in enumerate(steps):
        table.runs = table.runs_with(k + 1, factors)
    assert len(table.runs) < 50
    found = table.factors(np.arange(50))
    for since in range(50):
        exact = math.prod(a for a, _ in steps[since:])
        assert abs(found[since, 0] - exact) <= 100 * 2.0**-53 * abs(exact)
        assert found[since, 1] == 1
    base, exponent = np.array([0.5, -2.0, 3.0]), np.array([0, 5, 3])
    assert _missed.power(base, exponent).tolist() == [1, -32, 27]


def test_steps_that_are_skipped_or_repeated(backend):
    table = np.ones((3, 2))
    opt = decaying(table, nonfinite="skip")
    opt.step(nothing(0))
    opt.step([proptim.Rows([1], np.full((1, 2), np.nan))])
    assert (opt.skipped, table[:, 0].tolist()) == (1, [1 / 2, 1, 1])
    dense = np.zeros((3, 2))
    for _ in range(4):  # of which the later ones are repeated by the plan alone
        opt.step([dense])
    opt.step(nothing(0))
    opt.catch_up()
    assert (table == 2.0**-6).all()


def test_nan_norm(backend):
    """A norm that is NaN makes all of a dense step NaN, and also of rows that have missed it."""
    for name in ("sgd", "rmsprop"):
        table = np.ones((3, 2))
        opt = proptim.OPTIMIZERS[name]([table], lazy_rows=False, clip_norm=1.0)
        opt.step([proptim.Rows([1], np.full((1, 2), np.nan))])
        opt.catch_up()
        assert np.isnan(table).all()
        assert all(np.isnan(a).all() for key, a in opt.state[0].items() if "avg" in key)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_factors_that_underflow(backend, dtype):
    table = np.ones((3, 1), dtype)
    opt = proptim.RMSprop([table], alpha=0.5, lazy_rows=False)
    opt.step([np.array([[1], [np.finfo(dtype).max], [1e-3]], dtype)])
    for _ in range(1200):  # 2**-1200 is 0 in both dtypes
        opt.step([proptim.Rows([0], np.zeros((1, 1), dtype))])
    opt.catch_up()
    assert opt.state[0]["square_avg"].tolist() == [[0], [np.inf], [0]]
    assert np.isfinite(table).all()


def test_flush(backend):
    table = np.ones((2, 1), np.float32)
    for flush in (True, False):
        opt = proptim.RMSprop([table], alpha=0.5, lazy_rows=False, flush_denormals=flush)
        opt.step([np.ones((2, 1), np.float32)])
        for _ in range(130):
            opt.step([proptim.Rows([0], np.zeros((1, 1), np.float32))])
        opt.catch_up()
        assert (opt.state[0]["square_avg"][1, 0] == 0) == flush


def test_sparse_matrices_and_tensors(backend):
    tables = [np.ones((4, 2), np.float32) for _ in range(3)]
    opts = [decaying(tables[0]), decaying(torch.from_numpy(tables[1])), decaying(tables[2])]
    grad = np.zeros((4, 2), np.float32)
    for row in (1, 3, 1):
        grad[:] = 0
        grad[row] = 1
        opts[0].step([scipy.sparse.csr_array(grad)])
        opts[1].step([torch.from_numpy(grad).to_sparse(1)])
        opts[2].step([proptim.Rows([row], np.ones((1, 2), np.float32))])
    version = opts[1].param_groups[0]["params"][0]._version
    for opt in opts:
        assert opt.state[0]["row_step"].tolist() == [0, 3, 0, 2]
        opt.catch_up()
    assert opts[1].param_groups[0]["params"][0]._version > version
    assert tables[0].tobytes() == tables[1].tobytes() == tables[2].tobytes()
    opts[1].step([torch.from_numpy(grad).to_sparse(1)])
    tensor = opts[1].param_groups[0]["params"][0]
    tensor.data = tensor.clone()
    with pytest.raises(ValueError, match="params\\[0\\] has been given other memory"):
        opts[1].catch_up()


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), ALL)
def test_saved_in_between(backend, name, options, tmp_path):
    """A run that goes on from a file has the bits of one that has caught up there."""
    *_, (_, opt, _, tables) = run(name, options, np.float32, (7, 5), steps=25)
    opt.save(tmp_path / "a.npz")
    other = tables[0].copy()
    loaded = proptim.OPTIMIZERS[name]([other], **{**options, "lr": options.get("lr", 1.0)})
    loaded.load(tmp_path / "a.npz")
    assert loaded.lazy_rows is False
    twin = pickle.loads(pickle.dumps(opt))
    rng = np.random.default_rng(1)
    for _ in range(9):
        grad = [proptim.Rows(rng.integers(0, 7, 2), rng.standard_normal((2, 5)).astype(np.float32))]
        for each in (opt, loaded, twin):
            each.step(grad)
    for each in (opt, loaded, twin):
        each.catch_up()
    assert twin.param_groups[0]["params"][0].tobytes() == tables[0].tobytes() == other.tobytes()
    a, b, c = (each.state_dict()["state"][0] for each in (opt, loaded, twin))
    assert a.keys() == b.keys() == c.keys()
    for key, value in a.items():
        assert np.asarray(value).tobytes() == np.asarray(b[key]).tobytes() == np.asarray(c[key]).tobytes(), key
    with np.load(tmp_path / "a.npz") as file:
        assert file["state/0/row_step"].tolist() == [25] * 7
        assert file["state/0/row_step"].dtype == np.int64


def test_loaded_from_lazy_and_back(backend):
    table = np.ones((3, 2))
    lazy, exact = proptim.Adagrad([table], lr=0.1), proptim.Adagrad([np.ones((3, 2))], lr=0.1, lazy_rows=False)
    lazy.step([proptim.Rows([0], np.ones((1, 2)))])
    saved = lazy.state_dict()
    del saved["param_groups"][0]["lazy_rows"]  # as in a file from before there was one
    exact.load_state_dict(saved)
    assert exact.lazy_rows is False
    assert exact.state[0]["row_step"].tolist() == [1, 1, 1]
    exact.step([proptim.Rows([1], np.ones((1, 2)))])
    saved = exact.state_dict()
    saved["param_groups"][0]["lazy_rows"] = True
    lazy.load_state_dict(saved)
    assert "row_step" not in lazy.state[0]


@pytest.mark.parametrize("form", ["step", "step_param"])
def test_watched_steps_see_whole_tables(backend, form):
    """A step that is recorded lets all rows catch up, before it and after it."""
    table, alone = np.ones((3, 1)), np.ones((3, 1))
    options = {"lr": 0.5, "weight_decay": 1.0}
    opt, dense = proptim.SGD([table], lazy_rows=False, **options), proptim.SGD([alone], **options)
    records = opt.watch(every=2), dense.watch(every=2)
    for row in (0, 1, 0, 0, 2):
        grad = np.zeros((3, 1))
        grad[row] = 1.0
        for each, given in ((opt, proptim.Rows([row], np.ones((1, 1)))), (dense, grad)):
            each.step([given]) if form == "step" else each.step_param(0, given)
    for column in ("step", "weight_norm", "update_norm"):
        np.testing.assert_allclose(*(each[0][column] for each in records), rtol=1e-14)


@pytest.mark.parametrize("text", ["rule", "advance", "stages"])
def test_a_class_with_other_texts_has_to_say_what_is_idle(text):
    """What its base says is about the texts of the base."""
    base = proptim.SGD
    cls = type("Other", (base,), {text: staticmethod(getattr(base, text))})
    with pytest.raises(ValueError, match=r"^Invalid lazy_rows: False for Other: a gradient of zero does more in this"):
        cls([np.ones(2)], lr=0.1, lazy_rows=False)
    own = type("Own", (base,), {text: staticmethod(getattr(base, text)), "idle": staticmethod(base.idle)})
    assert own([np.ones(2)], lr=0.1, lazy_rows=False, backend="numpy").lazy_rows is False


def test_through_torch(backend):
    """torch keeps `row_step` as it is, in the dtype of the parameter, and steps all rows."""
    table, tensor = np.ones((3, 2), np.float32), torch.nn.Parameter(torch.ones((3, 2)))
    opt = proptim.Adagrad([table], lr=0.1, lazy_rows=False)
    opt.step([proptim.Rows([0], np.ones((1, 2), np.float32))])
    saved, theirs = opt.state_dict(), torch.optim.Adagrad([tensor], lr=0.1)
    states = {0: {key: torch.as_tensor(value) for key, value in saved["state"][0].items()}}
    theirs.load_state_dict({**saved, "state": states})
    tensor.grad = torch.ones((3, 2))
    theirs.step()
    opt.load_state_dict(theirs.state_dict())
    assert opt.lazy_rows is False
    assert opt.state[0]["row_step"].tolist() == [2, 2, 2]
    assert opt.state[0]["sum"][:, 0].tolist() == [2, 1, 1]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (np.array([1, 0, 1]), ValueError, "is 0 at index 1; expected 1, the step of params[0]: state_dict() lets all "),
        (np.array([1, 1]), ValueError, "has shape (2,); expected (3,), one for each row of params[0]"),
        (np.ones(3, bool), TypeError, "is bool; expected int64, a number of steps for each row of params[0]"),
    ],
)
def test_loads_no_rows_that_are_behind(backend, given, error, message):
    table = np.ones((3, 2))
    opt = decaying(table)
    opt.step(nothing(0))
    saved = opt.state_dict()
    saved["state"][0]["row_step"] = given
    opt.step(nothing(1))
    with pytest.raises(error, match="^" + re.escape(f"'row_step' in state 0 of state_dict {message}")):
        opt.load_state_dict(saved)
    opt.catch_up()
    assert (table == 1 / 4).all()


# All or nothing -------------------------------------------------------------------------------------------------------


class StopError(Exception):
    """What interrupts a step here."""


@pytest.mark.parametrize("one", [False, True])
def test_refused_calls_change_nothing(backend, one, monkeypatch):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((5, 2)).astype(np.float32)
    options = {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True, "nonfinite": "raise"}
    opt = proptim.RMSprop([table], lazy_rows=False, **options)

    def step(grad):
        return opt.step_param(0, grad) if one else opt.step([grad])

    def everything():
        state = opt.state[0]
        return table.tobytes(), *(np.asarray(state[key]).tobytes() for key in state), opt.steps

    def rows(*indices):
        return proptim.Rows([*indices], rng.standard_normal((len(indices), 2)).astype(np.float32))

    step(rows(0, 1))
    step(rows(2))
    for grad, error in (
        (rows(5), ValueError),
        (proptim.Rows([0], np.full((1, 2), np.nan, np.float32)), FloatingPointError),
        (proptim.Rows([0], np.ones((1, 3), np.float32)), ValueError),
    ):
        before = everything()
        with pytest.raises(error):
            step(grad)
        assert everything() == before
    opt.momentum = 0.9
    before = everything()
    with pytest.raises(ValueError, match="Invalid lazy_rows: False for RMSprop: momentum=0\\.9 moves"):
        step(rows(0))
    assert everything() == before
    opt.momentum = 0.0
    # A step that fails after rows have made up what they missed.
    name = "step_one" if one else "step"
    before = everything()

    class Plan:
        def __getattr__(self, key):
            return getattr(plan, key)

        def __setattr__(self, key, value):
            setattr(plan, key, value)

    def stop(*args):
        assert everything() != before
        raise StopError

    plan = opt._stepper.plan
    wrapped = Plan()
    vars(wrapped)[name] = stop
    vars(opt._stepper)["plan"] = wrapped
    with pytest.raises(StopError):
        step(rows(0, 3, 3))
    vars(opt._stepper)["plan"] = plan
    assert everything() == before
    # The run goes on as one to which nothing of this has happened.
    step(rows(4, 0))
    opt.catch_up()


def test_refusals():
    """A rule allows it in its own class, with hyperparameters for which it is true; all others are refused."""
    for name, cls in proptim.OPTIMIZERS.items():
        if name in CASES:
            assert "idle" in vars(cls)
            assert cls([np.ones(2)], lazy_rows=False).lazy_rows is False
            continue
        assert "idle" not in vars(cls) or vars(cls)["idle"].__func__ is proptim.Optimizer.idle
        message = f"Invalid lazy_rows: False for {cls.__name__}: a gradient of zero does more in this rule than shrink"
        with pytest.raises(ValueError, match=re.escape(message)):
            cls([np.ones(2)], lazy_rows=False)
    for name, options, why in (
        ("sgd", {"momentum": 0.9}, "momentum=0.9 moves weights that have no gradient"),
        ("rmsprop", {"momentum": 0.5}, "momentum=0.5 moves weights that have no gradient"),
        ("rmsprop", {"eps": 0}, "eps=0 makes NaN of a gradient of zero before the first other one"),
        ("adagrad", {"eps": 0.0}, "eps=0 makes NaN of a gradient of zero before the first other one"),
        ("adadelta", {"eps": 0.0}, "eps=0 makes NaN of a gradient of zero before the first other one"),
        ("adagrad", {"weight_decay": 0.1}, "weight_decay=0.1 is a gradient, unless decoupled_weight_decay is True"),
        ("rmsprop", {"weight_decay": 0.1}, "weight_decay=0.1 is a gradient, unless decoupled_weight_decay is True"),
        ("adadelta", {"weight_decay": 0.1}, "weight_decay=0.1 is a gradient, unless decoupled_weight_decay is True"),
    ):
        cls = proptim.OPTIMIZERS[name]
        message = exactly(f"Invalid lazy_rows: False for {cls.__name__}: {why} (expected True)")
        with pytest.raises(ValueError, match=message):
            cls([np.ones(2)], lazy_rows=False, **options)
        opt = cls([np.ones(2)], **options)
        with pytest.raises(ValueError, match=message):
            opt.add_param_group({"params": [np.ones(2)], "lazy_rows": False})
        opt.lazy_rows = False
        with pytest.raises(ValueError, match=message):
            opt.step([np.ones(2)])
        opt.lazy_rows = True
        opt.step([np.ones(2)])
    for value in (None, 0, "no", lambda k: True):
        with pytest.raises(TypeError, match=r"^Invalid lazy_rows: .* \(expected True or False\)$"):
            proptim.SGD([np.ones(2)], lazy_rows=value)
    with pytest.raises(TypeError, match="unexpected keyword argument 'lazy_rows'"):
        proptim.functional.sgd(np.ones(2), np.ones(2), lazy_rows=False)


def test_rules_of_others_are_refused():
    """A class that inherits from one that allows it, and has another rule, says so itself or is refused."""

    class Signed(proptim.SGD):
        @staticmethod
        def rule(param, grad, momentum_buffer, lr, momentum, undamped, nesterov):
            return param - lr * np.sign(grad), momentum_buffer

    class Named(proptim.SGD):
        pass

    class Allowed(Signed):
        @staticmethod
        def rule(param, grad, momentum_buffer, lr, momentum, undamped, nesterov):
            return param - lr * np.sign(grad), momentum_buffer

        @staticmethod
        def idle(h):
            return {}

    table = np.ones(2)
    with pytest.raises(ValueError, match="Invalid lazy_rows: False for Signed: a gradient of zero does more"):
        Signed([table], lazy_rows=False, backend="numpy")
    Named([table], lazy_rows=False)
    opt = Allowed([table], lazy_rows=False, lr=0.5, backend="numpy")
    opt.step([proptim.Rows([1], np.ones(1))])
    opt.catch_up()
    assert table.tolist() == [1, 0.5]
    with pytest.raises(ValueError, match="Invalid lazy_rows: False for Allowed: weight_decay=0\\.1 is a gradient"):
        Allowed([table], lazy_rows=False, weight_decay=0.1, backend="numpy")
