"""What the importer works with: ONNX values, nodes, and the network's rows as they are laid down.

An ONNX value is either an ``Activation`` (depends on the input; a node of our graph) or a
``Constant``. The batch axis is axis 0 of every activation and stays there. Shape arithmetic in the
file may mention a symbolic batch size: such constants are computed under two batch sizes at once,
and what differs between the two depends on the batch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, helper
from torch import Tensor

from models.errors import ModelError
from models.layers.kinds import AvgPool2d, Conv2d, Layer, Linear, MaxPool2d, Shape, ShapeError
from models.onnx.safety import OnnxLimits, node_label

__all__ = ["Activation", "Constant", "Operation", "Translation", "Value"]

#: Batch sizes that stand for a symbolic one: primes that no layer size is likely to equal both of.
SYMBOLIC_BATCH = (99_991, 99_989)
FIXED_BATCH = (1, 1)
#: Attributes that are 0 or 1: runtimes do not agree on what another number means.
_SWITCHES = (
    "allowzero",
    "ceil_mode",
    "count_include_pad",
    "keepdims",
    "noop_with_empty_axes",
    "training_mode",
    "transA",
    "transB",
)


@dataclass(frozen=True)
class Activation:
    """An ONNX value that depends on the input: our node's name and its shape without the batch."""

    name: str
    shape: Shape

    @property
    def rank(self) -> int:
        """Number of axes as ONNX counts them, batch included."""
        return len(self.shape) + 1


@dataclass(frozen=True)
class Constant:
    """An ONNX value known beforehand, under either of two batch sizes.

    computed: the batch size went into it otherwise than by being moved, so that at a third batch
    size it may be anything, even where these two agree (the least of batch size and 5).
    """

    value: NDArray[Any]
    other: NDArray[Any]
    computed: bool = False

    @classmethod
    def of(cls, value: NDArray[Any]) -> Constant:
        """A constant that knows nothing of the batch."""
        return cls(value, value)

    @property
    def depends_on_batch(self) -> bool:
        """Whether it may differ between batch sizes."""
        if self.computed:
            return True
        if self.value is self.other:
            return False
        same = self.value.shape == self.other.shape
        return not (same and np.array_equal(self.value, self.other, equal_nan=True))


Value = Activation | Constant


@dataclass(frozen=True)
class Operation:
    """One ONNX node: operator, attributes (defaults filled in from its schema), inputs by value."""

    op_type: str
    label: str
    opset: int
    attributes: dict[str, Any]
    #: None stands for an optional input that is left out.
    inputs: tuple[Value | None, ...]
    input_names: tuple[str, ...]
    outputs: tuple[str, ...]
    node: NodeProto

    @classmethod
    def read(cls, node: NodeProto, index: int, opset: int, known: dict[str, Value]) -> Operation:
        """The node with its inputs looked up; undefined names and wrong attributes are refused."""
        label = node_label(node, index)
        missing = [name for name in node.input if name and name not in known]
        if missing:
            raise ModelError(
                f"{label} uses {missing[0]!r}, which nothing before it defines "
                "(the graph has a cycle, is not sorted, or a name is wrong)",
                code="invalid_onnx",
            )
        return cls(
            node.op_type,
            label,
            opset,
            _attributes(node, label, opset),
            tuple(known[name] if name else None for name in node.input),
            tuple(node.input),
            tuple(node.output),
            node,
        )

    def refuse(
        self, reason: str, *, code: str = "unsupported_operator", hint: str = ""
    ) -> NoReturn:
        """Raise ModelError, naming this node."""
        raise ModelError(f"{self.label}: {reason}", code=code, hint=hint)

    def input(self, index: int) -> Value | None:
        """The input at a position, None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def activation(self, index: int = 0) -> Activation:
        """The input at a position, which must depend on the network's input."""
        value = self.input(index)
        if not isinstance(value, Activation):
            self.refuse(f"input {index} must be computed from the network's input")
        return value

    def constant(self, index: int) -> NDArray[Any] | None:
        """The constant at a position (None where it is left out), free of the batch size."""
        value = self.input(index)
        if value is None:
            return None
        if isinstance(value, Activation):
            self.refuse(f"input {index} must be a constant")
        if value.depends_on_batch:
            self.refuse_batch(f"input {index} depends on the batch size")
        return value.value

    def integers(self, index: int) -> list[int] | None:
        """The integer vector at a position (axes, pads), None where it is left out."""
        array = self.constant(index)
        if array is None:
            return None
        if array.dtype.kind != "i" or array.ndim > 1:
            self.refuse(f"input {index} must be a vector of integers", code="invalid_onnx")
        return [int(entry) for entry in array.reshape(-1)]

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from the front; the batch axis (0) included."""
        if not -rank <= axis < rank:
            self.refuse(f"axis {axis} does not exist in rank {rank}", code="shape_mismatch")
        return axis % rank

    def axes(self, axes: Iterable[int], rank: int) -> tuple[int, ...]:
        """Axes counted from the front, none of them twice."""
        found = tuple(self.axis(int(axis), rank) for axis in axes)
        if len(set(found)) < len(found):
            self.refuse(f"axes {found} name one twice", code="invalid_onnx")
        return found

    def refuse_batch(self, reason: str, *, hint: str = "") -> NoReturn:
        """Raise ModelError (batch_dependent): a row's answer could depend on the rows beside it."""
        self.refuse(
            f"{reason}: the rows of a batch would depend on each other",
            code="batch_dependent",
            hint=hint or "no operator may touch axis 0, the batch, other than to keep it",
        )


@dataclass
class Translation:
    """The network's rows as they grow, under the limits on weights and activations."""

    batch: tuple[int, int]
    limits: OnnxLimits
    #: How often each ONNX value is used (graph outputs count).
    uses: Counter[str]
    rows: list[tuple[str, Layer, tuple[str, ...]]] = field(default_factory=list)
    #: ONNX values that are a dense layer without bias, by the row of that layer.
    open_matmuls: dict[str, int] = field(default_factory=dict)
    #: The layer that computes each activation, and its inputs, by our name of the activation.
    origins: dict[str, tuple[Layer, tuple[Activation, ...]]] = field(default_factory=dict)
    parameters: int = 0
    activation_bytes: int = 0
    folded_bytes: int = 0
    work: int = 0
    #: Whether the file runs at a batch of one only, whatever batch it declares.
    one_row_only: bool = False
    #: Sessions of ONNX Runtime that compute constants, by the bytes of what they run.
    sessions: dict[bytes, Any] = field(default_factory=dict)

    def weight(self, operation: Operation, array: NDArray[Any]) -> Tensor:
        """A float32 tensor for a layer's parameter, finite and counted against the limit."""
        if array.dtype != np.float32:
            operation.refuse(
                f"a parameter has element type {array.dtype}", code="unsupported_dtype"
            )
        self.parameters += array.size
        if self.parameters > self.limits.parameters:
            operation.refuse(
                f"the network has more than {self.limits.parameters} parameters",
                code="model_too_large",
            )
        if not np.isfinite(array).all():
            operation.refuse("a parameter is NaN or infinite", code="non_finite_weights")
        # A flipped constant has negative strides, which torch does not take.
        return torch.tensor(np.asarray(array, order="C"))

    def charge(self, operation: Operation, shape: Shape) -> None:
        """Count an intermediate result of this shape (per sample) against the limits."""
        size = 4 * math.prod(shape)
        self.activation_bytes += size
        if (
            size > self.limits.activation_bytes
            or self.activation_bytes > self.limits.total_activation_bytes
        ):
            operation.refuse(
                f"an intermediate result of shape {shape} is too large", code="model_too_large"
            )

    def emit(self, operation: Operation, layer: Layer, *inputs: Activation) -> Activation:
        """Lay down one row of the network."""
        try:
            shape = layer.output_shape(*(value.shape for value in inputs))
        except ShapeError as error:
            operation.refuse(str(error), code="shape_mismatch")
        self.charge(operation, shape)
        self.work += _work(layer, shape)
        if self.work > self.limits.work:
            operation.refuse("a forward pass takes too much work", code="model_too_large")
        if len(self.rows) >= self.limits.layers:
            operation.refuse("the network has too many layers", code="model_too_large")
        name = f"{layer.kind}_{len(self.rows)}"
        self.origins[name] = (layer, inputs)
        self.rows.append((name, layer, tuple(value.name for value in inputs)))
        return Activation(name, tuple(shape))

    def give_bias(self, row: int, bias: Tensor) -> None:
        """Fuse an addition into the dense layer at ``row``, which has no bias yet."""
        name, layer, inputs = self.rows[row]
        assert isinstance(layer, Linear)
        assert layer.bias is None
        self.rows[row] = (name, Linear(layer.weight, bias), inputs)


def _work(layer: Layer, shape: Shape) -> int:
    """Multiplications that a layer with this output shape takes per sample."""
    if isinstance(layer, Conv2d):
        return layer.weight.numel() * math.prod(shape[1:])
    if isinstance(layer, Linear):
        return layer.weight.numel()
    if isinstance(layer, AvgPool2d | MaxPool2d):
        return math.prod(layer.kernel) * math.prod(shape)
    return math.prod(shape)


def _attributes(node: NodeProto, label: str, opset: int) -> dict[str, Any]:
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError as error:
        raise ModelError(
            f"{label}: opset {opset} has no such operator", code="unsupported_operator"
        ) from error
    least, most = schema.min_input, schema.max_input
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    if schema.inputs and schema.inputs[-1].option == variadic:
        least = max(least, len(node.input))
    if not least <= len(node.input) <= most or any(not name for name in node.input[:least]):
        raise ModelError(
            f"{label} has {len(node.input)} inputs, or one without a name", code="invalid_onnx"
        )
    if not schema.min_output <= len(node.output) <= schema.max_output:
        raise ModelError(f"{label} has {len(node.output)} outputs", code="invalid_onnx")
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    for place, name in enumerate(node.output):
        formal = schema.outputs[min(place, len(schema.outputs) - 1)]
        if not name and (place == 0 or formal.option != optional):
            # ONNX Runtime takes a Split with such an output, then dies of it.
            raise ModelError(
                f"{label}: output {place} has no name",
                code="invalid_onnx",
                hint="give every output a name, also one that nothing uses",
            )
    values: dict[str, Any] = {}
    for name, declared in schema.attributes.items():
        if declared.default_value.type != AttributeProto.UNDEFINED:
            values[name] = helper.get_attribute_value(declared.default_value)
    seen: set[str] = set()
    for attribute in node.attribute:
        declared_type = schema.attributes.get(attribute.name)
        if declared_type is None or attribute.name in seen:
            raise ModelError(
                f"{label}: attribute {attribute.name!r} is unknown in opset {opset} or given twice",
                code="invalid_onnx",
            )
        if int(declared_type.type.value) != attribute.type:
            raise ModelError(
                f"{label}: attribute {attribute.name!r} has the wrong type", code="invalid_onnx"
            )
        seen.add(attribute.name)
        value = helper.get_attribute_value(attribute)
        if attribute.name in _SWITCHES and value not in (0, 1):
            raise ModelError(
                f"{label}: attribute {attribute.name!r} is {value}, not 0 or 1",
                code="invalid_onnx",
            )
        values[attribute.name] = value
    lacking = [n for n, a in schema.attributes.items() if a.required and n not in values]
    if lacking:
        raise ModelError(f"{label} lacks the attribute {lacking[0]!r}", code="invalid_onnx")
    return values
