"""`proptim bench`: what it counts, that all compute the same, that the whole runs. No seconds here."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import proptim
from proptim.bench import charts, goals, instructions, report, session, worker
from proptim.bench.contestants import CONTESTANTS, NUMPY, Contestant, Step, select
from proptim.bench.tournament import quartiles, summary, under_the_roof
from proptim.bench.workloads import CLIP, HYPER, MODELS, Case, Workload, full, long, quick, short
from proptim.cli import main

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


def test_models():
    assert (len(MODELS["resnet50"]()), Workload("sgd", "resnet50").weights) == (161, 25_557_032)
    assert Workload("sgd", "perceptron").weights == 784 * 128 + 128 + 128 * 10 + 10
    assert Workload("sgd", "200x64").weights == 12_800
    shapes = MODELS["transformer"]()
    assert len(shapes) == 2 + 12 * 12 + 2
    assert sum(map(math.prod, shapes)) == Workload("sgd", "transformer").weights


def test_sizes_are_read_as_written():
    assert [long(text) for text in ("8", "100k", "10M", "resnet50")] == ["8", "100000", "10000000", "resnet50"]
    assert [short(n) for n in (8, 1500, 100_000, 50_000_000)] == ["8", "1500", "100k", "50M"]
    for text in ("", "k", "1.5M", "-3", "0", "large"):
        with pytest.raises(ValueError, match=f"'{re.escape(text)}' is no size"):
            long(text)


def test_every_rule_is_in_the_table():
    assert HYPER.keys() == NUMPY.keys() == proptim.OPTIMIZERS.keys()
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


# These two compile for a minute; a run of the benchmark shows whether they work.
SLOW_TO_BUILD = ("torch-compiled", "deepspeed")
COMPARED = [
    (name, rule)
    for name, contestant in CONTESTANTS.items()
    if not name.startswith(("proptim", "roof-")) and name not in SLOW_TO_BUILD
    for rule in proptim.OPTIMIZERS
    if rule in contestant.rules
]


@pytest.mark.filterwarnings("ignore")  # of other packages
@pytest.mark.parametrize(("name", "rule"), COMPARED)
def test_contestants_compute_the_same(name, rule):
    contestant = CONTESTANTS[name]
    work = Workload(rule, "200")
    if reason := contestant.absent():
        pytest.skip(f"{name}: {reason}")
    before = work.data(seed=5)[0]
    theirs = steps(contestant, work)
    assert all((b != t).all() for b, t in zip(before, theirs, strict=True))
    if contestant.same is None or rule in contestant.same:
        expected = work.data(seed=5)
        optimizer = work.optimizer(expected[0])
        for _ in range(3):
            optimizer.step(expected[1][0])
        for ours, other in zip(expected[0], theirs, strict=True):
            np.testing.assert_allclose(other, ours, rtol=2e-5, atol=2e-6)


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
            kernels.Kernel("stream", isa, copies).run(threads)
            for copy, right in zip(copies, expected, strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(copy, right, strict=True))
    arrays = segments[0]
    for bad in ([], [tuple(arrays), tuple(arrays[:2])], [(*arrays[:2], arrays[2][:5])]):
        with pytest.raises(ValueError, match="expected"):
            kernels.Kernel("stream", isa, bad)
    with pytest.raises(ValueError, match="no kernel"):
        kernels.Kernel("stream", isa, [tuple(arrays[:1])])
    with pytest.raises(ValueError, match="no kernels"):
        kernels.Kernel("stream", "mmx", [tuple(arrays)])


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
    calls = []
    assert worker.timed(Step(lambda: calls.append("run"), between=lambda: calls.append("between")), 2) == 1.5
    assert calls == ["run", "between"] * 2


def goal(found, name):
    return {part["label"]: part for part in next(g for g in found if g["name"] == name)["parts"]}


def test_goals():
    """By hand: RMSprop at 10M takes 2 s, torch's loop 12 s, foreach 20 s; the rest was not measured."""
    work = Workload("rmsprop", "10000000")
    times = {"proptim": 2.0, "torch-loop": 12.0, "torch-foreach": 20.0}
    rows = [summary(work, name, [t], [2.0]) for name, t in times.items()]
    tails = [{"situation": "alone", "status": "ok", "model": "1000", "threads": {
        "1": {"p50": 1.0, "p99": 2.0}, "auto": {"p50": 1.1, "p99": 2.0}}}]  # fmt: skip
    found = goals.judge([{"name": work.name, "results": rows}], tails, {"seconds": 0.02, "bytes": 600_000})
    assert [g["name"] for g in found] == [f"S{n}" for n in range(1, 13)]
    assert all(g["command"].startswith("proptim bench") for g in found)
    part = goal(found, "S2")["rmsprop 10M against torch's loop and foreach"]
    assert (part["figure"], part["met"]) == (6.0, True)
    part = goal(found, "S2")["rmsprop 1k against torch's loop and foreach"]
    assert (part["figure"], part["met"]) == (None, None)
    assert goal(found, "S9")["alone, 1k: p50 auto / 1 thread"]["met"] is False
    assert goal(found, "S9")["alone, 1k: p99 auto / 1 thread"]["met"] is True
    assert goal(found, "S10")["import proptim after numpy"]["met"] is True
    assert goal(found, "S10")["wheel"]["met"] is False


def test_instruction_gate():
    """2 % more fails with both numbers, less is told, what nobody recorded fails."""
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
    """A run of two rounds with whom is always there."""
    stream = io.StringIO()
    made = session.run(False, ["rmsprop"], ["8", "1000"], ["numpy", "roof-1", "optax"], 2, 0, stream)
    return made, stream.getvalue()


def test_a_run(found):
    made, told = found
    assert "rmsprop 1k" in told
    assert made == json.loads(json.dumps(made))
    assert made.keys() == {
        *("schema", "machine", "settings", "interrupted", "contestants", "workloads", "tails", "start", "goals")
    }
    assert made["schema"] == session.SCHEMA
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
    out = io.StringIO()
    report.show(made, out)
    assert "not measured" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_page_needs_nothing_else(found):
    pytest.importorskip("matplotlib")
    page = report.page(found[0])
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") >= 1
    assert not re.search(r"<(script|link|img|iframe)\b|@import|url\((?!#)", page)
    outside = set(re.findall(r'(?:href|src)="([^"#][^"]*)"', page))
    assert outside == set()


def test_plots(found, tmp_path):
    pytest.importorskip("matplotlib")
    report.plot(found[0], str(tmp_path))
    assert {p.name for p in tmp_path.iterdir()} >= {"bench-ratio.png"}
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_command_line(tmp_path, capsys):
    """JSON alone on standard output."""
    command = ["bench", "--rules", "rmsprop", "--sizes", "8", "--contestants", "numpy", "--rounds", "2", "--json", "-"]
    assert main(command) == 0
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
        assert list(rows) == list(names)
        assert (rows["proptim"]["status"], len(rows["proptim"]["seconds"])) == ("ok", 2)
        assert rows["numpy"]["status"] == rows["proptim-numpy"]["status"] == "failed"
        assert rows["numpy"]["reason"].startswith("ended with exit code ")
        assert rows["proptim-numpy"]["reason"].startswith("TypeError: ")
        assert (rows["rprop-two-arrays"]["status"], rows["rprop-two-arrays"]["reason"]) == ("cannot", "has no rmsprop")


def test_a_library_that_raises_is_a_failure():
    """Its message reaches the report."""
    bench = worker.Bench(Contestant("bad", "raises", lambda work, params, sets: Step(lambda: 1 / 0)))
    with pytest.raises(ZeroDivisionError):
        bench.prepare(Workload("sgd", "8").to_json())


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity here")
def test_the_harness_can_be_asked_whether_it_agrees_with_itself():
    """The same contestant twice, at three sizes; whether the ratios are 1 is for an idle machine to say."""
    out = io.StringIO()
    session.check_itself(9, out)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert all(line.startswith("rmsprop ") and ": ratio " in line for line in lines)


def test_files_are_in_the_package():
    """What the wheel carries, and what it leaves out."""
    folder = Path(sys.modules["proptim.bench"].__file__).parent
    names = {path.name for path in folder.iterdir()}
    assert {"workloads.py", "worker.py", "instructions.json"} <= names
    assert not {"kernels.c", "kernels.inc", "kernels.h", "_kernels.pyx"} & names
