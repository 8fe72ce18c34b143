"""Threads change only the speed; an optimizer can be used by one thread at a time; a forked child can step."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

import proptim
from proptim import _backend
from proptim.cli import selftest

SIZES = {
    "one large": [100_003],
    "many small": [n % 90 for n in range(200)],
    "mixed": [0, 70_001, 1, 0, 64, 65, 4096, 100_000, 63, 0],
    "fewer shares than threads": [0, 65],
}
LOSSES = (3.0, 2.0, 2.5)
needs_core = pytest.mark.skipif(bool(_backend.missing_core), reason=_backend.missing_core)


def bits(name, sizes, options, threads, steps=3):
    """The bytes of parameters, gradients and state after some steps."""
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(n).astype(np.float32) for n in sizes]
    opt = proptim.OPTIMIZERS[name](params, threads=threads, **options)
    for t in range(steps):
        grads = [selftest.gradient(rng, n, np.float32) for n in sizes]
        opt.step(grads, loss=LOSSES[t % len(LOSSES)])
    state = [a for s in opt.state.values() for a in s.values() if isinstance(a, np.ndarray)]
    return [a.tobytes() for a in (*params, *grads, *state)]


@pytest.mark.parametrize("options", selftest.STAGES, ids=["plain", "staged"])
@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_any_number_of_threads(sizes, name, options):
    """1, 2, 3 and 7 threads give the same bits."""
    serial = bits(name, sizes, options, 1)
    for threads in (2, 3, 7):
        assert bits(name, sizes, options, threads) == serial, f"{threads} threads"


def test_auto(monkeypatch):
    """threads="auto" gives the bits of one thread while it measures and after it has decided."""
    monkeypatch.setattr(_backend, "_threads", 3)
    steps = 200  # past the second look
    assert bits("rmsprop", [100_000], {}, "auto", steps) == bits("rmsprop", [100_000], {}, 1, steps)


def test_python_threads():
    """Optimizers stepped in Python threads of their own, at the same time, give serial bits."""
    expected = {name: bits(name, SIZES["mixed"], {}, 1) for name in proptim.OPTIMIZERS}
    barrier, found = threading.Barrier(len(expected)), {}

    def work(name):
        barrier.wait()
        found[name] = bits(name, SIZES["mixed"], {}, 2)

    workers = [threading.Thread(target=work, args=(name,)) for name in expected]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == expected


class Gate:
    """A schedule for grad_scale: once armed, the step that evaluates it waits until it is released."""

    def __init__(self):
        self.armed, self.arrived, self.go = False, threading.Event(), threading.Event()

    def __call__(self, step):
        if self.armed:
            self.armed = False
            self.arrived.set()
            assert self.go.wait(60)
        return 1.0


REFUSED = {
    "step": lambda opt, grad: opt.step([grad], loss=1.0),
    "step again": lambda opt, grad: opt.step(loss=1.0),
    "step_param": lambda opt, grad: opt.step_param(0, grad),
    "add_param_group": lambda opt, grad: opt.add_param_group({"params": [np.zeros(3)]}),
    "load_state_dict": lambda opt, grad: opt.load_state_dict(opt.state_dict()),
}


@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_one_optimizer_in_two_threads(backend, name):
    """While one thread is in a step, every call that would change the optimizer is refused and changes nothing."""
    gate, grad = Gate(), np.full(5, 0.5)
    param, alone = np.ones(5), np.ones(5)
    opt, calm = (proptim.OPTIMIZERS[name]([p], grad_scale=gate) for p in (param, alone))
    for each in (opt, calm):
        each.step([grad.copy()], loss=1.0)
    calm.step(loss=1.0)

    before = [param.copy(), *(np.copy(a) for a in opt.state[0].values())]
    gate.armed = True
    other = threading.Thread(target=lambda: opt.step(loss=1.0))
    other.start()
    try:
        assert gate.arrived.wait(60)
        for label, call in REFUSED.items():
            with pytest.raises(RuntimeError, match="another thread"):
                call(opt, grad)
            after = [param, *opt.state[0].values()]
            assert all(np.array_equal(a, b) for a, b in zip(after, before, strict=True)), label
            assert len(opt.param_groups) == 1
    finally:
        gate.go.set()
        other.join()
    assert opt.steps == calm.steps == 2
    assert param.tobytes() == alone.tobytes()  # the step that was under way ended as if alone
    opt.step(loss=1.0)  # and the optimizer is free again


@pytest.mark.parametrize(
    "count", [10**30, 1e30, 10**400, 10**5000, -(10**5000)], ids=["30", "1e30", "400", "5000", "-5000"]
)
def test_huge_numbers_of_threads(count):
    """A number of any size raises an error with a readable message."""
    expected = "at most 1024" if count > 0 else "a whole number of at least 1"
    for call in (proptim.set_num_threads, lambda n: proptim.SGD([np.ones(1)], lr=0.1, threads=n)):
        with pytest.raises(ValueError, match=f"threads is .*; expected {expected}$") as error:
            call(count)
        assert len(str(error.value)) < 160


def test_called_from_its_own_schedule(backend):
    """A schedule that steps or changes its own optimizer is told that it is within a step, and not of other threads."""
    param, told = np.ones(5), []

    def schedule(step):
        for call in REFUSED.values() if armed else ():
            with pytest.raises(RuntimeError, match="within another call of the same optimizer") as error:
                call(opt, np.ones(5))
            told.append(error)
        return 1.0

    armed = False
    opt = proptim.SGD([param], lr=0.5, grad_scale=schedule)
    armed = True
    opt.step([np.ones(5)])
    assert len(told) == len(REFUSED)
    assert (opt.steps, param.tolist()) == (1, [0.5] * 5)


@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_repeated_step_claims_too(backend, name):
    """Repeating a step is also refused while the optimizer is in use."""
    param, grad = np.ones(5), np.full(5, 0.5)
    opt = proptim.OPTIMIZERS[name]([param])
    for _ in range(3):
        opt.step([grad])
    before = param.copy()
    with opt._stepper.claim:
        for args in ([], [[grad]], [[grad.copy()]]):
            with pytest.raises(RuntimeError, match="within another call of the same optimizer"):
                opt.step(*args)
    assert np.array_equal(param, before)
    assert opt.steps == 3
    opt.step([grad])
    assert not np.array_equal(param, before)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2.5", "many", None])
def test_illegal_threads(threads):
    """A number of threads that is none is refused in words, wherever it comes from."""
    with pytest.raises(ValueError, match=r"threads is .*; expected a whole number of at least 1"):
        proptim.SGD([np.zeros(1)], threads=threads)
    with pytest.raises(ValueError, match=r"number of threads is .*; expected a whole number of at least 1"):
        proptim.set_num_threads(threads)


def test_set_num_threads(monkeypatch):
    """set_num_threads is what get_num_threads returns, above the environment."""
    monkeypatch.setattr(_backend, "_threads", None)
    monkeypatch.setenv("PROPTIM_NUM_THREADS", "5")
    assert proptim.get_num_threads() == 5
    proptim.set_num_threads(2)
    assert proptim.get_num_threads() == 2


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "cpus"),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1,4"}, 1),
        ({"OMP_NUM_THREADS": "100000"}, "cpus"),
        ({"OMP_NUM_THREADS": "nonsense"}, "cpus"),
        ({"OMP_NUM_THREADS": "1", "PROPTIM_NUM_THREADS": "3"}, 3),
        ({"PROPTIM_NUM_THREADS": ""}, "cpus"),
    ],
    ids=str,
)
def test_environment(monkeypatch, variables, expected):
    """PROPTIM_NUM_THREADS goes before OMP_NUM_THREADS, and that before the CPUs that this process may use."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    monkeypatch.setattr(_backend, "_threads", None)
    for name in ("PROPTIM_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proptim.get_num_threads() == (cpus if expected == "cpus" else expected)


@pytest.mark.parametrize("value", ["0", "all"])
def test_nonsense_in_environment(fresh, value):
    """A PROPTIM_NUM_THREADS that is no number of threads is told at import."""
    script = """
try:
    import proptim
    print("imported")
except ValueError as error:
    print(error)
"""
    refusal = f"PROPTIM_NUM_THREADS is {value!r}; expected a whole number of at least 1"
    assert fresh(script, PROPTIM_NUM_THREADS=value) == refusal


FORKED = """
import os, signal, sys, warnings
import numpy as np
import proptim

PARALLEL, BEFORE = %r, %r

def made(threads):
    param = np.ones(300_000, np.float32)
    return param, proptim.RMSprop([param], grads=[np.full_like(param, 0.5)], threads=threads, backend="c")

reference, serial = made(1)
param, opt = made(3)
for _ in range(4):
    serial.step()
if BEFORE == "proptim":
    opt.step()
elif BEFORE == "torch":  # which shares libgomp and its pool
    import torch
    torch.set_num_threads(3)
    torch.ones(3_000_000).mul(2.0)
child = os.fork()
if child == 0:
    signal.alarm(60)  # a step that hangs kills the child
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3 + (BEFORE != "proptim")):
            opt.step()
        made(3)[1].step()  # another one: not told again
    told = [str(w.message) for w in caught if w.category is RuntimeWarning]
    assert len(told) == (PARALLEL == "openmp") and all("spawn" in line for line in told), told
    assert param.tobytes() == reference.tobytes()
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 3
    assert threads == (3 if PARALLEL == "pool" else 1), threads
    sys.stdout.flush()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0, "the child hung or failed"
for _ in range(3 + (BEFORE != "proptim")):
    opt.step()
assert param.tobytes() == reference.tobytes()  # the parent still has its threads
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() on this system")
@needs_core
@pytest.mark.parametrize("before", ["proptim", "torch", "nobody"])
@pytest.mark.parametrize("parallel", ["pool", "openmp"])
def test_fork(fresh, parallel, before):
    """A forked child steps on, whoever has used threads before: on threads of its own, or with OpenMP serially."""
    script = FORKED % (parallel, before)
    assert fresh(script, "-W", "ignore::DeprecationWarning", PROPTIM_PARALLEL=parallel) == "done"


@needs_core
def test_unknown_parallel_path(fresh):
    """A PROPTIM_PARALLEL that is none of the two is told at import."""
    script = "try:\n    import proptim\nexcept ValueError as error:\n    print(error)"
    told = "PROPTIM_PARALLEL=tbb is unknown; expected one of: pool, openmp"
    assert fresh(script, PROPTIM_PARALLEL="tbb") == told


THREADS_OF_STEPS = """
import os, threading
import numpy as np
import proptim.threadpoolctl
from threadpoolctl import threadpool_limits

def made(threads, n=100_000):
    param = np.ones(n, np.float32)
    return param, proptim.RMSprop([param], grads=[np.full_like(param, 0.5)], threads=threads, backend="c")

def tasks():
    return len(os.listdir("/proc/self/task"))

before = tasks()
made("auto", 1000)[1].step()
assert tasks() == before, "a small step started threads"
made(4)[1].step()
assert tasks() == before + 3, tasks()
made(2)[1].step()
with threadpool_limits(2, user_api="proptim"):
    made(6)[1].step()
assert tasks() == before + 3, tasks()
made(6)[1].step()
assert tasks() == before + 5, tasks()  # the pool grows to what was asked for, and no further

# Steps of several Python threads at the same time: one has the pool, the others work alone.
expected, opt = made(1)
for _ in range(200):
    opt.step()
params = []
def run():
    param, opt = made(3)
    for _ in range(200):
        opt.step()
    params.append(param)
workers = [threading.Thread(target=run) for _ in range(4)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
assert len(params) == 4 and all(param.tobytes() == expected.tobytes() for param in params)
print("done")
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc to count threads in")  # noqa: PTH112
@needs_core
def test_pool(fresh):
    """Threads are started when first needed, no more than asked for or allowed, and shared by everybody."""
    assert fresh(THREADS_OF_STEPS, OPENBLAS_NUM_THREADS="1") == "done"


WORKERS = """
import multiprocessing, signal, threading
import numpy as np
import proptim

def made(threads):
    param = np.ones(100_000, np.float32)
    return param, proptim.RMSprop([param], grads=[np.full_like(param, 0.5)], threads=threads, backend="c")

def work(steps):
    signal.alarm(60)  # a step that hangs kills the worker
    param, opt = made(3)
    for _ in range(steps):
        opt.step()
    return param.tobytes()

expected, serial = made(1)
for _ in range(100):
    serial.step()

# The parent steps with threads all the while, so that forks meet the pool in every state.
stop, params = threading.Event(), []
def step_on():
    while not stop.is_set():
        params.append(work_here())
def work_here():
    param, opt = made(3)
    for _ in range(100):
        opt.step()
    return param.tobytes()

parent = threading.Thread(target=step_on)
parent.start()
context = multiprocessing.get_context("fork")
for _ in range(5):  # a new set of workers every epoch, as data loaders do
    with context.Pool(3) as pool:
        found = pool.map_async(work, [100] * 9).get(90)
        assert found == [expected.tobytes()] * 9
stop.set()
parent.join()
assert params and set(params) == {expected.tobytes()}
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() on this system")
@needs_core
def test_pools_of_forked_workers(fresh):
    """Workers forked again and again, while the parent steps in a thread, step on threads of their own."""
    assert fresh(WORKERS, "-W", "ignore::DeprecationWarning") == "done"


@needs_core
def test_spawn(fresh, tmp_path):
    """A worker started with spawn steps with threads, without a warning."""
    (tmp_path / "worker.py").write_text(
        "import warnings\nimport numpy as np\nimport proptim\n\n"
        "def work(threads):\n"
        "    warnings.simplefilter('error')\n"
        "    param = np.ones(300_000, np.float32)\n"
        "    opt = proptim.RMSprop([param], grads=[np.full_like(param, 0.5)], threads=threads)\n"
        "    opt.step()\n"
        "    return param.tobytes()\n"
    )
    script = """
import multiprocessing, worker
if __name__ == "__main__":
    here = worker.work(3)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply_async(worker.work, (3,)).get(60) == here == worker.work(1))
"""
    assert fresh(script) == "True"
