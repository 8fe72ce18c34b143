"""Which tensors proptim steps, and which torch's own code steps; the local part of a DTensor."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from proptim._arrays import BFLOAT16, Array, as_array
from proptim._formats import FLOAT16, FLOAT32, FLOAT64, arithmetic
from proptim._rows import Rows

DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: FLOAT32,
    torch.float64: FLOAT64,
    torch.complex64: np.dtype(np.complex64),
    torch.complex128: np.dtype(np.complex128),
    torch.float16: FLOAT16,
    torch.bfloat16: BFLOAT16,
}
"""Those that are stepped, and as what NumPy sees them."""
TENSORS = {seen: dtype for dtype, seen in DTYPES.items()}
"""The other way."""
ARITHMETIC = {dtype: arithmetic(seen).name for dtype, seen in DTYPES.items()}
"""dtype of a tensor -> the dtype in which the rule computes."""
increment_version = getattr(torch._C, "_increment_version", torch.autograd.graph.increment_version)
"""The latter takes a list to it."""
NUMBERS = {torch.float32, torch.float64, torch.int32, torch.int64}
"""dtypes of the numbers in a state that are read and written in place."""


NATIVE = {
    "grad": "_ZNK3c1010TensorImpl4gradEv",
    "object": "_Z16THPVariable_WrapRKN2at10TensorBaseE",
    "is_neg": "_ZN2at6native6is_negERKNS_6TensorE",
    "bump_version": "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE",
    "layout": "aoti_torch_get_layout",
    "device": "aoti_torch_get_device_type",
    "dtype": "aoti_torch_get_dtype",
    "ndim": "aoti_torch_get_dim",
    "shape": "aoti_torch_get_sizes",
    "strides": "aoti_torch_get_strides",
    "data": "aoti_torch_get_data_ptr",
}
"""Functions of an at::Tensor, in the order of `libtorch` in _dlpack.pxi, by their names in libtorch.

The first four names are those of the C++ ABI of Linux and macOS; torch's own methods of a Python tensor call the same
functions, which takes 40 to 50 ns more. The others are of torch's stable C interface.
"""


SCALARS = {torch.int16: 2, torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}
"""The dtypes that C code knows, and their numbers in c10::ScalarType."""


@functools.cache
def native() -> tuple[int, ...]:
    """The addresses of these functions; none if one is not found, or does not say what torch says of a few tensors."""
    library = ctypes.CDLL(torch._C.__file__)
    functions: dict[str, Any] = {name: getattr(library, symbol, None) for name, symbol in NATIVE.items()}
    if None in functions.values():
        return ()
    with torch.inference_mode(False), torch.no_grad():
        number = torch.zeros(2, 3, device="cpu", dtype=torch.float32)
        views = (number, number.T, number[0, 1], torch._neg_view(number), torch.nn.Parameter(number))
        for each in (*views, *map(number.to, SCALARS)):
            if ctypes.c_void_p.from_address(id(each) + object.__basicsize__).value != each._cdata:
                return ()
            scalars = 0, 0, SCALARS[each.dtype], each.dim()  # a strided tensor, on the CPU
            facts = each.is_neg(), 1, *scalars, each.shape, each.stride(), each.data_ptr()
            if _told(functions, each) != facts or _grad(functions, each) is not None:
                return ()
        views[-1].grad = number
        if _grad(functions, views[-1]) is not number:
            return ()
    return tuple(map(_address, functions.values()))


def _grad(functions: dict[str, Any], tensor: Any) -> Any:
    """Its gradient."""
    functions["grad"].restype = ctypes.c_void_p
    wrap = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p)(_address(functions["object"]))
    return wrap(functions["grad"](ctypes.c_void_p(tensor._cdata)))


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _told(functions: dict[str, Any], tensor: Any) -> tuple[Any, ...]:
    """What they say of a tensor."""
    at, version = ctypes.c_void_p(id(tensor) + object.__basicsize__), tensor._version
    functions["is_neg"].restype, functions["bump_version"].restype = ctypes.c_bool, None
    functions["bump_version"](at)
    numbers: list[Any] = [ctypes.c_int32() for _ in range(3)] + [ctypes.c_int64()]
    numbers += [ctypes.POINTER(ctypes.c_int64)() for _ in range(2)] + [ctypes.c_void_p()]
    failed = [function(at, ctypes.byref(n)) for function, n in zip([*functions.values()][4:], numbers, strict=True)]
    if any(failed):
        return ()
    *scalars, shape, strides, data = numbers
    ndim = tensor.dim()
    return (
        functions["is_neg"](at),
        tensor._version - version,
        *(n.value for n in scalars),
        tuple(shape[:ndim]),
        tuple(strides[:ndim]),
        data.value,
    )


def is_spread(tensor: Any) -> bool:
    """Whether it is a DTensor, whose elements lie in the memory of several processes."""
    module = sys.modules.get("torch.distributed.tensor")  # slow to import; without it there are no DTensors
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Any) -> Any:
    """The local part of a DTensor; any other tensor unchanged."""
    if not is_spread(tensor):
        return tensor
    with torch.no_grad():
        part = tensor.to_local()
    part = part.wait() if hasattr(part, "wait") else part  # for what another process still sends
    return part.detach() if type(part) is torch.nn.Parameter else part


def local_gradient(p: Any, grad: Any) -> Any:
    """The gradient of the local part of a parameter."""
    if not is_spread(p) or not is_spread(grad):
        return grad
    if grad.device_mesh != p.device_mesh or grad.placements != p.placements:
        with torch.no_grad():
            grad = grad.redistribute(p.device_mesh, p.placements)
    return local(grad)


def like(p: Any, part: Any) -> Any:
    """A tensor of the kind of the parameter, with this local part."""
    if not is_spread(p):
        return part
    with torch.no_grad():
        pairs = part.dim() > p.dim()  # of real numbers, in the place of complex ones
        shape = (*p.shape, 2) if pairs else p.shape
        stride = (*(2 * n for n in p.stride()), 1) if pairs else p.stride()
        return type(p).from_local(part, p.device_mesh, p.placements, run_check=False, shape=shape, stride=stride)


def shards(p: Any) -> tuple[Any, tuple[int, ...]] | None:
    """The mesh of a DTensor, and its dimensions over which elements are divided; None for any other tensor."""
    if not is_spread(p):
        return None
    return p.device_mesh, tuple(i for i, placement in enumerate(p.placements) if not placement.is_replicate())


def is_fake(tensor: Any) -> bool:
    """Whether it is a FakeTensor, which has no numbers."""
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(tensor, module.FakeTensor)


def unfit(p: Any) -> str:
    """Why proptim cannot step a parameter, found without making an array of it; empty if it can."""
    if is_fake(local(p)):
        return "is a FakeTensor, which has no numbers to step; expected a tensor made outside of FakeTensorMode"
    if p.device.type != "cpu":
        return f"is on {p.device}; expected a CPU tensor: move the model with .cpu()"
    if p.layout != torch.strided:
        return f"has layout {p.layout}; expected a strided tensor: use .to_dense()"
    if p.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        return f"is {p.dtype}; supported: {names}: convert the model with .float()"
    if type(p) is not torch.nn.Parameter and hasattr(p, "__tensor_flatten__") and not is_spread(p):
        return f"is a {type(p).__name__}; expected a tensor with memory of its own"
    return ""


def unfit_state(values: Iterable[Any]) -> str:
    """Why proptim cannot read these tensors, the state of a parameter that it could step; empty if it can."""
    for value in values:
        if isinstance(value, torch.Tensor) and value.layout != torch.strided:
            return _not_strided(value)
    return ""


def _not_strided(tensor: Any) -> str:
    return f"has layout {tensor.layout}; expected a strided tensor: use .to_dense()"


def is_rows(p: Any, grad: Any) -> bool:
    """Whether a gradient has only some rows of a parameter, as nn.Embedding(sparse=True) gives it."""
    return bool(
        grad.layout == torch.sparse_coo
        and grad.sparse_dim() == 1
        and grad.device.type == "cpu"
        and not is_spread(grad)
        and not is_spread(p)
    )


def unfit_gradient(p: Any, grad: Any) -> str:
    """Why proptim cannot read the gradient of a parameter that it could step; empty if it can, or there is none."""
    if grad is None or grad.layout == torch.strided or is_rows(p, grad):
        return ""
    if grad.layout == torch.sparse_coo and grad.sparse_dim() != 1:
        return (
            f"has {grad.sparse_dim()} sparse dimensions; expected 1, as nn.Embedding(sparse=True) gives it: use "
            ".to_dense()"
        )
    return _not_strided(grad)


def places(groups: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """The names of the parameters of these groups in messages, and the parameters."""
    params = [p for group in groups for p in group["params"]]
    names = [name for group in groups for name in group.get("param_names", [""] * len(group["params"]))]
    labels = [f"[{i}]" + (f' ("{name}")' if name else "") for i, name in enumerate(names)]
    return list(zip(labels, params, strict=True))


def seen(tensor: Any, label: str) -> Array:
    """The part of a tensor that lies here as an array; int16 are the bits of the low halves of a master."""
    part = local(tensor)
    if part.dtype in (torch.int8, torch.uint8):
        return part.detach().numpy()  # type: ignore[no-any-return]
    return part.detach().numpy().view(BFLOAT16) if part.dtype == torch.int16 else as_array(part, label)


def room(part: Any, dtype: np.dtype[Any]) -> Any:
    """A new tensor of this dtype, laid out like another; with pairs where that is complex and this dtype is not."""
    pairs = part.is_complex() and dtype.kind != "c"
    with torch.no_grad():
        return torch.empty_like(torch.view_as_real(part) if pairs else part, dtype=TENSORS[dtype])


def plain(grad: Any, label: str) -> Array | Rows:
    """A gradient of any kind as an array or as rows: a copy if it is lazily conjugated or negated."""
    if grad.layout == torch.sparse_coo:
        indices, values = grad.detach()._indices(), grad.detach()._values()
        return Rows.of(indices[0].numpy(), as_array(values.resolve_conj().resolve_neg(), f"values of {label}"))
    return as_array(grad.detach().resolve_conj().resolve_neg(), label)


def is_fixed(value: Any) -> bool:
    """Whether a hyperparameter is immutable."""
    if isinstance(value, tuple):
        return all(map(is_fixed, value))
    return value is None or isinstance(value, (int, float, str))


def scalar(value: Any, as_torch: bool) -> Any:
    """A number of the state as a 0-d tensor, which is float32 by default in torch.optim; without `as_torch` float64.

    float32 counts to 2**24 and stays there.
    """
    known = isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.dtype in NUMBERS
    if known and value.numel() == 1 and not value.is_neg() and (as_torch or value.dtype != torch.float32):
        return value  # of any shape: A3C shares counts of shape (1,) between processes, and torch adds to them
    single = as_torch and torch.get_default_dtype() != torch.float64
    return torch.tensor(float(value), dtype=torch.float32 if single else torch.float64, device="cpu")
