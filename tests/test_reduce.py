"""The global norm: the same bits everywhere, right, and what clipping makes of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

import proptim
from proptim import _backend, _numpy

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
    """Squares that float32 cannot hold are summed all the same, and tiny ones are not lost."""
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
