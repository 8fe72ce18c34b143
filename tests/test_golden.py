"""Golden bits: every backend and instruction set, on any number of threads, gives the recorded results of a fixed run.

The other tests compare backends of one checkout with each other; these notice when all of them change.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from golden import make

import proptim

pytestmark = pytest.mark.once  # over all backends and instruction sets by itself


def test_files():
    """One file for every optimizer, and none besides."""
    assert {path.stem for path in make.HERE.glob("*.json")} == proptim.OPTIMIZERS.keys()


@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_golden(backend, name):
    """The bits of the file, in every repetition of the period."""
    known = json.loads((make.HERE / f"{name}.json").read_text())
    assert list(known) == list(make.DTYPES)
    for dtype, sets in known.items():
        cases = make.cases(name, dtype)
        assert list(sets) == list(cases)
        for text, options in cases.items():
            for threads in (1, 2, 3, 7) if backend == "c" else (1,):
                found = make.run(name, options, dtype, backend=backend, threads=threads)
                label = f"{name}({text}), {dtype}, {threads} threads"
                assert {key: make.recorded(array, options) for key, array in found.items()} == sets[text], label
                if make.is_compact(options):
                    continue
                for key, array in found.items():
                    periods = array.view(f"u{array.itemsize}").reshape(make.TIMES, make.PERIOD)
                    assert np.array_equal(periods, np.broadcast_to(periods[0], periods.shape)), f"{key} of {label}"
