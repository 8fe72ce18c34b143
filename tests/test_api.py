"""The public surface: what can be parameters, gradients and options, and what each of them does."""

from __future__ import annotations

import array
import copy
import ctypes
import gc
import math
import pickle
import weakref

import numpy as np
import pytest

import proptim
from proptim import _backend, schedules
from proptim.cli.selftest import OPTIONS

try:
    import torch
except ModuleNotFoundError:  # wheels are tested without
    torch = None

NAMES = list(proptim.OPTIMIZERS)
CASES = [pytest.param(name, options, id=f"{name}-{i}") for name in NAMES for i, options in enumerate(OPTIONS[name])]
LOSSES = (3.0, 2.0, 2.5, 1.0)
W, B = np.array([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]]), np.array([4.0, -4.0])
GW, GB = np.array([[0.1, 0.2, -0.3], [1.0, -2.0, 0.0]]), np.array([-0.5, 2.0])


def model():
    """Fresh copies of two parameters."""
    return [W.copy(), B.copy()]


def bits(params):
    """A value that compares equal only if the bytes are the same."""
    return [np.asarray(p).tobytes() for p in params]


def run(params, grads, name="adam", steps=3, **options):
    """Step `params` in place a few times; return the optimizer."""
    opt = proptim.OPTIMIZERS[name](params, **options)
    for k in range(steps):
        opt.step(grads, loss=LOSSES[k % 4])
    return opt


def stepped(name="adam", steps=3, **options):
    """The bits of the two parameters after plain steps."""
    params = model()
    run(params, [GW, GB], name, steps, **options)
    return bits(params)


# Parameters ------------------------------------------------------------------------------------------------------


class Exporter:
    """An array that supports only DLPack."""

    def __init__(self, values):
        self.values = np.array(values)

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class Matrix(np.ndarray):
    """A NumPy subclass whose operators have another meaning."""

    def __array_ufunc__(self, *args, **options):
        raise TypeError("not the arithmetic of arrays")


FOREIGN = {
    "subclass": lambda values: values.copy().view(Matrix),
    "array.array": lambda values: array.array("d", values.ravel()),
    "ctypes": lambda values: (ctypes.c_double * values.size)(*values.ravel()),
    "bytearray": lambda values: memoryview(bytearray(values.tobytes())).cast("d"),
    "memoryview": lambda values: memoryview(values.copy()),
    "dlpack": Exporter,
    "torch": lambda values: torch.tensor(values),
    "torch parameter": lambda values: torch.nn.Parameter(torch.tensor(values)),
    "torch subclass": lambda v: torch.tensor(v).as_subclass(type("Mine", (torch.Tensor,), {})).requires_grad_(),
}
IDLE = {kind: "torch is not installed" for kind in FOREIGN if "torch" in kind and torch is None}
if np.lib.NumpyVersion(np.__version__) < "2.2.5":
    IDLE["dlpack"] = "NumPy before 2.2.5 sees all DLPack exporters as read-only"


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", NAMES)
def test_foreign_arrays(name, kind):
    """Arrays from anywhere are stepped in their own memory, with gradients from anywhere."""
    if kind in IDLE:
        pytest.skip(IDLE[kind])
    expected = W.copy()
    run([expected], [GW], name, lr=0.1)
    for backend in (None, "numpy"):
        p, g = FOREIGN[kind](W), FOREIGN[kind](GW)
        opt = run([p], [g], name, lr=0.1, backend=backend)
        seen = p.values if kind == "dlpack" else p.detach() if "torch" in kind else p
        assert np.array_equal(np.asarray(seen).ravel(), expected.ravel())
        assert opt.param_groups[0]["params"][0] is p


def test_shallow_copy():
    """A shallow copy would share arrays and not counts, and is an error; deep copies work."""
    opt = proptim.RMSprop(model(), lr=0.1)
    with pytest.raises(TypeError, match=r"shallow copy of RMSprop .* expected copy.deepcopy\(\)"):
        copy.copy(opt)
    assert copy.deepcopy(opt).lr == 0.1


@pytest.mark.parametrize("copied", [lambda opt: opt, copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_a_copy_knows_that_a_group_was_added(copied):
    """A copy of an optimizer refuses the step without its gradients too."""
    opt = proptim.SGD([np.ones(2)], grads=[np.ones(2)])
    opt.step()
    opt.add_param_group({"params": [np.ones(3)]})
    with pytest.raises(ValueError, match=r"no gradient of params\[1\], which was added after gradients were bound"):
        copied(opt).step()


@pytest.mark.parametrize("way", ["bound", "passed", "one by one"])
def test_group_added_after_gradients_were_bound(way):
    """After a group is added, step() without gradients is an error, until gradients or None are passed for all."""
    w, b = model()
    late = np.ones(3)
    opt = proptim.SGD([w, b], grads=[GW, GB] if way == "bound" else None, lr=0.5)
    if way == "passed":
        opt.step([GW, GB])
    elif way == "one by one":
        for i, grad in enumerate((GW, GB)):
            opt.step_param(i, grad)
    opt.add_param_group({"params": [late]})
    before = bits([w, b, late])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no gradient of params\[2\], which was added after gradients were bound"):
            opt.step()
    assert bits([w, b, late]) == before
    if way == "one by one":
        opt.step_param(2, np.ones(3))
        opt.step()
        assert late.tolist() == [0.0] * 3
    else:
        opt.step([GW, GB, None])
        opt.step()
        assert late.tolist() == [1.0] * 3
        opt.step([GW, GB, np.ones(3)])
        opt.step()
        assert late.tolist() == [0.0] * 3


@pytest.mark.parametrize("backend", [name for name, why in _backend.available_backends().items() if not why])
def test_torch_is_told_of_writing(backend):
    """A graph of autograd that needs the values before a step refuses to use those after it."""
    if torch is None:
        pytest.skip("torch is not installed")
    w, idle = torch.ones(3, requires_grad=True), torch.ones(2)
    grad = np.ones(3, np.float32)
    opt = proptim.RMSprop([w, idle], lr=0.1, backend=backend)

    def version():
        return w._version, idle._version

    start = version()
    for count in range(1, 5):
        opt.step([grad, None])
        assert version() == (start[0] + count, start[1])
    for count in range(5, 8):
        opt.step_param(0, grad)
        assert version() == (start[0] + count, start[1])
    loss = (w * w).sum()
    opt.step([grad, None])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    zeroed, before = torch.ones(3), w._version
    opt.zero_grads = True
    opt.step([zeroed, None])
    assert (zeroed._version > 0, w._version) == (True, before + 1)
    version = zeroed._version
    opt.zero_grad()
    proptim.clip_grad_norm([torch.ones(1), zeroed], 0.0)
    assert zeroed._version >= version + 2
    before = w._version
    proptim.functional.sgd(w, grad, lr=0.1, backend=backend)
    assert w._version == before + 1
    with torch.inference_mode():
        free = torch.ones(2)
        proptim.SGD([free], lr=0.5, backend=backend).step([torch.ones(2)])
        assert free.tolist() == [0.5, 0.5]


def test_completion():
    """dir() lists hyperparameters, options and public methods, and nothing of the rule."""
    always = (
        "add_param_group defaults grad_norm load load_state_dict param_groups remove_param_group reset save skipped"
    )
    always += (
        " state state_dict step step_param steps zero_grad zero_grads threads backend clip_norm grad_scale nonfinite"
    )
    always += (
        " max_skips flush_denormals watch master state_dtype cast_grads lazy_rows catch_up rounding seed ema averaged"
    )
    for cls in proptim.OPTIMIZERS.values():
        shown = {name for name in dir(cls([np.zeros(1)])) if not name.startswith("_")}
        assert shown == {*always.split(), *cls.hyper}


@pytest.mark.parametrize(("name", "options"), CASES)
def test_ways_to_pass_parameters(name, options):
    """A sequence, an iterator, a dict and groups of these give the same bits."""
    expected = stepped(name, **options)
    for wrap in (tuple, iter, lambda ps: {"w": ps[0], "b": ps[1]}, lambda ps: [{"params": ps}]):
        params = model()
        run(wrap(params), [GW, GB], name, **options)
        assert bits(params) == expected
    for wrap in (lambda p: [p], lambda p: p, iter, lambda p: {str(p.ndim): p}):
        params = model()
        given = [{"params": wrap(p) if wrap is not iter else iter([p])} for p in params]
        run(given, [GW, GB], name, **options)
        assert bits(params) == expected


@pytest.mark.parametrize(("name", "options"), CASES)
def test_0d_and_empty(name, options):
    """A scalar in an array steps as one weight, an empty array as none."""
    params = [np.array(4.0), np.empty((0, 3)), np.empty(0)]
    expected = np.array([4.0])
    run(params, [np.array(-0.5), np.empty((0, 3)), np.empty(0)], name, **options)
    run([expected], [np.array([-0.5])], name, **options)
    assert params[0] == expected[0] != 4.0


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_mixed_dtypes(name, options, dtype):
    """One optimizer steps parameters of several dtypes, complex ones as independent reals."""
    p, g = W.astype(dtype), GW.astype(dtype)
    if p.dtype.kind == "c":
        p.imag, g.imag = W[:, ::-1], GW[::-1]
    parts = [p.real.copy(), p.imag.copy()]
    both = [p, *model()]
    run(both, [g, GW, GB], name, **options)
    run(parts, [g.real.copy(), g.imag.copy()], name, **options)
    assert bits([both[0].real, both[0].imag]) == bits(parts) or p.dtype.kind == "f"
    assert bits(both[1:]) == stepped(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_groups_have_their_own_hyperparameters(name):
    """Each group steps as an optimizer of its own would; the others keep the defaults."""
    params = model()
    opt = run([{"params": params[:1], "lr": 0.25, "weight_decay": 0.1}, {"params": params[1:]}], [GW, GB], name, lr=0.5)
    a, b = model()
    run([a], [GW], name, lr=0.25, weight_decay=0.1)
    run([b], [GB], name, lr=0.5)
    assert bits(params) == bits([a, b])
    assert [g["lr"] for g in opt.param_groups] == [0.25, 0.5]


@pytest.mark.parametrize("name", NAMES)
def test_add_param_group(name):
    """Parameters that are added in mid-run begin at their own first step, with the defaults unless stated otherwise."""
    w, b = model()
    opt = run([w], [GW], name, lr=0.5, steps=2)
    opt.add_param_group({"params": [b], "lr": 0.25})
    opt.step([GW, GB])
    opt.step([[GW], [GB]])
    c, d = model()
    run([c], [GW], name, lr=0.5, steps=4)
    run([d], [GB], name, lr=0.25, steps=2)
    assert bits([w, b]) == bits([c, d])
    assert [s["step"] for s in opt.state.values()] == [4, 2]


# Gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), CASES)
def test_ways_to_pass_gradients(name, options):
    """Bound once, passed each time, anew each time, as an iterator, by name or group by group: the same bits."""
    expected = stepped(name, **options)
    bound = model()
    opt = proptim.OPTIMIZERS[name](bound, grads=[GW, GB], **options)
    for k in range(3):
        opt.step(loss=LOSSES[k])
    ways = {
        "fresh": lambda: [GW.copy(), GB.copy()],
        "iterator": lambda: iter([GW, GB]),
        "tuple": lambda: (GW.copy(), GB),
        "strided": lambda: [GW.T.copy().T, np.repeat(GB, 2)[::2]],
    }
    assert bits(bound) == expected
    for way, grads in ways.items():
        params = model()
        opt = proptim.OPTIMIZERS[name](params, **options)
        for k in range(3):
            opt.step(grads(), loss=LOSSES[k])
        assert bits(params) == expected, way
    for named, grads in [
        (lambda w, b: {"w": w, "b": b}, {"b": GB, "w": GW}),
        (lambda w, b: [{"params": {"w": w}}, {"params": {"b": b}}], {"b": GB, "w": GW}),
        (lambda w, b: [{"params": {"w": w}}, {"params": {"b": b}}], [{"w": GW}, [GB]]),
        (lambda w, b: [{"params": [w]}, {"params": [b]}], [[GW], (GB,)]),
    ]:
        params = model()
        run(named(*params), grads, name, **options)
        assert bits(params) == expected


@pytest.mark.parametrize(("name", "options"), CASES)
def test_none_leaves_a_parameter_out(name, options):
    """A parameter without gradient keeps its bytes, its state and its step count."""
    params, loss = model(), {"loss": 1.0}
    opt = proptim.OPTIMIZERS[name](params, **options)
    opt.step([GW, GB], **loss)
    before = bits(params)
    opt.step([GW, None], **loss)
    opt.step([None, GB], **loss)
    opt.step(**loss)
    assert [s["step"] for s in opt.state.values()] == [2, 3]
    assert opt.steps == 4
    alone = model()
    for p, g, n in zip(alone, (GW, GB), (2, 3), strict=True):
        single = proptim.OPTIMIZERS[name]([p], **options)
        for _ in range(n):
            single.step([g], **loss)
    assert bits(params) == bits(alone) != before


@pytest.mark.parametrize(("name", "options"), [c for c in CASES if "irprop+" not in str(c.values)])
def test_step_param_going_round_is_a_step(name, options):
    """step_param over all parameters, in any order, by name or index, equals step(); schedules see one count."""
    lr = {} if name == "rprop" else {"lr": schedules.exponential(0.1, 0.5)}
    whole, parts = model(), model()
    run({"w": whole[0], "b": whole[1]}, {"w": GW, "b": GB}, name, **options, **lr)
    opt = proptim.OPTIMIZERS[name]({"w": parts[0], "b": parts[1]}, **options, **lr)
    for k, order in enumerate([("w", 1), ("b", "w"), (0, "b")]):
        for key in order:
            opt.step_param(key, GW if key in ("w", 0) else GB)
            assert opt.steps == k + 1
    assert bits(parts) == bits(whole)


def test_step_param_before_the_round_is_complete():
    """A parameter that comes again begins a new round; step() after a part of a round counts once more."""
    params = model()
    opt = proptim.SGD(params, lr=0.1)
    opt.step_param(0, GW)
    opt.step_param(0, GW)
    assert opt.steps == 2
    opt.step([GW, GB])
    opt.step_param(1, GB)
    assert opt.steps == 4
    assert [s["step"] for s in opt.state.values()] == [3, 2]


@pytest.mark.parametrize("name", NAMES)
def test_zero_grads(name):
    """zero_grads=True clears the gradients as part of the step, strided and skipped ones too; step_param its own."""
    grads = [np.asfortranarray(GW), np.repeat(GB, 2)[::2]]
    params = model()
    opt = proptim.OPTIMIZERS[name](params, grads=grads, lr=0.1, zero_grads=True)
    opt.step()
    assert bits(params) == stepped(name, 1, lr=0.1)
    assert not grads[0].any()
    assert not grads[1].any()
    grads[0][...], grads[1][...] = GW, GB
    opt.step_param(1, grads[1])
    assert (grads[0] == GW).all()
    assert not grads[1].any()


def test_zero_grad():
    """zero_grad() clears the gradients that are bound or were last passed."""
    first, second = [GW.copy(), GB.copy()], [GW.copy(), None]
    opt = proptim.SGD(model(), grads=first)
    opt.zero_grad()
    assert not any(g.any() for g in first)
    opt.step(second)
    opt.zero_grad()
    assert not second[0].any()


# Conditioning ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), CASES)
def test_conditioning_is_what_it_says(name, options):
    """clip_value, clip_norm, grad_scale, maximize and weight_decay equal the same arithmetic on the gradients."""
    options = {k: v for k, v in options.items() if "weight_decay" not in k}
    norm = proptim.global_norm([GW, GB])
    factor = 1.0 / (norm + 1e-6)
    assert stepped(name, 1, clip_value=0.25, **options) == conditioned(name, lambda g, p: g.clip(-0.25, 0.25), options)
    assert stepped(name, 1, clip_norm=1.0, **options) == conditioned(name, lambda g, p: g * factor, options)
    assert stepped(name, 1, clip_norm=100.0, **options) == stepped(name, 1, **options)
    assert stepped(name, 1, grad_scale=0.3, **options) == conditioned(name, lambda g, p: g * 0.3, options)
    assert stepped(name, 1, maximize=True, **options) == conditioned(name, lambda g, p: -g, options)
    wd = options | ({"decoupled_weight_decay": False} if name == "adamw" else {})
    assert stepped(name, 1, weight_decay=0.1, **wd) == conditioned(name, lambda g, p: g + 0.1 * p, options, wd=0.0)
    combined = {"grad_scale": 0.5, "maximize": True, "clip_value": 0.2, "weight_decay": 0.1}
    expected = conditioned(name, lambda g, p: (g * -0.5).clip(-0.2, 0.2) + 0.1 * p, options, wd=0.0)
    assert stepped(name, 1, **combined, **wd) == expected


def conditioned(name, change, options, wd=None):
    """The bits of one step on gradients changed by hand."""
    params = model()
    grads = [change(g, p) for g, p in zip((GW, GB), params, strict=True)]
    run(params, grads, name, 1, **options, **({} if wd is None or name != "adamw" else {"weight_decay": wd}))
    return bits(params)


@pytest.mark.parametrize("name", NAMES)
def test_decoupled_weight_decay(name):
    """Decoupled decay multiplies the parameter by 1 - lr * weight_decay and leaves the gradient alone."""
    params = model()
    run(params, [GW, GB], name, 1, lr=0.1, weight_decay=0.5, decoupled_weight_decay=True)
    shrunk = [p * 0.95 for p in model()]
    run(shrunk, [GW, GB], name, 1, lr=0.1, weight_decay=0.0)
    assert bits(params) == bits(shrunk)


def test_adamw_decays_decoupled_by_default():
    """AdamW is Adam with decoupled weight decay of 1e-2, and both can be set."""
    decay = {"weight_decay": 1e-2, "decoupled_weight_decay": True}
    assert stepped("adamw") == stepped("adam", **decay) != stepped("adam")
    assert stepped("adamw", decoupled_weight_decay=False) == stepped("adam", weight_decay=1e-2)


def test_grad_norm():
    """grad_norm is the norm of the scaled gradients of the last step, without parameters that had none."""
    opt = proptim.SGD(model(), clip_norm=1.0, grad_scale=-0.5)
    assert opt.grad_norm is None
    opt.step([GW, GB])
    assert opt.grad_norm == 0.5 * proptim.global_norm([GW, GB])
    opt.step([None, GB])
    assert opt.grad_norm == pytest.approx(0.5 * math.hypot(*GB), rel=1e-15)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_nonfinite(name, bad):
    """A step with "propagate" is made; with "skip" it is only counted; with "raise" the error names the element."""
    grads = [GW.copy(), GB.copy()]
    grads[0][1, 2] = bad
    params = model()
    assert run(params, grads, name, 1).steps == 1
    for _ in range(2):
        params = model()
        opt = proptim.OPTIMIZERS[name](params, nonfinite="skip", max_skips=2)
        opt.step([GW, GB])
        before, state = bits(params), pickle.dumps(opt.state_dict()["state"])
        opt.step(grads)
        opt.step(grads)
        assert (opt.skipped, opt.steps) == (2, 1)
        assert (bits(params), pickle.dumps(opt.state_dict()["state"])) == (before, state)
        with pytest.raises(FloatingPointError, match=r"grads\[0\] is .* at index \(1, 2\); .* 2 skips in a row"):
            opt.step(grads)
        opt.step([GW, GB])
        opt.step(grads)  # the row of skips began anew
        assert (opt.skipped, opt.steps) == (3, 2)
        assert bits(params) == stepped(name, 2)


def test_skipped_steps_clear_gradients():
    """With zero_grads a skipped step clears the gradients too; otherwise an accumulated NaN would stay for ever."""
    grads, params = [GW.copy(), GB.copy()], model()
    grads[1][0] = math.nan
    proptim.SGD(params, grads=grads, nonfinite="skip", zero_grads=True).step()
    assert bits(params) == bits(model())
    assert not any(g.any() for g in grads)


# The object ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_repr(name):
    """repr names class, backend, steps, groups and every hyperparameter."""
    opt = run(model(), [GW, GB], name)
    shown = repr(opt)
    assert shown.startswith(f"{type(opt).__name__} (backend={opt.backend!r}, threads='auto', steps=3\n")
    assert "Parameter Group 0: 2 arrays, 8 weights" in shown
    assert all(f"    {key}: {value}\n" in shown for key, value in opt.param_groups[0].items() if key != "params")


def test_options():
    """threads and backend are taken as given, and the backends give the same bits."""
    expected = stepped(backend="numpy")
    for backend, missing in _backend.available_backends().items():
        assert missing or stepped(backend=backend, threads=2) == expected
    assert proptim.Adam(model(), threads=3, backend="numpy").threads == 3
    assert proptim.Adam(model()).backend == proptim.backend()


def test_garbage():
    """An optimizer without references is freed at once, and releases the memory of its arrays."""
    weights = array.array("d", B)
    opt = proptim.Adam([weights], grads=[GB])
    opt.step()
    with pytest.raises(BufferError):
        weights.append(1.0)
    watch, enabled = weakref.ref(opt), gc.isenabled()
    gc.disable()
    try:
        del opt
        assert watch() is None
        weights.append(1.0)
    finally:
        if enabled:
            gc.enable()


def test_arrays_cannot_be_resized_away():
    """NumPy refuses to resize an array that an optimizer steps."""
    params = [np.ones(3)]
    opt = proptim.SGD(params)
    with pytest.raises(ValueError, match="resize"):
        params[0].resize(1 << 20)
    opt.step([np.ones(3)])


def test_gradients_are_let_go():
    """A gradient that has been replaced is not kept alive."""
    first, second = array.array("d", GB), array.array("d", GB)
    opt = proptim.SGD([B.copy()])
    opt.step([first])
    opt.step([second])
    first.append(1.0)
    with pytest.raises(BufferError):
        second.append(1.0)


@pytest.mark.parametrize("name", NAMES)
def test_hyperparameters_are_attributes(name):
    """Every hyperparameter as an attribute: reading gives that of the groups, setting sets all or raises theirs."""
    opt = proptim.OPTIMIZERS[name]([{"params": [np.zeros(2)]}, {"params": [np.zeros(3)]}])
    for key, value in opt.defaults.items():
        if key == "ema":  # whose attribute has the averages
            continue
        assert getattr(opt, key) == opt.param_groups[0][key] == value, key
        if key in opt.fixed:
            with pytest.raises(ValueError, match="no effect after construction"):
                setattr(opt, key, value)
        else:
            setattr(opt, key, value)
    opt.weight_decay = 0.25
    assert [group["weight_decay"] for group in opt.param_groups] == [0.25, 0.25]
    before = [p.array.copy() for p in opt._stepper.parameters]
    opt._stepper.parameters[0].array += 1
    opt.step([np.zeros(2), np.zeros(3)], loss=1.0)
    assert not np.array_equal(opt._stepper.parameters[0].array, before[0] + 1)  # the decay has moved it
