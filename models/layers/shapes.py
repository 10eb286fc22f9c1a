"""Layers that move numbers without changing them: views, permuted axes and places, padding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.affine import four_sides
from models.layers.base import Layer, Shape, ShapeError, as_float32

__all__ = ["Expand", "Gather", "Pad", "Permute", "Reshape"]


class Reshape(Layer):
    """The same numbers in row-major order under another shape (flatten, squeeze, view)."""

    kind = "reshape"

    def __init__(self, *, shape: tuple[int, ...] | list[int]) -> None:
        super().__init__()
        self.shape = tuple(int(size) for size in shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if torch.Size(shape).numel() != torch.Size(self.shape).numel():
            raise ShapeError(f"cannot view shape {shape} as {self.shape}")
        return self.shape

    def config(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}


class Expand(Layer):
    """Axes of size 1 repeated until the shape is ``shape``, of as many axes."""

    kind = "expand"

    def __init__(self, *, shape: tuple[int, ...] | list[int]) -> None:
        super().__init__()
        self.shape = tuple(int(size) for size in shape)

    def forward(self, x: Tensor) -> Tensor:
        # Numbers of their own: bounds on them are tightened one by one, in place.
        return x.expand(x.shape[0], *self.shape).contiguous()

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        fits = len(shape) == len(self.shape) and all(
            size == new or (size == 1 and new > 0)
            for size, new in zip(shape, self.shape, strict=True)
        )
        if not fits:
            raise ShapeError(f"cannot expand shape {shape} to {self.shape}")
        return self.shape

    def config(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}


class Permute(Layer):
    """Axes in another order; ``axes`` counts from 0 without the batch axis."""

    kind = "permute"

    def __init__(self, *, axes: tuple[int, ...] | list[int]) -> None:
        super().__init__()
        self.axes = tuple(int(axis) for axis in axes)

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, *(axis + 1 for axis in self.axes))

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if sorted(self.axes) != list(range(len(shape))):
            raise ShapeError(f"axes {self.axes} do not permute shape {shape}")
        return tuple(shape[axis] for axis in self.axes)

    def config(self) -> dict[str, Any]:
        return {"axes": list(self.axes)}


class Gather(Layer):
    """The numbers at ``places`` of an axis (int64, each place at most once), in their order."""

    kind = "gather"

    def __init__(self, places: Tensor, *, axis: int = 0) -> None:
        super().__init__()
        self.register_buffer("places", places.detach().clone())
        self.places: Tensor
        self.axis = int(axis)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(self.axis + 1, self.places.to(x.device))

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        axis, count = self.axis, self.places.numel()
        if not 0 <= axis < len(shape) or not 0 < count <= shape[axis]:
            raise ShapeError(f"{count} different places of axis {axis} of shape {shape}")
        if self.places.dtype != torch.int64 or self.places.dim() != 1:
            raise ShapeError(f"{self.kind} needs a vector of places")
        ordered = self.places.sort().values
        twice = bool((ordered[1:] == ordered[:-1]).any())
        if twice or int(ordered[0]) < 0 or int(ordered[-1]) >= shape[axis]:
            raise ShapeError(f"{self.kind}: places of {shape[axis]}, each at most once")
        return (*shape[:axis], count, *shape[axis + 1 :])

    def config(self) -> dict[str, Any]:
        return {"axis": self.axis}


class Pad(Layer):
    """Constant padding of the last two axes by (top, left, bottom, right) >= 0."""

    kind = "pad"

    def __init__(self, *, padding: tuple[int, ...] | list[int], value: float = 0.0) -> None:
        super().__init__()
        self.padding = four_sides(tuple(padding))
        self.value = as_float32(value)

    def forward(self, x: Tensor) -> Tensor:
        top, left, bottom, right = self.padding
        return F.pad(x, (left, right, top, bottom), value=self.value)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        top, left, bottom, right = self.padding
        if len(shape) < 2 or min(self.padding) < 0:
            raise ShapeError(f"padding {self.padding} does not fit shape {shape}")
        return (*shape[:-2], shape[-2] + top + bottom, shape[-1] + left + right)

    def config(self) -> dict[str, Any]:
        return {"padding": list(self.padding), "value": self.value}
