"""Steps without an object, and helpers over collections: the object's bits, and the same care."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch

import proptim
from proptim import _backend, functional, schedules
from proptim.cli.selftest import OPTIONS, gradient

NAMES = list(proptim.OPTIMIZERS)
CASES = [pytest.param(name, options, id=f"{name}-{i}") for name in NAMES for i, options in enumerate(OPTIONS[name])]
LOSSES = (3.0, 2.0, 2.5, 1.0)
STAGED = {
    "weight_decay": 0.1,
    "clip_value": 0.7,
    "grad_scale": 0.5,
    "maximize": True,
    "zero_grads": True,
    "flush_denormals": True,
}
LAYOUTS = {
    "dense": lambda a: a,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "strided": lambda a: np.repeat(a, 2, axis=0)[::2],
    "reversed": lambda a: a[:, ::-1].copy()[:, ::-1],
}


def call(name, param, grad, state, k, **options):
    """Step k of one optimizer by its function."""
    variant = options.get("variant")
    extra = {"loss": LOSSES[k], "prev_loss": LOSSES[k - 1] if k else math.inf} if variant == "irprop+" else {}
    getattr(functional, name)(param, grad, **state, step=k + 1, **extra, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", [{}, STAGED], ids=["plain", "staged"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_same_bits_as_the_object(name, options, stage, layout):
    """Function and object give the same parameters, gradients and state over several steps."""
    options = {**options, **stage}
    for dtype in ("f4", "f8", "c8", "c16"):
        rng = np.random.default_rng(1)
        start = rng.standard_normal((3, 5)).astype(dtype)
        mine, theirs = LAYOUTS[layout](start.copy()), LAYOUTS[layout](start.copy())
        opt = proptim.OPTIMIZERS[name]([theirs], **options)
        hyper = {k: v for k, v in options.items() if k not in ("grad_scale", "zero_grads", "flush_denormals")}
        state = getattr(functional, name).init(mine, **hyper)
        for k, loss in enumerate(LOSSES):
            grad = LAYOUTS[layout](gradient(rng, 15, np.dtype(dtype).type(0).real.dtype).reshape(3, 5).astype(dtype))
            other = grad.copy()
            call(name, mine, grad, state, k, **options)
            opt.step([other], loss=loss)
            kept = opt._parameters[0].state
            assert mine.tobytes() == theirs.tobytes()
            assert grad.tobytes() == other.tobytes()
            assert {n: a.tobytes() for n, a in state.items()} == {n: a.tobytes() for n, a in kept.items()}


@pytest.mark.parametrize("name", NAMES)
def test_defaults_and_schedules(name):
    """Defaults are the object's, state may be positional, and schedules are evaluated as the object does."""
    rng = np.random.default_rng(2)
    start, grad = rng.standard_normal((2, 9))
    for options in ({}, {"weight_decay": schedules.linear(0.5, 0.0, 3), "clip_value": schedules.exponential(1.0, 0.5)}):
        mine, theirs = start.copy(), start.copy()
        opt = proptim.OPTIMIZERS[name]([theirs], **options)
        state = getattr(functional, name).init(mine, **options)
        for k in range(4):
            getattr(functional, name)(mine, grad, *state.values(), step=k + 1, **options)
            opt.step([grad])
        assert mine.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_threads_and_backends(name):
    """The same bits on every backend and number of threads."""
    seen = set()
    for backend in [b for b, missing in _backend.available_backends().items() if not missing]:
        for threads in (1, 2, "auto"):
            param = np.linspace(-1, 1, 300)
            state = getattr(functional, name).init(param)
            getattr(functional, name)(param, np.cos(param), **state, backend=backend, threads=threads)
            seen.add(param.tobytes())
    assert len(seen) == 1


def test_nadam_product():
    """mu_product spares NAdam the way from the first step, and gives the same bits."""
    opt = proptim.NAdam([np.ones(3)])
    for _ in range(5):
        opt.step([np.ones(3)])
    results = []
    for product in ({}, {"mu_product": opt.state[0]["mu_product"]}):
        param, m, v = np.ones(3), np.ones(3), np.ones(3)
        functional.nadam(param, np.full(3, 0.5), m, v, step=6, **product)
        results.append(param.tobytes())
    assert results[0] == results[1]


def test_arrays_in_place():
    """Tensors and buffers are stepped in their own memory."""
    param, square = torch.ones(3, dtype=torch.float64), memoryview(bytearray(24)).cast("d")
    functional.rmsprop(param, torch.ones(3, dtype=torch.float64), square, lr=0.1, alpha=0.75)
    assert square.tolist() == [0.25] * 3
    assert param.numpy() == pytest.approx(0.8, rel=1e-7)


@pytest.mark.parametrize(("name", "array"), [("rmsprop", "grad_avg"), ("sgd", "momentum_buffer"),
                                             ("adam", "max_exp_avg_sq")])  # fmt: skip
def test_hyperparameters_decide(name, array):
    """A state array whose hyperparameter is off is neither read nor written."""
    function = getattr(functional, name)
    plain, given, extra = np.ones(3), np.ones(3), np.full(3, 7.0)
    function(plain, np.ones(3), **function.init(plain))
    function(given, np.ones(3), **function.init(given), **{array: extra})
    assert given.tobytes() == plain.tobytes()
    assert (extra == 7).all()


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    """Each function shows its arrays, hyperparameters and defaults."""
    function, cls = getattr(functional, name), proptim.OPTIMIZERS[name]
    shown = inspect.signature(function).parameters
    assert list(shown)[: 2 + len(cls.states)] == ["param", "grad", *cls.states]
    wanted = {
        p.name: p.default for p in inspect.signature(cls).parameters.values() if p.name not in ("params", "options")
    }
    assert {k: shown[k].default for k in wanted} == wanted
    assert repr(function).startswith(f"<function proptim.functional.{name}(param, grad")
    assert cls.__name__ in function.__doc__


ONES = np.ones(3)
REFUSED = [
    (lambda p, v: functional.rmsprop(p, ONES), TypeError, r"rmsprop has no square_avg; expected an array like param"),
    (lambda p, v: functional.rmsprop(p, ONES, None), TypeError, r"rmsprop has no square_avg; expected an array"),
    (lambda p, v: functional.rmsprop(p, ONES, v, momentum=0.5), TypeError, r"rmsprop has no momentum_buffer"),
    (lambda p, v: functional.rmsprop(p, ONES, v, *[ONES] * 3), TypeError, r"rmsprop got 4 state arrays"),
    (lambda p, v: functional.rmsprop(p, ONES, v, betas=1), TypeError, r"unexpected keyword argument 'betas'"),
    (lambda p, v: functional.rmsprop(p, ONES, v, clip_norm=1.0), TypeError, r"unexpected keyword argument 'clip_norm'"),
    (lambda p, v: functional.rmsprop(p, ONES, v, square_avg=v), TypeError, r"unexpected keyword argument 'square_avg'"),
    (lambda p, v: functional.rmsprop(p, ONES, v, lr=-1.0), ValueError, r"Invalid learning rate: -1.0"),
    (lambda p, v: functional.rmsprop(p, ONES, v, nesterov=True), ValueError, r"Nesterov momentum requires a momentum"),
    (lambda p, v: functional.rmsprop(p, ONES, v, grad_scale=math.nan), ValueError, r"Invalid grad_scale value: nan"),
    (lambda p, v: functional.rmsprop(p, ONES, v, threads=0), ValueError, r"threads is 0; expected a whole number"),
    (lambda p, v: functional.rmsprop(p, ONES, v, backend="x"), ValueError, r"Invalid backend: 'x'"),
    (lambda p, v: functional.rmsprop(p, ONES, v, step=0), ValueError, r"step is 0; expected a whole number"),
    (lambda p, v: functional.rmsprop(p, ONES, v, step=1.5), ValueError, r"step is 1.5; expected a whole number"),
    (lambda p, v: functional.rmsprop([1.0], ONES, v), TypeError, r"param is list; expected a NumPy array"),
    (lambda p, v: functional.rmsprop(p, None, v), TypeError, r"grad is NoneType; expected a NumPy array"),
    (lambda p, v: functional.rmsprop(p, ONES, v.astype("f4")), TypeError, r"square_avg is float32; expected float64"),
    (lambda p, v: functional.rmsprop(p, ONES[:2], v), ValueError, r"grad has shape \(2,\); expected \(3,\), the shape"),
    (lambda p, v: functional.rmsprop(p, ONES, v[:2]), ValueError, r"square_avg has shape \(2,\); expected \(3,\)"),
    (lambda p, v: functional.rmsprop(p, p, v), ValueError, r"share memory; expected separate memory"),
    (lambda p, v: functional.rmsprop(p, ONES, p), ValueError, r"share memory; expected separate memory"),
    (lambda p, v: functional.rmsprop(p, v[::-1], v), ValueError, r"share memory; expected separate memory"),
    (lambda p, v: functional.rmsprop(p, ONES, np.broadcast_to(v[:1], 3)), ValueError, r"square_avg is read-only"),
    (lambda p, v: functional.rmsprop(np.broadcast_to(p[:1], 3), ONES, v), ValueError, r"param is read-only"),
    (lambda p, v: functional.rmsprop(p, np.broadcast_to(1.0, 3), v, zero_grads=True), ValueError, r"grad is read-only"),
    (lambda p, v: functional.rprop(p, ONES, v, variant="irprop+"), ValueError, r"irprop\+ compares losses; expected"),
]  # fmt: skip


@pytest.mark.parametrize(("action", "error", "message"), REFUSED)
def test_errors(action, error, message):
    """A call that is refused says why and changes nothing."""
    param, state = np.arange(3.0), np.full(3, 0.5)
    with pytest.raises(error, match=message):
        action(param, state)
    assert (param == np.arange(3.0)).all()
    assert (state == 0.5).all()
    assert (ONES == 1).all()


# Collections ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_flatten_steps_alike(name):
    """Stepping one flat buffer gives the bits of stepping the arrays one by one."""
    rng = np.random.default_rng(3)
    arrays = [
        np.asfortranarray(rng.standard_normal((4, 3))),
        rng.standard_normal(7)[::-1],
        np.array(2.0),
        np.empty((0, 2)),
    ]
    grads = [rng.standard_normal(a.shape) for a in arrays]
    flat, views = proptim.flatten(arrays)
    flat_grad, _ = proptim.flatten(grads)
    alone = [a.copy() for a in arrays]
    for params, given in (([flat], [flat_grad]), (alone, grads)):
        opt = proptim.OPTIMIZERS[name](params, lr=0.1, clip_value=0.5)
        for _ in range(3):
            opt.step(given)
    assert [v.tobytes() for v in views] == [a.tobytes() for a in alone]


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_flatten(dtype):
    """One aligned buffer in the order given, views of the original shapes, the originals untouched."""
    arrays = {"w": np.arange(6, dtype=dtype).reshape(2, 3), "b": np.array(6, dtype), "none": np.empty((0, 4), dtype)}
    flat, views = proptim.flatten(arrays)
    assert flat.dtype == dtype
    assert flat.tolist() == list(range(7))
    assert flat.ctypes.data % 64 == 0
    assert {k: v.shape for k, v in views.items()} == {"w": (2, 3), "b": (), "none": (0, 4)}
    views["w"][0, 0], views["b"][...] = 9, 8
    assert (flat[0], flat[-1], arrays["w"][0, 0]) == (9, 8, 0)
    again, listed = proptim.flatten(a for a in arrays.values())
    assert [v.shape for v in listed] == [(2, 3), (), (0, 4)]
    assert again.tolist() == list(range(7))


def test_global_norm():
    """The norm of everything in float64, whatever the collection, layout and dtype."""
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((70, 90)).astype("f4"), rng.standard_normal(50) + 1j
    expected = proptim.global_norm([a, b])
    assert expected == pytest.approx(math.hypot(np.linalg.norm(a.astype("f8")), np.linalg.norm(b)), rel=1e-14)
    for other in ({"a": a, "b": b}, (a, None, b), iter([a, b]), [np.asfortranarray(a), b], [torch.tensor(a), b]):
        assert proptim.global_norm(other) == expected
    assert proptim.global_norm([]) == proptim.global_norm([None, np.empty(0)]) == 0.0
    assert proptim.global_norm([np.full(2, 1e200)]) == math.inf
    assert math.isnan(proptim.global_norm([np.array([1.0, math.nan])]))
    assert proptim.global_norm([np.float64(-3.0)]) == 3.0


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
def test_clip_grad_norm(max_norm):
    """As torch's clip_grad_norm_: gradients scaled in place, the norm before returned."""
    rng = np.random.default_rng(5)
    grads = [rng.standard_normal((4, 6)).T, rng.standard_normal(5) + 1j * rng.standard_normal(5), np.array(3.0)]
    params = [torch.nn.Parameter(torch.tensor(g)) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = torch.tensor(g)
    theirs = torch.nn.utils.clip_grad_norm_(params, max_norm)
    for wrap in (list, dict, iter):
        mine = [g.copy(order="K") for g in grads]
        given = dict(enumerate(mine)) if wrap is dict else wrap([*mine, None])
        assert proptim.clip_grad_norm(given, max_norm) == pytest.approx(theirs.item(), rel=1e-14)
        for m, p in zip(mine, params, strict=True):
            np.testing.assert_allclose(m, p.grad.numpy(), rtol=1e-14)


def test_clip_grad_norm_of_what_is_not_finite():
    """An infinite norm clips to nothing or NaN, a NaN makes everything NaN: visibly, as in torch."""
    for bad, expected in [(math.inf, [0.0, math.nan]), (math.nan, [math.nan, math.nan])]:
        grads, theirs = [np.array([1.0, bad])], torch.nn.Parameter(torch.ones(2))
        theirs.grad = torch.tensor([1.0, bad])
        with np.errstate(invalid="ignore"):
            proptim.clip_grad_norm(grads, 1.0)
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        np.testing.assert_array_equal(grads[0], expected)
        np.testing.assert_array_equal(theirs.grad.numpy(), expected)


LOCKED = np.broadcast_to(1.0, 3)


@pytest.mark.parametrize(("action", "error", "message"), [
    (lambda g: proptim.clip_grad_norm([g], -1.0), ValueError, "Invalid max_norm value: -1.0"),
    (lambda g: proptim.clip_grad_norm([g], "1"), TypeError, "Invalid max_norm value: '1'"),
    (lambda g: proptim.clip_grad_norm(g, 1.0), TypeError, "grads is ndarray; expected a sequence or dict of arrays"),
    (lambda g: proptim.clip_grad_norm(None, 1.0), TypeError, "grads is NoneType; expected a sequence or dict"),
    (lambda g: proptim.clip_grad_norm([g, LOCKED], 1.0), ValueError, r"grads\[1\] is read-only; expected"),
    (lambda g: proptim.clip_grad_norm({"a": g, "b": g[1:]}, 1.0), ValueError, r"grads\[.*\] and .* share memory"),
    (lambda g: proptim.clip_grad_norm([g, [1.0]], 1.0), TypeError, r"grads\[1\] is list; expected a NumPy array"),
    (lambda g: proptim.global_norm([g.astype(int)]), TypeError, r"grads\[0\] is int64; supported: float32"),
    (lambda g: proptim.flatten(g), TypeError, "params is ndarray; expected a sequence or dict of arrays"),
    (lambda g: proptim.flatten(3), TypeError, "params is int; expected a sequence or dict of arrays"),
    (lambda g: proptim.flatten([]), ValueError, "params is empty; expected at least one array"),
    (lambda g: proptim.flatten({"a": g, "b": g.astype("f4")}), TypeError, r"params\['b'\] is float32; expected"),
    (lambda g: proptim.flatten([g, g.astype("f2")]), TypeError, r"params\[1\] is float16; supported: float32"),
])  # fmt: skip
def test_refused_collections(action, error, message):
    """Collections that cannot be clipped, measured or flattened are refused unchanged."""
    grad = np.array([3.0, 4.0, 12.0])
    with pytest.raises(error, match=message):
        action(grad)
    assert grad.tolist() == [3.0, 4.0, 12.0]
