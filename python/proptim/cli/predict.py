"""`proptim predict`: predict with a network that `proptim train --save` has saved."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from proptim import _model
from proptim._files import check_out, whole
from proptim.cli._console import require
from proptim.cli._parser import name_ending, overwritten
from proptim.cli._run import r2
from proptim.cli._samples import check_features, read, select

FORMATS = (".npz", ".csv")
MOST = 5
"""Classes that a report lists."""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = commands.add_parser(
        "predict",
        help="predict classes or numbers with a model that train has saved",
        description="Predict with a model that `proptim train --save MODEL` has saved. Prints one prediction per line, "
        "or writes a file. If the data have targets, it also prints how good the predictions are.",
        examples=(
            ("proptim train --data train.csv --save model.npz", "first train and save a model"),
            ("proptim predict model.npz --data new.csv --out predicted.csv", "write predictions to a file"),
            ("proptim predict model.npz --data new.npz", "print predictions, one per line"),
        ),
    )
    parser.add_argument("model", metavar="MODEL", help="a file that proptim train --save wrote")
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="an .npz file with x, or a .csv file, as for train; y is not needed",
    )
    parser.add_argument(
        "--out",
        type=name_ending(*FORMATS),
        metavar="FILE",
        help="an .npz file for y, and for classes also probabilities and classes; or a .csv file for y",
    )
    parser.set_defaults(run=run, usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Predict as told."""
    if args.out:
        if told := overwritten([("MODEL", args.model), ("--data", args.data)], [("--out", args.out)]):
            args.usage_error(told)
        check_out(args.out, "--out")
    door = require("proptim.sklearn", "the network is scikit-learn's", "copy the model to where it is")
    model, params = _model.read(args.model)
    width = len(params[0])
    try:
        raw = select(read(args.data, features=model.features, width=width), model.features, width)
        check_features(raw.x)
        if raw.y is not None and raw.y.shape != (len(raw.x),):
            raise ValueError(f"y has shape {raw.y.shape}; expected ({len(raw.x)},), or no y")
    except ValueError as error:
        raise ValueError(f"--data {args.data}: {error}") from None
    estimator = door.load(args.model)
    vars(estimator).pop("feature_names_in_", None)  # `select` has put the columns in order
    x = raw.x.astype(np.float64)
    y = (
        estimator.predict(x)
        if len(x)
        else np.empty(0, np.float64 if model.classes is None else estimator.classes_.dtype)
    )
    report = f"{len(y)} predictions"
    if raw.y is not None and len(y):
        if model.classes is not None:
            report += f", accuracy {np.mean(y.astype(str) == raw.y.astype(str)):.1%}"
            if strange := sorted({*raw.y.astype(str).tolist()} - {*estimator.classes_.astype(str).tolist()}):
                report += f" (y has classes that the model does not know: {', '.join(strange[:MOST])})"
        elif raw.y.dtype.kind in "iuf":
            report += f", R2 {r2(raw.y, y):.3f}"
        else:
            report += " (y is not numbers, and the model predicts numbers)"
    if args.out is None:
        print("".join(f"{value}\n" for value in y.tolist()), end="")
        print(report, file=sys.stderr)
        return 0
    arrays = {"y": y}
    if model.classes is not None:
        probabilities = estimator.predict_proba(x) if len(x) else np.empty((0, len(model.classes)))
        arrays |= {"probabilities": probabilities, "classes": estimator.classes_}
    _write(Path(args.out), arrays)
    print(f"{report}, written to {args.out}")
    return 0


def _write(path: Path, arrays: dict[str, Any]) -> None:
    with whole(path) as temporary:
        if path.suffix == ".npz":
            np.savez(temporary, **arrays)
        else:
            import csv

            with temporary.open("w", encoding="utf-8", newline="") as text:
                writer = csv.writer(text)
                writer.writerow(["y"])
                writer.writerows([value] for value in arrays["y"].tolist())
