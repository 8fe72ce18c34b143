"""Word vectors of a text that every Python has: GloVe with Adagrad, as its authors train it, on gradients of rows.

The text is the part of the language reference that `help("FOR")` shows. A batch is 64 pairs of words that occur close
to each other. Its gradient has the rows of those words and no others: for most words there is nothing to do. At the
end, the processor time of such steps beside those of torch's optimizers with sparse gradients, if torch is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import re
import sys
import time
from collections import Counter

import numpy as np

import proptim

try:
    from pydoc_data.topics import topics
except ModuleNotFoundError as error:
    print(f"skipped: {error.name} is not part of this Python", file=sys.stderr)
    sys.exit(77)

WIDTH, WINDOW, BATCH, EPOCHS = 32, 5, 64, 4

texts = [re.findall("[a-z]+", text.lower()) for text in topics.values()]
counts = Counter(itertools.chain.from_iterable(texts))
words = [word for word, count in counts.most_common() if count >= 3]
number = {word: i for i, word in enumerate(words)}

# How often two words occur within WINDOW words of each other; a pair counts the less, the farther they are apart.
together: Counter[tuple[int, int]] = Counter()
for text in texts:
    known = [number[word] for word in text if word in number]
    for distance in range(1, WINDOW + 1):
        for pair in zip(known, known[distance:], strict=False):
            together[pair] += 1 / distance
            together[pair[::-1]] += 1 / distance
pairs = np.array([*together])
weight = np.array([*together.values()], np.float32)
target, weight = np.log(weight), np.minimum(1, (weight / 20) ** 0.75)

rng = np.random.default_rng(0)


def fresh() -> dict[str, np.ndarray]:
    """A vector and a bias of every word, as the one in the middle and as one beside it."""
    tables = {name: rng.uniform(-0.5, 0.5, (len(words), WIDTH)).astype(np.float32) / WIDTH for name in ("word", "near")}
    return {**tables, "word_bias": np.zeros(len(words), np.float32), "near_bias": np.zeros(len(words), np.float32)}


def gradient(p: dict[str, np.ndarray], batch: np.ndarray) -> tuple[float, dict[str, proptim.Rows]]:
    """The loss of some pairs, and the gradient of the rows of their words; a word may occur several times."""
    i, j = pairs[batch].T
    error = (p["word"][i] * p["near"][j]).sum(axis=1) + p["word_bias"][i] + p["near_bias"][j] - target[batch]
    slope = weight[batch] * error
    rows = {
        "word": proptim.Rows(i, slope[:, None] * p["near"][j]),
        "near": proptim.Rows(j, slope[:, None] * p["word"][i]),
        "word_bias": proptim.Rows(i, slope),
        "near_bias": proptim.Rows(j, slope),
    }
    return float(slope @ error) / len(batch), rows


def batches() -> np.ndarray:
    """All pairs in a new order."""
    order = rng.permutation(len(pairs))
    return order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)


params = fresh()
opt = proptim.Adagrad(params, lr=0.1)
print(f"{sum(counts.values()):,} words, {len(words):,} different ones that occur three times, {len(pairs):,} pairs")
losses = []
for epoch in range(EPOCHS):
    found = []
    for batch in batches():
        loss, grads = gradient(params, batch)
        opt.step(grads)
        found.append(loss)
    losses.append(float(np.mean(found)))
    print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}")

vectors = params["word"] + params["near"]
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
for word in ("tuple", "exception", "class", "module", "raised"):
    nearest = np.argsort(-(vectors @ vectors[number[word]]))[1:6]
    print(f"{word:10} {' '.join(words[i] for i in nearest)}")
assert losses[-1] < losses[0] / 2


# The time of a step ---------------------------------------------------------------------------------------------------

recorded = [gradient(params, batch)[1] for batch in batches()[:300]]


def seconds(step, grads) -> float:
    """Processor time of a step, the median."""
    taken = []
    for grad in grads:
        begin = time.thread_time()
        step(grad)
        taken.append(time.thread_time() - begin)
    return float(np.median(taken))


print("microseconds of a step with the rows of one batch")
for rule in (proptim.Adagrad, proptim.Adam):
    print(f"  proptim.{rule.__name__:22} {1e6 * seconds(rule(fresh(), threads=1).step, recorded):6.0f}")
if importlib.util.find_spec("torch"):
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)

    def sparse(rows, length: int):
        """The same gradient as a tensor."""
        indices, values = torch.from_numpy(rows.indices[None].copy()), torch.from_numpy(rows.values)
        return torch.sparse_coo_tensor(indices, values, (length, *values.shape[1:]), check_invariants=False)

    tensors = [{name: sparse(rows, len(words)) for name, rows in grads.items()} for grads in recorded]
    for name in ("Adagrad", "SparseAdam"):
        own = {key: torch.from_numpy(p).requires_grad_() for key, p in fresh().items()}
        theirs = getattr(torch.optim, name)(own.values())

        def step(grads, own=own, theirs=theirs) -> None:
            for key, p in own.items():
                p.grad = grads[key]
            theirs.step()

        print(f"  torch.optim.{name:18} {1e6 * seconds(step, tensors):6.0f}")
