"""Test accuracy on scikit-learn's digits with state in fewer bytes, as a table of docs/fewer-bytes.md has it.

`python tools/accuracy.py` trains the same networks with every optimizer of proptim, with state in float32, in
bfloat16 and in one byte, and if bitsandbytes is installed with its optimizers of 8 bits. It takes some minutes.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

import proptim
from proptim.bench.contestants import CONTESTANTS
from proptim.bench.workloads import Array, hyper
from proptim.rprop import ETAS_ON_GRID

SIZES = (64, 128, 64, 10)
EPOCHS, BATCH = 30, 32
TURNS = 100  # of Rprop, each with all samples
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.05, "momentum": 0.9},  # without momentum there is no state, and the default rate belongs to no task
    "rprop": {"etas": ETAS_ON_GRID},
}
"""Options of an optimizer beyond its defaults, in every column."""
KINDS: dict[str, str | None] = {"float32": None, "bfloat16": "bfloat16", "int8": "int8"}
"""Columns of proptim, and their state_dtype."""
PEER = "bitsandbytes-8"
STEP = Callable[[], Any]


class Network:
    """A perceptron with its gradients, from weights that depend on the seed alone."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.weights = [
            (rng.standard_normal(pair) * np.sqrt(2 / pair[0])).astype(np.float32) for pair in pairwise(SIZES)
        ]
        self.biases = [np.zeros(size, np.float32) for size in SIZES[1:]]
        self.params = [*self.weights, *self.biases]
        self.grads = [np.zeros_like(param) for param in self.params]

    def forward(self, x: Array) -> list[Array]:
        """What every layer puts out, the input first."""
        outs = [x]
        for weight, bias in zip(self.weights[:-1], self.biases, strict=False):
            outs.append(np.maximum(outs[-1] @ weight + bias, 0))
        return [*outs, outs[-1] @ self.weights[-1] + self.biases[-1]]

    def backward(self, x: Array, y: Array) -> None:
        """Write the gradients of the mean cross entropy."""
        *outs, scores = self.forward(x)
        back = np.exp(scores - scores.max(axis=1, keepdims=True))
        back /= back.sum(axis=1, keepdims=True)
        back[np.arange(len(y)), y] -= 1
        back /= len(y)
        layers = len(self.weights)
        for i in reversed(range(layers)):
            np.matmul(outs[i].T, back, out=self.grads[i])
            np.sum(back, axis=0, out=self.grads[layers + i])
            back = (back @ self.weights[i].T) * (outs[i] > 0)

    def accuracy(self, x: Array, y: Array) -> float:
        """Percent of right answers."""
        return 100 * float(np.mean(self.forward(x)[-1].argmax(axis=1) == y))


MAKE = Callable[[Network], STEP]


def trained(rule: str, seed: int, make: MAKE, digits: tuple[Array, Array]) -> float:
    """The test accuracy of one network; 360 of the 1,797 digits, drawn by the seed, are for the test."""
    x, y = digits
    rng = np.random.default_rng(seed)
    test, train = np.split(rng.permutation(len(y)), [360])
    network = Network(rng)
    step = make(network)
    whole = proptim.OPTIMIZERS[rule] is proptim.Rprop
    for _ in range(TURNS if whole else EPOCHS):
        order = train if whole else rng.permutation(train)
        for begin in range(0, len(order), len(order) if whole else BATCH):
            batch = order[begin : begin + (len(order) if whole else BATCH)]
            network.backward(x[batch], y[batch])
            step()
    return network.accuracy(x[test], y[test])


def optimizer(rule: str, network: Network, state_dtype: str | None) -> proptim.Optimizer:
    """Proptim's optimizer for a network."""
    cls: Callable[..., proptim.Optimizer] = proptim.OPTIMIZERS[rule]
    return cls(network.params, grads=network.grads, state_dtype=state_dtype, threads=1, **OPTIONS.get(rule, {}))


def state_bytes(rule: str, state_dtype: str | None) -> float:
    """Bytes of state for each weight of the network."""
    network = Network(np.random.default_rng(0))
    made = optimizer(rule, network, state_dtype)
    held = sum(array.nbytes for p in made._stepper.parameters for array in p.state.values())
    return float(held / sum(param.size for param in network.params))


def our_step(rule: str, state_dtype: str | None, network: Network) -> STEP:
    """The step of proptim."""
    return optimizer(rule, network, state_dtype).step


def peer_class(rule: str) -> Any:
    """The class of bitsandbytes, None where it has none."""
    return getattr(importlib.import_module("bitsandbytes.optim"), proptim.OPTIMIZERS[rule].__name__, None)


def peer_step(rule: str, network: Network) -> STEP:
    """The step of bitsandbytes, of the same arrays."""
    torch: Any = importlib.import_module("torch")
    tensors = [torch.from_numpy(param).requires_grad_() for param in network.params]
    for tensor, grad in zip(tensors, network.grads, strict=True):
        tensor.grad = torch.from_numpy(grad)
    step: STEP = peer_class(rule)(tensors, **hyper(rule) | OPTIONS.get(rule, {}), optim_bits=8).step
    return step


def table(rules: Sequence[str], seeds: int, peer: bool) -> Iterator[str]:
    """Lines of Markdown: means over the seeds, in percent."""
    x, y = importlib.import_module("sklearn.datasets").load_digits(return_X_y=True)
    digits = (x / 16).astype(np.float32), y
    heads = [*KINDS, "bytes of state with int8", *(["bitsandbytes, 8 bits"] if peer else [])]
    yield f"| | {' | '.join(heads)} |"
    yield f"|{'---|' * (len(heads) + 1)}"
    for rule in rules:
        makes: list[MAKE | None] = [partial(our_step, rule, kind) for kind in KINDS.values()]
        if peer:
            makes.append(partial(peer_step, rule) if peer_class(rule) is not None else None)
        cells = [
            "none" if make is None else f"{statistics.mean(trained(rule, s, make, digits) for s in range(seeds)):.2f}"
            for make in makes
        ]
        cells.insert(len(KINDS), f"{state_bytes(rule, 'int8'):.2f}")
        yield f"| {' | '.join([proptim.OPTIMIZERS[rule].__name__, *cells])} |"


def main() -> None:
    """Print the table, line by line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", nargs="+", choices=proptim.OPTIMIZERS, default=[*proptim.OPTIMIZERS])
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    absent = CONTESTANTS[PEER].absent()
    if absent:
        print(f"{PEER}: {absent}")
    for line in table(args.rules, args.seeds, not absent):
        print(line, flush=True)


if __name__ == "__main__":
    main()
