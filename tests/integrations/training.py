"""A small regression, and how runs of two optimizers are compared."""

from __future__ import annotations

import torch

RULES = ("RMSprop", "Rprop", "AdamW")
"""With one that torch has no fused code for, one whose state differs from the core's, and what most take."""


def network(seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def data(n: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(1))
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]])


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Bit for bit."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    """As torch.optim's: torch fuses multiplications and additions, and here does not."""
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
