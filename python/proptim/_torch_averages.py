"""The averages of the weights of tensors: how they begin, where they lie in torch's state, and how weights go back to a
model that was moved in a block of `averaged()`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from proptim._arrays import BFLOAT16, Array, Occupied, as_array, byte_bounds, overlaps_itself, real_view
from proptim._averages import NONE_KEPT, Found, Homeless
from proptim._formats import planes, stores
from proptim._interrupts import Store
from proptim._parameters import check_shape, stored
from proptim._storage import AVERAGE, dtype_of_state
from proptim._torch_tensors import DTYPES, like, local, places, room, seen, unfit

if TYPE_CHECKING:
    from proptim._torch_state import Keeping

ADDRESSED = ("cpu", "cuda", "xpu")
"""Devices whose memory has addresses that differ from those of all others."""


def dtype_of_average(p: Any) -> np.dtype[Any]:
    """The dtype of the average of a parameter."""
    return dtype_of_state(None, None, AVERAGE, DTYPES[p.dtype], 0)


def first_average(p: Any, numbers: Array) -> Any:
    """The average of a parameter before its first step: its numbers, as the rule sees them."""
    made = room(local(p), dtype_of_average(p))
    real_view(seen(made, AVERAGE))[...] = numbers
    return like(p, made)


def averages_in(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Parameter -> the average of its weights, of those in this state that have one."""
    return {p: own[AVERAGE] for p, own in state.items() if isinstance(own.get(AVERAGE), torch.Tensor)}


def find_averages(groups: list[dict[str, Any]], state: Mapping[Any, Any], keeping: Keeping) -> Found:
    """Of the parameters that are averaged and have made a step; ValueError if no group is averaged."""
    averaging = [group for group in groups if group.get(AVERAGE) is not None]
    if not averaging:
        raise ValueError(NONE_KEPT)
    kept = averages_in(state)
    averages = {p: kept[p] for group in averaging for p in group["params"] if p in kept}
    found: list[Store] = []
    parts: list[tuple[Array, str, Any]] = []
    for place, p in places(groups):
        if p in averages:
            label = f"params{place}"
            array = as_array(local(p), label)
            name = keeping.plane(array.dtype)
            beside = None if name is None else seen(state[p][name[0]], f"the master of {label}")
            average = seen(averages[p], f"the average of {label}")
            check_shape(average, f"the average of {label}", array, label)
            if beside is not None:
                check_shape(beside, f"the master of {label}", array, label)
            param = stored(array, beside)
            found += stores(param, real_view(average))
            tensors = p, None  # nothing else writes a master
            parts += [(plane, label, tensor) for plane, tensor in zip(planes(param), tensors, strict=False)]
    others = [p for _, p in places(groups) if p not in averages and not unfit(p)]
    return found, parts, [memory(local(t)) for t in (*averages.values(), *others)]


def memory(t: Any) -> Array:
    """An array where a tensor is, never to be read, for it may be on a device; an empty one if that is nowhere."""
    if (
        t.device.type not in ADDRESSED
        or t.layout != torch.strided
        or not t.numel()
        or not t.untyped_storage().data_ptr()
    ):
        return np.empty(0, np.int8)
    width = t.element_size()
    interface = {
        "data": (t.data_ptr(), True),
        "shape": tuple(t.shape),
        "strides": tuple(n * width for n in t.stride()),
        "typestr": f"|V{width}",
        "version": 3,
    }
    return np.asarray(SimpleNamespace(__array_interface__=interface, owner=t.detach()))  # not freed before the array


def facts(t: Any) -> tuple[Any, ...]:
    """Where the elements of a tensor are, and how they are read there."""
    views = t.is_conj(), t.is_neg(), t.is_inference()
    return (t.data_ptr(), t.stride(), t.shape, t.dtype, t.device, *views)


class Homes:
    """The memory of weights at the end of a block, where each tensor gets its own."""

    def __init__(self, arrays: Iterable[Array]) -> None:
        """`arrays`: what is not to be written, such as those that have their weights already."""
        self.occupied = Occupied([])
        for array in arrays:
            with suppress(ValueError):  # parameters that were tied before: a step refuses them
                self.occupied.add([("weights", array)])

    def put_back(self, label: str, tensor: Any, before: Any, copy: Array) -> None:
        """Write its weights to the memory that a tensor has been given in the block, if it has, in its dtype.

        A tensor that cannot hold them there is given memory of its own with them: one of another shape, of whole
        numbers, of real ones where the weights are complex, without memory for all its elements, with memory that its
        elements share or other weights have, and a view or a tensor that autograd cannot take and could before.
        `Homeless` if that cannot be.
        """
        now, then = (local(each).detach() for each in (tensor, before))
        if now.device.type == "meta" or now.layout != torch.strided:
            raise Homeless(f"is on {now.device} with layout {now.layout} now")
        if facts(now) == facts(then):
            return
        with torch.inference_mode(False), torch.no_grad():
            weights = torch.from_numpy(copy.view(np.int16) if copy.dtype == BFLOAT16 else copy)
            weights = torch.view_as_complex(weights) if then.is_complex() else weights.view(then.dtype)
            kept = now.is_complex() or (now.is_floating_point() and not then.is_complex())
            seen_as_is = not (now.is_conj() or now.is_neg() or now.is_inference() > then.is_inference())
            if kept and seen_as_is and now.shape == then.shape and self._take(label, now):
                now.copy_(weights)
            else:
                dtype = now.dtype if kept else then.dtype
                tensor.data = like(before, weights.to(now.device, dtype, copy=True))

    def _take(self, label: str, tensor: Any) -> bool:
        """Whether each element of a tensor has memory of its own, which it then has."""
        if not tensor.numel() or tensor.device.type not in ADDRESSED:
            return True
        array, storage = memory(tensor), tensor.untyped_storage()
        short = not array.size or byte_bounds(array)[1] > storage.data_ptr() + storage.nbytes()
        if short or overlaps_itself(array):
            return False
        try:
            self.occupied.add([(label, array)])
        except ValueError:
            return False
        return True
