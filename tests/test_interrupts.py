"""Exceptions from signal handlers, at any moment: every call leaves the state before it or after it."""

from __future__ import annotations

import copy
import dis
import gc
import itertools
import os
import pickle
import signal
import sys
import threading

import numpy as np
import pytest

import proptim
from proptim import _backend, functional

MOST = 40
"""Places to try of each call: all of a short one, one in 70 of load_state_dict."""
PAUSES = ("CALL", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "RESUME")
"""Beginnings of the names of the instructions after which CPython runs signal handlers."""


class Injector:
    """Raises KeyboardInterrupt at the n-th place where CPython might run a signal handler; n = 0 counts them.

    The garbage collector rests meanwhile: where it runs differs from time to time, and it calls functions of others.
    """

    def __init__(self, n=0):
        self.n, self.count, self.last, self.where = n, 0, {}, ""

    def __call__(self, frame, event, arg):
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "call":
            self.last[frame] = "RESUME"
        elif event == "opcode":
            now = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            # An exception is laid to the call before; here only at what follows, which for `return f()` in a `with` is
            # outside of it: it begins with SWAP.
            if self.last.get(frame, "").startswith(PAUSES) and now != "SWAP":
                self.count += 1
                if self.count == self.n:
                    self.where = f"{frame.f_code.co_qualname}:{frame.f_lineno}" if sys.version_info >= (3, 11) else ""
                    raise KeyboardInterrupt
            self.last[frame] = now
        return self

    def __enter__(self):
        gc.disable()
        sys.settrace(self)
        return self

    def __exit__(self, *exc):
        sys.settrace(None)
        gc.enable()
        self.last.clear()


class World:
    """An optimizer with two groups, of which one parameter has another clock, and all that a call may touch."""

    def __init__(self, backend, name="sgd", many=1, **options):
        hyper = {"sgd": {"momentum": 0.5, "dampening": 0.25}, "nadam": {}, "rprop": {}}[name]
        options = {"weight_decay": 0.125, **hyper, **options}
        rng = np.random.default_rng(0)
        names = [f"p{i}" for i in range(4 * many)]
        shapes = [(3,), (2, 2), (), (5,)] * many
        self.params = {n: rng.standard_normal(s).astype("f4") for n, s in zip(names, shapes, strict=True)}
        self.grads = {n: rng.standard_normal(s).astype("f4") for n, s in zip(names, shapes, strict=True)}
        self.other = {n: rng.standard_normal(s).astype("f4") for n, s in zip(names, shapes, strict=True)}
        half = 2 * many
        first, second = ({n: self.params[n] for n in part} for part in (names[:half], names[half:]))
        groups = [{"params": first}, {"params": second, "lr": 0.25, "label": "second"}]
        self.opt = proptim.OPTIMIZERS[name](groups, lr=0.5, backend=backend, threads=1, **options)
        self.opt.step([[self.grads[n] for n in part] for part in (first, second)])
        self.opt.step({**self.grads, "p1": None})
        self.opt.step(self.grads)
        self.opt.step()
        self.saved = None

    def seen(self):
        """Everything that is visible from outside, and the bound gradients."""
        opt = self.opt
        labels = {id(a): (kind, n) for kind in ("grads", "other") for n, a in getattr(self, kind).items()}
        return {
            "arrays": [a.tobytes() for d in (self.params, self.grads, self.other) for a in d.values()],
            "state": [
                (k, {n: v.tobytes() if hasattr(v, "tobytes") else v for n, v in s.items()})
                for k, s in opt.state.items()
            ],
            "counts": (opt.steps, opt.skipped, opt.grad_norm, sorted(opt._stepper.plan.begun)),
            "bound": [labels.get(id(g), g is not None) for g in opt._stepper.plan.given],
            "groups": [{k: v for k, v in g.items() if k != "params"} for g in opt.param_groups],
            "members": [
                [next(n for n, p in self.params.items() if p is a) for a in g["params"]] for g in opt.param_groups
            ],
            "settings": opt._stepper.settings,
        }

    def goes_on(self):
        """The result of two more steps and a round of step_param."""
        if self.opt._stepper.added:  # of what was added after the gradients it has to be said that it is left out
            self.opt.step(list(self.opt._stepper.plan.given))
        for _ in range(2):
            self.opt.step()
        if self.opt.clip_norm is None:
            for n in self.opt.state:
                self.opt.step_param(n, self.grads[n])
        self.opt.step()
        return self.seen()


def falling(t):
    return 0.5**t


def step_gradients(world):
    world.opt.step([[world.other[p] for p in part] for part in _names(world)])


def _names(world):
    names = list(world.params)
    half = len(names) // 2
    return names[:half], names[half:]


def grown(backend):
    world = World(backend, momentum=0.0, dampening=0.0)
    world.opt.momentum = 0.5
    return world


def loading(backend):
    world = World(backend)
    world.saved = world.opt.state_dict()
    world.opt.weight_decay = 0.0
    world.opt.step()
    world.opt.step_param("p0", world.grads["p0"])
    return world


def nan(backend):
    world = World(backend, nonfinite="skip", zero_grads=True)
    world.other["p3"][2] = np.nan
    return world


def extra(backend):
    world = World(backend)
    world.params["new"], world.grads["new"] = np.ones(3, "f4"), np.ones(3, "f4")
    world.other["new"] = np.ones(3, "f4")
    world.opt.add_param_group({"params": {"new": world.params["new"]}, "lr": 2.0})
    return world


def more(backend):
    world = World(backend)
    for arrays in (world.params, world.grads, world.other):
        arrays["new"] = np.ones(3, "f4")
    return world


def add(world):
    world.opt.add_param_group({"params": {"new": world.params["new"]}, "lr": 2.0})


def averaged(world):
    with world.opt.averaged():
        world.params["p0"].sum()


def one_shot(world):
    functional.rmsprop(
        world.params["p3"], world.grads["p3"], world.other["p3"], lr=0.5, backend=world.opt.backend, zero_grads=True
    )


def one_shot_averaging(world):
    functional.sgd(
        world.params["p3"], world.grads["p3"], lr=0.5, backend=world.opt.backend, ema=0.5, average=world.other["p3"]
    )


def positive(backend):
    world = World(backend)
    np.abs(world.other["p3"], out=world.other["p3"])
    return world


def behind(backend):
    world = World(backend, momentum=0.0, dampening=0.0, lazy_rows=False)
    world.rows = [proptim.Rows(rows, np.ones(len(rows), "f4")) for rows in ([1, 4, 1], [0, 4, 0])]
    world.opt.step({**world.grads, "p3": world.rows[0]})
    return world


MADE = {
    "usual": World,
    "behind": behind,
    "nadam": lambda backend: World(backend, "nadam"),
    "rprop": lambda backend: World(backend, "rprop"),
    "clipped": lambda backend: World(backend, clip_norm=1.0, nonfinite="raise"),
    "zeroing": lambda backend: World(backend, zero_grads=True, flush_denormals=True),
    "scheduled": lambda backend: World(backend, weight_decay=falling),
    "grown": grown,
    "averaging": lambda backend: World(backend, ema=0.5),
    "loading": loading,
    "nan": nan,
    "three groups": extra,
    "usual and one more": more,
    "positive": positive,
}

CALLS = {
    "step": ("usual", lambda w: w.opt.step()),
    "step nadam": ("nadam", lambda w: w.opt.step()),
    "step rprop": ("rprop", lambda w: w.opt.step(w.other)),
    "step list of groups": ("usual", step_gradients),
    "step dict": ("usual", lambda w: w.opt.step(w.other)),
    "step part": ("usual", lambda w: w.opt.step({**w.other, "p0": None})),
    "step clipped": ("clipped", lambda w: w.opt.step(w.other)),
    "step norm given": ("clipped", lambda w: w.opt.step(w.other, grad_norm=2.0)),
    "step zeroing": ("zeroing", lambda w: w.opt.step(w.other)),
    "step rprop zeroing": ("rprop", lambda w: w.opt.step()),
    "step scheduled": ("scheduled", lambda w: w.opt.step(w.other)),
    "step grows": ("grown", lambda w: w.opt.step(w.other)),
    "step skipped": ("nan", lambda w: w.opt.step(w.other)),
    "step rows": ("behind", lambda w: w.opt.step({**w.grads, "p3": w.rows[1]})),
    "step_param rows": ("behind", lambda w: w.opt.step_param("p3", w.rows[1])),
    "step_param": ("usual", lambda w: w.opt.step_param("p3", w.other["p3"])),
    "step_param zeroing": ("zeroing", lambda w: w.opt.step_param(3, w.other["p3"])),
    "step_param grows": ("grown", lambda w: w.opt.step_param("p0", w.other["p0"])),
    "step_param skipped": ("nan", lambda w: w.opt.step_param("p3", w.other["p3"])),
    "zero_grad": ("usual", lambda w: w.opt.zero_grad()),
    "zero_grads": ("usual", lambda w: setattr(w.opt, "zero_grads", True)),
    "state": ("usual", lambda w: [dict(s) for s in w.opt.state.values()]),
    "state_dict": ("usual", lambda w: w.opt.state_dict()),
    "load_state_dict": ("loading", lambda w: w.opt.load_state_dict(w.saved)),
    "add_param_group": ("usual and one more", add),
    "remove_param_group": ("three groups", lambda w: w.opt.remove_param_group(1)),
    "reset": ("usual", lambda w: w.opt.reset()),
    "averaged": ("averaging", averaged),
    "reset one": ("usual", lambda w: w.opt.reset("p1", "p3")),
    "hyperparameter": ("usual", lambda w: setattr(w.opt, "weight_decay", 0.5)),
    "hyperparameter of a group": ("usual", lambda w: w.opt.param_groups[1].update(lr=1.5, momentum=0.75)),
    "key of a group": ("usual", lambda w: w.opt.param_groups[1].__setitem__("weight_decay", falling)),
    "grad_scale": ("usual", lambda w: setattr(w.opt, "grad_scale", 0.5)),
    "clip_norm": ("usual", lambda w: setattr(w.opt, "clip_norm", falling)),
    "pickle": ("usual", lambda w: pickle.loads(pickle.dumps(w.opt))),
    "deepcopy": ("usual", lambda w: copy.deepcopy(w.opt)),
    "repr": ("usual", lambda w: repr(w.opt)),
    "clip_grad_norm": ("usual", lambda w: proptim.clip_grad_norm(w.other, 0.5)),
    "global_norm": ("usual", lambda w: proptim.global_norm(w.other)),
    "functional": ("positive", one_shot),
    "functional averaging": ("usual", one_shot_averaging),
}


def compare(make, call, points):
    """Interrupt a call at each of these places in turn; the places that were reached."""
    before, after = make(), make()
    call(after)
    ends = [(w.seen(), w.goes_on()) for w in (before, after)]
    reached, found = 0, []
    for n in points:
        world = make()
        try:
            with Injector(n) as injector:
                call(world)
        except KeyboardInterrupt:
            reached += 1
        else:
            break
        seen = world.seen()
        which = [i for i, (there, _) in enumerate(ends) if there == seen]
        assert which, (n, injector.where, differences(seen, ends))
        gone = world.goes_on()
        assert any(gone == ends[i][1] for i in which), (
            n,
            injector.where,
            which,
            differences(gone, [e[1:] for e in ends]),
        )
        found.append(which[0])
    return reached, found


def differences(seen, ends):
    return [{k: (seen[k], end[0][k]) for k in seen if seen[k] != end[0][k]} for end in ends]


BACKENDS = [name for name, missing in _backend.available_backends().items() if not missing]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("runner", BACKENDS)
def test_interrupted_anywhere(runner, name):
    """An exception at any place where a signal handler may run: before or after, and usable as if nothing had been."""
    kind, call = CALLS[name]

    def make():
        return MADE[kind](runner)

    call(make())  # what is compiled or imported by then is so
    world = make()
    with Injector() as injector:
        call(world)
    reached, found = compare(make, call, itertools.count(1, 1 + injector.count // MOST))
    assert reached >= min(injector.count, MOST // 2)
    assert found == sorted(found)  # once it is done it stays done


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no setitimer")
@pytest.mark.parametrize("runner", BACKENDS)
def test_alarms(runner):
    """A signal handler that raises at some moment of a step, of loading, of a change: as if before it or after it."""

    def ring(number, frame):
        raise KeyboardInterrupt

    usual = signal.signal(signal.SIGALRM, ring)
    rng = np.random.default_rng(0)
    try:
        for name in ("step part", "load_state_dict", "step_param", "hyperparameter", "add_param_group"):
            kind, call = CALLS[name]
            before, after = MADE[kind](runner), MADE[kind](runner)
            call(after)
            ends = [(world.seen(), world.goes_on()) for world in (before, after)]
            for _ in range(20):
                world = MADE[kind](runner)
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(50e-6, 1.5e-3))
                    call(world)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    pass
                seen = world.seen()
                assert (seen, world.goes_on()) in ends
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)


# Changes while a step runs --------------------------------------------------------------------------------------------

CHANGES = {
    "lr": 0.125,
    "momentum": 0.25,
    "dampening": 0.5,
    "nesterov": True,
    "weight_decay": 0.25,
    "decoupled_weight_decay": True,
    "maximize": True,
    "clip_value": 0.5,
    "clip_norm": 0.5,
    "grad_scale": 0.25,
    "nonfinite": "raise",
    "max_skips": 3,
    "zero_grads": True,
    "flush_denormals": True,
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("scheduled", ["lr", "grad_scale", "clip_norm"])
@pytest.mark.parametrize("runner", BACKENDS)
def test_changes_by_a_schedule(runner, scheduled, name):
    """What a schedule sets while a step evaluates it takes effect at the next step at the latest, also for itself."""
    grads = [np.array([0.5, -2.0, 1.0]) * 0.5**i for i in range(4)]
    ends = []
    for when in ("within", "before", "after"):
        armed = []

        def schedule(t, armed=armed):
            if armed:
                setattr(armed.pop(), name, CHANGES[name])
            return 0.5

        param = np.full(3, 0.75)
        opt = proptim.SGD([param], backend=runner, **{"lr": 1.0, "momentum": 0.5, scheduled: schedule})
        for i, grad in enumerate(grads):
            if i == 1 and when == "within":
                armed.append(opt)
            if i == 1 and when == "before":
                setattr(opt, name, CHANGES[name])
            opt.step([grad.copy()])
            if i == 1 and when == "after":
                setattr(opt, name, CHANGES[name])
        assert not armed
        assert getattr(opt, name) == CHANGES[name]
        ends.append((param.tobytes(), opt.steps, opt.grad_norm))
    assert ends[0] in ends[1:]


@pytest.mark.parametrize("runner", BACKENDS)
def test_changes_by_another_thread(runner):
    """Threads that set options and keys of groups while one steps: nothing is lost, and no step fails."""
    opt = proptim.SGD([{"params": [np.ones(3)]}, {"params": [np.ones(2)]}], lr=0.0, backend=runner)
    grads = [[np.ones(3)], [np.ones(2)]]
    stop, failed = threading.Event(), []

    def stepping():
        try:
            while not stop.is_set():
                opt.step(grads)
                dict(opt.state)
        except BaseException as error:
            failed.append(error)

    def setting(group, key, values):
        for value in values:
            group[key] = value
            opt.grad_scale = 1.0

    values = [2.0**-i for i in range(300)]
    keys = ["weight_decay", "momentum", "clip_value", "label", "tag"]
    workers = [threading.Thread(target=setting, args=(g, k, values)) for g in opt.param_groups for k in keys]
    stepper = threading.Thread(target=stepping)
    for worker in [stepper, *workers]:
        worker.start()
    for worker in workers:
        worker.join()
    stop.set()
    stepper.join()
    assert not failed
    assert [[group[key] for key in keys] for group in opt.param_groups] == [[values[-1]] * 5] * 2


# Many parameters ------------------------------------------------------------------------------------------------------


def operations(call):
    """The number of Python and C functions that a call executes."""
    count = 0

    def profile(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def rounds(opt, grads):
    for name, grad in grads.items():
        opt.step_param(name, grad)


def one_by_one(opt, groups, **options):
    """Add parameters in groups of their own, with state arrays."""
    every = [{name: array} for group in groups for name, array in group["params"].items()]
    grown = type(opt)(every[0], backend=opt.backend, momentum=0.5, **options)
    for params in every[1:]:
        grown.add_param_group({"params": params})
    grown.step([np.zeros_like(array) for params in every for array in params.values()])


MANY = {
    "construct": ({}, lambda opt, groups, grads: type(opt)(groups)),
    "step dict": ({}, lambda opt, groups, grads: opt.step(grads)),
    "step list": ({}, lambda opt, groups, grads: opt.step([[grads[n] for n in g["params"]] for g in groups])),
    "step changed": ({}, lambda opt, groups, grads: (opt.step(grads), opt.param_groups[0].update(lr=2.0), opt.step())),
    "add": ({}, lambda opt, groups, grads: one_by_one(opt, groups)),
    "add bound": ({}, lambda opt, groups, grads: one_by_one(opt, groups, grads=[grads["p0"]])),
    "round": ({}, lambda opt, groups, grads: rounds(opt, grads)),
    "round zeroing": ({"zero_grads": True}, lambda opt, groups, grads: rounds(opt, grads)),
    "round checking": ({"nonfinite": "skip"}, lambda opt, groups, grads: rounds(opt, grads)),
    "round growing": ({}, lambda opt, groups, grads: (setattr(opt, "momentum", 0.5), rounds(opt, grads))),
    "state": ({}, lambda opt, groups, grads: opt.state),
    "state of each": ({}, lambda opt, groups, grads: (opt.step(grads), [opt.state[name]["step"] for name in grads])),
    "reset each": ({}, lambda opt, groups, grads: (opt.step(grads), [opt.reset(name) for name in grads])),
    "state_dict": ({}, lambda opt, groups, grads: opt.load_state_dict(opt.state_dict())),
    "pickle": ({}, lambda opt, groups, grads: pickle.loads(pickle.dumps(opt))),
    "repr": ({}, lambda opt, groups, grads: repr(opt)),
    "zero_grad": ({}, lambda opt, groups, grads: (opt.step(grads), opt.zero_grad())),
    "lr": ({}, lambda opt, groups, grads: setattr(opt, "lr", 0.5)),
}


@pytest.mark.parametrize("kind", ["rows", "columns", "complex"])
@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("runner", ["c", "numpy"] if "c" in BACKENDS else ["numpy"])
def test_many_parameters(runner, name, kind):
    """Four times as many parameters and groups take about four times as many operations, and not sixteen times."""
    options, call = MANY[name]
    counts = []
    for n in (100, 400):
        dtype = "c8" if kind == "complex" else "f4"
        params = np.zeros((n, 4), dtype, order="F" if kind == "columns" else "C")
        names = [f"p{i}" for i in range(n)]
        grads = dict(zip(names, np.ones((n, 4), dtype), strict=True))
        groups = [{"params": dict(zip(names[i : i + 5], params[i : i + 5], strict=True))} for i in range(0, n, 5)]
        opt = proptim.SGD(groups, backend=runner, **options)
        counts.append(operations(lambda opt=opt, groups=groups, grads=grads: call(opt, groups, grads)))
    assert counts[1] < 6 * counts[0] + 1000, counts


# Copies of read-only memory, forks, and other odd moments -------------------------------------------------------------


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("runner", BACKENDS)
def test_read_only_buffers(runner, bound):
    """Unpickled around bytes, as Ray and joblib's mmap_mode do it, an optimizer steps copies of its own."""
    params, grads = [np.ones(3), np.ones((2, 2), order="F")], [np.full(3, 0.5), np.full((2, 2), 0.25)]
    opt = proptim.SGD(params, lr=0.5, momentum=0.5, backend=runner, grads=grads if bound else None)
    opt.step(None if bound else grads)
    buffers = []
    text = pickle.dumps(opt, 5, buffer_callback=buffers.append)
    copied = pickle.loads(text, buffers=[bytes(buffer.raw()) for buffer in buffers])
    for each in (opt, copied):
        each.step(None if bound else grads)
    assert copied.steps == 2
    for mine, theirs in zip(opt._stepper.parameters, copied._stepper.parameters, strict=True):
        assert np.array_equal(mine.array, theirs.array)
        assert np.array_equal(mine.state["momentum_buffer"], theirs.state["momentum_buffer"])
        assert theirs.array.flags.writeable


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_within_a_step(fresh):
    """A child that was forked while another thread stepped an optimizer is told that, and what to do."""
    script = """
import os, threading
import numpy as np, proptim
began, on = threading.Event(), threading.Event()
opt = proptim.SGD([np.ones(2)], lr=0.1)
opt.grad_scale = lambda step: (began.set(), on.wait(60), 1.0)[2]
thread = threading.Thread(target=opt.step, args=([np.ones(2)],))
thread.start()
began.wait(60)
child = os.fork()
if not child:
    try:
        opt.step([np.ones(2)])
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
on.set()
thread.join()
print(opt.steps)
"""
    told, steps = fresh(script).splitlines()
    assert "was being stepped by another thread when this process was forked" in told
    assert "make a new optimizer" in told
    assert steps == "1"


def test_counts_beyond_doubles():
    """A state_dict of a step past 2**53 is one that its own class takes."""
    opt = proptim.SGD([np.ones(2)], lr=0.1)
    opt.step([np.ones(2)])
    saved = opt.state_dict()
    saved["steps"] = saved["state"][0]["step"] = 2**53
    opt.load_state_dict(saved)
    opt.step([np.ones(2)])
    saved = opt.state_dict()
    opt.load_state_dict(saved)
    assert (opt.steps, opt.state[0]["step"]) == (2**53 + 1, 2**53 + 1)


@pytest.mark.parametrize("length", [200, 246, 250, 255])
def test_long_file_names(tmp_path, length):
    """Every name that the file system takes can be saved to."""
    opt = proptim.SGD([np.ones(2)], lr=0.1)
    path = tmp_path / ("n" * (length - 4) + ".npz")
    opt.save(path)
    opt.load(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_errors_of_saving_name_the_file(tmp_path):
    """The error of a failed save names the file, and not the temporary file."""
    path = tmp_path / "missing" / "x.npz"
    with pytest.raises(FileNotFoundError) as caught:
        proptim.SGD([np.ones(2)], lr=0.1).save(path)
    assert str(caught.value).endswith(f"'{path}'")
    assert "None" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_folder_that_cannot_be_read(fresh):
    """Where files may be written and the folder not read, a save is a save."""
    script = """
import os, tempfile
import numpy as np, proptim
with tempfile.TemporaryDirectory() as outer:
    os.chmod(outer, 0o711)
    folder = os.path.join(outer, "drop")
    os.mkdir(folder)
    os.chmod(folder, 0o333)
    opt = proptim.SGD([np.ones(2)], lr=0.1)
    opt.save(os.path.join(outer, "first.npz"))  # what is imported for it is imported while it can be read
    child = os.fork()
    if not child:
        os.setuid(65534)
        try:
            opt.save(os.path.join(folder, "x.npz"))
        except BaseException as error:
            print(repr(error), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    opt.load(os.path.join(folder, "x.npz"))
"""
    assert fresh(script) == ""
