"""
Word vectors, a few rows at a time
==================================

GloVe finds a vector for every word of a text, such that words that occur beside the same words get similar vectors. Its
authors train it with Adagrad. A batch of 32 pairs of words has a gradient for the rows of these words only, which is
what :class:`proptim.Rows` is for. The text is the language reference that comes with Python; ``help("FOR")`` shows it.
"""

import itertools
import re
import time
from collections import Counter
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import numpy as np

import proptim

WIDTH, WINDOW, BATCH, EPOCHS = 32, 5, 32, 4

texts = [re.findall("[a-z]+", text.lower()) for text in topics.values()]
counts = Counter(itertools.chain.from_iterable(texts))
words = [word for word, count in counts.most_common() if count >= 3]
number = {word: i for i, word in enumerate(words)}
together = Counter()
for text in texts:
    known = [number[word] for word in text if word in number]
    for distance in range(1, WINDOW + 1):
        for pair in zip(known, known[distance:], strict=False):
            together[pair] += 1 / distance
            together[pair[::-1]] += 1 / distance
pairs, count = np.array([*together]), np.array([*together.values()], np.float32)
target, weight = np.log(count), np.minimum(1, (count / 20) ** 0.75)
print(f"{sum(counts.values()):,} words, {len(words):,} rows, {len(pairs):,} pairs")

# %%
# Training
# --------
# The gradient of a pair: of the vectors of its two words, and of their biases.

rng = np.random.default_rng(0)
params = {name: rng.uniform(-0.5, 0.5, (len(words), WIDTH)).astype(np.float32) / WIDTH for name in ("word", "near")}
params |= {name: np.zeros(len(words), np.float32) for name in ("word_bias", "near_bias")}


def gradient(batch):
    i, j = pairs[batch].T
    error = (params["word"][i] * params["near"][j]).sum(axis=1) - target[batch]
    slope = weight[batch] * (error + params["word_bias"][i] + params["near_bias"][j])
    return {
        "word": proptim.Rows(i, slope[:, None] * params["near"][j]),
        "near": proptim.Rows(j, slope[:, None] * params["word"][i]),
        "word_bias": proptim.Rows(i, slope),
        "near_bias": proptim.Rows(j, slope),
    }


optimizer = proptim.Adagrad(params, lr=0.1)
for _ in range(EPOCHS):
    order = rng.permutation(len(pairs))
    for batch in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
        optimizer.step(gradient(batch))

# %%
# Words of one kind are neighbours
# --------------------------------
# The two directions in which the vectors of these words differ most.

KINDS = {
    "types": "integer string list tuple dictionary bytes float set",
    "statements": "raise return import yield assert del break continue",
    "exceptions": "typeerror valueerror keyerror attributeerror indexerror importerror stopiteration",
}
shown = {kind: [w for w in listed.split() if w in number] for kind, listed in KINDS.items()}
vectors = params["word"] + params["near"]
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
chosen = vectors[[number[w] for group in shown.values() for w in group]]
middle = chosen.mean(axis=0)
axes = np.linalg.svd(chosen - middle, full_matrices=False)[2][:2]

figure, ax = plt.subplots(figsize=(6.4, 5.2))
for k, (kind, group) in enumerate(shown.items()):
    places = (vectors[[number[w] for w in group]] - middle) @ axes.T
    ax.plot(*places.T, "o", color=f"C{k}", label=kind)
    for word, (x, y) in zip(group, places, strict=True):
        ax.annotate(word, (x, y), xytext=(5, 3), textcoords="offset points", color=f"C{k}", fontsize=11)
ax.margins(0.12)
ax.set(xticks=[], yticks=[])
ax.legend()
ax.set_title("Words of Python's language reference")
plt.show()

# %%
# The time of a step
# ------------------
# The same gradients as rows, and as arrays of the size of the tables, in which nearly all rows are zero; and those of
# torch's two optimizers for sparse gradients, if it is installed. Processor time of one thread. These tables are so
# small that a step of all rows takes not much longer; :doc:`/performance` has figures of a million rows.

batches = rng.permutation(len(pairs))[: 200 * BATCH].reshape(-1, BATCH)
sparse = [gradient(batch) for batch in batches]


def dense(rows, param):
    grad = np.zeros_like(param)
    np.add.at(grad, rows.indices, rows.values)
    return grad


def microseconds(step, gradients):
    taken = []
    for grads in gradients:
        begin = time.thread_time()
        step(grads)
        taken.append(time.thread_time() - begin)
    return 1e6 * float(np.median(taken))


def ours(rule):
    return rule({name: p.copy() for name, p in params.items()}, threads=1).step


full = [{name: dense(rows, params[name]) for name, rows in grads.items()} for grads in sparse[:50]]
bars = {
    f"{rule.__name__}, {kind}": microseconds(ours(rule), gradients)
    for rule in (proptim.Adagrad, proptim.Adam)
    for kind, gradients in (("rows", sparse), ("arrays", full))
}
try:
    import torch
except ModuleNotFoundError:
    print("torch is not installed")
else:
    torch.set_num_threads(1)
    torch.sparse.check_sparse_tensor_invariants.disable()  # as by default, but without the warning
    for name in ("Adagrad", "SparseAdam"):
        tensors = {key: torch.from_numpy(p.copy()).requires_grad_() for key, p in params.items()}
        theirs = getattr(torch.optim, name)(tensors.values())

        def step(grads, tensors=tensors, theirs=theirs):
            for key, p in tensors.items():
                p.grad = grads[key]
            theirs.step()

        gradients = [
            {
                key: torch.sparse_coo_tensor(rows.indices[None].copy(), rows.values, params[key].shape)
                for key, rows in grads.items()
            }
            for grads in sparse
        ]
        bars[f"torch {name}"] = microseconds(step, gradients)

figure, ax = plt.subplots(figsize=(6.4, 0.55 * len(bars) + 1.1))
ax.barh([*bars], [*bars.values()], color=["C1" if name.startswith("torch") else "C0" for name in bars])
for place, value in enumerate(bars.values()):
    ax.text(value, place, f" {value:,.0f}", va="center")
ax.invert_yaxis()
ax.margins(x=0.15)
ax.grid(visible=False)
ax.set_xlabel("microseconds of a step")
plt.show()
