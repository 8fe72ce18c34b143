"""What is measured: the registry of contestants, what each can do, and how each makes one step.

A contestant takes parameters and gradients and returns a `Step`.  Packages are imported only where they are used, in
the contestant's own process.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import proptim
from proptim import _backend
from proptim._arrays import SIXTEEN
from proptim._formats import QUANTA
from proptim._prepared import ROUNDINGS
from proptim._storage import SMALLEST_IN_BLOCKS

from .workloads import WITH_ROWS, Array, Workload

US = "proptim"
"""The contestant with whom all are compared."""
DOOR = "proptim-torch"
"""proptim and torch.optim."""
NOT_INSTALLED = " is not installed"
WARM_UP = 40
"""Steps of proptim that are enough for threads="auto" to settle."""

FLOATS = frozenset({"float32", "float64"})
WITH_BFLOAT16 = FLOATS | {"bfloat16"}


class Declined(Exception):
    """The error that a contestant raises, in its own process, if it has no such step."""


def is_peer(name: str) -> bool:
    """Whether a contestant is another package, or NumPy by hand: neither proptim nor the roof."""
    return not name.startswith((US, "roof-", "rprop-two-arrays"))


@dataclass
class Step:
    """A contestant that is ready."""

    run: Callable[[], Any]
    between: Callable[[], Any] | None = None  # after each step, and not part of it
    params: Callable[[], list[Array]] | None = None  # where they are not the arrays that were given


@dataclass(frozen=True)
class Contestant:
    """A way to make a step."""

    name: str
    what: str
    build: Callable[[Workload, list[Array], list[list[Array]]], Step]
    package: str = ""  # what has to be installed
    rules: frozenset[str] | None = None  # None: every rule, or those that `build` does not decline
    dtypes: frozenset[str] = FLOATS
    formats: bool = False  # whether what is kept of a parameter may be of other dtypes than it
    in_one_byte: bool = False  # whether its state has one byte for each number, and never more
    clips: bool = True
    rows: bool = False  # whether a gradient may have only some rows
    options: bool = False  # whether options beyond the hyperparameters of workloads.hyper are understood
    warm_up: int = 3  # steps before anything is measured
    temporaries: int = 3  # arrays as large as the parameters, beside parameters, gradients and state
    environment: Mapping[str, str] = field(default_factory=dict)
    unavailable: Callable[[bool], str] = lambda full: ""  # a further reason not to take part
    process: str = ""  # shared with the others that name it; a process of its own if empty
    differs: Mapping[str, str] = field(default_factory=dict)  # rules whose equations are not the same as ours, and why

    def absent(self, full: bool = True) -> str:
        """Why it cannot take part; nothing if it can."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.package}{NOT_INSTALLED}"
        return self.unavailable(full)

    def declines(self, workload: Workload) -> str:
        """Why it cannot do this work; nothing if it can."""
        if self.rules is not None and workload.rule not in self.rules:
            return f"has no {workload.rule}"
        if workload.dtype not in self.dtypes:
            return f"has no {workload.dtype}"
        if self.in_one_byte and workload.state_dtype != "int8":
            return "keeps its state in one byte"
        if not (workload.whole or self.formats or self.in_one_byte):
            return f"keeps all that it has in {workload.dtype}"
        if workload.rounding != ROUNDINGS[0] and not self.formats:
            return f"has no {workload.rounding} rounding"
        if workload.options and not self.options:
            return f"has no {', '.join(key for key, _ in workload.options)}"
        if workload.rows and not self.rows:
            return "has no gradients of rows"
        if workload.clip_norm is not None and not self.clips:
            return "does not clip the norm"
        return ""


# proptim ----------------------------------------------------------------------------------------------------------


def _proptim(
    workload: Workload, params: list[Array], sets: list[list[Array]], threads: int | str = "auto", backend: str = "c"
) -> Step:
    optimizer = workload.optimizer(params, grads=sets[0], threads=threads or proptim.get_num_threads(), backend=backend)
    if len(sets) == 1:
        return Step(optimizer.step)
    turns = itertools.cycle(sets)
    return Step(lambda: optimizer.step(next(turns)))


def _no_core(full: bool) -> str:
    return _backend.missing_core


def _ours() -> Iterable[Contestant]:
    reasons = _backend.available_backends()
    best = next(name for name in _backend.BACKENDS if not reasons[name])
    compiled: dict[str, Any] = {
        "options": True,
        "rows": True,
        "dtypes": FLOATS.union(SIXTEEN),
        "formats": True,
        "warm_up": WARM_UP,
        "temporaries": 0,
        "unavailable": _no_core,
    }
    text: dict[str, Any] = {
        "options": True,
        "rows": True,
        "dtypes": FLOATS.union(SIXTEEN),
        "formats": True,
        "temporaries": 6,
    }  # the text of the rules, over whole arrays or compiled
    if best == "c":
        kernels = f"C kernels ({proptim.isa()})"
        yield Contestant(US, f'{kernels}, threads="auto"', _proptim, **compiled)
    else:
        kernels = "C kernels"
        yield Contestant(US, f"backend {best}, the best that runs here", partial(_proptim, backend=best), **text)
    yield Contestant("proptim-1", f"{kernels}, threads=1", partial(_proptim, threads=1), **compiled)
    # Its worker may have fewer cores than this process.
    count = proptim.get_num_threads()
    yield Contestant("proptim-all", f"{kernels}, threads={count}", partial(_proptim, threads=0), **compiled)
    for isa in proptim.available_isas()[1:]:
        yield Contestant(
            f"proptim-{isa}",
            f'C kernels ({isa}), threads="auto"',
            _proptim,
            environment={"PROPTIM_ISA": isa},
            **compiled,
        )
    yield Contestant("proptim-numba", "backend numba", partial(_proptim, backend="numba"), package="numba", **text)
    yield Contestant("proptim-numpy", "backend numpy", partial(_proptim, backend="numpy"), **text)


# The roof ---------------------------------------------------------------------------------------------------------


def _kernels() -> Any:
    return importlib.import_module("._kernels", __package__)


def _no_kernels(full: bool) -> str:
    if importlib.util.find_spec(f"{__package__}._kernels") is None:
        return "this installation has no compiled kernels (PROPTIM_PURE=1)"
    return ""


LINE, PAGE = 64, 4096
# An odd number of cache lines: a processor takes a load for one of what was stored a moment ago where the addresses
# agree modulo a page. So far apart, five arrays are spread over the page.
STAGGER = 13 * LINE


def placed(lists: Sequence[Sequence[Array]]) -> list[list[Array]]:
    """Copies in the best placement: each list of arrays in one run of memory, every array from a cache line on.

    Arrays at the same index of their lists, which one kernel processes together, begin `STAGGER` bytes apart modulo a
    page.
    """
    sizes = [-(-array.nbytes // LINE) * LINE for array in lists[0]]
    run = -(-sum(sizes) // PAGE) * PAGE + PAGE  # of one list, and room for what it is shifted by
    memory = np.empty(len(lists) * run + PAGE, np.uint8)
    begin = -memory.ctypes.data % PAGE
    copies: list[list[Array]] = []
    for j, arrays in enumerate(lists):
        at = begin + j * run + j * STAGGER % PAGE
        copies.append([])
        for array, size in zip(arrays, sizes, strict=True):
            copies[-1].append(memory[at : at + array.nbytes].view(array.dtype).reshape(array.shape))
            copies[-1][-1][...] = array
            at += size
    return copies


MOST_STREAMED = 4
"""Arrays that `stream` in kernels/list.def writes."""


def _roof(workload: Workload, params: list[Array], sets: list[list[Any]], threads: int = 1) -> Step:
    if workload.rows:
        return _roof_of_rows(workload, params[0], [grad for (grad,) in sets], threads)
    if workload.dtype in SIXTEEN:
        # In words of float32, of which every array has one for two weights.
        halves = [np.ones((param.size + 1) // 2, np.float32) for param in params]
        params, sets = halves, [halves]
    # As many bytes read and written, in arrays of the gradient's size. Where that is no whole number of them, a first
    # part of all has an array more than the rest.
    kept = workload.kept_bytes / workload.gradient_bytes
    whole, part = int(kept), kept % 1
    if kept > MOST_STREAMED:
        raise Declined(f"streams at most {MOST_STREAMED} arrays of the gradient's size, and here are {kept:.4g}")
    kernels = []
    for count, begin, end in ((whole + 1, 0.0, part), (whole, part, 1.0)):
        if begin == end:
            continue
        lists = [
            [array.reshape(-1)[round(begin * array.size) : round(end * array.size)] for array in arrays]
            for arrays in (params, sets[0])
        ]
        lists += [[np.broadcast_to(p.dtype.type(1), p.shape) for p in lists[0]] for _ in range(count - 1)]
        segments = list(zip(*placed(lists), strict=True))
        kernels.append(_kernels().Kernel("stream", proptim.isa(), (0.5,), segments))
    if len(kernels) == 1:
        return Step(partial(kernels[0].run, threads))
    return Step(lambda: [kernel.run(threads) for kernel in kernels])


def _roof_of_rows(workload: Workload, param: Array, grads: list[proptim.Rows], threads: int) -> Step:
    """Each row that has a gradient, in ascending order, is gathered, streamed and scattered; repeats are left out."""
    tables = [param, *(np.ones_like(param) for _ in range(workload.arrays - 2))]
    kernels = []
    for grad in grads:
        rows, places = np.unique(grad.indices, return_index=True)
        kernels.append(_kernels().RowsKernel(proptim.isa(), (0.5,), tables, grad.values, rows, places))
    turns = itertools.cycle(kernels)
    return Step(lambda: next(turns).run(threads))


def _two_arrays(workload: Workload, params: list[Array], sets: list[list[Array]]) -> Step:
    before = [np.zeros_like(p) for p in params]
    sizes = [np.full_like(p, workload.hyper["lr"]) for p in params]
    segments = list(zip(params, sets[0], before, sizes, strict=True))
    coefs = (*workload.hyper["etas"], *workload.hyper["step_sizes"])
    return Step(_kernels().Kernel("rprop", proptim.isa(), coefs, segments).run)


def _roofs() -> Iterable[Contestant]:
    # Two temporaries: it works on copies of parameters and gradients.
    common: dict[str, Any] = {"options": True, "rows": True, "temporaries": 2, "unavailable": _no_kernels}
    common |= {"dtypes": FLOATS.union(SIXTEEN), "formats": True}
    yield Contestant("roof-1", "reads and writes as many arrays, best placed, and hardly computes", _roof, **common)
    threads = proptim.get_num_threads()
    yield Contestant(
        "roof-threads",
        f"the same on {threads} threads, which proptim's pool deals to as it does a step",
        partial(_roof, threads=threads),
        **common,
    )
    yield Contestant(
        "rprop-two-arrays",
        "Rprop as others store it: last gradient and step size apart",
        _two_arrays,
        **{**common, "options": False, "rows": False, "temporaries": 0, "dtypes": FLOATS, "formats": False},
        rules=frozenset({"rprop"}),
        clips=False,
    )


# Plain NumPy ------------------------------------------------------------------------------------------------------


def _numpy_sgd(p: Array, g: Array, s: list[Array], t: int, lr: float) -> None:
    p -= lr * g


def _numpy_rprop(
    p: Array, g: Array, s: list[Array], t: int, lr: float, etas: Sequence[float], step_sizes: Sequence[float]
) -> None:
    before, size = s
    if t == 1:
        size[...] = lr
    agreement = np.sign(before) * np.sign(g)
    factor = np.where(agreement > 0, etas[1], np.where(agreement < 0, etas[0], 1)).astype(p.dtype)
    np.clip(size * factor, *step_sizes, out=size)
    before[...] = np.where(agreement < 0, 0, g)
    p -= np.sign(before) * size


def _numpy_rmsprop(
    p: Array,
    g: Array,
    s: list[Array],
    t: int,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float = 0,
    centered: bool = False,
) -> None:
    s[0][...] = alpha * s[0] + (1 - alpha) * g**2
    variance = s[0]
    if centered:
        s[1][...] = alpha * s[1] + (1 - alpha) * g
        variance = np.maximum(variance - s[1] ** 2, 0)
    step = g / (np.sqrt(variance) + eps)
    if momentum:
        s[2][...] = momentum * s[2] + step
        step = s[2]
    p -= lr * step


def _numpy_adagrad(p: Array, g: Array, s: list[Array], t: int, lr: float, eps: float) -> None:
    s[0] += g**2
    p -= lr * g / (np.sqrt(s[0]) + eps)


def _numpy_adadelta(p: Array, g: Array, s: list[Array], t: int, lr: float, rho: float, eps: float) -> None:
    s[0][...] = rho * s[0] + (1 - rho) * g**2
    delta = np.sqrt(s[1] + eps) / np.sqrt(s[0] + eps) * g
    s[1][...] = rho * s[1] + (1 - rho) * delta**2
    p -= lr * delta


def _numpy_adam(
    p: Array,
    g: Array,
    s: list[Array],
    t: int,
    lr: float,
    betas: Sequence[float],
    eps: float,
    weight_decay: float = 0,
) -> None:
    m, v = s
    if weight_decay:  # AdamW
        p *= 1 - lr * weight_decay
    m[...] = betas[0] * m + (1 - betas[0]) * g
    v[...] = betas[1] * v + (1 - betas[1]) * g**2
    p -= lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)


def _numpy_nadam(
    p: Array,
    g: Array,
    s: list[Array],
    t: int,
    lr: float,
    betas: Sequence[float],
    eps: float,
    momentum_decay: float,
    product: list[float] | None = None,
) -> None:
    m, v = s[:2]
    mu, mu_next = (betas[0] * (1 - 0.5 * 0.96 ** (k * momentum_decay)) for k in (t, t + 1))
    done = float(s[2].flat[0]) * mu if t > 1 else mu
    s[2].flat[0] = done
    m[...] = betas[0] * m + (1 - betas[0]) * g
    v[...] = betas[1] * v + (1 - betas[1]) * g**2
    mean = mu_next / (1 - done * mu_next) * m + (1 - mu) / (1 - done) * g
    p -= lr * mean / (np.sqrt(v / (1 - betas[1] ** t)) + eps)


def _numpy_lion(p: Array, g: Array, s: list[Array], t: int, lr: float, betas: Sequence[float]) -> None:
    p -= lr * np.sign(betas[0] * s[0] + (1 - betas[0]) * g)
    s[0][...] = betas[1] * s[0] + (1 - betas[1]) * g


NUMPY: dict[str, tuple[int, Callable[..., None]]] = {
    "sgd": (0, _numpy_sgd),
    "rprop": (2, _numpy_rprop),
    "rmsprop": (3, _numpy_rmsprop),
    "adagrad": (1, _numpy_adagrad),
    "adadelta": (2, _numpy_adadelta),
    "adam": (2, _numpy_adam),
    "adamw": (2, _numpy_adam),
    "nadam": (3, _numpy_nadam),
    "lion": (1, _numpy_lion),
}
"""The rules as a tutorial writes them: number of state arrays, and the step."""


def _numpy(workload: Workload, params: list[Array], sets: list[list[Array]]) -> Step:
    count, rule = NUMPY[workload.rule]
    states = [[np.zeros_like(p) for _ in range(count)] for p in params]
    turns, steps = itertools.cycle(sets), itertools.count(1)
    hyper, limit = workload.hyper, workload.clip_norm

    def run() -> None:
        grads, t = next(turns), next(steps)
        if limit is not None:
            norm = np.sqrt(sum(float(np.vdot(g, g)) for g in grads))
            grads = [g * min(1.0, limit / (norm + 1e-6)) for g in grads]
        for p, g, s in zip(params, grads, states, strict=True):
            rule(p, g, s, t, **hyper)

    return Step(run)


# torch ------------------------------------------------------------------------------------------------------------


def _on_tensors(
    workload: Workload,
    params: list[Array],
    sets: list[list[Array]],
    make: Callable[[list[Any]], Any],
    compiled: bool = False,
) -> Step:
    """The step of an optimizer with torch's interface."""
    torch: Any = importlib.import_module("torch")

    def tensor_of(array: Array) -> Any:
        if workload.dtype != "bfloat16":
            return torch.from_numpy(array)
        return torch.from_numpy(np.asarray(array).view(np.int16)).view(torch.bfloat16)

    def gradient_of(grad: Any, shape: tuple[int, ...]) -> Any:
        if not workload.rows:
            return tensor_of(grad)
        indices = torch.from_numpy(grad.indices)[None]
        return torch.sparse_coo_tensor(indices, tensor_of(grad.values), shape, check_invariants=False)

    tensors = [tensor_of(p).requires_grad_() for p in params]
    gradients = [[gradient_of(g, p.shape) for p, g in zip(params, grads, strict=True)] for grads in sets]
    for tensor, grad in zip(tensors, gradients[0], strict=True):
        tensor.grad = grad
    optimizer = make(tensors)
    run = torch.compile(optimizer.step) if compiled else optimizer.step
    turns = itertools.cycle(gradients)

    def clip_and_run() -> None:
        torch.nn.utils.clip_grad_norm_(tensors, workload.clip_norm)
        run()

    def renew() -> None:  # what backward does
        for tensor, grad in zip(tensors, next(turns), strict=True):
            tensor.grad = grad

    return Step(
        run if workload.clip_norm is None else clip_and_run, between=renew if workload.gradients == "fresh" else None
    )


def _class(module: str, rule: str) -> Any:
    """The class of the same name in another package."""
    name = proptim.OPTIMIZERS[rule].__name__
    found = getattr(importlib.import_module(module), name, None)
    if found is None:
        raise Declined(f"has no {rule}")
    return found


def _torch(workload: Workload, params: list[Array], sets: list[list[Array]], kind: str) -> Step:
    if workload.rows:
        return _torch_rows(workload, params, sets, kind)
    cls = _class("torch.optim", workload.rule)
    how = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}, "compiled": {}}[kind]
    if missing := how.keys() - inspect.signature(cls).parameters.keys():
        raise Declined(f"has no {workload.rule} with {missing.pop()}")
    return _on_tensors(
        workload, params, sets, lambda tensors: cls(tensors, **workload.hyper, **how), kind == "compiled"
    )


def _torch_rows(workload: Workload, params: list[Array], sets: list[list[Array]], kind: str) -> Step:
    """The classes that take sparse gradients; foreach and fused change nothing for those."""
    if workload.rule not in WITH_ROWS or kind != "loop":
        raise Declined(f"takes no sparse gradients in its {workload.rule} with {kind}")
    optim = importlib.import_module("torch").optim
    cls = optim.SparseAdam if workload.rule == "adam" else _class("torch.optim", workload.rule)
    return _on_tensors(workload, params, sets, lambda tensors: cls(tensors, **workload.hyper))


def _door(workload: Workload, params: list[Array], sets: list[list[Array]]) -> Step:
    cls = _class("proptim.torch", workload.rule)
    return _on_tensors(workload, params, sets, lambda tensors: cls(tensors, **workload.hyper))


COMPILES = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}  # torch's compiler would leave idle processes behind


def _compiles(full: bool) -> str:
    return "" if full else "it compiles for most of a minute for each shape; --full does"


def _torches() -> Iterable[Contestant]:
    # One process for what runs on the same threads of the same library: importing torch takes ten seconds.
    common: dict[str, Any] = {"package": "torch", "options": True, "process": "torch", "dtypes": WITH_BFLOAT16}
    common["rows"] = True
    yield Contestant("torch-loop", "torch.optim, foreach=False", partial(_torch, kind="loop"), **common)
    yield Contestant("torch-foreach", "torch.optim, foreach=True", partial(_torch, kind="foreach"), **common)
    yield Contestant("torch-fused", "torch.optim, fused=True", partial(_torch, kind="fused"), **common)
    compiled = partial(_torch, kind="compiled")
    alone = {**common, "process": "", "environment": COMPILES, "unavailable": _compiles}
    yield Contestant("torch-compiled", "torch.compile(optimizer.step)", compiled, **alone)
    yield Contestant(
        DOOR,
        "proptim.torch's optimizer",
        _door,
        package="torch",
        options=True,
        rows=True,
        warm_up=WARM_UP,
        unavailable=_no_core,
    )


# optax ------------------------------------------------------------------------------------------------------------


OPTAX_NAMES: dict[str, tuple[str, ...]] = {
    "lr": ("learning_rate",),
    "betas": ("b1", "b2"),
    "alpha": ("decay",),
    "etas": ("eta_minus", "eta_plus"),
    "step_sizes": ("min_step_size", "max_step_size"),
}
"""torch's name of a hyperparameter -> optax's, where they differ."""
OPTAX_OFF = {"weight_decay": 0.0, "initial_accumulator_value": 0.0, "eps_in_sqrt": False}
"""What some of optax's optimizers do by default, and torch's do not."""
# Rprop of optax 0.2.8 applies every update a step late (optax#1725).
OPTAX_DIFFERS = {"rprop": "every update is applied a step late", "nadam": "has no momentum_decay"}


def _optax_transform(workload: Workload) -> Any:
    optax = importlib.import_module("optax")
    make = getattr(optax, workload.rule, None)
    if make is None:
        raise Declined(f"has no {workload.rule}")
    known = inspect.signature(make).parameters
    arguments = {name: value for name, value in OPTAX_OFF.items() if name in known}
    for name, value in workload.hyper.items():
        theirs = OPTAX_NAMES.get(name, (name,))
        if not known.keys() >= set(theirs):
            if workload.rule in OPTAX_DIFFERS:
                continue
            raise Declined(f"has no {name} in its {workload.rule}")
        arguments.update(zip(theirs, value if isinstance(value, tuple) else (value,), strict=True))
    transform = make(**arguments)
    if workload.clip_norm is not None:
        transform = optax.chain(optax.clip_by_global_norm(workload.clip_norm), transform)
    return transform


def _optax(workload: Workload, params: list[Array], sets: list[list[Array]]) -> Step:
    jax: Any = importlib.import_module("jax")
    optax: Any = importlib.import_module("optax")
    jax.config.update("jax_enable_x64", workload.dtype == "float64")
    transform = _optax_transform(workload)

    def array_of(array: Array) -> Any:
        return jax.numpy.array(array if workload.dtype != "bfloat16" else np.asarray(array).view(jax.numpy.bfloat16))

    now = [array_of(p) for p in params]
    gradients = itertools.cycle([[array_of(g) for g in grads] for grads in sets])
    state = transform.init(now)

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(update, donate_argnums=(0, 1))

    def run() -> None:
        nonlocal now, state
        now, state = jitted(now, state, next(gradients))
        jax.block_until_ready(now)

    return Step(run, params=lambda: [np.asarray(p) for p in now])


# The others -------------------------------------------------------------------------------------------------------


def _deepspeed(workload: Workload, params: list[Array], sets: list[list[Array]]) -> Step:
    def make(tensors: list[Any]) -> Any:
        h = dict(workload.hyper)
        if workload.rule == "adagrad":
            return importlib.import_module("deepspeed.ops.adagrad").DeepSpeedCPUAdagrad(tensors, **h)
        adamw = workload.rule == "adamw"
        return importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam(tensors, **h, adamw_mode=adamw)

    return _on_tensors(workload, params, sets, make)


def _no_deepspeed(full: bool) -> str:
    if sys.platform == "win32":
        return "its CPU optimizers need Linux"
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    if not full and not (list(root.rglob("cpu_adam.so")) and list(root.rglob("cpu_adagrad.so"))):
        return "it compiles its CPU optimizers when first used, which takes minutes; --full does"
    return ""


def _thinc(workload: Workload, params: list[Array], sets: list[list[Array]]) -> Step:
    h = workload.hyper
    optimizer = importlib.import_module("thinc.optimizers").Adam(
        h["lr"],
        beta1=h["betas"][0],
        beta2=h["betas"][1],
        eps=h["eps"],
        grad_clip=workload.clip_norm or 0.0,
        L2=0.0,
        use_averages=False,
    )
    keys = [(index, "W") for index in range(len(params))]
    given = [[g.copy() for g in grads] for grads in sets]
    turns = itertools.cycle(given)

    def run() -> None:
        for key, param, grad in zip(keys, params, next(turns), strict=True):
            optimizer(key, param, grad)
        optimizer.step_schedules()

    def refill() -> None:  # it leaves the gradients zero
        for grads, source in zip(given, sets, strict=True):
            for grad, original in zip(grads, source, strict=True):
                np.copyto(grad, original)

    return Step(run, between=refill)


def _bitsandbytes(workload: Workload, params: list[Array], sets: list[list[Array]], bits: int) -> Step:
    def make(tensors: list[Any]) -> Any:
        return _class("bitsandbytes.optim", workload.rule)(tensors, **workload.hyper, optim_bits=bits)

    return _on_tensors(workload, params, sets, make)


def _torchao(workload: Workload, params: list[Array], sets: list[list[Array]]) -> Step:
    if any(param.size < SMALLEST_IN_BLOCKS or param.size % QUANTA for param in params):
        raise Declined("keeps one byte only of arrays of 4,096 weights or more, and of a multiple of 256")
    cls = getattr(importlib.import_module("torchao.optim"), f"{proptim.OPTIMIZERS[workload.rule].__name__}8bit")
    return _on_tensors(workload, params, sets, lambda tensors: cls(tensors, **workload.hyper))


def _registry() -> Iterable[Contestant]:
    yield from _ours()
    yield from _roofs()
    yield Contestant(
        "numpy",
        "written by hand in NumPy, as tutorials do",
        _numpy,
        rules=frozenset(NUMPY),
        options=True,
        temporaries=4,
    )
    yield from _torches()
    yield Contestant(
        "optax",
        "optax under jax.jit, buffers donated",
        _optax,
        package="optax",
        dtypes=WITH_BFLOAT16,
        options=True,
        differs=OPTAX_DIFFERS,
    )
    yield Contestant(
        "deepspeed",
        "DeepSpeedCPUAdam, DeepSpeedCPUAdagrad",
        _deepspeed,
        package="deepspeed",
        rules=frozenset({"adagrad", "adam", "adamw"}),
        dtypes=frozenset({"float32"}),
        environment={"DS_ACCELERATOR": "cpu"},
        unavailable=_no_deepspeed,
    )
    yield Contestant(
        "thinc",
        "thinc.optimizers.Adam",
        _thinc,
        package="thinc",
        rules=frozenset({"adam"}),
        dtypes=frozenset({"float32"}),
        clips=False,  # each array by its own norm
    )
    for bits in (32, 8):
        yield Contestant(
            "bitsandbytes" if bits == 32 else "bitsandbytes-8",
            f"bitsandbytes, {bits}-bit state",
            partial(_bitsandbytes, bits=bits),
            package="bitsandbytes",
            rules=frozenset({"rmsprop", "adagrad", "adam", "adamw", "lion"}),
            dtypes=frozenset({"float32"}),
            in_one_byte=bits == 8,
            unavailable=lambda full: "" if full else "importing it takes longer than measuring it; --full does",
        )
    yield Contestant(
        "torchao-8",
        "torchao's Adam8bit, AdamW8bit",
        _torchao,
        package="torchao",
        rules=frozenset({"adam", "adamw"}),
        dtypes=frozenset({"float32"}),
        in_one_byte=True,
        environment=COMPILES,
        unavailable=_compiles,
    )


CONTESTANTS: dict[str, Contestant] = {contestant.name: contestant for contestant in _registry()}
"""By name, in the order of reports."""


def select(patterns: Sequence[str]) -> list[str]:
    """Names that match one of the patterns and none of those with a "!"; ValueError for one that matches nothing."""
    wanted = [p for p in patterns if not p.startswith("!")]
    unwanted = [p[1:] for p in patterns if p.startswith("!")]
    for pattern in (*wanted, *unwanted):
        if not any(fnmatchcase(name, pattern) for name in CONTESTANTS):
            raise ValueError(f"{pattern!r} is no contestant; expected some of: {', '.join(CONTESTANTS)}")
    return [
        name
        for name in CONTESTANTS
        if (not wanted or any(fnmatchcase(name, p) for p in wanted)) and not any(fnmatchcase(name, p) for p in unwanted)
    ]
