"""What all ranks do together, by `mpiexec -n 2 python tests/mpi/together.py`: every rank looks at its own results.

A test is a function `test_...`. Whatever is not as expected on one rank ends all of them with an error.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import tempfile
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
from mpi4py import MPI

import proptim
from proptim import _formats, _mpi_exchange, _mpi_team, schedules
from proptim.cli.selftest import in_one_byte
from proptim.mpi import Sharded

try:
    import torch
except ImportError:
    torch = None

COMM = MPI.COMM_WORLD
RANK, SIZE = COMM.rank, COMM.size
DTYPES = ("float32", "float64", "complex64", "complex128")
BF16 = np.dtype(ml_dtypes.bfloat16)
FORMATS = (
    ("bfloat16", "bfloat16", {}),
    ("bfloat16", "float32", {"state_dtype": "bfloat16"}),
    ("bfloat16", "float16", {"master": "float32"}),
    ("bfloat16", "bfloat16", {"master": None, "state_dtype": "bfloat16"}),
    ("bfloat16", "float64", {"cast_grads": True}),
    ("float16", "float16", {}),
    ("float16", "bfloat16", {"master": None}),
    ("float32", "bfloat16", {"state_dtype": "bfloat16"}),
    ("float32", "float64", {"cast_grads": True}),
    ("float64", "float16", {"state_dtype": "bfloat16"}),
    ("float64", "float32", {}),
    ("complex64", "complex64", {"state_dtype": "bfloat16"}),
    ("all", "own", {}),
    ("all", "own", {"master": None, "state_dtype": "bfloat16", "rounding": "stochastic", "seed": 5}),
)
"""dtypes of parameters and of gradients, and options."""
SHAPES = {
    "w": (130, 70),
    "b": (70,),
    "nothing": (0,),
    "scalar": (),
    "long": (9001,),
    "block": (4096,),
    "cube": (9, 20, 31),
}
"""17 or more blocks, so that for 1 to 4 ranks some arrays are cut and others are whole."""
SHORT = "--short" in sys.argv


def numbers(shape, dtype, seed):
    dtype = BF16 if dtype == "bfloat16" else np.dtype(dtype)
    rng = np.random.default_rng(seed)
    imaginary = 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else 0
    return np.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, shape) + imaginary, dtype)


def laid_out(array, layout):
    """The same numbers, in C order, in Fortran's, or apart from each other."""
    if layout == "C" or array.ndim == 0:
        return array.copy()
    if layout == "F":
        return array.copy(order="F")
    apart = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)[..., ::-2]
    apart[...] = array
    return apart


def model(dtype, layout="C"):
    """The parameters, by name; `mixed` has some of each layout and of two dtypes, `all` of all dtypes."""
    sets = {"mixed": DTYPES[:2], "all": ("bfloat16", "float32", "float16", "float64", "complex64")}
    dtypes = itertools.cycle(sets.get(dtype, [dtype]))
    layouts = itertools.cycle("CFS" if layout == "mixed" else layout)
    each = zip(SHAPES.items(), dtypes, layouts, strict=False)
    return {name: laid_out(numbers(shape, d, i), by) for i, ((name, shape), d, by) in enumerate(each)}


def gradients(params, step, rank, dtype="own"):
    of = {name: p.dtype if dtype == "own" else dtype for name, p in params.items()}
    return {name: numbers(p.shape, of[name], [step, rank, i]) for i, (name, p) in enumerate(params.items())}


def wide(grad):
    return grad.astype(np.float32) if grad.itemsize == 2 else grad


def added(params, step, dtype="own"):
    """The gradients of all ranks, added in their order, those of 16 bits in float32."""
    total = {name: wide(grad) for name, grad in gradients(params, step, 0, dtype).items()}
    for rank in range(1, SIZE):
        for name, grad in gradients(params, step, rank, dtype).items():
            total[name] = np.asarray(total[name] + wide(grad))
    return total


def same(a, b, what):
    assert a.keys() == b.keys(), what
    for name in a:
        assert a[name].dtype == b[name].dtype, (what, name)
        assert a[name].tobytes() == b[name].tobytes(), (what, name, RANK)


def same_state(a, b, what):
    """Whether two state_dicts say the same."""
    assert {k: v for k, v in a.items() if k != "state"} == {k: v for k, v in b.items() if k != "state"}, what
    assert a["state"].keys() == b["state"].keys(), what
    for i, entry in a["state"].items():
        assert entry.keys() == b["state"][i].keys(), (what, i)
        for name, value in entry.items():
            theirs = b["state"][i][name]
            if isinstance(value, np.ndarray):
                assert value.shape == theirs.shape, (what, i, name)
                assert value.tobytes() == theirs.tobytes(), (what, i, name)
            else:
                assert value == theirs, (what, i, name)


def pair(optimizer, dtype, reduce="mean", layout="C", groups=None, **options):
    """A sharded optimizer, and one that is alone with the sum: each with parameters of its own."""
    ours, alone = model(dtype, layout), model(dtype)
    scale = options.pop("grad_scale", 1.0)
    ranks = SIZE if reduce == "mean" else 1
    alone_scale = (lambda t: scale(t) / ranks) if callable(scale) else scale / ranks
    group = groups or (lambda params: params)
    sharded = Sharded(optimizer, group(ours), reduce=reduce, grad_scale=scale, **options)
    return ours, sharded, alone, optimizer(group(alone), grad_scale=alone_scale, **options)


def by_losses(optimizer):
    return {"loss": 1.0} if any(optimizer.needs_loss(g) for g in optimizer.param_groups) else {}


def run(ours, sharded, alone, plain, steps=4, what="", grads="own"):
    """Step both; parameters, the norm and the counts are the same after each step."""
    for step in range(steps):
        loss = [float(np.cos(step + rank)) for rank in range(SIZE)]
        total = loss[0]
        for each in loss[1:]:
            total += each
        ranks = SIZE if "reduce='mean'" in repr(sharded) else 1
        wants = bool(by_losses(plain))
        sharded.step(gradients(ours, step, RANK, grads), **({"loss": loss[RANK]} if wants else {}))
        plain.step(added(alone, step, grads), **({"loss": total / ranks} if wants else {}))
        same(ours, alone, (what, step))
        assert sharded.grad_norm == plain.grad_norm, (what, step, sharded.grad_norm, plain.grad_norm)
        assert (sharded.steps, sharded.skipped) == (plain.steps, plain.skipped)


def raises(kind, text, call, *args, **keywords):
    """The call is refused on all ranks with this in its message."""
    try:
        call(*args, **keywords)
    except kind as error:
        told = str(error)
    else:
        raise AssertionError(f"rank {RANK}: nothing was raised, expected {text!r}")
    assert text in told, (RANK, told)
    return told


@contextmanager
def bucket(size):
    """Buckets of so many bytes, so that there are many rounds."""
    before, _mpi_exchange.BUCKET = _mpi_exchange.BUCKET, size
    try:
        yield
    finally:
        _mpi_exchange.BUCKET = before


@contextmanager
def folder():
    """One for all ranks."""
    made = tempfile.TemporaryDirectory() if RANK == 0 else None
    yield Path(COMM.bcast(made.name if made else None))
    COMM.Barrier()
    if made:
        made.cleanup()


# Bits -----------------------------------------------------------------------------------------------------------------


def test_every_optimizer():
    cases = [(optimizer, case) for optimizer in proptim.OPTIMIZERS.values() for case in optimizer.cases]
    for i, (optimizer, case) in enumerate(cases):
        for k, dtype in enumerate(DTYPES):
            if not SHORT or k == i % len(DTYPES):  # each case with one dtype, or with all of them
                size = (_mpi_exchange.BUCKET, 1)[(i + k) // 2 % 2]
                with bucket(size):
                    run(*pair(optimizer, dtype, **case), steps=3, what=(optimizer, dtype, case, size))


def test_formats():
    """Every optimizer and case, each with one format or with a third of them; its state too."""
    cases = [(optimizer, case) for optimizer in proptim.OPTIMIZERS.values() for case in optimizer.cases]
    for i, (optimizer, case) in enumerate(cases):
        for k, (dtype, grads, options) in enumerate(FORMATS):
            if k != i % len(FORMATS) and (SHORT or (i + k) % 3):
                continue
            options = {**options, **({"clip_norm": 2.0} if (i + k) % 2 else {}), **case}
            what = (optimizer, dtype, grads, options)
            with bucket((_mpi_exchange.BUCKET, 1, 40_000)[k % 3]):
                ours, sharded, alone, plain = pair(optimizer, dtype, layout=("C", "mixed", "F")[i % 3], **options)
                run(ours, sharded, alone, plain, steps=3, what=what, grads=grads)
            same_state(sharded.state_dict(), plain.state_dict(), what)


def test_options():
    sets = (
        {"clip_norm": 0.5},
        {"clip_norm": 0.5, "nonfinite": "skip", "reduce": "sum", "zero_grads": True},
        {"clip_norm": 1e9, "maximize": True, "weight_decay": 0.1, "clip_value": 0.7},
        {"clip_norm": schedules.linear(1.0, 0.1, 3), "grad_scale": 0.3},
        {"grad_scale": schedules.exponential(1.0, 0.5), "reduce": "sum", "decoupled_weight_decay": True},
        {"grad_scale": 3, "flush_denormals": True, "threads": 2, "weight_decay": schedules.cosine(0.1, 4)},
        {"backend": "numpy", "clip_norm": 0.5},
    )
    for options, dtype, layout in itertools.product(sets, ("mixed", "complex64"), ("C", "mixed")):
        for size in [40_000] if SHORT else [_mpi_exchange.BUCKET, 40_000]:
            with bucket(size):
                what = (options, dtype, layout, size)
                run(*pair(proptim.RMSprop, dtype, layout=layout, momentum=0.9, **options), what=what)


def test_groups():
    def groups(params):
        names = [*params]
        return [
            {"params": {n: params[n] for n in names[:2]}, "lr": 0.5, "name": "first"},
            {"params": {n: params[n] for n in names[2:]}, "weight_decay": 0.01},
        ]

    ours, sharded, alone, plain = pair(proptim.Adam, "float32", groups=groups, lr=schedules.linear(0.1, 0.01, 5))
    run(ours, sharded, alone, plain, what="groups")
    assert sharded.param_groups[0]["params"][0] is ours["w"]
    assert sharded.param_groups[0]["name"] == "first"
    for each in (sharded, plain):
        each.param_groups[0]["lr"] = 0.25
        each.clip_norm = 0.1
    run(ours, sharded, alone, plain, what="set")
    for each in (sharded, plain):
        each.eps = 1e-6
        each.reset("long")
    run(ours, sharded, alone, plain, what="set for all groups")
    for params, each in ((ours, sharded), (alone, plain)):
        params["late"] = numbers((50, 200), "float64", 77)
        each.add_param_group({"params": {"late": params["late"]}, "lr": 0.3})
    run(ours, sharded, alone, plain, what="a group more")
    same_state(sharded.state_dict(), plain.state_dict(), "a group more")
    for params, each in ((ours, sharded), (alone, plain)):
        each.remove_param_group(0)
        del params["w"], params["b"]
    run(ours, sharded, alone, plain, what="a group less")
    assert [len(g["params"]) for g in sharded.param_groups] == [5, 1]
    raises(IndexError, "there is no parameter group 7", sharded.remove_param_group, 7)
    raises(ValueError, "learning rate", sharded.add_param_group, {"params": {"later": np.ones(5000)}, "lr": -1})
    run(ours, sharded, alone, plain, what="a group refused")


def same_parts(sharded, plain, what):
    """What is shown of this rank's part is that part of what an optimizer alone shows."""
    params = [p for group in plain.param_groups for p in group["params"]]
    for i, (key, whole) in enumerate(plain.state.items()):
        begin, end = sharded._exchange.own(i)
        part = sharded.state[key]
        assert part.keys() == whole.keys(), what
        for name, array in whole.items():
            if isinstance(array, np.ndarray):
                run = array.reshape(params[i].size, math.prod(array.shape[params[i].ndim :]))[begin:end]
                assert part[name].dtype == array.dtype, (what, key, name)
                assert part[name].tobytes() == run.tobytes(), (what, key, name)


def test_one_byte():
    """Every optimizer and case with state in one byte, to nearest and at random; what is not possible is refused."""
    cases = [(name, case) for name, optimizer in proptim.OPTIMIZERS.items() for case in optimizer.cases]
    kinds = (
        ("float32", "C", {}),
        ("bfloat16", "mixed", {"rounding": "stochastic", "seed": 7, "clip_norm": 2.0}),
        ("float16", "F", {"master": None, "rounding": "stochastic", "backend": "numpy"}),
        ("float32", "mixed", {"rounding": "stochastic", "ema": 0.75, "threads": 2}),
    )
    for i, (name, case) in enumerate(cases):
        for k, (dtype, layout, options) in enumerate(kinds):
            if SHORT and k != i % len(kinds):
                continue
            options = {**in_one_byte(name, case), **options}
            what = (name, dtype, options)
            with bucket((_mpi_exchange.BUCKET, 1, 40_000)[(i + k) % 3]):
                ours, sharded, alone, plain = pair(proptim.OPTIMIZERS[name], dtype, layout=layout, **options)
                run(ours, sharded, alone, plain, steps=3, what=what)
            saved = sharded.state_dict()
            same_state(saved, plain.state_dict(), what)
            same_parts(sharded, plain, what)
            codes = {n for entry in saved["state"].values() for n in entry if n.endswith("_code")}
            kept = options["state_dtype"]
            asked = [n for n in plain.wanted(plain.param_groups[0]) if kept == "int8" or n in kept]
            assert codes == {f"{n}_code" for n in asked}, what
            for each in (sharded, plain):
                each.reset("w", "block")
            run(ours, sharded, alone, plain, steps=1, what=("reset", *what))
            same_state(sharded.state_dict(), plain.state_dict(), ("reset", *what))
    w = np.ones(5000)
    raises(ValueError, "Invalid state_dtype: 'int8' for params[0], which is float64", Sharded, proptim.Adam, [w],
           state_dtype="int8")  # fmt: skip
    w = np.ones(5000, np.float32)
    raises(ValueError, "Invalid eta values: (0.5, 1.2)", Sharded, proptim.Rprop, [w], state_dtype="int8")


def test_one_byte_is_loaded():
    """With cast=True into other formats and back, as by an optimizer alone; what is damaged is refused by all."""
    for name, dtype in (("adam", "float32"), ("adam", "bfloat16"), ("rprop", "float32")):
        optimizer, compact = proptim.OPTIMIZERS[name], in_one_byte(name, {})
        ours, sharded, alone, plain = pair(optimizer, dtype, layout="mixed", **compact)
        run(ours, sharded, alone, plain)
        for other in ({**compact, "state_dtype": None}, {**compact, "state_dtype": "bfloat16"}, compact):
            saved = plain.state_dict()
            ours, sharded, alone, plain = pair(optimizer, dtype, layout="mixed", **other)
            for each in (sharded, plain):
                each.load_state_dict(saved, cast=True)
            same_state(sharded.state_dict(), plain.state_dict(), (name, other))
            run(ours, sharded, alone, plain, what=(name, other))
    ours, sharded, alone, plain = pair(proptim.Adam, "float32", layout="mixed", state_dtype="int8")
    run(ours, sharded, alone, plain)
    before = sharded.state_dict()

    def change(saved, kind):
        state = saved["state"][0]
        if kind == "missing":
            del state["exp_avg_scale"]
        elif kind == "negative":
            state["exp_avg_scale"][-1] = -1
        elif kind == "long":
            state["exp_avg_scale"] = np.ones(99, np.float32)
        elif kind == "signed":
            state["exp_avg_code"] = state["exp_avg_code"].view(np.uint8)
        elif kind == "shape":
            state["exp_avg_code"] = state["exp_avg_code"].T
        elif kind == "cast":
            state["exp_avg_code"] = state["exp_avg_code"].astype(np.float32)
        else:
            del state["exp_avg_code"]
        return saved

    for kind in ("missing", "negative", "long", "signed", "shape", "cast", "alone"):
        saved = change(plain.state_dict(), kind)
        try:
            plain.load_state_dict(saved)
        except (ValueError, TypeError) as error:
            raises(type(error), str(error), sharded.load_state_dict, saved)
        else:
            raise AssertionError(kind)
    same_state(sharded.state_dict(), before, "refused")
    ours, rprop, _, _ = pair(proptim.Rprop, "float32", **in_one_byte("rprop", {}))
    saved = rprop.state_dict()
    saved["param_groups"][0]["step_sizes"] = (1e-3, 1.0)
    raises(ValueError, "the grid of etas and step_sizes", rprop.load_state_dict, saved)
    # As before format 4: codes under the name of the array itself.
    saved = plain.state_dict()
    for entry in saved["state"].values():
        for n in [n for n in entry if n.endswith("_code")]:
            entry[n.removesuffix("_code")] = entry.pop(n)
    sharded.load_state_dict(saved)
    same_state(sharded.state_dict(), before, "names of format 3")


# Averages and copies of the weights -----------------------------------------------------------------------------------


def in_groups(params):
    """Three groups: the first takes the `ema` of the optimizer, the others have their own."""
    names = [*params]
    return [
        {"params": {n: params[n] for n in names[:3]}},
        {"params": {n: params[n] for n in names[3:5]}, "ema": None},
        {"params": {n: params[n] for n in names[5:]}, "ema": schedules.linear(0.5, 0.9, 3)},
    ]


def bits(params):
    return {name: p.tobytes() for name, p in params.items()}


def test_averages():
    """Every optimizer and case: the averages, and the weights of all ranks within a block and after it."""
    cases = [(optimizer, case) for optimizer in proptim.OPTIMIZERS.values() for case in optimizer.cases]
    kinds = (
        ("float32", {}),
        ("complex64", {}),
        ("all", {"state_dtype": "bfloat16", "clip_norm": 1.0}),
        ("all", {"master": None, "rounding": "stochastic", "seed": 3}),
        ("bfloat16", {"master": "float32"}),
        ("float64", {"backend": "numpy", "nonfinite": "skip"}),
    )
    for i, (optimizer, case) in enumerate(cases):
        for k, (dtype, options) in enumerate(kinds):
            if k != i % len(kinds) and (SHORT or (i + k) % 3):
                continue
            what = (optimizer, dtype, options, case)
            options = {**options, **case, "ema": 0.75}
            with bucket((_mpi_exchange.BUCKET, 1, 40_000)[k % 3]):
                ours, sharded, alone, plain = pair(
                    optimizer, dtype, layout=("C", "mixed", "F")[i % 3], groups=in_groups, **options
                )
                run(ours, sharded, alone, plain, steps=3, what=what)
            same_state(sharded.state_dict(), plain.state_dict(), what)
            same_parts(sharded, plain, what)
            before = bits(ours), bits(alone)
            with sharded.averaged(), plain.averaged():
                same(ours, alone, ("averaged", *what))
                assert bits(ours) != before[0], what
                same_parts(sharded, plain, ("averaged", *what))
            assert (bits(ours), bits(alone)) == before, what
            same_parts(sharded, plain, what)
            assert sharded.ema.keys() == plain.ema.keys()
            assert {*plain.ema} == {*ours} - {"scalar", "long"}
            for name, part in sharded.ema.items():
                assert part.tobytes() == sharded.state[name]["ema"].tobytes()
                assert not part.flags.writeable
            run(ours, sharded, alone, plain, steps=2, what=("after a block", *what))
            same_state(sharded.state_dict(), plain.state_dict(), what)


def test_averages_begin_and_go_on():
    """A number that is set later, None again, reset and groups that come and go, also of weights written meanwhile."""
    ours, sharded, alone, plain = pair(proptim.SGD, "bfloat16", layout="S", momentum=0.9, clip_norm=1.0)
    raises(ValueError, "no average of the weights is kept", sharded.averaged().__enter__)
    raises(AttributeError, "no average of the weights is kept", getattr, sharded, "ema")
    run(ours, sharded, alone, plain)

    def write(number):
        for params in (ours, alone):
            for p in params.values():
                p[...] = number

    for ema in (0.5, schedules.linear(0.5, 0.9, 9), None, 0.25):
        write(1.5)
        for each in (sharded, plain):
            each.param_groups[0]["ema"] = ema
        run(ours, sharded, alone, plain, what=("set", ema))
        same_state(sharded.state_dict(), plain.state_dict(), ("set", ema))
    for keys in (("w", "long"), ()):
        write(2.5)
        for each in (sharded, plain):
            each.reset(*keys)
        same_state(sharded.state_dict(), plain.state_dict(), ("reset", keys))
    for params, each in ((ours, sharded), (alone, plain)):
        params["late"] = laid_out(numbers((50, 200), "float32", 77), "S" if params is ours else "C")
        each.add_param_group({"params": {"late": params["late"]}, "ema": 0.125})
    run(ours, sharded, alone, plain, what="a group more")
    for params, each in ((ours, sharded), (alone, plain)):
        each.remove_param_group(0)
        for name in SHAPES:
            del params[name]
    run(ours, sharded, alone, plain, what="a group less")
    same_state(sharded.state_dict(), plain.state_dict(), "a group less")
    before = bits(ours)
    with sharded.averaged():
        whole = plain.ema["late"]
        assert ours["late"].tobytes() == whole.tobytes()
    assert bits(ours) == before


def test_averages_are_loaded():
    """Those of a file go on; where it has none they begin with the weights, and are not switched off."""
    with folder() as where, bucket(30_000):
        for dtype, options in (("all", {"state_dtype": "bfloat16"}), ("float16", {}), ("float32", {})):
            ours, sharded, alone, plain = pair(proptim.Adam, dtype, layout="mixed", ema=0.9, **options)
            run(ours, sharded, alone, plain)
            sharded.save(where / "ours")
            bare = proptim.Adam(model(dtype), **options)
            if RANK == 0:
                plain.save(where / "alone")
                assert (where / "ours").read_bytes() == (where / "alone").read_bytes()
                bare.save(where / "bare")
            COMM.Barrier()
            for name in ("ours", "bare"):
                for ema in (0.9, None):
                    _, sharded, _, plain = pair(proptim.Adam, dtype, layout="mixed", ema=ema, **options)
                    ours, alone = sharded_params(sharded), sharded_params(plain)
                    for each in (sharded, plain):
                        each.load(where / name)
                    same_state(sharded.state_dict(), plain.state_dict(), (name, ema))
                    run(ours, sharded, alone, plain, what=(name, ema))
                    same_state(sharded.state_dict(), plain.state_dict(), (name, ema))
            COMM.Barrier()


def sharded_params(opt):
    """The parameters of an optimizer of one group, by name."""
    return dict(zip(opt.state, opt.param_groups[0]["params"], strict=True))


def test_a_block_of_averages():
    """What is refused within it, what ends it on one rank alone, and what other ranks are told of."""
    ours, sharded, alone, plain = pair(proptim.Adam, "all", layout="mixed", ema=0.5, zero_grads=False)
    run(ours, sharded, alone, plain)
    grads = gradients(ours, 9, RANK)
    before, saved = bits(ours), sharded.state_dict()
    told = "the parameters are the averages of the weights, within `with opt.averaged():`"
    with folder() as where, sharded.averaged():
        inside = bits(ours)
        for call in (
            lambda: sharded.step(grads),
            sharded.state_dict,
            lambda: sharded.load_state_dict(saved),
            lambda: sharded.save(where / "file"),
            lambda: sharded.load(where / "file"),
            sharded.reset,
            sharded.zero_grad,
            lambda: sharded.add_param_group({"params": {"late": np.ones(3)}}),
            lambda: sharded.remove_param_group(0),
            sharded.averaged().__enter__,
        ):
            raises(RuntimeError, told, call)
        assert bits(ours) == inside != before
        assert not any(where.iterdir())
    assert bits(ours) == before
    for ranks in (range(SIZE), [SIZE - 1]):
        try:
            with sharded.averaged():
                ours["w"][...] = 7.0
                if RANK in ranks:
                    raise KeyError("of the program")
        except KeyError:
            assert RANK in ranks
        else:
            assert RANK not in ranks
        assert bits(ours) == before
    block = sharded.averaged()
    with block:
        raises(RuntimeError, told, block.__enter__)
        assert bits(ours) == inside
    assert bits(ours) == before
    run(ours, sharded, alone, plain, what="after blocks")
    same_state(sharded.state_dict(), plain.state_dict(), "after blocks")
    if SIZE == 1:
        spread, sharded._exchange.spread = sharded._exchange.spread, lambda moves: [][0]
        before = bits(ours)
        raises(IndexError, "list index out of range", sharded.averaged().__enter__)
        assert bits(ours) == before
        sharded._exchange.spread = spread
        run(ours, sharded, alone, plain, what="after a block that failed")
        return
    last, odd = f"rank {SIZE - 1}", RANK == SIZE - 1
    before = bits(ours)
    if odd:
        sharded.param_groups[0]["ema"] = 0.25
    raises(ValueError, f"ema of group 0 is 0.25 on {last} and 0.5 on rank 0", sharded.averaged().__enter__)
    raises(ValueError, f"ema of group 0 is 0.25 on {last} and 0.5 on rank 0", sharded.step, grads)
    if odd:
        sharded.param_groups[0]["ema"] = None
    raises(ValueError, "no average of the weights is kept", sharded.averaged().__enter__)
    if odd:
        sharded.param_groups[0]["ema"] = lambda step: 0.5  # of the value that the others have
    raises(
        RuntimeError,
        f"{last} calls averaged and rank 0 calls step",
        *([sharded.averaged().__enter__] if odd else [sharded.step, grads]),
    )
    assert bits(ours) == before
    run(ours, sharded, alone, plain, what="after refused blocks")


def test_tensors_with_averages():
    """Autograd is told of both changes; a tensor that gets other memory in the block gets its weights there."""
    if torch is None:
        return
    tensors = [torch.linspace(-2, 2, 9000).reshape(100, 90).t().bfloat16(), torch.ones(5)]
    sharded = Sharded(proptim.SGD, tensors, lr=0.5, ema=0.5)
    sharded.step([torch.ones(p.shape, dtype=p.dtype) for p in tensors])
    before, versions = [p.clone() for p in tensors], [p._version for p in tensors]
    with sharded.averaged():
        assert tensors[1].tolist() == [0.75] * 5
        assert all(p._version > v for p, v in zip(tensors, versions, strict=True))
        versions = [p._version for p in tensors]
        tensors[1].data = tensors[1].double()
    assert all(p._version > v for p, v in zip(tensors, versions[:1], strict=False))
    assert torch.equal(tensors[0], before[0])
    assert tensors[1].dtype == torch.float64
    assert torch.equal(tensors[1], before[1].double())
    raises(ValueError, "params[1] has been given other memory", sharded.averaged().__enter__)
    assert torch.equal(tensors[0], before[0])
    tensors = [torch.full((9000,), float(i)) for i in range(4)]
    groups = [{"params": tensors[:3], "ema": 0.5}, {"params": tensors[3:]}]
    sharded = Sharded(proptim.SGD, groups, lr=0.5)
    sharded.step([torch.ones(9000)] * 4)
    with sharded.averaged():
        tensors[0].data, tensors[1].data = torch.zeros(1).expand(9000), tensors[2].data
        tensors[2].data = tensors[3].data
    for i, tensor in enumerate(tensors):
        assert torch.equal(tensor, torch.full((9000,), i - 0.5))


def test_copies():
    """`publish`: on each rank, of whole parameters, at each step, by loading and within a block of averages."""
    kinds = {"w": BF16, "long": np.float16, "cube": BF16}

    def copies(params):
        made = {n: np.full((*p.shape[:-1], 2 * p.shape[-1]), 7, kinds[n]) for n, p in params.items() if n in kinds}
        return {n: made[n][..., ::2] if n in made else None for n in params}

    for size in (_mpi_exchange.BUCKET, 1):
        ours, alone = model("float32", "mixed"), model("float32")
        one, two = copies(ours), copies(alone)

        def check(what, one=one, two=two):
            assert {n: c.tobytes() for n, c in one.items() if n in kinds} == {
                n: c.tobytes() for n, c in two.items() if n in kinds
            }, what

        options = {"nonfinite": "skip", "state_dtype": {"exp_avg": "bfloat16"}, "rounding": "stochastic", "ema": 0.5}
        with bucket(size):
            sharded = Sharded(proptim.Adam, ours, publish=one, **options)
        plain = proptim.Adam(alone, publish=two, grad_scale=1 / SIZE, **options)
        check("made")
        run(ours, sharded, alone, plain, what="copies")
        check("stepped")
        for params in (ours, alone):
            params["long"][...] = 3.0  # which is copied by a step of it alone
        mine, total = gradients(ours, 5, RANK), added(alone, 5)
        sharded.step({**mine, "long": None})
        plain.step({**total, "long": None})
        check("left out")
        bad = gradients(ours, 6, RANK)
        bad["w"][0, 0] = np.inf
        sharded.step(bad)
        assert sharded.skipped == 1
        check("skipped")
        before = {n: c.tobytes() for n, c in one.items() if n in kinds}
        with sharded.averaged(), plain.averaged():
            check("averaged")
            assert before != {n: c.tobytes() for n, c in one.items() if n in kinds}
        check("after the block")
        for params in (ours, alone):
            params["w"][...] = 5.0
        saved = plain.state_dict()
        for each in (sharded, plain):
            each.load_state_dict(saved)
        check("loaded")
        assert (one["w"] == 5).all()
        plain.load_state_dict({**plain.state_dict(), "skipped": 0})
        sharded.load_state_dict({**sharded.state_dict(), "skipped": 0})
        run(ours, sharded, alone, plain, what="after it")
        check("after it")
        raises(ValueError, "share memory", sharded.step, {**mine, "w": np.asarray(one["w"])})


def test_copies_are_checked():
    """By all ranks, before any is written; ranks may have copies of their own."""
    w, copied = np.ones(9000, np.float32), np.full(9000, 7, np.float16)
    for kind, text, publish in (
        (ValueError, "publish has 2 arrays; expected 1", [copied, copied]),
        (TypeError, "publish[0] is float32; expected bfloat16 or float16", [w.copy()]),
        (ValueError, "publish[0] has shape (3,)", [copied[:3]]),
    ):
        raises(kind, text, Sharded, proptim.SGD, [w], publish=publish)
    twice = np.ones(9000, np.float32)
    raises(ValueError, "share memory", Sharded, proptim.SGD, [w, twice], publish=[copied, copied])
    if SIZE > 1:
        odd = RANK == SIZE - 1
        raises(ValueError, "lr of group 0 is 0.5", Sharded, proptim.SGD, [w], publish=[copied], lr=0.5 if odd else 0.25)
    assert (copied == 7).all()
    opt = Sharded(proptim.SGD, [w], publish=[copied] if RANK == 0 else None, lr=0.5, reduce="sum", ema=0.5)
    opt.step([np.ones(9000, np.float32)])
    assert (w == 1 - 0.5 * SIZE).all()
    assert (copied == (w.astype(np.float16) if RANK == 0 else 7)).all()
    with opt.averaged():
        assert (copied == (w.astype(np.float16) if RANK == 0 else 7)).all()
    if torch is not None:
        copied = torch.zeros(9000, dtype=torch.bfloat16)
        opt = Sharded(proptim.SGD, [w], publish=[copied], lr=0.5)
        version = copied._version
        opt.step([np.ones(9000, np.float32)])
        assert copied._version > version
        assert np.array_equal(copied.float().numpy(), w)


def test_gradients_left_out():
    ours, alone = model("float32"), model("float32")
    sharded = Sharded(proptim.Adam, [*ours.values()], clip_norm=0.1)
    plain = proptim.Adam([*alone.values()], clip_norm=0.1, grad_scale=1 / SIZE)
    for step, left_out in enumerate([(), (0, 4), (0, 4), (1,), (), range(6)]):
        mine, total = [*gradients(ours, step, RANK).values()], [*added(alone, step).values()]
        for i in left_out:
            mine[i] = total[i] = None
        sharded.step(mine)
        plain.step(total)
        same(ours, alone, step)
        assert sharded.grad_norm == plain.grad_norm
    same_state(sharded.state_dict(), plain.state_dict(), "left out")
    raises(ValueError, "no gradients", sharded.step, [None] * len(ours))
    if SIZE > 1:
        mine = [*gradients(ours, 0, RANK).values()]
        if RANK == 1:
            mine[4] = None
        raises(ValueError, "grads[4] is None on rank 1 and an array on rank 0", sharded.step, mine)
        same(ours, alone, "refused")


def test_bound_gradients():
    """Bound once and written into; zeroed by the step or by hand; a refused call leaves them bound."""
    ours, alone = model("float64"), model("float64")
    grads = {name: np.zeros_like(p) for name, p in ours.items()}
    sharded = Sharded(proptim.SGD, ours, grads=grads, lr=0.1, zero_grads=True, momentum=0.9)
    plain = proptim.SGD(alone, lr=0.1, grad_scale=1 / SIZE, momentum=0.9)
    for step in range(3):
        for name, grad in gradients(ours, step, RANK).items():
            grads[name][...] = grad
        sharded.step()
        assert not any(g.any() for g in grads.values())
        plain.step(added(alone, step))
        same(ours, alone, step)
    raises(ValueError, "has shape (3,)", sharded.step, {**grads, "b": np.zeros(3)})
    for name, grad in gradients(ours, 9, RANK).items():
        grads[name][...] = grad
    sharded.zero_grads = False
    sharded.step()
    plain.step(added(alone, 9))
    same(ours, alone, "after a refused call")
    assert grads["w"].any()
    sharded.zero_grad()
    assert not grads["w"].any()


def test_not_finite():
    for policy, place in itertools.product(("skip", "raise", "propagate"), (0, SIZE - 1)):
        ours, sharded, alone, plain = pair(proptim.RMSprop, "float32", nonfinite=policy, clip_norm=0.5)
        run(ours, sharded, alone, plain, steps=1)
        grads = gradients(ours, 1, RANK)
        if place == RANK:
            grads["w"][100, 3] = np.nan
        if policy == "raise":
            where = 'grads[0] ("w") is nan at index (100, 3)' + (f" on rank {place}" if SIZE > 1 else "")
            raises(FloatingPointError, where, sharded.step, grads)
            same(ours, alone, "raised")
        elif policy == "skip":
            sharded.step(grads)
            assert (sharded.steps, sharded.skipped) == (1, 1)
            same(ours, alone, "skipped")
            plain.load_state_dict({**plain.state_dict(), "skipped": 1})
        else:
            total = added(alone, 1)
            total["w"][100, 3] = np.nan
            sharded.step(grads)
            plain.step(total)
            same(ours, alone, "propagated")
        run(ours, sharded, alone, plain, what="after it")
    if SIZE > 1:  # finite on each rank, and infinite together
        params = {"w": np.zeros((2, 9000), np.float32)}
        sharded = Sharded(proptim.SGD, params, nonfinite="raise")
        grads = np.zeros((2, 9000), np.float32)
        grads[1, 8999] = 3e38
        told = 'the sum over all ranks of grads[0] ("w") is inf at index (1, 8999)'
        raises(FloatingPointError, told, sharded.step, {"w": grads})
        sharded = Sharded(proptim.SGD, params, nonfinite="skip", max_skips=2)
        for _ in range(2):
            sharded.step({"w": grads})
        raises(FloatingPointError, "after 2 skips in a row", sharded.step, {"w": grads})
        assert (sharded.steps, sharded.skipped) == (0, 2)


def test_part_of_the_ranks():
    """A communicator with fewer ranks, and one for this rank alone; two optimizers at once."""
    some = COMM.Split(RANK % 2, RANK)
    w = np.ones(20_000)
    opt, alone = Sharded(proptim.SGD, [w], some, lr=1.0, reduce="sum"), Sharded(proptim.SGD, [w.copy()], MPI.COMM_SELF)
    opt.step([np.ones(20_000)])
    alone.step([np.ones(20_000)])
    assert (w == 1 - some.size).all()


def test_state_is_shared_out():
    opt = Sharded(proptim.Adam, {"w": np.zeros(4096 * 25, np.float32), "b": np.zeros(5)})
    sizes = COMM.allgather(sum(a.size for a in (opt.state["w"]["exp_avg"], opt.state["b"]["exp_avg"])))
    assert sum(sizes) == 4096 * 25 + 5
    assert max(sizes) <= 4096 * -(-26 // SIZE)
    assert all(size % 4096 == 0 for size in sizes[:-1])
    text = repr(opt)
    assert f"Sharded Adam (rank {RANK} of {SIZE}, reduce='mean'" in text
    assert f"2 arrays, 102,405 weights, of which {sizes[RANK]:,} are stepped here" in text
    assert opt.threads == "auto"
    assert "exp_avg" in opt.state["w"]
    assert {"lr", "betas", "step", "save"} <= {*dir(opt)}
    assert opt.traffic["sent"] == 0


def test_processes_that_mpi_does_not_know_of():
    """Started by torchrun or by another mpiexec each would be alone: that is refused; under Slurm it is warned of."""
    if SIZE > 1:
        os.environ["WORLD_SIZE"] = "4"
        Sharded(proptim.SGD, [np.ones(3)], COMM.Dup())
        del os.environ["WORLD_SIZE"]
        return
    names = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    before = {name: os.environ.pop(name, "") for name in names}
    for name in names:
        for count in ("1", "", "four"):
            os.environ[name] = count
            Sharded(proptim.SGD, [np.ones(3)], COMM.Dup())
        os.environ[name] = "4"
        told = f"MPI.COMM_WORLD has one rank here, but {name} is 4, which "
        if name == "SLURM_NTASKS":
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                Sharded(proptim.SGD, [np.ones(3)], COMM.Dup())
            (warning,) = seen
            assert warning.category is RuntimeWarning
            assert str(warning.message).startswith(told)
            assert warning.filename == __file__
        else:
            comm = COMM.Dup()
            for _ in range(2):
                raises(RuntimeError, told, Sharded, proptim.SGD, [np.ones(3)], comm)
        Sharded(proptim.SGD, [np.ones(3)], MPI.COMM_SELF)
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if value})


# Files ----------------------------------------------------------------------------------------------------------------


def test_resume():
    """The bytes of the file are those of an optimizer that is alone; who loads it goes on with the same bits."""
    with folder() as where, bucket(30_000):
        for optimizer, dtype, options in (
            (proptim.RMSprop, "mixed", {"momentum": 0.9}),
            (proptim.Rprop, "mixed", {}),
            (proptim.Adam, "mixed", {"amsgrad": True}),
            (proptim.Adam, "all", {"state_dtype": "bfloat16"}),
            (proptim.Adam, "all", {"master": None, "state_dtype": "bfloat16", "rounding": "stochastic", "seed": 5}),
            (proptim.Rprop, "bfloat16", {"state_dtype": "bfloat16"}),
            (proptim.SGD, "float16", {"momentum": 0.9, "state_dtype": "float16"}),
            (proptim.RMSprop, "bfloat16", {"master": "float32", "state_dtype": {"square_avg": "bfloat16"}}),
            (proptim.Adam, "float32", {"state_dtype": "int8", "ema": 0.9}),
            (proptim.Adam, "bfloat16", {"state_dtype": {"exp_avg": "int8"}, "rounding": "stochastic", "seed": 5}),
            (proptim.Rprop, "bfloat16", in_one_byte("rprop", {})),
        ):
            ours, sharded, alone, plain = pair(optimizer, dtype, layout="mixed", clip_norm=1.0, **options)
            run(ours, sharded, alone, plain)
            sharded.save(where / "ours")
            if RANK == 0:
                plain.save(where / "alone")
                assert (where / "ours").read_bytes() == (where / "alone").read_bytes()
                assert {p.name for p in where.iterdir()} == {"ours", "alone"}
            COMM.Barrier()
            same_state(sharded.state_dict(), plain.state_dict(), optimizer)
            for load in ("load", "load_state_dict"):
                again = model(dtype, "mixed")
                for name, array in again.items():
                    array[...] = ours[name]
                resumed = Sharded(optimizer, again, clip_norm=1.0, **options)
                resumed.load(where / "alone") if load == "load" else resumed.load_state_dict(plain.state_dict())
                same_state(resumed.state_dict(), plain.state_dict(), load)
                copy = {name: array.copy() for name, array in alone.items()}
                one = optimizer(copy, clip_norm=1.0, grad_scale=1 / SIZE, **options)
                one.load(where / "ours")
                run(again, resumed, copy, one, what=("resumed", load))
            COMM.Barrier()


def test_loading_sets_weights_of_float32_masters():
    """... on all ranks and in place, as for an optimizer alone; a state that is refused leaves them."""
    for dtype, options in (("float16", {}), ("bfloat16", {"master": "float32"}), ("all", {})):
        ours, sharded, alone, plain = pair(proptim.Adam, dtype, layout="mixed", **options)
        run(ours, sharded, alone, plain)
        saved = plain.state_dict()
        with bucket(20_000):
            ours, sharded, alone, plain = pair(proptim.Adam, dtype, layout="mixed", **options)
        for params in (ours, alone):
            for p in params.values():
                p[...] = 3.0
        if SIZE > 1:
            wrong = {**saved, "steps": saved["steps"] + (RANK == 1)}
            raises(ValueError, "the number of steps is 5 on rank 1", sharded.load_state_dict, wrong)
            same(ours, alone, "refused")
        sharded.load_state_dict(saved)
        plain.load_state_dict(saved)
        same(ours, alone, ("loaded", dtype))
        same_state(sharded.state_dict(), plain.state_dict(), ("loaded", dtype))
        run(ours, sharded, alone, plain, what=("loaded", dtype))


def test_other_formats_are_cast():
    """State of other dtypes is refused with the names, and with `cast=True` rounded as by an optimizer alone."""
    with folder() as where:
        ours, sharded, alone, plain = pair(proptim.Adam, "float32", layout="mixed", clip_norm=1.0)
        run(ours, sharded, alone, plain)
        sharded.save(where / "single")
        for load, saved in (("load", where / "single"), ("load_state_dict", sharded.state_dict())):
            for dtype in ("float32", "bfloat16", "complex64"):
                ours, sharded, alone, plain = pair(
                    proptim.Adam, dtype, layout="mixed", clip_norm=1.0, state_dtype="bfloat16"
                )
                told = "'exp_avg' in state 0 of state_dict is float32; expected bfloat16"
                raises((TypeError, ValueError), told, getattr(sharded, load), saved)
                getattr(sharded, load)(saved, cast=True)
                getattr(plain, load)(saved, cast=True)
                same_state(sharded.state_dict(), plain.state_dict(), dtype)
                run(ours, sharded, alone, plain, what=("cast", dtype))


def test_weights_written_between_steps():
    """... of 16 bits become their masters, also where this rank has a copy of its part; what is shown is of now."""
    for dtype, options in (("bfloat16", {}), ("float16", {})):
        ours, sharded, alone, plain = pair(proptim.SGD, dtype, layout="S", momentum=0.9, **options)
        run(ours, sharded, alone, plain)
        for params in (ours, alone):
            for p in params.values():
                p[...] = 1.5
        same_state(sharded.state_dict(), plain.state_dict(), "written")
        begin, end = sharded._exchange.own(0)
        whole = plain.state["w"]["master"].reshape(-1)[begin:end]
        assert sharded.state["w"]["master"].tobytes() == whole.tobytes()
        run(ours, sharded, alone, plain, what="written")


def test_tensors():
    """Tensors of torch, of bfloat16 too where ml_dtypes is missing; autograd is told of the steps."""
    if torch is None:
        if RANK == 0:
            print("torch is not installed: its tensors are left out")
        return
    named = _formats._named
    for name_of_bfloat16 in (named, lambda: None):
        _formats._named = name_of_bfloat16
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            whole = torch.linspace(-2, 2, 9000).to(dtype)
            tensors = [whole.clone().reshape(90, 100), whole.clone().reshape(100, 90).t()]
            arrays = [t.clone(memory_format=torch.contiguous_format) for t in tensors]
            sharded = Sharded(proptim.Adam, tensors, clip_norm=1.0)
            plain = proptim.Adam(arrays, clip_norm=1.0, grad_scale=1 / SIZE)
            for step in range(3):
                for p in tensors:
                    p.grad = torch.from_numpy(numbers(p.shape, "float32", [step, RANK])).to(dtype)
                versions = [p._version for p in tensors]
                sharded.step([p.grad for p in tensors])
                assert all(p._version > v for p, v in zip(tensors, versions, strict=True))
                each = [
                    torch.from_numpy(numbers((90, 100), "float32", [step, r])).to(dtype).float() for r in range(SIZE)
                ]
                total = each[0]
                for one in each[1:]:
                    total = total + one
                plain.step([total, total])
                assert all(torch.equal(a, b) for a, b in zip(tensors, arrays, strict=True)), (dtype, step)
            same_state(sharded.state_dict(), plain.state_dict(), dtype)
    _formats._named = named


def test_norm_that_is_given():
    """It is believed, the same on all ranks, and that of what `reduce` makes."""
    for reduce, policy in itertools.product(("sum", "mean"), ("propagate", "skip", "raise")):
        options = {"clip_norm": 0.25, "nonfinite": policy, "grad_scale": 0.5}
        ours, sharded, alone, plain = pair(proptim.RMSprop, "mixed", reduce=reduce, **options)
        ranks = SIZE if reduce == "mean" else 1
        for step, norm in enumerate((3.7, np.float32(0.1), 0, np.inf, np.nan, 2.5)):
            steps, refused = plain.steps, not np.isfinite(norm) and policy == "raise"
            total = added(alone, step)
            if refused:
                expected = f"grad_norm is {float(norm)}; expected finite gradients"
                raises(FloatingPointError, expected, sharded.step, gradients(ours, step, RANK), grad_norm=norm)
            else:
                sharded.step(gradients(ours, step, RANK), grad_norm=norm)
                plain.step(total, grad_norm=float(norm) * ranks)
            same(ours, alone, (reduce, policy, norm))
            assert (sharded.steps, sharded.skipped) == (plain.steps, plain.skipped)
            assert repr(sharded.grad_norm) == repr(plain.grad_norm)
            assert plain.steps == steps + (not refused and (policy != "skip" or bool(np.isfinite(norm))))
        run(ours, sharded, alone, plain, what="measured again")
    grads = gradients(ours, 0, RANK)
    raises(ValueError, "grad_norm is -1; expected one number >= 0", sharded.step, grads, grad_norm=-1)
    raises(TypeError, "grad_norm is 'much'; expected one number >= 0", sharded.step, grads, grad_norm="much")
    if SIZE > 1:
        norm = 2.0 if RANK == 1 else 1.0
        raises(ValueError, "grad_norm is 2.0 on rank 1 and 1.0 on rank 0", sharded.step, grads, grad_norm=norm)
        norm = 2.0 if RANK == 1 else None
        raises(ValueError, "grad_norm is 2.0 on rank 1 and None on rank 0", sharded.step, grads, grad_norm=norm)
        blind = Sharded(proptim.SGD, {"w": np.ones(5000)})
        raises(ValueError, "grad_norm is 2.0 on rank 1", blind.step, {"w": np.ones(5000)}, grad_norm=norm)
        grads["w"][100, 3] = np.nan if RANK == 1 else 0.0
        told = 'grads[0] ("w") is nan at index (100, 3) on rank 1'
        raises(FloatingPointError, told, sharded.step, grads, grad_norm=np.inf)
    run(ours, sharded, alone, plain, what="after refused norms")


def test_files_that_are_none():
    ours, sharded, alone, plain = pair(proptim.RMSprop, "float32")
    run(ours, sharded, alone, plain)
    before = sharded.state_dict()
    with folder() as where:
        raises(OSError, "nowhere", sharded.save, where / "nowhere" / "file")
        if RANK == 0:
            (where / "empty").write_bytes(b"")
            (where / "other").write_bytes(b"PK" * 100)
            proptim.RMSprop(model("float32"), lr=0.5).save(where / "good")
            proptim.Adam(model("float32")).save(where / "adam")
            proptim.RMSprop({"w": np.ones(3, np.float32)}).save(where / "short")
            proptim.RMSprop([np.ones(3, np.float32), *[*model("float32").values()][1:]]).save(where / "shape")
        COMM.Barrier()
        for name, text in (
            ("none", "No such file"),
            ("empty", "cannot be read"),
            ("other", "cannot be read"),
            ("adam", "does not fit this RMSprop"),
            ("short", "expected 7"),
            ("shape", "expected (130, 70)"),
        ):
            raises((ValueError, OSError), text, sharded.load, where / name)
        if SIZE > 1:
            raises(OSError, "No such file", sharded.load, where / ("none" if RANK == 1 else "good"))
            if RANK == 0:  # as on disks of their own that ranks have
                proptim.RMSprop(model("float32"), lr=0.5, momentum=0.5).save(where / "stale")
            COMM.Barrier()
            told = "the checksum of the file is"
            raises(ValueError, told, sharded.load, where / ("stale" if RANK == 1 else "good"))
    same_state(sharded.state_dict(), before, "refused")
    run(ours, sharded, alone, plain, what="after files that are none")


# What one rank alone is wrong about -----------------------------------------------------------------------------------


def test_one_rank_is_wrong():
    if SIZE == 1:
        return
    odd = RANK == SIZE - 1
    last = f"rank {SIZE - 1}"
    same_w = [np.ones(5000)]
    for kind, text, args, options in (
        (
            ValueError,
            f"params[0] is float64 of shape (7,) in group 0 on {last} and float64 of shape (5000,)",
            [np.ones(7)],
            {},
        ),
        (ValueError, f"params[0] is float32 of shape (5000,) in group 0 on {last}", [np.ones(5000, np.float32)], {}),
        (ValueError, f"the number of parameters is 2 on {last} and 1 on rank 0", [np.ones(5000), np.ones(1)], {}),
        (ValueError, f"the checksum of the values of params[0] is 1fc36f2b on {last} and", [np.full(5000, 2.0)], {}),
        (ValueError, f"the name of params[0] is 'w' on {last} and None on rank 0", {"w": np.ones(5000)}, {}),
        (ValueError, f"lr of group 0 is 0.5 on {last} and 0.001 on rank 0", same_w, {"lr": 0.5}),
        (ValueError, f"clip_norm is 1.0 on {last} and None on rank 0", same_w, {"clip_norm": 1.0}),
        (ValueError, f"reduce is 'sum' on {last} and 'mean' on rank 0", same_w, {"reduce": "sum"}),
        (ValueError, f"nonfinite is 'skip' on {last} and 'propagate' on rank 0", same_w, {"nonfinite": "skip"}),
        (ValueError, f"state_dtype is 'bfloat16' on {last} and None", same_w, {"state_dtype": "bfloat16"}),
        (ValueError, f"ema of group 0 is 0.5 on {last} and None on rank 0", same_w, {"ema": 0.5}),
        (ValueError, f"cast_grads is True on {last} and False on rank 0", same_w, {"cast_grads": True}),
        (ValueError, f"master is None on {last} and 'auto' on rank 0", same_w, {"master": None}),
        (ValueError, f"params[0] is bfloat16 of shape (5000,) in group 0 on {last}", [np.ones(5000, BF16)], {}),
        (ValueError, "Invalid learning rate: -1", same_w, {"lr": -1}),
        (TypeError, "unexpected keyword argument 'momentun'", same_w, {"momentun": 1}),
        (TypeError, "params[0] is int64", [np.ones(3, int)], {}),
    ):
        if odd:
            told = raises(kind, text, Sharded, proptim.RMSprop, args, **options)
        else:
            told = raises(kind, text, Sharded, proptim.RMSprop, [np.ones(5000)])
        own = odd and (kind is TypeError or "Invalid" in text)
        assert own or "on rank 0" in told or told.startswith(f"{last}: "), told
    raises(
        ValueError,
        f"optimizer_class is {'Adam' if odd else 'Lion'}"[:19],
        Sharded,
        proptim.Adam if odd else proptim.Lion,
        same_w,
    )

    ours, sharded, alone, plain = pair(proptim.RMSprop, "float32")
    run(ours, sharded, alone, plain)
    good = gradients(ours, 50, RANK)
    for kind, text, bad in (
        (ValueError, "has shape (3,)", {**good, "b": np.ones(3, np.float32)}),
        (TypeError, "is float64; expected float32", {**good, "b": np.ones(70)}),
        (ValueError, 'the dtype of grads[1] ("b") is bfloat16 on', {**good, "b": np.ones(70, BF16)}),
        (ValueError, "share memory", {**good, "b": ours["b"]}),
        (ValueError, "has the unknown key 'c'", {**good, "c": ours["b"]}),
    ):
        told = raises(kind, text, sharded.step, bad if odd else good)
        assert told.startswith(f"{last}: ") != odd or "on rank 0" in told, told
        same(ours, alone, text)
    if odd:
        sharded.lr = 0.5
    raises(ValueError, f"lr of group 0 is 0.5 on {last} and 0.001 on rank 0", sharded.step, good)
    sharded.lr = 0.001
    for name, value in (("clip_norm", 0.5), ("nonfinite", "raise"), ("grad_scale", 0.25)):
        if odd:
            before = getattr(sharded, name)
            setattr(sharded, name, value)
        raises(ValueError, f"{name} is {value!r} on {last}", sharded.step, good)
        if odd:
            setattr(sharded, name, before)
    if odd:
        sharded.lr = lambda t: [][0]
    raises((IndexError, RuntimeError), "list index out of range", sharded.step, good)
    if odd:
        sharded.lr = lambda t: 0.001  # a schedule of one rank, of the value that the others have
    run(ours, sharded, alone, plain, what="after refused calls")
    raises(
        RuntimeError,
        f"{last} calls save and rank 0 calls step",
        *([sharded.save, "x"] if odd else [sharded.step, good]),
    )
    assert not Path("x").exists()
    again = model("float32")
    two = Sharded(proptim.RMSprop, again)
    raises(
        RuntimeError,
        f"{last} calls step of another optimizer and rank 0 calls step",
        (two if odd else sharded).step,
        good,
    )
    same(ours, alone, "of another optimizer")
    lone = model("float32")
    run(again, two, lone, proptim.RMSprop(lone, grad_scale=1 / SIZE), what="the other optimizer")
    state = plain.state_dict()
    if odd:
        state["steps"] += 1
    raises(
        ValueError,
        f"the number of steps is {plain.steps + 1} on {last} and {plain.steps} on rank 0",
        sharded.load_state_dict,
        state,
    )
    run(ours, sharded, alone, plain, what="after a state that differs")

    params = [np.ones(5000)]
    sharded = Sharded(proptim.Rprop, params, variant="irprop+")
    raises(ValueError, "loss=the loss", sharded.step, [np.ones(5000)], **({} if odd else {"loss": 1.0}))
    sharded.step([np.ones(5000)], loss=2.0)


def test_words_are_read_before_all_end():
    """A rank that fails waits until its launcher has read what it said; not for a file, nor for a pipe nobody reads."""
    out, into = os.pipe()
    os.write(into, b"words")
    reader = threading.Timer(0.05, os.read, (out, 5))
    reader.start()
    _mpi_team._wait_until_read(into)
    os.set_blocking(out, False)
    raises(BlockingIOError, "", os.read, out, 5)  # there is nothing left
    reader.join()
    os.write(into, b"words")
    before, _mpi_team.PATIENCE = _mpi_team.PATIENCE, 0.01
    _mpi_team._wait_until_read(into)
    _mpi_team.PATIENCE = before
    assert os.read(out, 5) == b"words"
    with tempfile.TemporaryFile() as file:
        file.write(b"words")
        _mpi_team._wait_until_read(file.fileno())
    os.close(out)
    os.close(into)


def test_refused_on_all():
    w = np.ones(5000)
    raises(TypeError, "optimizer_class is", Sharded, "RMSprop", [w])
    raises(TypeError, "comm is int", Sharded, proptim.RMSprop, [w], 3)
    raises(TypeError, "comm is MPI.COMM_NULL", Sharded, proptim.RMSprop, [w], MPI.COMM_NULL)
    raises(ValueError, "Invalid reduce: 'max'", Sharded, proptim.RMSprop, [w], reduce="max")
    raises(ValueError, "empty parameter list", Sharded, proptim.RMSprop, [])
    raises(ValueError, "Invalid grad_scale", Sharded, proptim.RMSprop, [w], grad_scale=np.nan)
    raises(ValueError, "Invalid state_dtype: 'int7'", Sharded, proptim.Adam, [w], state_dtype="int7")
    raises(ValueError, "Invalid master: 'split' for parameters of float64", Sharded, proptim.Adam, [w], master="split")
    raises(TypeError, "Invalid cast_grads: 'yes'", Sharded, proptim.Adam, [w], cast_grads="yes")
    opt = Sharded(proptim.RMSprop, [w])
    raises(ValueError, "expected step() with all gradients", opt.step_param, 0, w)
    raises(ValueError, "expected grad_norm and state", opt.watch)
    raises(AttributeError, "has no attribute 'learning_rate'", setattr, opt, "learning_rate", 1)
    raises(AttributeError, "learning_rate", getattr, opt, "learning_rate")
    raises(TypeError, "state_dict() or save()", opt.__reduce__)
    single = Sharded(proptim.RMSprop, [np.ones(5000, np.float32)])
    raises(TypeError, "grads[0] is float64; expected float32", single.step, [np.ones(5000)])
    raises(TypeError, "grads[0] is complex128", opt.step, [np.ones(5000, complex)])
    raises(TypeError, "grads[0] is int64", opt.step, [np.ones(5000, int)])
    opt.step([np.ones(5000)])
    (part,) = [entry["square_avg"] for entry in opt.state.values()]
    if SIZE == 1:
        raises(ValueError, "share memory", opt.step, [part])


if __name__ == "__main__":
    chosen = [word for word in sys.argv[1:] if not word.startswith("--")]
    os.environ.pop("PROPTIM_BACKEND", None)
    for name, test in [(k, v) for k, v in globals().items() if k.startswith("test_")]:
        if not chosen or any(word in name for word in chosen):
            begin = time.perf_counter()
            test()
            COMM.Barrier()
            if RANK == 0:
                print(f"{SIZE} ranks: {name}, {time.perf_counter() - begin:.1f} s", flush=True)
