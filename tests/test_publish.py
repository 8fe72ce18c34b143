"""`publish`: arrays of 16 bits that get a copy of float32 parameters, in the same pass and with the same bits."""

from __future__ import annotations

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch

import proptim
import proptim.torch
from proptim._formats import BFLOAT16, FLOAT16, rounded
from proptim.cli import selftest

BF16 = np.dtype(ml_dtypes.bfloat16)
RULES = [
    pytest.param(name, options, id="-".join([name, *map(str, options)]))
    for name in proptim.OPTIMIZERS
    for options in selftest.OPTIONS.get(name, [{}])
]
LOSSES = (3.0, 2.0, 2.5, 1.0)


def assert_copy(w, w16):
    """Of every number, to the bit."""
    kind = BFLOAT16 if w16.dtype == BF16 else FLOAT16
    assert np.ascontiguousarray(w16).tobytes() == np.asarray(rounded(np.ascontiguousarray(w), kind)).tobytes()


def start():
    rng = np.random.default_rng(3)
    params = [rng.normal(size=shape).astype(np.float32) for shape in ((37, 45), (1100,), (), (0,), (7,))]
    copies = [
        np.full(w.shape, 9.0, dtype) for w, dtype in zip(params, [BF16, np.float16, BF16, BF16, BF16], strict=True)
    ]
    copies[4] = None
    return params, copies


def gradients(params, k):
    rng = np.random.default_rng(k)
    return [np.array(rng.normal(size=w.shape), np.float32) for w in params]


@pytest.mark.parametrize(("name", "options"), RULES)
def test_every_rule(backend, name, options):
    """The parameters have the bits of a run without copies, and after each step the copies are theirs."""
    plain, _ = start()
    params, copies = start()
    options = {"weight_decay": 0.01, **options, "backend": backend}
    alone = proptim.OPTIMIZERS[name](plain, **options)
    for threads in (1, 3):
        opt = proptim.OPTIMIZERS[name](params, **options, publish=copies, threads=threads)
        for w, w16 in zip(params, copies, strict=True):
            if w16 is not None:
                assert_copy(w, w16)
        if threads == 3:
            opt.load_state_dict(alone.state_dict())
        for k in range(4):
            for each, arrays in ((opt, params), (alone, plain)):
                each.step(gradients(arrays, k), loss=LOSSES[k])
            for w, v, w16 in zip(params, plain, copies, strict=True):
                assert w.tobytes() == v.tobytes()
                if w16 is not None:
                    assert_copy(w, w16)


@pytest.mark.parametrize("layout", ["strided", "reversed", "fortran"])
def test_layouts(backend, layout):
    """Copies may lie otherwise than their parameters, and nothing between their elements is written."""
    rng = np.random.default_rng(1)
    w = rng.normal(size=(30, 20)).astype(np.float32)
    if layout == "fortran":
        w16 = np.zeros((30, 20), BF16, order="F")
    else:
        room = np.full((60, 40), 3.0, BF16)
        w16 = room[::2, ::2] if layout == "strided" else room[::-2, ::-2]
    opt = proptim.Adam([w], publish=[w16], backend=backend)
    for _ in range(3):
        opt.step([rng.normal(size=w.shape).astype(np.float32)])
        assert_copy(w, w16)
    if layout != "fortran":
        w16[...] = 3.0
        assert (room == 3.0).all()


def test_what_is_never_read(backend):
    """What the program writes to a copy is overwritten; what it writes to the parameter counts."""
    w, w16 = np.ones(100, np.float32), np.zeros(100, BF16)
    opt = proptim.SGD([w], lr=0.5, publish=[w16], backend=backend)
    w16[:] = 7.0
    w[:50] = 3.0
    opt.step([np.ones(100, np.float32)])
    assert w.tolist() == [2.5] * 50 + [0.5] * 50
    assert_copy(w, w16)


def test_steps_of_one_parameter_and_of_rows(backend):
    """A copy is set where its parameter is stepped, of rows where they are."""
    rng = np.random.default_rng(0)
    table, b = rng.normal(size=(20, 9)).astype(np.float32), np.ones(5, np.float32)
    t16, b16 = np.zeros(table.shape, np.float16), np.zeros(5, BF16)
    opt = proptim.Adam({"table": table, "b": b}, publish={"b": b16, "table": t16}, backend=backend)
    b16[:] = 7.0
    opt.step({"table": proptim.Rows([3, 19], np.ones((2, 9), np.float32)), "b": None})
    assert_copy(table, t16)
    assert (b16 == 7.0).all()
    t16[4] = 8.0
    opt.step_param("table", proptim.Rows([3], np.ones((1, 9), np.float32)))
    assert (t16[4] == 8.0).all()
    assert_copy(table[3], t16[3])
    opt.step_param("b", np.ones(5, np.float32))
    assert_copy(b, b16)


def test_rows_that_make_up_missed_steps(backend):
    """What is made up is copied."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(20, 9)).astype(np.float32)
    t16 = np.zeros(table.shape, BF16)
    more = {"weight_decay": 0.1, "decoupled_weight_decay": True, "lazy_rows": False}
    opt = proptim.RMSprop([table], lr=0.1, publish=[t16], backend=backend, **more)
    for k in range(5):
        opt.step([proptim.Rows([k, 7], np.ones((2, 9), np.float32))])
        assert_copy(table, t16)
    before = table.copy()
    opt.catch_up()
    assert (table[19] != before[19]).all()
    assert_copy(table, t16)


def test_skipped_steps(backend):
    """A step that is skipped or refused writes no copy."""
    w, w16 = np.ones(3, np.float32), np.zeros(3, BF16)
    opt = proptim.SGD([w], lr=0.5, publish=[w16], backend=backend, nonfinite="skip")
    w16[:] = 7.0
    opt.step([np.full(3, np.nan, np.float32)])
    with pytest.raises(ValueError, match="shape"):
        opt.step([np.ones(4, np.float32)])
    assert (w16 == 7.0).all()


def test_load_sets_copies(backend, tmp_path):
    """So that a model that was restored before is what is published."""
    w, w16 = np.ones(9, np.float32), np.zeros(9, BF16)
    opt = proptim.Adam([w], publish=[w16], backend=backend)
    opt.step([np.ones(9, np.float32)])
    opt.save(tmp_path / "run.npz")
    for load in (lambda: opt.load(tmp_path / "run.npz"), lambda: opt.load_state_dict(opt.state_dict())):
        w[:] = 2.0
        load()
        assert (w16 == 2.0).all()
    plain = proptim.Adam([np.ones(9, np.float32)], backend=backend)
    plain.load(tmp_path / "run.npz")  # the file is that of an optimizer without copies
    assert "publish" not in opt.state_dict()


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_of_the_optimizer(backend, way):
    params, copies = start()
    opt = proptim.Adam(params, publish=copies, backend=backend)
    other, others, halves = way((opt, params, copies))
    grads = gradients(params, 0)
    opt.step(grads)
    other.step(grads)
    for w, v, w16, v16 in zip(params, others, copies, halves, strict=True):
        assert w.tobytes() == v.tobytes()
        if w16 is not None:
            assert not np.shares_memory(w16, v16)
            assert_copy(v, v16)


def test_groups_that_are_added_and_removed(backend):
    """Those that are added later have no copies; copies go with their parameters."""
    params, copies = start()
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.1}]
    opt = proptim.SGD(groups, lr=0.5, publish=copies, backend=backend)
    more = np.ones(4, np.float32)
    opt.add_param_group({"params": [more]})
    with pytest.raises(ValueError, match=r"share memory"):
        opt.add_param_group({"params": [np.zeros(4, np.float32), copies[1]]})
    opt.remove_param_group(0)
    left = [*params[2:], more]
    copies[0][:] = 7.0
    opt.step(gradients(left, 0))
    assert (copies[0] == 7.0).all()
    assert_copy(params[2], copies[2])


def test_tensors(backend):
    """Copies that are tensors: autograd is told, and one that was given other memory is refused."""
    w, w16 = torch.ones(5), torch.zeros(5, dtype=torch.bfloat16)
    opt = proptim.SGD([w], lr=0.5, publish=[w16], backend=backend)
    assert w16.tolist() == [1.0] * 5
    for _ in range(3):
        before = w16._version
        opt.step([torch.ones(5)])
        assert w16._version > before
        assert w16.tolist() == w.to(torch.bfloat16).tolist()
    w16.data = torch.zeros(5, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"^publish\[0\] has been given other memory since the optimizer was made"):
        opt.step([torch.ones(5)])
    assert w.tolist() == [-0.5] * 5


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (lambda w: np.zeros(3, BF16), TypeError, "publish is ndarray; expected a list like params"),
        (lambda w: "ab", TypeError, "publish is str; expected a list like params"),
        (lambda w: [], ValueError, "publish has 0 arrays; expected 2, one per parameter"),
        (lambda w: {"a": None}, ValueError, "publish is a dict, but the parameters have no names"),
        (
            lambda w: [np.zeros(3, np.float32), None],
            TypeError,
            r"publish\[0\] is float32; expected bfloat16 or float16",
        ),
        (
            lambda w: [np.zeros(4, BF16), None],
            ValueError,
            r"publish\[0\] has shape \(4,\); expected \(3,\), the shape of",
        ),
        (
            lambda w: [None, np.zeros(3, BF16)],
            TypeError,
            r"publish\[1\] is for params\[1\], which is float64; expected",
        ),
        (lambda w: [7, None], TypeError, r"publish\[0\] is "),
        (lambda w: [w[0].view(np.float16)[:3], None], ValueError, r"share memory"),
        (lambda w: [np.broadcast_to(np.zeros((), BF16), 3), None], ValueError, r"publish\[0\]"),
    ],
)
def test_what_is_refused(backend, given, error, message):
    """With nothing changed."""
    params = [np.ones(3, np.float32), np.ones(3)]
    with pytest.raises(error, match=message):
        proptim.SGD(params, lr=0.1, publish=given(params), backend=backend)
    assert (params[0] == 1).all()


def test_refused_later():
    """Gradients in the memory of a copy, a second copy in the same memory, bad gradients, and publish in a group."""
    w, v, w16 = np.ones(3, np.float32), np.ones(3, np.float32), np.full(3, 7.0, BF16)
    with pytest.raises(ValueError, match="share memory"):
        proptim.SGD([w, v], lr=0.1, publish=[w16, w16])
    with pytest.raises(ValueError, match="shape"):
        proptim.SGD([w], lr=0.1, publish=[w16], grads=[np.ones(4, np.float32)])
    with pytest.raises(ValueError, match="publish is an option of the whole optimizer, not of a group"):
        proptim.SGD([{"params": [w], "publish": [w16]}], lr=0.1)
    assert (w16 == 7.0).all()
    opt = proptim.SGD([w], lr=0.1, publish=[w16])
    with pytest.raises(ValueError, match="share memory"):
        opt.step([w16])
    with pytest.raises(
        TypeError, match=r"^publish is not an argument of proptim.torch.SGD; expected parameters of bfloat16"
    ):
        proptim.torch.SGD([torch.ones(3)], publish=[w16])
