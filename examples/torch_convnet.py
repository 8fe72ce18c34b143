"""Train a small convolutional network on real handwritten digits with proptim.torch.

The data are the 1,797 images of 8x8 pixels that ship in scikit-learn. Needs PyTorch and scikit-learn; takes seconds on
one core.
"""

import sys
import time

try:
    import torch
    from sklearn.datasets import load_digits
    from torch import nn
except ModuleNotFoundError as error:
    print(f"skipped: {error.name} is not installed; pip install 'proptim[examples]'", file=sys.stderr)
    sys.exit(77)

import proptim.torch  # the one line to add; below, `proptim.torch.` replaces `torch.optim.`

torch.manual_seed(0)
torch.set_num_threads(1)

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]  # grey values are 0 to 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels))
train, test = order[360:], order[:360]

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(32 * 2 * 2, 10),
)
epochs, batch = 12, 64
optimizer = proptim.torch.RMSprop(model.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)


def accuracy() -> float:
    """The share of test images that the network reads correctly."""
    model.eval()
    with torch.no_grad():
        return (model(images[test]).argmax(1) == labels[test]).float().mean().item()


print(f"untrained: {accuracy():.1%} of {len(test)} test images")
started, stepping = time.perf_counter(), 0.0
for epoch in range(epochs):
    model.train()
    for chosen in train[torch.randperm(len(train))].split(batch):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        loss.backward()
        before = time.perf_counter()
        optimizer.step()
        stepping += time.perf_counter() - before
    schedule.step()
    if epoch % 4 == 3:
        print(f"epoch {epoch + 1:2}: loss {loss.item():.4f}, {accuracy():.1%}")
share = stepping / (time.perf_counter() - started)
print(f"{share:.0%} of the time was the optimizer's")

assert accuracy() > 0.97, accuracy()
# The state can be loaded by torch.optim, and the other way round: it has the same form.
successor = torch.optim.RMSprop(model.parameters())
successor.load_state_dict(optimizer.state_dict())
assert successor.state[model[0].weight]["step"] == epochs * -(-len(train) // batch)
