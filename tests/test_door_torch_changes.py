"""proptim.torch: gradients, hyperparameters and options that come, go and come back between steps."""

from __future__ import annotations

import copy
import itertools
import math
import re
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import proptim
import proptim.torch

RULES = [cls.__name__ for cls in proptim.OPTIMIZERS.values()]
each_rule = pytest.mark.parametrize("name", RULES)
LRS = (0.125, 0.5)


def weights():
    return torch.nn.Parameter(torch.ones(2, dtype=torch.float64))


def gradient():
    return torch.full((2,), 2.0, dtype=torch.float64)


def alone(name, lr):
    """One element of a parameter after 0, 1, 2, ... steps of its own optimizer."""
    p = weights()
    opt = getattr(proptim.torch, name)([p], lr=lr)
    told = [p[0].item()]
    for _ in range(4):
        p.grad = gradient()
        opt.step()
        told.append(p[0].item())
    return told


@each_rule
def test_gradients_that_come_and_go(name):
    """Every order of four steps in which none, one or both of two groups have a gradient: each keeps to its own."""
    expected = [alone(name, lr) for lr in LRS]
    every = ((), (0,), (1,), (0, 1))
    for order in itertools.product(every[1:], every, every, every):  # a step without any changes nothing, see below
        params = weights(), weights()
        opt = getattr(proptim.torch, name)([{"params": [p], "lr": lr} for p, lr in zip(params, LRS, strict=True)])
        for k, having in enumerate(order):
            for i, p in enumerate(params):
                p.grad = gradient() if i in having else None
            opt.step()
            made = [sum(i in having for having in order[: k + 1]) for i in range(2)]
            assert [p[0].item() for p in params] == [expected[i][n] for i, n in enumerate(made)], order[: k + 1]


CHANGES = [
    {},
    {"clip_norm": math.inf},
    {"grad_scale": 0.5},
    {"nonfinite": "skip"},
    {"zero_grads": True},
    {"flush_denormals": True},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change), "none"))
@pytest.mark.parametrize("before", range(4))
def test_a_step_without_gradients_does_nothing(change, before):
    """As in torch, after any number of steps and any change; the step after it is as without it."""
    p, q = weights(), weights()
    opt, judge = proptim.torch.Adam([p], lr=0.25), proptim.torch.Adam([q], lr=0.25)
    for _ in range(before):
        p.grad, q.grad = gradient(), gradient()
        opt.step()
        judge.step()
    for each in (opt, judge):
        for key, value in change.items():
            setattr(each, key, value)
    p.grad = None
    kept, state = p.tolist(), copy.deepcopy(opt.state_dict()["state"])
    for _ in range(2):
        opt.step()
        assert p.tolist() == kept
        assert repr(opt.state_dict()["state"]) == repr(state)
    for _ in range(2):
        p.grad, q.grad = gradient(), gradient()
        opt.step()
        judge.step()
        assert p.tolist() == q.tolist()


def test_a_number_comes_back_after_a_tensor_or_list():
    """The very object that was there before is the number again."""
    lr, betas = 0.125, (0.5, 0.75)
    for key, usual, other in (("lr", lr, torch.tensor(0.5)), ("betas", betas, [0.25, 0.5])):
        p, q = weights(), weights()
        opt, judge = (cls.Adam([each], lr=lr, betas=betas) for cls, each in ((proptim.torch, p), (proptim.torch, q)))
        for k in range(7):
            opt.param_groups[0][key] = other if k == 3 else usual
            judge.param_groups[0][key] = copy.deepcopy(tuple(other) if key == "betas" else 0.5) if k == 3 else usual
            p.grad = torch.full((2,), k + 1.0, dtype=torch.float64)
            q.grad = p.grad.clone()
            opt.step()
            judge.step()
            assert p.tolist() == q.tolist(), (key, k)


@pytest.mark.parametrize("kind", ["refused", "skipped"])
def test_a_step_that_was_not_made_leaves_no_hyperparameters(kind):
    """Neither a refused nor a skipped step for which a new plan was made; the next has the old lr again."""
    lr, other = 0.5, 4.0
    p, q, r = weights(), weights(), weights()
    opt = proptim.torch.SGD([p, q], lr=lr, clip_norm=1.0, nonfinite="skip")
    judge = proptim.torch.SGD([r], lr=lr, clip_norm=1.0, nonfinite="skip")
    for k in range(6):
        if k == 4:
            opt.param_groups[0]["lr"] = other
            p.grad = gradient()
            if kind == "skipped":  # with a parameter that joins
                q.grad = torch.full((2,), math.nan, dtype=torch.float64)
                opt.step()
                assert opt.skipped == 1
            else:
                q.grad = torch.sparse_coo_tensor(
                    [[2]], torch.ones(1, dtype=torch.float64), (2,), check_invariants=False
                )
                with pytest.raises(ValueError, match=r"^indices of grads\[1\] has 2 at place 0; expected 0 to 1"):
                    opt.step()
            opt.param_groups[0]["lr"] = lr
        p.grad, q.grad = torch.tensor([2.0**k, 1.0], dtype=torch.float64), None
        r.grad = p.grad.clone()
        opt.step()
        judge.step()
        assert p.tolist() == r.tolist(), k


@pytest.mark.parametrize("key", ["clip_norm", "nonfinite", "threads", "fallback"])
def test_options_in_a_group_are_refused(key):
    """By assignment at the next step, in a checkpoint when it is loaded; nothing has changed then."""
    message = f"{key} is an option of the whole optimizer; expected it as a keyword, not in a group"
    p = weights()
    opt = proptim.torch.SGD([p], lr=0.5)
    with pytest.raises(ValueError, match=message):
        opt.add_param_group({"params": [weights()], key: None})
    assert len(opt.param_groups) == 1
    for before in range(3):
        opt.param_groups[0][key] = 1
        p.grad, kept = gradient(), p.tolist()
        with pytest.raises(ValueError, match=message):
            opt.step()
        assert p.tolist() == kept
        saved = opt.state_dict()
        fresh = proptim.torch.SGD([weights()], lr=0.25)
        with pytest.raises(ValueError, match=message):
            fresh.load_state_dict(saved)
        assert fresh.param_groups[0]["lr"] == 0.25
        del opt.param_groups[0][key]
        opt.step()
        assert p.tolist() == [-before, -before]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_fused_with_a_sparse_gradient(name):
    """What torch's fused code does not step its other code steps, in our optimizer and beside our parameters."""
    told = []
    for fused in (True, None):
        params = [torch.nn.Parameter(torch.ones(3, 2)) for _ in range(3)]
        opt = getattr(proptim.torch, name)(
            [{"params": params[:1]}, {"params": params[1:]}], lr=0.5, fused=fused, fallback="torch"
        )
        for _ in range(3):
            params[0].grad = torch.ones(3, 2).to_sparse()
            params[1].grad = torch.eye(3, 2).to_sparse()
            params[2].grad = torch.ones(3, 2)
            opt.step()
        assert opt.param_groups[1]["fused"] is fused
        told.append([p.tolist() for p in params])
    assert told[0] == told[1]


def test_inside_another_default_device():
    """The planes of Rprop's state are laid out anew where the memory of the state is."""
    p = torch.nn.Parameter(torch.ones(3, 2))
    opt = proptim.torch.Rprop([p], lr=0.5)
    p.grad = torch.ones(3, 2)
    opt.step()
    opt.state[p]["prev"] = opt.state[p]["prev"].t().contiguous().t()
    p.grad = torch.ones(3, 2)
    with torch.device("meta"):
        opt.step()
    torch.testing.assert_close(p.detach(), torch.full((3, 2), -0.1), rtol=1e-6, atol=1e-7)


def test_grad_norm_goes_with_clip_norm():
    p = weights()
    opt = proptim.torch.SGD([p], lr=0.5, clip_norm=math.inf)
    for later in ({}, {"nonfinite": "raise"}):
        for clip_norm in (math.inf, None, math.inf):
            opt.clip_norm = clip_norm
            for key, value in later.items():
                setattr(opt, key, value)
            p.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
            opt.step()
            assert opt.grad_norm == (None if clip_norm is None else 5.0)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_zero_grads_lets_the_graph_go():
    """As zero_grad(set_to_none=False) of torch does."""
    for own in (True, False):
        p = weights()
        opt = proptim.torch.SGD([p], lr=0.5, zero_grads=own)
        (p.sum() ** 2).backward(create_graph=True)
        opt.step()
        if not own:
            opt.zero_grad(set_to_none=False)
        assert not p.grad.requires_grad
        assert p.grad.grad_fn is None
        assert p.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("before", range(3))
def test_a_gradient_without_numbers_is_refused(before):
    """What is wrong is not the dtype; nothing has changed."""
    p = torch.nn.Parameter(torch.ones(2))
    opt = proptim.torch.SGD([p], lr=0.5, fallback="torch")
    for _ in range(before):
        p.grad = torch.ones(2)
        opt.step()
    kept = p.tolist()
    for grad in (FakeTensorMode(allow_non_fake_inputs=True).from_tensor(torch.ones(2)), torch._efficientzerotensor(2)):
        p.grad = grad
        with pytest.raises(TypeError, match=re.escape("grads[0] is a tensor without an array of numbers in memory (")):
            opt.step()
        assert p.tolist() == kept
    p.grad = torch.ones(2)
    opt.step()
    assert p.tolist() == [k - 0.5 for k in kept]


@pytest.mark.parametrize("value", [2.5, 0.5])
def test_max_skips_is_a_whole_number(value):
    opt = proptim.torch.SGD([weights()], lr=0.5, max_skips=3)
    with pytest.raises(ValueError, match="expected a whole number >= 0"):
        opt.max_skips = value
    assert opt.max_skips == 3


def test_a_group_more_looks_at_no_other():
    """What `add_param_group` does here does not depend on how many groups there are; torch's own method does."""
    opt = proptim.torch.Rprop([weights()])
    counts = []
    for _ in range(300):
        count = 0

        def profile(frame, event, arg):
            nonlocal count
            count += event == "call" and "proptim" in frame.f_code.co_filename

        group = {"params": [weights()]}
        sys.setprofile(profile)
        try:
            opt.add_param_group(group)
        finally:
            sys.setprofile(None)
        counts.append(count)
    assert counts[-1] == counts[1] > 0
