"""DTensors of fully_shard and of tensor parallelism, on gloo and two CPU ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import proptim.torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo over a file is tried on Linux")


def on_ranks(program, tmp_path, *runs):
    """What each rank prints in each run of a program: (number of ranks, further arguments)."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("ranks.py"))]
    asked = json.dumps([program, str(tmp_path), runs])
    whole = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True, start_new_session=True)
    try:
        told = whole.communicate(asked, timeout=400)
    except BaseException:
        os.killpg(whole.pid, signal.SIGKILL)
        raise
    files = {file.name: file.read_text() for file in sorted(tmp_path.glob("run*.*.???"))}
    assert whole.returncode == 0, "\n".join([*told, *(f"{name}:\n{text[-3000:]}" for name, text in files.items())])
    return [[files[f"run{n}.{rank}.out"].splitlines() for rank in range(run[0])] for n, run in enumerate(runs)]


EVERY = """
for kind in ("fsdp", "offload", "tensor parallel"):
    for name in proptim.torch.__all__:
        options = {"momentum": 0.9} if name == "SGD" else {}
        net, alone = sharded(kind), network(kind)
        cls, theirs = getattr(proptim.torch, name), getattr(torch.optim, name, getattr(proptim.torch, name))
        opt, judge = cls(net.parameters(), lr=0.01, **options), cls(alone.parameters(), lr=0.01, **options)
        train(net, opt, 0, 4)
        train(alone, judge, 0, 4)
        if name not in ("Rprop", "Lion"):  # where a rounding error of the gradient can turn a sign
            close(net, alone)
        if name != "Rprop":  # torch's own does not take DTensors
            net, like = sharded(kind), sharded(kind)
            opt, judge = cls(net.parameters(), lr=0.01, **options), theirs(like.parameters(), lr=0.01, **options)
            train(net, opt, 0, 4)
            train(like, judge, 0, 4)
            for p, q in zip(net.parameters(), like.parameters()):
                torch.testing.assert_close(full(p.detach()), full(q.detach()), rtol=1e-4, atol=1e-6)
                assert opt.state[p].keys() == judge.state[q].keys(), (opt.state[p].keys(), judge.state[q].keys())
                for key, value in opt.state[p].items():
                    other = judge.state[q][key]
                    assert type(value) is type(other), (key, type(value), type(other))
                    if isinstance(value, DTensor):
                        assert value.placements == other.placements and value.shape == other.shape
                        assert value.to_local().shape == p.to_local().shape
        # equal gradients, equal bits, shard by shard
        net, alone = sharded(kind), network(kind)
        opt, judge = cls(net.parameters(), lr=0.01, **options), cls(alone.parameters(), lr=0.01, **options)
        for k in range(4):
            torch.manual_seed(k)
            for p, q in zip(net.parameters(), alone.parameters()):
                q.grad = torch.randn(q.shape)
                if isinstance(p, DTensor):
                    p.grad = distribute_tensor(q.grad, p.device_mesh, p.placements)
                else:
                    p.grad = q.grad.clone()
            opt.step()
            judge.step()
        for p, q in zip(net.parameters(), alone.parameters()):
            assert torch.equal(full(p.detach()), q.detach()), (kind, name)
            for key, value in judge.state[q].items():
                assert torch.equal(full(opt.state[p][key]), value), (kind, name, key)
        print(kind, name, flush=True)
"""


def test_every_rule_on_two_ranks(tmp_path):
    """fully_shard, with offload and without, tensor parallelism: torch's numbers, state of torch's kind, our bits."""
    (told,) = on_ranks(EVERY, tmp_path, (2,))
    kinds = ("fsdp", "offload", "tensor parallel")
    expected = [f"{kind} {name}" for kind in kinds for name in proptim.torch.__all__]
    assert told == [expected, expected]


HALVES = """
from proptim._formats import Split

def master(opt, p):
    local, low = (t.to_local() if isinstance(t, DTensor) else t for t in (p.detach(), opt.state[p]["master_lo"]))
    high, low = (t.contiguous().view(torch.int16).numpy().view("uint16") for t in (local, low))
    return torch.from_numpy(Split(high, low).load())

for kind in ("fsdp bfloat16", "offload bfloat16", "tensor parallel bfloat16"):
    for name in proptim.torch.__all__:
        net, alone = sharded(kind), network(kind).float()
        opt, judge = (getattr(proptim.torch, name)(n.parameters(), lr=0.01, clip_norm=math.inf) for n in (net, alone))
        for k in range(5):
            torch.manual_seed(k)
            for p, q in zip(net.parameters(), alone.parameters()):
                grad = torch.randn(q.shape).bfloat16()
                q.grad = grad.float()
                p.grad = distribute_tensor(grad, p.device_mesh, p.placements) if isinstance(p, DTensor) else grad
            opt.step()
            judge.step()
            assert math.isclose(opt.grad_norm, judge.grad_norm, rel_tol=1e-5)
        for p, q in zip(net.parameters(), alone.parameters()):
            q = q.detach()
            part = distribute_tensor(q, p.device_mesh, p.placements).to_local() if isinstance(p, DTensor) else q
            assert torch.equal(master(opt, p), part), (kind, name)
            assert type(opt.state[p]["master_lo"]) is (DTensor if isinstance(p, DTensor) else torch.Tensor)
        print(kind, name, flush=True)
"""


def test_every_rule_in_bfloat16_on_two_ranks(tmp_path):
    """The low halves lie where the weights do, and both are the run of float32 on one process, bit for bit."""
    (told,) = on_ranks(HALVES, tmp_path, (2,))
    kinds = ("fsdp bfloat16", "offload bfloat16", "tensor parallel bfloat16")
    expected = [f"{kind} {name}" for kind in kinds for name in proptim.torch.__all__]
    assert told == [expected, expected]


CHECKPOINT = """
(part,), flat = more, {"flatten_optimizer_state_dict": True}
cases = [("RMSprop", {"momentum": 0.5}), ("Rprop", {}), ("Rprop", {"variant": "irprop+"}),
         ("AdamW", {}), ("NAdam", {}), ("Lion", {}),
         ("SGD", {"kind": "fsdp bfloat16"}), ("Rprop", {"kind": "fsdp bfloat16", "state_dtype": "bfloat16"}),
         ("Adagrad", {"kind": "fsdp bfloat16"}), ("AdamW", {"kind": "fsdp bfloat16", "master": "float32"})]
for n, (name, given) in enumerate(cases):
    for flags in ({}, flat):
        options = dict(given)
        kind = options.pop("kind", "fsdp")
        plus = options.get("variant") == "irprop+"
        net = sharded(kind)
        opt = getattr(proptim.torch, name)(net.parameters(), lr=0.01, **options)
        where = os.path.join(folder, f"saved{n}{len(flags)}")
        asked = StateDictOptions(**flags)
        if part == "save":
            train(net, opt, 0, 3, plus)
            model_state, optim_state = get_state_dict(net, opt, options=asked)
            dcp.save({"model": model_state, "optim": optim_state}, checkpoint_id=where)
        else:
            model_state, optim_state = get_state_dict(net, opt, options=asked)
            dcp.load({"model": model_state, "optim": optim_state}, checkpoint_id=where)
            set_state_dict(net, opt, model_state_dict=model_state, optim_state_dict=optim_state, options=asked)
        state = [{key: full(v) for key, v in opt.state[p].items()} for p in net.parameters()]
        weights = [full(p.detach()).clone() for p in net.parameters()]
        together = os.path.join(folder, f"gathered{n}{len(flags)}")
        if part == "save":
            if rank == 0:
                torch.save((weights, state), together)
            train(net, opt, 3, 6, plus)
            ended = os.path.join(folder, f"end{n}{len(flags)}.{rank}")
            torch.save([p.to_local().detach() for p in net.parameters()], ended)
            continue
        kept, expected = torch.load(together)
        assert all(torch.equal(a, b) for a, b in zip(weights, kept)), name
        for own, theirs in zip(state, expected):
            assert own.keys() == theirs.keys(), (own.keys(), theirs.keys())
            for key in own:
                assert torch.equal(torch.as_tensor(own[key]), torch.as_tensor(theirs[key])), (name, key)
        if world == 2:
            train(net, opt, 3, 6, plus)
            ended = torch.load(os.path.join(folder, f"end{n}{len(flags)}.{rank}"))
            assert all(torch.equal(p.to_local(), e) for p, e in zip(net.parameters(), ended)), name
        alone = network(kind)
        with torch.no_grad():
            for p, w in zip(alone.parameters(), [full(p.detach()) for p in net.parameters()]):
                p.copy_(w)
        judge = getattr(proptim.torch, name)(alone.parameters(), lr=0.01, **options)
        for p, q in zip(net.parameters(), alone.parameters()):
            own = {key: full(v).clone() if isinstance(v, torch.Tensor) else v for key, v in opt.state[p].items()}
            judge.state[q] = own
        for k in range(3):
            torch.manual_seed(k)
            for p, q in zip(net.parameters(), alone.parameters()):
                q.grad = torch.randn(q.shape).to(q.dtype)
                p.grad = distribute_tensor(q.grad, p.device_mesh, p.placements)
            for each in (opt, judge):
                each.step(*[lambda: 4.0 - k] * plus)
        for p, q in zip(net.parameters(), alone.parameters()):
            assert torch.equal(full(p.detach()), q.detach()), name
        print(name, flags, flush=True)
"""


def test_checkpoints_go_to_other_numbers_of_ranks(tmp_path):
    """Saved by torch.distributed.checkpoint on two ranks, flat and not, loaded on two, one and three."""
    _, *loaded = on_ranks(CHECKPOINT, tmp_path, (2, "save"), (2, "load"), (1, "load"), (3, "load"))
    for told in loaded:
        assert len(told[0]) == 20


AROUND = """
# clip_norm over the shards is the norm of all, as torch's; so is torch's own clip_grad_norm_ with our step.
for kind in ("fsdp", "tensor parallel"):
    net, like, alone = sharded(kind), sharded(kind), network(kind)
    opt = proptim.torch.SGD(net.parameters(), lr=0.1, clip_norm=0.5)
    judge = proptim.torch.SGD(like.parameters(), lr=0.1)
    own = proptim.torch.SGD(alone.parameters(), lr=0.1, clip_norm=0.5)
    for k in range(3):
        for n, o in ((net, opt), (like, judge), (alone, own)):
            o.zero_grad()
            n(batch(k)).square().sum().backward()
            if o is judge:
                norm = full(torch.nn.utils.clip_grad_norm_(n.parameters(), 0.5))
            o.step()
        assert math.isclose(opt.grad_norm, norm.item(), rel_tol=1e-5), (opt.grad_norm, norm)
        assert math.isclose(opt.grad_norm, own.grad_norm, rel_tol=1e-5)
        close(net, alone)
        close(like, alone)

# One rank's NaN skips the step on all of them.
net = sharded("fsdp")
opt = proptim.torch.Adam(net.parameters(), nonfinite="skip", zero_grads=True)
net(batch(0)).square().sum().backward()
first = next(net.parameters())
if rank == 1:
    first.grad.to_local().view(-1)[0] = math.nan
before = [p.to_local().clone() for p in net.parameters()]
opt.step()
assert opt.skipped == 1 and all(torch.equal(p.to_local(), b) for p, b in zip(net.parameters(), before))
assert not any(p.grad.to_local().any() for p in net.parameters())
opt.nonfinite = "raise"
if rank == 1:
    first.grad.to_local().view(-1)[0] = math.inf
try:
    opt.step()
except FloatingPointError as error:
    print(error, flush=True)

# GradScaler unscales the local shards, and all ranks leave out the same step.
net, alone = sharded("fsdp"), network()
opt, own = proptim.torch.Adam(net.parameters(), lr=0.01), torch.optim.Adam(alone.parameters(), lr=0.01)
for n, o in ((net, opt), (alone, own)):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for k in range(4):
        o.zero_grad()
        scaler.scale(n(batch(k)).square().sum() * (math.inf if k == 1 else 1)).backward()
        scaler.step(o)
        scaler.update()
close(net, alone)
assert scaler.get_scale() == 4.0

# A gradient of other placements is redistributed.
p = torch.nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))
opt = proptim.torch.Rprop([p], lr=0.1)
p.grad = distribute_tensor(torch.ones(4, 3), mesh, [Replicate()])
opt.step()
assert torch.equal(full(p.detach()), torch.full((4, 3), 0.9))

# A gradient that is still to be summed is summed once in a step, whatever else a process does.
def partial(value=1.0):
    local = torch.ones(4, 3)
    local[0, 0] = value
    return DTensor.from_local(local, mesh, [Partial()], run_check=False)

p = torch.nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))
opt = proptim.torch.SGD([p], lr=0.125, momentum=0.5)
for k in range(4):
    p.grad = partial()
    if k == 2 and rank == 1:  # which has a new plan made here, and there not
        opt.state[p]["momentum_buffer"] = opt.state[p]["momentum_buffer"].clone()
    opt.step()
assert torch.equal(full(p.detach()), torch.full((4, 3), 1 - 0.25 * (1 + 1.5 + 1.75 + 1.875)))
ps = [torch.nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)])) for _ in range(3)]
opt = proptim.torch.SGD(ps, lr=0.125, nonfinite="skip", clip_norm=math.inf, max_skips=1)
for k, value in enumerate((math.nan, math.nan, 1.0)):
    for i, p in enumerate(ps):
        p.grad = partial(1.0 if i else value)
    try:
        with torch.device("meta"):
            opt.step()
    except FloatingPointError as error:
        print(str(error).partition(";")[0], flush=True)
assert opt.skipped == 1 and opt.grad_norm == 12.0, (opt.skipped, opt.grad_norm)

# torch's own Rprop steps no DTensor, and so does not in our place.
try:
    proptim.torch.Rprop(fully_shard(network().to("meta"), mesh=mesh).parameters(), fallback="torch")
except TypeError as error:
    print(str(error).partition(". ")[2], flush=True)

# FSDP's first kind has no global norm to offer.
for orig in (False, True):
    net = FullyShardedDataParallel(network(), device_id=torch.device("cpu"), use_orig_params=orig)
    opt = proptim.torch.SGD(net.parameters(), lr=0.1, clip_norm=1.0)
    net(batch(0)).square().sum().backward()
    try:
        opt.step()
    except ValueError as error:
        print(str(error).partition(", and ")[2][:40], flush=True)
    opt.clip_norm = None
    opt.step()
    for key, value in ("clip_norm", math.inf), ("nonfinite", "skip"):  # also where a plan is there
        setattr(opt, key, value)
        try:
            opt.step()
            print("stepped", flush=True)
        except ValueError as error:
            print(str(error).partition(", and ")[2][:40], flush=True)
        setattr(opt, key, {"clip_norm": None, "nonfinite": "propagate"}[key])
    opt.step()
"""


def test_norms_scalers_and_skips_on_two_ranks(tmp_path):
    """What looks at all gradients looks at those of all ranks."""
    (told,) = on_ranks(AROUND, tmp_path, (2,))
    rprop = "It is a DTensor, which torch.optim.Rprop does not step"
    refused = [f"{key} asks for all of it; expected no such"[:40] for key in ("clip_norm", "clip_norm", "nonfinite")]
    assert told[0] == [
        "a gradient of another process is not finite; expected finite gradients",
        "grads[0] is nan at index (0, 0)",
        rprop,
        *refused * 2,
    ]
    assert told[1] == [
        "grads[0] is inf at index (0, 0); expected finite gradients",
        "a gradient of another process is not finite",
        rprop,
        *refused * 2,
    ]
