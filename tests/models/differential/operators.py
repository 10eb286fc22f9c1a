"""One step of a random graph per operator, odd corners included: name in, name of its output."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from tests.models.differential.builder import Builder, Shape

__all__ = ["IMAGE_STEPS", "STEPS", "Step"]

Step = Callable[[Builder, str, Shape], str]

#: How often a step does what is likely to be refused.
ODD = 0.04


def _axis(b: Builder, shape: Shape) -> int:
    """An axis of the sample as ONNX counts it, from either end; the batch is put in later."""
    axis = b.number(1, len(shape))
    return axis - (len(shape) + 1 if b.failure_budget(0.5) and b.opset >= 11 else 0)


def _broadcast(b: Builder, shape: Shape, *, positive: bool = False) -> str:
    """A constant that broadcasts to the batch: of any rank, with ones in any place."""
    if b.failure_budget(ODD):
        sizes: list[int] = [2, *shape]
    else:
        kept = b.number(0, len(shape))
        sizes = [size if b.failure_budget(0.6) else 1 for size in shape[len(shape) - kept :]]
        if kept == len(shape) and b.failure_budget(0.5):
            sizes = [1, *sizes]
        if len(sizes) == len(shape) + 1 and b.failure_budget(ODD):
            sizes = [1, *sizes]
    array = b.normal(*sizes)
    return b.constant(np.abs(array) + np.float32(0.5) if positive else array)


def _maybe_batch(b: Builder, axis: int, shape: Shape) -> int:
    """The axis, rarely the batch's in its place."""
    return int(b.pick([0, -len(shape) - 1])) if b.failure_budget(ODD) else axis


def unary(kind: str) -> Step:
    return lambda b, x, shape: b.node(kind, [x])


def with_constant(kind: str, *, positive: bool = False, right: bool = False) -> Step:
    def step(b: Builder, x: str, shape: Shape) -> str:
        inputs = [x, _broadcast(b, shape, positive=positive)]
        return b.node(kind, inputs if right or b.failure_budget(0.6) else inputs[::-1])

    return step


def of_two(kind: str) -> Step:
    """An operator on two activations (mostly) of one shape, and constants for those with many."""

    def step(b: Builder, x: str, shape: Shape) -> str:
        same = [name for name, other in b.shapes.items() if other == shape]
        if b.failure_budget(ODD):
            same = [name for name, other in b.shapes.items() if len(other) != len(shape)] or same
        inputs = [x, b.pick(same)]
        if kind in ("Max", "Min", "Sum") and b.failure_budget(0.5):
            inputs += [_broadcast(b, shape)]
        order = b.rng.permutation(len(inputs))
        return b.node(kind, [inputs[place] for place in order])

    return step


def leaky_relu(b: Builder, x: str, shape: Shape) -> str:
    given = {} if b.failure_budget(0.3) else {"alpha": b.pick([0.0, 0.2, 0.5, 1.0])}
    return b.node("LeakyRelu", [x], **given)


def clip(b: Builder, x: str, shape: Shape) -> str:
    low, high = b.pick([None, -0.5, 0.0, -3.4e38]), b.pick([None, 0.7, 6.0, 0.1])
    if b.opset < 11:
        given = {key: value for key, value in (("min", low), ("max", high)) if value is not None}
        return b.node("Clip", [x], **given)
    inputs = [x]
    for bound in (low, high):
        inputs.append("" if bound is None else b.constant(np.array(bound, np.float32)))
    while inputs[-1] == "" and b.failure_budget(0.5):
        inputs.pop()
    return b.node("Clip", inputs)


def dropout(b: Builder, x: str, shape: Shape) -> str:
    outputs = b.pick([1, 1, 2])
    if b.opset < 12:
        return b.node("Dropout", [x], outputs, ratio=0.3)
    inputs = [x, *([b.constant(np.array(0.3, np.float32))] if b.failure_budget(0.5) else [])]
    return b.node("Dropout", inputs, outputs)


def cast(b: Builder, x: str, shape: Shape) -> str:
    return b.node("Cast", [x], to=TensorProto.FLOAT)


def flatten(b: Builder, x: str, shape: Shape) -> str:
    axis = b.pick([1, 1, 1, 2, 0] if b.failure_budget(0.2) else [1])
    return b.node("Flatten", [x], axis=axis)


def reshape(b: Builder, x: str, shape: Shape) -> str:
    total = math.prod(shape)
    factors = [size for size in range(1, total + 1) if total % size == 0]
    first = b.pick(factors)
    rest = b.pick([[total], [first, total // first], [*shape], [total, 1], [1, total]])
    batch = b.pick([0, -1, -1])
    if b.failure_budget(0.3):
        rest[b.number(0, len(rest) - 1)] = 0 if b.failure_budget(0.2) else -1
        batch = 0 if batch == -1 and not b.failure_budget(ODD) else batch
    if b.failure_budget(ODD):
        batch = b.pick([1, 2, 3])
    attributes = {"allowzero": b.pick([0, 0, 1])} if b.opset >= 14 and batch != 0 else {}
    if b.failure_budget(0.25):
        target = b.node("Concat", [_batch_size(b, x), b.constant(np.array(rest, np.int64))], axis=0)
    else:
        target = b.constant(np.array([batch, *rest], np.int64))
    return b.node("Reshape", [x, target], **attributes)


def _batch_size(b: Builder, x: str) -> str:
    """[N], computed from the shape of an activation."""
    if b.opset >= 15 and b.failure_budget(0.5):
        return b.node("Shape", [x], start=0, end=1)
    sizes = b.node("Shape", [x])
    if b.opset >= 10 and b.failure_budget(0.3):
        inputs = [b.constant(np.array([number], np.int64)) for number in (0, 1)]
        return b.node("Slice", [sizes, *inputs])
    if b.failure_budget(0.3):
        return b.node("Gather", [sizes, b.constant(np.array([0], np.int64))])
    one = b.node("Gather", [sizes, b.constant(np.array(0, np.int64))])
    form, attributes = b.axes_form([0], 13)
    return b.node("Unsqueeze", [one, *form], **attributes)


def unsqueeze(b: Builder, x: str, shape: Shape) -> str:
    count = b.pick([1, 1, 2])
    rank = len(shape) + 1 + count
    axes = [int(axis) for axis in b.rng.permutation(np.arange(1, rank))[:count]]
    if b.opset >= 11 and b.failure_budget(0.3):
        axes = [axis - rank for axis in axes]
    if b.failure_budget(ODD):
        axes[0] = 0
    form, attributes = b.axes_form(axes, 13)
    return b.node("Unsqueeze", [x, *form], **attributes)


def squeeze(b: Builder, x: str, shape: Shape) -> str:
    ones = [axis for axis, size in enumerate(shape, start=1) if size == 1]
    if not ones:
        x = unsqueeze(b, x, shape)
        shape = b.learn(x) or (1, *shape)
        ones = [axis for axis, size in enumerate(shape, start=1) if size == 1]
    if b.failure_budget(ODD):
        return b.node("Squeeze", [x])
    axes = [b.pick(ones or [1])]
    if b.opset >= 11 and b.failure_budget(0.3):
        axes = [axis - len(shape) - 1 for axis in axes]
    form, attributes = b.axes_form(axes, 13)
    return b.node("Squeeze", [x, *form], **attributes)


def transpose(b: Builder, x: str, shape: Shape) -> str:
    perm = [0, *(int(axis) + 1 for axis in b.rng.permutation(len(shape)))]
    if b.failure_budget(ODD):
        return b.node("Transpose", [x])
    return b.node("Transpose", [x], perm=perm)


def concat(b: Builder, x: str, shape: Shape) -> str:
    axis = _axis(b, shape)
    same = [name for name, other in b.shapes.items() if other == shape]
    parts = [x, *(b.pick(same) for _ in range(b.number(0, 2)))]
    if b.failure_budget(0.3):
        place = (axis - 1) if axis > 0 else axis
        sizes = [*shape]
        sizes[place] = b.pick([0, 1, 2])
        parts.insert(b.number(0, len(parts)), b.constant(b.normal(1, *sizes)))
    return b.node("Concat", parts, axis=_maybe_batch(b, axis, shape))


def split(b: Builder, x: str, shape: Shape) -> str:
    axis = _axis(b, shape)
    size = shape[axis - 1 if axis > 0 else axis]
    count = b.number(1, min(3, size))
    sizes = np.diff([0, *sorted(b.rng.permutation(np.arange(1, size))[: count - 1]), size])
    axis = _maybe_batch(b, axis, shape)
    if b.failure_budget(0.3 if size % count == 0 else 0.0):
        more: dict[str, Any] = {"num_outputs": count} if b.opset >= 18 else {}
        first = b.node("Split", [x], count, axis=axis, **more)
    elif b.opset >= 18 and b.failure_budget(0.3):
        first = b.node("Split", [x], count, axis=axis, num_outputs=count)
    elif b.opset >= 13:
        first = b.node("Split", [x, b.constant(sizes.astype(np.int64))], count, axis=axis)
    else:
        first = b.node("Split", [x], count, axis=axis, split=[int(part) for part in sizes])
    outputs = b.nodes[-1].output
    if b.failure_budget(ODD):
        outputs[len(outputs) - 1] = ""
    return str(b.pick([name for name in outputs if name] or [first]))


def cut(b: Builder, x: str, shape: Shape) -> str:
    """Slice; places out of range and from the end, steps, and rarely what is refused."""
    axes = [_axis(b, shape)] if b.failure_budget(0.7) else [*range(1, len(shape) + 1)]
    starts, ends, steps = [], [], []
    for axis in axes:
        size = shape[axis - 1 if axis > 0 else axis]
        starts.append(b.pick([0, 0, -size, -size - 3, 1 % size, -1]))
        ends.append(b.pick([size, size, size + 3, 2**31 - 1, 2**63 - 1, -1 if size > 1 else 1]))
        steps.append(b.pick([1, 1, 2, 3]))
    if b.failure_budget(ODD):
        steps[0] = b.pick([-1, -2])
    axes[0] = _maybe_batch(b, axes[0], shape)
    if b.opset < 10:
        return b.node("Slice", [x], starts=starts, ends=ends, axes=axes)
    vectors = [starts, ends, axes, steps]
    if b.failure_budget(0.3):
        vectors = vectors[:3]
    return b.node("Slice", [x, *(b.constant(np.array(v, np.int64)) for v in vectors)])


def gather(b: Builder, x: str, shape: Shape) -> str:
    axis = _axis(b, shape)
    size = shape[axis - 1 if axis > 0 else axis]
    start, step = b.number(0, size - 1), b.number(1, 2)
    places: Any = b.pick([[*range(start, size, step)], start, [start], [-1], -1])
    if b.failure_budget(ODD):
        places = b.pick([[size], [1, 0], [0, 0]])
    return b.node(
        "Gather", [x, b.constant(np.array(places, np.int64))], axis=_maybe_batch(b, axis, shape)
    )


def reduction(kind: str, since: int) -> Step:
    def step(b: Builder, x: str, shape: Shape) -> str:
        count = b.number(1, len(shape))
        axes = [int(axis) + 1 for axis in b.rng.permutation(len(shape))[:count]]
        if b.opset >= 11 and b.failure_budget(0.3):
            axes = [axis - len(shape) - 1 for axis in axes]
        if b.failure_budget(ODD):
            axes[0] = 0
        attributes: dict[str, Any] = (
            {} if b.failure_budget(0.3) else {"keepdims": b.pick([0, 1, 1])}
        )
        if b.opset >= since and b.failure_budget(0.2):
            attributes["noop_with_empty_axes"] = 1
            if b.failure_budget(0.5):
                return b.node(kind, [x], **attributes)
            axes = [] if b.failure_budget(0.5) else axes
        form, more = b.axes_form(axes, since)
        return b.node(kind, [x, *form], **attributes, **more)

    return step


def matmul(b: Builder, x: str, shape: Shape) -> str:
    left = len(shape) == 2 and b.failure_budget(0.4)
    size, many = (shape[0] if left else shape[-1]), b.number(1, 5)
    sizes = [many, size] if left else [size, many]
    sizes = [1] * (b.number(0, len(shape) - 1) if b.failure_budget(0.3) else 0) + sizes
    if b.failure_budget(ODD):
        sizes = b.pick([[2, *sizes], [size]])
    matrix = b.constant(b.normal(*sizes))
    result = b.node("MatMul", [matrix, x] if left else [x, matrix])
    if b.failure_budget(0.4):
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
        inputs.append(b.constant(b.normal(*(form if not b.failure_budget(ODD) else (2, many)))))
    attributes: dict[str, Any] = {"transB": turned}
    if b.failure_budget(0.3):
        attributes["alpha"] = b.pick([1.0, 2.0, 0.5, -4.0, 0.3])
    if b.failure_budget(0.3):
        attributes["beta"] = b.pick([1.0, 0.0, 0.7, -2.0])
    if b.failure_budget(ODD):
        attributes["transA"] = 1
    return b.node("Gemm", inputs, **attributes)


def batch_normalization(b: Builder, x: str, shape: Shape) -> str:
    tensors = [b.normal(shape[0]) for _ in range(3)]
    names = [b.constant(t) for t in [*tensors, np.abs(b.normal(shape[0])) + np.float32(0.1)]]
    epsilon = {} if b.failure_budget(0.3) else {"epsilon": b.pick([1e-3, 0.0, 1e-7])}
    return b.node("BatchNormalization", [x, *names], **epsilon)


def pad(b: Builder, x: str, shape: Shape) -> str:
    rank = len(shape) + 1
    amounts = [0] * (2 * rank)
    for axis in b.rng.permutation(np.arange(1, rank))[: b.number(0, 2)]:
        amounts[axis], amounts[rank + axis] = b.number(0, 2), b.number(0, 2)
    if b.failure_budget(ODD):
        amounts[b.pick([0, rank, 1])] = b.pick([1, -1])
    value = float(np.float32(b.pick([0.0, 1.5, -0.25])))
    if b.opset < 11:
        return b.node("Pad", [x], pads=amounts, value=value)
    inputs = [x, b.constant(np.array(amounts, np.int64))]
    if b.failure_budget(0.6):
        inputs.append(b.constant(np.array(value, np.float32)))
    if b.opset >= 18 and len(inputs) == 3 and b.failure_budget(0.3):
        axes = [a for a in range(rank) if amounts[a] or amounts[rank + a]] or [1]
        short = [amounts[a] for a in axes] + [amounts[rank + a] for a in axes]
        inputs[1] = b.constant(np.array(short, np.int64))
        inputs.append(b.constant(np.array([a - b.pick([0, rank]) for a in axes], np.int64)))
    return b.node("Pad", inputs, mode="constant")


def _windows(b: Builder, shape: Shape, *, dilated: bool, named: bool = True) -> dict[str, Any]:
    kernel = [b.number(1, min(3, size)) for size in shape[1:]]
    attributes: dict[str, Any] = {"kernel_shape": kernel} if named or b.failure_budget(0.5) else {}
    if b.failure_budget(0.6):
        attributes["strides"] = [b.number(1, 3) for _ in kernel]
    if dilated and b.failure_budget(0.25):
        attributes["dilations"] = [b.number(1, 2) for _ in kernel]
    if b.failure_budget(0.5):
        attributes["pads"] = [b.number(0, kernel[place % 2] - 1) for place in range(4)]
    elif b.failure_budget(0.5):
        attributes["auto_pad"] = b.pick(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
    return {"kernel": kernel, **attributes}


def conv(b: Builder, x: str, shape: Shape) -> str:
    attributes = _windows(b, shape, dilated=True, named=False)
    kernel = attributes.pop("kernel")
    groups = b.pick([g for g in range(1, shape[0] + 1) if shape[0] % g == 0])
    out = groups * b.number(1, 3)
    if groups > 1 or b.failure_budget(0.5):
        attributes["group"] = groups
    inputs = [x, b.constant(b.normal(out, shape[0] // groups, *kernel))]
    if b.failure_budget(0.5):
        inputs.append(b.constant(b.normal(out)))
    return b.node("Conv", inputs, **attributes)


def max_pool(b: Builder, x: str, shape: Shape) -> str:
    attributes = _windows(b, shape, dilated=b.opset >= 10)
    attributes.pop("kernel")
    if b.opset >= 10 and b.failure_budget(0.3):
        attributes["ceil_mode"] = 1
    return b.node("MaxPool", [x], **attributes)


def average_pool(b: Builder, x: str, shape: Shape) -> str:
    attributes = _windows(b, shape, dilated=b.opset >= 19)
    attributes.pop("kernel")
    if b.opset >= 10 and b.failure_budget(0.3):
        attributes["ceil_mode"] = 1
    if b.failure_budget(0.4):
        attributes["count_include_pad"] = 1
    return b.node("AveragePool", [x], **attributes)


#: Steps on activations of any shape (at least one axis beside the batch).
STEPS: dict[str, Step] = {
    "Add": with_constant("Add"),
    "Add of two": of_two("Add"),
    "BatchNormalization": batch_normalization,
    "Cast": cast,
    "Clip": clip,
    "Concat": concat,
    "Div": with_constant("Div", positive=True, right=True),
    "Dropout": dropout,
    "Flatten": flatten,
    "Gather": gather,
    "Gemm": gemm,
    "Identity": unary("Identity"),
    "LeakyRelu": leaky_relu,
    "MatMul": matmul,
    "Max": with_constant("Max"),
    "Max of two": of_two("Max"),
    "Min": with_constant("Min"),
    "Min of two": of_two("Min"),
    "Mul": with_constant("Mul"),
    "Neg": unary("Neg"),
    "Pad": pad,
    "ReduceMean": reduction("ReduceMean", 18),
    "ReduceSum": reduction("ReduceSum", 13),
    "Relu": unary("Relu"),
    "Reshape": reshape,
    "Sigmoid": unary("Sigmoid"),
    "Slice": cut,
    "Split": split,
    "Squeeze": squeeze,
    "Sub": with_constant("Sub"),
    "Sub of two": of_two("Sub"),
    "Sum": of_two("Sum"),
    "Tanh": unary("Tanh"),
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
#: Steps on images [batch, channels, height, width].
IMAGE_STEPS: dict[str, Step] = {
    "AveragePool": average_pool,
    "Conv": conv,
    "GlobalAveragePool": unary("GlobalAveragePool"),
    "MaxPool": max_pool,
}
