"""Hyperparameters with which RMSprop reproduces a run of another library.

tf1 and optax have no default learning rate: add lr=. Weight decay is decoupled in Keras: pass weight_decay= as there.
To change a number of a preset, write ``RMSprop(params, **{**presets.rmsprop["torch"], "lr": 1e-3})``.

Examples
--------
>>> import numpy as np, proptim
>>> opt = proptim.RMSprop([np.zeros(3)], **proptim.presets.rmsprop["torch"])
"""

from __future__ import annotations

from typing import Any

from proptim._parameters import Shown

# As in the sources of torch 2.13, Keras 3, tf.compat.v1.train.RMSPropOptimizer, optax 0.2.8 and timm's RMSpropTF.
_RMSPROP: dict[str, dict[str, Any]] = {
    "torch": {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8},
    "keras": {
        "lr": 1e-3,
        "alpha": 0.9,
        "eps": 1e-7,
        "eps_inside_sqrt": True,
        "lr_in_momentum": True,
        "decoupled_weight_decay": True,
    },
    "tf1": {
        "alpha": 0.9,
        "eps": 1e-10,
        "eps_inside_sqrt": True,
        "initial_square_avg": 1.0,
        "lr_in_momentum": True,
    },
    "optax": {"alpha": 0.9, "eps": 1e-8, "eps_inside_sqrt": True, "lr_in_momentum": True},
    "timm": {
        "lr": 1e-2,
        "alpha": 0.9,
        "eps": 1e-10,
        "eps_inside_sqrt": True,
        "initial_square_avg": 1.0,
        "lr_in_momentum": True,
    },
}
MEND = 'presets stay as they are: take a copy with what differs, {**preset, "lr": 1e-2}'
rmsprop = Shown({name: Shown(preset, MEND) for name, preset in _RMSPROP.items()}, MEND)
"""Preset -> hyperparameters: "torch", "keras", "tf1", "optax", "timm"."""
