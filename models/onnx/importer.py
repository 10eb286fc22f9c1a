"""ONNX files as networks: an operator is translated exactly, or refused by its name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import GraphProto, TensorProto, TypeProto

from models.errors import ModelError
from models.layers.kinds import Layer, Reshape, Shape
from models.network import INPUT, Network
from models.onnx.constant_rules import CONSTANT_OPERATORS
from models.onnx.constants import evaluate, read_tensor, shape_of
from models.onnx.declarations import declared_values, refuse_contradictions
from models.onnx.graph import (
    FIXED_BATCH,
    SYMBOLIC_BATCH,
    Activation,
    Constant,
    Operation,
    Squares,
    Translation,
    Value,
)
from models.onnx.operators.euclidean import SQUARE_OPERATORS
from models.onnx.operators.registry import OPERATORS
from models.onnx.output import FINAL_OPERATORS, cut_final_operator, refuse_other_axes
from models.onnx.safety import OnnxLimits, opset_of, parse_onnx

__all__ = [
    "SUPPORTED_OPERATORS",
    "ImportedOnnx",
    "import_onnx",
    "import_onnx_bytes",
    "input_signature",
    "read_onnx",
    "read_onnx_bytes",
    "refuse_unknown_operators",
]

#: Who translates what, beside the very last operator.
_TABLES = (OPERATORS, SQUARE_OPERATORS, CONSTANT_OPERATORS)
#: Names of the operators that an uploaded graph may hold.
SUPPORTED_OPERATORS = tuple(sorted({*FINAL_OPERATORS}.union(*_TABLES)))
#: How many kinds of unknown operators an error names.
NAMED_OPERATORS = 8


@dataclass(frozen=True)
class ImportedOnnx:
    """A file's network, and the batch sizes at which the file runs it: 1 only, or any (None).

    Row by row at every such batch size: nothing in the file lets the rows of a batch depend on
    each other.
    """

    network: Network
    batch: int | None


def import_onnx(path: Path, limits: OnnxLimits | None = None) -> Network:
    """The network of an ONNX file (opset 7 to 26), operator by operator. Raises ModelError."""
    return read_onnx(path, limits).network


def import_onnx_bytes(data: bytes, limits: OnnxLimits | None = None) -> Network:
    """The network of an ONNX file's bytes; no other file is ever opened. Raises ModelError."""
    return read_onnx_bytes(data, limits).network


def read_onnx(path: Path, limits: OnnxLimits | None = None) -> ImportedOnnx:
    """An ONNX file (opset 7 to 26) as a network, operator by operator. Raises ModelError."""
    limits = limits or OnnxLimits()
    size = path.stat().st_size
    if size > limits.file_bytes:
        raise ModelError(
            f"the file has {size} bytes, more than {limits.file_bytes}", code="model_too_large"
        )
    return read_onnx_bytes(path.read_bytes(), limits)


def read_onnx_bytes(data: bytes, limits: OnnxLimits | None = None) -> ImportedOnnx:
    """The same from the file's bytes; no other file is ever opened. Raises ModelError.

    A Softmax or LogSoftmax at the very end is left out: ``Network.dropped_output`` names it.
    """
    limits = limits or OnnxLimits()
    model = parse_onnx(data, limits)
    graph, opset = model.graph, opset_of(model)
    declared = declared_values(graph)
    final = cut_final_operator(graph)
    refuse_unknown_operators(graph)
    batch, shape, name = input_signature(graph)
    output = _single_output(graph)
    uses = Counter(source for node in graph.node for source in node.input)
    uses[output] += 1
    translation = Translation(SYMBOLIC_BATCH if batch is None else FIXED_BATCH, limits, uses)
    values: dict[str, Value] = {name: Activation(INPUT, shape)}
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in values:
            raise ModelError(f"the name {tensor.name!r} is defined twice", code="invalid_onnx")
        values[tensor.name] = Constant.of(read_tensor(tensor))
    for index, node in enumerate(graph.node):
        operation = Operation.read(node, index, opset, values)
        results = _translate(operation, translation)
        named = [name for name in operation.outputs if name]
        if (
            not operation.outputs[0]
            or len(set(named)) < len(named)
            or any(name in values for name in named)
        ):
            operation.refuse("an output has no name or one that is taken", code="invalid_onnx")
        values.update(zip(operation.outputs, results, strict=False))
        values.pop("", None)
    logits = values.get(output)
    if not isinstance(logits, Activation) or logits.name == INPUT:
        raise ModelError(
            f"the output {output!r} is not computed from the input by any layer",
            code="invalid_network",
        )
    dropped = None
    if final is not None:
        operation = Operation.read(final.node, len(graph.node), opset, values)
        if any(taken in values for taken in final.names):
            operation.refuse("its output has a name that is taken", code="invalid_onnx")
        refuse_other_axes(operation, logits.shape)
        dropped = operation.op_type
        values.update(dict.fromkeys(final.names, logits))
    refuse_contradictions(declared, values)
    rows = _flatten_output(translation.rows, logits)
    network = Network(shape, _leading_to(rows), dropped_output=dropped).eval()
    if network.classes < 2:
        raise ModelError(
            "the network has one output: a classifier needs at least two", code="invalid_network"
        )
    return ImportedOnnx(network, 1 if translation.one_row_only else batch)


def input_signature(graph: GraphProto) -> tuple[int | None, Shape, str]:
    """Batch size (None: symbolic), sample shape and name of the graph's one input."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise ModelError(
            f"the graph has {len(inputs)} inputs, not one: {[value.name for value in inputs][:8]}",
            code="invalid_network",
        )
    (value,) = inputs
    tensor: TypeProto.Tensor = value.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        raise ModelError(
            f"the input {value.name!r} is not float32",
            code="unsupported_dtype",
            hint="export the model with a float32 input",
        )
    sizes = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
    if len(sizes) < 2 or not value.name:
        raise ModelError("the input must be [batch, ...] with a known rank", code="shape_mismatch")
    batch = None if sizes[0] == -1 else sizes[0]
    if batch not in (None, 1):
        raise ModelError(
            f"the batch size is fixed to {batch}",
            code="shape_mismatch",
            hint="export the model with batch size 1 or a symbolic (dynamic) batch axis",
        )
    shape = tuple(size if size is not None else -1 for size in sizes[1:])
    if any(size < 1 for size in shape):
        raise ModelError(
            "only the batch axis of the input may be symbolic",
            code="shape_mismatch",
            hint="export the model with a fixed image size",
        )
    if 4 * math.prod(shape) > OnnxLimits().activation_bytes:
        raise ModelError(f"an input of shape {shape} is too large", code="model_too_large")
    return batch, shape, value.name


def _single_output(graph: GraphProto) -> str:
    if len(graph.output) != 1:
        raise ModelError(
            f"the graph has {len(graph.output)} outputs, not one: "
            f"{[value.name for value in graph.output][:8]}",
            code="invalid_network",
        )
    return graph.output[0].name


def refuse_unknown_operators(graph: GraphProto) -> None:
    """Raise ModelError (unsupported_operator) that names every operator that is not supported."""
    unknown: dict[str, list[str]] = {}
    for index, node in enumerate(graph.node):
        if not any(node.op_type in table for table in _TABLES):
            where = f"node {node.name!r}" if node.name else f"node #{index}"
            unknown.setdefault(node.op_type, []).append(where)
    if not unknown:
        return
    named = [_named(kind, places) for kind, places in [*unknown.items()][:NAMED_OPERATORS]]
    if len(unknown) > len(named):
        named.append(f"{len(unknown) - len(named)} more")
    many = len(named) > 1
    hint = "supported operators: " + ", ".join(SUPPORTED_OPERATORS)
    if all(kind in FINAL_OPERATORS for kind in unknown):
        hint = "export the logits, before any softmax"
    raise ModelError(
        f"the operator{'s' * many} {', '.join(named)} {'are' if many else 'is'} not supported",
        code="unsupported_operator",
        hint=hint,
    )


def _named(kind: str, places: list[str]) -> str:
    where = places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more"
    if kind in FINAL_OPERATORS:
        where += "; it is supported only as the very last one, when nothing else reads its output"
    return f"{kind!r} ({where})"


#: Operators that broadcast from opset 8 on.
_SAME_SHAPES = ("Max", "Min", "Sum")


def _translate(operation: Operation, translation: Translation) -> Sequence[Value]:
    """The operator's outputs, in order."""
    if any(isinstance(value, Squares) for value in operation.inputs):
        if operation.op_type not in SQUARE_OPERATORS:
            operation.refuse("squares are supported on the way to a Euclidean norm only")
        return [SQUARE_OPERATORS[operation.op_type](operation, translation)]
    if not any(isinstance(value, Activation) for value in operation.inputs):
        if operation.op_type in CONSTANT_OPERATORS:
            return evaluate(operation, translation)
        operation.refuse(
            "this operator is not supported on constants alone",
            hint="compute the weights before the export: a file that computes them by sums has "
            "others on every machine",
        )
    if operation.op_type == "Shape":
        return [shape_of(operation, translation.batch)]
    translator = OPERATORS.get(operation.op_type)
    if translator is None:
        operation.refuse(
            "this operator is supported on constants or sums of squares only",
            hint="supported operators: " + ", ".join(sorted(OPERATORS)),
        )
    if operation.opset < 8 and operation.op_type in _SAME_SHAPES:
        shapes = {v.shape if isinstance(v, Activation) else None for v in operation.inputs}
        if len(shapes) > 1:
            operation.refuse(
                "its inputs must have one shape before opset 8",
                code="invalid_onnx",
                hint="export with a newer opset",
            )
    result = translator(operation, translation)
    return result if isinstance(result, list) else [result]


Rows = list[tuple[str, Layer, tuple[str, ...]]]


def _flatten_output(rows: Rows, logits: Activation) -> Rows:
    """Rows that end in logits [classes]: an output [classes, 1, ...] gets an explicit reshape."""
    if len(logits.shape) == 1:
        return [*_up_to(rows, logits.name)]
    classes = max(logits.shape, default=1)
    if math.prod(logits.shape) != classes:
        raise ModelError(
            f"the output must be [batch, classes], not [batch, "
            f"{', '.join(map(str, logits.shape))}]",
            code="shape_mismatch",
        )
    return [*_up_to(rows, logits.name), ("logits", Reshape(shape=(classes,)), (logits.name,))]


def _up_to(rows: Rows, name: str) -> Rows:
    index = next(i for i, row in enumerate(rows) if row[0] == name)
    return rows[: index + 1]


def _leading_to(rows: Rows) -> Rows:
    """The rows that the last one depends on (some rows were used only for their shape)."""
    needed = {rows[-1][0]}
    kept: Rows = []
    for row in reversed(rows):
        if row[0] in needed:
            kept.append(row)
            needed.update(row[2])
    return kept[::-1]
