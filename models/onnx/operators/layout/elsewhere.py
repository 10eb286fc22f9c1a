"""Operators on values whose batch axis is not the first one in the file.

``torch.stack`` in front of a mean, a sequence with its steps in front, an unrolled recurrent layer:
the batch axis stands elsewhere for a while. Such a value is held with its batch in front all the
same (``Activation.batch_axis`` says where it is in the file), its other axes in the file's order.
Here an operator's axes are counted as they are held; the operator's own translator does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from models.layers.kinds import Permute, Reshape
from models.onnx.graph import Activation, Constant, Operation, Squares, Translation, Value
from models.onnx.operators.layout.regrouped import regrouped, transposed
from models.onnx.operators.layout.selection import MOVED_AXES

__all__ = ["MOVED", "moved_transpose", "moved_unsqueeze", "with_leading_batch"]

#: Where the batch axis stands in a result, and the operation as the operator's translator takes it.
Taken = tuple[Operation, int]


def with_leading_batch(
    operation: Operation,
    translation: Translation,
    translate: Callable[[Operation, Translation], Value | list[Activation]],
) -> list[Value]:
    """The outputs of an operator of ``MOVED`` some input of which has its batch axis elsewhere."""
    activations = [value for value in operation.inputs if isinstance(value, Activation)]
    if len({(value.batch_axis, value.rank, value.batched) for value in activations}) > 1:
        operation.refuse_batch("its inputs have their batch axes in different places")
    at = activations[0].batch_axis
    if operation.op_type == "Reshape":
        return [regrouped(operation, translation, activations[0])]
    if any(value.merged for value in activations):
        if operation.op_type != "Transpose":
            operation.refuse_batch("the batch shares an axis that is not the first")
        return [transposed(operation, translation, activations[0], at)]
    leading = tuple(
        replace(value, batch_axis=0) if isinstance(value, Activation) else value
        for value in operation.inputs
    )
    operation = replace(operation, inputs=leading)
    if operation.op_type == "Transpose":
        return [moved_transpose(operation, translation, at)]
    if operation.op_type == "Unsqueeze":
        return [moved_unsqueeze(operation, translation, at)]
    operation, at = MOVED[operation.op_type](operation, at)
    results = translate(operation, translation)
    found: list[Value] = []
    for value in results if isinstance(results, list) else [results]:
        plain = value.plain if isinstance(value, Squares) else value
        if not isinstance(plain, Activation):
            operation.refuse_batch("squares of values whose batch axis is not the first")
        found.append(replace(plain, batch_axis=at) if plain.batched else plain)
    return found


def moved_transpose(operation: Operation, translation: Translation, at: int) -> Activation:
    """Transpose of a value held with its batch in front, whose batch is the file's axis ``at``."""
    x = operation.activation()
    perm = list(operation.attributes.get("perm", reversed(range(x.rank))))
    if sorted(perm) != list(range(x.rank)):
        operation.refuse(f"perm {perm} does not fit rank {x.rank}", code="shape_mismatch")
    held = [_held(axis, at) for axis in perm]
    axes = [axis - 1 for axis in held if axis]
    if axes != sorted(axes):
        x = translation.emit(operation, Permute(axes=axes), x)
    return replace(x, batch_axis=held.index(0))


def moved_unsqueeze(operation: Operation, translation: Translation, at: int) -> Activation:
    """Unsqueeze of such a value: axes of size 1 more, before the batch axis too."""
    from_input = operation.opset >= 13
    x = operation.activation()
    given = operation.integers(1) if from_input else operation.attributes["axes"]
    rank = x.rank + len(given or ())
    axes = operation.axes(given or (), rank)
    old = [axis for axis in range(rank) if axis not in axes]
    sizes = [0] * rank
    for place, axis in enumerate(old):
        sizes[axis] = (-1, *x.shape)[_held(place, at)]
    shape = tuple(1 if axis in axes else sizes[axis] for axis in range(rank) if axis != old[at])
    if shape != x.shape:
        x = translation.emit(operation, Reshape(shape=shape), x)
    return replace(x, batch_axis=old[at])


def _held(axis: int, at: int) -> int:
    """The place of the file's axis where the batch, there axis ``at``, is in front."""
    return 0 if axis == at else axis + (axis < at)


def _named(operation: Operation, axes: Sequence[int], at: int) -> list[int]:
    rank = operation.activation().rank
    return [_held(axis, at) for axis in operation.axes(axes, rank)]


def _same(operation: Operation, at: int) -> Taken:
    """Number by number: constants are aligned at the end, as the file's axes are."""
    rank = next(v.rank for v in operation.inputs if isinstance(v, Activation))
    inputs: list[Value | None] = []
    for index, value in enumerate(operation.inputs):
        if isinstance(value, Constant):
            array = operation.constant(index)
            if array is not None and array.size != 1:
                if array.ndim > rank:
                    operation.refuse_batch(f"a constant of shape {array.shape}")
                array = array.reshape((1,) * (rank - array.ndim) + array.shape)
                value = Constant.of(np.moveaxis(array, at, 0))
        inputs.append(value)
    return replace(operation, inputs=tuple(inputs)), at


def _along(operation: Operation, at: int) -> Taken:
    """Concat and Split: an attribute ``axis``."""
    if operation.op_type == "Concat" and any(isinstance(v, Constant) for v in operation.inputs):
        operation.refuse_batch("a constant part beside values whose batch axis is not the first")
    (axis,) = _named(operation, [operation.attributes["axis"]], at)
    return replace(operation, attributes={**operation.attributes, "axis": axis}), at


def _over_axis(operation: Operation, at: int) -> Taken:
    """Softmax, over one axis that is not the batch."""
    if operation.opset < 13:
        operation.refuse_batch("before opset 13 it is taken over all axes from one on")
    if operation.axis(operation.attributes["axis"], operation.activation().rank) == at:
        operation.refuse_batch("it is taken over the rows of a batch")
    return _along(operation, at)


def _over_last(operation: Operation, at: int) -> Taken:
    """Normalisations over the last axes, which come behind the batch in the file."""
    rank = operation.activation().rank
    axis = operation.axis(operation.attributes["axis"], rank)
    constants = [value.value.ndim for value in operation.inputs if isinstance(value, Constant)]
    if axis <= at or max(constants, default=0) > rank - axis:
        operation.refuse_batch("it is taken over the rows of a batch")
    return operation, at


def _gather(operation: Operation, at: int) -> Taken:
    taken, _ = _along(operation, at)
    indices = operation.constant(1)
    more = 0 if indices is None else indices.ndim - 1
    return taken, at + (more if 0 < taken.attributes["axis"] <= at else 0)


def _gather_nd(operation: Operation, at: int) -> Taken:
    """Places of leading axes that come before the batch."""
    places = operation.constant(1)
    if places is None or not places.ndim or places.shape[-1] > at:
        operation.refuse_batch("it takes rows out of the batch")
    attributes = {**operation.attributes, MOVED_AXES: True}
    moved = at - places.shape[-1] + places.ndim - 1
    return replace(operation, attributes=attributes), moved


def _with_axes(operation: Operation, axes: Sequence[int], place: int, since: int) -> Operation:
    """The operation with these axes, as its input at a place from an opset on."""
    if operation.opset < since:
        return replace(operation, attributes={**operation.attributes, "axes": tuple(axes)})
    inputs = [*operation.inputs, *[None] * (place + 1 - len(operation.inputs))]
    inputs[place] = Constant.of(np.array(axes, np.int64))
    return replace(operation, inputs=tuple(inputs))


def _given(operation: Operation, place: int) -> Any:
    axes = operation.integers(place)
    return operation.attributes.get("axes") if axes is None else axes


def _slice(operation: Operation, at: int) -> Taken:
    axes = _given(operation, 3)
    starts = operation.attributes.get("starts") if operation.opset < 10 else operation.integers(1)
    named = _named(operation, range(len(starts or ())) if axes is None else axes, at)
    return _with_axes(operation, named, 3, 10), at


def _fewer(operation: Operation, at: int, since: int, *, keepdims: bool) -> Taken:
    axes = _given(operation, 1)
    if not axes:
        operation.refuse_batch("without axes it takes the batch axis along")
    named = _named(operation, axes, at)
    before = 0 if keepdims else sum(0 < axis <= at for axis in named)
    # Where the batch of one row is squeezed away, what then counts as one comes first.
    moved = 0 if 0 in named else at - before
    return _with_axes(operation, named, 1, since), moved


def _squeeze(operation: Operation, at: int) -> Taken:
    return _fewer(operation, at, 13, keepdims=False)


def _reduce(since: int) -> Callable[[Operation, int], Taken]:
    def taken(operation: Operation, at: int) -> Taken:
        keepdims = bool(operation.attributes["keepdims"])
        return _fewer(operation, at, since, keepdims=keepdims)

    return taken


def _matmul(operation: Operation, at: int) -> Taken:
    """x @ W: the last axis is contracted, which must not be the batch."""
    x, matrix = operation.activation(), operation.constant(1)
    if matrix is None or matrix.ndim != 2 or at == x.rank - 1:
        operation.refuse_batch("the batch axis would be summed")
    return operation, at


_ALIKE = (
    *("Abs", "Add", "Cast", "Celu", "Clip", "Div", "Dropout", "Elu", "Erf", "Gelu", "HardSigmoid"),
    *("HardSwish", "Identity", "LeakyRelu", "Max", "Min", "Mish", "Mul", "Neg", "Pow", "PRelu"),
    "Relu",
    *("Selu", "Sigmoid", "Softplus", "Softsign", "Sub", "Sum", "Swish", "Tanh"),
    *("Exp", "Log", "Reciprocal", "Sqrt", "Atan", "Cos", "Sin"),
    *("Ceil", "Floor", "Round", "Sign"),
)
#: How each operator is taken: itself with its axes as the value is held, and where the batch axis
#: of its results stands in the file. Reshape, Transpose, Unsqueeze have functions of their own.
MOVED: dict[str, Callable[[Operation, int], Taken]] = {
    **dict.fromkeys(_ALIKE, _same),
    "Concat": _along,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "LayerNormalization": _over_last,
    "MatMul": _matmul,
    "ReduceMax": _reduce(18),
    "ReduceMean": _reduce(18),
    "ReduceMin": _reduce(18),
    "ReduceSum": _reduce(13),
    "Reshape": _same,
    "RMSNormalization": _over_last,
    "Slice": _slice,
    "Softmax": _over_axis,
    "Split": _along,
    "Squeeze": _squeeze,
    "Transpose": _same,
    "Unsqueeze": _same,
}
