"""`ema` in proptim.torch: the averages of `proptim.Optimizer`, as tensors in the state of torch.optim."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest

import proptim

torch = pytest.importorskip("torch")

import proptim.torch  # noqa: E402
from proptim._arrays import as_array  # noqa: E402
from proptim._torch_plan import Bound  # noqa: E402

NAMES = [name.__name__ for name in proptim.OPTIMIZERS.values()]


def start(wide="float64"):
    torch.manual_seed(3)
    kinds = [((37, 45), "float32"), ((1100,), "bfloat16"), ((300,), "float16"), ((20,), wide), ((), "float32")]
    params = [torch.randn(shape, dtype=getattr(torch, kind)).requires_grad_() for shape, kind in kinds]
    return [*params, torch.randn(30, 20).t().requires_grad_()]


def give(params, k):
    torch.manual_seed(k)
    for p in params:
        p.grad = torch.randn(p.shape, dtype=p.dtype)


def bits(tensors):
    return [np.asarray(as_array(t.detach(), "t")).tobytes() for t in tensors]


@pytest.mark.parametrize("name", NAMES)
def test_every_class(name):
    """The averages have the bits of those of arrays, in the dtype of the arithmetic; all else is as without."""
    wide = "float32" if name == "NAdam" else "float64"  # its mu_product is a float32 here, as in torch
    params, plain = start(wide), start(wide)
    opt = getattr(proptim.torch, name)(params, ema=0.9, weight_decay=0.01)
    alone = getattr(proptim.torch, name)(plain, weight_decay=0.01)
    arrays = [p.detach().clone() for p in params]
    hyper = {key: opt.param_groups[0].get(key, value) for key, value in opt._hyper.items()}
    other = proptim.OPTIMIZERS[name.lower()](arrays, **hyper, threads=1)
    assert opt.ema == {}
    for k in range(4):
        give(params, k)
        give(plain, k)
        opt.step()
        alone.step()
        other.step([p.grad for p in params])
        assert bits(params) == bits(plain) == bits(arrays)
        for i, p in enumerate(params):
            assert opt.ema[p] is opt.state[p]["ema"]
            assert opt.ema[p].dtype == (torch.float64 if p.dtype == torch.float64 else torch.float32)
            assert opt.ema[p].detach().numpy().tobytes() == np.asarray(other.ema[i]).tobytes()
    assert {*opt.state[params[0]]} == {*alone.state[plain[0]], "ema"}


@pytest.mark.once
def test_the_core_reads_the_tensors():
    """Averages do not keep the compiled core from reading tensors itself, nor moving them from being seen."""
    params = start()
    opt = proptim.torch.RMSprop(params, ema=0.5)
    for k in range(3):
        give(params, k)
        opt.step()
    if proptim.backend() == "c" and hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        assert not isinstance(opt._bound, Bound)
    p = params[0]
    opt.state[p]["ema"] = opt.state[p]["ema"].clone()
    opt.state[params[1]]["ema"].data = opt.state[params[1]]["ema"].clone()
    before = [opt.ema[q].clone() for q in params[:2]]
    give(params, 3)
    opt.step()
    assert torch.equal(opt.ema[p], before[0] + torch.tensor(0.5) * (p.detach() - before[0]))
    assert not torch.equal(opt.ema[params[1]], before[1])


@pytest.mark.once
def test_averaged():
    """The tensors are the averages; afterwards every bit is back. What would step or save meanwhile is refused."""
    params = start()
    opt = proptim.torch.Adam([{"params": params[:-1]}, {"params": params[-1:], "ema": None}], ema=0.9, lr=0.1)
    for k in range(3):
        give(params, k)
        opt.step()
    before, versions = bits(params), [p._version for p in params[:-1]]
    halves = opt.state[params[1]]["master_lo"].clone()
    saved = opt.state_dict()
    calls = [opt.step, opt.state_dict, lambda: opt.load_state_dict(saved), lambda: copy.deepcopy(opt)]
    calls += [lambda: opt.add_param_group({"params": [torch.ones(2)]}), lambda: opt.averaged().__enter__()]
    with opt.averaged():
        for p, version in zip(params, versions, strict=False):
            assert torch.equal(p.detach(), opt.ema[p].to(p.dtype))
            assert p._version > version
        assert bits(params[-1:]) == before[-1:]
        for call in calls:
            with pytest.raises(RuntimeError, match=r"^the parameters are the averages of the weights, within"):
                call()
    assert bits(params) == before
    assert torch.equal(opt.state[params[1]]["master_lo"], halves)
    with pytest.raises(KeyboardInterrupt), opt.averaged():
        raise KeyboardInterrupt
    assert bits(params) == before
    opt.step()
    assert bits(params) != before


@pytest.mark.once
@pytest.mark.parametrize(
    "move",
    [
        lambda m: m.double().float(),
        lambda m: [setattr(p, "data", p.data.clone()) for p in m.parameters()],
        lambda m: [setattr(p, "data", p.data[:0]) for p in m.parameters()],
    ],
    ids=["dtype", "clone", "shape"],
)
def test_a_model_that_gets_other_memory(move):
    """Within the block: the weights are put back to where they are at its end, and the run goes on."""
    models = [torch.nn.Linear(4, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    opts = [proptim.torch.Adam(m.parameters(), ema=0.5, lr=0.1) for m in models]
    x = torch.ones(2, 4)

    def step():
        for m, opt in zip(models, opts, strict=True):
            opt.zero_grad()
            m(x).square().sum().backward()
            opt.step()

    step()
    before = bits(models[0].parameters())
    with opts[0].averaged():
        assert bits(models[0].parameters()) == bits(opts[0].ema.values()) != before
        move(models[0])
    assert bits(models[0].parameters()) == before
    step()
    assert bits(models[0].parameters()) == bits(models[1].parameters())
    assert bits(opts[0].ema.values()) == bits(opts[1].ema.values())


def tied(m):
    m.bias.data = m.weight.data[0, :3]


def expanded(m):
    m.weight.data = torch.zeros(1).expand(3, 4)


def without_storage(m):
    m.weight.data = m.weight.data.clone()
    m.weight.untyped_storage().resize_(0)


def of_inference(m):
    with torch.inference_mode():
        m.half().float()


def of_whole_numbers(m):
    for p in m.parameters():
        p.requires_grad_(False)
        p.data = p.data.int()
        p.data = p.data.to(torch.int8)


def with_a_graph(m):
    m.weight.data = torch.zeros(3, 4, requires_grad=True)


@pytest.mark.once
@pytest.mark.parametrize("lose", [tied, expanded, without_storage, of_inference, of_whole_numbers, with_a_graph])
@pytest.mark.parametrize("make", [proptim.torch.Adam, lambda p, **options: proptim.torch.Offload(p, "Adam", **options)])
def test_parameters_whose_memory_cannot_hold_weights(make, lose):
    """They get memory of their own, and the run goes on."""
    models = [torch.nn.Linear(4, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    opts = [make(m.parameters(), ema=0.5, lr=0.1) for m in models]

    def step():
        for m, opt in zip(models, opts, strict=True):
            opt.zero_grad()
            m(torch.ones(2, 4)).square().sum().backward()
            opt.step()

    step()
    before = bits(models[0].parameters())
    with opts[0].averaged():
        lose(models[0])
    assert bits(models[0].parameters()) == before
    for p in models[0].parameters():
        p.requires_grad_()
    step()
    assert bits(models[0].parameters()) == bits(models[1].parameters())


@pytest.mark.once
@pytest.mark.parametrize("make", [proptim.torch.SGD, lambda p, **options: proptim.torch.Offload(p, "SGD", **options)])
def test_a_parameter_in_memory_of_others(make):
    """Of the average, and of a parameter that has none: both keep their numbers."""
    p, q, r = params = [torch.nn.Parameter(torch.full((4,), float(i))) for i in range(3)]
    opt = make([{"params": [p, q], "ema": 0.5}, {"params": [r]}], lr=0.5)
    sum(params).sum().backward()
    opt.step()
    average = opt.ema[p]
    with opt.averaged():
        p.data, q.data = average.data, r.data
    assert [each.tolist() for each in params] == [[-0.5] * 4, [0.5] * 4, [1.5] * 4]
    assert average.tolist() == [-0.25] * 4


@pytest.mark.once
def test_a_parameter_that_becomes_complex():
    """Its weights do; the next step says that its state is not."""
    p = torch.nn.Parameter(torch.ones(5))
    opt = proptim.torch.SGD([p], lr=0.5, ema=0.5)
    p.grad = torch.ones(5)
    opt.step()
    with opt.averaged():
        p.grad, p.data = None, p.data.to(torch.complex64)
    assert p.tolist() == [0.5] * 5
    p.grad = torch.ones(5, dtype=torch.complex64)
    with pytest.raises(
        ValueError, match=r"^state 'ema' of params\[0\] is float32 of a parameter that is complex64; exp"
    ):
        opt.step()
    p.grad, p.data = None, p.data.real.clone()
    p.grad = torch.ones(5)
    opt.step()
    assert p.tolist() == [0.0] * 5


def to_meta(p):
    """As model.to("meta") with torch.__future__.set_swap_module_params_on_conversion(True)."""
    return torch.nn.Parameter(torch.empty_like(p, device="meta"))


def to_sparse(p):
    return torch.nn.Parameter(p.detach().to_sparse())


@pytest.mark.once
@pytest.mark.parametrize("change", [to_meta, to_sparse])
def test_parameters_that_cannot_have_their_weights_back(change):
    """An error that names the first, when all others have their weights; the optimizer is not held."""
    params = [torch.nn.Parameter(torch.linspace(-1, 1, 6)) for _ in range(4)]
    opt = proptim.torch.Adam(params, ema=0.5, lr=0.1)
    give(params, 0)
    opt.step()
    before = bits(params)
    others = [change(params[1]), change(params[3])]

    def move():
        with opt.averaged():
            assert not any(map(bytes.__eq__, bits(params), before))
            params[2].data = params[2].data.clone()
            swap()

    def swap():
        for p, other in zip((params[1], params[3]), others, strict=True):
            p.grad = None
            torch.utils.swap_tensors(p, other)

    with pytest.raises(RuntimeError, match=r"^params\[1\] is on .* cannot have its weights back; expected a model"):
        move()
    assert bits([params[0], others[0], params[2], others[1]]) == before
    swap()
    give(params, 1)
    opt.step()
    assert [own["step"].item() for own in opt.state.values()] == [2] * 4


@pytest.mark.once
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_a_parameter_of_another_shape(dtype):
    """Its average is not put in, not even where it could be repeated; nothing has changed, and nothing is held."""
    p, q = torch.ones(1, 3, dtype=dtype), torch.ones(4)
    opt = proptim.torch.SGD([q, p], lr=0.5, ema=0.5)
    p.grad, q.grad = torch.ones(1, 3, dtype=dtype), torch.ones(4)
    opt.step()
    p.data = torch.full((5, 3), 7.0, dtype=dtype)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"^the average of params\[1\] has shape \(1, 3\); expected \(5, 3\), the shape of params"
        ), opt.averaged():  # fmt: skip
            pass
        assert p.tolist() == [[7.0] * 3] * 5
        assert q.tolist() == [0.5] * 4
    p.data = torch.full((1, 3), 7.0, dtype=dtype)
    with opt.averaged():
        assert p.tolist() == [[0.75] * 3]
    assert p.tolist() == [[7.0] * 3]


@pytest.mark.once
def test_a_run_that_is_resumed():
    """Through torch.save, copies and a load: the same bits, and no average in the dtype of a narrower parameter."""
    params = start()
    opt = proptim.torch.RMSprop(params, ema=0.9)
    give(params, 0)
    opt.step()
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    others = [p.detach().clone() for p in params]
    loaded = proptim.torch.RMSprop(others)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert loaded.param_groups[0]["ema"] == 0.9
    both, copies = copy.deepcopy((opt, params))
    for each, arrays in ((opt, params), (loaded, others), (both, copies)):
        give(arrays, 1)
        each.step()
        assert bits(arrays) == bits(params)
        assert bits(map(each.ema.get, arrays)) == bits(map(opt.ema.get, params))


@pytest.mark.once
def test_loading_what_other_runs_have_saved():
    """An average that was not saved begins at the next step; one that torch has cast is widened; arrays' is taken."""
    p = torch.ones(3, dtype=torch.bfloat16)
    plain = proptim.torch.SGD([p.clone()], lr=0.5, momentum=0.5)
    plain.param_groups[0]["params"][0].grad = torch.ones(3, dtype=torch.bfloat16)
    plain.step()
    theirs = torch.optim.SGD([torch.ones(3)], lr=0.5, momentum=0.5)
    opt = proptim.torch.SGD([p], lr=0.5, ema=0.75, momentum=0.5)
    for saved in (plain.state_dict(), theirs.state_dict()):
        opt.load_state_dict(saved)
        assert opt.param_groups[0]["ema"] == 0.75
        assert opt.ema == {}
    p.grad = torch.ones(3, dtype=torch.bfloat16)
    opt.step()
    assert opt.ema[p].tolist() == [1 + 0.25 * -0.5] * 3
    cast = opt.state_dict()
    cast["state"][0]["ema"] = cast["state"][0]["ema"].bfloat16()
    opt.load_state_dict(cast)
    assert opt.ema[p].dtype == torch.float32
    arrays = proptim.SGD([np.full(3, 2.0, np.float32)], lr=0.5, ema=0.5, momentum=0.5)
    arrays.step([np.ones(3, np.float32)])
    opt.load_state_dict(arrays.state_dict(), cast=True)
    assert opt.ema[p].tolist() == [1.75] * 3
    wide = copy.deepcopy(opt.state_dict())
    wide["state"][0]["ema"] = torch.full((3,), 0.1, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"^'ema' in state 0 of state_dict is float64; expected float32, in which"):
        opt.load_state_dict(wide)
    opt.load_state_dict(wide, cast=True)
    assert opt.ema[p].tolist() == torch.full((3,), 0.1).tolist()


@pytest.mark.once
def test_changes_and_refusals():
    """Of the number in a group, of gradients of rows, and of parameters that torch's own code steps."""
    p, q = (torch.ones(4, 3, requires_grad=True) for _ in range(2))
    opt = proptim.torch.SGD([{"params": [p]}, {"params": [q], "ema": 0.5}], lr=1.0)
    p.grad, q.grad = torch.ones(4, 3), torch.ones(4, 3)
    opt.step()
    assert [*opt.ema] == [q]
    opt.param_groups[0]["ema"], opt.param_groups[1]["ema"] = 0.75, None
    opt.step()
    assert opt.ema[p][0, 0] == -0.25  # began at the weights before the step
    assert opt.ema[q][0, 0] == 0.5
    with opt.averaged():
        assert p[0, 0] == -0.25
        assert q[0, 0] == -1.0  # its group has no `ema` now
    opt.param_groups[0]["ema"] = None
    with pytest.raises(ValueError, match=r"^no average of the weights is kept"), opt.averaged():
        pass
    opt.param_groups[0]["ema"], opt.param_groups[1]["ema"] = 0.75, 0.5
    with opt.averaged():
        assert q[0, 0] == 0.5
    opt.step()
    assert opt.ema[q][0, 0] == -0.75  # 0.5 + 0.5 (-2 - 0.5)
    p.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 3), (4, 3), check_invariants=True)
    with pytest.raises(ValueError, match=r"^grads\[0\] is a gradient of rows, and params\[0\] has an average"):
        opt.step()
    p.grad = None
    opt.param_groups[1]["ema"] = 1.0
    with pytest.raises(ValueError, match=r"^Invalid ema value: 1.0 \(expected a number >= 0 and < 1\)"):
        opt.step()
    with pytest.raises(TypeError, match=r"^Invalid ema: .* \(expected a number; torch.optim.lr_scheduler"):
        proptim.torch.SGD([p], lr=1.0, ema=lambda step: 0.5)
    with pytest.raises(TypeError, match=r"torch.optim.SGD would step it, but has no ema: leave that out"):
        proptim.torch.SGD([torch.ones(3, device="meta", requires_grad=True)], lr=1.0, ema=0.5)
    plain = proptim.torch.SGD([p], lr=1.0)
    assert not hasattr(plain, "ema")
    with pytest.raises(ValueError, match=r"^no average of the weights is kept"), plain.averaged():
        pass
