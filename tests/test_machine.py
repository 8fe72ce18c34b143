"""Random sequences of legal and illegal calls: after each, memory is exactly that of the numpy backend, or unchanged.

Two worlds get the same calls. In one the arrays lie anywhere, their elements steps apart, and an instruction set or
Numba steps them on some threads; in the other contiguous copies are stepped by the NumPy text. Every call must end in
the same way in both.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from placed import Placed, places
from test_bits import DTYPES, LOSSES, RULES, assert_same, gradient

import proptim
from proptim.cli import selftest

pytestmark = [
    pytest.mark.once,  # over all backends and instruction sets by itself
    pytest.mark.skipif(not selftest.contestants(), reason="only the numpy backend runs here"),
]


def falling(k):
    return 0.1 / (1 + k)


def negative(k):
    return -1.0


seeds, indices, losses = st.integers(0, 2**16), st.integers(0, 5), st.sampled_from([*LOSSES, None])
wheres = st.lists(places, min_size=6, max_size=6)
arrays = st.lists(st.tuples(st.integers(0, 300), places), min_size=1, max_size=3)  # size and place
LEGAL = [  # of a group; what a rule does not have or allow is refused by both
    *[("lr", value) for value in (0.5, 1e-3, falling)],
    *[("weight_decay", value) for value in (0.0, 0.25, falling)],
    *[("momentum", value) for value in (0.0, 0.5)],  # state arrays come and go
    *[("clip_value", value) for value in (None, 0.5)],
    *[("ema", value) for value in (None, 0.5, falling)],
    *[(key, value) for key in ("decoupled_weight_decay", "maximize", "amsgrad", "centered") for value in (True, False)],
]
ILLEGAL = [
    *[("weight_decay", value) for value in (-1.0, "0.1", None, math.nan, negative)],
    *[("clip_value", value) for value in (-1.0, "1")],
    *[("ema", value) for value in (-1.0, 1.0, "1", negative)],
    *[("maximize", None), ("decoupled_weight_decay", "yes"), ("learning_rate", 1), ("params", [])],
]
OPTIONS = [
    *[("clip_norm", value) for value in (None, 0.5, falling)],
    *[("nonfinite", value) for value in ("propagate", "skip", "raise")],
    *[("zero_grads", value) for value in (True, False)],
    *[("flush_denormals", value) for value in (True, False)],
    *[("grad_scale", value) for value in (1.0, -0.25, falling)],
    *[("max_skips", value) for value in (None, 1)],
]
ILLEGAL_OPTIONS = [("clip_norm", -1.0), ("clip_norm", "1"), ("nonfinite", "no"), ("grad_scale", math.inf)]
OTHER = dict(zip(DTYPES, (*DTYPES[1:], DTYPES[0]), strict=True))
BAD_GRADIENTS = {
    "one too few": lambda w, g: g[:-1],
    "one too many": lambda w, g: [*g, g[0]],
    "another dtype": lambda w, g: [*g[:-1], np.zeros(g[-1].shape, OTHER[w.dtype])],
    "integers": lambda w, g: [np.zeros(g[0].shape, int), *g[1:]],
    "foreign bytes": lambda w, g: [g[0].astype(g[0].dtype.newbyteorder()), *g[1:]],
    "another shape": lambda w, g: [*g[:-1], np.append(g[-1], g[-1].dtype.type(1))],
    "another dimension": lambda w, g: [g[0][None], *g[1:]],
    "no array": lambda w, g: [*g[:-1], "gradient"],
    "bare": lambda w, g: g[0],
    "names": lambda w, g: {"weight": g[0]},
    "a parameter": lambda w, g: [*g[:-1], w.filled()[-1].array],
    "a parameter reversed": lambda w, g: [*g[:-1], w.filled()[-1].array[::-1]],
    "its state": lambda w, g: [*g[:-1], next(iter(w.filled_state()[-1].values()))],
}
BAD_GROUPS = {
    "nothing": lambda w, new: {},
    "unknown key": lambda w, new: {"params": [new], "learning_rate": 1},
    "illegal value": lambda w, new: {"params": [new], "weight_decay": -1.0},
    "a parameter again": lambda w, new: {"params": [new, w.filled()[0].array]},
    "part of a parameter": lambda w, new: {"params": [new, w.filled()[0].array[:1]]},
    "part of itself": lambda w, new: {"params": [new, new[-1:]]},
    "state": lambda w, new: {"params": [new, next(iter(w.filled_state()[0].values()))]},
    "read-only": lambda w, new: {"params": [new, np.broadcast_to(new[:1], 4)]},
    "integers": lambda w, new: {"params": [new, np.zeros(3, int)]},
    "no array": lambda w, new: {"params": [new, None]},
}


def without(saved, key):
    del saved[key]


BAD_STATES = {
    "no state": lambda saved: without(saved, "state"),
    "no groups": lambda saved: without(saved, "param_groups"),
    "a group more": lambda saved: saved["param_groups"].append(saved["param_groups"][0]),
    "an array less": lambda saved: saved["param_groups"][-1]["params"].pop(),
    "unknown number": lambda saved: saved["param_groups"][-1].update(learning_rate=1),
    "illegal number": lambda saved: saved["param_groups"][-1].update(clip_value=-1),
    "negative steps": lambda saved: saved.update(steps=-1),
    "half a step": lambda saved: saved["state"][max(saved["state"])].update(step=0.5),
    "another shape": lambda saved: saved["state"][max(saved["state"])].update(exp_avg=np.zeros((2, 2))),
    "text": lambda saved: saved["state"].update({max(saved["state"]): "text"}),
}


class World:
    """An optimizer and all memory that it has to do with."""

    def __init__(self, name, dtype, anywhere):
        self.type, self.dtype, self.anywhere = proptim.OPTIMIZERS[name], dtype, anywhere
        self.params, self.grads, self.saved = [], [], None

    def place(self, rng, size, where):
        return Placed(gradient(rng, size, self.dtype).clip(-9, 9), *(where if self.anywhere else (0, 1)))

    def new(self, seed, wanted):
        rng = np.random.default_rng(seed)
        return [self.place(rng, size, where) for size, where in wanted]

    def new_grads(self, seed, wheres, poison):
        fresh = self.new(seed, [(p.array.size, wheres[i % 6]) for i, p in enumerate(self.params)])
        if poison and fresh[-1].array.size:
            fresh[-1].array[-1] = np.nan
        self.grads += fresh
        return [g.array for g in fresh]

    def filled(self):
        """Parameters that are not empty, which share no memory with anything."""
        return [p for p in self.params if p.array.size]

    def filled_state(self):
        return [p.state for p in self.opt._stepper.parameters if p.array.size and p.state]

    def counts(self):
        opt = self.opt
        return repr((opt.steps, opt._stepper.plan.tally, len(opt.param_groups), len(opt._stepper.parameters)))

    def bytes(self):
        """What a refused call must leave as it is, between the elements too, and the gradients that are bound."""
        opt = self.opt
        states = [(name, a.tobytes()) for p in opt._stepper.parameters for name, a in p.state.items()]
        bound = [id(g) for g in opt._stepper.plan.grads]
        return [p.memory.tobytes() for p in self.params + self.grads], states, bound, repr(opt), self.counts()


class Machine(RuleBasedStateMachine):
    """All that can be done with an optimizer."""

    @initialize(
        case=st.sampled_from([p.values for p in RULES]),
        dtype=st.sampled_from(DTYPES),
        runs=st.sampled_from(list(selftest.contestants().values()) or [("numpy", None)]),
        threads=st.sampled_from([1, 2, 3, 7]),
        wanted=arrays,
        seed=seeds,
    )
    def build(self, case, dtype, runs, threads, wanted, seed):
        (name, options), (backend, self.isa) = case, runs
        self.worlds = World(name, dtype, True), World(name, dtype, False)
        for world, kind in zip(self.worlds, (backend, "numpy"), strict=True):
            world.params = world.new(seed, wanted)
            with self.here():
                world.opt = world.type([p.array for p in world.params], **options, backend=kind, threads=threads)
        if self.worlds[0].filled():
            self.attempt(lambda w: w.type([w.filled()[0].array, w.filled()[0].array[::-1]]), refuse=True)

    def here(self):
        return selftest.isa(self.isa) if self.isa else nullcontext()

    def attempt(self, action, refuse=False):
        """Do the same in both worlds: who refuses has changed nothing, and both do, in the same words, or none."""
        ends = []
        for world in self.worlds:
            if world is self.worlds[1] and hasattr(world, "opt"):
                world.opt._stepper.dissolve()  # the oracle prepares every step anew
            before = world.bytes()
            try:
                with self.here():
                    action(world)
                ends.append("done")
            except (ValueError, TypeError, FloatingPointError) as error:
                ends.append(f"{type(error).__name__}: {error}")
                assert world.bytes() == before, f"refused, but changed: {ends[-1]}"
        assert ends[0] == ends[1]
        assert not refuse or ends[0] != "done", "not refused"
        return ends[0] == "done"

    @invariant()
    def same(self):
        """Parameters, gradients and state have the oracle's bits, and what lies around and between is untouched."""
        ours, oracle = getattr(self, "worlds", (None, None))
        if ours is None:
            return
        assert ours.counts() == oracle.counts()
        for kind in ("params", "grads"):
            for i, (a, b) in enumerate(zip(getattr(ours, kind), getattr(oracle, kind), strict=True)):
                assert_same(a.array, b.array, f"{kind}[{i}]")
                a.assert_apart(f"{kind}[{i}]")
        for a, b in zip(ours.opt._stepper.parameters, oracle.opt._stepper.parameters, strict=True):
            assert a.state.keys() == b.state.keys()
            for key in a.state:
                assert_same(a.state[key], b.state[key], f"{key} of {a.label}")

    def teardown(self):
        """The public state agrees too, clocks included."""
        if hasattr(self, "worlds"):
            ours, oracle = (world.opt.state for world in self.worlds)
            for a, b in zip(ours.values(), oracle.values(), strict=True):
                assert a.keys() == b.keys()
                for key in a:
                    assert_same(np.asarray(a[key]), np.asarray(b[key]), key)

    # Stepping -----------------------------------------------------------------------------------------------------

    @rule(seed=seeds, wheres=wheres, loss=losses, left_out=st.sets(indices, max_size=2), poison=st.integers(0, 9))
    def step(self, seed, wheres, loss, left_out, poison):
        given = {w: w.new_grads(seed, wheres, poison == 0) for w in self.worlds}
        self.attempt(lambda w: w.opt.step([None if i in left_out else g for i, g in enumerate(given[w])], loss=loss))

    @rule(loss=losses, times=st.integers(1, 4))
    def step_again(self, loss, times):
        for _ in range(times):
            self.attempt(lambda w: w.opt.step(loss=loss))

    @rule(index=indices, seed=seeds, wheres=wheres, poison=st.integers(0, 9))
    def step_param(self, index, seed, wheres, poison):
        given = {w: w.new_grads(seed, wheres, poison == 0) for w in self.worlds}
        self.attempt(lambda w: w.opt.step_param(index, given[w][index] if index < len(given[w]) else given[w][0]))

    @rule(kind=st.sampled_from(list(BAD_GRADIENTS)), seed=seeds, wheres=wheres, times=st.integers(0, 3))
    def step_with_bad_gradients(self, kind, seed, wheres, times):
        assume(self.worlds[0].params[-1].array.size)
        assume(self.worlds[0].filled_state() or kind != "its state")
        good = {w: w.new_grads(seed, wheres, False) for w in self.worlds}
        given = {w: BAD_GRADIENTS[kind](w, good[w]) for w in self.worlds}
        for _ in range(times):  # the more often, the shorter the checks
            self.attempt(lambda w: w.opt.step(good[w], loss=1.0))
        self.attempt(lambda w: w.opt.step(given[w], loss=1.0), refuse=True)

    @rule()
    def zero_grad(self):
        self.attempt(lambda w: w.opt.zero_grad())

    @rule(index=indices, seed=seeds)
    def write_parameter(self, index, seed):
        for w in self.worlds:
            array = w.params[index % len(w.params)].array
            array[...] = gradient(np.random.default_rng(seed), array.size, w.dtype).clip(-9, 9)

    # Numbers and options ------------------------------------------------------------------------------------------

    @rule(item=st.sampled_from(LEGAL), group=indices)
    def set_number(self, item, group):
        key, value = item
        self.attempt(lambda w: w.opt.param_groups[group % len(w.opt.param_groups)].update({key: value}))

    @rule(item=st.sampled_from(OPTIONS))
    def set_option(self, item):
        self.attempt(lambda w: setattr(w.opt, *item))

    @rule(item=st.sampled_from(ILLEGAL), group=indices)
    def set_illegal_number(self, item, group):
        key, value = item
        numbers = {w: w.opt.param_groups[group % len(w.opt.param_groups)] for w in self.worlds}
        before = {w: numbers[w].get(key) for w in self.worlds}
        if self.attempt(lambda w: numbers[w].update({key: value})):
            self.attempt(lambda w: w.opt.step(loss=1.0), refuse=True)
            self.attempt(lambda w: numbers[w].update({key: before[w]}))

    @rule(item=st.sampled_from(ILLEGAL_OPTIONS))
    def set_illegal_option(self, item):
        key, value = item
        self.attempt(lambda w: setattr(w.opt, key, value), refuse=True)

    # Groups, and state in and out ---------------------------------------------------------------------------------

    @rule(wanted=arrays, seed=seeds, decay=st.sampled_from([0.0, 0.5]))
    def add_group(self, wanted, seed, decay):
        assume(len(self.worlds[0].params) + len(wanted) <= 6)
        fresh = {w: w.new(seed, wanted) for w in self.worlds}
        if self.attempt(
            lambda w: w.opt.add_param_group({"params": [p.array for p in fresh[w]], "weight_decay": decay})
        ):
            for w in self.worlds:
                w.params += fresh[w]

    @rule(kind=st.sampled_from(list(BAD_GROUPS)), seed=seeds, where=places)
    def add_bad_group(self, kind, seed, where):
        assume(self.worlds[0].filled() or "a parameter" not in kind)
        assume(self.worlds[0].filled_state() or kind != "state")
        given = {w: BAD_GROUPS[kind](w, w.new(seed, [(5, where)])[0].array) for w in self.worlds}
        self.attempt(lambda w: w.opt.add_param_group(given[w]), refuse=True)

    @rule()
    def save(self):
        for w in self.worlds:
            w.saved = w.opt.state_dict()

    @rule()
    def load(self):
        assume(self.worlds[0].saved)
        self.attempt(lambda w: w.opt.load_state_dict(w.saved))

    @rule(kind=st.sampled_from(list(BAD_STATES)))
    def load_bad_state(self, kind):
        given = {w: copy.deepcopy(w.opt.state_dict()) for w in self.worlds}
        for saved in given.values():
            BAD_STATES[kind](saved)
        self.attempt(lambda w: w.opt.load_state_dict(given[w]), refuse=True)


@pytest.mark.slow
def test_any_sequence_of_calls():
    """See the head of this file."""
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=200, stateful_step_count=30, derandomize=True, deadline=None, database=None),
    )
