"""proptim.torch.Offload: the bits of the optimizer without it, while the CPU plays the device."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import linecache
import math
import os
import pickle
import re
import signal
import sys
import threading
import warnings
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import proptim
import proptim.torch
from proptim import _torch_offload
from proptim.torch import Offload

pytestmark = pytest.mark.once  # its steps are those of proptim.torch, which its other tests repeat in every variant

CLASSES = [cls.__name__ for cls in proptim.OPTIMIZERS.values()]
CASES = [
    pytest.param(cls.__name__, case, id=f"{name}-{i}")
    for name, cls in proptim.OPTIMIZERS.items()
    for i, case in enumerate([*cls.cases, {"weight_decay": 0.1, "maximize": True}])
    if case.get("variant") != "irprop+"
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
BRAIN = torch.bfloat16
each_class = pytest.mark.parametrize("name", CLASSES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def quiet():
    """No step here may warn, and torch's threads wait for each other where other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    torch.set_num_threads(before)


class Inline:
    """An executor that runs each job at once: the step without overlap."""

    def __init__(self, *_):
        pass

    def submit(self, job):
        job()
        return self

    def result(self):
        pass

    def done(self):
        return True


@pytest.fixture(params=["overlap", "inline"])
def either(request, monkeypatch):
    """With the thread, and without."""
    if request.param == "inline":
        monkeypatch.setattr(_torch_offload, "ThreadPoolExecutor", Inline)


class Model(torch.nn.Module):
    """Shared weights, a transposed one, a scalar, an empty one, and one that only some passes use."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
        self.tied = torch.nn.Parameter(torch.randn(6, 6).t())
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.empty = torch.nn.Parameter(torch.empty(0, 6))
        self.rare = torch.nn.Parameter(torch.randn(6))
        self.to(dtype)

    def forward(self, x, rare=False):
        x = torch.tanh(self.first(x)) @ self.tied
        x = torch.tanh(checkpoint(self.second, x, use_reentrant=False)) @ self.tied.t() * self.scale
        x = torch.cat([x, x[:0] @ self.empty.t() @ self.empty])
        return x + self.rare if rare else x


def plain(model, name, **options):
    return getattr(proptim.torch, name)(groups(model), **options)


def groups(model):
    """Two groups, the second with another learning rate."""
    named = dict(model.named_parameters())
    slow = [named.pop("tied"), named.pop("scale")]
    return [{"params": list(named.values())}, {"params": slow, "lr": 0.004}]


def backward(model, seed, rare=None):
    """One pass, with inputs that depend on `seed`."""
    torch.manual_seed(seed)
    dtype = model.scale.dtype
    loss = model(torch.randn(5, 6).to(dtype), seed % 3 == 1 if rare is None else rare).square().mean()
    loss.backward()
    return loss


def train(model, opt, seeds, *, after=None):
    for seed in seeds:
        opt.zero_grad()
        backward(model, seed)
        opt.step()
        if after is not None:
            after()


def bits(tensor):
    """A tensor whose equality is that of bits; every NaN the same, for its payload is left open."""
    tensor = tensor.detach().contiguous()
    integers = tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])
    return torch.where(tensor.isnan(), -1, integers) if tensor.is_floating_point() else integers


def assert_same(model, opt, other, its):
    """Weights, state and groups are equal bit for bit."""
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(bits(p), bits(q)), name
    one, two = opt.state_dict(), its.state_dict()
    assert one["param_groups"] == two["param_groups"]
    assert one["state"].keys() == two["state"].keys()
    for key, own in one["state"].items():
        assert own.keys() == two["state"][key].keys()
        for name, value in own.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == two["state"][key][name].dtype
                assert torch.equal(bits(value), bits(two["state"][key][name])), name
            else:
                assert value == two["state"][key][name]


def snapshot(model, opt):
    return [p.detach().clone() for p in model.parameters()], copy.deepcopy(opt.state_dict())


def assert_snapshot(model, opt, kept):
    assert all(torch.equal(bits(p), bits(q)) for p, q in zip(model.parameters(), kept[0], strict=True))
    torch.testing.assert_close(opt.state_dict(), kept[1], rtol=0, atol=0, equal_nan=True)


# The bits of the optimizer without it --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "case"), CASES)
@each_dtype
def test_same_bits(name, case, dtype, either):
    """Every rule with every set of hyperparameters: shared weights, gradients that are missing, a scheduler."""
    model, other = Model(dtype), Model(dtype)
    its, opt = plain(other, name, **case), Offload(groups(model), name, **case)
    for each, m in ((its, other), (opt, model)):
        schedule = torch.optim.lr_scheduler.StepLR(each, 2, 0.5)
        train(m, each, range(5), after=schedule.step)
    assert_same(model, opt, other, its)
    assert {t.device.type for own in opt.state.values() for t in own.values() if isinstance(t, torch.Tensor)} <= {"cpu"}


@each_class
@each_dtype
@pytest.mark.parametrize(
    "options",
    [{"clip_norm": 0.05}, {"nonfinite": "skip"}, {"clip_norm": math.inf, "nonfinite": "raise"}, {"grad_scale": 0.25}],
    ids=lambda options: "-".join(options),
)
def test_same_bits_with_options(name, dtype, options):
    """Also those for which the step waits for all gradients."""
    model, other = Model(dtype), Model(dtype)
    its, opt = plain(other, name, **options), Offload(groups(model), getattr(proptim.torch, name), **options)
    train(other, its, range(4))
    train(model, opt, range(4))
    assert_same(model, opt, other, its)
    assert (opt.grad_norm, opt.skipped) == (its.grad_norm, its.skipped)
    assert (opt.grad_norm is None) == ("clip_norm" not in options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_class
def test_float32_masters(name, dtype):
    """The other kind of master."""
    model, other = Model(dtype), Model(dtype)
    its, opt = plain(other, name, master="float32"), Offload(groups(model), name, master="float32")
    train(other, its, range(4))
    train(model, opt, range(4))
    assert_same(model, opt, other, its)
    assert opt.master == "float32"


@pytest.mark.parametrize("state_dtype", ["bfloat16", "float16"])
@each_class
def test_state_in_sixteen_bits(name, state_dtype):
    try:
        its = plain(other := Model(BRAIN), name, state_dtype=state_dtype)
    except ValueError:
        with pytest.raises(ValueError, match="state_dtype"):
            Offload(groups(Model(BRAIN)), name, state_dtype=state_dtype)
        return
    opt = Offload(groups(model := Model(BRAIN)), name, state_dtype=state_dtype)
    train(other, its, range(4))
    train(model, opt, range(4))
    assert_same(model, opt, other, its)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@each_class
def test_complex_parameters(name, dtype):
    def run(make):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in [(3, 4), (), (5,)]]
        opt = make(params)
        for seed in range(3):
            torch.manual_seed(seed)
            opt.zero_grad()
            sum((p * torch.randn(p.shape, dtype=dtype)).abs().square().sum() for p in params).backward()
            opt.step()
        return params

    ours, theirs = run(lambda params: Offload(params, name)), run(getattr(proptim.torch, name))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@each_class
def test_same_bits_on_every_backend(name, backend):
    """Also those that run Python in the thread."""
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, name), Offload(groups(model), name)
    assert opt.backend in (None, backend)
    train(other, its, range(3))
    train(model, opt, range(3))
    assert_same(model, opt, other, its)


@pytest.mark.slow
def test_compiled_training_loop():
    """Hooks run and step() is left out of the graph."""

    def run(make):
        model = Model(BRAIN)
        opt = make(model)

        @torch.compile(backend="eager")
        def train_step(x):
            opt.zero_grad()
            model(x).square().mean().backward()
            opt.step()

        for seed in range(3):
            torch.manual_seed(seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what torch warns of while it compiles
                train_step(torch.randn(5, 6).to(BRAIN))
        return model, opt

    (model, opt), (other, its) = run(lambda m: Offload(groups(m), "Adam")), run(lambda m: plain(m, "Adam"))
    assert_same(model, opt, other, its)


def test_two_of_one_parameter():
    """Refused by name while the first lives, also frozen and in a group that is added; nothing has changed."""
    p, q, frozen = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2)), torch.zeros(2)
    first = Offload([p, frozen], "SGD", lr=1.0)
    hooks = len(p._post_accumulate_grad_hooks)
    for params, place in (([q, p], 1), ([frozen], 0)):
        with pytest.raises(ValueError, match=rf"params\[{place}\] belongs to another Offload.*delete the other before"):
            Offload(params, "SGD", lr=5.0)
    assert not q._post_accumulate_grad_hooks
    other = Offload([q], "SGD", lr=5.0)
    with pytest.raises(ValueError, match=r"params\[1\] belongs to another Offload"):
        other.add_param_group({"params": [p]})
    assert len(other.param_groups) == len(other._inner.param_groups) == 1
    first.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    assert len(p._post_accumulate_grad_hooks) == hooks == 1
    p.sum().backward()
    first.step()
    assert p.tolist() == [0, 0]
    schedule = torch.optim.lr_scheduler.StepLR(first, 1)  # a cycle
    del first, schedule
    second = Offload([p, frozen], "SGD", lr=5.0)
    p.sum().backward()
    second.step()
    assert p.tolist() == [-5, -5]


@pytest.mark.parametrize("shape", ["broadcast", "windows"])
@each_dtype
def test_elements_that_share_memory_are_refused(dtype, shape):
    """When it is made and when a group is added."""
    line = torch.zeros(1, 4, dtype=dtype)
    p = torch.nn.Parameter(line.expand(3, 4) if shape == "broadcast" else line[0].unfold(0, 2, 1))
    message = "has elements that share memory; expected one place per element"
    with pytest.raises(ValueError, match=rf"params\[0\] {message}"):
        Offload([p], "Adam")
    opt = Offload([torch.nn.Parameter(torch.zeros(2, dtype=dtype))], "Adam")
    with pytest.raises(ValueError, match=message):
        opt.add_param_group({"params": [p]})
    assert len(opt.param_groups) == len(opt._inner.param_groups) == len(opt._slots) == 1


@pytest.mark.parametrize("name", [name for name in CLASSES if hasattr(torch.optim, name)])
def test_near_torch(name):
    """Within the last digits of torch.optim, in float64."""
    model, other = Model(torch.float64), Model(torch.float64)
    its, opt = getattr(torch.optim, name)(groups(other), lr=0.01), Offload(groups(model), name, lr=0.01)
    train(other, its, range(6))
    train(model, opt, range(6))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


def test_irprop_plus_takes_the_loss_of_the_closure():
    model, other = Model(torch.float32), Model(torch.float32)
    its, opt = plain(other, "Rprop", variant="irprop+"), Offload(groups(model), "Rprop", variant="irprop+")
    for m, each in ((other, its), (model, opt)):
        for _ in range(6):
            each.zero_grad()
            assert each.step(lambda m=m: backward(m, 0)).item() > 0
    assert_same(model, opt, other, its)
    backward(model, 0)
    with pytest.raises(ValueError, match="closure"):
        opt.step()


def test_a_closure_steps_in_backward():
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "Adam"), Offload(groups(model), "Adam")
    assert torch.equal(its.step(lambda: backward(other, 0)), opt.step(lambda: backward(model, 0)))
    assert_same(model, opt, other, its)


# Gradients and weights -----------------------------------------------------------------------------------------------


@each_dtype
def test_gradients_leave_and_weights_stay_until_step(dtype, either):
    """p.grad is None after backward; weights, their versions and state change in step alone."""
    model = Model(dtype)
    opt = Offload(groups(model), "Adam")
    before = {name: (p.detach().clone(), p._version) for name, p in model.named_parameters()}
    backward(model, 0)
    opt.synchronize()
    assert all(p.grad is None for p in model.parameters())
    assert not opt.state
    assert all(torch.equal(p, before[n][0]) and p._version == before[n][1] for n, p in model.named_parameters())
    opt.step()
    for name, p in model.named_parameters():
        assert (p in opt.state) == (p._version > before[name][1]) == (name != "rare")


def test_another_backward_through_the_same_graph():
    """Weights that autograd has saved are not written before step, so accumulated passes may share a graph."""
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "Adam"), Offload(groups(model), "Adam", accumulate=2)
    for m in (other, model):
        torch.manual_seed(0)
        loss = m(torch.randn(5, 6).to(BRAIN)).square().mean()
        loss.backward(retain_graph=True)
        loss.backward()
    its.step()
    opt.step()
    assert_same(model, opt, other, its)


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1}], ids=["runs", "waits"])
@pytest.mark.parametrize("often", [True, False], ids=["step-after-each", "step-after-all"])
@each_dtype
def test_accumulate(dtype, often, options, either):
    """The bits of the gradients that autograd adds; a parameter may have fewer than the others."""
    model, other = Model(dtype), Model(dtype)
    its, opt = plain(other, "Adam", **options), Offload(groups(model), "Adam", accumulate=3, **options)
    for at in range(3):
        before = [p.detach().clone() for p in model.parameters()]
        for i in range(3):
            backward(other, 3 * at + i)
            backward(model, 3 * at + i)
            if often and i < 2:
                opt.step()
                assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        its.step()
        its.zero_grad()
        opt.step()
        assert_same(model, opt, other, its)
        assert all(p.grad is None for p in model.parameters())
    backward(model, 0)
    opt.accumulate = 1  # ends a round early
    backward(other, 0)
    its.step()
    opt.step()
    assert_same(model, opt, other, its)


def test_zero_grad_drops_what_was_accumulated():
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "Adam"), Offload(groups(model), "Adam", accumulate=2)
    for to_none in (True, False):
        backward(model, 7)
        opt.zero_grad(set_to_none=to_none)
        for seed in range(2):
            backward(model, seed)
            opt.step()
            backward(other, seed)
        its.step()
        its.zero_grad()
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(bits(p), bits(q))


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1}], ids=["runs", "waits"])
def test_passes_that_share_no_parameter(options):
    """Cannot be counted: an error of the step() after the last, and right where step() alone decides."""

    def run(experts, at):
        (experts[at % 2] * (at + 1.0)).square().sum().backward()

    def new():
        return [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]

    for way in ("zero_grad", "accumulate"):
        ours, theirs = new(), new()
        opt, its = Offload(ours, "Adam", accumulate=2, **options), proptim.torch.Adam(theirs, **options)
        for _ in range(2):  # the count begins anew
            run(ours, 0)
            opt.step()
            opt.step()
            run(ours, 1)
            for _ in range(2):
                with pytest.raises(
                    RuntimeError, match=r"no parameter has got a gradient from each.*clip_norm=math\.inf"
                ):
                    opt.step()
            assert [p.tolist() for p in ours] == [[1, 1]] * 2
            if way == "accumulate":
                break
            opt.zero_grad()
        if way == "accumulate":
            opt.accumulate = 1
            opt.step()
            run(theirs, 0)
            run(theirs, 1)
            its.step()
        assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))

    ours, theirs = new(), new()
    opt, its = Offload(ours, "Adam", clip_norm=math.inf), proptim.torch.Adam(theirs)
    for params, each in ((ours, opt), (theirs, its)):
        for at in range(6):
            run(params, at)
            if at % 2:
                each.step()
                each.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_a_second_gradient_before_step_is_refused():
    """It names the parameter; step() then makes the step with the first."""
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "Adam"), Offload(groups(model), "Adam")
    backward(model, 0)
    with pytest.raises(RuntimeError, match=r"params\[\d\] has got another gradient .* expected step\(\) after every 1"):
        backward(model, 0)
    opt.step()
    backward(other, 0)
    its.step()
    assert_same(model, opt, other, its)
    assert all(p.grad is None for p in model.parameters() if p is not model.rare)


def test_reentrant_checkpoints_of_one_layer():
    """One backward gives several gradients of it: an error, and right where the step waits."""

    def run(make, **options):
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 4)
        opt = make(layer.parameters(), **options)
        x = torch.ones(2, 4, requires_grad=True)
        for _ in range(2):
            x = checkpoint(layer, x, use_reentrant=True)
        x.square().sum().backward()
        opt.step()
        return [*layer.parameters()]

    with pytest.raises(RuntimeError, match=r"clip_norm=math\.inf"):
        run(Offload, cls="Adam")
    ours, theirs = run(Offload, cls="Adam", clip_norm=math.inf), run(proptim.torch.Adam)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1}], ids=["runs", "waits"])
def test_gradients_by_hand(options):
    """Without backward, of the dtype of the parameter or float32; with any strides, conjugated or negated."""
    kinds = [
        lambda g: g,
        lambda g: g.t().contiguous().t(),
        lambda g: g[:1].expand(4, 4),
        lambda g: torch.view_as_complex(torch.stack([g, g], -1)).conj().imag,
    ]
    for kind in kinds:
        torch.manual_seed(0)
        p, q = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
        its, opt = proptim.torch.Adam([p], **options), Offload([q], "Adam", **options)
        for _ in range(2):
            p.grad = kind(torch.randn(4, 4))
            q.grad = p.grad.clone() if p.grad.stride()[0] else p.grad
            its.step()
            opt.step()
            assert q.grad is None
        assert torch.equal(p, q)


def test_gradients_of_another_dtype():
    """A parameter of bfloat16 may have gradients of float32, by p.grad_dtype."""
    p, q = (torch.nn.Parameter(torch.ones(4, dtype=BRAIN)) for _ in range(2))
    if not hasattr(p, "grad_dtype"):
        pytest.skip("torch has no Tensor.grad_dtype")
    its, opt = proptim.torch.Adam([p]), Offload([q], "Adam")
    for dtype in (torch.float32, BRAIN, torch.float32):
        for each in (p, q):
            each.grad = None
            each.grad_dtype = dtype
            each.grad = torch.tensor([1.0, 1 / 3, -1 / 7, 0], dtype=dtype)
        its.step()
        opt.step()
    assert torch.equal(p, q)
    assert torch.equal(its.state[p]["exp_avg"], opt.state[q]["exp_avg"])


def test_buffers_are_made_once():
    model = Model(BRAIN)
    opt = Offload(groups(model), "Adam")
    train(model, opt, range(2))
    before = [(slot.host.data_ptr(), slot.buffer.data_ptr()) for slot in opt._slots]
    train(model, opt, range(2, 5))
    assert [(slot.host.data_ptr(), slot.buffer.data_ptr()) for slot in opt._slots] == before


@pytest.mark.parametrize("master", ["split", "float32"])
@pytest.mark.parametrize(
    "write",
    [
        lambda p: p.data.mul_(0.5),
        lambda p: p.data.zero_(),
        lambda p: setattr(p, "data", p.detach() * 3),
        lambda p: setattr(p, "data", torch.randn(p.shape[::-1]).to(p.dtype).t() if p.dim() == 2 else p.data.neg()),
    ],
    ids=["scaled", "zero", "moved", "other-strides"],
)
def test_weights_that_the_user_writes_count(write, master):
    """As without Offload, whichever way they are written."""
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "Adam", master=master), Offload(groups(model), "Adam", master=master)
    for m, each in ((other, its), (model, opt)):
        train(m, each, range(2))
        torch.manual_seed(5)
        for p in m.parameters():
            write(p)
        train(m, each, range(2, 4))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(bits(p), bits(q))


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}], ids=["runs", "waits"])
@each_class
def test_sparse_gradients(name, options):
    """What the optimizer without Offload does with them, where it needs no code of torch; else its error by name."""

    def run(make, **more):
        torch.manual_seed(0)
        table = torch.nn.Embedding(5, 2, sparse=True)
        opt = make(table.parameters(), **options, **more)
        for rows in ([1, 3, 1], [0], [3, 4]):
            before = table.weight.detach().clone()
            opt.zero_grad()
            table(torch.tensor(rows)).square().sum().backward()
            try:
                opt.step()
            except TypeError as error:
                assert torch.equal(table.weight, before)
                assert table.weight.grad.is_sparse
                return re.sub(r"(params|grads)\[0\] ", "", str(error))
        return table.weight.detach()

    ours, theirs = run(Offload, cls=name), run(getattr(proptim.torch, name), fallback="error")
    assert torch.equal(ours, theirs) if isinstance(theirs, torch.Tensor) else ours == theirs
    assert isinstance(theirs, torch.Tensor) or "sparse" in theirs


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}], ids=["runs", "waits"])
@each_class
def test_stochastic_rounding(name, options):
    """Random bits depend on the number of the parameter, also where each is stepped by itself; the seed is saved."""
    options = {"rounding": "stochastic", "state_dtype": "bfloat16", "seed": 7} | options
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, name, **options), Offload(groups(model), name, **options)
    train(other, its, range(3))
    train(model, opt, range(3))
    assert_same(model, opt, other, its)
    later = Offload(groups(other), name, **{**options, "seed": 3})
    later.load_state_dict(copy.deepcopy(its.state_dict()))
    assert later.seed == opt.state_dict()["seed"] == 7
    assert later.rounding == "stochastic"
    train(model, opt, [3])
    train(other, later, [3])
    assert_same(model, opt, other, later)


# Parameters ----------------------------------------------------------------------------------------------------------


def test_groups_are_added():
    model, other = Model(BRAIN), Model(BRAIN)
    its = proptim.torch.Adam(other.first.parameters())
    opt = Offload(model.first.parameters(), "Adam")
    train(other, its, range(2))
    train(model, opt, range(2))
    its.add_param_group({"params": [other.tied], "lr": 0.1})
    opt.add_param_group({"params": [model.tied], "lr": 0.1})
    for p in other.parameters():
        p.grad = None
    for p in model.parameters():
        p.grad = None
    train(other, its, range(2, 5))
    train(model, opt, range(2, 5))
    assert_same(model, opt, other, its)
    backward(model, 0)
    with pytest.raises(RuntimeError, match=r"add_param_group\(\) between backward and step\(\)"):
        opt.add_param_group({"params": [model.scale]})
    opt.step()
    before = len(opt.param_groups)
    for bad, error in (
        ({"params": [model.scale], "lr": -1.0}, ValueError),
        ({"params": [model.tied]}, ValueError),
        ({"params": [torch.nn.Parameter(torch.zeros(2, device="meta"))]}, TypeError),
    ):
        with pytest.raises(error):
            opt.add_param_group(bad)
        assert len(opt.param_groups) == len(opt._inner.param_groups) == before
    train(model, opt, [9])


def test_named_parameters():
    model = Model(BRAIN)
    opt = Offload(model.named_parameters(), "Adam")
    assert opt.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
    train(model, opt, range(2))
    its = proptim.torch.Adam(Model(BRAIN).named_parameters())
    its.load_state_dict(opt.state_dict())


def test_frozen_and_thawed():
    """A parameter that is frozen is left alone; one that is thawed later is stepped, and hooked from then on."""
    model, other = Model(BRAIN), Model(BRAIN)
    for m in (model, other):
        m.first.weight.requires_grad_(False)
    its, opt = plain(other, "Adam"), Offload(groups(model), "Adam")
    for m, each in ((other, its), (model, opt)):
        train(m, each, range(2))
        m.first.weight.requires_grad_(True)
        m.second.weight.requires_grad_(False)
        train(m, each, range(2, 5))
    assert_same(model, opt, other, its)
    backward(model, 0)
    assert model.first.weight.grad is None


def test_frozen_parameters_of_any_kind():
    opt = Offload(
        [torch.nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False), torch.nn.Parameter(torch.ones(2))],
        "SGD",
        lr=1.0,
    )
    p = opt.param_groups[0]["params"][1]
    p.sum().backward()
    opt.step()
    assert p.tolist() == [0, 0]


def test_a_model_that_is_cast_is_refused():
    model = Model(torch.float32)
    opt = Offload(groups(model), "Adam")
    train(model, opt, range(2))
    model.to(BRAIN)
    with pytest.raises(TypeError, match=r"is torch.bfloat16 of shape .*; expected torch.float32 of shape"):
        train(model, opt, [2])


# Averages of the weights ---------------------------------------------------------------------------------------------


def averaging(model):
    """Groups of which the first takes the `ema` of the optimizer, and the others have their own."""
    first, second = groups(model)
    return [first, {**second, "params": [model.tied], "ema": 0.5}, {**second, "params": [model.scale], "ema": None}]


def weights(model):
    return [bits(p) for p in model.parameters()]


def equal(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@each_class
@each_dtype
@pytest.mark.parametrize(
    "options", [{}, {"clip_norm": math.inf}, {"master": "float32"}], ids=["runs", "waits", "master"]
)
def test_averages(name, dtype, options, either):
    """They are those of the class, on the CPU; within a block they are in the parameters, and the weights after it."""
    model, other = Model(dtype), Model(dtype)
    options = {key: value for key, value in options.items() if key != "master" or dtype != torch.float32}
    its = getattr(proptim.torch, name)(averaging(other), ema=0.75, **options)
    opt = Offload(averaging(model), name, ema=0.75, **options)
    assert opt.ema == {}
    for seeds in (range(3), range(3, 5)):
        train(other, its, seeds)
        train(model, opt, seeds)
        assert_same(model, opt, other, its)
        assert {*opt.ema} == {p for p in opt.state if p is not model.scale}
        assert all(opt.ema[p] is opt.state[p]["ema"] for p in opt.ema)
        before = weights(model)
        with opt.averaged(), its.averaged():
            assert equal(weights(model), weights(other))
            assert not equal(weights(model), before)
            assert torch.equal(bits(model.tied), bits(opt.ema[model.tied].to(dtype)))
            for p, q in zip(model.parameters(), other.parameters(), strict=True):
                for key in ("master", "master_lo"):
                    if key in opt.state.get(p, {}):
                        assert torch.equal(bits(opt.state[p][key]), bits(its.state[q][key]))
        assert equal(weights(model), before)
        assert_same(model, opt, other, its)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float64], ids=str)
def test_averages_of_wider_parameters(dtype):
    def run(make):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in [(3, 4), (), (0,)]]
        params.append(torch.nn.Parameter(torch.randn(5, 3, dtype=dtype).t()))
        opt = make(params, lr=0.1, ema=0.75)
        for seed in range(3):
            torch.manual_seed(seed)
            sum((p * torch.randn(p.shape, dtype=dtype)).abs().square().sum() for p in params).backward()
            opt.step()
            opt.zero_grad()
        before = [p.detach().clone() for p in params]
        with opt.averaged():
            inside = [p.detach().clone() for p in params]
            params[0].data = params[0].data.clone()
        assert equal(params, before)
        assert not equal(inside, before)
        return params, inside

    for ours, theirs in zip(run(lambda *p, **h: Offload(*p, "Adam", **h)), run(proptim.torch.Adam), strict=True):
        assert equal(ours, theirs)


def test_a_block_of_averages(either):
    """What is refused within it and before it, and what may happen to the model meanwhile."""
    model = Model(BRAIN)
    opt = Offload(averaging(model), "Adam", ema=0.75, lr=0.05)
    train(model, opt, range(3))
    saved, before = opt.state_dict(), weights(model)
    calls = [opt.step, opt.state_dict, lambda: opt.load_state_dict(saved), opt.synchronize, opt.averaged().__enter__]
    calls += [lambda: opt.add_param_group({"params": [torch.ones(2, requires_grad=True)]}), lambda: backward(model, 0)]
    with opt.averaged():
        inside = weights(model)
        assert not equal(inside, before)
        for call in calls:
            with pytest.raises(RuntimeError, match=r"^the parameters are the averages of the weights, within"):
                call()
        assert equal(weights(model), inside)
    assert equal(weights(model), before)
    opt.zero_grad()
    with pytest.raises(KeyboardInterrupt), opt.averaged():
        raise KeyboardInterrupt
    assert equal(weights(model), before)
    for move in (
        lambda: model.double().bfloat16(),
        lambda: [setattr(p, "data", p.data.clone()) for p in model.parameters()],
        lambda: [setattr(p, "data", p.data[:0]) for p in (model.first.weight, model.second.bias)],
    ):
        with opt.averaged():
            move()
        assert equal(weights(model), before)
    other = Model(BRAIN)
    its = proptim.torch.Adam(averaging(other), ema=0.75, lr=0.05)
    train(other, its, range(3))
    backward(model, 3)
    with pytest.raises(RuntimeError, match=r"^averaged\(\) between backward and step\(\)"), opt.averaged():
        pass
    opt.step()
    train(other, its, [3])
    assert_same(model, opt, other, its)


def test_weights_written_before_a_block():
    """They are put back, and not those of the last step; what was set in a group since counts."""
    for master in ("split", "float32"):
        model = Model(torch.float16)
        opt = Offload(averaging(model), "SGD", lr=0.05, ema=0.75, master=master)
        train(model, opt, range(2))
        with torch.no_grad():
            model.tied.fill_(3.0)
            model.rare.fill_(3.0)
        opt.param_groups[1]["ema"] = None
        before = weights(model)
        with opt.averaged():
            assert (model.tied == 3).all()
            assert (model.rare != 3).all()
        assert equal(weights(model), before)


def test_averages_that_are_loaded():
    """From and to the class; what a run without them has saved does not switch them off."""
    model, other = Model(BRAIN), Model(BRAIN)
    opt, its = Offload(averaging(model), "Adam", ema=0.75), proptim.torch.Adam(averaging(other), ema=0.75)
    train(other, its, range(3))
    model.load_state_dict(other.state_dict())
    opt.load_state_dict(copy.deepcopy(its.state_dict()))
    assert_same(model, opt, other, its)
    train(other, its, range(3, 5))
    train(model, opt, range(3, 5))
    assert_same(model, opt, other, its)
    bare, none = Model(BRAIN), Model(BRAIN)
    without = proptim.torch.Adam([{k: v for k, v in g.items() if k != "ema"} for g in averaging(none)])
    train(none, without, range(2))
    theirs = torch.optim.Adam([{k: v for k, v in g.items() if k != "ema"} for g in averaging(none)])
    for state in (without.state_dict(), theirs.state_dict()):
        opt, its = Offload(averaging(bare), "Adam", ema=0.75), proptim.torch.Adam(averaging(none), ema=0.75)
        bare.load_state_dict(none.state_dict())
        for each in (opt, its):
            each.load_state_dict(copy.deepcopy(state))
            assert [group["ema"] for group in each.param_groups] == [0.75, 0.5, None]
            assert each.ema == {}
        train(none, its, range(3))
        train(bare, opt, range(3))
        assert_same(bare, opt, none, its)
        assert opt.ema
        del opt


def test_no_average_is_kept():
    model = Model(BRAIN)
    opt = Offload(groups(model), "Adam")
    assert not hasattr(opt, "ema")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^no average of the weights is kept"), opt.averaged():
            pass


# Saving and loading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("master", ["split", "float32"])
@each_dtype
@each_class
def test_a_run_goes_on_with_the_same_bits(name, dtype, master):
    """Through a file, read with weights_only; from and to the optimizer without Offload."""
    kept = {"master": master} if master == "float32" and dtype.itemsize == 2 else {}
    whole = Model(dtype)
    opt = Offload(groups(whole), name, **kept)
    train(whole, opt, range(5))

    start = Model(dtype)
    first = Offload(groups(start), name, **kept)
    train(start, first, range(3))
    file = io.BytesIO()
    torch.save({"model": start.state_dict(), "opt": first.state_dict()}, file)
    for make in (lambda m: Offload(groups(m), name, **kept), lambda m: plain(m, name, **kept)):
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        model = Model(dtype)
        later = make(model)
        later.load_state_dict(saved["opt"])
        model.load_state_dict(saved["model"])
        train(model, later, range(3, 5))
        assert_same(model, later, whole, opt)

    other = Model(dtype)
    its = plain(other, name, **kept)
    train(other, its, range(3))
    model = Model(dtype)
    later = Offload(groups(model), name, **kept)
    train(model, later, [9])  # which has a plan of other tensors
    model.load_state_dict(other.state_dict())
    later.load_state_dict(its.state_dict())
    train(model, later, range(3, 5))
    assert_same(model, later, whole, opt)


def test_hooks_of_state_dicts():
    model = Model(BRAIN)
    opt = Offload(groups(model), "Adam")
    train(model, opt, range(2))
    seen = []
    opt.register_state_dict_pre_hook(lambda opt: seen.append("before save"))
    opt.register_state_dict_post_hook(lambda opt, saved: seen.append(f"saved {len(saved['state'])}"))
    opt.register_load_state_dict_pre_hook(lambda opt, saved: seen.append(f"loads {len(saved['state'])}"))
    opt.register_load_state_dict_post_hook(lambda opt: seen.append(f"loaded {len(opt.state)}"))
    opt.register_step_pre_hook(lambda opt, args, keywords: seen.append("before step"))
    opt.register_step_post_hook(lambda opt, args, keywords: seen.append("after step"))
    opt.load_state_dict(opt.state_dict())
    train(model, opt, [2])
    n = len(opt.state)
    assert seen == ["before save", f"saved {n}", f"loads {n}", f"loaded {n}", "before step", "after step"]


def test_state_dicts_in_mid_round_are_refused():
    """And nothing has changed: the round goes on."""
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "Adam"), Offload(groups(model), "Adam")
    backward(model, 0)
    with pytest.raises(RuntimeError, match=r"state_dict\(\) between backward and step\(\).*expected step\(\) before"):
        opt.state_dict()
    opt.step()
    backward(other, 0)
    its.step()
    assert_same(model, opt, other, its)


def test_a_state_that_does_not_fit_is_refused():
    model = Model(BRAIN)
    opt = Offload(groups(model), "Adam")
    train(model, opt, range(2))
    kept = snapshot(model, opt)
    with pytest.raises(ValueError, match="parameter group"):
        opt.load_state_dict(proptim.torch.Adam(Model(BRAIN).parameters()).state_dict())
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][0]["exp_avg"] = saved["state"][0]["exp_avg"].double()
    with pytest.raises(TypeError, match="cast=True"):
        opt.load_state_dict(saved)
    assert_snapshot(model, opt, kept)
    opt.load_state_dict(saved, cast=True)
    assert_snapshot(model, opt, kept)


@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
def test_copies_are_refused(how):
    opt = Offload(Model(BRAIN).parameters(), "Adam")
    with pytest.raises(TypeError, match=r"cannot be copied or pickled.*state_dict\(\)"):
        how(opt)


# Groups, schedulers, scalers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=8),
        lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 8),
        lambda opt: torch.optim.lr_scheduler.LinearLR(opt),
        lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, lambda at: 1 / (1 + at)),
    ],
    ids=["one-cycle", "cosine", "linear", "lambda"],
)
def test_schedulers(schedule):
    """Also one that changes betas."""
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "Adam"), Offload(groups(model), "Adam")
    for m, each in ((other, its), (model, opt)):
        train(m, each, range(6), after=schedule(each).step)
    assert_same(model, opt, other, its)


def test_options_change_between_steps():
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "Adam"), Offload(groups(model), "Adam")
    for m, each in ((other, its), (model, opt)):
        for at, (clip, scale) in enumerate([(None, 1.0), (0.1, 0.5), (None, 0.5), (math.inf, 1.0), (None, 1.0)]):
            each.clip_norm, each.grad_scale = clip, scale
            train(m, each, [at])
    assert_same(model, opt, other, its)
    assert opt.grad_norm is its.grad_norm is None


def test_state_is_loaded_between_steps_of_both_kinds():
    """Steps during backward and steps that wait have one state, also after another was loaded."""
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "Adam"), Offload(groups(model), "Adam")
    for m, each in ((other, its), (model, opt)):
        saved = None
        for at, clip in enumerate([None, math.inf, None, 0.1, 0.1, None, None]):
            each.clip_norm = clip
            train(m, each, [at])
            if at == 1:
                saved = copy.deepcopy(each.state_dict())
            elif at % 2 == 0 and saved is not None:
                each.load_state_dict(copy.deepcopy(saved))
    assert_same(model, opt, other, its)


def test_hyperparameters_that_are_tensors():
    """They change in place."""
    model, other = Model(BRAIN), Model(BRAIN)
    for m, make in ((other, plain), (model, lambda m, name, **options: Offload(groups(m), name, **options))):
        opt = make(m, "Adam", lr=torch.tensor(0.01))
        train(m, opt, range(2))
        opt.param_groups[0]["lr"].fill_(0.1)
        train(m, opt, range(2, 4))
        backward(m, 0)
        if m is model:
            opt.param_groups[0]["lr"].fill_(0.2)
            with pytest.raises(RuntimeError, match="lr was changed between backward"):
                opt.step()
    its = [p.detach() for p in other.parameters()]
    assert all(torch.equal(bits(p), bits(q)) for p, q in zip(model.parameters(), its, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda opt: opt.param_groups[1].update(lr=0.5),
        lambda opt: opt.param_groups[0].update(betas=(0.5, 0.9)),
        lambda opt: setattr(opt, "grad_scale", 0.5),
        lambda opt: setattr(opt, "clip_norm", 1.0),
    ],
    ids=["lr", "betas", "grad_scale", "clip_norm"],
)
def test_a_change_between_backward_and_step_is_refused(change):
    """What was stepped has the old value. Set back, the step goes on; the step that waits takes the new value."""
    model = Model(BRAIN)
    opt = Offload(groups(model), "Adam")
    before = [dict(group) for group in opt.param_groups]
    backward(model, 0)
    weights = [p.detach().clone() for p in model.parameters()]
    change(opt)
    with pytest.raises(RuntimeError, match="was changed between backward and step"):
        opt.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights, strict=True))
    for group, old in zip(opt.param_groups, before, strict=True):
        group.update(old)
    opt.grad_scale, opt.clip_norm = 1.0, None
    opt.step()
    other = Model(BRAIN)
    its = plain(other, "Adam")
    train(other, its, [0])
    assert_same(model, opt, other, its)

    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "Adam", clip_norm=2.0), Offload(groups(model), "Adam", clip_norm=2.0)
    for m, each in ((other, its), (model, opt)):
        backward(m, 0)
        change(each)
        each.step()
    assert_same(model, opt, other, its)


@pytest.mark.parametrize("clip", [math.inf, 0.05])
def test_grad_scaler(clip):
    """With clip_norm, also where a step overflows and is left out; without, an error that names it."""
    models = [Model(torch.float32), Model(torch.float32)]
    opts = [plain(models[0], "Adam", clip_norm=clip), Offload(groups(models[1]), "Adam", clip_norm=clip)]
    for model, opt in zip(models, opts, strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=2)
        for seed in range(6):
            opt.zero_grad()
            torch.manual_seed(seed)
            scaler.scale(model(torch.randn(5, 6)).square().mean() * 2.0**8).backward()
            scaler.step(opt)
            scaler.update()
    assert opts[0].state[models[0].scale]["step"] < 6
    assert_same(models[1], opts[1], models[0], opts[0])

    for options in ({}, {"nonfinite": "skip"}):
        model = Model(torch.float32)
        opt = Offload(groups(model), "Adam", **options)
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(backward(model, 0))
        with pytest.raises(RuntimeError, match=r"torch.amp.GradScaler .* expected clip_norm"):
            scaler.step(opt)
        torch.amp.GradScaler("cpu", enabled=False).step(opt)


def test_a_skipped_step_changes_nothing():
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = (each(groups(m), nonfinite="skip", max_skips=1, **more) for each, m, more in (
        (proptim.torch.Adam, other, {}), (Offload, model, {"cls": "Adam"})
    ))  # fmt: skip
    for m, each in ((other, its), (model, opt)):
        train(m, each, range(2))
        for at in range(2):
            backward(m, 0)
            m.second.weight.grad[0, 0] = math.nan
            if at:
                with pytest.raises(FloatingPointError, match="max_skips"):
                    each.step()
                each.zero_grad()
            else:
                versions = [p._version for p in m.parameters()]
                each.step()
                each.zero_grad()
                assert [p._version for p in m.parameters()] == versions
        train(m, each, [2])
    assert opt.skipped == its.skipped == 1
    assert_same(model, opt, other, its)


# Errors --------------------------------------------------------------------------------------------------------------


def test_an_error_of_the_thread(either, monkeypatch):
    """step() raises it: what was stepped is written, the rest is as it was, and another step() ends the round."""
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "NAdam"), Offload(groups(model), "NAdam")
    for m, each in ((other, its), (model, opt)):
        train(m, each, range(2))
    kept, step, made = snapshot(model, opt), proptim._torch_optimizer.Door.step, []

    def fails(optimizer, closure=None):
        made.append(optimizer)
        if len(made) == 3:
            raise MemoryError("the third")
        return step(optimizer, closure)

    monkeypatch.setattr(_torch_offload.Door, "step", fails)
    backward(model, 3)
    with pytest.raises(MemoryError, match="the third"):
        opt.step()
    assert len(made) == 3
    monkeypatch.setattr(_torch_offload.Door, "step", step)
    params = [p for group in opt.param_groups for p in group["params"]]
    moved = {id(opt.state[p]["step"]): opt.state[p]["step"].item() for p in params if p in opt.state}
    assert sorted(moved.values()).count(3) == 2
    old = {i: own["step"].item() for i, own in kept[1]["state"].items()}
    before = dict(zip(map(id, model.parameters()), kept[0], strict=True))
    for i, p in enumerate(params):
        stepped = i in old and opt.state[p]["step"].item() == old[i] + 1
        assert stepped == (p.grad is None) or p is model.rare
        if not stepped:
            assert torch.equal(bits(p), bits(before[id(p)]))
    opt.synchronize()
    opt.step()
    train(other, its, [3])
    assert_same(model, opt, other, its)


def test_a_hyperparameter_out_of_range_is_told_by_step(either):
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "Adam"), Offload(groups(model), "Adam")
    train(model, opt, range(2))
    train(other, its, range(2))
    kept = snapshot(model, opt)
    opt.param_groups[0]["lr"] = opt.param_groups[1]["lr"] = -1.0
    backward(model, 2)
    with pytest.raises(ValueError, match=r"-1\.0"):
        opt.synchronize()
    for group, lr in zip(opt.param_groups, (0.001, 0.004), strict=True):
        group["lr"] = lr
    assert_snapshot(model, opt, kept)
    opt.step()
    train(other, its, [2])
    assert_same(model, opt, other, its)


def test_a_nonfinite_gradient_raises_and_names_it():
    model = Model(BRAIN)
    opt = Offload(groups(model), "Adam", nonfinite="raise")
    train(model, opt, range(2))
    kept = snapshot(model, opt)
    backward(model, 2)
    model.scale.grad.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"grads\[7\] is nan"):
        opt.step()
    assert_snapshot(model, opt, kept)
    assert model.scale.grad.isnan()
    model.scale.grad.fill_(0)
    opt.step()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: Offload(p, torch.optim.Adam), TypeError, "expected a class of proptim.torch, or its name"),
        (lambda p: Offload(p, proptim.Adam), TypeError, "expected a class of proptim.torch, or its name"),
        (lambda p: Offload(p, "adam"), ValueError, "'adam' is no class of proptim.torch: did you mean"),
        (lambda p: Offload(p, "Adam", master=None), ValueError, "(expected 'split' or 'float32'): the master is on"),
        (lambda p: Offload(p, "Adam", master="auto"), ValueError, "Invalid master: 'auto'"),
        (lambda p: Offload(p, "Adam", accumulate=0), ValueError, "Invalid accumulate: 0"),
        (lambda p: Offload(p, "Adam", accumulate=True), ValueError, "Invalid accumulate: True"),
        (lambda p: Offload(p, "Adam", accumulate=1.5), ValueError, "Invalid accumulate: 1.5"),
        (lambda p: Offload(p, "Adam", clip_norm=-1), ValueError, "clip_norm"),
        (lambda p: Offload(p, "Adam", lr=-1), ValueError, "-1"),
        (lambda p: Offload(p, "Adam", momentum=1), TypeError, "momentum"),
        (lambda p: Offload(p, "Adam", zero_grads=True), TypeError, "Offload got zero_grads"),
        (lambda p: Offload(p, "Adam", fallback="torch"), TypeError, "Offload got fallback"),
        (lambda p: Offload([], "Adam"), ValueError, "empty"),
        (lambda p: Offload(p[0], "Adam"), TypeError, "iterable"),
        (lambda p: Offload([*p, *p], "Adam"), (ValueError, UserWarning), "duplicate"),
        (lambda p: Offload([p[0].detach()[:2], p[0].detach()[1:]], "Adam"), ValueError, "params[1]"),
        (lambda p: Offload([torch.zeros(2, device="meta", requires_grad=True)], "Adam"), TypeError, "meta device"),
        (lambda p: Offload([torch.zeros(2).to_sparse().requires_grad_()], "Adam"), TypeError, "layout"),
    ],
)
def test_refused_arguments(make, error, message):
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    with pytest.raises(error, match=re.escape(message)):
        make(params)
    assert not any(p._post_accumulate_grad_hooks for p in params)


def test_options_are_shown():
    opt = Offload([torch.nn.Parameter(torch.ones(3, dtype=BRAIN))], "Adam", threads=1, max_skips=2, accumulate=4)
    assert (opt.master, opt.threads, opt.max_skips, opt.accumulate, opt.clip_norm) == ("split", 1, 2, 4, None)
    for name in ("master", "threads"):
        with pytest.raises(AttributeError):
            setattr(opt, name, 2)
    with pytest.raises(ValueError, match="clip_norm"):
        opt.clip_norm = -1.0
    assert opt.clip_norm is None
    signature = inspect.signature(Offload)
    assert [*signature.parameters] == ["params", "cls", "master", "clip_norm", "accumulate", "options"]
    for name in [*signature.parameters, "synchronize"]:
        assert name in Offload.__doc__


# Between backward and step ------------------------------------------------------------------------------------------


def assigned(p):
    p.data = p.detach() * 3


@pytest.mark.parametrize(
    "write",
    [lambda p: p.mul_(0.5), lambda p: p.copy_(torch.ones_like(p)), assigned],
    ids=["scaled", "loaded", "moved"],
)
def test_weights_written_between_backward_and_step_are_refused(write, either):
    """By name, before any weight is written; load_state_dict() goes on with what was written."""
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "Adam"), Offload(groups(model), "Adam")
    train(model, opt, range(2))
    train(other, its, range(2))
    saved = copy.deepcopy(opt.state_dict())
    backward(model, 2)
    with torch.no_grad():
        write(model.scale)
        write(other.scale)
    kept = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"params\[7\] was written between backward and step\(\).*expected"):
            opt.step()
        assert all(torch.equal(bits(p), bits(q)) for p, q in zip(model.parameters(), kept, strict=True))
    opt.load_state_dict(saved)
    its.load_state_dict(copy.deepcopy(saved))
    train(model, opt, range(3, 5))
    train(other, its, range(3, 5))
    assert_same(model, opt, other, its)


def test_weights_are_copied_in_backward(monkeypatch):
    """Not by the thread, which may come to it later."""
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "Adam"), Offload(groups(model), "Adam")
    step, go = _torch_offload.Door.step, threading.Event()
    monkeypatch.setattr(_torch_offload.Door, "step", lambda optimizer: (go.wait(20), step(optimizer)))
    backward(model, 0)
    before = [p.detach().clone() for p in model.parameters()]
    held = {slot.label: (slot.host.detach().clone(), slot.p.detach().clone()) for slot in opt._slots if slot.submitted}
    go.set()
    opt.step()
    assert len(held) == len(before) - 1
    assert all(torch.equal(bits(a), bits(b)) for a, b in held.values())
    monkeypatch.setattr(_torch_offload.Door, "step", step)
    train(other, its, [0])
    assert_same(model, opt, other, its)


def test_interrupted_when_it_is_handed_over(monkeypatch):
    """The thread has the step, and step() waits for it: it is made once."""
    p = torch.nn.Parameter(torch.ones(3))
    opt = Offload([p], "SGD", lr=1.0)
    submit, step, go = opt._worker.pool.submit, _torch_offload.Door.step, threading.Event()

    def interrupted(job):
        submit(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(_torch_offload.Door, "step", lambda optimizer: (go.wait(20), step(optimizer)))
    p.grad = torch.ones(3)
    opt._worker.wait()
    with monkeypatch.context() as patch:
        patch.setattr(opt._worker.pool, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opt._submit(opt._slots[0])
    threading.Timer(0.1, go.set).start()
    opt.step()
    assert p.tolist() == [0, 0, 0]
    assert p.grad is None
    assert len(opt._worker.pool._threads) == 1


@pytest.mark.parametrize("clip", [None, math.inf], ids=["runs", "waits"])
def test_interrupted_anywhere(clip):
    """An exception at any line of a step, and again in the step after it: one more step() ends it, made once."""

    class Stop(BaseException):
        pass

    def run(limits):
        params = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
        opt = Offload(params, "Adam", lr=0.1, clip_norm=clip, threads=1)
        for value in (1.0, 2.0):
            for p in params:
                p.grad = torch.full((3,), value)
            if value == 1.0:
                opt.step()
        met = True
        for limit in limits:
            seen = 0

            def trace(frame, event, _, limit=limit):
                nonlocal seen
                if frame.f_code.co_filename != _torch_offload.__file__:
                    return None
                line = linecache.getline(_torch_offload.__file__, frame.f_lineno).lstrip()
                if event == "line" and not line.startswith("with "):  # whose end has to run
                    seen += 1
                    if seen == limit:
                        raise Stop
                return trace

            before = sys.gettrace()
            sys.settrace(trace)
            try:
                opt.step()
                met = False
            except Stop:
                pass
            finally:
                sys.settrace(before)
        opt.step()
        opt.synchronize()
        assert all(p.grad is None for p in params), limits
        assert all(slot.host.grad is None and slot.grad is None and not slot.submitted for slot in opt._slots), limits
        assert [opt.state[p]["step"].item() for p in params] == [2, 2], limits
        return met, [p.detach() for p in params]

    _, expected = run([])
    limit, met = 0, True
    while met:
        limit += 1
        met, got = run([limit])
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), limit
    assert limit > 50
    for first in range(3, limit, 7):
        for second in range(2, limit, 9):
            _, got = run([first, second])
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), (first, second)


def test_copies_that_fail_leave_weights_alone(monkeypatch):
    """A step that could not copy a gradient takes nothing for stepped."""
    params = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for clip in (None, math.inf):
        opt = Offload(params, "SGD", lr=1.0, clip_norm=clip)
        for p in params:
            p.grad = torch.ones(2)
        opt.step()
        with torch.no_grad():
            for p in params:
                p.fill_(5.0)  # as model.load_state_dict does
        for p in params:
            p.grad = torch.ones(2)
        read, made = _torch_offload.CopyStream.read, []

        def fails(stream, pairs, read=read, made=made):
            made.append(pairs)
            if len(made) == 2:
                raise RuntimeError("no memory")
            return read(stream, pairs)

        monkeypatch.setattr(_torch_offload.CopyStream, "read", fails)
        with pytest.raises(RuntimeError, match="no memory"):
            opt.step()
        assert [p.tolist() for p in params] == [[5, 5]] * 3
        opt.step()
        assert [p.tolist() for p in params] == [[4, 4]] * 3
        monkeypatch.setattr(_torch_offload.CopyStream, "read", read)
        del opt
        gc.collect()


def test_zero_grad_after_backward(either):
    """What was stepped cannot be dropped: an error that names the way out. Where the step waits, it drops the batch."""
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "Adam"), Offload(groups(model), "Adam")
    backward(model, 0)
    for to_none in (True, False):
        with pytest.raises(RuntimeError, match=r"stepped already; expected step\(\) first.*clip_norm=math\.inf"):
            opt.zero_grad(to_none)
    opt.step()
    opt.zero_grad()
    train(other, its, [0])
    assert_same(model, opt, other, its)

    for options in ({"clip_norm": math.inf}, {"accumulate": 2}):
        model, other = Model(BRAIN), Model(BRAIN)
        its, opt = plain(other, "Adam"), Offload(groups(model), "Adam", **options)
        backward(model, 9)
        opt.zero_grad()
        for seed in range(options.get("accumulate", 1)):
            backward(model, seed)
            backward(other, seed)
        opt.step()
        its.step()
        its.zero_grad()
        assert_same(model, opt, other, its)


def test_a_gradient_written_after_backward_is_refused(either):
    """By name, and nothing has changed; where the step waits, it counts."""
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "Adam"), Offload(groups(model), "Adam")
    backward(model, 0)
    kept = [p.detach().clone() for p in model.parameters()]
    model.scale.grad = torch.ones_like(model.scale)
    with pytest.raises(RuntimeError, match=r"params\[7\] has a gradient in p\.grad that was written after backward"):
        opt.step()
    assert all(torch.equal(bits(p), bits(q)) for p, q in zip(model.parameters(), kept, strict=True))
    model.scale.grad = None
    model.rare.grad = torch.ones_like(model.rare)  # it has none of backward, and is stepped with this
    opt.step()
    backward(other, 0)
    other.rare.grad = torch.ones_like(other.rare)
    its.step()
    its.zero_grad()
    assert_same(model, opt, other, its)
    opt.clip_norm = its.clip_norm = math.inf
    for m, each in ((model, opt), (other, its)):
        backward(m, 1)
        m.scale.grad = torch.ones_like(m.scale)
        each.step()
    assert_same(model, opt, other, its)


class Fails(torch.autograd.Function):
    """Its backward pass runs out of memory."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        raise MemoryError("in backward")


@pytest.mark.parametrize("way", ["load", "step", "waits", "accumulates"])
def test_a_backward_pass_that_fails(way):
    """load_state_dict() drops what it gave, step() takes it, and where nothing was stepped zero_grad() drops it."""

    def new():
        torch.manual_seed(0)
        return torch.nn.Linear(3, 3), torch.nn.Linear(3, 1)

    def run(layers, fails=False):
        x = torch.tanh(layers[0](torch.ones(2, 3)))
        layers[1](Fails.apply(x) if fails else x).square().sum().backward()

    options = {"waits": {"clip_norm": math.inf}, "accumulates": {"accumulate": 2}}.get(way, {})
    passes = options.get("accumulate", 1)
    ours, theirs = new(), new()
    opt = Offload([p for m in ours for p in m.parameters()], "Adam", **options)
    its = proptim.torch.Adam([p for m in theirs for p in m.parameters()])
    for layers, each in ((ours, opt), (theirs, its)):
        for _ in range(passes):
            run(layers)
        each.step()
        each.zero_grad()
    saved = copy.deepcopy(opt.state_dict())
    with pytest.raises(MemoryError, match="in backward"):
        run(ours, True)
    if way in ("load", "step"):
        with pytest.raises(RuntimeError, match=r"load_state_dict\(\) drops what is pending, also after"):
            opt.zero_grad()
        with pytest.raises(RuntimeError, match=r"If a backward pass failed, step\(\) .*load_state_dict\(\) drops them"):
            run(ours)
    if way == "load":
        bad = copy.deepcopy(saved)
        bad["state"][0]["exp_avg"] = bad["state"][0]["exp_avg"].double()
        with pytest.raises(TypeError, match="cast=True"):
            opt.load_state_dict(bad)
        opt.load_state_dict(saved)
        opt.zero_grad()
    elif way == "step":
        opt.step()
        with pytest.raises(MemoryError):
            run(theirs, True)
        its.step()
        its.zero_grad()
    else:
        opt.zero_grad()
    for layers, each in ((ours, opt), (theirs, its)):
        for _ in range(passes):
            run(layers)
        each.step()
        each.zero_grad()
    assert_same(torch.nn.ModuleList(ours), opt, torch.nn.ModuleList(theirs), its)


# Threads, processes, memory ------------------------------------------------------------------------------------------


def test_nothing_keeps_it_alive():
    """Hooks, thread and steps that are under way end with the optimizer; the model stays."""
    model = Model(BRAIN)
    opt = Offload(groups(model), "Adam")
    train(model, opt, range(2))
    thread = next(t for t in threading.enumerate() if t in opt._worker.pool._threads)
    backward(model, 2)
    gone = weakref.ref(opt)
    del opt
    gc.collect()
    assert gone() is None
    thread.join(20)
    assert not thread.is_alive()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    backward(model, 0)
    assert model.first.weight.grad is not None


def test_two_threads_in_one_step():
    model = Model(BRAIN)
    opt = Offload(groups(model), "Adam")
    inside, go = threading.Event(), threading.Event()
    wait = opt._worker.wait

    def slow():
        inside.set()
        go.wait(20)
        wait()

    opt._worker.wait = slow
    first = threading.Thread(target=lambda: opt.step(lambda: backward(model, 0)))
    first.start()
    assert inside.wait(20)
    with pytest.raises(RuntimeError):
        opt.step()
    with pytest.raises(RuntimeError):
        opt.state_dict()
    go.set()
    first.join()
    opt._worker.wait = wait
    other = Model(BRAIN)
    its = plain(other, "Adam")
    train(other, its, [0])
    assert_same(model, opt, other, its)


def test_backward_in_several_threads():
    """Each gives the gradients of its own part."""
    parts = [Model(torch.float32) for _ in range(4)]
    others = [Model(torch.float32) for _ in range(4)]
    opt = Offload([p for m in parts for p in m.parameters()], "Adam")
    its = proptim.torch.Adam([p for m in others for p in m.parameters()])
    for seed in range(3):
        passes = []
        for i, m in enumerate(parts):
            torch.manual_seed(10 * seed + i)
            passes.append(m(torch.randn(5, 6)).square().mean())
        for i, m in enumerate(others):
            torch.manual_seed(10 * seed + i)
            m(torch.randn(5, 6)).square().mean().backward()
        threads = [threading.Thread(target=loss.backward) for loss in passes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        opt.step()
        its.step()
        its.zero_grad()
    for a, b in zip(parts, others, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(p, q)


def test_interrupted_while_it_waits(monkeypatch):
    """The thread goes on; another step() ends the round."""
    model, other = Model(BRAIN), Model(BRAIN)
    its, opt = plain(other, "Adam"), Offload(groups(model), "Adam")
    step, go = _torch_offload.Door.step, threading.Event()

    def slow(optimizer, closure=None):
        assert go.wait(20)
        return step(optimizer, closure)

    monkeypatch.setattr(_torch_offload.Door, "step", slow)
    backward(model, 0)
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have had ignored
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            opt.step()
        timer.join()
    finally:
        signal.signal(signal.SIGINT, handler)
        go.set()
    opt.step()
    backward(other, 0)
    monkeypatch.setattr(_torch_offload.Door, "step", step)
    its.step()
    assert_same(model, opt, other, its)


@pytest.mark.once
def test_interpreter_exit(fresh):
    """Steps that nobody waits for do not keep the interpreter, and it says nothing."""
    script = """
import torch, proptim.torch
model = torch.nn.Sequential(*[torch.nn.Linear(300, 300) for _ in range(6)])
opt = proptim.torch.Offload(model.parameters(), "Adam")
model(torch.ones(2, 300)).sum().backward()
print("ends")
"""
    assert fresh(script) == "ends"


@pytest.mark.once
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_fork(fresh):
    """A child steps by a thread of its own; while the parent's thread steps, it says what is wrong."""
    script = """
import os, threading, warnings, torch, proptim.torch
from proptim import _torch_offload
warnings.simplefilter("ignore")
torch.set_num_threads(1)
p = torch.nn.Parameter(torch.ones(3))
opt = proptim.torch.Offload([p], "SGD", lr=1.0, threads=1)
def step():
    p.sum().backward()
    opt.step()
step()
if os.fork() == 0:
    step()
    print("child", p.tolist(), flush=True)
    os._exit(0)
os.wait()
print("parent", p.tolist(), flush=True)
go, real = threading.Event(), _torch_offload.Door.step
_torch_offload.Door.step = lambda optimizer: (go.wait(20), real(optimizer))
p.sum().backward()
if os.fork() == 0:
    try:
        opt.step()
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
go.set()
opt.step()
print("parent", p.tolist(), flush=True)
"""
    told = fresh(script).splitlines()
    assert told[:2] == ["child [-1.0, -1.0, -1.0]", "parent [0.0, 0.0, 0.0]"]
    assert told[2].startswith("the process was forked while Offload stepped parameters")
    assert told[3] == "parent [-1.0, -1.0, -1.0]"


@pytest.mark.once
def test_several_processes_wait_for_step(fresh):
    """What other processes add after the hooks is in the gradient that is stepped."""
    script = """
import os, sys, tempfile, torch, proptim.torch
import torch.multiprocessing as mp
def run(rank, file):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
    opt = proptim.torch.Offload(model.parameters(), "SGD", lr=1.0)
    other = torch.nn.Linear(3, 1)
    other.load_state_dict(model.module.state_dict())
    plain = proptim.torch.SGD(other.parameters(), lr=1.0)
    model(torch.full((2, 3), 1.0 + rank)).sum().backward()
    opt.step()
    (sum(other(torch.full((2, 3), 1.0 + r)).sum() for r in range(2)) / 2).backward()
    plain.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters()))
    os.write(1, f"rank {rank}\\n".encode())
if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(run, (os.path.join(folder, "store"),), 2, start_method="fork")
"""
    assert sorted(fresh(script).splitlines()) == ["rank 0", "rank 1"]


def test_distributed_checkpoints():
    """torch.distributed.checkpoint makes the state by a step with gradients of zero."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model = Model(BRAIN)
    opt = Offload(model.parameters(), "Adam")
    train(model, opt, range(3))
    saved = copy.deepcopy(get_optimizer_state_dict(model, opt))
    other = Model(BRAIN)
    other.load_state_dict(model.state_dict())
    its = Offload(other.parameters(), "Adam")
    set_optimizer_state_dict(other, its, saved)
    train(model, opt, [3])
    train(other, its, [3])
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(bits(p), bits(q))


# A device ------------------------------------------------------------------------------------------------------------


def test_the_order_of_copies(monkeypatch):
    """They run on a stream of their own, after what the device computes, and nobody else gets the memory meanwhile."""
    told = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            told.append(f"{self.name} begins")

        def __exit__(self, *_):
            told.append(f"{self.name} ends")

        def wait_stream(self, other):
            told.append(f"{self.name} waits for {other.name}")

        def record_event(self):
            told.append(f"{self.name} records")
            return self

        def synchronize(self):
            told.append(f"wait for {self.name}")

    class Tensor:
        def copy_(self, source, non_blocking):
            told.append(f"copy, non_blocking={non_blocking}")

        def record_stream(self, stream):
            told.append(f"{stream.name} uses it")

    class Module:
        @staticmethod
        def Stream(device):
            return Stream("stream")

        @staticmethod
        def current_stream(device):
            return Stream("backward")

        @staticmethod
        def stream(stream):
            return stream

    monkeypatch.setattr(torch, "get_device_module", lambda device: Module)
    stream = _torch_offload.CopyStream(torch.device("cuda"))
    end = stream.read([(Tensor(), Tensor()), (Tensor(), Tensor())])
    copies = ["stream begins", *["copy, non_blocking=True"] * 2, "stream ends"]
    assert told == ["stream waits for backward", *copies, *["stream uses it"] * 2, "stream records"]
    end()
    stream.synchronize()
    assert told[-2:] == ["wait for stream", "wait for backward"]

    told.clear()
    other = _torch_offload.CopyStream(torch.device("mps"))  # without streams of its own
    end = other.read([(Tensor(), Tensor())])
    assert told == ["copy, non_blocking=False"]
    end()
    other.synchronize()
    assert told == ["copy, non_blocking=False"]


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.05}, {"accumulate": 2}], ids=["runs", "waits", "accumulates"])
@each_dtype
def test_on_a_device(dtype, options):
    """The bits of the optimizer on the CPU with the device's gradients; state on the CPU, copies pinned."""
    if not torch.cuda.is_available():
        print("Offload was not tried on a device: torch.cuda.is_available() is False")
        pytest.skip("torch.cuda.is_available() is False")
    model, other = Model(dtype).cuda(), Model(dtype)
    opt = Offload(groups(model), "AdamW", **options)
    its = plain(other, "AdamW", **{key: value for key, value in options.items() if key != "accumulate"})
    taken = {}
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.register_hook(lambda grad, q=q: taken.setdefault(id(q), []).append(grad.cpu()))
    for seed in range(8):
        torch.manual_seed(seed)
        model(torch.randn(5, 6).to(dtype).cuda()).square().mean().backward()
        opt.step()
        if seed % options.get("accumulate", 1) == options.get("accumulate", 1) - 1:
            for q in other.parameters():
                q.grad = None
                for grad in taken.get(id(q), []):
                    q.grad = grad if q.grad is None else q.grad + grad
            taken.clear()
            its.step()
            for p, q in zip(model.parameters(), other.parameters(), strict=True):
                assert torch.equal(bits(p.cpu()), bits(q))
    assert all(slot.host.is_pinned() for slot in opt._slots if slot.host.numel())
    assert all(t.device.type == "cpu" for own in opt.state.values() for t in own.values())


@pytest.mark.parametrize("options", [{"accumulate": 2}, {"clip_norm": 100.0}, {"nonfinite": "skip"}])
def test_no_averages_while_gradients_wait(options):
    w = torch.nn.Parameter(torch.ones(3))
    opt = Offload([w], "SGD", lr=0.1, ema=0.5, **options)
    (w * w).sum().backward()
    waiting = w.grad.clone()
    with (
        pytest.raises(RuntimeError, match=r"^averaged\(\) between backward and step\(\), when gradients wait"),
        opt.averaged(),
    ):
        pass
    assert torch.equal(w.grad, waiting)
    if "accumulate" in options:
        (w * w).sum().backward()
    opt.step()
    assert torch.equal(w.detach(), 1 - 0.1 * waiting * options.get("accumulate", 1))
    with opt.averaged():
        assert torch.equal(w.detach(), 1 - 0.05 * waiting * options.get("accumulate", 1))


@pytest.mark.parametrize(("made", "key", "value"), [({}, "ema", 0.5), ({"ema": 0.75}, "ema", None),
                                                    ({"ema": 0.75}, "ema", 0.5), ({}, "maximize", True)])  # fmt: skip
def test_a_loaded_state_leaves_what_it_lacks(made, key, value):
    saved = Offload([torch.nn.Parameter(torch.ones(3))], "AdamW").state_dict()
    for group in saved["param_groups"]:
        group.pop(key, None)
    opt = Offload([torch.nn.Parameter(torch.ones(3))], "AdamW", **made)
    opt.param_groups[0][key] = value
    opt.load_state_dict(saved)
    assert opt.param_groups[0][key] == value
