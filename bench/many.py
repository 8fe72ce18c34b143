"""The cost of each call with 100,000 parameters in 1,000 groups; `python -m proptim.bench.many`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

import proptim


def calls(parameters: int, groups: int) -> list[tuple[str, Callable[[], Any]]]:
    """What is measured, in this order: each call with its name."""
    arrays, fresh = list(np.zeros((parameters, 8), np.float32)), list(np.ones((parameters, 8), np.float32))
    names = [f"p{i}" for i in range(parameters)]
    each = -(-parameters // groups)
    params = [dict(zip(names[i : i + each], arrays[i : i + each], strict=True)) for i in range(0, parameters, each)]
    grads = dict(zip(names, fresh, strict=True))
    made: list[Any] = []

    def construct() -> None:
        made.append(proptim.RMSprop([{"params": members} for members in params], lr=1e-3))

    def add() -> None:
        grown = proptim.RMSprop(params[0], lr=1e-3)
        for members in params[1:]:
            grown.add_param_group({"params": members})

    def turn() -> None:
        for name, grad in grads.items():
            made[0].step_param(name, grad)

    def change() -> None:
        made[0].lr = 1e-4
        made[0].step()

    return [
        ("construct", construct),
        ("add one group after the other", add),
        ("first step, gradients in a dict", lambda: made[0].step(grads)),
        ("step, gradients in a dict", lambda: made[0].step(grads)),
        ("step", lambda: made[0].step()),
        ("step again", lambda: made[0].step()),
        ("set lr and step", change),
        ("first round of step_param", turn),
        ("round of step_param", turn),
        ("state_dict and load_state_dict", lambda: made[0].load_state_dict(made[0].state_dict())),
        ("repr", lambda: repr(made[0])),
    ]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m proptim.bench.many", description=__doc__)
    parser.add_argument("--parameters", type=int, default=100_000)
    parser.add_argument("--groups", type=int, default=1_000)
    args = parser.parse_args()
    print(f"{args.parameters:,} arrays of 8 weights in {args.groups:,} groups, RMSprop, {proptim.backend()}")
    for name, call in calls(args.parameters, args.groups):
        begin = perf_counter()
        call()
        print(f"{name:36}{1e3 * (perf_counter() - begin):10.1f} ms", flush=True)


if __name__ == "__main__":
    main()
