"""The pages in docs/: examples run, the tables of other libraries are true, and every optimizer gets its page."""

from __future__ import annotations

import importlib.util
import inspect
import math
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import proptim
from proptim._options import Options
from proptim.schedules import constant

DOCS = Path(__file__).parents[1] / "docs"
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not (DOCS / "start.md").is_file(), reason="no docs/ beside tests/"),
]

# Examples ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [
        "index",
        "start",
        "averages",
        "migrate",
        "embed/arrays",
        "embed/loops",
        "embed/offload",
        "embed/scipy",
        "embed/sklearn",
        "embed/torch",
    ],
)
def test_examples(page, tmp_path, monkeypatch, capsys):
    """The Python blocks of a page run one after the other, and print what stands in the text block right after them."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page}
    blocks = list(re.finditer(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", text, re.MULTILINE | re.DOTALL))
    assert blocks
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        code, printed = block.groups()
        try:
            exec(compile("\n" * line + code, f"docs/{page}.md", "exec"), namespace)  # errors name the page's line
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("proptim"):
                raise
            pytest.skip(f"{error.name} is not installed")
        assert capsys.readouterr().out == (printed or ""), f"docs/{page}.md, line {line + 1}"


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((DOCS / "gallery").glob("plot_*.py")), ids=lambda path: path.stem)
def test_gallery(script, monkeypatch):
    """Every script of the gallery runs alone and draws."""
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("agg")
    try:
        runpy.run_path(str(script))
        assert plt.get_fignums()
    finally:
        plt.close("all")


# Pages of optimizers -------------------------------------------------------------------------------------------------


def registry_pages():
    """The module that writes them."""
    spec = importlib.util.spec_from_file_location("registry_pages", DOCS / "_ext" / "registry_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "cls"), proptim.OPTIMIZERS.items(), ids=proptim.OPTIMIZERS)
def test_page_of_optimizer(name, cls):
    """Its page has its docstring, its picture, each hyperparameter with its default, and what its state takes; and
    choose.md says when to take it."""
    module = registry_pages()
    pages = module.pages()
    page = pages[f"optimizers/{name}.rst"]
    assert f".. autoclass:: proptim.{cls.__name__}\n" in page
    assert f"plot_paths_{list(proptim.OPTIMIZERS).index(name) + 2:03d}.png" in page
    for key, parameter in inspect.signature(cls).parameters.items():
        if key not in ("params", "options"):
            assert f"``{key}``\n     - ``{parameter.default!r}``\n" in page
    for array in cls.states:
        assert f"``{array}``" in page
    made = proptim.functional.__dict__[name].init(np.zeros(1, np.float32))
    assert f"\n     - {sum(array.nbytes for array in made.values())} bytes a weight in float32" in page
    assert f"\n   {name}\n" in pages["optimizers/index.rst"]
    assert f"(optimizers/{name}.rst)" in (DOCS / "choose.md").read_text(encoding="utf-8")
    assert f"autofunction:: proptim.functional.{name}\n" in pages["api/functional.rst"]
    assert module.headline(cls)


@pytest.mark.parametrize(("name", "cls"), proptim.OPTIMIZERS.items(), ids=proptim.OPTIMIZERS)
def test_hyperparameters_that_take_schedules(name, cls):
    """The pages say rightly which hyperparameters may be schedules."""
    for key, default, may in registry_pages().hyperparameters(cls):
        value = eval(default)
        if may == "yes":
            schedule = tuple(map(constant, value)) if isinstance(value, tuple) else constant(value)
            cls([np.zeros(1)], **{key: schedule}).step([np.ones(1)])
        elif isinstance(value, float) and not key.startswith("initial_"):
            assert key in cls.fixed


def test_reference_is_complete():
    """Every public name has its place in the reference."""
    texts = [page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.rst")]
    text = "\n".join([*texts, *registry_pages().pages().values()])
    for name in proptim.__all__:
        if name != "__version__":
            assert re.search(rf"^\.\. auto\w+:: proptim\.{name}\b", text, re.MULTILINE), name


def test_options_are_described():
    """The docstring of Optimizer has every option."""
    described = re.findall(r"^(\w+) : ", inspect.cleandoc(proptim.Optimizer.__doc__), re.MULTILINE)
    assert set(Options.__annotations__) <= set(described)


# Tables of migrate.md: a call there, a call here ----------------------------------------------------------------------

LR = 0.05


def tables():
    """(library, call there, call here) of every row."""
    text = (DOCS / "migrate.md").read_text(encoding="utf-8") if (DOCS / "migrate.md").is_file() else ""
    for table in re.finditer(r"^\| (\S+) \| proptim \|\n\|---\|---\|\n((?:\|.*\n)+)", text, re.MULTILINE):
        for there, here in re.findall(r"^\| `(.+?)` \| `(.+?)` \|$", table[2], re.MULTILINE):
            yield table[1], there, here


def sgd(lr, momentum=0.0):
    def update(p, g, s, t):
        s["b"] = momentum * s.get("b", 0.0) + lr * g  # with a constant lr it does not matter where lr is
        return p - s["b"]

    return update


def rmsprop(lr, rho, eps, first=0.0):
    def update(p, g, s, t):
        s["v"] = rho * s.get("v", first) + (1 - rho) * g**2
        return p - lr * g / np.sqrt(s["v"] + eps)

    return update


def adagrad(lr, first, eps):
    def update(p, g, s, t):
        s["sum"] = s.get("sum", first) + g**2
        return p - lr * g / np.sqrt(s["sum"] + eps)

    return update


def adadelta(lr, rho, eps):
    def update(p, g, s, t):
        s["v"] = rho * s.get("v", 0.0) + (1 - rho) * g**2
        u = s.get("u", 0.0)
        d = np.sqrt(u + eps) * g / np.sqrt(s["v"] + eps)
        s["u"] = rho * u + (1 - rho) * d**2
        return p - lr * d

    return update


def averages(g, s, b1=0.9, b2=0.999):
    s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g**2
    return s["m"], s["v"]


def adam_hat(lr, eps, decay=0.0):
    """Keras and TensorFlow: eps beside the root that is not corrected."""

    def update(p, g, s, t):
        p = p - p * decay * lr
        m, v = averages(g, s)
        alpha = lr * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        return p - m * alpha / (np.sqrt(v) + eps)

    return update


def adam(lr, decay=0.0):
    """optax."""

    def update(p, g, s, t):
        m, v = averages(g, s)
        return p - lr * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * p)

    return update


def nadam_keras(lr=1e-3, eps=1e-7):
    def update(p, g, s, t):
        m, v = averages(g, s)
        u, u_next = (0.9 * (1 - 0.5 * 0.96**i) for i in (t, t + 1))
        s["product"] = s.get("product", 1.0) * u
        ahead = u_next * m / (1 - s["product"] * u_next) + (1 - u) * g / (1 - s["product"])
        return p - lr * ahead / (np.sqrt(v / (1 - 0.999**t)) + eps)

    return update


def nadam_optax(lr):
    def update(p, g, s, t):
        m, v = averages(g, s)
        ahead = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
        return p - lr * ahead / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

    return update


def lion(lr, decay=0.0):
    def update(p, g, s, t):
        m = s.get("m", 0.0)
        s["m"] = 0.99 * m + 0.01 * g
        return p - lr * (np.sign(0.9 * m + 0.1 * g) + decay * p)

    return update


# From the sources of Keras 3.15, optax 0.2.8, tf.compat.v1.train and timm 1.0: their defaults, their equations.
EQUATIONS = {
    "keras.optimizers": {
        "SGD()": sgd(0.01),
        "RMSprop()": rmsprop(1e-3, 0.9, 1e-7),
        "Adagrad()": adagrad(1e-3, 0.1, 1e-7),
        "Adadelta()": adadelta(1e-3, 0.95, 1e-7),
        "Adam()": adam_hat(1e-3, 1e-7),
        "AdamW()": adam_hat(1e-3, 1e-7, decay=4e-3),
        "Nadam()": nadam_keras(),
        "Lion()": lion(1e-3),
    },
    "optax": {
        "sgd(lr)": sgd(LR),
        "rmsprop(lr)": rmsprop(LR, 0.9, 1e-8),
        "adagrad(lr)": adagrad(LR, 0.1, 1e-7),
        "adadelta(lr)": adadelta(LR, 0.9, 1e-6),
        "adam(lr)": adam(LR),
        "adamw(lr)": adam(LR, decay=1e-4),
        "nadam(lr)": nadam_optax(LR),
        "lion(lr)": lion(LR, decay=1e-3),
    },
    "tf.compat.v1.train": {
        "GradientDescentOptimizer(lr)": sgd(LR),
        "MomentumOptimizer(lr, 0.9)": sgd(LR, 0.9),
        "RMSPropOptimizer(lr)": rmsprop(LR, 0.9, 1e-10, first=1.0),
        "AdagradOptimizer(lr)": adagrad(LR, 0.1, 0.0),
        "AdadeltaOptimizer()": adadelta(1e-3, 0.95, 1e-8),
        "AdamOptimizer()": adam_hat(1e-3, 1e-8),
    },
    "timm.optim": {
        "RMSpropTF(params)": rmsprop(1e-2, 0.9, 1e-10, first=1.0),
        "Lion(params)": lion(1e-4),
    },
}


@pytest.mark.parametrize(("library", "there", "here"), [*tables()], ids=lambda text: text.partition("(")[0])
def test_moved_run(library, there, here):
    """Thirty steps of the call on the right are those of the library's call on the left."""
    rng = np.random.default_rng(4)
    start, grads = rng.standard_normal(50), rng.standard_normal((30, 50))
    mine = start.copy()
    names = {"params": [mine], "lr": LR, "presets": proptim.presets, **vars(proptim)}
    opt = eval(here, names)
    if library == "torch.optim":
        torch = pytest.importorskip("torch")
        tensor = torch.tensor(start)
        reference = eval(there, {"params": [tensor], **vars(torch.optim)})
    else:
        update, state, p = EQUATIONS[library][there], {}, start
    for t, g in enumerate(grads, start=1):
        opt.step([g])
        if library == "torch.optim":
            tensor.grad = torch.tensor(g)
            reference.step()
            p = tensor.numpy()
        else:
            p = update(p, g, state, t)
    # torch keeps NAdam's product in float32; everywhere else a step may differ in its last places
    bound = 1e-6 if here.startswith("NAdam") and library == "torch.optim" else 30 * 4 * 2.0**-53
    assert np.abs(mine - p).max() <= bound * max(1.0, np.abs(p).max(), np.abs(p - start).max())
    assert np.abs(p - start).max() > 1e-6, "something has moved"


def test_every_row_is_tested():
    """The page and the equations have the same rows; what is not named of torch has our defaults, and our names."""
    rows = {(library, there) for library, there, _ in tables() if library != "torch.optim"}
    assert rows == {(library, there) for library, calls in EQUATIONS.items() for there in calls}
    torch = pytest.importorskip("torch")
    shared = {there.partition("(")[0] for library, there, _ in tables() if library == "torch.optim"}
    for cls in proptim.OPTIMIZERS.values():
        theirs = getattr(torch.optim, cls.__name__, None)
        if theirs is not None and cls.__name__ not in shared:
            known = inspect.signature(theirs).parameters
            defaults = {k: v for k, v in cls.hyper.items() if k in known}
            assert {k: known[k].default for k in defaults} == defaults, cls.__name__


def test_presets_in_words():
    """The table of the five RMSprops says what the presets are."""
    text = (DOCS / "migrate.md").read_text(encoding="utf-8")
    cells = (r"\w+", r"\S+|required", r"\S+", r"\S+", "inside|outside", r"\d", "yes|no", r"\w+")
    row = " ".join(rf"\| ({cell})" for cell in cells)
    rows = re.findall(rf"^{row} \|$", text, re.MULTILINE)
    shown = {}
    for name, lr, alpha, eps, place, first, inside, decay in rows:
        shown[name] = {
            **({} if lr == "required" else {"lr": float(lr)}),
            "alpha": float(alpha),
            "eps": float(eps),
            **({"eps_inside_sqrt": True} if place == "inside" else {}),
            **({"initial_square_avg": 1.0} if first == "1" else {}),
            **({"lr_in_momentum": True} if inside == "yes" else {}),
            **({"decoupled_weight_decay": True} if decay == "decoupled" else {}),
        }
    assert shown == proptim.presets.rmsprop


def test_numbers_of_the_traps():
    """What migrate.md and choose.md say of first steps and of eps."""
    for alpha, said in ((0.9, 3.2), (0.99, 10)):
        w = np.zeros(1)
        proptim.RMSprop([w], lr=1.0, alpha=alpha).step([np.ones(1)])
        assert math.isclose(-w[0], said, rel_tol=0.02)
    assert math.isclose(1e-7 / math.sqrt(1 - 0.999), 3e-6, rel_tol=0.1)
