"""What the programs of test_shards.py have in common, and a process that forks their ranks.

It reads from stdin what to run, as JSON: a program, a folder, and for each run of it the number of ranks and further
arguments. Each rank prints into files of its own. The imports take seconds, so all ranks of all runs share them.
"""

# ruff: noqa: F401  The programs use what is imported here.

from __future__ import annotations

import copy
import datetime
import json
import math
import os
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import proptim.torch


def network(kind=""):
    torch.manual_seed(0)
    n = 8 if kind.startswith("tensor parallel") else 7  # which divides evenly there, and unevenly where it may
    net = torch.nn.Sequential(torch.nn.Linear(5, n), torch.nn.Tanh(), torch.nn.Linear(n, 3, bias=False))
    return net.bfloat16() if kind.endswith("bfloat16") else net


def sharded(kind):
    net = network(kind)
    if kind.startswith("tensor parallel"):
        return parallelize_module(net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    offload = {"offload_policy": CPUOffloadPolicy(pin_memory=False)} if kind.startswith("offload") else {}
    return fully_shard(net, mesh=mesh, **offload)


def batch(k):
    torch.manual_seed(k)
    return torch.randn(6, 5)


def train(net, opt, first, last, plus=False):
    for k in range(first, last):
        opt.zero_grad()
        loss = net(batch(k).to(next(net.parameters()).dtype)).square().sum()
        loss.backward()
        opt.step(*[lambda k=k: 5.0 - k % 3] * plus)


def full(t):
    if isinstance(t, DTensor) and t.dtype == torch.int16:  # which gloo does not gather
        return t.int().full_tensor().short()
    return t.full_tensor() if isinstance(t, DTensor) else t


def close(net, alone):
    for p, q in zip(net.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(full(p.detach()), q.detach(), rtol=2e-4, atol=1e-6)


def become(rank, place, world):
    """In a forked process: print into files, and join the others."""
    for number, end in (1, "out"), (2, "err"):
        os.dup2(os.open(f"{place}.{rank}.{end}", os.O_CREAT | os.O_WRONLY), number)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{place}.store",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    return init_device_mesh("cpu", (world,))


def end(status=0):
    """Leave; destroy_process_group aborts now and then, with torch.optim as well."""
    if not status:
        dist.barrier()
        time.sleep(0.3)  # until the others are through the barrier too
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    program, folder, runs = json.load(sys.stdin)
    failed = False
    for n, (world, *arguments) in enumerate(runs):
        for rank in range(world):
            if os.fork():
                continue
            try:
                mesh = become(rank, Path(folder, f"run{n}"), world)
                exec(program, globals() | {"more": arguments})
                end()
            except BaseException:
                traceback.print_exc()
                end(1)
        for _ in range(world):
            failed = os.wait()[1] != 0 or failed
        if failed:
            break
    sys.exit(failed)
