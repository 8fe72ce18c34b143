"""`Offload`: parameters on one device, their masters and state on the CPU, where a thread steps them during backward.

A gradient leaves `p.grad` as soon as it is complete. It is copied into a buffer on the CPU, beside the weight, and a
thread steps it there while backward goes on with other parameters. Weights are written back by `step` alone: until then
autograd may still read them, for another backward through the same graph, or to compute a checkpointed layer again.
"""

from __future__ import annotations

import copy
import gc
import os
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from proptim import _backend
from proptim._arrays import Array, as_array, check_disjoint, overlaps_itself
from proptim._averages import Averaged, Found
from proptim._interrupts import Store
from proptim._numpy import busy
from proptim._parameters import did_you_mean, near
from proptim._stepper import Tally
from proptim._torch_averages import memory
from proptim._torch_optimizer import Door
from proptim._torch_tensors import DTYPES, is_spread, places

STREAMED = ("cuda", "xpu")
"""Types of devices that copy from and to pinned memory while they compute; copies of others are waited for."""
UNSUPPORTED = {
    "zero_grads": "p.grad is None after a step",
    "fallback": "what proptim cannot step is an error here",
}
"""Options of the optimizers that Offload does not take, and why."""
OWNERS: Any = WeakTensorKeyDictionary()
"""Parameter -> a weak reference to the Offload that has it: only one can take the gradient out of `p.grad`."""
NO_HYPERPARAMETERS = ("params", "param_names")
"""Keys of a parameter group that are no hyperparameters."""


class CopyStream:
    """The way from a device to the CPU: a stream beside that on which the device computes, if it has streams."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.module: Any = torch.get_device_module(device) if device.type in STREAMED else None
        self.stream: Any = None if self.module is None else self.module.Stream(device=device)

    def read(self, pairs: list[tuple[Any, Any]]) -> Callable[[], None]:
        """Begin to copy tensors, (to, from); what it returns ends that, and may be called by another thread."""
        if self.module is None:  # at once: a thread would copy what has been written since
            copy_all(pairs)
            return partial(copy_all, [])
        self.stream.wait_stream(self.module.current_stream(self.device))
        with self.module.stream(self.stream):
            copy_all(pairs, True)
        for _, source in pairs:
            source.record_stream(self.stream)  # a gradient's memory may be given away before it has been copied
        end: Callable[[], None] = self.stream.record_event().synchronize
        return end

    def synchronize(self) -> None:
        """Wait until what has been written to the device is there."""
        if self.module is not None:
            self.module.current_stream(self.device).synchronize()


def copy_all(pairs: list[tuple[Any, Any]], non_blocking: bool = False) -> None:
    """Copy tensors, (to, from)."""
    with torch.no_grad():
        for target, source in pairs:
            target.copy_(source, non_blocking=non_blocking)


def buffer_for(p: Any, dtype: torch.dtype) -> Any:
    """A tensor on the CPU, laid out like a parameter, which its device can copy to by itself."""
    pinned = p.device.type in STREAMED
    return torch.empty_like(p, dtype=dtype, device="cpu", pin_memory=pinned, requires_grad=False)


class Worker:
    """A thread that steps parameters in the order in which they are handed to it, until one fails."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        """What the first step that failed has raised. No step is made until it has been told."""
        self._start()

    def _start(self) -> None:
        self.last: Future[None] | None = None
        self.process = os.getpid()
        self.pool = ThreadPoolExecutor(1, "proptim-offload")
        self.pool.submit(lambda: None).result()  # it starts now: after a start that was interrupted, two might run

    def _check_process(self) -> None:
        """Begin anew in a child process, where the thread does not exist."""
        if self.process == os.getpid():
            return
        if self.last is not None and not self.last.done():
            raise RuntimeError(
                "the process was forked while Offload stepped parameters, and the step of some has ended in the parent "
                "alone; expected a fork between step() and backward"
            )
        self._start()

    def submit(self, job: Callable[[], None]) -> None:
        """Have the thread run this as well."""
        self._check_process()
        self.last = self.pool.submit(job)

    def wait(self) -> None:
        """Return when the thread has nothing left to do."""
        self._check_process()
        self.last = self.pool.submit(lambda: None)  # after all others, also one whose submit() was interrupted
        self.last.result()
        self.last = None


class Slot:
    """A parameter, its copy on the CPU, and its gradient on the way to a step."""

    def __init__(self, label: str, p: Any, home: int) -> None:
        self.label, self.p, self.home = label, p, home
        if is_spread(p):
            raise TypeError(
                f"{label} is a DTensor; expected a plain tensor: fully_shard has CPUOffloadPolicy, with which the "
                "optimizers of proptim.torch step on the CPU themselves"
            )
        if p.device.type == "meta" or p.layout != torch.strided:
            kind = "on the meta device" if p.device.type == "meta" else f"of layout {p.layout}"
            raise TypeError(f"{label} is {kind}; expected a strided tensor with memory")
        # Places of elements, counted in elements: the memory itself is not looked at, which may be a device's.
        if overlaps_itself(np.lib.stride_tricks.as_strided(np.empty((), np.uint8), tuple(p.shape), p.stride())):
            raise ValueError(f"{label} has elements that share memory; expected one place per element: pass a copy")
        host = buffer_for(p, p.dtype)
        copy_all([(host, p)])
        self.host = torch.nn.Parameter(host, requires_grad=p.requires_grad)
        """What is stepped. Between two steps only its memory is used, for weights are read again at each."""
        self.stepper: Any = None
        """An optimizer of this parameter alone."""
        self.buffer: Any = None
        self.grad: Any = None
        """The gradient on the CPU, while there is one to step."""
        self.end: Callable[[], None] | None = None
        """What waits until gradient and weight are on the CPU, as long as nothing has."""
        self.taken: Any = None
        """The gradient in `p.grad` of which `grad` is the copy, until it is out of there."""
        self.versions: tuple[int, ...] = ()
        """Versions of the parameter at which its weight is the one that was copied, or has been written by `step`."""
        self.memory = 0
        """Where that weight was."""
        self.stepped = False
        """Whether the step of the copy has returned, and its weight is not written."""
        self.version: int | None = None
        """The version of the copy when it got its gradient, as long as it has it."""
        self.arrivals = 0
        """Backward passes that have given a gradient since the last step."""
        self.submitted = False
        """Whether it has been handed to the thread since the last step."""

    def begin_copies(self, stream_of: Callable[[torch.device], CopyStream]) -> None:
        """Begin to copy gradient and weight to the CPU."""
        p, host = self.p, self.host
        self.stepped, self.version = False, None
        if p.shape != host.shape or p.dtype != host.dtype:
            raise TypeError(
                f"{self.label} is {p.dtype} of shape {tuple(p.shape)}; expected {host.dtype} of shape "
                f"{tuple(host.shape)}, as Offload was given it: make a new one, and load the state_dict of this"
            )
        grad, pairs = p.grad, [(host, p)]
        if grad.layout != torch.strided:
            self.grad = grad.detach().to("cpu", copy=True)
        else:
            if self.buffer is None or self.buffer.dtype != grad.dtype:
                self.buffer = buffer_for(p, grad.dtype)
            self.grad = self.buffer
            pairs.append((self.grad, grad))
        self.taken, self.versions, self.memory = grad, (p._version,), p.data_ptr()
        self.end = stream_of(p.device).read(pairs)

    def await_copies(self) -> None:
        """Wait for what `begin_copies` has begun."""
        if self.end is not None:
            self.end()
            self.end = None

    def attach(self) -> None:
        """Wait for what `begin_copies` has begun, and give the copy of the weight the gradient."""
        self.await_copies()
        if self.grad.dtype != getattr(self.host, "grad_dtype", self.grad.dtype):  # torch 2.10 or later
            self.host.grad_dtype = self.grad.dtype
        self.host.grad = self.grad
        self.version = self.host._version

    def settle(self) -> None:
        """Note whether a step of all parameters, which may have been interrupted, has stepped the copy.

        Each step adds to the version of the copy, and one that was skipped does not.
        """
        self.stepped = self.stepped or (self.version is not None and self.host._version != self.version)
        self.version = None

    def check_unwritten(self) -> None:
        """Raise RuntimeError if the program has written the weight since it was copied."""
        if self.p._version not in self.versions or self.p.data_ptr() != self.memory:
            raise RuntimeError(
                f"{self.label} was written between backward and step(), after it was copied to be stepped; expected it "
                "to be written before backward or after step(), for the step would be written over it. No weight has "
                "been written: load_state_dict() drops the steps that are pending and keeps the weights as they are"
            )

    def write(self) -> None:
        """Write the weight that has been stepped. It may be called again where it was interrupted."""
        if self.p.grad is self.taken:
            self.p.grad = None
        self.versions = (*self.versions, self.p._version + 1)  # first, for it may be interrupted after the copy
        copy_all([(self.p, self.host)], True)

    def clear(self) -> None:
        """Forget the gradient."""
        self.submitted = False  # then without gradient, and the rest at last: Offload._finish ends it if interrupted
        self.host.grad = self.grad = None
        self.end = self.taken = self.version = None
        self.stepped, self.arrivals = False, 0

    def put_back(self) -> None:
        """Have the gradient in `p.grad` again, since it has not been stepped."""
        self.await_copies()
        if self.taken is None or self.p.grad is not self.taken:  # else it is there, and this was interrupted
            with torch.no_grad():
                grad = self.grad.to(self.p.device, copy=True)
                self.taken = grad if self.p.grad is None else self.p.grad + grad
            self.p.grad = self.taken
        self.clear()


class AveragedElsewhere(Averaged):
    """`Averaged` of parameters that are elsewhere than their averages, which are put in by way of the copies."""

    def __init__(self, offload: Offload) -> None:
        super().__init__(offload._claim, offload._find_averages)
        self.offload = offload

    def swap(self, found: Sequence[Store], back: list[Store], tensors: list[tuple[str, Any, Any, Array]]) -> None:
        of = {id(slot.host): slot.p for slot in self.offload._slots}
        pairs = [(of[id(host)], host) for _, host, *_ in tensors]
        # `leave` writes weights to the memory of the copies. Parameters lie elsewhere, so it copies the weights to them
        # as to a tensor that was moved.
        super().swap(found, back, [(name, of[id(host)], then, copied) for name, host, then, copied in tensors])
        copy_all(pairs)


class Round(NamedTuple):
    """What the steps of one round are made with."""

    waits: bool
    """Whether no parameter can be stepped before all gradients are there."""
    groups: list[dict[str, Any]]
    """The hyperparameters of each group."""
    options: dict[str, Any]


class Forwarded:
    """An option or attribute of the optimizer on the CPU, shown as an attribute of the whole."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, offload: Any, owner: type | None = None) -> Any:
        return self if offload is None else getattr(offload._inner, self.name)

    def __set__(self, offload: Any, value: Any) -> None:
        setattr(offload._inner, self.name, value)


class Offload(torch.optim.Optimizer):
    """An optimizer of `proptim.torch` on the CPU, for parameters on another device, which steps during backward.

    Masters and state are kept on the CPU. A hook takes each gradient out of ``p.grad`` as soon as backward has
    completed it, and a thread steps that parameter while backward goes on. `step` waits for the thread and writes the
    new weights. A run has the bits of `cls` with the same gradients.

    Experimental on devices: it is tested with parameters on the CPU. Copies to and from CUDA and XPU devices, which use
    a stream of their own and pinned memory, were not tried on any.

    Parameters
    ----------
    params : iterable of tensors, of (name, tensor) or of group dicts
        As in torch.optim. Tensors of bfloat16, float16, float32, float64, complex64 or complex128, on any device; no
        DTensors.
    cls : class or str
        A class of `proptim.torch`, or its name: ``proptim.torch.AdamW`` or "AdamW".
    master : {"split", "float32"}, default "split"
        How the float32 values of parameters of 16 bits are kept. "split" keeps the lower halves of bfloat16 parameters,
        2 bytes per weight; for float16 it means "float32", which keeps 4.
    clip_norm : float, optional
        Scale all gradients so that their norm is at most this. The step then waits for the last gradient, as below.
    accumulate : int, default 1
        The number of backward passes whose gradients are added before a step. `step` before the last of them changes
        nothing, so it may be called after each, or once after all. Passes are counted by the gradients of each
        parameter: at least one parameter has to get a gradient in every pass.
    **options
        Hyperparameters and options of `cls`, all but `zero_grads` and `fallback`, `ema` among them.

    Attributes
    ----------
    ema : dict
        With `ema`, parameter -> the average of its weights, a tensor on the CPU; as in `cls`. `averaged` puts the
        averages in the place of the weights.
    state : dict
        Parameter -> its state, of tensors on the CPU; as in `cls`. It is for reading, and for writing to the tensors:
        ``state.clear()`` and other changes of the dict have no effect. Make a new Offload to begin with no state.
    accumulate : int
        The argument; it can be set between steps.
    clip_norm, grad_scale, nonfinite, max_skips, flush_denormals, seed
        The options, which can be set between steps.
    master, state_dtype, rounding, cast_grads, threads, backend
        The options as given.
    grad_norm, skipped
        As in `cls`.

    Raises
    ------
    ValueError
        For a hyperparameter or option out of range, for parameters that share memory, with each other or among their
        own elements, and for a parameter that another Offload has.
    TypeError
        For a `cls` that is none of `proptim.torch`, and for parameters that it cannot step.
    RuntimeError
        From `step`, if it was called after each of `accumulate` passes and no parameter has a gradient of every one.
        From backward, for a second gradient of a parameter that has been stepped since `step` was last called; from
        GradScaler without `clip_norm`; from `step`, for hyperparameters that were changed after the first gradient of a
        round was stepped, and for weights or gradients of stepped parameters that were written between backward and
        `step`; from `state_dict` and `zero_grad` between backward and `step`.

    Examples
    --------
    >>> import torch, proptim.torch
    >>> model = torch.nn.Linear(3, 1).bfloat16()
    >>> opt = proptim.torch.Offload(model.parameters(), "AdamW", lr=0.25)
    >>> model(torch.ones(2, 3).bfloat16()).square().mean().backward()
    >>> model.weight.grad is None  # it has been taken
    True
    >>> opt.step()
    >>> {name: str(value.dtype) for name, value in opt.state[model.bias].items()}["master_lo"]
    'torch.int16'

    Notes
    -----
    The step waits for all gradients, which then stay in ``p.grad`` until `step` takes them: with `clip_norm`, with
    ``nonfinite="skip"`` or "raise", with the variant "irprop+" of Rprop, which needs ``step(closure)``, and if
    torch.distributed has several processes, which may add their gradients after the hooks have run.
    ``clip_norm=math.inf`` clips nothing and waits.

    `torch.nn.utils.clip_grad_norm_` clips nothing unless the step waits, for ``p.grad`` is None by then: use
    `clip_norm`.

    A gradient that is written to ``p.grad`` by hand is stepped by `step`. After it ``p.grad`` is None. Parameters
    without gradient are not stepped.

    Between backward and `step` weights are not to be written. What torch counts is refused; writes to the elements of
    ``p.data`` are not seen, and are overwritten. If backward fails, `step` makes the step of the gradients that it
    gave, and `load_state_dict` drops them.

    If the thread raises an exception, `step` or `synchronize` raises it. What was stepped before is kept and written,
    all other weights and their state are as they were, and their gradients are in ``p.grad`` again, for another `step`.

    torch.optim has no counterpart; `CPUOffloadOptimizer` of torchao wraps optimizers of torch in a similar way.
    """

    clip_norm, grad_scale, nonfinite, max_skips, flush_denormals, seed = (Forwarded() for _ in range(6))
    state_dtype, rounding, cast_grads, threads, backend, grad_norm, skipped = (Forwarded() for _ in range(7))
    state: Any
    param_groups: list[dict[str, Any]]
    _inner: Any = None
    """The optimizer of the copies on the CPU."""

    def __init__(
        self,
        params: Any,
        cls: Any,
        *,
        master: str = "split",
        clip_norm: float | None = None,
        accumulate: int = 1,
        **options: Any,
    ) -> None:
        cls = class_of(cls)
        if master not in ("split", "float32"):
            raise ValueError(
                f"Invalid master: {master!r:.80} (expected 'split' or 'float32'): the master is on the CPU, and takes "
                "no memory of the device"
            )
        for key, why in UNSUPPORTED.items():
            if key in options:
                raise TypeError(f"Offload got {key}; expected none: {why}")
        self.accumulate = accumulate
        super().__init__(params, {})
        self._master = master
        self._slots = self._slots_of(self.param_groups)
        kept = {"master": "auto" if master == "split" else master, "clip_norm": clip_norm, "fallback": "error"}
        self._inner = cls([self._mirrored(group, self._slots) for group in self.param_groups], **options, **kept)
        self.defaults = {**self._inner.defaults}
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            group.update({key: value for key, value in inner.items() if key not in NO_HYPERPARAMETERS})
        self._claim = _backend.new_claim(_backend.chosen(self._inner.backend))
        self._worker, self._lock = Worker(), threading.Lock()
        self._streams: dict[torch.device, CopyStream] = {}
        self._round: Round | None = None
        self._early = [0]  # gradients that there were in this round at each call of step before the last pass
        self._hooked: dict[int, Any] = {}
        weakref.finalize(self, unhook, self._hooked).atexit = False
        self._link()
        self._own()
        self._hook()

    # Parameters -------------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch.optim does, between `step` and backward; nothing has changed where that raises."""
        if self._inner is None:  # the constructor of torch.optim.Optimizer adds those that it is given
            super().add_param_group(param_group)
            return
        with self._claim:
            self._worker.wait()
            self._check_written("add_param_group()")
            super().add_param_group(param_group)
            try:
                slots = self._slots_of(self.param_groups)
                self._inner.add_param_group(self._mirrored(param_group, slots))
            except BaseException:
                self.param_groups.pop()
                raise
            param_group.update({k: v for k, v in self._inner.param_groups[-1].items() if k not in NO_HYPERPARAMETERS})
            self._slots, self._round = slots, None
            self._link()
            self._own()
            self._hook()

    def _slots_of(self, groups: list[dict[str, Any]]) -> list[Slot]:
        """A slot for each parameter, new ones for those that have none."""
        homes = [i for i, group in enumerate(groups) for _ in group["params"]]
        known = {id(slot.p): slot for slot in (self._slots if self._inner is not None else [])}
        slots = [
            known.get(id(p)) or Slot(f"params{place}", p, home)
            for (place, p), home in zip(places(groups), homes, strict=True)
        ]
        here = [slot for slot in slots if slot.p.device.type == "cpu" and slot.p.dtype in DTYPES]
        check_disjoint([(slot.label, as_array(slot.p.detach(), slot.label)) for slot in here])
        for again in (True, False):
            taken = [slot for slot in slots if OWNERS.get(slot.p, type(None))() not in (None, self)]
            if not taken:
                break
            if again:
                gc.collect()  # what is in a cycle, as with a scheduler, may be gone
        else:
            raise ValueError(
                f"{taken[0].label} belongs to another Offload, which takes its gradients; expected one for each "
                "parameter: delete the other before, and the schedulers that hold it"
            )
        return slots

    def _own(self) -> None:
        """Let no other Offload have these parameters as long as this one lives."""
        itself = weakref.ref(self)
        for slot in self._slots:
            OWNERS[slot.p] = itself

    def _mirrored(self, group: dict[str, Any], slots: list[Slot]) -> dict[str, Any]:
        """A group with the copies of its parameters."""
        of = {id(slot.p): slot.host for slot in slots}
        hosts = [of[id(p)] for p in group["params"]]
        names = group.get("param_names")
        rest = {key: value for key, value in group.items() if key not in NO_HYPERPARAMETERS}
        return {**rest, "params": hosts if names is None else list(zip(names, hosts, strict=True))}

    def _hook(self) -> None:
        """Be called by backward for each parameter that can have a gradient, as soon as it has."""
        itself = weakref.ref(self)  # the hooks of the parameters do not keep the optimizer alive
        for i, slot in enumerate(self._slots):
            if i not in self._hooked and slot.p.requires_grad:
                self._hooked[i] = slot.p.register_post_accumulate_grad_hook(partial(arrived, itself, i))

    def _link(self) -> None:
        """Show the state of the copies as that of the parameters."""
        inner = self._inner.state
        self.state = defaultdict(dict, {slot.p: inner[slot.host] for slot in self._slots if slot.host in inner})

    def _stream_of(self, device: torch.device) -> CopyStream:
        if device not in self._streams:
            self._streams[device] = CopyStream(device)
        return self._streams[device]

    # Options ----------------------------------------------------------------------------------------------------------

    @property
    def master(self) -> str:
        """How the float32 values of parameters of 16 bits are kept."""
        return self._master

    @property
    def accumulate(self) -> int:
        """The number of backward passes whose gradients are added before a step."""
        return self._accumulate

    @accumulate.setter
    def accumulate(self, value: int) -> None:
        if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 1:
            raise ValueError(f"Invalid accumulate: {value!r:.80} (expected a whole number of at least 1)")
        self._accumulate = value.__index__()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What torch.amp.GradScaler, and nothing else, asks an optimizer before it scales its gradients."""
        if self.clip_norm is None:
            raise RuntimeError(
                "torch.amp.GradScaler unscales gradients before step(), and Offload has stepped them by then; expected "
                "clip_norm, with which it waits for step(): clip_norm=math.inf clips nothing"
            )
        return False

    # A round ----------------------------------------------------------------------------------------------------------

    def _begun(self) -> Round:
        """What the steps of this round are made with, as it was when the first of them began."""
        if self._round is None:
            inner = self._inner
            groups = [
                {k: copied(v) for k, v in group.items() if k not in NO_HYPERPARAMETERS} for group in self.param_groups
            ]
            waits = (
                inner.clip_norm is not None
                or inner.nonfinite != "propagate"
                or any(inner._rule.needs_loss({**inner._hyper, **group}) for group in groups)
                or several_processes()
            )
            self._round = Round(waits, groups, inner._options)
        return self._round

    def _arrive(self, slot: Slot) -> None:
        """A gradient is in `p.grad`: hand it to the thread if it is complete."""
        if slot.p.grad is None:  # another hook has taken it
            return
        if self._claim.averaged:
            slot.p.grad = None  # of the averages, which are no weights to be stepped
            raise RuntimeError(busy(None, averaged=True))
        if slot.submitted:
            slot.p.grad = None  # this error tells it, and step() is not to fail as well
            raise RuntimeError(
                f"{slot.label} has got another gradient after it was stepped with the first; expected step() after "
                f"every {self.accumulate} backward passes (accumulate={self.accumulate}). If a backward pass failed, "
                "step() makes the step of the gradients it gave, and load_state_dict() drops them. Where one pass "
                "gives several, as reentrant checkpoints do, clip_norm=math.inf has the step wait for all"
            )
        slot.arrivals += 1
        if slot.arrivals >= self.accumulate and not self._begun().waits:
            self._submit(slot)

    def _submit(self, slot: Slot) -> None:
        """Have the thread step a parameter."""
        now, inner = self._begun(), self._inner
        slot.begin_copies(self._stream_of)
        if slot.stepper is None:
            own = {"state": defaultdict(dict), "param_groups": [{"params": [slot.host]}]}
            slot.stepper = object.__new__(type(inner))
            first = next(i for i, each in enumerate(self._slots) if each is slot)
            vars(slot.stepper).update(vars(inner), **own, _bound=None, _settled=[], _members=[], _number_of_first=first)
        vars(slot.stepper).update(_options=inner._options, _taken=inner._taken)
        slot.stepper.param_groups[0].update(now.groups[slot.home])
        slot.stepper.state.clear()
        if slot.host in inner.state:
            slot.stepper.state[slot.host] = inner.state[slot.host]
        slot.submitted = True  # first, for an exception of a signal handler can come in between: see step
        self._worker.submit(partial(step_slot, slot, self._worker))
        slot.p.grad = slot.taken = None

    def _whole(self, loss: Any) -> None:
        """Step all parameters at once."""
        now, inner = self._begun(), self._inner
        taken = [slot for slot in self._slots if slot.p.grad is not None]
        made = False
        try:
            for slot in taken:
                slot.begin_copies(self._stream_of)
            for slot in taken:
                slot.attach()
            for own, group in zip(inner.param_groups, now.groups, strict=True):
                own.update(group)
            Door.step(inner, None if loss is None else lambda: loss)
            made = True
        finally:
            self._finish()  # also if it was interrupted when it was made
        if made:
            for slot in taken:
                slot.p.grad = None  # of a step that was skipped

    def _finish(self) -> None:
        """End a step of all parameters: write what it has stepped, and leave no gradient in the copies.

        It is called again where it was interrupted, before anything else is done.
        """
        left = [slot for slot in self._slots if slot.grad is not None and not slot.submitted]
        for slot in left:
            slot.settle()
        self._write([slot for slot in left if slot.stepped])
        for slot in left:
            slot.clear()

    def _write(self, slots: list[Slot]) -> None:
        """Write the weights of these parameters, which have been stepped."""
        for slot in slots:
            slot.check_unwritten()
        for slot in slots:
            slot.write()
            if slot.submitted:
                self._inner.state.update(slot.stepper.state)
            if slot.host in self._inner.state:
                self.state[slot.p] = self._inner.state[slot.host]
        for device in {slot.p.device for slot in slots}:
            self._stream_of(device).synchronize()  # the next step writes the memory from which they are copied
        for slot in slots:
            slot.clear()

    def _tell(self) -> None:
        """Raise what the thread has raised, with everything else as it was."""
        self._finish()
        error = self._worker.error
        if error is None:
            return
        for slot in self._slots:
            if slot.submitted and not slot.stepped:
                slot.put_back()
        self._write([slot for slot in self._slots if slot.submitted and slot.stepped])
        for slot in self._slots:
            slot.arrivals = 0  # what is left is complete, for the next step
        self._worker.error = self._round = None
        raise error

    def _count(self) -> None:
        """Count a `step` before the last backward pass; RuntimeError if no parameter has a gradient of each pass."""
        arrivals = sum(slot.arrivals for slot in self._slots)
        if arrivals > self._early[-1]:
            self._early.append(arrivals)
        if len(self._early) > self.accumulate:
            raise RuntimeError(
                f"step() was called after {self.accumulate} backward passes (accumulate={self.accumulate}), and no "
                "parameter has got a gradient from each; expected one that has, for passes are counted by the "
                "gradients of a parameter. With accumulate=1 and clip_norm=math.inf, gradients are added until step() "
                "is called. Those of this round are stepped with accumulate = 1, or dropped by zero_grad()"
            )

    def _check_unchanged(self) -> None:
        """Raise RuntimeError if what is still to be stepped would be stepped with other hyperparameters."""
        now = self._round
        if now is None or not any(slot.submitted for slot in self._slots):
            self._round = None  # nothing was stepped with it
            return
        changed = [key for key in now.options if not equal(now.options[key], self._inner._options[key])]
        for group, old in zip(self.param_groups, now.groups, strict=True):
            changed += [key for key in self._inner._hyper if not equal(old.get(key), group.get(key))]
        if changed:
            raise RuntimeError(
                f"{changed[0]} was changed between backward and step(), and backward has stepped parameters with the "
                "value before; expected a change before backward. Set it back, step, and set it then; or have the step "
                "wait for all gradients by clip_norm=math.inf"
            )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Wait until every parameter that has a gradient is stepped, and write the new weights.

        With `accumulate`, nothing happens before the last of these backward passes. `closure` evaluates the model again
        and returns the loss, which is returned. Raises what the step of `cls` raises, and RuntimeError if another
        thread is in a step of this optimizer.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._claim:
            self._worker.wait()
            self._tell()
            for slot in self._slots:
                if slot.submitted and not slot.stepped:  # it was not handed over any more, see _submit
                    slot.clear()
                elif slot.submitted and slot.p.grad is slot.taken:  # it was handed over, and is still there
                    slot.p.grad = None
                elif slot.submitted:
                    raise RuntimeError(
                        f"{slot.label} has a gradient in p.grad that was written after backward, which has stepped it "
                        "with its own; expected p.grad to be None, as backward left it. Set it to None to step without "
                        "it; clip_norm=math.inf has the step wait, and takes what p.grad is by then"
                    )
            if 0 < max(slot.arrivals for slot in self._slots) < self.accumulate:
                self._count()
                return loss
            self._check_unchanged()
            if self._begun().waits:
                self._whole(loss)
            else:
                for slot in self._slots:
                    if slot.p.grad is not None and not slot.submitted:
                        self._submit(slot)
                self._worker.wait()
                self._tell()
                self._write([slot for slot in self._slots if slot.submitted and slot.stepped])
                self._inner._tally = Tally(self.skipped)
            for slot in self._slots:
                slot.arrivals = 0
            self._round, self._early = None, [0]
            self._hook()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients in `p.grad` as torch.optim does, and with `accumulate` count from the start.

        RuntimeError between backward and `step` if parameters have been stepped, which cannot be undone.
        """
        slot = next((slot for slot in self._slots if slot.submitted), None)
        if slot is not None:
            raise RuntimeError(
                f"zero_grad() between backward and step(), when {slot.label} and perhaps others have been stepped "
                "already; expected step() first. load_state_dict() drops what is pending, also after a backward pass "
                "that failed. clip_norm=math.inf has the step wait for step(), and batches can be skipped"
            )
        super().zero_grad(set_to_none)
        for slot in self._slots:
            slot.arrivals = 0
        self._early = [0]

    def synchronize(self) -> None:
        """Wait until the thread has stepped every parameter of which it has the gradient; raises what it has raised.

        The weights are not written: `step` does that.
        """
        with self._claim:
            self._worker.wait()
            self._tell()

    # Averages of the weights ------------------------------------------------------------------------------------------

    ema = Door.ema

    def averaged(self) -> Averaged:
        """Have the averages of the weights in the parameters, while the block of this `with` runs: as in `cls`.

        RuntimeError between backward and `step`, and from backward within the block, which is without gradients.
        """
        return AveragedElsewhere(self)

    def _find_averages(self) -> Found:
        self._worker.wait()
        self._check_written("averaged()")
        # Backward within the block would add to these gradients, and be refused when it has.
        if any(slot.arrivals for slot in self._slots):
            raise RuntimeError("averaged() between backward and step(), when gradients wait; expected step() before")
        copy_all([(slot.host, slot.p) for slot in self._slots])  # weights may have been written since the last step
        self._tell_groups()
        found, kept, beside = self._inner._find_averages()
        averaged = {id(host) for _, _, host in kept}
        return found, kept, [*beside, *(memory(slot.p) for slot in self._slots if id(slot.host) not in averaged)]

    def _tell_groups(self) -> None:
        """Give the hyperparameters of the groups to the optimizer on the CPU."""
        for own, group in zip(self._inner.param_groups, self.param_groups, strict=True):
            own.update({key: value for key, value in group.items() if key not in NO_HYPERPARAMETERS})

    # Saving and loading -----------------------------------------------------------------------------------------------

    def _check_written(self, call: str) -> None:
        """Raise RuntimeError if weights of stepped parameters are not written, or else what the thread has raised."""
        self._tell()
        if any(slot.submitted for slot in self._slots):
            raise RuntimeError(
                f"{call} between backward and step(), when some parameters have been stepped and their weights are not "
                "written; expected step() before"
            )

    def state_dict(self) -> dict[str, Any]:
        """The state as `cls` returns it; RuntimeError between backward and `step`, when weights differ from it."""
        with self._claim:
            self._worker.wait()
            self._check_written("state_dict()")
            # Weights may have been written since, and a float32 master is then set to them.
            copy_all([(slot.host, slot.p) for slot in self._slots if "master" in (self.state.get(slot.p) or {})])
            return {**self._inner.state_dict(), **super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], *, cast: bool = False) -> None:
        """Take over a state as `cls` does; `cast` is that of its `load_state_dict`.

        Gradients that backward has given away, steps made with them and an exception of the thread are dropped, and
        the weights are those the parameters have: so it ends a round that cannot go on.
        """

        def load(_: Any, given: dict[str, Any]) -> dict[str, Any]:
            for slot in self._slots:
                copy_all([(slot.host, slot.p)])
            self._tell_groups()  # a state that lacks a hyperparameter leaves it as it is
            self._inner.load_state_dict(given, cast=cast)
            return {**self._inner._checked_groups(given), "state": {}}

        with self._claim:
            self._worker.wait()
            pending = [slot for slot in self._slots if slot.grad is not None]
            for slot in pending:
                if not slot.submitted:
                    slot.settle()
            stepped = [(slot.host, slot.host.detach().clone()) for slot in pending]
            last = self.register_load_state_dict_pre_hook(load)
            try:
                super().load_state_dict(state_dict)
            except BaseException:
                copy_all(stepped)
                raise
            finally:
                last.remove()
            for slot in pending:
                if slot.p.grad is slot.taken:
                    slot.p.grad = None
                slot.clear()
            self._worker.error = self._round = None
            copy_all([(slot.p, slot.host) for slot in self._slots if "master" in (self.state.get(slot.p) or {})])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._link()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "Offload cannot be copied or pickled, for it has hooks in its parameters and a thread; expected a new one "
            "that loads its state_dict()"
        )


def class_of(cls: Any) -> type[Door]:
    """The class of `proptim.torch` that is meant; TypeError or ValueError if there is none."""
    import proptim.torch

    names = [rule.__name__ for rule in proptim.OPTIMIZERS.values()]
    classes: list[type[Door]] = [getattr(proptim.torch, name) for name in names]
    if isinstance(cls, str):
        if cls not in names:
            small = {name.lower(): name for name in names}
            hint = did_you_mean(small.get(near(cls, small), ""))
            raise ValueError(f"{cls!r:.80} is no class of proptim.torch{hint} (expected one of {', '.join(names)})")
        return classes[names.index(cls)]
    if cls not in classes:
        raise TypeError(
            f"cls is {cls!r:.80}; expected a class of proptim.torch, or its name: one of {', '.join(names)}"
        )
    found: type[Door] = cls
    return found


def arrived(itself: weakref.ref[Offload], number: int, p: Any) -> None:
    """The hook of a parameter."""
    if (offload := itself()) is not None:
        with offload._lock:  # several threads may run backward
            offload._arrive(offload._slots[number])


def unhook(hooked: dict[int, Any]) -> None:
    """Remove the hooks of an optimizer that is gone."""
    for handle in hooked.values():
        handle.remove()


def step_slot(slot: Slot, worker: Worker) -> None:
    """What the thread does for one parameter."""
    if worker.error is not None:
        return
    try:
        slot.attach()
        Door.step(slot.stepper)
        slot.stepped = True
    except BaseException as error:
        if hasattr(error, "add_note"):  # Python 3.11
            error.add_note(f"in the step of {slot.label}, which Offload makes by itself: there it is params[0]")
        worker.error = error
    finally:
        slot.host.grad = None


def several_processes() -> bool:
    """Whether other processes may add their gradients to those of this one."""
    distributed = torch.distributed
    return bool(distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)


def copied(value: Any) -> Any:
    """A value that does not change when the given one is written to."""
    return value.clone() if isinstance(value, torch.Tensor) else copy.copy(value)


def equal(a: Any, b: Any) -> bool:
    """Whether two values of a hyperparameter are equal."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and bool(torch.equal(a, b))
    return bool(a == b)
