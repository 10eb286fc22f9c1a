"""The graph's one input: its name, the shape of a sample, and what its first axis is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnx import GraphProto, TensorProto, TypeProto, ValueInfoProto

from models.errors import ModelError
from models.layers.kinds import Shape
from models.onnx.safety import COLUMNS, OnnxLimits, instead_of

__all__ = ["InputSignature", "same_order", "signature_for", "signatures"]


#: Types of inputs that are numbers of tokens or classes, mostly.
_INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
_WHOLE = (
    "export the model with a float32 input, or with a uint8 one that goes into a Cast; "
    "numbers of tokens have no epsilon"
)


#: Of files whose inputs have names of TensorFlow's operators.
_LEARNED = (
    " (TensorFlow makes inputs of what Keras' Normalization has learned: export with "
    "KERAS_BACKEND=torch)"
)


def _is_column(value: ValueInfoProto) -> bool:
    """Whether an input is [batch, 1]."""
    sizes = value.type.tensor_type.shape.dim
    return len(sizes) == 2 and sizes[1].dim_value == 1


def _called(element_type: int) -> str:
    known = element_type in TensorProto.DataType.values()
    return f" but {TensorProto.DataType.Name(element_type)}" if known else ""


@dataclass(frozen=True)
class InputSignature:
    """One way to read the input's declaration.

    shape: of one sample. batch: rows that the file takes at once, None for any number.
    has_batch_axis: whether the first axis is the batch; without one the input is one sample.
    """

    name: str
    shape: Shape
    batch: int | None
    has_batch_axis: bool = True

    def of_graph(self, rows: int) -> Shape:
        """The shape of the array that the file takes for so many samples."""
        return (rows, *self.shape) if self.has_batch_axis else self.shape


def signatures(graph: GraphProto) -> list[InputSignature]:
    """The ways to read the graph's one input, the likelier first. Raises ModelError.

    Of rank 1 it is one sample. Of a higher rank its first axis is the batch; where that is fixed to
    more than 1 it may belong to the sample all the same.
    """
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise ModelError(
            f"the graph has {len(inputs)} inputs, not one: {[value.name for value in inputs][:8]}",
            code="invalid_network",
            hint=COLUMNS
            if len(inputs) > 1 and all(_is_column(value) for value in inputs)
            else "certificates are about one input: export a module around the model that gives "
            "the others fixed values, or that takes one input and splits it"
            + _LEARNED
            * any("/" in value.name for value in inputs),
        )
    (value,) = inputs
    tensor: TypeProto.Tensor = value.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        raise ModelError(
            f"the input {value.name!r} is not float32{_called(tensor.elem_type)}",
            code="unsupported_dtype",
            hint=_WHOLE if tensor.elem_type in _INTEGERS else instead_of(tensor.elem_type),
        )
    sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
    if not sizes or not value.name:
        raise ModelError("the input must be [batch, ...] with a known rank", code="shape_mismatch")
    first, rest = sizes[0], tuple(sizes[1:])
    if any(size < 1 for size in (rest or sizes)):
        raise ModelError(
            "only the batch axis of the input may be symbolic",
            code="shape_mismatch",
            hint="export the model with a fixed image size, and the batch as the first axis",
        )
    if 4 * math.prod(sizes[first < 1 :]) > OnnxLimits().activation_bytes:
        raise ModelError(f"an input of shape {tuple(sizes)} is too large", code="model_too_large")
    if first == 0:
        raise ModelError("the batch size is fixed to 0", code="shape_mismatch")
    sample = InputSignature(value.name, tuple(sizes), 1, has_batch_axis=False)
    if not rest:
        return [sample]
    batched = InputSignature(value.name, rest, None if first < 1 else first)
    return [batched, sample] if first > 1 else [batched]


def signature_for(graph: GraphProto, shape: Sequence[int]) -> InputSignature:
    """The reading under which a sample has this shape (``same_order``). Raises ModelError."""
    found = signatures(graph)
    for signature in found:
        if same_order(tuple(shape), signature.shape):
            return signature
    raise ModelError(
        f"inputs of shape {tuple(shape)} do not fit the graph's {found[0].shape}",
        code="shape_mismatch",
    )


def same_order(first: Shape, second: Shape) -> bool:
    """Whether both shapes certainly hold the same numbers in the same row-major order."""

    def bare(shape: Shape) -> Shape:
        return tuple(size for size in shape if size != 1)

    if math.prod(first) != math.prod(second):
        return False
    return bare(first) == bare(second) or min(len(bare(first)), len(bare(second))) <= 1
