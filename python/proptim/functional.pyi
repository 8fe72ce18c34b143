"""What `proptim.functional` makes when it is imported. Written by tools/functional_stub.py."""

from collections.abc import Callable, Iterable, Mapping
from inspect import Signature
from typing import Any, Literal, overload

from proptim._arrays import Array
from proptim._parameters import Schedulable
from proptim.rule import Rule

class OneShot:
    optimizer: type[Rule]
    keywords: dict[str, Any]
    losses: bool
    __name__: str
    __signature__: Signature
    def __init__(self, optimizer: type[Rule]) -> None: ...
    def _signature(self) -> Signature: ...
    def __call__(self, *args: Any, **keywords: Any) -> None: ...
    def init(
        self, param: Any, *, master: str | None = "auto", state_dtype: Any = None, **hyper: Any
    ) -> dict[str, Array]: ...

class _SGD(OneShot):
    def __call__(
        self,
        param: Any,
        grad: Any,
        momentum_buffer: Any = None,
        *,
        step: int | None = None,
        lr: Schedulable = 0.001,
        momentum: Schedulable = 0.0,
        dampening: Schedulable = 0.0,
        nesterov: bool = False,
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
        grad_scale: float = 1.0,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Any = None,
        momentum_buffer_scale: Any = None,
        cast_grads: bool = False,
        rounding: str = "nearest",
        seed: int = 0,
        threads: int | Literal["auto"] = 1,
        backend: Literal["c", "numba", "numpy"] | None = None,
    ) -> None: ...
    def init(  # type: ignore[override]
        self,
        param: Any,
        *,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: str | Mapping[str, str] | None = None,
        lr: Schedulable = 0.001,
        momentum: Schedulable = 0.0,
        dampening: Schedulable = 0.0,
        nesterov: bool = False,
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
    ) -> dict[str, Array]: ...

class _Rprop(OneShot):
    def __call__(
        self,
        param: Any,
        grad: Any,
        step_word: Any,
        *,
        step: int | None = None,
        lr: Schedulable = 0.01,
        etas: tuple[Schedulable, Schedulable] = (0.5, 1.2),
        step_sizes: tuple[Schedulable, Schedulable] = (1e-06, 50.0),
        variant: str = "rprop-",
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
        prev_loss: float | None = None,
        loss: float | None = None,
        grad_scale: float = 1.0,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Any = None,
        step_word_scale: Any = None,
        cast_grads: bool = False,
        rounding: str = "nearest",
        seed: int = 0,
        threads: int | Literal["auto"] = 1,
        backend: Literal["c", "numba", "numpy"] | None = None,
    ) -> None: ...
    def init(  # type: ignore[override]
        self,
        param: Any,
        *,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: str | Mapping[str, str] | None = None,
        lr: Schedulable = 0.01,
        etas: tuple[Schedulable, Schedulable] = (0.5, 1.2),
        step_sizes: tuple[Schedulable, Schedulable] = (1e-06, 50.0),
        variant: str = "rprop-",
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
    ) -> dict[str, Array]: ...

class _RMSprop(OneShot):
    def __call__(
        self,
        param: Any,
        grad: Any,
        square_avg: Any,
        grad_avg: Any = None,
        momentum_buffer: Any = None,
        *,
        step: int | None = None,
        lr: Schedulable = 0.001,
        alpha: Schedulable = 0.9,
        eps: Schedulable = 1e-08,
        momentum: Schedulable = 0.0,
        centered: bool = False,
        nesterov: bool = False,
        eps_inside_sqrt: bool = False,
        lr_in_momentum: bool = False,
        bias_correction: bool = False,
        initial_square_avg: Schedulable = 0.0,
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
        grad_scale: float = 1.0,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Any = None,
        square_avg_scale: Any = None,
        grad_avg_scale: Any = None,
        momentum_buffer_scale: Any = None,
        cast_grads: bool = False,
        rounding: str = "nearest",
        seed: int = 0,
        threads: int | Literal["auto"] = 1,
        backend: Literal["c", "numba", "numpy"] | None = None,
    ) -> None: ...
    def init(  # type: ignore[override]
        self,
        param: Any,
        *,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: str | Mapping[str, str] | None = None,
        lr: Schedulable = 0.001,
        alpha: Schedulable = 0.9,
        eps: Schedulable = 1e-08,
        momentum: Schedulable = 0.0,
        centered: bool = False,
        nesterov: bool = False,
        eps_inside_sqrt: bool = False,
        lr_in_momentum: bool = False,
        bias_correction: bool = False,
        initial_square_avg: Schedulable = 0.0,
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
    ) -> dict[str, Array]: ...

class _Adagrad(OneShot):
    def __call__(
        self,
        param: Any,
        grad: Any,
        sum: Any,
        *,
        step: int | None = None,
        lr: Schedulable = 0.01,
        lr_decay: Schedulable = 0.0,
        initial_accumulator_value: Schedulable = 0.0,
        eps: Schedulable = 1e-10,
        eps_inside_sqrt: bool = False,
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
        grad_scale: float = 1.0,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Any = None,
        sum_scale: Any = None,
        cast_grads: bool = False,
        rounding: str = "nearest",
        seed: int = 0,
        threads: int | Literal["auto"] = 1,
        backend: Literal["c", "numba", "numpy"] | None = None,
    ) -> None: ...
    def init(  # type: ignore[override]
        self,
        param: Any,
        *,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: str | Mapping[str, str] | None = None,
        lr: Schedulable = 0.01,
        lr_decay: Schedulable = 0.0,
        initial_accumulator_value: Schedulable = 0.0,
        eps: Schedulable = 1e-10,
        eps_inside_sqrt: bool = False,
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
    ) -> dict[str, Array]: ...

class _Adadelta(OneShot):
    def __call__(
        self,
        param: Any,
        grad: Any,
        square_avg: Any,
        acc_delta: Any,
        *,
        step: int | None = None,
        lr: Schedulable = 1.0,
        rho: Schedulable = 0.9,
        eps: Schedulable = 1e-06,
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
        grad_scale: float = 1.0,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Any = None,
        square_avg_scale: Any = None,
        acc_delta_scale: Any = None,
        cast_grads: bool = False,
        rounding: str = "nearest",
        seed: int = 0,
        threads: int | Literal["auto"] = 1,
        backend: Literal["c", "numba", "numpy"] | None = None,
    ) -> None: ...
    def init(  # type: ignore[override]
        self,
        param: Any,
        *,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: str | Mapping[str, str] | None = None,
        lr: Schedulable = 1.0,
        rho: Schedulable = 0.9,
        eps: Schedulable = 1e-06,
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
    ) -> dict[str, Array]: ...

class _Adam(OneShot):
    def __call__(
        self,
        param: Any,
        grad: Any,
        exp_avg: Any,
        exp_avg_sq: Any,
        max_exp_avg_sq: Any = None,
        *,
        step: int | None = None,
        lr: Schedulable = 0.001,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.999),
        eps: Schedulable = 1e-08,
        amsgrad: bool = False,
        eps_hat: bool = False,
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
        grad_scale: float = 1.0,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Any = None,
        exp_avg_scale: Any = None,
        exp_avg_sq_scale: Any = None,
        max_exp_avg_sq_scale: Any = None,
        cast_grads: bool = False,
        rounding: str = "nearest",
        seed: int = 0,
        threads: int | Literal["auto"] = 1,
        backend: Literal["c", "numba", "numpy"] | None = None,
    ) -> None: ...
    def init(  # type: ignore[override]
        self,
        param: Any,
        *,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: str | Mapping[str, str] | None = None,
        lr: Schedulable = 0.001,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.999),
        eps: Schedulable = 1e-08,
        amsgrad: bool = False,
        eps_hat: bool = False,
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
    ) -> dict[str, Array]: ...

class _AdamW(OneShot):
    def __call__(
        self,
        param: Any,
        grad: Any,
        exp_avg: Any,
        exp_avg_sq: Any,
        max_exp_avg_sq: Any = None,
        *,
        step: int | None = None,
        lr: Schedulable = 0.001,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.999),
        eps: Schedulable = 1e-08,
        weight_decay: Schedulable = 0.01,
        amsgrad: bool = False,
        eps_hat: bool = False,
        decoupled_weight_decay: bool = True,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
        grad_scale: float = 1.0,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Any = None,
        exp_avg_scale: Any = None,
        exp_avg_sq_scale: Any = None,
        max_exp_avg_sq_scale: Any = None,
        cast_grads: bool = False,
        rounding: str = "nearest",
        seed: int = 0,
        threads: int | Literal["auto"] = 1,
        backend: Literal["c", "numba", "numpy"] | None = None,
    ) -> None: ...
    def init(  # type: ignore[override]
        self,
        param: Any,
        *,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: str | Mapping[str, str] | None = None,
        lr: Schedulable = 0.001,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.999),
        eps: Schedulable = 1e-08,
        weight_decay: Schedulable = 0.01,
        amsgrad: bool = False,
        eps_hat: bool = False,
        decoupled_weight_decay: bool = True,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
    ) -> dict[str, Array]: ...

class _NAdam(OneShot):
    def __call__(
        self,
        param: Any,
        grad: Any,
        exp_avg: Any,
        exp_avg_sq: Any,
        *,
        step: int | None = None,
        lr: Schedulable = 0.001,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.999),
        eps: Schedulable = 1e-08,
        momentum_decay: Schedulable = 0.004,
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
        mu_product: float | None = None,
        grad_scale: float = 1.0,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Any = None,
        exp_avg_scale: Any = None,
        exp_avg_sq_scale: Any = None,
        cast_grads: bool = False,
        rounding: str = "nearest",
        seed: int = 0,
        threads: int | Literal["auto"] = 1,
        backend: Literal["c", "numba", "numpy"] | None = None,
    ) -> None: ...
    def init(  # type: ignore[override]
        self,
        param: Any,
        *,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: str | Mapping[str, str] | None = None,
        lr: Schedulable = 0.001,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.999),
        eps: Schedulable = 1e-08,
        momentum_decay: Schedulable = 0.004,
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
    ) -> dict[str, Array]: ...

class _Lion(OneShot):
    def __call__(
        self,
        param: Any,
        grad: Any,
        exp_avg: Any,
        *,
        step: int | None = None,
        lr: Schedulable = 0.0001,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.99),
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
        grad_scale: float = 1.0,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Any = None,
        exp_avg_scale: Any = None,
        cast_grads: bool = False,
        rounding: str = "nearest",
        seed: int = 0,
        threads: int | Literal["auto"] = 1,
        backend: Literal["c", "numba", "numpy"] | None = None,
    ) -> None: ...
    def init(  # type: ignore[override]
        self,
        param: Any,
        *,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: str | Mapping[str, str] | None = None,
        lr: Schedulable = 0.0001,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.99),
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
    ) -> dict[str, Array]: ...

class _Adamax(OneShot):
    def __call__(
        self,
        param: Any,
        grad: Any,
        exp_avg: Any,
        exp_inf: Any,
        *,
        step: int | None = None,
        lr: Schedulable = 0.002,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.999),
        eps: Schedulable = 1e-08,
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
        grad_scale: float = 1.0,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Any = None,
        exp_avg_scale: Any = None,
        exp_inf_scale: Any = None,
        cast_grads: bool = False,
        rounding: str = "nearest",
        seed: int = 0,
        threads: int | Literal["auto"] = 1,
        backend: Literal["c", "numba", "numpy"] | None = None,
    ) -> None: ...
    def init(  # type: ignore[override]
        self,
        param: Any,
        *,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: str | Mapping[str, str] | None = None,
        lr: Schedulable = 0.002,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.999),
        eps: Schedulable = 1e-08,
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
    ) -> dict[str, Array]: ...

class _RAdam(OneShot):
    def __call__(
        self,
        param: Any,
        grad: Any,
        exp_avg: Any,
        exp_avg_sq: Any,
        *,
        step: int | None = None,
        lr: Schedulable = 0.001,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.999),
        eps: Schedulable = 1e-08,
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
        grad_scale: float = 1.0,
        zero_grads: bool = False,
        flush_denormals: bool = False,
        master: Any = None,
        exp_avg_scale: Any = None,
        exp_avg_sq_scale: Any = None,
        cast_grads: bool = False,
        rounding: str = "nearest",
        seed: int = 0,
        threads: int | Literal["auto"] = 1,
        backend: Literal["c", "numba", "numpy"] | None = None,
    ) -> None: ...
    def init(  # type: ignore[override]
        self,
        param: Any,
        *,
        master: Literal["auto", "split", "float32"] | None = "auto",
        state_dtype: str | Mapping[str, str] | None = None,
        lr: Schedulable = 0.001,
        betas: tuple[Schedulable, Schedulable] = (0.9, 0.999),
        eps: Schedulable = 1e-08,
        weight_decay: Schedulable = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        clip_value: Schedulable | None = None,
    ) -> dict[str, Array]: ...

sgd: _SGD
rprop: _Rprop
rmsprop: _RMSprop
adagrad: _Adagrad
adadelta: _Adadelta
adam: _Adam
adamw: _AdamW
nadam: _NAdam
lion: _Lion
adamax: _Adamax
radam: _RAdam

def global_norm(grads: Any) -> float: ...
def clip_grad_norm(grads: Any, max_norm: float) -> float: ...
@overload
def flatten(params: Mapping[str, Any]) -> tuple[Array, dict[str, Array]]: ...
@overload
def flatten(params: Iterable[Any]) -> tuple[Array, list[Array]]: ...
def decay_groups(
    params: Any, weight_decay: Schedulable, without: Callable[[str | None, Array], bool] | None = None
) -> list[dict[str, Any]]: ...
