"""ONNX operators on activations, one function each, and the table that names them all.

A translator adds the layers that compute the operator exactly as ONNX Runtime does, and returns the
activation they end in. Only MatMul + Add are fused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnx import TensorProto

from models.layers.activations import Ceil, Floor, Round
from models.layers.kinds import BatchNorm, Reshape
from models.onnx.graph import FIXED_BATCH, Activation, Constant, Operation, Translation, Value
from models.onnx.operators.activations import (
    absolute,
    clamped,
    clip,
    hard_sigmoid,
    leaky_relu,
    maximum,
    minimum,
    prelu,
    sigmoid,
    sign,
    softplus,
    stepped,
    tanh,
)
from models.onnx.operators.arithmetic import (
    add,
    div,
    mul,
    neg,
    normalizer,
    scaler,
    sub,
    sum_of,
)
from models.onnx.operators.convolutions import conv, conv_transpose
from models.onnx.operators.curved.choices import compared, where
from models.onnx.operators.curved.native import (
    atan,
    celu,
    cos,
    elu,
    erf,
    gelu,
    hard_swish,
    mish,
    selu,
    sin,
    softsign,
    swish,
)
from models.onnx.operators.curved.steep import (
    exp,
    log,
    log_softmax,
    reduce_log_sum,
    reduce_log_sum_exp,
    sqrt,
)
from models.onnx.operators.dense import (
    gemm,
    gemm_at_every_place,
    linear_classifier,
    matmul,
    vector_matmul,
)
from models.onnx.operators.euclidean import lp_pool, power, reduce_l2
from models.onnx.operators.joins import (
    concat,
    cut,
    extract_features,
    gather,
    reduce_l1,
    reduce_mean,
    reduce_sum,
    reduce_sum_square,
    split,
)
from models.onnx.operators.layout.selection import gather_nd
from models.onnx.operators.normalized.attention import attention, softmax
from models.onnx.operators.normalized.group_norm import (
    group_normalization,
    instance_normalization,
    local_response,
)
from models.onnx.operators.normalized.in_parts import reciprocal
from models.onnx.operators.normalized.layer_norm import layer_normalization, rms_normalization
from models.onnx.operators.rearrangements import depth_to_space, resize, space_to_depth
from models.onnx.operators.sorting import reduce_max, reduce_min, top_k
from models.onnx.operators.views import (
    expand,
    flatten,
    reshape,
    squeeze,
    tile,
    transpose,
    unsqueeze,
)
from models.onnx.operators.windows import (
    average_pool,
    global_average_pool,
    global_max_pool,
    max_pool,
    pad,
)

__all__ = ["OPERATORS", "UNBATCHED", "Translator"]

#: An operator with several outputs gives an activation for each.
Translator = Callable[[Operation, Translation], Value | list[Activation]]


def _identity(operation: Operation, translation: Translation) -> Activation:
    """The same numbers."""
    return operation.activation()


def _cast(operation: Operation, translation: Translation) -> Activation:
    """To float32, which activations are already; a comparison is 1 where it is true, else 0."""
    if operation.attributes["to"] != TensorProto.FLOAT:
        operation.refuse(
            "activations are float32 and stay float32",
            code="unsupported_dtype",
            hint="export the model in float32",
        )
    return operation.activation()


def _dropout(operation: Operation, translation: Translation) -> Activation:
    """As in inference: nothing."""
    ratio, training = operation.constant(1), operation.constant(2)
    if training is not None and training.any():
        operation.refuse("training mode is not inference", hint="export the model in eval mode")
    if any(given is not None and given.ndim for given in (ratio, training)):
        operation.refuse("ratio and training_mode have no axes", code="invalid_network")
    if ratio is not None and not 0.0 <= float(ratio) < 1.0:
        operation.refuse("its ratio is not in [0, 1): no runtime takes it", code="invalid_network")
    return operation.activation()


def _relu(operation: Operation, translation: Translation) -> Activation:
    """max(x, 0)."""
    return clamped(operation, translation, operation.activation(), 0.0, None)


def _batch_normalization(operation: Operation, translation: Translation) -> Activation:
    """As in inference, with stored statistics."""
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


#: Operators on activations: a new one is one function and one row here.
OPERATORS: dict[str, Translator] = {
    "Abs": absolute,
    "Add": add,
    "ArrayFeatureExtractor": extract_features,
    "Atan": atan,
    "Attention": attention,
    "AveragePool": average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Ceil": stepped(Ceil, "The smallest whole number that is not below x."),
    "Celu": celu,
    "Clip": clip,
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Cos": cos,
    "DepthToSpace": depth_to_space,
    "Div": div,
    "Dropout": _dropout,
    "Elu": elu,
    "Erf": erf,
    "Exp": exp,
    "Expand": expand,
    "Flatten": flatten,
    "Floor": stepped(Floor, "The largest whole number that is not above x."),
    "Gather": gather,
    "GatherND": gather_nd,
    "Gelu": gelu,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": lp_pool,
    "GlobalMaxPool": global_max_pool,
    "Greater": compared(above=True, strict=True),
    "GreaterOrEqual": compared(above=True, strict=False),
    "GroupNormalization": group_normalization,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Identity": _identity,
    "InstanceNormalization": instance_normalization,
    "LRN": local_response,
    "LayerNormalization": layer_normalization,
    "LeakyRelu": leaky_relu,
    "Less": compared(above=False, strict=True),
    "LessOrEqual": compared(above=False, strict=False),
    "LinearClassifier": linear_classifier,
    "Log": log,
    "LogSoftmax": log_softmax,
    "LpPool": lp_pool,
    "MatMul": matmul,
    "Max": maximum,
    "MaxPool": max_pool,
    "Min": minimum,
    "Mish": mish,
    "Mul": mul,
    "Neg": neg,
    "Normalizer": normalizer,
    "PRelu": prelu,
    "Pad": pad,
    "Pow": power,
    "RMSNormalization": rms_normalization,
    "Reciprocal": reciprocal,
    "ReduceL1": reduce_l1,
    "ReduceL2": reduce_l2,
    "ReduceLogSum": reduce_log_sum,
    "ReduceLogSumExp": reduce_log_sum_exp,
    "ReduceMax": reduce_max,
    "ReduceMean": reduce_mean,
    "ReduceMin": reduce_min,
    "ReduceSum": reduce_sum,
    "ReduceSumSquare": reduce_sum_square,
    "Relu": _relu,
    "Reshape": reshape,
    "Resize": resize,
    "Round": stepped(Round, "The nearest whole number; of two the even one."),
    "Scaler": scaler,
    "Selu": selu,
    "Sigmoid": sigmoid,
    "Sign": sign,
    "Sin": sin,
    "Slice": cut,
    "Softmax": softmax,
    "Softplus": softplus,
    "Softsign": softsign,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Sqrt": sqrt,
    "Squeeze": squeeze,
    "Sub": sub,
    "Sum": sum_of,
    "Swish": swish,
    "Tanh": tanh,
    "Tile": tile,
    "TopK": top_k,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Upsample": resize,
    "Where": where,
}

#: Operators that work number by number or name their axes.
_ALIKE = (
    *("Abs", "Cast", "Clip", "Dropout", "HardSigmoid", "Identity", "LeakyRelu", "Neg", "PRelu"),
    *("Relu", "Sigmoid", "Softplus", "Tanh", "Add", "Div", "Max", "Min", "Mul", "Sub", "Sum"),
    *("Concat", "Gather", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Slice", "Split"),
    *("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
    *("Celu", "Elu", "Erf", "Gelu", "HardSwish", "Mish", "Pow", "Selu", "Softsign", "Swish"),
    *("LayerNormalization", "RMSNormalization", "Softmax"),
    *("Exp", "Log", "Reciprocal", "Sqrt", "Atan", "Cos", "Sin"),
    *("Ceil", "Floor", "Round", "Sign"),
    *("LogSoftmax", "ReduceL1", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
)


def _alike(name: str) -> Translator:
    """The operator's translator, for constants that have no more axes than the activations."""

    def translate(operation: Operation, translation: Translation) -> Value | list[Activation]:
        rank = max(len(v.shape) for v in operation.inputs if isinstance(v, Activation))
        for index, value in enumerate(operation.inputs):
            if isinstance(value, Constant) and value.value.ndim > rank:
                operation.refuse(f"input {index} has more axes than an input without a batch axis")
        inputs = [
            _without_batch(operation, translation, value)
            if isinstance(value, Activation) and value.batched
            else value
            for value in operation.inputs
        ]
        return OPERATORS[name](replace(operation, inputs=tuple(inputs)), translation)

    return translate


def _without_batch(operation: Operation, translation: Translation, x: Activation) -> Activation:
    """A batch of one row as a value of the shape that it has in the file, where it is an axis of
    size 1 like others: MultiheadAttention takes it out of some values and leaves it in others."""
    if translation.batch != FIXED_BATCH or x.merged:
        operation.refuse("one of its inputs has a batch axis, another one has none")
    shape = (*x.shape[: x.batch_axis], 1, *x.shape[x.batch_axis :])
    return translation.emit(operation, Reshape(shape=shape), x).unbatched()


#: Operators on activations that have no batch axis in the file.
UNBATCHED: dict[str, Translator] = {
    **{name: _alike(name) for name in _ALIKE},
    "Gemm": gemm_at_every_place,
    "MatMul": vector_matmul,
}
