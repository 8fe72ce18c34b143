"""A long run: a million steps with changing options leak no memory, and have the bits of the numpy backend."""

from __future__ import annotations

import tracemalloc

import numpy as np
import psutil
import pytest
from conftest import RUN_HERE, default

import proptim
from proptim import schedules
from proptim.cli.selftest import OPTIONS

pytestmark = pytest.mark.once

STEPS = 1_000_000
CHANGE = 200  # steps from one change of options to the next
ROUND = 20_000
CHANGES = [
    {"weight_decay": 0.01},
    {"lr": schedules.linear(2e-3, 1e-4, 1000)},
    {"clip_value": 0.5},
    {"maximize": True},
    {"maximize": False, "decoupled_weight_decay": True},
    {"lr": 1e-3, "clip_value": None},
    {"momentum": 0.5, "amsgrad": True},
    {"momentum": 0.25, "amsgrad": False, "weight_decay": 0.0},
    {"decoupled_weight_decay": False},
]


class Model:
    """A noisy quadratic: its gradient depends on the parameters, so that an error in any step persists."""

    def __init__(self, name, **options):
        rng = np.random.default_rng(0)
        self.p = [rng.standard_normal(5), rng.standard_normal((2, 2))]
        self.g = [np.zeros_like(p) for p in self.p]
        self.noise = rng.standard_normal((64, 5))
        self.opt = proptim.OPTIMIZERS[name](self.p, grads=self.g, **options)
        self.done = 0

    def run(self, steps):
        step, (p, q), (g, h), noise, group = self.opt.step, self.p, self.g, self.noise, self.opt.param_groups[0]
        for k in range(self.done, self.done + steps):
            if k % CHANGE == 0:
                turn = k // CHANGE
                change = CHANGES[turn % len(CHANGES)]
                group.update({key: v for key, v in change.items() if key in group and key not in self.opt.fixed})
                self.opt.clip_norm = 1.0 if turn % 7 == 3 else None
                self.opt.nonfinite = "skip" if turn % 5 == 2 else "propagate"
                self.opt.zero_grads = turn % 4 == 1
                if turn % 6 == 5:
                    step([g, None], loss=1.0)  # the second parameter falls behind
                    step([g, h], loss=1.0)
                if turn % 50 == 49:
                    self.opt.load_state_dict(self.opt.state_dict())
            np.add(p, noise[k & 63], out=g)
            np.multiply(q, 0.5, out=h)
            step(loss=1.0 / (1 + (k & 7)))
        self.done += steps


def bits(model):
    state = [v.tobytes() for entry in model.opt.state.values() for v in entry.values() if isinstance(v, np.ndarray)]
    return [p.tobytes() for p in model.p], state, model.opt.steps, model.opt.skipped


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("where", [param for param in RUN_HERE if param.id != "numpy"])
@pytest.mark.parametrize("name", OPTIONS)
def test_no_drift(name, where, monkeypatch):
    """Every optimizer through all changes of options: the bits of the NumPy text."""
    options = OPTIONS[name][-1]
    oracle = Model(name, **options, backend="numpy")
    with default(monkeypatch, *where) as backend:
        model = Model(name, **options, backend=backend)
        model.run(CHANGE * len(CHANGES))
    oracle.run(CHANGE * len(CHANGES))
    assert bits(model) == bits(oracle)


@pytest.mark.slow
def test_a_million_steps():
    """RMSprop with everything that may change changing: no drift, and no memory after the first round of changes."""
    process = psutil.Process()
    model = Model("rmsprop", momentum=0.9, centered=True)
    model.run(ROUND)
    tracemalloc.start()
    try:
        model.run(ROUND)
        traced, resident = tracemalloc.get_traced_memory()[0], process.memory_info().rss
        model.run(2 * ROUND)
        # Less than half a byte a step; the interpreter's cache of attributes keeps names of dtypes for a while.
        assert tracemalloc.get_traced_memory()[0] - traced < ROUND
    finally:
        tracemalloc.stop()
    model.run(STEPS - ROUND - model.done)
    oracle = Model("rmsprop", momentum=0.9, centered=True, backend="numpy")  # takes over: all the way it takes minutes
    oracle.opt.lr = model.opt.param_groups[0]["lr"]  # a schedule now, which is not in the state
    oracle.opt.load_state_dict(model.opt.state_dict())
    oracle.done = model.done
    for mine, theirs in zip(oracle.p, model.p, strict=True):
        mine[...] = theirs
    for each in (model, oracle):
        each.run(ROUND)
    assert model.done == STEPS
    assert process.memory_info().rss - resident < 2 << 20
    assert model.opt.steps > STEPS
    assert bits(model) == bits(oracle)
