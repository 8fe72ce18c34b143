"""proptim.torch: what proptim cannot step is stepped by torch's own code, in the same optimizer."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.testing._internal.two_tensor import TwoTensor

import proptim
import proptim.torch

SHARED = [cls.__name__ for cls in proptim.OPTIMIZERS.values() if hasattr(torch.optim, cls.__name__)]
each_shared = pytest.mark.parametrize("name", SHARED)


def ours(name):
    return getattr(proptim.torch, name)


def two(tensor):
    """A tensor without memory of its own, as that of torchao's weights."""
    return TwoTensor(tensor.clone(), tensor.clone())


def ones():
    return torch.nn.Parameter(two(torch.ones(3)))


def mixed():
    """A parameter that we step between two that we do not."""
    torch.manual_seed(0)
    made = [torch.randn(4, 3), torch.randn(5), torch.randn(2, 2)]
    return [torch.nn.Parameter(t if i == 1 else two(t)) for i, t in enumerate(made)]


def give(seed, *lists):
    torch.manual_seed(100 + seed)
    for i, p in enumerate(lists[0]):
        grad = torch.randn(p.shape)
        for each in lists:
            each[i].grad = two(grad) if isinstance(p, TwoTensor) else grad.clone()


def whole(tree):
    """A tensor of two tensors as one of them, in dicts too."""
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    return tree.a.detach() if isinstance(tree, TwoTensor) else tree


@each_shared
@pytest.mark.parametrize("flag", [{}, {"foreach": True}], ids=str)
def test_other_tensors_train(name, flag):
    """torch's own numbers to the bit for what it steps, ours for the rest; one warning; state as torch's."""
    mine, other, alone = mixed(), mixed(), mixed()[1:2]
    with pytest.warns(UserWarning, match="own") as told:
        opt = ours(name)([(f"w{i}", p) for i, p in enumerate(mine)], **flag)
    judge, own = getattr(torch.optim, name)(other, **flag), ours(name)(alone)
    for k in range(6):
        give(k, mine, other)
        alone[0].grad = mine[1].grad.clone()
        for each in (opt, judge, own):
            each.step()
        if k == 3:
            saved = copy.deepcopy(opt.state_dict())
            opt = ours(name)(mine, fallback="torch", **flag)
            opt.load_state_dict(saved)
        assert torch.equal(mine[0].a, other[0].a), k
        assert torch.equal(mine[2].a, other[2].a), k
        assert torch.equal(mine[1], alone[0]), k
    assert [str(w.message).partition(";")[0] for w in told] == [
        f'torch\'s own {name} steps params[0] ("w0") (and 1 more), which is a TwoTensor'
    ]
    assert told[0].filename == __file__
    for p, q in ((mine[0], other[0]), (mine[2], other[2])):
        torch.testing.assert_close(whole(dict(opt.state[p])), whole(dict(judge.state[q])), rtol=0, atol=0)
    judge.load_state_dict(opt.state_dict())


@each_shared
def test_another_device(name):
    """Parameters on "meta", which have no numbers, get torch's state beside those that are stepped."""
    here, away = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, device="meta"))
    alone = torch.nn.Parameter(torch.ones(3))
    with pytest.warns(UserWarning, match=rf"torch's own {name} steps params\[1\], which is on meta; fallback='torch'"):
        opt = ours(name)([here, away])
    own = ours(name)([alone])
    for _ in range(3):
        here.grad, alone.grad, away.grad = torch.ones(3), torch.ones(3), torch.ones(2, device="meta")
        opt.step()
        own.step()
    assert torch.equal(here, alone)
    judged = torch.nn.Parameter(torch.ones(2, device="meta"))
    judge = getattr(torch.optim, name)([judged])
    judged.grad = away.grad
    judge.step()
    assert opt.state[away].keys() == judge.state[judged].keys()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_sparse_now_and_then(name):
    """A gradient with two sparse dimensions at one step and none at the next goes from one to the other."""
    p, q = (torch.nn.Parameter(torch.arange(6.0).reshape(3, 2)) for _ in range(2))
    opt, judge = ours(name)([p], lr=0.5, fallback="torch"), getattr(torch.optim, name)([q], lr=0.5)
    for k in range(8):
        grad = torch.zeros(3, 2)
        grad[k % 3] = k + 1.0
        for each in (p, q):
            each.grad = grad.to_sparse() if k in (2, 3, 6) else grad.clone()
        opt.step()
        judge.step()
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", [n for n in SHARED if n not in ("SGD", "Adagrad")])
def test_sparse_gradients_that_torch_refuses(name):
    """By name, before anything has changed."""
    p, q = torch.nn.Parameter(torch.ones(3, 1)), torch.nn.Parameter(torch.ones(2))
    opt = ours(name)([p, q])
    p.grad, q.grad = torch.ones(3, 1).to_sparse(), torch.ones(2)
    with pytest.raises(TypeError, match=r"^grads\[0\] has 2 sparse dimensions; expected 1, as nn.Embedding"):
        opt.step()
    assert torch.equal(q, torch.ones(2))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"clip_norm": 1.0}, "clip_norm"),
        ({"clip_value": 1.0}, "clip_value"),
        ({"nonfinite": "skip"}, "nonfinite"),
        ({"grad_scale": 0.5}, "grad_scale"),
        ({"zero_grads": True}, "zero_grads"),
        ({"state_dtype": "bfloat16"}, "state_dtype"),
        ({"rounding": "stochastic"}, "rounding"),
        ({"eps_inside_sqrt": True}, "eps_inside_sqrt"),
    ],
)
def test_options_that_torch_lacks_are_named(options, named):
    """A TypeError, at once and at the step that follows a change."""
    p = ones()
    with pytest.raises(
        TypeError, match=rf"^params\[0\] of the group is a TwoTensor.*would step it, but has no {named}"
    ):
        proptim.torch.RMSprop([p], **options)
    opt = proptim.torch.RMSprop([p], fallback="torch")
    p.grad = two(torch.ones(3))
    opt.step()
    for key, value in options.items():
        if key in ("state_dtype", "rounding"):  # which are fixed
            return
        if hasattr(opt, key):
            setattr(opt, key, value)
        else:
            opt.param_groups[0][key] = value
    before = p.a.detach().clone()
    with pytest.raises(TypeError, match=f"has no {named}: leave that out"):
        opt.step()
    assert torch.equal(p.a, before)


def test_classes_that_torch_lacks():
    """Lion cannot be stepped by torch."""
    with pytest.raises(TypeError, match=r"^params\[0\] of the group is a TwoTensor; expected a tensor with memory"):
        proptim.torch.Lion([ones()])
    with pytest.raises(TypeError, match="has no variant"):
        proptim.torch.Rprop([ones()], variant="rprop+")


def test_fallback_says_whether_to_warn():
    """Once an optimizer, or never."""
    made = [ones() for _ in range(2)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        opt = proptim.torch.SGD(made[:1])
        opt.add_param_group({"params": made[1:]})
        copy.deepcopy(opt).step()
        for _ in range(2):
            made[0].grad = two(torch.ones(3))
            opt.step()
        proptim.torch.SGD(made, fallback="torch").step()
    assert len(told) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("master", ["auto", None])
def test_the_warning_of_a_step_names_the_caller_and_what_is_rounded(dtype, master):
    """The line of `step`, and none of torch's code around it; and that parameters of 16 bits have no master there."""
    p = torch.nn.Parameter(torch.ones(3, 3, dtype=dtype))
    opt = proptim.torch.SGD([p], lr=2.0**-12, master=master)
    p.grad = torch.ones(3, 3, dtype=dtype).to_sparse()
    with pytest.warns(UserWarning, match="own SGD steps") as told:
        opt.step()
    keeps = master and dtype != torch.float32
    assert [str(w.message) for w in told] == [
        "torch's own SGD steps params[0], which has a gradient that has 2 sparse dimensions; fallback='torch' says "
        "that this is wanted, fallback='error' refuses it"
        + (". Without the master that proptim keeps, params[0] is rounded at every step" if keeps else "")
    ]
    assert told[0].filename == __file__
    p.grad = torch.ones(3, 3, dtype=dtype).to_sparse(1)  # rows are stepped here, with the master
    begun = p.detach().clone()
    opt.step()
    assert (p < begun).all() == (dtype == torch.float32)
    assert {*opt.state[p]} == ({"master_lo" if dtype == torch.bfloat16 else "master"} if keeps else set())


def test_rounding_at_random_is_not_dropped():
    """A gradient that torch's own code would step is refused before anything is written."""
    p = torch.nn.Parameter(torch.ones(20, 20, dtype=torch.bfloat16))
    opt = proptim.torch.SGD([p], lr=2.0**-12, master=None, rounding="stochastic", fallback="torch")
    p.grad = (-torch.ones(20, 20, dtype=torch.bfloat16)).to_sparse()
    with pytest.raises(
        TypeError, match=r"^grads\[0\] has 2 sparse dim.*SGD would step it, but has no rounding: leave that"
    ):
        opt.step()
    p.grad = (-torch.ones(20, 20, dtype=torch.bfloat16)).to_sparse(1)
    for _ in range(64):
        opt.step()
    assert p.float().mean().item() == pytest.approx(1 + 64 * 2.0**-12, abs=2.0**-10)


def test_hooks_run_once_where_torch_steps():
    """Also after an optimizer of torch has been made, whose class is then hooked."""
    torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]).step()
    p = ones()
    opt, told = proptim.torch.SGD([p], fallback="torch"), []
    opt.register_step_post_hook(lambda *args: told.append("own"))
    handle = register_optimizer_step_post_hook(lambda *args: told.append("global"))
    p.grad = two(torch.ones(3))
    opt.step()
    handle.remove()
    assert sorted(told) == ["global", "own"]


@each_shared
def test_fake_tensors(name):
    """Under FakeTensorMode torch's own step runs, and so does ours, without a word."""
    with FakeTensorMode():
        model = torch.nn.Linear(4, 2)
        opt = ours(name)(model.parameters(), lr=0.1)
        for _ in range(3):
            opt.zero_grad()
            model(torch.ones(3, 4)).sum().backward()
            opt.step()
        state = {key: tuple(value.shape) for key, value in opt.state[model.weight].items() if key != "step"}
    assert set(state.values()) <= {(2, 4), ()}
    assert name == "SGD" or state


def test_fake_tensors_without_code_of_torch():
    """What torch's own step does not have is named, with what is in the way."""
    with FakeTensorMode():
        p = torch.nn.Parameter(torch.ones(3))
        why = r"^params\[0\] of the group is a FakeTensor, which has no numbers to step; expected .* of FakeTensorMode"
        with pytest.raises(TypeError, match=why + "$"):
            proptim.torch.Lion([p])
        for options, lacks in (({"clip_norm": 1.0}, "clip_norm"), ({"master": "split"}, "master")):
            with pytest.raises(
                TypeError, match=why + f". torch.optim.SGD would step it, but has no {lacks}: leave that"
            ):
                proptim.torch.SGD([p], **options)


class Own(proptim.torch.SGD):
    """An optimizer of somebody."""


def test_messages_name_the_class_of_torch():
    """That whose code steps, also where an optimizer of ours is a class of somebody's below ours."""
    with pytest.warns(UserWarning, match=r"^torch's own SGD steps params\[0\]"):
        Own([ones()])
    with pytest.raises(TypeError, match=r"torch\.optim\.SGD would step it, but has no clip_norm"):
        Own([ones()], clip_norm=1.0)


@pytest.mark.parametrize("before", range(3))
def test_a_warning_that_is_an_error(before):
    """A refused step: nothing has changed, and the next one says so again."""
    p, q = torch.nn.Parameter(torch.ones(3, 1)), torch.nn.Parameter(torch.ones(2))
    opt = proptim.torch.SGD([p, q], lr=0.5, momentum=0.5, zero_grads=False)
    for _ in range(before):
        p.grad, q.grad = torch.ones(3, 1), torch.ones(2)
        opt.step()
    state = copy.deepcopy(opt.state_dict())
    p.grad, q.grad = torch.ones(3, 1).to_sparse(), torch.ones(2)
    kept = p.tolist(), q.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(UserWarning, match=r"torch's own SGD steps params\[0\]"):
                opt.step()
            assert (p.tolist(), q.tolist()) == kept
            torch.testing.assert_close(opt.state_dict()["state"], state["state"])
        p.grad = torch.ones(3, 1)
        opt.step()  # as if nothing had been
        with pytest.raises(UserWarning, match="torch's own SGD steps"):
            proptim.torch.SGD([ones()])
    assert q.tolist() == [kept[1][0] - 0.5 * (2 - 0.5**before)] * 2
