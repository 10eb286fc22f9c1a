"""Steps that 1-Lipschitz networks are made of: norms, sorted axes, pairs in order, blocks moved."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.models.differential.builder import Builder, Shape
from tests.models.differential.steps import ODD, an_axis, maybe_batch

__all__ = [
    "conv_transpose",
    "depth_to_space",
    "global_lp_pool",
    "lp_pool",
    "ordered_pairs",
    "prelu",
    "root_of_squares",
    "space_to_depth",
    "top_k",
]


def prelu(b: Builder, x: str, shape: Shape) -> str:
    """One slope for all, or one for each channel or number, of any size and sign."""
    sizes = b.pick([(1,), (1,) * len(shape), shape, (shape[0], *([1] * (len(shape) - 1)))])
    slopes = np.full(sizes, b.pick([0.0, 0.25, 1.0, -0.5, 1.5]), np.float32)
    if b.chance(0.5):
        slopes = b.rng.uniform(-0.5, 1.5, sizes).astype(np.float32)
    return b.node("PRelu", [x, b.constant(slopes)])


def top_k(b: Builder, x: str, shape: Shape) -> str:
    axis = an_axis(b, shape)
    size = shape[axis - 1 if axis > 0 else axis + len(shape)]
    size = max(1, size - 1) if b.chance(ODD) else size
    axis = maybe_batch(b, axis, shape)
    if b.opset < 10:
        return b.node("TopK", [x], 2, axis=axis, k=size)
    more = {"largest": b.pick([0, 1])} if b.opset >= 11 else {}
    return b.node("TopK", [x, b.constant(np.array([size], np.int64))], 2, axis=axis, **more)


def ordered_pairs(b: Builder, x: str, shape: Shape) -> str:
    """Least and largest of pairs of an axis, joined again: GroupSort."""
    if shape[0] % 2:
        return b.node("Identity", [x])
    target = b.constant(np.array([-1, shape[0] // 2, 2, *shape[1:]], np.int64))
    pairs = b.node("Reshape", [x, target])
    parts = []
    for kind in b.pick([("ReduceMin", "ReduceMax"), ("ReduceMax", "ReduceMin")]):
        form, more = b.axes_form([2], 18)
        parts.append(b.node(kind, [pairs, *form], keepdims=1, **more))
    joined = b.node("Concat", parts, axis=2)
    return b.node("Reshape", [joined, b.constant(np.array([-1, *shape], np.int64))])


def root_of_squares(b: Builder, x: str, shape: Shape) -> str:
    """The norm over some axes, as exporters write it."""
    two = b.constant(np.array(2.0, np.float32))
    squares = b.node("Pow", [x, two]) if b.chance(0.5) else b.node("Mul", [x, x])
    axes = [int(axis) + 1 for axis in b.rng.permutation(len(shape))[: b.number(1, len(shape))]]
    kind = b.pick(["ReduceSum", "ReduceMean"])
    form, more = b.axes_form(axes, {"ReduceSum": 13, "ReduceMean": 18}[kind])
    sums = b.node(kind, [squares, *form], keepdims=b.pick([0, 1]), **more)
    if b.chance(0.5):
        sums = b.node("Mul", [b.node("Sign", [sums]), b.node("Relu", [b.node("Abs", [sums])])])
    if b.chance(0.5):
        sums = b.node("Mul", [sums, b.constant(np.array(b.pick([3.0, 0.3]), np.float32))])
    if b.chance(0.5):
        sums = b.node("Add", [sums, b.constant(np.array(b.pick([0.0, 1e-3]), np.float32))])
    if b.chance(0.5):
        return b.node("Sqrt", [sums])
    return b.node("Pow", [sums, b.constant(np.array(0.5, np.float32))])


def lp_pool(b: Builder, x: str, shape: Shape) -> str:
    kernel = [b.number(1, max(1, min(3, size))) for size in shape[1:]]
    stride = [size + b.number(0, 1) for size in kernel]
    if b.chance(ODD):
        stride = [1, 1]
    return b.node("LpPool", [x], kernel_shape=kernel, strides=stride, p=2)


def local_response(b: Builder, x: str, shape: Shape) -> str:
    """LRN with its defaults or others, over as many channels as there are or more."""
    given = {"alpha": b.pick([1e-4, 0.5, 3.0]), "beta": b.pick([0.5, 0.75, 1.0])}
    given["bias"] = b.pick([0.1, 1.0, 2.0])
    given = {name: value for name, value in given.items() if b.chance(0.7)}
    return b.node("LRN", [x], size=b.pick([1, 3, 3, 5, 9, 2 if b.chance(ODD) else 3]), **given)


def global_lp_pool(b: Builder, x: str, shape: Shape) -> str:
    return b.node("GlobalLpPool", [x], p=b.pick([1, 2]) if b.chance(ODD) else 2)


def space_to_depth(b: Builder, x: str, shape: Shape) -> str:
    return b.node("SpaceToDepth", [x], blocksize=_block(b, shape[1:]))


def depth_to_space(b: Builder, x: str, shape: Shape) -> str:
    mode: dict[str, Any] = {"mode": b.pick(["DCR", "CRD"])} if b.opset >= 11 else {}
    block = 2 if shape[0] % 4 == 0 else 1
    return b.node("DepthToSpace", [x], blocksize=block, **mode)


def _block(b: Builder, sizes: Shape) -> int:
    fitting = [n for n in (1, 2, 3) if all(size % n == 0 for size in sizes)]
    return int(b.pick(fitting))


def conv_transpose(b: Builder, x: str, shape: Shape) -> str:
    groups = b.pick([g for g in range(1, shape[0] + 1) if shape[0] % g == 0])
    kernel = [b.number(1, 3) for _ in shape[1:]]
    dilation = [b.number(1, 2) for _ in kernel]
    pads = [b.number(0, d * (k - 1)) for k, d in zip(kernel, dilation, strict=True)] * 2
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if any(size + r - 2 * p < 1 for size, r, p in zip(shape[1:], reach, pads, strict=False)):
        pads = [0] * len(pads)
    inputs = [x, b.constant(b.normal(shape[0], b.number(1, 2), *kernel))]
    more: dict[str, Any] = {}
    if b.chance(0.5):
        more["strides"] = [b.number(1, 3) for _ in kernel]
        if b.chance(0.4):
            more["output_padding"] = [b.number(0, step - 1) for step in more["strides"]]
    return b.node("ConvTranspose", inputs, group=groups, pads=pads, dilations=dilation, **more)
