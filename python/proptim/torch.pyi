"""What `proptim.torch` makes when it is imported. Written by tools/torch_stub.py."""

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

class SGD(Door, torch.optim.SGD):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.001,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | torch.Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        clip_value: float | None = None,
        ema: float | None = None,
        capturable: bool = False,
        clip_norm: float | None = None,
        grad_scale: float = 1.0,
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        max_skips: int | None = None,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: Literal["float32", "float64", "bfloat16", "float16", "int8"] | dict[str, str] | None = None,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
        cast_grads: bool = False,
        threads: int | Literal["auto"] = "auto",
        backend: Literal["c", "numba", "numpy"] | None = None,
        fallback: Literal["warn", "torch", "error"] = "warn",
    ) -> None: ...

class Rprop(Door, torch.optim.Rprop):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.01,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-06, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        clip_value: float | None = None,
        variant: Literal["rprop-", "irprop-", "rprop+", "irprop+"] = "irprop-",
        ema: float | None = None,
        fused: bool | None = None,
        clip_norm: float | None = None,
        grad_scale: float = 1.0,
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        max_skips: int | None = None,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: Literal["float32", "float64", "bfloat16", "float16", "int8"] | dict[str, str] | None = None,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
        cast_grads: bool = False,
        threads: int | Literal["auto"] = "auto",
        backend: Literal["c", "numba", "numpy"] | None = None,
        fallback: Literal["warn", "torch", "error"] = "warn",
    ) -> None: ...

class RMSprop(Door, torch.optim.RMSprop):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-08,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        decoupled_weight_decay: bool = False,
        clip_value: float | None = None,
        nesterov: bool = False,
        eps_inside_sqrt: bool = False,
        lr_in_momentum: bool = False,
        bias_correction: bool = False,
        initial_square_avg: float | None = 0.0,
        ema: float | None = None,
        fused: bool | None = None,
        clip_norm: float | None = None,
        grad_scale: float = 1.0,
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        max_skips: int | None = None,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: Literal["float32", "float64", "bfloat16", "float16", "int8"] | dict[str, str] | None = None,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
        cast_grads: bool = False,
        threads: int | Literal["auto"] = "auto",
        backend: Literal["c", "numba", "numpy"] | None = None,
        fallback: Literal["warn", "torch", "error"] = "warn",
    ) -> None: ...

class Adagrad(Door, torch.optim.Adagrad):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.01,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        clip_value: float | None = None,
        eps_inside_sqrt: bool = False,
        ema: float | None = None,
        capturable: bool = False,
        clip_norm: float | None = None,
        grad_scale: float = 1.0,
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        max_skips: int | None = None,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: Literal["float32", "float64", "bfloat16", "float16", "int8"] | dict[str, str] | None = None,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
        cast_grads: bool = False,
        threads: int | Literal["auto"] = "auto",
        backend: Literal["c", "numba", "numpy"] | None = None,
        fallback: Literal["warn", "torch", "error"] = "warn",
    ) -> None: ...

class Adadelta(Door, torch.optim.Adadelta):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-06,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        decoupled_weight_decay: bool = False,
        clip_value: float | None = None,
        ema: float | None = None,
        fused: bool | None = None,
        clip_norm: float | None = None,
        grad_scale: float = 1.0,
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        max_skips: int | None = None,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: Literal["float32", "float64", "bfloat16", "float16", "int8"] | dict[str, str] | None = None,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
        cast_grads: bool = False,
        threads: int | Literal["auto"] = "auto",
        backend: Literal["c", "numba", "numpy"] | None = None,
        fallback: Literal["warn", "torch", "error"] = "warn",
    ) -> None: ...

class Adam(Door, torch.optim.Adam):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.001,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        clip_value: float | None = None,
        eps_hat: bool = False,
        ema: float | None = None,
        clip_norm: float | None = None,
        grad_scale: float = 1.0,
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        max_skips: int | None = None,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: Literal["float32", "float64", "bfloat16", "float16", "int8"] | dict[str, str] | None = None,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
        cast_grads: bool = False,
        threads: int | Literal["auto"] = "auto",
        backend: Literal["c", "numba", "numpy"] | None = None,
        fallback: Literal["warn", "torch", "error"] = "warn",
    ) -> None: ...

class AdamW(Door, torch.optim.AdamW):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.001,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        clip_value: float | None = None,
        eps_hat: bool = False,
        ema: float | None = None,
        clip_norm: float | None = None,
        grad_scale: float = 1.0,
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        max_skips: int | None = None,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: Literal["float32", "float64", "bfloat16", "float16", "int8"] | dict[str, str] | None = None,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
        cast_grads: bool = False,
        threads: int | Literal["auto"] = "auto",
        backend: Literal["c", "numba", "numpy"] | None = None,
        fallback: Literal["warn", "torch", "error"] = "warn",
    ) -> None: ...

class NAdam(Door, torch.optim.NAdam):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0,
        momentum_decay: float = 0.004,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        clip_value: float | None = None,
        ema: float | None = None,
        fused: bool | None = None,
        clip_norm: float | None = None,
        grad_scale: float = 1.0,
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        max_skips: int | None = None,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: Literal["float32", "float64", "bfloat16", "float16", "int8"] | dict[str, str] | None = None,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
        cast_grads: bool = False,
        threads: int | Literal["auto"] = "auto",
        backend: Literal["c", "numba", "numpy"] | None = None,
        fallback: Literal["warn", "torch", "error"] = "warn",
    ) -> None: ...

class Lion(Door):
    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.0001,
        betas: tuple[float, float] = (0.9, 0.99),
        *,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: float | None = None,
        ema: float | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: bool = False,
        capturable: bool = False,
        clip_norm: float | None = None,
        grad_scale: float = 1.0,
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        max_skips: int | None = None,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: Literal["float32", "float64", "bfloat16", "float16", "int8"] | dict[str, str] | None = None,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
        cast_grads: bool = False,
        threads: int | Literal["auto"] = "auto",
        backend: Literal["c", "numba", "numpy"] | None = None,
        fallback: Literal["warn", "torch", "error"] = "warn",
    ) -> None: ...

class Adamax(Door, torch.optim.Adamax):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        decoupled_weight_decay: bool = False,
        clip_value: float | None = None,
        ema: float | None = None,
        fused: bool | None = None,
        clip_norm: float | None = None,
        grad_scale: float = 1.0,
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        max_skips: int | None = None,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: Literal["float32", "float64", "bfloat16", "float16", "int8"] | dict[str, str] | None = None,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
        cast_grads: bool = False,
        threads: int | Literal["auto"] = "auto",
        backend: Literal["c", "numba", "numpy"] | None = None,
        fallback: Literal["warn", "torch", "error"] = "warn",
    ) -> None: ...

class RAdam(Door, torch.optim.RAdam):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        clip_value: float | None = None,
        ema: float | None = None,
        fused: bool | None = None,
        clip_norm: float | None = None,
        grad_scale: float = 1.0,
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        max_skips: int | None = None,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: Literal["float32", "float64", "bfloat16", "float16", "int8"] | dict[str, str] | None = None,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        seed: int = 0,
        cast_grads: bool = False,
        threads: int | Literal["auto"] = "auto",
        backend: Literal["c", "numba", "numpy"] | None = None,
        fallback: Literal["warn", "torch", "error"] = "warn",
    ) -> None: ...
