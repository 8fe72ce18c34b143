"""DeepSpeed ZeRO with an optimizer of ours, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")

SCRIPT = """
import os, sys
sys.path.insert(0, sys.argv[1])
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2],
                  DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
import deepspeed, torch
import deepspeed.comm.torch
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # shared memory, compiled for minutes
from training import close, data, network, same, weights
import proptim.torch

x, y = data(8)

def trained(cls, stage, offload, folder=None, load=False):
    zero = {"stage": stage}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    config = {"train_batch_size": 8, "zero_optimization": zero, "zero_allow_untested_optimizer": True,
              "zero_force_ds_cpu_optimizer": False}
    model = network()
    opt = cls(model.parameters(), lr=0.01)
    engine, *_ = deepspeed.initialize(model=model, optimizer=opt, config=config, dist_init_required=None)
    for k in range(6):
        if load and k < 3:
            continue
        if load and k == 3:
            engine.load_checkpoint(folder, tag="three")
        loss = (engine(x) - y).square().mean()
        engine.backward(loss)
        engine.step()
        if folder and k == 2:
            engine.save_checkpoint(folder, tag="three")
    return weights(engine.module)

for stage, offload in ((0, False), (1, False), (1, True), (2, False), (2, True)):
    for rule in ("RMSprop", "Rprop"):
        mine, theirs = (trained(getattr(m, rule), stage, offload) for m in (proptim.torch, torch.optim))
        close(mine, theirs)
        print(stage, offload, rule, flush=True)
folder = sys.argv[3]
whole = trained(proptim.torch.AdamW, 1, False, folder)
assert same(whole, trained(proptim.torch.AdamW, 1, False, folder, load=True))
print("resumed", flush=True)
os._exit(0)
"""


def test_zero(tmp_path):
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(Path(__file__).parent), str(port), str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-3000:]
    assert "2 True Rprop" in told.stdout
    assert told.stdout.strip().endswith("resumed")
