"""Rows of a batch and places of each sample on one axis of the file, for a while.

TensorFlow multiplies [batch, places, k] by a matrix as [batch * places, k]. Such a value is held as
it was before (``Activation.merged``: how many axes of the sample the file's first axis took in).
What works on the last axes alone, or number by number, is the same on either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from models.layers.kinds import Permute
from models.onnx.graph import Activation, Constant, Operation, Squares, Translation, Value
from models.onnx.operators.dense import gemm_at_every_place
from models.onnx.operators.layout.regrouped import regrouped, transposed

__all__ = ["MERGED", "with_rows_apart"]

MERGED = (
    *("Abs", "Add", "Cast", "Celu", "Clip", "Div", "Dropout", "Elu", "Erf", "Gelu", "Gemm"),
    *("BatchNormalization", "HardSigmoid", "LayerNormalization", "RMSNormalization", "Softmax"),
    *("Pow", "Transpose"),
    *("HardSwish", "Identity", "LeakyRelu", "MatMul", "Max", "Min", "Mish", "Mul", "Neg", "Relu"),
    *("Reshape", "Selu", "Sigmoid", "Softplus", "Softsign", "Sub", "Swish", "Tanh"),
    *("Exp", "Log", "Reciprocal", "Sqrt", "Atan", "Cos", "Sin"),
    *("Ceil", "Floor", "Round", "Sign"),
)


def _over_axis(operation: Operation, rank: int, count: int) -> Operation:
    """Softmax, or a normalisation over the last axes, with its axis as the value is held."""
    axis = operation.attributes["axis"]
    axis += rank if axis < 0 else 0
    last = operation.op_type == "Softmax" and operation.opset < 13
    if not 0 < axis < rank or (last and axis != rank - 1):
        operation.refuse_batch("it is taken over the rows of a batch")
    return replace(operation, attributes={**operation.attributes, "axis": axis + count})


def _normalised(
    operation: Operation,
    translation: Translation,
    translate: Callable[[Operation, Translation], Value | list[Activation]],
    x: Activation,
) -> Activation:
    """BatchNormalization over the file's second axis, which stands behind the merged ones."""
    count, rank = x.merged, len(x.shape)
    if rank == count:
        operation.refuse("there is no axis of channels", code="shape_mismatch")
    axes = (count, *range(count), *range(count + 1, rank))
    plain = operation.activation()
    front = translation.emit(operation, Permute(axes=axes), plain)
    rest = operation.inputs[1:]
    found = translate(replace(operation, inputs=(front, *rest)), translation)
    if not isinstance(found, Activation):
        operation.refuse("only its first output is supported")
    back = tuple(axes.index(axis) for axis in range(rank))
    found = translation.emit(operation, Permute(axes=back), found)
    return replace(found, merged=count, turned=x.turned)


def with_rows_apart(
    operation: Operation,
    translation: Translation,
    translate: Callable[[Operation, Translation], Value | list[Activation]],
) -> list[Value]:
    """The outputs of an operator of ``MERGED`` some input of which has merged rows."""
    activations = [value for value in operation.inputs if isinstance(value, Activation)]
    x = activations[0]
    count, turned = x.merged, x.turned
    alike = {
        (v.merged, v.turned, v.shape[:count], v.rank, v.batched, v.batch_axis) for v in activations
    }
    if len(alike) > 1:
        operation.refuse_batch("its inputs have other rows on their first axes")
    inputs = [
        replace(value, merged=0, turned=False) if isinstance(value, Activation) else value
        for value in operation.inputs
    ]
    if operation.op_type == "Transpose":
        return [transposed(operation, translation, x, 0)]
    rank = x.rank - count
    if operation.op_type == "Reshape":
        return [regrouped(operation, translation, x)]
    if operation.op_type in ("LayerNormalization", "RMSNormalization", "Softmax"):
        operation = _over_axis(operation, rank, count)
    elif operation.op_type == "BatchNormalization":
        return [_normalised(replace(operation, inputs=tuple(inputs)), translation, translate, x)]
    elif operation.op_type == "Gemm":
        translate = gemm_at_every_place
    elif operation.op_type == "MatMul":
        matrix = None if len(activations) == 2 else operation.constant(1)
        # Of two such values the same rows are multiplied, as matrices.
        if (matrix is None and rank < 3) or (matrix is not None and matrix.ndim != 2):
            operation.refuse_batch("only one matrix for all rows is supported")
    else:
        for index, value in enumerate(operation.inputs):
            if isinstance(value, Constant):
                array = operation.constant(index)
                if array is not None and array.ndim >= rank:
                    # Of more axes even one number would move the rows to another axis.
                    if array.ndim > rank or array.shape[0] != 1:
                        operation.refuse_batch(f"a constant of shape {array.shape}")
                    inputs[index] = Constant.of(array[0])
    results = translate(replace(operation, inputs=tuple(inputs)), translation)
    found: list[Value] = []
    for value in results if isinstance(results, list) else [results]:
        plain = value.plain if isinstance(value, Squares) else value
        if not isinstance(plain, Activation):
            operation.refuse_batch("squares of merged rows")
        if count:
            plain = replace(plain, merged=count, turned=turned)
        found.append(plain)
    return found
