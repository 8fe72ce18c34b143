"""proptim.torch: the options of proptim as keywords of torch's classes, and their signatures."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch

import proptim
import proptim.torch
from proptim._torch_optimizer import OPTIONS

RULES = {name: cls.__name__ for name, cls in proptim.OPTIMIZERS.items()}
ROOT = Path(__file__).parents[1]
SHAPES = [(4, 3), (), (2, 3, 2, 2), (0, 2), (7,)]
each_rule = pytest.mark.parametrize("name", RULES)


@pytest.fixture
def double():
    """float64 also for the numbers in the state, such as NAdam's product of momenta."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def ours(name):
    return getattr(proptim.torch, RULES[name])


def parameters(seed=0, dtype=None, shapes=SHAPES):
    torch.manual_seed(seed)
    made = [torch.randn(shape, dtype=dtype) for shape in shapes]
    if len(shapes[0]) == 2:
        made[0] = made[0].t().contiguous().t()
    return [torch.nn.Parameter(values) for values in made]


def give(params, seed, without=(), bad=None):
    torch.manual_seed(1000 + seed)
    for i, p in enumerate(params):
        grad = torch.randn(p.shape, dtype=p.dtype) * 10.0 ** torch.randint(-3, 4, ()).item()
        p.grad = None if i in without else grad
    if bad is not None:
        params[bad].grad.view(-1)[1] = math.nan


def arrays(params):
    return [p.detach().numpy().copy() for p in params]


def same(params, others):
    return all(np.array_equal(p.detach().numpy(), a, equal_nan=True) for p, a in zip(params, others, strict=True))


def twin(name, opt, params, **options):
    hyper = {key: opt.param_groups[0].get(key, value) for key, value in opt._hyper.items()}
    return proptim.OPTIMIZERS[name](params, **hyper, **options)


CASES = [
    {"clip_norm": 0.5},
    {"clip_norm": math.inf},
    {"clip_norm": 3.0, "grad_scale": 0.125, "clip_value": 0.25},
    {"grad_scale": -2.0},
    {"nonfinite": "skip"},
    {"clip_norm": 1.0, "nonfinite": "skip", "zero_grads": True, "flush_denormals": True},
]


@each_rule
@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.usefixtures("double")
def test_options_have_the_bits_of_proptim(name, options, dtype):
    """Norms, skips and weights are those of proptim's own optimizer, step for step, with gradients that come and go."""
    params = parameters(dtype=dtype)
    others = arrays(params)
    opt = ours(name)(params, **options)
    shared = {key: value for key, value in options.items() if key != "clip_value"}
    judge = twin(name, opt, others, **shared)
    for k in range(8):
        give(params, k, without=[(), (1,), (0, 3)][k % 3], bad=4 if k in (3, 6) else None)
        grads = [None if p.grad is None else p.grad.numpy().copy() for p in params]
        opt.step()
        judge.step(grads)
        assert same(params, others), k
        assert (opt.skipped, opt.grad_norm) == (judge.skipped, judge.grad_norm) or math.isnan(judge.grad_norm)
        if options.get("zero_grads"):
            assert all(p.grad is None or not p.grad.any() for p in params)
    assert opt.skipped == (2 if options.get("nonfinite") == "skip" else 0)


@each_rule
@pytest.mark.usefixtures("double")
def test_options_change_between_steps(name):
    """As an attribute is set, the next step has it; no step of an earlier value is repeated."""
    params = parameters(dtype=torch.float64)
    others = arrays(params)
    opt, judge = ours(name)(params), None
    judge = twin(name, opt, others)
    changes = [{}, {}, {"clip_norm": 0.5}, {}, {"grad_scale": 4.0}, {"clip_norm": None}, {}, {"grad_scale": 0.5}, {}]
    for k, change in enumerate(changes):
        for key, value in change.items():
            setattr(opt, key, value)
            setattr(judge, key, value)
        if name != "rprop" and k in (3, 4):
            opt.param_groups[0]["lr"] = judge.lr = 0.01 * k
        give(params, k)
        opt.step()
        judge.step([p.grad.numpy() for p in params])
        assert same(params, others), k


def test_clip_norm_is_that_of_torch():
    """What clip_grad_norm_ before the step does; only the gradients stay as they were."""
    mine, other = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    opt, judge = proptim.torch.SGD(mine, lr=0.1, clip_norm=2.0), torch.optim.SGD(other, lr=0.1)
    for k in range(4):
        give(mine, k)
        give(other, k)
        kept = [p.grad.clone() for p in mine]
        norm = torch.nn.utils.clip_grad_norm_(other, 2.0)
        opt.step()
        judge.step()
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)
        assert opt.grad_norm == pytest.approx(norm.item(), rel=1e-12)
        assert all(torch.equal(p.grad, g) for p, g in zip(mine, kept, strict=True))


@pytest.mark.parametrize("grads", ["first", "later"])
def test_nonfinite_raise_and_max_skips(grads):
    """The gradient is named, and nothing has changed."""
    params = parameters()
    opt = proptim.torch.Adam([(f"w{i}", p) for i, p in enumerate(params)], nonfinite="raise")
    if grads == "later":
        for k in range(3):
            give(params, k)
            opt.step()
    give(params, 5, bad=4)
    before, saved = arrays(params), copy.deepcopy(opt.state_dict())
    with pytest.raises(FloatingPointError, match=r'^grads\[4\] \("w4"\) is nan at index \(1,\); expected finite grad'):
        opt.step()
    assert same(params, before)
    torch.testing.assert_close(opt.state_dict()["state"], saved["state"], rtol=0, atol=0)
    opt.nonfinite, opt.max_skips = "skip", 2
    opt.step()
    opt.step()
    with pytest.raises(FloatingPointError, match=r"after 2 skips in a row \(max_skips\)"):
        opt.step()
    assert opt.skipped == 2
    give(params, 6)
    opt.step()
    give(params, 7, bad=4)
    opt.step()
    assert opt.skipped == 3


def test_a_skipped_step_in_a_closure_and_between_hooks():
    """The closure's loss is returned, hooks run, the count of steps stays."""
    (p,) = parameters(shapes=[(3,)])
    opt, told = proptim.torch.Adam([p], nonfinite="skip"), []
    opt.register_step_pre_hook(lambda *args: told.append("before"))
    opt.register_step_post_hook(lambda *args: told.append("after"))

    factors = iter((1.0, math.inf, 2.0))

    def closure():
        opt.zero_grad()
        loss = (p * next(factors)).sum()
        loss.backward()
        return loss

    for _ in range(3):
        assert opt.step(closure) is not None
    assert opt.state[p]["step"] == 2
    assert (opt.skipped, told) == (1, ["before", "after"] * 3)


@pytest.mark.parametrize("options", [{"clip_norm": 1.0}, {"nonfinite": "raise"}, {"nonfinite": "skip"}], ids=str)
def test_grad_scaler_unscales_before_we_look(options):
    """GradScaler divides in place and leaves out the steps that overflow: norms are of what it has unscaled."""
    mine, other = parameters(shapes=[(5,)]), parameters(shapes=[(5,)])
    opt, judge = proptim.torch.Adam(mine, fused=True, **options), torch.optim.Adam(other)
    norms = []
    for o, params in ((opt, mine), (judge, other)):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for k in range(4):
            o.zero_grad()
            loss = sum((p * p).sum() for p in params) * (float("inf") if k == 1 else 1.0)
            scaler.scale(loss).backward()
            if o is judge and "clip_norm" in options:
                scaler.unscale_(o)
                norms.append(torch.nn.utils.clip_grad_norm_(params, 1.0).item())
            scaler.step(o)
            scaler.update()
    torch.testing.assert_close(mine, other)
    assert opt.skipped == 0
    if norms:
        assert opt.grad_norm == pytest.approx(norms[-1], rel=1e-6)


def test_zero_grads_of_every_kind():
    """Gradients are zero after the step, also lazily negated ones; those that cannot be written are refused before."""
    params = parameters(shapes=[(3,), (3,)])
    opt = proptim.torch.SGD(params, lr=1.0, zero_grads=True)
    before = arrays(params)
    params[0].grad = torch._neg_view(torch.ones(3))
    params[1].grad = torch.ones(3)
    held = params[1].grad
    opt.step()
    assert np.array_equal(params[0].detach().numpy(), before[0] + 1)
    assert params[1].grad is held
    assert not any(p.grad.any() for p in params)
    params[0].grad = torch.ones(1).expand(3)
    before = arrays(params)
    with pytest.raises(ValueError, match=r"^grads\[0\] has elements that share memory, and zero_grads=True"):
        opt.step()
    assert same(params, before)


def test_where_options_live():
    """Not in groups, defaults or state_dict, which are torch's; pickle and deepcopy keep them."""
    params = parameters()
    plain = proptim.torch.Adam(params)
    opt = proptim.torch.Adam(params, clip_norm=1.0, nonfinite="skip", max_skips=7, zero_grads=True, fallback="error")
    give(params, 0, bad=4)
    opt.step()
    assert opt.param_groups[0].keys() == plain.param_groups[0].keys()
    assert opt.defaults == plain.defaults
    for other in (pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt)):
        assert (other.clip_norm, other.nonfinite, other.max_skips, other.fallback) == (1.0, "skip", 7, "error")
        assert (other.skipped, other.zero_grads, other.threads, other.backend) == (1, True, "auto", None)
        other.load_state_dict(torch.optim.Adam(parameters()).state_dict())
        assert other.clip_norm == 1.0
    with pytest.raises(AttributeError, match="threads is fixed at construction"):
        opt.threads = 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clip_norm": -1.0}, ValueError, "Invalid clip_norm value: -1.0"),
        ({"clip_norm": "1"}, TypeError, "Invalid clip_norm value: '1'"),
        ({"clip_norm": lambda steps: 1.0}, TypeError, "Invalid clip_norm: .* set it between steps"),
        ({"grad_scale": math.inf}, ValueError, "Invalid grad_scale value: inf"),
        ({"nonfinite": "ignore"}, ValueError, "Invalid nonfinite policy: 'ignore'"),
        ({"max_skips": -1}, ValueError, "Invalid max_skips value: -1"),
        ({"zero_grads": 2}, (ValueError, TypeError), "Invalid zero_grads: 2"),
        ({"fallback": "cuda"}, ValueError, r"Invalid fallback: 'cuda' \(expected one of 'warn', 'torch', 'error'\)"),
        ({"clip_normm": 1.0}, TypeError, "unexpected keyword argument 'clip_normm'"),
    ],
)
def test_refused_options(options, error, message):
    """By the constructor, and by setting the attribute, which then has not changed."""
    params = parameters()
    with pytest.raises(error, match=message):
        proptim.torch.Adam(params, **options)
    opt = proptim.torch.Adam(params)
    for key, value in options.items():
        if hasattr(opt, key):
            before = getattr(opt, key)
            with pytest.raises(error, match=message):
                setattr(opt, key, value)
            assert getattr(opt, key) == before


def test_options_of_the_whole_optimizer_are_refused_in_groups():
    """Where torch would keep them unread."""
    with pytest.raises(ValueError, match="clip_norm is an option of the whole optimizer"):
        proptim.torch.Adam([{"params": parameters(), "clip_norm": 1.0}])


def test_a_factor_that_is_not_finite_in_float32_is_refused():
    """Nothing has changed then, whichever way the step before was made."""
    params = parameters()
    opt = proptim.torch.SGD(params)
    for k in range(3):
        give(params, k)
        opt.step()
    opt.grad_scale = 1e300
    before = arrays(params)
    with pytest.raises(ValueError, match="the factor of the gradient = 1e\\+300"):
        opt.step()
    assert same(params, before)
    opt.grad_scale = 1.0
    opt.step()


def test_the_seed_can_be_set_and_comes_with_the_state():
    """A seed that is set counts from the next step on, and that of a state_dict counts from loading on."""

    def made(seed):
        params = [torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))]
        return params, proptim.torch.SGD(params, lr=0.01, master=None, rounding="stochastic", seed=seed)

    def stepped(params, opt):
        give(params, 1)
        opt.step()
        return params[0].detach().clone()

    first, second = stepped(*made(1)), stepped(*made(2))
    assert not torch.equal(first, second)
    params, opt = made(1)
    opt.seed = 2
    assert torch.equal(stepped(params, opt), second)
    params, opt = made(1)
    saved = made(2)[1].state_dict()
    assert saved.keys() == {"state", "param_groups", "seed"}
    opt.load_state_dict(saved)
    assert opt.seed == 2
    assert torch.equal(stepped(params, opt), second)
    plain = proptim.torch.SGD(params, lr=0.01, seed=2)
    assert plain.state_dict().keys() == {"state", "param_groups"}


# Signatures ----------------------------------------------------------------------------------------------------------


@each_rule
def test_signatures_name_every_option(name):
    """inspect.signature of class and constructor, and typing.get_type_hints, know the options and their types."""
    cls = ours(name)
    assert list(inspect.signature(cls.__init__).parameters)[1:] == list(inspect.signature(cls).parameters)
    taken = inspect.signature(cls).parameters
    assert {*OPTIONS, "clip_value"} <= taken.keys()
    hints = typing.get_type_hints(cls.__init__)
    for key, p in taken.items():
        assert p.annotation is not p.empty, key
        assert hints[key] == p.annotation
        if p.default is not p.empty and p.default is not None and not isinstance(p.default, (tuple, int)):
            allowed = typing.get_args(p.annotation)
            assert p.annotation is type(p.default) or type(p.default) in allowed or p.default in allowed or allowed, key


@pytest.mark.skipif(not (ROOT / "tools").exists(), reason="needs the checkout")
@pytest.mark.once  # a file and a process that is told nothing of backends
def test_the_stub_has_the_signatures():
    """torch.pyi is what the script makes of the classes."""
    told = subprocess.run(
        [sys.executable, ROOT / "tools/torch_stub.py", "--check"], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr


@pytest.mark.parametrize("name", [cls.__name__ for cls in proptim.OPTIMIZERS.values()])
def test_arguments_of_some_classes_of_torch_are_accepted_by_all(name):
    """foreach and fused change nothing; capturable and differentiable must be False; other names are told."""
    cls = getattr(proptim.torch, name)
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    plain = cls([p], lr=0.1)
    for options in ({"foreach": True}, {"fused": True}, {"foreach": False, "fused": None, "capturable": False}):
        assert {*options} <= {*inspect.signature(cls).parameters}
        p.grad = q.grad = torch.full((3,), 0.5)
        with torch.no_grad():
            q.copy_(p)
        opt = cls([q], lr=0.1, **options)
        opt.load_state_dict(copy.deepcopy(plain.state_dict()))
        opt.step()
        plain.step()
        assert torch.equal(p, q)
    for key in ("capturable", "differentiable"):
        with pytest.raises(ValueError, match=rf"^{key}=True: .*; expected False, or an optimizer of torch.optim$"):
            cls([p], lr=0.1, **{key: True})
    with pytest.raises(
        TypeError, match=rf"^proptim\.torch\.{name} got an .* 'fuse': did you mean 'fused'\?; expected some"
    ):
        cls([p], lr=0.1, fuse=True)
