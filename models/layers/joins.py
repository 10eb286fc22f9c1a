"""Layers that join nodes, cut and reduce axes: sums, maxima and concatenation, slices, means.

Axes count from 0 without the batch axis.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.layers.base import Layer, Shape, ShapeError

__all__ = ["Add", "Concat", "Maximum", "Minimum", "Product", "ReduceMean", "ReduceSum", "Slice"]


class Add(Layer):
    """x + y of two earlier nodes of the same shape (a residual connection)."""

    kind = "add"
    arity = 2

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def output_shape(self, *shapes: Shape) -> Shape:
        first, second = shapes
        if first != second:
            raise ShapeError(f"add of shapes {first} and {second}")
        return first


class Concat(Layer):
    """Two or more nodes one after another along an axis; all other sizes are equal."""

    kind = "concat"
    arity = None

    def __init__(self, *, axis: int = 0) -> None:
        super().__init__()
        self.axis = int(axis)

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, dim=self.axis + 1)

    def output_shape(self, *shapes: Shape) -> Shape:
        axis, first = self.axis, shapes[0]
        if not 0 <= axis < len(first):
            raise ShapeError(f"concat along axis {axis} of shape {first}")
        if any((*s[:axis], *s[axis + 1 :]) != (*first[:axis], *first[axis + 1 :]) for s in shapes):
            raise ShapeError(f"concat of shapes {list(shapes)[:8]} along axis {axis}")
        if any(len(shape) != len(first) for shape in shapes):
            raise ShapeError(f"concat of shapes {list(shapes)[:8]}, which differ in rank")
        return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])

    def config(self) -> dict[str, Any]:
        return {"axis": self.axis}


class Slice(Layer):
    """Every ``step``-th place of an axis from ``start`` up to, without, ``stop``.

    0 <= start < stop <= size and step >= 1: nothing counts from the end.
    """

    kind = "slice"

    def __init__(self, *, axis: int, start: int, stop: int, step: int = 1) -> None:
        super().__init__()
        self.axis, self.start = int(axis), int(start)
        self.stop, self.step = int(stop), int(step)

    def forward(self, x: Tensor) -> Tensor:
        cuts = [slice(None)] * (self.axis + 1)
        return x[(*cuts, slice(self.start, self.stop, self.step))]

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        axis, start, stop, step = self.axis, self.start, self.stop, self.step
        if not 0 <= axis < len(shape):
            raise ShapeError(f"slice of axis {axis} of shape {shape}")
        if not 0 <= start < stop <= shape[axis] or step < 1:
            raise ShapeError(f"slice [{start}:{stop}:{step}] of axis {axis} of shape {shape}")
        return (*shape[:axis], len(range(start, stop, step)), *shape[axis + 1 :])

    def config(self) -> dict[str, Any]:
        return {"axis": self.axis, "start": self.start, "stop": self.stop, "step": self.step}


class _Pairwise(Layer):
    """An elementwise operator on two earlier nodes of the same shape."""

    arity = 2

    def output_shape(self, *shapes: Shape) -> Shape:
        first, second = shapes
        if first != second:
            raise ShapeError(f"{self.kind} of shapes {first} and {second}")
        return first


class Maximum(_Pairwise):
    """max(x, y) of two earlier nodes of the same shape, elementwise."""

    kind = "maximum"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.maximum(x, y)


class Product(_Pairwise):
    """x * y of two earlier nodes of the same shape, elementwise."""

    kind = "product"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y


class Minimum(_Pairwise):
    """min(x, y) of two earlier nodes of the same shape, elementwise."""

    kind = "minimum"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.minimum(x, y)


class _Reduction(Layer):
    """An operator that takes whole axes together; they stay with size 1 or go (``keepdims``)."""

    def __init__(self, *, axes: tuple[int, ...] | list[int], keepdims: bool = False) -> None:
        super().__init__()
        self.axes = tuple(int(axis) for axis in axes)
        self.keepdims = bool(keepdims)

    def batched_axes(self) -> list[int]:
        """The axes of a batched tensor."""
        return [axis + 1 for axis in self.axes]

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        axes = set(self.axes)
        if not axes or len(axes) != len(self.axes) or not axes <= set(range(len(shape))):
            raise ShapeError(f"{self.kind} over axes {self.axes} of shape {shape}")
        if self.keepdims:
            return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
        return tuple(size for axis, size in enumerate(shape) if axis not in axes)

    def config(self) -> dict[str, Any]:
        return {"axes": list(self.axes), "keepdims": self.keepdims}


class ReduceSum(_Reduction):
    """Sum over some axes."""

    kind = "reduce-sum"

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(dim=self.batched_axes(), keepdim=self.keepdims)


class ReduceMean(_Reduction):
    """Mean over some axes: their sum divided by their number of places."""

    kind = "reduce-mean"

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=self.batched_axes(), keepdim=self.keepdims)
