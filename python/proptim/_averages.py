"""`opt.averaged()`: the averages of the weights in the place of the weights, for as long as a block runs.

The optimizer is held as by a call of its own, so that every other call is refused until the weights are back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import starmap
from operator import setitem
from typing import Any

from proptim._arrays import Array, tell_torch
from proptim._interrupts import Store, at_once
from proptim._numpy import busy

NONE_KEPT = "no average of the weights is kept; expected ema=0.999 when the optimizer is made, or in a group"

Found = tuple[Sequence[Store], Sequence[tuple[Array, str, Any]], Sequence[Array]]
"""What to store so that the averages are in place; the arrays that are put back, each with a name and the tensor that
it is of, or None; and what no weights may be written to: the averages, and parameters that have none."""


class Homeless(Exception):
    """Why a tensor has no memory for weights, without its name."""


class Averaged:
    """The context manager that `Optimizer.averaged` returns."""

    back: list[Store] | None = None
    """What to store so that the weights are back; None while the optimizer is not held."""

    def __init__(self, claim: Any, find: Callable[[], Found]) -> None:
        """`find` is called when the block begins, while the claim is held."""
        self.claim, self.find = claim, find
        self.tensors: list[tuple[str, Any, Any, Array]] = []
        """The tensors, with a view of the memory that each had when the block began, and the copy of its weights."""
        self.beside: Sequence[Array] = ()

    def __enter__(self) -> None:
        if self.back is not None:  # outside of the `try`, which would put the weights back in the middle of that block
            raise RuntimeError(busy(None, averaged=True))
        try:
            at_once(starmap(self.claim.__enter__, [()]), starmap(setattr, [(self, "back", [])]))
            self.begin()
        except BaseException:
            self.leave()
            raise

    def begin(self) -> None:
        """Have the averages in place, while the optimizer is held."""
        found, kept, self.beside = self.find()
        back: list[Store] = [(array, ..., array.copy()) for array, *_ in kept]
        kind = getattr(sys.modules.get("torch"), "Tensor", ())
        both = zip(kept, back, strict=True)
        tensors = [(name, t, t.detach(), copy) for (_, name, t), (*_, copy) in both if isinstance(t, kind)]
        self.swap(found, back, tensors)
        tell_torch(tensor for _, tensor, *_ in self.tensors)

    def swap(self, found: Sequence[Store], back: list[Store], tensors: list[tuple[str, Any, Any, Array]]) -> None:
        """Store the averages, and note what puts the weights back."""
        attributes = [(self.claim, "averaged", True), (self, "back", back), (self, "tensors", tensors)]
        at_once(starmap(setattr, attributes), starmap(setitem, found))

    def __exit__(self, *exc: object) -> None:
        try:
            self.leave(last=False)
        except BaseException:  # interrupted, possibly before it began, or a tensor failed
            self.leave()
            raise

    def __del__(self) -> None:
        if self.back is not None:  # `__exit__` was interrupted before its first line
            self.leave()

    def leave(self, last: bool = True) -> None:
        """Put the weights back and let go of the optimizer, or do nothing if it is not held.

        An exception from a tensor, or from a signal handler meanwhile, ends it only if it is not the `last` attempt:
        all can be done once more. Else RuntimeError names the tensor, and all others have their weights.
        """
        if self.back is None:
            return
        tensors, failed = self.tensors, []
        at_once(starmap(setitem, self.back))
        if tensors:
            from proptim._torch_averages import Homes

            homes = Homes([*(array for array, *_ in self.back), *self.beside])
            for name, *of in tensors:
                try:
                    homes.put_back(name, *of)
                except Exception as error:  # noqa: PERF203
                    if not last:
                        raise
                    failed.append(f"{name} {error}" if isinstance(error, Homeless) else f"{name} raised {error!r}")
        attributes: list[Store] = [(self.claim, "averaged", False), (self, "back", None), (self, "tensors", [])]
        at_once(starmap(setattr, attributes), map(self.claim.__exit__, [None], [None], [None]))
        tell_torch(tensor for _, tensor, *_ in tensors)
        if failed:
            but = f"{len(failed) - 1} more are like it, and " if len(failed) > 1 else ""
            raise RuntimeError(
                f"{failed[0]}, so that it cannot have its weights back; expected a model that is moved after "
                f"`with opt.averaged():`; {but}all other weights are back"
            )
