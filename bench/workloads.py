"""What is measured: rules, model shapes and options, and the bytes that one step must move."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import proptim
from proptim._arrays import SIXTEEN, Bits
from proptim._formats import rounded
from proptim._prepared import ROUNDINGS
from proptim._storage import DTYPES, SMALLEST_IN_BLOCKS
from proptim.rprop import ETAS_ON_GRID

Array = NDArray[Any]
Shapes = list[tuple[int, ...]]


@functools.cache
def hyper(rule: str) -> dict[str, Any]:
    """One set of numbers for all contestants, under torch's names: the defaults of proptim's class.

    Those that are 0 are left out: they switch off something that not every contestant has.
    """
    defaults = {p.name: p.default for p in inspect.signature(proptim.OPTIMIZERS[rule]).parameters.values()}
    return {name: value for name, value in defaults.items() if isinstance(value, (float, tuple)) and value}


OURS: dict[str, dict[str, Any]] = {"rprop": {"variant": "irprop-"}}
"""Options with which proptim computes the same as torch."""

CLIP = 1.0  # far below the norm of any gradient here, so that clipping has work to do
FRESH_BYTES = 1 << 20  # of different gradient arrays that are passed in turn, where they are not bound; two at least
ROWS_BYTES = 1 << 25  # of different values of rows, so that the tables do not stay in a cache from turn to turn
SCATTER = 7_368_787  # a prime
BLOCK = 1 << 20  # normal numbers drawn; larger arrays repeat them, for drawing takes longer than measuring


def perceptron() -> Shapes:
    """Weights and biases of a 784-128-10 perceptron."""
    return [(784, 128), (128,), (128, 10), (10,)]


def resnet50() -> Shapes:
    """ResNet-50 as torchvision has it: convolutions without bias, a scale and a shift after each, one last layer."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                convolutions.append((4 * width, channels, 1, 1))
            for shape in convolutions:
                shapes += [shape, shape[:1], shape[:1]]
            channels = 4 * width
    return [*shapes, (1000, channels), (1000,)]


def transformer(layers: int = 12, width: int = 384, words: int = 32_000, positions: int = 1024) -> Shapes:
    """A decoder with the arrays of GPT-2 small, at half its width so that a dozen contestants fit into memory."""
    block: Shapes = [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(words, width), (positions, width), *block * layers, (width,), (width,)]


MODELS: dict[str, Callable[[], Shapes]] = {
    "perceptron": perceptron,
    "resnet50": resnet50,
    "transformer": transformer,
}
"""Lists of arrays by name.  Any other model is a number, that many weights in one array, or 200x64, 200 such arrays."""


def short(number: int) -> str:
    """10000000 -> 10M."""
    for unit, suffix in ((10**6, "M"), (10**3, "k")):
        if number >= unit and number % unit == 0:
            return f"{number // unit}{suffix}"
    return str(number)


def long(text: str) -> str:
    """10M -> 10000000, 200x1k -> 200x1000; names of models stay.  ValueError for anything else."""
    if text in MODELS:
        return text
    count, times, size = text.rpartition("x")
    unit = {"k": 10**3, "M": 10**6}.get(size[-1:], 1)
    digits = size if unit == 1 else size[:-1]
    if any(not number.isdecimal() or int(number) == 0 for number in ((count, digits) if times else (digits,))):
        raise ValueError(
            f"{text!r} is no size; expected a number such as 1000, 100k, 10M, "
            f"several arrays such as 200x64, or {', '.join(MODELS)}"
        )
    return f"{int(count)}x{int(digits) * unit}" if times else str(int(digits) * unit)


def in_dtype(values: Array, dtype: str) -> Array:
    """Numbers in a dtype; for bfloat16, which NumPy does not have, an array of their bits that says so."""
    array = rounded(values, DTYPES[dtype])
    return array.view(Bits) if dtype == "bfloat16" else array


@dataclass(frozen=True)
class Workload:
    """One step to be measured."""

    rule: str
    model: str
    dtype: str = "float32"
    master: str | None = "auto"  # of parameters of 16 bits
    state_dtype: str | None = None
    rounding: str = ROUNDINGS[0]
    clip_norm: float | None = None
    gradients: str = "bound"  # or "fresh": other arrays are passed in at every step
    options: tuple[tuple[str, Any], ...] = ()  # beyond `hyper`
    rows: int = 0  # in the gradient, of a table of all weights with so many columns; 0: the gradients are arrays
    columns: int = 64
    drawn: str = "uniform"  # the rows; or "zipf": the row of rank r occurs 1 / r times as often as the first

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Workload:
        """Undo `to_json`."""
        return cls(**{**fields, "options": tuple((key, value) for key, value in fields["options"])})

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON holds them."""
        return {**asdict(self), "options": [list(option) for option in self.options]}

    @property
    def shapes(self) -> Shapes:
        """Of the parameter arrays."""
        if self.model in MODELS:
            return MODELS[self.model]()
        if self.rows:
            return [(int(self.model) // self.columns, self.columns)]
        count, _, size = self.model.rpartition("x")
        return [(int(size),)] * int(count or 1)

    @property
    def weights(self) -> int:
        """Parameters that are stepped; if rows are, they are counted as often as they occur."""
        return self.rows * self.columns or self.held

    @property
    def held(self) -> int:
        """Parameters in all."""
        return sum(map(math.prod, self.shapes))

    @property
    def name(self) -> str:
        """For people."""
        size = short(int(self.model)) if self.model.isdecimal() else self.model
        if self.rows:
            size = f"{short(self.rows)} {self.drawn} rows of {short(self.shapes[0][0])}x{self.columns}"
        extras = [self.dtype] if self.dtype != "float32" else []
        extras += [f"master={self.master}"] if self.master != "auto" else []
        extras += [f"state={self.state_dtype}"] if self.state_dtype else []
        extras += [self.rounding] if self.rounding != ROUNDINGS[0] else []
        extras += ["clip_norm"] if self.clip_norm is not None else []
        extras += ["fresh gradients"] if self.gradients == "fresh" and not self.rows else []
        extras += [key if value is True else f"{key}={value}" for key, value in self.options]
        return " ".join([self.rule, size, *extras])

    @property
    def hyper(self) -> dict[str, Any]:
        """Hyperparameters under torch's names."""
        on_grid = {"etas": ETAS_ON_GRID} if self.rule == "rprop" and self.state_dtype == "int8" else {}
        return hyper(self.rule) | on_grid | dict(self.options)

    def optimizer(self, params: Any, **options: Any) -> proptim.Optimizer:
        """Proptim's optimizer for this."""
        cls: Callable[..., proptim.Optimizer] = proptim.OPTIMIZERS[self.rule]
        kept = {"master": self.master, "state_dtype": self.state_dtype, "rounding": self.rounding}
        return cls(params, **OURS.get(self.rule, {}), **self.hyper, clip_norm=self.clip_norm, **kept, **options)

    @property
    def arrays(self) -> int:
        """Arrays that a step touches: parameter, gradient and state, as the registry says."""
        return 1 + len(self._kept(1))

    def _kept(self, size: int) -> list[Array]:
        """A parameter of so many weights, its second plane and its state."""
        optimizer = self.optimizer([in_dtype(np.zeros(size), self.dtype)], backend="numpy")
        parameter = optimizer._stepper.parameters[0]
        return [a for a in (parameter.array, parameter.plane, *parameter.state.values()) if a is not None]

    @property
    def gradient_bytes(self) -> int:
        """Bytes of a weight that are read and not written."""
        return DTYPES[self.dtype].itemsize

    @property
    def kept_bytes(self) -> float:
        """Bytes of a weight that a step reads and writes: those of the parameter, its second plane and state.

        It is what one more weight takes in arrays so large that state can be in one byte: then a block shares a scale.
        """
        small, large = (sum(a.nbytes for a in self._kept(k * SMALLEST_IN_BLOCKS)) for k in (1, 2))
        return (large - small) / SMALLEST_IN_BLOCKS

    @property
    def bytes_per_weight(self) -> float:
        """The bytes that a step moves; the gradient is read once more for its norm."""
        return 2 * self.kept_bytes + self.gradient_bytes * (1 + (self.clip_norm is not None))

    @property
    def whole(self) -> bool:
        """Whether there are only parameters and state, all of one dtype, which every package supports."""
        sixteen = self.dtype in SIXTEEN
        return self.state_dtype in ((self.dtype,) if sixteen else (None, self.dtype)) and not (sixteen and self.master)

    def data(self, seed: int = 0) -> tuple[list[Array], list[list[Any]]]:
        """Parameters, and the sets of gradients that are passed in turn.  They are the same for every contestant."""
        rng = np.random.default_rng(seed)
        block = in_dtype(rng.standard_normal(min(BLOCK, self.held + 1)), self.dtype)
        offsets = itertools.count(0, 9973)  # a prime, so that no two arrays hold the same numbers in a row

        def fill() -> list[Array]:
            # A copy, for resize returns a view of whole blocks: 161 arrays would hold gigabytes.
            return [np.resize(np.roll(block, next(offsets)), shape).copy().view(type(block)) for shape in self.shapes]

        size = self.weights * block.itemsize
        if self.rows:
            shape = (self.rows, self.columns)
            sets = max(2, min(64, ROWS_BYTES // size))
            values = [np.resize(np.roll(block, next(offsets)), shape).copy().view(type(block)) for _ in range(sets)]
            return fill(), [[proptim.Rows(self._indices(rng), each)] for each in values]
        sets = 1 if self.gradients == "bound" else max(2, min(64, FRESH_BYTES // size))
        return fill(), [fill() for _ in range(sets)]

    def _indices(self, rng: np.random.Generator) -> Array:
        """The rows of a gradient; a row may occur several times."""
        length = self.shapes[0][0]
        if self.drawn == "uniform":
            return rng.integers(0, length, self.rows)
        ranks = np.exp(rng.random(self.rows) * math.log(length)).astype(np.int64)  # from 1 on
        return ranks * SCATTER % length  # so that frequent rows are not neighbours


@dataclass(frozen=True)
class Case:
    """A workload and who takes part, as patterns of names; everybody if there are none."""

    workload: Workload
    contestants: tuple[str, ...] = ()


SIZES = ("1000", "100000", "1000000", "10000000")
LARGE = "50000000"
IN_BLOCKS = str(2**23)  # a multiple of 256, which torchao needs for state in one byte
OURSELVES = ("proptim", "proptim-1", "roof-*")
# At 50 M weights a contestant takes a gigabyte and a slow one a second for each step.
AT_LARGE = (*OURSELVES, "torch-*", "optax", "deepspeed", "rprop-two-arrays")
# Compiling takes torch most of a minute for each shape.
COMPILED = {("rmsprop", size) for size in ("1000", "100000", "10000000", LARGE)}
COMPILED |= {("rprop", size) for size in ("1000", "100000", "10000000", LARGE)}
COMPILED |= {("adam", "100000"), ("adam", "10000000")}
HEADLINERS = ("rmsprop", "rprop", "adam")
# Many small tensors, as torch's users have them: what a step has to find out about each is most of its time.
TENSORS = ("6x5000", "160x64", "300x1000")


def quick(rules: Sequence[str], models: Sequence[str]) -> list[Case]:
    """A quick run of under two minutes: three rules, three sizes, and many small arrays."""
    rules = rules or HEADLINERS
    sizes = models or ("1000", "100000", "10000000")
    cases = [Case(Workload(rule, size)) for rule in rules for size in sizes]
    if not models:
        cases.append(Case(Workload(rules[0], "200x64")))
        cases += [Case(Workload(rules[0], "8", gradients=kind), OURSELVES) for kind in ("bound", "fresh")]
    return cases


def full(rules: Sequence[str], models: Sequence[str]) -> list[Case]:
    """The whole table."""
    cases = list(_full())
    return [
        case
        for case in cases
        if (not rules or case.workload.rule in rules) and (not models or case.workload.model in models)
    ]


def sixteen(rule: str, size: str) -> dict[str, Workload]:
    """Workloads in bfloat16, by name, each with the same rule in float32."""
    return {
        "split": Workload(rule, size, "bfloat16"),
        "state": Workload(rule, size, "bfloat16", state_dtype="bfloat16"),
        "all": Workload(rule, size, "bfloat16", None, "bfloat16"),
        "random": Workload(rule, size, "bfloat16", None, "bfloat16", "stochastic"),
    }


def one_byte(rule: str, size: str) -> Workload:
    """The workload whose state has one byte for each of its numbers, with parameters and gradients in float32."""
    return Workload(rule, size, state_dtype="int8")


LENGTHS = {16: 10**6, 64: 10**6, 256: 250_000}
"""Columns of a table -> rows; with as many of 256 the contestants would take tens of gigabytes."""
ROWS = (4096, 65_536)
WITH_ROWS = ("sgd", "adagrad", "adam")
"""The rules for which torch takes sparse gradients; for adam that is SparseAdam."""


def table(rule: str, rows: int, columns: int = 64, drawn: str = "uniform") -> Workload:
    """A step of some rows of a table, other rows in each step."""
    size = str(LENGTHS[columns] * columns)
    return Workload(rule, size, gradients="fresh", rows=rows, columns=columns, drawn=drawn)


def _full() -> Iterator[Case]:
    for rule in proptim.OPTIMIZERS:
        for size in SIZES:
            yield Case(Workload(rule, size), () if (rule, size) in COMPILED else ("!torch-compiled",))
        contestants = AT_LARGE if rule in ("rmsprop", "rprop", "adagrad", "adam") else (*OURSELVES, "optax")
        yield Case(
            Workload(rule, LARGE), contestants if (rule, LARGE) in COMPILED else (*contestants, "!torch-compiled")
        )
    yield Case(Workload("rmsprop", "100000000"), OURSELVES)
    for rule in HEADLINERS:
        for size in ("10000000", LARGE):
            for work in sixteen(rule, size).values():
                yield Case(
                    work, ("proptim", "proptim-1", "proptim-all", "roof-*", "torch-*", "optax", "!torch-compiled")
                )
            yield Case(one_byte(rule, size), ("proptim", "proptim-1", "proptim-all", "roof-*", "*-8"))
    yield Case(one_byte("adam", IN_BLOCKS), ("proptim", "proptim-1", "roof-*", "*-8"))
    for rule, rows in itertools.product(WITH_ROWS, ROWS):
        for columns, drawn in ((64, "uniform"), (64, "zipf"), (16, "uniform"), (256, "uniform")):
            yield Case(
                table(rule, rows, columns, drawn), ("proptim", "proptim-1", "proptim-torch", "roof-*", "torch-loop")
            )
    plain = ("!torch-compiled",)
    for rule in proptim.OPTIMIZERS:
        for model in TENSORS:
            yield Case(Workload(rule, model), ("proptim", "proptim-torch"))
            yield Case(Workload(rule, model, gradients="fresh"), ("proptim", "proptim-torch", "torch-*", *plain))
    for rule in HEADLINERS:
        for model in (*MODELS, "200x64"):
            yield Case(Workload(rule, model), plain)
        for size in ("1000", "1000000", "10000000"):
            yield Case(Workload(rule, size, dtype="float64"), plain)
    for rule in ("rmsprop", "adam"):
        for size in ("1000", "100000", "10000000"):
            yield Case(Workload(rule, size, clip_norm=CLIP), plain)
        yield Case(Workload(rule, LARGE, clip_norm=CLIP), (*OURSELVES, "torch-foreach"))
        for model in ("8", "1000", "200x64", "resnet50"):
            yield Case(Workload(rule, model, gradients="fresh"), plain)
        yield Case(Workload(rule, "8"), plain)
    for option in (("momentum", 0.9), ("centered", True)):
        yield Case(Workload("rmsprop", "10000000", options=(option,)), plain)
