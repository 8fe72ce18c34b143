"""What an optimizer steps: parameters, their groups, and gradients matched to them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, MutableMapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from proptim._arrays import (
    BFLOAT16,
    MEND_DTYPE,
    Array,
    as_array,
    attribute,
    check_disjoint,
    check_writable,
    is_array,
    name_of,
    owner_of,
    real_view,
)
from proptim._formats import CODES, SIXTEEN, Mastered, Published, Split, Steps8, Stored, arithmetic, loaded, planes
from proptim._interrupts import Store, commit
from proptim._rows import Rows, as_gradient, check_zeroed, is_matrix, values_of

if TYPE_CHECKING:
    from proptim.rule import Rule

Clock = tuple[float, ...]
"""The numbers in the state of a parameter: the steps it has made, and what else its rule counts."""
Values = Mapping[str, Any]
"""The hyperparameters of a group with every schedule evaluated."""
Schedulable = float | Callable[[int], float]
"""A number, or a callable of the number of completed steps that returns one."""


class Changes:
    """Detects changes of hyperparameters and options: every change replaces the object `now`."""

    def __init__(self) -> None:
        self.now = object()


class Part(NamedTuple):
    """A run of a parameter that is stepped in parts, as an optimizer of parts is given it.

    It begins with a block of the whole, of state in one byte as of the sum of squares.
    """

    run: Any
    size: int
    """The number of elements of the whole, which decides about state in one byte."""


@dataclass(eq=False)
class Parameter:
    """One parameter array with all that belongs to it."""

    place: str
    name: str | None
    given: Any
    array: Array
    group: Group
    clock: Clock
    state: dict[str, Array] = field(default_factory=dict)
    home: Any = None
    """Where a tensor of torch lay when it was taken, see `home_of`; None for what cannot be given other memory."""
    plane: Array | None = None
    """What lies beside a parameter of 16 bits and makes float32 of it: its low halves, or a float32 array."""
    published: Any = None
    """What gets a copy of a float32 parameter in 16 bits, as the user passed it."""
    copy: Array | None = None
    """The same, viewed."""
    copy_home: Any = None
    part_of: int | None = None
    """The number of elements of the whole of which this is a part; None for a whole. See `Part`."""
    pins: list[Any] = field(init=False)
    """References to the arrays that own its memory: NumPy resizes none that has some, also with refcheck=False."""

    def __post_init__(self) -> None:
        own = (self.array, *self.state.values(), *([] if self.copy is None else [self.copy]))
        self.pins = [weakref.ref(owner_of(array)) for array in own]

    @property
    def stored(self) -> Stored:
        """The parameter as the plan steps it: real arrays."""
        return stored(self.array, self.plane, self.copy)

    @property
    def real(self) -> np.dtype[Any]:
        """The dtype in which the rule computes."""
        return arithmetic(self.array.dtype)

    @property
    def size(self) -> int:
        """Its number of elements, of a part that of the whole."""
        return self.array.size if self.part_of is None else self.part_of

    def check_home(self) -> None:
        """Raise ValueError if a tensor has been given other memory since, which `tensor.data = ...` and `.to()` do."""
        for given, home in self.homes:
            if home_of(given) != home:
                label = self.label if given is self.given else self.copy_label
                raise ValueError(
                    f"{label} has been given other memory since the optimizer was made; expected it to stay where it "
                    "was: make a new optimizer, or take proptim.torch, which looks at every step"
                )

    @property
    def homes(self) -> list[tuple[Any, Any]]:
        """Tensors that steps write, and where they lay when they were taken: of the parameter, and of its copy."""
        both = (self.given, self.home), (self.published, self.copy_home)
        return [(given, home) for given, home in both if home is not None]

    @property
    def held(self) -> list[tuple[Array, str, Any]]:
        """Its planes, each with a name and the tensor that it is of, or None: nothing else has a master."""
        of = (self.label, self.given, self.home), (self.copy_label, self.published, self.copy_home)
        both = zip(planes(self.stored), of, strict=False)
        return [(plane, name, None if home is None else given) for plane, (name, given, home) in both]

    @property
    def copy_label(self) -> str:
        """How messages name the copy of the parameter."""
        return f"publish{self.place}"

    @property
    def label(self) -> str:
        """How messages name the parameter."""
        return f"params{self.place}"

    @property
    def grad_label(self) -> str:
        """How messages name its gradient."""
        return f"grads{self.place}"

    def gradient(self, given: Any) -> Array | Rows:
        """View what a user handed in as its gradient."""
        grad = as_gradient(given, self.grad_label, self.array, self.label)
        if isinstance(grad, Rows):
            self.check_rows()
        return grad

    def check_rows(self) -> None:
        """Raise ValueError if its state is in blocks or has an average: no row can be stepped by itself then."""
        rule = self.group.rule
        if self.group.get("ema") is not None:
            raise ValueError(no_average(self))
        if rule is not None and any(
            a.dtype in CODES and rule.in_one_byte(n) is not Steps8 for n, a in self.state.items()
        ):
            raise ValueError(no_blocks(self))

    def numbers(self) -> Array:
        """Its real numbers as the rule sees them; those of its master, in a new array, if it has one."""
        (numbers,) = loaded([self.stored])
        assert numbers is not None
        return numbers

    def check_like(self, array: Array, label: str) -> None:
        """Raise unless `array` has the dtype and shape of this parameter."""
        check_like(array, label, self.array, self.label)


def no_average(p: Parameter) -> str:
    """The message for a gradient of rows of a parameter of which an average is kept."""
    return (
        f"{p.grad_label} is a gradient of rows, and {p.label} has an average of its weights, which moves in all rows "
        "at each step; expected a whole gradient, or ema=None in its group"
    )


def no_blocks(p: Parameter) -> str:
    """The message for a gradient of rows of a parameter whose state is in blocks."""
    return (
        f"{p.grad_label} is a gradient of rows, and the state of {p.label} is in int8, where 256 weights of one block "
        "share a scale, rows that are not stepped among them; expected a whole gradient, or state_dtype='bfloat16'"
    )


def stored(param: Array, plane: Array | None, copy: Array | None = None) -> Stored:
    """A parameter as the plan steps it, with its second plane or the array that gets a copy of it."""
    if copy is not None:
        return Published(param, copy)
    if plane is None:
        return real_view(param)
    return Split(param, plane) if plane.dtype == BFLOAT16 else Mastered(param, plane)


def check_like(array: Array, label: str, param: Array, param_label: str) -> None:
    """Raise unless `array` has the dtype and shape of a parameter."""
    check_dtype(array, label, param, param_label)
    check_shape(array, label, param, param_label)


def check_dtype(array: Array, label: str, param: Array, param_label: str) -> None:
    """Raise TypeError unless `array` has the dtype of a parameter."""
    if array.dtype != param.dtype:
        raise TypeError(
            f"{label} is {name_of(array.dtype)}; expected {name_of(param.dtype)}, the dtype of {param_label}: "
            f"{MEND_DTYPE}"
        )


def check_shape(array: Array, label: str, param: Array, param_label: str) -> None:
    """Raise ValueError unless `array` has the shape of a parameter."""
    if array.shape != param.shape:
        raise ValueError(f"{label} has shape {array.shape}; expected {param.shape}, the shape of {param_label}")


def check_gradient(grad: Array | Rows, label: str, param: Array, param_label: str, cast: bool) -> None:
    """Raise unless a rule that steps `param` can compute with this gradient.

    That is a real gradient of at most as many bits as the arithmetic, with `cast` also of more; for complex parameters
    one of their dtype.
    """
    if isinstance(grad, Rows):
        label, values = f"values of {label}", grad.values
    else:
        values = grad
    if "c" in (param.dtype.kind, values.dtype.kind):
        check_dtype(values, label, param, param_label)
    elif values.dtype.itemsize > arithmetic(param.dtype).itemsize and not cast:
        less = "" if param.dtype == np.float32 else ", or float32"
        raise TypeError(
            f"{label} is {name_of(values.dtype)}; expected {name_of(param.dtype)}, the dtype of {param_label}{less}: "
            f"{MEND_DTYPE}, or pass cast_grads=True"
        )
    if not isinstance(grad, Rows):
        check_shape(values, label, param, param_label)
    elif param.ndim == 0:
        raise ValueError(f"{param_label} has no axis, and so no rows to have a gradient; expected an array of shape ()")
    elif values.shape != (expected := (len(grad.indices), *param.shape[1:])):
        raise ValueError(
            f"{label} has shape {values.shape}; expected {expected}, a row of {param_label} for each of indices"
        )


class Shown(Mapping[Any, Any]):
    """A read-only dict: the error for an assignment ends with `mend`, which says what to do instead."""

    __slots__ = ("_items", "_mend")

    def __init__(self, items: Mapping[Any, Any], mend: str) -> None:
        self._items, self._mend = items, mend

    def __getitem__(self, key: Any) -> Any:
        if key in self._items:
            return self._items[key]
        hint = did_you_mean(near(key, (k for k in self._items if isinstance(k, str)))) if isinstance(key, str) else ""
        raise KeyError(f"there is no {key!r}{hint}; expected one of: {listed(self._items)}")

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of a key, or the default."""
        return self._items.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(dict(self._items))

    def __or__(self, other: Any) -> Any:
        return {**self, **other} if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Any) -> Any:
        return {**other, **self} if isinstance(other, Mapping) else NotImplemented

    def __reduce__(self) -> Any:
        return dict, (dict(self._items),)  # a copy can be changed

    def __setitem__(self, key: Any, value: Any) -> None:
        if value is not self._items.get(key):  # `shown[key] += 1` changes an array in place and assigns the same object
            raise TypeError(f"{key!r} is shown here and cannot be set; {self._mend}")

    def __delitem__(self, key: Any) -> None:
        raise TypeError(f"{key!r} is shown here and cannot be removed; {self._mend}")


class Group(MutableMapping[str, Any]):
    """The hyperparameters of one parameter group: a dict whose changes take effect at the next step.

    Keys that are no hyperparameters, such as a name, are kept with their values unchanged.
    """

    __slots__ = ("changes", "data", "dtypes", "fixed", "rule", "settled", "stamp")

    def __init__(
        self, items: Mapping[str, Any], rule: type[Rule] | None = None, changes: Changes | None = None
    ) -> None:
        self.rule, self.changes = rule, changes or Changes()
        self.dtypes: frozenset[str] = frozenset()
        """Names of the dtypes in which the rule computes for its parameters."""
        self.fixed: frozenset[str] = rule.fixed if rule is not None else frozenset()
        """Hyperparameters that cannot be changed."""
        self.stamp = object()
        """Every change replaces this object."""
        self.settled: tuple[object, Any] | None = None
        """The stamp for which hyperparameters were last evaluated, and the result."""
        self.data = {key: self.own(key, value) for key, value in items.items()}

    @property
    def hyper(self) -> Mapping[str, Any]:
        """The hyperparameters of the rule, `lazy_rows` and `ema`, with their defaults."""
        return self.rule.grouped if self.rule is not None else {}

    def own(self, key: str, value: Any) -> Any:
        """A value as it is kept."""
        return frozen(value) if key in self.hyper else value

    def changed(self) -> list[Store]:
        """What to store after a change of `data`, so that it is checked before the next step."""
        return [(self, "stamp", object()), (self.changes, "now", object())]

    def check_key(self, key: str) -> None:
        """Raise ValueError for a key that cannot be set."""
        if key in self.fixed and self.rule is not None and key not in self.rule.fixed:
            raise ValueError(
                f"{key!r} cannot be changed with state_dtype='int8', in which the state was made for it; "
                "expected no change: make a new optimizer"
            )
        if key == "params" or key in self.fixed:
            raise ValueError(f"{key!r} has no effect after construction; expected no change: make a new optimizer")
        if key not in self.data and self.rule is not None and (why := self.rule.refused(key)):
            raise ValueError(why)

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def update(self, *others: Any, **more: Any) -> None:
        """Set some keys, or none if one of them is invalid."""
        given = dict(*others, **more)
        for key in given:
            self.check_key(key)
        commit([(self.data, key, self.own(key, value)) for key, value in given.items()], self.changed())

    def __reduce__(self) -> Any:
        return dict, (dict(self.data),)  # a copy belongs to no optimizer

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return repr(dict(self.data))

    def __delitem__(self, key: str) -> None:
        if key == "params" or key in self.hyper:
            raise ValueError(f"hyperparameter {key!r} cannot be removed; set it to the value wanted instead")
        rest = dict(self.data)
        del rest[key]
        commit((), [(self, "data", rest), *self.changed()])


def frozen(value: Any) -> Any:
    """A hyperparameter in immutable form: a tuple for a sequence or array, a number for a scalar."""
    if type(value) in (float, int, bool, str, type(None)):
        return value
    try:
        if hasattr(value, "tolist"):  # an array or a tensor
            value = value.tolist()
            while isinstance(value, list) and len(value) == 1:  # one number, whatever the shape
                (value,) = value
        if is_sequence(value):
            return tuple(map(plain, value))
    except MemoryError:
        raise
    except Exception:  # an unknown object: where it is used, the check raises an error
        return value
    return plain(value)


def is_sequence(value: Any) -> bool:
    """Whether it is a sequence, whatever its class: a list, a range, a ListConfig of Hydra."""
    if isinstance(value, (str, bytes, bytearray, Mapping, Set)) or callable(value):
        return False
    return isinstance(value, Sequence) or (hasattr(value, "__len__") and hasattr(value, "__getitem__"))


def plain(value: Any) -> Any:
    """A Python number for one of NumPy, or for an array or tensor of one element, whose arithmetic may differ."""
    if type(value) in (int, float, bool) or callable(value):
        return value
    try:
        if hasattr(value, "item"):
            value = value.item()
        if type(value) in (int, float, bool, complex) or not hasattr(value, "__float__"):
            return value
        return int(value) if isinstance(value, int) else float(value)
    except MemoryError:
        raise
    except Exception:  # not a single number: where it is used, the check raises an error
        return value


def is_on(label: str, value: Any) -> bool:
    """A bool; TypeError for anything that is neither True nor False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"Invalid {label}: {value!r} (expected True or False)")
    return bool(value)


def did_you_mean(meant: str) -> str:
    """What a message adds about a misspelt name."""
    return f": did you mean {meant!r}?" if meant else ""


def near(name: str, names: Iterable[str]) -> str:
    """The one of `names` that a misspelt name probably means; empty if there is none."""
    import difflib  # takes 2 ms, only when there is a mistake

    for known in names:
        ratio = difflib.SequenceMatcher(None, name.lower(), known).ratio()
        # One letter more, less or other in a word of 7, or one more or less in any: 'lrs', 'beta'. Not 'max_momentum'.
        if ratio >= 0.85 or (ratio >= 0.8 and abs(len(name) - len(known)) <= 1):
            return known
    return ""


def is_schedule(value: Any) -> bool:
    """Whether a hyperparameter, or an element of a pair, is a schedule."""
    return callable(value) or (isinstance(value, tuple) and any(map(callable, value)))


def at_step(value: Any, steps: int) -> Any:
    """The value of a hyperparameter, which may be a schedule, after `steps` completed steps."""
    if callable(value):
        value = frozen(value(steps))
    if isinstance(value, tuple):
        return tuple(at_step(v, steps) for v in value)
    return value


def check_number(label: str, value: Any, low: float = 0.0, high: float = math.inf, *, infinite: bool = False) -> None:
    """Raise unless `value` is a finite number with low <= value < high; `label` as torch.optim words it.

    With `infinite` it may be infinity too.
    """
    if type(value) is float and -math.inf < value and low <= value < high:  # the usual case, first
        return
    interval = f"a finite number >= {low:g}" if high == math.inf else f"a number >= {low:g} and < {high:g}"
    if infinite:
        interval = f"a number >= {low:g}"
    if low == -math.inf:
        interval = "a finite number"
    message = f"Invalid {label}: {value} (expected {interval})"
    # A False seems to mean that nothing is clipped, and as a 0 it would clip all gradients to 0.
    if not is_number(value) or (infinite and value is False):
        raise TypeError(f"Invalid {label}: {value!r:.80} (expected {interval})")
    try:
        number = float(value)
    except OverflowError:  # an int that exceeds the range of float
        raise ValueError(message[:200]) from None
    if not low <= number or (not number < high and not (infinite and number == math.inf)) or number == -math.inf:
        raise ValueError(message)


def is_number(value: Any) -> bool:
    """Whether it can stand for a number."""
    return hasattr(value, "__float__") and not isinstance(value, (str, bytes))


def is_pair(value: Any) -> bool:
    """Whether a hyperparameter is a pair of numbers."""
    return isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value))


def parse_groups(params: Any) -> list[dict[str, Any]]:
    """The group dicts in `params`: a sequence of arrays, a dict of named arrays, or a sequence of group dicts."""
    if is_array(params):
        raise TypeError(
            f"params is one {type(params).__name__}; expected a sequence or dict of arrays, or a sequence of groups: "
            "put it into a list"
        )
    if isinstance(params, (set, frozenset)):
        raise TypeError(f"params is a {type(params).__name__}, which has no order; expected a list or a dict of arrays")
    if isinstance(params, Mapping):
        if "params" in params and not is_array(params["params"]):
            raise TypeError("params is one group; expected a sequence of groups: put it into a list")
        items: list[Any] = [{"params": params}] if params else []
    elif isinstance(params, Iterable):
        given = list(params)
        grouped = [isinstance(g, Mapping) for g in given]
        if any(grouped) and not all(grouped):
            raise TypeError("params mixes groups and arrays; expected one kind: make every element a group")
        items = given if any(grouped) else [{"params": given}] if given else []
    else:
        raise TypeError(f"params is {type(params).__name__}; expected a sequence or dict of arrays")
    if not items:
        raise ValueError("optimizer got an empty parameter list; expected at least one array")
    return items


def parse_parameters(
    group: Group, start: int, names: dict[str | None, int], taken: Container[str | None], clock: Clock
) -> list[Parameter]:
    """The parameters of a new group, counted from `start`, each checked by itself; their numbers go into `names`.

    No name may be among `names` or `taken`.
    """
    given = group.data["params"]
    if not is_array(given) and (not isinstance(given, Iterable) or isinstance(given, (set, frozenset))):
        raise TypeError(f"params of a group is {type(given).__name__}; expected a sequence or dict of arrays")
    fresh: list[Parameter] = []
    for name, array in named(given):
        if name is not None and not isinstance(name, str):
            raise TypeError(f"parameter name {name!r} is {type(name).__name__}; expected a string")
        if name is not None and (name in names or name in taken):
            raise ValueError(f"parameter name {name!r} is used twice; expected a name of its own in every group")
        place = f"[{start + len(fresh)}]" + (f' ("{name}")' if name is not None else "")
        array, size = array if isinstance(array, Part) else (array, None)
        view = as_array(array, f"params{place}")
        check_writable(view, f"params{place}")
        view = view[...]  # which keeps its shape when `array.shape = ...` gives the array another
        fresh.append(Parameter(place, name, array, view, group, clock, home=home_of(array), part_of=size))
        if name is not None:
            names[name] = start + len(fresh) - 1
    return fresh


def home_of(given: Any) -> Any:
    """Where the elements of a tensor lie: address and strides; None for what cannot be given other memory."""
    at, stride = attribute(given, "data_ptr"), attribute(given, "stride")
    return None if at is None or stride is None else (at(), stride())


def named(given: Any) -> list[tuple[Any, Any]]:
    """The arrays of a collection, with names or None; names come from dicts and from pairs (name, array)."""
    if is_array(given):
        return [(None, given)]
    if isinstance(given, Mapping):
        return list(paths(given))
    items = list(given)
    return items if are_pairs(items) else [(None, item) for item in items]


def are_pairs(items: Sequence[Any]) -> bool:
    """Whether these are names with arrays."""
    return bool(items) and all(isinstance(i, tuple) and len(i) == 2 and isinstance(i[0], str) for i in items)


def paths(given: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[Any, Any]]:
    """Names and arrays of a dict; in nested dicts names are paths: {"l1": {"w": array}} has an "l1.w"."""
    for key, value in given.items():
        name = prefix + key if isinstance(key, str) else key
        if isinstance(value, Mapping) and isinstance(key, str):
            yield from paths(value, f"{name}.")
        else:
            yield name, value


def match_gradients(grads: Any, parameters: Sequence[Parameter], groups: Sequence[Sequence[Parameter]]) -> list[Any]:
    """One gradient or None for every parameter, from a sequence, a dict, or one of these for each group of them."""
    if is_array(grads) or is_matrix(grads) or isinstance(grads, (str, bytes)) or not isinstance(grads, Iterable):
        raise TypeError(
            f"grads is {type(grads).__name__}; expected a collection like params, with one array or None each"
        )
    if isinstance(grads, (set, frozenset)):
        raise TypeError(f"grads is a {type(grads).__name__}, which has no order; expected a list like params")
    if isinstance(grads, Mapping):
        return _match(grads, parameters, "grads")
    grads = list(grads)
    if are_pairs(grads):
        return _match(dict(grads), parameters, "grads")
    nested = [isinstance(g, (list, tuple, Mapping)) and not is_matrix(g) for g in grads]
    if not any(nested):
        return _match(grads, parameters, "grads")
    for i, given in enumerate(grads):
        if _is_numbers(given):
            raise TypeError(
                f"grads[{i}] is {type(given).__name__}; expected an array or None: convert it with numpy.asarray"
            )
    if len(grads) != len(groups):
        raise ValueError(f"grads has {len(grads)} groups; expected {len(groups)}, one per parameter group")
    matched: list[Any] = []
    for i, (given, members) in enumerate(zip(grads, groups, strict=True)):
        matched += _match(given, members, f"grads of group {i}")
    return matched


def _is_numbers(given: Any) -> bool:
    """Whether this is a list of numbers, or of lists of numbers, which is not an array."""
    return isinstance(given, (list, tuple)) and any(isinstance(g, (int, float, list, tuple)) for g in given)


def _match(grads: Any, members: Sequence[Parameter], label: str) -> list[Any]:
    if not isinstance(grads, Mapping):
        if is_array(grads) or not isinstance(grads, Iterable):
            raise TypeError(f"{label} is {type(grads).__name__}; expected a list with one array or None each")
        given = list(grads)
        if len(given) != len(members):
            raise ValueError(f"{label} has {len(given)} arrays; expected {len(members)}, one per parameter")
        return given
    names = {p.name: None for p in members}
    if None in names:
        raise ValueError(
            f"{label} is a dict, but the parameters have no names; expected a list of {len(members)} arrays"
        )
    given = list(paths(grads))
    grads = dict(given)
    if len(grads) < len(given):
        raise ValueError(f"{label} has a name twice; expected one array for each of params: {listed(names)}")
    for key in grads:
        if key not in names:
            raise ValueError(f"{label} has the unknown key {key!r}; expected the names of params: {listed(names)}")
    for name in names:
        if name not in grads:
            raise ValueError(f"{label} has no {name!r}; expected every name of params, None to leave one out")
    return [grads[name] for name in names]


def listed(names: Iterable[Any], most: int = 20) -> str:
    """Names for a message: all, or the first of many."""
    names = list(names)
    return f"{names}" if len(names) <= most else f"{names[:most]} and {len(names) - most} more"


def copies(parameters: Iterable[Parameter]) -> list[tuple[str, Array]]:
    """The arrays that get copies of parameters, and how messages name them."""
    return [(p.copy_label, p.copy) for p in parameters if p.copy is not None]


def match_copies(publish: Any, parameters: Sequence[Parameter]) -> None:
    """Give each parameter its array of `publish`; all are checked by themselves."""
    if is_array(publish) or isinstance(publish, (str, bytes, set, frozenset)) or not isinstance(publish, Iterable):
        raise TypeError(
            f"publish is {type(publish).__name__}; expected a list like params, with one array of 16 bits or None each"
        )
    if not isinstance(publish, Mapping) and are_pairs(publish := list(publish)):
        publish = dict(publish)
    for p, given in zip(parameters, _match(publish, parameters, "publish"), strict=True):
        if given is None:
            continue
        array = as_array(given, p.copy_label)
        check_copy(array, p.copy_label, p.array, p.label)
        p.published, p.copy, p.copy_home = given, array[...], home_of(given)
        p.__post_init__()


def check_copy(array: Array, label: str, param: Array, param_label: str) -> None:
    """Raise unless an array can get copies of a parameter."""
    if param.dtype != np.float32:
        raise TypeError(
            f"{label} is for {param_label}, which is {name_of(param.dtype)}; expected None there: copies are of "
            "float32 parameters"
        )
    if array.dtype not in SIXTEEN:
        raise TypeError(f"{label} is {name_of(array.dtype)}; expected bfloat16 or float16")
    check_shape(array, label, param, param_label)
    check_writable(array, label)


def state_arrays(parameters: Iterable[Parameter]) -> list[tuple[str, Array]]:
    """All state arrays, masters and copies, and how messages name them."""
    found = [(f"state {name!r} of {p.label}", array) for p in parameters for name, array in p.state.items()]
    found += [(f"the master of {p.label}", p.plane) for p in parameters if p.plane is not None]
    return found + copies(parameters)


def check_gradients(
    fresh: list[tuple[Parameter, Any]],
    kept: list[tuple[Parameter, Any]],
    written: Sequence[Parameter],
    zero: bool,
    cast: bool = False,
) -> None:
    """Raise unless the new gradients fit their parameters and share no memory with arrays that a step writes.

    These are parameters and state and, with `zero`, the gradients themselves, including those that stay. `cast`: see
    `check_gradient`.
    """
    for p, grad in fresh:
        check_gradient(grad, p.grad_label, p.array, p.label, cast)
        if zero:
            check_zeroed(grad, p.grad_label)
    mine = [(p.label, p.array) for p in written] + state_arrays(written)
    grads = [(p.grad_label, values_of(grad)) for p, grad in fresh]
    if zero:
        check_disjoint(mine + grads + [(p.grad_label, values_of(grad)) for p, grad in kept])
    else:
        check_disjoint(mine, grads)
