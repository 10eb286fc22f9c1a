"""Layers that move numbers without changing them: views, permuted axes, padding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.affine import four_sides
from models.layers.base import Layer, Shape, ShapeError, as_float32

__all__ = ["Pad", "Permute", "Reshape"]


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
