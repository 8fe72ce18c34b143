"""The door to Keras 3 on its torch backend: optimizers for ``model.compile(optimizer=...)``.

The rules and their hyperparameters are those of `proptim.torch`, the learning rate and everything around the rule those
of Keras: schedules, clipping, EMA, gradient accumulation, decoupled weight decay. State is made of Keras variables, so
``model.save`` has it. ``KERAS_BACKEND=torch`` has to be set before Keras is imported.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch

from proptim import OPTIMIZERS
from proptim._options import GROUP_OPTIONS, OBJECT_OPTIONS
from proptim._parameters import frozen
from proptim.rule import Rule

try:
    import keras
except ModuleNotFoundError as error:
    if error.name != "keras":
        raise
    raise ModuleNotFoundError(
        "proptim.keras needs Keras 3, which is not installed: pip install keras", name="keras"
    ) from error

if keras.backend.backend() != "torch":
    raise ImportError(
        f"proptim.keras needs the torch backend of Keras, which runs on {keras.backend.backend()}: set "
        "KERAS_BACKEND=torch before Keras is imported"
    )

import proptim.torch

AROUND = (
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
    "name",
)
"""Keyword arguments of every optimizer of Keras."""


class Door(keras.optimizers.Optimizer):  # type: ignore[misc]
    """Base of the classes here: an optimizer of `proptim.torch` for the variables of a model."""

    _rule: ClassVar[type[Rule]]
    _torch: ClassVar[Any]
    _own: ClassVar[dict[str, Any]]
    """Hyperparameters of the rule, except the learning rate, and their defaults."""
    _inner: Any = None

    def __init__(self, learning_rate: Any, own: dict[str, Any], around: dict[str, Any]) -> None:
        for key in own:
            if key not in self._own:
                known = ", ".join(["learning_rate", *self._own, *AROUND])
                raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {key!r}; expected: {known}")
        super().__init__(learning_rate=learning_rate, **around)
        self._hyper = {**self._own, **{key: frozen(value) for key, value in own.items()}}  # a pair is a list in a file
        h = {**GROUP_OPTIONS, **self._torch._hyper, **self._hyper, "lr": self._rate()}
        self._rule.check_all(h)
        if self._rule.needs_loss(h):
            raise ValueError(f"variant={h['variant']!r} compares losses, which Keras does not pass to an optimizer")
        if "lr" in self._rule.fixed and isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            raise ValueError(f"{type(self).__name__} reads its learning rate only once; expected a number")
        self._numbers = h

    def _rate(self) -> float:
        rate = self._get_current_learning_rate()
        return float(getattr(rate, "value", rate))  # of a variable of Keras, a tensor or a number

    def build(self, variables: list[Any]) -> None:
        """Make the state for these variables."""
        if self.built:
            return
        super().build(variables)
        h = {**self._numbers, "lr": self._rate()}
        params = [v.value for v in self._trainable_variables]
        self._inner = self._torch(params, lr=h["lr"], weight_decay=0.0, **self._hyper)  # that is Keras's to do
        for v, p in zip(self._trainable_variables, params, strict=True):
            starts = self._inner._first(h, p) | {
                n: torch.tensor(self._rule.clock_start[n]) for n in self._torch._counted
            }
            own = {}
            for name, start in starts.items():
                kind = "float32" if name in self._torch._counted else str(start.dtype).removeprefix("torch.")
                place = f"{v.path.replace('/', '_')}_{name}"
                made = self.add_variable(tuple(start.shape), "zeros", kind, name=place)
                made.assign(start)
                own[name] = made.value
            self._inner.state[p] = own

    def _backend_update_step(self, grads: list[Any], trainable_variables: list[Any], learning_rate: Any) -> None:
        for group in self._inner.param_groups:
            group["lr"] = float(learning_rate)
        of = {id(v): g for v, g in zip(trainable_variables, grads, strict=True)}
        params = [v.value for v in self._trainable_variables]
        before = [p.grad for p in params]
        try:
            for v, p in zip(self._trainable_variables, params, strict=True):
                p.grad = of.get(id(v))
            self._inner.step()
        finally:
            for p, grad in zip(params, before, strict=True):
                p.grad = grad

    def get_config(self) -> dict[str, Any]:
        """The arguments from which `from_config` makes this optimizer again."""
        return {**super().get_config(), **self._hyper}


def door(rule: type[Rule]) -> type[Door]:
    """The optimizer class of a rule for Keras."""
    name = rule.__name__
    kind = getattr(proptim.torch, name)
    taken = inspect.signature(kind).parameters
    # Keras has weight decay, clipping and averages of its own; what a class is is no argument
    outside = {*GROUP_OPTIONS, *OBJECT_OPTIONS, *rule.identity}
    own = {key: taken[key].default for key in kind._hyper if key not in ("lr", *outside)}
    rate = taken["lr"].default
    keyword, either = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    usual = inspect.signature(keras.optimizers.Optimizer.__init__).parameters
    around = {key: usual[key].default if key != "name" else name for key in AROUND}
    if rule.identity:  # AdamW, whose decay is on by default
        around["weight_decay"] = taken["weight_decay"].default
    parameters = [inspect.Parameter("learning_rate", either, default=rate)]
    parameters += [inspect.Parameter(key, keyword, default=value) for key, value in {**own, **around}.items()]

    def __init__(self: Any, learning_rate: Any = rate, **keywords: Any) -> None:
        asked = {key: keywords.pop(key, default) for key, default in around.items()}
        Door.__init__(self, learning_rate, keywords, asked)

    itself = inspect.Parameter("self", either)
    __init__.__signature__ = inspect.Signature([itself, *parameters])  # type: ignore[attr-defined]
    members = {
        "__module__": __name__,
        "__doc__": DOC.format(name=name, names=", ".join(own) or "none besides"),
        "__init__": __init__,
        "__signature__": inspect.Signature(parameters),
        "_rule": rule,
        "_torch": kind,
        "_own": own,
    }
    cls: Any = type(name, (Door,), members)
    return keras.saving.register_keras_serializable(package="proptim")(cls)  # type: ignore[no-any-return]


DOC = """`proptim.torch.{name}` as an optimizer of Keras on the torch backend.

Parameters
----------
learning_rate : float or schedule of Keras
    With the default of torch.optim.
{names}
    Hyperparameters, as in `proptim.torch.{name}`.
weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency, loss_scale_factor, \
gradient_accumulation_steps, name
    As in every optimizer of Keras; weight decay is decoupled.

Raises
------
ValueError
    For a hyperparameter out of range, and for Rprop's "irprop+", which needs the loss.
TypeError
    For an unknown keyword.

Examples
--------
>>> model.compile(optimizer=proptim.keras.{name}(learning_rate=1e-3), loss="mse")  # doctest: +SKIP
"""

__all__ = [rule.__name__ for rule in OPTIMIZERS.values()]
globals().update({rule.__name__: door(rule) for rule in OPTIMIZERS.values()})
