"""`proptim train`: a perceptron learns handwritten digits, with one optimizer or several side by side."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from proptim._backend import BACKENDS
from proptim.cli._console import draw, progress, require, table
from proptim.cli._digits import Samples, load_samples
from proptim.cli._run import OPTIMIZERS, Run, build, full_batch, load, restore, save, train

ALIASES = {"all": list(OPTIMIZERS), "rprop": ["rprop-"]}
DEFAULT = "rmsprop"
HIDDEN = [256, 128]  # 51,000 weights: an epoch takes a moment, and 97 % of the test digits are read
BATCH_SIZE = 32
# By then all have learned what they can: from mini-batches in 900 steps, Rprop in 20. By 60 Rprop's step sizes have
# outgrown a loss that is zero in float32, and test accuracy falls.
EPOCHS = 20
FORMATS = (".png", ".svg", ".pdf")


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = commands.add_parser(
        "train",
        help="train a perceptron on handwritten digits with one optimizer, several or all",
        description="Train a perceptron, written in plain NumPy, on the 1,797 handwritten digits of scikit-learn "
        "or on data of your own, and compare optimizers.",
    )
    add = parser.add_argument
    add(
        "--optimizer",
        type=_names,
        action="extend",
        metavar="NAME[,NAME]",
        help=f"{_text(OPTIMIZERS, ', ')}, rprop for {ALIASES['rprop'][0]}, or all (default: {DEFAULT})",
    )
    add("--data", metavar="FILE.npz", help="arrays x (samples, features) and y (samples,), whole numbers")
    add(
        "--hidden",
        type=_sizes,
        metavar="N[,N]",
        help=f"sizes of the hidden layers (default: {_text(HIDDEN)})",
    )
    add("--epochs", type=_positive, metavar="N", help=f"how often to go through the data (default: {EPOCHS})")
    add(
        "--lr",
        type=float,
        metavar="RATE",
        help="learning rate, for Rprop the first step size (default: as published; sgd: 0.1)",
    )
    add(
        "--batch-size",
        type=_positive,
        metavar="N",
        help=f"samples in a step; Rprop takes all (default: {BATCH_SIZE})",
    )
    add("--seed", type=_seed, metavar="N", help="for test samples, first weights and order (default: 0)")
    add("--backend", choices=BACKENDS, help="what the optimizer steps with (default: the best there is)")
    add(
        "--threads",
        type=_positive,
        metavar="N",
        help="threads that the optimizer steps with (default: as many as help)",
    )
    add("--plot", metavar="FILE.png", help="draw training loss and test accuracy by epoch")
    add("--save", metavar="FILE.npz", help="keep the run in a file, after every epoch")
    add("--resume", metavar="FILE.npz", help="go on with a kept run up to --epochs, exact to the bit")
    add("--json", action="store_true", help="print the results for a machine to read")
    parser.set_defaults(run=run, usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Train as told; 1 if interrupted."""
    names = list(dict.fromkeys(args.optimizer or [DEFAULT]))
    if len(names) > 1 and (args.save or args.resume):
        args.usage_error(f"--save and --resume take one optimizer, not {len(names)}: {_text(names, ', ')}")
    if args.batch_size and not args.resume and all(map(full_batch, names)):
        args.usage_error(f"--batch-size is not for {_text(names, ', ')}: Rprop takes all samples at once")
    if args.data and args.save and Path(args.data).resolve() == Path(args.save).resolve():
        args.usage_error(f"--save would overwrite the data in {args.data}")
    for path in filter(None, (args.plot, args.save)):
        if not Path(path).absolute().parent.is_dir():  # said before the training, not after it
            raise ValueError(f"{path}: there is no such folder; make it first")
    if args.plot:
        if Path(args.plot).suffix not in FORMATS:
            raise ValueError(f"--plot {args.plot}: expected a name that ends in {', '.join(FORMATS)}")
        require("matplotlib.figure", "--plot needs matplotlib", "leave --plot out")
    runs, data, saved = _resume(args) if args.resume else _begin(names, args)
    title = (
        f"{len(data.y)} training and {len(data.test_y)} test samples, "
        f"perceptron {_text(runs[0].sizes, '-')}, seed {runs[0].seed}"
    )
    stream = sys.stdout if not args.json else sys.stderr if sys.stderr.isatty() else None
    code = 0
    try:
        # The table tells of a loss that overflowed.
        with np.errstate(all="ignore"), _one_blas_thread(), progress(runs, title, stream) as show:
            for each in runs:
                network, optimizer = build(each, args.backend, args.threads)
                if saved is not None:
                    restore(args.resume, saved, network, optimizer)
                for _ in train(each, network, data, optimizer):
                    show(each)
                    if args.save:
                        save(args.save, each, network, optimizer)
    except KeyboardInterrupt:
        print("proptim train: interrupted; these epochs are complete", file=sys.stderr)
        code = 1
    runs = [each for each in runs if each.loss]
    print(json.dumps({"results": [each.result() for each in runs]}, indent=2) if args.json else table(runs))
    if args.plot and runs:
        draw(runs, title, args.plot)
    return code


Begun = tuple[list[Run], Samples, dict[str, Any] | None]


def _begin(names: list[str], args: argparse.Namespace) -> Begun:
    seed = args.seed or 0
    data = load_samples(args.data, seed)
    sizes = [data.x.shape[1], *(args.hidden or HIDDEN), data.classes]
    runs = [
        Run(
            name=name,
            seed=seed,
            sizes=sizes,
            batch_size=len(data.y) if full_batch(name) else args.batch_size or BATCH_SIZE,
            digest=data.digest,
            epochs=args.epochs or EPOCHS,
            lr=args.lr,
        )
        for name in names
    ]
    return runs, data, None


def _resume(args: argparse.Namespace) -> Begun:
    run, saved = load(args.resume)
    for option, held, given in (
        ("--optimizer", [run.name], args.optimizer),
        ("--seed", run.seed, args.seed),
        ("--hidden", run.sizes[1:-1], args.hidden),
        ("--batch-size", run.batch_size, args.batch_size),
        ("--lr", run.lr, args.lr),
    ):
        if given not in (None, held):
            raise ValueError(f"{args.resume} holds a run with {option} {_text(held)}, not {_text(given)}; leave it out")
    run.epochs = args.epochs or run.epochs
    if run.epochs <= len(run.loss):
        raise ValueError(f"{args.resume} has had its {len(run.loss)} epochs; give more --epochs to go on")
    data = load_samples(args.data, run.seed)
    if (run.digest, run.sizes[0], run.sizes[-1]) != (data.digest, data.x.shape[1], data.classes):
        raise ValueError(f"{args.resume} holds a run on other data; give the same --data as then")
    return [run], data, saved


def _one_blas_thread() -> AbstractContextManager[Any]:
    """Matrices of this size gain nothing by a second thread, and on a busy machine wait long for it."""
    try:
        threadpoolctl: Any = importlib.import_module("threadpoolctl")  # comes with scikit-learn
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[Any] = threadpoolctl.threadpool_limits(1, "blas")
    return limits


def _names(text: str) -> list[str]:
    names = [each for name in text.split(",") for each in ALIASES.get(name, [name])]
    for name in names:
        if name not in OPTIMIZERS:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown; expected {_text(OPTIMIZERS, ', ')}, or all")
    return names


def _sizes(text: str) -> list[int]:
    return [_positive(size) for size in text.split(",")]


def _positive(text: str) -> int:
    return _whole(text, 1)


def _seed(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return number


def _text(value: Any, separator: str = ",") -> str:
    return separator.join(map(str, value)) if isinstance(value, (list, dict)) else str(value)
