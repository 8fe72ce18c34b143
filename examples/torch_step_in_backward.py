"""Step every parameter inside backward, as soon as its gradient is computed, and free the gradient at once.

With one optimizer for each parameter, gradients need not all be in memory at the same time, and each is read while it
is still in cache. Needs PyTorch.
"""

import sys

try:
    import torch
    from torch import nn
except ModuleNotFoundError as error:
    print(f"skipped: {error.name} is not installed; pip install 'proptim[examples]'", file=sys.stderr)
    sys.exit(77)

import proptim.torch

torch.manual_seed(0)
torch.set_num_threads(1)

model = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.Tanh())], nn.Linear(64, 1))
optimizers = {p: proptim.torch.Adam([p], lr=1e-3) for p in model.parameters()}
alive = most = 0


def arrived(grad: torch.Tensor) -> None:
    """Count the gradients that are kept."""
    global alive, most
    alive += 1
    most = max(most, alive)


def step(p: torch.Tensor) -> None:
    """Step one parameter and drop its gradient."""
    global alive
    optimizers[p].step()
    p.grad = None
    alive -= 1


for p in model.parameters():
    p.register_hook(arrived)
    p.register_post_accumulate_grad_hook(step)

x = torch.randn(256, 64)
y = x[:, :4].prod(dim=1, keepdim=True).sign()
losses = []
for _ in range(60):
    loss = (model(x) - y).square().mean()
    loss.backward()  # and there is no optimizer.step()
    losses.append(loss.item())

print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}; {most} of {len(optimizers)} gradients kept at a time")
assert losses[-1] < losses[0] / 4, losses
assert most <= 2, most
assert all(p.grad is None for p in model.parameters())
