"""Schedules of torch, Keras and optax compared step by step with their translations in docs/migrate.md."""

from __future__ import annotations

import importlib
import math
import re
import warnings
from pathlib import Path

import pytest

from proptim import schedules

PAGE = Path(__file__).parents[1] / "docs/migrate.md"
STEPS = 101


def tables():
    """(library, call there, call here) of every row."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    for table in re.finditer(r"^\| (\S+) \| proptim.schedules \|\n\|---\|---\|\n((?:\|.*\n)+)", text, re.MULTILINE):
        for there, here in re.findall(r"^\| `(.+?)` \| `(.+?)` \|$", table[2], re.MULTILINE):
            yield table[1], there, here


ROWS = list(tables())


def polynomial(start, end, power, steps):
    return lambda t: (start - end) * (1 - min(t, steps) / steps) ** power + end


def cosine(start, steps, alpha=0.0):
    return lambda t: start * ((1 - alpha) * 0.5 * (1 + math.cos(math.pi * min(t, steps) / steps)) + alpha)


def exponential(start, steps, rate, staircase=False):
    return lambda t: start * rate ** (t // steps if staircase else t / steps)


def keras_cosine(start, steps, alpha=0.0, warmup_target=None, warmup_steps=0):
    if warmup_target is None:
        return cosine(start, steps, alpha)
    after = cosine(warmup_target, steps, alpha)
    rise = warmup_target - start
    return lambda t: start + rise * t / warmup_steps if t < warmup_steps else after(t - warmup_steps)


def keras_restarts(start, first):
    """With the defaults of t_mul 2, m_mul 1 and alpha 0."""

    def value(t):
        i = math.floor(math.log2(1 - t / first * (1 - 2)))
        done = (t / first - (2**i - 1)) / 2**i
        return start * 0.5 * (1 + math.cos(math.pi * done))

    return value


def one_cycle(steps, peak):
    """With the defaults of optax, which are torch's."""
    begin, end, top = peak / 25, peak / 25e4, 0.3 * steps

    def value(t):
        low, share = (begin, t / top) if t < top else (end, 1 - min(1, (t - top) / (steps - top)))
        return low + (peak - low) * 0.5 * (1 - math.cos(math.pi * share))

    return value


def joined(parts, boundaries):
    def value(t):
        i = sum(t >= boundary for boundary in boundaries)
        return parts[i](t - ([0, *boundaries][i]))

    return value


def pieces(boundaries, values):
    return lambda t: values[sum(t > boundary for boundary in boundaries)]


def scaled(start, factors):
    return lambda t: start * math.prod(factor for boundary, factor in factors.items() if t >= boundary)


def warmed(first, peak, rise, steps, end):
    after = cosine(peak, steps - rise, end / peak)
    return lambda t: first + (peak - first) * t / rise if t < rise else after(t - rise)


FORMULAS = {
    "keras.optimizers.schedules": {
        "ExponentialDecay": exponential,
        "PiecewiseConstantDecay": pieces,
        "PolynomialDecay": lambda start, steps, end, power=1.0: polynomial(start, end, power, steps),
        "InverseTimeDecay": lambda start, steps, rate: lambda t: start / (1 + rate * t / steps),
        "CosineDecay": keras_cosine,
        "CosineDecayRestarts": keras_restarts,
    },
    "optax": {
        "constant_schedule": lambda value: lambda t: value,
        "linear_schedule": lambda start, end, steps: polynomial(start, end, 1, steps),
        "polynomial_schedule": polynomial,
        "piecewise_constant_schedule": scaled,
        "exponential_decay": exponential,
        "cosine_decay_schedule": cosine,
        "warmup_cosine_decay_schedule": warmed,
        "cosine_onecycle_schedule": one_cycle,
        "join_schedules": joined,
    },
}
"""What the documentation of each library says of its schedules, for where it is not installed."""


def ours(here):
    schedule = eval(here, vars(schedules) | vars(__import__("builtins")))
    return [schedule(t) for t in range(STEPS)]


@pytest.mark.parametrize(("library", "there", "here"), ROWS, ids=[row[1] for row in ROWS])
def test_rates(library, there, here):
    """Those of torch itself, and of the formulas of Keras and optax."""
    if library == "torch.optim.lr_scheduler":
        torch = pytest.importorskip("torch")
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        with warnings.catch_warnings():  # SequentialLR steps its schedulers before the optimizer
            warnings.simplefilter("ignore")
            scheduler = eval(there, vars(torch.optim.lr_scheduler) | {"opt": optimizer})
            theirs = []
            for t in range(STEPS):
                theirs.append(optimizer.param_groups[0]["lr"])
                if t < STEPS - 1:
                    optimizer.step()
                    scheduler.step()
    else:
        formula = eval(there, dict(FORMULAS[library]))
        theirs = [formula(t) for t in range(STEPS)]
    assert ours(here) == pytest.approx(theirs, rel=1e-12, abs=1e-16)


@pytest.mark.slow
@pytest.mark.parametrize("library", FORMULAS)
def test_rates_of_the_libraries_themselves(library, monkeypatch, tmp_path):
    """They compute in float32: rates agree to seven digits of the greatest."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = importlib.import_module(library)
        except ImportError as error:
            pytest.skip(f"{library}: {error}")
        rows = [row for row in ROWS if row[0] == library]
        assert len(rows) > 5
        for _, there, here in rows:
            schedule = eval(there, dict(vars(module)))
            assert ours(here) == pytest.approx([float(schedule(t)) for t in range(STEPS)], rel=1e-6, abs=1e-8), there


def test_the_tables_are_there():
    if not PAGE.is_file():
        pytest.skip("no docs/ beside tests/: not a checkout")
    assert {row[0] for row in ROWS} == {"torch.optim.lr_scheduler", *FORMULAS}
    mapped = {re.match(r"\w+", there)[0] for _, there, _ in ROWS}
    assert {name for each in FORMULAS.values() for name in each} - mapped == {"constant_schedule"}
