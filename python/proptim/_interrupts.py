"""Make changes atomic: an exception from a signal handler, such as Ctrl-C, leaves the state before a call or after it.

CPython runs signal handlers, and switches threads, between Python instructions: when a function is entered, after a
call, and at the end of a loop iteration, but never within one C call. So a function first prepares all that it changes,
and then puts it in place by one C call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain, starmap
from operator import setitem
from typing import Any

Store = tuple[Any, Any, Any]


def commit(items: Iterable[Store] = (), attributes: Iterable[Store] = (), *also: Iterable[Any]) -> None:
    """Do target[key] = value for each of `items`, then set the attributes, with no signal handler in between.

    The targets are arrays, dicts and lists, and objects without a `__setattr__` in Python. The caller has checked all
    that can fail. `also`: iterators as for `at_once`, exhausted first.
    """
    at_once(*also, starmap(setitem, items), starmap(setattr, attributes))


def at_once(*work: Iterable[Any]) -> None:
    """Exhaust iterators that run only C code, such as `map` of a C function, with no signal handler in between."""
    deque(chain(*work), maxlen=0)
