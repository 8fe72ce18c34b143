"""Write python/proptim/functional.pyi from the signatures of the installed package; --check prints differences."""

from __future__ import annotations

import difflib
import inspect
import sys
from pathlib import Path
from typing import Any

import proptim
from proptim import functional
from proptim._storage import SCALE

STUB = Path(__file__).parents[1] / "python/proptim/functional.pyi"
HEAD = '''"""What `proptim.functional` makes when it is imported. Written by tools/functional_stub.py."""

from collections.abc import Callable, Iterable, Mapping
from inspect import Signature
from typing import Any, ClassVar, Literal, overload

from proptim._arrays import Array
from proptim._parameters import Schedulable
from proptim.rule import Rule

class OneShot:
    optimizer: type[Rule]
    keywords: dict[str, Any]
    losses: bool
    given: tuple[str, ...]
    lenient: ClassVar[bool]
    __name__: str
    __qualname__: str
    __signature__: Signature
    def __init__(self, optimizer: type[Rule]) -> None: ...
    def _signature(self) -> Signature: ...
    def _arrays(self, gradient: tuple[str, ...], args: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]: ...
    def __call__(self, *args: Any, **keywords: Any) -> None: ...
    def init(
        self, param: Any, *, master: str | None = "auto", state_dtype: Any = None, ema: Any = None, **hyper: Any
    ) -> dict[str, Array]: ...

'''
TAIL = """
def global_norm(grads: Any) -> float: ...
def clip_grad_norm(grads: Any, max_norm: float) -> float: ...
@overload
def flatten(params: Mapping[str, Any]) -> tuple[Array, dict[str, Array]]: ...
@overload
def flatten(params: Iterable[Any]) -> tuple[Array, list[Array]]: ...
def decay_groups(
    params: Any, weight_decay: Schedulable, without: Callable[[str | None, Array], bool] | None = None
) -> list[dict[str, Any]]: ...
"""
NAMED = {
    "step": "int | None",
    "clip_value": "Schedulable | None",
    "grad_scale": "Schedulable",
    "master": "Any",
    "ema": "Schedulable | None",
    "average": "Any",
    "publish": "Any",
    "threads": 'int | Literal["auto"]',
    "backend": 'Literal["c", "numba", "numpy"] | None',
}


STORAGE = (
    'master: Literal["auto", "split", "float32"] | None = "auto"',
    "state_dtype: str | Mapping[str, str] | None = None",
    "ema: Schedulable | None = None",
)
"""The arguments of `init` besides hyperparameters."""


def kind(name: str, default: Any) -> str:
    """The annotation of a keyword argument."""
    if name in NAMED:
        return NAMED[name]
    if name.endswith(SCALE):
        return "Any"
    if default is None:
        return "float | None"
    if isinstance(default, tuple):
        return f"tuple[{', '.join(['Schedulable'] * len(default))}]"
    return "Schedulable" if isinstance(default, float) else type(default).__name__


def parameter(p: inspect.Parameter) -> str:
    """One parameter; an array may be anything that is stepped in place."""
    annotation = "Any" if p.kind is p.POSITIONAL_OR_KEYWORD else kind(p.name, p.default)
    default = f'"{p.default}"' if isinstance(p.default, str) else repr(p.default)
    return f"{p.name}: {annotation}" + (f" = {default}" if p.default is not p.empty else "")


def text() -> str:
    """The whole stub."""
    lines = [HEAD]
    for name, cls in proptim.OPTIMIZERS.items():
        shown = inspect.signature(getattr(functional, name)).parameters.values()
        arrays = [parameter(p) for p in shown if p.kind is p.POSITIONAL_OR_KEYWORD]
        keywords = [parameter(p) for p in shown if p.kind is p.KEYWORD_ONLY]
        hyper = [parameter(p) for p in shown if p.name in cls.hyper]
        lines.append(f"class _{cls.__name__}(OneShot):\n    def __call__(\n        self,\n")
        lines += [f"        {each},\n" for each in [*arrays, "*", *keywords]]
        lines.append("    ) -> None: ...\n    def init(  # type: ignore[override]\n        self,\n")
        lines += [f"        {each},\n" for each in ["param: Any", "*", *STORAGE, *hyper]]
        lines.append("    ) -> dict[str, Array]: ...\n\n")
    lines += [f"{name}: _{cls.__name__}\n" for name, cls in proptim.OPTIMIZERS.items()]
    return "".join([*lines, TAIL])


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        kept = STUB.read_text(encoding="utf-8").splitlines(keepends=True)
        sys.exit(
            "".join(difflib.unified_diff(kept, text().splitlines(keepends=True), str(STUB), "as it should be")) or None
        )
    STUB.write_text(text(), encoding="utf-8")
