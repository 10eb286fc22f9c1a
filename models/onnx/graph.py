"""The data of the importer: ONNX values, nodes, and the rows of the network being built.

An ONNX value is either an ``Activation`` (depends on the input; a node of our graph) or a
``Constant``. The batch axis is axis 0 of nearly every activation. Shape arithmetic in the
file may mention a symbolic batch size: such constants are computed under two batch sizes at once,
and what differs between the two depends on the batch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto
from torch import Tensor

from models.errors import ModelError
from models.layers.kinds import AvgPool2d, Conv2d, Layer, Linear, MaxPool2d, Shape, ShapeError
from models.onnx.attributes import checked_attributes
from models.onnx.safety import OnnxLimits, node_label

__all__ = [
    "Activation",
    "Comparison",
    "Constant",
    "Normaliser",
    "Operation",
    "Squares",
    "Translation",
    "Value",
]

#: Batch sizes used for a symbolic one: two primes, which hardly any layer has both as its sizes.
SYMBOLIC_BATCH = (99_991, 99_989)
FIXED_BATCH = (1, 1)
#: Axes, sizes, pads or parts that one operator may name.
_MOST_INTEGERS = 1 << 16


@dataclass(frozen=True)
class Activation:
    """An ONNX value that depends on the input: our node's name and its shape without the batch.

    batched: whether it has a batch axis in the file, which is then [batch, *shape]. A value without
    one is of shape ``shape`` there; a batch of one row is thought before it, and axes are counted
    as if it were there (``Operation.axis``). batch_axis: where the file has the batch axis, if it
    has one; 0 nearly everywhere (``operators.layout.elsewhere``). merged: how many axes of the
    sample are one with the batch axis there (``operators.layout.merged``); turned: whether they
    come before the batch in it (``operators.layout.regrouped``).
    """

    name: str
    shape: Shape
    batched: bool = True
    batch_axis: int = 0
    merged: int = 0
    turned: bool = False

    @property
    def rank(self) -> int:
        """Number of axes, batch included."""
        return len(self.shape) + 1

    def in_file(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Its numbers [batch, *shape] as the file lays them out."""
        if not self.batched:
            return rows[0]
        if self.turned:
            rows = np.moveaxis(rows, 0, self.merged)
        if self.merged:
            rows = rows.reshape(-1, *self.shape[self.merged :])
        return np.moveaxis(rows, 0, self.batch_axis)

    def from_file(self, array: NDArray[Any]) -> NDArray[Any]:
        """Its numbers [batch, *shape], of the file's."""
        rows = np.moveaxis(array, self.batch_axis, 0) if self.batched else array
        if self.turned:
            first, rest = self.shape[: self.merged], self.shape[self.merged :]
            rows = np.moveaxis(rows.reshape(*first, -1, *rest), self.merged, 0)
        return rows.reshape(-1, *self.shape)

    def unbatched(self) -> Activation:
        """The same numbers in a value of the file that has no batch axis."""
        return replace(self, batched=False)


@dataclass(frozen=True)
class Constant:
    """An ONNX value known beforehand, under either of two batch sizes.

    computed: the batch size was used in a computation, not only moved. Then its value at a third
    batch size is unknown, even where these two agree (such as min(batch size, 5)). repeated: in the
    file it has a row for each row of the batch, all of them alike; here it has one.
    """

    value: NDArray[Any]
    other: NDArray[Any]
    computed: bool = False
    repeated: bool = False

    @classmethod
    def of(cls, value: NDArray[Any]) -> Constant:
        """A constant that does not depend on the batch."""
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


@dataclass(frozen=True)
class Squares:
    """factor * (sums of squares of the numbers of ``base``) + shift: no layer, until its root.

    Summed over ``axes`` of the sample, or over the windows of a pool; over neither: each square.
    centred: of the numbers less their mean, as a mean of squares less a squared mean. shape:
    without the batch; sign_only: its sign alone. steps: operators since the squares that may round.
    plain: the same as a value of the network, for what is on no way to a root.
    """

    base: Activation
    shape: Shape
    axes: tuple[int, ...] = ()
    kernel: tuple[int, int] | tuple[()] = ()
    stride: tuple[int, int] = (1, 1)
    factor: Fraction = Fraction(1)
    shift: Fraction = Fraction(0)
    centred: bool = False
    sign_only: bool = False
    steps: int = 0
    plain: Activation | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Comparison:
    """Where an activation is above (or below) a number, or at it (``inclusive``): no layer, until
    something chooses by it."""

    of: Activation
    bound: float
    above: bool
    inclusive: bool


@dataclass(frozen=True)
class Normaliser:
    """A part of a normalisation written in parts: no layer, until numbers come out of it.

    It is made of s = sqrt(Q + eps) over ``axes`` (kept, as 1), Q the mean square of ``of``, or, if
    ``centred``, its variance. role: "root", s; "factor", c = gain / s; "numbers", x c; "offset",
    bias + sign m c, m the mean of x. factor: the name of the one value that c is in the file, which
    numbers and offset must share. shape: without the batch.
    """

    of: Activation
    axes: tuple[int, ...]
    eps: float
    centred: bool
    shape: Shape
    role: str = "root"
    factor: str = ""
    sign: int = 1
    gain: NDArray[Any] | None = field(default=None, compare=False)
    bias: NDArray[Any] | None = field(default=None, compare=False)


Value = Activation | Constant | Squares | Comparison | Normaliser


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
            checked_attributes(node, label, opset),
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
        if not isinstance(value, Constant):
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
        if array.size > _MOST_INTEGERS:
            self.refuse(f"input {index} holds {array.size} integers", code="invalid_onnx")
        return [int(entry) for entry in array.reshape(-1)]

    @property
    def batched(self) -> bool:
        """Whether the activations that it reads have a batch axis in the file."""
        return all(v.batched for v in self.inputs if isinstance(v, Activation))

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from the front; the batch axis (0) included.

        In the file the axes of a value without a batch axis are counted without it.
        """
        if not self.batched:
            if not 1 - rank <= axis < rank - 1:
                self.refuse(f"axis {axis} does not exist in rank {rank - 1}", code="shape_mismatch")
            return axis % (rank - 1) + 1
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
    """The rows of the network being built, under the limits on weights and activations."""

    batch: tuple[int, int]
    limits: OnnxLimits
    #: How often each ONNX value is used (graph outputs count).
    uses: Counter[str]
    rows: list[tuple[str, Layer, tuple[str, ...]]] = field(default_factory=list)
    #: ONNX values that are a dense layer without bias, by the row of that layer.
    open_matmuls: dict[str, int] = field(default_factory=dict)
    #: The layer that computes each activation, and its inputs, by our name of the activation.
    origins: dict[str, tuple[Layer, tuple[Activation, ...]]] = field(default_factory=dict)
    #: Roots of means and sums of squares, by our name of the activation.
    roots: dict[str, Squares] = field(default_factory=dict)
    #: Numbers and the axes of which an activation is the maximum, by our name of it.
    maxima: dict[str, tuple[Activation, Shape]] = field(default_factory=dict)
    #: Activations less their mean, by that mean.
    centred: dict[Activation, Activation] = field(default_factory=dict)
    #: Layers that may stand at several nodes, by the names of their constants and their geometry.
    shared: dict[tuple[Any, ...], Layer] = field(default_factory=dict)
    parameters: int = 0
    activation_bytes: int = 0
    folded_bytes: int = 0
    work: int = 0
    #: Whether the file runs at a batch of one only, whatever batch it declares.
    one_row_only: bool = False
    #: ONNX values that are dense layers without the bias that their layer was given.
    without_bias: set[str] = field(default_factory=set)
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
        # A flipped constant has negative strides, also along axes of one place: torch takes none.
        return torch.from_numpy(np.array(array, order="C"))

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
        """Add one row to the network."""
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
        self.without_bias.update(name for name, at in self.open_matmuls.items() if at == row)
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
