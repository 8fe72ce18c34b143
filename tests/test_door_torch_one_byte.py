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


@pytest.mark.parametrize("name", [n for n in NAMES if hasattr(torch.optim, n)])
def test_torch_does_not_take_codes_for_numbers(name):
    """torch.optim finds no array under its name; what it has cast or stepped is refused, with cast=True too."""
    params, options = parameters(), {"momentum": 0.9} if name == "SGD" else {}
    opt = made(name, params, **options)
    step(opt, 7)
    theirs = getattr(torch.optim, name)(copied(params), **options)
    theirs.load_state_dict(opt.state_dict())
    if name == "SGD":  # which begins anew
        before = [p.detach().clone() for p in theirs.param_groups[0]["params"]]
        step(theirs, 8, 1)
        for p, w in zip(theirs.param_groups[0]["params"], before, strict=True):
            if p.numel() >= 4096:
                torch.testing.assert_close(p, w - theirs.param_groups[0]["lr"] * p.grad, rtol=0, atol=1e-6)
    else:
        with pytest.raises(KeyError):
            step(theirs, 8, 1)
    for state_dtype in (None, "int8"):
        for cast in (False, True):
            back = made(name, copied(params), state_dtype=state_dtype, **options)
            with pytest.raises(
                TypeError, match=r"^'\w+' in state 0 of state_dict is float32.*load_state_dict of torch"
            ):
                back.load_state_dict(theirs.state_dict(), cast=cast)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_before(name):
    """A state whose codes have the name of their array, as it was saved before they had one of their own, loads."""
    params = parameters()
    opt = made(name, params)
    step(opt, 9)
    twin, saved = made(name, copied(params)), copy.deepcopy(opt.state_dict())
    for key, state in saved["state"].items():
        saved["state"][key] = {n.removesuffix("_code"): value for n, value in state.items()}
    twin.load_state_dict(saved)
    for p, q in zip(params, twin.param_groups[0]["params"], strict=True):
        assert opt.state[p].keys() == twin.state[q].keys()
        assert all(torch.equal(opt.state[p][key], twin.state[q][key]) for key in opt.state[p])
    step(opt, 10)
    step(twin, 10)
    assert same(twin.param_groups[0]["params"], params)


def test_adagrad_begins_without_a_sum_in_float32():
    """torch's constructor makes one, which is not kept beside the codes."""
    p = torch.nn.Parameter(torch.ones(SHAPE))
    opt = proptim.torch.Adagrad([p], state_dtype="int8", initial_accumulator_value=0.5)
    assert {*opt.state[p]} == {"step", "sum_code", "sum_scale"}
    assert opt.state[p]["sum_code"].dtype == torch.uint8


def test_damaged_state_is_named():
    """At loading and at a step, with its name and whose state it is."""
    p = torch.nn.Parameter(torch.ones(SHAPE))
    opt = proptim.torch.Adam([p], state_dtype="int8")
    step(opt, 11, 1)
    blocks = len(opt.state[p]["exp_avg_scale"])
    for name, value, words in (
        ("exp_avg_scale", None, f" is missing; expected {blocks} numbers in float32, saved with {{}}$"),
        ("exp_avg_scale", torch.ones(3), rf" is float32 of shape \(3,\); expected float32 of shape \({blocks},\)"),
        ("exp_avg_code", torch.zeros(7, dtype=torch.int8), r" is int8 of shape \(7,\); expected int8 of shape"),
        ("exp_avg_code", torch.zeros(SHAPE), " is float32; expected int8 or uint8: "),
        ("exp_avg", torch.zeros(SHAPE), " is float32 beside 'exp_avg_code' and 'exp_avg_scale', of state in one byte"),
    ):
        saved = copy.deepcopy(opt.state_dict())
        saved["state"][0][name] = value
        with pytest.raises(
            (ValueError, TypeError),
            match=f"^{name!r} in state 0 of state_dict" + words.format("'exp_avg_code' in state 0 of state_dict"),
        ):
            opt.load_state_dict(saved)
        twin = copy.deepcopy(opt)
        q = twin.param_groups[0]["params"][0]
        twin.state[q][name] = value
        q.grad, before = torch.ones(SHAPE), q.detach().clone()
        with pytest.raises(
            (ValueError, TypeError),
            match=rf"^state {name!r} of params\[0\]" + words.format(r"state 'exp_avg_code' of params\[0\]"),
        ):
            twin.step()
        assert torch.equal(q, before)


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


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_state_loads_into_arrays_and_back(name, state_dtype, cast):
    """From proptim.torch into the class of arrays, the same bits, and from there into proptim.torch."""
    params = parameters()
    variant = {"variant": "irprop-"} if name == "Rprop" else {}
    opt = made(name, params, state_dtype=state_dtype, **variant)
    step(opt, 12)
    saved = opt.state_dict()
    group = {k: v for k, v in opt.param_groups[0].items() if k in getattr(proptim, name).hyper}
    arrays = [p.detach().numpy().copy() for p in params]
    twin = getattr(proptim, name)(arrays, state_dtype=state_dtype, **group)
    twin.load_state_dict(saved, cast=cast)
    back = made(name, copied(params), state_dtype=state_dtype)
    back.load_state_dict(twin.state_dict(), cast=cast)
    step(opt, 13)
    step(back, 13)
    generator = torch.Generator().manual_seed(13)
    for _ in range(3):
        twin.step([torch.randn(p.shape, generator=generator).numpy() for p in params])
    assert same(back.param_groups[0]["params"], params)
    assert all(np.array_equal(p.detach().numpy(), array) for p, array in zip(params, arrays, strict=True))


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_rows_of_blocks_are_refused(backend):
    """In the words of arrays, at every step, before anything is written; dense steps go on."""
    p = torch.nn.Parameter(torch.ones(SHAPE))
    options = {"state_dtype": "int8", "backend": backend}
    for opt in (proptim.torch.Adam([p], **options), proptim.torch.Offload([p], "Adam", **options)):
        for dense in (False, True, False):
            p.grad, before = torch.ones(SHAPE) if dense else torch.ones(SHAPE).to_sparse(1), p.detach().clone()
            if dense:
                opt.step()
                assert (p != before).all()
                continue
            words = r"^grads\[0\] is a gradient of rows, and the state of params\[0\] is in int8, .* expected a whole"
            with pytest.raises(ValueError, match=words):
                opt.step()
            assert torch.equal(p, before)
