"""Every error: its message, that the call changed nothing, and that the optimizer continues as without it."""

from __future__ import annotations

import math
import pickle
import re

import numpy as np
import pytest
import torch

import proptim
import proptim.torch
from proptim._options import SETTINGS
from proptim.cli.selftest import OPTIONS

NAMES = list(proptim.OPTIMIZERS)
CASES = [pytest.param(name, options, id=f"{name}-{i}") for name in NAMES for i, options in enumerate(OPTIONS[name])]
SUPPORTED = (
    "supported: float32, float64, complex64, complex128, float16, bfloat16: convert it with .astype, a tensor with .to"
)
NO_ARRAY = (
    "expected a NumPy array, a torch CPU tensor, or an exporter of the buffer protocol or DLPack: convert it with "
    "numpy.asarray"
)
ON_CPU = "expected an array in CPU memory: copy it to the CPU first"
COLLECTION = "expected a sequence or dict of arrays"
SHARED = "share memory; expected separate memory: pass a copy of one"
NO_GRADIENTS = (
    "step() has no gradients: none are passed or bound, or all of them are None; expected at least one: pass it, "
    "step(grads), or bind it with grads= before"
)


def exactly(text):
    """A pattern for the whole of a message; "..." stands for anything."""
    return "^" + re.escape(text).replace(r"\.\.\.", ".*") + "$"


class Device:
    """An exporter on some device."""

    def __init__(self, kind, number=0):
        self.device = kind, number

    def __dlpack__(self, **options):
        raise RuntimeError("not from here")

    def __dlpack_device__(self):
        return self.device


class Broken:
    """An exporter that fails."""

    def __dlpack__(self, **options):
        raise BufferError("never")


def big_endian(values):
    return values.astype(">f8")


NOT_ARRAYS = {
    "uint16": (lambda v: v.astype("u2"), f"is uint16; {SUPPORTED}"),
    "int": (lambda v: v.astype("i8"), f"is int64; {SUPPORTED}"),
    "bool": (lambda v: v > 0, f"is bool; {SUPPORTED}"),
    "object": (lambda v: v.astype(object), f"is object; {SUPPORTED}"),
    "text": (lambda v: v.astype("U3"), f"is str96; {SUPPORTED}"),
    "big-endian": (big_endian, f"is float64 of foreign byte order; {SUPPORTED}"),
    "masked": (np.ma.array, "is a masked array, but no step leaves elements out; expected an array: use .data"),
    "bytes": (lambda v: v.tobytes(), f"is uint8; {SUPPORTED}"),
    "uint16 of torch": (
        lambda v: torch.tensor([1, 2, 3]).to(torch.uint16),
        f"is uint16; {SUPPORTED}",
    ),
    "longdouble": (lambda v: v.astype("g"), f"is {np.dtype('g').name}; {SUPPORTED}"),
    "conjugate": (lambda v: torch.tensor(v + 1j).conj(), "is the conjugate of another ...: use .resolve_conj()"),
    "sparse": (lambda v: torch.tensor(v).to_sparse(), "has layout torch.sparse_coo; expected a strided tensor: ..."),
    "meta": (lambda v: torch.tensor(v).to("meta"), "is on meta; expected a CPU tensor: move it with .cpu()"),
    "module": (lambda v: torch.nn.Linear(2, 2), f"is Linear; {NO_ARRAY}"),
    "CUDA": (lambda v: Device(2, 3), f"is on CUDA:3; {ON_CPU}"),
    "device": (lambda v: Device(99), f"is on DLPack device type 99:0; {ON_CPU}"),
    "failing": (lambda v: Device(1), f"is Device; {NO_ARRAY}"),
    "broken": (lambda v: Broken(), f"is Broken; {NO_ARRAY}"),
    "str": (lambda v: "weights", f"is str; {NO_ARRAY}"),
    "number": (lambda v: 1.0, f"is float; {NO_ARRAY}"),
    "set": (lambda v: {1.0}, f"is set; {NO_ARRAY}"),
}  # fmt: skip


def locked(values):
    values = values.copy()
    values.flags.writeable = False
    return values


READ_ONLY = {
    "locked": locked,
    "broadcast": lambda v: np.broadcast_to(v[:1], v.shape),
    "of bytes": lambda v: np.frombuffer(v.tobytes()),
    "memoryview": lambda v: memoryview(v.tobytes()).cast("d"),
}
REPEATED = {
    "windows": lambda v: np.lib.stride_tricks.as_strided(v.copy(), v.shape, (0,)),
    "expanded": lambda v: torch.ones(1, dtype=torch.float64).expand(len(v)),
}
W, B = np.array([1.0, -2.0, 3.0]), np.array([4.0, -4.0])
GW, GB = np.array([0.5, -0.25, 1.0]), np.array([1.0, -1.0])


def bits(*arrays):
    return [np.asarray(a).tobytes() for a in arrays]


def refused(error, message, action, *arrays):
    """`action` raises exactly this and leaves the bytes of the arrays alone."""
    before = bits(*arrays)
    with pytest.raises(error, match=exactly(message)):
        action()
    assert bits(*arrays) == before


def unharmed(name, options, error, message, action, grads=(GW, GB), **more):
    """`action(opt)` is refused mid-run; then the run goes on like that of an optimizer never asked."""
    ours, twins = [W.copy(), B.copy()], [W.copy(), B.copy()]
    opt, twin = (proptim.OPTIMIZERS[name](ps, **options, **more) for ps in (ours, twins))
    given = [g.copy() for g in grads]
    for each in (opt, twin):
        each.step(given if not more.get("zero_grads") else [g.copy() for g in given], loss=1.0)
    state = pickle.dumps(opt.state_dict())
    refused(error, message, lambda: action(opt), *ours, *given)
    assert pickle.dumps(opt.state_dict()) == state
    for each in (opt, twin):
        each.step([g.copy() for g in grads], loss=0.5)
    assert bits(*ours) == bits(*twins)
    assert pickle.dumps(opt.state_dict()) == pickle.dumps(twin.state_dict())


# Parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", NOT_ARRAYS)
def test_parameter_is_no_array(problem):
    """Anything that is not a supported array in CPU memory raises an error with its index and name."""
    make, message = NOT_ARRAYS[problem]
    fine = B.copy()
    refused(TypeError, f"params[1] {message}", lambda: proptim.SGD([fine, make(W)]), fine)
    refused(TypeError, f'params[1] ("w") {message}', lambda: proptim.SGD({"b": fine, "w": make(W)}), fine)
    unharmed("sgd", {}, TypeError, f"params[2] {message}", lambda o: o.add_param_group({"params": [make(W)]}))


@pytest.mark.parametrize("problem", [*READ_ONLY, *REPEATED])
def test_parameter_cannot_be_written(problem):
    """Read-only parameters, and those whose elements share memory, are refused."""
    make = (READ_ONLY | REPEATED)[problem]
    what = "is read-only; expected a writable array" if problem in READ_ONLY else (
        "has elements that share memory; expected one place per element")  # fmt: skip
    given = make(W)
    refused(ValueError, f"params[0] {what}: pass a copy", lambda: proptim.SGD([given]), given)
    unharmed("adam", {}, ValueError, f"params[2] {what}: pass a copy", lambda o: o.add_param_group({"params": given}))


def test_numpy_scalar_is_read_only():
    """A NumPy scalar has no memory that could be stepped."""
    refused(ValueError, "params[0] is read-only; ...", lambda: proptim.SGD([np.float64(1.0)]))


@pytest.mark.parametrize("pair", [
    lambda a: [a, a], lambda a: [a[:4], a[3:]], lambda a: [a[::2], a[4:]], lambda a: [a, torch.from_numpy(a)],
    lambda a: [a.view(complex), a.view(complex).imag], lambda a: [a, a[::-1]], lambda a: [a, memoryview(a)[5:]],
    lambda a: [a.reshape(2, 3).T, a.reshape(2, 3)[1]],
])  # fmt: skip
def test_parameters_share_memory(pair):
    """The same memory twice is an error, whatever objects refer to it, within a group and across groups."""
    memory = np.arange(6.0)
    first, second = pair(memory)
    message = f"params[...] and params[...] {SHARED}"
    refused(ValueError, message, lambda: proptim.SGD([first, second]), memory)
    refused(ValueError, message, lambda: proptim.SGD([{"params": [first]}, {"params": {"b": second}["b"]}]), memory)
    opt = proptim.SGD([first])
    refused(ValueError, message, lambda: opt.add_param_group({"params": [second]}), memory)


def test_interlaced_parameters_are_fine():
    """Views of one array that have no byte in common are not refused."""
    memory = np.arange(8.0)
    proptim.SGD([memory[0::2], memory[1::2]], lr=1.0).step([np.ones(4), np.zeros(4)])
    assert memory.tolist() == [-1, 1, 1, 3, 3, 5, 5, 7]


COLLECTIONS = [
    (lambda: W, TypeError, f"params is one ndarray; {COLLECTION}, or a sequence of groups: put it into a list"),
    (lambda: torch.ones(2), TypeError, "params is one Tensor; ...: put it into a list"),
    (lambda: None, TypeError, f"params is NoneType; {COLLECTION}"),
    (lambda: 1.0, TypeError, f"params is float; {COLLECTION}"),
    (list, ValueError, "optimizer got an empty parameter list; expected at least one array"),
    (dict, ValueError, "optimizer got an empty parameter list; expected at least one array"),
    (lambda: iter(()), ValueError, "optimizer got an empty parameter list; expected at least one array"),
    (lambda: [W, {"params": B}], TypeError,
     "params mixes groups and arrays; expected one kind: make every element a group"),
    (lambda: {"params": [W]}, TypeError, "params is one group; expected a sequence of groups: put it into a list"),
    (lambda: [{"lr": 0.1}], ValueError, "a parameter group has only ['lr']; expected the key \"params\" too"),
    (lambda: [{"params": [W], "lrs": 0.1}], ValueError, "unknown hyperparameter 'lrs'...known here: ...lr...decay"),
    (lambda: [{"params": None}], TypeError, f"params of a group is NoneType; {COLLECTION}"),
    (lambda: {3: W}, TypeError, "parameter name 3 is int; expected a string"),
    (lambda: [{"params": {"w": W}}, {"params": {"w": B}}], ValueError,
     "parameter name 'w' is used twice; expected a name of its own in every group"),
    (lambda: [{"params": {"w": W}}, {"params": [B]}], ValueError,
     "some groups name their parameters and some do not; expected all or none: use dicts"),
    (lambda: [{"params": [W], "lr": -1}], ValueError, "Invalid learning rate: -1 (expected a finite number >= 0)"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), COLLECTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_collections(name, make, error, message):
    """Parameters that are no collection of arrays or groups are refused."""
    refused(error, message, lambda: proptim.OPTIMIZERS[name](make()), W, B)


@pytest.mark.parametrize(("group", "error", "message"), [
    ([W], TypeError, "param_group is list; expected a dict"),
    ({"lr": 0.5}, ValueError, "a parameter group has only ['lr']; ..."),
    ({"params": W.copy(), "lr": math.nan}, ValueError, "Invalid learning rate: nan (expected a finite number >= 0)"),
    ({"params": W.copy(), "learning_rate": 1}, ValueError,
     "unknown hyperparameter 'learning_rate': did you mean 'lr'?; known here: ..."),
    ({"params": {"w": W.copy()}}, ValueError, "some groups name their parameters and some do not; ..."),
])  # fmt: skip
@pytest.mark.parametrize(("name", "options"), CASES)
def test_add_param_group(name, options, group, error, message):
    """A group that is refused leaves the optimizer as it was."""
    unharmed(name, options, error, message, lambda o: o.add_param_group(group))


# Gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [p for p in NOT_ARRAYS if p != "sparse"])  # of which a gradient may be
@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_no_array(name, problem):
    """Anything that is not an array is an error as a gradient, and the other gradients are unchanged."""
    make, message = NOT_ARRAYS[problem]
    unharmed(name, {}, TypeError, f"grads[0] {message}", lambda o: o.step([make(W), GB], loss=1.0))
    unharmed(name, {}, TypeError, f"grads[0] {message}", lambda o: o.step_param(0, make(W)))


FITTING = [
    (lambda p: [GW, GB[:1]], ValueError, "grads[1] has shape (1,); expected (2,), the shape of params[1]"),
    (lambda p: [np.stack([GW, GW], -1), GB], ValueError, "grads[0] has shape (3, 2); expected (3,), ..."),
    (lambda p: [GW, GB[None]], ValueError, "grads[1] has shape (1, 2); expected (2,), the shape of params[1]"),
    (lambda p: [GW + 0j, GB], TypeError, "grads[0] is complex128; expected float64, ..."),
    (lambda p: [p[0], GB], ValueError, f"grads[0] and params[0] {SHARED}"),
    (lambda p: [GW, p[0][1:]], ValueError, f"... {SHARED}"),
    (lambda p: [torch.from_numpy(p[0]), GB], ValueError, f"grads[0] and params[0] {SHARED}"),
    (lambda p: [GW], ValueError, "grads has 1 arrays; expected 2, one per parameter"),
    (lambda p: [], ValueError, "grads has 0 arrays; expected 2, one per parameter"),
    (lambda p: iter([GW, GB, GB]), ValueError, "grads has 3 arrays; expected 2, one per parameter"),
    (lambda p: [[GW], [GB]], ValueError, "grads has 2 groups; expected 1, one per parameter group"),
    (lambda p: [[GW]], ValueError, "grads of group 0 has 1 arrays; expected 2, one per parameter"),
    (lambda p: GW, TypeError, "grads is ndarray; expected a collection like params, with one array or None each"),
    (lambda p: 1.0, TypeError, "grads is float; expected a collection like params, with one array or None each"),
    (lambda p: {"w": GW}, ValueError, "grads is a dict, but the parameters have no names; expected a list of 2 arrays"),
    (lambda p: [None, None], ValueError, NO_GRADIENTS),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), FITTING)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_gradients_do_not_fit(name, options, make, error, message):
    """Gradients of another shape, dtype, number or nesting, or in the parameters' memory, are refused."""
    params = [W.copy(), B.copy()]
    opt = proptim.OPTIMIZERS[name](params, **options)
    refused(error, message, lambda: opt.step(make(params), loss=1.0), *params)
    twins = lambda o: [np.asarray(p) for p in o.param_groups[0]["params"]]  # noqa: E731
    unharmed(name, options, error, message, lambda o: o.step(make(twins(o)), loss=1.0))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("sgd", "rprop")])
def test_gradient_in_the_memory_of_the_state(name):
    """State arrays that were taken from `state` are no gradients."""
    state = proptim.OPTIMIZERS[name].states[0]
    unharmed(name, {}, ValueError, f"... {SHARED}", lambda o: o.step([GW, o.state[1][state]], loss=1.0))
    unharmed(name, {}, ValueError, f"... {SHARED}", lambda o: o.add_param_group({"params": [o.state[1][state]]}))


def test_parameter_in_the_memory_of_a_gradient():
    """A group cannot be added whose parameter is a gradient already bound."""
    unharmed(
        "sgd", {}, ValueError, f"... {SHARED}", lambda o: o.add_param_group({"params": [o._stepper.plan.grads[0]]})
    )


@pytest.mark.parametrize(("grads", "message"), [
    ({"w": GW}, "grads has no 'b'; expected every name of params, None to leave one out"),
    ({"w": GW, "b": GB, "c": GB}, "grads has the unknown key 'c'; expected the names of params: ['w', 'b']"),
    ({"w": GB, "b": GB}, 'grads[0] ("w") has shape (2,); expected (3,), the shape of params[0] ("w")'),
])  # fmt: skip
def test_named_gradients(grads, message):
    """Messages name parameters that have names."""
    params = {"w": W.copy(), "b": B.copy()}
    opt = proptim.SGD(params)
    refused(ValueError, message, lambda: opt.step(grads), *params.values())
    refused(ValueError, message, lambda: proptim.SGD(params, grads=grads), *params.values())


def test_reals_are_no_complex_gradients():
    """Pairs of reals have the memory of complex gradients, and are refused all the same, mid-run too."""
    for bad in (np.ones((3, 2)), np.ones(3), np.ones(6)):
        params = [W + 1j * W]
        opt = proptim.SGD(params)
        message = "grads[0] is float64; expected complex128, the dtype of params[0]: convert it with .astype, a tensor "
        message += "with .to"
        for _ in range(2):
            refused(TypeError, message, lambda o=opt, g=bad: o.step([g]), *params)
            opt.step([GW - 1j * GW])
            opt.step([GW - 1j * GW])


@pytest.mark.parametrize(("grads", "message"), [
    (lambda: [locked(GW), GB.copy()], "grads[0] is read-only; expected a writable array: pass a copy"),
    (lambda: [REPEATED["windows"](GW), GB.copy()], "grads[0] has elements that share memory; ..."),
    (lambda: (lambda a: [a[:3], a[2:4]])(np.ones(4)), f"grads[...] and grads[...] {SHARED}"),
])  # fmt: skip
def test_gradients_to_be_zeroed(grads, message):
    """zero_grads asks for gradients that can be written, when they come and when it is switched on."""
    unharmed("sgd", {}, ValueError, message, lambda o: o.step(grads()), zero_grads=True)
    opt = proptim.SGD([W.copy(), B.copy()], grads=grads())
    refused(ValueError, message, lambda: setattr(opt, "zero_grads", True))
    assert not opt.zero_grads
    if "read" in message or "elements" in message:
        refused(ValueError, message, opt.zero_grad)


@pytest.mark.parametrize("name", NAMES)
def test_no_gradients(name):
    """step() before there are gradients, and step_param without one."""
    params = [W.copy(), B.copy()]
    opt = proptim.OPTIMIZERS[name](params)
    refused(ValueError, NO_GRADIENTS, opt.step, *params)
    unharmed(name, {}, TypeError, "grads[1] is None; expected an array", lambda o: o.step_param(1, None))


def test_step_param():
    """step_param raises an error for unknown keys, with clip_norm, and for rules that need the loss."""
    for key in (2, -1, "w", None, 0.0):
        unharmed(
            "sgd",
            {},
            ValueError,
            f"unknown parameter {key!r}; expected one of: 0 to 1",
            lambda o, k=key: o.step_param(k, GW),
        )
    named = proptim.SGD({"w": W.copy()})
    refused(ValueError, "unknown parameter 'b'; expected one of: ['w']", lambda: named.step_param("b", GB))
    message = "step_param cannot clip the global norm; expected step() with all gradients"
    unharmed("sgd", {}, ValueError, message, lambda o: o.step_param(0, GW), clip_norm=1.0)
    irprop = {"variant": "irprop+"}
    message = "irprop+ compares losses; expected step(..., loss=the loss)"
    for action in (lambda o: o.step_param(0, GW), lambda o: o.step(), lambda o: o.step([GW, GB])):
        unharmed("rprop", irprop, ValueError, message, action)


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
@pytest.mark.parametrize("name", NAMES)
def test_nonfinite_raise(name, dtype):
    """nonfinite="raise" names the parameter and the first bad element."""
    params = {"b": np.ones((), dtype), "w": np.ones((2, 3), dtype)}
    opt = proptim.OPTIMIZERS[name](params, nonfinite="raise")
    grads = {"b": np.ones((), dtype), "w": np.ones((2, 3), dtype)}
    grads["w"][1, 1:] = math.nan, math.inf
    message = 'grads[1] ("w") is ...nan... at index (1, 1); expected finite gradients'
    refused(FloatingPointError, message, lambda: opt.step(grads), *params.values())
    grads["b"][...] = -math.inf
    refused(
        FloatingPointError, 'grads[0] ("b") is ...-inf... at index (); ...', lambda: opt.step(grads), *params.values()
    )
    refused(FloatingPointError, message, lambda: opt.step_param("w", grads["w"]), *params.values())
    assert opt.steps == opt.skipped == 0


# Hyperparameters and options ---------------------------------------------------------------------------------------

NUMBERS = [(-1.0, ValueError), (math.nan, ValueError), (math.inf, ValueError), (-math.inf, ValueError),
           ("0.1", TypeError), (None, TypeError), (1j, TypeError), ((0.1,), TypeError)]  # fmt: skip
POSITIVE, DECAY, ANY = "a finite number >= 0", "a number >= 0 and < 1", "a finite number"
BETAS = "expected two numbers >= 0 and < 1"
ETAS = "expected 0 < eta_minus < 1 < eta_plus"
SIZES = "expected 2**-50 <= step_min <= step_max <= 2**37"


@pytest.mark.parametrize(("value", "error"), NUMBERS, ids=repr)
@pytest.mark.parametrize("name", NAMES)
def test_learning_rates(name, value, error):
    """Every optimizer refuses an invalid learning rate: at once, in a group, from a schedule and set later."""
    cls, message = proptim.OPTIMIZERS[name], f"Invalid learning rate: {value!r} (expected {POSITIVE})"
    refused(error, message, lambda: cls([W], lr=value), W)
    refused(error, message, lambda: cls([{"params": [W]}, {"params": [B], "lr": value}], lr=0.1), W)
    if name == "rprop":
        return
    refused(error, message, lambda: cls([W], lr=lambda k: value), W)

    def later(opt):
        opt.param_groups[0]["lr"] = value
        try:
            opt.step()
        finally:
            opt.param_groups[0]["lr"] = 0.1

    unharmed(name, {"lr": 0.1}, error, message, later)
    params = [W.copy()]
    opt = cls(params, lr=lambda k: (0.1, 0.1, value)[k], grads=[GW])
    opt.step()
    opt.step()
    refused(error, message, opt.step, *params)
    assert opt.steps == opt.state[0]["step"] == 2
    opt.lr = 0.1
    opt.step()


BAD = [
    *[("sgd", {"momentum": v}, f"Invalid momentum value: {v} (expected {POSITIVE})") for v in (-0.1, math.nan)],
    *[("sgd", {"dampening": v}, f"Invalid dampening value: {v} (expected {ANY})") for v in (math.nan, -math.inf)],
    *[("sgd", {"nesterov": True, **more}, "Nesterov momentum requires a momentum and zero dampening")
      for more in ({}, {"momentum": 0.9, "dampening": 0.1})],
    ("rmsprop", {"nesterov": True}, "Nesterov momentum requires a momentum"),
    *[("rmsprop", {"alpha": v}, f"Invalid alpha value: {v} (expected {DECAY})") for v in (1.0, -0.1, math.nan)],
    ("rmsprop", {"momentum": -0.1}, f"Invalid momentum value: -0.1 (expected {POSITIVE})"),
    ("rmsprop", {"initial_square_avg": -1}, f"Invalid initial_square_avg value: -1 (expected {POSITIVE})"),
    ("adagrad", {"lr_decay": -0.1}, f"Invalid lr_decay value: -0.1 (expected {POSITIVE})"),
    ("adagrad", {"initial_accumulator_value": -1}, "Invalid initial_accumulator_value value: -1 (...)"),
    *[("adadelta", {"rho": v}, f"Invalid rho value: {v} (expected {DECAY})") for v in (1.0, -0.1)],
    ("nadam", {"momentum_decay": -1.0}, f"Invalid momentum_decay value: -1.0 (expected {POSITIVE})"),
    *[(n, {"eps": -1e-8}, f"Invalid epsilon value: -1e-08 (expected {POSITIVE})")
      for n in ("rmsprop", "adagrad", "adadelta", "adam", "adamw", "nadam")],
    *[(n, {"betas": v}, f"Invalid betas: {v} ({BETAS})")
      for n in ("adam", "adamw", "nadam", "lion") for v in (0.9, (0.9,), (0.9, 0.9, 0.9), None, "ab")],
    *[(n, {"betas": v}, f"Invalid beta parameter at index {i}: {v[i]} (expected {DECAY})")
      for n in ("adam", "adamw", "nadam", "lion") for i, v in enumerate([(1.0, 0.9), (0.9, -0.1)])],
    *[("rprop", {"etas": v}, f"Invalid eta values: {v} ({ETAS})")
      for v in ((0.5, 1.0), (1.0, 1.2), (0.0, 1.2), (1.2, 0.5), (0.5, math.inf), (math.nan, 2.0), 0.5, (1,), ("a", 2))],
    *[("rprop", {"step_sizes": v}, f"Invalid step sizes: {v} ({SIZES})")
      for v in ((2.0**-51, 1.0), (1.0, 2.0**38), (2.0, 1.0), (math.nan, 1.0), 1.0, (1.0, 2.0, 3.0), None)],
    ("rprop", {"variant": "rprop"},
     "Invalid variant: 'rprop' (expected one of 'rprop-', 'irprop-', 'rprop+', 'irprop+')"),
    ("rprop", {"lr": abs},
     "Invalid lr: a schedule (expected a number: Rprop reads lr only once, before the first step)"),
    *[(n, {"weight_decay": v}, f"Invalid weight_decay value: {v} (expected {POSITIVE})")
      for n in NAMES for v in (-0.1, math.nan, math.inf)],
    *[(n, {"clip_value": v}, f"Invalid clip_value: {v} (expected a number >= 0)")
      for n in NAMES for v in (-0.1, math.nan)],
]  # fmt: skip


@pytest.mark.parametrize(("name", "hyper", "message"), BAD)
def test_hyperparameters(name, hyper, message):
    """Every hyperparameter out of range is refused at construction, in a group, and when it is set later."""
    cls = proptim.OPTIMIZERS[name]
    refused(ValueError, message, lambda: cls([W], **hyper), W)
    refused(ValueError, message, lambda: cls([{"params": [W], **hyper}]), W)
    if cls.fixed & hyper.keys():
        return

    def later(opt):
        group = opt.param_groups[0]
        before = dict(group)
        group.update(hyper)
        try:
            opt.step(loss=1.0)
        finally:
            group.update({key: before[key] for key in hyper})

    unharmed(name, {}, ValueError, message, later)


@pytest.mark.parametrize(("option", "error", "message"), [
    ({"clip_norm": -1.0}, ValueError, "Invalid clip_norm value: -1.0 (expected a number >= 0)"),
    ({"clip_norm": "1"}, TypeError, "Invalid clip_norm value: '1' (expected a number >= 0)"),
    ({"clip_norm": lambda k: math.nan}, ValueError, "Invalid clip_norm value: nan (expected a number >= 0)"),
    ({"grad_scale": math.inf}, ValueError, f"Invalid grad_scale value: inf (expected {ANY})"),
    ({"grad_scale": None}, TypeError, f"Invalid grad_scale value: None (expected {ANY})"),
    ({"max_skips": -1}, ValueError, f"Invalid max_skips value: -1 (expected {POSITIVE})"),
    ({"max_skips": 2.5}, ValueError, "Invalid max_skips value: 2.5 (expected a whole number >= 0)"),
    ({"nonfinite": "no"}, ValueError, "Invalid nonfinite policy: 'no' (expected 'propagate', 'skip' or 'raise')"),
    ({"backend": "cuda"}, ValueError, "Invalid backend: 'cuda' (expected one of 'c', 'numba', 'numpy')"),
    *[({"threads": v}, ValueError, f"threads is {v!r}; expected a whole number of at least 1")
      for v in (0, -1, 1.5, math.inf, None, "all")],
])  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_options(name, option, error, message):
    """Options that are not legal are refused at construction, those that can be set also when they are set."""
    refused(error, message, lambda: proptim.OPTIMIZERS[name]([W], **option), W)
    (key, value), params = *option.items(), [W.copy()]
    if key not in ("backend", "threads"):
        opt = proptim.OPTIMIZERS[name](params, grads=[GW])
        opt.step()
        before = getattr(opt, key)
        refused(error, message, lambda: setattr(opt, key, value), *params)
        assert getattr(opt, key) is before
        opt.step()


@pytest.mark.parametrize("off", [False, np.bool_(False), torch.tensor(False)], ids=repr)
def test_a_bound_is_not_false(off):
    """clip_norm=False seems to mean that nothing is clipped, and as a 0 would clip all gradients to 0."""
    for call, label in (
        (lambda: proptim.SGD([W], clip_norm=off), "clip_norm value"),
        (lambda: proptim.SGD([W], clip_value=off), "clip_value"),
        (lambda: proptim.torch.SGD([torch.ones(3, requires_grad=True)], clip_norm=off), "clip_norm value"),
        (lambda: proptim.functional.sgd(W.copy(), GW, clip_value=off), "clip_value"),
    ):
        with pytest.raises(TypeError, match=rf"^Invalid {label}: False \(expected a number >= 0"):
            call()
    with pytest.raises(TypeError, match=r"^Invalid max_norm value: False \(expected a number >= 0"):
        proptim.clip_grad_norm([GW.copy()], False)


ALIKE = {
    "threads": (True, False, np.bool_(True), torch.tensor(True), 0, -1, "x", "AUTO", 1.5, math.nan, None, [2], (1, 2)),
    "seed": (True, np.bool_(True), 1.0, "1", -1, 2**64, None, [3], np.ones(2, int)),
    "grad_scale": ("1", b"1", None, math.nan, math.inf, 2 + 0j, [1.0, 2.0], np.ones(2)),
    "backend": (3, 0, "", "x", "C", True, False, ["c"], np.array(["c", "numpy"])),
    "rounding": (True, None, 3, "x", "", ["nearest"], np.ones(2)),
    "zero_grads": (1, 0, None, "x", [True, False], np.ones(2)),
    "flush_denormals": (1, 0, None, "x"),
    "cast_grads": (1, 0, None, "x"),
    "ema": (True, False, "x", 1.0, -0.1, [0.5, 0.5]),
    "clip_value": (False, "x", -1.0, math.nan, [0.5, 0.5]),
    "maximize": (1, 0, None, "x"),
}
"""Options that functions and both kinds of optimizers have, and values that are none of them."""


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in ALIKE.items() for value in values])
def test_options_are_refused_alike(key, value):
    """Functions, optimizers of arrays and those of proptim.torch: the same values, with the same error."""
    w, tensor = W.copy(), torch.nn.Parameter(torch.ones(3))
    beside = {"average": W.copy()} if key == "ema" else {}
    found = set()
    for call in (
        lambda: proptim.functional.sgd(w, GW, step=1, **{key: value}, **beside),
        lambda: proptim.SGD([w], **{key: value}),
        lambda: proptim.torch.SGD([tensor], **{key: value}),
    ):
        with pytest.raises((TypeError, ValueError)) as error:
            call()
        found.add((error.type, str(error.value)))
    assert len(found) == 1, found
    assert bits(w) == bits(W)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_names(name):
    """Errors for unknown keywords and hyperparameters list those that exist."""
    cls = proptim.OPTIMIZERS[name]
    message = f"{cls.__name__} got an unexpected keyword argument 'fused'; expected some of: lr, ...grads, ...backend"
    refused(TypeError, message, lambda: cls([W], fused=True), W)
    opt = cls([W.copy()])
    group, known = opt.param_groups[0], ", ".join(sorted({*opt.param_groups[0]} - {"params"}))
    hint = f"unknown hyperparameter 'weight_decays': did you mean 'weight_decay'?; known here: {known}"
    refused(ValueError, hint, lambda: group.update(weight_decays=1))
    refused(ValueError, "hyperparameter 'lr' cannot be removed; ...", lambda: group.pop("lr"))
    for key in ("params", *cls.fixed):
        message = f"{key!r} has no effect after construction; expected no change: make a new optimizer"
        refused(ValueError, message, lambda k=key: group.update({k: 1.0}))
    assert ", ".join(sorted({*group} - {"params"})) == known


@pytest.mark.parametrize("count", [0, -3, 1.5, "two", None, math.nan, True, False])
def test_number_of_threads(count):
    """set_num_threads wants a whole number."""
    before = proptim.get_num_threads()
    message = f"number of threads is {count!r}; expected a whole number of at least 1"
    refused(ValueError, message, lambda: proptim.set_num_threads(count))
    assert proptim.get_num_threads() == before


def test_stepping_from_a_schedule():
    """A schedule that steps its own optimizer raises an error that says so."""
    busy = (
        "this call was made by a schedule or a signal handler within another call of the same optimizer; expected no "
        "call until that one has returned: do this afterwards"
    )
    armed = []
    opt = proptim.SGD([W.copy()], lr=lambda k: (armed and opt.step([GW])) or 0.1)
    armed.append(True)
    refused(RuntimeError, busy, lambda: opt.step([GW]), *opt.param_groups[0]["params"])
    armed.clear()
    opt.step([GW])
    assert opt.steps == 1


def test_memory_runs_out(monkeypatch):
    """An allocation that fails half-way leaves everything as it was, and the change takes effect later."""
    whole, calls = np.empty_like, []

    def scarce(*args, **options):
        calls.append(None)
        if len(calls) == 2:
            raise MemoryError
        return whole(*args, **options)

    def starve(opt):
        opt.param_groups[0]["momentum"] = 0.9
        with monkeypatch.context() as patch:
            patch.setattr(np, "empty_like", scarce)
            opt.step()

    params = [W.copy(), B.copy()]
    opt = proptim.SGD(params, grads=[GW, GB])
    opt.step()
    refused(MemoryError, "", lambda: starve(opt), *params)
    opt.step()
    assert [s["momentum_buffer"].tolist() for s in opt.state.values()] == [GW.tolist(), GB.tolist()]


@pytest.mark.parametrize("way", ["step", "step_param"])
def test_refused_gradients_are_not_bound(backend, way):
    """After a refused step the gradients bound before are there as they were, for the next step without any."""
    param, good = np.zeros(3), np.ones(3)
    opt = proptim.SGD([param], lr=0.5, nonfinite="raise")
    opt.step([good])
    with pytest.raises(FloatingPointError):
        opt.step([np.array([1.0, np.nan, 1.0])]) if way == "step" else opt.step_param(0, np.array([1.0, np.nan, 1.0]))
    opt.step()
    assert np.array_equal(param, [-1.0] * 3)
    good[:] = 2
    opt.step()
    assert np.array_equal(param, [-2.0] * 3)


def test_refused_step_grows_nothing(backend):
    """State arrays that a changed option asks for are made by the step that needs them, not by one that is refused."""
    param = np.zeros(3)
    opt = proptim.SGD([param], lr=1.0, nonfinite="skip", max_skips=1)
    opt.param_groups[0]["momentum"] = 0.5
    bad = np.full(3, np.inf)
    opt.step([bad])  # skipped
    with pytest.raises(FloatingPointError):
        opt.step([bad])
    assert [*opt.state[0]] == ["step"]
    for _ in range(2):
        opt.step([np.ones(3)])
    assert np.array_equal(param, [-2.5] * 3)
    assert [*opt.state[0]] == ["step", "momentum_buffer"]


def test_refused_for_loss_leaves_norm(backend):
    """A step that fails because the loss is missing has not computed the norm of its gradients."""
    opt = proptim.Rprop([np.zeros(3)], variant="irprop+", clip_norm=1.0)
    with pytest.raises(ValueError, match="loss"):
        opt.step([np.ones(3)])
    assert opt.grad_norm is None


@pytest.mark.parametrize(
    ("norm", "error"),
    [(-1.0, ValueError), (-math.inf, ValueError), (np.array([-2]), ValueError), (10**400, ValueError),
     ("1", TypeError), (1j, TypeError), ([1.0], TypeError), (np.ones(2), TypeError), (torch.ones(2), TypeError)],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}])
def test_norm_that_is_none(options, norm, error):
    """A grad_norm that no gradients have is refused, also in a step that is otherwise like the last one."""
    message = f"grad_norm is {norm!r:.80}; expected one number >= 0"
    unharmed("adam", {}, error, message, lambda o: o.step([GW * 2, GB], grad_norm=norm), **options)
    unharmed("adam", {}, error, message, lambda o: o.step(grad_norm=norm), **options)


def test_interrupted_before_the_step(backend, monkeypatch):
    """What interrupts a step that is like the last one leaves the gradients of the last one bound."""
    param, first, second = np.zeros(2), np.ones(2), np.full(2, 100.0)
    opt = proptim.Adam([param], lr=1.0)
    for _ in range(2):
        opt.step([first])

    def interrupt(*args):
        raise KeyboardInterrupt

    before = param.copy()
    with monkeypatch.context() as patch:
        patch.setattr(proptim.Adam, "advance", staticmethod(interrupt))
        with pytest.raises(KeyboardInterrupt):
            opt.step([second])
    assert np.array_equal(param, before)
    assert opt.steps == 2
    assert opt._stepper.plan.grads[0] is first
    opt.step()
    assert np.allclose(param, [-3.0] * 2)  # Adam of equal gradients: lr a step; with `second` it would be less


def test_gradient_in_a_state_array_that_was_off(backend):
    """A state array that an option has switched off may be needed again, and is no gradient."""
    param = np.zeros(4)
    opt = proptim.RMSprop([param], centered=True)
    opt.step([np.ones(4)])
    average = opt.state[0]["grad_avg"]
    opt.param_groups[0]["centered"] = False
    for _ in range(3):
        refused(ValueError, "...share memory...", lambda: opt.step([average]), param, average)
        opt.step([np.ones(4)])


def test_skip_with_a_gradient_that_became_read_only(backend):
    """A step that is skipped and cannot set its gradients to zero is an error, and changes nothing."""
    params, grads = [np.zeros(2), np.zeros(2)], [np.ones(2), np.full(2, np.nan)]
    opt = proptim.SGD(params, grads=grads, nonfinite="skip", zero_grads=True)
    grads[1].flags.writeable = False
    refused(ValueError, "...read-only...", opt.step, *params, *grads)
    assert opt.skipped == 0


def test_failed_growth_measures_nothing(backend, monkeypatch):
    """A step that fails for lack of memory is not counted: the norm and the skips in a row are as before."""
    opt = proptim.SGD([np.zeros(3)], nonfinite="skip", max_skips=1, clip_norm=1.0)
    opt.step([np.ones(3)])
    norm = opt.grad_norm
    opt.step([np.full(3, np.nan)])
    opt.param_groups[0]["momentum"] = 0.9
    with monkeypatch.context() as patch:
        patch.setattr(np, "empty_like", lambda *args, **options: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            opt.step([np.full(3, 5.0)])
    assert opt.grad_norm == norm
    with pytest.raises(FloatingPointError, match="1 skips in a row"):
        opt.step([np.full(3, np.nan)])


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_numbers_that_could_change(backend, kind):
    """A hyperparameter given as an array or tensor is the number that it was then."""
    param, lr, scale, beta = np.zeros(1), kind(0.5), kind(1.0), kind(0.5)
    opt = proptim.SGD([param], lr=lr, grad_scale=scale)
    adam = proptim.Adam([np.zeros(1)], betas=(beta, 0.9))
    opt.step([np.ones(1)])
    for changed in (lr, scale, beta):
        changed[...] = 2.0
    opt.step()
    assert param == [-1.0]
    assert (opt.lr, opt.grad_scale, adam.param_groups[0]["betas"]) == (0.5, 1.0, (0.5, 0.9))


def test_options_set_later_are_checked(backend):
    """Setting an option to an invalid value is an error and changes nothing, whatever the other options are by then."""
    param, seed = np.zeros(1), "(expected a whole number >= 0, below 2**64)"
    opt = proptim.SGD([param], clip_norm=lambda step: 1.0 - step)
    for _ in range(2):
        opt.step([np.ones(1)])
    refused(ValueError, "Invalid clip_norm value: -1.0...", lambda: opt.step([np.ones(1)]), param)
    before = {name: getattr(opt, name) for name in SETTINGS}
    for name, value, error, message in (
        ("max_skips", "x", TypeError, "Invalid max_skips value: 'x'..."),
        ("max_skips", -1, ValueError, "Invalid max_skips value: -1..."),
        ("flush_denormals", "no", TypeError, "Invalid flush_denormals: 'no' (expected True or False)"),
        ("zero_grads", "no", TypeError, "Invalid zero_grads: 'no' (expected True or False)"),
        ("clip_norm", lambda step: 1.0 - step, ValueError, "Invalid clip_norm value: -1.0..."),
        *[("seed", value, ValueError, f"Invalid seed: {value!r} {seed}") for value in ("x", -1, 2**64, None, True)],
    ):
        refused(error, message, lambda name=name, value=value: setattr(opt, name, value), param)
        assert {name: getattr(opt, name) for name in SETTINGS} == before
    opt.seed, opt.nonfinite, opt.clip_norm = 2**64 - 1, "skip", None
    opt.step([np.ones(1)])
    refused(
        TypeError,
        "Invalid zero_grads: 'no' (expected True or False)",
        lambda: proptim.SGD([param], zero_grads="no"),
        param,
    )


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_numbers_beyond_every_float(value):
    """Whole numbers that no float can hold are refused as other illegal numbers are."""
    for make in (
        lambda: proptim.SGD([W], lr=value),
        lambda: proptim.Adam([W], betas=(0.9, value)),
        lambda: proptim.Rprop([W], etas=(0.5, value)),
        lambda: proptim.Rprop([W], step_sizes=(1e-6, value)),
    ):
        with pytest.raises(ValueError, match="Invalid"):
            make()
