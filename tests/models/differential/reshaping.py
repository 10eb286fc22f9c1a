"""Steps that move numbers: other shapes and orders, joins, cuts, choices, and sums along axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from tests.models.differential.builder import Builder, Shape
from tests.models.differential.steps import ODD, Step, an_axis, maybe_batch

__all__ = [
    "by_place",
    "chosen",
    "concat",
    "cut",
    "flatten",
    "gather",
    "gathered_places",
    "partly_absolute",
    "reduction",
    "reshape",
    "split",
    "squeeze",
    "tensordot",
    "tile",
    "transpose",
    "turned",
    "unsqueeze",
]


def flatten(b: Builder, x: str, shape: Shape) -> str:
    axis = b.pick([1, 1, 1, 2, 0] if b.chance(0.2) else [1])
    return b.node("Flatten", [x], axis=axis)


def reshape(b: Builder, x: str, shape: Shape) -> str:
    total = math.prod(shape)
    factors = [size for size in range(1, total + 1) if total % size == 0]
    first = b.pick(factors)
    rest = b.pick([[total], [first, total // first], [*shape], [total, 1], [1, total]])
    batch = b.pick([0, -1, -1])
    if b.chance(0.3):
        rest[b.number(0, len(rest) - 1)] = 0 if b.chance(0.2) else -1
        batch = 0 if batch == -1 and not b.chance(ODD) else batch
    if b.chance(ODD):
        batch = b.pick([1, 2, 3])
    attributes = {"allowzero": b.pick([0, 0, 1])} if b.opset >= 14 and batch != 0 else {}
    if b.chance(0.25):
        target = b.node("Concat", [_batch_size(b, x), b.constant(np.array(rest, np.int64))], axis=0)
    else:
        target = b.constant(np.array([batch, *rest], np.int64))
    return b.node("Reshape", [x, target], **attributes)


def _batch_size(b: Builder, x: str) -> str:
    """[N], computed from the shape of an activation."""
    if b.opset >= 15 and b.chance(0.5):
        return b.node("Shape", [x], start=0, end=1)
    sizes = b.node("Shape", [x])
    if b.opset >= 10 and b.chance(0.3):
        inputs = [b.constant(np.array([number], np.int64)) for number in (0, 1)]
        return b.node("Slice", [sizes, *inputs])
    if b.chance(0.3):
        return b.node("Gather", [sizes, b.constant(np.array([0], np.int64))])
    one = b.node("Gather", [sizes, b.constant(np.array(0, np.int64))])
    form, attributes = b.axes_form([0], 13)
    return b.node("Unsqueeze", [one, *form], **attributes)


def unsqueeze(b: Builder, x: str, shape: Shape) -> str:
    count = b.pick([1, 1, 2])
    rank = len(shape) + 1 + count
    axes = [int(axis) for axis in b.rng.permutation(np.arange(1, rank))[:count]]
    if b.opset >= 11 and b.chance(0.3):
        axes = [axis - rank for axis in axes]
    if b.chance(ODD):
        axes[0] = 0
    form, attributes = b.axes_form(axes, 13)
    return b.node("Unsqueeze", [x, *form], **attributes)


def squeeze(b: Builder, x: str, shape: Shape) -> str:
    ones = [axis for axis, size in enumerate(shape, start=1) if size == 1]
    if not ones:
        x = unsqueeze(b, x, shape)
        shape = b.learn(x) or (1, *shape)
        ones = [axis for axis, size in enumerate(shape, start=1) if size == 1]
    if b.chance(ODD):
        return b.node("Squeeze", [x])
    axes = [b.pick(ones or [1])]
    if b.opset >= 11 and b.chance(0.3):
        axes = [axis - len(shape) - 1 for axis in axes]
    form, attributes = b.axes_form(axes, 13)
    return b.node("Squeeze", [x, *form], **attributes)


def transpose(b: Builder, x: str, shape: Shape) -> str:
    perm = [0, *(int(axis) + 1 for axis in b.rng.permutation(len(shape)))]
    if b.chance(ODD):
        return b.node("Transpose", [x])
    return b.node("Transpose", [x], perm=perm)


def concat(b: Builder, x: str, shape: Shape) -> str:
    axis = an_axis(b, shape)
    same = [name for name, other in b.shapes.items() if other == shape]
    parts = [x, *(b.pick(same) for _ in range(b.number(0, 2)))]
    if b.chance(0.3):
        place = (axis - 1) if axis > 0 else axis
        sizes = [*shape]
        sizes[place] = b.pick([0, 1, 2])
        parts.insert(b.number(0, len(parts)), b.constant(b.normal(1, *sizes)))
    return b.node("Concat", parts, axis=maybe_batch(b, axis, shape))


def split(b: Builder, x: str, shape: Shape) -> str:
    axis = an_axis(b, shape)
    size = shape[axis - 1 if axis > 0 else axis]
    count = b.number(1, min(3, size))
    sizes = np.diff([0, *sorted(b.rng.permutation(np.arange(1, size))[: count - 1]), size])
    axis = maybe_batch(b, axis, shape)
    if b.chance(0.3 if size % count == 0 else 0.0):
        more: dict[str, Any] = {"num_outputs": count} if b.opset >= 18 else {}
        first = b.node("Split", [x], count, axis=axis, **more)
    elif b.opset >= 18 and b.chance(0.3):
        first = b.node("Split", [x], count, axis=axis, num_outputs=count)
    elif b.opset >= 13:
        first = b.node("Split", [x, b.constant(sizes.astype(np.int64))], count, axis=axis)
    else:
        first = b.node("Split", [x], count, axis=axis, split=[int(part) for part in sizes])
    outputs = b.nodes[-1].output
    if b.chance(ODD):
        outputs[len(outputs) - 1] = ""
    return str(b.pick([name for name in outputs if name] or [first]))


def cut(b: Builder, x: str, shape: Shape) -> str:
    """Slice; places out of range and from the end, steps, and rarely what is refused."""
    axes = [an_axis(b, shape)] if b.chance(0.7) else [*range(1, len(shape) + 1)]
    starts, ends, steps = [], [], []
    for axis in axes:
        size = shape[axis - 1 if axis > 0 else axis]
        starts.append(b.pick([0, 0, -size, -size - 3, 1 % size, -1]))
        ends.append(b.pick([size, size, size + 3, 2**31 - 1, 2**63 - 1, -1 if size > 1 else 1]))
        steps.append(b.pick([1, 1, 2, 3]))
    if b.chance(0.2):
        starts[0], ends[0] = b.pick([-1, 2**31 - 1, 0]), b.pick([-(2**63), -(2**31), -9, 0])
        steps[0] = b.pick([-1, -1, -2])
    axes[0] = maybe_batch(b, axes[0], shape)
    if b.opset < 10:
        return b.node("Slice", [x], starts=starts, ends=ends, axes=axes)
    vectors = [starts, ends, axes, steps]
    if b.chance(0.3):
        vectors = vectors[:3]
    return b.node("Slice", [x, *(b.constant(np.array(v, np.int64)) for v in vectors)])


def gather(b: Builder, x: str, shape: Shape) -> str:
    axis = an_axis(b, shape)
    size = shape[axis - 1 if axis > 0 else axis]
    start, step = b.number(0, size - 1), b.number(1, 2)
    places: Any = b.pick([[*range(start, size, step)], start, [start], [-1], -1])
    if b.chance(0.3):
        places = [int(place) for place in b.rng.permutation(size)[: b.number(1, size)]]
    if b.chance(ODD):
        places = b.pick([[size], [1, 0], [0, 0], [[0]]])
    return b.node(
        "Gather", [x, b.constant(np.array(places, np.int64))], axis=maybe_batch(b, axis, shape)
    )


def partly_absolute(b: Builder, x: str, shape: Shape) -> str:
    """|.| on the first channels, or on others: one layer of ours, or a join."""
    if shape[0] < 2:
        return b.node("Abs", [x])
    cut = b.number(1, shape[0] - 1)
    sizes = np.array([cut, shape[0] - cut], np.int64)
    if b.opset >= 13:
        b.node("Split", [x, b.constant(sizes)], 2, axis=1)
    else:
        b.node("Split", [x], 2, axis=1, split=sizes.tolist())
    first, second = b.nodes[-1].output
    swapped = b.chance(0.3)
    parts = [b.node("Abs", [second if swapped else first]), first if swapped else second]
    if b.chance(0.2):
        parts = parts[::-1]
    return b.node("Concat", parts, axis=1)


def reduction(kind: str, since: int) -> Step:
    def step(b: Builder, x: str, shape: Shape) -> str:
        count = b.number(1, len(shape))
        axes = [int(axis) + 1 for axis in b.rng.permutation(len(shape))[:count]]
        if b.opset >= 11 and b.chance(0.3):
            axes = [axis - len(shape) - 1 for axis in axes]
        if b.chance(ODD):
            axes[0] = 0
        attributes: dict[str, Any] = {} if b.chance(0.3) else {"keepdims": b.pick([0, 1, 1])}
        if b.opset >= since and b.chance(0.2):
            attributes["noop_with_empty_axes"] = 1
            if b.chance(0.5):
                return b.node(kind, [x], **attributes)
            axes = [] if b.chance(0.5) else axes
        form, more = b.axes_form(axes, since)
        return b.node(kind, [x, *form], **attributes, **more)

    return step


def turned(b: Builder, x: str, shape: Shape) -> str:
    """Something while the batch axis is anywhere, and all axes back."""
    rank = len(shape) + 1
    if b.batch is None:
        return b.node("Identity", [x])
    perm = [int(axis) for axis in b.rng.permutation(rank)]
    value = b.node("Transpose", [x], perm=perm)
    axis = b.pick([place for place, source in enumerate(perm) if source or b.chance(ODD)])
    kind = b.pick(["Relu", "ReduceMean", "Concat", "Gather", "Add"])
    if kind == "Concat":
        value = b.node("Concat", [value, value], axis=axis)
    elif kind == "ReduceMean":
        form, more = b.axes_form([axis], 18)
        value = b.node("ReduceMean", [value, *form], keepdims=1, **more)
    elif kind == "Gather":
        places = np.zeros(b.number(1, 2), np.int64)
        value = b.node("Gather", [value, b.constant(places)], axis=axis)
    elif kind == "Add":
        sizes = [(1, *shape)[source] for source in perm]
        value = b.node("Add", [value, b.constant(b.normal(*sizes))])
    else:
        value = b.node("Relu", [value])
    return b.node("Transpose", [value], perm=[int(place) for place in np.argsort(perm)])


def chosen(b: Builder, x: str, shape: Shape) -> str:
    """x on one side of 0, and a number times x on the other."""
    if b.opset < 9:
        return b.node("Identity", [x])
    kinds = ["Greater", "Less", *(["GreaterOrEqual", "LessOrEqual"] * 2 if b.opset >= 12 else [])]
    zero = b.constant(np.array(0.1 if b.chance(ODD) else 0.0, np.float32))
    slope = b.constant(np.array(b.pick([0.0, 0.2, -0.5, 2.0]), np.float32))
    other = zero if b.chance(0.2) else b.node("Mul", [x, slope])
    condition = b.node(b.pick(kinds), [x, zero] if b.chance(0.7) else [zero, x])
    return b.node("Where", [condition, *([x, other] if b.chance(0.5) else [other, x])])


def truth(b: Builder, x: str, shape: Shape) -> str:
    """1 where a comparison is true and 0 elsewhere, or two other numbers."""
    if b.opset < 9:
        return b.node("Identity", [x])
    kinds = ["Greater", "Less", *(["GreaterOrEqual", "LessOrEqual"] * 2 if b.opset >= 12 else [])]
    x = b.node("Relu", [x]) if b.chance(0.3) else x
    bound = b.constant(np.array(b.pick([0.0, 0.0, 0.3, -1.5]), np.float32))
    condition = b.node(b.pick(kinds), [x, bound] if b.chance(0.7) else [bound, x])
    if b.chance(0.5):
        return b.node("Cast", [condition], to=TensorProto.FLOAT)
    numbers = [b.pick([1.0, 0.0, -1.0, 0.25]), b.pick([-1.0, 2.0, 0.1])]
    return b.node("Where", [condition, *(b.constant(np.array(n, np.float32)) for n in numbers)])


def by_place(b: Builder, x: str, shape: Shape) -> str:
    """Two values, or one and numbers, by a constant condition."""
    if b.opset < 9:
        return b.node("Identity", [x])
    sizes = [size if b.chance(0.7) else 1 for size in shape][b.number(0, len(shape)) :]
    mask = b.name()
    b.initializers.append(numpy_helper.from_array(b.rng.random(sizes) < 0.5, mask))
    sides = [x, b.node("Neg", [x]) if b.chance(0.3) else b.constant(b.normal(*shape))]
    return b.node("Where", [mask, *(sides if b.chance(0.5) else sides[::-1])])


def gathered_places(b: Builder, x: str, shape: Shape) -> str:
    """GatherND of the axes beside the batch, which comes behind them, as torch writes a window."""
    if b.opset < 12 or b.batch is None:
        return b.node("Identity", [x])
    depth = b.number(1, len(shape))
    order = [*range(1, depth + 1), 0, *range(depth + 1, len(shape) + 1)]
    places = np.stack([b.rng.integers(-size, size, 3) for size in shape[:depth]], axis=-1)
    gathered = b.node(
        "GatherND", [b.node("Transpose", [x], perm=order), b.constant(places.astype(np.int64))]
    )
    return b.node("Transpose", [gathered], perm=[1, 0, *range(2, len(shape) - depth + 2)])


def tile(b: Builder, x: str, shape: Shape) -> str:
    counts = [2 if b.chance(ODD) else 1, *(b.pick([1, 1, 2, 3]) for _ in shape)]
    return b.node("Tile", [x, b.constant(np.array(counts, np.int64))])


def tensordot(b: Builder, x: str, shape: Shape) -> str:
    """A matrix for every place as TensorFlow writes it: rows and places on one axis meanwhile."""
    many = b.number(1, 4)
    rows = b.node("Reshape", [x, b.constant(np.array([-1, shape[-1]], np.int64))])
    product = b.node("MatMul", [rows, b.constant(b.normal(shape[-1], many))])
    if b.chance(0.5):
        product = b.node(b.pick(["Add", "Mul"]), [product, b.constant(b.normal(many))])
    target = np.array([-1, *shape[:-1], many], np.int64)
    return b.node("Reshape", [product, b.constant(target)])
