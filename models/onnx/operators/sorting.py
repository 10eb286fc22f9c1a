"""ONNX operators that sort: maxima and minima over axes, whole sorted axes, pairs put in order."""

from __future__ import annotations

import math

import torch

from models.layers.activations import MaxMin
from models.layers.euclidean import Sort
from models.layers.joins import Maximum, Minimum, Slice
from models.layers.kinds import (
    Gather,
    MaxPool2d,
    Multiply,
    Permute,
    ReLU,
    Reshape,
)
from models.onnx.graph import Activation, Operation, Translation
from models.onnx.operators.layout.axes import reduced_axes
from models.onnx.operators.windows import pad_axes

__all__ = ["halves_of", "pairs_in_order", "reduce_max", "reduce_min", "top_k"]


def reduce_max(operation: Operation, translation: Translation) -> Activation:
    """ReduceMax over axes other than the batch."""
    return _extremum(operation, translation, least=False)


def reduce_min(operation: Operation, translation: Translation) -> Activation:
    """ReduceMin over axes other than the batch."""
    return _extremum(operation, translation, least=True)


def _extremum(operation: Operation, translation: Translation, *, least: bool) -> Activation:
    """Of two numbers max or min of two slices; of more a max pool over a row of them."""
    x, axes = operation.activation(), reduced_axes(operation)
    if not axes:
        return x
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    count = math.prod(x.shape[axis] for axis in axes)
    if count == 2 and len(axes) == 1:
        parts = [
            translation.emit(operation, Slice(axis=axes[0], start=at, stop=at + 1), x)
            for at in range(2)
        ]
        result = translation.emit(operation, Minimum() if least else Maximum(), *parts)
    elif count == 1:
        result = x
    else:
        order = [axis for axis in range(len(x.shape)) if axis not in axes] + axes
        rows = (1, math.prod(x.shape) // count, count)
        result = _permuted(operation, translation, x, order)
        result = _negated(operation, translation, result, least)
        result = _viewed(operation, translation, result, rows)
        pool = MaxPool2d(kernel=(1, count), stride=(1, count))
        result = translation.emit(operation, pool, result)
        result = _negated(operation, translation, result, least)
    if operation.attributes["keepdims"]:
        result = _viewed(operation, translation, result, kept)
        if not least:
            translation.maxima[result.name] = (x, tuple(sorted(axes)))
        return result
    shape = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
    return _viewed(operation, translation, result, shape)


def top_k(operation: Operation, translation: Translation) -> Activation:
    """TopK of a whole axis, its values alone: a sorted axis."""
    x = operation.activation()
    axis = operation.axis(operation.attributes.get("axis", -1), x.rank)
    if axis == 0:
        operation.refuse_batch("its axis is the batch axis")
    given = operation.integers(1) if operation.opset >= 10 else [operation.attributes["k"]]
    size = x.shape[axis - 1]
    if given != [size]:
        operation.refuse(f"only a whole axis is sorted: k = {given} of {size}")
    if not operation.attributes.get("sorted", 1):
        operation.refuse("the result must be sorted")
    if any(translation.uses[name] for name in operation.outputs[1:]):
        operation.refuse("the output of indices is not supported")
    largest = bool(operation.attributes.get("largest", 1))
    return translation.emit(operation, Sort(axis=axis - 1, descending=largest), x)


def pairs_in_order(
    operation: Operation, translation: Translation, axis: int, parts: list[Activation]
) -> Activation | None:
    """One MaxMin in the place of two joined parts: of the same two halves max and min (GroupSort
    on pairs), or max(x, 0) and max(-x, 0) of the same x. None where the parts are neither.

    As a join of two parts the slope of either would be sqrt(2).
    """
    if len(parts) != 2:
        return None
    found = _halves(translation, axis, parts)
    if found is not None:
        whole, swapped = found
        return _ordered(operation, translation, whole, axis, swapped=swapped)
    return _both_signs(operation, translation, axis, parts)


def _halves(
    translation: Translation, axis: int, parts: list[Activation]
) -> tuple[Activation, bool] | None:
    """The activation whose halves are compared, and whether the minima come first."""
    makers = [translation.origins.get(part.name, (None, ())) for part in parts]
    kinds = [type(layer) for layer, _ in makers]
    if kinds not in ([Maximum, Minimum], [Minimum, Maximum]):
        return None
    found = [halves_of(translation, axis, sources) for _, sources in makers]
    if found[0] is None or found[0] != found[1]:
        return None
    return found[0], kinds[0] is Minimum


def halves_of(
    translation: Translation, axis: int, parts: tuple[Activation, ...]
) -> Activation | None:
    """The activation whose two halves the parts are."""
    halves: dict[int, Activation] = {}
    for part in parts:
        layer, sources = translation.origins.get(part.name, (None, ()))
        if not isinstance(layer, Slice) or (layer.axis, layer.step) != (axis, 1):
            return None
        (whole,), half = sources, part.shape[axis]
        if 2 * half != whole.shape[axis] or layer.start not in (0, half):
            return None
        halves[layer.start] = whole
    if len(halves) != 2 or len({whole.name for whole in halves.values()}) != 1:
        return None
    return halves[0]


def _ordered(
    operation: Operation, translation: Translation, x: Activation, axis: int, *, swapped: bool
) -> Activation:
    """MaxMin along an axis, the minima first where they are ``swapped``."""
    order = [axis, *(other for other in range(len(x.shape)) if other != axis)]
    x = _permuted(operation, translation, x, order)
    x = translation.emit(operation, MaxMin(), x)
    if swapped:
        half = x.shape[0] // 2
        places = torch.cat([torch.arange(half, 2 * half), torch.arange(half)])
        x = translation.emit(operation, Gather(places), x)
    return _permuted(operation, translation, x, [order.index(a) for a in range(len(order))])


def _both_signs(
    operation: Operation, translation: Translation, axis: int, parts: list[Activation]
) -> Activation | None:
    """max(x, 0) beside max(-x, 0): x and zeros in order, and the sign of the minima turned."""
    found: list[tuple[Activation, bool]] = []
    for part in parts:
        layer, sources = translation.origins.get(part.name, (None, ()))
        if not isinstance(layer, ReLU):
            return None
        inner, before = translation.origins.get(sources[0].name, (None, ()))
        negative = isinstance(inner, Multiply) and bool((inner.value == -1.0).all())
        found.append((before[0] if negative else sources[0], negative))
    (first, turned), (second, other) = found
    if first.name != second.name or turned == other:
        return None
    size = first.shape[axis]
    x = pad_axes(operation, translation, first, {axis: (0, size)}, 0.0)
    x = _ordered(operation, translation, x, axis, swapped=turned)
    shape = [2 if a == axis else 1 for a in range(len(x.shape))]
    signs = torch.tensor([-1.0, 1.0] if turned else [1.0, -1.0]).reshape(shape)
    signs = signs.repeat_interleave(size, dim=axis)
    return translation.emit(operation, Multiply(signs), x)


def _negated(
    operation: Operation, translation: Translation, x: Activation, wanted: bool
) -> Activation:
    return translation.emit(operation, Multiply(torch.tensor(-1.0)), x) if wanted else x


def _viewed(
    operation: Operation, translation: Translation, x: Activation, shape: tuple[int, ...]
) -> Activation:
    return x if shape == x.shape else translation.emit(operation, Reshape(shape=shape), x)


def _permuted(
    operation: Operation, translation: Translation, x: Activation, order: list[int]
) -> Activation:
    if order == sorted(order):
        return x
    return translation.emit(operation, Permute(axes=order), x)
