"""The samples that `proptim train` trains on and `proptim predict` predicts for, from .npz and CSV files."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proptim.cli._console import require

TASKS = ("classification", "regression")
TEST_SHARE = 0.2
MIN_SAMPLES = 10  # two of them to test on: with one the accuracy could only be 0 or 100 %
WRITE = "np.savez(path, x=features, y=classes)"
DELIMITERS = ",;\t"
MANY_CLASSES = 10
"""With more classes than this and fewer than four samples of each, whole numbers are probably numbers to predict."""


@dataclass(frozen=True)
class Raw:
    """The content of a file: features, and, if the file has them, targets and names of columns."""

    x: NDArray[Any]
    y: NDArray[Any] | None
    features: list[str] | None = None
    target: str | None = None


@dataclass(frozen=True)
class Samples:
    """Samples divided into training and test.

    Features are scaled to about [-1, 1]; y is the number of a class, 0, 1, 2, ..., or has mean 0 and deviation 1.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]
    test_x: NDArray[np.float32]
    test_y: NDArray[Any]
    classes: NDArray[Any] | None
    """The labels, or None for regression."""
    features: list[str] | None
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    y_mean: float
    y_scale: float
    digest: int
    """Checksum of the samples before they were divided."""

    @property
    def task(self) -> str:
        """Which of TASKS."""
        return TASKS[self.classes is None]

    @property
    def outputs(self) -> int:
        """Units of the last layer: one is enough for two classes."""
        return 1 if self.classes is None or len(self.classes) == 2 else len(self.classes)


def load_samples(
    path: str | None, seed: int, test: str | None = None, task: str | None = None, target: str | None = None
) -> Samples:
    """The digits of scikit-learn, or the samples of a file; `seed` draws the test samples if there is no test file."""
    if path is None:
        datasets = require(
            "sklearn.datasets", "the handwritten digits come with scikit-learn", "train on --data FILE.npz"
        )
        raw = Raw(*datasets.load_digits(return_X_y=True))
        raw_y, task = _targets(raw, "classification")
    else:
        try:
            raw = read(path, target)
            check_features(raw.x)
            raw_y, task = _targets(raw, task)
            least = 2 if test else MIN_SAMPLES
            if len(raw_y) < least:
                share = "" if test else ", a fifth of them for the test"
                raise ValueError(f"{len(raw_y)} samples; expected at least {least}{share}")
        except ValueError as error:
            raise ValueError(f"--data {path}: {error}") from None
    x, classes = raw.x.astype(np.float64), None
    if task == "classification":
        classes, raw_y = np.unique(raw_y, return_inverse=True)
        raw_y = raw_y.astype(np.int64)
    digest = zlib.crc32(raw_y.tobytes(), zlib.crc32(x.astype(np.float32).tobytes()))
    if classes is not None and classes.dtype.kind == "U":
        digest = zlib.crc32("\n".join(classes).encode(), digest)
    if test is None:
        order = np.random.default_rng(seed).permutation(len(raw_y))
        test_part, train_part = np.split(order, [round(TEST_SHARE * len(raw_y))])
        x, y, test_x, test_y = x[train_part], raw_y[train_part], x[test_part], raw_y[test_part]
    else:
        y = raw_y
        try:
            named = target or (raw.target if _is_csv(test) else None)
            test_x, test_y = _test_samples(read(test, named), raw.features, x.shape[1], task, classes)
        except ValueError as error:
            raise ValueError(f"--test {test}: {error}") from None
        digest = zlib.crc32(test_y.tobytes(), zlib.crc32(test_x.tobytes(), digest))
    # Centre each feature and divide it by its largest deviation: division by the standard deviation would magnify a
    # pixel that is rarely inked. A feature that is constant in training, such as a corner pixel, is not divided.
    mean = x.mean(axis=0)
    largest = np.abs(x - mean).max(axis=0)
    scale = np.where(largest > 0, largest, 1)
    y_mean, y_scale = 0.0, 1.0
    if classes is None:
        y_mean, y_scale = float(y.mean()), float(y.std()) or 1.0
        y, test_y = (((part - y_mean) / y_scale).astype(np.float32) for part in (y, test_y))
    x, test_x = (((part - mean) / scale).astype(np.float32) for part in (x, test_x))
    return Samples(x, y, test_x, test_y, classes, raw.features, mean, scale, y_mean, y_scale, digest)


def _test_samples(
    raw: Raw, features: list[str] | None, width: int, task: str, classes: NDArray[Any] | None
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    raw = select(raw, features, width)
    check_features(raw.x)
    y, _ = _targets(raw, task, test=True)
    if len(y) < 2:
        raise ValueError(f"{len(y)} samples; expected at least 2")
    if classes is not None:
        places = {label: i for i, label in enumerate(classes.tolist())}
        strange = [i for i, label in enumerate(y.tolist()) if label not in places]
        if strange:
            raise ValueError(
                f"y[{strange[0]}] is {y[strange[0]]!s}, a class that --data has not; expected one of {_some(classes)}"
            )
        y = np.array([places[label] for label in y.tolist()], np.int64)
    return raw.x.astype(np.float64), y


def select(raw: Raw, features: list[str] | None, width: int) -> Raw:
    """The columns that a network was trained on, selected by name if both the file and the network have names."""
    if features is None or raw.features is None:
        if raw.x.ndim == 2 and raw.x.shape[1] != width:
            raise ValueError(f"x has {raw.x.shape[1]} features; expected {width}, as in training")
        return raw
    missing = [name for name in features if name not in raw.features]
    if missing:
        raise ValueError(f"has no column {missing[0]!r}; expected those of the training: {_some(features)}")
    return replace(raw, x=raw.x[:, [raw.features.index(name) for name in features]], features=features)


def _some(values: Any) -> str:
    shown = [str(value) for value in values[:10]]
    return ", ".join(shown) + (", ..." if len(values) > len(shown) else "")


def _targets(raw: Raw, task: str | None, test: bool = False) -> tuple[NDArray[Any], str]:
    """The checked targets and the task: whole numbers and text are classes, floats are numbers to predict."""
    x: NDArray[Any] = raw.x
    y: Any = raw.y
    if y is None:
        raise ValueError(f"holds no y; expected x and y: {WRITE}")
    if y.dtype.kind not in "biufUS":
        raise ValueError(
            f"y has dtype {y.dtype}; expected whole numbers or text for classes, y.astype(np.int64) or y.astype(str), "
            "or floats to predict as numbers"
        )
    if y.ndim != 1:
        raise ValueError(f"y has shape {y.shape}; expected (samples,): y.ravel(), or y.argmax(axis=1) if it is one-hot")
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} samples and y {len(y)}; expected one class or number for each sample")
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8")
    if y.dtype.kind == "f":
        with np.errstate(over="ignore"):
            _first("y", y, ~np.isfinite(y.astype(np.float32)), "finite float32 numbers: drop or correct the sample")
    given = task
    task = task or TASKS[y.dtype.kind == "f"]
    if task == "regression":
        if y.dtype.kind not in "iuf":
            raise ValueError(f"y has dtype {y.dtype}; expected numbers for --task regression")
        y = y.astype(np.float64)
    elif y.dtype.kind == "f":
        _first("y", y, y != np.floor(y), "whole numbers or text for --task classification")
        y = y.astype(np.int64)
    if test or not len(y):
        return y, task
    if y.dtype.kind in "iu" and y.min() < 0:
        mend = "drop samples without a class, or renumber: np.unique(y, return_inverse=True)[1]"
        _first("y", y, y < 0, f"classes from 0 up: {mend}")
    distinct = np.unique(y)
    if len(distinct) == 1:
        what, least = ("class", "classes") if task == "classification" else ("number", "numbers")
        raise ValueError(f"y holds only the {what} {distinct[0]!s}; expected at least 2 {least}")
    if given is None and task == "classification" and len(distinct) > MANY_CLASSES and 4 * len(distinct) > len(y):
        mend = "--task regression if they are numbers to predict" if y.dtype.kind in "iu" else "labels that repeat"
        raise ValueError(
            f"y holds {len(distinct)} classes in {len(y)} samples; expected several samples of each: give {mend}, "
            "or --task classification if they are classes nevertheless"
        )
    return y, task


def _first(name: str, values: NDArray[Any], bad: NDArray[np.bool_], expected: str) -> None:
    """Raise ValueError for the first bad value, with its index."""
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name}[{', '.join(map(str, index))}] is {values[index]}; expected {expected}")


def check_features(x: NDArray[Any]) -> None:
    """Raise ValueError for features that cannot be trained on."""
    if x.dtype.kind not in "fiu":
        raise ValueError(f"x has dtype {x.dtype}; expected real numbers: x.astype(np.float32)")
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(f"x has shape {x.shape}; expected (samples, features): x.reshape(len(x), -1)")
    with np.errstate(over="ignore"):
        finite = np.isfinite(x.astype(np.float32))
    _first("x", x, ~finite, "finite float32 numbers: drop or correct the sample")


def read(path: str, target: str | None = None, features: Sequence[str] | None = None, width: int = 0) -> Raw:
    """Read a file according to its suffix. In CSV the target is the column `target`, by default the last; given the
    `features` or `width` that a network was trained on, it is the one other column."""
    if _is_csv(path):
        return _read_csv(path, target, features, width)
    if target is not None:
        raise ValueError(f"is no CSV file, so that it has no column {target!r}; expected y in it: leave --target out")
    return _read_npz(path, y_wanted=not width)


def _is_csv(path: str) -> bool:
    return Path(path).suffix.lower() in (".csv", ".tsv")


def _read_npz(path: str, y_wanted: bool) -> Raw:
    with Path(path).open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(
                f"not an .npz file; expected one written by {WRITE}, or a CSV file whose name ends in .csv"
            )
        try:
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                names = archive.files
                arrays = {name: np.asarray(archive[name]) for name in ("x", "y") if name in names}
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds for a damaged file
            raise ValueError(f"cannot be read ({error}); expected arrays of numbers: {WRITE}") from None
    if "x" not in arrays or (y_wanted and "y" not in arrays):
        wanted = f"x and y: {WRITE}" if y_wanted else "x: np.savez(path, x=features)"
        raise ValueError(f"holds {', '.join(names) or 'no array'}; expected {wanted}")
    return Raw(arrays["x"], arrays.get("y"))


def _read_csv(path: str, target: str | None, features: Sequence[str] | None, width: int) -> Raw:
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(DELIMITERS, key=first.count)
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text ({error}); expected a CSV file") from None
    except csv.Error as error:
        raise ValueError(f"cannot be read ({error}); expected a CSV file") from None
    if not lines:
        raise ValueError("holds no line; expected a CSV file with a column for each feature and one for the target")
    columns = len(lines[0][1])
    for number, row in lines:
        if len(row) != columns:
            raise ValueError(f"line {number} has {len(row)} cells; expected {columns}, as in line {lines[0][0]}")
    names = _header([row for _, row in lines[:2]], target)
    if names is not None:
        del lines[0]
        double = [name for name in names if names.count(name) > 1]
        if double:
            raise ValueError(f"has two columns {double[0]!r}; expected names of their own")
    place = _target_column(names, columns, target, features, width)
    used = [i for i in range(columns) if i != place]
    if features is not None and names is not None:
        used = [i for i in used if names[i] in features]
    x = np.empty((len(lines), len(used)))
    for row_number, (number, row) in enumerate(lines):
        for column, i in enumerate(used):
            value = _number(row[i])
            if value is None:
                label = f"column {names[i]!r}" if names else f"column {i + 1}"
                mend = "encode text as numbers, or drop the column"
                if not row[i]:
                    mend = "fill the gap, or drop the line"
                elif names and not width and target is None:
                    mend += f", or --target {names[i]} if that is what to predict"
                raise ValueError(f"line {number}, {label} holds {row[i]!r}; expected a number: {mend}")
            x[row_number, column] = value
    y = None if place is None else _labels([(number, row[place]) for number, row in lines])
    if names is None:
        return Raw(x, y)
    return Raw(x, y, [names[i] for i in used], None if place is None else names[place])


def _header(rows: list[list[str]], target: str | None) -> list[str] | None:
    """The names of the columns, if the first line has them: if it has text in the place of a feature, or text at the
    end where the next line has a number, or numbers the columns 0, 1, ... as pandas does."""
    first = rows[0]
    if target is not None and target in first:
        return first
    text = [_number(cell) is None for cell in first]
    counted = len(first) > 1 and first == [str(i) for i in range(len(first))]
    over_number = text[-1] and len(rows) > 1 and _number(rows[1][-1]) is not None
    return first if any(text[:-1]) or counted or over_number else None


def _target_column(
    names: list[str] | None, columns: int, target: str | None, features: Sequence[str] | None, width: int
) -> int | None:
    if target is not None:
        if names is None or target not in names:
            held = f"the columns {_some(names)}" if names else "no line with names of columns"
            raise ValueError(f"has {held}; expected {target!r} among them, which --target names")
        return names.index(target)
    if not width:
        if columns < 2:
            raise ValueError("has one column; expected one for each feature and one for the target")
        return columns - 1
    if features is not None and names is not None:
        others = [i for i, name in enumerate(names) if name not in features]
        return others[0] if len(others) == 1 else None
    return columns - 1 if columns == width + 1 else None


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _labels(cells: list[tuple[int, str]]) -> NDArray[Any]:
    """Targets of a CSV file: whole numbers, numbers or text."""
    for number, cell in cells:
        if not cell:
            raise ValueError(f"line {number} has no target; expected a number or a class: drop the line")
    numbers = [_number(cell) for _, cell in cells]
    if all(value is None for value in numbers):
        return np.array([cell for _, cell in cells])
    for (number, cell), value in zip(cells, numbers, strict=True):
        if value is None:
            raise ValueError(
                f"line {number} has the target {cell!r} where others are numbers; expected all numbers or all text"
            )
    if all(cell.lstrip("+-").isdecimal() and abs(int(cell)) < 2**63 for _, cell in cells):
        return np.array([int(cell) for _, cell in cells], np.int64)
    return np.array(numbers)
