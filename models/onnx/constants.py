"""Constants that a graph computes. ONNX Runtime computes them here too, not code of our own.

Each node on constants alone runs in ONNX Runtime by itself, with the inputs that it has in the
graph, so that what is certified holds the very numbers that the deployed file computes. Which
operators are allowed, and how large their result may be, says ``models.onnx.constant_rules``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from models.errors import ModelError
from models.layers.base import Shape
from models.onnx.constant_rules import CONSTANT_OPERATORS, DTYPES, Array, Arrays
from models.onnx.constant_shapes import inferred_shapes
from models.onnx.graph import Activation, Constant, Operation, Squares, Translation
from models.onnx.session import failure, open_session

__all__ = [
    "check_repeated",
    "evaluate",
    "read_tensor",
    "refuse_rows",
    "require_one_shape",
    "shape_of",
    "zero_product",
]

_CODES = {dtype: code for code, dtype in DTYPES.items()}
#: Sessions kept for further nodes of the same form.
_KEPT_SESSIONS = 64


def read_tensor(tensor: TensorProto) -> Array:
    """The values of a tensor that ``parse_onnx`` has checked."""
    return numpy_helper.to_array(tensor)


def evaluate(operation: Operation, translation: Translation) -> list[Constant]:
    """The outputs of an operator on constants, under both batch sizes. Raises ModelError."""
    if operation.op_type == "Constant":
        return [Constant.of(_literal(operation))]
    constants = [v for v in operation.inputs if v is None or isinstance(v, Constant)]
    if operation.op_type == "Identity" and constants[0] is not None:
        return [constants[0]]
    repeated = _repeated(operation, translation, constants)
    if repeated is not None:
        return [repeated]
    values = _run(operation, translation, [None if c is None else c.value for c in constants])
    spread = _spread(operation, constants)
    if spread:
        if any(value.dtype != np.float32 for value in values):
            operation.refuse("it rounds numbers that every machine computes in its own way")
        return [Constant(value, value, spread=spread) for value in values]
    if not any(c is not None and c.depends_on_batch for c in constants):
        return [Constant.of(value) for value in values]
    known = [c for c in constants if c is not None]
    if not any(c.computed for c in known) and _the_same_for_any_batch(operation.op_type, known):
        return [Constant.of(value) for value in values]
    others = _run(operation, translation, [None if c is None else c.other for c in constants])
    followed = _FOLLOWED.get(operation.op_type, _never)(known)
    return [
        Constant(value, other, not (_moves(operation, constants, value.dtype) or followed))
        for value, other in zip(values, others, strict=True)
    ]


def _spread(operation: Operation, constants: Sequence[Constant | None]) -> float:
    """By how much the numbers of a result may differ between machines; 0 nearly everywhere."""
    rule, given = CONSTANT_OPERATORS[operation.op_type], [c for c in constants if c is not None]
    spread = max((c.spread for c in given), default=0.0)
    if (spread and not rule.moves) or any(c.spread for c in given[1:]):
        operation.refuse("it computes with numbers that every machine computes in its own way")
    spread = max(spread, rule.spread)
    if spread and any(c.depends_on_batch or c.repeated for c in given):
        operation.refuse_batch("such numbers depend on the batch size")
    return spread


def _moves(
    operation: Operation, constants: Sequence[Constant | None], dtype: np.dtype[Any]
) -> bool:
    """Whether the batch size is only moved to another place of the result."""
    if operation.op_type == "Concat":
        steered: Sequence[Constant | None] = ()
    elif operation.op_type == "Where":
        steered = constants[:1]
    elif CONSTANT_OPERATORS[operation.op_type].moves and dtype.kind in "fi":
        steered = constants[1:]
    else:
        return False
    known = [c for c in constants if c is not None]
    return not any(c.computed for c in known) and not any(
        c is not None and c.depends_on_batch for c in steered
    )


def _never(_: Sequence[Constant]) -> bool:
    return False


def _multiplies(factors: Sequence[Constant]) -> bool:
    """Whether batch sizes that were only moved are multiplied by positive whole numbers."""
    fixed = [c for c in factors if not c.depends_on_batch]
    return (
        len(fixed) == 1
        and not any(c.computed or c.value.dtype != np.int64 for c in factors)
        and bool((fixed[0].value > 0).all())
    )


def _multiplied(given: Sequence[Constant]) -> bool:
    """Whether a product is of one batch size and positive whole numbers."""
    sizes = given[0]
    if sizes.computed or sizes.value.ndim != 1 or sizes.value.dtype != np.int64:
        return False
    fixed = sizes.value == sizes.other
    return int((~fixed).sum()) == 1 and bool((sizes.value[fixed] > 0).all())


def _alike(given: Sequence[Constant]) -> bool:
    """Whether all are one and the same, at any batch size."""
    first, *others = given
    return not any(c.computed for c in given) and all(
        np.array_equal(c.value, first.value) and np.array_equal(c.other, first.other)
        for c in others
    )


#: Operators that compute with batch sizes and of which it is known what comes out at any.
_FOLLOWED: dict[str, Callable[[Sequence[Constant]], bool]] = {
    "Max": _alike,
    "Min": _alike,
    "Mul": _multiplies,
    "ReduceProd": _multiplied,
}


#: Operators that keep rows apart which are alike: on constants, and beside activations.
_ROW_BY_ROW = ("Add", "Cast", "Div", "Identity", "Max", "Min", "Mul", "Neg", "Sqrt", "Sub")
_BESIDE = ("Add", "Concat", "Div", "Max", "Min", "Mul", "Sub", "Sum")


def _repeated(
    operation: Operation, translation: Translation, constants: Sequence[Constant | None]
) -> Constant | None:
    """The result of an operator that gives each row of a batch the same numbers, as one row.

    Expand and ConstantOfShape to [batch, ...], and what is computed of that row by row. None:
    another operator, or numbers that every machine computes in its own way. Rows that something
    mixes are refused.
    """
    if any(c is not None and c.spread for c in constants):
        return None
    arrays = [None if c is None else c.value for c in constants]
    if any(c is not None and c.repeated for c in constants):
        if operation.op_type not in _ROW_BY_ROW:
            refuse_rows(operation)
        (row,) = _run(operation, translation, arrays)
        ranks = {c.value.ndim for c in constants if c is not None and c.repeated}
        if (
            ranks != {row.ndim}
            or row.shape[0] != 1
            or any(c and c.depends_on_batch for c in constants)
        ):
            refuse_rows(operation)
        return Constant(row, row, repeated=True)
    if operation.op_type not in ("ConstantOfShape", "Expand"):
        return None
    target = constants[-1]
    if target is None or target.computed or target.value.ndim != 1 or not target.value.size:
        return None
    (first, *rest), (second, *others) = target.value.tolist(), target.other.tolist()
    if first == second or (first, second) != translation.batch or rest != others:
        return None
    data = constants[0]
    if operation.op_type == "Expand" and (
        data is None
        or data.depends_on_batch
        or data.value.ndim > len(rest) + 1
        or (data.value.ndim == len(rest) + 1 and data.value.shape[:1] != (1,))
    ):
        return None
    arrays[-1] = np.array([1, *rest], dtype=target.value.dtype)
    (row,) = _run(operation, translation, arrays)
    return Constant(row, row, repeated=True)


def zero_product(operation: Operation) -> Constant | None:
    """The product of zeros with a matrix of finite numbers, which is zeros in any order of sums.

    The state that a recurrent layer begins with. None: another operator, or other numbers.
    """
    if operation.op_type != "MatMul":
        return None
    zeros, matrix = operation.inputs
    if not isinstance(zeros, Constant) or not isinstance(matrix, Constant):
        return None
    first, second = zeros.value, matrix.value
    fits = first.ndim > 1 and second.ndim == 2 and first.shape[-1:] == second.shape[:1]
    floats = first.dtype == second.dtype == np.float32
    if not (fits and floats) or zeros.depends_on_batch or matrix.depends_on_batch:
        return None
    if zeros.spread or matrix.spread:
        return None
    if first.any() or not np.isfinite(second).all() or matrix.repeated:
        return None
    result = np.zeros((*first.shape[:-1], second.shape[1]), dtype=np.float32)
    return Constant(result, result, repeated=zeros.repeated)


def refuse_rows(operation: Operation) -> NoReturn:
    """Raise ModelError (batch_dependent): rows of a constant that the batch has would be mixed."""
    operation.refuse_batch("a constant of it has as many rows as the batch size")


def check_repeated(operation: Operation) -> None:
    """Raise ModelError (batch_dependent) where a constant with a row for each of the batch meets an
    activation otherwise than row by row."""
    rows = [v for v in operation.inputs if isinstance(v, Constant) and v.repeated]
    beside = [v for v in operation.inputs if isinstance(v, Activation | Squares)]
    alike = all(len(v.shape) + 1 == row.value.ndim for row in rows for v in beside)
    leading = all(
        v.batched and not v.batch_axis and not v.merged for v in beside if isinstance(v, Activation)
    )
    if rows and not (operation.op_type in _BESIDE and alike and leading):
        refuse_rows(operation)


#: Operators that broadcast from opset 8 on.
_SAME_SHAPES = ("Max", "Min", "Sum")


def require_one_shape(operation: Operation, translation: Translation) -> None:
    """Raise ModelError (invalid_onnx) unless the inputs of an operator that does not
    broadcast before opset 8 have one shape in the file."""
    if operation.opset >= 8 or operation.op_type not in _SAME_SHAPES:
        return
    shapes: set[Shape | None] = set()
    for value in operation.inputs:
        if isinstance(value, Activation):
            shapes.add((translation.batch[0], *value.shape) if value.batched else value.shape)
        else:
            shapes.add(value.value.shape if isinstance(value, Constant) else None)
    if len(shapes) > 1:
        operation.refuse(
            "its inputs must have one shape before opset 8",
            code="invalid_onnx",
            hint="export with a newer opset",
        )


def _the_same_for_any_batch(op_type: str, inputs: Sequence[Constant]) -> bool:
    """Whether an operator's result does not depend on the batch size, though its inputs mention it.

    A Shape of numbers that are as many for any batch; an Equal in which each batch size meets a
    number below 1, which no batch size is. So do exporters find the axes that an Expand leaves as
    they are, written as -1.
    """
    if any(c.value.shape != c.other.shape for c in inputs):
        return False
    if op_type != "Equal":
        return op_type == "Shape"
    for side, fixed in (inputs, inputs[::-1]):
        low = np.logical_and(fixed.value < 1, fixed.value == fixed.other)
        if not np.logical_or(side.value == side.other, low).all():
            return False
    return True


def shape_of(operation: Operation, batch: tuple[int, int]) -> Constant:
    """Shape of an activation: the batch size, where it has a batch axis, and the sample's shape."""
    x = operation.activation()
    shape, at = x.shape[x.merged :], x.batch_axis
    places = math.prod(x.shape[: x.merged])
    start, end = operation.attributes.get("start", 0), operation.attributes.get("end")
    if not operation.batched:
        return Constant.of(np.array(shape, dtype=np.int64)[start:end])
    first, second = (
        np.array([*shape[:at], places * size, *shape[at:]], dtype=np.int64)[start:end]
        for size in batch
    )
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
    described = _model_of(operation, arrays)
    try:
        expected = inferred_shapes(described, arrays)
    except ValueError as error:
        operation.refuse(
            f"the ONNX standard forbids it on its inputs ({error})",
            code="invalid_onnx",
            hint="onnx.checker.check_model(path, full_check=True) names what is wrong in a file",
        )
    model = described.SerializeToString()
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
    for result, sizes in zip(results, expected, strict=True):
        if not isinstance(result, np.ndarray) or result.dtype not in _CODES:
            operation.refuse("its element type is not supported", code="unsupported_dtype")
        if sizes is not None and result.shape != sizes:
            operation.refuse(
                f"ONNX Runtime computes shape {result.shape}, the standard says {sizes}",
                code="invalid_onnx",
            )
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
