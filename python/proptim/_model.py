"""A trained network as plain data, which `proptim train --save` adds to a checkpoint so that it can predict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from os import PathLike
from typing import Any

import numpy as np

from proptim import checkpoint
from proptim._arrays import Array

ACTIVATIONS = ("identity", "logistic", "tanh", "relu")


@dataclass(frozen=True)
class Model:
    """Everything about a network except its weights; docs/checkpoint-format.md describes the fields."""

    activation: str
    classes: list[Any] | None
    features: list[str] | None
    mean: list[float]
    scale: list[float]
    y_mean: float
    y_scale: float


def dump(saved: Mapping[str, Any], model: Model, params: list[Array]) -> dict[str, Any]:
    """A state_dict with each parameter next to its state, and the model, for `checkpoint.write`."""
    state = {i: {**saved["state"][i], "param": param} for i, param in enumerate(params)}
    return {**saved, "state": state, "model": asdict(model)}


def parse(saved: dict[str, Any]) -> tuple[Model, list[Array]]:
    """Remove the model, its weights and its biases from what `checkpoint.read` returned, and return them; what is left
    is a state_dict. ValueError for anything that is not a network."""
    if "model" not in saved:
        raise ValueError("it holds an optimizer and no model")
    given = saved.pop("model")
    if not isinstance(given, dict) or given.keys() != {each.name for each in fields(Model)}:
        raise ValueError("its model does not have the fields of a model")
    model = Model(**given)
    if model.activation not in ACTIVATIONS:
        raise ValueError(f"its model has the activation {model.activation!r:.80}; known: {', '.join(ACTIVATIONS)}")
    if not isinstance(saved.get("state"), dict) or len(saved["state"]) % 2 or not saved["state"]:
        raise ValueError("it does not have a weight and a bias for each layer")
    entries = [*saved["state"].values()]
    if not all(isinstance(entry, dict) and isinstance(entry.get("param"), np.ndarray) for entry in entries):
        raise ValueError("it does not have a weight and a bias for each layer")
    params: list[Array] = [entry.pop("param") for entry in entries]
    weights, biases = params[: len(params) // 2], params[len(params) // 2 :]
    if (
        not all(w.ndim == 2 and w.size and b.shape == w.shape[1:] for w, b in zip(weights, biases, strict=True))
        or not all(before.shape[1] == after.shape[0] for before, after in pairwise(weights))
        or len({p.dtype for p in params}) > 1
        or params[0].dtype.kind != "f"
    ):
        raise ValueError("its arrays are not the weights and biases of a network")
    if not all(np.isfinite(p).all() for p in params):
        raise ValueError("its weights are not all finite")
    inputs, outputs = len(weights[0]), len(biases[-1])
    rows: list[Any] = [model.mean, model.scale, [model.y_mean, model.y_scale]]  # from a file: anything
    if not all(isinstance(row, list) and all(type(x) is float and math.isfinite(x) for x in row) for row in rows):
        raise ValueError("its model has a mean or a scale that is not a finite number")
    if len(model.mean) != inputs or len(model.scale) != inputs or not all(s > 0 for s in [*model.scale, model.y_scale]):
        raise ValueError(f"its model does not have a mean and a positive scale for each of {inputs} features")
    names: Any = model.features
    if names is not None and not (
        isinstance(names, list) and all(type(n) is str for n in names) and len(names) == len(set(names)) == inputs
    ):
        raise ValueError(f"its model does not have a distinct name for each of {inputs} features")
    if model.classes is None:
        if outputs != 1:
            raise ValueError(f"its model predicts one number, and its last layer {outputs}")
    else:
        _check_classes(model.classes, outputs)
    return model, params


def _check_classes(classes: Any, outputs: int) -> None:
    """Labels of one kind in ascending order: two for a single output, else one for each output."""
    kinds = {type(each) for each in classes} if isinstance(classes, list) else set()
    if len(kinds) != 1 or not kinds <= {str, int, bool}:
        raise ValueError("its model has classes that are not all text, whole numbers, or true and false")
    if kinds == {int} and not all(-(2**63) <= each < 2**63 for each in classes):
        raise ValueError("its model has a class that does not fit into 64 bits")
    if any(a >= b for a, b in pairwise(classes)):
        raise ValueError("its model has classes that are not in rising order")
    if len(classes) < 2 or outputs != (1 if len(classes) == 2 else len(classes)):
        raise ValueError(f"its model has {len(classes)} classes and {outputs} outputs")


def read(path: str | PathLike[str]) -> tuple[Model, list[Array]]:
    """The model in a file with its weights and biases; ValueError for any other file."""
    try:
        return parse(checkpoint.read(path))
    except ValueError as error:
        reason = error.__cause__ or error
        raise ValueError(
            f"{path} holds no model ({reason}); expected a file that proptim train --save wrote"
        ) from error
