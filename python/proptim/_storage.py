"""How an optimizer stores its arrays: the options `master` and `state_dtype`, and the arrays that they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from proptim._arrays import BFLOAT16, MEND_DTYPE, Array, name_of, real_view
from proptim._formats import (
    CODES,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    QUANTA,
    SIXTEEN,
    Compact,
    Int8,
    Steps8,
    Stored,
    arithmetic,
    empty,
    halves,
    rounded,
    widened,
)
from proptim._parameters import check_shape, listed

if TYPE_CHECKING:
    from proptim.rule import Rule

MASTERS = ("auto", "split", "float32", None)
DTYPES: dict[str, np.dtype[Any]] = {"float32": FLOAT32, "float64": FLOAT64, "bfloat16": BFLOAT16, "float16": FLOAT16}
"""The dtypes of state, and of parameters but for float64."""
STATE_DTYPES = (*DTYPES, "int8")
"""The values of `state_dtype`."""
SMALLEST_IN_BLOCKS = 4096
"""Elements from which on averages are kept in one byte. Below they would save less than 12 kB an array; such arrays are
mostly biases and scales, of which one block has all, and which matter more than their number."""
SCALE = "_scale"
"""What the name of a state array in one byte ends with if its scales are meant."""
CODE = "_code"
"""What it ends with if its codes are meant, in what is saved and in states of torch. Under the name of the array itself
torch.optim would take codes for its numbers."""
ONE_BYTE = tuple(dtype.name for dtype in CODES)
AVERAGE = "ema"
"""The name of the state array that is the average of a parameter."""
MASTER_DTYPES: dict[str, np.dtype[Any]] = {"split": BFLOAT16, "float32": FLOAT32}
"""The dtype of the second plane of a parameter of 16 bits: its low 16 bits, or all of the float32."""


Named = Sequence[tuple[str, np.dtype[Any]]]
"""How messages name parameters, and their dtypes."""


def check_storage(rule: type[Rule], master: Any, state_dtype: Any, params: Named, *, beside: bool = False) -> None:
    """Raise ValueError for `master` and `state_dtype` that are not legal, or not for these parameters.

    `beside`: they are added to others, for which the options are legal.
    """
    check_master(master)
    if master in MASTER_DTYPES and not beside and not any(dtype in SIXTEEN for _, dtype in params):
        have = " and ".join(sorted({name_of(dtype) for _, dtype in params}))
        raise ValueError(
            f"Invalid master: {master!r} for parameters of {have}, which are complete by themselves (expected bfloat16 "
            "or float16: leave it out)"
        )
    check_state_dtype(rule, state_dtype)
    for label, dtype in params:
        check_storage_of(rule, master, state_dtype, label, dtype)


def check_whole(rule: type[Rule], state_dtype: Any, where: str) -> None:
    """Raise ValueError for state in one byte `where` processes have parts of arrays."""
    if in_one_byte(rule, state_dtype):
        raise ValueError(
            f"Invalid state_dtype: 'int8' {where}, where each process has the state of a part of an array: blocks that "
            "share a scale, and so the results, would depend on the number of processes (expected 'bfloat16' or none)"
        )


def check_storage_of(rule: type[Rule], master: Any, state_dtype: Any, label: str, dtype: np.dtype[Any]) -> None:
    """Raise ValueError for a legal `master` and `state_dtype` that are not legal for this parameter."""
    if master == "split" and dtype == FLOAT16:
        raise ValueError(
            f"Invalid master: 'split' for {label}, which is float16 and not the upper half of a float32 (expected "
            "'float32' or None)"
        )
    if arithmetic(dtype) == FLOAT32 and any(wanted(state_dtype, name) == "float64" for name in rule.states):
        raise ValueError(
            f"Invalid state_dtype: 'float64' for {label}, which is {name_of(dtype)} and is stepped in float32 "
            "(expected 'float32', 'bfloat16', 'float16' or 'int8')"
        )
    if dtype.kind == "c" or arithmetic(dtype) == FLOAT64:
        for name in rule.states:
            if wanted(state_dtype, name) == "int8":
                raise ValueError(
                    f"Invalid state_dtype: 'int8' for {label}, which is {name_of(dtype)} (expected real parameters "
                    "that are stepped in float32: for these leave it out, or take 'bfloat16' or 'float16')"
                )


def check_master(master: Any) -> None:
    """Raise ValueError for a `master` that no parameters make legal."""
    if not isinstance(master, (str, type(None))) or master not in MASTERS:
        raise ValueError(f"Invalid master: {master!r:.80} (expected 'split', 'float32' or None)")


def check_state_dtype(rule: type[Rule], state_dtype: Any) -> None:
    """Raise ValueError or TypeError for a `state_dtype` that is illegal for all parameters."""
    if isinstance(state_dtype, Mapping):
        for name in state_dtype:
            if name not in rule.states:
                raise ValueError(
                    f"Invalid state_dtype: {rule.__name__} has no state array {name!r:.80} (expected some of: "
                    f"{listed(rule.states)})"
                )
        values = [*state_dtype.values()]
    else:
        values = [state_dtype]
    for value in values:
        if value is not None and (not isinstance(value, str) or value not in STATE_DTYPES):
            raise ValueError(
                f"Invalid state_dtype: {value!r:.80} (expected {', '.join(map(repr, STATE_DTYPES))}, None, or a dict "
                "of these by the name of a state array)"
            )
    for name in rule.states:
        rule.check_state_dtype(name, wanted(state_dtype, name))


def wanted(state_dtype: Any, name: str) -> str | None:
    """The dtype that the option names for a state array; None for the dtype of the arithmetic."""
    value: str | None = state_dtype.get(name) if isinstance(state_dtype, Mapping) else state_dtype
    return value


def dtype_of_state(
    rule: type[Rule] | None, state_dtype: Any, name: str, param: np.dtype[Any], size: int
) -> np.dtype[Any]:
    """The dtype of a state array of a parameter of this dtype and number of elements.

    Complex numbers of 16 bits are pairs of reals. In one byte it is that of the codes.
    """
    asked = wanted(state_dtype, name)
    if asked == "int8" and rule is not None:
        form = rule.in_one_byte(name)
        asked = None if form is not Steps8 and size < SMALLEST_IN_BLOCKS else "int8"
        if asked is not None:
            return CODES[form is not Int8]
    dtype = DTYPES.get(asked, FLOAT32) if asked else arithmetic(param)
    if param.kind == "c" and dtype not in SIXTEEN:
        return np.dtype(np.complex64 if dtype == FLOAT32 else np.complex128)
    return dtype


def first_state(
    rule: type[Rule], h: Mapping[str, Any], state_dtype: Any, name: str, param: Array, size: int
) -> dict[str, Array]:
    """A state array of a parameter before the first step, by its name, and the scales of one in one byte.

    `size` is that of the whole, if this is a part.
    """
    dtype = dtype_of_state(rule, state_dtype, name, param.dtype, size)
    if dtype in CODES:
        return first_compact(rule, h, name, param.shape)
    array = empty(param, dtype)
    view = real_view(array)
    view[...] = first_number(rule, h, name, view.dtype)
    return {name: array}


def first_average(param: Array, numbers: Array) -> Array:
    """The average of a parameter before the first step: its numbers, as the rule sees them."""
    average = empty(param, dtype_of_state(None, None, AVERAGE, param.dtype, param.size))
    real_view(average)[...] = numbers
    return average


def first_compact(rule: type[Rule], h: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> dict[str, Array]:
    """A state array in one byte before the first step: one number everywhere."""
    made = empty_compact(rule, h, name, shape)
    one = made._replace(code=made.code.reshape(-1)[:1].copy())
    for target, where, value in one.stores(np.full(one.code.shape, rule.initial(h, name), np.float32)):
        target[where] = value  # the scale of all blocks is that of this one
    made.code[...] = one.code if made.code.size else 0
    return named(name, made)


def empty_compact(rule: type[Rule], h: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Compact:
    """Memory for a state array in one byte, of which only the grid is set."""
    form = rule.in_one_byte(name)
    code = np.empty(shape, CODES[form is not Int8])
    if form is Steps8:
        return Steps8(code, rule.grid_of(h))
    return form(code, np.empty(-(-code.size // QUANTA), np.float32))


def compacted(rule: type[Rule], h: Mapping[str, Any], name: str, values: Array) -> dict[str, Array]:
    """Numbers in float32 as a state array in one byte."""
    made = empty_compact(rule, h, name, values.shape)
    with np.errstate(all="ignore"):
        for target, where, value in made.stores(values):
            target[where] = value
    return named(name, made)


def named(name: str, compact: Compact) -> dict[str, Array]:
    """The arrays of which state in one byte consists, by their names."""
    return {name: compact[0], name + SCALE: compact[1]}


def saved_as(state: Mapping[str, Array]) -> dict[str, Array]:
    """State arrays by the names under which they are saved."""
    return {name + CODE if array.dtype in CODES else name: array for name, array in state.items()}


def array_of(name: str) -> str:
    """The name of the state array to which codes or scales of this name belong; any other name unchanged."""
    return name.removesuffix(SCALE).removesuffix(CODE)


def find_codes(own: Mapping[Any, Any], name: str, of: Callable[[str], str]) -> str:
    """The name under which a saved state has the codes of a state array: before format 4 that of the array itself.

    Empty if it has none. TypeError for codes or scales beside numbers, or for codes that are no integers any more.
    """
    dtypes = {
        n: str(getattr(own[n], "dtype", type(own[n]).__name__)).removeprefix("torch.")
        for n in (name, name + CODE, name + SCALE)
        if own.get(n) is not None
    }
    found = [n for n in dtypes if n != name + SCALE]
    if len(found) == 1 and dtypes[found[0]] in ONE_BYTE:
        return found[0]
    if not {*dtypes} - {name}:
        return ""
    mend = (
        "load_state_dict of torch.optim casts what it loads, and state in one byte means nothing to it. Load that with "
        "cast=True into an optimizer of proptim without state_dtype first, and into torch.optim what this saves"
    )
    if name in dtypes:
        beside = " and ".join(repr(n) for n in dtypes if n != name)
        raise TypeError(
            f"{of(name)} is {dtypes[name]} beside {beside}, of state in one byte; expected one or the other: {mend}"
        )
    if found:
        raise TypeError(f"{of(found[0])} is {dtypes[found[0]]}; expected {' or '.join(ONE_BYTE)}: {mend}")
    raise TypeError(f"{of(name + SCALE)} is there, and there is no {name + CODE!r}; expected both: {mend}")


def taken_compact(
    rule: type[Rule],
    h: Mapping[str, Any] | None,
    name: str,
    code: Array,
    scale: Any,
    shape: tuple[int, ...],
    label: str,
    scale_label: str,
) -> Compact:
    """State in one byte that was saved; ValueError for what was not saved so. `h`: the grid has to be that of these."""
    form = rule.in_one_byte(name)
    kind, length = CODES[form is not Int8], 2 if form is Steps8 else -(-code.size // QUANTA)
    if code.dtype != kind or code.shape != shape:
        raise ValueError(
            f"{label} is {code.dtype.name} of shape {code.shape}; expected {kind.name} of shape {shape}, that of the "
            "parameter"
        )
    scales = np.asarray(scale)
    if scale is None:
        raise ValueError(f"{scale_label} is missing; expected {length} numbers in float32, saved with {label}")
    if scales.dtype != FLOAT32 or scales.shape != (length,):
        raise ValueError(
            f"{scale_label} is {scales.dtype.name} of shape {scales.shape}; expected float32 of shape {(length,)}, "
            f"saved with {label}"
        )
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise ValueError(f"{scale_label} has numbers that are no scales; expected finite ones >= 0")
    if form is Steps8 and h is not None and not np.array_equal(rule.grid_of(h), scales):
        raise ValueError(
            f"{scale_label} is {scales.tolist()}; expected {rule.grid_of(h).tolist()}, the grid of etas "
            "and step_sizes, which cannot change while the state is in one byte"
        )
    return form(code, scales)


def state_of(rule: type[Rule], state: Mapping[str, Array], name: str) -> Stored:
    """A state array as the plan steps it."""
    array = state[name]
    if array.dtype in CODES:
        return rule.in_one_byte(name)(array, state[name + SCALE])
    return real_view(array)


def is_compact(state: Mapping[str, Array]) -> bool:
    """Whether some of these state arrays are in one byte."""
    return any(array.dtype in CODES for array in state.values())


def in_one_byte(rule: type[Rule], state_dtype: Any) -> frozenset[str]:
    """The names of the state arrays that the option keeps in one byte."""
    return frozenset(name for name in rule.states if wanted(state_dtype, name) == "int8")


def opened(rule: type[Rule], state: Mapping[str, Array]) -> dict[str, Array]:
    """State arrays as a user sees them: new ones in float32 for those in one byte."""
    if is_compact(state):
        pairs = {name: state_of(rule, state, name) for name in rule.states if name in state}
        state = {n: state[n] if isinstance(a, np.ndarray) else a.load() for n, a in pairs.items()} | of_average(state)
    return show_state(rule, state)


def of_average(state: Mapping[str, Array]) -> dict[str, Array]:
    """The part of a state that is the average of the parameter."""
    return {AVERAGE: state[AVERAGE]} if AVERAGE in state else {}


def show_state(rule: type[Rule], state: Mapping[str, Array]) -> dict[str, Array]:
    """State arrays under torch's names, the average of the parameter last."""
    return rule.show_state({n: a for n, a in state.items() if n != AVERAGE}) | of_average(state)


def first_number(rule: type[Rule], h: Mapping[str, Any], name: str, dtype: np.dtype[Any]) -> Array:
    """The number with which a state array of this dtype begins; ValueError where the dtype cannot hold it."""
    value = rule.initial(h, name)
    first = rounded(np.array(value), dtype)
    if np.isfinite(value) and not np.isfinite(widened(first, FLOAT64)):
        raise ValueError(
            f"Invalid state_dtype: {name_of(dtype)!r} cannot hold {value:g}, with which {name!r} begins (expected "
            "one that can)"
        )
    return first


def dtype_of_plane(master: str | None, param: np.dtype[Any]) -> np.dtype[Any] | None:
    """The dtype of what lies beside a parameter of this dtype, None where nothing does."""
    if param not in SIXTEEN or master is None:
        return None
    if master == "auto":
        master = "split" if param == BFLOAT16 else "float32"
    return MASTER_DTYPES[master]


def first_plane(master: str | None, array: Array) -> Array | None:
    """The second plane of a new parameter; None if it has none."""
    dtype = dtype_of_plane(master, array.dtype)
    # Without a float32 copy of the parameter in between, which could be most of the memory that is used.
    if dtype is None or dtype == BFLOAT16:
        return None if dtype is None else np.zeros_like(array, subok=False)  # low halves
    plane = np.empty_like(array, FLOAT32, subok=False)
    if array.dtype == FLOAT16:
        plane[...] = array
    else:
        bits = plane.view(np.uint32)
        bits[...] = array
        bits <<= np.uint32(16)  # as from_bfloat16
    return plane


def plane_like(array: Array, dtype: np.dtype[Any], master: Array, *, even: bool = False) -> Array:
    """The second plane of a parameter for this float32 master: all of it, or its low 16 bits.

    With `even` the parameter is the master rounded to nearest even. Half-way between two bfloat16 numbers the low bits
    belong to the other one, and it gets the largest that belong to this one, a unit in the last place of float32 less.
    """
    plane = np.empty_like(array, dtype, subok=False)
    if dtype == FLOAT32:
        plane[...] = master
    else:
        bits = np.asarray(master).view(np.uint32)
        high, plane[...] = halves(bits)
        if even:
            plane[(bits & np.uint32(0x1FFFF) == 0x8000) & (array != high)] = 0x7FFF
    return plane


def check_state(array: Array, label: str, param: Array, *, whole: bool = False) -> None:
    """Raise unless this can be a state array of a parameter that is stepped without an object.

    `whole`: in the dtype of the arithmetic, and not in 16 bits.
    """
    kept = dtype_of_state(None, None, label, param.dtype, param.size)
    if array.dtype != kept and (whole or array.dtype not in SIXTEEN):
        of = "the dtype of param" if kept == param.dtype else "in which state of param is kept"
        raise TypeError(f"{label} is {name_of(array.dtype)}; expected {kept.name}, {of}: {MEND_DTYPE}")
    like = real_view(param) if array.dtype in SIXTEEN else param
    check_shape(array, label, like, "param")


def check_plane(plane: Array, param: Array) -> None:
    """Raise unless this can be the master of a parameter."""
    if param.dtype not in SIXTEEN:
        raise TypeError(f"master is given, and param is {param.dtype.name}; expected none: it is of 16 bits alone")
    if plane.dtype != FLOAT32 and (plane.dtype, param.dtype) != (BFLOAT16, BFLOAT16):
        halves = " or uint16" if param.dtype == BFLOAT16 else ""
        raise TypeError(f"master is {plane.dtype.name}; expected float32{halves}, as init() makes it")
    check_shape(plane, "master", param, "param")
