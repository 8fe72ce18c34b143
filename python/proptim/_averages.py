"""`opt.averaged()`: the averages of the weights in the place of the weights, for as long as a block runs.

The optimizer is held as by a call of its own, so that every other call is refused until the weights are back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import starmap
from operator import setitem
from typing import Any

from proptim._arrays import Array, tell_torch
from proptim._formats import Stored, planes, stores
from proptim._interrupts import Store, at_once

NONE_KEPT = "no average of the weights is kept; expected ema=0.999 when the optimizer is made, or in a group"

Found = tuple[Sequence[tuple[Stored, Array]], Sequence[Any]]
"""Parameters as they are stepped, with their averages; and the tensors among them."""


class Averaged:
    """The context manager that `Optimizer.averaged` returns."""

    def __init__(self, claim: Any, find: Callable[[], Found]) -> None:
        """`find` is called when the block begins, while the claim is held."""
        self.claim, self.find = claim, find
        self.back: list[Store] | None = None
        """What to store so that the weights are back; None while the optimizer is not held."""
        self.tensors: Sequence[Any] = ()

    def __enter__(self) -> None:
        try:
            at_once(starmap(self.claim.__enter__, [()]), starmap(setattr, [(self, "back", [])]))
            pairs, self.tensors = self.find()
            found = [store for param, average in pairs for store in stores(param, average)]
            back = [(plane, ..., plane.copy()) for param, _ in pairs for plane in planes(param)]
            attributes = [(self.claim, "averaged", True), (self, "back", back)]
            at_once(starmap(setattr, attributes), starmap(setitem, found))
            tell_torch(self.tensors)
        except BaseException:
            self.leave()
            raise

    def __exit__(self, *exc: object) -> None:
        try:
            self.leave()
        except BaseException:  # interrupted, possibly before it began
            self.leave()
            raise

    def __del__(self) -> None:
        self.leave()  # if `__exit__` was interrupted before its first line

    def leave(self) -> None:
        """Put the weights back and let go of the optimizer, or do nothing if it is not held."""
        if self.back is None:
            return
        attributes = [(self.claim, "averaged", False), (self, "back", None)]
        release = map(self.claim.__exit__, [None], [None], [None])
        at_once(starmap(setitem, self.back), starmap(setattr, attributes), release)
        tell_torch(self.tensors)
