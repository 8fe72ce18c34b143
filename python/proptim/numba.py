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
from collections.abc import Callable, Container, Iterator, Mapping
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
        paired,
        passed,
        planes_of,
        planewise,
        real_of,
        store,
    )
    from proptim._numba_stores import all_opened, close_all, move
except ModuleNotFoundError as error:
    message = f"proptim.numba needs Numba ({error}): pip install 'proptim[numba]'"
    raise ModuleNotFoundError(message, name=error.name) from error

from proptim import OPTIMIZERS, _backend, _formats, functional
from proptim._arrays import Array, Bits, as_array
from proptim._formats import QUANTA, Compact, Int8, Squares8, Steps8
from proptim._rows import Rows
from proptim._storage import SCALE, array_of
from proptim.rprop import _grid_steps, _on_grid
from proptim.rule import LARGEST, Rule

# What the core is to LLVM: a symbol, for code with an address in it cannot be cached. Always there, because to call one
# that is missing would end the process: without the core it is a function that refuses.
_step_arrays = types.ExternalFunction(
    "proptim_step_arrays",
    types.int64(*[types.int64] * 4, types.voidptr, types.int64, types.voidptr, types.int64, *[types.uint64] * 4),
)
if _backend.missing_core:
    _refuse = ctypes.CFUNCTYPE(ctypes.c_int64)(lambda: 1)
    _address, _abi, _numbers = ctypes.cast(_refuse, ctypes.c_void_p).value, 0, dict[str, int]()
else:
    from proptim import _core

    _address, _abi, _numbers = _core.step_arrays_for_jit()
binding.add_symbol(_step_arrays.symbol, _address)


APART = ("threads", "backend")
"""Keywords of `proptim.functional` that are none in compiled code."""
BESIDE = ("master", "average", "publish")
"""Keywords that are arrays like the parameter."""


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
        self.keywords = {name: value for name, value in self.keywords.items() if name not in APART}
        self.__signature__ = self._signature()
        self.entries: dict[frozenset[str], Callable[..., None]] = {}
        """What is compiled, by the names that are given of those that make a difference to it."""
        self.scales = [name + SCALE for name in optimizer.states]
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
        try:
            given = self.__signature__.bind(*args, **keywords).arguments
        except TypeError as error:
            raise TypingError(f"proptim.numba.{self.place}: {error}; expected {self.__signature__}") from None
        off = {name for name, kind in given.items() if kind is types.none and self.keywords.get(name) is None}
        given = {name: kind for name, kind in given.items() if name not in off}
        for name in self._needed(given):
            self._check_array(name, given)
        for name, one, other in (("ema", "ema", "average"), ("average", "average", "ema")):
            if one in given and other not in given:
                raise TypingError(
                    f"{name} is given, and no {other}; expected both or neither: proptim.numba.{self.__name__}.init("
                    "param, ema=0.999) makes the average, and ema= is its decay in each step"
                )
        likes = self.keywords | {"step": 1, "ema": 0.0}
        for name in [name for name in given if name in self.keywords and name not in self._needed(given)]:
            kind, like = given[name], likes[name]
            if not fits(like, kind):
                schedule = ", and no schedule" * (name in self.optimizer.hyper or name in ("grad_scale", "ema"))
                raise TypingError(f"{name} is {kind}; expected the like of {like!r}{schedule}")
        names = frozenset(given) & {*self.optimizer.states, *self.scales, *BESIDE, "rounding", "seed"}
        if names not in self.entries:
            self.entries[names] = self._entry(names)
        return self.entries[names]

    def _needed(self, given: Container[str]) -> list[str]:
        """The names of the arrays that there are in a call with these arguments, and of those that there must be."""
        needed = [name for name in self.optimizer.states if name in given or name not in self.optimizer.optional]
        return ["param", *self.given, *needed, *(name for name in (*BESIDE, *self.scales) if name in given)]

    def _check_array(self, name: str, given: Mapping[str, Any]) -> None:
        """Raise TypingError unless the array of this name is one that the step takes."""
        param, kind = given["param"], given.get(name, types.none)
        if name == "indices":
            check_indices(kind, param)
        elif name == "publish":
            check_copy(kind, param)
        elif (state := array_of(name)) in self.optimizer.states and state + SCALE in given:
            check_one_byte(state, self.optimizer.in_one_byte(state), given)
        elif state in self.optimizer.states and getattr(kind, "dtype", None) in (types.int8, types.uint8):
            raise TypingError(f"{name} has one byte and no {name}{SCALE}; expected both, as init() makes them")
        else:
            check_type(name, kind, param, cast="cast_grads" in given)
        written = name not in GRADIENTS or "zero_grads" in given
        if written and name != "indices" and not all(plane.mutable for plane in planes_of(kind)):
            raise TypingError(f"{name} is read-only; expected a writable array")

    @cached_property
    def _known(self) -> dict[str, Any]:
        """What the functions of all types call, by its name there."""
        run = run_core if self.backend == "c" else run_text
        known: dict[str, Any] = {"numbers": numbers(self.optimizer, self.losses), "run": run(self.optimizer)}
        known |= {"steady": compiled(self.optimizer.steady), "needs_loss": compiled(self.optimizer.needs_loss)}
        known |= {"same_shape": same_shape, "extent": extent, "sharing": sharing, "check": check, "inf": math.inf}
        known |= {"float32": np.float32, "float64": np.float64, "uint64": np.uint64}
        known |= {"within": within, "in_dtype": in_dtype, "begins_with_zero": begins_with_zero}
        known |= {"paired": paired, "first": first}
        known |= {"are_scales": are_scales, "is_grid": is_grid, "grid_steps": grid_steps, "on_grid": on_grid}
        known |= {"Int8": Int8, "Squares8": Squares8, "Steps8": Steps8}
        known |= {"copied": copied, "are_rows": are_rows, "fits_rows": fits_rows, "summed": summed, "zero": zero}
        return known | {"over": over, "taken": taken, "one_row": one_row, "put_rows": put_rows}

    def _entry(self, given: frozenset[str]) -> Callable[..., None]:
        """What is compiled: a function with our parameters written out, for Numba has no `**`."""
        known = dict(self._known)
        exec(compile("\n    ".join(self._lines(given)), f"<proptim.numba.{self.place}>", "exec"), known)
        entry: Callable[..., None] = known[self.__name__]
        return entry

    def _lines(self, given: frozenset[str]) -> Iterator[str]:
        rule, optional = self.optimizer, self.optimizer.optional
        parameters = [f"{name}=None" if name in optional else name for name in ("param", *self.given, *rule.states)]
        # A rounding that is not given is none, so that its type tells that no number is rounded at random.
        defaults = self.keywords | {"rounding": None}
        parameters += [f"{name}={default!r}" for name, default in defaults.items()]
        yield f"def {self.__name__}({', '.join(parameters)}):"
        yield "if step is not None and step < 1:"
        yield "    raise ValueError('step is below 1; expected the number of this step, counted from 1')"
        states = [name for name in rule.states if name in given]
        one_byte = [name for name in states if name + SCALE in given]
        yield from self._check_memory(states, one_byte, [name for name in BESIDE if name in given])
        yield from self._hyperparameters(one_byte)
        for name, switch in optional.items():
            if name not in given:
                yield f"if {switch}:"
                yield f"    raise ValueError('{switch} is on; expected an array {name}')"
        yield "if step is None and not (steady(h) or needs_loss(h)):"
        counting = f"{self.__name__} counts its steps; expected step=, the number of this one, from 1 on"
        yield f"    raise ValueError('{counting}')"
        average, draw, share = "None", "", "0.0"
        if "rounding" in given:
            yield "if rounding != 'nearest' and rounding != 'stochastic':"
            yield "    raise ValueError(\"Invalid rounding: expected 'nearest' or 'stochastic'\")"
            yield "if rounding == 'stochastic' and step is None:"
            yield "    raise ValueError('numbers are rounded at random by the number of the step; expected step=')"
            draw = "rounding == 'stochastic', uint64(seed), uint64(0 if step is None else step)"
        if "seed" in given:
            yield "if seed < 0:"
            yield "    raise ValueError('Invalid seed: expected a whole number >= 0, below 2**64')"
        if "average" in given:
            yield "if not 0 <= float64(ema) < 1:"
            yield "    raise ValueError('Invalid ema value: expected a number >= 0 and < 1')"
            average, share = "average", "1.0 - float64(ema)"
        counts = [name for name in self.keywords if name in rule.clock_start and name != "step"]
        clock = [*counts, "None"][0]
        loss = "loss" if self.losses else "None"
        more = f"float64(grad_scale), int(zero_grads), int(flush_denormals), {share}"
        yield f"coefs, stages = numbers(h, 2 if step is None else step, {clock}, {loss}, {more})"
        yield f"check(coefs, stages, param, {self.given[-1]}, cast_grads)"
        pair = [name if name in given else "None" for name in ("master", "publish")]
        arrays = [f"paired(param, {', '.join(pair)})"]
        for name in rule.states:
            made = f"{rule.in_one_byte(name).__name__}({name}, {name}{SCALE})" if name in one_byte else name
            arrays.append(made if name in given else "None")
        yield f"arrays = ({', '.join(arrays)},)"
        yield from self._before()
        when = "if"
        switches = {i: optional[name] for i, name in enumerate(rule.states, 1) if name in given and name in optional}
        for on in itertools.product((True, False), repeat=len(switches)):
            used = dict(zip(switches, on, strict=True))
            yield f"{when} {' and '.join(switches[i] for i, yes in used.items() if yes) or True}:"
            stepped = [f"{self.stepped}[{i}]" if used.get(i, True) else "None" for i in range(len(arrays))]
            stepped.insert(1, "grad")
            yield from self._run(f"({', '.join(stepped)})", average, draw)
            when = "elif"
        yield from self._after()

    def _check_memory(self, states: list[str], one_byte: list[str], beside: list[str]) -> Iterator[str]:
        """Checks of shapes, of what arrays begin with, and that no two share memory."""
        yield from self._fit()
        for name in (*states, *beside):
            yield f"if not same_shape({name}, param):"
            yield f"    raise ValueError('{name} has not the shape of param; expected it')"
        for name in one_byte:
            legal, made = (
                "are_scales",
                "one finite number >= 0 for each 256 elements, from a multiple of 256 on in a part",
            )
            if self.optimizer.in_one_byte(name) is Steps8:
                legal, made = "is_grid", "the grid that init() makes"
            yield f"if not {legal}({name}{SCALE}, {name}.size):"
            yield f"    raise ValueError('{name}{SCALE} is not what belongs to {name}; expected {made}')"
        for name in self.optimizer.never_zero.difference(one_byte):
            yield f"if first(param).size and begins_with_zero({name}):"
            made = f"proptim.numba.{self.__name__}.init(param) makes"
            yield f"    raise ValueError('{name} begins with 0, which no step leaves; expected what {made}')"
        names = ["param", self.given[-1], *states, *beside, *(name + SCALE for name in one_byte)]
        yield f"pair = sharing(({', '.join(f'extent({name})' for name in names)}))"
        for i, (one, other) in enumerate(itertools.combinations(names, 2)):
            yield f"if pair == {i}:"
            yield f"    raise ValueError('{one} and {other} share memory; expected separate memory: pass a copy')"

    def _hyperparameters(self, one_byte: list[str]) -> Iterator[str]:
        """The mapping of hyperparameters, and checks of them."""
        # The texts of `advance` and `stages` take a mapping. If it contains a string, Numba keeps all types.
        rule = self.optimizer
        hyper = {name: as_float(name, default) for name, default in rule.hyper.items()}
        yield mapping(self.__name__, hyper)
        for name, default in rule.hyper.items():
            yield from self._range(name, default)
        for name in sorted(rule.fixed_in_one_byte):
            if rule.hyper[name] is False and not legal_in_one_byte(rule, name, one_byte):
                yield f"if {name}:"
                like = f"{one_byte[0]} is in one byte; expected 16 bits or more"
                yield f"    raise ValueError('{name} is on, and {like}')"
        for name in one_byte:
            if rule.in_one_byte(name) is Steps8:
                yield "if h['step_sizes'][0] > h['step_sizes'][1]:"
                yield "    raise ValueError('step_sizes is a pair in the wrong order; expected step_min <= step_max')"
                yield "if grid_steps(h['etas']) == 0:"
                like = "expected eta_plus = 2**(1/n) with n of 1 to 4, and eta_minus a power of it"
                yield f"    raise ValueError('etas are not those of step sizes in one byte; {like}')"
                largest = f"{name}{SCALE}[0] != float32(h['step_sizes'][1])"
                yield f"if {largest} or {name}{SCALE}[1] != grid_steps(h['etas']):"
                like = f"the grid of other etas or step_sizes; expected those that {name} was made for"
                yield f"    raise ValueError('{name}{SCALE} is {like}')"
                yield mapping(self.__name__, hyper | {"step_sizes": f"on_grid(h['step_sizes'], {name}{SCALE})"})

    stepped = "arrays"
    """The name of the tuple of what is stepped, but for the gradient: parameter and state."""

    def _run(self, arrays: str, average: str, draw: str) -> Iterator[str]:
        """The step itself; `draw` is empty, or the expressions of what decides the random bits."""
        yield f"    run({arrays}, coefs, stages, {average}, {f'({draw}, 0)' if draw else None})"

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

    def _check_array(self, name: str, given: Mapping[str, Any]) -> None:
        if name == "average":
            raise TypingError(
                "average is given, and it moves in all rows at each step; expected no average beside a gradient of rows"
            )
        if name + SCALE in given and name in self.optimizer.states and self.optimizer.in_one_byte(name) is not Steps8:
            raise TypingError(
                f"{name} is in int8, where 256 weights of one block share a scale, rows that are not stepped among "
                "them; expected state of 16 bits or more beside a gradient of rows"
            )
        super()._check_array(name, given)

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

    stepped = "parts"

    def _before(self) -> Iterator[str]:
        yield "rows, grad = summed(param, indices, values)"
        yield "if zero_grads:"
        yield "    zero(values)"
        yield "parts = over(taken, arrays, rows, None)"

    def _run(self, arrays: str, average: str, draw: str) -> Iterator[str]:
        if not draw:
            yield from super()._run(arrays, average, draw)
            return
        # The random bits of an element are those of its place in the whole parameter.
        yield "    width = first(param).size // max(1, len(first(param)))"
        yield "    for k in range(len(rows)):"
        place = f"({draw}, uint64(rows[k] * width))"
        yield f"        run(over(one_row, {arrays}, k, None), coefs, stages, None, {place})"

    def _after(self) -> Iterator[str]:
        yield "put_rows(arrays, parts, rows)"


GRADIENTS = (Step.given[-1], RowsStep.given[-1])


def mapping(name: str, hyper: Mapping[str, str]) -> str:
    """The line that makes the mapping of hyperparameters from the expression of each."""
    return f"h = {{'rule': {name!r}, {', '.join(f'{key!r}: {each}' for key, each in hyper.items())}}}"


def check_indices(kind: Any, param: Any) -> None:
    """Raise TypingError unless an array of this type can be the indices of rows of that parameter."""
    if not isinstance(kind, types.Array) or not isinstance(kind.dtype, types.Integer) or kind.ndim != 1:
        raise TypingError(f"indices is {kind}; expected an array of integers of one dimension")
    if planes_of(param) and planes_of(param)[0].ndim == 0:
        raise TypingError("param has no dimension, and so no rows to have a gradient; expected an array with one")


def check_one_byte(state: str, form: type[Compact], given: Mapping[str, Any]) -> None:
    """Raise TypingError unless codes and scales of these types are state in one byte of that parameter."""
    param, code, scale = given["param"], given.get(state, types.none), given[state + SCALE]
    planes = planes_of(param)
    if real_of(param) != types.float32:
        raise TypingError(
            f"{state} is in one byte, and param is {param}; expected a parameter that is stepped in float32"
        )
    kind = types.int8 if form is Int8 else types.uint8
    if not isinstance(code, types.Array) or code.dtype != kind or (planes and code.ndim != planes[0].ndim):
        raise TypingError(
            f"{state} is {code} beside {state}{SCALE}; expected {kind} of the shape of param, as init() makes"
        )
    if not isinstance(scale, types.Array) or scale.dtype != types.float32 or scale.ndim != 1 or scale.layout != "C":
        raise TypingError(
            f"{state}{SCALE} is {scale}; expected a dense array of float32 of one dimension, as init() makes it"
        )
    if code.layout != "C" and code.ndim:
        raise TypingError(f"{state} is {code}, whose elements are not in C order; expected an array as init() makes it")


def check_copy(kind: Any, param: Any) -> None:
    """Raise TypingError unless an array of this type can get copies of that parameter."""
    if format_of(param) or getattr(param, "dtype", None) != types.float32:
        raise TypingError(f"publish is given, and param is {param}; expected none: copies are of float32 parameters")
    if format_of(kind) not in (BFloat16, Float16):
        words = "proptim.numba.bfloat16(publish) or .float16(publish)"
        raise TypingError(f"publish is {kind}; expected {words} with an array of uint16 like param")
    if planes_of(kind)[0].ndim != planes_of(param)[0].ndim:
        raise TypingError(f"publish has {planes_of(kind)[0].ndim} dimensions; expected those of param")


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
    elif name == "average" and made is not None:
        raise TypingError(f"average is {kind}; expected {real}, in which the rule computes for param")
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
    def numbers(h: Any, step: Any, given: Any, loss: Any, scale: Any, zero: Any, flush: Any, share: Any) -> Any:
        coefs, _ = advance(h, clock(h, unknown(step) - 1.0, given), heard(h, loss))
        return coefs, stages(h, scale, zero, flush, share)

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


def legal_in_one_byte(optimizer: type[Rule], switch: str, states: list[str]) -> bool:
    """Whether a switch may be on while these states are in one byte; the rule's own check decides."""
    h = {**optimizer.hyper, switch: True}
    try:
        optimizer.held_in_one_byte(h, h, frozenset(states))
    except ValueError:
        return False
    return True


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


grid_steps, on_grid = compiled(_grid_steps), compiled(_on_grid)


@compiled
def is_grid(grid: Any, _: Any) -> Any:
    return len(grid) == 2


@compiled
def are_scales(scale: Any, elements: Any) -> Any:
    """Whether these are scales of so many codes, all finite and >= 0."""
    legal = (scale >= 0) & (scale < np.inf)
    return len(scale) == -(-elements // QUANTA) and legal.all()


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


def extent(array: Any) -> Any:
    """The first address of an array that is one dense run, and that after its last; two zeros for any other array."""


@means(extent)
def _extent(array: Any) -> Callable[..., Any]:
    if format_of(array):
        return lambda array: extent(first(array))

    def dense(array: Any) -> Any:
        start = np.intp(array.ctypes.data)
        return (start, start + array.nbytes) if array.flags.contiguous and array.size else (np.intp(0), 0)

    return dense


@compiled
def sharing(extents: Any) -> Any:
    """The number of the first pair of extents that have an address in common, in the order of combinations; or -1."""
    pair = 0
    for i in range(len(extents)):
        for j in range(i + 1, len(extents)):
            if extents[i][0] < extents[j][1] and extents[j][0] < extents[i][1]:
                return pair
            pair += 1
    return -1


# What is done to each plane of an array


@passed
def at(array: Any, i: Any) -> Any:
    return planewise(row_of, array, i)


@passed
def flat(array: Any, _: Any) -> Any:
    return planewise(flat_of, array, None)


@passed
def transposed(array: Any, _: Any) -> Any:
    return planewise(transpose_of, array, None)


@passed
def row_of(plane: Any, i: Any) -> Any:
    return plane[i]


@passed
def flat_of(plane: Any, _: Any) -> Any:
    return plane.reshape(plane.size)


@passed
def transpose_of(plane: Any, _: Any) -> Any:
    return plane.T


def run_text(optimizer: type[Rule]) -> Callable[..., None]:
    """A step by the Python text, for arrays of any shape and strides."""
    of_one_dimension = loop(optimizer.rule)

    def stepped(arrays: Any, coefs: Any, stages: Any) -> None:
        """The result of `typed`."""

    @means(stepped)
    def typed(arrays: Any, coefs: Any, stages: Any) -> Callable[..., None]:
        layouts = {plane.layout for array in arrays for plane in planes_of(array)}
        if planes_of(arrays[0])[0].ndim == 1:
            return lambda arrays, coefs, stages: of_one_dimension(arrays, coefs, stages)
        if layouts == {"C"}:
            return lambda arrays, coefs, stages: of_one_dimension(over(flat, arrays, None, None), coefs, stages)
        if layouts == {"F"}:
            return lambda arrays, coefs, stages: stepped(over(transposed, arrays, None, None), coefs, stages)

        def rows(arrays: Any, coefs: Any, stages: Any) -> None:
            for i in range(len(first(arrays[0]))):
                stepped(over(at, arrays, i, None), coefs, stages)

        return rows

    @compiled
    def run(arrays: Any, coefs: Any, stages: Any, average: Any, draw: Any) -> None:
        opened = all_opened(arrays, draw)
        stepped(opened, coefs, stages)
        close_all(arrays[:1], opened[:1], draw, 0)
        close_all(arrays[2:], opened[2:], draw, 2)
        move(average, arrays[0], stages[-1])

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


@passed
def rows_of(plane: Any, rows: Any) -> Any:
    return plane[rows]


@passed
def taken(array: Any, rows: Any) -> Any:
    """A copy of these rows of an array."""
    return planewise(rows_of, array, rows)


@passed
def one_of(plane: Any, k: Any) -> Any:
    return plane[k : k + 1]


@passed
def one_row(array: Any, k: Any) -> Any:
    """One row of an array, in the same memory."""
    return planewise(one_of, array, k)


def put_rows(arrays: Any, parts: Any, rows: Any) -> None:
    """Copy the rows back to each plane of each array, of which some are None."""


@means(put_rows)
def _put_rows(arrays: Any, parts: Any, rows: Any) -> Callable[..., None]:
    if not len(arrays):
        return lambda arrays, parts, rows: None
    if isinstance(arrays[0], types.NoneType):
        return lambda arrays, parts, rows: put_rows(arrays[1:], parts[1:], rows)
    if format_of(arrays[0]):
        count = len(planes_of(arrays[0]))

        def planes(arrays: Any, parts: Any, rows: Any) -> None:
            put_rows(tuple(arrays[0])[:count], tuple(parts[0])[:count], rows)
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


@passed
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
    """The number of the format of an array, then address and strides of each of two planes; 0 for a missing one.

    Scales have the strides of their codes, which nobody reads.
    """


@means(place)
def _place(array: Any, param: Any) -> Callable[..., Any]:
    made, real = format_of(array), real_of(param)
    number = _numbers[FORMATS[made] if made else "PLAIN" if array.dtype == real else str(array.dtype).upper()]
    if made is None:
        return lambda array, param: (number, np.intp(array.ctypes.data), *array.strides, 0, *array.strides)
    if made in (BFloat16, Float16):
        return lambda array, param: (number, np.intp(array[0].ctypes.data), *array[0].strides, 0, *array[0].strides)
    of = len(planes_of(array)) - 1
    return lambda array, param: (
        number,
        np.intp(array[0].ctypes.data),
        *array[0].strides,
        np.intp(array[1].ctypes.data),
        *array[of].strides,
    )


def head(param: Any) -> Any:
    """As long as what `place` returns: the bytes of a number that the rule computes in, 0, and the shape twice."""


@means(head)
def _head(param: Any) -> Callable[..., Any]:
    size = real_of(param).bitwidth // 8
    return lambda param: (size, 0, *first(param).shape, 0, *first(param).shape)


def drawn(draw: Any) -> Any:
    """What decides the random bits, in numbers of 64 bits: whether there are any, seed, step, first index."""


@means(drawn)
def _drawn(draw: Any) -> Callable[..., Any]:
    if isinstance(draw, types.NoneType):
        return lambda draw: (np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0))
    return lambda draw: (np.uint64(draw[0]), draw[1], draw[2], np.uint64(draw[3]))


def run_core(optimizer: type[Rule]) -> Callable[..., None]:
    """A step by `step_arrays` of `_core.pyx`."""
    rule = -1 if _backend.missing_core else list(_core.rules()).index(optimizer.kernel)

    @compiled
    def run(arrays: Any, coefs: Any, stages: Any, average: Any, draw: Any) -> None:
        shape = head(arrays[0])  # also what stands for an array that is off: its address is 0
        places = np.array((shape, *over(place, (*arrays, average), arrays[0], shape)))
        row = np.array((*coefs, *stages))
        random, seed, step, index = drawn(draw)
        refused = _step_arrays(
            _abi,
            rule,
            len(shape) // 2 - 1,
            len(arrays),
            places.ctypes,
            len(coefs),
            row.ctypes,
            len(stages),
            random,
            seed,
            step,
            index,
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
