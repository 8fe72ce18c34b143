"""torchao: training of models that it has quantized; torch's own code steps its tensors, and proptim the others."""

from __future__ import annotations

import pytest
import torch
from torchao.prototype.quantized_training import int8_weight_only_quantized_training
from torchao.quantization import quantize_
from training import close, data, network, weights

import proptim.torch


def trained(cls):
    model = network()
    quantize_(model[0], int8_weight_only_quantized_training())
    opt = cls(model.parameters(), lr=0.01)
    x, y = data()
    losses = []
    for k in range(10):
        opt.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        torch.manual_seed(k)  # its rounding is stochastic
        opt.step()
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "Adadelta"])
def test_quantised_training(name):
    with pytest.warns(UserWarning, match=rf"torch's own {name} steps params\[0\], which is a Int8QuantizedTraining"):
        losses, model = trained(getattr(proptim.torch, name))
    judged, other = trained(getattr(torch.optim, name))
    torch.testing.assert_close(losses, judged, rtol=1e-4, atol=1e-5)
    assert losses[-1] < losses[0]
    close(weights(model[2]), weights(other[2]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CPUOffloadOptimizer takes CUDA and XPU only")
@pytest.mark.parametrize("name", ["RMSprop", "AdamW"])
def test_offload(name):
    """State and step on the CPU, parameters on a GPU."""
    from torchao.optim import CPUOffloadOptimizer

    ends = []
    for module in (proptim.torch, torch.optim):
        model = network().cuda()
        opt = CPUOffloadOptimizer(model.parameters(), getattr(module, name), minimal_size=1, lr=0.01)
        x, y = (t.cuda() for t in data())
        for _ in range(5):
            (model(x) - y).square().mean().backward()
            opt.step()
            opt.zero_grad()
        ends.append(weights(model))
    close(*ends)
