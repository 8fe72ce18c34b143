"""proptim.torch: bits against proptim's own optimizers, everything else against torch.optim."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
import re
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

import proptim
import proptim.torch
from proptim._torch_tensors import native

RULES = {name: cls.__name__ for name, cls in proptim.OPTIMIZERS.items()}
SHARED = [cls for cls in RULES.values() if hasattr(torch.optim, cls)]
SHAPES = [(4, 3), (), (2, 3, 2, 2), (0, 2), (7,)]
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]

each_rule = pytest.mark.parametrize("name", RULES)
each_class = pytest.mark.parametrize("name", RULES.values())
each_shared = pytest.mark.parametrize("name", SHARED)


@pytest.fixture(autouse=True)
def one_thread():
    """Of torch, whose threads wait for each other where other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def double():
    """float64 everywhere, also for the numbers in the state."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def ours(name):
    return getattr(proptim.torch, name)


def theirs(name):
    return getattr(torch.optim, name)


def parameters(seed=0, dtype=None, shapes=SHAPES):
    """Leaves of several shapes; the matrix is a transposed view."""
    torch.manual_seed(seed)
    made = [torch.randn(shape, dtype=dtype) for shape in shapes]
    if len(shapes[0]) == 2:
        made[0] = torch.randn(shapes[0][::-1], dtype=dtype).t()
    return [torch.nn.Parameter(values) for values in made]


def give(params, seed, *others, without=()):
    """The same new gradients for several lists of parameters; none for the indices `without`."""
    torch.manual_seed(1000 + seed)
    for i, p in enumerate(params):
        grad = torch.randn(p.shape, dtype=p.dtype) * 10.0 ** torch.randint(-3, 4, ()).item()
        for each in (params, *others):
            each[i].grad = None if i in without else grad.clone()


def values(params):
    return [p.detach().resolve_conj().numpy().copy() for p in params]


def same(a, b):
    """Bit for bit."""
    return len(a) == len(b) and all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


def close(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)


def hyper(opt, group=0):
    """What an optimizer of proptim must be given to be this one."""
    return {key: opt.param_groups[group].get(key, value) for key, value in opt._hyper.items()}


def unchanged(opt, params):
    """Everything that a refused step must leave as it was."""
    return [p.detach().clone() for p in params], copy.deepcopy(opt.state_dict()), list(opt.state)


def assert_unchanged(opt, params, before):
    kept, saved, keys = before
    assert all(torch.equal(p, q) for p, q in zip(params, kept, strict=True))
    assert [id(k) for k in opt.state] == [id(k) for k in keys]
    torch.testing.assert_close(opt.state_dict()["state"], saved["state"], rtol=0, atol=0)


# The classes ---------------------------------------------------------------------------------------------------------


@each_rule
def test_class(name):
    """Every rule has a class of its name, below that of torch if there is one, and says what it takes."""
    cls = ours(RULES[name])
    assert cls.__name__ in proptim.torch.__all__
    assert issubclass(cls, getattr(torch.optim, cls.__name__, torch.optim.Optimizer))
    assert cls._rule is proptim.OPTIMIZERS[name]
    taken = inspect.signature(cls).parameters
    for key in taken:
        assert key in cls.__doc__
    if cls.__name__ in SHARED:
        torch_s = inspect.signature(theirs(cls.__name__)).parameters
        assert list(taken.values())[: len(torch_s)] == list(torch_s.values())
        assert cls(parameters()).defaults == theirs(cls.__name__)(parameters()).defaults
    else:
        own = inspect.signature(proptim.OPTIMIZERS[name]).parameters
        assert [(p.name, p.default) for p in taken.values()][: len(own) - 1] == [
            (p.name, p.default) for p in own.values() if p.name != "options"
        ]


def test_nothing_else_is_exported():
    """One class for every rule."""
    assert proptim.torch.__all__ == list(RULES.values())


@pytest.mark.once
def test_import_is_light_and_asks_for_torch(fresh):
    """`import proptim` leaves torch alone; without torch, the door says what to install."""
    assert fresh("import sys, proptim; print('torch' in sys.modules)") == "False"
    told = fresh(
        "import sys; sys.modules['torch'] = None\ntry: import proptim.torch\nexcept ImportError as error: print(error)"
    )
    assert told == "proptim.torch needs PyTorch, which is not installed: pip install 'proptim[torch]'"


# The step ------------------------------------------------------------------------------------------------------------


def cases(name):
    return [
        pytest.param(name, case, id=f"{name}-{i}")
        for i, case in enumerate([*proptim.OPTIMIZERS[name].cases, {"weight_decay": 0.1, "maximize": True}])
    ]


@pytest.mark.parametrize(("name", "case"), [c for name in RULES for c in cases(name)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("double")
def test_same_bits_as_proptim(name, case, dtype):
    """Two groups, one of another learning rate, gradients that are missing now and then, a change of lr half-way."""
    params = parameters(dtype=dtype)
    arrays = values(params)
    opt = ours(RULES[name])([{"params": params[:2]}, {"params": params[2:], "lr": 0.03}], **case)
    groups = [{"params": arrays[:2], **hyper(opt)}, {"params": arrays[2:], **hyper(opt, 1)}]
    twin = proptim.OPTIMIZERS[name](groups)
    for k in range(6):
        give(params, k, without=[(1,), (), (0, 3)][k % 3])
        loss = float([5, 4, 4.5, 3, 2, 3][k])
        assert opt.step(lambda: loss) == loss  # noqa: B023
        twin.step([None if p.grad is None else p.grad.numpy() for p in params], loss=loss)
        assert same(values(params), arrays), k
        if k == 3 and name != "rprop":
            for group in (opt.param_groups[0], twin.param_groups[0]):
                group["lr"] = 0.02


@each_rule
@pytest.mark.once
@pytest.mark.usefixtures("double")
def test_same_bits_on_every_backend(name, backend):
    """backend= of the class and the default, here every one in turn, take all the same path."""
    params = parameters()
    arrays = values(params)
    opt = ours(RULES[name])(params, backend=backend)
    twin = proptim.OPTIMIZERS[name](arrays, **hyper(opt), backend="numpy")
    for k in range(3):
        give(params, k)
        opt.step()
        twin.step([p.grad.numpy() for p in params])
    assert same(values(params), arrays)


def test_nadam_rounds_its_product_as_torch():
    """mu_product is a float32 as in torch, so that a run goes on with the same bits after saving and loading."""
    (p,) = parameters(shapes=[(5,)])
    array, moments = p.detach().numpy().copy(), [np.zeros(5, np.float32), np.zeros(5, np.float32)]
    opt = proptim.torch.NAdam([p])
    product = 1.0
    for k in range(3):
        give([p], k)
        opt.step()
        proptim.functional.nadam(array, p.grad.numpy(), *moments, step=k + 1, mu_product=product, lr=2e-3)
        assert np.array_equal(p.detach().numpy(), array)
        assert opt.state[p]["mu_product"].dtype == torch.float32
        product = opt.state[p]["mu_product"].item()


def flags(name):
    """The same numbers by whatever implementation of torch, and whatever is asked of ours."""
    return [{}, {"foreach": True}, *([{"fused": True}] if name in ("SGD", "Adagrad", "Adam", "AdamW") else [])]


@pytest.fixture(scope="module")
def torch_inputs():
    """torch's own inputs for its optimizers, by class name."""
    from torch.testing._internal.common_optimizers import optim_db

    return {info.optim_cls.__name__: info for info in optim_db}


@pytest.mark.slow
@each_shared
@pytest.mark.usefixtures("double")
def test_inputs_of_torch(name, torch_inputs):
    """With every set of arguments that torch tests its optimizer with, the trajectory and the state are torch's."""
    inputs = torch_inputs[name].optim_inputs_func(device="cpu")
    assert len(inputs) >= 5
    for given in inputs:
        for flag in flags(name):
            if isinstance(given.kwargs.get("lr"), torch.Tensor) and flag.get("foreach"):
                continue  # torch refuses it, and so do we: test_refusals_of_torch
            mine, other = parameters(), parameters()
            opt, judge = ours(name)(mine, **given.kwargs, **flag), theirs(name)(other, **given.kwargs, foreach=False)
            for k in range(5):
                give(mine, k, other, without=[(), (2,)][k % 2])
                opt.step()
                judge.step()
                close(values(mine), values(other))
            mine, other = opt.state_dict(), judge.state_dict()
            for saved in (mine, other):
                for own in saved["state"].values():
                    if "prev" in own:
                        own["prev"] = own["prev"].sign()  # which is all of it that the rule looks at
            one_dtype = "fused" not in flag  # where torch.optim.Adagrad makes a step count of float32
            torch.testing.assert_close(mine["state"], other["state"], rtol=1e-11, atol=1e-13, check_dtype=one_dtype)
            asked = {"foreach": None} | flag
            assert mine["param_groups"] == [{**group, **asked} for group in other["param_groups"]]


@each_shared
def test_refusals_of_torch(name, torch_inputs):
    """What torch refuses, with torch's errors."""
    errors = torch_inputs[name].optim_error_inputs_func(device="cpu", dtype=torch.float32)
    assert len(errors) >= 7
    for error in errors:
        given = error.optimizer_error_input
        params = [torch.nn.Parameter(torch.randn(2))] if given.params is None else given.params
        if error.error_type is UserWarning:
            with pytest.warns(UserWarning, match=error.error_regex):
                ours(name)(params, **given.kwargs)
        else:
            with pytest.raises(error.error_type, match=error.error_regex):
                ours(name)(params, **given.kwargs)


def convnet(seed):
    """A small network and the images it learns from."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 8, 3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 4 * 4, 3),
    )
    return model, torch.randn(24, 1, 8, 8), torch.randint(0, 3, (24,))


def curve(name, module, seed=0, steps=20):
    model, x, y = convnet(seed)
    opt = getattr(module, name)(model.parameters())
    losses = []
    for _ in range(steps):
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


@each_shared
@pytest.mark.usefixtures("double")
def test_loss_curve(name):
    """Training a small convnet gives torch's losses: not to the bit, for torch fuses multiplications and additions."""
    mine, other = curve(name, proptim.torch), curve(name, torch.optim)
    np.testing.assert_allclose(mine, other, rtol=1e-9)
    assert mine[-1] < mine[0]


# State ---------------------------------------------------------------------------------------------------------------


def advance(opt, params, first, last):
    for k in range(first, last):
        give(params, k)
        opt.step()


@each_shared
@pytest.mark.parametrize("from_torch", [True, False], ids=["from torch", "to torch"])
@pytest.mark.usefixtures("double")
def test_state_moves_in_mid_run(name, from_torch):
    """A run that changes between torch.optim and us half-way is the run that does not."""
    options = {"momentum": 0.9, "dampening": 0.1} if name == "SGD" else {}
    here, there = (theirs, ours) if from_torch else (ours, theirs)
    moved, stays = parameters(), parameters()
    first, judge = here(name)(moved, **options), theirs(name)(stays, **options)
    advance(first, moved, 0, 4)
    second = there(name)(moved)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.param_groups[0].keys() == judge.param_groups[0].keys()
    advance(second, moved, 4, 8)
    advance(judge, stays, 0, 8)
    close(values(moved), values(stays))
    if from_torch:
        fresh = ours(name)(stays, **options)
        fresh.step()
        assert [own.keys() for own in second.state.values()] == [own.keys() for own in fresh.state.values()]


def reload(opt, cls, params):
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    fresh = cls(params)
    fresh.load_state_dict(torch.load(file))
    return fresh


@each_class
@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_a_run_goes_on_with_the_same_bits(name, how):
    """After state_dict and torch.load, pickle and deepcopy, in the middle of a run."""
    options = {"momentum": 0.9, "dampening": 0.1} if name == "SGD" else {}
    mine, judged = parameters(), parameters()
    opt, judge = ours(name)(mine, **options), ours(name)(judged, **options)
    advance(opt, mine, 0, 3)
    if how == "state_dict":
        opt = reload(opt, ours(name), mine)
    else:
        opt = copy.deepcopy(opt) if how == "deepcopy" else pickle.loads(pickle.dumps(opt))
        mine = opt.param_groups[0]["params"]
    advance(opt, mine, 3, 6)
    advance(judge, judged, 0, 6)
    assert same(values(mine), values(judged))


def test_options_survive_pickling_and_loading():
    """What torch does not know of stays: extra hyperparameters, threads, backend."""
    p = parameters(shapes=[(3,)])
    opt = proptim.torch.RMSprop(p, eps_inside_sqrt=True, threads=1, backend="numpy")
    twin = pickle.loads(pickle.dumps(opt))
    twin.load_state_dict(torch.optim.RMSprop(parameters(shapes=[(3,)])).state_dict())
    assert twin.param_groups[0]["eps_inside_sqrt"] is True
    assert (twin.threads, twin.backend) == (1, "numpy")
    twin.add_param_group({"params": parameters(shapes=[(2,)])})
    assert twin.param_groups[1]["eps_inside_sqrt"] is True


def test_rprop_shows_what_is_stored():
    """The state is torch's: step sizes, and in prev the last signs."""
    (p,) = parameters(shapes=[(3,)])
    opt = proptim.torch.Rprop([p], lr=0.1)
    for grad in ([1.0, -3.0, 2.0], [1.0, -3.0, -2.0]):
        p.grad = torch.tensor(grad)
        opt.step()
    shown = opt.state_dict()["state"][0]
    assert shown.keys() == {"step", "prev", "step_size"}
    assert shown["prev"].tolist() == [1.0, -1.0, 0.0]
    assert torch.equal(shown["step_size"], torch.tensor(0.1) * torch.tensor([1.2, 1.2, 0.5]))
    assert shown["step"].item() == 2
    assert all(shown[key] is value for key, value in opt.state[p].items())  # what is shown is what is stored


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rprop_takes_the_word_of_older_state(dtype):
    """A state_dict with `step_word`, as it was stored before, goes on with the same bits."""
    mine, judged = parameters(dtype=dtype), parameters(dtype=dtype)
    opt, judge = proptim.torch.Rprop(mine), proptim.torch.Rprop(judged)
    advance(opt, mine, 0, 4)
    saved = copy.deepcopy(opt.state_dict())
    for own in saved["state"].values():
        arrays = {name: own.pop(name).numpy() for name in ("prev", "step_size")}
        own["step_word"] = torch.from_numpy(proptim.Rprop.read_state(arrays)["step_word"])
    opt = proptim.torch.Rprop(mine)
    opt.load_state_dict(saved)
    advance(opt, mine, 4, 8)
    advance(judge, judged, 0, 8)
    assert same(values(mine), values(judged))
    assert all(own.keys() == {"step", "prev", "step_size"} for own in opt.state.values())


@each_shared
def test_state_and_state_dict_have_the_same_keys_and_tensors(name):
    """Of what is stored nothing is translated: wrappers flatten one by the keys of the other."""
    params = parameters()
    opt, judge = ours(name)(params), theirs(name)(params)
    advance(opt, params, 0, 3)
    judge.step()
    for i, p in enumerate(params):
        assert opt.state_dict()["state"].get(i, {}).items() == opt.state[p].items()
        if name != "SGD":
            assert set(opt.state[p]) == set(judge.state[p])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("double")
def test_rprop_bounds_change(dtype):
    """Bounds changed in mid-run, or narrower than a loaded state, hold at once, to the bit as in torch."""
    mine, others = parameters(dtype=dtype), parameters(dtype=dtype)
    opt, original = proptim.torch.Rprop(mine, lr=1.0), torch.optim.Rprop(others, lr=1.0)
    for k, bounds in enumerate([(1e-6, 50.0), (1e-6, 0.1), (1e-6, 1e-3), (0.5, 2.0), (1e-6, 50.0), (3.0, 4.0)] * 2):
        if k == 7:
            opt = reload(opt, proptim.torch.Rprop, mine)
        opt.param_groups[0]["step_sizes"] = original.param_groups[0]["step_sizes"] = bounds
        give(mine, k, others)
        if k % 3 == 2:
            for p in (*mine, *others):
                p.grad *= torch.arange(p.numel()).reshape(p.shape) % 2  # every second gradient is zero
        opt.step()
        original.step()
        assert same(values(mine), values(others)), k


def test_state_hooks_see_what_is_saved():
    """Hooks of state_dict and load_state_dict, also where the state is packed."""
    params = parameters(shapes=[(3,)])
    opt, told = proptim.torch.Rprop(params), []
    advance(opt, params, 0, 1)
    opt.register_state_dict_post_hook(lambda opt, saved: told.append(sorted(saved["state"][0])))
    opt.register_load_state_dict_post_hook(lambda opt: told.append("loaded"))
    opt.load_state_dict(opt.state_dict())
    advance(opt, params, 1, 2)
    assert told == [["prev", "step", "step_size"], "loaded"]


def test_irprop_plus_takes_the_loss_of_the_closure():
    """variant="irprop+" steps with a closure, and keeps the last loss in the state."""
    mine, judged = parameters(shapes=[(6,)]), parameters(shapes=[(6,)])
    arrays = values(judged)
    opt = proptim.torch.Rprop(mine, variant="irprop+", lr=0.5)
    twin = proptim.Rprop(arrays, variant="irprop+", lr=0.5)

    def closure():
        opt.zero_grad()
        loss = mine[0].square().sum()
        loss.backward()
        return loss

    for k in range(8):
        loss = opt.step(closure)
        assert loss.requires_grad
        twin.step([mine[0].grad.numpy()], loss=loss.item())
        assert same(values(mine), arrays)
        if k == 4:
            opt = reload(opt, proptim.torch.Rprop, mine)
            assert opt.param_groups[0]["variant"] == "irprop+"
    with pytest.raises(ValueError, match=r"irprop\+ compares losses; expected a closure"):
        opt.step()


# What may change between steps ---------------------------------------------------------------------------------------


def test_parameters_without_gradient_are_left_out():
    """Neither stepped nor counted; a first gradient, or a missing one, can come at any time."""
    mine, other = parameters(), parameters()
    opt, judge = proptim.torch.Adam(mine), torch.optim.Adam(other)
    opt.step()  # no gradient at all is no step
    assert not opt.state
    for k, without in enumerate([(0, 1), (1,), (), (2, 3), ()]):
        give(mine, k, other, without=without)
        opt.step()
        judge.step()
    counts = [[s["step"].item() for s in (o.state[p] for p in ps)] for o, ps in ((opt, mine), (judge, other))]
    assert counts[0] == counts[1] == [4, 3, 4, 4, 5]
    torch.testing.assert_close(mine, other)


def test_no_gradient_is_kept_alive():
    """zero_grad(set_to_none=True) frees the memory of gradients, as with torch.optim."""
    params = parameters()
    opt = proptim.torch.RMSprop(params)
    for _ in range(2):
        memory = [np.ones(p.shape, np.float32) for p in params]
        kept = [weakref.ref(array) for array in memory]
        for p, array in zip(params, memory, strict=True):
            p.grad = torch.from_numpy(array)
        opt.step()
        opt.zero_grad()
        del memory, array
        gc.collect()
        assert [k() for k in kept] == [None] * len(params)


def moved(p):
    p.data = p.detach().clone()


def turned(p):
    p.data = p.detach().t()


def narrowed(p):
    p.data = p.detach()[:2]


def shared(p):
    p.detach().share_memory_()


@pytest.mark.parametrize("change", [moved, turned, shared])
def test_new_memory_of_parameters_is_noticed(change):
    """`p.data = ...`, another layout of the same memory, another memory of the same tensor."""
    mine, other = parameters(shapes=[(3, 3), (4,)]), parameters(shapes=[(3, 3), (4,)])
    opt, judge = proptim.torch.SGD(mine, lr=0.5), torch.optim.SGD(other, lr=0.5)
    for k in range(4):
        give(mine, k, other)
        opt.step()
        judge.step()
        change(mine[0])
        change(other[0])
        assert same(values(mine), values(other))


def test_new_shape_is_noticed():
    """A parameter that has become a part of itself goes on, and a gradient of the old shape is refused."""
    (p,) = parameters(shapes=[(3, 2)])
    opt = proptim.torch.SGD([p], lr=1.0)
    give([p], 0)
    opt.step()
    whole = p.detach().clone()
    narrowed(p)
    with pytest.raises(ValueError, match=r"grads\[0\] has shape \(3, 2\); expected \(2, 2\), the shape of params\[0\]"):
        opt.step()
    p.grad = torch.ones(2, 2)
    opt.step()
    assert torch.equal(p.detach(), whole[:2] - 1)


def test_new_state_is_noticed():
    """Tensors of the state that are changed, replaced, removed or moved by others are those that the next step uses."""
    (p,) = parameters(shapes=[(3,)])
    (q,) = parameters(shapes=[(3,)])
    opt, judge = proptim.torch.Adam([p]), torch.optim.Adam([q])

    def both(change):
        for o, x in ((opt, p), (judge, q)):
            change(o, x)
        give([p], 7, [q])
        opt.step()
        judge.step()
        torch.testing.assert_close(p, q)
        torch.testing.assert_close(dict(opt.state[p]), dict(judge.state[q]))

    both(lambda o, x: None)
    both(lambda o, x: o.state[x]["exp_avg"].zero_())
    both(lambda o, x: o.state[x].update(exp_avg_sq=torch.full((3,), 5.0)))
    both(lambda o, x: o.state[x].update(step=torch.tensor(41.0)))
    both(lambda o, x: o.state[x]["step"].zero_())
    both(lambda o, x: o.state[x]["exp_avg"].share_memory_())
    both(lambda o, x: o.state.clear())
    both(lambda o, x: o.state.pop(x))
    both(lambda o, x: setattr(o, "state", type(o.state)(dict)))


@pytest.mark.usefixtures("double")
def test_groups_change():
    """A group that is added, and a parameter that goes to another group."""
    mine, other = parameters(shapes=[(3,)] * 4), parameters(shapes=[(3,)] * 4)
    pair = [(proptim.torch.RMSprop(mine[:2]), mine), (torch.optim.RMSprop(other[:2]), other)]
    for k in range(4):
        give(mine, k, other)
        for opt, params in pair:
            opt.step()
            if k == 0:
                opt.add_param_group({"params": params[2:], "lr": 0.3})
            if k == 1:
                opt.param_groups[1]["params"].insert(0, opt.param_groups[0]["params"].pop())
        close(values(mine), values(other))


@each_shared
def test_tensor_hyperparameters(name):
    """A learning rate that is a tensor can change in place, as schedulers change it."""
    mine, other = parameters(), parameters()
    opt, judge = ours(name)(mine, lr=torch.tensor(0.125)), ours(name)(other, lr=0.125)
    for k in range(3):
        give(mine, k, other)
        opt.step()
        judge.step()
        opt.param_groups[0]["lr"].fill_(0.25)
        judge.param_groups[0]["lr"] = 0.25
    assert same(values(mine), values(other))


def test_optional_state_comes_and_goes():
    """Momentum that is switched on in mid-run starts at zero, undamped as in torch.optim.SGD."""
    mine, other = parameters(), parameters()
    opt, judge = proptim.torch.SGD(mine, lr=0.1, dampening=0.5), torch.optim.SGD(other, lr=0.1, dampening=0.5)
    for k in range(6):
        give(mine, k, other)
        for o in (opt, judge):
            o.param_groups[0]["momentum"] = 0.9 * (k in (2, 3, 5))
            o.step()
        torch.testing.assert_close(mine, other)
    assert opt.state[mine[0]].keys() == {"momentum_buffer"}


SCHEDULES = {
    "one cycle": lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=12),
    "cosine": lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 12),
    "plateau": lambda opt: torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=1),
}


@pytest.mark.parametrize("name", ["SGD", "Adam"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.usefixtures("double")
def test_schedulers(name, schedule):
    """Schedulers of torch change lr, and momentum or betas with it."""
    options = {"momentum": 0.9} if name == "SGD" else {}
    trails = []
    for cls in (ours(name), theirs(name)):
        params = parameters()
        opt = cls(params, **options)
        scheduler = SCHEDULES[schedule](opt)
        rates = []
        for k in range(10):
            give(params, k)
            opt.step()
            scheduler.step(*([1.0] if schedule == "plateau" else []))
            rates.append(opt.param_groups[0]["lr"])
        assert len(set(rates)) > 1
        trails.append((rates, values(params)))
    assert trails[0][0] == trails[1][0]
    close(trails[0][1], trails[1][1])


def test_hooks_and_closure():
    """Hooks run around the step; the closure runs with gradients on, and its loss is returned."""
    (p,) = parameters(shapes=[(3,)])
    opt, told = proptim.torch.Adam([p]), []
    opt.register_step_pre_hook(lambda opt, args, kwargs: told.append("before"))
    opt.register_step_post_hook(lambda opt, args, kwargs: told.append("after"))

    def closure():
        told.append("closure")
        opt.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = opt.step(closure=closure)
    assert loss.item() > p.square().sum().item()
    assert told == ["before", "closure", "after"]


def test_version_of_parameters():
    """autograd is told of the change: a graph that needs the old values is refused."""
    p, q = parameters(shapes=[(3,), (3,)])
    opt = proptim.torch.SGD([p, q])
    p.grad = torch.ones(3)
    loss = (p * q).sum()
    before = p._version, q._version
    opt.step()
    assert (p._version > before[0], q._version) == (True, before[1])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Layouts, complex numbers, gradients of all kinds --------------------------------------------------------------------


@each_class
def test_strides_of_parameter_gradient_and_state_may_differ(name):
    """Bits do not depend on layouts."""
    plain = [torch.nn.Parameter(torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1)))]
    mixed = [torch.nn.Parameter(plain[0].detach().to(memory_format=torch.channels_last))]
    a, b = ours(name)(plain), ours(name)(mixed)
    for k in range(4):
        give(plain, k, mixed)
        mixed[0].grad = [mixed[0].grad, mixed[0].grad.transpose(1, 3).contiguous().transpose(1, 3)][k % 2]
        if k == 2:
            own = b.state[mixed[0]]
            own.update({key: value.contiguous() for key, value in own.items()})
        a.step()
        b.step()
        assert torch.equal(plain[0], mixed[0])
    assert mixed[0].is_contiguous(memory_format=torch.channels_last)


def test_gradients_of_all_kinds():
    """Lazily conjugated or negated, expanded, part of a graph, a view: read as what they are."""
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    q = torch.nn.Parameter(torch.zeros(3))
    opt = proptim.torch.SGD([p, q], lr=1.0)
    p.grad = torch.full((3,), 1 + 2j).conj()
    q.grad = torch.full((3,), 1 + 2j).conj().imag  # a real tensor with its negative bit set
    assert p.grad.is_conj()
    assert q.grad.is_neg()
    opt.step()
    assert torch.equal(p.detach(), torch.full((3,), -1 + 2j))
    assert torch.equal(q.detach(), torch.full((3,), 2.0))
    q.grad = torch.ones(1).expand(3)
    opt.step()
    assert torch.equal(q.detach(), torch.full((3,), 1.0))
    (q.grad,) = torch.autograd.grad(q.pow(3).sum(), q, create_graph=True)
    opt.step()
    assert torch.equal(q.detach(), torch.full((3,), -2.0))


def test_interlaced_parameters():
    """Parameters in one buffer, whose ranges of addresses meet and whose elements do not."""
    buffer = torch.zeros(4, 2)
    params = [torch.nn.Parameter(buffer[:, 0]), torch.nn.Parameter(buffer[:, 1])]
    opt = proptim.torch.SGD(params, lr=1.0)
    for _ in range(2):
        params[0].grad, params[1].grad = torch.ones(4), torch.full((4,), 2.0)
        opt.step()
    assert torch.equal(buffer, torch.tensor([[-2.0, -4.0]]).expand(4, 2))


# Around the step -----------------------------------------------------------------------------------------------------


@each_class
def test_one_optimizer_for_each_parameter_in_backward(name):
    """Stepping from register_post_accumulate_grad_hook, as soon as a gradient is there, is the same to the bit."""
    (model, x, y), (twin, *_) = convnet(3), convnet(3)
    whole = ours(name)(twin.parameters())
    single = {p: ours(name)([p]) for p in model.parameters()}

    def hook(p):
        single[p].step()
        single[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)
    for _ in range(3):
        torch.nn.functional.cross_entropy(model(x), y).backward()
        whole.zero_grad()
        torch.nn.functional.cross_entropy(twin(x), y).backward()
        whole.step()
        assert all(p.grad is None for p in model.parameters())
        assert same(values(model.parameters()), values(twin.parameters()))


@pytest.mark.parametrize("fused", [None, True])
def test_grad_scaler(fused):
    """torch.amp.GradScaler unscales the gradients, and leaves out steps with infinite ones, which do not count."""
    mine, other = parameters(), parameters()
    pairs = []
    for cls, params, flag in ((proptim.torch.Adam, mine, fused), (torch.optim.Adam, other, None)):
        opt, scaler = cls(params, fused=flag), torch.amp.GradScaler("cpu", init_scale=8.0)
        for k in range(4):
            opt.zero_grad()
            loss = sum((p * p).sum() for p in params) * (float("inf") if k == 1 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(opt)
            scaler.update()
        pairs.append((opt.state[params[0]]["step"].item(), scaler.get_scale()))
    assert pairs == [(3, 4.0)] * 2
    torch.testing.assert_close(mine, other)


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo, about the loss
def test_compiled_training_loop():
    """torch.compile breaks its graph at the step, and the step is the same."""
    (model, x, y), (twin, *_) = convnet(4), convnet(4)

    def train(net, opt):
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        opt.step()
        return loss

    opt, eager = proptim.torch.Adam(model.parameters()), proptim.torch.Adam(twin.parameters())
    compiled = torch.compile(train, backend="eager")
    for _ in range(4):
        assert compiled(model, opt).item() == train(twin, eager).item()
    assert same(values(model.parameters()), values(twin.parameters()))


def test_two_threads():
    """A second thread in the middle of a step is told so."""
    params = parameters()
    opt = proptim.torch.Adam(params)
    advance(opt, params, 0, 1)
    before = unchanged(opt, params)
    give(params, 1)
    with opt._claim, pytest.raises(RuntimeError, match="within another call of the same optimizer"):
        opt.step()
    assert_unchanged(opt, params, before)
    opt.step()


RANK = """
import datetime, os, sys, time
import torch, torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
import proptim.torch

rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=60))
for name in proptim.torch.__all__:
    cls = getattr(proptim.torch, name)
    torch.manual_seed(0)
    dtype = (torch.float32, torch.bfloat16)[len(name) % 2]  # it wants one for all
    params = [torch.nn.Parameter(torch.randn(n, 3).to(dtype)) for n in (5, 2, 7, 4)]
    alone = [torch.nn.Parameter(p.detach().clone()) for p in params]
    opt, twin = ZeroRedundancyOptimizer(params, optimizer_class=cls, lr=0.05), cls(alone, lr=0.05)
    for k in range(6):
        for p, q in zip(params, alone):
            p.grad = torch.randn(p.shape).to(p.dtype)
            q.grad = p.grad.clone()
        opt.step()
        twin.step()
        if k == 2:
            opt.consolidate_state_dict(to=0)
            saved = [opt.state_dict() if rank == 0 else None]
            dist.broadcast_object_list(saved, src=0)
            assert saved[0]["state"].keys() == twin.state_dict()["state"].keys()
            opt = ZeroRedundancyOptimizer(params, optimizer_class=cls, lr=0.05)
            opt.load_state_dict(saved[0])
    assert all(torch.equal(p, q) for p, q in zip(params, alone)), name
    held = len(opt.optim.state)
    assert held < 4 or name == "SGD", held
    print(rank, name, flush=True)
dist.barrier()
time.sleep(0.5)  # until the other is through the barrier too
os._exit(0)  # destroy_process_group aborts now and then ("terminate called"), with torch.optim as well
"""


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo over a file is tried on Linux")
def test_zero_redundancy_optimizer(tmp_path):
    """Two processes share the state of every optimizer, save and load it, and step as one process does, bit for bit."""
    command = [sys.executable, "-W", "ignore", "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(r), str(tmp_path / "store")], stdout=-1, stderr=-1, text=True) for r in (0, 1)
    ]
    try:
        told = [rank.communicate(timeout=150) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], told
    for r, (out, _) in enumerate(told):
        assert out.split("\n")[:-1] == [f"{r} {name}" for name in proptim.torch.__all__]


# What torch.distributed.checkpoint asks -----------------------------------------------------------------------------


@pytest.mark.once
def test_dcp_makes_the_first_state_of_every_rule(tmp_path):
    """Also of "irprop+", which otherwise asks for a loss: by a step with gradients of zero, which moves nothing."""
    for name in [*proptim.torch.__all__, "irprop+"]:
        model = torch.nn.Linear(3, 2)
        before = [p.detach().clone() for p in model.parameters()]
        options = {"variant": name} if name == "irprop+" else {"momentum": 0.5} if name == "SGD" else {}
        opt = getattr(proptim.torch, "Rprop" if name == "irprop+" else name)(model.parameters(), **options)
        state = get_optimizer_state_dict(model, opt)["state"]
        assert {key.partition(".")[0] for key in state} == {"weight", "bias"}
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.once
@each_class
@pytest.mark.parametrize("flat", [False, True])
def test_dcp_state_goes_on_with_the_same_bits(name, flat):
    """A run whose state is taken and given back by torch.distributed.checkpoint, flat and not."""
    torch.manual_seed(0)
    model, twin = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    asked = StateDictOptions(flatten_optimizer_state_dict=flat)
    options = {"momentum": 0.5} if name == "SGD" else {}
    opt, judge = (ours(name)(m.parameters(), lr=0.1, **options) for m in (model, twin))
    for k in range(6):
        give(list(model.parameters()), k, list(twin.parameters()))
        opt.step()
        judge.step()
        if k == 2:
            saved = get_optimizer_state_dict(model, opt, options=asked)
            opt = ours(name)(model.parameters(), **options)
            opt.zero_grad()  # torch makes no first state where there are gradients
            set_optimizer_state_dict(model, opt, saved, options=asked)
        assert same(values(model.parameters()), values(twin.parameters())), k


def test_irprop_plus_still_asks_for_a_loss():
    """A first step with a gradient, or a later one with gradients of zero, is no state that is made."""
    p = torch.nn.Parameter(torch.ones(2))
    opt = proptim.torch.Rprop([p], variant="irprop+")
    p.grad = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match="expected a closure"):
        opt.step()
    opt.step(lambda: 1.0)
    p.grad = torch.zeros(2)
    with pytest.raises(ValueError, match="expected a closure"):
        opt.step()


# What is refused -----------------------------------------------------------------------------------------------------


class Wrapper(torch.Tensor):
    """A tensor without memory of its own, as DTensor is one."""

    def __tensor_flatten__(self):
        return [], None


TENSORS = {
    "float8": (
        lambda: torch.zeros(2).to(torch.float8_e5m2),
        r"is torch.float8_e5m2; supported: float32, .*, bfloat16: convert the model with .float\(\)",
    ),
    "device": (
        lambda: torch.zeros(2, device="meta"),
        r"is on meta; expected a CPU tensor: move the model with .cpu\(\)",
    ),
    "sparse": (lambda: torch.zeros(2).to_sparse(), "has layout torch.sparse_coo; expected a strided tensor"),
    "wrapper": (lambda: torch.zeros(2).as_subclass(Wrapper), "is a Wrapper; expected a tensor with memory of its own"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_refused_parameters(kind):
    """With fallback="error", at once and by their name; at the step if it is then that they get a gradient."""
    make, message = TENSORS[kind]
    good = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match=rf'^params\[1\] \("b"\) of the group {message}'):
        proptim.torch.Adam([("a", good), ("b", make().requires_grad_())], fallback="error")
    opt = proptim.torch.Adam([good], fallback="error")
    with pytest.raises(TypeError, match=rf"^params\[0\] of the group {message}"):
        opt.add_param_group({"params": [make().requires_grad_()]})
    assert len(opt.param_groups) == 1
    frozen = make()
    opt.add_param_group({"params": [frozen]})
    good.grad = torch.ones(2)
    opt.step()
    if kind == "float8":
        before = unchanged(opt, [good])
        frozen.requires_grad_().grad = make()
        with pytest.raises(TypeError, match=rf"^params\[1\] {message}"):
            opt.step()
        assert_unchanged(opt, [good], before)


def step_refused(opt, params, error, message):
    before = unchanged(opt, params)
    with pytest.raises(error, match=message):
        opt.step()
    assert_unchanged(opt, params, before)


@pytest.mark.parametrize("begun", [False, True])
def test_refused_gradients(begun):
    """Sparse ones, those of another shape or dtype, those that are the parameter; nothing has changed then."""
    params = parameters(shapes=[(3, 2), (4,)])
    opt = proptim.torch.Adam(params)
    if begun:
        advance(opt, params, 0, 1)
    give(params, 1)
    params[0].grad = torch.ones(3, 2).to_sparse()
    step_refused(opt, params, TypeError, r"^grads\[0\] has 2 sparse dimensions; expected 1, as .* use .to_dense\(\)$")
    give(params, 1)
    params[1].grad = params[1].detach()
    step_refused(opt, params, ValueError, r"^grads\[1\] and params\[1\] share memory")
    give(params, 2)
    params[1].grad = None
    params[1].grad_dtype = torch.float64
    params[1].grad = torch.ones(4, dtype=torch.float64)
    step_refused(opt, params, TypeError, r"^grads\[1\] is float64; expected float32, the dtype of params\[1\]")


def test_refused_memory():
    """Parameters that share memory, with each other or with themselves."""
    data = torch.zeros(3)
    both = [torch.nn.Parameter(data), torch.nn.Parameter(data)]
    give(both, 0)
    step_refused(proptim.torch.SGD(both), both, ValueError, r"params\[1\] and params\[0\] share memory")
    wide = [torch.zeros(1).expand(3).requires_grad_()]
    give(wide, 0)
    step_refused(proptim.torch.SGD(wide), wide, ValueError, r"params\[0\] has elements that share memory")
    lazy = [torch.zeros(3, dtype=torch.complex64).conj().requires_grad_()]
    give(lazy, 0)
    step_refused(proptim.torch.SGD(lazy), lazy, TypeError, r"params\[0\] is the conjugate of another tensor")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lr", -1.0, "Invalid learning rate: -1.0"),
        ("betas", [0.9, 1.5], "Invalid beta parameter at index 1: 1.5"),
        ("maximize", "yes", "Invalid maximize: 'yes'"),
        ("lr", lambda step: 0.1, "Invalid lr: .*torch.optim.lr_scheduler"),
        ("capturable", True, "capturable=True: proptim steps on the CPU"),
        ("differentiable", True, "differentiable=True: no gradient flows"),
    ],
)
def test_refused_hyperparameters(key, value, message):
    """Also those that torch would take, at the step that follows a change; and in a new group."""
    params = parameters(shapes=[(3,)])
    opt = proptim.torch.Adam(params)
    advance(opt, params, 0, 1)
    good = opt.param_groups[0][key]
    opt.param_groups[0][key] = value
    step_refused(opt, params, (ValueError, TypeError), message)
    opt.param_groups[0][key] = good
    opt.step()
    with pytest.raises((ValueError, TypeError), match=message):
        opt.add_param_group({"params": parameters(shapes=[(2,)]), key: value})
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Adam", {"differentiable": True}, "differentiable=True"),
        ("Adam", {"capturable": True}, "capturable=True"),
        ("Rprop", {"variant": "rprop"}, "Invalid variant: 'rprop'"),
        ("Rprop", {"step_sizes": (0.0, 50.0)}, "Invalid step sizes"),
        ("RMSprop", {"alpha": 1.0}, "Invalid alpha value: 1.0"),
        ("Adadelta", {"rho": 1.0}, "Invalid rho value: 1.0"),
        ("Adam", {"backend": "cuda"}, "Invalid backend: 'cuda'"),
        ("Adam", {"threads": 0}, "threads is 0"),
        ("Adam", {"variant": "rprop-"}, "unexpected keyword argument 'variant'"),
        ("AdamW", {"decoupled_weight_decay": False}, "unexpected keyword argument 'decoupled_weight_decay'"),
        (
            "Lion",
            {"forech": True},
            r"^proptim.torch.Lion got an .* argument 'forech': did you mean 'foreach'\?; expected",
        ),
    ],
)
def test_refused_arguments(name, options, message):
    """What no step could take is refused by the constructor."""
    with pytest.raises((ValueError, TypeError), match=message):
        ours(name)(parameters(), **options)


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        (
            "Adam",
            {"exp_avg": torch.zeros(2)},
            ValueError,
            r"state 'exp_avg' of params\[0\] has shape \(2,\); expected \(3,\)",
        ),
        (
            "Adam",
            {"exp_avg": torch.zeros(1).expand(3)},
            ValueError,
            r"state 'exp_avg' of params\[0\] has elements that share",
        ),
        ("Rprop", {"step_size": torch.zeros(3)}, ValueError, "step_size has values out of range"),
    ],
)
def test_refused_state(name, change, error, message):
    """A state_dict of something else, which torch takes, is refused at the step; nothing has changed then."""
    params = parameters(shapes=[(3,)])
    opt = ours(name)(params)
    advance(opt, params, 0, 1)
    saved = opt.state_dict()
    saved["state"][0] = saved["state"][0] | change
    opt.load_state_dict(saved)
    before = values(params), dict(opt.state[params[0]])
    give(params, 1)
    with pytest.raises(error, match=message):
        opt.step()
    assert same(values(params), before[0])
    assert opt.state[params[0]] == before[1]


def test_a_state_dict_is_not_changed_by_later_steps():
    """Also one taken between loading and the next step, which packs the state of Rprop."""
    w = torch.nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    opt = proptim.torch.Rprop([w])
    opt.step()
    opt.load_state_dict(opt.state_dict())
    taken = opt.state_dict()
    opt.step()
    assert set(taken["state"][0]) == {"step", "prev", "step_size"}


def test_a_count_that_is_none():
    """A step that no run leads to is refused, and nothing has changed."""
    w = torch.nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    opt = proptim.torch.Adam([w])
    opt.step()
    before = w.detach().clone()
    opt.state[w]["step"].fill_(-1)
    with pytest.raises(
        ValueError, match=re.escape("'step' of the state is -1.0; expected a whole number of at least 0")
    ):
        opt.step()
    assert torch.equal(w, before)


def test_interrupted_step_is_counted(monkeypatch):
    """A signal that comes while the kernels run is told after them: the step is made, counted and seen by autograd."""
    w = torch.nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    monkeypatch.setattr(proptim._torch_optimizer, "EXCHANGE", None)
    opt = proptim.torch.Adam([w])
    opt.step()

    class Interrupted:
        def __getattr__(self, name):
            return getattr(plan, name)

        def step(self, *args):
            plan.step(*args)
            raise KeyboardInterrupt

    plan, version = opt._bound.plan, w._version
    opt._bound.plan = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        opt.step()
    assert (opt.state[w]["step"].item(), w._version) == (2, version + 1)


# Tensors seen in C ---------------------------------------------------------------------------------------------------

exchanged = pytest.mark.skipif(not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="torch < 2.10")


@pytest.fixture(params=["libtorch", "the exchange"])
def asked(request, monkeypatch):
    """What tells C code of a tensor: the exchange only where functions of libtorch are not found."""
    if request.param == "the exchange":
        monkeypatch.setattr("proptim._torch_optimizer.native", lambda: ())
    elif sys.platform in ("linux", "darwin"):
        assert native()


def seen_in_c(opt):
    return type(opt._bound).__name__ == "Tensors"


def gradient_kinds():
    """Kinds of gradients of three numbers, all -1 -2 -3: the exchange has a pointer for each that must not be used."""
    wide = torch.complex(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]))
    number = torch.tensor([-1.0, -2.0, -3.0])
    return {
        "plain": number.clone(),
        "negated": torch._neg_view(-number),
        "negated part": wide.conj().imag,
        "expanded view": number.expand(2, 3)[1],
        "every second": torch.stack([number, number], 1)[:, 0],
        "parameter": torch.nn.Parameter(number.clone()),
        "subclass": number.clone().as_subclass(type("Sub", (torch.Tensor,), {})),
    }


@pytest.mark.once  # the core has to be the backend
@each_class
@pytest.mark.parametrize("kind", gradient_kinds())
@pytest.mark.usefixtures("asked")
def test_gradients_of_every_kind_in_mid_run(name, kind):
    """One that the exchange shows wrongly is read as what it is, and so is the plain one that follows it."""
    mine, other = parameters(shapes=[(3,), (2,)]), parameters(shapes=[(3,), (2,)])
    opt, judge = ours(name)(mine), ours(name)(other, backend="numpy")
    for k in range(6):
        give(mine, k, other)
        if k in (2, 3):
            for p in (mine[0], other[0]):
                p.grad = gradient_kinds()[kind]
        if k == 5 and hasattr(torch.Tensor, "__dlpack_c_exchange_api__") and kind == "plain":
            assert seen_in_c(opt)
        opt.step()
        judge.step()
        assert same(values(mine), values(other)), k


def test_sparse_and_foreign_gradients_in_mid_run_are_refused():
    """As by the first step."""
    params = parameters(shapes=[(2, 2)])
    opt = proptim.torch.Adam(params)
    advance(opt, params, 0, 3)
    params[0].grad = torch.ones(2, 2).to_sparse()
    step_refused(opt, params, TypeError, r"^grads\[0\] has 2 sparse dimensions; expected 1, as")
    params[0].grad = params[0].detach()
    step_refused(opt, params, ValueError, r"^grads\[0\] and params\[0\] share memory")
    params[0].grad = opt.state[params[0]]["exp_avg"]
    step_refused(opt, params, ValueError, r"^grads\[0\] and state 'exp_avg' of params\[0\] share memory")
    advance(opt, params, 3, 5)


@pytest.mark.once  # the core has to be the backend
@exchanged
def test_new_memory_at_every_step_is_found_in_c():
    """As sharpness-aware minimization gives it: no new plan, and nothing of the old memory is kept."""
    mine, other = parameters(shapes=[(3, 3), (4,)]), parameters(shapes=[(3, 3), (4,)])
    opt, judge = proptim.torch.Adam(mine), proptim.torch.Adam(other, backend="numpy")
    for k in range(6):
        give(mine, k, other)
        if k > 2:
            memory = [p.detach().numpy().copy(order="K") for p in mine]
            kept = [weakref.ref(array) for array in memory]
            for p, array in zip(mine, memory, strict=True):
                p.data = torch.from_numpy(array)
            bound = opt._bound
            del memory, array
        opt.step()
        judge.step()
        if k > 2:
            assert opt._bound is bound
            for p in mine:
                p.data = p.detach().clone()
            gc.collect()
            assert [k() for k in kept] == [None] * len(mine)
        assert same(values(mine), values(other))


@exchanged
def test_parameters_that_move_onto_each_other_are_refused():
    """Memory is looked at when it is new."""
    params = parameters(shapes=[(3,), (3,)])
    opt = proptim.torch.SGD(params)
    advance(opt, params, 0, 3)
    params[1].data = params[0].detach()
    step_refused(opt, params, ValueError, r"params\[1\] and params\[0\] share memory")


@exchanged
@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("how", ["new memory", "where it lies", "part of a conjugate"])
def test_a_negated_parameter_is_refused(how):
    """NumPy cannot show it, and the exchange would show the wrong numbers."""
    (p,) = params = parameters(shapes=[(3,)])
    pair = torch.complex(torch.zeros(3), torch.ones(3))
    if how == "part of a conjugate":
        p.data = pair.imag
    opt = proptim.torch.SGD(params)
    advance(opt, params, 0, 3)
    if how == "part of a conjugate":
        p.data = pair.conj().imag
    else:
        p.data = torch._neg_view(p.detach().clone() if how == "new memory" else p.detach())
    assert p.is_neg()
    before = p.detach().clone()
    give(params, 3)
    with pytest.raises(TypeError, match="the negative of another tensor"):
        opt.step()
    assert torch.equal(p.detach(), before)


@exchanged
@pytest.mark.usefixtures("asked")
def test_state_negated_where_it_lies():
    """The dict holds the same tensor, and that the same memory: an array is refused, a step count is read as it is."""
    mine, other = parameters(shapes=[(3,)]), parameters(shapes=[(3,)])
    opt, judge = proptim.torch.Adam(mine), proptim.torch.Adam(other)
    for o, params in ((opt, mine), (judge, other)):
        advance(o, params, 0, 3)
    count, square = (opt.state[mine[0]][key] for key in ("step", "exp_avg_sq"))
    count.data = torch._neg_view(count.neg_())
    assert count.is_neg()
    for o, params in ((opt, mine), (judge, other)):
        advance(o, params, 3, 5)
    assert same(values(mine), values(other))
    assert opt.state[mine[0]]["step"].item() == 5
    square.data = torch._neg_view(square.detach())
    give(mine, 5)
    step_refused(opt, mine, TypeError, r"^state 'exp_avg_sq' of params\[0\] is .*negative")


@exchanged
@pytest.mark.usefixtures("asked")
def test_a_variant_that_compares_losses_asks_for_one():
    """Also after steps of another variant, which C code repeats."""
    p = torch.nn.Parameter(torch.ones(3))
    opt = proptim.torch.Rprop([p], variant="rprop-")
    for _ in range(3):
        p.grad = torch.ones(3)
        opt.step()
    opt.param_groups[0]["variant"] = "irprop+"
    step_refused(opt, [p], ValueError, r"^irprop\+ compares losses; expected a closure")
    opt.step(lambda: torch.tensor(1.0))


@exchanged
@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("before", range(3))
def test_gradient_whose_memory_is_freed(before):
    """Its address is 0, for which NumPy would take memory of its own."""
    p = torch.nn.Parameter(torch.ones(3))
    opt = proptim.torch.Adam([p])
    for _ in range(before):
        p.grad = torch.ones(3)
        opt.step()
    p.grad = torch.ones(3)
    p.grad.untyped_storage().resize_(0)
    step_refused(opt, [p], TypeError, r"^grads\[0\] is a tensor without an array of numbers in memory .*freed")


@exchanged
@pytest.mark.usefixtures("asked")
def test_state_that_moves_onto_a_gradient_is_noticed():
    """The gradient is where it was at the step before, when no state was there."""
    (p,) = params = [torch.nn.Parameter(torch.ones(()))]
    p.grad = torch.ones(())
    opt = proptim.torch.Adam(params, lr=0.5)
    for _ in range(3):
        opt.step()
    opt.state[p]["exp_avg"].data = p.grad
    step_refused(opt, params, ValueError, r"^grads\[0\] and state 'exp_avg' of params\[0\] share memory")


@exchanged
@pytest.mark.usefixtures("asked")
def test_a_refused_gradient_leaves_no_strides():
    """One with the strides of the refused one is read by its own strides."""
    (p,) = params = [torch.nn.Parameter(torch.zeros(2, 3))]
    opt = proptim.torch.SGD(params, lr=1.0)
    for _ in range(3):
        p.grad = torch.zeros(2, 3)
        opt.step()
    p.grad = torch.as_strided(p.detach(), (2, 3), (1, 2))
    step_refused(opt, params, ValueError, r"^grads\[0\] and params\[0\] share memory")
    p.grad = torch.arange(6.0).view(3, 2).t()
    opt.step()
    assert p.tolist() == [[0, -2, -4], [-1, -3, -5]]


@exchanged
@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("before", range(4))
def test_swapped_tensors_are_noticed(before):
    """The objects of two tensors get the memory and the version of each other."""
    p, q = (torch.nn.Parameter(torch.full((2,), x)) for x in (1.0, 5.0))
    opt = proptim.torch.SGD([p], lr=1.0)
    for _ in range(before):
        p.grad = torch.ones(2)
        opt.step()
    p.grad = None
    torch.utils.swap_tensors(p, q)
    for k in range(3):
        p.grad, version = torch.ones(2), p._version
        opt.step()
        assert p.tolist() == [4.0 - k] * 2
        assert p._version == version + 1
        p.grad = None
    assert q.tolist() == [1.0 - before] * 2


@pytest.mark.usefixtures("asked")
def test_inference_tensors_have_no_version():
    """They are stepped, in a mode in which they may change, and one that no longer looks like one too."""
    with torch.inference_mode():
        params = [torch.nn.Parameter(torch.ones(2), requires_grad=False) for _ in range(2)]
    params.append(torch.nn.Parameter(torch.ones(2)))
    assert params[0].is_inference()
    with torch.inference_mode():
        opt = proptim.torch.SGD(params, lr=0.5)
        for k in range(4):
            for p in params:
                p.grad = torch.ones(2)
            version = params[2]._version
            opt.step()
            assert params[2]._version == version + 1
            assert [p.tolist() for p in params] == [[0.5 - k / 2] * 2] * 3


@pytest.mark.once  # the core has to be the backend
@exchanged
@each_class
def test_schedules_do_not_make_new_plans(name):
    """A number of a group that changes is taken by the plan that is there; one in place, as of a tensor, too."""
    mine, other = parameters(), parameters()
    opt, judge = ours(name)(mine), ours(name)(other, backend="numpy")
    advance(opt, mine, 0, 2)
    advance(judge, other, 0, 2)
    bound = opt._bound
    for k in range(2, 8):
        for o in (opt, judge):
            o.param_groups[0]["lr"] = 0.01 * k if k < 5 else torch.tensor(0.01 * k)
            o.param_groups[0]["weight_decay"] = 0.1 * k
        give(mine, k, other, without=[(), (1, 2), (0,)][k % 3])
        opt.step()
        judge.step()
        assert same(values(mine), values(other)), k
    assert opt._bound is bound
    assert seen_in_c(opt)


@exchanged
def test_hidden_counts_and_versions():
    """The step counts of two parameters that were left out at different steps, in C as by NumPy."""
    mine, other = parameters(), parameters()
    opt, judge = proptim.torch.NAdam(mine), proptim.torch.NAdam(other, backend="numpy")
    versions = []
    for k, without in enumerate([(), (), (0,), (1,), (0, 1, 2, 3, 4), ()]):
        give(mine, k, other, without=without)
        before = [p._version for p in mine]
        opt.step()
        judge.step()
        versions.append([p._version - v for p, v in zip(mine, before, strict=True)])
    assert same(values(mine), values(other))
    assert versions[2:] == [[0, 1, 1, 1, 1], [1, 0, 1, 1, 1], [0] * 5, [1] * 5]
    mine_s, other_s = ([dict(o.state[p]) for p in ps] for o, ps in ((opt, mine), (judge, other)))
    torch.testing.assert_close(mine_s, other_s, rtol=0, atol=0)


@each_class
def test_options_are_in_the_signature_of_init(name):
    """Where LightningCLI and jsonargparse look for them; subclasses with arguments of their own construct as ever."""
    cls = ours(name)
    own = inspect.signature(cls.__init__).parameters
    assert list(own)[:2] == ["self", "params"]
    assert list(own)[1:] == list(inspect.signature(cls).parameters)
    assert {"threads", "backend"} <= own.keys()
    assert not any(p.kind is p.VAR_KEYWORD for p in own.values())

    class Mine(cls):
        def __init__(self, params, scale):
            super().__init__(params, lr=0.1 * scale)

    assert Mine(parameters(), 2.0).param_groups[0]["lr"] == 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64])
@pytest.mark.parametrize("from_c", [False, True])
def test_counts_of_one_element_stay_where_they_are(from_c, dtype):
    """A count of shape (1,) that processes share is added to in place, as torch does, whole numbers too."""
    (p,), (q,) = parameters(shapes=[(3,)]), parameters(shapes=[(3,)])
    count, twin = torch.zeros(1, dtype=dtype), torch.zeros(1, dtype=dtype)
    opt, judge = proptim.torch.Adam([p]), torch.optim.Adam([q])
    for o, x, c in ((opt, p, count), (judge, q, twin)):
        o.state[x].update(step=c, exp_avg=torch.zeros(3), exp_avg_sq=torch.zeros(3))
    for k in range(4):
        give([p], k, [q])
        if not from_c:
            opt._bound = None
        opt.step()
        judge.step()
    assert opt.state[p]["step"] is count
    assert torch.equal(count, torch.tensor([4], dtype=dtype))
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("variant", ["rprop-", "irprop+"])
def test_a_float64_loss_survives_saving(variant):
    """The last loss is a plain number, which torch leaves alone when it casts a state to the dtype of parameters."""
    mine, judged = parameters(shapes=[(6,)]), parameters(shapes=[(6,)])
    losses = [1.0, 0.1 + 2**-40, 0.1, 0.1 + 2**-41, 0.1 + 2**-40, 0.2]
    opt, judge = (proptim.torch.Rprop(ps, lr=0.5, variant=variant) for ps in (mine, judged))
    for k, loss in enumerate(losses):
        give(mine, k, judged)
        opt.step(lambda: torch.tensor(loss, dtype=torch.float64))  # noqa: B023
        judge.step(lambda: loss)  # noqa: B023
        opt = reload(opt, proptim.torch.Rprop, mine)
        assert same(values(mine), values(judged)), k
    assert opt.state[mine[0]].get("prev_loss") == (losses[-1] if variant == "irprop+" else None)


def test_a_loss_of_the_state_that_is_changed_is_noticed():
    """As a checkpoint does that is loaded into the tensors that are there."""
    mine, judged = parameters(shapes=[(6,)]), parameters(shapes=[(6,)])
    opt, judge = (proptim.torch.Rprop(ps, lr=0.5, variant="irprop+") for ps in (mine, judged))
    for k, loss in enumerate([3.0, 2.0, 2.5, 1.0, 4.0]):
        for p, o in ((mine, opt), (judged, judge)):
            p[0].grad = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0]) * (-1) ** k
            if k == 2:
                o.state[p[0]]["prev_loss"] = 9.0
                if o is judge:
                    o._bound = None
            o.step(lambda: loss)  # noqa: B023
        assert same(values(mine), values(judged)), k


def test_auto_takes_no_more_threads_than_torch(monkeypatch):
    """threads="auto" heeds torch.set_num_threads, also later; an explicit number wins."""
    asked = []
    kind = proptim._backend.plan_type(proptim.backend())
    monkeypatch.setattr(
        proptim._backend,
        "plan_type",
        lambda name: lambda rule, segments, *rest: asked.append(rest[:2]) or kind(rule, segments, *rest),
    )
    monkeypatch.setattr(proptim._backend, "_threads", 8)
    params = parameters()
    opt, explicit = proptim.torch.Adam(params), proptim.torch.Adam(params, threads=3)
    for count in (2, 4):
        torch.set_num_threads(count)
        advance(opt, params, 0, 2)
        explicit.step()
    torch.set_num_threads(16)
    opt.step()
    assert [threads for threads, auto in asked if auto] == [2, 4, 8]
    assert all(threads == 3 for threads, auto in asked if not auto)
