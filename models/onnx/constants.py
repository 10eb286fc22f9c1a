"""Constants that a graph computes. ONNX Runtime computes them here too, not code of our own.

Each node on constants alone runs in ONNX Runtime by itself, with the inputs that it has in the
graph, so that what is certified holds the very numbers that the deployed file computes. Which
operators are allowed, and how large their result may be, says ``models.onnx.constant_rules``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from models.errors import ModelError
from models.onnx.constant_rules import CONSTANT_OPERATORS, DTYPES, Array, Arrays
from models.onnx.constant_shapes import inferred_shapes
from models.onnx.graph import Constant, Operation, Translation
from models.onnx.session import failure, open_session

__all__ = ["evaluate", "read_tensor", "shape_of"]

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
    """Whether the batch size is only moved to another place of the result."""
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
    """Shape of an activation: the batch size, where it has a batch axis, and the sample's shape."""
    shape = operation.activation().shape
    start, end = operation.attributes.get("start", 0), operation.attributes.get("end")
    if not operation.batched:
        return Constant.of(np.array(shape, dtype=np.int64)[start:end])
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
