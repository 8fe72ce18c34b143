"""Write python/proptim/torch.pyi from the signatures of the installed package; --check says how it differs."""

from __future__ import annotations

import difflib
import inspect
import sys
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import torch

import proptim
import proptim.torch

STUB = Path(__file__).parents[1] / "python/proptim/torch.pyi"
HEAD = '''"""What `proptim.torch` makes when it is imported. Written by tools/torch_stub.py."""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch.optim.optimizer import ParamsT

class Door(torch.optim.Optimizer):
    clip_norm: float | None
    grad_scale: float
    nonfinite: Literal["propagate", "skip", "raise"]
    max_skips: int | None
    zero_grads: bool
    flush_denormals: bool
    seed: int
    fallback: Literal["warn", "torch", "error"]
    @property
    def master(self) -> Literal["auto", "split", "float32"] | None: ...
    @property
    def state_dtype(self) -> Literal["float32", "float64", "bfloat16", "float16", "int8"] | dict[str, str] | None: ...
    @property
    def rounding(self) -> Literal["nearest", "stochastic"]: ...
    @property
    def cast_grads(self) -> bool: ...
    @property
    def threads(self) -> int | Literal["auto"]: ...
    @property
    def backend(self) -> Literal["c", "numba", "numpy"] | None: ...
    @property
    def skipped(self) -> int: ...
    @property
    def grad_norm(self) -> float | None: ...
    @property
    def ema(self) -> dict[Any, torch.Tensor]: ...
    def averaged(self) -> AbstractContextManager[None]: ...
    def load_state_dict(self, state_dict: dict[str, Any], *, cast: bool = False) -> None: ...
    def step(self, closure: Any = None) -> Any: ...

class Offload(torch.optim.Optimizer):
    accumulate: int
    clip_norm: float | None
    grad_scale: float
    nonfinite: Literal["propagate", "skip", "raise"]
    max_skips: int | None
    flush_denormals: bool
    seed: int
    def __init__(
        self,
        params: ParamsT,
        cls: type[Door] | str,
        *,
        master: Literal["split", "float32"] = "split",
        clip_norm: float | None = None,
        accumulate: int = 1,
        **options: Any,
    ) -> None: ...
    @property
    def master(self) -> Literal["split", "float32"]: ...
    @property
    def rounding(self) -> Literal["nearest", "stochastic"]: ...
    @property
    def state_dtype(self) -> Literal["float32", "float64", "bfloat16", "float16", "int8"] | dict[str, str] | None: ...
    @property
    def cast_grads(self) -> bool: ...
    @property
    def threads(self) -> int | Literal["auto"]: ...
    @property
    def backend(self) -> Literal["c", "numba", "numpy"] | None: ...
    @property
    def skipped(self) -> int: ...
    @property
    def grad_norm(self) -> float | None: ...
    def load_state_dict(self, state_dict: dict[str, Any], *, cast: bool = False) -> None: ...
    def step(self, closure: Any = None) -> Any: ...
    def synchronize(self) -> None: ...

'''


def kind(annotation: Any) -> str:
    """A type, as it is written."""
    if annotation is proptim.torch.PARAMS:
        return "ParamsT"
    if annotation is type(None):
        return "None"
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(map(kind, get_args(annotation)))
    if get_origin(annotation) is None:
        text = annotation.__qualname__
        return text if annotation.__module__ == "builtins" else f"{annotation.__module__}.{text}"
    return str(annotation).replace("typing.", "").replace("'", '"')


def parameter(p: inspect.Parameter) -> str:
    """One parameter with its type and default."""
    default = f'"{p.default}"' if isinstance(p.default, str) else repr(p.default)
    return f"{p.name}: {kind(p.annotation)}" + (f" = {default}" if p.default is not p.empty else "")


def text() -> str:
    """The whole stub."""
    lines = [HEAD]
    for name in proptim.torch.__all__:
        parameters = inspect.signature(getattr(proptim.torch, name)).parameters.values()
        either = [parameter(p) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        keywords = [parameter(p) for p in parameters if p.kind is p.KEYWORD_ONLY]
        bases = f"Door, torch.optim.{name}" if hasattr(torch.optim, name) else "Door"
        lines.append(f"class {name}({bases}):\n    def __init__(\n        self,\n")
        lines += [f"        {each},\n" for each in [*either, "*", *keywords]]
        lines.append("    ) -> None: ...\n\n")
    return "".join(lines)[:-1]


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        kept = STUB.read_text(encoding="utf-8").splitlines(keepends=True)
        sys.exit(
            "".join(difflib.unified_diff(kept, text().splitlines(keepends=True), str(STUB), "as it should be")) or None
        )
    STUB.write_text(text(), encoding="utf-8")
