"""`proptim train`: what it reaches, prints, keeps and refuses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import proptim
from proptim.cli import main
from proptim.cli._console import progress
from proptim.cli._digits import Perceptron, load_samples
from proptim.cli._run import OPTIMIZERS, Run, load

RESULT = {
    "name": str,
    "test_accuracy": float,
    "loss": float,
    "epochs": int,
    "steps": int,
    "seconds": float,
    "optimizer_seconds": float,
    "lr": float,
    "batch_size": int,
    "seed": int,
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
    assert len(capsys.readouterr().out.splitlines()) == 1 + 12 + 13


def test_names_may_be_repeated_listed_and_alias(capsys: pytest.CaptureFixture[str], tiny: list[str]) -> None:
    found = results(capsys, [*tiny, "--optimizer", "adam,rprop", "--optimizer", "adam,sgd"])
    assert [result["name"] for result in found] == ["adam", "rprop-", "sgd"]
    assert [result["lr"] for result in found] == [0.001, 0.01, 0.1]


def test_the_seed_is_all_that_chance_depends_on(capsys: pytest.CaptureFixture[str], tiny: list[str]) -> None:
    losses = [results(capsys, [*tiny, "--seed", seed])[0]["loss"] for seed in ("0", "0", "1")]
    assert losses[0] == losses[1] != losses[2]


def test_options_reach_the_optimizer(monkeypatch: pytest.MonkeyPatch, tiny: list[str]) -> None:
    seen = {}

    def spy(params: object, **options: object) -> proptim.Optimizer:
        seen.update(options)
        return proptim.Adam(params, grads=options["grads"])

    monkeypatch.setitem(OPTIMIZERS, "adam", (spy, {}))
    assert main([*tiny, "--optimizer", "adam", "--backend", "numpy", "--threads", "2", "--lr", "0.5"]) == 0
    assert {key: seen[key] for key in ("backend", "threads", "lr")} == {"backend": "numpy", "threads": 2, "lr": 0.5}


def test_a_loss_that_overflows_is_null(capsys: pytest.CaptureFixture[str], tiny: list[str], tmp_path: Path) -> None:
    plot = str(tmp_path / "overflow.png")
    (result,) = results(capsys, [*tiny, "--optimizer", "sgd", "--lr", "1e30", "--plot", plot])
    assert result["loss"] is None
    assert Path(plot).exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_on_a_terminal_unless_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    run = Run("adam", 0, [2, 2], 1, 0, epochs=1, loss=[0.5], test_accuracy=[0.75])
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress([run], "title", bars := Terminal()) as show:
        show(run)
    assert "\x1b[" in bars.getvalue()
    assert "loss 5.0e-01  test accuracy  75.0%" in bars.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    with progress([run], "title", lines := Terminal()) as show:
        show(run)
    assert lines.getvalue() == "title\nadam      epoch   1/1  loss 5.0e-01  test accuracy  75.0%\n"


def test_gradients_are_those_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    network = Perceptron([3, 5, 4, 2], seed=0)
    network.params = [param.astype(np.float64) for param in network.params]
    network.grads = [grad.astype(np.float64) for grad in network.grads]
    x, y = rng.standard_normal((6, 3)), rng.integers(0, 2, 6)
    network.backward(x, y)
    for param, grad in zip(network.params, [grad.copy() for grad in network.grads], strict=True):
        for i in np.ndindex(param.shape):
            middle, losses = param[i], []
            for param[i] in (middle + 1e-6, middle - 1e-6):
                losses.append(network.backward(x, y))
            param[i] = middle
            assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(grad[i], abs=1e-8)


# The figure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["all", "adam", "rprop+,irprop+"])
def test_plot(capsys: pytest.CaptureFixture[str], tiny: list[str], tmp_path: Path, names: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "curves.png"
    assert len(results(capsys, [*tiny, "--optimizer", names, "--plot", str(path)])) in (12, 1, 2)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_plot_refused_before_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: list[str], tmp_path: Path
) -> None:
    assert refused(capsys, [*tiny, "--plot", "curves.xls"]) == (
        "--plot curves.xls: expected a name that ends in .png, .svg, .pdf"
    )
    path = tmp_path / "none" / "curves.png"
    assert refused(capsys, [*tiny, "--plot", str(path)]) == f"{path}: there is no such folder; make it first"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert refused(capsys, [*tiny, "--plot", "curves.png"]) == (
        "--plot needs matplotlib (import of matplotlib.figure halted; None in sys.modules); "
        "pip install 'proptim[demo]', or leave --plot out"
    )


# Runs that are kept -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_is_exact(capsys: pytest.CaptureFixture[str], tiny: list[str], tmp_path: Path, name: str) -> None:
    whole, part = str(tmp_path / "whole.npz"), str(tmp_path / "part.npz")
    begin = [*tiny, "--optimizer", name, "--seed", "3"]
    (once,) = results(capsys, [*begin, "--epochs", "10", "--save", whole])
    results(capsys, [*begin, "--epochs", "4", "--save", part])
    again = ["train", "--data", tiny[2], "--resume", part, "--epochs", "10", "--save", part]
    (resumed,) = results(capsys, again)
    for result in (once, resumed):
        assert result.pop("seconds") > result.pop("optimizer_seconds") > 0
    assert resumed == once
    (run, state), (run_again, state_again) = load(whole), load(part)
    assert (run.loss, run.test_accuracy) == (run_again.loss, run_again.test_accuracy)
    np.testing.assert_equal(state_again, state)  # to the bit: nothing here is -0.0 or NaN


def test_interrupted_run_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: list[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "run.npz")
    accuracy, calls = Perceptron.accuracy, []

    def interrupt(*args: object) -> float:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return accuracy(*args)

    monkeypatch.setattr(Perceptron, "accuracy", interrupt)
    assert main([*tiny, "--save", path, "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "proptim train: interrupted; these epochs are complete\n"
    assert [result["epochs"] for result in json.loads(captured.out)["results"]] == [2]
    (result,) = results(capsys, ["train", "--data", tiny[2], "--resume", path])
    assert result["epochs"] == 3


def test_interrupted_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: list[str]
) -> None:
    def interrupt(*args: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(Perceptron, "backward", interrupt)
    assert main([*tiny, "--json"]) == 1
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
            {"x": X, "y": Y / 2},
            "y has dtype float64; expected the number of each sample's class: y.astype(np.int64)",
        ),
        (
            {"x": X, "y": np.eye(2, dtype=int)[Y]},
            "y has shape (20, 2); expected (samples,): y.ravel(), or y.argmax(axis=1) if it is one-hot",
        ),
        ({"x": X, "y": Y[1:]}, "x has 20 samples and y 19; expected one class for each sample"),
        ({"x": X[:9], "y": Y[:9]}, "9 samples; expected at least 10, a fifth of them for the test"),
        (
            {"x": NAN, "y": Y},
            "x[2, 1] is nan; expected finite float32 numbers: drop or mend the sample",
        ),
        (
            {"x": HUGE, "y": Y},
            "x[2, 1] is 1e+300; expected finite float32 numbers: drop or mend the sample",
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
            f"--data {data}: not an .npz file; expected one written by {WRITE}"
        )
    Path(data).write_bytes(whole[:400] + b"\xff" + whole[401:])
    message = refused(capsys, ["train", "--data", data])
    assert message.startswith(f"--data {data}: cannot be read (")
    Path(data).unlink()
    assert refused(capsys, ["train", "--data", data]) == f"[Errno 2] No such file or directory: '{data}'"


def test_without_scikit_learn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert refused(capsys, ["train"]) == (
        "the handwritten digits come with scikit-learn (import of sklearn.datasets halted; None in sys.modules); "
        "pip install 'proptim[demo]', or train on --data FILE.npz"
    )


@pytest.mark.parametrize("x", [np.float64, np.float32, np.int16, np.uint8])
def test_features_of_any_scale_and_type(tmp_path: Path, x: type) -> None:
    path = str(tmp_path / "data.npz")
    values = np.arange(60).reshape(20, 3)
    values[:, 2] = 7
    np.savez(path, x=values.astype(x), y=Y + 5)
    samples = load_samples(path, seed=0)
    assert (samples.x.dtype, samples.classes, len(samples.x), len(samples.test_x)) == (np.float32, 2, 16, 4)
    assert np.abs(samples.x).max(axis=0).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer", "adm"], f"argument --optimizer: 'adm' is unknown; expected {', '.join(OPTIMIZERS)}, or all"),
        (["--epochs", "0"], "argument --epochs: '0' is not a whole number of at least 1"),
        (["--hidden", "8,"], "argument --hidden: '' is not a whole number of at least 1"),
        (["--seed", "-1"], "argument --seed: '-1' is not a whole number of at least 0"),
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


def test_the_optimizer_refuses_its_own(capsys: pytest.CaptureFixture[str], tiny: list[str]) -> None:
    assert main([*tiny, "--lr", "-1"]) == 1
    assert capsys.readouterr().err.startswith("proptim train: Invalid learning rate: -1.0")
