"""What `proptim train` trains on and what it trains: labelled samples, and a perceptron in plain NumPy."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proptim.cli._console import require

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

TEST_SHARE = 0.2
MIN_SAMPLES = 10  # two of them to test on: with one the accuracy could only be 0 or 100 %


@dataclass(frozen=True)
class Samples:
    """Features scaled to about [-1, 1] and classes 0, 1, 2, ..., divided into training and test."""

    x: Floats
    y: Labels
    test_x: Floats
    test_y: Labels
    classes: int
    digest: int
    """Checksum of the samples before they were divided."""


class Perceptron:
    """ReLU layers below a softmax; `params` and `grads`, always the same arrays, are weight, bias, weight, ..."""

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.params: list[Floats] = []
        for fan_in, fan_out in pairwise(sizes):
            # With this deviation signals keep their size from one ReLU layer to the next (He et al. 2015).
            weight = rng.standard_normal((fan_in, fan_out), np.float32) * np.float32((2 / fan_in) ** 0.5)
            self.params += [weight, np.zeros(fan_out, np.float32)]
        self.grads = [np.zeros_like(param) for param in self.params]

    def forward(self, x: Floats) -> list[Floats]:
        """What goes into each layer, and at the end the scores of the classes."""
        *hidden, (weight, bias) = zip(self.params[::2], self.params[1::2], strict=True)
        signals = [x]
        for w, b in hidden:
            signals.append(np.maximum(signals[-1] @ w + b, 0))
        signals.append(signals[-1] @ weight + bias)
        return signals

    def backward(self, x: Floats, y: Labels) -> float:
        """The mean cross-entropy of a batch; its gradients are written into `grads`."""
        *inputs, scores = self.forward(x)
        scores -= scores.max(axis=1, keepdims=True)  # so that exp cannot overflow
        log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        truth = np.arange(len(y)), y
        delta = np.exp(log_p)
        delta[truth] -= 1
        delta /= len(y)
        for layer in reversed(range(len(inputs))):
            np.matmul(inputs[layer].T, delta, out=self.grads[2 * layer])
            np.sum(delta, axis=0, out=self.grads[2 * layer + 1])
            if layer:
                delta = (delta @ self.params[2 * layer].T) * (inputs[layer] > 0)
        return -float(log_p[truth].mean())

    def accuracy(self, x: Floats, y: Labels) -> float:
        """The share of samples whose highest score is that of their class."""
        return float(np.mean(self.forward(x)[-1].argmax(axis=1) == y))


def load_samples(path: str | None, seed: int) -> Samples:
    """The digits that ship in scikit-learn, or x and y of an .npz file; `seed` draws the test part."""
    if path is None:
        datasets = require(
            "sklearn.datasets", "the handwritten digits come with scikit-learn", "train on --data FILE.npz"
        )
        raw_x, raw_y = datasets.load_digits(return_X_y=True)
    else:
        try:
            raw_x, raw_y = _read(path)
            _check(raw_x, raw_y)
        except ValueError as error:
            raise ValueError(f"--data {path}: {error}") from None
    x = raw_x.astype(np.float32, order="C")
    names, y = np.unique(raw_y, return_inverse=True)
    digest = zlib.crc32(y.astype(np.int64).tobytes(), zlib.crc32(x.tobytes()))
    order = np.random.default_rng(seed).permutation(len(y))
    test, train = np.split(order, [round(TEST_SHARE * len(y))])
    # Centred, and divided by the largest deviation: the standard one would blow up a pixel that is rarely inked.
    # A feature that never varies in training, as the corner pixels, has nothing to divide by.
    x -= x[train].mean(axis=0)
    largest = np.abs(x[train]).max(axis=0)
    x /= np.where(largest > 0, largest, 1)
    return Samples(x[train], y[train], x[test], y[test], len(names), digest)


def _read(path: str) -> tuple[NDArray[Any], NDArray[Any]]:
    mend = "np.savez(path, x=features, y=classes)"
    with Path(path).open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"not an .npz file; expected one written by {mend}")
        try:
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                names = archive.files
                arrays = [np.asarray(archive[name]) for name in ("x", "y") if name in names]
        except Exception as error:  # whatever a damaged file leads zipfile, zlib or NumPy to raise
            raise ValueError(f"cannot be read ({error}); expected arrays of numbers: {mend}") from None
    if len(arrays) < 2:
        raise ValueError(f"holds {', '.join(names) or 'no array'}; expected x and y: {mend}")
    return arrays[0], arrays[1]


def _check(x: NDArray[Any], y: NDArray[Any]) -> None:
    """Refuse what cannot be trained on."""
    if x.dtype.kind not in "fiu":
        raise ValueError(f"x has dtype {x.dtype}; expected real numbers: x.astype(np.float32)")
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(f"x has shape {x.shape}; expected (samples, features): x.reshape(len(x), -1)")
    if y.dtype.kind not in "iu":
        raise ValueError(f"y has dtype {y.dtype}; expected the number of each sample's class: y.astype(np.int64)")
    if y.ndim != 1:
        raise ValueError(f"y has shape {y.shape}; expected (samples,): y.ravel(), or y.argmax(axis=1) if it is one-hot")
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} samples and y {len(y)}; expected one class for each sample")
    if len(x) < MIN_SAMPLES:
        raise ValueError(f"{len(x)} samples; expected at least {MIN_SAMPLES}, a fifth of them for the test")
    with np.errstate(over="ignore"):
        bad = np.argwhere(~np.isfinite(x.astype(np.float32)))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"x[{row}, {column}] is {x[row, column]}; expected finite float32 numbers: drop or mend the sample"
        )
    if y.min() < 0:
        row = int(np.argmax(y < 0))
        raise ValueError(
            f"y[{row}] is {y[row]}; expected classes from 0 up: drop samples without a class, or renumber: "
            "np.unique(y, return_inverse=True)[1]"
        )
    if y.min() == y.max():
        raise ValueError(f"y holds only the class {y[0]}; expected at least 2 classes")
