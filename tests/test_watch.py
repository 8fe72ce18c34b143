"""`watch` and its records, `plot`, and an optimizer in a notebook; training stays the same."""

from __future__ import annotations

import builtins
import copy
import csv
import math
import pickle
from html.parser import HTMLParser

import numpy as np
import pytest

import proptim
from proptim import _backend, _watch
from proptim.cli.selftest import OPTIONS

BACKENDS = [name for name, why in _backend.available_backends().items() if not why]
NAMES = list(proptim.OPTIMIZERS)
NORMS = ("grad_norm", "weight_norm", "update_norm")
LOSSES = (3.0, 2.0, 2.5, 1.0, 1.5, 0.5)


def model(dtype=np.float64, seed=0):
    """Two dense parameters, one of many blocks, and a strided one."""
    rng = np.random.default_rng(seed)
    wide = rng.standard_normal((6, 10)).astype(dtype)
    params = {"w": rng.standard_normal((70, 130)).astype(dtype), "b": np.zeros(3, dtype), "s": wide[::2, ::-3]}
    if np.dtype(dtype).kind == "c":
        for p in params.values():
            p += 1j * rng.standard_normal(p.shape)
    return params


def gradients(params, steps=6, seed=1):
    """A list for each step."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(steps):
        grads = [rng.standard_normal(p.shape).astype(p.dtype) for p in params.values()]
        if grads[0].dtype.kind == "c":
            grads = [g * np.exp(1j * rng.uniform(0, 6, g.shape)).astype(g.dtype) for g in grads]
        made.append(grads)
    return made


def columns(watch):
    """All that was seen, to be compared bit for bit."""
    return {key: {name: (a.shape, a.tobytes()) for name, a in seen.items()} for key, seen in watch.items()}


def bits(params):
    return [p.tobytes() for p in params.values()]


def run(name, watched, dtype=np.float64, way="step", **options):
    """The parameters and the watch after six steps."""
    params = model(dtype)
    opt = proptim.OPTIMIZERS[name](params, **options)
    watch = opt.watch() if watched else None
    for grads, loss in zip(gradients(params), LOSSES, strict=True):
        if way == "step":
            opt.step(grads, loss=loss)
        else:
            for key, grad in zip(params, grads, strict=True):
                opt.step_param(key, grad)
    return params, watch, opt


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("name", NAMES)
def test_rows(name, dtype):
    """Norms are those of NumPy, for every rule and option set, and the bits of training those without a watch."""
    for options in OPTIONS[name]:
        plain, _, _ = run(name, False, dtype, **options)
        params, watch, _ = run(name, True, dtype, **options)
        assert bits(params) == bits(plain)
        params = model(dtype)
        opt = proptim.OPTIMIZERS[name](params, **options)
        for i, (grads, loss) in enumerate(zip(gradients(params), LOSSES, strict=True)):
            before = copy.deepcopy(params)
            opt.step(grads, loss=loss)
            for key, grad in zip(params, grads, strict=True):
                seen = {column: array[i] for column, array in watch[key].items() if column != "edges"}
                assert seen["step"] == i + 1
                wide = [a.astype(np.complex128) for a in (grad, params[key], params[key] - before[key])]
                expected = [math.sqrt((np.abs(a) ** 2).sum()) for a in wide]
                assert [seen[norm] for norm in NORMS] == pytest.approx(expected, rel=1e-6)
                assert seen["ratio"] == seen["update_norm"] / seen["weight_norm"]
                assert ("turned" in seen) == ("step_sizes" in seen) == (name == "rprop")


@pytest.mark.once
@pytest.mark.parametrize("name", ["rprop", "adam"])
def test_same_numbers_everywhere(name):
    """The same bits on every backend, number of threads and way to step."""
    options = {"lr": 0.1, "weight_decay": 0.1, "clip_value": 1.5, "maximize": True}
    _, watch, _ = run(name, True, np.float32, backend="numpy", **options)
    expected = columns(watch)
    for backend in BACKENDS:
        for threads in (1, 3):
            for way in ("step", "step_param"):
                _, watch, _ = run(name, True, np.float32, way, backend=backend, threads=threads, **options)
                assert columns(watch) == expected, (backend, threads, way)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("variant", ["rprop-", "irprop-", "rprop+", "irprop+"])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 3.0, "clip_value": 0.5, "maximize": True}], ids=["", "all"])
def test_rprop(variant, options, dtype):
    """Changed signs and step sizes, compared with the state before and after each step."""
    params = model(dtype)
    opt = proptim.Rprop(params, lr=1e-2, variant=variant, **options)
    watch = opt.watch()
    real = np.zeros(0, dtype).real.dtype.type
    turned_once = False
    for i, (grads, loss) in enumerate(zip(gradients(params), LOSSES, strict=True)):
        grads[2][0] = 0
        last = {key: opt.state[key]["prev"].copy() for key in params}
        before = copy.deepcopy(params)
        opt.step(grads, loss=loss)
        for key, grad in zip(params, grads, strict=True):
            g, w, prev = (
                np.stack([a.real, a.imag]) if a.dtype.kind == "c" else a for a in (grad, before[key], last[key])
            )
            if options:
                g = np.clip(-g, real(-0.5), real(0.5)) + real(3) * w
            share = (np.sign(g) * prev < 0).mean()
            assert watch[key]["turned"][i] == share
            turned_once = turned_once or 0 < share < 1
            size = opt.state[key]["step_size"]
            sizes = np.stack([size.real, size.imag]).ravel() if size.dtype.kind == "c" else size.ravel()
            edges, counts = watch[key]["edges"], watch[key]["step_sizes"][i]
            bins = np.searchsorted(edges, sizes, side="right") - 1
            assert counts.tolist() == np.bincount(bins, minlength=len(edges) - 1).tolist()
            shares = (0.0, 0.1, 0.5, 1.0)
            exact = np.quantile(sizes, shares, method="inverted_cdf")
            assert watch.quantiles(key, shares)[i] == pytest.approx(exact, rel=0.05)
    assert turned_once


def test_edges():
    """Eighths of an octave over all legal step sizes, both ends among them."""
    for dtype in (np.float32, np.float64):
        sizes = np.array([2.0**-50, 2.0**-50 * 1.08, 1.0, 1.5, 2.0**37, 2.0**37 * 2.0**90, 2.0**-50 * 2.0**90], dtype)
        counts = _watch.count_sizes(np.concatenate([sizes, -sizes[:5]]))
        assert {i: n for i, n in enumerate(counts.tolist()) if n} == {0: 5, 400: 2, 404: 2, 696: 3}
    rows = [_watch.Row(1, 0.0, 0.0, 0.0, 0.0, *_watch.trimmed(np.ones(_watch.OCTAVES * 8, np.int64)))]
    edges = _watch.histogram(rows)["edges"]
    assert (edges[0], edges[-1]) == (2.0**-50, 2.0**38)
    assert abs(np.log2(edges) * 8 - np.arange(-400, 305)).max() < 0.07


def test_every():
    """Each k-th step as `steps` counts, in a resumed run too; a refused, skipped or stopped one leaves no row."""
    params = model()
    opt = proptim.Rprop(params, nonfinite="skip")
    watch = opt.watch(every=3)
    grads = gradients(params, 1)[0]
    bad = [g.copy() for g in grads]
    bad[0][0, 0] = np.nan
    for _ in range(7):
        opt.step(grads)
        opt.step(bad)
        with pytest.raises(ValueError, match="grads has 2 arrays"):
            opt.step(grads[:2])
    assert opt.skipped == 7
    assert watch["w"]["step"].tolist() == [3, 6]
    opt.nonfinite = "raise"
    other = proptim.Rprop(model())
    other.load_state_dict(opt.state_dict())
    resumed = other.watch(every=3)
    for optimizer in (opt, other):
        optimizer.step(grads)
        with pytest.raises(FloatingPointError):
            opt.step(bad)
        optimizer.step(grads)
    assert watch["b"]["step"].tolist() == [3, 6, 9]
    assert resumed["b"]["step"].tolist() == [9]
    assert {key: seen["turned"][-1] for key, seen in watch.items()} == {k: s["turned"][0] for k, s in resumed.items()}
    watch.stop()
    for _ in range(6):
        opt.step(grads)
    assert watch["b"]["step"].tolist() == [3, 6, 9]
    again = opt.watch()
    opt.step(grads)
    assert again["s"]["step"].tolist() == [16]
    assert repr(again) == "Watch(every step, 3 parameters, 3 rows)"
    assert repr(watch) == "Watch(stopped, 3 parameters, 9 rows)"
    assert repr(resumed) == "Watch(every 3 steps, 3 parameters, 3 rows)"


@pytest.mark.parametrize("every", [0, -1, 1.5, True, None, "2"])
def test_every_refused(every):
    opt = proptim.SGD([np.zeros(1)], lr=0.1)
    watch = opt.watch()
    with pytest.raises(ValueError, match=r"expected a whole number of at least 1"):
        opt.watch(every)
    opt.step([np.ones(1)])
    assert watch[0]["step"].tolist() == [1]


def test_gradients_that_change_and_are_missing():
    """Scaled as for `grad_norm`; zeroed ones were seen before; none means no row."""
    w, b = np.array([3.0, 4.0]), np.zeros(2)
    opt = proptim.SGD(
        [{"params": [w]}, {"params": [b], "lr": 1.0}], lr=0.5, grad_scale=0.5, clip_norm=1.0, zero_grads=True
    )
    watch = opt.watch()
    grad = np.array([6.0, 8.0])
    opt.step([grad, None])
    assert not grad.any()
    assert (watch[0]["grad_norm"].tolist(), opt.grad_norm) == ([5.0], 5.0)
    assert watch[0]["update_norm"] == pytest.approx([0.5])
    with pytest.raises(KeyError, match=r"there is no record of a parameter 1; expected one of: \[0\]"):
        watch[1]
    opt.remove_param_group(0)
    opt.step([np.zeros(2)])
    assert watch[0]["step"].tolist() == [1, 2]
    assert watch[0]["ratio"].tolist()[1:] == pytest.approx([math.nan], nan_ok=True)


def test_copies():
    """A copy and a pickle of an optimizer are not watched; a watch can be copied and pickled by itself."""
    for take in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        params = model()
        opt = proptim.Rprop(params)
        watch = opt.watch(every=2)
        opt.step(gradients(params, 1)[0])
        other = take(opt)
        opt.step()
        other.step()
        assert watch["w"]["step"].tolist() == [2]
        again = take(watch)
        assert columns(again) == columns(watch)
        assert again.every == 2
    with pytest.raises(TypeError, match="take a copy"):
        watch["w"]["turned"] = 1


def test_csv(tmp_path):
    """Every number comes back as it was; a failure leaves the file that was there."""
    params = model(np.float32)
    opt = proptim.Rprop(params)
    watch = opt.watch()
    for grads in gradients(params, 3):
        opt.step(grads)
    path = tmp_path / "watch.csv"
    path.write_text("old")
    watch.save(path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["parameter"], row["step"]) for row in rows] == [(key, str(i)) for key in params for i in (1, 2, 3)]
    for key in params:
        mine, seen = [row for row in rows if row["parameter"] == key], watch[key]
        for name in (*NORMS, "ratio", "turned"):
            assert [float(row[name]) for row in mine] == seen[name].tolist()
        for counts, row in zip(seen["step_sizes"], mine, strict=True):
            used = {f"size {edge:.6g}": n for edge, n in zip(seen["edges"], counts.tolist(), strict=False) if n}
            assert {name: int(n) for name, n in row.items() if name.startswith("size") and n != "0"} == used
    with pytest.raises(OSError, match="nowhere"):
        watch.save(tmp_path / "nowhere" / "x.csv")
    opt = proptim.SGD([np.ones(1)], lr=0.5)
    watch = opt.watch()
    opt.step([np.ones(1)])
    watch.save(path)
    assert path.read_text() == "parameter,step,grad_norm,weight_norm,update_norm,ratio\n0,1,1.0,0.5,0.5,1.0\n"
    with pytest.raises(KeyError, match="no step sizes of parameter 0; expected one that Rprop steps"):
        watch.quantiles(0)
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("shares", [[2.0], [-0.1], 0.5, [math.nan]])
def test_quantiles_refused(shares):
    opt = proptim.Rprop([np.ones(1), np.ones(0)])
    watch = opt.watch()
    opt.step([np.ones(1), np.ones(0)])
    with pytest.raises(ValueError, match="expected a sequence of numbers from 0 to 1"):
        watch.quantiles(0, shares)
    assert np.isnan(watch.quantiles(1)).all()


def test_plot(tmp_path, monkeypatch):
    """A panel for each recorded quantity, a line for each parameter."""
    params = model(np.float32)
    opt = proptim.Rprop(params)
    watch = opt.watch()
    with pytest.raises(ValueError, match="has recorded no step; expected at least one"):
        proptim.plot(watch)
    for grads in gradients(params, 3):
        opt.step(grads)
    pytest.importorskip("matplotlib").use("agg")
    figure = proptim.plot(watch, tmp_path / "x.png")
    assert len(figure.axes) == 5
    for ax, name in zip(figure.axes, ("grad_norm", "weight_norm", "ratio", "turned"), strict=False):
        assert [line.get_ydata().tolist() for line in ax.lines] == [seen[name].tolist() for seen in watch.values()]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert len(proptim.plot(watch, parameters=["b"]).axes[0].lines) == 1
    many = proptim.SGD([np.ones(2) for _ in range(20)], lr=0.1)
    seen = many.watch()
    many.step([np.ones(2)] * 20)
    figure = proptim.plot(seen)
    assert (len(figure.axes), len(figure.axes[0].lines), figure.legends) == (3, 20, [])
    import matplotlib.pyplot as plt

    plt.close("all")
    with pytest.raises(TypeError, match="expected what watch"):
        proptim.plot(opt)
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError("none here")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"cannot be imported \(none here\); install it: pip install matplotlib"):
        proptim.plot(watch)


class Balance(HTMLParser):
    """Which elements are open, and all text."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html():
    """A notebook shows groups, hyperparameters, state and bytes; nothing in it is taken for HTML."""
    w = {"<script>alert(1)</script>": np.zeros((10, 10), np.float32), "b&": np.zeros(10)}
    opt = proptim.Adam([{"params": {k: v}, "note": "<b>" * 100} for k, v in w.items()])
    opt.add_param_group({"params": {f"p{i}": np.zeros(1) for i in range(60)}})
    page = Balance()
    page.feed(opt._repr_html_())
    assert page.open == []
    for text in (
        "Adam",
        "<script>alert(1)</script>",
        "(10, 10)",
        "400",
        "800",
        "exp_avg, exp_avg_sq",
        "b&",
        "and 10 more",
    ):
        assert text in page.text
    assert max(map(len, page.text)) <= 80
    for name in NAMES:
        page = Balance()
        page.feed(proptim.OPTIMIZERS[name]([np.zeros(2)])._repr_html_())
        assert {"group", "parameters of group 0", "weight_decay", *proptim.OPTIMIZERS[name].hyper} <= {*page.text}
