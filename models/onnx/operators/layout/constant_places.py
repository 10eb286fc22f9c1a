"""Places in constants: where numbers are not 0, and numbers that are taken or put there.

What is checked of such a node before ONNX Runtime runs it, and how many elements its result has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.onnx.graph import Operation

__all__ = ["gathered_rows", "nonzero", "scattered", "scattered_rows"]

Array = NDArray[Any]
Arrays = Sequence[Array | None]
#: Numbers that places are written out as, at most; axes that an array of numpy can have.
_WRITTEN_OUT, _MAX_RANK = 1 << 24, 64


def _given(arrays: Arrays, count: int) -> list[Array]:
    """The first inputs; raises ValueError where one is missing."""
    found = [array for array in arrays[:count] if array is not None]
    if len(found) < count:
        raise ValueError("an input is missing")
    return found


def nonzero(operation: Operation, arrays: Arrays) -> int:
    """Places of what is not 0, one below another."""
    (data,) = _given(arrays, 1)
    if not data.ndim:
        raise ValueError("a number without axes has no places")
    return data.ndim * int(np.count_nonzero(data))


def _places(data: Array, indices: Array, first: int = 0) -> Array:
    """Rows of ``indices``, each a place on the axes of ``data`` from ``first`` on, from the front.
    Raises ValueError where one does not exist."""
    if indices.dtype != np.int64 or not indices.ndim or not data.ndim:
        raise ValueError("places must be int64, and there must be some axis")
    width = indices.shape[-1]
    sizes = np.array(data.shape[first : first + width], dtype=np.int64)
    if len(sizes) != width or not width:
        raise ValueError(f"places of {width} numbers in {data.ndim} axes")
    if indices.size > _WRITTEN_OUT:
        raise ValueError(f"more than {_WRITTEN_OUT} numbers of places")
    rows = indices.reshape(-1, width)
    if ((rows < -sizes) | (rows >= sizes)).any():
        raise ValueError("a place is outside")
    return np.where(rows < 0, rows + sizes, rows)


def gathered_rows(operation: Operation, arrays: Arrays) -> int:
    """Numbers, or parts, at places."""
    data, indices = _given(arrays, 2)
    shared = int(operation.attributes.get("batch_dims", 0))
    if not 0 <= shared < min(data.ndim, indices.ndim):
        raise ValueError(f"{shared} axes in common of shapes {data.shape} and {indices.shape}")
    if data.shape[:shared] != indices.shape[:shared]:
        raise ValueError(f"shapes {data.shape} and {indices.shape} differ in the first axes")
    _places(data, indices, shared)
    if data.ndim + indices.ndim > _MAX_RANK:
        raise ValueError("too many axes")
    return math.prod(indices.shape[:-1]) * math.prod(data.shape[shared + indices.shape[-1] :])


def _require_plain(operation: Operation, rows: Array) -> None:
    """Of two numbers for one place either may win, and sums depend on their order."""
    if operation.attributes.get("reduction", "none") not in ("none", b"none"):
        operation.refuse("only numbers that take others' places are supported (reduction = none)")
    if len(np.unique(rows, axis=0)) < len(rows):
        operation.refuse("two numbers for one place: which of them stays is not defined")


def scattered_rows(operation: Operation, arrays: Arrays) -> int:
    """Numbers, or parts, put at places of their own."""
    data, indices, updates = _given(arrays, 3)
    rows = _places(data, indices)
    expected = (*indices.shape[:-1], *data.shape[indices.shape[-1] :])
    if updates.shape != expected or updates.dtype != data.dtype:
        raise ValueError(f"new numbers of shape {updates.shape}, not {expected}")
    _require_plain(operation, rows)
    return data.size


def scattered(operation: Operation, arrays: Arrays) -> int:
    """Numbers put at places of their own, along one axis."""
    data, indices, updates = _given(arrays, 3)
    alike = data.ndim == indices.ndim > 0 and updates.shape == indices.shape
    if not alike or updates.dtype != data.dtype or indices.dtype.kind != "i":
        raise ValueError(f"shapes {data.shape}, {indices.shape} and {updates.shape} do not fit")
    if data.ndim * indices.size > _WRITTEN_OUT:
        raise ValueError(f"more than {_WRITTEN_OUT} numbers of places")
    axis = operation.axis(operation.attributes.get("axis", 0), data.ndim)
    rows = np.moveaxis(np.indices(indices.shape, dtype=np.int64), 0, -1)
    rows[..., axis] = indices
    _require_plain(operation, _places(data, rows))
    return data.size
