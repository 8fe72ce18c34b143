"""Steps that look at their gradients, as clip_norm and nonfinite ask for it, where the compiled plan repeats them."""

from __future__ import annotations

import copy
import math

import ml_dtypes
import numpy as np
import pytest

import proptim
from proptim._stepper import Stepper
from proptim.cli import selftest

RULES = [
    pytest.param(name, options, id="-".join([name, *map(str, options)]))
    for name in proptim.OPTIMIZERS
    for options in selftest.OPTIONS.get(name, [{}])
]
BF16 = np.dtype(ml_dtypes.bfloat16)
SIZES = (17, 4097, 9000, 3)  # several blocks of a sum, and parts for threads

KINDS = {
    "float32": (np.float32, np.float32, {"clip_norm": 0.5, "nonfinite": "skip", "threads": 3}),
    "float64": (np.float64, np.float64, {"clip_norm": 0.5, "nonfinite": "raise", "grad_scale": -3.0}),
    "bfloat16": (BF16, BF16, {"nonfinite": "skip", "max_skips": 1}),
    "float16": (np.float16, np.float16, {"clip_norm": 0.0, "nonfinite": "skip", "threads": 3}),
    "gradients of float16": (np.float32, np.float16, {"clip_norm": 0.5}),
    "zero_grads": (np.float32, np.float32, {"clip_norm": 0.5, "nonfinite": "skip", "zero_grads": True}),
    "complex64": (np.complex64, np.complex64, {"clip_norm": math.inf, "nonfinite": "raise"}),
}
"""Dtypes of parameters and gradients, and the options of the optimizer."""


def put(name, value):
    """A change of an option or of a hyperparameter of a group."""

    def change(opt):
        if name in ("clip_norm", "nonfinite", "grad_scale"):
            setattr(opt, name, value)
        else:
            opt.param_groups[1][name] = value

    return change


TURNS = (
    (None, "new", False),
    (None, "new", True),
    (None, "bound", True),
    (None, "written", True),
    (put("clip_norm", 1e30), "new", False),
    (None, "bound", True),
    (put("grad_scale", -0.25), "new", False),
    (None, "new", True),
    (None, "written", True),
    (put("clip_norm", None), "bound", False),
    (None, "written", True),
    (put("weight_decay", 0.125), "new", False),
    (None, "new", True),
    (put("clip_norm", 0.25), "written", False),
    (None, "written", True),
    (put("clip_value", 0.5), "bound", False),
    (None, "bound", True),
    (put("clip_norm", lambda steps: 1.0 / (1 + steps)), "new", False),
    (None, "new", False),
    (put("clip_norm", 2.0), "bound", False),
    (None, "new", True),
    (None, "nan", False),
    (None, "bound", False),
    (put("nonfinite", "skip"), "new", False),
    (None, "new", True),
    (None, "written inf", False),
    (None, "bound", False),
    (None, "new", False),
    (None, "written", True),
    (put("grad_scale", 0.0), "new", False),
    (None, "new", True),
    (put("nonfinite", "propagate"), "new", False),
    (None, "new", True),
    (None, "nan", False),
)
"""What changes before a step, which gradients it gets, and whether the compiled plan makes it alone."""


@pytest.fixture
def ordinary(monkeypatch):
    """A list of one item for each step since it was cleared that was not repeated by a plan alone."""
    made, whole = [], Stepper._step
    monkeypatch.setattr(Stepper, "_step", lambda *args: made.append(1) or whole(*args))
    return made


def told(opt, params):
    """All that a step changes."""
    state = {f"{key} of {i}": a for i, s in opt.state.items() for key, a in s.items() if np.ndim(a)}
    clocks = [value for s in opt.state.values() for value in s.values() if not np.ndim(value)]
    counts = repr((opt.steps, opt.skipped, opt.grad_norm, clocks))
    return [*(p.copy() for p in params), *state.values()], counts


def run(name, options, kind, backend, ordinary):
    """What every step leaves or raises, and which steps the plan made alone."""
    dtype, grad_dtype, settings = KINDS[kind]
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(n).astype(dtype) for n in SIZES]
    groups = [
        {"params": params[:1]}, {"params": params[1:3], "maximize": True}, {"params": params[3:], "clip_value": 0.25},
    ]  # fmt: skip
    opt = proptim.OPTIMIZERS[name](groups, **options, **settings, backend=backend)
    found, repeated, bound = [], [], []
    for i, (change, form, _) in enumerate(TURNS):
        if change is not None:
            change(opt)
        grads = [(rng.standard_normal(n) * 10.0 ** rng.integers(-3, 2)).astype(grad_dtype) for n in SIZES[:-1]]
        if form == "nan":
            grads[1][4096] = math.nan
        if form == "written inf":
            grads[2][8999] = -math.inf
        if form in ("new", "nan"):
            args = ([*grads, None],)
            kept, bound = bound, grads
        else:
            args = ()
            for array, grad in zip(bound, grads, strict=True):
                array[...] = grad if form != "bound" or settings.get("zero_grads") else array
        ordinary.clear()
        try:
            opt.step(*args, loss=float(i % 3) if opt.needs_loss(opt.param_groups[0]) else None)
            error = None
        except FloatingPointError as refused:
            error = str(refused)
            bound = kept if args else bound
        repeated.append(not ordinary)
        found.append((error, *told(opt, params), [g.copy() for g in bound]))
    return found, repeated


def check_run(name, options, kind, backend, ordinary):
    """A run of every backend is that of the numpy backend; all steps of the latter are ordinary ones."""
    expected, none = run(name, options, kind, "numpy", ordinary)
    got, repeated = run(name, options, kind, backend, ordinary)
    for i, (one, other) in enumerate(zip(got, expected, strict=True)):
        assert (one[0], one[2]) == (other[0], other[2]), i
        for a, b in zip(one[1] + one[3], other[1] + other[3], strict=True):
            a, b = (x if x.dtype == BF16 else x.view(x.real.dtype) for x in (a, b))
            bits = f"u{a.itemsize}"
            assert (a.dtype, a.shape) == (b.dtype, b.shape), i
            assert ((a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))).all(), i
    assert not any(none)
    plain = kind not in ("bfloat16", "zero_grads", "complex64")  # of others new gradients need more checks
    alone = backend == "c" and options.get("variant") != "irprop+"
    assert repeated == [alone and repeats and (plain or form != "new") for _, form, repeats in TURNS]


@pytest.mark.parametrize(("name", "options"), RULES)
def test_every_rule(ordinary, name, options):
    """Steps with changes in between have the bits, norms and counts of the numpy backend, which repeats nothing."""
    check_run(name, options, "float32", proptim.backend(), ordinary)


@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype(contestant, ordinary, kind):
    """The same for other dtypes and options."""
    check_run("adam", {"amsgrad": True}, kind, contestant, ordinary)


def test_norm(backend, ordinary):
    """grad_norm is that of the last step that measured it, in copies too, and of none that was refused."""
    w, grad = np.zeros(2), np.array([3.0, 4.0])
    opt = proptim.SGD([w], lr=1.0, clip_norm=1.0, nonfinite="raise")
    for factor in (1.0, 2.0, 3.0):
        opt.step([factor * grad])
        assert opt.grad_norm == 5.0 * factor
        assert copy.deepcopy(opt).grad_norm == 5.0 * factor
        opt.step([grad / 5])  # an ordinary one, after the copy
    assert len(ordinary) == (4 if backend == "c" else 6)
    with pytest.raises(FloatingPointError, match=r"^grads\[0\] is nan at index \(0,\); expected finite gradients$"):
        opt.step([np.array([math.nan, 1.0])])
    assert opt.grad_norm == math.hypot(3 / 5, 4 / 5)
    before = w.copy()
    opt.step()  # by the gradients of before
    assert np.array_equal(w, before - grad / 5 * (1.0 / (1.0 + 1e-6)))
    opt.step(grad_norm=4.0)
    assert opt.grad_norm == 4.0
    opt.step()
    assert opt.grad_norm == 1.0
    opt.clip_norm = None
    for _ in range(3):
        opt.step([5 * grad])  # whose norm nobody asks for
        assert opt.grad_norm == 1.0
    assert (opt.steps, opt.skipped) == (12, 0)


@pytest.mark.parametrize("scale", [1.0, 1e200])
def test_norm_that_overflows(backend, ordinary, scale):
    """Finite gradients whose norm is infinite are scaled by 0, and no reason to skip a step."""
    w = np.ones(2)
    opt = proptim.SGD([w], lr=1.0, clip_norm=1.0, nonfinite="skip", grad_scale=scale)
    large = np.full(2, 1e300 if scale == 1 else 1e150)
    for _ in range(2):
        opt.step([np.zeros(2)])
    ordinary.clear()
    opt.step([large])
    assert (len(ordinary), opt.grad_norm, opt.steps, opt.skipped) == (1, math.inf, 3, 0)
    assert np.array_equal(w, [1.0, 1.0])
    opt.clip_norm = None
    opt.grad_scale = 1.0
    opt.step([np.full(2, 1e300)])
    ordinary.clear()
    opt.step([np.full(2, -1e300)])
    assert len(ordinary) == (backend != "c")
    assert np.array_equal(w, [0.0, 0.0])


def test_stages_of_a_subclass(backend, ordinary):
    """A class that makes something else of the factor is asked at every step that has another one."""

    class Rooted(proptim.SGD):
        @staticmethod
        def stages(h, factor, *options):
            return proptim.SGD.stages(h, math.sqrt(factor), *options)

    w = np.zeros(2)
    for options, steps in (({"clip_norm": 4.0}, 4), ({"nonfinite": "skip"}, 1 if backend == "c" else 4)):
        w[:] = 0
        opt = Rooted([w], lr=1.0, **options)
        ordinary.clear()
        for factor in (1.0, 2.0, 1.0, 4.0):
            opt.step([np.array([0.0, 16.0 * factor])])
        assert len(ordinary) == steps
    assert np.array_equal(w, [0.0, -128.0])
    w[:] = 0
    opt = Rooted([w], lr=1.0, clip_norm=4.0)
    for norm in (16.0, 64.0):
        opt.step([np.array([0.0, norm])])
    assert w[1] == -16.0 * math.sqrt(4 / (16 + 1e-6)) - 64.0 * math.sqrt(4 / (64 + 1e-6))


def test_rows(backend, ordinary):
    """Steps with gradients of rows measure them in the ordinary form, and dense ones before and after are repeated."""
    ends = []
    for kind in ("numpy", backend):
        table, counts = np.ones((3, 2)), []
        opt = proptim.SGD([table], lr=0.5, clip_norm=0.25, backend=kind)
        for turn in "dddrrdddbrb":
            ordinary.clear()
            if turn == "b":
                opt.step()
            else:
                values = np.full((2, 2), 1.0 + opt.steps)
                opt.step([proptim.Rows([2, 2], values)] if turn == "r" else [np.full((3, 2), 3.0)])
            counts.append(len(ordinary))
        ends.append((table.tobytes(), opt.grad_norm, opt.steps))
        assert counts == ([1, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1] if kind == "c" else [1] * 11)
    assert ends[0] == ends[1]
