"""Convolutions, dense layers, elementwise constants, and the geometry of windows on an image."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor

from models.layers.base import ConstantLayer, Layer, Shape, ShapeError, parameter

__all__ = [
    "Conv2d",
    "Divide",
    "Linear",
    "Multiply",
    "Shift",
    "four_sides",
    "pair",
    "window_grid",
]


class Windows(Protocol):
    """What convolutions and pools have in common."""

    kind: ClassVar[str]
    padding: tuple[int, int, int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]


def pair(value: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return (value, value)
    first, second = value
    return (int(first), int(second))


def four_sides(value: int | tuple[int, ...] | list[int]) -> tuple[int, int, int, int]:
    """Padding as (top, left, bottom, right), from one number, (vertical, horizontal) or all."""
    if isinstance(value, int):
        return (value, value, value, value)
    if len(value) == 2:
        return (int(value[0]), int(value[1]), int(value[0]), int(value[1]))
    top, left, bottom, right = value
    return (int(top), int(left), int(bottom), int(right))


class Conv2d(Layer):
    """2-d cross-correlation with zero padding (top, left, bottom, right), stride, dilation, groups.

    weight [out, in / groups, kernel_h, kernel_w]; bias [out] or None; input [in, h, w].
    """

    kind = "conv2d"

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.weight = parameter(weight)
        self.bias = None if bias is None else parameter(bias)
        self.stride = pair(stride)
        self.padding = four_sides(padding)
        self.dilation = pair(dilation)
        self.groups = int(groups)

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as they act."""
        return self.weight, self.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_weight(x, *self.tensors())

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """This layer's convolution with another weight of the same shape."""
        top, left, bottom, right = self.padding
        if (top, left) == (bottom, right):
            return F.conv2d(x, weight, bias, self.stride, (top, left), self.dilation, self.groups)
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        out_channels, in_group, kernel_h, kernel_w = self.weight.shape
        if len(shape) != 3 or shape[0] != in_group * self.groups or out_channels % self.groups:
            raise ShapeError(
                f"conv2d with weight {tuple(self.weight.shape)} and groups {self.groups} "
                f"cannot take an input of shape {shape}"
            )
        return (out_channels, *window_grid(shape, (kernel_h, kernel_w), self))

    def config(self) -> dict[str, Any]:
        return {
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
        }


def window_grid(shape: Shape, kernel: tuple[int, int], layer: Windows) -> tuple[int, int]:
    """(h, w) of the grid of windows; raises ShapeError when no window fits."""
    top, left, bottom, right = layer.padding
    sizes = []
    for size, pad, k, s, d in zip(
        shape[1:], (top + bottom, left + right), kernel, layer.stride, layer.dilation, strict=True
    ):
        count = (size + pad - d * (k - 1) - 1) // s + 1
        if count < 1:
            raise ShapeError(f"{layer.kind}: window {kernel} does not fit an input of {shape}")
        sizes.append(count)
    return (sizes[0], sizes[1])


class Linear(Layer):
    """Dense layer: weight [out, in], bias [out] or None; input [in]."""

    kind = "linear"

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = parameter(weight)
        self.bias = None if bias is None else parameter(bias)

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as they act."""
        return self.weight, self.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_weight(x, *self.tensors())

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Another dense map of the same shape."""
        return F.linear(x, weight, bias)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if shape != (self.weight.shape[1],):
            raise ShapeError(
                f"linear with weight {tuple(self.weight.shape)} cannot take shape {shape}"
            )
        return (self.weight.shape[0],)


class Multiply(ConstantLayer):
    """x * value, elementwise (value broadcasts to the input's shape)."""

    kind = "multiply"

    def forward(self, x: Tensor) -> Tensor:
        return x * self.value


class Divide(ConstantLayer):
    """x / value, elementwise (value broadcasts to the input's shape, no zero in it)."""

    kind = "divide"

    def forward(self, x: Tensor) -> Tensor:
        return x / self.value


class Shift(ConstantLayer):
    """x + value, elementwise (value broadcasts to the input's shape)."""

    kind = "shift"

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value
