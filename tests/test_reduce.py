"""The global norm: the same bits everywhere, its accuracy, and clipping."""

from __future__ import annotations

import math

import numpy as np
import pytest

import proptim
from proptim import _backend, _numpy
from proptim._prepared import clip_factor

# Around the 16 lanes and the block of 4096 of a partial sum.
SIZES = (0, 1, 2, 15, 16, 17, 31, 32, 33, 255, 4080, 4095, 4096, 4097, 4111, 4112, 8191, 8192, 8193, 12289, 40000)
LISTS = (*((n,) for n in SIZES), (4097, 0, 16, 1), (1, 1, 1), (17, 4096, 4096, 8193, 0), (3,) * 13)
DTYPES = (np.float32, np.float64, np.complex64, np.complex128)


def gradients(sizes, dtype, seed=0):
    """Gradients of very different magnitudes, so that the order of the additions shows."""
    rng = np.random.default_rng(seed)
    grads = []
    for n in sizes:
        spread = rng.standard_normal(n) * 10.0 ** rng.integers(-6, 6, n)
        grads.append((spread + (1j * rng.standard_normal(n) if np.dtype(dtype).kind == "c" else 0)).astype(dtype))
    return grads


def reals(grads):
    """The numbers in gradients, complex ones as two."""
    return [g.view(g.real.dtype) for g in grads]


def exact_norm(grads):
    """The norm with one rounding at the end of each part."""
    return math.sqrt(math.fsum(float(x) ** 2 for g in reals(grads) for x in g))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits(contestant, dtype):
    """global_norm, and the grad_norm of an optimizer, are those of the NumPy text to the last bit."""
    for sizes in LISTS:
        grads = gradients(sizes, dtype)
        expected = math.sqrt(_numpy.sum_of_squares(reals(grads))[0])
        assert proptim.global_norm(grads) == expected, sizes
        for threads in (1, 3):
            opt = proptim.SGD([np.zeros_like(g) for g in grads], clip_norm=1.0, threads=threads)
            opt.step(grads)
            assert opt.grad_norm == expected, sizes


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_blocks_may_come_from_elsewhere(backend, dtype):
    """Runs of whole blocks, each summed by itself, have the sums of their blocks; put together they are the sum."""
    block = _numpy.BLOCK // (2 if np.dtype(dtype).kind == "c" else 1)
    for sizes in LISTS:
        grads = gradients(sizes, dtype)
        runs = [g[i : i + 2 * block] for g in grads for i in range(0, g.size, 2 * block)]
        summed = [_backend.sums_of(backend).sums_of_blocks(reals([run]), threads) for run in runs for threads in (1, 2)]
        assert all(finite for _, finite in summed)
        for each in (summed[::2], summed[1::2]):
            sums = np.concatenate([np.zeros(0), *(blocks for blocks, _ in each)])
            assert sums.size == sum(-(-g.size // block) for g in grads)
            assert _backend.sums_of(backend).sum_of_blocks(sums) == _numpy.sum_of_squares(reals(grads))[0], sizes


def test_any_layout(backend):
    """The order of elements is the logical one: every layout gives the bits of the contiguous copy."""
    for dtype in DTYPES:
        grad = gradients([20 * 21 * 22], dtype)[0].reshape(20, 21, 22)
        expected = proptim.global_norm([grad])
        memory = np.full((40, 21, 44), np.nan, dtype)
        sliced = memory[::-2, :, 1::2]
        sliced[...] = grad
        permuted = grad.transpose(2, 0, 1).copy().transpose(1, 2, 0)
        unaligned = np.concatenate([np.zeros(1, dtype), grad.ravel()])[1:].reshape(grad.shape)
        for layout in (grad.copy(order="F"), sliced, permuted, unaligned):
            assert proptim.global_norm([layout]) == expected
            opt = proptim.SGD([np.zeros_like(grad)], clip_norm=1.0)
            opt.step([layout])
            assert opt.grad_norm == expected
    row = np.broadcast_to(np.float32([0.1, 0.2, 0.3]), (1000, 3))
    assert proptim.global_norm([row]) == proptim.global_norm([row.copy()])


@pytest.mark.parametrize("dtype", DTYPES)
def test_right(backend, dtype):
    """The norm is the exact one to within 1e-12: sums in float64 of at most 256 terms, then in pairs."""
    for sizes in LISTS:
        grads = gradients(sizes, dtype, seed=1)
        assert proptim.global_norm(grads) == pytest.approx(exact_norm(grads), rel=1e-12, abs=0)


def test_float32_range(backend):
    """Squares that overflow float32 are summed correctly, and tiny ones are not lost."""
    assert proptim.global_norm([np.full(4, 3e38, np.float32)]) == pytest.approx(2 * float(np.float32(3e38)), rel=1e-15)
    tiny = np.finfo(np.float32).smallest_subnormal
    assert proptim.global_norm([np.full(4, tiny)]) == 2 * float(tiny)


def test_collections(backend):
    """Dicts, None and nothing at all."""
    assert proptim.global_norm({"a": np.array([3.0]), "b": None, "c": np.array(4.0)}) == 5.0
    assert proptim.global_norm([]) == proptim.global_norm([None]) == 0.0


def test_overflow_is_finite(backend):
    """Finite gradients whose norm overflows are no reason to skip; one infinity among them is."""
    grads = [np.full(5000, 1e300), np.ones(3)]
    params = [np.ones(5000), np.ones(3)]
    opt = proptim.SGD(params, lr=1e-300, nonfinite="skip")
    opt.step(grads)
    assert (opt.steps, opt.skipped) == (1, 0)
    assert np.array_equal(params[0], np.zeros(5000))
    grads[1][2] = np.inf
    opt.step(grads)
    assert (opt.steps, opt.skipped) == (1, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_in_every_place(backend, value):
    """A single value that is not finite is found in every lane and in the tail."""
    for dtype in (np.float32, np.float64):
        grad = np.zeros(37, dtype)
        for i in range(grad.size):
            grad[i] = value
            assert _backend.sum_of_squares([np.zeros(5, dtype), grad])[1] is False, i
            grad[i] = 1
            assert _backend.sum_of_squares([np.zeros(5, dtype), grad])[1] is True, i


@pytest.mark.parametrize("limit", [0.0, 0.3, 1.0, 1e9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_is_that_of_torch(backend, dtype, limit):
    """clip_grad_norm and the clip_norm of an optimizer leave the gradients that torch's function leaves."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    ours = [rng.standard_normal(n).astype(dtype) for n in (7, 100, 1)]
    theirs = [torch.zeros(g.size, dtype=torch.from_numpy(g).dtype, requires_grad=True) for g in ours]
    for tensor, grad in zip(theirs, ours, strict=True):
        tensor.grad = torch.from_numpy(grad.copy())
    params = [np.zeros_like(g) for g in ours]
    opt = proptim.SGD(params, lr=1.0, clip_norm=limit)
    opt.step([g.copy() for g in ours])

    norm, torch_norm = proptim.clip_grad_norm(ours, limit), torch.nn.utils.clip_grad_norm_(theirs, limit)
    # torch sums in the dtype of the gradients: a few roundings of that
    close = {"rtol": 16 * np.finfo(dtype).eps, "atol": 0}
    np.testing.assert_allclose(norm, torch_norm.item(), **close)
    for grad, tensor, param in zip(ours, theirs, params, strict=True):
        np.testing.assert_allclose(grad, tensor.grad.numpy(), **close)
        assert np.array_equal(-param, grad)  # and both ways of ours are the same to the bit


def test_clip_changes_nothing_in_vain(backend):
    """A norm within the limit leaves every bit; a refused call too."""
    grads = gradients([17, 40], np.float32)
    before = [g.tobytes() for g in grads]
    norm = proptim.clip_grad_norm(grads, 1e9)
    assert norm == proptim.global_norm(grads)
    frozen = grads[1].copy()
    frozen.flags.writeable = False
    for bad in ([grads[0], frozen], [grads[0], grads[0]], [grads[0][1:], grads[0][:-1]]):
        with pytest.raises(ValueError, match="expected"):
            proptim.clip_grad_norm(bad, 0.1)
    with pytest.raises(ValueError, match="max_norm"):
        proptim.clip_grad_norm(grads, -1.0)
    assert [g.tobytes() for g in grads] == before


# The norm as it is given ------------------------------------------------------------------------------------------


def stepped(grads, given, **options):
    """Parameters, grad_norm and counts after two steps with the norm that `given` says, or without one."""
    params = [np.ones_like(g) for g in grads]
    opt = proptim.RMSprop(params, lr=0.5, **options)
    for step in range(2):
        now = [g / (step + 1) for g in grads]
        opt.step(now, grad_norm=None if given is None else given(now))
    return [p.tobytes() for p in params], opt.grad_norm, opt.steps, opt.skipped


@pytest.mark.parametrize("options", [{}, {"grad_scale": -0.5}, {"nonfinite": "skip"}, {"nonfinite": "raise"}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_given_norm(contestant, dtype, options):
    """A step that is given the norm is the step that measures it, bit for bit, in a plain one too."""
    grads = gradients((17, 4097), dtype)
    for clip_norm in (0.5, 1e30, math.inf):
        expected = stepped(grads, None, clip_norm=clip_norm, **options)
        assert stepped(grads, proptim.global_norm, clip_norm=clip_norm, **options) == expected, clip_norm
    params, norm, *counts = stepped(grads, proptim.global_norm, **options)
    plain, none, *plain_counts = stepped(grads, None, **options)
    assert (params, counts) == (plain, plain_counts)
    assert none is None
    assert norm == abs(options.get("grad_scale", 1.0)) * proptim.global_norm([g / 2 for g in grads])


@pytest.mark.parametrize("kind", [int, float, np.float32, np.array, lambda x: np.array([[x]]), "torch"])
def test_given_norm_is_believed(backend, kind):
    """The gradients are clipped by the norm that is given, one number of any kind, and not read for another."""
    kind = pytest.importorskip("torch").tensor if kind == "torch" else kind
    param, grad = np.zeros(2), np.array([3.0, 4.0])
    opt = proptim.SGD([param], lr=1.0, clip_norm=2.0, grad_scale=0.5)
    opt.step([grad], grad_norm=kind(16))
    assert np.array_equal(param, -grad * (0.5 * (2.0 / (8.0 + 1e-6))))
    assert opt.grad_norm == 8.0
    opt.step()  # and only once
    assert opt.grad_norm == 2.5
    opt.clip_norm = None
    for plain in range(3):  # also where a step is like the last one
        opt.step()
        assert opt.grad_norm == 2.5 + plain
        opt.step(grad_norm=kind(7 + 2 * plain))
        assert opt.grad_norm == 3.5 + plain
        opt.grad_scale = 0.5


@pytest.mark.parametrize("norm", [math.nan, math.inf])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_given_norm_not_finite(backend, norm, clip_norm):
    """A given norm decides whether gradients count as finite, whatever their elements are."""
    param, grad = np.ones(3), np.full(3, 2.0)
    opt = proptim.SGD([param], lr=1.0, clip_norm=clip_norm, nonfinite="skip", max_skips=2, zero_grads=True)
    for skipped in (1, 2):
        opt.step([grad], grad_norm=norm)
        assert (opt.steps, opt.skipped, opt.grad_norm) == (0, skipped, None)
        assert np.array_equal(param, [1.0] * 3)
        assert np.array_equal(grad, [0.0] * 3)
    expected = f"grad_norm is {norm}; expected finite gradients, after 2 skips in a row (max_skips)"
    with pytest.raises(FloatingPointError) as caught:
        opt.step(grad_norm=norm)
    assert str(caught.value) == expected
    opt.nonfinite = "raise"
    with pytest.raises(FloatingPointError, match=f"^grad_norm is {norm}; expected finite gradients$"):
        opt.step(grad_norm=norm)
    grad[1] = -math.inf
    with pytest.raises(FloatingPointError, match=r"^grads\[0\] is -inf at index \(1,\); expected finite gradients$"):
        opt.step(grad_norm=norm)
    assert np.array_equal(param, [1.0] * 3)
    opt.step(grad_norm=0.5)
    assert opt.steps == 1
    assert np.array_equal(param, [1.0, math.inf, 1.0])


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_given_norm_propagates(backend, norm):
    """With "propagate" a norm that is not finite does what arithmetic does, as one that is measured."""
    for clip_norm, expected in ((None, -1.0), (1.0, -1.0 * clip_factor(norm, 1.0))):
        param = np.zeros(1)
        opt = proptim.SGD([param], lr=1.0, clip_norm=clip_norm)
        opt.step([np.ones(1)], grad_norm=norm)
        assert np.array_equal(param, [expected], equal_nan=True)
        assert opt.steps == 1
        assert repr(opt.grad_norm) == repr(norm)
