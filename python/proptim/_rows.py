"""Gradients of only some rows of a parameter: their checks, and the sums of repeated rows in NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from proptim._arrays import Array, as_array, attribute, check_writable, name_of, real_view
from proptim._formats import Steps8, Stored, arithmetic, first_nonfinite, numbers, planes, widened


class Rows:
    """A gradient of only some rows of a parameter: values[i] is the gradient of parameter[indices[i]].

    A step neither reads nor writes the other rows, unless `lazy_rows` is False. The gradient of a row that occurs
    several times is the sum of its values,

        g = (values[i] + values[j]) + values[k]       where i < j < k are the positions of that row in `indices`,

    added in the dtype in which the rule computes.

    Parameters
    ----------
    indices : array of integers of shape (k,)
        The rows, counted from 0; a row can occur several times. Indices and values are read in every step, so a bound
        gradient can be changed between steps by writing into these arrays.
    values : array of shape (k, ...)
        A gradient for each of them, with the shape of a row and a dtype that gradients of the parameter may have. A row
        of a parameter with one axis is one number.

    Raises
    ------
    TypeError
        For indices that are not integers, such as bool, and for anything that is not an array of a supported dtype in
        CPU memory.
    ValueError
        For indices of more than one axis, and if the numbers of indices and values differ. The step raises it for an
        index that is not a row of the parameter, including negative ones, and for values of another shape or in the
        memory of a parameter or its state; nothing has changed then.
    AttributeError
        For another array in place of `indices` or `values`: a gradient that has been checked stays the one it is.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> table, w = np.ones((5, 2)), np.ones(3)
    >>> opt = proptim.SGD({"table": table, "w": w}, lr=0.5)
    >>> grad = proptim.Rows([4, 1, 4], np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    >>> opt.step({"table": grad, "w": np.ones(3)})
    >>> table
    array([[ 1. ,  1. ],
           [-0.5, -1. ],
           [ 1. ,  1. ],
           [ 1. ,  1. ],
           [-2. , -3. ]])

    Notes
    -----
    It makes a step of the whole parameter: counts of steps, bias corrections and dampening are those of the parameter
    and not of a row, and an empty gradient counts too. Momentum moves a row only when it has a gradient.
    `weight_decay`, decoupled or not, applies only to rows that have a gradient. With ``lazy_rows=False`` all other rows
    make up these steps later, in rules in which that is possible: see `Optimizer`. `clip_norm`, `nonfinite` and
    `clip_value` apply to the sums; `zero_grads` sets `values` to zero. A parameter can change between dense gradients
    and these. The order of different rows does not affect any bit.

    ``torch.optim.SparseAdam`` does the same, and torch's SGD and Adagrad; torch's RMSprop does not accept such
    gradients.
    """

    __slots__ = ("indices", "values")
    indices: Array
    values: Array

    def __new__(cls, indices: Any, values: Any) -> Rows:
        indices, values = _as_indices(indices, "indices"), as_array(values, "values")
        if values.ndim == 0 or len(values) != len(indices):
            raise ValueError(f"values has shape {values.shape}; expected {len(indices)} rows, one for each of indices")
        return cls.of(indices, values)

    @classmethod
    def of(cls, indices: Array, values: Array) -> Rows:
        """Rows whose arrays have been checked."""
        self = super().__new__(cls)
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "values", values)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        raise _fixed(name, "set")

    def __delattr__(self, name: str) -> None:
        raise _fixed(name, "deleted")

    def __repr__(self) -> str:
        return f"Rows({len(self.indices)} rows of shape {self.values.shape[1:]}, {name_of(self.values.dtype)})"

    def __reduce__(self) -> Any:
        return Rows.of, (self.indices, self.values)

    def unknown(self, length: int) -> int:
        """The position of the first index that is no row of a parameter of this length; that of the end if all are."""
        bad = (self.indices < 0) | (self.indices >= length)
        return int(bad.argmax()) if bad.any() else len(bad)

    def summed(self, real: np.dtype[Any]) -> tuple[Array, Array]:
        """The rows that have a gradient, ascending, and the gradient of each in the dtype of the arithmetic."""
        values = self.values if self.values.dtype.kind == "c" else widened(self.values, real)
        rows, first, place = np.unique(self.indices, return_index=True, return_inverse=True)
        sums = values[first]
        again = np.ones(len(values), bool)
        again[first] = False
        with np.errstate(all="ignore"):
            np.add.at(sums, place.reshape(-1)[again], values[again])  # one after the other
        return rows, sums


class Copied(Rows):
    """Rows made of a sparse matrix, whose own memory has another form."""

    __slots__ = ()


def _fixed(name: str, what: str) -> AttributeError:
    """The error for a change of the attributes of Rows, which would be one that no check and no step has seen."""
    return AttributeError(
        f"{name} of Rows cannot be {what}; expected changes only of the numbers in its arrays: write into those, or "
        "pass another proptim.Rows to the step"
    )


def _as_indices(given: Any, label: str) -> Array:
    """View indices as an array of integers of one axis."""
    if isinstance(given, (list, tuple, range)):
        array = np.asarray(given) if len(given) else np.zeros(0, np.int64)
    else:
        array = np.asarray(given.detach() if hasattr(given, "detach") else given)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{label} is {array.dtype.name}; expected integers: convert it with .astype(numpy.int64)")
    if array.ndim != 1:
        raise ValueError(f"{label} has shape {array.shape}; expected one axis")
    return array


def as_gradient(given: Any, label: str, param: Array, param_label: str) -> Array | Rows:
    """View what the user passed as a gradient of a parameter; a sparse matrix or tensor is viewed as its rows.

    Rows are views of their own from here on: arrays that have been given another shape or dtype since are checked once
    more, and those that are given one later are stepped as they were.
    """
    sparse = not isinstance(given, Rows) and (is_sparse_tensor(given) or is_csr(given))
    if sparse and tuple(given.shape) != param.shape:
        raise ValueError(f"{label} has shape {tuple(given.shape)}; expected {param.shape}, the shape of {param_label}")
    return viewed(given, label)


def viewed(given: Any, label: str) -> Array | Rows:
    """`as_gradient` of any parameter."""
    if isinstance(given, Rows):
        indices = _as_indices(given.indices, f"indices of {label}")
        return Rows.of(indices[...], as_array(given.values, f"values of {label}", bits=True)[...])
    if is_sparse_tensor(given):
        return _rows_of_tensor(given, label)
    return _rows_of_csr(given, label) if is_csr(given) else as_array(given, label)


def is_sparse_tensor(given: Any) -> bool:
    """Whether this is a tensor of torch in coordinate format."""
    return attribute(given, "detach") is not None and str(attribute(given, "layout")) == "torch.sparse_coo"


def is_csr(given: Any) -> bool:
    """Whether this is a matrix of SciPy, or another, in compressed sparse rows or columns."""
    return attribute(given, "indptr") is not None


def is_matrix(given: Any) -> bool:
    """Whether this is a sparse matrix of SciPy of any format, which is one array, even where it is also a dict."""
    return attribute(given, "tocsr") is not None


def moves(given: Any) -> bool:
    """Whether a gradient that is bound may be somewhere else at the next step, or be another."""
    return attribute(given, "data_ptr") is not None or is_csr(given)


def _rows_of_tensor(given: Any, label: str) -> Rows:
    """The rows of a sparse tensor as they are stored, coalesced or not."""
    if given.device.type != "cpu":
        raise TypeError(f"{label} is on {given.device}; expected a CPU tensor: move it with .cpu()")
    if given.sparse_dim() != 1:
        raise ValueError(
            f"{label} has {given.sparse_dim()} sparse dimensions; expected 1, as nn.Embedding(sparse=True) has: use "
            ".to_dense()"
        )
    given = given.detach()
    return Rows.of(given._indices()[0].numpy(), as_array(given._values(), f"values of {label}"))


def _rows_of_csr(given: Any, label: str) -> Rows:
    """The rows of a sparse matrix of SciPy that have a stored element, copied; with one axis each is one number."""
    if getattr(given, "format", "csr") != "csr":
        raise TypeError(f"{label} has format {given.format}; expected csr: convert it with .tocsr()")
    data, indices = _stored(given, label)
    if len(given.shape) == 1:
        rows, values = Rows.of(indices, data).summed(data.dtype)  # an element may be stored in parts
    else:
        counts = np.diff(given.indptr)
        rows = counts.nonzero()[0]
        values = np.zeros((len(rows), given.shape[1]), data.dtype)
        places = np.repeat(np.arange(len(rows)), counts[rows]) * given.shape[1] + indices
        where, sums = Rows.of(places, data).summed(data.dtype)
        values.reshape(-1)[where] = sums
    return Copied.of(rows, values)


def _stored(given: Any, label: str) -> tuple[Array, Array]:
    """The numbers that a sparse matrix stores, and their columns; there may be room for more, which is left out."""
    data, shape = as_array(given.data, label), tuple(given.shape)
    counts = np.diff(given.indptr)
    stored = int(given.indptr[-1])
    indices = np.asarray(given.indices)[:stored]
    if (
        len(given.indptr) != math.prod(shape[:-1]) + 1
        or given.indptr[0] != 0
        or (counts < 0).any()
        or not stored == len(indices) == len(data[:stored])
        or ((indices < 0) | (indices >= shape[-1])).any()
    ):
        raise ValueError(
            f"the indices of {label} do not fit its shape, {shape}; expected what its check_format() passes"
        )
    return data[:stored], indices


def check_zeroed(grad: Array | Rows, label: str) -> None:
    """Raise ValueError for a gradient that cannot be set to zero."""
    if isinstance(grad, Copied):
        raise ValueError(
            f"{label} is a sparse matrix, of which a step sees a copy that would be set to zero; expected "
            "proptim.Rows, or no zeros from here: write its data[:] = 0"
        )
    check_writable(values_of(grad), label)


def no_row(rows: Rows, at: int, label: str, param: Array, param_label: str) -> ValueError:
    """The error for an index that is no row of a parameter."""
    length = len(param)
    expected = f"0 to {length - 1}, a row of {param_label}" if length else f"none, for {param_label} has no rows"
    return ValueError(f"indices of {label} has {rows.indices[at]} at place {at}; expected {expected}")


def told_nonfinite(grad: Array | Rows, label: str, real: np.dtype[Any]) -> str:
    """Where a gradient is not finite, in words; empty if it is. Of rows, where the sum of those of a row is not."""
    rows, seen = grad.summed(real) if isinstance(grad, Rows) else (None, grad)
    at = first_nonfinite(seen, real)
    if at is None:
        return ""
    where = at if rows is None else (int(rows[at[0]]), *at[1:])
    return f"{label} is {numbers(seen[at], real)} at index {where}"


def values_of(grad: Any) -> Array:
    """The numbers of a checked gradient."""
    return grad.values if isinstance(grad, Rows) else grad


def memory_of(given: Any, grad: Array | Rows, label: str) -> Array:
    """The numbers of a gradient where the user has them."""
    return _stored(given, label)[0] if isinstance(grad, Copied) else values_of(grad)


def summed(grad: Array | Rows) -> Array:
    """A gradient as real numbers, of rows the sum of each, as for a parameter of its dtype."""
    if isinstance(grad, Rows):
        values = real_view(grad.values)
        return Rows.of(grad.indices, values).summed(arithmetic(values.dtype))[1]
    return real_view(grad)


def real_gradient(grad: Any) -> Any:
    """A gradient as the plan takes it: real numbers; None for none."""
    if isinstance(grad, Rows):
        return Rows.of(grad.indices, real_view(grad.values))
    return None if grad is None else real_view(grad)


def taken(array: Stored | None, rows: Array) -> Any:
    """A copy of some rows of an array in any format."""
    if array is None:
        return None
    if isinstance(array, Steps8):
        return Steps8(array.code[rows], array.grid)
    found = [plane[rows] for plane in planes(array)]
    return type(array)(*found) if isinstance(array, tuple) else found[0]
