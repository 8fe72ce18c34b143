"""A plan for the tensors of an optimizer of torch, which are viewed through NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from proptim._arrays import Array, as_array
from proptim._formats import Compact, Steps, Steps8
from proptim._parameters import Parameter, check_gradients, no_average, no_blocks
from proptim._rows import Rows, no_row, real_gradient
from proptim._storage import AVERAGE
from proptim._torch_tensors import (
    increment_version,
    is_spread,
    local,
    local_gradient,
    plain,
    shards,
    unfit,
    unfit_gradient,
)


@dataclass(eq=False)
class Settled:
    """The checked hyperparameters of a parameter group, and what follows from them."""

    raw: list[Any]
    fixed: bool
    """Whether equal `raw` means equal numbers: not for tensors and lists, which change in place."""
    dtypes: frozenset[str]
    """What the rule computes in."""
    h: dict[str, Any]
    wanted: tuple[str, ...]
    compares: bool
    """Whether the rule needs the loss, to compare it with that of the last step."""
    share: float
    """What comes to the averages of the weights at a step; 0 if there are none."""


@dataclass(eq=False)
class Member:
    """A parameter of a plan."""

    parameter: Parameter
    settled: int
    """Index of its group."""
    state: dict[str, Array | Steps]
    """State arrays by their names in the rule."""
    tensors: dict[str, Any]
    """The part of the state that is in `state`, or will be."""
    clock: list[Any]
    """The numbers of its clock: tensors, or floats if the state does not have them."""
    stale: list[str]
    """Names in what is the state until then that are none of it any more."""
    idle: Array
    """What the plan holds instead of a gradient between steps, so that it keeps no gradient alive."""


def shown(grad: Any) -> Array | Rows:
    """A gradient as an array or rows; TypeError or RuntimeError for what NumPy cannot show as it is."""
    if grad.is_sparse:
        return Rows.of(grad._indices()[0].numpy(), shown(grad._values()))  # type: ignore[arg-type]
    if grad.dtype == torch.bfloat16:
        return as_array(grad, "grad")
    array: Array = grad.numpy()
    return array if grad.data_ptr() else as_array(grad, "grad")  # of no elements, or without memory


class Bound:
    """A plan for the tensors of an optimizer, viewed through NumPy, valid as long as their memory stays the same."""

    def __init__(
        self,
        plan: Any,
        every: list[Member | None],
        params: list[Any],
        sizes: list[int],
        foreign: dict[int, str],
        casts: bool,
    ) -> None:
        """`foreign`: which of `params` are stepped by torch's own code, and why; `casts`: the option `cast_grads`."""
        self.plan, self.casts = plan, casts
        plan.casts = casts
        self.every = every
        self.foreign = foreign
        self.members = [m for m in every if m is not None]
        self.given = [m.parameter.given for m in self.members]
        self.spread = any(map(is_spread, self.given))
        self.tensors = [*self.given, *(t for m in self.members for t in m.tensors.values())]
        self.idle = [m.idle for m in self.members]
        self.pairs = [p.is_complex() for p in self.given]
        self.homes = [m.settled for m in self.members]
        self.blocks = {
            id(m.parameter)
            for m in self.members
            if any(isinstance(a, Compact) and not isinstance(a, Steps8) for a in m.state.values())
        }
        """Those whose state is in blocks, no row of which can be stepped by itself."""
        arrays = ([np.array(n) if isinstance(n, float) else n.detach().numpy() for n in m.clock] for m in self.members)
        self.numbers = list(zip(*arrays, strict=True))
        self.params = [id(p) for p in params]
        self.sizes = sizes
        self.places = self.find()
        self.contents: list[Any] = []
        self.grads: list[Any] = []
        self.arrays: list[Array | Rows] = []

    def find(self) -> list[Any]:
        """The addresses of the arrays, and their layout if it may change."""
        tensors = list(map(local, self.tensors)) if self.spread else self.tensors
        given = tensors[: len(self.given)]
        return [
            *(t.data_ptr() for t in tensors),
            *(t.is_neg() or t.is_conj() for t in tensors),
            *(t.dtype for t in tensors),
            *(p.shape for p in given),
            *(p.stride() for p in given),
        ]

    def list_state(self, state: Mapping[Any, Any]) -> list[Any]:
        """The contents of the state: the identities of tensors, and other values."""
        held = (value for own in map(state.get, self.given) if own for value in own.values())
        return [id(value) if isinstance(value, torch.Tensor) else value for value in held]

    def look(self, groups: list[dict[str, Any]], state: Mapping[Any, Any]) -> bool:
        """False if a new plan would differ. It calls no collective, because other processes may not check."""
        params = [p for group in groups for p in group["params"]]
        grads = [p.grad for p in params]
        if self.params != [id(p) for p in params] or self.sizes != [len(group["params"]) for group in groups]:
            return False
        return (
            all(
                g is None or (m is None) == (i in self.foreign)
                for i, (m, g) in enumerate(zip(self.every, grads, strict=True))
            )
            and not any(unfit_gradient(p, g) for m, p, g in zip(self.every, params, grads, strict=True) if m)
            and all(unfit(params[i]) or unfit_gradient(params[i], grads[i]) == why for i, why in self.foreign.items())
            and self.contents == self.list_state(state)
            and self.places == self.find()
        )

    def same_numbers(self, groups: list[dict[str, Any]]) -> bool:
        """Whether a quick check shows that the hyperparameters are those of the last step."""
        return False

    def repeat(self, loss: float | None) -> bool:
        """Always False: this plan does not repeat steps without checks."""
        return False

    @property
    def steps(self) -> int:
        """Steps made."""
        made: int = self.plan.steps
        return made

    def clocks(self) -> list[tuple[float, ...] | None]:
        """The clock of each member with a gradient; None for one without."""
        clocks = zip(*([n.item() for n in numbers] for numbers in self.numbers), strict=True)
        return [None if g is None else clock for g, clock in zip(self.grads, clocks, strict=True)]

    def counts(self) -> list[list[Any]]:
        """The clock of each member: tensors, or floats if the state does not have them."""
        return [
            [n if isinstance(n, torch.Tensor) else own[i].item() for n, own in zip(m.clock, self.numbers, strict=True)]
            for i, m in enumerate(self.members)
        ]

    def reduce(self) -> tuple[float, bool]:
        """Sum of squares of the gradients, those of all shards among them, and whether all elements are finite."""
        there = [i for i, g in enumerate(self.grads) if g is not None]
        if not self.spread:
            found: tuple[float, bool] = self.plan.reduce(there)
            return found
        totals: dict[Any, list[float]] = {}
        for i, (p, g) in enumerate(zip(self.given, self.grads, strict=True)):
            squares, finite = self.plan.reduce([] if g is None else [i])
            total = totals.setdefault(shards(p), [0.0, 0.0])
            total[0] += squares
            total[1] += not finite
        every = 0.0
        finite = True
        for place, total in totals.items():
            both = torch.tensor(total, dtype=torch.float64, device="cpu" if place is None else place[0].device_type)
            for dimension in place[1] if place is not None else ():
                torch.distributed.all_reduce(both, group=place[0].get_group(dimension))
            every += both[0].item()
            finite = finite and both[1].item() == 0
        return every, finite

    def offer(self, groups: list[dict[str, Any]]) -> None:
        """Bind the gradients to the plan, or raise. Gradients of other placements are redistributed, once in a step."""
        params = [p for group in groups for p in group["params"]]
        own = [(p, p.grad) for m, p in zip(self.every, params, strict=True) if m is not None]
        self.grads = [local_gradient(p, g) for p, g in own] if self.spread else [g for _, g in own]
        if not self._offer():
            self._look_closer()
        if (bad := self.plan.sort_rows()) is not None:
            i, at = bad
            p = self.members[i].parameter
            raise no_row(self.arrays[i], at, p.grad_label, p.array, p.label)

    def _offer(self) -> bool:
        """Bind the gradients if a quick check shows that they fit."""
        try:
            arrays = [
                idle if g is None else shown(torch.view_as_real(g) if pairs and not g.is_sparse else g)
                for idle, g, pairs in zip(self.idle, self.grads, self.pairs, strict=True)
            ]
        except (TypeError, RuntimeError):
            return False  # what NumPy cannot show as it is gets a closer look too
        if self.blocks and any(isinstance(a, Rows) for a in arrays):
            return False
        if not self.plan.offer(arrays, arrays):
            return False
        self.arrays = arrays
        return True

    def _look_closer(self) -> None:
        """Bind the gradients, or raise for one that does not fit."""
        fresh = [
            (m.parameter, plain(g, m.parameter.grad_label))
            for m, g in zip(self.members, self.grads, strict=True)
            if g is not None
        ]
        for p, grad in fresh:
            if isinstance(grad, Rows) and AVERAGE in p.state:
                raise ValueError(no_average(p))
            if isinstance(grad, Rows) and id(p) in self.blocks:
                raise ValueError(no_blocks(p))
        check_gradients(fresh, [], [m.parameter for m in self.members], zero=False, cast=self.casts)
        found = {id(p): real_gradient(array) for p, array in fresh}
        self.arrays = [found.get(id(m.parameter), m.idle) for m in self.members]
        self.plan.bind(self.arrays)

    def step(self, row_of: list[int], rows: list[Any], clocks: list[Any], values: Any) -> None:
        """One step of the members with gradients, with these rows; then set their clocks.

        The last row, for members without a gradient, is None.
        """
        before = self.plan.steps
        stepped = [(i, row) for i, row in enumerate(row_of) if self.grads[i] is not None]
        try:
            self.plan.assign(row_of, clocks)
            self.plan.step(rows, clocks)
        finally:
            if self.plan.steps != before:  # also when it was interrupted, which is told as soon as the kernels are done
                for i, row in stepped:
                    for numbers, value in zip(self.numbers, clocks[row], strict=True):
                        numbers[i].fill(value)
                increment_version([self.given[i] for i, _ in stepped])
            self.rest()

    def rest(self) -> None:
        """Unbind all gradients."""
        self.grads, self.arrays = [], []
        if not self.plan.offer(self.idle):
            self.plan.bind(self.idle)
