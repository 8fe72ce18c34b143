"""`proptim explain`: the numbers that prove its three points, its figures, its output and its exit codes."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proptim.cli import explain as command
from proptim.cli import main


@pytest.fixture(scope="module", autouse=True)
def _measure_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("sizes", "batches", "landscapes"):
            patch.setattr(command, name, functools.cache(getattr(command, name)))
        yield


def explain(*args: str) -> str:
    """What the command prints; it must succeed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["explain", *args]) == 0
    return printed.getvalue()


@pytest.fixture(scope="module")
def text() -> str:
    return explain()


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """The whole output of --json is one JSON object, or else it does not parse."""
    result: dict[str, Any] = json.loads(explain("--json"))
    assert list(result) == ["sizes", "mini_batches", "condition_and_saddle", "figures"]
    assert result["figures"] == []
    return result


# The proofs ------------------------------------------------------------------------------------------------


def test_rprop_moves_both_weights_alike_and_sgd_does_not(measured: dict[str, Any]) -> None:
    sizes = measured["sizes"]
    assert sizes["rprop_difference"] == 0
    assert sizes["rprop_left"][0] == sizes["rprop_left"][1] < 1e-5
    # 1000 - 1e-7 is rounded at 1e-13, a millionth of the move.
    assert sizes["sgd_ratio"] == pytest.approx(1e9, rel=1e-6)
    assert sizes["sgd_left"][0] > 999.99
    assert sizes["sgd_left"][1] == pytest.approx(1000 * 0.9**150)
    assert sizes["sgd_first_moves"][1] == pytest.approx([100, 1e11])


def test_rprop_meets_both_bounds_of_its_step_size(measured: dict[str, Any]) -> None:
    moves = measured["sizes"]["rprop_moves"]
    assert moves == {"first": pytest.approx(0.01), "largest": 50, "smallest": pytest.approx(1e-6, rel=1e-9)}


def test_gradients_that_cancel_move_rprop_but_not_sgd(measured: dict[str, Any]) -> None:
    batches = measured["mini_batches"]
    assert sum(batches["gradients"]) == pytest.approx(0, abs=1e-15)
    assert batches["drift"]["SGD"] == pytest.approx(0, abs=1e-15)
    assert batches["drift"]["Rprop"] == pytest.approx(-8 * 0.001 * batches["cycles"])
    assert batches["drift_over_travel"]["Rprop"] == pytest.approx(0.8)


@pytest.mark.parametrize("alpha", [0.9, 0.99, 0.999])
def test_rmsprop_keeps_the_drift_that_its_equation_says(measured: dict[str, Any], alpha: float) -> None:
    batches = measured["mini_batches"]
    square_avg, moves = 0.09, []
    for grad in itertools.islice(itertools.cycle(batches["gradients"]), 10 * batches["cycles"]):
        square_avg = alpha * square_avg + (1 - alpha) * grad**2
        moves.append(-3e-3 * grad / (math.sqrt(square_avg) + 1e-8))
    share = abs(sum(moves)) / sum(map(abs, moves))
    assert batches["drift_over_travel"][f"RMSprop, alpha {alpha}"] == pytest.approx(share, rel=1e-9)
    assert share < 1.5 * (1 - alpha)  # it fades with 1 - alpha


def test_only_sgd_has_to_crawl_down_the_ravine(measured: dict[str, Any]) -> None:
    point = measured["condition_and_saddle"]
    # Each step of SGD leaves 999/1001 of the distance, which is sqrt(2) at first and is to be 0.1.
    sgd = math.ceil(math.log(0.1 / math.sqrt(2)) / math.log(999 / 1001))
    assert point["ravine_steps"] == {"SGD": sgd, "Adagrad": 251, "RMSprop": 20, "Adam": 22}


def test_no_divisor_of_single_weights_helps_in_a_turned_ravine(measured: dict[str, Any]) -> None:
    turned = measured["condition_and_saddle"]["diagonal_ravine_steps"]
    assert turned["SGD"] == measured["condition_and_saddle"]["ravine_steps"]["SGD"]
    assert turned["Adagrad"] is None
    assert min(turned["RMSprop"], turned["Adam"]) > 1000


def test_only_sgd_waits_longer_the_nearer_to_the_ridge(measured: dict[str, Any]) -> None:
    steps = measured["condition_and_saddle"]["saddle_steps"]
    assert steps == {"SGD": [16, 33], "Adagrad": [18, 18], "RMSprop": [4, 4], "Adam": [11, 11]}


def test_adagrad_slows_for_ever_and_rmsprop_does_not(measured: dict[str, Any]) -> None:
    point = measured["condition_and_saddle"]
    steps, lr = point["slope_steps"], point["lr"]
    assert point["last_move_over_lr"]["Adagrad"] == pytest.approx(1 / math.sqrt(steps))
    assert point["last_move_over_lr"]["RMSprop"] == pytest.approx(1)
    way = lr * (1 / np.sqrt(np.arange(1, steps + 1))).sum()
    assert point["travelled"]["Adagrad"] == pytest.approx(way)
    assert point["travelled"]["RMSprop"] == pytest.approx(lr * steps, rel=1e-3)


# What is printed -----------------------------------------------------------------------------------------------


def test_text_tells_the_numbers_measured(text: str, measured: dict[str, Any]) -> None:
    assert f"=> SGD's first moves are {measured['sizes']['sgd_ratio']:.4g} times apart; " in text
    assert "the two paths under Rprop differ by 0." in text
    assert "=> The net drift is 80% of the path of Rprop, 13% of that of RMSprop, and 0.1% with alpha 0.999." in text
    assert "=> After 10000 gradients of 1 Adagrad's step is 0.01 lr" in text
    for name, drift in measured["mini_batches"]["drift"].items():
        assert f"{name:22}{drift:>12.2g}" in text


def test_text_is_plain_and_fits_a_screen(text: str) -> None:
    lines = text.splitlines()
    assert text.isascii()
    assert all(line.isprintable() and len(line) <= 100 for line in lines)
    assert len(lines) <= 45


def test_without_matplotlib_text_and_numbers_still_come(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert explain() == text


# Figures ---------------------------------------------------------------------------------------------------


@pytest.mark.once  # the numbers in them are those of the tests above
def test_out_writes_three_figures(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    image = pytest.importorskip("matplotlib.image")
    out = tmp_path / "new" / "figures"
    settings = dict(matplotlib.rcParams)
    printed = json.loads(explain("--json", "--out", str(out)))
    names = ["1_sizes.png", "2_mini_batches.png", "3_condition_and_saddle.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert printed["figures"] == [str(out / name) for name in names]
    for name in names:
        pixels = image.imread(out / name)[..., :3]
        height, width, _ = pixels.shape
        assert width == 2100
        assert height > 900
        assert 0.5 < (pixels == 1).all(axis=2).mean() < 0.97  # neither empty nor full
    assert dict(matplotlib.rcParams) == settings


# Failures --------------------------------------------------------------------------------------------------


def test_out_without_matplotlib_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["explain", "--out", str(tmp_path / "figures")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("proptim explain: --out draws with matplotlib, which cannot be imported")
    assert "pip install 'proptim[demo]'" in printed.err
    assert not (tmp_path / "figures").exists()


def test_out_refuses_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "file"
    file.touch()
    assert main(["explain", "--out", str(file)]) == 1
    assert capsys.readouterr() == (
        "",
        f"proptim explain: --out {file} is a file; expected a directory, new or existing\n",
    )


@pytest.mark.parametrize("args", [["--out"], ["--figures"], ["sizes"]])
def test_usage_errors(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["explain", *args])
    assert exit_.value.code == 2
    assert capsys.readouterr().out == ""
