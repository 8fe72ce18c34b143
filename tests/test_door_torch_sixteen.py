"""proptim.torch: parameters, gradients and state of 16 bits, with the precision of float32."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

import proptim
import proptim._torch_optimizer
import proptim.torch
from proptim._formats import Mastered, Split

RULES = [
    pytest.param(name, case, id=f"{name}-{i}")
    for name, cls in proptim.OPTIMIZERS.items()
    for i, case in enumerate([*cls.cases, {"weight_decay": 0.1, "maximize": True, "clip_value": 0.7}])
]
each_case = pytest.mark.parametrize(("name", "case"), RULES)
each_rule = pytest.mark.parametrize("name", proptim.OPTIMIZERS)
each_shared = pytest.mark.parametrize(
    "name", [name for name, cls in proptim.OPTIMIZERS.items() if hasattr(torch.optim, cls.__name__)]
)
SHAPES = [(4, 3), (), (2, 3, 2, 2), (0, 2), (7,), (2500,)]
LOSSES = (3.0, 2.0, 2.5, 1.0, 1.5, 0.5, 0.25, 0.125)
HALF, BRAIN = torch.float16, torch.bfloat16
FAST = "Tensors" if proptim.backend() == "c" and proptim._torch_optimizer.EXCHANGE is not None else "Bound"
"""The way that steps take where nothing is in the way: tensors are looked at in C."""
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(autouse=True)
def quiet():
    """No step here may warn, and torch's threads wait for each other where other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    torch.set_num_threads(before)


def ours(name):
    return getattr(proptim.torch, proptim.OPTIMIZERS[name].__name__)


def theirs(name):
    return getattr(torch.optim, proptim.OPTIMIZERS[name].__name__)


def bits(tensor):
    """The bits of real numbers, every NaN the same: its payload is left open."""
    tensor = tensor.detach().contiguous()
    integers = tensor.view(INTEGERS[tensor.itemsize])
    return torch.where(tensor.isnan(), -1, integers) if tensor.is_floating_point() else integers


def assert_bits(a, b, label=""):
    assert a.dtype == b.dtype, (label, a.dtype, b.dtype)
    assert torch.equal(bits(a), bits(b)), label


def assert_states(a, b):
    """The same arrays and numbers of the same dtypes, bit for bit."""
    assert a.keys() == b.keys()
    for key, own in a.items():
        assert own.keys() == b[key].keys()
        for name, value in own.items():
            if isinstance(value, torch.Tensor):
                assert value.shape == b[key][name].shape
                assert_bits(value, b[key][name], name)
            else:
                assert value == b[key][name], name


def leaves(dtype=BRAIN, seed=0):
    """Leaves of several shapes: the matrix is a transposed view; the last is of float32, as a LayerNorm often is."""
    torch.manual_seed(seed)
    made = [torch.randn(shape).to(dtype) for shape in SHAPES]
    made[0] = torch.randn(3, 4).to(dtype).t()
    return [torch.nn.Parameter(values) for values in [*made, torch.randn(5)]]


def whole(params):
    """The same numbers in float32."""
    return [torch.nn.Parameter(p.detach().to(torch.float32, copy=True)) for p in params]


def give(seed, params, *others, without=()):
    """The same gradients for several lists, rounded to the dtype of the first."""
    torch.manual_seed(100 + seed)
    for i, p in enumerate(params):
        grad = (torch.randn(p.shape) * 10.0 ** torch.randint(-3, 3, ()).item()).to(p.dtype)
        for each in (params, *others):
            each[i].grad = None if i in without else grad.to(each[i].dtype)


def master(opt, p):
    """What a parameter is in float32, or what is known of it."""
    own = opt.state.get(p, {})
    if "master_lo" not in own and "master" not in own:
        return p.detach().float()
    half = p.detach().contiguous()
    half = half.view(torch.int16).numpy().view(np.uint16) if half.dtype == BRAIN else half.numpy()
    if "master" in own:
        return torch.from_numpy(Mastered(half, own["master"].contiguous().numpy()).load())
    return torch.from_numpy(Split(half, own["master_lo"].contiguous().numpy().view(np.uint16)).load())


def masters(opt):
    return [master(opt, p) for group in opt.param_groups for p in group["params"]]


def write(k, *lists):
    """Somebody writes zeros, infinities, NaN and a number into weights."""
    for params in lists:
        with torch.no_grad():
            flat = params[5].view(-1)
            flat[13 * k : 13 * k + 6] = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.5])


# A run of bfloat16 is the run of float32 ------------------------------------------------------------------------------


class Twins:
    """A run of bfloat16 and one of float32 that get the same gradients."""

    def __init__(self, name, case, **options):
        self.half = leaves()
        self.whole = whole(self.half)
        self.cls, self.case, self.options = ours(name), case, options
        self.ours, self.theirs = self.made(self.half), self.made(self.whole)
        self.count = 0

    def made(self, params):
        options = self.options if params is self.half else {k: v for k, v in self.options.items() if k == "backend"}
        return self.cls([{"params": params[:2]}, {"params": params[2:], "lr": 0.03}], **self.case, **options)

    def step(self, writes=True):
        k = self.count
        self.count += 1
        give(k, self.half, self.whole, without=[(), (1,), (0, 6)][k % 3])
        for opt in (self.ours, self.theirs):
            opt.step(lambda: LOSSES[k])
        for mine, other in zip(masters(self.ours), self.whole, strict=True):
            assert_bits(mine, other, k)
        if writes:
            write(k, self.half)
            with torch.no_grad():  # a number counts together with the low half that lies beside it
                self.whole[5].copy_(master(self.ours, self.half[5]))


@each_case
@pytest.mark.parametrize("options", [{}, {"master": "float32"}], ids=str)
def test_runs_are_float32_runs(name, case, options):
    """k steps of bfloat16 with a master are k steps of float32, with what users write in between; P17."""
    twins = Twins(name, case, **options)
    for _ in range(7):
        twins.step()
    assert type(twins.ours._bound).__name__ == ("Bound" if case.get("variant") == "irprop+" else FAST)


@each_rule
@pytest.mark.once
def test_runs_are_float32_runs_on_every_backend(name, backend):
    twins = Twins(name, {}, backend=backend)
    for _ in range(4):
        twins.step()


@each_rule
def test_runs_are_float32_runs_through_numpy(name, monkeypatch):
    """As with a torch whose tensors the core cannot look at itself."""
    monkeypatch.setattr(proptim._torch_optimizer, "EXCHANGE", None)
    twins = Twins(name, {"clip_norm": 1.0})
    for _ in range(4):
        twins.step()
    assert type(twins.ours._bound).__name__ == "Bound"


WAYS = ("state_dict", "file", "model last", "deepcopy", "pickle")


@each_case
def test_runs_go_on_after_every_way_of_saving(name, case):
    """The low halves come with the state, however it is kept; loading leaves weights alone."""
    twins = Twins(name, case)
    for way in (None, *WAYS):
        if way in ("deepcopy", "pickle"):
            both = (twins.half, twins.ours)
            twins.half, twins.ours = copy.deepcopy(both) if way == "deepcopy" else pickle.loads(pickle.dumps(both))
        elif way is not None:
            saved = twins.ours.state_dict()
            if way == "file":
                file = io.BytesIO()
                torch.save(saved, file)
                file.seek(0)
                saved = torch.load(file, weights_only=True)
            before, kept = twins.ours.state_dict()["state"], [p.detach().clone() for p in twins.half]
            twins.ours = twins.made(twins.half)
            if way == "model last":
                with torch.no_grad():
                    for p in twins.half:
                        p.fill_(1)
            twins.ours.load_state_dict(saved)
            assert_states(twins.ours.state_dict()["state"], before)
            if way == "model last":
                with torch.no_grad():
                    for p, values in zip(twins.half, kept, strict=True):
                        assert (p == 1).all()
                        p.copy_(values)
        twins.step(writes=False)


@pytest.mark.once
@each_rule
@pytest.mark.parametrize("flat", [False, True])
def test_runs_go_on_from_distributed_checkpoints(name, flat):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).bfloat16()
    twin = copy.deepcopy(model).float()
    asked = StateDictOptions(flatten_optimizer_state_dict=flat)
    opt, judge = (ours(name)(m.parameters(), lr=0.1) for m in (model, twin))
    for k in range(5):
        give(k, list(model.parameters()), list(twin.parameters()))
        opt.step()
        judge.step()
        if k == 2:
            saved = get_optimizer_state_dict(model, opt, options=asked)
            opt = ours(name)(model.parameters())
            opt.zero_grad()
            set_optimizer_state_dict(model, opt, saved, options=asked)
        for mine, other in zip(masters(opt), twin.parameters(), strict=True):
            assert_bits(mine, other, k)


# Every format ---------------------------------------------------------------------------------------------------------

KINDS = {
    "bfloat16 state": (BRAIN, {"state_dtype": "bfloat16"}),
    "all bfloat16": (BRAIN, {"state_dtype": "bfloat16", "master": None}),
    "bfloat16, float32 master": (BRAIN, {"master": "float32"}),
    "no master": (BRAIN, {"master": None}),
    "float16": (HALF, {}),
    "all float16": (HALF, {"state_dtype": "float16", "master": None}),
    "float32, bfloat16 state": (torch.float32, {"state_dtype": "bfloat16"}),
    "float64, float32 state": (torch.float64, {"state_dtype": "float32"}),
    "float64, bfloat16 state": (torch.float64, {"state_dtype": "bfloat16"}),
    "complex64, bfloat16 state": (torch.complex64, {"state_dtype": "bfloat16"}),
}


def legal(name, kind):
    return name != "rprop" or KINDS[kind][1].get("state_dtype") != "float16"


FORMATS = [
    pytest.param(name, kind, id=f"{name}-{kind}") for name in proptim.OPTIMIZERS for kind in KINDS if legal(name, kind)
]


@pytest.mark.parametrize(("name", "kind"), FORMATS)
def test_formats_have_the_bits_of_proptim(name, kind):
    """Parameters and state, against an optimizer of proptim over the same tensors; saved and loaded on the way."""
    dtype, options = KINDS[kind]
    options = options | ({"momentum": 0.9} if name == "sgd" else {})
    mine = [torch.nn.Parameter(p.detach().to(dtype)) for p in leaves()[:-1]]
    other = [p.detach().clone() for p in mine]
    torch.set_default_dtype(torch.float64)  # so that counts are of float64, as ours are
    try:
        opt = ours(name)(mine, **options)
        hyper = {key: opt.param_groups[0].get(key, value) for key, value in opt._hyper.items()}
        twin = proptim.OPTIMIZERS[name](other, **hyper, **{k: v for k, v in options.items() if k != "momentum"})
        for k in range(6):
            give(k, mine)
            opt.step()
            twin.step([p.grad for p in mine])
            for p, q in zip(mine, other, strict=True):
                assert_bits(
                    torch.view_as_real(p) if p.is_complex() else p, torch.view_as_real(q) if p.is_complex() else q
                )
            if k == 3:
                file = io.BytesIO()
                torch.save(opt.state_dict(), file)
                file.seek(0)
                before = opt.state_dict()["state"]
                opt = ours(name)(mine, **options)
                opt.load_state_dict(torch.load(file, weights_only=True))
                after = opt.state_dict()["state"]
                real = {i: {n: v for n, v in own.items() if not v.is_complex()} for i, own in before.items()}
                assert_states({i: {n: after[i][n] for n in own} for i, own in real.items()}, real)
    finally:
        torch.set_default_dtype(torch.float32)
    for i, p in enumerate(mine):
        kept = twin.state[i]
        if "master" in kept and p.numel():
            assert_bits(master(opt, p), torch.from_numpy(kept["master"].copy()))
        for state in proptim.OPTIMIZERS[name].states:
            if state in opt.state[p] and state in kept and p.dtype != torch.complex64:
                assert opt.state[p][state].dtype == {"bfloat16": BRAIN, "float16": HALF, "float32": torch.float32}.get(
                    options.get("state_dtype"), torch.float32
                )
                shown = np.array(kept[state]).astype(np.float32)
                assert np.array_equal(opt.state[p][state].float().numpy(), shown), state


@each_rule
def test_state_by_name(name):
    """A dtype for some arrays alone."""
    rule = proptim.OPTIMIZERS[name]
    options = {"momentum": 0.9} if name == "sgd" else {}
    for chosen in rule.states:
        p = torch.nn.Parameter(torch.ones(3, dtype=BRAIN))
        opt = ours(name)([p], state_dtype={chosen: "bfloat16"}, **options)
        p.grad = torch.ones(3, dtype=BRAIN)
        opt.step()
        for state in set(rule.states) & opt.state[p].keys():
            assert opt.state[p][state].dtype == (BRAIN if state == chosen else torch.float32), state


def test_rprop_in_one_array():
    """Where a dtype is asked for, Rprop's state is one array; it comes from torch's two, and goes back into them."""
    p = torch.nn.Parameter(torch.ones(3, dtype=BRAIN))
    opt = proptim.torch.Rprop([p], state_dtype="bfloat16")
    p.grad = torch.tensor([1.0, -1.0, 0.0], dtype=BRAIN)
    opt.step()
    assert opt.state[p].keys() == {"step", "step_word", "master_lo"}
    back = proptim.torch.Rprop([p])
    back.load_state_dict(opt.state_dict())
    assert back.state[p].keys() == {"step", "step_size", "prev", "master_lo"}
    assert back.state[p]["prev"].tolist() == [1, -1, 0]
    assert back.state[p]["step_size"].dtype == torch.float32
    with pytest.raises(
        TypeError, match=r"'step_word' in state 0 of state_dict is float32; expected bfloat16.*cast=True"
    ):
        opt.load_state_dict(back.state_dict())
    opt.load_state_dict(back.state_dict(), cast=True)
    assert opt.state[p].keys() == {"step", "step_word", "master_lo"}


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through_c", [True, False])
@pytest.mark.parametrize("grad", [BRAIN, HALF, torch.float32], ids=str)
@pytest.mark.parametrize("param", [BRAIN, HALF, torch.float32, torch.float64], ids=str)
def test_gradients_of_other_dtypes(param, grad, through_c, monkeypatch):
    """torch takes them where `grad_dtype` says so; they count as what they are, clipped too."""
    if not through_c:
        monkeypatch.setattr(proptim._torch_optimizer, "EXCHANGE", None)
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=param))
    q = p.detach().clone()
    if not hasattr(p, "grad_dtype"):
        pytest.skip("torch before 2.10 gives a gradient the dtype of its parameter")
    p.grad_dtype = None
    opt, twin = proptim.torch.Adam([p], lr=0.1, clip_norm=1.5), proptim.Adam([q], lr=0.1, clip_norm=1.5)
    for k in range(4):
        # Now and then of the parameter's own dtype: what the plan knows of the last gradient changes.
        p.grad = torch.tensor([1.5, 1 / 3, -2.0 * k]).to(param if k == 2 else grad)
        opt.step()
        twin.step([p.grad])
        assert_bits(p, q, k)
        assert opt.grad_norm == twin.grad_norm
    assert type(opt._bound).__name__ == (FAST if through_c else "Bound")


@pytest.mark.parametrize("param", [BRAIN, HALF, torch.float32], ids=str)
def test_float64_gradients(param):
    """Refused, or rounded as they are read."""
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=param))
    if not hasattr(p, "grad_dtype"):
        pytest.skip("torch before 2.10 gives a gradient the dtype of its parameter")
    p.grad_dtype = None
    opt = proptim.torch.SGD([p], lr=0.5)
    for _ in range(3):
        p.grad = torch.ones(2, dtype=torch.float64)
        with pytest.raises(TypeError, match=r"^grads\[0\] is float64; expected .*, or pass cast_grads=True"):
            opt.step()
        p.grad = torch.zeros(2)
        opt.step()
    assert p.tolist() == [1.0, -2.0]
    opt = proptim.torch.SGD([p], lr=0.5, cast_grads=True)
    for _ in range(3):
        p.grad = torch.ones(2, dtype=torch.float64)
        opt.step()
    assert p.tolist() == [-0.5, -3.5]
    assert type(opt._bound).__name__ == FAST


@pytest.mark.parametrize("dtype", [BRAIN, HALF], ids=str)
def test_what_is_not_finite_is_a_number_in_messages(dtype):
    """Not the bits of it."""
    params = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for _ in range(2)]
    opt = proptim.torch.Adam(params, nonfinite="raise", clip_norm=1.0)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones(3, dtype=dtype)
        opt.step()
        params[1].grad = torch.tensor([1.0, math.inf, math.nan], dtype=dtype)
        with pytest.raises(FloatingPointError, match=r"^grads\[1\] is inf at index \(1,\); expected finite gradients"):
            opt.step()
    opt.nonfinite = "skip"
    opt.step()
    assert opt.skipped == 1


@pytest.mark.parametrize("dtype", [BRAIN, HALF], ids=str)
def test_zeroed_gradients(dtype):
    p = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    opt = proptim.torch.RMSprop([p], zero_grads=True)
    for _ in range(3):
        p.grad = torch.ones(3, dtype=dtype)
        opt.step()
        assert p.grad.dtype == dtype
        assert not p.grad.any()


# What changes in mid-run ----------------------------------------------------------------------------------------------


@each_rule
def test_a_model_that_is_cast_goes_on(name):
    """To 16 bits, to float32, to float64: state is kept in what is computed in, and is widened where that changes."""
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 4)
    opt = ours(name)(model.parameters())
    kinds = set()
    for dtype in (torch.float32, BRAIN, HALF, torch.float32, BRAIN, torch.float64, torch.float64):
        model.to(dtype)
        for _ in range(2):
            opt.zero_grad()
            model(torch.ones(3, 5, dtype=dtype)).sum().backward()
            opt.step()
        own = opt.state[model.weight]
        kinds.add(tuple(key for key in own if key.startswith("master")))
        assert all(own[n].dtype == torch.promote_types(dtype, torch.float32) for n in own.keys() & set(opt._shown))
        assert own.get("step", torch.tensor(0)).item() in (0, *range(2, 15, 2))
    assert kinds == {(), ("master_lo",), ("master",)}


@each_case
@pytest.mark.parametrize("options", [{}, {"state_dtype": "bfloat16"}, {"master": "float32"}], ids=str)
def test_state_of_numpy_optimizers_is_loaded(name, case, options):
    """A state_dict with NumPy arrays goes on as tensors, also one of bfloat16 with a master."""
    dtype = BRAIN if "master" in options else torch.float32
    case = {k: v for k, v in case.items() if k != "clip_value"}
    params = [torch.randn(5, 3, generator=torch.manual_seed(0)).to(dtype) for _ in range(2)]
    grads = [torch.randn(5, 3, generator=torch.manual_seed(1)).to(dtype) for _ in params]
    mine = [torch.nn.Parameter(p.clone()) for p in params]
    first, second = proptim.OPTIMIZERS[name](params, **case, **options), ours(name)(mine, **case, **options)
    loss = {"loss": 1.0} if case.get("variant") == "irprop+" else {}
    first.step(grads, **loss)
    for p, stepped, g in zip(mine, params, grads, strict=True):
        p.data.copy_(stepped)
        p.grad = g.clone()
    second.load_state_dict(first.state_dict())
    first.step(grads, **loss)
    second.step(lambda: torch.tensor(1.0))
    for p, q in zip(params, mine, strict=True):
        assert_bits(p, q)


def test_state_that_would_be_rounded_is_refused_in_words():
    """A model that becomes narrower than its state: with the way on."""
    model = torch.nn.Linear(2, 1).double()
    opt = proptim.torch.Adam(model.parameters())
    for dtype in (torch.float64, torch.float32):
        model.to(dtype)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        if dtype == torch.float64:
            opt.step()
    with pytest.raises(
        TypeError,
        match=re.escape(
            "state 'exp_avg' of params[0] is float64; expected float32, in which it is kept here: if the parameter has "
            "become of another dtype, opt.load_state_dict(opt.state_dict(), cast=True) has it rounded"
        ),
    ):
        opt.step()
    opt.load_state_dict(opt.state_dict(), cast=True)
    opt.step()
    assert opt.state[model.weight]["exp_avg"].dtype == torch.float32


def test_groups_schedules_and_tensors():
    """Groups of different dtypes, one that comes later, learning rates as tensors and from a scheduler."""
    half, single = torch.nn.Parameter(torch.ones(3, dtype=BRAIN)), torch.nn.Parameter(torch.ones(3))
    late = torch.nn.Parameter(torch.ones(3, dtype=BRAIN))
    judged = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    opts = []
    for mine in ([half, single, late], judged):
        opt = proptim.torch.AdamW([{"params": mine[:1], "lr": torch.tensor(0.1)}, {"params": mine[1:2]}], lr=0.02)
        schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
        for k in range(6):
            if k == 3:
                opt.add_param_group({"params": mine[2:], "weight_decay": 0.5})
            for p in mine:
                p.grad = torch.full((3,), 1.0 + k, dtype=p.dtype)
            opt.step()
            if k < 3:
                schedule.step()
        opts.append(opt)
    for mine, other in zip(masters(opts[0]), judged, strict=True):
        assert_bits(mine, other)


def test_grad_scaler():
    """It unscales gradients of bfloat16 in place and leaves out steps that overflow."""
    p, q = torch.nn.Parameter(torch.ones(3, dtype=BRAIN)), torch.nn.Parameter(torch.ones(3))
    opt = proptim.torch.Adam([p, q], clip_norm=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for k in range(4):
        opt.zero_grad()
        (scaler.scale((p.float() * q).sum()) * (math.inf if k == 2 else 1.0)).backward()
        scaler.step(opt)
        scaler.update()
    assert opt.state[p]["step"].item() == 3


@pytest.mark.parametrize("flag", [{"foreach": True}, {"fused": True}, {"foreach": False}], ids=str)
def test_flags_change_nothing(flag):
    params = [leaves(), leaves()]
    opts = [proptim.torch.Adam(params[0]), proptim.torch.Adam(params[1], **flag)]
    for k in range(3):
        give(k, *params)
        for opt in opts:
            opt.step()
    for p, q in zip(*params, strict=True):
        assert_bits(p, q)
    fresh = proptim.torch.Adam(params[1], **flag)
    fresh.load_state_dict(opts[1].state_dict())
    assert_states(fresh.state_dict()["state"], opts[1].state_dict()["state"])


# State from elsewhere -------------------------------------------------------------------------------------------------


@each_shared
@pytest.mark.parametrize("dtype", [BRAIN, HALF], ids=str)
def test_state_of_torch_is_taken_over(name, dtype):
    """torch.optim keeps it in the dtype of the parameter: it is widened, or kept as it is where that is asked for."""
    lr = {"lr": 1e-3} if dtype == HALF else {}
    options = {"momentum": 0.9} if name == "sgd" else {}
    p = torch.nn.Parameter(torch.ones(4, 3, dtype=dtype))
    opt = theirs(name)([p], **lr, **options)
    for k in range(3):
        give(k, [p])
        opt.step()
    saved = copy.deepcopy(opt.state_dict())
    kept = {"float32": {}, "same": {"state_dtype": str(dtype).removeprefix("torch."), "master": None}}
    for into, asked in kept.items():
        if name == "rprop" and into == "same" and dtype == HALF:
            continue
        mine = ours(name)([p], **asked, **options)
        mine.load_state_dict(saved)
        for key, value in opt.state[p].items():
            if key not in mine._shown or (name == "rprop" and asked):
                continue
            assert mine.state[p][key].dtype == (dtype if asked else torch.float32)
            if key != "prev":
                assert torch.equal(mine.state[p][key], value.to(mine.state[p][key].dtype))
        give(7, [p])
        mine.step()
        assert ("master_lo" in mine.state[p]) == (dtype == BRAIN and not asked)
    back = theirs(name)([p], **options)
    back.load_state_dict(ours_state(mine, saved))
    give(8, [p])
    back.step()


def ours_state(opt, saved):
    """What an optimizer of ours has that torch's can load: not Rprop's one array."""
    taken = opt.state_dict()
    return saved if any("step_word" in own for own in taken["state"].values()) else taken


def both(into, **options):
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=into))
    return p, proptim.torch.Adam([p], lr=0.01, **options)


def begun(dtype, **options):
    p, opt = both(dtype, **options)
    p.grad = torch.tensor([1 / 3, -1 / 7]).to(dtype)
    opt.step()
    return p, opt


@pytest.mark.parametrize(
    ("of", "given", "into", "asked", "message"),
    [
        (
            BRAIN,
            {},
            BRAIN,
            {"state_dtype": "bfloat16"},
            "'exp_avg' in state 0 of state_dict is float32; expected bfloat16",
        ),
        (torch.float64, {}, torch.float32, {}, "'exp_avg' in state 0 of state_dict is float64; expected float32"),
        (BRAIN, {}, torch.float32, {}, "'master_lo' in state 0 of state_dict belongs to a parameter of 16 bits"),
        (BRAIN, {}, BRAIN, {"master": None}, "'master_lo' in state 0 of state_dict belongs to a parameter of 16 bits"),
        (BRAIN, {}, BRAIN, {"master": "float32"}, "'master_lo' in state 0 of state_dict are the low halves"),
        (
            HALF,
            {},
            BRAIN,
            {"state_dtype": "float16"},
            "'exp_avg' in state 0 of state_dict is float32; expected float16",
        ),
    ],
)
def test_state_loads_across_formats_with_cast(of, given, into, asked, message):
    """Refused where something is lost, naming cast=True; nothing has changed then."""
    source, opt = begun(of, **given)
    p, mine = begun(into, **asked)
    before = copy.deepcopy(mine.state_dict())
    with pytest.raises(TypeError, match=re.escape(message) + ".*cast=True"):
        mine.load_state_dict(opt.state_dict())
    assert_states(mine.state_dict()["state"], before["state"])
    with torch.no_grad():
        p.copy_(source)
    mine.load_state_dict(opt.state_dict(), cast=True)
    kept = mine.state[p]["exp_avg"]
    assert torch.equal(kept, opt.state[source]["exp_avg"].to(kept.dtype))
    if "master" in mine.state[p]:
        assert_bits(master(mine, p), master(opt, source))
    p.grad = torch.ones_like(p)
    mine.step()
    with pytest.raises(TypeError, match="Invalid cast: 'yes'"):
        mine.load_state_dict(opt.state_dict(), cast="yes")


def test_a_float32_master_becomes_halves_and_rewrites_weights():
    """Nothing is lost: of a bfloat16 the low halves are taken, others are set to the master."""
    source, opt = begun(BRAIN, master="float32")
    for asked, into in (({}, BRAIN), ({"master": "float32"}, BRAIN), ({}, HALF)):
        p, mine = both(into, **asked)
        version = p._version
        mine.load_state_dict(opt.state_dict())
        if asked or into == HALF:
            assert_bits(p, opt.state[source]["master"].to(into))
            assert p._version > version
        else:
            assert p.tolist() == [1.0, 2.0]
            with torch.no_grad():
                p.copy_(source)
        assert_bits(master(mine, p), opt.state[source]["master"])


def test_a_master_that_was_cast_is_told():
    """By what loads with torch's own code: the low halves are lost then."""
    p, opt = begun(BRAIN)
    opt.state[p]["master_lo"] = opt.state[p]["master_lo"].to(BRAIN)
    with pytest.raises(TypeError, match=r"'master_lo' of params\[0\] is bfloat16; expected int16: .*; remove it from"):
        opt.step()


@pytest.mark.parametrize(("dtype", "options"), [(HALF, {}), (BRAIN, {"master": "float32"})], ids=str)
def test_a_saved_master_has_the_weights_that_were_written(dtype, options):
    """Weights that are clamped or pruned after a step are not undone by loading the state that was saved with them."""
    p = torch.nn.Parameter(torch.linspace(-1, 1, 8).to(dtype))
    opt = proptim.torch.Adam([p], lr=0.3, **options)
    p.grad = torch.linspace(1, 2, 8).to(dtype)
    opt.step()
    with torch.no_grad():
        p[1:4] = 0
    weights, kept = p.detach().clone(), opt.state[p]["master"].clone()
    opt.load_state_dict(opt.state_dict())
    assert_bits(p, weights)
    assert torch.equal(opt.state[p]["master"][4:], kept[4:])
    assert not opt.state[p]["master"][1:4].any()


@pytest.mark.parametrize("dtype", [HALF, BRAIN], ids=str)
def test_sgd_drops_an_old_master(dtype):
    """Of a model that has become float32: SGD without momentum has no other state."""
    p = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    opt = proptim.torch.SGD([p], lr=0.1)
    for each in (dtype, torch.float32, torch.float32):
        p.data = p.data.to(each)
        p.grad = torch.ones_like(p)
        opt.step()
    assert opt.state[p].keys().isdisjoint({"master", "master_lo"})
    opt.load_state_dict(opt.state_dict())


def test_a_master_half_way_between_two_bfloat16():
    """The weight is rounded to even there, and the halves of the master are those of the other neighbour."""
    bits = np.array([0x3F808000, 0x3F818000, 0x3F800001, 0xBF828000, 0x00008000], np.uint32)
    master = torch.from_numpy(bits.view(np.float32))
    here, there = (torch.nn.Parameter(master.to(BRAIN)) for _ in range(2))
    first = proptim.torch.SGD([here], master="float32")
    second = proptim.torch.SGD([there])
    here.grad = torch.zeros_like(here)
    first.step()
    first.state[here]["master"].copy_(master)
    second.load_state_dict(first.state_dict())
    loaded = Split(*(second_plane.numpy().view(np.uint16) for second_plane in (
        there.detach().view(torch.int16), second.state[there]["master_lo"]
    ))).load()  # fmt: skip
    ties = bits & 0x1FFFF == 0x8000
    assert np.array_equal(loaded.view(np.uint32), bits - ties)


@pytest.mark.parametrize("name", ["master", "master_lo"])
def test_a_master_of_another_shape_is_refused(name):
    """NumPy would repeat it for every row."""
    p, opt = begun(BRAIN)
    saved = opt.state_dict()
    del saved["state"][0]["master_lo"]
    saved["state"][0][name] = torch.zeros(1, dtype=torch.float32 if name == "master" else torch.int16)
    other = type(opt)([p], master="float32" if name == "master_lo" else "split")
    with pytest.raises(ValueError, match=rf"'{name}' in state 0 of state_dict has shape \(1,\); expected \(2,\)"):
        other.load_state_dict(saved, cast=True)


def test_whole_numbers_are_no_bfloat16():
    """int16 is the dtype of low halves, and of no state array."""
    p = torch.nn.Parameter(torch.zeros(3))
    opt = proptim.torch.SGD([p], momentum=0.9)
    saved = opt.state_dict()
    saved["state"] = {0: {"momentum_buffer": torch.tensor([1, 2, 3], dtype=torch.int16)}}
    with pytest.raises(TypeError, match="'momentum_buffer' in state 0 of state_dict is int16; supported: float32"):
        opt.load_state_dict(saved)


@pytest.mark.parametrize("master", ["split", "float32"])
def test_a_master_does_not_survive_torch(master):
    """torch.optim rounds it and leaves it behind: the weights count then, here and at the NumPy level."""
    p, opt = begun(BRAIN, master=master)
    theirs = torch.optim.Adam([p])
    theirs.load_state_dict(opt.state_dict())
    theirs.step()
    weights, there = p.detach().clone(), p.detach().clone()
    for back in (proptim.torch.Adam([p], master=master), proptim.Adam([there], master=master)):
        with pytest.raises(TypeError, match="pass cast=True to"):
            back.load_state_dict(theirs.state_dict())
        back.load_state_dict(theirs.state_dict(), cast=True)
        assert_bits(p, weights)
        assert_bits(there, weights)
    assert np.array_equal(back.state[0]["master"], weights.float().numpy())


@each_rule
def test_halves_are_loaded_by_numpy_optimizers(name):
    """A state_dict of proptim.torch goes on at the NumPy level with the bits that it had."""
    p = torch.nn.Parameter(torch.linspace(-1, 1, 6).to(BRAIN))
    opt = ours(name)([p])
    p.grad = torch.linspace(1, 2, 6).to(BRAIN)
    opt.step()
    array = p.detach().clone()
    other = proptim.OPTIMIZERS[name]([array], **({"variant": "irprop-"} if name == "rprop" else {}))  # as torch's
    other.load_state_dict(opt.state_dict())
    opt.step()
    other.step([p.grad])
    assert_bits(array, p)
    assert np.array_equal(other.state[0]["master"], Split(*(
        each.numpy().view(np.uint16) for each in (p.detach().view(torch.int16), opt.state[p]["master_lo"])
    )).load())  # fmt: skip


def test_loading_shows_hooks_what_is_loaded():
    """The state_dict that a hook returns is the one that counts, and hooks after loading see tensors."""
    p, opt = begun(BRAIN)
    saved, seen = opt.state_dict(), []

    def double(optimizer, given):
        state = {0: {**given["state"][0], "exp_avg": given["state"][0]["exp_avg"] * 2}}
        return {**given, "state": state}

    opt.register_load_state_dict_pre_hook(double)
    opt.register_load_state_dict_post_hook(lambda optimizer: seen.append(optimizer.state[p]["exp_avg"].clone()))
    expected = saved["state"][0]["exp_avg"] * 2
    opt.load_state_dict(saved)
    assert torch.equal(seen[0], expected)
    assert torch.equal(opt.state[p]["exp_avg"], expected)
    assert len(opt._optimizer_load_state_dict_pre_hooks) == 1


def test_loading_what_is_no_state_dict():
    """torch's own errors, and nothing has changed."""
    _, opt = begun(BRAIN)
    before = copy.deepcopy(opt.state_dict()["state"])
    for saved, error in (
        ({}, KeyError),
        ({"state": {}, "param_groups": []}, ValueError),
        ({"state": {}, "param_groups": [{"params": [0, 1]}]}, ValueError),
    ):
        with pytest.raises(error):
            opt.load_state_dict(saved)
        assert_states(opt.state_dict()["state"], before)


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "options", "message"),
    [
        (
            torch.float32,
            {"master": "split"},
            "Invalid master: 'split' for parameters of float32, which are complete by",
        ),
        (HALF, {"master": "split"}, "Invalid master: 'split' for params[0] of the group, which is float16"),
        (BRAIN, {"master": "yes"}, "Invalid master: 'yes' (expected 'split', 'float32' or None)"),
        (BRAIN, {"state_dtype": "int4"}, "Invalid state_dtype: 'int4'"),
        (
            BRAIN,
            {"state_dtype": "float64"},
            "Invalid state_dtype: 'float64' for params[0] of the group, which is bfloat16",
        ),
        (BRAIN, {"state_dtype": {"mu": "bfloat16"}}, "Invalid state_dtype: RMSprop has no state array 'mu'"),
        (
            HALF,
            {"state_dtype": "float16", "initial_square_avg": 1e6},
            "Invalid state_dtype: 'float16' cannot hold 1e+06, with which 'square_avg' begins",
        ),
    ],
)
def test_refused_at_construction(dtype, options, message):
    p = torch.nn.Parameter(torch.ones(2, dtype=dtype))
    with pytest.raises(ValueError, match=re.escape(message)):
        proptim.torch.RMSprop([p], **options)


def test_refused_in_a_later_group():
    opt = proptim.torch.SGD([torch.nn.Parameter(torch.ones(2, dtype=BRAIN))], master="split")
    with pytest.raises(ValueError, match="'split' for params\\[0\\] of the group, which is float16"):
        opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, dtype=HALF))]})
    assert len(opt.param_groups) == 1
    opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    with pytest.raises(ValueError, match="master is an option of the whole optimizer"):
        opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "master": None})


@each_rule
def test_options_are_fixed_and_kept(name):
    """Named in the signature, fixed at construction, and with a copy."""
    asked = {"master": None, "state_dtype": "bfloat16", "cast_grads": True}
    opt = ours(name)([torch.nn.Parameter(torch.ones(2, dtype=BRAIN))], **asked)
    for twin in (opt, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        for key, value in asked.items():
            assert getattr(twin, key) == value
            with pytest.raises(AttributeError, match=f"{key} is fixed at construction"):
                setattr(twin, key, value)
    with pytest.raises(
        AttributeError, match="grad_scale is an option, which cannot be removed; expected a value: set it"
    ):
        del opt.grad_scale
    assert opt.grad_scale == 1.0


def test_a_dict_of_dtypes_is_fixed_too():
    """Also at the NumPy level, in a copy, and whatever becomes of the dict that was handed in."""
    p, asked = torch.nn.Parameter(torch.ones(2, dtype=BRAIN)), {"exp_avg": "bfloat16"}
    opts = [proptim.torch.Adam([p], state_dtype=asked), proptim.Adam([p], state_dtype=asked)]
    asked["exp_avg_sq"] = "bfloat16"
    for opt in (*opts, *map(copy.deepcopy, opts)):
        with pytest.raises(AttributeError, match="clip_norm is an option, which cannot be removed"):
            del opt.clip_norm
        assert opt.state_dtype == {"exp_avg": "bfloat16"}
        with pytest.raises(TypeError, match="'exp_avg' is shown here and cannot be set; make a new optimizer"):
            opt.state_dtype["exp_avg"] = "float32"


@pytest.mark.parametrize("dtype", [BRAIN, HALF], ids=str)
def test_a_whole_model_learns(dtype):
    """Without a word about fallback, and far closer to float32 than torch's own code is."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    models = [model, copy.deepcopy(model).to(dtype), copy.deepcopy(model).to(dtype)]
    x, ends = torch.randn(64, 3), []
    for each, module in zip(models, (torch.optim, proptim.torch, torch.optim), strict=True):
        kind = next(each.parameters()).dtype
        opt = module.AdamW(each.parameters(), lr=3e-4)
        for _ in range(200):
            opt.zero_grad()
            (each(x.to(kind)).float() - x.sum(1, keepdim=True)).square().mean().backward()
            opt.step()
        ends.append((each(x.to(kind)).float() - x.sum(1, keepdim=True)).square().mean().item())
    assert abs(ends[1] - ends[0]) < 0.02 * ends[0]
