"""Every optimizer in functions that Numba compiles: ``proptim.numba.rmsprop(param, grad, square_avg, step=step)``.

One function for each rule, called by its name from `@njit` code, cached and parallel code too. Its arguments are those
of `proptim.functional`: the parameter, its gradient and the state arrays of the rule, stepped or read in place; then by
keyword `step`, counted from 1, the hyperparameters of the class of this name and the options that belong to one array.
The bits are those of the optimizer objects.

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
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

try:
    from llvmlite import binding, ir
    from numba.core.errors import TypingError

    from proptim._numba import INSIDE, Decorator, at, compiled, intrinsic, loop, means, over, types, untyped
except ModuleNotFoundError as error:
    message = f"proptim.numba needs Numba ({error}): pip install 'proptim[numba]'"
    raise ModuleNotFoundError(message, name=error.name) from error

from proptim import OPTIMIZERS, _backend, functional
from proptim.optimizer import Optimizer

# What the core is to LLVM: a symbol, for code with an address in it cannot be cached. Always there, because to call one
# that is missing would end the process: without the core it is a function that refuses.
_step_arrays = types.ExternalFunction(
    "proptim_step_arrays", types.int64(*[types.int64] * 5, types.voidptr, types.int64, types.voidptr, types.int64)
)
if _backend.missing_core:
    _refuse = ctypes.CFUNCTYPE(ctypes.c_int64)(lambda: 1)
    _address, _abi = ctypes.cast(_refuse, ctypes.c_void_p).value, 0
else:
    from proptim import _core

    _address, _abi = _core.step_arrays_for_jit()
binding.add_symbol(_step_arrays.symbol, _address)


class Step(functional.OneShot):
    """The step of one optimizer, for Python and for code that Numba compiles."""

    def __init__(self, optimizer: type[Optimizer], backend: str | None) -> None:
        super().__init__(optimizer)
        self.backend = backend
        self.place = self.__name__ if backend is None else f"{backend}.{self.__name__}"
        self.__doc__ = f"One step of `{optimizer.__name__}` on one parameter, in place; see `proptim.numba`."
        self.losses = optimizer.needs_loss is not Optimizer.needs_loss
        shown = self.__signature__.parameters.values()
        own = [p.name for p in shown if p.kind is p.KEYWORD_ONLY and p.name != "step"]
        self.keywords = {
            "step": 1,
            **{name: self.hyper[name] for name in (*own, *self.hyper)},
            **dict.fromkeys([*tuple(optimizer.clock_start)[1:], *["loss"] * self.losses]),
            "grad_scale": 1.0,
            "zero_grads": False,
            "flush_denormals": False,
        }
        arrays = [p for p in shown if p.kind is p.POSITIONAL_OR_KEYWORD]
        keywords = [inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY, default=v) for k, v in self.keywords.items()]
        self.__signature__ = inspect.Signature([*arrays, *keywords], return_annotation=None)
        self.entry = self._entry()
        means(self)(self._type)

    def __repr__(self) -> str:
        return f"<function proptim.numba.{self.place}{self.__signature__}>"

    def __reduce__(self) -> str:
        return self.place

    def __call__(self, param: Any, grad: Any, *state: Any, **keywords: Any) -> None:
        given = {k: v for k, v in keywords.items() if v is not None or k not in self.optimizer.clock_start}
        super().__call__(param, grad, *state, backend=self.backend, **given)

    def _type(self, *args: Any, **keywords: Any) -> Callable[..., None]:
        """Check the types of a call, for which Numba asks, and return the function to compile for them."""
        if self.backend == "c" and _backend.missing_core:
            raise TypingError(f"proptim.numba.c: {_backend.missing_core}; expected proptim.numba.{self.__name__}")
        try:
            given = self.__signature__.bind(*args, **keywords).arguments
        except TypeError as error:
            raise TypingError(f"proptim.numba.{self.place}: {error}; expected {self.__signature__}") from None
        param = given["param"]
        for name in ("param", "grad", *self.optimizer.states):
            kind = given.get(name, types.none)
            if kind is types.none and name in self.optimizer.optional:
                continue
            if not isinstance(kind, types.Array) or kind.dtype not in (types.float32, types.float64):
                raise TypingError(f"{name} is {kind}; expected an array of float32 or float64")
            if kind.dtype != param.dtype:
                raise TypingError(f"{name} is {kind}; expected {param.dtype}, the dtype of param: use .astype")
            if kind.ndim != param.ndim:
                raise TypingError(f"{name} has {kind.ndim} dimensions; expected {param.ndim}, those of param")
            if not kind.mutable and (name != "grad" or "zero_grads" in given):
                raise TypingError(f"{name} is read-only; expected a writable array")
        for name, kind in given.items():
            if name in self.keywords and not fits(self.keywords[name], kind):
                raise TypingError(f"{name} is {kind}; expected the like of {self.keywords[name]!r}, and no schedule")
        return self.entry

    def _entry(self) -> Callable[..., None]:
        """What is compiled: a function with our parameters written out, for Numba has no `**`."""
        run = run_core if self.backend == "c" else run_text
        known: dict[str, Any] = {"numbers": numbers(self.optimizer, self.losses), "run": run(self.optimizer)}
        known |= {"same_shape": same_shape, "inf": math.inf, "float64": np.float64}
        text = "\n    ".join(self._lines())
        exec(compile(text, f"<proptim.numba.{self.place}>", "exec"), known)
        entry: Callable[..., None] = known[self.__name__]
        return entry

    def _lines(self) -> Iterator[str]:
        optional, arrays = self.optimizer.optional, ["param", "grad", *self.optimizer.states]
        parameters = [f"{name}=None" if name in optional else name for name in arrays]
        parameters += [f"{name}={default!r}" for name, default in self.keywords.items()]
        yield f"def {self.__name__}({', '.join(parameters)}):"
        yield "if step < 1: raise ValueError('step is below 1; expected the number of this step, counted from 1')"
        for name in arrays[1:]:
            yield f"if not same_shape({name}, param):"
            yield f"    raise ValueError('{name} has not the shape of param; expected it')"
        for name, switch in optional.items():
            yield f"if {switch} and {name} is None:"
            yield f"    raise ValueError('{switch} is on; expected an array {name}')"
        # The texts of `advance` and `stages` take a mapping. With a string among the numbers Numba keeps their types.
        hyper = [f"{name!r}: {as_float(name, default)}" for name, default in self.hyper.items()]
        yield f"h = {{'rule': {self.__name__!r}, {', '.join(hyper)}}}"
        clock = [*tuple(self.optimizer.clock_start)[1:], "None"][0]
        loss = "loss" if self.losses else "None"
        more = "float64(grad_scale), int(zero_grads), int(flush_denormals)"
        yield f"coefs, stages = numbers(h, step, {clock}, {loss}, {more})"
        for on in itertools.product((True, False), repeat=len(optional)):
            off = [name for name, used in zip(optional, on, strict=True) if not used]
            used = " and ".join(switch for name, switch in optional.items() if name not in off)
            yield f"if {used or True}:"
            yield f"    return run(({', '.join('None' if name in off else name for name in arrays)}), coefs, stages)"


def fits(default: Any, kind: Any) -> bool:
    """Whether an argument of this type can stand where this default does."""
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


def numbers(optimizer: type[Optimizer], losses: bool) -> Callable[..., Any]:
    """A compiled function for the coefficients of rule and stages of a step, as `Optimizer.numbers` has them."""
    plain: Decorator = untyped.njit(**{**INSIDE, "error_model": "python"})  # a division by zero is an error here
    advance, stages, needs_loss = (plain(text) for text in (optimizer.advance, optimizer.stages, optimizer.needs_loss))
    start = tuple(map(float, optimizer.clock_start.values()))

    @plain
    def clock(h: Any, steps: Any, given: Any) -> Any:
        """The clock after that many steps, given what it has beside their count."""
        if given is not None:
            return steps, -np.float64(given) if losses and h["maximize"] else np.float64(given)
        if len(start) == 1 or losses:
            return (steps, *start[1:])
        now = start
        while now[0] < steps:
            _, now = advance(h, now, None)
        return now

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


@intrinsic
def unknown(context: Any, step: Any) -> Any:
    """`step`, of which LLVM then knows nothing: of b**2.0 it would make b*b, and the last bits may differ."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = context.cast(builder, args[0], step, types.int64)
        return builder.asm(ir.FunctionType(number.type, [number.type]), "", "=r,0", [number], False)

    return types.int64(step), code


# Arrays --------------------------------------------------------------------------------------------------------------


@compiled
def same_shape(array: Any, param: Any) -> Any:
    return True if array is None else array.shape == param.shape


@compiled
def flat(array: Any, _: Any) -> Any:
    return array.reshape(array.size)


@compiled
def transposed(array: Any, _: Any) -> Any:
    return array.T


@compiled
def place(array: Any, _: Any) -> Any:
    """Address and strides."""
    return (np.intp(array.ctypes.data), *array.strides)


def run_text(optimizer: type[Optimizer]) -> Callable[..., None]:
    """A step by the Python text, over arrays of any shape and strides."""
    of_one_dimension = loop(optimizer.rule)

    def run(arrays: Any, coefs: Any, stages: Any) -> None:
        """What `typed` makes of it."""

    @means(run)
    def typed(arrays: Any, coefs: Any, stages: Any) -> Callable[..., None]:
        layouts = {array.layout for array in arrays if isinstance(array, types.Array)}
        if arrays[0].ndim == 1:
            return lambda arrays, coefs, stages: of_one_dimension(arrays, coefs, stages)
        if layouts == {"C"}:
            return lambda arrays, coefs, stages: of_one_dimension(over(flat, arrays, None, None), coefs, stages)
        if layouts == {"F"}:
            return lambda arrays, coefs, stages: run(over(transposed, arrays, None, None), coefs, stages)

        def rows(arrays: Any, coefs: Any, stages: Any) -> None:
            for i in range(len(arrays[0])):
                run(over(at, arrays, i, None), coefs, stages)

        return rows

    return run


def run_core(optimizer: type[Optimizer]) -> Callable[..., None]:
    """A step by `step_arrays` of `_core.pyx`."""
    rule = -1 if _backend.missing_core else list(_core.rules()).index(optimizer.kernel)

    @compiled
    def run(arrays: Any, coefs: Any, stages: Any) -> None:
        param = arrays[0]
        shape = (np.intp(0), *param.shape)  # which has the address of an array that is off, too
        places = np.array((shape, *over(place, arrays, None, shape)))
        row = np.array((*coefs, *stages))
        refused = _step_arrays(
            _abi,
            rule,
            param.itemsize,
            param.ndim,
            len(arrays),
            places.ctypes,
            len(coefs),
            row.ctypes,
            len(stages),
        )
        if refused:
            raise RuntimeError(
                "this was compiled for a core of proptim that is not the one here; expected it: clear Numba's cache"
            )

    return run


globals().update({name: Step(optimizer, None) for name, optimizer in OPTIMIZERS.items()})
c = ModuleType("proptim.numba.c", "The steps of `proptim.numba` by the compiled core.")  # Numba looks into modules
vars(c).update({name: Step(optimizer, "c") for name, optimizer in OPTIMIZERS.items()})


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module 'proptim.numba' has no attribute {name!r}; expected {', '.join(OPTIMIZERS)} or c")
