"""`proptim train`: the accuracy it reaches, its output, saved runs, and errors."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import proptim
from proptim import checkpoint
from proptim._arrays import name_of
from proptim._formats import rounded, widened
from proptim._storage import DTYPES
from proptim.cli import main
from proptim.cli._console import progress
from proptim.cli._run import OPTIMIZERS, PARAM_DTYPES, Run, load
from proptim.cli._samples import TASKS, load_samples

pytest.importorskip("sklearn")
from proptim.sklearn import load as load_model

RATES = ("nan", "-1", "inf", "fast")
ALL = len(OPTIMIZERS)  # that `--optimizer all` compares: Rprop in each of its variants

RESULT = {
    "name": str,
    "task": str,
    "test_accuracy": float,
    "loss": float,
    "diverged": bool,
    "epochs": int,
    "steps": int,
    "seconds": float,
    "optimizer_seconds": float,
    "lr": float,
    "batch_size": int,
    "seed": int,
    "param_dtype": str,
    "state_dtype": str,
    "rounding": str,
    "history": dict,
}


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Three clouds of points: 48 to train on, 12 to test."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    path = tmp_path / "data.npz"
    np.savez(path, x=rng.standard_normal((60, 4)) + 3 * y[:, None], y=y)
    return str(path)


@pytest.fixture
def tiny(data: str) -> list[str]:
    """A command that takes a moment."""
    return ["train", "--data", data, "--hidden", "8,6", "--epochs", "3"]


def results(capsys: pytest.CaptureFixture[str], command: list[str]) -> list[dict[str, object]]:
    assert main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found = json.loads(captured.out)
    assert list(found) == ["results"]
    return found["results"]


def refused(capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("proptim train: ")
    assert captured.err.count("\n") == 1
    return captured.err[len("proptim train: ") : -1]


def misused(capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1].removeprefix("proptim train: error: ")


# What it reaches and prints ---------------------------------------------------------------------------------------


def test_rmsprop_reads_the_digits(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    assert main(["train"]) == 0
    title, *lines, header, row = capsys.readouterr().out.splitlines()
    assert title == "1438 training and 359 test samples, perceptron 64-256-128-10, seed 0"
    assert len(lines) == 10
    assert lines[-1].startswith("rmsprop   epoch  20/20  loss ")
    assert header == "optimizer  test accuracy     loss  epochs  steps  seconds  in the optimizer"
    name, accuracy, _, epochs, steps, *_ = row.split()
    assert (name, epochs, steps) == ("rmsprop", "20", "900")
    assert float(accuracy.rstrip("%")) >= 95


def test_all_optimizers(capsys: pytest.CaptureFixture[str], tiny: list[str]) -> None:
    assert {rule for rule, _ in OPTIMIZERS.values()} == set(proptim.OPTIMIZERS.values())
    found = results(capsys, [*tiny, "--optimizer", "all", "--batch-size", "10"])
    assert [result["name"] for result in found] == list(OPTIMIZERS)
    for result in found:
        assert {key: type(value) for key, value in result.items()} == RESULT
        full = "rprop" in str(result["name"])
        assert (result["batch_size"], result["steps"]) == ((48, 3) if full else (10, 15))


def test_one_line_of_progress_for_each_of_many(capsys: pytest.CaptureFixture[str], tiny: list[str]) -> None:
    assert main([*tiny, "--optimizer", "all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + ALL + (1 + ALL)


def test_names_may_be_repeated_listed_and_alias(capsys: pytest.CaptureFixture[str], tiny: list[str]) -> None:
    found = results(capsys, [*tiny, "--optimizer", "adam,rprop", "--optimizer", "adam,sgd"])
    assert [result["name"] for result in found] == ["adam", "rprop-", "sgd"]
    assert [result["lr"] for result in found] == [0.001, 0.01, 0.1]


def test_the_seed_is_all_that_chance_depends_on(capsys: pytest.CaptureFixture[str], tiny: list[str]) -> None:
    losses = [results(capsys, [*tiny, "--seed", seed])[0]["loss"] for seed in ("0", "0", "1")]
    assert losses[0] == losses[1] != losses[2]


def test_options_reach_the_optimizer(monkeypatch: pytest.MonkeyPatch, tiny: list[str]) -> None:
    seen = {}

    class Spy(proptim.Adam):
        def __init__(self, params: object, **options: object) -> None:
            seen.update(options)
            super().__init__(params, **options)

    monkeypatch.setitem(OPTIMIZERS, "adam", (Spy, {"lr": 7.0}))
    assert main([*tiny, "--optimizer", "adam", "--backend", "numpy", "--threads", "2", "--lr", "0.5"]) == 0
    assert {key: seen[key] for key in ("backend", "threads", "lr")} == {"backend": "numpy", "threads": 2, "lr": 0.5}


def test_history_by_epoch(capsys: pytest.CaptureFixture[str], tiny: list[str]) -> None:
    (long,) = results(capsys, [*tiny, "--epochs", "5"])
    (short,) = results(capsys, tiny)
    for result in (short, long):
        history = result["history"]
        assert list(history) == ["loss", "test_accuracy"]
        assert [len(values) for values in history.values()] == [result["epochs"]] * 2
        assert (history["loss"][-1], history["test_accuracy"][-1]) == (result["loss"], result["test_accuracy"])
    assert long["history"]["loss"][:3] == short["history"]["loss"]


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_run_that_diverges(capsys: pytest.CaptureFixture[str], data: str, tmp_path: Path, task: str) -> None:
    """A run that diverges says so, ends and makes the command fail; the other runs continue."""
    kept = tmp_path / "kept.npz"
    command = ["train", "--data", data, "--task", task, "--hidden", "8,6", "--epochs", "30", "--lr", "1e30"]
    assert main([*command, "--optimizer", "sgd,lion", "--json"]) == 1
    captured = capsys.readouterr()
    sgd, _ = json.loads(captured.out)["results"]
    score = {"classification": "test_accuracy", "regression": "test_r2"}[task]
    assert (sgd["loss"], sgd[score], sgd["diverged"]) == (None, None, True)
    assert sgd["history"]["loss"][-1] is sgd["history"][score][-1] is None
    assert captured.err.splitlines()[0] == (
        f"proptim train: sgd diverged in epoch {sgd['epochs']}: its loss or weights are not finite; expected "
        "them to stay finite: give an --lr below 1e+30"
    )
    assert main([*command, "--optimizer", "sgd", "--epochs", "1", "--save", str(kept)]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].split()[:2] == ["sgd", "diverged"]
    assert not kept.exists()


def test_a_run_that_diverges_keeps_the_epoch_before(
    capsys: pytest.CaptureFixture[str], tiny: list[str], tmp_path: Path
) -> None:
    kept = str(tmp_path / "kept.npz")
    command = [*tiny, "--task", "regression", "--optimizer", "sgd", "--lr", "100", "--batch-size", "48"]
    assert main([*command, "--epochs", "99", "--save", kept]) == 1
    told = capsys.readouterr().err
    assert told.endswith(f"; {kept} holds the epoch before\n")
    run, (params, _) = load(kept)
    assert f"in epoch {len(run.loss) + 1}:" in told
    assert all(np.isfinite(param).all() for param in params)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_on_a_terminal_without_colour_for_no_color_and_lines_on_a_dumb_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("rich")
    run = Run("adam", 0, 1, 1, [2, 2], loss=[0.5], test_score=[0.75])
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress([run], "title", bars := Terminal()) as show:
        show(run)
    assert "\x1b[" in bars.getvalue()
    assert "loss 5.0e-01  test accuracy  75.0%" in bars.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    with progress([run], "title", bars := Terminal()) as show:
        show(run)
    assert "loss 5.0e-01" in bars.getvalue()
    assert "\x1b[2K" in bars.getvalue()  # the line of the bar is cleared
    assert not re.search(r"\x1b\[[0-9;]*3[0-9;]*m", bars.getvalue())  # and nothing has a colour
    monkeypatch.setenv("TERM", "dumb")
    with progress([run], "title", lines := Terminal()) as show:
        show(run)
    assert lines.getvalue() == "title\nadam      epoch   1/1  loss 5.0e-01  test accuracy  75.0%\n"


# The figure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["all", "adam", "rprop+,irprop+"])
def test_plot(capsys: pytest.CaptureFixture[str], tiny: list[str], tmp_path: Path, names: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "curves.png"
    assert len(results(capsys, [*tiny, "--optimizer", names, "--plot", str(path)])) in (ALL, 1, 2)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("optimizers", ["sgd", "sgd,adam"])
def test_plot_of_runs_that_diverged(tiny: list[str], tmp_path: Path, optimizers: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "curves.png"
    command = [*tiny, "--task", "regression", "--optimizer", optimizers, "--lr", "1e30", "--plot", str(path)]
    assert main(command) == 1
    assert path.exists()


def test_plot_refused_before_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "none" / "curves.png"
    assert refused(capsys, [*tiny, "--plot", str(path)]) == f"--plot {path}: there is no such folder; make it first"
    assert refused(capsys, [*tiny, "--save", str(path)]) == f"--save {path}: there is no such folder; make it first"
    (tmp_path / "folder.png").mkdir()
    for option in ("--plot", "--save"):
        folder = tmp_path / "folder.png"
        assert refused(capsys, [*tiny, option, str(folder)]) == (
            f"{option} {folder} is a folder; expected the name of a file"
        )
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert refused(capsys, [*tiny, "--plot", "curves.png"]) == (
        "--plot needs matplotlib (import of matplotlib.figure halted; None in sys.modules); "
        "pip install 'proptim[demo]', or leave --plot out"
    )


# Runs that are kept -----------------------------------------------------------------------------------------------


ONE_BYTE = ["--state-dtype", "int8", "--hidden", "64,64"]
"""A layer of 4,096 weights, of which averages are kept in one byte."""
AT_RANDOM = ["--state-dtype", "bfloat16", "--rounding", "stochastic"]


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param([], id="float32"),
        pytest.param(ONE_BYTE, id="int8", marks=pytest.mark.once),
        pytest.param(AT_RANDOM, id="stochastic", marks=pytest.mark.once),
    ],
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_is_exact(
    capsys: pytest.CaptureFixture[str], tiny: list[str], tmp_path: Path, name: str, kept: list[str]
) -> None:
    whole, part = str(tmp_path / "whole.npz"), str(tmp_path / "part.npz")
    begin = [*tiny, "--optimizer", name, "--seed", "3", *kept]
    (once,) = results(capsys, [*begin, "--epochs", "10", "--save", whole])
    results(capsys, [*begin, "--epochs", "4", "--save", part])
    again = ["train", "--data", tiny[2], "--resume", part, "--epochs", "10", "--save", part]
    (resumed,) = results(capsys, again)
    for result in (once, resumed):
        assert result.pop("seconds") > result.pop("optimizer_seconds") > 0
    assert resumed == once
    (run, state), (run_again, state_again) = load(whole), load(part)
    assert (run.loss, run.test_score) == (run_again.loss, run_again.test_score)
    np.testing.assert_equal(state_again, state)  # to the bit: nothing here is -0.0 or NaN
    assert load_model(part).predict_proba([[1.0, 2.0, 3.0, 4.0]]).tolist() == (
        load_model(whole).predict_proba([[1.0, 2.0, 3.0, 4.0]]).tolist()
    )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", PARAM_DTYPES[1:])
def test_weights_of_other_dtypes(
    capsys: pytest.CaptureFixture[str], tiny: list[str], tmp_path: Path, dtype: str, task: str
) -> None:
    """They are what they are called, in the network and in the file; what is kept goes on to the bit, and predicts."""
    whole, part, out = (str(tmp_path / name) for name in ("whole.npz", "part.npz", "out.npz"))
    begin = [*tiny, "--optimizer", "adam", "--task", task, "--param-dtype", dtype]
    (once,) = results(capsys, [*begin, "--epochs", "6", "--save", whole])
    results(capsys, [*begin, "--epochs", "2", "--save", part])
    again = ["train", "--data", tiny[2], "--resume", part, "--epochs", "6", "--save", part]
    (resumed,) = results(capsys, again)
    for result in (once, resumed):
        del result["seconds"], result["optimizer_seconds"]
    assert resumed == once
    assert once["param_dtype"] == dtype
    (_, (params, state)), (_, (params_again, state_again)) = load(whole), load(part)
    np.testing.assert_equal(params_again, params)
    np.testing.assert_equal(state_again, state)
    for i, param in enumerate(params):
        assert param.dtype == (dtype if dtype == "float64" else "float32")
        master = state["state"][i].get("master")
        assert (master is None) == (dtype == "float64")
        if master is not None:
            assert np.array_equal(rounded(param, DTYPES[dtype]), rounded(master, DTYPES[dtype]))
            assert not np.array_equal(param, master)
            assert np.array_equal(param, widened(rounded(param, DTYPES[dtype]), param.dtype))
    assert main(["predict", whole, "--data", tiny[2], "--out", out]) == 0
    assert np.array_equal(np.load(out)["y"], load_model(part).predict(np.load(tiny[2])["x"]))


def test_all_optimizers_train_weights_of_sixteen_bits(capsys: pytest.CaptureFixture[str], tiny: list[str]) -> None:
    """About as well as weights of float32."""
    command = [*tiny, "--optimizer", "all", "--epochs", "20"]
    whole, half = (results(capsys, [*command, *more]) for more in ([], ["--param-dtype", "bfloat16"]))
    assert [each["name"] for each in half] == [*OPTIMIZERS]
    for one, other in zip(whole, half, strict=True):
        assert not other["diverged"]
        assert other["loss"] == pytest.approx(one["loss"], rel=0.2, abs=0.02)
        assert other["loss"] != one["loss"]


@pytest.mark.once
@pytest.mark.parametrize(
    ("kept", "dtypes"),
    [
        ([], {"float32"}),
        (["--param-dtype", "float64"], {"float64"}),
        (["--param-dtype", "float64", "--state-dtype", "float32"], {"float32"}),
        (["--state-dtype", "float16"], {"float16"}),
        (["--param-dtype", "bfloat16", *AT_RANDOM], {"bfloat16"}),
        (ONE_BYTE, {"int8", "uint8", "float32"}),
    ],
)
def test_state_of_other_dtypes(
    capsys: pytest.CaptureFixture[str], tiny: list[str], tmp_path: Path, kept: list[str], dtypes: set[str]
) -> None:
    """It is what it is called, in the file and in what is printed; predictions do not need it."""
    path, out = str(tmp_path / "run.npz"), str(tmp_path / "out.npz")
    command = [*tiny, "--optimizer", "adam", *kept, "--save", path]
    (result,) = results(capsys, command)
    asked = dict(zip(kept[::2], kept[1::2], strict=True))
    assert result["state_dtype"] == asked.get("--state-dtype", result["param_dtype"])
    assert result["rounding"] == asked.get("--rounding", "nearest")
    _, (_, state) = load(path)
    found = {name_of(a.dtype) for each in state["state"].values() for k, a in each.items() if k.startswith("exp_avg")}
    assert found == dtypes
    assert state.get("seed") == (0 if "--rounding" in asked else None)
    assert main(["predict", path, "--data", tiny[2], "--out", out]) == 0
    assert np.array_equal(np.load(out)["y"], load_model(path).predict(np.load(tiny[2])["x"]))


@pytest.mark.once
def test_rounding_at_random_depends_on_the_seed_alone(capsys: pytest.CaptureFixture[str], tiny: list[str]) -> None:
    """Any seed that a run may have."""
    runs = [[], AT_RANDOM, AT_RANDOM, [*AT_RANDOM, "--seed", str(2**64)], [*AT_RANDOM, "--seed", str(2**64)]]
    losses = [results(capsys, [*tiny, "--optimizer", "adam", *kept])[0]["loss"] for kept in runs]
    assert losses[0] != losses[1] == losses[2] != losses[3] == losses[4]


@pytest.mark.once
def test_the_title_says_what_is_kept_in_fewer_bits(capsys: pytest.CaptureFixture[str], tiny: list[str]) -> None:
    for kept, told in (
        ([], ""),
        (["--state-dtype", "float32"], ""),
        (["--state-dtype", "int8"], ", state int8"),
        (["--param-dtype", "bfloat16", *AT_RANDOM], ", bfloat16, state bfloat16, stochastic rounding"),
    ):
        assert main([*tiny, *kept]) == 0
        title = capsys.readouterr().out.splitlines()[0]
        assert title == f"48 training and 12 test samples, perceptron 4-8-6-3{told}, seed 0"


@pytest.mark.once
@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (
            ["--state-dtype", "int8", "--param-dtype", "float64"],
            "sgd: Invalid state_dtype: 'int8' for params[0], which",
        ),
        (["--state-dtype", "float64"], "sgd: Invalid state_dtype: 'float64' for params[0], which is float32"),
        (["--state-dtype", "float16"], "rprop-: Invalid state_dtype: 'float16' for 'step_word', whose values range"),
    ],
)
def test_state_that_an_optimizer_refuses(
    capsys: pytest.CaptureFixture[str], tiny: list[str], kept: list[str], message: str
) -> None:
    """Before any of them is trained."""
    assert misused(capsys, [*tiny, "--optimizer", "sgd,rprop,adam", *kept]).startswith(message)


def test_resume_of_a_run_of_before(capsys: pytest.CaptureFixture[str], tiny: list[str], tmp_path: Path) -> None:
    """A file of before there were these options is of float32, and not rounded at random."""
    path = tmp_path / "run.npz"
    results(capsys, [*tiny, "--save", str(path)])
    saved = checkpoint.read(path)
    before = {"param_dtype": "float32", "state_dtype": "float32", "rounding": "nearest"}
    assert {name: saved["run"].pop(name) for name in before} == before
    checkpoint.write(path, saved)
    again = ["train", "--data", tiny[2], "--resume", str(path), "--epochs", "4", "--save", str(path)]
    (result,) = results(capsys, again)
    assert result.items() >= before.items()
    for name, wrong in (
        ("param_dtype", "float8"),
        ("param_dtype", ["float32"]),
        ("state_dtype", 8),
        ("rounding", "up"),
    ):
        checkpoint.write(path, {**saved, "run": {**saved["run"], **before, name: wrong}})
        told = refused(capsys, [*tiny, "--resume", str(path)])
        assert "unknown optimizer, task, dtype or rounding" in told


def test_interrupted_run_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: list[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "run.npz")
    step, calls = proptim.RMSprop.step, []

    def interrupt(*args: object, **options: object) -> None:
        calls.append(args)
        if len(calls) == 6:  # the second mini-batch of the third epoch
            raise KeyboardInterrupt
        step(*args, **options)

    monkeypatch.setattr(proptim.RMSprop, "step", interrupt)
    assert main([*tiny, "--save", path, "--json"]) == 130
    captured = capsys.readouterr()
    assert captured.err == "proptim train: interrupted; these epochs are complete\n"
    assert [result["epochs"] for result in json.loads(captured.out)["results"]] == [2]
    (result,) = results(capsys, ["train", "--data", tiny[2], "--resume", path, "--save", path])
    assert result["epochs"] == 3


def test_resume_without_save_says_so(capsys: pytest.CaptureFixture[str], tiny: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    assert main([*tiny, "--save", str(path)]) == 0
    before, _ = path.read_bytes(), capsys.readouterr()
    resume = ["train", "--data", tiny[2], "--resume", str(path), "--epochs", "5"]
    assert main(resume) == 0
    said = f"proptim train: the new epochs were not saved, and {path} is unchanged: give --save to keep them\n"
    assert (capsys.readouterr().err, path.read_bytes()) == (said, before)
    assert main([*resume, "--save", str(path)]) == 0
    assert (capsys.readouterr().err, path.read_bytes() == before) == ("", False)


def test_interrupted_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: list[str]
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(proptim.RMSprop, "step", interrupt)
    assert main([*tiny, "--json"]) == 130
    assert json.loads(capsys.readouterr().out) == {"results": []}


@pytest.mark.parametrize(
    ("options", "held", "given"),
    [
        (["--optimizer", "lion"], "--optimizer adam", "lion"),
        (["--optimizer", "rprop"], "--optimizer adam", "rprop-"),
        (["--seed", "1"], "--seed 0", "1"),
        (["--hidden", "9"], "--hidden 8,6", "9"),
        (["--batch-size", "7"], "--batch-size 32", "7"),
        (["--lr", "0.5"], "--lr 0.001", "0.5"),
        (["--param-dtype", "float16"], "--param-dtype float32", "float16"),
        (["--state-dtype", "int8"], "--state-dtype float32", "int8"),
        (["--rounding", "stochastic"], "--rounding nearest", "stochastic"),
    ],
)
def test_resume_refuses_another_run(
    capsys: pytest.CaptureFixture[str], tiny: list[str], tmp_path: Path, options: list[str], held: str, given: str
) -> None:
    path = str(tmp_path / "run.npz")
    results(capsys, [*tiny, "--optimizer", "adam", "--save", path])
    assert refused(capsys, ["train", "--data", tiny[2], "--resume", path, *options]) == (
        f"{path} holds a run with {held}, not {given}; leave it out"
    )


def test_resume_refuses_other_data_and_fewer_epochs(
    capsys: pytest.CaptureFixture[str], tiny: list[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "run.npz")
    results(capsys, [*tiny, "--save", path])
    assert refused(capsys, ["train", "--data", tiny[2], "--resume", path]) == (
        f"{path} has had its 3 epochs; give more --epochs to go on"
    )
    x = np.load(tiny[2])["x"]
    np.savez(tiny[2], x=x + (x == x[0, 0]), y=np.load(tiny[2])["y"])
    assert refused(capsys, ["train", "--data", tiny[2], "--resume", path, "--epochs", "4"]) == (
        f"{path} holds a run on other data; give the same --data as then"
    )


def test_resume_refuses_other_files(capsys: pytest.CaptureFixture[str], tiny: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    command = [*tiny, "--resume", str(path), "--epochs", "9"]
    assert "No such file" in refused(capsys, command)
    proptim.Adam([np.zeros(3)]).save(path)
    assert refused(capsys, command) == (
        f"{path} cannot be resumed (it holds an optimizer and no run); expected a file that --save wrote"
    )
    results(capsys, [*tiny, "--save", str(path)])
    whole = path.read_bytes()
    for broken in (b"", b"text", whole[:-200], whole[: len(whole) // 2]):
        path.write_bytes(broken)
        message = refused(capsys, command)
        assert message.startswith(f"{path} cannot be resumed (")
        assert message.endswith("); expected a file that --save wrote")
        assert message.count(str(path)) == 1


# What is refused --------------------------------------------------------------------------------------------------

X, Y = np.zeros((20, 3)), np.arange(20) % 2
NAN = X + np.where(np.arange(60).reshape(20, 3) == 7, np.nan, 0)
HUGE = X + np.where(np.arange(60).reshape(20, 3) == 7, 1e300, 0)
WRITE = "np.savez(path, x=features, y=classes)"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, f"holds no array; expected x and y: {WRITE}"),
        ({"x": X, "labels": Y}, f"holds x, labels; expected x and y: {WRITE}"),
        ({"x": X.astype(object), "y": Y}, None),
        ({"x": X.astype(str), "y": Y}, "x has dtype <U32; expected real numbers: x.astype(np.float32)"),
        ({"x": X * 1j, "y": Y}, "x has dtype complex128; expected real numbers: x.astype(np.float32)"),
        (
            {"x": X.reshape(20, 3, 1), "y": Y},
            "x has shape (20, 3, 1); expected (samples, features): x.reshape(len(x), -1)",
        ),
        ({"x": X[:, :0], "y": Y}, "x has shape (20, 0); expected (samples, features): x.reshape(len(x), -1)"),
        (
            {"x": X, "y": Y * 1j},
            "y has dtype complex128; expected whole numbers or text for classes, y.astype(np.int64) or y.astype(str), "
            "or floats to predict as numbers",
        ),
        (
            {"x": X, "y": np.where(np.arange(20) == 7, np.nan, 0.5)},
            "y[7] is nan; expected finite float32 numbers: drop or correct the sample",
        ),
        (
            {"x": X, "y": np.where(np.arange(20) == 7, 1e300, 0.5)},
            "y[7] is 1e+300; expected finite float32 numbers: drop or correct the sample",
        ),
        ({"x": X, "y": Y * 0 + 0.5}, "y holds only the number 0.5; expected at least 2 numbers"),
        (
            {"x": X, "y": np.arange(20)},
            "y holds 20 classes in 20 samples; expected several samples of each: give --task regression if they are "
            "numbers to predict, or --task classification if they are classes nevertheless",
        ),
        (
            {"x": X, "y": np.arange(20).astype(str)},
            "y holds 20 classes in 20 samples; expected several samples of each: give labels that repeat, "
            "or --task classification if they are classes nevertheless",
        ),
        (
            {"x": X, "y": np.eye(2, dtype=int)[Y]},
            "y has shape (20, 2); expected (samples,): y.ravel(), or y.argmax(axis=1) if it is one-hot",
        ),
        ({"x": X, "y": Y[1:]}, "x has 20 samples and y 19; expected one class or number for each sample"),
        ({"x": X[:9], "y": Y[:9]}, "9 samples; expected at least 10, a fifth of them for the test"),
        (
            {"x": NAN, "y": Y},
            "x[2, 1] is nan; expected finite float32 numbers: drop or correct the sample",
        ),
        (
            {"x": HUGE, "y": Y},
            "x[2, 1] is 1e+300; expected finite float32 numbers: drop or correct the sample",
        ),
        (
            {"x": X, "y": Y - 1},
            "y[0] is -1; expected classes from 0 up: drop samples without a class, or renumber: "
            "np.unique(y, return_inverse=True)[1]",
        ),
        ({"x": X, "y": Y * 0 + 5}, "y holds only the class 5; expected at least 2 classes"),
    ],
)
def test_data_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arrays: dict[str, np.ndarray], message: str | None
) -> None:
    path = str(tmp_path / "data.npz")
    np.savez(path, **arrays)
    if message is None:
        message = (
            "cannot be read (Object arrays cannot be loaded when allow_pickle=False); "
            f"expected arrays of numbers: {WRITE}"
        )
    assert refused(capsys, ["train", "--data", path]) == f"--data {path}: {message}"


def test_files_that_are_no_data(capsys: pytest.CaptureFixture[str], data: str) -> None:
    whole = Path(data).read_bytes()
    for content in (b"", b"1,2,3\n", whole[:300], whole[:-30]):
        Path(data).write_bytes(content)
        assert refused(capsys, ["train", "--data", data]) == (
            f"--data {data}: not an .npz file; expected one written by {WRITE}, or a CSV file whose name ends in .csv"
        )
    Path(data).write_bytes(whole[:400] + b"\xff" + whole[401:])
    message = refused(capsys, ["train", "--data", data])
    assert message.startswith(f"--data {data}: cannot be read (")
    Path(data).unlink()
    assert refused(capsys, ["train", "--data", data]) == f"[Errno 2] No such file or directory: '{data}'"


def test_without_scikit_learn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert refused(capsys, ["train"]) == (
        "the handwritten digits come with scikit-learn (import of sklearn.datasets halted; None in sys.modules); "
        "pip install 'proptim[demo]', or train on --data FILE.npz"
    )
    monkeypatch.delitem(sys.modules, "proptim.sklearn", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(tiny) == 1
    assert capsys.readouterr().err == (
        "proptim train: the network is scikit-learn's (proptim.sklearn needs scikit-learn (import of sklearn halted; "
        "None in sys.modules): pip install 'proptim[sklearn]'); pip install 'proptim[demo]', or write a loop: "
        "docs/start.md\n"
    )


@pytest.mark.parametrize("x", [np.float64, np.float32, np.int16, np.uint8])
def test_features_of_any_scale_and_type(tmp_path: Path, x: type) -> None:
    path = str(tmp_path / "data.npz")
    values = np.arange(60).reshape(20, 3)
    values[:, 2] = 7
    np.savez(path, x=values.astype(x), y=Y + 5)
    samples = load_samples(path, seed=0)
    assert (samples.x.dtype, samples.classes.tolist(), len(samples.x), len(samples.test_x)) == (
        np.float32,
        [5, 6],
        16,
        4,
    )
    assert np.abs(samples.x).max(axis=0).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--optimizer", "adm"],
            f"argument --optimizer: 'adm' is unknown; did you mean 'adam'? Expected {', '.join(OPTIMIZERS)}, or all",
        ),
        (
            ["--optimizer", "newton"],
            f"argument --optimizer: 'newton' is unknown; expected {', '.join(OPTIMIZERS)}, or all",
        ),
        (["--epochs", "0"], "argument --epochs: '0' is not a whole number of at least 1"),
        (["--hidden", "8,"], "argument --hidden: '' is not a whole number of at least 1"),
        (["--seed", "-1"], "argument --seed: '-1' is not a whole number of at least 0"),
        (["--test", "f"], "--test is for data of your own: give --data too"),
        (["--target", "y"], "--target is for data of your own: give --data too"),
        (["--task", "regression"], "--task is for data of your own: give --data too"),
        (["--epochs", "1.5"], "argument --epochs: '1.5' is not a whole number of at least 1"),
        (["--threads", "1025"], "argument --threads: '1025' is not a whole number from 1 to 1024"),
        *[(["--lr", lr], f"argument --lr: {lr!r} is not a finite number of at least 0") for lr in RATES],
        (
            ["--data", "no such file", "--lr", "1e40"],
            "rmsprop: Invalid learning rate: inf (expected a finite number >= 0), as rounded to float32, in which the "
            "rule computes",
        ),
        (
            ["--data", "no such file", "--param-dtype", "float64", "--state-dtype", "int8"],
            "rmsprop: Invalid state_dtype: 'int8' for params[0], which is float64 (expected real parameters that are "
            "stepped in float32: for these leave it out, or take 'bfloat16' or 'float16')",
        ),
        (["--plot", "f.xls"], "argument --plot: 'f.xls': expected a name that ends in .png or .svg or .pdf"),
        (["--data", "f", "--test", "g", "--save", "g"], "--save would overwrite g, which --test reads"),
        (["--data", "f", "--save", "./f"], "--save would overwrite ./f, which --data reads"),
        (["--data", "f.png", "--plot", "f.png"], "--plot would overwrite f.png, which --data reads"),
        (["--save", "f.png", "--plot", "f.png"], "--plot would overwrite f.png, which --save writes"),
        (["--resume", "f.png", "--plot", "f.png"], "--plot would overwrite f.png, which --resume reads"),
        (
            ["--resume", "f.png", "--save", "f.png", "--plot", "f.png"],
            "--plot would overwrite f.png, which --save writes",
        ),
        (["--optimizer", "adam,sgd", "--save", "f"], "--save and --resume take one optimizer, not 2: adam, sgd"),
        (["--optimizer", "adam,sgd", "--resume", "f"], "--save and --resume take one optimizer, not 2: adam, sgd"),
        (
            ["--optimizer", "rprop", "--batch-size", "8"],
            "--batch-size is not for rprop-: Rprop takes all samples at once",
        ),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert misused(capsys, ["train", *options]) == message
