"""What torch itself has around optimizers: compile, SWA and EMA, every scheduler, DDP, FSDP's first kind."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch
from torch.optim import lr_scheduler
from training import RULES, close, data, network, same, weights

import proptim.torch

MADE = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.9**k),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda k: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "ConstantLR": lr_scheduler.ConstantLR,
    "LinearLR": lr_scheduler.LinearLR,
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(o), lr_scheduler.StepLR(o, 2)]),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-1, step_size_up=2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
    "PolynomialLR": lr_scheduler.PolynomialLR,
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.001, anneal_epochs=4),
}


def known_schedulers():
    """The classes that this torch has."""
    kinds = (lr_scheduler.LRScheduler, lr_scheduler.ReduceLROnPlateau)
    return {
        name
        for name, cls in vars(lr_scheduler).items()
        if inspect.isclass(cls) and issubclass(cls, kinds) and not name.startswith("_") and name != "LRScheduler"
    }


def trained(cls, scheduler=None, steps=8, around=lambda model, opt, k: None, **options):
    model = network()
    opt = cls(model.parameters(), lr=0.01, **options)
    schedule = scheduler and scheduler(opt)
    x, y = data()
    for k in range(steps):
        opt.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        opt.step()
        if schedule:
            schedule.step(*[loss.item()] * isinstance(schedule, lr_scheduler.ReduceLROnPlateau))
        around(model, opt, k)
    return weights(model)


def test_every_scheduler_is_tried():
    assert known_schedulers() <= MADE.keys()


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("rule", ["SGD", "AdamW"])
def test_schedulers(name, rule):
    options = {"momentum": 0.9} if rule == "SGD" else {}
    mine = trained(getattr(proptim.torch, rule), MADE[name], **options)
    close(mine, trained(getattr(torch.optim, rule), MADE[name], **options))


@pytest.mark.parametrize("ema", [False, True])
def test_averaged_model(ema):
    averages = []
    for module in (proptim.torch, torch.optim):
        how = {"multi_avg_fn": torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)} if ema else {}
        average = torch.optim.swa_utils.AveragedModel(network(), **how)
        trained(module.RMSprop, around=lambda model, opt, k: average.update_parameters(model))  # noqa: B023
        averages.append(weights(average))
    close(*averages)


@pytest.mark.parametrize("rule", RULES)
def test_compiled_model_and_step(rule):
    """torch.compile of the model, of the step, and of both in one function."""
    x, y = data()
    ends = []
    for kind in ("eager", "model", "step", "loop"):
        model = network()
        opt = getattr(proptim.torch, rule)(model.parameters(), lr=0.01)

        def loop(model, opt):
            opt.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss

        def whole(model, opt, loop=loop):
            loop(model, opt)
            opt.step()

        compiled = torch.compile(model, backend="aot_eager") if kind == "model" else model
        step = torch.compile(opt.step, backend="eager") if kind == "step" else opt.step
        run = torch.compile(whole, backend="eager") if kind == "loop" else None
        for _ in range(4):
            if run:
                run(model, opt)
            else:
                loop(compiled, opt)
                step()
        ends.append(weights(model))
    assert all(same(end, ends[0]) for end in ends[2:])
    close(ends[1], ends[0])


RANK = """
import datetime, os, sys, time
sys.path.insert(0, sys.argv[4])
import torch, torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.nn.parallel import DistributedDataParallel as DDP
from training import close, data, network, same, weights
import proptim.torch

torch.set_num_threads(1)
rank, file, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=60))
x, y = data()

def wrapped():
    if kind == "DDP":
        return DDP(network())
    return FSDP(network(), device_id=torch.device("cpu"), use_orig_params=kind == "FSDP, original parameters")

def train(model, opt, first, last):
    for k in range(first, last):
        opt.zero_grad()
        (model(x[rank::2]) - y[rank::2]).square().mean().backward()
        opt.step()

for rule in ("RMSprop", "Rprop", "AdamW"):
    ends = []
    for module in (proptim.torch, torch.optim):
        model = wrapped()
        opt = getattr(module, rule)(model.parameters(), lr=0.01)
        train(model, opt, 0, 3)
        if kind == "DDP":
            saved, kept = opt.state_dict(), model.state_dict()
            train(model, opt, 3, 6)
            again = wrapped()
            again.load_state_dict(kept)
        else:
            saved = FSDP.optim_state_dict(model, opt)
            with FSDP.summon_full_params(model):
                kept = weights(model)
            train(model, opt, 3, 6)
        ends.append(weights(model))
    close(*ends)
    print(kind, rule, flush=True)
dist.barrier()
time.sleep(0.3)
os._exit(0)  # destroy_process_group aborts now and then, with torch.optim as well
"""


@pytest.mark.parametrize("kind", ["DDP", "FSDP", "FSDP, original parameters"])
def test_two_ranks(tmp_path, kind):
    from pathlib import Path

    command = [sys.executable, "-W", "ignore", "-c", RANK]
    more = (str(tmp_path / "store"), kind, str(Path(__file__).parent))
    ranks = [subprocess.Popen([*command, str(r), *more], stdout=-1, stderr=-1, text=True) for r in (0, 1)]
    try:
        told = [rank.communicate(timeout=150) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], told
    assert all(out.split("\n")[:-1] == [f"{kind} {rule}" for rule in RULES] for out, _ in told)
