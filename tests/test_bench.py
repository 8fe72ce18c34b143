"""`proptim bench`: what it counts, that all contestants compute the same, and that a run works. No time is tested."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import proptim
from proptim._formats import FLOAT32, widened
from proptim.bench import charts, compare, console, contestants, goals, instructions, report, session, worker, workloads
from proptim.bench.contestants import CONTESTANTS, NUMPY, Contestant, Declined, Step, placed, select
from proptim.bench.tournament import quartiles, summary, under_the_roof
from proptim.bench.workloads import (
    CLIP,
    MODELS,
    WITH_ROWS,
    Case,
    Workload,
    full,
    hyper,
    long,
    one_byte,
    quick,
    short,
    sixteen,
    table,
)
from proptim.cli import main

pytestmark = pytest.mark.once  # each contestant says which backend, instruction set and threads it takes

X = charts.TIMES

# Work ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "options", "expected"),
    [
        ("sgd", (), 12),
        ("sgd", (("momentum", 0.9),), 20),
        ("rprop", (), 20),
        ("rmsprop", (), 20),
        ("rmsprop", (("momentum", 0.9),), 28),
        ("rmsprop", (("centered", True),), 28),
        ("adagrad", (), 20),
        ("adadelta", (), 28),
        ("adam", (), 28),
        ("adam", (("amsgrad", True),), 36),
        ("lion", (), 20),
    ],
)
def test_bytes_per_weight(rule, options, expected):
    work = Workload(rule, "1000", options=options)
    assert work.bytes_per_weight == expected
    assert Workload(rule, "1000", dtype="float64", options=options).bytes_per_weight == 2 * expected
    assert Workload(rule, "1000", clip_norm=CLIP, options=options).bytes_per_weight == expected + 4


@pytest.mark.parametrize(
    ("rule", "options", "kept"),
    [
        ("rmsprop", {}, 8),
        ("rmsprop", {"state_dtype": "bfloat16"}, 6),
        ("rmsprop", {"master": None, "state_dtype": "bfloat16"}, 4),
        ("rmsprop", {"dtype": "float16"}, 10),
        ("adam", {}, 12),
        ("adam", {"state_dtype": "bfloat16"}, 8),
        ("sgd", {"master": None}, 2),
    ],
)
def test_bytes_of_sixteen_bits(rule, options, kept):
    """The table of docs/fewer-bytes.md; a step reads and writes what is kept, and reads a gradient of 16 bits."""
    work = Workload(rule, "1000", **{"dtype": "bfloat16", **options})
    assert (work.kept_bytes, work.gradient_bytes, work.bytes_per_weight) == (kept, 2, 2 * kept + 2)
    assert Workload.from_json(json.loads(json.dumps(work.to_json()))) == work


@pytest.mark.parametrize(
    ("rule", "options", "kept"),
    [
        ("rmsprop", {}, 4 + 1 + 4 / 256),
        ("adam", {}, 4 + 2 * (1 + 4 / 256)),
        ("rprop", {}, 5),
        ("sgd", {}, 4),
        ("sgd", {"options": (("momentum", 0.9),)}, 4 + 1 + 4 / 256),
        ("adam", {"dtype": "bfloat16"}, 4 + 2 * (1 + 4 / 256)),
    ],
)
def test_bytes_of_one_byte(rule, options, kept):
    """A scale of 4 bytes for each 256 numbers, and a grid for the whole array of Rprop."""
    work = Workload(rule, "10000", state_dtype="int8", **options)
    itemsize = 2 if "dtype" in options else 4
    assert (work.kept_bytes, work.bytes_per_weight) == (kept, 2 * kept + itemsize)
    params, _ = work.data()
    parameter = work.optimizer(params)._stepper.parameters[0]
    held = sum(a.nbytes for a in (parameter.array, parameter.plane, *parameter.state.values()) if a is not None)
    assert held == pytest.approx(10_000 * kept, abs=12)  # a smaller block at the end, or the grid
    assert Workload.from_json(json.loads(json.dumps(work.to_json()))) == work


def test_state_in_one_byte_is_of_whom_has_it():
    """Ours step it; of others those that keep nothing else; the roof moves as many bytes."""
    for rule in ("rmsprop", "rprop", "adam"):
        work = one_byte(rule, "5000")
        assert work.name == f"{rule} 5k state=int8"
        for who in ("proptim", "proptim-1", "proptim-numpy", "roof-1"):
            contestant = CONTESTANTS[who]
            assert contestant.declines(work) == ""
            if not contestant.absent():
                (stepped,) = steps(contestant, work)
                assert (who == "roof-1") == np.array_equal(stepped, work.data(seed=5)[0][0])
        for who in ("torch-foreach", "optax", "numpy", "bitsandbytes"):
            told = "has no rprop" if (rule, who) == ("rprop", "bitsandbytes") else "keeps all that it has in float32"
            assert CONTESTANTS[who].declines(work) == told
    plain = Workload("adam", "5000")
    for who in ("bitsandbytes-8", "torchao-8"):
        assert CONTESTANTS[who].declines(one_byte("adam", "5000")) == ""
        assert CONTESTANTS[who].declines(plain) == "keeps its state in one byte"
        assert CONTESTANTS[who].declines(one_byte("rprop", "5000")) == "has no rprop"
    random = sixteen("adam", "1000")["random"]
    assert CONTESTANTS["torch-foreach"].declines(random) == "has no stochastic rounding"


@pytest.mark.parametrize("kept", [5 + 4 / 256, 4 + 2 * (1 + 4 / 256), 5.0, 8.0])
def test_the_roof_streams_as_many_bytes(monkeypatch, kept):
    """Beyond a whole number of arrays as large as the gradient, a part of them has one more."""
    if reason := CONTESTANTS["roof-1"].absent():
        pytest.skip(reason)
    streamed = []

    class Kernel:
        def __init__(self, name, isa, coefs, segments):
            streamed.append([[a.nbytes for a in segment] for segment in segments])

        def run(self, threads):
            pass

    monkeypatch.setattr(contestants, "_kernels", lambda: type("Module", (), {"Kernel": Kernel}))
    monkeypatch.setattr(Workload, "kept_bytes", kept)
    steps(CONTESTANTS["roof-1"], Workload("adam", "2x3000"))
    segments = [segment for kernel in streamed for segment in kernel]
    assert sum(grad for _, grad, *_ in segments) == 4 * 6000
    assert sum(nbytes for param, _, *rest in segments for nbytes in (param, *rest)) == pytest.approx(kept * 6000, abs=8)


@pytest.mark.filterwarnings("ignore")  # of other packages
@pytest.mark.parametrize("name", ["bitsandbytes-8", "torchao-8"])
def test_peers_with_state_in_one_byte_compute_the_rule(name):
    """The first step has rounded nothing yet; after three most weights are those of float32 within a percent."""
    contestant = CONTESTANTS[name]
    if reason := contestant.absent():
        pytest.skip(f"{name}: {reason}")
    for count, found, share in ((1, np.max, 1e-3), (3, np.median, 1e-2)):
        work = one_byte("adam", "5120")
        expected, sets = work.data(seed=5)
        before = expected[0].copy()
        plain = Workload("adam", "5120").optimizer(expected)
        for _ in range(count):
            plain.step(sets[0])
        moved = np.abs(expected[0] - before).max()
        assert found(np.abs(steps(contestant, work, count)[0] - expected[0])) < share * moved


def test_sixteen_bits_are_of_whom_has_them():
    """Ours step every format; others bfloat16 that is all there is; the roof moves as many bytes."""
    for name, work in sixteen("rmsprop", "201").items():
        for who in ("proptim", "proptim-1", "proptim-numpy", "roof-1"):
            contestant = CONTESTANTS[who]
            assert contestant.declines(work) == ""
            if not contestant.absent():
                (stepped,) = steps(contestant, work)
                assert stepped.dtype == np.uint16
                assert (who == "roof-1") == np.array_equal(stepped, work.data(seed=5)[0][0])
        for who in ("torch-foreach", "optax"):
            told = {"all": "", "random": "has no stochastic rounding"}.get(name, "keeps all that it has in bfloat16")
            assert CONTESTANTS[who].declines(work) == told
        assert CONTESTANTS["numpy"].declines(work) == "has no bfloat16"
    assert [work.name for work in sixteen("adam", "1000").values()] == [
        "adam 1k bfloat16",
        "adam 1k bfloat16 state=bfloat16",
        "adam 1k bfloat16 master=None state=bfloat16",
        "adam 1k bfloat16 master=None state=bfloat16 stochastic",
    ]
    if not CONTESTANTS["roof-1"].absent():
        with pytest.raises(Declined, match="streams at most 4 arrays of the gradient's size, and here are 6"):
            steps(CONTESTANTS["roof-1"], sixteen("adam", "8")["split"])


def test_torch_computes_the_same_in_bfloat16():
    """All in bfloat16 their step and ours differ by roundings alone."""
    pytest.importorskip("torch")
    for rule in ("rmsprop", "adam", "rprop"):
        work = sixteen(rule, "200")["all"]
        ours, theirs, before = (
            widened(np.asarray(array), FLOAT32)
            for array in (
                steps(CONTESTANTS["proptim-1" if not CONTESTANTS["proptim-1"].absent() else "proptim-numpy"], work)[0],
                steps(CONTESTANTS["torch-foreach"], work)[0],
                work.data(seed=5)[0][0],
            )
        )
        assert not np.array_equal(before, theirs)
        np.testing.assert_allclose(theirs, ours, rtol=2e-2, atol=2e-2)


def test_models():
    assert (len(MODELS["resnet50"]()), Workload("sgd", "resnet50").weights) == (161, 25_557_032)
    assert Workload("sgd", "perceptron").weights == 784 * 128 + 128 + 128 * 10 + 10
    assert Workload("sgd", "200x64").shapes == [(64,)] * 200
    assert [Workload("sgd", model).weights for model in ("6x5000", "160x64")] == [30_000, 10_240]
    shapes = MODELS["transformer"]()
    assert len(shapes) == 2 + 12 * 12 + 2
    assert sum(map(math.prod, shapes)) == Workload("sgd", "transformer").weights


def test_sizes_are_read_as_written():
    assert [long(text) for text in ("8", "100k", "10M", "resnet50")] == ["8", "100000", "10000000", "resnet50"]
    assert [long(text) for text in ("200x64", "6x5k")] == ["200x64", "6x5000"]
    assert [short(n) for n in (8, 1500, 100_000, 50_000_000)] == ["8", "1500", "100k", "50M"]
    for text in ("", "k", "1.5M", "-3", "0", "large", "x64", "6x", "0x8", "2x3x4"):
        with pytest.raises(ValueError, match=f"'{re.escape(text)}' is no size"):
            long(text)


def test_every_rule_is_in_the_table():
    assert NUMPY.keys() <= proptim.OPTIMIZERS.keys()
    assert {case.workload.rule for case in full((), ())} == proptim.OPTIMIZERS.keys()
    names = [(case.workload.name, case.contestants) for case in full((), ())]
    assert len(set(names)) == len(names)
    for case in (*full((), ()), *quick((), ())):
        assert "proptim" in select(case.contestants)
        assert Workload.from_json(json.loads(json.dumps(case.workload.to_json()))) == case.workload


def test_data_are_the_same_for_all_and_of_ordinary_size():
    work = Workload("adam", "perceptron", dtype="float64", gradients="fresh")
    (params, sets), (again, _) = work.data(), work.data()
    assert len(sets) >= 2
    assert [p.shape for p in params] == work.shapes
    for array, same in zip(params, again, strict=True):
        assert array.dtype == np.float64
        assert np.array_equal(array, same)
        assert not np.array_equal(array, sets[0][0][: len(array)])


# Contestants --------------------------------------------------------------------------------------------------------


def test_absent_contestants_are_listed(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    absent = {each["name"]: each["absent"] for each in session.roll_call()}
    assert absent["torch-fused"] == "torch is not installed"
    assert absent["optax"] == "optax is not installed"
    assert absent["numpy"] == ""
    assert main(["bench", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(CONTESTANTS)
    assert sum("ABSENT" in line for line in lines) == sum(map(bool, absent.values()))


def steps(contestant, work, count=3):
    params, sets = work.data(seed=5)
    step = contestant.build(work, params, sets)
    for _ in range(count):
        worker.timed(step, 1)
    return [np.array(p) for p in (step.params() if step.params else params)]


def test_hyperparameters_are_the_defaults():
    """Torch's names for the arguments, without options that are off."""
    assert hyper("sgd") == {"lr": 1e-3}
    assert hyper("rprop") == {"lr": 1e-2, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50.0)}
    assert hyper("rmsprop") == {"lr": 1e-3, "alpha": 0.9, "eps": 1e-8}
    assert hyper("adamw") == {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
    for rule in proptim.OPTIMIZERS:
        numbers = Workload(rule, "8").optimizer([np.zeros(8)]).param_groups[0]
        assert hyper(rule).items() <= numbers.items()


# These two compile for a minute; a run of the benchmark shows whether they work.
SLOW_TO_BUILD = ("torch-compiled", "deepspeed")
COMPARED = [
    (name, rule)
    for name, contestant in CONTESTANTS.items()
    if (name == "proptim-torch" or not name.startswith(("proptim", "roof-"))) and name not in SLOW_TO_BUILD
    for rule in proptim.OPTIMIZERS
    if not contestant.declines(Workload(rule, "200"))
]


@pytest.mark.filterwarnings("ignore")  # of other packages
@pytest.mark.parametrize(("name", "rule"), COMPARED)
def test_contestants_compute_the_same(name, rule):
    """Every contestant computes the rule, or declines and says what it lacks, or is known to differ."""
    contestant = CONTESTANTS[name]
    work = Workload(rule, "200")
    if reason := contestant.absent():
        pytest.skip(f"{name}: {reason}")
    before = work.data(seed=5)[0]
    try:
        theirs = steps(contestant, work)
    except Declined:  # test_torch_declines_what_it_has_not
        return
    assert all((b != t).all() for b, t in zip(before, theirs, strict=True))
    if rule not in contestant.differs:
        expected = work.data(seed=5)
        optimizer = work.optimizer(expected[0])
        for _ in range(3):
            optimizer.step(expected[1][0])
        for ours, other in zip(expected[0], theirs, strict=True):
            np.testing.assert_allclose(other, ours, rtol=2e-5, atol=2e-6)


def test_torch_declines_what_it_has_not():
    pytest.importorskip("torch")
    for name, rule, told in (
        ("torch-loop", "lion", "has no lion"),
        ("torch-fused", "rprop", "has no rprop with fused"),
    ):
        with pytest.raises(Declined, match=f"^{told}$"):
            steps(CONTESTANTS[name], Workload(rule, "8"))


def test_a_rule_that_is_new_needs_no_edit_here(monkeypatch):
    """The benchmark takes everything about a new rule from its class; contestants that do not have the rule decline."""
    if importlib.util.find_spec("torch"):
        importlib.import_module("proptim.torch")  # which makes a class of every rule that there is by then
    newcomer = type("Newcomer", (proptim.Adagrad,), {"__module__": "proptim.adagrad"})
    monkeypatch.setitem(proptim.OPTIMIZERS, "newcomer", newcomer)
    work = Workload("newcomer", "200")
    assert (work.hyper, work.arrays, work.bytes_per_weight) == ({"lr": 1e-2, "eps": 1e-10}, 3, 20)
    assert [case.workload.model for case in full(["newcomer"], ())]
    assert any("newcomer" in part["label"] for goal in goals.judge([], [], {}) for part in goal["parts"])
    assert CONTESTANTS["numpy"].declines(work) == "has no newcomer"
    for name, contestant in CONTESTANTS.items():
        if contestant.absent() or name in SLOW_TO_BUILD or contestant.declines(work):
            continue
        if name.startswith(("proptim", "roof-")) and name != "proptim-torch":
            assert np.isfinite(steps(contestant, work)).all()
        else:
            with pytest.raises(Declined, match=r"^has no newcomer$"):
                steps(contestant, work)


@pytest.mark.parametrize("options", [(("momentum", 0.9),), (("centered", True),)])
def test_numpy_knows_the_options(options):
    work = Workload("rmsprop", "200", options=options)
    expected, sets = work.data(seed=5)
    optimizer = work.optimizer(expected)
    for _ in range(3):
        optimizer.step(sets[0])
    np.testing.assert_allclose(steps(CONTESTANTS["numpy"], work)[0], expected[0], rtol=2e-4, atol=2e-5)


def test_clipping_is_the_same():
    work = Workload("sgd", "200x64", clip_norm=CLIP)
    expected, sets = work.data(seed=5)
    work.optimizer(expected).step(sets[0])
    for ours, other in zip(expected, steps(CONTESTANTS["numpy"], work, 1), strict=True):
        np.testing.assert_allclose(other, ours, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("isa", proptim.available_isas())
def test_stream_kernels(isa, dtype):
    """Every array is read, all but the gradient are written, alike on one thread and on three."""
    kernels = pytest.importorskip("proptim.bench._kernels")
    rng = np.random.default_rng(0)
    for count in (2, 3, 4, 5):
        segments = [[rng.standard_normal(n).astype(dtype) for _ in range(count)] for n in (1003, 0, 40_001, 64)]
        expected = [[a if a is s[1] else a * a.dtype.type(0.5) + s[1] for a in s] for s in segments]
        for threads in (1, 3):
            copies = [tuple(a.copy() for a in s) for s in segments]
            kernels.Kernel("stream", isa, (0.5,), copies).run(threads)
            for copy, right in zip(copies, expected, strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(copy, right, strict=True))
    arrays = segments[0]
    for bad in ([], [tuple(arrays), tuple(arrays[:2])], [(*arrays[:2], arrays[2][:5])]):
        with pytest.raises(ValueError, match="expected"):
            kernels.Kernel("stream", isa, (0.5,), bad)
    with pytest.raises(ValueError, match="no kernel"):
        kernels.Kernel("stream", isa, (0.5,), [tuple(arrays[:1])])
    with pytest.raises(ValueError, match="no kernels"):
        kernels.Kernel("stream", "mmx", (0.5,), [tuple(arrays)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("isa", proptim.available_isas())
def test_stream_over_rows(isa, dtype):
    """Those rows of every table are written, and no others; alike on one thread and on three."""
    kernels = pytest.importorskip("proptim.bench._kernels")
    rng = np.random.default_rng(0)
    for columns, count in ((1, 1), (3, 2), (64, 3), (250, 4)):
        tables = [rng.standard_normal((900, columns)).astype(dtype) for _ in range(count)]
        values = rng.standard_normal((500, columns)).astype(dtype)
        rows, places = rng.permutation(900)[:400], rng.permutation(500)[:400]
        expected = [a.copy() for a in tables]
        for a in expected:
            a[rows] = a[rows] * a.dtype.type(0.5) + values[places]
        for threads in (1, 3):
            copies = [a.copy() for a in tables]
            kernels.RowsKernel(isa, (0.5,), copies, values, rows, places).run(threads)
            assert all(np.array_equal(a, b) for a, b in zip(copies, expected, strict=True))
    for bad in ([900], [-1], [3, 3]):
        with pytest.raises(ValueError, match="expected as many places as rows, each in its array"):
            kernels.RowsKernel(isa, (0.5,), tables, values, np.array(bad), np.array([0]))
    with pytest.raises(ValueError, match="rows of one shape and dtype"):
        kernels.RowsKernel(isa, (0.5,), tables, values[:, 1:], rows, places)
    with pytest.raises(ValueError, match="no kernels"):
        kernels.RowsKernel("mmx", (0.5,), tables, values, rows, places)


@pytest.mark.parametrize("drawn", ["uniform", "zipf"])
def test_rows_are_drawn(drawn):
    """Every row is one of the table, other rows in each turn; by Zipf the most frequent is drawn 5 % of the time."""
    work = table("adam", 4096, 16, drawn)
    assert work.name == f"adam 4096 {drawn} rows of 1Mx16"
    assert (work.weights, work.held, work.shapes) == (4096 * 16, 16 * 10**6, [(10**6, 16)])
    assert Workload.from_json(work.to_json()) == work
    params, sets = work.data()
    assert [p.shape for p in params] == work.shapes
    assert len(sets) >= 2
    found = [grad.indices for (grad,) in sets]
    assert all(grad.values.shape == (4096, 16) for (grad,) in sets)
    assert all(i.min() >= 0 and i.max() < 10**6 for i in found)
    assert not np.array_equal(found[0], found[1])
    share = max(np.bincount(i).max() for i in found) / 4096
    assert share < 0.01 if drawn == "uniform" else 0.04 < share < 0.1


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("rule", WITH_ROWS)
def test_rows_are_the_same_for_all(rule, monkeypatch):
    """The weights after three steps of every contestant that has them; adam's eps is added elsewhere by SparseAdam."""
    monkeypatch.setitem(workloads.LENGTHS, 16, 500)
    work = table(rule, 300, 16)
    found = {}
    for name in ("proptim", "proptim-1", "proptim-torch", "torch-loop"):
        if reason := CONTESTANTS[name].absent():
            pytest.skip(reason)
        params, sets = work.data()
        step = CONTESTANTS[name].build(work, params, sets[:1])
        for _ in range(3):
            step.run()
            if step.between is not None:
                step.between()
        found[name] = params[0]
    for weights in found.values():
        np.testing.assert_allclose(weights, found["proptim-1"], rtol=1e-5, atol=1e-6)


def test_who_has_no_rows_says_so():
    """Contestants, rules of torch, and kinds of its loops."""
    work = table("adam", 4096)
    assert CONTESTANTS["optax"].declines(work) == CONTESTANTS["numpy"].declines(work) == "has no gradients of rows"
    pytest.importorskip("torch")
    for rule, name in (("rmsprop", "torch-loop"), ("adam", "torch-fused")):
        with pytest.raises(Declined, match=f"takes no sparse gradients in its {rule}"):
            CONTESTANTS[name].build(table(rule, 4096), [], [])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shapes", [[(100_003,)], [(64,)] * 5, [(3, 5), (0,), (), (1,), (2000,)]])
def test_the_roof_is_placed_as_well_as_can_be(shapes, dtype):
    """Arrays begin at cache lines, an odd number of lines apart modulo a page, and have the same numbers."""
    rng = np.random.default_rng(0)
    lists = [[rng.standard_normal(shape).astype(dtype) for shape in shapes] for _ in range(8)]
    copies = placed(lists)
    for arrays, same in zip(lists, copies, strict=True):
        for array, copy in zip(arrays, same, strict=True):
            assert (copy.dtype, copy.shape, copy.tobytes()) == (array.dtype, array.shape, array.tobytes())
            assert copy.flags.c_contiguous
            assert copy.flags.writeable
            assert not copy.size or copy.ctypes.data % 64 == 0  # NumPy points elsewhere for an empty one
    for together in zip(*copies, strict=True):
        lines = [array.ctypes.data // 64 for array in together if array.size]
        assert all((b - a) % 64 == 13 for a, b in itertools.pairwise(lines))
    taken = sorted((a.ctypes.data, a.ctypes.data + a.nbytes) for arrays in copies for a in arrays if a.size)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(taken))


def test_patterns_of_names():
    assert select(["torch-*", "!torch-compiled"]) == ["torch-loop", "torch-foreach", "torch-fused"]
    assert select([]) == list(CONTESTANTS)
    with pytest.raises(ValueError, match="'tensorflow' is no contestant; expected some of: proptim, "):
        select(["tensorflow"])


# Statistics ---------------------------------------------------------------------------------------------------------


def test_quartiles():
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_a_row_by_hand():
    """1,000 weights of RMSprop move 20 kB; ratios are taken round by round."""
    work = Workload("rmsprop", "1000")
    rows = [
        summary(work, "proptim", [1e-6, 2e-6, 4e-6], [1e-6, 2e-6, 4e-6]),
        summary(work, "numpy", [3e-6, 4e-6, 4e-6], [1e-6, 2e-6, 4e-6]),
        summary(work, "roof-1", [1e-6, 1e-6, 1e-6], None),
        {"contestant": "thinc", "status": "cannot", "reason": "has no rmsprop"},
    ]
    under_the_roof(rows)
    ours, numpy, roof, thinc = rows
    assert (ours["median"], ours["ratio"], numpy["ratio"]) == (2e-6, 1.0, 2.0)
    assert (numpy["ratio_low"], numpy["ratio_high"]) == (1.5, 2.5)
    assert ours["ns_per_weight"] == pytest.approx(2.0)
    assert ours["gb_per_s"] == pytest.approx(10.0)
    assert (ours["roof_percent"], roof["roof_percent"]) == (pytest.approx(50), pytest.approx(100))
    assert "ratio" not in roof
    assert "roof_percent" not in thinc


def test_the_roof_does_not_read_the_gradient_for_its_norm():
    work = Workload("rmsprop", "1000", clip_norm=CLIP)
    assert [summary(work, name, [1e-6], None)["gb_per_s"] for name in ("proptim", "roof-1")] == pytest.approx([24, 20])


def test_timing_leaves_out_what_is_between(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 12.0])
    monkeypatch.setattr(worker, "perf_counter", lambda: next(clock))
    waits = iter([0.0, 0.25, 5.0, 5.0])
    monkeypatch.setattr(worker, "waited", lambda: next(waits))
    calls = []
    assert worker.timed(Step(lambda: calls.append("run"), between=lambda: calls.append("between")), 2) == 1.375
    assert calls == ["run", "between"] * 2


def test_timing_leaves_out_waiting_for_a_core(monkeypatch):
    """Of which other programs decide; what the system counts only grows."""
    clock, waits = iter([0.0, 3.0]), iter([7.0, 8.0])
    monkeypatch.setattr(worker, "perf_counter", lambda: next(clock))
    with monkeypatch.context() as patch:
        patch.setattr(worker, "waited", lambda: next(waits))
        assert worker.timed(Step(lambda: None), 4) == 0.5


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_waiting_is_known_of_one_thread(threads):
    """The threads of a step wait for each other, too."""
    script = "from proptim.bench import worker; assert 0 <= worker.waited(); print(worker._schedule() is not None)"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | worker.limits(threads)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{threads == 1 and Path('/proc/thread-self/schedstat').exists()}\n"


def goal(found, name):
    return {part["label"]: part for part in next(g for g in found if g["name"] == name)["parts"]}


def test_goals():
    """By hand: RMSprop at 10M takes 2 s, torch's loop 12 s, foreach 20 s; the rest was not measured."""
    work = Workload("rmsprop", "10000000")
    times = {"proptim": 2.0, "torch-loop": 12.0, "torch-foreach": 20.0}
    rows = [summary(work, name, [t], [2.0]) for name, t in times.items()]
    tails = [{"situation": "alone", "status": "ok", "model": "1000", "threads": {
        "1": {"p50": 1.0, "p99": 2.0}, "auto": {"p50": 1.1, "p99": 2.0}}}]  # fmt: skip
    found = goals.judge([{"name": work.name, "results": rows}], tails, {"seconds": 0.02, "bytes": 900_000})
    assert len({g["name"] for g in found}) == len(goals.GOALS)
    assert all(g["command"].startswith("proptim bench") for g in found)
    part = goal(found, "S2")["rmsprop 10M against torch's loop and foreach"]
    assert (part["figure"], part["met"]) == (6.0, True)
    part = goal(found, "S2")["rmsprop 1k against torch's loop and foreach"]
    assert (part["figure"], part["met"]) == (None, None)
    compact = {"name": one_byte("rmsprop", "10000000").name, "results": [summary(work, "proptim", [1.8], [1.8])]}
    found = goals.judge([{"name": work.name, "results": rows}, compact], tails, {"seconds": 0.02, "bytes": 900_000})
    part = goal(found, "S17")["rmsprop 10M state=int8, all threads: time / float32"]
    assert (part["figure"], part["target"], part["met"]) == (0.9, 0.85, False)
    assert goal(found, "S9")["alone, 1k: p50 auto / 1 thread"]["met"] is False
    assert goal(found, "S9")["alone, 1k: p99 auto / 1 thread"]["met"] is True
    assert goal(found, "S10")["import proptim after numpy"]["met"] is True
    assert goal(found, "S10")["wheel"]["met"] is False


def test_instruction_gate():
    """A rise by more than 2 % fails with both numbers, a fall is reported, and a case without a record fails."""
    recorded = {"a": 1000.0, "b": 1000.0}
    assert instructions.compare({"a": 1020.0, "b": 1000.0}, recorded)[1]
    lines, good = instructions.compare({"a": 1021.0, "b": 900.0}, recorded)
    assert not good
    assert "1,021.0" in lines[0]
    assert "1,000.0" in lines[0]
    assert "FAILS" in lines[0]
    assert "has fallen" in lines[1]
    assert not instructions.compare({"c": 1.0}, recorded)[1]


def test_instruction_counts_are_recorded():
    held = json.loads(instructions.RECORDED.read_text(encoding="utf-8"))
    assert held["instructions"].keys() == instructions.CASES.keys()
    assert held["environment"].keys() == instructions.environment().keys()


# The whole ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    """A run of two rounds with the contestants that are always installed."""
    stream = io.StringIO()
    printer = console.Printer(stream)
    made = session.run(False, ["rmsprop"], ["8", "1000"], ["numpy", "roof-1", "optax"], 2, 0, printer)
    return made, stream.getvalue()


def test_a_run(found):
    made, told = found
    assert "rmsprop 1k" in told
    assert made == json.loads(json.dumps(made))
    assert made.keys() == {
        *("schema", "machine", "settings", "interrupted", "contestants", "workloads", "tails", "start", "goals")
    }
    assert made["schema"] == session.SCHEMA
    assert made["goals"] == []
    assert {"cpu", "caches", "isa", "threads", "packages", "load", "warnings"} <= made["machine"].keys()
    assert [entry["weights"] for entry in made["workloads"]] == [8, 1000]
    for entry in made["workloads"]:
        rows = charts.rows(entry)
        assert {"proptim", "numpy"} <= rows.keys()
        for row in rows.values():
            assert len(row["seconds"]) == 2
            assert 0 < row["low"] <= row["median"] <= row["high"]
            assert row["ns_per_weight"] == pytest.approx(row["median"] / entry["weights"] * 1e9)
            assert row["gb_per_s"] * row["median"] == pytest.approx(entry["weights"] * 20 / 1e9)
        assert rows["proptim"]["ratio"] == 1
        assert "fastest peer rprop-two-arrays" not in report.line(entry)
    text = report.text(made)
    assert "Goals" not in text
    assert "\x1b" not in text


def test_goals_only_where_they_are_asked_for(found):
    made = {**found[0], "goals": goals.judge(found[0]["workloads"], [], {})}
    assert "\nGoals\n" in report.text(made)
    assert "figures were not measured" in report.text(made)


# By hand: what every figure of a step is made of.
def report_of(*steps, absent=(), **more):
    """A report of {contestant: seconds of each round} for each step; None: it has failed."""
    entries = []
    for work, times in steps:
        ours = times.get("proptim")
        rows = [summary(work, name, each, ours) for name, each in times.items() if each]
        under_the_roof(rows)
        rows += [
            {"contestant": name, "status": "failed", "reason": "no luck"} for name, each in times.items() if not each
        ]
        entries.append({"name": work.name, "workload": work.to_json(), "weights": work.weights, "results": rows})
    names = dict.fromkeys(name for _, times in steps for name in times)
    everyone = [{"name": name, "what": name, "absent": ""} for name in names]
    everyone += [{"name": name, "what": name, "absent": why} for name, why in absent]
    machine = {"cpu": "a CPU", "packages": {"numpy": "2.0"}, "proptim": "0.1", **more}
    return {"schema": 1, "machine": machine, "contestants": everyone, "workloads": entries, "tails": [], "goals": []}


def test_tables_have_the_width_of_the_terminal(monkeypatch):
    """Names down; steps that do not fit go into a further table; nothing is lost."""
    models = [
        "8",
        "1000",
        "100000",
        "1000000",
        "10000000",
        "50000000",
        "perceptron",
        "resnet50",
        "transformer",
        "200x64",
    ]
    made = report_of(
        *((Workload("rmsprop", m), {"proptim": [1e-3], "numpy": [2e-3], "roof-1": [5e-4]}) for m in models),
        (Workload("adam", "8", gradients="fresh"), {"proptim": [1e-3], "optax": [3e-3], "torch-loop": None}),
    )
    for columns in (40, 60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = report.text(made)
        assert max(map(len, text.splitlines())) <= columns
        lines = [line.split() for line in text.splitlines()]
        heads = [words[1:] for words in lines if words[:1] == ["rmsprop"] and "failed:" not in words]
        assert [name for head in heads for name in head] == [short(int(m)) if m.isdecimal() else m for m in models]
        assert (len(heads) == 1) == (columns == 200)
        ratios = [cell for words in lines if words[:1] == ["numpy"] for cell in words[1:]]
        assert ratios == [f"2.0{X}"] * len(models)
        assert "torch-loop failed: no luck" in " ".join(text.split())
    assert "50" in text  # % of the roof


def test_absent_contestants_are_named_once():
    everyone = [
        {"name": "torch-loop", "what": "", "absent": "torch is not installed"},
        {"name": "numpy", "what": "", "absent": ""},
        {"name": "torch-fused", "what": "", "absent": "torch is not installed"},
        {"name": "optax", "what": "", "absent": "optax is not installed"},
        {"name": "roof-1", "what": "", "absent": "no kernels"},
    ]
    assert report.absent(everyone) == [
        "not measured: roof-1: no kernels",
        "not installed: torch (torch-loop, torch-fused), optax; pip install 'proptim[bench]' brings what runs here",
    ]
    assert report.absent(everyone[1:2]) == []


def test_no_figure_is_a_failure():
    work = Workload("rmsprop", "8")
    good = report_of((work, {"proptim": [1.0], "numpy": [2.0]}), absent=[("optax", "optax is not installed")])
    assert report.hindrance(good, ["proptim", "numpy", "optax"]) == ""
    assert report.hindrance(good, ["proptim"]) == ""
    told = report.hindrance(good, ["optax"])
    assert told.startswith("no figure of what was asked for (not installed: optax; pip install 'proptim[bench]' brings")
    assert told.endswith("`proptim bench --list` lists what can be measured here")
    bad = report_of((work, {"proptim": None, "numpy": [2.0]}))
    assert "(rmsprop 8: proptim: no luck)" in report.hindrance(bad, ["proptim", "numpy"])
    assert "(no case was done)" in report.hindrance(report_of(), ["proptim"])


def test_without_the_core_the_best_other_backend_is_measured(monkeypatch):
    """Without the compiled core: figures of the backends that are installed, and none of kernels."""
    monkeypatch.setattr("proptim._backend.missing_core", "no core")
    monkeypatch.setattr("proptim._backend.core", None, raising=False)
    ours = {each.name: each for each in contestants._ours()}
    assert ours["proptim"].absent() == ""
    assert ours["proptim-1"].absent() == "no core"
    assert ours["proptim-numpy"].absent() == ""
    best = "numba" if importlib.util.find_spec("numba") else "numpy"
    assert ours["proptim"].what == f"backend {best}, the best that runs here"
    assert np.isfinite(steps(ours["proptim"], Workload("rmsprop", "200"))).all()


def test_two_reports_side_by_side(monkeypatch):
    """Faster and slower only if the quartiles do not overlap; other differences of the runs are reported."""
    monkeypatch.setenv("COLUMNS", "80")
    work, other = Workload("rmsprop", "1000"), Workload("rmsprop", "8")
    before = report_of(
        (work, {"proptim": [1e-6, 2e-6, 3e-6], "numpy": [2e-5] * 3, "optax": [3e-5] * 3}),
        (Workload("adam", "8"), {"proptim": [1e-6]}),
        (other, {"proptim": [4e-6], "numpy": [4e-6]}),
    )
    after = report_of(
        (work, {"proptim": [2e-6, 3e-6, 4e-6], "numpy": [1e-5] * 3, "optax": [3e-5] * 3}),
        (other, {"proptim": [2e-6], "numpy": [8e-6]}),
        (Workload("lion", "8"), {"proptim": [1e-6]}),
        proptim="0.2",
        packages={"numpy": "2.1"},
    )
    compared = compare.Comparison(before, after)
    assert compared.table()[1] == [
        ["rmsprop 1k", "2 us", "3 us", f"1.50{X}", ""],
        ["  numpy", "20 us", "10 us", f"0.50{X}", "faster"],
        ["rmsprop 8", "4 us", "2 us", f"0.50{X}", "faster"],
        ["  numpy", "4 us", "8 us", f"2.0{X}", "slower"],
    ]
    text = " ".join(report.comparison(compared).split())
    assert f"take 1.00{X} as long as before in the median (0.50{X} to 2.0{X})" in text
    assert "Only in earlier run: adam 8." in text
    assert "Only in this run: lion 8." in text
    assert "proptim: 0.1 before, 0.2 now." in text
    assert "numpy: 2.0 before, 2.1 now." in text
    assert max(map(len, report.comparison(compared).splitlines())) <= 80


def test_a_report_is_compared_with_another_on_the_command_line(found, tmp_path, capsys):
    """Two files: nothing is measured; with --html the page has it too."""
    path = tmp_path / "report.json"
    path.write_text(json.dumps(found[0]), encoding="utf-8")
    html = tmp_path / "page.html"
    pytest.importorskip("matplotlib")
    assert main(["bench", "--compare", str(path), str(path), "--html", str(html)]) == 0
    out = capsys.readouterr().out
    assert "rmsprop 1k" in out
    assert "faster\n" not in out
    assert "Compared with an earlier run" in html.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no JSON"),
        ("[]", "is no report; expected a report that `proptim bench --json FILE` has written"),
        ("{}", "is no report"),
        ('{"schema": 7, "machine": {}, "workloads": []}', "is a report of schema 7; expected 1"),
        (None, "No such file"),
    ],
)
def test_what_is_no_report_is_refused_before_the_run(tmp_path, capsys, text, told):
    path = tmp_path / "old.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert main(["bench", "--compare", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err


# What is said -------------------------------------------------------------------------------------------------------


class Gone(io.StringIO):
    """A pipe whose reader has exited."""

    def write(self, text):
        raise BrokenPipeError


def test_a_reader_that_leaves_ends_the_printing_only_where_files_are_written():
    console.Printer(None)("to nobody")
    printer = console.Printer(Gone(), lasting=True)
    printer("lost")
    printer("lost too")
    with pytest.raises(BrokenPipeError):
        console.Printer(Gone())("lost")


@pytest.mark.parametrize(
    ("encoding", "written"), [("utf-8", f"3{X} ≥ ≤ ½"), ("cp1252", "3x >= <= ½"), ("ascii", "3x >= <= ?")]
)
def test_any_encoding_of_the_console_will_do(encoding, written):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    console.Printer(stream)(f"3{X} ≥ ≤ ½")
    assert raw.getvalue().decode(encoding) == written + "\n"


COMMAND = ["bench", "--rules", "rmsprop", "--sizes", "8", "--contestants", "numpy", "--rounds", "2"]


@pytest.mark.parametrize("files", [True, False])
def test_files_are_written_though_nobody_reads_what_is_printed(tmp_path, files):
    """As in `proptim bench --json FILE | head -1`, the file is written; without a file to write, the work ends."""
    path = tmp_path / "report.json"
    command = [sys.executable, "-m", "proptim", *COMMAND, *(["--json", str(path)] if files else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()
    assert "Traceback" not in told
    assert "BrokenPipe" not in told
    assert process.wait() == (0 if files else 1)
    assert path.is_file() == files
    if files:
        assert json.loads(path.read_text(encoding="utf-8"))["workloads"][0]["name"] == "rmsprop 8"


def test_a_console_with_few_characters_prints_all(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "proptim", *COMMAND, "--goals", "--json", str(tmp_path / "report.json")],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        encoding="ascii",
        check=True,
    )
    assert (tmp_path / "report.json").is_file()
    assert re.search(r"numpy +\d[\d.]*x\n", done.stdout)
    assert "\nGoals\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_figures_are_printed_though_a_file_cannot_be_written(monkeypatch, tmp_path, capsys, found):
    monkeypatch.setattr(session, "run", lambda **given: found[0])
    monkeypatch.setattr(report, "page", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["bench", "--html", str(tmp_path / "x.html"), "--json", str(tmp_path / "x.json")])
    assert "numpy" in capsys.readouterr().out
    assert (tmp_path / "x.json").is_file()


def test_exit_codes(monkeypatch, capsys, found):
    """The exit code is 130 after Ctrl-C, and 1 with a hint if nothing was measured."""
    monkeypatch.setattr(session, "run", lambda **given: {**found[0], "interrupted": True})
    assert main(["bench"]) == 130
    monkeypatch.setattr(session, "run", lambda **given: {**found[0], "workloads": []})
    assert main(["bench"]) == 1
    assert "proptim bench: no figure of what was asked for" in capsys.readouterr().err


def test_selftest_with_nothing_to_compare_fails(monkeypatch, capsys):
    from proptim.cli import selftest

    monkeypatch.setattr(selftest, "contestants", dict)
    for arguments in ([], ["--json"]):
        assert main(["selftest", *arguments]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("proptim selftest: nothing was compared: only the numpy backend runs here; ")
        assert "pip install 'proptim[numba]'" in captured.err
    assert json.loads(captured.out)["results"] == []


# The page -----------------------------------------------------------------------------------------------------------


def test_page_needs_nothing_else(found):
    pytest.importorskip("matplotlib")
    page = report.page(found[0])
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") >= 1
    assert not re.search(r"<(script|link|img|iframe)\b|@import|url\((?!#)", page)
    outside = set(re.findall(r'(?:href|src)="([^"#][^"]*)"', page))
    assert outside == set()
    # Colours are the style sheet's, which has others for the dark.
    assert "prefers-color-scheme:dark" in page
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): *([^;\"]+)", drawn)) <= {
        "none",
        *(f"var({name})" for name in charts.VARIABLES.values()),
    }
    assert all("fill: var(" in text for text in re.findall(r"<text [^>]*>", drawn))
    sheet = page[: page.index("</style>")]
    assert all(sheet.count(f"{name}:") == 2 for name in charts.VARIABLES.values())


def test_panels_of_one_chart_have_the_same_scales():
    figure = pytest.importorskip("matplotlib.figure")
    made = report_of(
        *(
            (Workload(rule, model), {"proptim": [t], "numpy": [t * k], "roof-1": [t / 2]})
            for rule, k in (("rmsprop", 3.0), ("rprop", 200.0))
            for model, t in (("1000", 1e-6), ("10000000", 4e-3))
        )
    )
    timing = {"p50": 1.0, "p99": 2.0}
    made["tails"] = [
        {
            "situation": situation,
            "status": "ok",
            "model": "1000",
            "threads": {"1": timing, "auto": {"p50": 1, "p99": k}},
        }
        for situation, k in (("alone", 1.5), ("busy", 30.0))
    ]
    for name, panels in charts.panels(made).items():
        assert len(panels) >= 2
        limits = set()
        for _, panel in panels:
            axes = figure.Figure().add_subplot()
            panel(axes)
            limits.add((axes.get_xlim(), axes.get_ylim() if name != "ratio" else None))
        assert len(limits) == 1


def test_plots(found, tmp_path):
    pytest.importorskip("matplotlib")
    report.plot(found[0], str(tmp_path))
    assert {p.name for p in tmp_path.iterdir()} >= {"bench-ratio.png"}
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_command_line(capsys):
    """Only JSON on standard output."""
    assert main([*COMMAND, "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["workloads"][0]["name"] == "rmsprop 8"
    assert captured.err == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rules", "newton"], "'newton' is unknown"),
        (["--sizes", "huge"], "'huge' is no size"),
        (["--contestants", "nobody"], "'nobody' is no contestant"),
        (["--rounds", "0"], "'0' is not a whole number of at least 1"),
        (["--threads", "1025"], "'1025' is not a whole number from 1 to 1024"),
        (["--compare", "a", "b", "c"], "--compare takes one report or two, and there are 3"),
        (["--json", "f", "--html", "./f"], "--html would overwrite ./f, which --json writes"),
        (["--compare", "a", "b", "--json", "b"], "--json would overwrite b, which --compare reads"),
        (["--compare", "a", "--html", "a"], "--html would overwrite a, which --compare reads"),
        *[
            (
                [option, f"bench-{chart}.png", "--plot", "."],
                f"--plot would overwrite bench-{chart}.png, which {option} ",
            )
            for option, chart in (("--json", "time"), ("--html", "ratio"), ("--compare", "tail"))
        ],
    ],
)
def test_usage(capsys, arguments, told):
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments])
    assert stop.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_no_such_folder_is_said_before_the_run(capsys, tmp_path, option):
    path = tmp_path / "none" / "x"
    assert main(["bench", option, str(path)]) == 1
    assert capsys.readouterr().err == f"proptim bench: {path}: there is no such folder; make it first\n"


def test_who_fails_is_reported_and_the_rest_goes_on(monkeypatch):
    """A contestant that dies at a step, one that raises there, and one that cannot do the work."""
    from proptim.bench.tournament import Tournament

    real = worker.Worker

    class Sabotaged(real):
        def tell(self, do, **arguments):
            if arguments["label"] == "numpy" and do == "time":
                self.process.kill()
                self.process.wait()
            if arguments["label"] == "proptim-numpy":
                arguments["workload"] = {"options": []}
            super().tell(do, **arguments)

    monkeypatch.setattr("proptim.bench.tournament.Worker", Sabotaged)
    names = ("proptim", "numpy", "proptim-numpy", "rprop-two-arrays")
    with Tournament({name: name for name in names}, full=True) as tournament:
        first, second = (tournament.play(Case(Workload("rmsprop", "8")), 2) for _ in range(2))
    for entry in (first, second):  # who has died is started again
        rows = {row["contestant"]: row for row in entry["results"]}
        assert list(rows) == [name for name in names if not CONTESTANTS[name].absent()]
        assert (rows["proptim"]["status"], len(rows["proptim"]["seconds"])) == ("ok", 2)
        assert rows["numpy"]["status"] == rows["proptim-numpy"]["status"] == "failed"
        assert rows["numpy"]["reason"].startswith("ended with exit code ")
        assert rows["proptim-numpy"]["reason"].startswith("TypeError: ")
        cannot = rows.get(
            "rprop-two-arrays", {"status": "cannot", "reason": "has no rmsprop"}
        )  # absent without kernels
        assert (cannot["status"], cannot["reason"]) == ("cannot", "has no rmsprop")


def test_who_declines_in_its_own_process_cannot():
    pytest.importorskip("torch")
    from proptim.bench.tournament import Tournament

    with Tournament({name: name for name in ("proptim", "torch-fused")}, full=True) as tournament:
        entry = tournament.play(Case(Workload("rprop", "8")), 2)
    assert [row["status"] for row in entry["results"]] == ["ok", "cannot"]
    assert entry["results"][1]["reason"] == "has no rprop with fused"


def test_a_library_that_raises_is_a_failure():
    """The message of a failing contestant is in the report."""
    bench = worker.Bench(Contestant("bad", "raises", lambda work, params, sets: Step(lambda: 1 / 0)))
    with pytest.raises(ZeroDivisionError):
        bench.prepare(Workload("sgd", "8").to_json())


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity here")
def test_the_harness_can_be_asked_whether_it_agrees_with_itself():
    """The same contestant twice, at three sizes; that the ratios are 1 can only be tested on an idle machine."""
    out = io.StringIO()
    session.check_itself(9, console.Printer(out))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert all(line.startswith("rmsprop ") and ": ratio " in line for line in lines)


def test_files_are_in_the_package():
    """Which files of the benchmark the wheel contains, and which not."""
    folder = Path(sys.modules["proptim.bench"].__file__).parent
    names = {path.name for path in folder.iterdir()}
    assert {"workloads.py", "worker.py", "instructions.json"} <= names
    assert not {"kernels", "_kernels.pyx"} & names
