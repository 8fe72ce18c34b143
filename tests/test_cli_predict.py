"""Data of the user end to end: .npz and CSV, classes and numbers, `proptim train`, `proptim predict`, Python."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from archives import npy, packed, unzipped

from proptim.cli import main
from proptim.cli._run import OPTIMIZERS

datasets = pytest.importorskip("sklearn.datasets")
from proptim.sklearn import MLPClassifier, MLPRegressor, load  # noqa: E402

LABELS = {
    "text": np.array(["low", "middle", "high"]),
    "bytes": np.array([b"low", b"middle", b"high"]),
    "numbers": np.array([3, 17, 40]),
    "small": np.array([0, 2, 9], np.uint8),
    "two": np.array(["no", "yes", "yes"]),
    "bool": np.array([False, True, True]),
    "umlauts": np.array(["klein", "größer", 'am größten, "quoted"']),
}


def clouds(n=90, seed=0):
    """Features whose sizes and means differ by orders of magnitude, and the cluster of each sample, one of three."""
    which = np.arange(n) % 3
    x = np.random.default_rng(seed).standard_normal((n, 3)) + 4 * which[:, None]
    return x * [1e-3, 1.0, 1e4] + [5.0, 0.0, 1e5], which


def curve(n=120, seed=0):
    x = np.random.default_rng(seed).uniform(-1, 1, (n, 2))
    return x * [1.0, 50.0] + [2000.0, 0.0], 1e4 + 300 * (x[:, 0] + x[:, 1] ** 2)


def write_csv(path, x, y, names=None, delimiter=","):
    rows = [[repr(float(value)) for value in row] for row in x]
    if y is not None:
        rows = [[*row, '"' + str(target).replace('"', '""') + '"'] for row, target in zip(rows, y, strict=True)]
    if names:
        rows.insert(0, names)
    path.write_text("".join(delimiter.join(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def run(capsys, *command, code=0):
    """Standard output of a command."""
    assert main([*map(str, command)]) == code, capsys.readouterr().err
    return capsys.readouterr().out


def trained(capsys, *command):
    (result,) = json.loads(run(capsys, "train", "--hidden", "12", "--json", *command))["results"]
    return result


def refused(capsys, *command):
    assert main([*map(str, command)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return re.sub(r"^proptim \w+: ", "", captured.err)[:-1]


# Train, save, predict -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LABELS)
def test_classes(capsys, tmp_path, kind):
    """Labels of every kind come back as they were, from the command and from Python."""
    x, which = clouds()
    y = LABELS[kind][which]
    data, model, out = tmp_path / "data.npz", tmp_path / "model.npz", tmp_path / "out.npz"
    np.savez(data, x=x, y=y)
    result = trained(capsys, "--data", data, "--save", model, "--epochs", "30", "--lr", "0.01")
    assert (result["task"], result["diverged"]) == ("classification", False)
    assert result["test_accuracy"] > 0.9
    told = run(capsys, "predict", model, "--data", data, "--out", out)
    expected = y.astype(str) if kind == "bytes" else y
    with np.load(out) as found:  # without pickle
        assert re.fullmatch(rf"90 predictions, accuracy (9\d|100)\.\d%, written to {re.escape(str(out))}\n", told)
        assert found["y"].dtype.kind == {"u": "i"}.get(expected.dtype.kind, expected.dtype.kind)
        assert np.mean(found["y"] == expected) > 0.9
        assert found["classes"].tolist() == np.unique(expected).tolist()
        assert found["probabilities"].sum(axis=1) == pytest.approx(1)
        assert (found["classes"][found["probabilities"].argmax(axis=1)] == found["y"]).all()
        estimator = load(model)
        assert isinstance(estimator, MLPClassifier)
        assert (estimator.predict(x) == found["y"]).all()
        assert (estimator.predict_proba(x) == found["probabilities"]).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_numbers(capsys, tmp_path, dtype):
    """A float y is regression, in its own units."""
    x, y = curve()
    data, model, out = tmp_path / "data.npz", tmp_path / "model.npz", tmp_path / "out.csv"
    np.savez(data, x=x, y=y.astype(dtype))
    result = trained(capsys, "--data", data, "--save", model, "--optimizer", "rprop", "--epochs", "200")
    assert result["task"] == "regression"
    assert result["test_r2"] == result["history"]["test_r2"][-1] > 0.95
    assert "test_accuracy" not in result
    told = run(capsys, "predict", model, "--data", data, "--out", out)
    assert re.fullmatch(rf"120 predictions, R2 0\.9\d\d, written to {re.escape(str(out))}\n", told)
    header, *lines = out.read_text().splitlines()
    assert header == "y"
    estimator = load(model)
    assert isinstance(estimator, MLPRegressor)
    assert [float(line) for line in lines] == estimator.predict(x).tolist()
    assert np.abs(estimator.predict(x) - y).max() < 100
    assert run(capsys, "predict", model, "--data", data).splitlines() == lines


def test_the_title_and_the_table_of_a_regression(capsys, tmp_path):
    x, y = curve()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    title, *_, header, row = run(capsys, "train", "--data", tmp_path / "data.npz", "--hidden", "4").splitlines()
    assert title == "96 training and 24 test samples, regression, perceptron 2-4-1, seed 0"
    assert header.split()[1:3] == ["test", "R2"]
    assert row.split()[0] == "rmsprop"


def test_whole_numbers_as_numbers(capsys, tmp_path):
    x, y = curve()
    np.savez(tmp_path / "data.npz", x=x, y=y.astype(int))
    command = ("--data", tmp_path / "data.npz", "--optimizer", "rprop", "--epochs", "200")
    assert trained(capsys, *command, "--task", "regression")["test_r2"] > 0.95
    np.savez(tmp_path / "data.npz", x=x, y=(y > 1e4).astype(float))
    assert trained(capsys, *command)["task"] == "regression"
    assert trained(capsys, *command, "--task", "classification")["test_accuracy"] > 0.8


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_a_regression(capsys, tmp_path, name):
    """To the bit, from a CSV file, with test samples of their own."""
    x, y = curve(40)
    data = write_csv(tmp_path / "data.csv", x, y, ["a", "b", "y"])
    test = write_csv(tmp_path / "test.csv", *curve(10, seed=1), ["a", "b", "y"])
    whole, part = tmp_path / "whole.npz", tmp_path / "part.npz"
    begin = ("--data", data, "--test", test, "--optimizer", name)
    once = trained(capsys, *begin, "--epochs", "6", "--save", whole)
    trained(capsys, *begin, "--epochs", "2", "--save", part)
    again = ("train", "--data", data, "--test", test, "--resume", part, "--epochs", "6", "--save", part, "--json")
    (resumed,) = json.loads(run(capsys, *again))["results"]
    assert resumed["history"] == once["history"]
    with pytest.warns(UserWarning, match="was fitted with feature names"):  # scikit-learn's, for an array without
        assert load(whole).predict(x).tolist() == load(part).predict(x).tolist()
    assert refused(capsys, "train", "--data", data, "--resume", part, "--epochs", "9") == (
        f"{part} holds a run on other data; give the same --data as then"
    )
    said = refused(capsys, "train", "--data", data, "--resume", part, "--epochs", "9", "--task", "classification")
    assert said == f"{part} holds a run with --task regression, not classification; leave it out"


# Test samples of their own --------------------------------------------------------------------------------------------


def test_test_samples(capsys, tmp_path):
    """All samples of --data are trained on, those of --test only tested."""
    x, which = clouds(30)
    y = LABELS["text"][which]
    data, test = tmp_path / "data.npz", tmp_path / "test.npz"
    np.savez(data, x=x, y=y)
    np.savez(test, x=x[:7], y=y[:7])
    title = run(capsys, "train", "--data", data, "--test", test, "--hidden", "4").splitlines()[0]
    assert title == "30 training and 7 test samples, perceptron 3-4-3, seed 0"
    np.savez(test, x=x[:7], y=np.where(np.arange(7) == 4, "tall", y[:7]))
    assert refused(capsys, "train", "--data", data, "--test", test) == (
        f"--test {test}: y[4] is tall, a class that --data has not; expected one of high, low, middle"
    )
    np.savez(test, x=x[:7, :2], y=y[:7])
    assert refused(capsys, "train", "--data", data, "--test", test) == (
        f"--test {test}: x has 2 features; expected 3, as in training"
    )
    np.savez(test, x=x[:1], y=y[:1])
    assert refused(capsys, "train", "--data", data, "--test", test) == f"--test {test}: 1 samples; expected at least 2"
    assert refused(capsys, "train", "--data", data, "--test", tmp_path / "none.npz").startswith("[Errno 2]")


# CSV ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("names", [None, ["a", "b c", "ä", "species"], ["0", "1", "2", "3"]], ids=str)
def test_csv(capsys, tmp_path, delimiter, names):
    """With and without names, whatever stands between the cells; new data may have their columns in another order."""
    x, which = clouds()
    y = LABELS["umlauts"][which]
    data, model, out = tmp_path / "data.csv", tmp_path / "model.npz", tmp_path / "out.npz"
    write_csv(data, x, y, names, delimiter)
    result = trained(capsys, "--data", data, "--save", model, "--epochs", "30", "--lr", "0.01")
    assert result["test_accuracy"] > 0.9
    told = run(capsys, "predict", model, "--data", data, "--out", out)
    assert re.match(r"90 predictions, accuracy (9\d|100)\.", told)
    expected = np.load(out)["y"].tolist()
    new = write_csv(tmp_path / "new.csv", x, None, names[:3] if names else None, delimiter)  # without targets
    assert run(capsys, "predict", model, "--data", new).splitlines() == expected
    np.savez(tmp_path / "new.npz", x=x)
    assert run(capsys, "predict", model, "--data", tmp_path / "new.npz").splitlines() == expected
    if names and names[0] == "a":
        assert load(model).feature_names_in_.tolist() == ["a", "b c", "ä"]
        turned = write_csv(tmp_path / "turned.csv", x[:, ::-1], y, [*names[2::-1], "species"], delimiter)
        assert run(capsys, "predict", model, "--data", turned).splitlines() == expected
        lacking = write_csv(tmp_path / "lacking.csv", x[:, :2], y, [*names[:2], "species"], delimiter)
        assert refused(capsys, "predict", model, "--data", lacking) == (
            f"--data {lacking}: has no column 'ä'; expected those of the training: a, b c, ä"
        )


def test_csv_targets(capsys, tmp_path):
    """The target is the last column unless it is named; its numbers tell the task."""
    data = tmp_path / "data.csv"
    tasks = {"1,2,0\n3,4,1\n": "classification", "1,2,0.5\n3,4,1\n": "regression", "1,2,x\n3,4,y\n": "classification"}
    for lines, task in tasks.items():
        data.write_text(lines * 10)
        assert trained(capsys, "--data", data)["task"] == task
    data.write_text("\ufeffkind,a,b\n\n" + "x,1,2\ny,3,4\n" * 10, encoding="utf-8")
    assert trained(capsys, "--data", data, "--target", "kind")["task"] == "classification"
    assert trained(capsys, "--data", data, "--target", "kind", "--save", tmp_path / "m.npz")["epochs"] == 20
    assert set(run(capsys, "predict", tmp_path / "m.npz", "--data", data).split()) <= {"x", "y"}


def test_columns_of_test_samples(capsys, tmp_path):
    """By their names, the target too, in whatever order."""
    x, which = clouds()
    data = write_csv(tmp_path / "data.csv", x, which, ["a", "b", "c", "kind"])
    write_csv(tmp_path / "test.csv", x, which, ["a", "b", "c", "kind"])
    turned = tmp_path / "turned.csv"
    rows = (line.split(",") for line in (tmp_path / "test.csv").read_text().splitlines())
    turned.write_text("".join(",".join(row[::-1]) + "\n" for row in rows))
    histories = [trained(capsys, "--data", data, "--test", tmp_path / name)["history"] for name in ("test.csv", turned)]
    assert histories[0] == histories[1]
    np.savez(tmp_path / "test.npz", x=x, y=which)
    assert trained(capsys, "--data", data, "--test", tmp_path / "test.npz")["history"] == histories[0]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ("", (), "holds no line; expected a CSV file with a column for each feature and one for the target"),
        ("a\n1\n2\n", (), "has one column; expected one for each feature and one for the target"),
        ("a,b\n1,2\n3\n", (), "line 3 has 1 cells; expected 2, as in line 1"),
        ("a,a,b\n1,2,3\n", (), "has two columns 'a'; expected names of their own"),
        (
            "kind,a,b\nx,1,2\n",
            (),
            "line 2, column 'kind' holds 'x'; expected a number: encode text as numbers, or drop the column, or "
            "--target kind if that is what to predict",
        ),
        ("1,2,0\n,3,1\n", (), "line 2, column 1 holds ''; expected a number: fill the gap, or drop the line"),
        ("a,b\n1,2\n1,\n", (), "line 3 has no target; expected a number or a class: drop the line"),
        (
            "a,b\n1,2\n1,NA\n",
            (),
            "line 3 has the target 'NA' where others are numbers; expected all numbers or all text",
        ),
        ("a,b\n1,2\n", ("--target", "c"), "has the columns a, b; expected 'c' among them, which --target names"),
        (
            "1,2\n3,4\n",
            ("--target", "c"),
            "has no line with names of columns; expected 'c' among them, which --target names",
        ),
        ("a,b\n" + "nan,0\n" * 20, (), "x[0, 0] is nan; expected finite float32 numbers: drop or correct the sample"),
        ("a,b\n1,2\n1,3\n", (), "2 samples; expected at least 10, a fifth of them for the test"),
        ("a,b\n1,x\n1,y\n", ("--task", "regression"), "y has dtype <U1; expected numbers for --task regression"),
        (
            "a,b\n1,0.5\n1,1\n",
            ("--task", "classification"),
            "y[0] is 0.5; expected whole numbers or text for --task classification",
        ),
    ],
)
def test_csv_refused(capsys, tmp_path, lines, options, message):
    path = tmp_path / "data.csv"
    path.write_text(lines)
    assert refused(capsys, "train", "--data", path, *options) == f"--data {path}: {message}"


def test_csv_that_is_no_text(capsys, tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b"a,b\n1,\xff\n")
    assert refused(capsys, "train", "--data", path).startswith(f"--data {path}: is not UTF-8 text (")
    np.savez(tmp_path / "data.npz", x=np.eye(3), y=np.arange(3))
    assert refused(capsys, "train", "--data", tmp_path / "data.npz", "--target", "y") == (
        f"--data {tmp_path / 'data.npz'}: is no CSV file, so that it has no column 'y'; expected y in it: leave "
        "--target out"
    )


# Files of models ------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(capsys, tmp_path):
    """A model, and data for it."""
    x, which = clouds(30)
    np.savez(tmp_path / "data.npz", x=x, y=which)
    write_csv(tmp_path / "data.csv", x, which, ["a", "b", "c", "y"])
    trained(capsys, "--data", tmp_path / "data.csv", "--save", tmp_path / "model.npz", "--epochs", "1")
    return tmp_path / "model.npz", tmp_path / "data.npz"


def changed(path, change):
    """Rewrite a file with right checksums and changed text."""
    members = unzipped(path.read_bytes())
    text = json.loads(np.load(io.BytesIO(members["rest.npy"])).tobytes())
    change(text)
    members["rest.npy"] = npy(np.frombuffer(json.dumps(text).encode(), np.uint8))
    path.write_bytes(packed(members))


MODELS = [
    {"activation": "eval"}, {"activation": []}, {"activation": None}, {"classes": []}, {"classes": [1, 2]},
    {"classes": [1, 2, 2]}, {"classes": [2, 1, 0]}, {"classes": [0, 1, "x"]}, {"classes": [0, 1, True]},
    {"classes": [0.0, 1.0, 2.0]}, {"classes": [0, 1, 2**63]}, {"classes": "abc"}, {"classes": None}, {"classes": {}},
    {"classes": [[0], [1], [2]]}, {"features": ["a", "b"]}, {"features": ["a", "a", "b"]}, {"features": [1, 2, 3]},
    {"features": "abc"}, {"mean": [0.0]}, {"mean": None}, {"mean": [0.0, 0.0, float("nan")]}, {"mean": ["x"] * 3},
    {"scale": [1.0, 1.0, 0.0]}, {"scale": [1.0, -1.0, 1.0]}, {"scale": [1.0, 1.0, float("inf")]}, {"scale": [1, 1, 1]},
    {"y_mean": None}, {"y_scale": 0.0}, {"y_scale": "x"}, {"more": 1},
]  # fmt: skip


@pytest.mark.parametrize("change", MODELS, ids=str)
def test_hostile_models(capsys, kept, change):
    """A model with a value that none has is refused, by the command, by Python and by --resume."""
    path, data = kept
    changed(path, lambda header: header["model"].update(change))
    said = refused(capsys, "predict", path, "--data", data)
    assert re.fullmatch(
        rf"{re.escape(str(path))} holds no model \(it.*\); expected a file that proptim train --save wrote", said
    ), said
    with pytest.raises(ValueError, match=re.escape(said)):
        load(path)
    said = refused(capsys, "train", "--data", data, "--resume", path, "--epochs", "3")
    assert said.startswith(f"{path} cannot be resumed (it")


@pytest.mark.parametrize("array", [np.zeros((3, 11)), np.zeros(3, np.float32), np.full((3, 12), np.nan, np.float32)])
def test_weights_that_are_no_network(capsys, kept, array):
    path, data = kept
    members = unzipped(path.read_bytes())
    members["state/0/param.npy"] = npy(array)
    path.write_bytes(packed(members))
    said = refused(capsys, "predict", path, "--data", data)
    assert said.startswith(f"{path} holds no model (its "), said


def test_classes_of_others(capsys, tmp_path):
    """Classes that the model does not know are reported, not only counted as errors."""
    x, which = clouds()
    data, model, other = tmp_path / "data.npz", tmp_path / "model.npz", tmp_path / "other.npz"
    np.savez(data, x=x, y=np.array(["a", "b", "c"])[which])
    trained(capsys, "--data", data, "--save", model, "--epochs", "1")
    np.savez(other, x=x, y=np.array(["a", "dog", "cat"])[which])
    told = run(capsys, "predict", model, "--data", other, "--out", tmp_path / "y.npz")
    assert "% (y has classes that the model does not know: cat, dog), written" in told


def test_files_that_are_no_model(capsys, kept, tmp_path):
    path, data = kept
    whole = path.read_bytes()
    assert refused(capsys, "predict", data, "--data", data).startswith(f"{data} holds no model (its first member is ")
    for broken in (b"", b"text", whole[:-1], whole[:-200], whole[: len(whole) // 2], whole[:500] + b"\0" + whole[501:]):
        path.write_bytes(broken)
        assert refused(capsys, "predict", path, "--data", data).startswith(f"{path} holds no model (")
    path.write_bytes(whole)
    changed(path, lambda header: header.pop("model"))
    assert "it holds an optimizer and no model" in refused(capsys, "predict", path, "--data", data)
    assert refused(capsys, "predict", tmp_path / "none", "--data", data).startswith("[Errno 2]")


def test_data_that_do_not_fit(capsys, kept, tmp_path):
    path, data = kept
    for arrays, message in [
        ({"x": np.zeros((3, 2))}, "x has 2 features; expected 3, as in training"),
        ({"x": np.zeros(3)}, "x has shape (3,); expected (samples, features): x.reshape(len(x), -1)"),
        ({"x": np.zeros((3, 3), "U1")}, "x has dtype <U1; expected real numbers: x.astype(np.float32)"),
        (
            {"x": np.diag([0, np.inf, 0])},
            "x[1, 1] is inf; expected finite float32 numbers: drop or correct the sample",
        ),
        ({"x": np.zeros((3, 3)), "y": np.zeros(2)}, "y has shape (2,); expected (3,), or no y"),
        ({"y": np.zeros(2)}, "holds y; expected x: np.savez(path, x=features)"),
    ]:
        np.savez(data, **arrays)
        assert refused(capsys, "predict", path, "--data", data) == f"--data {data}: {message}"
    out = tmp_path / "none" / "out.npz"
    assert refused(capsys, "predict", path, "--data", data, "--out", out) == (
        f"--out {out}: there is no such folder; make it first"
    )
    for out, message in (
        ("out.txt", "argument --out: 'out.txt': expected a name that ends in .npz or .csv"),
        (data, f"--out would overwrite {data}, which --data reads"),
        (path, f"--out would overwrite {path}, which MODEL reads"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["predict", str(path), "--data", str(data), "--out", str(out)])
        assert stop.value.code == 2
        assert capsys.readouterr().err.endswith(f"proptim predict: error: {message}\n")


def test_no_samples(capsys, kept, tmp_path):
    path, data = kept
    np.savez(data, x=np.zeros((0, 3)))
    assert main(["predict", str(path), "--data", str(data)]) == 0
    assert capsys.readouterr() == ("", "0 predictions\n")
    assert run(capsys, "predict", path, "--data", data, "--out", tmp_path / "out.npz").startswith("0 predictions, ")
    with np.load(tmp_path / "out.npz") as found:
        assert (found["y"].shape, found["probabilities"].shape) == ((0,), (0, 3))


@pytest.mark.parametrize("kind", ["text", "numbers"])
def test_the_format_as_it_is_described(capsys, tmp_path, monkeypatch, kind):
    """What docs/checkpoint-format.md reads with NumPy alone is what the command predicts."""
    page = Path(__file__).parents[1] / "docs" / "checkpoint-format.md"
    if not page.is_file():
        pytest.skip("no docs/ beside tests/")
    x, y = datasets.load_iris(return_X_y=True)
    np.savez(tmp_path / "data.npz", x=x, y=LABELS[kind][y])
    trained(capsys, "--data", tmp_path / "data.npz", "--save", tmp_path / "model.npz")
    (block,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    np.savez(tmp_path / "one.npz", x=[[5.1, 3.5, 1.4, 0.2]])
    expected = run(capsys, "predict", tmp_path / "model.npz", "--data", tmp_path / "one.npz")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, page.name, "exec"), {})
    assert capsys.readouterr().out == expected
