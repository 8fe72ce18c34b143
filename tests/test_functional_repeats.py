"""Calls like an earlier one of every kind of storage: repeated without the checks, with their bits and refusals."""

from __future__ import annotations

import gc
import threading
import weakref

import ml_dtypes
import numpy as np
import pytest
import torch
from calls import CASES, OF_CALL, OF_INIT, STAGED

from proptim import _backend, functional
from proptim.cli import selftest

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(bool(_backend.missing_core), reason=_backend.missing_core or ""),
]

BF16 = np.dtype(ml_dtypes.bfloat16)
AT_RANDOM = {"rounding": "stochastic", "seed": 2**64 - 3}
KINDS = {
    "split": (BF16, BF16, STAGED, None),
    "split, state of 16 bits": (BF16, BF16, {"state_dtype": "bfloat16", "ema": 0.75}, None),
    "bfloat16 and float32": (BF16, "f4", {"master": "float32", **STAGED}, None),
    "bfloat16 alone": (BF16, BF16, {"master": None, "state_dtype": "bfloat16", **AT_RANDOM}, None),
    "float16": ("f2", "f2", {"state_dtype": "bfloat16", **STAGED, **AT_RANDOM}, None),
    "float16 alone": ("f2", BF16, {"master": None}, None),
    "state of 16 bits": ("f4", "f4", {"state_dtype": "bfloat16", **AT_RANDOM}, BF16),
    "state of 8 bits": ("f4", BF16, {"state_dtype": "int8", **STAGED}, np.uint16),
    "state of 8 bits at random": (BF16, "f4", {"state_dtype": "int8", **AT_RANDOM}, None),
    "copy": ("f4", "f8", {"cast_grads": True, "ema": 0.5}, np.float16),
    "float64": ("f8", "f4", {"state_dtype": "bfloat16", **AT_RANDOM}, None),
}
"""The dtypes of parameter and gradient, options, and the dtype of the copy if there is one."""


def without(options, *keys):
    return {key: value for key, value in options.items() if key not in keys}


def made(name, options, kind, shape):
    """Arguments of a call: parameter, gradient and the others by name; and the options of the call."""
    dtype, of_grad, more, copied = KINDS[kind]
    if options.get("variant") == "irprop+":
        options = {**options, "variant": "irprop-"}
    if more.get("state_dtype") == "int8":
        options = selftest.in_one_byte(name, options)
    options = {**more, **options}
    rng = np.random.default_rng(7)
    w = rng.standard_normal(shape).astype("f4").astype(dtype)
    arrays = {"param": w, "grad": rng.standard_normal(shape).astype("f4").astype(of_grad)}
    arrays |= getattr(functional, name).init(w, **without(options, *OF_CALL))
    if copied is not None:
        arrays["publish"] = np.zeros(shape, copied)
    return arrays, without(options, *OF_INIT)


def copies(arrays):
    return {name: array.copy() for name, array in arrays.items()}


def repeat(name, arrays, options):
    """Whether a call is repeated; it is made only then."""
    arrays = dict(arrays)
    return getattr(functional, name).alike.step((arrays.pop("param"), arrays.pop("grad")), {**arrays, **options})


def checked(name, arrays, options):
    """The call with all its checks."""
    arrays = dict(arrays)
    getattr(functional, name)._step(arrays.pop("param"), arrays.pop("grad"), **arrays, **options)


def call(name, arrays, options):
    arrays = dict(arrays)
    getattr(functional, name)(arrays.pop("param"), arrays.pop("grad"), **arrays, **options)


def bits(arrays):
    return {name: array.tobytes() for name, array in arrays.items()}


def as_tensor(array):
    """A tensor that shares the memory of an array."""
    if array.dtype == BF16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_bits_of_the_checked_call(name, options, kind):
    """Of parameter, gradient, state, scales, master, average and copy, at every step; with arrays and with tensors."""
    for shape in ((), (0, 3), (37, 5), (70, 60)):  # the last has several blocks of numbers that share a scale
        arrays, given = made(name, options, kind, shape)
        call(name, copies(arrays), {**given, "step": 2})
        mine, theirs = copies(arrays), copies(arrays)
        for step in (2, 3, 1000):
            grad = np.random.default_rng(step).standard_normal(shape).astype("f4")
            for side in (mine, theirs):
                side["grad"][...] = grad.astype(side["grad"].dtype)
            seen = mine
            if step == 3:  # those that torch has
                seen = {n: a if a.dtype in ("i1", "u1", "u2") else as_tensor(a) for n, a in mine.items()}
            assert repeat(name, seen, {**given, "step": step})
            checked(name, theirs, {**given, "step": step})
            assert bits(mine) == bits(theirs)


def test_the_step_decides_what_is_random():
    """Without its number nothing is repeated, and another number or seed gives other bits."""
    arrays, options = made("sgd", {"momentum": 0.5}, "bfloat16 alone", (50,))
    call("sgd", copies(arrays), {**options, "step": 2})
    found = set()
    for step in (2, 3, 4):
        mine = copies(arrays)
        assert repeat("sgd", mine, {**options, "step": step})
        found.add(mine["param"].tobytes())
    assert len(found) == 3
    before = bits(arrays)
    assert not repeat("sgd", arrays, options)
    assert not repeat("sgd", arrays, {**options, "step": 2, "seed": 4})
    with pytest.raises(TypeError, match=r"^sgd rounds at random by the number of the step; expected step="):
        call("sgd", arrays, options)
    assert bits(arrays) == before


def locked(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def bad_scale(number):
    def change(a):
        scales = a["exp_avg_sq_scale"].copy()
        scales[-1] = number
        return {"exp_avg_sq_scale": scales}

    return change


REFUSED = {
    "split": [
        (lambda a: {"master": a["master"].view("u2")[:, :3]}, ValueError, r"^master has shape \(60, 3\); expected"),
        (lambda a: {"master": a["master"].astype("f8")}, TypeError, r"^master is float64; expected float32 or uint16"),
        (lambda a: {"master": a["master"].view("f2")}, TypeError, r"^master is float16; expected float32 or uint16"),
        (lambda a: {"master": locked(a["master"])}, ValueError, r"^master is read-only; expected"),
        (lambda a: {"master": a["param"]}, ValueError, r"^master and param share memory"),
        (lambda a: {"master": a["param"].view("u2")}, ValueError, r"^master and param share memory"),
        (lambda a: {"master": a["exp_avg"].view("u2")[:, ::2]}, ValueError, r"^master and exp_avg share memory"),
        (lambda a: {"grad": a["master"].view(BF16)}, ValueError, r"^grad and master share memory"),
        (lambda a: {"grad": a["grad"].view("u2")}, TypeError, r"^grad is uint16; supported"),
        (lambda a: {"grad": a["grad"].astype("f8")}, TypeError, r"^grad is float64; expected bfloat16"),
        (lambda a: {"grad": a["grad"][:, :3]}, ValueError, r"^grad has shape"),
        (lambda a: {"param": a["param"].view("u2")}, TypeError, r"^param is uint16; supported"),
        (lambda a: {"param": a["param"].astype("f4")}, TypeError, r"^master is given, and param is float32"),
        (lambda a: {"param": a["param"].view("f2")}, TypeError, r"^master is uint16; expected float32"),
        (lambda a: {"param": locked(a["param"])}, ValueError, r"^param is read-only"),
        (lambda a: {"exp_avg": a["exp_avg"].astype("f8")}, TypeError, r"^exp_avg is float64; expected float32"),
        (lambda a: {"publish": np.zeros((60, 70), BF16), "master": None}, TypeError, r"^publish is for param, which"),
        (lambda a: {"publish": np.zeros((60, 70), BF16)}, TypeError, r"^publish is for param, which"),
        (lambda a: {"master": None, "publish": a["master"]}, TypeError, r"^publish is for param, which"),
    ],
    "copy": [
        (lambda a: {"publish": locked(a["publish"])}, ValueError, r"^publish is read-only"),
        (lambda a: {"publish": a["publish"][:, :3]}, ValueError, r"^publish has shape"),
        (lambda a: {"publish": a["param"].view("f2")[:, ::2]}, ValueError, r"^publish and param share memory"),
        (lambda a: {"publish": None, "master": a["publish"]}, TypeError, r"^master is given, and param is float32"),
        (lambda a: {"average": a["average"].astype("f2")}, TypeError, r"^average is float16; expected float32"),
        (lambda a: {"grad": a["publish"]}, ValueError, r"^grad and publish share memory"),
    ],
    "state of 16 bits": [
        (lambda a: {"exp_avg": a["exp_avg"].astype("f8")}, TypeError, r"^exp_avg is float64; expected float32"),
        (lambda a: {"exp_avg": a["exp_avg_sq"]}, ValueError, r"^exp_avg_sq and exp_avg share memory"),
        (lambda a: {"exp_avg": a["exp_avg_sq"].view("u2")}, ValueError, r"^exp_avg_sq and exp_avg share memory"),
        (lambda a: {"exp_avg": a["publish"]}, ValueError, r"^publish and exp_avg share memory"),
    ],
    "state of 8 bits": [
        (bad_scale(-1.0), ValueError, r"^exp_avg_sq_scale has numbers that are no scales; expected finite ones >= 0"),
        (bad_scale(np.nan), ValueError, r"^exp_avg_sq_scale has numbers that are no scales; expected finite ones"),
        (bad_scale(np.inf), ValueError, r"^exp_avg_sq_scale has numbers that are no scales; expected finite ones"),
        (lambda a: {"exp_avg_scale": a["exp_avg_scale"][1:]}, ValueError, r"^exp_avg_scale is float32 of shape \(16,"),
        (lambda a: {"exp_avg_scale": a["exp_avg_scale"][None]}, ValueError, r"^exp_avg_scale is float32 of shape \(1"),
        (lambda a: {"exp_avg_scale": a["exp_avg_scale"].astype("f8")}, ValueError, r"^exp_avg_scale is float64"),
        (lambda a: {"exp_avg_scale": locked(a["exp_avg_scale"])}, ValueError, r"^exp_avg_scale is read-only"),
        (lambda a: {"exp_avg_scale": a["exp_avg_sq_scale"]}, ValueError, r"exp_avg_sq_scale and exp_avg_scale share"),
        (lambda a: {"exp_avg_scale": None}, TypeError, r"^exp_avg has one byte and no exp_avg_scale; expected both"),
        (lambda a: {"exp_avg": None}, TypeError, r"^adam has no exp_avg"),
        (lambda a: {"exp_avg": a["exp_avg"].view("u1")}, ValueError, r"^exp_avg is uint8 of shape"),
        (lambda a: {"exp_avg": a["exp_avg_sq"].view("i1")}, ValueError, r"^exp_avg_sq and exp_avg share memory"),
        (lambda a: {"exp_avg": np.asfortranarray(a["exp_avg"])}, ValueError, r"^exp_avg is not in C order"),
        (lambda a: {"exp_avg": a["exp_avg"].ravel()}, ValueError, r"^exp_avg is int8 of shape"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change", "error", "message"),
    [pytest.param(kind, *each, id=f"{kind}-{i}") for kind, all_ in REFUSED.items() for i, each in enumerate(all_)],
)
def test_what_is_refused(kind, change, error, message):
    """What the checks refuse, right after a call that differs in nothing else; nothing has changed then."""
    arrays, options = made("adam", {}, kind, (60, 70))
    options["step"] = 2
    call("adam", copies(arrays), options)
    assert repeat("adam", copies(arrays), options)
    before = bits(arrays)
    given = {**arrays, **change(arrays)}
    assert not repeat("adam", given, options)
    with pytest.raises(error, match=message):
        call("adam", given, options)
    assert bits(arrays) == before


def test_the_state_word_of_rprop():
    """Zeros are refused in 16 bits too; and in one byte another grid than that of the hyperparameters."""
    arrays, options = made("rprop", {}, "split, state of 16 bits", (6,))
    call("rprop", copies(arrays), options)
    assert repeat("rprop", copies(arrays), options)
    for zero in (0.0, -0.0):
        arrays["step_word"][:] = zero
        assert not repeat("rprop", arrays, options)
        with pytest.raises(ValueError, match=r"^step_word has zeros, which no step leaves"):
            call("rprop", arrays, options)
    arrays, options = made("rprop", {}, "state of 8 bits", (6,))
    call("rprop", copies(arrays), options)
    assert repeat("rprop", copies(arrays), options)
    for i in range(2):
        other = copies(arrays)
        other["step_word_scale"][i] *= 2
        before = bits(other)
        assert not repeat("rprop", other, options)
        with pytest.raises(ValueError, match=r"^step_word_scale is .*, the grid of etas and step_sizes"):
            call("rprop", other, options)
        assert bits(other) == before


def test_arrays_that_are_not_used():
    """A call with an array whose hyperparameter is off is never repeated, in one plane or two."""
    arrays, options = made("adam", {}, "split", (6,))
    for more in ({"max_exp_avg_sq": np.ones(6, "f4")}, {"max_exp_avg_sq": np.ones(6, BF16)}):
        for _ in range(2):
            call("adam", {**copies(arrays), **more}, {**options, "step": 2, "amsgrad": False})
        assert not repeat("adam", {**copies(arrays), **more}, {**options, "step": 2, "amsgrad": False})


def test_other_memory_at_each_call():
    """Arrays that were given other memory, and views of 16 bits that are not one run or at odd places."""
    arrays, options = made("sgd", {"momentum": 0.5}, "bfloat16 alone", (8,))
    options["step"] = 2
    call("sgd", copies(arrays), options)
    for change in (lambda a: np.repeat(a, 2)[::2], lambda a: a[::-1]):
        given = {n: change(a.copy()) for n, a in arrays.items()}
        theirs = copies(given)
        assert not repeat("sgd", given, options)
        call("sgd", given, options)
        checked("sgd", theirs, options)
        assert bits(given) == bits(theirs)
    odd = {n: np.zeros(a.nbytes + 1, "u1")[1:].view(a.dtype) for n, a in arrays.items()}
    for n, a in arrays.items():
        odd[n][...] = a
    assert repeat("sgd", odd, options)
    mine = copies(arrays)
    for a in mine.values():
        a.resize(3, refcheck=False)
    theirs = copies(mine)
    assert repeat("sgd", mine, options)
    checked("sgd", theirs, options)
    assert bits(mine) == bits(theirs)
    checked("sgd", arrays, options)
    assert bits(odd) == bits(arrays)


def test_scales_at_odd_places():
    """They are left to the checks."""
    arrays, options = made("adam", {}, "state of 8 bits", (60, 70))
    options["step"] = 2
    call("adam", copies(arrays), options)
    room = np.zeros(4 * 17 + 1, "u1")
    given = {**copies(arrays), "exp_avg_scale": room[1:].view("f4")}
    given["exp_avg_scale"][...] = arrays["exp_avg_scale"]
    assert not repeat("adam", given, options)


@pytest.mark.parametrize("kind", ["split", "copy", "state of 8 bits"])
def test_nothing_is_kept_alive(kind):
    """No array of a call is held after it, nor a tensor."""
    arrays, options = made("adam", {}, kind, (60, 70))
    if kind != "state of 8 bits":
        arrays["exp_avg"] = as_tensor(arrays["exp_avg"])
    options["step"] = 2
    call("adam", arrays, options)
    assert repeat("adam", arrays, options)
    gone = [weakref.ref(a) for a in arrays.values()]
    del arrays
    gc.collect()
    assert [r() for r in gone] == [None] * len(gone)


def test_tensors():
    """autograd is told of all that is written, once, and of a gradient only if it is set to zero."""
    for zero in (False, True):
        w = torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
        grad, master, momentum = torch.ones(5, dtype=torch.bfloat16), torch.ones(5), torch.zeros(5)
        options = {"lr": 0.5, "momentum": 0.5, "zero_grads": zero}
        arrays = {"param": w, "grad": grad, "master": master, "momentum_buffer": momentum}
        call("sgd", arrays, options)
        before = [t._version for t in arrays.values()]
        assert repeat("sgd", arrays, options)
        after = [t._version for t in arrays.values()]
        assert after == [before[0] + 1, before[1] + zero, before[2] + 1, before[3] + 1]
        with torch.inference_mode():
            inner = {n: t.detach().clone() for n, t in arrays.items()}
        assert repeat("sgd", inner, options)
    refused = [
        (torch.ones(5, device="meta"), r"^grad is on meta; expected a CPU tensor"),
        (torch._neg_view(torch.ones(5)), r"^grad is the negative of another tensor"),
        (torch.ones(5, dtype=torch.int8), r"^grad is int8; supported"),
        (torch.ones(5, dtype=torch.uint16), r"^grad is uint16; supported"),
    ]
    arrays["grad"] = torch.ones(5)
    call("sgd", arrays, {"lr": 0.5, "momentum": 0.5})
    for grad, message in refused:
        given = {**arrays, "grad": grad}
        assert not repeat("sgd", given, {"lr": 0.5, "momentum": 0.5})
        with pytest.raises(TypeError, match=message):
            call("sgd", given, {"lr": 0.5, "momentum": 0.5})
    assert not repeat("sgd", {**arrays, "grad": torch.ones(5).to_sparse()}, {"lr": 0.5, "momentum": 0.5})  # rows


@pytest.mark.parametrize("kind", ["split", "state of 8 bits", "copy"])
def test_two_threads(kind):
    """The same calls at once give the bits of one after the other."""
    arrays, options = made("adam", {}, kind, (60, 70))
    options = without(options, "zero_grads")

    def run(own):
        for step in range(1, 200):
            call("adam", own, {**options, "step": step, "lr": 0.1 / (step % 70 + 1)})

    all_ = [copies(arrays) for _ in range(3)]
    threads = [threading.Thread(target=run, args=(own,)) for own in all_[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(all_[0])
    assert bits(all_[0]) == bits(all_[1]) == bits(all_[2])
