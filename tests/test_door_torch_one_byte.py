"""proptim.torch with state in one byte: the bits of the NumPy level, and its way through files and other dtypes."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest

import proptim

torch = pytest.importorskip("torch")
pytest.importorskip("proptim.torch")

SHAPE = (67, 83)
NAMES = [cls.__name__ for cls in proptim.OPTIMIZERS.values()]
OPTIONS = {"SGD": {"momentum": 0.9}, "Rprop": {"etas": (0.5, 2**0.25)}}


def made(name, params, **options):
    return getattr(proptim.torch, name)(
        params, **{"lr": 0.01, "state_dtype": "int8", **OPTIONS.get(name, {}), **options}
    )


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in (SHAPE, (7, 5))]


def copied(params):
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


def step(opt, seed, times=3):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        for p in opt.param_groups[0]["params"]:
            p.grad = torch.randn(p.shape, generator=generator)
        opt.step()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_steps_have_the_bits_of_arrays(name):
    params = parameters()
    arrays = [p.detach().numpy().copy() for p in params]
    opt = made(name, params)
    group = {key: value for key, value in opt.param_groups[0].items() if key in getattr(proptim, name).hyper}
    if name == "Rprop":
        group["variant"] = "irprop-"
    twin = getattr(proptim, name)(arrays, state_dtype="int8", **group)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        opt.step()
        twin.step([p.grad.numpy() for p in params])
    for p, array, state in zip(params, arrays, twin.state_dict()["state"].values(), strict=True):
        assert np.array_equal(p.detach().numpy(), array)
        if name != "Rprop" or p is params[0]:
            for key, value in state.items():
                if isinstance(value, np.ndarray):
                    assert np.array_equal(opt.state[p][key].numpy(), value)


@pytest.mark.parametrize("name", NAMES)
def test_state_goes_through_files(name):
    """torch.save, weights_only, and load_state_dict: a run goes on with the same bits; so do copies and pickles."""
    params = parameters()
    opt = made(name, params)
    step(opt, 2)
    buffer = io.BytesIO()
    torch.save(opt.state_dict(), buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    twin = made(name, copied(params))
    twin.load_state_dict(saved)
    others = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    step(opt, 3)
    for other in (twin, *others):
        step(other, 3)
        assert same(other.param_groups[0]["params"], params)


@pytest.mark.parametrize("name", NAMES)
def test_state_loads_across_dtypes(name):
    """With cast=True, to float32 and back to the same bytes; without it that is refused."""
    params = parameters()
    opt, wide, back = made(name, params), made(name, copied(params), state_dtype=None), made(name, copied(params))
    step(opt, 4)
    with pytest.raises(TypeError, match=r"is u?int8; expected float32, .* pass cast=True"):
        wide.load_state_dict(opt.state_dict())
    wide.load_state_dict(opt.state_dict(), cast=True)
    step(copy.deepcopy(wide), 5, 1)
    with pytest.raises(TypeError, match=r"is float32; expected u?int8, .* pass cast=True"):
        back.load_state_dict(wide.state_dict())
    back.load_state_dict(wide.state_dict(), cast=True)
    for p, q in zip(params, back.param_groups[0]["params"], strict=True):
        assert opt.state[p].keys() == back.state[q].keys()
        assert all(torch.equal(opt.state[p][key], back.state[q][key]) for key in opt.state[p])


def test_refusals():
    """In words; a grid of step sizes is made once, and the smallest size in force is shown."""
    w = torch.nn.Parameter(torch.zeros(SHAPE))
    with pytest.raises(ValueError, match=r"Invalid eta values: .* etas=\(0.5, 2\*\*0.25\)"):
        proptim.torch.Rprop([w], state_dtype="int8")
    with pytest.raises(ValueError, match=r"'int8' for params\[0\] of the group, which is float64"):
        proptim.torch.Adam([w.double().detach().requires_grad_()], state_dtype="int8")
    with pytest.raises(ValueError, match="'int8' with centered=True"):
        proptim.torch.RMSprop([w], state_dtype="int8", centered=True)
    opt = made("Rprop", [w])
    low, high = opt.param_groups[0]["step_sizes"]
    assert (low, high) == (pytest.approx(50 * 2.0**-21, rel=1e-6), 50)
    step(opt, 6, 1)
    before = w.detach().clone()
    opt.param_groups[0]["step_sizes"] = (1e-3, 1.0)
    with pytest.raises(ValueError, match="'step_sizes' cannot be changed with state_dtype='int8'"):
        opt.step()
    assert torch.equal(w, before)
    opt.param_groups[0]["step_sizes"] = (low, high)
    opt.step()
