"""The options with which Numba compiles functions here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numba.core.cgutils
import numba.extending

# Said aloud, for a caller compiled with other options would pass its own on. A division by zero is a number, as in
# NumPy and C, and not an exception in the middle of an array.
EXACT = {"fastmath": False, "error_model": "numpy"}
INSIDE = {**EXACT, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # for compiled code alone: quicker to compile

untyped: Any = numba  # its annotations leave out half of what it takes
types = untyped.types
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
compiled: Decorator = untyped.njit(**INSIDE)
callable_too: Decorator = untyped.njit(**EXACT)
intrinsic: Decorator = untyped.extending.intrinsic
# Not strict, which would compare the annotations of what is typed and of what is compiled.
means: Callable[..., Decorator] = partial(untyped.extending.overload, strict=False, jit_options=INSIDE)
