"""One model on many processes: any optimizer, with its state divided among the ranks of an MPI communicator.

Parameters are on every rank; state is divided into runs of whole blocks of the sum of squares. Each rank receives the
gradients of its part from all ranks, adds them in the order of ranks, steps its part, and all ranks receive the
parameters of all parts. So the result has the bits of one process that is given that sum.

A call of one rank is a call of all: `_mpi_team` has how they agree, `_mpi_exchange` what goes between them.
"""

from __future__ import annotations

import math
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import compress, pairwise
from os import PathLike
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from proptim import _backend, _numpy, _state, checkpoint
from proptim._arrays import BFLOAT16, Array, as_array, byte_bounds, check_disjoint, name_of, tell_torch
from proptim._averages import Averaged, Found
from proptim._formats import (
    PAIRS,
    QUANTA,
    Int8,
    Mastered,
    Squares8,
    Steps8,
    first_nonfinite,
    numbers,
    planes,
    shown,
)
from proptim._interrupts import Store, commit
from proptim._mpi_exchange import BYTE, Exchange, bytes_of, cuts_of, flat_of, pieces
from proptim._mpi_team import MPI, Team, digest_of, team_of
from proptim._parameters import Clock, Parameter, Part, at_step, is_on, parse_groups, state_arrays
from proptim._prepared import Prepared, as_loss, as_norm
from proptim._rows import Rows
from proptim._stepper import Stepper, Tally, copied
from proptim._storage import AVERAGE, CODE, SCALE, find_codes, taken_compact
from proptim.optimizer import Optimizer
from proptim.sgd import SGD

__all__ = ["Sharded"]


# The optimizer of a part ----------------------------------------------------------------------------------------------


def _cut(array: Any, where: slice) -> Any:
    """A run of an array in whatever format; None as it is."""
    if isinstance(array, (Int8, Squares8)):  # it begins with a block, as every part does
        return type(array)(array.code[where], array.scale[slice(*map(_blocks, (where.start, where.stop)))])
    if isinstance(array, Steps8):
        return array._replace(code=array.code[where])
    if isinstance(array, PAIRS):
        return type(array)(*(plane[where] for plane in array))
    return None if array is None else array[where]


def _blocks(elements: int) -> int:
    """The number of blocks of state in one byte that so many elements have."""
    return -(-elements // QUANTA)


def _width(param: Any) -> int:
    """Real numbers of an element of a part."""
    return math.prod(planes(param)[0].shape[1:])


class _Plan(_numpy.Plan):
    """The plan of a part: one plan of the backend for each bucket, stepped while others are being sent."""

    def __init__(self, stepper: _Stepper, segments: list[Any]) -> None:
        super().__init__(stepper.rule, segments, *stepper.threads, stepper.claim, stepper.changes)
        self.stepper, self.exchange = stepper, stepper.exchange
        plan_type = _backend.plan_type(stepper.settings["backend"])
        self.plans = []
        for runs in self.exchange.mine:
            cut = [tuple(_cut(array, self.exchange.within(run)) for array in segments[run.i]) for run in runs]
            self.plans.append(plan_type(stepper.rule, cut, *stepper.threads))
            self.plans[-1].locate([(run.i, run.begin * _width(segments[run.i][0])) for run in runs])

    def bind(self, grads: Sequence[Any], given: list[Any] | None = None, arrays: list[Any] | None = None) -> None:
        super().bind(grads, given, arrays)
        for runs, plan in zip(self.exchange.mine, self.plans, strict=True):
            of = [(grads[run.i], self.exchange.within(run)) for run in runs]
            plan.bind([None if grad is None else grad[where] for grad, where in of])

    def assign(self, row_of: list[int], clocks: list[Clock], cohorts: Any = None) -> None:
        super().assign(row_of, clocks, cohorts)
        for runs, plan in zip(self.exchange.mine, self.plans, strict=True):
            plan.assign([self.row_of[run.i] for run in runs], clocks)

    def reduce(self, among: Sequence[int] | None = None) -> tuple[float, bool]:
        """Sum of squares of the added gradients of all ranks, and whether all are finite."""
        exchange, stepper = self.exchange, self.stepper
        with exchange.team.committed():
            exchange.add_all()
            return exchange.sum_of_squares(stepper.settings["backend"], stepper.threads[0])

    def step(self, rows: Sequence[Sequence[float] | None], clocks: list[Clock], tally: Any = None) -> None:
        """A step of all parameters: this rank steps those of its part and receives the others."""
        exchange, stepper = self.exchange, self.stepper
        stepper.agree(phase=2)
        with exchange.team.committed():
            asked = exchange.ask(0) if exchange.rounds and not exchange.summed else []
            given: list[Any] = []
            for k in range(exchange.rounds):
                if not exchange.summed:
                    after = exchange.ask(k + 1) if k + 1 < exchange.rounds else []
                    exchange.add(k, asked)
                    asked = after
                if k < len(self.plans):
                    begin = perf_counter()
                    self.plans[k].seed = self.seed
                    self.plans[k].step(rows, clocks)
                    exchange.stepped += perf_counter() - begin
                before, given = given, exchange.give(k)
                if k:
                    exchange.take(k - 1, before)
            if exchange.rounds:
                exchange.take(exchange.rounds - 1, given)
            counts = {"clocks": clocks, "tally": tally, "begun": set(), "steps": self.steps + 1}
            stepped = compress(stepper.whole.parameters, exchange.moves)
            commit(copied(stepped), [(self, name, value) for name, value in counts.items()])


class _Stepper(Stepper):
    """Steps a part as `Stepper` steps a whole: it looks at the gradients of all ranks, and asks the others first."""

    exchange: Exchange

    def __init__(self, whole: Stepper, of_part: Stepper, exchange: Exchange) -> None:
        vars(self).update(vars(of_part))
        self.whole, self.exchange = whole, exchange
        most, auto = self.threads
        if auto and not os.environ.get("PROPTIM_NUM_THREADS") and _backend._threads is None:  # no number was given
            self.threads = min(most, exchange.team.threads), True
        self.known: tuple[Any, list[str], int] = (None, [], 0)
        """What the digest was taken of, and the digest."""
        self.asked: Prepared | None = None
        self.norm: float | None = None
        """The norm that the caller of this step has given."""
        vars(self).update(self._made(self.groups, self.parameters, self.planned))

    def _new_plan(self, segments: list[Any]) -> Any:
        return _Plan(self, segments)

    def row_steps(self, p: Parameter, step: int) -> dict[str, Array]:
        """Nothing: gradients are arrays here, so no row misses a step."""
        return {}

    def bind_sums(self, sums: list[Any]) -> None:
        """Step with these gradients of the part; None for a parameter that is left out."""
        self._take(sums)

    def facts(self, prepared: Prepared | None = None) -> dict[str, str]:
        """What has to be the same on all ranks at a step: names, and the values on this rank."""
        steps = self.plan.steps
        told = {"the number of steps": str(steps)}
        for i, group in enumerate(self.groups):
            now = None if prepared is None else prepared.values[id(group)]
            known = None if now is None else {**now.h, AVERAGE: now.ema}
            for key in (*self.rule.hyper, AVERAGE):
                told[f"{key} of group {i}"] = repr(at_step(group[key], steps) if known is None else known[key])
        for key, value in self.settings.items():
            if key not in ("backend", "threads"):  # the bits are the same
                told[key] = repr(dict(sorted(value.items())) if isinstance(value, Mapping) else at_step(value, steps))
        for p, grad in zip(self.whole.parameters, self.whole.plan.grads, strict=True):
            told[p.grad_label] = "None" if grad is None else "an array"
            if grad is not None:
                told[f"the dtype of {p.grad_label}"] = name_of(grad.dtype)
        told["grad_norm"] = repr(self.norm)
        return told

    def agree(self, phase: int) -> None:
        """Raise an error unless all ranks make the same step."""
        prepared, steps = self.asked, self.plan.steps
        dtypes = ["" if grad is None else grad.dtype.char for grad in self.whole.plan.grads]
        if self.known[:2] != (prepared, dtypes):
            changing = {"the number of steps": "", "grad_norm": ""}
            self.known = (prepared, dtypes, digest_of({**self.facts(prepared), **changing}))
        digest = self.known[2] ^ steps % 2**62
        if self.norm is not None:
            digest ^= digest_of({"grad_norm": repr(self.norm)})
        self.exchange.team.agree(lambda: self.facts(prepared), digest, phase=phase)

    def _factor(self, prepared: Prepared, only: int = -1, norm: float | None = None) -> tuple[float | None, Tally]:
        self.asked = prepared
        if not prepared.blind:
            self.agree(phase=1)
        return super()._factor(prepared, only, norm)

    def _refuse(self, prepared: Prepared, only: int, norm: float | None) -> None:
        try:
            super()._refuse(prepared, only, norm)
        except FloatingPointError as error:  # all ranks have seen the same
            self.exchange.team.told = error
            raise

    def _nonfinite(self, grads: list[tuple[Parameter, Array]], norm: float | None) -> str:
        """Where a gradient of a rank is not finite, or else where their sum is not, or the norm that was given."""
        team, expected = self.exchange.team, "expected finite gradients"
        own = self.whole.bound()
        found = next(((p, g, at) for p, g in own if (at := first_nonfinite(g)) is not None), None)
        told = "" if found is None else f"{found[0].grad_label} is {numbers(found[1][found[2]])} at index {found[2]}"
        for rank, each in enumerate(team.comm.allgather(told)):
            if each:
                return f"{each}{f' on rank {rank}' if team.size > 1 else ''}; {expected}"
        if norm is not None and not self.exchange.summed:
            return f"grad_norm is {self.norm}; {expected}"
        places = {id(p): i for i, p in enumerate(self.parameters)}
        sums = ((places[id(p)], p, g) for p, g in grads)
        bad = next(((i, p, g, where) for i, p, g in sums if (where := first_nonfinite(g, p.real)) is not None), None)
        first = (len(places), 0, "")
        if bad is not None:
            i, p, grad, where = bad
            whole, place = self.whole.parameters[i], where[0] + self.exchange.own(i)[0]
            index = tuple(map(int, np.unravel_index(place, whole.array.shape)))
            told = f"the sum over all ranks of {whole.grad_label} is {numbers(grad[where], p.real)} at index {index}"
            first = (i, place, told)
        return f"{min(team.comm.allgather(first))[2]}; {expected}"


def _handed(part: Array) -> Any:
    """A part as an optimizer takes it: bfloat16 under the dtype of ml_dtypes, or else of torch, whose tensor it was."""
    named = shown(part)
    if named.dtype != BFLOAT16:
        return named
    torch = sys.modules["torch"]
    return torch.from_numpy(part.view(np.int16)).view(torch.bfloat16)


class _Divided(NamedTuple):
    """An array in a state_dict that is divided among the ranks."""

    i: int
    """The number of the parameter."""
    name: str
    part: Array
    shape: tuple[int, ...]
    """The shape of the whole; complex numbers of 16 bits are pairs."""
    cuts: list[int]
    """Where the part of each rank begins, and where the last one ends."""


class _Averaged(Averaged):
    """`Averaged` on all ranks: each puts the averages of its part in place, and sends them to the others.

    Each puts all weights back by itself, so that a block can end on one rank with an exception.
    """

    def __init__(self, sharded: Sharded) -> None:
        super().__init__(sharded._claim, sharded._find_averages)
        self.sharded = sharded

    def begin(self) -> None:
        with self.sharded._team.together("averaged", self.sharded._number):
            super().begin()

    def swap(self, found: Sequence[Store], back: list[Store], tensors: list[tuple[str, Any, Any, Array]]) -> None:
        sharded = self.sharded
        sharded._team.agree(sharded._facts)
        with sharded._team.committed():
            super().swap(found, back, tensors)
            moves = sharded._averaging()
            sharded._exchange.spread(moves)
            commit(copied(compress(sharded._front._stepper.parameters, moves)))


def _bare(group: Any) -> Any:
    """A group without hyperparameters; any other object unchanged, so that a check can refuse it."""
    return {"params": group["params"]} if isinstance(group, Mapping) and "params" in group else group


class Sharded:
    """Any optimizer on many processes: parameters on every rank, state divided among ranks, the bits of one process.

    Each rank computes gradients of all parameters from its share of the data, and calls `step` with them.

    Parameters
    ----------
    optimizer_class : type
        An optimizer of proptim, such as `proptim.RMSprop`, or a subclass of `proptim.Optimizer` of your own.
    params : sequence or dict of arrays, or sequence of groups
        As for the optimizer, of any dtype that it takes; the same values on all ranks.
    comm : mpi4py.MPI.Intracomm, default MPI.COMM_WORLD
        The ranks that have the model together.
    reduce : {"mean", "sum"}, default "mean"
        What is made of the gradients of all ranks: their sum, added in the order of ranks, or that sum times
        1 / ranks. Those of 16 bits are added in float32, all others in their dtype, which is the same on all ranks.
    **options
        Hyperparameters and options of the optimizer, the same on all ranks except `backend`, `threads`, `grads` and
        `publish`. Copies are of whole parameters, on each rank that has arrays for them.

    Attributes
    ----------
    state : dict of dict
        As of the optimizer, but of this rank's part: of each parameter the run of elements, in C order, that is its.
    ema : dict of arrays
        As of the optimizer, but of this rank's part, as `state`. `averaged` has whole averages.
    traffic : dict
        Bytes sent and received by this rank, and seconds that it waited for others and stepped.
    param_groups, defaults, steps, skipped, grad_norm and all hyperparameters and options
        As in the optimizer, and set in the same way; if one is set on one rank only, the next step is an error.

    Raises
    ------
    ValueError, TypeError
        As by the optimizer, on all ranks if on one; and if ranks differ in shapes, dtypes, names, values or options.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> from mpi4py import MPI
    >>> from proptim.mpi import Sharded
    >>> w = np.ones(3)
    >>> opt = Sharded(proptim.SGD, [w], MPI.COMM_SELF, lr=0.5)  # COMM_WORLD, which is the default, has all ranks
    >>> opt.step([np.ones(3)])
    >>> w
    array([0.5, 0.5, 0.5])

    Notes
    -----
    With g the sum over ranks, in their order, the parameters after a step have the bits that
    ``optimizer_class(params, **options, grad_scale=1 / ranks).step(g)`` leaves in one process. State is shared out in
    runs of whole blocks of 4,096 elements, counted array by array; each rank has 1 / ranks of it. State in one
    byte has a scale for 256 elements, which never lie on two ranks, if the whole array has 4,096 elements or more.

    Every method but `zero_grad` is called by all ranks, in the same order; `averaged` as its block begins. A call that
    one rank refuses is refused by all, and has changed nothing. `loss` is that of the rank; losses are added and
    averaged as gradients are.

    An exception that nothing catches, on any rank, ends all ranks: importing this module sets `sys.excepthook` where
    there is more than one rank. A rank that ends its program is told to those that make a call, also their first on
    COMM_WORLD.

    torch's ZeroRedundancyOptimizer divides whole tensors, and adds in an order that the library chooses.

    References
    ----------
    .. [1] Rajbhandari, Rasley, Ruwase & He, "ZeRO: Memory optimizations toward training trillion parameter models", SC
       2020: its stage 1.
    """

    _claim: Any
    """Held by each call, for the calls of all ranks are made one after the other."""
    _inner: Optimizer
    _front: Optimizer
    _team: Team
    _exchange: Exchange
    _stepper: _Stepper

    def __init__(
        self,
        optimizer_class: type[Optimizer],
        params: Any,
        comm: MPI.Intracomm = MPI.COMM_WORLD,
        reduce: str = "mean",
        **options: Any,
    ) -> None:
        team = self._team = team_of(comm)
        team.made += 1
        self._number = team.made
        backend: Any = "numpy" if _backend.missing_core else "c"  # what needs it makes no steps
        self._claim = _backend.new_claim(backend)
        with self._together("Sharded"):
            given: Any = optimizer_class
            if not (isinstance(given, type) and issubclass(given, Optimizer)):
                raise TypeError(
                    f"optimizer_class is {optimizer_class!r:.80}; expected a class of optimizers: proptim.RMSprop"
                )
            if reduce not in ("mean", "sum"):
                raise ValueError(f"Invalid reduce: {reduce!r} (expected 'mean' or 'sum')")
            self._reduce = reduce
            grads, publish = options.pop("grads", None), options.pop("publish", None)
            groups = parse_groups(params)
            # It makes no steps: it holds parameters and gradients as the user passed them, and checks them.
            of_gradients = {key: options[key] for key in ("zero_grads", "cast_grads") if key in options}
            self._front = SGD([*map(_bare, groups)], lr=0.0, threads=1, backend=backend, master=None, **of_gradients)
            if publish is not None:
                self._front._stepper.have_copies(publish)
            arrays = self._arrays()
            exchange = Exchange(team, arrays, cuts_of(arrays, team.size))
            of_parts = [{**g, "params": p} for g, p in zip(groups, self._parts(exchange), strict=True)]
            self._inner = optimizer_class(of_parts, **options)
            ordinary, front = self._inner._stepper, self._front._stepper
            stepper = _Stepper(front, ordinary, exchange)
            stepper.mean_of = team.size if reduce == "mean" else 1
            self._exchange = exchange
            self._stepper = self._inner._stepper = stepper
            self._show_params()
            if grads is not None:
                front.bind(grads)
            team.agree(lambda: {**self._facts(), **self._values()})
            with team.committed():
                front.publish()

    @contextmanager
    def _together(self, call: str) -> Iterator[None]:
        """Make a call that all ranks make; a second one of this rank at the same time is refused on it alone."""
        with self._claim, self._team.together(call, self._number):
            yield

    def _arrays(self) -> list[Array]:
        """The parameters."""
        return [p.array for p in self._front._stepper.parameters]

    def _parts(self, exchange: Exchange, first: int = 0) -> list[Any]:
        """The parts of the parameters of each group from group number `first` on, by name where they have names."""
        places = {id(p): i for i, p in enumerate(self._front._stepper.parameters)}
        made: list[Any] = []
        for _, members in self._front._members[first:]:
            parts = [Part(_handed(exchange.parts[places[id(p)]]), p.array.size) for p in members]
            named = bool(members) and members[0].name is not None
            made.append(dict(zip([p.name for p in members], parts, strict=True)) if named else parts)
        return made

    def _show_params(self) -> None:
        """Let the groups show the parameters as the user passed them."""
        for ours, given in zip(self._stepper.groups, self._front.param_groups, strict=True):
            ours.data["params"] = given["params"]

    def _facts(self) -> dict[str, str]:
        """What has to be the same on all ranks, including the model."""
        told = {"optimizer_class": type(self._inner).__name__, "reduce": repr(self._reduce)}
        every = self._front._stepper.parameters
        told["the number of parameter groups"] = str(len(self._front.param_groups))
        told["the number of parameters"] = str(len(every))
        groups = {id(group): i for i, group in enumerate(self._front.param_groups)}
        for i, p in enumerate(every):
            told[f"the name of params[{i}]"] = repr(p.name)
            told[f"params[{i}]"] = f"{name_of(p.array.dtype)} of shape {p.array.shape} in group {groups[id(p.group)]}"
        told |= self._stepper.facts()
        for p, clock in zip(every, self._stepper.clocks(), strict=True):
            told[f"the state of {p.label}"] = f"that after {clock}"
        return told

    def _values(self, first: int = 0) -> dict[str, str]:
        """A checksum of the parameters from number `first` on, which are the same on all ranks."""
        told = {}
        for p, flat in list(zip(self._front._stepper.parameters, self._exchange.flats, strict=True))[first:]:
            crc = 0
            for where in pieces(p.array.size):
                crc = zlib.crc32(bytes_of(flat[where]).data, crc)
            told[f"the checksum of the values of {p.label}"] = f"{crc:08x}"
        return told

    # Calls of all ranks ---------------------------------------------------------------------------------------------

    def step(self, grads: Any = None, *, loss: float | None = None, grad_norm: float | None = None) -> None:
        """Step every parameter once, in place, with the gradients of all ranks.

        Parameters
        ----------
        grads : like `params`, optional
            The gradients of this rank; None for a parameter that this step leaves out, on all ranks. They stay bound;
            without `grads` those bound before are read again.
        loss : float, optional
            The loss of this rank, for rules that need it: Rprop's "irprop+".
        grad_norm : float, optional
            The global norm of the gradients of all ranks together, where the caller has it already: of their mean or
            their sum, whichever `reduce` makes, before `grad_scale`; the same on all ranks. It is believed, and not
            measured then, as `Optimizer.step` has it: one that is NaN or infinite says that some gradient is so.

        Raises
        ------
        ValueError, TypeError
            For gradients that do not fit, if every one is None, or for a `grad_norm` that differs between ranks, is
            negative or no number, on all ranks; nothing has changed then.
        FloatingPointError
            As `nonfinite` says, on all ranks; nothing has changed then.
        RuntimeError
            If another rank makes a different call, or has ended its program.
        """
        front, stepper = self._front._stepper, self._stepper
        with self._together("step"):
            before = front.plan.given, front.plan.grads
            try:
                front.see(grads)
                self._see()
                self._exchange.refresh()
                stepper.norm = None if grad_norm is None else as_norm(grad_norm)
                if any(self._inner.needs_loss(group) for group in stepper.groups):
                    loss = self._common_loss(loss)
                steps = stepper.plan.steps
                stepper.step(None, loss, None if stepper.norm is None else stepper.norm * stepper.mean_of)
            except BaseException:
                if front.plan.given is not before[0]:
                    front._rebind(*before)
                raise
            finally:
                stepper.norm = None
            if front.tensors and stepper.plan.steps > steps:  # not where the step was skipped
                tell_torch([given for p, _ in front.bound() for given, _ in p.homes])
            if self.zero_grads:
                commit([(grad, ..., 0) for _, grad in front.bound()])
                tell_torch(front.plan.given)

    def _see(self) -> None:
        """Have the gradients that are bound to the whole as those that are to be sent, and their sums as the part's."""
        front, stepper, exchange = self._front._stepper, self._stepper, self._exchange
        exchange.summed = False
        grads = front.plan.grads
        if grads is exchange.seen:
            return
        for p, grad in front.bound():
            if isinstance(grad, Rows):
                raise TypeError(
                    f"{p.grad_label} has only some rows; expected an array of all, to which the gradients of the other "
                    "ranks are added: fill in zeros"
                )
            if stepper.plan.written.meet(*byte_bounds(grad)):
                check_disjoint([(p.grad_label, grad)], state_arrays(stepper.parameters))
        wanted = exchange.see(grads)
        if any(a is not b for a, b in zip(wanted, stepper.plan.grads, strict=True)):
            stepper.bind_sums(wanted)

    def _common_loss(self, loss: float | None) -> float:
        """The losses of all ranks, added in the order of ranks, and averaged like gradients."""
        stepper = self._stepper
        for group in stepper.groups:
            self._inner.check_loss(group, loss)
        losses = self._team.agree(stepper.facts, digest=0, value=as_loss(loss))
        total = losses[0]
        for each in losses[1:]:
            total += each
        return total / stepper.mean_of

    def step_param(self, key: int | str, grad: Any) -> None:
        """Raises an error: the gradients of all parameters are sent together."""
        raise ValueError("step_param steps one parameter by itself; expected step() with all gradients in proptim.mpi")

    def watch(self, every: int = 1) -> Any:
        """Raises an error: only the arrays of one process can be watched."""
        raise ValueError("watch looks at the steps of one process; expected grad_norm and state in proptim.mpi")

    def zero_grad(self) -> None:
        """Set the gradients of this rank that are bound, or were last passed, to zero."""
        with self._claim:
            self._front.zero_grad()

    def reset(self, *keys: int | str) -> None:
        """Reset state and counts: see `Optimizer.reset`."""
        with self._together("reset"):
            self._team.agree(lambda: {"the keys": repr(keys)})
            self._exchange.refresh()  # averages begin with the weights
            self._inner.reset(*keys)

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group of parameters, which is divided by itself: see `Optimizer.add_param_group`."""
        team, stepper, old = self._team, self._stepper, self._exchange
        count = len(self._front.param_groups)
        with self._together("add_param_group"):
            self._front.add_param_group(_bare(param_group))
            try:
                arrays = self._arrays()
                cuts = old.cuts + cuts_of(arrays[len(old.cuts) :], team.size)
                self._take_exchange(Exchange(team, arrays, cuts, old))
                (part,) = self._parts(self._exchange, count)
                self._inner.add_param_group({**param_group, "params": part})
                self._show_params()
                team.agree(lambda: {**self._facts(), **self._values(len(old.cuts))})
            except BaseException:
                self._front.remove_param_group(count)
                self._take_exchange(old)
                if len(stepper.groups) > count:
                    stepper.remove_group(count)
                raise

    def remove_param_group(self, index: int) -> None:
        """Remove a group of parameters with their state: see `Optimizer.remove_param_group`."""
        with self._together("remove_param_group"):
            self._team.agree(lambda: {"index": repr(index)})
            every, old = self._front._stepper.parameters, self._exchange
            self._front.remove_param_group(index)
            left = {id(p.array) for p in self._front._stepper.parameters}
            cuts = [cut for p, cut in zip(every, old.cuts, strict=True) if id(p.array) in left]
            self._take_exchange(Exchange(self._team, self._arrays(), cuts, old))
            self._stepper.remove_group(index)
            self._show_params()

    def _take_exchange(self, exchange: Exchange) -> None:
        self._exchange = self._stepper.exchange = exchange

    # Averages of the weights ------------------------------------------------------------------------------------------

    def averaged(self) -> Averaged:
        """Have the averages of the weights in their place on all ranks, for as long as the block of this `with` runs.

        All ranks begin the block together, and have the averages of all parameters then, not of their parts alone.
        Each puts its weights back at the end of its block by itself, also after an exception on it alone. Otherwise it
        is as `Optimizer.averaged`.

        Returns
        -------
        context manager
            Within its block every other call raises RuntimeError.

        Raises
        ------
        ValueError
            If no average is kept, or a tensor of torch has been given other memory, on all ranks; nothing has changed
            then.
        RuntimeError
            If another rank makes a different call, and within another such block.

        Examples
        --------
        >>> import numpy as np, proptim
        >>> from mpi4py import MPI
        >>> from proptim.mpi import Sharded
        >>> w = np.array([1.0])
        >>> opt = Sharded(proptim.SGD, [w], MPI.COMM_SELF, lr=0.5, ema=0.75)
        >>> opt.step([np.array([1.0])])
        >>> with opt.averaged():
        ...     print(w)
        [0.875]
        >>> w
        array([0.5])
        """
        return _Averaged(self)

    def _find_averages(self) -> Found:
        self._exchange.refresh()
        found, _, beside = self._stepper.averages()
        kept: list[tuple[Array, str, Any]] = []
        both = zip(self._front._stepper.parameters, self._stepper.parameters, strict=True)
        moves = self._averaging()
        others = [
            plane
            for p, move in zip(self._front._stepper.parameters, moves, strict=True)
            if not move
            for plane in planes(p.stored)
        ]
        for whole, part in compress(both, moves):
            whole.check_home()
            kept += whole.held
            kept += [] if part.plane is None else [(part.plane, whole.label, None)]
        return found, kept, [*beside, *others]

    def _averaging(self) -> list[bool]:
        """Of which parameters the averages are put in place."""
        averaging = set(map(id, self._stepper.averaging()))
        return [id(p) in averaging for p in self._stepper.parameters]

    # State as a whole -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state of all ranks and of the hyperparameters: see `Optimizer.state_dict`.

        It is complete on every rank; `save` needs less memory.
        """
        team, exchange = self._team, self._exchange
        with self._together("state_dict"):
            exchange.refresh()
            saved = self._inner.state_dict()
            every = [(of, np.empty(of.shape, of.part.dtype)) for of in self._divided(saved)]
            team.agree(self._facts)
            with team.committed():
                for of, whole in every:
                    flat = whole.reshape(-1, *of.part.shape[1:])
                    for rank, (begin, end) in enumerate(pairwise(of.cuts)):
                        run = flat[begin:end]
                        if rank == team.rank:
                            run[...] = of.part
                        for where in pieces(run.nbytes):
                            team.comm.Bcast([bytes_of(run)[where], BYTE], rank)
            for of, whole in every:
                saved["state"][of.i][of.name] = whole
            return saved

    def _divided(self, saved: Mapping[str, Any]) -> Iterable[_Divided]:
        """The arrays in the state_dict of this rank's part, of which other ranks have other parts."""
        for i, entry in saved["state"].items():
            cuts, shape = self._exchange.cuts[i], self._exchange.arrays[i].shape
            for name, part in entry.items():
                if not isinstance(part, np.ndarray):
                    continue
                array = name.removesuffix(SCALE)
                if array == name or array + CODE not in entry:
                    yield _Divided(i, name, part, (*shape, *part.shape[1:]), cuts)
                elif self._inner.in_one_byte(array) is not Steps8:  # whose grid is that of all
                    of_blocks = [*map(_blocks, cuts)]
                    yield _Divided(i, name, part, (of_blocks[-1],), of_blocks)

    @property
    def state(self) -> Mapping[int | str, Mapping[str, Any]]:
        """The state of this rank's part: see `Optimizer.state`."""
        self._exchange.refresh()
        return self._inner.state

    def load_state_dict(self, state_dict: Mapping[str, Any], *, cast: bool = False) -> None:
        """Load the state and hyperparameters of an optimizer, sharded or not: see `Optimizer.load_state_dict`."""
        with self._together("load_state_dict"):
            self._load(state_dict, cast)

    def _load(self, saved: Any, cast: bool) -> None:
        stepper, exchange = self._stepper, self._exchange
        before, data = dict(vars(stepper)), [(group, group.data) for group in stepper.groups]
        exchange.refresh()
        rounded = [isinstance(p.stored, Mastered) for p in stepper.parameters]
        """Which weights are set to what their masters round to."""
        weights = [(p.array, ..., p.array.copy()) for p in compress(stepper.parameters, rounded)]
        try:
            self._inner.load_state_dict(self._localized(saved), cast=cast)
            self._show_params()
            self._team.agree(self._facts)
        except BaseException:
            vars(stepper).update(before)
            commit(weights, [s for group, items in data for s in [(group, "data", items), *group.changed()]])
            raise
        with self._team.committed():
            if any(rounded):
                exchange.spread(rounded)
            self._front._stepper.publish()

    def _localized(self, saved: Any) -> Any:
        """A state_dict with this rank's part of every array; any other object unchanged, for a check to refuse."""
        every = self._front._stepper.parameters
        try:
            keys = [key for group in saved["param_groups"] for key in group["params"]]
            state = dict(saved["state"])
        except (TypeError, KeyError, ValueError):
            return saved
        if len(keys) != len(every):
            return saved
        for i, (key, p) in enumerate(zip(keys, every, strict=True)):
            if not isinstance(state.get(key), Mapping):
                continue
            entry, label = dict(state[key]), f"state {key!r} of state_dict"
            entry.pop("row_step", None)  # all rows have made all steps, also those of the file
            begin, end = self._exchange.own(i)
            compact = self._localized_compact(entry, p, slice(begin, end), label)
            for name, value in entry.items():
                if name not in (*self._inner.clock_start, *compact) and value is not None:
                    array = as_array(value, f"{name!r} in {label}", bits=name != "master")
                    width = 2 if _state.check_shape(array, f"{name!r} in {label}", p) else 1
                    run = flat_of(array)[width * begin : width * end]
                    entry[name] = run.reshape(-1, 2) if width == 2 else run
            state[key] = {**entry, **compact}
        return {**saved, "state": state}

    def _localized_compact(self, entry: Mapping[Any, Any], p: Parameter, own: slice, label: str) -> dict[str, Array]:
        """What is in one byte of the saved state of a parameter: this rank's part of codes and scales."""
        rule, found = type(self._inner), {}
        for name in rule.states:
            if code := find_codes(entry, name, lambda n: f"{n!r} in {label}"):
                labels = (f"{n!r} in {label}" for n in (code, name + SCALE))
                saved = np.asarray(entry[code]), entry.get(name + SCALE)
                whole = taken_compact(rule, None, name, *saved, p.array.shape, *labels)
                found[code], found[name + SCALE] = _cut(whole._replace(code=flat_of(whole.code)), own)
        return found

    def save(self, path: str | PathLike[str]) -> None:
        """Write the state of all ranks to one file, which any number of ranks, or an optimizer alone, can load.

        Rank 0 writes it, and receives the state of the others piece by piece.

        Parameters
        ----------
        path : str or path-like
            The path of rank 0 is used; an existing file is replaced.

        Raises
        ------
        OSError
            If it cannot be written, on all ranks.
        ValueError
            As by `Optimizer.save`, on all ranks.
        """
        team = self._team
        with self._together("save"):
            self._exchange.refresh()
            saved = self._inner.state_dict()
            team.agree(self._facts)
            if team.rank == 0:
                divided = [*self._divided(saved)]
                coming = self._coming(divided)
                for of in divided:
                    dtype = BFLOAT16 if of.part.dtype.name == "bfloat16" else of.part.dtype
                    saved["state"][of.i][of.name] = checkpoint.Streamed(of.shape, dtype, coming)
                try:
                    checkpoint.write(path, saved)
                finally:
                    for _ in coming:  # where it cannot be written the others send all the same
                        pass
            else:
                with team.committed():
                    for of in self._divided(saved):
                        for where in pieces(of.part.nbytes):
                            team.comm.Send([bytes_of(of.part)[where], BYTE], 0, 2)
            team.agree()

    def _coming(self, divided: Iterable[_Divided]) -> Iterator[Array]:
        """The bytes of the state of all ranks, array by array."""
        for of in divided:
            for rank, (begin, end) in enumerate(pairwise(of.cuts)):
                for where in pieces((end - begin) * of.part.itemsize * math.prod(of.part.shape[1:])):
                    if rank == 0:
                        yield bytes_of(of.part)[where]
                    else:
                        piece = np.empty(where.stop - where.start, np.uint8)
                        self._team.comm.Recv([piece, BYTE], rank, 2)
                        yield piece

    def load(self, path: str | PathLike[str], *, cast: bool = False) -> None:
        """`load_state_dict` from a file that `save`, of any optimizer, wrote; every rank reads its part.

        Parameters
        ----------
        path : str or path-like
            The file, on a file system that all ranks see.
        cast : bool, default False
            As `Optimizer.load_state_dict` has it.

        Raises
        ------
        ValueError
            Naming the file, if it is damaged or does not fit; nothing has changed then.
        TypeError
            If `cast` is neither True nor False.
        """
        with self._together("load"):
            is_on("cast", cast)
            saved, seal = checkpoint.read(path, mapped=True), checkpoint.seal_of(path)
            self._team.agree(lambda: {"the checksum of the file": seal})  # where each node has a disk of its own
            try:
                self._load(saved, cast)
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                if error is self._team.told:
                    raise
                raise ValueError(
                    f"{os.fspath(path)} does not fit this {type(self._inner).__name__}: {error}"
                ) from error

    # What is shown --------------------------------------------------------------------------------------------------

    @property
    def zero_grads(self) -> bool:
        """Whether a step sets the gradients of each rank to zero; it can be switched on only if they are writable."""
        return self._front.zero_grads

    @zero_grads.setter
    def zero_grads(self, on: bool) -> None:
        self._front.zero_grads = on
        self._inner.zero_grads = on

    @property
    def traffic(self) -> dict[str, float]:
        """Bytes sent and received by this rank, and seconds that it waited for others and stepped its part."""
        e = self._exchange
        return {"sent": e.sent, "received": e.received, "waited": e.waited, "stepped": e.stepped}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self._inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            setattr(self._inner, name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self._inner)})

    def __reduce__(self) -> Any:
        raise TypeError("a communicator cannot be copied or pickled; expected state_dict() or save() on all ranks")

    def __repr__(self) -> str:
        team, inner = self._team, self._inner
        lines = [
            f"Sharded {type(inner).__name__} (rank {team.rank} of {team.size}, reduce={self._reduce!r}, "
            f"backend={inner.backend!r}, threads={inner.threads!r}, steps={inner.steps}"
        ]
        members = zip(self._front._members, inner._members, strict=True)
        for i, ((_, whole), (group, part)) in enumerate(members):
            count, own = (sum(p.array.size for p in every) for every in (whole, part))
            lines.append(
                f"Parameter Group {i}: {len(whole)} arrays, {count:,} weights, of which {own:,} are stepped here"
            )
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join(lines) + "\n)"
