"""Constants that a graph computes: ONNX Runtime computes them here too, nothing of our own does.

Each node on constants alone runs in ONNX Runtime by itself, with the inputs that it has in the
graph, so that what is certified holds the very numbers that the deployed file computes. Taken are
operators whose result no order of summation can change; how large it gets is bounded before the
run. One row in ``CONSTANT_OPERATORS`` each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from models.errors import ModelError
from models.onnx.graph import Activation, Constant, Operation, Translation
from models.onnx.session import failure, open_session

__all__ = ["CONSTANT_OPERATORS", "ConstantRule", "evaluate", "read_tensor", "shape_of"]

Array = NDArray[Any]
Arrays = Sequence[Array | None]

#: Element types that a Cast may give: those that ``parse_onnx`` reads.
_DTYPES: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.INT64: np.dtype(np.int64),
    TensorProto.INT32: np.dtype(np.int32),
    TensorProto.BOOL: np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
#: Sessions that wait for another node of the same form.
_KEPT_SESSIONS = 64
#: Axes that an array of numpy can have.
_MAX_RANK = 64
#: Integers beyond are no size, place or step of any network; sums of a few do not overflow.
_LARGEST_STEP = 1 << 53
#: ONNX writes "to the end" as the largest or smallest number of its type.
_SMALLEST, _LARGEST = -(1 << 63), (1 << 63) - 1


def read_tensor(tensor: TensorProto) -> Array:
    """The values of a tensor that ``parse_onnx`` has checked."""
    return numpy_helper.to_array(tensor)


@dataclass(frozen=True)
class ConstantRule:
    """What must be known of an operator on constants before ONNX Runtime may run it.

    elements: how many elements its outputs can have together, at most; raises ValueError or
    ModelError for inputs that must not run at all.
    moves: it only moves the elements of its first input to where the other inputs say.
    """

    elements: Callable[[Operation, Arrays], int]
    moves: bool = False


def evaluate(operation: Operation, translation: Translation) -> list[Constant]:
    """The outputs of an operator on constants, under both batch sizes. Raises ModelError."""
    if operation.op_type == "Constant":
        return [Constant.of(_literal(operation))]
    constants = [value for value in operation.inputs if not isinstance(value, Activation)]
    if operation.op_type == "Identity" and constants[0] is not None:
        return [constants[0]]
    values = _run(operation, translation, [None if c is None else c.value for c in constants])
    if not any(c is not None and c.depends_on_batch for c in constants):
        return [Constant.of(value) for value in values]
    others = _run(operation, translation, [None if c is None else c.other for c in constants])
    return [
        Constant(value, other, not _moves(operation, constants, value.dtype))
        for value, other in zip(values, others, strict=True)
    ]


def _moves(
    operation: Operation, constants: Sequence[Constant | None], dtype: np.dtype[Any]
) -> bool:
    """Whether the batch size is but moved to another place of the result."""
    if operation.op_type == "Concat":
        steered: Sequence[Constant | None] = ()
    elif CONSTANT_OPERATORS[operation.op_type].moves and dtype.kind in "fi":
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


def _run(operation: Operation, translation: Translation, arrays: Arrays) -> list[Array]:
    """One run of the node in ONNX Runtime, once the size of its result is known to be bounded."""
    try:
        elements = CONSTANT_OPERATORS[operation.op_type].elements(operation, arrays)
    except ModelError:
        raise
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        operation.refuse(f"wrong inputs ({error})", code="invalid_onnx")
    translation.folded_bytes += 8 * elements
    if translation.folded_bytes > translation.limits.folded_bytes:
        operation.refuse(
            "the constants computed in the graph are too large", code="model_too_large"
        )
    model = _model_of(operation, arrays).SerializeToString()
    feeds = {
        f"i{index}": np.asarray(array, order="C")
        for index, array in enumerate(arrays)
        if array is not None
    }
    try:
        if model not in translation.sessions:
            if len(translation.sessions) >= _KEPT_SESSIONS:
                translation.sessions.clear()
            translation.sessions[model] = open_session(model)
        results = translation.sessions[model].run(None, feeds)
    except MemoryError:
        raise
    except Exception as error:
        raise failure(
            f"{operation.label}: ONNX Runtime cannot compute it", error, code="invalid_onnx"
        ) from error
    for result in results:
        if not isinstance(result, np.ndarray) or result.dtype not in _CODES:
            operation.refuse("its element type is not supported", code="unsupported_dtype")
    return list(results)


def _model_of(operation: Operation, arrays: Arrays) -> ModelProto:
    """The node alone, its names replaced, so that nodes which differ in names share a session."""
    node = NodeProto.FromString(operation.node.SerializeToString())
    node.name = node.doc_string = ""
    node.ClearField("metadata_props")
    node.input[:] = [f"i{index}" if array is not None else "" for index, array in enumerate(arrays)]
    node.output[:] = [f"o{index}" if name else "" for index, name in enumerate(node.output)]
    graph = helper.make_graph(
        [node],
        "constant",
        [
            helper.make_tensor_value_info(f"i{index}", _CODES[array.dtype], None)
            for index, array in enumerate(arrays)
            if array is not None
        ],
        [ValueInfoProto(name=name) for name in node.output if name],
    )
    opset = helper.make_opsetid("", operation.opset)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def _literal(operation: Operation) -> Array:
    """The value that a Constant node spells out."""
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


def _at(arrays: Arrays, index: int) -> Array:
    array = arrays[index] if index < len(arrays) else None
    if array is None:
        raise ValueError(f"input {index} is missing")
    return array


def _sizes(array: Array) -> tuple[int, ...]:
    """A shape that an input holds."""
    if array.dtype.kind != "i" or array.ndim != 1 or array.size > _MAX_RANK:
        raise ValueError("a shape must be a vector of integers")
    sizes = tuple(int(size) for size in array)
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape {sizes} is impossible")
    return sizes


def _as_many(operation: Operation, arrays: Arrays) -> int:
    """At most as many elements as the first input has."""
    return _at(arrays, 0).size


def _all_together(operation: Operation, arrays: Arrays) -> int:
    return sum(array.size for array in arrays if array is not None)


def _broadcast(operation: Operation, arrays: Arrays) -> int:
    shapes = [_at(arrays, index).shape for index in range(len(arrays))]
    if any(array is not None and array.dtype.kind not in "fi" for array in arrays):
        operation.refuse("element types are not numbers", code="unsupported_dtype")
    return math.prod(np.broadcast_shapes(*shapes))


def _quotient(operation: Operation, arrays: Arrays) -> int:
    dividend, divisor = _at(arrays, 0), _at(arrays, 1)
    if dividend.dtype.kind == divisor.dtype.kind == "i":
        # The processor's own exception would end the process.
        smallest = bool((dividend == np.iinfo(dividend.dtype).min).any())
        if (divisor == 0).any() or (smallest and (divisor == -1).any()):
            raise ValueError("an integer is divided by zero, or the smallest one by -1")
    return _broadcast(operation, arrays)


def _constant_of_shape(operation: Operation, arrays: Arrays) -> int:
    value = operation.attributes.get("value")
    if value is not None and math.prod(value.dims) != 1:
        raise ValueError("the fill value must be one number")
    return math.prod(_sizes(_at(arrays, 0)))


def _expanded(operation: Operation, arrays: Arrays) -> int:
    return math.prod(np.broadcast_shapes(_at(arrays, 0).shape, _sizes(_at(arrays, 1))))


def _gathered(operation: Operation, arrays: Arrays) -> int:
    data, indices = _at(arrays, 0), _at(arrays, 1)
    axis = operation.axis(operation.attributes.get("axis", 0), data.ndim)
    _check_rank(data.ndim + indices.ndim - 1)
    return math.prod(data.shape[:axis]) * math.prod(data.shape[axis + 1 :]) * indices.size


def _unsqueezed(operation: Operation, arrays: Arrays) -> int:
    axes = operation.attributes["axes"] if operation.opset < 13 else _at(arrays, 1).reshape(-1)
    _check_rank(_at(arrays, 0).ndim + len(axes))
    return _at(arrays, 0).size


def _reshaped(operation: Operation, arrays: Arrays) -> int:
    _check_rank(_at(arrays, 1).size)
    return _at(arrays, 0).size


def _check_rank(rank: int) -> None:
    if rank > _MAX_RANK:
        raise ValueError(f"a rank of {rank}")


def _sliced(operation: Operation, arrays: Arrays) -> int:
    """Places and steps are clamped to the axis by ONNX Runtime, if they do not overflow there."""
    numbers = [
        int(number)
        for array in arrays[1:]
        if array is not None
        for number in array.reshape(-1).tolist()
    ]
    numbers += [
        number
        for name in ("starts", "ends", "axes")
        for number in operation.attributes.get(name, ())
    ]
    if any(abs(n) > _LARGEST_STEP and n not in (_SMALLEST, _LARGEST) for n in numbers):
        raise ValueError("a place or a step is too large")
    steps = arrays[4] if len(arrays) > 4 else None
    if steps is not None and any(abs(int(step)) > _LARGEST_STEP for step in steps.reshape(-1)):
        raise ValueError("a step is too large")
    return _at(arrays, 0).size


def _counted(operation: Operation, arrays: Arrays) -> int:
    """Numbers of a Range: integers only, sums of floats round."""
    given = [_at(arrays, index) for index in range(3)]
    if any(array.dtype.kind != "i" for array in given):
        operation.refuse("only integers are supported", code="unsupported_dtype")
    start, limit, step = (int(array.reshape(())) for array in given)
    if step == 0 or max(abs(start), abs(limit), abs(step)) > _LARGEST_STEP:
        raise ValueError("an endless range, or one of numbers that are too large")
    return len(range(start, limit, step))


def _cast(operation: Operation, arrays: Arrays) -> int:
    data, code = _at(arrays, 0), operation.attributes["to"]
    if code not in _DTYPES:
        operation.refuse(f"element type {code} is not supported", code="unsupported_dtype")
    if data.dtype.kind == "f" and _DTYPES[code].kind == "i":
        # What does not fit is another number on every processor.
        limit = 2.0 ** (8 * _DTYPES[code].itemsize - 1)
        if not (np.abs(data.astype(np.float64)) < limit).all():
            operation.refuse(
                "NaN, infinity or a number that is too large is cast to an integer",
                code="non_finite_weights",
            )
    return data.size


def _product(operation: Operation, arrays: Arrays) -> int:
    data = _at(arrays, 0)
    if data.dtype.kind != "i":
        operation.refuse("only integers are supported", code="unsupported_dtype")
    # Axes of size 0 leave the others' places behind when they are reduced.
    return math.prod(max(size, 1) for size in data.shape)


def _rank(operation: Operation, arrays: Arrays) -> int:
    return _at(arrays, 0).ndim


def _no_inputs(operation: Operation, arrays: Arrays) -> NoReturn:
    raise ValueError("it takes no inputs")


#: Operators that may compute constants: a new one is one row here.
CONSTANT_OPERATORS: dict[str, ConstantRule] = {
    "Add": ConstantRule(_broadcast),
    "Cast": ConstantRule(_cast, moves=True),
    "Concat": ConstantRule(_all_together),
    "Constant": ConstantRule(_no_inputs),
    "ConstantOfShape": ConstantRule(_constant_of_shape),
    "Div": ConstantRule(_quotient),
    "Expand": ConstantRule(_expanded, moves=True),
    "Gather": ConstantRule(_gathered, moves=True),
    "Identity": ConstantRule(_as_many, moves=True),
    "Max": ConstantRule(_broadcast),
    "Min": ConstantRule(_broadcast),
    "Mul": ConstantRule(_broadcast),
    "Neg": ConstantRule(_broadcast),
    "Range": ConstantRule(_counted),
    "ReduceProd": ConstantRule(_product),
    "Reshape": ConstantRule(_reshaped, moves=True),
    "Shape": ConstantRule(_rank),
    "Slice": ConstantRule(_sliced, moves=True),
    "Split": ConstantRule(_as_many, moves=True),
    "Sqrt": ConstantRule(_broadcast),
    "Squeeze": ConstantRule(_as_many, moves=True),
    "Sub": ConstantRule(_broadcast),
    "Transpose": ConstantRule(_as_many, moves=True),
    "Unsqueeze": ConstantRule(_unsqueezed, moves=True),
}
