"""Independent oracles: torch.optim run live on random configurations, other libraries' equations."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest
import torch

import proptim
from proptim._options import GROUP_OPTIONS

TORCH = {name: getattr(torch.optim, cls.__name__, None) for name, cls in proptim.OPTIMIZERS.items()}
SHARED = [name for name, cls in TORCH.items() if cls]
DTYPES = ["float64", "float32", "complex128", "complex64"]
SHAPES = [(3,), (2, 5), (), (4, 1, 3), (0,), (17,)]
STEPS = 8

ULPS = 3
"""Rounding errors of one step in units of the last place of the parameter or of the way it has gone: some ten
operations, fused in torch and not here, and errors of the state that add up from step to step."""

DRAWS = {
    "lr": lambda rng: 10.0 ** rng.uniform(-4, 0),
    "momentum": lambda rng: rng.choice([0.0, 0.5, 0.9]),
    "dampening": lambda rng: rng.choice([0.0, 0.3]),
    "nesterov": lambda rng: rng.random() < 0.5,
    "weight_decay": lambda rng: rng.choice([0.0, 0.1]),
    "decoupled_weight_decay": lambda rng: rng.random() < 0.5,
    "maximize": lambda rng: rng.random() < 0.5,
    "alpha": lambda rng: rng.uniform(0.3, 0.99),
    "rho": lambda rng: rng.uniform(0.3, 0.99),
    "eps": lambda rng: 10.0 ** rng.uniform(-10, -2),
    "centered": lambda rng: rng.random() < 0.5,
    "amsgrad": lambda rng: rng.random() < 0.5,
    "lr_decay": lambda rng: rng.choice([0.0, 0.1]),
    "initial_accumulator_value": lambda rng: rng.choice([0.0, 0.1]),
    "betas": lambda rng: (rng.uniform(0.3, 0.95), rng.uniform(0.5, 0.999)),
    "momentum_decay": lambda rng: 10.0 ** rng.uniform(-3, -1),
    "etas": lambda rng: (rng.uniform(0.2, 0.9), rng.uniform(1.1, 2.0)),
    "step_sizes": lambda rng: (10.0 ** rng.uniform(-6, -4), rng.uniform(1.0, 50.0)),
}


def common(name):
    """The hyperparameters that torch and we both have."""
    ours = {*inspect.signature(proptim.OPTIMIZERS[name]).parameters, *GROUP_OPTIONS}
    return [key for key in inspect.signature(TORCH[name]).parameters if key in ours and key != "params"]


def draw(name, rng):
    """One random configuration that both accept."""
    drawn = {key: value.item() if hasattr(value := DRAWS[key](rng), "item") else value for key in common(name)}
    if drawn.get("nesterov"):
        drawn |= {"momentum": 0.9, "dampening": 0.0}
    return drawn


def normal(rng, shape, dtype):
    """Normal numbers, complex ones for complex dtypes."""
    parts = rng.standard_normal((2, *shape))
    return np.array(parts[0] + 1j * parts[1] if np.dtype(dtype).kind == "c" else parts[0], dtype)


def reals(arrays):
    """All elements in one row, as float64."""
    flat = [np.asarray(a).reshape(-1) for a in arrays]
    return np.concatenate([a.view(a.real.dtype) for a in flat]).astype(np.float64)


class Pair:
    """The same parameters under one of our optimizers and its torch original, in two groups drawn at random."""

    def __init__(self, name, dtype, seed, **options):
        self.rng = np.random.default_rng([seed, len(name), len(dtype)])
        self.dtype, self.nadam = dtype, name == "nadam"
        self.hyper = [draw(name, self.rng), draw(name, self.rng)]
        if name == "adagrad":
            self.hyper[1]["initial_accumulator_value"] = self.hyper[0]["initial_accumulator_value"]
        self.mine = [normal(self.rng, shape, dtype) for shape in SHAPES]
        self.theirs = [torch.tensor(p) for p in self.mine]
        self.extra = options | ({"variant": "irprop-"} if name == "rprop" else {})
        self.name = name
        self.ours, self.torch = self.make_ours(), self.make_torch()
        self.path, self.steps, self.judged = 0.0, 0, True

    def groups(self, params):
        return [{"params": params[:3], **self.hyper[0]}, {"params": params[3:], **self.hyper[1]}]

    def make_ours(self):
        return proptim.OPTIMIZERS[self.name](self.groups(self.mine), **self.extra)

    def make_torch(self):
        # torch's Adagrad reads this one from its own arguments, not from the group
        first = {k: v for k, v in self.hyper[0].items() if k == "initial_accumulator_value"}
        return TORCH[self.name](self.groups(self.theirs), **first)

    def gradients(self):
        """Gradients of sizes 1e-3 to 1e3; now and then zeros, now and then none."""
        grads = [normal(self.rng, p.shape, self.dtype) for p in self.mine]
        for i, grad in enumerate(grads):
            grad *= np.dtype(self.dtype).type(10.0 ** self.rng.uniform(-3, 3))
            if self.rng.random() < 0.15:
                grad[...] = 0
            if self.rng.random() < 0.15:
                grads[i] = None
        if all(g is None for g in grads):
            grads[0] = np.ones(SHAPES[0], self.dtype)
        return grads

    def step(self, max_norm=None):
        grads = self.gradients()
        before = reals(self.theirs)
        for p, g in zip(self.theirs, grads, strict=True):
            p.grad = None if g is None else torch.tensor(g)
        norm = torch.nn.utils.clip_grad_norm_(self.theirs, max_norm) if max_norm else None
        self.ours.step(grads)
        self.torch.step()
        self.path += np.abs(reals(self.theirs) - before)
        self.steps += 1
        self.judged = self.judged & self.well_conditioned()
        return norm

    def well_conditioned(self):
        """Where cancellation has not spoiled torch's centered variance, which is not clamped there."""
        good = []
        for group in self.torch.param_groups:
            for p in group["params"]:
                state, size = self.torch.state[p], p.numel() * (2 if p.is_complex() else 1)
                if "exp_inf" in state:  # a gradient that its L2 penalty cancels leaves nothing but rounding errors
                    good.append(reals([state["exp_inf"]]) > 1e-4)
                elif group.get("centered") and state:
                    square, mean = reals([state["square_avg"]]), reals([state["grad_avg"]])
                    good.append((square - mean * mean > 0.01 * square) | (square == 0))
                else:
                    good.append(np.ones(size, bool))
        return np.concatenate(good)

    def check(self):
        mine, theirs = reals(self.mine), reals(self.theirs)
        eps = np.finfo(self.dtype).eps
        # torch.optim.NAdam keeps its product of momenta in float32
        bound = 1e-6 if self.nadam and eps < 1e-7 else ULPS * self.steps * eps
        error = np.abs(mine - theirs) / (np.abs(theirs) + self.path + np.finfo(self.dtype).tiny)
        assert np.isfinite(mine).all()
        assert np.all((error <= bound) | ~self.judged), (self.hyper, error.max() / bound)
        assert np.mean(self.judged) > 0.5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHARED)
def test_random_configuration(name, dtype, seed):
    """Random hyperparameters, two groups, missing and zero gradients: the same trajectory as torch.optim."""
    pair = Pair(name, dtype, seed)
    for _ in range(STEPS):
        pair.step()
        pair.check()
    if name == "rprop":
        assert [p.tobytes() for p in pair.mine] == [p.numpy().tobytes() for p in pair.theirs]


@pytest.mark.parametrize("max_norm", [0.01, 100.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in SHARED if name != "rprop"])  # which sees signs only
def test_clip_norm(name, dtype, max_norm):
    """clip_norm is torch.nn.utils.clip_grad_norm_ before the step, grad_norm what that returns."""
    pair = Pair(name, dtype, 100, clip_norm=max_norm)
    for _ in range(3):
        norm = pair.step(max_norm)
        pair.check()
        assert pair.ours.grad_norm == pytest.approx(norm.item(), rel=len(pair.path) * float(np.finfo(dtype).eps))


BOUNDS = [(1e-6, 50.0), (1e-6, 1e-3), (1e-6, 1e-5), (0.5, 2.0), (1e-6, 50.0), (0.1, 0.1), (1e-6, 0.05), (3.0, 4.0)]


@pytest.mark.parametrize("seed", range(600, 604))
@pytest.mark.parametrize("dtype", DTYPES)
def test_rprop_bounds_change(dtype, seed):
    """Bounds of Rprop that change from step to step, in one group at a time, with gradients of either sign and zero."""
    pair = Pair("rprop", dtype, seed)
    moved = 0
    for k, bounds in enumerate(BOUNDS * 2):
        for groups in (pair.ours.param_groups, pair.torch.param_groups):
            groups[k // 2 % 2]["step_sizes"] = bounds
        sizes = reals([s["step_size"] for s in pair.ours.state.values() if "step_size" in s])
        pair.step()
        assert [p.tobytes() for p in pair.mine] == [p.numpy().tobytes() for p in pair.theirs], k
        low, high = pair.torch.param_groups[k // 2 % 2]["step_sizes"]
        moved += ((sizes < low) | (sizes > high)).any()
    assert moved > len(BOUNDS)  # steps that found a step size outside of the bounds


def to_torch(tree):
    """A state_dict of ours as torch holds it: tensors for arrays, and a tensor of a float for the step."""
    if isinstance(tree, dict):
        return {
            k: torch.tensor(float(v)) if k in ("step", "mu_product") and not isinstance(v, dict) else to_torch(v)
            for k, v in tree.items()
        }
    if isinstance(tree, list):
        return [to_torch(v) for v in tree]
    return torch.as_tensor(tree) if isinstance(tree, np.ndarray) else tree


@pytest.mark.parametrize("seed", range(200, 202))
@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("name", SHARED)
def test_state_moves_to_torch(name, dtype, seed):
    """A torch optimizer that loads our state_dict mid-run goes on as we do."""
    pair = Pair(name, dtype, seed)
    for k in range(STEPS):
        if k == STEPS // 2:
            pair.torch = pair.make_torch()
            pair.torch.load_state_dict(to_torch(pair.ours.state_dict()))
        pair.step()
        pair.check()


@pytest.mark.parametrize("begin", [0, STEPS // 2])
@pytest.mark.parametrize("seed", range(300, 302))
@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("name", SHARED)
def test_state_comes_from_torch(name, dtype, seed, begin):
    """An optimizer that loads torch's state_dict, also of a run not yet begun, goes on as torch does."""
    pair = Pair(name, dtype, seed)
    for k in range(STEPS):
        if k == begin:
            pair.ours = pair.make_ours()
            pair.ours.load_state_dict(pair.torch.state_dict())
            counted = [s["step"].item() for s in pair.torch.state_dict()["state"].values() if "step" in s]
            assert pair.ours.steps == max(counted, default=pair.ours.steps)
            assert all(state.keys() > {"step"} for state in pair.ours.state.values()) or name == "sgd"
        pair.step()
        pair.check()


def test_damped_momentum_comes_from_torch():
    """torch.optim.SGD keeps no step count: a momentum buffer says that the undamped first step is over."""
    hyper = {"lr": 0.5, "momentum": 0.5, "dampening": 0.25}
    theirs, mine = torch.ones(1, dtype=torch.float64), np.ones(1)
    optimizer, ours = torch.optim.SGD([theirs], **hyper), proptim.SGD([mine], **hyper)
    theirs.grad = torch.ones(1, dtype=torch.float64)
    optimizer.step()
    mine[...] = theirs.numpy()
    ours.load_state_dict(optimizer.state_dict())
    optimizer.step()
    ours.step([np.ones(1)])
    assert mine[0] == theirs.item() == -0.125


@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_tensors_are_stepped_in_place(name):
    """Parameters of a torch module and their gradients, transposed views too, give the bits that arrays give."""
    rng = np.random.default_rng(1)
    values, grads = rng.standard_normal((2, 3, 5))
    base = torch.tensor(values.T.copy())
    leaf = base.t().requires_grad_()
    leaf.grad = torch.tensor(grads.T.copy()).t()
    array, bias = values.copy(), np.ones(5)
    module = torch.nn.Linear(2, 5, bias=True, dtype=torch.float64)
    with torch.no_grad():
        module.bias.fill_(1.0)
    module.bias.grad = torch.ones(5, dtype=torch.float64)
    theirs = proptim.OPTIMIZERS[name]([leaf, module.bias], lr=0.1)
    ours = proptim.OPTIMIZERS[name]([array, bias], lr=0.1)
    for _ in range(3):
        theirs.step([leaf.grad, module.bias.grad])
        ours.step([grads, np.ones(5)])
    assert (array == base.numpy().T).all()
    assert not (array == values).any()
    assert (module.bias.detach().numpy() == bias).all()
    theirs.zero_grad()
    assert not leaf.grad.any()


def test_a_tensor_that_has_moved():
    """A tensor that was given other memory is not stepped where it was; a copied optimizer knows its own tensors."""
    weight = torch.nn.Parameter(torch.ones(3))
    opt = proptim.SGD([weight], lr=1.0)
    opt.step([torch.ones(3)])
    twin = copy.deepcopy(opt)
    weight.data = torch.full((3,), 5.0)
    with pytest.raises(ValueError, match=r"params\[0\] has been given other memory .* or take proptim.torch"):
        opt.step([torch.ones(3)])
    assert opt.steps == 1
    twin.step([torch.ones(3)])
    assert twin.param_groups[0]["params"][0].tolist() == [-1.0] * 3


# Equations of the libraries that the presets repeat, from their sources


def keras(p, g, v, b, lr=1e-3, rho=0.9, momentum=0.0, eps=1e-7, decay=0.0, **_):
    p = p - p * decay * lr
    v = rho * v + (1 - rho) * g**2
    b = momentum * b + lr * g / np.sqrt(v + eps)
    return p - b, v, b


def tf1(p, g, v, b, lr, decay=0.9, momentum=0.0, eps=1e-10):
    v = decay * v + (1 - decay) * g**2
    b = momentum * b + lr * g / np.sqrt(v + eps)
    return p - b, v, b


def optax(p, g, v, b, lr, decay=0.9, momentum=0.0, eps=1e-8):
    v = (1 - decay) * g**2 + decay * v
    b = lr * (g / np.sqrt(v + eps)) + momentum * b
    return p - b, v, b


def timm(p, g, v, b, lr=1e-2, alpha=0.9, momentum=0.0, eps=1e-10, decay=0.0):
    g = g + decay * p
    v = v + (g**2 - v) * (1 - alpha)
    b = momentum * b + lr * g / np.sqrt(v + eps)
    return p - b, v, b


def pytorch(p, g, v, b, lr=1e-2, alpha=0.99, momentum=0.0, eps=1e-8, decay=0.0):
    g = g + decay * p
    v = alpha * v + (1 - alpha) * g**2
    b = momentum * b + g / (np.sqrt(v) + eps)
    return p - lr * b, v, b


@pytest.mark.parametrize(
    ("preset", "equations", "first", "decays"),
    [
        ("keras", keras, 0, 1),
        ("tf1", tf1, 1, 0),
        ("optax", optax, 0, 0),
        ("timm", timm, 1, 1),
        ("torch", pytorch, 0, 1),
    ],
)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_presets(preset, equations, first, decays, momentum):
    """Each preset repeats its library's update, momentum, weight decay and a change of lr half-way included."""
    rng = np.random.default_rng(2)
    decay = {"decay": 0.01} if decays else {}
    hyper = proptim.presets.rmsprop[preset] | {"momentum": momentum, "weight_decay": decay.get("decay", 0.0)}
    p = rng.standard_normal(9)
    mine, v, b = p.copy(), np.full(9, float(first)), np.zeros(9)
    opt = proptim.RMSprop([mine], **({"lr": 0.05} | hyper))
    rate = {} if "lr" in hyper else {"lr": 0.05}  # without a rate of its own in the preset, ours must be given
    for k in range(8):
        if k == 4:
            rate["lr"] = opt.lr = 0.02
        g = rng.standard_normal(9)
        opt.step([g])
        p, v, b = equations(p, g, v, b, momentum=momentum, **rate, **decay)
        np.testing.assert_allclose(mine, p, rtol=1e-13, atol=1e-14)


def test_presets_are_all_tested():
    """No preset without its equations."""
    assert set(proptim.presets.rmsprop) == {"keras", "tf1", "optax", "timm", "torch"}


def test_lion_equations():
    """Lion, which torch.optim does not have, against the paper's algorithm 2."""
    rng = np.random.default_rng(3)
    mine, m = rng.standard_normal(50), np.zeros(50)
    p, opt = mine.copy(), proptim.Lion([mine], lr=0.01, weight_decay=0.1, decoupled_weight_decay=True)
    for _ in range(10):
        g = rng.standard_normal(50)
        opt.step([g])
        p = p - 0.01 * (np.sign(0.9 * m + 0.1 * g) + 0.1 * p)
        m = 0.99 * m + 0.01 * g
        np.testing.assert_allclose(mine, p, rtol=1e-14, atol=1e-15)
