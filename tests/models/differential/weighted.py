"""Steps with weights or windows: products, convolutions, batch norm, padding, pooling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.models.differential.builder import Builder, Shape
from tests.models.differential.steps import ODD, an_axis, broadcast, maybe_batch

__all__ = [
    "attention",
    "average_pool",
    "batch_normalization",
    "conv",
    "gemm",
    "group_normalization",
    "hard_sigmoid",
    "instance_normalization",
    "layer_normalization",
    "matmul",
    "matmul_of_two",
    "max_pool",
    "norm_in_nodes",
    "norm_in_parts",
    "pad",
    "resize",
    "rms_normalization",
    "softmax",
]


def matmul(b: Builder, x: str, shape: Shape) -> str:
    left = len(shape) == 2 and b.chance(0.4)
    size, many = (shape[0] if left else shape[-1]), b.number(1, 5)
    sizes = [many, size] if left else [size, many]
    sizes = [1] * (b.number(0, len(shape) - 1) if b.chance(0.3) else 0) + sizes
    if b.chance(ODD):
        sizes = b.pick([[2, *sizes], [size]])
    matrix = b.constant(b.normal(*sizes))
    result = b.node("MatMul", [matrix, x] if left else [x, matrix])
    if b.chance(0.4):
        result = b.node("Add", [result, b.constant(b.normal(*([many, 1] if left else [many])))])
    return result


def gemm(b: Builder, x: str, shape: Shape) -> str:
    if len(shape) != 1:
        x, shape = b.node("Flatten", [x], axis=1), (math.prod(shape),)
    many, turned = b.number(2, 5), b.pick([0, 1])
    inputs = [x, b.constant(b.normal(many, shape[0]) if turned else b.normal(shape[0], many))]
    form: Any = b.pick([None, (many,), (1,), (1, many), (1, 1), ()])
    if form is None and b.opset < 11:
        form = (many,)
    if form is not None:
        inputs.append(b.constant(b.normal(*(form if not b.chance(ODD) else (2, many)))))
    attributes: dict[str, Any] = {"transB": turned}
    if b.chance(0.3):
        attributes["alpha"] = b.pick([1.0, 2.0, 0.5, -4.0, 0.3])
    if b.chance(0.3):
        attributes["beta"] = b.pick([1.0, 0.0, 0.7, -2.0])
    if b.chance(ODD):
        attributes["transA"] = 1
    return b.node("Gemm", inputs, **attributes)


def batch_normalization(b: Builder, x: str, shape: Shape) -> str:
    tensors = [b.normal(shape[0]) for _ in range(3)]
    names = [b.constant(t) for t in [*tensors, np.abs(b.normal(shape[0])) + np.float32(0.1)]]
    epsilon = {} if b.chance(0.3) else {"epsilon": b.pick([1e-3, 0.0, 1e-7])}
    return b.node("BatchNormalization", [x, *names], **epsilon)


def pad(b: Builder, x: str, shape: Shape) -> str:
    rank = len(shape) + 1
    amounts = [0] * (2 * rank)
    for axis in b.rng.permutation(np.arange(1, rank))[: b.number(0, 2)]:
        amounts[axis], amounts[rank + axis] = b.number(0, 2), b.number(0, 2)
    if b.chance(0.2) and shape[-1] > 1:
        amounts[b.pick([rank - 1, -1])] = -1
    if b.chance(ODD):
        amounts[b.pick([0, rank, 1])] = b.pick([1, -1])
    value = float(np.float32(b.pick([0.0, 1.5, -0.25])))
    if b.chance(0.3):
        mode = b.pick(["edge", "reflect"])
        if b.opset < 11:
            return b.node("Pad", [x], pads=amounts, mode=mode)
        return b.node("Pad", [x, b.constant(np.array(amounts, np.int64))], mode=mode)
    if b.opset < 11:
        return b.node("Pad", [x], pads=amounts, value=value)
    inputs = [x, b.constant(np.array(amounts, np.int64))]
    if b.chance(0.6):
        inputs.append(b.constant(np.array(value, np.float32)))
    if b.opset >= 18 and len(inputs) == 3 and b.chance(0.3):
        axes = [a for a in range(rank) if amounts[a] or amounts[rank + a]] or [1]
        short = [amounts[a] for a in axes] + [amounts[rank + a] for a in axes]
        inputs[1] = b.constant(np.array(short, np.int64))
        inputs.append(b.constant(np.array([a - b.pick([0, rank]) for a in axes], np.int64)))
    return b.node("Pad", inputs, mode="constant")


def _windows(b: Builder, shape: Shape, *, dilated: bool, named: bool = True) -> dict[str, Any]:
    kernel = [b.number(1, min(3, size)) for size in shape[1:]]
    axes = len(kernel)
    attributes: dict[str, Any] = {"kernel_shape": kernel} if named or b.chance(0.5) else {}
    if b.chance(0.6):
        attributes["strides"] = [b.number(1, 3) for _ in kernel]
    if dilated and b.chance(0.25):
        attributes["dilations"] = [b.number(1, 2) for _ in kernel]
    if b.chance(0.5):
        attributes["pads"] = [b.number(0, kernel[place % axes] - 1) for place in range(2 * axes)]
    elif b.chance(0.5):
        attributes["auto_pad"] = b.pick(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
    return {"kernel": kernel, **attributes}


def conv(b: Builder, x: str, shape: Shape) -> str:
    attributes = _windows(b, shape, dilated=True, named=False)
    kernel = attributes.pop("kernel")
    groups = b.pick([g for g in range(1, shape[0] + 1) if shape[0] % g == 0])
    out = groups * b.number(1, 3)
    if groups > 1 or b.chance(0.5):
        attributes["group"] = groups
    inputs = [x, b.constant(b.normal(out, shape[0] // groups, *kernel))]
    if b.chance(0.5):
        inputs.append(b.constant(b.normal(out)))
    return b.node("Conv", inputs, **attributes)


def hard_sigmoid(b: Builder, x: str, shape: Shape) -> str:
    given = {} if b.chance(0.3) else {"alpha": b.pick([1 / 6, 0.5, -1.0]), "beta": 0.5}
    return b.node("HardSigmoid", [x], **given)


def resize(b: Builder, x: str, shape: Shape) -> str:
    """Nearest, by whole factors, linear by powers of two, and rarely by others or otherwise."""
    if b.opset >= 11 and len(shape) == 3 and b.chance(0.5):
        return _linear(b, x, shape)
    scales = [1.0, *(float(b.pick([1, 1, 2, 3])) for _ in shape)]
    if b.chance(ODD):
        scales[b.number(0, len(shape))] = 1.5
    if b.opset < 9:
        return b.node("Upsample", [x], mode="nearest", scales=scales)
    array = b.constant(np.array(scales, np.float32))
    if b.opset < 11:
        return b.node("Upsample" if b.opset < 10 else "Resize", [x, array], mode="nearest")
    how = b.pick([("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")])
    how = b.pick([("half_pixel", "ceil"), ("align_corners", "floor")]) if b.chance(ODD) else how
    modes = {"coordinate_transformation_mode": how[0], "nearest_mode": how[1]}
    if b.chance(0.3) and isinstance(b.batch, int):
        sizes = [b.batch, *(int(n * scale) for n, scale in zip(shape, scales[1:], strict=True))]
        return b.node(
            "Resize", [x, "", "", b.constant(np.array(sizes, np.int64))], mode="nearest", **modes
        )
    return b.node("Resize", [x, "", array], mode="nearest", **modes)


def _linear(b: Builder, x: str, shape: Shape) -> str:
    scales = [1.0, 1.0, *(b.pick([0.5, 1.0, 2.0, 4.0]) for _ in range(2))]
    if b.chance(ODD):
        scales[2] = b.pick([3.0, 1.5])
    if any(size * scale < 1 for size, scale in zip(shape, scales[1:], strict=True)):
        scales = [1.0, 1.0, 2.0, 2.0]
    how = b.pick(["asymmetric", "half_pixel", "pytorch_half_pixel"])
    array = b.constant(np.array(scales, np.float32))
    return b.node("Resize", [x, "", array], mode="linear", coordinate_transformation_mode=how)


def max_pool(b: Builder, x: str, shape: Shape) -> str:
    attributes = _windows(b, shape, dilated=b.opset >= 10)
    attributes.pop("kernel")
    if b.opset >= 10 and b.chance(0.3):
        attributes["ceil_mode"] = 1
    return b.node("MaxPool", [x], **attributes)


def average_pool(b: Builder, x: str, shape: Shape) -> str:
    attributes = _windows(b, shape, dilated=b.opset >= 19)
    attributes.pop("kernel")
    if b.opset >= 10 and b.chance(0.3):
        attributes["ceil_mode"] = 1
    if b.chance(0.4):
        attributes["count_include_pad"] = 1
    return b.node("AveragePool", [x], **attributes)


def layer_normalization(b: Builder, x: str, shape: Shape) -> str:
    """The operator, over one axis or more, with constants that broadcast."""
    if b.opset < 17:
        return b.node("Identity", [x])
    axis = an_axis(b, shape)
    over = shape[(axis if axis > 0 else axis + len(shape) + 1) - 1 :]
    inputs = [x, broadcast(b, over), *([broadcast(b, over)] if b.chance(0.6) else [])]
    more: dict[str, Any] = {"stash_type": 1} if b.chance(0.3) else {}
    if b.chance(0.5):
        more["epsilon"] = b.pick([1e-3, 1e-12, 0.0 if b.chance(ODD) else 0.1])
    return b.node("LayerNormalization", inputs, axis=maybe_batch(b, axis, shape), **more)


def rms_normalization(b: Builder, x: str, shape: Shape) -> str:
    if b.opset < 23:
        return b.node("Identity", [x])
    axis = an_axis(b, shape)
    over = shape[(axis if axis > 0 else axis + len(shape) + 1) - 1 :]
    axis = maybe_batch(b, axis, shape)
    return b.node("RMSNormalization", [x, b.constant(b.normal(*over))], axis=axis, epsilon=1e-3)


def norm_in_nodes(b: Builder, x: str, shape: Shape) -> str:
    """Layer normalisation as exporters write it, and what is nearly that."""
    axes = [int(axis) + 1 for axis in b.rng.permutation(len(shape))[: b.number(1, len(shape))]]
    form, more = b.axes_form(axes, 18)
    if b.chance(0.8):
        mean = b.node("ReduceMean", [x, *form], keepdims=1, **more)
        x = b.node("Sub", [x, mean])
    two = b.constant(np.array(2.0, np.float32))
    square = b.node("Pow", [x, two]) if b.chance(0.5) else b.node("Mul", [x, x])
    mean = b.node("ReduceMean", [square, *form], keepdims=1, **more)
    mean = b.node("Add", [mean, b.constant(np.array(b.pick([1e-5, 0.1]), np.float32))])
    if b.chance(ODD):
        mean = b.node("Mul", [mean, two])
    return b.node("Div", [x, b.node("Sqrt", [mean])])


def instance_normalization(b: Builder, x: str, shape: Shape) -> str:
    """Of [N, channels, ...]; of single numbers, or with other sizes, rarely."""
    if len(shape) < 2 or (math.prod(shape[1:]) == 1 and not b.chance(ODD)):
        return b.node("Identity", [x])
    size = shape[0] + (1 if b.chance(ODD) else 0)
    inputs = [x, b.constant(b.normal(size)), b.constant(b.normal(size))]
    more = (
        {} if b.chance(0.5) else {"epsilon": b.pick([1e-3, 1e-12, 0.0 if b.chance(ODD) else 0.1])}
    )
    return b.node("InstanceNormalization", inputs, **more)


def group_normalization(b: Builder, x: str, shape: Shape) -> str:
    """One scale for each group before opset 21, for each channel from there on."""
    groups = b.pick([n for n in range(1, shape[0] + 1) if shape[0] % n == 0 or b.chance(ODD)])
    if b.opset < 18 or (math.prod(shape) == groups and not b.chance(ODD)):
        return b.node("Identity", [x])
    per_group = (b.opset < 21) is not b.chance(ODD)
    size = groups if per_group else shape[0]
    inputs = [x, b.constant(b.normal(size)), b.constant(b.normal(size))]
    more: dict[str, Any] = {"stash_type": 1} if b.opset >= 21 and b.chance(0.3) else {}
    if b.chance(0.5):
        more["epsilon"] = b.pick([1e-3, 1e-12, 0.1])
    return b.node("GroupNormalization", inputs, num_groups=groups, **more)


def norm_in_parts(b: Builder, x: str, shape: Shape) -> str:
    """x c + (bias - m c) with c = gain / s as exporters write it, and what is nearly that."""
    axes = [int(axis) + 1 for axis in b.rng.permutation(len(shape))[: b.number(1, len(shape))]]
    if math.prod(shape[axis - 1] for axis in axes) == 1 and not b.chance(ODD):
        return b.node("Identity", [x])
    form, more = b.axes_form(axes, 18)
    mean = b.node("ReduceMean", [x, *form], keepdims=1, **more)
    of_squares, rms = b.chance(0.5), b.chance(0.3)
    numbers = x if of_squares or rms else b.node("Sub", [x, mean])
    square = b.node("ReduceMean", [b.node("Mul", [numbers] * 2), *form], keepdims=1, **more)
    if of_squares and not rms:
        square = b.node("Sub", [square, b.node("Mul", [mean, mean])])
    eps = b.constant(np.array(b.pick([1e-5, 0.1]), np.float32))
    root = b.node("Sqrt", [b.node("Add", [square, eps])])
    one = b.constant(np.array(1.0, np.float32))
    factor = b.node("Reciprocal", [root]) if b.chance(0.5) else b.node("Div", [one, root])
    if b.chance(0.6):
        factor = b.node("Mul", [factor, broadcast(b, shape)])
    if rms:
        return b.node("Mul", [x, factor])
    if b.chance(0.3):
        return b.node("Mul", [b.node("Sub", [x, mean]), factor])
    offset = b.node("Mul", [mean, factor])
    product = b.node("Mul", [x, factor])
    if b.chance(ODD):
        return b.node("Add", [product, offset])
    if b.chance(0.5):
        return b.node("Sub", [product, offset])
    return b.node("Add", [product, b.node("Sub", [broadcast(b, shape), offset])])


def softmax(b: Builder, x: str, shape: Shape) -> str:
    """Over any axis, with something behind it."""
    result = b.node("Softmax", [x], axis=maybe_batch(b, an_axis(b, shape), shape))
    return b.node("Mul", [result, x]) if b.chance(0.5) else b.node("Neg", [result])


def attention(b: Builder, x: str, shape: Shape) -> str:
    """Queries, keys and values of one value [heads, places, size]."""
    if len(shape) != 3 or b.opset not in (23, 24):
        return b.node("Identity", [x])
    more: dict[str, Any] = {} if b.chance(0.5) else {"scale": b.pick([0.5, 1.0, 0.01])}
    if b.chance(ODD):
        more["is_causal"] = 1
    others = [b.node("Tanh", [x]), b.node("Neg", [x])]
    return b.node("Attention", [x, *others], **more)


def matmul_of_two(b: Builder, x: str, shape: Shape) -> str:
    """A value and another one whose last two axes are exchanged."""
    if len(shape) < 2:
        return b.node("Identity", [x])
    order = [*range(len(shape) - 1), len(shape), len(shape) - 1]
    other = b.node("Transpose", [b.node("Tanh", [x])], perm=order)
    return b.node("MatMul", [x, other] if b.chance(0.5) else [other, x])
