"""Which operators may compute constants, and a bound on the size of the result before the run.

Allowed are operators whose result does not depend on an order of summation. Each has one row in
``CONSTANT_OPERATORS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from models.onnx.graph import Operation
from models.onnx.operators.layout.constant_places import (
    gathered_rows,
    nonzero,
    scattered,
    scattered_rows,
)

__all__ = ["CONSTANT_OPERATORS", "DTYPES", "SUMS_HINT", "Array", "Arrays", "ConstantRule"]

Array = NDArray[Any]
Arrays = Sequence[Array | None]

#: Element types that a Cast may give: those that ``parse_onnx`` reads.
DTYPES: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.INT64: np.dtype(np.int64),
    TensorProto.INT32: np.dtype(np.int32),
    TensorProto.BOOL: np.dtype(np.bool_),
}
#: Axes that an array of numpy can have.
_MAX_RANK = 64
#: Largest integer taken as a size, index or step; sums of a few such numbers do not overflow.
_LARGEST_STEP = 1 << 53
#: ONNX writes "to the end" as the largest or smallest number of its type.
_SMALLEST, _LARGEST = -(1 << 63), (1 << 63) - 1
#: What to do about constants that a file computes by sums.
SUMS_HINT = (
    "compute the weights before the export (torch: remove_parametrizations, "
    "remove_spectral_norm; deel-torchlip: vanilla_export), or let ONNX Runtime write them "
    "into the file (SessionOptions: ORT_ENABLE_BASIC, optimized_model_filepath): a file "
    "that computes them by sums has others on every machine"
)
#: Sines and cosines are taken of angles up to this, and may differ by so much from one machine to
#: another. ONNX Runtime 1.31 is off by less than a fifth of it (3,000,001 angles).
_LARGEST_ANGLE, _WAVES = 100.0, 2.0**-21
#: The same as exporters write it, which turn an axis around.
_ENDS = (_SMALLEST, _SMALLEST + 1, _LARGEST)


@dataclass(frozen=True)
class ConstantRule:
    """What is checked of an operator on constants before ONNX Runtime runs it.

    elements: how many elements its outputs can have together, at most; raises ValueError or
    ModelError for inputs that must not run at all.
    moves: it only moves the elements of its first input to where the other inputs say; Where those
    of the other two, by the first.
    spread: by how much machines may differ in its result; 0: not at all.
    """

    elements: Callable[[Operation, Arrays], int]
    moves: bool = False
    spread: float = 0.0


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


def _joined(operation: Operation, arrays: Arrays) -> int:
    """ONNX Runtime reads past the end of a tensor where an empty part has another rank."""
    shapes = [_at(arrays, index).shape for index in range(len(arrays))]
    axis = operation.axis(operation.attributes["axis"], len(shapes[0]))
    if len({(len(s), s[:axis], s[axis + 1 :]) for s in shapes}) > 1:
        raise ValueError(f"shapes {shapes[:8]} differ beside axis {axis}")
    return sum(math.prod(shape) for shape in shapes)


def _broadcast(operation: Operation, arrays: Arrays) -> int:
    shapes = [_at(arrays, index).shape for index in range(len(arrays))]
    if any(array is not None and array.dtype.kind not in "fi" for array in arrays):
        operation.refuse("element types are not numbers", code="unsupported_dtype")
    return math.prod(np.broadcast_shapes(*shapes))


def _stepped(operation: Operation, arrays: Arrays) -> int:
    if _at(arrays, 0).dtype.kind != "f":
        operation.refuse("only floats are supported", code="unsupported_dtype")
    return _at(arrays, 0).size


def _extreme(operation: Operation, arrays: Arrays) -> int:
    """ONNX Runtime compares int64 by their lower halves: its least of 2^31 and 1 is 2^31."""
    for array in arrays:
        if (
            array is not None
            and array.dtype == np.int64
            and ((array >= 1 << 31) | (array < -(1 << 31))).any()
        ):
            raise ValueError("an integer beyond 2^31 is compared, which runtimes do differently")
    return _broadcast(operation, arrays)


def _quotient(operation: Operation, arrays: Arrays) -> int:
    dividend, divisor = _at(arrays, 0), _at(arrays, 1)
    if dividend.dtype.kind == divisor.dtype.kind == "i":
        # The processor would raise a signal that ends the process.
        smallest = bool((dividend == np.iinfo(dividend.dtype).min).any())
        if (divisor == 0).any() or (smallest and (divisor == -1).any()):
            raise ValueError("an integer is divided by zero, or the smallest one by -1")
    return _broadcast(operation, arrays)


def _remainder(operation: Operation, arrays: Arrays) -> int:
    if any(array is None or array.dtype.kind != "i" for array in arrays):
        operation.refuse("only integers are supported", code="unsupported_dtype")
    return _quotient(operation, arrays)


def _compared(operation: Operation, arrays: Arrays) -> int:
    first, second = _at(arrays, 0), _at(arrays, 1)
    if first.dtype != second.dtype:
        raise ValueError(f"{first.dtype} is compared with {second.dtype}")
    return math.prod(np.broadcast_shapes(first.shape, second.shape))


def _chosen(operation: Operation, arrays: Arrays) -> int:
    condition, first, second = (_at(arrays, index) for index in range(3))
    if condition.dtype.kind != "b" or first.dtype != second.dtype:
        raise ValueError("a condition must be boolean, and both values of one type")
    if first.dtype.kind not in "fi":
        operation.refuse("element types are not numbers", code="unsupported_dtype")
    return math.prod(np.broadcast_shapes(condition.shape, first.shape, second.shape))


def _constant_of_shape(operation: Operation, arrays: Arrays) -> int:
    value = operation.attributes.get("value")
    if value is not None and math.prod(value.dims) != 1:
        raise ValueError("the fill value must be one number")
    return math.prod(_sizes(_at(arrays, 0)))


def _expanded(operation: Operation, arrays: Arrays) -> int:
    return math.prod(np.broadcast_shapes(_at(arrays, 0).shape, _sizes(_at(arrays, 1))))


def _tiled(operation: Operation, arrays: Arrays) -> int:
    data, repeats = _at(arrays, 0), _sizes(_at(arrays, 1))
    if len(repeats) != data.ndim:
        raise ValueError(f"{len(repeats)} numbers of repeats for {data.ndim} axes")
    return data.size * math.prod(repeats)


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


def _parts(operation: Operation, arrays: Arrays) -> int:
    """ONNX Runtime ends the process at a Split that is told neither sizes nor a number of parts."""
    given = len(arrays) > 1 and arrays[1] is not None
    number = operation.attributes.get("num_outputs")
    if operation.opset >= 18 and given == (number is not None):
        raise ValueError("needs either split or num_outputs")
    if number is not None and number != len(operation.outputs):
        raise ValueError(f"num_outputs = {number} but {len(operation.outputs)} outputs")
    return _at(arrays, 0).size


def _check_rank(rank: int) -> None:
    if rank > _MAX_RANK:
        raise ValueError(f"a rank of {rank}")


def _sliced(operation: Operation, arrays: Arrays) -> int:
    """Places and steps are clamped to the axis by ONNX Runtime, if they do not overflow there."""
    for array in arrays[1:]:
        _check_rank(0 if array is None else array.size)
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
    if any(abs(n) > _LARGEST_STEP and n not in _ENDS for n in numbers):
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
    if code not in DTYPES:
        operation.refuse(f"element type {code} is not supported", code="unsupported_dtype")
    if data.dtype.kind == "f" and DTYPES[code].kind == "i":
        # What does not fit is another number on every processor.
        limit = 2.0 ** (8 * DTYPES[code].itemsize - 1)
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
    sizes = np.maximum(np.abs(data.astype(np.float64)), 1.0)
    if float(np.log2(sizes).sum()) > math.log2(_LARGEST_STEP):
        raise ValueError("the product is too large: runtimes overflow in different ways")
    # Axes of size 0 leave the others' places behind when they are reduced.
    return math.prod(max(size, 1) for size in data.shape)


def _rank(operation: Operation, arrays: Arrays) -> int:
    return _at(arrays, 0).ndim


def _wave(operation: Operation, arrays: Arrays) -> int:
    """Angles of a few turns, beyond which kernels lose digits."""
    data = _at(arrays, 0)
    if data.dtype != np.float32 or not (np.abs(data) <= _LARGEST_ANGLE).all():
        raise ValueError(f"angles must be float32, of at most {_LARGEST_ANGLE}")
    return data.size


def _integer_sum(operation: Operation, arrays: Arrays) -> int:
    """Sums of floats depend on their order."""
    data = _at(arrays, 0)
    if data.dtype.kind != "i":
        operation.refuse("sums of constants must be of integers", hint=SUMS_HINT)
    if float(np.abs(data.astype(np.float64)).sum()) >= min(_LARGEST_STEP, np.iinfo(data.dtype).max):
        raise ValueError("the sum is too large: runtimes overflow in different ways")
    return math.prod(max(size, 1) for size in data.shape)


def _outer(operation: Operation, arrays: Arrays) -> int:
    """Products of two numbers, or moves: an index that is not in the result would be summed over,
    which depends on the order."""
    equation = operation.attributes["equation"]
    equation = equation.decode() if isinstance(equation, bytes) else equation
    given, arrow, result = equation.replace(" ", "").partition("->")
    terms, shapes = given.split(","), [_at(arrays, index).shape for index in range(len(arrays))]
    letters = set(given) - {","}
    plain = arrow and len(terms) == len(shapes) <= 2 and (given + result).replace(",", "").isalpha()
    if not plain or letters != set(result) or len(set(result)) < len(result):
        operation.refuse(
            "only an Einsum without sums is supported on constants alone", hint=SUMS_HINT
        )
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        if len(term) != len(shape) or len(set(term)) < len(term):
            raise ValueError(f"{term!r} names axes of shape {shape}")
        for letter, size in zip(term, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(f"axis {letter!r} has sizes {sizes[letter]} and {size}")
    return math.prod(sizes.values())


def _no_inputs(operation: Operation, arrays: Arrays) -> NoReturn:
    raise ValueError("it takes no inputs")


#: Operators that may compute constants: a new one is one row here.
CONSTANT_OPERATORS: dict[str, ConstantRule] = {
    "Abs": ConstantRule(_broadcast),
    "Add": ConstantRule(_broadcast),
    "Cast": ConstantRule(_cast, moves=True),
    "Ceil": ConstantRule(_stepped),
    "Concat": ConstantRule(_joined),
    "Constant": ConstantRule(_no_inputs),
    "ConstantOfShape": ConstantRule(_constant_of_shape),
    "Cos": ConstantRule(_wave, spread=_WAVES),
    "Div": ConstantRule(_quotient),
    "Einsum": ConstantRule(_outer),
    "Equal": ConstantRule(_compared),
    "Expand": ConstantRule(_expanded, moves=True),
    "Floor": ConstantRule(_stepped),
    "Gather": ConstantRule(_gathered, moves=True),
    "GatherND": ConstantRule(gathered_rows, moves=True),
    "Identity": ConstantRule(_as_many, moves=True),
    "Max": ConstantRule(_extreme),
    "Min": ConstantRule(_extreme),
    "Mod": ConstantRule(_remainder),
    "Mul": ConstantRule(_broadcast),
    "Neg": ConstantRule(_broadcast),
    "NonZero": ConstantRule(nonzero),
    "Range": ConstantRule(_counted),
    "ReduceProd": ConstantRule(_product),
    "ReduceSum": ConstantRule(_integer_sum),
    "Reshape": ConstantRule(_reshaped, moves=True),
    "Round": ConstantRule(_stepped),
    "ScatterElements": ConstantRule(scattered),
    "ScatterND": ConstantRule(scattered_rows),
    "Shape": ConstantRule(_rank),
    "Sign": ConstantRule(_stepped),
    "Sin": ConstantRule(_wave, spread=_WAVES),
    "Slice": ConstantRule(_sliced, moves=True),
    "Split": ConstantRule(_parts, moves=True),
    "Sqrt": ConstantRule(_broadcast),
    "Squeeze": ConstantRule(_as_many, moves=True),
    "Sub": ConstantRule(_broadcast),
    "Tile": ConstantRule(_tiled, moves=True),
    "Transpose": ConstantRule(_as_many, moves=True),
    "Unsqueeze": ConstantRule(_unsqueezed, moves=True),
    "Where": ConstantRule(_chosen, moves=True),
}
