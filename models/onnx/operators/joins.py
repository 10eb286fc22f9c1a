"""ONNX operators that join, cut and reduce axes: Concat, Split, Slice, Gather, sums and means."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.layers.activations import Abs
from models.layers.base import Layer
from models.layers.curves import Power
from models.layers.joins import Concat, ReduceMean, ReduceSum, Slice
from models.layers.kinds import AvgPool2d, Gather, Reshape, Shift
from models.onnx.graph import FIXED_BATCH, Activation, Constant, Operation, Translation, Value
from models.onnx.operators.layout.axes import reduced_axes, without
from models.onnx.operators.layout.selection import selected
from models.onnx.operators.sorting import pairs_in_order
from models.onnx.operators.windows import pad_axes

__all__ = [
    "concat",
    "cut",
    "extract_features",
    "gather",
    "reduce_l1",
    "reduce_mean",
    "reduce_sum",
    "reduce_sum_square",
    "split",
]

#: An end of a slice that no axis reaches: "to the end", whatever the size.
_TO_THE_END = (1 << 31) - 1


def _axis(operation: Operation, x: Activation) -> int:
    """The operator's axis without the batch, which must stay whole."""
    axis = operation.axis(operation.attributes["axis"], x.rank)
    if axis == 0:
        operation.refuse_batch("its axis is the batch axis")
    return axis - 1


def concat(operation: Operation, translation: Translation) -> Activation:
    """Nodes and constants one after another along an axis.

    A constant part is padding with zeros that a Shift fills, which is exact.
    """
    first = next(value for value in operation.inputs if isinstance(value, Activation))
    axis = _axis(operation, first)
    parts: list[Activation] = []
    leading: list[NDArray[np.float32]] = []
    for index, value in enumerate(operation.inputs):
        if isinstance(value, Activation):
            parts.append(_padded(operation, translation, value, axis, leading, before=True))
            leading = []
            continue
        array = operation.constant(index)
        assert array is not None
        if array.ndim != first.rank or array.dtype != np.float32:
            operation.refuse(f"a constant part of shape {array.shape} does not fit")
        if array.shape[0] != 1:
            operation.refuse_batch(f"a constant part of shape {array.shape} differs over the batch")
        if translation.batch != FIXED_BATCH and not _is_repeated(value):
            # Concat does not broadcast: beside a batch of two, ONNX Runtime refuses this part.
            translation.one_row_only = True
        if parts:
            parts[-1] = _padded(operation, translation, parts[-1], axis, [array[0]], before=False)
        else:
            leading.append(array[0])
    if len(parts) == 1:
        return parts[0]
    pairs = pairs_in_order(operation, translation, axis, parts)
    if pairs is not None:
        return pairs
    partly = _partly_absolute(translation, axis, parts)
    if partly is not None:
        layer, whole = partly
        return translation.emit(operation, layer, whole)
    return translation.emit(operation, Concat(axis=axis), *parts)


def _is_repeated(value: Value | None) -> bool:
    """Whether the file has a row of it for each row of the batch."""
    return isinstance(value, Constant) and value.repeated


def _padded(
    operation: Operation,
    translation: Translation,
    x: Activation,
    axis: int,
    arrays: list[NDArray[np.float32]],
    *,
    before: bool,
) -> Activation:
    """The activation with constants before or after it along an axis."""
    arrays = [array for array in arrays if array.shape[axis : axis + 1] != (0,)]
    if not arrays:
        return x
    zeros = np.zeros(x.shape, dtype=np.float32)
    if any(without(array.shape, axis) != without(x.shape, axis) for array in arrays):
        operation.refuse("a constant part differs in shape", code="shape_mismatch")
    size = sum(array.shape[axis] for array in arrays)
    value = np.concatenate([*arrays, zeros] if before else [zeros, *arrays], axis=axis)
    amounts = {axis: (size, 0) if before else (0, size)}
    x = pad_axes(operation, translation, x, amounts, 0.0)
    return translation.emit(operation, Shift(translation.weight(operation, value)), x)


def _partly_absolute(
    translation: Translation, axis: int, parts: list[Activation]
) -> tuple[Abs, Activation] | None:
    """|.| of an activation's first channels beside the others as they are, as one layer.

    As a join of two parts its slope would be sqrt(2).
    """
    if axis != 0 or len(parts) != 2:
        return None
    layer, sources = translation.origins.get(parts[0].name, (None, ()))
    if not isinstance(layer, Abs) or layer.channels is not None:
        return None
    cuts = [translation.origins.get(part.name, (None, ())) for part in (sources[0], parts[1])]
    (first, (of_first, *_)), (second, (of_second, *_)) = ((cut, of or (None,)) for cut, of in cuts)
    if not (isinstance(first, Slice) and isinstance(second, Slice)):
        return None
    assert of_first is not None
    if of_first != of_second or {(c.axis, c.step) for c in (first, second)} != {(0, 1)}:
        return None
    if first.start != 0 or first.stop != second.start or second.stop != of_first.shape[0]:
        return None
    return Abs(channels=first.stop), of_first


def split(operation: Operation, translation: Translation) -> list[Activation]:
    """Split into parts of given sizes (attribute or input) or of equal ones."""
    x = operation.activation()
    axis, count = _axis(operation, x), len(operation.outputs)
    size, number = x.shape[axis], operation.attributes.get("num_outputs")
    sizes = operation.integers(1)
    if sizes is None and operation.attributes.get("split") is not None:
        sizes = [int(part) for part in operation.attributes["split"]]
    if operation.opset >= 18 and (sizes is None) == (number is None):
        operation.refuse("needs either split or num_outputs", code="invalid_onnx")
    if number is not None and number != count:
        operation.refuse(f"num_outputs = {number} but {count} outputs", code="invalid_onnx")
    if sizes is None:
        part = -(-size // count)
        sizes = [part] * (count - 1) + [size - part * (count - 1)]
        if operation.opset < 18 and size % count:
            operation.refuse(f"{count} parts do not divide {size}", code="shape_mismatch")
    if len(sizes) != count or sum(sizes) != size or min(sizes) < 1:
        operation.refuse(f"cannot split {size} into parts of {sizes[:16]}", code="shape_mismatch")
    if count == 1:
        return [x]
    parts, start = [], 0
    for part in sizes:
        layer = Slice(axis=axis, start=start, stop=start + part)
        parts.append(translation.emit(operation, layer, x))
        start += part
    return parts


def cut(operation: Operation, translation: Translation) -> Activation:
    """Slice, forwards or backwards; the batch axis must stay whole."""
    x = operation.activation()
    for axis, start, end, step in _slices(operation, x.rank):
        if step == 0:
            operation.refuse("a step of 0", code="invalid_onnx")
        if axis == 0:
            fixed = translation.batch == FIXED_BATCH and start in (0, -1) and end >= 1
            if not (step == 1 and ((start == 0 and end >= _TO_THE_END) or fixed)):
                operation.refuse_batch("it cuts the batch axis")
            continue
        x = _sliced(operation, translation, x, axis - 1, slice(start, end, step))
    return x


def _slices(operation: Operation, rank: int) -> list[tuple[int, int, int, int]]:
    """(axis, start, end, step) of a Slice as it is written, axes counted from the front."""
    if operation.opset < 10:
        starts, ends = operation.attributes["starts"], operation.attributes["ends"]
        axes, steps = operation.attributes.get("axes"), None
    else:
        starts, ends, axes, steps = (operation.integers(index) for index in range(1, 5))
    if starts is None or ends is None:
        operation.refuse("needs starts and ends", code="invalid_onnx")
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        operation.refuse("starts, ends, axes and steps differ in length", code="invalid_onnx")
    return list(zip(operation.axes(axes, rank), starts, ends, steps, strict=True))


def _sliced(
    operation: Operation, translation: Translation, x: Activation, axis: int, cut: slice
) -> Activation:
    size = x.shape[axis]
    if cut.step < 0:
        # A start below -n is the first place, not the one before it.
        cut = slice(max(cut.start, -size), cut.stop, cut.step)
    start, stop, step = cut.indices(size)
    if (start, stop, step) == (0, size, 1):
        return x
    places = range(start, stop, step)
    if not places:
        operation.refuse(f"nothing is left of axis {axis + 1}", code="shape_mismatch")
    if step < 0 and len(places) > 1:
        return translation.emit(operation, Gather(torch.tensor([*places]), axis=axis), x)
    if step < 0:
        start, stop, step = start, start + 1, 1
    layer = Slice(axis=axis, start=start, stop=stop, step=step)
    return translation.emit(operation, layer, x)


def gather(operation: Operation, translation: Translation) -> Activation:
    """Gather of places of an axis; of one, or of places at equal distances, a slice."""
    axis = operation.axis(operation.attributes["axis"], operation.activation().rank)
    if axis == 0:
        operation.refuse_batch("it takes rows out of the batch")
    return _gathered(operation, translation, axis)


def extract_features(operation: Operation, translation: Translation) -> Activation:
    """ArrayFeatureExtractor (scikit-learn): places of the last axis of [N, features]."""
    x, places = operation.activation(), operation.constant(1)
    if len(x.shape) != 1 or places is None:
        operation.refuse("only constant places of features [batch, n] are supported")
    found = _gathered(operation, translation, 1)
    shape = (places.size,)
    return (
        found if found.shape == shape else translation.emit(operation, Reshape(shape=shape), found)
    )


def _gathered(operation: Operation, translation: Translation, axis: int) -> Activation:
    x, indices = operation.activation(), operation.input(1)
    array = operation.constant(1) if isinstance(indices, Constant) else None
    if array is None:
        operation.refuse("only constant places are supported")
    if array.dtype.kind != "i":
        operation.refuse("places must be integers", code="invalid_onnx")
    size = x.shape[axis - 1]
    if not array.size or array.min() < -size or array.max() >= size:
        few = array.reshape(-1)[:16].tolist()
        operation.refuse(f"places {few} of {size}", code="shape_mismatch")
    places = array.reshape(-1).astype(np.int64) % size
    step = int(places[1] - places[0]) if len(places) > 1 else 1
    if step >= 1 and bool((np.diff(places) == step).all()):
        cut = slice(int(places[0]), int(places[-1]) + 1, step)
        taken = _sliced(operation, translation, x, axis - 1, cut)
    else:
        taken = selected(operation, translation, x, places, axis - 1)
    if array.ndim == 1:
        return taken
    shape = (*x.shape[: axis - 1], *array.shape, *x.shape[axis:])
    return translation.emit(operation, Reshape(shape=shape), taken)


def reduce_sum(operation: Operation, translation: Translation) -> Activation:
    """ReduceSum over axes other than the batch."""
    return _summed(operation, translation, operation.activation())


def reduce_l1(operation: Operation, translation: Translation) -> Activation:
    """Sums of |x| over axes other than the batch."""
    return _summed(operation, translation, operation.activation(), Abs())


def reduce_sum_square(operation: Operation, translation: Translation) -> Activation:
    """Sums of x^2 over axes other than the batch."""
    return _summed(operation, translation, operation.activation(), Power(exponent=2))


def _summed(
    operation: Operation, translation: Translation, x: Activation, inner: Layer | None = None
) -> Activation:
    """Sums of ``inner`` of the numbers. Without axes runtimes differ on whether that is applied."""
    axes = reduced_axes(operation)
    if not axes:
        if inner is not None:
            operation.refuse("without axes it is not supported")
        return x
    if inner is not None:
        x = translation.emit(operation, inner, x)
    layer = ReduceSum(axes=axes, keepdims=bool(operation.attributes["keepdims"]))
    return translation.emit(operation, layer, x)


def reduce_mean(operation: Operation, translation: Translation) -> Activation:
    """ReduceMean over axes other than the batch; over an image's two it is an average pooling."""
    x, axes, keepdims = (
        operation.activation(),
        reduced_axes(operation),
        bool(operation.attributes["keepdims"]),
    )
    if not axes:
        return x
    if len(x.shape) == 3 and axes == [1, 2]:
        pooled = translation.emit(operation, AvgPool2d(kernel=x.shape[1:], stride=1), x)
        if keepdims:
            return pooled
        return translation.emit(operation, Reshape(shape=x.shape[:1]), pooled)
    return translation.emit(operation, ReduceMean(axes=axes, keepdims=keepdims), x)
