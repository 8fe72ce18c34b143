"""`proptim selftest`: compare every instruction set and backend that runs here with the numpy backend, bit for bit."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

import proptim
from proptim import _backend
from proptim.rprop import ETAS_ON_GRID

OPTIONS = {name: cls.cases for name, cls in proptim.OPTIMIZERS.items()}
"""Option sets that together reach every branch of every rule."""

STAGES: list[dict[str, Any]] = [
    {},
    {
        "weight_decay": 0.1,
        "clip_value": 0.7,
        "clip_norm": 1.0,
        "grad_scale": 0.5,
        "maximize": True,
        "zero_grads": True,
        "flush_denormals": True,
    },
]
"""No stage, and all of them."""
COMPACT: dict[str, Any] = {"state_dtype": "bfloat16", "rounding": "stochastic", "seed": 1}
"""State that is rounded at random."""


def in_one_byte(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an optimizer with all state in one byte that can be."""
    state_dtype = {"momentum_buffer": "int8"} if options.get("centered") else "int8"
    etas = {"etas": ETAS_ON_GRID} if proptim.OPTIMIZERS[name] is proptim.Rprop else {}
    return {**options, "state_dtype": state_dtype, **etas}


# Around one vector of every width (up to 16), the alignment of parts for threads (64), and one block of a step (512
# doubles, 1,024 floats).
SIZES = (0, 1, 3, 4, 5, 8, 15, 16, 17, 31, 33, 63, 65, 511, 513, 1023, 1025, 4099)
STEPS = 6  # RAdam is rectified from the sixth on
SPECIAL = (0.0, -0.0, 1e-30, -1e-41, 1e30)
"""Gradients that a wrong kernel may mishandle: zeros of both signs, tiny, subnormal, large."""


@contextmanager
def isa(name: str) -> Iterator[None]:
    """Plans that are made in this context use one instruction set."""
    from proptim import _core

    before = _core.isa()
    _core.use_isa(name)
    try:
        yield
    finally:
        _core.use_isa(before)


def gradient(rng: np.random.Generator, size: int, dtype: type) -> Any:
    """Normally distributed gradients, with special ones at fixed places."""
    grad: Any = rng.standard_normal(size).astype(dtype)
    for i, value in enumerate(SPECIAL):
        grad[i::19] = value
    return grad


def run_case(name: str, options: dict[str, Any], size: int, dtype: type, **where: Any) -> list[bytes]:
    """The bytes of parameters, gradients and state after a few steps of one case."""
    rng = np.random.default_rng(size)
    params: list[Any] = [rng.standard_normal(size).astype(dtype), rng.standard_normal(7).astype(dtype)]
    opt = proptim.OPTIMIZERS[name](params, **options, **where)
    grads: list[Any] = []
    for loss in (3.0, 2.0, 2.5, 1.0, 1.5, 0.5)[:STEPS]:
        grads = [gradient(rng, p.size, dtype) for p in params]
        opt.step(grads, loss=loss)
    return [a.tobytes() for a in (*params, *grads, *(a for p in opt._stepper.parameters for a in p.state.values()))]


def contestants() -> dict[str, tuple[str, str | None]]:
    """Label -> (backend, instruction set) of everything that runs here, except the numpy backend."""
    found: dict[str, tuple[str, str | None]] = {f"c {name}": ("c", name) for name in _backend.available_isas()}
    if not _backend.available_backends()["numba"]:
        found["numba"] = ("numba", None)
    return found


def add_parser(commands: Any) -> None:
    """Declare `proptim selftest`."""
    parser = commands.add_parser(
        "selftest",
        help="check that every backend here gives the same bits",
        description="Step every optimizer with every instruction set and backend that runs here, and compare "
        "parameters and state with those of the numpy backend, bit for bit. Takes a few seconds.",
        examples=(
            ("proptim selftest", "check a new installation or machine"),
            ("proptim selftest --json", "print the result as JSON"),
        ),
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run all cases on all contestants; exit code 1 if any differs, or if there is none."""
    cases = [
        (name, {**options, **stage}, size, dtype)
        for name in proptim.OPTIMIZERS
        for options in OPTIONS[name]
        for stage in (*STAGES, COMPACT)
        for size in SIZES
        for dtype in (np.float32, np.float64)
    ]
    # Averages of fewer elements than the largest size has are not kept in one byte.
    cases += [
        (name, {**in_one_byte(name, options), **stage}, SIZES[-1], np.float32)
        for name in proptim.OPTIMIZERS
        for options in OPTIONS[name]
        for stage in STAGES
    ]
    others = contestants()
    expected = [run_case(*case, backend="numpy") for case in cases] if others else []
    results = []
    for label, (backend, instructions) in others.items():
        begin = time.perf_counter()
        with isa(instructions) if instructions else warnings.catch_warnings():
            different = [
                case
                for case, bits in zip(cases, expected, strict=True)
                if run_case(*case, backend=backend, threads=3 if backend == "c" else 1) != bits
            ]
        seconds = time.perf_counter() - begin
        results.append({"name": label, "cases": len(cases), "different": len(different), "seconds": seconds})
        if not args.json:
            verdict = "the same bits as numpy" if not different else f"{len(different)} DIFFER from numpy"
            print(f"{label:10} {len(cases)} cases  {verdict}  ({seconds:.1f} s)")
            for name, options, size, dtype in different[:5]:
                print(f"    {name} {options} size={size} {dtype.__name__}")
    missing = {k: v for k, v in _backend.available_backends().items() if v}
    if args.json:
        print(json.dumps({"results": results, "not run": missing}))
    else:
        for backend, reason in missing.items():
            print(f"{backend:10} not run: {reason}")
    if not results:
        raise ImportError(
            "nothing was compared: only the numpy backend runs here; expected a second one: install proptim with a C "
            "compiler at hand and without PROPTIM_PURE, or pip install 'proptim[numba]'"
        )
    return int(any(r["different"] for r in results))
