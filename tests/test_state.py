"""State: a plain snapshot, from which runs resume bit for bit, and which loads completely or not at all."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
import pickle
import re
from functools import partial

import numpy as np
import pytest
import torch

import proptim
from proptim import _backend, schedules
from proptim.cli.selftest import OPTIONS, STAGES, gradient

NAMES = list(proptim.OPTIMIZERS)
CASES = [pytest.param(name, options, id=f"{name}-{i}") for name in NAMES for i, options in enumerate(OPTIONS[name])]
BACKENDS = [backend for backend, missing in _backend.available_backends().items() if not missing]
LOSSES = (3.0, 2.0, 2.5, 1.0, 1.5, 0.5)
HALF = len(LOSSES) // 2
SHAPES = {"w": (3, 7), "b": (), "u": (40,)}


def frozen(tree):
    """What compares equal only for the same values, types and bytes."""
    if isinstance(tree, dict):
        return {key: frozen(node) for key, node in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree), [frozen(node) for node in tree]
    if isinstance(tree, np.ndarray):
        return tree.dtype, tree.shape, tree.tobytes()
    return type(tree), repr(tree)


class Run:
    """An optimizer with its parameters and the gradients of every step, some of them missing."""

    def __init__(self, name, options, dtype=np.float64, params=None):
        rng = np.random.default_rng(1)
        fresh = {k: np.array(rng.standard_normal(s), dtype) for k, s in SHAPES.items()}
        self.params = fresh if params is None else params
        self.grads = [
            {k: gradient(rng, max(p.size, 1), dtype).reshape(p.shape) for k, p in fresh.items()} for _ in LOSSES
        ]
        self.grads[1]["w"] = None
        self.opt = proptim.OPTIMIZERS[name](self.params, **options)

    def go(self, steps):
        for k in steps:
            self.opt.step({n: None if g is None else g.copy() for n, g in self.grads[k].items()}, loss=LOSSES[k])
        return self

    def bits(self):
        return frozen([list(self.params.values()), self.opt.state_dict()])


def by_state_dict(opt, fresh, tmp_path):
    fresh.load_state_dict(opt.state_dict())


def by_file(opt, fresh, tmp_path):
    opt.save(tmp_path / "state.npz")
    fresh.load(str(tmp_path / "state.npz"))


def by_json(opt, fresh, tmp_path):
    """A state_dict with arrays as lists and keys as strings, as some programs write it, converted back."""
    saved = opt.state_dict()
    text = json.loads(json.dumps(saved["param_groups"]))
    fresh.load_state_dict(saved | {"param_groups": text})


@pytest.mark.parametrize("way", [by_state_dict, by_file, by_json])
@pytest.mark.parametrize("stage", STAGES, ids=["plain", "staged"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_resume_is_exact(name, options, stage, way, tmp_path):
    """k + m steps are k steps, saved and loaded into a new optimizer, and m more."""
    for dtype in (np.float32, np.float64):
        whole = Run(name, {**options, **stage}, dtype).go(range(len(LOSSES)))
        first = Run(name, {**options, **stage}, dtype).go(range(HALF))
        second = Run(name, {**options, **stage}, dtype, {k: p.copy() for k, p in first.params.items()})
        way(first.opt, second.opt, tmp_path)
        assert second.opt.steps == HALF
        assert second.bits() == first.bits()
        assert second.go(range(HALF, len(LOSSES))).bits() == whole.bits()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_resume_elsewhere(name, options):
    """A run goes on with the same bits on every other backend and number of threads."""
    places = [{"backend": b, "threads": 3 if b == "c" else 1} for b in BACKENDS]
    whole = Run(name, options).go(range(len(LOSSES))).bits()
    for here in places:
        first = Run(name, options | here).go(range(HALF))
        for there in places:
            second = Run(name, options | there, params={k: p.copy() for k, p in first.params.items()})
            second.opt.load_state_dict(first.opt.state_dict())
            assert second.go(range(HALF, len(LOSSES))).bits() == whole


@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_pickle_and_deepcopy(name, options, pending):
    """A copy goes on alone with the same bits, steps its own arrays, and keeps a change not yet taken up."""
    run = Run(name, options).go(range(HALF))
    if pending:
        asked = {"momentum": 0.3, "amsgrad": True, "weight_decay": 0.1}
        run.opt.param_groups[0].update({k: v for k, v in asked.items() if k in run.opt.param_groups[0]})
    before = run.bits()
    for twin in (pickle.loads(pickle.dumps(run)), copy.deepcopy(run)):
        assert twin.opt.param_groups[0]["params"][0] is twin.params["w"]
        assert twin.bits() == before
        twin.opt.step(loss=0.5)  # with the gradients of before
        assert run.bits() == before != twin.bits()
        other = copy.deepcopy(run)
        other.opt.step(loss=0.5)
        assert twin.bits() == other.bits()


def test_deepcopy_with_the_model():
    """Copied together with its model, the copy steps the copied model, and reads its copied gradients."""
    model = {"params": [np.ones(3)], "grads": [np.ones(3)]}
    opt = proptim.SGD(model["params"], grads=model["grads"], lr=1.0)
    twin, twin_opt = copy.deepcopy((model, opt))
    twin["grads"][0] *= -1
    twin_opt.step()
    assert (twin["params"][0] == 2).all()
    assert (model["params"][0] == 1).all()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_state_dict_is_plain(name, options):
    """Nothing but dicts, lists, tuples, arrays, numbers, strings and None, whatever the hyperparameters were."""

    def check(tree):
        assert type(tree) in (dict, list, tuple, np.ndarray, int, float, str, bool, type(None)), tree
        for item in tree.items() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ():
            check(item)

    check(Run(name, options).go([0]).opt.state_dict())
    numbers = {k: np.float32(0.5) for k in ("weight_decay", "clip_value")} | {"maximize": np.True_}
    check(Run(name, options | numbers).go([0]).opt.state_dict())


@pytest.mark.parametrize(("name", "options"), CASES)
def test_state_dict_is_a_snapshot(name, options):
    """Later steps do not change it, and writing to it does not change the optimizer."""
    run = Run(name, options).go(range(HALF))
    saved = run.opt.state_dict()
    before, bits = frozen(saved), run.bits()
    run.go([HALF])
    assert frozen(saved) == before
    other = Run(name, options).go(range(HALF))
    saved = other.opt.state_dict()
    for state in saved["state"].values():
        for array in state.values():
            np.asarray(array)[...] = 7
    assert other.bits() == bits


def test_loading_copies():
    """Loading copies: two optimizers that loaded one state_dict do not share arrays."""
    run = Run("rmsprop", {}).go([0])
    saved, twin = run.opt.state_dict(), Run("rmsprop", {})
    twin.opt.load_state_dict(saved)
    before = frozen(saved)
    twin.go([1])
    assert frozen(saved) == before


def test_state_is_by_name_or_index():
    """`state` has names where params has names, otherwise indices; state_dict always has indices, as torch's."""
    run = Run("rmsprop", {}).go([0])
    assert list(run.opt.state) == ["w", "b", "u"]
    saved = run.opt.state_dict()
    assert list(saved["state"]) == saved["param_groups"][0]["params"] == [0, 1, 2]
    assert saved["param_groups"][0]["param_names"] == ["w", "b", "u"]
    bare = proptim.RMSprop([p.copy() for p in run.params.values()])
    bare.load_state_dict(saved)
    assert list(bare.state) == [0, 1, 2]
    assert (bare.state[2]["square_avg"] == run.opt.state["u"]["square_avg"]).all()


def test_schedules_go_on():
    """Of a schedule its value is saved; that of the loading optimizer goes on at the step of the saved one."""
    options = {"lr": schedules.linear(1.0, 0.0, 10), "momentum": schedules.constant(0.5), "weight_decay": 0.1}
    whole = Run("sgd", options).go(range(len(LOSSES)))
    first = Run("sgd", options).go(range(HALF))
    saved = first.opt.state_dict()
    assert [saved["param_groups"][0][key] for key in ("lr", "momentum")] == [0.7, 0.5]
    second = Run("sgd", options, params=first.params)
    second.opt.load_state_dict(saved)
    assert second.opt.lr == 0.7
    assert second.go(range(HALF, len(LOSSES))).bits() == whole.bits()
    fixed = Run("sgd", {**options, "lr": 0.25})
    fixed.opt.load_state_dict(saved)
    assert fixed.opt.lr == 0.7


def test_skips_are_saved():
    """`skipped` goes with the state."""
    opt = proptim.SGD([np.ones(1)], nonfinite="skip")
    opt.step([np.array([math.inf])])
    twin = proptim.SGD([np.ones(1)], nonfinite="skip")
    twin.load_state_dict(opt.state_dict())
    assert (twin.skipped, twin.steps) == (1, 0)


def test_diverged_runs_can_be_saved(tmp_path):
    """Infinite and missing numbers are state as well: irprop+ after a loss that was NaN."""
    for loss in (math.nan, math.inf, -math.inf):
        opt = proptim.Rprop([np.ones(3)], variant="irprop+")
        opt.step([np.array([math.nan, math.inf, 1.0])], loss=loss)
        opt.save(tmp_path / "state.npz")
        twin = proptim.Rprop([np.ones(3)], variant="irprop+")
        twin.load(tmp_path / "state.npz")
        assert frozen(twin.state_dict()) == frozen(opt.state_dict())


def test_wider_parameters_take_narrower_state():
    """State in float32 loads into float64 parameters without change; the way back would lose bits."""
    narrow, wide = Run("adam", {}, np.float32).go([0]), Run("adam", {}, np.float64)
    wide.opt.load_state_dict(narrow.opt.state_dict())
    assert (wide.opt.state["u"]["exp_avg"] == narrow.opt.state["u"]["exp_avg"]).all()
    with pytest.raises(TypeError, match="'exp_avg' in state 0 of state_dict is float64; expected float32, the dtype"):
        narrow.opt.load_state_dict(wide.opt.state_dict())


# What does not fit ---------------------------------------------------------------------------------------------------


def refused(opt, params, error, message, load):
    """`load` raises and leaves optimizer and parameters as they were."""
    before = frozen([list(params), opt.state_dict()])
    with pytest.raises(error, match=message):
        load()
    assert frozen([list(params), opt.state_dict()]) == before


def is_the_same(name, other):
    """Whether the state of `other` has nothing that `name` does not, and lacks nothing: Adam's, AdamW's and RAdam's."""
    mine, theirs = proptim.OPTIMIZERS[name], proptim.OPTIMIZERS[other]
    needed = {*mine.states} - {*mine.optional}
    return (
        theirs.hyper.keys() <= mine.hyper.keys()
        and {*theirs.states} <= {*mine.states}
        and needed <= {*theirs.states} - {*theirs.optional}
        and mine.clock_start.keys() == theirs.clock_start.keys()
    )


@pytest.mark.parametrize("other", NAMES)
@pytest.mark.parametrize("name", NAMES)
def test_state_of_another_class(name, other):
    """State of another rule is refused by the name of that; where it has none by what this one does not know."""
    run, foreign = Run(name, {}).go([0]), Run(other, {}).go([0, 1])
    saved = foreign.opt.state_dict()
    assert saved["rule"] == ("Adam" if other == "adamw" else type(foreign.opt).__name__)
    bare = {key: value for key, value in saved.items() if key != "rule"}
    for given, known, message in (
        (saved, {name, other} <= {"adam", "adamw"} or name == other, "state_dict is that of '.*'; expected one of "),
        (bare, is_the_same(name, other), "unknown to|has no '|state has the arrays"),
    ):
        if known:
            run.opt.load_state_dict(given)
            assert run.opt.steps == 2
        else:
            refused(run.opt, run.params.values(), ValueError, message, partial(run.opt.load_state_dict, given))


class Halving(proptim.SGD):
    """A class of somebody's own, with a rule of its own."""

    @staticmethod
    def rule(param, grad, momentum_buffer, lr, momentum, undamped, nesterov):
        return param / 2, momentum_buffer


def test_state_of_a_class_of_ones_own():
    """It is known by the name of the class, wherever that lives."""
    opt = Halving([np.ones(2)], lr=0.1, backend="numpy")
    opt.step([np.ones(2)])
    saved = opt.state_dict()
    assert saved["rule"] == "Halving"
    other = Halving([np.ones(2)], lr=0.1, backend="numpy")
    other.load_state_dict(saved)
    assert other.steps == 1
    with pytest.raises(ValueError, match="state_dict is that of 'Halving'; expected one of SGD"):
        proptim.SGD([np.ones(2)], lr=0.1).load_state_dict(saved)


@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
@pytest.mark.parametrize("name", NAMES)
def test_squares_are_not_negative(name, dtype):
    """State of which a root is taken is refused where it is negative; averages of gradients may be."""
    cls = proptim.OPTIMIZERS[name]
    options = {"amsgrad": True} if "amsgrad" in cls.hyper else {"momentum": 0.5} if "momentum" in cls.hyper else {}
    options |= {"centered": True} if "centered" in cls.hyper else {}
    opt = cls([np.ones(2, dtype)], **options)
    opt.step([np.ones(2, dtype)])
    for array in [*opt.state_dict()["state"][0]]:
        saved = opt.state_dict()
        if array == "step_size" or not isinstance(saved["state"][0][array], np.ndarray):
            continue
        saved["state"][0][array][1] = -1e-3
        if array in cls.squares:
            message = f"'{array}' in state 0 of state_dict has negative elements; expected none"
            refused(opt, opt.param_groups[0]["params"], ValueError, message, partial(opt.load_state_dict, saved))
        else:
            opt.load_state_dict(saved)
    roots = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf"}
    assert cls.squares == roots & {*cls.states}


def test_rprop_of_torch_has_no_variant():
    """torch's Rprop is irprop-, which its state does not say; that another variant goes on is told."""
    saved = proptim.Rprop([np.ones(2)], variant="irprop-").state_dict()
    del saved["param_groups"][0]["variant"], saved["rule"]
    proptim.Rprop([np.ones(2)], variant="irprop-").load_state_dict(saved)
    opt = proptim.Rprop([np.ones(2)])
    with pytest.warns(UserWarning, match=r"group 0 .* has no 'variant'.* goes on with variant='rprop-'") as told:
        opt.load_state_dict(saved)
    assert told[0].filename == __file__


def put(*path, value):
    """Replace the node at `path` in a state_dict; without value, remove it."""

    def change(saved):
        node = saved
        for key in path[:-1]:
            node = node[key]
        if value is REMOVED:
            del node[path[-1]]
        else:
            node[path[-1]] = value

    return change


REMOVED = object()
GROUP = ("param_groups", 0)
MISFITS = [
    ("adam", put("state", value=REMOVED), ValueError, 'state_dict has no "state" and "param_groups"'),
    ("adam", put("param_groups", value=[]), ValueError, "state_dict has 0 parameter groups; expected 1"),
    ("adam", put(*GROUP, "params", value=[0, 1]), ValueError, "group 0 of state_dict has 2 parameters; expected 3"),
    ("adam", put(*GROUP, "params", value=REMOVED), ValueError, 'group 0 of state_dict has no list "params"'),
    ("adam", put(*GROUP, "param_names", value=["w", "u", "b"]), ValueError, "group 0 of state_dict has the parameters"),
    ("adam", put(*GROUP, "nesterov", value=True), ValueError, "has the hyperparameter 'nesterov', unknown to Adam"),
    ("adam", put(*GROUP, "lr", value=-1.0), ValueError, "Invalid learning rate: -1.0"),
    ("adam", put(*GROUP, "betas", value=(0.9, 1.0)), ValueError, "Invalid beta parameter at index 1: 1.0"),
    ("adam", put("state", 0, value=[]), ValueError, "state 0 of state_dict is list; expected a dict"),
    ("adam", put("state", 0, "exp_avg", value=np.ones((7, 3))), ValueError, r"has shape \(7, 3\); expected \(3, 7\)"),
    ("adam", put("state", 2, "exp_avg", value=np.ones(40, complex)), TypeError, "is complex128; expected float64"),
    ("adam", put("state", 2, "exp_avg", value=[1.0] * 40), TypeError, "'exp_avg' in state 2 of state_dict is list"),
    ("adam", put("state", 2, "exp_avg", value=REMOVED), ValueError, "state 2 of state_dict has no 'exp_avg'"),
    ("adam", put("state", 2, "velocity", value=np.ones(40)), ValueError, "has the array 'velocity', unknown to Adam"),
    *[("adam", put("state", 1, "step", value=v), ValueError, "'step' in state 1 of state_dict is .*expected a count")
      for v in (-1, 1.5, math.inf, math.nan, torch.tensor(-1.0))],
    *[("adam", put("steps", value=v), ValueError, "'steps' of state_dict is .*expected a count") for v in (-1, 0.5)],
    ("rprop", put("state", 2, "prev", value=REMOVED), ValueError, "state has the arrays .*; expected prev and step"),
    *[("rprop", put("state", 1, "step_size", value=np.array(v)), ValueError, "step_size has values out of range")
      for v in (0.0, -0.1, 2.0**-51, 2.0**38, math.nan)],
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "error", "message"), MISFITS)
def test_misfits(name, change, error, message):
    """A state_dict that does not fit is refused in words, and nothing of it is taken over."""
    run = Run(name, {}).go(range(HALF))
    saved = Run(name, {"weight_decay": 0.1}).go([0]).opt.state_dict()
    change(saved)
    refused(run.opt, run.params.values(), error, message, lambda: run.opt.load_state_dict(saved))


def paths(tree, *path):
    """Every place in a state_dict."""
    for key, node in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(node, (dict, list)):
            yield from paths(node, *path, key)


JUNK = [REMOVED, None, -1, 1e300, math.nan, "x", b"x", [], {}, [1, 2], {"params": 0}, object(), np.ones(2), np.ones(0)]


@pytest.mark.filterwarnings("ignore:group 0 of state_dict has no 'variant'")
@pytest.mark.parametrize("name", NAMES)
def test_junk(name):
    """With any one value replaced by another object, loading fails and changes nothing, or the optimizer works."""
    options = OPTIONS[name][-1]
    good = Run(name, options).go([0]).opt.state_dict()
    run, before = None, None
    for path in paths(good):
        for junk in JUNK:
            saved = copy.deepcopy(good)
            put(*path, value=junk)(saved)
            if run is None:
                run = Run(name, options).go(range(HALF))
                before = run.bits()
            try:
                run.opt.load_state_dict(saved)
            except (TypeError, ValueError):
                assert run.bits() == before, (path, junk)
            else:
                run.go(range(HALF, len(LOSSES))).bits()
                run = None


@pytest.mark.parametrize("saved", [None, 3, [], "state", {}, {"state": {}}, Ellipsis], ids=repr)
def test_no_state_dict(saved):
    """What is no state_dict at all."""
    run = Run("sgd", {}).go([0])
    refused(run.opt, run.params.values(), ValueError, "state_dict has no", lambda: run.opt.load_state_dict(saved))


# Files ---------------------------------------------------------------------------------------------------------------


def test_files_hold_no_pickle(tmp_path):
    """A saved file opens with allow_pickle=False and holds the state arrays under plain names."""
    run = Run("adam", {"amsgrad": True}).go([0])
    run.opt.save(tmp_path / "state.npz")
    with np.load(tmp_path / "state.npz", allow_pickle=False) as file:
        assert (file["state/2/exp_avg"] == run.opt.state["u"]["exp_avg"]).all()
        assert json.loads(file["rest"].tobytes())["steps"] == 1


@pytest.mark.parametrize("name", ["sgd", "rprop", "adam"])
def test_damaged_files(name, tmp_path):
    """Truncated anywhere or with a byte flipped, a file is refused or reads as it was; nothing is taken over."""
    run, path = Run(name, OPTIONS[name][-1]).go([0]), tmp_path / "state.npz"
    run.opt.save(path)
    whole, before = path.read_bytes(), run.bits()
    damaged = [whole[:n] for n in range(0, len(whole), 41)]
    damaged += [whole[:n] + bytes([whole[n] ^ 0x55]) + whole[n + 1 :] for n in range(0, len(whole), 11)]
    for content in damaged:
        path.write_bytes(content)
        with contextlib.suppress(ValueError):
            run.opt.load(path)
        assert run.bits() == before


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


FOREIGN = {
    "empty": b"",
    "text": b"not an archive",
    "pickle": pickle.dumps({"state": {}}),
    "npz": npz(weights=np.ones(3)),
    "format": npz(rest=np.frombuffer(b'{"format": "another", "state": {}}', np.uint8)),
    "json": npz(rest=np.frombuffer(b"{", np.uint8)),
    "list": npz(rest=np.frombuffer(b"[]", np.uint8)),
    "objects": npz(rest=np.array([{}], object)),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files(kind, tmp_path):
    """A file that `save` did not write is refused by its name."""
    run, path = Run("adam", {}).go([0]), tmp_path / "foreign.npz"
    path.write_bytes(FOREIGN[kind])
    message = r"foreign\.npz cannot be read \(.*\); expected a file written by Optimizer\.save"
    refused(run.opt, run.params.values(), ValueError, message, lambda: run.opt.load(path))


def test_pairs_of_numpy_numbers_are_saved(tmp_path):
    """Numbers of NumPy within a pair too."""
    w = np.ones(2)
    opt = proptim.Rprop([w], step_sizes=(1e-6, np.int64(40)), etas=np.array([0.5, 1.25]))
    opt.save(tmp_path / "state.npz")
    other = proptim.Rprop([w])
    other.load(tmp_path / "state.npz")
    assert (other.step_sizes, other.etas) == ((1e-6, 40), (0.5, 1.25))


@pytest.mark.skipif(os.name != "posix", reason="no modes of files")
def test_save_keeps_the_mode(tmp_path):
    """A file that only its owner may read stays so."""
    run, path = Run("adam", {}).go([0]), tmp_path / "state.npz"
    run.opt.save(path)
    path.chmod(0o600)
    run.opt.save(path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("key", "value"), [
    ("lr", -1), ("lr", math.nan), ("lr", lambda step: -1.0), ("lr", "fast"), ("weight_decay", -1), ("clip_value", -1),
    ("lazy_rows", "no"), ("maximize", 2), ("ema", 2),
])  # fmt: skip
def test_what_could_not_be_loaded_is_not_saved(key, value, tmp_path):
    """A value in a group that the next step refuses is refused by what saves, in the same words; the old file stays."""
    run, path = Run("adam", {}).go([0]), tmp_path / "state.npz"
    opt = run.opt
    opt.save(path)
    before, kept = path.read_bytes(), opt.param_groups[-1].get(key)
    opt.param_groups[-1][key] = value
    with pytest.raises((TypeError, ValueError)) as told:
        run.go([1])
    for act in (lambda: opt.save(path), opt.state_dict):
        with pytest.raises(told.type, match=f"^{re.escape(str(told.value))}$"):
            act()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]
    twin = copy.deepcopy(opt)  # a copy is as the original is
    with pytest.raises(told.type, match=f"^{re.escape(str(told.value))}$"):
        twin.step([np.zeros_like(p.array) for p in twin._stepper.parameters])
    opt.param_groups[-1][key] = kept
    opt.save(path)
    opt.load(path)


def late(step):
    return step - 2.0


def test_copies_of_schedules_that_begin_late():
    """Copies and pickles ask a schedule for nothing: it may have no legal value before the step at which it was set."""
    opt = proptim.SGD([np.zeros(1)])
    for _ in range(3):
        opt.step([np.ones(1)])
    opt.clip_norm = late
    for twin in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        twin.step([np.ones(1)])
        assert twin.steps == 4


def test_failing_save(tmp_path, monkeypatch):
    """A save that fails leaves the old file, and no other."""
    run, path = Run("adam", {}).go([0]), tmp_path / "state.npz"
    run.opt.save(path)
    before = path.read_bytes()

    def full(*args, **options):
        raise OSError(28, "no space left on device", ".temporary")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=re.escape(f"no space left on device: {str(path)!r}")):
        run.go([1]).opt.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]
