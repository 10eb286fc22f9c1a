"""Constant folding: what exporters compute in the graph about shapes, axes and constants.

Only operators whose float32 result is exact or correctly rounded are folded, so that a folded
constant is, bit for bit, the one ONNX Runtime computes. One function and one row in ``FOLDERS``
each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from models.errors import ModelError
from models.onnx_graph import Activation, Constant, Operation, Translation

__all__ = [
    "FOLDERS",
    "axes_of",
    "fold",
    "read_tensor",
    "shape_of",
    "slices_of",
]

#: Operators that only move the elements of their first input.
_MOVERS = {
    *("Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose"),
    "Unsqueeze",
}

Array = NDArray[Any]
#: Refuses a result of that many elements when there is no room for it.
Room = Callable[[int], None]
Folder = Callable[[Operation, Sequence[Array | None], Room], Array]

_DTYPES: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.INT64: np.dtype(np.int64),
    TensorProto.INT32: np.dtype(np.int32),
    TensorProto.BOOL: np.dtype(np.bool_),
}


def read_tensor(tensor: TensorProto) -> Array:
    """The values of a tensor that ``parse_onnx`` has checked."""
    return numpy_helper.to_array(tensor)


def fold(operation: Operation, translation: Translation) -> Constant:
    """The result of an operator on constants, under both batch sizes. Raises ModelError."""
    constants = [value for value in operation.inputs if not isinstance(value, Activation)]
    folder = FOLDERS[operation.op_type]

    def room(elements: int) -> None:
        translation.folded_bytes += 8 * elements
        if translation.folded_bytes > translation.limits.folded_bytes:
            operation.refuse(
                "the constants computed in the graph are too large", code="model_too_large"
            )

    def run(arrays: list[Array | None]) -> Array:
        try:
            with np.errstate(all="ignore"):
                return np.asarray(folder(operation, arrays, room))
        except ModelError:
            raise
        except (ValueError, IndexError, TypeError, OverflowError, AttributeError) as error:
            operation.refuse(f"wrong inputs ({error})", code="invalid_onnx")

    value = run([None if c is None else c.value for c in constants])
    if not any(c is not None and c.depends_on_batch for c in constants):
        return Constant.of(value)
    other = run([None if c is None else c.other for c in constants])
    return Constant(value, other, not _moves(operation, constants, value.dtype))


def _moves(
    operation: Operation, constants: Sequence[Constant | None], dtype: np.dtype[Any]
) -> bool:
    """Whether the batch size is but moved to another place of the result."""
    if operation.op_type == "Concat":
        steered: Sequence[Constant | None] = ()
    elif operation.op_type in _MOVERS and dtype.kind in "fi":
        steered = constants[1:]
    else:
        return False
    known = [c for c in constants if c is not None]
    return not any(c.computed for c in known) and not any(
        c is not None and c.depends_on_batch for c in steered
    )


def shape_of(operation: Operation, batch: tuple[int, int]) -> Constant:
    """Shape of an activation: the batch size, then the sample's shape."""
    shape = operation.activation().shape
    start, end = operation.attributes.get("start", 0), operation.attributes.get("end")
    first, second = (np.array([size, *shape], dtype=np.int64)[start:end] for size in batch)
    return Constant(first, second)


def dtype_of(operation: Operation, code: int) -> np.dtype[Any]:
    """The element type an attribute names, if it is one that is read."""
    if code not in _DTYPES:
        operation.refuse(f"element type {code} is not supported", code="unsupported_dtype")
    return _DTYPES[code]


def axes_of(operation: Operation, axes: Array | None, rank: int) -> tuple[int, ...] | None:
    """Axes from the second input (opset 13) or the attribute, counted from the front."""
    given = operation.attributes.get("axes") if axes is None else axes.tolist()
    if given is None:
        return None
    return tuple(operation.axis(int(axis), rank) for axis in given)


def _constant(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
    given = {k: v for k, v in operation.attributes.items() if k.startswith("value")}
    if len(given) != 1:
        operation.refuse("exactly one value must be given", code="invalid_onnx")
    ((name, value),) = given.items()
    if name == "value":
        return read_tensor(value)
    if name in ("value_float", "value_floats"):
        return np.array(value, dtype=np.float32)
    if name in ("value_int", "value_ints"):
        return np.array(value, dtype=np.int64)
    return operation.refuse(f"{name} is not supported", code="unsupported_dtype")


def _constant_of_shape(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
    shape = [int(size) for size in _first(arrays).tolist()]
    if any(size < 0 for size in shape):
        operation.refuse(f"shape {shape} is impossible", code="invalid_onnx")
    room(math.prod(shape))
    value = operation.attributes.get("value")
    fill = np.zeros(1, dtype=np.float32) if value is None else read_tensor(value)
    if fill.size != 1:
        operation.refuse("the fill value must be one number", code="invalid_onnx")
    return np.full(shape, fill.reshape(())[()], dtype=fill.dtype)


def _gather(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
    data, indices = _first(arrays), _at(arrays, 1)
    axis = operation.axis(operation.attributes.get("axis", 0), data.ndim)
    room(data.size // max(data.shape[axis], 1) * indices.size)
    return np.take(data, indices, axis=axis)


def _concat(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
    parts = [_at(arrays, index) for index in range(len(arrays))]
    room(sum(part.size for part in parts))
    return np.concatenate(parts, axis=operation.attributes["axis"])


def slices_of(
    operation: Operation, arrays: Sequence[Array | None], rank: int
) -> list[tuple[int, int, int, int]]:
    """(axis, start, end, step) of a Slice as it is written, axes counted from the front."""
    if operation.opset < 10:
        starts, ends = operation.attributes["starts"], operation.attributes["ends"]
        axes = operation.attributes.get("axes", range(len(starts)))
        steps = [1] * len(starts)
    else:
        starts, ends = _at(arrays, 1).tolist(), _at(arrays, 2).tolist()
        given_axes, given_steps = _optional(arrays, 3), _optional(arrays, 4)
        axes = range(len(starts)) if given_axes is None else given_axes.tolist()
        steps = [1] * len(starts) if given_steps is None else given_steps.tolist()
    axes = [operation.axis(axis, rank) for axis in axes]
    return list(zip(axes, starts, ends, steps, strict=True))


def _slice(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
    data = _first(arrays)
    cuts: list[Any] = [slice(None)] * data.ndim
    for axis, start, end, step in slices_of(operation, arrays, data.ndim):
        # Going backwards, ONNX writes "up to the front" as an end before the first element.
        stop = None if step < 0 and end < -data.shape[axis] else end
        cuts[axis] = slice(start, stop, step)
    return data[tuple(cuts)]


def _squeeze(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
    data = _first(arrays)
    return np.squeeze(data, axes_of(operation, _optional(arrays, 1), data.ndim))


def _unsqueeze(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
    data, axes = _first(arrays), _optional(arrays, 1)
    given = operation.attributes["axes"] if axes is None else axes.tolist()
    return np.expand_dims(data, axes_of(operation, np.array(given), data.ndim + len(given)) or ())


def _reshape(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
    data, target = _first(arrays), _at(arrays, 1).tolist()
    if not operation.attributes.get("allowzero"):
        target = [data.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return data.reshape(target)


def _expand(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
    data, target = _first(arrays), tuple(_at(arrays, 1).tolist())
    shape = np.broadcast_shapes(data.shape, target)
    room(math.prod(shape))
    return np.broadcast_to(data, shape).copy()


def _range(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
    start, limit, step = (_at(arrays, index).reshape(()).item() for index in range(3))
    if any(_at(arrays, index).dtype != np.int64 for index in range(3)):
        operation.refuse("only int64 is supported", code="unsupported_dtype")
    room(len(range(start, limit, step)))
    return np.arange(start, limit, step, dtype=np.int64)


def _cast(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
    data = _first(arrays)
    dtype = dtype_of(operation, operation.attributes["to"])
    if data.dtype.kind == "f" and dtype.kind == "i" and not np.isfinite(data).all():
        operation.refuse("cannot cast NaN or infinity to an integer", code="non_finite_weights")
    room(data.size)
    return data.astype(dtype)


def _divide(first: Array, second: Array) -> Array:
    if first.dtype.kind != "i":
        return np.asarray(first / second)
    if not second.all():
        raise ValueError("integer division by zero")
    quotient = np.abs(first) // np.abs(second)
    return np.asarray(quotient * np.sign(first) * np.sign(second))


def _elementwise(function: Callable[..., Any]) -> Folder:
    """A correctly rounded operator on one or two arrays of the same element type."""

    def folder(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
        given = [_at(arrays, index) for index in range(len(arrays))]
        if any(array.dtype != given[0].dtype or array.dtype.kind not in "fi" for array in given):
            operation.refuse("element types differ or are not numbers", code="unsupported_dtype")
        room(math.prod(np.broadcast_shapes(*(array.shape for array in given))))
        return np.asarray(function(*given))

    return folder


def _over_all(function: Callable[[Array, Array], Any]) -> Folder:
    """An exact operator on any number of arrays, two by two."""
    pair = _elementwise(function)

    def folder(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
        result = _first(arrays)
        for array in arrays[1:]:
            result = pair(operation, [result, array], room)
        return result

    return folder


def _reduce_product(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
    data = _first(arrays)
    if data.dtype.kind != "i":
        operation.refuse("only integers are supported", code="unsupported_dtype")
    axes = axes_of(operation, _optional(arrays, 1), data.ndim)
    return np.asarray(np.prod(data, axis=axes, keepdims=bool(operation.attributes["keepdims"])))


def _transpose(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
    return np.transpose(_first(arrays), operation.attributes.get("perm"))


def _identity(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
    return _first(arrays)


def _shape(operation: Operation, arrays: Sequence[Array | None], room: Room) -> Array:
    start, end = operation.attributes.get("start", 0), operation.attributes.get("end")
    return np.array(_first(arrays).shape, dtype=np.int64)[start:end]


def _optional(arrays: Sequence[Array | None], index: int) -> Array | None:
    return arrays[index] if index < len(arrays) else None


def _at(arrays: Sequence[Array | None], index: int) -> Array:
    array = _optional(arrays, index)
    if array is None:
        raise ValueError(f"input {index} is missing")
    return array


def _first(arrays: Sequence[Array | None]) -> Array:
    return _at(arrays, 0)


#: Operators folded on constants: a new one is one function and one row here.
FOLDERS: dict[str, Folder] = {
    "Add": _elementwise(np.add),
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Div": _elementwise(_divide),
    "Expand": _expand,
    "Gather": _gather,
    "Identity": _identity,
    "Max": _over_all(np.maximum),
    "Min": _over_all(np.minimum),
    "Mul": _elementwise(np.multiply),
    "Neg": _elementwise(np.negative),
    "Range": _range,
    "ReduceProd": _reduce_product,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Sqrt": _elementwise(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _elementwise(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
