"""How parameters are stepped: the plan and its gradients, the hyperparameters of a step, and its three forms.

The short way is `Plan.repeat`: nothing has changed since the last step but gradients and clocks. `Stepper.step` is the
ordinary way, and `Stepper.step_param` that of one parameter by itself.

All changes are prepared first and then stored by one C call, so that an exception from a signal handler
leaves the state before or after a call; see `_interrupts`. The clocks of parameters are with the cohorts of the plan
while there are any, otherwise with the parameters.

A group that is added changes no plan: that of all parameters is made when it is next asked for, so that a thousand
groups that are added one after the other cost one plan, and not a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from proptim import _backend
from proptim._arrays import (
    Array,
    Occupied,
    Ranges,
    as_array,
    byte_bounds,
    check_disjoint,
    real_view,
    tell_torch,
)
from proptim._averages import NONE_KEPT, Found
from proptim._formats import Mastered, planes, rounded, shown, stores
from proptim._interrupts import Store, commit
from proptim._missed import Missed
from proptim._options import SETTINGS
from proptim._parameters import (
    Changes,
    Clock,
    Group,
    Parameter,
    check_gradient,
    check_gradients,
    copies,
    home_of,
    is_on,
    listed,
    match_copies,
    match_gradients,
    parse_parameters,
    state_arrays,
)
from proptim._prepared import (
    Prepared,
    Settled,
    as_loss,
    as_norm,
    checked_seed,
    clip_factor,
    settle,
    settled,
    take_options,
    wanted,
)
from proptim._rows import Rows, check_zeroed, moves, no_row, real_gradient, told_nonfinite, values_of
from proptim._storage import (
    AVERAGE,
    SCALE,
    check_storage,
    first_average,
    first_plane,
    first_state,
    in_one_byte,
    state_of,
)
from proptim.rule import Rule

if TYPE_CHECKING:
    from proptim._watch import Watch


class Tally(NamedTuple):
    """The counts of an optimizer besides its steps."""

    skipped: int = 0
    in_a_row: int = 0
    norm: float | None = None
    """The norm of the gradients at the last step that computed it or was given it."""


class Cohort(NamedTuple):
    """Parameters of one group that have made the same number of steps, and so share one row of coefficients."""

    group: Group
    active: bool
    members: list[Parameter]


class Cohorts(list[Cohort]):
    """All cohorts of a plan."""

    def __init__(self, cohorts: Iterable[Cohort], row_of: list[int]) -> None:
        super().__init__(cohorts)
        self.row_of = row_of
        """Number of each parameter's cohort."""


def copied(parameters: Iterable[Parameter]) -> list[Store]:
    """What the copies of parameters are to be set to."""
    return [(p.copy, ..., rounded(p.array, p.copy.dtype)) for p in parameters if p.copy is not None]


class Late:
    """The plan of a stepper, made when it is asked for; it is then an attribute like any other."""

    def __get__(self, stepper: Any, owner: type) -> Any:
        vars(stepper).update(stepper._made(stepper.groups, stepper.parameters, stepper.planned))
        return stepper.latest


class Stepper:
    """The parameters of one optimizer, in groups, and everything that is needed to step them."""

    plan: Any = Late()
    """The plan of all parameters. Only calls that hold the claim ask for it, for it may have to be made."""

    def __init__(self, rule: type[Rule], settings: dict[str, Any]) -> None:
        self.rule = rule
        self.settings = settings
        self.mean_of = 1
        """The number of processes over whose gradients a step averages: see `proptim.mpi`."""
        self.changes = Changes()
        self.groups: tuple[Group, ...] = ()
        self.parameters: list[Parameter] = []
        self.members: dict[int, list[Parameter]] = {}
        """id of a group -> its parameters."""
        self.index: dict[str | None, int] = {}
        """Name of a parameter -> its number."""
        self.planned: dict[int, tuple[str, ...]] = {}
        """id of a group -> the state arrays that are in the plan."""
        self.prepared: Prepared | None = None
        self.zeroed: tuple[list[Any], Ranges] | None = None
        """The gradients of `step_param` that are zeroed, and their addresses."""
        self.threads = _backend.thread_count(settings["threads"])
        _backend.plan_type(settings["backend"])
        self.claim = _backend.new_claim(settings["backend"])
        self.real = True
        """Whether no parameter is complex."""
        self.tensors: list[Parameter] = []
        """The parameters that can be given other memory."""
        self.latest: Any = None
        """`plan`, or that of the parameters that there were before groups were added."""
        self.occupied: tuple[Any, Occupied, Ranges] | None = None
        """The memory that steps write and that of the gradients, which are these of `latest`."""
        self.added: set[int] = set()
        """id of each group that was added since gradients were last passed for all parameters."""
        self.missed = Missed(rule)
        self.watch: Watch | None = None
        """What records the steps. While there is one no step is repeated, because it would not be recorded."""

    @classmethod
    def restored(
        cls,
        rule: type[Rule],
        settings: dict[str, Any],
        data: list[tuple[dict[str, Any], frozenset[str]]],
        parameters: list[tuple[Any, ...]],
        planned: list[tuple[str, ...]],
        given: list[Any],
        counts: dict[str, Any],
    ) -> Stepper:
        """A stepper from pickled or copied data. Arrays that are read-only, such as views of a file, are copied."""
        self = cls(rule, settings)
        groups = []
        for items, dtypes in data:
            group = self._group(items)
            group.dtypes = dtypes
            groups.append(group)
        made = []
        for place, name, array, i, clock, state, plane, published in parameters:
            view = as_array(array, f"params{place}")
            if not view.flags.writeable:
                view = view.copy()
                array = shown(view)
            view = view[...]  # as parse_parameters takes it
            state = {key: a if a.flags.writeable else a.copy() for key, a in state.items()}
            if plane is not None and not plane.flags.writeable:
                plane = plane.copy()
            p = Parameter(place, name, array, view, groups[i], clock, state, home_of(array), plane)
            if published is not None:
                if not as_array(published, p.copy_label).flags.writeable:
                    published = shown(as_array(published, p.copy_label).copy())
                match_copies([published], [p])
            made.append(p)
        given_to: dict[int, list[Any]] = {id(group): [] for group in groups}
        for p in made:
            given_to[id(p.group)].append(p.given)
        for group in groups:
            group.data["params"] = tuple(given_to[id(group)])
        arrays = [None if g is None else p.gradient(g) for p, g in zip(made, given, strict=True)]
        names = {id(group): wanted for group, wanted in zip(groups, planned, strict=True)}
        vars(self).update(self._made(tuple(groups), made, names, **counts))
        self.plan.bind([*map(real_gradient, arrays)], list(given), arrays)
        return self

    def _group(self, items: Mapping[str, Any]) -> Group:
        group = Group(items, self.rule, self.changes)
        group.fixed = self.rule.fixed
        if in_one_byte(self.rule, self.settings["state_dtype"]):
            group.fixed |= self.rule.fixed_in_one_byte
        return group

    def set(self, name: str, value: Any) -> None:
        """Set an option of the whole optimizer; ValueError or TypeError for a value that the next step would refuse."""
        take_options({**SETTINGS, name: value}, self.latest.steps)  # the other options are not what is set here
        commit([(self.settings, name, value)], [(self.changes, "now", object())])

    # Groups and parameters: prepared first, then stored -----------------------------------------------------------

    def add_groups(self, given: Iterable[Mapping[str, Any]], defaults: Mapping[str, Any], publish: Any = None) -> None:
        """Add groups of parameters, with arrays that get copies of them; if one is invalid nothing has changed."""
        steps = 0 if self.latest is None else self.latest.steps
        groups: list[Group] = []
        fresh: list[Parameter] = []
        names: dict[str | None, int] = {}
        for each in given:
            if "params" not in each:
                raise ValueError(f'a parameter group has only {sorted(each)}; expected the key "params" too')
            for key in each:
                if key != "params" and key not in defaults and (why := self.rule.refused(key)):
                    raise ValueError(why)
            group = self._group({**defaults, **each})
            if compact := in_one_byte(self.rule, self.settings["state_dtype"]):
                h = self.rule.settled(group.data, steps)
                group.data.update(self.rule.held_in_one_byte(h, group.data, compact))
            start = tuple(self.rule.clock_start.values())
            members = parse_parameters(group, len(self.parameters) + len(fresh), names, self.index, start)
            group.dtypes = frozenset(p.real.name for p in members)
            group.data["params"] = tuple(p.given for p in members)
            groups.append(group)
            fresh += members
        if len({p.name is None for p in (*self.parameters[:1], *fresh)}) > 1:
            raise ValueError("some groups name their parameters and some do not; expected all or none: use dicts")
        storage = self.settings["master"], self.settings["state_dtype"]
        check_storage(self.rule, *storage, [(p.label, p.array.dtype) for p in fresh], beside=bool(self.parameters))
        if publish is not None:
            match_copies(publish, fresh)
        for p in fresh:
            p.plane = first_plane(self.settings["master"], p.array)
        written = [(p.label, p.array) for p in fresh] + copies(fresh)
        occupied = None
        if self.latest is None:
            check_disjoint(written)
        else:
            occupied = self._occupied(written)
        values = {id(group): settled(self.rule, group, steps) for group in groups}
        fresh = [self._grown(p, values[id(p.group)]) for p in fresh]
        if occupied is not None:
            occupied[1].add(state_arrays(fresh))
        self.dissolve()
        members_of: dict[int, list[Parameter]] = {id(group): [] for group in groups}
        for p in fresh:
            members_of[id(p.group)].append(p)
        now: dict[str, Any] = {
            "groups": (*self.groups, *groups),
            "real": self.real and all(p.array.dtype.kind == "f" for p in fresh),
            "prepared": None,
            "occupied": occupied,
        }
        items: list[Store] = [(vars(self), name, value) for name, value in now.items()]
        items += [(self.members, key, members) for key, members in members_of.items()]
        items += [(self.planned, key, each.wanted) for key, each in values.items()]
        items += [(self.index, name, i) for name, i in names.items()]
        items += [(held, slice(len(held), None), more) for held, more in (
            (self.parameters, fresh), (self.tensors, [p for p in fresh if p.homes])
        )]  # fmt: skip
        if self.latest is not None:
            self.latest.forget()
            added = map(self.added.update, [members_of])
            commit(items, (), map(vars(self).pop, ["plan"], [None]), added)
        else:
            commit(items)
            self.plan.forget()

    def _occupied(self, fresh: list[tuple[str, Array]]) -> tuple[Any, Occupied, Ranges]:
        """The memory in use, with that of these arrays too; ValueError if they share some."""
        bound, found = self.latest.grads, self.occupied
        self.occupied = None  # what is refused or interrupted may have come half into it
        if found is None or found[0] is not bound:
            written = [(p.label, p.array) for p in self.parameters] + state_arrays(self.parameters)
            found = bound, Occupied(written), Ranges(values_of(g) for g in bound if g is not None)
        if any(found[2].meet(*byte_bounds(array)) for _, array in fresh):
            check_disjoint(fresh, [(p.grad_label, values_of(g)) for p, g in self.bound()])
        found[1].add(fresh)
        return found

    def remove_group(self, index: int) -> None:
        """Remove a group and its parameters."""
        if isinstance(index, bool) or not hasattr(index, "__index__"):
            raise TypeError(f"{index!r:.80} is no index of a parameter group; expected 0 to {len(self.groups) - 1}")
        index = int(index)
        if not 0 <= index < len(self.groups):
            raise IndexError(f"there is no parameter group {index}; expected 0 to {len(self.groups) - 1}")
        if len(self.groups) == 1:
            raise ValueError("the only parameter group cannot be removed; expected another beside it")
        self.dissolve()
        gone = self.groups[index]
        kept = [i for i, p in enumerate(self.parameters) if p.group is not gone]
        parameters = [
            replace(self.parameters[i], place=f"[{j}]" + self.parameters[i].place.partition("]")[2])
            for j, i in enumerate(kept)
        ]
        groups = tuple(g for g in self.groups if g is not gone)
        planned = {key: names for key, names in self.planned.items() if key != id(gone)}
        made = self._made(groups, parameters, planned, kept)
        self.catch_up(i for i, p in enumerate(self.parameters) if p.group is gone)
        vars(self).update(made)

    def _grown(self, p: Parameter, now: Settled) -> Parameter:
        """A parameter with the state arrays that the hyperparameters need; existing ones stay."""
        missing = [name for name in now.wanted if name not in p.state]
        if not missing:
            return p
        state = dict(p.state)
        for name in missing:
            if name == AVERAGE:
                state[name] = first_average(p.array, p.numbers())
                continue
            state |= first_state(self.rule, now.h, self.settings["state_dtype"], name, p.array, p.size)
        return replace(p, state=state)

    def _made(
        self,
        groups: tuple[Group, ...],
        parameters: list[Parameter],
        planned: dict[int, tuple[str, ...]],
        kept: Sequence[int] | None = None,
        **counts: Any,
    ) -> dict[str, Any]:
        """A plan of these parameters with all that belongs to it: attributes, which `vars(self).update` puts in place.

        Updating a dict runs no code of Python, and so no signal handler in between. The gradients of the plan before
        stay bound: those of parameter number `kept[i]` before are those of the i-th now. `counts` are attributes of the
        plan that are other than before. It has no cohorts: the clocks are with the parameters.
        """
        members: dict[int, list[Parameter]] = {id(group): [] for group in groups}
        for p in parameters:
            members[id(p.group)].append(p)
        segments = [
            (
                p.stored,
                *(state_of(self.rule, p.state, s) if s in planned[id(p.group)] else None for s in self.rule.states),
                *([real_view(p.state[AVERAGE])] if AVERAGE in planned[id(p.group)] else []),
            )
            for p in parameters
        ]
        plan: Any = self._new_plan(segments)
        plan.casts = self.settings["cast_grads"]
        if any({n.removesuffix(SCALE) for n in p.state} - {*planned[id(p.group)]} for p in parameters):
            plan.disjoint = False  # the plan does not know state arrays that are off, which may overlap others
        before = self.latest
        given: list[Any] = []
        grads: list[Any] = []
        plan.tally = Tally()
        self._check_rows(parameters, before)
        if before is not None:
            kept = range(len(before.grads)) if kept is None else kept
            known = [i for i in kept if i < len(before.grads)]  # the others were added since, at the end
            given, grads = [before.given[i] for i in known], [before.grads[i] for i in known]
            numbers = {old: new for new, old in enumerate(kept)}
            plan.steps, plan.tally = before.steps, before.tally
            plan.begun = {numbers[i] for i in before.begun if i in numbers}
        given += [None] * (len(parameters) - len(given))
        grads += [None] * (len(parameters) - len(grads))
        for name, value in counts.items():
            setattr(plan, name, value)
        plan.bind([*map(real_gradient, grads)], given, grads)
        return {
            "groups": groups,
            "parameters": parameters,
            "members": members,
            "index": {p.name: i for i, p in enumerate(parameters) if p.name is not None},
            "planned": planned,
            "real": all(p.array.dtype.kind == "f" for p in parameters),
            "tensors": [p for p in parameters if p.homes],
            "prepared": None,
            "occupied": None,
            "plan": plan,
            "latest": plan,
        }

    def _check_rows(self, parameters: list[Parameter], before: Any) -> None:
        """Raise ValueError if the gradient that is bound of a parameter is of rows, and its state is in blocks."""
        bound = {} if before is None else dict(zip(map(id, self.parameters), before.grads, strict=False))
        for old, p in zip(self.parameters, parameters, strict=False):
            if isinstance(bound.get(id(old)), Rows):
                p.check_rows()

    def _new_plan(self, segments: list[Any]) -> Any:
        """A plan of the backend for these arrays."""
        plan_type = _backend.plan_type(self.settings["backend"])
        return plan_type(self.rule, segments, *self.threads, self.claim, self.changes)

    def _fit(self, values: Mapping[int, Settled]) -> bool:
        """Make a plan with the state arrays that the hyperparameters of these groups need, if this one has others."""
        if all(self.planned[key] == now.wanted for key, now in values.items()):
            return False
        begin = {key for key, now in values.items() if AVERAGE in now.wanted}
        self._check_rows(self.parameters, self.latest)  # before rows catch up, so that nothing has changed then
        self.catch_up(i for i, p in enumerate(self.parameters) if id(p.group) in begin and AVERAGE not in p.state)
        self.dissolve()
        parameters = [self._grown(p, values[id(p.group)]) if id(p.group) in values else p for p in self.parameters]
        planned = {**self.planned, **{key: now.wanted for key, now in values.items()}}
        vars(self).update(self._made(self.groups, parameters, planned))
        return True

    def reset(self, indices: Iterable[int]) -> None:
        """Reset the state of these parameters; if they are all, also the counts of the optimizer."""
        self.dissolve()
        forget = set(indices)
        every = forget.issuperset(range(len(self.parameters)))
        steps = 0 if every else self.latest.steps
        start = tuple(self.rule.clock_start.values())
        groups = {id(p.group): p.group for p in map(self.parameters.__getitem__, forget)}
        values = {key: settled(self.rule, group, steps) for key, group in groups.items()}
        if not every and all(self.planned[key] == now.wanted for key, now in values.items()):
            # A few in place: to make a list of all for each would cost the square of their number in a loop.
            stores: list[Store] = []
            self.catch_up(forget)  # first, because averages begin with the weights
            for i in forget:
                p = self.parameters[i]
                fresh = self._grown(replace(p, state={}), values[id(p.group)])
                stores += [(p, "clock", start), (p, "state", fresh.state), (p, "pins", fresh.pins)]
            self.latest.forget()
            stores += [(self, "prepared", None), (self, "occupied", None)]
            commit((), stores, map(vars(self).pop, ["plan"], [None]))
            return
        values = {id(group): settled(self.rule, group, steps) for group in self.groups}
        self._check_rows(self.parameters, self.latest)
        self.catch_up(forget)
        parameters = [
            self._grown(replace(p, state={}, clock=start) if i in forget else p, values[id(p.group)])
            for i, p in enumerate(self.parameters)
        ]
        counts: dict[str, Any] = {"steps": 0, "tally": Tally(), "begun": set()} if every else {}
        planned = {key: now.wanted for key, now in values.items()}
        vars(self).update(self._made(self.groups, parameters, planned, **counts))

    def load(
        self, parameters: list[Parameter], hyper: list[dict[str, Any]], options: Mapping[str, Any], **counts: Any
    ) -> None:
        """Load states, hyperparameters of all groups, options and counts; nothing if one is illegal."""
        self.dissolve()
        steps = counts["steps"]
        values = {
            id(group): settle(self.rule, data, group.dtypes, steps)
            for group, data in zip(self.groups, hyper, strict=True)
        }
        settings = {**self.settings, **options}
        take_options(settings, steps, self.mean_of)
        # Rows do not catch up first, because the weights may have been loaded already. What they had missed is
        # forgotten, and an average that begins here begins with the weights with which the run goes on.
        parameters = [self._grown(p, values[id(p.group)]) for p in parameters]
        made = self._made(self.groups, parameters, {key: now.wanted for key, now in values.items()}, **counts)
        stores: list[Store] = [
            (self, name, value) for name, value in {**made, "settings": settings, "missed": Missed(self.rule)}.items()
        ]
        for group, data in zip(self.groups, hyper, strict=True):
            stores += [(group, "data", data), *group.changed()]
        # Weights with a float32 master are its rounding; those of 16 bits that are the upper half of it are the user's.
        kept = [p.stored for p in parameters]
        weights = [each.stores(each.master)[0] for each in kept if isinstance(each, Mastered)]
        commit(weights + copied(parameters), stores)
        tell_torch([p.published for p in parameters])

    def publish(self) -> None:
        """Set the copies of parameters."""
        commit(copied(self.parameters))
        tell_torch([p.published for p in self.parameters])

    def have_copies(self, publish: Any) -> None:
        """Take the arrays that get copies of the parameters that there are, and leave them as they are."""
        match_copies(publish, self.parameters)
        check_disjoint([(p.label, p.array) for p in self.parameters] + copies(self.parameters))
        vars(self).update(self._made(self.groups, self.parameters, self.planned))

    def averaging(self) -> list[Parameter]:
        """The parameters whose averages can be put in their place; ValueError if there are none."""
        members = [p for p in self.parameters if AVERAGE in p.state and p.group[AVERAGE] is not None]
        if not members:
            raise ValueError(NONE_KEPT)
        for p in members:
            p.check_home()
        return members

    def averages(self) -> Found:
        """What `averaged` stores, and what it puts back."""
        members = self.averaging()
        found = [store for p in members for store in stores(p.stored, real_view(p.state[AVERAGE]))]
        return found, [each for p in members for each in p.held], self.beside_averages(members)

    def beside_averages(self, members: list[Parameter]) -> list[Array]:
        """The averages of these parameters, and the planes of all others."""
        averaged = set(map(id, members))
        others = [plane for p in self.parameters if id(p) not in averaged for plane in planes(p.stored)]
        return [*(p.state[AVERAGE] for p in members), *others]

    # Gradients ---------------------------------------------------------------------------------------------------

    @property
    def plain(self) -> bool:
        """Whether only dtype, shape and overlap of gradients need checks: if they are real and only read."""
        return self.real and not self.settings["zero_grads"]

    def bind(self, grads: Any) -> None:
        """Check all gradients, then bind them."""
        self._take(match_gradients(grads, self.parameters, [self.members[id(group)] for group in self.groups]))

    def _take(self, given: list[Any]) -> None:
        plan = self.plan
        arrays = [
            old if g is h and not moves(g) else None if g is None else p.gradient(g)
            for p, g, h, old in zip(self.parameters, given, plan.given, plan.grads, strict=True)
        ]
        if self.plain and plan.offer(arrays, given):
            return
        triples = list(zip(self.parameters, arrays, plan.grads, strict=True))
        fresh = [(p, a) for p, a, old in triples if a is not None and a is not old]
        kept = [(p, a) for p, a, old in triples if a is not None and a is old]
        if fresh:
            check_gradients(fresh, kept, self.parameters, self.settings["zero_grads"], self.settings["cast_grads"])
        if any((a is None) != (old is None) for _, a, old in triples):
            self.dissolve()
        if all(map(is_, given, arrays)):
            given = arrays  # so there are no tensors among them
        plan.bind([*map(real_gradient, arrays)], given, arrays)

    def bound(self) -> list[tuple[Parameter, Any]]:
        """The parameters that have a gradient, with it."""
        grads = self.latest.grads  # parameters that were added since have none
        return [(p, g) for p, g in zip(self.parameters, grads, strict=False) if g is not None]

    def zero_grad(self) -> None:
        """Set the gradients that are bound to zero."""
        bound = self.bound()
        for p, grad in bound:
            check_zeroed(grad, p.grad_label)
        commit([(values_of(grad), ..., 0) for _, grad in bound])
        tell_torch(self.latest.given)

    def see(self, grads: Any) -> None:
        """Bind the gradients of this step; without any, check those that are bound."""
        for p in self.tensors:
            p.check_home()
        if grads is None:
            self._see_again()
            self._check_added()
        else:
            if not (self.plain and type(grads) is list and self.plan.offer(grads)):
                self.bind(grads)
            self.added = set()

    def _see_again(self) -> None:
        """Bind gradients again that are tensors and have been given other memory since they were bound."""
        plan = self.plan
        if plan.given is not plan.grads and any(
            moves(g)
            and (isinstance(a, Rows) or home_of(g) != (a.ctypes.data, tuple(s // a.itemsize for s in a.strides)))
            for g, a in zip(plan.given, plan.grads, strict=True)
        ):
            self._take(list(plan.given))

    def _rebind(self, given: list[Any], grads: list[Any]) -> None:
        """Bind these gradients again, after a step with others has failed."""
        self.dissolve()
        self.plan.bind([*map(real_gradient, grads)], given, grads)

    def _sort_rows(self, only: int = -1) -> None:
        """Look at the indices of gradients of rows, which the step then takes as they were; ValueError for a bad one.

        Once for each step: they may have been written to since the last.
        """
        found = self.plan.sort_rows(only)
        if found is not None:
            i, at = found
            p = self.parameters[i]
            raise no_row(self.plan.grads[i], at, p.grad_label, p.array, p.label)

    # Rows that have missed steps ---------------------------------------------------------------------------------

    def catch_up(self, indices: Iterable[int] | None = None) -> None:
        """Make up what the rows of these parameters have missed, by default of all."""
        if not self.missed.tables:
            return
        every, clocks = range(len(self.parameters)) if indices is None else indices, self.clocks()
        flush = is_on("flush_denormals", self.settings["flush_denormals"])
        seed = checked_seed(self.settings["seed"]) if self.settings["rounding"] == "stochastic" else None
        self.missed.catch_up(((i, self.parameters[i], int(clocks[i][0])) for i in every), flush, seed)

    def row_steps(self, p: Parameter, step: int) -> dict[str, Array]:
        """The last step of each row of a parameter that has made so many, as a state shows it; none if it is lazy."""
        if p.group["lazy_rows"] or p.array.ndim == 0:
            return {}
        table = self.missed.tables.get(id(p.array))
        return {"row_step": np.full(len(p.array), step, np.int64) if table is None else table.row_step.copy()}

    # The step ----------------------------------------------------------------------------------------------------

    def step(self, grads: Any, loss: Any, norm: Any = None) -> None:
        """The ordinary form: one step of all parameters that have a gradient."""
        with self.claim:
            plan = self.plan
            self.missed.undo = [], []
            before = dict(vars(self))
            plan.forget()  # until this step has been made: after one that fails there is nothing to repeat
            given, bound, counted = plan.given, plan.grads, (plan.steps, plan.tally)
            try:
                self._step(grads, loss, norm)
            except BaseException:
                if (self.plan.steps, self.plan.tally) == counted:  # refused, and not interrupted after it
                    commit(*self.missed.undo)
                    vars(self).update(before)
                    if plan.given is not given:
                        self._rebind(given, bound)
                raise

    def _step(self, grads: Any, loss: Any, norm: Any) -> None:
        self.see(grads)
        self._sort_rows()
        if loss is not None:
            loss = as_loss(loss)
        if norm is not None:
            norm = as_norm(norm)
        prepared = self.prepared
        if prepared is None or prepared.scheduled or prepared.stamp is not self.changes.now:
            prepared = self.prepare(self.plan.steps)
        if prepared.loses:
            for now in prepared.values.values():
                self.rule.check_loss(now.h, loss)
        if self.plan.cohorts is None and all(g is None for g in self.plan.grads):
            raise ValueError(
                "step() has no gradients: none are passed or bound, or all of them are None; expected at least one: "
                "pass it, step(grads), or bind it with grads= before"
            )
        factor, tally = self._factor(prepared, norm=norm)
        if factor is None:
            return
        if prepared is not self.prepared and self._fit(prepared.values):
            self._sort_rows()  # for the new plan
        plan = self.plan
        if plan.cohorts is None:
            self._gather()
        rows: list[tuple[float, ...] | None] = []
        clocks = []
        values: list[dict[str, Any] | None] = []
        for cohort, clock in zip(plan.cohorts, plan.clocks, strict=True):
            of_group = prepared.values[id(cohort.group)] if cohort.active else None
            row = None
            if of_group is not None:
                row, clock = self._row(of_group, factor, prepared, cohort.group, clock, loss)
            rows.append(row)
            clocks.append(clock)
            values.append(None if of_group is None else of_group.h)
        watch = self.watching()
        if watch is not None and watch.due(plan.steps + 1):
            self.catch_up()
        if self.missed.tables or not prepared.lazy:
            each = enumerate(zip(self.parameters, plan.grads, plan.cohorts.row_of, strict=True))
            work = [(i, p, g, row, int(plan.clocks[k][0])) for i, (p, g, k) in each if (row := rows[k]) is not None]
            self.missed.make_up(prepared, work)
        stepped = [c.members for c in plan.cohorts if c.active] if self.tensors else []
        plan.told = self._told([p for members in stepped for p in members if p.homes])
        looks = [] if watch is None else watch.look(self, plan.steps + 1, prepared.scale, rows)
        plan.seed = prepared.seed
        plan.step(rows, clocks, tally)
        self.prepared = prepared
        if watch is not None and looks:
            self.catch_up()
            watch.keep(looks)
        active = [h for h in values if h is not None]
        repeats = watch is None and not prepared.scheduled and not prepared.loses
        repeats = repeats and prepared.lazy and not self.missed.tables  # which are looked at in every step
        # Only of the stages of `Rule` it is known what the factor of clip_norm does to a row.
        repeats = repeats and (prepared.clip_norm is None or self.rule.stages is Rule.stages)
        if repeats and not any(
            isinstance(a, Rows) and (moves(g) or not prepared.blind)
            for g, a in zip(plan.given, plan.grads, strict=True)
        ):
            homes = [each for p in self.tensors for each in p.homes]
            moving = [(g, home) for g in plan.given if (home := home_of(g)) is not None]
            advancing = None if all(map(self.rule.steady, active)) else self.rule
            # Bound gradients that are tensors are checked in place; steps with other gradients take the ordinary form.
            takes = self.plain and not moving
            clip = None
            if prepared.clip_norm is not None:
                signs = [1.0 if h is None else self.rule.stages(h, 1.0, False, False)[1] for h in values]
                clip = prepared.scale, float(prepared.clip_norm), signs
            plan.remember(prepared.stamp, advancing, values, takes, homes + moving, not prepared.blind, clip)

    def _check_added(self) -> None:
        """Raise ValueError for a parameter that was added after the gradients were bound and has no entry in them."""
        if self.added:
            for p, grad in zip(self.parameters, self.plan.grads, strict=True):
                if grad is None and id(p.group) in self.added:
                    raise ValueError(
                        f"step() has no gradient of {p.label}, which was added after gradients were bound; expected "
                        "one: pass all, step(grads), with None for what is left out"
                    )

    def _told(self, tensors: list[Parameter], only: int | None = None) -> Any:
        """A function that tells torch which tensors a step writes: these parameters, and gradients that are zeroed."""
        written = [given for p in tensors for given, _ in p.homes]
        if self.settings["zero_grads"]:
            grads = self.plan.given if only is None else [self.plan.given[only]]
            written += [g for g in grads if hasattr(g, "data_ptr")]
        return partial(tell_torch, written) if written else None

    def watching(self) -> Watch | None:
        """What records the steps; None once it has been stopped."""
        if self.watch is not None and self.watch.stopped:
            self.watch = None
        return self.watch

    def _row(
        self, now: Settled, factor: float, prepared: Prepared, group: Group, clock: Clock, loss: float | None
    ) -> tuple[tuple[float, ...], Clock]:
        """The checked coefficients of rule and stages at the step after `clock`, and the clock after it."""
        h = now.h
        coefs, clock = self.rule.numbers(h, clock, loss)
        stages = self.rule.stages(h, factor, prepared.zero_grads, prepared.flush, now.share)
        if prepared is not self.prepared or not self.rule.steady(h):  # else they are those of the step before
            asked = (stages[0], prepared.scale, *stages[2:])  # the factor of clip_norm is NaN where a gradient is
            for dtype in group.dtypes:
                self.rule.check_numbers(coefs, asked, dtype)
        return (*coefs, *stages), clock

    def prepare(self, steps: int) -> Prepared:
        """Evaluate and check hyperparameters and options after `steps` completed steps."""
        stamp = self.changes.now  # read first, so that a change in the meantime makes the result out of date
        options = take_options(self.settings, steps, self.mean_of)
        scheduled = any(map(callable, (self.settings["clip_norm"], self.settings["grad_scale"])))
        values = {id(group): settled(self.rule, group, steps) for group in self.groups}
        scheduled = scheduled or any(now.scheduled for now in values.values())
        loses = any(self.rule.needs_loss(now.h) for now in values.values())
        lazy = all(now.lazy for now in values.values())
        return Prepared(stamp, values, scheduled=scheduled, loses=loses, lazy=lazy, **options)

    def step_param(self, key: int | str, grad: Any) -> None:
        """The form for one parameter by itself."""
        with self.claim:
            self.plan.forget()
            self.occupied = None  # which knows the gradients by their list, and this changes one of them in it
            i = self.number(key)
            self.dissolve()
            self.missed.undo = [], []
            before, plan = dict(vars(self)), self.plan
            given, bound, tally, clock = plan.given[i], plan.grads[i], plan.tally, self.parameters[i].clock
            try:
                self._step_param(i, grad)
            except BaseException:
                if self.plan.tally == tally and self.parameters[i].clock is clock:  # refused, as above
                    commit(*self.missed.undo)
                    vars(self).update(before, zeroed=None)
                    if plan.given[i] is not given:
                        plan.bind_one(i, real_gradient(bound), given, bound)
                raise

    def _step_param(self, i: int, grad: Any) -> None:
        p = self.parameters[i]
        if self.settings["clip_norm"] is not None:
            raise ValueError("step_param cannot clip the global norm; expected step() with all gradients")
        if grad is None:
            raise TypeError(f"{p.grad_label} is None; expected an array")
        p.check_home()
        seen = grad is self.plan.given[i] and not moves(grad)
        if not seen and not (self.plain and self.plan.offer_one(i, grad)):
            array = p.gradient(grad)
            if not (self.plain and self.plan.offer_one(i, array, grad)):
                if not self._apart(i, array):
                    kept = [(q, g) for q, g in self.bound() if q is not p]
                    cast = self.settings["cast_grads"]
                    check_gradients([(p, array)], kept, self.parameters, self.settings["zero_grads"], cast)
                self.plan.bind_one(i, real_gradient(array), grad, array)
        self._sort_rows(i)
        begun = self.plan.begun
        begins = not begun or i in begun
        now = self.plan.steps if begins else self.plan.steps - 1  # schedules get the same count during a whole round
        stamp, options = self.changes.now, take_options(self.settings, now, self.mean_of)
        values = settled(self.rule, p.group, now)
        prepared = Prepared(stamp, {id(p.group): values}, scheduled=True, loses=False, lazy=values.lazy, **options)
        self.rule.check_loss(values.h, None)
        factor, tally = self._factor(prepared, i)
        if factor is None:
            return
        if self.planned[id(p.group)] != values.wanted:
            # All groups that need other state arrays at once, because the time of a new plan grows with all parameters.
            others = [g for g in self.groups if wanted(self.rule, g.data) != self.planned[id(g)]]
            self._fit({id(g): settled(self.rule, g, now) for g in others})
            self._sort_rows(i)  # for the new plan
        p = self.parameters[i]
        row, clock = self._row(values, factor, prepared, p.group, p.clock, None)
        watch = self.watching()
        if watch is not None and watch.due(now + 1):
            self.catch_up([i])
        if self.missed.tables or not values.lazy:
            self.missed.make_up(prepared, [(i, p, self.plan.grads[i], row, int(p.clock[0]))])
        self.plan.told = self._told([p] if p.homes else [], i)
        looks = [] if watch is None else watch.look_at(self, now + 1, prepared.scale, [(i, row)])
        self.plan.seed = prepared.seed
        self.plan.step_one(i, row, p, clock, tally)
        if watch is not None and looks:
            self.catch_up([i])
            watch.keep(looks)

    def _apart(self, i: int, grad: Array | Rows) -> bool:
        """Whether a quick check shows that this gradient of parameter i fits, without checking all others each time."""
        p, plan, zero = self.parameters[i], self.plan, self.settings["zero_grads"]
        check_gradient(grad, p.grad_label, p.array, p.label, self.settings["cast_grads"])
        array = values_of(grad)
        if zero:
            check_zeroed(grad, p.grad_label)
        if plan.meets(*byte_bounds(array)):
            return False
        if not zero:
            self.zeroed = None
            return True
        zeroed, self.zeroed = self.zeroed, None
        if zeroed is None or zeroed[0] is not plan.grads:
            zeroed = plan.grads, Ranges(values_of(g) for g in plan.grads if g is not None)
        old = plan.grads[i]
        if not zeroed[1].exchange((0, 0) if old is None else byte_bounds(values_of(old)), byte_bounds(array)):
            return False
        self.zeroed = zeroed
        return True

    def _factor(self, prepared: Prepared, only: int = -1, norm: float | None = None) -> tuple[float | None, Tally]:
        """The factor on all gradients of this step, None if it is skipped; and what is counted after it.

        `norm` is that of the raw gradients if it is known; otherwise it is computed if something needs it.
        """
        tally = self.plan.tally
        after = Tally(tally.skipped, 0, tally.norm) if tally.in_a_row else tally
        if norm is not None:
            finite = math.isfinite(norm)
        elif prepared.blind:
            return prepared.scale, after
        else:
            squares, finite = self.plan.reduce(None if only < 0 else (only,))
            norm = None if prepared.clip_norm is None else math.sqrt(squares)
        if not finite and prepared.nonfinite != "propagate":
            self._refuse(prepared, only, norm)
            return None, tally
        if norm is None:
            return prepared.scale, after
        norm *= abs(prepared.scale)
        factor = 1.0 if prepared.clip_norm is None else clip_factor(norm, prepared.clip_norm)
        return prepared.scale * factor, Tally(tally.skipped, 0, norm)

    def _refuse(self, prepared: Prepared, only: int, norm: float | None) -> None:
        """Skip this step or raise, because a gradient is not finite, here or where the norm was computed."""
        grads = self.bound() if only < 0 else [(self.parameters[only], self.plan.grads[only])]
        message = self._nonfinite(grads, norm)
        if prepared.nonfinite == "raise":
            raise FloatingPointError(message)
        plan, tally = self.plan, self.plan.tally
        if prepared.max_skips is not None and tally.in_a_row >= prepared.max_skips:
            raise FloatingPointError(f"{message}, after {prepared.max_skips} skips in a row (max_skips)")
        after = Tally(tally.skipped + 1, tally.in_a_row + 1, tally.norm)
        if prepared.zero_grads:
            for p, g in grads:
                check_zeroed(g, p.grad_label)
        # an accumulated NaN would stay NaN
        zeros = [(values_of(g), ..., 0) for _, g in grads] if prepared.zero_grads else []
        commit(zeros, [(plan, "tally", after)])
        if zeros:
            tell_torch(plan.given if only < 0 else [plan.given[only]])

    def _nonfinite(self, grads: list[tuple[Parameter, Any]], norm: float | None) -> str:
        """A message that says which gradient is not finite, or that the norm that the caller passed is not."""
        found = filter(None, (told_nonfinite(g, p.grad_label, p.real) for p, g in grads))
        return f"{next(found, f'grad_norm is {norm}')}; expected finite gradients"

    # Clocks ------------------------------------------------------------------------------------------------------

    def _gather(self) -> None:
        """Put parameters with the same coefficients into cohorts, and assign them to the plan."""
        cohorts: dict[tuple[int, Clock, bool], Cohort] = {}
        rows: dict[tuple[int, Clock, bool], int] = {}
        row_of = []
        for p, grad in zip(self.parameters, self.plan.grads, strict=True):
            key = (id(p.group), p.clock, grad is not None)
            cohorts.setdefault(key, Cohort(p.group, grad is not None, [])).members.append(p)
            row_of.append(rows.setdefault(key, len(rows)))
        self.plan.assign(row_of, [clock for _, clock, _ in cohorts], Cohorts(cohorts.values(), row_of))

    def clocks(self) -> list[Clock]:
        """The clock of every parameter."""
        parameters, plan = self.parameters, self.latest
        cohorts, clocks = plan.cohorts, plan.clocks  # read once, because another thread may be stepping
        if cohorts is None:
            return [p.clock for p in parameters]
        of = {id(p): clock for cohort, clock in zip(cohorts, clocks, strict=True) for p in cohort.members}
        return [of.get(id(p), p.clock) for p in parameters]

    def clock(self, i: int) -> Clock:
        """The clock of one parameter."""
        cohorts, clocks = self.latest.cohorts, self.latest.clocks
        if cohorts is None or i >= len(cohorts.row_of):
            return self.parameters[i].clock
        found: Clock = clocks[cohorts.row_of[i]]
        return found

    def dissolve(self) -> None:
        """Move the clocks from the cohorts back to the parameters, which may then differ."""
        if self.latest is not None and self.latest.cohorts is not None:
            commit((), [(p, "clock", clock) for p, clock in zip(self.parameters, self.clocks(), strict=True)])
            self.latest.assign([], [], None)

    def number(self, key: int | str) -> int:
        """The number of a parameter, by that or its name."""
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool) and 0 <= key < len(self.parameters):
            return int(key)
        if isinstance(key, str) and key in self.index:
            return self.index[key]
        known = listed(self.index) if self.index else f"0 to {len(self.parameters) - 1}"
        raise ValueError(f"unknown parameter {key!r}; expected one of: {known}")
