"""proptim.torch: sparse gradients, as nn.Embedding(sparse=True) gives them, step the rows that they have."""

from __future__ import annotations

import copy
import io
import warnings

import numpy as np
import pytest
import torch

import proptim
import proptim.torch
from proptim.cli.selftest import OPTIONS

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant")  # which torch's own Adagrad sets off

RULES = {name: cls.__name__ for name, cls in proptim.OPTIMIZERS.items()}
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.bfloat16, torch.float16]
CASES = [
    pytest.param(name, options, id=f"{name}-{i}") for name, all_ in OPTIONS.items() for i, options in enumerate(all_)
]
STAGES = {"weight_decay": 0.1, "maximize": True, "clip_value": 1.5}
"""Hyperparameters that every rule has."""
WHOLE = {"clip_norm": 2.0, "grad_scale": 0.5, "flush_denormals": True, "nonfinite": "skip"}
"""Options of the whole optimizer."""


@pytest.fixture(autouse=True)
def one_thread():
    """Of torch, whose threads wait for each other where other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ours(name):
    return getattr(proptim.torch, name)


def sparse(indices, values, shape):
    """A gradient of rows; torch warns where nobody says whether they are to be checked."""
    return torch.sparse_coo_tensor(torch.tensor([indices], dtype=torch.int64), values, shape, check_invariants=False)


def drawn(seed, p, count=7, coalesced=False):
    """A gradient of some rows, most of them more than once."""
    torch.manual_seed(seed)
    indices = torch.randint(0, len(p), (count,)).tolist()
    grad = sparse(indices, torch.randn(count, *p.shape[1:], dtype=p.dtype), p.shape)
    return grad.coalesce() if coalesced else grad


def table(dtype=torch.float32, shape=(6, 4), seed=0):
    torch.manual_seed(seed)
    return torch.nn.Parameter(torch.randn(shape, dtype=dtype))


def state_of(opt, p):
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in opt.state[p].items()}


def rows_of(grad):
    """A gradient as an optimizer of NumPy arrays takes it."""
    if grad.layout == torch.strided:
        return grad.clone()
    return proptim.Rows(grad._indices()[0].numpy().copy(), grad._values().clone())


KINDS = (False, None, True, False, None, None, False)
"""Sparse as it comes, dense (None), or coalesced, in each step."""


def run(name, dtype, shape=(6, 4), **options):
    """A table and a dense parameter under proptim.torch, and their twins under proptim with the same gradients."""
    mine, theirs = [table(dtype, shape), table(seed=1)], [table(dtype, shape), table(seed=1)]
    opt = ours(RULES[name])(mine, lr=0.1, threads=1, **options)
    h = {key: opt.param_groups[0].get(key, value) for key, value in opt._hyper.items()}
    other = proptim.OPTIMIZERS[name](theirs, **{**h, **{k: options[k] for k in WHOLE if k in options}})
    losses = {"loss": 1.0} if h.get("variant") == "irprop+" else {}
    for k, coalesced in enumerate(KINDS):
        mine[1].grad = drawn(50 + k, mine[1]).to_dense()
        mine[0].grad = drawn(k, mine[0]).to_dense() if coalesced is None else drawn(k, mine[0], coalesced=coalesced)
        opt.step(*([lambda: torch.tensor(1.0)] if losses else []))
        other.step([rows_of(p.grad) for p in mine], **losses)
        yield opt, other, mine, theirs


def assert_same(opt, other, mine, theirs):
    """Bit for bit: parameters, the norm, and the state in the shape of torch's."""
    for i, (p, q) in enumerate(zip(mine, theirs, strict=True)):
        assert torch.equal(p, q)
        shown = other.state_dict()["state"][i]
        for key, value in opt.state[p].items():
            if key not in ("step", "mu_product", "prev_loss", "master", "master_lo"):
                assert value.layout == torch.strided
                assert value.shape == p.shape
                assert value.numpy().tobytes() == np.asarray(shown[key]).tobytes(), key
        if "step" in opt.state[p]:
            assert opt.state[p]["step"].item() == shown["step"]
    assert opt.grad_norm == other.grad_norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", RULES)
def test_every_dtype(name, dtype):
    if name == "nadam":  # whose product of momenta is a float32 in torch
        torch.set_default_dtype(torch.float64)
    try:
        for found in run(name, dtype):
            assert_same(*found)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_option(name, options):
    """The options of each rule, and with them those that all have; with rows of other shapes."""
    torch.set_default_dtype(torch.float64)
    try:
        given = {key: value for key, value in options.items() if key != "lr"}
        for shape in ((6,), (5, 20), (4, 2, 3)):
            for found in run(name, torch.float32, shape, **given):
                assert_same(*found)
            for found in run(name, torch.float32, shape, **{**given, **STAGES, **WHOLE}):
                assert_same(*found)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("backend", ["c", "numba", "numpy"])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_backend(backend, threads):
    found = []
    for options in ({}, {"backend": backend, "threads": threads}):
        p = table(shape=(50, 20))
        opt = proptim.torch.Adam([p], lr=0.1, clip_norm=1.0, **options)
        for k in range(4):
            p.grad = drawn(k, p, 200)
            opt.step()
        found.append((p.detach().numpy().tobytes(), opt.grad_norm))
    assert found[0] == found[1]


# Against torch --------------------------------------------------------------------------------------------------------

ULPS = 3
"""Rounding errors of one step in units of the last place of the parameter or of the way it has gone, as in
test_torch.py: torch fuses operations, and adds repeated rows in another order."""

PEERS = {
    "SparseAdam": ("Adam", {"eps_hat": True}, {}),
    "SparseAdam, maximize": ("Adam", {"eps_hat": True}, {"maximize": True, "betas": (0.7, 0.9), "eps": 1e-3}),
    "Adagrad": ("Adagrad", {}, {"lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    "SGD": ("SGD", {}, {}),
    "SGD, maximize": ("SGD", {}, {"maximize": True}),
}
"""A class of torch that takes sparse gradients -> ours, the options that make it the same, and those of both."""


def peers(kind):
    name, ours_only, both = PEERS[kind]
    return ours(name), getattr(torch.optim, kind.partition(",")[0]), ours_only, {"lr": 0.1, **both}


@pytest.mark.parametrize("coalesced", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", PEERS)
def test_the_numbers_of_torch(kind, dtype, coalesced):
    mine, other = table(dtype, (30, 5)), table(dtype, (30, 5))
    cls, theirs, ours_only, both = peers(kind)
    opt, judge = cls([mine], fallback="error", **both, **ours_only), theirs([other], **both)
    path = torch.zeros_like(other)
    for k in range(8):
        before = other.detach().clone()
        mine.grad, other.grad = drawn(k, mine, 20, coalesced), drawn(k, other, 20, coalesced)
        opt.step()
        judge.step()
        path += (other - before).abs()
        bound = ULPS * (k + 1) * torch.finfo(dtype).eps * (other.abs() + path)
        assert ((mine - other).abs() <= bound).all(), k


@pytest.mark.parametrize("kind", PEERS)
def test_the_state_of_torch_loads(kind):
    """In the middle of a run, here and in an optimizer of arrays; a run that is resumed goes on as torch's does."""
    name, ours_only, _ = PEERS[kind]
    cls, theirs, _, both = peers(kind)
    other = table(torch.float64, (30, 5))
    judge = theirs([other], **both)
    for k in range(3):
        other.grad = drawn(k, other, 20)
        judge.step()
    mine = torch.nn.Parameter(other.detach().clone())
    array = other.detach().numpy().copy()
    made = {"initial_accumulator_value": 0.1} if name == "Adagrad" else {}
    opt, flat = cls([mine], **ours_only), proptim.OPTIMIZERS[name.lower()]([array], **ours_only, **made)
    opt.load_state_dict(copy.deepcopy(judge.state_dict()))  # whose tensors are taken as they are
    flat.load_state_dict(judge.state_dict())
    assert opt.param_groups[0]["weight_decay"] == 0
    for k in range(3, 6):
        mine.grad, other.grad = drawn(k, mine, 20), drawn(k, other, 20)
        flat.step([mine.grad])
        opt.step()
        judge.step()
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(torch.tensor(array), other.detach(), rtol=1e-12, atol=1e-13)
    if name != "SGD":
        assert opt.state[mine]["step"].item() == judge.state[other]["step"] == flat.state[0]["step"] == 6
    judge.load_state_dict(opt.state_dict())  # and back


def test_hyperparameters_that_SparseAdam_has_not_stay():
    """Those of our optimizers, of tensors and of arrays, are not switched off by its state."""
    other = table(torch.float64, (30, 5))
    judge = torch.optim.SparseAdam([other], lr=0.1)
    other.grad = drawn(0, other, 20)
    judge.step()
    mine = torch.nn.Parameter(other.detach().clone())
    array = other.detach().numpy().copy()
    kept = {"weight_decay": 0.5, "amsgrad": True, "eps_hat": True}
    opt, flat = proptim.torch.Adam([mine], **kept), proptim.Adam([array], **kept)
    for each in (opt, flat):
        each.load_state_dict(copy.deepcopy(judge.state_dict()))
        assert {key: each.param_groups[0][key] for key in kept} == kept
        assert each.param_groups[0]["lr"] == 0.1
    for k in range(1, 4):
        mine.grad = drawn(k, mine, 20)
        flat.step([mine.grad])
        opt.step()
    assert mine.detach().numpy().tobytes() == array.tobytes()


def test_a_sparse_momentum_buffer_of_torch():
    """torch.optim.SGD makes one of a sparse gradient; it becomes a dense one."""
    p, q = table(), table()
    judge = torch.optim.SGD([q], lr=0.1, momentum=0.5)
    q.grad = drawn(0, q)
    judge.step()
    assert judge.state[q]["momentum_buffer"].is_sparse
    opt = proptim.torch.SGD([p], fallback="error")
    opt.load_state_dict(copy.deepcopy(judge.state_dict()))  # whose tensors are taken as they are
    assert torch.equal(opt.state[p]["momentum_buffer"], judge.state[q]["momentum_buffer"].to_dense())
    flat = proptim.SGD([p.detach().numpy().copy()])
    flat.load_state_dict(judge.state_dict())
    assert flat.state[0]["momentum_buffer"].tobytes() == opt.state[p]["momentum_buffer"].numpy().tobytes()
    p.grad = drawn(1, p)
    opt.step()


def test_momentum_of_other_rows_pauses():
    """Unlike torch.optim.SGD, whose momentum goes on moving a row that has had a gradient."""
    p = torch.nn.Parameter(torch.zeros(3, 1))
    opt = proptim.torch.SGD([p], lr=1.0, momentum=0.5)
    for rows in ([0], [1], [0]):
        p.grad = sparse(rows, torch.ones(1, 1), (3, 1))
        opt.step()
    assert p.flatten().tolist() == [-2.5, -1.0, 0.0]


# Training -------------------------------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    """An embedding beside dense layers."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(20, 4, sparse=True, dtype=dtype)
        self.linear = torch.nn.Linear(4, 1, dtype=dtype)

    def loss(self, seed):
        torch.manual_seed(seed)
        return self.linear(self.embedding(torch.randint(0, 20, (3, 5)))).square().mean()


def trained(name, steps, opt=None, model=None, begin=0, **options):
    model = model or Model()
    opt = opt or ours(name)(model.parameters(), lr=0.1, fallback="error", **options)
    for k in range(begin, steps):
        opt.zero_grad()
        model.loss(k).backward()
        opt.step(*([lambda k=k: model.loss(k).detach()] if options.get("variant") == "irprop+" else []))
    return model, opt


@pytest.mark.parametrize("name", RULES.values())
def test_a_resumed_run(name):
    """A file made between two steps, to the bit; its state is dense, in torch's names."""
    whole, _ = trained(name, 6)
    model, opt = trained(name, 3)
    file = io.BytesIO()
    torch.save((model.state_dict(), opt.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    fresh = Model()
    fresh.load_state_dict(weights)
    twin = ours(name)(fresh.parameters(), fallback="error")
    twin.load_state_dict(state)
    trained(name, 6, twin, fresh, begin=3)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), fresh.parameters(), strict=True))
    if hasattr(torch.optim, name):
        getattr(torch.optim, name)(Model().parameters()).load_state_dict(twin.state_dict())


@pytest.mark.parametrize("name", RULES.values())
def test_gradients_with_rows_and_without(name):
    """Rows that no gradient has stay as they are, and so does their state; a gradient without rows is a step."""
    p = table(shape=(8, 3))
    start = p.detach().clone()
    opt = ours(name)([p], lr=0.1, fallback="error")
    for rows in ([5, 2, 5], [], [2]):
        p.grad = sparse(rows, torch.ones(len(rows), 3), p.shape)
        opt.step()
    changed = (p != start).any(dim=1).nonzero().flatten().tolist()
    assert changed == [2, 5]
    if "step" in opt.state[p]:
        assert opt.state[p]["step"].item() == 3


def test_groups_closures_and_hooks():
    model, told = Model(), []
    opt = proptim.torch.RMSprop(
        [{"params": model.embedding.parameters(), "lr": 0.5}, {"params": model.linear.parameters(), "lr": 0.0}]
    )
    opt.register_step_pre_hook(lambda *_: told.append("before"))
    opt.register_step_post_hook(lambda *_: told.append("after"))
    before = copy.deepcopy(model.state_dict())

    def closure():
        opt.zero_grad()
        loss = model.loss(3)
        loss.backward()
        told.append("closure")
        return loss

    assert opt.step(closure).item() == model_loss(before)
    assert told == ["before", "closure", "after"]
    assert torch.equal(model.linear.weight, before["linear.weight"])
    assert not torch.equal(model.embedding.weight, before["embedding.weight"])


def model_loss(state):
    model = Model()
    model.load_state_dict(state)
    return model.loss(3).item()


def test_gradients_that_add_up():
    """Those of two backward passes, which torch writes one after the other, are one gradient."""
    model, twin = Model(), Model()
    opt, other = (proptim.torch.Adam(m.parameters(), lr=0.1) for m in (model, twin))
    for k in (1, 2):
        model.loss(k).backward()
    (twin.loss(1) + twin.loss(2)).backward()
    opt.step()
    other.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("scale", [1.0, float("inf")])
def test_grad_scaler(scale):
    """Gradients that are unscaled in place, and a step that is left out."""
    plain, _ = trained("Adam", 1)
    model, start = Model(), Model()
    opt = proptim.torch.Adam(model.parameters(), lr=0.1, fallback="error")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    (scaler.scale(model.loss(0)) * scale).backward()
    scaler.step(opt)
    scaler.update()
    for p, q in zip(model.parameters(), (plain if scale == 1 else start).parameters(), strict=True):
        assert torch.equal(p, q)


def test_zero_grads():
    """A sparse gradient is without rows then, as `zero_grad(set_to_none=False)` leaves it."""
    model, twin = Model(), Model()
    opt, other = proptim.torch.Adam(model.parameters(), zero_grads=True), proptim.torch.Adam(twin.parameters())
    for k in range(4):
        model.loss(k).backward()
        opt.step()
        assert model.embedding.weight.grad.is_sparse
        assert model.embedding.weight.grad._nnz() == 0
        assert not model.linear.weight.grad.any()
        twin.loss(k).backward()
        other.step()
        other.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_clip_norm_sees_the_sums():
    p = torch.nn.Parameter(torch.zeros(4, 1, dtype=torch.float64))
    q = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    opt = proptim.torch.SGD([p, q], lr=1.0, clip_norm=1.0)
    p.grad = sparse([3, 1, 3], torch.tensor([[1.0], [4.0], [2.0]], dtype=torch.float64), p.shape)
    q.grad = torch.tensor([12.0], dtype=torch.float64)
    opt.step()
    assert opt.grad_norm == 13.0
    torch.testing.assert_close(p.flatten(), torch.tensor([0, -4 / 13, 0, -3 / 13], dtype=torch.float64))


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_nonfinite(nonfinite):
    """Of the sums: finite rows that add up to infinity."""
    p = table(shape=(4, 2))
    opt = proptim.torch.Adam([p], nonfinite=nonfinite)
    p.grad = drawn(0, p)
    opt.step()
    before, state = p.detach().clone(), state_of(opt, p)
    p.grad = sparse([3, 1, 3], torch.tensor([[1.0, 3e38], [1.0, 1.0], [1.0, 3e38]]), p.shape)
    if nonfinite == "raise":
        with pytest.raises(
            FloatingPointError, match=r"^grads\[0\] is inf at index \(3, 1\); expected finite gradients"
        ):
            opt.step()
    else:
        opt.step()
        assert opt.skipped == 1
    assert torch.equal(p, before)
    torch.testing.assert_close(state_of(opt, p), state, rtol=0, atol=0)


def test_irprop_plus_of_a_fresh_optimizer():
    """Without a loss only gradients of zero make its state, as torch.distributed.checkpoint has it."""
    p = table()
    opt = proptim.torch.Rprop([p], variant="irprop+")
    p.grad = drawn(0, p)
    with pytest.raises(ValueError, match=r"^irprop\+ compares losses"):
        opt.step()
    p.grad = sparse([0], torch.zeros(1, 4), p.shape)
    opt.step()
    assert opt.state[p]["step"] == 1


def test_lazily_conjugated_and_negated_values():
    p, q = table(torch.complex64), table(torch.complex64)
    opt, other = proptim.torch.Adam([p]), proptim.torch.Adam([q])
    values = torch.randn(2, 4, dtype=torch.complex64)
    p.grad = sparse([1, 1], values.conj(), p.shape)
    q.grad = sparse([1, 1], values.conj().resolve_conj(), q.shape)
    opt.step()
    other.step()
    assert torch.equal(p, q)


# What is refused ------------------------------------------------------------------------------------------------------

BAD = {
    "two sparse dimensions": (
        lambda p: torch.ones(p.shape).to_sparse(),
        TypeError,
        r"^grads\[0\] has 2 sparse dimensions; expected 1, as nn.Embedding\(sparse=True\) gives it: use .to_dense\(\)$",
    ),
    "an index that is no row": (
        lambda p: sparse([1, 6], torch.ones(2, 4), p.shape),
        ValueError,
        r"^indices of grads\[0\] has 6 at place 1; expected 0 to 5, a row of params\[0\]$",
    ),
    "a negative index": (
        lambda p: sparse([-1], torch.ones(1, 4), p.shape),
        ValueError,
        r"^indices of grads\[0\] has -1 at place 0; expected 0 to 5, a row of params\[0\]$",
    ),
    "values in the memory of the parameter": (
        lambda p: sparse([0, 1], p.detach()[2:4], p.shape),
        ValueError,
        r"^grads\[0\] and params\[0\] share memory",
    ),
}


@pytest.mark.parametrize("before", range(3))
@pytest.mark.parametrize("bad", BAD)
def test_refused(bad, before):
    """Nothing has changed then, and the next step is as if nothing had been."""
    make, error, message = BAD[bad]
    p, q, r = table(), table(seed=1), table()
    opt, other = proptim.torch.Adam([p, q]), proptim.torch.Adam([r])
    for k in range(before):
        p.grad, q.grad, r.grad = drawn(k, p), drawn(k, q), drawn(k, r)
        opt.step()
        other.step()
    kept, state = [each.detach().clone() for each in (p, q)], copy.deepcopy(opt.state_dict())
    p.grad, q.grad = make(p), drawn(9, q)
    for _ in range(2):
        with pytest.raises(error, match=message):
            opt.step()
    assert torch.equal(p, kept[0])
    assert torch.equal(q, kept[1])
    torch.testing.assert_close(opt.state_dict()["state"], state["state"], rtol=0, atol=0)
    p.grad, r.grad = drawn(7, p), drawn(7, r)
    opt.step()
    other.step()
    assert torch.equal(p, r)


def test_hybrid_gradients():
    """Two sparse dimensions beside a dense one: torch's own SGD steps them, no other class does."""
    p, q = table(shape=(3, 2, 2)), table(shape=(3, 2, 2))
    grad = torch.ones(3, 2, 2).to_sparse(2)
    for name in ("Adam", "Lion", "Rprop"):
        p.grad = grad
        with pytest.raises(TypeError, match=r"^grads\[0\] has 2 sparse dimensions; expected 1"):
            ours(name)([p]).step()
    with pytest.raises(TypeError, match=r"^grads\[0\] has 2 sparse dimensions; expected 1"):
        proptim.torch.SGD([p], fallback="error").step()
    q.grad = grad
    with pytest.warns(UserWarning, match=r"torch's own SGD steps params\[0\], which has a gradient that has 2 sparse"):
        proptim.torch.SGD([p], lr=0.1).step()
    torch.optim.SGD([q], lr=0.1).step()
    assert torch.equal(p, q)


def test_nothing_is_said_of_rows():
    """No warning: proptim steps them itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in RULES.values():
            p = table()
            p.grad = drawn(0, p)
            ours(name)([p]).step()
