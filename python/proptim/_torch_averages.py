"""The averages of the weights of tensors: how they begin, where they lie in torch's state, and how weights go back to a
model that was moved in a block of `averaged()`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import starmap
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from proptim._arrays import BFLOAT16, Array, as_array, real_view
from proptim._averages import NONE_KEPT, Found
from proptim._formats import planes, stores
from proptim._interrupts import Store
from proptim._parameters import check_shape, stored
from proptim._storage import AVERAGE, dtype_of_state
from proptim._torch_tensors import DTYPES, like, local, places, room, seen

if TYPE_CHECKING:
    from proptim._torch_state import Keeping


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
    return found, parts


def moved(tensors: Sequence[tuple[str, Any, Any, Array]]) -> tuple[tuple[Iterable[Any], ...], str]:
    """What writes the weights of the tensors that have been given other memory in the block to where they are now.

    They are converted to the dtype that the tensor has now, and copied to its device. A tensor of another shape is
    given memory with its weights instead. Also a message, if there is a tensor that cannot hold weights any more.
    """
    copied, given, lost = [], [], ""
    for label, tensor, before, copy in tensors:
        now, then = (local(each).detach() for each in (tensor, before))
        if now.device.type == "meta" or now.layout != torch.strided:
            lost = lost or (
                f"{label} is on {now.device} with layout {now.layout} now, where it cannot have its weights back; "
                "expected a model that is moved after `with opt.averaged():`; all other weights are back"
            )
            continue
        homes = [(t.data_ptr(), t.stride(), t.shape, t.dtype, t.device) for t in (now, then)]
        if homes[0] == homes[1]:
            continue
        weights = torch.from_numpy(copy.view(np.int16) if copy.dtype == BFLOAT16 else copy)
        weights = torch.view_as_complex(weights) if then.is_complex() else weights.view(then.dtype)
        if now.shape == then.shape:
            copied.append((now, weights))
        else:
            given.append((tensor, "data", like(before, weights).to(tensor.device)))
    return (starmap(torch.Tensor.copy_, copied), starmap(setattr, given)), lost
