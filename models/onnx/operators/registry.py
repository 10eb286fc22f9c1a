"""ONNX operators on activations, one function each, and the table that names them all.

A translator adds the layers that compute the operator exactly as ONNX Runtime does, and returns the
activation they end in. Only MatMul + Add are fused.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx import TensorProto

from models.layers.kinds import BatchNorm, LeakyReLU, Permute, Reshape, Shape
from models.onnx.graph import FIXED_BATCH, Activation, Constant, Operation, Translation, Value
from models.onnx.operators.activations import (
    absolute,
    clamped,
    clip,
    maximum,
    minimum,
    sigmoid,
    softplus,
    tanh,
)
from models.onnx.operators.arithmetic import (
    add,
    broadcasts_to,
    div,
    mul,
    neg,
    sample_constant,
    sub,
    sum_of,
)
from models.onnx.operators.convolutions import conv, conv_transpose
from models.onnx.operators.dense import gemm, matmul
from models.onnx.operators.euclidean import lp_pool, power, reduce_l2
from models.onnx.operators.joins import concat, cut, gather, reduce_mean, reduce_sum, split
from models.onnx.operators.rearrangements import depth_to_space, space_to_depth
from models.onnx.operators.sorting import reduce_max, reduce_min, top_k
from models.onnx.operators.windows import (
    average_pool,
    global_average_pool,
    global_max_pool,
    max_pool,
    pad,
)

__all__ = ["OPERATORS", "Translator"]

#: An operator with several outputs gives an activation for each.
Translator = Callable[[Operation, Translation], Value | list[Activation]]


def _identity(operation: Operation, translation: Translation) -> Activation:
    return operation.activation()


def _cast(operation: Operation, translation: Translation) -> Activation:
    if operation.attributes["to"] != TensorProto.FLOAT:
        operation.refuse(
            "activations are float32 and stay float32",
            code="unsupported_dtype",
            hint="export the model in float32",
        )
    return operation.activation()


def _dropout(operation: Operation, translation: Translation) -> Activation:
    training = operation.constant(2)
    if training is not None and training.any():
        operation.refuse("training mode is not inference", hint="export the model in eval mode")
    return operation.activation()


def _relu(operation: Operation, translation: Translation) -> Activation:
    return clamped(operation, translation, operation.activation(), 0.0, None)


def _leaky_relu(operation: Operation, translation: Translation) -> Activation:
    slope = float(operation.attributes["alpha"])
    if not 0 <= slope <= 1:
        operation.refuse(f"alpha = {slope} is outside [0, 1]")
    return translation.emit(operation, LeakyReLU(slope=slope), operation.activation())


def _prelu(operation: Operation, translation: Translation) -> Activation:
    """PRelu with one slope from 0 to 1 for all: a LeakyRelu."""
    array = operation.constant(1)
    assert array is not None
    slope = float(array.flat[0]) if array.size and (array == array.flat[0]).all() else math.nan
    if array.dtype.kind != "f" or not 0 <= slope <= 1:
        operation.refuse("only one slope from 0 to 1 for all channels is supported")
    x = operation.activation()
    if not broadcasts_to(sample_constant(operation, array, x).shape, x.shape):
        operation.refuse(f"slopes of shape {array.shape} do not fit", code="shape_mismatch")
    return translation.emit(operation, LeakyReLU(slope=slope), x)


def _batch_normalization(operation: Operation, translation: Translation) -> Activation:
    if operation.attributes.get("training_mode") or any(operation.outputs[1:]):
        operation.refuse("training mode is not inference", hint="export the model in eval mode")
    if not operation.attributes.get("spatial", 1):
        operation.refuse("statistics per place (spatial = 0) are not supported")
    tensors = []
    for index in range(1, 5):
        array = operation.constant(index)
        assert array is not None
        tensors.append(translation.weight(operation, array))
    weight, bias, mean, var = tensors
    epsilon = float(operation.attributes["epsilon"])
    if bool((var < 0).any()) or not bool((var + epsilon > 0).all()):
        operation.refuse("a variance is negative, or zero with epsilon 0", code="invalid_network")
    layer = BatchNorm(weight, bias, mean, var, eps=epsilon)
    if {tensor.shape for tensor in tensors} != {weight.shape}:
        operation.refuse("its parameters differ in shape", code="shape_mismatch")
    return translation.emit(operation, layer, operation.activation())


def _view(operation: Operation, translation: Translation, shape: Shape) -> Activation:
    x = operation.activation()
    if shape == x.shape:
        return x
    return translation.emit(operation, Reshape(shape=shape), x)


def _flatten(operation: Operation, translation: Translation) -> Activation:
    x = operation.activation()
    axis = operation.attributes["axis"]
    axis = axis if axis == x.rank else operation.axis(axis, x.rank)
    if axis == 0 or math.prod(x.shape[: axis - 1]) != 1:
        operation.refuse_batch(f"axis {axis} merges the batch axis with others")
    return _view(operation, translation, (math.prod(x.shape),))


def _reshape(operation: Operation, translation: Translation) -> Activation:
    """A view of each sample. At every batch size N it must be [N, ...] again, row by row.

    Axis 0 of the target is N itself, 0 (copied) or -1 (what is left), with the sample's size after
    it. A 1 there with the sample's size after it fails in ONNX Runtime at any other batch; with a
    -1 after it, it merges the rows of a batch.
    """
    x, target = operation.activation(), operation.input(1)
    if not isinstance(target, Constant) or target.value.dtype.kind != "i":
        operation.refuse("the shape must be a constant or computed from shapes")
    if target.computed:
        operation.refuse_batch("the shape is computed from the batch size")
    sizes, others = target.value.reshape(-1).tolist(), target.other.reshape(-1).tolist()
    if not sizes or sizes[1:] != others[1:]:
        operation.refuse_batch("the batch size moves away from axis 0")
    copies = not operation.attributes.get("allowzero")
    symbolic = translation.batch != FIXED_BATCH
    copied = sizes[0] == 0 and copies
    is_batch = (sizes[0], others[0]) == translation.batch
    one = not is_batch and sizes[0] == others[0] == 1
    rest = list(sizes[1:])
    for index, size in enumerate(rest):
        if size == 0 and copies and index < len(x.shape):
            rest[index] = x.shape[index]
    total = math.prod(x.shape)
    if sizes[0] != -1 and rest.count(-1) == 1:
        if symbolic and one:
            operation.refuse_batch(
                f"the shape {sizes} merges all rows of a batch into one",
                hint="write -1 or 0 for the batch axis, or export with batch size 1",
            )
        known = -math.prod(rest)
        if known > 0 and total % known == 0:
            rest[rest.index(-1)] = total // known
    kept = copied or is_batch or one or sizes[0] == others[0] == -1
    if not kept or any(size < 1 for size in rest) or math.prod(rest) != total:
        reason = f"cannot view [batch, {', '.join(map(str, x.shape))}] as {sizes}"
        if copied or is_batch or (one and math.prod(rest) % total):
            operation.refuse(reason, code="shape_mismatch")
        operation.refuse_batch(f"{reason} and keep the batch apart")
    translation.one_row_only = translation.one_row_only or (symbolic and one)
    return _view(operation, translation, tuple(rest))


def _squeeze(operation: Operation, translation: Translation) -> Activation:
    x = operation.activation()
    given = operation.integers(1) if operation.opset >= 13 else operation.attributes.get("axes")
    if given is None:
        operation.refuse_batch(
            "without axes it removes a batch axis of size 1", hint="name the axes to squeeze"
        )
    axes = operation.axes(given, x.rank)
    if 0 in axes:
        operation.refuse_batch("it removes the batch axis")
    if any(x.shape[axis - 1] != 1 for axis in axes):
        operation.refuse(
            f"cannot squeeze axes {axes} of [batch, {', '.join(map(str, x.shape))}]",
            code="shape_mismatch",
        )
    kept = (size for axis, size in enumerate(x.shape, start=1) if axis not in axes)
    return _view(operation, translation, tuple(kept))


def _unsqueeze(operation: Operation, translation: Translation) -> Activation:
    x = operation.activation()
    given = operation.integers(1) if operation.opset >= 13 else operation.attributes["axes"]
    rank = x.rank + len(given or ())
    axes = operation.axes(given or (), rank)
    if 0 in axes:
        operation.refuse_batch(f"axes {axes} move the batch axis")
    old = iter(x.shape)
    shape = (1 if axis in axes else next(old) for axis in range(1, rank))
    return _view(operation, translation, tuple(shape))


def _transpose(operation: Operation, translation: Translation) -> Activation:
    x = operation.activation()
    perm = list(operation.attributes.get("perm", reversed(range(x.rank))))
    if sorted(perm) != list(range(x.rank)):
        operation.refuse(f"perm {perm} does not fit rank {x.rank}", code="shape_mismatch")
    if perm[0] != 0:
        operation.refuse_batch(f"perm {perm} moves the batch axis")
    axes = [axis - 1 for axis in perm[1:]]
    if axes == sorted(axes):
        return x
    return translation.emit(operation, Permute(axes=axes), x)


#: Operators on activations: a new one is one function and one row here.
OPERATORS: dict[str, Translator] = {
    "Abs": absolute,
    "Add": add,
    "AveragePool": average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": clip,
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DepthToSpace": depth_to_space,
    "Div": div,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gather": gather,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": lp_pool,
    "GlobalMaxPool": global_max_pool,
    "Identity": _identity,
    "LeakyRelu": _leaky_relu,
    "LpPool": lp_pool,
    "MatMul": matmul,
    "Max": maximum,
    "MaxPool": max_pool,
    "Min": minimum,
    "Mul": mul,
    "Neg": neg,
    "PRelu": _prelu,
    "Pad": pad,
    "Pow": power,
    "ReduceL2": reduce_l2,
    "ReduceMax": reduce_max,
    "ReduceMean": reduce_mean,
    "ReduceMin": reduce_min,
    "ReduceSum": reduce_sum,
    "Relu": _relu,
    "Reshape": _reshape,
    "Sigmoid": sigmoid,
    "Slice": cut,
    "Softplus": softplus,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": _squeeze,
    "Sub": sub,
    "Sum": sum_of,
    "Tanh": tanh,
    "TopK": top_k,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
