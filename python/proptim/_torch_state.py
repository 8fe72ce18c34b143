"""The state of a parameter in an optimizer of torch: its arrays, and the dtypes and forms in which they are kept.

torch.optim keeps every array in the dtype of the parameter, and its `load_state_dict` casts to that, also integers.
Here the dtype is that of `state_dtype`, and the second plane of a parameter of 16 bits is part of the state:
`master_lo`, the low halves of a bfloat16 as int16, or `master`, a float32 for each weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from proptim._arrays import BFLOAT16, CONVERT, Array, as_array, name_of, real_view
from proptim._formats import CODES, FLOAT32, FLOAT64, SIXTEEN, Mastered, Split, rounded, widened
from proptim._parameters import frozen
from proptim._registry import OPTIMIZERS
from proptim._state import short
from proptim._storage import (
    AVERAGE,
    CODE,
    SCALE,
    array_of,
    compacted,
    dtype_of_plane,
    dtype_of_state,
    find_codes,
    first_compact,
    first_number,
    named,
    plane_like,
    saved_as,
    taken_compact,
)
from proptim._torch_averages import dtype_of_average
from proptim._torch_tensors import DTYPES, increment_version, like, local, room, seen, unfit, unfit_state
from proptim.rule import Rule

MASTERS = {BFLOAT16: "master_lo", FLOAT32: "master"}
"""dtype of the second plane of a parameter -> its name in the state."""


@dataclass(frozen=True)
class Held:
    """Wraps a tensor, so that `torch.optim.Optimizer.load_state_dict` does not cast it on its way into a state."""

    tensor: Any


@dataclass(frozen=True)
class Keeping:
    """How an optimizer keeps the state of its parameters."""

    rule: type[Rule]
    shown: tuple[str, ...]
    """Names of the state arrays in torch.optim."""
    counts: tuple[str, ...]
    """Names of the numbers in the state."""
    master: str | None
    state_dtype: Any

    def dtype(self, name: str, p: Any) -> np.dtype[Any]:
        """The dtype of an array in the state of a parameter, of codes if it is in one byte."""
        size = local(p).numel()
        return dtype_of_state(self.rule, self.state_dtype, self.rule.shown_from.get(name, name), DTYPES[p.dtype], size)

    def names(self, p: Any) -> tuple[str, ...]:
        """Names of the state arrays of a parameter, without those of scales.

        They are those of torch.optim, except that several arrays of torch are one here if it has a `state_dtype`.
        """
        usual = dtype_of_state(None, None, "", DTYPES[p.dtype], 0)
        return self.shown if all(self.dtype(n, p) == usual for n in self.rule.states) else self.rule.states

    def parts(self, name: str, p: Any) -> tuple[str, ...]:
        """The names of the tensors that together are a state array of a parameter."""
        return (name + CODE, name + SCALE) if self.dtype(name, p) in CODES else (name,)

    def plane(self, param: np.dtype[Any]) -> tuple[str, np.dtype[Any]] | None:
        """Name and dtype of the second plane of a parameter of this dtype; None if it has none."""
        dtype = dtype_of_plane(self.master, param)
        return None if dtype is None else (MASTERS[dtype], dtype)

    def check_first(self, h: Mapping[str, Any], wanted: tuple[str, ...], p: Any) -> None:
        """Raise ValueError if the requested dtypes cannot hold the first values of the state."""
        for name in wanted:
            if self.dtype(name, p) not in CODES:
                first_number(self.rule, h, name, real_view(np.empty(0, self.dtype(name, p))).dtype)

    def first(self, h: Mapping[str, Any], name: str, p: Any) -> dict[str, Any]:
        """A state array of a parameter before the first step, as it is shown: tensors by name."""
        if self.dtype(name, p) in CODES:
            return tensors_of(saved_as(first_compact(self.rule, h, name, tuple(p.shape))))
        made = room(local(p), self.dtype(name, p))
        array = seen(made, name)
        view = real_view(array)
        view[...] = first_number(self.rule, h, name, view.dtype)
        if name in self.names(p):
            return {name: like(p, made)}
        return {each: tensor_of(p, values) for each, values in self.rule.show_state({name: array}).items()}

    def first_plane(self, p: Any) -> dict[str, Any]:
        """The second plane of a new parameter, by its name; an empty dict if it has none."""
        if (plane := self.plane(DTYPES[p.dtype])) is None:
            return {}
        part = local(p).detach()
        # The lower halves are zeros: a bfloat16 is its own master at first.
        made = part.float() if plane[1] == FLOAT32 else torch.zeros_like(part, dtype=torch.int16)
        return {plane[0]: like(p, made)}

    # State that exists already, or comes from a file ------------------------------------------------------------------

    def kept(
        self,
        p: Any,
        own: Mapping[Any, Any],
        h: Mapping[str, Any],
        of: Callable[[str], str],
        loading: bool = False,
        cast: bool = False,
    ) -> dict[Any, Any]:
        """The state of a parameter as this optimizer keeps it; tensors that are right already stay the same.

        `of` is the name of the state in messages. TypeError for numbers that would be rounded, unless `cast`. A state
        that is `loading` was saved with its master; otherwise the dtype of the parameter may have changed since, and
        then the old master is dropped. `h`: the hyperparameters of the parameter.
        """
        kept, compact = self._without_compact(p, own, h, of, loading, cast)
        own = dict(kept)
        names = self.names(p)
        every = dict.fromkeys((*self.shown, *self.rule.states))
        tensors = {name: own[name] for name in every if isinstance(own.get(name), torch.Tensor)}
        for name, tensor in tensors.items():
            if tensor.dtype == torch.int16:  # which in a second plane is bits
                raise TypeError(f"{of(name)} is int16; supported: {CONVERT}")
        found = {name: seen(tensor, of(name)) for name, tensor in tensors.items()}
        arrays = {name: array for name, array in found.items() if name in names}
        other = {name: array for name, array in found.items() if name not in names}
        for name in other:
            del kept[name]
        if other:  # of Rprop, one array for what is two here, or two for one
            if names == self.rule.states:
                arrays = self.rule.read_state(other)
            else:
                usual = {name: self.dtype(name, p) for name in other}
                other = {name: self._in_dtype(a, usual[name], p, of(name), loading, cast) for name, a in other.items()}
                arrays = self.rule.show_state(other)
        for name, array in arrays.items():
            if (dtype := self.dtype(name, p)) in CODES:
                if not cast:
                    raise TypeError(unlike(of(name), array.dtype, dtype, loading))
                array = self._in_dtype(array, FLOAT32, p, of(name), loading, cast)
                compact |= tensors_of(saved_as(compacted(self.rule, h, name, np.ascontiguousarray(array))))
                kept.pop(name, None)
                continue
            array = self._in_dtype(array, dtype, p, of(name), loading, cast)
            if array is not found.get(name):
                kept[name] = tensor_of(p, array)
        if isinstance(average := kept.get(AVERAGE), torch.Tensor):
            array = seen(average, of(AVERAGE))
            made = self._in_dtype(array, dtype_of_average(p), p, of(AVERAGE), loading, cast)
            kept[AVERAGE] = average if made is array else tensor_of(p, made)
        self._keep_master(p, kept, of, loading, cast)
        return kept | compact

    def _without_compact(
        self,
        p: Any,
        own: Mapping[Any, Any],
        h: Mapping[str, Any],
        of: Callable[[str], str],
        loading: bool,
        cast: bool,
    ) -> tuple[dict[Any, Any], dict[str, Any]]:
        """A state without its arrays in one byte, or with them in float32 where they are kept otherwise; and these."""
        rest = dict(own)
        compact: dict[str, Any] = {}
        for name in self.rule.states:
            if not (label := find_codes(own, name, of)):
                continue
            code, scale = rest.pop(label), rest.pop(name + SCALE, None)
            one_byte = (dtype := self.dtype(name, p)) in CODES
            array = local(code).detach().numpy()
            if not one_byte and not cast:
                raise TypeError(unlike(of(label), array.dtype, dtype, loading))
            scales = scale.detach().numpy() if isinstance(scale, torch.Tensor) else None
            labels = of(label), of(name + SCALE)
            saved = taken_compact(self.rule, h if one_byte else None, name, array, scales, tuple(p.shape), *labels)
            if one_byte:
                dense = all(plane.flags.c_contiguous for plane in saved)
                compact |= (
                    dict(zip(self.parts(name, p), (code, scale), strict=True))
                    if dense
                    else tensors_of(saved_as(named(name, saved)))
                )
            else:
                shown = self.rule.show_state({name: saved.load()})
                rest |= {n: torch.from_numpy(a) for n, a in shown.items()}
        return rest, compact

    def _in_dtype(self, array: Array, dtype: np.dtype[Any], p: Any, label: str, loading: bool, cast: bool) -> Array:
        """An array of a state in another dtype, each number rounded once."""
        if array.dtype == dtype:
            return array
        made = np.empty((*local(p).shape, 2) if p.is_complex() and dtype.kind != "c" else local(p).shape, dtype)
        target, given = real_view(made), real_view(array)
        if target.shape != given.shape:
            if made.shape == array.shape:
                raise ValueError(
                    f"{label} is {name_of(array.dtype)} of a parameter that is {name_of(DTYPES[p.dtype])}; expected "
                    f"{name_of(dtype)}: give the parameter its former dtype, or make a new optimizer"
                )
            raise ValueError(f"{label} has shape {array.shape}; expected {made.shape}, that of its parameter")
        halves = [each in SIXTEEN for each in (given.dtype, target.dtype)]
        exact = not halves[1] and (halves[0] or np.can_cast(given.dtype, target.dtype))
        if not exact and not cast:
            raise TypeError(unlike(label, array.dtype, dtype, loading))
        numbers = widened(given, FLOAT64)
        target[...] = rounded(numbers, target.dtype)
        if (np.isfinite(numbers) & ~np.isfinite(widened(target, FLOAT64))).any():
            raise ValueError(f"{label} has numbers beyond {name_of(dtype)}; expected one that can hold them")
        return made

    def _keep_master(self, p: Any, kept: dict[Any, Any], of: Callable[[str], str], loading: bool, cast: bool) -> None:
        """Convert the master in a state to the one that this optimizer keeps of the parameter, or drop it."""
        param = DTYPES[p.dtype]
        plane = self.plane(param)
        for name in MASTERS.values():
            if not isinstance(held := kept.get(name), torch.Tensor):
                continue
            if held.shape != p.shape:
                raise ValueError(
                    f"{of(name)} has shape {tuple(held.shape)}; expected {tuple(p.shape)}, that of its parameter"
                )
            usual = torch.int16 if name == "master_lo" else torch.float32
            if held.dtype != usual and not (loading and cast):
                mend = (
                    "pass cast=True to leave it out, and the weights count" if loading else "remove it from the state"
                )
                raise TypeError(
                    f"{of(name)} is {str(held.dtype).removeprefix('torch.')}; expected "
                    f"{str(usual).removeprefix('torch.')}: load_state_dict of torch.optim casts what it loads; {mend}"
                )
            if held.dtype != usual:
                del kept[name]
                continue
            if plane is not None and name == plane[0]:
                continue
            del kept[name]
            if not loading:
                continue
            if plane is None and not cast:
                raise TypeError(
                    f"{of(name)} belongs to a parameter of 16 bits, and this one is {name_of(param)} and keeps none; "
                    "expected a state without it: pass cast=True to leave it out"
                )
            if plane is not None and name == "master":
                low = plane_like(seen(p, "param"), plane[1], seen(held, of(name)), even=True)
                kept[plane[0]] = tensor_of(p, low, torch.int16)
            elif plane is not None:
                if not cast:
                    raise TypeError(
                        f"{of(name)} are the low halves of what the weights are the high halves of; expected 'master', "
                        "in float32: load the weights first, and pass cast=True to have it made of both"
                    )
                if param == BFLOAT16:
                    kept[plane[0]] = tensor_of(p, Split(seen(p, "param"), seen(held, of(name))).load())

    def check_names(self, own: Mapping[Any, Any], label: str) -> None:
        """Raise ValueError for a saved state that is that of an optimizer of another class, or a part of one."""
        expected = "expected the state of an optimizer of the same class"
        there = {name: value for name, value in own.items() if value is not None}
        own = {array_of(name) if isinstance(name, str) else name: value for name, value in there.items()}
        for name in own:  # names that no optimizer has are the user's own, which torch.optim keeps too
            if name not in {*self.shown, *self.rule.states, *self.rule.clock_start} and name in state_names():
                raise ValueError(f"{label} has {name!r}, unknown to {self.rule.__name__}; {expected}")
        arrays = {name for name in (*self.shown, *self.rule.states) if own.get(name) is not None}
        if not arrays and own.get("step") is None:  # of a parameter that has made no step
            return
        for name in (*(self.shown if arrays <= {*self.shown} else self.rule.states), *self.counts):
            if own.get(name) is None and self.rule.shown_from.get(name, name) not in self.rule.optional:
                raise ValueError(f"{label} has no {name!r}; {expected}: {self.rule.__name__}")

    def hold(self, params: list[Any], state_dict: Any, cast: bool) -> Any:
        """A state_dict for `torch.optim.Optimizer.load_state_dict` to load as this optimizer keeps it."""
        try:
            groups = [group for group in state_dict["param_groups"] for _ in group["params"]]
            keys = [key for group in state_dict["param_groups"] for key in group["params"]]
            state = dict(state_dict["state"])
        except (KeyError, TypeError):
            return state_dict  # torch says what is wrong
        if len(keys) != len(params):
            return state_dict
        ours = {*self.shown, *self.rule.states, *self.counts, *MASTERS.values(), AVERAGE}
        ours |= {name + part for name in self.rule.states for part in (CODE, SCALE)}
        for key, p, group in zip(keys, params, groups, strict=True):
            own = state.get(key)
            if not isinstance(own, Mapping):
                continue
            label = partial("{1!r} in state {0} of state_dict".format, short(key))
            self.check_names(own, f"state {short(key)} of state_dict")
            own = {n: tensor_from(a, label(n)) if isinstance(a, np.ndarray) else a for n, a in own.items()}
            # torch.optim.SGD makes a sparse momentum_buffer of a sparse gradient.
            own = state[key] = {n: a.to_dense() if n in ours and is_sparse(a) else a for n, a in own.items()}
            if unfit(p) or unfit_state(own.values()):
                continue
            here = {name: t.to(p.device) if isinstance(t, torch.Tensor) else t for name, t in own.items()}
            h = {**self.rule.hyper, **{name: frozen(value) for name, value in group.items()}}
            kept = self.kept(p, here, h, label, True, cast)
            state[key] = {n: Held(t) if n in ours and isinstance(t, torch.Tensor) else t for n, t in kept.items()}
        return {**state_dict, "state": state}

    def mastered(self, p: Any, own: Mapping[Any, Any]) -> Mastered | None:
        """A parameter of 16 bits with the float32 master in its state; None if it has none that fits."""
        master = own.get("master")
        if DTYPES.get(p.dtype) not in SIXTEEN or unfit(p) or not isinstance(master, torch.Tensor):
            return None
        pair = Mastered(seen(p, "param"), seen(master, "master"))
        return pair if pair.half.shape == pair.master.shape else None  # of another shape: the next step says so

    def read(self, p: Any, own: Mapping[Any, Any]) -> None:
        """Set the float32 master in the state of a parameter to the weights that were written since the last step."""
        if (pair := self.mastered(p, own)) is not None:
            pair.master[...] = pair.load()

    def write(self, p: Any, own: Mapping[Any, Any]) -> None:
        """Set a parameter of 16 bits to the float32 master in its state, rounded."""
        if (pair := self.mastered(p, own)) is not None:
            target, where, value = pair.stores(pair.master)[0]
            target[where] = value
            increment_version([p])


@cache
def state_names() -> frozenset[str]:
    """The names of arrays and numbers in the states of all optimizers."""
    rules = OPTIMIZERS.values()
    return frozenset(name for rule in rules for name in (*rule.states, *rule.shown_from, *rule.clock_start))


def is_sparse(value: Any) -> bool:
    """Whether this is a tensor in coordinate format."""
    return isinstance(value, torch.Tensor) and value.layout == torch.sparse_coo


def unlike(label: str, dtype: np.dtype[Any], expected: np.dtype[Any], loading: bool) -> str:
    """The message for a state that would be rounded, or is in one byte where it is not kept so."""
    mend = (
        "pass cast=True to have it rounded"
        if loading
        else "if the parameter has become of another dtype, opt.load_state_dict(opt.state_dict(), cast=True) has it "
        "rounded"
    )
    return f"{label} is {name_of(dtype)}; expected {name_of(expected)}, in which it is kept here: {mend}"


def tensors_of(arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Tensors with the memory of these arrays."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def release(own: dict[Any, Any]) -> None:
    """Store the wrapped tensors in the state."""
    for name, value in own.items():
        if isinstance(value, Held):
            own[name] = value.tensor


def tensor_from(array: Array, label: str) -> Any:
    """A tensor with a copy of an array in a state_dict of an optimizer that steps NumPy arrays."""
    own = np.array(array if array.dtype in CODES else as_array(array, label, bits=True))
    return torch.from_numpy(own.view(np.int16)).view(torch.bfloat16) if own.dtype == BFLOAT16 else torch.from_numpy(own)


def tensor_of(p: Any, array: Array, dtype: torch.dtype | None = None) -> Any:
    """A tensor in the state of a parameter, laid out as that is, with the numbers of an array."""
    part = local(p)
    made = room(part, array.dtype) if dtype is None else torch.empty_like(part, dtype=dtype, requires_grad=False)
    seen(made, "")[...] = array
    return like(p, made)
