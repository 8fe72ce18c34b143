"""Optimizers: groups of parameters, options, and what a user does with them; a subclass adds one rule."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from proptim import _backend
from proptim._arrays import Array
from proptim._averages import NONE_KEPT, Averaged
from proptim._formats import shown
from proptim._options import GROUP_OPTIONS, OBJECT_OPTIONS, SETTINGS, Hyperparameter, Options, Setting
from proptim._parameters import (
    Group,
    Parameter,
    Shown,
    at_step,
    check_gradients,
    did_you_mean,
    frozen,
    is_on,
    parse_groups,
)
from proptim._prepared import take_options
from proptim._stepper import Stepper, Tally
from proptim._storage import AVERAGE, opened
from proptim.rule import Rule

if TYPE_CHECKING:
    from proptim._watch import Watch

NUMBERS = ("clip_norm", "grad_scale")
"""Options of a whole optimizer that may be schedules."""


class _State(Mapping[Any, Any]):
    """Name or index of each parameter -> its state, made when it is asked for: there may be very many parameters."""

    def __init__(self, stepper: Stepper, state_of: Callable[[int], Any]) -> None:
        self.stepper, self.state_of = stepper, state_of

    def __getitem__(self, key: Any) -> Any:
        if key not in self:
            raise KeyError(key)
        return self.state_of(self.stepper.number(key))

    def __contains__(self, key: object) -> bool:
        if self.stepper.index:
            return isinstance(key, str) and key in self.stepper.index
        whole = isinstance(key, (int, np.integer)) and not isinstance(key, bool)
        return whole and 0 <= key < len(self)  # type: ignore[operator]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.stepper.index or range(len(self)))

    def __len__(self) -> int:
        return len(self.stepper.parameters)


class Optimizer(Rule):
    """Base of all optimizers: groups, state, the step, saving and loading; a subclass adds one rule.

    Every optimizer takes these options by keyword, in addition to its own hyperparameters.

    Parameters
    ----------
    params : sequence or dict of arrays, or sequence of groups
        The arrays to step in place: of float32, float64, float16, bfloat16 (of ml_dtypes or torch), complex64 or
        complex128 (as pairs of reals), of any shape and strides, in CPU memory: NumPy arrays, torch tensors, or
        anything with the buffer protocol or DLPack. A group is a dict with "params" and the hyperparameters that differ
        from the arguments.
    grads : like `params`, optional
        Gradients of the shapes of the parameters, bound once, so that `step()` needs no argument. Gradients of complex
        parameters have the dtype of the parameter. For other parameters they may be bfloat16, float16 or float32, and
        for float64 parameters also float64. `proptim.Rows` is a gradient of some rows of a parameter.
    weight_decay : float or schedule, default 0
        Weight of the L2 penalty, which is added to the gradient unless `decoupled_weight_decay` is set.
    decoupled_weight_decay : bool, default False
        Multiply the parameter by 1 - lr * weight_decay before the rule instead of adding an L2 penalty.
    maximize : bool, default False
        Step up the gradient instead of down.
    clip_value : float or schedule, optional
        Clip every element of the gradient to [-clip_value, clip_value].
    lazy_rows : bool, default True
        With gradients of some rows (`proptim.Rows`), step only these rows. With False the result is that of the dense
        step, within rounding: each row remembers the last step that it has made, and what it has missed is made up
        when it next has a gradient, or by `catch_up`. Only for rules in which a gradient of zero does no more than
        shrink the state, SGD, Adagrad, RMSprop and Adadelta, without momentum, with an `eps` that is not 0 and
        with decoupled weight decay; SGD also with the other. All others are refused.
    ema : float or schedule, optional
        Keep an average of the weights, which begins with the weights that there are when the optimizer is made, and
        moves with each step of a parameter: e + (1 - d) (p - e), in this order of operations, with this number d >= 0
        and < 1, and p the weights that the step has stored: the float32 master of those of 16 bits.
        `averaged` puts the averages in the place of the weights, to evaluate the model.
    clip_norm : float or schedule, optional
        Scale all gradients so that their global norm is at most this, as ``torch.nn.utils.clip_grad_norm_``. The norm
        is computed in float64: if squares of numbers beyond 1e154 overflow there, `grad_norm` is infinity and finite
        gradients are clipped to 0, whatever `nonfinite` says.
    grad_scale : float or schedule, default 1
        Factor on every gradient: the inverse of a loss scale.
    nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        What to do about NaN and infinity in gradients: "propagate" computes with them as IEEE 754 says, "skip" leaves
        everything as it is and counts the step in `skipped`, "raise" raises FloatingPointError.
    max_skips : int, optional
        With "skip", raise FloatingPointError after this many skipped steps in a row.
    zero_grads : bool, default False
        Set the gradients to zero as part of the step, also of a skipped step.
    flush_denormals : bool, default False
        Set subnormal numbers in the state to zero after the step.
    master : {"split", "float32", None}, optional
        How parameters of 16 bits are stepped with the precision of float32. "split", for bfloat16 only and its default,
        keeps the other 16 bits of a float32 for each parameter in a second array. "float32", the default for float16,
        keeps a float32 copy. None keeps nothing: every step rounds the parameters.
    state_dtype : {"float32", "float64", "bfloat16", "float16", "int8"} or dict, optional
        Dtype in which state arrays are kept, or a dict with one for each name of a state array. The default is the
        dtype of the arithmetic: float64 for float64 and complex128 parameters, else float32. "int8", for real
        parameters that are stepped in float32, keeps averages in one byte with a float32 scale for each 256 weights,
        and Rprop's step sizes in one byte, for which `etas` have to be powers of a root of 2: (0.5, 2**0.25). Averages
        of fewer than 4096 weights stay in float32. `state` shows all of it in float32, read-only.
    rounding : {"nearest", "stochastic"}, default "nearest"
        How numbers are rounded that are stored in fewer bits than the rule computes in: parameters of 16 bits with
        ``master=None``, and state arrays of a narrower `state_dtype`. "nearest" rounds to nearest, ties to even.
        "stochastic" rounds each to one of both neighbours at random, so that its expected value is the number itself:
        steps much smaller than the last bit are not lost, but add up on average. Where nothing is rounded, as in
        float32 throughout and in masters, it makes no difference.
    seed : int, default 0
        Of the random bits of "stochastic", which are a hash of the seed, the number of the parameter in the optimizer,
        the array, its count of steps, and the index of the element in C order. So the same run has the same bits on
        every backend, number of threads and layout, and goes on with them after `load`, which sets the seed.
    publish : like `params`, optional
        Arrays of bfloat16 or float16, one for each parameter, that get a copy of it, rounded to nearest: when the
        optimizer is made, by each step in the same pass over memory, and by `load`. None for a parameter without one;
        those with one are float32. The optimizer never reads them. Parameters that are added later have none.
    cast_grads : bool, default False
        Accept float64 gradients for narrower parameters, and round each to float32 as it is read.
    threads : int or "auto", default "auto"
        Number of threads; "auto" measures how many make the step faster.
    backend : {"c", "numba", "numpy"}, optional
        What runs the rule; the default is that which `proptim.backend` returns.

    Attributes
    ----------
    param_groups : tuple of dict
        The hyperparameters and parameters of each group, and any other keys that it was given, such as a name.
    defaults : dict
        The hyperparameters of groups that do not name their own; read-only.
    state : dict of dict
        Name or index of each parameter -> its state arrays and counts; only the elements of the arrays can be set.
    ema : dict of arrays
        Name or index of each parameter -> the average of its weights, of its shape; read-only.
    steps : int
        Completed steps, and rounds of `step_param` that have begun; skipped steps do not count.
    skipped : int
        Steps that were skipped.
    grad_norm : float or None
        The global norm of the gradients, before clipping, at the last step that computed it, as `clip_norm` does, or
        was given it.

    Raises
    ------
    ValueError
        For an option or hyperparameter out of range, read-only arrays, arrays that share memory, shapes that differ.
    TypeError
        For an unknown keyword, and for anything that is not an array of a supported dtype in CPU memory.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> w, b = np.ones(2), np.zeros(1)
    >>> opt = proptim.SGD([{"params": [w]}, {"params": [b], "lr": 1.0}], lr=0.5, clip_norm=5.0)
    >>> opt.step([np.array([6.0, 8.0]), np.array([0.0])])
    >>> w.round(6), opt.grad_norm
    (array([-0.5, -1. ]), 10.0)
    >>> opt.param_groups[1]["lr"] = 0.5
    >>> opt.lr = 0.1  # sets all groups; allowed where all have the same value
    >>> [group["lr"] for group in opt.param_groups]
    [0.1, 0.1]

    Notes
    -----
    Hyperparameters, `weight_decay`, `decoupled_weight_decay`, `maximize`, `clip_value` and `lazy_rows` can be set at
    any time for each group, and for all groups as attributes; `ema` for each group. The numbers among them, `clip_norm`
    and `grad_scale` may be schedules: callables of the number of completed steps, see `proptim.schedules`.

    A gradient is scaled (`grad_scale`, `clip_norm`, `maximize`), clipped by value, and then gets its L2 penalty.

    A subclass states its rule; see ``proptim.rule.Rule``.
    """

    lr: Any
    lazy_rows = Hyperparameter("lazy_rows")
    clip_norm, grad_scale, nonfinite, max_skips, flush_denormals, seed = (Setting() for _ in range(6))
    master, state_dtype, rounding, cast_grads, threads, backend = (Setting(fixed=True) for _ in range(6))

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in cls.hyper:
            if not hasattr(cls, name):
                setattr(cls, name, Hyperparameter(name))

    # Construction ------------------------------------------------------------------------------------------------

    def __init__(self, params: Any, hyper: dict[str, Any], options: Options) -> None:
        for key in options:
            if key not in Options.__annotations__:
                hint = did_you_mean(self.meant(key, *Options.__annotations__))
                raise TypeError(
                    f"{type(self).__name__} got an unexpected keyword argument {key!r}{hint}; expected some of: "
                    f"{', '.join([*hyper, *Options.__annotations__])}"
                )
        given: dict[str, Any] = {key: frozen(options.get(key, default)) for key, default in SETTINGS.items()}
        given["backend"] = _backend.chosen(given["backend"])
        if isinstance(given["state_dtype"], Mapping):
            given["state_dtype"] = dict(given["state_dtype"])  # a copy: later changes of the dict have no effect
        own = {k: options.get(k, self.grouped[k]) for k in (*GROUP_OPTIONS, *OBJECT_OPTIONS) if k not in hyper}
        self._defaults = {key: frozen(value) for key, value in {**hyper, **own}.items()}
        take_options(given, 0)
        self._stepper = Stepper(type(self), given)
        self._stepper.add_groups(parse_groups(params), self._defaults, options.get("publish"))
        if options.get("grads") is not None:
            self._stepper.bind(options["grads"])
        self._stepper.publish()

    def __setattr__(self, name: str, value: Any) -> None:
        ours = type(self).__module__.startswith("proptim.")  # a subclass may have attributes of its own
        allowed = name.startswith("_") or name in vars(Optimizer)  # methods may be wrapped
        if ours and not allowed and not hasattr(getattr(type(self), name, None), "__set__"):
            hint = did_you_mean(self.meant(name, *SETTINGS))
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} to set{hint}")
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        """The names for users of an optimizer, without those of `Rule`, which are for authors of rules and doors."""
        hidden = {*vars(Rule), *Rule.__annotations__}
        return [name for name in super().__dir__() if name.startswith("__") or name not in hidden]

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group of parameters.

        Parameters
        ----------
        param_group : dict
            "params", and the hyperparameters that differ from the defaults.

        Raises
        ------
        ValueError
            For unknown keys, and for arrays or names that the optimizer has already; nothing has changed then.
        TypeError
            If it is not a dict, or holds something that is not an array; nothing has changed then.
        """
        if not isinstance(param_group, Mapping):
            raise TypeError(f"param_group is {type(param_group).__name__}; expected a dict")
        with self._stepper.claim:
            self._stepper.add_groups([param_group], self._defaults)

    def remove_param_group(self, index: int) -> None:
        """Remove a group of parameters with their state; the indices of later parameters move up.

        Parameters
        ----------
        index : int
            Index into `param_groups`.

        Raises
        ------
        IndexError
            If there is no such group.
        ValueError
            If it is the only group.
        """
        with self._stepper.claim:
            self._stepper.remove_group(index)

    @property
    def param_groups(self) -> tuple[Group, ...]:
        """The hyperparameters and parameters of each group."""
        return self._stepper.groups

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The hyperparameters of groups that do not name their own."""
        return Shown(self._defaults, "groups have hyperparameters of their own: set those of param_groups")

    # The step ----------------------------------------------------------------------------------------------------

    def step(self, grads: Any = None, *, loss: float | None = None, grad_norm: float | None = None) -> None:
        """Step every parameter once, in place.

        Parameters
        ----------
        grads : like `params`, optional
            A gradient for each parameter, None for a parameter that this step leaves out. A gradient of some rows of a
            parameter is `proptim.Rows`, a sparse matrix of SciPy in csr format, or a sparse tensor of torch. They stay
            bound: a call without `grads` reads the same arrays again.
        loss : float, optional
            The loss, for rules that need it: Rprop's "irprop+".
        grad_norm : float, optional
            The global norm of these gradients, if the caller knows it already, as `proptim.global_norm` computes it: of
            the gradients as they are passed, before `grad_scale`. It is not checked, and the step does not read the
            gradients to compute it. If it is finite, all gradients are taken to be finite; if it is NaN or infinite,
            some gradient is taken not to be, here or in another process, and `nonfinite` decides what to do. Without
            `clip_norm` and with "propagate" it is not needed, and only returned by the attribute `grad_norm`.

        Raises
        ------
        ValueError, TypeError
            For gradients that do not fit, if every one is None, and for a `grad_norm` that is negative or not a number;
            nothing has changed then.
        FloatingPointError
            As `nonfinite` says; nothing has changed then.
        RuntimeError
            If another thread is stepping this optimizer.

        Examples
        --------
        >>> import numpy as np, proptim
        >>> w, grad = np.zeros(2), np.array([3.0, 4.0])
        >>> opt = proptim.SGD([w], lr=1.0, clip_norm=1.0)
        >>> opt.step([grad], grad_norm=proptim.global_norm([grad]))  # the norm is not measured a second time
        >>> w.round(5), opt.grad_norm
        (array([-0.6, -0.8]), 5.0)
        """
        if grad_norm is not None or not self._stepper.latest.repeat(grads):
            self._stepper.step(grads, loss, grad_norm)

    def step_param(self, key: int | str, grad: Any) -> None:
        """Step one parameter as soon as its gradient exists and is still in the cache.

        Stepping every parameter once is one round, and equals one `step`. `steps` counts a round as soon as its first
        parameter is stepped. A parameter that is stepped again begins the next round, and `step` ends an incomplete
        one. Not possible with `clip_norm` or "irprop+", which need all gradients or the loss. Raises what `step`
        raises.

        Parameters
        ----------
        key : int or str
            Index or name of the parameter.
        grad : array
            Its gradient.
        """
        self._stepper.step_param(key, grad)

    @property
    def zero_grads(self) -> bool:
        """Whether a step sets the gradients to zero; it can be switched on only if the bound gradients are writable."""
        return bool(self._stepper.settings["zero_grads"])

    @zero_grads.setter
    def zero_grads(self, on: bool) -> None:
        if is_on("zero_grads", on):
            settings = self._stepper.settings
            check_gradients(self._stepper.bound(), [], self._stepper.parameters, True, settings["cast_grads"])
        self._stepper.set("zero_grads", bool(on))

    def zero_grad(self) -> None:
        """Set the gradients that are bound, or were last passed, to zero."""
        with self._stepper.claim:
            self._stepper.zero_grad()

    def catch_up(self) -> None:
        """With ``lazy_rows=False``, make up the steps that rows without a gradient have missed, in all parameters.

        After it parameters and state are those after dense steps, within rounding. Call it before reading or writing
        them between steps. What has to see them whole calls it itself: `state_dict`, `save`, copies and pickles,
        `reset`, `remove_param_group`, and a step with a dense gradient. It takes a dense pass over the tables that have
        rows which are behind; with ``lazy_rows=True`` it does nothing.

        Raises
        ------
        RuntimeError
            If another thread is stepping this optimizer.
        ValueError
            If a tensor of torch has been given other memory; nothing has changed then.

        Examples
        --------
        >>> import numpy as np, proptim
        >>> table = np.ones((3, 2))
        >>> opt = proptim.SGD([table], lr=0.5, weight_decay=1.0, lazy_rows=False)
        >>> for row in (0, 0, 1):
        ...     opt.step([proptim.Rows([row], np.zeros((1, 2)))])
        >>> table[:, 0], opt.state[0]["row_step"]
        (array([0.25 , 0.125, 1.   ]), array([2, 3, 0]))
        >>> opt.catch_up()
        >>> table[:, 0], opt.state[0]["row_step"]
        (array([0.125, 0.125, 0.125]), array([3, 3, 3]))

        Notes
        -----
        If it is interrupted, by Ctrl-C for example, some rows have caught up and the others will.
        """
        with self._stepper.claim:
            self._stepper.catch_up()

    # What has been learned ---------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Completed steps, and rounds of `step_param` that have begun; skipped steps do not count."""
        return int(self._stepper.latest.steps)

    @property
    def skipped(self) -> int:
        """Steps that were skipped."""
        return int(self._stepper.latest.tally.skipped)

    @property
    def grad_norm(self) -> float | None:
        """The global norm of the gradients, before clipping, at the last step that computed it or was given it."""
        norm: float | None = self._stepper.latest.tally.norm
        return norm

    def watch(self, every: int = 1) -> Watch:
        """Start recording the steps: norms of gradients, weights and updates, and Rprop's step sizes.

        Parameters
        ----------
        every : int, default 1
            Interval between recorded steps: 10 records the 10th, the 20th and so on, as counted by `steps`.

        Returns
        -------
        Watch
            The recorded numbers, as arrays; its `save` writes them as CSV, and ``proptim.plot`` draws them. Recording
            ends when its `stop` is called or another `watch` begins. Copies and pickles of the optimizer do not record.

        Raises
        ------
        ValueError
            If `every` is not a whole number of at least 1.

        Examples
        --------
        >>> import numpy as np, proptim
        >>> opt = proptim.RMSprop({"w": np.ones(3)}, lr=0.01)
        >>> watch = opt.watch(every=2)
        >>> for _ in range(4):
        ...     opt.step([np.ones(3)])
        >>> watch["w"]["step"], watch["w"]["update_norm"].round(4)
        (array([2, 4]), array([0.0397, 0.0295]))
        >>> watch.stop()

        Notes
        -----
        The results of training do not change, bit for bit. A recorded step reads the arrays several more times and
        copies the weights, and every step takes some microseconds more while there is a watch: docs/performance.md has
        measurements.
        """
        from proptim._watch import Watch

        watch = Watch(every)
        stepper = self._stepper
        with stepper.claim:
            stepper.plan.forget()  # steps repeated by the plan alone would not be recorded
            stepper.watch = watch
        return watch

    @property
    def state(self) -> Mapping[int | str, Mapping[str, Any]]:
        """Name or index of each parameter -> its state arrays and counts."""
        mend = "write into an array, state[...][...][:] = values, load other state, or forget this with reset()"
        return Shown(_State(self._stepper, lambda i: Shown(self._state_of(i), mend)), mend)

    def _state_of(self, i: int) -> dict[str, Any]:
        p = self._stepper.parameters[i]
        clock = self._stepper.clock(i)
        rows = self._stepper.row_steps(p, int(clock[0]))
        for steps in rows.values():
            steps.flags.writeable = False
        return {**self.show_clock(clock, p.state), **self._shown(p), **rows}

    def _shown(self, p: Parameter) -> dict[str, Array]:
        """The state arrays of a parameter and its master; arrays that are made only to be shown are read-only."""
        found = opened(type(self), p.state)
        if p.plane is not None:
            found = {**found, "master": p.numbers()}
        for name, array in found.items():
            if array is not p.state.get(name):
                array.flags.writeable = False
        return {name: shown(array) for name, array in found.items()}

    @property
    def ema(self) -> Mapping[int | str, Array]:
        """Name or index of each parameter -> the average of its weights, read-only."""
        stepper = self._stepper
        keys: Iterable[int | str] = _State(stepper, lambda i: None)
        found = {
            key: p.state[AVERAGE].view() for key, p in zip(keys, stepper.parameters, strict=True) if AVERAGE in p.state
        }
        if not found:
            raise AttributeError(NONE_KEPT)
        for average in found.values():
            average.flags.writeable = False
        return Shown(found, "write into opt.state[...]['ema'][:], load other state, or set `ema` in param_groups")

    def averaged(self) -> Averaged:
        """Have the averages of the weights in their place, for as long as the block of this `with` runs.

        Parameters whose group has no `ema` stay as they are. Arrays of `publish` get the averages too. Afterwards the
        weights have their bits back, also after an exception; what was written to them meanwhile is lost.

        Returns
        -------
        context manager
            Within its block every other method, such as `step`, `load` and `state_dict`, raises RuntimeError. It has a
            copy of the weights meanwhile.

        Raises
        ------
        ValueError
            If no average is kept, or a tensor of torch has been given other memory; nothing has changed then.
        RuntimeError
            If another thread is stepping this optimizer, and within another such block. After the block, if a tensor
            has been moved to where there is no memory for its weights, such as torch's device "meta"; all others have
            theirs then.

        Examples
        --------
        >>> import numpy as np, proptim
        >>> w = np.array([1.0])
        >>> opt = proptim.SGD([w], lr=0.5, ema=0.75)
        >>> opt.step([np.array([1.0])])
        >>> with opt.averaged():
        ...     print(w)
        [0.875]
        >>> w, opt.ema[0]
        (array([0.5]), array([0.875]))
        """
        return Averaged(self._stepper.claim, self._stepper.averages)

    def reset(self, *keys: int | str) -> None:
        """Reset state arrays and counts to those of a new optimizer.

        Parameters
        ----------
        *keys : int or str
            Indices or names of the parameters to reset; without any, all parameters and also the counts of the whole
            optimizer.

        Raises
        ------
        ValueError
            For a parameter that does not exist; nothing has changed then.
        """
        with self._stepper.claim:
            every = range(len(self._stepper.parameters))
            self._stepper.reset([self._stepper.number(key) for key in keys] if keys else every)

    def state_dict(self) -> dict[str, Any]:
        """A copy of state and hyperparameters, under torch.optim's keys.

        Returns
        -------
        dict
            "state", "param_groups" and counts, made of dicts, lists, arrays and numbers. It holds no schedules, since
            these are code, but their values at the next step, also of `clip_norm` and `grad_scale` if they are
            schedules. Other options of the whole optimizer are not part of it.

        Raises
        ------
        ValueError, TypeError
            If `param_groups` hold a value that the next step would refuse, because `load_state_dict` would too.
        """
        from proptim import _state

        stepper = self._stepper
        with stepper.claim:
            stepper.prepare(self.steps)  # refuses what could not be loaded
            stepper.catch_up()
            stepper.dissolve()
            tally = stepper.latest.tally
            counts = {
                "steps": self.steps,
                "skipped": tally.skipped,
                "skips_in_a_row": tally.in_a_row,
                "round": sorted(stepper.latest.begun),
                **{key: at_step(stepper.settings[key], self.steps) for key in self._scheduled()},
                **({"seed": self.seed} if self.rounding == "stochastic" else {}),
            }
            saved = _state.dump(type(self), self._members, counts)
            members = [p for _, members in self._members for p in members]
            for p, entry in zip(members, saved["state"].values(), strict=True):
                entry.update(stepper.row_steps(p, int(p.clock[0])))
            return saved

    def _scheduled(self) -> list[str]:
        """The options of the whole optimizer that are schedules."""
        return [key for key in NUMBERS if callable(self._stepper.settings[key])]

    @property
    def _members(self) -> list[tuple[Group, list[Parameter]]]:
        return [(group, self._stepper.members[id(group)]) for group in self._stepper.groups]

    def load_state_dict(self, state_dict: Mapping[str, Any], *, cast: bool = False) -> None:
        """Take over the state and hyperparameters of another optimizer.

        Parameters
        ----------
        state_dict : dict
            What `state_dict` of this class, or of the torch.optim class of this name, returned. This optimizer keeps
            its schedules, and the hyperparameters that define its class, such as AdamW's decoupled decay.
        cast : bool, default False
            Accept arrays of other dtypes than those in which this optimizer keeps its state, and round each number
            once. float32 state of float64 parameters is accepted in any case.

        Raises
        ------
        ValueError, TypeError
            If it does not fit these parameters; nothing has changed then.

        Notes
        -----
        Loading leaves the parameters as they are, so that model and optimizer can be restored in either order: of the
        master of a bfloat16 parameter it takes only the low 16 bits. The exception is a parameter of 16 bits with
        ``master="float32"``, which is set to its master, rounded.
        """
        from proptim import _state

        is_on("cast", cast)
        with self._stepper.claim:
            loaded = _state.parse(type(self), self._members, state_dict, self.state_dtype, cast)
            tally = Tally(loaded.skipped, loaded.skips_in_a_row, self.grad_norm)
            counts = {"steps": loaded.steps, "tally": tally, "begun": loaded.round}
            options = {key: frozen(state_dict[key]) for key in (*NUMBERS, "seed") if key in state_dict}
            for key in self._scheduled():
                options.pop(key, None)  # an option that is a schedule here stays one
            self._stepper.load(loaded.parameters, loaded.hyper, options, **counts)

    def save(self, path: str | PathLike[str]) -> None:
        """Write `state_dict()` to an .npz file, atomically: a failed or interrupted call leaves no partial file.

        Parameters
        ----------
        path : str or path-like
            An existing file is replaced.

        Raises
        ------
        OSError
            If it cannot be written.
        ValueError
            If the path names something else than a regular file, and if a group holds a value that cannot be saved.
        ValueError, TypeError
            As by `state_dict`; the file has not changed then.
        """
        from proptim import checkpoint

        checkpoint.write(path, self.state_dict())

    def load(self, path: str | PathLike[str], *, cast: bool = False) -> None:
        """`load_state_dict` from a file that `save` wrote; no code in the file is ever executed.

        Parameters
        ----------
        path : str or path-like
            The file.
        cast : bool, default False
            As in `load_state_dict`.

        Raises
        ------
        ValueError
            Naming the file, if it is damaged or does not fit; nothing has changed then.
        TypeError
            If `cast` is neither True nor False.
        """
        from proptim import checkpoint

        is_on("cast", cast)
        saved = checkpoint.read(path)
        try:
            self.load_state_dict(saved, cast=cast)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"{os.fspath(path)} does not fit this {type(self).__name__}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        stepper = self._stepper
        with stepper.claim:
            stepper.catch_up()
            stepper.dissolve()
            plan, number = stepper.plan, {id(group): i for i, group in enumerate(stepper.groups)}
            return {
                **{k: v for k, v in vars(self).items() if k != "_stepper"},
                "settings": stepper.settings,
                "groups": [(dict(group), group.dtypes) for group in stepper.groups],
                "parameters": [
                    (p.place, p.name, p.given, number[id(p.group)], p.clock, p.state, p.plane, p.published)
                    for p in stepper.parameters
                ],
                "planned": [stepper.planned[id(group)] for group in stepper.groups],
                "given": plan.given,
                "counts": {"steps": plan.steps, "tally": plan.tally, "begun": plan.begun},
                "added": [number[key] for key in stepper.added],
            }

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        settings, data, parameters, planned, given, counts, added = (
            state.pop(key) for key in ("settings", "groups", "parameters", "planned", "given", "counts", "added")
        )
        vars(self).update(state)
        stepper = Stepper.restored(type(self), settings, data, parameters, planned, given, counts)
        stepper.added = {id(stepper.groups[i]) for i in added}
        vars(self)["_stepper"] = stepper

    def __copy__(self) -> Any:
        raise TypeError(
            f"a shallow copy of {type(self).__name__} would step the same arrays with counts of its own; expected "
            "copy.deepcopy() of optimizer and parameters, or another optimizer and load_state_dict(opt.state_dict())"
        )

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} (backend={self.backend!r}, threads={self.threads!r}, steps={self.steps}"]
        for i, (group, members) in enumerate(self._members):
            count = sum(p.array.size for p in members)
            lines.append(f"Parameter Group {i}: {len(members)} arrays, {count:,} weights")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join(lines) + "\n)"

    def _repr_html_(self) -> str:
        """What a notebook shows: groups, hyperparameters, and the state arrays with their sizes in bytes."""
        from proptim import _html

        return _html.show(self)
