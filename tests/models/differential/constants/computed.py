"""Further ways in which a graph computes a constant, by the operators that may do so."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tests.models.differential.builder import Builder

__all__ = ["computed_forms"]

Array = NDArray[Any]
#: The name that holds the constant, or one like it where the operator changes numbers.
Form = Callable[["Builder", Array], str]


def _of_floats(kind: str, factor: float = 1.0) -> Form:
    def add(b: Builder, array: Array) -> str:
        return b.node(kind, [b.stored(array * np.float32(factor))])

    return add


def _einsum(b: Builder, array: Array) -> str:
    letters = "abcdefgh"[: array.ndim]
    order = b.rng.permutation(array.ndim)
    given = "".join(letters[axis] for axis in order)
    stored = b.stored(np.transpose(array, order))
    if array.dtype == np.float32 and b.chance(0.5):
        # Products of two, one of them along the last axis alone.
        scale = b.stored(np.full(array.shape[-1], 0.5, np.float32))
        return b.node("Einsum", [stored, scale], equation=f"{given},{letters[-1]}->{letters}")
    return b.node("Einsum", [stored], equation=f"{given}->{letters}")


def _tile(b: Builder, array: Array) -> str:
    axis = b.number(0, array.ndim - 1)
    half, rest = divmod(array.shape[axis], 2)
    first, second = np.split(array, [half], axis=axis) if not rest else (array, None)
    repeats = np.ones(array.ndim, np.int64)
    if second is not None and half and np.array_equal(first, second):
        repeats[axis] = 2
        return b.node("Tile", [b.stored(first), b.stored(repeats)])
    if array.size and (array == array.flat[0]).all():
        one = np.reshape(array.flat[0], (1,) * array.ndim).astype(array.dtype)
        return b.node("Tile", [b.stored(one), b.stored(np.array(array.shape, np.int64))])
    return b.node("Tile", [b.stored(array), b.stored(repeats)])


def _order(b: Builder, size: int) -> tuple[Array, Array]:
    """A permutation, and the places (counted from either end) that undo it."""
    order = b.rng.permutation(size)
    return order, (np.argsort(order) - b.pick([0, size])).astype(np.int64)


def _gather_rows(b: Builder, array: Array) -> str:
    order, places = _order(b, array.shape[0])
    return b.node("GatherND", [b.stored(array[order]), b.stored(places[:, None])])


def _scatter_rows(b: Builder, array: Array) -> str:
    """Some rows over those of another tensor."""
    kept = b.rng.random(array.shape[0]) < 0.5
    (places,) = np.nonzero(~kept)
    under = array.copy()
    under[~kept] = 1
    rows = (places - b.pick([0, array.shape[0]])).astype(np.int64)
    return b.node("ScatterND", [b.stored(under), b.stored(rows[:, None]), b.stored(array[places])])


def _scatter_elements(b: Builder, array: Array) -> str:
    axis = b.number(0, array.ndim - 1)
    order, _ = _order(b, array.shape[axis])
    along = order.reshape((1,) * axis + (-1,) + (1,) * (array.ndim - 1 - axis))
    places = np.broadcast_to(along, array.shape)
    inputs = [np.zeros_like(array), places.astype(np.int64), np.take(array, order, axis=axis)]
    axis -= b.pick([0, array.ndim])
    return b.node("ScatterElements", [b.stored(each) for each in inputs], axis=axis)


def _places(b: Builder, array: Array) -> str:
    """An increasing vector as the places of what is not 0."""
    marks = np.zeros(int(array[-1]) + b.number(1, 3), np.float32)
    marks[array] = b.pick([1.0, -0.5])
    found = b.node("NonZero", [b.stored(marks)])
    return b.node("Reshape", [found, b.stored(np.array([-1], np.int64))])


def _sum(b: Builder, array: Array) -> str:
    parts = b.stored(np.stack([array - 3, np.full_like(array, 3)]))
    if b.opset >= 13:
        axes = b.stored(np.array([b.pick([0, -array.ndim - 1])], np.int64))
        return b.node("ReduceSum", [parts, axes], keepdims=0)
    return b.node("ReduceSum", [parts], axes=[0], keepdims=0)


#: The opset that each operator needs here.
SINCE = {"NonZero": 9, "Sign": 9, "Einsum": 12}
FLOATS: dict[str, Form] = {
    "Abs": _of_floats("Abs"),
    "Ceil": _of_floats("Ceil", 2.0),
    "Cos": _of_floats("Cos"),
    "Floor": _of_floats("Floor", 2.0),
    "Round": _of_floats("Round", 2.5),
    "Sign": _of_floats("Sign"),
    "Sin": _of_floats("Sin"),
}
WITH_AXES: dict[str, Form] = {
    "Einsum": _einsum,
    "GatherND": _gather_rows,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_rows,
    "Tile": _tile,
}
SINCE |= dict.fromkeys(("Round", "GatherND", "ScatterElements", "ScatterND"), 11)


def computed_forms(opset: int, array: Array) -> list[Form]:
    """Those that can give this array, or one like it, in a file of this opset."""
    found: dict[str, Form] = {}
    small = array.size > 0 and bool((np.abs(array) < 50).all())
    if array.dtype == np.float32 and small:
        found |= FLOATS
    if array.ndim and math.prod(array.shape) > 0:
        found |= WITH_AXES
    if array.dtype == np.int64 and array.ndim == 1 and small:
        found["ReduceSum"] = _sum
        if array[0] >= 0 and bool((np.diff(array) > 0).all()):
            found["NonZero"] = _places
    return [form for kind, form in found.items() if opset >= SINCE.get(kind, 7)]
