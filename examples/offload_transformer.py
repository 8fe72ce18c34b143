"""Train a transformer of bfloat16 weights with masters and state elsewhere, which are stepped while backward runs.

The CPU plays the device as well, so what it shows is the order of things and the bytes, not the speed of a device. The
model of 3.2 million weights learns to continue the text of this file. Needs PyTorch; takes seconds on two cores.
"""

import math
import statistics
import sys
import time
from pathlib import Path

try:
    import torch
    from torch import nn
except ModuleNotFoundError as error:
    print(f"skipped: {error.name} is not installed; pip install 'proptim[examples]'", file=sys.stderr)
    sys.exit(77)

import proptim.torch

torch.set_num_threads(1)  # the other core is for the thread of Offload
text = torch.tensor(list(Path(__file__).read_bytes()))
rounds, batch, length, width = 12, 4, 32, 256


class Transformer(nn.Module):
    """Predicts the next byte of a text."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bytes, self.places = nn.Embedding(128, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.out = nn.Linear(width, 128)
        self.bfloat16()

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Scores of the 128 bytes that may follow each."""
        mask = nn.Transformer.generate_square_subsequent_mask(length, dtype=torch.bfloat16)
        x = self.bytes(given) + self.places.weight
        return self.out(self.layers(x, mask=mask, is_causal=True))


def backward(model: nn.Module, number: int) -> tuple[float, float]:
    """Loss and seconds of the backward pass of a batch."""
    torch.manual_seed(number)
    starts = torch.randint(len(text) - length - 1, (batch,))
    chunk = torch.stack([text[at : at + length + 1] for at in starts.tolist()])
    loss = nn.functional.cross_entropy(model(chunk[:, :-1]).float().flatten(0, 1), chunk[:, 1:].flatten())
    started = time.perf_counter()
    loss.backward()
    return loss.item(), time.perf_counter() - started


def stepped(optimizer: torch.optim.Optimizer) -> float:
    """Seconds of a step."""
    started = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - started


one, two, three = Transformer(), Transformer(), Transformer()
plain = proptim.torch.AdamW(one.parameters(), lr=1e-3, threads=1)
offload = proptim.torch.Offload(two.parameters(), "AdamW", lr=1e-3, threads=1)
waits = proptim.torch.Offload(three.parameters(), "AdamW", lr=1e-3, threads=1, clip_norm=math.inf)  # for all gradients
weights = sum(p.numel() for p in one.parameters())

losses, near, apart, together = [], [], [], []
for number in range(rounds):  # in turn, for other programs may take the cores at any time
    loss, seconds = backward(one, number)
    on_device = sum(p.nbytes + p.grad.nbytes for p in one.parameters())
    near.append((seconds, stepped(plain)))
    plain.zero_grad()
    again, seconds = backward(two, number)
    assert all(p.grad is None for p in two.parameters())  # each was taken when it was complete
    together.append((seconds, stepped(offload)))
    apart.append((backward(three, number)[1], stepped(waits)))
    assert again == loss
    losses.append(loss)

state = sum(t.nbytes for own in plain.state.values() for t in own.values()) / weights
print(f"{weights:,} weights; loss {losses[0]:.2f} to {losses[-1]:.2f}; medians in seconds:")
for label, times in (
    ("proptim.torch.AdamW", near),
    ("Offload, which waits for all gradients", apart),
    ("Offload, during backward", together),
):
    *parts, both = (statistics.median(each) for each in zip(*((*t, sum(t)) for t in times[2:]), strict=True))
    print(f"{label:38}  backward {parts[0]:.3f}, step {parts[1]:.3f}, both {both:.3f}")
print(f"bytes a weight on the device: {on_device / weights + state:.1f} with the optimizer there, 2.0 with Offload")

assert losses[-1] < losses[0] - 1, losses
for other in (two, three):
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
assert sum(p.nbytes for p in two.parameters()) == 2 * weights
