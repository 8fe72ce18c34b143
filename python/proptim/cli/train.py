"""`proptim train`: train a perceptron on digits or on the user's data, with one optimizer or several to compare."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from proptim._backend import BACKENDS, MAX_THREADS
from proptim._files import check_out
from proptim._prepared import ROUNDINGS
from proptim._storage import SMALLEST_IN_BLOCKS, STATE_DTYPES
from proptim.cli._console import draw, progress, require, table
from proptim.cli._parser import INTERRUPTED, name_ending, overwritten, unknown, whole_number
from proptim.cli._run import (
    OPTIMIZERS,
    PARAM_DTYPES,
    Diverged,
    Run,
    Saved,
    build,
    check,
    full_batch,
    load,
    restore,
    save,
    train,
)
from proptim.cli._samples import TASKS, Samples, load_samples

ALIASES = {"all": list(OPTIMIZERS), "rprop": ["rprop-"]}
DEFAULT = "rmsprop"
HIDDEN = [256, 128]  # 51,000 weights: an epoch takes a moment, and 98 % of the test digits are recognized
BATCH_SIZE = 32
# After these epochs no optimizer improves any more: with mini-batches they are 900 steps, for Rprop 20.
EPOCHS = 20
FORMATS = (".png", ".svg", ".pdf")


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = commands.add_parser(
        "train",
        help="train a perceptron on digits or on data of your own, with one optimizer, several or all",
        description="Train a perceptron of proptim.sklearn on the 1,797 handwritten digits of scikit-learn "
        "or on data of your own, and compare optimizers. Targets that are whole numbers or text are classes; floats "
        "are numbers to predict.",
        examples=(
            ("proptim train", "recognizes 98 % of the digits, in a few seconds"),
            ("proptim train --optimizer rprop,RMSprop --plot curves.png", "compare two optimizers"),
            ("proptim train --data train.csv --target price --save model.npz", "train on your data, save the model"),
            ("proptim train --param-dtype bfloat16", "train weights of 16 bits"),
            ("proptim train --optimizer adam --state-dtype int8", "2 bytes of state for each weight, and not 8"),
            ("proptim train --resume model.npz --data train.csv --target price --epochs 40", "continue that run"),
        ),
    )
    add = parser.add_argument
    add(
        "--optimizer",
        type=_names,
        action="extend",
        metavar="NAME[,NAME]",
        help=f"{_text(OPTIMIZERS, ', ')}, rprop for {ALIASES['rprop'][0]}, or all (default: {DEFAULT})",
    ).words = [*OPTIMIZERS, *ALIASES]
    add(
        "--data",
        metavar="FILE",
        help="an .npz file with x (samples, features) and y (samples,), or a .csv file with a sample in each line",
    )
    add("--test", metavar="FILE", help="samples to test on (default: a fifth of the others, drawn by the seed)")
    add("--target", metavar="COLUMN", help="the column of a .csv file that is y (default: the last)")
    add("--task", choices=TASKS, help="the kind of task (default: regression if y has floats, else classification)")
    add(
        "--hidden",
        type=_sizes,
        metavar="N[,N]",
        help=f"sizes of the hidden layers (default: {_text(HIDDEN)})",
    )
    add("--epochs", type=whole_number(1), metavar="N", help=f"number of passes over the data (default: {EPOCHS})")
    add(
        "--lr",
        type=_rate,
        metavar="RATE",
        help="learning rate, for Rprop the first step size (default: as published; sgd: 0.1)",
    )
    add(
        "--batch-size",
        type=whole_number(1),
        metavar="N",
        help=f"samples in a step; Rprop takes all (default: {BATCH_SIZE})",
    )
    add(
        "--param-dtype",
        choices=PARAM_DTYPES,
        help="dtype of the weights (default: float32). With 16 bits the network computes in float32, and the optimizer "
        "keeps the precision of float32",
    )
    add(
        "--state-dtype",
        choices=STATE_DTYPES,
        help="dtype of the optimizer's state (default: what the network computes in). With int8, arrays of fewer than "
        f"{SMALLEST_IN_BLOCKS} weights keep float32, and Rprop's steps grow by 2**0.25 in place of 1.2",
    )
    add(
        "--rounding",
        choices=ROUNDINGS,
        help=f"how state of 16 bits is rounded, at random by the seed with {ROUNDINGS[1]} (default: {ROUNDINGS[0]})",
    )
    add(
        "--seed",
        type=whole_number(0),
        metavar="N",
        help="for test samples, first weights and order of samples (default: 0)",
    )
    add("--backend", choices=BACKENDS, help="what runs the optimizer (default: the best that is installed)")
    add(
        "--threads",
        type=whole_number(1, MAX_THREADS),
        metavar="N",
        help="threads of the optimizer (default: as many as make it faster)",
    )
    add("--plot", type=name_ending(*FORMATS), metavar="FILE.png", help="draw training loss and test score by epoch")
    add("--save", metavar="FILE.npz", help="save model and run to a file, after every epoch: for predict and --resume")
    add(
        "--resume",
        metavar="FILE.npz",
        help="continue a saved run up to --epochs, bit for bit; give --save too to keep it",
    )
    add("--json", action="store_true", help="print the results and their history by epoch as JSON")
    parser.set_defaults(run=run, usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Train as told; 1 if a run diverged, 130 if interrupted."""
    names = list(dict.fromkeys(args.optimizer or [DEFAULT]))
    if len(names) > 1 and (args.save or args.resume):
        args.usage_error(f"--save and --resume take one optimizer, not {len(names)}: {_text(names, ', ')}")
    if args.batch_size and not args.resume and all(map(full_batch, names)):
        args.usage_error(f"--batch-size is not for {_text(names, ', ')}: Rprop takes all samples at once")
    for option in ("test", "target", "task"):
        if getattr(args, option) and not args.data:
            args.usage_error(f"--{option} is for data of your own: give --data too")
    plot = "--plot", args.plot
    data_files = ("--data", args.data), ("--test", args.test)
    resumed = [("--resume", args.resume)]  # which --save may replace
    if told := overwritten(data_files, [("--save", args.save), plot]) or overwritten(resumed, [plot]):
        args.usage_error(told)
    if args.save:
        check_out(args.save, "--save")
    if args.plot:
        check_out(args.plot, "--plot")
        require("matplotlib.figure", "--plot needs matplotlib", "leave --plot out")
    runs, data, saved = _resume(args) if args.resume else _begin(names, args)
    title = _title(runs[0], data)
    stream = sys.stdout if not args.json else sys.stderr if sys.stderr.isatty() else None
    code = 0
    try:
        # A run whose loss overflows is reported below.
        with np.errstate(all="ignore"), _one_blas_thread(), progress(runs, title, stream) as show:
            for each in runs:
                estimator = build(each, data, args.backend, args.threads)
                if saved is not None:
                    restore(args.resume, saved, estimator, data)
                try:
                    for _ in train(each, estimator, data):
                        show(each)
                        if args.save and not each.diverged:
                            save(args.save, each, estimator, data)
                except Diverged:
                    code = 1
    except KeyboardInterrupt:
        print("proptim train: interrupted; these epochs are complete", file=sys.stderr)
        code = INTERRUPTED
    runs = [each for each in runs if each.loss]
    print(json.dumps({"results": [each.result() for each in runs]}, indent=2) if args.json else table(runs))
    if args.plot and runs:
        draw(runs, title, args.plot)
    if args.resume and not args.save:
        print(
            f"proptim train: the new epochs were not saved, and {args.resume} is unchanged: give --save to keep them",
            file=sys.stderr,
        )
    for each in filter(lambda each: each.diverged, runs):
        mend = f"; {args.save} holds the epoch before" if args.save and len(each.loss) > 1 else ""
        print(
            f"proptim train: {each.name} diverged in epoch {len(each.loss)}: its loss or weights are not finite; "
            f"expected them to stay finite: give an --lr below {each.lr:g}{mend}",
            file=sys.stderr,
        )
    return code


def _title(run: Run, data: Samples) -> str:
    """What all runs have in common."""
    parts = [f"{len(data.y)} training and {len(data.test_y)} test samples", "regression" * (data.classes is None)]
    parts += [f"perceptron {_text(run.sizes, '-')}", run.param_dtype * (run.param_dtype != PARAM_DTYPES[0])]
    parts += [f"state {run.state_dtype}" * (run.state_dtype != run.network_dtype)]
    parts += [f"{run.rounding} rounding" * (run.rounding != ROUNDINGS[0]), f"seed {run.seed}"]
    return ", ".join(filter(None, parts))


Begun = tuple[list[Run], Samples, Saved | None]


def _begin(names: list[str], args: argparse.Namespace) -> Begun:
    runs = [
        Run(
            name=name,
            seed=args.seed or 0,
            batch_size=args.batch_size or BATCH_SIZE,
            epochs=args.epochs or EPOCHS,
            lr=args.lr,
            param_dtype=args.param_dtype or PARAM_DTYPES[0],
            state_dtype=args.state_dtype or "",
            rounding=args.rounding or ROUNDINGS[0],
        )
        for name in names
    ]
    try:
        for each in runs:
            check(each, args.backend)
    except ValueError as error:
        args.usage_error(str(error))
    data = load_samples(args.data, args.seed or 0, args.test, args.task, args.target)
    for each in runs:
        each.sizes = [data.x.shape[1], *(args.hidden or HIDDEN), data.outputs]
        each.digest, each.task = data.digest, data.task
        if each.full_batch:
            each.batch_size = len(data.y)
    return runs, data, None


def _resume(args: argparse.Namespace) -> Begun:
    run, saved = load(args.resume)
    for option, held, given in (
        ("--optimizer", [run.name], args.optimizer),
        ("--seed", run.seed, args.seed),
        ("--task", run.task, args.task),
        ("--param-dtype", run.param_dtype, args.param_dtype),
        ("--state-dtype", run.state_dtype, args.state_dtype),
        ("--rounding", run.rounding, args.rounding),
        ("--hidden", run.sizes[1:-1], args.hidden),
        ("--batch-size", run.batch_size, args.batch_size),
        ("--lr", run.lr, args.lr),
    ):
        if given not in (None, held):
            raise ValueError(f"{args.resume} holds a run with {option} {_text(held)}, not {_text(given)}; leave it out")
    check(run, args.backend)
    run.epochs = args.epochs or run.epochs
    if run.epochs <= len(run.loss):
        raise ValueError(f"{args.resume} has had its {len(run.loss)} epochs; give more --epochs to go on")
    data = load_samples(args.data, run.seed, args.test, run.task, args.target)
    if (run.digest, run.sizes[0], run.sizes[-1]) != (data.digest, data.x.shape[1], data.outputs):
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
    names = []
    for given in text.split(","):
        name = given.lower()  # RMSprop, the class, is rmsprop
        names += ALIASES.get(name, [name])
        if names[-1] not in OPTIMIZERS:
            raise argparse.ArgumentTypeError(
                unknown(given, [*OPTIMIZERS, *ALIASES], f"{_text(OPTIMIZERS, ', ')}, or all")
            )
    return names


def _sizes(text: str) -> list[int]:
    return [*map(whole_number(1), text.split(","))]


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 <= rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number of at least 0")
    return rate


def _text(value: Any, separator: str = ",") -> str:
    return separator.join(map(str, value)) if isinstance(value, (list, dict)) else str(value)
