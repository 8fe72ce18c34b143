"""Who is measured: the registry of contestants, what each can do, and how each makes one step.

A contestant takes parameters and gradients and returns a `Step`.  Packages are imported only where they are used, in
the contestant's own process.
"""

from __future__ import annotations

import importlib
import importlib.util
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

from .workloads import Array, Workload

US = "proptim"
"""The contestant with whom all are compared."""

EVERY_RULE = frozenset(proptim.OPTIMIZERS)
FLOATS = frozenset({"float32", "float64"})


def is_peer(name: str) -> bool:
    """Whether a contestant is another package, or NumPy by hand: no variant of ours, and no roof."""
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
    rules: frozenset[str] = EVERY_RULE
    dtypes: frozenset[str] = FLOATS
    clips: bool = True
    options: bool = False  # whether options beyond HYPER are understood
    warm_up: int = 3  # steps before anything is measured
    temporaries: int = 3  # arrays as large as the parameters, beside parameters, gradients and state
    environment: Mapping[str, str] = field(default_factory=dict)
    unavailable: Callable[[bool], str] = lambda full: ""  # a further reason not to take part
    process: str = ""  # shared with the others that name it; a process of its own if empty
    same: frozenset[str] | None = None  # rules in which the equations are the same as ours; None: all

    def absent(self, full: bool = True) -> str:
        """Why it cannot take part; nothing if it can."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        return self.unavailable(full)

    def declines(self, workload: Workload) -> str:
        """Why it cannot do this work; nothing if it can."""
        if workload.rule not in self.rules:
            return f"has no {workload.rule}"
        if workload.dtype not in self.dtypes:
            return f"has no {workload.dtype}"
        if workload.options and not self.options:
            return f"has no {', '.join(key for key, _ in workload.options)}"
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
    best = proptim.isa() or "none"
    others = proptim.available_isas()[1:]
    common: dict[str, Any] = {
        "options": True,
        "warm_up": 40,  # long enough for threads="auto" to have made up its mind
        "temporaries": 0,
        "unavailable": _no_core,
    }
    yield Contestant("proptim", f'C kernels ({best}), threads="auto"', _proptim, **common)
    yield Contestant("proptim-1", f"C kernels ({best}), threads=1", partial(_proptim, threads=1), **common)
    # Its worker may have fewer cores than are here.
    count = proptim.get_num_threads()
    yield Contestant("proptim-all", f"C kernels ({best}), threads={count}", partial(_proptim, threads=0), **common)
    for isa in others:
        yield Contestant(
            f"proptim-{isa}", f'C kernels ({isa}), threads="auto"', _proptim, environment={"PROPTIM_ISA": isa}, **common
        )
    common = {**common, "warm_up": 3, "unavailable": lambda full: ""}
    yield Contestant("proptim-numba", "backend numba", partial(_proptim, backend="numba"), package="numba", **common)
    yield Contestant(
        "proptim-numpy", "backend numpy", partial(_proptim, backend="numpy"), **{**common, "temporaries": 6}
    )


# The roof ---------------------------------------------------------------------------------------------------------


def _kernels() -> Any:
    return importlib.import_module("._kernels", __package__)


def _no_kernels(full: bool) -> str:
    if importlib.util.find_spec(f"{__package__}._kernels") is None:
        return "this installation has no compiled kernels (PROPTIM_PURE=1)"
    return ""


def _roof(workload: Workload, params: list[Array], sets: list[list[Array]], threads: int = 1) -> Step:
    states = [[np.ones_like(p) for p in params] for _ in range(workload.arrays - 2)]
    kernel = _kernels().Kernel("stream", proptim.isa(), list(zip(params, sets[0], *states, strict=True)))
    return Step(partial(kernel.run, threads))


def _two_arrays(workload: Workload, params: list[Array], sets: list[list[Array]]) -> Step:
    before = [np.zeros_like(p) for p in params]
    sizes = [np.full_like(p, workload.hyper["lr"]) for p in params]
    return Step(_kernels().Kernel("rprop", proptim.isa(), list(zip(params, sets[0], before, sizes, strict=True))).run)


def _roofs() -> Iterable[Contestant]:
    common: dict[str, Any] = {"options": True, "temporaries": 0, "unavailable": _no_kernels}
    yield Contestant(
        "roof-1", "reads and writes the same arrays, and hardly computes", _roof, **common, same=frozenset()
    )
    threads = proptim.get_num_threads()
    yield Contestant(
        "roof-threads",
        f"the same on {threads} threads, which proptim's pool deals to as it does a step",
        partial(_roof, threads=threads),
        **common,
        same=frozenset(),
    )
    yield Contestant(
        "rprop-two-arrays",
        "Rprop as others store it: last gradient and step size apart",
        _two_arrays,
        **{**common, "options": False},
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

TORCH = {
    "sgd": "SGD",
    "rprop": "Rprop",
    "rmsprop": "RMSprop",
    "adagrad": "Adagrad",
    "adadelta": "Adadelta",
    "adam": "Adam",
    "adamw": "AdamW",
    "nadam": "NAdam",
}
TORCH_FUSED = frozenset({"sgd", "adagrad", "adam", "adamw"})  # those whose class takes fused=True on the CPU


def _on_tensors(
    workload: Workload,
    params: list[Array],
    sets: list[list[Array]],
    make: Callable[[list[Any]], Any],
    compiled: bool = False,
) -> Step:
    """The step of an optimizer with torch's interface."""
    torch: Any = importlib.import_module("torch")
    tensors = [torch.from_numpy(p).requires_grad_() for p in params]
    gradients = [[torch.from_numpy(g) for g in grads] for grads in sets]
    for tensor, grad in zip(tensors, gradients[0], strict=True):
        tensor.grad = grad
    optimizer = make(tensors)
    run = torch.compile(optimizer.step) if compiled else optimizer.step
    if workload.clip_norm is None and len(sets) == 1:
        return Step(run)
    turns = itertools.cycle(gradients)

    def step() -> None:
        if len(gradients) > 1:
            for tensor, grad in zip(tensors, next(turns), strict=True):
                tensor.grad = grad
        if workload.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(tensors, workload.clip_norm)
        run()

    return Step(step)


def _torch(workload: Workload, params: list[Array], sets: list[list[Array]], kind: str) -> Step:
    def make(tensors: list[Any]) -> Any:
        how = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}, "compiled": {}}
        cls = getattr(importlib.import_module("torch.optim"), TORCH[workload.rule])
        return cls(tensors, **workload.hyper, **how[kind])

    return _on_tensors(workload, params, sets, make, kind == "compiled")


def _torches() -> Iterable[Contestant]:
    # One process for what runs on the same threads of the same library: importing torch takes ten seconds.
    common: dict[str, Any] = {"package": "torch", "options": True, "rules": frozenset(TORCH), "process": "torch"}
    yield Contestant("torch-loop", "torch.optim, foreach=False", partial(_torch, kind="loop"), **common)
    yield Contestant("torch-foreach", "torch.optim, foreach=True", partial(_torch, kind="foreach"), **common)
    fused = {**common, "rules": TORCH_FUSED}
    yield Contestant("torch-fused", "torch.optim, fused=True", partial(_torch, kind="fused"), **fused)
    compiled = partial(_torch, kind="compiled")
    # Its compiler would leave idle processes behind.
    alone = {**common, "process": "", "environment": {"TORCHINDUCTOR_COMPILE_THREADS": "1"}}
    alone["unavailable"] = lambda full: "" if full else "it compiles for most of a minute for each shape; --full does"
    yield Contestant("torch-compiled", "torch.compile(optimizer.step)", compiled, **alone)


# optax ------------------------------------------------------------------------------------------------------------


def _optax_transform(workload: Workload) -> Any:
    optax = importlib.import_module("optax")
    h = workload.hyper
    b1, b2 = h.get("betas", (0.0, 0.0))
    made: dict[str, Callable[[], Any]] = {
        "sgd": lambda: optax.sgd(h["lr"]),
        "rprop": lambda: optax.rprop(h["lr"], *h["etas"], *h["step_sizes"]),
        "rmsprop": lambda: optax.rmsprop(
            h["lr"],
            h["alpha"],
            h["eps"],
            eps_in_sqrt=False,
            centered=h.get("centered", False),
            momentum=h.get("momentum"),
        ),
        "adagrad": lambda: optax.adagrad(h["lr"], 0.0, h["eps"]),
        "adadelta": lambda: optax.adadelta(h["lr"], h["rho"], h["eps"]),
        "adam": lambda: optax.adam(h["lr"], b1, b2, h["eps"]),
        "adamw": lambda: optax.adamw(h["lr"], b1, b2, h["eps"], weight_decay=h["weight_decay"]),
        "nadam": lambda: optax.nadam(h["lr"], b1, b2, h["eps"]),
        "lion": lambda: optax.lion(h["lr"], b1, b2, weight_decay=0.0),
    }
    transform = made[workload.rule]()
    if workload.clip_norm is not None:
        transform = optax.chain(optax.clip_by_global_norm(workload.clip_norm), transform)
    return transform


def _optax(workload: Workload, params: list[Array], sets: list[list[Array]]) -> Step:
    jax: Any = importlib.import_module("jax")
    optax: Any = importlib.import_module("optax")
    jax.config.update("jax_enable_x64", workload.dtype == "float64")
    transform = _optax_transform(workload)
    now = [jax.numpy.array(p) for p in params]
    gradients = itertools.cycle([[jax.numpy.array(g) for g in grads] for grads in sets])
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


def _bitsandbytes(workload: Workload, params: list[Array], sets: list[list[Array]]) -> Step:
    def make(tensors: list[Any]) -> Any:
        cls = getattr(importlib.import_module("bitsandbytes.optim"), BITSANDBYTES[workload.rule])
        return cls(tensors, **workload.hyper, optim_bits=32)

    return _on_tensors(workload, params, sets, make)


BITSANDBYTES = {"rmsprop": "RMSprop", "adagrad": "Adagrad", "adam": "Adam", "adamw": "AdamW", "lion": "Lion"}


def _registry() -> Iterable[Contestant]:
    yield from _ours()
    yield from _roofs()
    yield Contestant("numpy", "written by hand in NumPy, as tutorials do", _numpy, options=True, temporaries=4)
    yield from _torches()
    yield Contestant(
        "optax",
        "optax under jax.jit, buffers donated",
        _optax,
        package="optax",
        options=True,
        # Rprop is a step late (optax#1725), NAdam has no momentum decay
        same=EVERY_RULE - {"rprop", "nadam"},
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
    yield Contestant(
        "bitsandbytes",
        "bitsandbytes, 32-bit state",
        _bitsandbytes,
        package="bitsandbytes",
        rules=frozenset(BITSANDBYTES),
        dtypes=frozenset({"float32"}),
        unavailable=lambda full: "" if full else "importing it takes longer than measuring it; --full does",
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
