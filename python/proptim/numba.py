"""Every optimizer in functions that Numba compiles: ``proptim.numba.rmsprop(param, grad, square_avg, step=step)``.

There is one function for each rule, called by its name from `@njit` code, also if that is cached or parallel. Its
arguments are those of `proptim.functional`: the parameter, its gradient and the state arrays of the rule, stepped or
read in place; then by keyword `step`, counted from 1, the hyperparameters of the class of this name and the options
that belong to one array.
The bits are those of the optimizer objects.

``proptim.numba.rmsprop_rows(param, indices, values, square_avg, step=step)`` steps the rows of `param` that `indices`
names, an array of integers: ``values[i]`` is the gradient of ``param[indices[i]]``, as in `proptim.Rows`, and those of
a row that occurs several times are added up. It makes copies of these rows, and leaves all others alone.

``proptim.numba.rmsprop`` is the Python text of the rule, compiled into the caller; ``proptim.numba.c.rmsprop`` is the
same call into the compiled core. Called from Python both are `proptim.functional`, and there
``proptim.numba.rmsprop.init(param)`` makes the state arrays.

>>> import numba, numpy as np, proptim.numba
>>> @numba.njit
... def train(w, square_avg, steps):
...     for step in range(1, steps + 1):
...         proptim.numba.rmsprop(w, 2 * w, square_avg, step=step, lr=0.1)
>>> w = np.array([1.0, -3.0])
>>> train(w, np.zeros(2), 10)
>>> w.round(4)
array([ 0.0321, -1.4721])
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

try:
    from llvmlite import binding, ir
    from numba.core.errors import TypingError
    from numba.core.typing import templates

    from proptim._jit import INSIDE, Decorator, compiled, intrinsic, means, types, untyped
    from proptim._numba import loop, over
    from proptim._numba_formats import (
        FORMATS,
        BFloat16,
        Float16,
        first,
        format_of,
        load,
        mastered,
        planes_of,
        planewise,
        real_of,
        store,
    )
except ModuleNotFoundError as error:
    message = f"proptim.numba needs Numba ({error}): pip install 'proptim[numba]'"
    raise ModuleNotFoundError(message, name=error.name) from error

from proptim import OPTIMIZERS, _backend, _formats, functional
from proptim._arrays import Array, Bits, as_array
from proptim._rows import Rows
from proptim._storage import SCALE
from proptim.rule import LARGEST, Rule

# What the core is to LLVM: a symbol, for code with an address in it cannot be cached. Always there, because to call one
# that is missing would end the process: without the core it is a function that refuses.
_step_arrays = types.ExternalFunction(
    "proptim_step_arrays",
    types.int64(*[types.int64] * 4, types.voidptr, types.int64, types.voidptr, types.int64),
)
if _backend.missing_core:
    _refuse = ctypes.CFUNCTYPE(ctypes.c_int64)(lambda: 1)
    _address, _abi, _numbers = ctypes.cast(_refuse, ctypes.c_void_p).value, 0, dict[str, int]()
else:
    from proptim import _core

    _address, _abi, _numbers = _core.step_arrays_for_jit()
binding.add_symbol(_step_arrays.symbol, _address)


NEAREST, ALONE = "stores in compiled code round to nearest", "compiled code writes the parameter and its state alone"
REFUSED = {"rounding": NEAREST, "seed": NEAREST, **dict.fromkeys(("ema", "average", "publish"), ALONE)}
"""Keywords of `proptim.functional` that compiled code refuses, and why."""
APART = (*REFUSED, "threads", "backend")
"""Keywords of `proptim.functional` that are none in compiled code."""


class Step(functional.OneShot):
    """The step of one optimizer, for Python and for code that Numba compiles."""

    suffix = ""
    lenient = True  # as compiled code is: called from Python or not, a step accepts the same arrays

    def __init__(self, optimizer: type[Rule], backend: str | None) -> None:
        super().__init__(optimizer)
        self.__name__ = self.__qualname__ = self.__name__ + self.suffix
        self.backend = backend
        self.place = self.__name__ if backend is None else f"{backend}.{self.__name__}"
        self.__doc__ = f"One step of `{optimizer.__name__}` on one parameter, in place; see `proptim.numba`."
        self.scales = {name + SCALE for name in optimizer.states}
        """Keywords of state in one byte, which compiled code does not step."""
        without = {*APART, *self.scales}
        self.keywords = {name: value for name, value in self.keywords.items() if name not in without}
        self.__signature__ = self._signature()
        self.type = StepType(self)

    def __repr__(self) -> str:
        return f"<function proptim.numba.{self.place}{self.__signature__}>"

    def __reduce__(self) -> str:
        return self.place

    def __call__(self, /, *args: Any, **keywords: Any) -> None:
        given = {name: unwrapped(value) for name, value in keywords.items()}
        super().__call__(*map(unwrapped, args), **{"backend": self.backend, **given})

    def init(self, param: Any, **keywords: Any) -> dict[str, Any]:
        """The state arrays before the first step, by name; with `master` for a parameter of 16 bits."""
        return super().init(unwrapped(param), **keywords)

    def _type(self, *args: Any, **keywords: Any) -> Callable[..., None]:
        """Check the types of a call, and return the function that Numba compiles for them."""
        if self.backend == "c" and _backend.missing_core:
            raise TypingError(f"proptim.numba.c: {_backend.missing_core}; expected proptim.numba.{self.__name__}")
        for name, why in REFUSED.items():
            if name in keywords:
                raise TypingError(
                    f"proptim.numba.{self.place}: {name} is given, and {why}; expected none: make the step from "
                    "Python, by an optimizer or proptim.functional"
                )
        for name in self.scales:
            if name in keywords:
                raise TypingError(
                    f"proptim.numba.{self.place}: {name} is given, and compiled code steps one element after the other "
                    "while 256 in one byte share a scale; expected state of 16 bits or more, or a step from Python"
                )
        try:
            given = self.__signature__.bind(*args, **keywords).arguments
        except TypeError as error:
            raise TypingError(f"proptim.numba.{self.place}: {error}; expected {self.__signature__}") from None
        param = given["param"]
        for name in ("param", *self.given, *self.optimizer.states, "master"):
            kind = given.get(name, types.none)
            if kind is types.none and (name in self.optimizer.optional or name == "master"):
                continue
            if name == "indices":
                check_indices(kind, param)
                continue
            check_type(name, kind, param, cast="cast_grads" in given)
            if not all(plane.mutable for plane in planes_of(kind)) and (name not in GRADIENTS or "zero_grads" in given):
                raise TypingError(f"{name} is read-only; expected a writable array")
        for name, kind in given.items():
            like = 1 if name == "step" and kind is not types.none else self.keywords.get(name)
            if name in self.keywords and name != "master" and not fits(like, kind):
                raise TypingError(f"{name} is {kind}; expected the like of {like!r}, and no schedule")
        return self.entry

    @cached_property
    def entry(self) -> Callable[..., None]:
        """What is compiled: a function with our parameters written out, for Numba has no `**`."""
        run = run_core if self.backend == "c" else run_text
        known: dict[str, Any] = {"numbers": numbers(self.optimizer, self.losses), "run": run(self.optimizer)}
        known |= {"steady": compiled(self.optimizer.steady), "needs_loss": compiled(self.optimizer.needs_loss)}
        known |= {"same_shape": same_shape, "apart": apart, "check": check, "inf": math.inf}
        known |= {"float64": np.float64, "within": within, "in_dtype": in_dtype}
        known |= {"mastered": mastered, "first": first, "begins_with_zero": begins_with_zero}
        known |= {"copied": copied, "are_rows": are_rows, "fits_rows": fits_rows, "summed": summed, "zero": zero}
        known |= {"over": over, "taken": taken, "put_rows": put_rows}
        text = "\n    ".join(self._lines())
        exec(compile(text, f"<proptim.numba.{self.place}>", "exec"), known)
        entry: Callable[..., None] = known[self.__name__]
        return entry

    def _lines(self) -> Iterator[str]:
        optional, states, numbers = self.optimizer.optional, self.optimizer.states, self.given[-1]
        arrays = ["param", numbers, *states]
        parameters = [f"{name}=None" if name in optional else name for name in ("param", *self.given, *states)]
        parameters += [f"{name}={default!r}" for name, default in self.keywords.items()]
        yield f"def {self.__name__}({', '.join(parameters)}):"
        yield "if step is not None and step < 1:"
        yield "    raise ValueError('step is below 1; expected the number of this step, counted from 1')"
        yield from self._fit()
        for name in (*states, "master"):
            yield f"if not same_shape({name}, param):"
            yield f"    raise ValueError('{name} has not the shape of param; expected it')"
        for name in self.optimizer.never_zero:
            yield f"if first(param).size and begins_with_zero({name}):"
            made = f"proptim.numba.{self.__name__}.init(param) makes"
            yield f"    raise ValueError('{name} begins with 0, which no step leaves; expected what {made}')"
        for one, other in itertools.combinations([*arrays, "master"], 2):
            yield f"if not apart({one}, {other}):"
            yield f"    raise ValueError('{one} and {other} share memory; expected separate memory: pass a copy')"
        # The texts of `advance` and `stages` take a mapping. If it contains a string, Numba keeps all types.
        hyper = [f"{name!r}: {as_float(name, default)}" for name, default in self.optimizer.hyper.items()]
        yield f"h = {{'rule': {self.__name__!r}, {', '.join(hyper)}}}"
        for name, default in self.optimizer.hyper.items():
            yield from self._range(name, default)
        for name, switch in optional.items():
            yield f"if {switch} and {name} is None:"
            yield f"    raise ValueError('{switch} is on; expected an array {name}')"
        yield "if step is None and not (steady(h) or needs_loss(h)):"
        counting = f"{self.__name__} counts its steps; expected step=, the number of this one, from 1 on"
        yield f"    raise ValueError('{counting}')"
        counts = [name for name in self.keywords if name in self.optimizer.clock_start and name != "step"]
        clock = [*counts, "None"][0]
        loss = "loss" if self.losses else "None"
        more = "float64(grad_scale), int(zero_grads), int(flush_denormals)"
        yield f"coefs, stages = numbers(h, 2 if step is None else step, {clock}, {loss}, {more})"
        yield f"check(coefs, stages, param, {numbers}, cast_grads)"
        yield from self._before()
        when = "if"
        for on in itertools.product((True, False), repeat=len(optional)):
            off = [name for name, used in zip(optional, on, strict=True) if not used]
            used = " and ".join(switch for name, switch in optional.items() if name not in off)
            yield f"{when} {used or True}:"
            stepped = zip(("param", numbers, *states), self._stepped(), strict=True)
            yield f"    run(({', '.join('None' if name in off else each for name, each in stepped)}), coefs, stages)"
            when = "elif"
        yield from self._after()

    def _stepped(self) -> list[str]:
        """The arrays that are stepped: the parameter, its gradient and the state."""
        return ["mastered(param, master)", "grad", *self.optimizer.states]

    def _before(self) -> Iterator[str]:
        """What is done before the step, once all arguments have been checked."""
        yield from ()

    def _after(self) -> Iterator[str]:
        """What is done after it."""
        yield from ()

    def _fit(self) -> Iterator[str]:
        """Checks of the gradient."""
        yield "if not same_shape(grad, param):"
        yield "    raise ValueError('grad has not the shape of param; expected it')"

    def _range(self, name: str, default: Any) -> Iterator[str]:
        """Checks for numbers that are out of range, also when rounded to the dtype in which the rule computes."""
        if isinstance(default, (bool, str)):
            return
        for i in range(len(default)) if isinstance(default, tuple) else (None,):
            of, label = (f"h['{name}']", name) if i is None else (f"h['{name}'][{i}]", f"{name}[{i}]")
            yield f"number = in_dtype({of}, param)"
            vanishes = f" or (number == 0 and {of} > 0)" * (name == "eps")
            yield f"if not within(number, {legal(self.optimizer, name, i)}){vanishes}:"
            like = f"expected one that proptim.{self.optimizer.__name__} takes"
            yield f"    raise ValueError('{label} is out of range in the dtype of param; {like}')"


class RowsStep(Step):
    """The step of some rows, whose gradient is in two arrays: the indices of rows, and a gradient for each."""

    suffix = "_rows"
    given = ("indices", "values")

    def __call__(self, /, *args: Any, **keywords: Any) -> None:
        arrays = self._arrays(self.given, args, keywords)
        rows = Rows(*(unwrapped(arrays.pop(name)) for name in self.given))
        super().__call__(arrays.pop("param"), rows, **arrays, **keywords)

    def _fit(self) -> Iterator[str]:
        yield "indices = copied(indices)"  # what is written to it from now on is not seen
        yield "if not fits_rows(values, indices, param):"
        yield "    raise ValueError('values has another shape; expected a row of param for each of indices')"
        yield "if not are_rows(indices, len(first(param))):"
        yield "    raise ValueError('indices has one that is no row of param; expected 0 to len(param) - 1')"

    def _stepped(self) -> list[str]:
        return ["parts[0]", "grad", *(f"parts[{i + 1}]" for i in range(len(self.optimizer.states)))]

    def _before(self) -> Iterator[str]:
        yield "rows, grad = summed(param, indices, values)"
        yield "if zero_grads:"
        yield "    zero(values)"
        yield f"arrays = ({', '.join(['mastered(param, master)', *self.optimizer.states])},)"
        yield "parts = over(taken, arrays, rows, None)"

    def _after(self) -> Iterator[str]:
        yield "put_rows(arrays, parts, rows)"


GRADIENTS = (Step.given[-1], RowsStep.given[-1])


def check_indices(kind: Any, param: Any) -> None:
    """Raise TypingError unless an array of this type can be the indices of rows of that parameter."""
    if not isinstance(kind, types.Array) or not isinstance(kind.dtype, types.Integer) or kind.ndim != 1:
        raise TypingError(f"indices is {kind}; expected an array of integers of one dimension")
    if planes_of(param) and planes_of(param)[0].ndim == 0:
        raise TypingError("param has no dimension, and so no rows to have a gradient; expected an array with one")


def check_type(name: str, kind: Any, param: Any, cast: bool) -> None:
    """Raise TypingError unless an array of this type can stand under this name beside a parameter of that type."""
    made, words = format_of(kind), f"proptim.numba.bfloat16({name}) or .float16({name})"
    if isinstance(kind, types.Array) and kind.dtype == types.uint16 and name != "master":
        raise TypingError(f"{name} is {kind}, bits that may be of two formats; expected {words} to say which")
    real = real_of(param)
    if name == "master":
        halves = " or uint16, the low halves" if format_of(param) is BFloat16 else ""
        if format_of(param) is None:
            raise TypingError("master is given, and param is complete by itself; expected none: leave it out")
        known = (types.float32, types.uint16) if halves else (types.float32,)
        if not isinstance(kind, types.Array) or kind.dtype not in known:
            raise TypingError(f"master is {kind}; expected an array of float32{halves}, as init makes it")
    elif made not in (None, BFloat16, Float16) or (
        made is None and not (isinstance(kind, types.Array) and kind.dtype in (types.float32, types.float64))
    ):
        raise TypingError(f"{name} is {kind}; expected an array of float32 or float64, or {words} for one of 16 bits")
    elif made is None and name in GRADIENTS and kind.dtype.bitwidth > real.bitwidth and not cast:
        raise TypingError(f"{name} is {kind}; expected {real}: use .astype, or pass cast_grads=True")
    elif made is None and name not in (*GRADIENTS, "param") and kind.dtype != real:
        raise TypingError(f"{name} is {kind}; expected {real}, in which the rule computes for param: use .astype")
    if planes_of(kind)[0].ndim != planes_of(param)[0].ndim:
        dimensions = f"{planes_of(param)[0].ndim}, those of param"
        raise TypingError(f"{name} has {planes_of(kind)[0].ndim} dimensions; expected {dimensions}")


def fits(default: Any, kind: Any) -> bool:
    """Whether an argument of this type can replace this default."""
    kind = types.unliteral(kind)
    if isinstance(default, tuple):
        return isinstance(kind, types.BaseTuple) and len(kind) == len(default) and all(map(fits, default, kind))
    if default is None:
        return kind is types.none or fits(0.0, kind)
    known = {
        str: types.UnicodeType,
        bool: types.Boolean,
        int: types.Integer,
        float: (types.Integer, types.Float),
    }
    return isinstance(kind, known[type(default)])


def as_float(name: str, default: Any) -> str:
    """The expression of a hyperparameter in which numbers are float64, as in the objects, and none is no bool."""
    if isinstance(default, tuple):
        return f"({', '.join(f'float64({name}[{i}])' for i in range(len(default)))})"
    if isinstance(default, bool):
        return f"int({name})"  # Numba has no float() of a bool, which the texts take
    if default is None:
        return f"inf if {name} is None else float64({name})"
    return f"float64({name})" if isinstance(default, float) else name


# Coefficients --------------------------------------------------------------------------------------------------------


def numbers(optimizer: type[Rule], losses: bool) -> Callable[..., Any]:
    """A compiled function for the coefficients of rule and stages of a step, as in `Rule.numbers`."""
    plain: Decorator = untyped.njit(**{**INSIDE, "error_model": "python"})  # a division by zero is an error here
    advance, stages, needs_loss = (plain(text) for text in (optimizer.advance, optimizer.stages, optimizer.needs_loss))
    clock = plain(clock_text(optimizer, losses, advance, plain))

    @plain
    def heard(h: Any, loss: Any) -> Any:
        if loss is not None:
            return -np.float64(loss) if h["maximize"] else np.float64(loss)
        if losses and needs_loss(h):
            raise ValueError("this variant compares losses; expected loss=")
        return math.nan if losses else None

    @plain
    def numbers(h: Any, step: Any, given: Any, loss: Any, scale: Any, zero: Any, flush: Any) -> Any:
        coefs, _ = advance(h, clock(h, unknown(step) - 1.0, given), heard(h, loss))
        return coefs, stages(h, scale, zero, flush)

    return numbers


def clock_text(optimizer: type[Rule], losses: bool, advance: Any, plain: Decorator) -> Callable[..., Any]:
    """The clock after that many steps, given its other values or None. There is a text for each kind of rule."""
    start = tuple(map(float, optimizer.clock_start.values()))

    def counted(h: Any, steps: Any, given: Any) -> Any:
        return (steps,)

    if len(start) == 1:
        return counted

    if hasattr(optimizer.clock_at, "__self__"):  # the way of Rule, a class method

        def at(h: Any, steps: Any) -> Any:
            now = start
            while now[0] < steps:
                _, now = advance(h, now, None)
            return now
    else:
        at = optimizer.clock_at
    at = plain(at)

    def clock(h: Any, steps: Any, given: Any) -> Any:
        if given is not None:
            return steps, -np.float64(given) if losses and h["maximize"] else np.float64(given)
        return at(h, steps)

    return clock


def legal(optimizer: type[Rule], name: str, place: int | None) -> tuple[bool, ...]:
    """Whether a hyperparameter, or an element of a pair, may be below 0, 0, between 0 and 1, 1, and above 1.

    The rule's own check decides. It checks all hyperparameters at once, so the others have their defaults.
    """

    def passes(value: float) -> bool:
        pair = optimizer.hyper[name]
        given = value if place is None else tuple(value if i == place else each for i, each in enumerate(pair))
        try:
            optimizer.check_all({**optimizer.hyper, name: given})
        except (TypeError, ValueError):
            return False
        return True

    return tuple(map(passes, (-1.0, 0.0, 0.5, 1.0, 2.0)))


@compiled
def within(value: Any, bounds: Any) -> Any:
    """Whether a number is in one of the `legal` ranges; NaN never is."""
    return value == value and bounds[(value >= 0) + (value > 0) + (value >= 1) + (value > 1)]


@intrinsic
def in_dtype(context: Any, number: Any, param: Any) -> Any:
    """A float64 rounded to the dtype in which the rule computes for a parameter, as a float64."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        once = context.cast(builder, args[0], types.float64, real_of(param))
        return context.cast(builder, once, real_of(param), types.float64)

    return types.float64(types.float64, param), code


def check(coefs: Any, stages: Any, param: Any, grad: Any, cast_grads: Any) -> Any:
    """Raise ValueError for coefficients that are not finite in the dtype of the rule, or a gradient of more bits."""


@means(check)
def _check(coefs: Any, stages: Any, param: Any, grad: Any, cast_grads: Any) -> Callable[..., None]:
    real = real_of(param)
    largest = LARGEST[str(real)]
    fits_grad = bool(format_of(grad)) or grad.dtype.bitwidth <= real.bitwidth

    def check(coefs: Any, stages: Any, param: Any, grad: Any, cast_grads: Any) -> None:
        if not (fits_grad or cast_grads):
            raise ValueError(
                "the gradient is float64 and param is not; expected cast_grads to be True, or another dtype"
            )
        decay, scale, _, l2, _, _, _ = stages
        for value in (*coefs, decay, scale, l2):
            if not -largest < value < largest:
                raise ValueError("a number computed from the hyperparameters is not finite in the dtype of param")

    return check


@intrinsic
def unknown(context: Any, step: Any) -> Any:
    """`step`, hidden from LLVM, which would replace b**2.0 by b*b, whose last bits may differ."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = context.cast(builder, args[0], step, types.int64)
        return builder.asm(ir.FunctionType(number.type, [number.type]), "", "=r,0", [number], False)

    return types.int64(step), code


# Arrays --------------------------------------------------------------------------------------------------------------


def unwrapped(given: Any) -> Any:
    """The array that `proptim.functional` accepts in place of one of `bfloat16` or `float16`."""
    if isinstance(given, BFloat16):
        return given.words.view(Bits)
    return given.words.view(np.float16) if isinstance(given, Float16) else given


@compiled
def same_shape(array: Any, param: Any) -> Any:
    return True if array is None else first(array).shape == first(param).shape


def begins_with_zero(array: Any) -> Any:
    """Whether the first number of an array is 0, of either sign."""


@means(begins_with_zero)
def _begins_with_zero(array: Any) -> Callable[..., Any]:
    if format_of(array):
        return lambda array: first(array).flat[0] & 0x7FFF == 0  # the bits but for the sign
    return lambda array: array.flat[0] == 0


def apart(one: Any, other: Any) -> Any:
    """False for two arrays that share memory and are both one dense run; other arrays are not checked."""


@means(apart)
def _apart(one: Any, other: Any) -> Callable[..., Any]:
    if not (planes_of(one) and planes_of(other)):  # None
        return lambda one, other: True
    if format_of(one) or format_of(other):
        return lambda one, other: apart(first(one), first(other))

    def dense(one: Any, other: Any) -> Any:
        if not (one.flags.contiguous and other.flags.contiguous) or one.size == 0 or other.size == 0:
            return True
        start, end = one.ctypes.data, other.ctypes.data
        return start + one.nbytes <= end or end + other.nbytes <= start

    return dense


# What is done to each plane of an array


@compiled
def at(array: Any, i: Any) -> Any:
    return planewise(row_of, array, i)


@compiled
def flat(array: Any, _: Any) -> Any:
    return planewise(flat_of, array, None)


@compiled
def transposed(array: Any, _: Any) -> Any:
    return planewise(transpose_of, array, None)


@compiled
def row_of(plane: Any, i: Any) -> Any:
    return plane[i]


@compiled
def flat_of(plane: Any, _: Any) -> Any:
    return plane.reshape(plane.size)


@compiled
def transpose_of(plane: Any, _: Any) -> Any:
    return plane.T


def run_text(optimizer: type[Rule]) -> Callable[..., None]:
    """A step by the Python text, for arrays of any shape and strides."""
    of_one_dimension = loop(optimizer.rule)

    def run(arrays: Any, coefs: Any, stages: Any) -> None:
        """The result of `typed`."""

    @means(run)
    def typed(arrays: Any, coefs: Any, stages: Any) -> Callable[..., None]:
        layouts = {plane.layout for array in arrays for plane in planes_of(array)}
        if planes_of(arrays[0])[0].ndim == 1:
            return lambda arrays, coefs, stages: of_one_dimension(arrays, coefs, stages)
        if layouts == {"C"}:
            return lambda arrays, coefs, stages: of_one_dimension(over(flat, arrays, None, None), coefs, stages)
        if layouts == {"F"}:
            return lambda arrays, coefs, stages: run(over(transposed, arrays, None, None), coefs, stages)

        def rows(arrays: Any, coefs: Any, stages: Any) -> None:
            for i in range(len(first(arrays[0]))):
                run(over(at, arrays, i, None), coefs, stages)

        return rows

    return run


# Rows ----------------------------------------------------------------------------------------------------------------


@compiled
def copied(indices: Any) -> Any:
    """Indices of any type; those that are none of int64 are negative in it."""
    return indices.astype(np.int64)


@compiled
def are_rows(indices: Any, length: Any) -> Any:
    return len(indices) == 0 or (indices.min() >= 0 and indices.max() < length)


def fits_rows(values: Any, indices: Any, param: Any) -> Any:
    """Whether there is a row of the parameter for each index."""


@means(fits_rows)
def _fits_rows(values: Any, indices: Any, param: Any) -> Callable[..., Any]:
    if planes_of(param)[0].ndim == 1:
        return lambda values, indices, param: len(first(values)) == len(indices)
    return lambda values, indices, param: (
        len(first(values)) == len(indices) and first(values).shape[1:] == first(param).shape[1:]
    )


@compiled
def rows_of(plane: Any, rows: Any) -> Any:
    return plane[rows]


@compiled
def taken(array: Any, rows: Any) -> Any:
    """A copy of these rows of an array."""
    return planewise(rows_of, array, rows)


def put_rows(arrays: Any, parts: Any, rows: Any) -> None:
    """Copy the rows back to each plane of each array, of which some are None."""


@means(put_rows)
def _put_rows(arrays: Any, parts: Any, rows: Any) -> Callable[..., None]:
    if not len(arrays):
        return lambda arrays, parts, rows: None
    if isinstance(arrays[0], types.NoneType):
        return lambda arrays, parts, rows: put_rows(arrays[1:], parts[1:], rows)
    if format_of(arrays[0]):

        def planes(arrays: Any, parts: Any, rows: Any) -> None:
            put_rows(tuple(arrays[0]), tuple(parts[0]), rows)
            put_rows(arrays[1:], parts[1:], rows)

        return planes

    def both(arrays: Any, parts: Any, rows: Any) -> None:
        for k in range(len(rows)):
            arrays[0][rows[k]] = parts[0][k]
        put_rows(arrays[1:], parts[1:], rows)

    return both


def summed(param: Any, indices: Any, values: Any) -> Any:
    """The rows that have a gradient, ascending, and the gradient of each, as `Rows.summed`."""


@means(summed)
def _summed(param: Any, indices: Any, values: Any) -> Callable[..., Any]:
    real = np.float64 if real_of(param) == types.float64 else np.float32

    def summed(param: Any, indices: Any, values: Any) -> Any:
        order = np.argsort(indices, kind="mergesort")  # stable: those of a row stay in their order
        rows, width = np.empty(len(indices), np.int64), first(values).size // max(1, len(indices))
        flat, sums, count = dense(values), np.empty(len(indices) * width, real), 0
        for k in order:
            if count == 0 or rows[count - 1] != indices[k]:
                rows[count] = indices[k]
                for j in range(width):
                    sums[count * width + j] = load(flat, k * width + j, real(0))
                count += 1
            else:
                for j in range(width):
                    sums[(count - 1) * width + j] += load(flat, k * width + j, real(0))
        return rows[:count], sums[: count * width].reshape((count, *first(param).shape[1:]))

    return summed


@compiled
def dense(array: Any) -> Any:
    """The elements of an array in one row, copied if they are not."""
    return planewise(dense_of, array, None)


@compiled
def dense_of(plane: Any, _: Any) -> Any:
    return np.ascontiguousarray(plane).reshape(plane.size)


def zero(array: Any) -> None:
    """Set the numbers of a gradient to zero; a read-only one has been refused where that is asked for."""


@means(zero)
def _zero(array: Any) -> Callable[..., None]:
    def set_to_zero(array: Any) -> None:
        first(array)[...] = 0

    (plane,) = planes_of(array)
    return set_to_zero if plane.mutable else lambda array: None


def place(array: Any, param: Any) -> Any:
    """The number of the format of an array, then address and strides of each of two planes; 0 for a missing one."""


@means(place)
def _place(array: Any, param: Any) -> Callable[..., Any]:
    made, real = format_of(array), real_of(param)
    number = _numbers[FORMATS[made] if made else "PLAIN" if array.dtype == real else str(array.dtype).upper()]
    if made is None:
        return lambda array, param: (number, np.intp(array.ctypes.data), *array.strides, 0, *array.strides)
    if len(planes_of(array)) == 1:
        return lambda array, param: (number, np.intp(array[0].ctypes.data), *array[0].strides, 0, *array[0].strides)
    return lambda array, param: (
        number,
        np.intp(array[0].ctypes.data),
        *array[0].strides,
        np.intp(array[1].ctypes.data),
        *array[1].strides,
    )


@compiled
def placed(array: Any, param: Any) -> Any:
    return place(array, param)


def head(param: Any) -> Any:
    """As long as what `place` returns: the bytes of a number that the rule computes in, 0, and the shape twice."""


@means(head)
def _head(param: Any) -> Callable[..., Any]:
    size = real_of(param).bitwidth // 8
    return lambda param: (size, 0, *first(param).shape, 0, *first(param).shape)


def run_core(optimizer: type[Rule]) -> Callable[..., None]:
    """A step by `step_arrays` of `_core.pyx`."""
    rule = -1 if _backend.missing_core else list(_core.rules()).index(optimizer.kernel)

    @compiled
    def run(arrays: Any, coefs: Any, stages: Any) -> None:
        shape = head(arrays[0])  # also what stands for an array that is off: its address is 0
        places = np.array((shape, *over(placed, arrays, arrays[0], shape)))
        row = np.array((*coefs, *stages))
        refused = _step_arrays(
            _abi, rule, len(shape) // 2 - 1, len(arrays), places.ctypes, len(coefs), row.ctypes, len(stages)
        )
        if refused:
            raise RuntimeError(
                "this was compiled for a core of proptim that is not the one here; expected it: clear Numba's cache"
            )

    return run


# Numbers of 16 bits ---------------------------------------------------------------------------------------------------


def bfloat16(array: Any) -> BFloat16:
    """An array of bfloat16 numbers as steps in compiled code take it.

    Parameters
    ----------
    array : array
        uint16, the bits; from Python also of the bfloat16 of ml_dtypes or torch.
    """
    return BFloat16(words(array, "bfloat16"))


def float16(array: Any) -> Float16:
    """An array of float16 numbers as steps in compiled code take it.

    Parameters
    ----------
    array : array
        uint16, the bits; from Python also of float16.
    """
    return Float16(words(array, "float16"))


def words(array: Any, name: str) -> Array:
    """The bits of an array of numbers of 16 bits, in the same memory."""
    seen = as_array(array, "array", bits=True)
    given = str(array.dtype).removeprefix("torch.")
    if given not in (name, "uint16"):
        raise TypeError(f"array is {given}; expected {name}, or uint16 for its bits: convert it with .astype")
    return seen.view(np.uint16)


def widen(array: Any) -> Array:
    """The numbers of an array of `bfloat16` or `float16`, exactly, in a new array of float32."""
    return _formats.widened(as_array(unwrapped(array), "array"), _formats.FLOAT32)


def narrow(numbers: Any, array: Any) -> None:
    """Set an array of `bfloat16` or `float16` to numbers of the same shape, each rounded once, to nearest even."""
    seen, out = as_array(numbers, "numbers"), as_array(unwrapped(array), "array")
    if seen.shape != out.shape:
        raise ValueError("numbers has not the shape of array; expected it")
    out[...] = _formats.rounded(seen, out.dtype)


def _marked(made: Any) -> Callable[..., Any]:
    def typed(array: Any) -> Callable[..., Any]:
        if not isinstance(array, types.Array) or array.dtype != types.uint16:
            raise TypingError(f"array is {array}; expected an array of uint16, the bits of the numbers")
        return lambda array: made(array)

    return typed


means(bfloat16)(_marked(BFloat16))
means(float16)(_marked(Float16))


@means(widen)
def _widen(array: Any) -> Callable[..., Any]:
    if format_of(array) not in (BFloat16, Float16):
        raise TypingError(f"array is {array}; expected proptim.numba.bfloat16(array) or .float16(array)")

    def widen(array: Any) -> Any:
        numbers = np.empty(array.words.shape, np.float32)
        for i in np.ndindex(array.words.shape):
            numbers[i] = load(array, i, np.float32(0))
        return numbers

    return widen


@means(narrow)
def _narrow(numbers: Any, array: Any) -> Callable[..., Any]:
    if format_of(array) not in (BFloat16, Float16):
        raise TypingError(f"array is {array}; expected proptim.numba.bfloat16(array) or .float16(array)")
    if not isinstance(numbers, types.Array) or numbers.dtype not in (types.float32, types.float64):
        raise TypingError(f"numbers is {numbers}; expected an array of float32 or float64")

    def narrow(numbers: Any, array: Any) -> None:
        if numbers.shape != array.words.shape:
            raise ValueError("numbers has not the shape of array; expected it")
        for i in np.ndindex(numbers.shape):
            store(array, i, numbers[i])

    return narrow


# A step as an argument ------------------------------------------------------------------------------------------------


class StepType(types.Function):  # type: ignore[misc]  # Numba is untyped
    """The type of one step, with its name: code that gets the step as an argument is compiled and cached for it."""

    def __init__(self, step: Step) -> None:
        self.step = step
        make: Any = templates.make_overload_template
        super().__init__(make(step, step._type, INSIDE, strict=False, inline="never"))
        self.name = f"proptim.numba.{step.place}"

    @property
    def key(self) -> str:
        return f"proptim.numba.{self.step.place}"

    def __reduce__(self) -> Any:
        return type_of, (self.step,)


def type_of(step: Step) -> StepType:
    """The type of a step, also when it comes from Numba's cache."""
    return step.type


untyped.extending.typeof_impl.register(Step)(lambda step, _: step.type)
untyped.extending.register_model(StepType)(untyped.extending.models.OpaqueModel)


def _unbox(kind: Any, step: Any, c: Any) -> Any:
    """No data: the type says which step it is."""
    return untyped.extending.NativeValue(c.context.get_dummy_value())


untyped.extending.unbox(StepType)(_unbox)

STEPS = (Step, RowsStep)
globals().update(
    {name + kind.suffix: kind(optimizer, None) for name, optimizer in OPTIMIZERS.items() for kind in STEPS}
)
c = ModuleType("proptim.numba.c", "The steps of `proptim.numba` by the compiled core.")  # Numba looks into modules
vars(c).update({name + kind.suffix: kind(optimizer, "c") for name, optimizer in OPTIMIZERS.items() for kind in STEPS})


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module 'proptim.numba' has no attribute {name!r}; expected {', '.join(OPTIMIZERS)} or c")
