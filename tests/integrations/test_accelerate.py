"""Accelerate: prepare, gradient accumulation, its own clipping, save_state and load_state."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from training import RULES, close, data, network, same, weights

import proptim.torch


def trained(cls, folder, *, again=False, dtype=torch.float32, **around):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, **around)
    model = network().to(dtype)
    opt = cls(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(opt, 2, 0.5)
    model, opt, schedule = accelerator.prepare(model, opt, schedule)
    x, y = data()
    for k in range(12):
        with accelerator.accumulate(model):
            loss = (model(x[k::12].to(dtype)) - y[k::12]).square().mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            schedule.step()
            opt.zero_grad()
        if k == 5 and not again:
            accelerator.save_state(str(folder))
        if k == 5 and again:
            for p in model.parameters():
                p.data.zero_()
            accelerator.load_state(str(folder))
    return weights(model)


@pytest.mark.parametrize("name", RULES)
def test_accelerate(tmp_path, name):
    mine = trained(getattr(proptim.torch, name), tmp_path)
    assert same(mine, trained(getattr(proptim.torch, name), tmp_path, again=True))
    close(mine, trained(getattr(torch.optim, name), tmp_path / "other"))


@pytest.mark.filterwarnings("error:torch's own")
@pytest.mark.parametrize("name", RULES)
def test_a_model_in_bfloat16(tmp_path, name):
    """A run that goes on from save_state is the whole run, the low halves too, for all later steps hang on them."""
    asked = {"dtype": torch.bfloat16, "mixed_precision": "bf16"}
    mine = trained(getattr(proptim.torch, name), tmp_path, **asked)
    assert {w.dtype for w in mine} == {torch.bfloat16}
    assert same(mine, trained(getattr(proptim.torch, name), tmp_path, again=True, **asked))
