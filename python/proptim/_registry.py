"""THE list of optimizers: the package exports them, and whatever treats all of them alike reads this list."""

from __future__ import annotations

from proptim.adadelta import Adadelta
from proptim.adagrad import Adagrad
from proptim.adam import Adam, AdamW
from proptim.adamax import Adamax
from proptim.lion import Lion
from proptim.nadam import NAdam
from proptim.optimizer import Optimizer
from proptim.radam import RAdam
from proptim.rmsprop import RMSprop
from proptim.rprop import Rprop
from proptim.sgd import SGD

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "NAdam", "RAdam", "RMSprop", "Rprop"]

OPTIMIZERS: dict[str, type[Optimizer]] = {
    cls.__name__.lower(): cls
    for cls in (SGD, Rprop, RMSprop, Adagrad, Adadelta, Adam, AdamW, NAdam, Lion, Adamax, RAdam)
}
"""Every optimizer by name, in the order in which tables show them."""
