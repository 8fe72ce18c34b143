"""Golden bits: the results of a fixed run of every optimizer, in <optimizer>.json next to this file.

`python tests/golden/make.py` writes all files with the numpy backend. A changed line is a change of results, which has
to be reviewed and noted in the changelog. The inputs are exact or rounded once, without random numbers.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

import proptim
from proptim.cli import selftest

HERE = Path(__file__).parent
DTYPES = ("float32", "float64")
PERIOD, TIMES = 21, 43
"""The run repeats 21 weights 43 times: each comes to every lane of every vector, to the tail, and into 15 shares."""
TIMES_IN_BLOCKS = 197  # for state in one byte: 16 blocks of 256 weights and a smaller one, each with all 21
LOSSES = (4.0, 3.0, 3.5, 2.0, 2.5, 1.0)  # irprop+ takes back where they rise
SPECIAL = {3: 0.0, 8: -0.0, 11: 2.0**-140, 14: -1e-25, 17: 64.0}  # position -> gradient; subnormal in float32
STAGES: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "clip_value": 0.02, "clip_norm": 8.0, "grad_scale": 0.5, "maximize": True}
    | {"zero_grads": True, "flush_denormals": True},
]


def gradient(step: int) -> list[float]:
    """Gradients of both signs around 1 whose signs change, and special ones at positions that move."""
    grad = [((29 * i + 53 * step) % 127 - 63) / 48 for i in range(PERIOD)]
    for i, value in SPECIAL.items():
        grad[(i + step // 2) % PERIOD] = value
    return grad


def cases(name: str, dtype: str) -> dict[str, dict[str, Any]]:
    """Options of an optimizer by their JSON text: every branch of the rule, with no stage and with all.

    Of float32 also every branch with state in one byte, and with state in bfloat16 that is rounded at random.
    """
    sets = [{**options, **stages} for options in selftest.OPTIONS[name] for stages in STAGES]
    if dtype == "float32":
        sets += [selftest.in_one_byte(name, options) for options in selftest.OPTIONS[name]]
        sets += [{**options, **selftest.COMPACT} for options in selftest.OPTIONS[name]]
    return {json.dumps(options): options for options in sets}


def is_compact(options: dict[str, Any]) -> bool:
    """Whether state is in fewer bytes than the arithmetic."""
    return "state_dtype" in options


def run(name: str, options: dict[str, Any], dtype: str, **where: Any) -> dict[str, Any]:
    """Parameters, gradients and state after the run, whole arrays."""
    times = TIMES_IN_BLOCKS if is_compact(options) else TIMES
    param = np.tile(np.array([((37 * i) % 64 - 32) / 24 for i in range(PERIOD)], dtype), times)
    opt = proptim.OPTIMIZERS[name]([param], **options, **where)
    grad = param
    for step, loss in enumerate(LOSSES):
        grad = np.tile(np.array(gradient(step), dtype), times)
        opt.step([grad], loss=loss)
    kept = opt.state_dict()["state"][0] if is_compact(options) else opt.state[0]
    state = {key: value for key, value in kept.items() if isinstance(value, np.ndarray)}
    return {"param": param, "grad": grad, **state}


def bits(array: Any) -> str:
    """The bits of the first period in hexadecimal."""
    return " ".join(f"{int(b):0{2 * array.itemsize}x}" for b in array[:PERIOD].view(f"u{array.itemsize}"))


def recorded(array: Any, options: dict[str, Any]) -> str:
    """What a file has of an array: the first period, and where not all are like it a checksum of all bits."""
    if not is_compact(options):
        return bits(array)
    whole = zlib.crc32(array.view(f"u{array.itemsize}").astype(f"<u{array.itemsize}").tobytes())
    return f"{bits(array)} crc32 {whole:08x}"


def check_installed() -> None:
    """Check that every rule is installed: the installed package computes the results, not the checkout."""
    lists = (HERE.parents[1] / "csrc" / "include" / "rules.def").read_text(encoding="utf-8")
    missing = set(re.findall(r"^PROPTIM_RULE\((\w+),", lists, re.MULTILINE)) - {
        cls.kernel for cls in proptim.OPTIMIZERS.values()
    }
    if missing:
        raise SystemExit(f"csrc has rules that are not installed: {', '.join(sorted(missing))}; install proptim again")


def main() -> None:
    """Write a file for every optimizer."""
    check_installed()
    for name in proptim.OPTIMIZERS:
        found = {
            dtype: {
                text: {key: recorded(a, options) for key, a in run(name, options, dtype, backend="numpy").items()}
                for text, options in cases(name, dtype).items()
            }
            for dtype in DTYPES
        }
        (HERE / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
